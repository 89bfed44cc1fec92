//! `--memory` of the commands that write an index: how much of it a build may take.

use clap::Args;

use crate::error::{Error, Result};
use crate::index::estimate::{DEFAULT_MEMORY, LEAST_MEMORY, most_passages};

/// How much memory writing may take.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct MemoryArgs {
    /// Most memory for words, vectors and graph, beside the encoder's. What would take more becomes several segments, each with a
    /// graph of its own, which take longer to search [default: 8]
    #[arg(long, value_name = "GB", value_parser = gigabytes)]
    memory: Option<u64>,
}

impl MemoryArgs {
    /// Most passages a segment may have, for vectors of width `dim` (0 for none) and graphs of `m` links.
    pub fn segment_passages(self, dim: usize, m: usize) -> u64 {
        most_passages(self.memory.unwrap_or(DEFAULT_MEMORY), dim, m)
    }

    /// Fail if it was given, for an index whose graph is built elsewhere.
    pub fn refuse_in_cluster(self) -> Result<()> {
        match self.memory {
            None => Ok(()),
            Some(_) => Err(Error::request(
                "--memory bounds what a graph takes here, and a collection's is built by the cluster",
                "leave the option out",
            )),
        }
    }
}

/// Bytes of so many gigabytes.
fn gigabytes(text: &str) -> std::result::Result<u64, String> {
    let bytes = text.parse::<f64>().ok().filter(|gb| gb.is_finite()).map(|gb| (gb * 1e9) as u64);
    match bytes {
        Some(bytes) if bytes >= LEAST_MEMORY => Ok(bytes),
        Some(_) => Err(format!("a build takes at least {} GB", LEAST_MEMORY as f64 / 1e9)),
        None => Err("it is said in GB, as 4 or 0.5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gigabytes_are_read_and_too_few_are_refused() {
        assert_eq!(gigabytes("4"), Ok(4_000_000_000));
        assert_eq!(gigabytes("0.5"), Ok(500_000_000));
        for wrong in ["0.4", "-1", "0", "inf", "NaN", "4GB", ""] {
            assert!(gigabytes(wrong).is_err(), "{wrong}");
        }
    }
}
