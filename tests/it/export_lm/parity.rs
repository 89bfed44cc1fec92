//! The same weights through candle and through the exported graphs.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use nunatak::export::Precision;
use nunatak::export::llama::export_lm;

use super::graph::Graphs;
use super::tiny::{FAMILIES, Family, VOCAB, prompt};
use super::{assert_close, noise};

/// Longer than Mistral's window.
const LENGTH: usize = 20;

/// The family's logits and states: ours, candle's.
fn both(family: Family, precision: Precision) -> [(Vec<f32>, Vec<f32>); 2] {
    both_of(family, &family.weights(11), precision)
}

fn both_of(family: Family, weights: &HashMap<String, Tensor>, precision: Precision) -> [(Vec<f32>, Vec<f32>); 2] {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    family.write(weights, source.path());
    export_lm(source.path(), out.path(), precision).unwrap();
    let mut graphs = Graphs::open(out.path());
    assert_eq!(graphs.shape.eos, [2, 3]);
    let ids = prompt(LENGTH, 5);
    let empty = graphs.cache(1, 0);
    let step = graphs.run(&[&ids], &[LENGTH], &empty);
    [
        (step.logits.data, family.logits(weights, &ids).concat()),
        (step.states.data, family.states(weights, &ids).concat()),
    ]
}

fn compare(precision: Precision, tolerance: f32) {
    for family in FAMILIES {
        for ((ours, theirs), what) in both(family, precision).iter().zip(["logits", "states"]) {
            assert_close(ours, theirs, tolerance, &format!("{what} of {family:?} in {precision}"));
        }
    }
}

#[test]
fn every_family_in_fp32() {
    compare(Precision::Fp32, 1e-4);
}

#[test]
fn every_family_in_fp16() {
    compare(Precision::Fp16, 1e-2);
}

/// Random weights of two layers; how much 8 bits cost a real model is measured on real questions.
#[test]
fn every_family_in_8_bits() {
    for (family, precision) in FAMILIES.into_iter().flat_map(|f| [(f, Precision::Int8), (f, Precision::W8A8)]) {
        for ((ours, theirs), what) in both(family, precision).iter().zip(["logits", "states"]) {
            let noise = noise(ours, theirs);
            println!("{what} of {family:?} in {precision}: noise of {noise}");
            // Numbers that are drawn evenly have no outliers, and a turn that would spread them makes the largest a little larger.
            let most = if precision == Precision::W8A8 { 0.06 } else { 0.04 };
            assert!(noise < most, "{what} of {family:?} in {precision}: noise of {noise}");
        }
    }
}

/// The largest magnitude of a token of zeros is 0, and nothing can be divided by it; its products are zeros all the same.
#[test]
fn a_token_of_zeros_in_8_bits() {
    let ids = prompt(LENGTH, 5);
    let mut weights = Family::Llama.weights(11);
    let kept: Vec<f32> = (0..VOCAB as u32).map(|id| f32::from(u8::from(id != ids[0]))).collect();
    let kept = Tensor::from_vec(kept, (VOCAB, 1), &Device::Cpu).unwrap();
    let embeddings = weights.get_mut("model.embed_tokens.weight").unwrap();
    *embeddings = embeddings.broadcast_mul(&kept).unwrap();
    for ((ours, theirs), what) in both_of(Family::Llama, &weights, Precision::W8A8).iter().zip(["logits", "states"]) {
        // Nothing is before the first token, and a stream of zeros stays one.
        assert!(ours[..VOCAB].iter().chain(&theirs[..VOCAB]).all(|x| *x == 0.0), "{what}: {:?}", &ours[..VOCAB]);
        assert!(noise(ours, theirs) < 0.06, "{what}: noise of {}", noise(ours, theirs));
    }
}
