//! How wide a beam must be to find a wanted part of the exact neighbours, measured on the index itself.
//!
//! What a beam finds depends on the passages and on what is asked, and no formula knows either. So texts like questions, cut
//! from a sample of each segment's own passages, are searched with beams of several widths and compared with exact search. Stored vectors
//! would need no encoder, but say too much: they lie among the vectors that the graph links, and questions beside them
//! (benches/README.md). A question of a user may still be harder or easier than the sample.
//!
//! The result is kept beside the index, a segment's by the checksum of its graph, so that a change of the index measures what
//! came only. The file is no part of the index: the manifest does not know it, a damaged one is measured again, and it may be
//! deleted at any time.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::dense::Dense;
use super::manifest::{FileEntry, SegmentEntry};
use super::vectors::LINKS;
use super::{Index, disk};
use crate::durable;
use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};
use crate::types::PassageId;

/// Name of the file in an index folder.
pub(super) const RECALLS: &str = "recall.json";

/// What a file of another form, or of another way to measure, does not say.
const VERSION: u32 = 1;

/// Texts a segment. With 200 the recall of 100 neighbours is known to some 0.002 where it is 0.99.
const SAMPLE: usize = 200;

/// Words of the passage's text behind its title. Of five forms of texts this one finds what questions find, or a little less
/// (benches/README.md); with more words neighbours are found too easily.
const WORDS: usize = 4;

/// Words of the text where there is no title.
const WORDS_ALONE: usize = 8;

/// Widths that are tried, in quarters of the depth. No beam is narrower than the depth.
const QUARTERS: [usize; 12] = [4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];

/// One measurement at a time in this process: a server's workers all want the same, and the second finds it in the file.
static MEASURING: Mutex<()> = Mutex::new(());

/// A beam, and the part of the exact neighbours that it finds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Beam {
    /// Its width, in candidates.
    pub ef: usize,
    /// The part of the exact neighbours that it found of the sample, 0 to 1; none if it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall: Option<f32>,
}

impl std::fmt::Display for Beam {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "ef {}", self.ef)?;
        self.recall.map_or(Ok(()), |recall| write!(f, ", recall {recall:.4}"))
    }
}

/// What beams find of the exact neighbours of a depth, narrowest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ladder {
    /// How many neighbours were looked for.
    pub depth: usize,
    /// The beams, each of the mean recall over all passages.
    pub beams: Vec<Beam>,
}

impl Ladder {
    /// The narrowest beam that finds at least this part of the exact neighbours.
    ///
    /// # Errors
    /// [`Error::Request`] when it is no part, or no beam that was measured finds as much; it says what the best one finds.
    pub fn reach(&self, wanted: f32) -> Result<Beam> {
        check_wanted(wanted)?;
        let found = |beam: &Beam| beam.recall.unwrap_or_default();
        if let Some(beam) = self.beams.iter().find(|beam| found(beam) >= wanted) {
            return Ok(*beam);
        }
        let best = self.widest();
        Err(Error::request(
            format!(
                "no beam that was measured finds {wanted} of the {} nearest passages: the widest (ef {}) finds {:.4}",
                self.depth,
                best.ef,
                found(&best)
            ),
            "ask for less, or compare the question with every vector: --exact",
        ))
    }

    /// The widest beam that was measured.
    pub fn widest(&self) -> Beam {
        self.beams.last().copied().unwrap_or(Beam { ef: self.depth, recall: None })
    }
}

/// Fail for a recall that nothing can have.
///
/// # Errors
/// [`Error::Request`] for a number that is not above 0 and at most 1.
pub fn check_wanted(wanted: f32) -> Result<()> {
    if wanted > 0.0 && wanted <= 1.0 {
        return Ok(());
    }
    Err(Error::request(
        format!("--recall is the part of the exact neighbours to find, above 0 and at most 1, not {wanted}"),
        "for example --recall 0.99",
    ))
}

/// What was measured of one segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Measured {
    /// The sha256 of its graph.
    graph: String,
    depth: usize,
    /// Texts that were searched.
    texts: usize,
    /// Widths of beams, and how many of all texts' exact neighbours each found.
    found: Vec<(usize, u64)>,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    version: u32,
    measured: Vec<Measured>,
    /// sha256 of `measured` as JSON without spaces.
    checksum: String,
}

