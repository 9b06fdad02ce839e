//! What samples took: times, tokens, dollars, added up. Knows nothing of answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::{Observed, Price, RequestObserved, ServedFrom};
use crate::sample::Usage;

/// What the requests of a workflow cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Dollars for a million tokens.
    pub price: Price,
    /// Dollars for live requests; null where tokens are unknown.
    pub spent: Option<f64>,
    /// Dollars that the requests answered from the store would have cost.
    pub saved: Option<f64>,
}

impl Cost {
    /// Of no requests.
    fn none(price: Price) -> Cost {
        Cost { price, spent: Some(0.0), saved: Some(0.0) }
    }

    fn add(&mut self, request: &RequestObserved) {
        let live = request.served_from == ServedFrom::Live;
        let sum = if live { &mut self.spent } else { &mut self.saved };
        *sum = sum.zip(self.price.of(&request.usage)).map(|(sum, more)| sum + more);
    }

    /// Dollars for all requests, as if none had been remembered.
    pub fn in_all(&self) -> Option<f64> {
        Some(self.spent? + self.saved?)
    }
}

/// Dollars for all requests of an engine and of those whom scorers and retrieval ask, as if none had been remembered;
/// `None` where no price is known, or nobody has counted some tokens.
pub fn dollars(own: Option<&Cost>, aside: &BTreeMap<String, Cost>) -> Option<f64> {
    if own.is_none() && aside.is_empty() {
        return None;
    }
    own.into_iter().chain(aside.values()).map(Cost::in_all).sum()
}

/// Sums of what was observed of samples, one at a time.
pub struct Took {
    /// Tokens of all requests, live and remembered.
    pub usage: Usage,
    /// Latencies of samples whose every request was live, in ms.
    pub live: Vec<f64>,
    /// Those of the others: times of the look-up.
    pub cached: Vec<f64>,
    /// What all requests cost, where somebody has said what tokens cost.
    pub cost: Option<Cost>,
    /// The same of requests of scorers.
    pub scorer_costs: BTreeMap<String, Cost>,
    live_tokens: Option<u64>,
    live_ms: f64,
}

impl Took {
    /// Nothing yet, of a workflow with these prices: of its engine, and of those whom scorers and retrieval ask.
    pub fn new(price: Option<Price>, aside: &BTreeMap<String, Price>) -> Took {
        let aside = aside.iter();
        Took {
            usage: Usage::ZERO,
            live: Vec::new(),
            cached: Vec::new(),
            cost: price.map(Cost::none),
            scorer_costs: aside.map(|(name, price)| (name.clone(), Cost::none(*price))).collect(),
            live_tokens: Some(0),
            live_ms: 0.0,
        }
    }

    /// Adds a sample.
    pub fn add(&mut self, observed: &Observed) {
        self.usage = self.usage.plus(observed.usage());
        if observed.is_live() {
            self.live.push(observed.latency_ms());
            for request in &observed.requests {
                self.live_ms += request.live_ms.unwrap_or(0.0);
                let tokens = request.usage.output_tokens;
                self.live_tokens = self.live_tokens.zip(tokens).map(|(a, b)| a + b);
            }
        } else {
            self.cached.push(observed.latency_ms());
        }
        if let Some(cost) = &mut self.cost {
            observed.requests.iter().for_each(|request| cost.add(request));
        }
        for made in &observed.scoring {
            if let Some(cost) = self.scorer_costs.get_mut(&made.scorer) {
                cost.add(&made.request);
            }
        }
    }

    /// Samples.
    pub fn samples(&self) -> usize {
        self.live.len() + self.cached.len()
    }

    /// Output tokens a second of engine time, over live requests; `None` without any.
    pub fn tokens_per_s(&self) -> Option<f64> {
        let seconds = self.live_ms / 1000.0;
        self.live_tokens.filter(|_| seconds > 0.0).map(|tokens| tokens as f64 / seconds)
    }
}
