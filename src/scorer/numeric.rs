//! The number that the answer gives equals the target's. Knows nothing of units.

use super::{Compared, Scorer, Texts, number, statement};

pub(super) const SCORER: Scorer = Scorer {
    name: "numeric",
    rev: 3,
    source: "GSM8K's rule (Cobbe et al. 2021): the number that is stated behind the mark of the answer, of an answer \
             without a mark the last one; compared as exact decimals",
    compare,
};

/// What a solution has before its answer, in lower case.
const MARKS: [&str; 4] = ["####", "\\boxed", "answer:", "answer is"];

fn compare(texts: &Texts<'_>) -> Compared {
    // A target is read as the answer is, or the same words could give two numbers.
    let (said, read): (_, fn(&str) -> _) = match texts.marked {
        Some(marked) => (marked, statement::number),
        None => (texts.answer, number::last),
    };
    let answer = read(said);
    let hits = texts.targets.iter().map(|target| {
        let wanted = || if is_solution(target) { number::last(target) } else { read(target) };
        is_same_text(said, target)
            || is_same_text(texts.answer, target)
            || (answer.is_some() && answer == wanted())
    });
    let hits = Compared::first(hits, None);
    Compared { parsed: answer, ..hits }
}

/// Whether a target is a way to the answer and not the answer alone: the answer stands at its end.
fn is_solution(target: &str) -> bool {
    let target = target.trim();
    let lower = target.to_ascii_lowercase();
    target.contains('\n') || MARKS.iter().any(|mark| lower.contains(mark))
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
    fn of_a_solution_the_last_number_is_the_target() {
        for target in
            ["2 * 9 = 18\n#### 18", "2 and 9 #### 18", "2 \\boxed{18}", "2 * 9: the answer is 18"]
        {
            check("18 (9*2)", true, target, 1.0);
            check("2", true, target, 0.0);
            check("so 18", false, target, 1.0);
        }
    }
}
