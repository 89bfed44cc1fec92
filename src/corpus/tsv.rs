//! Tab-separated id, text and title, quoted as spreadsheet writers do it: the form of DPR's passages.
//!
//! Further columns that a header names are the passages' metadata, numbers as numbers.
//!
//! A field that begins with `"` ends at the next lone `"`, and `""` in it is one; line ends within belong to it.

use std::io::BufRead;
use std::path::Path;

use serde_json::Value;

use super::intake::{Intake, Place, Record};
use super::open::{LONGEST_LINE, Line, Lines, failed, too_long};
use crate::error::Result;

/// Which column holds what.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Columns {
    id: usize,
    text: usize,
    title: Option<usize>,
    count: usize,
    /// Names of the others, where there is one.
    others: Vec<(usize, String)>,
}

/// The order of DPR.
const DPR: Columns = Columns { id: 0, text: 1, title: Some(2), count: 3, others: Vec::new() };

/// Give every line of `reader` to `intake`.
pub(super) fn read(
    path: &Path,
    file: &str,
    reader: Box<dyn BufRead>,
    compressed: bool,
    intake: &mut dyn Intake,
) -> Result<()> {
    let mut lines = Lines::new(reader);
    let mut columns = None;
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let found = next_record(&mut lines, &mut buffer).map_err(|e| failed(path, e, compressed))?;
        let Some((line, problem)) = found else { return Ok(()) };
        let place = Place { path, file, line };
        let record = match problem {
            Some(problem) => Err(problem),
            None => std::str::from_utf8(&buffer).map_err(|_| "the line is not UTF-8".to_string()),
        };
        let fields = match record.and_then(fields) {
            Ok(fields) => fields,
            Err(problem) => {
                intake.bad(place, problem)?;
                continue;
            }
        };
        if fields.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        let Some(columns) = &columns else {
            match header(&fields) {
                Some(header) => columns = Some(header),
                None => {
                    columns = Some(DPR);
                    give(place, &fields, &DPR, intake)?;
                }
            }
            continue;
        };
        give(place, &fields, columns, intake)?;
    }
}

/// The columns that a first line names, if it is a header.
fn header(fields: &[String]) -> Option<Columns> {
    let position =
        |names: &[&str]| fields.iter().position(|field| names.contains(&field.trim().to_lowercase().as_str()));
    let id = position(&["id", "_id", "docid", "pid"])?;
    let text = position(&["text", "contents"])?;
    let title = position(&["title"]);
    let named = |(i, name): (usize, &String)| (i, name.trim().to_owned());
    let is_other = |(i, name): &(usize, String)| ![Some(id), Some(text), title].contains(&Some(*i)) && !name.is_empty();
    let others = fields.iter().enumerate().map(named).filter(is_other).collect();
    Some(Columns { id, text, title, count: fields.len(), others })
}

fn give(place: Place<'_>, fields: &[String], columns: &Columns, intake: &mut dyn Intake) -> Result<()> {
    // A title at the end may be left out, and nothing else.
    let least = if *columns == DPR { 2 } else { columns.count };
    let (Some(id), Some(text)) = (fields.get(columns.id), fields.get(columns.text)) else {
        return intake.bad(place, "the line has no tab: id, text and title are expected".to_string());
    };
    if !(least..=columns.count).contains(&fields.len()) {
        let problem = format!("the line has {} fields and {} are expected", fields.len(), columns.count);
        return intake.bad(place, problem);
    }
    let title = columns.title.and_then(|title| fields.get(title)).map_or("", String::as_str);
    let others = columns.others.iter().filter_map(|(i, name)| Some((name.clone(), value(fields.get(*i)?)?)));
    intake.record(place, Record { id, title, text, metadata: others.collect() })
}

/// A field as metadata: a number or a truth value if it is written as JSON writes it, else text; nothing if it is empty.
fn value(field: &str) -> Option<Value> {
    let plain: Option<Value> = serde_json::from_str(field).ok();
    let plain = plain.filter(|value| (value.is_number() || value.is_boolean()) && value.to_string().as_str() == field);
    (!field.is_empty()).then(|| plain.unwrap_or_else(|| field.into()))
}

/// Where in a record a byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote in a quoted field: its end, or the first half of `""`.
    QuoteInQuoted,
}

impl State {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::QuoteInQuoted,
            (Self::Quoted, _) | (Self::FieldStart | Self::QuoteInQuoted, b'"') => Self::Quoted,
            (_, b'\t') => Self::FieldStart,
            _ => Self::Plain,
        }
    }
}

