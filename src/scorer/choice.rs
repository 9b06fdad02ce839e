//! The letter of a choice, A to Z. Knows nothing of what the letters stand for.
//!
//! An answer that names no letter, or more than one where none is marked as the answer, is read as none.

use std::sync::LazyLock;

use regex::Regex;

use super::{Compared, Scorer, Texts};

pub(super) const SCORER: Scorer = Scorer {
    name: "choice",
    rev: 1,
    source: "Inspect's `choice` and the letter patterns of MMLU-Pro (Wang et al. 2024)",
    compare,
};

fn compare(texts: &Texts<'_>) -> Compared {
    let answer = letter(texts.answer);
    let hits = texts.targets.iter().map(|target| answer.is_some() && answer == letter(target));
    let hits = Compared::first(hits, None);
    Compared { parsed: answer.map(String::from), ..hits }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("BUG: a pattern of this file is no regular expression")
}

/// "answer is (B)", "the correct option: b)", "choose **C**", `\boxed{D}`.
static MARKED: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?:\b(?i:answer|option|choice|choose|pick|select)(?:\s+(?i:is|option|choice))*|\\boxed)[\s:*_`\x22'({\[]*(?:\\text\{)?([A-Z])\b(?:[^'’\w]|$)",
    )
});
/// "B", "(b)", "[B].", "**B**".
static ALONE: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^[\s*_`\x22'(\[{]*([A-Za-z])[\s*_`\x22')\]}.:,]*$"));
/// "B) Paris", "B. Paris", "(B) Paris", "B: Paris", "B - Paris".
static FIRST: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^[\s*_`\x22']*(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])[*_`]*(?:[).:](?:[\s*_`]|$)|\s[-–—]\s))",
    )
});
/// "… so (B) it is".
static BRACKETED: LazyLock<Regex> = LazyLock::new(|| regex(r"[(\[]([A-Z])[)\]]"));

/// The letter that an answer names, as a capital.
fn letter(answer: &str) -> Option<char> {
    let of = |captures: regex::Captures<'_>| {
        let found = captures.iter().skip(1).flatten().next()?;
        Some(found.as_str().chars().next()?.to_ascii_uppercase())
    };
    let whole = ALONE.captures(answer).and_then(of);
    let marked = || MARKED.captures_iter(answer).last().and_then(of);
    let first = || FIRST.captures(answer).and_then(of);
    whole.or_else(marked).or_else(first).or_else(|| {
        let mut letters: Vec<char> = BRACKETED.captures_iter(answer).filter_map(of).collect();
        letters.sort_unstable();
        letters.dedup();
        match letters[..] {
            [letter] => Some(letter),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters() {
        let check = |answer: &str, want: Option<char>| assert_eq!(letter(answer), want, "{answer}");
        for answer in ["B", "b", "(B)", "B.", "**B**", "[b]", "B) Paris", "B. Paris", "(B) Paris"] {
            check(answer, Some('B'));
        }
        check("B: Paris", Some('B'));
        check("**B.** Paris", Some('B'));
        check("B - Paris", Some('B'));
        check("The answer is B.", Some('B'));
        check("The correct answer is option (B), since A is wrong.", Some('B'));
        check("I first thought the answer is A, but the answer is B", Some('B'));
        check("\\boxed{\\text{B}}", Some('B'));
        check("Not (A). Not (A). So the answer: **B**", Some('B'));
        check("It has to be (B), and (B) alone.", Some('B'));
        check("Z", Some('Z'));
        check("(A) or (B)", Some('A'));
        check("either (A) or (B)", None);
        check("A dog", None);
        check("I think so", None);
        check("The answer is Apple", None);
        check("The answer is I'm not sure", None);
        check("Paris", None);
        check("", None);
        check("42", None);
    }
}
