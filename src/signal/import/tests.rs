//! Made-up answers of a server: each form says the same, and what is wrong is named.

use super::position::{Asked, k_of, reduced};
use super::record::{Entry, Position};
use super::*;
use crate::data::tokens::TokenOrigin;
use crate::loss::{Signal, TopK};
use crate::progress::Silent;
use crate::rng::{Rng, Stream};
use crate::signal::Stored;
use ::parquet::data_type::{DoubleType, Int32Type, Int64Type};
use ::parquet::file::writer::SerializedFileWriter;
use serde_json::{Value, json};
use std::io::Write as _;
use std::sync::Arc;

const VOCAB: u32 = 23;
const TOKENS: u64 = 35;
const CONTEXT: u32 = 8;
const K: usize = 4;

fn rng() -> Rng {
    Rng::new(8, Stream::Corpus)
}

fn tokens() -> TokenFile {
    let ids: Vec<u32> = (0..TOKENS).map(|i| rng().below(0, i, VOCAB.into()) as u32).collect();
    let origin = TokenOrigin { vocab_size: VOCAB, eot: 0, tokenizer_hash: [3; 32] };
    TokenFile::from_tokens(&ids, origin, 1, 100).unwrap()
}

/// ln q of every id at a position.
fn said(position: u64) -> Vec<f64> {
    let z: Vec<f64> =
        (0..VOCAB).map(|id| f64::from(rng().uniform(1 + id, position)) * 7.0).collect();
    let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
    z.iter().map(|z| z - log_sum).collect()
}

/// Ids by probability, the largest first.
fn order(said: &[f64]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..VOCAB).collect();
    ids.sort_by(|&a, &b| said[b as usize].total_cmp(&said[a as usize]));
    ids
}

/// As vLLM answers a request for the prompt's `k` largest.
fn entry(position: u64, own: u32, k: usize, of: impl Fn(f64, usize) -> Value) -> Value {
    let said = said(position);
    let ranked = order(&said).into_iter().enumerate();
    let named = ranked.filter(|(place, id)| *place < k || *id == own);
    named.map(|(place, id)| (id.to_string(), of(said[id as usize], place + 1))).collect()
}

fn object(logprob: f64, rank: usize) -> Value {
    json!({"logprob": logprob, "rank": rank, "decoded_token": " \"x\\"})
}

fn bare(logprob: f64, _: usize) -> Value {
    json!(logprob)
}

/// The line of window `w`.
fn window(w: u64, of: impl Fn(f64, usize) -> Value + Copy) -> Value {
    let start = w * u64::from(CONTEXT);
    let ids = tokens().to_vec(start..(start + u64::from(CONTEXT) + 1).min(TOKENS)).unwrap();
    let rest = (1..ids.len()).map(|i| entry(start + i as u64 - 1, ids[i], K, of));
    let logprobs: Vec<Value> = std::iter::once(Value::Null).chain(rest).collect();
    json!({"prompt_token_ids": ids, "prompt_logprobs": logprobs})
}

fn windows(of: impl Fn(f64, usize) -> Value + Copy) -> Vec<Value> {
    (0..5).map(|w| window(w, of)).collect()
}

fn positions() -> Vec<Value> {
    let of = |position: u64| {
        let said = said(position);
        let ids = order(&said)[..K].to_vec();
        let logprobs: Vec<f64> = ids.iter().map(|id| said[*id as usize]).collect();
        let target = tokens().to_vec(position + 1..position + 2).unwrap()[0];
        json!({"ids": ids, "logprobs": logprobs, "position": position, "target_logprob": said[target as usize]})
    };
    (0..TOKENS - 1).map(of).collect()
}

