//! Questions that people bring, with what is known of their answers: one reader for the field's formats.
//!
//! - JSONL: `id`, `question`, `answers`, optional `positive_ids`; the names `_id`, `query`, `text` and
//!   `answer` of NQ-open and BEIR are understood too.
//! - A JSON array of such records, as DPR distributes them (`positive_ctxs` with `passage_id` or `psg_id`).
//! - A BEIR folder: `queries.jsonl` and `qrels/*.tsv`; a folder with `queries.jsonl` and `qrels.tsv`; or one
//!   `.tsv` of judgements beside or below such a `queries.jsonl`, to choose the split.
//!
//! gz and zst files are read as they are. A file of questions is small, so it is read whole.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::error::{Error, Result};
use crate::eval::judgements;
use crate::eval::ranking::Gold;
use crate::eval::skips::Skips;
use crate::progress::Progress;

/// A question with what is known of its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Its id, unique in the set; the line or record number where the file gives none.
    pub id: String,
    /// The question, as plain text.
    pub question: String,
    /// Acceptable answers. `None` = nobody said; an empty list = it has no answer.
    pub answers: Option<Vec<String>>,
    /// Gold document ids with their grades; `None` = nobody said.
    pub gold: Option<Gold>,
}

/// A set of questions.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The questions in the order of the file.
    pub questions: Vec<Question>,
    /// The file or folder it was read from.
    pub path: PathBuf,
    /// sha256 over the bytes of the files read, in hexadecimal: which questions a number is about.
    pub sha256: String,
    /// Bad lines left out.
    pub skipped: usize,
}

/// Read the questions at `path`, leaving out up to `skip_bad` lines that are no questions, which `progress` is told.
///
/// # Errors
/// [`Error::BadLine`] for the first bad line too many (a record of a JSON array counts as a line), for a
/// judgement that is none, and for an id that comes twice; [`Error::BadFile`] for an array that is none, and when nothing is left.
pub fn read(path: &Path, skip_bad: usize, progress: &dyn Progress) -> Result<Dataset> {
    let mut reader = Reader { hash: Sha256::new(), skips: Skips::new(skip_bad, progress) };
    let questions = match judgements::locate(path)? {
        Some((queries, judgements)) => {
            let questions = reader.questions(&queries)?;
            let gold = reader.judgements(&judgements)?;
            questions.into_iter().filter_map(|q| Some(Question { gold: Some(gold.get(&q.id)?.clone()), ..q })).collect()
        }
        None => reader.questions(path)?,
    };
    if questions.is_empty() {
        let hint = "give JSON lines with `question` and `answers`, or a BEIR folder";
        return Err(Error::bad_file(path, "there are no questions in it", hint));
    }
    let sha256 = hex(&reader.hash.finalize());
    Ok(Dataset { questions, path: path.to_path_buf(), sha256, skipped: reader.skips.end() })
}

/// What goes on while files are read.
struct Reader<'a> {
    hash: Sha256,
    skips: Skips<'a>,
}

impl Reader<'_> {
    fn questions(&mut self, path: &Path) -> Result<Vec<Question>> {
        let bytes = self.bytes(path)?;
        let mut questions = Vec::new();
        let mut seen: HashMap<String, u64> = HashMap::new();
        for (line, record) in records(path, &bytes)? {
            let parsed = record.and_then(|r| question(&r, line));
            let first = parsed.as_ref().ok().and_then(|q| seen.get(&q.id));
            let parsed = match first {
                Some(first) => parsed.and_then(|q| Err(format!("the id {} was already used on line {first}", q.id))),
                None => parsed,
            };
            match parsed {
                Ok(question) => {
                    seen.insert(question.id.clone(), line);
                    questions.push(question);
                }
                Err(problem) => self.skips.leave_out(path, line, problem)?,
            }
        }
        Ok(questions)
    }

    /// Judgements by question.
    fn judgements(&mut self, path: &Path) -> Result<BTreeMap<String, Gold>> {
        let bytes = self.bytes(path)?;
        let mut all: BTreeMap<String, Gold> = BTreeMap::new();
        for (line, text) in lines(&bytes) {
            match text.and_then(|text| judgements::parse(text, line)) {
                Ok(Some((question, document, grade))) => {
                    all.entry(question.to_owned()).or_default().insert(document.to_owned(), grade);
                }
                Ok(None) => {}
                Err(problem) => self.skips.leave_out(path, line, problem)?,
            }
        }
        Ok(all)
    }

    fn bytes(&mut self, path: &Path) -> Result<Vec<u8>> {
        unpacked(path, &mut self.hash)
    }
}

