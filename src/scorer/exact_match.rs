//! Equal once form is taken away. Knows nothing of parts.

use super::{Compared, Scorer, Texts};

pub(super) const SCORER: Scorer = Scorer {
    name: "exact_match",
    rev: 4,
    source: "SQuAD 1.1 evaluation (Rajpurkar et al. 2016), with numbers and initials kept whole, `&` as \"and\" \
             and small numbers as digits (VQA evaluation, Antol et al. 2015)",
    compare,
};

fn compare(texts: &Texts<'_>) -> Compared {
    let answer = texts.normal();
    let is_one_of = |target: &super::target::Accepted| target.all().any(|form| form == answer);
    let hits = texts.accepted().iter().map(|target| !answer.is_empty() && is_one_of(target));
    Compared::first(hits, Some(answer.to_owned()))
}
