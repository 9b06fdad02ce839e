//! Pages of what the project has beside experiments: its manifests, jobs, and all runs of its store. Knows nothing of
//! how they are run.

use std::collections::BTreeMap;

use axum::Extension;
use axum::Router;
use axum::extract::{Form, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect};
use axum::routing::{get, post};
use minijinja::{Value as Shown, context};
use serde_json::Value;
use tokio::task::block_in_place;

use super::look::{Listing, Place, results_of, sample_page, without_results};
use super::{Answer, App, Plain, check_form, page};
use crate::record::{RunRecord, StageRun};
use crate::serve::auth::Caller;
use crate::serve::calls::{LIMIT, LIMIT_MAX, Query};
use crate::serve::diff;
use crate::serve::error::{ApiError, Explained};
use crate::serve::project::{RunInfo, param};

/// Runs on the page of a manifest.
const LATEST: u64 = 10;
/// What the fields of parameters are called in a form.
const PARAM: &str = "param.";

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/manifests", get(manifests))
        .route("/manifests/{*path}", get(manifest).post(run_manifest))
        .route("/jobs/{id}", get(job))
        .route("/jobs/{id}/cancel", post(cancel))
        .route("/runs", get(runs))
        .route("/runs/compare", get(compare))
        .route("/runs/{id}", get(run))
        .route("/runs/{id}/samples/{index}", get(sample))
}

async fn manifests(State(app): State<App>, Extension(caller): Extension<Caller>) -> Answer {
    let data = context! {
        manifests => app.manifests(),
        jobs => block_in_place(|| app.db.active_jobs())?,
    };
    Ok(page(&app, &caller, ("manifests.html", "Manifests", "/manifests"), data))
}

async fn manifest(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<String>,
) -> Answer {
    shown(&app, &caller, &path, &BTreeMap::new(), "")
}

/// The page of a manifest, with what was typed and what is wrong with that.
fn shown(
    app: &App,
    caller: &Caller,
    path: &str,
    typed: &BTreeMap<String, String>,
    error: &str,
) -> Answer {
    let (info, text) = app.manifest(path)?;
    let (_, runs) = app.runs_of_store(Some(path), 0, LATEST)?;
    let params = info.params.iter().filter_map(|(name, value)| {
        let own = param(value)?;
        Some(context! { name, value => typed.get(name).unwrap_or(&own), own })
    });
    let params: Vec<Shown> = params.collect();
    let title = info.name.clone().unwrap_or_else(|| path.to_owned());
    let data = context! { manifest => info, text, runs, params, error };
    Ok(page(app, caller, ("manifest.html", &title, "/manifests"), data))
}

async fn run_manifest(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<String>,
    Form(pairs): Form<Vec<(String, String)>>,
) -> Answer {
    let form = pairs.iter().find(|(name, _)| name == "form");
    check_form(&app, &caller, form.map_or("", |(_, value)| value))?;
    let (info, _) = app.manifest(&path)?;
    let typed = pairs.iter().filter_map(|(name, value)| Some((name.strip_prefix(PARAM)?, value)));
    let typed: BTreeMap<String, String> =
        typed.map(|(name, value)| (name.to_owned(), value.clone())).collect();
    // What is as the manifest has it is no change.
    let mut params = typed.clone();
    params.retain(|name, value| info.params.get(name).and_then(param).as_ref() != Some(value));
    match app.create_job(&path, &params) {
        Ok(job) => Ok(Redirect::to(&format!("/jobs/{}", job.id)).into_response()),
        Err(error) if error.status == StatusCode::UNPROCESSABLE_ENTITY => {
            let issues = error.details.iter().map(|issue| issue.issue.as_str());
            let issues = issues.collect::<Vec<_>>().join("\n");
            let mut response = shown(&app, &caller, &path, &typed, &issues)?;
            *response.status_mut() = error.status;
            response.extensions_mut().insert(Explained);
            Ok(response)
        }
        Err(error) => Err(error),
    }
}

async fn job(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer {
    let (_, job) = app.job(&id)?;
    if let (false, Some(run)) = (job.status.is_active(), &job.run_id) {
        return Ok(Redirect::to(&format!("/runs/{run}")).into_response());
    }
    let title = job.name.clone();
    let active = job.status.is_active();
    Ok(page(&app, &caller, ("job.html", &title, "/runs"), context! { job, active }))
}

async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Form(form): Form<Plain>,
) -> Answer {
    check_form(&app, &caller, &form.form)?;
    match app.cancel_job(&id).await {
        // Somebody else was faster: the page says how things are.
        Err(error) if error.status != StatusCode::BAD_REQUEST => Err(error),
        _ => Ok(Redirect::to(&format!("/jobs/{id}")).into_response()),
    }
}

