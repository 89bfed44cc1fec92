//! Learned prompts by name: those that come with the program, those in the cache folder, and files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::read::prompt_generator::{Behind, GeneratorFile};
use crate::read::soft_prompt::SoftPrompt;
use crate::runtime::model_dir::ModelDir;
use crate::runtime::setup;

/// Prompts that come with the program: name and file. The first that fits a language model is its default.
const SHIPPED: [(&str, &[u8]); 1] = [("reader", include_bytes!("../../models/prompts/reader.safetensors"))];

/// Generators that come with the program.
const GENERATORS: [(&str, &[u8]); 1] = [("tasks", include_bytes!("../../models/prompts/tasks.safetensors"))];

/// The name of a prompt in words, without a learned one.
pub const NONE: &str = "none";

/// What a prompt that was named, or is in a file, is called: of a file what its name is without the folders before it, which are of
/// no use to who asks over a network.
pub fn called(name: &str) -> String {
    let path = Path::new(name);
    let is_file = path.extension().is_some_and(|extension| extension == "safetensors");
    let last = if is_file { path.file_stem() } else { path.file_name() };
    last.map_or_else(|| name.to_owned(), |last| last.to_string_lossy().into_owned())
}

/// Names of all that comes with the program.
fn shipped() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().chain(&GENERATORS).map(|(name, _)| *name)
}

/// Whether what is called so comes with the program. Such a name stands for that and not for a file or a folder, which may be
/// given with a separator: `./reader`.
pub fn is_shipped(name: &str) -> bool {
    shipped().any(|shipped| shipped == name)
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Found {
    /// A soft prompt.
    Soft(Arc<SoftPrompt>),
    /// A generator of prompts.
    Generator(Box<GeneratorFile>),
}

impl Found {
    /// Hash of what it does to a reader.
    pub fn hash(&self) -> &str {
        match self {
            Self::Soft(prompt) => prompt.hash(),
            Self::Generator(file) => &file.description.sha256,
        }
    }
}

/// The prompt, or the generator of prompts, of this name or in this file.
///
/// # Errors
/// As [`find`].
pub fn find_any(name: &str) -> Result<Found> {
    if let Some((_, bytes)) = GENERATORS.iter().find(|(shipped, _)| *shipped == name) {
        return GeneratorFile::from_bytes(bytes, Path::new(name)).map(|file| Found::Generator(Box::new(file)));
    }
    match own_file(name)? {
        Some(path) => load(&path),
        None => find(name).map(Found::Soft),
    }
}

/// The prompt, or the generator of prompts, in this file.
///
/// # Errors
/// [`Error::File`]; [`Error::BadFile`] when it is neither, or damaged.
pub fn load(path: &Path) -> Result<Found> {
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    if GeneratorFile::is_one(&bytes) {
        return Ok(Found::Generator(Box::new(GeneratorFile::of_file(&bytes, path)?)));
    }
    SoftPrompt::from_bytes(&bytes, path).map(Found::Soft)
}

/// The file that a name stands for, unless it comes with the program.
fn own_file(name: &str) -> Result<Option<PathBuf>> {
    let path = Path::new(name);
    if is_shipped(name) {
        return Ok(None);
    }
    if path.is_file() {
        return Ok(Some(path.to_path_buf()));
    }
    let own = own_folder()?.join(format!("{name}.safetensors"));
    Ok((!name.contains(['/', '\\']) && own.is_file()).then_some(own))
}

/// Where prompts lie that have names without coming with the program.
fn own_folder() -> Result<PathBuf> {
    Ok(setup::home()?.join("prompts"))
}

/// Names of the user's own prompts, in order; none where there is no folder. One that is called as what comes with the
/// program cannot be had by its name.
fn own_names() -> Result<Vec<String>> {
    Ok(names_in(&own_folder()?))
}

fn names_in(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let prompts = files.filter(|path| path.is_file() && path.extension().is_some_and(|e| e == "safetensors"));
    let names = prompts.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    let mut names: Vec<String> = names.filter(|name| !is_shipped(name)).collect();
    names.sort_unstable();
    names
}

/// The prompt of this name, or in this file.
///
/// Files `NAME.safetensors` in the folder `prompts` of the cache folder have names too.
///
/// # Errors
/// [`Error::Request`] when there is none; [`Error::BadFile`] when it is damaged.
pub fn find(name: &str) -> Result<Arc<SoftPrompt>> {
    if let Some((_, bytes)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
        return SoftPrompt::from_bytes(bytes, Path::new(name));
    }
    if let Some(path) = own_file(name)? {
        return SoftPrompt::load(&path);
    }
    let names: Vec<String> = shipped().map(str::to_owned).chain(own_names()?).chain([NONE.to_owned()]).collect();
    Err(Error::request(
        format!("there is no prompt {name}"),
        format!("prompts are: {}; or give a file that `nunatak train prompt` wrote", names.join(", ")),
    ))
}

/// The prompt that a generator was learned behind.
///
/// # Errors
/// As [`find`]; [`Error::Request`] when the prompt of that name is another by now.
pub fn behind(behind: &Behind) -> Result<Arc<SoftPrompt>> {
    let prompt = find(&behind.name)?;
    if prompt.hash() == behind.hash {
        return Ok(prompt);
    }
    Err(Error::request(
        format!("the prompt generator was learned behind another prompt {}", behind.name),
        "train it again with `nunatak train id-prompt --behind PROMPT`",
    ))
}

/// The prompt that a language model gets when none is named.
pub fn default_for(model: &ModelDir) -> Result<Option<(String, Arc<SoftPrompt>)>> {
    for (shipped, bytes) in SHIPPED {
        let prompt = SoftPrompt::from_bytes(bytes, Path::new(shipped))?;
        if model.stem() == prompt.description.target.name {
            return Ok(Some((shipped.to_owned(), prompt)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_the_program_is_whole_and_has_its_name() {
        let names: Vec<&str> = shipped().collect();
        assert_eq!(names, ["reader", "tasks"]);
        assert!(is_shipped("tasks") && !is_shipped("./tasks") && !is_shipped("tasks/"));
        assert!(matches!(find_any("reader").unwrap(), Found::Soft(prompt) if prompt.positions() > 0));
        let Found::Generator(tasks) = find_any("tasks").unwrap() else { panic!("tasks is a generator") };
        assert!(tasks.description.behind.is_none() && tasks.description.target.name == "SmolLM2-135M-Instruct");
        assert!(find("tasks").is_err() && find_any("nobody").unwrap_err().hint().unwrap().contains("tasks"));
    }

    #[test]
    fn a_file_is_called_without_its_folders() {
        let names = ["reader", "v1.2", "runs/law.safetensors", "./reader", "/somewhere/v1.2.safetensors", ".."];
        assert_eq!(names.map(called), ["reader", "v1.2", "law", "reader", "v1.2", ".."]);
    }

    #[test]
    fn own_prompts_have_the_names_of_their_files() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["trivia.safetensors", "law.safetensors", "reader.safetensors", "notes.txt"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("folder.safetensors")).unwrap();
        assert_eq!(names_in(folder.path()), ["law", "trivia"]);
        assert!(names_in(&folder.path().join("nowhere")).is_empty());
    }
}
