//! One run of `train id-prompt`, from task files to a module that `--prompt` takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::eval::dataset::{self, Dataset};
use crate::eval::task_set::TaskSet;
use crate::export::prompt_generator::GeneratorShape;
use crate::index::Index;
use crate::progress::Progress;
use crate::read::prompt_generator::{
    Behind, EncoderTarget, GENERATOR_FORMAT, GeneratorDescription, GeneratorFile, keep_encoder,
};
use crate::read::prompts;
use crate::read::soft_prompt::{FORMAT, PromptDescription, PromptKind, PromptTarget, SoftPrompt};
use crate::read::template::{Template, TemplateKind};
use crate::runtime::model_dir::{ModelDir, ModelKind, sha256_of};
use crate::runtime::tokenizer::{TOKENIZER, TextTokenizer};
use crate::train::encoder::FrozenEncoder;
use crate::train::generator::{Generator, Outer};
use crate::train::llama::{Decoder, failed};
use crate::train::prompt_run::{PROMPT, repeated, target_of};
use crate::train::record::{self, Frozen, RunRecord};
use crate::train::task_prompt::{
    Mix, MixSettings, OuterTokens, TaskModule, TaskSample, Writer, corpus_samples, samples, window_samples,
};
use crate::train::trainer::{RunLog, Trainable, Trainer, TrainerSettings};
use crate::train::windows::{WindowSettings, Windows};

/// Name of the generator inside a run's folder.
pub const GENERATOR: &str = "id-prompt.safetensors";
/// Width of an attention head of a generator, as most encoders have it.
const HEAD: usize = 64;
/// Words that every prompt begins as.
const WORDS: &str = "Here is a text with a task in it. Do what it asks, and write the answer alone.\n\n";

/// What a run is made of.
#[derive(Debug, Clone, Serialize)]
pub struct TaskPromptRun {
    /// Learn one prompt for all inputs, and no generator.
    pub shared: bool,
    /// Positions of a prompt.
    pub positions: usize,
    /// Words that it begins as; without them some of ours.
    pub words: Option<String>,
    /// A soft prompt that what a generator writes begins as, in place of words.
    pub begin: Option<PathBuf>,
    /// Name of the encoder inside the generator, or of its folder; none in a connector, which has the language model in its place.
    pub encoder: Option<String>,
    /// Learned vectors before the encoder's input.
    pub encoder_positions: usize,
    /// Blocks of the cross-attention network.
    pub blocks: usize,
    /// A module of the same kind to go on from.
    pub from: Option<PathBuf>,
    /// Learn to read: what of, in place of tasks.
    pub reading: Option<Reading>,
    /// Examples.
    pub mix: MixSettings,
    /// The loop.
    pub trainer: TrainerSettings,
}

/// What a generator of readers' prompts learns from.
#[derive(Debug, Clone, Serialize)]
pub struct Reading {
    /// Where passages come from.
    pub index: PathBuf,
    /// Questions with answers and gold passages; without any, what is learned is to continue passages.
    pub questions: Vec<PathBuf>,
    /// Bad lines allowed in each.
    pub skip_bad: usize,
    /// Questions held out to measure on.
    pub dev: usize,
    /// Windows.
    pub windows: WindowSettings,
    /// Name of the learned prompt that stands before what is written.
    pub behind: Option<String>,
}

/// Folders and devices that a run works with.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// Weights of the language model: a safetensors folder or a GGUF file.
    pub weights: &'a Path,
    /// Folder of the encoder's weights, if there is one.
    pub encoder: Option<&'a Path>,
    /// Whether that is no starter model, so that a copy has to lie beside the generator.
    pub keep_encoder: bool,
    /// Where it computes.
    pub device: &'a Device,
    /// Folder for what is learned.
    pub out: &'a Path,
}

