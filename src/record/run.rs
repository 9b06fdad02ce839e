//! Events of a run and the record that is their fold: replaying a log gives the same record.
//! Knows nothing of who emits them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Retry, ServedFrom, Verdict};
use crate::digest::{Digest, Key};
use crate::record::TallySummary;
use crate::sample::Outcome;

/// Something that happened in a run. Written to `events.log`, shown by progress, folded by [`RunRecord`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run began.
    RunStarted {
        /// Version of this format.
        version: u32,
        /// ULID of the run.
        run_id: String,
        /// Name of the pipeline.
        pipeline: String,
        /// Path of the manifest in the project.
        manifest: String,
        /// Milliseconds since 1970.
        started_unix_ms: u64,
        /// Names and kinds of the stages, in order.
        stages: Vec<(String, String)>,
        /// What was run, and with what.
        #[serde(default)]
        about: RunAbout,
    },
    /// A stage began to work, or has learnt how many samples it will run.
    StageStarted {
        /// Its name.
        stage: String,
        /// Flows × epochs it will run, where that is known.
        samples: Option<u64>,
    },
    /// An expansion has made flows.
    FlowsExpanded {
        /// The expand stage.
        stage: String,
        /// Flows so far.
        flows: u64,
    },
    /// Rows are being fetched, and that takes a while.
    DataFetching {
        /// The expand stage.
        stage: String,
        /// How far it is.
        message: String,
    },
    /// A branch of a data set stands for a commit.
    DataPinned {
        /// The expand stage.
        stage: String,
        /// The data set with its branch.
        source: String,
        /// The commit.
        revision: String,
    },
    /// An engine is being made ready, and that takes a while.
    EngineLoading {
        /// The engine stage.
        stage: String,
        /// How far it is.
        message: String,
    },
    /// An attempt at a request failed, and there will be another one.
    RequestRetried {
        /// The workflow stage.
        stage: String,
        /// The request.
        key: Key,
        /// The attempt that failed, from 1.
        attempt: u32,
        /// What happened, and how long is waited.
        retry: Retry,
    },
    /// An engine was made ready.
    EngineLoaded {
        /// The engine stage.
        stage: String,
        /// How long that took.
        init_ms: f64,
        /// Instances loaded.
        instances: u32,
    },
    /// A sample ended.
    SampleFinished {
        /// The workflow stage.
        stage: String,
        /// Position: flow × epochs + epoch.
        index: u64,
        /// The flow's name.
        flow: String,
        /// How it ended.
        outcome: Outcome,
        /// Whether the first scorer holds it right; `None` without scores.
        correct: Option<bool>,
        /// Where it came from.
        served_from: ServedFrom,
        /// From start to score, without the wait for the engine's permit.
        latency_ms: f64,
        /// Its requests by origin.
        requests: RequestCounts,
        /// Tokens the engine wrote for it in this run; absent where unknown.
        output_tokens: Option<u64>,
        /// Dollars for its live requests; absent where unknown.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cost: Option<f64>,
    },
    /// Something the user should know.
    Notice {
        /// The stage, where it is about one.
        stage: Option<String>,
        /// What.
        message: String,
    },
    /// A stage ended.
    StageFinished {
        /// Its name.
        stage: String,
        /// How.
        state: StageState,
        /// Its key, where it got so far.
        key: Option<Key>,
        /// Digest of its recipe.
        recipe: Option<Digest>,
        /// Digest of its main result: of a workflow, its table of samples.
        result: Option<Digest>,
        /// Of a workflow: digest of what was observed, a row for each sample.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        observed: Option<Digest>,
        /// Of a workflow: digest of its settings and profile.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        info: Option<Digest>,
        /// From its first work to its end.
        wall_ms: f64,
        /// Metrics of a workflow.
        summary: Option<Box<TallySummary>>,
        /// Of an expansion: bad rows that were left out.
        #[serde(skip_serializing_if = "is_zero", default)]
        rows_skipped: u64,
        /// Why it failed or was skipped.
        error: Option<String>,
    },
    /// The gates have looked at the results.
    GatesJudged {
        /// What they said, in the order of the manifest.
        verdicts: Vec<Verdict>,
    },
    /// The run ended.
    RunFinished {
        /// How.
        status: RunStatus,
        /// From start to end.
        wall_ms: f64,
        /// Whose fault it is, where it failed and that is known.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cause: Option<Cause>,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Event {
    /// The stage that it is about.
    pub fn stage(&self) -> Option<&str> {
        match self {
            Event::RunStarted { .. } | Event::GatesJudged { .. } | Event::RunFinished { .. } => {
                None
            }
            Event::Notice { stage, .. } => stage.as_deref(),
            Event::StageStarted { stage, .. }
            | Event::FlowsExpanded { stage, .. }
            | Event::DataFetching { stage, .. }
            | Event::DataPinned { stage, .. }
            | Event::EngineLoading { stage, .. }
            | Event::EngineLoaded { stage, .. }
            | Event::RequestRetried { stage, .. }
            | Event::SampleFinished { stage, .. }
            | Event::StageFinished { stage, .. } => Some(stage),
        }
    }
}

