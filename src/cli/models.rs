//! `nunatak models`: what models there are, and how more of them come in and go out.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::cli::Globals;
use crate::cli::output::{self, BAD, BOLD, DIM};
use crate::error::{Error, Result};
use crate::export::Precision;
use crate::runtime::model_dir::{ModelDir, ModelKind};
use crate::runtime::setup::store::{self, Entry, ImportKind, ImportOptions};
use crate::runtime::setup::{self, Manifest, hub};

/// What to do about models.
#[derive(Debug, Clone, Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum ModelsCommand {
    /// The models of the cache, and the starter models
    List,
    /// What a model is
    Info {
        /// Its name, NAME@PRECISION, or its folder
        model: String,
    },
    /// Take in a model: safetensors folder, GGUF file, or a folder with its ONNX graph
    Import {
        /// Folder or file
        source: PathBuf,
        #[command(flatten)]
        options: ImportArgs,
    },
    /// Copy a model out of the cache
    Export {
        /// Its name or NAME@PRECISION
        model: String,
        /// A new folder
        dir: PathBuf,
    },
    /// Fetch a model from the Hugging Face hub and take it in
    Pull {
        /// Its name on the hub: OWNER/NAME
        id: String,
        /// Branch, tag or commit
        #[arg(long, default_value = "main")]
        revision: String,
        /// Only this GGUF file of it
        #[arg(long, value_name = "NAME.gguf")]
        file: Option<String>,
        #[command(flatten)]
        options: ImportArgs,
    },
}

#[derive(Debug, Clone, Args)]
struct ImportArgs {
    /// What to call it [default: the name of its file or folder]
    #[arg(long)]
    name: Option<String>,
    /// What it is for [default: as its config.json says]
    #[arg(long)]
    kind: Option<KindArg>,
    /// How to store its weights: int8, w8a8 (8 bits with a scale a token: faster for language models, less exact for some), fp16 or fp32
    /// [default: int8]
    #[arg(long)]
    precision: Option<Precision>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    /// Text to vector
    Encoder,
    /// Question and passage to score
    CrossEncoder,
    /// Frozen language model
    Lm,
}

impl ImportArgs {
    fn options(&self, name: &str, source: Option<String>) -> ImportOptions {
        let kind = self.kind.map(|k| match k {
            KindArg::Encoder => ImportKind::Encoder,
            KindArg::CrossEncoder => ImportKind::CrossEncoder,
            KindArg::Lm => ImportKind::Lm,
        });
        let name = self.name.clone().or_else(|| (!name.is_empty()).then(|| name.to_owned()));
        ImportOptions { name, kind, precision: self.precision, source }
    }
}

/// Do it.
pub fn run(args: &ModelsArgs, globals: &Globals) -> Result<()> {
    let (options, progress) = (globals.runtime(), globals.progress());
    match &args.command {
        ModelsCommand::List => store::list()?.iter().try_for_each(|entry| list_line(entry, globals.json)),
        ModelsCommand::Info { model } => info(&setup::locate(model, &options, &*progress)?, globals.json),
        ModelsCommand::Import { source, options } => {
            info(&store::import(source, &options.options("", None), &*progress)?, globals.json)
        }
        ModelsCommand::Export { model, dir } => {
            store::export(&setup::locate(model, &options, &*progress)?, dir)?;
            info(&ModelDir::open(dir)?, globals.json)
        }
        ModelsCommand::Pull { id, revision, file, options } => {
            if globals.offline {
                return Err(Error::Setup {
                    problem: format!("--offline forbids fetching {id}"),
                    hint: Some("leave --offline out, or import a copy with `nunatak models import`".into()),
                });
            }
            let fetched = hub::fetch(id, revision, file.as_deref(), &*progress)?;
            let own = match file {
                Some(file) => file.rsplit('/').next().map(|f| f.trim_end_matches(".gguf")),
                None => id.rsplit('/').next(),
            };
            let source = format!("{id} ({revision}) of the hub");
            let options = options.options(own.unwrap_or_default(), Some(source));
            info(&store::import(&fetched, &options, &*progress)?, globals.json)
        }
    }
}

fn list_line(entry: &Entry, json: bool) -> Result<()> {
    if json {
        return output::json(entry);
    }
    let name = format!("{}@{}", entry.name, entry.precision);
    let state = match &entry.problem {
        Some(problem) => format!("{BAD}broken{BAD:#}: {problem}"),
        None if entry.installed => output::bytes(entry.bytes),
        None => "not fetched yet".to_owned(),
    };
    output::line(format!("{BOLD}{name:<32}{BOLD:#} {:<14} {state}", entry.kind))
}

fn info(model: &ModelDir, json: bool) -> Result<()> {
    let description = &model.description;
    let name = model.name();
    if json {
        let mut value = serde_json::to_value(description).map_err(Error::internal("describing a model"))?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("name".into(), json!(name));
            fields.insert("path".into(), json!(model.path.display().to_string()));
            fields.insert("bytes".into(), json!(model.size()));
            fields.insert("fingerprint".into(), json!(model.fingerprint()));
        }
        return output::json(&value);
    }
    let row = |word: &str, value: String| output::line(format!("{DIM}{word:<12}{DIM:#} {value}"));
    output::line(format!("{BOLD}{name}{BOLD:#}"))?;
    row("kind", description.kind.name().to_owned())?;
    row("family", description.family.clone())?;
    row("precision", description.precision.clone())?;
    row("width", description.hidden.to_string())?;
    match &description.kind {
        ModelKind::Encoder { pooling } => row("pooling", pooling.clone())?,
        ModelKind::CrossEncoder => {}
        ModelKind::Lm(lm) => {
            row("layers", lm.layers.to_string())?;
            row("heads", format!("{} for keys and values, {} wide", lm.kv_heads, lm.head_dim))?;
            row("vocabulary", lm.vocab.to_string())?;
        }
    }
    row("longest", format!("{} tokens", description.max_tokens))?;
    row("source", description.source.clone())?;
    if let Some(starter) = Manifest::get()?.starter(model.stem()) {
        row("about", format!("{}; {}", starter.about, starter.licence))?;
    }
    row("size", output::bytes(model.size()))?;
    row("fingerprint", model.fingerprint())?;
    row("path", model.path.display().to_string())
}