/// Train a generator, or a shared prompt, for the language model `model` on the tasks, or on what `run.reading` names.
///
/// # Errors
/// [`Error::Request`] when there is nothing to train on, or the module to go on from was learned for something else; what
/// reading the models and training say.
pub fn train(
    run: &TaskPromptRun,
    set: Option<&TaskSet>,
    model: &ModelDir,
    places: Places,
    resume: bool,
    progress: &dyn Progress,
) -> Result<RunRecord> {
    let ModelKind::Lm(shape) = &model.description.kind else {
        return Err(Error::model(model.name(), "it is not a language model", "name one with --lm"));
    };
    std::fs::create_dir_all(places.out).map_err(Error::file("create", places.out))?;
    let tokenizer = Arc::new(TextTokenizer::open(model)?);
    let encoder = run.encoder.as_deref().zip(places.encoder);
    let own = encoder.map(|(name, folder)| TextTokenizer::from_file(&folder.join(TOKENIZER), name)).transpose()?;
    let outer = OuterTokens { tokenizer: own.as_ref().unwrap_or(&tokenizer), itself: encoder.is_none() };
    let (train, dev, mix, data) = match (&run.reading, set) {
        (Some(reading), _) => {
            let template = Arc::new(Template::new(TemplateKind::Plain, shape, &tokenizer, &model.name())?);
            windows(run, reading, &template, (&tokenizer, outer), progress)?
        }
        (None, Some(set)) => {
            progress.start("tokenising", None, "");
            let (train, dev, mix) = samples(set, &run.mix, &tokenizer, outer)?;
            progress.finish();
            let names: Vec<&String> = set.tasks.keys().collect();
            let data = json!({"tasks": names, "sha256": set.sha256, "skipped": set.skipped, "mix": mix.train});
            (train, dev, mix, data)
        }
        (None, None) => return Err(Error::request("there is nothing to learn from", "give --tasks, or --index")),
    };
    if train.is_empty() || dev.is_empty() {
        return Err(Error::request(
            "there are too few training examples to train on and hold some out",
            "give files with at least five examples of a split `train`, or more questions; or lower --dev",
        ));
    }
    progress.note(&format!("{} examples of {} tasks in a round", train.len(), mix.train.len()));
    if mix.cut > 0 {
        let longest = run.mix.tokens;
        progress.note(&format!("{} inputs are longer than {longest} tokens and lost their beginning", mix.cut));
    }
    progress.start(&format!("loading {}", model.name()), None, "");
    let lm = Decoder::open(places.weights, places.device)?;
    let before = lm.weights_hash()?;
    progress.finish();
    let target = target_of(model, &lm);
    let identity = EncoderTarget {
        name: run.encoder.as_ref().unwrap_or(&target.name).clone(),
        sha256: match encoder {
            Some((_, folder)) => sha256_of(&folder.join("model.safetensors"))?,
            None => String::new(),
        },
        tokens: run.mix.encoder_tokens,
        itself: encoder.is_none(),
    };
    let behind = run.reading.as_ref().and_then(|r| r.behind.as_deref()).map(prompts::find).transpose()?;
    if let Some(behind) = &behind {
        check_from(behind.description.target == target)?;
    }
    let learned = Learned { run, target: &target, encoder: &identity, behind: behind.as_deref() };
    let (writer, shape) = learned.begin(&lm, &tokenizer, places)?;
    let mut module = TaskModule::new(&lm, (writer, run.positions), (&train, &dev), run.trainer.tokens_per_pass);
    if let Some(behind) = &behind {
        module = module.behind(behind)?;
    }
    if run.reading.as_ref().is_some_and(|reading| reading.questions.is_empty()) {
        module = module.by_token();
    }
    let parameters = module.parameters();
    progress.note(&format!(
        "{parameters} trainable numbers, {:.2}% of the {} frozen ones of {}",
        100.0 * parameters as f64 / lm.parameters() as f64,
        lm.parameters(),
        target.name
    ));
    let inputs = json!({
        "run": run, "data": data, "lm": before, "encoder": identity, "behind": behind.as_ref().map(|b| b.hash()),
        "from": run.from.as_deref().map(sha256_of).transpose()?,
        "begin": run.begin.as_deref().map(sha256_of).transpose()?,
    });
    let log = Trainer::new(&run.trainer, &inputs, places.out)?.run(&mut module, resume, progress)?;
    let frozen = Frozen { model: target.name.clone(), parameters: lm.parameters(), before, after: lm.weights_hash()? };
    frozen.check()?;
    let metric = module.metric();
    learned.save(module.writer(), shape, story(run, &data, metric, &log), places.out)?;
    if let Some((_, folder)) = encoder.filter(|_| places.keep_encoder && !run.shared) {
        keep_encoder(folder, &places.out.join(GENERATOR))?;
    }
    let (examples_per_second, tokens_per_second) = record::speed(&log);
    let record = RunRecord {
        nunatak: env!("CARGO_PKG_VERSION"),
        module: match (run.shared, &run.encoder) {
            (true, _) => "shared prompt",
            (false, Some(_)) => "prompt generator",
            (false, None) => "connector",
        },
        settings: serde_json::to_value(run).map_err(Error::internal("recording settings"))?,
        data: json!({"sets": data, "cut": mix.cut, "held_out": dev.len()}),
        parameters,
        frozen: Some(frozen),
        metric,
        log,
        examples_per_second,
        tokens_per_second,
    };
    record::write(&record, places.out)?;
    Ok(record)
}

