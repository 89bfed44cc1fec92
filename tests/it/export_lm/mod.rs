//! Exported language models against candle's forward pass over the same weights, the KV cache contract of
//! their graphs, and the tokenizers rebuilt from GGUF files.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a test's helper fails the test")]

mod cache;
mod gguf;
mod graph;
mod in_place;
mod learned;
mod parity;
mod starter;
mod tiny;

/// The largest difference between two tensors, relative to the largest magnitude in the second.
fn gap(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off =
        ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0f32, |m, d| if d.is_nan() { d } else { m.max(d) });
    off / largest
}

/// Panics, naming both, unless the gap is at most `tolerance` (and not NaN).
#[track_caller]
fn assert_close(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
    let gap = gap(ours, theirs);
    assert!(gap <= tolerance, "{what}: {gap} apart, at most {tolerance} allowed");
}

/// Root of the mean squared difference, relative to the root of the mean square of the second: what rounding
/// in many places adds up to, where [`gap`] follows the worst of thousands.
fn noise(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let off: f32 = ours.iter().zip(theirs).map(|(a, b)| (a - b).powi(2)).sum();
    let all: f32 = theirs.iter().map(|b| b.powi(2)).sum();
    (off / all).sqrt()
}
