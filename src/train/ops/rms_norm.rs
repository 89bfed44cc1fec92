//! Root-mean-square normalisation (Zhang and Sennrich, 2019) with a frozen scale.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::given::with_gradient;
use super::{floats, with_floats};

/// Rows a task takes at once.
const ROWS: usize = 32;

/// `y = x / sqrt(mean(x^2) + eps) * weight` for each row of `x [rows, width]`; `weight [width]` is constant.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(RmsNorm { weight: weight.detach(), eps });
    }
    of_kernels(x, weight, eps)
}

/// The same on a GPU.
fn of_kernels(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (input, weight) = (x.detach().contiguous()?, weight.detach());
    let value = candle_nn::ops::rms_norm(&input, &weight, eps)?;
    with_gradient(x, value, move |gradient| {
        let width = input.dim(1)? as f64;
        let r = (input.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?.recip()?;
        let pulled = gradient.broadcast_mul(&weight)?;
        let pull = ((&pulled * &input)?.sum_keepdim(1)? * (r.powf(3.0)? * (1.0 / width))?)?;
        pulled.broadcast_mul(&r)? - input.broadcast_mul(&pull)?
    })
}

#[cfg(test)]
fn composed(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean = (x.sqr()?.mean_keepdim(1)? + f64::from(eps))?;
    x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(&weight.detach())
}

struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    fn reciprocal(&self, row: &[f32]) -> f32 {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        1.0 / (mean + self.eps).sqrt()
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let (_, width) = layout.shape().dims2()?;
        let mut y = vec![0.0; x.len()];
        with_floats([&self.weight], |[weight]| {
            y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
                for (y, x) in y.chunks_mut(width).zip(x.chunks(width)) {
                    let r = self.reciprocal(x);
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        *y = x * r * w;
                    }
                }
            });
        })?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    /// `dx = r w dy - x r^3 / width * sum(dy w x)` with `r = 1 / sqrt(mean(x^2) + eps)`.
    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = x.dims2()?;
        let dx = with_floats([x, gradient, &self.weight], |[x, dy, weight]| {
            let mut dx = vec![0.0; x.len()];
            let chunk = ROWS * width;
            dx.par_chunks_mut(chunk).zip(x.par_chunks(chunk).zip(dy.par_chunks(chunk))).for_each(|(dx, (x, dy))| {
                for ((dx, x), dy) in dx.chunks_mut(width).zip(x.chunks(width)).zip(dy.chunks(width)) {
                    let r = self.reciprocal(x);
                    let dot: f32 = x.iter().zip(dy).zip(weight).map(|((x, dy), w)| x * dy * w).sum();
                    let pull = r * r * r * dot / width as f32;
                    for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                        *dx = r * w * dy - x * pull;
                    }
                }
            });
            dx
        })?;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ops::tests::{random, same};

    #[test]
    fn fused_equals_composed() {
        let (x, weight) = (random(&[70, 12], 1), random(&[12], 2));
        let fused = rms_norm(&x, &weight, 1e-5).unwrap();
        same(&[&x], &fused, &composed(&x, &weight, 1e-5).unwrap());
        same(&[&x], &fused, &of_kernels(&x, &weight, 1e-5).unwrap());
    }
}
