//! Dense search: the passages whose vectors point the same way as the question's.
//!
//! The graph and the vectors are mapped files, so opening them reads nothing. A search walks the graph on
//! int8 vectors, then scores the candidates again with the f16 vectors; [`Dense::search_exact`] compares
//! the question with every f16 vector and is the yardstick. See index/README.md for the layout.

use std::sync::Mutex;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::allowed::Allowed;
use super::checked::{CheckedFile, damaged};
use super::kernel::{self, Code};
use super::manifest::{EncoderIdentity, GraphSettings};
use super::walk::{self, Graph, Scored, Scratch};
use crate::error::{Error, Result};
use crate::types::{Hit, PassageId, sort_hits};

/// The files: int8 codes `[n, dim]`, their scales `[n]` (f32), f16 vectors `[n, dim]`, the graph's level 0
/// `[n, 2 m]` (u32), where a node's upper rows start `[n]` (u32), and those rows `[rows, m]` (u32).
pub(super) const CODES: &str = "vectors.i8";
pub(super) const SCALES: &str = "vectors.scale";
pub(super) const HALVES: &str = "vectors.f16";
pub(super) const LINKS: &str = "graph.links";
pub(super) const UPPER_AT: &str = "graph.upper-at";
pub(super) const UPPER: &str = "graph.upper";

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
    codes: CheckedFile,
    scales: CheckedFile,
    halves: CheckedFile,
    links: CheckedFile,
    upper_at: CheckedFile,
    upper: CheckedFile,
    encoder: EncoderIdentity,
    graph: GraphSettings,
    len: usize,
    /// Visited sets that no search is using.
    idle: Mutex<Vec<Scratch>>,
}

