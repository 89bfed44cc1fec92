//! Obtain ONNX Runtime and the starter models through the ordinary package client.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::runtime::session::RuntimeOptions;

/// Path of the ONNX Runtime library.
pub fn runtime_library(_options: &RuntimeOptions) -> Result<PathBuf> {
    match std::env::var_os("ORT_DYLIB_PATH") {
        Some(path) => Ok(path.into()),
        None => {
            Err(Error::Setup { problem: "ONNX Runtime is not set up".into(), hint: Some("run `nunatak setup`".into()) })
        }
    }
}