async fn runs(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Answer {
    let mut query = Query::new(query.as_deref());
    let skip = query.count("skip", 0..=u64::MAX, 0);
    let limit = query.count("limit", 1..=LIMIT_MAX, LIMIT);
    query.finish()?;
    let (total, runs) = app.runs_of_store(None, skip, limit)?;
    let shown = runs.len() as u64;
    let link = |skip: u64| format!("/runs?skip={skip}&limit={limit}");
    let data = context! {
        runs, total,
        jobs => block_in_place(|| app.db.active_jobs())?,
        from => if shown == 0 { 0 } else { skip + 1 },
        to => skip + shown,
        before => (skip > 0).then(|| link(skip.saturating_sub(limit))),
        after => (skip + limit < total).then(|| link(skip + limit)),
    };
    Ok(page(&app, &caller, ("runs.html", "Runs", "/runs"), data))
}

/// Two runs compared. Both are named as `a` and `b`, or as two times `run`, then the older one is `a`; to one that is
/// named alone the page proposes another of the same manifest.
async fn compare(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Answer {
    let mut query = Query::new(query.as_deref());
    let settings = diff::settings(&mut query);
    let mut named: Vec<String> = query.all("run").into_iter().map(str::to_owned).collect();
    named.sort();
    if named.is_empty() {
        named = ["a", "b"].iter().filter_map(|name| query.text(name)).collect();
    }
    let (pair_by, cluster) = (query.text("pair_by"), query.text("cluster"));
    query.finish()?;
    let (_, mut choices) = app.runs_of_store(None, 0, LIMIT_MAX)?;
    for id in named.iter().take(2) {
        let run = app.run(id)?;
        if !choices.iter().any(|one| one.run_id == run.id()) {
            choices.push(app.run_info(&run)?);
        }
    }
    let (mut shown, mut error) = (Shown::from(()), String::new());
    let mut sides = named.clone();
    match named.as_slice() {
        [a, b] => match app.diff(a, b, &settings).await {
            Ok(diff) => shown = crate::report::diff::shown(&diff),
            Err(wrong) if wrong.status == StatusCode::UNPROCESSABLE_ENTITY => error = wrong.message,
            Err(wrong) => return Err(wrong),
        },
        [] | [_] => {
            let manifest = |id: &str| choices.iter().find(|one| one.run_id == id);
            let of = named.first().and_then(|id| manifest(id)).map(|one| one.manifest.clone());
            let fits = |one: &&RunInfo| of.as_ref().is_none_or(|of| *of == one.manifest);
            let proposed = choices.iter().filter(fits).chain(&choices);
            let others = proposed.map(|one| one.run_id.clone()).filter(|id| !named.contains(id));
            sides.extend(others.take(2 - named.len()));
            sides.sort();
        }
        many => error = format!("{} runs were chosen, and two are compared", many.len()),
    }
    let side = |i: usize| sides.get(i).cloned().unwrap_or_default();
    let data = context! {
        choices, error, diff => shown, a => side(0), b => side(1),
        pair_by => pair_by.unwrap_or_default(), cluster => cluster.unwrap_or_default(),
    };
    Ok(page(&app, &caller, ("diff.html", "Compare runs", "/runs"), data))
}

fn fixed(stage: &str) -> Vec<(String, String)> {
    vec![("stage".to_owned(), stage.to_owned())]
}

async fn run(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let mut query = Query::new(query.as_deref());
    let run = app.run(&id)?;
    let info = app.run_info(&run)?;
    let record = &run.record;
    let named = query.text("stage");
    let stage = match (app.workflow(&run, named.as_deref()), &named) {
        (Ok(stage), _) => Some(stage),
        // A run need not have a workflow; one that is named has to be there.
        (Err(_), None) => None,
        (Err(error), Some(_)) => return Err(error),
    };
    let base = format!("/runs/{}", record.run_id);
    let listing = Listing::read(&mut query, base, stage.map_or_else(Vec::new, fixed));
    query.finish()?;
    let results = block_in_place(|| -> Result<Shown, ApiError> {
        let Some(stage) = stage else { return without_results(&app, None, &listing) };
        match app.results.of_stage(record, stage) {
            Ok(found) => {
                let profile = app.results.info(&found)?.profile;
                results_of(&app, &found.run, &found, &listing, Some(&profile))
            }
            Err(_) => {
                let at_work = run.is_running().then_some((record.run_id.as_str(), stage));
                without_results(&app, at_work, &listing)
            }
        }
    })?;
    let data = context! {
        run => info, stage, active => run.is_running(),
        stages => stages(record),
        params => record.about.params.iter().collect::<Vec<(&String, &Value)>>(),
        git => record.about.git_revision, dirty => record.about.git_dirty,
        notices => record.notices, gates => crate::report::gates::lines(&record.gates),
        has_report => block_in_place(|| app.results.report(record)).is_some(),
        ..results
    };
    let title = format!("{} {}", record.pipeline, record.run_id);
    Ok(page(&app, &caller, ("run.html", &title, "/runs"), data))
}

/// The stages of a run as its page shows them.
fn stages(record: &RunRecord) -> Vec<Shown> {
    let one = |stage: &StageRun| {
        context! {
            name => stage.name, kind => stage.kind, state => stage.state.map(|state| state.name()),
            samples => (stage.kind == "workflow").then(|| stage.samples()),
            accuracy => stage.metric("accuracy"),
            wall_ms => stage.wall_ms, error => stage.error,
        }
    };
    record.stages.iter().map(one).collect()
}

async fn sample(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((id, index)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Answer {
    let run = app.run(&id)?;
    let named = Query::new(query.as_deref()).text("stage");
    let stage = app.workflow(&run, named.as_deref())?;
    let found = block_in_place(|| app.results.of_stage(&run.record, stage))?;
    let base = format!("/runs/{}", found.run);
    let mut query = url::form_urlencoded::Serializer::new("?".to_owned());
    let query = query.append_pair("stage", stage).finish();
    let back = format!("{base}{query}#samples");
    let name = format!("{} {}", run.record.pipeline, stage);
    let place = Place { back: (&back, &name), base: &base, query: &query };
    sample_page((&app, &caller), &found.run, &found, &index, &place)
}
