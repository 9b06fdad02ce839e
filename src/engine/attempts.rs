//! A request on its way to an engine: admission, attempts, pauses, and when to give up. Knows nothing of
//! what is remembered.

use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::budget::Reservation;
use super::client::{Client, Failure, Told, ms};
use super::gate::{Pass, Signal};
use super::{Engine, EngineError, Reply, Trouble, prompt_ceiling};
use crate::digest::Key;
use crate::record::{Retry, Timing, millis};
use crate::sample::{Completion, Request, Usage};

/// Longest pause before the second attempt; doubled each time. The pause is drawn evenly between nothing
/// and that ("full jitter": Brooker 2015, "Exponential Backoff And Jitter").
const BACKOFF: Duration = Duration::from_millis(500);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Longest wait that a server may ask for; one that asks for more has failed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// Letters by which errors are told apart.
const WORDING: usize = 80;

/// What an engine said for good.
pub(super) struct Answered {
    pub(super) outcome: Result<Completion, (String, String)>,
    /// Tokens that are paid for: also of an answer that was refused after it came.
    pub(super) usage: Usage,
    pub(super) timing: Timing,
}

/// Why it said nothing.
pub(super) enum Gone {
    Engine(String),
    Other(Failure),
}

impl From<Failure> for Gone {
    fn from(failure: Failure) -> Self {
        Gone::Other(failure)
    }
}

/// A request on its way: attempts, one after another.
pub(super) struct Asking<'a> {
    door: &'a Client,
    key: Key,
    request: &'a Request,
    /// How often the engine was asked.
    pub(super) attempts: u32,
    /// The attempts that failed.
    pub(super) retries: Vec<Retry>,
    /// How long they took, with the pauses after them.
    pub(super) retry_ms: f64,
    /// Tokens of an answer that was of no use.
    pub(super) billed: Usage,
    /// Tokens that were counted for attempts that failed.
    pub(super) failed_usage: Usage,
    /// Attempts that failed and may be billed beyond that: nobody knows for how much.
    pub(super) unknown_attempts: u32,
    /// When the first attempt was sent: queueing and loading before it are no part of the time-out.
    began: Option<Instant>,
    /// Since then, how long the engine took to recover: no part of it either.
    recovering: Duration,
}

impl<'a> Asking<'a> {
    pub(super) fn new(door: &'a Client, key: Key, request: &'a Request) -> Self {
        Asking {
            door,
            key,
            request,
            attempts: 0,
            retries: Vec::new(),
            retry_ms: 0.0,
            billed: Usage::ZERO,
            failed_usage: Usage::ZERO,
            unknown_attempts: 0,
            began: None,
            recovering: Duration::ZERO,
        }
    }

