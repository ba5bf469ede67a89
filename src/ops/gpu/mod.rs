//! What the `cuda.rs` of every op shares: memory of tensors as addresses, launches, and matrix
//! products.
//!
//! An op's kernels stand in its `.cu` and its launches in its `cuda.rs`, which is compiled on every
//! machine and knows nothing of CUDA's own types. Two things carry a launch out: a GPU
//! (`device.rs`, feature `cuda`), and in tests an emulator that runs the same kernels from the same
//! launches on the host, on tensors of the CPU (`emulator.rs`).

// Without a GPU and outside the tests nothing is launched, so what a launch says is never read.
#![cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]

#[cfg(feature = "cuda")]
mod device;
#[cfg(test)]
pub(crate) mod emulator;

use super::matmul::Precision;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};

/// Sets a fresh GPU up for training, where `device` is one: one stream, so that candle need not
/// track uses by events; and memory that was freed stays with the process, since the driver would
/// otherwise take it back at every wait.
pub fn prepare(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return device::prepare(cuda);
    }
    let _ = device;
    Ok(())
}

/// GPUs that this build and this machine have.
pub fn count() -> usize {
    #[cfg(feature = "cuda")]
    return device::count();
    #[cfg(not(feature = "cuda"))]
    0
}

/// A GPU's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Not taken by anybody.
    pub free: u64,
    /// The most that this process's tensors have taken so far.
    pub peak: u64,
}

/// Of `device`, where it is a GPU.
pub fn memory(device: &Device) -> Result<Option<DeviceMemory>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return device::memory(cuda).map(Some);
    }
    let _ = device;
    Ok(None)
}

/// Whether this thread's tensors of the CPU are to be treated as a GPU's.
pub(crate) fn emulated() -> bool {
    #[cfg(test)]
    return emulator::active();
    #[cfg(not(test))]
    false
}

/// The source file a kernel comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Module {
    Activation,
    AdamW,
    Attention,
    Embed,
    Gelu,
    Head,
    LayerNorm,
    Matmul,
    Rotary,
    Travel,
}

impl Module {
    /// Where it lies under `src`, without `.cu`.
    pub(crate) const fn source(self) -> &'static str {
        match self {
            Self::Activation => "ops/activation/activation",
            Self::AdamW => "optim/adamw/adamw",
            Self::Attention => "ops/attention/attention",
            Self::Embed => "ops/embed/embed",
            Self::Gelu => "ops/gelu/gelu",
            Self::Head => "loss/head/head",
            Self::LayerNorm => "ops/layer_norm/layer_norm",
            Self::Matmul => "ops/matmul/matmul",
            Self::Rotary => "ops/rotary/rotary",
            Self::Travel => "optim/travel",
        }
    }
}

/// An address in the device's memory, as kernels take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Address(u64);

impl Address {
    /// Of nothing: an argument that a kernel is told not to read.
    pub(crate) const NULL: Self = Self(0);

    /// As a number.
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    /// Whether it is a multiple of `bytes`.
    pub(crate) const fn is_multiple_of(self, bytes: u64) -> bool {
        self.0.is_multiple_of(bytes)
    }
}

/// Where the first element of `x` lies. The tensor must outlive the launch; its memory is freed in
/// the stream's order.
pub(crate) fn address(x: &Tensor) -> Result<Address> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return device::address(x);
    }
    #[cfg(test)]
    if emulated() {
        return emulator::address(x);
    }
    Err(Error::internal(format!(
        "expected a tensor on a GPU, found one of shape {:?} on {:?}",
        x.shape(),
        x.device()
    )))
}

/// As [`address`], of a tensor whose elements lie one after the other.
pub(crate) fn contiguous(x: &Tensor) -> Result<Address> {
    if !x.is_contiguous() {
        return Err(Error::internal(format!(
            "expected a contiguous tensor, found strides {:?}",
            x.stride()
        )));
    }
    address(x)
}

/// As [`contiguous`], of a tensor of f32.
pub(crate) fn floats(x: &Tensor) -> Result<Address> {
    if x.dtype() != DType::F32 {
        return Err(Error::internal(format!("expected a tensor of f32, found {:?}", x.dtype())));
    }
    contiguous(x)
}

/// A tensor of unknown content on the device of `like`; every element must be written before it is
/// read.
pub(crate) fn uninitialised(
    shape: impl Into<Shape>,
    dtype: DType,
    like: &Tensor,
) -> Result<Tensor> {
    let shape = shape.into();
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = like.device() {
        return device::uninitialised(shape, dtype, cuda);
    }
    #[cfg(test)]
    if emulated() {
        return emulator::junk(shape, dtype);
    }
    Ok(Tensor::zeros(shape, dtype, like.device())?)
}

/// Copies `data` to the device of `like`.
pub(crate) fn upload<T: candle_core::WithDType>(data: &[T], like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_slice(data, data.len(), like.device())?)
}

/// Bytes of shared memory that a block on the device of `like` may have.
pub(crate) fn most_shared(like: &Tensor) -> Result<usize> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = like.device() {
        return device::most_shared(cuda);
    }
    let _ = like;
    Ok(if emulated() { usize::MAX } else { 0 })
}

