//! An answer against its targets: a value from 0 to 1. Knows nothing of how the answer came to be.
//!
//! Every scorer takes the best of all accepted answers and keeps which one that was. Its version is in
//! the key of a sample, so that a change of a scorer scores again, and asks no model. Scorers that act
//! (a judge, a program, an embedding) are in `stage/workflow/scoring`.

use std::cell::OnceCell;

use crate::sample::Score;

pub mod bleu;
mod choice;
pub mod chrf;
mod exact_match;
mod f1;
mod includes;
pub mod json;
pub mod normal;
pub mod number;
mod numeric;
pub mod pattern;
mod rouge;
mod statement;
mod target;
mod typeset;

pub use json::Json;
pub use pattern::Pattern;

/// One comparison of an answer with all its targets.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Compared {
    /// 0 to 1.
    pub value: f64,
    /// Position of the target that gave the value; `None` where none gave more than 0.
    pub matched: Option<usize>,
    /// What was compared, after the scorer's own reading of the answer.
    pub parsed: Option<String>,
    /// What there is to say, such as the first field that differs.
    pub detail: Option<String>,
}

impl Compared {
    /// The best value over targets; of equal ones the first.
    fn best(values: impl IntoIterator<Item = f64>, parsed: Option<String>) -> Compared {
        let mut best = Compared { parsed, ..Compared::default() };
        for (i, value) in values.into_iter().enumerate() {
            if value > best.value {
                (best.value, best.matched) = (value, Some(i));
            }
        }
        best
    }

    /// The same for scorers that know right and wrong only.
    fn first(mut hits: impl Iterator<Item = bool>, parsed: Option<String>) -> Compared {
        let matched = hits.position(|hit| hit);
        let value = f64::from(u8::from(matched.is_some()));
        Compared { value, matched, parsed, detail: None }
    }

    /// As it stands in a sample.
    pub fn score(self, scorer: &str, targets: &[String]) -> Score {
        Score {
            value: Some(self.value),
            matched: self.matched.and_then(|i| targets.get(i).cloned()),
            parsed: self.parsed,
            detail: self.detail,
            ..Score::new(scorer)
        }
    }
}

/// An answer with its targets, and their normal forms: made once for all scorers that want them.
pub struct Texts<'a> {
    /// What was answered.
    pub answer: &'a str,
    /// What of it stands behind a mark such as `Answer:`; all of it where the mark itself was taken off.
    pub marked: Option<&'a str>,
    /// What is accepted.
    pub targets: &'a [String],
    normal: OnceCell<String>,
    accepted: OnceCell<Vec<target::Accepted>>,
}

impl<'a> Texts<'a> {
    /// An answer without a mark, with its targets.
    pub fn new(answer: &'a str, targets: &'a [String]) -> Self {
        let (normal, accepted) = (OnceCell::new(), OnceCell::new());
        Texts { answer, marked: None, targets, normal, accepted }
    }

    /// The same with what stands behind a mark.
    pub fn with_marked(self, marked: Option<&'a str>) -> Self {
        Texts { marked, ..self }
    }

    fn normal(&self) -> &str {
        self.normal.get_or_init(|| normal::text(self.answer))
    }

    fn accepted(&self) -> &[target::Accepted] {
        self.accepted.get_or_init(|| self.targets.iter().map(|t| target::accepted(t)).collect())
    }
}

/// A way to score that has no settings.
pub struct Scorer {
    /// Its name in manifests and records.
    pub name: &'static str,
    /// Raised when the same answer would get another value.
    pub rev: u32,
    /// Where its definition comes from.
    pub source: &'static str,
    compare: fn(&Texts<'_>) -> Compared,
}

/// Every scorer without settings. To add one: a file, its `mod` line, its line here.
pub const SCORERS: &[Scorer] = &[
    exact_match::SCORER,
    includes::SCORER,
    f1::SCORER,
    numeric::SCORER,
    choice::SCORER,
    bleu::SCORER,
    chrf::SCORER,
    rouge::ROUGE_1,
    rouge::ROUGE_2,
    rouge::ROUGE_L,
];

/// The scorer of a name.
pub fn find(name: &str) -> Option<&'static Scorer> {
    SCORERS.iter().find(|scorer| scorer.name == name)
}

impl Scorer {
    /// The best value over all targets, with the target that gave it; of equal ones the first.
    pub fn compare(&self, texts: &Texts<'_>) -> Compared {
        (self.compare)(texts)
    }

