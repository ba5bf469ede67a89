//! Who teaches: a frozen model that runs beside the student.
//!
//! The trunk must see every position, since a kept position attends to dropped ones; the head runs
//! where its output is read: on every row when the score reads it, else on the kept rows only
//! ([`Logits::select`] of the signal). What the loss is formed from is a [`crate::loss::Signal`]:
//! those logits, or their largest entries, or a sample.

use crate::config::Dtype;
use crate::error::{Error, Result};
use crate::loss::head::Logits;
use crate::model::{Gpt2, Gpt2Config};
use crate::ops::matmul::Precision;
use candle_core::DType;

/// A teacher that computes its signal live. It keeps no tape and no gradients.
#[derive(Debug, Clone)]
pub struct Teacher {
    model: Gpt2,
}

impl Teacher {
    /// Its shape.
    pub fn config(&self) -> &Gpt2Config {
        &self.model.config
    }

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

    /// The same teacher at another precision, with the factors of its products stored in `stored`.
    pub fn working_at(self, precision: Precision, stored: Dtype) -> Result<Self> {
        let params = match stored {
            Dtype::F32 => self.model.params,
            Dtype::Bf16 => self.model.params.with_factors_in(DType::BF16)?,
        };
        Ok(Self { model: Gpt2 { precision, params, ..self.model } })
    }

    /// Shape and weights.
    pub fn model(&self) -> &Gpt2 {
        &self.model
    }

    /// The dense signal over `inputs` [B, T]: logits of every row, formed when read.
    pub fn signal(&self, inputs: &[u32], context: usize) -> Result<Logits> {
        let hidden = self.model.forward(inputs, context)?;
        Ok(self.model.logits(hidden))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::Signal;
    use crate::loss::head::{Objective, PassInput, Weigh, fused, scan};
    use crate::model::ParamSet;
    use crate::ops::testing::{assert_close, random};
    use candle_core::{Device, Tensor};

    #[test]
    fn a_teacher_stored_in_bf16_is_one_whose_factors_are_rounded() {
        let config = Gpt2Config { initializer_range: 0.3, ..Gpt2Config::new(61, 12, 24, 2, 3) };
        let model = Gpt2::scratch(config.clone(), 3, &Device::Cpu).unwrap();
        let stored = Teacher::new(model.clone(), &config)
            .unwrap()
            .working_at(Precision::F32, Dtype::Bf16)
            .unwrap();
        let params = &stored.model.params;
        let bf16: Vec<&str> = params
            .named()
            .filter(|(_, t)| t.dtype() == DType::BF16)
            .map(|(name, _)| name)
            .collect();
        let block = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"];
        let want = (0..2).flat_map(|l| block.map(|name| format!("h.{l}.{name}.weight")));
        assert_eq!(bf16, ["wte.weight".to_string()].into_iter().chain(want).collect::<Vec<_>>());

        let rounded = params.tensors().iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
        let rounded = Gpt2::new(config.clone(), ParamSet::new(params.layout().clone(), rounded));
        let rounded = Teacher::new(rounded, &config).unwrap();
        let (tokens, targets): (Vec<u32>, Vec<u32>) =
            ((0..20).map(|i| i * 7 % 61).collect(), (0..20).collect());
        let (hidden, weight) = (random((20, 24), 1), random((61, 24), 2));
        let run = |teacher: &Teacher| {
            let (student, signal) =
                (Logits::new(hidden.clone(), weight.clone()), teacher.signal(&tokens, 10).unwrap());
            let trunk = signal.hidden().clone();
            let objective = Objective {
                lambda: 0.5,
                temperature: 1.0,
                divergence: crate::loss::Divergence::ForwardKl,
            };
            let d_weight = weight.zeros_like().unwrap();
            let done = fused(
                PassInput {
                    student: &student,
                    signal: Some(&Signal::Dense(signal.clone())),
                    targets: &targets,
                    options: 1.0.into(),
                    objective,
                },
                Weigh::Known(&[1.0; 20]),
                &d_weight,
            )
            .unwrap();
            let stats = scan(&student, Some(&signal), &targets, 1.0).unwrap();
            let kl: Vec<f32> = stats.iter().map(|s| s.kl).collect();
            vec![trunk, Tensor::new(kl, &Device::Cpu).unwrap(), d_weight, done.d_hidden]
        };
        for (got, want) in run(&stored).iter().zip(&run(&rounded)) {
            assert_close(got, want, 1e-6);
        }
    }
}
