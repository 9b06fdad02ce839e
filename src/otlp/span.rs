//! Spans, and what they look like in OTLP's JSON. Knows nothing of how they are sent.
//!
//! The encoding: identifiers are hexadecimal, 64-bit numbers are text, enums are numbers (opentelemetry-proto,
//! "JSON Protobuf Encoding"). Names of spans and attributes are those of the semantic conventions for generative AI as
//! of release 1.41.0, the last one before they moved to a repository of their own; ours begin with `forge.`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ns;
use crate::digest::Key;
use crate::record::{Observed, RequestObserved, ServedFrom};
use crate::sample::{Completion, Finish, Message, Outcome, Role, Sample};
use crate::store::Store;

const INTERNAL: u8 = 1;
const CLIENT: u8 = 3;
const ERROR: u8 = 2;

/// Of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(u64);

impl Id {
    pub(super) fn new() -> Id {
        // Zero is no identifier.
        Id(fastrand::u64(1..))
    }

    fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Attributes in the order in which they were added.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes(Vec<Value>);

impl Attributes {
    pub(super) fn new() -> Self {
        Attributes::default()
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.0.push(json!({ "key": key, "value": value }));
        self
    }

    pub(super) fn text(self, key: &str, value: &str) -> Self {
        self.with(key, json!({ "stringValue": value }))
    }

    pub(super) fn maybe(self, key: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(key, value),
            None => self,
        }
    }

    fn integer(self, key: &str, value: Option<u64>) -> Self {
        match value {
            Some(value) => self.with(key, json!({ "intValue": value.to_string() })),
            None => self,
        }
    }

    fn yes(self, key: &str, value: bool) -> Self {
        if value { self.with(key, json!({ "boolValue": true })) } else { self }
    }

    /// A number, text or list of texts of a recipe.
    fn setting(self, key: &str, value: Option<&Value>) -> Self {
        match value {
            Some(Value::Number(number)) if number.is_f64() => {
                self.with(key, json!({ "doubleValue": number }))
            }
            Some(Value::Number(number)) => {
                self.with(key, json!({ "intValue": number.to_string() }))
            }
            Some(Value::Array(list)) if !list.is_empty() => {
                let texts = list.iter().filter_map(Value::as_str);
                let texts: Vec<Value> = texts.map(|text| json!({ "stringValue": text })).collect();
                self.with(key, json!({ "arrayValue": { "values": texts } }))
            }
            _ => self,
        }
    }

    /// The same of a setting that is a real number also where it is written as a whole one.
    fn real(self, key: &str, value: Option<&Value>) -> Self {
        match value.and_then(Value::as_f64) {
            Some(number) => self.with(key, json!({ "doubleValue": number })),
            None => self,
        }
    }
}

/// A span.
pub(super) struct Span {
    id: Id,
    parent: Option<Id>,
    name: String,
    kind: u8,
    start_ns: u64,
    end_ns: u64,
    pub(super) attributes: Attributes,
    events: Vec<Value>,
    pub(super) failed: bool,
}

impl Span {
    pub(super) fn new(id: Id, parent: Option<Id>, name: String) -> Span {
        Span {
            id,
            parent,
            name,
            kind: INTERNAL,
            start_ns: 0,
            end_ns: 0,
            attributes: Attributes::new(),
            events: Vec::new(),
            failed: false,
        }
    }

    pub(super) fn times(&mut self, start_ns: u64, end_ns: u64) {
        (self.start_ns, self.end_ns) = (start_ns, end_ns.max(start_ns));
    }

    pub(super) fn json(self, trace: u128) -> Value {
        let mut value = json!({
            "traceId": format!("{trace:032x}"),
            "spanId": self.id.hex(),
            "name": self.name,
            "kind": self.kind,
            "startTimeUnixNano": self.start_ns.to_string(),
            "endTimeUnixNano": self.end_ns.to_string(),
            "attributes": self.attributes.0,
        });
        if let Some(parent) = self.parent {
            value["parentSpanId"] = parent.hex().into();
        }
        if !self.events.is_empty() {
            value["events"] = self.events.into();
        }
        if self.failed {
            value["status"] = json!({ "code": ERROR });
        }
        value
    }
}

/// What is said of the engine of a workflow.
#[derive(Debug, Clone, Default)]
pub(super) struct Engine {
    provider: Option<String>,
    model: Option<String>,
    /// Whether it answers in this process.
    is_here: bool,
}

impl Engine {
    pub(super) fn of(about: &BTreeMap<String, Value>) -> Engine {
        let fact = |name: &str| about.get(name).and_then(Value::as_str).map(str::to_owned);
        let backend = fact("backend");
        Engine {
            is_here: matches!(backend.as_deref(), Some("mistralrs" | "scripted")),
            provider: fact("provider").or(backend),
            model: fact("model"),
        }
    }
}

