//! Tasks whose inputs say what the language model answered before: what a second pass reads (textual recursion).
//!
//! Levine et al. 2022, arXiv:2204.10019: answers are sampled under one prompt and put before the same frozen model as text,
//! under a second prompt that learned to make more of them. Examples to train on get candidates in the same way as those to
//! measure on.

use std::path::Path;

use serde_json::{Value, json};

use crate::durable;
use crate::error::Result;
use crate::eval::task_set::{TaskExample, TaskSet, draw, input_tokens};
use crate::eval::tasks::Prompts;
use crate::progress::{Progress, check_interrupt};
use crate::read::decode::{Decoding, Generation};
use crate::read::lm::{FrozenLm, Prompt};

/// Examples that are answered at once: a step of decoding reads all weights, for one row as for many.
const TOGETHER: usize = 8;

/// How candidates are sampled.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// Answers to an input; equal ones are named once.
    pub samples: usize,
    /// Temperature; the first answer is the greedy one.
    pub temperature: f32,
    /// Examples of each task and kind of split, at most.
    pub per_task: usize,
    /// Longest input in tokens.
    pub window: usize,
    /// Longest answer in tokens.
    pub longest: usize,
    /// Decides which examples, and every sample.
    pub seed: u64,
}

/// An input behind its candidates, as the second pass reads it.
pub fn with_candidates(input: &str, candidates: &[String]) -> String {
    format!("Candidates: {}\n{input}", candidates.join("; "))
}

/// Write the tasks with candidates to `path`, whole or not at all; how many examples there are.
///
/// # Errors
/// What the language model and the file say.
pub fn write(
    set: &TaskSet,
    lm: &mut FrozenLm,
    prompts: &mut Prompts,
    sampling: Sampling,
    path: &Path,
    progress: &dyn Progress,
) -> Result<usize> {
    let mut lines = String::new();
    let splits = |task: &str| set.tasks.get(task).map_or([&[][..], &[]], |t| [t.train.as_slice(), t.test.as_slice()]);
    let size = |task: &String| splits(task).map(|split| split.len().min(sampling.per_task)).iter().sum::<usize>();
    let total: usize = set.tasks.keys().map(size).sum();
    progress.start("sampling", Some(total as u64), "examples");
    for (name, task) in &set.tasks {
        for (split, examples) in ["train", "test"].into_iter().zip(splits(name)) {
            for examples in draw(examples, sampling.per_task, sampling.seed).chunks(TOGETHER) {
                check_interrupt(|| "nothing was written".to_owned())?;
                for (example, candidates) in examples.iter().zip(sample(name, examples, lm, prompts, sampling)?) {
                    let mut line = of_example(example, &candidates);
                    (line["task"], line["cluster"], line["split"]) = (json!(name), json!(task.cluster), json!(split));
                    lines += &format!("{line}\n");
                }
                progress.advance(examples.len() as u64);
            }
        }
    }
    progress.finish();
    durable::replace(path, lines.as_bytes())?;
    Ok(total)
}

/// What a line says of an example. Both passes know it by the same names, or their runs could not be compared.
fn of_example(example: &TaskExample, candidates: &[String]) -> Value {
    let TaskExample { id, question, input, target, answers, choices, .. } = example;
    let mut line = json!({"id": id, "question": question, "input": with_candidates(input, candidates), "target": target,
        "answers": answers});
    if !choices.is_empty() {
        line["choices"] = json!(choices);
    }
    line
}

/// The greedy answer to each input and further sampled ones, each once, the greedy one first.
fn sample(
    task: &str,
    examples: &[&TaskExample],
    lm: &mut FrozenLm,
    prompts: &mut Prompts,
    sampling: Sampling,
) -> Result<Vec<Vec<String>>> {
    let mut asked = Vec::with_capacity(examples.len());
    for example in examples {
        let prefix = prompts.before(task, &example.input, lm)?;
        let (tail, _) = input_tokens(lm.tokenizer(), &example.input, sampling.window)?;
        asked.push(Prompt { prefix, passages: Vec::new(), tail });
    }
    let greedy = Decoding { max_new_tokens: sampling.longest, ..Decoding::default() };
    // Those that are written together draw from streams of their own; others need another seed, or would make the same choices.
    let seed = sampling.seed.wrapping_mul(0x9e37_79b9).wrapping_add(examples.first().map_or(0, |e| e.line));
    let sampled = Decoding { temperature: sampling.temperature, seed, ..greedy.clone() };
    let further = sampling.samples.saturating_sub(1);
    let many: Vec<Prompt> = asked.iter().flat_map(|prompt| std::iter::repeat_n(prompt.clone(), further)).collect();
    let first = lm.generate(&asked, &greedy, None, &mut |_, _| {})?.0;
    let mut others = lm.generate(&many, &sampled, None, &mut |_, _| {})?.0.into_iter();
    let of_one = |first: Generation| {
        let mut candidates: Vec<String> = Vec::new();
        for answer in std::iter::once(first).chain(others.by_ref().take(further)) {
            // What separates candidates cannot be in one.
            let text = answer.text.replace(';', ",").trim().to_owned();
            if !text.is_empty() && !candidates.contains(&text) {
                candidates.push(text);
            }
        }
        candidates
    };
    Ok(first.into_iter().map(of_one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_stand_before_the_input() {
        let candidates = ["Paris".to_owned(), "Rome".to_owned()];
        assert_eq!(
            with_candidates("Question: where?\nAnswer:", &candidates),
            "Candidates: Paris; Rome\nQuestion: where?\nAnswer:"
        );
    }
}
