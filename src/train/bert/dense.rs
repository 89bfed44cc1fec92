//! The three products of a dense layer over many rows.
//!
//! Work is cut into blocks of a fixed number of rows, so that the same numbers come out on any number of threads; the
//! products in 16-bit brain floats cut it themselves, and their sums do not depend on the cuts.

use rayon::prelude::*;

use crate::train::ops::gemm::{Into, Matrix, Threads, is_short, multiply};

/// Most rows that one task takes through a product: enough to make up for packing the other matrix again.
const ROWS: usize = 320;
/// Blocks come in multiples of it, so that few threads get equal shares.
const BLOCKS: usize = 8;
/// Rows that the kernel computes at once.
const KERNEL_ROWS: usize = 6;

/// How many of `rows` one task takes: by the rows alone and not by the threads, so that results do not depend on them.
fn block(rows: usize) -> usize {
    let blocks = BLOCKS * rows.div_ceil(BLOCKS * ROWS).max(1);
    rows.div_ceil(blocks).next_multiple_of(KERNEL_ROWS)
}
/// Rows of a weight's gradient that one task computes.
const WEIGHT_ROWS: usize = 96;

/// `y [T,n] = x [T,k] wᵀ + bias`, with `w` `[n,k]`; `then` is applied to each finished block of rows.
pub(super) fn dense(x: &[f32], w: &[f32], bias: &[f32], y: &mut [f32], then: impl Fn(usize, &mut [f32]) + Sync) {
    let n = bias.len();
    let (rows, k) = (y.len() / n, w.len() / n);
    let block = block(rows);
    let w = Matrix::new(w, n, k).turned();
    let begin = |y: &mut [f32]| y.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
    if is_short(rows, n, k) {
        y.par_chunks_mut(block * n).for_each(begin);
        multiply(y, n, Into::Add, 1.0, Matrix::new(x, rows, k), w, Threads::All);
        y.par_chunks_mut(block * n).enumerate().for_each(|(number, y)| then(number * block, y));
        return;
    }
    y.par_chunks_mut(block * n).zip(x.par_chunks(block * k)).enumerate().for_each(|(number, (y, x))| {
        begin(y);
        multiply(y, n, Into::Add, 1.0, Matrix::new(x, y.len() / n, k), w, Threads::One);
        then(number * block, y);
    });
}

/// `dx [T,k] (+)= dy [T,n] w`, the gradient of a dense layer's input.
pub(super) fn dense_input(dy: &[f32], w: &[f32], n: usize, dx: &mut [f32], into: Into) {
    let (rows, k) = (dy.len() / n, w.len() / n);
    let w = Matrix::new(w, n, k);
    if is_short(rows, k, n) {
        return multiply(dx, k, into, 1.0, Matrix::new(dy, rows, n), w, Threads::All);
    }
    let block = block(rows);
    dx.par_chunks_mut(block * k).zip(dy.par_chunks(block * n)).for_each(|(dx, dy)| {
        multiply(dx, k, into, 1.0, Matrix::new(dy, dx.len() / k, n), w, Threads::One);
    });
}

/// `dw [n,k] = dyᵀ x` and `dbias [n]` = the column sums of `dy`: the gradients of a dense layer's parameters.
pub(super) fn dense_parameters(dy: &[f32], x: &[f32], dw: &mut [f32], dbias: &mut [f32]) {
    let n = dbias.len();
    let k = dw.len() / n;
    let rows = dy.len() / n;
    column_sums(dy, dbias);
    let (dy, x) = (Matrix::new(dy, rows, n), Matrix::new(x, rows, k));
    if is_short(n, k, rows) {
        return multiply(dw, k, Into::Set, 1.0, dy.turned(), x, Threads::All);
    }
    dw.par_chunks_mut(WEIGHT_ROWS * k).enumerate().for_each(|(block, dw)| {
        let first = block * WEIGHT_ROWS;
        let columns = dw.len() / k;
        let dy = dy.columns_from(first, columns);
        multiply(dw, k, Into::Set, 1.0, dy.turned(), x, Threads::One);
    });
}

/// Sums of the columns of `x` `[T, sums.len()]`, block by block in order.
pub(super) fn column_sums(x: &[f32], sums: &mut [f32]) {
    let n = sums.len();
    let partial: Vec<Vec<f32>> = x
        .par_chunks(ROWS * n)
        .map(|block| {
            let mut sums = vec![0.0; n];
            for row in block.chunks_exact(n) {
                add(&mut sums, row);
            }
            sums
        })
        .collect();
    sums.fill(0.0);
    for block in &partial {
        add(sums, block);
    }
}

/// `a += b`.
pub(super) fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::train::bert::tests::{close, random};

    fn slow(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_dense_layer_and_its_gradients_equal_the_loops(rows in 1usize..600, n in 1usize..200, k in 1usize..40) {
            let (x, w, bias) = (random(rows * k, 1), random(n * k, 2), random(n, 3));
            let mut y = vec![0.0; rows * n];
            dense(&x, &w, &bias, &mut y, |_, _| {});
            let mut expected = slow(&x, &w, k);
            expected.chunks_mut(n).for_each(|row| add(row, &bias));
            prop_assert!(close(&y, &expected, 1e-4));

            let turn = |m: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..columns * rows).map(|i| m[(i % rows) * columns + i / rows]).collect()
            };
            let mut dx = vec![1.0; rows * k];
            dense_input(&y, &w, n, &mut dx, Into::Add);
            let expected: Vec<f32> = slow(&y, &turn(&w, n, k), n).iter().map(|x| x + 1.0).collect();
            prop_assert!(close(&dx, &expected, 1e-3));
            let (mut dw, mut dbias) = (vec![1.0; n * k], vec![1.0; n]);
            dense_parameters(&y, &x, &mut dw, &mut dbias);
            prop_assert!(close(&dw, &slow(&turn(&y, rows, n), &turn(&x, rows, k), rows), 1e-3));
            prop_assert!(close(&dbias, &slow(&vec![1.0; rows], &turn(&y, rows, n), rows), 1e-3));
        }
    }
}
