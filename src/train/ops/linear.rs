//! A linear layer whose weights are frozen: gradients go to its input alone.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::gemm::{Into, Matrix, Threads, multiply};
use super::given::with_gradient;
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
            let (weight, value) = (self.weight.clone(), x.detach().matmul(&self.weight.t()?)?);
            with_gradient(x, value, move |gradient| gradient.matmul(&weight))?
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// The same added to `onto [rows, out]`, as a residual connection does.
    pub fn forward_onto(&self, x: &Tensor, onto: &Tensor) -> Result<Tensor> {
        if self.bias.is_some() || !x.device().is_cpu() {
            return onto + self.forward(x)?;
        }
        let op = TimesOnto(Times { weight: self.weight.clone(), turned: true });
        x.contiguous()?.apply_op2(&onto.contiguous()?, op)
    }
}

/// `onto + x W^T` for a constant W: the sum is made as the product is, without a pass of its own.
struct TimesOnto(Times);

impl CustomOp2 for TimesOnto {
    fn name(&self) -> &'static str {
        "frozen-linear-onto"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = floats(s2, l2)?.to_vec();
        let shape = self.0.multiply(floats(s1, l1)?, l1, &mut y, Into::Add)?;
        if l2.dims() != shape.dims() {
            candle_core::bail!("a linear layer that gives {shape:?} cannot be added to {:?}", l2.dims());
        }
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.0.bwd(x, y, gradient)?, Some(gradient.clone())))
    }
}

/// `x W^T` when `turned`, else `x W`, for a constant W.
struct Times {
    weight: Tensor,
    turned: bool,
}

impl Times {
    /// The product of `x` into (or onto) `y`; gives its shape.
    fn multiply(&self, x: &[f32], layout: &Layout, y: &mut [f32], into: Into) -> Result<Shape> {
        let (out, inner) = self.weight.dims2()?;
        let (k, n) = if self.turned { (inner, out) } else { (out, inner) };
        let (m, width) = layout.shape().dims2()?;
        if width != k || y.len() != m * n {
            candle_core::bail!("a linear layer for [{m}, {k}] into {} numbers got [{m}, {width}]", y.len());
        }
        with_floats([&self.weight], |[weight]| {
            let weight = Matrix::new(weight, out, inner);
            let weight = if self.turned { weight.turned() } else { weight };
            multiply(y, n, into, 1.0, Matrix::new(x, m, k), weight, Threads::All);
        })?;
        Ok(Shape::from((m, n)))
    }
}

impl CustomOp1 for Times {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, (out, inner)) = (layout.shape().dims2()?.0, self.weight.dims2()?);
        let mut y = vec![0.0; rows * if self.turned { out } else { inner }];
        let shape = self.multiply(floats(storage, layout)?, layout, &mut y, Into::Set)?;
        Ok((CpuStorage::F32(y), shape))
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
    fn a_product_onto_something_is_their_sum() {
        let (x, weight, onto) = (random(&[5, 7], 1), random(&[3, 7], 2), random(&[5, 3], 3));
        let layer = FrozenLinear::new(weight.as_tensor().clone(), None);
        let composed = (x.matmul(&weight.t().unwrap()).unwrap() + onto.as_tensor()).unwrap();
        same(&[&x, &onto], &layer.forward_onto(&x, &onto).unwrap(), &composed);
        assert!(layer.forward_onto(&x, &random(&[3, 5], 4)).is_err());
    }

    #[test]
    fn weights_get_no_gradient() {
        let (x, weight) = (random(&[2, 4], 1), random(&[3, 4], 2));
        let layer = FrozenLinear::new(weight.as_tensor().clone(), None);
        let gradients = layer.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&x).is_some() && gradients.get(&weight).is_none());
    }
}
