//! Schemas of the description as a reader wants them: kinds in words with links, limits, defaults, fields.
//!
//! Every keyword of a schema ends up in one of them: what is not known here is shown as it stands, so that nothing that the description
//! says is withheld.

use serde::Serialize;
use serde_json::Value;

/// Where schemas lie in the description.
const SCHEMAS: &str = "#/components/schemas/";

/// Keywords that something here makes words of. An example is shown by `docs.rs`, as a request.
const KNOWN: [&str; 19] = [
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "default",
    "description",
    "enum",
    "example",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "oneOf",
    "properties",
    "required",
];

/// The least and the most of something, and what is counted.
const BOUNDS: [(&str, &str, &str); 3] =
    [("minimum", "maximum", ""), ("minLength", "maxLength", "characters"), ("minItems", "maxItems", "items")];

/// A piece of a kind: words, or the name of a schema that is described elsewhere on the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Piece {
    text: String,
    link: bool,
}

/// A field of an object, a parameter, or one of several forms (which has no name).
#[derive(Debug, Serialize)]
pub struct Field {
    name: String,
    /// `path` or `query`, of a parameter.
    place: String,
    kind: Vec<Piece>,
    required: bool,
    default: Option<String>,
    limits: Vec<String>,
    description: String,
}

/// A schema with a name.
#[derive(Debug, Serialize)]
pub struct Schema {
    name: String,
    description: String,
    kind: Vec<Piece>,
    default: Option<String>,
    limits: Vec<String>,
    /// Its fields, if it is an object.
    fields: Vec<Field>,
    /// The forms that it may have, if it has several.
    forms: Vec<Field>,
    /// Whether other fields are refused.
    closed: bool,
}

#[cfg(test)]
impl Schema {
    /// Names of the fields that nothing is said about.
    pub fn undescribed(&self) -> Vec<&str> {
        self.fields.iter().filter(|field| field.description.is_empty()).map(|field| field.name.as_str()).collect()
    }
}

/// A text in the description, or none.
pub fn text(of: &Value, name: &str) -> String {
    of.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The schema that this one refers to, if it only does that.
pub fn named(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix(SCHEMAS)
}

/// All schemas of the description.
pub fn all(api: &Value) -> Vec<Schema> {
    let schemas = api.pointer("/components/schemas").and_then(Value::as_object);
    schemas.into_iter().flatten().map(|(name, schema)| describe(api, name, schema)).collect()
}

/// A schema with this name.
pub fn describe(api: &Value, name: &str, schema: &Value) -> Schema {
    let required: Vec<&str> = list(schema, "required").iter().filter_map(Value::as_str).collect();
    let properties = schema.get("properties").and_then(Value::as_object);
    let fields = properties.into_iter().flatten();
    Schema {
        name: name.to_owned(),
        description: text(schema, "description"),
        kind: kind(schema),
        default: default(api, schema),
        limits: limits(schema),
        fields: fields.map(|(name, schema)| field(api, name, required.contains(&name.as_str()), schema)).collect(),
        forms: list(schema, "oneOf").iter().map(|form| field(api, "", false, form)).collect(),
        closed: schema.get("additionalProperties") == Some(&Value::Bool(false)),
    }
}

/// A parameter of an operation.
pub fn parameter(api: &Value, parameter: &Value) -> Field {
    let required = parameter.get("required") == Some(&Value::Bool(true));
    let schema = parameter.get("schema").unwrap_or(&Value::Null);
    let field = field(api, &text(parameter, "name"), required, schema);
    Field { place: text(parameter, "in"), description: text(parameter, "description"), ..field }
}

fn field(api: &Value, name: &str, required: bool, schema: &Value) -> Field {
    // What may be null is described by its first form.
    let described = |schema: &&Value| schema.get("description").is_some();
    let description = Some(schema).filter(described).or_else(|| list(schema, "oneOf").iter().find(described));
    Field {
        name: name.to_owned(),
        place: String::new(),
        kind: kind(schema),
        required,
        default: default(api, schema),
        limits: limits(schema),
        description: description.map_or_else(String::new, |schema| text(schema, "description")),
    }
}

/// What is taken for a value that is left out: its own, or that of the schema that it refers to.
fn default(api: &Value, schema: &Value) -> Option<String> {
    let referred = named(schema).and_then(|name| api.pointer("/components/schemas")?.get(name));
    schema.get("default").or_else(|| referred?.get("default")).map(Value::to_string)
}

/// The words for what a value is.
pub fn kind(schema: &Value) -> Vec<Piece> {
    if let Some(name) = named(schema) {
        return vec![Piece { text: name.to_owned(), link: true }];
    }
    for (keyword, between) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")] {
        if schema.get(keyword).is_some() {
            return join(list(schema, keyword).iter().map(kind), between);
        }
    }
    if schema.get("enum").is_some() {
        return join(list(schema, "enum").iter().map(|value| vec![words(value.to_string())]), " or ");
    }
    match schema.get("type") {
        Some(Value::String(name)) => simple(name, schema),
        Some(Value::Array(names)) => {
            join(names.iter().filter_map(Value::as_str).map(|name| simple(name, schema)), " or ")
        }
        _ => vec![words("anything".to_owned())],
    }
}

