//! A request as JSON of the OpenAI interface, and its replies back. Own types: servers that call themselves
//! compatible leave fields out, add some, and write null where the specification knows none.
//! Knows nothing of connections.

use std::borrow::Cow;

use serde::de::{IgnoredAny, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Api, OpenAi, STREAM_OPTIONS};
use crate::digest::{Digest, Replica};
use crate::sample::{
    Finish, Message, Request, ResponseFormat, Role, TokenLogprob, TokenSource, ToolCall, ToolSpec,
    Usage,
};

/// A request in the form of the interface.
pub(super) struct Body<'a> {
    pub(super) settings: &'a OpenAi,
    pub(super) request: &'a Request,
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Body { settings, request } = self;
        let sampling = &request.sampling;
        let sends = |name: &str| !settings.omit.iter().any(|omitted| omitted == name);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("model", &settings.model)?;
        match settings.api {
            Api::Chat => map.serialize_entry("messages", &Messages(&request.messages))?,
            Api::Completions => map.serialize_entry("prompt", &prompt(&request.messages))?,
        }
        if sends("temperature") {
            map.serialize_entry("temperature", &sampling.temperature)?;
        }
        if sends("max_tokens") {
            map.serialize_entry(&settings.max_tokens_field, &sampling.max_tokens)?;
        }
        optional(&mut map, "top_p", &sampling.top_p)?;
        optional(&mut map, "top_k", &sampling.top_k)?;
        optional(&mut map, "min_p", &sampling.min_p)?;
        optional(&mut map, "seed", &replica_seed(request))?;
        optional(&mut map, "frequency_penalty", &sampling.frequency_penalty)?;
        optional(&mut map, "presence_penalty", &sampling.presence_penalty)?;
        optional(&mut map, "reasoning_effort", &sampling.reasoning_effort)?;
        if !sampling.stop.is_empty() && sends("stop") {
            map.serialize_entry("stop", &sampling.stop)?;
        }
        if !sampling.logit_bias.is_empty() {
            map.serialize_entry("logit_bias", &sampling.logit_bias)?;
        }
        match (sampling.logprobs, settings.api) {
            (Some(top), Api::Chat) => {
                map.serialize_entry("logprobs", &true)?;
                map.serialize_entry("top_logprobs", &top)?;
            }
            (Some(top), Api::Completions) => map.serialize_entry("logprobs", &top)?,
            (None, _) => {}
        }
        match &sampling.response_format {
            // These are asked for with bodies of their own.
            None | Some(ResponseFormat::Embedding | ResponseFormat::Likelihood(_)) => {}
            Some(ResponseFormat::JsonObject) => {
                map.serialize_entry("response_format", &Kind { kind: "json_object" })?;
            }
            Some(ResponseFormat::JsonSchema(schema)) => {
                map.serialize_entry("response_format", &json_schema(schema))?;
            }
            // Compatible servers differ in the name; this is the one of llama.cpp. vLLM and SGLang take
            // theirs in `extra_body`.
            Some(ResponseFormat::Grammar(grammar)) => map.serialize_entry("grammar", grammar)?,
            Some(ResponseFormat::Regex(regex)) => map.serialize_entry("regex", regex)?,
        }
        let is_prefilled = request.messages.last().is_some_and(|m| m.role == Role::Assistant);
        if is_prefilled && settings.prefill.as_deref() == Some("continue_final_message") {
            map.serialize_entry("continue_final_message", &true)?;
            map.serialize_entry("add_generation_prompt", &false)?;
        }
        if !request.tools.is_empty() {
            map.serialize_entry("tools", &Tools(&request.tools))?;
        }
        if settings.stream {
            map.serialize_entry("stream", &true)?;
            if sends(STREAM_OPTIONS) {
                map.serialize_entry(STREAM_OPTIONS, &StreamOptions { include_usage: true })?;
            }
        }
        for (name, value) in &settings.extra_body {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Servers give the same reply to the same seed, so each draw has its own; the first has the manifest's.
fn replica_seed(request: &Request) -> Option<i64> {
    let seed = request.sampling.seed?;
    if request.replica == Replica::default() {
        return Some(seed);
    }
    let digest = Digest::of_json(&(seed, request.replica));
    let bytes: [u8; 4] = digest.bytes()[..4].try_into().expect("BUG: a digest has 32 bytes");
    // 31 bits: more is not taken everywhere.
    Some(i64::from(u32::from_le_bytes(bytes) >> 1))
}

fn optional<M: SerializeMap>(
    map: &mut M,
    name: &'static str,
    value: &Option<impl Serialize>,
) -> Result<(), M::Error> {
    match value {
        Some(value) => map.serialize_entry(name, value),
        None => Ok(()),
    }
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: &'static str,
}

fn json_schema(schema: &Value) -> Value {
    serde_json::json!({
        "type": "json_schema",
        "json_schema": { "name": "reply", "strict": true, "schema": schema },
    })
}

/// The texts one after another: a model without a chat format has no roles.
pub(super) fn prompt(messages: &[Message]) -> String {
    let texts: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
    texts.join("\n\n")
}

pub(super) struct Messages<'a>(pub(super) &'a [Message]);

