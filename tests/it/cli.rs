//! The command line as a user meets it: wrong words end with 2, failed work with 1 and one clear sentence,
//! and nothing half-done stays behind.

use std::fs;
use std::io::Write;
use std::path::Path;

use assert_cmd::Command;
use insta::assert_snapshot;
use tempfile::TempDir;

fn nunatak(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("nunatak").unwrap();
    command.current_dir(folder).env("COLUMNS", "100").env_remove("NUNATAK_LOG");
    command
}

/// Exit status and what stood on stderr.
fn fails(folder: &Path, words: &[&str]) -> String {
    let output = nunatak(folder).args(words).output().unwrap();
    assert!(output.stdout.is_empty(), "data was printed: {}", String::from_utf8_lossy(&output.stdout));
    let error = String::from_utf8(output.stderr).unwrap();
    format!("{}\n{}", output.status.code().unwrap(), error.trim_end())
}

/// `index build` without vectors over a file that holds `bytes`.
fn builds(bytes: &[u8], name: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), bytes).unwrap();
    let said = fails(folder.path(), &["index", "build", "--no-dense", "-q", "--index", "ix", "--corpus", name]);
    assert!(!folder.path().join("ix").exists(), "a failed build leaves no index");
    (folder, said)
}

/// A small index of words in `ix`.
fn small_index() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let corpus = "{\"id\":\"a\",\"title\":\"Fram\",\"text\":\"The Fram was built by Colin Archer in 1892.\"}\n\
                  {\"id\":\"b\",\"title\":\"Moulin\",\"text\":\"A moulin is a shaft in a glacier.\"}\n";
    fs::write(folder.path().join("c.jsonl"), corpus).unwrap();
    nunatak(folder.path())
        .args(["index", "build", "--no-dense", "-q", "--index", "ix", "--corpus", "c.jsonl"])
        .assert()
        .success();
    folder
}

#[test]
fn wrong_words_end_with_two() {
    let folder = tempfile::tempdir().unwrap();
    for words in
        [&["search"][..], &["serch", "x"], &["ask", "x", "--index", "ix", "--mode", "fuzzy"], &["index", "build"]]
    {
        assert!(fails(folder.path(), words).starts_with("2\n"), "{words:?}");
    }
}

