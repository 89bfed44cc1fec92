//! Choosing the next token: greedy, sampled, or held to spans of the passages; and when to stop.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::math;
use crate::read::spans::SpanConstraint;

/// How an answer is decoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decoding {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// 0 = greedy; else logits are divided by it before sampling.
    pub temperature: f32,
    /// Sample among the so many likeliest tokens; 0 = all.
    pub top_k: usize,
    /// Sample among the likeliest tokens that together have this probability.
    pub top_p: f32,
    /// Seed of the sampler; row i of a batch draws from stream i of it.
    pub seed: u64,
    /// Texts that end the answer and are not part of it. The tokenizer's end tokens always end it.
    pub stop: Vec<String>,
    /// The token that says "there is no answer here" when it comes first, if the prompt was taught one. It is never
    /// chosen first; how likely it was is kept in [`Generation::nothing`].
    #[serde(skip)]
    pub nothing: Option<u32>,
}

impl Default for Decoding {
    fn default() -> Self {
        Self {
            max_new_tokens: 24,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
            stop: vec!["\n".to_owned()],
            nothing: None,
        }
    }
}

/// Why decoding ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// An end token or a stop text.
    Stop,
    /// `max_new_tokens` or the window.
    Length,
}

/// What one sequence became.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The text, without what ended it.
    pub text: String,
    /// The tokens, the one that ended it included.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the language model (temperature 1, unconstrained).
    pub logprobs: Vec<f32>,
    /// Log-probability of there being no answer, where [`Decoding::nothing`] says how that is told.
    pub nothing: Option<f32>,
    /// Why it ended.
    pub finish: Finish,
}

impl Generation {
    /// Mean log-probability per token; the likelihood of the answer, comparable between lengths.
    pub fn mean_logprob(&self) -> f32 {
        if self.logprobs.is_empty() {
            return f32::NEG_INFINITY;
        }
        self.logprobs.iter().sum::<f32>() / self.logprobs.len() as f32
    }
}

/// `log(softmax(logits))` at one index: `logits[i] - log(sum(exp(logits)))`, summed in 64 bits. Not a number if one of the
/// logits is none.
pub fn log_probability(logits: &[f32], index: usize) -> f32 {
    let most = math::largest(logits);
    (f64::from(logits[index] - most) - math::sum_of_exp(logits, most).ln()) as f32
}

/// Picks tokens for one sequence.
#[derive(Debug)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    random: ChaCha8Rng,
}

impl Sampler {
    /// The sampler of row `row` of a batch.
    pub fn new(decoding: &Decoding, row: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(decoding.seed);
        random.set_stream(row as u64);
        Self { temperature: decoding.temperature, top_k: decoding.top_k, top_p: decoding.top_p, random }
    }

    /// The next token. Equal logits go to the smaller token id.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        if self.temperature <= 0.0 {
            // The first of the largest; what is no number is passed over, and shows in the log-probability.
            let most = math::largest(logits);
            return logits.iter().position(|&x| x == most).unwrap_or(0) as u32;
        }
        let mut ranked: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            ranked.truncate(self.top_k);
        }
        let max = ranked.first().map_or(0.0, |r| r.1);
        let weights: Vec<f64> = ranked.iter().map(|&(_, x)| f64::from((x - max) / self.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0;
        let mut mass = 0.0;
        while kept < weights.len() && (kept == 0 || mass < f64::from(self.top_p) * total) {
            mass += weights[kept];
            kept += 1;
        }
        let mut draw = self.random.random::<f64>() * mass;
        for (&(token, _), weight) in ranked.iter().zip(&weights[..kept]) {
            draw -= weight;
            if draw <= 0.0 {
                return token as u32;
            }
        }
        ranked.get(kept.saturating_sub(1)).map_or(0, |r| r.0 as u32)
    }
}

/// The index of the greatest value; the first of equals.
pub fn argmax(values: impl Iterator<Item = (usize, f32)>) -> u32 {
    let mut best = (0usize, f32::NEG_INFINITY);
    for (i, x) in values {
        if x > best.1 {
            best = (i, x);
        }
    }
    best.0 as u32
}

/// What the decoder does next with one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Append this token and go on.
    Token(u32),
    /// The answer is complete; this token (the likeliest end) says so.
    End(u32),
}

/// The next step under a span constraint: the likeliest token that keeps the answer inside a passage, or
/// the end, if the answer may end here and ending is likelier.
pub fn pick_within(constraint: &SpanConstraint, logits: &[f32], ends: &[u32]) -> Next {
    let value = |&t: &u32| (t as usize, logits.get(t as usize).copied().unwrap_or(f32::NEG_INFINITY));
    let end = argmax(ends.iter().map(value));
    let allowed = constraint.allowed();
    if allowed.is_empty() {
        return Next::End(end);
    }
    let token = argmax(allowed.iter().map(value));
    if constraint.may_end() && value(&end).1 >= value(&token).1 { Next::End(end) } else { Next::Token(token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_sum_to_one() {
        let logits = [1.0f32, 2.0, 3.0, -4.0];
        let total: f32 = (0..4).map(|i| log_probability(&logits, i).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        // ln(e^3 / (e + e^2 + e^3 + e^-4)) worked out by hand: -0.408209
        assert!((log_probability(&logits, 2) - -0.408_209).abs() < 1e-5);
    }

    #[test]
    fn a_logit_that_is_no_number_shows() {
        assert!(log_probability(&[1.0, f32::NAN, 0.0], 0).is_nan());
        assert_eq!(log_probability(&[1.0, f32::NEG_INFINITY], 0), 0.0);
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut sampler = Sampler::new(&Decoding::default(), 0);
        assert_eq!(sampler.pick(&[0.0, 5.0, 5.0]), 1);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens_and_rows_differ() {
        let decoding = Decoding { temperature: 1.0, seed: 7, ..Decoding::default() };
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let draw = |row| {
            let mut sampler = Sampler::new(&decoding, row);
            (0..20).map(|_| sampler.pick(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn top_k_and_top_p_keep_to_the_head() {
        let logits = [0.0f32, 10.0, 9.0, -3.0];
        let sampled = |top_k, top_p| {
            let decoding = Decoding { temperature: 5.0, top_k, top_p, ..Decoding::default() };
            let mut sampler = Sampler::new(&decoding, 0);
            let mut seen: Vec<u32> = (0..200).map(|_| sampler.pick(&logits)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(sampled(2, 1.0), [1, 2]);
        assert_eq!(sampled(0, 0.01), [1]);
        assert_eq!(sampled(0, 1.0), [0, 1, 2, 3]);
    }
}
