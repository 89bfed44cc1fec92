//! What comes out of the pipeline: an answer with its evidence, its confidence, its cost, and what every stage did.

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::confidence::{Calibration, Features};
use crate::index::recall::Beam;
use crate::pack::{LeftOut, Packing};
use crate::pipeline::Found;
use crate::read::choose::WindowAnswer;
use crate::read::reader::Reading;
use crate::read::reading_prompt::PromptName;
use crate::read::recursion::SecondPass;
use crate::rerank::PairCuts;
use crate::types::{Evidence, Hit, PackedPassage};

/// An answer with what it rests on: the content of `ask --json`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Answer {
    /// The question as it was asked.
    pub question: String,
    /// The short answer; empty when the reader found none, or was not sure enough of it.
    pub answer: String,
    /// Probability, in [0, 1], that the answer (or the one that was withheld) is right, as calibrated.
    pub confidence: f32,
    /// Why that probability is a guess: the first thing that is not as it was where its calibration was fitted; absent when it is
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncalibrated: Option<String>,
    /// Whether there is no answer: the corpus does not seem to hold it.
    pub abstained: bool,
    /// Mean log-probability per answer token; higher is surer. The least number there is when nothing was read.
    #[serde(serialize_with = "finite")]
    pub score: f32,
    /// Whether the answer is a stretch of a passage the reader saw.
    pub supported: bool,
    /// Where it stands.
    pub evidence: Vec<Evidence>,
    /// The prompt that it was read behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptName>,
    /// What it cost.
    pub usage: Usage,
    /// Every stage, for `--explain` and for evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub trace: Option<Trace>,
}

/// JSON has no infinity.
fn finite<S: Serializer>(score: &f32, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f32(score.max(f32::MIN))
}

/// What an answer cost.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens put into the language model.
    pub prompt_tokens: usize,
    /// Of these, tokens of passages whose states were kept from before, in memory or beside the index.
    pub cached_tokens: usize,
    /// Tokens it generated.
    pub answer_tokens: usize,
    /// Whether any passage was cut or left out for lack of room.
    pub truncated: bool,
    /// What the first stage and the cross-encoder could not read; absent when they read all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rerank_cuts: Option<PairCuts>,
    /// Milliseconds by stage.
    pub latency_ms: Latency,
}

/// Milliseconds by stage.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Latency {
    /// First stage, the question's encoding included.
    pub retrieve: f64,
    /// Cross-encoder; 0 without one.
    pub rerank: f64,
    /// Packing.
    pub pack: f64,
    /// Language model.
    pub read: f64,
    /// All of it.
    pub total: f64,
}

/// What every stage did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Trace {
    /// What the first stage found by words, best first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<Hit>,
    /// What it found by meaning.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub meaning: Vec<Hit>,
    /// The beam that walked the graph for that; none if every vector was compared, or a cluster did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beam: Option<Beam>,
    /// What the first stage found, best first.
    pub retrieved: Vec<Hit>,
    /// The same after the cross-encoder; empty without one.
    pub reranked: Vec<Hit>,
    /// What the reader saw, window by window.
    pub windows: Vec<Vec<PackedPassage>>,
    /// What the reader said to each, before one was chosen.
    pub said: Vec<WindowAnswer>,
    /// What became of that when it was read again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second: Option<SecondPass>,
    /// What did not get in whole, and why.
    pub left_out: Vec<LeftOut>,
    /// What the confidence was computed from.
    pub features: Features,
    /// The answer that was not given, as its confidence was too low.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
}

/// An answer that was not given.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Withheld {
    /// The answer.
    pub answer: String,
    /// Whether it is a stretch of a passage the reader saw.
    pub supported: bool,
    /// Where it stands.
    pub evidence: Vec<Evidence>,
    /// The confidence that was asked for.
    pub min_confidence: f32,
}

