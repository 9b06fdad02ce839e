//! A request becomes a completion. Knows nothing of methods or stages.
//!
//! An engine is a resource, not a value: its identity is known without loading it. It is loaded once per
//! identity, at the first miss; a run of hits never loads it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::digest::{Digest, Key, Recipe};
use crate::record::{Price, Timing, millis};
#[cfg(doc)]
use crate::sample::ResponseFormat;
use crate::sample::{Completion, Request, Sampling, ToolSpec, Usage};

mod attempts;
mod away;
mod budget;
mod client;
mod gate;
mod memory;
pub mod mistralrs;
pub mod openai;
pub mod process;
mod proof;
pub mod scripted;

use attempts::Gone;
pub use away::Away;
pub use budget::Budget;
pub(crate) use client::unix_ms;
pub use client::{Access, Answer, Client, Failure, Limits, Missing, Mode, Told};
pub use gate::{Gate, Rates};
pub use memory::{Memory, Models};

/// Why an engine gave no completion.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// It will say the same again: remembered.
    #[error("{code}: {detail}")]
    Rejected {
        /// `overflow`, `refused` or another short name.
        code: &'static str,
        /// The engine's words.
        detail: String,
    },
    /// It may work when tried again: never remembered.
    #[error("{}", .0.detail)]
    Passing(Trouble),
    /// Trying again is of no use, and yet it says nothing about the request: never remembered.
    #[error("{0}")]
    Broken(String),
    /// The engine answered, and its answer is of no use: that is `error`, and costs what an answer costs.
    #[error("{error}")]
    Billed {
        /// What is wrong with it.
        error: Box<EngineError>,
        /// Its tokens, as far as they are known.
        usage: Usage,
    },
}

/// A failure that may pass.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// What kind, in a word or two: `429`, `connect`, `time-out`.
    pub reason: String,
    /// What happened.
    pub detail: String,
    /// Whether the engine has too much to do, so that fewer should ask.
    pub overload: bool,
    /// How long the engine asks to wait.
    pub retry_after: Option<Duration>,
    /// Whether the provider may want money for it that is not `counted`: it began to answer, or nobody knows.
    pub may_be_billed: bool,
    /// Tokens that the provider has counted for it, in whatever it did send.
    pub counted: Option<Box<Usage>>,
    /// Whether nothing was sent, because the engine has to recover first: no attempt.
    pub unsent: bool,
}

impl Trouble {
    /// Of a kind, with what happened.
    pub fn new(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Trouble {
            reason: reason.into(),
            detail: detail.into(),
            overload: false,
            retry_after: None,
            may_be_billed: true,
            counted: None,
            unsent: false,
        }
    }

    /// Tokens that are billed for it in any case.
    fn usage(&self) -> Usage {
        self.counted.as_deref().copied().unwrap_or(Usage::ZERO)
    }

    /// The same with the tokens that were counted for it, and whether those are all of them. Half a count is none.
    fn counted(mut self, usage: Usage, is_all: bool) -> Self {
        if usage.input_tokens.is_some() && usage.output_tokens.is_some() {
            self.may_be_billed &= !is_all;
            self.counted = Some(usage.into());
        }
        self
    }
}

impl EngineError {
    /// A failure that may pass.
    pub fn passing(reason: &str, detail: impl Into<String>) -> Self {
        EngineError::Passing(Trouble::new(reason, detail))
    }

    /// The same about an answer that came, with its tokens.
    pub fn billed(self, usage: Usage) -> Self {
        match self {
            EngineError::Passing(trouble) => EngineError::Passing(trouble.counted(usage, true)),
            error @ EngineError::Billed { .. } => error,
            error => EngineError::Billed { error: Box::new(error), usage },
        }
    }

    /// The same about an answer that broke off, with the tokens that were counted until then: there may be more.
    pub fn so_far(self, usage: Option<Usage>) -> Self {
        match (self, usage) {
            (EngineError::Passing(trouble), Some(usage)) if trouble.counted.is_none() => {
                EngineError::Passing(trouble.counted(usage, false))
            }
            (error, _) => error,
        }
    }

    /// What is wrong, and the tokens that are billed for it.
    pub fn unbilled(self) -> (Self, Usage) {
        match self {
            EngineError::Billed { error, usage } => (*error, usage),
            error => (error, Usage::ZERO),
        }
    }
}

/// What an engine gives back.
#[derive(Debug)]
pub struct Reply {
    /// The answer.
    pub completion: Completion,
    /// When what came.
    pub stamps: Stamps,
    /// What the user should know, such as a setting that the server ignores.
    pub notices: Vec<String>,
}

