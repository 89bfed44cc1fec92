//! The folder a run is written to. A file under its own name is complete; until then it ends in `.partial`.
//!
//! | file | |
//! |---|---|
//! | `predictions.jsonl` | a line a question, appended as answers come |
//! | `run.trec` | the rankings, for `trec_eval` |
//! | `report.html` | the run as a page for people |
//! | `report.json` | metrics and where they come from; written last, so its presence means a complete run |
//! | `settings.json.partial` | where a run that is not complete comes from: what `--resume` must agree with |

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::eval::dataset::Question;
use crate::eval::page::{PAGE, Page};
use crate::eval::prediction::Prediction;
use crate::eval::provenance::Provenance;
use crate::eval::ranking::names_passages;
use crate::eval::report::Report;
use crate::eval::trec;

/// The predictions of a complete run.
pub const PREDICTIONS: &str = "predictions.jsonl";
/// The rankings of a complete run.
pub const RUN: &str = "run.trec";
/// The report of a complete run.
pub const REPORT: &str = "report.json";
const SETTINGS: &str = "settings.json";

/// What to do about a run that is already in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Leave it alone: an error.
    #[default]
    Refuse,
    /// Remove it and start anew.
    Overwrite,
    /// Go on with it, if it was made the same way.
    Resume,
}

/// A folder with a run in the making.
#[derive(Debug)]
pub struct OutDir {
    path: PathBuf,
    predictions: BufWriter<File>,
    /// Questions already answered, the first ones of the set.
    pub done: usize,
}

/// What was found in the folder.
#[derive(Debug)]
pub enum Opened {
    /// There is work to do.
    Open(OutDir),
    /// The same run lies there, complete.
    Complete(Box<Report>),
}

impl OutDir {
    /// Open `path` for a run over `questions` that comes from `provenance`.
    ///
    /// # Errors
    /// [`Error::BadFile`] when another run lies there and `existing` does not say what to do about it, or when
    /// the run to resume was made differently or is damaged.
    pub fn open(path: &Path, existing: Existing, provenance: &Provenance, questions: &[Question]) -> Result<Opened> {
        fs::create_dir_all(path).map_err(Error::file("create", path))?;
        let names = [PREDICTIONS, RUN, PAGE, REPORT, SETTINGS];
        let ours = names.iter().flat_map(|name| [path.join(name), partial(path, name)]);
        let found: Vec<PathBuf> = ours.filter(|file| file.exists()).collect();
        match existing {
            Existing::Refuse if !found.is_empty() => {
                let hint = "give another --out, or go on with it (--resume), or replace it (--overwrite)";
                return Err(Error::bad_file(path, "another run lies in this folder", hint));
            }
            Existing::Overwrite => {
                for file in &found {
                    fs::remove_file(file).map_err(Error::file("remove", file))?;
                }
            }
            Existing::Resume if path.join(REPORT).exists() => {
                let report = Report::open(&path.join(REPORT))?;
                agree(path, &report.provenance, provenance)?;
                return Ok(Opened::Complete(Box::new(report)));
            }
            Existing::Resume if !found.is_empty() => {
                return Self::resume(path, provenance, questions).map(Opened::Open);
            }
            Existing::Refuse | Existing::Resume => {}
        }
        let text = serde_json::to_vec_pretty(provenance).map_err(Error::internal("writing settings"))?;
        let settings = partial(path, SETTINGS);
        fs::write(&settings, text).map_err(Error::file("write", &settings))?;
        let file = partial(path, PREDICTIONS);
        let predictions = File::create_new(&file).map_err(Error::file("create", &file))?;
        Ok(Opened::Open(Self { path: path.to_path_buf(), predictions: BufWriter::new(predictions), done: 0 }))
    }

