//! Files of the web into the store: asked with patience, checked on the way in, never half there. Knows
//! nothing of data sets.

use std::io::Write;
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, redirect};
use sha1::{Digest as _, Sha1};
use url::{Host, Url};

use crate::digest::Digest;
use crate::record::Event;
use crate::stage::{Context, StageError};
use crate::store::BlobWriter;

/// How often a file is asked for.
const ATTEMPTS_MAX: u32 = 5;
/// The pause after the first failure; it doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// A server that wants a longer pause is not waited for.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// For a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// Between two pieces of an answer.
const SILENCE: Duration = Duration::from_secs(60);
/// Between two words about how far a file is.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Redirections of one file.
const REDIRECTS_MAX: usize = 10;
/// Characters of a server's words in a message.
const WORDS_MAX: usize = 200;

/// What the content of a file must be.
pub(super) enum Wanted {
    /// This.
    Sha256(Digest),
    /// What git calls by this name: the SHA-1 of length and content.
    Git { oid: String, size: u64 },
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum WebError {
    /// The server said so.
    Status(u16, String),
    /// It could not be asked, or its answer broke off.
    Broken(String),
    /// It was asked, and gave something else.
    Wrong(String),
    /// The run was interrupted.
    Cancelled,
    /// The store, not the web.
    Store(StageError),
}

impl WebError {
    /// As the failure of a stage.
    pub(super) fn about(self, name: &str) -> StageError {
        let message = format!("cannot fetch `{name}`: {}", self.said());
        match self {
            WebError::Cancelled => StageError::Cancelled,
            WebError::Store(error) => error,
            WebError::Wrong(message) => StageError::User(message),
            // Asking again would not help.
            WebError::Status(400..=407 | 409..=428 | 430..=499, _) => StageError::User(message),
            WebError::Status(..) | WebError::Broken(_) => StageError::Failed(message),
        }
    }

    /// What happened, in a few words.
    fn said(&self) -> String {
        match self {
            WebError::Status(status, words) => format!("the server says {status}{words}"),
            WebError::Broken(words) | WebError::Wrong(words) => words.clone(),
            WebError::Cancelled => "interrupted".to_owned(),
            WebError::Store(error) => error.to_string(),
        }
    }

    /// The pause after which asking again makes sense.
    fn pause(&self, attempt: u32, wanted: Option<Duration>) -> Option<Duration> {
        let passing = match self {
            WebError::Status(status, _) => matches!(status, 408 | 429 | 500..=599),
            WebError::Broken(_) => true,
            WebError::Wrong(_) | WebError::Cancelled | WebError::Store(_) => false,
        };
        let pause = wanted.unwrap_or(PAUSE * 2_u32.pow(attempt - 1));
        (passing && attempt < ATTEMPTS_MAX && pause <= PAUSE_MAX).then_some(pause)
    }
}

/// Asks servers for files, on behalf of a stage.
pub(super) struct Web<'a> {
    client: Client,
    stage: &'a str,
    context: &'a Context,
    /// Sent to this server alone.
    token: Option<(Url, HeaderValue, String)>,
}

/// Where an answer goes.
enum Sink<'a> {
    Memory(Vec<u8>, usize),
    Store(Box<BlobWriter>, Sha1, &'a Wanted),
}