/// What beams find of the `depth` nearest passages of an index, by the file beside it or, where that does not say, measured and
/// written there. `encode` makes the unit vector of a text as of a question. Some 5 seconds for 225,594 passages on 2 cores.
///
/// # Errors
/// [`Error::Interrupted`] on Ctrl-C, [`Error::Index`] on damage, and what `encode` says. A file that cannot be written is a
/// note: it is measured again next time.
pub fn ladder(
    index: &Index,
    dense: &Dense,
    depth: usize,
    encode: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
    progress: &dyn Progress,
) -> Result<Ladder> {
    let _one = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = index.path().join(RECALLS);
    let mut known = read(&path);
    let before = known.len();
    let mut of_segments = Vec::new();
    for (number, segment) in index.manifest().segments.iter().enumerate() {
        let Some(graph) = graph_of(segment) else { continue };
        // A beam no wider than the depth sees all of a segment that is no larger.
        if segment.passages as usize <= depth {
            continue;
        }
        let there = known.iter().find(|known| known.graph == *graph && known.depth == depth);
        let measured = match there {
            Some(there) => there.clone(),
            None => {
                let measured = measure(index, dense, number, graph, depth, encode, progress)?;
                known.push(measured.clone());
                measured
            }
        };
        of_segments.push((segment.passages, measured));
    }
    if known.len() > before {
        known.retain(|known| is_of(known, index));
        if let Err(e) = write(&path, known) {
            progress.note(&format!("what was measured could not be kept, and is measured again next time: {e}"));
        }
    }
    Ok(joined(depth, index.manifest().rows(), &of_segments))
}

/// What the file beside an index says of all of its segments, a ladder a depth; nothing where nobody asked for a recall yet.
pub fn known(index: &Index) -> Vec<Ladder> {
    let mut known = read(&index.path().join(RECALLS));
    known.retain(|known| is_of(known, index));
    let mut depths: Vec<usize> = known.iter().map(|known| known.depth).collect();
    depths.sort_unstable();
    depths.dedup();
    let of = |depth: usize| {
        let mut of_segments = Vec::new();
        for segment in index.manifest().segments.iter().filter(|segment| segment.passages as usize > depth) {
            let graph = graph_of(segment);
            let there = known.iter().find(|known| Some(&known.graph) == graph && known.depth == depth)?;
            of_segments.push((segment.passages, there.clone()));
        }
        Some(joined(depth, index.manifest().rows(), &of_segments))
    };
    depths.into_iter().filter_map(of).collect()
}

/// The mean over segments, each counting as its passages: where the neighbours of a question are. The best few of a segment are
/// found more easily than so many of its own, so together they find rather more.
fn joined(depth: usize, rows: u64, of_segments: &[(u64, Measured)]) -> Ladder {
    let beam = |quarters: usize| {
        let ef = width(depth, quarters);
        let missed = of_segments.iter().map(|(passages, measured)| {
            let found = measured.found.iter().find(|(width, _)| *width == ef).map_or(0, |(_, found)| *found);
            let recall = found as f64 / (measured.texts * depth).max(1) as f64;
            (1.0 - recall) * *passages as f64
        });
        Beam { ef, recall: Some((1.0 - missed.sum::<f64>() / rows.max(1) as f64) as f32) }
    };
    Ladder { depth, beams: QUARTERS.map(beam).to_vec() }
}

fn width(depth: usize, quarters: usize) -> usize {
    (depth * quarters).div_ceil(4)
}

/// The checksum of a segment's graph; none without one.
fn graph_of(segment: &SegmentEntry) -> Option<&String> {
    segment.files.get(LINKS).map(|FileEntry { sha256, .. }| sha256)
}

/// Whether an index has the graph that was measured.
fn is_of(known: &Measured, index: &Index) -> bool {
    index.manifest().segments.iter().any(|segment| graph_of(segment) == Some(&known.graph))
}

