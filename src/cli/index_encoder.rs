//! The encoder that made the vectors of an index, for the questions to it and for passages that are added.

use crate::encode::Encoder;
use crate::error::Result;
use crate::index::manifest::EncoderIdentity;
use crate::progress::Progress;
use crate::runtime::device::{Device, is_for_processors};
use crate::runtime::model_dir::ModelDir;
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup;

/// Precisions that an encoder's vectors may have been made in.
const PRECISIONS: [&str; 3] = ["int8", "fp16", "fp32"];

/// Open the encoder of an index, and give what it was opened from. One of another fingerprint is given where there is no better:
/// who uses it says what does not fit.
pub(super) fn open(
    identity: &EncoderIdentity,
    options: &RuntimeOptions,
    progress: &dyn Progress,
) -> Result<(ModelDir, Encoder)> {
    let model = find(identity, options, progress)?;
    let mut options = options.clone();
    if options.device != Device::Cpu && is_for_processors(&model) {
        // The passages' vectors are of this encoder, so questions must be; one question takes milliseconds there.
        progress.note(&format!(
            "the index's encoder {} runs on the processor: a GPU has no kernels for 8-bit integers",
            model.name()
        ));
        options = RuntimeOptions { device: Device::Cpu, beside: options.beside.or(Some(options.device)), ..options };
    }
    let encoder = Encoder::open(&model, &options)?;
    Ok((model, encoder))
}

/// A name without a precision stands for that which suits the device, and the index may have been built on another one.
fn find(identity: &EncoderIdentity, options: &RuntimeOptions, progress: &dyn Progress) -> Result<ModelDir> {
    let usual = setup::model(&identity.name, options, progress)?;
    if usual.fingerprint() == identity.fingerprint || usual.stem() != identity.name {
        return Ok(usual);
    }
    let others = PRECISIONS.iter().filter(|precision| **precision != usual.description.precision);
    let mut others =
        others.filter_map(|precision| setup::model(&format!("{}@{precision}", identity.name), options, progress).ok());
    Ok(others.find(|other| other.fingerprint() == identity.fingerprint).unwrap_or(usual))
}
