//! Where a collection is: `milvus://host:port/collection`, as `--index` takes it in the place of a folder.
//!
//! `milvus://host:port/database/collection` names a database other than the default one. Behind a `?` stand options, with `&`
//! between: `consistency=strong|session|bounded|eventually` (what a question must see of late writes), `tls=on`, and
//! `timeout=SECONDS` (of one call). The token of a cluster that wants one is never part of an address, as addresses are
//! printed and recorded: it comes from the environment ([`TOKEN`]).

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use milvus::v2::prelude::ConsistencyLevel;

use crate::error::{Error, Result};

/// What an address begins with.
const SCHEME: &str = "milvus://";
/// The port of a Milvus server.
const PORT: u16 = 19530;
/// Seconds one call may take.
const TIMEOUT: u64 = 30;
/// The environment variable that holds `user:password` or an API key.
pub const TOKEN: &str = "NUNATAK_MILVUS_TOKEN";

/// Where a collection is, and how it is talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or number of the machine.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The database; empty for the default one.
    pub database: String,
    /// The collection.
    pub collection: String,
    /// What a question must see of writes before it.
    pub consistency: Consistency,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Longest time of one call.
    pub timeout: Duration,
}

/// What a question must see of writes before it; the words are Milvus' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// All of them.
    Strong,
    /// Those of this process.
    Session,
    /// Those older than some seconds.
    #[default]
    Bounded,
    /// Whatever has arrived.
    Eventually,
}

const CONSISTENCIES: [(&str, Consistency); 4] = [
    ("strong", Consistency::Strong),
    ("session", Consistency::Session),
    ("bounded", Consistency::Bounded),
    ("eventually", Consistency::Eventually),
];

impl Consistency {
    /// The same for the client.
    pub(super) fn level(self) -> ConsistencyLevel {
        match self {
            Self::Strong => ConsistencyLevel::Strong,
            Self::Session => ConsistencyLevel::Session,
            Self::Bounded => ConsistencyLevel::Bounded,
            Self::Eventually => ConsistencyLevel::Eventually,
        }
    }
}

impl Address {
    /// The address that was typed where a folder may stand; `None` for a folder.
    ///
    /// # Errors
    /// [`Error::Request`] for an address that cannot be read.
    pub fn of(place: &Path) -> Result<Option<Self>> {
        match place.to_str() {
            Some(text) if text.starts_with(SCHEME) => text.parse().map(Some),
            _ => Ok(None),
        }
    }

    /// Fail if an address stands where only a folder will do.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn refuse(place: &Path) -> Result<()> {
        match place.to_str() {
            Some(text) if text.starts_with(SCHEME) => Err(Error::request(
                format!("this works on an index in a folder, and {text} is a collection in a cluster"),
                "name a folder; build, add, update, delete, info, search, ask, eval and serve take collections, too",
            )),
            _ => Ok(()),
        }
    }

    /// What the client connects to.
    pub(super) fn uri(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}:{}/", self.host, self.port)?;
        if !self.database.is_empty() {
            write!(f, "{}/", self.database)?;
        }
        f.write_str(&self.collection)
    }
}

fn wrong(text: &str, problem: &str) -> Error {
    Error::request(
        format!("the address {text:?} cannot be read: {problem}"),
        "write milvus://host:port/collection, or milvus://host:port/database/collection?consistency=strong&tls=on",
    )
}

/// Whether Milvus takes this as a name: letters, digits and underscores, and no digit first.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong(text, "it does not begin with milvus://"))?;
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        let parts: Vec<&str> = place.trim_end_matches('/').split('/').collect();
        let (machine, database, collection) = match parts[..] {
            [machine, collection] => (machine, "", collection),
            [machine, database, collection] => (machine, database, collection),
            _ => return Err(wrong(text, "it names no collection")),
        };
        if machine.contains('@') {
            return Err(wrong(text, &format!("a password does not belong into it; put it into {TOKEN}")));
        }
        let (host, port) = match machine.rsplit_once(':') {
            // The colons of an IPv6 number without a port.
            Some((host, _)) if host.contains(':') && !host.ends_with(']') => (machine, PORT),
            Some((host, port)) => (host, port.parse().map_err(|_| wrong(text, "its port is no number"))?),
            None => (machine, PORT),
        };
        if host.is_empty() {
            return Err(wrong(text, "it names no host"));
        }
        for name in [collection, database].into_iter().filter(|name| !name.is_empty() || *name == collection) {
            if !is_name(name) {
                return Err(wrong(
                    text,
                    &format!("{name:?} is no name: it must be of letters, digits and underscores"),
                ));
            }
        }
        let mut address = Self {
            host: host.to_owned(),
            port,
            database: database.to_owned(),
            collection: collection.to_owned(),
            consistency: Consistency::default(),
            tls: false,
            timeout: Duration::from_secs(TIMEOUT),
        };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            address.set(text, option)?;
        }
        Ok(address)
    }
}

impl Address {
    fn set(&mut self, text: &str, option: &str) -> Result<()> {
        match option.split_once('=') {
            Some(("consistency", word)) => {
                let known = CONSISTENCIES.iter().find(|(name, _)| *name == word);
                let known = known.ok_or_else(|| {
                    wrong(text, &format!("{word:?} is no consistency: it is strong, session, bounded or eventually"))
                })?;
                self.consistency = known.1;
            }
            Some(("tls", word @ ("on" | "off"))) => self.tls = word == "on",
            Some(("timeout", seconds)) => {
                let seconds: u64 = seconds.parse().map_err(|_| wrong(text, "its timeout is no number of seconds"))?;
                self.timeout = Duration::from_secs(seconds.max(1));
            }
            _ => return Err(wrong(text, &format!("there is no option {option:?}"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let plain: Address = "milvus://db.example/wiki".parse().unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.collection.as_str()), ("db.example", 19530, "wiki"));
        assert_eq!(
            (plain.consistency, plain.tls, plain.uri().as_str()),
            (Consistency::Bounded, false, "http://db.example:19530")
        );
        let full: Address = "milvus://[::1]:7/lab/wiki_2?consistency=strong&tls=on&timeout=5".parse().unwrap();
        assert_eq!((full.host.as_str(), full.port, full.database.as_str()), ("[::1]", 7, "lab"));
        assert_eq!((full.consistency, full.uri().as_str()), (Consistency::Strong, "https://[::1]:7"));
        assert_eq!(full.timeout, Duration::from_secs(5));
        assert_eq!(full.to_string(), "milvus://[::1]:7/lab/wiki_2");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("milvus://host", "no collection"),
            ("milvus://host:1/", "no collection"),
            ("milvus://:1/a", "no host"),
            ("milvus://h:x/a", "port"),
            ("milvus://h:1/a-b", "no name"),
            ("milvus://h:1/1a", "no name"),
            ("milvus://u:p@h:1/a", "password"),
            ("milvus://h/a?consistency=weak", "no consistency"),
            ("milvus://h/a?tls=maybe", "no option"),
            ("milvus://h/a?timeout=soon", "timeout"),
            ("milvus://h/a/b/c", "no collection"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains(part) && error.hint().is_some(), "{text}: {error}");
        }
        assert_eq!(Address::of(Path::new("wiki")).unwrap(), None);
        assert!(Address::refuse(Path::new("milvus://h/a")).is_err() && Address::refuse(Path::new("a")).is_ok());
    }
}
