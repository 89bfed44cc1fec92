//! What a cluster makes of the vectors of a collection: how much memory they take there, and how they are searched.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use milvus::v2::prelude::{IndexParam, IndexType, MetricType};
use serde::{Deserialize, Serialize};

use super::layout::Shape;

/// Candidates of a walk through a graph, at least: the width at which recall@20 is within a point of all vectors compared.
const LEAST_CANDIDATES: usize = 200;

/// An index of Milvus over vectors. Bytes are those of a query node's memory for a passage of 384 numbers, its graph included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VectorIndex {
    /// A graph over 32-bit floats, some 1.7 KB.
    #[default]
    Hnsw,
    /// The same over 8-bit integers, some 0.5 KB. Cosines are those of the rounded vectors.
    HnswSq8,
    /// A graph on the disk of query nodes, some 100 bytes; they need NVMe.
    Diskann,
}

impl VectorIndex {
    const ALL: [(Self, &str); 3] = [(Self::Hnsw, "hnsw"), (Self::HnswSq8, "hnsw-sq8"), (Self::Diskann, "diskann")];

    /// How the field `name` is indexed.
    pub(super) fn of_field(self, name: &str, shape: Shape) -> IndexParam {
        let graph = [("M", shape.m.to_string()), ("efConstruction", shape.ef_construction.to_string())];
        let (kind, params) = match self {
            Self::Hnsw => (IndexType::Hnsw, graph.to_vec()),
            Self::HnswSq8 => (IndexType::HnswSq, [graph.as_slice(), &[("sq_type", "SQ8".to_owned())]].concat()),
            Self::Diskann => (IndexType::DiskAnn, Vec::new()),
        };
        let params: HashMap<String, String> =
            params.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        IndexParam::new().field_name(name).index_type(kind).metric_type(MetricType::Cosine).extra_params(params)
    }

    /// The parameter of a search for the nearest `depth`, and its value.
    pub(super) fn width(self, depth: usize) -> (String, String) {
        let name = match self {
            Self::Hnsw | Self::HnswSq8 => "ef",
            Self::Diskann => "search_list",
        };
        (name.to_owned(), LEAST_CANDIDATES.max(2 * depth).to_string())
    }
}

impl FromStr for VectorIndex {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(_, known)| *known == name);
        found.map(|(index, _)| index).ok_or_else(|| "it is one of hnsw, hnsw-sq8, diskann".to_owned())
    }
}

impl fmt::Display for VectorIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.into_iter().find(|(index, _)| index == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (index, name) in VectorIndex::ALL {
            assert_eq!((name.parse(), index.to_string()), (Ok(index), name.to_owned()));
            assert_eq!(serde_json::to_string(&index).unwrap(), format!("\"{name}\""), "as the ledger says it");
        }
        assert!("ivf".parse::<VectorIndex>().is_err());
    }

    #[test]
    fn a_search_looks_at_more_than_it_gives() {
        assert_eq!(VectorIndex::Hnsw.width(20), ("ef".to_owned(), "200".to_owned()));
        assert_eq!(VectorIndex::Diskann.width(500), ("search_list".to_owned(), "1000".to_owned()));
    }
}
