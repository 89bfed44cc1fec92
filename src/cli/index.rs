//! `nunatak index`: build an index, change it, look at it, verify it.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::Globals;
use crate::cli::index_change::{self, AddArgs, CompactArgs, DeleteArgs, ExportArgs, MergeArgs, RepairArgs, UpdateArgs};
use crate::cli::index_cluster;
use crate::cli::index_memory::MemoryArgs;
use crate::cli::output::{self, BAD, BOLD, DIM, GOOD};
use crate::cli::warm::{self, WarmArgs};
use crate::corpus::{self, CorpusOptions, CorpusReport};
use crate::disk;
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::index::encode_cache::CACHE;
use crate::index::estimate::{Workload, estimate};
use crate::index::lexical::{Analyser, HEAVIEST_TITLE, StopWordList, StopWords};
use crate::index::manifest::{EncoderIdentity, Manifest};
use crate::index::recall::{self, Ladder};
use crate::index::writer::{self, BuildOptions, BuildReport};
use crate::milvus::fill::{self, CorpusHash, FillOptions};
use crate::milvus::{Address, VectorIndex};
use crate::progress::{Progress, check_interrupt};
use crate::runtime::setup;
use crate::types::Passage;

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
    /// Add documents to an index
    Add(AddArgs),
    /// Add documents to an index, replacing those of the same ids
    Update(UpdateArgs),
    /// Take documents or passages out of an index
    Delete(DeleteArgs),
    /// Write an index anew as one segment (or as few as memory allows), without what was deleted
    Compact(CompactArgs),
    /// Put indexes together in a new one
    Merge(MergeArgs),
    /// Write the passages of an index as JSON lines
    Export(ExportArgs),
    /// What an index holds
    Info(AtArgs),
    /// Check every byte of an index
    Verify(AtArgs),
    /// Make a damaged index whole again, of what can still be read of it
    Repair(RepairArgs),
    /// Keep what the reader makes of passages, so that the first question about them is answered as fast as the second
    Warm(Box<WarmArgs>),
}

/// Options of `nunatak index build`.
#[derive(Debug, Args)]
struct BuildArgs {
    /// Folder of the index to be, or milvus://host:port/collection
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Files and folders to read: JSONL, TSV, Parquet, Arrow, Markdown, text, HTML, PDF, Word (.docx); gz and zst as they are
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    corpus: Vec<PathBuf>,
    /// Split documents at sentence ends into passages of this many words, up to twice as many; records (JSONL, TSV,
    /// Parquet, Arrow) stay whole up to four times as many. 0 keeps everything whole
    #[arg(long, default_value_t = 100, value_name = "WORDS")]
    passage_words: usize,
    /// Go on over up to N bad records
    #[arg(long, default_value_t = 0, value_name = "N")]
    skip_bad: u64,
    /// Encoder for dense search: a model's name or folder
    #[arg(long, default_value = DEFAULT_ENCODER, value_name = "MODEL")]
    encoder: String,
    /// No vectors: BM25 only
    #[arg(long, conflicts_with_all = ["encoder", "keep_encoded"])]
    no_dense: bool,
    /// Language of the words for BM25, for its stems and stop words: english, german, ... or none
    #[arg(long, default_value = "english", value_name = "NAME")]
    language: String,
    /// Index words as they are, not their stems
    #[arg(long)]
    no_stemming: bool,
    /// Search for stop words (the, of, ...), too
    #[arg(long)]
    keep_stop_words: bool,
    /// Leave the words of this file out of questions, in place of the language's stop words: text, a word a line
    #[arg(long, value_name = "FILE", conflicts_with = "keep_stop_words")]
    stop_words: Option<PathBuf>,
    /// How often a word of a title counts for BM25, where one of the text counts once; 0 leaves titles out
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(HEAVIEST_TITLE)))]
    title_weight: u32,
    /// Neighbours a passage has in the vector graph
    #[arg(long, default_value_t = 16, value_name = "M")]
    neighbours: usize,
    /// Candidates considered for them: higher is slower to build and better to search
    #[arg(long, default_value_t = 200, value_name = "N")]
    ef_construction: usize,
    #[command(flatten)]
    memory: MemoryArgs,
    /// What a cluster makes of the vectors: hnsw (a graph in memory), hnsw-sq8 (the same over bytes, a third of the memory), or
    /// diskann (a graph on the disk of the query nodes); a folder has one kind [default: hnsw]
    #[arg(long, value_name = "KIND")]
    vector_index: Option<VectorIndex>,
    /// Build a part of the index only, the I-th of N: machines that share a corpus build one each, and `nunatak index merge`
    /// makes of them, in their order, the index of the whole; in a collection they meet by themselves
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Say what the build would take, and do nothing; with N for so many passages like these
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0")]
    estimate: Option<u64>,
    /// Replace an index that is there; it stays in use until the new one is complete
    #[arg(long)]
    overwrite: bool,
    /// Keep the encoded vectors beside the index for the next build of the same corpus
    #[arg(long)]
    keep_encoded: bool,
}

