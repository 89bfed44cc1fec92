//! Which libraries of the system a GPU build of ONNX Runtime needs, and which of them the loader finds.
//!
//! The loader itself names the first that it misses and stops there; who sets up a machine wants all of them at once.

use std::fs::File;
use std::path::Path;

use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn, FileHeader, SectionHeader};
use object::{Endianness, ReadCache};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::runtime::device::Device;

/// A library that a provider needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GpuLibrary {
    /// As the loader looks for it.
    pub name: String,
    /// Whether it found it.
    pub found: bool,
    /// Where it comes from.
    pub from: &'static str,
}

/// What to do about those that are missing.
pub const HINT: &str =
    "packages hold them in folders named lib, which LD_LIBRARY_PATH must name before the program starts";
/// What comes with every system that has a C and a C++ library.
const SYSTEM: [&str; 9] = [
    "libc.so",
    "libm.so",
    "libdl.so",
    "librt.so",
    "libpthread.so",
    "libstdc++.so",
    "libgcc_s.so",
    "ld-linux",
    "libonnxruntime",
];
/// Loaded by the provider when a graph first wants it, and so not named by its file.
const LATER: [&str; 1] = ["libcudnn.so.9"];
/// Where libraries come from, by how their names begin: packages of the ordinary package client, but for the driver.
const ORIGINS: [(&str, &str); 8] = [
    ("libcuda.so", "the NVIDIA driver"),
    ("libcudart", "package nvidia-cuda-runtime"),
    ("libcublas", "package nvidia-cublas"),
    ("libcurand", "package nvidia-curand"),
    ("libcufft", "package nvidia-cufft"),
    ("libcudnn", "package nvidia-cudnn-cu13"),
    ("libnvinfer", "package tensorrt-cu13, version 10"),
    ("libnvonnxparser", "package tensorrt-cu13, version 10"),
];

/// The libraries that models on `device` need beside `runtime`, the ONNX Runtime library; none for the processor, and on systems
/// whose libraries are not looked into.
///
/// # Errors
/// [`Error::BadFile`] when a provider lies beside the runtime and is no library.
pub fn needed(runtime: &Path, device: Device) -> Result<Vec<GpuLibrary>> {
    let providers: &[&str] = match device {
        Device::Cpu | Device::Auto => &[],
        Device::Cuda(_) => &["cuda"],
        Device::TensorRt(_) => &["tensorrt", "cuda"],
    };
    let mut names: Vec<String> = Vec::new();
    for provider in providers {
        let path = runtime.with_file_name(format!("libonnxruntime_providers_{provider}.so"));
        if !path.is_file() {
            continue;
        }
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        let dynamic = dynamic_names(&file).map_err(|error| {
            Error::bad_file(
                &path,
                format!("it is no library: {error}"),
                "remove its folder and run `nunatak setup` again",
            )
        })?;
        names.extend(dynamic);
        names.extend(LATER.map(str::to_owned));
    }
    names.retain(|name| !SYSTEM.iter().any(|system| name.starts_with(system)));
    names.sort();
    names.dedup();
    Ok(names.into_iter().map(|name| GpuLibrary { found: loads(&name), from: origin(&name), name }).collect())
}

/// Where a library comes from.
pub fn origin(name: &str) -> &'static str {
    ORIGINS.iter().find(|(begin, _)| name.starts_with(begin)).map_or("the CUDA toolkit", |(_, origin)| origin)
}

/// The libraries that a library names.
fn dynamic_names(file: &File) -> object::Result<Vec<String>> {
    let data = &ReadCache::new(file);
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let mut names = Vec::new();
    for section in sections.iter() {
        let Some((entries, strings)) = section.dynamic(endian, data)? else { continue };
        let strings = sections.strings(endian, data, strings)?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED) {
            let name = entry.val32(endian).and_then(|at| strings.get(at).ok()).unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(names)
}

/// Whether the loader finds a library, by loading it.
fn loads(name: &str) -> bool {
    #[expect(unsafe_code, reason = "the loader alone knows where it looks")]
    // SAFETY: loading runs the library's initialisers. These are the libraries that ONNX Runtime loads in the same process.
    let loaded = unsafe { libloading::Library::new(name) };
    loaded.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_library_needs_is_read_from_its_file() {
        // This program is one that needs others, as providers do.
        let program = std::env::current_exe().unwrap();
        let names = dynamic_names(&File::open(&program).unwrap()).unwrap();
        assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
        let folder = tempfile::tempdir().unwrap();
        let runtime = folder.path().join("libonnxruntime.so");
        assert_eq!(needed(&runtime, Device::Cuda(0)).unwrap(), []);
        std::fs::copy(&program, folder.path().join("libonnxruntime_providers_cuda.so")).unwrap();
        let found = needed(&runtime, Device::Cuda(0)).unwrap();
        let names: Vec<&str> = found.iter().map(|library| library.name.as_str()).collect();
        assert_eq!(names, LATER, "what every system has is not named");
        assert_eq!(needed(&runtime, Device::Cpu).unwrap(), []);
        std::fs::write(folder.path().join("libonnxruntime_providers_cuda.so"), "text").unwrap();
        assert!(needed(&runtime, Device::Cuda(0)).unwrap_err().to_string().contains("it is no library"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_loader_is_asked() {
        assert!(loads("libc.so.6") && !loads("libno-such-thing.so.3"));
        assert_eq!(origin("libcublasLt.so.13"), "package nvidia-cublas");
        assert_eq!(origin("libcuda.so.1"), "the NVIDIA driver");
    }
}
