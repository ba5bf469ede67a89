//! Steps of several processes against those of one. The processes are threads; what MPI adds is that
//! bytes travel, which `tests/it/ranks.rs` tries.

use super::{StepReport, Sums, Trainer};
use crate::data::loader::Batch;
use crate::error::ErrorKind;
use crate::model::Gpt2;
use crate::ops::testing::emulated;
use crate::teacher::Teacher;
use crate::testing::{lively_model, random_batch, step_plan};
use crate::train::events::Phases;
use crate::world::{World, in_linked_threads, in_threads, in_threads_beside};
use candle_core::{Device, Tensor};
use std::sync::Mutex;

const CONTEXT: usize = 16;
const VOCAB: usize = 70;
const ROWS: usize = 8;

fn batch(step: u64) -> Batch {
    let mut all = random_batch(ROWS * 4, CONTEXT, VOCAB);
    let of_step = (step as usize % 4) * ROWS;
    all.sequence_ids.iter_mut().for_each(|id| *id += 100 * step);
    all.slice(of_step..of_step + ROWS)
}

fn trainer(settings: &[&str], world: World) -> Trainer {
    let eight = ["data.rows=8", "machine.micro_rows=2"];
    let of_the_plan = settings.iter().filter(|setting| **setting != TWO_ON_A_MACHINE).copied();
    let plan = step_plan(&eight.into_iter().chain(of_the_plan).collect::<Vec<_>>());
    let model = |width, seed| lively_model(VOCAB, CONTEXT, width, 2, seed);
    // What the others begin with is process 0's.
    let student: Gpt2 = model(16, 1 + world.rank() as u64);
    let teacher =
        plan.teacher.is_some().then(|| Teacher::new(model(24, 9), &student.config).unwrap());
    let mut trainer = Trainer::new(plan, student, teacher).unwrap().among(world).unwrap();
    if settings.contains(&TWO_ON_A_MACHINE) {
        trainer.shards = trainer.shards.by_machines_of(2);
    }
    trainer
}

/// Not a setting of a plan: as if every machine had two processes.
const TWO_ON_A_MACHINE: &str = "two on a machine";

/// What so many steps reported, without their seconds, and the parameters then.
fn steps(settings: &[&str], world: World, n: u64) -> (Vec<StepReport>, Vec<Vec<f32>>) {
    let (share, mut trainer) = (world.share(ROWS), trainer(settings, world));
    let one = |step: u64| {
        let done =
            trainer.step(step, step * ROWS as u64, &batch(step).slice(share.clone())).unwrap();
        let mut sums = Sums { phases: Phases::default(), ..done.sums.clone() };
        if settings.contains(&"select.pool=step") {
            // A process with one micro-batch scores it on its way, others in a pass of its own.
            sums.flops.scoring = 0.0;
        }
        StepReport { sums, ..done }
    };
    let reports = (0..n).map(one).collect();
    let params = trainer.student.params.tensors();
    (reports, params.iter().map(|t| t.flatten_all().unwrap().to_vec1().unwrap()).collect())
}

/// Plain steps; selection in every pool, by the student and by a teacher; distillation from every form
/// of signal; other backward passes; sequences that exit early; a schedule of alpha.
const WAYS: [&[&str]; 14] = [
    &["method=clm"],
    &["select.score=entropy"],
    &["select.pool=micro-batch", "select.score=loss"],
    &["select.pool=carried", "select.score=loss"],
    &["select.pool=step", "select.score=loss"],
    &["select.pool=step", "select.score=kl", "teacher=t", "machine.head=recompute"],
    &["select.cvar_weight=0.5", "select.rest_rate=0.3"],
    &["select.schedule=ada-eslm", "select.interval=2", "select.score=loss"],
    &["teacher=t", "method=clm", "objective.lambda=0.5"],
    &["teacher=t", "select.score=kl", "objective.lambda=0.5", "machine.head=recompute"],
    &["teacher=t", "objective.lambda=0.5", "objective.signal=sampled", "objective.samples=5"],
    &["teacher=t", "select.score=excess", "objective.signal=top-k", "objective.top_k=7"],
    &["machine.backward=sampled", "machine.rho=0.5", "method=clm"],
    &["select.alpha_seq=0.5", "select.probe_stride=4", "machine.backward=sparse"],
];

#[test]
fn with_groups_every_number_of_processes_has_the_bits_of_one() {
    for way in WAYS {
        let settings = [way, &["machine.groups=4"]].concat();
        let (reports, params) = steps(&settings, World::solo(), 20);
        for size in [2, 4] {
            let all = in_threads(size, |world| steps(&settings, world, 20));
            for (rank, (found, weights)) in all.into_iter().enumerate() {
                assert_eq!(found, reports, "{way:?}, process {rank} of {size}");
                assert!(weights == params, "{way:?}, process {rank} of {size}");
            }
        }
    }
}

#[test]
fn without_groups_sums_round_otherwise_and_nothing_else_differs() {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs().max(1e-9);
    for way in WAYS {
        let (one, _) = steps(way, World::solo(), 20);
        for size in [2, 4] {
            let (found, _) = in_threads(size, |world| steps(way, world, 20)).remove(0);
            for (step, (a, b)) in found.iter().zip(&one).enumerate() {
                let (a, b) = (a.sums.clone(), b.sums.clone());
                let counts = |s: &Sums| (s.tokens, s.sequences, s.valid, s.kept, s.pools, s.rows);
                assert_eq!(counts(&a), counts(&b), "{way:?}, step {step}, {size} processes");
                assert!(near(a.loss, b.loss) && near(a.nll, b.nll), "{way:?}, step {step}");
            }
        }
    }
    // And that nothing is compared with itself.
    let clm: &[&str] = &["method=clm"];
    let grouped = steps(&["method=clm", "machine.groups=4"], World::solo(), 20).1;
    assert!(steps(clm, World::solo(), 20).1 != grouped);
}

