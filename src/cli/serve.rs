//! `forge serve`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use camino::Utf8PathBuf;
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::project::{access, env, open_remote, root_here, usage};
use super::terminal::visible_line;
use super::{FAILED, Failure, INTERRUPTED, RemoteArgs, block_on, print, say};
use crate::serve::known::Known;
use crate::serve::{self, Access, Settings};
use crate::store::{Patience, RemoteError, Store};

/// The variable that holds the token.
const TOKEN: &str = "FORGE_TOKEN";
/// Shortest token that is taken.
const TOKEN_MIN: usize = 16;

#[derive(Args)]
pub(super) struct Serve {
    /// Where to listen; anywhere but on this machine itself a token is asked for
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,
    /// A name that the server answers to, beside addresses and `localhost`
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// The project [default: that of the current folder]
    #[arg(long, value_name = "DIR")]
    project: Option<Utf8PathBuf>,
    /// Folder of the store [default: .forge in the project]
    #[arg(long, env = "FORGE_STORE", value_name = "DIR")]
    store: Option<Utf8PathBuf>,
    #[command(flatten)]
    remote: RemoteArgs,
    /// The engine that takes models which the project does not declare [default: the first that there is]
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Leave lock files as they are: what is run from the page then changes no file that git tracks, reports aside
    #[arg(long)]
    no_locks: bool,
    /// Experiments that run at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    at_once: u16,
    /// Experiments that may wait for their turn
    #[arg(long, value_name = "N", default_value_t = 100)]
    queue: u16,
    /// Requests a second that one address may send; twice as many may come together
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Requests under way at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    /// Write the log of requests as JSON Lines
    #[arg(long)]
    json: bool,
    /// Say nothing but errors
    #[arg(long, short)]
    quiet: bool,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|error| error.to_string())?.next();
    found.ok_or_else(|| "no such address".to_owned())
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let root = match &self.project {
            Some(root) => root.canonicalize_utf8().map_err(|error| {
                usage(format!("cannot read `{root}`: {}", crate::stage::plain(&error)))
            })?,
            None => root_here()?,
        };
        let store = self.store.clone().unwrap_or_else(|| root.join(".forge"));
        let store = Arc::new(Store::open(&store)?);
        if let Some(engine) = &self.engine {
            Known::scan(&root, None)
                .check_engine(engine)
                .map_err(|why| usage(format!("`--engine`: {why}")))?;
        }
        let token = self.token()?;
        let (json, quiet) = (self.json, self.quiet);
        let settings = Settings {
            root: root.clone(),
            listen: self.listen,
            token,
            hosts: self.host,
            engine: self.engine,
            remote: self.remote.remote.clone(),
            locks: !self.no_locks,
            at_once: self.at_once.into(),
            queue: self.queue.into(),
            rate: self.rate.into(),
            in_flight: self.in_flight.into(),
            log: Box::new(move |access| log(access, json, quiet)),
        };
        block_on(async {
            share(&self.remote, &store).await?;
            let interrupt = signal(SignalKind::interrupt());
            let terminate = signal(SignalKind::terminate());
            let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) else {
                return Err(Failure::Message("cannot listen to signals".to_owned(), FAILED));
            };
            let bound = serve::bind(store.clone(), settings).await;
            let bound = bound.map_err(|error| Failure::Message(error, FAILED))?;
            // Data for scripts that start a server: where it is.
            print(&format!("http://{}", bound.address));
            if bound.resumed > 0 && !quiet {
                say(&format!("goes on with {} experiments that were not done", bound.resumed));
            }
            let stop = async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if !quiet {
                    say(
                        "ending: waiting for requests under way; experiments go on at the next start",
                    );
                }
                tokio::spawn(async move {
                    interrupt.recv().await;
                    std::process::exit(i32::from(INTERRUPTED));
                });
            };
            bound.serve(stop).await;
            Ok(())
        })?
    }

    /// What callers have to know.
    fn token(&self) -> Result<Option<String>, Failure> {
        match env(TOKEN).filter(|token| !token.is_empty()) {
            Some(token) if token.len() < TOKEN_MIN => {
                Err(usage(format!("the token in `{TOKEN}` is shorter than {TOKEN_MIN} characters")))
            }
            Some(token) => Ok(Some(token)),
            None if self.listen.ip().is_loopback() => Ok(None),
            None => {
                let token = serve::auth::secret();
                say(&format!(
                    "the token of this server, shown once (`{TOKEN}` sets one that stays):\n{token}"
                ));
                Ok(Some(token))
            }
        }
    }
}

/// Puts the shared store behind ours, as for `forge apply`.
async fn share(args: &RemoteArgs, store: &Store) -> Result<(), Failure> {
    let Some(url) = &args.remote else { return Ok(()) };
    let tell = |message: String| say(&format!("warning: {message}"));
    let remote = open_remote(url, access(args.remote_mode.as_deref()), Patience::Run, tell)?;
    match remote.probe().await {
        Ok(()) => {}
        Err(error @ RemoteError::User(_)) => return Err(error.into()),
        Err(error) => remote.pause(&error),
    }
    store.attach(remote);
    Ok(())
}

/// A line for each request.
fn log(access: &Access, json: bool, quiet: bool) {
    let Access { request_id, peer, method, path, status, ms } = access;
    if quiet && *status < 500 {
        return;
    }
    let at = crate::serve::db::now();
    if json {
        let line = json!({
            "at": at, "request_id": request_id, "client": peer.ip().to_string(), "method": method, "path": path,
            "status": status, "ms": (ms * 1000.0).round() / 1000.0,
        });
        say(&line.to_string());
    } else {
        let path = visible_line(path);
        say(&format!("{at} {} {method} {path} {status} {ms:.1} ms {request_id}", peer.ip()));
    }
}
