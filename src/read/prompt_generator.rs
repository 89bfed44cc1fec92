//! Input-dependent prompts: a small network that reads the input and writes a soft prompt for it (Levine et al. 2022,
//! arXiv:2204.10019). The network looks at the states that a frozen encoder makes of the input; in a *connector* it looks at
//! those of the frozen language model itself, which so reads the input twice (the paper's neural recursion).
//!
//! A generator is one safetensors file: its tensors ([`GeneratorShape::tensors`]) in 16-bit floats, and a
//! [`GeneratorDescription`] in its metadata. The encoder inside of it is frozen and not in the file: it is a starter model, or lies
//! beside the file, in a folder of its name with `.encoder`. The graph is made of both on first use and kept in the cache folder.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::cast_slice;
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest::short_hex;
use crate::durable;
use crate::error::{Error, Result};
use crate::export::prompt_generator::{GeneratorShape, Outer, export};
use crate::export::{Precision, encoder};
use crate::progress::Progress;
use crate::read::lm::FrozenLm;
use crate::read::soft_prompt::{FORMAT, PromptDescription, PromptKind, PromptTarget, SoftPrompt};
use crate::read::template::TemplateKind;
use crate::runtime::model_dir::sha256_of;
use crate::runtime::session::{Input, RuntimeOptions, Session};
use crate::runtime::setup::{self, Manifest};
use crate::runtime::tokenizer::{TOKENIZER, TextTokenizer};

/// Key of the description in the file's metadata.
pub const DESCRIPTION: &str = "nunatak.prompt-generator";
/// Version of the format.
pub const GENERATOR_FORMAT: u32 = 1;
/// The encoder's weights in its folder.
const WEIGHTS: &str = "model.safetensors";
const GRAPH: &str = "generator.onnx";

/// The frozen encoder inside a generator, or, in a connector, the language model itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderTarget {
    /// Name of the starter model, or of the folder that it was read from.
    pub name: String,
    /// sha256 of its weights' file; empty for the language model, which [`GeneratorDescription::target`] is.
    pub sha256: String,
    /// Tokens of an input that it reads; of a longer one the beginning and the end, half each.
    pub tokens: usize,
    /// Whether it is the language model itself.
    #[serde(default)]
    pub itself: bool,
}

/// A learned prompt that a generator's prompts go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Its name, as [`crate::read::prompts::find`] knows it.
    pub name: String,
    /// Its hash.
    pub hash: String,
}

/// What is known of a generator besides its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GeneratorDescription {
    /// Version of the format, [`GENERATOR_FORMAT`].
    pub format: u32,
    /// The language model it was learned for.
    pub target: PromptTarget,
    /// The encoder.
    pub encoder: EncoderTarget,
    /// Sizes.
    pub shape: GeneratorShape,
    /// The learned prompt that stands before what it writes, if it was learned behind one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<Behind>,
    /// Whether it was taught to answer nothing when the passages hold no answer.
    #[serde(default)]
    pub abstains: bool,
    /// sha256 over the numbers, shortened.
    pub sha256: String,
    /// How it came to be, for people: data, settings, measures.
    pub training: serde_json::Value,
}

/// A generator's file.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorFile {
    /// What it is.
    pub description: GeneratorDescription,
    /// Every tensor of [`GeneratorShape::tensors`] by name.
    pub tensors: BTreeMap<String, Vec<f32>>,
    /// Folder of the encoder, if one lies beside the file.
    pub encoder: Option<PathBuf>,
}

impl GeneratorFile {
    /// Of numbers, which are rounded to 16-bit floats as the file keeps them.
    ///
    /// # Errors
    /// [`Error::Internal`] when a tensor is missing, of another size, or too large for such a float.
    pub fn new(mut description: GeneratorDescription, tensors: &BTreeMap<String, Vec<f32>>) -> Result<Self> {
        let mut rounded = BTreeMap::new();
        for (name, shape) in description.shape.tensors() {
            let numbers = tensors.get(&name).filter(|t| t.len() == shape.iter().product::<usize>());
            let halves: Option<Vec<f32>> = numbers.map(|t| t.iter().map(|&x| f16::from_f32(x).to_f32()).collect());
            match halves.filter(|t| t.iter().all(|x| x.is_finite())) {
                Some(halves) => rounded.insert(name, halves),
                None => {
                    let message = format!("{name} is missing, of another size than {shape:?}, or not finite");
                    return Err(Error::Internal { doing: "making a prompt generator", message });
                }
            };
        }
        description.sha256 = hash(&rounded);
        Ok(Self { description, tensors: rounded, encoder: None })
    }

