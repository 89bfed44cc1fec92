//! A language model behind an endpoint. The endpoint of these tests runs the starter model, so that its answers can be compared
//! with those of the same model here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use nunatak::progress::Quiet;
use nunatak::read::decode::{Decoding, Finish};
use nunatak::read::lm::{FrozenLm, Prompt};
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;
use serde_json::{Value, json};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/passages.jsonl");
const DEMO_QUESTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/questions.jsonl");

/// Not int8, whose scales go by what is in one pass.
const LM: &str = "SmolLM2-135M-Instruct@fp32";

fn nunatak() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin("nunatak"))
}

/// What is sent with a body.
type Answer = dyn Fn(&str, Value) -> (u16, String) + Send + Sync;

/// Serve `POST /v1/completions` by `answer`, which gets the request's head and body; gives the address for `--lm-url`.
fn endpoint(answer: Arc<Answer>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    // It ends with the tests' process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || serve(stream, answer.as_ref()));
        }
    });
    url
}

fn serve(stream: TcpStream, answer: &Answer) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        assert!(head.starts_with("POST /v1/completions "), "{head}");
        let head = head.to_lowercase();
        let length = head.split_once("content-length: ").unwrap().1.split_once("\r\n").unwrap().0;
        let mut body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let (status, reply) = answer(&head, serde_json::from_slice(&body).unwrap());
        let length = reply.len();
        let reply =
            format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{reply}");
        if reader.get_mut().write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

