use super::*;
use crate::data::train_tokenizer::TrainOptions;
use crate::progress::Silent;
use crate::testing::Notes;
use std::fs;

struct Setup {
    folder: tempfile::TempDir,
    documents: Vec<String>,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let documents: Vec<String> = (0..300)
            .map(|i| match i {
                17 => "A long one. ".repeat(20_000),
                _ => {
                    format!("Document {i} has its {} own words,\n\n  and \"{}\" too.", i * 7, i * i)
                }
            })
            .collect();
        let lines: String =
            documents.iter().map(|d| serde_json::json!({ "text": d }).to_string() + "\n").collect();
        fs::write(folder.path().join("in.jsonl"), lines).unwrap();
        fs::write(folder.path().join("in.txt"), documents.join("<|endoftext|>")).unwrap();
        let options = TrainOptions { vocab_size: 500, ..TrainOptions::default() };
        let (tokenizer, _) =
            Tokenizer::train(&[folder.path().join("in.txt")], &options, &Silent).unwrap();
        tokenizer.save(&folder.path().join("tok")).unwrap();
        Self { folder, documents }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, input: &str, out: &str, validation: Validation) -> PrepareOptions {
        PrepareOptions {
            inputs: vec![self.path(input)],
            tokenizer: self.path("tok"),
            out: self.path(out),
            text_field: "text".into(),
            validation,
            end_token: None,
            skip_bad: false,
        }
    }
}

