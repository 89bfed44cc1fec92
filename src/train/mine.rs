//! Hard negatives: what the first stage finds for a question and does not answer it.
//!
//! Every candidate of the first stage is marked: gold, holding an answer without being gold (a false negative, left
//! out of training), or negative. Candidates stay in rank order, so the same lines give training groups and the lists
//! that a re-ranker is measured on. A question without gold passages gets its positive by distant supervision: the best
//! candidate that holds an answer.
//!
//! Lines are kept in a file beside the run. Its first line says which index and which first stage made it; mining goes
//! on where it stopped, and a question is mined once, whatever run asks for it.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::eval::dataset::Question;
use crate::eval::has_answer::AnswerMatcher;
use crate::index::Index;
use crate::progress::{Progress, check_interrupt};
use crate::retrieve::Retriever;
use crate::types::{PassageId, document_of};

/// Version of the file's format.
const FORMAT: u32 = 1;

/// First line of the file: what its lines depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    pub format: u32,
    /// Checksum of the index whose rows the lines hold.
    pub index: String,
    /// The first stage and its settings.
    pub retrieval: Value,
    /// Candidates of a question.
    pub depth: usize,
}

impl Header {
    /// For this index and first stage.
    pub fn new(index: &Index, retrieval: Value, depth: usize) -> Self {
        Self { format: FORMAT, index: index.manifest().checksum.clone(), retrieval, depth }
    }
}

/// What a candidate is to its question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A gold passage.
    Gold,
    /// Not gold, but it holds an answer.
    Answer,
    /// Neither.
    Negative,
}

/// One line: a question with its positives and candidates, as rows of the index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mined {
    /// Beginning of the question set's sha256.
    pub set: String,
    /// The question's id there.
    pub id: String,
    /// Passages that answer it; none when it cannot be used.
    pub positives: Vec<PassageId>,
    /// What the first stage found, best first.
    pub candidates: Vec<PassageId>,
    /// The first stage's scores of them.
    pub scores: Vec<f32>,
    /// A letter a candidate: `g` gold, `a` holds an answer, `-` negative.
    pub marks: String,
    /// Whether the positive was found and not given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub distant: bool,
    /// Why there are no positives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused: Option<Unused>,
}

/// Why a question cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unused {
    /// It has neither answers nor gold passages.
    Unlabelled,
    /// The index has none of its gold passages.
    NotInIndex,
    /// Its gold document was split, and no piece holds an answer.
    NotInPassage,
    /// It has no gold passage, and no candidate holds an answer.
    NotFound,
}

impl Mined {
    /// The candidates with their marks, best first.
    pub fn marked(&self) -> impl Iterator<Item = (PassageId, Mark)> + '_ {
        let mark = |b| match b {
            b'g' => Mark::Gold,
            b'a' => Mark::Answer,
            _ => Mark::Negative,
        };
        self.candidates.iter().copied().zip(self.marks.bytes().map(mark))
    }
}

/// A question and the set it is of.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Beginning of the set's sha256.
    pub set: &'a str,
    /// The question.
    pub question: &'a Question,
}

/// Mine these questions, taking from the file at `path` what it has already, and adding what it has not. Gives one
/// result a question, in order.
///
/// # Errors
/// [`Error::BadFile`] when the file was made with another index or first stage, or is damaged; [`Error::Interrupted`]
/// on Ctrl-C; what index and retriever say.
pub fn mine(
    asked: &[Asked],
    index: &Index,
    retriever: &mut dyn Retriever,
    header: &Header,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Vec<Mined>> {
    let (mut file, mut known) = open(path, header)?;
    let missing = asked.iter().filter(|a| !known.contains_key(&key(a.set, &a.question.id))).count();
    progress.start("mining", Some(missing as u64), "questions");
    for asked in asked {
        let key = key(asked.set, &asked.question.id);
        if known.contains_key(&key) {
            continue;
        }
        check_interrupt(|| format!("{}: mining goes on from there", path.display()))?;
        let mined = mine_one(asked, index, retriever, header.depth)?;
        let line = serde_json::to_string(&mined).map_err(Error::internal("writing mined negatives"))?;
        writeln!(file, "{line}").map_err(Error::file("write", path))?;
        known.insert(key, mined);
        progress.advance(1);
    }
    file.flush().map_err(Error::file("write", path))?;
    progress.finish();
    let take = |a: &Asked| known.get(&key(a.set, &a.question.id)).cloned();
    Ok(asked.iter().filter_map(take).collect())
}

fn key(set: &str, id: &str) -> String {
    format!("{set} {id}")
}

type Known = HashMap<String, Mined>;

/// The file, ready to be added to, and what it holds; a last line that was cut off is taken away.
fn open(path: &Path, header: &Header) -> Result<(BufWriter<std::fs::File>, Known)> {
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).open(path).map_err(Error::file("open", path))?;
    let mut lines = BufReader::new(&file);
    let (mut line, mut whole, mut number) = (Vec::new(), 0, 0u64);
    let mut known = Known::new();
    let bad = |problem: String| Error::bad_file(path, problem, "delete it, or give another --out folder");
    while lines.read_until(b'\n', &mut line).map_err(Error::file("read", path))? > 0 && line.ends_with(b"\n") {
        number += 1;
        whole += line.len() as u64;
        if number == 1 {
            let found: Header = serde_json::from_slice(&line).map_err(|e| bad(format!("it holds no mining: {e}")))?;
            if &found != header {
                return Err(bad("it was mined from another index or with another first stage".into()));
            }
        } else {
            let mined: Mined = serde_json::from_slice(&line).map_err(|e| bad(format!("line {number}: {e}")))?;
            known.insert(key(&mined.set, &mined.id), mined);
        }
        line.clear();
    }
    file.set_len(whole).map_err(Error::file("shorten", path))?;
    if number == 0 {
        let text = serde_json::to_string(header).map_err(Error::internal("writing mined negatives"))?;
        writeln!(file, "{text}").map_err(Error::file("write", path))?;
    }
    Ok((BufWriter::new(file), known))
}

