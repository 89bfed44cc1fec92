//! Where training computes: on the processor, or on an NVIDIA GPU in a program built with the feature `cuda`.

use crate::error::{Error, Result};
use crate::runtime::device::Device;

/// candle's device for the one that is asked for. `auto` takes the processor: a training that turns out slow is seen in
/// its first minute, and one that fills somebody's GPU unasked is not.
///
/// # Errors
/// [`Error::Device`] when it cannot be had, naming what is missing.
pub fn open(device: Device) -> Result<candle_core::Device> {
    match device {
        Device::Cpu | Device::Auto => Ok(candle_core::Device::Cpu),
        Device::Cuda(number) => cuda(device, number as usize),
        Device::TensorRt(_) => {
            Err(missing(device, "TensorRT runs models and does not train them", "say --device cuda"))
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda(device: Device, number: usize) -> Result<candle_core::Device> {
    let hint = "`nvidia-smi` shows the GPUs and their driver; without one leave --device out";
    let cuda = candle_core::Device::new_cuda(number).map_err(|e| missing(device, &e.to_string(), hint))?;
    crate::runtime::cuda_memory::keep_freed_memory(number as u32)?;
    Ok(cuda)
}

#[cfg(not(feature = "cuda"))]
fn cuda(device: Device, _: usize) -> Result<candle_core::Device> {
    let hint = "build it with `cargo build --release --features cuda`, which needs nvcc, or leave --device out";
    Err(missing(device, "this program was built without training on a GPU", hint))
}

fn missing(device: Device, problem: &str, hint: &str) -> Error {
    Error::Device { device: device.to_string(), problem: problem.to_owned(), hint: Some(hint.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_had_is_an_error_and_never_the_processor() {
        assert!(open(Device::Cpu).unwrap().is_cpu() && open(Device::Auto).unwrap().is_cpu());
        assert!(open(Device::TensorRt(0)).is_err());
        if cfg!(not(feature = "cuda")) {
            let error = open(Device::Cuda(1)).unwrap_err().to_string();
            assert_eq!(error, "device cuda:1: this program was built without training on a GPU");
        }
    }
}