/// What was run, and with what.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunAbout {
    /// Name and version of this program.
    pub tool: String,
    /// Commit of the project, where it is in git.
    pub git_revision: Option<String>,
    /// Whether the work tree differed from it.
    pub git_dirty: Option<bool>,
    /// Parameters of the manifest after overrides.
    pub params: BTreeMap<String, Value>,
    /// Only so many flows of every expansion.
    pub limit: Option<u64>,
}

/// What became of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageState {
    /// Its result was in the store.
    Fresh,
    /// It worked.
    Ran,
    /// It failed.
    Failed,
    /// Something it needs failed, or the run stopped before it.
    Skipped,
}

impl StageState {
    /// The name in records and on screen.
    pub fn name(self) -> &'static str {
        match self {
            StageState::Fresh => "fresh",
            StageState::Ran => "ran",
            StageState::Failed => "failed",
            StageState::Skipped => "skipped",
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Not yet.
    Running,
    /// Every stage is fresh or ran.
    Completed,
    /// A stage failed.
    Failed,
    /// The user ended it, and it has said so.
    Cancelled,
    /// Its process is gone without a word. No event says so: whoever reads the log finds out.
    Interrupted,
}

impl RunStatus {
    /// All of them.
    pub const ALL: [RunStatus; 5] = [
        RunStatus::Running,
        RunStatus::Completed,
        RunStatus::Failed,
        RunStatus::Cancelled,
        RunStatus::Interrupted,
    ];

    /// The name in records and on screen.
    pub fn name(self) -> &'static str {
        match self {
            RunStatus::Running => "running",
            RunStatus::Completed => "completed",
            RunStatus::Failed => "failed",
            RunStatus::Cancelled => "cancelled",
            RunStatus::Interrupted => "interrupted",
        }
    }
}

/// Who can mend a run that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The user: an input is wrong.
    User,
    /// We: it is a bug of this program.
    Bug,
}

/// Requests by who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RequestCounts {
    /// The engine.
    pub live: u64,
    /// The memory cache.
    pub memory: u64,
    /// The store.
    pub disk: u64,
    /// A shared store.
    pub remote: u64,
    /// An equal request in flight.
    pub coalesced: u64,
}

impl RequestCounts {
    /// Counts one request.
    pub fn add(&mut self, served_from: ServedFrom) {
        match served_from {
            ServedFrom::Live => self.live += 1,
            ServedFrom::Memory => self.memory += 1,
            ServedFrom::Disk => self.disk += 1,
            ServedFrom::Remote => self.remote += 1,
            ServedFrom::Coalesced => self.coalesced += 1,
        }
    }

    /// Adds another count.
    pub fn plus(&mut self, other: RequestCounts) {
        self.live += other.live;
        self.memory += other.memory;
        self.disk += other.disk;
        self.remote += other.remote;
        self.coalesced += other.coalesced;
    }

    /// Requests that the engine did not have to answer.
    pub fn hits(&self) -> u64 {
        self.memory + self.disk + self.remote + self.coalesced
    }
}

