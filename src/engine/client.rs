//! The one door to an engine: memo, single flight, permit, ask, remember. Knows nothing of methods.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cached::Cached;
use cached::stores::LruCache;
use tokio_util::sync::CancellationToken;

use super::attempts::{Answered, Asking, Gone};
use super::{Away, Budget, Models, Resource};
use crate::digest::{Digest, Key, Recipe};
use crate::record::{Phase, PhasesMs, RequestObserved, Retry, ServedFrom, millis, worth};
use crate::sample::{Completion, Request, Sampling, ToolSpec, Usage};
use crate::store::{Outcome, Port, Record, Store, StoreError, Witness, json_bytes};

/// Version of what a request's key means.
const REV: u32 = 1;
/// Whether the engine may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Ask for what the store does not have.
    Live,
    /// The same, but samples are worked out again from their requests, so that each request is looked up, timed
    /// and counted.
    Through,
    /// Ask even for what it has, and let the new answers count.
    Afresh,
    /// Never ask: a miss is [`Failure::Missing`].
    Frozen,
    /// Never ask, and work samples out again from the requests that are remembered.
    Replay,
}

/// Bounds on asking: execution settings, in no key.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Further attempts after one that failed for a passing reason.
    pub max_retries: u32,
    /// Longest time to the first part of a reply, where replies are streamed.
    pub first_token_timeout: Option<Duration>,
    /// Longest time of one attempt.
    pub attempt_timeout: Duration,
    /// Longest time of all attempts and the pauses between them.
    pub timeout: Option<Duration>,
}

/// What a door tells while requests are under way.
#[derive(Debug, Clone)]
pub enum Told {
    /// An attempt failed, and there will be another one.
    Retry {
        /// Of which request.
        key: Key,
        /// The attempt that failed, from 1.
        attempt: u32,
        /// What happened, and how long is waited now.
        retry: Retry,
    },
    /// Something was asked to find out whether an engine can do what is wanted, before anything else.
    Proved {
        /// The stage of the engine.
        engine: String,
        /// Tokens, as far as they are known.
        usage: Usage,
        /// Whether somebody has said what they cost.
        priced: bool,
        /// Dollars for them, where they are known.
        cost: Option<f64>,
        /// Whether there may be more.
        at_least: bool,
    },
    /// A request was given up between two attempts.
    GivenUp {
        /// Tokens that were counted for the attempts that failed.
        output_tokens: Option<u64>,
        /// Dollars for them; `None` where nobody has said what tokens cost.
        cost: Option<f64>,
        /// Whether there may be more.
        at_least: bool,
    },
    /// Something the user should know.
    Notice(String),
    /// How far something is that takes its time.
    Progress(String),
}

/// Who asks, and how.
#[derive(Clone)]
pub struct Access {
    /// ULID of the run.
    pub run: String,
    /// ULIDs of runs that this one goes on from. Where everything is asked afresh, what they were answered counts.
    pub goes_on: Arc<BTreeSet<String>>,
    /// Whether the engine may be asked.
    pub mode: Mode,
    /// Bounds on asking.
    pub limits: Limits,
    /// Answers in the memory cache.
    pub memory_max: usize,
    /// Stops admission; what is under way goes on.
    pub stop: CancellationToken,
    /// What the run may spend.
    pub budget: Option<Arc<Budget>>,
    /// When an engine could not be asked, of all doors that share it.
    pub away: Arc<Away>,
    /// Those that are loaded into this process, of all doors that share it.
    pub models: Arc<Models>,
    /// Hears what happens.
    pub tell: Arc<dyn Fn(Told) + Send + Sync>,
}

/// What came of a request that ended for good.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The completion, or the code and words of a refusal.
    pub completion: Result<Completion, (String, String)>,
    /// Where it came from and how long it took.
    pub observed: RequestObserved,
}

