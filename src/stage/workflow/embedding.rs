//! Embeddings as requests like any other: what is sent, and the vector that comes back. Knows nothing of what
//! they are compared for.

use crate::digest::Replica;
use crate::engine::Resource;
use crate::sample::{Completion, Message, Request, ResponseFormat, Role, Sampling};
use crate::stage::StageError;

/// Asks for the embedding of a text.
pub(super) fn request(text: String) -> Request {
    Request {
        messages: vec![Message::new(Role::User, text)],
        sampling: Sampling {
            response_format: Some(ResponseFormat::Embedding),
            ..Sampling::default()
        },
        tools: Vec::new(),
        // The same for every draw.
        replica: Replica::default(),
    }
}

/// The vector in a completion.
pub(super) fn vector(completion: &Completion) -> Result<Vec<f32>, String> {
    serde_json::from_str(&completion.text)
        .map_err(|error| format!("what is kept is no embedding: {error}"))
}

/// Refuses an engine that gives no embeddings to `who`.
pub(super) fn check(who: &str, engine: &Resource) -> Result<(), StageError> {
    if engine.backend.embeds() {
        return Ok(());
    }
    Err(StageError::User(format!(
        "{who} needs embeddings, and the engine `{}` gives none: its backend `{}` has no such interface here; name an \
         engine with `backend = \"openai\"` or \"process\" whose server has /embeddings",
        engine.stage,
        engine.backend.name()
    )))
}
