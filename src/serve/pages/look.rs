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
use crate::report::{P99_NOTE, charts, latency_chart, speed_shown};
use crate::serve::auth::Caller;
use crate::serve::calls::Query;
use crate::serve::db::{Filter, Status};
use crate::serve::error::ApiError;
use crate::serve::manifest::WORKFLOW;
use crate::serve::project::outcomes;
use crate::serve::results::{self, Found};
use crate::serve::rows::Want;
use crate::stats::{Interval, Summary};

/// Samples of a page.
const LIMIT: u64 = 25;
/// Experiments that can be chosen for a comparison.
const CHOICES: u64 = 100;

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

/// The filters of a list of samples as they stand in the address, and links to the pages before and after.
pub(super) struct Listing {
    pub(super) want: Want,
    pub(super) skip: u64,
    correct: String,
    /// Address of the page, and the part of its query that is no filter.
    base: String,
    fixed: Vec<(String, String)>,
}

impl Listing {
    pub(super) fn read(query: &mut Query, base: String, fixed: Vec<(String, String)>) -> Listing {
        let skip = query.count("skip", 0..=u64::MAX, 0);
        let correct = query.text("correct").unwrap_or_default();
        Listing { want: query.want(), skip, correct, base, fixed }
    }

    fn link(&self, skip: u64) -> String {
        let mut link = url::form_urlencoded::Serializer::new(String::new());
        link.extend_pairs(&self.fixed);
        let filters = [
            ("outcome", self.want.outcome.map_or("", |outcome| outcome.name())),
            ("correct", self.correct.as_str()),
            ("q", self.want.text.as_deref().unwrap_or_default()),
        ];
        link.extend_pairs(filters.iter().filter(|(_, value)| !value.is_empty()));
        link.append_pair("skip", &skip.to_string());
        format!("{}?{}#samples", self.base, link.finish())
    }

    /// What the list of samples shows. `rows` have the field names of the interface.
    pub(super) fn shown(&self, rows: Shown, count: usize, total: u64, complete: bool) -> Shown {
        let (shown, skip) = (count as u64, self.skip);
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.fixed);
        let query = query.finish();
        context! {
            rows, total, complete,
            is_filtered => !self.want.is_all(),
            base => self.base, fixed => self.fixed,
            query => if query.is_empty() { String::new() } else { format!("?{query}") },
            outcome => self.want.outcome.map_or("", |outcome| outcome.name()),
            correct => self.correct,
            q => self.want.text.as_deref().unwrap_or_default(),
            outcomes => outcomes(),
            from => if shown == 0 { 0 } else { skip + 1 },
            to => skip + shown,
            before => (skip > 0).then(|| self.link(skip.saturating_sub(LIMIT))),
            after => (skip + shown < total && shown > 0).then(|| self.link(skip + LIMIT)),
        }
    }
}

/// What a page says of a result: numbers, chart, profile, samples.
pub(super) fn results_of(
    app: &App,
    id: &str,
    found: &Found,
    listing: &Listing,
    profile: Option<&Profile>,
) -> Result<Shown, ApiError> {
    let sums = app.results.sums(found)?;
    let (total, runs) = app.results.runs(id, found, &listing.want, listing.skip, LIMIT)?;
    let count = runs.len();
    let times = sums.live.as_ref().or(sums.cached.as_ref());
    let chart = times.and_then(|times| latency_chart(times, &sums.histogram));
    Ok(context! {
        metrics => app.results.metrics(id, found)?,
        accuracy => sums.summary.metrics.get("accuracy").copied().flatten(),
        interval => sums.summary.accuracy_ci,
        chart => chart.map(Shown::from_safe_string),
        bars => sums.histogram,
        // As pairs: the engine of the templates sorts maps, and phases have an order.
        phases => phases(profile),
        profile => results::profile(id, profile),
        speed => profile.and_then(|profile| speed_shown(&profile.speed)),
        p99_note => P99_NOTE,
        admission => app.results.info(found)?.admission,
        list => listing.shown(Shown::from_serialize(&runs), count, total, true),
    })
}

/// The same of a workflow that has none yet: the samples that ended so far, if it has begun.
pub(super) fn without_results(
    app: &App,
    at_work: Option<(&str, &str)>,
    listing: &Listing,
) -> Result<Shown, ApiError> {
    let list = match at_work {
        Some((run, stage)) => {
            let (total, rows) =
                app.results.so_far(run, stage, &listing.want, listing.skip, LIMIT)?;
            listing.shown(Shown::from_serialize(&rows), rows.len(), total, false)
        }
        None => Shown::from(()),
    };
    Ok(context! {
        metrics => (), profile => (), speed => (), p99_note => (), phases => (), bars => (), chart => (), interval => (), accuracy => (),
        admission => (), list,
    })
}

async fn experiment(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let mut query = Query::new(query.as_deref());
    let (uuid, one) = app.experiment(&id)?;
    let listing = Listing::read(&mut query, format!("/experiments/{uuid}"), Vec::new());
    query.finish()?;
    let manifest = block_in_place(|| app.db.manifest(uuid))?.unwrap_or_default();
    let active = one.status.is_active();
    let run = block_in_place(|| app.db.life(uuid))?.and_then(|life| life.run);
    let found = if active { None } else { if_there(app.found(uuid))? };
    let results = block_in_place(|| match &found {
        Some(found) => {
            let profile = app.profile(uuid, &one)?;
            results_of(&app, &one.id, found, &listing, profile.as_ref())
        }
        None => {
            let at_work = run.as_deref().filter(|_| active).map(|run| (run, WORKFLOW));
            without_results(&app, at_work, &listing)
        }
    })?;
    let data = context! { experiment => one, active, manifest, run, ..results };
    Ok(page(&app, &caller, ("experiment.html", &one.name, ""), data))
}

