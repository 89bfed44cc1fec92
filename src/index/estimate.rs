//! What a build will cost, before it starts. The arithmetic is here and nowhere else.

use serde::Serialize;

/// What the estimate starts from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// Passages.
    pub passages: u64,
    /// Mean bytes of a passage's title and text.
    pub mean_bytes: f64,
    /// Mean bytes of its metadata as JSON.
    pub metadata_bytes: f64,
    /// Width of the vectors; 0 without an encoder.
    pub dim: usize,
    /// Links of a graph node ([`crate::index::writer::BuildOptions::m`]).
    pub m: usize,
    /// Width of the beam while the graph is built.
    pub ef_construction: usize,
    /// Threads.
    pub threads: usize,
    /// Most passages of a segment ([`most_passages`]); 0 = all in one.
    pub segment_passages: u64,
    /// Passages the encoder does a second, as measured on a sample; 0 without an encoder.
    pub encoded_per_second: f64,
}

/// What a build will cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Seconds, all phases.
    pub seconds: f64,
    /// Peak memory of the index's own structures, in bytes; the encoder's comes on top.
    pub memory_bytes: u64,
    /// Size of the finished index, in bytes.
    pub index_bytes: u64,
    /// Disk needed while building, in bytes: the index and the vectors kept for a restart.
    pub disk_bytes: u64,
}

/// Memory of the writer of the inverted index.
const LEXICAL_WRITER_BYTES: u64 = 300 << 20;
/// Memory of a passage's key until all are there.
const KEY: u64 = 16;
/// Bytes of the inverted index per byte of text.
const LEXICAL_PER_BYTE: f64 = 0.2;
/// Bytes a passage takes in the store beside its text: offsets, source span, key, key table.
const STORE_OVERHEAD: u64 = 100;
/// Metadata are in the store as JSON, and in columns.
const METADATA_COPIES: f64 = 2.0;
/// Passages a second and thread through the store and the inverted index.
const STORED_PER_SECOND: f64 = 20_000.0;
/// int8 components compared a second and thread while the graph is built.
const COMPONENTS_PER_SECOND: f64 = 1.5e10;
/// Vectors compared per unit of beam width for one insertion.
const COMPARED_PER_EF: f64 = 25.0;

/// Threads that [`most_passages`] counts on, so that an index is the same whatever their number.
const MOST_THREADS: u64 = 64;

/// Least memory that a build can be held to: the writer of the inverted index, and room for a segment.
pub const LEAST_MEMORY: u64 = 500_000_000;

/// Most memory that a build takes if nothing else is said: 15 million passages of width 384 are one segment.
pub const DEFAULT_MEMORY: u64 = 8_000_000_000;

/// Most passages a segment may have so that writing it takes no more than `memory` bytes ([`estimate`]'s `memory_bytes`, with
/// the bits of 64 threads), for vectors of width `dim` (0 for none) and graphs of `m` links.
pub fn most_passages(memory: u64, dim: usize, m: usize) -> u64 {
    let texts = memory.saturating_sub(LEXICAL_WRITER_BYTES) / KEY;
    let vectors = match dim {
        0 => u64::MAX,
        _ => memory / (dim as u64 + 4 + graph_bytes(m) + MOST_THREADS / 8),
    };
    texts.min(vectors).max(1)
}

/// Bytes that a passage takes in a graph of `m` links.
fn graph_bytes(m: usize) -> u64 {
    let m = m as u64;
    8 * m + 4 + 4 * m / m.saturating_sub(1).max(1)
}

