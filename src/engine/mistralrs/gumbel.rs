//! Seeded sampling that does not depend on who asked before. Knows nothing of texts.
//!
//! mistral.rs draws from one generator in the order of arrival. Here each token is chosen as the argmax of
//! its logit plus Gumbel noise made from (seed, position, token), which is a draw from the softmax
//! (Gumbel-max trick; Maddison, Tarlow & Minka 2014, "A* Sampling").

use crate::digest::Digest;
use crate::sample::Request;

pub(super) struct Gumbel {
    seed: u64,
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
}

impl Gumbel {
    /// The noise of a request: decided by its seed and replica alone. `None` for greedy requests.
    pub(super) fn of(request: &Request) -> Option<Gumbel> {
        let sampling = &request.sampling;
        if sampling.temperature == 0.0 {
            return None;
        }
        let digest = Digest::of_json(&(sampling.seed.unwrap_or(0), request.replica));
        let bytes: [u8; 8] = digest.bytes()[..8].try_into().expect("BUG: a digest has 32 bytes");
        Some(Gumbel {
            seed: u64::from_le_bytes(bytes),
            temperature: sampling.temperature,
            top_k: sampling.top_k.map(|k| k as usize),
            top_p: sampling.top_p,
            min_p: sampling.min_p,
        })
    }

    /// The noise on one token at one position.
    fn noise(&self, position: usize, token: usize) -> f64 {
        let hash = mix(self.seed ^ mix(position as u64 ^ mix(token as u64)));
        // 53 bits, strictly between 0 and 1.
        let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -(-uniform.ln()).ln()
    }

    /// Logits with noise; tokens outside top-k or top-p at minus infinity.
    pub(super) fn perturb(&self, logits: &[f32], position: usize) -> Vec<f32> {
        let scaled: Vec<f64> = logits.iter().map(|l| f64::from(*l) / self.temperature).collect();
        let kept = self.kept(&scaled);
        let mut out = vec![f32::NEG_INFINITY; logits.len()];
        for token in kept {
            out[token] = (scaled[token] + self.noise(position, token)) as f32;
        }
        out
    }

    /// The tokens that may be drawn: the k likeliest, of them the fewest that make up top-p, and of those the
    /// ones that are not less likely than min-p of the likeliest.
    fn kept(&self, scaled: &[f64]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..scaled.len()).collect();
        if self.top_k.is_none() && self.top_p.is_none() && self.min_p.is_none() {
            return order;
        }
        // Equal logits in the order of their tokens.
        order.sort_by(|a, b| scaled[*b].total_cmp(&scaled[*a]).then(a.cmp(b)));
        order.truncate(self.top_k.unwrap_or(order.len()).max(1));
        if let Some(top_p) = self.top_p {
            let greatest = scaled[order[0]];
            let weights: Vec<f64> = order.iter().map(|t| (scaled[*t] - greatest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut sum = 0.0;
            let enough = weights.iter().position(|weight| {
                sum += weight / total;
                sum >= top_p
            });
            order.truncate(enough.map_or(order.len(), |last| last + 1));
        }
        if let Some(min_p) = self.min_p {
            let least = scaled[order[0]] + min_p.ln();
            order.retain(|token| scaled[*token] >= least);
        }
        order
    }
}

/// The finaliser of SplitMix64 (Steele, Lea & Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(gumbel: impl Fn(u64) -> Gumbel, logits: &[f32], n: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for seed in 0..n {
            let out = gumbel(seed).perturb(logits, 7);
            let best = (0..out.len()).max_by(|a, b| out[*a].total_cmp(&out[*b])).unwrap();
            counts[best] += 1.0 / n as f64;
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [1.0_f32, 2.0, 0.0];
        let gumbel = |seed| Gumbel {
            seed: mix(seed),
            temperature: 2.0,
            top_k: None,
            top_p: None,
            min_p: None,
        };
        let shares = draws(gumbel, &logits, 20_000);
        let weights: Vec<f64> = logits.iter().map(|l| f64::from(*l / 2.0).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (share, weight) in shares.iter().zip(&weights) {
            // Five standard errors of a share of 20,000 draws.
            assert!((share - weight / total).abs() < 0.018, "{shares:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_rest_out() {
        let logits = [3.0_f32, 2.0, 1.0, 0.0];
        let with = |top_k, top_p| Gumbel { seed: 1, temperature: 1.0, top_k, top_p, min_p: None };
        let scaled: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        assert_eq!(with(Some(2), None).kept(&scaled), [0, 1]);
        // Shares 0.64, 0.24, 0.09, 0.03.
        assert_eq!(with(None, Some(0.6)).kept(&scaled), [0]);
        assert_eq!(with(None, Some(0.8)).kept(&scaled), [0, 1]);
        assert_eq!(with(None, Some(1.0)).kept(&scaled).len(), 4);
        let min_p = Gumbel { min_p: Some(0.3), ..with(None, None) };
        assert_eq!(min_p.kept(&scaled), [0, 1]);
    }
}
