//! An answer against its targets: a value from 0 to 1. Knows nothing of how the answer came to be.
//!
//! Every scorer takes the best of all accepted answers and keeps which one that was. Its version is in
//! the key of a sample, so that a change of a scorer scores again, and asks no model.

use crate::digest::Recipe;
use crate::sample::Score;

mod exact_match;
mod f1;
mod includes;
pub mod normal;
mod numeric;

/// One comparison of an answer with one target.
pub struct Compared {
    /// 0 to 1.
    pub value: f64,
    /// What was compared, after the scorer's own reading of the answer.
    pub parsed: Option<String>,
}

/// A way to score.
pub struct Scorer {
    /// Its name in manifests and records.
    pub name: &'static str,
    /// Raised when the same answer would get another value.
    pub rev: u32,
    /// Where its definition comes from.
    pub source: &'static str,
    compare: fn(answer: &str, target: &str) -> Compared,
}

/// Every built-in scorer. To add one: a file, its `mod` line, its line here.
pub const SCORERS: &[Scorer] =
    &[exact_match::SCORER, includes::SCORER, f1::SCORER, numeric::SCORER];

/// The scorer of a name.
pub fn find(name: &str) -> Option<&'static Scorer> {
    SCORERS.iter().find(|scorer| scorer.name == name)
}

impl Scorer {
    /// The best value over all targets, with the target that gave it; of equal ones the first.
    pub fn score(&self, answer: &str, targets: &[String]) -> Score {
        let mut best =
            Score { scorer: self.name.to_owned(), value: 0.0, matched: None, parsed: None };
        for target in targets {
            let compared = (self.compare)(answer, target);
            if best.parsed.is_none() {
                best.parsed = compared.parsed;
            }
            if compared.value > best.value {
                best.value = compared.value;
                best.matched = Some(target.clone());
            }
        }
        best
    }
}

/// Adds the scorers and their versions to a recipe, in order: the first one decides `accuracy`.
pub fn describe(scorers: &[&'static Scorer], recipe: Recipe) -> Recipe {
    let names: Vec<String> =
        scorers.iter().map(|scorer| format!("{} {}", scorer.name, scorer.rev)).collect();
    recipe.field("scorers", names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scorer: &str, answer: &str, targets: &[&str], want: f64) {
        let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
        let got = find(scorer).unwrap().score(answer, &targets);
        assert!((got.value - want).abs() < 1e-9, "{scorer}({answer:?}, {targets:?}) = {got:?}");
    }

    #[test]
    fn the_best_alias_counts_and_is_kept() {
        let targets = ["zloty".to_owned(), "złoty".to_owned()];
        let score = find("exact_match").unwrap().score("Złoty.", &targets);
        assert_eq!((score.value, score.matched.as_deref()), (1.0, Some("złoty")));
    }

    #[test]
    fn without_targets_nothing_is_right() {
        check("exact_match", "x", &[], 0.0);
    }

    #[test]
    fn exact_match_sees_through_form() {
        check("exact_match", "The Beatles", &["beatles"], 1.0);
        check("exact_match", "J. K. Rowling", &["JK Rowling"], 1.0);
        check("exact_match", "Washington, D.C.", &["Washington DC"], 1.0);
        check("exact_match", "2,161,000", &["2161000"], 1.0);
        check("exact_match", "Guinea-Bissau", &["Guinea Bissau"], 1.0);
    }

    #[test]
    fn exact_match_keeps_what_matters() {
        check("exact_match", "3.14", &["314"], 0.0);
        check("exact_match", "-5", &["5"], 0.0);
        check("exact_match", "$0.05", &["0.05"], 1.0);
        check("exact_match", "Paris, France", &["Paris"], 0.0);
    }

    #[test]
    fn includes_wants_whole_words() {
        check("includes", "It is Paris, France.", &["Paris"], 1.0);
        check("includes", "parish", &["Paris"], 0.0);
        check("includes", "in New York City", &["new york"], 1.0);
        check("exact_match", "A", &["A"], 1.0);
        check("includes", "anything", &["the"], 0.0);
    }

    #[test]
    fn f1_counts_shared_words() {
        // Two shared words of three and of two: precision 2/3, recall 1.
        check("f1", "Louisa May Alcott", &["Louisa Alcott"], 0.8);
        check("f1", "no", &["yes"], 0.0);
        check("f1", "red red", &["red"], 2.0 / 3.0);
    }

    #[test]
    fn numeric_reads_the_last_number_with_its_sign_and_units() {
        check("numeric", "about $1,234.50 in all", &["1234.5"], 1.0);
        check("numeric", "12 apples, so 7 left", &["7"], 1.0);
        check("numeric", "-3", &["3"], 0.0);
        check("numeric", "3.0 kg", &["3"], 1.0);
        check("numeric", "none", &["0"], 0.0);
        check("numeric", "50%", &["50"], 1.0);
        check("numeric", "5-3", &["3"], 1.0);
        check("numeric", "1/2", &["3/2"], 0.0);
        check("numeric", "1/2 cup", &["0.5"], 1.0);
        check("numeric", "7e5", &["2e5"], 0.0);
        check("numeric", "1.5e3", &["1500"], 1.0);
        check("numeric", "2,161,000 people", &["2161000"], 1.0);
    }
}
