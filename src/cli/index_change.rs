//! `nunatak index add`, `update`, `delete`, `compact`, `merge` and `export`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::Globals;
use crate::cli::index::note_skipped;
use crate::cli::index_cluster;
use crate::cli::index_encoder;
use crate::cli::index_memory::MemoryArgs;
use crate::cli::output::{self, BAD, DIM, GOOD};
use crate::corpus::{self, CorpusOptions, CorpusReport};
use crate::disk::{self, Floor};
use crate::durable;
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::index::change::{self, ChangeReport, Known};
use crate::index::export;
use crate::index::manifest::{EncoderIdentity, Manifest};
use crate::index::repair::{self, RepairReport};
use crate::index::verify::Damage;
use crate::index::writer::{self, BuildOptions, BuildReport, Encode};
use crate::milvus::{Address, VectorIndex};
use crate::progress::{Progress, Quiet};
use crate::serve::workers::{Changed, Edit};

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
    #[command(flatten)]
    memory: MemoryArgs,
}

/// Options of `nunatak index update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Folder of the index
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Files and folders to read, as for `index build`; they are split as the index was
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    corpus: Vec<PathBuf>,
    /// Go on over up to N bad records
    #[arg(long, default_value_t = 0, value_name = "N")]
    skip_bad: u64,
    #[command(flatten)]
    memory: MemoryArgs,
}

/// Options of `nunatak index compact`.
#[derive(Debug, Args)]
pub struct CompactArgs {
    /// Folder of the index
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    #[command(flatten)]
    memory: MemoryArgs,
}

/// Options of `nunatak index export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Folder of the index
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// File to write; one that ends in .gz or .zst is compressed. Standard output if none is given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
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

/// Options of `nunatak index repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Folder of the index
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Repair it also if passages cannot be read any more, which are then left out, or if it cannot be read which were deleted, which
    /// then come back
    #[arg(long)]
    accept_loss: bool,
    #[command(flatten)]
    memory: MemoryArgs,
}

/// Options of `nunatak index merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folder of the new index, or milvus://host:port/collection
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Indexes to put together, of one encoder and without a common id; into a collection one alone may go
    #[arg(required = true, num_args = 1.., value_name = "INDEX")]
    from: Vec<PathBuf>,
    /// What a cluster makes of the vectors, as for `index build` [default: hnsw]
    #[arg(long, value_name = "KIND")]
    vector_index: Option<VectorIndex>,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Replace an index that is there
    #[arg(long)]
    overwrite: bool,
}

/// Run `nunatak index add`.
pub fn add(args: &AddArgs, globals: &Globals) -> Result<()> {
    let known = if args.update { Known::Replace } else { Known::Refuse };
    add_or_replace(&args.index, &args.corpus, args.skip_bad, known, args.memory, globals)
}

/// Run `nunatak index update`.
pub fn update(args: &UpdateArgs, globals: &Globals) -> Result<()> {
    add_or_replace(&args.index, &args.corpus, args.skip_bad, Known::Replace, args.memory, globals)
}

fn add_or_replace(
    dir: &Path,
    files: &[PathBuf],
    skip_bad: u64,
    known: Known,
    memory: MemoryArgs,
    globals: &Globals,
) -> Result<()> {
    corpus::refuse_pipes(files)?;
    if let Some(address) = Address::of(dir)? {
        memory.refuse_in_cluster()?;
        return index_cluster::add(&address, files, skip_bad, known, globals);
    }
    let progress = globals.progress();
    let manifest = Index::open(dir)?.manifest().clone();
    let corpus_options = CorpusOptions { passage_words: manifest.corpus.passage_words, skip_bad };
    let identity = manifest.encoder.as_ref();
    let mut encoder = identity.map(|identity| encoder(dir, identity, globals, progress.as_ref())).transpose()?;
    disk::require(dir, disk::LEAST_ROOM)?;
    let mut encode = encoder.as_mut().map(|encoder| |texts: &[String]| encoder.encode(texts));
    // It is read more than once, and says the same each time.
    let mut read = CorpusReport::default();
    let report = change::add(
        dir,
        &mut |sink| {
            read = corpus::read(files, &corpus_options, sink)?;
            Ok(())
        },
        known,
        encode.as_mut().map(|encode| encode as &mut Encode),
        &BuildOptions { encoder: manifest.encoder.clone(), ..options(globals, memory, &manifest) },
        progress.as_ref(),
    )?;
    note_skipped(&read, progress.as_ref());
    print(dir, &report, globals)
}

/// The encoder that made the vectors of the index at `dir`.
pub fn encoder(dir: &Path, identity: &EncoderIdentity, globals: &Globals, progress: &dyn Progress) -> Result<Encoder> {
    let (_, encoder) = index_encoder::open(identity, &globals.runtime(), progress)?;
    check_encoder(dir, identity, encoder.fingerprint())?;
    Ok(encoder)
}

