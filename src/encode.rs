//! The bi-encoder: text to unit vector.
//!
//! Texts are tokenised, cut to the model's length (counted, see [`Encoder::truncation`]), sorted by length
//! and run in batches of a token budget. Vectors come back in input order and of unit length, so that their
//! inner product is their cosine.
//!
//! The same texts in one call give the same bytes every time. The int8 graph scales its activations over
//! the whole batch, so a text's vector depends a little on the texts it is batched with: alone or among 63
//! others, 64 passages agreed to a cosine of 0.994 on average and 0.990 at least, which is what int8 costs
//! against fp32 as well. fp32 differs by rounding only.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::progress::check_interrupt;
use crate::runtime::batch::{self, Padded};
use crate::runtime::device::{Device, check_precision};
use crate::runtime::model_dir::{ModelDir, ModelKind};
use crate::runtime::session::{Input, Output, RuntimeOptions, Session};
use crate::runtime::tokenizer::{Cut, TextTokenizer};

/// Texts that are tokenised and sorted together. Larger windows pad less and tokenise further ahead of the
/// session; calls of [`Encoder::encode`] with several windows overlap tokenising and running.
pub const WINDOW: usize = 1024;

/// A bi-encoder, loaded and ready.
#[derive(Debug)]
pub struct Encoder {
    session: Session,
    tokenizer: Arc<TextTokenizer>,
    name: String,
    dim: usize,
    max_tokens: usize,
    cls: bool,
    output: String,
    takes_types: bool,
    token_budget: usize,
    fingerprint: String,
    truncation: Truncation,
}

/// What did not fit a model's length, over all calls so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Truncation {
    /// Texts that were cut.
    pub texts: u64,
    /// Tokens that were left out of them.
    pub tokens: u64,
}

impl Truncation {
    /// Count a text of which so many tokens were left out.
    pub(crate) fn count(&mut self, left_out: usize) {
        self.texts += u64::from(left_out > 0);
        self.tokens += left_out as u64;
    }
}

impl Encoder {
    /// Load an encoder.
    ///
    /// # Errors
    /// [`Error::Model`] when the folder holds another kind of model or its graph lacks what an encoder
    /// needs; what [`Session::open`] says.
    pub fn open(model: &ModelDir, options: &RuntimeOptions) -> Result<Self> {
        let ModelKind::Encoder { pooling } = &model.description.kind else {
            return Err(Error::model(
                model.name(),
                format!("it is of kind {}, and an encoder is needed", model.description.kind.name()),
                "name an encoder: `nunatak models list` shows which models are",
            ));
        };
        let session = Session::open(&model.graph(), options)?;
        check_precision(model, session.device())?;
        let outputs = session.output_names();
        let known = ["sentence_embedding", "last_hidden_state", "token_embeddings"];
        let output = known.into_iter().find(|o| outputs.contains(o)).or(outputs.first().copied());
        let output = output.unwrap_or_default().to_owned();
        let takes_types = session.input_names().contains(&"token_type_ids");
        Ok(Self {
            tokenizer: Arc::new(TextTokenizer::open(model)?),
            name: model.name(),
            dim: model.description.hidden,
            max_tokens: model.description.max_tokens,
            cls: pooling == "cls",
            output,
            takes_types,
            token_budget: batch::token_budget(session.device()),
            fingerprint: model.fingerprint(),
            truncation: Truncation::default(),
            session,
        })
    }