    /// Asks until there is an answer, or no further attempt.
    pub(super) async fn ask(&mut self) -> Result<Answered, Gone> {
        let door = self.door;
        let (engine, gate) = (&door.engine, &door.engine.gate);
        let mut pause = BACKOFF;
        let mut is_trial = false;
        loop {
            self.may_ask(&mut is_trial)?;
            let permit = door.unless_stopped(gate.enter(self.attempts > 0)).await?;
            let ready = engine.engine(door).await?;
            if door.access.stop.is_cancelled() {
                return Err(Failure::Cancelled.into());
            }
            // Counting takes time, and most engines have nothing to hold.
            let prompt = if gate.counts_tokens() { ready.prompt_tokens(self.request) } else { 0 };
            let most = u64::from(self.request.sampling.max_tokens);
            let mut reserved = door.reserve(self.request).await?;
            let mut at = Some(gate.take(prompt + most));
            // While it waited, the server may have asked others for a pause.
            while let Some(until) = at.filter(|at| *at > tokio::time::Instant::now()) {
                door.unless_stopped(tokio::time::sleep_until(until)).await?;
                at = gate.paused();
            }
            let recovering = Instant::now();
            let mut recovery = ready.recover();
            // Mostly there is nothing to wait for.
            let recovered = match (&mut recovery).now_or_never() {
                Some(recovered) => recovered,
                None => {
                    let _waiting = door.access.away.wait();
                    door.unless_stopped(recovery).await?
                }
            };
            if let Err(error) = recovered {
                gate.failed("broken", &error.to_string());
                return Err(Gone::Engine(error.to_string()));
            }
            if self.began.is_some() {
                self.recovering += recovering.elapsed();
            }
            // While this one waited, others may have found that nothing works.
            self.may_ask(&mut is_trial)?;
            if self.is_late(Duration::ZERO)
                && let Some(last) = self.retries.pop()
            {
                gate.give_back(prompt + most);
                return Err(self.give_up(&last.reason, no_time(&last.detail)));
            }
            self.attempts += 1;
            self.began.get_or_insert_with(Instant::now);
            let start = Instant::now();
            if let Some(reserved) = &mut reserved {
                reserved.sent();
            }
            let ended = self.attempt(ready.as_ref()).await.map_err(|error| {
                let (error, billed) = error.unbilled();
                self.billed = billed;
                error
            });
            let cost = |usage: &Usage| engine.backend.price().and_then(|price| price.of(usage));
            let trouble = match ended {
                Ok(Reply { completion, stamps, notices }) => {
                    permit.end(Signal::Fine);
                    gate.succeeded();
                    let usage = completion.usage;
                    let used = usage.input_tokens.zip(usage.output_tokens).map(|(a, b)| a + b);
                    gate.give_back((prompt + most).saturating_sub(used.unwrap_or(prompt + most)));
                    if let Some(reserved) = reserved {
                        reserved.settle(cost(&usage));
                    }
                    notices.into_iter().for_each(|notice| door.tell(Told::Notice(notice)));
                    let lag = stamps.start.saturating_duration_since(start);
                    let mut timing = stamps.timing(door.anchor);
                    timing.lag_ms = millis(lag);
                    return Ok(Answered { outcome: Ok(completion), usage, timing });
                }
                Err(EngineError::Rejected { code, detail }) => {
                    if let Some(reserved) = reserved {
                        reserved.settle(cost(&self.billed));
                    }
                    permit.end(Signal::Fine);
                    gate.succeeded();
                    let timing = Timing { close_ms: ms(start), ..Timing::default() };
                    let (outcome, usage) = (Err((code.to_owned(), detail)), self.billed);
                    return Ok(Answered { outcome, usage, timing });
                }
                Err(EngineError::Broken(detail)) => {
                    if let Some(reserved) = reserved {
                        reserved.settle(cost(&self.billed));
                    }
                    gate.failed(&wording(&detail), &detail);
                    return Err(Gone::Engine(detail));
                }
                Err(EngineError::Passing(trouble)) if trouble.unsent => {
                    // It ends: an engine that cannot recover says so above, and then is broken.
                    if let Some(reserved) = reserved {
                        reserved.settle(Some(0.0));
                    }
                    gate.give_back(prompt + most);
                    drop(permit);
                    self.failed(trouble, ms(start), Duration::ZERO);
                    self.attempts -= 1;
                    continue;
                }
                Err(EngineError::Passing(trouble)) => trouble,
                Err(EngineError::Billed { .. }) => panic!("BUG: an answer is billed once"),
            };
            self.unknown_attempts += u32::from(trouble.may_be_billed);
            self.failed_usage = self.failed_usage.plus(trouble.usage());
            if let Some(reserved) = reserved {
                // Nobody knows what was begun and broke off did cost.
                reserved.settle(cost(&trouble.usage()).filter(|_| !trouble.may_be_billed));
            }
            permit.end(if trouble.overload { Signal::Overload } else { Signal::Unclear });
            let attempt_ms = ms(start);
            let wait = match self.wait(&trouble, pause) {
                Ok(wait) => wait,
                Err(gone) => {
                    self.retry_ms += attempt_ms;
                    return Err(gone);
                }
            };
            pause = (pause * 2).min(BACKOFF_MAX);
            if trouble.retry_after.is_some() {
                gate.pause(tokio::time::Instant::now() + wait);
            }
            self.failed(trouble, attempt_ms, wait);
            let waiting = Instant::now();
            door.unless_stopped(tokio::time::sleep(wait)).await?;
            self.retry_ms += ms(waiting);
        }
    }

    /// An attempt failed, and there will be another one.
    fn failed(&mut self, trouble: Trouble, attempt_ms: f64, wait: Duration) {
        self.retry_ms += attempt_ms;
        let retry = Retry {
            reason: trouble.reason,
            detail: trouble.detail,
            attempt_ms,
            waited_ms: millis(wait),
        };
        self.retries.push(retry.clone());
        self.door.tell(Told::Retry { key: self.key, attempt: self.attempts, retry });
    }