impl Serialize for Messages<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for message in self.0 {
            list.serialize_element(&Turn(message))?;
        }
        list.end()
    }
}

struct Turn<'a>(&'a Message);

impl Serialize for Turn<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Message { role, content, tool_calls, tool_call_id, reasoning } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", role)?;
        map.serialize_entry("content", content)?;
        if *role == Role::Assistant && !tool_calls.is_empty() {
            map.serialize_entry("tool_calls", &Calls(tool_calls))?;
        }
        optional(&mut map, "reasoning_content", reasoning)?;
        optional(&mut map, "tool_call_id", tool_call_id)?;
        map.end()
    }
}

struct Calls<'a>(&'a [ToolCall]);

impl Serialize for Calls<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Call<'a> {
            id: &'a str,
            #[serde(rename = "type")]
            kind: &'static str,
            function: Function<'a>,
        }
        #[derive(Serialize)]
        struct Function<'a> {
            name: &'a str,
            arguments: &'a str,
        }
        serializer.collect_seq(self.0.iter().map(|call| Call {
            id: &call.id,
            kind: "function",
            function: Function { name: &call.name, arguments: &call.arguments },
        }))
    }
}

struct Tools<'a>(&'a [ToolSpec]);

impl Serialize for Tools<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Tool<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            function: &'a ToolSpec,
        }
        serializer.collect_seq(self.0.iter().map(|function| Tool { kind: "function", function }))
    }
}

/// A reply, or a part of one: streams use `delta` where whole replies have `message`.
#[derive(Deserialize)]
pub(super) struct Wire<'a> {
    #[serde(borrow, default)]
    pub(super) choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    pub(super) usage: Option<UsageWire>,
    #[serde(default)]
    pub(super) error: Option<Value>,
    /// Of an error without a table of its own.
    #[serde(default)]
    pub(super) message: Option<Value>,
    #[serde(default)]
    pub(super) code: Option<Value>,
}

#[derive(Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(borrow, default)]
    pub(super) message: Option<Part<'a>>,
    #[serde(borrow, default)]
    pub(super) delta: Option<Part<'a>>,
    /// Of completions without a chat.
    #[serde(borrow, default)]
    pub(super) text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(super) logprobs: Option<LogprobsWire>,
}

#[derive(Deserialize, Default)]
pub(super) struct Part<'a> {
    #[serde(borrow, default)]
    pub(super) content: Option<Content<'a>>,
    /// DeepSeek, vLLM, SGLang, llama.cpp.
    #[serde(borrow, default)]
    pub(super) reasoning_content: Option<Cow<'a, str>>,
    /// OpenRouter, Ollama, newer vLLM.
    #[serde(borrow, default)]
    pub(super) reasoning: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) refusal: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) tool_calls: Option<Vec<CallWire<'a>>>,
}

impl Part<'_> {
    pub(super) fn thought(&self) -> Option<&str> {
        let thought = self.reasoning_content.as_deref().or(self.reasoning.as_deref());
        let thought = thought.or(self.content.as_ref().map(|content| content.thought.as_str()));
        thought.filter(|thought| !thought.is_empty())
    }

    pub(super) fn said(&self) -> &str {
        self.content.as_ref().map_or("", |content| content.said.as_ref())
    }
}

#[derive(Deserialize)]
pub(super) struct CallWire<'a> {
    #[serde(default)]
    pub(super) index: Option<i64>,
    #[serde(borrow, default)]
    pub(super) id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) function: Option<FunctionWire<'a>>,
}

#[derive(Deserialize)]
pub(super) struct FunctionWire<'a> {
    #[serde(borrow, default)]
    pub(super) name: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "arguments")]
    pub(super) arguments: Option<Cow<'a, str>>,
}

/// The arguments of a call: JSON as a text, and with some servers as JSON.
fn arguments<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Cow<'de, str>>, D::Error> {
    let raw = Option::<&RawValue>::deserialize(deserializer)?;
    raw.map(RawValue::get)
        .map(|json| match json.starts_with('"') {
            true => serde_json::from_str(json).map(Cow::Owned).map_err(serde::de::Error::custom),
            false => Ok(Cow::Borrowed(json)),
        })
        .transpose()
}

/// Text, or a list of parts of which some are text, and some what the model thought before.
pub(super) struct Content<'a> {
    said: Cow<'a, str>,
    thought: String,
}

