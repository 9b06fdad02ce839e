//! Overlap of words, counted as a multiset. Knows nothing of their order.

use std::collections::BTreeMap;

use super::{Compared, Scorer, normal};

pub(super) const SCORER: Scorer = Scorer {
    name: "f1",
    rev: 1,
    source: "SQuAD 1.1 evaluation (Rajpurkar et al. 2016): harmonic mean of token precision and recall",
    compare,
};

fn compare(answer: &str, target: &str) -> Compared {
    let (answer, target) = (normal::text(answer), normal::text(target));
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    for word in target.split_whitespace() {
        *open.entry(word).or_default() += 1;
    }
    let mut shared = 0_usize;
    for word in answer.split_whitespace() {
        if let Some(left) = open.get_mut(word).filter(|left| **left > 0) {
            *left -= 1;
            shared += 1;
        }
    }
    let (said, wanted) = (answer.split_whitespace().count(), target.split_whitespace().count());
    // 2·P·R/(P+R) with P = shared/said and R = shared/wanted.
    let value = if shared == 0 { 0.0 } else { 2.0 * shared as f64 / (said + wanted) as f64 };
    Compared { value, parsed: Some(answer) }
}