/// The bytes of a file, unpacked if it is packed, and counted into the hash as they lie there.
pub(super) fn unpacked(path: &Path, hash: &mut Sha256) -> Result<Vec<u8>> {
    let packed = std::fs::read(path).map_err(Error::file("read", path))?;
    hash.update(&packed);
    let mut bytes = Vec::new();
    let unpacked = match packed.as_slice() {
        [0x1f, 0x8b, ..] => flate2::read::MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut bytes),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::stream::copy_decode(packed.as_slice(), &mut bytes).map(|()| 0),
        _ => return Ok(packed),
    };
    match unpacked {
        Ok(_) => Ok(bytes),
        Err(e) => {
            Err(Error::bad_file(path, format!("it cannot be unpacked: {e}"), "get the file again; it may be cut short"))
        }
    }
}

/// A record with its line (or, in an array, its place), or why it is none.
pub(super) type Record = (u64, Result<Map<String, Value>, String>);

pub(super) fn records(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    let as_map = |value: Value| match value {
        Value::Object(map) => Ok(map),
        other => Err(format!("expected a JSON object, found {}", kind(&other))),
    };
    let bytes = without_mark(bytes);
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        // An array is whole or nothing: no line of it can be left out.
        let values: Vec<Value> = serde_json::from_slice(bytes)
            .map_err(|e| Error::bad_file(path, format!("it is no JSON array: {e}"), "mend it"))?;
        return Ok((1..).zip(values.into_iter().map(as_map)).collect());
    }
    let parse = |text: &str| match serde_json::from_str(text) {
        Ok(value) => as_map(value),
        // serde_json counts lines within the text it is given, which here is always one.
        Err(e) => Err(format!("not JSON at column {}: {}", e.column(), reason(&e))),
    };
    Ok(lines(bytes).map(|(line, text)| (line, text.and_then(parse))).collect())
}

/// What serde_json says without the place, which is said in our own words.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(reason, _)| reason.to_owned())
}

/// The bytes behind a byte-order mark, if there is one.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

/// The lines that are not blank, numbered from 1.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (u64, Result<&str, String>)> {
    (1..)
        .zip(without_mark(bytes).split(|b| *b == b'\n'))
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(n, line)| (n, std::str::from_utf8(line).map_err(|_| "not UTF-8 text".to_owned())))
}

fn question(record: &Map<String, Value>, line: u64) -> Result<Question, String> {
    let field = |names: &[&str]| names.iter().find_map(|name| Some(((*name).to_owned(), record.get(*name)?)));
    let id = match field(&["id", "_id"]) {
        Some((name, value)) => word(value).ok_or_else(|| format!("`{name}` is {}, not a string", kind(value)))?,
        None => line.to_string(),
    };
    if id.is_empty() || id.contains(char::is_whitespace) {
        return Err(format!("the id {id:?} is empty or holds white space, which run files cannot carry"));
    }
    let (name, value) = field(&["question", "query", "text"]).ok_or("there is no `question`")?;
    let question = value.as_str().ok_or_else(|| format!("`{name}` is {}, not a string", kind(value)))?;
    let answers = match field(&["answers", "answer"]) {
        Some((name, value)) => Some(words(&name, value)?),
        None => None,
    };
    let gold = match (record.get("positive_ids"), record.get("positive_ctxs")) {
        (Some(ids), _) => words("positive_ids", ids)?,
        (None, Some(Value::Array(contexts))) => {
            let id = |c: &Value| c.get("passage_id").or_else(|| c.get("psg_id")).and_then(word);
            contexts.iter().filter_map(id).collect()
        }
        _ => Vec::new(),
    };
    let gold: Gold = gold.into_iter().map(|id| (id, 1)).collect();
    let gold = if gold.is_empty() { None } else { Some(gold) };
    Ok(Question { id, question: question.to_owned(), answers, gold })
}

