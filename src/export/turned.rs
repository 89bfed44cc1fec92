//! A language model in turned coordinates, which 8 bits serve better.
//!
//! A few numbers of a language model's states are far larger than the rest, and rounded by one scale the rest is lost beside them.
//! An orthogonal turn Q of the residual stream spreads them over all: norms by the root mean square do not notice it, once their own
//! weights γ are in the layers behind them. What reads the stream becomes `W diag(γ) Q`, what writes it `Qᵀ W`, what comes in is turned
//! and what goes out turned back; the model computes what it did. (Ashkboos et al. 2024, QuaRot, arXiv:2404.00456, without the turns that
//! cost time when the model runs, and without touching the KV cache, which learned prompts are in the coordinates of.)
//!
//! The inner numbers of a feed-forward block are not turned; there each is scaled so that the largest weights on its way in and on its way
//! out are alike (Nagel et al. 2019, arXiv:1906.04721).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::Result;
use crate::export::llama_source::LmSource;
use crate::export::quantize::transpose;

/// A turn of rows of some width: random signs, then a Hadamard matrix of the largest power of two that divides the width, and a small random
/// turn for what is left of it.
pub(super) struct Turn {
    signs: Vec<f32>,
    /// Orthogonal, `[side, side]`.
    small: Vec<f32>,
    side: usize,
}

impl Turn {
    /// The one of this width: always the same.
    pub(super) fn of(width: usize) -> Self {
        let side = width >> width.trailing_zeros().min(usize::BITS - 1);
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let signs = (0..width).map(|_| if random.random::<bool>() { 1.0 } else { -1.0 }).collect();
        let vectors = (0..side).map(|_| (0..side).map(|_| random.random::<f64>() - 0.5).collect()).collect();
        let small = orthonormal(vectors).into_iter().flatten().map(|x| x as f32).collect();
        Self { signs, small, side }
    }

    /// Turn each row of `[.., width]`.
    pub(super) fn rows(&self, rows: &mut [f32]) {
        rows.par_chunks_exact_mut(self.signs.len().max(1)).for_each(|row| self.row(row));
    }

    fn row(&self, row: &mut [f32]) {
        row.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
        // The Hadamard matrix, by halves: sums and differences of what is `apart`.
        let mut apart = self.side;
        while apart < row.len() {
            for pair in row.chunks_exact_mut(2 * apart) {
                let (left, right) = pair.split_at_mut(apart);
                for (a, b) in left.iter_mut().zip(right) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            apart *= 2;
        }
        let scale = (self.side as f32 / row.len() as f32).sqrt();
        let mut turned = vec![0.0; self.side];
        for part in row.chunks_exact_mut(self.side.max(1)) {
            turned.fill(0.0);
            for (x, vector) in part.iter().zip(self.small.chunks_exact(self.side)) {
                turned.iter_mut().zip(vector).for_each(|(sum, v)| *sum += x * v);
            }
            part.iter_mut().zip(&turned).for_each(|(x, sum)| *x = sum * scale);
        }
    }

    /// The turn as a matrix `[width, width]`.
    pub(super) fn matrix(&self) -> Vec<f32> {
        let width = self.signs.len();
        let mut matrix = vec![0.0; width * width];
        matrix.iter_mut().step_by(width + 1).for_each(|x| *x = 1.0);
        self.rows(&mut matrix);
        matrix
    }
}

/// Gram and Schmidt, twice over, which leaves nothing of what rounding left.
fn orthonormal(mut vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    for at in 0..vectors.len() {
        let (before, from) = vectors.split_at_mut(at);
        let Some(vector) = from.first_mut() else { break };
        for earlier in before.iter().chain(before.iter()) {
            let along: f64 = vector.iter().zip(earlier).map(|(a, b)| a * b).sum();
            vector.iter_mut().zip(earlier).for_each(|(x, e)| *x -= along * e);
        }
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
    }
    vectors
}

/// The weights of a model in turned coordinates, by the names that they have in the model.
pub(super) struct Turned<'a> {
    source: &'a LmSource,
    pub(super) turn: Turn,
}

impl<'a> Turned<'a> {
    pub(super) fn new(source: &'a LmSource) -> Self {
        Self { source, turn: Turn::of(source.config.hidden) }
    }