    /// The same as it stands in a sample.
    pub fn score(&self, answer: &str, targets: &[String]) -> Score {
        self.compare(&Texts::new(answer, targets)).score(self.name, targets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scorer: &str, answer: &str, targets: &[&str], want: f64) {
        let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
        let got = find(scorer).unwrap().score(answer, &targets);
        let value = got.value.unwrap();
        assert!((value - want).abs() < 1e-9, "{scorer}({answer:?}, {targets:?}) = {got:?}");
    }

    #[test]
    fn the_best_alias_counts_and_is_kept() {
        let targets = ["zloty".to_owned(), "złoty".to_owned()];
        let score = find("exact_match").unwrap().score("Złoty.", &targets);
        assert_eq!((score.value, score.matched.as_deref()), (Some(1.0), Some("złoty")));
    }

    /// What sacrebleu and rouge_score say, by `tests/reference/overlap.py`.
    #[test]
    fn overlaps_are_those_of_the_reference_implementations() {
        #[derive(serde::Deserialize)]
        struct Case {
            answer: String,
            targets: Vec<String>,
            values: std::collections::BTreeMap<String, f64>,
        }
        #[derive(serde::Deserialize)]
        struct Reference {
            corpus: std::collections::BTreeMap<String, f64>,
            rows: Vec<Case>,
        }
        let Reference { corpus, rows } =
            serde_json::from_str(include_str!("../../tests/reference/overlap.json")).unwrap();
        assert!(rows.len() >= 40);
        let (mut as_bleu, mut as_chrf) = (bleu::Corpus::default(), chrf::Corpus::default());
        for case in &rows {
            as_bleu.add(&case.answer, &case.targets);
            as_chrf.add(&case.answer, &case.targets);
        }
        for (name, got) in [("bleu", as_bleu.value()), ("chrf", as_chrf.value())] {
            assert!((got - corpus[name]).abs() < 1e-9, "{name}: {got}, not {}", corpus[name]);
        }
        for case in rows {
            assert_eq!(case.values.len(), 5);
            for (scorer, want) in &case.values {
                let got = find(scorer).unwrap().score(&case.answer, &case.targets).value.unwrap();
                let (answer, targets) = (&case.answer, &case.targets);
                assert!(
                    (got - want).abs() < 1e-9,
                    "{scorer}({answer:?}, {targets:?}): {got}, not {want}"
                );
            }
        }
    }

    #[test]
    fn without_targets_nothing_is_right() {
        for scorer in SCORERS {
            check(scorer.name, "x", &[], 0.0);
            check(scorer.name, "", &[], 0.0);
            check(scorer.name, "", &[""], 0.0);
        }
    }

    #[test]
    fn exact_match_sees_through_form() {
        check("exact_match", "The Beatles", &["beatles"], 1.0);
        check("exact_match", "J. K. Rowling", &["JK Rowling"], 1.0);
        check("exact_match", "Washington, D.C.", &["Washington DC"], 1.0);
        check("exact_match", "2,161,000", &["2161000"], 1.0);
        check("exact_match", "$70{,}000", &["70000"], 1.0);
        check("exact_match", "70\u{202f}000", &["70,000"], 1.0);
        check("exact_match", "\\frac{1}{2}", &["1/2"], 1.0);
        check("exact_match", "Guinea-Bissau", &["Guinea Bissau"], 1.0);
        check("exact_match", "Science & Nature", &["Science and Nature"], 1.0);
        check("exact_match", "Nine years", &["9 years"], 1.0);
    }

    #[test]
    fn exact_match_keeps_what_matters() {
        check("exact_match", "3.14", &["314"], 0.0);
        check("exact_match", "-5", &["5"], 0.0);
        check("exact_match", "-$5", &["5"], 0.0);
        check("exact_match", "-$5", &["-5"], 1.0);
        check("exact_match", "-.5", &["0.5"], 0.0);
        check("exact_match", "$0.05", &["0.05"], 1.0);
        check("exact_match", "Paris, France", &["Paris"], 0.0);
        // "One" is as often no number.
        check("includes", "one of the four", &["1"], 0.0);
    }

    #[test]
    fn what_a_target_has_in_brackets_need_not_be_said() {
        let target = ["PRINCE WILLIAM (accept DUKE OF CAMBRIDGE)"];
        check("exact_match", "Duke of Cambridge", &target, 1.0);
        check("exact_match", "Prince William", &target, 1.0);
        check("exact_match", "William", &target, 0.0);
        check("exact_match", "Gertrude Bell", &["Gertrude Bell (2014 film)"], 1.0);
        check("exact_match", "Gertrude Bell (2014 film)", &["Gertrude Bell (2014 film)"], 1.0);
        check("f1", "The Doctor", &["Frontios (Doctor Who)"], 0.0);
        // A function is no title with a qualifier.
        check("exact_match", "f", &["f (x)"], 0.0);
        check("exact_match", "f", &["f(x)"], 0.0);
    }

    #[test]
    fn includes_wants_whole_words() {
        check("includes", "It is Paris, France.", &["Paris"], 1.0);
        check("includes", "parish", &["Paris"], 0.0);
        check("includes", "in New York City", &["new york"], 1.0);
        check("exact_match", "A", &["A"], 1.0);
        check("includes", "anything", &["the"], 0.0);
        check("includes", "Joan Crawford's career revived", &["Crawford"], 1.0);
        check("includes", "Rubik's cube", &["Rubiks cube"], 1.0);
        check("includes", "yorkshire york", &["York"], 1.0);
    }

    #[test]
    fn f1_counts_shared_words() {
        // Two shared words of three and of two: precision 2/3, recall 1.
        check("f1", "Louisa May Alcott", &["Louisa Alcott"], 0.8);
        check("f1", "no", &["yes"], 0.0);
        check("f1", "red red", &["red"], 2.0 / 3.0);
        check("f1", "red", &["red red"], 2.0 / 3.0);
    }

    #[test]
    fn f1_of_another_number_is_none() {
        check("f1", "3 acres", &["3.5 acres"], 0.0);
        check("f1", "3.5 hectares", &["3.5 acres"], 0.5);
        check("f1", "in the year 1923", &["1923"], 0.5);
    }

    #[test]
    fn behind_a_mark_the_number_at_the_front_counts() {
        let targets = ["18".to_owned()];
        let value = |marked| {
            let texts = Texts::new("18 (9*2)", &targets).with_marked(marked);
            find("numeric").unwrap().compare(&texts).value
        };
        assert_eq!((value(None), value(Some("18 (9*2)"))), (0.0, 1.0));
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
        check("numeric", "70\\,000", &["70{,}000"], 1.0);
        check("numeric", "\\frac{1}{2}", &["0.5"], 1.0);
    }
}
