//! Graph × store: what is fresh, what is new or changed and why, what has to wait. Knows nothing of
//! how a run is shown.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::{Difference, Digest, Key, Recipe};
use crate::graph::{Graph, Node};
use crate::stage::workflow::{Earlier, RequestExplained, Survey};
use crate::stage::{Artifact, Context, Input, Inputs, StageError};
use crate::store::{Record, Store};

/// What a run would do with a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum State {
    /// Its result is in the store.
    Fresh,
    /// It has never run in this pipeline.
    New,
    /// It has run with other inputs or settings.
    Changed {
        /// What differs from the last run.
        fields: Vec<Difference>,
    },
    /// It ran with exactly this, and the result is gone from the store.
    Lost,
    /// The command line or `cache = false` asks for a new result.
    Forced,
    /// It ran with exactly this, and `forge store gc` has removed the result.
    Collected {
        /// The day.
        on: String,
    },
    /// Its inputs are not known before these stages have run.
    Waiting {
        /// Their names.
        on: Vec<String>,
    },
}

impl State {
    /// The word in plans.
    pub fn name(&self) -> &'static str {
        match self {
            State::Fresh => "fresh",
            State::New => "new",
            State::Changed { .. } => "changed",
            State::Lost => "lost",
            State::Collected { .. } => "collected",
            State::Forced => "forced",
            State::Waiting { .. } => "waiting",
        }
    }
}

/// A stage in a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodePlan {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// What a run would do.
    #[serde(flatten)]
    pub state: State,
    /// Its key, where it is known.
    pub key: Option<Key>,
    /// For workflows: how far the store can answer.
    pub survey: Option<Survey>,
    /// For workflows: how many requests are let in at once, and why.
    pub admission: Option<String>,
}

/// What the last run of a pipeline knew of its stages. A small pointer in the store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LastRun {
    /// ULID of the run that wrote this.
    pub run_id: String,
    /// By stage.
    pub stages: BTreeMap<String, LastStage>,
    /// What runs have put into the work tree.
    #[serde(default)]
    pub views: BTreeMap<String, Digest>,
}

/// A stage in its last run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastStage {
    /// Its key.
    pub key: Key,
    /// Digest of its recipe, kept as a blob.
    pub recipe: Digest,
}

