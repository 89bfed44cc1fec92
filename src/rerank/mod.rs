//! The cross-encoder: question and passage read together, one score.
//!
//! The question is never cut below half of the model's length, and passages are cut at their end to what
//! is left; what was cut is counted ([`CrossEncoder::cuts`]). Pairs are sorted by length and run in
//! batches of a token budget; scores come back in input order. With [`Patience`], candidates are read in blocks
//! until the rest is hopeless.

pub mod patience;

use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;

pub use patience::Patience;

use crate::error::{Error, Result};
use crate::progress::check_interrupt;
use crate::runtime::batch;
use crate::runtime::device::{Device, check_precision};
use crate::runtime::model_dir::{ModelDir, ModelKind, Prior};
use crate::runtime::session::{Input, RuntimeOptions, Session};
use crate::runtime::tokenizer::{Cut, Prepared, TextTokenizer};

/// A cross-encoder, loaded and ready.
#[derive(Debug)]
pub struct CrossEncoder {
    session: Session,
    tokenizer: TextTokenizer,
    name: String,
    max_tokens: usize,
    output: String,
    takes_types: bool,
    fingerprint: String,
    priors: Vec<Prior>,
    cuts: PairCuts,
}

/// What did not fit of a question, wherever it was read, and of the passages that were read with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PairCuts {
    /// Tokens left out of the question, in every pair.
    pub question_tokens: usize,
    /// Tokens left out of the question where passages are found by meaning.
    pub encoder_question_tokens: usize,
    /// Different words of the question that were not searched for where passages are found by words.
    pub question_words: usize,
    /// Passages whose end was left out.
    pub passages: usize,
    /// Tokens left out of them, in all.
    pub passage_tokens: usize,
}

