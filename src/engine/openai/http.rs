//! The HTTP client of one engine: connections, time to make them, secrets. Knows nothing of replies.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response};
use tower::{Layer, Service};
use url::Url;

tokio::task_local! {
    /// The time that the connection of the request of this task took, if it needed a new one.
    static CONNECT: Cell<Option<Duration>>;
}

/// What stands in the place of a secret.
const HIDDEN: &str = "[secret]";

/// Sends requests of one engine.
#[derive(Debug)]
pub(super) struct Post {
    client: Client,
    headers: HeaderMap,
    /// What must not be shown, whatever a server makes of it.
    secrets: Vec<String>,
}

impl Post {
    /// A client with these headers. `key` goes into `Authorization`; the values of `secret` headers are
    /// never shown.
    pub(super) fn new(
        connect_timeout: Duration,
        key: Option<&str>,
        plain: &[(String, String)],
        secret: &[(String, String)],
        is_local: bool,
    ) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut insert = |name: &str, value: &str, is_secret: bool| {
            let bad = |what| format!("the header `{name}` has {what} that HTTP does not allow");
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("a name"))?;
            let mut value = HeaderValue::from_str(value).map_err(|_| bad("a value"))?;
            value.set_sensitive(is_secret);
            headers.insert(name, value);
            Ok::<_, String>(())
        };
        for (name, value) in plain {
            insert(name, value, false)?;
        }
        for (name, value) in secret {
            insert(name, value, true)?;
        }
        if let Some(key) = key {
            insert(AUTHORIZATION.as_str(), &format!("Bearer {key}"), true)?;
        }
        let mut builder = Client::builder();
        if is_local {
            // A proxy is for the world outside.
            builder = builder.no_proxy();
        }
        let client = builder
            // Requests that share a connection wait for each other where nobody can see it.
            .http1_only()
            .connect_timeout(connect_timeout)
            .connector_layer(TimeConnects)
            .tcp_nodelay(true)
            // A key must not follow to wherever a server points.
            .redirect(reqwest::redirect::Policy::none())
            // What is tried again, and when, is decided and told in one place.
            .retry(reqwest::retry::never())
            .user_agent(concat!("forge/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("cannot make an HTTP client: {}", causes(&error)))?;
        let secrets = secret.iter().map(|(_, value)| value.clone()).chain(key.map(str::to_owned));
        // Shorter ones would tear holes into ordinary words.
        let secrets = secrets.filter(|secret| secret.len() >= 4).collect();
        Ok(Post { client, headers, secrets })
    }

    /// Posts a body; returns the head of the answer and the time of a new connection.
    pub(super) async fn send(
        &self,
        url: Url,
        body: Vec<u8>,
    ) -> (Result<Response, reqwest::Error>, Option<Duration>) {
        let request = self.client.post(url).headers(self.headers.clone()).body(body);
        CONNECT
            .scope(Cell::new(None), async {
                let response = request.send().await;
                (response, CONNECT.with(Cell::take))
            })
            .await
    }

    /// Gets a short answer: status and body.
    pub(super) async fn get(
        &self,
        url: Url,
        limit: Duration,
        size_max: usize,
    ) -> Result<(u16, Bytes), String> {
        let request = self.client.get(url).headers(self.headers.clone()).timeout(limit);
        let response = request.send().await.map_err(|error| self.words(&error))?;
        self.read(response, size_max).await
    }

    /// Posts JSON for a short answer.
    pub(super) async fn json(
        &self,
        url: Url,
        body: &serde_json::Value,
        limit: Duration,
    ) -> Result<(u16, Bytes), String> {
        let body = body.to_string();
        let request = self.client.post(url).headers(self.headers.clone()).timeout(limit).body(body);
        let response = request.send().await.map_err(|error| self.words(&error))?;
        self.read(response, 1 << 20).await
    }

    async fn read(&self, mut response: Response, most: usize) -> Result<(u16, Bytes), String> {
        let status = response.status().as_u16();
        let mut body = bytes::BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.words(&error))? {
            if body.len() + chunk.len() > most {
                return Err(format!("an answer of more than {most} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, body.freeze()))
    }

    /// An error of the connection in words, without the address, which may hold more than it should.
    pub(super) fn words(&self, error: &reqwest::Error) -> String {
        self.hide(&causes(error))
    }

    /// A text without secrets, and without what would steer a terminal.
    pub(super) fn hide(&self, text: &str) -> String {
        let hide = |text: String, secret: &String| text.replace(secret.as_str(), HIDDEN);
        let steers = |c: &char| c.is_control() && !c.is_whitespace();
        let text: String = text.chars().filter(|c| !steers(c)).collect();
        self.secrets.iter().fold(text, hide)
    }
}

/// The last causes of an error: the first say no more than that there was a request.
fn causes(error: &reqwest::Error) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !causes.iter().any(|cause| cause.contains(&text)) {
            causes.push(text);
        }
        next = error.source();
    }
    match causes.len() {
        0 => error.to_string().split(" for url").next().unwrap_or_default().to_owned(),
        n => causes.split_off(n.saturating_sub(2)).join(": "),
    }
}

/// Times every connection that is made for a request.
#[derive(Debug, Clone, Copy)]
struct TimeConnects;

#[derive(Debug, Clone)]
struct TimedConnector<S>(S);

impl<S> Layer<S> for TimeConnects {
    type Service = TimedConnector<S>;

    fn layer(&self, inner: S) -> TimedConnector<S> {
        TimedConnector(inner)
    }
}

impl<S, R> Service<R> for TimedConnector<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.0.call(request);
        Box::pin(async move {
            let start = Instant::now();
            let connected = connecting.await;
            // The pool may finish a connection for others, after its request went out on another one.
            let _ = CONNECT.try_with(|connect| connect.set(Some(start.elapsed())));
            connected
        })
    }
}
