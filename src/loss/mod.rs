//! What a token costs: cross-entropy and a divergence to the teacher, mixed.
//!
//! Cross-entropy and forward KL have loops of their own in [`crate::loss::head`]; every other
//! divergence goes through [`divergence`].

pub mod divergence;
pub mod head;
pub mod signal;

pub use divergence::Divergence;
pub use signal::{DrawnId, Said, Sampled, Signal, SignalKind, TopK};

/// The per-token objective `(1 - lambda) nll + lambda tau² D(q^tau, p^tau)`: q the teacher's, p the
/// student's distribution (with forward KL that of Hinton et al., arXiv 1503.02531).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Objective {
    /// Weight of the distillation term, in [0, 1]; 0 without a teacher.
    pub lambda: f32,
    /// Temperature tau > 0.
    pub temperature: f32,
    /// D.
    pub divergence: Divergence,
}
