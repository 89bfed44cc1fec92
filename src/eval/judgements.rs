//! Relevance judgements (qrels): where they lie beside a set of queries, and what a line of them says.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The queries and the judgements that `path` stands for, if it is of the BEIR kind.
pub(super) fn locate(path: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
    if path.extension().is_some_and(|e| e == "tsv") {
        let folders = path.ancestors().skip(1).take(2);
        let found = folders.map(|f| f.join("queries.jsonl")).find(|queries| queries.is_file());
        let hint = "keep queries.jsonl beside the judgements or one folder above";
        let queries = found.ok_or_else(|| Error::bad_file(path, "these judgements have no queries.jsonl", hint))?;
        return Ok(Some((queries, path.to_path_buf())));
    }
    if !path.is_dir() {
        return Ok(None);
    }
    let queries = path.join("queries.jsonl");
    let single = path.join("qrels.tsv");
    let hint = "a BEIR folder holds queries.jsonl and qrels/test.tsv";
    if !queries.is_file() {
        return Err(Error::bad_file(path, "the folder has no queries.jsonl", hint));
    }
    if single.is_file() {
        return Ok(Some((queries, single)));
    }
    let splits = path.join("qrels");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&splits).map_err(Error::file("read", &splits))? {
        let split = entry.map_err(Error::file("read", &splits))?.path();
        if split.extension().is_some_and(|e| e == "tsv") {
            found.push(split);
        }
    }
    found.sort();
    let test = splits.join("test.tsv");
    match found.as_slice() {
        [only] => Ok(Some((queries, only.clone()))),
        _ if found.contains(&test) => Ok(Some((queries, test))),
        [] => Err(Error::bad_file(&splits, "there is no .tsv in it", hint)),
        _ => {
            Err(Error::bad_file(&splits, "several splits and no test.tsv", "name the one that is meant: qrels/dev.tsv"))
        }
    }
}

/// A judgement: three columns (question, document, grade) or TREC's four (question, 0, document, grade). `None`
/// for BEIR's header and for a grade of 0 or below, which means "not relevant".
pub(super) fn parse(text: &str, line: u64) -> Result<Option<(&str, &str, u32)>, String> {
    let columns: Vec<&str> = text.split_whitespace().collect();
    let (question, document, grade) = match columns.as_slice() {
        [question, document, grade] | [question, _, document, grade] => (*question, *document, *grade),
        _ => return Err("a judgement has three columns: question, document, grade".to_owned()),
    };
    match grade.parse::<i64>() {
        Ok(grade) if grade > 0 => {
            let grade = u32::try_from(grade).map_err(|_| format!("the grade is too large: {grade}"))?;
            Ok(Some((question, document, grade)))
        }
        Ok(_) => Ok(None),
        Err(_) if line == 1 => Ok(None),
        Err(_) => Err(format!("the grade is no whole number: {grade}")),
    }
}
