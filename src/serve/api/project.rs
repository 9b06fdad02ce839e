//! `/api/v1/manifests`, `/jobs` and `/runs`: arguments, calls, answers. Knows nothing of experiments.

use std::collections::BTreeMap;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::task::block_in_place;
use utoipa::ToSchema;

use super::{Answer, App, RUNS_MAX, body_of};
use crate::serve::calls::{LIMIT, LIMIT_MAX, Query};
use crate::serve::diff;
use crate::serve::error::ApiError;
use crate::serve::events::{self, Subject};
use crate::serve::experiment::Issue;
use crate::serve::jobs::Job;
use crate::serve::known::ManifestInfo;
use crate::serve::project::param;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/manifests", get(manifests))
        .route("/manifests/{*path}", get(manifest))
        .route("/jobs", get(jobs).post(create))
        .route("/jobs/{id}", get(job))
        .route("/jobs/{id}/cancel", post(cancel))
        .route("/jobs/{id}/events", get(listen_job))
        .route("/runs", get(runs))
        .route("/runs/compare", get(compare))
        .route("/runs/{id}", get(run))
        .route("/runs/{id}/events", get(listen_run))
        .route("/runs/{id}/samples", get(samples))
        .route("/runs/{id}/report", get(report))
}

/// What a client wants to have run.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct NewJob {
    /// Path of a manifest of the project.
    manifest: String,
    /// Parameters that shall differ from the manifest's: text, numbers, true or false.
    #[schema(value_type = Option<Object>)]
    params: Option<Map<String, Value>>,
}

/// Manifests of the project.
#[utoipa::path(get, path = "/api/v1/manifests", responses(
    (status = 200, description = "`{manifests}`", body = Object)))]
pub(super) async fn manifests(State(app): State<App>) -> Json<Value> {
    Json(json!({ "manifests": app.manifests() }))
}

/// A manifest of the project, with its text as `toml`.
#[utoipa::path(get, path = "/api/v1/manifests/{path}", params(("path" = String, Path)), responses(
    (status = 200, description = "It", body = ManifestInfo),
    (status = 404, description = "There is none", body = Object)))]
pub(super) async fn manifest(
    State(app): State<App>,
    Path(path): Path<String>,
) -> Answer<Json<Value>> {
    let (info, text) = app.manifest(&path)?;
    let mut body = json!(info);
    body["toml"] = text.into();
    Ok(Json(body))
}

/// Put a manifest of the project into the queue.
#[utoipa::path(post, path = "/api/v1/jobs", request_body = NewJob, responses(
    (status = 201, description = "It is queued", body = Job),
    (status = 413, description = "The body is too large", body = Object),
    (status = 415, description = "The body is no JSON by its content type", body = Object),
    (status = 422, description = "What is wrong, field by field", body = Object),
    (status = 429, description = "The queue is full", body = Object),
    (status = 503, description = "The server is about to end", body = Object)))]
pub(super) async fn create(
    State(app): State<App>,
    body: Result<Json<Value>, JsonRejection>,
) -> Answer<(StatusCode, Json<Job>)> {
    let body = body_of(body)?;
    let wrong = |field: &str, issue: String| ApiError::invalid(vec![Issue::new(field, issue)]);
    let Some(fields) = body.as_object() else {
        return Err(wrong("body", "must be an object".to_owned()));
    };
    if let Some(name) = fields.keys().find(|name| !["manifest", "params"].contains(&name.as_str()))
    {
        return Err(wrong(name, "is unknown (known: manifest, params)".to_owned()));
    }
    let Some(path) = body["manifest"].as_str() else {
        return Err(wrong("manifest", "must be the path of a manifest".to_owned()));
    };
    let mut params = BTreeMap::new();
    match &body["params"] {
        Value::Null => {}
        Value::Object(map) => {
            for (name, value) in map {
                let Some(value) = param(value) else {
                    let issue = "must be a text, a number, true or false".to_owned();
                    return Err(wrong(&format!("params.{name}"), issue));
                };
                params.insert(name.clone(), value);
            }
        }
        _ => return Err(wrong("params", "must be an object".to_owned())),
    }
    Ok((StatusCode::CREATED, Json(app.create_job(path, &params)?)))
}