fn lines(values: &[Value]) -> Vec<u8> {
    values.iter().flat_map(|value| format!("{value}\n\n").into_bytes()).collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn options(&self, files: &[(&str, &[u8])]) -> ImportOptions {
        for (name, bytes) in files {
            fs::write(self.path(name), bytes).unwrap();
        }
        ImportOptions {
            inputs: files.iter().map(|(name, _)| self.path(name)).collect(),
            out: self.path("new/signal"),
            context: CONTEXT,
            top_k: None,
            name: "served".into(),
            vocab_size: None,
        }
    }

    /// The bytes of the signal's file, which goes.
    fn imported(&self, options: &ImportOptions) -> Result<Vec<u8>> {
        let written = import(&tokens(), options, &Silent)?;
        assert_eq!((written.positions, written.complete), (TOKENS - 1, true));
        let bytes = fs::read(options.out.join(Shard::ALL.file())).unwrap();
        assert_eq!(bytes.len() as u64, written.bytes);
        fs::remove_dir_all(self.path("new")).unwrap();
        Ok(bytes)
    }

    /// Why it is refused; nothing stays.
    fn error(&self, options: &ImportOptions) -> String {
        let error = self.imported(options).unwrap_err().to_string();
        assert!(!self.path("new").exists(), "{error}");
        error
    }
}

#[test]
fn a_signal_is_what_was_said() {
    let folder = Folder::new();
    let options = folder.options(&[("a.jsonl", &lines(&windows(object)))]);
    import(&tokens(), &options, &Silent).unwrap();
    let stored = Stored::open(&options.out).unwrap();
    let header = stored.header();
    assert_eq!(header.signal, Kind::TopK { k: K as u32, temperature: 1.0 });
    assert_eq!((header.window.context, header.window.stride), (CONTEXT, CONTEXT));
    assert_eq!((header.teacher.name.as_str(), &header.teacher.weights), ("served", &None));
    let all: Vec<u64> = (0..TOKENS - 1).collect();
    let Signal::TopK(top) = stored.fetch(&all).unwrap().signal(None).unwrap() else { panic!() };
    let ids = tokens().to_vec(0..TOKENS).unwrap();
    for i in 0..all.len() {
        let said = said(i as u64);
        let mut largest = order(&said)[..K].to_vec();
        largest.sort_unstable();
        assert_eq!(top.ids[i * K..][..K], largest);
        for (id, found) in largest.iter().zip(&top.logp[i * K..]) {
            assert_eq!(*found, TopK::logp_of(TopK::level(said[*id as usize].exp())));
        }
        let close = |found: f32, want: f64| (f64::from(found) - want).abs() <= want / 1000.0;
        assert!(close(top.said[i].nll, -said[ids[i + 1] as usize]), "{i}");
        let of = |q: f64| -q * q.ln();
        let inside: Vec<f64> = largest.iter().map(|id| said[*id as usize].exp()).collect();
        let known =
            inside.iter().map(|q| of(*q)).sum::<f64>() + of(1.0 - inside.iter().sum::<f64>());
        let whole: f64 = said.iter().map(|l| of(l.exp())).sum();
        assert!(close(top.said[i].entropy, known) && known < whole, "{i}");
    }
    // What is there is not written over.
    let refused = import(&tokens(), &options, &Silent).unwrap_err().to_string();
    assert!(refused.contains("holds a signal already"), "{refused}");
}

