//! Bounds on what clients may ask of the server: how often, and how much at once. Knows nothing of what they ask.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Addresses that are remembered; more of them share what is left.
const ADDRESSES_MAX: usize = 10_000;

/// A bucket of tokens for each address: it holds `burst` of them and gets `rate` a second.
pub struct Rates {
    rate: f64,
    burst: f64,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Rates {
    /// Requests a second, of which twice as many may come at once.
    pub fn new(rate: f64) -> Rates {
        Rates { rate, burst: (rate * 2.0).max(1.0), buckets: Mutex::default() }
    }

    /// Takes a token of an address; an error says how long to wait for the next one.
    pub fn take(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().expect("BUG: the rate lock is poisoned");
        if buckets.len() >= ADDRESSES_MAX && !buckets.contains_key(&address) {
            // Full buckets say no more than none.
            let full = Duration::from_secs_f64(self.burst / self.rate);
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.filled) < full);
            if buckets.len() >= ADDRESSES_MAX {
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = buckets.entry(address).or_insert(Bucket { tokens: self.burst, filled: now });
        let gained = now.saturating_duration_since(bucket.filled).as_secs_f64() * self.rate;
        bucket.tokens = (bucket.tokens + gained).min(self.burst);
        bucket.filled = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.tokens) / self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let (rates, now) = (Rates::new(2.0), Instant::now());
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([10, 0, 0, 1]));
        for _ in 0..4 {
            assert!(rates.take(one, now).is_ok());
        }
        let wait = rates.take(one, now).unwrap_err();
        assert!((0.4..=0.5).contains(&wait.as_secs_f64()), "{wait:?}");
        assert!(rates.take(other, now).is_ok());
        assert!(rates.take(one, now + Duration::from_millis(500)).is_ok());
        assert!(rates.take(one, now + Duration::from_millis(500)).is_err());
    }
}