    /// Write the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let failed = "writing a prompt generator";
        let halves: Vec<(String, Vec<usize>, Vec<f16>)> = self
            .description
            .shape
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let numbers = self.tensors.get(&name).map_or(&[][..], Vec::as_slice);
                (name, shape, numbers.iter().map(|&x| f16::from_f32(x)).collect())
            })
            .collect();
        let views = halves
            .iter()
            .map(|(name, shape, halves)| Ok((name, TensorView::new(Dtype::F16, shape.clone(), cast_slice(halves))?)))
            .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(Error::internal(failed))?;
        let description = serde_json::to_string(&self.description).map_err(Error::internal(failed))?;
        let metadata = HashMap::from([(DESCRIPTION.to_owned(), description)]);
        durable::replace(path, &safetensors::serialize(views, Some(metadata)).map_err(Error::internal(failed))?)
    }

    /// Whether these are the bytes of a generator, sound or not, rather than of another safetensors file.
    pub fn is_one(bytes: &[u8]) -> bool {
        let header = SafeTensors::read_metadata(bytes).ok();
        header.is_some_and(|(_, h)| h.metadata().as_ref().is_some_and(|m| m.contains_key(DESCRIPTION)))
    }

    /// Read a file.
    ///
    /// # Errors
    /// [`Error::File`], or [`Error::BadFile`] when it is no generator, of another version, or damaged.
    pub fn load(path: &Path) -> Result<Self> {
        Self::of_file(&std::fs::read(path).map_err(Error::file("read", path))?, path)
    }

    /// Read the content of the file `path`, with the encoder that lies beside it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn of_file(bytes: &[u8], path: &Path) -> Result<Self> {
        let encoder = Some(beside(path)).filter(|folder| folder.is_dir());
        Ok(Self { encoder, ..Self::from_bytes(bytes, path)? })
    }

    /// Read the content of a generator that is no file; `path` is what messages call it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |problem: String| {
            let hint = "give a file that `nunatak train id-prompt` wrote, with this version or before";
            Error::bad_file(path, problem, hint)
        };
        let (_, header) =
            SafeTensors::read_metadata(bytes).map_err(|e| bad(format!("it is no prompt generator: {e}")))?;
        let description = header.metadata().as_ref().and_then(|m| m.get(DESCRIPTION));
        let description = description.ok_or_else(|| bad("it holds tensors, but no prompt generator".into()))?;
        let description: GeneratorDescription =
            serde_json::from_str(description).map_err(|e| bad(format!("its description cannot be read: {e}")))?;
        if description.format != GENERATOR_FORMAT {
            let format = description.format;
            return Err(bad(format!("it is of format {format}, and this program reads {GENERATOR_FORMAT}")));
        }
        let file = SafeTensors::deserialize(bytes).map_err(|e| bad(format!("it is damaged: {e}")))?;
        let mut tensors = BTreeMap::new();
        for (name, shape) in description.shape.tensors() {
            let view = file.tensor(&name).map_err(|e| bad(format!("it is damaged: {e}")))?;
            if view.dtype() != Dtype::F16 || view.shape() != shape {
                return Err(bad(format!("its tensor {name} has the shape {:?}, not {shape:?}", view.shape())));
            }
            let numbers =
                view.data().as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect::<Vec<f32>>();
            tensors.insert(name, numbers);
        }
        if hash(&tensors) != description.sha256 {
            return Err(bad("its numbers are not what was written (sha256 differs)".into()));
        }
        Ok(Self { description, tensors, encoder: None })
    }
}

fn hash(tensors: &BTreeMap<String, Vec<f32>>) -> String {
    let mut hash = Sha256::new();
    for (name, numbers) in tensors {
        hash.update(format!("{name} {}\n", numbers.len()));
        let halves: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
        hash.update(cast_slice::<f16, u8>(&halves));
    }
    short_hex(&hash.finalize())
}

