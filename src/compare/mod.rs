//! Two sides compared: which stages changed, and what that did to their samples, which come from the store by
//! key. Nothing is run. Knows nothing of how a difference is shown.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::digest::{Key, Recipe};
use crate::history::{HistoryError, Tables};
use crate::record::scores::{Measure, Metric, NoTag, PairBy, ScoreTable};
use crate::record::{StageRun, TallySummary};
use crate::report::diff::{
    self, CellDiff, CellSide, Change, DIFF_VERSION, Diff, Pairing, StageDiff, State,
};
use crate::stats::Reducer;
use crate::store::Store;

pub mod bisect;
mod git;
mod side;
mod table;
mod worktree;

pub use side::{Named, Side, Sides};
pub use worktree::Worktree;

use table::{Places, Scores};

/// Why there is nothing to compare.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The user can mend it.
    #[error("{0}")]
    User(String),
    /// Git or a file cannot be read.
    #[error("{0}")]
    Failed(String),
}

impl From<HistoryError> for CompareError {
    fn from(error: HistoryError) -> Self {
        match error.is_users() {
            true => CompareError::User(error.to_string()),
            false => CompareError::Failed(error.to_string()),
        }
    }
}

impl From<NoTag> for CompareError {
    fn from(error: NoTag) -> Self {
        CompareError::User(format!("`--cluster`: {error}"))
    }
}

/// How to compare.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// By what rows belong together; `None` decides it workflow by workflow.
    pub pair_by: Option<PairBy>,
    /// The tag by which rows depend on each other.
    pub cluster: Option<String>,
    /// Flipped rows that are kept, in each direction.
    pub limit: usize,
}

/// The keys of both sides, for whoever wants to fetch their records first.
pub fn keys(a: &Side, b: &Side) -> Vec<Key> {
    let all = a.stages.iter().chain(&b.stages).filter(|stage| stage.kind != "report");
    all.filter_map(|stage| stage.key)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Brings what the local store lacks of some keys from the shared one, where there is one.
pub async fn fetch(store: &Store, keys: &[Key]) {
    for key in keys {
        if let Some((record, _)) = store.find(*key).await {
            store.find_blobs(&record).await;
        }
    }
}

/// Compares two sides.
pub fn compare(
    store: &Store,
    a: &Side,
    b: &Side,
    settings: &Settings,
) -> Result<Diff, CompareError> {
    let of = |side: &Side, name: &str| side.stages.iter().find(|s| s.name == name).cloned();
    // In the order of the second side; what only the first one has comes last.
    let mut names: Vec<&str> = Vec::new();
    let mut seen = HashSet::new();
    for stage in b.stages.iter().chain(&a.stages).filter(|stage| stage.kind != "report") {
        if seen.insert(stage.name.as_str()) {
            names.push(&stage.name);
        }
    }
    let pairs: Vec<(&str, Option<StageRun>, Option<StageRun>)> =
        names.into_iter().map(|name| (name, of(a, name), of(b, name))).collect();
    let stages = pairs.iter().map(|(name, a, b)| stage(store, name, a.as_ref(), b.as_ref()));
    let stages = stages.collect();
    let workflows: Vec<_> = pairs
        .iter()
        .filter(|(_, a, b)| [a, b].into_iter().flatten().any(|stage| stage.kind == "workflow"))
        .collect();
    let one = |(name, of_a, of_b): &(&str, Option<StageRun>, Option<StageRun>)| {
        cell(store, name, (a, of_a.as_ref()), (b, of_b.as_ref()), settings)
    };
    let mut cells = in_parallel(&workflows, |pair| one(pair))
        .into_iter()
        .collect::<Result<Vec<CellDiff>, CompareError>>()?;
    diff::adjust_all(&mut cells);
    Ok(Diff { version: DIFF_VERSION, a: a.info.clone(), b: b.info.clone(), stages, cells })
}

fn stage(store: &Store, name: &str, a: Option<&StageRun>, b: Option<&StageRun>) -> StageDiff {
    let kind = b.or(a).map_or_else(String::new, |stage| stage.kind.clone());
    let mut out =
        StageDiff { stage: name.to_owned(), kind, change: Change::Same, fields: Some(Vec::new()) };
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (one, _) => {
            out.change = if one.is_some() { Change::Removed } else { Change::Added };
            return out;
        }
    };
    out.change = match (a.key, b.key) {
        (Some(x), Some(y)) if x != y => Change::Changed,
        (Some(_), Some(_)) if a.result != b.result => Change::Again,
        (Some(_), Some(_)) => Change::Same,
        _ => Change::Unfinished,
    };
    if out.change == Change::Changed {
        let recipes = recipe(store, a).zip(recipe(store, b));
        out.fields = recipes.map(|(before, after)| after.differences_from(&before));
    }
    out
}

/// The recipe of a stage: kept by itself, or with its result.
fn recipe(store: &Store, stage: &StageRun) -> Option<Recipe> {
    let kept = stage.recipe.and_then(|digest| store.blob(digest));
    let kept = kept.and_then(|bytes| serde_json::from_slice::<Recipe>(&bytes).ok());
    let kept = kept.filter(|recipe| Some(recipe.key()) == stage.key);
    kept.or_else(|| Some(store.get(stage.key?)?.recipe))
}

