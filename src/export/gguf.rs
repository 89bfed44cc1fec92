//! GGUF files (llama.cpp's format, versions 2 and 3, little-endian), mapped into memory.
//!
//! Metadata is read when the file is opened; a tensor is turned into 32-bit floats only when it is asked
//! for, so that a large model never lies in memory twice. Nothing here writes GGUF, and nothing here knows
//! what the tensors mean. Every length in the file is checked against the bytes that are there: a cut or
//! foreign file is an error, never a panic.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::export::gguf_blocks::BlockFormat;
use crate::export::gguf_header::{TensorInfo, parse};

pub use crate::export::gguf_header::Value;

const HINT: &str = "fetch the file again; if it is whole, it is not a GGUF that this program can read";

/// An opened GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Map the file and read its metadata and its list of tensors.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be opened, [`Error::BadFile`] when it is not a whole GGUF.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        #[expect(
            unsafe_code,
            reason = "mapping is unsafe because another process may change the file; \
                                        what is read from it is checked, and never trusted as more than bytes"
        )]
        let map = unsafe { Mmap::map(&file) }.map_err(Error::file("map", path))?;
        let (metadata, tensors) = parse(&map).map_err(|problem| Error::bad_file(path, problem, HINT))?;
        Ok(Self { path: path.to_path_buf(), map, metadata, tensors })
    }

    /// The file this was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A metadata value, whatever its type.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative.
    pub fn count(&self, key: &str) -> Option<usize> {
        match self.value(key)? {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A float.
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// A list of strings; `None` when there is none or it holds something else.
    pub fn texts(&self, key: &str) -> Option<Vec<&str>> {
        self.list(key, |v| if let Value::Text(text) = v { Some(text.as_str()) } else { None })
    }

    /// A list of integers.
    pub fn ints(&self, key: &str) -> Option<Vec<i64>> {
        self.list(key, |v| if let Value::Int(n) = v { Some(*n) } else { None })
    }

    /// A list of floats.
    pub fn floats(&self, key: &str) -> Option<Vec<f64>> {
        self.list(key, |v| if let Value::Float(x) = v { Some(*x) } else { None })
    }

    fn list<'a, T>(&'a self, key: &str, element: impl Fn(&'a Value) -> Option<T>) -> Option<Vec<T>> {
        match self.value(key)? {
            Value::Array(values) => values.iter().map(element).collect(),
            _ => None,
        }
    }

    /// Names of the tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of a tensor, outermost axis first: a linear layer is `[out, in]`.
    ///
    /// # Errors
    /// [`Error::BadFile`] when there is no such tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.info(name)?.shape)
    }

    /// The elements of a tensor as 32-bit floats, in row-major order.
    ///
    /// # Errors
    /// [`Error::BadFile`] when there is no such tensor, its format is not known, or the
    /// file ends before it does.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        let bad = |problem: String| Error::bad_file(&self.path, format!("tensor {name}: {problem}"), HINT);
        let format = BlockFormat::from_ggml(info.format).ok_or_else(|| {
            Error::bad_file(
                &self.path,
                format!("tensor {name} is packed in ggml's format number {}, which is not known here", info.format),
                format!("use a file in one of: {}", BlockFormat::NAMES),
            )
        })?;
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = elements
            .and_then(|n| format.bytes_of(n))
            .and_then(|length| self.map.get(info.start..info.start.checked_add(length)?))
            .ok_or_else(|| bad(format!("its shape {:?} does not fit the bytes of the file", info.shape)))?;
        Ok(format.dequantise(bytes))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::bad_file(&self.path, format!("it holds no tensor named {name}"), HINT))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    /// A file with one string, one list, and a 2 x 3 tensor of 32-bit floats.
    fn small() -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        text(&mut bytes, "general.architecture");
        bytes.extend(8u32.to_le_bytes());
        text(&mut bytes, "llama");
        text(&mut bytes, "some.list");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(5u32.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend((-7i32).to_le_bytes());
        bytes.extend(9i32.to_le_bytes());
        text(&mut bytes, "weight");
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(3u64.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        for x in [0.0f32, 1.0, 2.0, 3.0, 4.0, -5.5] {
            bytes.extend(x.to_le_bytes());
        }
        bytes
    }

    fn open(bytes: &[u8]) -> Result<Gguf> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Gguf::open(file.path())
    }

    #[test]
    fn metadata_and_tensors_are_read_back() {
        let gguf = open(&small()).unwrap();
        assert_eq!(gguf.text("general.architecture"), Some("llama"));
        assert_eq!(gguf.ints("some.list"), Some(vec![-7, 9]));
        assert_eq!(gguf.texts("some.list"), None);
        assert_eq!(gguf.names().collect::<Vec<_>>(), ["weight"]);
        assert_eq!(gguf.shape("weight").unwrap(), [2, 3]);
        assert_eq!(gguf.tensor("weight").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, -5.5]);
        let missing = gguf.tensor("bias").unwrap_err().to_string();
        assert!(missing.contains("no tensor named bias"), "{missing}");
    }

    #[test]
    fn every_cut_file_is_an_error() {
        let whole = small();
        for length in 0..whole.len() {
            let outcome = open(&whole[..length]).and_then(|gguf| gguf.tensor("weight"));
            assert!(outcome.is_err(), "cut at {length}");
        }
    }

    #[test]
    fn other_files_and_versions_are_named() {
        let zip = open(b"PK\x03\x04 something else").unwrap_err().to_string();
        assert!(zip.contains("does not begin as a GGUF"), "{zip}");
        let mut old = small();
        old[4] = 1;
        let version = open(&old).unwrap_err().to_string();
        assert!(version.contains("GGUF version 1"), "{version}");
    }

    #[test]
    fn an_unknown_format_is_an_error_of_its_tensor_only() {
        let mut bytes = small();
        let data = bytes.len() - 24;
        // The format number stands 12 bytes before the padding that ends at the data.
        let header_end = parse_header_end(&bytes);
        assert!(header_end <= data);
        bytes[header_end - 12] = 77;
        let gguf = open(&bytes).unwrap();
        let problem = gguf.tensor("weight").unwrap_err().to_string();
        assert!(problem.contains("format number 77"), "{problem}");
    }

    fn parse_header_end(bytes: &[u8]) -> usize {
        let name = b"weight";
        let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
        at + name.len() + 4 + 16 + 4 + 8
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), whole_header in any::<bool>()) {
            if whole_header {
                bytes.splice(0..0, b"GGUF\x03\0\0\0".iter().copied());
            }
            let _ = parse(&bytes);
        }

        #[test]
        fn no_flipped_byte_panics(at in 0usize..1000, flip in 1u8..=255) {
            let mut bytes = small();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            if let Ok(gguf) = open(&bytes) {
                for name in gguf.names() {
                    let _ = gguf.tensor(name);
                }
            }
        }
    }
}
