//! Where a model runs, and never somewhere else without saying so.
//!
//! A device that is asked for by name and cannot be had is an error that names what is missing. Only `auto`
//! may end on the processor, and it says so. What a GPU provider cannot take of a graph, such as the arithmetic of
//! shapes, ONNX Runtime runs on the processor all the same.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use ort::ep::{CUDA, ExecutionProvider, TensorRT};
use ort::session::builder::SessionBuilder;

use crate::error::{Error, Result};
use crate::runtime::model_dir::{ModelDir, ModelKind};
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup;

/// What is said of a library that knows nothing of the device.
const BUILT_WITHOUT: &str = "this ONNX Runtime was built without";

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
    /// The best that can be had at once, a GPU through CUDA or the processor; what was taken is said. TensorRT is
    /// never taken unasked, because it first compiles each graph for minutes.
    Auto,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::TensorRt(n) => write!(f, "tensorrt:{n}"),
            Self::Auto => write!(f, "auto"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            let known = "cpu, cuda, tensorrt or auto, and cuda:1 is the second GPU";
            Error::request(format!("unknown device `{text}`; it is one of {known}"), format!("use {known}"))
        };
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number.parse::<u32>().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, number) {
            ("cpu", None) => Ok(Self::Cpu),
            ("auto", None) => Ok(Self::Auto),
            ("cuda", n) => Ok(Self::Cuda(n.unwrap_or(0))),
            ("tensorrt", n) => Ok(Self::TensorRt(n.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

/// Why [`Device::Auto`] took the processor in this process, once it did.
static FALLBACK: OnceLock<String> = OnceLock::new();

/// Why a session that was to choose its device runs on the processor; nothing if none does.
pub fn fallback() -> Option<&'static str> {
    FALLBACK.get().map(String::as_str)
}

/// Put the execution provider of the asked device into a session being built; and the device taken, which is
/// never [`Device::Auto`]. With `capture`, CUDA may record runs and repeat them.
///
/// # Errors
/// [`Error::Device`], naming what is missing.
pub(in crate::runtime) fn register(
    mut builder: SessionBuilder,
    options: &RuntimeOptions,
    capture: bool,
) -> Result<(SessionBuilder, Device)> {
    match options.device {
        Device::Cpu => Ok((builder, Device::Cpu)),
        Device::Auto => match provide(&mut builder, Device::Cuda(0), capture) {
            Ok(()) => Ok((builder, Device::Cuda(0))),
            Err(message) => {
                FALLBACK.get_or_init(|| {
                    tracing::warn!("device auto: running on the processor, not on CUDA: {message}");
                    message
                });
                Ok((builder, Device::Cpu))
            }
        },
        asked => match provide(&mut builder, asked, capture) {
            Ok(()) => Ok((builder, asked)),
            Err(problem) => {
                Err(Error::Device { hint: Some(hint(asked, &problem)), device: asked.to_string(), problem })
            }
        },
    }
}

/// Whether a graph multiplies in 8-bit integers by operators that only the processor has: those of encoders and cross-encoders, and of
/// language models with a scale a token. Runs of weights with a scale each have one on GPUs, too.
pub fn is_for_processors(model: &ModelDir) -> bool {
    match model.description.precision.as_str() {
        "w8a8" => true,
        "int8" => !matches!(model.description.kind, ModelKind::Lm(_)),
        _ => false,
    }
}

/// Refuse to run a graph of 8-bit integers on a GPU that has no operators for it: it would run on the processor, unsaid.
///
/// # Errors
/// [`Error::Device`].
pub fn check_precision(model: &ModelDir, device: Device) -> Result<()> {
    if device == Device::Cpu || !is_for_processors(model) {
        return Ok(());
    }
    Err(Error::Device {
        device: device.to_string(),
        problem: format!("{} is of 8-bit integers, which a GPU has no kernels for", model.name()),
        hint: Some(format!("take {}@fp16, or run it on the processor", model.stem())),
    })
}

/// Register the provider, or say in ONNX Runtime's words what it lacks.
fn provide(builder: &mut SessionBuilder, device: Device, capture: bool) -> Result<(), String> {
    let id = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    // A build without the provider says so only in a warning; ask it first.
    let built_in = match device {
        Device::TensorRt(_) => TensorRT::is_available(),
        _ => CUDA::is_available(),
    };
    if !built_in.map_err(|e| e.to_string())? {
        let provider = if matches!(device, Device::TensorRt(_)) { "TensorRT" } else { "CUDA" };
        return Err(format!("{BUILT_WITHOUT} {provider}"));
    }
    let registered = match device {
        Device::Cpu | Device::Auto => Ok(()),
        Device::Cuda(n) => CUDA::default().with_device_id(id(n)).with_cuda_graph(capture).register(builder),
        // What TensorRT cannot take of a graph goes to CUDA before it goes to the processor.
        Device::TensorRt(n) => TensorRT::default()
            .with_device_id(id(n))
            .register(builder)
            .and_then(|()| CUDA::default().with_device_id(id(n)).register(builder)),
    };
    registered.map_err(|e| missing_library(&e.to_string()))
}

/// The library that the loader did not find, if the message names one; else the message itself.
fn missing_library(message: &str) -> String {
    match message.split_once(": cannot open shared object file") {
        Some((before, _)) => {
            let name = before.rsplit([' ', '\n']).next().unwrap_or(before);
            format!("the library {name} is missing")
        }
        None => message.trim().to_owned(),
    }
}

fn hint(device: Device, problem: &str) -> String {
    if problem.starts_with(BUILT_WITHOUT) {
        return format!(
            "unset {0} and run `nunatak setup --device cuda`, or point {0} at a GPU build of ONNX Runtime",
            setup::LIBRARY_VARIABLE
        );
    }
    let needs = match device {
        Device::TensorRt(_) => "an NVIDIA driver, CUDA 13, cuDNN 9 and TensorRT 10",
        _ => "an NVIDIA driver, CUDA 13 and cuDNN 9",
    };
    format!("it needs {needs}, in folders where the system's loader looks (LD_LIBRARY_PATH)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("auto", Device::Auto),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("tensorrt:1", Device::TensorRt(1)),
        ] {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in ["", "gpu", "cpu:1", "cuda:", "cuda:-1", "cuda:1:2"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_missing_library_is_picked_from_the_loader_s_message() {
        let message = "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /x/libonnxruntime_providers_cuda.so with \
                       error: libcublasLt.so.13: cannot open shared object file: No such file or directory";
        assert_eq!(missing_library(message), "the library libcublasLt.so.13 is missing");
        assert_eq!(missing_library("something else\n"), "something else");
    }
}
