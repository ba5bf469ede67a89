//! A small world of our own stories, made once per test process: text, a tokenizer of 320 tokens, a
//! data folder.

use eslm_kd::compare::quickstart::stories;
use eslm_kd::data::prepare::{PrepareOptions, Validation, prepare};
use eslm_kd::data::tokenizer::Tokenizer;
use eslm_kd::data::train_tokenizer::TrainOptions;
use eslm_kd::progress::Silent;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// Tokens of the world's tokenizer.
pub const VOCAB: usize = 320;

/// `stories.jsonl`, `valid.jsonl`, `tokenizer/` and `data/` (train and validation tokens).
pub fn world() -> &'static Path {
    static WORLD: OnceLock<TempDir> = OnceLock::new();
    // On a pool of its own: threads of the common one may all be waiting here, and nobody would be left to work.
    let in_own_pool =
        || rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(made);
    WORLD.get_or_init(|| std::thread::scope(|s| s.spawn(in_own_pool).join().unwrap())).path()
}

fn made() -> TempDir {
    // Below target/, where nothing of a process that was killed is in anyone's way.
    let root = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| root.path().join(name);
    stories::write(&at("stories.jsonl"), 1, 0..120, &Silent).unwrap();
    stories::write(&at("valid.jsonl"), 1, 120..126, &Silent).unwrap();
    let options = TrainOptions { vocab_size: VOCAB, ..TrainOptions::default() };
    let tokenizer = Tokenizer::train(&[at("stories.jsonl")], &options, &Silent).unwrap().0;
    assert_eq!(tokenizer.vocab_size() as usize, VOCAB);
    tokenizer.save(&at("tokenizer")).unwrap();
    let options = PrepareOptions {
        inputs: vec![at("stories.jsonl")],
        tokenizer: at("tokenizer"),
        out: at("data"),
        text_field: "text".into(),
        validation: Validation::Files(vec![at("valid.jsonl")]),
        end_token: None,
        skip_bad: false,
    };
    prepare(&options, &Silent).unwrap();
    root
}

/// The world's data folder.
pub fn data() -> PathBuf {
    world().join("data")
}
