//! Pages for people: rendered here, with a little script that brings live progress. Every text in them is escaped by
//! the template engine. Knows nothing of how experiments are run.

use axum::Router;
use axum::extract::{Form, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, http::HeaderMap};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};

use super::App;
use super::auth::{COOKIE, Caller, SESSION};
use super::error::{ApiError, Explained};
use super::guard::Peer;

mod experiments;
mod forms;
mod format;
mod look;
mod project;

/// Name and text of every template.
const TEMPLATES: &[(&str, &str)] = &[
    ("base.html", include_str!("base.html")),
    ("macros.html", include_str!("macros.html")),
    ("error.html", include_str!("error.html")),
    ("login.html", include_str!("login.html")),
    ("dashboard.html", include_str!("dashboard.html")),
    ("experiments.html", include_str!("experiments.html")),
    ("new.html", include_str!("new.html")),
    ("experiment.html", include_str!("experiment.html")),
    ("sample.html", include_str!("sample.html")),
    ("compare.html", include_str!("compare.html")),
    ("results.html", include_str!("results.html")),
    ("manifests.html", include_str!("manifests.html")),
    ("manifest.html", include_str!("manifest.html")),
    ("job.html", include_str!("job.html")),
    ("runs.html", include_str!("runs.html")),
    ("run.html", include_str!("run.html")),
    ("diff.html", include_str!("diff.html")),
    ("diff_body.html", crate::report::diff::BODY),
    ("docs.html", include_str!("docs.html")),
];

/// With what charts need.
const STYLE: &str =
    concat!(include_str!("../../report/charts/charts.css"), include_str!("style.css"));
const SCRIPT: &str = include_str!("live.js");

/// The templates, compiled once.
pub struct Pages(Environment<'static>);

impl Pages {
    /// Compiles them.
    pub fn new() -> Pages {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_auto_escape_callback(|_| AutoEscape::Html);
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        format::add(&mut env);
        for (name, text) in TEMPLATES {
            env.add_template(name, text).expect("BUG: a template of ours");
        }
        Pages(env)
    }

    /// A page. `path` says which place of the navigation it is.
    fn render<T: Serialize>(&self, name: &str, page: &Page<'_>, data: T) -> Html<String> {
        let template = self.0.get_template(name).expect("BUG: a template of ours");
        let text = template.render(context! { page, data });
        Html(text.unwrap_or_else(|error| panic!("BUG: `{name}` cannot be rendered: {error:#}")))
    }

    /// The page of an error.
    pub fn error(&self, error: &ApiError, request_id: &str) -> Html<String> {
        let page = Page { title: "Error", path: "", form: "", session: false };
        let reason = error.status.canonical_reason().unwrap_or("error");
        let details = &error.details;
        self.render(
            "error.html",
            &page,
            context! {
                status => error.status.as_u16(), reason, message => error.message, details, request_id,
            },
        )
    }
}

/// What every page knows.
#[derive(Debug, Serialize)]
struct Page<'a> {
    title: &'a str,
    /// Of the navigation.
    path: &'a str,
    /// What its forms carry.
    form: &'a str,
    /// Whether there is a session to end.
    session: bool,
}

/// Everything for people.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/login", get(login_page).post(login))
        .route("/logout", post(logout))
        .route("/static/{file}", get(file))
        .route("/docs", get(docs))
        .merge(experiments::routes())
        .merge(look::routes())
        .merge(project::routes())
}

type Answer = Result<Response, ApiError>;

/// Renders a page for a caller.
fn page<T: Serialize>(
    app: &App,
    caller: &Caller,
    (name, title, path): (&str, &str, &str),
    data: T,
) -> Response {
    let form = app.auth.form_token(caller);
    let session = matches!(caller, Caller::Session(_));
    let page = Page { title, path, form: &form, session };
    app.pages.render(name, &page, data).into_response()
}

/// Refuses a form that did not come from a page of ours.
fn check_form(app: &App, caller: &Caller, given: &str) -> Result<(), ApiError> {
    match app.auth.is_form_token(caller, given) {
        true => Ok(()),
        false => {
            let message = "this form is not one of this server, or is too old; load the page again";
            Err(ApiError::new(StatusCode::FORBIDDEN, message))
        }
    }
}

/// A form that says nothing but that it is ours.
#[derive(Deserialize)]
struct Plain {
    #[serde(default)]
    form: String,
}

async fn file(Path(name): Path<String>) -> Answer {
    let (kind, text) = match name.as_str() {
        "style.css" => ("text/css; charset=utf-8", STYLE),
        "live.js" => ("text/javascript; charset=utf-8", SCRIPT),
        _ => return Err(ApiError::not_found("there is no such file")),
    };
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=300")];
    Ok((headers, text).into_response())
}

#[derive(Deserialize)]
struct Login {
    #[serde(default)]
    token: String,
}

async fn login_page(State(app): State<App>) -> Response {
    if !app.auth.is_asked() {
        return Redirect::to("/").into_response();
    }
    page(&app, &Caller::Anybody, ("login.html", "Log in", "/login"), context! { error => "" })
}

async fn login(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    Form(form): Form<Login>,
) -> Answer {
    if let Some(Extension(Peer(peer))) = peer
        && let Err(wait) = app.logins.take(peer.ip(), std::time::Instant::now())
    {
        let seconds = wait.as_secs_f64().ceil() as u64;
        let message = "too many tries to log in; wait a moment";
        return Err(ApiError::later(StatusCode::TOO_MANY_REQUESTS, message, seconds));
    }
    let Some(session) = app.auth.login(form.token.trim()) else {
        let error = "That is not the token of this server.";
        let what = ("login.html", "Log in", "/login");
        let mut response = page(&app, &Caller::Anybody, what, context! { error });
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response.extensions_mut().insert(Explained);
        return Ok(response);
    };
    // A proxy that speaks TLS says so; without one a secure cookie would never come back.
    let proto = headers.get("x-forwarded-proto").map(HeaderValue::as_bytes);
    let secure = if proto == Some(b"https") { "; Secure" } else { "" };
    let seconds = SESSION.as_secs();
    let cookie =
        format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response())
}

async fn logout(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Form(form): Form<Plain>,
) -> Answer {
    check_form(&app, &caller, &form.form)?;
    app.auth.logout(&caller);
    let cookie = format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response())
}

/// The OpenAPI document for people.
async fn docs(State(app): State<App>, Extension(caller): Extension<Caller>) -> Response {
    let document = super::openapi::document();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            operations.push(context! { path, method => method.to_uppercase(), operation });
        }
    }
    let what = ("docs.html", "Interface", "/docs");
    page(&app, &caller, what, context! { operations })
}
