//! Connections to a server: made when no idle one is left, timed, driven by the task whose request they
//! carry, and kept for the next. Knows nothing of what is sent.
//!
//! hyper's client, one connection a request (HTTP/1.1, so that no request waits for another where nobody can
//! see it). A connection is polled by the task that waits for its answer, and not by a task of its own: an
//! answer wakes one task instead of two.

use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderMap, HeaderValue, PROXY_AUTHORIZATION};
use hyper::http::response::Parts;
use hyper::rt::{Read, Write};
use hyper::{Method, Request, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use rustls_platform_verifier::BuilderVerifierExt;
use tower::Service;
use url::Url;

/// How soon a kept connection ends that a request came too late for. What ends later may have begun an answer, which
/// is paid for.
const TOO_LATE_MAX: Duration = Duration::from_millis(500);
/// Longest time that a connection is kept for a further request.
const IDLE_MAX: Duration = Duration::from_secs(90);

/// What went wrong with a connection.
#[derive(Debug)]
pub(super) enum Broken {
    /// There was none in this time.
    ConnectTimeout(Duration),
    /// It could not be made.
    Connect(String),
    /// It ended before the answer did.
    Reset(String),
}

trait Stream: Read + Write + Unpin + Send {}

impl<T: Read + Write + Unpin + Send> Stream for T {}

type Driver = Pin<Box<http1::Connection<Box<dyn Stream>, Full<Bytes>>>>;

/// An open connection.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// `None` at its end. It is let go of at once: a request that came to it too late, and a body that it still
    /// feeds, hear of its end by that alone.
    driver: Option<Driver>,
    idle_since: Instant,
}

impl Connection {
    fn poll_driver(&mut self, context: &mut Context<'_>) {
        if self.driver.as_mut().is_some_and(|driver| driver.as_mut().poll(context).is_ready()) {
            self.driver = None;
        }
    }

