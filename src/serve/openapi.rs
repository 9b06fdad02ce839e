//! The OpenAPI document, made of the handlers and the types that they read and write. Knows nothing of requests.

use serde_json::{Value, json};
use utoipa::OpenApi;

use super::api::Document;

/// The document.
pub fn document() -> Value {
    let mut document = Document::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let mut document = serde_json::to_value(document).expect("BUG: the document is plain data");
    document["components"]["securitySchemes"] =
        json!({ "token": { "type": "http", "scheme": "bearer" } });
    document["security"] = json!([{}, { "token": [] }]);
    document
}
