//! Spans of a run for OpenTelemetry: run, in it stages, in them samples, in them requests to a model, in the words of
//! the conventions for generative AI (`gen_ai.*`). Knows nothing of how runs go.
//!
//! They are sent while the run goes on, to `/v1/traces` of the endpoint that the environment names, as OTLP over HTTP
//! in its JSON encoding. Nothing waits for them: what does not fit into the queue, or does not reach the endpoint, is
//! counted and told at the end, and the run ends as it would without.
//!
//! Only requests that a model was asked in this run are spans of a client with tokens, so that nobody adds up what was
//! remembered. No prompt and no reply is sent unless `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true`.
//!
//! Of `opentelemetry_sdk` and `opentelemetry-otlp` nothing is used: their batch processor does not tell what it has
//! dropped, and the encoding is a page of code beside the HTTP client that is here anyway. Protobuf, or gRPC, would
//! change our mind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::record::{Event, Observed};
use crate::sample::Sample;
use crate::stage::Watch;

mod send;
mod span;

pub use send::{Queue, Sent};
use span::{Attributes, Ended, Engine, Id, Span, Turns};

/// Samples and stages that wait to be sent, at most.
const QUEUE_MAX: usize = 4096;
/// How long an attempt to send may take where the environment says nothing.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans go, as the environment says.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    url: Url,
    headers: Vec<(String, String)>,
    timeout: Duration,
    /// Of the resource: who sends.
    resource: Vec<(String, String)>,
    /// Whether prompts and replies are sent.
    content: bool,
}

