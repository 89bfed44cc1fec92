//! What was learned over a model that stays as it was published: a small file in the place of a whole model.
//!
//! A re-ranker begins as a starter encoder and leaves its word embeddings alone, which are half of its numbers. Its file
//! holds the tensors that changed, in 16-bit floats, and says which others are the base's. [`fold`] makes it of a model
//! folder whose changed numbers are 16-bit floats already, and [`unfold`] gives that folder back, number by number, so that
//! what is shipped is what was measured.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytemuck::cast_slice;
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::digest::short_hex;
use crate::durable;
use crate::error::{Error, Result};
use crate::export::weights::Weights;
use crate::runtime::model_dir::{DESCRIPTION, Description, Prior, sha256_of};
use crate::runtime::tokenizer::TOKENIZER;

/// Key of the description in the file's metadata.
const KEY: &str = "nunatak.learned";
/// Version of the format.
const FORMAT: u32 = 1;
/// Files of a model folder besides the tokenizer's.
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
const LENGTH: &str = "sentence_bert_config.json";

/// What is known of a learned model besides its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// Version of the format.
    pub format: u32,
    /// The model that it was learned over, by name.
    pub base: String,
    /// sha256 of that model's weights.
    pub base_sha256: String,
    /// Tensors that are the base's: name here, name there.
    pub borrowed: BTreeMap<String, String>,
    /// sha256 of the other tensors, shortened.
    pub sha256: String,
    /// `config.json`.
    pub config: Value,
    /// `sentence_bert_config.json`, which has the longest input.
    pub length: Value,
    /// Where it came from, for people.
    pub source: String,
    /// What a first stage's score counts beside its own.
    pub priors: Vec<Prior>,
}

/// Write the file `path` for the model in the folder `model`, which was learned over `base` in its folder.
///
/// # Errors
/// What reading and writing say; [`Error::Internal`] when a changed number is no 16-bit float.
pub fn fold(model: &Path, base: (&str, &Path), source: &str, priors: &[Prior], path: &Path) -> Result<()> {
    let (own, published) = (Weights::open(model)?, Weights::open(base.1)?);
    let (mut borrowed, mut changed) = (BTreeMap::new(), Vec::new());
    let mut hash = Sha256::new();
    for name in own.names() {
        let (shape, numbers) = (own.shape(name)?, own.tensor(name)?);
        // A classifier's names begin with its family's, an encoder's do not.
        let short = name.split_once('.').map_or(name, |(_, rest)| rest);
        let is_same = |there: &&str| {
            published.shape(there).is_ok_and(|s| s == shape) && published.tensor(there).is_ok_and(|t| t == numbers)
        };
        if let Some(there) = [name, short].into_iter().find(is_same) {
            borrowed.insert(name.to_owned(), there.to_owned());
            continue;
        }
        let halves: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
        if let Some((x, _)) = numbers.iter().zip(&halves).find(|(x, half)| half.to_f32() != **x) {
            let message = format!("{name} holds {x}, which is no 16-bit float");
            return Err(Error::Internal { doing: "writing what was learned", message });
        }
        digest(&mut hash, name, cast_slice(&halves));
        changed.push((name.to_owned(), shape, halves));
    }
    let learned = Learned {
        format: FORMAT,
        base: base.0.to_owned(),
        base_sha256: sha256_of(&base.1.join(WEIGHTS))?,
        borrowed,
        sha256: short_hex(&hash.finalize()),
        config: json(&model.join(CONFIG))?,
        length: json(&model.join(LENGTH))?,
        source: source.to_owned(),
        priors: priors.to_vec(),
    };
    let failed = "writing what was learned";
    let description = serde_json::to_string(&learned).map_err(Error::internal(failed))?;
    let views = changed
        .iter()
        .map(|(name, shape, halves)| Ok((name, TensorView::new(Dtype::F16, shape.clone(), cast_slice(halves))?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(Error::internal(failed))?;
    let metadata = HashMap::from([(KEY.to_owned(), description)]);
    durable::replace(path, &safetensors::serialize(views, Some(metadata)).map_err(Error::internal(failed))?)
}

impl Learned {
    /// Read the description of a file with this content; `path` is what messages call it.
    ///
    /// # Errors
    /// [`Error::BadFile`] when it is none, or of another version.
    pub fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |problem: String| bad_file(path, problem);
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(format!("it is no learned model: {e}")))?;
        let description = header.metadata().as_ref().and_then(|m| m.get(KEY));
        let description = description.ok_or_else(|| bad("it holds tensors, but no learned model".into()))?;
        let learned: Self =
            serde_json::from_str(description).map_err(|e| bad(format!("its description cannot be read: {e}")))?;
        match learned.format {
            FORMAT => Ok(learned),
            other => Err(bad(format!("it is of format {other}, and this program reads {FORMAT}"))),
        }
    }
}

/// Write to `out` the model folder that a file with the content `bytes` was made of, over the base in its folder.
///
/// # Errors
/// As [`Learned::read`], also when the base is not what it was learned over, or the file is damaged.
pub fn unfold(bytes: &[u8], path: &Path, base: &Path, out: &Path) -> Result<Learned> {
    let learned = Learned::read(bytes, path)?;
    let damaged = |problem: String| bad_file(path, problem);
    if sha256_of(&base.join(WEIGHTS))? != learned.base_sha256 {
        return Err(damaged(format!(
            "it was learned over another {} than the one in {}",
            learned.base,
            base.display()
        )));
    }
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(format!("it is damaged: {e}")))?;
    let mut changed: Vec<(String, TensorView)> = file.tensors();
    changed.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hash = Sha256::new();
    for (name, view) in &changed {
        digest(&mut hash, name, view.data());
    }
    if short_hex(&hash.finalize()) != learned.sha256 {
        return Err(damaged("its numbers are not what was written (sha256 differs)".into()));
    }
    let published = Weights::open(base)?;
    let borrow = |(name, there): (&String, &String)| -> Result<_> {
        Ok((name.clone(), published.shape(there)?, published.tensor(there)?))
    };
    let borrowed = learned.borrowed.iter().map(borrow).collect::<Result<Vec<_>>>()?;
    let failed = "writing a model";
    let own = changed.into_iter().map(|(name, view)| Ok((name, view)));
    let others = borrowed
        .iter()
        .map(|(name, shape, data)| Ok((name.clone(), TensorView::new(Dtype::F32, shape.clone(), cast_slice(data))?)));
    let views = own
        .chain(others)
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(Error::internal(failed))?;
    std::fs::create_dir_all(out).map_err(Error::file("create", out))?;
    let write = |name: &str, content: &[u8]| {
        let path = out.join(name);
        std::fs::write(&path, content).map_err(Error::file("write", &path))
    };
    write(WEIGHTS, &safetensors::serialize(views, None).map_err(Error::internal(failed))?)?;
    write(CONFIG, learned.config.to_string().as_bytes())?;
    write(LENGTH, learned.length.to_string().as_bytes())?;
    let tokenizer = base.join(TOKENIZER);
    write(TOKENIZER, &std::fs::read(&tokenizer).map_err(Error::file("read", &tokenizer))?)?;
    Ok(learned)
}