    /// Does what the connection has to do until `work` has come to its end.
    async fn drive<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            self.poll_driver(context);
            work.as_mut().poll(context)
        })
        .await
    }

    /// Whether it can carry another request now.
    async fn is_free(&mut self) -> bool {
        poll_fn(|context| {
            self.poll_driver(context);
            Poll::Ready(())
        })
        .await;
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// An address of a server, and the idle connections to it.
pub(super) struct Target {
    /// Scheme, host and port.
    origin: Uri,
    /// As requests name it: its path, or the whole of it for a proxy.
    form: Uri,
    host: HeaderValue,
    proxy: Option<Intercept>,
    idle: Mutex<Vec<Connection>>,
}

/// Makes connections.
pub(super) struct Dialer {
    plain: HttpConnector,
    /// Made for the first target that needs it: to read the roots that this machine trusts takes 10 ms.
    tls: OnceLock<Arc<rustls::ClientConfig>>,
    /// `None` where all servers are on this machine: a proxy is for the world outside.
    proxies: Option<Matcher>,
    timeout: Duration,
}

impl Dialer {
    /// One that waits for a connection as long as `timeout`, through the proxies that the environment names.
    pub(super) fn new(timeout: Duration, is_local: bool) -> Self {
        let mut plain = HttpConnector::new();
        plain.set_nodelay(true);
        plain.enforce_http(false);
        let proxies = (!is_local).then(Matcher::from_env);
        Dialer { plain, tls: OnceLock::new(), proxies, timeout }
    }

    fn set_tls_up(&self) -> Result<(), String> {
        if self.tls.get().is_none() {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .and_then(BuilderVerifierExt::with_platform_verifier)
                .map_err(|error| format!("cannot set TLS up: {error}"))?
                .with_no_client_auth();
            self.tls.get_or_init(|| Arc::new(tls));
        }
        Ok(())
    }

    /// Where requests to `url` go.
    pub(super) fn target(&self, url: &Url) -> Result<Target, String> {
        let uri = |text: &str| text.parse::<Uri>().map_err(|error| format!("`{text}`: {error}"));
        let whole = uri(url.as_str().split('#').next().unwrap_or_default())?;
        let origin = uri(&url.origin().ascii_serialization())?;
        let host = whole.authority().map_or("", |authority| authority.as_str());
        let host = HeaderValue::from_str(host).map_err(|error| format!("`{host}`: {error}"))?;
        let proxy = self.proxies.as_ref().and_then(|proxies| proxies.intercept(&whole));
        let proxy_scheme = proxy.as_ref().and_then(|proxy| proxy.uri().scheme_str());
        if let Some(scheme) = proxy_scheme
            && !["http", "https"].contains(&scheme)
        {
            return Err(format!(
                "a proxy must speak HTTP, and the environment names a {scheme} one"
            ));
        }
        if [Some(url.scheme()), proxy_scheme].contains(&Some("https")) {
            self.set_tls_up()?;
        }
        let form = match (&proxy, url.scheme()) {
            (Some(_), "http") => whole,
            _ => uri(whole.path_and_query().map_or("/", |path| path.as_str()))?,
        };
        Ok(Target { origin, form, host, proxy, idle: Mutex::default() })
    }

    async fn dial(&self, target: &Target) -> Result<Connection, Broken> {
        let connecting = async {
            let mut plain = self.plain.clone();
            let first = target.proxy.as_ref().map_or(&target.origin, Intercept::uri).clone();
            let stream: Box<dyn Stream> = match (self.tls.get(), &target.proxy) {
                (None, _) => Box::new(plain.call(first).await?),
                (Some(tls), Some(proxy)) if target.origin.scheme_str() == Some("https") => {
                    let near = HttpsConnector::from((plain, tls.clone()));
                    let mut tunnel = Tunnel::new(first, near);
                    if let Some(auth) = proxy.basic_auth() {
                        tunnel = tunnel.with_auth(auth.clone());
                    }
                    let origin = target.origin.clone();
                    Box::new(HttpsConnector::from((tunnel, tls.clone())).call(origin).await?)
                }
                (Some(tls), _) => {
                    Box::new(HttpsConnector::from((plain, tls.clone())).call(first).await?)
                }
            };
            let (sender, driver) = http1::handshake(stream).await?;
            Ok::<_, Box<dyn Error + Send + Sync>>(Connection {
                sender,
                driver: Some(Box::pin(driver)),
                idle_since: Instant::now(),
            })
        };
        match tokio::time::timeout(self.timeout, connecting).await {
            Ok(Ok(mut connection)) => {
                // It says that it can carry a request when it is first polled.
                connection.is_free().await;
                Ok(connection)
            }
            Ok(Err(error)) => Err(Broken::Connect(causes(error.as_ref()))),
            Err(_) => Err(Broken::ConnectTimeout(self.timeout)),
        }
    }

    /// Sends a request; returns when the head of its answer is there.
    pub(super) async fn send<'a>(
        &self,
        target: &'a Target,
        method: Method,
        headers: &HeaderMap,
        body: Bytes,
    ) -> (Result<Answer<'a>, Broken>, Option<Duration>) {
        let make = || {
            let mut headers = headers.clone();
            headers.insert(HOST, target.host.clone());
            let proxy = target.proxy.as_ref().filter(|_| target.form.scheme().is_some());
            if let Some(auth) = proxy.and_then(Intercept::basic_auth) {
                headers.insert(PROXY_AUTHORIZATION, auth.clone());
            }
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = target.form.clone();
            *request.headers_mut() = headers;
            request
        };
        let (mut request, mut may_reuse) = (make(), true);
        loop {
            let idle = if may_reuse { target.take_idle().await } else { None };
            let (mut connection, connect) = match idle {
                Some(connection) => (connection, None),
                None => {
                    let start = Instant::now();
                    match self.dial(target).await {
                        Ok(connection) => (connection, Some(start.elapsed())),
                        Err(broken) => return (Err(broken), None),
                    }
                }
            };
            let sent = Instant::now();
            let sending = connection.sender.try_send_request(request);
            match connection.drive(sending).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    return (Ok(Answer { head, body, connection, target }), connect);
                }
                Err(mut failed) => match failed.take_message() {
                    // The server had closed an idle connection: nothing was sent on it.
                    Some(again) if connect.is_none() => request = again,
                    // Or closed it in that moment, as llama.cpp does after each stream without a word: no answer
                    // began, and on a connection of its own the request is tried again as it would be later.
                    None if connect.is_none()
                        && sent.elapsed() < TOO_LATE_MAX
                        && !failed.error().is_parse() =>
                    {
                        (request, may_reuse) = (make(), false);
                    }
                    _ => return (Err(Broken::Reset(causes(failed.error()))), connect),
                },
            }
        }
    }
}

