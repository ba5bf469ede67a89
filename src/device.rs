//! From a device's name to the device.

use crate::config::DeviceSpec;
use crate::error::{Error, Result};
use candle_core::Device;

/// Opens the device that `spec` names; `auto` is the first CUDA device if this build and this machine have one, else the
/// CPU.
pub fn open(spec: DeviceSpec) -> Result<Device> {
    match spec {
        DeviceSpec::Cpu => Ok(Device::Cpu),
        DeviceSpec::Auto => match candle_core::utils::cuda_is_available() {
            true => Ok(Device::new_cuda(0).unwrap_or(Device::Cpu)),
            false => Ok(Device::Cpu),
        },
        DeviceSpec::Cuda(_) if !candle_core::utils::cuda_is_available() => Err(Error::usage(format!(
            "device {spec}: this build has no CUDA; build with `cargo build --release --features cuda`, or use --device \
             cpu"
        ))),
        DeviceSpec::Cuda(index) => {
            Device::new_cuda(index).map_err(|e| Error::usage(format!("device {spec} cannot be opened: {e}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there_and_a_missing_device_is_named() {
        assert!(open(DeviceSpec::Cpu).unwrap().is_cpu());
        assert!(open(DeviceSpec::Auto).is_ok());
        let message = open(DeviceSpec::Cuda(99)).unwrap_err().to_string();
        assert!(message.contains("cuda:99"), "{message}");
    }
}
