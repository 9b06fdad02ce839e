//! Overlap of n-grams of characters. Knows nothing of words.

use std::collections::HashMap;

use super::{Compared, Scorer, Texts};

/// Longest n-gram.
const ORDER: usize = 6;
/// Recall counts this many times as much as precision, squared.
const FACTOR: f64 = 4.0;

pub(super) const SCORER: Scorer = Scorer {
    name: "chrf",
    rev: 1,
    source: "sentence chrF2 of sacrebleu 2 (Popović 2015, Post 2018): six characters, no words, no spaces; divided by 100",
    compare,
};

fn compare(texts: &Texts<'_>) -> Compared {
    let answer = letters(texts.answer);
    let values = texts.targets.iter().map(|target| chrf(&answer, &letters(target)));
    Compared::best(values, None)
}

fn letters(text: &str) -> Vec<char> {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

fn chrf(answer: &[char], target: &[char]) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for n in 1..=ORDER {
        let total = |text: &[char]| text.len().saturating_sub(n - 1) as f64;
        if total(answer) == 0.0 || total(target) == 0.0 {
            continue;
        }
        let mut open: HashMap<&[char], usize> = HashMap::new();
        for gram in target.windows(n) {
            *open.entry(gram).or_default() += 1;
        }
        let mut shared = 0_usize;
        for gram in answer.windows(n) {
            if let Some(left) = open.get_mut(gram).filter(|left| **left > 0) {
                *left -= 1;
                shared += 1;
            }
        }
        precision += shared as f64 / total(answer);
        recall += shared as f64 / total(target);
        orders += 1.0;
    }
    if orders == 0.0 || precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    (1.0 + FACTOR) * precision * recall / (FACTOR * precision + recall)
}
