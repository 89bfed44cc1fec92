//! Matrix products in 16-bit brain floats with sums in 32 bits, on processors that have an instruction for it.
//!
//! A training's time is its matrix products, and AVX-512 BF16 multiplies twice as many numbers a cycle as f32 does.
//! Operands are rounded to 8 bits of mantissa as they are packed; every sum is in f32. That is the usual precision of
//! training on accelerators; what is learned is stored, updated and served as before.
//!
//! The blocking is that of Goto and van de Geijn (2008): panels of the right operand in the first-level cache, blocks
//! of the left one in the second, a tile of the result in registers.

use rayon::prelude::*;

use super::gemm::{Into, Matrix};

/// Rows of a tile: 12 x 2 sums, 2 operands and a broadcast are 27 of the 32 registers.
const TILE_ROWS: usize = 12;
/// Columns of a tile: two registers of f32.
const TILE_COLUMNS: usize = 32;
/// Most rows of a block.
const BLOCK_ROWS: usize = 8 * TILE_ROWS;
/// Depth of a block: a panel of the right operand takes 24 KiB.
const DEPTH: usize = 384;
/// Fewer rows do not earn the packing of the right operand back.
const LEAST_ROWS: usize = 64;
/// Less work than this is not worth the packing.
const LEAST_WORK: usize = 1 << 20;

/// Whether this processor has the instruction.
pub(in crate::train) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found
}

/// Whether a product of these sizes is worth it.
pub(super) fn pays(m: usize, n: usize, k: usize) -> bool {
    m >= LEAST_ROWS && n >= TILE_COLUMNS && k >= TILE_COLUMNS && m * n * k >= LEAST_WORK
}

/// `dst (+)= scale * a * b`, as [`super::gemm::multiply`], which has checked the shapes; only where [`available`].
pub(super) fn multiply(dst: &mut [f32], stride: usize, into: Into, scale: f32, a: Matrix, b: Matrix) {
    let (m, n, k) = (a.rows(), b.columns(), a.columns());
    let panels = n.div_ceil(TILE_COLUMNS);
    let share = m.div_ceil(rayon::current_num_threads()).next_multiple_of(TILE_ROWS);
    let block = share.min(BLOCK_ROWS);
    let mut packed = vec![0u32; panels * TILE_COLUMNS * DEPTH.min(k).div_ceil(2)];
    for from in (0..k).step_by(DEPTH) {
        let depth = from..(from + DEPTH).min(k);
        let pairs = depth.len().div_ceil(2);
        let right = &mut packed[..panels * TILE_COLUMNS * pairs];
        right.par_chunks_mut(TILE_COLUMNS * pairs).enumerate().for_each(|(panel, out)| {
            let first = panel * TILE_COLUMNS;
            pack(out, TILE_COLUMNS, b.turned(), first..(first + TILE_COLUMNS).min(n), &depth);
        });
        let into = if from == 0 { into } else { Into::Add };
        let right: &[u32] = right;
        dst.par_chunks_mut(block * stride).enumerate().take(m.div_ceil(block)).for_each_init(
            || vec![0u32; BLOCK_ROWS * DEPTH.div_ceil(2)],
            |left, (i, dst)| {
                let rows = i * block..((i + 1) * block).min(m);
                let tiles = rows.len().div_ceil(TILE_ROWS);
                for tile in 0..tiles {
                    let first = rows.start + tile * TILE_ROWS;
                    let out = &mut left[tile * TILE_ROWS * pairs..][..TILE_ROWS * pairs];
                    pack(out, TILE_ROWS, a, first..(first + TILE_ROWS).min(rows.end), &depth);
                }
                for (panel, right) in right.chunks_exact(TILE_COLUMNS * pairs).enumerate() {
                    let column = panel * TILE_COLUMNS;
                    let columns = TILE_COLUMNS.min(n - column);
                    for tile in 0..tiles {
                        let sums = sums(&left[tile * TILE_ROWS * pairs..][..TILE_ROWS * pairs], right);
                        let first = tile * TILE_ROWS;
                        for (row, sums) in sums.iter().take(rows.len() - first).enumerate() {
                            let dst = &mut dst[(first + row) * stride + column..][..columns];
                            match into {
                                Into::Set => dst.iter_mut().zip(sums).for_each(|(d, s)| *d = scale * s),
                                Into::Add => dst.iter_mut().zip(sums).for_each(|(d, s)| *d += scale * s),
                            }
                        }
                    }
                }
            },
        );
    }
}

/// A number's upper 16 bits, rounded to the nearest, ties to even.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
}

/// Two neighbours along the depth, the first in the lower half.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    rounded(first) | rounded(second) << 16
}

