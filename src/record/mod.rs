//! What happened: observations of samples, events of a run, and the record that is their fold.
//! Knows nothing of where events come from or who reads them.

use serde::{Deserialize, Serialize};

use crate::digest::Key;
use crate::sample::Usage;

pub mod agreement;
mod event;
mod phase;
mod price;
mod profile;
mod run;
pub mod scores;
mod speed;
pub mod stop;
mod tally;
mod verdict;

pub use event::{Cause, Event, RequestCounts, RunAbout, RunStatus, StageState};
pub(crate) use event::{is_false, is_zero};
pub use phase::{Phase, PhasesMs};
pub use price::{Price, Tariffs, dollars};
pub use profile::{BatchStats, CacheStats, Profile, ProfileBuilder};
pub use run::{RunRecord, StageRun};
pub use speed::{InFlight, Speed, Steady, Timing};
pub use stop::{StopRule, Stopper, Stopping};
pub use tally::{CORPUS, ExtractorSummary, Tally, TallySummary};
pub use verdict::{Bound, Finding, Side, Unit, Verdict};

/// Version of the JSON of records and events; `tests/records` keeps a file of each. Version 2 has no latency of
/// each sample in `run.json`, and knows what was run, the tables of workflows, and when each event happened.
pub const RECORD_VERSION: u32 = 2;

/// Milliseconds, with as many digits as a clock of nanoseconds has.
pub fn millis(time: std::time::Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}

/// Where an answer came from. Latencies of different origins are never mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServedFrom {
    /// The engine was asked.
    Live,
    /// The memory cache of this run.
    Memory,
    /// The store on disk.
    Disk,
    /// A shared store.
    Remote,
    /// An equal request was in flight, and its answer was taken.
    Coalesced,
}

impl ServedFrom {
    /// The name in records and reports.
    pub fn name(self) -> &'static str {
        match self {
            ServedFrom::Live => "live",
            ServedFrom::Memory => "memory",
            ServedFrom::Disk => "disk",
            ServedFrom::Remote => "remote",
            ServedFrom::Coalesced => "coalesced",
        }
    }
}

/// An attempt that failed for a passing reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// What kind of failure, in a word or two: `429`, `connect`, `time-out`.
    pub reason: String,
    /// What was said.
    pub detail: String,
    /// How long the attempt took.
    pub attempt_ms: f64,
    /// How long forge waited before the next one.
    pub waited_ms: f64,
}

/// What was observed of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestObserved {
    /// Its key.
    pub key: Key,
    /// Who answered.
    pub served_from: ServedFrom,
    /// This run's times.
    pub phases_ms: PhasesMs,
    /// Time of the engine when the request was live, in this run or the one that is remembered.
    pub live_ms: Option<f64>,
    /// Its tokens.
    pub usage: Usage,
    /// How often the engine was asked, 0 for a hit.
    pub attempts: u32,
    /// Of its attempts, those that failed and may be billed for more than was counted: nobody knows for how much.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub unknown_attempts: u32,
    /// Tokens that were counted for attempts that failed. They cost money, and are no part of `usage`: with more luck
    /// nobody would have asked for them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failed_usage: Option<Usage>,
    /// The attempts that failed before the one that counts.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub retries: Vec<Retry>,
    /// When what came, of a live request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timing: Option<Timing>,
}

impl RequestObserved {
    /// Whether the engine was asked and gave no answer, after all attempts.
    pub fn has_failed(&self) -> bool {
        self.served_from == ServedFrom::Live && self.live_ms.is_none()
    }

    /// Dollars for it, and whether that is all: of tokens that nobody has counted, or that cost nobody says what, and
    /// of attempts that broke off, the cost is unknown.
    pub fn cost(&self, price: Option<&Price>) -> (f64, bool) {
        let (cost, failed) = (worth(price, &self.usage), self.failed_cost(price));
        let sum = cost.unwrap_or(0.0) + failed.unwrap_or(0.0);
        (sum, cost.is_some() && failed.is_some() && self.unknown_attempts == 0)
    }

    /// Of that, dollars for attempts that failed, as far as they were counted.
    pub fn failed_cost(&self, price: Option<&Price>) -> Option<f64> {
        self.failed_usage.as_ref().map_or(Some(0.0), |usage| worth(price, usage))
    }
}

/// Dollars for tokens that cost money, where that is known: none cost nothing, whatever the price.
pub fn worth(price: Option<&Price>, usage: &Usage) -> Option<f64> {
    match price {
        Some(price) => price.of(usage),
        None => (usage.input_tokens == Some(0) && usage.output_tokens == Some(0)).then_some(0.0),
    }
}

/// What was observed of one sample. Stored beside it, never hashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Where the sample as a whole came from: live when any of its parts ran in this run.
    pub served_from: ServedFrom,
    /// From its start to its answer.
    pub wall_ms: f64,
    /// In order.
    pub requests: Vec<RequestObserved>,
    /// Scoring.
    pub metrics_ms: Option<f64>,
    /// Requests of scorers and of retrieval, such as those to a judge or for an embedding. They count for costs, and not for the speed of the engine
    /// that is tested.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub scoring: Vec<ScorerRequest>,
    /// A bound on its time has cut off a request that may be billed, and of which nothing else is known.
    #[serde(skip_serializing_if = "is_false", default)]
    pub cut_short: bool,
}

/// A request that a scorer made, or retrieval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScorerRequest {
    /// The scorer's name, or `rag.embeddings`, or `rag.reranker`.
    pub scorer: String,
    /// What was observed of it.
    pub request: RequestObserved,
}

impl Observed {
    /// The sample's latency: from its start to its answer, without the wait for the engine's permit, which
    /// says how much else was asked and nothing about the sample.
    pub fn latency_ms(&self) -> f64 {
        let queued = self.requests.iter().filter_map(|request| request.phases_ms.get(Phase::Queue));
        (self.wall_ms - queued.sum::<f64>()).max(0.0)
    }

    /// Tokens of all requests.
    pub fn usage(&self) -> Usage {
        self.requests.iter().fold(Usage::ZERO, |sum, request| sum.plus(request.usage))
    }

    /// Whether every request was answered by the engine in this run, so that its latency is a speed.
    pub fn is_live(&self) -> bool {
        self.served_from == ServedFrom::Live
            && self.requests.iter().all(|request| request.served_from == ServedFrom::Live)
    }

    /// The same sample as it looks when it is served from the store: the times are those of the look-up.
    pub fn replayed(&self, served_from: ServedFrom, wall_ms: f64) -> Observed {
        let replayed = |request: &RequestObserved| RequestObserved {
            served_from,
            phases_ms: PhasesMs::new(),
            attempts: 0,
            unknown_attempts: 0,
            failed_usage: None,
            retries: Vec::new(),
            timing: None,
            ..request.clone()
        };
        let scoring = self.scoring.iter().map(|made| ScorerRequest {
            scorer: made.scorer.clone(),
            request: replayed(&made.request),
        });
        Observed {
            served_from,
            wall_ms,
            requests: self.requests.iter().map(replayed).collect(),
            metrics_ms: None,
            scoring: scoring.collect(),
            cut_short: false,
        }
    }
}