/// A stage in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRun {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// `None` while it has not ended.
    pub state: Option<StageState>,
    /// Its key.
    pub key: Option<Key>,
    /// Digest of its recipe, by which `explain` finds it again.
    pub recipe: Option<Digest>,
    /// Digest of its main result: of a workflow, its table of samples.
    pub result: Option<Digest>,
    /// Of a workflow: digest of what was observed, a row for each sample.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub observed: Option<Digest>,
    /// Of a workflow: digest of its settings and profile.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub info: Option<Digest>,
    /// From its first work to its end.
    pub wall_ms: Option<f64>,
    /// Metrics of a workflow.
    pub summary: Option<TallySummary>,
    /// Of an expansion: bad rows that were left out.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub rows_skipped: u64,
    /// Of an expansion: the commits that branches of data sets stand for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub pins: BTreeMap<String, String>,
    /// Samples that ended in this run: none of a fresh stage.
    #[serde(default)]
    pub finished: u64,
    /// Samples that it has to run, where that is known.
    #[serde(default)]
    pub selected: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

impl StageRun {
    /// A stage that has not begun.
    pub fn new(name: &str, kind: &str) -> StageRun {
        StageRun {
            name: name.to_owned(),
            kind: kind.to_owned(),
            state: None,
            key: None,
            recipe: None,
            result: None,
            observed: None,
            info: None,
            wall_ms: None,
            summary: None,
            rows_skipped: 0,
            pins: BTreeMap::new(),
            finished: 0,
            selected: None,
            error: None,
        }
    }

    /// Samples of its result, or those so far.
    pub fn samples(&self) -> u64 {
        self.summary.as_ref().map_or(self.finished, |summary| summary.samples)
    }

    /// A metric of its result, such as `accuracy`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.summary.as_ref()?.metrics.get(name).copied().flatten()
    }
}

/// A run so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this format.
    pub version: u32,
    /// ULID.
    pub run_id: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Path of the manifest in the project.
    pub manifest: String,
    /// Milliseconds since 1970.
    pub started_unix_ms: u64,
    /// What was run, and with what.
    #[serde(default)]
    pub about: RunAbout,
    /// How it ended.
    pub status: RunStatus,
    /// Whose fault it is, where it failed and that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<Cause>,
    /// Start to end.
    pub wall_ms: Option<f64>,
    /// In the order of the manifest.
    pub stages: Vec<StageRun>,
    /// Requests of all workflows.
    pub requests: RequestCounts,
    /// Loading times by engine stage.
    pub engine_init_ms: BTreeMap<String, f64>,
    /// Tokens that engines wrote in this run, as far as they said.
    pub output_tokens: u64,
    /// Failed attempts by reason.
    #[serde(default)]
    pub retries: BTreeMap<String, u64>,
    /// Dollars for live requests, by workflow stage, as far as prices and tokens are known.
    #[serde(default)]
    pub spent: BTreeMap<String, f64>,
    /// What the user was told.
    pub notices: Vec<String>,
    /// What the gates said, where there are some.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub gates: Vec<Verdict>,
    /// Where each stage stands in `stages`.
    #[serde(skip)]
    places: BTreeMap<String, usize>,
}

impl Default for RunRecord {
    fn default() -> Self {
        RunRecord {
            version: super::RECORD_VERSION,
            run_id: String::new(),
            pipeline: String::new(),
            manifest: String::new(),
            started_unix_ms: 0,
            about: RunAbout::default(),
            status: RunStatus::Running,
            cause: None,
            wall_ms: None,
            stages: Vec::new(),
            requests: RequestCounts::default(),
            engine_init_ms: BTreeMap::new(),
            output_tokens: 0,
            retries: BTreeMap::new(),
            spent: BTreeMap::new(),
            notices: Vec::new(),
            gates: Vec::new(),
            places: BTreeMap::new(),
        }
    }
}

