//! Two sets of values of the same rows. Knows nothing of unpaired data: there is no way to ask for a test that
//! forgets which values belong together.

use serde::{Deserialize, Serialize};

use super::interval::{
    CONFIDENCE, Estimator, Interval, critical, normal_quantile, normal_tails, t_tails,
};
use super::{Rng, percentile};

/// Discordant pairs from which the chi-square approximation is taken.
const EXACT_BELOW: u64 = 25;
/// Resamples of the bootstrap.
const RESAMPLES: usize = 2_000;
/// Random sign flips.
const FLIPS: u32 = 9_999;
/// Up to this many clusters that differ all sign flips are counted.
const ALL_FLIPS_MAX: usize = 12;
/// Above this many clusters Student's t takes over from resampling, which it then agrees with.
const RESAMPLED_MAX: usize = 5_000;
/// Seed of resampling: the same data give the same report.
const SEED: u64 = 0x666f_7267_6520_3031;
/// The chance to see a difference that is there, by which the smallest one is told.
const POWER: f64 = 0.8;

/// The values of one row on both sides; of several draws, their mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Rows of one cluster depend on each other.
    pub cluster: usize,
    /// On the first side.
    pub a: f64,
    /// On the second side.
    pub b: f64,
}

/// How a p-value was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// McNemar's, exact: two-sided binomial.
    McnemarExact,
    /// McNemar's: chi-square with continuity correction.
    Mcnemar,
    /// All sign flips of the differences of clusters.
    SignFlipExact,
    /// Random sign flips of the differences of clusters.
    SignFlip,
    /// Student's t of the differences of clusters.
    T,
    /// Time-uniform: hedged betting against no difference.
    Betting,
}

impl Test {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Test::McnemarExact => "McNemar, exact",
            Test::Mcnemar => "McNemar, χ² corrected",
            Test::SignFlipExact => "sign flips, all",
            Test::SignFlip => "sign flips, random",
            Test::T => "t, clustered",
            Test::Betting => "betting, time-uniform",
        }
    }
}

/// Two sides of the same rows, b − a.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Rows with a value on both sides.
    pub rows: u64,
    /// Clusters of them.
    pub clusters: u64,
    /// Mean of the first side over these rows.
    pub a: f64,
    /// Mean of the second side.
    pub b: f64,
    /// b − a.
    pub difference: f64,
    /// Its 95 % interval.
    pub ci: Option<Interval>,
    /// How the interval was made.
    pub estimator: Estimator,
    /// The chance of a difference as large, or larger, on either side, if there is none.
    pub p: Option<f64>,
    /// How that was found.
    pub test: Test,
    /// Of McNemar's test: the smaller count of discordant pairs, or chi-square.
    pub statistic: Option<f64>,
    /// Rows where the first side is better.
    pub better_a: u64,
    /// Rows where the second side is better.
    pub better_b: u64,
    /// The smallest true difference that this many rows would show in four of five cases. Of shares, one of 1 or more
    /// says that they would show none.
    pub detectable: Option<f64>,
}

/// Compares two sides; `None` of no rows.
///
/// Right and wrong of independent rows: McNemar's test, and the interval of Bonett & Price (2012). Everything
/// else (grades, means over draws, rows in clusters): sign flips and a bootstrap of whole clusters, so that what
/// depends on each other stays together. The detectable difference is (z₀.₉₇₅ + z₀.₈)·SE of the paired
/// difference (Miller 2024, equation 9).
pub fn difference(pairs: &[Pair]) -> Option<Difference> {
    if pairs.is_empty() {
        return None;
    }
    let n = pairs.len() as f64;
    let (a, b) =
        (pairs.iter().map(|p| p.a).sum::<f64>() / n, pairs.iter().map(|p| p.b).sum::<f64>() / n);
    let count = |better: fn(&Pair) -> bool| pairs.iter().filter(|pair| better(pair)).count() as u64;
    let (better_a, better_b) = (count(|pair| pair.a > pair.b), count(|pair| pair.b > pair.a));
    let is_right_or_wrong = |value: f64| value == 0.0 || value == 1.0;
    let binary = pairs.iter().all(|pair| is_right_or_wrong(pair.a) && is_right_or_wrong(pair.b));
    let bounded = |value: f64| (0.0..=1.0).contains(&value);
    let bounded = pairs.iter().all(|pair| bounded(pair.a) && bounded(pair.b));
    let groups = clusters(pairs);
    let independent = groups.len() == pairs.len();
    let mean = (better_b as f64 - better_a as f64) / n;
    let mean = if binary { mean } else { b - a };
    let spread = standard_error(&groups);
    let mut out = Difference {
        rows: pairs.len() as u64,
        clusters: groups.len() as u64,
        a,
        b,
        difference: mean,
        ci: None,
        estimator: Estimator::Bootstrap,
        p: None,
        test: Test::SignFlip,
        statistic: None,
        better_a,
        better_b,
        detectable: spread.filter(|se| *se > 0.0).map(detectable),
    };
    if binary && independent {
        let (ci, se) = bonett_price(better_a, better_b, pairs.len() as u64);
        let (test, statistic, p) = mcnemar(better_a, better_b);
        out.ci = Some(ci);
        out.estimator = Estimator::BonettPrice;
        (out.test, out.statistic, out.p) = (test, Some(statistic), Some(p));
        out.detectable = out.detectable.or(Some(detectable(se)));
        return Some(out);
    }
    if groups.len() > RESAMPLED_MAX {
        let freedom = groups.len() as f64 - 1.0;
        let se = spread.unwrap_or(0.0);
        out.estimator = Estimator::TClustered;
        out.test = Test::T;
        let flat = f64::from(u8::from(mean == 0.0));
        out.p = Some(if se > 0.0 { t_tails(mean / se, freedom) } else { flat });
        let half = critical(freedom) * se;
        out.ci = Some(Interval { lower: mean - half, upper: mean + half });
    } else {
        (out.test, out.p) = sign_flip(&groups);
        out.ci = bootstrap(&groups);
    }
    out.ci = out.ci.map(|ci| if bounded { ci.clipped(-1.0, 1.0) } else { ci });
    Some(out)
}

