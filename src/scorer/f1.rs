//! Overlap of words, counted as a multiset. Knows nothing of their order.

use super::{Compared, Scorer, Texts};

pub(super) const SCORER: Scorer = Scorer {
    name: "f1",
    rev: 4,
    source: "SQuAD 1.1 evaluation (Rajpurkar et al. 2016): harmonic mean of token precision and recall; as in DROP \
             (Dua et al. 2019) an answer without any of the target's numbers shares nothing with it",
    compare,
};

fn compare(texts: &Texts<'_>) -> Compared {
    let answer = texts.normal();
    let mut said: Vec<&str> = answer.split_ascii_whitespace().collect();
    said.sort_unstable();
    let mut wanted = Vec::new();
    let values = texts.accepted().iter().map(|target| {
        if !answer.is_empty() && target.whole == answer {
            return 1.0;
        }
        let each = target.cores().map(|core| {
            wanted.clear();
            wanted.extend(core.split_ascii_whitespace());
            wanted.sort_unstable();
            overlap(&said, &wanted)
        });
        each.fold(0.0, f64::max)
    });
    Compared::best(values, Some(answer.to_owned()))
}

/// 2·P·R/(P+R) of two sorted lists, with P = shared/said and R = shared/wanted.
fn overlap(said: &[&str], wanted: &[&str]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0_usize);
    let (mut numbers, mut shared_numbers) = (false, false);
    while j < wanted.len() {
        numbers |= is_number(wanted[j]);
        while i < said.len() && said[i] < wanted[j] {
            i += 1;
        }
        if i < said.len() && said[i] == wanted[j] {
            shared_numbers |= is_number(wanted[j]);
            shared += 1;
            i += 1;
        }
        j += 1;
    }
    if shared == 0 || numbers && !shared_numbers {
        return 0.0;
    }
    2.0 * shared as f64 / (said.len() + wanted.len()) as f64
}

fn is_number(word: &str) -> bool {
    let digits = word.strip_prefix('-').unwrap_or(word);
    digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}