/// Moments of one attempt, from one monotonic clock.
#[derive(Debug, Clone)]
pub struct Stamps {
    /// Sent.
    pub start: Instant,
    /// Time to make the connection, where a new one was needed.
    pub connect: Option<Duration>,
    /// First part of the reply; `None` without streaming.
    pub first: Option<Instant>,
    /// First part of the answer itself.
    pub first_answer: Option<Instant>,
    /// Last part of the reply.
    pub last: Instant,
    /// Nothing more to come.
    pub end: Instant,
    /// Parts of the reply.
    pub events: u32,
    /// Between them, in ms.
    pub gaps_ms: Vec<f32>,
}

impl Stamps {
    /// At the start of an attempt.
    pub fn start() -> Self {
        let now = Instant::now();
        Stamps {
            start: now,
            connect: None,
            first: None,
            first_answer: None,
            last: now,
            end: now,
            events: 0,
            gaps_ms: Vec::new(),
        }
    }

    /// A part of the reply came at `at`.
    pub fn event(&mut self, at: Instant, is_answer: bool) {
        match self.first {
            None => self.first = Some(at),
            Some(_) => self.gaps_ms.push((at - self.last).as_secs_f32() * 1000.0),
        }
        if is_answer && self.first_answer.is_none() {
            self.first_answer = Some(at);
        }
        self.last = at;
        self.events += 1;
    }

    /// Nothing more comes. Without parts the whole reply came now.
    pub fn finish(&mut self) {
        self.end = Instant::now();
        if self.first.is_none() {
            self.last = self.end;
        }
    }

    /// The same as durations; `anchor` is when the workflow began.
    pub fn timing(self, anchor: Instant) -> Timing {
        let since_start = |at: Instant| millis(at - self.start);
        Timing {
            start_ms: millis(self.start - anchor),
            connect_ms: self.connect.map(millis),
            ttft_ms: self.first.map(since_start),
            ttfa_ms: self.first_answer.map(since_start),
            e2e_ms: since_start(self.last),
            close_ms: since_start(self.end),
            events: self.events,
            gaps_ms: self.gaps_ms,
            lag_ms: 0.0,
        }
    }
}

/// An engine that is ready. Asked by at most as many at once as its [`Admission`] lets in.
pub trait Engine: Send + Sync {
    /// Answers a request. Without any part of the reply within `first_token` it is given up.
    fn complete<'a>(
        &'a self,
        request: &'a Request,
        first_token: Option<Duration>,
    ) -> BoxFuture<'a, Result<Reply, EngineError>>;

    /// Tokens of a request's prompt as they count for rates and budgets: at best exact, at worst the bytes
    /// over four.
    fn prompt_tokens(&self, request: &Request) -> u64 {
        let bytes: usize = request.messages.iter().map(|message| message.content.len()).sum();
        bytes as u64 / 4 + 4 * request.messages.len() as u64
    }

    /// Waits until it can be asked, however long that takes: a server that died is started again here.
    fn recover(&self) -> BoxFuture<'_, Result<(), EngineError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// What there is to say once it is ready, such as what a probe has found.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The most tokens that the prompt of a request can be: no tokenizer makes more of them than bytes.
pub fn prompt_ceiling(request: &Request) -> u64 {
    let said = request.messages.iter().map(|message| {
        let reasoning = message.reasoning.as_ref().map_or(0, String::len);
        let answers = message.tool_call_id.as_ref().map_or(0, String::len);
        let calls = message.tool_calls.iter().map(json_len).sum::<usize>();
        // With the frame of a turn.
        16 + message.content.len() + reasoning + answers + calls
    });
    said.sum::<usize>() as u64 + form_ceiling(&request.sampling, &request.tools)
}

/// The most that the form of the reply and the tools take of that.
pub fn form_ceiling(sampling: &Sampling, tools: &[ToolSpec]) -> u64 {
    let form = sampling.response_format.as_ref().map_or(0, json_len);
    let tools = tools.iter().map(|tool| 64 + json_len(tool));
    (form + tools.sum::<usize>()) as u64
}

fn json_len(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |json| json.len())
}

/// How many requests an engine gets at once, and why not more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// `None` is as many as the workflow's concurrency.
    pub width: Option<u32>,
    /// For plan and report.
    pub reason: String,
    /// Whether fewer are let in when the engine says that it has too much.
    pub adaptive: bool,
    /// Bounds on the rate.
    pub rates: Rates,
}

