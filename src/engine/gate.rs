//! Who may ask an engine, and when: a queue in order of arrival, a number in flight that adapts to what the
//! server bears, rate budgets, pauses that the server asks for, and a breaker for the same error again and
//! again. Knows nothing of requests but their size.
//!
//! The number in flight starts at the hard maximum, is halved when the server says that it has too much
//! (429, overloaded, time-outs; once for all requests that were under way together) and grows by one for
//! each round of requests that went well: additive increase, multiplicative decrease (Chiu & Jain 1989).
//! Rate budgets are leaky buckets as a time of arrival in theory (GCRA, ITU-T I.371), with one second of
//! burst, so that no minute sees more than 61 seconds' worth.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Burst of a rate budget.
const BURST: Duration = Duration::from_secs(1);
/// The same error this many times in a row, of requests with all their attempts, and nobody asks any more.
const BREAK_AFTER: u32 = 5;
/// After that long one request may try again.
const BREAK_FOR: Duration = Duration::from_secs(30);

/// Upper bounds on the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// Requests a minute.
    pub requests: Option<u32>,
    /// Tokens a minute: of the prompt and of the reply.
    pub tokens: Option<u32>,
}

/// What the end of an attempt says about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// It bears what it gets.
    Fine,
    /// It has too much.
    Overload,
    /// Nothing.
    Unclear,
}

/// Whether an engine may be asked.
#[derive(Debug, PartialEq)]
pub(super) enum Pass {
    /// By everybody.
    Open,
    /// By this one, to see whether it has recovered.
    Trial,
    /// By nobody, and why.
    Blocked(String),
}

/// The door of one engine.
#[derive(Debug)]
pub struct Gate {
    max: usize,
    adaptive: bool,
    counts_tokens: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How many may be in flight: a fraction of one more is kept for the increase.
    limit: f64,
    in_flight: usize,
    waiting: VecDeque<oneshot::Sender<Permit>>,
    /// When the limit was cut last: attempts from before say nothing new.
    cut: Option<Instant>,
    /// The server asked not to be asked before.
    not_before: Option<Instant>,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    breaker: Breaker,
}

/// A budget of so many units a minute.
#[derive(Debug)]
struct Bucket {
    each: Duration,
    /// When the next unit would be due at an even pace.
    arrival: Instant,
}

impl Bucket {
    fn new(a_minute: u32) -> Self {
        Bucket { each: Duration::from_secs(60) / a_minute.max(1), arrival: Instant::now() }
    }

    /// Takes `units`; returns when they may be used.
    fn take(&mut self, units: u64, now: Instant) -> Instant {
        let at = self.arrival.checked_sub(BURST).unwrap_or(now).max(now);
        self.arrival = self.arrival.max(now) + self.span(units);
        at
    }

    fn give_back(&mut self, units: u64) {
        let span = self.span(units);
        self.arrival = self.arrival.checked_sub(span).unwrap_or(self.arrival);
    }

    fn span(&self, units: u64) -> Duration {
        self.each.saturating_mul(u32::try_from(units).unwrap_or(u32::MAX))
    }
}

/// The same error in a row.
#[derive(Debug, Default)]
struct Breaker {
    reason: String,
    error: String,
    count: u32,
    /// Open until then; afterwards one may try.
    until: Option<Instant>,
}