/// Why there is no answer. None of these is remembered.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The engine failed after all attempts.
    #[error("{}{}", .0.detail, attempts_text(.0.observed.attempts))]
    Engine(Box<Failed>),
    /// The store does not have it, and the engine may not be asked.
    #[error("the store has no answer for request {} of the sample ({})", .0.before.len() + 1, .0.recipe.key().short())]
    Missing(Box<Missing>),
    /// The run was interrupted before the engine was asked.
    #[error("interrupted before the request was sent")]
    Cancelled,
    /// The budget does not allow it.
    #[error(
        "the budget of ${limit:.2} is used up: ${spent:.4} spent{}, and the next request may cost ${ceiling:.4}",
        unsure_text(*.unsure)
    )]
    Budget {
        /// The bound, in dollars.
        limit: f64,
        /// Spent so far.
        spent: f64,
        /// Of that, the most that attempts can have cost of which nobody knows it.
        unsure: f64,
        /// What the request may cost at most.
        ceiling: f64,
    },
    /// What the user has asked for cannot be done.
    #[error("{0}")]
    User(String),
    /// The answer could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A request that failed for good.
#[derive(Debug)]
pub struct Failed {
    /// The engine's last words.
    pub detail: String,
    /// What was observed of it.
    pub observed: RequestObserved,
}

/// A request that the store has no answer for.
#[derive(Debug, Clone)]
pub struct Missing {
    /// What it depends on.
    pub recipe: Recipe,
    /// Keys of the requests of its sample that were answered before it.
    pub before: Vec<Key>,
}

fn attempts_text(attempts: u32) -> String {
    if attempts > 1 { format!(" (after {attempts} attempts)") } else { String::new() }
}

fn unsure_text(unsure: f64) -> String {
    match unsure > 0.0 {
        true => format!(", of which up to ${unsure:.4} for attempts whose cost nobody knows"),
        false => String::new(),
    }
}

type Remembered = Arc<Known>;

/// What an engine has said for good.
struct Known {
    completion: Result<Completion, (String, String)>,
    usage: Usage,
    live_ms: f64,
}

/// What the recipes of equal settings share.
struct Shared {
    sampling: Sampling,
    tools: Vec<ToolSpec>,
    recipe: Recipe,
}

fn shared_recipe(engine: Digest, sampling: &Sampling, tools: &[ToolSpec]) -> Recipe {
    let recipe = sampling.describe(Recipe::new("request", REV)).input("engine", engine);
    match tools.is_empty() {
        true => recipe,
        false => recipe.input("tools", Digest::of_json(&tools)),
    }
}

fn of_request(shared: Recipe, request: &Request) -> Recipe {
    shared.input("messages", Digest::of_json(&request.messages)).replica(request.replica)
}

/// The door for one workflow.
pub struct Client {
    pub(super) engine: Arc<Resource>,
    store: Arc<Store>,
    pub(super) access: Access,
    /// ULID of the run, shared by what it renews.
    run: Arc<str>,
    /// Zero of all its times.
    pub(super) anchor: Instant,
    memory: Mutex<LruCache<Key, Remembered>>,
    shared: Mutex<Option<Shared>>,
}

impl Client {
    /// A door to `engine`.
    pub fn new(engine: Arc<Resource>, store: Arc<Store>, access: Access) -> Self {
        let memory = Mutex::new(LruCache::new(access.memory_max));
        access.models.add(&engine.slot, engine.backend.memory());
        let (anchor, shared) = (Instant::now(), Mutex::default());
        let run = access.run.as_str().into();
        Client { engine, store, access, run, anchor, memory, shared }
    }

    /// The stage of the engine.
    pub fn name(&self) -> &str {
        &self.engine.stage
    }

    /// Whether the store may answer, and whether the engine may be asked.
    pub fn mode(&self) -> Mode {
        self.access.mode
    }

    /// ULID of the run.
    pub fn run(&self) -> &str {
        &self.access.run
    }

