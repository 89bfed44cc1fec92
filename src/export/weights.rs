//! Named tensors as 32-bit floats, from a safetensors file or a folder of them.
//!
//! Files are memory-mapped: opening a model reads its headers, and a tensor is read when it is asked for.
//! What a tensor is called and what it means is the exporters' business; GGUF files are read by
//! [`gguf`](crate::export::gguf).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde::Deserialize;

use crate::error::{Error, Result};

/// The single file of a small model's folder.
const SINGLE: &str = "model.safetensors";
/// The list of files of a large model's folder.
const SHARDS: &str = "model.safetensors.index.json";
/// Bytes before the safetensors header: its length.
const HEADER_LENGTH_BYTES: usize = 8;

/// The tensors of one model.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    shards: Vec<Shard>,
    /// Which shard holds a tensor.
    index: BTreeMap<String, usize>,
}

/// One mapped safetensors file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the tensors begin in `map`.
    data_start: usize,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Open a safetensors file, or a folder with `model.safetensors` or `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is not there, [`Error::BadFile`] for one that is damaged or of
    /// another format; both name the file.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_folder(path);
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => Self::from_shards(path, vec![Shard::open(path)?]),
            _ => Err(Error::bad_file(path, "is not a safetensors file", "give a model folder or a .safetensors file")),
        }
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        if single.is_file() {
            return Self::from_shards(folder, vec![Shard::open(&single)?]);
        }
        let list = folder.join(SHARDS);
        if !list.is_file() {
            return Err(Error::bad_file(
                folder,
                format!("has neither {SINGLE} nor {SHARDS}"),
                "give the folder of a model whose weights are in the safetensors format",
            ));
        }
        let text = std::fs::read_to_string(&list).map_err(Error::file("read", &list))?;
        let ShardIndex { weight_map } = serde_json::from_str(&text).map_err(|e| {
            Error::bad_file(&list, format!("is not a list of weight files: {e}"), "fetch the model again")
        })?;
        let mut files: Vec<&String> = weight_map.values().collect();
        files.sort_unstable();
        files.dedup();
        // A name from a file that somebody else wrote must not lead out of the folder.
        if let Some(outside) = files.iter().find(|f| Path::new(f).file_name() != Some(f.as_ref())) {
            return Err(Error::bad_file(
                &list,
                format!("names a file outside its folder: {outside}"),
                "fetch the model again",
            ));
        }
        let shards = files.iter().map(|f| Shard::open(&folder.join(f))).collect::<Result<Vec<_>>>()?;
        let weights = Self::from_shards(folder, shards)?;
        match weight_map.keys().find(|name| !weights.contains(name)) {
            None => Ok(weights),
            Some(name) => Err(weights.missing(name)),
        }
    }

    fn from_shards(path: &Path, shards: Vec<Shard>) -> Result<Self> {
        let mut index = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for name in shard.metadata.offset_keys() {
                if index.insert(name.clone(), number).is_some() {
                    return Err(Error::bad_file(
                        &shard.path,
                        format!("holds the tensor {name}, which another file of the model holds too"),
                        "fetch the model again",
                    ));
                }
            }
        }
        Ok(Self { path: path.to_path_buf(), shards, index })
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Shape of a tensor, outermost axis first.
    ///
    /// # Errors
    /// [`Error::Model`] naming the tensor when there is none.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.find(name).map(|(_, info)| info.shape.clone())
    }

    /// Elements of a tensor in row-major order, as 32-bit floats whatever they are stored as.
    ///
    /// # Errors
    /// [`Error::Model`] naming the tensor when there is none, or when it does not hold floats.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let (shard, info) = self.find(name)?;
        let (start, end) = info.data_offsets;
        let bytes = shard
            .map
            .get(shard.data_start + start..shard.data_start + end)
            .ok_or_else(|| shard.damaged("ends before its tensors do"))?;
        match info.dtype {
            Dtype::F32 => Ok(floats(bytes, f32::from_le_bytes)),
            Dtype::F16 => Ok(floats(bytes, |b| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => Ok(floats(bytes, |b| bf16::from_le_bytes(b).to_f32())),
            Dtype::F64 => Ok(floats(bytes, |b| f64::from_le_bytes(b) as f32)),
            other => Err(Error::model(
                self.path.display().to_string(),
                format!("the tensor {name} holds {other:?}, not floats"),
                "use a model with F32, F16, BF16 or F64 weights",
            )),
        }
    }

    /// Like [`Self::tensor`], for a tensor that must have this shape.
    ///
    /// # Errors
    /// Also [`Error::Model`] with both shapes when it has another.
    pub fn tensor_of(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let found = self.shape(name)?;
        if found == shape {
            return self.tensor(name);
        }
        Err(Error::model(
            self.path.display().to_string(),
            format!("the tensor {name} has shape {found:?}, but its config.json asks for {shape:?}"),
            "the weights and config.json belong to different models: fetch the model again",
        ))
    }

    fn find(&self, name: &str) -> Result<(&Shard, &safetensors::tensor::TensorInfo)> {
        let shard = self.index.get(name).and_then(|&number| self.shards.get(number));
        shard.and_then(|s| s.metadata.info(name).map(|info| (s, info))).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        Error::model(
            self.path.display().to_string(),
            format!("the weights have no tensor {name}"),
            "the weights are of another architecture than config.json says, or a part of them is missing",
        )
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        #[expect(
            unsafe_code,
            reason = "a read-only map; a file that another process cuts short while it is mapped is the known \
                      risk of mapping, and reading weights of many GB into memory is the worse choice"
        )]
        // SAFETY: the map is only ever read, and the file is not written by this process.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::file("map", path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
            Error::bad_file(path, format!("is not a whole safetensors file: {e}"), "it may be cut off: fetch it again")
        })?;
        Ok(Self { path: path.to_path_buf(), map, metadata, data_start: HEADER_LENGTH_BYTES + header })
    }

    fn damaged(&self, problem: &str) -> Error {
        Error::bad_file(&self.path, problem, "fetch it again")
    }
}

/// Little-endian elements of `N` bytes as floats; safetensors does not promise their alignment.
fn floats<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|&element| convert(element)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::serialize_to_file;
    use safetensors::tensor::TensorView;

    use super::*;

    const VALUES: [f32; 4] = [1.0, -2.5, 0.0, 65504.0];

    fn write(path: &Path, tensors: &[(&str, Dtype, Vec<u8>)]) {
        let views: HashMap<String, TensorView> = tensors
            .iter()
            .map(|(name, dtype, bytes)| ((*name).to_owned(), TensorView::new(*dtype, vec![2, 2], bytes).unwrap()))
            .collect();
        serialize_to_file(&views, None, path).unwrap();
    }

    fn f32_bytes() -> Vec<u8> {
        VALUES.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn every_float_type_reads_as_f32() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let f16s = VALUES.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        let bf16s = VALUES.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        let f64s = VALUES.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
        write(
            &path,
            &[
                ("a", Dtype::F32, f32_bytes()),
                ("b", Dtype::F16, f16s),
                ("c", Dtype::BF16, bf16s),
                ("d", Dtype::F64, f64s),
            ],
        );
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        for name in ["a", "b", "d"] {
            assert_eq!(weights.tensor_of(name, &[2, 2]).unwrap(), VALUES, "{name}");
        }
        // bfloat16 has 8 bits of precision: the largest half rounds up to the next power of two.
        assert_eq!(weights.tensor("c").unwrap(), [1.0, -2.5, 0.0, 65536.0]);
    }

    #[test]
    fn a_folder_of_shards_reads_as_one_model() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("one.safetensors"), &[("a", Dtype::F32, f32_bytes())]);
        write(&dir.path().join("two.safetensors"), &[("b", Dtype::F32, f32_bytes())]);
        let list = |map: &str| std::fs::write(dir.path().join(SHARDS), format!(r#"{{"weight_map": {map}}}"#)).unwrap();

        list(r#"{"a": "one.safetensors", "b": "two.safetensors"}"#);
        assert_eq!(Weights::open(dir.path()).unwrap().tensor("b").unwrap(), VALUES);

        list(r#"{"a": "one.safetensors", "c": "two.safetensors"}"#);
        assert!(Weights::open(dir.path()).unwrap_err().to_string().contains("no tensor c"));

        list(r#"{"a": "../one.safetensors"}"#);
        assert!(Weights::open(dir.path()).unwrap_err().to_string().contains("outside its folder"));

        list(r#"{"a": "three.safetensors"}"#);
        assert!(Weights::open(dir.path()).unwrap_err().to_string().contains("three.safetensors"));
    }

    #[test]
    fn faults_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SINGLE);
        let says = |result: Result<Weights>, words: &str| {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        };
        says(Weights::open(dir.path()), "has neither model.safetensors");
        write(&path, &[("a", Dtype::F32, f32_bytes()), ("i", Dtype::U32, f32_bytes())]);
        let weights = Weights::open(dir.path()).unwrap();
        assert!(weights.tensor("b").unwrap_err().to_string().contains("no tensor b"));
        assert!(weights.tensor("i").unwrap_err().to_string().contains("U32"));
        assert!(weights.tensor_of("a", &[4]).unwrap_err().to_string().contains("[2, 2]"));

        let whole = std::fs::read(&path).unwrap();
        for length in [0, 4, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            says(Weights::open(&path), "not a whole safetensors file");
        }
        says(Weights::open(&dir.path().join("absent.safetensors")), "cannot open");
        std::fs::write(dir.path().join("a.bin"), "x").unwrap();
        says(Weights::open(&dir.path().join("a.bin")), "is not a safetensors file");
    }
}