impl LastRun {
    /// What is known of a pipeline; nothing of one that never ran.
    pub fn read(store: &Store, pipeline: &str) -> LastRun {
        let text = store.pointer(&format!("{pipeline}.json"));
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// The recipe of a stage.
    pub fn recipe(&self, store: &Store, stage: &str) -> Option<Recipe> {
        let last = self.stages.get(stage)?;
        let kept = store.blob(last.recipe).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        kept.or_else(|| Some(store.get(last.key)?.recipe))
    }

    /// The table of samples of a workflow.
    pub fn samples(&self, store: &Store, stage: &str) -> Option<Digest> {
        store.get(self.stages.get(stage)?.key)?.blob("samples")
    }
}

/// A stage measured against the store.
pub struct Assessed {
    /// What its result depends on.
    pub recipe: Recipe,
    /// The digest of that.
    pub key: Key,
    /// Its record, if it may be used.
    pub record: Option<Record>,
    /// The artifact of that record, if all of it is there.
    pub artifact: Option<Artifact>,
}

/// Measures one stage, given its inputs. The same for plan and run.
pub async fn assess(
    node: &Node,
    inputs: &Inputs,
    context: &Context,
) -> Result<Assessed, StageError> {
    let recipe = node.stage.recipe(inputs, context).await?;
    let key = recipe.key();
    context.store.hold(key);
    let record = match may_reuse(node, context) {
        true => context.store.find(key).await.map(|(record, _)| record),
        false => None,
    };
    if let Some(record) = &record {
        context.store.find_blobs(record).await;
    }
    let artifact =
        record.as_ref().and_then(|record| node.stage.restore(record, &recipe, inputs, context));
    Ok(Assessed { recipe, key, record, artifact })
}

/// The day on which a result was removed by `forge store gc`, if it was and is not back since.
pub fn collected_on(context: &Context, key: Key) -> Option<String> {
    let unix_ms = context.store.collected(key)?;
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    context.store.get(key).is_none().then(|| text[..10].to_owned())
}

/// Whether a remembered result may be taken.
pub fn may_reuse(node: &Node, context: &Context) -> bool {
    let through = context.options.through && node.stage.as_workflow().is_some();
    node.stage.may_reuse() && !through && !context.options.afresh.contains(&node.name)
}

/// The whole plan. Stages that are quick and pure are run to see further; no engine is asked.
/// `nodes` are those to look at; `None` is all.
pub async fn assess_all(
    graph: &Graph,
    context: &Context,
    nodes: Option<&BTreeSet<usize>>,
) -> Result<Vec<NodePlan>, StageError> {
    let last = LastRun::read(&context.store, &context.pipeline);
    let mut artifacts: BTreeMap<usize, Artifact> = BTreeMap::new();
    let mut plans: BTreeMap<usize, NodePlan> = BTreeMap::new();
    for &i in graph.order().iter().filter(|i| nodes.is_none_or(|nodes| nodes.contains(i))) {
        let node = &graph.nodes()[i];
        let (plan, artifact) = assess_node(node, graph, &artifacts, &last, context).await?;
        if let Some(artifact) = artifact {
            artifacts.insert(i, artifact);
        }
        plans.insert(i, plan);
    }
    Ok(plans.into_values().collect())
}

async fn assess_node(
    node: &Node,
    graph: &Graph,
    artifacts: &BTreeMap<usize, Artifact>,
    last: &LastRun,
    context: &Context,
) -> Result<(NodePlan, Option<Artifact>), StageError> {
    let mut plan = NodePlan {
        name: node.name.clone(),
        kind: node.kind.to_owned(),
        state: State::Fresh,
        key: None,
        survey: None,
        admission: None,
    };
    let inputs = match gather(node, graph, artifacts) {
        Gathered::Inputs(inputs) => inputs,
        Gathered::Waiting(on) => {
            plan.state = State::Waiting { on };
            return Ok((plan, None));
        }
    };
    let assessed = assess(node, &inputs, context).await?;
    plan.key = Some(assessed.key);
    if let Some(workflow) = node.stage.as_workflow() {
        if let Some(Artifact::Samples(samples)) = &assessed.artifact {
            plan.survey = Some(Survey::of_whole(samples, context));
        } else {
            let earlier = Earlier::read(context, last.samples(&context.store, &node.name));
            plan.survey = Some(workflow.survey(&inputs, context, &earlier).await?);
        }
        plan.admission = Some(workflow.admission(workflow.sources(&inputs).1, context));
    }
    if assessed.artifact.is_some() {
        return Ok((plan, assessed.artifact));
    }
    let known = assessed.record.is_some() && node.stage.runs_in_plan();
    if !known {
        plan.state = state(node, &assessed, last, context);
    }
    let artifact = match node.stage.runs_in_plan() {
        false => None,
        true => {
            let ignore = |_| {};
            Some(node.stage.run(&inputs, context, &ignore).await?.artifact)
        }
    };
    Ok((plan, artifact))
}

fn state(node: &Node, assessed: &Assessed, last: &LastRun, context: &Context) -> State {
    if !may_reuse(node, context) {
        return State::Forced;
    }
    if let Some(on) = collected_on(context, assessed.key) {
        return State::Collected { on };
    }
    match last.recipe(&context.store, &node.name) {
        None => State::New,
        Some(before) => {
            let fields = assessed.recipe.differences_from(&before);
            if fields.is_empty() { State::Lost } else { State::Changed { fields } }
        }
    }
}

/// The inputs of a stage, as far as they are known.
pub(crate) enum Gathered {
    /// All of them.
    Inputs(Inputs),
    /// These stages have no result yet.
    Waiting(Vec<String>),
}

pub(crate) fn gather(
    node: &Node,
    graph: &Graph,
    artifacts: &BTreeMap<usize, Artifact>,
) -> Gathered {
    let mut inputs = Inputs::default();
    let mut missing = Vec::new();
    for (port, needed) in &node.needs {
        let stage = graph.nodes()[*needed].name.clone();
        match artifacts.get(needed) {
            Some(artifact) => {
                inputs.0.push(Input { port: port.clone(), stage, artifact: artifact.clone() });
            }
            None => missing.push(stage),
        }
    }
    if missing.is_empty() { Gathered::Inputs(inputs) } else { Gathered::Waiting(missing) }
}

/// Why a stage, or one of its samples, is not what it was in the last run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The stage, or `stage/flow`.
    pub node: String,
    /// Its key now; `None` while it has to wait.
    pub key: Option<Key>,
    /// Whether the store has its result.
    pub remembered: bool,
    /// The day on which `forge store gc` removed the result, where it did.
    pub collected_on: Option<String>,
    /// What differs from the last run; `None` where there was none.
    pub fields: Option<Vec<Difference>>,
    /// Of a workflow that would run: why samples have no answer.
    pub samples: Option<Survey>,
    /// Of a flow: its requests, up to the first that the store cannot answer.
    pub requests: Vec<RequestExplained>,
    /// Stages that have to run before more can be said.
    pub waiting: Vec<String>,
}

