//! `train reranker`: a cross-encoder that tells the passage that answers a question from those that only look like it.
//!
//! An example is a group: a question, one of its positives, and hard negatives drawn from the first stage's list,
//! those of high rank more often. The loss is the listwise softmax cross-entropy over the group's scores (localised
//! contrastive estimation, Gao et al. 2021, arXiv:2101.08751). With a teacher it is mixed with the cross-entropy to the
//! teacher's softmax over the same group. Texts are cut exactly as [`CrossEncoder`] cuts them.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{D, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::index::Index;
use crate::progress::check_interrupt;
use crate::rerank::CrossEncoder;
use crate::runtime::tokenizer::{Cut, TextTokenizer};
use crate::train::bert::Bert;
use crate::train::llama::failed;
use crate::train::mine::{Mark, Mined};
use crate::train::texts::PackedTexts;
use crate::train::trainer::Trainable;
use crate::types::PassageId;

/// Added to a rank before its inverse becomes a weight: how much less the list's end is drawn than its top.
const RANK_OFFSET: f64 = 10.0;
/// What stands in a short group's empty places: its share of the softmax is 0.
const NO_SCORE: f32 = -1e9;
/// What a standard deviation of the first stage's score may be worth, in units of the model's score.
const PRIOR_STEPS: [f64; 6] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0];
/// Rank at which the reciprocal rank is cut, as in `MRR@10`.
const MRR_DEPTH: usize = 10;

/// How groups are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupSettings {
    /// Negatives in a group.
    pub negatives: usize,
    /// Longest pair in tokens.
    pub max_tokens: usize,
    /// Decides every draw.
    pub seed: u64,
}

/// Questions with their mined passages.
#[derive(Debug, Clone)]
pub struct Groups {
    index: Arc<Index>,
    tokenizer: Arc<TextTokenizer>,
    settings: GroupSettings,
    examples: Vec<(String, Mined)>,
}

impl Groups {
    /// Groups of these questions, each with a positive at least.
    pub fn new(
        index: &Arc<Index>,
        tokenizer: &Arc<TextTokenizer>,
        settings: &GroupSettings,
        examples: Vec<(String, Mined)>,
    ) -> Self {
        Self { index: index.clone(), tokenizer: tokenizer.clone(), settings: settings.clone(), examples }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    fn example(&self, i: usize) -> Result<&(String, Mined)> {
        let message = || format!("there is no example {i}");
        self.examples.get(i).ok_or_else(|| Error::Internal { doing: "drawing a group", message: message() })
    }

    /// The passages of a group, a positive first. The draw depends on the seed, the example and the round alone.
    fn draw(&self, i: usize, round: u64) -> Result<Vec<PassageId>> {
        let (_, mined) = self.example(i)?;
        let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed);
        random.set_stream(round << 32 | i as u64);
        let positive = random.random_range(0..mined.positives.len().max(1));
        let mut group: Vec<PassageId> = mined.positives.get(positive).copied().into_iter().collect();
        let negatives = mined.marked().filter(|(_, mark)| *mark == Mark::Negative).enumerate();
        // Weighted draw without replacement (Efraimidis and Spirakis 2006): the largest u^(1/w), as logarithms.
        let mut keyed: Vec<(f64, PassageId)> = negatives
            .map(|(rank, (row, _))| (random.random::<f64>().max(1e-300).ln() * (rank as f64 + RANK_OFFSET), row))
            .collect();
        keyed.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        group.extend(keyed.iter().take(self.settings.negatives).map(|(_, row)| *row));
        // A question that finds too little gets passages at random beside it.
        let rows = self.index.rows();
        let mut tries = 0;
        while group.len() <= self.settings.negatives && tries < 4 * self.settings.negatives {
            let row = PassageId(random.random_range(0..rows) as u32);
            if self.index.is_alive(row)
                && !group.contains(&row)
                && !mined.positives.contains(&row)
                && !mined.candidates.contains(&row)
            {
                group.push(row);
            }
            tries += 1;
        }
        Ok(group)
    }

    /// The texts of passages, as the index shows them to models.
    fn texts(&self, rows: &[PassageId]) -> Result<Vec<String>> {
        rows.iter().map(|&row| Ok(self.index.passage(row)?.titled_text())).collect()
    }

