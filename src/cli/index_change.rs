//! `nunatak index add`, `delete` and `merge`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::Globals;
use crate::cli::output::{self, DIM, GOOD};
use crate::corpus::{self, CorpusOptions};
use crate::disk;
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::index::change::{self, ChangeReport, Known};
use crate::index::writer::{self, BuildOptions, Encode};
use crate::runtime::setup;

/// Options of `nunatak index add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Folder of the index
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Files and folders to read, as for `index build`; they are split as the index was
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    corpus: Vec<PathBuf>,
    /// Replace documents that are there already
    #[arg(long)]
    update: bool,
    /// Go on over up to N bad records
    #[arg(long, default_value_t = 0, value_name = "N")]
    skip_bad: u64,
}

/// Options of `nunatak index delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Folder of the index
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Ids of documents (all their passages go) or of passages
    #[arg(long, num_args = 1.., value_name = "ID", required_unless_present = "ids_file")]
    ids: Vec<String>,
    /// File with more of them, one a line
    #[arg(long, value_name = "FILE")]
    ids_file: Option<PathBuf>,
}

/// Options of `nunatak index merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folder of the new index
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Indexes to put together, of one encoder and without a common id
    #[arg(required = true, num_args = 2.., value_name = "INDEX")]
    from: Vec<PathBuf>,
    /// Replace an index that is there
    #[arg(long)]
    overwrite: bool,
}

/// Run `nunatak index add`.
pub fn add(args: &AddArgs, globals: &Globals) -> Result<()> {
    let (progress, runtime) = (globals.progress(), globals.runtime());
    let manifest = Index::open(&args.index)?.manifest().clone();
    let corpus_options = CorpusOptions { passage_words: manifest.corpus.passage_words, skip_bad: args.skip_bad };
    let mut encoder = match &manifest.encoder {
        Some(identity) => {
            let encoder = Encoder::open(&setup::model(&identity.name, &runtime, progress.as_ref())?, &runtime)?;
            if encoder.fingerprint() != identity.fingerprint {
                return Err(Error::index(
                    &args.index,
                    format!("its vectors were made by another version of {}", identity.name),
                    "build the index again",
                ));
            }
            Some(encoder)
        }
        None => None,
    };
    room(&args.index, [args.index.as_path()])?;
    let known = if args.update { Known::Replace } else { Known::Refuse };
    let mut encode = encoder.as_mut().map(|encoder| |texts: &[String]| encoder.encode(texts));
    let report = change::add(
        &args.index,
        &mut |sink| corpus::read(&args.corpus, &corpus_options, sink).map(drop),
        known,
        encode.as_mut().map(|encode| encode as &mut Encode),
        &options(globals),
        progress.as_ref(),
    )?;
    print(&args.index, &report, globals)
}

/// Run `nunatak index delete`.
pub fn delete(args: &DeleteArgs, globals: &Globals) -> Result<()> {
    let mut ids = args.ids.clone();
    if let Some(path) = &args.ids_file {
        let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        ids.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    room(&args.index, [args.index.as_path()])?;
    let report = change::delete(&args.index, &ids, &options(globals), globals.progress().as_ref())?;
    print(&args.index, &report, globals)
}

/// Run `nunatak index merge`.
pub fn merge(args: &MergeArgs, globals: &Globals) -> Result<()> {
    writer::refuse_existing(&args.index, args.overwrite)?;
    room(&args.index, args.from.iter().map(PathBuf::as_path))?;
    let options = BuildOptions { overwrite: args.overwrite, ..options(globals) };
    let report = change::merge(&args.index, &args.from, &options, globals.progress().as_ref())?;
    print(&args.index, &report, globals)
}

fn options(globals: &Globals) -> BuildOptions {
    BuildOptions { threads: globals.threads, ..BuildOptions::default() }
}

/// Fail unless the disk has room for another generation of these indexes, and for the vectors kept on the way.
fn room<'a>(dir: &Path, from: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let mut bytes = 0;
    for path in from {
        let manifest = Index::open(path)?.manifest().clone();
        let vectors = manifest.encoder.as_ref().map_or(0, |e| manifest.vectors * 2 * e.dim as u64);
        bytes += manifest.files.values().map(|file| file.bytes).sum::<u64>() + vectors;
    }
    disk::require(dir, bytes)
}

fn print(dir: &Path, report: &ChangeReport, globals: &Globals) -> Result<()> {
    if globals.json {
        return output::json(report);
    }
    let ChangeReport { added, removed, build } = report;
    let seconds = &build.seconds;
    let total = seconds.store + seconds.encode + seconds.graph + seconds.commit;
    output::line(format_args!(
        "{GOOD}{added} passages added, {removed} removed{GOOD:#}: {} in {}, {} on disk, {}",
        build.passages,
        dir.display(),
        output::bytes(build.bytes),
        output::seconds(total),
    ))?;
    output::line(format_args!(
        "{DIM}{} vectors taken over; store {}, encode {}, graph {}, commit {}{DIM:#}",
        build.reused,
        output::seconds(seconds.store),
        output::seconds(seconds.encode),
        output::seconds(seconds.graph),
        output::seconds(seconds.commit)
    ))
}
