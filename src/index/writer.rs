//! Writing an index: passages in, one atomic commit out.
//!
//! What is written is a segment, or several where one would take more memory than it may. First all passages go into their
//! stores and inverted indexes; that takes seconds, finds every fault of the corpus, and makes the length of the rest known.
//! Then each store is read back in chunks and encoded, each chunk being kept on disk so that a stopped build goes on where it
//! was; then the segment's graph is built; then every file is hashed and synced. A build publishes these segments alone, a
//! change ([`super::change`]) with others that are there, by renaming the manifest into place. Until that instant the old
//! index, if there is one, is what everybody sees.
//!
//! Memory is bounded by what [`super::estimate`] states for the passages of a segment, whatever the texts are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::Serialize;

use super::allowed::Allowed;
use super::checked::SUMS;
use super::encode_cache::EncodeCache;
use super::hnsw::{self, Codes};
use super::lexical::{Analyser, LexicalWriter};
use super::manifest::{
    CorpusSettings, EncoderIdentity, FORMAT, FileEntry, GraphSettings, Manifest, SegmentEntry, generation_name,
};
use super::previous::Previous;
use super::ruins::Ruins;
use super::site::Site;
pub use super::site::refuse_existing;
use super::store::{Store, StoreWriter, refuse_twins};
use super::vectors::{CODES, HALVES, LINKS, SCALES, UPPER, UPPER_AT};
use super::{deleted, disk, kernel};
use crate::durable;
use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};
use crate::types::{Passage, PassageId};

/// Passages that are encoded, and kept for a restart, at a time.
const CHUNK: usize = 2048;

/// How to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// What makes the vectors; required with an `encode` function and only then.
    pub encoder: Option<EncoderIdentity>,
    /// Words a passage was split to, for the record; 0 for records taken whole.
    pub passage_words: usize,
    /// How text becomes terms.
    pub analyser: Analyser,
    /// Links of a graph node on the upper levels, twice as many on level 0.
    pub m: usize,
    /// Width of the beam while the graph is built.
    pub ef_construction: usize,
    /// Seed of the graph.
    pub seed: u64,
    /// Threads that build the graph; 0 = all cores. The index does not depend on it.
    pub threads: usize,
    /// Most passages of a segment that is written, as memory allows ([`super::estimate::most_passages`]); 0 = all in one.
    pub segment_passages: u64,
    /// Replace an index that is there.
    pub overwrite: bool,
    /// Leave the encoded vectors in the index folder's cache after the commit.
    pub keep_encode_cache: bool,
    /// Other indexes whose vectors of the same passages are taken over.
    pub vectors_from: Vec<PathBuf>,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            encoder: None,
            passage_words: 0,
            analyser: Analyser::default(),
            m: 16,
            ef_construction: 200,
            seed: 1,
            threads: 0,
            segment_passages: 0,
            overwrite: false,
            keep_encode_cache: false,
            vectors_from: Vec::new(),
        }
    }
}

/// What a build did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BuildReport {
    /// Passages in the index.
    pub passages: u64,
    /// Segments it is made of.
    pub segments: usize,
    /// Passages that were deleted and still take room.
    pub deleted: u64,
    /// Passages whose vectors an earlier, stopped build had kept.
    pub resumed: u64,
    /// Passages whose vectors came from the index that was replaced.
    pub reused: u64,
    /// Size of the index on disk, in bytes.
    pub bytes: u64,
    /// The same by the names of files, those of all segments together.
    pub files: BTreeMap<String, u64>,
    /// The index's identity: the checksum of its manifest.
    pub checksum: String,
    /// Seconds by phase.
    pub seconds: BuildSeconds,
}

impl BuildReport {
    /// With what there is now.
    pub fn with(mut self, manifest: Manifest) -> Self {
        for (name, entry) in manifest.files() {
            let name = name.rsplit_once('/').map_or(name.clone(), |(_, name)| name.to_owned());
            *self.files.entry(name).or_default() += entry.bytes;
        }
        self.bytes = manifest.bytes();
        self.passages = manifest.passages;
        self.segments = manifest.segments.len();
        self.deleted = manifest.rows() - manifest.passages;
        self.checksum = manifest.checksum;
        self
    }
}

/// Seconds by phase of a build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct BuildSeconds {
    /// Reading the corpus, storing and indexing its passages.
    pub store: f64,
    /// Encoding.
    pub encode: f64,
    /// Building the graph.
    pub graph: f64,
    /// Hashing, syncing, publishing.
    pub commit: f64,
}

/// Where a build gets its passages: calls its argument with each.
pub type Source<'a> = dyn FnMut(&mut dyn FnMut(Passage) -> Result<()>) -> Result<()> + 'a;