/// Fail unless the encoder of this fingerprint is the one that made the vectors of the index at `place`.
pub fn check_encoder(place: &Path, identity: &EncoderIdentity, fingerprint: &str) -> Result<()> {
    if fingerprint == identity.fingerprint {
        return Ok(());
    }
    let problem = format!("its vectors were made by another version of {}", identity.name);
    Err(Error::index(place, problem, "build the index again"))
}

/// The encoder of an index that is changed again and again: opened when it is first needed, and anew when the index has another.
#[derive(Debug, Default)]
pub struct KeptEncoder(Option<(EncoderIdentity, Encoder)>);

impl KeptEncoder {
    /// The one that makes the vectors of the index at `place`, if it has some.
    pub fn of(
        &mut self,
        place: &Path,
        identity: Option<&EncoderIdentity>,
        globals: &Globals,
    ) -> Result<Option<&mut Encoder>> {
        let Some(identity) = identity else { return Ok(None) };
        if self.0.as_ref().is_none_or(|(of, _)| of != identity) {
            self.0 = Some((identity.clone(), encoder(place, identity, globals, &Quiet)?));
        }
        Ok(self.0.as_mut().map(|(_, encoder)| encoder))
    }
}

/// A change that came over HTTP; nothing is added below the `floor` of the disk.
pub(crate) fn edit(
    dir: &Path,
    edit: Edit,
    kept: &mut KeptEncoder,
    floor: &mut Floor,
    globals: &Globals,
) -> Result<Changed> {
    let report = match edit {
        Edit::Put { lines, known } => {
            let manifest = Manifest::read(dir)?;
            let encoder = kept.of(dir, manifest.encoder.as_ref(), globals)?;
            floor.check(dir)?;
            let corpus_options = CorpusOptions { passage_words: manifest.corpus.passage_words, skip_bad: 0 };
            let mut encode = encoder.map(|encoder| |texts: &[String]| encoder.encode(texts));
            let options = options(globals, MemoryArgs::default(), &manifest);
            change::add(
                dir,
                &mut |sink| corpus::read_records("passages", &lines, &corpus_options, sink).map(drop),
                known,
                encode.as_mut().map(|encode| encode as &mut Encode),
                &BuildOptions { encoder: manifest.encoder, ..options },
                &Quiet,
            )?
        }
        Edit::Delete { id } => {
            change::delete(dir, &[id], &options(globals, MemoryArgs::default(), &Manifest::read(dir)?), &Quiet)?
        }
    };
    let ChangeReport { added, removed, build } = report;
    Ok(Changed { added, removed, passages: build.passages, checksum: build.checksum })
}

/// Run `nunatak index delete`.
pub fn delete(args: &DeleteArgs, globals: &Globals) -> Result<()> {
    let mut ids = args.ids.clone();
    if let Some(path) = &args.ids_file {
        let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        ids.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    if let Some(address) = Address::of(&args.index)? {
        return index_cluster::delete(&address, &ids, globals);
    }
    let options = options(globals, MemoryArgs::default(), &Manifest::read(&args.index)?);
    let report = change::delete(&args.index, &ids, &options, globals.progress().as_ref())?;
    print(&args.index, &report, globals)
}

/// Run `nunatak index compact`.
pub fn compact(args: &CompactArgs, globals: &Globals) -> Result<()> {
    room(&args.index, [args.index.as_path()])?;
    let options = options(globals, args.memory, &Manifest::read(&args.index)?);
    match change::compact(&args.index, &options, globals.progress().as_ref())? {
        Some(report) => print(&args.index, &report, globals),
        None if globals.json => {
            let build = BuildReport::default().with(Manifest::read(&args.index)?);
            output::json(&ChangeReport { added: 0, removed: 0, build })
        }
        None => output::line(format_args!(
            "{} has no segments to put together and no deleted passages",
            args.index.display()
        )),
    }
}

/// Run `nunatak index export`.
pub fn export(args: &ExportArgs, globals: &Globals) -> Result<()> {
    let (index, progress) = (Index::open(&args.index)?, globals.progress());
    let Some(path) = &args.out else {
        return match export::export(&index, &mut std::io::stdout().lock(), Path::new("stdout"), progress.as_ref()) {
            Err(Error::File { source, .. }) if output::is_closed_pipe(&source) => Ok(()),
            done => done.map(drop),
        };
    };
    output::check_new(path, args.overwrite)?;
    // Whole or not at all: a file of the right name is never half of the passages.
    let mut new = path.clone().into_os_string();
    new.push(".partial");
    let new = PathBuf::from(new);
    let count =
        write_corpus(&index, &new, path, progress.as_ref()).inspect_err(|_| drop(std::fs::remove_file(&new)))?;
    durable::sync(&new)?;
    std::fs::rename(&new, path).map_err(Error::file("rename", &new))?;
    match globals.json {
        true => output::json(&serde_json::json!({"passages": count, "file": path.display().to_string()})),
        false => output::line(format_args!("{GOOD}{count} passages{GOOD:#} in {}", path.display())),
    }
}

/// Write an index's passages to `new`, compressed as the name `path` says; how many.
fn write_corpus(index: &Index, new: &Path, path: &Path, progress: &dyn Progress) -> Result<u64> {
    let file = std::fs::File::create(new).map_err(Error::file("create", new))?;
    let mut file = std::io::BufWriter::with_capacity(1 << 18, file);
    let failed = || Error::file("write", new);
    let (count, file) = match path.extension().and_then(|extension| extension.to_str()) {
        Some("zst") => {
            let mut out = zstd::Encoder::new(file, 3).map_err(failed())?;
            (export::export(index, &mut out, new, progress)?, out.finish())
        }
        Some("gz") => {
            let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::default());
            (export::export(index, &mut out, new, progress)?, out.finish())
        }
        _ => (export::export(index, &mut file, new, progress)?, Ok(file)),
    };
    file.and_then(|mut file| file.flush()).map_err(failed())?;
    Ok(count)
}

