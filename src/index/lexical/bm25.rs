//! BM25 over tantivy's inverted lists, with any k1 and b, exact over any number of segments.
//!
//! tantivy's own search has k1 = 1.2 and b = 0.75, and its bounds are made with them and with the mean length of one segment.
//! Here words are added up one after the other, passage by passage of a window that stays in the cache; common words
//! are looked up only where they can matter. On 223,320 paragraphs and the questions of NQ that is faster as well
//! (benches/README.md).

use serde::{Deserialize, Serialize};
use tantivy::fieldnorm::FieldNormReader;
use tantivy::postings::BlockSegmentPostings;
use tantivy::schema::IndexRecordOption;
use tantivy::{DocId, Searcher, SegmentReader, Term};

use crate::error::{Error, Result};
use crate::types::{Hit, PassageId, better_first, sort_hits};

/// The two numbers of BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bm25 {
    /// How much a word that is there again counts: 0 as nothing, high values nearly as the first.
    pub k1: f32,
    /// How much a passage's length is held against it, 0 to 1.
    pub b: f32,
}

impl Default for Bm25 {
    /// tantivy's.
    fn default() -> Self {
        Self { k1: 1.2, b: 0.75 }
    }
}

impl Bm25 {
    /// Where words stand beside vectors. What the question is about is the vector's part, so that a word is there counts nearly
    /// alone, not how often (benches/fusion.rs, benches/README.md).
    pub const BESIDE_VECTORS: Self = Self { k1: 0.4, b: 0.75 };

    /// Numbers that make sense.
    ///
    /// # Errors
    /// [`Error::Request`] for others.
    pub fn new(k1: f32, b: f32) -> Result<Self> {
        if k1.is_finite() && k1 >= 0.0 && (0.0..=1.0).contains(&b) {
            return Ok(Self { k1, b });
        }
        Err(Error::request("BM25's k1 is 0 or more and its b between 0 and 1", "1.2 and 0.75 are the usual ones"))
    }

    /// The weight of a word that `found` of `all` passages have: ln(1 + (N - n + 0.5) / (n + 0.5)).
    fn idf(found: u64, all: u64) -> f32 {
        let rest = all.saturating_sub(found) as f32;
        (1.0 + (rest + 0.5) / (found as f32 + 0.5)).ln()
    }

    /// What length adds to the denominator, by the byte that stands for it: k1 (1 - b + b length / mean).
    fn lengths(self, mean: f32) -> [f32; 256] {
        std::array::from_fn(|id| {
            let length = FieldNormReader::id_to_fieldnorm(id as u8) as f32;
            self.k1 * (1.0 - self.b + self.b * length / mean.max(f32::MIN_POSITIVE))
        })
    }
}

/// Passages whose scores are summed up at a time: as many 32-bit floats as the second-level cache holds with ease. Few in unit
/// tests, which so see many windows.
const WINDOW: usize = if cfg!(test) { 64 } else { 1 << 14 };

/// A look at one passage of a word's list costs about what adding up so many of it in their order does.
const SEEK: usize = 8;

/// How often a word is there, up to which its part of a score is looked up.
const TABLE: usize = 16;

/// A word of a question.
#[derive(Debug)]
pub(super) struct Asked {
    pub term: Term,
    /// How often the question has it.
    pub count: usize,
    /// How many passages have it.
    pub frequency: u64,
}

/// The words of a question, weighted, the rarest first.
#[derive(Debug)]
pub(super) struct Words {
    words: Vec<(Term, f32)>,
    /// tf / (tf + k1 (1 - b + b length / mean)) by tf - 1 and the byte that stands for the length.
    parts: Vec<[f32; 256]>,
    /// What length adds to the denominator, by the same byte.
    lengths: [f32; 256],
}

/// A word's passages in one segment.
struct Cursor {
    postings: BlockSegmentPostings,
    /// Place in the block at hand.
    at: usize,
    /// Most that the word can add: idf (k1 + 1), as often as it is asked for.
    weight: f32,
}

/// Memory that searches share instead of allocating it each time.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    sums: Vec<f32>,
    candidates: Vec<u32>,
}

