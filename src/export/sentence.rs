//! How an encoder's states become one vector, as the files of sentence-transformers beside it say: pooling, at times a
//! projection, the longest input; and the end of a graph that computes it.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::export::onnx::{Attr, DType, Dim, GraphBuilder, Initializer};
use crate::export::quantize::transpose;
use crate::export::weights::Weights;

/// Longest input where the folder does not say.
const DEFAULT_MAX_TOKENS: usize = 512;
/// Smallest length that a vector is divided by, as in torch's `normalize`.
const MIN_NORM: f32 = 1e-12;

/// How token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    Cls,
}

impl Pooling {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
        }
    }
}

/// What is done to an encoder's states.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) pooling: Pooling,
    projection: Option<Projection>,
}

/// A dense layer over the pooled vector, which sentence-t5 and gtr have.
#[derive(Debug)]
struct Projection {
    /// `[in, out]`.
    matrix: Vec<f32>,
    bias: Option<Vec<f32>>,
    tanh: bool,
    out: usize,
}

#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

#[derive(Deserialize)]
struct Module {
    r#type: String,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default)]
    bias: bool,
    activation_function: String,
}

impl Head {
    /// Read what the folder of a model `hidden` wide says; the mean of all tokens where it says nothing.
    ///
    /// # Errors
    /// [`Error::Model`] for a pooling, module or activation that there is no graph for: leaving one out in silence would
    /// change every vector.
    pub(crate) fn read(folder: &Path, hidden: usize) -> Result<Self> {
        let refuse = |problem: String| {
            let hint = "encoders with mean or CLS pooling, and at most one dense layer after it, can be exported";
            Error::model(folder.display().to_string(), problem, hint)
        };
        let modules = folder.join("modules.json");
        let modules: Vec<Module> = if modules.is_file() { json(&modules)? } else { Vec::new() };
        let (mut pooling, mut projection) = (folder.join("1_Pooling"), None);
        let mut before = "";
        for module in &modules {
            let kind = module.r#type.rsplit('.').next().unwrap_or_default();
            match (before, kind) {
                ("", "Transformer") | ("Pooling" | "Dense", "Normalize") => {}
                ("Transformer", "Pooling") => pooling = folder.join(&module.path),
                ("Pooling", "Dense") => projection = Some(Projection::read(&folder.join(&module.path), hidden)?),
                // A dense layer before pooling, as models of late interaction have it, is another graph.
                (_, "Transformer" | "Pooling" | "Dense" | "Normalize") => {
                    return Err(refuse(format!("its module {} is not at its place", module.r#type)));
                }
                _ => return Err(refuse(format!("its module {} has no counterpart in the graph", module.r#type))),
            }
            before = kind;
        }
        let path = pooling.join("config.json");
        if !path.is_file() {
            return Ok(Self { pooling: Pooling::Mean, projection });
        }
        let config: PoolingConfig = json(&path)?;
        let other = config.pooling_mode_max_tokens
            || config.pooling_mode_mean_sqrt_len_tokens
            || config.pooling_mode_weightedmean_tokens
            || config.pooling_mode_lasttoken;
        let pooling = match (config.pooling_mode_mean_tokens, config.pooling_mode_cls_token, other) {
            (true, false, false) => Pooling::Mean,
            (false, true, false) => Pooling::Cls,
            _ => {
                return Err(refuse(format!(
                    "{} asks for a pooling that is neither mean nor CLS alone",
                    path.display()
                )));
            }
        };
        Ok(Self { pooling, projection })
    }

    /// Width of the vectors of a model `hidden` wide.
    pub(crate) fn width(&self, hidden: usize) -> usize {
        self.projection.as_ref().map_or(hidden, |projection| projection.out)
    }

    /// Pool the states `[B,S,hidden]`, 32-bit floats, under the graph's `attention_mask`, project them, and bring them to unit
    /// length: the output `sentence_embedding` `[B,width]`.
    pub(super) fn finish(&self, g: &mut GraphBuilder, states: &str, hidden: usize) {
        let mut pooled = match self.pooling {
            Pooling::Cls => {
                let zero = g.constant(Initializer::i64(&[], &[0]));
                g.op("Gather", &[states, &zero], &[("axis", Attr::Int(1))])
            }
            Pooling::Mean => self.mean(g, states),
        };
        if let Some(projection) = &self.projection {
            let matrix = g.constant(Initializer::f32(&[hidden, projection.out], &projection.matrix));
            pooled = g.op("MatMul", &[&pooled, &matrix], &[]);
            if let Some(bias) = &projection.bias {
                let bias = g.constant(Initializer::f32(&[projection.out], bias));
                pooled = g.op("Add", &[&pooled, &bias], &[]);
            }
            if projection.tanh {
                pooled = g.op("Tanh", &[&pooled], &[]);
            }
        }
        let axis = g.constant(Initializer::i64(&[1], &[-1]));
        let norm = g.op("ReduceL2", &[&pooled, &axis], &[]); // [B,1]
        let least = g.constant(Initializer::f32(&[], &[MIN_NORM]));
        let norm = g.op("Max", &[&norm, &least], &[]);
        g.node("", "Div", &[&pooled, &norm], &["sentence_embedding"], &[]);
        g.output("sentence_embedding", DType::F32, &[Dim::Free("B"), Dim::Fixed(self.width(hidden))]);
    }

    /// `[B,1,S] x [B,S,hidden]`: the sum over real tokens. Their number would cancel in the norm, but not in a projection's bias
    /// or activation.
    fn mean(&self, g: &mut GraphBuilder, states: &str) -> String {
        let mask = g.op("Cast", &["attention_mask"], &[("to", Attr::Int(DType::F32 as i64))]);
        let axis = g.constant(Initializer::i64(&[1], &[1]));
        let row = g.op("Unsqueeze", &[&mask, &axis], &[]);
        let sum = g.op("MatMul", &[&row, states], &[]);
        let sum = g.op("Squeeze", &[&sum, &axis], &[]);
        if self.projection.is_none() {
            return sum;
        }
        let count = g.op("ReduceSum", &[&mask, &axis], &[]); // [B,1]
        g.op("Div", &[&sum, &count], &[])
    }
}

impl Projection {
    fn read(folder: &Path, hidden: usize) -> Result<Self> {
        let config: DenseConfig = json(&folder.join("config.json"))?;
        let refuse = |problem: String, hint: &str| Error::model(folder.display().to_string(), problem, hint);
        let tanh = match config.activation_function.rsplit('.').next().unwrap_or_default() {
            "Identity" => false,
            "Tanh" => true,
            other => {
                let hint = "dense layers with Identity or Tanh can be exported";
                return Err(refuse(format!("its activation `{other}` is not known"), hint));
            }
        };
        if config.in_features != hidden {
            let problem = format!("it takes vectors of width {}, and the model gives {hidden}", config.in_features);
            return Err(refuse(problem, "a file is damaged or of another model: fetch the model again"));
        }
        let weights = Weights::open(folder)?;
        let out = config.out_features;
        let matrix = transpose(&weights.tensor_of("linear.weight", &[out, hidden])?, out, hidden);
        let bias = if config.bias { Some(weights.tensor_of("linear.bias", &[out])?) } else { None };
        Ok(Self { matrix, bias, tanh, out })
    }
}

/// The longest input in tokens that a folder names.
pub(super) fn max_tokens(folder: &Path) -> Result<usize> {
    let path = folder.join("sentence_bert_config.json");
    if !path.is_file() {
        return Ok(DEFAULT_MAX_TOKENS);
    }
    Ok(json::<SentenceConfig>(&path)?.max_seq_length.unwrap_or(DEFAULT_MAX_TOKENS))
}

/// A model's JSON file.
pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    serde_json::from_str(&text).map_err(|e| not_as_it_should_be(e, path))
}

/// The content of the file `path`, read as JSON before.
pub(super) fn of_json<T: DeserializeOwned>(value: Value, path: &Path) -> Result<T> {
    serde_json::from_value(value).map_err(|e| not_as_it_should_be(e, path))
}

fn not_as_it_should_be(error: serde_json::Error, path: &Path) -> Error {
    Error::bad_file(path, format!("is not as it should be: {error}"), "fetch the model again")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is said of a folder with these modules, each in a folder of its name, where `Pooling` asks for CLS.
    fn read(modules: &[&str]) -> Result<Head> {
        let folder = tempfile::tempdir().unwrap();
        let modules: Vec<Value> = modules
            .iter()
            .map(|name| json!({"type": format!("sentence_transformers.models.{name}"), "path": name}))
            .collect();
        std::fs::write(folder.path().join("modules.json"), json!(modules).to_string()).unwrap();
        std::fs::create_dir(folder.path().join("Pooling")).unwrap();
        let cls = json!({"pooling_mode_cls_token": true}).to_string();
        std::fs::write(folder.path().join("Pooling").join("config.json"), cls).unwrap();
        Head::read(folder.path(), 8)
    }

    #[test]
    fn the_pooling_is_read_from_where_its_module_says() {
        assert_eq!(read(&["Transformer", "Pooling", "Normalize"]).unwrap().pooling, Pooling::Cls);
        assert_eq!(read(&["Transformer", "Pooling"]).unwrap().pooling, Pooling::Cls);
        assert_eq!(read(&[]).unwrap().pooling, Pooling::Mean);
    }

    #[test]
    fn modules_in_another_order_are_refused() {
        for modules in [
            &["Pooling", "Transformer"][..],
            &["Transformer", "Dense", "Pooling"],
            &["Transformer", "Dense"],
            &["Transformer", "Normalize"],
            &["Transformer", "Pooling", "Normalize", "Normalize"],
        ] {
            let problem = read(modules).unwrap_err().to_string();
            assert!(problem.contains("is not at its place"), "{modules:?}: {problem}");
        }
    }
}