    /// The pairs of a question and some passages, cut to the longest length.
    fn pairs(&self, question: &str, rows: &[PassageId]) -> Result<Vec<Cut>> {
        let limit = self.settings.max_tokens;
        let (question, _) = self.tokenizer.prepare_within(question, limit / 2)?;
        let pair = |text: &String| self.tokenizer.encode_pair_within(&question, text, limit);
        self.texts(rows)?.par_iter().map(pair).collect()
    }

    fn group(&self, i: usize, round: u64) -> Result<(Vec<PassageId>, Vec<Cut>)> {
        let rows = self.draw(i, round)?;
        let pairs = self.pairs(&self.example(i)?.0, &rows)?;
        Ok((rows, pairs))
    }
}

/// How well a ranking puts gold passages on top.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quality {
    /// Mean reciprocal rank of the first gold passage among the top ten.
    pub mrr10: f64,
    /// Share of questions with a gold passage on top.
    pub recall1: f64,
    /// Weight of the first stage's score in the ranking.
    pub prior: f64,
}

impl Quality {
    /// From the rank, counted from 0, of each question's first gold passage.
    fn of(ranks: &[Option<usize>]) -> Self {
        let count = ranks.len().max(1) as f64;
        let mrr: f64 = ranks.iter().flatten().filter(|&&r| r < MRR_DEPTH).map(|&r| 1.0 / (r + 1) as f64).sum();
        let recall1 = ranks.iter().filter(|r| **r == Some(0)).count() as f64 / count;
        Self { mrr10: mrr / count, recall1, prior: 0.0 }
    }
}

/// A better cross-encoder to learn from.
#[derive(Debug)]
pub struct Teacher {
    /// The model.
    pub model: CrossEncoder,
    /// Weight of its cross-entropy; the labels' has the rest.
    pub weight: f64,
}

/// A cross-encoder with the groups it learns from.
#[derive(Debug)]
pub struct RerankerModule {
    bert: Bert,
    train: Groups,
    dev: Groups,
    /// Candidates of a held-out question that are ranked again.
    depth: usize,
    tokens_per_pass: usize,
    teacher: Option<(Mutex<CrossEncoder>, f64)>,
    /// What each evaluation found.
    pub history: Vec<Quality>,
}

impl RerankerModule {
    /// A module over training groups and held-out questions, whose best `depth` candidates are ranked again.
    pub fn new(
        bert: Bert,
        train: Groups,
        dev: Groups,
        depth: usize,
        tokens_per_pass: usize,
        teacher: Option<Teacher>,
    ) -> Self {
        let teacher = teacher.map(|t| (Mutex::new(t.model), t.weight));
        Self { bert, train, dev, depth, tokens_per_pass, teacher, history: Vec::new() }
    }

    /// The model.
    pub fn bert(&self) -> &Bert {
        &self.bert
    }

    /// What the first stage's own order reaches on the held-out questions.
    pub fn first_stage(&self) -> Quality {
        first_stage(&self.dev.examples, self.depth)
    }

    /// What the model reaches on the held-out questions, whose candidates another first stage found.
    ///
    /// # Errors
    /// [`Error::Interrupted`] on Ctrl-C; what the index says.
    pub fn behind(&self, examples: Vec<(String, Mined)>) -> Result<Quality> {
        self.measure(&Groups { examples, ..self.dev.clone() })
    }