/// Steps on a GPU that the host plays: parameters then, or nothing where it cannot.
fn steps_on_a_gpu(settings: &[&str], world: &World, n: u64) -> Option<Vec<Vec<f32>>> {
    let tensor = |values: Vec<f32>| Tensor::new(values, &Device::Cpu).unwrap();
    let run = || steps(settings, world.clone(), n).1.into_iter().map(tensor).collect();
    let values = |t: &Tensor| t.to_vec1::<f32>().unwrap();
    Some(emulated(run)?.iter().map(values).collect())
}

/// What of the ways differs in how gradients become final: one pass and two, rows that are dropped,
/// sequences that exit, draws after which a block gets none.
const WAYS_OF_A_GPU: [&[&str]; 5] = [
    &["method=clm"],
    &["teacher=t", "select.score=excess", "select.pool=step"],
    &["select.pool=carried", "select.score=loss", "machine.backward=sparse"],
    &["machine.backward=sampled", "machine.rho=0.5", "method=clm"],
    &["select.alpha_seq=0.5", "select.probe_stride=4"],
];

#[test]
fn between_gpus_parts_travel_through_the_host_or_by_a_link_and_give_the_same() {
    for way in WAYS_OF_A_GPU {
        let settings = [way, &["machine.groups=4", "machine.head=keep"]].concat();
        let run = |world: World| steps_on_a_gpu(&settings, &world, 2);
        let Some(one) = run(World::solo()) else { return };
        for found in in_threads(2, run) {
            assert!(found.as_ref() == Some(&one), "{way:?}, through the host");
        }
        for size in [1, 2, 4] {
            for found in in_linked_threads(size, run).expect("a compiler, as before") {
                assert!(found.as_ref() == Some(&one), "{way:?}, {size} processes with a link");
            }
        }
        let by_machines = [&settings[..], &[TWO_ON_A_MACHINE]].concat();
        let run_by_machines = |world: World| steps_on_a_gpu(&by_machines, &world, 2);
        for found in in_threads_beside(4, run_by_machines).expect("a compiler, as before") {
            assert!(found.as_ref() == Some(&one), "{way:?}, on two machines");
        }
        for found in in_threads_beside(2, run).expect("a compiler, as before") {
            assert!(found.as_ref() == Some(&one), "{way:?}, with a link beside");
        }
    }
}

#[test]
fn a_link_serves_what_no_tree_has_equal_halves_for() {
    // Three processes have 9 sequences between them.
    let settings = ["method=clm", "machine.groups=3", "machine.head=keep"];
    let steps_of_nine = |world: World| {
        let run = || {
            let mut trainer = trainer(&settings, world.clone());
            let batch = random_batch(9, CONTEXT, VOCAB).slice(world.share(9));
            trainer.step(0, 0, &batch).unwrap();
            trainer.student.params.tensors().to_vec()
        };
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        Some(emulated(run)?.iter().map(values).collect::<Vec<_>>())
    };
    let Some(one) = steps_of_nine(World::solo()) else { return };
    for found in in_linked_threads(3, steps_of_nine).expect("a compiler, as before") {
        assert!(found.as_ref() == Some(&one));
    }
}

#[test]
fn a_step_that_fails_in_one_process_changes_nothing_in_any() {
    let fails = |world: World| {
        let (rank, share) = (world.rank(), world.share(ROWS));
        let mut trainer = trainer(&["method=clm", "machine.head=keep"], world.clone());
        let before = trainer.student.params.wte().to_vec2::<f32>().unwrap();
        // A token that the model does not have, in one process alone, and not in its last micro-batch.
        let mut broken = batch(0).slice(share.clone());
        if rank == 1 {
            broken.targets[3] = VOCAB as u32 + 5;
        }
        let failed = trainer.step(0, 0, &broken).unwrap_err();
        assert!(trainer.student.params.wte().to_vec2::<f32>().unwrap() == before);
        // What is survived is forgiven, and the next step is a first one.
        world.forgive();
        let next = trainer.step(0, 0, &batch(0).slice(share)).unwrap();
        (failed.to_string(), failed.kind(), next.sums.loss)
    };
    let clean = &steps(&["method=clm", "machine.groups=2"], World::solo(), 1).0[0];
    let check = |found: &[(String, ErrorKind, f64)]| {
        let (said, kind, loss) = &found[0];
        assert!(said.starts_with("step 1: process 1 of 2: "), "{said}");
        assert!(*kind != ErrorKind::Interrupted(0) && found[1].0 == *said);
        let off = (loss / clean.sums.loss - 1.0).abs();
        assert!(off < 1e-6, "{loss} for {}", clean.sums.loss);
    };
    check(&in_threads(2, fails));
    // With a link the others are in the middle of an exchange, which goes on to its end.
    let found = in_linked_threads(2, |world| {
        let done = Mutex::new(Vec::new());
        let run = || {
            done.lock().unwrap().push(fails(world.clone()));
            Vec::new()
        };
        emulated(run)?;
        done.into_inner().unwrap().pop()
    });
    let found: Option<Vec<_>> = found.into_iter().flatten().collect();
    check(&found.expect("both said something"));
}
