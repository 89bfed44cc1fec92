//! `nunatak setup`: ONNX Runtime and the starter models, onto this machine.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use crate::cli::Globals;
use crate::cli::output::{self, BOLD, DIM};
use crate::error::Result;
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
    let bytes = std::fs::metadata(&library).map_or(0, |m| m.len());
    let name = library.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    show(&Piece { piece: "runtime", name, path: &library, bytes }, globals.json)?;
    for name in Manifest::get()?.starters().iter().map(|starter| starter.name.as_str()).chain(shipped()) {
        let model = model(name, &options, &*progress)?;
        let kind = model.description.kind.name();
        show(&Piece { piece: kind, name: model.name(), path: &model.path, bytes: model.size() }, globals.json)?;
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
