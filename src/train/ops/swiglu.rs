//! The gated activation of the Llama family (Shazeer, 2020).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::given::with_gradient;
use super::{floats, with_floats};
use crate::math::exp_all;

/// Rows a task takes at once.
const ROWS: usize = 16;

/// `silu(gate) * up` for `x = [gate | up] [rows, 2 * width]`, giving `[rows, width]`; `silu(z) = z / (1 + exp(-z))`.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(SwiGlu);
    }
    of_kernels(x)
}

/// The same on a GPU.
fn of_kernels(x: &Tensor) -> Result<Tensor> {
    let input = x.detach();
    let width = input.dim(1)? / 2;
    let (gate, up) = (input.narrow(1, 0, width)?.contiguous()?, input.narrow(1, width, width)?.contiguous()?);
    let value = (gate.silu()? * up)?;
    with_gradient(x, value, move |gradient| {
        let (gate, up) = (input.narrow(1, 0, width)?.contiguous()?, input.narrow(1, width, width)?.contiguous()?);
        let s = candle_nn::ops::sigmoid(&gate)?;
        let pulled = (gradient * &s)?;
        let d_up = (&pulled * &gate)?;
        let slope = ((gate * s.affine(-1.0, 1.0)?)? + 1.0)?;
        Tensor::cat(&[((pulled * up)? * slope)?, d_up], 1)
    })
}

#[cfg(test)]
fn composed(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(1)? / 2;
    x.narrow(1, 0, width)?.silu()? * x.narrow(1, width, width)?
}

struct SwiGlu;

/// `1 / (1 + exp(-z))` of each.
fn sigmoid(z: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(z).for_each(|(out, z)| *out = -z);
    exp_all(out);
    out.iter_mut().for_each(|e| *e = 1.0 / (1.0 + *e));
}

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let (rows, both) = layout.shape().dims2()?;
        let width = both / 2;
        let mut y = vec![0.0; rows * width];
        y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * both)).for_each(|(y, x)| {
            for (y, x) in y.chunks_mut(width).zip(x.chunks(both)) {
                let (gate, up) = x.split_at(width);
                sigmoid(gate, y);
                for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                    *y *= gate * up;
                }
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((rows, width))))
    }

    /// `d gate = dy up s (1 + gate (1 - s))`, `d up = dy gate s` with `s = sigmoid(gate)`.
    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, both) = x.dims2()?;
        let width = both / 2;
        let dx = with_floats([x, gradient], |[x, dy]| {
            let mut dx = vec![0.0; x.len()];
            let tasks = x.par_chunks(ROWS * both).zip(dy.par_chunks(ROWS * width));
            dx.par_chunks_mut(ROWS * both).zip(tasks).for_each(|(dx, (x, dy))| {
                let mut s = vec![0.0; width];
                for ((dx, x), dy) in dx.chunks_mut(both).zip(x.chunks(both)).zip(dy.chunks(width)) {
                    let (gate, up) = x.split_at(width);
                    let (d_gate, d_up) = dx.split_at_mut(width);
                    sigmoid(gate, &mut s);
                    for i in 0..width {
                        let (g, s, dy) = (gate[i], s[i], dy[i]);
                        d_gate[i] = dy * up[i] * s * (1.0 + g * (1.0 - s));
                        d_up[i] = dy * g * s;
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
        let x = random(&[37, 10], 1);
        let fused = swiglu(&x).unwrap();
        same(&[&x], &fused, &composed(&x).unwrap());
        same(&[&x], &fused, &of_kernels(&x).unwrap());
    }
}
