//! A graph is run: stages start as soon as what they need is there, samples flow between them, events go
//! out. Knows nothing of how events are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::digest::{Digest, Key, Recipe};
use crate::graph::{Graph, Node};
use crate::plan::{self, LastRun, LastStage};
use crate::record::{
    Cause, Event, RECORD_VERSION, RunAbout, RunRecord, RunStatus, StageState, TallySummary, millis,
};
use crate::stage::{Artifact, Context, Done, Input, Inputs, Samples, StageError};
use crate::store::{Record, Witness};

mod gates;
mod lock;
mod recall;
mod verify;

pub use gates::{Committed, Gates};
pub use lock::{Lock, pins};
pub use recall::{recall, recall_stages};
pub use verify::{Locked, LockedStage, Verdict, verify};

/// Which stages a run is about.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Positions in the graph; `None` is all.
    pub nodes: Option<BTreeSet<usize>>,
    /// Only these may work; what they need has to be in the store already.
    pub only: Option<BTreeSet<usize>>,
    /// Whether other stages go on when one fails.
    pub keep_going: bool,
}

/// How a run ended.
pub struct Finished {
    /// The fold of its events.
    pub record: RunRecord,
    /// The first error the user can fix, which decides the exit code.
    pub user_error: bool,
    /// Whether a stage panicked: our bug.
    pub bug: bool,
    /// Samples of each workflow that has a result.
    pub samples: BTreeMap<String, TallySummary>,
    /// Where they are, by position in the graph: for gates.
    pub found: BTreeMap<usize, Arc<Samples>>,
    /// Files that the run put into the work tree, or found there as they should be.
    pub files: Vec<Utf8PathBuf>,
}

/// What is known of a stage while the run goes on.
#[derive(Clone)]
enum Progress {
    Pending,
    Ready(Artifact),
    Failed,
}

struct Run {
    graph: Arc<Graph>,
    context: Arc<Context>,
    selection: Selection,
    progress: Vec<watch::Sender<Progress>>,
    /// Set when a stage fails and the others shall not start.
    halted: Mutex<bool>,
    user_error: Mutex<bool>,
    bug: Mutex<bool>,
    files: Mutex<BTreeMap<String, Digest>>,
    keys: Mutex<BTreeMap<String, LastStage>>,
    /// Who runs a stage again has its turn.
    turns: Vec<tokio::sync::Mutex<()>>,
    /// What the run before knew.
    last: LastRun,
}

/// How one stage ended.
struct Outcome {
    state: StageState,
    key: Option<Key>,
    recipe: Option<Digest>,
    artifact: Option<Artifact>,
    error: Option<String>,
}

/// Runs a graph. `record` is the fold of the events that `context.emit` gets; the caller keeps it.
pub async fn apply(
    graph: Arc<Graph>,
    context: Arc<Context>,
    selection: Selection,
    record: Arc<Mutex<RunRecord>>,
) -> Finished {
    apply_and(graph, context, selection, record, |_| {}).await
}

