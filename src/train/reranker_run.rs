//! One run of `train reranker`, from files to a model folder that `--rerank` takes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::eval::dataset::{self, Dataset, Question};
use crate::export::Precision;
use crate::export::bert::export_cross_encoder;
use crate::export::learned;
use crate::index::Index;
use crate::progress::{Progress, Quiet};
use crate::rerank::CrossEncoder;
use crate::retrieve::Retriever;
use crate::runtime::model_dir::Prior;
use crate::runtime::tokenizer::{TOKENIZER, TextTokenizer};
use crate::train::bert::Bert;
use crate::train::mine::{self, Asked, Header, Mined, Unused};
use crate::train::record::{self, RunRecord};
use crate::train::reranker::{self, GroupSettings, Groups, Quality, RerankerModule, Teacher};
use crate::train::trainer::{RunLog, Trainable, Trainer, TrainerSettings};

/// Folder of the trained model inside a run's folder, in 8-bit integers.
pub const RERANKER: &str = "reranker";
/// The same in 32-bit floats.
pub const RERANKER_FP32: &str = "reranker-fp32";
/// Its weights, in the form that other tools and further training take.
pub const WEIGHTS: &str = "weights";
/// What was learned alone, for who has the model that it began as: see [`learned`].
pub const LEARNED: &str = "reranker.safetensors";
/// Name of the file of mined negatives inside a run's folder.
pub const MINED: &str = "mined.jsonl";
/// Digits of a set's sha256 that name it in that file.
const SET_DIGITS: usize = 16;

/// What a run is made of.
#[derive(Debug, Clone, Serialize)]
pub struct RerankerRun {
    /// Where passages come from.
    pub index: PathBuf,
    /// Questions with answers, with gold passages or without.
    pub questions: Vec<PathBuf>,
    /// Questions to measure on; without it some of the others are held out.
    pub dev_questions: Option<PathBuf>,
    /// Bad lines allowed in each file.
    pub skip_bad: usize,
    /// Questions to measure on, at most.
    pub dev: usize,
    /// Candidates of these that are ranked again.
    pub dev_depth: usize,
    /// The first stage that finds candidates, and its settings.
    pub retrieval: Value,
    /// Candidates of a question.
    pub depth: usize,
    /// What the model begins as: a name.
    pub init: String,
    /// Layers that are kept of it.
    pub layers: Option<usize>,
    /// Whether word embeddings are trained too.
    pub train_words: bool,
    /// The teacher's name and the weight of what it says.
    pub teacher: Option<(String, f64)>,
    /// Groups.
    pub groups: GroupSettings,
    /// The loop.
    pub trainer: TrainerSettings,
}

/// The parts that a run works with.
pub struct Parts<'a> {
    /// The index that `run.index` names.
    pub index: Arc<Index>,
    /// Its first stage.
    pub retriever: &'a mut dyn Retriever,
    /// The other first stages that the model may stand behind, each with its settings.
    pub others: Vec<(Value, Box<dyn Retriever>)>,
    /// Folder of the weights to begin with.
    pub init: PathBuf,
    /// The teacher, if one is named.
    pub teacher: Option<CrossEncoder>,
    /// File of mined negatives.
    pub mined: PathBuf,
    /// Where it computes.
    pub device: Device,
}

/// What the model does behind one first stage, on the held-out questions.
#[derive(Debug, Clone, Serialize)]
struct Behind {
    retrieval: Value,
    first_stage: Quality,
    best: Quality,
}

/// What became of the questions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Intake {
    /// Questions to train on.
    pub train: usize,
    /// Of these, how many have a positive that was found and not given.
    pub distant: usize,
    /// Questions held out.
    pub dev: usize,
    /// Bad lines left out.
    pub bad_lines: usize,
    /// Neither answers nor gold passages.
    pub unlabelled: usize,
    /// None of the gold passages is in the index.
    pub not_in_index: usize,
    /// No piece of the gold documents holds an answer.
    pub not_in_passage: usize,
    /// No gold passages given, and no candidate holds an answer.
    pub not_found: usize,
}