    /// Go on with the run that lies in `path`, after its last whole line.
    fn resume(path: &Path, provenance: &Provenance, questions: &[Question]) -> Result<Self> {
        let settings = partial(path, SETTINGS);
        let bytes = fs::read(&settings).map_err(Error::file("read", &settings))?;
        let before: Provenance = serde_json::from_slice(&bytes).map_err(|e| damaged(&settings, e.to_string()))?;
        agree(path, &before, provenance)?;
        let file = partial(path, PREDICTIONS);
        // Stopped while its files were being given their names: the predictions may have theirs already.
        let named = path.join(PREDICTIONS);
        if named.exists() {
            fs::rename(&named, &file).map_err(Error::file("rename", &named))?;
        }
        let mut done = 0;
        let mut whole = 0;
        if file.exists() {
            let mut lines = BufReader::new(File::open(&file).map_err(Error::file("read", &file))?);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).map_err(Error::file("read", &file))? > 0 && line.ends_with(b"\n") {
                let id = serde_json::from_slice::<Prediction>(&line).map(|p| p.id);
                let id = id.map_err(|e| damaged(&file, format!("line {}: {e}", done + 1)))?;
                if questions.get(done).is_none_or(|q| q.id != id) {
                    return Err(damaged(&file, format!("line {} answers {id}, which is not asked there", done + 1)));
                }
                done += 1;
                whole += line.len() as u64;
                line.clear();
            }
        }
        let append = OpenOptions::new().create(true).append(true).open(&file).map_err(Error::file("open", &file))?;
        append.set_len(whole).map_err(Error::file("shorten", &file))?;
        Ok(Self { path: path.to_path_buf(), predictions: BufWriter::new(append), done })
    }

    /// Append a line; it is in the file when this returns.
    pub fn append(&mut self, prediction: &Prediction) -> Result<()> {
        let mut line = serde_json::to_vec(prediction).map_err(Error::internal("writing a prediction"))?;
        line.push(b'\n');
        let file = partial(&self.path, PREDICTIONS);
        self.predictions
            .write_all(&line)
            .and_then(|()| self.predictions.flush())
            .map_err(Error::file("write", file))?;
        self.done += 1;
        Ok(())
    }

    /// Sum up the lines, write run and report, and give all files their names, the report's last.
    ///
    /// Everything is computed from the file, so that a resumed run and one in a single go end the same.
    pub fn finish(self, provenance: Provenance) -> Result<Report> {
        let Self { path, predictions, .. } = self;
        let file = partial(&path, PREDICTIONS);
        let predictions = predictions.into_inner().map_err(|e| Error::file("write", &file)(e.into_error()))?;
        predictions.sync_all().map_err(Error::file("write", &file))?;
        let mut page = Page::default();
        write_file(&partial(&path, RUN), |run| {
            read_predictions(&file, |prediction| {
                page.push(&prediction);
                let keys = prediction.passages.iter().map(String::as_str);
                let ranking = keys.zip(prediction.passage_scores.iter().copied());
                let lines = trec::lines(&prediction.id, ranking, names_passages(prediction.gold.iter()));
                trec::write(&lines, run).map_err(Error::file("write", partial(&path, RUN)))
            })
        })?;
        let report = Report::new(page.columns(), provenance);
        let text = serde_json::to_string_pretty(&report).map_err(Error::internal("writing a report"))?;
        // As it will be read, so that the page can be made again to the same bytes: a number's last bit may move.
        let as_read = serde_json::from_str(&text).map_err(Error::internal("reading the report again"))?;
        let html = page.render(&as_read)?;
        let at = partial(&path, PAGE);
        write_file(&at, |to| to.write_all(html.as_bytes()).map_err(Error::file("write", &at)))?;
        let at = partial(&path, REPORT);
        write_file(&at, |to| writeln!(to, "{text}").map_err(Error::file("write", &at)))?;
        for name in [PREDICTIONS, RUN, PAGE, REPORT] {
            let from = partial(&path, name);
            fs::rename(&from, path.join(name)).map_err(Error::file("rename", &from))?;
        }
        let settings = partial(&path, SETTINGS);
        fs::remove_file(&settings).map_err(Error::file("remove", &settings))?;
        Ok(report)
    }
}

/// The predictions of a complete run, given as its folder or as that file.
///
/// # Errors
/// [`Error::BadFile`] when there are none.
pub fn predictions_of(run: &Path) -> Result<PathBuf> {
    let path = if run.is_dir() { run.join(PREDICTIONS) } else { run.to_path_buf() };
    if path.is_file() {
        return Ok(path);
    }
    let hint = "give the --out folder of a complete run, or its predictions.jsonl; finish a stopped run with --resume";
    Err(Error::bad_file(run, "there is no complete run here", hint))
}

/// Go through a file of predictions.
///
/// # Errors
/// [`Error::BadFile`] at the first line that is none.
pub fn read_predictions(path: &Path, mut each: impl FnMut(Prediction) -> Result<()>) -> Result<()> {
    let lines = BufReader::new(File::open(path).map_err(Error::file("read", path))?).lines();
    for (number, line) in (1u64..).zip(lines) {
        let line = line.map_err(Error::file("read", path))?;
        let bad = |e: serde_json::Error| {
            Error::bad_file(
                path,
                format!("line {number} is not a prediction: {e}"),
                "make the run again with --overwrite",
            )
        };
        each(serde_json::from_str(&line).map_err(bad)?)?;
    }
    Ok(())
}

pub(super) fn partial(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.partial"))
}

fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut to = BufWriter::new(File::create(path).map_err(Error::file("create", path))?);
    fill(&mut to)?;
    let file = to.into_inner().map_err(|e| Error::file("write", path)(e.into_error()))?;
    file.sync_all().map_err(Error::file("write", path))
}

fn agree(path: &Path, before: &Provenance, now: &Provenance) -> Result<()> {
    match before.differs_from(now) {
        None => Ok(()),
        Some(what) => {
            let hint = "resume with what the run was begun with, or begin anew with --overwrite";
            Err(Error::bad_file(
                path,
                format!("the run in this folder cannot be resumed: {what} is not the same"),
                hint,
            ))
        }
    }
}

fn damaged(path: &Path, problem: String) -> Error {
    Error::bad_file(path, format!("the run in this folder cannot be resumed: {problem}"), "begin anew with --overwrite")
}
