//! Every kind of file, mutated.

use super::mutate::{cases, mutated, mutations};
use super::samples::*;
use candle_core::Device;
use eslm_kd::config::{self, Overrides, RunFile};
use eslm_kd::store::checkpoint::{self, Manifest};
use eslm_kd::store::weights::{load_model, read_config};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use std::fs;
use std::path::Path;

/// Calls `read` with a folder and some bytes that `samples` became, so many times; what it says
/// must be fair.
fn each(
    usual: u32,
    samples: &[(Vec<u8>, usize)],
    read: impl Fn(&Path, Vec<u8>, bool) -> Result<(), String>,
) {
    let place = folder();
    let strategy = (0..samples.len(), mutations(), any::<bool>());
    let mut runner = TestRunner::new(cases(usual));
    let outcome = runner.run(&strategy, |(which, changes, fixed)| {
        let (sample, within) = &samples[which];
        read(place.path(), mutated(sample, *within, &changes), fixed).map_err(TestCaseError::fail)
    });
    if let Err(e) = outcome {
        panic!("{e}");
    }
}

const ANYWHERE: usize = usize::MAX;

#[test]
fn token_files() {
    let sample = token_file();
    let place = folder();
    fs::write(place.path().join("t.bin"), &sample).unwrap();
    read_tokens(&place.path().join("t.bin")).unwrap();
    each(1500, &[(sample.clone(), 256), (sample, ANYWHERE)], |at, mut bytes, fixed| {
        if fixed {
            fix_token_header(&mut bytes);
        }
        let path = at.join("t.bin");
        fs::write(&path, bytes).unwrap();
        fair(read_tokens(&path), "t.bin")
    });
}

#[test]
fn manifests_of_checkpoints() {
    let place = folder();
    let path = checkpoint_of(&place.path().join("run"), 0.0, 0.0);
    checkpoint::verify(&path).unwrap();
    let sample = fs::read(path.join("manifest.json")).unwrap();
    each(600, &[(sample, ANYWHERE)], |_, bytes, _| {
        fs::write(path.join("manifest.json"), bytes).unwrap();
        fair(Manifest::read(&path), "step-00000005")?;
        fair(checkpoint::verify(&path), "step-00000005")
    });
}

#[test]
fn states_of_checkpoints() {
    let place = folder();
    let path = checkpoint_of(&place.path().join("run"), 0.0, 0.0);
    load_checkpoint(&path).unwrap();
    let sample = fs::read(path.join("state.json")).unwrap();
    each(300, &[(sample, ANYWHERE)], |_, bytes, _| {
        replace_in_checkpoint(&path, "state.json", &bytes);
        fair(load_checkpoint(&path), "step-00000005")
    });
}

#[test]
fn run_files() {
    let text = |name| RunFile::embedded(name).unwrap().text.into_bytes();
    let samples: Vec<_> = ["quickstart", "eslm-kd", "ada-eslm"].map(|n| (text(n), ANYWHERE)).into();
    each(1500, &samples, |at, bytes, _| {
        let path = at.join("run.toml");
        fs::write(&path, bytes).unwrap();
        let outcome = RunFile::find(path.to_str().unwrap())
            .and_then(|f| config::load(Some(&f), &Overrides::default()));
        // What two keys say together has no one line: such a message names the keys.
        let about_keys = matches!(&outcome, Err(e) if config::keys::KEYS.iter().any(|k| e.to_string().contains(k.name)));
        fair(outcome, if about_keys { "" } else { "run.toml" })
    });
}

#[test]
fn model_configs() {
    let place = folder();
    model(&place.path().join("m"));
    let path = place.path().join("m/config.json");
    let sample = fs::read(&path).unwrap();
    each(1500, &[(sample, ANYWHERE)], |_, bytes, _| {
        fs::write(&path, bytes).unwrap();
        if let Ok(config) = read_config(&path) {
            assert!(config.parameters() > 0);
        }
        fair(read_config(&path), "config.json")?;
        fair(load_model(path.parent().unwrap(), &Device::Cpu), "/m")
    });
}

#[test]
fn safetensors_files() {
    let place = folder();
    let dir = place.path().join("m");
    model(&dir);
    let path = dir.join("model.safetensors");
    let sample = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(sample[..8].try_into().unwrap()) as usize;
    let body = sample.len() - header;
    each(
        1500,
        &[(sample.clone(), 8), (sample.clone(), header), (sample, ANYWHERE)],
        |_, mut bytes, fixed| {
            if fixed && bytes.len() >= 8 + body {
                let header = bytes.len() - 8 - body;
                fix_header_length(&mut bytes, header);
            }
            fs::write(&path, bytes).unwrap();
            fair(load_model(&dir, &Device::Cpu), "/m")
        },
    );
}

