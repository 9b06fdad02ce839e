//! One expanded unit of work: what is asked, and which answers are accepted. Knows nothing of replies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request::Role;
use crate::digest::Digest;

/// A text of a flow: rendered at expansion, or waiting for the output of an earlier step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Text {
    /// Exactly these bytes.
    Ready(String),
    /// A template that reads `steps.<id>.output`.
    Later(String),
}

/// A worked example shown before the question. Each method writes it in its own format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shot {
    /// The example's question.
    pub user: String,
    /// The way to the answer, for methods that show one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reasoning: Option<String>,
    /// Its answer.
    pub answer: String,
}

/// A message before the question of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// User or assistant.
    pub role: Role,
    /// What is said.
    pub content: Text,
}

/// How observations of tools go back to the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservationFormat {
    /// Whose turn carries them.
    pub role: Role,
    /// What stands before the observation.
    pub prefix: String,
}

impl Default for ObservationFormat {
    fn default() -> Self {
        ObservationFormat { role: Role::User, prefix: "Observation: ".to_owned() }
    }
}

/// One step of a flow: a question to the model, with a method around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Name by which later steps see its output.
    pub id: String,
    /// System prompt of the template; a method adds its instructions below.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub system: Option<Text>,
    /// Worked examples.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub shots: Vec<Shot>,
    /// Messages between worked examples and question.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub messages: Vec<Said>,
    /// The question.
    pub user: Text,
    /// How the reply begins: a turn of the assistant that the model goes on with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prefill: Option<Text>,
    /// Bound on the reply; absent takes the workflow's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_tokens: Option<u32>,
    /// Further stop strings.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stop: Vec<String>,
    /// Whether the conversation of the steps before goes on, or a new one begins.
    pub continues: bool,
    /// How tools answer.
    pub observation: ObservationFormat,
}

/// One expanded unit of work: template × row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Name for people: from the template's `id`, else from the row's position.
    pub id: String,
    /// How many flows with the same steps come before this one.
    pub occurrence: u32,
    /// What is asked, in order; the answer of the last one is scored.
    pub steps: Vec<Step>,
    /// Accepted answers; empty where nothing is known to be right.
    pub targets: Vec<String>,
    /// What there is to choose from, where the template says so.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub options: Vec<String>,
    /// Columns kept for grouping and filtering.
    pub tags: BTreeMap<String, String>,
    /// The row, kept only where a later step's template reads it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub row: Option<Value>,
}

impl Flow {
    /// Digest of all that can change its sample; `id` and `tags` are labels.
    pub fn digest(&self) -> Digest {
        match self.options.is_empty() {
            true => Digest::of_json(&(&self.steps, &self.targets, &self.row)),
            false => Digest::of_json(&(&self.steps, &self.targets, &self.row, &self.options)),
        }
    }

    /// Digest of what reaches the model, by which equal rows are counted.
    pub fn steps_digest(&self) -> Digest {
        Digest::of_json(&(&self.steps, &self.row))
    }
}
