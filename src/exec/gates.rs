//! The results that gates look at: those of a run or of the store, and those of a baseline, by the keys of its lock
//! file. Nothing is run. Knows nothing of git, and nothing of how verdicts are shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Locked;
use crate::gate::{Baseline, Gate};
use crate::graph::Graph;
use crate::manifest::{Diagnostic, Sink, Spanned};
use crate::record::Verdict;
use crate::stage::{Samples, StageError, read_cell};
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
}

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
        Gates { graph, others }
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
        let mut verdicts: BTreeMap<(usize, usize), Vec<Verdict>> = BTreeMap::new();
        // Workflow by workflow: the samples of one of them are in memory at a time.
        for (node, of) in self.graph.nodes().iter().enumerate() {
            let asked = gates.iter().enumerate();
            let asked: Vec<(usize, &Gate, usize)> = asked
                .filter_map(|(i, (gate, nodes))| {
                    Some((i, gate, nodes.iter().position(|n| *n == node)?))
                })
                .collect();
            if asked.is_empty() || !wanted(node) {
                continue;
            }
            let Some(samples) = found.get(&node) else {
                let without = |(i, gate, place): (usize, &Gate, usize)| {
                    verdicts.insert((i, place), gate.without(&of.name));
                };
                asked.into_iter().for_each(without);
                continue;
            };
            let cell = read_cell(samples, store)?;
            for (i, gate, place) in asked {
                let other = self.others.get(&(i, node));
                let baseline = other.map(|other| read_baseline(other, samples, store));
                let said = gate
                    .judge(&cell, baseline.transpose()?.as_ref())
                    .map_err(|error| StageError::User(format!("gate `{}`: {error}", gate.name)))?;
                verdicts.insert((i, place), said);
            }
        }
        let is_silent = |i: &usize| !verdicts.keys().any(|(gate, _)| gate == i);
        let silent = (0..gates.len()).filter(is_silent).map(|i| gates[i].0.name.as_str()).collect();
        Ok((verdicts.into_values().flatten().collect(), silent))
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