impl Target {
    async fn take_idle(&self) -> Option<Connection> {
        loop {
            // The one that was used last: those that are too many grow old.
            let mut connection = self.idle().pop()?;
            if connection.idle_since.elapsed() < IDLE_MAX && connection.is_free().await {
                return Some(connection);
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().expect("BUG: the lock of connections is poisoned")
    }
}

/// An answer whose head is there.
pub(super) struct Answer<'a> {
    /// Status and headers.
    pub(super) head: Parts,
    body: Incoming,
    connection: Connection,
    target: &'a Target,
}

impl Answer<'_> {
    /// The next part of its body; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            match self.connection.drive(self.body.frame()).await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(Broken::Reset(causes(&error))),
            }
        }
    }

    /// Keeps its connection for another request. For an answer that was read to its end.
    pub(super) async fn keep_connection(mut self) {
        if self.connection.is_free().await {
            self.connection.idle_since = Instant::now();
            self.target.idle().push(self.connection);
        }
    }
}

/// The last causes of an error: the first say no more than that there was a request.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !causes.iter().any(|cause| cause.contains(&text)) {
            causes.push(text);
        }
        next = error.source();
    }
    causes.split_off(causes.len().saturating_sub(2)).join(": ")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;

    use super::*;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    async fn read_head(stream: &mut TcpStream) {
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            read.push(stream.read_u8().await.unwrap());
        }
    }

    async fn listen() -> (TcpListener, Dialer, Target) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let dialer = Dialer::new(Duration::from_secs(5), true);
        let target = dialer.target(&Url::parse(&url).unwrap()).unwrap();
        (listener, dialer, target)
    }

    async fn get(dialer: &Dialer, target: &Target) -> Result<(), Broken> {
        let sent = dialer.send(target, Method::GET, &HeaderMap::new(), Bytes::new()).await;
        let mut answer = sent.0?;
        while answer.chunk().await?.is_some() {}
        answer.keep_connection().await;
        Ok(())
    }

    // On one thread, so that the end of the connection comes where the test sleeps.
    #[tokio::test]
    async fn a_request_hears_that_its_idle_connection_had_ended() {
        let (listener, dialer, target) = listen().await;
        let (close, closed) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(OK).await.unwrap();
            let _ = closed.await;
        });
        get(&dialer, &target).await.unwrap();
        let mut connection = target.take_idle().await.expect("it was kept");
        close.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut request = Request::new(Full::new(Bytes::new()));
        request.headers_mut().insert(HOST, target.host.clone());
        let sending = connection.sender.try_send_request(request);
        let heard = tokio::time::timeout(Duration::from_secs(5), connection.drive(sending)).await;
        assert!(heard.expect("it waits for ever").unwrap_err().message().is_some());
    }

    #[tokio::test]
    async fn a_connection_that_ends_under_a_second_request_is_replaced_at_once() {
        let (listener, dialer, target) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(OK).await.unwrap();
            read_head(&mut stream).await;
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(OK).await.unwrap();
            // One that ends under a request later, or was made for it, is a failure of the server.
            read_head(&mut stream).await;
            tokio::time::sleep(TOO_LATE_MAX * 2).await;
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
        });
        get(&dialer, &target).await.unwrap();
        get(&dialer, &target).await.unwrap();
        assert!(matches!(get(&dialer, &target).await, Err(Broken::Reset(_))), "it ended late");
        assert!(matches!(get(&dialer, &target).await, Err(Broken::Reset(_))), "it was new");
    }
}
