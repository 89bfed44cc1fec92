//! What a collection cannot say of itself: how it was made, and how far it is filled.
//!
//! It stands in a second, small collection beside the first, `NAME_nunatak`: a row for what all writers must agree on, and
//! one for each shard of a build. Rows are upserted whole, so that writers on many machines need no lock.

use std::collections::BTreeSet;
use std::time::Duration;

use milvus::v2 as sdk;
use milvus::v2::prelude::{CreateCollectionRequest, CreateIndexRequest, EntityRow, IndexParam, IndexType, MetricType};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::address::Consistency;
use super::connection::{Connection, built};
use super::filter::{among, quoted};
use super::vector_index::VectorIndex;
use crate::digest::hex;
use crate::error::{Error, Result};
use crate::index::lexical::Analyser;
use crate::index::manifest::EncoderIdentity;

/// Of the layout of rows.
pub(super) const FORMAT: u32 = 1;
/// Times a collection is tried to be made: shards that begin in the same instant stand in each other's way.
const CREATIONS: u32 = 10;
/// Between two of these.
const CREATION_PAUSE: Duration = Duration::from_millis(300);
const PART: &str = "part";
const SAID: &str = "said";
const VECTOR: &str = "vector";
const MADE: &str = "made";

/// What all who write into a collection agree on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Made {
    /// [`FORMAT`].
    pub(super) format: u32,
    /// What makes the vectors, if there are some.
    pub(super) encoder: Option<EncoderIdentity>,
    /// What makes the words.
    pub(super) analyser: Analyser,
    /// Words a passage was split to.
    pub(super) passage_words: usize,
    /// Hash of the corpus it was built from.
    pub(super) corpus: String,
    /// Passages in that.
    pub(super) passages: u64,
    /// Shards that fill it.
    pub(super) shards: u64,
    /// BM25's k1 and b.
    pub(super) bm25: (f32, f32),
    /// What the cluster makes of the vectors; what was made before there was a choice is a graph.
    #[serde(default)]
    pub(super) vectors: VectorIndex,
}

impl Made {
    /// A hash of it.
    pub(super) fn checksum(&self) -> Result<String> {
        let all = serde_json::to_vec(self).map_err(Error::internal("describing a collection"))?;
        Ok(hex(&Sha256::digest(&all)))
    }
}

/// How far a shard is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shard {
    /// Which, from 1; 0 stands for what was added after the build.
    pub(super) number: u64,
    /// Whether all its passages are there.
    pub(super) complete: bool,
    /// Fields that its passages' metadata has.
    pub(super) fields: BTreeSet<String>,
}

/// The ledger of a collection.
pub(super) struct Ledger<'a> {
    connection: &'a Connection,
    name: String,
}

impl<'a> Ledger<'a> {
    pub(super) fn of(connection: &'a Connection) -> Self {
        Self { connection, name: format!("{}_nunatak", connection.address().collection) }
    }

    /// Its collection's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is one.
    pub(super) fn exists(&self) -> Result<bool> {
        self.connection.has(&self.name)
    }

    /// Begin one, if there is none.
    pub(super) fn create(&self) -> Result<()> {
        let of = |name: &str, kind| sdk::FieldSchema::new().name(name).data_type(kind);
        let schema = sdk::CollectionSchema::new()
            .add_field(of(PART, sdk::DataType::VarChar).max_length(64).primary_key(true))
            .add_field(of(SAID, sdk::DataType::Json))
            // No collection can be without vectors.
            .add_field(of(VECTOR, sdk::DataType::FloatVector).dimension(2));
        let index = IndexParam::new().field_name(VECTOR).index_type(IndexType::Flat).metric_type(MetricType::Cosine);
        create(self.connection, &self.name, schema, vec![index])
    }

    /// What its collection is.
    ///
    /// # Errors
    /// [`Error::Index`] if nobody said so yet, or a program of another version did.
    pub(super) fn made(&self) -> Result<Option<Made>> {
        let rows = self.connection.query(&self.name, &among(PART, [MADE]), &[PART, SAID], Consistency::Strong)?;
        let Some(said) = rows.first().and_then(|row| row.get(SAID)) else { return Ok(None) };
        if said.get("format").and_then(Value::as_u64) != Some(FORMAT.into()) {
            return Err(self.connection.error(
                "its rows are laid out by another version of this program",
                "use that version, or build it again with --overwrite",
            ));
        }
        self.read(said).map(Some)
    }

    /// Say what its collection is.
    pub(super) fn make(&self, made: &Made) -> Result<()> {
        self.write(MADE, made)
    }

    /// The shards that began.
    pub(super) fn shards(&self) -> Result<Vec<Shard>> {
        let filter = format!("{PART} != {}", quoted(MADE));
        let rows = self.connection.query(&self.name, &filter, &[PART, SAID], Consistency::Strong)?;
        let mut shards: Vec<Shard> =
            rows.iter().filter_map(|row| row.get(SAID)).map(|said| self.read(said)).collect::<Result<_>>()?;
        shards.sort_by_key(|shard| shard.number);
        Ok(shards)
    }

    /// Say how far a shard is.
    pub(super) fn mark(&self, shard: &Shard) -> Result<()> {
        self.write(&format!("shard {}", shard.number), shard)
    }

    fn read<T: DeserializeOwned>(&self, said: &Value) -> Result<T> {
        serde_json::from_value(said.clone()).map_err(|error| {
            self.connection.error(
                format!("what {} says of it cannot be read: {error}", self.name),
                "build it again with --overwrite",
            )
        })
    }

    fn write(&self, part: &str, said: &impl Serialize) -> Result<()> {
        let said = serde_json::to_value(said).map_err(Error::internal("describing a collection"))?;
        let fields = [(PART, Value::from(part)), (SAID, said), (VECTOR, json!([1.0, 0.0]))];
        let row: EntityRow = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.connection.upsert(&self.name, &[row])
    }
}

/// Create a collection, unless somebody was faster, and load it.
pub(super) fn create(
    connection: &Connection,
    name: &str,
    schema: sdk::CollectionSchema,
    indexes: Vec<IndexParam>,
) -> Result<()> {
    let request = CreateCollectionRequest::builder().collection_name(name).schema(schema).index_params(indexes.clone());
    let request = built(request.build())?;
    let mut tries = 0;
    while !connection.has(name)? {
        tries += 1;
        match connection.wait(connection.client().create_collection(request.clone())) {
            Err(error) if tries == CREATIONS => return Err(error),
            // Another shard's process is about to have made it.
            Err(_) => std::thread::sleep(CREATION_PAUSE),
            Ok(()) => break,
        }
    }
    connection.load(name).or_else(|_| {
        // Whoever made it did not come to its indexes, or has not yet; the same ones again change nothing.
        let request = CreateIndexRequest::builder().collection_name(name).index_params(indexes).sync(false);
        let request = built(request.build())?;
        connection.insist(|| connection.client().create_index(request.clone()))?;
        connection.load(name)
    })
}
