//! A GPU for NCCL, through candle's own handles on CUDA.

use super::library::Pointer;
use super::{Gpu, Memory};
use crate::error::{Error, Result};
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError,
};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Cuda {
    context: Arc<CudaContext>,
    /// Where the model's work goes.
    model: Arc<CudaStream>,
    own: Arc<CudaStream>,
}

impl Cuda {
    /// The GPU that `device` is.
    pub(super) fn of(device: &CudaDevice) -> Result<Self> {
        Self::new(device.cuda_stream())
    }

    /// The GPU of a process with that number on its machine, before a model is there.
    pub(super) fn of_local(rank: usize) -> Result<Self> {
        let found = CudaContext::device_count().map_err(failed)?.unsigned_abs() as usize;
        if found == 0 {
            return Err(Error::usage(
                "torchrun's processes need a GPU each, and this one may use none",
            ));
        }
        // The stream that candle's devices use.
        Self::new(CudaContext::new(rank % found).map_err(failed)?.per_thread_stream())
    }

    fn new(model: Arc<CudaStream>) -> Result<Self> {
        let context = Arc::clone(model.context());
        let own = context.new_stream().map_err(failed)?;
        Ok(Self { context, model, own })
    }

    pub(super) fn is(&self, device: &CudaDevice) -> bool {
        let theirs = device.cuda_stream();
        theirs.context().ordinal() == self.context.ordinal()
            && theirs.cu_stream() == self.model.cu_stream()
    }
}

impl Gpu for Cuda {
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed)
    }

    fn stream(&self) -> Pointer {
        self.own.cu_stream().cast()
    }

    fn after_model(&self) -> Result<()> {
        self.own.join(&self.model).map_err(failed)
    }

    fn before_model(&self) -> Result<()> {
        self.model.join(&self.own).map_err(failed)
    }

    fn mark(&self) -> Result<Box<dyn Fn() -> Result<bool> + '_>> {
        let event = self.own.record_event(None).map_err(failed)?;
        Ok(Box::new(move || event.try_is_complete().map_err(failed)))
    }

    fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        // Not every GPU has nothing to give.
        let bytes = if bytes.is_empty() { &[0] } else { bytes };
        self.held(self.own.clone_htod(bytes).map_err(failed)?)
    }

    fn room(&self, bytes: usize) -> Result<Memory> {
        // SAFETY: what is in it is written before it is read.
        self.held(unsafe { self.own.alloc::<u8>(bytes.max(1)) }.map_err(failed)?)
    }

    fn download(&self, memory: &Memory) -> Result<Vec<u8>> {
        let held = memory.held.downcast_ref::<CudaSlice<u8>>();
        let held = held.ok_or_else(|| Error::internal("expected a GPU's memory"))?;
        let bytes = self.own.clone_dtoh(held).map_err(failed)?;
        self.own.synchronize().map_err(failed)?;
        Ok(bytes)
    }

    fn is_of(&self, device: &candle_core::Device) -> bool {
        matches!(device, candle_core::Device::Cuda(device) if self.is(device))
    }
}

impl Cuda {
    fn held(&self, slice: CudaSlice<u8>) -> Result<Memory> {
        let (address, _recorded) = slice.device_ptr(&self.own);
        drop(_recorded);
        Ok(Memory { address, held: Box::new(slice) })
    }
}

/// By what a GPU is told from others, on any machine.
pub(in crate::world) fn identity(device: &CudaDevice) -> Result<Vec<u8>> {
    let uuid = device.cuda_stream().context().uuid().map_err(failed)?;
    Ok(uuid.bytes.iter().map(|byte| *byte as u8).collect())
}

fn failed(e: DriverError) -> Error {
    Error::internal(format!("CUDA: {e}"))
}
