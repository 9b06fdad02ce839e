//! Tools that an agent can call. Knows nothing of methods or engines; a tool does no I/O: what it needs
//! is read before the run and is part of the sample's key.

use std::collections::BTreeMap;

use crate::digest::{Digest, Recipe};

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
    /// Answers a call. Never fails: a wrong input is an observation.
    fn call(&self, input: &str) -> Observation;
    /// Adds all that decides its answers to a recipe.
    fn describe(&self, recipe: Recipe) -> Recipe;
}

/// The built-in tools by name. To add one: a file, its `mod` line, its line here and in [`build`].
pub const TOOLS: &[&str] = &["calculator", "lookup"];

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
