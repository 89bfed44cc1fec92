//! Causal self-attention over packed sequences behind a learned prefix, with rotary positions inside.
//!
//! Each key head with its query heads of each sequence is a task of its own. The way back computes the
//! probabilities again instead of keeping them (Dao et al., 2022): keeping them would cost more memory than all
//! else together.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::batched_attention::{self, Plan};
use super::gemm::{Into, Matrix, Threads, multiply};
use super::{Packed, Sequence, floats, with_floats};
use crate::math::{dot, exp_all, largest, sum};

/// The sizes of attention and the batch that it is computed for.
#[derive(Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How many positions back a token sees, itself included; `None` for all. The prefix counts as positions.
    pub sliding_window: Option<usize>,
    /// Radians a pair of a head turns by from one position to the next, `[head_dim / 2]`.
    pub inverse_frequencies: Vec<f32>,
    /// The sequences.
    pub packed: Packed,
    /// Position of the first token of a sequence that goes on from no other: the length of the prefix.
    pub start: usize,
    /// Where rows go on a GPU: made by the first layer, for all.
    pub(in crate::train) plan: OnceLock<Arc<Plan>>,
}

/// Attention of `qkv [tokens, (heads + 2 kv_heads) * head_dim]` (queries, keys and values of each token side by side,
/// positions not yet applied) over each sequence and over `prefix [2, start, kv_heads * head_dim]` before it (keys with
/// their positions applied, and values), giving `[tokens, heads * head_dim]`.
pub fn causal_attention(qkv: &Tensor, prefix: Option<&Tensor>, attention: &Arc<Attention>) -> Result<Tensor> {
    if !qkv.device().is_cpu() {
        return batched_attention::attention(qkv, prefix, attention);
    }
    let op = Causal(attention.clone());
    match prefix {
        Some(prefix) => qkv.contiguous()?.apply_op2(&prefix.contiguous()?, op),
        None => qkv.contiguous()?.apply_op1(op),
    }
}

impl Attention {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn row(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Cosines and sines of the positions `0..end`, `[end, head_dim / 2]` each.
    pub fn rotations(&self, end: usize) -> (Vec<f32>, Vec<f32>) {
        let angles = (0..end).flat_map(|p| self.inverse_frequencies.iter().map(move |f| f64::from(*f) * p as f64));
        angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip()
    }

    /// Whether the token at `query` sees position `key`.
    fn sees(&self, query: usize, key: usize) -> bool {
        key <= query && self.sliding_window.is_none_or(|window| query - key < window)
    }

    pub(super) fn longest(&self) -> usize {
        self.packed.sequences().iter().map(|s| self.before(s) + s.rows.len()).max().unwrap_or(self.start)
    }

    /// Position of a sequence's first token.
    fn before(&self, sequence: &Sequence) -> usize {
        self.start + sequence.context.len()
    }

    /// A copy of `qkv` with the positions of queries and keys applied, or taken off with `sign = -1`.
    fn rotated(&self, qkv: &[f32], sign: f32) -> Vec<f32> {
        let (cos, sin) = self.rotations(self.longest());
        let (half, turned) = (self.head_dim / 2, (self.heads + self.kv_heads) * self.head_dim);
        let mut out = qkv.to_vec();
        let of = |s: &Sequence| self.before(s)..self.before(s) + s.rows.len();
        let positions: Vec<usize> = self.packed.sequences().iter().flat_map(of).collect();
        out.par_chunks_mut(self.row()).zip(positions).for_each(|(row, position)| {
            let at = position * half..(position + 1) * half;
            for head in row[..turned].chunks_mut(self.head_dim) {
                rotate(head, &cos[at.clone()], &sin[at.clone()], sign);
            }
        });
        out
    }

    /// Every key head of every sequence.
    fn tasks(&self) -> Vec<(&Sequence, usize)> {
        self.packed.sequences().iter().flat_map(|s| (0..self.kv_heads).map(move |head| (s, head))).collect()
    }

    pub(super) fn check(&self, qkv: &[usize], prefix: Option<&[usize]>) -> Result<()> {
        if qkv != [self.packed.tokens(), self.row()] {
            candle_core::bail!("attention over {} tokens got {:?}", self.packed.tokens(), qkv);
        }
        match prefix {
            Some(prefix) if prefix != [2, self.start, self.kv_heads * self.head_dim] => {
                candle_core::bail!("a prefix of {} positions has the shape {prefix:?}", self.start)
            }
            None if self.start > 0 => candle_core::bail!("the prefix of {} positions is missing", self.start),
            _ => Ok(()),
        }
    }
}

fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (x, y) = (*a, *b);
        *a = x * cos - sign * y * sin;
        *b = y * cos + sign * x * sin;
    }
}