/// A cluster: the sum of the differences of its rows, and how many they are.
type Group = (f64, f64);

/// In the order of their first row.
fn clusters(pairs: &[Pair]) -> Vec<Group> {
    let mut places = std::collections::HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for pair in pairs {
        let at = *places.entry(pair.cluster).or_insert_with(|| {
            groups.push((0.0, 0.0));
            groups.len() - 1
        });
        groups[at].0 += pair.b - pair.a;
        groups[at].1 += 1.0;
    }
    groups
}

/// See `Clusters::standard_error`.
fn standard_error(groups: &[Group]) -> Option<f64> {
    let g = groups.len() as f64;
    if groups.len() < 2 {
        return None;
    }
    let n: f64 = groups.iter().map(|(_, n)| n).sum();
    let mean = groups.iter().map(|(sum, _)| sum).sum::<f64>() / n;
    let squares: f64 = groups.iter().map(|(sum, n)| (sum - mean * n).powi(2)).sum();
    Some((g / (g - 1.0) * squares).sqrt() / n)
}

fn detectable(standard_error: f64) -> f64 {
    (normal_quantile((1.0 + CONFIDENCE) / 2.0) + normal_quantile(POWER)) * standard_error
}

/// McNemar (1947) as statsmodels does it: exact under 25 discordant pairs, else chi-square with continuity
/// correction. Pairs that agree say nothing of the difference. The test, its statistic and p.
pub(super) fn mcnemar(better_a: u64, better_b: u64) -> (Test, f64, f64) {
    let (less, n) = (better_a.min(better_b), better_a + better_b);
    if n < EXACT_BELOW {
        // So few pairs are counted in whole numbers: of 2^n ways to toss, those at least as lopsided.
        let (mut ways, mut tail) = (1_u64, 0_u64);
        for i in 0..=less {
            tail += ways;
            ways = ways * (n - i) / (i + 1);
        }
        let p = 2.0 * tail as f64 / (1_u64 << n) as f64;
        return (Test::McnemarExact, less as f64, p.min(1.0));
    }
    let apart = better_a.abs_diff(better_b) as f64;
    let statistic = (apart - 1.0).powi(2) / n as f64;
    (Test::Mcnemar, statistic, normal_tails(statistic.sqrt()))
}

/// The difference of paired proportions, with one pair added to each discordant cell (Bonett & Price 2012,
/// recommended by Fagerland, Lydersen & Laake 2014): it has a width even where no pair is discordant. The
/// interval, and the standard error in it.
fn bonett_price(better_a: u64, better_b: u64, n: u64) -> (Interval, f64) {
    let n = n as f64 + 2.0;
    let (a, b) = ((better_a as f64 + 1.0) / n, (better_b as f64 + 1.0) / n);
    let se = ((a + b - (b - a).powi(2)) / n).sqrt();
    let half = normal_quantile((1.0 + CONFIDENCE) / 2.0) * se;
    (Interval { lower: b - a - half, upper: b - a + half }.clipped(-1.0, 1.0), se)
}