/// Texts to vectors `[n, dim]`, row by row.
pub type Encode<'a> = dyn FnMut(&[String]) -> Result<Vec<f32>> + 'a;

/// Build an index at `dir` from the passages of `source`, with vectors if there is an `encode`.
///
/// # Errors
/// [`Error::Index`] when there is an index (and no `overwrite`) or another writer; [`Error::Request`] for a
/// folder with other things in it, a corpus without passages, or two passages of the same id;
/// [`Error::Interrupted`] on Ctrl-C. After any error the folder shows what it showed before, and the
/// vectors encoded so far are kept for the next build.
pub fn build(
    dir: &Path,
    source: &mut Source,
    encode: Option<&mut Encode>,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<BuildReport> {
    if encode.is_some() != options.encoder.is_some() {
        return Err(Error::Internal {
            doing: "building an index",
            message: "an encode function and the encoder's identity go together".into(),
        });
    }
    if options.m < 2 || options.ef_construction == 0 {
        return Err(Error::request("a graph needs m of at least 2 and ef_construction of at least 1", "raise them"));
    }
    write(dir, options, progress, |writer| {
        let segments = writer.segments(source, encode)?;
        let rows = segments.iter().map(|segment| segment.passages as usize).sum();
        writer.publish(segments, &Allowed::but(rows, &[]))
    })
}

/// Lock the index at `dir`, let `work` write into it and publish, and remove what is of no use afterwards: what was replaced,
/// or what `work` left when it failed.
pub(super) fn write(
    dir: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
    work: impl FnOnce(&mut Writer) -> Result<Manifest>,
) -> Result<BuildReport> {
    let mut site = Site::prepare(dir, options.overwrite)?;
    let report = BuildReport::default();
    let mut writer = Writer { dir, first: site.next, generation: site.next, options, progress, report, ruins: None };
    let result = work(&mut writer);
    let left = site.leave(result.as_ref().ok(), options.keep_encode_cache);
    let (manifest, report) = (result?, writer.report);
    if let Err(e) = left {
        progress.note(&format!("the index is complete, but something old could not be removed: {e}"));
    }
    Ok(report.with(manifest))
}

/// A new state of an index under way: the folder is locked, and nothing is published yet.
pub(super) struct Writer<'a> {
    dir: &'a Path,
    /// The first generation that is written; each segment has one.
    first: u64,
    /// The generation that is being written, whose folder is there.
    generation: u64,
    options: &'a BuildOptions,
    progress: &'a dyn Progress,
    report: BuildReport,
    /// A damaged index whose vectors are taken over where they can be read.
    ruins: Option<Arc<Ruins>>,
}

