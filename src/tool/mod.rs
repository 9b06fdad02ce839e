//! Tools that an agent can call. Knows nothing of methods or engines; a tool does no I/O: what it needs
//! is read before the run and is part of the sample's key.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::digest::{Digest, Recipe};
use crate::sample::ToolSpec;

pub mod calculator;
pub mod lookup;

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The text for the model.
    pub text: String,
    /// Whether the tool did what was asked.
    pub succeeded: bool,
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
    /// Answers a call. Never fails: a wrong input is an observation.
    fn call(&self, input: &str) -> Observation;
    /// Adds all that decides its answers to a recipe.
    fn describe(&self, recipe: Recipe) -> Recipe;
}

/// The built-in tools by name. To add one: a file, its `mod` line, its line here and in [`build`].
pub const TOOLS: &[&str] = &["calculator", "lookup"];

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

/// Makes the tools named in a manifest, in that order. `table` is the content of the lookup file.
pub fn build(
    names: &[String],
    table: Option<(Digest, BTreeMap<String, String>)>,
) -> Vec<Box<dyn Tool>> {
    let mut table = table;
    names
        .iter()
        .map(|name| match name.as_str() {
            "calculator" => Box::new(calculator::Calculator) as Box<dyn Tool>,
            "lookup" => {
                let (digest, rows) = table.take().expect("BUG: `lookup` without its table");
                Box::new(lookup::Lookup::new(digest, rows))
            }
            other => panic!("BUG: unknown tool `{other}` passed the manifest"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