/// What is learned, with all that its file says of it.
struct Learned<'a> {
    run: &'a TaskPromptRun,
    target: &'a PromptTarget,
    encoder: &'a EncoderTarget,
    behind: Option<&'a SoftPrompt>,
}

impl Learned<'_> {
    /// It as it is before the first step; the sizes of a generator.
    fn begin(
        &self,
        lm: &Decoder,
        tokenizer: &TextTokenizer,
        places: Places,
    ) -> Result<(Writer, Option<GeneratorShape>)> {
        let run = self.run;
        let words = lm.embed(&repeated(run.words.as_deref().unwrap_or(WORDS), run.positions, tokenizer)?)?;
        if run.shared {
            let prompt = Var::from_tensor(&words).map_err(failed)?;
            if let Some(from) = &run.from {
                let from = self.soft_prompt(from)?;
                let values = Tensor::from_slice(from.values(), prompt.shape(), places.device);
                values.and_then(|values| prompt.set(&values)).map_err(failed)?;
            }
            return Ok((Writer::Shared(prompt), None));
        }
        let (outer, width) = match places.encoder {
            None => (Outer::Itself, lm.hidden()),
            Some(folder) => {
                let encoder = FrozenEncoder::load(folder, places.device)?;
                if let Some(longest) = encoder.longest().filter(|longest| run.mix.encoder_tokens > *longest) {
                    let problem = format!("{} reads no more than {longest} tokens", self.encoder.name);
                    return Err(Error::request(problem, "lower --encoder-tokens"));
                }
                let width = encoder.hidden();
                (Outer::Encoder(encoder), width)
            }
        };
        let heads = Some(width / HEAD).filter(|heads| *heads > 0 && width % heads == 0).unwrap_or(1);
        let shape = GeneratorShape {
            positions: run.positions,
            hidden: lm.hidden(),
            width,
            encoder_positions: run.encoder_positions,
            blocks: run.blocks,
            heads,
        };
        let mut generator = Generator::new(shape, outer, words, run.trainer.seed, places.device)?;
        if let Some(from) = &run.from {
            let from = GeneratorFile::load(from)?;
            let of = &from.description;
            check_from(of.target == *self.target && of.shape == shape && of.encoder == *self.encoder)?;
            generator.set_tensors(&from.tensors)?;
        }
        if let Some(begin) = &run.begin {
            generator.begin_as(self.soft_prompt(begin)?.values())?;
        }
        Ok((Writer::Generated(Box::new(generator)), Some(shape)))
    }

    /// The soft prompt in the file `path`, if it is of the size of what is learned, and for the same model.
    fn soft_prompt(&self, path: &Path) -> Result<Arc<SoftPrompt>> {
        let prompt = SoftPrompt::load(path)?;
        let of = &prompt.description;
        let embeddings = of.kind == PromptKind::Embeddings;
        check_from(embeddings && of.target == *self.target && prompt.positions() == self.run.positions)?;
        Ok(prompt)
    }

    /// Write its file into the folder `out`.
    fn save(&self, writer: &Writer, shape: Option<GeneratorShape>, training: Value, out: &Path) -> Result<()> {
        let reading = self.run.reading.as_ref();
        let abstains = reading.is_some_and(|r| r.windows.absent > 0.0 && !r.questions.is_empty());
        match (writer, shape) {
            (Writer::Generated(generator), Some(shape)) => {
                let name = reading.and_then(|r| r.behind.clone());
                let behind = name.zip(self.behind).map(|(name, p)| Behind { name, hash: p.hash().to_owned() });
                let description = GeneratorDescription {
                    format: GENERATOR_FORMAT,
                    target: self.target.clone(),
                    encoder: self.encoder.clone(),
                    shape,
                    behind,
                    abstains,
                    sha256: String::new(),
                    training,
                };
                GeneratorFile::new(description, &generator.tensors()?)?.save(&out.join(GENERATOR))
            }
            (Writer::Shared(prompt), _) => {
                let description = PromptDescription {
                    format: FORMAT,
                    kind: PromptKind::Embeddings,
                    positions: self.run.positions,
                    target: self.target.clone(),
                    template: TemplateKind::Plain,
                    abstains,
                    sha256: None,
                    training,
                };
                let values: Vec<f32> = prompt.flatten_all().and_then(|t| t.to_vec1()).map_err(failed)?;
                SoftPrompt::new(description, &values)?.save(&out.join(PROMPT))
            }
            (Writer::Generated(_), None) => {
                Err(Error::Internal { doing: "saving a prompt generator", message: "its sizes are not known".into() })
            }
        }
    }
}