impl Gate {
    /// A door for at most `max` at once. One that adapts lets fewer in when the server has too much.
    pub fn new(max: Option<u32>, adaptive: bool, rates: Rates) -> Arc<Self> {
        let max = max.map_or(usize::MAX, |max| max as usize);
        Arc::new(Gate {
            max,
            adaptive,
            counts_tokens: rates.tokens.is_some(),
            state: Mutex::new(State {
                limit: max as f64,
                in_flight: 0,
                waiting: VecDeque::new(),
                cut: None,
                not_before: None,
                requests: rates.requests.map(Bucket::new),
                tokens: rates.tokens.map(Bucket::new),
                breaker: Breaker::default(),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("BUG: the gate lock is poisoned")
    }

    /// Waits for a place. `again` goes before those who have not been in yet.
    pub(super) async fn enter(self: &Arc<Self>, again: bool) -> Permit {
        let receiver = {
            let mut state = self.state();
            if state.waiting.is_empty() && (state.in_flight as f64) < state.limit.floor() {
                state.in_flight += 1;
                return self.permit();
            }
            let (sender, receiver) = oneshot::channel();
            match again {
                true => state.waiting.push_front(sender),
                false => state.waiting.push_back(sender),
            }
            receiver
        };
        receiver.await.expect("BUG: a gate went away while somebody waited at it")
    }

    fn permit(self: &Arc<Self>) -> Permit {
        Permit { gate: Some(self.clone()), entered: Instant::now() }
    }

    /// Whether tokens are budgeted.
    pub(super) fn counts_tokens(&self) -> bool {
        self.counts_tokens
    }

    /// Takes a request and `tokens` out of the budgets; returns when it may be sent.
    pub(super) fn take(&self, tokens: u64) -> Instant {
        self.take_at(tokens, Instant::now())
    }

    fn take_at(&self, tokens: u64, now: Instant) -> Instant {
        let mut state = self.state();
        let State { requests, tokens: bucket, not_before, .. } = &mut *state;
        // Budgets go on at the end of a pause, and not with all that was saved up in it.
        let now = not_before.filter(|at| *at > now).unwrap_or(now);
        let mut at = now;
        if let Some(bucket) = requests {
            at = at.max(bucket.take(1, now));
        }
        if let Some(bucket) = bucket {
            at = at.max(bucket.take(tokens, now));
        }
        at
    }

    /// Until when nobody is to be sent, if the server has asked for that.
    pub(super) fn paused(&self) -> Option<Instant> {
        self.state().not_before
    }

    /// Puts back what was taken and not used.
    pub(super) fn give_back(&self, tokens: u64) {
        if let Some(bucket) = &mut self.state().tokens {
            bucket.give_back(tokens);
        }
    }

    /// Nobody is to be sent before `until`, as the server says.
    pub(super) fn pause(&self, until: Instant) {
        let mut state = self.state();
        state.not_before = Some(state.not_before.map_or(until, |before| before.max(until)));
    }

    /// Whether the engine may be asked at all for now.
    pub(super) fn pass(&self) -> Pass {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Pass {
        let mut state = self.state();
        let breaker = &mut state.breaker;
        match breaker.until {
            None => Pass::Open,
            Some(until) if now >= until => {
                // One may try; the others wait for what it finds.
                breaker.until = Some(now + BREAK_FOR);
                Pass::Trial
            }
            Some(_) => Pass::Blocked(format!(
                "not asked, because the last {} requests all failed with: {}",
                breaker.count, breaker.error
            )),
        }
    }

    /// A request ended well.
    pub(super) fn succeeded(&self) {
        let mut state = self.state();
        if state.breaker.count > 0 {
            state.breaker = Breaker::default();
        }
    }

    /// A request failed for good, after all its attempts. Errors of one `reason` are the same.
    pub(super) fn failed(&self, reason: &str, error: &str) {
        let mut state = self.state();
        let breaker = &mut state.breaker;
        // A trial that fails in another way is no success either.
        if breaker.reason != reason && breaker.until.is_none() {
            *breaker = Breaker { reason: reason.to_owned(), ..Breaker::default() };
        }
        breaker.error = error.to_owned();
        breaker.count += 1;
        if breaker.count >= BREAK_AFTER {
            breaker.until = Some(Instant::now() + BREAK_FOR);
        }
    }

    fn leave(self: &Arc<Self>, entered: Instant, signal: Signal) {
        let mut state = self.state();
        if self.adaptive {
            state.adapt(signal, entered, self.max);
        }
        state.in_flight -= 1;
        while (state.in_flight as f64) < state.limit.floor() {
            let Some(waiting) = state.waiting.pop_front() else { break };
            state.in_flight += 1;
            if let Err(mut permit) = waiting.send(self.permit()) {
                // Who waited there has gone: the place goes to the one behind.
                permit.gate = None;
                state.in_flight -= 1;
            }
        }
    }
}

impl State {
    fn adapt(&mut self, signal: Signal, entered: Instant, max: usize) {
        match signal {
            // A limit that is not used up says nothing about a higher one.
            Signal::Fine
                if self.limit < max as f64 && self.in_flight as f64 >= self.limit - 1.0 =>
            {
                self.limit = (self.limit + 1.0 / self.limit).min(max as f64);
            }
            Signal::Overload if self.cut.is_none_or(|cut| entered > cut) => {
                self.limit = (self.limit.min(self.in_flight as f64) / 2.0).max(1.0);
                self.cut = Some(Instant::now());
            }
            _ => {}
        }
    }
}

/// A place at an engine, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Option<Arc<Gate>>,
    entered: Instant,
}

impl Permit {
    /// Gives the place back, with what was learnt.
    pub(super) fn end(mut self, signal: Signal) {
        if let Some(gate) = self.gate.take() {
            gate.leave(self.entered, signal);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.leave(self.entered, Signal::Unclear);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn overload_halves_once_for_all_that_were_under_way_and_success_grows_again() {
        let gate = Gate::new(Some(16), true, Rates::default());
        let mut permits = Vec::new();
        for _ in 0..16 {
            permits.push(gate.enter(false).await);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        for permit in permits.drain(..8) {
            permit.end(Signal::Overload);
        }
        assert_eq!(gate.state().limit, 8.0, "eight complaints of one moment are one");
        drop(permits);
        tokio::time::sleep(Duration::from_millis(5)).await;
        // A round of eight that went well is worth one more.
        for _ in 0..9 {
            let mut round = Vec::new();
            while let Some(permit) = futures_util::FutureExt::now_or_never(gate.enter(false)) {
                round.push(permit);
            }
            round.into_iter().for_each(|permit| permit.end(Signal::Fine));
        }
        let limit = gate.state().limit;
        assert!((9.0..=16.0).contains(&limit), "{limit}");
        assert_eq!(gate.state().in_flight, 0);
    }

    #[tokio::test]
    async fn the_queue_is_in_order_and_who_leaves_it_costs_no_place() {
        let gate = Gate::new(Some(1), false, Rates::default());
        let first = gate.enter(false).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let wait = |name: &'static str, again| {
            let (gate, order) = (gate.clone(), order.clone());
            tokio::spawn(async move {
                let permit = gate.enter(again).await;
                order.lock().unwrap().push(name);
                permit.end(Signal::Fine);
            })
        };
        let gone = wait("gone", false);
        tokio::task::yield_now().await;
        let rest = [wait("second", false), wait("third", false)];
        tokio::task::yield_now().await;
        let again = wait("again", true);
        tokio::task::yield_now().await;
        gone.abort();
        tokio::task::yield_now().await;
        drop(first);
        for task in rest {
            task.await.unwrap();
        }
        again.await.unwrap();
        assert_eq!(*order.lock().unwrap(), ["again", "second", "third"]);
        assert_eq!(gate.state().in_flight, 0);
    }

    #[tokio::test]
    async fn a_budget_is_kept_in_every_minute() {
        let rates = Rates { requests: Some(120), tokens: None };
        let gate = Gate::new(None, true, rates);
        let start = Instant::now();
        let times: Vec<f64> =
            (0..360).map(|_| (gate.take_at(0, start) - start).as_secs_f64()).collect();
        let most = times
            .iter()
            .map(|from| times.iter().filter(|at| **at >= *from && **at < from + 60.0).count());
        let most = most.max().unwrap();
        assert!((118..=123).contains(&most), "{most} in a minute");
    }

    #[tokio::test]
    async fn tokens_that_were_not_used_come_back() {
        let rates = Rates { requests: None, tokens: Some(60_000) };
        let gate = Gate::new(None, true, rates);
        let now = Instant::now();
        assert_eq!(gate.take_at(10_000, now), now);
        gate.give_back(9_000);
        let wait = gate.take_at(1, now) - now;
        assert!(wait <= Duration::from_millis(1), "{wait:?}");
    }

    #[tokio::test]
    async fn the_same_error_again_and_again_stops_everybody_until_one_succeeds() {
        let gate = Gate::new(None, true, Rates::default());
        for _ in 0..BREAK_AFTER {
            assert_eq!(gate.pass(), Pass::Open);
            gate.failed("401", "no such key");
        }
        let why = "not asked, because the last 5 requests all failed with: no such key";
        assert_eq!(gate.pass(), Pass::Blocked(why.to_owned()));
        let later = Instant::now() + BREAK_FOR;
        assert_eq!(gate.pass_at(later), Pass::Trial, "one may try");
        assert!(matches!(gate.pass_at(later), Pass::Blocked(_)), "and only one");
        gate.failed("connect", "nobody there");
        assert!(matches!(gate.pass(), Pass::Blocked(_)), "another failure is no success");
        gate.succeeded();
        assert_eq!(gate.pass(), Pass::Open);
        // Different errors are no pattern.
        for reason in ["500", "401", "500", "401", "500", "401"] {
            gate.failed(reason, "");
        }
        assert_eq!(gate.pass(), Pass::Open);
    }

    #[tokio::test]
    async fn thousands_who_have_gone_are_passed_over_at_once() {
        let gate = Gate::new(Some(1), false, Rates::default());
        let first = gate.enter(false).await;
        let mut gone: Vec<_> = (0..100_000).map(|_| Box::pin(gate.enter(false))).collect();
        for waiting in &mut gone {
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        }
        let mut last = Box::pin(gate.enter(false));
        assert!(futures_util::poll!(last.as_mut()).is_pending());
        drop(gone);
        drop(first);
        last.await.end(Signal::Fine);
        assert_eq!(gate.state().in_flight, 0);
    }
}
