//! The models in the cache, by name: find, list, import and export them.
//!
//! A model lies in `models/NAME.PRECISION`, several precisions of one name side by side. Weights that are
//! imported are exported to graphs; a user's own ONNX folder is copied with a description. Nothing here
//! fetches anything ([`super::hub`] does, when it is asked to).

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::export::{Precision, bert, encoder, llama};
use crate::progress::Progress;
use crate::runtime::model_dir::{DESCRIPTION, GRAPH, ModelDir};
use crate::runtime::setup::manifest::Manifest;
use crate::runtime::setup::{cache, learned};
use crate::runtime::tokenizer::TextTokenizer;

/// Which precision is taken when none is named, the likeliest to be wanted first; `onnx` is a user's own graph.
const PREFERENCE: [&str; 5] = ["int8", "w8a8", "fp16", "fp32", "onnx"];
/// Version in the stamps of imported models: they never grow old.
pub(super) const IMPORTED: &str = "imported";

/// A model of the cache, or a starter model that is not there yet.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Its name, without precision.
    pub name: String,
    /// Its precision.
    pub precision: String,
    /// `encoder`, `cross-encoder` or `lm`.
    pub kind: String,
    /// Whether it is in the cache.
    pub installed: bool,
    /// Whether it can be fetched by name without a hub.
    pub starter: bool,
    /// Bytes of its files; 0 when it is not installed.
    pub bytes: u64,
    /// Where it is or would be.
    pub path: PathBuf,
    /// What is wrong with it, if anything.
    pub problem: Option<String>,
}

/// What a model is for, as an importer can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportKind {
    /// Text to vector.
    Encoder,
    /// Question and passage to score.
    CrossEncoder,
    /// Frozen language model.
    Lm,
}

/// How a model is imported.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// What it is to be called; the name of its file or folder when not given.
    pub name: Option<String>,
    /// What it is for; guessed from its `config.json` when not given.
    pub kind: Option<ImportKind>,
    /// How its weights are stored; int8 when not given. Cannot be given for a graph that is there already.
    pub precision: Option<Precision>,
    /// Where it came from, for people; the path when not given.
    pub source: Option<String>,
}

/// A name as it is typed: `NAME` or `NAME@PRECISION`.
pub(super) fn split_name(name: &str) -> Result<(&str, Option<&str>)> {
    match name.split_once('@') {
        Some((stem, precision)) if PREFERENCE.contains(&precision) => Ok((stem, Some(precision))),
        Some((_, precision)) => Err(Error::request(
            format!("unknown precision `{precision}` in the model name `{name}`"),
            format!("use one of {}", PREFERENCE.join(", ")),
        )),
        None => Ok((name, None)),
    }
}

/// The folder of a model in the cache at `home`.
pub(super) fn place(home: &Path, name: &str, precision: &str) -> PathBuf {
    home.join("models").join(format!("{name}.{precision}"))
}

/// An imported model of this name, if there is one.
pub(super) fn find(name: &str, precision: Option<&str>) -> Result<Option<ModelDir>> {
    let home = cache::home()?;
    for wanted in PREFERENCE.iter().filter(|p| precision.is_none_or(|asked| asked == **p)) {
        let dir = place(&home, name, wanted);
        if dir.is_dir() {
            return installed(&dir, name, wanted).map(Some);
        }
    }
    Ok(None)
}

