//! A server that forge starts itself: its command, its port, its health, its log, its end. What it answers
//! is read by `openai`. Knows nothing of which server it is.
//!
//! The command is started by a supervisor, which is this program again with another job (`supervise`): when
//! the pipe to it closes, however this process ended, it stops the server and all that the server started.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Mutex;
use url::Url;

use super::openai::{OpenAi, REFUSED, Ready};
use super::{Admission, Backend, Engine, EngineError, Progress, Reply};
use crate::digest::{Digest, Recipe};
use crate::record::Price;
use crate::sample::Request;

pub mod supervise;

/// Where the port of the server goes in its command.
pub const PORT: &str = "{port}";
/// Version of this adapter.
const REV: u32 = 1;
/// How often the health of a starting server is asked for.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Longest time of an answer about health.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a user hears how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How much of the end of the log goes into messages.
const TAIL: u64 = 2000;
/// Variables whose names end so hold what nobody is shown.
const SECRET: &[&str] = &["TOKEN", "KEY", "SECRET", "PASSWORD"];
/// Shorter values would tear holes into ordinary words.
const SECRET_MIN: usize = 4;
/// How long the supervisor gets to stop everything.
const STOP_MAX: Duration = Duration::from_secs(15);

/// A server as a manifest declares it.
#[derive(Clone)]
pub struct Process {
    /// Program and arguments; [`PORT`] stands for the port.
    pub command: Vec<String>,
    /// Where it is started: the project's root.
    pub folder: Utf8PathBuf,
    /// The environment that it sees.
    pub env: BTreeMap<String, String>,
    /// Digests of the files that it reads, by their path.
    pub files: BTreeMap<String, Digest>,
    /// Path that answers with success once it is ready.
    pub health: String,
    /// Path of the interface on the server.
    pub base_path: String,
    /// Longest time until it is ready.
    pub startup_timeout: Duration,
    /// What it says goes here.
    pub log: Utf8PathBuf,
    /// How it is asked; its address is known only later.
    pub openai: OpenAi,
}

impl Process {
    /// Adds all that decides answers to an engine's recipe. The port does not.
    pub fn identify(&self, recipe: Recipe) -> Recipe {
        let recipe = recipe.field("process_rev", REV).field("command", self.command.clone());
        let files = self.files.iter();
        let recipe = files
            .fold(recipe, |recipe, (path, digest)| recipe.input(format!("file {path}"), *digest));
        self.openai.identify(recipe)
    }
}

impl Backend for Process {
    fn name(&self) -> &'static str {
        "process"
    }

    fn describe(&self) -> BTreeMap<String, Value> {
        let mut about = self.openai.describe();
        about.insert("backend".to_owned(), "process".into());
        about.insert("command".to_owned(), self.command.join(" ").into());
        about.remove("servers");
        about
    }

    fn continues(&self) -> Result<(), String> {
        self.openai.continues()
    }

    fn likelihoods(&self) -> Result<(), String> {
        self.openai.likelihoods()
    }

    fn expect_likelihoods(&self) {
        self.openai.expect_likelihoods();
    }

    fn formats_chat(&self) -> bool {
        self.openai.formats_chat()
    }

    fn admission(&self) -> Admission {
        self.openai.admission()
    }

    fn price(&self) -> Option<Price> {
        self.openai.price
    }

    fn embeds(&self) -> bool {
        true
    }

    fn load(&self, progress: Progress) -> BoxFuture<'_, Result<Box<dyn Engine>, String>> {
        async move {
            let running = Running::start(self, &progress).await?;
            let served = Served {
                settings: self.clone(),
                notices: running.ready.facts_told(),
                running: Mutex::new(State { running: Some(running), restarts: 0 }),
                refused: AtomicBool::new(false),
                progress,
            };
            Ok(Box::new(served) as Box<dyn Engine>)
        }
        .boxed()
    }
}