    /// A weight of the decoder, or of its head.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        if let Some(norm) = norm_before(name) {
            return match name.strip_suffix(".up_proj.weight") {
                Some(block) => self.inner(block).map(|inner| inner.into),
                None => self.reader(name, shape, &norm),
            };
        }
        if let Some(block) = name.strip_suffix(".down_proj.weight") {
            return self.inner(block).map(|inner| inner.out);
        }
        if name.ends_with(".o_proj.weight") {
            return self.writer(name, shape);
        }
        let mut weights = self.source.tensor(name, shape)?;
        if name.ends_with("layernorm.weight") || name == "model.norm.weight" {
            weights.fill(1.0);
        } else if name.ends_with(".o_proj.bias") || name.ends_with(".down_proj.bias") {
            self.turn.rows(&mut weights);
        } else if let Some(block) = name.strip_suffix(".up_proj.bias") {
            // It is added to rows that were divided.
            weights.iter_mut().zip(self.inner(block)?.balance).for_each(|(w, by)| *w /= by);
        }
        Ok(weights)
    }

    /// `W diag(γ) Q` of what reads the stream behind a norm, `[rows, hidden]`.
    fn reader(&self, name: &str, shape: &[usize], norm: &str) -> Result<Vec<f32>> {
        let gamma = self.source.tensor(norm, &[self.source.config.hidden])?;
        let mut weights = self.source.tensor(name, shape)?;
        let rows = weights.chunks_exact_mut(gamma.len().max(1));
        rows.for_each(|row| row.iter_mut().zip(&gamma).for_each(|(w, g)| *w *= g));
        self.turn.rows(&mut weights);
        Ok(weights)
    }

    /// `Qᵀ W` of what writes to the stream, `[hidden, columns]`.
    fn writer(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let hidden = self.source.config.hidden;
        let weights = self.source.tensor(name, shape)?;
        let columns = weights.len() / hidden.max(1);
        let mut turned = transpose(&weights, hidden, columns);
        self.turn.rows(&mut turned);
        Ok(transpose(&turned, columns, hidden))
    }

    /// The inner numbers of a feed-forward block: each is divided on its way in, and multiplied on its way out, by
    /// √(r / s), r the largest weight into it and s the largest out of it.
    fn inner(&self, block: &str) -> Result<Inner> {
        let config = &self.source.config;
        let (up, down) = (format!("{block}.up_proj.weight"), format!("{block}.down_proj.weight"));
        let norm = norm_before(&up).unwrap_or_default();
        let mut into = self.reader(&up, &[config.intermediate, config.hidden], &norm)?;
        let mut out = self.writer(&down, &[config.hidden, config.intermediate])?;
        let mut largest_out = vec![0f32; config.intermediate];
        for row in out.chunks_exact(config.intermediate.max(1)) {
            largest_out.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs()));
        }
        let rows = into.chunks_exact_mut(config.hidden.max(1));
        let mut balance = Vec::with_capacity(config.intermediate);
        for (row, most_out) in rows.zip(largest_out) {
            let by = (row.iter().fold(0f32, |most, w| most.max(w.abs())) / most_out).sqrt();
            // Where nothing goes in or out there is nothing to balance.
            let by = if by.is_normal() { by } else { 1.0 };
            row.iter_mut().for_each(|w| *w /= by);
            balance.push(by);
        }
        let rows = out.chunks_exact_mut(config.intermediate.max(1));
        rows.for_each(|row| row.iter_mut().zip(&balance).for_each(|(w, by)| *w *= by));
        Ok(Inner { into, out, balance })
    }
}

/// The weights around the inner numbers of a feed-forward block, balanced.
struct Inner {
    /// `[intermediate, hidden]`.
    into: Vec<f32>,
    /// `[hidden, intermediate]`.
    out: Vec<f32>,
    /// What each was divided by on its way in.
    balance: Vec<f32>,
}

