//! Set-up, doctor and models, as a user meets them: real failures, one clear sentence each, and nothing
//! half-installed. What a package client does is played by small shell scripts called `python3`; the runtime
//! and the starter models are the real ones.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use nunatak::export::onnx::{DType, Dim, GraphBuilder, Initializer};
use predicates::prelude::*;
use predicates::str::contains;
use tempfile::TempDir;

use crate::common::hub::Hub;

/// The program with a cache of its own and nothing else to lean on.
fn nunatak(home: &Path) -> Command {
    let mut command = ambient();
    command.env("NUNATAK_HOME", home).env_remove("ORT_DYLIB_PATH");
    command
}

/// The program as this machine has it set up.
fn ambient() -> Command {
    let mut command = Command::cargo_bin("nunatak").unwrap();
    for variable in ["HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "NUNATAK_LOG"] {
        command.env_remove(variable);
    }
    command
}

/// Set this machine up; most runs find everything there.
fn set_up() {
    ambient().args(["setup", "--quiet"]).assert().success();
}

/// The processor's build of ONNX Runtime, as this machine's own cache has it.
fn runtime_library() -> PathBuf {
    let setup = ambient().env_remove("ORT_DYLIB_PATH").args(["setup", "--quiet", "--json"]).assert().success();
    let stdout = String::from_utf8(setup.get_output().stdout.clone()).unwrap();
    let first: serde_json::Value = serde_json::from_str(stdout.lines().next().unwrap()).unwrap();
    PathBuf::from(first["path"].as_str().unwrap())
}

/// Nothing that looks installed.
fn assert_empty(home: &Path) {
    for folder in ["runtime", "sources", "models", "tmp"] {
        let entries = fs::read_dir(home.join(folder)).map_or(0, Iterator::count);
        assert_eq!(entries, 0, "{folder} is not empty");
    }
}

/// One sentence of error and one of what to do, and no more.
fn one_sentence(problem: &str) -> impl Predicate<str> {
    contains(format!("error: {problem}"))
        .and(contains("\nhint: "))
        .and(predicate::function(|text: &str| text.trim_end().lines().count() == 2))
}

#[cfg(unix)]
mod package_client {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::Stdio;

    use super::*;