/// Run `nunatak index repair`.
pub fn repair(args: &RepairArgs, globals: &Globals) -> Result<()> {
    let (dir, progress) = (args.index.as_path(), globals.progress());
    let manifest = Manifest::read(dir)?;
    room(dir, [dir])?;
    let mut kept = KeptEncoder::default();
    // It is opened where a vector cannot be read, and not otherwise.
    let mut encode = |texts: &[String]| match kept.of(dir, manifest.encoder.as_ref(), globals)? {
        Some(encoder) => encoder.encode(texts),
        None => Ok(Vec::new()),
    };
    let options = options(globals, args.memory, &manifest);
    let report = repair::repair(dir, args.accept_loss, &mut encode, &options, progress.as_ref())?;
    if globals.json {
        return output::json(&report);
    }
    let RepairReport { damage, lost, undeleted, build } = report;
    for Damage { file, problem } in damage {
        output::line(format_args!("{BAD}damaged{BAD:#}  {file}: {problem}"))?;
    }
    let Some(build) = build else { return output::line(format_args!("{GOOD}ok{GOOD:#}  {}", dir.display())) };
    let mut said = vec![format!("{} passages in {}", build.passages, dir.display())];
    if manifest.encoder.is_some() {
        said.push(format!("{} vectors taken over", build.reused));
    }
    said.extend((lost > 0).then(|| format!("{lost} passages lost")));
    said.extend((undeleted > 0).then(|| format!("{undeleted} deleted ones back")));
    output::line(format_args!("{GOOD}repaired{GOOD:#}  {}", said.join(", ")))
}

/// Run `nunatak index merge`.
pub fn merge(args: &MergeArgs, globals: &Globals) -> Result<()> {
    if let Some(address) = Address::of(&args.index)? {
        args.memory.refuse_in_cluster()?;
        return index_cluster::merge(
            &address,
            &args.from,
            args.vector_index.unwrap_or_default(),
            args.overwrite,
            globals,
        );
    }
    index_cluster::refuse_vector_index(args.vector_index)?;
    let [first, _, ..] = &args.from[..] else {
        return Err(Error::request("there is one index, and nothing to put it together with", "name two or more"));
    };
    writer::refuse_existing(&args.index, args.overwrite)?;
    room(&args.index, args.from.iter().map(PathBuf::as_path))?;
    let options = BuildOptions { overwrite: args.overwrite, ..options(globals, args.memory, &Manifest::read(first)?) };
    let report = change::merge(&args.index, &args.from, &options, globals.progress().as_ref())?;
    print(&args.index, &report, globals)
}

/// How an index like that of `manifest` is written.
fn options(globals: &Globals, memory: MemoryArgs, manifest: &Manifest) -> BuildOptions {
    let options = BuildOptions { threads: globals.threads, ..BuildOptions::default() };
    let dim = manifest.encoder.as_ref().map_or(0, |encoder| encoder.dim);
    let m = manifest.segments.iter().find_map(|segment| segment.graph.as_ref()).map_or(options.m, |graph| graph.m);
    BuildOptions { segment_passages: memory.segment_passages(dim, m), ..options }
}

/// Fail unless the disk has room for another generation of these indexes, and for the vectors kept on the way.
fn room<'a>(dir: &Path, from: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let mut bytes = 0;
    for path in from {
        let manifest = Manifest::read(path)?;
        let vectors = manifest.encoder.as_ref().map_or(0, |e| manifest.vectors * 2 * e.dim as u64);
        bytes += manifest.bytes() + vectors;
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
        "{DIM}{} vectors taken over; {}; store {}, encode {}, graph {}, commit {}{DIM:#}",
        build.reused,
        match build.segments {
            1 => "1 segment".to_owned(),
            more => format!("{more} segments"),
        },
        output::seconds(seconds.store),
        output::seconds(seconds.encode),
        output::seconds(seconds.graph),
        output::seconds(seconds.commit)
    ))?;
    if build.deleted * 3 > build.passages {
        globals.progress().note(&format!(
            "{} deleted passages still take room on the disk: `nunatak index compact --index {}` frees it",
            build.deleted,
            dir.display()
        ));
    }
    Ok(())
}
