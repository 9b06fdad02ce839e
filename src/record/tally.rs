//! Counts and metrics of many samples, one at a time. Knows nothing of time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Stopping;
use super::scores::right;
use crate::digest::Digest;
use crate::sample::{Outcome, Reading, Sample, Score};
use crate::scorer::{bleu, chrf, normal};
use crate::stats::{Clusters, Estimator, Interval};

/// Adds up samples without keeping them.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    samples: u64,
    outcomes: BTreeMap<Outcome, u64>,
    scores: Scores,
    /// By extractor, in the order of the manifest.
    readings: Vec<Readings>,
    /// Rows before the one under way: the draws of a row are a cluster.
    rows: Clusters,
    /// The row under way: its flow, the last draw, and which draws were right.
    row: Option<(Digest, u32)>,
    draws: Vec<f64>,
}

/// Names of what is worked out over all answers together, from 0 to 1: BLEU and chrF as papers state them.
pub const CORPUS: [&str; 2] = ["corpus_bleu", "corpus_chrf"];

/// Sum of values and number of samples with one, by scorer, in the order of first use.
#[derive(Debug, Clone, Default)]
struct Scores {
    by_scorer: Vec<(String, f64, u64)>,
    /// Samples on which the first scorer came to a verdict.
    judged: u64,
    correct: u64,
    unscored: BTreeMap<String, BTreeMap<String, u64>>,
    /// All answers as one corpus, where sentences are compared.
    bleu: Option<bleu::Corpus>,
    chrf: Option<chrf::Corpus>,
}

impl Scores {
    fn add(&mut self, scores: &[Score], answer: Option<&str>, targets: &[String]) {
        let has = |name: &str| scores.iter().any(|s| s.scorer == name && s.value.is_some());
        if let Some(answer) = answer {
            if has("bleu") {
                self.bleu.get_or_insert_default().add(answer, targets);
            }
            if has("chrf") {
                self.chrf.get_or_insert_default().add(answer, targets);
            }
        }
        if let Some(right) = scores.first().and_then(Score::is_right) {
            self.judged += 1;
            self.correct += u64::from(right);
        }
        for score in scores {
            let (value, n) = score.value.map_or((0.0, 0), |value| (value, 1));
            match self.by_scorer.iter_mut().find(|(name, ..)| *name == score.scorer) {
                Some((_, sum, count)) => {
                    *sum += value;
                    *count += n;
                }
                None => self.by_scorer.push((score.scorer.clone(), value, n)),
            }
            if let Some(why) = score.unscored {
                let counts = self.unscored.entry(score.scorer.clone()).or_default();
                *counts.entry(why.name().to_owned()).or_default() += 1;
            }
        }
    }

    fn means(&self) -> BTreeMap<String, Option<f64>> {
        let mean = |(name, sum, n): &(String, f64, u64)| (name.clone(), share(*sum, *n));
        let mut means: BTreeMap<_, _> = self.by_scorer.iter().map(mean).collect();
        let corpora = [
            (CORPUS[0], self.bleu.as_ref().map(bleu::Corpus::value)),
            (CORPUS[1], self.chrf.as_ref().map(chrf::Corpus::value)),
        ];
        for (name, value) in corpora {
            means.extend(value.map(|value| (name.to_owned(), Some(value))));
        }
        means
    }
}

/// What one extractor read.
#[derive(Debug, Clone, Default)]
struct Readings {
    extractor: String,
    replies: u64,
    read: u64,
    differs: u64,
    verdict_differs: u64,
    scores: Scores,
}

/// The metrics of a set of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TallySummary {
    /// How many.
    pub samples: u64,
    /// How they ended; outcomes that did not occur are absent.
    pub outcomes: BTreeMap<String, u64>,
    /// `accuracy` (the first scorer, at 1.0) and the mean of every scorer, over answered samples only;
    /// `accuracy_all` counts samples without an answer as wrong. Beside the scorers `bleu` and `chrf` those of all
    /// answers as a corpus ([`CORPUS`]). Null of no samples.
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
    /// Answers on which a scorer came to no verdict: scorer, why, how many.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub unscored: BTreeMap<String, BTreeMap<String, u64>>,
    /// By extractor, in the order of the manifest; the first one's numbers are those above.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub extractors: Vec<ExtractorSummary>,
}

