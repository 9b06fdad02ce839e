//! The number that the answer gives equals the target's. Knows nothing of units.

use super::{Compared, Scorer, Texts, number, statement};

pub(super) const SCORER: Scorer = Scorer {
    name: "numeric",
    rev: 3,
    source: "GSM8K's rule (Cobbe et al. 2021): the number that is stated behind the mark of the answer, of an answer \
             without a mark the last one; compared as exact decimals, several numbers of a target all together",
    compare,
};

/// What a solution has before its answer, in lower case.
const MARKS: [&str; 4] = ["####", "\\boxed", "answer:", "answer is"];

fn compare(texts: &Texts<'_>) -> Compared {
    let (said, answer) = match texts.marked {
        Some(marked) => (marked, statement::number(marked)),
        None => {
            let last = number::last_of(texts.answer, 1).pop();
            (texts.answer, last.or_else(|| number::last(texts.answer)))
        }
    };
    let stated = |n| match texts.marked {
        Some(marked) => statement::stated(marked, n),
        None => number::last_of(texts.answer, n),
    };
    let is_one = |wanted: Option<String>| answer.is_some() && answer == wanted;
    // Which target it is does not change what was said.
    let several = texts.targets.iter().map(|target| together(target));
    let several: Vec<Vec<String>> = several.collect();
    let hits = texts.targets.iter().zip(&several).map(|(target, several)| {
        is_same_text(said, target)
            || is_same_text(texts.answer, target)
            || match several.len() {
                0 if is_solution(target) => is_one(number::last(target)),
                // It stands alone, as what is marked does.
                0 => is_one(statement::number(target)),
                n => stated(n) == *several,
            }
    });
    let hits = Compared::first(hits, None);
    let first = several.iter().find(|several| !several.is_empty());
    let parsed = first.map(|several| stated(several.len()).join(", "));
    Compared { parsed: parsed.filter(|parsed| !parsed.is_empty()).or(answer), ..hits }
}

/// The numbers of a target that only together are right.
fn together(target: &str) -> Vec<String> {
    if is_solution(target) { Vec::new() } else { statement::together(target) }
}

/// Whether a target is a way to the answer and not the answer alone: the answer stands at its end.
fn is_solution(target: &str) -> bool {
    let target = target.trim();
    let lower = target.to_ascii_lowercase();
    target.contains('\n')
        || MARKS.iter().any(|mark| lower.contains(mark))
        || statement::goes_on(target)
}

fn is_same_text(a: &str, b: &str) -> bool {
    let mut words = a.split_whitespace().peekable();
    words.peek().is_some() && words.eq(b.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &str, is_marked: bool, target: &str, want: f64) {
        let targets = [target.to_owned()];
        let texts = Texts::new(answer, &targets).with_marked(is_marked.then_some(answer));
        let got = compare(&texts);
        assert_eq!(got.value, want, "{answer:?}, marked {is_marked}, {target:?}: {got:?}");
    }

    #[test]
    fn an_answer_that_is_its_target_is_right() {
        for text in [
            "3:30",
            "5 feet 6 inches",
            "June 5, 2020",
            "(2, 3)",
            "x = 5, y = 3",
            "5x - 7",
            "3\\sqrt{2}",
            "20% of 90",
            "no number",
            "9 + 9\n#### 18",
        ] {
            check(text, true, text, 1.0);
            check(text, false, text, 1.0);
            check(&format!(" {} ", text.replace(' ', "  ")), true, text, 1.0);
        }
        check("", true, "", 0.0);
        check(" ", false, "", 0.0);
        check("no numbers", true, "no number", 0.0);
    }

    #[test]
    fn a_target_is_read_as_the_answer_is() {
        check("(3, 7)", true, "(2, 3)", 0.0);
        check("(2, 7)", true, "(2, 3)", 0.0);
        check("(2,3)", true, "(2, 3)", 1.0);
        check("3", true, "(2, 3)", 0.0);
        check("18", true, "18 (9*2)", 1.0);
        check("5 ft 6 in", true, "5 feet 6 inches", 1.0);
        check("So it is 5 feet 6", false, "5 feet 6 inches", 1.0);
    }

    #[test]
    fn several_numbers_are_right_together() {
        for (target, right, wrong) in [
            ("10:30", "It is 10:30.", "10:45"),
            ("3 hours 15 minutes", "3 h 15 min", "3 hours 45 minutes"),
            ("5 feet 6 inches", "5 feet 6 inches (66 inches)", "5 feet 11 inches"),
            ("$5 and 30 cents", "$5, 30 cents", "$5 and 90 cents"),
            ("2, 3", "2 and 3", "2, 7"),
            ("2 and 3", "(2, 3)", "2 and 9"),
            ("5x - 7", "5x-7", "5x + 3"),
            ("x = 5, y = 3", "x=5 and y=3", "x = 4, y = 3"),
            ("June 5, 2020", "5 June 2020", "June 6, 2020"),
            ("25-30 days", "25 to 30 days", "30 days"),
            ("(2, 3)", "(2,3)", "(7, 3)"),
        ] {
            check(right, true, target, 1.0);
            check(wrong, true, target, 0.0);
            check(&format!("Of 4 ways, one is left: {target}"), false, target, 1.0);
            check(&format!("Of 4 ways, one is left: {wrong}"), false, target, 0.0);
        }
        // One number, and what it is a number of.
        for target in ["5 m2", "5 m^2", "5 km/h", "$5 (of 20)", "5, because 2 + 3 = 5", "2 + 3 = 5"]
        {
            check("5", true, target, 1.0);
            check("so 5", false, target, 1.0);
            check("2", true, target, 0.0);
        }
    }

    #[test]
    fn of_a_solution_the_last_number_is_the_target() {
        for target in [
            "2 * 9 = 18\n#### 18",
            "2 and 9 #### 18",
            "2 \\boxed{18}",
            "2 * 9: the answer is 18",
            "Tom has 2 * 10 = 20 apples and eats 2, so he has 18 left.",
        ] {
            check("18 (9*2)", true, target, 1.0);
            check("2", true, target, 0.0);
            check("so 18", false, target, 1.0);
        }
    }
}
