//! How far a mean may be from the truth. Knows nothing of samples: values come as rows, each with the values
//! of all its draws and the cluster that it belongs to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// The coverage of every interval.
pub const CONFIDENCE: f64 = 0.95;

/// Two-sided 95 % quantile of the standard normal distribution.
const Z_95: f64 = 1.959_963_984_540_054;

/// Degrees of freedom from which the quantile of Student's t is taken from its series, which is then right to
/// nine digits; that of statrs 0.19 has lost the fourth one at a million.
const SERIES_FROM: f64 = 300.0;

/// A confidence interval, both ends in the unit of its estimate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
}

impl Interval {
    /// Half of its width.
    pub fn half_width(&self) -> f64 {
        (self.upper - self.lower) / 2.0
    }

    pub(super) fn clipped(self, low: f64, high: f64) -> Interval {
        Interval { lower: self.lower.max(low), upper: self.upper.min(high) }
    }
}

/// How an interval was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// The score interval of a proportion (Wilson 1927).
    Wilson,
    /// The same with the number of independent answers that the draws are worth.
    WilsonClustered,
    /// Mean ± t · standard error.
    T,
    /// The same with the clustered standard error.
    TClustered,
    /// A difference of paired proportions (Bonett & Price 2012).
    BonettPrice,
    /// Expanded percentiles of a seeded bootstrap over clusters.
    Bootstrap,
    /// Time-uniform, of a proportion: mixture of a uniform prior.
    BetaBinomial,
    /// Time-uniform, of any mean between 0 and 1: hedged betting.
    Betting,
}

impl Estimator {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Estimator::Wilson => "Wilson",
            Estimator::WilsonClustered => "Wilson, clustered",
            Estimator::T => "t",
            Estimator::TClustered => "t, clustered",
            Estimator::BonettPrice => "Bonett-Price, paired",
            Estimator::Bootstrap => "bootstrap, paired",
            Estimator::BetaBinomial => "beta-binomial, time-uniform",
            Estimator::Betting => "betting, time-uniform",
        }
    }
}

/// A mean with what is known of its error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean over all draws.
    pub value: f64,
    /// Its 95 % interval; absent where there is one cluster alone.
    pub ci: Option<Interval>,
    /// How the interval was made.
    pub estimator: Estimator,
    /// Its standard error; draws of one cluster are taken as dependent.
    pub standard_error: Option<f64>,
    /// Values.
    pub draws: u64,
    /// Clusters, which are independent of each other.
    pub clusters: u64,
}

/// The values of one row: one for each draw that has one.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Rows of one cluster depend on each other; draws of one row always do.
    pub cluster: usize,
    /// In the order of the draws.
    pub values: Vec<f64>,
}

/// The two-sided 95 % quantile of Student's t.
pub(super) fn critical(freedom: f64) -> f64 {
    if freedom >= SERIES_FROM {
        // Abramowitz & Stegun 26.7.5.
        let z = Z_95;
        let first = (z.powi(3) + z) / 4.0;
        let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
        let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
        return z + first / freedom + second / freedom.powi(2) + third / freedom.powi(3);
    }
    let t = StudentsT::new(0.0, 1.0, freedom).expect("BUG: degrees of freedom are positive");
    t.inverse_cdf((1.0 + CONFIDENCE) / 2.0)
}

