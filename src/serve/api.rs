//! `/api/v1`, `/health` and `/ready`: arguments, calls, answers. Knows nothing of pages.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::calls::{Query, Stats, no_experiment};
use super::compare::Statistics;
use super::db::{Experiment, Filter};
use super::error::{ApiError, Explained};
use super::events::{self, Subject};
use super::experiment::{Issue, NewExperiment};
use super::known::backend_of;
use super::results::{self, Metrics, Run};
use super::rows::Want;
use super::runs::pipeline_name;
use super::{App, openapi};

mod project;

/// Samples of a page where the client is silent, and most of them.
const RUNS_MAX: u64 = 1000;

type Answer<T> = Result<T, ApiError>;

/// Everything below `/api/v1`.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/experiments", get(list).post(create))
        .route("/experiments/stats", get(stats))
        .route("/experiments/models", get(models))
        .route("/experiments/{id}", get(one).delete(delete))
        .route("/experiments/{id}/run", post(run))
        .route("/experiments/{id}/cancel", post(cancel))
        .route("/experiments/{id}/events", get(listen))
        .route("/experiments/{id}/manifest", get(manifest_of))
        .route("/results/compare", get(compare))
        .route("/results/compare/statistical", get(compare_statistical))
        .route("/results/{id}", get(result))
        .route("/results/{id}/metrics", get(metrics))
        .route("/results/{id}/runs", get(runs))
        .route("/results/{id}/profile", get(profile))
        .route("/results/{id}/export", get(export))
        .route("/openapi.json", get(document))
        .merge(project::routes())
}

/// What load balancers ask.
pub fn health() -> Router<App> {
    Router::new().route("/health", get(alive)).route("/ready", get(ready))
}

/// The server lives.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "It lives", body = Object)))]
async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// The server can do its work.
#[utoipa::path(get, path = "/ready", responses(
    (status = 200, description = "Ready", body = Object), (status = 503, description = "Not ready", body = Object)))]
async fn ready(State(app): State<App>) -> Response {
    let (store, database, engine) = block_in_place(|| {
        let said =
            |result: Result<(), String>| result.map_or_else(|error| error, |()| "ok".to_owned());
        let marker = std::fs::metadata(app.store.root().join("store.toml"));
        let engines = match app.known().engines.is_empty() {
            true => Err("the project declares no engine".to_owned()),
            false => Ok(()),
        };
        (
            said(marker.map(|_| ()).map_err(|error| error.to_string())),
            said(app.db.ping().map_err(|error| error.to_string())),
            said(engines),
        )
    });
    let is_ready = [&store, &database, &engine].iter().all(|check| *check == "ok");
    let checks = json!({ "store": store, "database": database, "engine": engine });
    let (status, word) = match is_ready {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
    };
    // Not an error of the request: the checks are the answer.
    (status, Extension(Explained), Json(json!({ "status": word, "checks": checks })))
        .into_response()
}

/// Write an experiment down.
#[utoipa::path(post, path = "/api/v1/experiments", request_body = NewExperiment, responses(
    (status = 201, description = "Written down", body = Experiment),
    (status = 413, description = "The body is too large", body = Object),
    (status = 415, description = "The body is no JSON by its content type", body = Object),
    (status = 422, description = "What is wrong, field by field", body = Object)))]
async fn create(
    State(app): State<App>,
    body: Result<Json<Value>, JsonRejection>,
) -> Answer<(StatusCode, Json<Experiment>)> {
    Ok((StatusCode::CREATED, Json(app.create(&body_of(body)?)?)))
}

/// The body of a request, or why it is none.
fn body_of(body: Result<Json<Value>, JsonRejection>) -> Answer<Value> {
    let Json(body) = body.map_err(|rejection| match rejection.status() {
        status @ (StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNSUPPORTED_MEDIA_TYPE) => {
            ApiError::new(status, rejection.body_text())
        }
        _ => ApiError::invalid(vec![Issue::new("body", rejection.body_text())]),
    })?;
    Ok(body)
}