#[test]
fn documents_come_back_whole_in_order_from_either_format() {
    let setup = Setup::new();
    let report = prepare(&setup.options("in.jsonl", "a", Validation::None), &Silent).unwrap();
    let from_text = prepare(&setup.options("in.txt", "b", Validation::None), &Silent).unwrap();
    assert_eq!(report.train, from_text.train);
    let data = DataDir::open(&setup.path("a")).unwrap();
    let tokens = data.train.to_vec(0..data.train.len()).unwrap();
    data.train.verify(&Silent).unwrap();
    assert!(data.valid.is_none());
    // The long document was encoded in pieces; the oracle encodes it whole.
    let expected: Vec<u32> = setup
        .documents
        .iter()
        .flat_map(|d| data.tokenizer.encode(d).unwrap().into_iter().chain([data.tokenizer.eot()]))
        .collect();
    assert!(tokens == expected);
    assert_eq!((report.train.documents, report.train.tokens), (300, expected.len() as u64));
    assert_eq!(report.train.bytes as usize, setup.documents.iter().map(String::len).sum::<usize>());
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(setup.path("a/manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest, serde_json::to_value(&report).unwrap());
    assert_eq!(manifest["inputs"], serde_json::json!(["in.jsonl"]));
}

#[test]
fn a_fraction_splits_by_document_and_threads_change_nothing() {
    let setup = Setup::new();
    let mut files = Vec::new();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = setup.options("in.jsonl", "a", Validation::Fraction(0.2));
        let report = pool.install(|| prepare(&options, &Silent)).unwrap();
        let valid = report.valid.unwrap();
        assert_eq!(valid.documents + report.train.documents, 300);
        // Binomial(300, 0.2): mean 60, three standard deviations 21.
        assert!((39..=81).contains(&valid.documents), "{}", valid.documents);
        files.push(
            ["train.bin", "valid.bin", "manifest.json"]
                .map(|n| fs::read(setup.path("a").join(n)).unwrap()),
        );
    }
    assert!(files[0] == files[1]);
    let data = DataDir::open(&setup.path("a")).unwrap();
    let text = |f: &TokenFile| data.tokenizer.decode(&f.to_vec(0..f.len()).unwrap()).unwrap();
    let (train, valid) = (text(&data.train), text(data.valid.as_ref().unwrap()));
    for document in &setup.documents {
        let marked = format!("{document}<|endoftext|>");
        assert!(train.contains(&marked) != valid.contains(&marked));
    }
}

#[test]
fn a_fraction_of_few_documents_is_the_end_of_the_text() {
    let setup = Setup::new();
    let line = |i: usize| format!("The {i} lamps stood by the sea.\n");
    let chapter = |n: usize| (n * 40..n * 40 + 40).map(line).collect::<String>() + "\n";
    let novel = |n: usize| (n * 5..n * 5 + 5).map(chapter).collect::<String>();
    let write = |name: &str, novels: usize| {
        let rows = (0..novels).map(|n| serde_json::json!({"text": novel(n)}).to_string());
        fs::write(setup.path(name), rows.collect::<Vec<_>>().join("\n")).unwrap();
    };
    write("one.jsonl", 1);
    write("three.jsonl", 3);
    fs::write(setup.path("short.txt"), "No line ends here, and no paragraph.").unwrap();
    for (input, novels, fraction, cuts) in [
        ("one.jsonl", 1, 0.1, true),
        ("one.jsonl", 1, 0.99, true),
        ("three.jsonl", 3, 0.02, true),
        ("three.jsonl", 3, 0.3, false),
        ("short.txt", 1, 0.3, true),
    ] {
        // Whichever side all documents were drawn for, the split is the same.
        let options = setup.options(input, "a", Validation::Fraction(fraction));
        let notes = Notes::default();
        let report = prepare(&options, &notes).unwrap();
        let (train, valid) = (&report.train, report.valid.as_ref().unwrap());
        if novels == 3 && train.documents + valid.documents == 3 && notes.lines().is_empty() {
            continue; // drawn
        }
        assert!(notes.lines()[0].contains("the last"), "{:?}", notes.lines());
        assert_eq!(train.documents + valid.documents, novels + u64::from(cuts), "{input}");
        let share = valid.tokens as f64 / (valid.tokens + train.tokens) as f64;
        assert!((0.5..1.6).contains(&(share / fraction)), "{input}, {fraction}: {share}");
        let data = DataDir::open(&setup.path("a")).unwrap();
        let text = |f: &TokenFile| {
            f.verify(&Silent).unwrap();
            data.tokenizer.decode(&f.to_vec(0..f.len()).unwrap()).unwrap()
        };
        let (head, tail) = (text(&data.train), text(data.valid.as_ref().unwrap()));
        let head = if cuts { head.strip_suffix("<|endoftext|>").unwrap() } else { &head };
        let whole = prepare(&setup.options(input, "b", Validation::None), &Silent).unwrap();
        let all = DataDir::open(&setup.path("b")).unwrap();
        assert_eq!(head.to_string() + &tail, text(&all.train));
        assert_eq!(train.bytes + valid.bytes, whole.train.bytes);
        if input != "short.txt" {
            assert!(head.ends_with(if cuts { "\n" } else { "<|endoftext|>" }), "{input}");
        }
    }
}

#[test]
fn validation_files_and_empty_splits() {
    let setup = Setup::new();
    fs::write(setup.path("v.txt"), "Own words.").unwrap();
    fs::write(setup.path("blank.txt"), "\n").unwrap();
    let own = Validation::Files(vec![setup.path("v.txt")]);
    let report = prepare(&setup.options("in.txt", "a", own), &Silent).unwrap();
    assert_eq!((report.valid.unwrap().documents, report.train.documents), (1, 300));
    let error = |input, validation| {
        let failed = prepare(&setup.options(input, "z", validation), &Silent);
        assert!(!setup.path("z").exists());
        failed.unwrap_err().to_string()
    };
    assert!(error("v.txt", Validation::Fraction(1.0)).contains("between 0 and 1"));
    assert!(error("v.txt", Validation::Fraction(f64::NAN)).contains("between 0 and 1"));
    assert!(error("blank.txt", Validation::None).contains("no text"));
    assert!(
        error("v.txt", Validation::Files(vec![setup.path("blank.txt")]))
            .contains("validation files")
    );
    assert!(error("none.txt", Validation::None).contains("none.txt"));
    let left: Vec<_> =
        fs::read_dir(setup.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().ends_with(".tmp")), "{left:?}");
}

