//! Attention in both directions over texts that lie one after another without padding.
//!
//! Nothing of size [length, length] outlives a head: the backward pass computes the probabilities again, which for
//! texts of a few hundred tokens costs less than to write and read them.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::math::{dot, exp, largest, sum};
use crate::train::ops::gemm::{Into, Matrix, Threads, multiply};

/// Texts in a row of tokens, and which of their tokens ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts<'a> {
    /// First token of each text, and one past the last text's last token.
    pub(super) starts: &'a [usize],
    /// Whether each text's first token alone asks; else every token does.
    pub(super) first_only: bool,
}

impl Texts<'_> {
    /// Tokens and asking tokens of each text.
    fn lengths(&self) -> impl Iterator<Item = (usize, usize)> {
        let first_only = self.first_only;
        self.starts.windows(2).map(move |w| {
            let length = w[1] - w[0];
            (length, if first_only { length.min(1) } else { length })
        })
    }
}

/// One text's part of the operands: queries `[asking, d]`, and keys and values side by side `[length, 2 d]`.
struct Part<'a> {
    length: usize,
    asking: usize,
    q: &'a [f32],
    kv: &'a [f32],
}

fn parts<'a>(texts: Texts<'a>, q: &'a [f32], kv: &'a [f32], d: usize) -> Vec<Part<'a>> {
    let (mut q, mut kv) = (q, kv);
    let take = |(length, asking): (usize, usize)| {
        let (head_q, rest_q) = q.split_at(asking * d);
        let (head_kv, rest_kv) = kv.split_at(length * 2 * d);
        (q, kv) = (rest_q, rest_kv);
        Part { length, asking, q: head_q, kv: head_kv }
    };
    texts.lengths().map(take).collect()
}

/// Cut `data` into a piece for each text, of as many rows of `width` as `rows` says.
fn pieces(mut data: &mut [f32], rows: impl Iterator<Item = usize>, width: usize) -> Vec<&mut [f32]> {
    rows.map(|rows| {
        let (head, rest) = std::mem::take(&mut data).split_at_mut(rows * width);
        data = rest;
        head
    })
    .collect()
}

/// `out [asking, d] = softmax(Q Kᵀ / √(d/heads)) V` in each text and head.
pub(super) fn forward(texts: Texts, heads: usize, d: usize, q: &[f32], kv: &[f32], out: &mut [f32]) {
    let outs = pieces(out, texts.lengths().map(|(_, asking)| asking), d);
    parts(texts, q, kv, d).into_par_iter().zip(outs).for_each_init(Vec::new, |scores, (part, out)| {
        for head in 0..heads {
            let Views { v, stride, .. } = probabilities(&part, head, heads, d, scores);
            let scores = Matrix::new(scores, part.asking, part.length);
            multiply(&mut out[head * stride..], d, Into::Set, 1.0, scores, v, Threads::One);
        }
    });
}

/// The gradients of queries and of keys and values, from that of the output.
pub(super) fn backward(
    texts: Texts,
    heads: usize,
    d: usize,
    [q, kv, dout]: [&[f32]; 3],
    dq: &mut [f32],
    dkv: &mut [f32],
) {
    let douts = texts.lengths().scan(dout, |rest, (_, asking)| {
        let (head, after) = rest.split_at(asking * d);
        *rest = after;
        Some(head)
    });
    let douts: Vec<&[f32]> = douts.collect();
    let dqs = pieces(dq, texts.lengths().map(|(_, asking)| asking), d);
    let dkvs = pieces(dkv, texts.lengths().map(|(length, _)| length), 2 * d);
    let work = parts(texts, q, kv, d).into_par_iter().zip(douts).zip(dqs.into_par_iter().zip(dkvs));
    work.for_each_init(
        || (Vec::new(), Vec::new()),
        |(p, ds), ((part, dout), (dq, dkv))| {
            for head in 0..heads {
                let Views { q, k, v, stride, scale } = probabilities(&part, head, heads, d, p);
                let (rows, columns) = (part.asking, part.length);
                let dout = Matrix::strided(&dout[head * stride..], rows, stride, d);
                ds.resize(p.len(), 0.0);
                multiply(ds, columns, Into::Set, 1.0, dout, v.turned(), Threads::One);
                multiply(
                    &mut dkv[d + head * stride..],
                    2 * d,
                    Into::Set,
                    1.0,
                    Matrix::new(p, rows, columns).turned(),
                    dout,
                    Threads::One,
                );
                through_softmax(p, ds, columns);
                let ds = Matrix::new(ds, rows, columns);
                multiply(&mut dq[head * stride..], d, Into::Set, scale, ds, k, Threads::One);
                multiply(&mut dkv[head * stride..], 2 * d, Into::Set, scale, ds.turned(), q, Threads::One);
            }
        },
    );
}

/// A head's matrices.
struct Views<'a> {
    q: Matrix<'a>,
    k: Matrix<'a>,
    v: Matrix<'a>,
    /// Width of the head.
    stride: usize,
    scale: f32,
}

/// The probabilities `[asking, length]` of a head, into `scores`.
fn probabilities<'a>(part: &Part<'a>, head: usize, heads: usize, d: usize, scores: &mut Vec<f32>) -> Views<'a> {
    let width = d / heads;
    let scale = 1.0 / (width as f32).sqrt();
    let q = Matrix::strided(&part.q[head * width..], part.asking, width, d);
    let k = Matrix::strided(&part.kv[head * width..], part.length, width, 2 * d);
    let v = Matrix::strided(&part.kv[d + head * width..], part.length, width, 2 * d);
    scores.resize(part.asking * part.length, 0.0);
    multiply(scores, part.length, Into::Set, scale, q, k.turned(), Threads::One);
    softmax(scores, part.length);
    Views { q, k, v, stride: width, scale }
}

/// Softmax of each row.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn softmax(x: &mut [f32], width: usize) {
    for row in x.chunks_exact_mut(width) {
        let top = largest(row);
        for x in row.iter_mut() {
            *x = exp(*x - top);
        }
        let inverse = 1.0 / sum(row);
        for x in row.iter_mut() {
            *x *= inverse;
        }
    }
}

/// From the gradient of probabilities that of scores: `p (dp - Σ p dp)`, in place.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn through_softmax(p: &[f32], dp: &mut [f32], width: usize) {
    for (p, dp) in p.chunks_exact(width).zip(dp.chunks_exact_mut(width)) {
        let along = dot(p, dp);
        for (p, dp) in p.iter().zip(dp) {
            *dp = p * (*dp - along);
        }
    }
}