/// Train a re-ranker in the folder `out`.
///
/// # Errors
/// What reading, mining, the trainer and the exporter say. Nothing is published before training is over.
pub fn train(run: &RerankerRun, parts: Parts, out: &Path, resume: bool, progress: &dyn Progress) -> Result<RunRecord> {
    std::fs::create_dir_all(out).map_err(Error::file("create", out))?;
    let read = |path: &PathBuf| dataset::read(path, run.skip_bad, progress);
    let datasets: Vec<Dataset> = run.questions.iter().map(read).collect::<Result<_>>()?;
    let dev_set = run.dev_questions.as_ref().map(read).transpose()?;
    let (train, dev) = choose(run, &datasets, dev_set.as_ref());
    let asked: Vec<Asked> = dev.iter().chain(&train).map(|&(set, question)| Asked { set, question }).collect();
    let header = Header::new(&parts.index, run.retrieval.clone(), run.depth);
    let mut mined = mine::mine(&asked, &parts.index, parts.retriever, &header, &parts.mined, progress)?;
    let mut intake =
        Intake { bad_lines: datasets.iter().chain(&dev_set).map(|d| d.skipped).sum(), ..Intake::default() };
    let asked_dev = dev;
    let train = usable(&train, mined.split_off(asked_dev.len()), &mut intake);
    let dev = usable(&asked_dev, mined, &mut intake);
    intake.train = train.len();
    intake.distant = train.iter().filter(|(_, mined)| mined.distant).count();
    intake.dev = dev.len();
    tell(&intake, progress);
    if train.is_empty() || dev.is_empty() {
        return Err(Error::request(
            format!("{} questions can be trained on and {} held out, which is too few", train.len(), dev.len()),
            "give more questions with `answers` or `positive_ids`, or lower --dev",
        ));
    }

    progress.start(&format!("loading {}", run.init), None, "");
    let mut bert = Bert::load(&parts.init, run.layers, run.trainer.seed, &parts.device)?;
    bert.train_words(run.train_words);
    progress.finish();
    if run.groups.max_tokens > bert.longest() {
        let problem = format!("--max-tokens {} is more than the model's {}", run.groups.max_tokens, bert.longest());
        return Err(Error::request(problem, "lower it"));
    }
    let tokenizer = Arc::new(TextTokenizer::from_file(&parts.init.join(TOKENIZER), &run.init)?);
    let teacher_hash = parts.teacher.as_ref().map(|t| t.fingerprint().to_owned());
    let teacher = match (parts.teacher, &run.teacher) {
        (Some(model), Some((_, weight))) => Some(Teacher { model, weight: *weight }),
        _ => None,
    };
    let groups = |examples| Groups::new(&parts.index, &tokenizer, &run.groups, examples);
    let budget = run.trainer.tokens_per_pass;
    let mut module = RerankerModule::new(bert, groups(train), groups(dev), run.dev_depth, budget, teacher);
    let first_stage = module.first_stage();
    progress.note(&format!("first stage on held-out questions: {}", words(first_stage)));

    let data = datasets.iter().chain(&dev_set);
    let data: Vec<Value> = data.map(|d| json!({"path": d.path, "sha256": d.sha256, "skipped": d.skipped})).collect();
    let inputs = json!({
        "run": run, "data": data, "index": parts.index.manifest().checksum,
        "init": module.bert().source_hash()?, "teacher": teacher_hash,
    });
    let log = Trainer::new(&run.trainer, &inputs, out)?.run(&mut module, resume, progress)?;
    let best = best_quality(&mut module, &log)?;
    progress.note(&format!("best: {}", words(best)));
    let mut behind = vec![Behind { retrieval: run.retrieval.clone(), first_stage, best }];
    for (retrieval, mut retriever) in parts.others {
        let header = Header::new(&parts.index, retrieval.clone(), run.depth);
        let asked: Vec<Asked> = asked_dev.iter().map(|&(set, question)| Asked { set, question }).collect();
        let folder = tempfile::tempdir().map_err(Error::internal("mining"))?;
        let file = folder.path().join(MINED);
        let mined = mine::mine(&asked, &parts.index, retriever.as_mut(), &header, &file, &Quiet)?;
        let examples = usable(&asked_dev, mined, &mut Intake::default());
        let first_stage = reranker::first_stage(&examples, run.dev_depth);
        let best = module.behind(examples)?;
        let name = retrieval.get("mode").and_then(Value::as_str).unwrap_or_default();
        progress.note(&format!("behind {name}: {}, and without it {}", words(best), words(first_stage)));
        behind.push(Behind { retrieval, first_stage, best });
    }
    publish(module.bert(), run, &behind, &parts.init, out, progress)?;

    let (examples_per_second, tokens_per_second) = record::speed(&log);
    let parameters = module.variables().iter().map(|(_, v)| v.elem_count()).sum();
    let record = RunRecord {
        nunatak: env!("CARGO_PKG_VERSION"),
        module: "reranker",
        settings: serde_json::to_value(run).map_err(Error::internal("recording settings"))?,
        data: json!({
            "sets": data, "questions": intake, "index": parts.index.manifest().checksum,
            "held_out": {"first_stage": first_stage, "best": best, "behind": behind},
        }),
        parameters,
        frozen: None,
        metric: "MRR@10",
        log,
        examples_per_second,
        tokens_per_second,
    };
    record::write(&record, out)?;
    Ok(record)
}