    /// A folder to be PATH, with a `python3` in it that does this; `$dest` is where pip is to put the wheel.
    fn python(script: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("python3");
        let find_dest = "while [ $# -gt 0 ]; do if [ \"$1\" = --dest ]; then dest=$2; fi; shift; done";
        fs::write(&path, format!("#!/bin/sh\n{find_dest}\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    fn fails_with(script: &str, problem: &str) {
        let (home, path) = (tempfile::tempdir().unwrap(), python(script));
        let mut command = nunatak(home.path());
        command.arg("setup").env("PATH", path.path()).assert().code(1).stderr(one_sentence(problem));
        assert_empty(home.path());
    }

    #[test]
    fn no_python() {
        let (home, path) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut command = nunatak(home.path());
        let assert = command.arg("setup").env("PATH", path.path()).assert().code(1);
        assert.stderr(one_sentence("cannot fetch onnxruntime 1.32.0: no python3 was found on PATH"));
        assert_empty(home.path());
    }

    #[test]
    fn no_pip() {
        fails_with(
            "echo '/usr/bin/python3: No module named pip' >&2; exit 1",
            "cannot fetch onnxruntime 1.32.0: Python is there, but its module pip is not",
        );
    }

    #[test]
    fn no_network() {
        fails_with(
            "echo 'WARNING: Retrying after connection broken by NewConnectionError' >&2
             echo 'ERROR: No matching distribution found for onnxruntime' >&2; exit 1",
            "pip could not fetch onnxruntime 1.32.0: WARNING: Retrying after connection broken by NewConnectionError",
        );
    }

    #[test]
    fn a_wheel_that_is_not_the_pinned_one() {
        fails_with(
            "echo 'something else' > \"$dest/onnxruntime.whl\"",
            "the onnxruntime 1.32.0 that pip delivered is not the pinned one",
        );
    }

    #[test]
    fn a_client_that_delivers_nothing() {
        fails_with("exit 0", "pip said that it downloaded onnxruntime 1.32.0, but left no wheel");
    }

    /// A real full disk: a memory disk of 64 kB in a mount namespace of its own, where the system allows one.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk() {
        let namespace = |script: &str| {
            let mut command = std::process::Command::new("unshare");
            command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
            command
        };
        let disk = tempfile::tempdir().unwrap();
        let mount = format!("mount -t tmpfs -o size=64k tmpfs {}", disk.path().display());
        if !namespace(&mount).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
            eprintln!("skipped: this system allows no mount namespaces");
            return;
        }
        let path = python("exec /bin/dd if=/dev/zero of=\"$dest/onnxruntime.whl\" bs=1024 count=1024");
        let program = assert_cmd::cargo::cargo_bin("nunatak");
        let script = format!("{mount} && PATH={} exec {} setup", path.path().display(), program.display());
        let mut command = namespace(&script);
        command.env("NUNATAK_HOME", disk.path().join("cache")).env_remove("ORT_DYLIB_PATH");
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            one_sentence("cannot fetch onnxruntime 1.32.0: the disk that holds the cache folder is full").eval(&stderr),
            "{stderr}"
        );
    }

    #[test]
    fn a_cache_that_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let mut command = nunatak(&file.join("cache"));
        command
            .arg("setup")
            .assert()
            .code(1)
            .stderr(one_sentence("the cache folder").and(contains("cannot be written")));

        let closed = dir.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
        // The superuser may write anywhere.
        if fs::create_dir(closed.join("probe")).is_err() {
            let mut command = nunatak(&closed);
            command.arg("setup").assert().code(1).stderr(one_sentence("the cache folder"));
        }
    }

    #[test]
    fn offline_asks_nobody() {
        let (home, path) = (tempfile::tempdir().unwrap(), python("echo asked > \"$dest/asked\""));
        let mut command = nunatak(home.path());
        let assert = command.args(["setup", "--offline"]).env("PATH", path.path()).assert().code(1);
        assert.stderr(one_sentence("ONNX Runtime (onnxruntime 1.32.0) is not in the cache folder"));
        assert!(!home.path().exists() || fs::read_dir(home.path()).unwrap().next().is_none());
    }

    /// Killed in the middle, a set-up leaves rubbish and a lock; the next one is hindered by neither. While it
    /// lives, another waits for it and says so.
    #[test]
    fn a_killed_set_up_is_forgotten() {
        let home = tempfile::tempdir().unwrap();
        let slow = python("echo half > \"$dest/half.whl\"; exec /bin/sleep 300");
        let mut first = std::process::Command::new(assert_cmd::cargo::cargo_bin("nunatak"))
            .arg("setup")
            .envs([("NUNATAK_HOME", home.path()), ("PATH", slow.path())])
            .env_remove("ORT_DYLIB_PATH")
            .stderr(Stdio::null())
            // So that what it started can be killed with it.
            .process_group(0)
            .spawn()
            .unwrap();
        let begun = || walk(home.path()).iter().any(|f| f.ends_with("half.whl"));
        while !begun() {
            assert!(first.try_wait().unwrap().is_none(), "it ended before anything was fetched");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let failing = python("exit 1");
        let mut second = std::process::Command::new(assert_cmd::cargo::cargo_bin("nunatak"))
            .arg("setup")
            .envs([("NUNATAK_HOME", home.path()), ("PATH", failing.path())])
            .env_remove("ORT_DYLIB_PATH")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(second.stderr.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "waiting for another nunatak that is setting up\n");
        let kill = format!("kill -s KILL -- -{}", first.id());
        assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        first.wait().unwrap();
        assert_eq!(second.wait().unwrap().code(), Some(1));
        assert_empty(home.path());
    }

    fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
        walkdir::WalkDir::new(dir).into_iter().filter_map(|e| Some(e.ok()?.into_path())).collect()
    }

    #[test]
    fn a_second_run_does_nothing() {
        set_up();
        let nobody = tempfile::tempdir().unwrap();
        let again = || {
            let mut command = ambient();
            command.args(["setup", "--json"]).env("PATH", nobody.path());
            let assert = command.assert().success().stderr("");
            String::from_utf8(assert.get_output().stdout.clone()).unwrap()
        };
        assert_eq!(again(), again());
        assert_eq!(again().lines().count(), 4);
    }
}

