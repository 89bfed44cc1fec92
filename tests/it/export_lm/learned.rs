//! The model that prompts are trained through and the model that they are served by: the same numbers, whatever
//! stands before a window, and whether states are kept or not.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use nunatak::export::Precision;
use nunatak::export::llama::export_lm;
use nunatak::read::decode::{Decoding, Generation};
use nunatak::read::lm::{FrozenLm, Prompt};
use nunatak::read::prefix::Prefix;
use nunatak::read::reader::{Reader, ReaderSettings};
use nunatak::read::soft_prompt::{FORMAT, PromptDescription, PromptKind, PromptTarget, SoftPrompt};
use nunatak::read::template::TemplateKind;
use nunatak::runtime::model_dir::ModelDir;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::train::llama::Decoder;
use nunatak::train::ops::Packed;

use super::assert_close;
use super::tiny::{FAMILIES, Family, prompt};

/// A family's model as its publisher's folder and as ours.
struct Both {
    source: tempfile::TempDir,
    out: tempfile::TempDir,
}

impl Both {
    fn new(family: Family, precision: Precision) -> Self {
        let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        family.write(&family.weights(5), source.path());
        export_lm(source.path(), out.path(), precision).unwrap();
        Self { source, out }
    }

    fn dir(&self) -> ModelDir {
        ModelDir::open(self.out.path()).unwrap()
    }

    fn served(&self) -> FrozenLm {
        FrozenLm::open(&self.dir(), &RuntimeOptions::default()).unwrap()
    }

    fn trained(&self) -> Decoder {
        Decoder::open(self.source.path(), &Device::Cpu).unwrap()
    }

    /// A prompt whose numbers are what the model makes of words.
    fn prompt_of(&self, words: &[u32], kind: PromptKind) -> Prefix {
        let lm = self.trained();
        let tensors = match kind {
            PromptKind::States => lm.states(words).unwrap(),
            PromptKind::Embeddings => vec![lm.embed(words).unwrap()],
        };
        let values: Vec<f32> = tensors.iter().flat_map(floats).collect();
        let target =
            PromptTarget { name: self.dir().name(), layers: lm.layers(), kv_width: lm.kv_width(), hidden: lm.hidden() };
        let description = PromptDescription {
            format: FORMAT,
            kind,
            positions: words.len(),
            target,
            template: TemplateKind::Plain,
            abstains: false,
            sha256: None,
            training: serde_json::Value::Null,
        };
        Prefix::Learned(Arc::new(SoftPrompt::new(description, &values).unwrap()))
    }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn generate(lm: &mut FrozenLm, prompts: &[Prompt]) -> Vec<Generation> {
    let decoding = Decoding { max_new_tokens: 8, stop: Vec::new(), ..Decoding::default() };
    lm.generate(prompts, &decoding, None, &mut |_, _| {}).unwrap().0
}

fn behind(prefix: Prefix) -> Prompt {
    Prompt { prefix, passages: prompt(12, 2), tail: prompt(6, 3) }
}

#[test]
fn the_trainers_forward_pass_is_candles() {
    for family in FAMILIES {
        let both = Both::new(family, Precision::Fp32);
        let lm = both.trained();
        // Two sequences in one batch do not see each other.
        let (ids, other) = (prompt(20, 5), prompt(7, 6));
        let embeds = lm.embed(&[other.as_slice(), &ids].concat()).unwrap();
        let rows: Vec<u32> = (7..27).collect();
        let hidden = lm.forward(&embeds, &Packed::new([7, 20]), None, &rows).unwrap();
        let logits = floats(&lm.logits(&hidden).unwrap());
        let expected = family.logits(&family.weights(5), &ids).concat();
        assert_close(&logits, &expected, 1e-4, &format!("{family:?}"));
    }
}

#[test]
fn what_goes_on_from_a_shared_sequence_is_as_if_it_stood_alone() {
    for family in FAMILIES {
        let both = Both::new(family, Precision::Fp32);
        let lm = both.trained();
        let (passage, first, second) = (prompt(12, 5), prompt(4, 6), prompt(6, 7));
        let mut packed = Packed::default();
        let shared = packed.push(12, 0..0);
        packed.push(4, shared.clone());
        packed.push(6, shared);
        let embeds = lm.embed(&[passage.as_slice(), &first, &second].concat()).unwrap();
        let rows: Vec<u32> = (12..22).collect();
        let together = floats(&lm.logits(&lm.forward(&embeds, &packed, None, &rows).unwrap()).unwrap());
        let alone = [&first, &second].map(|ids| {
            let logits = family.logits(&family.weights(5), &[passage.as_slice(), ids].concat());
            logits[12..].concat()
        });
        assert_close(&together, &alone.concat(), 1e-4, &format!("{family:?}"));
    }
}

#[test]
fn a_prefix_of_states_is_the_words_it_was_made_of() {
    for family in FAMILIES.into_iter().filter(|f| *f != Family::Mistral) {
        let lm = Both::new(family, Precision::Fp32).trained();
        let (words, ids) = (prompt(9, 1), prompt(11, 2));
        let states = lm.states(&words).unwrap();
        let rows: Vec<u32> = (0..11).collect();
        let packed = Packed::new([11]);
        let behind = lm.forward(&lm.embed(&ids).unwrap(), &packed, Some(&states), &rows).unwrap();
        let whole = lm.embed(&[words.as_slice(), &ids].concat()).unwrap();
        let rows: Vec<u32> = (9..20).collect();
        let whole = lm.forward(&whole, &Packed::new([20]), None, &rows).unwrap();
        assert_close(&floats(&behind), &floats(&whole), 1e-4, &format!("{family:?}"));
    }
}

#[test]
fn a_served_prompt_does_what_its_words_do() {
    let words = prompt(9, 1);
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let both = Both::new(family, Precision::Fp32);
        let mut lm = both.served();
        let expected = generate(&mut lm, &[behind(Prefix::Words(words.clone()))]).remove(0);
        for kind in [PromptKind::States, PromptKind::Embeddings] {
            let got = generate(&mut lm, &[behind(both.prompt_of(&words, kind))]).remove(0);
            assert_eq!(got.tokens, expected.tokens, "{family:?} {kind:?}");
            // A prompt is kept in 16 bits.
            assert_close(&got.logprobs, &expected.logprobs, 2e-2, &format!("{family:?} {kind:?}"));
        }
    }
}

