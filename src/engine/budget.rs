//! What tokens cost, and a bound on what a run may spend. Knows nothing of who asks.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::sample::Usage;

/// Dollars for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of prompts.
    pub input: f64,
    /// Of replies, reasoning included.
    pub output: f64,
    /// Of prompt tokens that the provider had in its own cache; absent is the price of prompts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cached_input: Option<f64>,
}

impl Price {
    /// Dollars for the tokens of a request; `None` where nobody counted them.
    pub fn of(&self, usage: &Usage) -> Option<f64> {
        let (input, output) = (usage.input_tokens?, usage.output_tokens?);
        let cached = usage.input_tokens_cache_read.unwrap_or(0).min(input);
        let dollars = (input - cached) as f64 * self.input
            + cached as f64 * self.cached_input.unwrap_or(self.input)
            + output as f64 * self.output;
        Some(dollars / 1e6)
    }

    /// The most that a request can cost.
    pub fn ceiling(&self, input_tokens: u64, output_tokens: u64) -> f64 {
        let input = self.input.max(self.cached_input.unwrap_or(0.0));
        (input_tokens as f64 * input + output_tokens as f64 * self.output) / 1e6
    }
}

/// A bound on what all requests of a run may cost together. A request is admitted only when its ceiling
/// still fits beside what has been spent and what is under way.
#[derive(Debug)]
pub struct Budget {
    /// Dollars.
    pub limit: f64,
    state: Mutex<Spending>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct Spending {
    spent: f64,
    reserved: f64,
    in_flight: u64,
}

impl Budget {
    /// A bound in dollars.
    pub fn new(limit: f64) -> Self {
        Budget { limit, state: Mutex::default(), settled: Notify::new() }
    }

    /// Spent so far, in dollars.
    pub fn spent(&self) -> f64 {
        self.state.lock().expect("BUG: the budget lock is poisoned").spent
    }

    /// Sets `ceiling` dollars aside; waits for requests under way whose ceilings may turn out to be too high.
    /// `None` when the budget does not allow it.
    pub(super) async fn reserve(&self, ceiling: f64) -> Option<Reservation<'_>> {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            {
                let mut state = self.state.lock().expect("BUG: the budget lock is poisoned");
                if state.spent + state.reserved + ceiling <= self.limit {
                    state.reserved += ceiling;
                    state.in_flight += 1;
                    return Some(Reservation { budget: self, ceiling, cost: 0.0 });
                }
                if state.in_flight == 0 {
                    return None;
                }
            }
            settled.await;
        }
    }
}

/// Money set aside for a request under way.
pub(super) struct Reservation<'a> {
    budget: &'a Budget,
    ceiling: f64,
    cost: f64,
}

impl Reservation<'_> {
    /// What it did cost; where nobody knows, the ceiling.
    pub(super) fn settle(mut self, cost: Option<f64>) {
        self.cost = cost.unwrap_or(self.ceiling);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock().expect("BUG: the budget lock is poisoned");
        state.in_flight -= 1;
        // Without requests under way nothing is set aside: rounding must not add up.
        state.reserved = if state.in_flight == 0 { 0.0 } else { state.reserved - self.ceiling };
        state.spent += self.cost;
        drop(state);
        self.budget.settled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::TokenSource;

    #[test]
    fn cached_tokens_have_their_own_price() {
        let price = Price { input: 2.0, output: 8.0, cached_input: Some(0.5) };
        let usage = Usage {
            input_tokens_cache_read: Some(600_000),
            ..Usage::counted(Some(1_000_000), Some(500_000), TokenSource::Usage)
        };
        // 0.4 M × 2 + 0.6 M × 0.5 + 0.5 M × 8
        assert_eq!(price.of(&usage), Some(0.8 + 0.3 + 4.0));
        assert_eq!(price.of(&Usage::default()), None);
        assert_eq!(price.ceiling(1_000_000, 1_000_000), 10.0);
    }

    #[tokio::test]
    async fn a_budget_is_never_passed_and_waits_for_what_is_under_way() {
        let budget = Budget::new(1.0);
        let first = budget.reserve(0.6).await.unwrap();
        let second = budget.reserve(0.6);
        tokio::pin!(second);
        assert!(futures_util::poll!(second.as_mut()).is_pending(), "the first may cost less");
        first.settle(Some(0.1));
        let second = second.await.expect("it fits now");
        second.settle(None);
        assert!((budget.spent() - 0.7).abs() < 1e-12, "an unknown cost is the ceiling");
        assert!(budget.reserve(0.6).await.is_none());
    }
}
