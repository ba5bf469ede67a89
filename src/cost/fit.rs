//! Whether a plan and the shapes of its models belong together.

use super::{micro_rows, settle};
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::model::Gpt2Config;
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
    // Counts below are u64: refuse what no machine could run before it can wrap around.
    let work =
        [Some(student), teacher].into_iter().flatten().map(|s| s.parameters() as f64).sum::<f64>();
    if work * plan.tokens_per_step() as f64 * (1.0 + context as f64) > 1e18 {
        return Err(Error::usage(format!(
            "data.rows = {} x data.context = {context} tokens per step are more than any machine can train on",
            plan.data.rows
        )));
    }
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
