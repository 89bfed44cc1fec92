//! Recursion over windows: what the frozen language model answered goes back into it.
//!
//! Levine et al. 2022 (arXiv:2204.10019) sample answers and put them before the same model again. With passages at hand the
//! first pass is the reading of each window: its answer, and further ones sampled where it was best. The second pass goes back
//! to every window with every candidate and asks how likely it is there, so that a candidate is worth
//!
//! worth(a) = log Σ_w exp(log p(a | w) + λ s(w))
//!
//! (s and λ as in [`crate::read::choose`]): the marginal over passages that RAG-Sequence decodes by when it is thorough (Lewis et
//! al. 2020), where a vote counts a window for the one answer it gave. *Textual* and *neural* differ in what stands before the
//! second pass: the first one's prompt or another that was learned, or vectors that a connector writes from the model's own last
//! states of the question and the best passage.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::read::choose::{log_sum, plain};
use crate::read::decode::Decoding;
use crate::read::lm::{FrozenLm, Prompt};

/// Whether a question is read twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recursion {
    /// Once.
    #[default]
    None,
    /// Twice: candidates as text, behind a soft prompt.
    Textual,
    /// Twice: candidates as text, behind vectors that a connector writes from the model's own states.
    Neural,
    /// Twice where the first answer is not sure enough: by the connector, where there is one.
    Auto,
}

impl std::fmt::Display for Recursion {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Textual => "textual",
            Self::Neural => "neural",
            Self::Auto => "auto",
        })
    }
}

impl std::str::FromStr for Recursion {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::None, Self::Textual, Self::Neural, Self::Auto].into_iter().find(|how| how.to_string() == s).ok_or_else(
            || Error::request(format!("there is no recursion {s:?}"), "kinds are: none, textual, neural, auto"),
        )
    }
}

/// How candidates are sampled beside the answers that the windows gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Answers from each window.
    pub answers: usize,
    /// Windows, those of the best answers.
    pub windows: usize,
    /// Temperature.
    pub temperature: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { answers: 4, windows: 2, temperature: 0.7 }
    }
}

/// What was asked about in the second pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// An answer of the first pass, as it was said first.
    pub answer: String,
    /// Whether no window gave it by itself.
    pub sampled: bool,
    /// The window that finds it most worth.
    pub window: usize,
    /// Its log-likelihood there.
    pub log_likelihood: f32,
    /// What it is worth over all windows.
    pub worth: f32,
}

/// What the second pass did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SecondPass {
    /// The candidates, best first.
    pub candidates: Vec<Candidate>,
    /// The answer of the first pass.
    pub first: String,
    /// Milliseconds that it took, the sampling included.
    pub ms: f64,
}

/// Answers of windows and samples, each once: what differs only in case, spaces and punctuation is one. No answer is none.
#[derive(Debug, Default)]
pub(super) struct Candidates(Vec<(String, Candidate)>);

impl Candidates {
    pub(super) fn add(&mut self, answer: &str, sampled: bool) {
        let key = plain(answer);
        if !key.is_empty() && self.0.iter().all(|(other, _)| *other != key) {
            let (log_likelihood, worth) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            let answer = answer.to_owned();
            self.0.push((key, Candidate { answer, sampled, window: 0, log_likelihood, worth }));
        }
    }

    pub(super) fn answers(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, candidate)| candidate.answer.as_str())
    }

    /// Best first, by log-likelihoods of every candidate in each window in turn, and the windows' weighted rank scores.
    pub(super) fn ranked(self, windows: impl IntoIterator<Item = (Vec<f32>, f32)>) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = self.0.into_iter().map(|(_, candidate)| candidate).collect();
        let mut best = vec![f32::NEG_INFINITY; candidates.len()];
        for (window, (scores, rank)) in windows.into_iter().enumerate() {
            for ((candidate, best), score) in candidates.iter_mut().zip(&mut best).zip(scores) {
                let worth = score + rank;
                if worth > *best {
                    (*best, candidate.window, candidate.log_likelihood) = (worth, window, score);
                }
                candidate.worth = log_sum(candidate.worth, worth);
            }
        }
        // Stable, so that of equal ones the first pass's own is first.
        candidates.sort_by(|a, b| b.worth.total_cmp(&a.worth));
        candidates
    }
}