impl<'a> Web<'a> {
    /// Ready to ask, unless this run must not: then `name` is what is missing.
    pub(super) fn open(
        stage: &'a str,
        context: &'a Context,
        servers: &[Url],
        name: &str,
    ) -> Result<Self, StageError> {
        let options = &context.options;
        if options.frozen || options.offline {
            let why = if options.frozen { ", and the run is frozen" } else { "" };
            return Err(StageError::Missing(format!(
                "`{name}` is not in the store{why}; `forge apply` fetches it"
            )));
        }
        let mut builder = Client::builder();
        if servers.iter().all(is_local) {
            // A proxy is for the world outside.
            builder = builder.no_proxy();
        }
        let policy = redirect::Policy::custom(|attempt| {
            let from_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            if attempt.previous().len() > REDIRECTS_MAX {
                attempt.error("too many redirections")
            } else if from_https && attempt.url().scheme() != "https" {
                attempt.error("a redirection from https to http")
            } else {
                attempt.follow()
            }
        });
        let client = builder
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            // Whoever is redirected to another server takes no token there.
            .redirect(policy)
            .retry(reqwest::retry::never())
            .user_agent(concat!("forge/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| StageError::Failed(format!("cannot make an HTTP client: {error}")))?;
        Ok(Web { client, stage, context, token: None })
    }

    /// Shows a token to the server at `base`, and to no other one. Over plain HTTP it goes to this machine only.
    pub(super) fn with_token(mut self, base: &Url, token: &str) -> Result<Self, StageError> {
        if base.scheme() != "https" && !is_local(base) {
            return Ok(self);
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
            StageError::User(
                "the token in HF_TOKEN has characters that HTTP does not allow".to_owned(),
            )
        })?;
        value.set_sensitive(true);
        self.token = Some((base.clone(), value, token.to_owned()));
        Ok(self)
    }

    /// Whether a token is shown.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// A short answer, and its head.
    pub(super) async fn text(
        &self,
        url: &Url,
        bytes_max: usize,
    ) -> Result<(Vec<u8>, HeaderMap), WebError> {
        let name = shown(url);
        let make = || Ok(Sink::Memory(Vec::new(), bytes_max));
        match self.patiently(url, &name, make).await? {
            (Sink::Memory(bytes, _), headers) => Ok((bytes, headers)),
            (Sink::Store(..), _) => unreachable!("BUG: an answer went elsewhere"),
        }
    }

    /// Puts a file into the store, if its content is what it must be.
    pub(super) async fn store(
        &self,
        url: &Url,
        name: &str,
        wanted: &Wanted,
    ) -> Result<Digest, StageError> {
        let make = || {
            let writer = self.context.store.blob_writer();
            let writer = writer.map_err(|error| WebError::Store(error.into()))?;
            let mut git = Sha1::new();
            if let Wanted::Git { size, .. } = wanted {
                git.update(format!("blob {size}\0"));
            }
            Ok(Sink::Store(Box::new(writer), git, wanted))
        };
        let sink = self.patiently(url, name, make).await.map_err(|error| error.about(name))?.0;
        let Sink::Store(writer, git, _) = sink else {
            unreachable!("BUG: an answer went elsewhere")
        };
        let (found, pinned) = match wanted {
            Wanted::Sha256(digest) => (writer.digest().to_string(), digest.to_string()),
            Wanted::Git { oid, .. } => {
                let hex = git.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                (hex, oid.clone())
            }
        };
        if found != pinned {
            let (hash, by) = match wanted {
                Wanted::Sha256(_) => ("SHA-256", "pinned"),
                Wanted::Git { .. } => ("git hash", "what the hub says"),
            };
            return Err(StageError::User(format!(
                "`{name}` is not what it should be: its {hash} is {found}, and {pinned} is {by}; nothing of it was kept"
            )));
        }
        let written = tokio::task::spawn_blocking(move || writer.finish());
        Ok(written.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?)
    }

    async fn patiently<'s>(
        &self,
        url: &Url,
        name: &str,
        make: impl Fn() -> Result<Sink<'s>, WebError>,
    ) -> Result<(Sink<'s>, HeaderMap), WebError> {
        let mut attempt = 1;
        loop {
            let mut wanted = None;
            let error = match self.once(url, name, make()?, &mut wanted).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = error.pause(attempt, wanted) else { return Err(error) };
            let seconds = pause.as_secs_f64();
            self.tell(format!("{name}: {}; trying again in {seconds:.1} s", error.said()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.context.stop.cancelled() => return Err(WebError::Cancelled),
            }
            attempt += 1;
        }
    }

    async fn once<'s>(
        &self,
        url: &Url,
        name: &str,
        mut sink: Sink<'s>,
        wanted: &mut Option<Duration>,
    ) -> Result<(Sink<'s>, HeaderMap), WebError> {
        let mut request = self.client.get(url.clone());
        if let Some((base, value, _)) = &self.token
            && base.origin() == url.origin()
        {
            request = request.header(AUTHORIZATION, value);
        }
        let stop = self.context.stop.cancelled();
        let mut stop = std::pin::pin!(stop);
        let mut response = tokio::select! {
            response = request.send() => response.map_err(|error| self.broken(error))?,
            () = &mut stop => return Err(WebError::Cancelled),
        };
        let status = response.status().as_u16();
        if status != 200 {
            *wanted = retry_after(&response);
            return Err(WebError::Status(status, self.words(response).await));
        }
        let headers = response.headers().clone();
        let total = response.content_length();
        let (mut done, start) = (0_u64, Instant::now());
        let mut told = start;
        loop {
            let chunk = tokio::select! {
                chunk = response.chunk() => chunk.map_err(|error| self.broken(error))?,
                () = &mut stop => return Err(WebError::Cancelled),
            };
            let Some(chunk) = chunk else { break };
            done += chunk.len() as u64;
            sink.take(&chunk, name, done)?;
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.tell(progress(name, done, total, start.elapsed()));
            }
        }
        Ok((sink, headers))
    }

    /// Tells how far it is.
    pub(super) fn tell(&self, message: String) {
        let stage = self.stage.to_owned();
        (self.context.emit)(Event::DataFetching { stage, message: self.hide(&message) });
    }

    fn broken(&self, error: reqwest::Error) -> WebError {
        // Addresses of redirections are signed.
        let error = error.without_url();
        let mut words = error.to_string();
        let mut next = std::error::Error::source(&error);
        while let Some(cause) = next {
            let text = cause.to_string();
            if !words.contains(&text) {
                words = format!("{words}: {text}");
            }
            next = cause.source();
        }
        WebError::Broken(self.hide(&words))
    }

    /// What a server says beside a status.
    async fn words(&self, mut response: Response) -> String {
        let mut body = Vec::new();
        while body.len() < 16 * WORDS_MAX
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk);
        }
        let text = String::from_utf8_lossy(&body);
        let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        let said = json.as_ref().and_then(|json| json["error"].as_str()).unwrap_or(&text);
        let is_page = said.trim_start().starts_with('<');
        let line: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let short: String = line.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
        if short.is_empty() || is_page {
            String::new()
        } else {
            format!(" ({})", self.hide(&short))
        }
    }

    fn hide(&self, text: &str) -> String {
        match &self.token {
            Some((_, _, token)) => text.replace(token.as_str(), "[secret]"),
            None => text.to_owned(),
        }
    }
}

