//! How sure is an answer: the probability that it is right, from what the stages say of it.
//!
//! A likelihood is no such probability: a language model is as fluent about the wrong passage. [`Features`] are what
//! is known of an answer when it is given, [`Calibration`] turns them into a probability by logistic regression
//! (Platt 1999; for question answering Kamath et al. 2020, arXiv:2006.09462). Its coefficients are fitted by
//! `nunatak eval calibrate` ([`crate::eval::fit`]) on questions with known answers and kept in a small JSON file.
//! They hold for the models and settings that they were fitted with; [`Calibration::mismatch`] says when those
//! in use are others.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::error::{Error, Result};
use crate::read::recursion::Recursion;
use crate::types::Hit;

/// What is known of an answer when it is given. What there is none of, or is no finite number, is absent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Features {
    /// Sum of the log-probabilities of the answer's tokens and its end.
    pub log_likelihood: Option<f32>,
    /// Their mean.
    pub score: Option<f32>,
    /// How far the answer was ahead of the best different answer, in log-likelihood and weighted rank score; absent
    /// when there was no other.
    pub lead: Option<f32>,
    /// Score of the best passage by the last stage that ranked.
    pub rank_score: Option<f32>,
    /// The same less that of the second.
    pub rank_lead: Option<f32>,
    /// Whether the answer is a stretch of a passage: 1 or 0.
    pub supported: Option<f32>,
    /// Probability of "there is no answer" under a prompt that learned to say so.
    #[serde(default)]
    pub p_abstain: Option<f32>,
}

/// Names of the features, in the order of [`Features::values`].
pub const FEATURES: [&str; 7] =
    ["log_likelihood", "score", "lead", "rank_score", "rank_lead", "supported", "p_abstain"];

impl Features {
    /// The ranking's part: `hits` best first.
    pub fn of_ranking(hits: &[Hit]) -> Self {
        let score = |rank: usize| hits.get(rank).map(|hit: &Hit| hit.score);
        let rank_lead = score(0).zip(score(1)).map(|(first, second)| first - second);
        Self { rank_score: score(0), rank_lead, ..Self::default() }.finite()
    }

    /// The same without what is no number, which JSON cannot carry and no sum survives.
    pub fn finite(self) -> Self {
        let finite = |value: Option<f32>| value.filter(|v| v.is_finite());
        Self {
            log_likelihood: finite(self.log_likelihood),
            score: finite(self.score),
            lead: finite(self.lead),
            rank_score: finite(self.rank_score),
            rank_lead: finite(self.rank_lead),
            supported: finite(self.supported),
            p_abstain: finite(self.p_abstain),
        }
    }

    /// The values in the order of [`FEATURES`].
    pub fn values(&self) -> [Option<f64>; FEATURES.len()] {
        let Self { log_likelihood, score, lead, rank_score, rank_lead, supported, p_abstain } = self.finite();
        [log_likelihood, score, lead, rank_score, rank_lead, supported, p_abstain].map(|v| v.map(f64::from))
    }
}

/// What one feature adds to the log-odds: `weight * (value - mean) / scale`, or `missing` when it is absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// One of [`FEATURES`].
    pub feature: String,
    /// Mean of the feature where it was fitted.
    pub mean: f64,
    /// Its standard deviation there; above 0.
    pub scale: f64,
    /// Log-odds a standard deviation.
    pub weight: f64,
    /// Log-odds of its absence.
    pub missing: f64,
}

/// What a calibration was fitted on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// Version of this program.
    pub nunatak: String,
    /// The settings that move the features, by their names on the command line: language model, prompt, retrieval
    /// mode, ...
    pub settings: Map<String, Value>,
    /// Fingerprints of the models, by role.
    pub models: BTreeMap<String, String>,
    /// Name of the file of questions.
    pub questions: String,
    /// sha256 of that file.
    pub questions_sha256: String,
    /// Answers it was fitted on.
    pub n: usize,
    /// Share of them that were right (exact match).
    pub right: f64,
    /// Mean log loss of the fit on them, in nats.
    pub log_loss: f64,
}

