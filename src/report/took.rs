//! What samples took: times, tokens, dollars, added up. Knows nothing of answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::{
    self, Observed, Price, RequestObserved, ServedFrom, Tariffs, is_false, is_zero,
};
use crate::sample::Usage;

/// What the requests of a workflow cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Dollars for a million tokens; null where nobody has said it of an engine that costs money.
    pub price: Option<Price>,
    /// Dollars for live requests; null where some of them are unknown.
    pub spent: Option<f64>,
    /// Dollars that the requests answered from the store would have cost; null as above.
    pub saved: Option<f64>,
    /// Of `spent`, what is known.
    #[serde(default)]
    pub spent_at_least: f64,
    /// Of `spent`, what attempts cost that failed, as far as their tokens were counted.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub spent_on_failed: f64,
    /// Of `saved`, what is known.
    #[serde(default)]
    pub saved_at_least: f64,
    /// Samples with requests whose cost is not known, or not all of it.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub unknown_cost_samples: u64,
    /// Whether nobody knows what the tokens of some request cost: nobody has counted them, or there is no price.
    #[serde(skip_serializing_if = "is_false", default)]
    pub uncounted: bool,
}

impl Cost {
    /// Of no requests.
    fn none(price: Option<Price>) -> Cost {
        Cost {
            price,
            spent: Some(0.0),
            saved: Some(0.0),
            spent_at_least: 0.0,
            spent_on_failed: 0.0,
            saved_at_least: 0.0,
            unknown_cost_samples: 0,
            uncounted: false,
        }
    }

