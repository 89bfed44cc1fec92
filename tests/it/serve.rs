//! `nunatak serve` as its clients meet it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Once, mpsc};
use std::time::{Duration, Instant};

use nunatak::read::soft_prompt::{FORMAT, PromptDescription, PromptKind, PromptTarget, SoftPrompt};
use nunatak::read::template::TemplateKind;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};

/// A disk may be nearly full where tests run.
const WRITABLE: [&str; 3] = ["--writable", "--min-free-disk", "0"];
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/passages.jsonl");
const QUESTION: &str = "Which people's language gave us the word nunatak?";

/// How to have a server at work on an answer for a while.
const SLOW: [&str; 5] = ["--read-all", "--passages", "20", "--rerank", "none"];

/// The program, without a key that whoever runs the tests may have.
fn nunatak() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("nunatak"));
    command.env_remove("NUNATAK_API_KEY");
    command
}

/// Set this machine up, once: a server that fetches its models first is not ready in the time that it is given here.
fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let setup = nunatak().args(["setup", "-q"]).output().unwrap();
        assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    });
}

fn index(folder: &Path, corpus: &Path) -> PathBuf {
    build(folder, corpus, &["--no-dense", "--overwrite"])
}

/// An index of a corpus, by these options.
pub(crate) fn build(folder: &Path, corpus: &Path, more: &[&str]) -> PathBuf {
    let path = folder.join("ice");
    let mut build = nunatak();
    build.args(["index", "build", "-q"]).args(more).arg("--index").arg(&path).arg("--corpus").arg(corpus);
    assert!(build.output().unwrap().status.success());
    path
}

/// A server that is stopped when it is no longer of use.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

/// What came back.
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: String,
    body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

impl Server {
    fn start(indexes: &[&Path], more: &[&str]) -> Self {
        Self::start_by(nunatak(), indexes, more)
    }

    /// The same, by a command that has something in its environment.
    fn start_by(mut command: Command, indexes: &[&Path], more: &[&str]) -> Self {
        set_up();
        command.args(["serve", "--listen", "127.0.0.1:0", "--json"]).args(more);
        for index in indexes {
            command.arg("--index").arg(index);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("it said {line:?}"));
        Self { child, address: said["listening"].as_str().unwrap().to_owned() }
    }

    /// The same, when it answers.
    pub(crate) fn ready(indexes: &[&Path], more: &[&str]) -> Self {
        let server = Self::start(indexes, more);
        server.wait("/ready", |reply| reply.status == 200);
        server
    }

