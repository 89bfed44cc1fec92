//! The page at `/docs`: the description of the API for people, without scripts and without outside requests.
//!
//! It is made of the same description that `/openapi.json` gives, and says nothing besides but where this server is and whether it asks
//! for a key.

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::header::HOST;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use minijinja::value::{Serde, Value as Jinja};
use minijinja::{AutoEscape, Environment, HtmlEscape, context};
use serde::Serialize;
use serde_json::Value;

use crate::serve::docs_schema::{self, Field, Piece, Schema, kind, text};
use crate::serve::problem::Problem;
use crate::serve::{Server, openapi, page};

const TEMPLATE: &str = include_str!("docs.html.j2");

/// The description, which does not change while a program runs.
static DESCRIPTION: LazyLock<Value> = LazyLock::new(openapi);

/// A method of a path.
#[derive(Debug, Serialize)]
struct Operation {
    method: String,
    path: String,
    summary: String,
    description: String,
    parameters: Vec<Field>,
    body: Option<Schema>,
    replies: Vec<Reply>,
    curl: String,
}

/// What may come back.
#[derive(Debug, Serialize)]
struct Reply {
    status: String,
    description: String,
    /// Media types, and what is in them.
    forms: Vec<(String, Vec<Piece>)>,
}

/// How the reader of the page reaches this server.
struct Reach {
    /// Scheme and host.
    origin: String,
    /// Whether a key is asked for.
    keyed: bool,
}

/// `GET /docs`.
pub async fn docs(State(server): State<Server>, headers: HeaderMap) -> Response {
    let scheme = if server.secure { "https" } else { "http" };
    let reach = Reach { origin: format!("{scheme}://{}", host(&headers)), keyed: !server.keys.is_empty() };
    match render(&DESCRIPTION, &reach) {
        Ok(text) => (page::headers(&page::policy(&text)), text).into_response(),
        Err(error) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the page cannot be made: {error}"), None)
                .into_response()
        }
    }
}

/// The host that was asked, for commands that a reader pastes into a shell: nothing that means something there.
fn host(headers: &HeaderMap) -> &str {
    let plain = |host: &&str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    headers.get(HOST).and_then(|host| host.to_str().ok()).filter(plain).unwrap_or("localhost")
}

fn render(api: &Value, reach: &Reach) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("prose", prose);
    let info = api.get("info").unwrap_or(&Value::Null);
    let schemes = api.pointer("/components/securitySchemes").and_then(Value::as_object);
    let keys: Vec<String> = schemes.into_iter().flatten().map(|(_, scheme)| text(scheme, "description")).collect();
    let context = context! {
        title => text(info, "title"),
        version => text(info, "version"),
        description => text(info, "description"),
        keys => keys,
        keyed => reach.keyed,
        operations => Jinja::from(Serde(operations(api, reach))),
        schemas => Jinja::from(Serde(docs_schema::all(api))),
    };
    environment.render_named_str("docs.html", TEMPLATE, context)
}

/// Text of the description as markup: what stands between backticks is code.
fn prose(text: &str) -> Jinja {
    let part = |(i, part): (usize, &str)| match i % 2 {
        0 => HtmlEscape(part).to_string(),
        _ => format!("<code>{}</code>", HtmlEscape(part)),
    };
    Jinja::from_safe_string(text.split('`').enumerate().map(part).collect())
}

fn operations(api: &Value, reach: &Reach) -> Vec<Operation> {
    let paths = api.get("paths").and_then(Value::as_object);
    let methods = paths.into_iter().flatten().filter_map(|(path, item)| Some((path, item.as_object()?)));
    methods
        .flat_map(|(path, item)| item.iter().map(move |(method, operation)| (path, method, operation)))
        .map(|(path, method, operation)| of(api, reach, path, &method.to_uppercase(), operation))
        .collect()
}

fn of(api: &Value, reach: &Reach, path: &str, method: &str, operation: &Value) -> Operation {
    let parameters = operation.get("parameters").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let body =
        operation.pointer("/requestBody/content").and_then(Value::as_object).and_then(|forms| forms.iter().next());
    let body = body.and_then(|(media, form)| Some((media, form.get("schema")?)));
    let described = body.map(|(media, schema)| {
        let name = docs_schema::named(schema).unwrap_or_default();
        let schema = api.pointer("/components/schemas").and_then(|all| all.get(name)).unwrap_or(schema);
        (media, schema, docs_schema::describe(api, name, schema))
    });
    let curl =
        curl(reach, path, method, parameters, described.as_ref().map(|(media, schema, _)| (media.as_str(), *schema)));
    Operation {
        method: method.to_owned(),
        path: path.to_owned(),
        summary: text(operation, "summary"),
        description: text(operation, "description"),
        parameters: parameters.iter().map(|parameter| docs_schema::parameter(api, parameter)).collect(),
        body: described.map(|(.., schema)| schema),
        replies: replies(operation),
        curl,
    }
}

