//! What came of experiments, in the field names of the HTTP contract: made of run records and tables of samples in
//! the store. Knows nothing of HTTP.
//!
//! A table is read once: what all of its rows add up to is kept by its digest, and [`rows`](super::rows) knows where
//! they are, so that a page of a hundred thousand samples costs as much as one of a hundred.

use std::sync::{Arc, Mutex};

use cached::Cached;
use cached::stores::LruCache;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::db::Experiment;
use super::feed::SampleLine;
use super::manifest::WORKFLOW;
use super::rows::{Mark, Rows, Want};
use crate::digest::Digest;
use crate::history::{self, HistoryError, Tables};
use crate::record::scores::right;
use crate::record::{Observed, Phase, Profile, RunRecord, RunStatus, ServedFrom, StageRun, Tally};
use crate::report::{AgentTrace, CellInfo, question};
use crate::sample::{Role, Sample, Usage};
use crate::stats::{Bar, Summary, histogram};
use crate::store::Store;

/// Tables whose rows are known.
const TABLES_MAX: usize = 64;
/// Bars of a histogram.
const BARS: usize = 20;

/// Shares of right answers; null where it was not measured.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Quality {
    /// Answers that are the target.
    pub accuracy_exact: Option<f64>,
    /// Mean F1 of words.
    pub accuracy_f1: Option<f64>,
    /// Answers that hold the target, those that are it too.
    pub accuracy_substring: Option<f64>,
    /// Null: needs embeddings.
    pub semantic_similarity: Option<f64>,
    /// Null: needs a judge.
    pub faithfulness: Option<f64>,
    /// Null: needs a judge.
    pub hallucination_rate: Option<f64>,
}

/// Times of samples whose every request was live, in ms; null of none. What the store answered has a time, and is no
/// measure of the engine's speed: none of it is in `throughput`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Performance {
    /// Median.
    pub latency_p50: Option<f64>,
    /// 95th percentile.
    pub latency_p95: Option<f64>,
    /// 99th percentile.
    pub latency_p99: Option<f64>,
    /// Median of samples that were answered from the store, at least in part.
    pub latency_cached_p50: Option<f64>,
    /// Samples a second that were answered and whose every request was live, over the time from the start of the first
    /// live request to the end of the last; null of none.
    pub throughput: Option<f64>,
    /// Samples whose every request was live.
    pub samples_live: u64,
    /// Samples that were answered from the store, at least in part.
    pub samples_remembered: u64,
}

/// What it took.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Cost {
    /// Tokens of prompts; null where the engine does not say.
    pub total_tokens_input: Option<u64>,
    /// Tokens of replies; null where the engine does not say.
    pub total_tokens_output: Option<u64>,
    /// Samples.
    pub total_runs: u64,
    /// Null: nobody measures it.
    pub gpu_time_seconds: Option<f64>,
}

/// The metrics of an experiment.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Metrics {
    /// UUID.
    pub experiment_id: String,
    /// How good.
    pub quality: Quality,
    /// How fast.
    pub performance: Performance,
    /// How dear.
    pub cost: Cost,
    /// Samples by how they ended.
    #[schema(value_type = Object)]
    pub outcomes: Value,
    /// RFC 3339, UTC.
    pub computed_at: String,
}