/// One of the parts of equal size that a corpus is cut into.
#[derive(Debug, Clone, Copy)]
struct Shard {
    /// Which, from 1.
    part: u64,
    of: u64,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((part, of)) if (1..=of).contains(&part) => Ok(Self { part, of }),
            _ => Err("a shard is said as 1/4 to 4/4".to_owned()),
        }
    }
}

impl Shard {
    /// Its passages, of so many.
    fn range(self, passages: u64) -> Range<u64> {
        let behind = |part: u64| (u128::from(passages) * u128::from(part) / u128::from(self.of)) as u64;
        behind(self.part - 1)..behind(self.part)
    }
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
        IndexCommand::Add(args) => index_change::add(args, globals),
        IndexCommand::Update(args) => index_change::update(args, globals),
        IndexCommand::Compact(args) => index_change::compact(args, globals),
        IndexCommand::Export(args) => index_change::export(args, globals),
        IndexCommand::Delete(args) => index_change::delete(args, globals),
        IndexCommand::Merge(args) => index_change::merge(args, globals),
        IndexCommand::Info(args) => info(args, globals),
        IndexCommand::Verify(args) => verify(args, globals),
        IndexCommand::Repair(args) => index_change::repair(args, globals),
        IndexCommand::Warm(args) => warm::run(args, globals),
    }
}

