//! Layer normalisation (Ba et al. 2016, arXiv:1607.06450) over rows, forward and backward.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::dense::add;
use crate::math::{dot, sum};
use crate::train::ops::{floats, with_floats};

/// Rows that one task takes.
const ROWS: usize = 256;

/// Normalise the rows of `x` in place to mean 0 and variance 1; gives 1/σ of each row.
pub(super) fn normalise(x: &mut [f32], width: usize, eps: f32) -> Vec<f32> {
    let mut inverse = vec![0.0; x.len() / width];
    x.par_chunks_mut(ROWS * width)
        .zip(inverse.par_chunks_mut(ROWS))
        .for_each(|(x, inverse)| normalise_rows(x, width, eps, inverse));
    inverse
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn normalise_rows(x: &mut [f32], width: usize, eps: f32, inverse: &mut [f32]) {
    for (row, inverse) in x.chunks_exact_mut(width).zip(inverse) {
        let mean = sum(row) / width as f32;
        for x in row.iter_mut() {
            *x -= mean;
        }
        *inverse = 1.0 / (dot(row, row) / width as f32 + eps).sqrt();
        for x in row.iter_mut() {
            *x *= *inverse;
        }
    }
}

/// `y = x̂ w + b`.
pub(super) fn scale(normal: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
    let width = w.len();
    y.par_chunks_mut(ROWS * width).zip(normal.par_chunks(ROWS * width)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = x * w + b;
            }
        }
    });
}

/// From the gradient of `y` that of `x`, in place, and those of weight and bias; `normal` is x̂ and `inverse` 1/σ.
pub(super) fn backward(dy: &mut [f32], normal: &[f32], inverse: &[f32], w: &[f32], dw: &mut [f32], db: &mut [f32]) {
    let width = w.len();
    let partial: Vec<(Vec<f32>, Vec<f32>)> = dy
        .par_chunks_mut(ROWS * width)
        .zip(normal.par_chunks(ROWS * width))
        .zip(inverse.par_chunks(ROWS))
        .map(|((dy, normal), inverse)| {
            let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
            backward_rows(dy, normal, inverse, w, &mut dw, &mut db);
            (dw, db)
        })
        .collect();
    dw.fill(0.0);
    db.fill(0.0);
    for (weights, biases) in &partial {
        add(dw, weights);
        add(db, biases);
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn backward_rows(dy: &mut [f32], normal: &[f32], inverse: &[f32], w: &[f32], dw: &mut [f32], db: &mut [f32]) {
    let width = w.len();
    for ((dy, x), inverse) in dy.chunks_exact_mut(width).zip(normal.chunks_exact(width)).zip(inverse) {
        for ((((dy, x), w), dw), db) in dy.iter_mut().zip(x).zip(w).zip(dw.iter_mut()).zip(db.iter_mut()) {
            *dw += *dy * x;
            *db += *dy;
            *dy *= w;
        }
        let mean = sum(dy) / width as f32;
        let along = dot(dy, x) / width as f32;
        for (dy, x) in dy.iter_mut().zip(x) {
            *dy = inverse * (*dy - mean - x * along);
        }
    }
}

/// Layer normalisation of `x` `[T,d]` with weight and bias `[d]`, as an operator that candle differentiates.
pub(in crate::train) fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op3(&w.contiguous()?, &b.contiguous()?, LayerNorm { eps });
    }
    composed(x, w, b, eps)
}

/// The same by tensor operators, for devices without a kernel of ours.
pub(super) fn composed(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(w)?.broadcast_add(b)
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        at: &Layout,
        w: &CpuStorage,
        w_at: &Layout,
        b: &CpuStorage,
        b_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut normal = floats(x, at)?.to_vec();
        let (w, b) = (floats(w, w_at)?, floats(b, b_at)?);
        normalise(&mut normal, w.len(), self.eps);
        let mut y = vec![0.0; normal.len()];
        scale(&normal, w, b, &mut y);
        Ok((CpuStorage::F32(y), at.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // x̂ is computed again: cheaper than to keep it beside x.
        let (mut normal, mut dx) = with_floats([x, dy], |[x, dy]| (x.to_vec(), dy.to_vec()))?;
        let width = w.elem_count();
        let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
        let inverse = normalise(&mut normal, width, self.eps);
        with_floats([w], |[w]| backward(&mut dx, &normal, &inverse, w, &mut dw, &mut db))?;
        let device = x.device();
        let tensor = |data, shape: &Tensor| Tensor::from_vec(data, shape.shape(), device).map(Some);
        Ok((tensor(dx, x)?, tensor(dw, w)?, tensor(db, w)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::bert::tests::{agree, variable};

    #[test]
    fn the_kernel_equals_the_formula_forward_and_backward() {
        for (rows, width) in [(1, 5), (7, 32), (300, 20)] {
            let vars = [variable(&[rows, width], 1), variable(&[width], 2), variable(&[width], 3)];
            let [x, w, b] = vars.each_ref();
            let kernel = layer_norm(x, w, b, 1e-5).unwrap();
            let formula = composed(x, w, b, 1e-5).unwrap();
            agree(&kernel, &formula, &vars, 1e-5);
        }
    }
}
