//! JSONL: one object a line, with `id` (or `_id`, `docid`), `text` (or `contents`) and perhaps `title`.
//! Other fields are the passages' metadata.

use std::borrow::Cow;
use std::fmt;
use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_json::{Map, Value};

use super::intake::{Intake, Place};
use super::open::{Line, Lines, failed, too_long};
use crate::error::Result;

/// A line. `Some(empty)` and a missing field are different faults, hence the options.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    id: Option<Id<'a>>,
    #[serde(borrow)]
    _id: Option<Id<'a>>,
    #[serde(borrow)]
    docid: Option<Id<'a>>,
    #[serde(borrow)]
    title: Option<Text<'a>>,
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    contents: Option<Text<'a>>,
    #[serde(flatten)]
    metadata: Map<String, Value>,
}

/// A string that is borrowed from the line where it holds no escape (`Option<Cow<str>>` would always copy).
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A string, or an integer as one.
struct Id<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Id<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdVisitor)
    }
}

struct IdVisitor;

impl<'de> Visitor<'de> for IdVisitor {
    type Value = Id<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string or an integer as id")
    }

    fn visit_borrowed_str<E: de::Error>(self, id: &'de str) -> Result<Self::Value, E> {
        Ok(Id(Cow::Borrowed(id)))
    }

    fn visit_str<E: de::Error>(self, id: &str) -> Result<Self::Value, E> {
        Ok(Id(Cow::Owned(id.to_string())))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Self::Value, E> {
        Ok(Id(Cow::Owned(id.to_string())))
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<Self::Value, E> {
        Ok(Id(Cow::Owned(id.to_string())))
    }
}

/// Give every line of `reader` to `intake`. White lines are passed over.
pub(super) fn read(
    path: &Path,
    file: &str,
    reader: Box<dyn BufRead>,
    compressed: bool,
    intake: &mut dyn Intake,
) -> Result<()> {
    let mut lines = Lines::new(reader);
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let line = lines.next(&mut buffer).map_err(|e| failed(path, e, compressed))?;
        let place = Place { path, file, line: lines.number };
        match line {
            Line::End => return Ok(()),
            Line::TooLong => intake.bad(place, too_long())?,
            Line::Whole => match parse(&buffer) {
                Ok(None) => {}
                Ok(Some(Fields { id, title, text, metadata })) => {
                    intake.record(place, super::intake::Record { id: &id, title: &title, text: &text, metadata })?;
                }
                Err(problem) => intake.bad(place, problem)?,
            },
        }
    }
}

/// What a line holds.
#[derive(Debug, PartialEq)]
struct Fields<'a> {
    id: Cow<'a, str>,
    title: Cow<'a, str>,
    text: Cow<'a, str>,
    metadata: Map<String, Value>,
}

/// What a line holds; nothing for a white line; or what is wrong with it.
fn parse(line: &[u8]) -> Result<Option<Fields<'_>>, String> {
    let Ok(line) = std::str::from_utf8(line) else { return Err("the line is not UTF-8".to_string()) };
    let line = line.trim();
    if line.is_empty() {
        return Ok(None);
    }
    if !line.starts_with('{') {
        return Err("the line is not a JSON object".to_string());
    }
    let record: Record = serde_json::from_str(line).map_err(|e| worded(&e))?;
    let id = record.id.or(record._id).or(record.docid);
    let text = record.text.or(record.contents);
    let Some(Id(id)) = id else { return Err("there is no id (`id`, `_id` or `docid`)".to_string()) };
    let Some(Text(text)) = text else { return Err("there is no text (`text` or `contents`)".to_string()) };
    let title = record.title.map_or(Cow::Borrowed(""), |title| title.0);
    Ok(Some(Fields { id, title, text, metadata: record.metadata }))
}

/// serde's message, with the column alone: its line is always 1 here.
fn worded(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let kind = if error.is_data() { "the fields are not as expected" } else { "the line is not valid JSON" };
    format!("{kind}: {message} at column {}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(line: &str) -> Result<Option<(String, String, String)>, String> {
        Ok(parse(line.as_bytes())?.map(|f| (f.id.into_owned(), f.title.into_owned(), f.text.into_owned())))
    }

    #[test]
    fn the_usual_names_of_fields_are_understood() {
        let want = Ok(Some(("7".to_string(), "T".to_string(), "é \"x\"".to_string())));
        assert_eq!(fields(r#"{"id": "7", "title": "T", "text": "é \"x\"", "url": {"a": [1]}}"#), want);
        assert_eq!(fields(r#" {"_id": 7, "title": "T", "text": "\u00e9 \"x\""} "#), want);
        assert_eq!(fields(r#"{"docid": 7, "contents": "é \"x\"", "title": "T", "text": null}"#), want);
        assert_eq!(fields(r#"{"id": -1, "text": "x"}"#), Ok(Some(("-1".to_string(), String::new(), "x".to_string()))));
        assert_eq!(fields("  \r"), Ok(None));
    }

    #[test]
    fn further_fields_are_metadata() {
        let line = r#"{"id": 1, "year": 1990, "_id": 2, "text": "x", "tags": ["a"], "of": {"b": null}, "title": "T"}"#;
        let found = parse(line.as_bytes()).unwrap().unwrap().metadata;
        assert_eq!(Value::Object(found), serde_json::json!({"year": 1990, "tags": ["a"], "of": {"b": null}}));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, part) in [
            (r#"{"text": "x"}"#, "there is no id"),
            (r#"{"id": "x"}"#, "there is no text"),
            (r#"{"id": "x", "text": 3}"#, "expected a string"),
            (r#"{"id": 1.5, "text": "x"}"#, "a string or an integer as id"),
            (r#"{"id": "x", "text": "y""#, "not valid JSON: EOF"),
            (r#"["x"]"#, "not a JSON object"),
            ("{\"id\": \"x\", \"text\": \"a\u{0}b\"}", "control character"),
        ] {
            let problem = fields(line).unwrap_err();
            assert!(problem.contains(part), "{line}: {problem}");
            assert!(!problem.contains("line 1"), "{problem}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }

        #[test]
        fn what_serde_writes_is_read_back(id in "\\PC{1,10}", title in any::<String>(), text in any::<String>()) {
            let line = serde_json::json!({"id": id, "title": title, "text": text}).to_string();
            prop_assert_eq!(fields(&line), Ok(Some((id, title, text))));
        }
    }
}