    pub(crate) fn wait(&self, path: &str, enough: impl Fn(&Reply) -> bool) {
        let began = Instant::now();
        while !enough(&self.get(path)) {
            assert!(began.elapsed() < Duration::from_secs(60), "{path} never came to what was waited for");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n",
            self.address
        );
        // A server that refuses a body need not read it.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8(reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no reply to {method} {path}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked { unchunk(body) } else { body.to_owned() };
        Reply { status, headers: head.to_lowercase(), body }
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, "", "")
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> Reply {
        self.send("POST", path, "content-type: application/json\r\n", &body.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A body that came in chunks.
fn unchunk(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        whole.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
        if size == 0 {
            break;
        }
    }
    whole
}

#[test]
fn it_answers_as_the_command_line_does_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let server = Server::ready(&[&index], &[]);
    assert_eq!(server.get("/live").json(), json!({"live": true}));
    let entry = &server.get("/v1/indexes").json()["indexes"][0];
    assert_eq!(
        (&entry["name"], &entry["ready"], &entry["facts"]["passages"]),
        (&"ice".into(), &true.into(), &263.into())
    );

    let asked = nunatak().args(["ask", QUESTION, "--json", "--index"]).arg(&index).output().unwrap().stdout;
    let asked: Value = serde_json::from_slice(&asked).unwrap();
    let answer = server.post("/v1/answer", json!({"question": QUESTION})).json();
    for field in ["question", "answer", "confidence", "abstained", "score", "supported", "evidence"] {
        assert_eq!(answer[field], asked[field], "{field}");
    }
    assert!(answer.get("trace").is_none());
    let explained = server.post("/v1/answer", json!({"question": QUESTION, "explain": true})).json();
    assert!(!explained["trace"]["windows"].as_array().unwrap().is_empty());
    assert!(explained["trace"].get("second").is_none());
    let twice = json!({"question": QUESTION, "explain": true, "recursion": "textual"});
    let twice = server.post("/v1/answer", twice).json();
    assert_eq!(twice["trace"]["second"]["candidates"][0]["answer"], twice["answer"]);
    let unsure = server.post("/v1/answer", json!({"question": QUESTION, "min_confidence": 1.0})).json();
    assert_eq!((&unsure["abstained"], &unsure["answer"]), (&true.into(), &"".into()));

    let searched = nunatak().args(["search", QUESTION, "--json", "-k", "3", "--index"]).arg(&index).output().unwrap();
    let searched: Vec<Value> =
        String::from_utf8(searched.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(
        server.post("/v1/search", json!({"question": QUESTION, "k": 3.0})).json()["hits"],
        Value::from(searched)
    );

    let wrong = |reply: Reply, status: u16, code: &str, message: &str| {
        let body = reply.json();
        assert_eq!((reply.status, &body["error"]["code"]), (status, &code.into()), "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(message), "{body}");
    };
    let ask = |body: Value| server.post("/v1/answer", body);
    wrong(server.send("POST", "/v1/answer", "", "{\"question\""), 400, "bad_request", "EOF");
    wrong(ask(json!({"question": QUESTION, "temprature": 1})), 400, "bad_request", "temprature");
    wrong(ask(json!({"question": "  "})), 422, "bad_request", "empty");
    wrong(ask(json!({"question": QUESTION, "min_confidence": 2})), 422, "bad_request", "probability");
    wrong(ask(json!({"question": QUESTION, "recursion": "neural"})), 422, "bad_request", "connector");
    wrong(ask(json!({"question": QUESTION, "index": "fire"})), 404, "not_found", "\"fire\"");
    wrong(ask(json!({"question": "why ".repeat(2000)})), 413, "too_long", "8000 characters");
    wrong(ask(json!({"question": "why ".repeat(1 << 20)})), 413, "too_long", "");
    wrong(server.post("/v1/search", json!({"question": QUESTION, "k": 0})), 422, "bad_request", "k is between");
    wrong(
        server.post("/v1/search", json!({"question": QUESTION, "k": 2.5})),
        400,
        "bad_request",
        "2.5 is not a whole number",
    );
    wrong(server.get("/v1/answer"), 405, "not_found", "another method");
    wrong(server.get("/nowhere"), 404, "not_found", "nothing here");

    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("nunatak_requests_total{route=\"/v1/search\",status=\"200\"} 1\n"), "{metrics}");
    // What a letter that stands nowhere finds, and an address that is not understood: in the form that is described.
    let nothing = server.post("/v1/answer", json!({"question": "\u{f2}"})).json();
    assert!(nothing["abstained"] == true && nothing["score"].is_number(), "{nothing}");
    for address in ["/v1/passages/x?bogus=1", "/v1/passages/%ff"] {
        let reply = server.get(address);
        assert_eq!(
            (reply.status, reply.json()["error"]["code"].as_str()),
            (400, Some("bad_request")),
            "{}",
            reply.body
        );
    }
    let outside = server.post("/v1/answer", json!({"question": "x", "min_confidence": -1e-60}));
    assert_eq!(outside.status, 422, "{}", outside.body);
    let described = server.get("/openapi.json").json();
    let paths: Vec<&String> = described["paths"].as_object().unwrap().keys().collect();
    let routes = [
        "answer",
        "chat/completions",
        "embeddings",
        "indexes",
        "models",
        "models/{model}",
        "passages",
        "passages/{id}",
        "rerank",
        "search",
    ];
    assert_eq!(paths, routes.map(|route| format!("/v1/{route}")).iter().collect::<Vec<_>>());
    for (path, methods) in described["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
            assert!(schema["$ref"].is_string(), "{method} {path} says what a good reply is: {schema}");
        }
    }
    let problem = json!({"$ref": "#/components/schemas/Problem"});
    assert_eq!(
        described["paths"]["/v1/answer"]["post"]["responses"]["429"]["content"]["application/json"]["schema"],
        problem
    );
    assert_eq!(
        described["paths"]["/v1/passages"]["post"]["responses"]["409"]["content"]["application/json"]["schema"],
        problem
    );
    assert!(described["components"]["schemas"]["Problem"].is_object());
    let page = server.get("/");
    assert!(page.headers.contains("content-security-policy: default-src 'none'"));
    for outside in ["http://", "https://", "src=", "url(", "@import"] {
        assert!(!page.body.contains(outside), "{outside}");
    }
    let docs = server.get("/docs");
    assert_eq!(docs.status, 200);
    assert!(
        docs.headers.contains("content-security-policy: default-src 'none'") && !docs.headers.contains("script-src")
    );
    assert!(docs.headers.contains("content-type: text/html") && docs.body.contains("This server asks for no key."));
    // Its commands go to where this server is.
    assert!(docs.body.contains(&format!("http:&#x2f;&#x2f;{}&#x2f;v1&#x2f;answer", server.address)), "{}", docs.body);
}

#[test]
fn a_stream_ends_with_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let server = Server::ready(&[&index], &[]);
    let answer = server.post("/v1/answer", json!({"question": QUESTION})).json();
    let reply = server.post("/v1/answer", json!({"question": QUESTION, "stream": true}));
    assert!(reply.headers.contains("content-type: text/event-stream"));
    let events: Vec<(&str, Value)> = reply
        .body
        .split("\n\n")
        .filter_map(|event| event.split_once('\n'))
        .map(|(name, data)| (&name[7..], serde_json::from_str(&data[6..]).unwrap()))
        .collect();
    let (first, rest) = events.split_first().unwrap();
    assert_eq!(first.0, "found");
    assert!(first.1["retrieved"].as_u64().unwrap() > 0 && first.1["best"][0]["passage_id"].is_string(), "{}", first.1);
    let (last, texts) = rest.split_last().unwrap();
    assert_eq!((last.0, &last.1["answer"]), ("answer", &answer["answer"]));
    assert!(!texts.is_empty() && texts.iter().all(|(name, data)| *name == "text" && data["text"].is_string()));
    let reply = server.post("/v1/answer", json!({"question": QUESTION, "stream": true, "min_confidence": 0.5}));
    assert_eq!(reply.status, 422);
}

#[test]
fn a_request_that_names_no_confidence_has_that_of_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let server = Server::ready(&[&index], &["--min-confidence", "1"]);
    let ask = |more: Value| {
        let mut body = json!({"question": QUESTION});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/answer", body)
    };
    assert_eq!(ask(json!({})).json()["abstained"], true);
    assert_eq!(ask(json!({"min_confidence": 0})).json()["abstained"], false);
    assert_eq!(ask(json!({"stream": true})).status, 422);
    assert_eq!(ask(json!({"stream": true, "min_confidence": 0})).status, 200);
}

/// The prompt that comes with the program, as a file of somebody's own.
const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/prompts/reader.safetensors");

