//! Metadata of passages in columns: what a filter is applied to.
//!
//! The JSON object of a passage's further fields is a fast field of tantivy, which keeps a column for every path and type in
//! it. A condition is one pass over the columns of its field; a whole filter is milliseconds a hundred thousand passages,
//! whatever is searched with it afterwards.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Value};
use tantivy::SegmentReader;
use tantivy::columnar::{Column, DynamicColumn, StrColumn};
use tantivy::schema::{JsonObjectOptions, OwnedValue, SchemaBuilder};

use crate::filter::{Condition, Filter, Operator};
use crate::index::allowed::Allowed;
use crate::types::Passage;

/// Name of the field.
pub(super) const META: &str = "meta";
/// The field that every passage has: the file it was read from.
pub(crate) const SOURCE_FILE: &str = "source_file";

/// Add the field to a schema.
pub(super) fn add_field(schema: &mut SchemaBuilder) {
    // Fast and no more: no postings, no copy. "raw" keeps texts whole.
    schema.add_json_field(META, JsonObjectOptions::default().set_fast("raw").set_expand_dots_enabled());
}

/// A passage's fields as tantivy takes them.
pub(super) fn object(passage: &Passage) -> BTreeMap<String, OwnedValue> {
    let mut object: BTreeMap<String, OwnedValue> =
        passage.metadata.iter().map(|(name, value)| (name.clone(), owned(value))).collect();
    object.entry(SOURCE_FILE.to_owned()).or_insert_with(|| OwnedValue::Str(passage.source.file.clone()));
    object
}

/// Not tantivy's own conversion, which makes dates of texts that look like one: they are compared as what was written.
fn owned(value: &Value) -> OwnedValue {
    match value {
        Value::Null => OwnedValue::Null,
        Value::Bool(truth) => OwnedValue::Bool(*truth),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => OwnedValue::I64(number),
            (_, Some(number)) => OwnedValue::U64(number),
            _ => OwnedValue::F64(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => OwnedValue::Str(text.clone()),
        Value::Array(values) => OwnedValue::Array(values.iter().map(owned).collect()),
        Value::Object(fields) => fields_of(fields),
    }
}

fn fields_of(fields: &Map<String, Value>) -> OwnedValue {
    OwnedValue::Object(fields.iter().map(|(name, value)| (name.clone(), owned(value))).collect())
}

/// Names of all fields that a passage of the segment has, with dots on the way into others.
pub(super) fn fields(segment: &SegmentReader) -> tantivy::Result<Vec<String>> {
    let usage = segment.space_usage()?;
    let prefix = format!("{META}.");
    Ok(usage
        .fast_fields()
        .fields()
        .filter_map(|field| field.field_name().strip_prefix(&prefix).map(str::to_owned))
        .collect())
}

/// Whether a passage of the segment has this field.
pub(super) fn has(segment: &SegmentReader, field: &str) -> tantivy::Result<bool> {
    Ok(!segment.fast_fields().dynamic_column_handles(&column_name(field))?.is_empty())
}

/// The passages of the segment that meet the filter.
pub(super) fn allowed(segment: &SegmentReader, filter: &Filter) -> tantivy::Result<Allowed> {
    let mut allowed = Allowed::of(segment.max_doc() as usize, |_| true);
    for condition in &filter.conditions {
        allowed = allowed.and(&meeting(segment, condition)?);
    }
    Ok(allowed)
}

fn column_name(field: &str) -> String {
    format!("{META}.{field}")
}

fn meeting(segment: &SegmentReader, condition: &Condition) -> tantivy::Result<Allowed> {
    let mut tests = Vec::new();
    for handle in segment.fast_fields().dynamic_column_handles(&column_name(&condition.field))? {
        tests.extend(test(handle.open()?, condition)?);
    }
    let negated = condition.operator == Operator::NotEqual;
    let meets = |document: u32| tests.iter().any(|test| test(document)) != negated;
    Ok(Allowed::of(segment.max_doc() as usize, |passage| meets(passage.0)))
}

type Test = Box<dyn Fn(u32) -> bool>;

/// Whether a document has a value in this column that the condition's operator (for `!=`: `=`) accepts. `None` when no value
/// of the column's type can.
fn test(column: DynamicColumn, condition: &Condition) -> std::io::Result<Option<Test>> {
    let (operator, values) = (condition.operator, &condition.values);
    Ok(match column {
        DynamicColumn::Str(column) => Some(text(column, operator, values)?),
        DynamicColumn::I64(column) => number(column, operator, values, |x| Number::Whole(x.into())),
        DynamicColumn::U64(column) => number(column, operator, values, |x| Number::Whole(x.into())),
        DynamicColumn::F64(column) => number(column, operator, values, Number::Real),
        DynamicColumn::Bool(column) => {
            let wanted: Vec<bool> = values.iter().filter_map(|value| value.parse().ok()).collect();
            (!wanted.is_empty()).then(|| any(column, move |x| wanted.iter().any(|w| accepts(operator, x.cmp(w)))))
        }
        // Nothing that JSON has comes into these.
        DynamicColumn::DateTime(_) | DynamicColumn::IpAddr(_) | DynamicColumn::Bytes(_) => None,
    })
}

fn any<T: Copy + PartialOrd + std::fmt::Debug + Send + Sync + 'static>(
    column: Column<T>,
    accepted: impl Fn(T) -> bool + 'static,
) -> Test {
    Box::new(move |document| column.values_for_doc(document).any(&accepted))
}

