//! What a run needs to go on where it stopped: one safetensors file, replaced as a whole.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::durable;
use crate::error::{Error, Result};
use crate::train::llama::failed;

/// Key of the progress in the file's metadata.
const PROGRESS: &str = "nunatak.progress";

/// Write tensors and a run's progress to `path`: a reader sees the old file or the new one.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, progress: &impl Serialize) -> Result<()> {
    let mut bytes: Vec<(&String, Vec<u8>, Vec<usize>)> = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let data: Vec<f32> = tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(failed)?;
        let little: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        bytes.push((name, little, tensor.dims().to_vec()));
    }
    let views = bytes
        .iter()
        .map(|(name, data, shape)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(Error::internal("writing a checkpoint"))?;
    let progress = serde_json::to_string(progress).map_err(Error::internal("writing a checkpoint"))?;
    let metadata = HashMap::from([(PROGRESS.to_owned(), progress)]);
    let serialised = safetensors::serialize(views, Some(metadata)).map_err(Error::internal("writing a checkpoint"))?;
    durable::replace(path, &serialised)
}

/// Read what [`save`] wrote.
///
/// # Errors
/// [`Error::BadFile`] when the file is damaged or was not written by a training run.
pub fn load<P: DeserializeOwned>(path: &Path, device: &Device) -> Result<(BTreeMap<String, Tensor>, P)> {
    let hint = "start again without --resume, in another folder";
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    let bad = |problem: String| Error::bad_file(path, problem, hint);
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(format!("it is no checkpoint: {e}")))?;
    let progress = header.metadata().as_ref().and_then(|m| m.get(PROGRESS));
    let progress = progress.ok_or_else(|| bad("it holds no training run's progress".into()))?;
    let progress = serde_json::from_str(progress).map_err(|e| bad(format!("its progress cannot be read: {e}")))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("it is no checkpoint: {e}")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(bad(format!("its tensor {name} is not of 32-bit floats")));
        }
        let data: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        tensors.insert(name, Tensor::from_vec(data, view.shape(), device).map_err(failed)?);
    }
    Ok((tensors, progress))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let tensor = Tensor::new(&[[1.0f32, -2.5], [0.0, f32::MIN_POSITIVE]], &Device::Cpu).unwrap();
        for progress in [7u64, 8] {
            save(&path, &BTreeMap::from([("a.b".to_owned(), tensor.clone())]), &progress).unwrap();
            let (tensors, read) = load::<u64>(&path, &Device::Cpu).unwrap();
            assert_eq!(read, progress);
            assert_eq!(tensors["a.b"].to_vec2::<f32>().unwrap(), tensor.to_vec2::<f32>().unwrap());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let tensor = Tensor::new(&[1.0f32; 8], &Device::Cpu).unwrap();
        save(&path, &BTreeMap::from([("a".to_owned(), tensor)]), &1u64).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(load::<u64>(&path, &Device::Cpu).is_err(), "{cut}");
        }
    }
}