/// A sample.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Run {
    /// Its key.
    pub id: String,
    /// Position in the result.
    pub index: u64,
    /// UUID; of a run that no experiment made, its ULID.
    pub experiment_id: String,
    /// The row.
    pub example_id: String,
    /// The question.
    pub input_text: String,
    /// The last reply.
    pub output_text: String,
    /// The first target.
    pub expected_output: Option<String>,
    /// By the first scorer; null without a verdict.
    pub is_correct: Option<bool>,
    /// Of the first scorer.
    pub score: Option<f64>,
    /// Whether the answer is a target.
    pub is_exact_match: Option<bool>,
    /// Whether it holds one.
    pub is_substring_match: Option<bool>,
    /// What was read from the reply.
    pub parsed_answer: Option<String>,
    /// The target that fits.
    pub match_alias: Option<String>,
    /// Tokens of prompts.
    pub tokens_input: Option<u64>,
    /// Tokens of replies.
    pub tokens_output: Option<u64>,
    /// From its start to its answer, without waiting for the engine.
    pub latency_ms: f64,
    /// `live`, `memory`, `disk`, `remote` or `coalesced`.
    #[schema(value_type = String)]
    pub served_from: ServedFrom,
    /// How it ended: `answered`, `truncated`, …
    #[schema(value_type = String)]
    pub outcome: crate::sample::Outcome,
    /// Why it ended so.
    pub detail: Option<String>,
    /// The turns of an agent.
    #[schema(value_type = Option<Object>)]
    pub agent_trace: Option<AgentTrace>,
    /// The passages before the question.
    #[schema(value_type = Option<Object>)]
    pub retrieval_info: Option<Value>,
    /// Of the request that took the most attempts; 0 where none was sent.
    pub attempt: u32,
    /// When the run began: RFC 3339, UTC.
    pub created_at: String,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum NoResults {
    /// Not yet, or not any more.
    #[error("{0}")]
    None(String),
    /// It is there and cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// The result of an experiment.
#[derive(Debug, Clone)]
pub struct Found {
    /// ULID of the run.
    pub run: String,
    /// When that began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// When it ended.
    pub ended_unix_ms: u64,
    /// Its workflow.
    pub stage: StageRun,
    /// What that has left.
    pub tables: Tables,
}

/// What all samples of a table add up to.
#[derive(Debug, Clone)]
pub struct Sums {
    /// Samples.
    pub samples: u64,
    /// Means of scorers, and counts of outcomes.
    pub summary: crate::record::TallySummary,
    /// Samples whose every request was live.
    pub live: Option<Summary>,
    /// How many of these the engine answered to the end.
    pub answered_live: u64,
    /// The others.
    pub cached: Option<Summary>,
    /// Of the live ones; of all where none was live.
    pub histogram: Vec<Bar>,
    /// Tokens.
    pub usage: Usage,
    /// Of each sample, in order.
    pub marks: Vec<Mark>,
}

/// Reads results, and remembers what it has read.
pub struct Results {
    store: Arc<Store>,
    rows: Rows,
    sums: Mutex<LruCache<(Digest, Digest), Arc<Sums>>>,
    /// Whoever adds up has this.
    adding: Mutex<()>,
}

impl Results {
    /// Of a store.
    pub fn new(store: Arc<Store>) -> Results {
        Results {
            rows: Rows::new(store.clone()),
            store,
            sums: Mutex::new(LruCache::new(TABLES_MAX)),
            adding: Mutex::default(),
        }
    }

    /// The newest of some runs of an experiment that has a result.
    pub fn find(&self, runs: &[String]) -> Result<Found, NoResults> {
        for id in runs {
            let Some(run) = history::by_id(&self.store, id)? else { continue };
            let record = &run.record;
            if record.status == RunStatus::Running {
                continue;
            }
            if let Ok(found) = self.of_stage(record, WORKFLOW) {
                return Ok(found);
            }
        }
        Err(NoResults::None("the experiment has no results yet".to_owned()))
    }

    /// What a workflow of a run has left; of a run at work, of a workflow that is done.
    pub fn of_stage(&self, record: &RunRecord, name: &str) -> Result<Found, NoResults> {
        let stage = record.workflows().find(|stage| stage.name == name);
        let stage = stage.ok_or_else(|| {
            NoResults::None(format!("run `{}` has no workflow `{name}`", record.run_id))
        })?;
        let tables = Tables::of(&self.store, stage)
            .map_err(|_| NoResults::None(format!("`{name}` has no results in this run")))?;
        let started_unix_ms = record.started_unix_ms;
        Ok(Found {
            run: record.run_id.clone(),
            started_unix_ms,
            ended_unix_ms: started_unix_ms + record.wall_ms.unwrap_or(0.0) as u64,
            stage: stage.clone(),
            tables,
        })
    }

    fn observed(&self, found: &Found) -> Result<Digest, NoResults> {
        let gone = || HistoryError::Gone { what: "what was observed of a workflow".to_owned() };
        Ok(found.tables.observed.ok_or_else(gone)?)
    }

    /// Settings, engine and profile.
    pub fn info(&self, found: &Found) -> Result<CellInfo, NoResults> {
        Ok(found.tables.info(&self.store)?)
    }

    /// What all samples add up to.
    pub fn sums(&self, found: &Found) -> Result<Arc<Sums>, NoResults> {
        let key = (found.tables.samples, self.observed(found)?);
        let known =
            || self.sums.lock().expect("BUG: the sums lock is poisoned").cache_get(&key).cloned();
        if let Some(sums) = known() {
            return Ok(sums);
        }
        // A run has ended, and all who watched it want this now: it is worked out once.
        let _adding = self.adding.lock().expect("BUG: the sums lock is poisoned");
        if let Some(sums) = known() {
            return Ok(sums);
        }
        let samples = history::each_row::<Sample>(&self.store, key.0)?;
        let observed = history::each_row::<Observed>(&self.store, key.1)?;
        let (mut tally, mut usage) = (Tally::default(), Usage::ZERO);
        let (mut live, mut cached) = (Vec::new(), Vec::new());
        let (mut marks, mut answered_live) = (Vec::new(), 0);
        for (sample, seen) in samples.zip(observed) {
            let (sample, seen) = (sample?, seen?);
            let correct = right(&sample).map(|right| right >= 1.0);
            marks.push(Mark { outcome: sample.outcome, correct });
            tally.add(&sample);
            usage = usage.plus(seen.usage());
            if seen.is_live() {
                live.push(seen.latency_ms());
                // A request that failed has no timing: it is in no makespan, and its sample in no throughput.
                let timed = seen.requests.iter().filter(|request| request.timing.is_some());
                answered_live +=
                    u64::from(!seen.requests.is_empty() && timed.count() == seen.requests.len());
            } else {
                cached.push(seen.latency_ms())
            }
        }
        let shown = if live.is_empty() { &cached } else { &live };
        let sums = Arc::new(Sums {
            samples: marks.len() as u64,
            summary: tally.summary(),
            histogram: histogram(shown, BARS),
            live: Summary::of(live),
            answered_live,
            cached: Summary::of(cached),
            usage,
            marks,
        });
        self.sums.lock().expect("BUG: the sums lock is poisoned").cache_set(key, sums.clone());
        Ok(sums)
    }

    /// Adds up the workflows of a run that has ended, before somebody asks.
    pub fn prepare(&self, record: &RunRecord) {
        for stage in record.workflows() {
            if let Ok(found) = self.of_stage(record, &stage.name) {
                // Who asks is told what is wrong.
                let _ = self.sums(&found);
            }
        }
    }

    /// The metrics of an experiment.
    pub fn metrics(&self, id: &str, found: &Found) -> Result<Metrics, NoResults> {
        let sums = self.sums(found)?;
        let info = self.info(found)?;
        let metric = |name: &str| sums.summary.metrics.get(name).copied().flatten();
        let live_s = info.profile.speed.makespan_ms.map(|ms| ms / 1000.0);
        let count = |of: &Option<Summary>| of.as_ref().map_or(0, |summary| summary.count);
        let live = |of: fn(&Summary) -> f64| sums.live.as_ref().map(of);
        Ok(Metrics {
            experiment_id: id.to_owned(),
            quality: Quality {
                accuracy_exact: metric("exact_match"),
                accuracy_f1: metric("f1"),
                accuracy_substring: metric("includes"),
                semantic_similarity: metric("semantic"),
                faithfulness: None,
                hallucination_rate: None,
            },
            performance: Performance {
                latency_p50: live(|summary| summary.p50_ms),
                latency_p95: live(|summary| summary.p95_ms),
                latency_p99: live(|summary| summary.p99_ms),
                latency_cached_p50: sums.cached.as_ref().map(|summary| summary.p50_ms),
                throughput: live_s
                    .filter(|_| sums.answered_live > 0)
                    .map(|s| sums.answered_live as f64 / s),
                samples_live: count(&sums.live),
                samples_remembered: count(&sums.cached),
            },
            cost: Cost {
                total_tokens_input: sums.usage.input_tokens,
                total_tokens_output: sums.usage.output_tokens,
                total_runs: sums.samples,
                gpu_time_seconds: None,
            },
            outcomes: json!(sums.summary.outcomes),
            computed_at: moment(found.ended_unix_ms),
        })
    }

    /// Samples that are wanted, from `skip` on, and how many there are in all.
    pub fn runs(
        &self,
        id: &str,
        found: &Found,
        want: &Want,
        skip: u64,
        limit: u64,
    ) -> Result<(u64, Vec<Run>), NoResults> {
        let created_at = moment(found.started_unix_ms);
        let (table, observed) = (found.tables.samples, self.observed(found)?);
        let ranges: Vec<(u64, u64)>;
        let total;
        if want.is_all() {
            total = self.rows.count(table)?;
            ranges = vec![(skip, limit)];
        } else {
            let rows = self.rows.wanted(table, want, &self.sums(found)?.marks)?;
            total = rows.len() as u64;
            let rows = rows.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX));
            let rows = rows.take(usize::try_from(limit).unwrap_or(usize::MAX));
            ranges = rows.map(|row| (u64::from(*row), 1)).collect();
        }
        let mut runs = Vec::new();
        for (first, count) in ranges {
            let samples = self.rows.range::<Sample>(table, first, count)?;
            let seen = self.rows.range::<Observed>(observed, first, count)?;
            let both = samples.into_iter().zip(seen).zip(first..);
            runs.extend(
                both.map(|((sample, seen), index)| run_of(id, index, &created_at, sample, &seen)),
            );
        }
        Ok((total, runs))
    }

    /// Samples of a run at work that are wanted and have ended, and how many there are so far.
    pub fn so_far(
        &self,
        run: &str,
        stage: &str,
        want: &Want,
        skip: u64,
        limit: u64,
    ) -> Result<(u64, Vec<SampleLine>), NoResults> {
        self.rows.so_far(run, stage, want, skip, limit).map_err(|error| {
            let what = format!("the log of run `{run}`");
            HistoryError::Damaged { what, why: error.to_string() }.into()
        })
    }

    /// A sample with all that is known of it.
    pub fn sample(
        &self,
        found: &Found,
        index: u64,
    ) -> Result<Option<(Sample, Observed)>, NoResults> {
        let sample = self.rows.range::<Sample>(found.tables.samples, index, 1)?.pop();
        let seen = self.rows.range::<Observed>(self.observed(found)?, index, 1)?.pop();
        Ok(sample.zip(seen))
    }

    /// All samples.
    pub fn samples(&self, found: &Found) -> Result<Vec<Sample>, NoResults> {
        Ok(history::rows(&self.store, found.tables.samples)?)
    }

    /// The report that a run has written as HTML: its digest. Of several, the first.
    pub fn report(&self, record: &RunRecord) -> Option<Digest> {
        let mut reports = record.stages.iter().filter(|stage| stage.kind == "report");
        let of = |key| self.store.get(key)?.blob("html");
        reports.find_map(|stage| {
            let key = stage.key?;
            of(key).or_else(|| {
                // Another process may have made it a moment ago.
                self.store.look_again();
                of(key)
            })
        })
    }

    /// The bytes of a blob.
    pub fn blob(&self, digest: Digest) -> Option<Vec<u8>> {
        self.store.blob(digest)
    }
}