fn accepts(operator: Operator, order: Ordering) -> bool {
    match operator {
        Operator::Equal | Operator::NotEqual => order == Ordering::Equal,
        Operator::Less => order == Ordering::Less,
        Operator::AtMost => order != Ordering::Greater,
        Operator::Greater => order == Ordering::Greater,
        Operator::AtLeast => order != Ordering::Less,
    }
}

/// A number of JSON. Whole ones are compared as such (an id of 17 digits is no float), unless a passage of the segment has a
/// fraction in the field, or a negative number beside one above i64: tantivy then keeps the whole column as floats.
#[derive(Debug, Clone, Copy)]
enum Number {
    Whole(i128),
    Real(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        text.parse().map(Self::Whole).or_else(|_| text.parse().map(Self::Real)).ok()
    }

    fn order(self, other: Self) -> Option<Ordering> {
        let real = |number| match number {
            Self::Whole(number) => number as f64,
            Self::Real(number) => number,
        };
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(&b)),
            (a, b) => real(a).partial_cmp(&real(b)),
        }
    }
}

fn number<T: Copy + PartialOrd + std::fmt::Debug + Send + Sync + 'static>(
    column: Column<T>,
    operator: Operator,
    values: &[String],
    of: fn(T) -> Number,
) -> Option<Test> {
    let wanted: Vec<Number> = values.iter().filter_map(|value| Number::parse(value)).collect();
    let meets = move |x: T| wanted.iter().any(|&w| of(x).order(w).is_some_and(|order| accepts(operator, order)));
    values.iter().any(|value| Number::parse(value).is_some()).then(|| any(column, meets))
}

/// Texts are compared by their places in the column's sorted dictionary.
fn text(column: StrColumn, operator: Operator, values: &[String]) -> std::io::Result<Test> {
    let (terms, ords) = column.into_parts();
    let count = terms.num_terms() as u64;
    // The first place whose text is not below the value, by bisection: at most count.
    let place = |value: &str| -> std::io::Result<(u64, bool)> {
        let (mut low, mut high, mut term) = (0, count, Vec::new());
        while low < high {
            let middle = low.midpoint(high);
            terms.ord_to_term(middle, &mut term)?;
            if term.as_slice() < value.as_bytes() { low = middle + 1 } else { high = middle }
        }
        Ok((low, low < count && terms.ord_to_term(low, &mut term)? && term == value.as_bytes()))
    };
    let range = |value: &String| -> std::io::Result<Range<u64>> {
        let (at, is_there) = place(value)?;
        let behind = at + u64::from(is_there);
        Ok(match operator {
            Operator::Equal | Operator::NotEqual => at..behind,
            Operator::Less => 0..at,
            Operator::AtMost => 0..behind,
            Operator::Greater => behind..count,
            Operator::AtLeast => at..count,
        })
    };
    let ranges = values.iter().map(range).collect::<std::io::Result<Vec<Range<u64>>>>()?;
    Ok(any(ords, move |ord| ranges.iter().any(|range| range.contains(&ord))))
}
