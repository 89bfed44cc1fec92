//! Dense search: the passages whose vectors point the same way as the question's.
//!
//! A search walks the graph of every segment on int8 vectors, then scores the candidates again with the f16 vectors, so that
//! what came from different graphs is compared by the same number; [`Dense::search_exact`] compares the question with every
//! f16 vector and is the yardstick. Deleted passages are walked over and not given.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::allowed::Allowed;
use super::kernel;
use super::manifest::EncoderIdentity;
use super::vectors::Vectors;
use super::walk::Scratch;
use crate::error::{Error, Result};
use crate::types::{Hit, PassageId, sort_hits};

/// Rows that one thread compares at a time in an exact search.
const EXACT_ROWS: usize = 2048;

/// The width of the beam that is used when none is asked for: four times the depth, at least 128. On nq-dev over
/// 257,717 passages, twice the depth found 0.8 points less gold at 100 than exact search (0.972 against 0.980).
pub fn default_ef(depth: usize) -> usize {
    (4 * depth).max(128)
}

/// The vectors of an index.
#[derive(Debug)]
pub struct Dense {
    /// In the order of rows.
    segments: Vec<Part>,
    encoder: EncoderIdentity,
    /// The passages that were not deleted, if some were.
    alive: Option<Arc<Allowed>>,
    len: usize,
    /// Visited sets that no search is using.
    idle: Mutex<Vec<Scratch>>,
}

/// A segment's vectors and its first row.
#[derive(Debug)]
struct Part {
    first: usize,
    vectors: Vectors,
}

impl Part {
    fn rows(&self) -> Range<usize> {
        self.first..self.first + self.vectors.len()
    }

    fn cosine(&self, vector: &[f32], node: usize, wide: &mut [f32]) -> Result<Hit> {
        let score = self.vectors.cosine(vector, node, wide)?;
        Ok(Hit { passage: PassageId((self.first + node) as u32), score })
    }
}

impl Dense {
    /// Put the vectors of segments together, in the order of rows. `alive`: what was not deleted, if something was.
    pub(super) fn new(segments: Vec<Vectors>, encoder: EncoderIdentity, alive: Option<Arc<Allowed>>) -> Self {
        let mut rows = 0;
        let part = |vectors: Vectors| {
            let first = rows;
            rows += vectors.len();
            Part { first, vectors }
        };
        let segments = segments.into_iter().map(part).collect();
        let len = alive.as_deref().map_or(rows, Allowed::len);
        Self { segments, encoder, alive, len, idle: Mutex::default() }
    }

    /// Number of vectors that can be found.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of vectors, those of deleted passages included.
    pub(super) fn rows(&self) -> usize {
        self.segments.last().map_or(0, |part| part.rows().end)
    }

    /// What made the vectors.
    pub fn encoder(&self) -> &EncoderIdentity {
        &self.encoder
    }

    /// The best `depth` passages for a question's unit vector `[dim]`, by cosine, best first; found by a
    /// beam of width `ef` (0 for [`default_ef`]; never less than `depth`). With `only`, of those alone: the beam walks over
    /// the others, or, where that would be more work, all of them are compared.
    ///
    /// # Errors
    /// [`Error::Request`] when the vector is not one of this index's encoder, [`Error::Index`] on damage.
    pub fn search(&self, vector: &[f32], depth: usize, ef: usize, only: Option<&Allowed>) -> Result<Vec<Hit>> {
        self.check(vector)?;
        let only = only.or(self.alive.as_deref());
        let depth = depth.min(only.map_or(self.len, Allowed::len));
        if depth == 0 {
            return Ok(Vec::new());
        }
        let ef = if ef == 0 { default_ef(depth) } else { ef }.max(depth);
        let mut hits = Vec::new();
        for part in &self.segments {
            hits.extend(self.search_part(part, vector, ef, only)?);
        }
        Ok(best(hits, depth))
    }