#[test]
fn a_truncated_library_is_noticed() {
    let library = runtime_library();
    let installed = library.parent().unwrap();

    let home = tempfile::tempdir().unwrap();
    let copy = home.path().join("runtime").join(installed.file_name().unwrap());
    fs::create_dir_all(&copy).unwrap();
    for file in fs::read_dir(installed).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let whole = || nunatak(home.path()).args(["setup", "--offline"]).output().unwrap().stderr;
    // The library is found, so what is missing is a model.
    assert!(String::from_utf8(whole()).unwrap().starts_with("error: all-MiniLM-L6-v2"));
    fs::File::options().write(true).open(copy.join(library.file_name().unwrap())).unwrap().set_len(1000).unwrap();
    assert!(String::from_utf8(whole()).unwrap().starts_with("error: ONNX Runtime"));
}

#[test]
fn the_doctor_proves_it() {
    set_up();
    let assert = ambient().args(["doctor", "--json"]).assert().success();
    let checks: Vec<serde_json::Value> = serde_json::Deserializer::from_slice(&assert.get_output().stdout)
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap();
    let names: Vec<&str> = checks.iter().map(|c| c["check"].as_str().unwrap()).collect();
    assert_eq!(names[..6], ["program", "cache", "runtime", "encoder", "lm", "cross-encoder"]);
    assert!(checks.iter().all(|c| c["ok"] == true));
    assert!(checks[3]["detail"].as_str().unwrap().contains("on cpu"));
}

/// Published builds of ONNX Runtime report home unless they are told not to, and leave a device's identity and
/// unsent reports in the user's cache folder.
#[test]
fn the_runtime_reports_nothing_home() {
    let library = runtime_library();
    let home = tempfile::tempdir().unwrap();
    let mut command = ambient();
    command.arg("doctor").env("NUNATAK_HOME", library.ancestors().nth(3).unwrap());
    command.env("ORT_DYLIB_PATH", &library).env("HOME", home.path()).env("XDG_CACHE_HOME", home.path());
    // The variables by which the runtime knows a build machine, where it is silent by itself.
    for variable in ["ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI"] {
        command.env_remove(variable);
    }
    command.assert().success();
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_device_that_cannot_be_had_is_an_error() {
    // The processor's build of the library has no CUDA in it, whatever the machine.
    let mut command = ambient();
    command.env("ORT_DYLIB_PATH", runtime_library());
    command
        .args(["doctor", "--device", "cuda:1"])
        .assert()
        .code(1)
        .stdout(contains("device cuda:1: this ONNX Runtime was built without CUDA"));
    ambient().args(["doctor", "--device", "gpu"]).assert().code(2).stderr(contains("unknown device `gpu`"));
}

#[test]
fn each_stage_has_a_device_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("index");
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/passages.jsonl");
    ambient()
        .args(["index", "build", "-q", "--no-dense", "--corpus", corpus, "--index"])
        .arg(&index)
        .assert()
        .success();
    let run = |words: &[&str]| {
        let mut command = ambient();
        command.env("ORT_DYLIB_PATH", runtime_library()).args(words).arg("--index").arg(&index).assert()
    };
    let refused = "device cuda:0: this ONNX Runtime was built without CUDA";
    run(&["ask", "ice", "--reader-device", "cuda"]).code(1).stderr(contains(refused));
    run(&["search", "ice", "--reranker-device", "cuda"]).code(1).stderr(contains(refused));
    // A stage that has no part in this asks for no device.
    run(&["search", "ice", "--encoder-device", "cuda", "--rerank", "none", "--reranker-device", "cuda"]).success();
    // What is said of one stage goes before what is said of all.
    let cpu = ["--encoder-device", "cpu", "--reranker-device", "cpu"];
    run(&[&["search", "ice", "--device", "cuda"], &cpu[..]].concat()).success();
}

