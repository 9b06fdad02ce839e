//! What a server says of itself before the first request is paid for: whether it has the model, how long a
//! context may be, which settings it knows. Nothing here costs tokens.
//!
//! | asked | who answers | what is learnt |
//! |---|---|---|
//! | `GET <base>/models` | all | models; context length in half a dozen spellings; who it is (`owned_by`) |
//! | `GET <base>/models/<model>` | those whose list lacks it | whether it is there all the same |
//! | `GET /props` | llama.cpp | context of a slot, names of its settings |
//! | `GET /openapi.json` | vLLM, SGLang, llama-cpp-python and others made with FastAPI | fields of a request |
//! | `POST /api/show` | Ollama | context length |

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::upstream::Upstream;
use super::{OpenAi, Post};
use crate::manifest::closest;

/// Longest time of a question about the server itself.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Tries, for a server that is just coming up.
const TRIES: u32 = 4;
/// How long a server may say that it is not ready.
const LOADING: Duration = Duration::from_secs(60);
/// Longest answer that is read.
const SIZE_MAX: usize = 16 << 20;

/// What is known of a server.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    /// As it calls itself in lists of models.
    pub(super) server: Option<String>,
    /// Most tokens of prompt and reply together.
    pub(super) context: Option<u64>,
    /// Fields of a request that it knows; `None` where it does not say.
    pub(super) knows: Option<BTreeSet<String>>,
    /// Where that stands.
    pub(super) source: &'static str,
    /// What the user should know.
    pub(super) notices: Vec<String>,
}

/// Fields that OpenAI's own interface knows (API reference, "Create chat completion").
const OPENAI: &[&str] = &[
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "response_format",
    "reasoning_effort",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "prediction",
    "modalities",
    "verbosity",
    "web_search_options",
    "service_tier",
    "store",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
];

/// Fields that Ollama's interface honours (its documentation, "OpenAI compatibility").
const OLLAMA: &[&str] = &[
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "response_format",
    "reasoning_effort",
    "tools",
];

/// Why a server is of no use.
pub(super) struct Unfit {
    pub(super) words: String,
    /// Whether it stays so: it answers, and is not the one that is wanted.
    pub(super) for_good: bool,
}

impl From<String> for Unfit {
    fn from(words: String) -> Self {
        Unfit { words, for_good: false }
    }
}

/// Asks a server about itself. An error is one that no request could get around.
pub(super) async fn probe(
    settings: &OpenAi,
    post: &Post,
    upstream: &Upstream,
) -> Result<Facts, Unfit> {
    let at = &upstream.label;
    let mut facts = Facts::default();
    let models = reachable(post, upstream).await?;
    let list = match models {
        Asked::Is(body) => body,
        Asked::Status(401, text) => {
            let key = match &settings.key_env {
                Some(name) => format!("the key in `{name}` is not accepted"),
                None => "it wants a key: `api_key_env = \"<variable>\"`".to_owned(),
            };
            let words = format!("`{at}` refuses to answer: {key} ({})", brief(&text));
            return Err(Unfit { words, for_good: true });
        }
        Asked::Status(status, _) => {
            facts.notices.push(format!(
                "`{at}` does not list its models (status {status}), so nothing is known of it before \
                 the first request"
            ));
            return Ok(facts);
        }
    };
    let models = list["data"].as_array().or(list["models"].as_array()).cloned().unwrap_or_default();
    let id = |model: &Value| model["id"].as_str().or(model["name"].as_str()).map(str::to_owned);
    let wanted = settings.model.as_str();
    // A router's suffix chooses a provider: `model:provider`.
    let stem = wanted.split_once(':').map_or(wanted, |(stem, _)| stem);
    let is_it = |model: &&Value| {
        let Some(id) = id(model) else { return false };
        // Google lists its models with the folder in which they lie, and takes them without.
        let bare = id.strip_prefix("models/").unwrap_or(&id);
        // Ollama's default tag may be left out.
        [wanted, stem, &format!("{wanted}:latest")].iter().any(|name| *name == id || *name == bare)
    };
    let listed = models.iter().find(is_it);
    let owner = listed.or(models.first()).and_then(|model| model["owned_by"].as_str());
    facts.server = owner.map(str::to_owned);
    let unlisted = match listed.is_none() && !models.is_empty() && owner != Some("llamacpp") {
        true => asked_for(post, upstream, wanted).await,
        false => None,
    };
    let model = listed.or(unlisted.as_ref());
    if model.is_none() && !models.is_empty() {
        let known: Vec<String> = models.iter().filter_map(id).collect();
        let shown: Vec<_> = known.iter().take(8).map(|id| format!("`{id}`")).collect();
        let more =
            if known.len() > 8 { format!(", … {} in all", known.len()) } else { String::new() };
        if facts.server.as_deref() == Some("llamacpp") {
            facts.notices.push(format!(
                "`{at}` has {} and answers with it whatever `model` says, `{wanted}` here",
                shown.join(", ")
            ));
        } else {
            let hint = closest(wanted, known.iter().map(String::as_str))
                .map_or_else(String::new, |close| format!("; did you mean `{close}`?"));
            let words =
                format!("`{at}` has no model `{wanted}`{hint} (known: {}{more})", shown.join(", "));
            return Err(Unfit { words, for_good: true });
        }
    }
    if let Some(model) = model.or(models.first().filter(|_| models.len() == 1)) {
        facts.context = context_of(model);
    }
    ask_further(settings, post, upstream, &mut facts).await;
    Ok(facts)
}