/// Some rows of a matrix as pairs along `depth`: `out [pairs, width]`, what is missing as zeros.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn pack(out: &mut [u32], width: usize, matrix: Matrix, rows: std::ops::Range<usize>, depth: &std::ops::Range<usize>) {
    if rows.len() < width {
        out.fill(0);
    }
    if let Some(columns) = matrix.contiguous_columns() {
        // Numbers along the depth are `columns` apart, neighbouring rows lie side by side.
        for (at, out) in (depth.start..).step_by(2).zip(out.chunks_exact_mut(width)) {
            let first = &columns.data[at * columns.stride..][rows.clone()];
            if at + 1 < depth.end {
                let second = &columns.data[(at + 1) * columns.stride..][rows.clone()];
                for ((out, x), y) in out.iter_mut().zip(first).zip(second) {
                    *out = pair(*x, *y);
                }
            } else {
                for (out, x) in out.iter_mut().zip(first) {
                    *out = pair(*x, 0.0);
                }
            }
        }
        return;
    }
    for (column, row) in rows.enumerate() {
        let numbers = matrix.row(row, depth);
        let (pairs, rest) = numbers.as_chunks::<2>();
        for (out, [x, y]) in out[column..].iter_mut().step_by(width).zip(pairs) {
            *out = pair(*x, *y);
        }
        if let (Some(out), Some(x)) = (out[column..].iter_mut().step_by(width).nth(pairs.len()), rest.first()) {
            *out = pair(*x, 0.0);
        }
    }
}

/// The sums of one tile over packed operands `left [pairs, TILE_ROWS]` and `right [pairs, TILE_COLUMNS]`.
fn sums(left: &[u32], right: &[u32]) -> [[f32; TILE_COLUMNS]; TILE_ROWS] {
    let mut out = [[0.0; TILE_COLUMNS]; TILE_ROWS];
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "a function of an instruction set is called")]
    // SAFETY: `multiply` alone calls this, and only where `available` found both instruction sets.
    unsafe {
        x86::sums(left, right, &mut out);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (left, right, &mut out);
    out
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{TILE_COLUMNS, TILE_ROWS};

    /// Numbers in a register.
    const LANES: usize = 16;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn sums(left: &[u32], right: &[u32], out: &mut [[f32; TILE_COLUMNS]; TILE_ROWS]) {
        let mut sums = [[_mm512_setzero_ps(); 2]; TILE_ROWS];
        let (left, _) = left.as_chunks::<TILE_ROWS>();
        let (right, _) = right.as_chunks::<TILE_COLUMNS>();
        for (left, right) in left.iter().zip(right) {
            let columns = [load(&right[..LANES]), load(&right[LANES..])];
            for (sums, &pair) in sums.iter_mut().zip(left) {
                let row = halves(_mm512_set1_epi32(pair.cast_signed()));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(*sum, row, column);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.chunks_exact_mut(LANES).zip(sums) {
                #[expect(unsafe_code, reason = "a store takes a pointer")]
                // SAFETY: `out` has LANES numbers.
                unsafe {
                    _mm512_storeu_ps(out.as_mut_ptr(), sum);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn load(pairs: &[u32]) -> __m512bh {
        debug_assert!(pairs.len() == LANES);
        #[expect(unsafe_code, reason = "a load takes a pointer")]
        // SAFETY: both callers give LANES pairs.
        halves(unsafe { _mm512_loadu_epi32(pairs.as_ptr().cast()) })
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn halves(pairs: __m512i) -> __m512bh {
        #[expect(unsafe_code, reason = "there is no cast between these two")]
        // SAFETY: both are 512 bits of which all patterns are valid.
        unsafe {
            std::mem::transmute(pairs)
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::train::ops::gemm::{Threads, multiply as in_f32};

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| random.random::<f32>() * 2.0 - 1.0).collect()
    }

    /// The nearest number with 8 bits of mantissa.
    fn short(x: &[f32]) -> Vec<f32> {
        x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect()
    }

    #[test]
    fn rounding_is_to_the_nearest_and_ties_to_even() {
        let values = [1.0, -1.0, 0.0, 1.003_906_2, 1.011_718_8, f32::INFINITY, 3.4e38, 1e-40];
        for x in random(1000, 3).into_iter().chain(values) {
            assert_eq!(rounded(x), u32::from(half::bf16::from_f32(x).to_bits()), "{x}");
        }
    }

    #[test]
    fn products_of_all_orders_and_sizes_are_those_of_the_rounded_operands() {
        if !available() {
            return;
        }
        for (m, n, k) in [(1, 1, 1), (12, 32, 2), (13, 33, 3), (100, 70, 385), (97, 64, 384), (250, 40, 771)] {
            let (a, b, start) = (random(m * k, 1), random(k * n, 2), random(m * (n + 5), 4));
            let (short_a, short_b) = (short(&a), short(&b));
            for (left_turned, right_turned, into, scale) in
                [(false, false, Into::Set, 1.0), (true, false, Into::Add, 0.5), (false, true, Into::Add, 1.0)]
            {
                let left = |x| if left_turned { Matrix::new(x, k, m).turned() } else { Matrix::new(x, m, k) };
                let right = |x| if right_turned { Matrix::new(x, n, k).turned() } else { Matrix::new(x, k, n) };
                let (mut out, mut expected) = (start.clone(), start.clone());
                multiply(&mut out, n + 5, into, scale, left(&a), right(&b));
                in_f32(&mut expected, n + 5, into, scale, left(&short_a), right(&short_b), Threads::One);
                for (x, y) in out.iter().zip(&expected) {
                    assert!((x - y).abs() < 1e-4 * (1.0 + y.abs()), "{m} {n} {k}: {x} {y}");
                }
            }
        }
    }
}
