//! Initialisation of a student: from scratch or from a teacher's layers.

use super::parts::Positions;
use super::{Gpt2, Gpt2Config, Layout, ParamKind, ParamSet};
use crate::error::{Error, Result};
use crate::rng::{Rng, Stream};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

impl Gpt2Config {
    /// The shape of a student with these blocks of a teacher of this shape.
    pub fn of_layers(&self, layers: &[usize]) -> Result<Self> {
        if layers.is_empty() || layers.iter().any(|&l| l >= self.n_layer) {
            return Err(Error::usage(format!(
                "layers must name at least one of the teacher's blocks 0 to {}, found {layers:?}",
                self.n_layer - 1
            )));
        }
        let mut shape = Self { n_layer: layers.len(), ..self.clone() };
        if let Some(window) = &mut shape.parts.window {
            window.blocks = window.blocks.of_layers(layers);
        }
        if let Positions::Rotary(rotary) = &mut shape.parts.positions {
            rotary.without = rotary.without.of_layers(layers);
        }
        Ok(shape)
    }
}

impl Gpt2 {
    /// The family's initialisation: weights and embeddings normal with `initializer_range`,
    /// projections back into the residual stream as [`Gpt2Config::residual_range`], biases 0, norms
    /// 1 and 0. A pure function of shape and seed.
    pub fn scratch(config: Gpt2Config, seed: u64, device: &Device) -> Result<Self> {
        config.validate()?;
        let layout = Layout::new(&config);
        let rng = Rng::new(seed, Stream::Init);
        let residual = config.residual_range();
        let tensors = layout.entries().iter().enumerate().map(|(i, spec)| {
            let count = spec.elements();
            let normal = |std: f64| -> Vec<f32> {
                (0..count)
                    .into_par_iter()
                    .map(|j| (std * rng.normal(i as u32, j as u64)) as f32)
                    .collect()
            };
            let data = match spec.kind {
                ParamKind::Bias => vec![0.0; count],
                ParamKind::Norm => vec![1.0; count],
                ParamKind::ResidualMatrix => normal(residual),
                ParamKind::Embedding
                | ParamKind::Head
                | ParamKind::Position
                | ParamKind::Matrix => normal(config.initializer_range),
            };
            Ok(Tensor::from_vec(data, spec.shape.as_slice(), device)?)
        });
        let params = ParamSet::new(layout.clone(), tensors.collect::<Result<_>>()?);
        Ok(Self::new(config, params))
    }

    /// A student with the teacher's embeddings, final norm and the given blocks, in that order (as
    /// DistilGPT-2 was initialised; Sanh et al., arXiv 1910.01108). Everything is copied.
    pub fn from_layers(teacher: &Self, layers: &[usize]) -> Result<Self> {
        let config = teacher.config.of_layers(layers)?;
        let layout = Layout::new(&config);
        let find = |name: &str| {
            let source = match name.strip_prefix("h.").and_then(|rest| rest.split_once('.')) {
                Some((l, part)) => format!("h.{}.{part}", layers[l.parse::<usize>().unwrap_or(0)]),
                None => name.to_string(),
            };
            let found = teacher.params.named().find(|(n, _)| *n == source);
            found.ok_or_else(|| Error::internal(format!("the teacher lacks {source}")))
        };
        let tensors = layout
            .entries()
            .iter()
            .map(|spec| Ok(find(&spec.name)?.1.copy()?))
            .collect::<Result<_>>()?;
        Ok(Self {
            precision: teacher.precision,
            ..Self::new(config, ParamSet::new(layout, tensors))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(t: &Tensor) -> f64 {
        let x = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
    }

    #[test]
    fn scratch_has_gpt2s_spread_and_is_seeded() {
        let config = Gpt2Config::new(300, 64, 48, 8, 4);
        let a = Gpt2::scratch(config.clone(), 1, &Device::Cpu).unwrap();
        assert!((spread(a.params.wte()) - 0.02).abs() < 5e-4);
        assert!((spread(a.params.block(3).proj_w) - 0.02 / 4.0).abs() < 2e-4);
        assert_eq!(spread(a.params.block(0).attn_b.unwrap()), 0.0);
        assert_eq!(spread(a.params.ln_f_w()), 1.0);
        let again = Gpt2::scratch(config.clone(), 1, &Device::Cpu).unwrap();
        let other = Gpt2::scratch(config, 2, &Device::Cpu).unwrap();
        let flat = |m: &Gpt2| m.params.wte().to_vec2::<f32>().unwrap();
        assert!(flat(&a) == flat(&again) && flat(&a) != flat(&other));
    }

    #[test]
    fn layers_are_taken_in_order_and_copied() {
        let teacher = Gpt2::scratch(Gpt2Config::new(30, 8, 12, 4, 2), 1, &Device::Cpu).unwrap();
        let student = Gpt2::from_layers(&teacher, &[3, 1]).unwrap();
        assert_eq!(student.config.n_layer, 2);
        let flat = |t: &Tensor| t.to_vec2::<f32>().unwrap();
        assert_eq!(flat(student.params.block(0).fc_w), flat(teacher.params.block(3).fc_w));
        assert_eq!(flat(student.params.block(1).fc_w), flat(teacher.params.block(1).fc_w));
        crate::ops::buffer::with_mut(student.params.wte(), |w| w[0] = 9.0).unwrap();
        assert_ne!(flat(student.params.wte()), flat(teacher.params.wte()));
        assert!(Gpt2::from_layers(&teacher, &[4]).unwrap_err().to_string().contains("0 to 3"));
        assert!(Gpt2::from_layers(&teacher, &[]).is_err());
    }
}
