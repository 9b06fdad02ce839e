//! Random numbers from a seed: the same on every machine and in every release. Knows nothing of clocks.

/// SplitMix64 (Steele, Lea & Flood 2014). Its own few lines and no crate: what a report shows must not
/// change because a library found a better generator.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `n`, without bias (Lemire 2019). `n` is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            // Of 2^64 values the first 2^64 mod n would be one too many. Those are fewer than n, so that nearly always
            // there is nothing to divide.
            let low = wide as u64;
            if low >= n || low >= n.wrapping_neg() % n {
                return (wide >> 64) as usize;
            }
        }
    }

    /// Uniform in [0, 1), with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_seed_never_change() {
        // The values of the authors' own program for this seed.
        let mut rng = Rng::new(1_234_567);
        let got: Vec<u64> = (0..5).map(|_| rng.next_u64()).collect();
        let want = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(got, want);
        let mut rng = Rng::new(7);
        let got: Vec<usize> = (0..8).map(|_| rng.below(10)).collect();
        assert_eq!(got, [3, 0, 9, 5, 4, 2, 4, 3]);
        assert_eq!(Rng::new(7).uniform(), 0.3898297483912715);
    }

    #[test]
    fn every_number_below_is_as_likely() {
        let mut rng = Rng::new(1);
        let mut counts = [0_u32; 7];
        (0..70_000).for_each(|_| counts[rng.below(7)] += 1);
        assert!(counts.iter().all(|n| (9_600..10_400).contains(n)), "{counts:?}");
    }
}
