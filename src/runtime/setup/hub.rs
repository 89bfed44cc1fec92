//! Models from the Hugging Face hub, only when somebody asks for one by name (`nunatak models pull`).
//!
//! `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` mean what they mean to the hub's other clients. With
//! `HF_HUB_OFFLINE` the hub's own cache is used and nothing is fetched.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};
use crate::runtime::model_dir::sha256_of;

/// Small files that are wanted when they are there.
const SMALL: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "modules.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Fetch a model of the hub at a `revision` (a branch, a tag or a commit), and where it lies: the folder with its configuration,
/// tokenizer and weights, or the one GGUF `file` that was asked for.
///
/// # Errors
/// [`Error::Setup`] when the hub cannot be reached or has no such model, or when the model holds no weights
/// that can be imported.
pub fn fetch(id: &str, revision: &str, file: Option<&str>, progress: &dyn Progress) -> Result<PathBuf> {
    let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
    if is_set("HF_HUB_OFFLINE") {
        let cached = Cache::from_env().repo(repo).get(file.unwrap_or("config.json"));
        let path = cached.and_then(|p| if file.is_some() { Some(p) } else { p.parent().map(Path::to_path_buf) });
        return path.ok_or_else(|| Error::Setup {
            problem: format!("{id} is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it"),
            hint: Some("unset HF_HUB_OFFLINE, or set HF_HOME to the folder that has it".into()),
        });
    }
    let mut builder = ApiBuilder::from_env().with_progress(false);
    if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty()) {
        builder = builder.with_token(Some(token));
    }
    let refused = |e: ApiError| refused(id, &e);
    let hub = builder.build().map_err(refused)?.repo(repo.clone());
    let info = hub.info().map_err(refused)?;
    let listed: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
    let wanted = match file {
        Some(file) if listed.iter().any(|l| l == file) => vec![file.to_owned()],
        Some(file) => {
            return Err(Error::Setup {
                problem: format!("{id} has no file {file}"),
                hint: Some(format!("its files: {}", listed.join(", "))),
            });
        }
        None => wanted(&listed).ok_or_else(|| nothing_to_import(id, &listed))?,
    };
    // The commit, not the branch, says whether a file that is there already is the one that is meant.
    let snapshot = Cache::from_env().repo(repo).pointer_path(&info.sha);
    for name in &wanted {
        check_interrupt(|| format!("what was fetched of {id} is kept in the hub's cache"))?;
        let path = snapshot.join(name);
        if !path.is_file() {
            hub.download_with_progress(name, Bar(progress)).map_err(refused)?;
            check_blob(&path, id)?;
        }
    }
    Ok(file.map_or(snapshot.clone(), |file| snapshot.join(file)))
}

/// Large files are kept under their sha256, so what arrived can be compared with what was announced.
fn check_blob(path: &Path, id: &str) -> Result<()> {
    let blob = std::fs::canonicalize(path).map_err(Error::file("read", path))?;
    let announced = blob.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let is_sha256 = announced.len() == 64 && announced.bytes().all(|b| b.is_ascii_hexdigit());
    if is_sha256 && sha256_of(&blob)? != announced {
        std::fs::remove_file(path).map_err(Error::file("remove", path))?;
        std::fs::remove_file(&blob).map_err(Error::file("remove", &blob))?;
        return Err(Error::Setup {
            problem: format!("a file of {id} arrived damaged: its sha256 is not {announced}"),
            hint: Some("it was removed; try again".into()),
        });
    }
    Ok(())
}

fn nothing_to_import(id: &str, listed: &[String]) -> Error {
    let ggufs: Vec<&str> = listed.iter().map(String::as_str).filter(|f| f.ends_with(".gguf")).collect();
    Error::Setup {
        problem: format!("{id} holds no safetensors and no ONNX graph"),
        hint: Some(match ggufs.is_empty() {
            true => "only safetensors, GGUF and ONNX models can be imported".to_owned(),
            false => format!("choose one of its GGUF files with --file: {}", ggufs.join(", ")),
        }),
    }
}

/// Which of a model's files to fetch: what describes it, and its weights (safetensors, else a graph).
fn wanted(listed: &[String]) -> Option<Vec<String>> {
    let has = |name: &str| listed.iter().any(|l| l == name);
    let mut files: Vec<String> = SMALL.iter().filter(|f| has(f)).map(|f| (*f).to_owned()).collect();
    // What a sentence model has behind its encoder, each in a folder of its own: `1_Pooling`, `2_Dense`.
    files.extend(listed.iter().filter(|name| is_of_module(name)).cloned());
    let shard = |l: &&String| l.starts_with("model-") && l.ends_with(".safetensors");
    if has("model.safetensors.index.json") {
        files.push("model.safetensors.index.json".to_owned());
        files.extend(listed.iter().filter(shard).cloned());
    } else if has("model.safetensors") {
        files.push("model.safetensors".to_owned());
    } else {
        let graph = ["model.onnx", "onnx/model.onnx"].into_iter().find(|g| has(g))?;
        let data = [format!("{graph}_data"), format!("{graph}.data")];
        files.push(graph.to_owned());
        files.extend(data.into_iter().filter(|d| has(d)));
    }
    Some(files)
}

/// Whether it is a module's configuration, or its weights.
fn is_of_module(name: &str) -> bool {
    let Some((folder, file)) = name.split_once('/') else { return false };
    let numbered = folder.split_once('_').is_some_and(|(number, _)| number.parse::<u32>().is_ok());
    numbered && ["config.json", "model.safetensors"].contains(&file)
}

/// The hub's progress, told to ours.
struct Bar<'a>(&'a dyn Progress);

impl hf_hub::api::Progress for Bar<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.0.start(&format!("fetching {filename}"), Some(size as u64), "B");
    }

    fn update(&mut self, size: usize) {
        self.0.advance(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish();
    }
}

fn refused(id: &str, error: &ApiError) -> Error {
    Error::Setup {
        problem: format!("cannot fetch {id} from the hub: {error}"),
        hint: Some(
            "check the name and the network (HF_ENDPOINT names another hub, HF_TOKEN opens gated models); a model on \
             disk is taken in with `nunatak models import`"
                .into(),
        ),
    }
}

/// Whether a variable is set to a truth, as the hub's other clients read it.
fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(listed: &[&str]) -> Option<Vec<String>> {
        wanted(&listed.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn safetensors_are_preferred_and_other_weights_left_alone() {
        let files = pick(&["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"]);
        assert_eq!(files.unwrap(), ["config.json", "model.safetensors"]);
    }

    #[test]
    fn shards_come_with_their_index() {
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let files = pick(&["model.safetensors.index.json", shards[0], shards[1], "consolidated.safetensors"]);
        assert_eq!(files.unwrap(), ["model.safetensors.index.json", shards[0], shards[1]]);
    }

    #[test]
    fn the_modules_of_a_sentence_model_come_along() {
        let modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"];
        let listed =
            [&["modules.json", "model.safetensors", "onnx/config.json", "2_Dense/pytorch_model.bin"], &modules[..]];
        let files = pick(&listed.concat()).unwrap();
        assert_eq!(files, [&["modules.json"], &modules[..], &["model.safetensors"]].concat());
    }

    #[test]
    fn a_graph_is_taken_where_there_are_no_weights() {
        let files = pick(&["tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data"]);
        assert_eq!(files.unwrap(), ["tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data"]);
        assert_eq!(pick(&["a.Q4_0.gguf", "config.json"]), None);
    }
}