/// Coefficients that turn [`Features`] into a probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// [`VERSION`].
    pub version: u32,
    /// What it was fitted on; `null` = on nothing.
    pub fitted: Option<Fitted>,
    /// Log-odds of an average answer.
    pub intercept: f64,
    /// What the features add; one that is not listed adds nothing.
    pub terms: Vec<Term>,
}

/// Version of the file's format.
pub const VERSION: u32 = 1;

/// The calibration that is compiled in.
const BUILT_IN: &str = include_str!("../models/calibration.json");

/// Settings that move the features: a calibration fitted with others is off.
const SETTINGS: [&str; 26] = [
    "lm",
    "prompt",
    "template",
    "grounded",
    "per_window",
    "together",
    "keep_duplicates",
    "choose",
    "passages",
    "budget",
    "score_weight",
    "mode",
    "fusion",
    "dense_weight",
    "pair_weight",
    "rerank",
    "rerank_depth",
    "rerank_prior",
    "rerank_patience",
    RECURSION,
    "samples",
    "bm25_k1",
    "bm25_b",
    "temperature",
    "max_answer",
    "window",
];
/// Models that do.
const MODELS: [&str; 5] = ["lm", "prompt", "second", "encoder", "reranker"];

/// Of all settings of a run those that a calibration depends on; the unset ones are left out.
pub fn relevant_settings(all: &Map<String, Value>) -> Map<String, Value> {
    let set = |name: &&str| all.get(*name).filter(|value| !value.is_null()).cloned();
    SETTINGS.iter().filter_map(|name| Some(((*name).to_owned(), set(name)?))).collect()
}

/// Of all models of a run those that a calibration depends on.
pub fn relevant_models(all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    all.iter().filter(|(role, _)| MODELS.contains(&role.as_str())).map(|(r, f)| (r.clone(), f.clone())).collect()
}

impl Calibration {
    /// A stand-in that was fitted on nothing: log-odds = 2 + 2 x the answer's mean log-probability. It orders
    /// answers by that mean, and its numbers mean no more than the order.
    pub fn uninformed() -> Self {
        let score = Term { feature: "score".into(), mean: -1.0, scale: 1.0, weight: 2.0, missing: -8.0 };
        Self { version: VERSION, fitted: None, intercept: 0.0, terms: vec![score] }
    }

    /// The calibration that is compiled in, with its fingerprint.
    pub fn built_in() -> Result<(Self, String)> {
        Self::parse(Path::new("models/calibration.json"), BUILT_IN.as_bytes())
    }