/// Experiments, newest first.
#[utoipa::path(get, path = "/api/v1/experiments", params(
    ("status" = Option<String>, Query), ("method" = Option<String>, Query),
    ("model" = Option<String>, Query, description = "A part of the model's name"),
    ("name" = Option<String>, Query, description = "A part of the name"),
    ("skip" = Option<u64>, Query), ("limit" = Option<u64>, Query, minimum = 1, maximum = 100)), responses(
    (status = 200, description = "`{total, experiments, skip, limit}`", body = Object),
    (status = 422, description = "What is wrong", body = Object)))]
async fn list(State(app): State<App>, RawQuery(query): RawQuery) -> Answer<Json<Value>> {
    let (Filter { skip, limit, .. }, total, experiments) = app.list(query.as_deref())?;
    Ok(Json(json!({ "total": total, "experiments": experiments, "skip": skip, "limit": limit })))
}

/// Experiments by status.
#[utoipa::path(get, path = "/api/v1/experiments/stats", responses(
    (status = 200, description = "Counts", body = Stats)))]
async fn stats(State(app): State<App>) -> Answer<Json<Stats>> {
    Ok(Json(app.stats()?))
}

/// Engines that an experiment may name.
#[utoipa::path(get, path = "/api/v1/experiments/models", responses(
    (status = 200, description = "`{models: [{value, label, description}]}`", body = Object)))]
async fn models(State(app): State<App>) -> Json<Value> {
    let known = block_in_place(|| app.known());
    let models = known.engines.iter().map(|(name, fields)| {
        let backend = backend_of(fields);
        let model = fields.get("model").or(fields.get("hub")).and_then(Value::as_str);
        json!({
            "value": name,
            "label": name,
            "description": match model {
                Some(model) => format!("{backend}: {model}"),
                None => backend.to_owned(),
            },
            "default": known.default_engine.as_ref() == Some(name),
        })
    });
    let models: Vec<Value> = models.collect();
    let data_sets: Vec<&String> = known.data_sets.keys().collect();
    Json(json!({ "models": models, "datasets": data_sets }))
}

/// An experiment.
#[utoipa::path(get, path = "/api/v1/experiments/{id}", params(("id" = String, Path)), responses(
    (status = 200, description = "It", body = Experiment),
    (status = 404, description = "There is none", body = Object)))]
async fn one(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<Experiment>> {
    Ok(Json(app.experiment(&id)?.1))
}

/// Put an experiment into the queue.
#[utoipa::path(post, path = "/api/v1/experiments/{id}/run", params(("id" = String, Path)), responses(
    (status = 200, description = "It is queued", body = Experiment),
    (status = 400, description = "It is active already", body = Object),
    (status = 404, description = "There is none", body = Object),
    (status = 429, description = "The queue is full", body = Object),
    (status = 503, description = "The server is about to end", body = Object)))]
async fn run(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<Experiment>> {
    Ok(Json(app.start(&id)?))
}

/// End an experiment that waits or works.
#[utoipa::path(post, path = "/api/v1/experiments/{id}/cancel", params(("id" = String, Path)), responses(
    (status = 200, description = "It ends, or has", body = Experiment),
    (status = 400, description = "It is not active", body = Object),
    (status = 404, description = "There is none", body = Object)))]
async fn cancel(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<Experiment>> {
    Ok(Json(app.cancel(&id).await?))
}

/// Hide an experiment.
#[utoipa::path(delete, path = "/api/v1/experiments/{id}", params(("id" = String, Path)), responses(
    (status = 204, description = "Hidden"),
    (status = 400, description = "It is active", body = Object),
    (status = 404, description = "There is none", body = Object)))]
async fn delete(State(app): State<App>, Path(id): Path<String>) -> Answer<StatusCode> {
    app.delete(&id)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Server-sent events: progress, sample, done. Goes on after `Last-Event-ID`.
#[utoipa::path(get, path = "/api/v1/experiments/{id}/events", params(("id" = String, Path)), responses(
    (status = 200, description = "Events", content_type = "text/event-stream", body = String),
    (status = 404, description = "There is none", body = Object)))]