/// Milliseconds since 1970 as RFC 3339, UTC.
pub fn moment(unix_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    humantime::format_rfc3339_millis(time).to_string()
}

/// A sample in the names of the contract.
pub fn run_of(id: &str, index: u64, created_at: &str, sample: Sample, seen: &Observed) -> Run {
    let score = |name: &str| sample.scores.iter().find(|score| score.scorer == name);
    let right = |name: &str| score(name).and_then(crate::sample::Score::is_right);
    let alias = ["exact_match", "includes"].into_iter().filter(|name| right(name) == Some(true));
    let mut alias = alias.filter_map(|name| score(name)?.matched.clone());
    let last = sample.steps.last();
    let reply = last
        .and_then(|step| step.transcript.iter().rfind(|message| message.role == Role::Assistant));
    let usage = seen.usage();
    let first = sample.scores.first();
    Run {
        id: sample.key.to_string(),
        index,
        experiment_id: id.to_owned(),
        example_id: sample.flow.clone(),
        input_text: question(&sample).unwrap_or_default().to_owned(),
        output_text: reply.map(|message| message.content.clone()).unwrap_or_default(),
        expected_output: sample.targets.first().cloned(),
        is_correct: first.and_then(crate::sample::Score::is_right),
        score: first.and_then(|score| score.value),
        is_exact_match: right("exact_match"),
        is_substring_match: right("includes"),
        parsed_answer: sample.answer.clone(),
        match_alias: alias.next(),
        tokens_input: usage.input_tokens,
        tokens_output: usage.output_tokens,
        latency_ms: seen.latency_ms(),
        served_from: seen.served_from,
        outcome: sample.outcome,
        detail: sample.detail.clone(),
        agent_trace: AgentTrace::of(&sample),
        retrieval_info: last
            .and_then(|step| step.retrieval_info.as_ref())
            .map(|info| serde_json::to_value(info).expect("BUG: this is plain data")),
        attempt: seen.requests.iter().map(|request| request.attempts).max().unwrap_or(0),
        created_at: created_at.to_owned(),
    }
}

