//! `forge serve`: experiments over HTTP, for people and programs. The same library calls as the command line, so that
//! whatever one does the other can show. Knows nothing of arguments and of the terminal.
//!
//! Experiments and their state are in SQLite ([`db`]); what came of them is in the store and in run records
//! ([`results`]), as of any run. An experiment is a manifest underneath ([`experiment`]), and runs as one ([`runs`]).
//!
//! Everything passes [`guard`]: the name of the server, the rate of the client, who it is, whether another site made
//! its browser ask, how long it may take. TLS is left to a proxy in front.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use camino::Utf8PathBuf;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::store::Store;

mod api;
pub mod auth;
pub mod bench;
mod calls;
mod compare;
pub mod db;
mod diff;
mod error;
mod events;
pub mod experiment;
mod feed;
mod guard;
pub mod jobs;
pub mod known;
mod limits;
pub mod manifest;
mod model;
mod openapi;
mod pages;
mod project;
mod records;
pub mod results;
pub mod rows;
pub mod runs;

pub use guard::Access;

use auth::Auth;
use db::Db;
use feed::Feed;
use known::Known;
use limits::Rates;
use records::Records;
use results::Results;
use runs::Runs;

/// The file of experiments, in the folder of the store.
pub const DATABASE: &str = "experiments.sqlite";
/// Largest body of a request.
const BODY_MAX: usize = 256 * 1024;
/// Most headers that are read at all. Far more than are taken, so that who sends too many is told by us, and not by the
/// HTTP library, which knows of no request id.
const HEADERS_READ: usize = 1000;
/// How long the head of a request may take, and an idle connection may last.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// Connections at once.
const CONNECTIONS_MAX: usize = 1024;
/// How long the project's manifests are taken as read.
const KNOWN_FOR: Duration = Duration::from_secs(2);
const KNOWN: &str = "BUG: the project lock is poisoned";
/// Tries to log in, a second and address.
const LOGINS: f64 = 1.0;

/// What the server is told.
pub struct Settings {
    /// The project's root.
    pub root: Utf8PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What callers have to know; `None` lets everybody in.
    pub token: Option<String>,
    /// Names that the server answers to, beside addresses and `localhost`.
    pub hosts: Vec<String>,
    /// The engine whose model may be another one.
    pub engine: Option<String>,
    /// URL of the shared store that was put behind the store.
    pub remote: Option<String>,
    /// Whether a manifest of the project that is run gets its lock file, as `forge apply` writes it.
    pub locks: bool,
    /// Experiments at work at once.
    pub at_once: usize,
    /// Experiments that may wait.
    pub queue: usize,
    /// Requests a second and address.
    pub rate: f64,
    /// Requests under way at once.
    pub in_flight: usize,
    /// Hears of every request.
    pub log: Box<dyn Fn(&Access) + Send + Sync>,
}

/// All that handlers share.
pub struct Server {
    root: Utf8PathBuf,
    store: Arc<Store>,
    db: Arc<Db>,
    runs: Arc<Runs>,
    results: Arc<Results>,
    records: Records,
    feed: Feed,
    auth: Auth,
    rates: Rates,
    logins: Rates,
    in_flight: Arc<Semaphore>,
    /// Whoever compares two runs has this.
    comparing: tokio::sync::Mutex<()>,
    engine: Option<String>,
    known: Mutex<Option<(Instant, Arc<Known>)>>,
    /// Whoever reads the project has this.
    scanning: Mutex<()>,
    pages: pages::Pages,
    log: Box<dyn Fn(&Access) + Send + Sync>,
}

/// What handlers get.
pub type App = Arc<Server>;

/// A server that listens.
pub struct Bound {
    app: App,
    listener: TcpListener,
    /// Experiments that a server before this one left, and that go on.
    pub resumed: usize,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// What the project offers, as it was a moment ago: who comes while it is read again gets what was there before.
    fn known(&self) -> Arc<Known> {
        let last = self.known.lock().expect(KNOWN).clone();
        match last {
            Some((read, known)) if read.elapsed() < KNOWN_FOR => known,
            Some((_, known)) => match self.scanning.try_lock() {
                Ok(scanning) => {
                    let new = self.scan();
                    drop(scanning);
                    new
                }
                Err(_) => known,
            },
            None => {
                let _scanning = self.scanning.lock().expect(KNOWN);
                let first = self.known.lock().expect(KNOWN).clone();
                first.map_or_else(|| self.scan(), |(_, known)| known)
            }
        }
    }

    /// What the project offers now, read for this.
    fn scan(&self) -> Arc<Known> {
        let new = Arc::new(Known::scan(&self.root, self.engine.clone()));
        *self.known.lock().expect(KNOWN) = Some((Instant::now(), new.clone()));
        new
    }
}

/// Opens the database, listens, and goes on with what was left.
pub async fn bind(store: Arc<Store>, settings: Settings) -> Result<Bound, String> {
    let Settings { root, listen, token, hosts, engine, remote, at_once, queue, .. } = settings;
    let Settings { rate, in_flight, locks, log, .. } = settings;
    let db = Arc::new(Db::open(&store.root().join(DATABASE))?);
    let results = Arc::new(Results::new(store.clone()));
    let project = (root.clone(), store.clone(), remote);
    let runs = Runs::new(project, db.clone(), results.clone(), locks, (at_once, queue));
    let app = Arc::new(Server {
        root,
        db,
        runs: Arc::new(runs),
        results,
        records: Records::new(store.clone()),
        feed: Feed::new(store.clone()),
        store,
        auth: Auth::new(token.as_deref(), hosts),
        rates: Rates::new(rate),
        logins: Rates::new(LOGINS),
        in_flight: Arc::new(Semaphore::new(in_flight)),
        comparing: tokio::sync::Mutex::default(),
        engine,
        known: Mutex::default(),
        scanning: Mutex::default(),
        pages: pages::Pages::new(),
        log,
    });
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let resumed = app.runs.resume()?;
    Ok(Bound { app, listener, resumed, address })
}

fn router(app: App) -> Router {
    Router::new()
        .nest("/api/v1", api::routes())
        .merge(api::health())
        .merge(pages::routes())
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

impl Bound {
    /// Answers until `stop` is over; then requests under way and those of runs are let finish.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let Bound { app, listener, .. } = self;
        let router = router(app.clone());
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        tokio::pin!(stop);
        loop {
            let place = places.clone().acquire_owned();
            let accepted = async {
                let place = place.await.ok()?;
                Some((listener.accept().await.ok()?, place))
            };
            let (stream, peer, place) = tokio::select! {
                accepted = accepted => match accepted {
                    Some(((stream, peer), place)) => (stream, peer, place),
                    // Out of file descriptors, perhaps: others end meanwhile.
                    None => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = &mut stop => break,
            };
            let _ = stream.set_nodelay(true);
            let router = router.clone();
            let service = tower::service_fn(move |mut request: hyper::Request<_>| {
                request.extensions_mut().insert(guard::Peer(peer));
                tower::ServiceExt::oneshot(router.clone(), request.map(axum::body::Body::new))
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_headers(HEADERS_READ);
            let service = TowerToHyperService::new(service);
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            let app = app.clone();
            tokio::spawn(async move {
                if let Err(error) = connection.await
                    && error.is_parse()
                {
                    guard::tell_unread(&app, peer, error.is_parse_too_large());
                }
                drop(place);
            });
        }
        drop(listener);
        // Streams of events end with this, so that connections do.
        app.runs.end().await;
        let _ = tokio::time::timeout(Duration::from_secs(10), graceful.shutdown()).await;
    }
}
