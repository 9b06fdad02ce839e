//! Finished samples to text: HTML, JSON, Markdown. Knows nothing of files, engines or the clock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::scores::{Comparison, Measure};
use crate::record::{Observed, Price, Profile, RequestObserved, ServedFrom, Tally, TallySummary};
use crate::sample::{Sample, Usage};
use crate::stats::{Bar, Summary, histogram};

mod agent;
mod analysis;
pub mod diff;
pub mod gates;
mod html;
pub mod junit;
mod markdown;
pub mod page;
mod quality;
mod speed;

pub use agent::AgentTrace;
pub use analysis::{Analysis, BadAnalysis, analyse};
pub use html::{html, question};
pub use markdown::markdown;

/// Version of `report.json`.
pub const REPORT_VERSION: u32 = 1;

/// Bars of a latency histogram.
const HISTOGRAM_BARS: usize = 20;

/// Everything a report shows. `report.json` is this, as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format.
    pub version: u32,
    /// Heading.
    pub title: String,
    /// What the pipeline is for, from the manifest.
    pub description: Option<String>,
    /// What was run, where and with what.
    pub run: RunInfo,
    /// One for each workflow (or matrix cell), in the order of the manifest.
    pub cells: Vec<Cell>,
    /// Each two of them over the same rows, by metric.
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
}

/// What was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// ULID of the run that wrote the report.
    pub run_id: String,
    /// When it started: RFC 3339, UTC.
    pub started_at: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Path of the manifest in the project.
    pub manifest: String,
    /// Digest of the manifest with everything it includes.
    pub manifest_digest: String,
    /// Name and version of this program.
    pub tool: String,
    /// Operating system and processor architecture.
    pub platform: String,
    /// Cores the run could use.
    pub cores: u32,
    /// Commit of the project, where it is in git.
    pub git_revision: Option<String>,
    /// Whether the work tree differed from it.
    pub git_dirty: Option<bool>,
    /// Parameters after overrides.
    pub params: BTreeMap<String, Value>,
}

/// One workflow with its samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Name of the stage, with its matrix values.
    pub name: String,
    /// Its key.
    pub key: String,
    /// Digest of its result table.
    pub result: String,
    /// Its method.
    pub method: String,
    /// Effective semantic settings, with those the manifest left to defaults.
    pub config: BTreeMap<String, Value>,
    /// Effective execution settings.
    pub execution: BTreeMap<String, Value>,
    /// Scorers by name, each with where its definition comes from.
    #[serde(default)]
    pub scorers: BTreeMap<String, String>,
    /// Digests of what it read, by port.
    pub inputs: BTreeMap<String, String>,
    /// The engine: backend, model, identity.
    pub engine: BTreeMap<String, Value>,
    /// How many requests were let in at once, and why.
    pub admission: String,
    /// Counts and metrics.
    pub summary: TallySummary,
    /// Means with their intervals, by metric and reducer.
    #[serde(default)]
    pub measures: Vec<Measure>,
    /// The same by the values of each tag: tag, value, summary.
    pub by_tag: Vec<TagSummary>,
    /// Where the time went.
    pub profile: Profile,
    /// Samples whose every request was live: their latency, without the wait for the engine's permit.
    pub latency_live: Option<Summary>,
    /// Samples served from the memo: time of the look-up.
    pub latency_cached: Option<Summary>,
    /// Histogram of the live ones, in ms.
    pub histogram: Vec<Bar>,
    /// Tokens of all requests, live and remembered.
    pub usage: Usage,
    /// What they cost, where somebody has said what tokens cost.
    pub cost: Option<Cost>,
    /// What requests of scorers cost, by scorer, where somebody has said what their tokens cost.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub scorer_costs: BTreeMap<String, Cost>,
    /// What the numbers should not be read without, such as a gap between the scorers of form and content.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub warnings: Vec<String>,
    /// Output tokens a second of engine time, over live requests; null without any.
    pub tokens_per_s: Option<f64>,
    /// Samples a second of wall time, over live samples; null without any.
    pub samples_per_s: Option<f64>,
    /// Every sample.
    pub samples: Vec<Row>,
}

/// What the requests of a workflow cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Dollars for a million tokens.
    pub price: Price,
    /// Dollars for live requests; null where tokens are unknown.
    pub spent: Option<f64>,
    /// Dollars that the requests answered from the store would have cost.
    pub saved: Option<f64>,
}

impl Cost {
    /// Adds up the requests of some rows.
    pub fn of<'a>(price: Price, rows: impl Iterator<Item = &'a Row> + Clone) -> Cost {
        Cost::of_requests(price, || rows.clone().flat_map(|row| &row.observed.requests))
    }

    /// Of the requests of one scorer.
    fn of_scorer(price: Price, samples: &[Row], scorer: &str) -> Cost {
        Cost::of_requests(price, || {
            let made = samples.iter().flat_map(|row| &row.observed.scoring);
            made.filter(|made| made.scorer == scorer).map(|made| &made.request)
        })
    }

    fn of_requests<'a, I: Iterator<Item = &'a RequestObserved>>(
        price: Price,
        requests: impl Fn() -> I,
    ) -> Cost {
        let sum = |live: bool| {
            let some = requests().filter(|r| (r.served_from == ServedFrom::Live) == live);
            // Adding zero to nothing at all makes it a zero without a sign.
            some.map(|request| price.of(&request.usage)).sum::<Option<f64>>().map(|sum| sum + 0.0)
        };
        Cost { price, spent: sum(true), saved: sum(false) }
    }
}

