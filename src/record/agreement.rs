//! How far the draws of a row agree, and how often what most of them say is right. Knows nothing of how it is shown.
//!
//! The share of draws that gave the answer most draws gave is taken as a confidence (Wang et al. 2023,
//! "Self-consistency improves chain of thought reasoning", §3.5): of rows where 80 % agree, 80 % should be right.

use serde::{Deserialize, Serialize};

use super::scores::{Metric, ScoreTable};
use crate::stats::{Interval, mean, vote, wilson};

/// Bins of equal width from 0 to 1; a row on an edge is in the lower one.
const BINS: usize = 5;

/// Rows with about as much agreement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgreementBin {
    /// Agreement above this…
    pub from: f64,
    /// … and at most this.
    pub to: f64,
    /// Rows.
    pub rows: u64,
    /// Their mean agreement.
    pub agreement: f64,
    /// Share of them whose answer of most draws is right.
    pub right: f64,
    /// Its 95 % interval (Wilson).
    pub ci: Option<Interval>,
}

/// The draws of all rows that have at least two answers, and a verdict on that of most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Those rows.
    pub rows: u64,
    /// Mean over rows of the share of right draws: what a single draw comes to.
    pub single: f64,
    /// Share of rows whose answer of most draws is right.
    pub majority: f64,
    /// Expected calibration error (Guo et al. 2017, "On calibration of modern neural networks"): mean over rows of
    /// the distance between agreement and share of right ones in their bin.
    pub calibration_error: f64,
    /// Bins with rows, in order.
    pub bins: Vec<AgreementBin>,
}

impl Agreement {
    /// Of the verdicts of a table; `None` where no row has two draws with one.
    pub fn of(table: &ScoreTable<'_>) -> Option<Agreement> {
        // Per bin: rows, sum of agreement, right ones.
        let mut bins = [(0_u64, 0.0, 0_u64); BINS];
        let mut single = 0.0;
        for draws in table.draws(&Metric::Accuracy) {
            let Some(vote) = vote(&draws).filter(|vote| vote.of > 1) else { continue };
            let Some(value) = vote.value else { continue };
            let bin = &mut bins[bin_of(vote.votes, vote.of)];
            bin.0 += 1;
            bin.1 += vote.votes as f64 / vote.of as f64;
            bin.2 += u64::from(value >= 1.0);
            let judged = draws.iter().filter(|d| d.reading.is_some()).filter_map(|d| d.value);
            single += mean(judged).unwrap_or(0.0);
        }
        let rows: u64 = bins.iter().map(|(rows, ..)| rows).sum();
        if rows == 0 {
            return None;
        }
        let right: u64 = bins.iter().map(|(.., right)| right).sum();
        let edge = |i: usize| i as f64 / BINS as f64;
        let bins = bins.into_iter().enumerate().filter(|(_, (rows, ..))| *rows > 0);
        let bins = bins.map(|(i, (rows, agreement, right))| AgreementBin {
            from: edge(i),
            to: edge(i + 1),
            rows,
            agreement: agreement / rows as f64,
            right: right as f64 / rows as f64,
            ci: wilson(right, rows),
        });
        let bins: Vec<AgreementBin> = bins.collect();
        let off = |bin: &AgreementBin| bin.rows as f64 * (bin.right - bin.agreement).abs();
        Some(Agreement {
            rows,
            single: single / rows as f64,
            majority: right as f64 / rows as f64,
            calibration_error: bins.iter().map(off).sum::<f64>() / rows as f64,
            bins,
        })
    }
}

/// The bin of `votes / of`, without the rounding of a division: 3 of 5 belongs to (0.4, 0.6].
fn bin_of(votes: u64, of: u64) -> usize {
    let scaled = votes * BINS as u64;
    (scaled.div_ceil(of.max(1)) as usize).clamp(1, BINS) - 1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::{Digest, Recipe};
    use crate::record::scores::PairBy;
    use crate::sample::{Outcome, Sample, Score};

    fn samples(rows: &[(&str, &[&str])]) -> Vec<Sample> {
        let draw = |flow: &str, epoch: usize, answer: &str| Sample {
            flow: flow.to_owned(),
            flow_digest: Digest::of(flow.as_bytes()),
            epoch: epoch as u32,
            key: Recipe::new("sample", 1).key(),
            outcome: Outcome::Answered,
            detail: None,
            answer: Some(answer.to_owned()),
            targets: vec!["42".to_owned()],
            scores: vec![Score {
                value: Some(f64::from(u8::from(answer == "42"))),
                ..Score::new("exact_match")
            }],
            readings: vec![],
            steps: vec![],
            tags: BTreeMap::new(),
        };
        let row = |(flow, answers): &(&str, &[&str])| -> Vec<_> {
            answers.iter().enumerate().map(|(i, answer)| draw(flow, i, answer)).collect()
        };
        rows.iter().flat_map(row).collect()
    }

    #[test]
    fn agreement_and_majority_by_hand() {
        let samples = samples(&[
            ("a", &["42", "42", "42", "42"]),
            ("b", &["42", "42", "42", "7"]),
            ("c", &["7", "7", "42", "8"]),
            ("d", &["7", "7", "7", "42"]),
        ]);
        let table = ScoreTable::new(&samples, PairBy::Content, None, false).unwrap();
        let agreement = Agreement::of(&table).unwrap();
        assert_eq!((agreement.rows, agreement.majority), (4, 0.5));
        assert!((agreement.single - (1.0 + 0.75 + 0.25 + 0.25) / 4.0).abs() < 1e-12);
        let bins: Vec<_> =
            agreement.bins.iter().map(|b| (b.to, b.rows, b.agreement, b.right)).collect();
        assert_eq!(bins, [(0.6, 1, 0.5, 0.0), (0.8, 2, 0.75, 0.5), (1.0, 1, 1.0, 1.0)]);
        // (1 · 0.5 + 2 · 0.25 + 1 · 0) / 4
        assert!((agreement.calibration_error - 0.25).abs() < 1e-12);
    }

    #[test]
    fn one_draw_agrees_with_nobody() {
        let samples = samples(&[("a", &["42"]), ("b", &["7"])]);
        let table = ScoreTable::new(&samples, PairBy::Content, None, false).unwrap();
        assert_eq!(Agreement::of(&table), None);
    }

    #[test]
    fn a_share_on_an_edge_is_in_the_lower_bin() {
        let places = [(1, 5), (2, 5), (3, 5), (5, 5), (1, 3), (2, 3), (1, 10)];
        assert_eq!(places.map(|(votes, of)| bin_of(votes, of)), [0, 1, 2, 4, 1, 3, 0]);
    }
}
