//! What stands before every window of a prompt: words, or a learned prompt.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::digest::short_hex;
use crate::error::{Error, Result};
use crate::read::soft_prompt::{PromptKind, PromptTarget, SoftPrompt};
use crate::runtime::model_dir::{LmShape, ModelDir};

/// The beginning of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Prefix {
    /// Tokens; there may be none.
    Words(Vec<u32>),
    /// A learned prompt.
    Learned(Arc<SoftPrompt>),
    /// A prompt that was written for this one input, perhaps behind a learned one.
    Written {
        /// The learned one.
        behind: Option<Arc<SoftPrompt>>,
        /// What was written.
        prompt: Arc<SoftPrompt>,
    },
}

impl Prefix {
    /// Positions it takes in a window.
    pub fn positions(&self) -> usize {
        match self {
            Self::Words(tokens) => tokens.len(),
            Self::Learned(prompt) => prompt.positions(),
            Self::Written { behind, prompt } => {
                behind.as_ref().map_or(0, |behind| behind.positions()) + prompt.positions()
            }
        }
    }

    /// Whether it was written for one input: what is computed behind it is of no use to another.
    pub fn is_written(&self) -> bool {
        matches!(self, Self::Written { .. })
    }

    /// What states behind this prefix depend on: part of the key of everything that is kept.
    pub fn key(&self) -> String {
        match self {
            Self::Words(tokens) => {
                let mut hash = Sha256::new();
                tokens.iter().for_each(|t| hash.update(t.to_le_bytes()));
                short_hex(&hash.finalize())
            }
            Self::Learned(prompt) => prompt.hash().to_owned(),
            Self::Written { behind: None, prompt } => prompt.hash().to_owned(),
            Self::Written { behind: Some(behind), prompt } => format!("{}+{}", behind.hash(), prompt.hash()),
        }
    }
}

/// Fail unless `model` is the one that `what` was learned for, "the prompt" perhaps with its file.
///
/// # Errors
/// [`Error::Request`] naming both models, or the sizes of both where they have one name.
pub fn check_target(what: &str, target: &PromptTarget, model: &ModelDir, shape: &LmShape) -> Result<()> {
    let stem = model.stem();
    let own = PromptTarget {
        name: stem.to_owned(),
        layers: shape.layers,
        kv_width: shape.kv_heads * shape.head_dim,
        hidden: model.description.hidden,
    };
    if *target == own {
        return Ok(());
    }
    Err(Error::request(
        difference(what, target, &own),
        "use --prompt none, or train one for this model with `nunatak train prompt`",
    ))
}

/// What tells two models apart: the names, or under one name the sizes.
fn difference(what: &str, target: &PromptTarget, own: &PromptTarget) -> String {
    if target.name != own.name {
        return format!("{what} was learned for {}, and the language model is {}", target.name, own.name);
    }
    let sizes = |of: &PromptTarget| {
        format!("{} layers, keys {} wide and embeddings {} wide", of.layers, of.kv_width, of.hidden)
    };
    format!("{what} was learned for another {}, of {}; the language model has {}", own.name, sizes(target), sizes(own))
}

/// Numbers of a prompt of states as the cache holds them: key and value of each layer in turn, each
/// `[kv_heads, positions, head_dim]`.
pub fn cache_order(prompt: &SoftPrompt, shape: &LmShape) -> Vec<Vec<f32>> {
    debug_assert_eq!(prompt.description.kind, PromptKind::States);
    let (positions, heads, dim) = (prompt.positions(), shape.kv_heads, shape.head_dim);
    let part = positions * heads * dim;
    let reorder = |rows: &[f32]| {
        let at = |head: usize, position: usize| (position * heads + head) * dim;
        let heads = (0..heads).flat_map(|head| (0..positions).map(move |position| (head, position)));
        heads.flat_map(|(head, position)| rows[at(head, position)..][..dim].iter().copied()).collect()
    };
    prompt.values().chunks_exact(part.max(1)).map(reorder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_one_name_are_told_apart_by_their_sizes() {
        let own = PromptTarget { name: "tiny".into(), layers: 2, kv_width: 4, hidden: 8 };
        let deeper = PromptTarget { layers: 3, ..own.clone() };
        let said = difference("the prompt p", &deeper, &own);
        assert!(said.contains("the prompt p was learned for another tiny, of 3 layers"), "{said}");
        assert!(said.ends_with("has 2 layers, keys 4 wide and embeddings 8 wide"), "{said}");
        let other = PromptTarget { name: "huge".into(), ..own.clone() };
        let said = difference("the prompt", &other, &own);
        assert_eq!(said, "the prompt was learned for huge, and the language model is tiny");
    }
}