#[test]
fn every_form_gives_the_same_bytes() {
    let folder = Folder::new();
    let whole = lines(&windows(object));
    let want = folder.imported(&folder.options(&[("a.jsonl", &whole)])).unwrap();
    let same = |files: &[(&str, &[u8])]| {
        let found = folder.imported(&folder.options(files)).unwrap();
        assert!(found == want, "{}", files[0].0);
    };
    same(&[("bare.jsonl", &lines(&windows(bare)))]);
    let [first, second] = [&windows(object)[..2], &windows(object)[2..]].map(lines);
    same(&[("one.jsonl", &first), ("two.jsonl", &second)]);
    let answers: Vec<Value> = windows(object)
        .into_iter()
        .map(|window| json!({"id": "cmpl-1", "choices": [window], "usage": {"x": 1}}))
        .collect();
    same(&[("answers.jsonl", &lines(&answers))]);
    // The tokens beside the choices, and a last line without an end.
    let beside: Vec<Value> = windows(object)
        .into_iter()
        .map(|w| {
            let choice = json!({"prompt_logprobs": w["prompt_logprobs"], "prompt_token_ids": null});
            json!({"prompt_token_ids": w["prompt_token_ids"], "choices": [choice]})
        })
        .collect();
    same(&[("beside.jsonl", lines(&beside).trim_ascii())]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole).unwrap();
    same(&[("a.jsonl.gz", &gzip.finish().unwrap())]);
    same(&[("a.jsonl.zst", &zstd::encode_all(&whole[..], 1).unwrap())]);
    same(&[("positions.jsonl", &lines(&positions()))]);
    same(&[("rows.parquet", &parquet(&positions(), "ids"))]);
    same(&[("rows.parquet.gz", &{
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&parquet(&positions(), "token_ids")).unwrap();
        gzip.finish().unwrap()
    })]);
    // Fewer entries than there are, and more ids than the data has.
    let fewer = ImportOptions { top_k: Some(2), ..folder.options(&[("a.jsonl", &whole)]) };
    let of_two = folder.imported(&fewer).unwrap();
    let positions: Vec<Value> = positions()
        .into_iter()
        .map(|mut p| {
            for list in ["ids", "logprobs"] {
                p[list].as_array_mut().unwrap().truncate(2);
            }
            p
        })
        .collect();
    let two = folder.imported(&folder.options(&[("b.jsonl", &lines(&positions))])).unwrap();
    assert!(of_two == two && two.len() < want.len());
    let more =
        ImportOptions { vocab_size: Some(VOCAB + 5), ..folder.options(&[("a.jsonl", &whole)]) };
    assert!(folder.imported(&more).unwrap() != want);
}

/// Positions as a table of two row groups.
fn parquet(positions: &[Value], ids: &str) -> Vec<u8> {
    let list = |name: &str, kind: &str| {
        format!(
            "OPTIONAL group {name} (LIST) {{ REPEATED group list {{ OPTIONAL {kind} element; }} }}"
        )
    };
    let schema = format!(
        "message rows {{ REQUIRED INT64 position; {} REQUIRED INT32 other; {} OPTIONAL DOUBLE target_logprob; }}",
        list(ids, "INT32"),
        list("logprobs", "DOUBLE")
    );
    let schema = Arc::new(::parquet::schema::parser::parse_message_type(&schema).unwrap());
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema, Arc::default()).unwrap();
    for part in positions.chunks(20) {
        let of = |name: &str| -> Vec<&Value> { part.iter().map(|p| &p[name]).collect() };
        let lists = |name: &str| -> Vec<f64> {
            of(name)
                .iter()
                .flat_map(|l| l.as_array().unwrap())
                .map(|x| x.as_f64().unwrap())
                .collect()
        };
        // The first of a list begins a row.
        let begins: Vec<i16> = of("ids")
            .iter()
            .flat_map(|l| (0..l.as_array().unwrap().len()).map(|i| i16::from(i > 0)))
            .collect();
        let (ids, logprobs) = (lists("ids"), lists("logprobs"));
        let levels = vec![3i16; ids.len()];
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = of("position").iter().map(|p| p.as_i64().unwrap()).collect();
        column.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        column.typed::<Int32Type>().write_batch(&ids, Some(&levels), Some(&begins)).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&vec![7; part.len()], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&logprobs, Some(&levels), Some(&begins)).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let targets: Vec<f64> = of("target_logprob").iter().filter_map(|t| t.as_f64()).collect();
        let there: Vec<i16> = of("target_logprob").iter().map(|t| i16::from(t.is_f64())).collect();
        column.typed::<DoubleType>().write_batch(&targets, Some(&there), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    out
}

