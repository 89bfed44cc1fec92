//! Causal attention over packed sequences on a GPU: sequences of like length side by side, padded.
//!
//! One sequence after another would be thousands of small kernels to a layer, which a GPU starts no faster than it
//! computes large ones. Rows are gathered on the way forward and on the way back: adding them up where they belong, as
//! candle's gradient of a gather does, runs row after row.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};

use super::causal_attention::Attention;
use super::given::{with_gradient, with_gradients};
use super::{Packed, Sequence};

/// What is added to the score of a key that a query does not see. Finite, so that a row of padding has no sum of 0.
const UNSEEN: f32 = -1e9;

/// Where the rows of a packed batch go; the same in every layer.
#[derive(Debug)]
pub(in crate::train) struct Plan {
    groups: Vec<Group>,
    /// Place of each packed row among the groups' query rows, `[tokens]`.
    queries_back: Tensor,
    /// Places of each packed row among the groups' key rows, `[tokens * most]`; one past the end where it has fewer.
    keys_back: Tensor,
    most: usize,
    /// Of each packed row's position, `[tokens, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
}

/// Sequences of like length, padded to the longest.
#[derive(Debug)]
struct Group {
    count: usize,
    queries: usize,
    keys: usize,
    /// Packed rows, `[count * queries]` and `[count * keys]`; one past the end where there is padding.
    query_rows: Tensor,
    key_rows: Tensor,
    /// `[count, 1, queries, start + keys]`.
    mask: Tensor,
}

/// What the way back needs of a group, `rows` being query heads of one key head times queries.
struct Saved {
    queries: Tensor, // [count * kv_heads, rows, dim]
    keys: Tensor,    // [count * kv_heads, start + keys, dim]
    values: Tensor,  // the same
    shares: Tensor,  // [count * kv_heads, rows, start + keys]
}

impl Plan {
    fn new(attention: &Attention, device: &Device) -> Result<Self> {
        let (packed, start) = (&attention.packed, attention.start);
        let tokens = packed.tokens();
        let mut alike: BTreeMap<usize, Vec<&Sequence>> = BTreeMap::new();
        for sequence in packed.sequences().iter().filter(|s| !s.rows.is_empty()) {
            alike.entry(sequence.rows.len().next_power_of_two()).or_default().push(sequence);
        }
        let (mut groups, mut queries_back) = (Vec::new(), vec![0u32; tokens]);
        let mut keys_back: Vec<Vec<u32>> = vec![Vec::new(); tokens];
        let (mut query_end, mut key_end) = (0, 0);
        for sequences in alike.values() {
            let longest = |length: &dyn Fn(&Sequence) -> usize| sequences.iter().map(|s| length(s)).max().unwrap_or(0);
            let queries = longest(&|s| s.rows.len());
            let keys = longest(&|s| s.context.len() + s.rows.len());
            let (mut query_rows, mut key_rows) = (Vec::new(), Vec::new());
            let (mut query_positions, mut key_positions) = (Vec::new(), Vec::new());
            for sequence in sequences {
                for (i, row) in sequence.rows.clone().enumerate() {
                    queries_back[row] = (query_end + query_rows.len() + i) as u32;
                }
                let seen = sequence.context.clone().chain(sequence.rows.clone());
                for (i, row) in seen.clone().enumerate() {
                    keys_back[row].push((key_end + key_rows.len() + i) as u32);
                }
                let before = start + sequence.context.len();
                fill(&mut query_rows, sequence.rows.clone().map(|row| row as u32), queries, tokens as u32);
                fill(&mut key_rows, seen.map(|row| row as u32), keys, tokens as u32);
                // Padding comes behind all positions: queries there see something, and no true query sees keys there.
                let end = before + sequence.rows.len();
                fill(&mut query_positions, (before..end).map(|p| p as f32), queries, 1e9);
                let positions = (0..start).chain(start..end).map(|p| p as f32);
                fill(&mut key_positions, positions, start + keys, 1e9);
            }
            query_end += query_rows.len();
            key_end += key_rows.len();
            let count = sequences.len();
            let at = |rows: Vec<u32>| Tensor::from_vec(rows, count * queries, device);
            let key_rows = Tensor::from_vec(key_rows, count * keys, device)?;
            let query_positions = Tensor::from_vec(query_positions, (count, 1, queries, 1), device)?;
            let key_positions = Tensor::from_vec(key_positions, (count, 1, 1, start + keys), device)?;
            let behind = query_positions.broadcast_sub(&key_positions)?;
            let unseen = (behind.ones_like()? * f64::from(UNSEEN))?;
            let mut mask = behind.ge(0f64)?.where_cond(&behind.zeros_like()?, &unseen)?;
            if let Some(window) = attention.sliding_window {
                mask = behind.lt(window as f64)?.where_cond(&mask, &unseen)?;
            }
            groups.push(Group { count, queries, keys, query_rows: at(query_rows)?, key_rows, mask });
        }
        let most = keys_back.iter().map(Vec::len).max().unwrap_or(0);
        let mut flat = Vec::with_capacity(tokens * most);
        for places in keys_back {
            fill(&mut flat, places.into_iter(), most, key_end as u32);
        }
        let (cos, sin) = attention.rotations(attention.longest());
        let half = attention.head_dim / 2;
        let table = |table: Vec<f32>| -> Result<Tensor> {
            let of = |position: usize| table[position * half..(position + 1) * half].iter().copied();
            let rows: Vec<f32> = positions(packed, start).flat_map(of).collect();
            Tensor::from_vec(rows, (tokens, half), device)
        };
        Ok(Self {
            groups,
            queries_back: Tensor::from_vec(queries_back, tokens, device)?,
            keys_back: Tensor::from_vec(flat, tokens * most, device)?,
            most,
            cos: table(cos)?,
            sin: table(sin)?,
        })
    }
}

