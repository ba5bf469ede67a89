//! What this crate's own tests and benches share. No promise is made to anyone else.
//!
//! # Panics
//! Everything here, where what is asked for cannot be: these are tests.

use crate::config::{Overrides, Plan, RunFile, load};
use crate::data::loader::Batch;
use crate::model::{Gpt2, Gpt2Config};
use crate::progress::Progress;
use crate::rng::{Rng, Stream};
use candle_core::Device;
use std::sync::Mutex;

/// Steps of four sequences, half of whose positions are kept. A large epsilon, because AdamW turns
/// the rounding noise of a gradient that is zero (that of the key bias) into steps of full size.
const STEPS: &str = r#"
    method = "eslm"
    student = "tiny"
    steps = 100
    seed = 3
    [data]
    context = 16
    rows = 4
    [select]
    score = "entropy"
    alpha = 0.5
    burn_in = 0
    ramp = 0
    [optim]
    lr = 1e-2
    eps = 1e-2
    [schedule]
    kind = "constant"
    warmup = 0
    [machine]
    micro_rows = 4
    head = "keep"
    backward = "exact"
"#;

/// The defaults under `key=value` settings.
pub fn plan(settings: &[&str]) -> Plan {
    plan_over(None, settings)
}

/// Remembers notes.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// The notes so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no test panicked with it").clone()
    }
}

impl Progress for Notes {
    fn start(&self, _: &str, _: Option<u64>, _: &str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, text: &str) {
        self.0.lock().expect("no test panicked with it").push(text.into());
    }
}

/// Steps of four sequences of 16 positions under `key=value` settings.
pub fn step_plan(settings: &[&str]) -> Plan {
    plan_over(Some(&RunFile { name: "steps".into(), text: STEPS.into() }), settings)
}

fn plan_over(file: Option<&RunFile>, settings: &[&str]) -> Plan {
    let mut overrides = Overrides::default();
    settings.iter().for_each(|setting| overrides.set(setting).expect("a setting"));
    load(file, &overrides).expect("a plan").plan
}

/// A model of two blocks whose predictions differ from token to token from the first step on.
pub fn lively_model(vocab: usize, context: usize, width: usize, heads: usize, seed: u64) -> Gpt2 {
    let shape = Gpt2Config::new(vocab, context, width, 2, heads);
    let config = Gpt2Config { initializer_range: 0.2, ..shape };
    Gpt2::scratch(config, seed, &Device::Cpu).expect("a model")
}

/// Uniform tokens and targets, all of which count.
pub fn random_batch(sequences: usize, context: usize, vocab: usize) -> Batch {
    let (rng, n) = (Rng::new(5, Stream::Corpus), sequences * context);
    let draw = |sub| (0..n).map(|i| rng.below(sub, i as u64, vocab as u64) as u32).collect();
    Batch {
        sequences,
        context,
        inputs: draw(0),
        targets: draw(1),
        valid: vec![true; n],
        sequence_ids: (0..sequences as u64).collect(),
    }
}