/// The optimization profile in the form of the contract, with the speed of live requests.
pub fn profile(id: &str, profile: Option<&Profile>) -> Value {
    let Some(profile) = profile else {
        return json!({
            "experiment_id": id,
            "profiling_summary": {},
            "cache_stats": {},
            "batch_stats": {},
            "total_wall_time_ms": null,
            "speed": null,
            "message": "No optimization data. Run with profiling enabled.",
        });
    };
    let mut phases = Map::new();
    for phase in Phase::ALL {
        if let Some(times) = profile.profiling_summary.get(&phase) {
            phases.insert(
                phase.name().to_owned(),
                json!({
                    "count": times.count,
                    "total_ms": times.total_ms,
                    "mean_ms": times.mean_ms,
                    "p50_ms": times.p50_ms,
                    "p90_ms": times.p90_ms,
                    "p95_ms": times.p95_ms,
                    "p99_ms": times.p99_ms,
                }),
            );
        }
    }
    json!({
        "experiment_id": id,
        "profiling_summary": phases,
        "cache_stats": profile.cache_stats.as_ref().map_or_else(|| json!({}), |stats| json!(stats)),
        "batch_stats": profile.batch_stats,
        "total_wall_time_ms": profile.total_wall_time_ms,
        "speed": profile.speed,
    })
}

/// `{experiment, metrics, runs, total_runs}`: everything of an experiment in one file.
pub fn export(experiment: &Experiment, metrics: Option<&Metrics>, runs: &[Run]) -> Value {
    json!({
        "experiment": {
            "id": experiment.id,
            "name": experiment.name,
            "status": experiment.status,
            "config": experiment.config,
            "created_at": experiment.created_at,
            "warnings": experiment.warnings,
        },
        "metrics": metrics,
        "runs": runs,
        "total_runs": runs.len(),
    })
}