/// The same, with a look at the samples of its workflows, by position in the graph, before the run is said to have
/// ended: what gates say is part of its record.
pub async fn apply_and(
    graph: Arc<Graph>,
    context: Arc<Context>,
    selection: Selection,
    record: Arc<Mutex<RunRecord>>,
    look: impl FnOnce(&BTreeMap<usize, Arc<Samples>>),
) -> Finished {
    let start = Instant::now();
    let selected: Vec<usize> = match &selection.nodes {
        Some(nodes) => nodes.iter().copied().collect(),
        None => (0..graph.nodes().len()).collect(),
    };
    (context.emit)(Event::RunStarted {
        version: RECORD_VERSION,
        run_id: context.run.id.clone(),
        pipeline: context.pipeline.clone(),
        manifest: context.run.manifest.clone(),
        started_unix_ms: crate::engine::unix_ms(),
        stages: selected
            .iter()
            .map(|i| (graph.nodes()[*i].name.clone(), graph.nodes()[*i].kind.to_owned()))
            .collect(),
        about: about(&context),
    });
    let progress = graph.nodes().iter().map(|_| watch::Sender::new(Progress::Pending)).collect();
    let run = Arc::new(Run {
        turns: graph.nodes().iter().map(|_| tokio::sync::Mutex::default()).collect(),
        last: LastRun::read(&context.store, &context.pipeline),
        graph,
        context,
        selection,
        progress,
        halted: Mutex::new(false),
        user_error: Mutex::new(false),
        bug: Mutex::new(false),
        files: Mutex::default(),
        keys: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    for i in selected {
        let run = run.clone();
        tasks.spawn(async move { run.stage(i).await });
    }
    while tasks.join_next().await.is_some() {}
    let found = |(i, progress): (usize, &watch::Sender<Progress>)| match &*progress.borrow() {
        Progress::Ready(Artifact::Samples(samples)) => Some((i, samples.clone())),
        _ => None,
    };
    let found: BTreeMap<usize, Arc<Samples>> =
        run.progress.iter().enumerate().filter_map(found).collect();
    look(&found);
    let status = run.status(&record);
    let wall_ms = millis(start.elapsed());
    (run.context.emit)(Event::RunFinished { status, wall_ms, cause: run.cause() });
    run.remember();
    let record = record.lock().expect("BUG: the record lock is poisoned").clone();
    let summary =
        |stage: &crate::record::StageRun| Some((stage.name.clone(), stage.summary.clone()?));
    let files = run
        .files
        .lock()
        .expect("BUG: the file lock is poisoned")
        .keys()
        .map(Utf8PathBuf::from)
        .collect();
    Finished {
        found,
        samples: record.stages.iter().filter_map(summary).collect(),
        user_error: *run.user_error.lock().expect("BUG: the error lock is poisoned"),
        bug: *run.bug.lock().expect("BUG: the bug lock is poisoned"),
        files,
        record,
    }
}

fn about(context: &Context) -> RunAbout {
    let git = context.run.git.as_ref();
    RunAbout {
        tool: format!("forge {}", env!("CARGO_PKG_VERSION")),
        git_revision: git.map(|(revision, _)| revision.clone()),
        git_dirty: git.map(|(_, dirty)| *dirty),
        params: context.run.params.clone(),
        limit: context.options.limit,
    }
}

impl Run {
    fn cause(&self) -> Option<Cause> {
        if *self.bug.lock().expect("BUG: the bug lock is poisoned") {
            return Some(Cause::Bug);
        }
        let user = *self.user_error.lock().expect("BUG: the error lock is poisoned");
        user.then_some(Cause::User)
    }

    fn status(&self, record: &Mutex<RunRecord>) -> RunStatus {
        let record = record.lock().expect("BUG: the record lock is poisoned");
        let bad = |stage: &crate::record::StageRun| {
            matches!(stage.state, Some(StageState::Failed)) || stage.error.is_some()
        };
        if record.stages.iter().any(bad) {
            RunStatus::Failed
        } else if record.stages.iter().any(|stage| stage.state == Some(StageState::Skipped)) {
            RunStatus::Cancelled
        } else {
            RunStatus::Completed
        }
    }

    /// Keeps the recipes of this run, for the explanations of the next. One that was made in another work tree is
    /// none that the next one follows.
    fn remember(&self) {
        if self.context.options.elsewhere {
            return;
        }
        let mut keys = self.keys.lock().expect("BUG: the key lock is poisoned");
        let files = self.files.lock().expect("BUG: the file lock is poisoned");
        let known = &self.last;
        if keys.iter().all(|(name, stage)| known.stages.get(name) == Some(stage))
            && files.iter().all(|(path, digest)| known.views.get(path) == Some(digest))
        {
            return;
        }
        // Another run may have ended since this one began.
        let mut last = LastRun::read(&self.context.store, &self.context.pipeline);
        let before = last.clone();
        last.stages.append(&mut keys);
        last.views.extend(files.iter().map(|(path, digest)| (path.clone(), *digest)));
        if last != before {
            last.run_id.clone_from(&self.context.run.id);
            let text = serde_json::to_string(&last).expect("BUG: keys are plain data");
            let name = format!("{}.json", self.context.pipeline);
            // An explanation less is no reason to fail a run that is over.
            let _ = self.context.store.set_pointer(&name, &text);
        }
    }

    async fn stage(&self, i: usize) {
        let node = &self.graph.nodes()[i];
        let inputs = self.inputs(node).await;
        let start = Instant::now();
        let outcome = match inputs {
            Err(error) => Err(error),
            Ok(_) if self.is_halted() => Err(StageError::Cancelled),
            // A panic must not leave the stages that wait for this one waiting for ever.
            Ok(inputs) => match AssertUnwindSafe(self.work(i, node, inputs)).catch_unwind().await {
                Ok(outcome) => outcome,
                Err(_) => {
                    *self.bug.lock().expect("BUG: the bug lock is poisoned") = true;
                    Err(StageError::Failed("a bug of forge (see above)".to_owned()))
                }
            },
        };
        let outcome = outcome.unwrap_or_else(|error| self.failed(&error));
        self.tell(i, outcome, start).await;
    }

    /// Tells how a stage ended, to those who watch and to the stages that wait for it.
    async fn tell(&self, i: usize, outcome: Outcome, start: Instant) {
        let node = &self.graph.nodes()[i];
        let summary = match &outcome.artifact {
            Some(Artifact::Samples(samples)) => Some(samples.summary.clone().into()),
            _ => None,
        };
        let tables = match &outcome.artifact {
            Some(Artifact::Samples(samples)) => Some((samples.observed, samples.info)),
            _ => None,
        };
        let result = match &outcome.artifact {
            Some(Artifact::Samples(samples)) => Some(samples.table),
            Some(artifact) => artifact.digest().await.ok(),
            None => None,
        };
        (self.context.emit)(Event::StageFinished {
            stage: node.name.clone(),
            state: outcome.state,
            key: outcome.key,
            recipe: outcome.recipe,
            result,
            observed: tables.map(|(observed, _)| observed),
            info: tables.map(|(_, info)| info),
            wall_ms: millis(start.elapsed()),
            summary,
            rows_skipped: match &outcome.artifact {
                Some(Artifact::Flows(flows)) => flows.skipped(),
                _ => 0,
            },
            error: outcome.error,
        });
        self.progress[i].send_replace(match outcome.artifact {
            Some(artifact) => Progress::Ready(artifact),
            None => Progress::Failed,
        });
    }

    fn is_halted(&self) -> bool {
        self.context.stop.is_cancelled()
            || *self.halted.lock().expect("BUG: the halt lock is poisoned")
    }

    fn failed(&self, error: &StageError) -> Outcome {
        let state = match error {
            StageError::Cancelled | StageError::Upstream(_) => StageState::Skipped,
            StageError::User(_) | StageError::Failed(_) | StageError::Missing(_) => {
                StageState::Failed
            }
        };
        if state == StageState::Failed {
            *self.user_error.lock().expect("BUG: the error lock is poisoned") |=
                matches!(error, StageError::User(_));
            self.halt();
        }
        let error = (state == StageState::Failed).then(|| error.to_string());
        Outcome { state, key: None, recipe: None, artifact: None, error }
    }

    fn halt(&self) {
        if !self.selection.keep_going {
            *self.halted.lock().expect("BUG: the halt lock is poisoned") = true;
        }
    }

    /// Waits for all that a stage needs.
    async fn inputs(&self, node: &Node) -> Result<Inputs, StageError> {
        let mut inputs = Inputs::default();
        for (port, needed) in &node.needs {
            let stage = self.graph.nodes()[*needed].name.clone();
            let mut progress = self.progress[*needed].subscribe();
            let ended = progress.wait_for(|progress| !matches!(progress, Progress::Pending)).await;
            let artifact = match ended.as_deref() {
                Ok(Progress::Ready(artifact)) => artifact.clone(),
                _ => return Err(StageError::Upstream(stage)),
            };
            inputs.0.push(Input { port: port.clone(), stage, artifact });
        }
        Ok(inputs)
    }

    async fn work(&self, i: usize, node: &Node, inputs: Inputs) -> Result<Outcome, StageError> {
        let context = &*self.context;
        let growing = inputs
            .0
            .iter()
            .any(|input| matches!(&input.artifact, Artifact::Flows(flows) if !flows.is_whole()));
        if !(growing && node.stage.streams()) {
            let assessed = plan::assess(node, &inputs, context).await?;
            if let Some(artifact) = assessed.artifact
                && self.restore_views(node, &artifact)?
            {
                return self.ended(node, StageState::Fresh, &assessed.recipe, artifact, None);
            }
            // An engine is remembered as known, though it has to be made each time.
            let known = assessed.record.is_some() && node.stage.runs_in_plan();
            if context.options.frozen && !known && !node.stage.runs_frozen() {
                return Err(self.frozen(node, &assessed.recipe));
            }
            if let Some(day) = plan::collected_on(context, assessed.key).filter(|_| !known) {
                let message = format!(
                    "its result was removed by `forge store gc` on {day}; working it out again"
                );
                context.notice(&node.name, message);
            }
        }
        if self.selection.only.as_ref().is_some_and(|only| !only.contains(&i))
            && !node.stage.runs_in_plan()
        {
            return Err(StageError::User(format!(
                "`{}` is needed and not up to date; run it too, with `--until` in place of `--only`",
                node.name
            )));
        }
        let publish = |artifact: Artifact| {
            self.progress[i].send_replace(Progress::Ready(artifact));
        };
        if node.stage.as_workflow().is_none() && node.kind != "engine" {
            (context.emit)(Event::StageStarted { stage: node.name.clone(), samples: None });
        }
        let inputs = self.whole_inputs(node, inputs).await?;
        let done = node.stage.run(&inputs, context, &publish).await?;
        self.done(node, &inputs, done).await
    }

    /// The inputs of a stage that is about to use them, their content made sure of: where part of it is
    /// missing or damaged, its producer runs again.
    fn whole_inputs<'a>(
        &'a self,
        node: &'a Node,
        mut inputs: Inputs,
    ) -> BoxFuture<'a, Result<Inputs, StageError>> {
        async move {
            for (input, (_, needed)) in inputs.0.iter_mut().zip(&node.needs) {
                if !input.artifact.is_whole(&self.context.store).await
                    && !self.refetched(*needed, &input.artifact).await
                {
                    input.artifact = self.again(*needed).await?;
                }
            }
            Ok(inputs)
        }
        .boxed()
    }

    /// Whether what is damaged here is whole again with what the shared store has.
    async fn refetched(&self, i: usize, artifact: &Artifact) -> bool {
        let store = &self.context.store;
        let key = {
            let keys = self.keys.lock().expect("BUG: the key lock is poisoned");
            keys.get(&self.graph.nodes()[i].name).map(|stage| stage.key)
        };
        let Some(key) = key else { return false };
        let Some((record, _)) = store.find(key).await else { return false };
        store.find_blobs(&record).await;
        artifact.is_whole(store).await
    }

    /// Runs a stage again whose result turned out to be damaged.
    async fn again(&self, i: usize) -> Result<Artifact, StageError> {
        // Several stages may find out at once.
        let _turn = self.turns[i].lock().await;
        let node = &self.graph.nodes()[i];
        let known = self.progress[i].borrow().clone();
        if let Progress::Ready(artifact) = known
            && artifact.is_whole(&self.context.store).await
        {
            return Ok(artifact);
        }
        let what = "part of its result is missing or damaged in the store";
        if self.context.options.frozen {
            return Err(StageError::Missing(format!(
                "`{}`: {what}, and the run is frozen",
                node.name
            )));
        }
        self.context.notice(&node.name, format!("{what}; working it out again"));
        let start = Instant::now();
        let inputs = self.whole_inputs(node, self.inputs(node).await?).await?;
        let done = node.stage.run(&inputs, &self.context, &|_| {}).await?;
        let outcome = self.done(node, &inputs, done).await?;
        let artifact = outcome.artifact.clone().expect("BUG: a stage without a result");
        self.tell(i, outcome, start).await;
        Ok(artifact)
    }

    async fn done(&self, node: &Node, inputs: &Inputs, done: Done) -> Result<Outcome, StageError> {
        let Done { mut artifact, recipe, outcome, worked, failure } = done;
        let context = &*self.context;
        let afresh = !plan::may_reuse(node, context);
        let before = if worked || afresh { None } else { context.store.get(recipe.key()) };
        if let Some(outcome) = outcome {
            let witness = Witness {
                run: context.run.id.clone(),
                tool: env!("CARGO_PKG_VERSION").into(),
                started_unix_ms: crate::engine::unix_ms(),
                ..Witness::default()
            };
            let record = Record { recipe: recipe.clone(), outcome, witness };
            // A record whose parts are gone does not count as published.
            let whole = |record: &Record| {
                node.stage.restore(record, &recipe, inputs, context).is_some()
                    || node.kind == "engine"
            };
            let key = recipe.key();
            let stale = context.store.get(key).is_some_and(|record| !whole(&record));
            let record = context.store.publish(key, record, afresh || stale).await?;
            context.store.find_blobs(&record).await;
            // Another process may have published first: then theirs is what counts.
            if !matches!(artifact, Artifact::Flows(_))
                && let Some(theirs) = node.stage.restore(&record, &recipe, inputs, context)
            {
                artifact = theirs;
            }
        }
        let state = if before.is_some() { StageState::Fresh } else { StageState::Ran };
        if !self.restore_views(node, &artifact)? {
            let message = format!("the result of `{}` went from the store at once", node.name);
            return Err(StageError::Failed(message));
        }
        self.ended(node, state, &recipe, artifact, failure)
    }

    fn ended(
        &self,
        node: &Node,
        state: StageState,
        recipe: &Recipe,
        artifact: Artifact,
        error: Option<String>,
    ) -> Result<Outcome, StageError> {
        let key = recipe.key();
        let known = self.last.stages.get(&node.name).filter(|last| last.key == key);
        let digest = match known {
            Some(last) => last.recipe,
            None => {
                let text = serde_json::to_vec(recipe).expect("BUG: a recipe is plain data");
                // A record holds its recipe; of a result that is not remembered it is kept by itself.
                match self.context.store.get(key) {
                    Some(_) => Digest::of(&text),
                    None => self.context.store.put_blob(&text)?,
                }
            }
        };
        let mut keys = self.keys.lock().expect("BUG: the key lock is poisoned");
        keys.insert(node.name.clone(), LastStage { key, recipe: digest });
        Ok(Outcome { state, key: Some(key), recipe: Some(digest), artifact: Some(artifact), error })
    }

    /// Puts a result into the work tree; `false` where the store has lost part of it.
    fn restore_views(&self, node: &Node, artifact: &Artifact) -> Result<bool, StageError> {
        for view in node.stage.views(artifact, &self.context) {
            if !view.restore(&node.name, &self.context)? {
                return Ok(false);
            }
            let mut files = self.files.lock().expect("BUG: the file lock is poisoned");
            files.insert(view.path.into_string(), view.digest);
        }
        Ok(true)
    }

    fn frozen(&self, node: &Node, recipe: &Recipe) -> StageError {
        if !plan::may_reuse(node, &self.context) {
            return StageError::Missing(format!(
                "`{}` asks for a new result (`cache = false`), and the run is frozen",
                node.name
            ));
        }
        let before = self.last.recipe(&self.context.store, &node.name);
        let collected = plan::collected_on(&self.context, recipe.key());
        let why = match before {
            _ if collected.is_some() => {
                let day = collected.unwrap_or_default();
                format!("its result was removed by `forge store gc` on {day}")
            }
            None => "the store has no result of it".to_owned(),
            Some(before) => {
                let fields = recipe.differences_from(&before);
                let list: Vec<_> = fields.iter().map(ToString::to_string).collect();
                if list.is_empty() {
                    "its result is gone from the store".to_owned()
                } else {
                    list.join("; ")
                }
            }
        };
        StageError::Missing(format!(
            "`{}` would have to run, and the run is frozen: {why}",
            node.name
        ))
    }
}