    /// Length of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's fingerprint: an index holds vectors of one fingerprint only.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Longest text in tokens, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        self.session.device()
    }

    /// What was cut so far.
    pub fn truncation(&self) -> Truncation {
        self.truncation
    }

    /// Tokens of `texts` as the model gets them, cut where they are too long.
    pub fn count_tokens(&self, texts: &[String]) -> Result<usize> {
        Ok(tokenise(&self.tokenizer, self.max_tokens, texts)?.iter().map(|cut| cut.ids.len()).sum())
    }

    /// Vectors of `texts`: `texts.len() * dim` numbers, row-major, in input order, each row of unit length.
    ///
    /// # Errors
    /// [`Error::Interrupted`] on Ctrl-C between two batches; what the session says.
    pub fn encode(&mut self, texts: &[String]) -> Result<Vec<f32>> {
        let mut vectors = vec![0.0; texts.len() * self.dim];
        let windows: Vec<Range<usize>> =
            (0..texts.len()).step_by(WINDOW).map(|start| start..(start + WINDOW).min(texts.len())).collect();
        if let [only] = windows.as_slice() {
            let cuts = tokenise(&self.tokenizer, self.max_tokens, texts)?;
            self.run_window(&cuts, only.start, &mut vectors)?;
            return Ok(vectors);
        }
        // A thread tokenises, at most two windows ahead, while the session runs.
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let (tokenizer, max_tokens, ahead) = (self.tokenizer.clone(), self.max_tokens, windows.clone());
            scope.spawn(move || {
                for window in ahead {
                    let cuts = texts.get(window).map_or(Ok(Vec::new()), |t| tokenise(&tokenizer, max_tokens, t));
                    if sender.send(cuts).is_err() {
                        return;
                    }
                }
            });
            for window in windows {
                let cuts = receiver.recv().map_err(Error::internal("tokenising"))??;
                self.run_window(&cuts, window.start, &mut vectors)?;
            }
            Ok(vectors)
        })
    }

    /// Run the texts of a window and lay their vectors down from row `first` on.
    fn run_window(&mut self, cuts: &[Cut], first: usize, vectors: &mut [f32]) -> Result<()> {
        for cut in cuts {
            self.truncation.count(cut.left_out);
        }
        let lengths: Vec<usize> = cuts.iter().map(|c| c.ids.len()).collect();
        for rows in batch::plan(&lengths, self.token_budget) {
            check_interrupt(|| "nothing of the texts being encoded is kept".to_owned())?;
            let texts: Vec<&Cut> = rows.iter().filter_map(|&r| cuts.get(r)).collect();
            let padded = batch::pad(&texts);
            let output = self.run(&padded)?;
            for (row, text) in rows.into_iter().enumerate() {
                let start = (first + text) * self.dim;
                let Some(vector) = vectors.get_mut(start..start + self.dim) else { continue };
                pool(&output, &padded, row, self.cls, vector);
                normalise(vector);
            }
        }
        Ok(())
    }

    fn run(&mut self, padded: &Padded) -> Result<Output> {
        let shape = [padded.rows, padded.columns];
        let mut inputs =
            vec![("input_ids", Input::I64(&padded.ids, &shape)), ("attention_mask", Input::I64(&padded.mask, &shape))];
        if self.takes_types {
            inputs.push(("token_type_ids", Input::I64(&padded.types, &shape)));
        }
        let output = self.session.run(&inputs, &[&self.output])?.into_iter().next().unwrap_or_default();
        let fits = match *output.shape.as_slice() {
            [rows, dim] => (rows, dim) == (padded.rows, self.dim),
            [rows, columns, dim] => (rows, columns, dim) == (padded.rows, padded.columns, self.dim),
            _ => false,
        };
        if fits {
            return Ok(output);
        }
        Err(Error::model(
            &self.name,
            format!(
                "its output {} has the shape {:?}, and an encoder of width {} gives [B,{}] or [B,S,{}]",
                self.output, output.shape, self.dim, self.dim, self.dim
            ),
            "check that the graph and its config.json belong together",
        ))
    }
}

fn tokenise(tokenizer: &TextTokenizer, max_tokens: usize, texts: &[String]) -> Result<Vec<Cut>> {
    texts.par_iter().map(|text| tokenizer.encode_within(text, max_tokens)).collect()
}

/// The vector of one row of the graph's output: the row itself if the graph pools, else the first token's
/// vector or the mean over the tokens that are not padding.
fn pool(output: &Output, padded: &Padded, row: usize, cls: bool, vector: &mut [f32]) {
    let dim = vector.len();
    if output.shape.len() == 2 {
        vector.copy_from_slice(&output.data[row * dim..(row + 1) * dim]);
        return;
    }
    let tokens = &output.data[row * padded.columns * dim..(row + 1) * padded.columns * dim];
    let mask = &padded.mask[row * padded.columns..(row + 1) * padded.columns];
    let wanted = if cls { 1 } else { padded.columns };
    vector.fill(0.0);
    for (token, _) in tokens.chunks_exact(dim).zip(mask).take(wanted).filter(|(_, m)| **m == 1) {
        for (sum, x) in vector.iter_mut().zip(token) {
            *sum += x;
        }
    }
    // No division by the count: the caller brings the vector to unit length anyway.
}