fn replies(operation: &Value) -> Vec<Reply> {
    let replies = operation.get("responses").and_then(Value::as_object).into_iter().flatten();
    let reply = |(status, reply): (&String, &Value)| {
        let forms = reply.get("content").and_then(Value::as_object).into_iter().flatten();
        let form = |(media, form): (&String, &Value)| (media.clone(), form.get("schema").map(kind).unwrap_or_default());
        Reply { status: status.clone(), description: text(reply, "description"), forms: forms.map(form).collect() }
    };
    replies.map(reply).collect()
}

/// A request that can be sent as it stands: by the examples of the parameters and of the body.
fn curl(reach: &Reach, path: &str, method: &str, parameters: &[Value], body: Option<(&str, &Value)>) -> String {
    let fill = |path: String, parameter: &Value| {
        let name = text(parameter, "name");
        let example = parameter.get("example").and_then(Value::as_str).unwrap_or(&name);
        path.replace(&format!("{{{name}}}"), example)
    };
    let address = parameters.iter().fold(path.to_owned(), fill);
    let mut parts = vec![format!("curl -s {}", quoted(&format!("{}{address}", reach.origin)))];
    // With a body it is a POST anyway.
    if method != "GET" && (method != "POST" || body.is_none()) {
        parts.push(format!("-X {method}"));
    }
    if reach.keyed {
        parts.push("-H \"Authorization: Bearer $KEY\"".to_owned());
    }
    if let Some((media, schema)) = body {
        parts.push(format!("-H {}", quoted(&format!("content-type: {media}"))));
        let example = schema.get("example").unwrap_or(&Value::Null);
        parts.push(format!("-d {}", quoted(&example.to_string())));
    }
    parts.join(" \\\n  ")
}

