//! Reason and act (Yao et al. 2023): Thought, Action, Observation, until a Final Answer. Knows which
//! call the model wants, not what tools do.

use super::{Method, Turn, answer};
use crate::sample::Shot;
use crate::tool::Tool;

/// Turns a manifest may allow.
pub const TURNS: std::ops::RangeInclusive<i64> = 1..=20;
/// Turns where the manifest is silent.
pub const TURNS_DEFAULT: u32 = 5;
/// The same action this many times in one sample is a loop.
pub const SAME_ACTION_MAX: usize = 3;

/// What a model must never write itself.
const OBSERVATION: &str = "Observation:";

pub(super) struct React;

impl Method for React {
    fn name(&self) -> &'static str {
        "react"
    }

    fn rev(&self) -> u32 {
        1
    }

    fn instructions(&self, tools: &[Box<dyn Tool>]) -> String {
        let usages: Vec<_> = tools.iter().map(|tool| tool.usage()).collect();
        format!(
            "Answer the question with the help of tools. Reply in this format:\n\
             Thought: <what to do next>\n\
             Action: <tool>[<input>]\n\
             Then stop and wait for the observation. Tools: {}. When you know the result, reply:\n\
             Thought: <why>\n\
             Final Answer: <result>",
            usages.join(", ")
        )
    }

    fn instructions_with_calls(&self) -> String {
        "Answer the question with the help of the tools. When you know the result, reply with only the answer, no \
         explanation."
            .to_owned()
    }

    fn stop(&self) -> &'static [&'static str] {
        &[OBSERVATION]
    }

    fn uses_tools(&self) -> bool {
        true
    }

    fn show(&self, shot: &Shot) -> String {
        let thought = shot.reasoning.as_deref().unwrap_or("I know the answer.");
        format!("Thought: {thought}\nFinal Answer: {}", shot.answer)
    }

    fn read(&self, reply: &str) -> Turn {
        // An engine without stop strings lets the model make up an observation and go on from it.
        let said = reply.split(OBSERVATION).next().unwrap_or("");
        let action = said.rsplit_once("Action:").map(|(before, call)| (before, parse_call(call)));
        if let Some((before, after)) = said.rsplit_once("Final Answer:") {
            // An action after it means that "Final Answer:" was only talked about.
            if let Some((thinking, Ok((tool, input)))) = action
                && thinking.len() > before.len()
            {
                return Turn::Call { tool, input, thought: thought(thinking) };
            }
            let answer = answer::undecorated(after.trim().lines().next().unwrap_or(""));
            return if answer.is_empty() {
                again("the final answer is empty; write Final Answer: <result>", before)
            } else {
                Turn::Done { answer, thought: thought(before) }
            };
        }
        match action {
            None => again("write Action: <tool>[<input>] or Final Answer: <result>", said),
            Some((before, Ok((tool, input)))) => {
                Turn::Call { tool, input, thought: thought(before) }
            }
            Some((before, Err(hint))) => again(&hint, before),
        }
    }
}

fn again(hint: &str, said: &str) -> Turn {
    Turn::Again { hint: format!("error: {hint}"), thought: thought(said) }
}

fn thought(said: &str) -> String {
    let said = said.trim();
    said.rsplit_once("Thought:").map_or(said, |(_, thought)| thought).trim().to_owned()
}

/// Reads `tool[input]` or `tool(input)`. Brackets in the input are balanced, so `f[a[1]]` is whole, and
/// brackets of the other sort do not close it.
fn parse_call(text: &str) -> Result<(String, String), String> {
    let text = text.trim_start().trim_start_matches(['*', '`', ' ']);
    let at =
        text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-'))).unwrap_or(text.len());
    let (tool, rest) = text.split_at(at);
    let rest = rest.trim_start_matches([' ', '\t']);
    let (open, close) = match rest.chars().next() {
        Some('[') => ('[', ']'),
        Some('(') => ('(', ')'),
        _ => return Err("an action is <tool>[<input>]".to_owned()),
    };
    if tool.is_empty() {
        return Err("an action starts with the name of a tool: <tool>[<input>]".to_owned());
    }
    // A bracket in a text of JSON opens and closes nothing.
    if let Some(input) = object_at(&rest[1..])
        && rest[1 + input.len()..].trim_start().starts_with(close)
    {
        return Ok((tool.to_owned(), input.trim().to_owned()));
    }
    let mut depth = 0_usize;
    for (i, c) in rest.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close {
            depth -= 1;
            if depth == 0 {
                return Ok((tool.to_owned(), rest[1..i].trim().to_owned()));
            }
        }
    }
    Err(format!("the input of {tool} is not closed with `{close}`"))
}

