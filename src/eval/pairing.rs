//! Two runs over the same questions, brought together question by question.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result};

/// Each line of run `a` with that of run `b` about the same question; `question` gives a line's id and wording.
///
/// # Errors
/// [`Error::Request`] when the runs are not over the same questions, naming the first that differs. Ids alone do not tell: files
/// without any have the numbers of their lines.
pub(super) fn pair<'l, L>(
    a: (&Path, &'l [L]),
    b: (&Path, &'l [L]),
    question: fn(&L) -> (&str, &str),
) -> Result<Vec<(&'l L, &'l L)>> {
    let by_id =
        |lines: &'l [L]| -> HashMap<&'l str, &'l L> { lines.iter().map(|line| (question(line).0, line)).collect() };
    let (in_a, in_b) = (by_id(a.1), by_id(b.1));
    let mut pairs = Vec::with_capacity(a.1.len());
    for line in a.1 {
        let (id, wording) = question(line);
        match in_b.get(id) {
            Some(other) if question(other).1 == wording => pairs.push((line, *other)),
            Some(_) => return Err(different(format!("question {id} is worded differently in them"))),
            None => return Err(different(format!("question {id} is not in {}", b.0.display()))),
        }
    }
    if let Some((id, _)) = b.1.iter().map(question).find(|(id, _)| !in_a.contains_key(id)) {
        return Err(different(format!("question {id} is not in {}", a.0.display())));
    }
    Ok(pairs)
}

fn different(problem: String) -> Error {
    let problem = format!("the runs are not over the same questions: {problem}");
    Error::request(problem, "compare runs of the same --questions and --limit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_over_other_questions_are_not_paired() {
        type Line = (&'static str, &'static str);
        let paired = |a: &[Line], b: &[Line]| {
            let pairs = pair((Path::new("a"), a), (Path::new("b"), b), |line| *line);
            pairs.map(|pairs| pairs.len()).map_err(|error| error.to_string())
        };
        let refused = |problem: &str| Err(format!("the runs are not over the same questions: question {problem}"));
        assert_eq!(paired(&[("1", "why"), ("2", "how")], &[("2", "how"), ("1", "why")]), Ok(2));
        assert_eq!(paired(&[("1", "why")], &[("1", "who")]), refused("1 is worded differently in them"));
        assert_eq!(paired(&[("1", "why"), ("2", "how")], &[("1", "why")]), refused("2 is not in b"));
        assert_eq!(paired(&[("1", "why")], &[("1", "why"), ("2", "how")]), refused("2 is not in a"));
    }
}
