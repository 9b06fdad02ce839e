//! What differs between two sets of finished samples: metrics, who flipped, cost and latency. Knows nothing of
//! where samples come from; the statistics are those of reports (`record::scores`).

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{Cost, Took, dollars, dollars_text, question};
use crate::digest::{Difference, Key};
use crate::record::scores::{
    Both, Comparison, Metric, NoTag, PairBy, ScoreTable, adjust, both, compare, keep_common,
};
use crate::record::{Tally, TallySummary};
use crate::sample::{Outcome, Sample, Usage};
use crate::stats::{Reducer, Summary};

mod bisect;
mod html;
mod markdown;
mod text;
mod words;

pub use bisect::{BISECT_VERSION, Bisection, Commit, FirstBad, Step, step, summary};
pub use html::{BODY, html, shown};
pub use markdown::{MARKDOWN_MAX, markdown};
pub use text::text;

/// Version of the JSON of a [`Diff`].
pub const DIFF_VERSION: u32 = 1;

/// Everything that `forge diff` shows; `--json` is this, as it stands. Differences are b − a.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// Version of this format.
    pub version: u32,
    /// The first side.
    pub a: SideInfo,
    /// The second side.
    pub b: SideInfo,
    /// Stages of either side, reports left out: they hold times.
    pub stages: Vec<StageDiff>,
    /// Workflows (or matrix cells) of either side, matched by name.
    pub cells: Vec<CellDiff>,
}

/// What a side is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SideInfo {
    /// As it was asked for.
    pub name: String,
    /// `run`, `lock` or `revision`.
    pub what: &'static str,
    /// ULID of the run, path of the lock file, or commit.
    pub id: String,
}

/// What became of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The same key and the same result.
    Same,
    /// Another key.
    Changed,
    /// The same key and another result: it was worked out again.
    Again,
    /// Only the second side has it.
    Added,
    /// Only the first side has it.
    Removed,
    /// It did not end on one side.
    Unfinished,
}

/// A stage on both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageDiff {
    /// Its name.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// What became of it.
    pub change: Change,
    /// Settings and inputs that differ; `null` where a recipe is in the store no more.
    pub fields: Option<Vec<Difference>>,
}

/// What came of a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Both sides have the same samples, byte by byte.
    Same,
    /// The sides were compared over the rows that both have.
    Compared,
    /// They have no row in common.
    DifferentData,
    /// Only one side has the workflow.
    OneSided,
    /// Samples of a side are not in the store.
    Missing,
}

/// A workflow on both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CellDiff {
    /// Its name, with its matrix values.
    pub name: String,
    /// What came of it.
    pub state: State,
    /// Why it was not compared, or with which reservation.
    pub notes: Vec<String>,
    /// By what rows belong together.
    pub pair_by: Option<PairBy>,
    /// Rows of the first side, of the second side, and of both.
    pub rows: Option<[u64; 3]>,
    /// Sums over all samples of the first side.
    pub a: Option<Sums>,
    /// Sums over all samples of the second side.
    pub b: Option<Sums>,
    /// Metrics over the common rows.
    pub comparisons: Vec<Comparison>,
    /// Rows that the first side had right and the second has not, or less often.
    pub lost: Flips,
    /// Rows that the second side has right and the first had not, or less often.
    pub gained: Flips,
    /// Common rows that are as right as before with another answer or another outcome.
    pub otherwise: u64,
}

impl CellDiff {
    /// One that was not compared.
    pub fn new(name: &str, state: State, notes: Vec<String>) -> CellDiff {
        CellDiff {
            name: name.to_owned(),
            state,
            notes,
            pair_by: None,
            rows: None,
            a: None,
            b: None,
            comparisons: Vec::new(),
            lost: Flips::default(),
            gained: Flips::default(),
            otherwise: 0,
        }
    }
}

/// Sums of one side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sums {
    /// Counts and metrics.
    pub summary: TallySummary,
    /// Of samples whose every request was live: latency without the wait for the engine's permit. `null` without
    /// any, and where another run has replaced what was observed.
    pub latency_live: Option<Summary>,
    /// Tokens of all requests, live and remembered; `null` as above.
    pub usage: Option<Usage>,
    /// What they cost, where somebody has said what tokens cost.
    pub cost: Option<Cost>,
    /// The same of those whom scorers and retrieval ask, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scorer_costs: BTreeMap<String, Cost>,
}

impl Sums {
    /// Of samples of which no more is known.
    pub fn of(summary: TallySummary) -> Self {
        let scorer_costs = BTreeMap::new();
        Sums { summary, latency_live: None, usage: None, cost: None, scorer_costs }
    }

    /// Dollars for all requests, as if none had been remembered.
    pub fn dollars(&self) -> Option<f64> {
        dollars(self.cost.as_ref(), &self.scorer_costs)
    }

    /// The same for people.
    pub(super) fn dollars_text(&self) -> Option<String> {
        dollars_text(self.cost.as_ref(), &self.scorer_costs)
    }
}

/// Rows that flipped in one direction.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Flips {
    /// How many.
    pub count: u64,
    /// The first of them in the order of the flows; those that changed most come first.
    pub rows: Vec<Flip>,
}

