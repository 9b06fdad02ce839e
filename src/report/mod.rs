//! Finished samples to text: HTML, JSON, Markdown. Knows nothing of files, engines or the clock.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::agreement::Agreement;
use crate::record::scores::{Comparison, Measure};
use crate::record::{Observed, Price, Profile, Tally, TallySummary, Tariffs, Verdict, is_false};
use crate::sample::{Sample, Usage};
use crate::stats::{Bar, Summary, histogram};

mod agent;
mod analysis;
pub mod charts;
mod comparison;
pub mod diff;
pub mod gates;
mod html;
pub mod junit;
mod markdown;
mod matrix;
pub mod page;
mod quality;
mod speed;
mod spelling;
mod took;

pub use agent::AgentTrace;
pub use analysis::{Analysis, BadAnalysis, analyse};
pub use html::{Index, html, latency_chart, question};
pub use markdown::markdown;
pub use speed::speed_shown;
pub use spelling::{P99_NOTE, p99_mark};
pub use took::{Cost, Took, dollars, dollars_text};

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
    /// What gates say of these workflows, in the order of the manifest.
    #[serde(default)]
    pub gates: Vec<Verdict>,
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
    /// How often the answer that most draws of a row gave is right, by how many gave it; of one draw there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agreement: Option<Agreement>,
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
    /// Names of all tags of its samples.
    #[serde(skip)]
    pub tags: BTreeSet<String>,
    /// What a page filters its samples by.
    #[serde(skip)]
    pub index: Index,
    /// Every sample.
    pub samples: Vec<Row>,
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

    /// What statistics are made of: without what was said, without the requests that are added up already, and of
    /// tags with the one by which rows depend on each other alone (a table of one entry takes as much memory as one
    /// of eleven).
    pub fn bare(mut self, cluster: Option<&str>) -> Row {
        let tag = cluster.map(|tag| self.sample.tags.remove_entry(tag));
        // Who lacks it says which it has.
        if tag != Some(None) {
            self.sample.tags = tag.flatten().into_iter().collect();
        }
        self.sample.steps = Vec::new();
        self.sample.readings = Vec::new();
        self.sample.detail = None;
        for score in &mut self.sample.scores {
            (score.matched, score.detail, score.requests) = (None, None, Vec::new());
        }
        // A list that was parsed has room for three more.
        self.sample.scores.shrink_to_fit();
        self.sample.targets.shrink_to_fit();
        self.observed.requests = Vec::new();
        self.agent_trace = None;
        self
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
    /// Whether they cost money, and nobody has said how much.
    #[serde(skip_serializing_if = "is_false", default)]
    pub unpriced: bool,
    /// Scorers by name, each with where its definition comes from.
    #[serde(default)]
    pub scorers: BTreeMap<String, String>,
    /// What tokens cost of those whom scorers and retrieval ask, by name; null where nobody has said it of one that
    /// costs money.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub scorer_prices: Tariffs,
    /// Where the time went.
    pub profile: Profile,
}

impl CellInfo {
    /// What its samples took: nothing yet.
    pub fn took(&self) -> Took {
        let own = self.price.map(Some).or(self.unpriced.then_some(None));
        Took::new(own, &self.scorer_prices)
    }
}

/// Tags with more values than this are labels, not groups.
const TAG_VALUES_MAX: usize = 20;

impl Cell {
    /// Adds up the rows of a workflow.
    pub fn new(name: &str, key: String, result: String, info: CellInfo, samples: Vec<Row>) -> Self {
        let mut builder = CellBuilder::new(info);
        samples.iter().for_each(|row| builder.add(row));
        builder.finish(name, key, result, samples)
    }
}

/// Adds up the rows of a workflow without keeping them.
pub struct CellBuilder {
    info: CellInfo,
    tally: Tally,
    groups: BTreeMap<(String, String), Tally>,
    took: Took,
    /// Names of tags.
    tags: BTreeSet<String>,
    index: Index,
}

impl CellBuilder {
    /// Of a workflow.
    pub fn new(info: CellInfo) -> Self {
        CellBuilder {
            tally: Tally::default(),
            groups: BTreeMap::new(),
            took: info.took(),
            tags: BTreeSet::new(),
            index: Index::default(),
            info,
        }
    }

    /// Adds a row.
    pub fn add(&mut self, Row { sample, observed, .. }: &Row) {
        self.tally.add(sample);
        for (tag, value) in &sample.tags {
            self.groups.entry((tag.clone(), value.clone())).or_default().add(sample);
            if !self.tags.contains(tag) {
                self.tags.insert(tag.clone());
            }
        }
        self.took.add(observed);
        self.index.add(sample, observed);
    }