/// If there is no difference, the one of each cluster could as well have the other sign. The p-value of random
/// flips counts the data themselves as one of them (Phipson & Smyth 2010), and is never zero.
fn sign_flip(groups: &[Group]) -> (Test, Option<f64>) {
    let sums: Vec<f64> = groups.iter().map(|(sum, _)| *sum).filter(|sum| *sum != 0.0).collect();
    let observed = sums.iter().sum::<f64>().abs();
    // Sums of the same numbers in another order may differ in their last digits.
    let reached = observed - 1e-9 * sums.iter().map(|sum| sum.abs()).sum::<f64>();
    if sums.len() <= ALL_FLIPS_MAX {
        let all = 1_u64 << sums.len();
        let flipped = |signs: u64| {
            let signed = sums.iter().enumerate();
            signed.map(|(i, sum)| if signs >> i & 1 == 1 { -sum } else { *sum }).sum::<f64>()
        };
        let count = (0..all).filter(|signs| flipped(*signs).abs() >= reached).count();
        return (Test::SignFlipExact, Some(count as f64 / all as f64));
    }
    let mut rng = Rng::new(SEED);
    let mut count = 1;
    for _ in 0..FLIPS {
        let mut total = 0.0;
        for part in sums.chunks(64) {
            let mut signs = rng.next_u64();
            for sum in part {
                // Without a branch, which nothing could foresee.
                total += f64::from_bits(sum.to_bits() ^ ((signs & 1) << 63));
                signs >>= 1;
            }
        }
        count += u32::from(total.abs() >= reached);
    }
    (Test::SignFlip, Some(f64::from(count) / f64::from(FLIPS + 1)))
}

/// Percentiles of the mean difference over resampled clusters: as many as there are, with replacement.
/// Percentiles are too close together by √(G−1)/√G · z/t, so those taken lie further out (the expanded
/// percentile interval of Hesterberg 2015).
fn bootstrap(groups: &[Group]) -> Option<Interval> {
    let g = groups.len();
    if g < 2 {
        return None;
    }
    let mut rng = Rng::new(SEED);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let (mut sum, mut rows) = (0.0, 0.0);
            for _ in 0..g {
                let (s, n) = groups[rng.below(g)];
                sum += s;
                rows += n;
            }
            sum / rows
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let tail = expanded_tail(g);
    Some(Interval { lower: percentile(&means, tail)?, upper: percentile(&means, 1.0 - tail)? })
}

/// The share that each end of a percentile interval over `g` clusters leaves out.
pub(super) fn expanded_tail(g: usize) -> f64 {
    let g = g as f64;
    normal_tails((g / (g - 1.0)).sqrt() * critical(g - 1.0)) / 2.0
}

