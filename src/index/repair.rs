//! A damaged index made whole again, of what can still be read of it.
//!
//! The passages are what cannot be computed: words, vectors and graph come from them. So those that can be read are written
//! anew, as a compaction would; the vectors that can be read are taken over, and only the others are encoded again. The
//! index is published as every change is: until then the damaged one stays as it was.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::allowed::Allowed;
use super::change;
use super::manifest::Manifest;
use super::ruins::Ruins;
use super::verify::{Damage, verify};
use super::writer::{self, BuildOptions, BuildReport, Encode};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// What a repair found and did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RepairReport {
    /// What was wrong; empty for a whole index, which was left as it is.
    pub damage: Vec<Damage>,
    /// Passages that could not be read any more, and are no longer in the index.
    pub lost: u64,
    /// Deleted passages that are in the index again, as it could not be read any more which they were.
    pub undeleted: u64,
    /// What was written, if something was.
    pub build: Option<BuildReport>,
}

/// Make the index at `dir` whole. `encode` makes the vectors that cannot be read, of an index that has some. With
/// `accept_loss` also if passages cannot be read any more, or it cannot be read which were deleted.
///
/// # Errors
/// As [`verify`]; [`Error::Index`] saying what would be lost, when that is not accepted, or when no passage can be read;
/// otherwise as [`writer::build`].
pub fn repair(
    dir: &Path,
    accept_loss: bool,
    encode: &mut Encode,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<RepairReport> {
    let manifest = Manifest::read(dir)?;
    let damage = verify(dir, progress)?.damage;
    let mut report = RepairReport { damage, lost: 0, undeleted: 0, build: None };
    if report.damage.is_empty() {
        return Ok(report);
    }
    let options = change::of(&manifest, options);
    let build = writer::write(dir, &options, progress, |writer| {
        if Manifest::read(dir)?.checksum != manifest.checksum {
            return Err(Error::index(dir, "it was changed while it was looked through", "repair it again"));
        }
        let damaged: BTreeSet<&str> = report.damage.iter().map(|damage| damage.file.as_str()).collect();
        let ruins = Arc::new(Ruins::search(dir, &manifest, &damaged));
        (report.lost, report.undeleted) = (ruins.lost, ruins.undeleted);
        if ruins.len() == 0 {
            return Err(Error::index(dir, "none of its passages can be read any more", "build the index again"));
        }
        if !accept_loss && (ruins.lost > 0 || ruins.undeleted > 0) {
            return Err(would_be_lost(dir, &ruins, manifest.passages));
        }
        writer.take_over(ruins.clone());
        let encode = manifest.encoder.is_some().then_some(encode);
        let segments = writer.segments(&mut |sink| ruins.give(sink), encode)?;
        writer.publish(segments, &Allowed::but(ruins.len(), &[]))
    })?;
    Ok(RepairReport { build: Some(build), ..report })
}

fn would_be_lost(dir: &Path, ruins: &Ruins, passages: u64) -> Error {
    let lost = format!("{} of its {passages} passages cannot be read any more", ruins.lost);
    let undeleted =
        format!("it cannot be read any more which passages were deleted: {} would come back", ruins.undeleted);
    let problem = match (ruins.lost, ruins.undeleted) {
        (_, 0) => lost,
        (0, _) => undeleted,
        _ => format!("{lost}, and {undeleted}"),
    };
    let hint = "--accept-loss repairs it all the same; `nunatak index update` with the corpus brings passages back";
    Error::index(dir, problem, hint)
}