/// What one extractor read, beside the first one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExtractorSummary {
    /// Its name.
    pub extractor: String,
    /// Replies that extractors were given.
    pub replies: u64,
    /// Of these, those in which it found an answer.
    pub read: u64,
    /// As the metrics of all samples, over the answers that it found; `accuracy_all` is over all replies.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// Answers that the first scorer holds fully right.
    pub correct: u64,
    /// Replies from which it took another answer than the first extractor (as the first scorer reads it, else in
    /// normal form), or only one of the two took any.
    pub differs: u64,
    /// Of these, those whose verdict by the first scorer is another one; no answer is not right.
    pub verdict_differs: u64,
}

/// By how much `includes` may lie above `exact_match` before the form of answers is worth a look.
const FORM_GAP_MAX: f64 = 0.20;

impl TallySummary {
    /// Answers that hold the target but are not just it, as a share: `includes` − `exact_match`. `None` without
    /// both.
    pub fn form_gap(&self) -> Option<f64> {
        let metric = |name: &str| self.metrics.get(name).copied().flatten();
        Some(metric("includes")? - metric("exact_match")?)
    }

    /// What these numbers should not be read without.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(gap) = self.form_gap().filter(|gap| *gap > FORM_GAP_MAX + 1e-9) {
            warnings.push(format!(
                "the form gap is {:.1} points: that many more answers hold the target (`includes`) than are the \
                 target (`exact_match`), so what is measured is form as much as knowledge; change instructions or \
                 `extractors`, or let `includes` come first",
                gap * 100.0
            ));
        }
        for (scorer, counts) in &self.unscored {
            let all: Vec<_> = counts.iter().map(|(why, n)| format!("{n} {why}")).collect();
            warnings.push(format!(
                "`{scorer}` came to no verdict on some answers, which are in no mean: {}",
                all.join(", ")
            ));
        }
        warnings
    }
}

fn share(sum: f64, n: u64) -> Option<f64> {
    (n > 0).then(|| sum / n as f64)
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
        self.scores.add(&sample.scores, sample.answer.as_deref(), &sample.targets);
        let Some(first) = sample.readings.first() else { return };
        let right =
            |reading: &Reading| reading.scores.first().and_then(Score::is_right).unwrap_or(false);
        // 18 and $18.00 are one answer where a number is asked for.
        let form = |reading: &Reading| {
            let parsed = reading.scores.first().and_then(|score| score.parsed.clone());
            parsed.or_else(|| reading.answer.as_deref().map(normal::text))
        };
        let first_form = form(first);
        for (i, reading) in sample.readings.iter().enumerate() {
            if self.readings.len() <= i {
                let extractor = reading.extractor.clone();
                self.readings.push(Readings { extractor, ..Readings::default() });
            }
            let sum = &mut self.readings[i];
            sum.replies += 1;
            sum.read += u64::from(reading.answer.is_some());
            sum.scores.add(&reading.scores, reading.answer.as_deref(), &sample.targets);
            if i > 0 && form(reading) != first_form {
                sum.differs += 1;
                sum.verdict_differs += u64::from(right(reading) != right(first));
            }
        }
    }

    /// How many samples ended that way.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    /// The metrics so far.
    pub fn summary(&self) -> TallySummary {
        let answered = self.outcome(Outcome::Answered);
        // Without targets there are no scores, and then no accuracy either.
        let (scored, correct) = (self.scores.judged, self.scores.correct);
        let asked =
            self.samples - self.outcome(Outcome::ProviderError) - self.outcome(Outcome::Cancelled);
        let mut metrics = self.scores.means();
        metrics.insert("accuracy".to_owned(), share(correct as f64, scored));
        let all = if scored == 0 && answered > 0 { None } else { share(correct as f64, asked) };
        metrics.insert("accuracy_all".to_owned(), all);
        let mut rows = self.rows.clone();
        rows.add(self.draws.iter().copied());
        let estimate = rows.estimate();
        TallySummary {
            samples: self.samples,
            outcomes: self.outcomes.iter().map(|(o, n)| (o.name().to_owned(), *n)).collect(),
            metrics,
            correct,
            accuracy_ci: estimate.and_then(|estimate| estimate.ci),
            accuracy_by: estimate.map(|estimate| estimate.estimator),
            stopping: None,
            unscored: self.scores.unscored.clone(),
            extractors: self.readings.iter().map(Readings::summary).collect(),
        }
    }
}