/// A model that a server's list may lack and the server has: one that was tuned, or was made for few.
async fn asked_for(post: &Post, upstream: &Upstream, wanted: &str) -> Option<Value> {
    let mut url = upstream.url("models");
    url.path_segments_mut().ok()?.push(wanted);
    let Ok(Asked::Is(model)) = get(post, url).await else { return None };
    // Some servers say 200 to everything: with an error, or with the list again.
    let is_model = model.is_object() && model["error"].is_null() && model["data"].is_null();
    is_model.then_some(model)
}

/// What only some servers answer.
async fn ask_further(settings: &OpenAi, post: &Post, upstream: &Upstream, facts: &mut Facts) {
    let fields = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
    match facts.server.as_deref() {
        Some("llamacpp") => {
            if let Ok(Asked::Is(props)) = get(post, upstream.root("/props")).await {
                let defaults = &props["default_generation_settings"];
                facts.context = defaults["n_ctx"].as_u64().filter(|n| *n > 0).or(facts.context);
                let params = defaults["params"].as_object();
                facts.knows = params.map(|params| {
                    // Named otherwise there than in requests, or no matter of sampling.
                    let more = ["logit_bias", "logprobs", "top_logprobs", "response_format"];
                    let more =
                        more.iter().chain(&["tools", "reasoning_effort", "max_tokens", "stop"]);
                    params.keys().cloned().chain(more.map(|name| (*name).to_owned())).collect()
                });
                facts.source = "/props";
            }
        }
        Some("library") => {
            let body = serde_json::json!({ "model": settings.model });
            let shown = post.json(upstream.root("/api/show"), &body, TIMEOUT).await;
            if let Ok((200, body)) = shown
                && let Ok(shown) = serde_json::from_slice::<Value>(&body)
            {
                let info = shown["model_info"].as_object();
                let length = info.and_then(|info| {
                    info.iter().find(|(name, _)| name.ends_with(".context_length"))?.1.as_u64()
                });
                facts.context = length.or(facts.context);
            }
            (facts.knows, facts.source) = (fields(OLLAMA), "Ollama's documentation");
            facts.notices.push(
                "Ollama cuts prompts that are longer than its `num_ctx` without a word; set it in the \
                 model's file"
                    .to_owned(),
            );
        }
        _ if upstream.base.host_str() == Some("api.openai.com") => {
            (facts.knows, facts.source) = (fields(OPENAI), "OpenAI's documentation");
        }
        _ => {
            if let Ok(Asked::Is(spec)) = get(post, upstream.root("/openapi.json")).await
                && let Some(names) = fields_of(&spec, settings.api.path())
            {
                (facts.knows, facts.source) = (Some(names), "/openapi.json");
            }
        }
    }
}

enum Asked {
    Is(Value),
    Status(u16, String),
}

