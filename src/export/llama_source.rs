//! Where a language model's sizes, weights and tokenizer come from, under one set of names.
//!
//! A GGUF file and a safetensors folder say the same things in different words. Here they become one
//! [`LmSource`]: the tensor names are those of the published safetensors files, and rotary positions turn
//! the halves of a head (never neighbouring pairs, as llama.cpp stores Llama's rows).

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::export::gguf::Gguf;
use crate::export::rope::{self, Scaling};
use crate::export::weights::Weights;
use crate::export::{gguf_tokenizer, llama_folder};

/// The sizes and habits of a model.
#[derive(Debug, Clone)]
pub(crate) struct LmConfig {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub family: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    /// Longest window that the model was made for.
    pub context: usize,
    pub norm_eps: f32,
    /// Radians that each pair of a head turns by from one position to the next: `head_dim / 2` numbers.
    pub inverse_frequencies: Vec<f32>,
    /// How many tokens back attention sees, the token itself included; `None` for all.
    pub sliding_window: Option<usize>,
    /// Whether logits come from the embedding table.
    pub tied: bool,
    pub eos: Vec<u32>,
    pub chat_template: Option<String>,
}

/// Tables of positions grow with the window; a model made for more is exported for this much.
pub(crate) const LONGEST_CONTEXT: usize = 131_072;
/// Twice the widest head known; checked first, because tables are made from it.
pub(crate) const WIDEST_HEAD: usize = 1024;
/// Far above any model; keeps products of sizes from a damaged file within bounds.
const LARGEST_SIZE: usize = 1 << 24;

impl LmConfig {
    /// What about the sizes cannot be, if anything.
    fn fault(&self) -> Option<String> {
        let Self { layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, context, .. } = *self;
        let sizes = [layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, context];
        if !sizes.iter().all(|n| (1..=LARGEST_SIZE).contains(n)) {
            return Some("one of its sizes is zero or beyond any model".into());
        }
        if !head_dim.is_multiple_of(2) || !heads.is_multiple_of(kv_heads) {
            return Some(format!(
                "its {heads} heads, {kv_heads} key heads and head width {head_dim} do not fit together"
            ));
        }
        None
    }
}

/// An opened model.
#[derive(Debug)]
pub(crate) struct LmSource {
    pub path: PathBuf,
    pub config: LmConfig,
    /// The content of its tokenizer.json.
    pub tokenizer: String,
    tensors: Tensors,
}

#[derive(Debug)]
enum Tensors {
    Gguf(Gguf),
    Folder(Weights),
}

impl LmSource {
    /// Open a GGUF file, a folder that holds exactly one, or a safetensors folder.
    ///
    /// # Errors
    /// [`Error::BadFile`] or [`Error::Model`] naming what is missing, damaged or not known.
    pub fn open(path: &Path) -> Result<Self> {
        let mut source =
            if holds_safetensors(path) { Self::from_folder(path)? } else { Self::from_gguf(&gguf_in(path)?)? };
        if let Some(fault) = source.config.fault() {
            return Err(Error::bad_file(&source.path, fault, "fetch the model again"));
        }
        source.config.context = source.config.context.min(LONGEST_CONTEXT);
        Ok(source)
    }

    fn from_folder(path: &Path) -> Result<Self> {
        let config = llama_folder::config(path)?;
        let tokenizer = path.join("tokenizer.json");
        let tokenizer = std::fs::read_to_string(&tokenizer).map_err(Error::file("read", &tokenizer))?;
        Ok(Self { path: path.to_path_buf(), config, tokenizer, tensors: Tensors::Folder(Weights::open(path)?) })
    }

    fn from_gguf(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let config = gguf_config(&gguf)?;
        let tokenizer = gguf_tokenizer::tokenizer_json(&gguf)?;
        Ok(Self { path: gguf.path().to_path_buf(), config, tokenizer, tensors: Tensors::Gguf(gguf) })
    }

    /// Whether there is a tensor of this published name.
    pub fn contains(&self, name: &str) -> bool {
        match &self.tensors {
            Tensors::Gguf(gguf) => gguf.contains(&gguf_name(name)),
            Tensors::Folder(weights) => weights.contains(name),
        }
    }

    /// A tensor by its published name, which must have this shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match &self.tensors {
            Tensors::Folder(weights) => weights.tensor_of(name, shape),
            Tensors::Gguf(gguf) => {
                let own = gguf_name(name);
                let found = gguf.shape(&own)?;
                if found != shape {
                    return Err(Error::bad_file(
                        &self.path,
                        format!("tensor {own} has shape {found:?}, but its metadata asks for {shape:?}"),
                        "fetch the file again, or use another conversion of the model",
                    ));
                }
                let data = gguf.tensor(&own)?;
                let paired = name.contains(".q_proj.") || name.contains(".k_proj.");
                if self.config.family == "llama" && paired {
                    return Ok(halves_from_pairs(&data, shape, self.config.head_dim));
                }
                Ok(data)
            }
        }
    }
}