/// Every model of the cache and every starter model, by name and precision.
pub fn list() -> Result<Vec<Entry>> {
    let home = cache::home()?;
    let manifest = Manifest::get()?;
    let mut entries = Vec::new();
    for folder in fs::read_dir(home.join("models")).into_iter().flatten().flatten() {
        let path = folder.path();
        let file_name = folder.file_name().to_string_lossy().into_owned();
        let Some((name, precision)) = file_name.rsplit_once('.') else { continue };
        let opened = ModelDir::open(&path).and_then(|m| match cache::is_whole(&path) {
            true => Ok(m),
            false => Err(Error::model(&file_name, "a file of it has been truncated or removed", "set it up again")),
        });
        let (kind, bytes, problem) = match opened {
            Ok(model) => (model.description.kind.name().to_owned(), model.size(), None),
            Err(error) => (String::new(), 0, Some(error.to_string())),
        };
        let starter = manifest.starter(name).is_some() || learned::names().any(|shipped| shipped == name);
        let (name, precision) = (name.to_owned(), precision.to_owned());
        entries.push(Entry { name, precision, kind, installed: true, starter, bytes, path, problem });
    }
    let starters = manifest.starters().iter().map(|starter| (starter.name.as_str(), starter.kind.as_str()));
    for (name, kind) in starters.chain(learned::names().map(|name| (name, "cross-encoder"))) {
        let precision = Precision::default().of_starter(kind).to_string();
        let path = place(&home, name, &precision);
        if !entries.iter().any(|e| e.name == name && e.precision == precision) {
            entries.push(Entry {
                name: name.to_owned(),
                precision,
                kind: kind.to_owned(),
                installed: false,
                starter: true,
                bytes: 0,
                path,
                problem: None,
            });
        }
    }
    entries.sort_by(|a, b| (&a.name, &a.precision).cmp(&(&b.name, &b.precision)));
    Ok(entries)
}

/// Put the model at `source` into the cache: a folder with weights (safetensors, or one GGUF file) or a GGUF file, which are
/// exported; or a folder that has its graph already, which is copied.
///
/// # Errors
/// [`Error::Model`] when the source is not a model or its name is taken; what the exporter and the cache say.
pub fn import(source: &Path, options: &ImportOptions, progress: &dyn Progress) -> Result<ModelDir> {
    let named = source.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = match &options.name {
        Some(name) => name.clone(),
        None => named.strip_suffix(".gguf").unwrap_or(&named).to_owned(),
    };
    check_name(&name)?;
    if !source.exists() {
        return Err(Error::model(source.display().to_string(), "there is no such file or folder", "check the path"));
    }
    let home = cache::home()?;
    let holds = |file: &str| source.join(file).is_file();
    let weights = holds("model.safetensors") || holds("model.safetensors.index.json");
    let wished = options.precision.is_some() || options.kind.is_some();
    // A published folder may have both; its graphs are then a by-product, and ours are faster.
    let graph = holds(GRAPH) && !(weights && wished) || holds("onnx/model.onnx") && !weights;
    if holds(DESCRIPTION) || graph {
        if wished {
            return Err(Error::request(
                "a model that has its graph already is taken as it is",
                "leave --precision and --kind out, or import the folder with its weights",
            ));
        }
        let model = ModelDir::open(source)?;
        check_precision(&model)?;
        let dir = place(&home, &name, &model.description.precision);
        take_in(&home, &dir, &name, progress, |out| {
            // Without a description the hashes are those of a moment ago.
            if holds(DESCRIPTION) {
                model.verify()?;
            }
            TextTokenizer::open(&model)?; // what cannot be read would be found out only by who uses it
            copy(&model, out)?;
            relabel(&model, out, options.source.as_deref())
        })?;
        return installed(&dir, &name, &model.description.precision);
    }
    let kind = match options.kind {
        Some(kind) => kind,
        None => guess_kind(source, &named)?,
    };
    let precision = options.precision.unwrap_or_default();
    let dir = place(&home, &name, precision.name());
    take_in(&home, &dir, &name, progress, |out| {
        progress.start(&format!("exporting {name} to {precision}"), None, "");
        let exported = match kind {
            ImportKind::Encoder => encoder::export_encoder(source, out, precision),
            ImportKind::CrossEncoder => bert::export_cross_encoder(source, out, precision),
            ImportKind::Lm => llama::export_lm(source, out, precision),
        };
        progress.finish();
        exported?;
        let model = ModelDir::open(out)?.called(name.clone());
        TextTokenizer::open(&model)?;
        relabel(&model, out, options.source.as_deref())
    })?;
    installed(&dir, &name, precision.name())
}