impl Writer<'_> {
    /// Take over what vectors can be read of a damaged index.
    pub fn take_over(&mut self, ruins: Arc<Ruins>) {
        self.ruins = Some(ruins);
    }

    fn folder(&self) -> PathBuf {
        self.dir.join(generation_name(self.generation))
    }

    /// Write the passages of `source` as segments, with vectors if there is an `encode`. Once a writer.
    pub fn segments(&mut self, source: &mut Source, mut encode: Option<&mut Encode>) -> Result<Vec<SegmentEntry>> {
        let start = Instant::now();
        let stores = self.stores(source)?;
        self.report.seconds.store = start.elapsed().as_secs_f64();
        let (mut segments, count) = (Vec::new(), stores.len());
        for (at, store) in stores.into_iter().enumerate() {
            self.generation = self.first + at as u64;
            if count > 1 {
                self.progress.note(&format!("segment {} of {count}: {} passages", at + 1, store.len()));
            }
            let graph = match (&mut encode, &self.options.encoder) {
                (Some(encode), Some(encoder)) => Some(self.vectors(&store, *encode, encoder)?),
                _ => None,
            };
            let start = Instant::now();
            let passages = store.len() as u64;
            drop(store);
            let files = self.seal()?;
            self.report.seconds.commit += start.elapsed().as_secs_f64();
            segments.push(SegmentEntry { generation: self.generation, passages, graph, files });
        }
        Ok(segments)
    }

    /// Make these segments the index, of whose rows only `alive` count.
    pub fn publish(&mut self, segments: Vec<SegmentEntry>, alive: &Allowed) -> Result<Manifest> {
        let start = Instant::now();
        let rows: u64 = segments.iter().map(|segment| segment.passages).sum();
        if rows >= u64::from(u32::MAX) {
            return Err(Error::request(
                format!("the index would have more than {} passages", u32::MAX - 1),
                "`nunatak index compact` frees the rows of deleted ones; else split the corpus over several indexes",
            ));
        }
        let deleted = deleted::write(self.dir, self.generation, rows as usize, alive)?;
        for generation in self.first..=self.generation {
            durable::sync(&self.dir.join(generation_name(generation)))?;
        }
        durable::sync(self.dir)?;
        if let Some(parent) = self.dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            durable::sync(parent)?;
        }
        let passages = alive.len() as u64;
        check_interrupt(|| match self.report.seconds.encode > 0.0 {
            true => "what was encoded is kept, and the same command goes on from there".into(),
            false => "nothing was changed".into(),
        })?;
        let manifest = Manifest {
            format: FORMAT,
            created_by: concat!("nunatak ", env!("CARGO_PKG_VERSION")).into(),
            generation: self.generation,
            passages,
            vectors: if self.options.encoder.is_some() { passages } else { 0 },
            corpus: CorpusSettings { passage_words: self.options.passage_words },
            analyser: self.options.analyser.clone(),
            encoder: self.options.encoder.clone(),
            segments,
            deleted,
            checksum: String::new(),
        };
        let manifest = manifest.publish(self.dir)?;
        self.report.seconds.commit += start.elapsed().as_secs_f64();
        Ok(manifest)
    }

    /// Everything from the source into stores and inverted indexes, those of each segment in a folder of its own.
    fn stores(&mut self, source: &mut Source) -> Result<Vec<Store>> {
        let most = match self.options.segment_passages {
            0 => u64::MAX,
            most => most,
        };
        let (mut stores, mut under_way) = (Vec::new(), Some(self.texts()?));
        self.progress.start("indexing words", None, "passages");
        let (mut count, mut here) = (0_u64, 0);
        source(&mut |passage| {
            if count.is_multiple_of(256) {
                check_interrupt(|| "nothing was changed; the build starts from the beginning next time".into())?;
            }
            if here == most {
                stores.extend(under_way.take().map(finish).transpose()?);
                self.generation += 1;
                fs::create_dir(self.folder()).map_err(Error::file("create", &self.folder()))?;
                (under_way, here) = (Some(self.texts()?), 0);
            }
            if let Some((store, lexical)) = &mut under_way {
                lexical.add(&passage)?;
                store.add(passage)?;
            }
            (count, here) = (count + 1, here + 1);
            self.progress.advance(1);
            Ok(())
        })?;
        if count == 0 {
            return Err(Error::request("the corpus holds no passages", "check the paths and formats given"));
        }
        stores.extend(under_way.map(finish).transpose()?);
        refuse_twins(&stores)?;
        self.progress.finish();
        Ok(stores)
    }

    /// What takes the texts of a segment.
    fn texts(&self) -> Result<(StoreWriter, LexicalWriter)> {
        Ok((StoreWriter::create(&self.folder())?, LexicalWriter::create(&self.folder(), &self.options.analyser)?))
    }

    /// The vectors of all passages, and the graph over them.
    fn vectors(&mut self, store: &Store, encode: &mut Encode, encoder: &EncoderIdentity) -> Result<GraphSettings> {
        let start = Instant::now();
        let codes = self.encode(store, encode, encoder)?;
        self.report.seconds.encode += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut settings = GraphSettings {
            m: self.options.m,
            ef_construction: self.options.ef_construction,
            seed: self.options.seed,
            entry: 0,
            top_level: 0,
        };
        let kept = || kept(store.len());
        let graph = hnsw::build(&codes, &settings, self.options.threads, self.progress, &kept)?;
        (settings.entry, settings.top_level) = (graph.entry, graph.top_level);
        self.write(CODES, bytemuck::cast_slice(&codes.codes))?;
        self.write(SCALES, bytemuck::cast_slice(&codes.scales))?;
        self.write(LINKS, bytemuck::cast_slice(&graph.links))?;
        self.write(UPPER_AT, bytemuck::cast_slice(&graph.upper_at))?;
        self.write(UPPER, bytemuck::cast_slice(&graph.upper))?;
        self.report.seconds.graph += start.elapsed().as_secs_f64();
        Ok(settings)
    }

    /// Encode chunk by chunk: f16 vectors into their file, int8 codes into memory.
    fn encode(&mut self, store: &Store, encode: &mut Encode, encoder: &EncoderIdentity) -> Result<Codes> {
        let (total, dim) = (store.len(), encoder.dim);
        let cache = EncodeCache::open(self.dir, &encoder.fingerprint, dim)?;
        let previous = match &self.ruins {
            Some(ruins) => Previous::Ruins(ruins.clone()),
            None => Previous::open(self.dir, &self.options.vectors_from, encoder),
        };
        let path = self.folder().join(HALVES);
        let mut halves = BufWriter::with_capacity(1 << 18, File::create(&path).map_err(Error::file("create", &path))?);
        let mut codes = Codes { dim, codes: Vec::with_capacity(total * dim), scales: Vec::with_capacity(total) };
        let mut wide = vec![0.0; dim];
        self.progress.start("encoding", Some(total as u64), "passages");
        for first in (0..total).step_by(CHUNK) {
            check_interrupt(|| kept(first))?;
            let rows = first..total.min(first + CHUNK);
            let passages = rows.map(|row| store.passage(PassageId(row as u32))).collect::<Result<Vec<Passage>>>()?;
            let texts: Vec<String> = passages.iter().map(Passage::titled_text).collect();
            let vectors = match cache.get(&texts, dim) {
                Some(vectors) => {
                    self.report.resumed += texts.len() as u64;
                    vectors
                }
                None => {
                    let known: Vec<Option<&[f16]>> = passages.iter().map(|p| previous.vector(p)).collect();
                    self.report.reused += known.iter().flatten().count() as u64;
                    let vectors = fill(&known, &texts, encode, dim)?;
                    cache.put(&texts, &vectors)?;
                    vectors
                }
            };
            halves.write_all(bytemuck::cast_slice(&vectors)).map_err(Error::file("write", &path))?;
            for vector in vectors.chunks_exact(dim) {
                vector.convert_to_f32_slice(&mut wide);
                codes.push(&kernel::quantize(&wide));
            }
            self.progress.advance(texts.len() as u64);
        }
        halves.flush().map_err(Error::file("write", &path))?;
        self.progress.finish();
        if self.report.resumed > 0 {
            self.progress.note(&format!("{} passages were encoded by an earlier build", self.report.resumed));
        }
        if self.report.reused > 0 {
            self.progress.note(&format!("{} passages are unchanged and kept their vectors", self.report.reused));
        }
        Ok(codes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.folder().join(name);
        fs::write(&path, bytes).map_err(Error::file("write", &path))
    }

    /// Hash and sync every file of the segment.
    fn seal(&self) -> Result<BTreeMap<String, FileEntry>> {
        let folder = self.folder();
        self.progress.start("committing", None, "files");
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::file("list", &folder))? {
            let entry = entry.map_err(Error::file("list", &folder))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        let (mut files, mut sums) = (BTreeMap::new(), Vec::new());
        for name in names {
            let path = folder.join(&name);
            durable::sync(&path)?;
            let (entry, blocks) = disk::digest(&path)?;
            sums.extend_from_slice(&blocks);
            files.insert(name, entry);
            self.progress.advance(1);
        }
        self.write(SUMS, bytemuck::cast_slice(&sums))?;
        let path = folder.join(SUMS);
        durable::sync(&path)?;
        files.insert(SUMS.into(), disk::digest(&path)?.0);
        self.progress.finish();
        Ok(files)
    }
}

