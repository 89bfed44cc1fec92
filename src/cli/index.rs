//! `nunatak index`: build an index, look at it, verify it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::Globals;
use crate::cli::output::{self, BAD, BOLD, DIM, GOOD};
use crate::corpus::{self, CorpusOptions};
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::index::writer::{self, BuildOptions, BuildReport};
use crate::runtime::setup;

/// The encoder that is used when none is named.
pub const DEFAULT_ENCODER: &str = "all-MiniLM-L6-v2";

/// Options of `nunatak index`.
#[derive(Debug, Args)]
pub struct IndexArgs {
    #[command(subcommand)]
    command: IndexCommand,
}

#[derive(Debug, Subcommand)]
enum IndexCommand {
    /// Build an index from a corpus
    Build(BuildArgs),
    /// What an index holds
    Info(AtArgs),
    /// Check every byte of an index
    Verify(AtArgs),
}

/// Options of `nunatak index build`.
#[derive(Debug, Args)]
struct BuildArgs {
    /// Folder of the index to be
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Files and folders to read: JSONL, TSV, Parquet, Arrow, Markdown, text, HTML; gz and zst as they are
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    corpus: Vec<PathBuf>,
    /// Split documents at sentence ends into passages of about so many words; 0 keeps them whole
    #[arg(long, default_value_t = 100, value_name = "WORDS")]
    passage_words: usize,
    /// Go on over up to N bad records
    #[arg(long, default_value_t = 0, value_name = "N")]
    skip_bad: u64,
    /// Encoder for dense search: a model's name or folder
    #[arg(long, default_value = DEFAULT_ENCODER, value_name = "MODEL")]
    encoder: String,
    /// No vectors: BM25 only
    #[arg(long)]
    no_dense: bool,
    /// Neighbours a passage has in the vector graph
    #[arg(long, default_value_t = 16, value_name = "M")]
    neighbours: usize,
    /// Candidates considered for them: higher is slower to build and better to search
    #[arg(long, default_value_t = 200, value_name = "N")]
    ef_construction: usize,
    /// Replace an index that is there; it stays in use until the new one is complete
    #[arg(long)]
    overwrite: bool,
    /// Keep the encoded vectors beside the index for the next build of the same corpus
    #[arg(long)]
    keep_encoded: bool,
}

/// Options of the commands that look at an index.
#[derive(Debug, Args)]
struct AtArgs {
    /// Folder of the index
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
}

/// Run `nunatak index`.
pub fn run(args: &IndexArgs, globals: &Globals) -> Result<()> {
    match &args.command {
        IndexCommand::Build(args) => build(args, globals),
        IndexCommand::Info(args) => info(args, globals),
        IndexCommand::Verify(args) => verify(args, globals),
    }
}
