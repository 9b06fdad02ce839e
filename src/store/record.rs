//! What is remembered under a key. Knows nothing of where it is kept.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{Digest, Recipe};
use crate::record::PhasesMs;
use crate::sample::Usage;

/// What a recipe gave. Passing failures (429, time-outs, crashes) are never recorded.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// Small: the value itself.
    Inline(Value),
    /// Large: where its bytes are.
    Blob(Digest),
    /// The same as `Inline`, as the JSON that it was written as elsewhere already; read back as `Inline`.
    #[serde(skip)]
    Written(Bytes),
}

impl Port {
    fn json(&self) -> Option<Value> {
        match self {
            Port::Blob(_) => None,
            Port::Inline(value) => Some(value.clone()),
            Port::Written(json) => serde_json::from_slice(json).ok(),
        }
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
    pub tool: Cow<'static, str>,
    /// Milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Where the time went.
    #[serde(skip_serializing_if = "PhasesMs::is_empty", default)]
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
    /// The same as JSON that was written elsewhere already; read back as `observed`.
    #[serde(skip)]
    pub written: Option<Bytes>,
}

/// A remembered result, with the recipe that made it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
            Port::Blob(_) | Port::Written(_) => None,
        }
    }

    /// A port's blob.
    pub fn blob(&self, port: &str) -> Option<Digest> {
        match self.port(port)? {
            Port::Blob(digest) => Some(*digest),
            _ => None,
        }
    }

    /// Its JSON, added to `out`. What was written already is not written again, which no serializer of
    /// `serde_json` without its raw values can do.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"recipe\":");
        self.recipe.write(out);
        match &self.outcome {
            Outcome::Value(ports) => {
                out.extend_from_slice(b",\"outcome\":{\"value\":{");
                for (i, (name, port)) in ports.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    json(name, out);
                    match port {
                        Port::Blob(digest) => {
                            out.extend_from_slice(b":{\"blob\":");
                            json(digest, out);
                        }
                        Port::Inline(value) => {
                            out.extend_from_slice(b":{\"inline\":");
                            json(value, out);
                        }
                        Port::Written(value) => {
                            out.extend_from_slice(b":{\"inline\":");
                            out.extend_from_slice(value);
                        }
                    }
                    out.push(b'}');
                }
            }
            Outcome::Rejected { code, detail } => {
                out.extend_from_slice(b",\"outcome\":{\"rejected\":{\"code\":");
                json(code, out);
                out.extend_from_slice(b",\"detail\":");
                json(detail, out);
            }
        }
        out.extend_from_slice(b"}},\"witness\":");
        json(&self.witness, out);
        if let Some(observed) = &self.witness.written {
            // Behind the last field.
            out.pop();
            out.extend_from_slice(b",\"observed\":");
            out.extend_from_slice(observed);
            out.push(b'}');
        }
        out.push(b'}');
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
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kept {
    Record(Box<Record>),
    Blob(Digest),
}

/// The JSON of a line that holds a record, added to `out`.
pub(super) fn write_kept(record: &Record, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"record\":");
    record.write(out);
    out.push(b'}');
}

/// The JSON of a line that names the blob of a record, added to `out`.
pub(super) fn write_kept_in(blob: Digest, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"blob\":");
    json(&blob, out);
    out.push(b'}');
}

/// A value as JSON, as rows and records hold it.
pub fn json_bytes(value: &impl Serialize) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    json(value, &mut out);
    out.into()
}

fn json(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("BUG: plain data always becomes JSON");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let ports = [
            ("a".to_owned(), Port::Inline(serde_json::json!({"x": [1, 2.5, "\n"]}))),
            ("b".to_owned(), Port::Blob(Digest::of(b"b"))),
            ("c".to_owned(), Port::Written(Bytes::from_static(b"{\"y\":null}"))),
        ];
        let seen = serde_json::json!({"seen": true});
        let witness = Witness { run: "r".into(), attempts: 2, ..Witness::default() };
        let recipe = Recipe::new("sample", 1).field("n", 3_u32).input("i", Digest::of(b"i"));
        let written = Some(json_bytes(&seen));
        let rejected = Outcome::Rejected { code: "overflow".into(), detail: "\"too\" long".into() };
        for outcome in [Outcome::Value(ports.into()), Outcome::Value([].into()), rejected] {
            for (observed, written) in
                [(None, None), (Some(seen.clone()), None), (None, written.clone())]
            {
                let witness = Witness { observed, written, ..witness.clone() };
                let record = Record { recipe: recipe.clone(), outcome: outcome.clone(), witness };
                let mut out = Vec::new();
                write_kept(&record, &mut out);
                let Kept::Record(read) = serde_json::from_slice(&out).unwrap() else {
                    panic!("no record")
                };
                assert_eq!((&read.recipe, &read.outcome), (&record.recipe, &record.outcome));
                let expected =
                    record.witness.observed.is_some() || record.witness.written.is_some();
                assert_eq!(read.witness.observed, expected.then(|| seen.clone()));
            }
        }
        let mut out = Vec::new();
        write_kept_in(Digest::of(b"b"), &mut out);
        assert!(matches!(serde_json::from_slice(&out), Ok(Kept::Blob(b)) if b == Digest::of(b"b")));
    }
}
