//! A frozen encoder inside of a module that is trained, whatever its family.

use std::path::Path;

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::export::encoder::is_t5;
use crate::train::bert::Bert;
use crate::train::t5::T5Encoder;
use crate::train::texts::PackedTexts;

/// A frozen encoder.
#[derive(Debug)]
pub enum FrozenEncoder {
    /// Of the BERT family.
    Bert(Box<Bert>),
    /// Of the T5 family.
    T5(Box<T5Encoder>),
}

impl FrozenEncoder {
    /// Load the encoder in `folder`, of whichever family it is.
    ///
    /// # Errors
    /// What reading the folder says of it.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        if is_t5(folder)? {
            return Ok(Self::T5(Box::new(T5Encoder::load(folder, device)?)));
        }
        // The seed would be for a head, which nothing here looks at.
        Ok(Self::Bert(Box::new(Bert::load(folder, None, 0, device)?)))
    }

    /// Width of the states.
    pub fn hidden(&self) -> usize {
        match self {
            Self::Bert(bert) => bert.hidden(),
            Self::T5(t5) => t5.hidden(),
        }
    }

    /// Longest text in tokens, if its positions end anywhere; those of a T5 do not.
    pub fn longest(&self) -> Option<usize> {
        match self {
            Self::Bert(bert) => Some(bert.longest()),
            Self::T5(_) => None,
        }
    }

    /// The last layer's states of texts that each stand behind the learned vectors `prompt [m,d]`: `[sum of m + T, d]`, text after
    /// text, and where each begins, with the end. The weights are constants; the gradient goes to `prompt`.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::error::Error::Internal) when an id or a length passes the model's tables.
    pub fn states_behind(&self, texts: &PackedTexts, prompt: &Tensor) -> Result<(Tensor, Vec<usize>)> {
        match self {
            Self::Bert(bert) => bert.states_behind(texts, prompt),
            Self::T5(t5) => t5.states_behind(texts, prompt),
        }
    }
}
