//! How windows should compete, from a run that kept what was said to each: `nunatak eval sweep`.
//!
//! Choosing among windows costs nothing once they are read, so one run answers for every number of passages up to its
//! own, either way to choose, and every weight of the rank score. The run should be on training questions: the best of
//! so many settings looks better on the questions it was chosen by than it is.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::eval::normalise::exact_match_and_f1;
use crate::eval::out_dir::{PREDICTIONS, read_predictions};
use crate::eval::table::aligned;
use crate::read::choose::{Choice, WindowAnswer, choose};

/// Weights that are tried: from none to where the rank alone decides, for scores of either kind.
const WEIGHTS: [f32; 15] = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 25.0];

/// One way to choose, measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Windows that compete: the best ranked so many.
    pub windows: usize,
    /// How.
    pub choose: Choice,
    /// Weight of the rank score.
    pub score_weight: f32,
    /// Mean exact match.
    pub exact_match: f64,
    /// Mean F1.
    pub f1: f64,
}

/// All ways that were tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sweep {
    /// Questions.
    pub n: usize,
    /// Share of questions for which any window says the right thing, by the number of windows from 1 on: what no
    /// choice can pass.
    pub any_window: Vec<f64>,
    /// Every setting, those with fewer windows first.
    pub settings: Vec<Setting>,
    /// Of them the one with the best exact match; of equal ones the best F1, then the first.
    pub best: Setting,
}

/// A question's windows and right answers.
type Read = (Vec<WindowAnswer>, Vec<String>);

/// Try all settings on the run in the folder `run`.
///
/// # Errors
/// [`Error::BadFile`] when its predictions do not say what was read, or no right answers are known.
pub fn sweep(run: &Path) -> Result<Sweep> {
    let path = run.join(PREDICTIONS);
    let (mut read, mut in_part, mut shared) = (Vec::<Read>::new(), 0, false);
    read_predictions(&path, |prediction| {
        if let (Some(trace), Some(answers)) = (prediction.trace, prediction.answers)
            && !trace.said.is_empty()
        {
            shared |= trace.packed.windows(2).any(|pair| pair[0].window == pair[1].window);
            in_part += usize::from(trace.packed.iter().any(|packed| packed.window > trace.said.len()));
            read.push((trace.said, answers));
        }
        Ok(())
    })?;
    if shared {
        let problem = "its windows hold several passages, and what fewer would have said is not known";
        return Err(Error::bad_file(&path, problem, "run `nunatak eval` with --per-window 1"));
    }
    if in_part > 0 {
        return Err(Error::bad_file(
            &path,
            format!(
                "of {in_part} questions only those passages were read that decided, which says nothing of other settings"
            ),
            "run `nunatak eval` with --read-all",
        ));
    }
    try_all(&read).ok_or_else(|| {
        let hint = "take a run of this version with a reader, over questions with known answers";
        Error::bad_file(&path, "it does not say what was read in which window", hint)
    })
}

fn try_all(read: &[Read]) -> Option<Sweep> {
    let most = read.iter().map(|(said, _)| said.len()).max()?;
    // Each window is judged once, whatever is chosen.
    let judged: Vec<Vec<(f64, f64)>> = read
        .iter()
        .map(|(said, answers)| said.iter().map(|w| exact_match_and_f1(&w.answer, answers)).collect())
        .collect();
    let n = read.len() as f64;
    let any = |windows: usize| judged.iter().filter(|j| j.iter().take(windows).any(|(em, _)| *em == 1.0)).count();
    let measure = |windows: usize, choice: Choice, weight: f32| {
        let mut sums = (0.0, 0.0);
        for ((said, _), judged) in read.iter().zip(&judged) {
            let said = said.get(..windows).unwrap_or(said);
            let chosen = choose(said, &[], choice, weight).and_then(|c| judged.get(c.window));
            let (exact_match, f1) = chosen.copied().unwrap_or_default();
            sums = (sums.0 + exact_match, sums.1 + f1);
        }
        Setting { windows, choose: choice, score_weight: weight, exact_match: sums.0 / n, f1: sums.1 / n }
    };
    let mut settings = Vec::new();
    for windows in 1..=most {
        for choice in [Choice::Best, Choice::Vote] {
            settings.extend(WEIGHTS.iter().map(|&weight| measure(windows, choice, weight)));
        }
    }
    let best = best(settings.iter())?.clone();
    Some(Sweep { n: read.len(), any_window: (1..=most).map(|w| any(w) as f64 / n).collect(), settings, best })
}

fn best<'a>(settings: impl Iterator<Item = &'a Setting>) -> Option<&'a Setting> {
    settings.reduce(|best, next| if (next.exact_match, next.f1) > (best.exact_match, best.f1) { next } else { best })
}

impl Sweep {
    /// For people: for every number of windows the best weight of either way.
    pub fn table(&self) -> String {
        let percent = |x: f64| format!("{:.1}%", 100.0 * x);
        let mut rows =
            vec![["windows", "any right", "best", "at weight", "vote", "at weight"].map(str::to_owned).to_vec()];
        for (windows, any) in (1..).zip(&self.any_window) {
            let mut row = vec![windows.to_string(), percent(*any)];
            for choice in [Choice::Best, Choice::Vote] {
                let of = self.settings.iter().filter(|s| s.windows == windows && s.choose == choice);
                row.extend(best(of).into_iter().flat_map(|s| [percent(s.exact_match), s.score_weight.to_string()]));
            }
            rows.push(row);
        }
        let Setting { windows, choose, score_weight, exact_match, f1 } = &self.best;
        format!(
            "exact match over {} questions\n{}\nbest: --passages {windows} --choose {choose} --score-weight {score_weight}: {} \
             exact match, {} F1, on the questions it was chosen by\n",
            self.n,
            aligned(&rows),
            percent(*exact_match),
            percent(*f1),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(answer: &str, log_likelihood: f32, rank_score: f32) -> WindowAnswer {
        WindowAnswer { answer: answer.into(), log_likelihood, rank_score, p_abstain: None }
    }

    #[test]
    fn the_setting_that_is_right_most_often_is_found() {
        let answers = |a: &str| vec![a.to_owned()];
        let read = [
            // Two that agree are right, and neither is the likeliest.
            (vec![said("x", -1.0, 0.0), said("y", -1.2, 0.0), said("y", -1.2, 0.0)], answers("Y")),
            // The first by rank is right, and the second likelier by 1.5.
            (vec![said("x", -2.0, 1.0), said("z", -0.5, 0.0)], answers("x")),
        ];
        let sweep = try_all(&read).unwrap();
        assert_eq!((sweep.n, &sweep.any_window), (2, &vec![0.5, 1.0, 1.0]));
        let best = &sweep.best;
        assert_eq!((best.windows, best.choose, best.exact_match, best.f1), (3, Choice::Vote, 1.0, 1.0));
        // At equal worth the better ranked wins.
        assert_eq!(best.score_weight, 1.5);
        assert_eq!(sweep.settings.len(), 3 * 2 * WEIGHTS.len());
        assert!(sweep.table().contains("--passages 3 --choose vote --score-weight 1.5: 100.0%"), "{}", sweep.table());
    }

    #[test]
    fn nothing_read_is_nothing_to_choose() {
        assert_eq!(try_all(&[]), None);
    }
}