#[test]
fn different_prompts_share_a_batch() {
    for precision in [Precision::Fp32, Precision::W8A8] {
        let both = Both::new(Family::Llama, precision);
        let mut lm = both.served();
        let learned = |words: &[u32], kind| match both.prompt_of(words, kind) {
            Prefix::Learned(prompt) => prompt,
            Prefix::Words(_) | Prefix::Written { .. } => unreachable!(),
        };
        let states = learned(&prompt(9, 1), PromptKind::States);
        // As a generator writes them: one for each of two inputs, alone and behind a learned one.
        let written =
            |behind, seed| Prefix::Written { behind, prompt: learned(&prompt(3, seed), PromptKind::Embeddings) };
        let prompts = [
            behind(Prefix::Learned(states.clone())),
            behind(Prefix::Words(prompt(4, 7))),
            behind(Prefix::Learned(learned(&prompt(5, 8), PromptKind::Embeddings))),
            behind(written(None, 11)),
            behind(written(Some(states), 12)),
        ];
        let together = generate(&mut lm, &prompts);
        let alone: Vec<Generation> =
            prompts.iter().map(|prompt| generate(&mut lm, std::slice::from_ref(prompt)).remove(0)).collect();
        for (alone, joint) in alone.iter().zip(&together) {
            assert_eq!(alone.tokens, joint.tokens, "{precision}");
            assert_close(&joint.logprobs, &alone.logprobs, 1e-3, "a batch against one");
        }
        // What stands before a window is not of no account here: else all rows would be one.
        assert!(alone.iter().any(|other| other.logprobs != alone[0].logprobs), "{precision}");
    }
}