/// Position of each packed row.
fn positions(packed: &Packed, start: usize) -> impl Iterator<Item = usize> {
    packed.sequences().iter().flat_map(move |s| {
        let before = start + s.context.len();
        before..before + s.rows.len()
    })
}

/// `items`, and `padding` up to a length of `length`.
fn fill<T: Copy>(into: &mut Vec<T>, items: impl Iterator<Item = T>, length: usize, padding: T) {
    let end = into.len() + length;
    into.extend(items);
    into.resize(end, padding);
}

/// Rows of `x`, of which the one past its end is 0.
fn rows(x: &Tensor, at: &Tensor) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    Tensor::cat(&[x, &Tensor::zeros((1, width), DType::F32, x.device())?], 0)?.index_select(at, 0)
}

/// As [`super::causal_attention()`].
pub(super) fn attention(qkv: &Tensor, prefix: Option<&Tensor>, attention: &Arc<Attention>) -> Result<Tensor> {
    attention.check(qkv.dims(), prefix.map(Tensor::dims))?;
    let plan = match attention.plan.get() {
        Some(plan) => plan.clone(),
        None => {
            let plan = Arc::new(Plan::new(attention, qkv.device())?);
            attention.plan.get_or_init(|| plan).clone()
        }
    };
    let of = Of { attention: attention.clone(), plan };
    let (value, saved) = of.forward(&qkv.detach(), prefix.map(Tensor::detach).as_ref())?;
    match prefix {
        None => with_gradient(qkv, value, move |gradient| Ok(of.backward(gradient, &saved)?.0)),
        Some(prefix) => with_gradients(qkv, prefix, value, move |gradient| of.backward(gradient, &saved)),
    }
}

struct Of {
    attention: Arc<Attention>,
    plan: Arc<Plan>,
}