impl Dense {
    /// Open the vectors over their files, in the order of the constants above.
    pub(super) fn open(
        files: [CheckedFile; 6],
        len: usize,
        encoder: EncoderIdentity,
        graph: GraphSettings,
    ) -> Result<Self> {
        let [codes, scales, halves, links, upper_at, upper] = files;
        let expect = |file: &CheckedFile, bytes: usize| {
            if file.len() == bytes {
                return Ok(());
            }
            Err(damaged(file.path(), format!("is {} bytes long where {len} vectors need {bytes}", file.len())))
        };
        expect(&codes, len * encoder.dim)?;
        expect(&scales, len * 4)?;
        expect(&halves, len * encoder.dim * 2)?;
        expect(&links, len * graph.m * 8)?;
        expect(&upper_at, len * 4)?;
        Ok(Self { codes, scales, halves, links, upper_at, upper, encoder, graph, len, idle: Mutex::default() })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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
        let depth = depth.min(only.map_or(self.len, Allowed::len));
        if depth == 0 {
            return Ok(Vec::new());
        }
        let ef = if ef == 0 { default_ef(depth) } else { ef }.clamp(depth, self.len.max(depth));
        // The beam goes on until it holds `ef` of them, which are every n-th node, and compares some m nodes a step.
        let steps = |only: &Allowed| ef.saturating_mul(self.len) / only.len().max(1);
        if only.is_some_and(|only| only.len() <= steps(only).saturating_mul(self.graph.m)) {
            return self.search_exact(vector, depth, only);
        }
        let mut scratch = self.idle.lock().ok().and_then(|mut idle| idle.pop());
        let scratch = scratch.get_or_insert_with(|| Scratch::new(self.len));
        let found = self.walk(kernel::quantize(vector).view(), ef, only, scratch);
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(std::mem::take(scratch));
        }
        let mut wide = vec![0.0; self.encoder.dim];
        let mut hits =
            found?.iter().map(|found| self.cosine(vector, found.node(), &mut wide)).collect::<Result<Vec<Hit>>>()?;
        sort_hits(&mut hits);
        hits.truncate(depth);
        Ok(hits)
    }

    /// The same by comparing with every vector, on all threads of the global rayon pool.
    pub fn search_exact(&self, vector: &[f32], depth: usize, only: Option<&Allowed>) -> Result<Vec<Hit>> {
        self.check(vector)?;
        let parts = (0..self.len.div_ceil(EXACT_ROWS))
            .into_par_iter()
            .map(|part| {
                let mut wide = vec![0.0; self.encoder.dim];
                let rows = part * EXACT_ROWS..self.len.min((part + 1) * EXACT_ROWS);
                let rows = rows.filter(|&row| only.is_none_or(|only| only.contains(PassageId(row as u32))));
                let mut hits =
                    rows.map(|row| self.cosine(vector, row as u32, &mut wide)).collect::<Result<Vec<Hit>>>()?;
                sort_hits(&mut hits);
                hits.truncate(depth);
                Ok(hits)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut hits = parts.concat();
        sort_hits(&mut hits);
        hits.truncate(depth);
        Ok(hits)
    }

    /// The cosine of a question's unit vector with the stored vectors of some passages, in their order.
    pub fn cosines(&self, vector: &[f32], passages: &[PassageId]) -> Result<Vec<Hit>> {
        self.check(vector)?;
        let mut wide = vec![0.0; self.encoder.dim];
        passages.iter().map(|passage| self.cosine(vector, passage.0, &mut wide)).collect()
    }

    /// The stored vector of a passage, `[dim]`.
    pub fn vector(&self, passage: PassageId) -> Result<&[f16]> {
        let dim = self.encoder.dim;
        self.halves.numbers::<f16>(passage.row() * dim, dim)
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

    fn walk(&self, query: Code, ef: usize, only: Option<&Allowed>, scratch: &mut Scratch) -> Result<Vec<Scored>> {
        let (mut dots, mut scores) = (Vec::new(), Vec::new());
        let entry = self.graph.entry;
        self.score(query, &[entry], &mut dots, &mut scores)?;
        let mut best = Scored::new(scores.first().copied().unwrap_or(f32::MIN), entry);
        for level in (1..=self.graph.top_level).rev() {
            best = walk::descend(self, query, best, level, scratch)?;
        }
        match only {
            Some(only) => walk::beam(self, query, best, ef, 0, |node| only.contains(PassageId(node)), scratch),
            None => walk::beam(self, query, best, ef, 0, |_| true, scratch),
        }
    }

    fn cosine(&self, vector: &[f32], node: u32, wide: &mut [f32]) -> Result<Hit> {
        let halves = self.halves.numbers::<f16>(node as usize * wide.len(), wide.len())?;
        halves.convert_to_f32_slice(wide);
        Ok(Hit { passage: PassageId(node), score: kernel::dot(vector, wide) })
    }
}

impl Graph for Dense {
    #[inline]
    fn links(&self, level: u8, node: u32) -> Result<&[u32]> {
        let m = self.graph.m;
        if level == 0 {
            return self.links.numbers(node as usize * 2 * m, 2 * m);
        }
        let first = self.upper_at.numbers::<u32>(node as usize, 1)?.first().copied().unwrap_or(walk::NONE);
        self.upper.numbers((first as usize + usize::from(level) - 1) * m, m)
    }

    #[inline]
    fn score(&self, query: Code, nodes: &[u32], dots: &mut Vec<i32>, out: &mut Vec<f32>) -> Result<()> {
        let dim = self.encoder.dim;
        for &node in nodes {
            self.codes.slice(node as usize * dim..(node as usize + 1) * dim)?;
            self.scales.check(&(node as usize * 4..(node as usize + 1) * 4))?;
        }
        let scales: &[f32] = bytemuck::try_cast_slice(self.scales.raw()).unwrap_or_default();
        kernel::dots(query.codes, bytemuck::cast_slice(self.codes.raw()), nodes, dots);
        out.extend(
            nodes
                .iter()
                .zip(dots.iter())
                .map(|(&node, &dot)| dot as f32 * (scales.get(node as usize).copied().unwrap_or(0.0) * query.scale)),
        );
        Ok(())
    }
}