/// Whether `path` is a folder of safetensors. A config.json alone does not make it one: publishers put theirs beside a
/// GGUF file, too.
fn holds_safetensors(path: &Path) -> bool {
    let has = |name: &str| path.join(name).is_file();
    let weights = has("model.safetensors") || has("model.safetensors.index.json");
    has("config.json") && (weights || gguf_in(path).is_err())
}

/// The GGUF file that is meant by `path`.
fn gguf_in(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::file("read", path))? {
        let file = entry.map_err(Error::file("read", path))?.path();
        if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            found.push(file);
        }
    }
    found.sort();
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(Error::bad_file(
            path,
            "it holds neither a config.json nor a .gguf file",
            "give a model folder in the safetensors format, or a GGUF file",
        )),
        (Some(_), more) => Err(Error::bad_file(
            path,
            format!("it holds {} GGUF files", more + 1),
            "give the one to use (a model split over several files must be merged first)",
        )),
    }
}

fn gguf_config(gguf: &Gguf) -> Result<LmConfig> {
    let architecture = gguf.text("general.architecture").unwrap_or_default();
    // llama.cpp files Mistral under llama.
    let family = match architecture {
        "llama" => "llama",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        other => {
            return Err(Error::bad_file(
                gguf.path(),
                format!("it holds a model of the architecture `{other}`"),
                "use a model of the Llama, Mistral, Qwen2 or Qwen3 family",
            ));
        }
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let bad = |problem: String| Error::bad_file(gguf.path(), problem, "use another conversion of the model");
    let need = |name: &str| {
        let count = gguf.count(&key(name)).filter(|&n| n > 0);
        count.ok_or_else(|| bad(format!("its metadata has no usable {}", key(name))))
    };
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_dim = gguf.count(&key("attention.key_length")).unwrap_or(hidden / heads);
    if head_dim > WIDEST_HEAD {
        return Err(bad(format!("its heads are {head_dim} wide, beyond any model")));
    }
    if gguf.count(&key("attention.value_length")).is_some_and(|n| n != head_dim) {
        return Err(bad("its keys and values are of different widths".into()));
    }
    if gguf.count(&key("rope.dimension_count")).is_some_and(|n| n != head_dim) {
        return Err(bad("its rotary positions turn only a part of each head".into()));
    }
    let stretch = match gguf.text(&key("rope.scaling.type")) {
        Some("none") => 1.0,
        // llama.cpp takes a factor without a word for this, too; the second name is what old converters called it.
        None | Some("linear") => ["rope.scaling.factor", "rope.scale_linear"]
            .into_iter()
            .filter_map(|name| gguf.float(&key(name)))
            .find(|&factor| factor > 0.0)
            .unwrap_or(1.0),
        Some(other) => return Err(bad(format!("its rotary positions are scaled by `{other}`, which is not known"))),
    };
    let theta = gguf.float(&key("rope.freq_base")).unwrap_or(rope::DEFAULT_THETA);
    let mut inverse_frequencies = rope::inverse_frequencies(theta, head_dim, Scaling::None);
    inverse_frequencies.iter_mut().for_each(|f| *f /= stretch as f32);
    if gguf.contains(ROPE_DIVISORS) {
        let divisors = gguf.tensor(ROPE_DIVISORS)?;
        if divisors.len() != inverse_frequencies.len() {
            return Err(bad(format!("{ROPE_DIVISORS} does not fit the width of a head")));
        }
        inverse_frequencies.iter_mut().zip(divisors).for_each(|(f, d)| *f /= d);
    }
    let ends = ["eos_token_id", "eot_token_id", "eom_token_id"];
    let mut eos: Vec<u32> = ends
        .iter()
        .filter_map(|name| gguf.count(&format!("tokenizer.ggml.{name}")))
        .filter_map(|id| u32::try_from(id).ok())
        .collect();
    eos.dedup();
    Ok(LmConfig {
        family,
        layers: need("block_count")?,
        hidden,
        intermediate: need("feed_forward_length")?,
        heads,
        kv_heads: gguf.count(&key("attention.head_count_kv")).unwrap_or(heads),
        head_dim,
        vocab: gguf.shape("token_embd.weight")?.first().copied().unwrap_or(0),
        context: need("context_length")?,
        norm_eps: gguf.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5) as f32,
        inverse_frequencies,
        sliding_window: gguf.count(&key("attention.sliding_window")).filter(|&n| n > 0),
        tied: !gguf.contains("output.weight"),
        eos,
        chat_template: gguf.text("tokenizer.chat_template").map(str::to_owned),
    })
}