impl Sink<'_> {
    fn take(&mut self, chunk: &[u8], name: &str, done: u64) -> Result<(), WebError> {
        match self {
            Sink::Memory(bytes, max) => {
                bytes.extend_from_slice(chunk);
                if bytes.len() > *max {
                    return Err(WebError::Wrong(format!("`{name}` is longer than {max} bytes")));
                }
            }
            Sink::Store(writer, git, wanted) => {
                if let Wanted::Git { size, .. } = wanted {
                    if done > *size {
                        let message =
                            format!("`{name}` is longer than the {size} bytes that the hub says");
                        return Err(WebError::Wrong(message));
                    }
                    git.update(chunk);
                }
                writer.write_all(chunk).map_err(|error| {
                    let message = format!("cannot write `{name}` into the store: {error}");
                    WebError::Store(StageError::Failed(message))
                })?;
            }
        }
        Ok(())
    }
}

fn progress(name: &str, done: u64, total: Option<u64>, time: Duration) -> String {
    let bytes = |n: u64| bytesize::ByteSize(n).display().si();
    let a_second = (done as f64 / time.as_secs_f64()) as u64;
    let of = total.map_or_else(String::new, |total| format!(" of {}", bytes(total)));
    format!("{name}: {}{of}, {}/s", bytes(done), bytes(a_second))
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// An address as it may be shown: what follows `?` is often a signature.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}