impl Settings {
    /// The settings of an environment; `None` where it asks for no spans. An error says what cannot be used.
    pub fn read(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Settings>, String> {
        let text = |name: &str| {
            let value = env(name).map(|value| value.trim().to_owned());
            value.filter(|value| !value.is_empty())
        };
        let of_traces = |name: &str| {
            let traces = format!("OTEL_EXPORTER_OTLP_TRACES_{name}");
            text(&traces).or_else(|| text(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let is_on = |name: &str| text(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if is_on("OTEL_SDK_DISABLED") || text("OTEL_TRACES_EXPORTER").is_some_and(|to| to == "none")
        {
            return Ok(None);
        }
        let (name, address) = match text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Some(url) => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url),
            None => match text("OTEL_EXPORTER_OTLP_ENDPOINT") {
                Some(url) => (
                    "OTEL_EXPORTER_OTLP_ENDPOINT",
                    format!("{}/v1/traces", url.trim_end_matches('/')),
                ),
                None => return Ok(None),
            },
        };
        // The address may hold a password, and is not repeated.
        let url = Url::parse(&address).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.ok_or_else(|| format!("`{name}` is no http or https address"))?;
        if of_traces("PROTOCOL").is_some_and(|protocol| protocol == "grpc") {
            return Err(
                "`OTEL_EXPORTER_OTLP_PROTOCOL` is `grpc`, and spans are sent over HTTP only; use \
                        `http/json` and the port for HTTP, which is mostly 4318"
                    .to_owned(),
            );
        }
        let mut headers = pairs("OTEL_EXPORTER_OTLP_HEADERS", text("OTEL_EXPORTER_OTLP_HEADERS"))?;
        let name = "OTEL_EXPORTER_OTLP_TRACES_HEADERS";
        for (header, value) in pairs(name, text(name))? {
            headers.retain(|(other, _)| !other.eq_ignore_ascii_case(&header));
            headers.push((header, value));
        }
        let timeout =
            of_traces("TIMEOUT").and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        let mut resource = pairs("OTEL_RESOURCE_ATTRIBUTES", text("OTEL_RESOURCE_ATTRIBUTES"))?;
        let mut named = |name: &str, value: Option<String>, default: &str| {
            let there = resource.iter().position(|(other, _)| other == name);
            match (value, there) {
                (Some(value), Some(i)) => resource[i].1 = value,
                (None, Some(_)) => {}
                (value, None) => {
                    resource.push((name.to_owned(), value.unwrap_or_else(|| default.to_owned())));
                }
            }
        };
        named("service.name", text("OTEL_SERVICE_NAME"), "forge");
        named("service.version", None, env!("CARGO_PKG_VERSION"));
        let content = is_on("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT");
        let timeout = timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(TIMEOUT);
        Ok(Some(Settings { url, headers, timeout, resource, content }))
    }
}

/// `a=1,b=2%2C3` as the specification has it. The text may hold a secret, and is not repeated.
fn pairs(name: &str, text: Option<String>) -> Result<Vec<(String, String)>, String> {
    let text = text.unwrap_or_default();
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (key, value) = part.split_once('=')?;
        // A plus is a plus here: the query of an address would make a space of it.
        let value = value.trim().replace('+', "%2B");
        let decoded =
            url::form_urlencoded::parse(format!("v={}", value.replace('&', "%26")).as_bytes())
                .next()
                .map(|(_, value)| value.into_owned());
        Some((key.trim().to_owned(), decoded?)).filter(|(key, _)| !key.is_empty())
    };
    let found: Option<Vec<_>> = parts.map(pair).collect();
    found.ok_or_else(|| format!("`{name}` is no list of `name=value`, set apart by commas"))
}

/// What waits to be sent.
enum Item {
    /// A whole span.
    Span(Box<Span>),
    /// A sample, whose requests are still to be looked up.
    Sample(Box<Ended>),
}

/// Spans that were made, and what became of them.
#[derive(Default)]
struct Counts {
    made: AtomicU64,
    sent: AtomicU64,
    /// Why some were not.
    why: Mutex<Option<String>>,
}

impl Counts {
    fn blame(&self, why: &str) {
        let mut first = self.why.lock().expect("BUG: the lock of counts is poisoned");
        first.get_or_insert_with(|| why.to_owned());
    }
}

/// Where a run tells what happens. Never waits.
pub struct Spans {
    trace: u128,
    run: Id,
    content: bool,
    queue: mpsc::Sender<Item>,
    counts: Arc<Counts>,
    over: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    started_ns: u64,
    about: Attributes,
    pipeline: String,
    kinds: BTreeMap<String, String>,
    stages: BTreeMap<String, Id>,
    engines: BTreeMap<String, Engine>,
}

impl State {
    fn stage(&mut self, name: &str) -> Id {
        *self.stages.entry(name.to_owned()).or_insert_with(Id::new)
    }
}

/// A queue, and who sends what is in it.
pub fn queue(settings: Settings) -> (Arc<Spans>, Queue) {
    let (queue, waiting) = mpsc::channel(QUEUE_MAX);
    let (counts, over) = (Arc::<Counts>::default(), CancellationToken::new());
    let spans = Spans {
        trace: fastrand::u128(1..),
        run: Id::new(),
        content: settings.content,
        queue,
        counts: counts.clone(),
        over: over.clone(),
        state: Mutex::default(),
    };
    let trace = spans.trace;
    (Arc::new(spans), Queue { settings, trace, waiting, counts, over })
}

impl Spans {
    /// Hears what happens in the run.
    pub fn on(&self, event: &Event) {
        let now = now_ns();
        let mut state = self.state.lock().expect("BUG: the lock of spans is poisoned");
        let span = match event {
            Event::RunStarted {
                run_id,
                pipeline,
                manifest,
                stages,
                about,
                started_unix_ms,
                ..
            } => {
                state.started_ns = started_unix_ms * 1_000_000;
                state.pipeline.clone_from(pipeline);
                state.kinds = stages.iter().cloned().collect();
                let about = Attributes::new()
                    .text("forge.run.id", run_id)
                    .text("forge.pipeline", pipeline)
                    .text("forge.manifest", manifest)
                    .maybe("vcs.ref.head.revision", about.git_revision.as_deref());
                state.about = about;
                return;
            }
            Event::StageFinished { stage, state: ended, key, wall_ms, error, .. } => {
                let kind = state.kinds.get(stage).cloned().unwrap_or_default();
                let id = state.stage(stage);
                let mut span = Span::new(id, Some(self.run), format!("{kind} {stage}"));
                span.times(now.saturating_sub(ns(*wall_ms)), now);
                span.attributes = Attributes::new()
                    .text("forge.stage.name", stage)
                    .text("forge.stage.kind", &kind)
                    .text("forge.stage.state", ended.name())
                    .maybe("forge.stage.key", key.map(|key| key.to_string()).as_deref());
                span.failed = error.is_some();
                span
            }
            Event::RunFinished { status, .. } => {
                let mut span = Span::new(self.run, None, format!("run {}", state.pipeline));
                span.times(state.started_ns, now);
                span.attributes =
                    std::mem::take(&mut state.about).text("forge.run.status", status.name());
                span.failed = !matches!(status, crate::record::RunStatus::Completed);
                span
            }
            _ => return,
        };
        drop(state);
        self.put(Item::Span(Box::new(span)), 1);
    }

    fn put(&self, item: Item, spans: u64) {
        self.counts.made.fetch_add(spans, Ordering::Relaxed);
        if self.queue.try_send(item).is_err() {
            self.counts.blame("the queue was full");
        }
    }

    /// Says that nothing more will come.
    pub fn close(&self) {
        self.over.cancel();
    }
}

impl Watch for Spans {
    fn began(&self, stage: &str, engine: &BTreeMap<String, Value>) {
        let mut state = self.state.lock().expect("BUG: the lock of spans is poisoned");
        state.engines.insert(stage.to_owned(), Engine::of(engine));
    }

    fn ended(&self, stage: &str, sample: &Sample, observed: &Observed) {
        let mut state = self.state.lock().expect("BUG: the lock of spans is poisoned");
        let parent = state.stage(stage);
        let engine = state.engines.get(stage).cloned().unwrap_or_default();
        drop(state);
        let turns = if self.content { Turns::of(sample) } else { Vec::new() };
        let ended = Ended::new(parent, engine, now_ns(), sample, observed, turns);
        let spans = ended.spans();
        self.put(Item::Sample(Box::new(ended)), spans);
    }
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

fn ns(ms: f64) -> u64 {
    (ms.max(0.0) * 1e6) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        Settings::read(&|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn settings_are_those_of_the_specification() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");
        let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20a+b%3D, x = 1");
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "X=2");
        let found = read(&[general, headers, of_traces]).unwrap().unwrap();
        assert_eq!(found.url.as_str(), "http://c:4318/v1/traces");
        let expected = [("Authorization", "Basic a+b="), ("X", "2")];
        assert_eq!(found.headers, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(found.resource[0], ("service.name".to_owned(), "forge".to_owned()));
        assert!(!found.content && found.timeout == TIMEOUT);
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c/t");
        let named = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,team=b");
        let found = read(&[general, own, named, ("OTEL_SERVICE_NAME", "c")]).unwrap().unwrap();
        assert_eq!(found.url.as_str(), "https://c/t");
        assert_eq!(found.resource[0].1, "c");

        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[general, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap(), None);
        assert_eq!(read(&[general, ("OTEL_TRACES_EXPORTER", "none")]).unwrap(), None);
        assert!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317")]).is_err());
        assert!(read(&[general, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).is_err());
        let secret = read(&[general, ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2")]).unwrap_err();
        assert!(!secret.contains("hunter2"), "{secret}");
    }
}
