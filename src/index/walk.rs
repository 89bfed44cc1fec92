//! Searching a navigable graph: the greedy descent and the beam of HNSW (Malkov and Yashunin, "Efficient
//! and robust approximate nearest neighbor search using hierarchical navigable small world graphs", 2018,
//! algorithms 2 and 5), over whatever holds the graph: memory while it is built, mapped files afterwards.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::kernel::Code;
use crate::error::Result;

/// Marks the unused end of a list of links.
pub(super) const NONE: u32 = u32::MAX;

/// A graph over quantised vectors.
pub(super) trait Graph {
    /// The neighbours of a node on a level; entries from the first [`NONE`] on are unused.
    fn links(&self, level: u8, node: u32) -> Result<&[u32]>;
    /// Append the similarity of `query` to each of `nodes` to `out`; `dots` is room to work in.
    fn score(&self, query: Code, nodes: &[u32], dots: &mut Vec<i32>, out: &mut Vec<f32>) -> Result<()>;
}

/// A node with its similarity, packed so that plain integer order is "more similar first, then the smaller
/// node": one comparison instead of two in every heap operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Scored(u64);

impl Scored {
    pub fn new(score: f32, node: u32) -> Self {
        let bits = score.to_bits();
        // The usual trick: with the sign bit flipped (or all bits, for negatives) floats order as integers.
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self(u64::from(ordered) << 32 | u64::from(!node))
    }

    pub fn node(self) -> u32 {
        !(self.0 as u32)
    }

    pub fn score(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }
}

/// Memory that searches share instead of allocating it each time.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// One bit a node; all clear between searches.
    visited: Vec<u64>,
    /// The words of `visited` that are not clear.
    touched: Vec<u32>,
    open: BinaryHeap<Scored>,
    fresh: Vec<u32>,
    dots: Vec<i32>,
    scores: Vec<f32>,
}

impl Scratch {
    /// Room for searches over `nodes` nodes.
    pub fn new(nodes: usize) -> Self {
        Self { visited: vec![0; nodes.div_ceil(64)], ..Self::default() }
    }

    /// Note the node as visited; false if it was already, or does not exist.
    #[inline]
    fn visit(&mut self, node: u32) -> bool {
        let (word, bit) = (node / 64, 1 << (node % 64));
        let Some(bits) = self.visited.get_mut(word as usize) else { return false };
        if *bits & bit != 0 {
            return false;
        }
        if *bits == 0 {
            self.touched.push(word);
        }
        *bits |= bit;
        true
    }

    fn clear(&mut self) {
        for &word in &self.touched {
            if let Some(bits) = self.visited.get_mut(word as usize) {
                *bits = 0;
            }
        }
        self.touched.clear();
        self.open.clear();
    }
}

/// From `start`, step to the best neighbour on `level` until none is better.
pub(super) fn descend(
    graph: &impl Graph,
    query: Code,
    start: Scored,
    level: u8,
    scratch: &mut Scratch,
) -> Result<Scored> {
    let mut best = start;
    loop {
        let links = graph.links(level, best.node())?;
        let links = links.split(|&n| n == NONE).next().unwrap_or_default();
        scratch.scores.clear();
        graph.score(query, links, &mut scratch.dots, &mut scratch.scores)?;
        let step = links.iter().zip(&scratch.scores).map(|(&n, &s)| Scored::new(s, n)).max();
        match step {
            Some(step) if step > best => best = step,
            _ => return Ok(best),
        }
    }
}

/// The `ef` most similar of the accepted nodes that a best-first search on `level` from `start` finds, best first. Nodes
/// that are not accepted are walked over.
pub(super) fn beam(
    graph: &impl Graph,
    query: Code,
    start: Scored,
    ef: usize,
    level: u8,
    accept: impl Fn(u32) -> bool,
    scratch: &mut Scratch,
) -> Result<Vec<Scored>> {
    scratch.clear();
    let mut found = BinaryHeap::with_capacity(ef + 1);
    scratch.visit(start.node());
    scratch.open.push(start);
    if accept(start.node()) {
        found.push(Reverse(start));
    }
    while let Some(next) = scratch.open.pop() {
        if found.len() >= ef && found.peek().is_some_and(|worst: &Reverse<Scored>| next < worst.0) {
            break;
        }
        let mut fresh = std::mem::take(&mut scratch.fresh);
        fresh.clear();
        let links = graph.links(level, next.node())?;
        fresh.extend(links.iter().take_while(|&&n| n != NONE).filter(|&&n| scratch.visit(n)));
        scratch.scores.clear();
        graph.score(query, &fresh, &mut scratch.dots, &mut scratch.scores)?;
        for (&node, &score) in fresh.iter().zip(&scratch.scores) {
            let scored = Scored::new(score, node);
            if found.len() < ef {
                scratch.open.push(scored);
                if accept(node) {
                    found.push(Reverse(scored));
                }
            } else if let Some(mut worst) = found.peek_mut()
                && scored > worst.0
            {
                scratch.open.push(scored);
                if accept(node) {
                    *worst = Reverse(scored);
                }
            }
        }
        scratch.fresh = fresh;
    }
    scratch.clear();
    Ok(found.into_sorted_vec().into_iter().map(|Reverse(scored)| scored).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_scored_node_keeps_both_and_orders_by_score_then_node(
            a in -10.0_f32..10.0, b in -10.0_f32..10.0, m: u32, n: u32
        ) {
            let (x, y) = (Scored::new(a, m), Scored::new(b, n));
            prop_assert_eq!((x.score(), x.node()), (a, m));
            prop_assert_eq!(x.cmp(&y), a.total_cmp(&b).then(n.cmp(&m)));
        }
    }
}