#[test]
fn files_that_are_no_corpus() {
    let (_a, said) = builds(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0>\0", "program");
    assert_snapshot!(said);
    let (_b, said) = builds(b"", "empty.jsonl");
    assert_snapshot!(said);
    let (_c, said) = builds(b"{\"id\": \"a\", \"text\": \"fine\"}\n{\"id\": \"b\"\n", "broken.jsonl");
    assert_snapshot!(said);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    for i in 0..2000 {
        writeln!(gz, "{{\"id\": \"d{i}\", \"text\": \"Passage number {i} about sea ice.\"}}").unwrap();
    }
    let whole = gz.finish().unwrap();
    let (_d, said) = builds(&whole[..whole.len() / 2], "cut.jsonl.gz");
    assert_snapshot!(said);
    let long = format!("{{\"id\": \"a\", \"text\": \"{}\"}}\n", "x".repeat(10 << 20));
    let (_e, said) = builds(long.as_bytes(), "long.jsonl");
    assert_snapshot!(said);
    let twice = "{\"id\": \"a\", \"text\": \"one\"}\n{\"id\": \"a\", \"text\": \"two\"}\n";
    let (_f, said) = builds(twice.as_bytes(), "twice.jsonl");
    assert_snapshot!(said);
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let folder = small_index();
    for (words, status, part) in [
        ("search ice --index ix --depth 0", "2", "it must be 1 or more"),
        ("search ice --index ix -k 0", "2", "it must be 1 or more"),
        ("ask ice --index ix --depth 0", "2", "it must be 1 or more"),
        ("serve --index ix --depth 0", "2", "it must be 1 or more"),
        ("index warm --all --index ix --depth 0", "2", "it must be 1 or more"),
        ("search ice --index ix --recall 0.9 --exact", "2", "cannot be used with"),
        ("search ice --index ix --recall 0.9 --ef 100", "2", "cannot be used with"),
        ("search ice --index ix --ef 100 --exact", "2", "cannot be used with"),
        ("search ice --index ix --ef 0", "2", "it must be 1 or more"),
        ("search ice --index ix --recall 0.9", "1", "--mode bm25 does not walk"),
        ("search ice --index ix --dense-depth 9", "1", "hybrid search, and this is --mode bm25"),
        ("search ice --index ix --bm25-depth 9", "1", "hybrid search, and this is --mode bm25"),
        ("index build --no-dense --encoder x --index i --corpus c", "2", "cannot be used with"),
        ("index build --no-dense --keep-encoded --index i --corpus c", "2", "cannot be used with"),
        ("ask ice --index ix --json --stream", "1", "leave one of them out"),
        ("bench serve --questions q --seconds 1e300", "1", "at most 1e9"),
        ("bench serve --questions q --out c.jsonl", "1", "c.jsonl is there already"),
        ("train curves x --out c.jsonl", "1", "c.jsonl is there already"),
        ("train candidates --tasks x --out c.jsonl", "1", "c.jsonl is there already"),
        ("eval gate x y --curve c.jsonl", "1", "c.jsonl is there already"),
    ] {
        let said = fails(folder.path(), &words.split(' ').collect::<Vec<_>>());
        assert!(said.starts_with(status) && said.contains(part), "{words}: {said}");
    }
    let help = nunatak(folder.path()).args(["train", "connector", "--help"]).output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    assert!(help.contains("[default: 0.0005]") && !help.contains("--shared"), "{help}");
}

#[test]
fn records_that_are_left_out_are_named() {
    let folder = small_index();
    let bad = "{\n".repeat(12);
    fs::write(folder.path().join("new.jsonl"), format!("{{\"id\": \"c\", \"text\": \"fine\"}}\n{bad}")).unwrap();
    for words in [&["index", "add", "--index", "ix"][..], &["index", "build", "--no-dense", "--index", "new"]] {
        let mut command = nunatak(folder.path());
        let done = command.args(words).args(["--corpus", "new.jsonl", "--skip-bad", "12"]).assert().success();
        let said = String::from_utf8(done.get_output().stderr.clone()).unwrap();
        assert!(said.contains("skipped: ") && said.contains("new.jsonl:2: "), "{said}");
        assert!(said.contains("skipped: 12 records in all"), "{said}");
    }
    fs::write(folder.path().join("q.jsonl"), format!("{{\"question\": \"what is fine\"}}\n{bad}")).unwrap();
    let mut command = nunatak(folder.path());
    command.args(["eval", "--index", "ix", "--mode", "bm25", "--reader", "none", "--rerank", "none", "--out", "run"]);
    let done = command.args(["--questions", "q.jsonl", "--skip-bad", "12"]).assert().success();
    let said = String::from_utf8(done.get_output().stderr.clone()).unwrap();
    assert!(said.contains("q.jsonl:2: ") && said.contains("skipped: 12 lines in all"), "{said}");
}

#[test]
fn bad_lines_may_be_allowed_by_number() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.jsonl"), "{\"id\": \"a\", \"text\": \"fine\"}\n{\n").unwrap();
    let build = ["index", "build", "--no-dense", "--index", "ix", "--corpus", "c.jsonl", "--skip-bad", "1", "--json"];
    let output = nunatak(folder.path()).args(build).output().unwrap();
    assert!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["corpus"]["skipped"], 1);
    assert_eq!(report["build"]["passages"], 1);
}

