//! Building the graph of HNSW (Malkov and Yashunin 2018) over int8 vectors, in the flat layout that is
//! written to disk.
//!
//! Nodes enter in batches: all searches of a batch run in parallel over the graph as it stood before the
//! batch, then the links are made, grouped by the node that gets them. Every step is a function of the
//! state before it, so the graph is the same whatever the number of threads; inserting one by one from
//! several threads, the usual way, makes another graph every time. Batches stay under a sixteenth of the
//! graph, nodes enter in a random order (a corpus has near neighbours side by side), and members of a
//! batch are compared with each other directly, so that none misses a neighbour for having come with it.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{self, Code, Quantized};
use super::manifest::GraphSettings;
use super::walk::{self, Graph, NONE, Scored, Scratch};
use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};

/// Most nodes a batch: enough to keep cores busy; more costs more in comparing the batch with itself.
const BATCH: usize = 256;

/// Highest level a node can have; with m = 16 one node in 16^12 would pass it.
const MAX_LEVEL: u8 = 12;

/// int8 vectors, one after the other.
#[derive(Debug, Default)]
pub(super) struct Codes {
    /// Components a vector.
    pub dim: usize,
    /// `[n, dim]`.
    pub codes: Vec<i8>,
    /// `[n]`.
    pub scales: Vec<f32>,
}

impl Codes {
    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Append a vector.
    pub fn push(&mut self, vector: &Quantized) {
        self.codes.extend_from_slice(&vector.codes);
        self.scales.push(vector.scale);
    }

    fn get(&self, node: u32) -> Code<'_> {
        let start = node as usize * self.dim;
        Code {
            codes: self.codes.get(start..start + self.dim).unwrap_or_default(),
            scale: self.scales.get(node as usize).copied().unwrap_or(0.0),
        }
    }
}

/// A graph in memory, in the layout of the files.
#[derive(Debug)]
pub(super) struct FlatGraph {
    /// Links a node on the upper levels; twice as many on level 0.
    pub m: usize,
    /// `[n, 2 m]`: level 0, unused places are [`NONE`].
    pub links: Vec<u32>,
    /// `[n]`: the first of a node's rows in `upper`, [`NONE`] for a node of level 0.
    pub upper_at: Vec<u32>,
    /// `[rows, m]`: a node of level L has L rows, for levels 1 to L.
    pub upper: Vec<u32>,
    /// Node where searches start.
    pub entry: u32,
    /// Its level.
    pub top_level: u8,
}

impl FlatGraph {
    fn row(&self, level: u8, node: u32) -> Option<Range<usize>> {
        if level == 0 {
            let start = node as usize * 2 * self.m;
            return Some(start..start + 2 * self.m);
        }
        let first = *self.upper_at.get(node as usize)?;
        let start = (first as usize + usize::from(level) - 1) * self.m;
        (first != NONE).then_some(start..start + self.m)
    }

    fn links(&self, level: u8, node: u32) -> &[u32] {
        let all = if level == 0 { &self.links } else { &self.upper };
        self.row(level, node).and_then(|range| all.get(range)).unwrap_or_default()
    }

    fn set_links(&mut self, level: u8, node: u32, new: &[u32]) {
        let Some(range) = self.row(level, node) else { return };
        let all = if level == 0 { &mut self.links } else { &mut self.upper };
        if let Some(row) = all.get_mut(range) {
            let (used, rest) = row.split_at_mut(new.len().min(row.len()));
            used.copy_from_slice(new);
            rest.fill(NONE);
        }
    }
}

/// The graph with the vectors it is over.
struct Built<'a> {
    graph: &'a FlatGraph,
    codes: &'a Codes,
}

impl Graph for Built<'_> {
    fn links(&self, level: u8, node: u32) -> Result<&[u32]> {
        Ok(self.graph.links(level, node))
    }

    #[inline]
    fn score(&self, query: Code, nodes: &[u32], dots: &mut Vec<i32>, out: &mut Vec<f32>) -> Result<()> {
        kernel::dots(query.codes, &self.codes.codes, nodes, dots);
        let scale = |node: u32| self.codes.scales.get(node as usize).copied().unwrap_or(0.0);
        out.extend(nodes.iter().zip(dots.iter()).map(|(&node, &dot)| dot as f32 * (scale(node) * query.scale)));
        Ok(())
    }
}

