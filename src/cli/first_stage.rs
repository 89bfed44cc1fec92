//! From options to a first stage, over an index in a folder or a collection in a cluster.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cli::engine::Models;
use crate::cli::index_change::check_encoder;
use crate::cli::index_encoder;
use crate::cli::pipeline_args::{RankingArgs, RetrievalArgs};
use crate::error::{Error, Result};
use crate::index::Index;
use crate::index::lexical::Bm25;
use crate::index::manifest::EncoderIdentity;
use crate::index::passages::Passages;
use crate::index::recall::Beam;
use crate::milvus::{Address, Collection};
use crate::pipeline::SharedEncoder;
use crate::progress::Progress;
use crate::retrieve::{Bm25Retriever, DenseRetriever, HybridRetriever, MilvusRetriever, Mode, Retriever};
use crate::runtime::session::RuntimeOptions;

/// Candidates of each side that hybrid search fuses at least, so that the first few do not depend on how many are wanted.
const CANDIDATES: usize = 100;

/// The first stage that `retrieval` asks for, with the encoder of the index where it needs one, which is lent as well. It will be
/// asked for `depth` passages.
pub(crate) fn open_retriever(
    index: &Arc<Index>,
    mode: Mode,
    retrieval: &RetrievalArgs,
    depth: usize,
    options: &RuntimeOptions,
    progress: &dyn Progress,
    models: &mut Models,
) -> Result<(Box<dyn Retriever>, Option<SharedEncoder>)> {
    let index = Arc::clone(index);
    let ranking = &retrieval.ranking;
    ranking.check(mode)?;
    let candidates = ranking.candidates(CANDIDATES);
    let usual = if mode == Mode::Hybrid { Bm25::BESIDE_VECTORS } else { Bm25::default() };
    let bm25 = Bm25::new(ranking.bm25_k1.unwrap_or(usual.k1), ranking.bm25_b.unwrap_or(usual.b))?;
    let Some(identity) = encoder_for(mode, index.manifest().encoder.as_ref(), index.path())? else {
        return Ok((Box::new(Bm25Retriever::new(index).with_bm25(bm25)), None));
    };
    let (encoder, fingerprint) = open_encoder(&identity, options, progress, models)?;
    let ef = ranking.ef.unwrap_or_default();
    let mut dense = DenseRetriever::new(Arc::clone(&index), of_questions(&encoder), &fingerprint, ef, ranking.exact)?;
    if let Some(recall) = ranking.recall {
        let depth = if mode == Mode::Hybrid { candidates.at(depth).1 } else { depth };
        dense = dense.with_recall(recall, depth, progress)?;
        if let Some(Beam { ef, recall: Some(recall) }) = dense.wanted_beam() {
            progress.note(&format!(
                "a beam of {ef} finds {recall:.4} of the {depth} nearest passages, measured on texts like questions"
            ));
        }
    }
    let retriever: Box<dyn Retriever> = match mode {
        Mode::Hybrid => Box::new(HybridRetriever::new(index, dense, ranking.fusion()?, candidates).with_bm25(bm25)),
        _ => Box::new(dense),
    };
    Ok((retriever, Some(encoder)))
}

/// The encoder that a mode needs, of an index that must have it then.
fn encoder_for(mode: Mode, encoder: Option<&EncoderIdentity>, place: &Path) -> Result<Option<EncoderIdentity>> {
    match (mode, encoder) {
        (Mode::Bm25, _) => Ok(None),
        (_, Some(identity)) => Ok(Some(identity.clone())),
        (_, None) => Err(Error::index(
            place,
            format!("it has no vectors, which --mode {mode} needs"),
            "use --mode bm25, or build the index again without --no-dense",
        )),
    }
}

