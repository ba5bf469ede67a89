//! AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019), in place, and
//! the gradient norm.
//!
//! With gradient g (already multiplied by the caller's scale), at update t = 1, 2, ...:
//!
//! ```text
//! p <- p (1 - lr wd)                          matrices and embeddings only
//! m <- m + (1 - beta1) (g - m)                v <- beta2 v + (1 - beta2) g^2
//! p <- p - lr/(1 - beta1^t) * m / (sqrt(v)/sqrt(1 - beta2^t) + eps)
//! ```
//!
//! which is PyTorch's `torch.optim.AdamW`. The same pass zeroes the gradient, ready for the next
//! accumulation. Every CPU result is a pure function of its inputs: chunks are fixed, so the thread
//! count cannot change a bit.

mod cpu;
mod cuda;

use super::held::{Held, cut, elements};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Layout, ParamSet, ParamSpec};
use crate::ops::{Backend, buffer};
use candle_core::{DType, Device, Tensor};
use std::ops::Range;

/// Elements whose squares are one partial sum of the norm; processes divide parameters at multiples of
/// it, so that the sums are the same whoever forms them.
pub(super) const SQUARES: usize = 1 << 16;

/// The constants of the update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate; where [`crate::model::ParamKind::decays`]
    /// says so.
    pub weight_decay: f64,
}

/// What the optimizer remembers between updates.
#[derive(Debug, Clone)]
pub struct State {
    /// Updates done so far; the next one is number `step + 1` in the bias corrections.
    pub step: u64,
    /// First moments, f32.
    pub m: ParamSet,
    /// Second moments, f32.
    pub v: ParamSet,
    /// The elements that these are moments of. A parameter of which only some are held has moments of
    /// one dimension, in the order of places.
    pub held: Held,
}

impl State {
    /// No update yet: zero moments on `device`.
    pub fn new(layout: &Layout, device: &Device) -> Result<Self> {
        Self::of(Held::all(layout), layout, device)
    }

    /// The same of these elements alone.
    pub(super) fn of(held: Held, layout: &Layout, device: &Device) -> Result<Self> {
        let zeros = || {
            let one = |(spec, places): (&ParamSpec, &[Range<usize>])| match elements(places) {
                all if all == spec.elements() => {
                    Tensor::zeros(spec.shape.as_slice(), DType::F32, device)
                }
                some => Tensor::zeros(some, DType::F32, device),
            };
            let tensors = layout.entries().iter().zip(held.by_parameter()).map(one);
            Ok::<_, Error>(ParamSet::new(
                layout.clone(),
                tensors.collect::<candle_core::Result<_>>()?,
            ))
        };
        Ok(Self { step: 0, m: zeros()?, v: zeros()?, held: held.clone() })
    }

    /// Moments of every element, after so many updates.
    pub fn whole(step: u64, m: ParamSet, v: ParamSet) -> Self {
        let held = Held::all(m.layout());
        Self { step, m, v, held }
    }
}

/// The scalars of one update, bias corrections included; computed in f64, once.
#[derive(Debug, Clone, Copy)]
struct Scalars {
    /// Multiplies the gradient.
    scale: f64,
    /// Multiplies the parameter: 1 - lr wd, or 1.
    keep: f64,
    beta1: f64,
    beta2: f64,
    /// 1 / sqrt(1 - beta2^t).
    root_correction: f64,
    /// lr / (1 - beta1^t).
    rate: f64,
    eps: f64,
}

impl AdamW {
    /// One update of every parameter, in place, from gradients multiplied by `scale` (clipping over
    /// the kept count: min(1, clip/norm)/kept). Moments move in place, gradients are left at zero.
    /// `lr` is this update's rate.
    ///
    /// The caller has checked the gradients with [`global_norm`]; this function trusts them. Elements
    /// that the state does not hold are another process's (`Shards`), and stay as they are here.
    pub fn update(
        &self,
        params: &ParamSet,
        grads: &ParamSet,
        state: &mut State,
        lr: f64,
        scale: f32,
    ) -> Result<()> {
        let layout = params.layout();
        if [grads, &state.m, &state.v].iter().any(|set| set.layout() != layout) {
            return Err(Error::internal(
                "AdamW: gradients and moments must have the layout of the parameters",
            ));
        }
        if !(lr.is_finite() && scale.is_finite()) {
            return Err(Error::new(
                ErrorKind::NonFinite,
                format!(
                    "AdamW: learning rate {lr} and gradient scale {scale} must be finite; no parameter was changed"
                ),
            ));
        }
        let step = state.step + 1;
        for (i, held) in state.held.by_parameter().enumerate() {
            let (spec, p) = (&layout.entries()[i], &params.tensors()[i]);
            let (g, m, v) = (&grads.tensors()[i], &state.m.tensors()[i], &state.v.tensors()[i]);
            let scalars = self.scalars(step, lr, f64::from(scale), spec.kind.decays());
            let floats = [p, g, m, v].iter().all(|t| t.dtype() == DType::F32);
            let on = if floats { Backend::of(p) } else { Backend::Reference };
            if on == Backend::Cpu {
                // Four different tensors, so four locks that cannot wait for each other. `??`: a
                // closure's own result travels inside the outer one.
                buffer::with_mut(p, |p| {
                    buffer::with_mut(g, |g| {
                        buffer::with_mut(m, |m| {
                            buffer::with_mut(v, |v| cpu::update(p, g, m, v, held, &scalars))
                        })
                    })
                })????;
            } else {
                let mut begin = 0;
                for place in held {
                    let part = |x: &Tensor, begin| match place.len() == x.elem_count() {
                        true => Ok(x.clone()),
                        false => x.flatten_all()?.narrow(0, begin, place.len()),
                    };
                    let (p, g) = (part(p, place.start)?, part(g, place.start)?);
                    let (m, v) = (part(m, begin)?, part(v, begin)?);
                    match on {
                        Backend::Gpu => cuda::update(&p, &g, &m, &v, &scalars)?,
                        _ => reference(&p, &g, &m, &v, &scalars)?,
                    }
                    begin += place.len();
                }
            }
            if elements(held) < spec.elements() {
                g.zero_set()?;
            }
        }
        state.step = step;
        Ok(())
    }

