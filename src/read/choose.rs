//! Which window's answer counts, when several windows were read.
//!
//! A window w is believed by the rank score s(w) of its best passage, and its answer by the language model:
//! worth(w) = log p(answer | w) + λ s(w). That is, up to a constant, the log of p(w) p(answer | w) where p(w) is the
//! softmax of λ s. *Best* takes the window of the greatest worth. *Vote* adds up the worth of windows that say the same,
//! as probabilities: log Σ exp worth(w), the marginal of Lewis et al. (2020, RAG-Sequence) over the windows read.
//!
//! No probability is above 1, so worth(w) is at most λ s(w), which is known before w is read. *Best* is therefore known as soon
//! as an answer is worth as much as every other window could be at most ([`deciding`]); the rest need not be read.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How windows compete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The answer that looks best in one window.
    #[default]
    Best,
    /// The answer that all windows together find likeliest.
    Vote,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Best => "best",
            Self::Vote => "vote",
        })
    }
}

impl std::str::FromStr for Choice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "best" => Ok(Self::Best),
            "vote" => Ok(Self::Vote),
            other => Err(Error::request(format!("there is no way to choose {other:?}"), "ways are: best, vote")),
        }
    }
}

/// What the reader said to one window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowAnswer {
    /// The answer.
    pub answer: String,
    /// Sum of the log-probabilities of its tokens and its end.
    pub log_likelihood: f32,
    /// Rank score of the window's best passage.
    pub rank_score: f32,
    /// Probability of "there is no answer", under a prompt that learned to say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_abstain: Option<f32>,
}

impl WindowAnswer {
    /// worth(w); `score_weight` is λ.
    pub fn worth(&self, score_weight: f32) -> f32 {
        self.log_likelihood + score_weight * self.rank_score
    }
}

/// Which windows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Extent {
    /// Those that decide which answer is the best.
    #[default]
    Deciding,
    /// All.
    All,
}

/// The window that counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// Its place among the windows.
    pub window: usize,
    /// By how much its answer was worth more than the best different one, or than one could be in a window that does not decide;
    /// `None` when all windows say the same.
    pub lead: Option<f32>,
}

/// How many windows, from the first on, decide which answer is the best, once the first is read: those up to the last that
/// could be worth more. `rank_scores` are of all windows, `score_weight` is λ.
pub fn deciding(first: &WindowAnswer, rank_scores: &[f32], score_weight: f32) -> usize {
    let reached = first.worth(score_weight);
    rank_scores.iter().rposition(|score| score_weight * score > reached).map_or(1, |last| last + 1)
}

/// Choose among windows, best passage first; `score_weight` is λ, `others` are the rank scores of windows that do not decide. Equal
/// worth goes to the earlier window. `None` when there are no windows.
pub fn choose(answers: &[WindowAnswer], others: &[f32], choice: Choice, score_weight: f32) -> Option<Chosen> {
    /// Windows that say the same.
    struct Group {
        plain: String,
        window: usize,
        best: f32,
        total: f32,
    }
    let mut groups: Vec<Group> = Vec::new();
    for (window, answer) in answers.iter().enumerate() {
        let (plain, worth) = (plain(&answer.answer), answer.worth(score_weight));
        match groups.iter_mut().find(|g| g.plain == plain) {
            Some(group) => {
                group.total = log_sum(group.total, worth);
                if worth > group.best {
                    (group.best, group.window) = (worth, window);
                }
            }
            None => groups.push(Group { plain, window, best: worth, total: worth }),
        }
    }
    let value = |g: &Group| match choice {
        Choice::Best => g.best,
        Choice::Vote => g.total,
    };
    let first = groups.iter().reduce(|best, next| if value(next) > value(best) { next } else { best })?;
    let different = groups.iter().filter(|g| g.window != first.window).map(value);
    let second = different.chain(others.iter().map(|score| score_weight * score)).reduce(f32::max);
    Some(Chosen { window: first.window, lead: second.map(|second| value(first) - second) })
}

