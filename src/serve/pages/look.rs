//! Pages that show results: an experiment, a sample of it, two of them beside each other. Knows nothing of how they
//! came to be.

use axum::Extension;
use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::routing::get;
use minijinja::{Value as Shown, context};
use serde_json::Value;
use tokio::task::block_in_place;

use super::{Answer, App, page};
use crate::record::{Phase, Profile};
use crate::serve::auth::Caller;
use crate::serve::calls::Query;
use crate::serve::db::{Filter, Status};
use crate::serve::error::ApiError;
use crate::serve::results;
use crate::stats::{Bar, Summary};

/// Samples of a page.
const LIMIT: u64 = 25;
/// Experiments that can be chosen for a comparison.
const CHOICES: u64 = 100;
/// Width and height of a chart, in its own units.
const CHART: (f64, f64) = (400.0, 120.0);

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/experiments/{id}", get(experiment))
        .route("/experiments/{id}/samples/{index}", get(sample))
        .route("/compare", get(compare))
}

/// `None` where there is nothing yet.
fn if_there<T>(result: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.status == StatusCode::NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}

async fn experiment(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let mut query = Query::new(query.as_deref());
    let skip = query.count("skip", 0..=u64::MAX, 0);
    query.finish()?;
    let (uuid, one) = app.experiment(&id)?;
    let manifest = block_in_place(|| app.db.manifest(uuid))?.unwrap_or_default();
    let active = one.status.is_active();
    let mut data = context! { experiment => one, active, manifest };
    let found = if active { None } else { if_there(app.found(uuid))? };
    let results = match &found {
        None => context! {
            metrics => (), profile => (), phases => (), runs => (), bars => (), interval => (), accuracy => (), admission => (),
            skip, limit => LIMIT, total => 0,
        },
        Some(found) => block_in_place(|| -> Result<Shown, ApiError> {
            let sums = app.results.sums(found)?;
            let (total, runs) = app.results.runs(&one.id, found, skip, LIMIT)?;
            let profile = app.profile(uuid, &one)?;
            Ok(context! {
                metrics => app.results.metrics(&one.id, found)?,
                accuracy => sums.summary.metrics.get("accuracy").copied().flatten(),
                interval => sums.summary.accuracy_ci,
                bars => bars(&sums.histogram),
                // As pairs: the engine of the templates sorts maps, and phases have an order.
                phases => phases(profile.as_ref()),
                profile => results::profile(&one.id, profile.as_ref()),
                admission => app.results.info(found)?.admission,
                runs, skip, total, limit => LIMIT,
            })
        })?,
    };
    data = context! { ..data, ..results };
    Ok(page(&app, &caller, ("experiment.html", &one.name, ""), data))
}

/// Phases with their times, in the order of a sample's life.
fn phases(profile: Option<&Profile>) -> Vec<(&'static str, &Summary)> {
    let times = |phase: Phase| Some((phase.name(), profile?.profiling_summary.get(&phase)?));
    Phase::ALL.into_iter().filter_map(times).collect()
}

/// A histogram as rectangles.
fn bars(histogram: &[Bar]) -> Vec<Shown> {
    let most = histogram.iter().map(|bar| bar.count).max().unwrap_or(0).max(1) as f64;
    let width = CHART.0 / histogram.len().max(1) as f64;
    let bars = histogram.iter().enumerate().map(|(i, bar)| {
        let height = CHART.1 * bar.count as f64 / most;
        context! {
            x => i as f64 * width, y => CHART.1 - height, width => (width - 1.0).max(0.5), height,
            from => bar.from, to => bar.to, count => bar.count,
        }
    });
    bars.collect()
}