/// The tokens of an input as a generator's encoder reads them: with `special` ones around, and of a long input the beginning and
/// the end, half each, since what is asked tends to stand at one of the two.
pub fn encoder_tokens(tokenizer: &TextTokenizer, input: &str, most: usize, special: bool) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(input, special)?;
    if ids.len() <= most {
        return Ok(ids);
    }
    let (first, last) = (most - most / 2, most / 2);
    Ok([&ids[..first], &ids[ids.len() - last..]].concat())
}

/// What a generator of readers' prompts is told: the question first, as the encoder may not read all of the passage.
pub fn reading_input(question: &str, passage: &str) -> String {
    format!("{}\n{}", question.trim(), passage.trim())
}

/// Where the encoder of the generator in the file `path` lies if it is no starter model.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("encoder")
}

/// Copy the encoder in the folder `from`, which is no starter model, beside the generator in the file `path`, where
/// [`GeneratorFile::load`] looks for it.
///
/// # Errors
/// [`Error::File`] when a file cannot be copied.
pub fn keep_encoder(from: &Path, path: &Path) -> Result<()> {
    let folder = beside(path);
    std::fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    for name in ["config.json", TOKENIZER, WEIGHTS] {
        let (from, to) = (from.join(name), folder.join(name));
        std::fs::copy(&from, &to).map_err(Error::file("copy", &from))?;
    }
    Ok(())
}

/// The folder of a generator's encoder, as it was published.
///
/// # Errors
/// [`Error::Request`] when it is no starter model and does not lie beside the file; what fetching it says.
fn encoder_folder(file: &GeneratorFile, options: &RuntimeOptions, progress: &dyn Progress) -> Result<PathBuf> {
    if let Some(folder) = &file.encoder {
        return Ok(folder.clone());
    }
    let name = &file.description.encoder.name;
    let starter = Manifest::get()?.starter(name).ok_or_else(|| {
        let problem = format!("the prompt generator reads with {name}, which is no starter model");
        let hint = "put the folder that its training wrote beside it, `.encoder` in its name, beside the file again";
        Error::request(problem, hint)
    })?;
    setup::source(starter, options, progress)
}

/// Fail unless the encoder in `folder` is the one that a generator was learned over.
///
/// # Errors
/// [`Error::Request`] naming the encoder.
pub fn check_encoder(encoder: &EncoderTarget, folder: &Path) -> Result<()> {
    if sha256_of(&folder.join(WEIGHTS))? == encoder.sha256 {
        return Ok(());
    }
    let problem = format!("the prompt generator was learned over another {} than the one here", encoder.name);
    Err(Error::request(problem, "use the version of nunatak that it was trained with, or train it again"))
}

/// A generator, ready to write prompts.
#[derive(Debug)]
pub struct PromptGenerator {
    description: GeneratorDescription,
    session: Session,
    /// The encoder's; none in a connector.
    tokenizer: Option<TextTokenizer>,
    /// Learned vectors before what a connector's first pass reads.
    before: Vec<f32>,
}

impl PromptGenerator {
    /// Load a generator whose encoder is in `precision`; its graph is made on first use.
    ///
    /// # Errors
    /// What [`check_encoder`] and loading a graph say.
    pub fn open(
        file: &GeneratorFile,
        precision: Precision,
        options: &RuntimeOptions,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let description = file.description.clone();
        setup::fetch_runtime(options, progress)?;
        let shape = &description.shape;
        let encoder = &description.encoder;
        let graph = |place: &str, make: &dyn Fn(&Path) -> Result<()>| {
            setup::derived("generators", place, progress, |out| make(&out.join(GRAPH)))
        };
        let (folder, tokenizer) = if encoder.itself {
            (graph(&description.sha256, &|path| export(Outer::Given, path, shape, &file.tensors))?, None)
        } else {
            let source = encoder_folder(file, options, progress)?;
            let precision = encoder::fitting(&source, precision)?;
            let weights = short_hex(&Sha256::digest(&encoder.sha256));
            let folder = graph(&format!("{}-{weights}-{precision}", description.sha256), &|path| {
                // Hashing the encoder takes longer than loading it, so it is done when its numbers are read, and once.
                check_encoder(encoder, &source)?;
                export(Outer::Encoder(&source, precision), path, shape, &file.tensors)
            })?;
            (folder, Some(TextTokenizer::from_file(&source.join(TOKENIZER), &encoder.name)?))
        };
        let before = file.tensors.get("encoder_prompt").cloned().unwrap_or_default();
        Ok(Self { session: Session::open(&folder.join(GRAPH), options)?, tokenizer, before, description })
    }