/// A row that flipped.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flip {
    /// The flow's name, on the second side.
    pub flow: String,
    /// What was asked, on the second side: the last turn of the user before the first reply.
    pub question: Option<String>,
    /// Accepted answers.
    pub targets: Vec<String>,
    /// The draws of the first side.
    pub a: Vec<Drawn>,
    /// The draws of the second side.
    pub b: Vec<Drawn>,
}

/// What one draw came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drawn {
    /// Under which key it is remembered.
    pub key: Key,
    /// How it ended.
    pub outcome: Outcome,
    /// The answer as parsed.
    pub answer: Option<String>,
    /// Whether the first scorer holds it fully right; `null` without scores.
    pub right: Option<bool>,
}

impl Drawn {
    fn of(sample: &Sample) -> Drawn {
        Drawn {
            key: sample.key,
            outcome: sample.outcome,
            answer: sample.answer.clone(),
            right: crate::record::scores::right(sample).map(|value| value == 1.0),
        }
    }
}

/// The samples of one side. Their transcripts may be left out.
pub struct CellSide {
    samples: Vec<Sample>,
    sums: Sums,
}

impl CellSide {
    /// `summary` is what the run said of them; absent they are counted. `took` is what they took, where that is
    /// known.
    pub fn new(
        samples: Vec<Sample>,
        summary: Option<TallySummary>,
        took: Option<Took>,
    ) -> CellSide {
        let summary = summary.unwrap_or_else(|| {
            let mut tally = Tally::default();
            samples.iter().for_each(|sample| tally.add(sample));
            tally.summary()
        });
        let mut sums = Sums::of(summary);
        if let Some(took) = took.filter(|took| took.samples() == samples.len()) {
            sums.usage = Some(took.usage);
            (sums.cost, sums.scorer_costs) = (took.cost, took.scorer_costs);
            sums.latency_live = Summary::of(took.live);
        }
        CellSide { samples, sums }
    }

    /// The sums.
    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    fn table(&self, by: PairBy, cluster: Option<&str>) -> Result<ScoreTable<'_>, NoTag> {
        let stopping = self.sums.summary.stopping.as_ref();
        let watched = stopping.is_some_and(|stopping| stopping.watched);
        ScoreTable::new(&self.samples, by, cluster, watched)
    }
}

/// How rows are paired and what is shown of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Pairing {
    /// By what rows belong together; `None` is by content, or, where `same_rows` says that both sides have the same
    /// rows of data asked in different ways and content does not pair them all, by name.
    pub by: Option<PairBy>,
    /// Whether the flows of both sides were made of the same rows.
    pub same_rows: bool,
    /// The tag by which rows depend on each other.
    pub cluster: Option<String>,
    /// Flipped rows that are kept, in each direction.
    pub limit: usize,
}

/// Compares the samples of one workflow. `full` gives a sample of the second side with its transcript.
pub fn cell(
    name: &str,
    (name_a, a): (&str, &CellSide),
    (name_b, b): (&str, &CellSide),
    pairing: &Pairing,
    full: &dyn Fn(&[Key]) -> Vec<Sample>,
) -> Result<CellDiff, NoTag> {
    let tables = |by| -> Result<_, NoTag> {
        let cluster = pairing.cluster.as_deref();
        let (mut of_a, mut of_b) = (a.table(by, cluster)?, b.table(by, cluster)?);
        let (rows_a, rows_b) = (of_a.rows(), of_b.rows());
        let common = keep_common(&mut of_a, &mut of_b);
        Ok((of_a, of_b, [rows_a, rows_b, common]))
    };
    let mut by = pairing.by.unwrap_or_default();
    let (mut of_a, mut of_b, mut rows) = tables(by)?;
    if pairing.by.is_none() && pairing.same_rows && rows[2] < rows[0].max(rows[1]) {
        let by_name = tables(PairBy::Id)?;
        if by_name.2[2] > rows[2] {
            by = PairBy::Id;
            (of_a, of_b, rows) = by_name;
        }
    }
    let mut out = CellDiff::new(name, State::Compared, Vec::new());
    out.pair_by = Some(by);
    out.rows = Some(rows);
    (out.a, out.b) = (Some(a.sums.clone()), Some(b.sums.clone()));
    let [rows_a, rows_b, common] = rows;
    if common == 0 {
        out.state = State::DifferentData;
        let hint = match by {
            PairBy::Content => {
                "; `--pair-by id` pairs rows by name and target, for the same questions asked in another way"
            }
            PairBy::Id => "",
        };
        out.notes.push(format!(
            "different data: {rows_a} rows in `{name_a}`, {rows_b} in `{name_b}`, none in common{hint}"
        ));
        return Ok(out);
    }
    if by == PairBy::Id && pairing.by.is_none() {
        out.notes.push(
            "the same rows asked in another way: paired by name and target, not by content"
                .to_owned(),
        );
    }
    if common < rows_a || common < rows_b {
        out.notes.push(format!(
            "different data: {rows_a} rows in `{name_a}`, {rows_b} in `{name_b}`; only the {common} in common are \
             compared"
        ));
    }
    if a.sums.usage.is_none() || b.sums.usage.is_none() {
        let sides = [(name_a, a), (name_b, b)].into_iter().filter(|(_, x)| x.sums.usage.is_none());
        let sides: Vec<_> = sides.map(|(name, _)| format!("`{name}`")).collect();
        out.notes.push(format!(
            "cost and latency of {} are not known any more: a later run has replaced them",
            sides.join(" and ")
        ));
    }
    out.comparisons = metrics((name_a, &of_a), (name_b, &of_b));
    flips(&both(&of_a, &of_b), pairing.limit, &mut out);
    ask(&mut out, full);
    Ok(out)
}

