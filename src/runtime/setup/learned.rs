//! Models that come with the program: what was learned over a starter model, made whole on first use.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::digest::short_hex;
use crate::error::{Error, Result};
use crate::export::learned::{self, Learned};
use crate::export::{Precision, bert};
use crate::progress::Progress;
use crate::runtime::model_dir::{ModelDir, Prior};
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup::{EXPORT_VERSION, Manifest, cache, default_precision, source, store};

/// A cross-encoder that comes with the program.
struct Shipped {
    name: &'static str,
    file: &'static [u8],
    /// [`Prior`]s that were found after its training, as JSON. They stand before those in the file,
    /// and the first that fits counts.
    priors: &'static str,
}

const SHIPPED: [Shipped; 1] = [Shipped {
    name: "reranker",
    file: include_bytes!("../../../models/reranker.safetensors"),
    priors: include_str!("../../../models/reranker-priors.json"),
}];

/// Their names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|shipped| shipped.name)
}

/// The one of this name in this precision, made in the cache folder if it is not there; `None` when none has that name.
pub(super) fn model(
    name: &str,
    precision: Option<&str>,
    options: &RuntimeOptions,
    progress: &dyn Progress,
) -> Result<Option<ModelDir>> {
    let Some(shipped) = SHIPPED.iter().find(|shipped| shipped.name == name) else { return Ok(None) };
    let (name, bytes) = (shipped.name, shipped.file);
    let precision: Precision = precision.map_or_else(|| default_precision(options, progress), str::parse)?;
    let learned = Learned::read(bytes, Path::new(name))?;
    let base = Manifest::get()?.starter(&learned.base).ok_or_else(|| Error::Internal {
        doing: "making a learned model whole",
        message: format!("{name} was learned over {}, which is no starter model", learned.base),
    })?;
    let home = cache::home()?;
    let dir = store::place(&home, name, precision.name());
    let mut priors: Vec<Prior> = serde_json::from_str(shipped.priors).map_err(Error::internal("reading priors"))?;
    priors.extend_from_slice(&learned.priors);
    let version = format!(
        "export {EXPORT_VERSION} of {} over {}, with {}",
        learned.sha256,
        base.wheel.sha256,
        short_hex(&Sha256::digest(shipped.priors))
    );
    if cache::is_installed(&dir, store::IMPORTED) {
        return Err(Error::model(
            name,
            format!("a model that comes with the program has this name, and so has one of yours, in {}", dir.display()),
            "move that folder elsewhere, and import it under another name",
        ));
    }
    if !cache::is_installed(&dir, &version) {
        let base = source(base, options, progress)?;
        cache::install(&home, &dir, &version, progress, |out, scratch| {
            progress.start(&format!("exporting {name} to {precision}"), None, "");
            let whole = scratch.join("whole");
            let learned = learned::unfold(bytes, Path::new(name), &base, &whole)?;
            bert::export_cross_encoder(&whole, out, precision)?;
            learned::label(out, &learned.source, &priors)?;
            progress.finish();
            Ok(())
        })?;
    }
    Ok(Some(ModelDir::open(&dir)?.called(format!("{name}@{precision}"))))
}
