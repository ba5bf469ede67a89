//! Access to a tensor's memory on the CPU: the bridge between candle's storage and our kernels.

use crate::error::{Error, Result};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, InplaceOp2, Layout, MetalStorage};
use candle_core::{Storage, StorageRef, Tensor};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use std::cell::Cell;
use std::ops::{Deref, Range};

/// Read access to the whole storage behind an f32 CPU tensor, with where the tensor lies in it.
pub struct Read<'a> {
    guard: StorageRef<'a>,
    start: usize,
    len: usize,
}

impl Read<'_> {
    fn storage(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => data,
            _ => unreachable!("checked by the constructors"),
        }
    }
}

/// The elements of a contiguous tensor; for a strided view everything from its first element on.
impl Deref for Read<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.storage()[self.start..self.start + self.len]
    }
}

/// Read access to a contiguous f32 CPU tensor.
pub fn read(tensor: &Tensor) -> Result<Read<'_>> {
    let (guard, layout) = tensor.storage_and_layout();
    check(&guard, layout)?;
    if !layout.is_contiguous() {
        return Err(Error::internal(format!(
            "expected a contiguous tensor, found strides {:?}",
            layout.stride()
        )));
    }
    Ok(Read { guard, start: layout.start_offset(), len: layout.shape().elem_count() })
}

/// Read access to an f32 CPU tensor of any strides: the slice starts at the view's first element.
pub fn read_strided(tensor: &Tensor) -> Result<Read<'_>> {
    let (guard, layout) = tensor.storage_and_layout();
    let len = check(&guard, layout)?;
    let start = layout.start_offset();
    Ok(Read { guard, start, len: len - start })
}

/// A matrix's elements as they are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Elements<'a> {
    /// In full.
    F32(&'a [f32]),
    /// Rounded; a weight that is only read.
    Bf16(&'a [bf16]),
}

impl<'a> Elements<'a> {
    /// Their number.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
        }
    }

    /// Those of a range.
    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(data) => Self::F32(&data[range]),
            Self::Bf16(data) => Self::Bf16(&data[range]),
        }
    }

    /// Writes them to `out`, of the same length.
    pub(crate) fn write_to(self, out: &mut [f32]) {
        match self {
            Self::F32(data) => out.copy_from_slice(data),
            Self::Bf16(data) => data.convert_to_f32_slice(out),
        }
    }
}

/// Read access to an f32 or bf16 CPU tensor, as [`Read`].
pub(crate) struct ReadWeight<'a> {
    guard: StorageRef<'a>,
    range: Range<usize>,
}

impl ReadWeight<'_> {
    /// The elements of a contiguous tensor; for a strided view everything from its first element
    /// on.
    pub(crate) fn elements(&self) -> Elements<'_> {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => Elements::F32(&data[self.range.clone()]),
            Storage::Cpu(CpuStorage::BF16(data)) => Elements::Bf16(&data[self.range.clone()]),
            _ => unreachable!("checked by the constructor"),
        }
    }
}

/// Read access to an f32 or bf16 CPU tensor of any strides: the elements start at the view's first.
pub(crate) fn read_weight(tensor: &Tensor) -> Result<ReadWeight<'_>> {
    let (guard, layout) = tensor.storage_and_layout();
    let len = match &*guard {
        Storage::Cpu(CpuStorage::BF16(data)) => data.len(),
        other => check(other, layout)?,
    };
    Ok(ReadWeight { range: layout.start_offset()..len, guard })
}

fn check(guard: &Storage, layout: &Layout) -> Result<usize> {
    match guard {
        Storage::Cpu(CpuStorage::F32(data)) => Ok(data.len()),
        _ => Err(Error::internal(format!(
            "expected an f32 tensor on the CPU, found shape {:?}",
            layout.shape()
        ))),
    }
}

/// Runs `f` on the elements of a contiguous f32 CPU tensor, in place. The closure must not touch
/// `tensor` itself.
pub fn with_mut<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    if !tensor.is_contiguous() {
        return Err(Error::internal(format!(
            "expected a contiguous tensor, found strides {:?}",
            tensor.stride()
        )));
    }
    let count = tensor.elem_count();
    with_mut_strided(tensor, |data| f(&mut data[..count]))
}

/// Runs `f` on the storage of an f32 CPU tensor from the view's first element on, in place.
pub fn with_mut_strided<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let op = Edit { f: Cell::new(Some(f)), result: Cell::new(None) };
    tensor.inplace_op1(&op)?;
    op.result.into_inner().ok_or_else(|| Error::internal("an in-place kernel did not run"))
}

/// candle lends mutable storage to in-place ops only, so the closure travels as one.
struct Edit<F, R> {
    f: Cell<Option<F>>,
    result: Cell<Option<R>>,
}

