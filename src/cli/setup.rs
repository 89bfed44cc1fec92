//! `nunatak setup`: ONNX Runtime and the starter models, onto this machine.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use crate::cli::Globals;
use crate::cli::output::{self, BAD, BOLD, DIM, GOOD};
use crate::error::Result;
use crate::runtime::device::Device;
use crate::runtime::gpu_libraries::{self, GpuLibrary};
use crate::runtime::setup::{Manifest, fetch_runtime, home, model, shipped};

/// Nothing but what every command takes.
#[derive(Debug, Clone, Args)]
pub struct SetupArgs {}

/// A piece that is in place.
#[derive(Debug, Serialize)]
struct Piece<'a> {
    piece: &'static str,
    name: String,
    path: &'a Path,
    bytes: u64,
}

/// Fetch what is missing; what is there already is left alone.
pub fn run(_: &SetupArgs, globals: &Globals) -> Result<()> {
    let (options, progress) = (globals.runtime(), globals.progress());
    let library = fetch_runtime(&options, &*progress)?;
    let libraries = gpu_libraries::needed(&library, options.device)?;
    let bytes = std::fs::metadata(&library).map_or(0, |m| m.len());
    let name = library.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    show(&Piece { piece: "runtime", name, path: &library, bytes }, globals.json)?;
    // For a GPU that is not to be had yet, or is another machine's, no library can be asked which precision it takes.
    let precision = if matches!(options.device, Device::Cuda(_) | Device::TensorRt(_)) { "@fp16" } else { "" };
    for name in Manifest::get()?.starters().iter().map(|starter| starter.name.as_str()).chain(shipped()) {
        let model = model(&format!("{name}{precision}"), &options, &*progress)?;
        let kind = model.description.kind.name();
        show(&Piece { piece: kind, name: model.name(), path: &model.path, bytes: model.size() }, globals.json)?;
    }
    for library in &libraries {
        match globals.json {
            true => output::json(library)?,
            false => {
                let GpuLibrary { name, found, from } = library;
                let (style, word) = if *found { (GOOD, "found") } else { (BAD, "missing") };
                output::line(format!(
                    "{BOLD}{:<13}{BOLD:#} {name:<28} {style}{word:>9}{style:#}  {DIM}{from}{DIM:#}",
                    "GPU library"
                ))?;
            }
        }
    }
    let missing: Vec<&str> = libraries.iter().filter(|l| !l.found).map(|l| l.name.as_str()).collect();
    if !missing.is_empty() {
        progress.note(&format!(
            "models cannot run on {} yet: the loader does not find {}; {}",
            options.device,
            missing.join(", "),
            gpu_libraries::HINT
        ));
    }
    if !globals.json {
        output::line(format!("\nEverything is in {}. To see it run: nunatak doctor", home()?.display()))?;
    }
    Ok(())
}

fn show(piece: &Piece, json: bool) -> Result<()> {
    if json {
        return output::json(piece);
    }
    let Piece { piece, name, path, bytes } = piece;
    let size = output::bytes(*bytes);
    output::line(format!("{BOLD}{piece:<13}{BOLD:#} {name:<28} {size:>9}  {DIM}{}{DIM:#}", path.display()))
}