impl Readings {
    fn summary(&self) -> ExtractorSummary {
        let correct = self.scores.correct;
        let mut metrics = self.scores.means();
        metrics.insert("accuracy".to_owned(), share(correct as f64, self.scores.judged));
        let all = if self.scores.judged == 0 && self.read > 0 {
            None
        } else {
            share(correct as f64, self.replies)
        };
        metrics.insert("accuracy_all".to_owned(), all);
        ExtractorSummary {
            extractor: self.extractor.clone(),
            replies: self.replies,
            read: self.read,
            metrics,
            correct,
            differs: self.differs,
            verdict_differs: self.verdict_differs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Digest, Recipe};
    use crate::sample::Unscored;

    fn sample(outcome: Outcome, value: Option<f64>) -> Sample {
        let score = |value| Score { value: Some(value), ..Score::new("exact_match") };
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
            readings: vec![],
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

    #[test]
    fn no_verdict_is_neither_right_nor_wrong() {
        let mut tally = Tally::default();
        tally.add(&sample(Outcome::Answered, Some(1.0)));
        let mut judged = sample(Outcome::Answered, Some(0.0));
        judged.scores = vec![
            Score::none("exact_match", Unscored::UnparsableVerdict, "?"),
            Score { value: Some(1.0), ..Score::new("f1") },
        ];
        tally.add(&judged);
        let summary = tally.summary();
        assert_eq!(summary.metrics["accuracy"], Some(1.0));
        assert_eq!(summary.metrics["exact_match"], Some(1.0));
        assert!(summary.accuracy_ci.is_some());
        assert_eq!(summary.unscored["exact_match"]["unparsable_verdict"], 1);
        assert_eq!(summary.warnings().len(), 1);
    }

    #[test]
    fn a_form_gap_above_20_points_is_told() {
        let check = |includes: u32, gap: Option<f64>, warnings: usize| {
            let mut tally = Tally::default();
            for i in 0..10 {
                let mut one = sample(Outcome::Answered, Some(0.0));
                let value = Some(f64::from(u8::from(i < includes)));
                one.scores.push(Score { value, ..Score::new("includes") });
                tally.add(&one);
            }
            let summary = tally.summary();
            assert_eq!((summary.form_gap(), summary.warnings().len()), (gap, warnings));
        };
        check(2, Some(0.2), 0);
        check(3, Some(0.3), 1);
    }

    #[test]
    fn extractors_are_compared_with_the_first() {
        let mut tally = Tally::default();
        let reading = |extractor: &str, answer: Option<&str>, right: f64| Reading {
            extractor: extractor.into(),
            answer: answer.map(str::to_owned),
            scores: answer
                .map(|_| Score { value: Some(right), ..Score::new("exact_match") })
                .into_iter()
                .collect(),
        };
        let mut add = |outcome, strict: (Option<&str>, f64), flexible: (Option<&str>, f64)| {
            let mut one = sample(outcome, None);
            one.readings = vec![
                reading("strict", strict.0, strict.1),
                reading("flexible", flexible.0, flexible.1),
            ];
            one.scores = one.readings[0].scores.clone();
            tally.add(&one);
        };
        add(Outcome::Answered, (Some("5"), 1.0), (Some("5."), 1.0));
        add(Outcome::Answered, (Some("5"), 0.0), (Some("6"), 0.0));
        add(Outcome::Unparsable, (None, 0.0), (Some("7"), 1.0));
        let summary = tally.summary();
        assert_eq!(summary.metrics["accuracy"], Some(0.5));
        let [strict, flexible] = &summary.extractors[..] else { panic!("{summary:?}") };
        assert_eq!((strict.replies, strict.read, strict.differs), (3, 2, 0));
        assert_eq!((flexible.read, flexible.differs, flexible.verdict_differs), (3, 2, 1));
        assert_eq!(flexible.metrics["accuracy_all"], Some(2.0 / 3.0));
    }

    #[test]
    fn extractors_agree_where_the_first_scorer_reads_the_same() {
        let mut tally = Tally::default();
        let reading = |extractor: &str, answer: &str, parsed: &str| Reading {
            extractor: extractor.into(),
            answer: Some(answer.to_owned()),
            scores: vec![Score {
                value: Some(1.0),
                parsed: Some(parsed.to_owned()),
                ..Score::new("numeric")
            }],
        };
        let mut one = sample(Outcome::Answered, Some(1.0));
        one.readings = vec![reading("strict", "$18.00", "18"), reading("last", "18", "18")];
        tally.add(&one);
        one.readings[1] = reading("last", "9", "9");
        tally.add(&one);
        assert_eq!(tally.summary().extractors[1].differs, 1);
    }
}
