//! The one door to an engine: memo, single flight, permit, ask, remember. Knows nothing of methods.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cached::Cached;
use cached::stores::LruCache;
use tokio_util::sync::CancellationToken;

use super::{EngineError, Resource};
use crate::digest::{Digest, Key, Recipe};
use crate::record::{Phase, PhasesMs, RequestObserved, ServedFrom};
use crate::sample::{Completion, Request, Usage};
use crate::store::{Outcome, Port, Record, Store, StoreError, Witness};

/// Version of what a request's key means.
const REV: u32 = 1;
/// First pause before another attempt; doubled each time.
const BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Whether the engine may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Ask for what the store does not have.
    Live,
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
    /// Longest time of one attempt.
    pub attempt_timeout: Duration,
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
    #[error("{detail}{}", attempts_text(*.attempts))]
    Engine {
        /// Its last words.
        detail: String,
        /// How often it was asked.
        attempts: u32,
    },
    /// The store does not have it, and the engine may not be asked.
    #[error("the store has no answer for request {} of the sample ({})", .0.before.len() + 1, .0.recipe.key().short())]
    Missing(Box<Missing>),
    /// The run was interrupted before the engine was asked.
    #[error("interrupted before the request was sent")]
    Cancelled,
    /// The answer could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
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

type Remembered = Arc<(Result<Completion, (String, String)>, f64)>;

/// The door for one workflow.
pub struct Client {
    engine: Arc<Resource>,
    store: Arc<Store>,
    run: String,
    mode: Mode,
    limits: Limits,
    /// Stops admission; what is under way goes on.
    stop: CancellationToken,
    memory: Mutex<LruCache<Key, Remembered>>,
    memory_max: usize,
}

impl Client {
    /// A door to `engine` with a memory cache of `memory_max` answers.
    pub fn new(
        engine: Arc<Resource>,
        store: Arc<Store>,
        run: &str,
        mode: Mode,
        limits: Limits,
        memory_max: usize,
        stop: CancellationToken,
    ) -> Self {
        Client {
            engine,
            store,
            run: run.to_owned(),
            mode,
            limits,
            stop,
            memory: Mutex::new(LruCache::new(memory_max)),
            memory_max,
        }
    }

    /// Entries in the memory cache, and its bound.
    pub fn memory(&self) -> (u64, u64) {
        let memory = self.memory.lock().expect("BUG: the memory lock is poisoned");
        (memory.cache_size() as u64, self.memory_max as u64)
    }

    /// What a request depends on. The messages stand as their digest: the sample keeps their text.
    pub fn recipe(engine: Digest, request: &Request) -> Recipe {
        let sampling = &request.sampling;
        Recipe::new("request", REV)
            .input("engine", engine)
            .input("messages", Digest::of_json(&request.messages))
            .field("temperature", sampling.temperature)
            .field("top_p", sampling.top_p)
            .field("top_k", sampling.top_k)
            .field("max_tokens", sampling.max_tokens)
            .field("stop", sampling.stop.clone())
            .field("seed", sampling.seed)
            .replica(request.replica)
    }

