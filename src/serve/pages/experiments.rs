//! Pages that list, make and run experiments. Knows nothing of results.

use axum::Extension;
use axum::Router;
use axum::extract::{Form, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use minijinja::context;
use tokio::task::block_in_place;

use super::forms::{self, Values};
use super::{Answer, App, Plain, check_form, page};
use crate::serve::auth::Caller;
use crate::serve::calls::Query;
use crate::serve::db::{Filter, Status};
use crate::serve::error::{ApiError, Explained};
use crate::serve::experiment::Issue;

/// Experiments on the dashboard.
const LATEST: u64 = 10;
/// Runs there.
const LATEST_RUNS: u64 = 5;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(dashboard))
        .route("/experiments", get(list).post(create))
        .route("/experiments/new", get(new))
        .route("/experiments/{id}/run", post(run))
        .route("/experiments/{id}/cancel", post(cancel))
        .route("/experiments/{id}/delete", post(delete))
}

async fn dashboard(State(app): State<App>, Extension(caller): Extension<Caller>) -> Answer {
    let (known, latest) = block_in_place(|| {
        (app.known(), app.db.list(&Filter { limit: LATEST, ..Filter::default() }))
    });
    let data = context! {
        stats => app.stats()?,
        experiments => latest?.1,
        engines => known.engines.keys().collect::<Vec<_>>(),
        data_sets => known.data_sets.keys().collect::<Vec<_>>(),
        manifests => known.manifests,
        runs => app.runs_of_store(None, 0, LATEST_RUNS)?.1,
    };
    Ok(page(&app, &caller, ("dashboard.html", "Dashboard", "/"), data))
}

async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Answer {
    let (filter, total, experiments) = app.list(query.as_deref())?;
    let Filter { skip, limit, .. } = filter;
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    let status = filter.status.map_or("", Status::name);
    let link = |skip: u64| {
        let mut link = url::form_urlencoded::Serializer::new(String::new());
        let words = [
            ("status", status.to_owned()),
            ("method", word(&filter.method)),
            ("model", word(&filter.model)),
            ("name", word(&filter.name)),
        ];
        link.extend_pairs(words.iter().filter(|(_, value)| !value.is_empty()));
        link.append_pair("skip", &skip.to_string()).append_pair("limit", &limit.to_string());
        format!("/experiments?{}", link.finish())
    };
    let shown = experiments.len() as u64;
    let filtered = [&filter.method, &filter.model, &filter.name].iter().any(|word| word.is_some());
    let data = context! {
        experiments, total,
        filter => context! {
            status, method => word(&filter.method), model => word(&filter.model), name => word(&filter.name),
        },
        is_filtered => filtered || filter.status.is_some(),
        from => if shown == 0 { 0 } else { skip + 1 },
        to => skip + shown,
        before => (skip > 0).then(|| link(skip.saturating_sub(limit))),
        after => (skip + shown < total && shown > 0).then(|| link(skip + limit)),
    };
    Ok(page(&app, &caller, ("experiments.html", "Experiments", "/experiments"), data))
}

async fn new(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Answer {
    let values = match Query::new(query.as_deref()).text("from") {
        Some(id) => {
            let (_, one) = app.experiment(&id)?;
            forms::copied(&one.name, one.description.as_deref(), &one.config)
        }
        None => {
            let known = block_in_place(|| app.known());
            let engine = known.default_engine.clone().unwrap_or_default();
            let data = known.data_sets.keys().next().cloned().unwrap_or_default();
            forms::empty(&engine, &data)
        }
    };
    Ok(form(&app, &caller, &values, &[]))
}

/// The form with what stands in it, and what is wrong with that.
fn form(app: &App, caller: &Caller, values: &Values, issues: &[Issue]) -> Response {
    let known = block_in_place(|| app.known());
    let (errors, wrong) = forms::wrong(issues);
    let data = context! {
        values, errors, wrong,
        engines => known.engines.keys().collect::<Vec<_>>(),
        data_sets => known.data_sets.keys().collect::<Vec<_>>(),
    };
    page(app, caller, ("new.html", "New experiment", "/experiments/new"), data)
}

async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Form(pairs): Form<Vec<(String, String)>>,
) -> Answer {
    let field = |name: &str| {
        let found = pairs.iter().find(|(own, _)| own == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    check_form(&app, &caller, field("form"))?;
    let values = forms::sent(&pairs);
    let made = match app.create(&forms::body(&values)) {
        Ok(made) => made,
        Err(error) if error.status == StatusCode::UNPROCESSABLE_ENTITY => {
            // What was typed stays, and each field says what is wrong with it.
            let mut response = form(&app, &caller, &values, &error.details);
            *response.status_mut() = error.status;
            response.extensions_mut().insert(Explained);
            return Ok(response);
        }
        Err(error) => return Err(error),
    };
    if field("then") == "run" {
        app.start(&made.id)?;
    }
    Ok(Redirect::to(&format!("/experiments/{}", made.id)).into_response())
}

/// Back to the page of an experiment.
fn back(id: &str) -> Response {
    Redirect::to(&format!("/experiments/{id}")).into_response()
}

/// Somebody else was faster: the page says how things are.
fn unless_late(result: Result<(), ApiError>) -> Result<(), ApiError> {
    match result {
        Err(error) if error.status == StatusCode::BAD_REQUEST => Ok(()),
        other => other,
    }
}

async fn run(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Form(form): Form<Plain>,
) -> Answer {
    check_form(&app, &caller, &form.form)?;
    let (uuid, _) = app.experiment(&id)?;
    unless_late(app.start(&id).map(drop))?;
    Ok(back(&uuid.to_string()))
}

async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Form(form): Form<Plain>,
) -> Answer {
    check_form(&app, &caller, &form.form)?;
    let (uuid, _) = app.experiment(&id)?;
    unless_late(app.cancel(&id).await.map(drop))?;
    Ok(back(&uuid.to_string()))
}

async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Form(form): Form<Plain>,
) -> Answer {
    check_form(&app, &caller, &form.form)?;
    app.delete(&id)?;
    Ok(Redirect::to("/experiments").into_response())
}
