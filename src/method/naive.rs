//! Ask and take the reply as the answer. Knows nothing of tools.

use super::{Method, Turn, answer};
use crate::sample::Shot;

pub(super) struct Naive;

impl Method for Naive {
    fn name(&self) -> &'static str {
        "naive"
    }

    fn rev(&self) -> u32 {
        1
    }

    fn instructions(&self, _: &[Box<dyn crate::tool::Tool>]) -> String {
        "Answer the question with only the answer, no explanation.".to_owned()
    }

    fn show(&self, shot: &Shot) -> String {
        shot.answer.clone()
    }

    fn read(&self, reply: &str) -> Turn {
        Turn::Done { answer: answer::whole(reply), thought: String::new() }
    }
}
