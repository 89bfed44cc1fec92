//! `manifest.json`: what an index is made of. It is the index's only commit point: files lie in
//! generation folders that nothing refers to until the manifest that names them is renamed into place.
//!
//! The last line but one of the file is the sha256 of everything before it; this envelope stays the same
//! in every format version, so that a damaged manifest is told from one of another version.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk;
use super::lexical::Analyser;
use crate::durable;
use crate::error::{Error, Result};
use crate::milvus::Address;

/// Version of the on-disk format that this crate writes. It reads those from [`OLDEST`] on.
pub const FORMAT: u32 = 3;
/// The oldest that it reads. In format 1 passages had no metadata; in 1 and 2 an index was one segment.
pub const OLDEST: u32 = 1;

/// Name of the manifest in an index folder.
pub const MANIFEST: &str = "manifest.json";

/// Name of the file of [`Deleted`]: 64-bit words, little-endian, the first row in the lowest bit of the first.
pub(super) const DELETED: &str = "deleted.bits";

/// Length of the manifest's end: `,\n  "checksum": "<64 hex digits>"\n}\n`.
const TAIL_START: &str = ",\n  \"checksum\": \"";
const TAIL_END: &str = "\"\n}\n";

/// What an index holds and how it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the on-disk format.
    pub format: u32,
    /// The program that wrote it.
    pub created_by: String,
    /// Number of this commit; the files it brought lie in the folder of this number.
    pub generation: u64,
    /// Passages that can be found: the rows of all segments but the deleted ones.
    pub passages: u64,
    /// Vectors that can be found; as many as passages, or 0 for an index without dense search.
    pub vectors: u64,
    /// How the corpus was cut.
    pub corpus: CorpusSettings,
    /// How text was turned into terms.
    pub analyser: Analyser,
    /// What made the vectors.
    pub encoder: Option<EncoderIdentity>,
    /// What it is made of, in the order of rows.
    pub segments: Vec<SegmentEntry>,
    /// Which rows no longer count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<Deleted>,
    /// sha256 of the manifest itself: the index's identity in reports. Not a field of the JSON object.
    #[serde(skip)]
    pub checksum: String,
}

/// One segment: passages that came in together, with a text store, an inverted index and a graph of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentEntry {
    /// Which generation folder holds its files.
    pub generation: u64,
    /// Its rows, deleted ones included.
    pub passages: u64,
    /// The nearest-neighbour graph over its vectors.
    pub graph: Option<GraphSettings>,
    /// Its files, by name.
    pub files: BTreeMap<String, FileEntry>,
}

/// Rows that were deleted: a bit a row, set for those, in a file of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deleted {
    /// Which generation folder holds the file.
    pub generation: u64,
    /// How many they are.
    pub passages: u64,
    /// The file.
    pub file: FileEntry,
}

/// How the corpus was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusSettings {
    /// Words a passage was split to; 0 when records were taken whole.
    pub passage_words: usize,
}

/// Which encoder made the vectors: a question must go through the same one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderIdentity {
    /// Its name, for people.
    pub name: String,
    /// Hash of its graph.
    pub fingerprint: String,
    /// Width of its vectors.
    pub dim: usize,
}

/// The nearest-neighbour graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphSettings {
    /// Links a node has on the upper levels; twice as many on level 0.
    pub m: usize,
    /// Width of the beam while it was built.
    pub ef_construction: usize,
    /// Seed of the levels and of the order of insertion.
    pub seed: u64,
    /// Node where a search starts.
    pub entry: u32,
    /// Its level, the highest.
    pub top_level: u8,
}

/// One file of the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its length.
    pub bytes: u64,
    /// Its hash.
    pub sha256: String,
}

/// A manifest of formats 1 and 2: one segment, nothing deleted.
#[derive(Deserialize)]
struct OneSegment {
    format: u32,
    created_by: String,
    generation: u64,
    passages: u64,
    vectors: u64,
    corpus: CorpusSettings,
    encoder: Option<EncoderIdentity>,
    graph: Option<GraphSettings>,
    files: BTreeMap<String, FileEntry>,
}

impl From<OneSegment> for Manifest {
    fn from(old: OneSegment) -> Self {
        let OneSegment { generation, passages, graph, files, .. } = old;
        Self {
            format: old.format,
            created_by: old.created_by,
            generation,
            passages,
            vectors: old.vectors,
            corpus: old.corpus,
            // There was one.
            analyser: Analyser::default(),
            encoder: old.encoder,
            segments: vec![SegmentEntry { generation, passages, graph, files }],
            deleted: None,
            checksum: String::new(),
        }
    }
}

/// Only what must be readable in every version.
#[derive(Deserialize)]
struct Envelope {
    format: u32,
    #[serde(default)]
    created_by: String,
}

