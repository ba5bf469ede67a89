use super::*;
use crate::data::tokenizer::Tokenizer;
use crate::data::train_tokenizer::TrainOptions;
use crate::progress::Silent;
use std::fs;
use std::io::Write;

/// Text full of places where a careless cut would change tokens.
pub(crate) fn tricky() -> String {
    let bits = [
        "don't",
        " they'll",
        "\n\n",
        "  ",
        " \n ",
        "\t",
        "x\u{a0}y",
        "日本語、",
        "。\n",
        "—",
        "\u{200b}",
        "\u{85}",
        "42",
        "3.14",
        "\r\n",
        "!!!",
        " ?!",
        "é",
        "e\u{301}",
        "\u{3000}",
        "🙂",
        " 🙂",
        "'s",
        "a",
        "\u{2028}",
        "\n'd",
    ];
    // A fixed walk that meets every pair of bits.
    (0..bits.len() * bits.len() * 4)
        .map(|i| bits[(i * 7 + i / bits.len() * 3 + i * i % 5) % bits.len()])
        .collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A Parquet file of two row groups: numbers in `id`, and `texts` in `text`, as `kind` spells it.
fn parquet_of(kind: &str, texts: &[Option<&str>]) -> Vec<u8> {
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
    use ::parquet::file::writer::SerializedFileWriter;
    let schema = format!("message rows {{ REQUIRED INT32 id; {kind} }}");
    let schema = Arc::new(::parquet::schema::parser::parse_message_type(&schema).unwrap());
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema, Arc::default()).unwrap();
    for part in texts.chunks(texts.len().div_ceil(2)) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let numbers: Vec<i32> = (0..part.len() as i32).collect();
        column.typed::<Int32Type>().write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> =
            part.iter().flatten().map(|text| ByteArray::from(*text)).collect();
        let levels: Vec<i16> = part.iter().map(|text| i16::from(text.is_some())).collect();
        let levels = (!kind.starts_with("REQUIRED")).then_some(&levels[..]);
        column.typed::<ByteArrayType>().write_batch(&values, levels, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    out
}

fn parquet_bytes(texts: &[Option<&str>]) -> Vec<u8> {
    parquet_of("OPTIONAL BYTE_ARRAY text (STRING);", texts)
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn pieces(&self, name: &str, bytes: &[u8], field: &str) -> Result<Vec<Piece>> {
        self.read(name, bytes, field, false).map(|read| read.0)
    }

    fn read(
        &self,
        name: &str,
        bytes: &[u8],
        field: &str,
        skip_bad: bool,
    ) -> Result<(Vec<Piece>, Vec<Skipped>)> {
        let source = Source::open(&self.file(name, bytes))?;
        let options = ReadOptions { text_field: field.into(), split: true, skip_bad };
        let (mut pieces, mut consumed) = (Vec::new(), 0);
        let sources = std::slice::from_ref(&source);
        let skipped = for_each_batch(sources, &options, "", &Silent, |batch| {
            consumed += batch.consumed;
            pieces.extend(batch.pieces);
            Ok(())
        })?;
        assert_eq!(Some(consumed), source.size(), "progress adds up to the file's size");
        Ok((pieces, skipped))
    }

    fn documents(&self, name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let mut documents = vec![String::new()];
        for piece in self.pieces(name, bytes, "text")? {
            documents.last_mut().unwrap().push_str(&piece.text);
            if piece.ends_document {
                documents.push(String::new());
            }
        }
        assert_eq!(documents.pop().unwrap(), "", "the last document ends");
        Ok(documents)
    }

    fn error(&self, name: &str, bytes: &[u8]) -> String {
        let message = self.documents(name, bytes).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
        message
    }
}

#[test]
fn cutting_anywhere_allowed_leaves_the_tokens_as_they_are() {
    let folder = Folder::new();
    let text = tricky();
    let path = folder.file("t.txt", text.as_bytes());
    let options = TrainOptions { vocab_size: 600, ..TrainOptions::default() };
    let (tokenizer, _) = Tokenizer::train(&[path], &options, &Silent).unwrap();
    let whole = tokenizer.encode(&text).unwrap();
    for target in [1, 7, 64, 1000] {
        let (mut rest, mut ids, mut cuts) = (text.as_str(), Vec::new(), 0);
        while let Some(at) = split_point(rest, target).filter(|_| rest.len() > target) {
            ids.extend(tokenizer.encode(&rest[..at]).unwrap());
            rest = &rest[at..];
            cuts += 1;
        }
        ids.extend(tokenizer.encode(rest).unwrap());
        assert!(cuts >= text.len() / (target + 200), "{cuts} cuts at {target}");
        assert!(ids == whole, "target {target}");
    }
    // The test can fail: cutting behind a space does change tokens.
    let at = text.find(" they").unwrap() + 1;
    let careless =
        [tokenizer.encode(&text[..at]).unwrap(), tokenizer.encode(&text[at..]).unwrap()].concat();
    assert!(careless != whole);
}

#[test]
fn text_files_split_at_marks_and_long_documents_into_pieces() {
    let folder = Folder::new();
    let long = "word and\nword ".repeat(30_000);
    let text = format!("\u{feff}one<|endoftext|>\n \n<|endoftext|>{long}<|endoftext|>three");
    let expected = vec!["one".to_string(), long.clone(), "three".to_string()];
    assert_eq!(folder.documents("a.txt", text.as_bytes()).unwrap(), expected);
    assert_eq!(folder.documents("a.txt.gz", &gzip(text.as_bytes())).unwrap(), expected);
    assert_eq!(
        folder.documents("a.txt.zst", &zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap(),
        expected
    );
    assert_eq!(folder.documents("b.md", b"\n").unwrap(), Vec::<String>::new());
    assert_eq!(folder.documents("b.txt", b"").unwrap(), Vec::<String>::new());
    // Nothing to cut at: the document stays whole.
    let unbroken = "a".repeat(1 << 20);
    assert!(
        folder.documents("c.txt", unbroken.as_bytes()).unwrap() == std::slice::from_ref(&unbroken)
    );
    assert_eq!(folder.pieces("c.txt", unbroken.as_bytes(), "text").unwrap().len(), 1);
    let pieces = folder.pieces("a.txt", text.as_bytes(), "text").unwrap();
    assert!(pieces.len() > 5);
    assert!(pieces.iter().all(|p| p.text.len() <= PIECE_BYTES));
}

#[test]
fn a_mark_across_reads_is_found() {
    let folder = Folder::new();
    // The mark lies at every offset around the first read's end.
    for shift in 0..20 {
        let text =
            format!("{}<|endoftext|>b", "ab ".repeat(((1 << 16) - 15) / 3) + &"c".repeat(shift));
        let documents = folder.documents("a.txt", text.as_bytes()).unwrap();
        assert_eq!((documents.len(), documents[1].as_str()), (2, "b"), "shift {shift}");
    }
}

#[test]
fn json_lines_and_parquet_give_their_documents() {
    let folder = Folder::new();
    let lines = "{\"id\": [1, {\"text\": 2}], \"text\": \"a\\nb\"}\r\n\n  \n{\"text\": \" \"}\n{\"text\":\"c é\"}";
    let expected = vec!["a\nb".to_string(), "c é".to_string()];
    assert_eq!(folder.documents("a.jsonl", lines.as_bytes()).unwrap(), expected);
    // Two gzip members, as from appending.
    let members =
        [gzip(b"{\"text\": \"a\\nb\"}\n"), gzip("{\"text\": \"c é\"}\n".as_bytes())].concat();
    assert_eq!(folder.documents("a.jsonl.gz", &members).unwrap(), expected);
    // Compression is recognised without its extension.
    assert_eq!(folder.documents("b.jsonl", &members).unwrap(), expected);
    let table = parquet_bytes(&[Some("a\nb"), Some(""), Some("c é")]);
    assert_eq!(folder.documents("a.parquet", &table).unwrap(), expected);
    for text in [
        "REQUIRED BYTE_ARRAY text (UTF8);",
        "OPTIONAL BYTE_ARRAY text (JSON);",
        "REQUIRED BYTE_ARRAY text (ENUM);",
    ] {
        let table = parquet_of(text, &[Some("a\nb"), Some(""), Some("c é")]);
        assert_eq!(folder.documents("a.parquet", &table).unwrap(), expected, "{text}");
    }
    assert_eq!(folder.documents("a.parquet.gz", &gzip(&table)).unwrap(), expected);
    assert_eq!(
        folder.documents("a.parquet.zst", &zstd::encode_all(&table[..], 1).unwrap()).unwrap(),
        expected
    );
}

#[test]
fn damaged_streams_name_the_file() {
    let folder = Folder::new();
    let text = tricky().repeat(20);
    let packed = gzip(text.as_bytes());
    assert!(folder.error("a.txt.gz", &packed[..packed.len() / 2]).contains("truncated or damaged"));
    let mut flipped = packed.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    folder.error("a.txt.gz", &flipped); // found at the latest by the checksum
    let packed = zstd::encode_all(text.as_bytes(), 1).unwrap();
    assert!(
        folder.error("a.txt.zst", &packed[..packed.len() / 2]).contains("truncated or damaged")
    );
    assert!(folder.error("a.txt.gz", b"plain").contains("first bytes"));
    assert!(folder.error("a.txt.gz", b"").contains("first bytes"));
    assert!(folder.error("a.txt.gz", &packed).contains("first bytes"));
    assert!(folder.error("a.csv", b"a,b").contains("unknown kind"));
    assert!(folder.error("a", b"a").contains("unknown kind"));
    let table = parquet_bytes(&[Some("a")]);
    assert!(folder.error("a.txt", &table).contains("is a Parquet file"));
    assert!(
        folder.error("a.parquet", &table[..table.len() - 3]).contains("not a readable Parquet")
    );
    assert!(folder.error("a.parquet", b"").contains("not a readable Parquet"));
    assert!(Source::open(folder.0.path()).unwrap_err().to_string().contains("is a folder"));
    assert!(Source::open_all(&[]).is_err());
}

#[test]
fn bad_records_name_their_line() {
    let folder = Folder::new();
    let error = |text: &str| folder.error("a.jsonl", text.as_bytes());
    let other = error("{\"text\":\"a\"}\n\n{\"body\":\"b\",\"id\":1}");
    assert!(other.contains("a.jsonl:3: no field \"text\""), "{other}");
    assert!(other.contains("; it has \"body\", \"id\": name one with --text-field"), "{other}");
    assert!(
        error("{\"text\":\"a\"}\n{\"text\":7}").contains("a.jsonl:2: field \"text\" is a number")
    );
    assert!(error("{\"text\":\"a\"").contains("a.jsonl:1: EOF"));
    assert!(error("[1]").contains("expected a JSON object"));
    assert!(error("{\"text\":\"a\"} x").contains("trailing"));
    let message = folder.error("b.jsonl", b"{\"text\":\"a\"}\n{\"text\":\"\xff\"}");
    assert!(message.contains("b.jsonl:2: not UTF-8 at byte 22"), "{message}");
    assert!(
        folder
            .error("a.parquet", &parquet_bytes(&[Some("a"), None]))
            .contains("row 2: column \"text\" is null")
    );
    let table = parquet_bytes(&[Some("a")]);
    let message = folder.pieces("a.parquet", &table, "body").unwrap_err().to_string();
    assert!(message.contains("no column \"body\"") && message.contains("id, text"), "{message}");
    let message = folder.pieces("a.parquet", &table, "id").unwrap_err().to_string();
    assert!(message.contains("holds INT32"), "{message}");
    let message = folder
        .error("a.parquet", &parquet_of("REQUIRED BYTE_ARRAY text;", &[Some("a"), Some("b")]));
    assert!(message.contains("holds bytes that are not marked as text"), "{message}");
}

#[test]
fn a_word_without_an_end_names_its_place() {
    let folder = Folder::new();
    let word = "a".repeat(5 << 20);
    let says = |name: &str, bytes: &[u8], place: &str| {
        let message = folder.error(name, bytes);
        assert!(message.contains(&format!("{place}: a word of more than 4.00 MiB")), "{message}");
    };
    says("a.txt", format!("one two {word} three").as_bytes(), "a.txt, before byte 5242894");
    says(
        "a.jsonl",
        format!("{{\"text\":\"a\"}}\n\n{{\"text\":\"b {word}\"}}\n{{}}").as_bytes(),
        "a.jsonl:3",
    );
    says("a.parquet", &parquet_bytes(&[Some("a"), Some(&word), Some("b")]), "a.parquet: row 2");
}

#[test]
fn text_that_is_not_utf8_names_the_byte() {
    let folder = Folder::new();
    let mut text = "ünï ".repeat(40_000).into_bytes();
    let at = text.len();
    text.extend(b"\xfe more");
    assert!(folder.error("a.txt", &text).contains(&format!("not UTF-8 at byte {at}")));
    // An incomplete character at the very end.
    assert!(folder.error("a.txt", b"abc\xe6\x97").contains("not UTF-8 at byte 3"));
}

#[test]
fn an_error_of_the_consumer_stops_the_reader() {
    let folder = Folder::new();
    let path = folder.file("a.txt", "some words\n".repeat(2_000_000).as_bytes());
    let options = ReadOptions { text_field: "text".into(), split: true, skip_bad: false };
    let mut batches = 0;
    let failed = for_each_batch(&Source::open_all(&[path]).unwrap(), &options, "", &Silent, |_| {
        batches += 1;
        Err(Error::data("full"))
    });
    assert_eq!((failed.unwrap_err().to_string().as_str(), batches), ("full", 1));
}

const ROWS: &str = "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";

/// A Zstandard frame that holds `text` as it is and asks for the window of that exponent and
/// mantissa.
fn frame(text: &str, exponent: u8, mantissa: u8) -> Vec<u8> {
    let header = (text.len() << 3 | 1) as u32;
    let mut out = vec![0x28, 0xB5, 0x2F, 0xFD, 0, (exponent - 10) << 3 | mantissa];
    out.extend(&header.to_le_bytes()[..3]);
    out.extend(text.as_bytes());
    out
}

/// A frame that a Zstandard reader passes over.
fn skippable(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_le_bytes();
    [&[0x50 + kind, 0x2A, 0x4D, 0x18], &length[..], content].concat()
}

#[test]
fn skippable_frames_may_stand_anywhere() {
    let folder = Folder::new();
    let (one, two) = ROWS.split_at(ROWS.len() / 2);
    let packed = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
    for kind in 0..16 {
        let files = [
            [skippable(kind, b"four"), packed(ROWS)].concat(),
            [skippable(kind, b""), skippable(15 - kind, &[0; 300]), packed(ROWS)].concat(),
            [packed(one), skippable(kind, b"between"), packed(two)].concat(),
            [skippable(kind, b"1234"), packed(one), skippable(kind, b"5678"), packed(two)].concat(),
            [packed(ROWS), skippable(kind, b"behind")].concat(),
        ];
        for file in files {
            assert_eq!(folder.documents("a.jsonl.zst", &file).unwrap(), ["one", "two"]);
            assert_eq!(folder.documents("a.jsonl", &file).unwrap(), ["one", "two"]);
        }
    }
    let nothing = skippable(0, b"only");
    assert_eq!(folder.documents("a.jsonl.zst", &nothing).unwrap(), Vec::<String>::new());
    let cut = &skippable(0, b"only")[..10];
    assert!(folder.error("a.jsonl.zst", cut).contains("truncated"));
    // What follows is no Zstandard: LZ4 has the same skippable frames.
    let other = [skippable(0, b"four"), vec![4, 0x22, 0x4D, 0x18]].concat();
    assert!(folder.error("a.jsonl.zst", &other).contains("misnamed"));
    let behind = [packed(ROWS), b"more".to_vec()].concat();
    assert!(folder.error("a.jsonl.zst", &behind).contains("other bytes follow"));
    // A table is unpacked first.
    let table = parquet_bytes(&[Some("one"), Some("two")]);
    let table = [skippable(3, b"x"), zstd::encode_all(&table[..], 1).unwrap()].concat();
    assert_eq!(folder.documents("a.parquet.zst", &table).unwrap(), ["one", "two"]);
}

#[test]
fn frames_of_versions_before_0_8_are_read() {
    let folder = Folder::new();
    // Magic of 0.7, no flags, a window; a raw block, the end. Its numbers are big-endian.
    let length = ROWS.len() as u8;
    let start = [0x27, 0xB5, 0x2F, 0xFD, 0, 0x28, 1 << 6, 0, length];
    let old = [&start[..], ROWS.as_bytes(), &[3 << 6, 0, 0]].concat();
    assert_eq!(folder.documents("a.jsonl.zst", &old).unwrap(), ["one", "two"]);
}

#[test]
fn windows_of_up_to_two_gigabytes_are_read_and_larger_ones_named() {
    let folder = Folder::new();
    for exponent in [10, 20, 27, 28, 30] {
        let file = frame(ROWS, exponent, 7 * u8::from(exponent < 30));
        assert_eq!(folder.documents("a.jsonl.zst", &file).unwrap(), ["one", "two"], "{exponent}");
    }
    // A small machine may refuse the memory, and must then be told.
    match folder.documents("a.jsonl.zst", &frame(ROWS, 31, 0)) {
        Ok(documents) => assert_eq!(documents, ["one", "two"]),
        Err(e) => assert!(e.to_string().contains("2.00 GiB of memory"), "{e}"),
    }
    let larger = |bytes: &[u8], window: &str| {
        let message = folder.error("a.jsonl.zst", bytes);
        assert!(message.contains(&format!("window is {window}; expected at most 2.00 GiB")));
        assert!(!message.contains("damaged"), "{message}");
    };
    larger(&frame(ROWS, 31, 1), "2.25 GiB");
    larger(&frame(ROWS, 41, 7), "3.75 TiB");
    // Behind others, of which one has a checksum and one a block of one repeated byte.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(ROWS.as_bytes()).unwrap();
    let checked = encoder.finish().unwrap();
    let repeated =
        [&[0x28, 0xB5, 0x2F, 0xFD, 0, 80][..], &[2 << 3 | 1 << 1 | 1, 0, 0, b'\n']].concat();
    let all = [checked, skippable(1, b"abc"), repeated, frame(ROWS, 32, 0)].concat();
    larger(&all, "4.00 GiB");
    // One whose window is the length of its text, which it claims to be 8 GiB.
    let mut single = vec![0x28, 0xB5, 0x2F, 0xFD, 0xE0];
    single.extend((8u64 << 30).to_le_bytes());
    larger(&single, "8.00 GiB");
}

#[test]
fn gzip_members_may_be_several_empty_and_padded_with_zeros() {
    let folder = Folder::new();
    let (one, two) = ROWS.split_at(ROWS.len() / 2);
    let [one, two, none] = [one, two, ""].map(|text| gzip(text.as_bytes()));
    let zeros = |n| vec![0; n];
    // BGZF: members with a field of their length, and an empty one that ends the file.
    let block = |text: &[u8]| {
        let mut encoder = flate2::GzBuilder::new()
            .extra([66, 67, 2, 0, 27, 0])
            .write(Vec::new(), Default::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let whole = gzip(ROWS.as_bytes());
    for file in [
        [whole.clone(), zeros(1)].concat(),
        [whole.clone(), zeros(512)].concat(),
        [whole.clone(), zeros(1 << 20)].concat(),
        [one.clone(), two.clone(), zeros(7)].concat(),
        [one.clone(), zeros(400_000), two.clone()].concat(),
        [none.clone(), none.clone(), one.clone(), none.clone(), two.clone(), none.clone()].concat(),
        [block(ROWS.as_bytes()), block(b"")].concat(),
    ] {
        assert_eq!(folder.documents("a.jsonl.gz", &file).unwrap(), ["one", "two"]);
        assert_eq!(folder.documents("a.jsonl", &file).unwrap(), ["one", "two"]);
    }
    assert_eq!(folder.documents("a.jsonl.gz", &none).unwrap(), Vec::<String>::new());
    for (between, behind) in
        [(0, &b"garbage"[..]), (3, b"more than a header has bytes"), (5, b"\x1f, not a member")]
    {
        let file = [&whole[..], &zeros(between), behind].concat();
        let message = folder.error("a.jsonl.gz", &file);
        let place = format!("other bytes follow from byte {} on", whole.len() + between);
        assert!(message.contains(&place) && !message.contains("damaged"), "{message}");
    }
    let cut = [&whole[..], &one[..one.len() - 3]].concat();
    assert!(folder.error("a.jsonl.gz", &cut).contains("truncated or damaged"));
    assert!(folder.error("a.jsonl.zst", &whole).contains("those of Gzip: rename it"));
}

#[test]
fn bad_rows_are_skipped_and_counted_on_request() {
    let folder = Folder::new();
    let documents = |name: &str, bytes: &[u8]| {
        let (pieces, skipped) = folder.read(name, bytes, "text", true).unwrap();
        (pieces.into_iter().map(|piece| piece.text).collect::<Vec<_>>(), skipped)
    };
    let bad: [&[u8]; 10] = [
        b"{\"text\":null}",
        b"{\"body\":\"b\"}",
        b"{\"text\":[\"c\"]}",
        b"{\"text\":NaN}",
        b"{\"text\":\"half \\ud83d of a pair\"}",
        b"{\"text\":\"the other \\ude00\"}",
        b"no JSON",
        b"{\"text\":\"a\",\"x\":nan}",
        b"{\"text\":\"\xff\"}",
        b"{\"text\":\"cut",
    ];
    for row in bad {
        let file = [b"{\"text\":\"one\"}\n\n", row, b"\n{\"text\":\"two\"}\n", row].concat();
        let (found, skipped) = documents("a.jsonl", &file);
        assert_eq!(found, ["one", "two"]);
        assert_eq!((skipped.len(), skipped[0].rows, skipped[0].first), (1, 2, 3), "{skipped:?}");
        assert_eq!(skipped[0].input, "a.jsonl");
        let message = folder.error("a.jsonl", &file);
        assert!(message.contains("a.jsonl:3: ") && message.contains(&skipped[0].why), "{message}");
        assert!(message.contains("--skip-bad"), "{message}");
    }
    let table = parquet_bytes(&[Some("one"), None, Some("two"), None, None]);
    let (found, skipped) = documents("a.parquet", &table);
    assert_eq!(found, ["one", "two"]);
    assert_eq!((skipped[0].rows, skipped[0].first), (3, 2));
    assert!(skipped[0].why.contains("is null"));
    assert_eq!(documents("b.jsonl", ROWS.as_bytes()).1, []);
    // Too long to be held, and a word too long to be worked on.
    let long = "long ".repeat(MOST_DOCUMENT_BYTES / 5 + 20_000);
    let word = "x".repeat(5 << 20);
    let file = format!("{{\"text\":\"{long}\"}}\n{{\"text\":\"a {word}\"}}\n{ROWS}");
    let (found, skipped) = documents("c.jsonl", file.as_bytes());
    assert_eq!(
        (found, skipped[0].rows, skipped[0].first),
        (vec!["one".into(), "two".into()], 2, 1)
    );
    // A damaged stream is no matter of rows.
    let packed = gzip(ROWS.as_bytes());
    let cut = &packed[..packed.len() - 9];
    assert!(folder.read("d.jsonl.gz", cut, "text", true).is_err());
}

#[test]
fn rows_that_python_reads_are_read() {
    let folder = Folder::new();
    for rest in [
        "\"x\":NaN",
        "\"x\": -Infinity ",
        "\"x\":[ Infinity, NaN,[-Infinity],{\"y\":NaN}]",
        "\"x\":1e999",
        "\"x\":\"\\ud83d\"",
        "\"\\ud83d\":1",
    ] {
        let text = "an \\\"escaped: NaN, \\\\ and [NaN]";
        let read = "an \"escaped: NaN, \\ and [NaN]";
        let rows = format!("{{\"text\":\"{text}\",{rest}}}\n{{{rest},\"text\":\"{text}\"}}");
        assert_eq!(folder.documents("a.jsonl", rows.as_bytes()).unwrap(), [read, read], "{rest}");
    }
    for rest in
        ["\"x\":NaNs", "\"x\":1NaN", "\"x\":+Infinity", "\"x\":NaN.5", "NaN:1", "\"x\":-NaN"]
    {
        let row = format!("{{\"text\":\"a\",{rest}}}");
        folder.error("a.jsonl", row.as_bytes());
    }
}