    /// Where answers are kept.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Says how far something is that takes its time.
    pub fn progress(&self, message: String) {
        self.tell(Told::Progress(message));
    }

    /// Whether the engine goes on with a turn that was begun for it; an error says why not, and what to do.
    pub fn continues(&self) -> Result<(), String> {
        self.engine.backend.continues().map_err(|why| {
            format!("the engine `{}` cannot go on with a prefilled reply: {why}", self.engine.stage)
        })
    }

    /// What its engine has to be asked before anything else.
    pub fn proof(&self) -> Option<Request> {
        self.engine.backend.proof()
    }

    /// Whether messages get the model's chat format on their way.
    pub fn formats_chat(&self) -> bool {
        self.engine.backend.formats_chat()
    }

    /// Whether the engine wants back what it thought before it called tools.
    pub fn wants_reasoning(&self) -> bool {
        self.engine.backend.wants_reasoning()
    }

    /// Entries in the memory cache, and its bound.
    pub fn memory(&self) -> (u64, u64) {
        let memory = self.memory.lock().expect("BUG: the memory lock is poisoned");
        (memory.cache_size() as u64, self.access.memory_max as u64)
    }

    /// What a request depends on. The messages stand as their digest: the sample keeps their text.
    pub fn recipe(engine: Digest, request: &Request) -> Recipe {
        of_request(shared_recipe(engine, &request.sampling, &request.tools), request)
    }

    /// The same of a request to this engine. Most follow one that differs in nothing but its messages.
    fn recipe_of(&self, request: &Request) -> Recipe {
        let mut shared = self.shared.lock().expect("BUG: the recipe lock is poisoned");
        let is_same =
            |shared: &&Shared| shared.sampling == request.sampling && shared.tools == request.tools;
        let recipe = match shared.as_ref().filter(is_same) {
            Some(shared) => shared.recipe.clone(),
            None => {
                let (sampling, tools) = (request.sampling.clone(), request.tools.clone());
                let recipe = shared_recipe(self.engine.identity, &sampling, &tools);
                *shared = Some(Shared { sampling, tools, recipe: recipe.clone() });
                recipe
            }
        };
        drop(shared);
        of_request(recipe, request)
    }

    /// The answer to a request, from wherever it is nearest.
    pub async fn complete(&self, request: &Request) -> Result<Answer, Failure> {
        let mut phases_ms = PhasesMs::new();
        let start = Instant::now();
        let recipe = self.recipe_of(request);
        let key = recipe.key();
        phases_ms.insert(Phase::PromptBuild, ms(start));

        let start = Instant::now();
        let found = self.recall(key).await;
        phases_ms.insert(Phase::CacheLookup, ms(start));
        if let Some((remembered, served_from)) = found {
            return Ok(answer(key, &remembered, served_from, phases_ms, 0));
        }
        if matches!(self.access.mode, Mode::Frozen | Mode::Replay) {
            return Err(Failure::Missing(Missing { recipe, before: Vec::new() }.into()));
        }

        let start = Instant::now();
        // Before anything that others wait for.
        self.hold_models().await?;
        let flight = self.engine.flight(key);
        let waited = flight.try_lock().is_err();
        let result = {
            let _turn = flight.lock().await;
            // Another may have asked the same since the look-up: then it is in the store or in memory.
            match self.recall_here(key) {
                Some((remembered, served_from)) => {
                    phases_ms.insert(Phase::Queue, ms(start));
                    let served_from = if waited { ServedFrom::Coalesced } else { served_from };
                    Ok(answer(key, &remembered, served_from, phases_ms, 0))
                }
                None => self.ask(recipe, key, request, phases_ms, start).await,
            }
        };
        self.engine.landed(key, &flight);
        result
    }

    /// Waits until all models of the workflow may be in memory, should this be one of them.
    async fn hold_models(&self) -> Result<(), Failure> {
        let models = &self.access.models;
        if models.are_held() || self.engine.backend.memory() == 0 {
            return Ok(());
        }
        let _waiting = self.access.away.wait();
        let progress = self.engine.progress();
        let waits = || progress("waiting for the memory of another engine".to_owned());
        self.unless_stopped(models.hold(waits)).await
    }