/// Jobs that wait or work, in the order in which they came.
#[utoipa::path(get, path = "/api/v1/jobs", responses(
    (status = 200, description = "`{jobs}`", body = Object)))]
pub(super) async fn jobs(State(app): State<App>) -> Answer<Json<Value>> {
    Ok(Json(json!({ "jobs": block_in_place(|| app.db.active_jobs())? })))
}

/// A job.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", params(("id" = String, Path)), responses(
    (status = 200, description = "It", body = Job),
    (status = 404, description = "There is none", body = Object)))]
pub(super) async fn job(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<Job>> {
    Ok(Json(app.job(&id)?.1))
}

/// End a job that waits or works.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/cancel", params(("id" = String, Path)), responses(
    (status = 200, description = "It ends, or has", body = Job),
    (status = 400, description = "It is not active", body = Object),
    (status = 404, description = "There is none", body = Object)))]
pub(super) async fn cancel(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<Job>> {
    Ok(Json(app.cancel_job(&id).await?))
}

fn last_of(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id").and_then(|value| value.to_str().ok())
}

/// Server-sent events: progress, sample, done. Goes on after `Last-Event-ID`.
#[utoipa::path(get, path = "/api/v1/jobs/{id}/events", params(("id" = String, Path)), responses(
    (status = 200, description = "Events", content_type = "text/event-stream", body = String),
    (status = 404, description = "There is none", body = Object)))]
pub(super) async fn listen_job(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer<Response> {
    let (uuid, _) = app.job(&id)?;
    Ok(events::stream(app, Subject::Entry(uuid, None), last_of(&headers)))
}

/// Runs of the store, newest first, whoever made them.
#[utoipa::path(get, path = "/api/v1/runs", params(
    ("manifest" = Option<String>, Query, description = "Those of this manifest, among the newest 200"),
    ("skip" = Option<u64>, Query), ("limit" = Option<u64>, Query, minimum = 1, maximum = 100)), responses(
    (status = 200, description = "`{total, runs, skip, limit}`", body = Object),
    (status = 422, description = "What is wrong", body = Object)))]
pub(super) async fn runs(State(app): State<App>, RawQuery(query): RawQuery) -> Answer<Json<Value>> {
    let mut query = Query::new(query.as_deref());
    let skip = query.count("skip", 0..=u64::MAX, 0);
    let limit = query.count("limit", 1..=LIMIT_MAX, LIMIT);
    let manifest = query.text("manifest");
    query.finish()?;
    let (total, runs) = app.runs_of_store(manifest.as_deref(), skip, limit)?;
    Ok(Json(json!({ "total": total, "runs": runs, "skip": skip, "limit": limit })))
}

/// Two runs of the store, whoever made them, compared as `forge diff A B --json` does it: stages that changed and by what,
/// and of each workflow the metrics with paired tests over the common rows, sums, and the rows that flipped. Differences
/// are b − a.
#[utoipa::path(get, path = "/api/v1/runs/compare", params(
    ("a" = String, Query, description = "ULID of the first run"), ("b" = String, Query, description = "ULID of the second run"),
    ("pair_by" = Option<String>, Query, description = "By what rows belong together: content or id"),
    ("cluster" = Option<String>, Query, description = "The tag of rows that depend on each other"),
    ("limit" = Option<u64>, Query, minimum = 0, maximum = 1000, description = "Flipped rows of a workflow in each direction")),
    responses(
    (status = 200, description = "`{version, a, b, stages, cells: [{name, state, notes, rows, comparisons, lost, gained, …}]}`", body = Object),
    (status = 404, description = "There is no such run", body = Object),
    (status = 422, description = "What is wrong", body = Object)))]
pub(super) async fn compare(
    State(app): State<App>,
    RawQuery(query): RawQuery,
) -> Answer<Json<Value>> {
    let mut query = Query::new(query.as_deref());
    let settings = diff::settings(&mut query);
    let (a, b) = (query.required("a"), query.required("b"));
    query.finish()?;
    Ok(Json(json!(app.diff(&a, &b, &settings).await?)))
}