    /// The workflow. `samples` are its rows, or what will still be looked at of them.
    pub fn finish(self, name: &str, key: String, result: String, samples: Vec<Row>) -> Cell {
        let CellBuilder { info, tally, groups, took, tags, index } = self;
        let mut values: BTreeMap<String, usize> = BTreeMap::new();
        for (tag, _) in groups.keys() {
            *values.entry(tag.clone()).or_default() += 1;
        }
        let wall_ms = info.profile.total_wall_time_ms;
        let summary = tally.summary();
        Cell {
            warnings: {
                let mixed = speed::warning(&info.profile.speed);
                summary.warnings().into_iter().chain(mixed).collect()
            },
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
            agreement: None,
            by_tag: groups
                .into_iter()
                .filter(|((tag, _), _)| (2..=TAG_VALUES_MAX).contains(&values[tag]))
                .map(|((tag, value), tally)| TagSummary { tag, value, summary: tally.summary() })
                .collect(),
            profile: info.profile,
            histogram: histogram(&took.live, HISTOGRAM_BARS),
            tokens_per_s: took.tokens_per_s(),
            // A wall time that was partly spent on hits is no throughput.
            samples_per_s: wall_ms
                .filter(|ms| *ms > 0.0 && took.cached.is_empty() && !took.live.is_empty())
                .map(|ms| took.live.len() as f64 / (ms / 1000.0)),
            latency_live: Summary::of(took.live),
            latency_cached: Summary::of(took.cached),
            usage: took.usage,
            cost: took.cost,
            scorer_costs: took.scorer_costs,
            tags,
            index,
            samples,
        }
    }
}

/// `report.json`: the whole report, indented, written piece by piece. `rows` are the samples of all workflows, each
/// with the place of its workflow, in order; those of the report itself are not looked at, and stay as they are.
///
/// # Errors
/// Those of `rows` and of `write`.
pub fn json<E>(
    report: &mut Report,
    rows: impl IntoIterator<Item = Result<(usize, Row), E>>,
    mut write: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    /// The field of a workflow at its depth. Within a string no line begins, so that it stands nowhere else.
    const SAMPLES: &str = "\n      \"samples\": []";
    let held: Vec<Vec<Row>> =
        report.cells.iter_mut().map(|cell| std::mem::take(&mut cell.samples)).collect();
    let text = serde_json::to_string_pretty(report).expect("BUG: a report is plain data");
    report.cells.iter_mut().zip(held).for_each(|(cell, samples)| cell.samples = samples);
    let mut parts = text.split(SAMPLES);
    write(parts.next().unwrap_or_default())?;
    let mut rows = rows.into_iter().peekable();
    for (place, part) in parts.enumerate() {
        write("\n      \"samples\": [")?;
        let mut before = false;
        let is_here =
            |row: &Result<(usize, Row), E>| row.as_ref().is_ok_and(|(cell, _)| *cell == place);
        while let Some(row) = rows.next_if(|row| row.is_err() || is_here(row)) {
            let row = serde_json::to_string_pretty(&row?.1).expect("BUG: a row is plain data");
            write(if before { ",\n        " } else { "\n        " })?;
            write(&row.replace('\n', "\n        "))?;
            before = true;
        }
        write(if before { "\n      ]" } else { "]" })?;
        write(part)?;
    }
    write("\n")
}

#[cfg(test)]
mod tests {
    use super::markdown::tests::{cell, report, row};
    use super::*;

    #[test]
    fn json_in_pieces_is_json_in_one() {
        let rows =
            vec![row("a", Some("42"), Some(true)), row("b\n      \"samples\": []", None, None)];
        let mut report = report(vec![
            cell("one", rows),
            cell("none", vec![]),
            cell("two", vec![row("c", Some("7"), None)]),
        ]);
        let whole = serde_json::to_string_pretty(&report).unwrap() + "\n";
        let rows: Vec<(usize, Row)> = report
            .cells
            .iter()
            .enumerate()
            .flat_map(|(i, cell)| cell.samples.iter().map(move |row| (i, row.clone())))
            .collect();
        let before = report.clone();
        let mut text = String::new();
        let write = |part: &str| {
            text.push_str(part);
            Ok::<(), std::convert::Infallible>(())
        };
        json(&mut report, rows.into_iter().map(Ok), write).unwrap();
        assert_eq!(text, whole);
        assert_eq!(report, before);
    }

    #[test]
    fn tokens_that_were_not_all_counted_alike_are_no_quiet_sum() {
        let (mut a, b) = (row("a", Some("42"), None), row("b", Some("42"), None));
        let of = |a: &Row| {
            let cell = cell("one", vec![a.clone(), b.clone()]);
            cell.warnings.iter().filter(|warning| warning.contains("tokens counted")).count()
        };
        assert_eq!(of(&a), 0);
        a.observed.requests[0].usage.token_source = Some(crate::sample::TokenSource::Chunks);
        assert_eq!(of(&a), 1);
    }

    #[test]
    fn numbers_need_nothing_that_was_said() {
        let rows = vec![row("a", Some("42"), Some(true)), row("b", None, None)];
        let whole = cell("one", rows.clone());
        let bare = cell("one", rows.into_iter().map(|row| row.bare(None)).collect());
        assert_eq!(whole.summary, bare.summary);
        assert!(bare.samples.iter().all(|row| row.sample.steps.is_empty()));
        let (mut whole, mut bare) = ([cell("one", whole.samples)], [cell("one", bare.samples)]);
        let of = |cells: &mut [Cell]| {
            analyse(cells, &Analysis::default()).map(|_| cells[0].measures.clone())
        };
        assert_eq!(of(&mut whole), of(&mut bare));
    }
}
