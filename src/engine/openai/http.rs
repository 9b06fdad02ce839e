//! What is sent to a server, and with which headers. Keeps secrets out of everything that is said about it.
//! Knows nothing of replies.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use url::Url;

use super::connection::{Answer, Broken, Dialer, Target};

/// What stands in the place of a secret.
const HIDDEN: &str = "[secret]";

/// Sends requests of one engine.
pub(super) struct Post {
    dialer: Dialer,
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
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        let agent = concat!("forge/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
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
        let dialer = Dialer::new(connect_timeout, is_local);
        let secrets = secret.iter().map(|(_, value)| value.clone()).chain(key.map(str::to_owned));
        // Shorter ones would tear holes into ordinary words.
        let secrets = secrets.filter(|secret| secret.len() >= 4).collect();
        Ok(Post { dialer, headers, secrets })
    }

    /// Where requests to an address go.
    pub(super) fn target(&self, url: &Url) -> Result<Target, String> {
        self.dialer.target(url)
    }

    /// Posts a body; returns the head of the answer and the time of a new connection.
    pub(super) async fn send<'a>(
        &self,
        target: &'a Target,
        body: Vec<u8>,
    ) -> (Result<Answer<'a>, Broken>, Option<Duration>) {
        self.dialer.send(target, Method::POST, &self.headers, body.into()).await
    }

    /// Gets a short answer: status and body.
    pub(super) async fn get(
        &self,
        url: Url,
        limit: Duration,
        size_max: usize,
    ) -> Result<(u16, Bytes), String> {
        self.exchange(Method::GET, url, Bytes::new(), limit, size_max).await
    }

    /// Posts JSON for a short answer.
    pub(super) async fn json(
        &self,
        url: Url,
        body: &serde_json::Value,
        limit: Duration,
    ) -> Result<(u16, Bytes), String> {
        self.exchange(Method::POST, url, body.to_string().into(), limit, 1 << 20).await
    }

    async fn exchange(
        &self,
        method: Method,
        url: Url,
        body: Bytes,
        limit: Duration,
        size_max: usize,
    ) -> Result<(u16, Bytes), String> {
        let target = self.target(&url)?;
        let exchange = async {
            let (answer, _) = self.dialer.send(&target, method, &self.headers, body).await;
            let mut answer = answer.map_err(|broken| self.words(&broken))?;
            let mut body = bytes::BytesMut::new();
            while let Some(chunk) = answer.chunk().await.map_err(|broken| self.words(&broken))? {
                if body.len() + chunk.len() > size_max {
                    return Err(format!("an answer of more than {size_max} bytes"));
                }
                body.extend_from_slice(&chunk);
            }
            Ok((answer.head.status.as_u16(), body.freeze()))
        };
        let late = |_| format!("no answer within {}", humantime::format_duration(limit));
        tokio::time::timeout(limit, exchange).await.map_err(late)?
    }

    /// What broke, in words.
    pub(super) fn words(&self, broken: &Broken) -> String {
        match broken {
            Broken::ConnectTimeout(limit) => {
                format!("no connection within {}", humantime::format_duration(*limit))
            }
            Broken::Connect(words) | Broken::Reset(words) => self.hide(words),
        }
    }

    /// A text without secrets, and without what would steer a terminal.
    pub(super) fn hide(&self, text: &str) -> String {
        let hide = |text: String, secret: &String| text.replace(secret.as_str(), HIDDEN);
        let steers = |c: &char| c.is_control() && !c.is_whitespace();
        let text: String = text.chars().filter(|c| !steers(c)).collect();
        self.secrets.iter().fold(text, hide)
    }
}