async fn sample(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((id, index)): Path<(String, String)>,
) -> Answer {
    let (uuid, one) = app.experiment(&id)?;
    let found = app.found(uuid)?;
    let none = || ApiError::not_found(format!("the experiment has no sample {index}"));
    let number: u64 = index.parse().map_err(|_| none())?;
    let (sample, seen) = block_in_place(|| app.results.sample(&found, number))?.ok_or_else(none)?;
    let total = block_in_place(|| app.results.sums(&found))?.samples;
    let steps = serde_json::to_value(&sample.steps).expect("BUG: steps are plain data");
    let scores = serde_json::to_value(&sample.scores).expect("BUG: scores are plain data");
    let run = results::run_of(&one.id, &results::moment(found.started_unix_ms), sample, &seen);
    let title = run.example_id.clone();
    let data = context! { experiment => one, run, steps, scores, index => number, total };
    Ok(page(&app, &caller, ("sample.html", &title, ""), data))
}

/// A metric in a comparison: where it stands, how it is shown, whether more is better.
const METRICS: &[(&str, &str, &str, bool)] = &[
    ("Exact", "/quality/accuracy_exact", "percent", true),
    ("Holds the target", "/quality/accuracy_substring", "percent", true),
    ("F1", "/quality/accuracy_f1", "share", true),
    ("Throughput, samples/s", "/performance/throughput", "number", true),
    ("p50, live, ms", "/performance/latency_p50", "number", false),
    ("p95, live, ms", "/performance/latency_p95", "number", false),
    ("Tokens out", "/cost/total_tokens_output", "whole", false),
];

fn shown(value: &Value, how: &str) -> String {
    match (value.as_f64(), how) {
        (None, _) => "–".to_owned(),
        (Some(x), "percent") => format!("{:.1} %", x * 100.0),
        (Some(x), "share") => format!("{x:.3}"),
        (Some(x), "whole") => format!("{x:.0}"),
        (Some(x), _) => format!("{x:.1}"),
    }
}

async fn compare(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = Query::new(query.as_deref());
    let filter = Filter { status: Some(Status::Completed), limit: CHOICES, ..Filter::default() };
    let (_, completed) = block_in_place(|| app.db.list(&filter))?;
    let mut ids: Vec<String> = query.all("experiment_ids").into_iter().map(str::to_owned).collect();
    let named = ids.len();
    // The form always has two; without a word the newest are proposed.
    for one in &completed {
        if ids.len() < 2 && !ids.contains(&one.id) {
            ids.push(one.id.clone());
        }
    }
    ids.resize(ids.len().max(2), String::new());
    let mut data = context! {
        completed, ids, error => "", rows => (), experiments => (), refused => "", statistics => (),
    };
    if named >= 2 {
        let all: Vec<&str> = ids.iter().map(String::as_str).collect();
        data = match app.compared(&all) {
            Ok(beside) => {
                let of = |path: &str| -> Vec<Value> {
                    let all = beside["experiments"].as_array().into_iter().flatten();
                    all.map(|one| one["metrics"].pointer(path).cloned().unwrap_or(Value::Null))
                        .collect()
                };
                let rows = METRICS.iter().map(|(name, path, how, more)| {
                    let values = of(path);
                    let verdict = match (values[0].as_f64(), values[1].as_f64()) {
                        (Some(a), Some(b)) if a != b => {
                            if (b > a) == *more {
                                "better"
                            } else {
                                "worse"
                            }
                        }
                        (Some(_), Some(_)) => "same",
                        _ => "",
                    };
                    let values: Vec<String> =
                        values.iter().map(|value| shown(value, how)).collect();
                    context! { name, values, verdict }
                });
                let rows: Vec<Shown> = rows.collect();
                let (statistics, refused) = match app.statistics(all[0], all[1]) {
                    Ok(statistics) => (Shown::from_serialize(&statistics), String::new()),
                    Err(error) => (Shown::from(()), error.message),
                };
                let experiments = &beside["experiments"];
                context! { rows, experiments, statistics, refused, ..data }
            }
            Err(error) => context! { error => error.message, ..data },
        };
    }
    Ok(page(&app, &caller, ("compare.html", "Compare", "/compare"), data))
}
