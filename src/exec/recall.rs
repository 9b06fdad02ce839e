//! Results from the store alone, by key: what a run would find there. Nothing is run but what is quick and pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::digest::Digest;
use crate::graph::Graph;
use crate::plan::{Assessed, Gathered, assess, gather};
use crate::record::StageRun;
use crate::stage::{Artifact, Context, Samples, StageError};

/// Results by position in the graph, and how they were found.
type Recalled = BTreeMap<usize, (Assessed, Option<Artifact>)>;

/// What the store has of some nodes and of all that they need; what waits for a result is absent.
async fn find(
    graph: &Graph,
    context: &Context,
    nodes: &BTreeSet<usize>,
) -> Result<Recalled, StageError> {
    let mut artifacts: BTreeMap<usize, Artifact> = BTreeMap::new();
    let mut found = Recalled::new();
    for &i in graph.order().iter().filter(|i| nodes.contains(i)) {
        let node = &graph.nodes()[i];
        let Gathered::Inputs(inputs) = gather(node, graph, &artifacts) else { continue };
        let mut assessed = assess(node, &inputs, context).await?;
        let artifact = match assessed.artifact.take() {
            None if node.stage.runs_in_plan() => {
                Some(node.stage.run(&inputs, context, &|_| {}).await?.artifact)
            }
            artifact => artifact,
        };
        artifacts.extend(artifact.clone().map(|artifact| (i, artifact)));
        found.insert(i, (assessed, artifact));
    }
    Ok(found)
}

/// The samples of the workflows that gates look at.
///
/// # Errors
/// A workflow whose results are not there.
pub async fn recall(
    graph: &Graph,
    context: &Context,
) -> Result<BTreeMap<usize, Arc<Samples>>, StageError> {
    let gated: Vec<usize> =
        graph.gates().iter().flat_map(|(_, nodes)| nodes.iter().copied()).collect();
    let found = find(graph, context, &graph.with_needed(gated.iter().copied())).await?;
    let samples = |i: &usize| match found.get(i) {
        Some((_, Some(Artifact::Samples(samples)))) => Ok((*i, samples.clone())),
        _ => Err(StageError::User(format!(
            "`{}` is not up to date in the store: `forge apply` runs it, and `forge plan` says why",
            graph.nodes()[*i].name
        ))),
    };
    gated.iter().map(samples).collect()
}

/// Some nodes and all that they need as a run would record them; without a result where the store has none.
pub async fn recall_stages(
    graph: &Graph,
    context: &Context,
    nodes: &BTreeSet<usize>,
) -> Result<Vec<StageRun>, StageError> {
    let nodes = graph.with_needed(nodes.iter().copied());
    let found = find(graph, context, &nodes).await?;
    let mut stages = Vec::new();
    for &i in &nodes {
        let node = &graph.nodes()[i];
        let mut stage = StageRun::new(&node.name, node.kind);
        if let Some((assessed, artifact)) = found.get(&i) {
            stage.key = Some(assessed.key);
            let recipe = serde_json::to_vec(&assessed.recipe).expect("BUG: a recipe is plain data");
            // A record holds its recipe; of a stage without one it is kept, for whoever compares.
            stage.recipe = Some(match &assessed.record {
                Some(_) => Digest::of(&recipe),
                None => context.store.put_blob(&recipe)?,
            });
            match artifact {
                Some(Artifact::Samples(samples)) => {
                    stage.result = Some(samples.table);
                    stage.observed = Some(samples.observed);
                    stage.info = Some(samples.info);
                    stage.summary = Some(samples.summary.clone());
                }
                Some(artifact) => stage.result = artifact.digest().await.ok(),
                None => {}
            }
        }
        stages.push(stage);
    }
    Ok(stages)
}
