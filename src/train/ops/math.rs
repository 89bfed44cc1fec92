//! Exponentials over slices, fast enough not to be seen beside the matrix products.

use multiversion::multiversion;

/// `x[i] = exp(x[i])` to a relative error below 3e-7; arguments below -87 give 0.
///
/// The usual reduction: `exp(x) = 2^n exp(r)` with `n` the nearest integer to `x / ln 2`, and a polynomial of
/// degree 6 for `exp(r)`, `|r| <= ln(2) / 2`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn exp(values: &mut [f32]) {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    for value in values {
        let x = value.clamp(-87.0, 88.0);
        let n = (x * std::f32::consts::LOG2_E).round_ties_even();
        let r = x - n * LN2_HIGH - n * LN2_LOW;
        let mut p = 1.0 / 720.0;
        p = p * r + 1.0 / 120.0;
        p = p * r + 1.0 / 24.0;
        p = p * r + 1.0 / 6.0;
        p = p * r + 0.5;
        p = p * r + 1.0;
        p = p * r + 1.0;
        let scale = f32::from_bits(((n as i32 + 127) << 23) as u32);
        *value = if *value < -87.0 { 0.0 } else { p * scale };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exponential() {
        let mut values: Vec<f32> = (-8600..8600).map(|i| i as f32 / 100.0).collect();
        let expected: Vec<f64> = values.iter().map(|&x| f64::from(x).exp()).collect();
        exp(&mut values);
        for (value, expected) in values.iter().zip(expected) {
            assert!((f64::from(*value) / expected - 1.0).abs() < 3e-7, "{value} {expected}");
        }
        let mut ends = [f32::NEG_INFINITY, -100.0, 0.0];
        exp(&mut ends);
        assert_eq!(ends, [0.0, 0.0, 1.0]);
    }
}