/// The starter model behind an endpoint, as such servers do it: tokens as they are, text tokenised as a whole.
fn starter() -> Arc<Answer> {
    let options = RuntimeOptions::default();
    let model = setup::model(LM, &options, &Quiet).unwrap();
    let lm = Mutex::new(FrozenLm::open(&model, &options).unwrap());
    Arc::new(move |_, body| {
        let mut lm = lm.lock().unwrap();
        let tokens: Vec<u32> = match &body["prompt"] {
            Value::Array(tokens) => tokens.iter().map(|token| token.as_u64().unwrap() as u32).collect(),
            text => lm.tokenizer().encode(text.as_str().unwrap(), true).unwrap(),
        };
        let stop = body["stop"].as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect();
        let max_new_tokens = body["max_tokens"].as_u64().unwrap() as usize;
        let decoding = Decoding { max_new_tokens, stop, ..Decoding::default() };
        let prompt_tokens = tokens.len();
        let (said, _) = lm.generate(&[Prompt::of(tokens)], &decoding, None, &mut |_, _| {}).unwrap();
        let finish = if said[0].finish == Finish::Stop { "stop" } else { "length" };
        let reply = json!({
            "object": "text_completion",
            "choices": [{"index": 0, "text": said[0].text, "finish_reason": finish,
                         "logprobs": {"token_logprobs": said[0].logprobs}}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": said[0].tokens.len()},
        });
        (200, reply.to_string())
    })
}

fn index(folder: &Path) -> String {
    let index = folder.join("ice").to_str().unwrap().to_owned();
    let built =
        nunatak().args(["index", "build", "-q", "--no-dense", "--corpus", DEMO, "--index", &index]).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    index
}

fn ask(index: &str, question: &str, more: &[&str]) -> Output {
    let words = ["ask", question, "--index", index, "--rerank", "none", "--passages", "2", "--json"];
    nunatak().args(words).args(more).output().unwrap()
}

fn answer(index: &str, question: &str, more: &[&str]) -> Value {
    let output = ask(index, question, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn answers_are_those_of_the_same_model_at_hand() {
    let folder = tempfile::tempdir().unwrap();
    let (index, url) = (index(folder.path()), endpoint(starter()));
    let questions = std::fs::read_to_string(DEMO_QUESTIONS).unwrap();
    let tokenizer = setup::model(LM, &RuntimeOptions::default(), &Quiet).unwrap().file("tokenizer.json");
    let exact = ["--lm-url", &url, "--lm-tokenizer", tokenizer.to_str().unwrap()];
    for line in questions.lines().step_by(30) {
        let question: Value = serde_json::from_str(line).unwrap();
        let question = question["question"].as_str().unwrap();
        let here = answer(&index, question, &["--lm", LM, "--prompt", "none", "--template", "few-shot", "--read-all"]);
        let there = answer(&index, question, &exact);
        for part in ["answer", "evidence", "supported", "abstained"] {
            assert_eq!(here[part], there[part], "{question}: {part}");
        }
        let score = |answer: &Value| answer["score"].as_f64().unwrap();
        // The parts of a prompt are passes of their own here, and one there.
        assert!((score(&here) - score(&there)).abs() < 1e-3, "{question}: {} {}", score(&here), score(&there));
        assert_eq!(here["usage"]["prompt_tokens"], there["usage"]["prompt_tokens"]);
        assert_eq!(here["usage"]["answer_tokens"], there["usage"]["answer_tokens"]);
        assert_eq!(there["usage"]["cached_tokens"], 0);
    }
    // As text, where the server's tokens may differ at the seams of a prompt.
    let question = "Which people's language gave us the word nunatak?";
    let there = answer(&index, question, &["--lm-url", &url]);
    assert_eq!(there["answer"], answer(&index, question, &exact)["answer"]);
    // A tokenizer goes by its file, by its folder, or by the name of a model.
    let by_file = answer(&index, question, &exact);
    for tokenizer in [LM, tokenizer.parent().unwrap().to_str().unwrap()] {
        let there = answer(&index, question, &["--lm-url", &url, "--lm-tokenizer", tokenizer]);
        assert_eq!((&there["answer"], &there["score"]), (&by_file["answer"], &by_file["score"]), "{tokenizer}");
    }
    let output = ask(&index, question, &["--lm-url", &url, "--lm-tokenizer", "no-such-model"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no-such-model: there is no model of this name"), "{said}");
}

#[test]
fn what_an_endpoint_cannot_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let says = |more: &[&str], part: &str| {
        let output = ask(&index, "ice", more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(part) && said.contains("hint:"), "{said}");
    };
    let nowhere = "http://127.0.0.1:1/v1";
    says(&["--lm-url", nowhere, "--prompt", "reader"], "a learned prompt goes into a model as embeddings");
    says(&["--lm-url", nowhere, "--grounded"], "token by token");
    says(&["--lm-url", nowhere, "--template", "chat"], "chat template of a model behind an endpoint");
    says(&["--lm-url", "localhost:8000"], "no address of an endpoint");
    says(&["--lm-url", "http://user:secret@host/v1"], "no address of an endpoint");
    says(&["--lm-url", nowhere], "does not answer");
    let replies = |status: u16, reply: &'static str| endpoint(Arc::new(move |_, _| (status, reply.to_owned())));
    says(&["--lm-url", &replies(401, "no key")], "it lets nobody in like this (no key)");
    says(
        &["--lm-url", &replies(400, "{\"error\": \"too long\"}")],
        "it refuses with status 400: {\"error\": \"too long\"}",
    );
    says(&["--lm-url", &replies(404, "no such model")], "check --lm-url (it ends in /v1)");
    says(&["--lm-url", &replies(500, "out of memory")], "the server is busy or in trouble");
    says(&["--lm-url", &replies(200, "<html>")], "its reply is no completion");
    says(&["--lm-url", &replies(200, "{\"choices\": []}")], "it gave no completion");
    says(&["--lm-url", &replies(200, "{\"choices\": [{\"text\": \"x\"}]}")], "it gives no log-probabilities");
}

/// As the server of llama.cpp replies when the stop text comes first.
#[test]
fn an_empty_completion_gives_way_to_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let asked = Mutex::new(0);
    let url = endpoint(Arc::new(move |_: &str, _: Value| {
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        let choice = match *asked {
            1 => json!({"text": "", "finish_reason": "stop", "logprobs": null}),
            _ => json!({"text": " ice", "logprobs": {"token_logprobs": [-0.5]}}),
        };
        (200, json!({"choices": [choice]}).to_string())
    }));
    let answer = answer(&index, "What is the sea covered with?", &["--lm-url", &url]);
    assert_eq!((answer["answer"].as_str(), answer["score"].as_f64()), (Some("ice"), Some(-0.5)));
}

#[test]
fn a_busy_endpoint_is_asked_again_and_the_key_goes_along() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let url = endpoint(Arc::new(move |head: &str, body: Value| {
        let mut asked = heard.lock().unwrap();
        asked.push((head.contains("authorization: bearer a-key"), body));
        if asked.len() == 1 {
            return (503, "loading".into());
        }
        let content = json!([{"token": " ice", "logprob": -0.5}]);
        (200, json!({"choices": [{"text": " ice", "logprobs": {"content": content}}]}).to_string())
    }));
    let words =
        ["ask", "What is the sea covered with?", "--index", &index, "--rerank", "none", "--json", "--passages", "1"];
    let output = nunatak()
        .args(words)
        .args(["--lm-url", &url, "--lm", "big", "--temperature", "0.5", "--top-k", "3"])
        .env("NUNATAK_LM_KEY", "a-key")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((answer["answer"].as_str(), answer["score"].as_f64()), (Some("ice"), Some(-0.5)));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    let (with_key, body) = &asked[1];
    assert!(*with_key);
    assert_eq!((&body["model"], &body["top_k"], &body["stop"]), (&json!("big"), &json!(3), &json!(["\n"])));
    assert_eq!(body["top_p"], Value::Null, "1 is not said");
    let prompt = body["prompt"].as_str().unwrap();
    assert!(prompt.ends_with("Question: What is the sea covered with?\nAnswer:"), "{prompt}");
}
