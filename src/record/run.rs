//! Events of a run and the record that is their fold: replaying a log gives the same record.
//! Knows nothing of who emits them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Retry, ServedFrom};
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
        /// Digest of its main result.
        result: Option<Digest>,
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
    /// The run ended.
    RunFinished {
        /// How.
        status: RunStatus,
        /// From start to end.
        wall_ms: f64,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
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
    /// Interrupted.
    Cancelled,
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
    /// Digest of its main result.
    pub result: Option<Digest>,
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
    /// Why it failed.
    pub error: Option<String>,
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
    /// How it ended.
    pub status: RunStatus,
    /// Start to end.
    pub wall_ms: Option<f64>,
    /// In the order of the manifest.
    pub stages: Vec<StageRun>,
    /// Requests of all workflows.
    pub requests: RequestCounts,
    /// Loading times by engine stage.
    pub engine_init_ms: BTreeMap<String, f64>,
    /// Latency of each sample of this run by workflow stage and position.
    pub samples_ms: BTreeMap<String, BTreeMap<u64, f64>>,
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
            status: RunStatus::Running,
            wall_ms: None,
            stages: Vec::new(),
            requests: RequestCounts::default(),
            engine_init_ms: BTreeMap::new(),
            samples_ms: BTreeMap::new(),
            output_tokens: 0,
            retries: BTreeMap::new(),
            spent: BTreeMap::new(),
            notices: Vec::new(),
            places: BTreeMap::new(),
        }
    }
}

impl RunRecord {
    /// Folds one event in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::RunStarted { version, run_id, pipeline, manifest, started_unix_ms, stages } => {
                self.version = *version;
                self.run_id.clone_from(run_id);
                self.pipeline.clone_from(pipeline);
                self.manifest.clone_from(manifest);
                self.started_unix_ms = *started_unix_ms;
                self.stages = stages
                    .iter()
                    .map(|(name, kind)| StageRun {
                        name: name.clone(),
                        kind: kind.clone(),
                        state: None,
                        key: None,
                        recipe: None,
                        result: None,
                        wall_ms: None,
                        summary: None,
                        rows_skipped: 0,
                        pins: BTreeMap::new(),
                        error: None,
                    })
                    .collect();
                let names = stages.iter().enumerate();
                self.places = names.map(|(i, (name, _))| (name.clone(), i)).collect();
            }
            Event::StageStarted { .. }
            | Event::FlowsExpanded { .. }
            | Event::DataFetching { .. }
            | Event::EngineLoading { .. } => {}
            Event::DataPinned { stage, source, revision } => {
                let place = self.places.get(stage).copied();
                if let Some(run) = place.and_then(|place| self.stages.get_mut(place)) {
                    run.pins.insert(source.clone(), revision.clone());
                }
            }
            Event::RequestRetried { retry, .. } => {
                *self.retries.entry(retry.reason.clone()).or_default() += 1;
            }
            Event::EngineLoaded { stage, init_ms, .. } => {
                self.engine_init_ms.insert(stage.clone(), *init_ms);
            }
            Event::SampleFinished {
                stage,
                index,
                latency_ms,
                requests,
                output_tokens,
                cost,
                ..
            } => {
                if let Some(cost) = cost {
                    *self.spent.entry(stage.clone()).or_default() += cost;
                }
                self.samples_ms.entry(stage.clone()).or_default().insert(*index, *latency_ms);
                self.requests.plus(*requests);
                self.output_tokens += output_tokens.unwrap_or(0);
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
                wall_ms,
                summary,
                rows_skipped,
                error,
            } => {
                let place = self.places.get(stage).copied();
                if let Some(run) = place.and_then(|place| self.stages.get_mut(place)) {
                    run.state = Some(*state);
                    run.key = *key;
                    run.recipe = *recipe;
                    run.result = *result;
                    run.wall_ms = Some(*wall_ms);
                    run.summary = summary.as_deref().cloned();
                    run.rows_skipped = *rows_skipped;
                    run.error.clone_from(error);
                }
            }
            Event::RunFinished { status, wall_ms } => {
                self.status = *status;
                self.wall_ms = Some(*wall_ms);
            }
        }
    }

    /// A stage by name.
    pub fn stage(&self, name: &str) -> Option<&StageRun> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(record.samples_ms["ask"][&0], 12.5);
    }
}
