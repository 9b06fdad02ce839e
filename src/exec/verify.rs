//! The results that a lock file claims, worked out again from the store: keys, flows, transcripts, scores,
//! reports. No engine is asked. Knows nothing of how a verdict is shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{Digest, Key};
use crate::graph::{Graph, Node};
use crate::plan::{Gathered, gather};
use crate::record::TallySummary;
use crate::stage::{Artifact, Context, Inputs, Samples, StageError};

/// What a lock file says of a stage.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct LockedStage {
    /// Its kind.
    pub kind: String,
    /// Its key; reports have none.
    pub key: Option<Key>,
    /// Digest of its recipe.
    pub recipe: Option<Digest>,
    /// Digest of its result: of a workflow, its table of samples.
    pub result: Option<Digest>,
    samples: Option<u64>,
    #[serde(default)]
    outcomes: BTreeMap<String, u64>,
    #[serde(default)]
    metrics: BTreeMap<String, f64>,
}

/// A lock file as far as it is compared.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Locked {
    version: u32,
    /// Its stages by name.
    #[serde(default)]
    pub stage: BTreeMap<String, LockedStage>,
}

impl Locked {
    /// The key of a stage.
    pub fn key(&self, stage: &str) -> Option<Key> {
        self.stage.get(stage)?.key
    }

    /// The stages that have samples.
    pub fn workflows(&self) -> impl Iterator<Item = &str> {
        let has_samples = |(_, stage): &(&String, &LockedStage)| stage.samples.is_some();
        self.stage.iter().filter(has_samples).map(|(name, _)| name.as_str())
    }

    /// Reads a lock file.
    ///
    /// # Errors
    /// The words of the parser with the place, or that the version is another one.
    pub fn parse(text: &str) -> Result<Locked, String> {
        let locked: Locked = toml::from_str(text).map_err(|error| error.to_string())?;
        match locked.version {
            super::lock::VERSION => Ok(locked),
            other => Err(format!(
                "it has version {other}, and this program knows {}",
                super::lock::VERSION
            )),
        }
    }
}

/// What came of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Its name.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// How it was worked out.
    pub how: String,
    /// What is not as the lock file says; empty where all is.
    pub differences: Vec<String>,
}

/// Works out every stage of a lock file again and compares. `context` must be frozen.
pub async fn verify(
    graph: &Graph,
    context: &Context,
    locked: &Locked,
) -> Result<Vec<Verdict>, StageError> {
    let mut artifacts: BTreeMap<usize, Artifact> = BTreeMap::new();
    let mut verdicts = BTreeMap::new();
    for &i in graph.order() {
        let node = &graph.nodes()[i];
        let mut verdict = Verdict {
            stage: node.name.clone(),
            kind: node.kind.to_owned(),
            how: String::new(),
            differences: Vec::new(),
        };
        match locked.stage.get(&node.name) {
            None => verdict.differences.push("the lock file does not know it".to_owned()),
            Some(locked) if locked.kind != node.kind => verdict
                .differences
                .push(format!("kind: {} in the lock file, {} now", locked.kind, node.kind)),
            Some(_) => {}
        }
        match gather(node, graph, &artifacts) {
            Gathered::Waiting(on) => {
                verdict.differences.push(format!("nothing can be said without {}", on.join(", ")));
            }
            Gathered::Inputs(inputs) => {
                let locked = locked.stage.get(&node.name);
                if let Some(artifact) =
                    work_out(node, &inputs, context, locked, &mut verdict).await?
                {
                    artifacts.insert(i, artifact);
                }
            }
        }
        verdicts.insert(i, verdict);
    }
    let known: Vec<&str> = graph.nodes().iter().map(|node| node.name.as_str()).collect();
    let mut verdicts: Vec<Verdict> = verdicts.into_values().collect();
    for (name, stage) in locked.stage.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
        verdicts.push(Verdict {
            stage: name.clone(),
            kind: stage.kind.clone(),
            how: String::new(),
            differences: vec!["the manifest does not have it any more".to_owned()],
        });
    }
    Ok(verdicts)
}

