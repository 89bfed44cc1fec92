//! The same on the command line and over HTTP: built by several processes, asked, served and changed.

use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::serve::Server;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/passages.jsonl");
const QUESTION: &str = "Which people's language gave us the word nunatak?";

fn nunatak() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin("nunatak"))
}

fn run(words: &[&str]) -> String {
    let output = nunatak().args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json_of(words: &[&str]) -> Value {
    serde_json::from_str(run(&[words, &["--json"]].concat()).trim()).unwrap()
}

/// An answer without what it cost.
fn answer(index: &str, question: &str) -> Value {
    let mut answer = json_of(&["ask", question, "--index", index]);
    answer.as_object_mut().unwrap().remove("usage");
    answer
}

#[test]
fn a_cluster_answers_as_a_folder_does() {
    let lite = Lite::start();
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let (home, cluster) = (home.to_str().unwrap(), lite.place("ice"));
    run(&["index", "build", "-q", "--corpus", DEMO, "--index", home]);
    let said = run(&["index", "build", "-q", "--corpus", DEMO, "--index", &cluster]);
    assert!(said.contains("next: nunatak ask"), "{said}");
    for question in
        [QUESTION, "How thick is the ice sheet of Antarctica at most?", "Who was the first at the South Pole?"]
    {
        let (mut here, mut there) = (answer(home, question), answer(&cluster, question));
        // Scores of the first stage differ behind the point: BM25 there does not round lengths.
        for answer in [&mut here, &mut there] {
            let confidence = answer.as_object_mut().unwrap().remove("confidence").unwrap().as_f64().unwrap();
            assert!((0.0..=1.0).contains(&confidence));
            let score = answer["score"].as_f64().unwrap();
            answer["score"] = json!((score * 1e3).round() / 1e3);
        }
        assert_eq!(here, there);
    }
    // What is built at home can move, vectors and all.
    let moved = lite.place("moved");
    let said = json_of(&["index", "merge", home, "--index", &moved]);
    assert_eq!(said["build"]["total"], json_of(&["index", "info", "--index", home])["manifest"]["passages"]);
    let best = |index: &str| json_lines(&["search", QUESTION, "--mode", "dense", "--index", index, "-k", "5"]);
    let keys = |hits: Vec<Value>| hits.into_iter().map(|hit| hit["passage_id"].clone()).collect::<Vec<_>>();
    assert_eq!(keys(best(&moved)), keys(best(home)));
    let info = json_of(&["index", "info", "--index", &cluster]);
    assert_eq!(info["passages"], json_of(&["index", "info", "--index", home])["manifest"]["passages"]);
    assert_eq!(info["encoder"]["name"], "all-MiniLM-L6-v2");
    let refused = nunatak().args(["index", "verify", "--index", &cluster]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("this works on an index in a folder"), "{said}");
    for (words, part) in [
        (["search", "ice", "--exact", "--index"], "leave --exact out"),
        (["search", "ice", "--recall=0.9", "--index"], "leave --recall and --ef out"),
        (["search", "ice", "--bm25-k1=1", "--index"], "leave both out"),
    ] {
        let refused = nunatak().args(words).arg(&cluster).output().unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains(part), "{said}");
    }
}

