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
use tokio::runtime::RuntimeFlavor;
use tokio::sync::Mutex;
use url::Url;

use super::openai::{OpenAi, REFUSED, Ready};
use super::{Admission, Backend, Engine, EngineError, Progress, Reply, Trouble};
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
/// Where free ports are looked for, and how many of them.
const PORTS: std::ops::Range<u16> = 16_384..32_768;
const PORTS_ASKED: usize = 100;
/// Ports that a server is started with, one after another, should others take them.
const PORTS_MAX: u32 = 3;
/// How long the end of a server may stay unseen after its port is closed: the system closes first, and the
/// supervisor then ends its children.
const DEATH_MAX: Duration = Duration::from_secs(2);
/// How often it is looked at in that time.
const LOOK_EVERY: Duration = Duration::from_millis(20);
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

    fn proof(&self) -> Option<Request> {
        self.openai.proof()
    }

    fn formats_chat(&self) -> bool {
        self.openai.formats_chat()
    }

    fn wants_reasoning(&self) -> bool {
        self.openai.wants_reasoning()
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
                ready: std::sync::Mutex::new(Some(running.ready.clone())),
                running: Mutex::new(State { running: Some(running), restarts: 0, broken: None }),
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
    /// Starts it, on another port where somebody else was faster.
    async fn start(settings: &Process, progress: &Progress) -> Result<Running, String> {
        let mut tries = 1;
        loop {
            let port = free_port().map_err(|error| format!("there is no free port: {error}"))?;
            let (words, log) = match Running::start_at(settings, progress, port).await {
                Ok(running) => return Ok(running),
                Err(NotReady { words, ended_with: Some(log) }) => (words, log),
                Err(NotReady { words, ended_with: None }) => return Err(words),
            };
            if tries == PORTS_MAX || !lost(port, &log) {
                return Err(words);
            }
            tries += 1;
            progress(format!("port {port} was taken by another program; trying another port"));
        }
    }

    async fn start_at(
        settings: &Process,
        progress: &Progress,
        port: u16,
    ) -> Result<Running, NotReady> {
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
            // First what answers, then whether it is ours: another program may have the port.
            let is_healthy = is_healthy(&client, &health).await;
            if let Some(status) = supervisor.ended() {
                let words = supervisor.words(&format!("it ended before it was ready ({status})"));
                let log = tail(&supervisor.log, supervisor.from).unwrap_or_default();
                return Err(NotReady { words, ended_with: Some(log) });
            }
            if is_healthy {
                break;
            }
            if start.elapsed() > settings.startup_timeout {
                let limit = humantime::format_duration(settings.startup_timeout);
                let what = format!("`{}` did not answer within {limit}", settings.health);
                return Err(supervisor.words(&what).into());
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

/// Why a server is not ready.
struct NotReady {
    words: String,
    /// The end of its log, where it ended by itself.
    ended_with: Option<String>,
}

impl From<String> for NotReady {
    fn from(words: String) -> Self {
        NotReady { words, ended_with: None }
    }
}

/// A port that nobody uses now. The server may lose it to another program before it listens, so it is not one of
/// those that the system hands out for connections (from 32768 on Linux, from 49152 elsewhere).
fn free_port() -> std::io::Result<u16> {
    let mut ports = std::iter::repeat_with(|| fastrand::u16(PORTS)).take(PORTS_ASKED);
    match ports.find(|port| bind(*port).is_ok()) {
        Some(port) => Ok(port),
        None => Ok(bind(0)?.local_addr()?.port()),
    }
}

fn bind(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", port))
}

/// Whether a server that has ended has lost its port to another program: that has it now, or the log says so.
fn lost(port: u16, log: &str) -> bool {
    let log = log.to_lowercase();
    let says = ["address already in use", "address in use", "couldn't bind"];
    bind(port).is_err() || says.iter().any(|words| log.contains(words))
}

async fn is_healthy(client: &reqwest::Client, url: &Url) -> bool {
    client.get(url.clone()).send().await.is_ok_and(|response| response.status().is_success())
}

struct State {
    running: Option<Running>,
    restarts: u32,
    /// Why it is of no use any more: whoever waited hears it at once.
    broken: Option<String>,
}

/// A server that is started again once, should it die.
struct Served {
    settings: Process,
    /// Who answers; nobody while it is started again. Not in `running`, which is locked as long as that takes.
    ready: std::sync::Mutex<Option<Arc<Ready>>>,
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
        if let Some(words) = &state.broken {
            return Err(EngineError::Broken(words.clone()));
        }
        let refused = self.refused.load(Ordering::Relaxed);
        let ended = match &mut state.running {
            Some(running) => {
                let within = if refused { DEATH_MAX } else { Duration::ZERO };
                match running.supervisor.ended_within(within).await {
                    None if !refused => return Ok(()),
                    None => {
                        running.supervisor.words("it listens on its port no more, though it runs")
                    }
                    Some(status) => running.supervisor.words(&format!("it ended ({status})")),
                }
            }
            // Who began to start it again was stopped.
            None => "it is not there".to_owned(),
        };
        if state.restarts > 0 {
            let words = format!("{ended}; it was started again once already");
            state.broken = Some(words.clone());
            return Err(EngineError::Broken(words));
        }
        *self.ready.lock().expect("BUG: the server lock is poisoned") = None;
        state.running = None;
        (self.progress)(format!("{ended}; starting it again"));
        let running = Running::start(&self.settings, &self.progress).await;
        state.restarts += 1;
        let running = running.map_err(|words| {
            state.broken = Some(words.clone());
            EngineError::Broken(words)
        })?;
        self.refused.store(false, Ordering::Relaxed);
        *self.ready.lock().expect("BUG: the server lock is poisoned") = Some(running.ready.clone());
        state.running = Some(running);
        Ok(())
    }

    fn ready(&self) -> Option<Arc<Ready>> {
        self.ready.lock().expect("BUG: the server lock is poisoned").clone()
    }
}

impl Engine for Served {
    fn complete<'a>(
        &'a self,
        request: &'a Request,
        first_token: Option<Duration>,
    ) -> BoxFuture<'a, Result<Reply, EngineError>> {
        async move {
            // Whoever comes while it is started again waits in `recover`, where no time-out runs.
            let away = |detail: String| {
                let mut trouble = Trouble::new("process", detail);
                (trouble.unsent, trouble.may_be_billed) = (true, false);
                Err(EngineError::Passing(trouble))
            };
            let Some(ready) = self.ready() else {
                return away("the server is started again".to_owned());
            };
            let reply = ready.complete(request, first_token).await;
            if let Err(EngineError::Passing(trouble)) = &reply
                && trouble.reason == REFUSED
            {
                // Of the server that runs now; one that was started since has refused nobody.
                if self.ready().is_some_and(|now| Arc::ptr_eq(&now, &ready)) {
                    self.refused.store(true, Ordering::Relaxed);
                }
                return away(trouble.detail.clone());
            }
            reply
        }
        .boxed()
    }

    fn recover(&self) -> BoxFuture<'_, Result<(), EngineError>> {
        self.revive().boxed()
    }

    fn prompt_tokens(&self, request: &Request) -> u64 {
        match self.ready() {
            Some(ready) => ready.prompt_tokens(request),
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

    /// How it ended, by now or before `patience` is over.
    async fn ended_within(&mut self, patience: Duration) -> Option<String> {
        let start = Instant::now();
        loop {
            let ended = self.ended();
            if ended.is_some() || start.elapsed() >= patience {
                return ended;
            }
            tokio::time::sleep(LOOK_EVERY).await;
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

impl Supervisor {
    /// Waits for its end.
    fn wait(&mut self) {
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

fn secrets(env: &BTreeMap<String, String>) -> Vec<String> {
    let is_secret = |name: &str| SECRET.iter().any(|end| name.to_uppercase().ends_with(end));
    let values = env.iter().filter(|(name, value)| is_secret(name) && value.len() >= SECRET_MIN);
    values.map(|(_, value)| value.clone()).collect()
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Its standard input closes: the sign to stop the server.
        drop(self.child.stdin.take());
        // It takes seconds, in which the other tasks of this thread move to another one.
        match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| self.wait()),
            _ => self.wait(),
        }
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