/// Metrics of the samples with one value of one tag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TagSummary {
    /// The tag.
    pub tag: String,
    /// Its value.
    pub value: String,
    /// Metrics of those samples.
    pub summary: TallySummary,
}

/// A sample and what was observed of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// As run and scored.
    pub sample: Sample,
    /// Where it came from and how long it took.
    pub observed: Observed,
    /// The turns of an agent, counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent_trace: Option<AgentTrace>,
}

impl Row {
    /// A sample with what was observed of it.
    pub fn new(sample: Sample, observed: Observed) -> Self {
        let agent_trace = AgentTrace::of(&sample);
        Row { sample, observed, agent_trace }
    }
}

/// What a workflow hands to its report beside its samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellInfo {
    /// Its method.
    pub method: String,
    /// Effective semantic settings.
    pub config: BTreeMap<String, Value>,
    /// Effective execution settings.
    pub execution: BTreeMap<String, Value>,
    /// Digests of what it read.
    pub inputs: BTreeMap<String, String>,
    /// The engine.
    pub engine: BTreeMap<String, Value>,
    /// What was let in at once, and why.
    pub admission: String,
    /// What tokens cost.
    pub price: Option<Price>,
    /// Scorers by name, each with where its definition comes from.
    #[serde(default)]
    pub scorers: BTreeMap<String, String>,
    /// What tokens of scorers cost, by scorer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub scorer_prices: BTreeMap<String, Price>,
    /// Where the time went.
    pub profile: Profile,
}

/// Tags with more values than this are labels, not groups.
const TAG_VALUES_MAX: usize = 20;

impl Cell {
    /// Adds up the rows of a workflow.
    pub fn new(name: &str, key: String, result: String, info: CellInfo, samples: Vec<Row>) -> Self {
        let mut tally = Tally::default();
        let mut groups: BTreeMap<(String, String), Tally> = BTreeMap::new();
        let mut usage = Usage::ZERO;
        let (mut live, mut cached) = (Vec::new(), Vec::new());
        let (mut live_tokens, mut live_ms) = (Some(0_u64), 0.0);
        for Row { sample, observed, .. } in &samples {
            tally.add(sample);
            for (tag, value) in &sample.tags {
                groups.entry((tag.clone(), value.clone())).or_default().add(sample);
            }
            usage = usage.plus(observed.usage());
            if observed.is_live() {
                live.push(observed.latency_ms());
                for request in &observed.requests {
                    live_ms += request.live_ms.unwrap_or(0.0);
                    live_tokens = live_tokens.zip(request.usage.output_tokens).map(|(a, b)| a + b);
                }
            } else {
                cached.push(observed.latency_ms());
            }
        }
        let mut values: BTreeMap<String, usize> = BTreeMap::new();
        for (tag, _) in groups.keys() {
            *values.entry(tag.clone()).or_default() += 1;
        }
        let wall_ms = info.profile.total_wall_time_ms;
        let summary = tally.summary();
        let scorer_cost = |(scorer, price): (String, Price)| {
            let cost = Cost::of_scorer(price, &samples, &scorer);
            (scorer, cost)
        };
        Cell {
            scorer_costs: info.scorer_prices.into_iter().map(scorer_cost).collect(),
            warnings: summary.warnings(),
            name: name.to_owned(),
            key,
            result,
            method: info.method,
            config: info.config,
            execution: info.execution,
            scorers: info.scorers,
            inputs: info.inputs,
            engine: info.engine,
            admission: info.admission,
            summary,
            measures: Vec::new(),
            by_tag: groups
                .into_iter()
                .filter(|((tag, _), _)| (2..=TAG_VALUES_MAX).contains(&values[tag]))
                .map(|((tag, value), tally)| TagSummary { tag, value, summary: tally.summary() })
                .collect(),
            profile: info.profile,
            histogram: histogram(&live, HISTOGRAM_BARS),
            tokens_per_s: live_tokens
                .filter(|_| live_ms > 0.0)
                .map(|tokens| tokens as f64 / (live_ms / 1000.0)),
            // A wall time that was partly spent on hits is no throughput.
            samples_per_s: wall_ms
                .filter(|ms| *ms > 0.0 && cached.is_empty() && !live.is_empty())
                .map(|ms| live.len() as f64 / (ms / 1000.0)),
            latency_live: Summary::of(live),
            latency_cached: Summary::of(cached),
            usage,
            cost: info.price.map(|price| Cost::of(price, samples.iter())),
            samples,
        }
    }
}

/// `report.json`: the whole report, indented.
pub fn json(report: &Report) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("BUG: a report is plain data");
    text.push('\n');
    text
}