#[test]
fn a_request_chooses_among_named_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let same = format!("same={READER}");
    let also = ["--also-prompt", "tasks", "--also-prompt", &same, "--also-prompt", "none"];
    let server = Server::ready(&[&index], &also);
    let prompts = server.get("/v1/indexes").json()["indexes"][0]["facts"]["prompts"].clone();
    let names: Vec<&str> = prompts.as_array().unwrap().iter().map(|prompt| prompt["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["reader", "tasks", "same", "none"]);
    assert_eq!(server.get("/health").json()["indexes"][0]["facts"]["prompts"], prompts);
    assert!(prompts[0]["sha256"] == prompts[2]["sha256"] && prompts[0]["sha256"] != prompts[1]["sha256"]);
    assert!(prompts[1]["sha256"].is_string() && prompts[3].get("sha256").is_none(), "{prompts}");

    let ask = |prompt: Value| server.post("/v1/answer", json!({"question": QUESTION, "prompt": prompt})).json();
    // The question is asked behind one prompt after another, and again: nothing of the one before is left.
    for (name, prompt) in ["reader", "tasks", "none", "same", "reader", "tasks"].into_iter().zip([0, 1, 3, 2, 0, 1]) {
        let typed = if name == "same" { "reader" } else { name };
        let alone = nunatak().args(["ask", QUESTION, "--json", "--prompt", typed, "--index"]).arg(&index).output();
        let alone: Value = serde_json::from_slice(&alone.unwrap().stdout).unwrap();
        let answer = ask(name.into());
        for field in ["answer", "confidence", "uncalibrated", "abstained", "score", "supported", "evidence"] {
            assert_eq!(answer[field], alone[field], "{name}: {field}");
        }
        assert_eq!(answer["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"], "{name}");
        assert_eq!(answer["prompt"], prompts[prompt], "{name}");
    }
    assert_eq!(ask(Value::Null)["prompt"]["name"], "reader");
    // States of passages are kept behind what stands before them, whatever that is called; behind a prompt that is written for the
    // question there is nothing to keep.
    assert!(ask("same".into())["usage"]["cached_tokens"].as_u64().unwrap() > 0);
    assert_eq!(ask("tasks".into())["usage"]["cached_tokens"], 0);

    let chat = |prompt: &str| {
        let messages = json!([{"role": "user", "content": QUESTION}]);
        server.post("/v1/chat/completions", json!({"model": "ice", "messages": messages, "prompt": prompt}))
    };
    let said = chat("tasks").json();
    assert_eq!(
        (&said["nunatak"]["prompt"], &said["nunatak"]["uncalibrated"]),
        (&prompts[1], &ask("tasks".into())["uncalibrated"])
    );
    let twice = server.post("/v1/answer", json!({"question": QUESTION, "prompt": "none", "recursion": "textual"}));
    assert_eq!((twice.status, &twice.json()["prompt"]["name"]), (200, &"none".into()));
    let unknown = [chat("law"), server.post("/v1/answer", json!({"question": QUESTION, "prompt": "law"}))];
    for reply in unknown {
        let message = "no prompt here is called \"law\": there are reader, tasks, same, none";
        assert_eq!((reply.status, &reply.json()["error"]["message"]), (422, &message.into()), "{}", reply.body);
    }
    let schemas = server.get("/openapi.json").json()["components"]["schemas"].clone();
    for schema in ["AnswerRequest", "ChatRequest", "Answer", "Grounds"] {
        assert!(schemas[schema]["properties"]["prompt"].is_object(), "{schema}");
    }
}

#[test]
fn a_confidence_behind_a_prompt_it_was_not_fitted_with_is_said_to_be_a_guess() {
    let folder = tempfile::tempdir().unwrap();
    let index = dense_index(folder.path());
    let server = Server::ready(&[&index], &["--also-prompt", "tasks"]);
    let ask = |more: Value| {
        let mut body = json!({"question": "Who built the Fram?"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/answer", body).json()["uncalibrated"].clone()
    };
    // With the models that the calibration was fitted with; another machine may have others.
    if ask(json!({})).is_null() {
        assert_eq!(ask(json!({"prompt": "tasks"})), "the calibration was fitted with another prompt");
        assert_eq!(ask(json!({"recursion": "textual"})), "the calibration was fitted with another --recursion");
    }
}

#[test]
fn prompts_that_cannot_be_served_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let refused = |words: &[&str]| {
        let words = [&["serve", "--listen", "127.0.0.1:0"], words].concat();
        let output = nunatak().args(words).arg("--index").arg(&index).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["--also-prompt", "law"]).contains("there is no prompt law"));
    // As it is written today, with a hash of its numbers.
    let target = PromptTarget { name: "tiny".into(), layers: 1, kv_width: 2, hidden: 2 };
    let (format, kind, positions) = (FORMAT, PromptKind::Embeddings, 1);
    let (template, abstains, training) = (TemplateKind::Plain, false, Value::Null);
    let description = PromptDescription { format, kind, positions, target, template, abstains, sha256: None, training };
    let foreign = folder.path().join("foreign.safetensors");
    SoftPrompt::new(description, &[0.0, 0.0]).unwrap().save(&foreign).unwrap();
    let broken = folder.path().join("broken.safetensors");
    let mut bytes = fs::read(&foreign).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&broken, bytes).unwrap();
    let said = refused(&["--also-prompt", &format!("law={}", broken.display())]);
    assert!(said.contains("broken.safetensors: it is damaged"), "{said}");
    let said = refused(&["--also-prompt", "a=tasks", "--also-prompt", "a=none"]);
    assert!(said.contains("two prompts are called a"), "{said}");

    // Whether a prompt is another model's is known when the model is.
    let problem = |prompt: &str| {
        let server = Server::start(&[&index], &["--also-prompt", prompt]);
        server.wait("/v1/indexes", |reply| reply.json()["indexes"][0]["problem"].is_string());
        assert_eq!(server.get("/ready").status, 503);
        server.get("/v1/indexes").json()["indexes"][0]["problem"].as_str().unwrap().to_owned()
    };
    let said = problem(&format!("law={}", foreign.display()));
    assert!(
        said.contains("the prompt law was learned for tiny, and the language model is SmolLM2-135M-Instruct"),
        "{said}"
    );
    // The default is known then, too.
    assert!(problem("reader=tasks").contains("two prompts are called reader"));
}