#[test]
fn indexes_of_shards() {
    let place = folder();
    let dir = place.path().join("m");
    model(&dir);
    let shard = dir.join("model-00001-of-00001.safetensors");
    fs::rename(dir.join("model.safetensors"), &shard).unwrap();
    let index = dir.join("model.safetensors.index.json");
    let bytes = fs::read(&shard).unwrap();
    let names = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let map: serde_json::Map<String, serde_json::Value> = names
        .names()
        .into_iter()
        .map(|n| (n.to_string(), "model-00001-of-00001.safetensors".into()))
        .collect();
    let sample = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(&index, &sample).unwrap();
    load_model(&dir, &Device::Cpu).unwrap();
    each(500, &[(sample.into_bytes(), ANYWHERE)], |_, bytes, _| {
        fs::write(&index, bytes).unwrap();
        fair(load_model(&dir, &Device::Cpu), "/m")
    });
}

#[test]
fn tokenizers() {
    let sample = tokenizer();
    // Kinds that this program does not make itself.
    let piece = |model: &str, pre: &str| {
        format!(
            r#"{{"version":"1.0","truncation":{{"max_length":9,"strategy":"LongestFirst","stride":2,"direction":"Right"}},
            "added_tokens":[{{"id":4,"content":"</s>","single_word":false,"lstrip":false,"rstrip":true,"normalized":false,
            "special":true}}],"normalizer":{{"type":"Sequence","normalizers":[{{"type":"Replace","pattern":{{"Regex":" {{2,9}}"}},"content":"x"}},
            {{"type":"Prepend","prepend":"y"}}]}},"pre_tokenizer":{pre},"decoder":{{"type":"Metaspace",
            "replacement":"_","prepend_scheme":"first","split":true}},"model":{model}}}"#
        )
    };
    let unigram = r#"{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["a",-1.5],["b",-2.5],["ab",-3.0],["</s>",0.0]]}"#;
    let words = r#"{"type":"WordPiece","unk_token":"<unk>","continuing_subword_prefix":"__","max_input_chars_per_word":9,
        "vocab":{"<unk>":0,"a":1,"b":2,"ab":3,"</s>":4}}"#;
    let split = r#"{"type":"Split","pattern":{"Regex":"[a-z]+|."},"behavior":"MergedWithNext","invert":true}"#;
    let samples = [
        (sample.clone(), ANYWHERE),
        (sample, 1200), // what stands before the vocabulary
        (piece(unigram, split).into_bytes(), ANYWHERE),
        (
            piece(
                words,
                r#"{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true}"#,
            )
            .into_bytes(),
            ANYWHERE,
        ),
    ];
    each(1200, &samples, |at, bytes, _| {
        let path = at.join("tokenizer.json");
        fs::write(&path, bytes).unwrap();
        fair(use_tokenizer(&path), "tokenizer.json")
    });
}

#[test]
fn vocabularies_and_merges() {
    let place = folder();
    let world = crate::support::tiny::world().join("tokenizer");
    let names = ["vocab.json", "merges.txt"];
    let good = names.map(|n| fs::read(world.join(n)).unwrap());
    let samples = [(good[0].clone(), ANYWHERE), (good[1].clone(), ANYWHERE)];
    for which in [0, 1] {
        fs::write(place.path().join(names[1 - which]), &good[1 - which]).unwrap();
        each(250, &samples[which..=which], |_, bytes, _| {
            fs::write(place.path().join(names[which]), bytes).unwrap();
            fair(use_tokenizer(place.path()), place.path().to_str().unwrap())
        });
    }
}

#[test]
fn json_lines_and_texts() {
    let lines =
        "{\"id\": [1, {\"text\": 2}], \"text\": \"a\\nb\"}\n\n{\"text\":\"c \u{e9}\", \"n\": 1.5e3}\n".repeat(3);
    let text = "one<|endoftext|> \n<|endoftext|>two words\u{65e5}\n".repeat(20);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    for (name, sample) in [
        ("a.jsonl", lines.clone().into_bytes()),
        ("a.jsonl.gz", gzip(lines.as_bytes())),
        ("a.jsonl.zst", zstd(lines.as_bytes())),
        ("a.txt", text.clone().into_bytes()),
        ("a.txt.gz", gzip(text.as_bytes())),
        ("a.txt.zst", zstd(text.as_bytes())),
    ] {
        each(250, &[(sample, ANYWHERE)], |at, bytes, _| {
            fs::write(at.join(name), bytes).unwrap();
            fair(read_documents(&at.join(name)), name)
        });
    }
}

#[test]
fn parquet_files() {
    use ::parquet::basic::{Compression, ZstdLevel};
    let place = folder();
    let kinds =
        [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())];
    let samples: Vec<_> = kinds.map(|kind| (parquet(kind), ANYWHERE)).into();
    for (sample, _) in &samples {
        fs::write(place.path().join("a.parquet"), sample).unwrap();
        assert_eq!(read_documents(&place.path().join("a.parquet")).unwrap(), 600);
    }
    each(1500, &samples, |at, bytes, _| {
        let path = at.join("a.parquet");
        fs::write(&path, bytes).unwrap();
        fair(read_documents(&path), "a.parquet")
    });
}