/// The list of models, from a server that may still be coming up.
async fn reachable(post: &Post, upstream: &Upstream) -> Result<Asked, String> {
    let mut pause = Duration::from_millis(250);
    let start = std::time::Instant::now();
    for attempt in 1.. {
        match get(post, upstream.url("models")).await {
            // Loading a model takes a while; after that the requests themselves will tell.
            Ok(Asked::Status(429 | 500.., _)) if start.elapsed() < LOADING => {}
            Ok(asked) => return Ok(asked),
            Err(error) if attempt >= TRIES => {
                return Err(format!("cannot reach `{}`: {error}", upstream.label));
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
    unreachable!("BUG: the loop above ends by itself")
}

async fn get(post: &Post, url: url::Url) -> Result<Asked, String> {
    let (status, body) = post.get(url, TIMEOUT, SIZE_MAX).await?;
    if status != 200 {
        return Ok(Asked::Status(status, String::from_utf8_lossy(&body).into_owned()));
    }
    Ok(serde_json::from_slice(&body).map_or_else(|_| Asked::Is(Value::Null), Asked::Is))
}

/// The context length in a list of models: vLLM and SGLang, OpenRouter, Groq, Mistral and LM Studio,
/// llama.cpp.
fn context_of(model: &Value) -> Option<u64> {
    let spelled = [
        &model["max_model_len"],
        &model["context_length"],
        &model["context_window"],
        &model["max_context_length"],
        &model["meta"]["n_ctx"],
        &model["meta"]["n_ctx_train"],
    ];
    spelled.iter().find_map(|value| value.as_u64())
}

/// The fields of a request in an OpenAPI document.
fn fields_of(spec: &Value, path: &str) -> Option<BTreeSet<String>> {
    let paths = spec["paths"].as_object()?;
    let is_it = |name: &str| {
        let name = name.trim_end_matches('/').strip_suffix(path);
        name.is_some_and(|before| before.ends_with('/') && !before.ends_with("/chat/"))
    };
    let (_, item) = paths.iter().find(|(name, _)| is_it(name))?;
    let schema = &item["post"]["requestBody"]["content"]["application/json"]["schema"];
    let mut names = BTreeSet::new();
    collect(spec, schema, &mut names, 0);
    (!names.is_empty()).then_some(names)
}

/// Properties of a schema, through references and alternatives.
fn collect(spec: &Value, schema: &Value, names: &mut BTreeSet<String>, depth: u8) {
    if depth > 8 {
        return;
    }
    if let Some(reference) = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
        if let Some(target) = spec.pointer(reference) {
            collect(spec, target, names, depth + 1);
        }
        return;
    }
    names.extend(schema["properties"].as_object().into_iter().flat_map(|p| p.keys().cloned()));
    for alternatives in ["allOf", "anyOf", "oneOf"] {
        for schema in schema[alternatives].as_array().into_iter().flatten() {
            collect(spec, schema, names, depth + 1);
        }
    }
}

/// The first words of an answer.
pub(super) fn brief(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // What a server says must not steer a terminal.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let mut short: String = text.chars().take(200).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_through_references() {
        let spec = serde_json::json!({
            "paths": { "/v1/chat/completions": { "post": { "requestBody": { "content": {
                "application/json": { "schema": { "$ref": "#/components/schemas/Request" } },
            } } } } },
            "components": { "schemas": {
                "Request": { "allOf": [{ "$ref": "#/components/schemas/Base" }],
                             "properties": { "model": {}, "top_k": {} } },
                "Base": { "properties": { "seed": {} } },
            } },
        });
        let names = fields_of(&spec, "chat/completions").unwrap();
        assert_eq!(
            names.iter().map(String::as_str).collect::<Vec<_>>(),
            ["model", "seed", "top_k"]
        );
        assert_eq!(fields_of(&spec, "responses"), None);
    }

    #[test]
    fn the_context_length_has_many_names() {
        let model = serde_json::json!({ "id": "m", "max_model_len": 4096 });
        assert_eq!(context_of(&model), Some(4096));
        let model = serde_json::json!({ "id": "m", "meta": { "n_ctx_train": 1024 } });
        assert_eq!(context_of(&model), Some(1024));
        assert_eq!(context_of(&serde_json::json!({ "id": "m" })), None);
    }
}
