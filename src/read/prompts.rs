//! Learned prompts by name: those that come with the program, those in the cache folder, and files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::read::soft_prompt::SoftPrompt;
use crate::runtime::model_dir::ModelDir;
use crate::runtime::setup;

/// Prompts that come with the program: name and file. The first that fits a language model is its default.
const SHIPPED: [(&str, &[u8]); 1] = [("reader", include_bytes!("../../models/prompts/reader.safetensors"))];

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
    let path = Path::new(name);
    if path.is_file() {
        return SoftPrompt::load(path);
    }
    let own: PathBuf = setup::home()?.join("prompts").join(format!("{name}.safetensors"));
    if !name.contains(['/', '\\']) && own.is_file() {
        return SoftPrompt::load(&own);
    }
    let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).chain(["none"]).collect();
    Err(Error::request(
        format!("there is no prompt {name}"),
        format!("prompts are: {}; or give a file that `nunatak train prompt` wrote", names.join(", ")),
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
