//! Whole optimizer steps on the kernels for a GPU, run by the emulator, against the same steps on
//! the CPU.

use super::{StepReport, Trainer};
use crate::data::loader::Batch;
use crate::model::testing::of_other_parts;
use crate::model::{Gpt2, Gpt2Config};
use crate::ops::testing::{assert_close, emulated};
use crate::teacher::Teacher;
use crate::testing::{lively_model, step_plan};
use candle_core::{DType, Device, Tensor};

const CONTEXT: usize = 8;
const VOCAB: usize = 70;

fn model(width: usize, heads: usize, seed: u64) -> Gpt2 {
    lively_model(VOCAB, CONTEXT, width, heads, seed)
}

fn batch(step: u32, vocab: usize) -> Batch {
    let tokens: Vec<u32> =
        (0..4 * CONTEXT as u32 + 1).map(|i| (i * i + 7 * i + 13 * step) % vocab as u32).collect();
    Batch {
        sequences: 4,
        context: CONTEXT,
        inputs: tokens[..4 * CONTEXT].to_vec(),
        targets: tokens[1..].to_vec(),
        valid: (0..4 * CONTEXT).map(|i| i % 11 != 5).collect(),
        sequence_ids: (4 * u64::from(step)..4 * u64::from(step) + 4).collect(),
    }
}

/// Two steps of a GPT-2: what each reports, then how far every parameter has moved.
fn two_steps(settings: &[&str], width: usize) -> Vec<Tensor> {
    two_steps_of(settings, || model(width, width / 8 / 8 + 1, 1), || model(24, 3, 2))
}

/// The same of any student and teacher.
fn two_steps_of(
    settings: &[&str],
    student: impl Fn() -> Gpt2,
    teacher: impl Fn() -> Gpt2,
) -> Vec<Tensor> {
    let shorter = ["data.context=8", "machine.micro_rows=2"];
    let plan = step_plan(&[&shorter[..], settings].concat());
    let (student, start) = (student(), student());
    let vocab = student.config.vocab_size;
    let teacher = plan.teacher.is_some().then(|| Teacher::new(teacher(), &student.config).unwrap());
    let mut trainer = Trainer::new(plan, student, teacher).unwrap();
    let report = |r: StepReport| {
        let shares = [
            r.sums.kept as f64,
            r.sums.valid as f64,
            r.sums.rows as f64,
            r.sums.block_rows.0 as f64,
        ];
        let sums = [
            r.sums.loss,
            r.sums.nll,
            r.sums.kept_nll,
            r.grad_norm * 30.0,
            r.sums.var,
            r.sums.effective_rows(),
        ];
        Tensor::new([shares.as_slice(), &sums].concat(), &Device::Cpu).unwrap()
    };
    let mut out: Vec<Tensor> = (0..2)
        .map(|s| report(trainer.step(u64::from(s), 4 * u64::from(s), &batch(s, vocab)).unwrap()))
        .collect();
    let moved = trainer.student.params.tensors().iter().zip(start.params.tensors());
    out.extend(moved.map(|(now, then)| (now - then).unwrap()));
    out
}

#[test]
fn steps_on_a_gpus_kernels_are_the_cpus() {
    let cases: [&[&str]; 13] = [
        &["method=clm"],
        &["select.score=loss", "machine.backward=sparse"],
        &["select.score=entropy", "machine.head=recompute", "machine.activations=recompute"],
        &["select.score=random", "machine.backward=sampled", "machine.rho=0.5"],
        &["select.score=loss", "select.pool=carried", "select.threshold_ema=0.5"],
        &["select.score=entropy", "select.cvar_weight=0.5", "select.rest_rate=0.3"],
        &["select.score=kl", "teacher=t", "objective.lambda=0.5", "objective.temperature=2"],
        &["method=clm", "teacher=t", "objective.lambda=0.5"],
        &["select.score=kl", "teacher=t", "objective.lambda=0.5", "machine.teacher_dtype=bf16"],
        &[
            "select.score=entropy",
            "teacher=t",
            "objective.divergence=jsd",
            "objective.temperature=2",
        ],
        &[
            "select.score=loss",
            "teacher=t",
            "objective.signal=top-k",
            "objective.top_k=9",
            "machine.backward=sparse",
        ],
        &["select.score=random", "teacher=t", "objective.signal=sampled", "objective.samples=5"],
        &["select.alpha_seq=0.4", "select.exit_layer=1", "select.probe_stride=4"],
    ];
    for settings in cases {
        let want = two_steps(settings, 16);
        if let Some(got) = emulated(|| two_steps(settings, 16)) {
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, 2e-5);
            }
        }
    }
}

