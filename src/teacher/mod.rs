//! Who teaches: a frozen model that runs beside the student.
//!
//! The trunk must see every position, since a kept position attends to dropped ones; the head runs where its output is
//! read: on every row when the score reads it, else on the kept rows only ([`Logits::select`] of the signal). What the loss
//! is formed from is a [`Signal`]: those logits, or their largest entries, or a sample.

pub mod signal;

pub use signal::{Signal, SignalKind};

use crate::error::{Error, Result};
use crate::model::{Gpt2, Gpt2Config};
use crate::ops::head::Logits;
use crate::ops::matmul::Precision;

/// A teacher that computes its signal live. It keeps no tape and no gradients.
#[derive(Debug, Clone)]
pub struct Teacher {
    model: Gpt2,
}

impl Teacher {
    /// Checks that student and data speak the teacher's vocabulary.
    pub fn new(model: Gpt2, student: &Gpt2Config) -> Result<Self> {
        if model.config.vocab_size != student.vocab_size {
            return Err(Error::usage(format!(
                "teacher and student must share one tokenizer and vocabulary: the teacher has {} entries, the student \
                 {}; choose a student of the teacher's family or prepare the data with the teacher's tokenizer",
                model.config.vocab_size, student.vocab_size
            )));
        }
        Ok(Self { model })
    }

    /// The same teacher at another precision.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { model: Gpt2 { precision, ..self.model } }
    }

    /// Shape and weights.
    pub fn model(&self) -> &Gpt2 {
        &self.model
    }

    /// The dense signal over `inputs` [B, T]: logits of every row, formed when read. With `keep` the first reading
    /// stores them.
    pub fn signal(&self, inputs: &[u32], context: usize, keep: bool) -> Result<Logits> {
        let hidden = self.model.forward(inputs, context)?;
        Ok(self.model.logits(hidden, keep))
    }
}