async fn listen(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer<Response> {
    let (uuid, experiment) = app.experiment(&id)?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let total = Some(experiment.config.num_samples.into());
    Ok(events::stream(app, Subject::Entry(uuid, total), last))
}

/// The manifest that an experiment is underneath.
#[utoipa::path(get, path = "/api/v1/experiments/{id}/manifest", params(("id" = String, Path)), responses(
    (status = 200, description = "TOML", content_type = "application/toml", body = String),
    (status = 404, description = "There is none", body = Object)))]
async fn manifest_of(State(app): State<App>, Path(id): Path<String>) -> Answer<Response> {
    let (uuid, _) = app.experiment(&id)?;
    let text = block_in_place(|| app.db.manifest(uuid))?.ok_or_else(|| no_experiment(&id))?;
    let kind = HeaderValue::from_static("application/toml");
    Ok(attached(kind, &format!("{}.toml", pipeline_name(uuid)), text))
}

/// A file to be saved. The name is made of an id, so that nothing in it can end the header.
fn attached(kind: HeaderValue, name: &str, body: String) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    let value = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
    headers.insert(header::CONTENT_DISPOSITION, value.expect("BUG: a name with odd characters"));
    response
}

/// Metrics, and samples if asked for.
#[utoipa::path(get, path = "/api/v1/results/{id}", params(("id" = String, Path),
    ("include_runs" = Option<bool>, Query)), responses(
    (status = 200, description = "`{experiment_id, metrics, runs}`", body = Object),
    (status = 404, description = "There is none yet", body = Object)))]
async fn result(
    State(app): State<App>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer<Json<Value>> {
    let mut query = Query::new(query.as_deref());
    let include = query.boolean("include_runs");
    query.finish()?;
    let (uuid, _) = app.experiment(&id)?;
    let found = app.found(uuid)?;
    block_in_place(|| {
        let metrics = app.results.metrics(&id, &found)?;
        let runs = match include {
            true => Some(app.results.runs(&id, &found, &Want::default(), 0, u64::MAX)?.1),
            false => None,
        };
        Ok(Json(json!({ "experiment_id": id, "metrics": metrics, "runs": runs })))
    })
}

/// Metrics.
#[utoipa::path(get, path = "/api/v1/results/{id}/metrics", params(("id" = String, Path)), responses(
    (status = 200, description = "Metrics", body = Metrics),
    (status = 404, description = "There are none yet", body = Object)))]
async fn metrics(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<Metrics>> {
    let (uuid, _) = app.experiment(&id)?;
    let found = app.found(uuid)?;
    Ok(Json(block_in_place(|| app.results.metrics(&id, &found))?))
}

/// Samples, page by page.
#[utoipa::path(get, path = "/api/v1/results/{id}/runs", params(("id" = String, Path),
    ("outcome" = Option<String>, Query), ("correct" = Option<String>, Query, description = "true, false or none"),
    ("q" = Option<String>, Query, description = "A text in its name, transcript, answer or targets"),
    ("skip" = Option<u64>, Query), ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000)), responses(
    (status = 200, description = "`{experiment_id, total, runs, skip, limit}`; each of `runs` is a Run", body = Run),
    (status = 404, description = "There are none yet", body = Object),
    (status = 422, description = "What is wrong", body = Object)))]
async fn runs(
    State(app): State<App>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer<Json<Value>> {
    let mut query = Query::new(query.as_deref());
    let skip = query.count("skip", 0..=u64::MAX, 0);
    let limit = query.count("limit", 1..=RUNS_MAX, RUNS_MAX);
    let want = query.want();
    query.finish()?;
    let (uuid, _) = app.experiment(&id)?;
    let found = app.found(uuid)?;
    let (total, runs) = block_in_place(|| app.results.runs(&id, &found, &want, skip, limit))?;
    Ok(Json(json!({
        "experiment_id": id, "total": total, "runs": runs, "skip": skip, "limit": limit,
    })))
}

/// Where the time went, what the cache saved, and how fast live requests were answered. `speed` has the summaries
/// `{count, total_ms, mean_ms, p50_ms, p90_ms, p95_ms, p99_ms}` `ttft`, `tpot`, `itl`, `icl`, `e2e` and others, rates,
/// and `timeline`: requests in flight, in steps of equal length. What was not measured is null.
#[utoipa::path(get, path = "/api/v1/results/{id}/profile", params(("id" = String, Path)), responses(
    (status = 200, description = "`{experiment_id, profiling_summary, cache_stats, batch_stats, total_wall_time_ms, speed}`", body = Object),
    (status = 404, description = "There is no such experiment", body = Object)))]