#[test]
fn a_library_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("libonnxruntime.so");
    let doctor = || {
        let mut command = ambient();
        command.args(["doctor", "--offline"]).env("ORT_DYLIB_PATH", &file);
        command.assert().code(1)
    };
    doctor().stdout(contains("which is not a file"));
    fs::write(&file, "this is no library").unwrap();
    doctor().stdout(contains("cannot load ONNX Runtime from"));
}

/// A user's own encoder: token vectors of width 2, a tokenizer, and no description.
fn user_encoder(dir: &Path) {
    let mut graph = GraphBuilder::new("user");
    let axes = [Dim::Free("B"), Dim::Free("S")];
    let ids = graph.input("input_ids", DType::I64, &axes);
    graph.input("attention_mask", DType::I64, &axes);
    let table = graph.init("table", Initializer::f32(&[8, 2], &[0.5; 16]));
    graph.node("", "Gather", &[&table, &ids], &["last_hidden_state"], &[]);
    graph.output("last_hidden_state", DType::F32, &[Dim::Free("B"), Dim::Free("S"), Dim::Fixed(2)]);
    graph.save(&dir.join("model.onnx")).unwrap();
    let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "ice": 1}, "unk_token": "[UNK]",
                  "continuing_subword_prefix": "\u0023\u0023", "max_input_chars_per_word": 100}}"#;
    fs::write(dir.join("tokenizer.json"), tokenizer).unwrap();
    fs::write(dir.join("config.json"), r#"{"model_type": "bert", "hidden_size": 2}"#).unwrap();
}

