//! What every request passes, and every response: id, name of the server, rate, caller, origin, time, headers, log.
//! Knows nothing of what is asked.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use futures_util::FutureExt;
use uuid::Uuid;

use super::App;
use super::auth::{Caller, is_same_origin};
use super::error::{ApiError, Explained};

/// How long an answer may take to begin.
const TIME: Duration = Duration::from_secs(60);
/// Longest id of a request that is taken from a client.
const ID_MAX: usize = 64;
/// Longest address, and largest head and most headers. The HTTP library would read more than ten times of it.
const URI_MAX: usize = 8 * 1024;
const HEAD_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 100;
/// Longest path in the log.
const LOGGED_MAX: usize = 256;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers of every response. Scripts and styles come from files of this server alone.
const HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// A request that was answered, for the log. Without the query: somebody may have put a secret there.
#[derive(Debug, Clone)]
pub struct Access {
    /// Of the response.
    pub request_id: String,
    /// Who asked.
    pub peer: SocketAddr,
    /// How.
    pub method: String,
    /// For what.
    pub path: String,
    /// What came of it.
    pub status: u16,
    /// Until the answer began.
    pub ms: f64,
}

/// Everything passes here.
pub async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = id_of(request.headers());
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    let peer = request.extensions().get::<Peer>().map_or(nobody, |peer| peer.0);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let is_html = !is_for_programs(&path);
    let passed = pass(&app, peer, request, next);
    let answered = tokio::time::timeout(TIME, AssertUnwindSafe(passed).catch_unwind()).await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            let message = "a bug of forge; the log of the server says more";
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        }
        Err(_) => {
            let message = "the answer took too long";
            ApiError::later(StatusCode::SERVICE_UNAVAILABLE, message, 5).into_response()
        }
    };
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    if is_error && response.extensions().get::<Explained>().is_none() {
        response = explained(&app, response, &id, is_html);
    }
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        // The report of a run is no page of ours, and has a stricter policy of its own.
        headers.entry(HeaderName::from_static(name)).or_insert(HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    let cut = |text: &str| text.chars().take(LOGGED_MAX).collect();
    (app.log)(&Access {
        request_id: id,
        peer,
        method: cut(method.as_str()),
        path: cut(&path),
        status: response.status().as_u16(),
        ms: crate::record::millis(start.elapsed()),
    });
    response
}

/// Writes down what the HTTP library refused by itself, with 400, 414 or 431 and an empty body: it is no HTTP, or many
/// times larger than any request may be, and so there is no request that could have passed here.
pub fn tell_unread(app: &App, peer: SocketAddr, is_too_large: bool) {
    let status = match is_too_large {
        true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        false => StatusCode::BAD_REQUEST,
    };
    (app.log)(&Access {
        request_id: Uuid::new_v4().to_string(),
        peer,
        method: "-".to_owned(),
        path: "-".to_owned(),
        status: status.as_u16(),
        ms: 0.0,
    });
}

/// Why the head of a request is not read any further.
fn too_large(request: &Request) -> Option<ApiError> {
    let address = request.uri().to_string().len();
    if address > URI_MAX {
        let message = format!("the address has {address} characters; {URI_MAX} are taken");
        return Some(ApiError::new(StatusCode::URI_TOO_LONG, message));
    }
    let headers = request.headers();
    // With the colon, the space and the end of the line.
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    let bytes: usize = headers.iter().map(size).sum();
    let message = match (headers.len(), bytes) {
        (count, _) if count > HEADERS_MAX => {
            format!("there are {count} headers; {HEADERS_MAX} are taken")
        }
        (_, bytes) if bytes > HEAD_MAX => {
            format!("the headers have {bytes} bytes; {HEAD_MAX} are taken")
        }
        _ => return None,
    };
    Some(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message))
}

/// Whether a path is asked for by programs: errors are JSON, and nobody is led to the login page.
fn is_for_programs(path: &str) -> bool {
    path.starts_with("/api/") || matches!(path, "/health" | "/ready")
}

/// The client's own id where it is harmless, else a new one.
fn id_of(headers: &HeaderMap) -> String {
    let own = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let plain = |id: &&str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !id.is_empty() && id.len() <= ID_MAX && id.chars().all(fits)
    };
    own.filter(plain).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

async fn pass(app: &App, peer: SocketAddr, mut request: Request, next: Next) -> Response {
    if let Some(error) = too_large(&request) {
        return error.into_response();
    }
    if !app.auth.is_host(request.headers(), request.uri()) {
        let message = "this server does not go by that name; `forge serve --host NAME` adds one";
        return ApiError::new(StatusCode::MISDIRECTED_REQUEST, message).into_response();
    }
    if let Err(wait) = app.rates.take(peer.ip(), Instant::now()) {
        let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
        let message = "too many requests; wait a moment";
        return ApiError::later(StatusCode::TOO_MANY_REQUESTS, message, seconds).into_response();
    }
    let Ok(_place) = app.in_flight.clone().try_acquire_owned() else {
        let message = "too many requests are under way; wait a moment";
        return ApiError::later(StatusCode::TOO_MANY_REQUESTS, message, 1).into_response();
    };
    let path = request.uri().path().to_owned();
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let is_open =
        matches!(path.as_str(), "/health" | "/ready" | "/login") || path.starts_with("/static/");
    let caller = app.auth.caller(request.headers());
    let Some(caller) = caller.or(is_open.then_some(Caller::Anybody)) else {
        if is_for_programs(&path) || changes {
            let message = "a token is needed: `Authorization: Bearer <token>`";
            let mut response = ApiError::new(StatusCode::UNAUTHORIZED, message).into_response();
            let scheme = HeaderValue::from_static("Bearer realm=\"forge\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            return response;
        }
        return Redirect::to("/login").into_response();
    };
    if changes && caller != Caller::Bearer && !is_same_origin(request.headers()) {
        let message = "this request was made by a page of another site";
        return ApiError::new(StatusCode::FORBIDDEN, message).into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// The response of an error: JSON for programs, a page for people.
fn explained(app: &App, response: Response, id: &str, is_html: bool) -> Response {
    let status = response.status();
    let error = response.extensions().get::<ApiError>().cloned().unwrap_or_else(|| {
        let message = match status {
            StatusCode::NOT_FOUND => "there is nothing at this address".to_owned(),
            StatusCode::METHOD_NOT_ALLOWED => "this address does not know that method".to_owned(),
            StatusCode::PAYLOAD_TOO_LARGE => {
                format!("the body is larger than {} kB", super::BODY_MAX / 1024)
            }
            _ => status.canonical_reason().unwrap_or("error").to_lowercase(),
        };
        ApiError::new(status, message)
    });
    let mut explained = if is_html {
        (status, app.pages.error(&error, id)).into_response()
    } else {
        (status, axum::Json(error.to_json(id))).into_response()
    };
    for name in [header::ALLOW, header::WWW_AUTHENTICATE] {
        if let Some(value) = response.headers().get(&name) {
            explained.headers_mut().insert(name, value.clone());
        }
    }
    if let Some(seconds) = error.retry_after {
        explained.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    explained
}