async fn profile(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<Value>> {
    let (uuid, experiment) = app.experiment(&id)?;
    Ok(Json(results::profile(&id, app.profile(uuid, &experiment)?.as_ref())))
}

/// Everything of an experiment in one file.
#[utoipa::path(get, path = "/api/v1/results/{id}/export", params(("id" = String, Path)), responses(
    (status = 200, description = "`{experiment, metrics, runs, total_runs}`", body = Object),
    (status = 404, description = "There is none", body = Object)))]
async fn export(State(app): State<App>, Path(id): Path<String>) -> Answer<Response> {
    let (uuid, experiment) = app.experiment(&id)?;
    let file = match app.found(uuid) {
        Ok(found) => block_in_place(|| -> Answer<Value> {
            let metrics = app.results.metrics(&id, &found)?;
            let (_, runs) = app.results.runs(&id, &found, &Want::default(), 0, u64::MAX)?;
            Ok(results::export(&experiment, Some(&metrics), &runs))
        })?,
        Err(error) if error.status == StatusCode::NOT_FOUND => {
            results::export(&experiment, None, &[])
        }
        Err(error) => return Err(error),
    };
    let name = format!("{}.json", pipeline_name(uuid));
    Ok(attached(HeaderValue::from_static("application/json"), &name, file.to_string()))
}

/// Metrics of several experiments beside each other.
#[utoipa::path(get, path = "/api/v1/results/compare", params(
    ("experiment_ids" = Vec<String>, Query, description = "Repeated, at least two")), responses(
    (status = 200, description = "`{experiments, comparison_metrics}`", body = Object),
    (status = 400, description = "Fewer than two", body = Object),
    (status = 404, description = "One of them has no results", body = Object)))]
async fn compare(State(app): State<App>, RawQuery(query): RawQuery) -> Answer<Json<Value>> {
    let query = Query::new(query.as_deref());
    Ok(Json(app.compared(&query.all("experiment_ids"))?))
}

/// Two experiments over the same rows, row by row.
#[utoipa::path(get, path = "/api/v1/results/compare/statistical", params(
    ("experiment_a" = String, Query), ("experiment_b" = String, Query)), responses(
    (status = 200, description = "Paired statistics", body = Statistics),
    (status = 404, description = "One of them has no results", body = Object),
    (status = 409, description = "The data differ", body = Object),
    (status = 422, description = "One is not named", body = Object)))]
async fn compare_statistical(
    State(app): State<App>,
    RawQuery(query): RawQuery,
) -> Answer<Json<Statistics>> {
    let mut query = Query::new(query.as_deref());
    let (a, b) = (query.required("experiment_a"), query.required("experiment_b"));
    query.finish()?;
    Ok(Json(app.statistics(&a, &b)?))
}

/// This document.
async fn document() -> Json<Value> {
    Json(openapi::document())
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "forge",
        description = "Experiments on language models: configured, run, watched, compared."
    ),
    paths(
        alive,
        ready,
        create,
        list,
        stats,
        models,
        one,
        run,
        cancel,
        delete,
        listen,
        manifest_of,
        result,
        metrics,
        runs,
        profile,
        export,
        compare,
        compare_statistical,
        project::manifests,
        project::manifest,
        project::jobs,
        project::create,
        project::job,
        project::cancel,
        project::listen_job,
        project::runs,
        project::compare,
        project::run,
        project::listen_run,
        project::samples,
        project::report
    )
)]
pub(super) struct Document;
