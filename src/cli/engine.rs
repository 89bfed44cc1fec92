//! From options to a pipeline: what `search`, `ask`, `eval` and `demo` share.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use crate::cli::Globals;
use crate::cli::first_stage::Place;
use crate::cli::pipeline_args::{PASSAGES, RankingArgs, ReadingArgs, RetrievalArgs, merge, merge_reading};
use crate::confidence::{Calibration, RECURSION, same_value};
use crate::error::{Error, Result};
use crate::eval::provenance::CalibrationIdentity;
use crate::filter::Filter;
use crate::pipeline::{Depths, Pipeline, SURE};
use crate::progress::Progress;
use crate::read::prompt_generator::PromptGenerator;
use crate::read::prompts;
use crate::read::reader::{Learned, Reader, ReaderSettings};
use crate::read::reading_prompt::PromptName;
use crate::read::remote::RemoteLm;
use crate::rerank::{CrossEncoder, Patience};
use crate::retrieve::Mode;
use crate::runtime::device::Device;
use crate::runtime::model_dir::ModelDir;
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup;

/// Megabytes for states of passages: some eighty passages of the starter model.
pub const PASSAGE_CACHE: u64 = 256;
/// The role of a learned prompt among the models.
const PROMPT: &str = "prompt";
/// Passages that count as the best of a re-ranked list that nobody reads.
const BEST_WITHOUT_READER: usize = 10;

/// A pipeline with the settings that made it, for reports.
pub struct Engine {
    /// The pipeline.
    pub pipeline: Pipeline,
    /// The first stage in use.
    pub mode: Mode,
    /// Names and fingerprints of the models in use, by role.
    pub models: Models,
    /// Where confidences come from; `None` without a reader.
    pub calibration: Option<CalibrationIdentity>,
}

/// Roles, names and fingerprints of models.
pub(crate) type Models = Vec<(&'static str, String, String)>;

fn open_reranker(
    retrieval: &RetrievalArgs,
    options: &RuntimeOptions,
    progress: &dyn Progress,
    models: &mut Models,
) -> Result<Option<CrossEncoder>> {
    if !retrieval.ranking.reranks() {
        return Ok(None);
    }
    let model = setup::model(&retrieval.ranking.rerank, options, progress)?;
    models.push(("reranker", model.name(), model.fingerprint()));
    CrossEncoder::open(&model, options).map(Some)
}

/// What names a first stage, and with it the scale of its scores.
pub(crate) fn first_stage(retrieval: &RetrievalArgs, mode: Mode) -> Value {
    match mode {
        Mode::Hybrid => {
            let RankingArgs { fusion, dense_weight, pair_weight, .. } = &retrieval.ranking;
            json!({"mode": mode, "fusion": fusion, "dense_weight": dense_weight, "pair_weight": pair_weight})
        }
        Mode::Bm25 | Mode::Dense => json!({"mode": mode}),
    }
}

/// Whether two first stages are one, numbers as they are typed: reading a file may move the last bit of one.
fn is_same(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return false };
    a.len() == b.len() && a.iter().all(|(name, value)| same_value(Some(value), b.get(name)))
}

/// The weight of the first stage's score beside the cross-encoder's: as typed, or as the cross-encoder learned it for this
/// first stage.
fn prior_weight(
    retrieval: &RetrievalArgs,
    mode: Mode,
    reranker: Option<&CrossEncoder>,
    progress: &dyn Progress,
) -> f32 {
    let (Some(reranker), None) = (reranker, retrieval.ranking.rerank_prior) else {
        return retrieval.ranking.rerank_prior.unwrap_or_default();
    };
    let here = first_stage(retrieval, mode);
    match reranker.priors().iter().find(|prior| is_same(&prior.retrieval, &here)) {
        Some(prior) => prior.weight,
        None if reranker.priors().is_empty() => 0.0,
        None => {
            progress
                .note("the re-ranker learned what another first stage's score is worth: its own score counts alone");
            0.0
        }
    }
}

