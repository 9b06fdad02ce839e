//! Events of a run. Knows nothing of who emits them, and nothing of what is made of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{RequestObserved, Retry, ScorerRequest, ServedFrom, TallySummary, Verdict};
use crate::digest::{Digest, Key};
use crate::sample::Outcome;

/// Something that happened in a run. Written to `events.log`, shown by progress, folded by [`super::RunRecord`].
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
    /// An engine that costs money was asked whether it can do what is wanted, before anything else: no request of a
    /// sample.
    EngineProved {
        /// The engine stage.
        stage: String,
        /// Tokens it wrote; absent where unknown.
        output_tokens: Option<u64>,
        /// Dollars for it, as far as they are known; absent where nobody has said what tokens cost.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cost: Option<f64>,
        /// It cost something more that nobody knows.
        #[serde(skip_serializing_if = "is_false", default)]
        cost_unknown: bool,
    },
    /// A sample came to nothing in this run, or a request between two attempts did: it was interrupted, or a budget does
    /// not allow more. Told where the engine was asked before; those answers are remembered.
    GivenUp {
        /// The workflow stage.
        stage: String,
        /// The flow's name; absent of a request between two attempts.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        flow: Option<String>,
        /// Its requests that were answered, by origin.
        requests: RequestCounts,
        /// Tokens the engine wrote for it; absent where unknown.
        output_tokens: Option<u64>,
        /// Dollars for it, as far as they are known; absent where nobody has said what tokens cost.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cost: Option<f64>,
        /// It cost something more that nobody knows.
        #[serde(skip_serializing_if = "is_false", default)]
        cost_unknown: bool,
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
        /// Dollars for its live requests, as far as they are known; absent where nobody has said what tokens cost.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cost: Option<f64>,
        /// Some of its live requests cost something more that nobody knows.
        #[serde(skip_serializing_if = "is_false", default)]
        cost_unknown: bool,
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

/// Whether a count is not worth a word in a record.
pub(crate) fn is_zero<N: Default + PartialEq>(count: &N) -> bool {
    *count == N::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
pub(crate) fn is_false(is: &bool) -> bool {
    !is
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
            | Event::EngineProved { stage, .. }
            | Event::GivenUp { stage, .. }
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
    /// Of those requests of a sample, and of its scorers and retrieval, that have an answer.
    pub fn of(requests: &[RequestObserved], aside: &[ScorerRequest]) -> Self {
        let mut counts = RequestCounts::default();
        let all = requests.iter().chain(aside.iter().map(|made| &made.request));
        let answered = all.filter(|request| !request.has_failed());
        answered.for_each(|request| counts.add(request.served_from));
        counts
    }

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