/// Samples of `run.reading`, and what they were made of.
fn windows(
    run: &TaskPromptRun,
    reading: &Reading,
    template: &Arc<Template>,
    (lm, outer): (&Arc<TextTokenizer>, OuterTokens),
    progress: &dyn Progress,
) -> Result<(Vec<TaskSample>, Vec<TaskSample>, Mix, Value)> {
    let index = Arc::new(Index::open(&reading.index)?);
    let wanted = usize::try_from(run.trainer.examples).unwrap_or(usize::MAX);
    if reading.questions.is_empty() {
        let mut train = corpus_samples(&index, wanted.saturating_add(reading.dev), &run.mix, lm, outer, progress)?;
        let dev = train.split_off(train.len().saturating_sub(reading.dev));
        let data = json!({"passages": train.len(), "index": index.manifest().checksum});
        let mix = Mix { train: BTreeMap::from([("continuing passages".to_owned(), train.len())]), cut: 0 };
        return Ok((train, dev, mix, data));
    }
    let sets: Vec<Dataset> =
        reading.questions.iter().map(|path| dataset::read(path, reading.skip_bad, progress)).collect::<Result<_>>()?;
    progress.start("finding answers in passages", None, "");
    let (windows, intake) = Windows::new(&sets, &index, lm, template, &reading.windows)?;
    progress.finish();
    let (train, dev) = windows.hold_out(reading.dev);
    let train = window_samples(&train, wanted, &run.mix, lm, outer, progress)?;
    let dev = window_samples(&dev, reading.dev, &run.mix, lm, outer, progress)?;
    let hashes: Vec<Value> = sets
        .iter()
        .map(|d| json!({"file": d.path.file_name().map(|n| n.to_string_lossy()), "sha256": d.sha256}))
        .collect();
    let data = json!({"questions": hashes, "intake": intake, "index": index.manifest().checksum});
    let mix = Mix { train: BTreeMap::from([("reading".to_owned(), train.len())]), cut: 0 };
    Ok((train, dev, mix, data))
}

fn check_from(fits: bool) -> Result<()> {
    if fits {
        return Ok(());
    }
    let hint = "go on from a module of the same sizes for the same models";
    Err(Error::request("the module to go on from was learned for something else", hint))
}

/// What a module's file says about how it came to be: no paths of the machine it was made on.
fn story(run: &TaskPromptRun, data: &Value, metric: &str, log: &RunLog) -> Value {
    json!({
        "data": data,
        "mix": run.mix,
        "trainer": run.trainer,
        "examples": log.seen,
        "seconds": log.seconds.round(),
        "metric": metric,
        "on_held_out": log.best.map(|(_, value)| value),
    })
}
