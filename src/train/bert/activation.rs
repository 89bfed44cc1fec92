//! The activation between the two feed-forward layers, with its slope.

use multiversion::multiversion;

use crate::export::bert_source::Activation;
use crate::math::{erf, exp};

/// √(2/π) of the tanh form.
const TANH_SCALE: f32 = 0.797_884_6;
/// Weight of the cube in the tanh form.
const TANH_CUBE: f32 = 0.044_715;
/// 1/√(2π), the height of the normal density.
const DENSITY: f32 = 0.398_942_3;

/// `out = f(x)`.
pub(super) fn forward(kind: Activation, x: &[f32], out: &mut [f32]) {
    match kind {
        Activation::Gelu => gelu(x, out),
        Activation::GeluTanh => gelu_tanh(x, out),
        Activation::Relu => relu(x, out),
    }
}

/// `out = f(x)` and `grad *= f'(x)`: what the gradients of the layers around it need.
pub(super) fn backward(kind: Activation, x: &[f32], out: &mut [f32], grad: &mut [f32]) {
    match kind {
        Activation::Gelu => gelu_slope(x, out, grad),
        Activation::GeluTanh => gelu_tanh_slope(x, out, grad),
        Activation::Relu => relu_slope(x, out, grad),
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn gelu(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn gelu_slope(x: &[f32], out: &mut [f32], grad: &mut [f32]) {
    for ((out, grad), &x) in out.iter_mut().zip(grad.iter_mut()).zip(x) {
        let below = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        *out = x * below;
        *grad *= below + x * DENSITY * exp(-0.5 * x * x);
    }
}

/// tanh by the exponential; off by a few units of the seventh digit.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn gelu_tanh(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = 0.5 * x * (1.0 + tanh(TANH_SCALE * (x + TANH_CUBE * x * x * x)));
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn gelu_tanh_slope(x: &[f32], out: &mut [f32], grad: &mut [f32]) {
    for ((out, grad), &x) in out.iter_mut().zip(grad.iter_mut()).zip(x) {
        let t = tanh(TANH_SCALE * (x + TANH_CUBE * x * x * x));
        *out = 0.5 * x * (1.0 + t);
        *grad *= 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * TANH_SCALE * (1.0 + 3.0 * TANH_CUBE * x * x);
    }
}

fn relu(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = if x > 0.0 { x } else { 0.0 };
    }
}

fn relu_slope(x: &[f32], out: &mut [f32], grad: &mut [f32]) {
    for ((out, grad), &x) in out.iter_mut().zip(grad.iter_mut()).zip(x) {
        *out = if x > 0.0 { x } else { 0.0 };
        *grad = if x > 0.0 { *grad } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;
    use crate::train::bert::tests::close;

    #[test]
    fn values_and_slopes_equal_candle_s() {
        let x: Vec<f32> = (-600..=600).map(|i| (i as f32 + 0.5) / 100.0).collect();
        for kind in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let var = Var::from_tensor(&Tensor::new(x.as_slice(), &Device::Cpu).unwrap()).unwrap();
            let expected = match kind {
                Activation::Gelu => var.gelu_erf().unwrap(),
                Activation::GeluTanh => var.gelu().unwrap(),
                Activation::Relu => var.relu().unwrap(),
            };
            let slope = expected.sum_all().unwrap().backward().unwrap();
            let slope = slope.get(&var).unwrap().to_vec1::<f32>().unwrap();
            let expected = expected.to_vec1::<f32>().unwrap();
            let (mut out, mut grad) = (vec![0.0; x.len()], vec![1.0; x.len()]);
            forward(kind, &x, &mut out);
            assert!(close(&out, &expected, 2e-6), "{kind:?}");
            backward(kind, &x, &mut out, &mut grad);
            assert!(close(&out, &expected, 2e-6) && close(&grad, &slope, 1e-5), "{kind:?}");
        }
    }
}
