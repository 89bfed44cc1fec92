//! Which passages may be found: conditions on their metadata, as `--filter 'source=wiki year>=1990'` has them.
//!
//! Conditions are separated by white space and must all hold. A condition is a field, an operator (`=`, `!=`, `<`, `<=`,
//! `>`, `>=`) and a value, or several with commas between (`lang=en,de`: any of them). A value with white space, commas or
//! quotes is put in double quotes, with `\"` and `\\` inside. Fields inside of fields are reached by dots (`author.name`).
//! What a value that is a number or `true` or `false` is compared with is up to the passage: a number with numbers, as text
//! with text. Text is ordered by its bytes, so that dates of the form 2026-11-24 are in order. A passage without the
//! field meets no condition on it but `!=`; one whose field is a list meets a condition that any of its values meets, and
//! `!=` when none is equal. [`crate::index::Index::allowed`] applies it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Conditions that must all hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// At least one.
    pub conditions: Vec<Condition>,
}

/// A condition on a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The field, with dots on the way into others.
    pub field: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what; several only for `=` and `!=`.
    pub values: Vec<String>,
}

/// How a field is compared with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// It is one of the values.
    Equal,
    /// It is none of the values, or is not there.
    NotEqual,
    /// It is smaller.
    Less,
    /// It is smaller or equal.
    AtMost,
    /// It is greater.
    Greater,
    /// It is greater or equal.
    AtLeast,
}

/// Longest first: `<=` begins as `<`.
const OPERATORS: [(&str, Operator); 6] = [
    ("!=", Operator::NotEqual),
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

/// What a value begins with in quotes only.
const OPERATOR_SIGNS: [char; 4] = ['=', '<', '>', '!'];

impl Operator {
    /// As it is typed.
    pub fn symbol(self) -> &'static str {
        OPERATORS.iter().find(|(_, operator)| *operator == self).map_or("=", |(symbol, _)| symbol)
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut rest = text.trim_start();
        let mut conditions = Vec::new();
        while !rest.is_empty() {
            let (condition, after) = condition(rest)?;
            conditions.push(condition);
            if !after.is_empty() && !after.starts_with(char::is_whitespace) {
                return Err(wrong(after, "a space is missing before"));
            }
            rest = after.trim_start();
        }
        if conditions.is_empty() {
            return Err(wrong(text, "there is no condition in"));
        }
        Ok(Self { conditions })
    }
}

/// The error of a condition on a field that no passage has, where some have `fields`.
pub(crate) fn unknown_field(field: &str, fields: &str) -> Error {
    Error::request(
        format!("no passage has a field {field:?} to filter by"),
        format!("the index has the fields {fields}"),
    )
}

fn wrong(part: &str, problem: &str) -> Error {
    Error::request(
        format!("the filter cannot be read: {problem} {part:?}"),
        "write conditions like source=wiki, year>=1990, lang=en,de or author!=\"Jane Doe\", with spaces between",
    )
}

/// The first condition of `text`, and what is behind it.
fn condition(text: &str) -> Result<(Condition, &str)> {
    let is_field = |c: char| !c.is_whitespace() && !"=!<>\",".contains(c);
    let end = text.find(|c| !is_field(c)).unwrap_or(text.len());
    let (field, rest) = text.split_at(end);
    if field.is_empty() {
        return Err(wrong(text, "there is no field before"));
    }
    let found = OPERATORS.iter().find_map(|(symbol, operator)| Some((*operator, rest.strip_prefix(symbol)?)));
    let (operator, mut rest) = found.ok_or_else(|| wrong(field, "there is no operator behind"))?;
    let mut values = Vec::new();
    loop {
        let (value, after) = value(rest)?;
        values.push(value);
        match after.strip_prefix(',') {
            Some(after) => rest = after,
            None => {
                rest = after;
                break;
            }
        }
    }
    if values.len() > 1 && !matches!(operator, Operator::Equal | Operator::NotEqual) {
        return Err(wrong(field, "several values go with = and != only, not with the operator behind"));
    }
    Ok((Condition { field: field.to_owned(), operator, values }, rest))
}

/// The value that `text` begins with, and what is behind it.
fn value(text: &str) -> Result<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        // `year==1990` and `year=>1990` are slips, not values.
        if value.is_empty() || value.contains('"') || value.starts_with(OPERATOR_SIGNS) {
            return Err(wrong(text, "a value is expected at"));
        }
        return Ok((value.to_owned(), rest));
    };
    let (mut value, mut characters) = (String::new(), quoted.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, quoted.get(at + 1..).unwrap_or_default())),
            '\\' => match characters.next() {
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => return Err(wrong(text, "a backslash escapes a quote or a backslash, in")),
            },
            other => value.push(other),
        }
    }
    Err(wrong(text, "the quote is not closed that opens"))
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, condition) in self.conditions.iter().enumerate() {
            write!(f, "{}{}{}", if i > 0 { " " } else { "" }, condition.field, condition.operator.symbol())?;
            for (j, value) in condition.values.iter().enumerate() {
                let plain = !value.is_empty()
                    && !value.starts_with(OPERATOR_SIGNS)
                    && !value.contains(|c: char| c.is_whitespace() || "\",".contains(c));
                let comma = if j > 0 { "," } else { "" };
                if plain {
                    write!(f, "{comma}{value}")?;
                } else {
                    write!(f, "{comma}\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(field: &str, operator: Operator, values: &[&str]) -> Condition {
        let values = values.iter().map(|v| (*v).to_owned()).collect();
        Condition { field: field.to_owned(), operator, values }
    }

    #[test]
    fn conditions_are_read_as_they_are_written() {
        let filter: Filter =
            r#" source=wiki  year>=1990 lang!=en,de author.name="Doe, \"J\" \\" n<-1.5 "#.parse().unwrap();
        assert_eq!(
            filter.conditions,
            [
                one("source", Operator::Equal, &["wiki"]),
                one("year", Operator::AtLeast, &["1990"]),
                one("lang", Operator::NotEqual, &["en", "de"]),
                one("author.name", Operator::Equal, &[r#"Doe, "J" \"#]),
                one("n", Operator::Less, &["-1.5"]),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("", "no condition"),
            ("  ", "no condition"),
            ("year", "no operator behind \"year\""),
            ("=3", "no field before"),
            ("year=", "a value is expected at"),
            ("year=1990,", "a value is expected at"),
            ("year>1,2", "go with = and != only"),
            ("a=\"b", "the quote is not closed"),
            ("a=\"b\"c=d", "a space is missing before"),
            (r#"a="\n""#, "a backslash escapes"),
            ("a=b\"c", "a value is expected"),
            ("year==1990", "a value is expected"),
            ("year=>1990", "a value is expected"),
        ] {
            let error = text.parse::<Filter>().unwrap_err();
            assert!(error.to_string().contains(part) && error.hint().is_some(), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(parts in prop::collection::vec(
            ("[a-z_.]{1,6}", 0..6_usize, prop::collection::vec("\\PC{0,6}", 1..3)), 1..4,
        )) {
            let conditions = parts.into_iter().map(|(field, operator, mut values)| {
                let operator = OPERATORS[operator].1;
                if !matches!(operator, Operator::Equal | Operator::NotEqual) {
                    values.truncate(1);
                }
                Condition { field, operator, values }
            });
            let filter = Filter { conditions: conditions.collect() };
            prop_assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<Filter>();
        }
    }
}