    fn scalars(&self, step: u64, lr: f64, scale: f64, decays: bool) -> Scalars {
        let t = step as f64;
        Scalars {
            scale,
            keep: if decays { 1.0 - lr * self.weight_decay } else { 1.0 },
            beta1: self.beta1,
            beta2: self.beta2,
            root_correction: 1.0 / (1.0 - self.beta2.powf(t)).sqrt(),
            rate: lr / (1.0 - self.beta1.powf(t)),
            eps: self.eps,
        }
    }
}

/// The same update in tensor operations, for any device and float type: the oracle of the CPU
/// kernel, and what runs on devices that have no kernel.
fn reference(
    p: &Tensor,
    g: &Tensor,
    m: &Tensor,
    v: &Tensor,
    s: &Scalars,
) -> candle_core::Result<()> {
    let scaled = (g.to_dtype(m.dtype())? * s.scale)?;
    let new_m = (m + ((&scaled - m)? * (1.0 - s.beta1))?)?;
    let new_v = ((v * s.beta2)? + (scaled.sqr()? * (1.0 - s.beta2))?)?;
    let denominator = ((new_v.sqrt()? * s.root_correction)? + s.eps)?;
    let move_by = ((&new_m / denominator)? * s.rate)?.to_dtype(p.dtype())?;
    let new_p = ((p * s.keep)? - move_by)?;
    p.slice_set(&new_p, 0, 0)?;
    m.slice_set(&new_m, 0, 0)?;
    v.slice_set(&new_v, 0, 0)?;
    g.zero_set()
}

/// Euclidean norm over all gradients, accumulated in f64.
///
/// Errs with [`ErrorKind::NonFinite`] and the name of the first tensor that holds a NaN or an
/// infinity: a finite loss does not promise finite gradients. On the CPU the result has the same
/// bits for any number of threads.
pub fn global_norm(grads: &ParamSet) -> Result<f64> {
    norm_of(grads.layout(), &squares(grads, &Held::all(grads.layout()))?)
}

/// Sums of squares of the gradients' elements that are `held`, in f64: of each parameter one for every
/// piece of [`SQUARES`] elements.
pub(super) fn squares(grads: &ParamSet, held: &Held) -> Result<Vec<Vec<f64>>> {
    let counted = || grads.tensors().iter().zip(held.by_parameter());
    if counted().all(|(g, _)| Backend::of(g) == Backend::Gpu && g.dtype() == DType::F32) {
        return cuda::squares(counted());
    }
    counted().map(|(g, places)| squares_of(g, places)).collect()
}

/// The norm of gradients of which these are all sums of squares, by parameter of the layout and in
/// the order of its elements.
pub(super) fn norm_of(layout: &Layout, squares: &[Vec<f64>]) -> Result<f64> {
    let mut total = 0.0;
    for (spec, squares) in layout.entries().iter().zip(squares) {
        let squares: f64 = squares.iter().sum();
        // The square of a finite f32 is at most 1.2e77, so in f64 only a non-finite element makes
        // the sum non-finite.
        if !squares.is_finite() {
            return Err(Error::new(
                ErrorKind::NonFinite,
                format!(
                    "the gradient of {} is not finite; no parameter was changed. A lower learning rate, a longer \
                     warm-up or a higher temperature usually helps",
                    spec.name
                ),
            ));
        }
        total += squares;
    }
    Ok(total.sqrt())
}

fn squares_of(g: &Tensor, places: &[Range<usize>]) -> Result<Vec<f64>> {
    if Backend::of(g) == Backend::Cpu {
        return Ok(cpu::squares(&buffer::read(g)?, places));
    }
    let all = g.flatten_all()?;
    let one = |place: Range<usize>| {
        let part = all.narrow(0, place.start, place.len())?.to_dtype(DType::F64)?;
        Ok(part.sqr()?.sum_all()?.to_scalar::<f64>()?)
    };
    cut(places, SQUARES).map(one).collect()
}

#[cfg(test)]
mod tests;