/// Read a record, of several lines where a quoted field has line ends, into `buffer`: the number of its first
/// line and what is wrong with it. `None` at the end of the file.
fn next_record(lines: &mut Lines, buffer: &mut Vec<u8>) -> std::io::Result<Option<(u64, Option<String>)>> {
    let mut state = State::FieldStart;
    let mut first = None;
    let mut tab_within = false;
    loop {
        let start = buffer.len();
        let line = lines.next(buffer)?;
        let number = *first.get_or_insert(lines.number);
        match line {
            Line::End if start == 0 => return Ok(None),
            Line::End => return Ok(Some((number, Some("the quote that opens a field is never closed".to_string())))),
            Line::TooLong => return Ok(Some((number, Some(too_long())))),
            Line::Whole => {}
        }
        for &byte in buffer.get(start..).unwrap_or_default() {
            tab_within |= state == State::Quoted && byte == b'\t';
            state = state.after(byte);
        }
        if buffer.len() > LONGEST_LINE {
            return Ok(Some((number, Some(format!("a quoted field: {}", too_long())))));
        }
        if state != State::Quoted {
            if buffer.last() == Some(&b'\r') {
                buffer.pop();
            }
            // A lone quote at the start of an unquoted field swallows lines up to the next quote. No writer puts
            // both tabs and line ends into a field, so that is what has happened here.
            let swallowed = tab_within && lines.number > number;
            return Ok(Some((
                number,
                swallowed.then(|| {
                    format!("the quote that opens a field is closed only on line {}, after other fields", lines.number)
                }),
            )));
        }
        buffer.push(b'\n');
    }
}

/// The fields of a record.
fn fields(record: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut state = State::FieldStart;
    let mut from = 0;
    // Bytes between quotes and tabs are copied as they are: both are single bytes in UTF-8.
    for (at, byte) in record.bytes().enumerate() {
        let next = state.after(byte);
        let dropped = next == State::FieldStart
            || matches!((state, next), (State::FieldStart, State::Quoted) | (State::Quoted, State::QuoteInQuoted));
        state = next;
        if !dropped {
            continue;
        }
        append(&mut fields, record.get(from..at));
        from = at + 1;
        if state == State::FieldStart {
            fields.push(String::new());
        }
    }
    append(&mut fields, record.get(from..));
    Ok(fields)
}

fn append(fields: &mut [String], text: Option<&str>) {
    if let (Some(field), Some(text)) = (fields.last_mut(), text) {
        field.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(source: &[u8]) -> Vec<(u64, Result<Vec<String>, String>)> {
        let mut lines = Lines::new(Box::new(std::io::Cursor::new(source.to_vec())));
        let mut found = Vec::new();
        let mut buffer = Vec::new();
        while let Some((line, problem)) = next_record(&mut lines, &mut buffer).unwrap() {
            let record = String::from_utf8_lossy(&buffer).into_owned();
            found.push((line, problem.map_or_else(|| fields(&record), Err)));
            buffer.clear();
        }
        found
    }

    #[test]
    fn quoted_fields_are_unquoted() {
        let found = records(b"1\t\"Aaron ( or ; \"\"Ahar\"\") is\"\tAaron\r\n2\tPlain \"x\"\tT\n3\t\"a\nb\"\t\n");
        assert_eq!(found[0], (1, Ok(vec!["1".into(), "Aaron ( or ; \"Ahar\") is".into(), "Aaron".into()])));
        assert_eq!(found[1], (2, Ok(vec!["2".into(), "Plain \"x\"".into(), "T".into()])));
        assert_eq!(found[2], (3, Ok(vec!["3".into(), "a\nb".into(), String::new()])));
    }

    #[test]
    fn a_quote_that_is_not_closed_is_named() {
        let found = records(b"1\t\"open\tT\n2\tx \"y\" z\tT\n3\tlast\tT\n");
        assert!(found[0].1.as_ref().unwrap_err().contains("closed only on line 2"), "{found:?}");
        assert_eq!(found[1].0, 3);
        assert!(records(b"1\t\"open\n2\tx\n")[0].1.as_ref().unwrap_err().contains("never closed"));
    }

    #[test]
    fn a_header_names_the_columns() {
        let names = |text: &str| header(&text.split(' ').map(String::from).collect::<Vec<_>>());
        assert_eq!(names("id text title"), Some(DPR));
        let found = names("title year id contents  lang").unwrap();
        assert_eq!((found.id, found.text, found.title, found.count), (2, 3, Some(0), 6));
        assert_eq!(found.others, [(1, "year".into()), (5, "lang".into())]);
        for (field, expected) in [
            ("1990", serde_json::json!(1990)),
            ("-0.5", serde_json::json!(-0.5)),
            ("007", serde_json::json!("007")),
            ("true", serde_json::json!(true)),
            ("null", serde_json::json!("null")),
            ("1990 ", serde_json::json!("1990 ")),
        ] {
            assert_eq!(value(field), Some(expected), "{field}");
        }
        assert_eq!(value(""), None);
        assert_eq!(names("1 text title"), None);
    }

    proptest! {
        #[test]
        fn what_a_quoting_writer_writes_is_read_back(
            rows in proptest::collection::vec(proptest::collection::vec("[a-zé\"\r ]{0,8}(\n[a\"])?", 3), 1..6),
        ) {
            let mut file = String::new();
            for row in &rows {
                let quoted: Vec<String> = row.iter().map(|f| format!("\"{}\"", f.replace('"', "\"\""))).collect();
                file.push_str(&quoted.join("\t"));
                file.push_str("\r\n");
            }
            let found: Vec<_> = records(file.as_bytes()).into_iter().map(|(_, r)| r.unwrap()).collect();
            prop_assert_eq!(found, rows);
        }

        #[test]
        fn no_bytes_panic(source in proptest::collection::vec(prop_oneof![Just(b'\t'), Just(b'"'), Just(b'\n'), any::<u8>()], 0..200)) {
            records(&source);
        }
    }
}
