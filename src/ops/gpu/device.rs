//! A GPU, through candle's own handles on CUDA: its stream, its cuBLAS.

use super::{Address, DeviceMemory, Grid, Matrix, Module};
use crate::error::{Error, Result};
use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{
    self, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, sys,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{DType, Shape, Storage, Tensor};
use half::bf16;

/// A kernel's arguments: one struct, passed by value.
struct Passed<A>(A);

// SAFETY: `launch` is only given structs with #[repr(C)] of addresses and numbers.
unsafe impl<A: Copy> DeviceRepr for Passed<A> {}

/// PTX of a source file, compiled by build.rs.
fn ptx(module: Module) -> &'static str {
    macro_rules! ptx {
        ($name:literal) => {
            include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx"))
        };
    }
    match module {
        Module::Activation => ptx!("activation"),
        Module::AdamW => ptx!("adamw"),
        Module::Attention => ptx!("attention"),
        Module::Embed => ptx!("embed"),
        Module::Gelu => ptx!("gelu"),
        Module::Head => ptx!("head"),
        Module::LayerNorm => ptx!("layer_norm"),
        Module::Matmul => ptx!("matmul"),
        Module::Rotary => ptx!("rotary"),
        Module::Travel => ptx!("travel"),
    }
}

pub(super) fn prepare(device: &CudaDevice) -> Result<()> {
    // SAFETY: every tensor of the process lives on this device's one stream.
    unsafe { device.disable_event_tracking() };
    set(device, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
}

pub(super) fn count() -> usize {
    driver::CudaContext::device_count().map_or(0, |n| n.unsigned_abs() as usize)
}

pub(super) fn memory(device: &CudaDevice) -> Result<DeviceMemory> {
    let pool = pool(device)?;
    let mut peak = 0u64;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the pool is the device's own, and the attribute is a 64-bit number.
    unsafe { driver::result::mem_pool::get_attribute(pool, attribute, (&raw mut peak).cast()) }
        .map_err(failed)?;
    device.cuda_stream().context().bind_to_thread().map_err(failed)?;
    let (free, _) = driver::result::mem_get_info().map_err(failed)?;
    Ok(DeviceMemory { free: free as u64, peak })
}

fn set(device: &CudaDevice, attribute: sys::CUmemPool_attribute, mut value: u64) -> Result<()> {
    let pool = pool(device)?;
    // SAFETY: the pool is the device's own, and the attribute is a 64-bit number.
    unsafe { driver::result::mem_pool::set_attribute(pool, attribute, (&raw mut value).cast()) }
        .map_err(failed)
}

/// The pool that the device's tensors are allocated from.
fn pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let index = device.cuda_stream().context().ordinal();
    let index = driver::result::device::get(index as i32).map_err(failed)?;
    // SAFETY: the device exists.
    unsafe { driver::result::device::get_default_mem_pool(index) }.map_err(failed)
}

pub(super) fn address(x: &Tensor) -> Result<Address> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(Error::internal("expected a tensor on a GPU"));
    };
    let start = match x.dtype() {
        DType::F32 => start::<f32>(storage),
        DType::BF16 => start::<bf16>(storage),
        DType::U32 => start::<u32>(storage),
        DType::F64 => start::<f64>(storage),
        other => return Err(Error::internal(format!("no kernel takes tensors of {other:?}"))),
    }?;
    Ok(Address(start + (layout.start_offset() * x.dtype().size_in_bytes()) as u64))
}

fn start<T: CudaDType>(storage: &CudaStorage) -> Result<u64> {
    let stream = storage.device.cuda_stream();
    let slice = storage.as_cuda_slice::<T>()?;
    let (address, _recorded) = slice.device_ptr(&stream);
    Ok(address)
}

pub(super) fn uninitialised(shape: Shape, dtype: DType, device: &CudaDevice) -> Result<Tensor> {
    let n = shape.elem_count();
    // SAFETY: the caller writes every element before it is read.
    let storage = unsafe {
        match dtype {
            DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc::<f32>(n)?, device.clone()),
            DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc::<bf16>(n)?, device.clone()),
            DType::U32 => CudaStorage::wrap_cuda_slice(device.alloc::<u32>(n)?, device.clone()),
            DType::F64 => CudaStorage::wrap_cuda_slice(device.alloc::<f64>(n)?, device.clone()),
            other => return Err(Error::internal(format!("no kernel writes tensors of {other:?}"))),
        }
    };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

pub(super) fn most_shared(device: &CudaDevice) -> Result<usize> {
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let bytes = device.cuda_stream().context().attribute(attribute).map_err(failed)?;
    Ok(bytes.unsigned_abs() as usize)
}

/// Dynamic shared memory that a kernel has without asking.
const FREE_SHARED: u32 = 48 << 10;

pub(super) fn launch<A: Copy>(
    device: &CudaDevice,
    module: Module,
    kernel: &str,
    grid: Grid,
    args: A,
) -> Result<()> {
    let function = device.get_or_load_custom_func(kernel, module.source(), ptx(module))?;
    if grid.shared > FREE_SHARED {
        let attribute =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, grid.shared as i32).map_err(failed)?;
    }
    let [x, y, z] = grid.blocks;
    let config = LaunchConfig {
        grid_dim: (x, y, z),
        block_dim: (grid.threads, 1, 1),
        shared_mem_bytes: grid.shared,
    };
    let args = Passed(args);
    let mut builder = function.builder();
    builder.arg(&args);
    // SAFETY: the caller's addresses are of live memory of the sizes the kernel is told, and the
    // struct is the kernel's.
    unsafe { builder.launch(config) }.map_err(failed)?;
    Ok(())
}

/// cuBLAS counts columns first, so it is asked for the transpose: dstᵀ = bᵀ · aᵀ.
pub(super) fn gemm(device: &CudaDevice, c: Matrix, a: Matrix, b: Matrix, add: bool) -> Result<()> {
    let operation = |m: Matrix| match m.transposed {
        false => blas::cublasOperation_t::CUBLAS_OP_N,
        true => blas::cublasOperation_t::CUBLAS_OP_T,
    };
    let format = |m: Matrix| match m.dtype {
        DType::BF16 => blas::cudaDataType::CUDA_R_16BF,
        _ => blas::cudaDataType::CUDA_R_32F,
    };
    let (alpha, beta) = (1.0f32, f32::from(u8::from(add)));
    let handle = device.cublas_handle();
    // SAFETY: the matrices lie in live memory of this device, with the strides that `Matrix::new`
    // read off their tensors.
    unsafe {
        cublas::gemm_ex(
            *handle.handle(),
            operation(b),
            operation(a),
            c.cols as i32,
            c.rows as i32,
            a.cols as i32,
            (&raw const alpha).cast(),
            b.address.0 as *const _,
            format(b),
            b.stride as i32,
            a.address.0 as *const _,
            format(a),
            a.stride as i32,
            (&raw const beta).cast(),
            c.address.0 as *mut _,
            format(c),
            c.stride as i32,
            // f32 products of f32 factors: TF32 stays off.
            blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|e| Error::internal(format!("cuBLAS: {e}")))
}

fn failed(e: driver::DriverError) -> Error {
    Error::internal(format!("CUDA: {e}"))
}