#[test]
fn a_filter_goes_by_the_fields_of_passages() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("c.jsonl");
    fs::write(
        &corpus,
        "{\"id\":\"a\",\"text\":\"Old ice.\",\"year\":1892}\n{\"id\":\"b\",\"text\":\"New ice.\",\"year\":2001}\n",
    )
    .unwrap();
    let index = index(folder.path(), &corpus);
    let server = Server::ready(&[&index], &[]);
    let search = |filter: &str| server.post("/v1/search", json!({"question": "ice", "filter": filter}));
    let hits = search("year<1900").json()["hits"].clone();
    assert_eq!((hits.as_array().unwrap().len(), &hits[0]["passage_id"]), (1, &"a".into()));
    assert_eq!(hits[0]["metadata"], json!({"year": 1892}));
    assert_eq!(search("yaer<1900").status, 422);
    assert!(search("year").json()["error"]["hint"].as_str().unwrap().contains("year>=1990"));
    let answer = server.post("/v1/answer", json!({"question": "which ice", "filter": "year>1900", "explain": true}));
    let windows = answer.json()["trace"]["windows"].clone();
    assert_eq!((windows.as_array().unwrap().len(), &windows[0][0]["key"]), (1, &"b".into()));
    // A filter is its request's alone.
    let all = server.post("/v1/search", json!({"question": "ice"})).json();
    assert_eq!(all["hits"].as_array().unwrap().len(), 2);
}

/// A corpus of three lines, with vectors.
fn dense_index(folder: &Path) -> PathBuf {
    let texts =
        ["The Fram was built by Colin Archer.", "A moulin is a shaft in a glacier.", "Penguins live in the south."];
    dense_index_of(folder, &texts)
}

/// The same of these texts.
fn dense_index_of(folder: &Path, texts: &[&str]) -> PathBuf {
    let corpus = folder.join("c.jsonl");
    let line = |(i, text): (usize, &&str)| json!({"id": format!("p{i}"), "text": text}).to_string();
    let lines: Vec<String> = texts.iter().enumerate().map(line).collect();
    fs::write(&corpus, lines.join("\n")).unwrap();
    build(folder, &corpus, &[])
}