#[test]
fn what_is_not_of_the_data_is_refused() {
    let folder = Folder::new();
    let refused = |values: &[Value], parts: &[&str]| {
        let error = folder.error(&folder.options(&[("a.jsonl", &lines(values))]));
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    };
    let with = |line: usize, change: &dyn Fn(&mut Value)| {
        let mut all = windows(object);
        change(&mut all[line]);
        all
    };
    let ids = tokens().to_vec(0..TOKENS).unwrap();
    // Blank lines count as a file's lines.
    let wrong = with(1, &|w| w["prompt_token_ids"][3] = json!(VOCAB - 1 - ids[11]));
    let both = format!(
        "token 3 of its prompt is {}, and token 11 of the data {}",
        VOCAB - 1 - ids[11],
        ids[11]
    );
    refused(&wrong, &["a.jsonl:3: ", &both, "window 1 of the data, tokens 8 to 16"]);
    let bos = with(0, &|w| {
        w["prompt_token_ids"].as_array_mut().unwrap().insert(0, json!(VOCAB - 1 - ids[0]));
    });
    refused(&bos, &["a.jsonl:1: ", "something put a token in front, such as a bos"]);
    let short = with(2, &|w| drop(w["prompt_token_ids"].as_array_mut().unwrap().pop()));
    refused(
        &short,
        &["a.jsonl:5: its prompt has 8 tokens, its window 9", "--context 8 and one more"],
    );
    let uneven = with(2, &|w| drop(w["prompt_logprobs"].as_array_mut().unwrap().pop()));
    refused(
        &uneven,
        &["prompt_logprobs has 8 entries", "one for each of 9 tokens, and null first"],
    );
    let begun = with(0, &|w| w["prompt_logprobs"][0] = json!({"1": -1.0}));
    refused(&begun, &["the first not null"]);
    let silent = with(3, &|w| w["prompt_logprobs"][2] = Value::Null);
    refused(&silent, &["a.jsonl:7: ", "says nothing (null) of token 2"]);
    refused(
        &windows(object)[..3],
        &["24 of 34 positions", "10 are missing, from position 24 (window 3) on"],
    );
    let more = [windows(object), vec![window(0, object)]].concat();
    refused(&more, &["a.jsonl:11: more than the data have: 34 positions"]);
    refused(
        &[&positions()[..9], &windows(object)[1..]].concat(),
        &["end in the middle of one, at position 9"],
    );
    let mut again = positions();
    again.remove(5);
    refused(&again, &["a.jsonl:11: position 6; expected 5, the next one"]);
    refused(&positions()[..30], &["30 of 34 positions", "4 are missing, from position 30 on"]);
    refused(&[], &["0 of 34 positions"]);
    // Answers without what was asked for.
    let none = with(0, &|w| w["prompt_logprobs"] = Value::Null);
    refused(&none, &["holds no prompt_logprobs; ask the server"]);
    refused(&[json!({"choices": [{"text": "a"}]})], &["holds no prompt_logprobs"]);
    let nameless = with(0, &|w| drop(w.as_object_mut().unwrap().shift_remove("prompt_token_ids")));
    refused(&nameless, &["without prompt_token_ids", "return_token_ids"]);
    refused(&[json!({"choices": [window(0, bare), window(1, bare)]})], &["has 2 choices"]);
    refused(
        &[json!({"text": "a", "x": 1})],
        &["expected prompt_token_ids with", "found \"text\", \"x\""],
    );
    refused(&[json!(7)], &["a.jsonl:1: "]);
    let error = folder.error(&folder.options(&[("a.txt", b"{}")]));
    assert!(error.contains("expected JSON lines (.jsonl) or Parquet"), "{error}");
    let error = folder.error(&folder.options(&[("a.jsonl", b"{\"ids\": [1], \"logprobs\": [x]}")]));
    assert!(error.contains("a.jsonl:1: expected value (column "), "{error}");
}