/// A launch's shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: u32,
}

impl Grid {
    /// `blocks` blocks of `threads` threads.
    pub(crate) fn of(blocks: usize, threads: u32) -> Self {
        Self { blocks: [blocks as u32, 1, 1], threads, shared: 0 }
    }

    pub(crate) fn by(self, rows: usize) -> Self {
        Self { blocks: [self.blocks[0], rows as u32, 1], ..self }
    }

    pub(crate) fn shared(self, bytes: usize) -> Self {
        Self { shared: bytes as u32, ..self }
    }
}

/// Runs a kernel on the device of `on`. `args` is the twin, with #[repr(C)], of the struct that the
/// kernel takes, and its addresses are of live memory of the sizes that it says.
pub(crate) fn launch<A: Copy>(
    on: &Tensor,
    module: Module,
    kernel: &str,
    grid: Grid,
    args: A,
) -> Result<()> {
    if grid.blocks.contains(&0) {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = on.device() {
        return device::launch(cuda, module, kernel, grid, args);
    }
    #[cfg(test)]
    if emulated() {
        return emulator::launch(module, kernel, grid, &args);
    }
    let _ = (module, args);
    Err(Error::internal(format!("kernel {kernel} was asked for on {:?}", on.device())))
}

/// The name of a kernel's variant for a number format.
pub(crate) fn variant(kernel: &str, dtype: DType) -> Result<String> {
    match dtype {
        DType::F32 => Ok(format!("{kernel}_f32")),
        DType::BF16 => Ok(format!("{kernel}_bf16")),
        other => Err(Error::internal(format!("no kernel {kernel} for {other:?}"))),
    }
}

/// A matrix in the device's memory; element (i, j) lies at `i * stride + j`, or at `j * stride + i`
/// if transposed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    pub(crate) address: Address,
    pub(crate) dtype: DType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
    pub(crate) transposed: bool,
}

impl Matrix {
    /// A view whose elements are neighbours in one of its two directions.
    pub(crate) fn new(x: &Tensor) -> Result<Self> {
        let (rows, cols) = x.dims2()?;
        let [down, right] = [x.stride()[0], x.stride()[1]];
        let (transposed, stride) = match (down, right) {
            // A single row or column may carry any stride.
            (_, 1) if rows <= 1 => (false, cols.max(1)),
            (1, _) if cols <= 1 => (true, rows.max(1)),
            (down, 1) => (false, down),
            (1, right) => (true, right),
            _ => {
                return Err(Error::internal(format!(
                    "a product needs a matrix, found strides {:?}",
                    x.stride()
                )));
            }
        };
        Ok(Self { address: address(x)?, dtype: x.dtype(), rows, cols, stride, transposed })
    }
}

/// `dst = a · b`, plus the old `dst` if `add`. Both factors have one number format; sums are f32,
/// `dst` is f32 or bf16.
pub(crate) fn gemm(dst: &Tensor, a: &Tensor, b: &Tensor, add: bool) -> Result<()> {
    let (c, ma, mb) = (Matrix::new(dst)?, Matrix::new(a)?, Matrix::new(b)?);
    if ma.cols != mb.rows
        || c.rows != ma.rows
        || c.cols != mb.cols
        || c.transposed
        || ma.dtype != mb.dtype
    {
        return Err(Error::internal(format!("product of {a:?} and {b:?} into {dst:?}")));
    }
    if c.rows == 0 || c.cols == 0 {
        return Ok(());
    }
    if ma.cols == 0 {
        return if add { Ok(()) } else { Ok(dst.zero_set()?) };
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = dst.device() {
        return device::gemm(cuda, c, ma, mb, add);
    }
    #[cfg(test)]
    if emulated() {
        return emulator::gemm(c, ma, mb, add);
    }
    Err(Error::internal(format!("a product was asked for on {:?}", dst.device())))
}

/// `x` as a factor of a product at `precision`: rounded to bf16 where that is asked for, f32
/// elsewhere.
pub(crate) fn factor(x: &Tensor, precision: Precision) -> Result<Tensor> {
    if x.dtype() == precision.activations() {
        return Ok(x.clone());
    }
    if precision != Precision::Mixed {
        return Ok(x.to_dtype(DType::F32)?);
    }
    let m = Matrix::new(x)?;
    let (rows, cols) = if m.transposed { (m.cols, m.rows) } else { (m.rows, m.cols) };
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Args {
        out: Address,
        x: Address,
        rows: u32,
        cols: u32,
        stride: u64,
    }
    const THREADS: u32 = 256;
    let out = uninitialised((rows, cols), precision.activations(), x)?;
    let args = Args {
        out: address(&out)?,
        x: m.address,
        rows: rows as u32,
        cols: cols as u32,
        stride: m.stride as u64,
    };
    let grid = Grid::of(rows, THREADS);
    launch(x, Module::Matmul, "round_to_bf16", grid, args)?;
    if m.transposed { Ok(out.t()?) } else { Ok(out) }
}