/// A string, or a number as people write it.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A list of words, or one word alone.
fn words(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let bad = |found: &Value| format!("`{name}` holds {}, not strings", kind(found));
    match value {
        Value::Array(items) => items.iter().map(|item| word(item).ok_or_else(|| bad(item))).collect(),
        single => Ok(vec![word(single).ok_or_else(|| bad(single))?]),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::progress::Quiet;

    fn read_text(name: &str, text: &[u8], skip_bad: usize) -> Result<Dataset> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path, skip_bad, &Quiet)
    }

    fn problem(text: &[u8]) -> String {
        let message = read_text("q.jsonl", text, 0).unwrap_err().to_string();
        message.split_once("q.jsonl").unwrap().1.to_owned()
    }

    #[test]
    fn our_own_form_keeps_ids_answers_and_gold() {
        let text = b"\xEF\xBB\xBF{\"id\": \"a\", \"question\": \"who?\", \"answers\": [\"X\", 7], \"positive_ids\": [\"d1\", 2]}\r\n\n\
            {\"id\": 5, \"question\": \"what?\", \"answers\": []}";
        let set = read_text("q.jsonl", text, 0).unwrap();
        let gold = Gold::from([("2".to_owned(), 1), ("d1".to_owned(), 1)]);
        assert_eq!(set.questions[0].answers, Some(vec!["X".to_owned(), "7".to_owned()]));
        assert_eq!(set.questions[0].gold, Some(gold));
        assert_eq!((set.questions[1].id.as_str(), &set.questions[1].answers), ("5", &Some(vec![])));
        assert_eq!(set.questions[1].gold, None);
        assert_eq!(set.sha256.len(), 64);
    }

    #[test]
    fn nq_open_and_dpr_forms_are_understood() {
        let set =
            read_text("nq.jsonl", b"{\"question\": \"q\", \"answer\": [\"A\"]}\n{\"query\": \"r\"}\n", 0).unwrap();
        assert_eq!((set.questions[0].id.as_str(), set.questions[1].id.as_str()), ("1", "2"));
        assert_eq!(set.questions[1].answers, None);
        let dpr = br#"[{"question": "q", "answers": ["A"], "positive_ctxs": [{"title": "t", "text": "x", "passage_id": "81"}, {"psg_id": 9}]}]"#;
        for text in [dpr.to_vec(), [b"\xEF\xBB\xBF".as_slice(), dpr].concat()] {
            let set = read_text("dev.json", &text, 0).unwrap();
            let keys: Vec<&String> = set.questions[0].gold.as_ref().unwrap().keys().collect();
            assert_eq!(keys, ["81", "9"]);
        }
        let error = read_text("dev.json", &dpr[..40], 9).unwrap_err();
        assert!(error.to_string().contains("dev.json: it is no JSON array: "), "{error}");
        assert_eq!(error.hint(), Some("mend it"), "no line of it can be left out");
    }

    #[test]
    fn bad_lines_are_named_or_counted() {
        assert_eq!(problem(b"{\"question\": \"q\"}\n{\"question\": }"), ":2: not JSON at column 14: expected value");
        assert_eq!(problem(b"7"), ":1: expected a JSON object, found a number");
        assert_eq!(problem(b"{\"id\": \"x\"}"), ":1: there is no `question`");
        assert_eq!(problem(b"{\"question\": [1]}"), ":1: `question` is a list, not a string");
        assert_eq!(problem(b"{\"question\": \"q\", \"answers\": [null]}"), ":1: `answers` holds null, not strings");
        assert_eq!(problem(b"\n\x89PNG\n"), ":2: not UTF-8 text");
        assert_eq!(problem(b"[{\"question\": \"q\"}, 3]"), ":2: expected a JSON object, found a number");
        let twice = b"{\"id\": \"x\", \"question\": \"q\"}\n{\"id\": \"x\", \"question\": \"r\"}\n";
        assert_eq!(problem(twice), ":2: the id x was already used on line 1");
        assert!(problem(b"{\"id\": \"a b\", \"question\": \"q\"}").contains("white space"));
        assert!(problem(b"").contains("no questions"));
        let set = read_text("q.jsonl", twice, 1).unwrap();
        assert_eq!((set.questions.len(), set.skipped), (1, 1));
    }

    #[test]
    fn packed_files_are_read_and_truncated_ones_refused() {
        let text = br#"{"question": "q"}"#;
        let packed = zstd::encode_all(text.as_slice(), 1).unwrap();
        assert_eq!(read_text("q.jsonl.zst", &packed, 0).unwrap().questions.len(), 1);
        let error = read_text("q.jsonl.zst", &packed[..packed.len() - 3], 0).unwrap_err();
        assert!(error.to_string().contains("cannot be unpacked"), "{error}");
    }

    #[test]
    fn judgements_join_queries_and_choose_the_split() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("queries.jsonl"), "{\"_id\": \"1\", \"text\": \"q\"}\n{\"_id\": \"2\", \"text\": \"r\"}\n")
            .unwrap();
        assert!(read(folder.path(), 0, &Quiet).is_err(), "no judgements at all");
        std::fs::create_dir(at("qrels")).unwrap();
        std::fs::write(at("qrels/test.tsv"), "query-id\tcorpus-id\tscore\n2\td\t2\n2\te\t0\n").unwrap();
        std::fs::write(at("qrels/dev.tsv"), "1 0 d 1\n").unwrap();
        let test = read(folder.path(), 0, &Quiet).unwrap();
        assert_eq!(test.questions.len(), 1);
        assert_eq!(test.questions[0].gold, Some(Gold::from([("d".to_owned(), 2)])));
        let dev = read(&at("qrels/dev.tsv"), 0, &Quiet).unwrap();
        assert_eq!(dev.questions[0].id, "1");
        assert_ne!(dev.sha256, test.sha256);
        std::fs::write(at("qrels/dev.tsv"), "1\td\t1\n1\te\tyes\n").unwrap();
        let error = read(&at("qrels/dev.tsv"), 0, &Quiet).unwrap_err().to_string();
        assert!(error.ends_with("dev.tsv:2: the grade is no whole number: yes"), "{error}");
        assert_eq!(read(&at("qrels/dev.tsv"), 1, &Quiet).unwrap().skipped, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_file_is_too_bad_to_be_refused(bytes: Vec<u8>, broken in "[\\[\\]{}:,\"a-dq0-9 \n\t]{0,60}") {
            for text in [bytes.as_slice(), broken.as_bytes()] {
                if let Ok(set) = read_text("q.jsonl", text, 3) {
                    prop_assert!(!set.questions.is_empty() && set.skipped <= 3);
                }
                let folder = tempfile::tempdir().unwrap();
                std::fs::write(folder.path().join("queries.jsonl"), "{\"id\": \"a\", \"text\": \"q\"}").unwrap();
                std::fs::write(folder.path().join("qrels.tsv"), text).unwrap();
                if let Ok(set) = read(folder.path(), 0, &Quiet) {
                    prop_assert!(set.questions.iter().all(|q| q.gold.as_ref().is_some_and(|g| g.values().all(|v| *v > 0))));
                }
            }
        }
    }
}