/// Phases with their times, in the order of a sample's life.
fn phases(profile: Option<&Profile>) -> Vec<(&'static str, &Summary)> {
    let times = |phase: Phase| Some((phase.name(), profile?.profiling_summary.get(&phase)?));
    Phase::ALL.into_iter().filter_map(times).collect()
}

/// What the page of a sample shows. `back` is where its list is, with its name, and `base` and `query` go around its
/// number.
pub(super) struct Place<'a> {
    pub(super) back: (&'a str, &'a str),
    pub(super) base: &'a str,
    pub(super) query: &'a str,
}

/// The page of a sample.
pub(super) fn sample_page(
    (app, caller): (&App, &Caller),
    id: &str,
    found: &Found,
    index: &str,
    place: &Place<'_>,
) -> Answer {
    let none = || ApiError::not_found(format!("there is no sample {index}"));
    let number: u64 = index.parse().map_err(|_| none())?;
    let (sample, seen) = block_in_place(|| app.results.sample(found, number))?.ok_or_else(none)?;
    let total = block_in_place(|| app.results.sums(found))?.samples;
    let steps = serde_json::to_value(&sample.steps).expect("BUG: steps are plain data");
    let scores = serde_json::to_value(&sample.scores).expect("BUG: scores are plain data");
    let created_at = results::moment(found.started_unix_ms);
    let run = results::run_of(id, number, &created_at, sample, &seen);
    let title = run.example_id.clone();
    let data = context! {
        run, steps, scores, index => number, total, back => place.back, base => place.base, query => place.query,
    };
    Ok(page(app, caller, ("sample.html", &title, ""), data))
}

async fn sample(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((id, index)): Path<(String, String)>,
) -> Answer {
    let (uuid, one) = app.experiment(&id)?;
    let found = app.found(uuid)?;
    let base = format!("/experiments/{uuid}");
    let back = format!("{base}#samples");
    let place = Place { back: (&back, &one.name), base: &base, query: "" };
    sample_page((&app, &caller), &one.id, &found, &index, &place)
}

/// A metric in a comparison: where it stands, how it is shown, whether more is better.
const METRICS: &[(&str, &str, &str, bool)] = &[
    ("Exact", "/quality/accuracy_exact", "percent", true),
    ("Holds the target", "/quality/accuracy_substring", "percent", true),
    ("F1", "/quality/accuracy_f1", "share", true),
    ("Throughput, live, samples/s", "/performance/throughput", "number", true),
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
        charts => Vec::<Shown>::new(),
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
                let charts = charts_of(&app, &beside)?;
                let (statistics, refused) = match app.statistics(all[0], all[1]) {
                    Ok(statistics) => (Shown::from_serialize(&statistics), String::new()),
                    Err(error) => (Shown::from(()), error.message),
                };
                let experiments = &beside["experiments"];
                context! { rows, experiments, statistics, refused, charts, ..data }
            }
            Err(error) => context! { error => error.message, ..data },
        };
    }
    Ok(page(&app, &caller, ("compare.html", "Compare", "/compare"), data))
}

/// Charts of experiments beside each other, as in reports: what they gave, what it took, and both together.
fn charts_of(app: &App, beside: &Value) -> Result<Vec<Shown>, ApiError> {
    let (mut right, mut times, mut points) = (Vec::new(), Vec::new(), Vec::new());
    for (i, one) in beside["experiments"].as_array().into_iter().flatten().enumerate() {
        let letter = char::from(b'A' + (i % 26) as u8);
        let name = format!("{letter} {}", one["experiment_name"].as_str().unwrap_or_default());
        let (uuid, _) = app.experiment(one["experiment_id"].as_str().unwrap_or_default())?;
        let sums = block_in_place(|| app.results.sums(&app.found(uuid)?).map_err(ApiError::from))?;
        let accuracy = sums.summary.metrics.get("accuracy").copied().flatten();
        let ci: Option<Interval> = sums.summary.accuracy_ci;
        let p50 = sums.live.as_ref().map(|live| live.p50_ms);
        right.push(charts::Bar { name: name.clone(), value: accuracy, ci });
        times.push(charts::Bar { name: name.clone(), value: p50, ci: None });
        if let (Some(y), Some(x)) = (accuracy, p50) {
            points.push(charts::Point { number: i + 1, name, x, y, ci });
        }
    }
    let percent: charts::Show = |share| format!("{:.1} %", share * 100.0);
    let ms: charts::Show = super::format::duration;
    let bars = |title: &str, bars, show| charts::Bars { title: title.to_owned(), bars, show };
    let mut all = vec![
        charts::bars(&bars("Accuracy", right, percent)),
        charts::bars(&bars("p50 of live samples", times, ms)),
    ];
    if points.len() > 1 {
        all.push(charts::scatter(&charts::Scatter {
            title: "Accuracy and latency".to_owned(),
            x_axis: "p50 of live samples".to_owned(),
            y_axis: "accuracy".to_owned(),
            points,
            show_x: ms,
            show_y: percent,
        }));
    }
    Ok(all.into_iter().map(Shown::from_safe_string).collect())
}