impl<'a> Content<'a> {
    fn text(said: Cow<'a, str>) -> Self {
        Content { said, thought: String::new() }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Content<'de>;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a text or a list of parts")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Content<'de>, E> {
                Ok(Content::text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Content<'de>, E> {
                Ok(Content::text(Cow::Owned(text.to_owned())))
            }
            fn visit_string<E>(self, text: String) -> Result<Content<'de>, E> {
                Ok(Content::text(Cow::Owned(text)))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut parts: A,
            ) -> Result<Content<'de>, A::Error> {
                let (mut said, mut thought) = (String::new(), String::new());
                while let Some(part) = parts.next_element::<Value>()? {
                    said.push_str(part["text"].as_str().unwrap_or(""));
                    // Mistral's reasoning models: a text, or parts again.
                    match &part["thinking"] {
                        Value::String(text) => thought.push_str(text),
                        Value::Array(parts) => {
                            let texts = parts.iter().filter_map(|part| part["text"].as_str());
                            thought.extend(texts);
                        }
                        _ => {}
                    }
                }
                Ok(Content { said: Cow::Owned(said), thought })
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

#[derive(Deserialize, Default, Clone, Copy)]
pub(super) struct UsageWire {
    #[serde(default)]
    prompt_tokens: Count,
    #[serde(default)]
    completion_tokens: Count,
    #[serde(default)]
    total_tokens: Count,
    #[serde(default)]
    prompt_tokens_details: Details,
    /// Moonshot's place for what others have in the details.
    #[serde(default)]
    cached_tokens: Count,
    /// DeepSeek's.
    #[serde(default)]
    prompt_cache_hit_tokens: Count,
    #[serde(default)]
    completion_tokens_details: Details,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(from = "Option<DetailsWire>")]
struct Details {
    cached_tokens: Count,
    reasoning_tokens: Count,
}

#[derive(Deserialize, Default)]
struct DetailsWire {
    #[serde(default)]
    cached_tokens: Count,
    #[serde(default)]
    reasoning_tokens: Count,
}

impl From<Option<DetailsWire>> for Details {
    fn from(wire: Option<DetailsWire>) -> Self {
        let wire = wire.unwrap_or_default();
        Details { cached_tokens: wire.cached_tokens, reasoning_tokens: wire.reasoning_tokens }
    }
}

/// A count that the server may have got wrong: what is no count is unknown.
#[derive(Default, Clone, Copy)]
struct Count(Option<u64>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counts;
        impl<'de> Visitor<'de> for Counts {
            type Value = Count;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("anything")
            }
            fn visit_u64<E>(self, n: u64) -> Result<Count, E> {
                Ok(Count(Some(n)))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Count, E> {
                Ok(Count(u64::try_from(n).ok()))
            }
            fn visit_f64<E>(self, n: f64) -> Result<Count, E> {
                Ok(Count((n >= 0.0 && n.fract() == 0.0).then_some(n as u64)))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_str<E>(self, _: &str) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_unit<E>(self) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<Count, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Count(None))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Count, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Count(None))
            }
        }
        deserializer.deserialize_any(Counts)
    }
}

impl UsageWire {
    pub(super) fn usage(self) -> Usage {
        let reasoning = self.completion_tokens_details.reasoning_tokens.0;
        let (prompt, completion) = (self.prompt_tokens.0, self.completion_tokens.0);
        // xAI counts reasoning beside what was said, and bills both: the sum of all tells.
        let beside = prompt.zip(completion).zip(self.total_tokens.0).zip(reasoning).filter(
            |(((prompt, completion), total), reasoning)| {
                prompt.checked_add(*completion).and_then(|sum| sum.checked_add(*reasoning))
                    == Some(*total)
            },
        );
        let beside = beside.map_or(0, |(_, reasoning)| reasoning);
        let cached = self.prompt_tokens_details.cached_tokens.0;
        let cached = cached.or(self.cached_tokens.0).or(self.prompt_cache_hit_tokens.0);
        Usage {
            input_tokens: prompt,
            output_tokens: completion.map(|said| said.saturating_add(beside)),
            input_tokens_cache_read: cached,
            reasoning_tokens: reasoning,
            token_source: Some(TokenSource::Usage),
        }
    }
}

/// Log-probabilities: of chats a list with each token, of completions lists side by side.
#[derive(Deserialize, Default)]
pub(super) struct LogprobsWire {
    #[serde(default)]
    content: Option<Vec<TokenWire>>,
    #[serde(default)]
    tokens: Option<Vec<String>>,
    #[serde(default)]
    token_logprobs: Option<Vec<Option<f64>>>,
    #[serde(default)]
    top_logprobs: Option<Vec<Option<serde_json::Map<String, Value>>>>,
}