impl Manifest {
    /// Read and check the manifest of the index at `dir`.
    ///
    /// # Errors
    /// [`Error::Index`] naming the manifest: there is none, it is damaged, or of another format version.
    pub fn read(dir: &Path) -> Result<Self> {
        Address::refuse(dir)?;
        let path = dir.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Err(Error::index(dir, "there is no index here", "make one with `nunatak index build`"));
            }
            Err(e) => return Err(Error::file("read", &path)(e)),
        };
        let broken =
            |problem: &str| Error::index(&path, format!("the manifest is damaged: {problem}"), "build the index again");
        let (body, checksum) = split(&bytes).ok_or_else(|| broken("it does not end with its checksum"))?;
        if disk::sha256(body) != checksum {
            return Err(broken("its checksum does not match"));
        }
        let envelope: Envelope = serde_json::from_slice(&bytes).map_err(|e| broken(&e.to_string()))?;
        if !(OLDEST..=FORMAT).contains(&envelope.format) {
            return Err(Error::index(
                dir,
                format!(
                    "it has format {}, written by {}, and this is nunatak {} which reads formats {OLDEST} to {FORMAT}",
                    envelope.format,
                    if envelope.created_by.is_empty() { "an unknown program" } else { &envelope.created_by },
                    env!("CARGO_PKG_VERSION"),
                ),
                "use the program that wrote it, or build the index again with this one",
            ));
        }
        let manifest: Self = match envelope.format {
            1 | 2 => serde_json::from_slice::<OneSegment>(&bytes).map(Self::from),
            _ => serde_json::from_slice(&bytes),
        }
        .map_err(|e| broken(&e.to_string()))?;
        let rows = manifest.rows();
        let gone = manifest.deleted.as_ref().map_or(0, |deleted| deleted.passages);
        if manifest.segments.is_empty()
            || rows >= u64::from(u32::MAX)
            || rows.checked_sub(gone) != Some(manifest.passages)
        {
            return Err(broken("its counts of passages disagree"));
        }
        Ok(Self { checksum: checksum.to_owned(), ..manifest })
    }

    /// Rows of all segments, deleted ones included.
    pub fn rows(&self) -> u64 {
        self.segments.iter().fold(0, |rows, segment| rows.saturating_add(segment.passages))
    }

    /// Every file it names, with the folder's name before its own, in the order of segments.
    pub fn files(&self) -> impl Iterator<Item = (String, &FileEntry)> {
        let named = |generation, name: &str| format!("{}/{name}", generation_name(generation));
        let of_segments = self.segments.iter().flat_map(move |segment| {
            segment.files.iter().map(move |(name, entry)| (named(segment.generation, name), entry))
        });
        of_segments.chain(self.deleted.iter().map(move |deleted| (named(deleted.generation, DELETED), &deleted.file)))
    }

    /// Bytes of all files it names.
    pub fn bytes(&self) -> u64 {
        self.files().map(|(_, entry)| entry.bytes).sum()
    }

    /// Whether it names anything in the folder of this number.
    pub(super) fn uses(&self, generation: u64) -> bool {
        self.segments.iter().any(|segment| segment.generation == generation)
            || self.deleted.as_ref().is_some_and(|deleted| deleted.generation == generation)
    }

    /// Make this the manifest of `dir`, durably and at once. Returns it with its checksum filled in.
    pub(super) fn publish(self, dir: &Path) -> Result<Self> {
        let mut body =
            serde_json::to_string_pretty(&self).map_err(Error::internal("writing the manifest of an index"))?;
        body.truncate(body.len() - "\n}".len());
        let checksum = disk::sha256(body.as_bytes());
        let text = format!("{body}{TAIL_START}{checksum}{TAIL_END}");
        durable::replace(&dir.join(MANIFEST), text.as_bytes())?;
        Ok(Self { checksum, ..self })
    }
}

/// Name of a generation's folder.
pub(super) fn generation_name(generation: u64) -> String {
    format!("gen-{generation:06}")
}

/// The part of a manifest that its checksum covers, and the checksum.
fn split(bytes: &[u8]) -> Option<(&[u8], &str)> {
    let rest = bytes.strip_suffix(TAIL_END.as_bytes())?;
    let (head, checksum) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    Some((head.strip_suffix(TAIL_START.as_bytes())?, std::str::from_utf8(checksum).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        Manifest {
            format: FORMAT,
            created_by: "nunatak test".into(),
            generation: 3,
            passages: 2,
            vectors: 0,
            corpus: CorpusSettings { passage_words: 100 },
            analyser: Analyser::default(),
            encoder: None,
            segments: vec![SegmentEntry {
                generation: 2,
                passages: 3,
                graph: None,
                files: BTreeMap::from([("a".into(), FileEntry { bytes: 1, sha256: "x".into() })]),
            }],
            deleted: Some(Deleted { generation: 3, passages: 1, file: FileEntry { bytes: 8, sha256: "y".into() } }),
            checksum: String::new(),
        }
    }

    #[test]
    fn files_are_named_with_their_folders() {
        let names: Vec<String> = example().files().map(|(name, _)| name).collect();
        assert_eq!(names, ["gen-000002/a", "gen-000003/deleted.bits"]);
        assert_eq!((example().bytes(), example().rows()), (9, 3));
        assert_eq!([1, 2, 3].map(|generation| example().uses(generation)), [false, true, true]);
    }

    #[test]
    fn counts_that_disagree_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        for wrong in [
            Manifest { passages: 3, ..example() },
            Manifest { deleted: None, ..example() },
            Manifest { segments: Vec::new(), passages: 0, deleted: None, ..example() },
        ] {
            wrong.publish(dir.path()).unwrap();
            let error = Manifest::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("disagree"), "{error}");
        }
    }

    #[test]
    fn what_is_published_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let written = example().publish(dir.path()).unwrap();
        let read = Manifest::read(dir.path()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.checksum.len(), 64);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        example().publish(dir.path()).unwrap();
        let path = dir.path().join(MANIFEST);
        let whole = fs::read(&path).unwrap();
        for i in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[i] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let error = Manifest::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("manifest.json: the manifest is damaged"), "byte {i}: {error}");
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Manifest::read(dir.path()).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn another_version_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        Manifest { format: 9, created_by: "nunatak 7.0.0".into(), ..example() }.publish(dir.path()).unwrap();
        let error = Manifest::read(dir.path()).unwrap_err();
        assert!(error.to_string().contains("format 9, written by nunatak 7.0.0"), "{error}");
        assert!(error.hint().unwrap().contains("build the index again"));
    }
}
