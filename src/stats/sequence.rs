//! Intervals that hold at every moment at once. Whoever looks after each row and stops where a fixed-n interval
//! looks good is wrong far more often than in 5 of 100 cases; these are not, however often somebody looks.
//! Knows nothing of what is looked at.

use statrs::function::beta::ln_beta;

use super::interval::{CONFIDENCE, Interval};

/// ln 20: a fair game whose stake grows twentyfold does so in 5 of 100 cases at most (Ville 1939).
fn threshold() -> f64 {
    -(1.0 - CONFIDENCE).ln()
}

/// Halvings of a bisection: past the digits of a double.
const HALVINGS: u32 = 60;

/// The largest share of what is left that is staked on one value.
const STAKE_MAX: f64 = 0.5;

/// The time-uniform 95 % interval of a proportion: those p against which the likelihood, mixed over a uniform
/// prior, has not won twentyfold (Robbins 1970; Howard et al. 2021). `None` of no trials.
pub fn beta_binomial(successes: u64, n: u64) -> Option<Interval> {
    if n == 0 {
        return None;
    }
    let (k, n) = (successes as f64, n as f64);
    let mixture = ln_beta(k + 1.0, n - k + 1.0);
    let log = |count: f64, p: f64| if count == 0.0 { 0.0 } else { count * p.ln() };
    let refuted = |p: f64| mixture - log(k, p) - log(n - k, 1.0 - p) >= threshold();
    Some(around(k / n, refuted))
}

/// The interval of what is not refuted, around an estimate that is not; both ends lie on the refuted side, or
/// at 0 and 1.
fn around(estimate: f64, refuted: impl Fn(f64) -> bool) -> Interval {
    let end = |outer: f64| {
        if !refuted(outer) {
            return outer;
        }
        let (mut out, mut inside) = (outer, estimate);
        for _ in 0..HALVINGS {
            let middle = (out + inside) / 2.0;
            if refuted(middle) {
                out = middle;
            } else {
                inside = middle;
            }
        }
        out
    };
    Interval { lower: end(0.0), upper: end(1.0) }
}

/// A gambler who bets against a mean: half of the stake on larger values, half on smaller ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wager {
    mean: f64,
    /// Logarithms of what the two halves have become.
    up: f64,
    down: f64,
    /// The most that either was.
    most: f64,
}

impl Wager {
    /// Against `mean`, between 0 and 1.
    pub fn against(mean: f64) -> Self {
        Wager { mean, up: 0.0, down: 0.0, most: f64::NEG_INFINITY }
    }

    fn add(&mut self, value: f64, stake: f64) {
        let m = self.mean;
        let gain = |stake: f64| (stake * (value - m)).ln_1p();
        self.up += gain(stake.min(if m > 0.0 { STAKE_MAX / m } else { f64::MAX }));
        self.down += gain(-stake.min(if m < 1.0 { STAKE_MAX / (1.0 - m) } else { f64::MAX }));
        self.most = self.most.max(self.up.max(self.down) - std::f64::consts::LN_2);
    }

    /// Whether the mean is larger than the one bet against, and smaller, at this moment.
    fn verdict(&self) -> (bool, bool) {
        let won = |half: f64| half - std::f64::consts::LN_2 >= threshold();
        (won(self.up), won(self.down))
    }

    /// A p-value that holds whenever one looks.
    pub fn p(&self) -> f64 {
        (-self.most).exp().min(1.0)
    }
}

/// Values between 0 and 1, in the order in which they came, and the time-uniform 95 % interval of their mean:
/// hedged betting with predictable stakes (Waudby-Smith & Ramdas 2023, "Estimating means of bounded random
/// variables by betting", theorem 3 and equations 24 to 26).
///
/// It holds for rows in random order, whatever their distribution; a table that is sorted by difficulty has to
/// be shuffled first.
#[derive(Debug, Clone, Default)]
pub struct Betting {
    /// Values with the stake on each.
    rounds: Vec<(f64, f64)>,
    sum: f64,
    /// Of squared distances from the mean before.
    squares: f64,
}

impl Betting {
    /// Adds a value, and lets gamblers bet on it.
    pub fn add(&mut self, value: f64, wagers: &mut [Wager]) {
        debug_assert!((0.0..=1.0).contains(&value), "BUG: a value out of bounds is bet on");
        let t = self.rounds.len() as f64 + 1.0;
        // Of what came before alone: a stake that knew its value would be no fair game.
        let variance = (0.25 + self.squares) / t;
        let alpha = 1.0 - CONFIDENCE;
        let stake = (2.0 * (2.0 / alpha).ln() / (variance * t * (t + 1.0).ln())).sqrt();
        self.rounds.push((value, stake));
        self.sum += value;
        let mean = (0.5 + self.sum) / (t + 1.0);
        self.squares += (value - mean).powi(2);
        wagers.iter_mut().for_each(|wager| wager.add(value, stake));
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.rounds.len() as u64
    }

    /// Their mean; `None` of none.
    pub fn mean(&self) -> Option<f64> {
        (!self.rounds.is_empty()).then(|| self.sum / self.rounds.len() as f64)
    }

