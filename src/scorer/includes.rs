//! The target stands in the answer, as whole words. Knows nothing of order beyond that.

use super::{Compared, Scorer, Texts, normal};

pub(super) const SCORER: Scorer = Scorer {
    name: "includes",
    rev: 4,
    source: "Inspect's `includes`, on whole words of the normal form of `exact_match`; a possessive holds its owner",
    compare,
};

fn compare(texts: &Texts<'_>) -> Compared {
    let answer = texts.normal();
    // "Crawford's career" says "Crawford".
    let owners = normal::text_without_possessives(texts.answer);
    let says = |target: &str| {
        holds(answer, target) || owners.as_deref().is_some_and(|owners| holds(owners, target))
    };
    let hits = texts.accepted().iter().map(|target| target.all().any(says));
    Compared::first(hits, Some(answer.to_owned()))
}

/// Whether `words` stand in `text`, both with one space between words.
fn holds(text: &str, words: &str) -> bool {
    let (text_bytes, len) = (text.as_bytes(), words.len());
    len > 0
        && memchr::memmem::find_iter(text_bytes, words.as_bytes()).any(|at| {
            let starts = at == 0 || text_bytes[at - 1] == b' ';
            let ends = at + len == text.len() || text_bytes[at + len] == b' ';
            starts && ends
        })
}