impl Of {
    /// Queries and keys `[tokens, width]` turned by their positions, or back.
    fn turned(&self, x: &Tensor, back: bool) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let dim = self.attention.head_dim;
        let heads = x.contiguous()?.reshape((1, tokens, width / dim, dim))?;
        let sin = if back { self.plan.sin.neg()? } else { self.plan.sin.clone() };
        candle_nn::rotary_emb::rope_thd(&heads, &self.plan.cos, &sin)?.reshape((tokens, width))
    }

    /// `[count * length, kv_heads * per * dim]` to `[count * kv_heads, per * length, dim]`.
    fn by_head(&self, x: &Tensor, count: usize, length: usize) -> Result<Tensor> {
        let Attention { kv_heads, head_dim: dim, .. } = *self.attention;
        let per = x.dim(1)? / (kv_heads * dim);
        let x = x.reshape((count, length, kv_heads * per, dim))?.transpose(1, 2)?.contiguous()?;
        x.reshape((count * kv_heads, per * length, dim))
    }

    /// The way back of [`Self::by_head`].
    fn by_row(&self, x: &Tensor, count: usize, length: usize) -> Result<Tensor> {
        let Attention { kv_heads, head_dim: dim, .. } = *self.attention;
        let heads = kv_heads * (x.dim(1)? / length);
        let x = x.reshape((count, heads, length, dim))?.transpose(1, 2)?.contiguous()?;
        x.reshape((count * length, heads * dim))
    }

    fn forward(&self, qkv: &Tensor, prefix: Option<&Tensor>) -> Result<(Tensor, Vec<Saved>)> {
        let Attention { heads, kv_heads, head_dim: dim, start, .. } = *self.attention;
        let turned = self.turned(&qkv.narrow(1, 0, (heads + kv_heads) * dim)?, false)?;
        let queries = turned.narrow(1, 0, heads * dim)?.contiguous()?;
        let keys = turned.narrow(1, heads * dim, kv_heads * dim)?;
        let values = qkv.narrow(1, (heads + kv_heads) * dim, kv_heads * dim)?;
        let both = Tensor::cat(&[keys, values], 1)?;
        let scale = 1.0 / (dim as f64).sqrt();
        let (mut outs, mut saved) = (Vec::new(), Vec::new());
        for group in &self.plan.groups {
            let Group { count, .. } = *group;
            let queries = self.by_head(&rows(&queries, &group.query_rows)?, count, group.queries)?;
            let both = rows(&both, &group.key_rows)?;
            let part = |which: usize| -> Result<Tensor> {
                let own = both.narrow(1, which * kv_heads * dim, kv_heads * dim)?.contiguous()?;
                let own = self.by_head(&own, count, group.keys)?;
                let Some(prefix) = prefix else { return Ok(own) };
                let before = prefix.get(which)?.reshape((1, start, kv_heads, dim))?.transpose(1, 2)?;
                let before = before.broadcast_as((count, kv_heads, start, dim))?.contiguous()?;
                Tensor::cat(&[before.reshape((count * kv_heads, start, dim))?, own], 1)
            };
            let (keys, values) = (part(0)?, part(1)?);
            let scores = (queries.matmul(&keys.t()?)? * scale)?;
            let all = start + group.keys;
            let scores = scores.reshape((count, heads, group.queries, all))?.broadcast_add(&group.mask)?;
            let shares = candle_nn::ops::softmax_last_dim(&scores)?;
            let shares = shares.reshape((count * kv_heads, heads / kv_heads * group.queries, all))?;
            outs.push(self.by_row(&shares.matmul(&values)?, count, group.queries)?);
            saved.push(Saved { queries, keys, values, shares });
        }
        Ok((Tensor::cat(&outs, 0)?.index_select(&self.plan.queries_back, 0)?, saved))
    }

    /// With `P` the shares and `O = P V`: `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P (dP - sum(P dP))`, `dQ = dS K / √d`,
    /// `dK = dSᵀ Q / √d`. Gives the gradients of queries, keys and values, and of the prefix (of no rows without one).
    fn backward(&self, gradient: &Tensor, saved: &[Saved]) -> Result<(Tensor, Tensor)> {
        let Attention { kv_heads, head_dim: dim, start, .. } = *self.attention;
        let scale = 1.0 / (dim as f64).sqrt();
        let (mut d_queries, mut d_both) = (Vec::new(), Vec::new());
        let mut d_prefix = Tensor::zeros((2, start, kv_heads * dim), DType::F32, gradient.device())?;
        for (group, Saved { queries, keys, values, shares }) in self.plan.groups.iter().zip(saved) {
            let Group { count, .. } = *group;
            let d_out = self.by_head(&rows(gradient, &group.query_rows)?, count, group.queries)?;
            let d_values = shares.t()?.matmul(&d_out)?;
            let d_shares = d_out.matmul(&values.t()?)?;
            let sum = (shares * &d_shares)?.sum_keepdim(D::Minus1)?;
            let d_scores = ((shares * d_shares.broadcast_sub(&sum)?)? * scale)?;
            let d_keys = d_scores.t()?.matmul(queries)?;
            d_queries.push(self.by_row(&d_scores.matmul(keys)?, count, group.queries)?);
            let own = |x: &Tensor| self.by_row(&x.narrow(1, start, group.keys)?.contiguous()?, count, group.keys);
            d_both.push(Tensor::cat(&[own(&d_keys)?, own(&d_values)?], 1)?);
            if start > 0 {
                let before = |x: &Tensor| {
                    let x = x.narrow(1, 0, start)?.contiguous()?.reshape((count, kv_heads, start, dim))?.sum(0)?;
                    x.transpose(0, 1)?.contiguous()?.reshape((start, kv_heads * dim))
                };
                d_prefix = (d_prefix + Tensor::stack(&[before(&d_keys)?, before(&d_values)?], 0)?)?;
            }
        }
        let d_queries = Tensor::cat(&d_queries, 0)?.index_select(&self.plan.queries_back, 0)?;
        let (tokens, width) = (d_queries.dim(0)?, 2 * kv_heads * dim);
        let d_both = rows(&Tensor::cat(&d_both, 0)?, &self.plan.keys_back)?;
        let d_both = d_both.reshape((tokens, self.plan.most, width))?.sum(1)?;
        let d_keys = d_both.narrow(1, 0, width / 2)?;
        let d_turned = self.turned(&Tensor::cat(&[&d_queries, &d_keys], 1)?, true)?;
        Ok((Tensor::cat(&[d_turned, d_both.narrow(1, width / 2, width / 2)?], 1)?, d_prefix))
    }
}