impl Words {
    /// These words, each as often as it is asked for.
    pub fn new(searcher: &Searcher, asked: Vec<Asked>, bm25: Bm25) -> tantivy::Result<Self> {
        let all: u64 = searcher.segment_readers().iter().map(|segment| u64::from(segment.max_doc())).sum();
        let mut tokens = 0;
        if let Some(first) = asked.first() {
            for segment in searcher.segment_readers() {
                tokens += segment.inverted_index(first.term.field())?.total_num_tokens();
            }
        }
        let lengths = bm25.lengths(tokens as f32 / all.max(1) as f32);
        let parts = (1..=TABLE).map(|often| lengths.map(|length| part(often as f32, length))).collect();
        let weight = |asked: &Asked| Bm25::idf(asked.frequency, all) * (1.0 + bm25.k1) * asked.count as f32;
        let mut words: Vec<(Term, f32)> = asked
            .into_iter()
            .map(|asked| {
                let weight = weight(&asked);
                (asked.term, weight)
            })
            .collect();
        words.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Ok(Self { words, parts, lengths })
    }

    /// Put the passages of a segment that have some of the words, and that `accept` takes, to the `best`. Segments are gone
    /// through in the order of rows; `first` is this one's first.
    ///
    /// The sums are exact, and so is what is left out (MaxScore: Turtle and Flood, "Query evaluation: strategies and
    /// optimizations", 1995). Words are split: those at the end, which together cannot lift a passage above the worst of
    /// the best, are looked up only for passages that a word before them has.
    pub fn search(
        &self,
        segment: &SegmentReader,
        first: u32,
        accept: &dyn Fn(PassageId) -> bool,
        best: &mut Best,
        scratch: &mut Scratch,
    ) -> tantivy::Result<()> {
        let Some((term, _)) = self.words.first() else { return Ok(()) };
        let norms = segment.get_fieldnorms_reader(term.field())?;
        let mut cursors = self.cursors(segment)?;
        // Most that the words from each on can add.
        let mut rest: Vec<f32> = vec![0.0; cursors.len() + 1];
        for at in (0..cursors.len()).rev() {
            rest[at] = rest[at + 1] + cursors[at].weight;
        }
        let rows = segment.max_doc();
        scratch.sums.resize(WINDOW, 0.0);
        loop {
            let leading = rest.iter().take(cursors.len()).take_while(|&&rest| rest * SLACK > best.threshold()).count();
            let (leaders, others) = cursors.split_at_mut(leading);
            let Some(next) = leaders.iter().filter_map(Cursor::doc).min() else { return Ok(()) };
            let start = next - next % WINDOW as u32;
            let end = rows.min(start.saturating_add(WINDOW as u32));
            let sums = &mut scratch.sums[..(end - start) as usize];
            for word in leaders.iter_mut() {
                word.add(start, end, sums, &norms, self);
            }
            // Passages that the other words could lift above the threshold; they are worth a list only if it is short beside
            // the lists of those words.
            let there = |word: &Cursor| word.postings.doc_freq() as usize * WINDOW / rows.max(1) as usize;
            let most = others.iter().map(there).max().unwrap_or(0) / SEEK;
            let (least, candidates) = (best.threshold() - rest[leading] * SLACK, &mut scratch.candidates);
            candidates.clear();
            if most > 0 {
                each_above(sums, least, |at, _| {
                    candidates.push(at);
                    if candidates.len() > most { f32::INFINITY } else { least }
                });
            }
            let threshold = best.threshold();
            let mut put = |at: u32, sum: f32| {
                let row = PassageId(first + start + at);
                if sum > best.threshold() && accept(row) {
                    best.put(sum, row);
                }
                best.threshold()
            };
            if candidates.len() > most || most == 0 {
                for word in others.iter_mut() {
                    word.add(start, end, sums, &norms, self);
                }
                each_above(sums, threshold, &mut put);
            } else {
                for (word, rest) in others.iter_mut().zip(&rest[leading + 1..]) {
                    if candidates.len() * SEEK < there(word) {
                        word.look_up(start, candidates, sums, &norms, self);
                    } else {
                        word.add(start, end, sums, &norms, self);
                    }
                    let least = threshold - rest * SLACK;
                    candidates.retain(|&at| sums[at as usize] > least);
                }
                for &at in candidates.iter() {
                    put(at, sums[at as usize]);
                }
            }
            sums.fill(0.0);
        }
    }