fn cell(
    store: &Store,
    name: &str,
    (side_a, a): (&Side, Option<&StageRun>),
    (side_b, b): (&Side, Option<&StageRun>),
    settings: &Settings,
) -> Result<CellDiff, CompareError> {
    let (name_a, name_b) = (side_a.info.name.as_str(), side_b.info.name.as_str());
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (one, _) => {
            let has = if one.is_some() { name_a } else { name_b };
            let note = format!("only `{has}` has this workflow");
            return Ok(CellDiff::new(name, State::OneSided, vec![note]));
        }
    };
    if a.result.is_some() && a.result == b.result {
        return Ok(same(store, name, b));
    }
    let (read_a, read_b) = std::thread::scope(|scope| {
        let first = scope.spawn(|| read(store, a));
        let second = read(store, b);
        (first.join().expect("BUG: reading a table panicked"), second)
    });
    let mut missing = Vec::new();
    for (side, read) in [(side_a, &read_a), (side_b, &read_b)] {
        if let Err(why) = read {
            missing.push(format!("`{}`: {why}{}", side.info.name, remedy(side)));
        }
    }
    let (Ok((cell_a, _)), Ok((cell_b, places))) = (&read_a, &read_b) else {
        return Ok(CellDiff::new(name, State::Missing, missing));
    };
    let pairing = Pairing {
        by: settings.pair_by,
        same_rows: settings.pair_by.is_none() && have_same_rows(store, (side_a, a), (side_b, b)),
        cluster: settings.cluster.clone(),
        limit: settings.limit,
    };
    let full = |keys: &[Key]| places.whole(store, keys);
    Ok(diff::cell(name, (name_a, cell_a), (name_b, cell_b), &pairing, &full)?)
}

/// Both sides have the same table: its sums stand in the store already.
fn same(store: &Store, name: &str, stage: &StageRun) -> CellDiff {
    let mut out = CellDiff::new(name, State::Same, Vec::new());
    if let Some(summary) = summary(store, stage) {
        let sums = diff::Sums::of(summary);
        (out.a, out.b) = (Some(sums.clone()), Some(sums));
    }
    out
}

/// What else brings it back.
fn remedy(side: &Side) -> String {
    match side.info.what {
        "revision" => {
            let short: String = side.info.id.chars().take(12).collect();
            format!("; or check {short} out and `forge apply` there")
        }
        _ => String::new(),
    }
}

/// Whether flows of both sides come from the same rows of data in the same order, so that only the template by
/// which they are asked differs.
fn have_same_rows(
    store: &Store,
    (side_a, a): (&Side, &StageRun),
    (side_b, b): (&Side, &StageRun),
) -> bool {
    let data = |side: &Side, workflow: &StageRun| {
        let flows = recipe(store, workflow)?.inputs.get("flows").copied()?;
        let mut made = side.stages.iter().filter(|s| s.kind == "expand" && s.result == Some(flows));
        let mut recipe = recipe(store, made.next()?)?;
        recipe.inputs.remove("template")?;
        Some(recipe)
    };
    let (of_a, of_b) = (data(side_a, a), data(side_b, b));
    of_a.is_some() && of_a == of_b
}

/// The samples of a workflow without their transcripts.
fn read(store: &Store, stage: &StageRun) -> Result<(CellSide, Places), HistoryError> {
    let tables = Tables::of(store, stage)?;
    let (samples, places) = Scores::read(store, tables.samples)?.into_parts();
    // Without what was observed there are no costs and times; everything else can still be said.
    let took = table::took(store, &tables);
    Ok((CellSide::new(samples, summary(store, stage), took), places))
}

/// The metrics of a workflow over all of its samples, draws averaged.
///
/// # Errors
/// Its samples are gone from the store, or have no such tag.
pub fn measures(
    store: &Store,
    stage: &StageRun,
    cluster: Option<&str>,
) -> Result<Vec<Measure>, CompareError> {
    let tables = Tables::of(store, stage)?;
    let samples = Scores::read(store, tables.samples)?.samples;
    let summary = summary(store, stage);
    let stopping = summary.as_ref().and_then(|summary| summary.stopping.as_ref());
    let watched = stopping.is_some_and(|stopping| stopping.watched);
    let table = ScoreTable::new(&samples, PairBy::Id, cluster, watched)?;
    Ok(table.metrics().iter().map(|metric: &Metric| table.measure(metric, Reducer::Mean)).collect())
}

/// What the run said of its samples; a lock file names the result that has it.
fn summary(store: &Store, stage: &StageRun) -> Option<TallySummary> {
    stage.summary.clone().or_else(|| {
        let record = store.get(stage.key?)?;
        let counts = record.blob("samples") == stage.result;
        serde_json::from_value(record.inline("summary").filter(|_| counts)?.clone()).ok()
    })
}

/// Applies a function to each of many, as many at once as there are cores, and keeps the order. What they hold
/// meanwhile is bounded by that.
fn in_parallel<T: Sync, R: Send>(all: &[T], one: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(HashMap::new()));
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = all.get(i) else { return };
            let result = one(item);
            done.lock().expect("BUG: a thread panicked").insert(i, result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..cores.min(all.len()) {
            scope.spawn(work);
        }
    });
    let mut done: HashMap<usize, R> = done.into_inner().expect("BUG: a thread panicked");
    (0..all.len()).map(|i| done.remove(&i).expect("BUG: an item was left out")).collect()
}
