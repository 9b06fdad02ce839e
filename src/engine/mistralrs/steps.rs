//! What happens at each token: noise, bias, the end of a grammar, log-probabilities, and when it was.
//! Knows nothing of texts.
//!
//! mistral.rs 0.8.1 gives log-probabilities to base 10, and of a greedy token the logarithm of its logit;
//! here they are worked out from the logits themselves, before temperature: `logit − ln Σ exp(logits)`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use mistralrs::{CustomLogitsProcessor, Device, Tensor};

use super::gumbel::Gumbel;

/// Stands between the model and the choice of a token.
pub(super) struct Steps {
    pub(super) gumbel: Option<Gumbel>,
    pub(super) bias: BTreeMap<u32, f32>,
    /// Taken from the logit of a token of the reply, for each time it was said.
    pub(super) frequency_penalty: f32,
    /// The same, once.
    pub(super) presence_penalty: f32,
    /// How many of the likeliest tokens are wanted beside each, where log-probabilities are.
    pub(super) logprobs: Option<usize>,
    /// How a reply that is held to a grammar ends.
    pub(super) end: Option<End>,
    pub(super) state: Mutex<State>,
}

/// The grammar knows one token that ends a reply; the model was trained to use others.
pub(super) struct End {
    /// The grammar's.
    pub(super) token: u32,
    /// The model's.
    pub(super) own: Vec<u32>,
    /// Tokens from here on have no text, and no grammar knows them.
    pub(super) vocabulary: usize,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) steps: Vec<Step>,
    /// Logits of the newest step, as the model gave them.
    raw: Vec<f32>,
}

/// One token.
pub(super) struct Step {
    /// Tokens before it, those of the prompt included.
    position: usize,
    /// When its logits were there.
    pub(super) at: Instant,
    /// What is chosen.
    pub(super) token: u32,
    pub(super) logprob: f64,
    pub(super) top: Vec<(u32, f64)>,
    log_sum: f64,
}

impl Steps {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("BUG: the lock of the steps is poisoned")
    }

    fn changes_logits(&self) -> bool {
        let penalises = self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        self.gumbel.is_some() || self.end.is_some() || !self.bias.is_empty() || penalises
    }

    /// As OpenAI counts: what the prompt holds is not penalised.
    fn penalise(&self, logits: &mut [f32], reply: &[u32]) {
        let mut counts: BTreeMap<u32, f32> = BTreeMap::new();
        for token in reply {
            *counts.entry(*token).or_default() += 1.0;
        }
        for (token, count) in counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= count * self.frequency_penalty + self.presence_penalty;
            }
        }
    }

    fn step(&self, mut logits: Vec<f32>, context: &[u32]) -> Vec<f32> {
        let position = context.len();
        let mut state = self.state();
        // Of a token that the grammar refuses there is a second choice, among those that it allows.
        let is_new = state.steps.last().is_none_or(|step| step.position != position);
        if is_new {
            let log_sum = if self.logprobs.is_some() { log_sum_exp(&logits) } else { 0.0 };
            let top = self.logprobs.map_or_else(Vec::new, |n| likeliest(&logits, n, log_sum));
            let at = Instant::now();
            state.steps.push(Step { position, at, token: 0, logprob: 0.0, top, log_sum });
            state.raw.clone_from(&logits);
        }
        let prompt = state.steps.first().map_or(position, |step| step.position);
        self.penalise(&mut logits, &context[prompt.min(position)..]);
        for (token, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if let Some(end) = &self.end {
            let known = end.vocabulary.min(logits.len());
            logits[known..].fill(f32::NEG_INFINITY);
            let wish = end.own.iter().filter_map(|token| state.raw.get(*token as usize));
            let wish = wish.copied().fold(f32::NEG_INFINITY, f32::max);
            // Where the grammar may end, it ends when the model would end its turn.
            if let Some(logit) = logits.get_mut(end.token as usize)
                && !is_new
                && logit.is_finite()
            {
                *logit = logit.max(wish);
            }
        }
        if let Some(gumbel) = &self.gumbel {
            logits = gumbel.perturb(&logits, position);
        }
        let token = argmax(&logits);
        let raw = state.raw.get(token).copied().unwrap_or(f32::NEG_INFINITY);
        if let Some(step) = state.steps.last_mut() {
            step.token = token as u32;
            step.logprob = f64::from(raw) - step.log_sum;
        }
        logits
    }
}

impl CustomLogitsProcessor for Steps {
    fn apply(&self, logits: &Tensor, context: &[u32]) -> mistralrs::Result<Tensor> {
        let out = self.step(logits.to_vec1::<f32>()?, context);
        if !self.changes_logits() {
            return Ok(logits.clone());
        }
        let length = out.len();
        Tensor::from_vec(out, length, &Device::Cpu)
    }
}

/// `ln Σ exp(x)`, without overflow.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
    f64::from(greatest) + sum.ln()
}

/// The likeliest tokens with their log-probabilities; equal ones in the order of their numbers.
fn likeliest(logits: &[f32], n: usize, log_sum: f64) -> Vec<(u32, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let before = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let n = n.min(order.len());
    if n > 0 && n < order.len() {
        order.select_nth_unstable_by(n - 1, before);
    }
    order.truncate(n);
    order.sort_by(before);
    order.into_iter().map(|token| (token as u32, f64::from(logits[token]) - log_sum)).collect()
}

/// As mistral.rs chooses: of equal logits the last.
fn argmax(logits: &[f32]) -> usize {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(end: Option<End>) -> Steps {
        Steps {
            gumbel: None,
            bias: BTreeMap::new(),
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logprobs: Some(2),
            end,
            state: Mutex::default(),
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let steps = steps(None);
        steps.step(vec![1.0, 3.0, 2.0], &[9; 5]);
        let state = steps.state();
        let step = &state.steps[0];
        // exp(1) + exp(2) + exp(3) = 30.19287
        let expected = 3.0 - 30.192_874_8_f64.ln();
        assert!((step.logprob - expected).abs() < 1e-6, "{}", step.logprob);
        assert_eq!(step.token, 1);
        assert_eq!(step.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn penalties_count_the_reply_and_not_the_prompt() {
        let penalised = Steps { frequency_penalty: 0.5, presence_penalty: 1.0, ..steps(None) };
        assert_eq!(penalised.step(vec![2.0, 2.0, 2.0], &[0, 0]), [2.0, 2.0, 2.0]);
        assert_eq!(penalised.step(vec![2.0, 2.0, 2.0], &[0, 0, 1, 1]), [2.0, 0.0, 2.0]);
        assert!(penalised.state().steps[1].logprob < -1.0, "of the logits as the model gave them");
    }

    #[test]
    fn where_a_grammar_may_end_it_ends_as_the_model_would() {
        let end = || Some(End { token: 0, own: vec![2], vocabulary: 3 });
        let may_end = steps(end());
        // The model would end its turn (token 2), which the grammar does not know.
        assert_eq!(argmax(&may_end.step(vec![-9.0, 1.0, 5.0, 99.0], &[1; 7])), 2);
        let allowed = vec![-9.0, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
        assert_eq!(argmax(&may_end.step(allowed, &[1; 7])), 0);
        let must_go_on = steps(end());
        must_go_on.step(vec![-9.0, 1.0, 5.0, 99.0], &[1; 7]);
        let allowed = vec![f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
        assert_eq!(argmax(&must_go_on.step(allowed, &[1; 7])), 1);
        assert_eq!(must_go_on.state().steps.len(), 1, "two choices are one token");
    }
}