/// Each metric that both sides have; one of a single side is there without a result.
fn metrics(
    (name_a, a): (&str, &ScoreTable<'_>),
    (name_b, b): (&str, &ScoreTable<'_>),
) -> Vec<Comparison> {
    let (of_a, of_b) = (a.metrics(), b.metrics());
    // What has no answer on one side alone is wrong there, so that this one means something on both.
    let all = |metric: &Metric| *metric == Metric::AccuracyAll;
    let shared = |metric: &Metric, other: &[Metric]| {
        other.contains(metric) || all(metric) && other.contains(&Metric::Accuracy)
    };
    let mut wanted: Vec<(Metric, Reducer)> = Vec::new();
    let mut alone = Vec::new();
    for (metrics, others, name) in [(&of_a, &of_b, name_a), (&of_b, &of_a, name_b)] {
        for metric in metrics {
            let pair = (metric.clone(), Reducer::Mean);
            if !shared(metric, others) {
                alone.push((metric.name().to_owned(), name));
            } else if !wanted.contains(&pair) {
                wanted.push(pair);
            }
        }
    }
    // Both tables were cut down to what they have in common.
    let mut out = compare((name_a, a), (name_b, b), &wanted, true);
    out.extend(alone.into_iter().map(|(metric, side)| Comparison {
        a: name_a.to_owned(),
        b: name_b.to_owned(),
        metric,
        reducer: Reducer::Mean.to_string(),
        common: a.rows(),
        refused: Some(format!("only `{side}` has this metric")),
        result: None,
        p_holm: None,
    }));
    out
}

fn flips(rows: &[Both<'_, '_>], limit: usize, out: &mut CellDiff) {
    let (mut lost, mut gained) = (Vec::new(), Vec::new());
    for row in rows {
        match (row.right_a, row.right_b) {
            (Some(a), Some(b)) if a > b => lost.push((a - b, row)),
            (Some(a), Some(b)) if a < b => gained.push((b - a, row)),
            _ => {
                let said = |sample: &&Sample| (sample.outcome, sample.answer.clone());
                out.otherwise += u64::from(!row.a.iter().map(said).eq(row.b.iter().map(said)));
            }
        }
    }
    let keep = |mut all: Vec<(f64, &Both<'_, '_>)>| {
        // Of several draws, the row that changed most comes first; else the order of the flows stays.
        all.sort_by(|(x, _), (y, _)| y.total_cmp(x));
        let flip = |(_, row): &(f64, &Both<'_, '_>)| Flip {
            flow: row.b[0].flow.clone(),
            question: None,
            targets: row.b[0].targets.clone(),
            a: row.a.iter().map(|sample| Drawn::of(sample)).collect(),
            b: row.b.iter().map(|sample| Drawn::of(sample)).collect(),
        };
        Flips { count: all.len() as u64, rows: all.iter().take(limit).map(flip).collect() }
    };
    (out.lost, out.gained) = (keep(lost), keep(gained));
}

/// Reads the questions of the rows that are shown, and of no others.
fn ask(out: &mut CellDiff, full: &dyn Fn(&[Key]) -> Vec<Sample>) {
    let mut rows: Vec<&mut Flip> = out.lost.rows.iter_mut().chain(&mut out.gained.rows).collect();
    let keys: Vec<Key> = rows.iter().map(|flip| flip.b[0].key).collect();
    let samples = full(&keys);
    let places: HashMap<Key, &Sample> = samples.iter().map(|sample| (sample.key, sample)).collect();
    for flip in &mut rows {
        let sample = places.get(&flip.b[0].key);
        flip.question = sample.and_then(|sample| question(sample)).map(str::to_owned);
    }
}

/// Sets the p-values of all workflows among those of the same metric.
pub fn adjust_all(cells: &mut [CellDiff]) {
    let counts: Vec<usize> = cells.iter().map(|cell| cell.comparisons.len()).collect();
    let mut all: Vec<Comparison> =
        cells.iter_mut().flat_map(|cell| std::mem::take(&mut cell.comparisons)).collect();
    adjust(&mut all);
    let mut rest = all.into_iter();
    for (cell, count) in cells.iter_mut().zip(counts) {
        cell.comparisons = rest.by_ref().take(count).collect();
    }
}

/// The diff as JSON, indented.
pub fn json(diff: &Diff) -> String {
    serde_json::to_string_pretty(diff).expect("BUG: a diff is plain data")
}
