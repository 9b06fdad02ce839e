//! Counts and metrics of many samples, one at a time. Knows nothing of time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Stopping;
use super::scores::right;
use crate::digest::Digest;
use crate::sample::{Outcome, Sample};
use crate::stats::{Clusters, Estimator, Interval};

/// Adds up samples without keeping them.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    samples: u64,
    outcomes: BTreeMap<Outcome, u64>,
    /// Sum of values and number of scored samples, by scorer, in the order of first use.
    scores: Vec<(String, f64, u64)>,
    correct: u64,
    /// Rows before the one under way: the draws of a row are a cluster.
    rows: Clusters,
    /// The row under way: its flow, the last draw, and which draws were right.
    row: Option<(Digest, u32)>,
    draws: Vec<f64>,
}

/// The metrics of a set of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TallySummary {
    /// How many.
    pub samples: u64,
    /// How they ended; outcomes that did not occur are absent.
    pub outcomes: BTreeMap<String, u64>,
    /// `accuracy` (the first scorer, at 1.0) and the mean of every scorer, over answered samples only;
    /// `accuracy_all` counts samples without an answer as wrong. Null of no samples.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// Samples that the first scorer holds fully right.
    pub correct: u64,
    /// The 95 % interval of `accuracy`. Draws of one row count as one cluster.
    pub accuracy_ci: Option<Interval>,
    /// How that was made.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accuracy_by: Option<Estimator>,
    /// How it ended, where it might have stopped early.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stopping: Option<Stopping>,
}

impl Tally {
    /// Adds a sample; all draws of a row come one after another.
    pub fn add(&mut self, sample: &Sample) {
        self.samples += 1;
        let (flow, epoch) = (sample.flow_digest, sample.epoch);
        if self.row.is_none_or(|(before, last)| before != flow || last >= epoch) {
            self.rows.add(self.draws.drain(..));
        }
        self.row = Some((flow, epoch));
        self.draws.extend(right(sample));
        *self.outcomes.entry(sample.outcome).or_default() += 1;
        for (i, score) in sample.scores.iter().enumerate() {
            if i == 0 && score.value >= 1.0 {
                self.correct += 1;
            }
            match self.scores.iter_mut().find(|(name, ..)| *name == score.scorer) {
                Some((_, sum, n)) => {
                    *sum += score.value;
                    *n += 1;
                }
                None => self.scores.push((score.scorer.clone(), score.value, 1)),
            }
        }
    }

    /// How many samples ended that way.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    /// The metrics so far.
    pub fn summary(&self) -> TallySummary {
        let share = |count: u64, n: u64| (n > 0).then(|| count as f64 / n as f64);
        let answered = self.outcome(Outcome::Answered);
        // Without targets there are no scores, and then no accuracy either.
        let scored = self.scores.first().map_or(0, |(_, _, n)| *n);
        let asked =
            self.samples - self.outcome(Outcome::ProviderError) - self.outcome(Outcome::Cancelled);
        let mut metrics: BTreeMap<String, Option<f64>> = self
            .scores
            .iter()
            .map(|(name, sum, n)| (name.clone(), (*n > 0).then(|| sum / *n as f64)))
            .collect();
        metrics.insert("accuracy".to_owned(), share(self.correct, scored));
        let all = if scored == 0 && answered > 0 { None } else { share(self.correct, asked) };
        metrics.insert("accuracy_all".to_owned(), all);
        let mut rows = self.rows.clone();
        rows.add(self.draws.iter().copied());
        let estimate = rows.estimate();
        TallySummary {
            samples: self.samples,
            outcomes: self.outcomes.iter().map(|(o, n)| (o.name().to_owned(), *n)).collect(),
            metrics,
            correct: self.correct,
            accuracy_ci: estimate.and_then(|estimate| estimate.ci),
            accuracy_by: estimate.map(|estimate| estimate.estimator),
            stopping: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Digest, Recipe};
    use crate::sample::Score;

    fn sample(outcome: Outcome, value: Option<f64>) -> Sample {
        let score =
            |value| Score { scorer: "exact_match".into(), value, matched: None, parsed: None };
        Sample {
            flow: "f".into(),
            flow_digest: Digest::of(b""),
            epoch: 0,
            key: Recipe::new("sample", 1).key(),
            outcome,
            detail: None,
            answer: None,
            targets: vec![],
            scores: value.into_iter().map(score).collect(),
            steps: vec![],
            tags: BTreeMap::new(),
        }
    }

    #[test]
    fn what_was_cut_off_is_not_wrong() {
        let mut tally = Tally::default();
        tally.add(&sample(Outcome::Answered, Some(1.0)));
        tally.add(&sample(Outcome::Answered, Some(0.0)));
        tally.add(&sample(Outcome::Truncated, None));
        let summary = tally.summary();
        assert_eq!(summary.metrics["accuracy"], Some(0.5));
        assert_eq!(summary.metrics["accuracy_all"], Some(1.0 / 3.0));
        assert_eq!(summary.outcomes["truncated"], 1);
    }

    #[test]
    fn draws_of_a_row_are_not_answers_of_their_own() {
        let tally = |epochs: u32| {
            let mut tally = Tally::default();
            for row in 0..40_u8 {
                for epoch in 0..epochs {
                    let right = f64::from(row % 2);
                    let flow_digest = Digest::of(&[row]);
                    let drawn = sample(Outcome::Answered, Some(right));
                    tally.add(&Sample { epoch, flow_digest, ..drawn });
                }
            }
            tally.summary()
        };
        let (one, five) = (tally(1), tally(5));
        assert_eq!(one.accuracy_by, Some(Estimator::Wilson));
        assert_eq!(five.accuracy_by, Some(Estimator::WilsonClustered));
        let ratio = five.accuracy_ci.unwrap().half_width() / one.accuracy_ci.unwrap().half_width();
        assert!((0.97..1.1).contains(&ratio), "five equal draws are worth one: {ratio}");
    }

    #[test]
    fn without_samples_or_targets_there_is_no_accuracy() {
        assert_eq!(Tally::default().summary().metrics["accuracy"], None);
        let mut tally = Tally::default();
        tally.add(&sample(Outcome::Answered, None));
        assert_eq!(tally.summary().metrics["accuracy"], None);
        assert_eq!(tally.summary().metrics["accuracy_all"], None);
    }
}
