//! What is remembered under a key. Knows nothing of where it is kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{Digest, Recipe};
use crate::record::PhasesMs;
use crate::sample::Usage;

/// What a recipe gave. Passing failures (429, time-outs, crashes) are never recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A value by port.
    Value(BTreeMap<String, Port>),
    /// A refusal that asking again would not change.
    Rejected {
        /// Short name, such as `overflow`.
        code: String,
        /// The provider's words.
        detail: String,
    },
}

/// A part of a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// Small: the value itself.
    Inline(Value),
    /// Large: where its bytes are.
    Blob(Digest),
}

/// How a record came to be. Stored, never hashed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Witness {
    /// ULID of the run.
    pub run: String,
    /// Version of this program.
    pub tool: String,
    /// Milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Where the time went.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub phases_ms: PhasesMs,
    /// Tokens.
    #[serde(default)]
    pub usage: Usage,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
    /// Whatever else was observed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub observed: Option<Value>,
}

/// A remembered result, with the recipe that made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What it depends on: explains a miss, and proves the key.
    pub recipe: Recipe,
    /// What came of it.
    pub outcome: Outcome,
    /// How.
    pub witness: Witness,
}

impl Record {
    /// A port's inline value.
    pub fn inline(&self, port: &str) -> Option<&Value> {
        match self.port(port)? {
            Port::Inline(value) => Some(value),
            Port::Blob(_) => None,
        }
    }

    /// A port's blob.
    pub fn blob(&self, port: &str) -> Option<Digest> {
        match self.port(port)? {
            Port::Blob(digest) => Some(*digest),
            Port::Inline(_) => None,
        }
    }

    fn port(&self, port: &str) -> Option<&Port> {
        match &self.outcome {
            Outcome::Value(ports) => ports.get(port),
            Outcome::Rejected { .. } => None,
        }
    }

    /// Every blob that it names: those of its value, and the inputs of its recipe, which may be files in the
    /// store.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        let ports = match &self.outcome {
            Outcome::Value(ports) => Some(ports.values()),
            Outcome::Rejected { .. } => None,
        };
        let of_port = |port: &Port| match port {
            Port::Blob(digest) => Some(*digest),
            Port::Inline(_) => None,
        };
        ports.into_iter().flatten().filter_map(of_port)
    }
}

/// A line's JSON: the record itself, or the blob that holds it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kept {
    Record(Box<Record>),
    Blob(Digest),
}