/// Let `fill` make the folder of a model whose name is not taken, nor will be by the time that the cache is free: of two
/// imports under one name at a time the second would otherwise have the first one's model for its own.
fn take_in(
    home: &Path,
    dir: &Path,
    name: &str,
    progress: &dyn Progress,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    refuse_taken(dir, name)?;
    let mut filled = false;
    cache::install(home, dir, IMPORTED, progress, |out, _| {
        filled = true;
        fill(out)
    })?;
    if filled { Ok(()) } else { refuse_taken(dir, name) }
}

fn installed(dir: &Path, name: &str, precision: &str) -> Result<ModelDir> {
    Ok(ModelDir::open(dir)?.called(format!("{name}@{precision}")))
}

/// Copy a model to `dir`, a folder that is not there yet or empty.
///
/// # Errors
/// [`Error::Request`] when there is something in the folder; what the file system says.
pub fn export(model: &ModelDir, dir: &Path) -> Result<()> {
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::request(format!("{} is not empty", dir.display()), "name a new folder"));
    }
    fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
    copy(model, dir)?;
    relabel(model, dir, None)
}

/// Copy the files that a model consists of, all into `out` itself. External data lies beside its graph
/// wherever that is, so moving both keeps the graph whole.
fn copy(model: &ModelDir, out: &Path) -> Result<()> {
    for file in model.description.files.keys() {
        let from = model.file(file);
        let Some(name) = from.file_name() else { continue };
        let to = out.join(name);
        fs::copy(&from, &to).map_err(Error::file("copy", &from))?;
    }
    Ok(())
}

/// Write the description of `model` to the copy in `out`, saying where it came from. The hashes are those of
/// the copied files; names are without folders, as [`copy`] leaves them.
fn relabel(model: &ModelDir, out: &Path, source: Option<&str>) -> Result<()> {
    let mut description = model.description.clone();
    if let Some(source) = source {
        description.source = source.to_owned();
    }
    let flat = |name: String| name.rsplit('/').next().map_or(name.clone(), str::to_owned);
    description.files = description.files.into_iter().map(|(name, hash)| (flat(name), hash)).collect();
    let path = out.join(DESCRIPTION);
    let text = serde_json::to_string_pretty(&description).map_err(Error::internal("describing a model"))?;
    fs::write(&path, text + "\n").map_err(Error::file("write", &path))
}

fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fine) {
        return Err(Error::request(
            format!("`{name}` cannot be the name of a model"),
            "give one of letters, digits, `.`, `_` and `-` with --name",
        ));
    }
    if Manifest::get()?.starter(name).is_some() || learned::names().any(|shipped| shipped == name) {
        return Err(Error::request(format!("`{name}` is a starter model"), "give another name with --name"));
    }
    Ok(())
}

/// The precision that a folder says it has becomes part of a path, and of a name.
fn check_precision(model: &ModelDir) -> Result<()> {
    let precision = model.description.precision.as_str();
    if PREFERENCE.contains(&precision) {
        return Ok(());
    }
    Err(Error::model(
        model.name(),
        format!("its {DESCRIPTION} names the unknown precision `{precision}`"),
        format!("precisions are: {}", PREFERENCE.join(", ")),
    ))
}

fn refuse_taken(dir: &Path, name: &str) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    Err(Error::model(
        name,
        format!("there is a model of this name and precision already, in {}", dir.display()),
        "give another name with --name, or remove that folder",
    ))
}

