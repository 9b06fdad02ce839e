//! Bounds on one sample, as Inspect names them. Knows nothing of requests and their limits.
//!
//! `message_limit`, `token_limit` and `cost_limit` are met at the same place whenever the same sample is run, so
//! they are part of its key, and what meets one is truncated for good. `time_limit` is met sooner on a slower
//! machine: it is in no key, what meets it has no result, and the next run asks for that sample again.

use std::time::Duration;

use crate::digest::Recipe;
use crate::manifest::{Diagnostic, Fields};
use crate::record::Price;
use crate::sample::Usage;

/// Most messages and tokens that a manifest may allow.
const MESSAGES_MAX: u32 = 100_000;
const TOKENS_MAX: u32 = u32::MAX;

/// As a manifest declares them.
#[derive(Debug, Clone, Default)]
pub(super) struct Declared {
    messages: Option<u32>,
    tokens: Option<u32>,
    pub(super) cost: Option<f64>,
    pub(super) time: Option<Duration>,
}

pub(super) fn read(fields: &Fields<'_>) -> Declared {
    let time = fields.duration("time_limit");
    if time.is_some_and(|time| time.is_zero()) {
        let message = "`time_limit` leaves no time for anything";
        fields.error(Diagnostic::at(fields.place("time_limit"), message));
    }
    Declared {
        messages: fields.count("message_limit", 1..=MESSAGES_MAX),
        tokens: fields.count("token_limit", 1..=TOKENS_MAX),
        cost: fields.number("cost_limit", 0.0..=1e9),
        time,
    }
}

impl Declared {
    /// Those that decide what a sample is; `price` is that of the engine.
    pub(super) fn semantic(&self, price: Option<Price>) -> SampleLimits {
        SampleLimits {
            messages: self.messages.map(|most| most as usize),
            tokens: self.tokens.map(u64::from),
            cost: self.cost.zip(price),
        }
    }
}

/// Bounds on one sample that decide what it is.
#[derive(Debug, Clone, Default)]
pub struct SampleLimits {
    /// Most messages, those of system and tools included.
    pub messages: Option<usize>,
    /// Most tokens of all requests together, prompts included.
    pub tokens: Option<u64>,
    /// Most dollars for all requests together, as if none came from the store, and what tokens cost.
    pub cost: Option<(f64, Price)>,
}

impl SampleLimits {
    /// Adds them to a recipe.
    pub(super) fn describe(&self, recipe: Recipe) -> Recipe {
        let price = self.cost.map(|(_, price)| price);
        let price = price.map(|p| serde_json::to_value(p).expect("BUG: a price is plain data"));
        recipe
            .field("message_limit", self.messages)
            .field("token_limit", self.tokens)
            .field("cost_limit", self.cost.map(|(most, _)| most))
            .field("price", price)
    }

    /// What stands in the way of one more message.
    pub(super) fn before(&self, messages: usize) -> Option<String> {
        let most = self.messages.filter(|most| messages >= *most)?;
        Some(format!("`message_limit` of {most} messages is reached"))
    }

    /// What the requests so far have gone beyond; an error where nobody has counted them.
    pub(super) fn after<'a>(
        &self,
        requests: impl Iterator<Item = &'a Usage> + Clone,
    ) -> Result<Option<String>, String> {
        if let Some(most) = self.tokens {
            let usage = requests.clone().fold(Usage::ZERO, |sum, usage| sum.plus(*usage));
            let Some((input, output)) = usage.input_tokens.zip(usage.output_tokens) else {
                return Err("`token_limit` cannot be held: the engine counts no tokens".to_owned());
            };
            if input + output > most {
                let used = input + output;
                return Ok(Some(format!("`token_limit` of {most} tokens is passed: {used} used")));
            }
        }
        if let Some((most, price)) = self.cost {
            let Some(spent) = requests.map(|usage| price.of(usage)).sum::<Option<f64>>() else {
                return Err("`cost_limit` cannot be held: the engine counts no tokens".to_owned());
            };
            if spent > most {
                return Ok(Some(format!("`cost_limit` of ${most} is passed: ${spent:.6} used")));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::TokenSource;

    #[test]
    fn limits_are_met_where_they_stand() {
        let limits = SampleLimits { messages: Some(3), tokens: Some(20), cost: None };
        assert_eq!(limits.before(2), None);
        assert_eq!(limits.before(3).unwrap(), "`message_limit` of 3 messages is reached");
        let usage = Usage::counted(Some(8), Some(2), TokenSource::Usage);
        assert_eq!(limits.after([usage; 2].iter()), Ok(None));
        let passed = limits.after([usage; 3].iter()).unwrap().unwrap();
        assert_eq!(passed, "`token_limit` of 20 tokens is passed: 30 used");
        let unknown = Usage::default();
        assert!(limits.after([unknown].iter()).is_err());
    }

    #[test]
    fn cost_counts_what_the_store_has_saved() {
        let price = Price { input: 1.0, output: 2.0, cached_input: None };
        let limits = SampleLimits { cost: Some((0.0001, price)), ..SampleLimits::default() };
        let usage = Usage::counted(Some(50), Some(10), TokenSource::Usage);
        assert_eq!(limits.after([usage].iter()), Ok(None));
        assert!(
            limits.after([usage; 2].iter()).unwrap().unwrap().contains("`cost_limit` of $0.0001")
        );
    }

    #[test]
    fn absent_limits_leave_keys_as_they_are() {
        let recipe = || Recipe::new("sample", 1);
        assert_eq!(SampleLimits::default().describe(recipe()).key(), recipe().key());
        let some = SampleLimits { messages: Some(3), ..SampleLimits::default() };
        assert_ne!(some.describe(recipe()).key(), recipe().key());
    }
}
