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

/// The model of this name or in this folder; starter models are fetched and exported on first use.
pub fn model(
    name: &str,
    _options: &RuntimeOptions,
    _progress: &dyn crate::progress::Progress,
) -> Result<crate::runtime::model_dir::ModelDir> {
    crate::runtime::model_dir::ModelDir::open(std::path::Path::new(name))
}
