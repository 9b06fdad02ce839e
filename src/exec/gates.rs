//! The results that gates look at: those of a run or of the store, and those of a baseline, by the keys of its lock
//! file. Nothing is run. Knows nothing of git, and nothing of how verdicts are shown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::Locked;
use crate::digest::Digest;
use crate::gate::{Baseline, Gate};
use crate::graph::Graph;
use crate::manifest::{Diagnostic, Sink, Spanned};
use crate::record::Verdict;
use crate::stage::{Judge, Samples, StageError, read_cell};
use crate::store::Store;

/// What a revision of the project, or a file, says of results.
pub enum Committed {
    /// Its lock file.
    Lock(Locked),
    /// It has none, and which one is missing.
    Nothing(String),
}

/// Where the other side of a gate is.
#[derive(Clone)]
enum Other {
    Absent(String),
    Samples(Box<Samples>),
}

/// Gates with all that they need beside the results to come.
pub struct Gates {
    graph: Arc<Graph>,
    /// By gate and node.
    others: BTreeMap<(usize, usize), Other>,
    /// What was said already, by node, of which samples: a report asks first, and then the end of the run.
    said: Mutex<BTreeMap<usize, (Tables, Said)>>,
}

/// A table of samples, and of what was observed of them.
type Tables = (Digest, Digest);
/// Verdicts by gate and by the place of the workflow in it.
type Said = BTreeMap<(usize, usize), Vec<Verdict>>;

impl Gates {
    /// Finds the baselines of all gates, before anything is paid for. `committed` holds what each baseline that a
    /// gate names stands for. Results that a lock file names and the store does not have are said to `sink`.
    pub async fn prepare(
        graph: Arc<Graph>,
        store: &Store,
        committed: &BTreeMap<String, Committed>,
        sink: &Sink,
    ) -> Gates {
        let mut others = BTreeMap::new();
        for (i, (gate, nodes)) in graph.gates().iter().enumerate() {
            let Some(baseline) = &gate.baseline else { continue };
            let lock = match &committed[&baseline.value] {
                Committed::Lock(lock) => Ok(lock),
                Committed::Nothing(why) => Err(why),
            };
            for &node in nodes {
                let stage = &graph.nodes()[node].name;
                let other = match lock {
                    Ok(lock) => find(stage, baseline, lock, store).await,
                    Err(why) => Ok(Other::Absent(why.clone())),
                };
                match other {
                    Ok(other) => {
                        others.insert((i, node), other);
                    }
                    Err(diagnostic) => sink.push(diagnostic),
                }
            }
        }
        Gates { graph, others, said: Mutex::default() }
    }

