//! Weight matrices as a graph holds them: float, half, or 8-bit integers with a scale a column; and their products.
//!
//! Blockwise quantization of language models is not here.

use crate::export::Precision;
use crate::export::onnx::{Attr, GraphBuilder, Initializer};

/// Largest magnitude of a symmetric 8-bit weight; -128 is left out so that the range is symmetric.
const INT8_MAX: f32 = 127.0;

/// A float tensor in the float type of `precision`; 8-bit graphs keep 32-bit floats beside the matrices.
pub(super) fn float(precision: Precision, shape: &[usize], data: &[f32]) -> Initializer {
    match precision {
        Precision::Fp16 => Initializer::f16(shape, data),
        Precision::Fp32 | Precision::Int8 | Precision::W8A8 => Initializer::f32(shape, data),
    }
}

/// A matrix `[rows, columns]` transposed to `[columns, rows]`: checkpoints store `[out, in]`, ONNX
/// multiplies by `[in, out]`.
pub(super) fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    // In tiles, so that neither side walks through memory a row at a time.
    const TILE: usize = 32;
    let mut out = vec![0.0; matrix.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..rows.min(row_tile + TILE) {
                for column in column_tile..columns.min(column_tile + TILE) {
                    out[column * rows + row] = matrix[row * columns + column];
                }
            }
        }
    }
    out
}

/// A matrix `[rows, columns]` as 8-bit integers and a scale for each column:
/// `w = scale * q`, `scale = max |w| / 127` over the column.
pub(super) fn int8_per_column(matrix: &[f32], columns: usize) -> (Vec<i8>, Vec<f32>) {
    let mut scales = vec![0f32; columns];
    for row in matrix.chunks_exact(columns) {
        for (scale, w) in scales.iter_mut().zip(row) {
            *scale = scale.max(w.abs());
        }
    }
    for scale in &mut scales {
        // A column of zeros has any scale; 1 keeps the division finite.
        *scale = if *scale > 0.0 { *scale / INT8_MAX } else { 1.0 };
    }
    let quantized = matrix
        .chunks_exact(columns)
        .flat_map(|row| row.iter().zip(&scales).map(|(w, scale)| (w / scale).round() as i8))
        .collect();
    (quantized, scales)
}

/// The product of `x` and a weight matrix, and the bias that the next operator has yet to add.
pub(super) struct Product {
    /// Name of the product.
    pub(super) value: String,
    /// Name of the bias, unless it is in the product already; empty then.
    pub(super) bias: String,
}

/// `x [.., rows] * matrix [rows, columns]` and its bias `[columns]`.
///
/// The 8-bit product quantizes `x` on the fly, with one scale for the whole tensor, or by [`by_token`].
pub(super) fn linear(g: &mut GraphBuilder, precision: Precision, x: &str, matrix: &[f32], bias: &[f32]) -> Product {
    let columns = bias.len();
    let bias = g.constant(float(precision, &[columns], bias));
    if precision == Precision::Int8 {
        return Product { value: by_tensor(g, x, matrix, columns, &bias), bias: String::new() };
    }
    Product { value: product(g, precision, x, matrix, columns), bias }
}

/// `x [.., rows] * matrix [rows, columns]`, as in [`linear`], of a layer that has no bias.
pub(super) fn product(g: &mut GraphBuilder, precision: Precision, x: &str, matrix: &[f32], columns: usize) -> String {
    match precision {
        Precision::Int8 => by_tensor(g, x, matrix, columns, ""),
        Precision::W8A8 => {
            let name = g.fresh_name("linear");
            by_token(g, x, &name, matrix, columns)
        }
        Precision::Fp32 | Precision::Fp16 => {
            let weight = g.constant(float(precision, &[matrix.len() / columns.max(1), columns], matrix));
            g.op("MatMul", &[x, &weight], &[])
        }
    }
}

/// `x [.., rows] * matrix [rows, columns] + bias` in 8-bit integers, with a scale a column, and one for all of `x`.
fn by_tensor(g: &mut GraphBuilder, x: &str, matrix: &[f32], columns: usize, bias: &str) -> String {
    let (quantized, scales) = int8_per_column(matrix, columns);
    let weight = g.constant(Initializer::i8(&[matrix.len() / columns.max(1), columns], &quantized));
    let scale = g.constant(Initializer::f32(&[columns], &scales));
    g.ms_op("DynamicQuantizeMatMul", &[x, &weight, &scale, "", bias], &[])
}

/// `x [.., rows] * matrix [rows, columns]` in 8-bit integers, with a scale a column, and one a token for `x`, found on the fly.
///
/// With `m` the largest magnitude in a token's `x`, `q = round(127 x / m)`, the product is `(m / 127) scale Σ q w`: the sum is of
/// integers, and so the same to the bit in whatever batch and order. One scale for a whole tensor would be ruined by the tokens of
/// outliers that language models have; the outliers within a token are what [`crate::export::turned`] is for.
pub(super) fn by_token(g: &mut GraphBuilder, x: &str, name: &str, matrix: &[f32], columns: usize) -> String {
    let rows = matrix.len() / columns.max(1);
    let (quantized, scales) = int8_per_column(matrix, columns);
    let weight = g.init(&format!("{name}.q8"), Initializer::i8(&[rows, columns], &quantized));
    let scale = g.init(&format!("{name}.scales"), Initializer::f32(&[columns], &scales));
    let last_axis = g.constant(Initializer::i64(&[1], &[-1]));
    let step = g.constant(Initializer::f32(&[], &[1.0 / INT8_MAX]));
    let middle = g.constant(Initializer::u8(&[], vec![128]));
    let magnitudes = g.op("Abs", &[x], &[]);
    let largest = g.op("ReduceMax", &[&magnitudes, &last_axis], &[("keepdims", Attr::Int(1))]);
    // A token of zeros is 0 / 0, which any integers may come of: they are multiplied by its 0 in the end.
    let shrunk = g.op("Div", &[x, &largest], &[]);
    let rounded = g.op("QuantizeLinear", &[&shrunk, &step, &middle], &[]);
    let product = g.ms_op("MatMulIntegerToFloat", &[&rounded, &weight, &step, &scale, &middle], &[]);
    g.op("Mul", &[&product, &largest], &[])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_transpose_swaps_the_axes() {
        assert_eq!(transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        // More than a tile on both sides.
        let matrix: Vec<f32> = (0..70 * 33).map(|i| i as f32).collect();
        let turned = transpose(&matrix, 70, 33);
        assert!((0..70 * 33).all(|i| turned[(i % 33) * 70 + i / 33] == matrix[i]));
    }

    #[test]
    fn a_column_of_zeros_stays_zero() {
        let (quantized, scales) = int8_per_column(&[0.0, 2.0, 0.0, -1.0], 2);
        assert_eq!(quantized, [0, 127, 0, -64]);
        assert_eq!(scales, [1.0, 2.0 / 127.0]);
    }

    proptest! {
        /// Rounding to nearest is off by half a step at most, in every column.
        #[test]
        fn quantization_is_off_by_half_a_step(matrix in prop::collection::vec(-8f32..8.0, 12)) {
            let (quantized, scales) = int8_per_column(&matrix, 3);
            for (i, (&w, &q)) in matrix.iter().zip(&quantized).enumerate() {
                let scale = scales[i % 3];
                prop_assert!((w - f32::from(q) * scale).abs() <= scale * 0.5001, "{w} {q} {scale}");
            }
        }
    }
}
