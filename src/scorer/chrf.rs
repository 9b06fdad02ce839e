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
    Counts::of(answer, target).chrf()
}

/// N-grams by their length: of answers, of targets, and those that they share.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counts([(usize, usize, usize); ORDER]);

impl Counts {
    fn of(answer: &[char], target: &[char]) -> Counts {
        let mut all = Counts::default();
        for n in 1..=ORDER {
            let total = |text: &[char]| text.len().saturating_sub(n - 1);
            // Against a target without any there is nothing to be right or wrong about.
            if total(target) == 0 {
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
            all.0[n - 1] = (total(answer), total(target), shared);
        }
        all
    }

    fn chrf(&self) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for (said, wanted, shared) in self.0 {
            if said > 0 && wanted > 0 {
                precision += shared as f64 / said as f64;
                recall += shared as f64 / wanted as f64;
                orders += 1.0;
            }
        }
        if orders == 0.0 || precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / orders, recall / orders);
        (1.0 + FACTOR) * precision * recall / (FACTOR * precision + recall)
    }
}

/// chrF of a corpus, as sacrebleu's `corpus_chrf`: n-grams of all answers are counted together, each answer with the
/// target that suits it best.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Corpus(Counts);

impl Corpus {
    /// Adds an answer with its targets.
    pub fn add(&mut self, answer: &str, targets: &[String]) {
        let answer = letters(answer);
        let mut best: Option<(f64, Counts)> = None;
        for target in targets {
            let counts = Counts::of(&answer, &letters(target));
            let value = counts.chrf();
            if best.as_ref().is_none_or(|(most, _)| value > *most) {
                best = Some((value, counts));
            }
        }
        let Some((_, counts)) = best else { return };
        for (sum, (said, wanted, shared)) in self.0.0.iter_mut().zip(counts.0) {
            *sum = (sum.0 + said, sum.1 + wanted, sum.2 + shared);
        }
    }

    /// From 0 to 1.
    pub fn value(&self) -> f64 {
        self.0.chrf()
    }
}