impl Admission {
    /// A fixed number at once.
    pub fn fixed(width: Option<u32>, reason: impl Into<String>) -> Self {
        Admission { width, reason: reason.into(), adaptive: false, rates: Rates::default() }
    }
}

/// A way to get an engine: its settings, before it is loaded.
pub trait Backend: Send + Sync {
    /// Its name in manifests.
    fn name(&self) -> &'static str;
    /// For people: model, format, precision.
    fn describe(&self) -> BTreeMap<String, Value>;
    /// How many at once.
    fn admission(&self) -> Admission;
    /// Instances that loading makes.
    fn instances(&self) -> u32 {
        1
    }
    /// Whether a reply ends at the `max_tokens` of its request, so that there is a most that it can cost.
    fn bounds_replies(&self) -> bool {
        true
    }

    /// Bytes of memory that loading takes, about; 0 for what is not in this process.
    fn memory(&self) -> u64 {
        0
    }
    /// What its tokens cost; `None` where nobody said.
    fn price(&self) -> Option<Price> {
        None
    }
    /// Whether it answers requests for embeddings.
    fn embeds(&self) -> bool {
        false
    }
    /// Whether its tokens cost money that a budget has to hold, even if the price is unknown.
    fn is_paid(&self) -> bool {
        false
    }
    /// Whether it goes on with an assistant's turn at the end of a request; an error says why not.
    fn continues(&self) -> Result<(), String> {
        Err("it begins a turn of its own".to_owned())
    }
    /// Whether it gives the log-probabilities of what might follow a prompt ([`ResponseFormat::Likelihood`]); an
    /// error says why not.
    fn likelihoods(&self) -> Result<(), String> {
        Err("it gives no log-probabilities of prompts".to_owned())
    }
    /// Somebody will ask for those: whether a server has them is to be found out while it is loaded.
    fn expect_likelihoods(&self) {}
    /// What it has to be asked before anything else, and is paid for: whether it can do what was expected.
    fn proof(&self) -> Option<Request> {
        None
    }
    /// Whether messages get the model's chat format on their way.
    fn formats_chat(&self) -> bool {
        true
    }
    /// Whether the model is in this process.
    fn is_local(&self) -> bool {
        false
    }
    /// Whether it wants back what it thought before it called tools.
    fn wants_reasoning(&self) -> bool {
        false
    }
    /// Makes the engine. Called once for an identity.
    fn load(&self, progress: Progress) -> BoxFuture<'_, Result<Box<dyn Engine>, String>>;
}

/// Hears how far loading is, when that takes a while.
pub type Progress = Arc<dyn Fn(String) + Send + Sync>;

/// An engine by its identity, loaded when first needed.
pub struct Resource {
    /// Name of the stage that declares it.
    pub stage: String,
    /// What it is: everything that decides its answers.
    pub recipe: Recipe,
    /// Digest of that.
    pub identity: Digest,
    /// How to get it.
    pub backend: Box<dyn Backend>,
    /// Who may ask, and when.
    pub gate: Arc<Gate>,
    /// Where it is when it is loaded. One that nobody uses may be let go, and is loaded again.
    slot: Arc<memory::Slot>,
    /// Held while loading; why that failed, if it did.
    loading: tokio::sync::Mutex<Option<String>>,
    /// One lock for each request being asked, by whichever workflow: the second who wants the same waits,
    /// and then finds it answered.
    flights: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
    /// Requests asked although they were remembered, and the run that did: there the new answers count.
    renewed: Mutex<HashMap<Key, Arc<str>>>,
    on_load: Mutex<Vec<OnLoad>>,
    progress: Mutex<Option<Progress>>,
}

/// Gets the milliseconds of loading, and what there is to say.
type OnLoad = Box<dyn FnOnce(f64, Vec<String>) + Send>;

impl Resource {
    /// An engine that is not loaded yet.
    pub fn new(stage: &str, recipe: Recipe, backend: Box<dyn Backend>) -> Self {
        let admission = backend.admission();
        Resource {
            stage: stage.to_owned(),
            identity: Digest::of(recipe.key().bytes()),
            recipe,
            backend,
            gate: Gate::new(admission.width, admission.adaptive, admission.rates),
            slot: Arc::default(),
            loading: tokio::sync::Mutex::default(),
            flights: Mutex::default(),
            renewed: Mutex::default(),
            on_load: Mutex::new(Vec::new()),
            progress: Mutex::new(None),
        }
    }

    /// What its tokens cost, where they cost money at all; `None` in there where nobody has said how much.
    pub fn tariff(&self) -> Option<Option<Price>> {
        let price = self.backend.price();
        (price.is_some() || self.backend.is_paid()).then_some(price)
    }