    /// What all gates say of the results that are there, in the order of the manifest; also the names of the gates
    /// that nobody asked, for nothing that they look at was `wanted`.
    ///
    /// # Errors
    /// A tag that samples do not have, or results that are damaged.
    pub fn judge(
        &self,
        store: &Store,
        found: &BTreeMap<usize, Arc<Samples>>,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<(Vec<Verdict>, Vec<&str>), StageError> {
        let gates = self.graph.gates();
        let mut verdicts = Said::new();
        // Workflow by workflow: the samples of one of them are in memory at a time.
        for (node, of) in self.graph.nodes().iter().enumerate().filter(|(node, _)| wanted(*node)) {
            match found.get(&node) {
                Some(samples) => verdicts.extend(self.say(node, samples, store)?),
                None => {
                    let without = |(i, gate, place): (usize, &Gate, usize)| {
                        ((i, place), gate.without(&of.name))
                    };
                    verdicts.extend(self.asked(node).map(without));
                }
            }
        }
        let is_silent = |i: &usize| !verdicts.keys().any(|(gate, _)| gate == i);
        let silent = (0..gates.len()).filter(is_silent).map(|i| gates[i].0.name.as_str()).collect();
        Ok((verdicts.into_values().flatten().collect(), silent))
    }

    /// The gates that look at a node, each with its number and the node's place in it.
    fn asked(&self, node: usize) -> impl Iterator<Item = (usize, &Gate, usize)> {
        self.graph.gates().iter().enumerate().filter_map(move |(i, (gate, nodes))| {
            Some((i, gate, nodes.iter().position(|n| *n == node)?))
        })
    }

    /// What they say of its samples.
    fn say(&self, node: usize, samples: &Samples, store: &Store) -> Result<Said, StageError> {
        if self.asked(node).next().is_none() {
            return Ok(Said::new());
        }
        let tables = (samples.table, samples.observed);
        let known = || self.said.lock().expect("BUG: the verdict lock is poisoned");
        if let Some((_, said)) = known().get(&node).filter(|(of, _)| *of == tables) {
            return Ok(said.clone());
        }
        let cell = read_cell(samples, store)?;
        let mut said = Said::new();
        for (i, gate, place) in self.asked(node) {
            let other = self.others.get(&(i, node));
            let baseline = other.map(|other| read_baseline(other, samples, store));
            let verdicts = gate
                .judge(&cell, baseline.transpose()?.as_ref())
                .map_err(|error| StageError::User(format!("gate `{}`: {error}", gate.name)))?;
            said.insert((i, place), verdicts);
        }
        known().insert(node, (tables, said.clone()));
        Ok(said)
    }

    fn node(&self, stage: &str) -> Option<usize> {
        self.graph.nodes().iter().position(|node| node.name == stage)
    }
}

impl Judge for Gates {
    fn describe(&self, stages: &[&str]) -> Option<Value> {
        let mut out = serde_json::Map::new();
        for &stage in stages {
            let Some(node) = self.node(stage) else { continue };
            for (i, gate, _) in self.asked(node) {
                let baseline = self.others.get(&(i, node)).map(|other| match other {
                    Other::Absent(why) => json!({ "absent": why }),
                    Other::Samples(samples) => json!(samples.table),
                });
                let entry = out.entry(&gate.name).or_insert_with(|| gate.describe());
                entry["of"][stage] = json!(baseline);
            }
        }
        (!out.is_empty()).then_some(Value::Object(out))
    }

    fn verdicts(&self, samples: &[&Samples], store: &Store) -> Result<Vec<Verdict>, StageError> {
        let mut verdicts = Said::new();
        for samples in samples {
            if let Some(node) = self.node(&samples.stage) {
                verdicts.extend(self.say(node, samples, store)?);
            }
        }
        Ok(verdicts.into_values().flatten().collect())
    }
}

async fn find(
    stage: &str,
    Spanned { value: baseline, span }: &Spanned<String>,
    lock: &Locked,
    store: &Store,
) -> Result<Other, Diagnostic> {
    let Some(key) = lock.key(stage) else {
        let known: Vec<_> = lock.workflows().map(|name| format!("`{name}`")).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Ok(Other::Absent(format!(
            "`{baseline}` has no workflow `{stage}` (known: {known})"
        )));
    };
    let record = store.find(key).await.map(|(record, _)| record);
    if let Some(record) = &record {
        store.find_blobs(record).await;
    }
    let samples = record.and_then(|record| Samples::of_record(stage, key, &record));
    match samples.filter(|samples| samples.is_there(store)) {
        Some(samples) => Ok(Other::Samples(Box::new(samples))),
        None => {
            let message = format!(
                "the store has no results of `{stage}` as of `{baseline}` (key {})",
                key.short()
            );
            let hint = "run `forge apply` there, or name the shared store that has them: `--remote`, `[store] remote`";
            Err(Diagnostic::at(*span, message).hint(hint))
        }
    }
}

fn read_baseline(other: &Other, ours: &Samples, store: &Store) -> Result<Baseline, StageError> {
    Ok(match other {
        Other::Absent(why) => Baseline::Absent(why.clone()),
        Other::Samples(theirs) if theirs.table == ours.table => Baseline::Same,
        Other::Samples(theirs) => Baseline::Cell(Box::new(read_cell(theirs, store)?)),
    })
}
