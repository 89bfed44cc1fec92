//! How well a prompt makes the frozen language model do many tasks: `nunatak eval tasks`.
//!
//! A task with choices is measured by rank classification: the choice with the greatest log-likelihood counts (Sanh et al.
//! 2022, arXiv:2110.08207). Others are written greedily, and measured by exact match (and token F1) with any of the right
//! answers, or by ROUGE-L with the target where targets are sentences.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::eval::bootstrap::{Interval, interval, interval_of, mean};
use crate::eval::normalise::exact_match_and_f1;
use crate::eval::out_dir::{PREDICTIONS, REPORT, partial};
use crate::eval::prediction::Prediction;
use crate::eval::rouge::rouge_l;
use crate::eval::table::aligned;
use crate::eval::task_set::{Task, TaskExample, TaskSet, draw, input_tokens, target_tokens};
use crate::progress::{Progress, check_interrupt};
use crate::read::decode::{Decoding, Generation};
use crate::read::lm::{FrozenLm, Prompt};
use crate::read::prefix::Prefix;
use crate::read::prompt_generator::PromptGenerator;

/// Words of a target, on average, from which on a task is one of writing sentences.
const SENTENCES: f64 = 8.0;
/// Longest answer in tokens where answers are short, and where they are sentences.
const LONGEST: [usize; 2] = [24, 64];
/// Examples that are written at once.
const BATCH: usize = 8;

/// What stands before an input.
#[derive(Debug)]
pub enum Prompts {
    /// The same before all.
    Fixed(Prefix),
    /// One for each task, by name.
    PerTask(BTreeMap<String, Prefix>),
    /// One that is written for the input.
    Generated(Box<PromptGenerator>),
}

/// How a task is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Share of examples for which the right choice is the likeliest.
    Accuracy,
    /// Share of examples for which exactly the target, or another right answer, was written.
    ExactMatch,
    /// F-measure of the longest common subsequence of words.
    RougeL,
}

impl Measure {
    /// Of a task, by what its examples look like.
    pub fn of(task: &Task) -> Self {
        let words = |e: &TaskExample| e.target.split_whitespace().count() as f64;
        if task.test.iter().any(|e| !e.choices.is_empty()) {
            Self::Accuracy
        } else if mean(&task.test.iter().map(words).collect::<Vec<_>>()).is_some_and(|mean| mean >= SENTENCES) {
            Self::RougeL
        } else {
            Self::ExactMatch
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::ExactMatch => "exact match",
            Self::RougeL => "ROUGE-L",
        }
    }
}

/// One task's result.
#[derive(Debug, Clone, Serialize)]
pub struct TaskResult {
    /// Its name.
    pub task: String,
    /// What kind of task it is.
    pub cluster: String,
    /// How it is measured.
    pub measure: Measure,
    /// Examples.
    pub n: usize,
    /// The mean over them.
    pub score: f64,
    /// 95% of it.
    pub interval: Interval,
    /// Mean token F1, where exact match is the measure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
    /// Mean log-likelihood of the target and the end of its line, if it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_likelihood: Option<f64>,
    /// Inputs that lost their beginning.
    pub cut: usize,
}

/// What came of the tasks of a cluster.
#[derive(Debug, Clone, Serialize)]
pub struct ClusterResult {
    /// Mean over its tasks.
    pub score: f64,
    /// 95% of it, over examples.
    pub interval: Interval,
    /// Examples.
    pub n: usize,
}

/// All results.
#[derive(Debug, Clone, Serialize)]
pub struct TasksReport {
    /// Version of nunatak.
    pub nunatak: &'static str,
    /// What was measured: settings and hashes.
    pub settings: Value,
    /// The tasks by name.
    pub tasks: Vec<TaskResult>,
    /// Those of the tasks of each cluster together.
    pub clusters: BTreeMap<String, ClusterResult>,
    /// Mean over tasks.
    pub average: f64,
    /// 95% of it, over examples.
    pub interval: Interval,
    /// Milliseconds an input: what writing the prompt took, and the language model.
    pub prompt_ms: f64,
    /// See above.
    pub lm_ms: f64,
}

/// What is measured, and how.
#[derive(Debug, Clone, Copy)]
pub struct TasksOptions {
    /// Examples of each task, at most.
    pub per_task: usize,
    /// Longest input in tokens; of a longer one the beginning is lost.
    pub window: usize,
    /// Measure the likelihood of targets.
    pub likelihood: bool,
    /// Decides which examples.
    pub seed: u64,
}

