//! What can still be read of a damaged index.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use half::f16;

use super::allowed::Allowed;
use super::checked::CheckedFile;
use super::manifest::{Manifest, SegmentEntry, generation_name};
use super::store::{PASSAGES, Store, key_hash};
use super::vectors::HALVES;
use super::{deleted, with_sums};
use crate::error::Result;
use crate::types::{Passage, PassageId};

/// A damaged index: its passages and vectors, as far as they can be read.
#[derive(Debug)]
pub(crate) struct Ruins {
    segments: Vec<Ruin>,
    /// The passages that can be read and were not deleted, in order. Of several of one id, where it is not known which were
    /// deleted, the one that came last.
    readable: Vec<PassageId>,
    /// The row of each of them by the hash of its id.
    rows: HashMap<u64, PassageId>,
    /// Passages that cannot be read.
    pub lost: u64,
    /// Deleted passages of which nobody knows any more that they were.
    pub undeleted: u64,
    dim: usize,
}

/// A segment of it.
#[derive(Debug)]
struct Ruin {
    first: u32,
    /// The passages, by row: reading one in a damaged block fails, and others are read.
    store: Option<Store>,
    /// The vectors, in the same way.
    halves: Option<CheckedFile>,
}

impl Ruins {
    /// Look through the index at `dir`, in which the files of these names are `damaged`; the others were just found whole.
    pub fn search(dir: &Path, manifest: &Manifest, damaged: &BTreeSet<&str>) -> Self {
        let mut first = 0;
        let ruin = |segment: &SegmentEntry| {
            let ruin = Ruin::of(dir, segment, damaged, first);
            first += segment.passages as u32;
            ruin
        };
        let segments = manifest.segments.iter().map(ruin).collect();
        let dim = manifest.encoder.as_ref().map_or(0, |encoder| encoder.dim);
        let mut ruins = Self { segments, readable: Vec::new(), rows: HashMap::new(), lost: 0, undeleted: 0, dim };
        let alive = deleted::alive(dir, manifest).ok();
        ruins.look_through(manifest, alive.as_ref());
        ruins
    }

    fn look_through(&mut self, manifest: &Manifest, alive: Option<&Allowed>) {
        for row in (0..manifest.rows() as u32).map(PassageId) {
            if alive.is_some_and(|alive| !alive.contains(row)) {
                continue;
            }
            // A batch is read and checked as a whole, so a passage is lost with its neighbours.
            match self.key_hash(row) {
                Some(hash) => {
                    self.rows.insert(hash, row);
                    self.readable.push(row);
                }
                None => self.lost += 1,
            }
        }
        if alive.is_none() {
            // What was replaced is in an earlier segment, too.
            self.readable = self.rows.values().copied().collect();
            self.readable.sort_unstable();
            self.undeleted = (self.readable.len() as u64 + self.lost).saturating_sub(manifest.passages);
        }
    }

    fn key_hash(&self, row: PassageId) -> Option<u64> {
        let (ruin, own) = self.of(row)?;
        ruin.store.as_ref()?.key(own).ok().map(key_hash)
    }

    /// The segment of a row, and the row in it.
    fn of(&self, row: PassageId) -> Option<(&Ruin, PassageId)> {
        let at = self.segments.partition_point(|segment| segment.first <= row.0).checked_sub(1)?;
        let ruin = self.segments.get(at)?;
        Some((ruin, PassageId(row.0 - ruin.first)))
    }

    /// Passages that can be read.
    pub fn len(&self) -> usize {
        self.readable.len()
    }

    /// Give them to `sink`, in order.
    pub fn give(&self, sink: &mut dyn FnMut(Passage) -> Result<()>) -> Result<()> {
        for &row in &self.readable {
            if let Some((Some(store), own)) = self.of(row).map(|(ruin, own)| (ruin.store.as_ref(), own)) {
                sink(store.passage(own)?)?;
            }
        }
        Ok(())
    }

    /// The vector `[dim]` of a passage that was given, if it can be read.
    pub fn vector(&self, passage: &Passage) -> Option<&[f16]> {
        let (ruin, own) = self.of(*self.rows.get(&key_hash(&passage.key))?)?;
        (ruin.store.as_ref()?.key(own).ok()? == passage.key).then_some(())?;
        ruin.halves.as_ref()?.numbers::<f16>(own.row() * self.dim, self.dim).ok()
    }
}

impl Ruin {
    fn of(dir: &Path, segment: &SegmentEntry, damaged: &BTreeSet<&str>, first: u32) -> Self {
        let generation = generation_name(segment.generation);
        let folder = dir.join(&generation);
        let mut sums = with_sums(&folder, &segment.files).ok();
        let mut open = |name: &str| {
            if !damaged.contains(format!("{generation}/{name}").as_str()) {
                return CheckedFile::open_own(&folder.join(name)).ok();
            }
            let (entry, blocks) = sums.as_mut()?.remove(name)?;
            CheckedFile::open(&folder.join(name), entry.bytes, blocks).ok()
        };
        let store = open(PASSAGES).and_then(|file| Store::open_texts(file, segment.passages as usize).ok());
        Self { first, store, halves: open(HALVES) }
    }
}
