//! What can go wrong, worded for the person who will read it: what, where, and what to do about it.
//!
//! The message of an error is one sentence without a hint; [`Error::hint`] says what to do next, and the
//! command line prints it on a line of its own. Every variant's doc says who is at fault.

use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with the place it happened at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine refused a file operation: permissions, disk full, missing file.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb: "read", "create", "rename".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of a user's file is not what its format asks for. The user can mend the line.
    #[error("{}:{line}: {problem}", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A user's file as a whole is not usable: wrong format, truncated, empty.
    #[error("{}: {problem}", path.display())]
    BadFile {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// An index is damaged, of another version, or does not fit what is asked of it.
    #[error("index {}: {problem}", path.display())]
    Index {
        /// The index folder, or the damaged file in it.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The disk has too little room for what is to be written.
    #[error("{}: {problem}", path.display())]
    NoRoom {
        /// What is to be written.
        path: PathBuf,
        /// How much there is, and how much there has to be.
        problem: String,
    },
    /// Another process is changing the index, and one at a time can.
    #[error("index {}: another process is writing it", path.display())]
    Locked {
        /// The index folder.
        path: PathBuf,
    },
    /// A model folder or file is missing a piece, damaged, or of a kind that is not asked for.
    #[error("model {name}: {problem}")]
    Model {
        /// The model's name or folder.
        name: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Something that has to be fetched is not there, and could not be or must not be fetched.
    #[error("{problem}")]
    Setup {
        /// What is missing and why it could not be had.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A device was asked for and cannot be had.
    #[error("device {device}: {problem}")]
    Device {
        /// The device as it was asked for.
        device: String,
        /// What is missing, by name.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The request cannot be met as it was made: a limit is passed, an option contradicts another.
    #[error("{problem}")]
    Request {
        /// What is asked too much.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A document is there already, and must not be replaced.
    #[error("the index has a document {document:?} already")]
    Known {
        /// Its id.
        document: String,
    },
    /// Ctrl-C. Nothing half-done is visible.
    #[error("interrupted: {kept}")]
    Interrupted {
        /// What of the work so far is kept, and how to go on.
        kept: String,
    },
    /// A library failed in a way that no input should cause; worth a bug report.
    #[error("{doing}: {message}")]
    Internal {
        /// What was being done.
        doing: &'static str,
        /// What the library said.
        message: String,
    },
}

impl Error {
    /// What the user can do about it, if anything is known to help.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::BadFile { hint, .. }
            | Self::Index { hint, .. }
            | Self::Model { hint, .. }
            | Self::Setup { hint, .. }
            | Self::Device { hint, .. }
            | Self::Request { hint, .. } => hint.as_deref(),
            Self::NoRoom { .. } => Some("free some space, or give a folder on another disk"),
            Self::Locked { .. } => Some("wait until it is done"),
            Self::Known { .. } => Some("say --update to replace it, or give the new one another id"),
            Self::BadLine { .. } => Some("mend the line, or allow N bad lines with --skip-bad N"),
            Self::File { .. } | Self::Interrupted { .. } | Self::Internal { .. } => None,
        }
    }

    /// An [`Error::File`], for `map_err`: `fs::read(p).map_err(Error::file("read", p))`.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::File { action, path, source }
    }

    /// An [`Error::Internal`], for `map_err` on a library's error type.
    pub fn internal<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |e| Self::Internal { doing, message: e.to_string() }
    }

    /// An [`Error::BadFile`] with a hint.
    pub fn bad_file(path: impl AsRef<Path>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::BadFile { path: path.as_ref().to_path_buf(), problem: problem.into(), hint: Some(hint.into()) }
    }

    /// An [`Error::Index`] with a hint.
    pub fn index(path: impl AsRef<Path>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Index { path: path.as_ref().to_path_buf(), problem: problem.into(), hint: Some(hint.into()) }
    }

    /// An [`Error::Model`] with a hint.
    pub fn model(name: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Model { name: name.into(), problem: problem.into(), hint: Some(hint.into()) }
    }

    /// An [`Error::Request`] with a hint.
    pub fn request(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Request { problem: problem.into(), hint: Some(hint.into()) }
    }
}