struct Causal(Arc<Attention>);

/// One key head of one sequence, gathered: queries `[group * length, dim]`, keys and values `[before + length, dim]`.
struct Heads {
    /// Positions of the prefix and of the sequence that this one goes on from.
    before: usize,
    length: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Causal {
    fn gather(&self, &(sequence, head): &(&Sequence, usize), qkv: &[f32], prefix: &[f32]) -> Heads {
        let Attention { heads, kv_heads, head_dim: dim, start, .. } = *self.0;
        let (group, before, Sequence { context, rows }) = (self.0.group(), self.0.before(sequence), sequence);
        let width = self.0.row();
        let mut queries = Vec::with_capacity(group * rows.len() * dim);
        for query in 0..group {
            gather(&mut queries, qkv, width, rows, (head * group + query) * dim, dim);
        }
        let seen = |part: usize| {
            let mut all = Vec::with_capacity((before + rows.len()) * dim);
            gather(&mut all, prefix, kv_heads * dim, &(part * start..(part + 1) * start), head * dim, dim);
            for rows in [context, rows] {
                gather(&mut all, qkv, width, rows, (heads + part * kv_heads + head) * dim, dim);
            }
            all
        };
        Heads { before, length: rows.len(), queries, keys: seen(0), values: seen(1) }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.0.head_dim as f32).sqrt()
    }

    /// Softmax of the scaled scores, `[group * length, before + length]`.
    fn probabilities(&self, task: &Heads) -> Vec<f32> {
        let dim = self.0.head_dim;
        let (m, n) = (task.queries.len() / dim, task.before + task.length);
        let mut scores = vec![0.0; m * n];
        let (queries, keys) = (Matrix::new(&task.queries, m, dim), Matrix::new(&task.keys, n, dim).turned());
        multiply(&mut scores, n, Into::Set, self.scale(), queries, keys, Threads::One);
        for (i, row) in scores.chunks_mut(n).enumerate() {
            let query = task.before + i % task.length;
            let seen = (0..=query).find(|&key| self.0.sees(query, key)).unwrap_or(query)..query + 1;
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let row = &mut row[seen];
            let max = largest(row);
            row.iter_mut().for_each(|x| *x -= max);
            exp_all(row);
            let inverse = 1.0 / sum(row);
            row.iter_mut().for_each(|x| *x *= inverse);
        }
        scores
    }