#[test]
fn an_estimate_builds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.jsonl"), "{\"id\": \"a\", \"text\": \"fine\", \"source\": \"wiki\"}\n").unwrap();
    let words = ["index", "build", "--no-dense", "--index", "ix", "--corpus", "c.jsonl", "--json", "--estimate"];
    let bytes = |more: &[&str]| {
        let output = nunatak(folder.path()).args(words).args(more).output().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (said["passages"].as_u64().unwrap(), said["estimate"]["index_bytes"].as_u64().unwrap())
    };
    let (one, many) = (bytes(&[]), bytes(&["21000000"]));
    assert_eq!((one.0, many.0), (1, 21_000_000));
    assert!(many.1 > 20_000_000 * one.1 && !folder.path().join("ix").exists());
}

/// Wait until a build has begun to encode, by the folder that it makes for what it encodes.
#[cfg(unix)]
fn wait_for_encoding(child: &mut std::process::Child, index: &Path) {
    let began = std::time::Instant::now();
    while !index.join("encode-cache").is_dir() {
        assert!(child.try_wait().unwrap().is_none(), "the build ended before it encoded");
        assert!(began.elapsed().as_secs() < 300, "the build does not begin to encode");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn a_build_that_is_interrupted_while_it_encodes_leaves_no_index_and_is_none_the_worse() {
    let folder = tempfile::tempdir().unwrap();
    // All of them are encoded in one go, which takes seconds: only the check between two batches stops it so soon.
    let text = "The ice sheet moves towards the sea, and what falls on it as snow comes back as icebergs.";
    let lines: Vec<String> = (0..2000).map(|n| format!("{{\"id\":\"d{n}\",\"text\":\"{n}: {text}\"}}")).collect();
    fs::write(folder.path().join("c.jsonl"), lines.join("\n")).unwrap();
    let build = ["index", "build", "-q", "--index", "ix", "--corpus", "c.jsonl"];
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("nunatak"))
        .current_dir(folder.path())
        .args(build)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let index = folder.path().join("ix");
    wait_for_encoding(&mut child, &index);
    let kill = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted: "), "{said}");
    assert!(!index.join("manifest.json").exists());
    assert!(fails(folder.path(), &["search", "ice", "--index", "ix"]).starts_with("1\n"));
    nunatak(folder.path()).args(build).assert().success();
    nunatak(folder.path()).args(["index", "verify", "--index", "ix"]).assert().success();
}

#[test]
fn an_index_that_is_there_is_not_replaced_unasked() {
    let folder = small_index();
    let build = ["index", "build", "--no-dense", "-q", "--index", "ix", "--corpus", "c.jsonl"];
    assert_snapshot!(fails(folder.path(), &build));
    nunatak(folder.path()).args(build).arg("--overwrite").assert().success();
}

#[test]
fn indexes_that_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    assert_snapshot!(fails(folder.path(), &["search", "ice", "--index", "nowhere"]));
    let folder = small_index();
    assert_snapshot!(fails(folder.path(), &["search", "ice", "--index", "ix", "--mode", "dense"]));
    let manifest = folder.path().join("ix/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(
        &manifest,
        text.replacen("\"passages\":2", "\"passages\":3", 1).replacen("\"passages\": 2", "\"passages\": 3", 1),
    )
    .unwrap();
    assert_snapshot!(fails(folder.path(), &["search", "ice", "--index", "ix"]));
}