    fn in_memory(&self, key: Key) -> Option<Remembered> {
        self.memory.lock().expect("BUG: the memory lock is poisoned").cache_get(&key).cloned()
    }

    /// Whether a remembered answer may be taken.
    fn may_recall(&self, key: Key) -> bool {
        let access = &self.access;
        let goes_on = |record: Record| access.goes_on.contains(&record.witness.run);
        access.mode != Mode::Afresh
            || self.engine.is_renewed(key, &access.run)
            || (!access.goes_on.is_empty() && self.store.get(key).is_some_and(goes_on))
    }

    async fn recall(&self, key: Key) -> Option<(Remembered, ServedFrom)> {
        if !self.may_recall(key) {
            return None;
        }
        if let Some(found) = self.in_memory(key) {
            return Some((found, ServedFrom::Memory));
        }
        let (record, tier) = self.store.find(key).await?;
        Some((self.keep(key, &record)?, tier.into()))
    }

    /// The same, without the shared store.
    fn recall_here(&self, key: Key) -> Option<(Remembered, ServedFrom)> {
        if !self.may_recall(key) {
            return None;
        }
        if let Some(found) = self.in_memory(key) {
            return Some((found, ServedFrom::Memory));
        }
        Some((self.keep(key, &self.store.get(key)?)?, ServedFrom::Disk))
    }

    /// Puts a record of the store into memory; `None` if it is no answer.
    fn keep(&self, key: Key, record: &Record) -> Option<Remembered> {
        let completion = match &record.outcome {
            Outcome::Rejected { code, detail } => Err((code.clone(), detail.clone())),
            Outcome::Value(_) => {
                Ok(serde_json::from_value(record.inline("completion")?.clone()).ok()?)
            }
        };
        let live_ms = record.witness.phases_ms.get(Phase::ApiCall).unwrap_or(0.0);
        // A refusal has the tokens that were billed for it.
        let usage = completion.as_ref().map_or(record.witness.usage, |c: &Completion| c.usage);
        Some(self.hold(key, Arc::new(Known { completion, usage, live_ms })))
    }

    /// Puts an answer into memory.
    fn hold(&self, key: Key, remembered: Remembered) -> Remembered {
        let mut memory = self.memory.lock().expect("BUG: the memory lock is poisoned");
        memory.cache_set(key, remembered.clone());
        remembered
    }