    /// Scores of these passages of a segment, which are in order: what [`Self::search`] gives them, 0 for those without
    /// any of the words.
    pub fn scores(&self, segment: &SegmentReader, passages: &[DocId]) -> tantivy::Result<Vec<f32>> {
        let mut sums = vec![0.0; passages.len()];
        let Some((term, _)) = self.words.first() else { return Ok(sums) };
        let norms = segment.get_fieldnorms_reader(term.field())?;
        for mut word in self.cursors(segment)? {
            for (sum, &passage) in sums.iter_mut().zip(passages) {
                if let Some(often) = word.often(passage) {
                    *sum += word.weight * self.part(often, norms.fieldnorm_id(passage));
                }
            }
        }
        Ok(sums)
    }

    /// The lists of those words that a segment has, at their beginnings.
    fn cursors(&self, segment: &SegmentReader) -> tantivy::Result<Vec<Cursor>> {
        let mut cursors = Vec::with_capacity(self.words.len());
        let Some((term, _)) = self.words.first() else { return Ok(cursors) };
        let index = segment.inverted_index(term.field())?;
        for (term, weight) in &self.words {
            if let Some(postings) = index.read_block_postings(term, IndexRecordOption::WithFreqs)? {
                cursors.push(Cursor { postings, at: 0, weight: *weight });
            }
        }
        Ok(cursors)
    }

    /// A word's part of the score of a passage that has it so often.
    #[inline]
    fn part(&self, often: u32, length: u8) -> f32 {
        match self.parts.get((often as usize).wrapping_sub(1)) {
            Some(parts) => parts[usize::from(length)],
            None => part(often as f32, self.lengths[usize::from(length)]),
        }
    }
}

/// Give the places whose sums are above `least` and above 0 to `take`, which says what they must be above from then on.
fn each_above(sums: &[f32], least: f32, mut take: impl FnMut(u32, f32) -> f32) {
    let least = least.max(0.0);
    let (blocks, rest) = sums.as_chunks::<16>();
    let mut highest = least;
    let mut look = |first: usize, sums: &[f32], mut above: u32| {
        // One bit a place: most places are not above, and branches on each would be guessed wrong often.
        while above != 0 {
            let at = above.trailing_zeros() as usize;
            above &= above - 1;
            if sums[at] > highest {
                highest = take((first + at) as u32, sums[at]).max(0.0);
            }
        }
        highest
    };
    let mut now = least;
    for (number, block) in blocks.iter().enumerate() {
        let above = block.iter().enumerate().fold(0, |bits, (at, &sum)| bits | u32::from(sum > now) << at);
        if above != 0 {
            now = look(number * 16, block, above);
        }
    }
    look(sums.len() - rest.len(), rest, (1 << rest.len()) - 1);
}

/// A bound is a sum of floats as a score is, but not in the same order.
const SLACK: f32 = 1.0 + 1e-5;

fn part(often: f32, length: f32) -> f32 {
    often / (often + length)
}

impl Cursor {
    /// The passage it stands at.
    fn doc(&self) -> Option<DocId> {
        self.postings.docs().get(self.at).copied()
    }

    /// Add the word to the sums of all passages from `start` to before `end`.
    fn add(&mut self, start: DocId, end: DocId, sums: &mut [f32], norms: &FieldNormReader, words: &Words) {
        if self.doc().is_some_and(|doc| doc < start) {
            self.at = self.postings.seek(start);
        }
        loop {
            let (docs, often) = (self.postings.docs(), self.postings.freqs());
            let (docs, often) = (docs.get(self.at..).unwrap_or_default(), often.get(self.at..).unwrap_or_default());
            if docs.is_empty() {
                return;
            }
            let here = docs.partition_point(|&doc| doc < end);
            for (&doc, &often) in docs[..here].iter().zip(often) {
                sums[(doc - start) as usize] += self.weight * words.part(often, norms.fieldnorm_id(doc));
            }
            if here < docs.len() {
                self.at += here;
                return;
            }
            self.postings.advance();
            self.at = 0;
        }
    }

    /// Add the word to the sums of these places behind `start` alone.
    fn look_up(&mut self, start: DocId, places: &[u32], sums: &mut [f32], norms: &FieldNormReader, words: &Words) {
        for &place in places {
            let wanted = start + place;
            if let Some(often) = self.often(wanted) {
                sums[place as usize] += self.weight * words.part(often, norms.fieldnorm_id(wanted));
            }
        }
    }