#[test]
fn tools_for_openai_find_what_they_know() {
    let folder = tempfile::tempdir().unwrap();
    let index = dense_index(folder.path());
    let server = Server::ready(&[&index], &[]);
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "ice");

    let question = "Who built the Fram?";
    let own = server.post("/v1/answer", json!({"question": question})).json();
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a moulin?"},
        {"role": "assistant", "content": "A shaft."},
        {"role": "user", "content": [{"type": "text", "text": question}]},
    ]);
    let chat = |more: Value| {
        let mut body = json!({"model": "ice", "messages": messages, "temperature": 0.7});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/chat/completions", body)
    };
    let whole = chat(json!({})).json();
    let message = &whole["choices"][0]["message"];
    assert_eq!((&whole["object"], &message["content"]), (&"chat.completion".into(), &own["answer"]));
    let cited = message["annotations"][0]["url_citation"]["url"].as_str().unwrap();
    let evidence = &own["evidence"][0];
    assert_eq!(cited, format!("passage:p0#bytes={}-{}", evidence["start"], evidence["end"]));
    assert_eq!(whole["nunatak"]["confidence"], own["confidence"]);
    assert_eq!(whole["nunatak"]["truncated"], own["usage"]["truncated"]);
    // Of a short question and short passages nothing is cut, and nothing is said of it.
    assert!(server.post("/v1/search", json!({"question": question})).json().get("cuts").is_none());
    assert_eq!(whole["usage"]["completion_tokens"], own["usage"]["answer_tokens"]);

    let stream = chat(json!({"stream": true}));
    assert!(stream.headers.contains("content-type: text/event-stream"));
    let chunks: Vec<&str> = stream.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(chunks.last(), Some(&"[DONE]"));
    let chunks: Vec<Value> =
        chunks[..chunks.len() - 1].iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let said: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(own["answer"], said);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert_eq!(chat(json!({"n": 2})).status, 422);
    assert_eq!(chat(json!({"model": "other"})).status, 404);
    assert_eq!(chat(json!({"messages": [{"role": "system", "content": "x"}]})).status, 422);

    let embed = |more: Value| {
        let mut body = json!({"model": "ice", "input": ["a moulin", "who built the Fram"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/embeddings", body)
    };
    let vectors = embed(json!({})).json();
    let vector: Vec<f64> = serde_json::from_value(vectors["data"][1]["embedding"].clone()).unwrap();
    assert_eq!((vector.len(), &vectors["truncated"]), (384, &0.into()));
    assert!((vector.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-4);
    assert!(vectors["usage"]["total_tokens"].as_u64().unwrap() >= 8);
    let packed = embed(json!({"encoding_format": "base64"})).json();
    assert_eq!(packed["data"][1]["embedding"].as_str().unwrap().len(), 384 * 4 / 3 * 4);
    let long = embed(json!({"input": "ice ".repeat(3000)})).json();
    assert_eq!((long["data"].as_array().unwrap().len(), &long["truncated"]), (1, &1.into()));
    assert_eq!(embed(json!({"input": []})).status, 422);
    assert_eq!(embed(json!({"input": ["x", " "]})).status, 422);

    let documents = json!(["Penguins live in the south.", {"text": "The Fram was built by Colin Archer."}]);
    let ask = json!({"query": question, "documents": documents, "top_n": 1, "return_documents": true});
    let ranked = server.post("/v1/rerank", ask).json();
    let best = &ranked["results"][0];
    assert_eq!((&best["index"], ranked["results"].as_array().unwrap().len()), (&1.into(), 1));
    assert_eq!(best["document"]["text"], "The Fram was built by Colin Archer.");
    assert!((0.0..=1.0).contains(&best["relevance_score"].as_f64().unwrap()));
}

#[test]
fn what_is_cut_of_a_long_question_is_said() {
    let folder = tempfile::tempdir().unwrap();
    // 600 different words, in fewer characters than a question may have, and all of them in the index.
    let words: Vec<String> = (100..700).map(|i| format!("w{i}")).collect();
    let texts: Vec<String> = words.chunks(200).map(|part| part.join(" ")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let index = dense_index_of(folder.path(), &texts);
    let server = Server::ready(&[&index], &["--mode", "hybrid"]);
    let question = words.join(" ");
    let found = server.post("/v1/search", json!({"question": question})).json();
    let cuts = &found["cuts"];
    // Of the words, 256 are searched for.
    assert_eq!(cuts["question_words"], 600 - 256, "{cuts}");
    assert!(cuts["encoder_question_tokens"].as_u64().unwrap() > 0, "{cuts}");
    let ranked = server.post("/v1/rerank", json!({"query": question, "documents": ["ice"]})).json();
    assert!(ranked["question_tokens"].as_u64().unwrap() > 0, "{ranked}");
    let ranked = server.post("/v1/rerank", json!({"query": "w100", "documents": ["ice"]})).json();
    assert_eq!(ranked["question_tokens"], 0);
}

/// The client itself, from its package, in a folder of the tests' own.
#[test]
fn the_openai_client_works_as_its_users_write_it() {
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-3.57.0");
    if !packages.is_dir() {
        let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input", "--target"];
        let pip = Command::new("python3").args(install).arg(scratch.path()).arg("openai==3.57.0").output().unwrap();
        assert!(pip.status.success(), "{}", String::from_utf8_lossy(&pip.stderr));
        // Another process of tests may have been faster.
        let _ = fs::rename(scratch.path(), &packages);
        assert!(packages.is_dir());
    }
    let folder = tempfile::tempdir().unwrap();
    let index = dense_index(folder.path());
    let server = Server::ready(&[&index], &[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/openai_client.py");
    let url = format!("http://{}/v1", server.address);
    let mut client = Command::new("python3");
    client.env("PYTHONPATH", &packages).env_remove("HTTP_PROXY").env_remove("http_proxy").env_remove("ALL_PROXY");
    let said = client.args([script, &url, "ice"]).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "ok");
}

#[test]
fn what_is_not_there_cannot_be_asked() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let server = Server::ready(&[&index], &["--rerank", "none"]);
    let wrong = |path: &str, body: Value, part: &str| {
        let reply = server.post(path, body);
        assert_eq!(reply.status, 422, "{}", reply.body);
        assert!(reply.body.contains(part), "{}", reply.body);
    };
    wrong("/v1/embeddings", json!({"model": "ice", "input": "x"}), "there is no encoder");
    wrong("/v1/rerank", json!({"query": "x", "documents": ["y"]}), "there is no re-ranker");
}

#[test]
fn only_who_has_a_key_may_ask() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let keys = folder.path().join("keys.txt");
    fs::write(&keys, "# mine\na-key-of-mine-0123\n").unwrap();
    let server = Server::ready(&[&index], &["--keys", keys.to_str().unwrap()]);
    let body = json!({"question": QUESTION, "k": 1}).to_string();
    let ask = |header: &str| server.send("POST", "/v1/search", header, &body).status;
    assert_eq!(ask(""), 401);
    let refused = server.get("/v1/models");
    assert!(refused.headers.contains("www-authenticate: bearer"), "{}", refused.headers);
    assert_eq!(ask("authorization: Bearer a-key-of-mine-0124\r\n"), 401);
    assert_eq!(ask("authorization: Bearer a-key-of-mine-0123\r\n"), 200);
    assert_eq!((server.get("/metrics").status, server.get("/live").status, server.get("/").status), (401, 200, 200));

    let refused = |more: &[&str], message: &str| {
        let output = nunatak().args(["serve", "--index"]).arg(&index).args(more).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(message), "{said}");
    };
    refused(&["--listen", "0.0.0.0:0"], "can be reached by others, and no key is asked for");
    fs::write(&keys, "short\n").unwrap();
    refused(&["--keys", keys.to_str().unwrap()], "keys.txt: line 1: a key has at least 16 characters");
    fs::write(&keys, "\n").unwrap();
    refused(&["--keys", keys.to_str().unwrap()], "there is no key in it");
    refused(&["--listen", &server.address], "cannot be listened on");
    refused(&["--index", "nowhere"], "there is no index here");
    refused(&["--index", &format!("ice={}", index.display())], "two indexes are called ice");
}

#[test]
fn a_key_may_come_by_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let mut command = nunatak();
    command.env("NUNATAK_API_KEY", "a-key-of-mine-0123");
    let server = Server::start_by(command, &[&index], &["--rerank", "none"]);
    server.wait("/ready", |reply| reply.status == 200);
    let body = json!({"question": QUESTION, "k": 1}).to_string();
    let ask = |header: &str| server.send("POST", "/v1/search", header, &body).status;
    assert_eq!((ask(""), ask("authorization: Bearer a-key-of-mine-0123\r\n")), (401, 200));
}

#[test]
fn health_names_the_models_at_work_and_their_devices() {
    let folder = tempfile::tempdir().unwrap();
    let index = dense_index(folder.path());
    let server = Server::ready(&[&index], &[]);
    let health = server.get("/health").json();
    let models = health["indexes"][0]["facts"]["models"].as_array().unwrap();
    let roles: Vec<&str> = models.iter().map(|model| model["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["encoder", "reranker", "reader"]);
    for model in models {
        let said = |part: &str| model[part].as_str().is_some_and(|words| !words.is_empty());
        assert!(said("name") && said("device"), "{health}");
    }
}

#[test]
fn more_than_the_queue_holds_are_turned_away_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let server = Server::ready(&[&index], &["--queue", "1"]);
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..12).map(|_| scope.spawn(|| server.post("/v1/answer", json!({"question": QUESTION})))).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (answered, refused): (Vec<&Reply>, Vec<&Reply>) = replies.iter().partition(|reply| reply.status == 200);
    assert!(!answered.is_empty() && !refused.is_empty(), "{} of 12 answered", answered.len());
    for reply in refused {
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (429, &"busy".into()));
        assert!(reply.headers.contains("\r\nretry-after: 1"), "{}", reply.headers);
    }
    server.wait("/metrics", |reply| reply.body.contains("nunatak_waiting{index=\"ice\"} 0\n"));
}

