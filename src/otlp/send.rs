//! Sends spans, a batch at a time. Knows nothing of what they say.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::span::Span;
use super::{Counts, Item, Settings, Spans};
use crate::store::Store;

/// Spans of a batch, about.
const BATCH: usize = 512;
/// Longest time that a span waits for others.
const EVERY: Duration = Duration::from_secs(5);
/// Attempts at a batch, and the pause after the first one.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause that an endpoint may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long the end of a run waits for what is still to be sent.
const LAST: Duration = Duration::from_secs(5);

/// What waits, and where it goes.
pub struct Queue {
    pub(super) settings: Settings,
    pub(super) trace: u128,
    pub(super) waiting: mpsc::Receiver<Item>,
    pub(super) counts: Arc<Counts>,
    pub(super) over: CancellationToken,
}

/// A queue that is being sent.
pub struct Sent {
    task: JoinHandle<()>,
    counts: Arc<Counts>,
}

impl Queue {
    /// Begins to send, beside everything else.
    pub fn start(self, store: Arc<Store>) -> Sent {
        let counts = self.counts.clone();
        Sent { task: tokio::spawn(self.run(store)), counts }
    }

    async fn run(mut self, store: Arc<Store>) {
        let builder = Client::builder().timeout(self.settings.timeout);
        let client = match builder.redirect(reqwest::redirect::Policy::none()).build() {
            Ok(client) => client,
            Err(error) => return self.counts.blame(&error.to_string()),
        };
        let mut batch: Vec<Value> = Vec::new();
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut is_due = false;
            tokio::select! {
                biased;
                item = self.waiting.recv() => match item {
                    Some(item) => self.add(item, &store, &mut batch),
                    None => break,
                },
                () = self.over.cancelled() => break,
                _ = tick.tick() => is_due = !batch.is_empty(),
            }
            if is_due || batch.len() >= BATCH {
                self.send(&client, std::mem::take(&mut batch)).await;
            }
        }
        // Nothing is put any more; whatever waits now is the rest.
        while let Ok(item) = self.waiting.try_recv() {
            self.add(item, &store, &mut batch);
            if batch.len() >= BATCH {
                self.send(&client, std::mem::take(&mut batch)).await;
            }
        }
        if !batch.is_empty() {
            self.send(&client, batch).await;
        }
    }

    fn add(&self, item: Item, store: &Store, batch: &mut Vec<Value>) {
        let spans = match item {
            Item::Span(span) => vec![*span],
            Item::Sample(ended) => ended.into_spans(store),
        };
        batch.extend(spans.into_iter().map(|span: Span| span.json(self.trace)));
    }

    async fn send(&self, client: &Client, batch: Vec<Value>) {
        let spans = batch.len() as u64;
        let text = |(key, value): &(String, String)| json!({ "key": key, "value": { "stringValue": value } });
        let resource: Vec<Value> = self.settings.resource.iter().map(text).collect();
        let body = json!({ "resourceSpans": [{
            "resource": { "attributes": resource },
            "scopeSpans": [{
                "scope": { "name": "forge", "version": env!("CARGO_PKG_VERSION") },
                "spans": batch,
            }],
        }] });
        let body = bytes::Bytes::from(body.to_string());
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS {
            match self.post(client, body.clone()).await {
                Ok(rejected) => {
                    let taken = spans.saturating_sub(rejected);
                    self.counts.sent.fetch_add(taken, Ordering::Relaxed);
                    if rejected > 0 {
                        self.counts.blame("the endpoint rejected them");
                    }
                    return;
                }
                Err((why, wait)) => {
                    let Some(wait) = wait.filter(|_| attempt < ATTEMPTS) else {
                        return self.counts.blame(&why);
                    };
                    tokio::time::sleep(wait.max(pause).min(PAUSE_MAX)).await;
                    pause *= 2;
                }
            }
        }
    }

    /// How many spans were rejected; or why none was taken, and whether to try again and when.
    async fn post(
        &self,
        client: &Client,
        body: bytes::Bytes,
    ) -> Result<u64, (String, Option<Duration>)> {
        let mut request =
            client.post(self.settings.url.clone()).header(CONTENT_TYPE, "application/json");
        for (name, value) in &self.settings.headers {
            request = request.header(name, value);
        }
        // The address may hold a password.
        let failed = |error: reqwest::Error| error.without_url();
        let response = match request.body(body).send().await.map_err(failed) {
            Ok(response) => response,
            Err(error) if error.is_builder() => return Err((error.to_string(), None)),
            Err(error) => {
                let why = match (error.is_timeout(), error.is_connect()) {
                    (true, _) => "the endpoint does not answer in time".to_owned(),
                    (_, true) => "the endpoint cannot be reached".to_owned(),
                    _ => error.to_string(),
                };
                return Err((why, Some(Duration::ZERO)));
            }
        };
        let status = response.status();
        if !status.is_success() {
            let again = [
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ];
            let after = response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok());
            let after = after
                .and_then(|after| after.parse().ok())
                .map_or(Duration::ZERO, Duration::from_secs);
            let why = format!("the endpoint answered {status}");
            return Err((why, again.contains(&status).then_some(after)));
        }
        let answer: Value = match response.bytes().await {
            Ok(body) => serde_json::from_slice(&body).unwrap_or_default(),
            Err(_) => Value::Null,
        };
        let rejected = &answer["partialSuccess"]["rejectedSpans"];
        let number = rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok());
        Ok(number.unwrap_or(0))
    }
}

impl Sent {
    /// Waits for the rest, but not for long: how many spans were sent, and what there is to say of those that were
    /// not.
    pub async fn finish(mut self, spans: &Spans) -> (u64, Option<String>) {
        spans.close();
        if tokio::time::timeout(LAST, &mut self.task).await.is_err() {
            self.task.abort();
            self.counts.blame("the endpoint is too slow");
        }
        let (made, sent) =
            (self.counts.made.load(Ordering::Relaxed), self.counts.sent.load(Ordering::Relaxed));
        let why = self.counts.why.lock().expect("BUG: the lock of counts is poisoned").clone();
        let lost = made.saturating_sub(sent);
        let words = (lost > 0).then(|| {
            let why = why.unwrap_or_else(|| "they could not be sent".to_owned());
            format!("{lost} of {made} spans were not sent to the OpenTelemetry endpoint: {why}")
        });
        (sent, words)
    }
}