/// Estimate a build.
///
/// - disk: text + twice the metadata + overhead + inverted index; with vectors, per passage `dim` (int8) + 4 (scale) +
///   2 dim (f16) + 8 m (level 0) + 4 (upper-at) + 4 m / (m - 1) (upper rows), and 2 dim for the restart.
/// - memory: the writer of the inverted index and 16 bytes a passage for the keys; later, when that is
///   freed, `dim` + 4 + the graph as above + a visited bit a thread. The larger of the two counts, for the passages of a segment.
/// - time: passages through the store, through the encoder, and into the graph:
///   `ef_construction` x 25 comparisons of `dim` components each.
pub fn estimate(work: &Workload) -> Estimate {
    let n = work.passages;
    let per_text = work.mean_bytes.max(0.0);
    let metadata = (n as f64 * work.metadata_bytes.max(0.0) * METADATA_COPIES) as u64;
    let text =
        (n as f64 * per_text) as u64 + metadata + n * STORE_OVERHEAD + (n as f64 * per_text * LEXICAL_PER_BYTE) as u64;
    let dim = work.dim as u64;
    let graph = if dim == 0 { 0 } else { graph_bytes(work.m) };
    let vectors = if dim == 0 { 0 } else { dim + 4 + 2 * dim };
    let index_bytes = text + n * (vectors + graph);
    let threads = work.threads.max(1) as f64;
    let stored = n as f64 / STORED_PER_SECOND;
    let (encoded, linked) = if dim == 0 {
        (0.0, 0.0)
    } else {
        let compared = work.ef_construction as f64 * COMPARED_PER_EF * dim as f64;
        (n as f64 / work.encoded_per_second.max(1e-9), n as f64 * compared / (COMPONENTS_PER_SECOND * threads))
    };
    let at_once = if work.segment_passages == 0 { n } else { n.min(work.segment_passages) };
    let first = LEXICAL_WRITER_BYTES + KEY * at_once;
    let second = if dim == 0 { 0 } else { at_once * (dim + 4 + graph) + at_once / 8 * work.threads as u64 };
    Estimate {
        seconds: stored + encoded + linked,
        memory_bytes: first.max(second),
        index_bytes,
        disk_bytes: index_bytes + n * 2 * dim,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arithmetic_is_as_documented() {
        let work = Workload {
            passages: 1_000_000,
            mean_bytes: 600.0,
            metadata_bytes: 0.0,
            dim: 384,
            m: 16,
            ef_construction: 200,
            threads: 2,
            segment_passages: 0,
            encoded_per_second: 200.0,
        };
        let e = estimate(&work);
        // 600 + 100 + 120 of text and terms, 1156 of vectors, 128 + 4 + 4 of graph.
        assert_eq!(e.index_bytes, 1_000_000 * (820 + 1156 + 136));
        assert_eq!(e.disk_bytes, e.index_bytes + 768_000_000);
        assert_eq!(e.memory_bytes, 1_000_000 * (388 + 136) + 250_000);
        assert!((e.seconds - (50.0 + 5000.0 + 64.0)).abs() < 1.0, "{}", e.seconds);
        let lexical_work = Workload { dim: 0, encoded_per_second: 0.0, ..work };
        let lexical = estimate(&lexical_work);
        assert_eq!(lexical.index_bytes, 820_000_000);
        let described = estimate(&Workload { metadata_bytes: 50.0, ..lexical_work });
        assert_eq!(described.index_bytes, 920_000_000);
    }

    #[test]
    fn a_segment_takes_no_more_memory_than_it_may() {
        for (memory, dim) in [(LEAST_MEMORY, 0), (LEAST_MEMORY, 384), (DEFAULT_MEMORY, 384), (2_000_000_000, 1024)] {
            let work = Workload {
                passages: 1_000_000_000,
                mean_bytes: 600.0,
                metadata_bytes: 0.0,
                dim,
                m: 16,
                ef_construction: 200,
                threads: 64,
                segment_passages: most_passages(memory, dim, 16),
                encoded_per_second: 200.0,
            };
            let taken = estimate(&work).memory_bytes;
            assert!(taken <= memory && taken > memory / 10 * 9, "{taken} of {memory}");
        }
        assert_eq!(most_passages(DEFAULT_MEMORY, 384, 16), 15_037_593);
    }
}