    /// Rank the first candidates of these questions again, with the best weight for the first stage's score.
    fn measure(&self, asked: &Groups) -> Result<Quality> {
        let priors = priors(&asked.examples, self.depth);
        let mut ranks = vec![Vec::with_capacity(asked.len()); priors.len()];
        let mut next = 0;
        while next < asked.len() {
            check_interrupt(|| "the last checkpoint is kept; go on with --resume".to_owned())?;
            let (mut pairs, mut counts, mut tokens) = (Vec::new(), Vec::new(), 0);
            while next < asked.len() && (counts.is_empty() || tokens < self.tokens_per_pass) {
                let (question, mined) = asked.example(next)?;
                let rows: Vec<PassageId> = mined.candidates.iter().take(self.depth).copied().collect();
                let own = asked.pairs(question, &rows)?;
                tokens += own.iter().map(|p| p.ids.len()).sum::<usize>();
                counts.push((next, own.len()));
                pairs.extend(own);
                next += 1;
            }
            let scores = if pairs.is_empty() {
                Vec::new()
            } else {
                self.bert.scores(&PackedTexts::new(&pairs), false)?.to_vec1::<f32>().map_err(failed)?
            };
            let mut rest = scores.as_slice();
            for (i, count) in counts {
                let (own, after) = rest.split_at(count.min(rest.len()));
                rest = after;
                let (_, mined) = asked.example(i)?;
                for (prior, ranks) in priors.iter().zip(&mut ranks) {
                    ranks.push(rank(mined, own, *prior, self.depth));
                }
            }
        }
        let qualities = priors.iter().zip(&ranks).map(|(prior, ranks)| Quality { prior: *prior, ..Quality::of(ranks) });
        let best = qualities.reduce(|best, next| if next.mrr10 > best.mrr10 { next } else { best });
        Ok(best.unwrap_or_default())
    }

    fn teach(&self, i: usize, rows: &[PassageId]) -> Result<Vec<f32>> {
        let Some((teacher, _)) = &self.teacher else { return Ok(Vec::new()) };
        let (texts, question) = (self.train.texts(rows)?, &self.train.example(i)?.0);
        let scores = teacher.lock().unwrap_or_else(PoisonError::into_inner).score(question, &texts)?;
        let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f32> = scores.iter().map(|s| (s - top).exp()).collect();
        let sum: f32 = shares.iter().sum();
        Ok(shares.into_iter().map(|s| s / sum).collect())
    }
}

/// What the first stage's own order reaches among the first `depth` candidates.
pub fn first_stage(examples: &[(String, Mined)], depth: usize) -> Quality {
    let ranks: Vec<Option<usize>> =
        examples.iter().map(|(_, mined)| relevant(mined, depth).position(|relevant| relevant)).collect();
    Quality::of(&ranks)
}

/// Weights of the first stage's score that are tried: none, and such that a standard deviation of it is worth a quarter of
/// a unit of the model's score, and twice that, and so on.
fn priors(examples: &[(String, Mined)], depth: usize) -> Vec<f64> {
    let scores: Vec<f64> =
        examples.iter().flat_map(|(_, m)| m.scores.iter().take(depth)).map(|s| f64::from(*s)).collect();
    let count = scores.len().max(1) as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let deviation = (scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / count).sqrt();
    let steps = PRIOR_STEPS.iter().filter(|_| deviation > 1e-6).map(|step| step / deviation);
    std::iter::once(0.0).chain(steps).collect()
}

/// The rank, counted from 0, of the best relevant one among the first `depth` candidates when the model's scores `own` are
/// added to the first stage's times `prior`. Equal sums keep the first stage's order.
fn rank(mined: &Mined, own: &[f32], prior: f64, depth: usize) -> Option<usize> {
    let sums: Vec<f64> =
        own.iter().zip(&mined.scores).map(|(own, first)| f64::from(*own) + prior * f64::from(*first)).collect();
    let before = |at: usize, sum: f64| {
        sums.iter().enumerate().filter(|&(i, &other)| other > sum || (other == sum && i < at)).count()
    };
    let wanted =
        relevant(mined, depth).zip(&sums).enumerate().filter(|(_, (relevant, sum))| *relevant && !sum.is_nan());
    wanted.map(|(at, (_, &sum))| before(at, sum)).min()
}

/// Whether each of the first `depth` candidates is what the question wants: gold, or for a question without gold
/// passages one that holds an answer.
fn relevant(mined: &Mined, depth: usize) -> impl Iterator<Item = bool> + '_ {
    let wanted = if mined.distant { Mark::Answer } else { Mark::Gold };
    mined.marked().take(depth).map(move |(_, mark)| mark == wanted)
}

impl Trainable for RerankerModule {
    fn examples(&self) -> usize {
        self.train.len()
    }

    fn tokens(&self, example: usize) -> usize {
        self.train.group(example, 0).map_or(0, |(_, pairs)| pairs.iter().map(|p| p.ids.len()).sum())
    }