    async fn ask(
        &self,
        recipe: Recipe,
        key: Key,
        request: &Request,
        mut phases_ms: PhasesMs,
        queued: Instant,
    ) -> Result<Answer, Failure> {
        let mut asking = Asking::new(self, key, request);
        let answered = asking.ask().await;
        let Asking { attempts, retries, retry_ms, billed, unknown_attempts, failed_usage, .. } =
            asking;
        let failed_usage = (failed_usage != Usage::ZERO).then_some(failed_usage);
        if retry_ms > 0.0 {
            phases_ms.insert(Phase::Retry, retry_ms);
        }
        let failed = |usage, detail, phases_ms, retries| {
            let observed = RequestObserved {
                key,
                served_from: ServedFrom::Live,
                phases_ms,
                live_ms: None,
                usage,
                attempts,
                unknown_attempts,
                failed_usage,
                retries,
                timing: None,
            };
            Failure::Engine(Box::new(Failed { detail, observed }))
        };
        let Answered { outcome, usage, timing } = match answered {
            Ok(answered) => answered,
            Err(Gone::Engine(detail)) => {
                phases_ms.insert(Phase::Queue, (ms(queued) - retry_ms).max(0.0));
                return Err(failed(billed, detail, phases_ms, retries));
            }
            Err(Gone::Other(failure)) => {
                if failed_usage.is_some() || unknown_attempts > 0 {
                    self.tell_given_up(failed_usage.unwrap_or(Usage::ZERO), unknown_attempts);
                }
                return Err(failure);
            }
        };
        phases_ms.insert(Phase::ApiCall, timing.close_ms);
        // All that was neither the attempt that counts nor one that failed was spent waiting.
        let waited = ms(queued) - retry_ms - timing.close_ms;
        phases_ms.insert(Phase::Queue, waited.max(0.0));
        let kept = match &outcome {
            Ok(completion) => {
                let port = Port::Written(json_bytes(completion));
                Outcome::Value([("completion".to_owned(), port)].into())
            }
            Err((code, detail)) => Outcome::Rejected { code: code.clone(), detail: detail.clone() },
        };
        let seen = |retries| serde_json::json!({ "retries": retries });
        let witness = Witness {
            run: self.access.run.clone(),
            tool: env!("CARGO_PKG_VERSION").into(),
            started_unix_ms: unix_ms().saturating_sub(timing.close_ms as u64),
            phases_ms,
            usage,
            attempts,
            // The rest of what was observed is kept with the sample.
            observed: (!retries.is_empty()).then(|| seen(&retries)),
            written: None,
        };
        // Kept before anyone sees it: a crash after this line costs nothing that was paid for.
        let record = Record { recipe, outcome: kept, witness };
        let published = self.store.publish(key, record, self.access.mode == Mode::Afresh).await;
        let record = published.inspect_err(|_| {
            // Nobody gets it, and it is paid for all the same.
            let all = usage.plus(failed_usage.unwrap_or(Usage::ZERO));
            self.tell_given_up(all, unknown_attempts);
        })?;
        if self.access.mode == Mode::Afresh {
            self.engine.renew(key, &self.run);
        }
        // Of two that were made at once the first counts. Of one run there is one, which need not be read back.
        let known = Known { completion: outcome, usage, live_ms: timing.close_ms };
        let is_own = record.witness.run == self.access.run;
        let own = is_own.then(|| self.hold(key, Arc::new(known)));
        let Some(remembered) = own.or_else(|| self.keep(key, &record)) else {
            let detail = "the store holds something else under the key of this request";
            return Err(failed(usage, detail.to_owned(), phases_ms, retries));
        };
        let mut answer = answer(key, &remembered, ServedFrom::Live, phases_ms, attempts);
        answer.observed.retries = retries;
        answer.observed.unknown_attempts = unknown_attempts;
        answer.observed.failed_usage = failed_usage;
        // A refusal says nothing about speed.
        answer.observed.timing = answer.completion.is_ok().then_some(timing);
        Ok(answer)
    }

    /// Tells what a request has cost that nobody gets an answer of, where that costs money.
    fn tell_given_up(&self, usage: Usage, unknown_attempts: u32) {
        let Some(price) = self.engine.tariff() else { return };
        let known = worth(price.as_ref(), &usage);
        self.tell(Told::GivenUp {
            output_tokens: usage.output_tokens,
            cost: price.map(|_| known.unwrap_or(0.0)),
            at_least: known.is_none() || unknown_attempts > 0,
        });
    }

    pub(super) fn tell(&self, told: Told) {
        (self.access.tell)(told);
    }
}

fn answer(
    key: Key,
    remembered: &Remembered,
    served_from: ServedFrom,
    phases_ms: PhasesMs,
    attempts: u32,
) -> Answer {
    let Known { completion, usage, live_ms } = remembered.as_ref();
    Answer {
        completion: completion.clone(),
        observed: RequestObserved {
            key,
            served_from,
            phases_ms,
            live_ms: Some(*live_ms),
            usage: *usage,
            attempts,
            unknown_attempts: 0,
            failed_usage: None,
            retries: Vec::new(),
            timing: None,
        },
    }
}

pub(super) fn ms(start: Instant) -> f64 {
    millis(start.elapsed())
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
