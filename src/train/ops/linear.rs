//! A linear layer whose weights are frozen: gradients go to its input alone.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::gemm::{Into, Matrix, Threads, multiply};
use super::{floats, with_floats};

/// `y = x W^T + b` with `W [out, in]`, `b [out]`.
#[derive(Debug, Clone)]
pub struct FrozenLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl FrozenLinear {
    /// From a weight `[out, in]` and a bias `[out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: weight.detach(), bias: bias.map(|b| b.detach()) }
    }

    /// Rows of `x [rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = if x.device().is_cpu() {
            x.contiguous()?.apply_op1(Times { weight: self.weight.clone(), turned: true })?
        } else {
            x.matmul(&self.weight.t()?)?
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// `x W^T` when `turned`, else `x W`, for a constant W.
struct Times {
    weight: Tensor,
    turned: bool,
}

impl CustomOp1 for Times {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let (out, inner) = self.weight.dims2()?;
        let (k, n) = if self.turned { (inner, out) } else { (out, inner) };
        let (m, width) = layout.shape().dims2()?;
        if width != k {
            candle_core::bail!("a linear layer for width {k} got width {width}");
        }
        with_floats([&self.weight], |[weight]| {
            let weight = Matrix::new(weight, out, inner);
            let weight = if self.turned { weight.turned() } else { weight };
            let mut y = vec![0.0; m * n];
            multiply(&mut y, n, Into::Set, 1.0, Matrix::new(x, m, k), weight, Threads::All);
            (CpuStorage::F32(y), Shape::from((m, n)))
        })
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { weight: self.weight.clone(), turned: !self.turned };
        gradient.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ops::tests::{random, same};

    #[test]
    fn fused_equals_composed() {
        let (x, weight, bias) = (random(&[5, 7], 1), random(&[3, 7], 2), random(&[3], 3));
        let layer = FrozenLinear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
        let composed = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        same(&[&x], &layer.forward(&x).unwrap(), &composed);
    }

    #[test]
    fn weights_get_no_gradient() {
        let (x, weight) = (random(&[2, 4], 1), random(&[3, 4], 2));
        let layer = FrozenLinear::new(weight.as_tensor().clone(), None);
        let gradients = layer.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&x).is_some() && gradients.get(&weight).is_none());
    }
}