/// The norm behind which a weight reads the stream, if it does.
fn norm_before(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight")?;
    if matches!(stem, "lm_head" | "model.embed_tokens") {
        return Some("model.norm.weight".to_owned());
    }
    let (layer, norm) = match stem.rsplit_once('.')? {
        (block, "q_proj" | "k_proj" | "v_proj") => (block.strip_suffix(".self_attn")?, "input_layernorm"),
        (block, "gate_proj" | "up_proj") => (block.strip_suffix(".mlp")?, "post_attention_layernorm"),
        _ => return None,
    };
    Some(format!("{layer}.{norm}.weight"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{Device, Tensor};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_turn_keeps_lengths_and_angles_and_spreads_an_outlier() {
        for width in [1, 2, 3, 8, 12, 64, 576, 896] {
            let turn = Turn::of(width);
            let matrix = turn.matrix();
            let product = |a: usize, b: usize| -> f32 {
                let row = |at: usize| &matrix[at * width..(at + 1) * width];
                row(a).iter().zip(row(b)).map(|(x, y)| x * y).sum()
            };
            for a in 0..width.min(20) {
                for b in 0..width.min(20) {
                    let expected = if a == b { 1.0 } else { 0.0 };
                    assert!((product(a, b) - expected).abs() < 1e-5, "{width}: {a} {b} {}", product(a, b));
                }
            }
            // Rows are turned as the matrix says.
            let row: Vec<f32> = (0..width).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut turned = row.clone();
            turn.rows(&mut turned);
            for (column, turned) in turned.iter().enumerate() {
                let expected: f32 = row.iter().enumerate().map(|(i, x)| x * matrix[i * width + column]).sum();
                assert!((turned - expected).abs() < 1e-4, "{width}");
            }
        }
        let mut outlier = vec![0.0; 576];
        outlier[100] = 100.0;
        Turn::of(576).rows(&mut outlier);
        let largest = outlier.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(largest < 13.0, "100 over 576 numbers is 4.2 each: {largest}");
    }

    #[test]
    fn a_bias_of_inner_numbers_is_scaled_as_they_are() {
        const HIDDEN: usize = 4;
        const INNER: usize = 6;
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 1,
            "num_attention_heads": 1, "vocab_size": 8, "max_position_embeddings": 16,
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let (up, down) = ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight");
        let (bias, norm) = ("model.layers.0.mlp.up_proj.bias", "model.layers.0.post_attention_layernorm.weight");
        let tensor = |shape: &[usize], pace: f32| {
            let count: usize = shape.iter().product();
            let numbers: Vec<f32> = (1..=count).map(|i| (i as f32 * pace).sin()).collect();
            Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
        };
        let tensors = HashMap::from([
            (up, tensor(&[INNER, HIDDEN], 0.7)),
            (down, tensor(&[HIDDEN, INNER], 1.9)),
            (bias, tensor(&[INNER], 0.3)),
            (norm, tensor(&[HIDDEN], 1.1)),
        ]);
        candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
        let source = LmSource::open(folder.path()).unwrap();
        let turned = Turned::new(&source);
        // What the bias alone adds to the stream.
        let added = |out: Vec<f32>, bias: Vec<f32>| -> Vec<f32> {
            out.chunks_exact(INNER).map(|row| row.iter().zip(&bias).map(|(w, b)| w * b).sum::<f32>()).collect()
        };
        let (down_shape, bias_shape) = ([HIDDEN, INNER], [INNER]);
        let plain = |name: &str, shape: &[usize]| source.tensor(name, shape).unwrap();
        let mut expected = added(plain(down, &down_shape), plain(bias, &bias_shape));
        turned.turn.rows(&mut expected);
        let (out, scaled) = (turned.tensor(down, &down_shape).unwrap(), turned.tensor(bias, &bias_shape).unwrap());
        assert_ne!(scaled, plain(bias, &bias_shape));
        for (found, expected) in added(out, scaled).iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn what_reads_the_stream_is_known_by_its_name() {
        let norm = |name: &str| norm_before(name);
        assert_eq!(norm("model.layers.3.self_attn.k_proj.weight").unwrap(), "model.layers.3.input_layernorm.weight");
        assert_eq!(
            norm("model.layers.3.mlp.up_proj.weight").unwrap(),
            "model.layers.3.post_attention_layernorm.weight"
        );
        assert_eq!(norm("lm_head.weight").unwrap(), "model.norm.weight");
        for other in
            ["model.layers.3.self_attn.o_proj.weight", "model.layers.3.self_attn.q_proj.bias", "model.norm.weight"]
        {
            assert_eq!(norm(other), None);
        }
    }
}
