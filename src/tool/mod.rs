//! Tools that an agent can call. Knows nothing of methods or engines. The tools in here do no I/O: what they
//! need is read for them, and is part of the sample's key. Those that reach out are in `stage/workflow/tools`.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Recipe;
use crate::sample::ToolSpec;

pub mod calculator;
pub mod lookup;
pub mod parameters;
pub mod retrieval;

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The text for the model.
    pub text: String,
    /// Whether the tool did what was asked.
    pub succeeded: bool,
}

impl Observation {
    /// What was asked for.
    pub fn good(text: impl Into<String>) -> Self {
        Observation { text: text.into(), succeeded: true }
    }

    /// Why it was not done, for the model.
    pub fn error(text: impl std::fmt::Display) -> Self {
        Observation { text: format!("error: {text}"), succeeded: false }
    }
}

/// Why a tool gave no answer at all: the sample has no result, and nothing of it is remembered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ToolError(pub String);

/// On what the answers of a tool depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// On its recipe and the input, worked out in this process: they need not be remembered.
    Pure,
    /// The same, worked out elsewhere: remembered once for all samples.
    Deterministic,
    /// On the moment too: each call of each sample is remembered with what it saw.
    Varying,
}

/// A tool of an agent.
pub trait Tool: Send + Sync {
    /// The name by which the model calls it.
    fn name(&self) -> &str;
    /// How the instructions describe it: `name[<input>] does this`.
    fn usage(&self) -> String;
    /// The tool as a request offers it: one text goes in.
    fn spec(&self) -> ToolSpec {
        let parameters = serde_json::json!({
            "type": "object",
            "properties": { "input": { "type": "string", "description": "what stands in the brackets" } },
            "required": ["input"],
        });
        ToolSpec { name: self.name().to_owned(), description: self.usage(), parameters }
    }
    /// The input of a call in the provider's own form, from its arguments.
    fn input_of(&self, arguments: &str) -> String {
        input_of(arguments)
    }
    /// Bytes of its longest answer, for what asking may cost.
    fn bytes_max(&self) -> u64 {
        BYTES_MAX
    }
    /// On what its answers depend.
    fn answers(&self) -> Answers {
        Answers::Pure
    }
    /// Answers a call. A wrong input is an observation, and no error.
    fn call<'a>(&'a self, input: &'a str) -> BoxFuture<'a, Result<Observation, ToolError>>;
    /// Adds all that decides its answers to a recipe.
    fn describe(&self, recipe: Recipe) -> Recipe;
}

/// The built-in tools by name. To add one: a file, its `mod` line, its line here and in `stage/workflow/tools`.
pub const TOOLS: &[&str] = &["calculator", "lookup"];

/// Bytes of the longest answer of a tool that says nothing else.
const BYTES_MAX: u64 = 1024;

/// Bytes of a text of so many characters, with a note that it was cut.
pub fn bytes_of(characters: usize) -> u64 {
    4 * characters as u64 + 64
}

/// An answer that is there at once.
fn ready<'a>(observation: Observation) -> BoxFuture<'a, Result<Observation, ToolError>> {
    std::future::ready(Ok(observation)).boxed()
}

/// A text of at most `most` characters, with a note where something was left out.
pub fn limited(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((at, _)) => format!("{} … [cut after {most} characters]", text[..at].trim_end()),
    }
}

/// The input of a call in a provider's own form: the text under `input`, else the only text there is, else
/// the arguments as they stand.
pub fn input_of(arguments: &str) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match serde_json::from_str::<Value>(arguments) {
        Ok(Value::Object(map)) => match (map.get("input"), map.len()) {
            (Some(input), _) => text(input),
            (None, 1) => map.values().next().map_or_else(String::new, text),
            (None, _) => arguments.to_owned(),
        },
        Ok(Value::String(text)) => text,
        _ => arguments.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_answers_are_cut_between_characters() {
        assert_eq!(limited("naïve", 5), "naïve");
        assert_eq!(limited("naïveté", 3), "naï … [cut after 3 characters]");
    }

    #[test]
    fn the_input_of_a_call_is_found_in_most_forms() {
        assert_eq!(input_of(r#"{"input": "2+3"}"#), "2+3");
        assert_eq!(input_of(r#"{"expression": "2+3"}"#), "2+3");
        assert_eq!(input_of(r#"{"input": 23}"#), "23");
        assert_eq!(input_of(r#""2+3""#), "2+3");
        assert_eq!(input_of("2+3"), "2+3");
        assert_eq!(input_of(r#"{"a": 1, "b": 2}"#), r#"{"a": 1, "b": 2}"#);
    }
}
