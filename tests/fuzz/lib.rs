//! What the targets share: files in a folder that goes away, and an index that is changed and signed again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use nunatak::index::Index;
use nunatak::index::verify::verify;
use nunatak::progress::Quiet;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// The fuzzer takes every panic for a finding, caught or not. Where a library's panics are caught, this leaves it those that are not: they
/// end the process as they leave the target.
pub fn only_uncaught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}

/// A folder of this process, in memory where the system has such a place: a fuzzer writes some thousand files a second.
pub fn folder() -> PathBuf {
    FOLDER.with_borrow_mut(|folder| {
        let shared = Path::new("/dev/shm");
        let new = || if shared.is_dir() { TempDir::new_in(shared) } else { TempDir::new() };
        folder.get_or_insert_with(|| new().expect("a temporary folder")).path().to_path_buf()
    })
}

/// These bytes as the file of this name.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("a temporary file");
    path
}

/// The index that is kept as an example of the format, copied to be changed.
pub struct Copied {
    /// Where it lies.
    pub path: PathBuf,
    /// Every file of its segments as it was, by its path within.
    pub files: BTreeMap<String, Vec<u8>>,
    manifest: Value,
}

impl Copied {
    /// Of `tests/compat/index_v3`.
    pub fn new() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compat/index_v3");
        let path = folder().join("index");
        let mut files = BTreeMap::new();
        for folder in fs::read_dir(&source).expect("the example index").flatten().filter(|e| e.path().is_dir()) {
            let name = folder.file_name().to_string_lossy().into_owned();
            fs::create_dir_all(path.join(&name)).expect("a temporary folder");
            for file in fs::read_dir(folder.path()).expect("its segment").flatten() {
                let bytes = fs::read(file.path()).expect("its file");
                files.insert(format!("{name}/{}", file.file_name().to_string_lossy()), bytes);
            }
        }
        let text = fs::read(source.join("manifest.json")).expect("its manifest");
        let mut manifest: Value = serde_json::from_slice(&text).expect("its manifest");
        if let Some(fields) = manifest.as_object_mut() {
            fields.retain(|name, _| name != "checksum");
        }
        let copied = Self { path, files, manifest };
        copied.files.iter().for_each(|(name, bytes)| fs::write(copied.path.join(name), bytes).expect("a copy"));
        copied.sign(copied.manifest.clone());
        copied
    }

    /// Put `bytes` in the place of one file, with every checksum made to fit; gives the file back with [`Self::restore`].
    pub fn replace(&self, name: &str, bytes: &[u8]) {
        let (segment, file) = name.split_once('/').expect("a file of a segment");
        let mut manifest = self.manifest.clone();
        fs::write(self.path.join(name), bytes).expect("a changed file");
        let mut signed = vec![(file.to_owned(), bytes.to_vec())];
        if file != "deleted.bits" && file != "sums.crc" {
            let prefix = format!("{segment}/");
            let of_segment = self.files.iter().filter_map(|(n, b)| Some((n.strip_prefix(&prefix)?, b.as_slice())));
            let sums: Vec<u8> = of_segment
                .filter(|(n, _)| *n != "sums.crc")
                .map(|(n, b)| if n == file { bytes } else { b })
                .flat_map(|content| content.chunks(4096).flat_map(|block| crc32fast::hash(block).to_le_bytes()))
                .collect();
            fs::write(self.path.join(segment).join("sums.crc"), &sums).expect("changed sums");
            signed.push(("sums.crc".to_owned(), sums));
        }
        for (file, bytes) in signed {
            let entry = serde_json::json!({"bytes": bytes.len(), "sha256": hex(&Sha256::digest(&bytes))});
            set(&mut manifest, segment, &file, &entry);
        }
        self.sign(manifest);
    }

    /// The file as it was.
    pub fn restore(&self, name: &str) {
        let (segment, _) = name.split_once('/').expect("a file of a segment");
        for name in [name.to_owned(), format!("{segment}/sums.crc")] {
            self.files.get(&name).map(|bytes| fs::write(self.path.join(&name), bytes).expect("a file put back"));
        }
    }

    /// Write this manifest with the checksum that it must end with.
    fn sign(&self, manifest: Value) {
        let text = serde_json::to_string_pretty(&manifest).expect("a manifest");
        sign(&self.path, text.trim_end().trim_end_matches('}').trim_end().as_bytes());
    }
}

impl Default for Copied {
    fn default() -> Self {
        Self::new()
    }
}

/// Do with an index what its users do: open it, look at every passage, search it by words and by meaning, verify it. Each may fail.
pub fn use_index(path: &Path) {
    if let Ok(index) = Index::open(path) {
        for row in index.passages() {
            let _ = index.passage(row).map(|passage| index.row_of(&passage.key));
        }
        let _ = index.lexical().search("passage about ice", 10, None);
        if let Some(dense) = index.dense() {
            let dim = dense.encoder().dim;
            let vector = vec![1.0 / (dim as f32).sqrt(); dim];
            let _ = (dense.search(&vector, 10, 0, None), dense.search_exact(&vector, 10, None));
        }
    }
    let _ = verify(path, &Quiet);
}

/// Write `head`, a manifest up to its checksum, and the checksum that makes it whole.
pub fn sign(index: &Path, head: &[u8]) {
    let checksum = hex(&Sha256::digest(head));
    let whole = [head, b",\n  \"checksum\": \"", checksum.as_bytes(), b"\"\n}\n"].concat();
    fs::write(index.join("manifest.json"), whole).expect("a manifest");
}

/// Say of a file what `entry` says, in its segment or among what was deleted.
fn set(manifest: &mut Value, segment: &str, file: &str, entry: &Value) {
    let number = segment.trim_start_matches("gen-").parse::<u64>().expect("the number of a folder");
    let is_here = |value: &Value| value["generation"] == number;
    if file == "deleted.bits" {
        manifest["deleted"]["file"] = entry.clone();
    } else if let Some(segments) = manifest["segments"].as_array_mut() {
        segments.iter_mut().filter(|s| is_here(s)).for_each(|s| s["files"][file] = entry.clone());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