/// P-values of several comparisons such that the chance of any false one stays where it was (Holm 1979). In
/// the order given; those that are absent stay so and count as no comparison.
pub fn holm(p: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut order: Vec<(usize, f64)> =
        p.iter().enumerate().filter_map(|(i, p)| Some((i, (*p)?))).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut out = vec![None; p.len()];
    let mut least = 0.0_f64;
    for (rank, (i, p)) in order.iter().enumerate() {
        least = least.max(((order.len() - rank) as f64 * p).min(1.0));
        out[*i] = Some(least);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(values: impl IntoIterator<Item = (f64, f64)>) -> Vec<Pair> {
        let pair = |(cluster, (a, b))| Pair { cluster, a, b };
        values.into_iter().enumerate().map(pair).collect()
    }

    /// Grades of a standard normal distribution, nearly: sums of twelve uniform ones.
    fn noise(rng: &mut Rng) -> f64 {
        (0..12).map(|_| rng.uniform()).sum::<f64>() - 6.0
    }

    #[test]
    fn sides_can_be_swapped() {
        let mut rng = Rng::new(3);
        for case in 0..200 {
            let n = 1 + rng.below(60);
            let made = pairs((0..n).map(|_| match case % 2 {
                0 => (rng.below(2) as f64, rng.below(2) as f64),
                _ => (rng.uniform(), rng.uniform()),
            }));
            let swapped: Vec<Pair> = made.iter().map(|p| Pair { a: p.b, b: p.a, ..*p }).collect();
            let (one, two) = (difference(&made).unwrap(), difference(&swapped).unwrap());
            assert_eq!(one.p, two.p);
            assert_eq!((one.better_a, one.better_b), (two.better_b, two.better_a));
            assert!((one.difference + two.difference).abs() < 1e-12);
            if let (Some(x), Some(y)) = (one.ci, two.ci) {
                assert!((x.lower + y.upper).abs() < 1e-9 && (x.upper + y.lower).abs() < 1e-9);
                assert!(x.lower <= one.difference && one.difference <= x.upper, "{one:?}");
            }
        }
    }

    #[test]
    fn under_no_difference_every_p_is_as_likely() {
        // 400 data sets in which the sides differ by noise alone.
        let mut rng = Rng::new(17);
        let mut ps: Vec<f64> = (0..400)
            .map(|_| {
                let made = pairs((0..20).map(|_| (noise(&mut rng), noise(&mut rng))));
                difference(&made).unwrap().p.unwrap()
            })
            .collect();
        ps.sort_by(f64::total_cmp);
        // Kolmogorov-Smirnov: 1.63/√400 at 1 %.
        let far = ps.iter().enumerate().map(|(i, p)| (p - (i as f64 + 0.5) / 400.0).abs());
        assert!(far.fold(0.0, f64::max) < 0.08);
    }

    #[test]
    fn a_bootstrap_narrows_with_the_root_of_the_rows_and_agrees_with_t() {
        let mut rng = Rng::new(23);
        let made = pairs((0..1600).map(|_| (0.0, noise(&mut rng))));
        let width = |n: usize| difference(&made[..n]).unwrap().ci.unwrap().half_width();
        for (small, large) in [(100, 400), (400, 1600)] {
            let ratio = width(small) / width(large);
            assert!((1.7..2.3).contains(&ratio), "{small} to {large} rows: {ratio}");
        }
        // The standard deviation is 1: 1.96/√1600.
        assert!((width(1600) / 0.049 - 1.0).abs() < 0.1, "{}", width(1600));
    }

    #[test]
    fn a_bootstrap_of_few_rows_covers_as_often_as_it_says() {
        let mut rng = Rng::new(31);
        let runs = 600;
        let held = (0..runs).filter(|_| {
            let made = pairs((0..10).map(|_| (0.0, noise(&mut rng))));
            let ci = difference(&made).unwrap().ci.unwrap();
            ci.lower <= 0.0 && 0.0 <= ci.upper
        });
        let share = held.count() as f64 / f64::from(runs);
        // Plain percentiles of ten rows hold it in about 90 of 100 cases.
        assert!((0.925..=0.985).contains(&share), "{share}");
    }

    #[test]
    fn copies_of_a_row_in_one_cluster_say_no_more_than_the_row() {
        let mut rng = Rng::new(41);
        let made = pairs((0..40).map(|_| (0.0, noise(&mut rng))));
        let copied: Vec<Pair> = made.iter().flat_map(|pair| [*pair; 4]).collect();
        let (one, four) = (difference(&made).unwrap(), difference(&copied).unwrap());
        assert_eq!((one.p, four.p), (four.p, one.p));
        assert_eq!((four.rows, four.clusters), (160, 40));
        let (one, four) = (one.ci.unwrap().half_width(), four.ci.unwrap().half_width());
        assert!((one / four - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_paired_test_sees_what_an_unpaired_one_does_not() {
        // 60 right against 70 right of 100: as two samples p = 0.14, and as pairs, of which 10 differ, 0.002.
        let made =
            pairs((0..100).map(|i| (f64::from(u8::from(i < 60)), f64::from(u8::from(i < 70)))));
        let got = difference(&made).unwrap();
        assert_eq!((got.better_a, got.better_b, got.test), (0, 10, Test::McnemarExact));
        assert!((got.p.unwrap() - 2.0 / 1024.0).abs() < 1e-12, "{got:?}");
    }

    #[test]
    fn no_discordant_pair_is_no_certainty() {
        let got = difference(&pairs((0..25).map(|_| (1.0, 1.0)))).unwrap();
        assert_eq!((got.difference, got.p), (0.0, Some(1.0)));
        let ci = got.ci.unwrap();
        assert!(ci.lower < -0.08 && ci.upper > 0.08, "{ci:?}");
        assert!(got.detectable.unwrap() > 0.1);
        assert_eq!(difference(&[]), None);
    }

    #[test]
    fn resampling_and_t_agree_where_one_takes_over() {
        let mut rng = Rng::new(43);
        let made = pairs((0..RESAMPLED_MAX + 1).map(|_| (0.0, 0.03 + noise(&mut rng))));
        let by_t = difference(&made).unwrap();
        let groups = clusters(&made);
        let (_, p) = sign_flip(&groups);
        assert_eq!(by_t.test, Test::T);
        assert!((by_t.p.unwrap() - p.unwrap()).abs() < 0.01, "{by_t:?} {p:?}");
        let (one, two) = (by_t.ci.unwrap(), bootstrap(&groups).unwrap());
        assert!((one.lower - two.lower).abs() < 0.002 && (one.upper - two.upper).abs() < 0.002);
    }

    #[test]
    fn holm_keeps_order_and_absence() {
        let got = holm(&[Some(0.04), None, Some(0.01), Some(0.03)]);
        assert_eq!(got, [Some(0.06), None, Some(0.03), Some(0.06)]);
    }
}
