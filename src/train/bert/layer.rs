//! One layer of a BERT encoder as a single operator: attention and feed-forward, each added to its input and
//! normalised (Devlin et al. 2019, arXiv:1810.04805; normalisation after the sum).
//!
//! One operator and not a dozen, because candle makes zeros for every gradient and adds to them, on one thread:
//! for a dozen operators a layer that is a third of the whole time. The layer's parameters come as one vector, laid
//! out as [`LayerShape::shapes`] says; texts come packed, without padding.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};

use super::attention::{self, Texts};
use super::buffer::Buffer;
use super::dense::{add, dense, dense_input, dense_parameters};
use super::{activation, layer_norm};
use crate::export::bert_source::Activation;
use crate::train::ops::gemm::Into;
use crate::train::ops::{floats, with_floats};
use crate::train::texts::Padding;

/// What a layer computes, apart from its parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerShape {
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) intermediate: usize,
    pub(super) activation: Activation,
    pub(super) eps: f32,
}

/// Number of parameter tensors in a layer.
pub(super) const PIECES: usize = 16;

impl LayerShape {
    /// Shapes of the parameters in their order: weights `[out, in]` of query, key and value, then their biases;
    /// weight and bias of the attention's output, of its normalisation, of the two feed-forward layers, and of the
    /// last normalisation.
    pub(super) fn shapes(&self) -> [Vec<usize>; PIECES] {
        let (d, f) = (self.hidden, self.intermediate);
        let (square, wide) = (|| vec![d, d], || vec![d]);
        [
            square(),
            square(),
            square(),
            wide(),
            wide(),
            wide(),
            square(),
            wide(),
            wide(),
            wide(),
            vec![f, d],
            vec![f],
            vec![d, f],
            wide(),
            wide(),
            wide(),
        ]
    }
}

/// The parameters of a layer, by name. Key and value lie side by side and are taken as one.
struct Parts<T> {
    q: T,
    kv: T,
    q_bias: T,
    kv_bias: T,
    out: T,
    out_bias: T,
    norm: T,
    norm_bias: T,
    up: T,
    up_bias: T,
    down: T,
    down_bias: T,
    last: T,
    last_bias: T,
}

/// Cut a vector of all parameters into its pieces, by a function that cuts so many off its front.
fn cut<T>(shape: &LayerShape, mut take: impl FnMut(usize) -> T) -> Parts<T> {
    let (d, f) = (shape.hidden, shape.intermediate);
    Parts {
        q: take(d * d),
        kv: take(2 * d * d),
        q_bias: take(d),
        kv_bias: take(2 * d),
        out: take(d * d),
        out_bias: take(d),
        norm: take(d),
        norm_bias: take(d),
        up: take(f * d),
        up_bias: take(f),
        down: take(d * f),
        down_bias: take(d),
        last: take(d),
        last_bias: take(d),
    }
}

fn view<'a>(shape: &LayerShape, params: &'a [f32]) -> Parts<&'a [f32]> {
    let mut rest = params;
    cut(shape, |count| {
        let (head, tail) = rest.split_at(count);
        rest = tail;
        head
    })
}

fn view_mut<'a>(shape: &LayerShape, params: &'a mut [f32]) -> Parts<&'a mut [f32]> {
    let mut rest = params;
    cut(shape, |count| {
        let (head, tail) = std::mem::take(&mut rest).split_at_mut(count);
        rest = tail;
        head
    })
}

/// What the backward pass takes from the forward pass.
struct Saved {
    q: Buffer,
    kv: Buffer,
    context: Buffer,
    /// The first sum, normalised; and 1/σ of each of its rows.
    normal: Buffer,
    inverse: Vec<f32>,
    /// The first normalisation's result.
    middle: Buffer,
    /// Before the activation.
    inner: Buffer,
    last_normal: Buffer,
    last_inverse: Vec<f32>,
}

/// The layer over packed texts.
struct BertLayer {
    shape: LayerShape,
    starts: Arc<[usize]>,
    first_only: bool,
    keep: bool,
    saved: Mutex<Option<Saved>>,
}

/// Run a layer over packed texts `x` `[T,d]` with all its parameters `[P]`. `starts` has each text's first token and
/// the end. With `first_only` the result is of the texts' first tokens alone, `[B,d]`: all that a last layer under a
/// cross-encoder's head has to give. With `keep`, what the gradient needs is kept from the forward pass.
pub(super) fn bert_layer(
    x: &Tensor,
    params: &Tensor,
    shape: LayerShape,
    starts: &Arc<[usize]>,
    first_only: bool,
    keep: bool,
) -> Result<Tensor> {
    if x.device().is_cpu() {
        let op = BertLayer { shape, starts: starts.clone(), first_only, keep, saved: Mutex::new(None) };
        return x.contiguous()?.apply_op2(&params.contiguous()?, op);
    }
    composed(x, params, shape, starts, first_only)
}

