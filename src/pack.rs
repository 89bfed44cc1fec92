//! Filling the language model's window with the best passages, token by token.
//!
//! Passages are taken in the order given. One that fits is taken whole; the first that does not is cut at
//! the last sentence end that fits; what follows is left out. The report says what became of each. The
//! question is never touched: the budget is what the window has left for passages beside it.

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use crate::error::Result;
use crate::types::{Hit, PackedPassage, Passage};

/// A passage in a window with its tokens.
#[derive(Debug, Clone)]
pub struct Packed {
    /// What it is and what of it is in the window.
    pub passage: PackedPassage,
    /// Its tokens, exactly as the model gets them.
    pub ids: Vec<u32>,
}

/// One window's passages.
pub type Window = Vec<Packed>;

/// A passage that is not, or not whole, in the reader's windows.
#[derive(Debug, Clone, Serialize)]
pub struct LeftOut {
    /// Its corpus id.
    pub key: String,
    /// Tokens of it that did not get in.
    pub tokens: usize,
    /// Why.
    pub reason: String,
}

/// What packing did.
#[derive(Debug, Clone, Default)]
pub struct Packing {
    /// The windows, each within the budget.
    pub windows: Vec<Window>,
    /// Passages that are not in, or not in whole, best first.
    pub left_out: Vec<LeftOut>,
}

impl Packing {
    /// Tokens of passages in all windows.
    pub fn tokens(&self) -> usize {
        self.windows.iter().flatten().map(|p| p.ids.len()).sum()
    }
}

/// Tokens that passages may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// In one window: what the question, the prompt and the answer leave.
    pub window: usize,
    /// In all windows together; `None` = as many as there are windows for.
    pub total: Option<usize>,
}

/// How passages are dealt to windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dealing {
    /// All into one window, until it is full.
    Together,
    /// So many passages a window, and a new window when they do not fit; at least 1.
    Apart(usize),
}

/// Pack `candidates`, best first, into windows.
///
/// `tokens_of` gives the tokens of a passage block for a title and a text; it is asked again for a cut
/// text, so what is counted is what is sent.
pub fn pack(
    candidates: &[(Hit, Passage)],
    dealing: Dealing,
    budget: Budget,
    tokens_of: &mut dyn FnMut(&str, &str) -> Result<Vec<u32>>,
) -> Result<Packing> {
    let mut packing = Packing::default();
    let mut left = budget.total.unwrap_or(usize::MAX);
    let mut room = budget.window.min(left);
    for (hit, passage) in candidates {
        // Where the budget for all windows ended is said once; what is beyond it was not offered.
        if left == 0 && !packing.left_out.is_empty() {
            break;
        }
        let whole = tokens_of(&passage.title, &passage.text)?;
        let opens = match (dealing, packing.windows.last()) {
            (_, None) => true,
            (Dealing::Together, _) => false,
            (Dealing::Apart(most), Some(window)) => window.len() >= most || whole.len() > room,
        };
        if opens && dealing != Dealing::Together {
            room = budget.window.min(left);
        }
        let full = if room == left { "the budget" } else { "the window" };
        let (text, ids) = if whole.len() <= room {
            (passage.text.as_str(), whole)
        } else {
            let cut = cut_at_sentence(passage, room, tokens_of)?;
            let kept = cut.as_ref().map_or(0, |(_, ids)| ids.len());
            packing.left_out.push(LeftOut {
                key: passage.key.clone(),
                tokens: whole.len() - kept,
                reason: match (&cut, room) {
                    (_, 0) => format!("{full} is full"),
                    (None, _) => format!("its first sentence does not fit the {room} tokens left"),
                    (Some(_), _) => format!("cut at a sentence end to fit the {room} tokens left"),
                },
            });
            // Worse passages could still squeeze into what is left, but a window is for the best ones:
            // filling it up with scraps was not worth the noise to the reader.
            left = if room == left { 0 } else { left };
            room = 0;
            match cut {
                Some(cut) => cut,
                None => continue,
            }
        };
        room = room.saturating_sub(ids.len());
        left = left.saturating_sub(ids.len());
        let packed = Packed {
            passage: PackedPassage {
                passage: hit.passage,
                key: passage.key.clone(),
                title: passage.title.clone(),
                text: text.to_owned(),
                score: hit.score,
                tokens: ids.len(),
                page: passage.page(),
            },
            ids,
        };
        match packing.windows.last_mut().filter(|_| !opens) {
            Some(window) => window.push(packed),
            None => packing.windows.push(vec![packed]),
        }
    }
    Ok(packing)
}

