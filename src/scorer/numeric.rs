//! The last number of the answer equals the target's. Knows nothing of units.

use super::{Compared, Scorer, Texts, normal};

pub(super) const SCORER: Scorer = Scorer {
    name: "numeric",
    rev: 1,
    source: "GSM8K's last-number rule (Cobbe et al. 2021), compared as exact decimals",
    compare,
};

fn compare(texts: &Texts<'_>) -> Compared {
    let answer = normal::last_number(texts.answer);
    let hits = texts
        .targets
        .iter()
        .map(|target| answer.is_some() && answer == normal::last_number(target));
    let hits = Compared::first(hits, None);
    Compared { parsed: answer, ..hits }
}