    fn forward(&self, qkv: &[f32], prefix: &[f32]) -> Vec<f32> {
        let dim = self.0.head_dim;
        let qkv = self.0.rotated(qkv, 1.0);
        let tasks = self.0.tasks();
        let results: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|task| {
                let heads = self.gather(task, &qkv, prefix);
                let (m, n) = (heads.queries.len() / dim, heads.keys.len() / dim);
                let probabilities = self.probabilities(&heads);
                let mut out = vec![0.0; m * dim];
                let (probabilities, values) = (Matrix::new(&probabilities, m, n), Matrix::new(&heads.values, n, dim));
                multiply(&mut out, dim, Into::Set, 1.0, probabilities, values, Threads::One);
                out
            })
            .collect();
        let width = self.0.heads * dim;
        let mut out = vec![0.0; self.0.packed.tokens() * width];
        for ((sequence, head), result) in tasks.iter().zip(&results) {
            scatter(&mut out, width, &sequence.rows, head * self.0.group() * dim, dim, result);
        }
        out
    }

    /// Gradients of `qkv` and of the prefix.
    fn backward(&self, qkv: &[f32], prefix: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let Attention { heads, kv_heads, head_dim: dim, start, .. } = *self.0;
        let group = self.0.group();
        let qkv = self.0.rotated(qkv, 1.0);
        let tasks = self.0.tasks();
        let results: Vec<[Vec<f32>; 3]> = tasks
            .par_iter()
            .map(|task| {
                let gathered = self.gather(task, &qkv, prefix);
                let mut own = Vec::with_capacity(gathered.queries.len());
                for query in 0..group {
                    gather(&mut own, gradient, heads * dim, &task.0.rows, (task.1 * group + query) * dim, dim);
                }
                self.task_backward(&gathered, &own)
            })
            .collect();
        let mut d_qkv = vec![0.0; qkv.len()];
        let mut d_prefix = vec![0.0; prefix.len()];
        let width = self.0.row();
        for ((Sequence { context, rows }, head), [queries, keys, values]) in tasks.iter().zip(&results) {
            scatter(&mut d_qkv, width, rows, head * group * dim, dim, queries);
            for (part, from) in [keys, values].into_iter().enumerate() {
                let column = (heads + part * kv_heads + head) * dim;
                let (from_context, from_rows) = from[start * dim..].split_at(context.len() * dim);
                scatter(&mut d_qkv, width, context, column, dim, from_context);
                scatter(&mut d_qkv, width, rows, column, dim, from_rows);
                for (position, from) in from[..start * dim].chunks(dim).enumerate() {
                    let at = ((part * start + position) * kv_heads + head) * dim;
                    d_prefix[at..at + dim].iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
                }
            }
        }
        (self.0.rotated(&d_qkv, -1.0), d_prefix)
    }

    /// With P the probabilities and dO the gradient: `dV = P^T dO`, `dP = dO V^T`,
    /// `dS = P (dP - rowsum(P dP))`, `dQ = scale dS K`, `dK = scale dS^T Q`.
    fn task_backward(&self, task: &Heads, gradient: &[f32]) -> [Vec<f32>; 3] {
        let dim = self.0.head_dim;
        let (m, n) = (task.queries.len() / dim, task.keys.len() / dim);
        let probabilities = self.probabilities(task);
        let by_key = Matrix::new(&probabilities, m, n).turned();
        let gradient = Matrix::new(gradient, m, dim);
        let mut values = vec![0.0; n * dim];
        multiply(&mut values, dim, Into::Set, 1.0, by_key, gradient, Threads::One);
        let mut scores = vec![0.0; m * n];
        let by_value = Matrix::new(&task.values, n, dim).turned();
        multiply(&mut scores, n, Into::Set, 1.0, gradient, by_value, Threads::One);
        for (d, p) in scores.chunks_mut(n).zip(probabilities.chunks(n)) {
            let along = dot(d, p);
            d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - along));
        }
        let mut queries = vec![0.0; m * dim];
        let (scores, scale) = (Matrix::new(&scores, m, n), self.scale());
        multiply(&mut queries, dim, Into::Set, scale, scores, Matrix::new(&task.keys, n, dim), Threads::One);
        let mut keys = vec![0.0; n * dim];
        let by_query = Matrix::new(&task.queries, m, dim);
        multiply(&mut keys, dim, Into::Set, scale, scores.turned(), by_query, Threads::One);
        [queries, keys, values]
    }
}

/// Append `dim` columns from `column` on of some rows of a matrix of this width.
fn gather(to: &mut Vec<f32>, from: &[f32], width: usize, rows: &Range<usize>, column: usize, dim: usize) {
    for row in rows.clone() {
        to.extend_from_slice(&from[row * width + column..][..dim]);
    }
}

