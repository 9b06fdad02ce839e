//! Statistics over finished numbers. Knows nothing of samples; of no data it says `None`, never zero.

use serde::{Deserialize, Serialize};

/// The value below which a share `q` (0-1) of `sorted` lies: linear interpolation between order
/// statistics, type 7 of Hyndman & Fan (1996), the default of R and NumPy.
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    debug_assert!(sorted.is_sorted(), "BUG: percentile of unsorted data");
    let last = sorted.len().checked_sub(1)?;
    let position = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * (position - low as f64))
}

/// Count, total and the usual points of a set of durations in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many values.
    pub count: u64,
    /// Their sum.
    pub total_ms: f64,
    /// Arithmetic mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
}

impl Summary {
    /// The summary of `values`, in any order; `None` of no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let total_ms: f64 = values.iter().sum();
        Some(Summary {
            count: values.len() as u64,
            total_ms,
            mean_ms: total_ms / values.len() as f64,
            p50_ms: percentile(&values, 0.50)?,
            p90_ms: percentile(&values, 0.90)?,
            p95_ms: percentile(&values, 0.95)?,
            p99_ms: percentile(&values, 0.99)?,
        })
    }
}

/// Values above this many are kept as a histogram.
const EXACT_MAX: usize = 1_000_000;

/// Durations under way to their summary: exact up to a million of them, and then a histogram of constant
/// size whose percentiles are right to three digits (HdrHistogram).
#[derive(Debug, Default)]
pub struct Collector {
    exact: Vec<f64>,
    rough: Option<Rough>,
}

#[derive(Debug)]
struct Rough {
    /// In ns.
    histogram: hdrhistogram::Histogram<u64>,
    total_ms: f64,
}

impl Rough {
    fn add(&mut self, ms: f64) {
        self.total_ms += ms;
        self.histogram.saturating_record((ms * 1e6).round().max(0.0) as u64);
    }
}

impl Collector {
    /// Adds a duration in ms.
    pub fn add(&mut self, ms: f64) {
        if let Some(rough) = &mut self.rough {
            return rough.add(ms);
        }
        self.exact.push(ms);
        if self.exact.len() > EXACT_MAX {
            // Up to a day, in ns; 0.6 MB.
            let histogram = hdrhistogram::Histogram::new_with_bounds(1, 86_400_000_000_000, 3)
                .expect("BUG: bounds and digits are constants");
            let mut rough = Rough { histogram, total_ms: 0.0 };
            std::mem::take(&mut self.exact).into_iter().for_each(|ms| rough.add(ms));
            self.rough = Some(rough);
        }
    }

    /// What was added; `None` of nothing.
    pub fn finish(self) -> Option<Summary> {
        let Some(Rough { histogram, total_ms }) = self.rough else {
            return Summary::of(self.exact);
        };
        let at = |q| histogram.value_at_quantile(q) as f64 / 1e6;
        Some(Summary {
            count: histogram.len(),
            total_ms,
            mean_ms: total_ms / histogram.len() as f64,
            p50_ms: at(0.50),
            p90_ms: at(0.90),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
        })
    }
}

/// A confidence interval, both ends in the unit of its estimate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
}

/// Two-sided 95 % quantile of the standard normal distribution.
const Z_95: f64 = 1.959_963_984_540_054;

/// The 95 % score interval of a proportion (Wilson 1927), which holds up for small `n` and for
/// proportions near 0 and 1, where the usual ±1.96·SE does not. `None` of no trials.
pub fn wilson(successes: u64, n: u64) -> Option<Interval> {
    if n == 0 {
        return None;
    }
    let (n, p) = (n as f64, successes as f64 / n as f64);
    let z2 = Z_95 * Z_95;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Some(Interval { lower: (centre - half).max(0.0), upper: (centre + half).min(1.0) })
}

/// Arithmetic mean; `None` of no values.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.into_iter().fold((0.0, 0_u64), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / n as f64)
}

/// One bar of a histogram: how many values lie in `[from, to)`; the last bar includes its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// Lower edge.
    pub from: f64,
    /// Upper edge.
    pub to: f64,
    /// Values between them.
    pub count: u64,
}

/// A histogram of `bars` equal widths from the least to the greatest value; empty of no values.
pub fn histogram(values: &[f64], bars: usize) -> Vec<Bar> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.is_empty() || bars == 0 {
        return Vec::new();
    }
    // Equal values still need a bar with a width.
    let width = if high > low { (high - low) / bars as f64 } else { 1.0 };
    let edge = |i: usize| low + width * i as f64;
    let mut out: Vec<_> =
        (0..bars).map(|i| Bar { from: edge(i), to: edge(i + 1), count: 0 }).collect();
    for value in values {
        let bar = (((value - low) / width) as usize).min(bars - 1);
        out[bar].count += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: Option<f64>, want: f64) {
        let got = got.expect("a value");
        assert!((got - want).abs() < 1e-6, "{got} is not {want}");
    }

    #[test]
    fn percentiles_agree_with_numpy() {
        // numpy.percentile([1, 2, 4, 8], [0, 50, 95, 100])
        let data = [1.0, 2.0, 4.0, 8.0];
        close(percentile(&data, 0.0), 1.0);
        close(percentile(&data, 0.5), 3.0);
        close(percentile(&data, 0.95), 7.4);
        close(percentile(&data, 1.0), 8.0);
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn wilson_agrees_with_statsmodels() {
        // statsmodels.stats.proportion.proportion_confint(17, 25, method="wilson")
        let interval = wilson(17, 25).unwrap();
        close(Some(interval.lower), 0.484_102_692_7);
        close(Some(interval.upper), 0.827_948_096_9);
        let all = wilson(25, 25).unwrap();
        close(Some(all.upper), 1.0);
        close(Some(all.lower), 0.866_807_749_1);
        assert_eq!(wilson(0, 0), None);
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        let bars = histogram(&[1.0, 1.0, 2.0, 3.0], 2);
        assert_eq!(bars.iter().map(|bar| bar.count).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(histogram(&[5.0, 5.0], 3).iter().map(|bar| bar.count).sum::<u64>(), 2);
        assert!(histogram(&[], 3).is_empty());
    }

    #[test]
    fn a_million_and_more_durations_have_the_same_percentiles_to_three_digits() {
        let mut collector = Collector::default();
        let value = |i: u64| (i * 7919 % 1_200_000) as f64 / 1000.0 + 1.0;
        (0..1_200_000).for_each(|i| collector.add(value(i)));
        assert!(collector.exact.is_empty(), "what is rough takes no room for each value");
        let rough = collector.finish().unwrap();
        let exact = Summary::of((0..1_200_000).map(value).collect()).unwrap();
        assert_eq!(rough.count, exact.count);
        let pairs = [
            (rough.mean_ms, exact.mean_ms),
            (rough.p50_ms, exact.p50_ms),
            (rough.p90_ms, exact.p90_ms),
            (rough.p99_ms, exact.p99_ms),
        ];
        for (rough, exact) in pairs {
            assert!((rough / exact - 1.0).abs() < 1e-3, "{rough} is not {exact}");
        }
    }

    #[test]
    fn a_summary_of_nothing_is_absent() {
        assert_eq!(Summary::of(vec![]), None);
        let summary = Summary::of(vec![3.0, 1.0]).unwrap();
        assert_eq!((summary.count, summary.mean_ms, summary.p50_ms), (2, 2.0, 2.0));
    }
}