/// The quantile of the standard normal distribution.
pub(super) fn normal_quantile(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

/// P(|Z| > z) of the standard normal distribution.
pub(super) fn normal_tails(z: f64) -> f64 {
    statrs::function::erf::erfc(z.abs() / std::f64::consts::SQRT_2)
}

/// P(|T| > t) of Student's t.
pub(super) fn t_tails(t: f64, freedom: f64) -> f64 {
    let distribution = StudentsT::new(0.0, 1.0, freedom);
    2.0 * distribution.expect("BUG: degrees of freedom are positive").sf(t.abs())
}

/// The 95 % score interval of a proportion (Wilson 1927), which holds up for small `n` and for
/// proportions near 0 and 1, where the usual ±1.96·SE does not. `None` of no trials.
pub fn wilson(successes: u64, n: u64) -> Option<Interval> {
    (n > 0).then(|| score_interval(successes as f64 / n as f64, n as f64, Z_95))
}

/// Wilson's interval of `n` answers, which need not be a whole number.
fn score_interval(p: f64, n: f64, z: f64) -> Interval {
    let z2 = z * z;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { lower: (centre - half).max(0.0), upper: (centre + half).min(1.0) }
}

/// Adds up clusters without keeping them.
#[derive(Debug, Clone, Default)]
pub struct Clusters {
    clusters: u64,
    draws: u64,
    sum: f64,
    /// Sums over clusters of: sum², sum · draws, draws².
    squares: (f64, f64, f64),
    /// Whether some value is neither 0 nor 1, and whether some is below 0 or above 1.
    graded: bool,
    unbounded: bool,
}

impl Clusters {
    /// Adds a cluster: all values of all its rows.
    pub fn add(&mut self, values: impl IntoIterator<Item = f64>) {
        let (mut sum, mut draws) = (0.0, 0_u64);
        for value in values {
            sum += value;
            draws += 1;
            self.graded |= value != 0.0 && value != 1.0;
            self.unbounded |= !(0.0..=1.0).contains(&value);
        }
        if draws == 0 {
            return;
        }
        let n = draws as f64;
        self.clusters += 1;
        self.draws += draws;
        self.sum += sum;
        self.squares.0 += sum * sum;
        self.squares.1 += sum * n;
        self.squares.2 += n * n;
    }

    /// The standard error of the mean when clusters are independent and the values in one are not: the
    /// sandwich estimator with the factor G/(G−1), as `cov_type="cluster"` of statsmodels gives it for a
    /// regression on a constant; Miller (2024), "Adding error bars to evals", without that factor. Where each
    /// value is a cluster by itself it is s/√n.
    fn standard_error(&self) -> Option<f64> {
        if self.clusters < 2 {
            return None;
        }
        let (g, n) = (self.clusters as f64, self.draws as f64);
        let mean = self.sum / n;
        let (ss, sn, nn) = self.squares;
        let squares = ss - 2.0 * mean * sn + mean * mean * nn;
        // What is left of equal numbers after rounding is no spread.
        let noise = 1e-12 * (ss + mean * mean * nn);
        let squares = if squares <= noise { 0.0 } else { squares };
        Some((g / (g - 1.0) * squares).sqrt() / n)
    }

    /// The mean of all values with its interval; `None` of no values.
    ///
    /// A proportion of independent answers has Wilson's interval. With several draws of a row, or rows in
    /// clusters, it is Wilson's with the effective number of answers p(1−p)/SE² in place of n (Korn & Graubard
    /// 1998; Franco, Little, Louis & Slud 2019) and the quantile of t with G−1 degrees of freedom. Where
    /// nothing varies no standard error can say how much it might, and the clusters are what is counted. Other
    /// means have mean ± t·SE.
    pub fn estimate(&self) -> Option<Estimate> {
        if self.draws == 0 {
            return None;
        }
        let (g, n) = (self.clusters as f64, self.draws as f64);
        let value = self.sum / n;
        let independent = self.clusters == self.draws;
        let standard_error = self.standard_error();
        let flat = standard_error == Some(0.0);
        let (ci, estimator) = if !self.graded && independent {
            (wilson(self.sum as u64, self.draws), Estimator::Wilson)
        } else if !self.unbounded && (!self.graded || flat) {
            let ci = standard_error.map(|se| {
                let varies = value * (1.0 - value);
                let effective = match (varies > 0.0 && !self.graded, se > 0.0) {
                    (true, true) => (varies / (se * se)).min(n),
                    (true, false) => n,
                    (false, _) => g,
                };
                score_interval(value, effective, critical(g - 1.0))
            });
            (ci, Estimator::WilsonClustered)
        } else {
            let ci = standard_error.map(|se| {
                let half = critical(g - 1.0) * se;
                let ci = Interval { lower: value - half, upper: value + half };
                if self.unbounded { ci } else { ci.clipped(0.0, 1.0) }
            });
            (ci, if independent { Estimator::T } else { Estimator::TClustered })
        };
        let (draws, clusters) = (self.draws, self.clusters);
        Some(Estimate { value, ci, estimator, standard_error, draws, clusters })
    }
}

/// The mean of all values of all rows; `None` of no values. See [`Clusters::estimate`].
pub fn estimate(rows: &[Row]) -> Option<Estimate> {
    let mut by_cluster: BTreeMap<usize, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_cluster.entry(row.cluster).or_default().push(row);
    }
    let mut clusters = Clusters::default();
    for rows in by_cluster.values() {
        clusters.add(rows.iter().flat_map(|row| row.values.iter().copied()));
    }
    clusters.estimate()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Rng;

    /// Each row a cluster of its own.
    fn rows(values: impl IntoIterator<Item = impl AsRef<[f64]>>) -> Vec<Row> {
        let rows = values.into_iter().enumerate();
        rows.map(|(cluster, values)| Row { cluster, values: values.as_ref().to_vec() }).collect()
    }

    fn width(rows: &[Row]) -> f64 {
        estimate(rows).unwrap().ci.unwrap().half_width() * 2.0
    }

    #[test]
    fn wilson_agrees_with_statsmodels() {
        // statsmodels.stats.proportion.proportion_confint(17, 25, method="wilson")
        let interval = wilson(17, 25).unwrap();
        assert!((interval.lower - 0.484_102_692_7).abs() < 1e-9, "{interval:?}");
        assert!((interval.upper - 0.827_948_096_9).abs() < 1e-9, "{interval:?}");
        assert_eq!(wilson(0, 0), None);
    }

    #[test]
    fn k_epochs_are_neither_one_answer_nor_k_independent_ones() {
        // The same answer five times over says no more than one answer.
        let once: Vec<Row> = rows([[1.0], [0.0]].repeat(50));
        let copied: Vec<Row> = rows([[1.0; 5], [0.0; 5]].repeat(50));
        let (one, five) = (width(&once), width(&copied));
        assert!((five / one - 1.0).abs() < 0.03, "{one} {five}");
        // Five draws that have nothing to do with their row are five answers.
        let mut rng = Rng::new(5);
        let mut coin = |_| f64::from(u8::from(rng.uniform() < 0.5));
        let drawn: Vec<Row> = (0..400)
            .map(|cluster| Row { cluster, values: (0..5).map(&mut coin).collect() })
            .collect();
        let pooled = wilson(
            drawn.iter().flat_map(|r| &r.values).filter(|v| **v == 1.0).count() as u64,
            2000,
        );
        let ratio = width(&drawn) / (pooled.unwrap().half_width() * 2.0);
        assert!((0.9..1.15).contains(&ratio), "{ratio}");
        // And they are not counted as 400, which would be wider by √5.
        let first: Vec<Row> =
            drawn.iter().map(|row| Row { values: row.values[..1].to_vec(), ..*row }).collect();
        assert!((width(&first) / width(&drawn) / 5_f64.sqrt() - 1.0).abs() < 0.15);
        assert_eq!(estimate(&drawn).unwrap().clusters, 400);
    }

    #[test]
    fn rows_of_one_cluster_are_dependent_too() {
        let alone = rows([[1.0], [0.0]].repeat(4));
        let mut paired = alone.clone();
        // Rows 0 and 2, 1 and 3, … say the same.
        for (i, row) in paired.iter_mut().enumerate() {
            row.cluster = [0, 1, 0, 1, 2, 3, 2, 3][i];
        }
        assert!(width(&paired) > 1.3 * width(&alone));
        assert_eq!(estimate(&paired).unwrap().estimator, Estimator::WilsonClustered);
    }

    #[test]
    fn what_never_varies_still_has_an_interval() {
        let right = rows([[1.0; 5]; 20]);
        let ci = estimate(&right).unwrap().ci.unwrap();
        assert!(ci.upper == 1.0 && (0.80..0.87).contains(&ci.lower), "{ci:?}");
        let graded = rows([[0.5]; 20]);
        assert!(width(&graded) > 0.3, "20 equal grades are 20 answers");
    }

    #[test]
    fn an_interval_holds_its_estimate_and_is_absent_of_one_cluster() {
        let mut rng = Rng::new(11);
        for case in 0..500 {
            let n = 2 + rng.below(40);
            let made: Vec<Row> = (0..n)
                .map(|i| Row {
                    cluster: if case % 3 == 0 { i / 2 } else { i },
                    values: (0..1 + rng.below(4))
                        .map(|_| match case % 2 {
                            0 => rng.uniform(),
                            _ => f64::from(u8::from(rng.uniform() < 0.8)),
                        })
                        .collect(),
                })
                .collect();
            let got = estimate(&made).unwrap();
            let Some(ci) = got.ci else {
                assert_eq!(got.clusters, 1);
                continue;
            };
            assert!(ci.lower <= got.value + 1e-12 && got.value <= ci.upper + 1e-12, "{got:?}");
            assert!(ci.lower >= 0.0 && ci.upper <= 1.0, "{got:?}");
        }
        assert_eq!(estimate(&[]), None);
        assert_eq!(estimate(&rows([[0.3, 0.5]])).unwrap().ci, None);
    }
}
