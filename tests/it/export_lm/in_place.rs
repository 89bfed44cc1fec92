//! Generation over the cache that is bound in place, against recomputing everything for every token.

use nunatak::export::Precision;
use nunatak::export::llama::export_lm;
use nunatak::read::decode::{Decoding, Generation};
use nunatak::read::lm::{FrozenLm, Prompt};
use nunatak::read::prefix::Prefix;
use nunatak::runtime::model_dir::ModelDir;
use nunatak::runtime::session::RuntimeOptions;

use super::assert_close;
use super::tiny::{Family, prompt};

/// Different kernels serve one row and many; sums come in another order.
const TOLERANCE: f32 = 1e-3;

fn lm(family: Family, precision: Precision) -> FrozenLm {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    family.write(&family.weights(5), source.path());
    export_lm(source.path(), out.path(), precision).unwrap();
    FrozenLm::open(&ModelDir::open(out.path()).unwrap(), &RuntimeOptions::default()).unwrap()
}

fn generate(lm: &mut FrozenLm, prefix: &[u32], prompts: &[Vec<u32>], tokens: usize) -> Vec<Generation> {
    let decoding = Decoding { max_new_tokens: tokens, stop: Vec::new(), ..Decoding::default() };
    let prefix = Prefix::Words(prefix.to_vec());
    let prompts: Vec<Prompt> = prompts
        .iter()
        .map(|tail| Prompt { prefix: prefix.clone(), passages: Vec::new(), tail: tail.clone() })
        .collect();
    lm.generate(&prompts, &decoding, None, &mut |_, _| {}).unwrap().0
}

#[test]
fn every_token_is_the_one_that_recomputing_gives() {
    for (family, precision) in
        [(Family::Llama, Precision::Fp32), (Family::Mistral, Precision::Fp32), (Family::Qwen2, Precision::Fp32)]
    {
        let mut lm = lm(family, precision);
        let start = prompt(20, 9);
        let answer = generate(&mut lm, &[], std::slice::from_ref(&start), 12).remove(0);
        let mut so_far = start;
        for (&token, &logprob) in answer.tokens.iter().zip(&answer.logprobs) {
            let anew = generate(&mut lm, &[], std::slice::from_ref(&so_far), 1).remove(0);
            assert_eq!(anew.tokens, [token], "{family:?}");
            assert_close(&[logprob], &anew.logprobs, TOLERANCE, &format!("{family:?}"));
            so_far.push(token);
        }
    }
}

#[test]
fn a_batch_behind_a_shared_prefix_equals_each_alone() {
    for precision in [Precision::Fp32, Precision::Fp16] {
        let mut lm = lm(Family::Llama, precision);
        let prefix = prompt(17, 1);
        let prompts = vec![prompt(9, 2), prompt(23, 3), prompt(14, 4)];
        let together = generate(&mut lm, &prefix, &prompts, 10);
        for (tail, joint) in prompts.iter().zip(&together) {
            let whole: Vec<u32> = prefix.iter().chain(tail).copied().collect();
            let alone = generate(&mut lm, &[], &[whole], 10).remove(0);
            assert_eq!(alone.tokens, joint.tokens);
            let tolerance = if precision == Precision::Fp32 { TOLERANCE } else { 3e-2 };
            assert_close(&joint.logprobs, &alone.logprobs, tolerance, "a batch against one");
        }
    }
}

#[test]
fn with_a_scale_a_token_a_batch_is_each_alone_to_the_bit() {
    for family in [Family::Llama, Family::Qwen3] {
        let mut lm = lm(family, Precision::W8A8);
        let (prefix, prompts) =
            (prompt(17, 1), (2..7).map(|seed| prompt(5 + 3 * seed as usize, seed)).collect::<Vec<_>>());
        let alone: Vec<Generation> =
            prompts.iter().map(|tail| generate(&mut lm, &prefix, std::slice::from_ref(tail), 10).remove(0)).collect();
        for count in 2..=prompts.len() {
            assert_eq!(
                generate(&mut lm, &prefix, &prompts[..count], 10),
                alone[..count],
                "{family:?}: {count} in a batch"
            );
        }
    }
}

#[test]
fn a_prompt_longer_than_the_window_is_refused() {
    let mut lm = lm(Family::Llama, Precision::Fp32);
    let long = prompt(lm.window(), 1);
    let decoding = Decoding { max_new_tokens: 1, ..Decoding::default() };
    let error = lm.generate(&[Prompt::of(long)], &decoding, None, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("do not fit the window of 128 tokens"), "{error}");
}