/// What was sent and received in a request, as the conventions write it.
pub(super) struct Turns {
    key: Key,
    input: Value,
    output: Value,
}

impl Turns {
    /// Of the requests of a sample that were answered.
    pub(super) fn of(sample: &Sample) -> Vec<Turns> {
        let mut out = Vec::new();
        for step in &sample.steps {
            let turns = &step.transcript;
            let replies = (0..turns.len()).filter(|i| turns[*i].role == Role::Assistant);
            let replies: Vec<usize> = replies.collect();
            // Worked examples hold replies too, and come first. The last request may have none.
            let unanswered = turns.last().is_none_or(|turn| turn.role != Role::Assistant);
            let own =
                step.requests.len().saturating_sub(usize::from(unanswered && step.trace.is_none()));
            let own = own.min(replies.len());
            let positions = &replies[replies.len() - own..];
            for (key, at) in step.requests.iter().zip(positions) {
                let input = turns[..*at].iter().map(message).collect();
                out.push(Turns { key: *key, input, output: message(&turns[*at]) });
            }
        }
        out
    }
}

fn message(turn: &Message) -> Value {
    let mut parts = Vec::new();
    match (turn.role, &turn.tool_call_id) {
        (Role::Tool, Some(id)) => {
            parts.push(json!({ "type": "tool_call_response", "id": id, "response": turn.content }));
        }
        _ if turn.content.is_empty() && !turn.tool_calls.is_empty() => {}
        _ => parts.push(json!({ "type": "text", "content": turn.content })),
    }
    for call in &turn.tool_calls {
        let arguments = serde_json::from_str::<Value>(&call.arguments);
        let arguments = arguments.unwrap_or_else(|_| call.arguments.as_str().into());
        parts.push(json!({
            "type": "tool_call", "id": call.id, "name": call.name, "arguments": arguments
        }));
    }
    json!({ "role": turn.role, "parts": parts })
}

/// A sample that has ended.
pub(super) struct Ended {
    parent: Id,
    engine: Engine,
    ended_ns: u64,
    flow: String,
    epoch: u32,
    key: Key,
    outcome: Outcome,
    scores: Vec<(String, Option<f64>, Option<String>)>,
    observed: Observed,
    turns: Vec<Turns>,
}

impl Ended {
    pub(super) fn new(
        parent: Id,
        engine: Engine,
        ended_ns: u64,
        sample: &Sample,
        observed: &Observed,
        turns: Vec<Turns>,
    ) -> Ended {
        let scores = sample.scores.iter().map(|score| {
            let why = score.unscored.map(|why| why.name().to_owned());
            (score.scorer.clone(), score.value, why)
        });
        Ended {
            parent,
            engine,
            ended_ns,
            flow: sample.flow.clone(),
            epoch: sample.epoch,
            key: sample.key,
            outcome: sample.outcome,
            scores: scores.collect(),
            observed: observed.clone(),
            turns,
        }
    }

    /// How many spans it will be.
    pub(super) fn spans(&self) -> u64 {
        let scoring = self.observed.scoring.iter().map(|made| &made.request);
        let all = self.observed.requests.iter().chain(scoring);
        1 + all.filter(|request| request.served_from == ServedFrom::Live).count() as u64
    }

    /// Its spans. What a request was sent with, and how its reply ended, is in the store.
    pub(super) fn into_spans(self, store: &Store) -> Vec<Span> {
        let id = Id::new();
        let started = self.ended_ns.saturating_sub(ns(self.observed.wall_ms));
        let mut span = Span::new(id, Some(self.parent), "sample".to_owned());
        span.times(started, self.ended_ns);
        span.failed = matches!(self.outcome, Outcome::ProviderError | Outcome::Cancelled);
        span.attributes = Attributes::new()
            .text("forge.sample.id", &self.flow)
            .integer("forge.sample.epoch", Some(self.epoch.into()))
            .text("forge.sample.key", &self.key.to_string())
            .text("forge.sample.outcome", self.outcome.name())
            .text("forge.served_from", self.observed.served_from.name());
        for (scorer, value, why) in &self.scores {
            let attributes = Attributes::new().text("gen_ai.evaluation.name", scorer);
            let value = value.map(Value::from);
            let attributes = attributes
                .real("gen_ai.evaluation.score.value", value.as_ref())
                .maybe("error.type", why.as_deref());
            span.events.push(json!({
                "timeUnixNano": self.ended_ns.to_string(),
                "name": "gen_ai.evaluation.result",
                "attributes": attributes.0,
            }));
        }
        let mut spans = vec![span];
        let mut at = started;
        for request in &self.observed.requests {
            let took = ns(request.phases_ms.sum());
            if request.served_from == ServedFrom::Live {
                let turns = self.turns.iter().find(|turns| turns.key == request.key);
                let span = request_span(id, &self.engine, request, (at, at + took), turns, store);
                spans.push(span);
            }
            at += took;
        }
        // Who judges is not the engine that is tested, and its name is not known here.
        let nobody = Engine::default();
        for made in
            self.observed.scoring.iter().filter(|made| made.request.served_from == ServedFrom::Live)
        {
            let took = ns(made.request.phases_ms.sum());
            let times = (self.ended_ns.saturating_sub(took), self.ended_ns);
            let mut span = request_span(id, &nobody, &made.request, times, None, store);
            span.attributes = span.attributes.text("forge.scorer", &made.scorer);
            spans.push(span);
        }
        spans
    }
}