#[test]
fn documents_come_and_go() {
    let folder = small_index();
    let does = |words: &[&str]| -> String {
        let output = nunatak(folder.path()).args(words).args(["-q"]).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    };
    let found = |question: &str| does(&["search", question, "--index", "ix", "--rerank", "none", "--json"]);
    fs::write(folder.path().join("new.jsonl"), "{\"id\":\"c\",\"text\":\"A serac is a tower of ice.\"}\n").unwrap();
    assert!(does(&["index", "add", "--index", "ix", "--corpus", "new.jsonl"]).contains("1 passages added, 0 removed"));
    assert!(found("what is a serac").contains("\"passage_id\":\"c\""));
    let again = fails(folder.path(), &["index", "add", "--index", "ix", "--corpus", "new.jsonl"]);
    assert!(again.contains("the index has a document \"c\" already") && again.contains("--update"), "{again}");
    fs::write(folder.path().join("new.jsonl"), "{\"id\":\"c\",\"text\":\"A cirque is a bowl.\"}\n").unwrap();
    does(&["index", "add", "--index", "ix", "--corpus", "new.jsonl", "--update"]);
    assert_eq!((found("what is a serac tower"), found("cirque").lines().count()), (String::new(), 1));
    fs::write(folder.path().join("ids.txt"), "b\n\n").unwrap();
    assert!(
        does(&["index", "delete", "--index", "ix", "--ids-file", "ids.txt"]).contains("0 passages added, 1 removed")
    );
    assert_eq!(found("moulin shaft"), "");
    let nobody = fails(folder.path(), &["index", "delete", "--index", "ix", "--ids", "nobody"]);
    assert!(nobody.contains("no document or passage \"nobody\""), "{nobody}");
    let nothing = nunatak(folder.path()).args(["index", "delete", "--index", "ix"]).assert().code(2);
    assert!(String::from_utf8_lossy(&nothing.get_output().stderr).contains("--ids"));
    let other = small_index();
    let other = other.path().join("ix");
    let twins = fails(folder.path(), &["index", "merge", "--index", "both", "ix", other.to_str().unwrap()]);
    assert!(twins.contains("two passages with the id \"a\""), "{twins}");
    assert!(!folder.path().join("both").exists());
    does(&["index", "delete", "--index", "ix", "--ids", "a"]);
    does(&["index", "merge", "--index", "both", "ix", other.to_str().unwrap()]);
    assert!(does(&["index", "info", "--index", "both"]).contains("passages     3"));
}

#[test]
fn an_index_is_updated_compacted_and_exported() {
    let folder = small_index();
    let does = |words: &[&str]| -> String {
        let output = nunatak(folder.path()).args(words).args(["-q"]).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    };
    assert!(
        does(&["index", "compact", "--index", "ix"])
            .contains("has no segments to put together and no deleted passages")
    );
    let compacted = |words: &[&str]| -> serde_json::Value { serde_json::from_str(&does(words)).unwrap() };
    let nothing = compacted(&["index", "compact", "--index", "ix", "--json"]);
    assert_eq!((&nothing["added"], &nothing["build"]["passages"]), (&0.into(), &2.into()));
    let line = "{\"id\":\"a\",\"title\":\"Fram\",\"text\":\"A ship.\",\"year\":1892}\n";
    fs::write(folder.path().join("new.jsonl"), line).unwrap();
    assert!(
        does(&["index", "update", "--index", "ix", "--corpus", "new.jsonl"]).contains("1 passages added, 1 removed")
    );
    does(&["index", "delete", "--index", "ix", "--ids", "b"]);
    let info = does(&["index", "info", "--index", "ix"]);
    assert!(info.contains("passages     1\n") && info.contains("index compact"), "{info}");
    assert_eq!(does(&["index", "export", "--index", "ix"]), line);
    fs::write(folder.path().join("out.part"), "mine").unwrap();
    for name in ["out.jsonl", "out.jsonl.zst", "out.jsonl.gz"] {
        assert!(does(&["index", "export", "--index", "ix", "--out", name]).contains("1 passages in out.jsonl"));
        let there = fails(folder.path(), &["index", "export", "--index", "ix", "--out", name]);
        assert!(there.contains("is there already") && there.contains("--overwrite"), "{there}");
        let again = ["index", "build", "--no-dense", "--passage-words", "0", "--overwrite", "--index", "again"];
        does(&[&again[..], &["--corpus", name]].concat());
        assert_eq!(does(&["index", "export", "--index", "again"]), line, "{name}");
    }
    assert_eq!(fs::read_to_string(folder.path().join("out.part")).unwrap(), "mine");
    does(&["index", "compact", "--index", "ix"]);
    assert!(!does(&["index", "info", "--index", "ix"]).contains("deleted"));
}

