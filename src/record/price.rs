//! What tokens cost. Knows nothing of who is paid.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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

/// What tokens cost of those who are asked beside the engine of a workflow, by name: only of those that cost money, and
/// `None` where nobody has said how much.
pub type Tariffs = BTreeMap<String, Option<Price>>;

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

/// Dollars, with four decimals: single requests cost less than a cent. A sum that is not `all` of it says so.
pub fn dollars(sum: f64, all: bool) -> String {
    format!("{}${sum:.4}", if all { "" } else { "at least " })
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
}
