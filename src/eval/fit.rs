//! From a run on training questions to a [`Calibration`]: `nunatak eval calibrate`.
//!
//! The run should be as answers will be given: same models, prompt and retrieval, and no `--gold`. Its questions must
//! not be those that later measure the calibration; a report names it when they are the same file.

use std::path::Path;

use crate::confidence::{Calibration, FEATURES, Features, Fitted, Term, VERSION, relevant_models, relevant_settings};
use crate::error::{Error, Result};
use crate::eval::logistic;
use crate::eval::out_dir::{PREDICTIONS, REPORT, read_predictions};
use crate::eval::provenance::Provenance;
use crate::eval::report::Report;

/// Fewest answers of a fit; a dozen coefficients from fewer are noise.
pub const LEAST: usize = 50;

/// Penalty on the squared coefficients of standardised features: that of scikit-learn's default, C = 1.
const RIDGE: f64 = 1.0;

/// Fit a calibration to the complete run in the folder `run`.
///
/// # Errors
/// [`Error::BadFile`] when there is no complete run with features (one of an older version has none), or it has too
/// few answers with a known right answer, or all of them are right, or none.
pub fn calibrate(run: &Path) -> Result<Calibration> {
    let report_file = run.join(REPORT);
    if !report_file.is_file() {
        let hint = "give the --out folder of a complete run; finish a stopped one with --resume";
        return Err(Error::bad_file(run, "there is no complete run here", hint));
    }
    let report = Report::open(&report_file)?;
    let mut answers = Vec::new();
    read_predictions(&run.join(PREDICTIONS), |prediction| {
        // The withheld answer counts, not the silence in its place.
        let right = prediction.scored().map(|s| s.exact_match == 1.0);
        answers.extend(prediction.features.zip(right));
        Ok(())
    })?;
    fit(&answers, &report.provenance).ok_or_else(|| {
        let right = answers.iter().filter(|(_, right)| *right).count();
        Error::bad_file(
            run,
            format!(
                "{} answers with a confidence, {right} of them right, are no ground for a calibration",
                answers.len()
            ),
            format!("take a run of this version over at least {LEAST} questions with known answers, some right"),
        )
    })
}