    /// Adds what a sample has asked; `cut_short` is that something more was asked, and has no end.
    fn add<'a>(&mut self, requests: impl Iterator<Item = &'a RequestObserved>, cut_short: bool) {
        let mut unknown = cut_short;
        if cut_short {
            self.spent = None;
        }
        for request in requests {
            let (sum, known) = match request.served_from {
                ServedFrom::Live => (&mut self.spent, &mut self.spent_at_least),
                _ => (&mut self.saved, &mut self.saved_at_least),
            };
            let (cost, is_all) = request.cost(self.price.as_ref());
            *known += cost;
            self.spent_on_failed += request.failed_cost(self.price.as_ref()).unwrap_or(0.0);
            *sum = sum.filter(|_| is_all).map(|sum| sum + cost);
            unknown |= !is_all;
            self.uncounted |= record::worth(self.price.as_ref(), &request.usage).is_none();
        }
        self.unknown_cost_samples += u64::from(unknown);
    }

    /// Whether something was asked whose price nobody has said.
    pub fn lacks_price(&self) -> bool {
        self.price.is_none() && self.uncounted
    }

    /// Dollars for all requests, as if none had been remembered and each had ended at once: what attempts cost that
    /// broke off is no part of it, as it is of `spent`.
    pub fn in_all(&self) -> Option<f64> {
        (!self.uncounted).then_some(self.counted())
    }

    /// The same, as far as it is known.
    fn counted(&self) -> f64 {
        self.spent_at_least - self.spent_on_failed + self.saved_at_least
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

/// The same for people: a sum that leaves something out says so.
pub fn dollars_text(own: Option<&Cost>, aside: &BTreeMap<String, Cost>) -> Option<String> {
    if own.is_none() && aside.is_empty() {
        return None;
    }
    let all = own.into_iter().chain(aside.values());
    let known = all.map(Cost::counted).sum();
    Some(record::dollars(known, dollars(own, aside).is_some()))
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
    /// Nothing yet, of a workflow with these prices: of its engine, if it costs money, and of those whom scorers and
    /// retrieval ask. Where nobody has said any price there are no costs.
    pub fn new(own: Option<Option<Price>>, aside: &Tariffs) -> Took {
        let has_price = own.iter().chain(aside.values()).any(Option::is_some);
        let own = own.filter(|_| has_price);
        let aside = aside.iter().filter(|_| has_price);
        Took {
            usage: Usage::ZERO,
            live: Vec::new(),
            cached: Vec::new(),
            cost: own.map(Cost::none),
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
            cost.add(observed.requests.iter(), observed.cut_short);
        }
        for (scorer, cost) in &mut self.scorer_costs {
            let made = observed.scoring.iter().filter(|made| made.scorer == *scorer);
            // A bound on time cuts off what retrieval asks as well, which is named by its port; scorers come after.
            let cut = observed.cut_short && scorer.contains('.');
            cost.add(made.map(|made| &made.request), cut);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Recipe;
    use crate::record::PhasesMs;
    use crate::sample::TokenSource;

    fn asked(served_from: ServedFrom, usage: Usage, unknown_attempts: u32) -> RequestObserved {
        RequestObserved {
            key: Recipe::new("request", 1).key(),
            served_from,
            phases_ms: PhasesMs::new(),
            live_ms: Some(1.0),
            usage,
            attempts: 1,
            unknown_attempts,
            failed_usage: None,
            retries: Vec::new(),
            timing: None,
        }
    }

    fn sample(requests: Vec<RequestObserved>, cut_short: bool) -> Observed {
        Observed {
            served_from: ServedFrom::Live,
            wall_ms: 1.0,
            requests,
            metrics_ms: None,
            scoring: Vec::new(),
            cut_short,
        }
    }

    #[test]
    fn what_is_unknown_makes_a_sum_a_lower_bound() {
        let price = Price { input: 1.0, output: 2.0, cached_input: None };
        let million = Usage::counted(Some(1_000_000), Some(1_000_000), TokenSource::Usage);
        let cost_of = |samples: &[Observed]| {
            let mut took = Took::new(Some(Some(price)), &BTreeMap::new());
            samples.iter().for_each(|sample| took.add(sample));
            took.cost.expect("there is a price")
        };
        let known = sample(vec![asked(ServedFrom::Live, million, 0)], false);
        let stored = sample(vec![asked(ServedFrom::Disk, million, 0)], false);
        let cost = cost_of(&[known.clone(), stored.clone()]);
        assert_eq!((cost.spent, cost.saved, cost.unknown_cost_samples), (Some(3.0), Some(3.0), 0));
        assert_eq!(dollars_text(Some(&cost), &BTreeMap::new()).as_deref(), Some("$6.0000"));
        for (unknown, in_all) in [
            (sample(vec![asked(ServedFrom::Live, Usage::default(), 0)], false), None),
            (sample(vec![asked(ServedFrom::Live, Usage::ZERO, 1)], false), Some(6.0)),
            (sample(vec![], true), Some(6.0)),
        ] {
            let cost = cost_of(&[unknown, known.clone(), stored.clone()]);
            assert_eq!((cost.spent, cost.spent_at_least), (None, 3.0));
            assert_eq!((cost.saved, cost.unknown_cost_samples), (Some(3.0), 1));
            assert_eq!(cost.in_all(), in_all);
            let text = dollars_text(Some(&cost), &BTreeMap::new()).unwrap();
            assert_eq!(text.starts_with("at least"), in_all.is_none(), "{text}");
        }
        // Retrieval may have been cut off, and a judge comes after.
        let aside = ["judge", "rag.embeddings"].map(|name| (name.to_owned(), Some(price)));
        let mut took = Took::new(None, &aside.into());
        took.add(&sample(vec![], true));
        let unknown = took.scorer_costs.values().map(|cost| cost.unknown_cost_samples);
        assert_eq!(unknown.collect::<Vec<_>>(), [0, 1]);
        // What was counted for an attempt that failed is spent, and no part of what asking costs.
        let mut again = asked(ServedFrom::Live, million, 0);
        again.failed_usage = Some(million);
        let cost = cost_of(&[sample(vec![again], false), stored]);
        assert_eq!((cost.spent, cost.spent_on_failed), (Some(6.0), 3.0));
        assert_eq!((cost.in_all(), cost.unknown_cost_samples), (Some(6.0), 0));
        assert_eq!(dollars_text(Some(&cost), &BTreeMap::new()).as_deref(), Some("$6.0000"));
    }
}
