//! Sizes and habits of a language model from the files of a published folder: `config.json`,
//! `generation_config.json`, `tokenizer_config.json`, `chat_template.jinja`.
//!
//! A setting that would change the numbers and is not known here is refused by name.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::export::llama_source::{LmConfig, WIDEST_HEAD};
use crate::export::rope::{self, Scaling};

#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_epsilon")]
    rms_norm_eps: f32,
    #[serde(default = "default_activation")]
    hidden_act: String,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    /// Where newer configurations keep both of the above.
    rope_parameters: Option<RopeParameters>,
    sliding_window: Option<usize>,
    /// Only Qwen has it, and there it decides.
    use_sliding_window: Option<bool>,
    #[serde(default)]
    tie_word_embeddings: bool,
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    /// Its old name; some configurations have both.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// One id or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Deserialize)]
struct Generation {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Value>,
}

fn default_epsilon() -> f32 {
    1e-6
}

fn default_activation() -> String {
    "silu".to_owned()
}

/// Read the configuration of the model in `folder`.
pub(super) fn config(folder: &Path) -> Result<LmConfig> {
    let path = folder.join("config.json");
    let bad =
        |problem: String| Error::bad_file(&path, problem, "use a model of the Llama, Mistral, Qwen2 or Qwen3 family");
    let config: Config = json(&path)?;
    let family = match config.model_type.as_str() {
        "llama" => "llama",
        "mistral" => "mistral",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        other => return Err(bad(format!("it describes a model of the type `{other}`"))),
    };
    if config.hidden_act != "silu" {
        return Err(bad(format!("its activation `{}` is not known", config.hidden_act)));
    }
    let heads = config.num_attention_heads;
    let head_dim = config.head_dim.or(config.hidden_size.checked_div(heads)).unwrap_or(0);
    if head_dim > WIDEST_HEAD {
        return Err(bad(format!("its heads are {head_dim} wide, beyond any model")));
    }
    let kv_heads = config.num_key_value_heads.unwrap_or(heads);
    let window = match (family, config.use_sliding_window) {
        ("mistral", _) => config.sliding_window,
        (_, Some(true)) => return Err(bad("it asks for sliding windows in some of its layers only".into())),
        _ => None,
    };
    let rope = config.rope_parameters.as_ref().or(config.rope_scaling.as_ref());
    let theta = config.rope_theta.or(rope.and_then(|r| r.rope_theta)).unwrap_or(rope::DEFAULT_THETA);
    let scaling = rope.map_or(Ok(Scaling::None), scaling).map_err(bad)?;
    let generation = folder.join("generation_config.json");
    let generation: Option<Generation> = if generation.is_file() { Some(json(&generation)?) } else { None };
    let eos = match generation.and_then(|g| g.eos_token_id).or(config.eos_token_id) {
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Many(ids)) => ids,
        None => Vec::new(),
    };
    Ok(LmConfig {
        family,
        layers: config.num_hidden_layers,
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        heads,
        kv_heads,
        head_dim,
        vocab: config.vocab_size,
        context: config.max_position_embeddings,
        norm_eps: config.rms_norm_eps,
        inverse_frequencies: rope::inverse_frequencies(theta, head_dim, scaling),
        sliding_window: window,
        tied: config.tie_word_embeddings,
        eos,
        chat_template: chat_template(folder)?,
    })
}

fn scaling(rope: &RopeParameters) -> Result<Scaling, String> {
    match rope.rope_type.as_deref().or(rope.r#type.as_deref()) {
        None | Some("default") => Ok(Scaling::None),
        Some("llama3") => {
            let (factor, low, high) = (rope.factor, rope.low_freq_factor, rope.high_freq_factor);
            match (factor, low, high, rope.original_max_position_embeddings) {
                (Some(factor), Some(low_freq_factor), Some(high_freq_factor), Some(original_context)) => {
                    Ok(Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context })
                }
                _ => Err("its llama3 scaling of rotary positions lacks a number".into()),
            }
        }
        Some(other) => Err(format!("its rotary positions are scaled by `{other}`, which is not known")),
    }
}

/// The template from its own file or from `tokenizer_config.json`, where it may be one of several.
fn chat_template(folder: &Path) -> Result<Option<String>> {
    let own = folder.join("chat_template.jinja");
    if own.is_file() {
        return std::fs::read_to_string(&own).map(Some).map_err(Error::file("read", &own));
    }
    let path = folder.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(match json::<TokenizerConfig>(&path)?.chat_template {
        Some(Value::Array(named)) => {
            named.iter().find(|t| t.get("name").is_some_and(|n| n == "default")).and_then(|t| text(t.get("template")?))
        }
        Some(template) => text(&template),
        None => None,
    })
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    serde_json::from_str(&text).map_err(|e| {
        Error::bad_file(path, format!("is not what a language model's folder has: {e}"), "fetch the model again")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(changes: &Value) -> tempfile::TempDir {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "eos_token_id": 7,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        folder
    }

    fn problem(changes: &Value) -> String {
        config(folder(changes).path()).unwrap_err().to_string()
    }

    #[test]
    fn a_plain_configuration_is_read() {
        let config = config(folder(&json!({})).path()).unwrap();
        assert_eq!((config.head_dim, config.kv_heads, config.context), (16, 2, 256));
        assert_eq!((config.eos, config.sliding_window, config.chat_template), (vec![7], None, None));
    }

    #[test]
    fn what_would_change_the_numbers_is_refused_by_name() {
        assert!(problem(&json!({"model_type": "gemma"})).contains("`gemma`"));
        assert!(problem(&json!({"hidden_act": "gelu"})).contains("`gelu`"));
        assert!(problem(&json!({"rope_scaling": {"type": "yarn", "factor": 4.0}})).contains("`yarn`"));
        assert!(problem(&json!({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}})).contains("lacks a number"));
        assert!(problem(&json!({"model_type": "qwen2", "use_sliding_window": true})).contains("sliding"));
        assert!(problem(&json!({"vocab_size": "many"})).contains("not what a language model's folder has"));
    }

    #[test]
    fn the_kind_of_scaling_may_have_either_name_or_both() {
        for kind in [json!({"type": "llama3"}), json!({"type": "llama3", "rope_type": "llama3"})] {
            let mut scaling = json!({
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            });
            scaling.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
            let scaled = config(folder(&json!({"rope_scaling": scaling})).path()).unwrap().inverse_frequencies;
            let plain = config(folder(&json!({})).path()).unwrap().inverse_frequencies;
            assert!((scaled[7] - plain[7] / 8.0).abs() < 1e-9);
        }
    }

    #[test]
    fn only_mistral_slides_its_window() {
        let slides = |family: &str| {
            let changes = json!({"model_type": family, "sliding_window": 32});
            config(folder(&changes).path()).unwrap().sliding_window
        };
        assert_eq!((slides("mistral"), slides("qwen2")), (Some(32), None));
    }

    #[test]
    fn generation_settings_and_templates_are_found() {
        let folder = folder(&json!({"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}));
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("generation_config.json", r#"{"eos_token_id": [3, 4]}"#);
        write("tokenizer_config.json", r#"{"chat_template": [{"name": "default", "template": "T"}]}"#);
        let read = config(folder.path()).unwrap();
        assert_eq!((read.eos, read.chat_template.as_deref()), (vec![3, 4], Some("T")));
        assert!((read.inverse_frequencies[4] - 0.1).abs() < 1e-6);
        write("chat_template.jinja", "U");
        assert_eq!(config(folder.path()).unwrap().chat_template.as_deref(), Some("U"));
    }
}