fn mine_one(asked: &Asked, index: &Index, retriever: &mut dyn Retriever, depth: usize) -> Result<Mined> {
    let Asked { set, question } = *asked;
    let mut mined = Mined {
        set: set.to_owned(),
        id: question.id.clone(),
        positives: Vec::new(),
        candidates: Vec::new(),
        scores: Vec::new(),
        marks: String::new(),
        distant: question.gold.is_none(),
        unused: None,
    };
    let answers = question.answers.as_deref().unwrap_or_default();
    if answers.is_empty() && question.gold.is_none() {
        return Ok(Mined { unused: Some(Unused::Unlabelled), distant: false, ..mined });
    }
    let matcher = AnswerMatcher::new(answers);
    if let Some(gold) = &question.gold {
        match positives(gold.keys(), index, &matcher)? {
            Ok(found) => mined.positives = found,
            Err(unused) => return Ok(Mined { unused: Some(unused), ..mined }),
        }
    }
    let hits = retriever.retrieve(&question.question, depth, None)?;
    mined.candidates = hits.iter().map(|hit| hit.passage).collect();
    // Four digits are enough to weigh a score, and halve the file.
    mined.scores = hits.iter().map(|hit| (hit.score * 1e4).round() / 1e4).collect();
    let marks = mined.candidates.par_iter().map(|&row| -> Result<char> {
        let passage = index.passage(row)?;
        let gold = question.gold.as_ref();
        let is_gold = gold.is_some_and(|g| g.contains_key(&passage.key) || g.contains_key(document_of(&passage.key)));
        // A piece of a gold document that does not hold the answer is a fair negative when the document was split,
        // and gold when it was not.
        if mined.positives.contains(&row) {
            return Ok('g');
        }
        let holds = matcher.matches(&passage.titled_text());
        Ok(if holds || (is_gold && answers.is_empty()) { 'a' } else { '-' })
    });
    mined.marks = marks.collect::<Result<String>>()?;
    if question.gold.is_none() {
        let best = mined.marked().find(|(_, mark)| *mark == Mark::Answer).map(|(row, _)| row);
        mined.positives.extend(best);
        mined.unused = best.is_none().then_some(Unused::NotFound);
    }
    Ok(mined)
}

/// The rows of the gold passages; of a document that was split, of those pieces that hold an answer.
fn positives<'a>(
    gold: impl Iterator<Item = &'a String>,
    index: &Index,
    matcher: &AnswerMatcher,
) -> Result<Result<Vec<PassageId>, Unused>> {
    let (mut rows, mut pieces_seen) = (Vec::new(), false);
    for key in gold {
        let pieces = index.pieces_of(key)?;
        pieces_seen |= !pieces.is_empty();
        if let [only] = pieces.as_slice() {
            rows.push(*only);
            continue;
        }
        for piece in pieces {
            if matcher.matches(&index.passage(piece)?.titled_text()) {
                rows.push(piece);
            }
        }
    }
    rows.sort_unstable();
    rows.dedup();
    Ok(match (rows.is_empty(), pieces_seen) {
        (false, _) => Ok(rows),
        (true, true) => Err(Unused::NotInPassage),
        (true, false) => Err(Unused::NotInIndex),
    })
}
