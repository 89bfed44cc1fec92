//! Exponential and error function as plain arithmetic, so that loops over them become SIMD.
//!
//! Sums run over a fixed number of lanes, and nothing is contracted, so every instruction set gives the same bits.

use multiversion::multiversion;

/// Lanes of a sum.
const LANES: usize = 16;

/// e^x to about 2 units in the last place; 0 below -87, and at most e^88.
///
/// Cephes' `expf`: x = n ln 2 + r with n whole, e^r by a polynomial, 2^n by its bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it leaves a whole number in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let kept = if x < -87.0 { 0.0 } else { 1.0 };
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_3e-1] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    (p * r * r + r + 1.0) * power * kept
}

/// [`exp`] of every number of a slice.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub(crate) fn exp_all(values: &mut [f32]) {
    for value in values {
        *value = exp(*value);
    }
}

/// The error function, off by less than 5e-7; the rational approximation that Eigen and XLA use for 32-bit floats.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let mut p = -2.726_142_3e-10;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_3e-5, -7.349_906e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = p * s + c;
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_474e-2] {
        q = q * s + c;
    }
    x * p / q
}

/// The sum of a slice.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += block[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    total(lanes)
}

/// `sum(exp(x - most))`, added up in 64 bits. A number that is none makes the sum none.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub(crate) fn sum_of_exp(x: &[f32], most: f32) -> f64 {
    let mut lanes = [0f64; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += f64::from(exp(block[i] - most));
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(exp(x - most));
    }
    let sum: f64 = lanes.iter().sum();
    // The polynomial makes some number of one that is none.
    if x.iter().any(|x| x.is_nan()) { f64::NAN } else { sum }
}

/// The dot product of two slices of one length.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane += x * y;
    }
    total(lanes)
}

/// The largest number of a slice.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = lane.max(x);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its series, in 64 bits: 2/√π Σ (-1)^n x^(2n+1) / (n! (2n+1)).
    fn series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn the_approximations_are_as_close_as_they_say() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= 3e-7 * exact, "{x}");
        }
        assert_eq!((exp(-100.0), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
        for i in -500..=500 {
            let x = i as f32 / 100.0;
            assert!((f64::from(erf(x)) - series(f64::from(x))).abs() < 5e-7, "{x}");
        }
    }

    #[test]
    fn a_slice_of_exponentials() {
        let mut values: Vec<f32> = (-8600..8600).map(|i| i as f32 / 100.0).collect();
        let expected: Vec<f64> = values.iter().map(|&x| f64::from(x).exp()).collect();
        exp_all(&mut values);
        for (value, expected) in values.iter().zip(expected) {
            assert!((f64::from(*value) / expected - 1.0).abs() < 3e-7, "{value} {expected}");
        }
        let mut ends = [f32::NEG_INFINITY, -100.0, 0.0];
        exp_all(&mut ends);
        assert_eq!(ends, [0.0, 0.0, 1.0]);
    }

    #[test]
    fn sums_of_exponentials_are_as_exact_as_in_64_bits() {
        let x: Vec<f32> = (0..49_153).map(|i| (i as f32 * 0.37).sin() * 12.0).collect();
        let exact: f64 = x.iter().map(|&x| (f64::from(x) - 12.0).exp()).sum();
        assert!((sum_of_exp(&x, 12.0) / exact - 1.0).abs() < 1e-6);
        assert_eq!(sum_of_exp(&[f32::NEG_INFINITY, 0.0], 0.0), 1.0);
        assert!(sum_of_exp(&[0.0, f32::NAN], 0.0).is_nan());
    }

    #[test]
    fn sums_take_the_rest_too() {
        let x: Vec<f32> = (1..=37).map(|i| i as f32).collect();
        assert_eq!((sum(&x), largest(&x), dot(&x, &x)), (703.0, 37.0, 17_575.0));
    }
}
