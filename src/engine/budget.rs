//! A bound on what a run may spend. Knows nothing of who asks.

use std::sync::Mutex;

use tokio::sync::Notify;

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
    /// Of that, ceilings of what did cost nobody knows what.
    unsure: f64,
    reserved: f64,
    in_flight: u64,
}

impl Budget {
    /// A bound in dollars.
    pub fn new(limit: f64) -> Self {
        Budget { limit, state: Mutex::default(), settled: Notify::new() }
    }

    /// Spent so far, in dollars. Where nobody knows what an attempt did cost, that is the most that it can be.
    pub fn spent(&self) -> f64 {
        self.state.lock().expect("BUG: the budget lock is poisoned").spent
    }

    /// Of what is spent, how much is of attempts whose cost nobody knows.
    pub fn unsure(&self) -> f64 {
        self.state.lock().expect("BUG: the budget lock is poisoned").unsure
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
                    return Some(Reservation { budget: self, ceiling, cost: Some(0.0) });
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
    /// `None` where nobody knows.
    cost: Option<f64>,
}

impl Reservation<'_> {
    /// The request goes out: whoever lets go of it before anybody knows what it did cost pays the ceiling.
    pub(super) fn sent(&mut self) {
        self.cost = None;
    }

    /// What it did cost; where nobody knows, the ceiling.
    pub(super) fn settle(mut self, cost: Option<f64>) {
        self.cost = cost;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock().expect("BUG: the budget lock is poisoned");
        state.in_flight -= 1;
        // Without requests under way nothing is set aside: rounding must not add up.
        state.reserved = if state.in_flight == 0 { 0.0 } else { state.reserved - self.ceiling };
        state.spent += self.cost.unwrap_or(self.ceiling);
        if self.cost.is_none() {
            state.unsure += self.ceiling;
        }
        drop(state);
        self.budget.settled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(budget.unsure(), 0.6);
        assert!(budget.reserve(0.6).await.is_none());
    }

    #[tokio::test]
    async fn what_was_sent_and_let_go_of_may_have_cost_all_of_it() {
        let budget = Budget::new(1.0);
        drop(budget.reserve(0.4).await.unwrap());
        assert_eq!(budget.spent(), 0.0);
        let mut sent = budget.reserve(0.4).await.unwrap();
        sent.sent();
        drop(sent);
        assert_eq!(budget.spent(), 0.4);
    }
}
