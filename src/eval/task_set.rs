//! Tasks as text in and text out, many of them at once: what an input-dependent prompt learns from and is measured on.
//!
//! A JSONL file (as it is, or as `.gz` or `.zst`) of `input`, `target`, `task`, `cluster`, `split` and, where an answer is one
//! of a few, `choices`; where other answers are as right as the target, `answers`. Splits whose name begins with `train` are for
//! training; the others measure. Runs are compared by an example's `id` within its task and its `question`; without them by its line
//! and its input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::error::{Error, Result};
use crate::eval::dataset::{records, unpacked};
use crate::eval::skips::Skips;
use crate::progress::Progress;
use crate::read::template::answer_line;
use crate::runtime::tokenizer::TextTokenizer;

/// An input and what should be said to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskExample {
    /// Its place in its file, from 1.
    pub line: u64,
    /// Which of its task it is: by the file's `id`, or its line.
    pub id: String,
    /// What is asked, for people and to compare runs by: the file's `question`, or the input.
    pub question: String,
    /// All that the language model is told.
    pub input: String,
    /// What it should say.
    pub target: String,
    /// All that is right to say, the target among it.
    pub answers: Vec<String>,
    /// What it may say; empty when it writes freely.
    pub choices: Vec<String>,
}

/// One task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Task {
    /// What kind of task it is.
    pub cluster: String,
    /// Examples to train on, in the order of the file.
    pub train: Vec<TaskExample>,
    /// Examples to measure on: of the first split that the task has of `test`, `val`, `dev`, `all`.
    pub test: Vec<TaskExample>,
}

/// Tasks by name.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSet {
    /// The tasks.
    pub tasks: BTreeMap<String, Task>,
    /// sha256 over the bytes of the files read, in hexadecimal.
    pub sha256: String,
    /// Bad lines left out.
    pub skipped: usize,
}

/// Names that a measuring split may have, the preferred first. `dev` splits that stand beside a `test` split stay unread, for
/// who wants to choose settings on them.
const MEASURING: [&str; 6] = ["test", "val", "validation", "dev", "dev32", "all"];

/// Read task files, and the files in folders whose names end like one's, leaving out up to `skip_bad` bad lines, which `progress` is
/// told.
///
/// # Errors
/// [`Error::BadLine`] for the first bad line too many; [`Error::BadFile`] when a file or folder holds no task.
pub fn read(paths: &[PathBuf], skip_bad: usize, progress: &dyn Progress) -> Result<TaskSet> {
    let (mut hash, mut skips) = (Sha256::new(), Skips::new(skip_bad, progress));
    let mut splits: BTreeMap<String, (String, BTreeMap<String, Vec<TaskExample>>)> = BTreeMap::new();
    for file in files(paths)? {
        let bytes = unpacked(&file, &mut hash)?;
        let mut found = false;
        for (line, record) in records(&file, &bytes)? {
            match record.and_then(|record| example(&record, line)) {
                Ok((task, cluster, split, example)) => {
                    let (_, of_task) = splits.entry(task).or_insert_with(|| (cluster, BTreeMap::new()));
                    of_task.entry(split).or_default().push(example);
                    found = true;
                }
                Err(problem) => skips.leave_out(&file, line, problem)?,
            }
        }
        if !found {
            return Err(none_in(&file));
        }
    }
    let tasks = splits
        .into_iter()
        .map(|(name, (cluster, mut splits))| {
            let test = MEASURING.iter().find_map(|split| splits.remove(*split)).unwrap_or_default();
            let train = splits.into_iter().filter(|(split, _)| split.starts_with("train")).flat_map(|(_, e)| e);
            (name, Task { cluster, train: train.collect(), test })
        })
        .collect();
    Ok(TaskSet { tasks, sha256: hex(&hash.finalize()), skipped: skips.end() })
}

impl TaskSet {
    /// Keep the tasks `only`, or all but `without`, or all where neither names any (a name may be a task's or a cluster's).
    ///
    /// # Errors
    /// [`Error::Request`] naming one that there is not.
    pub fn select(self, only: &[String], without: &[String]) -> Result<Self> {
        match (only.is_empty(), without.is_empty()) {
            (false, _) => self.keep(only, false),
            (true, false) => self.keep(without, true),
            (true, true) => Ok(self),
        }
    }

    fn keep(mut self, names: &[String], without: bool) -> Result<Self> {
        let is = |name: &String, task: &str, of: &Task| name == task || *name == of.cluster;
        if let Some(unknown) = names.iter().find(|name| !self.tasks.iter().any(|(task, of)| is(name, task, of))) {
            let all: Vec<&str> = self.tasks.keys().map(String::as_str).collect();
            return Err(Error::request(
                format!("there is no task or cluster {unknown:?}"),
                format!("tasks are: {}", all.join(", ")),
            ));
        }
        self.tasks.retain(|task, of| names.iter().any(|name| is(name, task, of)) != without);
        Ok(self)
    }
}

/// A few examples of each task, drawn by `seed` alone.
pub fn draw(examples: &[TaskExample], count: usize, seed: u64) -> Vec<&TaskExample> {
    let mut order: Vec<&TaskExample> = examples.iter().collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order.truncate(count);
    order
}

/// An input as the language model gets it, and how many tokens of its beginning were lost.
pub fn input_tokens(tokenizer: &TextTokenizer, input: &str, most: usize) -> Result<(Vec<u32>, usize)> {
    let mut ids = tokenizer.encode(input, false)?;
    let lost = ids.len().saturating_sub(most);
    ids.drain(..lost);
    Ok((ids, lost))
}