type Chosen<'a> = Vec<(&'a str, &'a Question)>;

/// Which questions are trained on and which are held out. Held out are all questions of some gold documents, from each
/// set the same number; a set that is given twice counts twice among the others.
fn choose<'a>(run: &RerankerRun, datasets: &'a [Dataset], dev_set: Option<&'a Dataset>) -> (Chosen<'a>, Chosen<'a>) {
    let mut random = ChaCha8Rng::seed_from_u64(run.trainer.seed);
    let mut dev: Chosen = Vec::new();
    let mut held: BTreeSet<(&str, &str)> = BTreeSet::new();
    if let Some(set) = dev_set {
        let mut questions: Vec<&Question> = set.questions.iter().collect();
        questions.shuffle(&mut random);
        dev.extend(questions.into_iter().take(run.dev).map(|q| (name_of(set), q)));
        held.extend(dev.iter().flat_map(|(name, q)| apart(name, q)));
    } else {
        let sets: BTreeMap<&str, &Dataset> = datasets.iter().map(|d| (name_of(d), d)).collect();
        let share = run.dev.div_ceil(sets.len().max(1));
        for (name, set) in sets {
            let mut documents: BTreeMap<&str, Vec<&Question>> = BTreeMap::new();
            set.questions.iter().for_each(|q| documents.entry(document(q)).or_default().push(q));
            let mut order: Vec<(&str, Vec<&Question>)> = documents.into_iter().collect();
            order.shuffle(&mut random);
            let mut taken = 0;
            // One question a document: more would measure the same passages again.
            for (document, questions) in order.into_iter().take_while(|_| {
                taken += 1;
                taken <= share
            }) {
                held.insert(("", document));
                held.extend(questions.first().into_iter().flat_map(|q| apart(name, q)));
                dev.extend(questions.first().map(|q| (name, *q)));
            }
        }
    }
    let all = datasets.iter().flat_map(|d| d.questions.iter().map(move |q| (name_of(d), q)));
    let mut train: Chosen = all.filter(|(name, q)| !apart(name, q).iter().any(|key| held.contains(key))).collect();
    train.shuffle(&mut random);
    train.truncate(usize::try_from(run.trainer.examples).unwrap_or(usize::MAX));
    (train, dev)
}

fn name_of(set: &Dataset) -> &str {
    set.sha256.get(..SET_DIGITS).unwrap_or(&set.sha256)
}

/// What must not be both trained on and held out: gold documents, which are the index's whatever set names them, or the
/// question itself, which is its set's.
fn apart<'a>(set: &'a str, question: &'a Question) -> Vec<(&'a str, &'a str)> {
    match &question.gold {
        Some(gold) => gold.keys().map(|document| ("", document.as_str())).collect(),
        None => vec![(set, &question.id)],
    }
}

/// What keeps questions of a set together: the first gold document, or the question itself.
fn document(question: &Question) -> &str {
    question.gold.as_ref().and_then(|g| g.keys().next()).unwrap_or(&question.id)
}