    /// Calls `then` with the milliseconds it took and what there is to say, once the engine is loaded.
    pub fn on_load(&self, then: impl FnOnce(f64, Vec<String>) + Send + 'static) {
        self.on_load.lock().expect("BUG: the load lock is poisoned").push(Box::new(then));
    }

    fn progress(&self) -> Progress {
        let progress = self.progress.lock().expect("BUG: the load lock is poisoned").clone();
        progress.unwrap_or_else(|| Arc::new(|_| {}))
    }

    /// Calls `progress` while the engine is being loaded.
    pub fn on_progress(&self, progress: Progress) {
        *self.progress.lock().expect("BUG: the load lock is poisoned") = Some(progress);
    }

    /// The lock of a request.
    fn flight(&self, key: Key) -> Arc<tokio::sync::Mutex<()>> {
        self.flights
            .lock()
            .expect("BUG: the flight lock is poisoned")
            .entry(key)
            .or_default()
            .clone()
    }

    /// Whether a run has asked for a request anew already. Of several runs that share an engine the last one is
    /// known, and another may ask once more.
    fn is_renewed(&self, key: Key, run: &str) -> bool {
        let renewed = self.renewed.lock().expect("BUG: the renewal lock is poisoned");
        renewed.get(&key).is_some_and(|by| **by == *run)
    }

    fn renew(&self, key: Key, run: &Arc<str>) {
        let mut renewed = self.renewed.lock().expect("BUG: the renewal lock is poisoned");
        renewed.insert(key, run.clone());
    }

    /// Gives a lock back.
    fn landed(&self, key: Key, flight: &Arc<tokio::sync::Mutex<()>>) {
        let mut flights = self.flights.lock().expect("BUG: the flight lock is poisoned");
        // Two holders: the table and the caller. Whoever waits holds a third, and gives it back later.
        if Arc::strong_count(flight) <= 2 {
            flights.remove(&key);
        }
    }

    /// The engine, loaded by the first who asks. One that cannot be loaded is not tried again in this run.
    async fn engine(&self, door: &Client) -> Result<Arc<dyn Engine>, Gone> {
        if let Some(engine) = self.slot.engine() {
            return Ok(engine);
        }
        let _waiting = door.access.away.wait();
        let mut failed = door.unless_stopped(self.loading.lock()).await?;
        if let Some(engine) = self.slot.engine() {
            return Ok(engine);
        }
        if let Some(error) = &*failed {
            return Err(Gone::Engine(error.clone()));
        }
        let proved = match door.unless_stopped(self.load()).await {
            // What is on its way is paid for, and waited for.
            Ok(Ok((engine, init_ms))) => door.prove(&*engine).await.map(|()| (engine, init_ms)),
            Ok(Err(error)) => Err(Gone::Engine(error)),
            Err(stopped) => Err(stopped.into()),
        };
        match proved {
            Ok((engine, init_ms)) => {
                self.slot.fill(engine.clone());
                let mut waiting = self.on_load.lock().expect("BUG: the load lock is poisoned");
                let waiting = std::mem::take(&mut *waiting);
                waiting.into_iter().for_each(|then| then(init_ms, engine.notices()));
                Ok(engine)
            }
            Err(gone) => {
                if let Gone::Engine(error) = &gone {
                    *failed = Some(error.clone());
                }
                Err(gone)
            }
        }
    }

    /// Loads it, with how many milliseconds that took.
    async fn load(&self) -> Result<(Arc<dyn Engine>, f64), String> {
        let start = Instant::now();
        let engine = self.backend.load(self.progress()).await?;
        Ok((Arc::from(engine), millis(start.elapsed())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Replica;
    use crate::sample::{Message, Role, Sampling};

    #[test]
    fn all_that_is_sent_counts_for_the_most_that_a_prompt_can_be() {
        let request = |message: Message| Request {
            messages: vec![message],
            sampling: Sampling::default(),
            tools: Vec::new(),
            replica: Replica { epoch: 0, occurrence: 0 },
        };
        let said = Message::new(Role::Assistant, "x".repeat(100));
        let plain = prompt_ceiling(&request(said.clone()));
        assert!(plain >= 100);
        let thought = Message { reasoning: Some("y".repeat(5000)), ..said.clone() };
        assert_eq!(prompt_ceiling(&request(thought)), plain + 5000);
        let answers = Message { tool_call_id: Some("call-1".to_owned()), ..said };
        assert_eq!(prompt_ceiling(&request(answers)), plain + 6);
    }
}