#[test]
fn an_index_that_is_replaced_is_taken_up_without_a_pause() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("corpus.jsonl");
    let passage = |id: &str, text: &str| json!({"id": id, "text": text}).to_string() + "\n";
    fs::write(&corpus, passage("old", "A serac is a tower of ice.")).unwrap();
    let index_path = index(folder.path(), &corpus);
    let server = Server::ready(&[&index_path], &[]);
    let found = || server.post("/v1/search", json!({"question": "what is a serac"}));
    assert_eq!(found().json()["hits"][0]["passage_id"], "old");
    fs::write(&corpus, passage("new", "A serac is a tower of glacier ice.")).unwrap();
    index(folder.path(), &corpus);
    // Who asks meanwhile is answered, from the old one or the new.
    server.wait("/v1/indexes", |_| {
        let reply = found();
        assert_eq!(reply.status, 200);
        reply.json()["hits"][0]["passage_id"] == "new"
    });
}

#[test]
fn passages_come_and_go_while_it_answers() {
    let folder = tempfile::tempdir().unwrap();
    let index = dense_index(folder.path());
    let server = Server::ready(&[&index], &WRITABLE);
    let found =
        |question: &str| server.post("/v1/search", json!({"question": question, "k": 1})).json()["hits"][0].clone();
    let explained = server.post("/v1/search", json!({"question": "snow", "k": 1, "explain": true})).json();
    assert!(explained["beam"]["ef"].as_u64().unwrap() > 0 && explained["hits"][0]["parts"]["cosine"].is_number());
    let change = |reply: Reply| {
        let body = reply.json();
        assert_eq!(reply.status, 200, "{body}");
        (body["added"].as_u64().unwrap(), body["removed"].as_u64().unwrap(), body["passages"].as_u64().unwrap())
    };
    let put = |passages: Value| server.post("/v1/passages", json!({"passages": passages}));
    let text = "A bergschrund is a crevasse at the head of a glacier.";
    let new =
        json!([{"id": "a/b c", "title": "Bergschrund", "text": text, "year": 1843}, {"id": "p9", "text": "Snow."}]);
    assert_eq!(change(put(new.clone())), (2, 0, 5));
    let hit = found("what is a bergschrund");
    assert_eq!((&hit["passage_id"], &hit["metadata"]), (&"a/b c".into(), &json!({"year": 1843})));
    let stored = server.get("/v1/passages/a/b%20c").json();
    assert_eq!(stored["passages"][0]["text"], text);
    // A second time it replaces, unless told not to.
    assert_eq!(change(put(new.clone())), (2, 2, 5));
    let refused = server.post("/v1/passages", json!({"passages": new, "replace": false}));
    assert_eq!(
        (refused.status, refused.body.contains("has a document") && !refused.body.contains("--")),
        (409, true),
        "{}",
        refused.body
    );
    assert_eq!(change(server.send("DELETE", "/v1/passages/a/b%20c", "", "")), (0, 1, 4));
    assert_ne!(found("what is a bergschrund")["passage_id"], "a/b c");
    for (reply, status, part) in [
        (server.send("DELETE", "/v1/passages/a/b%20c", "", ""), 404, "no document or passage"),
        (server.get("/v1/passages/nobody"), 404, "nobody"),
        (server.get("/v1/passages/p0?index=fire"), 404, "fire"),
        (put(json!([])), 422, "no passages"),
        (put(json!([{"id": "x"}])), 422, "passages:1: there is no text"),
        (put(json!([{"id": "x", "text": "y"}, {"id": "x", "text": "z"}])), 422, "\\\"x\\\""),
        (put(json!(["x"])), 400, "invalid type"),
    ] {
        assert_eq!(reply.status, status, "{}", reply.body);
        assert!(reply.body.contains(part), "{}", reply.body);
    }
    assert_eq!(server.get("/v1/indexes").json()["indexes"][0]["facts"]["passages"], 4);
    // What the server did is on the disk, whole.
    let verified = nunatak().args(["index", "verify", "--index"]).arg(&index).output().unwrap();
    assert!(verified.status.success());
}

#[test]
fn several_workers_answer_at_once_and_all_see_what_was_changed() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let alone = Server::ready(&[&index], &[]);
    let answer = |server: &Server| {
        let reply = server.post("/v1/answer", json!({"question": QUESTION}));
        assert_eq!(reply.status, 200);
        let mut answer = reply.json();
        answer.as_object_mut().unwrap().remove("usage");
        answer
    };
    let expected = answer(&alone);
    drop(alone);
    let server = Server::ready(&[&index], &[&WRITABLE[..], &["--workers", "2"]].concat());
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..6).map(|_| scope.spawn(|| answer(&server))).collect();
        for one in all {
            assert_eq!(one.join().unwrap(), expected, "whoever answers, and whatever is answered beside it");
        }
    });
    for n in 0..4 {
        let id = format!("new{n}");
        let new = json!({"passages": [{"id": id, "title": "Zyzzyva", "text": format!("The zyzzyva{n} is a weevil.")}]});
        assert_eq!(server.post("/v1/passages", new).status, 200);
        // Both workers are asked, and neither has had time to look at the disk.
        std::thread::scope(|scope| {
            let search = || server.post("/v1/search", json!({"question": format!("zyzzyva{n}"), "k": 1}));
            let all: Vec<_> = (0..4).map(|_| scope.spawn(search)).collect();
            for one in all {
                assert_eq!(one.join().unwrap().json()["hits"][0]["passage_id"], id.as_str());
            }
        });
    }
}