/// The encoder of an index, and its fingerprint.
fn open_encoder(
    identity: &EncoderIdentity,
    options: &RuntimeOptions,
    progress: &dyn Progress,
    models: &mut Models,
) -> Result<(SharedEncoder, String)> {
    let (model, encoder) = index_encoder::open(identity, options, progress)?;
    let fingerprint = encoder.fingerprint().to_owned();
    models.push(("encoder", model.name(), fingerprint.clone()));
    Ok((Arc::new(Mutex::new(encoder)), fingerprint))
}

/// What turns a question into its vector.
fn of_questions(encoder: &SharedEncoder) -> impl FnMut(&str) -> Result<Vec<f32>> + Send + use<> {
    let encoder = Arc::clone(encoder);
    move |question| encoder.lock().unwrap_or_else(PoisonError::into_inner).encode(&[question.to_owned()])
}

/// Where passages are found: in a folder, or in a cluster.
pub enum Place {
    /// An index in a folder.
    Folder(Arc<Index>),
    /// A collection.
    Cluster(Arc<Collection>),
}

impl Place {
    /// Open what is there.
    pub fn open(index: &Path) -> Result<Self> {
        Ok(match Address::of(index)? {
            Some(address) => Self::Cluster(Arc::new(Collection::open(&address)?)),
            None => Self::Folder(Arc::new(Index::open(index)?)),
        })
    }

    /// Whether it can be searched by meaning.
    pub fn has_vectors(&self) -> bool {
        match self {
            Self::Folder(index) => index.dense().is_some(),
            Self::Cluster(collection) => collection.encoder().is_some(),
        }
    }

    /// What passages are looked up in.
    pub fn passages(&self) -> Arc<dyn Passages> {
        match self {
            Self::Folder(index) => Arc::<Index>::clone(index),
            Self::Cluster(collection) => Arc::<Collection>::clone(collection),
        }
    }

    /// Its first stage, as `open_retriever` gives it.
    pub fn retriever(
        &self,
        mode: Mode,
        retrieval: &RetrievalArgs,
        depth: usize,
        options: &RuntimeOptions,
        progress: &dyn Progress,
        models: &mut Models,
    ) -> Result<(Box<dyn Retriever>, Option<SharedEncoder>)> {
        match self {
            Self::Folder(index) => open_retriever(index, mode, retrieval, depth, options, progress, models),
            Self::Cluster(collection) => open_milvus(collection, mode, &retrieval.ranking, options, progress, models),
        }
    }
}

/// The first stage over a collection.
fn open_milvus(
    collection: &Arc<Collection>,
    mode: Mode,
    ranking: &RankingArgs,
    options: &RuntimeOptions,
    progress: &dyn Progress,
    models: &mut Models,
) -> Result<(Box<dyn Retriever>, Option<SharedEncoder>)> {
    let place = collection.address();
    if ranking.bm25_k1.is_some() || ranking.bm25_b.is_some() {
        return Err(Error::request("a collection has BM25's k1 and b from when it was built", "leave both out"));
    }
    ranking.check(mode)?;
    if ranking.recall.is_some() || ranking.ef.is_some() {
        return Err(Error::request(
            "a cluster walks its graph with a beam of its own width",
            "leave --recall and --ef out",
        ));
    }
    if ranking.exact {
        return Err(Error::request("a cluster walks its graph: it cannot compare every vector", "leave --exact out"));
    }
    let (collection, fusion) = (Arc::clone(collection), ranking.fusion()?);
    let candidates = ranking.candidates(CANDIDATES);
    let Some(identity) = encoder_for(mode, collection.encoder(), place.to_string().as_ref())? else {
        let none = |_: &str| Ok(Vec::new());
        return Ok((Box::new(MilvusRetriever::new(collection, mode, fusion, candidates, none)), None));
    };
    let (encoder, fingerprint) = open_encoder(&identity, options, progress, models)?;
    check_encoder(place.to_string().as_ref(), &identity, &fingerprint)?;
    Ok((Box::new(MilvusRetriever::new(collection, mode, fusion, candidates, of_questions(&encoder))), Some(encoder)))
}
