//! What is remembered under a key. Knows nothing of where it is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::digest::{Digest, Recipe};
use crate::record::{Observed, PhasesMs};
use crate::sample::{Completion, Sample, Usage};

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
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// Small: the value itself.
    Inline(Value),
    /// Large: where its bytes are.
    Blob(Digest),
    /// The same as `Inline`, as it was made: written as it stands, and never read.
    #[serde(rename = "inline", skip_deserializing, serialize_with = "shared")]
    Sample(Arc<Sample>),
    /// The same.
    #[serde(rename = "inline", skip_deserializing, serialize_with = "shared")]
    Completion(Arc<Completion>),
}

fn shared<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().serialize(serializer)
}

fn maybe_shared<T: Serialize, S: Serializer>(
    value: &Option<Arc<T>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.as_deref().serialize(serializer)
}

impl Port {
    fn json(&self) -> Option<Value> {
        let json = |made: Result<Value, serde_json::Error>| made.expect("BUG: it is plain data");
        Some(match self {
            Port::Blob(_) => return None,
            Port::Inline(value) => value.clone(),
            Port::Sample(sample) => json(serde_json::to_value(sample.as_ref())),
            Port::Completion(completion) => json(serde_json::to_value(completion.as_ref())),
        })
    }
}

/// Equal is what is written equally.
impl PartialEq for Port {
    fn eq(&self, other: &Port) -> bool {
        match (self, other) {
            (Port::Inline(a), Port::Inline(b)) => a == b,
            (Port::Blob(a), Port::Blob(b)) => a == b,
            _ => self.json().is_some() && self.json() == other.json(),
        }
    }
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
    /// Whatever else was observed, as it is read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub observed: Option<Value>,
    /// The same of a sample, as it was made: written under the same name, and never read.
    #[serde(
        rename = "observed",
        skip_serializing_if = "Option::is_none",
        skip_deserializing,
        serialize_with = "maybe_shared"
    )]
    pub made: Option<Arc<Observed>>,
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
            Port::Blob(_) | Port::Sample(_) | Port::Completion(_) => None,
        }
    }

    /// A port's blob.
    pub fn blob(&self, port: &str) -> Option<Digest> {
        match self.port(port)? {
            Port::Blob(digest) => Some(*digest),
            _ => None,
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
            _ => None,
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