#[test]
fn shards_are_filled_by_many_and_one_of_them_may_die() {
    let lite = Lite::start();
    let (folder, place) = (tempfile::tempdir().unwrap(), lite.place("shards"));
    let corpus = folder.path().join("corpus.jsonl");
    let all = passages(3000);
    let lines: String =
        all.iter().map(|p| format!("{}\n", json!({"id": p.key, "title": p.title, "text": p.text.repeat(3)}))).collect();
    fs::write(&corpus, lines).unwrap();
    let shard = |n: usize| {
        let mut command = nunatak();
        command.args(["index", "build", "-q", "--threads", "1", "--index", &place, "--corpus"]).arg(&corpus);
        command.args(["--shard", &format!("{n}/3")]).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut workers: Vec<Child> = (1..=3).map(shard).collect();
    // The second dies when it has written something, by the only witness there is: the collection grows.
    let address = lite.address("shards");
    wait_for_passages(&address, 300);
    assert!(workers[1].try_wait().unwrap().is_none(), "it ended before it could be killed");
    workers[1].kill().unwrap();
    for (n, worker) in workers.into_iter().enumerate() {
        let output = worker.wait_with_output().unwrap();
        assert_eq!(output.status.success(), n != 1, "{}", String::from_utf8_lossy(&output.stderr));
    }
    let error = Collection::open(&address).unwrap_err();
    assert!(error.to_string().contains("half filled: 2 of 3 shards are complete, missing 2"), "{error}");
    assert!(error.hint().unwrap().contains("--shard 2/3"));
    let again = shard(2).wait_with_output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let collection = Collection::open(&address).unwrap();
    assert_eq!(collection.count(None).unwrap(), 3000);
    for n in [0, 999, 1000, 1500, 1999, 2000, 2999_u64] {
        let row = collection.row_of(&format!("p{n}")).unwrap().unwrap();
        assert_eq!(collection.passage(row).unwrap().title, all[n as usize].title);
    }
    let hits = json_lines(&["search", &all[1234].title, "--index", &place, "-k", "5", "--rerank", "none"]);
    assert_eq!(hits.len(), 5);
}

/// Wait until more passages are there, whoever has written them. One process asks again and again: to start Python for
/// each look takes so long that a worker may be done by then.
fn wait_for_passages(address: &Address, more_than: u64) {
    let script = format!(
        "import time
from pymilvus import MilvusClient
client, name, problem = MilvusClient('http://127.0.0.1:{}'), '{}', ''
end = time.monotonic() + 120
while time.monotonic() < end:
    try:
        if client.has_collection(name):
            row = client.query(name, filter='', output_fields=['count(*)'])[0]
            if row['count(*)'] > {more_than}:
                raise SystemExit
    except Exception as error:  # it is being made
        problem = error
    time.sleep(0.02)
raise SystemExit(f'nothing is written {{problem}}')",
        address.port, address.collection
    );
    python(&script);
}

fn json_lines(words: &[&str]) -> Vec<Value> {
    run(&[words, &["--json"]].concat()).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn two_processes_serve_one_collection_and_see_each_others_changes() {
    let lite = Lite::start();
    let place = lite.place("served");
    run(&["index", "build", "-q", "--corpus", DEMO, "--index", &place]);
    let serving = || Server::ready(&[Path::new(&place)], &["--writable"]);
    let (one, two) = (serving(), serving());
    let ask = json!({"question": QUESTION});
    let (first, second) = (one.post("/v1/answer", ask.clone()), two.post("/v1/answer", ask));
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.json()["answer"], second.json()["answer"]);
    let new =
        json!({"passages": [{"id": "new", "title": "Zyzzyva", "text": "The zyzzyva is a weevil.", "kind": "insect"}]});
    let put = one.post("/v1/passages", new);
    assert_eq!((put.status, &put.json()["added"]), (200, &json!(1)));
    let found = two.post("/v1/search", json!({"question": "zyzzyva", "k": 1}));
    assert_eq!((found.status, &found.json()["hits"][0]["passage_id"]), (200, &json!("new")));
    let stored = two.get("/v1/passages/new");
    assert_eq!((stored.status, &stored.json()["passages"][0]["metadata"]["kind"]), (200, &json!("insect")));
    assert_eq!(two.send("DELETE", "/v1/passages/new", "", "").status, 200);
    assert_eq!(one.get("/v1/passages/new").status, 404);
    let indexes = two.get("/v1/indexes");
    assert_eq!((indexes.status, &indexes.json()["indexes"][0]["name"]), (200, &json!("served")));

    // Built anew, without vectors: who serves it finds out, and begins anew.
    run(&["index", "build", "-q", "--overwrite", "--no-dense", "--corpus", DEMO, "--index", &place]);
    let facts = |reply: &crate::serve::Reply| reply.json()["indexes"][0]["facts"].clone();
    one.wait("/v1/indexes", |reply| facts(reply)["passages"] == 263 && facts(reply)["encoder"].is_null());
    let answer = one.post("/v1/answer", json!({"question": QUESTION}));
    assert_eq!((answer.status, &answer.json()["answer"]), (200, &first.json()["answer"]));
}