#[test]
fn kept_states_change_nothing() {
    for precision in [Precision::Fp32, Precision::Fp16, Precision::Int8, Precision::W8A8] {
        let both = Both::new(Family::Llama, precision);
        let (mut plain, mut keeping) = (both.served(), both.served());
        keeping.keep_passages(1 << 20);
        let prefix = both.prompt_of(&prompt(9, 1), PromptKind::States);
        let other = Prefix::Words(prompt(3, 4));
        for (round, prefix) in [&prefix, &prefix, &other, &prefix].into_iter().enumerate() {
            // A new question each time, so that only the passage can be known.
            let asked = Prompt { tail: prompt(6, 10 + round as u64), ..behind(prefix.clone()) };
            let expected = generate(&mut plain, std::slice::from_ref(&asked)).remove(0);
            let got = generate(&mut keeping, std::slice::from_ref(&asked)).remove(0);
            assert_eq!(got, expected, "{precision} round {round}");
        }
        let statistics = keeping.cache_statistics();
        assert_eq!((statistics.hits, statistics.misses, statistics.entries), (2, 2, 2));
        assert_eq!(plain.cache_statistics().entries, 0);
    }
}

#[test]
fn states_beside_an_index_change_nothing_and_damaged_ones_are_not_used() {
    for precision in [Precision::Fp32, Precision::Fp16, Precision::Int8, Precision::W8A8] {
        let both = Both::new(Family::Llama, precision);
        let (index, mut plain) = (tempfile::tempdir().unwrap(), both.served());
        let prefix = both.prompt_of(&prompt(9, 1), PromptKind::States);
        let asked = Prompt { tail: prompt(6, 10), ..behind(prefix.clone()) };
        let expected = generate(&mut plain, std::slice::from_ref(&asked)).remove(0);
        let folder = plain.state_folder(index.path(), &prefix);
        let states = plain.passage_states(&prefix, &asked.passages).unwrap();
        folder.put(&asked.passages, &states).unwrap();

        let mut beside = both.served();
        beside.look_beside(index.path());
        for hits in [1, 2] {
            assert_eq!(generate(&mut beside, std::slice::from_ref(&asked)).remove(0), expected, "{precision}");
            let statistics = beside.cache_statistics();
            assert_eq!((statistics.hits, statistics.misses), (hits, 0));
            assert_eq!(statistics.hit_tokens, hits * asked.passages.len() as u64);
        }
        let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(generate(&mut beside, std::slice::from_ref(&asked)).remove(0), expected, "{precision}");
        assert_eq!(beside.cache_statistics().misses, 1);
    }
}

#[test]
fn a_prompt_for_another_model_is_refused() {
    let (own, other) = (Both::new(Family::Llama, Precision::Fp32), Both::new(Family::Llama, Precision::Fp32));
    let Prefix::Learned(prompt) = other.prompt_of(&prompt(4, 1), PromptKind::States) else { unreachable!() };
    let error = Reader::open(&own.dir(), ReaderSettings::default(), Some(prompt), &RuntimeOptions::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&own.dir().name()) && error.contains(&other.dir().name()), "{error}");
}

#[test]
fn gradients_reach_the_prompt_and_no_weight() {
    let both = Both::new(Family::Qwen3, Precision::Fp32);
    let lm = both.trained();
    let before = lm.weights_hash().unwrap();
    let states: Vec<candle_core::Var> =
        lm.states(&prompt(5, 1)).unwrap().iter().map(|t| candle_core::Var::from_tensor(t).unwrap()).collect();
    let prefix: Vec<Tensor> = states.iter().map(|v| v.as_tensor().clone()).collect();
    let embeds = lm.embed(&prompt(7, 2)).unwrap();
    let loss = |prefix: &[Tensor]| {
        let hidden = lm.forward(&embeds, &Packed::new([7]), Some(prefix), &[6]).unwrap();
        candle_nn::ops::log_softmax(&lm.logits(&hidden).unwrap(), 1).unwrap().get(0).unwrap().get(3).unwrap()
    };
    let gradients = loss(&prefix).backward().unwrap();
    // Along its own direction, the gradient of every layer's prefix says what a small step does.
    for (layer, variable) in states.iter().enumerate() {
        let gradient = gradients.get(variable).unwrap();
        let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        assert!(length > 0.0, "layer {layer}");
        let moved = |step: f64| {
            let mut prefix = prefix.clone();
            prefix[layer] = (&prefix[layer] + (gradient * (step / f64::from(length))).unwrap()).unwrap();
            loss(&prefix).to_scalar::<f32>().unwrap()
        };
        let slope = (moved(0.02) - moved(-0.02)) / 0.04;
        assert!((slope / length - 1.0).abs() < 0.05, "layer {layer}: {slope} against {length}");
    }
    assert_eq!(lm.weights_hash().unwrap(), before);
}