impl BertLayer {
    fn texts(&self) -> Texts<'_> {
        Texts { starts: &self.starts, first_only: self.first_only }
    }

    /// Rows of `x` that ask: all, or the texts' first.
    fn asking<'a>(&self, x: &'a [f32]) -> std::borrow::Cow<'a, [f32]> {
        let d = self.shape.hidden;
        if !self.first_only {
            return x.into();
        }
        let firsts = self.starts.iter().take(self.starts.len() - 1);
        firsts.flat_map(|&start| x[start * d..][..d].iter().copied()).collect::<Vec<f32>>().into()
    }

    fn forward(&self, x: &[f32], params: &[f32]) -> (Vec<f32>, Saved) {
        let LayerShape { hidden: d, heads, intermediate: f, activation: kind, eps } = self.shape;
        let p = view(&self.shape, params);
        let asking = self.asking(x);
        let rows = asking.len() / d;
        let mut q = Buffer::new(rows * d);
        dense(&asking, p.q, p.q_bias, &mut q, |_, _| {});
        let mut kv = Buffer::new(2 * x.len());
        dense(x, p.kv, p.kv_bias, &mut kv, |_, _| {});
        let mut context = Buffer::new(rows * d);
        attention::forward(self.texts(), heads, d, &q, &kv, &mut context);

        let mut normal = Buffer::new(rows * d);
        dense(&context, p.out, p.out_bias, &mut normal, |row, y| add(y, &asking[row * d..]));
        let inverse = layer_norm::normalise(&mut normal, d, eps);
        let mut middle = Buffer::new(rows * d);
        layer_norm::scale(&normal, p.norm, p.norm_bias, &mut middle);

        let mut inner = Buffer::new(rows * f);
        dense(&middle, p.up, p.up_bias, &mut inner, |_, _| {});
        let mut active = Buffer::new(rows * f);
        activate(&inner, &mut active, |x, y| activation::forward(kind, x, y));
        let mut last_normal = Buffer::new(rows * d);
        dense(&active, p.down, p.down_bias, &mut last_normal, |row, y| add(y, &middle[row * d..]));
        let last_inverse = layer_norm::normalise(&mut last_normal, d, eps);
        let mut y = vec![0.0; rows * d];
        layer_norm::scale(&last_normal, p.last, p.last_bias, &mut y);
        (y, Saved { q, kv, context, normal, inverse, middle, inner, last_normal, last_inverse })
    }

    /// The gradients of `x` and of the parameters, from that of the result.
    fn backward(&self, x: &[f32], params: &[f32], dy: &[f32], saved: &Saved) -> (Vec<f32>, Vec<f32>) {
        let LayerShape { hidden: d, heads, intermediate: f, activation: kind, .. } = self.shape;
        let p = view(&self.shape, params);
        let mut grads = vec![0.0; params.len()];
        let g = view_mut(&self.shape, &mut grads);
        let asking = self.asking(x);
        let rows = asking.len() / d;

        let mut dmiddle = dy.to_vec();
        layer_norm::backward(&mut dmiddle, &saved.last_normal, &saved.last_inverse, p.last, g.last, g.last_bias);
        let mut dinner = Buffer::new(rows * f);
        dense_input(&dmiddle, p.down, d, &mut dinner, Into::Set);
        let mut active = Buffer::new(rows * f);
        activate_backward(&saved.inner, &mut active, &mut dinner, |x, y, dy| activation::backward(kind, x, y, dy));
        dense_parameters(&dmiddle, &active, g.down, g.down_bias);
        drop(active);
        dense_parameters(&dinner, &saved.middle, g.up, g.up_bias);
        dense_input(&dinner, p.up, f, &mut dmiddle, Into::Add);
        drop(dinner);

        layer_norm::backward(&mut dmiddle, &saved.normal, &saved.inverse, p.norm, g.norm, g.norm_bias);
        let mut dcontext = Buffer::new(rows * d);
        dense_input(&dmiddle, p.out, d, &mut dcontext, Into::Set);
        dense_parameters(&dmiddle, &saved.context, g.out, g.out_bias);

        let (mut dq, mut dkv) = (Buffer::new(rows * d), Buffer::new(2 * x.len()));
        attention::backward(self.texts(), heads, d, [&*saved.q, &*saved.kv, &*dcontext], &mut dq, &mut dkv);
        dense_parameters(&dq, &asking, g.q, g.q_bias);
        dense_parameters(&dkv, x, g.kv, g.kv_bias);
        dense_input(&dq, p.q, d, &mut dmiddle, Into::Add);
        if !self.first_only {
            dense_input(&dkv, p.kv, 2 * d, &mut dmiddle, Into::Add);
            return (dmiddle, grads);
        }
        let mut dx = vec![0.0; x.len()];
        dense_input(&dkv, p.kv, 2 * d, &mut dx, Into::Set);
        for (row, &start) in dmiddle.chunks_exact(d).zip(self.starts.iter()) {
            add(&mut dx[start * d..][..d], row);
        }
        (dx, grads)
    }
}