fn build(args: &BuildArgs, globals: &Globals) -> Result<()> {
    let progress = globals.progress();
    let options = globals.runtime();
    let cluster = Address::of(&args.index)?;
    match &cluster {
        Some(address) => {
            refuse_in_cluster(args)?;
            fill::reach(address)?;
        }
        None => {
            index_cluster::refuse_vector_index(args.vector_index)?;
            writer::refuse_existing(&args.index, args.overwrite || args.estimate.is_some())?;
        }
    }
    corpus::refuse_pipes(&args.corpus)?;
    let analyser = analyser(args)?;
    let corpus_options = CorpusOptions { passage_words: args.passage_words, skip_bad: args.skip_bad };

    // The corpus is read twice. The first pass costs seconds, finds a bad line before hours are spent on
    // encoding, and makes the estimate and the bars exact.
    progress.start("reading", None, "passages");
    let (mut survey, mut hash) = (Survey::default(), CorpusHash::default());
    let corpus = corpus::read(&args.corpus, &corpus_options, &mut |passage| {
        progress.advance(1);
        if cluster.is_some() {
            hash.add(&passage);
        }
        survey.look_at(&passage);
        check_interrupt(|| "nothing was changed".to_owned())
    })?;
    progress.finish();
    note_skipped(&corpus, progress.as_ref());

    let range = args.shard.map_or(0..corpus.passages, |shard| shard.range(corpus.passages));
    if range.is_empty() {
        return Err(Error::request(
            format!("the corpus has {} passages, too few for this shard", corpus.passages),
            "cut it into fewer shards",
        ));
    }
    let mut encoder = if args.no_dense {
        None
    } else {
        let model = setup::model(&args.encoder, &options, progress.as_ref())?;
        Some(Encoder::open(&model, &options)?)
    };
    let identity = encoder.as_ref().map(|encoder| EncoderIdentity {
        name: args.encoder.clone(),
        fingerprint: encoder.fingerprint().to_owned(),
        dim: encoder.dim(),
    });
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| {
        let mut number = 0;
        corpus::read(&args.corpus, &corpus_options, &mut |passage| {
            let is_ours = range.contains(&number);
            number += 1;
            if is_ours { sink(passage) } else { Ok(()) }
        })
        .map(drop)
    };
    let encoded_per_second = match &mut encoder {
        Some(encoder) => survey.encoding_speed(encoder)?,
        None => 0.0,
    };
    if let Some(address) = &cluster {
        let (count, words) = (range.end - range.start, corpus.words as f64 / corpus.passages.max(1) as f64);
        let time = match encoder {
            Some(_) => format!("about {} to encode them", output::seconds(count as f64 / encoded_per_second.max(1e-9))),
            None => "nothing to encode".to_owned(),
        };
        progress.note(&format!("{count} passages of {words:.0} words on average: {time}, less what is there already"));
        let options = FillOptions {
            encoder: identity,
            analyser,
            passage_words: args.passage_words,
            corpus: hash.finish(),
            passages: corpus.passages,
            shard: args.shard.map_or((1, 1), |shard| (shard.part, shard.of)),
            shard_passages: range.end - range.start,
            m: args.neighbours,
            ef_construction: args.ef_construction,
            vectors: args.vector_index.unwrap_or_default(),
            overwrite: args.overwrite,
            vectors_from: Vec::new(),
        };
        return index_cluster::build(address, &mut source, encoder.as_mut(), &options, globals);
    }
    let dim = encoder.as_ref().map_or(0, Encoder::dim);
    let segment_passages = args.memory.segment_passages(dim, args.neighbours);
    let work = Workload {
        passages: args.estimate.filter(|count| *count > 0).unwrap_or(range.end - range.start),
        mean_bytes: survey.mean(survey.bytes),
        metadata_bytes: survey.mean(survey.metadata),
        dim,
        m: args.neighbours,
        ef_construction: args.ef_construction,
        threads: options.thread_count(),
        segment_passages,
        encoded_per_second,
    };
    let estimate = estimate(&work);
    let told = format!(
        "{} passages of {:.0} words on average{}: about {}, {} of memory beside the encoder's, {} of disk ({} when done)",
        work.passages,
        corpus.words as f64 / corpus.passages.max(1) as f64,
        match work.passages.div_ceil(segment_passages) {
            1 => String::new(),
            segments => format!(", in {segments} segments (--memory)"),
        },
        output::seconds(estimate.seconds),
        output::bytes(estimate.memory_bytes),
        output::bytes(estimate.disk_bytes),
        output::bytes(estimate.index_bytes),
    );
    if args.estimate.is_some() {
        return match globals.json {
            true => {
                output::json(&serde_json::json!({"corpus": corpus, "passages": work.passages, "estimate": estimate}))
            }
            false => output::line(told),
        };
    }
    progress.note(&told);

    // Vectors that a stopped build kept are on the disk already.
    let (_, kept) = disk::usage(&args.index.join(CACHE))?;
    disk::require(&args.index, estimate.disk_bytes.saturating_sub(kept))?;

    let build_options = BuildOptions {
        encoder: identity,
        passage_words: args.passage_words,
        analyser,
        m: args.neighbours,
        ef_construction: args.ef_construction,
        threads: globals.threads,
        segment_passages,
        overwrite: args.overwrite,
        keep_encode_cache: args.keep_encoded,
        ..BuildOptions::default()
    };
    let mut encode = encoder.as_mut().map(|encoder| |texts: &[String]| encoder.encode(texts));
    let report = writer::build(
        &args.index,
        &mut source,
        encode.as_mut().map(|e| e as &mut writer::Encode),
        &build_options,
        progress.as_ref(),
    )?;
    let truncation = encoder.as_ref().map(Encoder::truncation).unwrap_or_default();
    if globals.json {
        return output::json(&serde_json::json!({
            "corpus": corpus, "estimate": estimate, "build": report,
            "truncated_by_encoder": { "passages": truncation.texts, "tokens": truncation.tokens },
        }));
    }
    if truncation.texts > 0 {
        progress.note(&format!(
            "{} passages are longer than the encoder reads: {} tokens at their ends are not in their vectors (BM25 and \
             the reader see all)",
            truncation.texts, truncation.tokens
        ));
    }
    print_report(args, &report)
}

