//! One attempt at an embedding: `/embeddings` of the interface. The vector is kept as a completion whose text is
//! a JSON list, so that it is remembered, retried and costed as any other. Knows nothing of further attempts.

use serde::Deserialize;
use serde_json::Value;

use super::trouble::{blame, broken_off, malformed, refused, unreachable};
use super::wire::UsageWire;
use super::{OpenAi, Ready};
use crate::engine::{EngineError, Reply, Stamps};
use crate::sample::{Completion, Finish, Request, Usage};

/// Longest reply that is read.
const REPLY_MAX: usize = 16 << 20;

#[derive(Deserialize)]
struct Wire {
    data: Vec<Item>,
    #[serde(default)]
    usage: Option<UsageWire>,
}

#[derive(Deserialize)]
struct Item {
    embedding: Vec<f32>,
}

/// Asks for the embedding of the one message.
pub(super) async fn complete(ready: &Ready, request: &Request) -> Result<Reply, EngineError> {
    let input = request.messages.first().map_or("", |message| message.content.as_str());
    let body = body(&ready.settings, input).to_string().into_bytes();
    let visit = ready.upstreams.choose();
    let upstream = visit.upstream;
    let mut stamps = Stamps::start();
    let answered = async {
        let (answer, connect) = ready.post.send(&upstream.embeddings, body).await;
        stamps.connect = connect;
        let mut answer = answer.map_err(|broken| unreachable(ready, &broken))?;
        if !answer.head.status.is_success() {
            return Err(refused(ready, upstream, answer).await);
        }
        let mut body = Vec::new();
        while let Some(chunk) =
            answer.chunk().await.map_err(|error| broken_off(&ready.post.words(&error)))?
        {
            body.extend_from_slice(&chunk);
            if body.len() > REPLY_MAX {
                return Err(malformed(ready, "more than 16 MiB", b""));
            }
        }
        let wire: Wire = serde_json::from_slice(&body)
            .map_err(|error| malformed(ready, &error.to_string(), &body))?;
        let Some(item) = wire.data.into_iter().next().filter(|item| !item.embedding.is_empty())
        else {
            let usage = wire.usage.map(read).unwrap_or_default();
            return Err(malformed(ready, "no embedding in it", &body).billed(usage));
        };
        stamps.finish();
        answer.keep_connection().await;
        Ok((item.embedding, wire.usage))
    };
    let (vector, usage) = match answered.await {
        Ok(answered) => answered,
        Err(error) => return Err(blame(ready, visit, error)),
    };
    visit.succeeded();
    let usage = usage.map(read).unwrap_or_default();
    let text = serde_json::to_string(&vector).expect("BUG: numbers are plain data");
    Ok(Reply {
        completion: Completion::new(text, Finish::Stop, usage),
        stamps,
        notices: Vec::new(),
    })
}

/// Nothing is written, whether the server says so or not.
fn read(usage: UsageWire) -> Usage {
    let usage = usage.usage();
    Usage { output_tokens: usage.input_tokens.map(|_| 0), ..usage }
}

fn body(settings: &OpenAi, input: &str) -> Value {
    let mut body = settings.extra_body.clone();
    let own = [("model", settings.model.as_str()), ("input", input), ("encoding_format", "float")];
    body.extend(own.map(|(name, value)| (name.to_owned(), value.into())));
    Value::Object(body)
}