    /// The candidates of one segment.
    fn search_part(&self, part: &Part, vector: &[f32], ef: usize, only: Option<&Allowed>) -> Result<Vec<Hit>> {
        let rows = part.vectors.len();
        let accepted = only.map_or(rows, |only| only.count(part.rows()));
        if accepted == 0 {
            return Ok(Vec::new());
        }
        let ef = ef.min(rows);
        // The beam goes on until it holds `ef` of them, which are every n-th node, and compares some m nodes a step.
        let steps = ef.saturating_mul(rows) / accepted;
        if accepted < rows && accepted <= steps.saturating_mul(part.vectors.m()) {
            return compare(part, vector, ef, only);
        }
        let mut scratch = self.idle.lock().ok().and_then(|mut idle| idle.pop());
        let largest = || self.segments.iter().map(|part| part.vectors.len()).max().unwrap_or(0);
        let scratch = scratch.get_or_insert_with(|| Scratch::new(largest()));
        let (query, first) = (kernel::quantize(vector), part.first as u32);
        let found = match only.filter(|_| accepted < rows) {
            Some(only) => part.vectors.walk(query.view(), ef, |node| only.contains(PassageId(first + node)), scratch),
            None => part.vectors.walk(query.view(), ef, |_| true, scratch),
        };
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(std::mem::take(scratch));
        }
        let found = found?;
        // A beam that ends before it is full has seen all that it can reach; many equal vectors may hide others.
        if found.len() < ef.min(accepted) {
            return compare(part, vector, ef, only);
        }
        let mut wide = vec![0.0; self.encoder.dim];
        found.iter().map(|found| part.cosine(vector, found.node() as usize, &mut wide)).collect()
    }

    /// The same by comparing with every vector, on all threads of the global rayon pool.
    pub fn search_exact(&self, vector: &[f32], depth: usize, only: Option<&Allowed>) -> Result<Vec<Hit>> {
        self.check(vector)?;
        let only = only.or(self.alive.as_deref());
        let found = self.segments.iter().map(|part| compare(part, vector, depth, only)).collect::<Result<Vec<_>>>()?;
        Ok(best(found.concat(), depth))
    }

    /// The rows of a segment; none if there is none of this number.
    pub(super) fn rows_of(&self, segment: usize) -> Range<usize> {
        self.segments.get(segment).map_or(0..0, Part::rows)
    }

    /// How many of the exact `depth` nearest vectors of a segment to each of some unit vectors, deleted passages included, beams of these
    /// widths find, of all together.
    pub(super) fn found_by(
        &self,
        segment: usize,
        vectors: &[Vec<f32>],
        depth: usize,
        widths: &[usize],
    ) -> Result<Vec<u64>> {
        vectors.iter().try_for_each(|vector| self.check(vector))?;
        let Some(part) = self.segments.get(segment) else { return Ok(vec![0; widths.len()]) };
        // By score, not by row: of equal vectors one is as good as another.
        let least = least_of_best(part, vectors, depth)?;
        let found = |ef: usize| {
            let of_one = |(vector, least): (&Vec<f32>, &f32)| {
                let hits = best(self.search_part(part, vector, ef.max(depth), None)?, depth);
                Ok(hits.iter().filter(|hit| hit.score >= *least).count() as u64)
            };
            vectors.par_iter().zip(&least).map(of_one).sum::<Result<u64>>()
        };
        widths.iter().map(|&ef| found(ef)).collect()
    }

    /// The cosine of a question's unit vector with the stored vectors of some passages, in their order.
    pub fn cosines(&self, vector: &[f32], passages: &[PassageId]) -> Result<Vec<Hit>> {
        self.check(vector)?;
        let mut wide = vec![0.0; self.encoder.dim];
        let cosine = |&passage: &PassageId| {
            let part = self.part_of(passage)?;
            part.cosine(vector, passage.row() - part.first, &mut wide)
        };
        passages.iter().map(cosine).collect()
    }

    /// The stored vector of a passage, `[dim]`.
    pub fn vector(&self, passage: PassageId) -> Result<&[f16]> {
        let part = self.part_of(passage)?;
        part.vectors.vector(passage.row() - part.first)
    }

    fn part_of(&self, passage: PassageId) -> Result<&Part> {
        let at = self.segments.partition_point(|part| part.rows().end <= passage.row());
        self.segments.get(at).ok_or_else(|| Error::Internal {
            doing: "reading a vector",
            message: format!("there is no passage {} among {}", passage.0, self.rows()),
        })
    }

    fn check(&self, vector: &[f32]) -> Result<()> {
        let dim = self.encoder.dim;
        if vector.len() == dim && vector.iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        Err(Error::request(
            format!("the question's vector has {} components (or is not finite), the index has {dim}", vector.len()),
            format!("use the encoder of the index: {}", self.encoder.name),
        ))
    }
}

/// The best `depth` of a segment, all being compared.
fn compare(part: &Part, vector: &[f32], depth: usize, only: Option<&Allowed>) -> Result<Vec<Hit>> {
    let rows = part.vectors.len();
    let blocks = (0..rows.div_ceil(EXACT_ROWS))
        .into_par_iter()
        .map(|block| {
            let mut wide = vec![0.0; vector.len()];
            let nodes = block * EXACT_ROWS..rows.min((block + 1) * EXACT_ROWS);
            let wanted = |node: &usize| only.is_none_or(|only| only.contains(PassageId((part.first + node) as u32)));
            let hits = nodes.filter(wanted).map(|node| part.cosine(vector, node, &mut wide));
            Ok(best(hits.collect::<Result<Vec<Hit>>>()?, depth))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(best(blocks.concat(), depth))
}

/// The cosine of the last of the exact `depth` nearest vectors of a segment, for each of many unit vectors: every stored vector is read
/// and made wide once for all of them.
fn least_of_best(part: &Part, vectors: &[Vec<f32>], depth: usize) -> Result<Vec<f32>> {
    let rows = part.vectors.len();
    let keep = |scores: &mut Vec<f32>| {
        if scores.len() > depth && depth > 0 {
            scores.select_nth_unstable_by(depth - 1, |a, b| b.total_cmp(a));
            scores.truncate(depth);
        }
    };
    let join = |mut all: Vec<Vec<f32>>, more: Vec<Vec<f32>>| {
        for (scores, more) in all.iter_mut().zip(more) {
            scores.extend(more);
            keep(scores);
        }
        all
    };
    let none = || vec![Vec::new(); vectors.len()];
    let of_block = |block: usize| {
        let (mut scores, mut wide) = (none(), vec![0.0; vectors.first().map_or(0, Vec::len)]);
        for node in block * EXACT_ROWS..rows.min((block + 1) * EXACT_ROWS) {
            part.vectors.vector(node)?.convert_to_f32_slice(&mut wide);
            for (scores, vector) in scores.iter_mut().zip(vectors) {
                scores.push(kernel::dot(vector, &wide));
            }
        }
        Ok(scores)
    };
    let blocks = (0..rows.div_ceil(EXACT_ROWS)).into_par_iter();
    let all = blocks
        .map(of_block)
        .try_fold(none, |all, more| Ok(join(all, more?)))
        .try_reduce(none, |all, more| Ok(join(all, more)))?;
    Ok(all.into_iter().map(|scores| scores.into_iter().fold(f32::INFINITY, f32::min)).collect())
}

/// The best `depth`, best first.
fn best(mut hits: Vec<Hit>, depth: usize) -> Vec<Hit> {
    sort_hits(&mut hits);
    hits.truncate(depth);
    hits
}
