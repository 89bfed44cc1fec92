//! ROUGE-L: how much of a text's order of words another text keeps.
//!
//! Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries": precision and recall of the longest common
//! subsequence of words, and their harmonic mean. Words are runs of letters and digits in lower case, unstemmed.

/// F-measure of ROUGE-L between a prediction and a reference, in [0, 1]; 0 when either has no words.
pub fn rouge_l(prediction: &str, reference: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
    };
    let (prediction, reference) = (words(prediction), words(reference));
    let common = longest_common_subsequence(&prediction, &reference);
    if common == 0 {
        return 0.0;
    }
    2.0 * common as f64 / (prediction.len() + reference.len()) as f64
}

fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    // lengths[j]: of the words of `a` so far and the first j of `b`.
    let mut lengths = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = lengths[j + 1];
            lengths[j + 1] = if word == other { diagonal + 1 } else { above.max(lengths[j]) };
            diagonal = above;
        }
    }
    lengths[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_harmonic_mean_over_the_common_order() {
        // "police the gunman": 3 of 4 and 3 of 4 in Lin's example.
        assert!((rouge_l("police kill the gunman", "police killed the gunman") - 0.75).abs() < 1e-12);
        // Only "the gunman", in order: 2 of 4 and 2 of 4.
        assert!((rouge_l("the gunman kill police", "police killed the gunman") - 0.5).abs() < 1e-12);
        assert!((rouge_l("The  Gunman.", "the gunman") - 1.0).abs() < 1e-12);
        assert_eq!((rouge_l("", "a"), rouge_l("b", "a"), rouge_l("", "")), (0.0, 0.0, 0.0));
        // Precision 1, recall 1/3.
        assert!((rouge_l("a", "a b c") - 0.5).abs() < 1e-12);
    }
}