#[test]
fn only_a_writable_server_and_a_key_for_it_change_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let keys = folder.path().join("keys.txt");
    fs::write(&keys, "a-key-of-mine-0123\na-key-for-others read-only\n").unwrap();
    let body = json!({"passages": [{"id": "x", "text": "Ice."}]}).to_string();
    let put = |server: &Server, key: &str| {
        let reply = server.send("POST", "/v1/passages", &format!("authorization: Bearer {key}\r\n"), &body);
        (reply.status, reply.body)
    };
    let server = Server::ready(&[&index], &[&WRITABLE[..], &["--keys", keys.to_str().unwrap()]].concat());
    let (status, said) = put(&server, "a-key-for-others");
    assert!(status == 403 && said.contains("may read only"), "{said}");
    assert_eq!(put(&server, "a-key-of-mine-0124").0, 401);
    assert_eq!(put(&server, "a-key-of-mine-0123").0, 200);
    drop(server);
    let server = Server::ready(&[&index], &[]);
    let (status, said) = put(&server, "");
    assert!(status == 403 && said.contains("--writable"), "{said}");
}

#[test]
fn below_its_floor_of_free_disk_a_server_deletes_and_adds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    // No disk is free as a whole.
    let server = Server::ready(&[&index], &["--writable", "--min-free-disk", "100"]);
    let refused = server.post("/v1/passages", json!({"passages": [{"id": "x", "text": "Ice."}]}));
    assert_eq!(refused.status, 507, "{}", refused.body);
    let error = &refused.json()["error"];
    assert_eq!(error["code"], "no_room");
    assert!(error["hint"].as_str().unwrap().contains("the server's disk"), "{error}");
    let id = server.post("/v1/search", json!({"question": QUESTION, "k": 1})).json()["hits"][0]["passage_id"].clone();
    assert_eq!(server.send("DELETE", &format!("/v1/passages/{}", id.as_str().unwrap()), "", "").status, 200);
}

#[cfg(unix)]
#[test]
fn it_stops_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let mut server = Server::ready(&[&index], &[]);
    tell_to_stop(&server);
    assert!(server.child.wait().unwrap().success());
    assert!(TcpStream::connect(&server.address).is_err());
}

#[cfg(unix)]
fn tell_to_stop(server: &Server) {
    // The shell has a kill of its own; not every machine has the program.
    let kill = format!("kill {}", server.child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn who_waits_when_it_is_told_to_stop_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let mut server = Server::ready(&[&index], &SLOW);
    let reply = std::thread::scope(|scope| {
        let asked = scope.spawn(|| server.post("/v1/answer", json!({"question": QUESTION})));
        server.wait("/metrics", |reply| reply.body.contains("nunatak_waiting{index=\"ice\"} 1\n"));
        tell_to_stop(&server);
        asked.join().unwrap()
    });
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn what_was_asked_by_a_client_that_left_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let server = Server::ready(&[&index], &SLOW);
    let waiting = |n: u64| server.wait("/v1/indexes", |reply| reply.json()["indexes"][0]["waiting"] == n);
    let body = json!({"question": QUESTION}).to_string();
    let length = body.len();
    let request = format!("POST /v1/answer HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}");
    let mut client = TcpStream::connect(&server.address).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    waiting(1);
    drop(client);
    waiting(0);
    assert_eq!(server.post("/v1/answer", json!({"question": QUESTION})).status, 200);
}

#[test]
fn who_waits_too_long_is_told_so_and_holds_nobody_up() {
    /// More answers than a second is enough for, and fewer than may wait.
    const ASKED: usize = 48;
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let server = Server::ready(&[&index], &[&SLOW[..], &["--deadline", "1"]].concat());
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..ASKED).map(|_| scope.spawn(|| server.post("/v1/answer", json!({"question": QUESTION})))).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let late: Vec<&Reply> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert!(!late.is_empty());
    for reply in late {
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (504, &"late".into()), "{}", reply.body);
    }
    server.wait("/metrics", |reply| reply.body.contains("nunatak_waiting{index=\"ice\"} 0\n"));
    let waits = format!("nunatak_stage_seconds_count{{stage=\"wait\"}} {ASKED}\n");
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains(&waits), "{metrics}");
    // A machine with much else to do may be late with one.
    let search = || server.post("/v1/search", json!({"question": QUESTION})).status;
    assert!((0..60).any(|_| search() == 200));
}

#[test]
fn options_that_cannot_be_end_it_before_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let refused = |words: &[&str], key: &str| {
        let mut command = nunatak();
        command.args(["serve", "--listen", "127.0.0.1:0", "--index"]).arg(&index).args(words);
        let output = command.env("NUNATAK_API_KEY", key).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["--min-confidence", "2"], "").contains("--min-confidence is a probability"));
    assert!(refused(&["--dense-weight", "3"], "").contains("--dense-weight must be between 0 and 1"));
    assert!(refused(&[], "#a-comment-that-was-to-be-a-key").contains("there is no key in it"));
}

