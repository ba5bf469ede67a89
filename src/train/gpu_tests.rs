//! Whole optimizer steps on the kernels for a GPU, run by the emulator, against the same steps on
//! the CPU.

use super::{StepReport, Trainer};
use crate::data::loader::Batch;
use crate::model::Gpt2;
use crate::ops::testing::{assert_close, emulated};
use crate::teacher::Teacher;
use crate::testing::{lively_model, step_plan};
use candle_core::{DType, Device, Tensor};

const CONTEXT: usize = 8;
const VOCAB: usize = 70;

fn model(width: usize, heads: usize, seed: u64) -> Gpt2 {
    lively_model(VOCAB, CONTEXT, width, heads, seed)
}

fn batch(step: u32) -> Batch {
    let tokens: Vec<u32> =
        (0..4 * CONTEXT as u32 + 1).map(|i| (i * i + 7 * i + 13 * step) % VOCAB as u32).collect();
    Batch {
        sequences: 4,
        context: CONTEXT,
        inputs: tokens[..4 * CONTEXT].to_vec(),
        targets: tokens[1..].to_vec(),
        valid: (0..4 * CONTEXT).map(|i| i % 11 != 5).collect(),
        sequence_ids: (4 * u64::from(step)..4 * u64::from(step) + 4).collect(),
    }
}

/// Two steps: what each reports, then how far every parameter has moved.
fn two_steps(settings: &[&str], width: usize) -> Vec<Tensor> {
    let shorter = ["data.context=8", "machine.micro_rows=2"];
    let plan = step_plan(&[&shorter[..], settings].concat());
    let (student, start) = (model(width, width / 8 / 8 + 1, 1), model(width, width / 8 / 8 + 1, 1));
    let teacher =
        plan.teacher.is_some().then(|| Teacher::new(model(24, 3, 2), &student.config).unwrap());
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
        .map(|s| report(trainer.step(u64::from(s), 4 * u64::from(s), &batch(s)).unwrap()))
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
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            if i < 2 {
                assert_close(got, want, 5e-3); // sums over many rows: roundings of 2^-9 mostly cancel
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
                norm(&apart) < 0.06 * norm(&want) + 2e-4,
                "{settings:?}, {i}: {} of {}",
                norm(&apart),
                norm(&want)
            );
        }
    }
}
