//! The number that the answer gives equals the target's. Knows nothing of units.

use super::{Compared, Scorer, Texts, number};

pub(super) const SCORER: Scorer = Scorer {
    name: "numeric",
    rev: 2,
    source: "GSM8K's rule (Cobbe et al. 2021): the number at the front of what is marked as the answer, of an answer \
             without a mark the last one; compared as exact decimals",
    compare,
};

fn compare(texts: &Texts<'_>) -> Compared {
    let answer = match texts.marked {
        Some(marked) => number::stated(marked),
        None => number::last(texts.answer),
    };
    let hits =
        texts.targets.iter().map(|target| answer.is_some() && answer == number::last(target));
    let hits = Compared::first(hits, None);
    Compared { parsed: answer, ..hits }
}
