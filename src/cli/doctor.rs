//! `nunatak doctor`: prove, by running them, that the runtime, the device and the models work.

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use crate::cli::Globals;
use crate::cli::output::{self, BAD, BOLD, GOOD, HINT};
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::read::decode::Decoding;
use crate::read::lm::{FrozenLm, Prompt};
use crate::rerank::CrossEncoder;
use crate::runtime::device::Device;
use crate::runtime::gpu_libraries;
use crate::runtime::session::{RuntimeOptions, runtime_version};
use crate::runtime::setup::{self, Manifest, StarterModel, fetch_runtime, store};

/// Nothing but what every command takes.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {}

/// Three sentences: the first two say the same.
const SENTENCES: [&str; 3] = [
    "The glacier has lost a third of its ice since 1950.",
    "A third of the ice of this glacier melted away after 1950.",
    "The committee elected a new treasurer on Tuesday.",
];
/// By how much the paraphrase has to be nearer than the stranger, in cosine. The starter encoder is at 0.7.
const MARGIN: f32 = 0.3;
/// How a sane language model goes on, and with what.
const PROMPT: (&str, &str) = ("The capital of France is", "Paris");

/// A question, a passage that answers it, and one that only has its words.
const QUESTION: &str = "when was the treasurer elected";
const ANSWERS: [&str; 2] = [
    "On 3 May 1950 the committee elected a new treasurer.",
    "The treasurer says that nobody was elected to ask when the ice would melt.",
];

/// What was tried, and what came of it.
#[derive(Debug, Serialize)]
struct Check {
    check: String,
    ok: bool,
    /// What was found, or what went wrong.
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// Milliseconds, loading included.
    ms: u64,
}

/// Try everything, print what was found, and fail if anything is broken.
pub fn run(_: &DoctorArgs, globals: &Globals) -> Result<()> {
    let (options, progress) = (globals.runtime(), globals.progress());
    let mut broken = 0;
    let mut check = |name: &str, what: &mut dyn FnMut() -> Result<String>| -> Result<()> {
        let began = Instant::now();
        let outcome = what();
        let check = Check {
            check: name.to_owned(),
            ok: outcome.is_ok(),
            hint: outcome.as_ref().err().and_then(|e| e.hint().map(str::to_owned)),
            detail: outcome.unwrap_or_else(|e| e.to_string()),
            ms: began.elapsed().as_millis() as u64,
        };
        broken += usize::from(!check.ok);
        show(&check, globals.json)
    };
    check("program", &mut || {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        Ok(format!("nunatak {} on {os} {arch}, {} threads", env!("CARGO_PKG_VERSION"), options.thread_count()))
    })?;
    check("cache", &mut cache)?;
    check("runtime", &mut || {
        let library = fetch_runtime(&options, &*progress)?;
        Ok(format!("ONNX Runtime {}, {}", runtime_version(&options)?, library.display()))
    })?;
    if !matches!(options.device, Device::Cpu | Device::Auto) {
        check("libraries", &mut || libraries(&options, &*progress))?;
    }
    for starter in Manifest::get()?.starters() {
        check(&starter.kind, &mut || prove(starter, &options, &*progress))?;
    }
    for name in setup::shipped() {
        check("cross-encoder", &mut || prove_order(name, &options, &*progress))?;
    }
    for entry in store::list()?.into_iter().filter(|e| e.installed) {
        // What is in order was proved above or is the user's own to try.
        if let Some(problem) = entry.problem {
            let hint = format!("remove {} and get it again", entry.path.display());
            let mut report = || Err(Error::model(&entry.name, problem.clone(), hint.clone()));
            check("model", &mut report)?;
        }
    }
    if broken > 0 {
        return Err(Error::Setup { problem: format!("{broken} of the checks failed"), hint: None });
    }
    Ok(())
}

fn show(check: &Check, json: bool) -> Result<()> {
    if json {
        return output::json(check);
    }
    let (style, word) = if check.ok { (GOOD, "ok    ") } else { (BAD, "broken") };
    output::line(format!("{style}{word}{style:#} {BOLD}{:<13}{BOLD:#} {}", check.check, check.detail))?;
    match &check.hint {
        Some(hint) => output::line(format!("       {HINT}hint{HINT:#}: {hint}")),
        None => Ok(()),
    }
}