/// Open the index and load what the options ask for. Without `reading` there is no reader.
pub fn build(
    retrieval: &RetrievalArgs,
    reading: Option<&ReadingArgs>,
    depth: usize,
    seed: u64,
    globals: &Globals,
    progress: &dyn Progress,
) -> Result<Engine> {
    let Stages { encoder, reranker, reader: options } = Stages::new(&retrieval.ranking, reading, globals);
    let place = Place::open(&retrieval.index)?;
    let filter: Option<Filter> = retrieval.filter.as_deref().map(str::parse).transpose()?;
    let mode = retrieval.ranking.mode.unwrap_or(if place.has_vectors() { Mode::Hybrid } else { Mode::Bm25 });
    let mut models = Vec::new();
    let reader_model = match reading {
        Some(args) => Some(match args.remote(&options, progress)? {
            Some(lm) => ReaderModel::Remote(Box::new(lm), args.settings(retrieval, seed)?),
            None => {
                let model = setup::model(&args.lm, &options, progress)?;
                let prompt = args.learned_prompt(&model)?;
                models.extend(prompt.iter().map(|(name, p)| (PROMPT, name.clone(), p.hash().to_owned())));
                let also = args.also_prompts.iter().map(|also| Ok::<_, Error>((also.name.clone(), also.find()?)));
                let also = also.collect::<Result<_>>()?;
                let second = args.second.as_deref().map(|name| Ok::<_, Error>((name, prompts::find_any(name)?)));
                let second = second.transpose()?;
                models.extend(second.iter().map(|(name, p)| ("second", (*name).to_owned(), p.hash().to_owned())));
                let (name, first) = prompt.map_or((prompts::NONE.to_owned(), None), |(name, p)| (name, Some(p)));
                let first = (prompts::called(&name), first);
                let prompts = FrozenPrompts { first, also, second: second.map(|(_, p)| p) };
                ReaderModel::Frozen(Box::new(model), args.settings(retrieval, seed)?, prompts)
            }
        }),
        None => None,
    };
    let lm = match (&reader_model, reading) {
        (Some(ReaderModel::Frozen(model, _, _)), _) => Some((model.name(), model.fingerprint())),
        // Nobody can see from here whether it stays the same model.
        (Some(ReaderModel::Remote(lm, _)), Some(args)) => {
            Some((lm.name().to_owned(), format!("behind {}", args.lm_url.as_deref().unwrap_or_default())))
        }
        _ => None,
    };
    // Loading the language model is the longest part of a cold start, and mostly one thread's work: the other
    // models load beside it.
    let (reader, others) = std::thread::scope(|scope| {
        let options = &options;
        let reader = reader_model.map(|model| scope.spawn(move || open_reader(model, options, progress)));
        let others = place
            .retriever(mode, retrieval, depth, &encoder, progress, &mut models)
            .and_then(|retriever| Ok((retriever, open_reranker(retrieval, &reranker, progress, &mut models)?)));
        let reader = reader.map(|thread| {
            thread.join().map_err(|_| Error::Internal { doing: "loading the reader", message: "it panicked".into() })
        });
        (reader, others)
    });
    let ((retriever, encoder), reranker) = others?;
    let mut reader = match reader {
        Some(loaded) => Some(loaded??),
        None => None,
    };
    if let (Some(reader), Some(args)) = (&mut reader, reading) {
        let usual = if reader.is_on_gpu() { 0 } else { PASSAGE_CACHE };
        reader.keep_passages(args.passage_cache.unwrap_or(usual) << 20);
        if let Place::Folder(_) = place {
            reader.look_beside(&retrieval.index);
        }
    }
    models.extend(lm.map(|(name, fingerprint)| ("lm", name, fingerprint)));
    let depths = Depths {
        retrieve: depth,
        rerank: retrieval.ranking.rerank_depth,
        patience: (retrieval.ranking.rerank_patience > 0).then(|| Patience {
            candidates: retrieval.ranking.rerank_patience,
            keep: reading.map_or(BEST_WITHOUT_READER, |r| r.passages.unwrap_or(PASSAGES)),
        }),
        read: reading.map_or(0, ReadingArgs::passages),
        tokens: reading.and_then(|r| r.budget),
        per_window: reading.map_or(1, |r| if r.together { 0 } else { r.per_window }),
        duplicates: reading.is_some_and(|r| r.keep_duplicates),
    };
    let prior = prior_weight(retrieval, mode, reranker.as_ref(), progress);
    let mut pipeline =
        Pipeline::new(place.passages(), retriever, reranker, reader, depths).with_prior(prior).with_encoder(encoder);
    if !pipeline.restrict(filter.as_ref())? {
        progress.note("no passage meets the conditions of --filter");
    }
    let mut calibration = None;
    if let Some(reading) = reading {
        let (found, identity, settings) = open_calibration(retrieval, reading, mode, &models)?;
        if let (true, Some(reason)) = (reading.min_confidence > 0.0, &identity.mismatch) {
            progress.note(&format!("--min-confidence is a guess here, because {} {reason}", identity.name));
        }
        let mismatches = mismatches(&found, settings, &models, pipeline.reader());
        pipeline = pipeline.with_confidence(found, reading.min_confidence).with_mismatches(mismatches);
        pipeline = pipeline.with_sure(reading.sure.unwrap_or(SURE));
        pipeline.recur(reading.recursion)?;
        calibration = Some(identity);
    }
    Ok(Engine { pipeline, mode, models, calibration })
}

/// How the model of each stage is run.
struct Stages {
    encoder: RuntimeOptions,
    reranker: RuntimeOptions,
    reader: RuntimeOptions,
}

impl Stages {
    fn new(ranking: &RankingArgs, reading: Option<&ReadingArgs>, globals: &Globals) -> Self {
        let own = [ranking.encoder_device, ranking.reranker_device, reading.and_then(|reading| reading.reader_device)];
        let devices = own.map(|own| own.unwrap_or(globals.device));
        let beside = devices.into_iter().find(|device| *device != Device::Cpu);
        let [encoder, reranker, reader] = devices.map(|device| RuntimeOptions { device, beside, ..globals.runtime() });
        Self { encoder, reranker, reader }
    }
}