fn activate(x: &[f32], y: &mut [f32], work: impl Fn(&[f32], &mut [f32]) + Sync) {
    use rayon::prelude::*;
    x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| work(x, y));
}

fn activate_backward(x: &[f32], y: &mut [f32], dy: &mut [f32], work: impl Fn(&[f32], &mut [f32], &mut [f32]) + Sync) {
    use rayon::prelude::*;
    let all = x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).zip(dy.par_chunks_mut(CHUNK));
    all.for_each(|((x, y), dy)| work(x, y, dy));
}

/// Numbers that one task takes through an activation.
const CHUNK: usize = 1 << 16;

impl CustomOp2 for BertLayer {
    fn name(&self) -> &'static str {
        "bert-layer"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout, params: &CpuStorage, p_at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (y, saved) = self.forward(floats(x, at)?, floats(params, p_at)?);
        if self.keep {
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        }
        let shape = (y.len() / self.shape.hidden, self.shape.hidden).into();
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, x: &Tensor, params: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        // Taken, not borrowed: after its layer's backward pass nobody needs it.
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (dx, grads) = with_floats([x, params, dy], |[x, params, dy]| {
            let saved = saved.unwrap_or_else(|| self.forward(x, params).1);
            self.backward(x, params, dy, &saved)
        })?;
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(grads, params.shape(), params.device())?)))
    }
}

/// The same by candle's operators, for devices without a kernel of ours: texts are padded for attention only.
fn composed(x: &Tensor, params: &Tensor, shape: LayerShape, starts: &Arc<[usize]>, first_only: bool) -> Result<Tensor> {
    let LayerShape { hidden: d, heads, intermediate: f, activation: kind, eps } = shape;
    let device = x.device();
    let mut at = 0;
    let p = cut(&shape, |count| {
        at += count;
        params.narrow(0, at - count, count)
    });
    let linear = |x: &Tensor, w: Result<Tensor>, b: Result<Tensor>, out: usize, input: usize| -> Result<Tensor> {
        x.matmul(&w?.reshape((out, input))?.t()?)?.broadcast_add(&b?)
    };
    let padding = Padding::new(starts, device)?;
    let (texts, longest) = (padding.texts, padding.longest);
    let firsts = starts.iter().take(texts).map(|&s| s as u32).collect::<Vec<_>>();
    let firsts = Tensor::from_vec(firsts, texts, device)?;

    let asking = if first_only { x.index_select(&firsts, 0)? } else { x.clone() };
    let q = linear(&asking, p.q, p.q_bias, d, d)?;
    let kv = linear(x, p.kv, p.kv_bias, 2 * d, d)?;
    let split = |x: Tensor, rows: usize| x.reshape((texts, rows, heads, d / heads))?.transpose(1, 2)?.contiguous();
    let asked = if first_only { 1 } else { longest };
    let q = split(if first_only { q } else { padding.pad(&q)? }, asked)?;
    let k = split(padding.pad(&kv.narrow(1, 0, d)?.contiguous()?)?, longest)?;
    let v = split(padding.pad(&kv.narrow(1, d, d)?.contiguous()?)?, longest)?;
    let scores = (q.matmul(&k.t()?)? / ((d / heads) as f64).sqrt())?.broadcast_add(&padding.mask)?;
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let scores = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    let context = scores.matmul(&v)?.transpose(1, 2)?.reshape((texts * asked, d))?;
    let context = if first_only { context } else { padding.unpad(&context)? };

    let middle = (linear(&context, p.out, p.out_bias, d, d)? + asking)?;
    let middle = layer_norm::composed(&middle, &p.norm?, &p.norm_bias?, eps)?;
    let inner = linear(&middle, p.up, p.up_bias, f, d)?;
    let inner = match kind {
        Activation::Gelu => inner.gelu_erf()?,
        Activation::GeluTanh => inner.gelu()?,
        Activation::Relu => inner.relu()?,
    };
    let y = (linear(&inner, p.down, p.down_bias, d, f)? + middle)?;
    layer_norm::composed(&y, &p.last?, &p.last_bias?, eps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::bert::tests::{agree, variable};

    #[test]
    fn the_kernel_equals_the_formula_forward_and_backward() {
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let shape = LayerShape { hidden: 24, heads: 3, intermediate: 40, activation, eps: 1e-6 };
            let starts: Arc<[usize]> = [0, 5, 6, 23, 300].into();
            let vars = [
                variable(&[300, 24], 5),
                variable(&[shape.shapes().iter().map(|s| s.iter().product::<usize>()).sum::<usize>()], 6),
            ];
            for (first_only, keep) in [(false, true), (true, true), (false, false)] {
                let kernel = bert_layer(&vars[0], &vars[1], shape, &starts, first_only, keep).unwrap();
                let formula = composed(&vars[0], &vars[1], shape, &starts, first_only).unwrap();
                assert_eq!(kernel.dims(), [if first_only { 4 } else { 300 }, 24]);
                agree(&kernel, &formula, &vars, 2e-4);
            }
        }
    }
}
