//! How long a run takes on this machine, from a step that is measured.

use super::Trainer;
use super::session::Shapes;
use crate::config::{MicroRows, Plan, Score};
use crate::cost;
use crate::data::loader::Batch;
use crate::error::Result;
use crate::model::{Gpt2, Gpt2Config, Layout, ParamSet};
use crate::ops::matmul::{Mat, Precision, product};
use crate::teacher::Teacher;
use candle_core::{DType, Device};
use std::time::Instant;

/// Operations of a step that is measured at most: a second or two of a CPU.
const MOST_FLOPS: u64 = 200_000_000_000;
/// Fewest tokens of a sequence that still say what longer ones take.
const LEAST_CONTEXT: usize = 64;
/// The value of every weight. The time of a step does not depend on them.
const WEIGHT: f32 = 0.01;

/// What a run would take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Mean seconds of a step over the run, without validations and checkpoints.
    pub seconds_per_step: f64,
    /// Seconds of all steps.
    pub seconds: f64,
    /// Tokens per second, before selection.
    pub tokens_per_second: f64,
}

impl Pace {
    /// Times a step of `shapes` on `device`, of fewer or shorter sequences where a whole one would
    /// take long, and scales it by operations. None where the models do not fit into `memory` bytes.
    pub fn measure(shapes: &Shapes, device: &Device, memory: u64) -> Result<Option<Self>> {
        let Shapes { student, teacher, .. } = shapes;
        let plan = smaller(shapes);
        if cost::memory(student, teacher.as_ref(), &plan).total() > memory {
            return Ok(None);
        }
        let model = |shape: &Gpt2Config| filled(shape, device);
        let batch = batch(&plan, student.vocab_size as u32);
        let teacher_model = teacher.as_ref().map(model).transpose()?;
        let teacher_model = teacher_model.map(|t| Teacher::new(t, student)).transpose()?;
        let mut trainer = Trainer::new(plan.clone(), model(student)?, teacher_model)?;
        trainer.step(0, 0, &batch)?; // takes memory that later ones have
        let started = Instant::now();
        let report = trainer.step(1, plan.data.rows as u64, &batch)?;
        device.synchronize()?;
        let (seconds, update) = (started.elapsed().as_secs_f64(), report.sums.phases.optimizer);
        let flops = report.sums.flops.total().max(1.0);
        let steps = shapes.plan.steps as f64;
        let per_step = (seconds - update).max(0.0) / flops * (shapes.flops() / steps) + update;
        Ok(Some(Self {
            seconds_per_step: per_step,
            seconds: per_step * steps,
            tokens_per_second: shapes.plan.tokens_per_step() as f64 / per_step,
        }))
    }
}

/// Sides of the square matrices by which [`speed`] is measured.
const SIDE: usize = 512;
/// The share of a product's speed that whole steps reach, roughly.
const OF_A_PRODUCT: f64 = 0.5;

/// Seconds that [`speed`] tries for the best product: long enough that something else on the machine
/// does not hold up all of them.
const TRIED: f64 = 0.15;

/// Operations per second that a step reaches on this machine's CPU, roughly: from the best of some
/// products.
pub fn speed() -> f64 {
    let matrix = vec![WEIGHT; SIDE * SIDE];
    let matrix = Mat::row_major(&matrix, SIDE, SIDE);
    let mut best = f64::INFINITY;
    let begun = Instant::now();
    let mut tries = 0;
    while tries < 4 || begun.elapsed().as_secs_f64() < TRIED {
        tries += 1;
        let started = Instant::now();
        drop(product(matrix, matrix, Precision::F32));
        best = best.min(started.elapsed().as_secs_f64());
    }
    2.0 * (SIDE as f64).powi(3) / best * OF_A_PRODUCT
}

/// The plan with steps of few enough operations, which select as much as it comes to.
fn smaller(shapes: &Shapes) -> Plan {
    let Shapes { plan, student, teacher } = shapes;
    let mut small = plan.clone();
    (small.select.burn_in, small.select.ramp) = (0, 0);
    small.machine.groups = 0;
    if small.data.signal.take().is_some() {
        // What is read costs less than a measurement of a second would show.
        small.teacher = None;
        small.objective.lambda = 0.0;
        small.objective.lambda_end = None;
        small.select.score = Score::Entropy;
    }
    let mut rows = cost::micro_rows(plan);
    loop {
        small.data.rows = rows;
        small.machine.micro_rows = MicroRows::Rows(rows);
        let flops = cost::flops_per_step(student, teacher.as_ref(), &small, small.level());
        if flops.total() <= MOST_FLOPS as f64 {
            return small;
        }
        if rows > 1 {
            rows /= 2;
        } else if small.data.context / 2 >= LEAST_CONTEXT {
            small.data.context /= 2;
        } else {
            return small;
        }
    }
}

/// A model of that shape whose memory has been written.
fn filled(shape: &Gpt2Config, device: &Device) -> Result<Gpt2> {
    let params = ParamSet::zeros(&Layout::new(shape), DType::F32, device)?;
    params.fill(WEIGHT)?;
    Ok(Gpt2::new(shape.clone(), params))
}

fn batch(plan: &Plan, vocabulary: u32) -> Batch {
    let (rows, context) = (plan.data.rows, plan.data.context);
    let ids: Vec<u32> = (0..(rows * context) as u32).map(|i| i % vocabulary).collect();
    Batch {
        sequences: rows,
        context,
        targets: ids.clone(),
        valid: vec![true; ids.len()],
        inputs: ids,
        sequence_ids: (0..rows as u64).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::step_plan;

    #[test]
    fn the_speed_of_products_is_one_that_a_machine_can_have() {
        assert!((1e7..1e16).contains(&speed()), "{}", speed());
    }

    #[test]
    fn a_pace_is_measured_on_steps_that_are_small_enough() {
        let shape = |width| Gpt2Config::new(300, 512, width, 2, 2);
        let plan = step_plan(&["data.context=512", "data.rows=8", "machine.micro_rows=8"]);
        let small = Shapes { plan: plan.clone(), student: shape(16), teacher: Some(shape(32)) };
        assert_eq!((smaller(&small).data.rows, smaller(&small).data.context), (8, 512));
        let pace = Pace::measure(&small, &Device::Cpu, u64::MAX).unwrap().unwrap();
        assert!(pace.seconds_per_step > 0.0 && pace.tokens_per_second.is_finite());
        assert_eq!(pace.seconds, pace.seconds_per_step * plan.steps as f64);
        let large = Shapes { plan, student: shape(2048), teacher: None };
        let reduced = smaller(&large);
        assert!((reduced.data.rows, reduced.data.context) < (8, 512), "{reduced:?}");
        assert_eq!(Pace::measure(&small, &Device::Cpu, 1000).unwrap(), None, "memory");
    }
}