/// Add heads `from [k * length, dim]` to columns `column..` of the rows of a sequence, head beside head.
fn scatter(out: &mut [f32], width: usize, rows: &Range<usize>, column: usize, dim: usize, from: &[f32]) {
    for (i, from) in from.chunks(dim).enumerate() {
        let (head, row) = (i / rows.len(), rows.start + i % rows.len());
        let at = row * width + column + head * dim;
        out[at..at + dim].iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
    }
}

impl CustomOp1 for Causal {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.check(layout.dims(), None)?;
        let out = self.forward(floats(storage, layout)?, &[]);
        Ok((CpuStorage::F32(out), Shape::from((self.0.packed.tokens(), self.0.heads * self.0.head_dim))))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (d_qkv, _) = with_floats([qkv, gradient], |[qkv, gradient]| self.backward(qkv, &[], gradient))?;
        Tensor::from_vec(d_qkv, qkv.shape(), qkv.device()).map(Some)
    }
}

impl CustomOp2 for Causal {
    fn name(&self) -> &'static str {
        "causal-attention-behind-prefix"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.check(l1.dims(), Some(l2.dims()))?;
        let out = self.forward(floats(s1, l1)?, floats(s2, l2)?);
        Ok((CpuStorage::F32(out), Shape::from((self.0.packed.tokens(), self.0.heads * self.0.head_dim))))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        prefix: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (d_qkv, d_prefix) =
            with_floats([qkv, prefix, gradient], |[qkv, prefix, gradient]| self.backward(qkv, prefix, gradient))?;
        let d_qkv = Tensor::from_vec(d_qkv, qkv.shape(), qkv.device())?;
        let d_prefix = Tensor::from_vec(d_prefix, prefix.shape(), prefix.device())?;
        Ok((Some(d_qkv), Some(d_prefix)))
    }
}