    /// How often the word is in a passage that is not before those asked for earlier, if it is.
    fn often(&mut self, wanted: DocId) -> Option<u32> {
        if self.doc()? < wanted {
            self.at = self.postings.seek(wanted);
        }
        if self.doc()? != wanted {
            return None;
        }
        self.postings.freqs().get(self.at).copied()
    }
}

/// The best passages so far: those that came first where scores are equal.
pub(super) struct Best {
    depth: usize,
    found: Vec<Hit>,
    threshold: f32,
}

impl Best {
    /// Room for the best `depth`, at least one.
    pub fn new(depth: usize) -> Self {
        Self { depth: depth.max(1), found: Vec::new(), threshold: 0.0 }
    }

    /// What a score must be above to be among them.
    fn threshold(&self) -> f32 {
        self.threshold
    }

    fn put(&mut self, score: f32, passage: PassageId) {
        self.found.push(Hit { passage, score });
        if self.found.len() >= self.depth.saturating_mul(2).saturating_add(64) {
            self.cut();
        }
    }

    /// Forget what is not among the best.
    fn cut(&mut self) {
        if self.found.len() > self.depth {
            self.found.select_nth_unstable_by(self.depth - 1, better_first);
            self.found.truncate(self.depth);
        }
        if self.found.len() == self.depth {
            self.threshold = self.found.iter().map(|hit| hit.score).fold(f32::INFINITY, f32::min);
        }
    }

