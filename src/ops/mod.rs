//! The operations of the model and its training: one folder per op, one file per device.
//!
//! Every op has a short, slow `reference` on candle tensors (any device, any float type): the
//! oracle of its tests and the path taken where there are no kernels. The fast path on the CPU
//! works on f32 slices in `cpu.rs`, that on a GPU on f32 and bf16 tensors in `cuda.rs` and the
//! `.cu` beside it. A result never depends on the number of threads: work is split into pieces of
//! fixed size and partial sums are added in order.

pub mod activation;
pub mod attention;
#[doc(hidden)]
pub mod buffer;
pub mod embed;
pub mod gelu;
#[doc(hidden)]
pub mod gpu;
pub mod layer_norm;
pub mod matmul;
pub(crate) mod peak;
pub mod rotary;
pub(crate) mod simd;
#[cfg(test)]
pub(crate) mod testing;

use candle_core::{DType, Tensor};

/// Which code works on a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// The f32 kernels for the CPU.
    Cpu,
    /// The kernels for a GPU.
    Gpu,
    /// Candle's own operations: everything else.
    Reference,
}

impl Backend {
    pub(crate) fn of(x: &Tensor) -> Self {
        let on_gpu = x.device().is_cuda() || gpu::emulated();
        match x.dtype() {
            DType::F32 | DType::BF16 if on_gpu => Self::Gpu,
            DType::F32 if x.device().is_cpu() => Self::Cpu,
            _ => Self::Reference,
        }
    }
}
