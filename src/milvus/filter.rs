//! A filter in the words of Milvus: its boolean expressions over a JSON field.

use crate::filter::{Condition, Filter, Operator};

/// The expression that holds of the passages that meet a filter, over the JSON field `fields`, whose names may have dots.
///
/// As at home, what a value that looks like a number is compared with is up to the passage, and a list meets `=` by any of
/// its values. One thing cannot be said in Milvus: an order (`<`, `>=`) looks at values by themselves only, not at lists.
pub(super) fn expression(filter: &Filter, fields: &str) -> String {
    let all: Vec<String> = filter.conditions.iter().map(|condition| of(condition, fields)).collect();
    all.join(" and ")
}

fn of(condition: &Condition, fields: &str) -> String {
    let field = format!("{fields}[{}]", quoted(&condition.field));
    let literals = condition.values.iter().flat_map(|value| literals(value));
    let equal = |literal: String| format!("{field} == {literal} or json_contains({field}, {literal})");
    match condition.operator {
        Operator::Equal => format!("({})", literals.map(equal).collect::<Vec<_>>().join(" or ")),
        // Whatever a server makes of a comparison with what is not there: it is not equal.
        Operator::NotEqual => {
            format!("(not exists {field} or not ({}))", literals.map(equal).collect::<Vec<_>>().join(" or "))
        }
        order => {
            let orders: Vec<String> = literals.map(|literal| format!("{field} {} {literal}", order.symbol())).collect();
            format!("({})", orders.join(" or "))
        }
    }
}

/// What a value may be in a passage: text, and the number or truth it looks like.
fn literals(value: &str) -> Vec<String> {
    let mut literals = vec![quoted(value)];
    let number = value.parse::<f64>().ok().filter(|number| number.is_finite());
    if let Ok(whole) = value.parse::<i64>() {
        // Written anew: a number that begins with 0 is octal to Milvus.
        literals.push(whole.to_string());
    } else if let Some(number) = number.filter(|_| value.ends_with(|c: char| c.is_ascii_digit())) {
        literals.push(format!("{number:?}"));
    } else if ["true", "false"].contains(&value) {
        literals.push(value.to_owned());
    }
    literals
}

/// The expression that a field is one of these texts.
pub(super) fn among<'a>(field: &str, texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<String> = texts.into_iter().map(quoted).collect();
    format!("{field} in [{}]", texts.join(", "))
}

/// A string literal.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(filter: &str) -> String {
        expression(&filter.parse().unwrap(), "m")
    }

    #[test]
    fn conditions_become_expressions() {
        assert_eq!(said("a=x"), r#"(m["a"] == "x" or json_contains(m["a"], "x"))"#);
        assert_eq!(said("a.b>=1990"), r#"(m["a.b"] >= "1990" or m["a.b"] >= 1990)"#);
        assert_eq!(
            said("a!=true b<x"),
            r#"(not exists m["a"] or not (m["a"] == "true" or json_contains(m["a"], "true") or m["a"] == true or json_contains(m["a"], true))) and (m["b"] < "x")"#
        );
        assert_eq!(said("a=inf"), r#"(m["a"] == "inf" or json_contains(m["a"], "inf"))"#);
        assert_eq!(said("zip<02139"), r#"(m["zip"] < "02139" or m["zip"] < 2139)"#);
        assert_eq!(said("a<1.50"), r#"(m["a"] < "1.50" or m["a"] < 1.5)"#);
        assert_eq!(
            said("a<12345678901234567890"),
            r#"(m["a"] < "12345678901234567890" or m["a"] < 1.2345678901234567e19)"#
        );
    }

    #[test]
    fn nobody_gets_out_of_a_literal() {
        assert_eq!(quoted("a\" or 1 == 1 \\"), r#""a\" or 1 == 1 \\""#);
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
    }
}