    fn loss(&self, batch: &[usize], seen: u64) -> Result<Tensor> {
        let examples = self.train.len().max(1) as u64;
        let groups = (seen..)
            .zip(batch)
            .map(|(seen, &i)| self.train.group(i, seen / examples))
            .collect::<Result<Vec<(Vec<PassageId>, Vec<Cut>)>>>()?;
        let width = groups.iter().map(|(rows, _)| rows.len()).max().unwrap_or(1);
        let (mut places, mut absent, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        let weight = self.teacher.as_ref().map_or(0.0, |(_, weight)| *weight as f32);
        let mut at = 0;
        for (&i, (rows, _)) in batch.iter().zip(&groups) {
            let taught = self.teach(i, rows)?;
            for place in 0..width {
                let there = place < rows.len();
                places.push(if there { at + place } else { at } as u32);
                absent.push(if there { 0.0 } else { NO_SCORE });
                let label = if place == 0 { 1.0 } else { 0.0 };
                wanted.push((1.0 - weight) * label + weight * taught.get(place).copied().unwrap_or(0.0));
            }
            at += rows.len();
        }
        let scores = self.bert.scores(&PackedTexts::new(groups.iter().flat_map(|(_, pairs)| pairs)), true)?;
        let loss = || {
            let shape = (groups.len(), width);
            let tensor = |v: Vec<f32>| Tensor::from_vec(v, shape, scores.device());
            let places = Tensor::from_vec(places, shape.0 * shape.1, scores.device())?;
            let scores = (scores.index_select(&places, 0)?.reshape(shape)? + tensor(absent)?)?;
            let shares = candle_nn::ops::log_softmax(&scores, D::Minus1)?;
            (shares * tensor(wanted)?)?.sum_all()? * (-1.0 / groups.len() as f64)
        };
        loss().map_err(failed)
    }

    fn variables(&self) -> Vec<(String, Var)> {
        self.bert.variables()
    }

    /// MRR@10 of the first stage's candidates in the model's order, on held-out questions, with the best weight for the
    /// first stage's score.
    fn evaluate(&mut self) -> Result<f64> {
        let quality = self.measure(&self.dev)?;
        self.history.push(quality);
        Ok(quality.mrr10)
    }

    fn metric(&self) -> &'static str {
        "MRR@10"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mined(marks: &str, scores: &[f32]) -> Mined {
        Mined {
            set: "s".into(),
            id: "q".into(),
            positives: Vec::new(),
            candidates: (0..scores.len() as u32).map(PassageId).collect(),
            scores: scores.to_vec(),
            marks: marks.into(),
            distant: false,
            unused: None,
        }
    }

    #[test]
    fn the_first_stage_counts_by_its_weight() {
        let mined = mined("--g-", &[1.0, 0.75, 0.5, 0.125]);
        // The model alone: 3, 1, 2, 0 puts the gold one second; with weight 4 the sums are 7, 4, 4, 0.5, and an equal one
        // before it stays before it.
        let own = [3.0, 1.0, 2.0, 0.0];
        assert_eq!(rank(&mined, &own, 0.0, 4), Some(1));
        assert_eq!(rank(&mined, &own, 4.0, 4), Some(2));
        assert_eq!(rank(&mined, &[0.0; 4], 0.0, 4), Some(2), "a model that tells nothing apart changes nothing");
        assert_eq!(rank(&mined, &own, 100.0, 4), Some(2), "the first stage's own order");
        assert_eq!(rank(&mined, &[0.0, 0.0, 5.0, 0.0], 4.0, 4), Some(0));
        assert_eq!(rank(&mined, &own, 0.0, 2), None, "it is not among the first two");
    }

    #[test]
    fn quality_by_hand() {
        // Ranks 1 and 4 and none: (1 + 1/4 + 0) / 3, and one of three on top.
        let quality = Quality::of(&[Some(0), Some(3), None]);
        assert!((quality.mrr10 - 1.25 / 3.0).abs() < 1e-12 && (quality.recall1 - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(Quality::of(&[Some(10)]).mrr10, 0.0, "beyond the tenth place");
    }
}
