//! What goes wrong while a request is answered, in the form of the contract. Knows nothing of who asked; the request's
//! id is put in where the response leaves.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::experiment::Issue;
use super::results::NoResults;
use super::runs::NotStarted;
use crate::history::HistoryError;

/// Marks a response that says itself what is wrong, such as a form with its errors.
#[derive(Debug, Clone)]
pub struct Explained;

/// An error for a client.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// Its status.
    pub status: StatusCode,
    /// What is wrong, and what to do.
    pub message: String,
    /// Of 422: field by field.
    pub details: Vec<Issue>,
    /// Of 429 and 503: seconds to wait.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// An error without details.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), details: Vec::new(), retry_after: None }
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// What was sent is wrong.
    pub fn invalid(details: Vec<Issue>) -> ApiError {
        let message = match details.as_slice() {
            [one] => format!("`{}` {}", one.field, one.issue),
            many => format!("{} fields are wrong", many.len()),
        };
        ApiError { details, ..ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message) }
    }

    /// To be tried again later.
    pub fn later(status: StatusCode, message: impl Into<String>, seconds: u64) -> ApiError {
        ApiError { retry_after: Some(seconds), ..ApiError::new(status, message) }
    }

    /// The body.
    pub fn to_json(&self, request_id: &str) -> Value {
        let mut body = json!({
            "error": true,
            "message": self.message,
            "status_code": self.status.as_u16(),
            "request_id": request_id,
        });
        if self.status == StatusCode::UNPROCESSABLE_ENTITY {
            body["details"] = json!(self.details);
        }
        body
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<rusqlite::Error> for ApiError {
    fn from(error: rusqlite::Error) -> Self {
        let message = format!("the database does not answer: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<NoResults> for ApiError {
    fn from(error: NoResults) -> Self {
        match error {
            NoResults::None(message) => ApiError::not_found(message),
            NoResults::History(error @ HistoryError::Gone { .. }) => {
                ApiError::not_found(error.to_string())
            }
            NoResults::History(error) => {
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
        }
    }
}

impl From<NotStarted> for ApiError {
    fn from(error: NotStarted) -> Self {
        let message = error.to_string();
        match error {
            NotStarted::Active => ApiError::new(StatusCode::BAD_REQUEST, message),
            NotStarted::Full(_) => ApiError::later(StatusCode::TOO_MANY_REQUESTS, message, 10),
            NotStarted::Ending => ApiError::later(StatusCode::SERVICE_UNAVAILABLE, message, 10),
            NotStarted::Database(_) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}