/// Measure over the tasks that have examples to measure on, and write the predictions and the report into `out`.
///
/// # Errors
/// [`Error::Request`] when there is nothing to measure on, or a task has no prompt; what the models and the folder say.
pub fn run(
    set: &TaskSet,
    lm: &mut FrozenLm,
    prompts: &mut Prompts,
    options: TasksOptions,
    settings: Value,
    out: &Path,
    progress: &dyn Progress,
) -> Result<TasksReport> {
    let tasks: Vec<(&String, &Task)> = set.tasks.iter().filter(|(_, task)| !task.test.is_empty()).collect();
    if tasks.is_empty() {
        let hint = "give tasks with a split test, val, dev or all";
        return Err(Error::request("the tasks have no examples to measure on", hint));
    }
    std::fs::create_dir_all(out).map_err(Error::file("create", out))?;
    // A file under its own name is complete.
    let path = partial(out, PREDICTIONS);
    let mut file = BufWriter::new(File::create(&path).map_err(Error::file("create", &path))?);
    let total: usize = tasks.iter().map(|(_, task)| task.test.len().min(options.per_task)).sum();
    progress.start("answering", Some(total as u64), "examples");
    let (mut results, mut scores) = (Vec::new(), Vec::new());
    let (mut prompt_ms, mut lm_ms) = (0.0, 0.0);
    for (place, (name, task)) in tasks.iter().enumerate() {
        let measure = Measure::of(task);
        let examples = draw(&task.test, options.per_task, options.seed);
        let (mut own, mut overlaps, mut likelihoods, mut cut) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for batch in examples.chunks(if measure == Measure::Accuracy { 1 } else { BATCH }) {
            check_interrupt(|| "nothing was reported".to_owned())?;
            let mut asked = Vec::new();
            let begin = Instant::now();
            for example in batch {
                let prefix = prompts.before(name, &example.input, lm)?;
                asked.push(Prompt { prefix, passages: Vec::new(), tail: Vec::new() });
            }
            let written = begin.elapsed().as_secs_f64() * 1000.0;
            for (prompt, example) in asked.iter_mut().zip(batch) {
                let (tokens, lost) = input_tokens(lm.tokenizer(), &example.input, options.window)?;
                prompt.tail = tokens;
                cut += usize::from(lost > 0);
            }
            let begin = Instant::now();
            let said = say(lm, &asked, batch, measure)?;
            let read = begin.elapsed().as_secs_f64() * 1000.0;
            (prompt_ms, lm_ms) = (prompt_ms + written, lm_ms + read);
            for ((example, (said, sure)), prompt) in batch.iter().zip(said).zip(&asked) {
                let (score, f1) = match measure {
                    Measure::Accuracy => (f64::from(u8::from(said == example.target)), None),
                    Measure::ExactMatch => {
                        let (exact, f1) = exact_match_and_f1(&said, &example.answers);
                        (exact, Some(f1))
                    }
                    Measure::RougeL => (rouge_l(&said, &example.target), None),
                };
                own.push(score);
                overlaps.extend(f1);
                scores.push((place, score));
                let metrics = ["task_score".to_owned(), format!("task_score/{name}")].map(|m| (m, score.into()));
                let ms = (written + read) / batch.len() as f64;
                let mut metrics = Map::from_iter(metrics);
                if options.likelihood {
                    let target = target_tokens(lm.tokenizer(), &example.target)?;
                    let value =
                        f64::from(lm.score(prompt, std::slice::from_ref(&target))?.first().copied().unwrap_or(0.0));
                    likelihoods.push(value);
                    metrics.insert("target_log_likelihood".into(), value.into());
                }
                let line = Prediction { f1, ..Prediction::of_task(name, example, (said, sure), metrics, ms) };
                let line = serde_json::to_string(&line).map_err(Error::internal("writing a prediction"))?;
                writeln!(file, "{line}").map_err(Error::file("write", &path))?;
            }
            progress.advance(batch.len() as u64);
        }
        if let (Some(score), Some(interval)) = (mean(&own), interval(&own, options.seed)) {
            let (task, cluster) = ((*name).clone(), task.cluster.clone());
            let (f1, log_likelihood) = (mean(&overlaps), mean(&likelihoods));
            results.push(TaskResult { task, cluster, measure, n: own.len(), score, interval, f1, log_likelihood, cut });
        }
    }
    file.flush().map_err(Error::file("write", &path))?;
    progress.finish();
    let over = |of: &dyn Fn(&TaskResult) -> bool| {
        mean(&results.iter().filter(|r| of(r)).map(|r| r.score).collect::<Vec<_>>()).unwrap_or_default()
    };
    // 95% of a mean over tasks, by drawing their examples again.
    let interval_over = |scores: &[(usize, f64)], average: f64| {
        let average_of = |counts: &[u32]| {
            let mut sums = vec![(0.0, 0u32); tasks.len()];
            for ((place, score), count) in scores.iter().zip(counts) {
                if let Some((sum, n)) = sums.get_mut(*place) {
                    (*sum, *n) = (*sum + score * f64::from(*count), *n + count);
                }
            }
            mean(&sums.iter().filter(|(_, n)| *n > 0).map(|(sum, n)| sum / f64::from(*n)).collect::<Vec<_>>())
        };
        interval_of(scores.len(), options.seed, average_of).unwrap_or(Interval { low: average, high: average })
    };
    let cluster = |name: &String| {
        let score = over(&|result| result.cluster == *name);
        let is_its = |place: usize| tasks.get(place).is_some_and(|(_, task)| task.cluster == *name);
        let own: Vec<(usize, f64)> = scores.iter().copied().filter(|(place, _)| is_its(*place)).collect();
        (name.clone(), ClusterResult { score, interval: interval_over(&own, score), n: own.len() })
    };
    let average = over(&|_| true);
    let report = TasksReport {
        nunatak: env!("CARGO_PKG_VERSION"),
        settings,
        clusters: results.iter().map(|result| cluster(&result.cluster)).collect(),
        average,
        interval: interval_over(&scores, average),
        tasks: results,
        prompt_ms: prompt_ms / scores.len().max(1) as f64,
        lm_ms: lm_ms / scores.len().max(1) as f64,
    };
    std::fs::rename(&path, out.join(PREDICTIONS)).map_err(Error::file("rename", &path))?;
    let path = out.join(REPORT);
    let text = serde_json::to_string_pretty(&report).map_err(Error::internal("writing a report"))?;
    std::fs::write(&path, text + "\n").map_err(Error::file("write", &path))?;
    Ok(report)
}