#[test]
fn what_is_no_log_probability_is_refused() {
    let folder = Folder::new();
    let refused = |options: ImportOptions, parts: &[&str]| {
        let error = folder.error(&options);
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    };
    let with = |change: &dyn Fn(&mut Value)| {
        let mut all = positions();
        change(&mut all[7]);
        folder.options(&[("a.jsonl", &lines(&all))])
    };
    let place = "a.jsonl:15: position 7: ";
    refused(
        with(&|p| p["logprobs"][1] = json!(3.5)),
        &[place, "is 3.5; expected", "are these logits?"],
    );
    refused(with(&|p| p["logprobs"] = json!([-0.1, -0.1, -0.1, -0.1])), &[place, "sum to 3.6193"]);
    refused(with(&|p| p["target_logprob"] = json!(0.5)), &[place, "of the target is 0.5"]);
    refused(with(&|p| p["ids"][0] = json!(VOCAB)), &[place, "id 23, outside", "--vocab-size"]);
    refused(with(&|p| p["ids"][1] = p["ids"][0].clone()), &[place, "twice"]);
    refused(
        with(&|p| p["ids"] = json!([1, 2])),
        &["a.jsonl:15: has 2 ids and 4 log-probabilities"],
    );
    refused(with(&|p| p["ids"][1] = json!(-1)), &["a.jsonl:15: invalid value", "(column "]);
    let short = |p: &mut Value| {
        for list in ["ids", "logprobs"] {
            p[list].as_array_mut().unwrap().truncate(3);
        }
    };
    refused(with(&short), &[place, "names 3 ids; expected at least 4", "--top-k 3"]);
    // As Python writes them.
    let text = String::from_utf8(lines(&positions())).unwrap();
    let least = positions()[7]["logprobs"][3].to_string();
    let written = |by: &str| {
        let text = text.replace(&least, by);
        folder.options(&[("a.jsonl", text.as_bytes())])
    };
    refused(written("NaN"), &[place, "is NaN; expected a number of at most 0, or -inf"]);
    refused(written("Infinity"), &[place, "is inf; expected"]);
    assert!(folder.imported(&written("-Infinity")).is_ok());
    // Settings.
    let whole = || folder.options(&[("a.jsonl", &lines(&windows(object)))]);
    let refusal = |options: ImportOptions| folder.error(&options);
    let five = refusal(ImportOptions { top_k: Some(5), ..whole() });
    assert!(five.contains("names 4 ids") && five.contains("at least 5"), "{five}");
    let many = refusal(ImportOptions { top_k: Some(99), ..whole() });
    assert!(many.contains("--top-k 99: the vocabulary has 23 tokens"), "{many}");
    let few = refusal(ImportOptions { vocab_size: Some(9), ..whole() });
    assert!(few.contains("--vocab-size 9"), "{few}");
    let other = refusal(ImportOptions { context: 9, ..whole() });
    assert!(other.contains("a.jsonl:1: its prompt has 9 tokens, its window 10"), "{other}");
    // Tables.
    let table =
        |positions: &[Value], ids: &str| folder.options(&[("a.parquet", &parquet(positions, ids))]);
    refused(
        table(&positions(), "tokens"),
        &["expected the columns ids (or token_ids) and logprobs; found position, tokens"],
    );
    refused(table(&positions()[1..], "ids"), &["a.parquet: row 1: position 1; expected 0"]);
    let mut logits = positions();
    logits[21]["logprobs"][0] = json!(2.0);
    refused(table(&logits, "ids"), &["a.parquet: row 22: position 21: ", "logits"]);
    let mut cut = parquet(&positions(), "ids");
    for byte in &mut cut[60..90] {
        *byte ^= 0x5A;
    }
    refused(folder.options(&[("a.parquet", &cut)]), &["a.parquet: "]);
}