/// The longest beginning of a passage that ends with a sentence and fits `room` tokens.
fn cut_at_sentence<'a>(
    passage: &'a Passage,
    room: usize,
    tokens_of: &mut dyn FnMut(&str, &str) -> Result<Vec<u32>>,
) -> Result<Option<(&'a str, Vec<u32>)>> {
    let mut ends: Vec<usize> =
        passage.text.split_sentence_bound_indices().map(|(at, s)| at + s.trim_end().len()).collect();
    ends.dedup();
    ends.retain(|&end| end > 0 && end < passage.text.trim_end().len());
    // Token counts grow with the text (a longer text never has fewer tokens by more than a merge at the
    // seam), so the search is binary and the result is checked by its own count.
    let mut best = None;
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = (low + high) / 2;
        let text = passage.text.get(..ends[middle]).unwrap_or_default();
        let ids = tokens_of(&passage.title, text)?;
        if ids.len() <= room {
            best = Some((text, ids));
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PassageId, SourceSpan};
    use proptest::prelude::*;

    fn candidate(i: u32, text: &str) -> (Hit, Passage) {
        let hit = Hit { passage: PassageId(i), score: -(i as f32) };
        let passage = Passage {
            key: format!("p{i}"),
            title: "T".into(),
            text: text.into(),
            source: SourceSpan::default(),
            metadata: serde_json::Map::new(),
        };
        (hit, passage)
    }

    /// A toy tokenizer: a token a word, two more for the block.
    fn words(title: &str, text: &str) -> Result<Vec<u32>> {
        Ok(vec![1; 2 + title.split_whitespace().count() + text.split_whitespace().count()])
    }

    fn window(tokens: usize) -> Budget {
        Budget { window: tokens, total: None }
    }

    #[test]
    fn whole_then_cut_then_left_out() {
        let candidates =
            [candidate(0, "One two three."), candidate(1, "Four five. Six seven eight."), candidate(2, "Nine.")];
        let packing = pack(&candidates, Dealing::Together, window(11), &mut words).unwrap();
        let texts: Vec<&str> = packing.windows[0].iter().map(|p| p.passage.text.as_str()).collect();
        assert_eq!(texts, ["One two three.", "Four five."]);
        assert_eq!(packing.tokens(), 11);
        let left: Vec<(&str, usize)> = packing.left_out.iter().map(|l| (l.key.as_str(), l.tokens)).collect();
        assert_eq!(left, [("p1", 3), ("p2", 4)]);
        assert_eq!(packing.left_out[1].reason, "the window is full");
    }

    #[test]
    fn apart_gives_each_its_own_window() {
        let candidates = [candidate(0, "One two three."), candidate(1, "Four five. Six seven eight.")];
        let packing = pack(&candidates, Dealing::Apart(1), window(6), &mut words).unwrap();
        assert_eq!(packing.windows.len(), 2);
        assert_eq!(packing.windows[1][0].passage.text, "Four five.");
    }

    #[test]
    fn several_to_a_window_open_a_new_one_when_they_do_not_fit() {
        let candidates: Vec<_> = ["One two three.", "Four five.", "Six.", "Seven eight nine ten.", "Eleven."]
            .into_iter()
            .zip(0..)
            .map(|(t, i)| candidate(i, t))
            .collect();
        let packing = pack(&candidates, Dealing::Apart(2), window(12), &mut words).unwrap();
        let keys: Vec<Vec<&str>> =
            packing.windows.iter().map(|w| w.iter().map(|p| p.passage.key.as_str()).collect()).collect();
        // 6 + 5 tokens; 4 + 7; 4.
        assert_eq!(keys, [vec!["p0", "p1"], vec!["p2", "p3"], vec!["p4"]]);
        let packing = pack(&candidates, Dealing::Apart(2), window(10), &mut words).unwrap();
        let counts: Vec<usize> = packing.windows.iter().map(Vec::len).collect();
        // 6 alone; 5 + 4; 7 alone; 4.
        assert_eq!((counts, packing.left_out.len()), (vec![1, 2, 1, 1], 0));
    }

    #[test]
    fn a_budget_for_all_windows_ends_with_a_cut() {
        let candidates: Vec<_> = ["One two three.", "Four five. Six.", "Seven.", "Eight."]
            .into_iter()
            .zip(0..)
            .map(|(t, i)| candidate(i, t))
            .collect();
        let budget = Budget { window: 10, total: Some(11) };
        let packing = pack(&candidates, Dealing::Apart(1), budget, &mut words).unwrap();
        let texts: Vec<&str> = packing.windows.iter().map(|w| w[0].passage.text.as_str()).collect();
        assert_eq!((texts, packing.tokens()), (vec!["One two three.", "Four five."], 11));
        let said: Vec<&str> = packing.left_out.iter().map(|l| l.reason.as_str()).collect();
        assert_eq!(said, ["cut at a sentence end to fit the 5 tokens left"]);
        let packing = pack(&candidates, Dealing::Apart(1), Budget { total: Some(6), ..budget }, &mut words).unwrap();
        assert_eq!((packing.windows.len(), packing.left_out[0].reason.as_str()), (1, "the budget is full"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_window_never_exceeds_its_budget_and_nothing_is_lost_unsaid(
            texts in prop::collection::vec("([a-z]{1,4}[ .]{1,2}){0,20}", 0..8),
            budget in 0usize..60,
            total in prop::option::of(0usize..90),
            per_window in 0usize..4,
        ) {
            let candidates: Vec<_> = (0u32..).zip(&texts).map(|(i, t)| candidate(i, t)).collect();
            let dealing = if per_window > 0 { Dealing::Apart(per_window) } else { Dealing::Together };
            let packing = pack(&candidates, dealing, Budget { window: budget, total }, &mut words).unwrap();
            prop_assert!(packing.tokens() <= total.unwrap_or(usize::MAX));
            for window in &packing.windows {
                prop_assert!(per_window == 0 || window.len() <= per_window);
                let recount: usize = window.iter().map(|p| words(&p.passage.title, &p.passage.text).unwrap().len()).sum();
                prop_assert!(recount <= budget);
                prop_assert_eq!(recount, window.iter().map(|p| p.passage.tokens).sum::<usize>());
            }
            let kept: Vec<&PackedPassage> = packing.windows.iter().flatten().map(|p| &p.passage).collect();
            for (_, passage) in &candidates {
                let in_window = kept.iter().find(|p| p.key == passage.key);
                let said = packing.left_out.iter().find(|l| l.key == passage.key);
                match (in_window, said) {
                    (Some(p), None) => prop_assert_eq!(&p.text, &passage.text),
                    (Some(p), Some(_)) => prop_assert!(passage.text.starts_with(&p.text) && p.text.len() < passage.text.len()),
                    (None, None) => prop_assert!(total.is_some() && !packing.left_out.is_empty()),
                    (None, Some(_)) => {}
                }
            }
        }
    }
}