impl RunRecord {
    /// Folds one event in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::RunStarted {
                version,
                run_id,
                pipeline,
                manifest,
                started_unix_ms,
                stages,
                about,
            } => {
                self.version = *version;
                self.run_id.clone_from(run_id);
                self.pipeline.clone_from(pipeline);
                self.manifest.clone_from(manifest);
                self.started_unix_ms = *started_unix_ms;
                self.about.clone_from(about);
                self.stages = stages.iter().map(|(name, kind)| StageRun::new(name, kind)).collect();
                let names = stages.iter().enumerate();
                self.places = names.map(|(i, (name, _))| (name.clone(), i)).collect();
            }
            Event::StageStarted { stage, samples } => {
                if let Some(run) = self.stage_mut(stage) {
                    run.selected = samples.or(run.selected);
                }
            }
            Event::FlowsExpanded { .. }
            | Event::DataFetching { .. }
            | Event::EngineLoading { .. } => {}
            Event::DataPinned { stage, source, revision } => {
                if let Some(run) = self.stage_mut(stage) {
                    run.pins.insert(source.clone(), revision.clone());
                }
            }
            Event::RequestRetried { retry, .. } => {
                *self.retries.entry(retry.reason.clone()).or_default() += 1;
            }
            Event::EngineLoaded { stage, init_ms, .. } => {
                self.engine_init_ms.insert(stage.clone(), *init_ms);
            }
            Event::SampleFinished { stage, requests, output_tokens, cost, .. } => {
                if let Some(cost) = cost {
                    *self.spent.entry(stage.clone()).or_default() += cost;
                }
                self.requests.plus(*requests);
                self.output_tokens += output_tokens.unwrap_or(0);
                if let Some(run) = self.stage_mut(stage) {
                    run.finished += 1;
                }
            }
            Event::Notice { stage, message } => self.notices.push(match stage {
                Some(stage) => format!("{stage}: {message}"),
                None => message.clone(),
            }),
            Event::StageFinished {
                stage,
                state,
                key,
                recipe,
                result,
                observed,
                info,
                wall_ms,
                summary,
                rows_skipped,
                error,
            } => {
                if let Some(run) = self.stage_mut(stage) {
                    run.state = Some(*state);
                    run.key = *key;
                    run.recipe = *recipe;
                    run.result = *result;
                    run.observed = *observed;
                    run.info = *info;
                    run.wall_ms = Some(*wall_ms);
                    run.summary = summary.as_deref().cloned();
                    run.rows_skipped = *rows_skipped;
                    run.error.clone_from(error);
                }
            }
            Event::GatesJudged { verdicts } => self.gates.clone_from(verdicts),
            Event::RunFinished { status, wall_ms, cause } => {
                self.status = *status;
                self.cause = *cause;
                self.wall_ms = Some(*wall_ms);
            }
        }
    }

    fn stage_mut(&mut self, name: &str) -> Option<&mut StageRun> {
        self.stages.get_mut(*self.places.get(name)?)
    }

    /// The workflows among its stages.
    pub fn workflows(&self) -> impl Iterator<Item = &StageRun> {
        self.stages.iter().filter(|stage| stage.kind == "workflow")
    }

    /// Samples of all workflows, or those so far.
    pub fn samples(&self) -> u64 {
        self.workflows().map(StageRun::samples).sum()
    }

    /// Dollars for live requests; `None` where no price is known.
    pub fn cost(&self) -> Option<f64> {
        (!self.spent.is_empty()).then(|| self.spent.values().sum())
    }

    /// A stage by name.
    pub fn stage(&self, name: &str) -> Option<&StageRun> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The store of `tests/records` that this version has written. Another version needs another one.
    macro_rules! kept {
        ($file:literal) => {
            include_str!(concat!(
                "../../tests/records/store-v2/runs/01M81TYS0JF9AV7Y16MXYD3SKN/",
                $file
            ))
        };
    }

    #[test]
    fn a_log_folds_to_the_record_that_was_written() {
        let record: RunRecord = serde_json::from_str(kept!("run.json")).expect("a record");
        assert_eq!(record.version, crate::record::RECORD_VERSION);
        let mut folded = RunRecord::default();
        for line in kept!("events.log").lines() {
            folded.apply(&serde_json::from_str(line).expect("an event"));
        }
        let json = |record: &RunRecord| serde_json::to_value(record).unwrap();
        assert_eq!(json(&folded), json(&record));
        assert_eq!((record.samples(), record.requests.live), (3, 3));
    }

    #[test]
    fn a_log_of_version_1_still_folds_to_the_same_record() {
        let log = include_str!("../../tests/records/run-v1.events.log");
        let mut record = RunRecord::default();
        for line in log.lines() {
            record.apply(&serde_json::from_str(line).expect("an event of version 1"));
        }
        assert_eq!(record.status, RunStatus::Completed);
        assert_eq!(record.requests.live, 2);
        assert_eq!(record.stages.len(), 2);
        assert_eq!(record.stage("ask").unwrap().state, Some(StageState::Ran));
        assert_eq!((record.samples(), record.stage("ask").unwrap().finished), (1, 1));
    }
}
