//! Texts one after another, as encoders in training are given them, and padding for where every text needs as many rows.

use std::sync::Arc;

use candle_core::{Device, Error, Result, Tensor};

use crate::runtime::tokenizer::Cut;

/// Texts one after another.
#[derive(Debug, Clone)]
pub struct PackedTexts {
    ids: Vec<u32>,
    types: Vec<u32>,
    /// First token of each text, and the end.
    starts: Arc<[usize]>,
}

impl PackedTexts {
    /// Pack these texts, none of which is empty.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a Cut>) -> Self {
        let (mut ids, mut types, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        for text in texts {
            ids.extend(&text.ids);
            types.extend(&text.types);
            starts.push(ids.len());
        }
        Self { ids, types, starts: starts.into() }
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(super) fn types(&self) -> &[u32] {
        &self.types
    }

    pub(super) fn starts(&self) -> &Arc<[usize]> {
        &self.starts
    }

    /// The texts, embedded as `[T,d]`, each behind the vectors `prompt [m,d]`; and where each begins then, with the end.
    pub(super) fn behind(&self, embedded: &Tensor, prompt: &Tensor) -> Result<(Tensor, Vec<usize>)> {
        let (mut parts, mut starts) = (Vec::new(), vec![0]);
        for text in self.starts.windows(2) {
            let length = text[1] - text[0];
            parts.extend([prompt.clone(), embedded.narrow(0, text[0], length)?]);
            starts.push(starts.last().copied().unwrap_or(0) + prompt.dim(0)? + length);
        }
        Ok((Tensor::cat(&parts, 0)?, starts))
    }
}

/// How packed rows are padded to the longest text.
pub(super) struct Padding {
    pub(super) texts: usize,
    pub(super) longest: usize,
    /// `[texts,1,1,longest]`: 0 where there is a token, and far below where there is none.
    pub(super) mask: Tensor,
    there: Tensor,
    back: Tensor,
}

impl Padding {
    /// Of texts that begin at `starts`, the last of which is the end.
    pub(super) fn new(starts: &[usize], device: &Device) -> Result<Self> {
        let lengths: Vec<usize> = starts.windows(2).map(|w| w[1] - w[0]).collect();
        let longest = lengths.iter().copied().max().ok_or_else(|| Error::Msg("no texts".into()))?;
        let (mut there, mut mask, mut back) = (Vec::new(), Vec::new(), Vec::new());
        for (text, (start, &length)) in starts.iter().zip(&lengths).enumerate() {
            // Rows beyond a text's end are its first.
            there.extend((0..longest).map(|i| (start + if i < length { i } else { 0 }) as u32));
            mask.extend((0..longest).map(|i| if i < length { 0f32 } else { -1e9 }));
            back.extend((0..length).map(|i| (text * longest + i) as u32));
        }
        let index = |rows: Vec<u32>| {
            let count = rows.len();
            Tensor::from_vec(rows, count, device)
        };
        let texts = lengths.len();
        let mask = Tensor::from_vec(mask, (texts, 1, 1, longest), device)?;
        Ok(Self { texts, longest, mask, there: index(there)?, back: index(back)? })
    }

    /// `[T,d]` to `[texts * longest, d]`.
    pub(super) fn pad(&self, packed: &Tensor) -> Result<Tensor> {
        packed.index_select(&self.there, 0)
    }

    /// `[texts * longest, d]` to `[T,d]`.
    pub(super) fn unpad(&self, padded: &Tensor) -> Result<Tensor> {
        padded.index_select(&self.back, 0)
    }
}
