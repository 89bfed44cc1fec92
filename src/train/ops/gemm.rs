//! Matrix products of f32 slices, with bounds that are checked.

use gemm::Parallelism;

/// A matrix in a slice: element (i, j) stands at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

/// How many threads share a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// This one: the caller is one of many tasks.
    One,
    /// All of rayon's.
    All,
}

impl<'a> Matrix<'a> {
    /// Rows one behind another, each `columns` wide.
    pub fn rows(data: &'a [f32], columns: usize) -> Self {
        Self { data, row_stride: columns, column_stride: 1 }
    }

    /// The same matrix with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { data: self.data, row_stride: self.column_stride, column_stride: self.row_stride }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len()
    }
}

/// `out [m, n] = scale * a [m, k] b [k, n]`; `out` is filled row by row.
///
/// # Panics
/// When a slice is shorter than its matrix: a fault of the caller's code, never of data.
#[expect(unsafe_code, reason = "the gemm crate works on raw pointers; the bounds are asserted here")]
pub(super) fn product(
    out: &mut [f32],
    (m, n, k): (usize, usize, usize),
    scale: f32,
    a: Matrix,
    b: Matrix,
    threads: Threads,
) {
    assert!(out.len() >= m * n && a.holds(m, k) && b.holds(k, n), "a matrix is longer than its slice");
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    // SAFETY: `holds` and the length of `out` were asserted above, `out` is borrowed exclusively, and without
    // `read_dst` its content is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
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
        product(&mut out, (2, 4, 3), 0.5, Matrix::rows(&a, 3), Matrix::rows(&b, 4), Threads::One);
        assert_eq!(out, std::array::from_fn(|at| expected(at / 4, at % 4)));
        let turned: Vec<f32> = (0..12).map(|at| b[(at % 3) * 4 + at / 3]).collect(); // [4, 3]
        let mut again = [0.0; 8];
        product(&mut again, (2, 4, 3), 0.5, Matrix::rows(&a, 3), Matrix::rows(&turned, 3).transposed(), Threads::All);
        assert_eq!(again, out);
    }

    #[test]
    #[should_panic(expected = "longer than its slice")]
    fn a_short_slice_is_refused() {
        product(&mut [0.0; 4], (2, 2, 2), 1.0, Matrix::rows(&[0.0; 3], 2), Matrix::rows(&[0.0; 4], 2), Threads::One);
    }
}