/// A word of a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use html5gum::{Token, Tokenizer};
    use serde_json::json;

    use super::*;
    use crate::serve::api::{AnswerRequest, SearchRequest};
    use crate::serve::openai::{ChatRequest, EmbeddingsRequest, RerankRequest};
    use crate::serve::passages::PutRequest;

    fn reach() -> Reach {
        Reach { origin: "http://localhost:7001".to_owned(), keyed: false }
    }

    /// Values of an attribute, in the order of the page.
    fn attributes(page: &str, wanted: &str) -> Vec<String> {
        let tags = Tokenizer::new(page).flatten().filter_map(|token| match token {
            Token::StartTag(tag) => Some(tag.attributes),
            _ => None,
        });
        let named = tags.flatten().filter(|(name, _)| name.as_slice() == wanted.as_bytes());
        named.map(|(_, value)| String::from_utf8_lossy(&value).into_owned()).collect()
    }

    #[test]
    fn every_path_and_every_schema_is_on_the_page_and_every_link_leads_there() {
        let page = render(&DESCRIPTION, &reach()).unwrap();
        let ids = attributes(&page, "id");
        for (path, item) in DESCRIPTION["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                assert!(ids.contains(&format!("{}-{path}", method.to_uppercase())), "{method} {path}");
                assert!(page.contains(&format!("<code>{}</code>", HtmlEscape(path))), "{path}");
            }
        }
        let schemas = DESCRIPTION["components"]["schemas"].as_object().unwrap();
        assert!(schemas.len() > 30);
        for name in schemas.keys() {
            assert!(ids.contains(&format!("schema-{name}")), "{name}");
        }
        let unique: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
        for link in attributes(&page, "href") {
            let inside = link.strip_prefix('#').map(|id| ids.contains(&id.to_owned()));
            assert!(inside.unwrap_or(["/", "/openapi.json", "data:,"].contains(&link.as_str())), "{link}");
        }
        assert!(attributes(&page, "src").is_empty() && !page.contains("url(") && !page.contains("@import"));
        assert!(!page.contains("<script") && !page.contains(" style="));
        assert!(page.contains("Authorization: Bearer KEY"));
    }

    #[test]
    fn the_description_says_what_everything_is() {
        for (path, item) in DESCRIPTION["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let summary = text(operation, "summary");
                assert!(summary.len() > 10 && !summary.starts_with('`'), "{method} {path}: {summary:?}");
                for (status, reply) in operation["responses"].as_object().unwrap() {
                    assert!(!text(reply, "description").is_empty(), "{method} {path}: {status}");
                }
            }
        }
        for (name, schema) in DESCRIPTION["components"]["schemas"].as_object().unwrap() {
            assert!(!text(schema, "description").is_empty(), "{name}");
            let schema = docs_schema::describe(&DESCRIPTION, name, schema);
            assert_eq!(schema.undescribed(), [""; 0], "{name} has fields without a description");
        }
    }

    #[test]
    fn the_examples_are_requests() {
        let example = |name: &str| DESCRIPTION["components"]["schemas"][name]["example"].clone();
        serde_json::from_value::<AnswerRequest>(example("AnswerRequest")).unwrap();
        serde_json::from_value::<SearchRequest>(example("SearchRequest")).unwrap();
        serde_json::from_value::<PutRequest>(example("PutRequest")).unwrap();
        serde_json::from_value::<ChatRequest>(example("ChatRequest")).unwrap();
        serde_json::from_value::<EmbeddingsRequest>(example("EmbeddingsRequest")).unwrap();
        serde_json::from_value::<RerankRequest>(example("RerankRequest")).unwrap();
        for operation in operations(&DESCRIPTION, &reach()) {
            assert!(!operation.curl.contains('{') || operation.body.is_some(), "{}", operation.curl);
            assert!(!operation.curl.contains("-d 'null'"), "{}", operation.curl);
        }
    }

    #[test]
    fn a_default_of_the_description_is_the_default_of_the_request() {
        let request: SearchRequest = serde_json::from_value(json!({"question": "x"})).unwrap();
        let put: PutRequest = serde_json::from_value(json!({"passages": []})).unwrap();
        let said =
            |schema: &str, field: &str| &DESCRIPTION["components"]["schemas"][schema]["properties"][field]["default"];
        assert_eq!(
            (said("SearchRequest", "k"), said("SearchRequest", "explain")),
            (&json!(request.k), &json!(request.explain))
        );
        assert_eq!(said("PutRequest", "replace"), &json!(put.replace));
    }

    #[test]
    fn text_of_the_description_is_never_markup() {
        let evil = "<img src=x onerror=alert(1)> & `<b>'";
        let api = json!({
            "info": {"title": evil, "version": evil, "description": evil},
            "paths": {evil: {"post": {"summary": evil, "description": evil,
                "parameters": [{"name": evil, "in": evil, "description": evil, "schema": {"type": evil}}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/X"}}}},
                "responses": {evil: {"description": evil, "content": {evil: {"schema": {"type": evil}}}}}}}},
            "components": {
                "schemas": {"X": {"description": evil, "example": evil, "properties": {evil: {"description": evil, "default": evil, "pattern": evil}}}},
                "securitySchemes": {evil: {"description": evil}},
            },
        });
        let page = render(&api, &reach()).unwrap();
        let names: Vec<String> = Tokenizer::new(page.as_str())
            .flatten()
            .filter_map(|token| match token {
                Token::StartTag(tag) => Some(String::from_utf8_lossy(&tag.name).into_owned()),
                _ => None,
            })
            .collect();
        assert!(!names.iter().any(|name| name == "img" || name == "b"), "{names:?}");
        assert!(page.matches("&lt;img src=x").count() > 12);
    }

    #[test]
    fn a_command_is_one_command_whatever_is_in_it() {
        let keyed = Reach { origin: "https://ice:7001".to_owned(), keyed: true };
        let schema = json!({"example": {"question": "who's there"}});
        assert_eq!(
            curl(&keyed, "/v1/answer", "POST", &[], Some(("application/json", &schema))),
            "curl -s 'https://ice:7001/v1/answer' \\\n  -H \"Authorization: Bearer $KEY\" \\\n  -H 'content-type: application/json' \\\n  \
             -d '{\"question\":\"who'\\''s there\"}'"
        );
        let parameters = [json!({"name": "id", "in": "path", "example": "fram"})];
        assert_eq!(
            curl(&reach(), "/v1/passages/{id}", "DELETE", &parameters, None),
            "curl -s 'http://localhost:7001/v1/passages/fram' \\\n  -X DELETE"
        );
        let host_of = |value: &str| {
            let headers: HeaderMap = [(HOST, value.parse().unwrap())].into_iter().collect();
            host(&headers).to_owned()
        };
        assert_eq!((host_of("[::1]:7001").as_str(), host_of("a;rm -rf ~").as_str()), ("[::1]:7001", "localhost"));
    }
}
