//! Chain of thought (Wei et al. 2022; zero-shot: Kojima et al. 2022): reason first, then `Answer: …`.
//! Knows nothing of tools.

use super::{Method, Turn, answer};
use crate::sample::Shot;

pub(super) struct Cot;

impl Method for Cot {
    fn name(&self) -> &'static str {
        "cot"
    }

    fn rev(&self) -> u32 {
        1
    }

    fn instructions(&self, _: &[Box<dyn crate::tool::Tool>]) -> String {
        "Think step by step. Then give the result on the last line as \"Answer: <result>\"."
            .to_owned()
    }

    fn show(&self, shot: &Shot) -> String {
        match &shot.reasoning {
            Some(reasoning) => format!("{reasoning}\nAnswer: {}", shot.answer),
            None => format!("Answer: {}", shot.answer),
        }
    }

    fn read(&self, reply: &str) -> Turn {
        match answer::stated(reply) {
            Some((thought, answer)) => Turn::Done { answer, thought },
            None => Turn::Unparsable { reason: "no `Answer:` in the reply".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reply: &str, want: Option<&str>) {
        let got = match Cot.read(reply) {
            Turn::Done { answer, .. } => Some(answer),
            _ => None,
        };
        assert_eq!(got.as_deref(), want, "{reply:?}");
    }

    #[test]
    fn the_last_answer_wins() {
        check("Answer: 4. No, wait.\nAnswer: 5", Some("5"));
        check("Answer: 4. No, Answer: 5", Some("5"));
        check("Answer: Paris\n\nAnswer:", Some("Paris"));
        check("Answer: 42\nThe answer is in dollars.", Some("42"));
        check("So the answer is 4. Sorry, the answer is 5.", Some("5"));
    }

    #[test]
    fn answers_survive_points_commas_and_markdown() {
        check("Answer: $0.05", Some("$0.05"));
        check("Answer: 3.14", Some("3.14"));
        check("Answer: J. K. Rowling", Some("J. K. Rowling"));
        check("Answer: Washington, D.C.", Some("Washington, D.C."));
        check("Answer: 2,161,000", Some("2,161,000"));
        check("The answer is **Canberra**.", Some("Canberra"));
        check("**Answer:** `42`", Some("42"));
        check("answer: Paris.\nThat is all.", Some("Paris"));
        check("Answer:\n42", Some("42"));
    }

    #[test]
    fn without_an_answer_it_is_unparsable() {
        check("Step 1: 4 + 6 = 10", None);
        check("Answer:", None);
        check("The answer isn't known to me.", None);
    }
}