/// Llama 3's stretched positions, as llama.cpp writes them: what each frequency is divided by.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// The GGUF name of a published tensor name.
fn gguf_name(name: &str) -> String {
    let renamed = name.replace("model.layers.", "blk.");
    [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(renamed, |name, (published, gguf)| name.replace(published, gguf))
}

/// Rows of a query or key layer `[heads * head_dim, ..]`, put back from llama.cpp's order (the two rows that
/// rotary positions turn together are neighbours) into the published one (they are half a head apart).
fn halves_from_pairs(data: &[f32], shape: &[usize], head_dim: usize) -> Vec<f32> {
    let rows = shape.first().copied().unwrap_or(0);
    let width = data.len() / rows.max(1);
    let mut out = Vec::with_capacity(data.len());
    for row in 0..rows {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        let from = head * head_dim + 2 * pair + half;
        out.extend_from_slice(&data[from * width..(from + 1) * width]);
    }
    out
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file::{self, Value as Meta};
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn names_are_translated() {
        assert_eq!(gguf_name("model.layers.12.self_attn.q_proj.bias"), "blk.12.attn_q.bias");
        assert_eq!(gguf_name("model.layers.0.post_attention_layernorm.weight"), "blk.0.ffn_norm.weight");
        assert_eq!(gguf_name("model.norm.weight"), "output_norm.weight");
        assert_eq!(gguf_name("lm_head.weight"), "output.weight");
    }

    /// The frequencies of a GGUF that says this of its positions besides its sizes; the keys without their `llama.`.
    fn frequencies(said: &[(&str, Meta)]) -> Result<Vec<f32>> {
        let sizes = [
            ("embedding_length", 8),
            ("attention.head_count", 1),
            ("block_count", 1),
            ("feed_forward_length", 8),
            ("context_length", 16),
        ];
        let mut metadata = vec![("general.architecture".to_owned(), Meta::String("llama".into()))];
        metadata.extend(sizes.map(|(key, n)| (format!("llama.{key}"), Meta::U32(n))));
        metadata.extend(said.iter().map(|(key, value)| (format!("llama.{key}"), value.clone())));
        let metadata: Vec<(&str, &Meta)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let table = Tensor::zeros((10, 8), DType::F32, &Device::Cpu).unwrap();
        let table = QTensor::quantize(&table, GgmlDType::F32).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        gguf_file::write(file.as_file_mut(), &metadata, &[("token_embd.weight", &table)]).unwrap();
        gguf_config(&Gguf::open(file.path()).unwrap()).map(|config| config.inverse_frequencies)
    }

    #[test]
    fn positions_of_a_gguf_are_stretched_with_and_without_a_word_for_it() {
        let word = |text: &str| ("rope.scaling.type", Meta::String(text.to_owned()));
        let factor = || ("rope.scaling.factor", Meta::F32(4.0));
        let old = || ("rope.scale_linear", Meta::F32(4.0));
        let plain = frequencies(&[]).unwrap();
        let stretched: Vec<f32> = plain.iter().map(|f| f / 4.0).collect();
        for said in [vec![factor()], vec![old()], vec![word("linear"), factor()], vec![word("linear"), old()]] {
            assert_eq!(frequencies(&said).unwrap(), stretched, "{said:?}");
        }
        let zero = ("rope.scaling.factor", Meta::F32(0.0));
        for said in [vec![word("none"), factor()], vec![word("linear")], vec![zero]] {
            assert_eq!(frequencies(&said).unwrap(), plain, "{said:?}");
        }
        assert!(frequencies(&[word("yarn"), factor()]).unwrap_err().to_string().contains("`yarn`"));
    }

    #[test]
    fn a_configuration_beside_a_gguf_makes_no_folder_of_safetensors() {
        let folder = tempfile::tempdir().unwrap();
        let with = |name: &str| {
            std::fs::write(folder.path().join(name), "").unwrap();
            holds_safetensors(folder.path())
        };
        // Without any weights it is one, so that what is missing is named.
        assert!(with("config.json"));
        assert!(!with("model.gguf"));
        assert!(with("model.safetensors"));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let good = LmConfig {
            family: "llama",
            layers: 1,
            hidden: 8,
            intermediate: 8,
            heads: 4,
            kv_heads: 2,
            head_dim: 2,
            vocab: 10,
            context: 8,
            norm_eps: 1e-5,
            inverse_frequencies: vec![1.0],
            sliding_window: None,
            tied: true,
            eos: vec![],
            chat_template: None,
        };
        assert_eq!(good.fault(), None);
        for bad in [
            LmConfig { kv_heads: 3, ..good.clone() },
            LmConfig { head_dim: 3, ..good.clone() },
            LmConfig { heads: 0, ..good.clone() },
            LmConfig { intermediate: 1 << 40, ..good.clone() },
        ] {
            assert!(bad.fault().is_some(), "{bad:?}");
        }
    }

    #[test]
    fn neighbouring_pairs_become_halves() {
        // Two heads of four rows, one column: llama.cpp's order is a0 b0 a1 b1 for halves a, b.
        let pairs = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
        assert_eq!(halves_from_pairs(&pairs, &[8, 1], 4), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    }
}
