//! Write nothing: scorers look at how likely each option is after the prompt. Knows nothing of options.

use super::{Method, Turn, answer};
use crate::sample::Shot;

pub(super) struct Likelihood;

impl Method for Likelihood {
    fn name(&self) -> &'static str {
        "likelihood"
    }

    fn rev(&self) -> u32 {
        1
    }

    fn instructions(&self, _: &[Box<dyn crate::tool::Tool>]) -> String {
        String::new()
    }

    fn writes(&self) -> bool {
        false
    }

    fn show(&self, shot: &Shot) -> String {
        shot.answer.clone()
    }

    fn read(&self, reply: &str) -> Turn {
        Turn::Done { answer: answer::whole(reply), thought: String::new() }
    }
}