async fn work_out(
    node: &Node,
    inputs: &Inputs,
    context: &Context,
    locked: Option<&LockedStage>,
    verdict: &mut Verdict,
) -> Result<Option<Artifact>, StageError> {
    let recipe = node.stage.recipe(inputs, context).await?;
    let key = recipe.key();
    if let Some(was) = locked.and_then(|locked| locked.key).filter(|was| *was != key) {
        let before = context.store.find(was).await.map(|(record, _)| record.recipe);
        let fields = before.map(|before| recipe.differences_from(&before)).unwrap_or_default();
        let fields: Vec<_> = fields.iter().map(|field| field.sentence()).collect();
        verdict.differences.push(match fields.is_empty() {
            true => format!("key: {} in the lock file, {} now", was.short(), key.short()),
            false => format!("key: {}", fields.join(", ")),
        });
    }
    let record = context.store.find(key).await.map(|(record, _)| record);
    if let Some(record) = &record {
        context.store.find_blobs(record).await;
    }
    let stored = record.as_ref().and_then(|r| node.stage.restore(r, &recipe, inputs, context));
    let artifact = if let Some(workflow) = node.stage.as_workflow() {
        let (table, summary) = match workflow.replay(inputs, context).await {
            Ok(replayed) => replayed,
            Err(StageError::Missing(why)) => {
                verdict.differences.push(why);
                return Ok(None);
            }
            Err(other) => return Err(other),
        };
        verdict.how = format!("{} samples replayed and scored again", summary.samples);
        if let Some(locked) = locked {
            compare_summary(locked, &summary, verdict);
            compare_result(locked, table, verdict);
        }
        match stored {
            // Reports show what was observed, which nothing can work out again.
            Some(Artifact::Samples(samples)) if samples.table == table => {
                Some(Artifact::Samples(samples))
            }
            Some(Artifact::Samples(samples)) => {
                verdict.differences.push(format!(
                    "the store remembers {}, and the replay gives {}",
                    samples.table.short(),
                    table.short()
                ));
                Some(Artifact::Samples(Samples { summary, ..(*samples).clone() }.into()))
            }
            _ => None,
        }
    } else if node.stage.runs_in_plan() {
        "worked out again".clone_into(&mut verdict.how);
        match node.stage.run(inputs, context, &|_| {}).await {
            Ok(done) => Some(done.artifact),
            Err(error) => {
                verdict.differences.push(error.to_string());
                None
            }
        }
    } else if node.kind == "report" {
        return verify_report(node, inputs, context, stored.is_some().then_some(key), verdict)
            .await;
    } else {
        match &stored {
            Some(artifact) if artifact.is_whole(&context.store).await => {
                "taken from the store: programs are not run".clone_into(&mut verdict.how);
            }
            _ => verdict.differences.push("the store does not have its result".to_owned()),
        }
        stored
    };
    if node.stage.as_workflow().is_none()
        && let (Some(locked), Some(artifact)) = (locked, &artifact)
    {
        compare_result(locked, artifact.digest().await?, verdict);
    }
    Ok(artifact)
}

/// Makes the report again and compares it with the one that is remembered, but for what is said of the run.
async fn verify_report(
    node: &Node,
    inputs: &Inputs,
    context: &Context,
    stored: Option<Key>,
    verdict: &mut Verdict,
) -> Result<Option<Artifact>, StageError> {
    let without_run = |digest: Option<Digest>| -> Option<Value> {
        let bytes = context.store.blob(digest?)?;
        let mut report: Value = serde_json::from_slice(&bytes).ok()?;
        report.as_object_mut()?.remove("run");
        Some(report)
    };
    let record = stored.and_then(|key| context.store.get(key));
    let before = without_run(record.and_then(|record| record.blob("json")));
    let done = match node.stage.run(inputs, context, &|_| {}).await {
        Ok(done) => done,
        Err(error) => {
            verdict.differences.push(error.to_string());
            return Ok(None);
        }
    };
    let made = match &done.artifact {
        Artifact::Files(files) => files.files.get("report.json").copied(),
        _ => None,
    };
    "made again".clone_into(&mut verdict.how);
    match (before, without_run(made)) {
        (Some(before), Some(now)) if before != now => {
            verdict.differences.push("it shows other numbers than the remembered one".to_owned());
        }
        (Some(_), Some(_)) => verdict.how.push_str(", and shows what the remembered one shows"),
        _ => verdict.how.push_str("; there is no remembered report.json to compare with"),
    }
    Ok(Some(done.artifact))
}

fn compare_result(locked: &LockedStage, result: Digest, verdict: &mut Verdict) {
    if let Some(was) = locked.result.filter(|was| *was != result) {
        let text = format!("result: {} in the lock file, {} now", was.short(), result.short());
        verdict.differences.push(text);
    }
}

fn compare_summary(locked: &LockedStage, summary: &TallySummary, verdict: &mut Verdict) {
    let mut compare = |name: &str, was: String, now: String| {
        if was != now {
            verdict.differences.push(format!("{name}: {was} in the lock file, {now} now"));
        }
    };
    if let Some(samples) = locked.samples {
        compare("samples", samples.to_string(), summary.samples.to_string());
    }
    let names = |a: Vec<&String>, b: Vec<&String>| -> std::collections::BTreeSet<String> {
        a.into_iter().chain(b).cloned().collect()
    };
    for name in names(locked.outcomes.keys().collect(), summary.outcomes.keys().collect()) {
        let count = |table: &BTreeMap<String, u64>| table.get(&name).copied().unwrap_or(0);
        compare(&name, count(&locked.outcomes).to_string(), count(&summary.outcomes).to_string());
    }
    for name in names(locked.metrics.keys().collect(), summary.metrics.keys().collect()) {
        // As the lock file writes them.
        let show = |value: Option<f64>| value.map_or("none".to_owned(), |v| format!("{v:.6}"));
        let now = summary.metrics.get(&name).copied().flatten();
        compare(&name, show(locked.metrics.get(&name).copied()), show(now));
    }
}