#[test]
fn an_end_mark_inside_a_row_has_no_bytes() {
    let setup = Setup::new();
    let (first, second) = ("The lamp.", "\n The sea: höher.");
    let row = |text: &str| serde_json::json!({ "text": text }).to_string() + "\n";
    let marked = format!("{first}<|endoftext|>{second}");
    fs::write(setup.path("a.txt"), &marked).unwrap();
    fs::write(setup.path("b.jsonl"), row(first) + &row(second)).unwrap();
    fs::write(setup.path("c.jsonl"), row(&marked)).unwrap();
    // Long enough to be cut, and with marks at both ends of a row.
    let long = "<|endoftext|>".to_string() + &"the lamp ".repeat(20_000) + "<|endoftext|>";
    fs::write(setup.path("d.jsonl"), row(&long)).unwrap();
    let train =
        |input| prepare(&setup.options(input, "z", Validation::None), &Silent).unwrap().train;
    let [a, b, c] = ["a.txt", "b.jsonl", "c.jsonl"].map(train);
    assert_eq!(a, b);
    assert_eq!((&c.content_hash, c.tokens, c.bytes), (&a.content_hash, a.tokens, a.bytes));
    assert_eq!((a.documents, c.documents), (2, 1), "a row is a document");
    assert_eq!(a.bytes as usize, first.len() + second.len());
    assert_eq!(train("d.jsonl").bytes, 9 * 20_000);
}

