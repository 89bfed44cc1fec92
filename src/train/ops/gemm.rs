//! Matrix products of f32 slices, with bounds that are checked.
//!
//! The kernel is that of the `gemm` crate, which candle's CPU matmul uses too.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use gemm::Parallelism;

use serde::{Deserialize, Serialize};

use super::bfloat;
use crate::error::{Error, Result};

/// Whether large products are computed in 16-bit brain floats ([`set_precision`]).
static SHORT: AtomicBool = AtomicBool::new(false);

/// How exact large products are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// Operands rounded to 16-bit brain floats, sums in 32 bits: faster where the processor has it.
    Bf16,
    /// Operands rounded to 19 bits, sums in 32 bits: the matrix units of a GPU.
    Tf32,
}

impl Precision {
    /// The fastest that this processor has, or a GPU.
    pub fn fastest(on_gpu: bool) -> Self {
        match on_gpu {
            true => Self::Tf32,
            false if bfloat::available() => Self::Bf16,
            false => Self::F32,
        }
    }
}

/// Decide, for the whole process, how exact large products are. Without this they are in 32-bit floats.
///
/// # Errors
/// [`Error::Request`] when the processor, or a GPU, has no such products.
pub fn set_precision(precision: Precision, on_gpu: bool) -> Result<()> {
    let elsewhere = if on_gpu { Precision::Bf16 } else { Precision::Tf32 };
    if precision == elsewhere {
        let problem = match on_gpu {
            true => "training on a GPU knows no products of 16-bit brain floats; they are the processor's",
            false => "products of 19-bit floats (tf32) are a GPU's, and this training runs on the processor",
        };
        return Err(Error::request(problem, "leave --precision out, or say f32"));
    }
    candle_core::cuda::set_gemm_reduced_precision_f32(precision == Precision::Tf32);
    if precision == Precision::Bf16 && !bfloat::available() {
        return Err(Error::request(
            "this processor has no products of 16-bit brain floats (AVX-512 BF16)",
            "leave --precision out, or say f32",
        ));
    }
    SHORT.store(precision == Precision::Bf16, Ordering::Relaxed);
    Ok(())
}

/// Whether a product of an `[m, k]` by a `[k, n]` matrix on all threads is computed in 16-bit brain floats.
pub(in crate::train) fn is_short(m: usize, n: usize, k: usize) -> bool {
    bfloat::pays(m, n, k) && SHORT.load(Ordering::Relaxed)
}

/// A matrix that lies in a slice, with the strides of its two axes.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row after row, `stride` numbers from one row's beginning to the next one's.
    pub(in crate::train) fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// Row after row.
    pub(in crate::train) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// The same numbers with the axes exchanged.
    pub(in crate::train) fn turned(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Of every row, so many numbers from the column `first` on.
    pub(in crate::train) fn columns_from(self, first: usize, columns: usize) -> Self {
        Self { data: &self.data[first..], columns, ..self }
    }

    /// Rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// The numbers of a row whose columns lie side by side.
    pub(super) fn row(&self, row: usize, columns: &Range<usize>) -> &'a [f32] {
        debug_assert!(self.column_stride == 1);
        &self.data[row * self.row_stride..][columns.clone()]
    }

    /// Column after column, if its rows lie side by side.
    pub(super) fn contiguous_columns(&self) -> Option<Columns<'a>> {
        (self.row_stride == 1).then_some(Columns { data: self.data, stride: self.column_stride })
    }

    /// One past the last number that is touched.
    fn end(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// A matrix that lies column after column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<'a> {
    /// Its numbers.
    pub(super) data: &'a [f32],
    /// From one column's beginning to the next one's.
    pub(super) stride: usize,
}

/// What becomes of the numbers that stand in the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::train) enum Into {
    /// They are overwritten.
    Set,
    /// The product is added to them.
    Add,
}

/// How many threads share a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::train) enum Threads {
    /// This one: the caller is one of many tasks.
    One,
    /// All of rayon's.
    All,
}

/// `dst (+)= scale * a * b`; `dst` is `[a.rows, b.columns]` with rows `stride` apart.
///
/// # Panics
/// When the shapes do not fit the slices, which only a mistake in this crate can cause.
pub(in crate::train) fn multiply(
    dst: &mut [f32],
    stride: usize,
    into: Into,
    scale: f32,
    a: Matrix,
    b: Matrix,
    threads: Threads,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(k == b.rows && n <= stride, "the shapes of a product do not fit");
    assert!(
        (m - 1) * stride + n <= dst.len() && a.end() <= a.data.len() && b.end() <= b.data.len(),
        "a matrix is longer than its slice"
    );
    if threads == Threads::All && is_short(m, n, k) {
        return bfloat::multiply(dst, stride, into, scale, a, b);
    }
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    #[expect(unsafe_code, reason = "the kernel takes pointers")]
    // SAFETY: the assertions above bound every element that the strides reach, and `dst` is borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            stride as isize,
            into == Into::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_both_orders() {
        let a: Vec<f32> = (0..6).map(|x| x as f32).collect(); // [2, 3]
        let b: Vec<f32> = (0..12).map(|x| x as f32 - 4.0).collect(); // [3, 4]
        let expected = |i: usize, j: usize| (0..3).map(|l| a[i * 3 + l] * b[l * 4 + j]).sum::<f32>() * 0.5;
        let mut out = [0.0; 8];
        multiply(&mut out, 4, Into::Set, 0.5, Matrix::new(&a, 2, 3), Matrix::new(&b, 3, 4), Threads::One);
        assert_eq!(out, std::array::from_fn(|at| expected(at / 4, at % 4)));
        let turned: Vec<f32> = (0..12).map(|at| b[(at % 3) * 4 + at / 3]).collect(); // [4, 3]
        let mut again = [0.0; 8];
        let turned = Matrix::new(&turned, 4, 3).turned();
        multiply(&mut again, 4, Into::Set, 0.5, Matrix::new(&a, 2, 3), turned, Threads::All);
        assert_eq!(again, out);
    }

    #[test]
    #[should_panic(expected = "longer than its slice")]
    fn a_short_slice_is_refused() {
        let (a, b) = ([0.0; 3], [0.0; 4]);
        let (a, b) = (Matrix::new(&a, 2, 2), Matrix::new(&b, 2, 2));
        multiply(&mut [0.0; 4], 2, Into::Set, 1.0, a, b, Threads::One);
    }
}