/// A server that answers.
struct Running {
    ready: Arc<Ready>,
    supervisor: Supervisor,
}

impl Running {
    async fn start(settings: &Process, progress: &Progress) -> Result<Running, String> {
        let port = free_port().map_err(|error| format!("there is no free port: {error}"))?;
        let mut supervisor = Supervisor::start(settings, port)?;
        let url = |path: &str| {
            Url::parse(&format!("http://127.0.0.1:{port}/{}", path.trim_start_matches('/')))
                .map_err(|error| format!("`{path}` is no path: {error}"))
        };
        let (health, base) = (url(&settings.health)?, url(&settings.base_path)?);
        // One for all questions: making it reads the certificates of the machine.
        let client = reqwest::Client::builder().no_proxy().timeout(HEALTH_TIMEOUT).build();
        let client = client.map_err(|error| format!("cannot make an HTTP client: {error}"))?;
        let start = Instant::now();
        let mut told = start;
        loop {
            if let Some(status) = supervisor.ended() {
                return Err(supervisor.words(&format!("it ended before it was ready ({status})")));
            }
            if is_healthy(&client, &health).await {
                break;
            }
            if start.elapsed() > settings.startup_timeout {
                let limit = humantime::format_duration(settings.startup_timeout);
                return Err(supervisor
                    .words(&format!("`{}` did not answer within {limit}", settings.health)));
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                progress(format!(
                    "starting `{}`: waiting for {health} ({} s)",
                    settings.command[0],
                    start.elapsed().as_secs()
                ));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        let openai = OpenAi { urls: vec![base], ..settings.openai.clone() };
        let ready = Ready::new(openai).await.map_err(|error| supervisor.words(&error))?;
        Ok(Running { ready: Arc::new(ready), supervisor })
    }
}

/// A port that nobody uses now. The server may lose it to another program before it listens; then it fails
/// to start, and says so in its log.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

async fn is_healthy(client: &reqwest::Client, url: &Url) -> bool {
    client.get(url.clone()).send().await.is_ok_and(|response| response.status().is_success())
}

struct State {
    running: Option<Running>,
    restarts: u32,
}

/// A server that is started again once, should it die.
struct Served {
    settings: Process,
    running: Mutex<State>,
    /// Whether its port took a connection no more: some servers lose their listener and keep their process.
    refused: AtomicBool,
    notices: Vec<String>,
    progress: Progress,
}

impl Served {
    /// Starts the server again if it has died.
    async fn revive(&self) -> Result<(), EngineError> {
        let mut state = self.running.lock().await;
        let refused = self.refused.load(Ordering::Relaxed);
        let ended = match &mut state.running {
            Some(running) => match running.supervisor.ended() {
                None if !refused => return Ok(()),
                None => running.supervisor.words("it listens on its port no more, though it runs"),
                Some(status) => running.supervisor.words(&format!("it ended ({status})")),
            },
            None => "it could not be started again".to_owned(),
        };
        if state.restarts > 0 {
            return Err(EngineError::Broken(format!("{ended}; it was started again once already")));
        }
        state.restarts += 1;
        state.running = None;
        (self.progress)(format!("{ended}; starting it again"));
        let running = Running::start(&self.settings, &self.progress).await;
        state.running = Some(running.map_err(EngineError::Broken)?);
        self.refused.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Engine for Served {
    fn complete<'a>(
        &'a self,
        request: &'a Request,
        first_token: Option<Duration>,
    ) -> BoxFuture<'a, Result<Reply, EngineError>> {
        async move {
            let ready = self.running.lock().await.running.as_ref().map(|r| r.ready.clone());
            let Some(ready) = ready else {
                return Err(EngineError::passing("process", "the server is not there"));
            };
            let reply = ready.complete(request, first_token).await;
            if matches!(&reply, Err(EngineError::Passing(trouble)) if trouble.reason == REFUSED) {
                // Of the server that runs now; one that was started since has refused nobody.
                let state = self.running.lock().await;
                if state.running.as_ref().is_some_and(|now| Arc::ptr_eq(&now.ready, &ready)) {
                    self.refused.store(true, Ordering::Relaxed);
                }
            }
            reply
        }
        .boxed()
    }

    fn recover(&self) -> BoxFuture<'_, Result<(), EngineError>> {
        self.revive().boxed()
    }

    fn prompt_tokens(&self, request: &Request) -> u64 {
        let state = self.running.try_lock().ok();
        match state.as_ref().and_then(|state| state.running.as_ref()) {
            Some(running) => running.ready.prompt_tokens(request),
            None => request.messages.iter().map(|message| message.content.len() as u64 / 4).sum(),
        }
    }

    fn notices(&self) -> Vec<String> {
        self.notices.clone()
    }
}

/// The supervisor of a server, and through it the server.
struct Supervisor {
    child: Child,
    command: String,
    log: Utf8PathBuf,
    /// What of its environment no message shows.
    secrets: Vec<String>,
    /// Where this start begins in the log.
    from: u64,
}

impl Supervisor {
    fn start(settings: &Process, port: u16) -> Result<Self, String> {
        let command = settings.command.join(" ");
        let fail = |error: std::io::Error| format!("cannot start `{command}`: {error}");
        if let Some(folder) = settings.log.parent() {
            std::fs::create_dir_all(folder).map_err(fail)?;
        }
        let log = File::options().create(true).append(true).open(&settings.log).map_err(fail)?;
        let from = log.metadata().map_or(0, |meta| meta.len());
        let words = settings.command.iter().map(|word| word.replace(PORT, &port.to_string()));
        let mut process = Command::new(std::env::current_exe().map_err(fail)?);
        process
            .arg(supervise::COMMAND)
            .args(words)
            .current_dir(&settings.folder)
            .env_clear()
            .envs(&settings.env)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(fail)?)
            .stderr(log);
        // Ctrl-C on the terminal goes to this process alone: requests under way still need the server.
        std::os::unix::process::CommandExt::process_group(&mut process, 0);
        let child = process.spawn().map_err(fail)?;
        let secrets = secrets(&settings.env);
        Ok(Supervisor { child, command, log: settings.log.clone(), secrets, from })
    }