#[test]
fn what_was_there_before_stays_and_leftovers_of_an_import_go() {
    let folder = Folder::new();
    let options = ImportOptions { out: folder.path("out"), ..folder.options(&[]) };
    fs::create_dir(&options.out).unwrap();
    fs::write(options.out.join(".notes"), "mine").unwrap();
    let part = lines(&windows(object)[..3]);
    fs::write(folder.path("part.jsonl"), part).unwrap();
    let failing = ImportOptions { inputs: vec![folder.path("part.jsonl")], ..options.clone() };
    import(&tokens(), &failing, &Silent).unwrap_err();
    assert_eq!(fs::read_dir(&options.out).unwrap().count(), 1);
    // What a killed import has left, under another name of the teacher.
    fs::write(folder.path("all.jsonl"), lines(&windows(object))).unwrap();
    let inputs = vec![folder.path("all.jsonl")];
    let whole = ImportOptions { inputs, name: "a name that is longer".into(), ..options };
    import(&tokens(), &whole, &Silent).unwrap();
    let file = whole.out.join(Shard::ALL.file());
    let want = fs::read(&file).unwrap();
    let header = Stored::open(&whole.out).unwrap().header().clone();
    fs::remove_file(&file).unwrap();
    let short =
        Header { teacher: TeacherId { name: "x".into(), ..header.teacher.clone() }, ..header };
    let ranks = Ranks::of(&tokens().counts(VOCAB as usize).unwrap());
    let mut left = ShardWriter::open(&whole.out, short, ranks).unwrap();
    left.push(b"not of this import", 34).unwrap();
    left.flush().unwrap();
    drop(left);
    import(&tokens(), &whole, &Silent).unwrap();
    assert!(fs::read(&file).unwrap() == want);
    assert_eq!(fs::read_dir(&whole.out).unwrap().count(), 2);
    // Of another signal, which somebody may want to go on with.
    fs::remove_file(&file).unwrap();
    let fewer = ImportOptions { top_k: Some(2), ..whole.clone() };
    let shard = ShardWriter::open(
        &whole.out,
        Stored::open(&{
            import(
                &tokens(),
                &ImportOptions { out: folder.path("other"), ..whole.clone() },
                &Silent,
            )
            .unwrap();
            folder.path("other")
        })
        .unwrap()
        .header()
        .clone(),
        Ranks::of(&tokens().counts(VOCAB as usize).unwrap()),
    );
    shard.unwrap().flush().unwrap();
    let refused = import(&tokens(), &fewer, &Silent).unwrap_err().to_string();
    assert!(refused.contains("begun for another signal"), "{refused}");
    assert!(whole.out.join("00000-of-00001.signal.partial").exists());
}

fn entries(of: &[(u32, f64)]) -> Vec<Entry> {
    of.iter().map(|&(id, q)| Entry { id, logprob: q.ln(), rank: None }).collect()
}

#[test]
fn the_prompts_own_token_is_no_entry_unless_it_is_large() {
    let with_rank = |own: u64| {
        let mut all = entries(&[(1, 0.5), (2, 0.3), (9, 0.01)]);
        all[2].rank = Some(own);
        Some(all)
    };
    // Its rank tells; without it, another position does.
    assert_eq!(k_of(&[None, with_rank(40)], &[0, 9]), 2);
    assert_eq!(k_of(&[None, with_rank(3)], &[0, 9]), 3);
    assert_eq!(k_of(&[None, with_rank(3), Some(entries(&[(1, 0.5), (2, 0.3)]))], &[0, 9, 1]), 2);
    let bare = |of: &[(u32, f64)]| Some(entries(of));
    assert_eq!(
        k_of(&[None, bare(&[(1, 0.5), (9, 0.2)]), bare(&[(1, 0.4), (9, 0.5)])], &[0, 9, 9]),
        2
    );
    assert_eq!(
        k_of(&[None, bare(&[(1, 0.5), (9, 0.2)]), bare(&[(9, 0.4), (1, 0.3)])], &[0, 9, 1]),
        1
    );
    assert_eq!(k_of(&[None, bare(&[(9, 0.5)])], &[0, 9]), 0);
    assert_eq!((k_of(&[None], &[0]), k_of(&[None, with_rank(3)], &[0, 1])), (0, 3));
    // Where it was added, no entry is taken for one of the largest that is not.
    let asked = Asked { target: 9, k: 3, vocab: 10 };
    let of = |own| Position { number: None, entries: with_rank(own).unwrap(), target: None };
    assert_eq!(reduced(of(3), asked).unwrap().ids, [1, 2, 9]);
    let refused = reduced(of(40), asked).unwrap_err();
    assert!(refused.contains("names 2 ids without the prompt's own token"), "{refused}");
    let two = reduced(of(40), Asked { k: 2, ..asked }).unwrap();
    assert_eq!(two.ids, [1, 2]);
    assert!((two.said[0].nll - 0.01f32.ln().abs()).abs() < 2e-3);
}

