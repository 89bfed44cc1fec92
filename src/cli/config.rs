//! `nunatak config`: the options of `serve` as a file, the global ones included, and reading them from one.
//!
//! A key of the file is an option's name without its dashes. What is typed counts before what the file says, and that before the
//! defaults, because a file becomes words of the command line that stand for what was not typed.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

use clap::{Arg, ArgAction, Args, Command};
use toml::{Table, Value};

use crate::cli::output;
use crate::error::{Error, Result};

/// The command that takes a file.
const SERVE: &str = "serve";
/// The option that names it.
const CONFIG: &str = "config";
/// Options that cannot stand beside each other: one that is typed takes the other's place.
const EITHER: [&[&str]; 2] = [&["per-window", "together"], &["recall", "ef", "exact"]];

/// Options of `nunatak config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {}

/// Run `nunatak config`, where `cli` is the whole command line.
pub fn run(cli: &Command) -> Result<()> {
    output::line(template(cli).trim_end())
}

/// All keys with what they mean and their defaults, commented out.
fn template(cli: &Command) -> String {
    let mut text = String::from(
        "# Options of `nunatak serve`, for `nunatak serve --config FILE`. What is typed counts before what is here.\n",
    );
    let mut heading = None;
    for (name, option) in options(cli) {
        if option.get_help_heading() != heading {
            heading = option.get_help_heading();
            let _ = write!(text, "\n## {}\n", heading.unwrap_or_default());
        }
        let help = option.get_help().map(ToString::to_string).unwrap_or_default();
        let defaults: Vec<String> =
            option.get_default_values().iter().map(|value| literal(&value.to_string_lossy())).collect();
        let value = match (option.get_action(), &defaults[..]) {
            (ArgAction::SetTrue, _) => "false".to_owned(),
            (ArgAction::Append, _) => format!("[{}]", defaults.join(", ")),
            (_, [one]) => one.clone(),
            _ => "".to_owned(),
        };
        // A key without a default shows what it wants, which is no value yet.
        let value = match (value.is_empty(), option.get_value_names()) {
            (true, Some([name, ..])) => format!("<{name}>"),
            _ => value,
        };
        let _ = writeln!(text);
        for line in help.lines() {
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(text, "# {name} = {value}");
    }
    text
}

/// A default as TOML has it.
fn literal(text: &str) -> String {
    let plain = text.parse::<f64>().is_ok() || text.parse::<bool>().is_ok();
    if plain { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

/// The options that a file may hold, by name: those of `serve`, and the global ones.
fn options(cli: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let serve = cli.find_subcommand(SERVE).into_iter().flat_map(Command::get_arguments);
    serve
        .chain(cli.get_arguments().filter(|option| option.is_global_set()))
        .filter_map(|option| option.get_long().map(|name| (name, option)))
        .filter(|(name, _)| ![CONFIG, "help"].contains(name))
}

/// The words of a command line, with those of the file that `serve --config` names put in.
///
/// # Errors
/// [`Error::File`] and [`Error::BadFile`] naming the file, and the key that is unknown or of another type.
pub fn expand(words: Vec<OsString>, cli: &Command) -> Result<Vec<OsString>> {
    let Some(at) = words.iter().position(|word| word == SERVE) else { return Ok(words) };
    let file = words.iter().enumerate().skip(at).find_map(|(at, word)| {
        let word = word.to_string_lossy();
        match word.strip_prefix("--config")? {
            "" => words.get(at + 1).cloned(),
            value => value.strip_prefix('=').map(OsString::from),
        }
    });
    let Some(file) = file else { return Ok(words) };
    // Global options may stand before `serve`, too.
    let typed: Vec<Cow<str>> = words.iter().map(|word| word.to_string_lossy()).collect();
    let more = words_of(Path::new(&file), cli, |option| typed.iter().any(|word| is_option(word, option)))?;
    let (before, behind) = words.split_at(at + 1);
    Ok(before.iter().cloned().chain(more.into_iter().map(OsString::from)).chain(behind.iter().cloned()).collect())
}

/// Whether a word names this option.
fn is_option(word: &str, option: &Arg) -> bool {
    let short = option.get_short().is_some_and(|short| word == format!("-{short}"));
    let long = word.strip_prefix("--").map(|word| word.split_once('=').map_or(word, |(name, _)| name));
    short || (long.is_some() && long == option.get_long())
}

/// What the file says, as words, but for the options that were typed.
fn words_of(path: &Path, cli: &Command, is_typed: impl Fn(&Arg) -> bool) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    let bad = |problem: String| Error::bad_file(path, problem, "`nunatak config` prints all keys and what they take");
    let table: Table = text.parse().map_err(|e: toml::de::Error| bad(no_toml(&text, &e)))?;
    let typed: Vec<&str> = options(cli).filter(|(_, option)| is_typed(option)).map(|(name, _)| name).collect();
    let gives_way = |key: &str| {
        EITHER.iter().any(|either| either.contains(&key) && either.iter().any(|other| typed.contains(other)))
    };
    let mut words = Vec::new();
    for (key, value) in &table {
        let Some((_, option)) = options(cli).find(|(name, _)| name == key) else {
            return Err(bad(format!("there is no key {key:?}")));
        };
        if is_typed(option) || gives_way(key) {
            continue;
        }
        let scalar = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            _ => None,
        };
        let wrong = || bad(format!("the value of {key} is of another type"));
        match (option.get_action(), value) {
            (ArgAction::SetTrue, Value::Boolean(true)) => words.push(format!("--{key}")),
            (ArgAction::SetTrue, Value::Boolean(false)) => {}
            (ArgAction::Append, Value::Array(values)) => {
                for value in values {
                    words.push(format!("--{key}={}", scalar(value).ok_or_else(wrong)?));
                }
            }
            (ArgAction::Set | ArgAction::Append, value) => {
                words.push(format!("--{key}={}", scalar(value).ok_or_else(wrong)?));
            }
            _ => return Err(wrong()),
        }
    }
    Ok(words)
}

/// Why a text is no TOML, and on which line.
fn no_toml(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1)).unwrap_or_default();
    format!("it is no TOML: {line}{}", error.message())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;

    fn expanded(file: &str, words: &[&str]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nunatak.toml");
        std::fs::write(&path, file).unwrap();
        let words = [&["nunatak", "serve", "--config", path.to_str().unwrap()], words].concat();
        let words = expand(words.into_iter().map(OsString::from).collect(), &Cli::command())?;
        Ok(words.into_iter().map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn every_default_of_the_template_is_what_the_command_line_takes() {
        let template = template(&Cli::command());
        let keys = template.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| {
            line.split_once(" = ").is_some_and(|(key, value)| !key.contains(' ') && !value.starts_with('<'))
        });
        let file: Vec<&str> = keys.filter(|line| !line.starts_with("index =")).collect();
        assert!(file.contains(&"queue = 64") && file.contains(&"listen = \"127.0.0.1:7001\""), "{file:?}");
        let words = expanded(&file.join("\n"), &["--index", "x"]).unwrap();
        Cli::try_parse_from(words).unwrap();
    }

    #[test]
    fn what_is_typed_counts_before_the_file() {
        let file = "index = [\"a\", \"b=c\"]\nqueue = 9\nwritable = true\nexact = false\ndense-weight = 0.5\n";
        let words = expanded(file, &["--queue=3"]).unwrap();
        assert_eq!(words[2..6], ["--dense-weight=0.5", "--index=a", "--index=b=c", "--writable"]);
        assert_eq!(words.last().unwrap(), "--queue=3");
        Cli::try_parse_from(words).unwrap();
    }

    #[test]
    fn one_way_to_walk_the_graph_takes_the_place_of_another() {
        let file = "recall = 0.99\nbm25-depth = 50\ndense-depth = 200\n";
        let words = expanded(file, &["--exact", "--index", "x"]).unwrap();
        assert_eq!(words[2..4], ["--bm25-depth=50", "--dense-depth=200"]);
        Cli::try_parse_from(words).unwrap();
        let words = expanded(file, &["--index", "x"]).unwrap();
        assert!(words.contains(&"--recall=0.99".to_owned()), "{words:?}");
        Cli::try_parse_from(words).unwrap();
        assert!(expanded("recall = 0.9\nef = 100\n", &["--index", "x"]).map(Cli::try_parse_from).unwrap().is_err());
    }

    #[test]
    fn a_file_holds_global_options_and_gives_way_to_them_wherever_they_stand() {
        let file = "device = \"cuda\"\nquiet = true\nthreads = 2\nper-window = 2\n";
        let words = expanded(file, &["-q", "--together", "--index", "x"]).unwrap();
        assert_eq!(words[2..4], ["--device=cuda", "--threads=2"]);
        assert_eq!(words[4], "--config", "what was typed takes the place of the rest");
        let cli = Cli::try_parse_from(words).unwrap();
        assert_eq!((cli.globals.threads, cli.globals.quiet), (2, true));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nunatak.toml");
        std::fs::write(&path, "threads = 2\n").unwrap();
        let path = path.to_str().unwrap();
        let words = ["nunatak", "--threads", "3", "serve", "--index", "x", "--config", path].map(OsString::from);
        assert_eq!(expand(words.to_vec(), &Cli::command()).unwrap(), words);
    }

    #[cfg(unix)]
    #[test]
    fn words_that_are_no_utf8_keep_their_places() {
        use std::os::unix::ffi::OsStringExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nunatak.toml");
        std::fs::write(&path, "queue = 9\n").unwrap();
        let typed = ["nunatak", "serve", "?", "--config"].map(OsString::from).to_vec();
        let mut typed = [typed, vec![path.into_os_string()]].concat();
        typed[2] = OsString::from_vec(b"\xff".to_vec());
        let words = expand(typed, &Cli::command()).unwrap();
        assert_eq!((words.len(), words[2].to_str()), (6, Some("--queue=9")));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (file, part) in [
            ("qeue = 9", "no key \"qeue\""),
            ("queue = true", "the value of queue is of another type"),
            ("writable = 1", "the value of writable is of another type"),
            ("index = \"x\"\nqueue 9", "it is no TOML: line 2: "),
            ("queue =", "it is no TOML: line 1: "),
            ("config = \"x\"", "no key \"config\""),
        ] {
            let error = expanded(file, &[]).unwrap_err();
            assert!(error.to_string().contains(part) && error.hint().is_some(), "{error}");
        }
        let missing = ["nunatak", "serve", "--config=/nowhere/x.toml"].map(OsString::from).to_vec();
        assert!(expand(missing, &Cli::command()).unwrap_err().to_string().contains("/nowhere/x.toml"));
        let other = ["nunatak", "ask", "serve"].map(OsString::from).to_vec();
        assert_eq!(expand(other.clone(), &Cli::command()).unwrap(), other);
    }
}