    /// Whether nothing is known that would make asking useless. A request that is under way goes on to its
    /// own end, and one that was let in to try tries.
    fn may_ask(&self, is_trial: &mut bool) -> Result<(), Gone> {
        if *is_trial || self.attempts > 0 {
            return Ok(());
        }
        match self.door.engine.gate.pass() {
            Pass::Open => Ok(()),
            Pass::Trial => {
                *is_trial = true;
                Ok(())
            }
            Pass::Blocked(why) => Err(Gone::Engine(why)),
        }
    }

    /// Since the first attempt was sent, without the time in which nothing could be.
    fn elapsed(&self) -> Duration {
        let since = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        since.saturating_sub(self.recovering)
    }

    /// One attempt, within its time.
    async fn attempt(&self, engine: &dyn Engine) -> Result<Reply, EngineError> {
        let limits = &self.door.access.limits;
        let mut limit = limits.attempt_timeout;
        if let Some(total) = limits.timeout {
            limit = limit.min(total.saturating_sub(self.elapsed()));
        }
        let asked = engine.complete(self.request, limits.first_token_timeout);
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(Duration::from_millis(limit.as_millis() as u64));
            let mut trouble = Trouble::new("time-out", format!("no answer within {limit}"));
            trouble.overload = true;
            Err(EngineError::Passing(trouble))
        })
    }

    /// How long to wait after a failed attempt; an error when there is no further one.
    fn wait(&self, trouble: &Trouble, pause: Duration) -> Result<Duration, Gone> {
        let (door, limits) = (self.door, &self.door.access.limits);
        let give_up = |detail: String| Err(self.give_up(&trouble.reason, detail));
        if door.access.stop.is_cancelled() {
            return Err(Failure::Cancelled.into());
        }
        if self.attempts > limits.max_retries {
            return give_up(trouble.detail.clone());
        }
        let wait = match trouble.retry_after {
            // A little later than asked, and not all at once.
            Some(after) => after + after.mul_f64(fastrand::f64() * 0.1),
            None => pause.mul_f64(fastrand::f64()),
        };
        let shown = humantime::format_duration(Duration::from_secs(wait.as_secs()));
        if wait > RETRY_AFTER_MAX {
            return give_up(format!("{}; the server asks to wait {shown}", trouble.detail));
        }
        if self.is_late(wait) {
            return give_up(no_time(&trouble.detail));
        }
        Ok(wait)
    }

    /// Whether no time is left for another attempt after `wait`.
    fn is_late(&self, wait: Duration) -> bool {
        let total = self.door.access.limits.timeout;
        self.began.is_some() && total.is_some_and(|total| self.elapsed() + wait >= total)
    }

    fn give_up(&self, reason: &str, detail: String) -> Gone {
        self.door.engine.gate.failed(reason, &detail);
        Gone::Engine(detail)
    }
}

fn no_time(detail: &str) -> String {
    format!("{detail}; no time is left for another attempt")
}

/// What is the same in two errors that differ in numbers alone: one bad request says nothing about another.
fn wording(detail: &str) -> String {
    detail.chars().filter(|c| c.is_alphabetic()).take(WORDING).collect()
}

impl Client {
    /// What comes of `work`, unless the run is stopped before.
    pub(super) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            // Most of it waits for nothing, and then nobody needs to listen for a stop.
            done = work => Ok(done),
            () = self.access.stop.cancelled() => Err(Failure::Cancelled),
        }
    }

    /// Sets money aside for a request, where there is a budget to hold.
    pub(super) async fn reserve(
        &self,
        request: &Request,
    ) -> Result<Option<Reservation<'_>>, Failure> {
        let (Some(budget), Some(price)) = (&self.access.budget, self.engine.backend.price()) else {
            return Ok(None);
        };
        let most = u64::from(request.sampling.max_tokens);
        let ceiling = price.ceiling(prompt_ceiling(request), most);
        match self.unless_stopped(budget.reserve(ceiling)).await? {
            Some(reserved) => Ok(Some(reserved)),
            None => {
                let (limit, spent, unsure) = (budget.limit, budget.spent(), budget.unsure());
                Err(Failure::Budget { limit, spent, unsure, ceiling })
            }
        }
    }
}