    /// How the server ended, if it did.
    fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// What happened, with the last words of the server.
    fn words(&self, what: &str) -> String {
        let tail = tail(&self.log, self.from).unwrap_or_default();
        let said = match tail.trim() {
            "" => "it said nothing".to_owned(),
            tail => format!("its last words:\n{tail}"),
        };
        let words = format!("the server `{}`: {what}; log: {}; {said}", self.command, self.log);
        self.secrets.iter().fold(words, |words, secret| words.replace(secret, "[secret]"))
    }
}

fn secrets(env: &BTreeMap<String, String>) -> Vec<String> {
    let is_secret = |name: &str| SECRET.iter().any(|end| name.to_uppercase().ends_with(end));
    let values = env.iter().filter(|(name, value)| is_secret(name) && value.len() >= SECRET_MIN);
    values.map(|(_, value)| value.clone()).collect()
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Its standard input closes: the sign to stop the server.
        drop(self.child.stdin.take());
        let start = Instant::now();
        while start.elapsed() < STOP_MAX {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log, from `from` on.
fn tail(log: &Utf8Path, from: u64) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    let start = from.max(length.saturating_sub(TAIL));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // A line that was cut at its start says little.
    let text = match text.split_once('\n') {
        Some((_, rest)) if start > from => rest,
        _ => &text,
    };
    let lines: Vec<&str> = text.lines().collect();
    let text = lines[lines.len().saturating_sub(12)..].join("\n");
    // What a server says must not steer a terminal.
    Ok(text.chars().filter(|c| !c.is_control() || *c == '\n').collect())
}