    /// They, best first.
    pub fn into_hits(mut self) -> Vec<Hit> {
        self.cut();
        sort_hits(&mut self.found);
        self.found
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use tantivy::indexer::NoMergePolicy;
    use tantivy::schema::{Field, Schema, TextFieldIndexing, TextOptions};
    use tantivy::{IndexReader, ReloadPolicy, TantivyDocument};

    use super::*;

    #[test]
    fn numbers_without_sense_are_refused() {
        for (k1, b) in [(-0.1, 0.5), (f32::NAN, 0.5), (f32::INFINITY, 0.5), (1.0, -0.1), (1.0, 1.1), (1.0, f32::NAN)] {
            assert!(Bm25::new(k1, b).is_err(), "{k1} {b}");
        }
        assert_eq!(Bm25::new(0.9, 0.4).unwrap(), Bm25 { k1: 0.9, b: 0.4 });
    }

    /// Documents of words from a small vocabulary, the first of which are common, over several segments.
    fn corpus(random: &mut ChaCha8Rng) -> (Vec<Vec<usize>>, tantivy::Index, Field) {
        let documents: Vec<Vec<usize>> = (0..700)
            .map(|_| {
                (0..random.random_range(1..39)).map(|_| (40.0 * random.random::<f64>().powi(4)) as usize).collect()
            })
            .collect();
        let mut schema = Schema::builder();
        let indexing = TextFieldIndexing::default().set_tokenizer("raw").set_index_option(IndexRecordOption::WithFreqs);
        let field = schema.add_text_field("body", TextOptions::default().set_indexing_options(indexing));
        let index = tantivy::Index::create_in_ram(schema.build());
        let mut writer = index.writer_with_num_threads(1, 20_000_000).unwrap();
        writer.set_merge_policy(Box::new(NoMergePolicy));
        for (n, words) in documents.iter().enumerate() {
            let mut document = TantivyDocument::new();
            words.iter().for_each(|word| document.add_text(field, format!("w{word}")));
            writer.add_document(document).unwrap();
            if [300, 600].contains(&n) {
                writer.commit().unwrap();
            }
        }
        writer.commit().unwrap();
        (documents, index, field)
    }

    /// Every passage scored by the formula, word by word in the order that is documented.
    fn plain(documents: &[Vec<usize>], asked: &[(usize, usize)], bm25: Bm25) -> Vec<Hit> {
        let mean = documents.iter().map(Vec::len).sum::<usize>() as f32 / documents.len() as f32;
        let frequency = |word: usize| documents.iter().filter(|words| words.contains(&word)).count() as u64;
        let mut weighted: Vec<(f32, String, usize)> = asked
            .iter()
            .map(|&(word, count)| {
                let idf = Bm25::idf(frequency(word), documents.len() as u64);
                (idf * (1.0 + bm25.k1) * count as f32, format!("w{word}"), word)
            })
            .collect();
        weighted.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let score = |words: &Vec<usize>| {
            let length = bm25.k1 * (1.0 - bm25.b + bm25.b * words.len() as f32 / mean);
            weighted.iter().fold(0.0, |sum, (weight, _, word)| match words.iter().filter(|w| *w == word).count() {
                0 => sum,
                often => sum + weight * part(often as f32, length),
            })
        };
        let mut hits: Vec<Hit> = documents
            .iter()
            .enumerate()
            .map(|(n, words)| Hit { passage: PassageId(n as u32), score: score(words) })
            .filter(|hit| hit.score > 0.0)
            .collect();
        sort_hits(&mut hits);
        hits
    }

    #[test]
    fn nothing_is_passed_over_that_scoring_everything_finds() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let (documents, index, field) = corpus(&mut random);
        let reader: IndexReader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into().unwrap();
        let searcher = reader.searcher();
        let mut segments: Vec<&SegmentReader> = searcher.segment_readers().iter().collect();
        // The longest came first; the others are told by their size, too.
        segments.sort_by_key(|segment| [301, 300, 99].iter().position(|&n| n == segment.max_doc()));
        assert_eq!(segments.len(), 3);
        let mut scratch = Scratch::default();
        for _ in 0..300 {
            let bm25 = match random.random_range(0..3) {
                0 => Bm25::default(),
                _ => Bm25::new(random.random_range(0.0..3.0), random.random()).unwrap(),
            };
            let mut asked: Vec<(usize, usize)> = (0..random.random_range(1..7))
                .map(|_| (random.random_range(0..40), random.random_range(1..3)))
                .collect();
            asked.sort_unstable();
            asked.dedup_by_key(|(word, _)| *word);
            let all = plain(&documents, &asked, bm25);
            let modulus = random.random_range(1..4);
            let accept = |row: PassageId| row.0.is_multiple_of(modulus);
            let term = |&(word, count): &(usize, usize)| {
                let term = Term::from_field_text(field, &format!("w{word}"));
                Asked { frequency: searcher.doc_freq(&term).unwrap(), term, count }
            };
            let words = Words::new(&searcher, asked.iter().map(term).collect(), bm25).unwrap();
            for depth in [1, 3, 20, 700] {
                let (mut best, mut first) = (Best::new(depth), 0);
                for segment in &segments {
                    words.search(segment, first, &accept, &mut best, &mut scratch).unwrap();
                    first += segment.max_doc();
                }
                let expected: Vec<Hit> = all.iter().copied().filter(|hit| accept(hit.passage)).take(depth).collect();
                assert_eq!(best.into_hits(), expected, "{asked:?} {bm25:?} {depth}");
            }
            // Single passages are scored as all are.
            let (mut scored, mut first) = (Vec::new(), 0);
            for segment in &segments {
                let here: Vec<u32> = (0..segment.max_doc()).filter(|at| (first + at).is_multiple_of(modulus)).collect();
                let scores = words.scores(segment, &here).unwrap();
                let hit = |(at, score): (&u32, f32)| Hit { passage: PassageId(first + at), score };
                scored.extend(here.iter().zip(scores).map(hit).filter(|hit| hit.score > 0.0));
                first += segment.max_doc();
            }
            sort_hits(&mut scored);
            let expected: Vec<Hit> = all.iter().copied().filter(|hit| accept(hit.passage)).collect();
            assert_eq!(scored, expected, "{asked:?} {bm25:?}");
        }
    }

    #[test]
    fn the_formula_by_hand() {
        // 1 of 3 passages has the word: ln(1 + 2.5 / 1.5).
        assert!((Bm25::idf(1, 3) - 0.980_829_3).abs() < 1e-6);
        // A passage of the mean length: k1; of twice the mean: k1 (0.25 + 1.5).
        let lengths = Bm25::default().lengths(10.0);
        let at = |length: u32| lengths[usize::from(FieldNormReader::fieldnorm_to_id(length))];
        assert!((at(10) - 1.2).abs() < 1e-6 && (at(20) - 2.1).abs() < 1e-6);
    }
}