/// A well mixed number from a seed and a row (the finaliser of splitmix64).
fn mix(seed: u64, row: u32) -> u64 {
    let mut z = seed.wrapping_add(u64::from(row).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The level of a node: geometric with ratio 1/m, from the seed and the row alone.
fn level_of(seed: u64, row: u32, m: usize) -> u8 {
    let uniform = ((mix(seed, row) >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
    ((-uniform.ln() / (m as f64).ln()) as u8).min(MAX_LEVEL)
}

/// What the search of one new node found: its links by level.
type Found = Vec<(u8, Vec<u32>)>;

/// Build the graph over all of `codes`, with `threads` threads.
///
/// # Errors
/// [`Error::Interrupted`] with the words of `kept`.
pub(super) fn build(
    codes: &Codes,
    settings: &GraphSettings,
    threads: usize,
    progress: &dyn Progress,
    kept: &dyn Fn() -> String,
) -> Result<FlatGraph> {
    let (n, m, seed) = (codes.len(), settings.m, settings.seed);
    let levels: Vec<u8> = (0..n as u32).map(|row| level_of(seed, row, m)).collect();
    let mut rows = 0;
    let upper_at = levels
        .iter()
        .map(|&level| {
            let first = rows;
            rows += u32::from(level);
            if level == 0 { NONE } else { first }
        })
        .collect();
    // The highest node enters first and stays the entry point: levels are known beforehand.
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by_key(|&row| (mix(!seed, row), row));
    let entry = (0..n as u32).max_by_key(|&row| (level_of(seed, row, m), !row)).unwrap_or(0);
    let top_level = levels.get(entry as usize).copied().unwrap_or(0);
    order.retain(|&row| row != entry);
    let mut graph =
        FlatGraph { m, links: vec![NONE; n * 2 * m], upper_at, upper: vec![NONE; rows as usize * m], entry, top_level };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(Error::internal("starting the threads that build a graph"))?;
    progress.start("linking vectors", Some(n as u64), "vectors");
    progress.advance(u64::from(n > 0));
    let mut done = 0;
    while done < order.len() {
        check_interrupt(kept)?;
        let size = ((done + 1) / 16).clamp(1, BATCH).min(order.len() - done);
        let batch = &order[done..done + size];
        pool.install(|| insert(&mut graph, codes, &levels, batch, settings.ef_construction))?;
        done += size;
        progress.advance(size as u64);
    }
    progress.finish();
    Ok(graph)
}

fn insert(graph: &mut FlatGraph, codes: &Codes, levels: &[u8], batch: &[u32], ef: usize) -> Result<()> {
    let frozen = Built { graph, codes };
    let found: Vec<Found> = batch
        .par_iter()
        .map_init(|| Scratch::new(codes.len()), |scratch, &node| search(&frozen, levels, batch, node, ef, scratch))
        .collect::<Result<_>>()?;
    // The links of the new nodes, then the links back to them.
    let mut back = Vec::new();
    for (&node, found) in batch.iter().zip(&found) {
        for (level, links) in found {
            graph.set_links(*level, node, links);
            back.extend(links.iter().map(|&target| (*level, target, node)));
        }
    }
    back.sort_unstable();
    let frozen = Built { graph, codes };
    let rows: Vec<(u8, u32, Vec<u32>)> = back
        .par_chunk_by(|a, b| (a.0, a.1) == (b.0, b.1))
        .map(|group| {
            let (level, target) = group.first().map_or((0, 0), |&(level, target, _)| (level, target));
            Ok((level, target, link_back(&frozen, level, target, group)?))
        })
        .collect::<Result<_>>()?;
    for (level, target, links) in rows {
        graph.set_links(level, target, &links);
    }
    Ok(())
}

/// Find the links of a new node on each of its levels.
fn search(built: &Built, levels: &[u8], batch: &[u32], node: u32, ef: usize, scratch: &mut Scratch) -> Result<Found> {
    let level_of = |node: u32| levels.get(node as usize).copied().unwrap_or(0);
    let (graph, query) = (built.graph, built.codes.get(node));
    let (mut dots, mut scores) = (Vec::new(), Vec::new());
    let peers: Vec<u32> = batch.iter().copied().filter(|&peer| peer != node).collect();
    built.score(query, &peers, &mut dots, &mut scores)?;
    let peers: Vec<Scored> = peers.iter().zip(&scores).map(|(&peer, &score)| Scored::new(score, peer)).collect();
    scores.clear();
    built.score(query, &[graph.entry], &mut dots, &mut scores)?;
    let mut best = Scored::new(scores.first().copied().unwrap_or(f32::MIN), graph.entry);
    let level = level_of(node).min(graph.top_level);
    for above in (level + 1..=graph.top_level).rev() {
        best = walk::descend(built, query, best, above, scratch)?;
    }
    (0..=level)
        .rev()
        .map(|level| {
            let mut near = walk::beam(built, query, best, ef, level, |_| true, scratch)?;
            best = near.first().copied().unwrap_or(best);
            // Of the peers only those that the beam would have kept.
            let worst = near.last().copied().filter(|_| near.len() >= ef);
            near.extend(peers.iter().filter(|&&peer| level_of(peer.node()) >= level && Some(peer) > worst));
            near.sort_unstable_by(|a, b| b.cmp(a));
            near.truncate(ef);
            Ok((level, diverse(built, &near, graph.m)?))
        })
        .collect()
}

/// The links of `target` once the new nodes of `group` point to it.
fn link_back(built: &Built, level: u8, target: u32, group: &[(u8, u32, u32)]) -> Result<Vec<u32>> {
    let room = if level == 0 { 2 * built.graph.m } else { built.graph.m };
    let mut links: Vec<u32> =
        built.graph.links(level, target).iter().copied().take_while(|&link| link != NONE).collect();
    for &(_, _, new) in group {
        if !links.contains(&new) {
            links.push(new);
        }
    }
    if links.len() <= room {
        return Ok(links);
    }
    let (mut dots, mut scores) = (Vec::new(), Vec::new());
    built.score(built.codes.get(target), &links, &mut dots, &mut scores)?;
    let mut near: Vec<Scored> = links.iter().zip(&scores).map(|(&link, &score)| Scored::new(score, link)).collect();
    near.sort_unstable_by(|a, b| b.cmp(a));
    diverse(built, &near, room)
}

/// Algorithm 4 of the paper: from the nearest outwards, keep a candidate only if it is nearer to the node
/// than to every neighbour kept so far, so that links point in different directions. At most `most`.
fn diverse(built: &Built, near: &[Scored], most: usize) -> Result<Vec<u32>> {
    let mut kept: Vec<u32> = Vec::with_capacity(most);
    let (mut dots, mut scores) = (Vec::new(), Vec::new());
    'candidates: for candidate in near {
        if kept.len() == most {
            break;
        }
        let query = built.codes.get(candidate.node());
        for some in kept.chunks(4) {
            scores.clear();
            built.score(query, some, &mut dots, &mut scores)?;
            // Not where it is as near: behind a twin of the node all others would be.
            if scores.iter().any(|&score| score > candidate.score()) {
                continue 'candidates;
            }
        }
        kept.push(candidate.node());
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;

    /// Vectors around a few centres, from the same generator as the levels.
    fn clustered(n: u32, dim: usize) -> Codes {
        let noise = |seed: u64, row: u32| (mix(seed, row) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let mut codes = Codes { dim, ..Codes::default() };
        for row in 0..n {
            let centre = (mix(3, row) % 20) as u32;
            let vector: Vec<f32> =
                (0..dim as u64).map(|d| noise(100 + d, centre) + 0.6 * noise(1000 + d, row)).collect();
            let length = kernel::dot(&vector, &vector).sqrt();
            codes.push(&kernel::quantize(&vector.iter().map(|x| x / length).collect::<Vec<f32>>()));
        }
        codes
    }

    fn settings(m: usize) -> GraphSettings {
        GraphSettings { m, ef_construction: 60, seed: 4, entry: 0, top_level: 0 }
    }

    fn built(codes: &Codes, m: usize, threads: usize) -> FlatGraph {
        build(codes, &settings(m), threads, &Quiet, &String::new).unwrap()
    }

    #[test]
    fn links_are_other_nodes_each_once_and_on_their_level() {
        let codes = clustered(1500, 24);
        let graph = built(&codes, 6, 2);
        for level in 0..=graph.top_level {
            for node in (0..1500).filter(|&node| level_of(4, node, 6) >= level) {
                let links: Vec<u32> = graph.links(level, node).iter().copied().take_while(|&l| l != NONE).collect();
                let mut unique = links.clone();
                unique.sort_unstable();
                unique.dedup();
                assert_eq!(unique.len(), links.len(), "node {node} on level {level}: {links:?}");
                assert!(links.iter().all(|&link| link != node && link < 1500 && level_of(4, link, 6) >= level));
                assert!(level > 0 || !links.is_empty(), "node {node} has no links");
            }
        }
        assert_eq!(level_of(4, graph.entry, 6), graph.top_level);
    }

    #[test]
    fn the_beam_finds_what_comparing_with_all_finds() {
        let codes = clustered(4000, 24);
        let graph = built(&codes, 12, 2);
        let whole = Built { graph: &graph, codes: &codes };
        let questions = clustered(4300, 24);
        let mut scratch = Scratch::new(4000);
        let (mut found, mut wanted) = (0, 0);
        for question in 4000..4300 {
            let query = questions.get(question);
            let all: Vec<u32> = (0..4000).collect();
            let (mut dots, mut scores) = (Vec::new(), Vec::new());
            whole.score(query, &all, &mut dots, &mut scores).unwrap();
            let mut exact: Vec<Scored> = scores.iter().zip(0..).map(|(&s, n)| Scored::new(s, n)).collect();
            exact.sort_unstable_by(|a, b| b.cmp(a));
            let mut best = Scored::new(scores[graph.entry as usize], graph.entry);
            for level in (1..=graph.top_level).rev() {
                best = walk::descend(&whole, query, best, level, &mut scratch).unwrap();
            }
            let near = walk::beam(&whole, query, best, 60, 0, |_| true, &mut scratch).unwrap();
            assert_eq!(near.len(), 60);
            found += exact[..10].iter().filter(|e| near[..10].contains(e)).count();
            wanted += 10;
        }
        assert!(found * 100 >= wanted * 98, "recall@10 is {found} of {wanted}");
    }

    #[test]
    fn tiny_graphs_and_equal_vectors_work() {
        for n in [1, 2, 3, 40] {
            let mut codes = Codes { dim: 4, ..Codes::default() };
            for _ in 0..n {
                codes.push(&kernel::quantize(&[0.5, 0.5, 0.5, 0.5]));
            }
            let graph = built(&codes, 2, 1);
            let whole = Built { graph: &graph, codes: &codes };
            let query = kernel::quantize(&[1.0, 0.0, 0.0, 0.0]);
            let start = Scored::new(0.0, graph.entry);
            let near = walk::beam(&whole, query.view(), start, n, 0, |_| true, &mut Scratch::new(n)).unwrap();
            assert!(!near.is_empty());
        }
    }

    #[test]
    fn equal_vectors_do_not_cut_one_another_off() {
        let mut codes = clustered(2000, 16);
        let (twin, scale) = (codes.get(700).codes.to_vec(), codes.get(700).scale);
        codes.codes.extend(twin);
        codes.scales.push(scale);
        let graph = built(&codes, 8, 2);
        let whole = Built { graph: &graph, codes: &codes };
        for node in [700, 2000] {
            let query = codes.get(node);
            let near = walk::beam(&whole, query, Scored::new(1.0, node), 60, 0, |_| true, &mut Scratch::new(2001));
            assert_eq!(near.unwrap().len(), 60, "from {node}");
        }
    }
}