#[test]
fn shards_put_together_are_the_index_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<String> = (0..11).map(|n| format!("{{\"id\":\"d{n}\",\"text\":\"Ice {n} and snow.\"}}")).collect();
    fs::write(folder.path().join("c.jsonl"), lines.join("\n")).unwrap();
    let build = |name: &str, more: &[&str]| {
        let words =
            ["index", "build", "--no-dense", "-q", "--title-weight", "2", "--corpus", "c.jsonl", "--index", name];
        nunatak(folder.path()).args(words).args(more).assert().success();
    };
    build("whole", &[]);
    ["1/3", "2/3", "3/3"].into_iter().zip(["a", "b", "c"]).for_each(|(shard, name)| build(name, &["--shard", shard]));
    let merge = ["index", "merge", "-q", "--index", "merged", "a", "b", "c"];
    nunatak(folder.path()).args(merge).assert().success();
    let files = |name: &str| {
        let output = nunatak(folder.path()).args(["index", "info", "--json", "--index", name]).output().unwrap();
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        info["manifest"]["segments"].clone()
    };
    assert_eq!(files("merged"), files("whole"));
    // Twelve shards of eleven passages: the first has none.
    for (shard, status, part) in [("0/3", "2", "1/4 to 4/4"), ("x", "2", "1/4"), ("1/12", "1", "fewer shards")] {
        let words = ["index", "build", "--no-dense", "-q", "--corpus", "c.jsonl", "--index", "d", "--shard", shard];
        let said = fails(folder.path(), &words);
        assert!(said.starts_with(status) && said.contains(part), "{said}");
    }
    build("german", &["--language", "german"]);
    let said = fails(folder.path(), &["index", "merge", "--index", "both", "whole", "german"]);
    assert!(said.contains("german, stemmed") && said.contains("--language"), "{said}");
    let said =
        fails(folder.path(), &["index", "build", "-q", "--corpus", "c.jsonl", "--index", "x", "--language", "xx"]);
    assert!(said.contains("language \"xx\"") && said.contains("german"), "{said}");
    let said = fails(folder.path(), &["search", "ice", "--index", "whole", "--rerank", "none", "--bm25-b", "2"]);
    assert!(said.contains("b between 0 and 1"), "{said}");
}

#[test]
fn stop_words_of_ones_own_are_left_out_of_questions() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write("c.jsonl", b"{\"id\":\"a\",\"text\":\"Ice and snow.\"}\n{\"id\":\"b\",\"text\":\"The sea.\"}\n");
    write("words.txt", b"# of ours\nICE | frozen\nwon't\n");
    let build = ["index", "build", "--no-dense", "--corpus", "c.jsonl", "--index", "ix", "--stop-words"];
    let built = nunatak(folder.path()).args(build).arg("words.txt").assert().success();
    let said = String::from_utf8_lossy(&built.get_output().stderr).into_owned();
    assert!(said.contains("words.txt: left out, as they are not one word to BM25: \"won't\""), "{said}");
    let found = |question: &str| {
        let words = ["search", question, "--index", "ix", "--rerank", "none", "--json", "-q"];
        let output = nunatak(folder.path()).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    // "the" is no stop word here, and "ice" is.
    assert_eq!((found("the"), found("ice"), found("the ice"), found("snow")), (1, 0, 1, 1));
    let info = nunatak(folder.path()).args(["index", "info", "--index", "ix"]).output().unwrap();
    assert!(String::from_utf8(info.stdout).unwrap().contains("1 listed stop words dropped from questions"));

    write("empty.txt", b"# nothing\n");
    write("latin.txt", b"apr\xe8s\n");
    for (file, problem) in [("empty.txt", "no stop words"), ("latin.txt", "UTF-8"), ("missing.txt", "missing.txt")] {
        let said =
            fails(folder.path(), &["index", "build", "--corpus", "c.jsonl", "--index", "x", "--stop-words", file]);
        assert!(said.starts_with('1') && said.contains(file) && said.contains(problem), "{said}");
        assert!(!folder.path().join("x").exists());
    }
}