/// The JSON object with which a text begins, and the white space before it.
fn object_at(text: &str) -> Option<&str> {
    text.trim_start().starts_with('{').then_some(())?;
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    values.next()?.ok()?;
    text.get(..values.byte_offset())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::calculator::Calculator;
    use crate::tool::lookup::Lookup;

    fn call(reply: &str) -> String {
        match React.read(reply) {
            Turn::Call { tool, input, .. } => format!("{tool} <- {input}"),
            Turn::Done { answer, .. } => format!("answer {answer}"),
            Turn::Again { hint, .. } => hint,
            Turn::Unparsable { reason } => reason,
        }
    }

    #[test]
    fn calls_are_read_with_balanced_brackets() {
        let check = |reply: &str, want: &str| assert_eq!(call(reply), want, "{reply:?}");
        check("Thought: sum\nAction: calculator[(4+6)*5]", "calculator <- (4+6)*5");
        check("Action: calculator((4+6)*5)", "calculator <- (4+6)*5");
        check("Action: lookup[a[1] and b[2]]", "lookup <- a[1] and b[2]");
        check("Action: lookup[smile :-)] ", "lookup <- smile :-)");
        check("Action: `lookup[x]`", "lookup <- x");
        check("Action: first[a]\nAction: second[b]", "second <- b");
        check(
            "Action: f[{\"a\": \"x] y [\", \"b\": [1, [2]]} ] done",
            "f <- {\"a\": \"x] y [\", \"b\": [1, [2]]}",
        );
        check("Action: f({\"a\": \":-)\"})", "f <- {\"a\": \":-)\"}");
        check("Action: f[{a[1]}]", "f <- {a[1]}");
    }

    #[test]
    fn a_made_up_observation_is_cut_off() {
        assert_eq!(
            call("Action: lookup[x]\nObservation: 4\nThought: fine\nFinal Answer: 4"),
            "lookup <- x"
        );
    }

    #[test]
    fn the_final_answer_ends_it() {
        assert_eq!(call("Thought: I know.\nFinal Answer: J. K. Rowling"), "answer J. K. Rowling");
        assert_eq!(call("Final Answer: 4\nFinal Answer: **5**."), "answer 5");
        assert_eq!(call("Not yet the Final Answer: soon.\nAction: lookup[x]"), "lookup <- x");
    }

    #[test]
    fn what_is_malformed_is_told_how_to_mend_it() {
        assert_eq!(
            call("Action: calculator[1+2"),
            "error: the input of calculator is not closed with `]`"
        );
        assert_eq!(call("Action: calculator"), "error: an action is <tool>[<input>]");
        assert_eq!(call("Hm."), "error: write Action: <tool>[<input>] or Final Answer: <result>");
        assert_eq!(
            call("Final Answer:"),
            "error: the final answer is empty; write Final Answer: <result>"
        );
    }

    #[test]
    fn the_instructions_are_those_the_shipped_model_was_trained_with() {
        let lookup = Lookup::new(crate::digest::Digest::of(b""), Default::default());
        let tools: [Box<dyn Tool>; 2] = [Box::new(Calculator), Box::new(lookup)];
        let trained: serde_json::Value =
            serde_json::from_str(include_str!("../../fixtures/prompts.json")).unwrap();
        // Of likelihoods the model says nothing, so there is nothing to instruct.
        for method in super::super::METHODS.iter().filter(|method| method.name() != "likelihood") {
            assert_eq!(trained[method.name()], method.instructions(&tools), "{}", method.name());
        }
    }
}