#[test]
fn skipped_rows_are_in_the_manifest() {
    let setup = Setup::new();
    fs::write(setup.path("bad.jsonl"), "{\"text\":\"one\"}\n{}\n{\"text\":1}\n").unwrap();
    fs::write(setup.path("none.jsonl"), "{}\n").unwrap();
    let own = Validation::Files(vec![setup.path("bad.jsonl")]);
    let options =
        |input| PrepareOptions { skip_bad: true, ..setup.options(input, "a", own.clone()) };
    let report = prepare(&options("in.jsonl"), &Silent).unwrap();
    let bytes = fs::read(setup.path("a/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(manifest, serde_json::to_value(&report).unwrap());
    let skipped = &manifest["skipped"];
    assert_eq!(skipped.as_array().map(Vec::len), Some(1), "{skipped}");
    assert_eq!((&skipped[0]["input"], &skipped[0]["rows"]), (&"bad.jsonl".into(), &2.into()));
    assert_eq!(skipped[0]["first"], 2);
    assert!(skipped[0]["why"].as_str().unwrap().contains("no field \"text\""));
    let message = prepare(&options("none.jsonl"), &Silent).unwrap_err().to_string();
    assert!(message.contains("no text") && message.contains("none.jsonl: 1 row"), "{message}");
    let train = TrainOptions { vocab_size: 300, ..TrainOptions::default() };
    let inputs = [setup.path("in.jsonl"), setup.path("bad.jsonl")];
    let message = Tokenizer::train(&inputs, &train, &Silent).unwrap_err().to_string();
    assert!(message.contains("bad.jsonl:2: ") && message.contains("--skip-bad"), "{message}");
    let train = TrainOptions { skip_bad: true, ..train };
    let (_, learned) = Tokenizer::train(&inputs, &train, &Silent).unwrap();
    assert_eq!(learned.skipped, report.skipped);
}

#[test]
fn only_its_own_folder_is_replaced() {
    let setup = Setup::new();
    let options = |out| setup.options("in.txt", out, Validation::None);
    let refused = |out| prepare(&options(out), &Silent).unwrap_err().to_string();
    assert!(refused("").contains("exists and holds"));
    assert!(refused("in.txt").contains("is not a folder"));
    fs::create_dir(setup.path("a")).unwrap();
    prepare(&options("a"), &Silent).unwrap();
    prepare(&options("a"), &Silent).unwrap();
    fs::write(setup.path("a/notes.txt"), "mine").unwrap();
    assert!(refused("a").contains("notes.txt"));
    assert_eq!(fs::read(setup.path("a/notes.txt")).unwrap(), b"mine");
    fs::remove_file(setup.path("a/notes.txt")).unwrap();
    fs::remove_file(setup.path("a/manifest.json")).unwrap();
    assert!(refused("a").contains("manifest.json"));
}

#[test]
fn a_folder_with_another_tokenizer_is_refused() {
    let setup = Setup::new();
    prepare(&setup.options("in.txt", "a", Validation::None), &Silent).unwrap();
    let options = TrainOptions { vocab_size: 400, ..TrainOptions::default() };
    let (other, _) = Tokenizer::train(&[setup.path("in.txt")], &options, &Silent).unwrap();
    other.save(&setup.path("a/tokenizer")).unwrap();
    assert!(DataDir::open(&setup.path("a")).unwrap_err().to_string().contains("made by tokenizer"));
    assert!(DataDir::open(&setup.path("tok")).unwrap_err().to_string().contains("eslm-kd prepare"));
}

/// The setup's tokenizer with a `<s>` that its template puts before a text.
fn with_bos(setup: &Setup) -> u32 {
    let path = setup.path("tok/tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let bos = json["added_tokens"][0]["id"].as_u64().unwrap() + 1;
    let mut token = json["added_tokens"][0].clone();
    token["id"] = bos.into();
    token["content"] = "<s>".into();
    json["added_tokens"].as_array_mut().unwrap().push(token);
    let [special, a, b] = [
        serde_json::json!({"SpecialToken": {"id": "<s>", "type_id": 0}}),
        serde_json::json!({"Sequence": {"id": "A", "type_id": 0}}),
        serde_json::json!({"Sequence": {"id": "B", "type_id": 0}}),
    ];
    json["post_processor"] = serde_json::json!({"type": "TemplateProcessing", "single": [special, a],
        "pair": [special, a, b], "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}}});
    fs::write(&path, json.to_string()).unwrap();
    bos as u32
}

#[test]
fn documents_begin_with_what_the_template_puts_before_a_text() {
    let setup = Setup::new();
    let before = prepare(&setup.options("in.jsonl", "a", Validation::None), &Silent).unwrap();
    let manifest = fs::read_to_string(setup.path("a/manifest.json")).unwrap();
    assert!(!manifest.contains("begin"), "GPT-2's data are as they were");
    let bos = with_bos(&setup);
    let report = prepare(&setup.options("in.jsonl", "b", Validation::None), &Silent).unwrap();
    assert_eq!((&report.begin[..], report.begin_token.as_deref()), (&[bos][..], Some("<s>")));
    assert_eq!(
        (report.train.bytes, report.train.tokens),
        (before.train.bytes, before.train.tokens + 300)
    );
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(setup.path("b/manifest.json")).unwrap()).unwrap();
    assert_eq!(
        (&manifest["begin"], &manifest["begin_token"]),
        (&serde_json::json!([bos]), &"<s>".into())
    );
    let data = DataDir::open(&setup.path("b")).unwrap();
    let tokens = data.train.to_vec(0..data.train.len()).unwrap();
    let of = |text: &str| data.tokenizer.encode(text).unwrap();
    let whole = |d: &String| [&[bos], &of(d)[..], &[data.tokenizer.eot()]].concat();
    assert!(tokens == setup.documents.iter().flat_map(whole).collect::<Vec<_>>());
    // A text that begins so by itself gets no second.
    let rows = ["<s>One.", "Two."].map(|t| serde_json::json!({"text": t}).to_string());
    fs::write(setup.path("in.jsonl"), rows.join("\n")).unwrap();
    prepare(&setup.options("in.jsonl", "b", Validation::None), &Silent).unwrap();
    let data = DataDir::open(&setup.path("b")).unwrap();
    let tokens = data.train.to_vec(0..data.train.len()).unwrap();
    assert_eq!(data.tokenizer.decode(&tokens).unwrap(), "<s>One.<|endoftext|><s>Two.<|endoftext|>");
    assert_eq!(data.train.header().source_bytes, 8);
}

#[test]
fn a_part_of_a_document_begins_as_a_document() {
    let setup = Setup::new();
    let bos = with_bos(&setup);
    let text = "The lamp stood by the sea.\n".repeat(400);
    fs::write(setup.path("in.txt"), &text).unwrap();
    let report =
        prepare(&setup.options("in.txt", "a", Validation::Fraction(0.1)), &Silent).unwrap();
    let data = DataDir::open(&setup.path("a")).unwrap();
    for file in data.files() {
        assert_eq!(file.to_vec(0..1).unwrap(), [bos]);
    }
    assert_eq!(report.train.bytes + report.valid.unwrap().bytes, text.len() as u64);
}