/// Say in a re-ranker's folder, just exported, where it came from and what a first stage's score counts beside its own.
pub fn label(folder: &Path, source: &str, priors: &[Prior]) -> Result<()> {
    let path = folder.join(DESCRIPTION);
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let mut description: Description = serde_json::from_str(&text).map_err(Error::internal("describing a model"))?;
    description.source = source.to_owned();
    description.priors = priors.to_vec();
    description.write(folder)
}

fn bad_file(path: &Path, problem: String) -> Error {
    Error::bad_file(path, problem, "take the file as `nunatak train reranker` wrote it")
}

fn digest(hash: &mut Sha256, name: &str, bytes: &[u8]) {
    hash.update(format!("{name} {}\n", bytes.len()));
    hash.update(bytes);
}

fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    serde_json::from_str(&text).map_err(|e| Error::bad_file(path, format!("it is no JSON: {e}"), "export it again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(path: &Path, tensors: &[(&str, &[f32])]) {
        let view = |data: &'static [u8], n| TensorView::new(Dtype::F32, vec![n], data).unwrap();
        let views = tensors.iter().map(|(name, data)| {
            let bytes: &'static [u8] = cast_slice::<f32, u8>(data).to_vec().leak();
            (*name, view(bytes, data.len()))
        });
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// A base, a model that changed `b` and has a head, and the file made of it.
    fn folders(head: f32) -> (tempfile::TempDir, Result<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let (base, model) = (dir.path().join("base"), dir.path().join("model"));
        for folder in [&base, &model] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join(TOKENIZER), "{}").unwrap();
        }
        save(&base.join(WEIGHTS), &[("words", &[0.1, 0.2]), ("b", &[1.0])]);
        save(&model.join(WEIGHTS), &[("bert.words", &[0.1, 0.2]), ("bert.b", &[1.5]), ("head", &[head])]);
        std::fs::write(model.join(CONFIG), r#"{"layers": 1}"#).unwrap();
        std::fs::write(model.join(LENGTH), r#"{"max_seq_length": 8}"#).unwrap();
        let prior = Prior { weight: 2.0, retrieval: serde_json::json!({"mode": "bm25"}) };
        let path = dir.path().join("learned.safetensors");
        let file = fold(&model, ("base", &base), "a test", &[prior], &path)
            .and_then(|()| std::fs::read(&path).map_err(Error::file("read", &path)));
        (dir, file)
    }

    #[test]
    fn a_folder_comes_back_number_by_number() {
        let (dir, file) = folders(-0.25);
        let (file, out) = (file.unwrap(), dir.path().join("out"));
        let learned = unfold(&file, Path::new("f"), &dir.path().join("base"), &out).unwrap();
        assert_eq!(learned.borrowed, BTreeMap::from([("bert.words".into(), "words".into())]));
        assert_eq!((learned.priors[0].weight, learned.source.as_str()), (2.0, "a test"));
        let (before, after) = (Weights::open(&dir.path().join("model")).unwrap(), Weights::open(&out).unwrap());
        assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
        for name in before.names() {
            assert_eq!(before.tensor(name).unwrap(), after.tensor(name).unwrap(), "{name}");
        }
        assert_eq!(json(&out.join(CONFIG)).unwrap(), serde_json::json!({"layers": 1}));
    }

    #[test]
    fn what_would_not_come_back_is_refused() {
        let (_dir, file) = folders(0.1);
        assert!(file.unwrap_err().to_string().contains("head holds 0.1"));
        let (dir, file) = folders(0.5);
        let (file, base, out) = (file.unwrap(), dir.path().join("base"), dir.path().join("out"));
        let unfold = |bytes: &[u8]| unfold(bytes, Path::new("f"), &base, &out).unwrap_err().to_string();
        for cut in [0, 7, 40, file.len() - 1] {
            assert!(unfold(&file[..cut]).contains("f: "), "{cut}");
        }
        let mut flipped = file.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(unfold(&flipped).contains("sha256 differs"));
        save(&base.join(WEIGHTS), &[("words", &[0.1, 0.3]), ("b", &[1.0])]);
        assert!(unfold(&file).contains("learned over another base"));
        assert!(!out.join(CONFIG).exists());
    }
}