#[test]
fn steps_in_bf16_on_a_gpus_kernels_are_near_those_in_f32() {
    // A width of 64 is one head of 64, for which attention has kernels of its own.
    for (settings, width) in [
        (["method=clm", "machine.backward=exact"], 64),
        (["select.score=random", "machine.backward=sparse"], 64),
        (["method=clm", "teacher=t"], 16),
    ] {
        let want = two_steps(&settings, width);
        let mixed = [&settings[..], &["machine.dtype=bf16"]].concat();
        let Some(got) = emulated(|| two_steps(&mixed, width)) else { return };
        assert_near(&got, &want, [5e-3, 0.06], &format!("{settings:?}"));
    }
}

/// That steps in bf16 are near those in f32: by so much of what they report, and of each
/// parameter's way.
fn assert_near(got: &[Tensor], want: &[Tensor], [reported, way]: [f64; 2], what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        if i < 2 {
            assert_close(got, want, reported); // sums over many rows: roundings of 2^-9 mostly cancel
            continue;
        }
        // A parameter's way: mostly the same direction, as far as gradients rounded to 2^-9 at
        // every product allow.
        let flat = |t: &Tensor| {
            t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
        };
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (got, want) = (flat(got), flat(want));
        let apart: Vec<f64> = got.iter().zip(&want).map(|(g, w)| g - w).collect();
        // The key bias has no gradient but rounding's; the least weight here moves by 1e-3.
        assert!(
            norm(&apart) < way * norm(&want) + 2e-4,
            "{what}, {i}: {} of {}",
            norm(&apart),
            norm(&want)
        );
    }
}

/// A model of other parts, fresh at each call.
fn other(which: usize) -> Gpt2 {
    of_other_parts(DType::F32).swap_remove(which)
}

#[test]
fn steps_of_other_parts_on_a_gpus_kernels_are_the_cpus() {
    let cases: [&[&str]; 6] = [
        &["method=clm"],
        &["select.score=loss", "machine.backward=sparse"],
        &["select.score=random", "machine.backward=sampled", "machine.rho=0.5"],
        &["select.score=entropy", "machine.activations=recompute"],
        &["select.score=kl", "teacher=t", "objective.lambda=0.5"],
        &["select.alpha_seq=0.4", "select.exit_layer=1", "select.probe_stride=4"],
    ];
    for which in 0..of_other_parts(DType::F32).len() {
        for settings in cases {
            let run = || two_steps_of(settings, || other(which), || other(0));
            let want = run();
            for (got, want) in emulated(run).iter().flatten().zip(&want) {
                assert_close(got, want, 2e-5);
            }
        }
    }
}

#[test]
fn steps_of_other_parts_in_bf16_on_a_gpus_kernels_are_near_those_in_f32() {
    // Two heads of 64 that share their keys: attention on tensor cores.
    let wide = || {
        let mut config = Gpt2Config { n_head: 2, ..other(2).config };
        config.parts.head_dim = Some(64);
        Gpt2::scratch(config, 1, &Device::Cpu).unwrap()
    };
    let small = (0..of_other_parts(DType::F32).len()).map(|which| {
        let one: Box<dyn Fn() -> Gpt2> = Box::new(move || other(which));
        one
    });
    for (i, student) in small.chain([Box::new(wide) as Box<dyn Fn() -> Gpt2>]).enumerate() {
        for settings in [
            ["method=clm", "machine.backward=exact"],
            ["select.score=random", "machine.backward=sparse"],
            ["method=clm", "teacher=t"],
        ] {
            let want = two_steps_of(&settings, &student, || other(0));
            let mixed = [&settings[..], &["machine.dtype=bf16"]].concat();
            let Some(got) = emulated(|| two_steps_of(&mixed, &student, || other(0))) else {
                return;
            };
            // Weights of 0.3, three blocks, norms of small sums: roundings grow more on their way than
            // above.
            assert_near(&got, &want, [8e-2, 0.12], &format!("{i}, {settings:?}"));
        }
    }
}

#[test]
fn a_gpus_kernels_continue_a_text_as_the_cpu_does() {
    for which in 0..of_other_parts(DType::F32).len() {
        let run = || {
            let model = other(which);
            let (mut cache, first) = model.prefill(&[3, 1, 4]).unwrap();
            let next = [15, 9, 2].map(|token| model.step(token, &mut cache).unwrap());
            [vec![first], next.to_vec()].concat()
        };
        let want = run();
        for (got, want) in emulated(run).iter().flatten().zip(&want) {
            assert_close(got, want, 1e-5);
        }
    }
}