impl<F: FnOnce(&mut [f32]) -> R, R> InplaceOp1 for Edit<F, R> {
    fn name(&self) -> &'static str {
        "eslm-edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(data) = storage else {
            candle_core::bail!("expected an f32 tensor on the CPU")
        };
        if let Some(f) = self.f.take() {
            self.result.set(Some(f(&mut data[layout.start_offset()..])));
        }
        Ok(())
    }
}

/// Overwrites `dst` with `src` on any device; `dst` is contiguous, or some columns of a matrix.
pub fn assign(dst: &Tensor, src: &Tensor) -> Result<()> {
    let src = src.contiguous()?;
    if dst.is_contiguous() {
        return Ok(dst.slice_set(&src, 0, 0)?);
    }
    if dst.dims() != src.dims() || dst.rank() != 2 || dst.stride()[1] != 1 {
        let (dims, stride, found) = (dst.dims(), dst.stride(), src.dims());
        return Err(Error::internal(format!(
            "cannot write {found:?} to a view of {dims:?} with strides {stride:?}"
        )));
    }
    Ok(dst.inplace_op2(&src, &CopyRows)?)
}

/// Copies a contiguous matrix into a view whose rows lie apart.
struct CopyRows;

impl CopyRows {
    fn copy<S: BackendStorage>(
        dst: &mut S,
        to: &Layout,
        src: &S,
        from: &Layout,
    ) -> candle_core::Result<()> {
        let (rows, columns) = to.shape().dims2()?;
        src.copy2d(
            dst,
            rows,
            columns,
            columns,
            to.stride()[0],
            from.start_offset(),
            to.start_offset(),
        )
    }
}

impl InplaceOp2 for CopyRows {
    fn name(&self) -> &'static str {
        "eslm-copy-rows"
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        to: &Layout,
        src: &CpuStorage,
        from: &Layout,
    ) -> candle_core::Result<()> {
        Self::copy(dst, to, src, from)
    }

    fn cuda_fwd(
        &self,
        dst: &mut CudaStorage,
        to: &Layout,
        src: &CudaStorage,
        from: &Layout,
    ) -> candle_core::Result<()> {
        Self::copy(dst, to, src, from)
    }

    fn metal_fwd(
        &self,
        dst: &mut MetalStorage,
        to: &Layout,
        src: &MetalStorage,
        from: &Layout,
    ) -> candle_core::Result<()> {
        Self::copy(dst, to, src, from)
    }
}

/// `dst += src` on any device, through a temporary: the slow path of accumulating kernels off the
/// CPU.
pub fn add_assign(dst: &Tensor, src: &Tensor) -> Result<()> {
    assign(dst, &(dst + src)?)
}

/// A pointer that parallel tasks may share because each writes its own elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(pub *mut f32);

// SAFETY: every use splits the elements among tasks without overlap; see the callers.
unsafe impl Send for SharedMut {}
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn get(self) -> *mut f32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn edits_land_in_the_tensor_and_in_its_views() {
        let t = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        with_mut(&t, |x| x[4] = 5.0).unwrap();
        with_mut_strided(&t.narrow(1, 2, 1).unwrap(), |x| x[3] = 7.0).unwrap();
        assert_eq!(t.to_vec2::<f32>().unwrap(), [[0.0, 0.0, 0.0], [0.0, 5.0, 7.0]]);
        assert_eq!(read(&t.narrow(0, 1, 1).unwrap()).unwrap()[1], 5.0);
        assert_eq!(read_strided(&t.narrow(1, 1, 1).unwrap()).unwrap()[3], 5.0);
        assert!(with_mut(&t.narrow(1, 0, 2).unwrap(), |_| ()).is_err());
    }

    #[test]
    fn add_assign_works_without_kernels() {
        let t = Tensor::new(&[1f64, 2.0], &Device::Cpu).unwrap();
        add_assign(&t, &Tensor::new(&[0.5f64, 0.5], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(t.to_vec1::<f64>().unwrap(), [1.5, 2.5]);
    }

    #[test]
    fn columns_of_a_matrix_can_be_written_without_kernels() {
        let t = Tensor::new(&[[1f64, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        let ones = Tensor::ones((2, 2), DType::F64, &Device::Cpu).unwrap();
        add_assign(&t.narrow(1, 1, 2).unwrap(), &ones).unwrap();
        assert_eq!(t.to_vec2::<f64>().unwrap(), [[1.0, 3.0, 4.0], [4.0, 6.0, 7.0]]);
        assert!(assign(&t.narrow(1, 1, 2).unwrap().t().unwrap(), &ones).is_err());
        assert!(assign(&t.narrow(1, 0, 1).unwrap(), &ones).is_err());
    }
}