/// Fit to answers that are known to be right or not.
fn fit(answers: &[(Features, bool)], provenance: &Provenance) -> Option<Calibration> {
    if answers.len() < LEAST {
        return None;
    }
    let values: Vec<[Option<f64>; FEATURES.len()]> = answers.iter().map(|(features, _)| features.values()).collect();
    let right: Vec<bool> = answers.iter().map(|(_, right)| *right).collect();
    // A feature that nobody has, or all alike, tells nothing, and its scale would be 0.
    let known = |i: usize| values.iter().filter_map(move |row| row.get(i).copied().flatten());
    let scaled: Vec<(usize, f64, f64)> = (0..FEATURES.len())
        .filter_map(|i| {
            let n = known(i).count() as f64;
            let mean = known(i).sum::<f64>() / n;
            let scale = (known(i).map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            (scale > 1e-9).then_some((i, mean, scale))
        })
        .collect();
    let row = |values: &[Option<f64>; FEATURES.len()]| -> Vec<f64> {
        let columns = |&(i, mean, scale): &(usize, f64, f64)| match values.get(i).copied().flatten() {
            Some(value) => [(value - mean) / scale, 0.0],
            None => [0.0, 1.0],
        };
        scaled.iter().flat_map(columns).collect()
    };
    let rows: Vec<Vec<f64>> = values.iter().map(row).collect();
    let fit = logistic::fit(&rows, &right, RIDGE)?;
    let (pairs, _) = fit.weights.as_chunks::<2>();
    let terms = scaled.iter().zip(pairs).filter_map(|(&(i, mean, scale), &[weight, missing])| {
        Some(Term { feature: (*FEATURES.get(i)?).to_owned(), mean, scale, weight, missing })
    });
    let questions = Path::new(&provenance.questions.path).file_name();
    let fitted = Fitted {
        nunatak: provenance.versions.nunatak.clone(),
        settings: relevant_settings(&provenance.settings),
        models: relevant_models(&provenance.models),
        questions: questions.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        questions_sha256: provenance.questions.sha256.clone(),
        n: answers.len(),
        right: right.iter().filter(|r| **r).count() as f64 / answers.len() as f64,
        log_loss: fit.log_loss,
    };
    Some(Calibration { version: VERSION, fitted: Some(fitted), intercept: fit.intercept, terms: terms.collect() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::calibration::expected_calibration_error;
    use crate::eval::dataset::Dataset;
    use crate::eval::provenance::Setup;
    use crate::eval::selective::Ordered;

    fn provenance() -> Provenance {
        let dataset = Dataset { questions: Vec::new(), path: "a/train.jsonl".into(), sha256: "00".into(), skipped: 0 };
        Provenance::new(Setup::default(), &dataset, 5)
    }

    /// Answers whose chance to be right is 1 / (1 + e^-(2 + 1.5 score)), more when supported; half have no lead.
    fn drawn(n: u32) -> Vec<(Features, bool)> {
        let mut state = 88_172_645_463_325_252u64;
        let mut chance = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..n)
            .map(|i| {
                let score = -4.0 * chance();
                let supported = f64::from(u8::from(chance() < 0.5));
                let odds: f64 = 2.0 + 1.5 * score + supported;
                let features = Features {
                    score: Some(score as f32),
                    supported: Some(supported as f32),
                    lead: (i % 2 == 0).then_some(chance() as f32),
                    rank_score: Some(1.0),
                    ..Features::default()
                };
                (features, chance() < 1.0 / (1.0 + (-odds).exp()))
            })
            .collect()
    }

    #[test]
    fn the_law_behind_the_answers_is_found_and_its_probabilities_are_calibrated() {
        let calibration = fit(&drawn(20_000), &provenance()).unwrap();
        let names: Vec<&str> = calibration.terms.iter().map(|t| t.feature.as_str()).collect();
        assert_eq!(names, ["score", "lead", "supported"], "the constant and the absent ones are left out");
        let slope = |name: &str| {
            calibration.terms.iter().find(|t| t.feature == name).map(|t| t.weight / t.scale).unwrap_or_default()
        };
        assert!((slope("score") - 1.5).abs() < 0.1, "{}", slope("score"));
        assert!((slope("supported") - 1.0).abs() < 0.15 && slope("lead").abs() < 0.2, "{calibration:?}");
        let fresh = &drawn(30_000)[20_000..];
        let pairs = fresh.iter().map(|(f, right)| (f64::from(calibration.confidence(f)), f64::from(u8::from(*right))));
        let error = expected_calibration_error(&Ordered::new(pairs)).unwrap();
        assert!(error < 0.03, "{error}");
        let fitted = calibration.fitted.clone().unwrap();
        assert_eq!((fitted.questions.as_str(), fitted.n), ("train.jsonl", 20_000));
        assert_eq!(fit(&drawn(20_000), &provenance()), Some(calibration), "the same rows give the same numbers");
    }

    #[test]
    fn too_few_answers_or_only_right_ones_are_refused() {
        assert_eq!(fit(&drawn(49), &provenance()), None);
        let right: Vec<(Features, bool)> = drawn(100).into_iter().map(|(f, _)| (f, true)).collect();
        assert_eq!(fit(&right, &provenance()), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn any_features_give_a_file_that_can_be_read(
            all in prop::collection::vec((prop::option::of(prop::num::f32::NORMAL), -9.0f32..0.0, any::<bool>()), 50..80),
        ) {
            let answers: Vec<(Features, bool)> = all.into_iter().map(|(lead, score, right)| {
                let lead = lead.map(|l| l.clamp(-1e6, 1e6));
                (Features { lead, score: Some(score), ..Features::default() }, right)
            }).collect();
            if let Some(calibration) = fit(&answers, &provenance()) {
                let dir = tempfile::tempdir().unwrap();
                let file = dir.path().join("c.json");
                std::fs::write(&file, serde_json::to_string(&calibration).unwrap()).unwrap();
                let (back, _) = Calibration::open(&file).unwrap();
                for (features, _) in &answers {
                    let (a, b) = (calibration.confidence(features), back.confidence(features));
                    prop_assert!((0.0..=1.0).contains(&a) && (a - b).abs() < 1e-5);
                }
            }
        }
    }
}
