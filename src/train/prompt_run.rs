//! One run of `train prompt`, from files to a prompt file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::eval::dataset::{self, Dataset};
use crate::index::Index;
use crate::progress::Progress;
use crate::read::prompts;
use crate::read::soft_prompt::{FORMAT, PromptDescription, PromptKind, PromptTarget, SoftPrompt};
use crate::read::template::{Template, TemplateKind, few_shot};
use crate::runtime::model_dir::{ModelDir, ModelKind};
use crate::runtime::tokenizer::TextTokenizer;
use crate::train::llama::Decoder;
use crate::train::prompt::PromptModule;
use crate::train::record::{self, Frozen, RunRecord};
use crate::train::trainer::{RunLog, Trainer, TrainerSettings};
use crate::train::windows::{Intake, WindowSettings, Windows};

/// Name of the prompt inside a run's folder.
pub const PROMPT: &str = "prompt.safetensors";

/// What a run is made of.
#[derive(Debug, Clone, Serialize)]
pub struct PromptRun {
    /// Where passages come from.
    pub index: PathBuf,
    /// Questions with answers and gold passages.
    pub questions: Vec<PathBuf>,
    /// Bad lines allowed in each.
    pub skip_bad: usize,
    /// What is learned.
    pub kind: PromptKind,
    /// Positions of the prompt, at most; the words it begins as decide.
    pub positions: usize,
    /// Words it begins as; without them the worked examples of the few-shot template.
    pub words: Option<String>,
    /// A prompt to go on from instead, by its name or its file.
    pub from: Option<String>,
    /// Questions held out to measure on.
    pub dev: usize,
    /// Windows.
    pub windows: WindowSettings,
    /// The loop.
    pub trainer: TrainerSettings,
}

/// Train a prompt for the language model `model`, whose weights are at `weights`, on `device` in the folder `out`.
pub fn train(
    run: &PromptRun,
    model: &ModelDir,
    (weights, device): (&Path, &Device),
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
) -> Result<RunRecord> {
    let ModelKind::Lm(shape) = &model.description.kind else {
        return Err(Error::model(model.name(), "it is not a language model", "name one with --lm"));
    };
    std::fs::create_dir_all(out).map_err(Error::file("create", out))?;
    let tokenizer = Arc::new(TextTokenizer::open(model)?);
    let template = Arc::new(Template::new(TemplateKind::Plain, shape, &tokenizer, &model.name())?);
    let index = Arc::new(Index::open(&run.index)?);
    let datasets: Vec<Dataset> =
        run.questions.iter().map(|path| dataset::read(path, run.skip_bad, progress)).collect::<Result<_>>()?;
    progress.start("finding answers in passages", None, "");
    let (windows, intake) = Windows::new(&datasets, &index, &tokenizer, &template, &run.windows)?;
    progress.finish();
    tell(&intake, &datasets, progress);
    let (train, dev) = windows.hold_out(run.dev);
    if train.is_empty() || dev.is_empty() {
        return Err(Error::request(
            format!("{} questions can be used, which is too few to train on and hold {} out", intake.used, run.dev),
            "give more questions with `answers` and `positive_ids`, or lower --dev",
        ));
    }
    progress.start(&format!("loading {}", model.name()), None, "");
    let lm = Decoder::open(weights, device)?;
    let before = lm.weights_hash()?;
    progress.finish();
    let from = run.from.as_deref().map(prompts::find).transpose()?;
    let words = words(run, from.as_deref(), &tokenizer)?;
    let mut module = PromptModule::new(&lm, run.kind, &words, (&train, &dev), run.dev, run.trainer.tokens_per_pass)?;
    let target = target_of(model, &lm);
    if let Some(from) = &from {
        if from.description.kind != run.kind || from.description.target != target {
            let hint = "go on from a prompt of the same kind for the same model";
            return Err(Error::request("the prompt to go on from was learned for something else", hint));
        }
        module.set_values(from.values())?;
    }
    progress.note(&format!(
        "{} trainable numbers in {} positions, {:.2}% of the {} frozen ones of {}",
        module.parameters(),
        words.len(),
        100.0 * module.parameters() as f64 / lm.parameters() as f64,
        lm.parameters(),
        target.name
    ));
    let data: Vec<Value> =
        datasets.iter().map(|d| json!({"path": d.path, "sha256": d.sha256, "skipped": d.skipped})).collect();
    let inputs = json!({
        "run": run, "data": data, "index": index.manifest().checksum, "lm": before,
        "from": from.as_ref().map(|p| p.hash()),
    });
    let log = Trainer::new(&run.trainer, &inputs, out)?.run(&mut module, resume, progress)?;
    let frozen = Frozen { model: target.name.clone(), parameters: lm.parameters(), before, after: lm.weights_hash()? };
    frozen.check()?;
    let description = PromptDescription {
        format: FORMAT,
        kind: run.kind,
        positions: words.len(),
        target,
        template: TemplateKind::Plain,
        abstains: run.windows.absent > 0.0,
        sha256: None,
        training: story(run, &datasets, &log),
    };
    SoftPrompt::new(description, &module.values()?)?.save(&out.join(PROMPT))?;
    let (examples_per_second, tokens_per_second) = record::speed(&log);
    let record = RunRecord {
        nunatak: env!("CARGO_PKG_VERSION"),
        module: "prompt",
        settings: serde_json::to_value(run).map_err(Error::internal("recording settings"))?,
        data: json!({"sets": data, "questions": intake, "held_out": dev.len()}),
        parameters: module.parameters(),
        frozen: Some(frozen),
        metric: "exact match",
        log,
        examples_per_second,
        tokens_per_second,
    };
    record::write(&record, out)?;
    Ok(record)
}