/// What was learned for a frozen language model.
struct FrozenPrompts {
    /// What stands before the windows, or writes it, by name; words where nothing was learned.
    first: (String, Option<prompts::Found>),
    /// Others to choose instead.
    also: Vec<(String, Option<prompts::Found>)>,
    /// The same in a second pass.
    second: Option<prompts::Found>,
}

/// What a reader is made of.
enum ReaderModel {
    Frozen(Box<ModelDir>, ReaderSettings, FrozenPrompts),
    Remote(Box<RemoteLm>, ReaderSettings),
}

/// A reader behind a prompt in words or learned, or with a generator of prompts, with the others to choose, or by an endpoint.
fn open_reader(model: ReaderModel, options: &RuntimeOptions, progress: &dyn Progress) -> Result<Reader> {
    let (model, settings, prompts) = match model {
        ReaderModel::Remote(lm, settings) => return Reader::remote(*lm, settings),
        ReaderModel::Frozen(model, settings, prompts) => (model, settings, prompts),
    };
    let model = model.as_ref();
    let precision = setup::default_precision(options, progress)?;
    let learned = |found: prompts::Found| match found {
        prompts::Found::Soft(prompt) => Ok(Learned::Soft(prompt)),
        prompts::Found::Generator(file) => {
            let generator = PromptGenerator::open(&file, precision, options, progress)?;
            Ok::<_, Error>(Learned::Generator(Box::new(generator)))
        }
    };
    let (name, first) = prompts.first;
    let mut reader = Reader::behind(&name, first.map(learned).transpose()?, model, settings, options)?;
    for (name, also) in prompts.also {
        reader = reader.also_behind(&name, also.map(learned).transpose()?, model)?;
    }
    match prompts.second {
        Some(second) => reader.read_again_with(learned(second)?, model),
        None => Ok(reader),
    }
}

/// The calibration that is asked for, whether it is made for what is in use, and the settings that are.
fn open_calibration(
    retrieval: &RetrievalArgs,
    reading: &ReadingArgs,
    mode: Mode,
    models: &Models,
) -> Result<(Calibration, CalibrationIdentity, Map<String, Value>)> {
    let (calibration, sha256) = match &reading.calibration {
        Some(path) => Calibration::open(path)?,
        None => Calibration::built_in()?,
    };
    let mut settings = Map::new();
    merge(&mut settings, retrieval)?;
    merge_reading(&mut settings, reading, retrieval)?;
    settings.insert("mode".into(), mode.name().into());
    let models = fingerprints(models);
    let name = reading.calibration.as_ref().map_or("the built-in calibration".into(), |p| p.display().to_string());
    let mismatch = calibration.mismatch(&settings, &models);
    let fitted_on = calibration.fitted.as_ref().map(|f| f.questions_sha256.clone());
    Ok((calibration, CalibrationIdentity { name, sha256, fitted_on, mismatch }, settings))
}

/// Why the calibration is off behind each of the reader's prompts, but for how often a question is read, which a request says.
fn mismatches(
    calibration: &Calibration,
    mut settings: Map<String, Value>,
    models: &Models,
    reader: Option<&Reader>,
) -> HashMap<String, String> {
    let fitted = calibration.fitted.as_ref().and_then(|fitted| fitted.settings.get(RECURSION));
    settings.insert(RECURSION.to_owned(), fitted.cloned().unwrap_or_default());
    let mut models = fingerprints(models);
    let prompts = reader.map(Reader::prompts).unwrap_or_default();
    let mismatch = |prompt: PromptName| {
        match prompt.sha256 {
            Some(sha256) => models.insert(PROMPT.to_owned(), sha256),
            None => models.remove(PROMPT),
        };
        Some((prompt.name, calibration.mismatch(&settings, &models)?))
    };
    prompts.into_iter().filter_map(mismatch).collect()
}

/// Fingerprints of models by their roles.
fn fingerprints(models: &Models) -> BTreeMap<String, String> {
    models.iter().map(|(role, _, fingerprint)| ((*role).to_owned(), fingerprint.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_stage_is_told_by_numbers_as_they_are_typed() {
        for typed in ["0.1", "0.3", "0.7", "0.8", "0.9"] {
            let weight: f32 = typed.parse().unwrap();
            let here = json!({"mode": "hybrid", "fusion": "convex", "dense_weight": weight});
            let read: Value = serde_json::from_str(&here.to_string()).unwrap();
            assert!(is_same(&read, &here), "{typed}: {read}");
            let other = json!({"mode": "hybrid", "fusion": "convex", "dense_weight": 0.55});
            assert!(!is_same(&other, &here) && !is_same(&json!({"mode": "hybrid"}), &here));
        }
    }
}