/// The record of a run, as `forge show --json` gives it.
#[utoipa::path(get, path = "/api/v1/runs/{id}", params(("id" = String, Path)), responses(
    (status = 200, description = "Its record", body = Object),
    (status = 404, description = "There is none", body = Object)))]
pub(super) async fn run(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<Value>> {
    Ok(Json(json!(&*app.run(&id)?)))
}

/// Server-sent events of a run, whoever makes it. Goes on after `Last-Event-ID`.
#[utoipa::path(get, path = "/api/v1/runs/{id}/events", params(("id" = String, Path)), responses(
    (status = 200, description = "Events", content_type = "text/event-stream", body = String),
    (status = 404, description = "There is none", body = Object)))]
pub(super) async fn listen_run(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer<Response> {
    let run = app.run(&id)?.record.run_id.clone();
    Ok(events::stream(app, Subject::Run(run), last_of(&headers)))
}

/// Samples of a workflow of a run, page by page; of a run at work, those that ended so far.
#[utoipa::path(get, path = "/api/v1/runs/{id}/samples", params(("id" = String, Path),
    ("stage" = Option<String>, Query, description = "The workflow; the first one if absent"),
    ("outcome" = Option<String>, Query), ("correct" = Option<String>, Query, description = "true, false or none"),
    ("q" = Option<String>, Query, description = "A text in its name, transcript, answer or targets"),
    ("skip" = Option<u64>, Query), ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000)), responses(
    (status = 200, description = "`{run_id, stage, complete, total, samples, skip, limit}`; of a whole result each sample is a Run", body = Object),
    (status = 404, description = "There is none", body = Object),
    (status = 422, description = "What is wrong", body = Object)))]
pub(super) async fn samples(
    State(app): State<App>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer<Json<Value>> {
    let mut query = Query::new(query.as_deref());
    let want = query.want();
    let stage = query.text("stage");
    let skip = query.count("skip", 0..=u64::MAX, 0);
    let limit = query.count("limit", 1..=RUNS_MAX, LIMIT_MAX);
    query.finish()?;
    let run = app.run(&id)?;
    let stage = app.workflow(&run, stage.as_deref())?;
    let (complete, total, samples) = block_in_place(|| -> Answer<_> {
        match app.results.of_stage(&run.record, stage) {
            Ok(found) => {
                let (total, rows) = app.results.runs(&found.run, &found, &want, skip, limit)?;
                Ok((true, total, json!(rows)))
            }
            Err(error) if !run.is_running() => Err(error.into()),
            Err(_) => {
                let id = &run.record.run_id;
                let (total, rows) = app.results.so_far(id, stage, &want, skip, limit)?;
                Ok((false, total, json!(rows)))
            }
        }
    })?;
    Ok(Json(json!({
        "run_id": run.record.run_id, "stage": stage, "complete": complete, "total": total,
        "samples": samples, "skip": skip, "limit": limit,
    })))
}

/// What the report of a run may do: be shown, and run its own script. To the browser it is a page of nobody, so that
/// nothing in it can speak for who reads it.
const SANDBOX: &str = "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; \
                       style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'";

/// The HTML report that a run has written.
#[utoipa::path(get, path = "/api/v1/runs/{id}/report", params(("id" = String, Path)), responses(
    (status = 200, description = "HTML", content_type = "text/html", body = String),
    (status = 404, description = "There is none", body = Object)))]
pub(super) async fn report(State(app): State<App>, Path(id): Path<String>) -> Answer<Response> {
    let run = app.run(&id)?;
    let none = || ApiError::not_found("the run has no HTML report, or it is gone from the store");
    let bytes = block_in_place(|| {
        let digest = app.results.report(&run.record).ok_or_else(none)?;
        app.results.blob(digest).ok_or_else(none)
    })?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOX)),
    ];
    Ok((headers, bytes).into_response())
}