#[test]
fn verify_names_the_damaged_file() {
    let folder = small_index();
    nunatak(folder.path()).args(["index", "verify", "--index", "ix"]).assert().success();
    let generation = fs::read_dir(folder.path().join("ix"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.is_dir() && p.file_name().unwrap().to_string_lossy().starts_with("gen-"))
        .unwrap();
    let store = generation.join("passages.arrow");
    let mut bytes = fs::read(&store).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&store, bytes).unwrap();
    let output = nunatak(folder.path()).args(["index", "verify", "--index", "ix"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("passages.arrow"));
}

#[test]
fn questions_are_plain_text() {
    let folder = small_index();
    for question in ["title:fram AND (", "\"unclosed", "a:b^2 +c -d ~ * ? [x TO", "\\", "🧊 ключ"] {
        nunatak(folder.path()).args(["search", question, "--index", "ix"]).assert().success();
    }
    let long = "ice ".repeat(25_000);
    nunatak(folder.path()).args(["search", &long, "--index", "ix"]).assert().success();
}

#[test]
fn what_the_reader_cannot_take() {
    let folder = small_index();
    let ask = |words: &[&str]| {
        let mut all = vec!["ask"];
        all.extend_from_slice(words);
        all.extend_from_slice(&["--index", "ix", "-q"]);
        fails(folder.path(), &all)
    };
    let long = "why ".repeat(25_000);
    assert_snapshot!(ask(&[&long]));
    assert_snapshot!(ask(&["who built the fram", "--window", "100"]));
    assert_snapshot!(ask(&[" "]));
    assert_snapshot!(ask(&["who built the fram", "--lm", "all-MiniLM-L6-v2"]));
    assert_snapshot!(ask(&["who built the fram", "--lm", "./ix"]));
    assert_snapshot!(ask(&["who built the fram", "--lm", "no-such-model"]));
    assert_snapshot!(ask(&["who built the fram", "--rerank", "SmolLM2-135M-Instruct"]));
    assert_snapshot!(ask(&["who built the fram", "--grounded", "--temperature", "1"]));
}

#[test]
fn a_filter_goes_by_the_fields_of_passages() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = "{\"id\":\"a\",\"text\":\"Ice ships.\",\"year\":1892,\"by\":{\"name\":\"Colin Archer\"}}\n\
                  {\"id\":\"b\",\"text\":\"Ice shafts.\",\"year\":1990}\n";
    fs::write(folder.path().join("c.jsonl"), corpus).unwrap();
    fs::write(folder.path().join("t.tsv"), "id\ttext\tyear\nc\tIce tables.\t2001\n").unwrap();
    nunatak(folder.path())
        .args(["index", "build", "--no-dense", "-q", "--index", "ix", "--corpus", "c.jsonl", "t.tsv"])
        .assert()
        .success();
    let found = |filter: &str| {
        let words = ["search", "ice", "--json", "--rerank", "none", "--index", "ix", "--filter", filter];
        let output = nunatak(folder.path()).args(words).output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let mut ids: Vec<String> = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["passage_id"].as_str().unwrap().into())
            .collect();
        ids.sort();
        ids.join(" ")
    };
    assert_eq!(found("year>=1900"), "b c");
    assert_eq!(found("by.name=\"Colin Archer\""), "a");
    assert_eq!(found("year>1900 source_file=t.tsv"), "c");
    assert_eq!(found("year>3000"), "");
    let search = |filter| fails(folder.path(), &["search", "ice", "--index", "ix", "--filter", filter]);
    assert_snapshot!(search("yaer>=1900"));
    assert_snapshot!(search("year>="));
    let info = nunatak(folder.path()).args(["index", "info", "--index", "ix"]).output().unwrap().stdout;
    assert!(String::from_utf8(info).unwrap().contains("by.name, source_file, year"));
}
