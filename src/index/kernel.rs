//! Dot products, the inner loop of dense search: int8 for the walk through the graph, f32 for the re-score.
//!
//! The loops are plain Rust that LLVM turns into SIMD; `multiversion` compiles them once per instruction
//! set and picks at run time. No closures in them: a closure inherits the instruction set, the iterator
//! adaptor that calls it does not, and LLVM then keeps a call per element (measured: 30 times slower).
//! Integer sums are exact, and float sums run over a fixed number of lanes, so
//! every instruction set gives the same bits.

use multiversion::multiversion;

/// A vector in 8 bits a component: `component = code * scale`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Quantized {
    /// One code a component, -127 to 127.
    pub codes: Vec<i8>,
    /// Largest absolute component divided by 127.
    pub scale: f32,
}

impl Quantized {
    /// The same, borrowed.
    pub fn view(&self) -> Code<'_> {
        Code { codes: &self.codes, scale: self.scale }
    }
}

/// A borrowed [`Quantized`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Code<'a> {
    /// One code a component.
    pub codes: &'a [i8],
    /// What a code of 1 is worth.
    pub scale: f32,
}

/// Quantise a vector symmetrically by its own largest component.
pub(super) fn quantize(vector: &[f32]) -> Quantized {
    let largest = vector.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
    if largest == 0.0 {
        return Quantized { codes: vec![0; vector.len()], scale: 0.0 };
    }
    let inverse = 127.0 / largest;
    Quantized { codes: vector.iter().map(|x| (x * inverse).round() as i8).collect(), scale: largest / 127.0 }
}

/// For each of `ids`, the dot product of `query` `[dim]` with that row of `codes` `[n, dim]`; a row that
/// does not exist scores the least.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub(super) fn dots(query: &[i8], codes: &[i8], ids: &[u32], out: &mut Vec<i32>) {
    let dim = query.len();
    out.clear();
    touch(codes, dim, ids);
    for &id in ids {
        let start = id as usize * dim;
        let mut sum = i32::MIN;
        if let Some(row) = codes.get(start..start + dim) {
            sum = 0;
            for (&a, &b) in query.iter().zip(row) {
                sum += i32::from(a) * i32::from(b);
            }
        }
        out.push(sum);
    }
}

/// Bytes that come from memory together.
const LINE: usize = 64;

/// Read a byte of every cache line of these rows `[n, dim]`. The processor waits for none of the reads before it begins the
/// next, so rows that lie anywhere come at the price of one or two; summed up one after the other, each would be waited for.
#[inline(always)]
fn touch(rows: &[i8], dim: usize, ids: &[u32]) {
    let mut all = 0;
    for &id in ids {
        let start = id as usize * dim;
        if let Some(row) = rows.get(start..start + dim) {
            all = row.iter().step_by(LINE).fold(all, |all, &byte| all ^ byte);
        }
    }
    // Else nobody would want them, and they would not be read.
    std::hint::black_box(all);
}

/// Lanes of a float sum: fixed, so that the order of additions does not depend on the machine.
const LANES: usize = 16;

/// The dot product of two vectors of the same length.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let mut sum = 0.0;
    for lane in sums {
        sum += lane;
    }
    for (x, y) in a_rest.iter().zip(b_rest) {
        sum += x * y;
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_fast_integer_sum_is_the_plain_one(dim in 1..200_usize, seed: u64) {
            let bytes: Vec<i8> =
                (0..4 * dim).map(|i| (seed.wrapping_mul(i as u64 * 2 + 1) >> 40) as i8).collect();
            let (query, codes) = bytes.split_at(dim);
            let mut out = vec![7];
            dots(query, codes, &[2, 0, 1, 3], &mut out);
            let plain = |row: usize| -> i32 {
                (0..dim).map(|i| i32::from(query[i]) * i32::from(codes[row * dim + i])).sum()
            };
            prop_assert_eq!(out, vec![plain(2), plain(0), plain(1), i32::MIN]);
        }

        #[test]
        fn quantising_loses_at_most_half_a_step(vector in prop::collection::vec(-1.0_f32..1.0, 1..100)) {
            let q = quantize(&vector);
            for (x, &code) in vector.iter().zip(&q.codes) {
                prop_assert!((x - f32::from(code) * q.scale).abs() <= q.scale * 0.5001);
            }
        }

        #[test]
        fn the_float_sum_is_close_to_the_exact_one(a in prop::collection::vec(-1.0_f32..1.0, 1..100)) {
            let exact: f64 = a.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            prop_assert!((f64::from(dot(&a, &a)) - exact).abs() < 1e-5 * (1.0 + exact));
        }
    }
}
