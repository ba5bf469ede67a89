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

    /// GPU number `ordinal`, before a model is there.
    pub(super) fn numbered(ordinal: usize) -> Result<Self> {
        let found = CudaContext::device_count().map_err(failed)?.unsigned_abs() as usize;
        if ordinal >= found {
            return Err(Error::usage(format!(
                "expected GPU {ordinal} (LOCAL_RANK), found {found} that this process may use; start as many processes \
                 on a machine as it has GPUs"
            )));
        }
        // The stream that candle's devices use.
        Self::new(CudaContext::new(ordinal).map_err(failed)?.per_thread_stream())
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

    fn mark(&self) -> Result<Box<dyn Fn() -> bool + '_>> {
        let event = self.own.record_event(None).map_err(failed)?;
        Ok(Box::new(move || event.is_complete()))
    }

    fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        self.held(self.own.clone_htod(bytes).map_err(failed)?)
    }

    fn room(&self, bytes: usize) -> Result<Memory> {
        // SAFETY: what is in it is written before it is read.
        self.held(unsafe { self.own.alloc::<u8>(bytes) }.map_err(failed)?)
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

fn failed(e: DriverError) -> Error {
    Error::internal(format!("CUDA: {e}"))
}