/// What the confidence in a reading is computed from.
pub(crate) fn features(found: &Found, reading: &Reading) -> Features {
    Features {
        log_likelihood: Some(reading.log_likelihood),
        score: Some(reading.score),
        lead: reading.lead,
        supported: Some(f32::from(u8::from(!reading.evidence.is_empty()))),
        p_abstain: reading.p_abstain,
        ..Features::of_ranking(&found.ranking())
    }
    .finite()
}

/// The answer that a reading is, with everything that led to it; how sure it is, [`judge`] says.
pub(crate) fn assemble(
    question: &str,
    found: Found,
    packing: Packing,
    reading: Reading,
    latency_ms: Latency,
) -> Answer {
    let usage = Usage {
        prompt_tokens: reading.prompt_tokens,
        cached_tokens: reading.cached_tokens,
        answer_tokens: reading.answer_tokens,
        truncated: !packing.left_out.is_empty(),
        rerank_cuts: Some(found.cuts).filter(|cuts| !cuts.is_empty()),
        latency_ms,
    };
    let windows =
        packing.windows.into_iter().map(|window| window.into_iter().map(|packed| packed.passage).collect()).collect();
    let supported = !reading.evidence.is_empty();
    let features = features(&found, &reading);
    let trace = Trace {
        words: found.parts.words,
        meaning: found.parts.meaning,
        beam: found.parts.beam,
        retrieved: found.retrieved,
        reranked: found.reranked,
        windows,
        said: reading.windows,
        second: reading.second,
        left_out: packing.left_out,
        features,
        withheld: None,
    };
    Answer {
        question: question.to_owned(),
        abstained: reading.answer.is_empty(),
        answer: reading.answer,
        confidence: 0.0,
        uncalibrated: None,
        score: reading.score,
        supported,
        evidence: reading.evidence,
        prompt: None,
        usage,
        trace: Some(trace),
    }
}

/// Say how sure the answer is, and withhold it if that is not sure enough.
pub(crate) fn judge(mut answer: Answer, calibration: &Calibration, least: f32) -> Answer {
    let Some(trace) = &mut answer.trace else { return answer };
    answer.confidence = calibration.confidence(&trace.features);
    if answer.confidence < least && !answer.answer.is_empty() {
        trace.withheld = Some(Withheld {
            answer: std::mem::take(&mut answer.answer),
            supported: std::mem::take(&mut answer.supported),
            evidence: std::mem::take(&mut answer.evidence),
            min_confidence: least,
        });
        answer.abstained = true;
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(text: &str, score: f32) -> Answer {
        let evidence =
            Evidence { passage_id: "p".into(), title: String::new(), start: 0, end: 3, text: "ice".into(), page: None };
        let reading = Reading { answer: text.into(), score, evidence: vec![evidence], ..Reading::default() };
        assemble("q", Found::default(), Packing::default(), reading, Latency::default())
    }

    #[test]
    fn an_answer_that_is_not_sure_enough_is_withheld_and_kept_in_the_trace() {
        let calibration = Calibration::uninformed();
        let sure = judge(answered("ice", -0.1), &calibration, 0.5);
        assert!(sure.confidence > 0.5 && !sure.abstained && sure.answer == "ice" && sure.supported);
        let unsure = judge(answered("ice", -2.0), &calibration, 0.5);
        // 1 / (1 + e^2)
        assert!((unsure.confidence - 0.119_203).abs() < 1e-6);
        assert!(unsure.abstained && unsure.answer.is_empty() && unsure.evidence.is_empty() && !unsure.supported);
        let withheld = unsure.trace.and_then(|t| t.withheld).unwrap();
        assert_eq!((withheld.answer.as_str(), withheld.evidence.len(), withheld.supported), ("ice", 1, true));
        let free = judge(answered("ice", -2.0), &calibration, 0.0);
        assert_eq!((free.answer.as_str(), free.abstained), ("ice", false));
    }

    #[test]
    fn nothing_read_is_no_answer_of_no_confidence() {
        let nothing = judge(answered("", f32::NEG_INFINITY), &Calibration::uninformed(), 0.9);
        assert!(nothing.abstained && nothing.confidence == 0.0 && nothing.trace.unwrap().withheld.is_none());
    }
}