/// What should be said to it: the text behind a space, and the end of the line.
pub fn target_tokens(tokenizer: &TextTokenizer, target: &str) -> Result<Vec<u32>> {
    answer_line(target, tokenizer)
}

fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(Error::file("read", path))?;
        let mut inside = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::file("read", path))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if [".jsonl", ".jsonl.gz", ".jsonl.zst"].iter().any(|end| name.ends_with(end)) {
                inside.push(path);
            }
        }
        if inside.is_empty() {
            return Err(none_in(path));
        }
        inside.sort();
        files.append(&mut inside);
    }
    Ok(files)
}

fn none_in(path: &Path) -> Error {
    let hint = "give JSON lines with `input`, `target`, `task`, `cluster` and `split`";
    Error::bad_file(path, "there are no tasks in it", hint)
}

/// A line's task, cluster, split and example.
fn example(record: &Map<String, Value>, line: u64) -> Result<(String, String, String, TaskExample), String> {
    let text = |name: &str| match record.get(name) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
        Some(Value::String(_)) => Err(format!("`{name}` is empty")),
        Some(_) => Err(format!("`{name}` is no string")),
        None => Err(format!("there is no `{name}`")),
    };
    let list = |name: &str| match record.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values
            .iter()
            .map(|value| value.as_str().map(str::to_owned).ok_or_else(|| format!("`{name}` are no strings")))
            .collect::<Result<Vec<_>, _>>(),
        Some(_) => Err(format!("`{name}` is no list")),
    };
    let given = |name: &str| if record.contains_key(name) { text(name).map(Some) } else { Ok(None) };
    let (choices, mut answers) = (list("choices")?, list("answers")?);
    let target = text("target")?;
    if !choices.is_empty() && !choices.contains(&target) {
        return Err(format!("the target {target:?} is none of the choices"));
    }
    if !answers.contains(&target) {
        answers.insert(0, target.clone());
    }
    let (task, input) = (text("task")?, text("input")?);
    let cluster = given("cluster")?.unwrap_or_else(|| task.clone());
    let id = given("id")?.unwrap_or_else(|| line.to_string());
    let question = given("question")?.unwrap_or_else(|| input.clone());
    Ok((task, cluster, text("split")?, TaskExample { line, id, question, input, target, answers, choices }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;

    fn written(lines: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.jsonl");
        std::fs::write(&path, lines).unwrap();
        (dir, path)
    }

    const LINES: &str = r#"{"input": "a", "target": "yes", "task": "t", "cluster": "c", "split": "train32", "choices": ["yes", "no"]}
{"input": "b", "target": "no", "task": "t", "cluster": "c", "split": "dev"}
{"input": "d", "target": "no", "task": "t", "cluster": "c", "split": "test"}
{"input": "e", "target": "x", "task": "u", "split": "all", "id": "e7", "question": "what?", "answers": ["x", "the x"]}
"#;

    #[test]
    fn training_and_measuring_splits_are_told_apart() {
        let (dir, _) = written(LINES);
        let set = read(&[dir.path().to_path_buf()], 0, &Quiet).unwrap();
        let inputs = |e: &[TaskExample]| e.iter().map(|e| e.input.clone()).collect::<Vec<_>>();
        let t = &set.tasks["t"];
        assert_eq!((inputs(&t.train), inputs(&t.test), t.cluster.as_str()), (vec!["a".into()], vec!["d".into()], "c"));
        let u = &set.tasks["u"];
        assert_eq!((inputs(&u.train), inputs(&u.test), u.cluster.as_str()), (vec![], vec!["e".into()], "u"));
        // What a line does not say follows from its place and its input.
        let known = |e: &TaskExample| (e.id.clone(), e.question.clone(), e.answers.clone());
        assert_eq!(known(&t.test[0]), ("3".into(), "d".into(), vec!["no".into()]));
        assert_eq!(known(&u.test[0]), ("e7".into(), "what?".into(), vec!["x".into(), "the x".into()]));
        assert!(set.clone().select(&[], &["c".into()]).unwrap().tasks.keys().eq(["u"]));
        assert!(set.clone().select(&["t".into()], &[]).unwrap().tasks.keys().eq(["t"]));
        assert!(set.select(&["nothing".into()], &[]).unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn a_bad_line_is_named() {
        let bad = r#"{"input": "a", "target": "maybe", "task": "t", "split": "train", "choices": ["yes", "no"]}"#;
        let (_dir, path) = written(&format!("{LINES}{bad}\n"));
        let error = read(std::slice::from_ref(&path), 0, &Quiet).unwrap_err().to_string();
        assert!(
            error.contains("tasks.jsonl") && error.contains('5') && error.contains("none of the choices"),
            "{error}"
        );
        assert_eq!(read(&[path], 1, &Quiet).unwrap().skipped, 1);
        let (_dir, empty) = written("\n");
        assert!(read(&[empty], 0, &Quiet).unwrap_err().to_string().contains("no tasks"));
    }

    #[test]
    fn a_draw_depends_on_the_seed_alone() {
        let (_dir, path) = written(LINES);
        let set = read(&[path], 0, &Quiet).unwrap();
        let examples: Vec<TaskExample> =
            (0..50).map(|line| TaskExample { line, ..set.tasks["t"].train[0].clone() }).collect();
        let lines = |seed| draw(&examples, 10, seed).iter().map(|e| e.line).collect::<Vec<_>>();
        assert_eq!(lines(1), lines(1));
        assert_ne!(lines(1), lines(2));
        assert_eq!(lines(1).len(), 10);
    }
}