/// The same, of candle's own operations, sequence after sequence: what the tests compare with.
#[cfg(test)]
fn composed(qkv: &Tensor, prefix: Option<&Tensor>, attention: &Attention) -> Result<Tensor> {
    let Attention { heads, kv_heads, head_dim: dim, start, .. } = *attention;
    let device = qkv.device();
    let (cos, sin) = attention.rotations(attention.longest());
    let positions = |table: Vec<f32>| Tensor::from_vec(table, (attention.longest(), dim / 2), device);
    let (cos, sin) = (positions(cos)?, positions(sin)?);
    let mut outs = Vec::new();
    for sequence in attention.packed.sequences() {
        let Sequence { context, rows } = sequence;
        let (length, before) = (rows.len(), attention.before(sequence));
        let own = qkv.narrow(0, rows.start, length)?;
        let seen = Tensor::cat(&[&qkv.narrow(0, context.start, context.len())?, &own], 0)?;
        let part = |rows: &Tensor, first: usize, count: usize| {
            let heads = rows.narrow(1, first * dim, count * dim)?.contiguous()?;
            heads.reshape((rows.dim(0)?, count, dim))?.transpose(0, 1)
        };
        let turn = |x: Tensor, from: usize| -> Result<Tensor> {
            let (a, b) = (x.narrow(2, 0, dim / 2)?, x.narrow(2, dim / 2, dim / 2)?);
            let (cos, sin) = (cos.narrow(0, from, x.dim(1)?)?, sin.narrow(0, from, x.dim(1)?)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            Tensor::cat(&[first, second], 2)
        };
        let (queries, mut keys) = (turn(part(&own, 0, heads)?, before)?, turn(part(&seen, heads, kv_heads)?, start)?);
        let mut values = part(&seen, heads + kv_heads, kv_heads)?;
        if let Some(prefix) = prefix {
            let states = prefix.reshape((2, start, kv_heads, dim))?.transpose(1, 2)?;
            keys = Tensor::cat(&[states.get(0)?, keys], 1)?;
            values = Tensor::cat(&[states.get(1)?, values.contiguous()?], 1)?;
        }
        let spread = |x: Tensor| {
            let wide = x.unsqueeze(1)?.broadcast_as((kv_heads, attention.group(), before + length, dim))?;
            wide.reshape((heads, before + length, dim))
        };
        let (keys, values) = (spread(keys)?, spread(values)?);
        let mask: Vec<f32> = (before..before + length)
            .flat_map(|query| (0..before + length).map(move |key| (query, key)))
            .map(|(query, key)| if attention.sees(query, key) { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        let mask = Tensor::from_vec(mask, (1, length, before + length), device)?;
        let scores = (queries.contiguous()?.matmul(&keys.t()?)? / (dim as f64).sqrt())?.broadcast_add(&mask)?;
        let probabilities = candle_nn::ops::softmax(&scores, 2)?;
        let out = probabilities.matmul(&values)?.transpose(0, 1)?.reshape((length, heads * dim))?;
        outs.push(out);
    }
    Tensor::cat(&outs, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ops::tests::{random, same};

    fn with(start: usize, sliding_window: Option<usize>) -> Attention {
        Attention {
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            sliding_window,
            inverse_frequencies: vec![1.0, 0.3, 0.01],
            packed: Packed::new([5, 1, 9]),
            start,
            plan: OnceLock::new(),
        }
    }

    fn attention(start: usize, sliding_window: Option<usize>) -> Arc<Attention> {
        Arc::new(with(start, sliding_window))
    }

    #[test]
    fn fused_equals_composed_and_batched() {
        let qkv = random(&[15, 8 * 6], 1);
        for window in [None, Some(3)] {
            let attention = attention(0, window);
            let fused = causal_attention(&qkv, None, &attention).unwrap();
            same(&[&qkv], &fused, &composed(&qkv, None, &attention).unwrap());
            same(&[&qkv], &fused, &batched_attention::attention(&qkv, None, &attention).unwrap());
        }
    }

    #[test]
    fn fused_equals_composed_and_batched_behind_a_prefix() {
        let (qkv, prefix) = (random(&[15, 8 * 6], 1), random(&[2, 4, 2 * 6], 2));
        for window in [None, Some(6)] {
            let attention = attention(4, window);
            let fused = causal_attention(&qkv, Some(&prefix), &attention).unwrap();
            same(&[&qkv, &prefix], &fused, &composed(&qkv, Some(&prefix), &attention).unwrap());
            same(&[&qkv, &prefix], &fused, &batched_attention::attention(&qkv, Some(&prefix), &attention).unwrap());
        }
    }

    #[test]
    fn fused_equals_composed_and_batched_when_sequences_go_on_from_others() {
        let (qkv, prefix) = (random(&[15, 8 * 6], 1), random(&[2, 4, 2 * 6], 2));
        let mut packed = Packed::default();
        let first = packed.push(5, 0..0);
        packed.push(3, first.clone());
        packed.push(2, first);
        let second = packed.push(1, 0..0);
        packed.push(4, second);
        for window in [None, Some(6)] {
            let attention = Arc::new(Attention { packed: packed.clone(), ..with(4, window) });
            let fused = causal_attention(&qkv, Some(&prefix), &attention).unwrap();
            same(&[&qkv, &prefix], &fused, &composed(&qkv, Some(&prefix), &attention).unwrap());
            same(&[&qkv, &prefix], &fused, &batched_attention::attention(&qkv, Some(&prefix), &attention).unwrap());
        }
    }

    #[test]
    fn what_goes_on_from_another_is_as_if_it_stood_behind_it() {
        let qkv = random(&[8, 8 * 6], 1);
        let mut packed = Packed::default();
        let first = packed.push(5, 0..0);
        packed.push(3, first);
        let of = |packed| causal_attention(&qkv, None, &Arc::new(Attention { packed, ..with(0, None) })).unwrap();
        same(&[&qkv], &of(packed), &of(Packed::new([8])));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let attention = attention(4, None);
        assert!(causal_attention(&random(&[15, 48], 1), None, &attention).is_err());
        assert!(causal_attention(&random(&[14, 48], 1), Some(&random(&[2, 4, 12], 2)), &attention).is_err());
        assert!(causal_attention(&random(&[15, 48], 1), Some(&random(&[2, 3, 12], 2)), &attention).is_err());
    }
}