/// What a folder or file of weights is for.
fn guess_kind(source: &Path, name: &str) -> Result<ImportKind> {
    if source.is_file() {
        return Ok(ImportKind::Lm);
    }
    let path = source.join("config.json");
    let holds_gguf = fs::read_dir(source)
        .is_ok_and(|mut files| files.any(|f| f.is_ok_and(|f| f.path().extension().is_some_and(|e| e == "gguf"))));
    if holds_gguf && !path.is_file() {
        return Ok(ImportKind::Lm);
    }
    let unknown = |problem: String| {
        Error::model(name, problem, "say what it is with --kind encoder, --kind cross-encoder or --kind lm")
    };
    let text = fs::read_to_string(&path).map_err(|_| unknown("it holds no config.json and no .gguf file".into()))?;
    let config: Value =
        serde_json::from_str(&text).map_err(|e| unknown(format!("its config.json is not valid: {e}")))?;
    let architecture = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
    let family = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    match family {
        _ if architecture.ends_with("ForCausalLM") => Ok(ImportKind::Lm),
        _ if architecture.ends_with("ForSequenceClassification") => Ok(ImportKind::CrossEncoder),
        "bert" | "roberta" | "xlm-roberta" | "distilbert" => Ok(ImportKind::Encoder),
        // A T5 that also decodes has an encoder, but nobody trained that to give vectors: who means it says so.
        "t5" | "mt5" if architecture.ends_with("EncoderModel") => Ok(ImportKind::Encoder),
        "llama" | "mistral" | "qwen2" | "qwen3" => Ok(ImportKind::Lm),
        _ => Err(unknown(format!("its config.json names the architecture `{architecture}` of the family `{family}`"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::progress::Quiet;

    /// Tells when it waits for another import.
    struct Waiting(mpsc::Sender<()>);

    impl Progress for Waiting {
        fn start(&self, _: &str, _: Option<u64>, _: &'static str) {}
        fn advance(&self, _: u64) {}
        fn finish(&self) {}
        fn note(&self, _: &str) {
            self.0.send(()).unwrap();
        }
    }

    fn one_file(out: &Path) -> Result<()> {
        fs::write(out.join("a"), "one").map_err(Error::file("write", out))
    }

    #[test]
    fn of_two_imports_under_one_name_the_second_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (home, dir) = (folder.path(), &place(folder.path(), "m", "onnx"));
        let (waits, waited) = mpsc::channel();
        std::thread::scope(|scope| {
            let first = take_in(home, dir, "m", &Quiet, |out| {
                scope.spawn(move || assert!(take_in(home, dir, "m", &Waiting(waits), one_file).is_err()));
                waited.recv().unwrap();
                one_file(out)
            });
            first.unwrap();
        });
        assert!(take_in(home, dir, "m", &Quiet, one_file).is_err());
    }

    #[test]
    fn a_name_may_carry_a_precision() {
        assert_eq!(split_name("a.b-c").unwrap(), ("a.b-c", None));
        assert_eq!(split_name("a@fp32").unwrap(), ("a", Some("fp32")));
        assert!(split_name("a@fp31").is_err());
    }

    #[test]
    fn names_that_are_paths_or_taken_are_refused() {
        for name in ["", ".hidden", "a/b", "a b", "..", "all-MiniLM-L6-v2"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("bge-small.en_v1").unwrap();
    }

    #[test]
    fn the_config_says_what_a_model_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let guess = |config: &str| {
            fs::write(dir.path().join("config.json"), config).unwrap();
            guess_kind(dir.path(), "it").ok()
        };
        let cases = [
            (r#"{"architectures": ["BertModel"], "model_type": "bert"}"#, Some(ImportKind::Encoder)),
            (
                r#"{"architectures": ["BertForSequenceClassification"], "model_type": "bert"}"#,
                Some(ImportKind::CrossEncoder),
            ),
            (r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}"#, Some(ImportKind::Lm)),
            (r#"{"architectures": ["T5EncoderModel"], "model_type": "t5"}"#, Some(ImportKind::Encoder)),
            (r#"{"architectures": ["T5Model"], "model_type": "t5"}"#, None),
            ("{", None),
        ];
        for (config, expected) in cases {
            assert_eq!(guess(config), expected, "{config}");
        }
    }
}