#[test]
fn ties_go_to_lower_ids_and_what_is_unsaid_lies_in_the_rest() {
    let of = |all: &[(u32, f64)], target, given: Option<f64>, k| {
        let position = Position { number: None, entries: entries(all), target: given };
        reduced(position, Asked { target, k, vocab: 10 }).unwrap()
    };
    let all = [(7, 0.25), (3, 0.25), (5, 0.25), (1, 0.125)];
    assert_eq!(of(&all, 7, None, 2).ids, [3, 5]);
    let close =
        |found: f32, q: f64| assert!((f64::from(found) + q.ln()).abs() < 2e-3, "{found} {q}");
    close(of(&all, 7, None, 2).said[0].nll, 0.25);
    close(of(&all, 9, None, 2).said[0].nll, 0.125);
    close(of(&all, 9, Some(0.01f64.ln()), 2).said[0].nll, 0.01);
    // Rounded numbers may leave nothing, or less.
    for sum in [1.0, 1.0005] {
        close(of(&[(1, sum)], 9, None, 1).said[0].nll, 1.0 / (1023.0 * 1023.0));
        assert!(of(&[(1, sum)], 1, None, 1).said[0].nll.abs() == 0.0);
        assert!(of(&[(1, sum)], 1, None, 1).said[0].entropy.abs() < 1e-3);
    }
    // An id that the teacher rules out, which the data has: as far as sixteen bits go.
    assert_eq!(of(&all, 9, Some(f64::NEG_INFINITY), 2).said[0].nll, 65504.0);
    let even: Vec<(u32, f64)> = (0..10).map(|id| (id, 0.1)).collect();
    assert!((of(&even, 1, None, 10).said[0].entropy - 10f32.ln()).abs() < 2e-3);
}

#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    let folder = Folder::new();
    let samples = [
        ("a.jsonl", lines(&windows(object))),
        ("b.jsonl", lines(&positions())),
        ("c.parquet", parquet(&positions(), "ids")),
    ];
    for (sub, (name, sample)) in samples.iter().enumerate() {
        let mut refused = 0;
        for i in 0..300 {
            let draw = |n: u32, below: usize| {
                rng().below(3 * sub as u32 + n, 1000 + i, below as u64) as usize
            };
            let mut bytes = sample.clone();
            let at = draw(0, bytes.len());
            match draw(1, 4) {
                0 => bytes.truncate(at),
                1 => bytes[at] = b'"',
                _ => bytes[at] ^= 1 << draw(2, 8),
            }
            if let Err(e) = import(&tokens(), &folder.options(&[(name, &bytes)]), &Silent) {
                assert!(e.to_string().contains(name) && e.kind() != ErrorKind::Internal, "{e}");
                refused += 1;
            }
            let _ = fs::remove_dir_all(folder.path("new"));
        }
        assert!(refused > 50, "{name}: {refused}");
    }
}