#[test]
fn a_config_file_an_origin_and_an_id_of_the_request() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let config = folder.path().join("serve.toml");
    let text =
        format!("index = [{:?}]\nrerank = \"none\"\ncors = [\"https://example.org\"]\nqueue = 3\n", index.display());
    fs::write(&config, text).unwrap();
    let server = Server::ready(&[], &["--config", config.to_str().unwrap()]);
    let preflight = |origin: &str| {
        let headers = format!("origin: {origin}\r\naccess-control-request-method: POST\r\n");
        server.send("OPTIONS", "/v1/answer", &headers, "").headers
    };
    assert!(preflight("https://example.org").contains("access-control-allow-origin: https://example.org"));
    assert!(!preflight("https://example.com").contains("access-control-allow-origin"));
    // What a browser sends without asking beforehand.
    let simple = |origin: &str| {
        let headers = format!("origin: {origin}\r\ncontent-type: text/plain\r\n");
        server.send("POST", "/v1/search", &headers, &json!({"question": QUESTION}).to_string()).status
    };
    let own = format!("http://{}", server.address);
    assert_eq!([own.as_str(), "https://example.org", "https://example.com"].map(simple), [200, 200, 403]);
    let id = |header: &str| {
        let headers = server.send("GET", "/live", header, "").headers;
        headers.split("\r\n").find_map(|line| line.strip_prefix("x-request-id: ")).unwrap().to_owned()
    };
    assert_eq!(id("x-request-id: abc-1\r\n"), "abc-1");
    assert_eq!(id("").len(), 16);
    assert_eq!(id(&format!("x-request-id: {}\r\n", "a".repeat(500))).len(), 16);

    fs::write(folder.path().join("q.jsonl"), json!({"question": QUESTION}).to_string()).unwrap();
    let url = format!("http://{}", server.address);
    let chart = folder.path().join("waits.svg");
    let words =
        ["bench", "serve", "--json", "--seconds", "0.4", "--route", "search", "--connections", "1,3", "--url", &url];
    let bench =
        nunatak().args(words).arg("--questions").arg(folder.path().join("q.jsonl")).arg("--out").arg(&chart).output();
    let said = String::from_utf8(bench.unwrap().stdout).unwrap();
    let reports: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), 2, "{said}");
    for (report, clients) in reports.iter().zip([1, 3]) {
        assert_eq!((&report["shape"]["clients"], &report["broken"]), (&clients.into(), &0.into()), "{said}");
        assert!(report["statuses"]["200"].as_u64().unwrap() > 0 && report["answered_ms"]["p99"].is_f64(), "{said}");
    }
    assert!(fs::read_to_string(chart).unwrap().starts_with("<svg"));
    let open = nunatak()
        .args(["bench", "serve", "--seconds", "0.3", "--route", "search", "--rate", "20", "--url", &url])
        .arg("--questions")
        .arg(folder.path().join("q.jsonl"))
        .output()
        .unwrap();
    assert!(String::from_utf8(open.stdout).unwrap().contains("20/s"));
}

/// A collector of OpenTelemetry that keeps the spans it gets.
fn collector() -> (String, mpsc::Receiver<Vec<Span>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, spans) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut length, mut line) = (0, String::new());
            while stream.read_line(&mut line).unwrap() > 2 {
                let header = line.to_lowercase();
                if let Some(value) = header.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.get_mut().write_all(reply).unwrap();
            let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
            let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            if sender.send(scopes.flat_map(|scope| scope.spans).collect()).is_err() {
                return;
            }
        }
    });
    (address, spans)
}

#[test]
fn a_collector_gets_a_trace_of_every_request_and_not_what_was_asked() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let (address, batches) = collector();
    let server = Server::ready(&[&index], &["--otlp", &address]);
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let named = format!("traceparent: 00-{trace}-{parent}-01\r\n");
    let body = json!({"question": QUESTION}).to_string();
    assert_eq!(server.send("POST", "/v1/answer", &named, &body).status, 200);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut ours: Vec<Span> = Vec::new();
    while !ours.iter().any(|span| span.name == "POST /v1/answer") || ours.len() < 6 {
        let batch = batches.recv_timeout(Duration::from_secs(60)).expect("spans are sent within seconds");
        ours.extend(batch.into_iter().filter(|span| hex(&span.trace_id) == trace));
    }
    let named = |name: &str| ours.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name} in {ours:?}"));
    let request = named("POST /v1/answer");
    assert_eq!(hex(&request.parent_span_id), parent);
    let status = request.attributes.iter().find(|attribute| attribute.key == "http.response.status_code").unwrap();
    assert_eq!(status.value.as_ref().unwrap().value, Some(any_value::Value::IntValue(200)));
    let mut before = named("wait").end_time_unix_nano;
    for stage in ["retrieve", "rerank", "pack", "read"] {
        let span = named(stage);
        assert_eq!(span.parent_span_id, request.span_id, "{stage}");
        assert!(before <= span.start_time_unix_nano && span.start_time_unix_nano <= span.end_time_unix_nano);
        before = span.end_time_unix_nano;
    }
    assert!(!format!("{ours:?}").contains("language gave us"));
    let refused = nunatak().args(["serve", "--otlp", "localhost", "--index"]).arg(&index).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("--otlp localhost: it is no address"), "{said}");
}

#[test]
fn with_a_certificate_it_speaks_tls_alone() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path(), Path::new(DEMO));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = ["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let server = Server::start(&[&index], &tls);
    // Python is here for the packages anyway, and its TLS is not ours.
    let script = "import ssl, sys, urllib.request\n\
                  context = ssl.create_default_context(cafile=sys.argv[2])\n\
                  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))\n\
                  print(opener.open(sys.argv[1], timeout=20).read().decode())";
    let url = format!("https://localhost:{}/live", server.address.rsplit_once(':').unwrap().1);
    let said = Command::new("python3").args(["-c", script, &url]).arg(&certificate).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&said.stdout).trim(),
        "{\"live\":true}",
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    // Plain HTTP is cut off.
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let _ = stream.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    assert!(!reply.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&reply));
    let refused = |certificate: &Path, key: &Path, part: &str| {
        let output = nunatak()
            .args(["serve", "--index"])
            .arg(&index)
            .args(["--listen", "127.0.0.1:0", "--tls-cert"])
            .arg(certificate)
            .arg("--tls-key")
            .arg(key)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(part), "{said}");
    };
    refused(&key, &key, "key.pem: there is no certificate in it");
    refused(&certificate, &certificate, "cert.pem: there is no private key in it");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&key, other.signing_key.serialize_pem()).unwrap();
    refused(&certificate, &key, "it does not go with the certificate");
    refused(&folder.path().join("none.pem"), &key, "none.pem");
}
