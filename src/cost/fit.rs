//! Whether a plan and the shapes of its models belong together.

use super::{MemoryByPart, micro_rows, settle};
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::model::Gpt2Config;
use crate::report::text;
use crate::select::kept_of;

/// Whether student, teacher and plan fit each other: context, vocabulary, layers.
pub fn check_fit(student: &Gpt2Config, teacher: Option<&Gpt2Config>, plan: &Plan) -> Result<()> {
    student.validate()?;
    if let Some(teacher) = teacher {
        teacher.validate()?;
    }
    let context = plan.data.context;
    let mut longest = vec![("student", &plan.student, student)];
    if let (Some(shape), Some(name)) = (teacher, &plan.teacher) {
        longest.push(("teacher", name, shape));
    }
    for (who, name, shape) in longest {
        if context > shape.n_positions {
            return Err(Error::usage(format!(
                "data.context = {context} is longer than the {} positions of the {who} {name}; \
                 lower it with --set data.context={}",
                shape.n_positions, shape.n_positions
            )));
        }
    }
    check_work(student, teacher, plan)?;
    check_groups(&settle(student, plan))?;
    if plan.selects() && plan.select.alpha_seq > 0.0 {
        let select = &plan.select;
        if select.exit_layer >= student.n_layer {
            return Err(Error::usage(format!(
                "select.exit_layer = {} leaves no block to save: expected less than the {} blocks of the student {}",
                select.exit_layer, student.n_layer, plan.student
            )));
        }
        let micro = micro_rows(&settle(student, plan));
        if kept_of(select.alpha_seq, micro) == micro {
            return Err(Error::usage(format!(
                "select.alpha_seq = {} drops none of the {micro} sequences of a micro-batch; raise it, or \
                 machine.micro_rows",
                select.alpha_seq
            )));
        }
    }
    let Some(teacher) = teacher else { return Ok(()) };
    if teacher.vocab_size != student.vocab_size {
        return Err(Error::usage(format!(
            "teacher and student must share a vocabulary: the teacher has {} tokens, the student {}",
            teacher.vocab_size, student.vocab_size
        )));
    }
    if let Some(layer) = plan.layers.iter().flatten().find(|l| **l >= teacher.n_layer) {
        return Err(Error::usage(format!(
            "layers names the teacher's layer {layer}, but the teacher has layers 0 to {}",
            teacher.n_layer - 1
        )));
    }
    Ok(())
}

/// Errs where the sequences of a settled plan's step cannot be divided into its groups.
fn check_groups(plan: &Plan) -> Result<()> {
    let (rows, groups, micro) = (plan.data.rows, plan.groups(1), micro_rows(plan));
    if !rows.is_multiple_of(groups) {
        return Err(Error::usage(format!(
            "data.rows = {rows} cannot be divided into {groups} groups of equal size, and each process has at least one \
             (machine.groups); set data.rows to a multiple of {groups}, such as {}",
            rows.next_multiple_of(groups)
        )));
    }
    if !(rows / groups).is_multiple_of(micro) {
        return Err(Error::usage(format!(
            "the {micro} sequences of a micro-batch compete with each other (machine.micro_rows), and a group of the step has {} \
             (data.rows = {rows}, {groups} groups); lower machine.micro_rows, or raise data.rows",
            rows / groups
        )));
    }
    Ok(())
}

/// Operations of a step that no machine makes. Counts of them are u64, and do not wrap below.
const MOST_WORK: f64 = 1e18;

/// Errs where a step takes more operations than can be counted.
fn check_work(student: &Gpt2Config, teacher: Option<&Gpt2Config>, plan: &Plan) -> Result<()> {
    let context = plan.data.context;
    let tokens = plan.data.rows as f64 * context as f64;
    // Forward and backward of the weights, and of attention.
    let work = |shape: &Gpt2Config| {
        let attention = 2.0 * shape.n_layer as f64 * context as f64 * shape.inner() as f64;
        6.0 * tokens * (shape.parameters() as f64 + attention)
    };
    let all: f64 = [Some(student), teacher].into_iter().flatten().map(work).sum();
    if all <= MOST_WORK {
        return Ok(());
    }
    Err(Error::usage(format!(
        "a step of the student {} ({}) on data.rows = {} x data.context = {context} tokens takes {}, more than the 1 EFLOP that any \
         machine makes; choose a smaller student, or fewer rows",
        plan.student,
        text::amount(student.parameters() as u64, "parameters"),
        text::count(plan.data.rows as u64),
        text::flops(all as u128)
    )))
}

/// Errs where a run takes more memory than the `total` bytes that its machine has: names what takes
/// most of it.
pub fn check_memory(needed: &MemoryByPart, total: u64, plan: &Plan) -> Result<()> {
    if needed.total() <= total {
        return Ok(());
    }
    let MemoryByPart { weights, gradients, moments, activations, logits, .. } = *needed;
    let parts = [
        (weights + gradients + moments, "the student's weights", "choose a smaller student"),
        (
            activations + logits + needed.scratch,
            "what a micro-batch leaves for its backward pass",
            "lower data.context",
        ),
        (
            needed.teacher,
            "the teacher",
            "choose a smaller teacher, or read its signal from the disk (`eslm-kd signal write`)",
        ),
        (needed.batch, "the tokens of a step", "lower data.rows"),
    ];
    let Some((bytes, what, remedy)) = parts.into_iter().max_by_key(|part| part.0) else {
        return Ok(());
    };
    Err(Error::usage(format!(
        "the run takes {} of memory, {} of it for {what}, and this machine has {}; {remedy} (data.rows = {}, data.context = {}, \
         student {})",
        text::bytes(needed.total()),
        text::bytes(bytes),
        text::bytes(total),
        text::count(plan.data.rows as u64),
        text::count(plan.data.context as u64),
        plan.student
    )))
}
