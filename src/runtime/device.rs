//! Where a model runs, and never somewhere else without saying so.

use ort::session::builder::SessionBuilder;

use crate::error::{Error, Result};
use crate::runtime::session::RuntimeOptions;

/// A device as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(u32),
    /// An NVIDIA GPU through TensorRT, by its number.
    TensorRt(u32),
    /// The best that can be had; what was taken is said.
    Auto,
}

/// Put the execution provider of the asked device into a session being built.
pub(in crate::runtime) fn register(builder: SessionBuilder, options: &RuntimeOptions) -> Result<SessionBuilder> {
    match options.device {
        Device::Cpu | Device::Auto => Ok(builder),
        other => Err(Error::Device { device: format!("{other:?}"), problem: "not yet".into(), hint: None }),
    }
}
