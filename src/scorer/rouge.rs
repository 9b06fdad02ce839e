//! ROUGE: overlap of words, of pairs of words, and of the longest common subsequence. Knows nothing of
//! sentences, and, as its source, of no letters but a to z.

use std::collections::HashMap;

use super::{Compared, Scorer, Texts};

const SOURCE: &str = "F-measure of rouge_score 0.1 (Lin 2004; Google Research), without stemming, best over references";

pub(super) const ROUGE_1: Scorer = Scorer {
    name: "rouge1",
    rev: 1,
    source: SOURCE,
    compare: |texts| best(texts, |a, b| grams(a, b, 1)),
};
pub(super) const ROUGE_2: Scorer = Scorer {
    name: "rouge2",
    rev: 1,
    source: SOURCE,
    compare: |texts| best(texts, |a, b| grams(a, b, 2)),
};
pub(super) const ROUGE_L: Scorer =
    Scorer { name: "rougeL", rev: 1, source: SOURCE, compare: |texts| best(texts, subsequence) };

fn best(texts: &Texts<'_>, value: impl Fn(&[String], &[String]) -> f64) -> Compared {
    let answer = tokens(texts.answer);
    Compared::best(texts.targets.iter().map(|target| value(&answer, &tokens(target))), None)
}

fn tokens(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Harmonic mean of shared/said and shared/wanted.
fn f_measure(shared: usize, said: usize, wanted: usize) -> f64 {
    if shared == 0 { 0.0 } else { 2.0 * shared as f64 / (said + wanted) as f64 }
}

fn grams(answer: &[String], target: &[String], n: usize) -> f64 {
    let mut open: HashMap<&[String], usize> = HashMap::new();
    for gram in target.windows(n) {
        *open.entry(gram).or_default() += 1;
    }
    let mut shared = 0;
    for gram in answer.windows(n) {
        if let Some(left) = open.get_mut(gram).filter(|left| **left > 0) {
            *left -= 1;
            shared += 1;
        }
    }
    let count = |tokens: &[String]| tokens.len().saturating_sub(n - 1);
    f_measure(shared, count(answer), count(target))
}

/// Of the longest common subsequence, with one row of the table in memory.
fn subsequence(answer: &[String], target: &[String]) -> f64 {
    let mut row = vec![0_usize; target.len() + 1];
    for word in answer {
        let mut diagonal = 0;
        for (j, wanted) in target.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == wanted { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    f_measure(row[target.len()], answer.len(), target.len())
}
