//! Many durations to a few numbers. Knows nothing of what took so long.

use serde::{Deserialize, Serialize};

use super::percentile;

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

#[cfg(test)]
mod tests {
    use super::*;

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