impl PairCuts {
    /// Whether everything fitted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What did not fit, in words; `None` when everything did.
    pub fn words(&self) -> Option<String> {
        let question = (self.question_tokens > 0).then(|| format!("{} tokens of the question", self.question_tokens));
        let passages = (self.passages > 0)
            .then(|| format!("{} tokens at the end of {} passages", self.passage_tokens, self.passages));
        let pairs: Vec<String> = question.into_iter().chain(passages).collect();
        let encoder = (self.encoder_question_tokens > 0)
            .then(|| format!("the encoder did not read {} tokens of the question", self.encoder_question_tokens));
        let words = (self.question_words > 0)
            .then(|| format!("{} words of the question were not searched for", self.question_words));
        let pairs = (!pairs.is_empty()).then(|| format!("the re-ranker did not read {}", pairs.join(" and ")));
        let parts: Vec<String> = words.into_iter().chain(encoder).chain(pairs).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

impl CrossEncoder {
    /// Load a cross-encoder.
    ///
    /// # Errors
    /// [`Error::Model`] when the folder holds another kind of model; what [`Session::open`] says.
    pub fn open(model: &ModelDir, options: &RuntimeOptions) -> Result<Self> {
        if model.description.kind != ModelKind::CrossEncoder {
            return Err(Error::model(
                model.name(),
                format!("it is of kind {}, and a cross-encoder is needed", model.description.kind.name()),
                "name a cross-encoder: `nunatak models list` shows which models are",
            ));
        }
        let session = Session::open(&model.graph(), options)?;
        check_precision(model, session.device())?;
        let outputs = session.output_names();
        let output = ["score", "logits"].into_iter().find(|o| outputs.contains(o)).or(outputs.first().copied());
        let output = output.unwrap_or_default().to_owned();
        let takes_types = session.input_names().contains(&"token_type_ids");
        Ok(Self {
            tokenizer: TextTokenizer::open(model)?,
            name: model.name(),
            max_tokens: model.description.max_tokens,
            output,
            takes_types,
            fingerprint: model.fingerprint(),
            priors: model.description.priors.clone(),
            cuts: PairCuts::default(),
            session,
        })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        self.session.device()
    }

    /// The model's fingerprint.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What was cut of the last question and its passages.
    pub fn cuts(&self) -> PairCuts {
        self.cuts
    }

    /// One score a passage, in input order; higher is better, and only comparable for one question. A model
    /// with two classes gives the log-odds of the second, "relevant".
    ///
    /// # Errors
    /// [`Error::Interrupted`] on Ctrl-C between two batches; [`Error::Model`] when the graph gives something
    /// else than scores; what the session says.
    pub fn score(&mut self, question: &str, passages: &[String]) -> Result<Vec<f32>> {
        let question = self.begin(question)?;
        self.score_block(&question, passages)
    }

    /// What the score of a first stage counts beside this model's, as its training found: for each that it knows.
    pub fn priors(&self) -> &[Prior] {
        &self.priors
    }

    /// Scores of passages in order, each added to what `prior` gives it: of all, or as `patience` has it of those before
    /// the hopeless rest. `texts` gives the passages of a range.
    ///
    /// # Errors
    /// As [`Self::score`]; what `texts` says.
    pub fn score_until(
        &mut self,
        question: &str,
        prior: &[f32],
        patience: Option<Patience>,
        mut texts: impl FnMut(Range<usize>) -> Result<Vec<String>>,
    ) -> Result<Vec<f32>> {
        let question = self.begin(question)?;
        let count = prior.len();
        let mut score = |range: Range<usize>| -> Result<Vec<f32>> {
            let own = self.score_block(&question, &texts(range.clone())?)?;
            Ok(own.iter().zip(prior.get(range).unwrap_or_default()).map(|(own, prior)| own + prior).collect())
        };
        let Some(patience) = patience else { return score(0..count) };
        let mut scores = Vec::with_capacity(count);
        patience.read(count, |range| {
            let block = score(range)?;
            scores.extend_from_slice(&block);
            Ok::<_, Error>(block)
        })?;
        Ok(scores)
    }

    fn begin(&mut self, question: &str) -> Result<Prepared> {
        let (question, left_out) = self.tokenizer.prepare_within(question, self.max_tokens / 2)?;
        self.cuts = PairCuts { question_tokens: left_out, ..PairCuts::default() };
        Ok(question)
    }

    fn score_block(&mut self, question: &Prepared, passages: &[String]) -> Result<Vec<f32>> {
        let pairs: Vec<Cut> = passages
            .par_iter()
            .map(|passage| self.tokenizer.encode_pair_within(question, passage, self.max_tokens))
            .collect::<Result<_>>()?;
        for pair in &pairs {
            self.cuts.passages += usize::from(pair.left_out > 0);
            self.cuts.passage_tokens += pair.left_out;
        }
        let lengths: Vec<usize> = pairs.iter().map(|p| p.ids.len()).collect();
        let mut scores = vec![0.0; passages.len()];
        for rows in batch::plan(&lengths, batch::token_budget(self.session.device())) {
            check_interrupt(|| "nothing of the passages being scored is kept".to_owned())?;
            let batch: Vec<&Cut> = rows.iter().filter_map(|&r| pairs.get(r)).collect();
            for (row, score) in rows.into_iter().zip(self.run(&batch)?) {
                if let Some(slot) = scores.get_mut(row) {
                    *slot = score;
                }
            }
        }
        Ok(scores)
    }

    fn run(&mut self, pairs: &[&Cut]) -> Result<Vec<f32>> {
        let padded = batch::pad(pairs);
        let shape = [padded.rows, padded.columns];
        let mut inputs =
            vec![("input_ids", Input::I64(&padded.ids, &shape)), ("attention_mask", Input::I64(&padded.mask, &shape))];
        if self.takes_types {
            inputs.push(("token_type_ids", Input::I64(&padded.types, &shape)));
        }
        let output = self.session.run(&inputs, &[&self.output])?.into_iter().next().unwrap_or_default();
        match *output.shape.as_slice() {
            [rows] | [rows, 1] if rows == padded.rows => Ok(output.data),
            [rows, 2] if rows == padded.rows => {
                Ok(output.data.as_chunks::<2>().0.iter().map(|[other, relevant]| relevant - other).collect())
            }
            _ => Err(Error::model(
                &self.name,
                format!(
                    "its output {} has the shape {:?}, and scores are [B], [B,1] or [B,2]",
                    self.output, output.shape
                ),
                "a cross-encoder has one score, or two classes",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::{Attr, DType, Dim, GraphBuilder, Initializer};
    use crate::runtime::tokenizer::tests::WORDS;

    /// A cross-encoder folder whose logits are, for each class, the sum of the ids of the passage's tokens (type
    /// 1) times the class' weight.
    fn summing(weights: &[f32], max_tokens: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut graph = GraphBuilder::new("sum");
        let axes = [Dim::Free("B"), Dim::Free("S")];
        let ids = graph.input("input_ids", DType::I64, &axes);
        let mask = graph.input("attention_mask", DType::I64, &axes);
        let types = graph.input("token_type_ids", DType::I64, &axes);
        let kept = graph.op("Mul", &[&ids, &mask], &[]);
        let kept = graph.op("Mul", &[&kept, &types], &[]);
        let kept = graph.op("Cast", &[&kept], &[("to", Attr::Int(DType::F32 as i64))]);
        let axis = graph.constant(Initializer::i64(&[1], &[1]));
        let sum = graph.op("ReduceSum", &[&kept, &axis], &[("keepdims", Attr::Int(1))]);
        let weights_name = graph.constant(Initializer::f32(&[1, weights.len()], weights));
        graph.node("", "MatMul", &[&sum, &weights_name], &["logits"], &[]);
        graph.output("logits", DType::F32, &[Dim::Free("B"), Dim::Fixed(weights.len())]);
        graph.save(&dir.path().join("model.onnx")).unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), WORDS).unwrap();
        let config = format!("{{\"hidden_size\": 8, \"max_position_embeddings\": {max_tokens}}}");
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        dir
    }

    fn open(dir: &tempfile::TempDir) -> CrossEncoder {
        CrossEncoder::open(&ModelDir::open(dir.path()).unwrap(), &RuntimeOptions::default()).unwrap()
    }

    #[test]
    fn scores_see_the_passage_alone_and_keep_the_order() {
        let dir = summing(&[1.0], 32);
        let passages: Vec<String> = ["ice", "rock ice floats", ""].map(String::from).into();
        // The separator after the passage (2) is of the passage.
        let expected = [4.0 + 2.0, 8.0 + 4.0 + 7.0 + 2.0, 2.0];
        assert_eq!(open(&dir).score("rock rock", &passages).unwrap(), expected);
        assert_eq!(open(&dir).score("rock", &[]).unwrap(), Vec::<f32>::new());
    }

    #[test]
    fn two_classes_give_log_odds() {
        let dir = summing(&[1.0, 3.0], 32);
        assert_eq!(open(&dir).score("rock", &["ice".into()]).unwrap(), [12.0]);
    }

    #[test]
    fn the_question_outlives_a_long_passage_and_cuts_are_counted() {
        let dir = summing(&[1.0], 8);
        let mut model = open(&dir);
        // 8 tokens: [CLS] 4 of the question [SEP] 1 of the passage [SEP].
        let scores = model.score("ice ice ice ice ice", &["rock rock rock".into()]).unwrap();
        assert_eq!(scores, [8.0 + 2.0]);
        let cuts = PairCuts { question_tokens: 1, passages: 1, passage_tokens: 2, ..PairCuts::default() };
        assert_eq!(model.cuts(), cuts);
        let pair = "the re-ranker did not read 1 tokens of the question and 2 tokens at the end of 1 passages";
        assert_eq!(cuts.words().unwrap(), pair);
        let all = PairCuts { encoder_question_tokens: 3, question_words: 4, ..cuts };
        let first = "4 words of the question were not searched for; the encoder did not read 3 tokens of the question";
        assert_eq!(all.words().unwrap(), format!("{first}; {pair}"));
        model.score("ice", &["rock".into()]).unwrap();
        assert!(model.cuts().is_empty(), "cuts are of the last question");
    }

    #[test]
    fn with_patience_the_hopeless_rest_is_not_read() {
        let dir = summing(&[1.0], 32);
        let passages: Vec<String> = (0..40).map(|i| if i < 2 { "rock rock" } else { "ice" }.to_owned()).collect();
        let mut asked = Vec::new();
        let mut read = |patience| {
            let texts = |range: Range<usize>| {
                asked.push(range.clone());
                Ok(passages[range].to_vec())
            };
            open(&dir).score_until("rock", &vec![0.0; passages.len()], patience, texts).unwrap()
        };
        let all = read(None);
        assert_eq!(read(Some(Patience { candidates: 10, keep: 2 })), all[..16]);
        assert_eq!(read(Some(Patience { candidates: 40, keep: 2 })), all);
        assert_eq!(asked, [0..40, 0..16, 0..16, 16..32, 32..40]);
    }
}