fn simple(name: &str, schema: &Value) -> Vec<Piece> {
    match (name, schema.get("items"), schema.get("format").and_then(Value::as_str)) {
        ("array", items, _) => {
            std::iter::once(words("list of ".to_owned())).chain(kind(items.unwrap_or(&Value::Null))).collect()
        }
        // A number's width is of no use to who sends it; the form of a text is.
        ("string", _, Some(format)) => vec![words(format!("string ({format})"))],
        ("object", ..) => {
            let fields = schema.get("properties").and_then(Value::as_object);
            let fields = fields.into_iter().flatten().map(|(name, field)| {
                std::iter::once(words(format!("{name}: "))).chain(kind(field)).collect::<Vec<_>>()
            });
            let inside = join(fields, ", ");
            let lead = if inside.is_empty() { "object" } else { "object with " };
            std::iter::once(words(lead.to_owned())).chain(inside).collect()
        }
        (name, ..) => vec![words(name.to_owned())],
    }
}

fn limits(schema: &Value) -> Vec<String> {
    let bounds = BOUNDS.iter().filter_map(|(least, most, unit)| {
        let number = match (schema.get(least), schema.get(most)) {
            (Some(least), Some(most)) if least == most => least.to_string(),
            (Some(least), Some(most)) => format!("{least} to {most}"),
            (Some(least), None) => format!("at least {least}"),
            (None, Some(most)) => format!("at most {most}"),
            (None, None) => return None,
        };
        Some(format!("{number} {unit}").trim_end().to_owned())
    });
    let others = schema.as_object().into_iter().flatten();
    let others = others.filter(|(keyword, _)| *keyword != "type" && !KNOWN.contains(&keyword.as_str()));
    bounds.chain(others.map(|(keyword, value)| format!("{keyword}: {value}"))).collect()
}

fn list<'a>(schema: &'a Value, keyword: &str) -> &'a [Value] {
    schema.get(keyword).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn words(text: String) -> Piece {
    Piece { text, link: false }
}

fn join(kinds: impl Iterator<Item = Vec<Piece>>, between: &str) -> Vec<Piece> {
    let separated = kinds.enumerate().flat_map(|(i, kind)| {
        let before = (i > 0).then(|| words(between.to_owned()));
        before.into_iter().chain(kind)
    });
    separated.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: &Value) -> String {
        kind(schema).iter().map(|piece| piece.text.as_str()).collect()
    }

    #[test]
    fn a_kind_is_said_in_words() {
        for (schema, words) in [
            (json!({"type": "string"}), "string"),
            (json!({"type": ["integer", "null"], "format": "int32"}), "integer or null"),
            (json!({"type": "array", "items": {"$ref": "#/components/schemas/Hit"}}), "list of Hit"),
            (json!({"oneOf": [{"$ref": "#/components/schemas/Hit"}, {"type": "null"}]}), "Hit or null"),
            (json!({"type": "string", "enum": ["float", "base64"]}), "\"float\" or \"base64\""),
            (json!({"type": "object", "properties": {"text": {"type": "string"}}}), "object with text: string"),
            (json!({"type": "array", "items": {}}), "list of anything"),
            (json!({}), "anything"),
        ] {
            assert_eq!(said(&schema), words);
        }
    }

    #[test]
    fn limits_are_said_and_an_unknown_keyword_is_not_withheld() {
        for (schema, words) in [
            (json!({"minimum": 1, "maximum": 1000}), "1 to 1000"),
            (json!({"minimum": 1, "maximum": 1}), "1"),
            (json!({"minLength": 2}), "at least 2 characters"),
            (json!({"maxItems": 5}), "at most 5 items"),
            (json!({"type": "string", "pattern": "^a"}), "pattern: \"^a\""),
        ] {
            assert_eq!(limits(&schema), [words]);
        }
        assert_eq!(limits(&json!({"type": "string", "description": "x"})), Vec::<String>::new());
    }

    #[test]
    fn a_field_has_the_default_of_the_schema_that_it_refers_to() {
        let api = json!({"components": {"schemas": {"Form": {"type": "string", "default": "float"}}}});
        let form = json!({"$ref": "#/components/schemas/Form", "description": "How."});
        let field = field(&api, "form", false, &form);
        assert_eq!((field.default.as_deref(), field.description.as_str()), (Some("\"float\""), "How."));
    }
}