fn usable(chosen: &Chosen, mined: Vec<Mined>, intake: &mut Intake) -> Vec<(String, Mined)> {
    let mut unused: HashMap<Unused, usize> = HashMap::new();
    let mut kept = Vec::with_capacity(mined.len());
    for ((_, question), mined) in chosen.iter().zip(mined) {
        match mined.unused {
            Some(why) => *unused.entry(why).or_default() += 1,
            None => kept.push((question.question.clone(), mined)),
        }
    }
    let count = |why| unused.get(&why).copied().unwrap_or(0);
    intake.unlabelled += count(Unused::Unlabelled);
    intake.not_in_index += count(Unused::NotInIndex);
    intake.not_in_passage += count(Unused::NotInPassage);
    intake.not_found += count(Unused::NotFound);
    kept
}

fn tell(intake: &Intake, progress: &dyn Progress) {
    progress.note(&format!("{} questions to learn from, {} held out", intake.train, intake.dev));
    let remarks = [
        (intake.distant, "positives found by their answers, not given"),
        (intake.bad_lines, "bad lines left out"),
        (intake.unlabelled, "questions left out without answers or positive_ids"),
        (intake.not_in_index, "questions left out whose gold passages are not in the index"),
        (intake.not_in_passage, "questions left out whose answers do not stand in their gold documents"),
        (intake.not_found, "questions left out whose answers no candidate holds"),
    ];
    for (count, what) in remarks.into_iter().filter(|(count, _)| *count > 0) {
        progress.note(&format!("{count} {what}"));
    }
}

/// A quality in words.
pub fn words(quality: Quality) -> String {
    let prior = if quality.prior == 0.0 { String::new() } else { format!(", prior {:.3}", quality.prior) };
    format!("MRR@10 {:.4}, recall@1 {:.1}%{prior}", quality.mrr10, 100.0 * quality.recall1)
}

/// What the variables that are in place reach.
fn best_quality(module: &mut RerankerModule, log: &RunLog) -> Result<Quality> {
    // Of equal ones the last is kept; those of earlier sittings are in the log, not in the module.
    let earlier = log.evaluations.len().saturating_sub(module.history.len());
    let place = log.best.and_then(|best| log.evaluations.iter().rposition(|evaluation| *evaluation == best));
    if let Some(quality) = place.and_then(|place| module.history.get(place.checked_sub(earlier)?)) {
        return Ok(*quality);
    }
    // It was measured in an earlier sitting.
    module.evaluate()?;
    Ok(module.history.last().copied().unwrap_or_default())
}

/// Write weights and graphs, each as a whole folder that takes its name at the end, and the file of what was learned.
fn publish(
    bert: &Bert,
    run: &RerankerRun,
    behind: &[Behind],
    init: &Path,
    out: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    progress.start("exporting", None, "");
    let work = tempfile::Builder::new().prefix(".export-").tempdir_in(out).map_err(Error::file("write in", out))?;
    let weights = work.path().join(WEIGHTS);
    bert.round()?;
    bert.save(&weights, run.groups.max_tokens)?;
    let source = format!("{}, trained by nunatak {} as a re-ranker", run.init, env!("CARGO_PKG_VERSION"));
    let prior = |b: &Behind| Prior { weight: b.best.prior as f32, retrieval: b.retrieval.clone() };
    let priors: Vec<Prior> = behind.iter().map(prior).collect();
    for (name, precision) in [(RERANKER_FP32, Precision::Fp32), (RERANKER, Precision::Int8)] {
        let folder = work.path().join(name);
        export_cross_encoder(&weights, &folder, precision)?;
        learned::label(&folder, &source, &priors)?;
    }
    for name in [WEIGHTS, RERANKER_FP32, RERANKER] {
        let (new, place, old) = (work.path().join(name), out.join(name), work.path().join(format!("old-{name}")));
        if place.exists() {
            std::fs::rename(&place, &old).map_err(Error::file("replace", &place))?;
        }
        std::fs::rename(&new, &place).map_err(Error::file("rename", &new))?;
    }
    learned::fold(&out.join(WEIGHTS), (&run.init, init), &source, &priors, &out.join(LEARNED))?;
    progress.finish();
    Ok(())
}