/// Answers to a prompt, sampled; how many tokens they took.
pub(super) fn sample(
    lm: &mut FrozenLm,
    prompt: &Prompt,
    sampling: Sampling,
    decoding: &Decoding,
    into: &mut Candidates,
    kept: impl Fn(&str) -> Option<String>,
) -> Result<usize> {
    let decoding = Decoding { temperature: sampling.temperature, ..decoding.clone() };
    let (said, _) = lm.generate(&vec![prompt.clone(); sampling.answers], &decoding, None, &mut |_, _| {})?;
    for answer in &said {
        if let Some(answer) = kept(answer.text.trim()) {
            into.add(&answer, true);
        }
    }
    Ok(said.iter().map(|answer| answer.tokens.len()).sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(answers: &[&str]) -> Candidates {
        let mut candidates = Candidates::default();
        answers.iter().for_each(|answer| candidates.add(answer, false));
        candidates
    }

    #[test]
    fn what_says_the_same_is_one_and_nothing_is_none() {
        let mut candidates = of(&["The Hague", "", "the hague.", "Delft"]);
        candidates.add("Delft!", true);
        candidates.add("Leiden", true);
        assert_eq!(candidates.answers().collect::<Vec<_>>(), ["The Hague", "Delft", "Leiden"]);
        let ranked = candidates.ranked([(vec![-1.0, -2.0, -3.0], 0.0)]);
        assert_eq!(ranked.iter().map(|c| c.sampled).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn all_windows_count_and_the_best_is_named() {
        // "a" is likeliest in one window, "b" is likely in both: 0.3 + 0.05 against 0.2 + 0.25.
        let windows = [(vec![0.3f32.ln(), 0.2f32.ln()], 0.0), (vec![0.05f32.ln(), 0.25f32.ln()], 0.0)];
        let ranked = of(&["a", "b"]).ranked(windows.clone());
        assert_eq!((ranked[0].answer.as_str(), ranked[0].window), ("b", 1));
        assert!((ranked[0].worth - 0.45f32.ln()).abs() < 1e-6, "{ranked:?}");
        // A rank score of ln 4 for the first window: 4 (0.3) + 0.05 against 4 (0.2) + 0.25.
        let [first, second] = windows;
        let ranked = of(&["a", "b"]).ranked([(first.0, 4f32.ln()), second]);
        assert_eq!((ranked[0].answer.as_str(), ranked[0].window), ("a", 0));
        assert!((ranked[0].log_likelihood - 0.3f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn kinds_have_names() {
        for how in [Recursion::None, Recursion::Textual, Recursion::Neural, Recursion::Auto] {
            assert_eq!(how.to_string().parse::<Recursion>().unwrap(), how);
            assert_eq!(serde_json::to_value(how).unwrap(), how.to_string());
        }
        assert!("twice".parse::<Recursion>().unwrap_err().hint().is_some());
    }

    proptest! {
        #[test]
        fn no_window_is_worth_more_than_all(scores in prop::collection::vec(prop::collection::vec(-20.0f32..0.0, 3), 1..6)) {
            let windows: Vec<_> = scores.iter().map(|window| (window.clone(), 0.0)).collect();
            let ranked = of(&["a", "b", "c"]).ranked(windows);
            prop_assert_eq!(ranked.len(), 3);
            prop_assert!(ranked.windows(2).all(|pair| pair[0].worth >= pair[1].worth));
            for candidate in &ranked {
                let at = ["a", "b", "c"].iter().position(|name| *name == candidate.answer).unwrap();
                prop_assert!(scores.iter().all(|window| window[at] <= candidate.log_likelihood));
                prop_assert!(candidate.worth >= candidate.log_likelihood - 1e-4);
            }
        }
    }
}