/// Explains a stage against the last run of the pipeline, or with `flow` one of its samples.
pub async fn explain(
    graph: &Graph,
    context: &Context,
    target: usize,
    flow: Option<&str>,
) -> Result<Explanation, StageError> {
    let last = LastRun::read(&context.store, &context.pipeline);
    let mut artifacts: BTreeMap<usize, Artifact> = BTreeMap::new();
    let wanted = graph.with_needed(graph.nodes()[target].needs.iter().map(|(_, needed)| *needed));
    for i in graph.order().iter().filter(|i| wanted.contains(i)) {
        let node = &graph.nodes()[*i];
        let Gathered::Inputs(inputs) = gather(node, graph, &artifacts) else { continue };
        let assessed = assess(node, &inputs, context).await?;
        let ignore = |_| {};
        let artifact = match assessed.artifact {
            Some(artifact) => Some(artifact),
            None if node.stage.runs_in_plan() => {
                let run = node.stage.run(&inputs, context, &ignore);
                Some(run.await?.artifact)
            }
            None => None,
        };
        if let Some(artifact) = artifact {
            artifacts.insert(*i, artifact);
        }
    }
    let node = &graph.nodes()[target];
    let name = flow.map_or_else(|| node.name.clone(), |flow| format!("{}/{flow}", node.name));
    let mut explanation = Explanation {
        node: name,
        key: None,
        remembered: false,
        collected_on: None,
        fields: None,
        samples: None,
        requests: Vec::new(),
        waiting: Vec::new(),
    };
    let inputs = match gather(node, graph, &artifacts) {
        Gathered::Inputs(inputs) => inputs,
        Gathered::Waiting(waiting) => return Ok(Explanation { waiting, ..explanation }),
    };
    let earlier = || Earlier::read(context, last.samples(&context.store, &node.name));
    let (recipe, before) = match (flow, node.stage.as_workflow()) {
        (None, workflow) => {
            let assessed = assess(node, &inputs, context).await?;
            if let Some(workflow) = workflow.filter(|_| assessed.artifact.is_none()) {
                let survey = workflow.survey(&inputs, context, &earlier()).await?;
                explanation.samples = Some(survey);
            }
            (assessed.recipe, last.recipe(&context.store, &node.name))
        }
        (Some(_), None) => {
            return Err(StageError::User(format!(
                "`{}` is of kind {}; only workflows have flows",
                node.name, node.kind
            )));
        }
        (Some(flow), Some(workflow)) => {
            let found = workflow.explain_sample(flow, &inputs, context, &earlier()).await?;
            let unknown = || StageError::User(format!("`{}` has no flow `{flow}`", node.name));
            let sample = found.ok_or_else(unknown)?;
            explanation.requests = sample.requests;
            (sample.recipe, sample.before)
        }
    };
    explanation.key = Some(recipe.key());
    explanation.remembered = context.store.get(recipe.key()).is_some();
    explanation.collected_on = collected_on(context, recipe.key());
    explanation.fields = before.map(|before| recipe.differences_from(&before));
    Ok(explanation)
}