    /// The interval; `None` of no values. Takes time in proportion to their number.
    pub fn interval(&self) -> Option<Interval> {
        let estimate = self.mean()?;
        let verdict = |mean: f64| {
            let mut wager = Wager::against(mean);
            self.rounds.iter().for_each(|(value, stake)| wager.add(*value, *stake));
            wager.verdict()
        };
        // What `up` wins falls with the mean bet against and what `down` wins rises, so each refutes a tail.
        let lower = around(estimate, |mean| verdict(mean).0).lower;
        let upper = around(estimate, |mean| verdict(mean).1).upper;
        Some(Interval { lower, upper })
    }
}

impl Wager {
    /// Whether this mean is refuted, and which side of it the truth is on.
    pub fn refuted(&self) -> Option<std::cmp::Ordering> {
        match self.verdict() {
            (true, _) => Some(std::cmp::Ordering::Greater),
            (_, true) => Some(std::cmp::Ordering::Less),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Rng, wilson};

    /// In how many of `runs` sequences of `rows` values somebody who looks after each row ever sees the truth
    /// refuted.
    fn ever_wrong(runs: u64, mut wrong: impl FnMut(&mut Rng) -> bool) -> f64 {
        let count = (0..runs).filter(|run| wrong(&mut Rng::new(1000 + run))).count();
        count as f64 / runs as f64
    }

    fn holds(ci: Interval, truth: f64) -> bool {
        ci.lower <= truth && truth <= ci.upper
    }

    #[test]
    fn a_proportion_is_held_at_every_look_where_wilson_is_not() {
        for truth in [0.5, 0.9] {
            let looked = |interval: fn(u64, u64) -> Option<Interval>| {
                ever_wrong(400, |rng| {
                    let mut right = 0;
                    (1..=400).any(|n| {
                        right += u64::from(rng.uniform() < truth);
                        !holds(interval(right, n).unwrap(), truth)
                    })
                })
            };
            let (sequence, fixed) = (looked(beta_binomial), looked(wilson));
            assert!(sequence <= 0.05, "{truth}: {sequence}");
            assert!(fixed > 0.2, "{truth}: looking at every row, Wilson errs in {fixed}");
        }
    }

    #[test]
    fn betting_holds_any_mean_at_every_look() {
        // Grades, five draws of a row that is easy or hard, and rare differences of pairs.
        type Drawn = fn(&mut Rng) -> f64;
        let kinds: [(f64, Drawn); 3] = [
            (0.25, |rng| rng.uniform() * rng.uniform()),
            (0.5, |rng| {
                let p = if rng.uniform() < 0.5 { 0.1 } else { 0.9 };
                (0..5).filter(|_| rng.uniform() < p).count() as f64 / 5.0
            }),
            (0.5, |rng| match rng.below(20) {
                0 => 0.0,
                1 => 1.0,
                _ => 0.5,
            }),
        ];
        for (truth, draw) in kinds {
            let share = ever_wrong(400, |rng| {
                let (mut game, mut wagers) = (Betting::default(), [Wager::against(truth)]);
                (0..500).any(|_| {
                    game.add(draw(rng), &mut wagers);
                    wagers[0].refuted().is_some()
                })
            });
            assert!(share <= 0.05, "{truth}: {share}");
        }
    }

    #[test]
    fn intervals_hold_their_estimate_and_close_in_on_the_truth() {
        let mut rng = Rng::new(9);
        let (mut game, mut before) = (Betting::default(), 1.0);
        for n in 1..=4000_u32 {
            game.add(rng.uniform(), &mut []);
            if [10, 100, 1000, 4000].contains(&n) {
                let ci = game.interval().unwrap();
                assert!(holds(ci, game.mean().unwrap()) && ci.half_width() < before, "{ci:?}");
                before = ci.half_width();
            }
        }
        // 0.0089 at one look; 0.015 here.
        assert!(before < 0.02, "{before}");
        let all = beta_binomial(50, 50).unwrap();
        assert!(all.upper == 1.0 && (0.85..0.90).contains(&all.lower), "{all:?}");
        assert_eq!(beta_binomial(0, 0), None);
        assert!(Betting::default().interval().is_none());
    }

    #[test]
    fn the_interval_is_what_no_wager_has_refuted() {
        let mut rng = Rng::new(77);
        let mut game = Betting::default();
        let means: Vec<f64> = (1..100).map(|i| f64::from(i) / 100.0).collect();
        let mut wagers: Vec<Wager> = means.iter().map(|mean| Wager::against(*mean)).collect();
        for _ in 0..300 {
            game.add(f64::from(u8::from(rng.uniform() < 0.3)), &mut wagers);
        }
        let ci = game.interval().unwrap();
        for (mean, wager) in means.iter().zip(&wagers) {
            assert_eq!(wager.refuted().is_none(), holds(ci, *mean), "{mean} {ci:?}");
        }
    }

    #[test]
    fn a_difference_is_found_and_its_p_is_small() {
        let mut rng = Rng::new(4);
        let (mut game, mut wagers) = (Betting::default(), [Wager::against(0.5)]);
        let found = (0..2000).find(|_| {
            let draw = match rng.below(10) {
                0..3 => 1.0,
                3 => 0.0,
                _ => 0.5,
            };
            game.add(draw, &mut wagers);
            wagers[0].refuted().is_some()
        });
        assert!(found.is_some_and(|n| n < 300), "{found:?}");
        assert_eq!(wagers[0].refuted(), Some(std::cmp::Ordering::Greater));
        assert!(wagers[0].p() <= 0.05);
    }
}
