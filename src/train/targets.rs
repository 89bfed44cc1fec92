//! Target tokens of a packed batch: how far a language model is from them, and what it would say in their place.

use candle_core::{D, Result, Tensor};

/// Cross-entropy `-sum weight log p(target)`, a scalar, of logits `[targets, vocab]`.
pub(in crate::train) fn cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    let device = logits.device();
    let log_probabilities = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    let targets = Tensor::new(targets, device)?.unsqueeze(1)?;
    let picked = log_probabilities.gather(&targets, 1)?.squeeze(1)?;
    (picked * Tensor::new(weights, device)?)?.sum_all()?.neg()
}

/// The likeliest token in the place of every target.
pub(in crate::train) fn likeliest(logits: &Tensor) -> Result<Vec<u32>> {
    logits.detach().argmax(D::Minus1)?.to_vec1()
}