    /// Read a file that `nunatak eval calibrate` wrote; with the fingerprint of its bytes.
    ///
    /// # Errors
    /// [`Error::File`], and [`Error::BadFile`] for a file that is no calibration or of a later version.
    pub fn open(path: &Path) -> Result<(Self, String)> {
        Self::parse(path, &std::fs::read(path).map_err(Error::file("read", path))?)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<(Self, String)> {
        const HINT: &str = "make one with `nunatak eval calibrate --run DIR --out FILE`";
        let bad = |problem: String| Error::bad_file(path, problem, HINT);
        let calibration: Self = serde_json::from_slice(bytes).map_err(|e| bad(format!("it is no calibration: {e}")))?;
        if calibration.version != VERSION {
            return Err(bad(format!("its version is {}, and this program reads {VERSION}", calibration.version)));
        }
        if let Some(term) = calibration.terms.iter().find(|t| !FEATURES.contains(&t.feature.as_str())) {
            return Err(bad(format!("there is no feature {:?}", term.feature)));
        }
        let sound = |t: &Term| t.scale > 0.0 && [t.mean, t.scale, t.weight, t.missing].iter().all(|x| x.is_finite());
        if let Some(term) = calibration.terms.iter().find(|t| !sound(t)) {
            return Err(bad(format!("the scale of {} is not above 0, or a number is not finite", term.feature)));
        }
        let fingerprint = hex(&Sha256::digest(bytes));
        Ok((calibration, fingerprint))
    }

    /// The probability, in [0, 1], that an answer with these features is right: 0 when nothing was read.
    pub fn confidence(&self, features: &Features) -> f32 {
        if features.finite().score.is_none() {
            return 0.0;
        }
        let values = features.values();
        let value = |name: &str| FEATURES.iter().position(|f| *f == name).and_then(|i| *values.get(i)?);
        let add = |term: &Term| match value(&term.feature) {
            Some(value) => term.weight * (value - term.mean) / term.scale,
            None => term.missing,
        };
        let log_odds = self.intercept + self.terms.iter().map(add).sum::<f64>();
        (1.0 / (1.0 + (-log_odds).exp())) as f32
    }

    /// What it was fitted on and what it goes by, for people.
    pub fn summary(&self) -> String {
        let on = self.fitted.as_ref().map_or("fitted on nothing".to_owned(), |f| {
            let (n, right) = (f.n, f.right * 100.0);
            format!("fitted on {n} answers to {}, {right:.1}% of them right; log loss {:.4}", f.questions, f.log_loss)
        });
        let term = |t: &Term| format!("  {:<14} {:+.3} a standard deviation of {:.3}\n", t.feature, t.weight, t.scale);
        format!("{on}\nlog-odds {:+.3}, and\n{}", self.intercept, self.terms.iter().map(term).collect::<String>())
    }

    /// Why its probabilities are off for a pipeline with these settings and models, in words: the first thing
    /// that is not as it was where they were fitted. `None` = it fits.
    pub fn mismatch(&self, settings: &Map<String, Value>, models: &BTreeMap<String, String>) -> Option<String> {
        let Some(fitted) = &self.fitted else { return Some("was fitted on nothing".to_owned()) };
        let now = relevant_settings(settings);
        let names = fitted.settings.keys().chain(now.keys());
        let differs = |name: &&String| !same_value(fitted.settings.get(*name), now.get(*name));
        // A path may differ where the fingerprint says that the model is the same.
        let by_fingerprint = |name: &&String| MODELS.contains(&name.as_str()) || *name == "rerank";
        if let Some(name) = names.into_iter().filter(|n| !by_fingerprint(n)).find(differs) {
            return Some(format!("was fitted with another --{}", name.replace('_', "-")));
        }
        let now = relevant_models(models);
        let roles = fitted.models.keys().chain(now.keys());
        let role = roles.into_iter().find(|role| fitted.models.get(*role) != now.get(*role))?;
        Some(format!("was fitted with another {role}"))
    }

    /// The same for reading a question as often as `recursion` says, which a request may choose, and for that alone.
    pub fn mismatch_of_recursion(&self, recursion: Recursion) -> Option<String> {
        let fitted = self.fitted.as_ref()?.settings.get(RECURSION).and_then(Value::as_str);
        let as_fitted = fitted.unwrap_or("none") == recursion.to_string();
        (!as_fitted).then(|| "was fitted with another --recursion".to_owned())
    }
}

/// The setting that says whether questions are read twice.
pub(crate) const RECURSION: &str = "recursion";

/// Equal, numbers as they are typed: reading a file may move the last bit of one.
pub(crate) fn same_value(a: Option<&Value>, b: Option<&Value>) -> bool {
    let number = |value: Option<&Value>| value.and_then(Value::as_f64).map(|x| x as f32);
    a == b || number(a).is_some_and(|a| number(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::PassageId;

    fn parse(text: &str) -> Result<(Calibration, String)> {
        Calibration::parse(Path::new("c.json"), text.as_bytes())
    }

    #[test]
    fn the_one_that_is_compiled_in_is_of_the_format() {
        let (built_in, fingerprint) = Calibration::built_in().unwrap();
        assert_eq!((built_in.version, fingerprint.len()), (VERSION, 64));
        let sure = Features { score: Some(-0.05), log_likelihood: Some(-0.2), ..Features::default() };
        let unsure = Features { score: Some(-3.0), log_likelihood: Some(-12.0), ..Features::default() };
        assert!(built_in.confidence(&sure) > built_in.confidence(&unsure));
        let again = serde_json::to_string(&built_in).unwrap();
        assert_eq!(parse(&again).unwrap().0, built_in);
    }

    #[test]
    fn a_probability_by_hand() {
        // log-odds = 0.5 + 2 (-1 - -2)/4 + 0.25 = 1.25; 1/(1 + e^-1.25) = 0.777300
        let term =
            |feature: &str, weight, missing| Term { feature: feature.into(), mean: -2.0, scale: 4.0, weight, missing };
        let calibration = Calibration {
            intercept: 0.5,
            terms: vec![term("score", 2.0, 9.0), term("lead", 7.0, 0.25)],
            ..Calibration::uninformed()
        };
        let features = Features { score: Some(-1.0), rank_score: Some(5.0), ..Features::default() };
        assert!((calibration.confidence(&features) - 0.777_300).abs() < 1e-6);
        assert_eq!(calibration.confidence(&Features::default()), 0.0, "nothing was read");
        assert_eq!(calibration.confidence(&Features { score: Some(f32::NEG_INFINITY), ..features }), 0.0);
    }

    #[test]
    fn a_ranking_gives_its_best_score_and_its_lead() {
        let hits =
            |scores: &[f32]| -> Vec<Hit> { scores.iter().map(|&score| Hit { passage: PassageId(0), score }).collect() };
        let of = |scores: &[f32]| Features::of_ranking(&hits(scores));
        assert_eq!((of(&[3.0, 1.0, 0.5]).rank_score, of(&[3.0, 1.0]).rank_lead), (Some(3.0), Some(2.0)));
        assert_eq!((of(&[3.0]).rank_lead, of(&[]).rank_score), (None, None));
        assert_eq!(of(&[f32::INFINITY, 0.0]), Features::default());
    }

    #[test]
    fn files_that_are_none_are_refused_with_the_reason() {
        let text = serde_json::to_string(&Calibration::uninformed()).unwrap();
        let problem = |text: &str| parse(text).unwrap_err().to_string();
        assert!(problem("{}").contains("no calibration: missing field `version`"));
        assert!(problem(&text.replace("\"version\":1", "\"version\":2")).contains("its version is 2"));
        assert!(problem(&text.replace("\"score\"", "\"luck\"")).contains("no feature \"luck\""));
        assert!(problem(&text.replace("\"scale\":1.0", "\"scale\":0.0")).contains("the scale of score"));
    }

    #[test]
    fn another_setup_is_told_by_name() {
        let settings = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        let models = |lm: &str| BTreeMap::from([("lm".to_owned(), lm.to_owned())]);
        let with = settings(r#"{"lm": "a", "mode": "hybrid", "rerank": null, "seed": 3}"#);
        let fitted = Fitted {
            nunatak: "0".into(),
            settings: relevant_settings(&with),
            models: models("f00d"),
            questions: "train.jsonl".into(),
            questions_sha256: "00".into(),
            n: 100,
            right: 0.5,
            log_loss: 0.6,
        };
        assert_eq!(fitted.settings.len(), 2, "{:?}", fitted.settings);
        let calibration = Calibration { fitted: Some(fitted), ..Calibration::uninformed() };
        assert_eq!(
            calibration.mismatch(&settings(r#"{"lm": "./a", "mode": "hybrid", "seed": 9}"#), &models("f00d")),
            None
        );
        let mismatch = |text: &str, lm| calibration.mismatch(&settings(text), &models(lm)).unwrap();
        assert_eq!(mismatch(r#"{"lm": "a", "mode": "bm25"}"#, "f00d"), "was fitted with another --mode");
        assert_eq!(
            mismatch(r#"{"mode": "hybrid", "score_weight": 1}"#, "f00d"),
            "was fitted with another --score-weight"
        );
        assert_eq!(mismatch(r#"{"mode": "hybrid"}"#, "beef"), "was fitted with another lm");
        assert!(Calibration::uninformed().mismatch(&with, &models("f00d")).is_some());
        assert_eq!(calibration.mismatch_of_recursion(Recursion::None), None);
        let of_recursion = calibration.mismatch_of_recursion(Recursion::Textual);
        assert_eq!(of_recursion.as_deref(), Some("was fitted with another --recursion"));
    }

    proptest! {
        #[test]
        fn always_a_probability_that_rises_with_a_feature_of_positive_weight(
            score in prop::num::f32::ANY, lead in prop::option::of(prop::num::f32::ANY), more in 0.0f32..10.0,
        ) {
            let calibration = Calibration::uninformed();
            let at = |score| calibration.confidence(&Features { score: Some(score), lead, ..Features::default() });
            prop_assert!((0.0..=1.0).contains(&at(score)));
            prop_assert!(!score.is_finite() || !(score + more).is_finite() || at(score) <= at(score + more));
        }
    }
}
