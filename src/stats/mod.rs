//! Statistics over finished numbers. Knows nothing of samples; of no data it says `None`, never zero.

use serde::{Deserialize, Serialize};

mod interval;
mod paired;
#[cfg(test)]
mod reference;
mod repeat;
mod rng;
mod sequence;
mod summary;

pub use interval::{CONFIDENCE, Clusters, Estimate, Estimator, Interval, Row, estimate, wilson};
pub use paired::{Difference, Pair, Test, difference, holm};
pub use repeat::{BadReducer, Draw, REDUCERS, Reduced, Reducer, Vote, vote};
pub use rng::Rng;
pub use sequence::{Betting, Wager, beta_binomial};
pub use summary::{Collector, Summary};

/// The value below which a share `q` (0-1) of `sorted` lies: linear interpolation between order
/// statistics, type 7 of Hyndman & Fan (1996), the default of R and NumPy.
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    debug_assert!(sorted.is_sorted(), "BUG: percentile of unsorted data");
    let last = sorted.len().checked_sub(1)?;
    let position = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * (position - low as f64))
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
    fn a_histogram_counts_every_value_once() {
        let bars = histogram(&[1.0, 1.0, 2.0, 3.0], 2);
        assert_eq!(bars.iter().map(|bar| bar.count).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(histogram(&[5.0, 5.0], 3).iter().map(|bar| bar.count).sum::<u64>(), 2);
        assert!(histogram(&[], 3).is_empty());
    }
}