    /// What it is.
    pub fn description(&self) -> &GeneratorDescription {
        &self.description
    }

    /// The prompt for an input, for `lm`, which a connector also reads it with. Equal inputs get equal prompts, with equal
    /// hashes.
    pub fn prompt(&mut self, input: &str, lm: &mut FrozenLm) -> Result<Arc<SoftPrompt>> {
        let (most, outputs) = (self.description.encoder.tokens, ["prompt"]);
        let outputs = match &self.tokenizer {
            Some(tokenizer) => {
                let ids = encoder_tokens(tokenizer, input, most, true)?;
                let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
                let mask = vec![1i64; ids.len()];
                let shape = [1, ids.len()];
                let inputs = [("input_ids", Input::I64(&ids, &shape)), ("attention_mask", Input::I64(&mask, &shape))];
                self.session.run(&inputs, &outputs)?
            }
            None => {
                let ids = encoder_tokens(lm.tokenizer(), input, most, false)?;
                let embeds = [self.before.clone(), lm.embed(&ids)?].concat();
                let width = self.description.shape.width;
                let positions = embeds.len() / width.max(1);
                let states = lm.states_after(embeds, positions)?;
                self.session.run(&[("states", Input::F32(&states, &[1, positions, width]))], &outputs)?
            }
        };
        let values = outputs.into_iter().next().map(|o| o.data).unwrap_or_default();
        let description = PromptDescription {
            format: FORMAT,
            kind: PromptKind::Embeddings,
            positions: self.description.shape.positions,
            target: self.description.target.clone(),
            template: TemplateKind::Plain,
            abstains: false,
            sha256: None,
            training: serde_json::Value::Null,
        };
        Ok(Arc::new(SoftPrompt::new(description, &values)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator() -> GeneratorFile {
        let shape = GeneratorShape { positions: 2, hidden: 4, width: 4, encoder_positions: 1, blocks: 1, heads: 1 };
        let numbers = |(i, (name, dims)): (usize, (String, Vec<usize>))| {
            let count = dims.iter().product::<usize>();
            (name, (0..count).map(|j| (i + j) as f32 / 7.0).collect())
        };
        let tensors = shape.tensors().into_iter().enumerate().map(numbers).collect();
        let description = GeneratorDescription {
            format: GENERATOR_FORMAT,
            target: PromptTarget { name: "tiny".into(), layers: 1, kv_width: 4, hidden: 4 },
            encoder: EncoderTarget { name: "all-MiniLM-L6-v2".into(), sha256: "0".into(), tokens: 8, itself: false },
            shape,
            behind: None,
            abstains: false,
            sha256: String::new(),
            training: serde_json::Value::Null,
        };
        GeneratorFile::new(description, &tensors).unwrap()
    }

    #[test]
    fn what_is_saved_is_loaded_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.safetensors");
        let saved = generator();
        saved.save(&path).unwrap();
        assert_eq!(GeneratorFile::load(&path).unwrap(), saved);
        let bytes = std::fs::read(&path).unwrap();
        assert!(GeneratorFile::is_one(&bytes) && !GeneratorFile::is_one(b"something else"));
        for cut in 0..bytes.len() {
            assert!(GeneratorFile::from_bytes(&bytes[..cut], &path).is_err(), "{cut}");
        }
        // A number that is not what was written, wherever it is.
        let numbers = saved.description.shape.parameters() * 2;
        for at in bytes.len() - numbers..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            assert!(GeneratorFile::from_bytes(&flipped, &path).is_err(), "{at}");
        }
    }

    #[test]
    fn numbers_that_are_missing_or_not_finite_are_refused() {
        let whole = generator();
        let mut tensors = whole.tensors.clone();
        tensors.remove("latents");
        assert!(GeneratorFile::new(whole.description.clone(), &tensors).is_err());
        let mut tensors = whole.tensors.clone();
        tensors.insert("latents".into(), vec![f32::INFINITY; 8]);
        assert!(GeneratorFile::new(whole.description.clone(), &tensors).is_err());
    }
}