/// Name the bad records that were left out, and say how many there are if those are only the first.
pub(super) fn note_skipped(corpus: &CorpusReport, progress: &dyn Progress) {
    for problem in &corpus.first_skipped {
        progress.note(&format!("skipped: {problem}"));
    }
    if corpus.skipped > corpus.first_skipped.len() as u64 {
        progress.note(&format!("skipped: {} records in all", corpus.skipped));
    }
}

/// Fail on options that mean nothing, or harm, where the index is a collection that others may be filling.
fn refuse_in_cluster(args: &BuildArgs) -> Result<()> {
    if args.estimate.is_some() {
        let hint = "docs/scale.md has the arithmetic of a cluster";
        return Err(Error::request("--estimate is of an index in a folder", hint));
    }
    args.memory.refuse_in_cluster()?;
    if args.keep_encoded {
        return Err(Error::request(
            "--keep-encoded keeps vectors in the folder of an index, and a collection has none",
            "leave it out: a build that is run again encodes only what the collection does not have",
        ));
    }
    if args.overwrite && args.shard.is_some() {
        return Err(Error::request(
            "--overwrite would drop what the other shards have written",
            "build under another name, or drop the collection before the first shard begins",
        ));
    }
    Ok(())
}

/// How words are made, as it was typed.
fn analyser(args: &BuildArgs) -> Result<Analyser> {
    Ok(Analyser {
        language: match args.language.as_str() {
            "none" => None,
            name => Some(name.parse()?),
        },
        stemming: !args.no_stemming,
        stop_words: stop_words(args)?,
        title_weight: args.title_weight,
        ..Analyser::default()
    })
}

/// The list that was asked for, or the language's.
fn stop_words(args: &BuildArgs) -> Result<StopWords> {
    let Some(file) = &args.stop_words else { return Ok(StopWords::OfLanguage(!args.keep_stop_words)) };
    let list = StopWordList::read(file)?;
    if !list.left_out.is_empty() {
        let entries: Vec<String> = list.left_out.iter().map(|entry| format!("{entry:?}")).collect();
        tracing::warn!("{}: left out, as they are not one word to BM25: {}", file.display(), entries.join(", "));
    }
    Ok(list.words)
}

fn print_report(args: &BuildArgs, report: &BuildReport) -> Result<()> {
    let seconds = &report.seconds;
    let total = seconds.store + seconds.encode + seconds.graph + seconds.commit;
    output::line(format_args!(
        "{GOOD}{} passages{GOOD:#} in {}: {} on disk ({:.0} bytes a passage), {} ({:.0} passages/s)",
        report.passages,
        args.index.display(),
        output::bytes(report.bytes),
        report.bytes as f64 / report.passages.max(1) as f64,
        output::seconds(total),
        report.passages as f64 / total.max(1e-9),
    ))?;
    output::line(format_args!(
        "{DIM}store {}, encode {}, graph {}, commit {}{DIM:#}",
        output::seconds(seconds.store),
        output::seconds(seconds.encode),
        output::seconds(seconds.graph),
        output::seconds(seconds.commit)
    ))?;
    output::line(format_args!("next: nunatak ask \"your question\" --index {}", args.index.display()))
}

/// What the first pass over a corpus learns for the estimate.
#[derive(Debug)]
struct Survey {
    seen: u64,
    bytes: u64,
    metadata: u64,
    stride: u64,
    sample: Vec<String>,
}

/// Passages that are encoded to learn the encoder's speed: a second's work.
const SAMPLE: usize = 128;

impl Default for Survey {
    fn default() -> Self {
        Self { seen: 0, bytes: 0, metadata: 0, stride: 1, sample: Vec::with_capacity(SAMPLE) }
    }
}

impl Survey {
    /// Count a passage, and keep an even sample: every `stride`-th, the stride doubling when the sample is full.
    fn look_at(&mut self, passage: &Passage) {
        if self.seen.is_multiple_of(self.stride) {
            if self.sample.len() == SAMPLE {
                let mut keep = false;
                self.sample.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.sample.push(passage.titled_text());
            }
        }
        self.seen += 1;
        self.bytes += (passage.title.len() + passage.text.len()) as u64;
        if !passage.metadata.is_empty() {
            self.metadata += serde_json::to_string(&passage.metadata).map_or(0, |json| json.len()) as u64;
        }
    }