/// The libraries that a GPU build of the runtime needs of the system, all of which the loader must find.
fn libraries(options: &RuntimeOptions, progress: &dyn Progress) -> Result<String> {
    let needed = gpu_libraries::needed(&fetch_runtime(options, progress)?, options.device)?;
    let missing: Vec<String> =
        needed.iter().filter(|library| !library.found).map(|l| format!("{} ({})", l.name, l.from)).collect();
    if missing.is_empty() {
        return Ok(format!("all {} that {} needs", needed.len(), options.device));
    }
    Err(Error::Device {
        device: options.device.to_string(),
        problem: format!("the loader does not find {}", missing.join(", ")),
        hint: Some(gpu_libraries::HINT.into()),
    })
}

/// Where the cache is, and how much is in it.
fn cache() -> Result<String> {
    let home = setup::home()?;
    let files = walkdir::WalkDir::new(&home).into_iter().filter_map(|e| e.ok()?.metadata().ok());
    let bytes: u64 = files.filter(|m| m.is_file()).map(|m| m.len()).sum();
    Ok(format!("{}, {}", home.display(), output::bytes(bytes)))
}

/// Run a cross-encoder that comes with the program, and look at what it prefers.
fn prove_order(name: &str, options: &RuntimeOptions, progress: &dyn Progress) -> Result<String> {
    let model = setup::model(name, options, progress)?;
    model.verify()?;
    let mut encoder = CrossEncoder::open(&model, options)?;
    let scores = encoder.score(QUESTION, &[ANSWERS[0].into(), ANSWERS[1].into()])?;
    let apart = scores.first().zip(scores.get(1)).map_or(f32::NAN, |(right, wrong)| right - wrong);
    if apart.is_nan() || apart <= 0.0 {
        return Err(Error::model(
            model.name(),
            format!("it runs, but puts the passage that answers {apart:.2} above the one that does not"),
            format!("remove {} and run `nunatak setup` again", model.path.display()),
        ));
    }
    let device = encoder.device();
    Ok(format!("{} on {device}: the passage that answers is {apart:.1} above the one that does not", model.name()))
}

/// Run a starter model and look at what it gives.
fn prove(starter: &StarterModel, options: &RuntimeOptions, progress: &dyn Progress) -> Result<String> {
    let model = setup::model(&starter.name, options, progress)?;
    model.verify()?;
    let wrong = |what: String| {
        Error::model(model.name(), what, format!("remove {} and run `nunatak setup` again", model.path.display()))
    };
    if starter.kind == "lm" {
        let mut lm = FrozenLm::open(&model, options)?;
        let prompt = lm.tokenizer().encode(PROMPT.0, false)?;
        let decoding = Decoding { max_new_tokens: 4, ..Decoding::default() };
        let (answers, _) = lm.generate(&[Prompt::of(prompt)], &decoding, None, &mut |_, _| {})?;
        let text = answers.into_iter().next().map(|a| a.text).unwrap_or_default();
        if !text.contains(PROMPT.1) {
            return Err(wrong(format!("it runs, but goes on after \"{}\" with \"{text}\"", PROMPT.0)));
        }
        let device = lm.device();
        return Ok(format!("{} on {device}: \"{}\" goes on with \"{}\"", model.name(), PROMPT.0, text.trim()));
    }
    let mut encoder = Encoder::open(&model, options)?;
    let vectors = encoder.encode(&SENTENCES.map(String::from))?;
    let rows: Vec<&[f32]> = vectors.chunks_exact(encoder.dim()).collect();
    let cosine = |a: usize, b: usize| -> f32 {
        let (Some(a), Some(b)) = (rows.get(a), rows.get(b)) else { return f32::NAN };
        a.iter().zip(*b).map(|(x, y)| x * y).sum()
    };
    let (near, far) = (cosine(0, 1), cosine(0, 2));
    let apart = near - far;
    if apart.is_nan() || apart < MARGIN {
        return Err(wrong(format!("it runs, but a paraphrase is at cosine {near:.2} and a stranger at {far:.2}")));
    }
    Ok(format!("{} on {}: paraphrase {near:.2}, stranger {far:.2}", model.name(), encoder.device()))
}
