//! The vectors of one segment and the graph over them, mapped, so that opening them reads nothing. See index/README.md for
//! the layout.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::checked::{CheckedFile, damaged};
use super::kernel::{self, Code};
use super::manifest::GraphSettings;
use super::walk::{self, Graph, Scored, Scratch};
use crate::error::Result;

/// The files: int8 codes `[n, dim]`, their scales `[n]` (f32), f16 vectors `[n, dim]`, the graph's level 0
/// `[n, 2 m]` (u32), where a node's upper rows start `[n]` (u32), and those rows `[rows, m]` (u32).
pub(super) const CODES: &str = "vectors.i8";
pub(super) const SCALES: &str = "vectors.scale";
pub(super) const HALVES: &str = "vectors.f16";
pub(super) const LINKS: &str = "graph.links";
pub(super) const UPPER_AT: &str = "graph.upper-at";
pub(super) const UPPER: &str = "graph.upper";

/// The vectors of a segment; its nodes are rows from 0 on.
#[derive(Debug)]
pub(super) struct Vectors {
    codes: CheckedFile,
    scales: CheckedFile,
    halves: CheckedFile,
    links: CheckedFile,
    upper_at: CheckedFile,
    upper: CheckedFile,
    graph: GraphSettings,
    dim: usize,
    len: usize,
}

impl Vectors {
    /// Open `len` vectors over their files, in the order of the constants above.
    pub fn open(files: [CheckedFile; 6], len: usize, dim: usize, graph: GraphSettings) -> Result<Self> {
        let [codes, scales, halves, links, upper_at, upper] = files;
        let expect = |file: &CheckedFile, bytes: usize| {
            if file.len() == bytes {
                return Ok(());
            }
            Err(damaged(file.path(), format!("is {} bytes long where {len} vectors need {bytes}", file.len())))
        };
        expect(&codes, len * dim)?;
        expect(&scales, len * 4)?;
        expect(&halves, len * dim * 2)?;
        expect(&links, len * graph.m * 8)?;
        expect(&upper_at, len * 4)?;
        Ok(Self { codes, scales, halves, links, upper_at, upper, graph, dim, len })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Links of a node on the upper levels.
    pub fn m(&self) -> usize {
        self.graph.m
    }

    /// The vector of a node, `[dim]`.
    pub fn vector(&self, node: usize) -> Result<&[f16]> {
        self.halves.numbers::<f16>(node * self.dim, self.dim)
    }

    /// The cosine of a unit vector with that of a node; `wide` is room for `[dim]`.
    pub fn cosine(&self, vector: &[f32], node: usize, wide: &mut [f32]) -> Result<f32> {
        self.vector(node)?.convert_to_f32_slice(wide);
        Ok(kernel::dot(vector, wide))
    }

    /// The `ef` accepted nodes most like a quantised vector, as the graph finds them.
    pub fn walk(
        &self,
        query: Code,
        ef: usize,
        accept: impl Fn(u32) -> bool,
        scratch: &mut Scratch,
    ) -> Result<Vec<Scored>> {
        let (mut dots, mut scores) = (Vec::new(), Vec::new());
        let entry = self.graph.entry;
        self.score(query, &[entry], &mut dots, &mut scores)?;
        let mut best = Scored::new(scores.first().copied().unwrap_or(f32::MIN), entry);
        for level in (1..=self.graph.top_level).rev() {
            best = walk::descend(self, query, best, level, scratch)?;
        }
        walk::beam(self, query, best, ef, 0, accept, scratch)
    }
}

impl Graph for Vectors {
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
        let dim = self.dim;
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