/// So many tokens of words, which are said again when they are too few.
pub(in crate::train) fn repeated(words: &str, positions: usize, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
    let tokens = tokenizer.encode(words, false)?;
    if tokens.is_empty() {
        return Err(Error::request("there are no words to begin with", "leave --init-words out for the default"));
    }
    Ok(tokens.into_iter().cycle().take(positions).collect())
}

/// The language model that something is learned for.
pub(in crate::train) fn target_of(model: &ModelDir, lm: &Decoder) -> PromptTarget {
    PromptTarget { name: model.stem().to_owned(), layers: lm.layers(), kv_width: lm.kv_width(), hidden: lm.hidden() }
}

/// The tokens that the prompt begins as.
fn words(run: &PromptRun, from: Option<&SoftPrompt>, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
    if let Some(from) = from {
        return Ok(vec![0; from.positions()]);
    }
    if let Some(words) = &run.words {
        return repeated(words, run.positions, tokenizer);
    }
    // As many whole examples as there is room for; the last lines of the text matter most, and end it.
    let mut best = tokenizer.encode(&few_shot(0), false)?;
    for shots in 1.. {
        let tokens = tokenizer.encode(&few_shot(shots), false)?;
        if tokens.len() > run.positions || tokens.len() <= best.len() {
            break;
        }
        best = tokens;
    }
    best.truncate(run.positions);
    Ok(best)
}

fn tell(intake: &Intake, datasets: &[Dataset], progress: &dyn Progress) {
    let skipped: usize = datasets.iter().map(|d| d.skipped).sum();
    let left_out = [
        (skipped, "bad lines"),
        (intake.unlabelled, "without answers or positive_ids"),
        (intake.not_in_index, "whose gold passages are not in the index"),
        (intake.not_in_passage, "whose answers do not stand in their gold passages"),
    ];
    progress.note(&format!("{} questions to learn from", intake.used));
    for (count, why) in left_out.into_iter().filter(|(count, _)| *count > 0) {
        progress.note(&format!("left out: {count} {why}"));
    }
}

/// What the prompt's file says about how it came to be: no paths of the machine it was made on.
fn story(run: &PromptRun, datasets: &[Dataset], log: &RunLog) -> Value {
    let sets: Vec<Value> = datasets
        .iter()
        .map(|d| json!({"file": d.path.file_name().map(|n| n.to_string_lossy()), "sha256": d.sha256}))
        .collect();
    json!({
        "data": sets,
        "windows": run.windows,
        "trainer": run.trainer,
        "examples": log.seen,
        "seconds": log.seconds.round(),
        "exact_match_on_held_out": log.best.map(|(_, value)| value),
        "held_out": run.dev,
    })
}
