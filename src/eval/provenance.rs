//! Where a number comes from: program, models, index, questions, settings, machine. Two runs may be
//! continued as one only if all but the machine agree.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::eval::dataset::Dataset;

/// What the caller, who opened the pipeline, knows of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Setup {
    /// Every setting that may move a result, by its name on the command line.
    pub settings: Map<String, Value>,
    /// Seed of all sampling, that of the bootstrap included.
    pub seed: u64,
    /// Fingerprint of each model by its role: `encoder`, `reranker`, `reader`, ...
    pub models: BTreeMap<String, String>,
    /// The index.
    pub index: Option<IndexIdentity>,
    /// Version of ONNX Runtime, if a model was run.
    pub onnxruntime: Option<String>,
    /// Where confidences come from, if there are any.
    #[serde(default)]
    pub calibration: Option<CalibrationIdentity>,
}

/// Which index was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexIdentity {
    /// Its folder, for people.
    pub path: String,
    /// sha256 of its manifest, which holds a checksum of every other file.
    pub manifest_sha256: String,
    /// Passages in it.
    pub passages: u64,
}

/// Which questions were asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionsIdentity {
    /// The file, for people.
    pub path: String,
    /// sha256 of its bytes.
    pub sha256: String,
    /// Questions asked, after `--limit`.
    pub n: usize,
    /// Bad lines left out.
    pub skipped: usize,
}

/// Where confidences come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationIdentity {
    /// Its file, for people.
    pub name: String,
    /// sha256 of that file.
    pub sha256: String,
    /// sha256 of the questions it was fitted on; `None` = it was fitted on nothing.
    pub fitted_on: Option<String>,
    /// Why it does not fit the models and settings in use, if it does not.
    pub mismatch: Option<String>,
}

/// Where a run was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Cores this process may use.
    pub cores: usize,
    /// The processor's name, where the system tells.
    pub cpu: Option<String>,
    /// Operating system and architecture.
    pub system: String,
}

/// Versions of what made a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// This crate.
    pub nunatak: String,
    /// The commit it was built from, if it was built in a git checkout.
    pub git: Option<String>,
    /// ONNX Runtime.
    pub onnxruntime: Option<String>,
}

/// All of it: the part of `report.json` that is known before the first question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Every setting that may move a result.
    pub settings: Map<String, Value>,
    /// Seed of all sampling.
    pub seed: u64,
    /// Versions.
    pub versions: Versions,
    /// Model fingerprints by role.
    pub models: BTreeMap<String, String>,
    /// The index.
    pub index: Option<IndexIdentity>,
    /// The questions.
    pub questions: QuestionsIdentity,
    /// Where confidences come from; `None` without a reader, and in reports of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationIdentity>,
    /// The machine.
    pub machine: Machine,
}

impl Provenance {
    /// Of a run of `setup` over the first `n` of `dataset` on this machine.
    pub fn new(setup: Setup, dataset: &Dataset, n: usize) -> Self {
        let Setup { settings, seed, models, index, onnxruntime, calibration } = setup;
        let git = option_env!("NUNATAK_GIT_HASH").filter(|hash| !hash.is_empty()).map(str::to_owned);
        Self {
            settings,
            seed,
            versions: Versions { nunatak: env!("CARGO_PKG_VERSION").to_owned(), git, onnxruntime },
            models,
            index,
            questions: QuestionsIdentity {
                path: dataset.path.display().to_string(),
                sha256: dataset.sha256.clone(),
                n,
                skipped: dataset.skipped,
            },
            calibration,
            machine: Machine::here(),
        }
    }

    /// What forbids continuing the run `self` as `other`: the first thing that differs, by name. Paths and the
    /// machine may differ; hashes say what the paths hold.
    pub fn differs_from(&self, other: &Self) -> Option<String> {
        if let Some(name) = first_difference(&self.settings, &other.settings) {
            return Some(format!("--{name}"));
        }
        let index = |p: &Self| p.index.as_ref().map(|index| index.manifest_sha256.clone());
        let calibration = |p: &Self| p.calibration.as_ref().map(|c| c.sha256.clone());
        let questions = |p: &Self| (p.questions.sha256.clone(), p.questions.n, p.questions.skipped);
        let checks = [
            ("the seed", self.seed == other.seed),
            ("the program's version", self.versions == other.versions),
            ("a model", self.models == other.models),
            ("the index", index(self) == index(other)),
            ("the questions", questions(self) == questions(other)),
            ("the calibration", calibration(self) == calibration(other)),
        ];
        checks.into_iter().find(|(_, same)| !same).map(|(what, _)| what.to_owned())
    }
}

/// The first name whose value is not the same in both.
fn first_difference<'a>(a: &'a Map<String, Value>, b: &'a Map<String, Value>) -> Option<&'a str> {
    a.keys().chain(b.keys()).find(|name| a.get(*name) != b.get(*name)).map(String::as_str)
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: std::fs::read_to_string(Path::new("/proc/cpuinfo")).ok().and_then(|text| cpu_name(&text)),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// The first `model name` of a `/proc/cpuinfo`.
fn cpu_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_a_name() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nmodel name\t: Other\n";
        assert_eq!(cpu_name(text).as_deref(), Some("Some CPU @ 2.00GHz"));
        assert_eq!(cpu_name("processor : 0\n"), None);
    }

    #[test]
    fn a_difference_is_named() {
        let dataset = Dataset { questions: Vec::new(), path: "q.jsonl".into(), sha256: "00".into(), skipped: 0 };
        let setup = |depth: u64, seed| Setup {
            settings: Map::from_iter([("depth".to_owned(), depth.into())]),
            seed,
            ..Setup::default()
        };
        let one = Provenance::new(setup(100, 1), &dataset, 5);
        assert_eq!(one.differs_from(&one), None);
        assert_eq!(one.differs_from(&Provenance::new(setup(20, 1), &dataset, 5)).as_deref(), Some("--depth"));
        assert_eq!(one.differs_from(&Provenance::new(setup(100, 2), &dataset, 5)).as_deref(), Some("the seed"));
        assert_eq!(one.differs_from(&Provenance::new(setup(100, 1), &dataset, 6)).as_deref(), Some("the questions"));
        let moved = Dataset { path: "elsewhere.jsonl".into(), ..dataset };
        assert_eq!(one.differs_from(&Provenance::new(setup(100, 1), &moved, 5)), None);
    }
}