    /// Mean over the passages of what was counted of them.
    fn mean(&self, sum: u64) -> f64 {
        sum as f64 / self.seen.max(1) as f64
    }

    /// Passages a second on the sample.
    fn encoding_speed(&self, encoder: &mut Encoder) -> Result<f64> {
        let begin = Instant::now();
        encoder.encode(&self.sample)?;
        Ok(self.sample.len() as f64 / begin.elapsed().as_secs_f64().max(1e-9))
    }
}

/// What `index info` prints.
#[derive(Debug, Serialize)]
struct Info<'a> {
    path: String,
    checksum: &'a str,
    bytes: u64,
    /// What a filter can name.
    fields: Vec<String>,
    /// What beams find, where it was measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recall: Vec<Ladder>,
    manifest: &'a Manifest,
}

fn info(args: &AtArgs, globals: &Globals) -> Result<()> {
    if let Some(address) = Address::of(&args.index)? {
        return index_cluster::info(&address, globals);
    }
    let index = Index::open(&args.index)?;
    let manifest = index.manifest();
    let bytes = manifest.bytes();
    let fields = index.fields()?;
    let recall = recall::known(&index);
    if globals.json {
        let path = args.index.display().to_string();
        return output::json(&Info { path, checksum: &manifest.checksum, bytes, fields, recall, manifest });
    }
    let row = |word: &str, value: String| output::line(format_args!("{DIM}{word:<12}{DIM:#} {value}"));
    output::line(format_args!("{BOLD}{}{BOLD:#}", args.index.display()))?;
    row("passages", manifest.passages.to_string())?;
    let deleted = manifest.rows() - manifest.passages;
    if deleted > 0 || manifest.segments.len() > 1 {
        let sizes: Vec<String> = manifest.segments.iter().map(|segment| segment.passages.to_string()).collect();
        row("segments", format!("{} (rows {})", sizes.len(), sizes.join(" + ")))?;
        row("deleted", format!("{deleted} rows, which `nunatak index compact` frees"))?;
    }
    row("split", output::split(manifest.corpus.passage_words))?;
    match &manifest.encoder {
        Some(encoder) => row("vectors", format!("{} x {}, by {}", manifest.vectors, encoder.dim, encoder.name))?,
        None => row("vectors", "none (BM25 only)".to_owned())?,
    }
    for ladder in &recall {
        let beams: Vec<String> = ladder
            .beams
            .iter()
            .map(|beam| format!("{:.4} (ef {})", beam.recall.unwrap_or_default(), beam.ef))
            .collect();
        row("recall", format!("at {}: {}", ladder.depth, beams.join(", ")))?;
    }
    row("words", manifest.analyser.to_string())?;
    if !fields.is_empty() {
        row("fields", format!("{} (for --filter)", fields.join(", ")))?;
    }
    row("size", format!("{} ({:.0} bytes a passage)", output::bytes(bytes), bytes as f64 / index.len().max(1) as f64))?;
    row("checksum", manifest.checksum.clone())?;
    for (name, file) in manifest.files() {
        output::line(format_args!("{DIM}  {name:<38}{DIM:#} {:>10}", output::bytes(file.bytes)))?;
    }
    Ok(())
}

fn verify(args: &AtArgs, globals: &Globals) -> Result<()> {
    let progress = globals.progress();
    let report = crate::index::verify::verify(&args.index, progress.as_ref())?;
    if globals.json {
        output::json(&report)?;
    }
    if let Some(first) = report.damage.first() {
        if !globals.json {
            for damage in &report.damage {
                output::line(format_args!("{BAD}damaged{BAD:#}  {}: {}", damage.file, damage.problem))?;
            }
        }
        return Err(Error::index(
            &args.index,
            format!("{} file(s) are damaged, the first: {}: {}", report.damage.len(), first.file, first.problem),
            "`nunatak index repair` makes it whole of what can be read; or build it again with --overwrite",
        ));
    }
    if globals.json { Ok(()) } else { output::line(format_args!("{GOOD}ok{GOOD:#}  {}", args.index.display())) }
}