#[test]
fn a_model_comes_in_is_listed_and_goes_out() {
    let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    user_encoder(dir.path());
    // Nothing here runs a model, so nothing has to be set up.
    let run = |args: &[&str]| nunatak(home.path()).args(args).arg("--offline").assert();
    let source = dir.path().to_str().unwrap();
    run(&["models", "import", source, "--name", "mine"]).success().stdout(contains("mine@onnx"));
    run(&["models", "import", source, "--name", "mine"])
        .code(1)
        .stderr(one_sentence("model mine: there is a model of this name"));
    run(&["models", "list"]).success().stdout(contains("mine@onnx").and(contains("encoder")));
    run(&["models", "info", "mine", "--json"]).success().stdout(contains(r#""pooling":"mean""#));

    let out = dir.path().join("out");
    run(&["models", "export", "mine", out.to_str().unwrap()]).success();
    run(&["models", "export", "mine", out.to_str().unwrap()]).code(1).stderr(contains("is not empty"));
    let fingerprint = |model: &str| {
        let output = run(&["models", "info", model, "--json"]).success().get_output().stdout.clone();
        serde_json::from_slice::<serde_json::Value>(&output).unwrap()["fingerprint"].clone()
    };
    assert_eq!(fingerprint("mine"), fingerprint(out.to_str().unwrap()));

    // What comes in is what its description says.
    let out = out.to_str().unwrap();
    run(&["models", "import", out, "--name", "again"]).success();
    let change = |file: &str, from: &str, to: &str| {
        let path = dir.path().join("out").join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
    };
    change("tokenizer.json", "ice", "fog");
    run(&["models", "import", out, "--name", "other"])
        .code(1)
        .stderr(one_sentence("model out: its file tokenizer.json is not what was written"));
    change("nunatak.json", r#""precision": "onnx""#, r#""precision": "../x""#);
    run(&["models", "import", out, "--name", "other"])
        .code(1)
        .stderr(one_sentence("model out: its nunatak.json names the unknown precision `../x`"));

    // The re-ranker that comes with the program does not take the place of a user's model of that name.
    let models = home.path().join("models");
    fs::rename(models.join("mine.onnx"), models.join("reranker.int8")).unwrap();
    run(&["models", "info", "reranker"])
        .code(1)
        .stderr(one_sentence("model reranker: a model that comes with the program"));
    fs::rename(models.join("reranker.int8"), models.join("mine.onnx")).unwrap();

    fs::remove_file(home.path().join("models/mine.onnx/tokenizer.json")).unwrap();
    run(&["models", "list"]).success().stdout(contains("broken"));
}

#[test]
fn what_is_no_model_is_refused_by_name() {
    let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let fails = |args: &[&str], problem: &str| {
        nunatak(home.path()).args(args).arg("--offline").assert().code(1).stderr(one_sentence(problem));
    };
    // What it cannot be used without is looked at before it is taken in.
    let damaged = tempfile::tempdir().unwrap();
    user_encoder(damaged.path());
    let tokenizer = damaged.path().join("tokenizer.json");
    let whole = fs::read_to_string(&tokenizer).unwrap();
    for text in ["{}", &whole.replace("\"decoder\": null", "\"decoder\": nil")] {
        fs::write(&tokenizer, text).unwrap();
        let name = damaged.path().file_name().unwrap().to_string_lossy();
        let problem = format!("model {name}: cannot read its tokenizer");
        fails(&["models", "import", damaged.path().to_str().unwrap(), "--name", "x"], &problem);
        assert!(!home.path().join("models/x.onnx").exists());
    }
    let empty = dir.path().to_str().unwrap();
    fails(&["models", "info", "nothing"], "model nothing: there is no model of this name");
    fails(&["models", "info", "./nothing"], "model ./nothing: there is no such model folder");
    fails(&["models", "info", "all-MiniLM-L6-v2@int7"], "unknown precision `int7`");
    fails(&["models", "import", empty, "--name", "x"], "model");
    fails(&["models", "import", "/nothing/here"], "model /nothing/here: there is no such file or folder");
    fails(&["models", "import", empty, "--name", "all-MiniLM-L6-v2"], "`all-MiniLM-L6-v2` is a starter model");
    fails(&["models", "pull", "a/b"], "--offline forbids fetching a/b");
    assert_empty(home.path());
}

#[test]
fn a_model_is_pulled_from_a_hub() {
    let (home, dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    user_encoder(dir.path());
    let file = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let mut files = vec![("README.md", b"a card".to_vec()), ("onnx/model.onnx", file("model.onnx"))];
    files.extend(["config.json", "tokenizer.json"].map(|name| (name, file(name))));
    let hub = Hub::serve("somebody/encoder", files);
    let pull = |args: &[&str]| {
        let mut command = nunatak(home.path());
        command.args(["models", "pull"]).args(args).env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", cache.path());
        command
    };
    pull(&["somebody/encoder"])
        .assert()
        .success()
        .stdout(contains("encoder@onnx").and(contains("somebody/encoder (main) of the hub")));
    let asked = hub.requests();
    assert!(!asked.iter().any(|r| r.contains("README")), "{asked:?}");

    // What is in the hub's cache is not fetched again, with or without its leave.
    pull(&["somebody/encoder", "--name", "again"]).assert().success();
    assert_eq!(hub.requests().len(), asked.len() + 1);
    pull(&["somebody/encoder", "--name", "third"]).env("HF_HUB_OFFLINE", "1").assert().success();
    assert_eq!(hub.requests().len(), asked.len() + 1);

    pull(&["somebody/nothing"]).assert().code(1).stderr(one_sentence("cannot fetch somebody/nothing from the hub"));
    let missing = pull(&["somebody/encoder", "--file", "x.gguf"]).assert().code(1);
    missing.stderr(one_sentence("somebody/encoder has no file x.gguf"));
}