/// Scale to unit length; the zero vector stays what it is.
fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if length > 0.0 {
        for x in vector {
            *x = (f64::from(*x) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::{DType, Dim, GraphBuilder, Initializer};
    use crate::runtime::tokenizer::tests::WORDS;

    /// An encoder folder as a user may bring it, whose token vectors are rows of `table` (width 2).
    fn table_encoder(table: &[f32], pooling: &str, max_tokens: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut graph = GraphBuilder::new("table");
        let axes = [Dim::Free("B"), Dim::Free("S")];
        let ids = graph.input("input_ids", DType::I64, &axes);
        graph.input("attention_mask", DType::I64, &axes);
        let table = graph.init("table", Initializer::f32(&[table.len() / 2, 2], table));
        graph.node("", "Gather", &[&table, &ids], &["last_hidden_state"], &[]);
        graph.output("last_hidden_state", DType::F32, &[Dim::Free("B"), Dim::Free("S"), Dim::Fixed(2)]);
        graph.save(&dir.path().join("model.onnx")).unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), WORDS).unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        std::fs::write(dir.path().join("1_Pooling/config.json"), format!("{{\"{pooling}\": true}}")).unwrap();
        let length = format!("{{\"max_seq_length\": {max_tokens}}}");
        std::fs::write(dir.path().join("sentence_bert_config.json"), length).unwrap();
        dir
    }

    /// Vectors by token: [PAD] would be seen at once, [CLS] points up, `ice` right, `rock` left.
    fn table() -> Vec<f32> {
        let mut table = vec![0.0; 24];
        table[0..2].copy_from_slice(&[100.0, 100.0]);
        table[2..4].copy_from_slice(&[0.0, 3.0]);
        table[8..10].copy_from_slice(&[4.0, 0.0]);
        table[16..18].copy_from_slice(&[-4.0, 0.0]);
        table
    }

    fn open(dir: &tempfile::TempDir) -> Encoder {
        Encoder::open(&ModelDir::open(dir.path()).unwrap(), &RuntimeOptions::default()).unwrap()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn a_user_s_graph_is_pooled_by_mean_without_its_padding() {
        let dir = table_encoder(&table(), "pooling_mode_mean_tokens", 16);
        let mut encoder = open(&dir);
        let vectors = encoder.encode(&texts(&["ice", "rock ice rock ice rock"])).unwrap();
        // [CLS] ice [SEP] = (0,3) + (4,0) + (0,0), and 3-4-5 is a right triangle; the other is (-4,3).
        assert_eq!(vectors, [0.8, 0.6, -0.8, 0.6]);
    }

    #[test]
    fn cls_pooling_takes_the_first_token() {
        let dir = table_encoder(&table(), "pooling_mode_cls_token", 16);
        assert_eq!(open(&dir).encode(&texts(&["ice", "rock rock"])).unwrap(), [0.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let dir = table_encoder(&table(), "pooling_mode_mean_tokens", 4);
        let mut encoder = open(&dir);
        encoder.encode(&texts(&["ice", "ice ice rock rock rock", "ice ice ice"])).unwrap();
        assert_eq!(encoder.truncation(), Truncation { texts: 2, tokens: 4 });
    }

    #[test]
    fn many_windows_come_back_in_input_order() {
        let dir = table_encoder(&table(), "pooling_mode_mean_tokens", 16);
        let mut encoder = open(&dir);
        let many: Vec<String> =
            (0..2 * WINDOW + 100).map(|i| ["ice", "rock", "ice ice ice"][i % 3].to_owned()).collect();
        let vectors = encoder.encode(&many).unwrap();
        let few = encoder.encode(&many[..3]).unwrap();
        assert_eq!(vectors.len(), many.len() * encoder.dim());
        assert!(vectors.chunks(6).all(|three| three == &few[..three.len()]));
        assert_eq!(encoder.encode(&[]).unwrap(), Vec::<f32>::new());
    }

    /// The int8 graph scales activations over the batch; this is how little it matters.
    #[test]
    fn a_vector_depends_little_on_the_texts_beside_it() {
        let options = RuntimeOptions::default();
        let model = crate::runtime::setup::model("all-MiniLM-L6-v2", &options, &crate::progress::Quiet).unwrap();
        let mut encoder = Encoder::open(&model, &options).unwrap();
        let passages = include_str!("cli/demo/passages.jsonl").lines().take(64).map(str::to_owned);
        let passages: Vec<String> = passages.collect();
        let together = encoder.encode(&passages).unwrap();
        let cosines: Vec<f32> = passages
            .iter()
            .zip(together.chunks_exact(encoder.dim()))
            .map(|(passage, vector)| {
                let alone = encoder.encode(std::slice::from_ref(passage)).unwrap();
                alone.iter().zip(vector).map(|(a, b)| a * b).sum()
            })
            .collect();
        let (least, mean) = (cosines.iter().copied().fold(1.0, f32::min), cosines.iter().sum::<f32>() / 64.0);
        assert!(least > 0.985 && mean > 0.993, "cosine {mean} on average, {least} at least");
        assert_eq!(encoder.encode(&passages).unwrap(), together);
    }

    #[test]
    fn another_kind_of_model_is_refused() {
        let dir = table_encoder(&table(), "pooling_mode_mean_tokens", 16);
        let mut model = ModelDir::open(dir.path()).unwrap();
        model.description.kind = ModelKind::CrossEncoder;
        let error = Encoder::open(&model, &RuntimeOptions::default()).unwrap_err();
        assert!(error.to_string().contains("kind cross-encoder"));
    }
}