/// What the language model says to each example, and how sure it is: the mean log-probability of a token, or, among choices,
/// the logarithm of the choice's share of their probabilities.
fn say(lm: &mut FrozenLm, asked: &[Prompt], examples: &[&TaskExample], measure: Measure) -> Result<Vec<(String, f64)>> {
    if let (Measure::Accuracy, [prompt], [example]) = (measure, asked, examples) {
        let continuations =
            example.choices.iter().map(|c| target_tokens(lm.tokenizer(), c)).collect::<Result<Vec<_>>>()?;
        let scores = lm.score(prompt, &continuations)?;
        let best = scores.iter().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
        let Some((choice, &score)) = best else { return Ok(vec![(String::new(), f64::from(f32::MIN))]) };
        let all: f64 = scores.iter().map(|&other| f64::from(other - score).exp()).sum();
        return Ok(vec![(example.choices.get(choice).cloned().unwrap_or_default(), -all.ln())]);
    }
    let longest = LONGEST[usize::from(measure == Measure::RougeL)];
    let decoding = Decoding { max_new_tokens: longest, ..Decoding::default() };
    let (written, _) = lm.generate(asked, &decoding, None, &mut |_, _| {})?;
    let said = |answer: Generation| (answer.text.trim().to_owned(), f64::from(answer.mean_logprob().max(f32::MIN)));
    Ok(written.into_iter().map(said).collect())
}

impl Prompts {
    pub(super) fn before(&mut self, task: &str, input: &str, lm: &mut FrozenLm) -> Result<Prefix> {
        match self {
            Self::Fixed(prefix) => Ok(prefix.clone()),
            Self::Generated(generator) => Ok(Prefix::Written { behind: None, prompt: generator.prompt(input, lm)? }),
            Self::PerTask(prompts) => prompts.get(task).cloned().ok_or_else(|| {
                let hint = "name a folder that has a file TASK.safetensors for every task, or leave the task out";
                Error::request(format!("there is no prompt for the task {task}"), hint)
            }),
        }
    }
}

impl TasksReport {
    /// The report for people.
    pub fn table(&self) -> String {
        let head = ["task", "cluster", "measure", "score", "95% interval", "n", "F1", "log-likelihood"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let told = self.tasks.iter().any(|task| task.log_likelihood.is_some());
        if !told {
            rows[0].pop();
        }
        let cells = |score: f64, interval: &Interval| {
            [format!("{:.1}", 100.0 * score), format!("{:.1} .. {:.1}", 100.0 * interval.low, 100.0 * interval.high)]
        };
        for TaskResult { task, cluster, measure, n, score, interval, f1, log_likelihood, .. } in &self.tasks {
            let [score, interval] = cells(*score, interval);
            let mut row = vec![task.clone(), cluster.clone(), measure.name().into(), score, interval, n.to_string()];
            row.push(f1.map_or_else(String::new, |f1| format!("{:.1}", 100.0 * f1)));
            row.extend(log_likelihood.map(|value| format!("{value:.3}")));
            rows.push(row);
        }
        // A cluster of one task is that task.
        for (name, ClusterResult { score, interval, n }) in &self.clusters {
            if self.tasks.iter().filter(|task| task.cluster == *name).count() > 1 {
                let [score, interval] = cells(*score, interval);
                rows.push(vec!["average".into(), name.clone(), String::new(), score, interval, n.to_string()]);
            }
        }
        let [score, interval] = cells(self.average, &self.interval);
        let n = self.tasks.iter().map(|t| t.n).sum::<usize>().to_string();
        rows.push(vec!["average over tasks".into(), String::new(), String::new(), score, interval, n]);
        let cut: usize = self.tasks.iter().map(|t| t.cut).sum();
        let (prompt, lm) = (self.prompt_ms, self.lm_ms);
        let mut text = aligned(&rows);
        text.push_str(&format!("\nms an input: prompt {prompt:.1}, language model {lm:.1}\n"));
        if cut > 0 {
            text.push_str(&format!("{cut} inputs were longer than the window and lost their beginning\n"));
        }
        text
    }
}