fn request_span(
    sample: Id,
    engine: &Engine,
    request: &RequestObserved,
    (start, end): (u64, u64),
    turns: Option<&Turns>,
    store: &Store,
) -> Span {
    let record = store.get(request.key);
    let setting = |name: &str| record.as_ref().and_then(|record| record.recipe.fields.get(name));
    let operation = match setting("response_format").and_then(Value::as_str) {
        Some("embedding") => "embeddings",
        _ => "chat",
    };
    let name = [Some(operation), engine.model.as_deref()].into_iter().flatten();
    let mut span = Span::new(Id::new(), Some(sample), name.collect::<Vec<_>>().join(" "));
    span.kind = if engine.is_here { INTERNAL } else { CLIENT };
    span.times(start, end);
    if let (Some(record), Some(live_ms)) = (&record, request.live_ms) {
        let asked = record.witness.started_unix_ms * 1_000_000;
        // Another run may have asked the same since, and its record counts.
        if asked.abs_diff(start) < 3_600_000_000_000 {
            span.times(asked, asked + ns(live_ms));
        }
    }
    let usage = request.usage;
    let completion = record.as_ref().and_then(|record| record.inline("completion"));
    let completion =
        completion.and_then(|value| serde_json::from_value::<Completion>(value.clone()).ok());
    let finish = completion.map(|completion| match completion.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ContentFilter => "content_filter",
        Finish::ToolCalls => "tool_calls",
    });
    let reasons = finish.map(|finish| json!([finish]));
    let output = match setting("response_format") {
        None | Some(Value::Null) => None,
        _ if operation == "embeddings" => None,
        Some(Value::Object(format)) if !format.contains_key("json_schema") => Some("text"),
        Some(_) => Some("json"),
    };
    let timing = request.timing.as_ref();
    let first = timing.and_then(|timing| timing.ttft_ms).map(|ms| Value::from(ms / 1000.0));
    let mut attributes = Attributes::new()
        .text("gen_ai.operation.name", operation)
        // It has to be there.
        .text("gen_ai.provider.name", engine.provider.as_deref().unwrap_or("unknown"))
        .maybe("gen_ai.request.model", engine.model.as_deref())
        .real("gen_ai.request.temperature", setting("temperature"))
        .real("gen_ai.request.top_p", setting("top_p"))
        .real("gen_ai.request.top_k", setting("top_k"))
        .setting("gen_ai.request.max_tokens", setting("max_tokens"))
        .setting("gen_ai.request.seed", setting("seed"))
        .real("gen_ai.request.frequency_penalty", setting("frequency_penalty"))
        .real("gen_ai.request.presence_penalty", setting("presence_penalty"))
        .setting("gen_ai.request.stop_sequences", setting("stop"))
        .maybe("gen_ai.output.type", output)
        .yes("gen_ai.request.stream", timing.is_some_and(|timing| timing.events > 0))
        .setting("gen_ai.response.finish_reasons", reasons.as_ref())
        .real("gen_ai.response.time_to_first_chunk", first.as_ref())
        .text("forge.request.key", &request.key.to_string())
        .integer("forge.request.attempts", Some(request.attempts.into()));
    if request.has_failed() {
        span.failed = true;
        let last = request.retries.last().map(|retry| retry.reason.as_str());
        attributes = attributes.text("error.type", last.unwrap_or("_OTHER"));
    } else {
        attributes = attributes
            .integer("gen_ai.usage.input_tokens", usage.input_tokens)
            .integer("gen_ai.usage.output_tokens", usage.output_tokens)
            .integer("gen_ai.usage.cache_read.input_tokens", usage.input_tokens_cache_read)
            .integer("gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens);
    }
    if let Some(turns) = turns {
        let mut output = turns.output.clone();
        // In messages it has to be there, and one of them is spelled otherwise.
        output["finish_reason"] = match finish {
            Some("tool_calls") => "tool_call".into(),
            Some(finish) => finish.into(),
            None => "unknown".into(),
        };
        attributes = attributes
            .text("gen_ai.input.messages", &turns.input.to_string())
            .text("gen_ai.output.messages", &json!([output]).to_string());
    }
    span.attributes = attributes;
    span
}