/// The texts of a segment, when all are there.
fn finish((store, lexical): (StoreWriter, LexicalWriter)) -> Result<Store> {
    let store = store.finish()?;
    lexical.finish()?;
    Ok(store)
}

/// What an interrupted build keeps.
fn kept(passages: usize) -> String {
    format!("the vectors of {passages} passages are kept, and the same command goes on from there")
}

/// The vectors of `texts`, row by row: the known ones as they are, and the others encoded together.
fn fill(known: &[Option<&[f16]>], texts: &[String], encode: &mut Encode, dim: usize) -> Result<Vec<f16>> {
    let unknown: Vec<String> =
        known.iter().zip(texts).filter(|(known, _)| known.is_none()).map(|(_, text)| text.clone()).collect();
    let fresh = if unknown.is_empty() { Vec::new() } else { unit_halves(encode(&unknown)?, unknown.len(), dim)? };
    let mut fresh = fresh.chunks_exact(dim.max(1));
    let rows = known.iter().filter_map(|row| row.or_else(|| fresh.next()));
    Ok(rows.flatten().copied().collect())
}

/// Encoded vectors, checked, brought to unit length and stored in 16 bits.
fn unit_halves(vectors: Vec<f32>, count: usize, dim: usize) -> Result<Vec<f16>> {
    let wrong = |message: String| Error::Internal { doing: "encoding passages", message };
    if vectors.len() != count * dim {
        return Err(wrong(format!("{} numbers came back for {count} vectors of {dim}", vectors.len())));
    }
    let mut halves = Vec::with_capacity(vectors.len());
    for vector in vectors.chunks_exact(dim) {
        let length = kernel::dot(vector, vector).sqrt();
        if !length.is_finite() {
            return Err(wrong("the encoder gave a vector that is not finite".into()));
        }
        let inverse = if length > 0.0 { 1.0 / length } else { 0.0 };
        halves.extend(vector.iter().map(|x| f16::from_f32(x * inverse)));
    }
    Ok(halves)
}