/// log(e^a + e^b).
pub(super) fn log_sum(a: f32, b: f32) -> f32 {
    let (high, low) = if a >= b { (a, b) } else { (b, a) };
    if low == f32::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// An answer without what does not make it a different one: case, spaces, punctuation.
pub(super) fn plain(answer: &str) -> String {
    answer.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(answer: &str, log_likelihood: f32, rank_score: f32) -> WindowAnswer {
        WindowAnswer { answer: answer.into(), log_likelihood, rank_score, p_abstain: None }
    }

    #[test]
    fn two_windows_that_agree_outvote_a_better_one() {
        // e^-1 = 0.368 against e^-1.5 + e^-1.6 = 0.223 + 0.202 = 0.425; ln(0.425 / 0.368) = 0.1444
        let answers = [said("Paris", -1.0, 0.0), said("the Hague", -1.5, 0.0), said("The Hague.", -1.6, 0.0)];
        let best = choose(&answers, &[], Choice::Best, 1.0).unwrap();
        assert_eq!((best.window, best.lead), (0, Some(0.5)));
        let vote = choose(&answers, &[], Choice::Vote, 1.0).unwrap();
        assert_eq!(vote.window, 1);
        assert!((vote.lead.unwrap() - 0.1444).abs() < 1e-3, "{vote:?}");
    }

    #[test]
    fn the_rank_counts_by_its_weight() {
        let answers = [said("a", -2.0, 1.0), said("b", -1.0, 0.0)];
        assert_eq!(choose(&answers, &[], Choice::Best, 0.5).unwrap().window, 1);
        assert_eq!(choose(&answers, &[], Choice::Best, 2.0).unwrap().window, 0);
        assert_eq!(choose(&answers, &[], Choice::Best, 1.0).unwrap().window, 0, "equal worth goes to the earlier one");
    }

    #[test]
    fn nothing_read_is_nothing_chosen_and_agreement_has_no_lead() {
        assert_eq!(choose(&[], &[], Choice::Vote, 1.0), None);
        let same = [said("a", -2.0, 0.0), said("A", -1.0, 0.0)];
        assert_eq!(choose(&same, &[], Choice::Vote, 1.0), Some(Chosen { window: 1, lead: None }));
        let impossible = [said("a", f32::NEG_INFINITY, 0.0), said("a", f32::NEG_INFINITY, 0.0)];
        assert_eq!(choose(&impossible, &[], Choice::Vote, 1.0).unwrap().window, 0);
    }

    #[test]
    fn windows_decide_that_could_be_worth_more() {
        let first = said("a", -1.0, 5.0);
        // It is worth 4; the others at most their rank scores.
        assert_eq!(deciding(&first, &[5.0, 4.0, 3.0], 1.0), 1);
        assert_eq!(deciding(&first, &[5.0, 4.1, 3.0], 1.0), 2);
        // Where ranks fall and rise again, the one between is read with the last.
        assert_eq!(deciding(&first, &[5.0, 3.0, 4.5], 1.0), 3);
        assert_eq!(deciding(&first, &[5.0, 1.0], 0.0), 2, "without a weight all of them");
        assert_eq!(deciding(&said("a", 0.0, 5.0), &[5.0], 1.0), 1);
        let chosen = choose(&[first], &[3.5, 2.0], Choice::Best, 1.0);
        assert_eq!(chosen, Some(Chosen { window: 0, lead: Some(0.5) }));
    }

    proptest! {
        #[test]
        fn what_does_not_decide_changes_nothing(
            answers in prop::collection::vec(("[abc]", -8.0f32..0.0, -4.0f32..8.0), 1..8), weight in 0.0f32..4.0,
        ) {
            let answers: Vec<WindowAnswer> = answers.iter().map(|(a, l, s)| said(a, *l, *s)).collect();
            let ranks: Vec<f32> = answers.iter().map(|a| a.rank_score).collect();
            let read = deciding(&answers[0], &ranks, weight);
            let (some, all) = (choose(&answers[..read], &ranks[read..], Choice::Best, weight).unwrap(),
                               choose(&answers, &[], Choice::Best, weight).unwrap());
            prop_assert_eq!(some.window, all.window);
            prop_assert!(some.lead.is_none() || all.lead.is_none_or(|lead| some.lead <= Some(lead)));
        }

        #[test]
        fn the_vote_is_the_sum_of_probabilities(
            answers in prop::collection::vec(("[ab]", -8.0f32..0.0, 0.0f32..1.0), 1..8), weight in 0.0f32..4.0,
        ) {
            let answers: Vec<WindowAnswer> = answers.iter().map(|(a, l, s)| said(a, *l, *s)).collect();
            let mass = |answer: &str| -> f64 {
                let of = answers.iter().filter(|a| a.answer == answer);
                of.map(|a| f64::from(a.log_likelihood + weight * a.rank_score).exp()).sum()
            };
            let chosen = choose(&answers, &[], Choice::Vote, weight).unwrap();
            let answer = &answers[chosen.window].answer;
            let other = if answer == "a" { "b" } else { "a" };
            prop_assert!(mass(answer) >= mass(other) * (1.0 - 1e-4));
            prop_assert_eq!(chosen.lead.is_some(), mass(other) > 0.0);
        }
    }
}
