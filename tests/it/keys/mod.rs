//! Every key of the table in `src/config/keys.rs` does what its line there says: by a number of a
//! step or a run that follows from the key's value, wherever there is one. A key without a proof
//! here fails the first test.

mod machine;
mod objective;
mod optim;
mod runs;
mod select;

use crate::laws::{ROWS, batch, trainer};
use eslm_kd::config::keys::KEYS;
use eslm_kd::train::{StepReport, Trainer};
use std::collections::BTreeSet;
use std::path::Path;

/// How a key is shown to act.
pub enum Proof {
    /// By this function, which panics where it does not.
    Here(fn()),
    /// By the test of that name in that file below `tests/it`, which takes whole runs.
    There(&'static str, &'static str),
}

use Proof::{Here, There};

type Proofs = &'static [(&'static str, Proof)];

const ALL: [Proofs; 5] = [runs::KEYS, select::KEYS, objective::KEYS, optim::KEYS, machine::KEYS];

/// A trainer with these settings over those of `laws.rs`, at the given step: a fresh one, so that
/// step and nothing else makes a difference.
pub fn at(settings: &[&str], step: u64) -> (Trainer, StepReport) {
    let mut trainer = trainer(settings);
    let report = trainer.step(step, 0, &batch(0, ROWS)).unwrap();
    (trainer, report)
}

pub fn first(settings: &[&str]) -> StepReport {
    at(settings, 0).1
}

/// The reports of the first `n` steps.
pub fn reports(settings: &[&str], n: u64) -> Vec<StepReport> {
    let mut trainer = trainer(settings);
    (0..n).map(|s| trainer.step(s, s * ROWS as u64, &batch(s, ROWS)).unwrap()).collect()
}

#[track_caller]
pub fn close(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-5 * want.abs().max(1e-3), "{what}: {got}, expected {want}");
}

#[track_caller]
pub fn differs(what: &str, a: f64, b: f64) {
    assert!((a - b).abs() > 1e-4 * a.abs(), "{what} makes no difference: {a} and {b}");
}

#[test]
fn every_key_of_the_table_has_a_proof() {
    let mut proved = BTreeSet::new();
    for (name, proof) in ALL.iter().copied().flatten() {
        assert!(proved.insert(*name), "{name} twice");
        let There(file, test) = proof else { continue };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&format!("\nfn {test}() {{")), "{name}: {file} has no test {test}");
        assert!(text.contains(name), "{name}: {file} does not speak of it");
    }
    let table: BTreeSet<&str> = KEYS.iter().map(|key| key.name).collect();
    let missing: Vec<_> = table.difference(&proved).collect();
    assert!(missing.is_empty(), "keys of the table without a proof that they act: {missing:?}");
    let unknown: Vec<_> = proved.difference(&table).collect();
    assert!(unknown.is_empty(), "proofs of what is no key: {unknown:?}");
}

fn prove(proofs: Proofs) {
    let mut done: Vec<fn()> = Vec::new();
    for (name, proof) in proofs {
        // Captured output of a failed test ends with the key at fault.
        eprintln!("{name}");
        let Here(shows) = proof else { continue };
        // Some functions show several keys.
        if !done.iter().any(|other| std::ptr::fn_addr_eq(*other, *shows)) {
            shows();
            done.push(*shows);
        }
    }
}

#[test]
fn keys_of_selection_do_what_their_lines_say() {
    prove(select::KEYS);
}

#[test]
fn keys_of_the_objective_do_what_their_lines_say() {
    prove(objective::KEYS);
}

#[test]
fn keys_of_optimizer_and_learning_rate_do_what_their_lines_say() {
    prove(optim::KEYS);
}

#[test]
fn keys_of_the_machine_do_what_their_lines_say() {
    prove(machine::KEYS);
}

#[test]
fn keys_of_whole_runs_do_what_their_lines_say() {
    prove(runs::KEYS);
}