    /// The answer to a request, from wherever it is nearest.
    pub async fn complete(&self, request: &Request) -> Result<Answer, Failure> {
        let mut phases_ms = PhasesMs::new();
        let start = Instant::now();
        let recipe = Self::recipe(self.engine.identity, request);
        let key = recipe.key();
        phases_ms.insert(Phase::PromptBuild, ms(start));

        let start = Instant::now();
        let found = self.recall(key).await;
        phases_ms.insert(Phase::CacheLookup, ms(start));
        if let Some((remembered, served_from)) = found {
            return Ok(answer(key, &remembered, served_from, phases_ms, 0));
        }
        if matches!(self.mode, Mode::Frozen | Mode::Replay) {
            return Err(Failure::Missing(Missing { recipe, before: Vec::new() }.into()));
        }

        let start = Instant::now();
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

    fn in_memory(&self, key: Key) -> Option<Remembered> {
        self.memory.lock().expect("BUG: the memory lock is poisoned").cache_get(&key).cloned()
    }

    async fn recall(&self, key: Key) -> Option<(Remembered, ServedFrom)> {
        if self.mode == Mode::Afresh && !self.engine.is_renewed(key) {
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
        if self.mode == Mode::Afresh && !self.engine.is_renewed(key) {
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
        let live_ms = record.witness.phases_ms.get(&Phase::ApiCall).copied().unwrap_or(0.0);
        let remembered: Remembered = Arc::new((completion, live_ms));
        let mut memory = self.memory.lock().expect("BUG: the memory lock is poisoned");
        memory.cache_set(key, remembered.clone());
        Some(remembered)
    }

    async fn ask(
        &self,
        recipe: Recipe,
        key: Key,
        request: &Request,
        mut phases_ms: PhasesMs,
        queued: Instant,
    ) -> Result<Answer, Failure> {
        // First come, first served: the semaphore is fair.
        let permit = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Failure::Cancelled),
            permit = self.engine.permits.acquire() => permit,
        };
        let permit = permit.expect("BUG: the permits of an engine are never closed");
        let engine = tokio::select! {
            engine = self.engine.engine() => engine,
            () = self.stop.cancelled() => return Err(Failure::Cancelled),
        };
        let engine = engine.map_err(|detail| Failure::Engine { detail, attempts: 0 })?;
        if self.stop.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        phases_ms.insert(Phase::Queue, ms(queued));

        let mut attempts = 0;
        let mut pause = BACKOFF;
        let (outcome, usage) = loop {
            attempts += 1;
            let start = Instant::now();
            let reply =
                tokio::time::timeout(self.limits.attempt_timeout, engine.complete(request)).await;
            phases_ms.insert(Phase::ApiCall, ms(start));
            let detail = match reply {
                Ok(Ok(completion)) => {
                    let usage = completion.usage;
                    let value =
                        serde_json::to_value(&completion).expect("BUG: a completion is plain data");
                    let ports = [("completion".to_owned(), Port::Inline(value))];
                    break (Outcome::Value(ports.into()), usage);
                }
                Ok(Err(EngineError::Rejected { code, detail })) => {
                    break (Outcome::Rejected { code: code.to_owned(), detail }, Usage::default());
                }
                Ok(Err(EngineError::Broken(detail))) => {
                    return Err(Failure::Engine { detail, attempts });
                }
                Ok(Err(EngineError::Passing(detail))) => detail,
                Err(_) => format!(
                    "no answer within {}",
                    humantime::format_duration(self.limits.attempt_timeout)
                ),
            };
            if self.stop.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            if attempts > self.limits.max_retries {
                return Err(Failure::Engine { detail, attempts });
            }
            tokio::select! {
                () = self.stop.cancelled() => return Err(Failure::Cancelled),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        };
        let witness = Witness {
            run: self.run.clone(),
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: unix_ms().saturating_sub(phases_ms[&Phase::ApiCall] as u64),
            phases_ms: phases_ms.clone(),
            usage,
            attempts,
            observed: None,
        };
        // The engine is free for the next while this one is kept.
        drop(permit);
        // Kept before anyone sees it: a crash after this line costs nothing that was paid for.
        let record = Record { recipe, outcome, witness };
        let record = self.store.publish(record, self.mode == Mode::Afresh).await?;
        if self.mode == Mode::Afresh {
            self.engine.renew(key);
        }
        let remembered = self.keep(key, &record).ok_or_else(|| Failure::Engine {
            detail: "the store holds something else under the key of this request".to_owned(),
            attempts,
        })?;
        Ok(answer(key, &remembered, ServedFrom::Live, phases_ms, attempts))
    }
}

fn answer(
    key: Key,
    remembered: &Remembered,
    served_from: ServedFrom,
    phases_ms: PhasesMs,
    attempts: u32,
) -> Answer {
    let (completion, live_ms) = remembered.as_ref();
    Answer {
        completion: completion.clone(),
        observed: RequestObserved {
            key,
            served_from,
            phases_ms,
            live_ms: Some(*live_ms),
            usage: completion.as_ref().map_or(Usage::default(), |completion| completion.usage),
            attempts,
        },
    }
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