#[derive(Deserialize)]
struct TokenWire {
    token: String,
    logprob: f64,
    #[serde(default)]
    top_logprobs: Option<Vec<TokenWire>>,
}

impl LogprobsWire {
    /// Adds them to `out`.
    pub(super) fn add_to(self, out: &mut Vec<TokenLogprob>) {
        for TokenWire { token, logprob, top_logprobs } in self.content.unwrap_or_default() {
            let top = top_logprobs.unwrap_or_default().into_iter();
            let top = top.map(|other| (other.token, other.logprob)).collect();
            out.push(TokenLogprob { token, logprob, top });
        }
        let mut tops = self.top_logprobs.unwrap_or_default().into_iter();
        let tokens = self.tokens.unwrap_or_default().into_iter();
        for (token, logprob) in tokens.zip(self.token_logprobs.unwrap_or_default()) {
            let top = tops.next().flatten().unwrap_or_default().into_iter();
            let mut top: Vec<_> = top.filter_map(|(t, p)| Some((t, p.as_f64()?))).collect();
            top.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            if let Some(logprob) = logprob {
                out.push(TokenLogprob { token, logprob, top });
            }
        }
    }
}

/// Why a reply ended; `None` for a word that nobody has agreed on.
pub(super) fn finish(reason: &str) -> Option<Finish> {
    Some(match reason {
        "stop" | "eos" | "eos_token" | "stop_sequence" | "end_turn" => Finish::Stop,
        "length" | "max_tokens" | "model_length" => Finish::Length,
        "content_filter" | "safety" => Finish::ContentFilter,
        "tool_calls" | "function_call" => Finish::ToolCalls,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_count_is_unknown() {
        let usage = |json: &str| serde_json::from_str::<UsageWire>(json).unwrap().usage();
        let wrong = usage(
            r#"{"prompt_tokens": "7", "completion_tokens": -3, "prompt_tokens_details": null,
                "completion_tokens_details": {"reasoning_tokens": [1]}}"#,
        );
        assert_eq!((wrong.input_tokens, wrong.output_tokens), (None, None));
        assert_eq!(wrong.reasoning_tokens, None);
        let right = usage(
            r#"{"prompt_tokens": 7, "completion_tokens": 3.0, "total_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 4}}"#,
        );
        assert_eq!((right.input_tokens, right.output_tokens), (Some(7), Some(3)));
        assert_eq!(right.input_tokens_cache_read, Some(4));
    }

    #[test]
    fn what_came_from_a_cache_stands_in_three_places() {
        let cached = |json: &str| {
            serde_json::from_str::<UsageWire>(json).unwrap().usage().input_tokens_cache_read
        };
        assert_eq!(cached(r#"{"prompt_tokens": 7, "cached_tokens": 4}"#), Some(4));
        assert_eq!(
            cached(r#"{"prompt_cache_hit_tokens": 5, "prompt_tokens_details": {}}"#),
            Some(5)
        );
        let all = r#"{"prompt_tokens_details": {"cached_tokens": 3}, "cached_tokens": 4, "prompt_cache_hit_tokens": 5}"#;
        assert_eq!(cached(all), Some(3));
        assert_eq!(cached(r#"{"prompt_tokens": 7}"#), None);
    }

    #[test]
    fn reasoning_beside_what_was_said_is_output_too() {
        let output = |total: u64| {
            let json = format!(
                r#"{{"prompt_tokens": 7, "completion_tokens": 30, "total_tokens": {total},
                     "completion_tokens_details": {{"reasoning_tokens": 500}}}}"#
            );
            let usage = serde_json::from_str::<UsageWire>(&json).unwrap().usage();
            (usage.output_tokens, usage.reasoning_tokens)
        };
        assert_eq!(output(537), (Some(530), Some(500)));
        // As most count: within it, or in no sum that anybody knows.
        assert_eq!(output(37), (Some(30), Some(500)));
        assert_eq!(output(600), (Some(30), Some(500)));
    }

    #[test]
    fn content_is_a_text_or_its_parts() {
        let part = |json: &str| serde_json::from_str::<Part<'_>>(json).unwrap().said().to_owned();
        assert_eq!(part(r#"{"content": "a\n\u00e4"}"#), "a\nä");
        assert_eq!(part(r#"{"content": null}"#), "");
        assert_eq!(part(r#"{"content": [{"type": "text", "text": "a"}, {"type": "image"}]}"#), "a");
        let thinks = r#"{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
                         {"type": "text", "text": "a"}]}"#;
        let part: Part<'_> = serde_json::from_str(thinks).unwrap();
        assert_eq!((part.said(), part.thought()), ("a", Some("Hm")));
    }
}
