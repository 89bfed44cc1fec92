//! Models that come with the program: what was learned over a starter model, made whole on first use.

use std::path::Path;

use crate::error::{Error, Result};
use crate::export::learned::{self, Learned};
use crate::export::{Precision, bert};
use crate::progress::Progress;
use crate::runtime::model_dir::ModelDir;
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup::{EXPORT_VERSION, Manifest, cache, default_precision, source, store};

/// Name and file of each. All are cross-encoders.
const SHIPPED: [(&str, &[u8]); 1] = [("reranker", include_bytes!("../../../models/reranker.safetensors"))];

/// Their names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

/// The one of this name in this precision, made in the cache folder if it is not there; `None` when none has that name.
pub(super) fn model(
    name: &str,
    precision: Option<&str>,
    options: &RuntimeOptions,
    progress: &dyn Progress,
) -> Result<Option<ModelDir>> {
    let Some((name, bytes)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) else { return Ok(None) };
    let precision: Precision = precision.map_or_else(|| default_precision(options, progress), str::parse)?;
    let learned = Learned::read(bytes, Path::new(name))?;
    let base = Manifest::get()?.starter(&learned.base).ok_or_else(|| Error::Internal {
        doing: "making a learned model whole",
        message: format!("{name} was learned over {}, which is no starter model", learned.base),
    })?;
    let home = cache::home()?;
    let dir = store::place(&home, name, precision.name());
    let version = format!("export {EXPORT_VERSION} of {} over {}", learned.sha256, base.wheel.sha256);
    if cache::is_installed(&dir, store::IMPORTED) {
        return Err(Error::model(
            *name,
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
            learned::label(out, &learned.source, &learned.priors)?;
            progress.finish();
            Ok(())
        })?;
    }
    Ok(Some(ModelDir::open(&dir)?.called(format!("{name}@{precision}"))))
}