/// Search texts of a segment's passages in it with every beam.
fn measure(
    index: &Index,
    dense: &Dense,
    segment: usize,
    graph: &str,
    depth: usize,
    encode: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
    progress: &dyn Progress,
) -> Result<Measured> {
    let rows = dense.rows_of(segment);
    let texts = SAMPLE.min(rows.len());
    progress.start("measuring recall", Some(texts as u64), "texts");
    let mut vectors = Vec::new();
    for i in 0..texts {
        check_interrupt(|| "nothing was changed".to_owned())?;
        let row = rows.start + i * rows.len() / texts;
        let (title, text) = index.title_and_text(PassageId(row as u32))?;
        vectors.push(encode(&like_a_question(title, text))?);
        progress.advance(1);
    }
    progress.finish();
    let widths = QUARTERS.map(|quarters| width(depth, quarters));
    let found = dense.found_by(segment, &vectors, depth, &widths)?;
    let found = widths.into_iter().zip(found).collect();
    Ok(Measured { graph: graph.to_owned(), depth, texts, found })
}

/// The title and a few words from the middle of the text.
fn like_a_question(title: &str, text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let count = if title.is_empty() { WORDS_ALONE } else { WORDS };
    let first = words.len().saturating_sub(count) / 2;
    let middle = words.into_iter().skip(first).take(count);
    Some(title).filter(|title| !title.is_empty()).into_iter().chain(middle).collect::<Vec<_>>().join(" ")
}

/// What a file says: nothing if it is not there, of another version, or damaged.
fn read(path: &Path) -> Vec<Measured> {
    let file: Option<File> = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let sound =
        file.filter(|file| file.version == VERSION && checksum(&file.measured).ok().as_ref() == Some(&file.checksum));
    sound.map(|file| file.measured).unwrap_or_default()
}

fn write(path: &Path, measured: Vec<Measured>) -> Result<()> {
    let file = File { version: VERSION, checksum: checksum(&measured)?, measured };
    let text = serde_json::to_string_pretty(&file).map_err(Error::internal("writing the recall of an index"))?;
    durable::replace(path, text.as_bytes())
}

fn checksum(measured: &[Measured]) -> Result<String> {
    let text = serde_json::to_vec(measured).map_err(Error::internal("writing the recall of an index"))?;
    Ok(disk::sha256(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder() -> Ladder {
        let beam = |ef, recall| Beam { ef, recall: Some(recall) };
        Ladder { depth: 10, beams: vec![beam(10, 0.8), beam(15, 0.95), beam(20, 0.9995)] }
    }

    #[test]
    fn the_narrowest_beam_that_reaches_it_is_taken() {
        for (wanted, ef) in [(0.1, 10), (0.8, 10), (0.81, 15), (0.99, 20)] {
            assert_eq!(ladder().reach(wanted).unwrap().ef, ef, "{wanted}");
        }
    }

    #[test]
    fn what_no_beam_reaches_is_said_with_the_best_and_a_remedy() {
        let error = ladder().reach(1.0).unwrap_err();
        assert!(error.to_string().contains("the widest (ef 20) finds 0.9995"), "{error}");
        assert!(error.hint().unwrap().contains("--exact"));
        for wanted in [0.0, -1.0, 1.5, f32::NAN] {
            assert!(ladder().reach(wanted).unwrap_err().to_string().contains("above 0 and at most 1"), "{wanted}");
        }
    }

    #[test]
    fn segments_count_as_their_passages_and_small_ones_find_all() {
        let found = QUARTERS.map(|quarters| (width(10, quarters), 900)).to_vec();
        let measured = Measured { graph: "g".into(), depth: 10, texts: 100, found };
        // A tenth is missed among 300 of 400 passages.
        let joined = joined(10, 400, &[(300, measured)]);
        assert!(joined.beams.iter().all(|beam| (beam.recall.unwrap() - 0.925).abs() < 1e-6));
    }

    #[test]
    fn a_damaged_file_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECALLS);
        let measured = vec![Measured { graph: "g".into(), depth: 10, texts: 100, found: vec![(10, 900)] }];
        write(&path, measured.clone()).unwrap();
        assert_eq!(read(&path), measured);
        let text = fs::read_to_string(&path).unwrap();
        for changed in [text.replace("900", "901"), text.replacen("\"version\": 1", "\"version\": 2", 1), String::new()]
        {
            fs::write(&path, changed).unwrap();
            assert!(read(&path).is_empty());
        }
    }

    #[test]
    fn the_middle_of_a_text_stands_for_a_question() {
        assert_eq!(like_a_question("", "a b c d e f g h i j"), "b c d e f g h i");
        assert_eq!(like_a_question("t", "a b c d e f"), "t b c d e");
        assert_eq!(like_a_question("t", "a b"), "t a b");
        assert_eq!(like_a_question("t", " "), "t");
    }
}
