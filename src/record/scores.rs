//! Samples as a table: a row for each flow, in it a value for each draw; its means with their intervals, and two
//! of them compared. The one place for it: reports, gates and differences of runs ask here.
//! Knows nothing of how results are shown.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::sample::{Outcome, Sample, Score};
use crate::stats::{
    self, Betting, Draw, Estimate, Estimator, Interval, Reduced, Reducer, beta_binomial, vote,
};

mod pairs;

pub use pairs::{Both, Comparison, adjust, both, compare, keep_common};

/// By what rows of two tables belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PairBy {
    /// What is asked and what is right: the flow's digest, of equal ones the first with the first.
    #[default]
    Content,
    /// The flow's name and what is right: for two ways to ask the same.
    Id,
}

/// What stands in a table, and in every other made of the same flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowId {
    content: Digest,
    /// How many rows of the same content come before it.
    occurrence: u32,
}

/// Gives rows their names, in the order of a table.
#[derive(Debug, Clone, Default)]
pub struct RowIds {
    by: PairBy,
    seen: HashMap<Digest, u32>,
}

impl RowIds {
    /// By content or by name.
    pub fn by(by: PairBy) -> Self {
        RowIds { by, seen: HashMap::new() }
    }

    /// The next row, by its first sample.
    pub fn next(&mut self, sample: &Sample) -> RowId {
        let content = match self.by {
            PairBy::Content => sample.flow_digest,
            PairBy::Id => Digest::of_json(&(&sample.flow, &sample.targets)),
        };
        let seen = self.seen.entry(content).or_default();
        *seen += 1;
        RowId { content, occurrence: *seen - 1 }
    }
}

/// What is measured of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metric {
    /// Whether the first scorer holds it fully right.
    Accuracy,
    /// The same, and what has no answer is wrong.
    AccuracyAll,
    /// The value of a scorer.
    Scorer(String),
}

impl Metric {
    /// The metric of a name in reports.
    pub fn of(name: &str) -> Metric {
        match name {
            "accuracy" => Metric::Accuracy,
            "accuracy_all" => Metric::AccuracyAll,
            scorer => Metric::Scorer(scorer.to_owned()),
        }
    }

    /// Whether a reducer is for it: counts are of what is right, and grades are not.
    pub fn fits(&self, reducer: Reducer) -> bool {
        match (self, reducer) {
            (_, Reducer::Mean) | (Metric::Accuracy, _) => true,
            (Metric::Scorer(_), Reducer::Majority | Reducer::Max) => true,
            (Metric::Scorer(_) | Metric::AccuracyAll, _) => false,
        }
    }

    /// The name in reports.
    pub fn name(&self) -> &str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::AccuracyAll => "accuracy_all",
            Metric::Scorer(name) => name,
        }
    }

    fn score<'a>(&self, sample: &'a Sample) -> Option<&'a Score> {
        match self {
            Metric::Scorer(name) => sample.scores.iter().find(|score| score.scorer == *name),
            _ => sample.scores.first(),
        }
    }

    fn value(&self, sample: &Sample) -> Option<f64> {
        let graded = matches!(self, Metric::Scorer(_));
        let value = self.score(sample).and_then(|score| match graded {
            true => score.value,
            false => score.is_right().map(|right| f64::from(u8::from(right))),
        });
        let unanswered = sample.outcome.is_final() && sample.outcome != Outcome::Answered;
        value.or((*self == Metric::AccuracyAll && unanswered).then_some(0.0))
    }

    /// A draw votes for its answer, never for what a scorer says of it: two wrong answers that a judge calls wrong are
    /// two answers.
    fn draw<'a>(&self, sample: &'a Sample) -> Draw<'a> {
        let parsed = self.score(sample).and_then(|score| score.parsed.as_deref());
        let answer = || sample.answer.as_deref().map(|answer| Cow::Owned(form(answer)));
        let reading = parsed.map(Cow::Borrowed).or_else(answer);
        Draw { asked: sample.outcome.is_final(), value: self.value(sample), reading }
    }
}

/// An answer that its scorer compares in no form of its own, as judges and programs do: equal but for case and spaces.
/// Signs, articles and punctuation stay, as nobody knows here whether they matter: `x+1` is not `x-1`. What else is to
/// count as one answer is for an extractor to say.
fn form(answer: &str) -> String {
    let words: Vec<&str> = answer.split_whitespace().collect();
    words.join(" ").to_lowercase()
}

/// Whether the first scorer holds a sample fully right; `None` without scores.
pub fn right(sample: &Sample) -> Option<f64> {
    Metric::Accuracy.value(sample)
}

/// The same, and what has no answer is wrong.
pub fn right_of_all(sample: &Sample) -> Option<f64> {
    Metric::AccuracyAll.value(sample)
}

struct RowOf<'a> {
    id: RowId,
    cluster: usize,
    draws: Vec<&'a Sample>,
}

impl RowOf<'_> {
    /// One value of all draws.
    fn reduced(&self, metric: &Metric, reducer: Reducer) -> Reduced {
        match self.draws.as_slice() {
            [draw] => reducer.reduce(&[metric.draw(draw)]),
            draws => {
                let draws: Vec<_> = draws.iter().map(|sample| metric.draw(sample)).collect();
                reducer.reduce(&draws)
            }
        }
    }
}

/// The samples of one workflow.
pub struct ScoreTable<'a> {
    rows: Vec<RowOf<'a>>,
    /// Whether somebody looked at scores along the way and might have stopped: then only time-uniform intervals
    /// hold.
    watched: bool,
}

/// A tag by which rows should be grouped, and that some do not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the flow `{flow}` has no tag `{tag}` (known: {known}); name the column in `tags` of its flow template"
)]
pub struct NoTag {
    flow: String,
    tag: String,
    known: String,
}

/// A mean of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What is measured.
    pub metric: String,
    /// How the draws of a row became one value.
    pub reducer: String,
    /// The mean with its interval; absent where no row has a value.
    pub estimate: Option<Estimate>,
    /// Rows with a value.
    pub rows: u64,
    /// Rows where as many draws gave another answer; of majorities alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ties: Option<u64>,
}

impl<'a> ScoreTable<'a> {
    /// The table of samples in the order in which a workflow writes them: all draws of a row together. Rows with
    /// the same value of the tag `cluster` depend on each other.
    pub fn new(
        samples: impl IntoIterator<Item = &'a Sample>,
        by: PairBy,
        cluster: Option<&str>,
        watched: bool,
    ) -> Result<Self, NoTag> {
        let mut ids = RowIds::by(by);
        let mut clusters: HashMap<&str, usize> = HashMap::new();
        let mut rows: Vec<RowOf<'a>> = Vec::new();
        for sample in samples {
            if let Some(last) = rows.last_mut()
                && last.draws.last().is_some_and(|before| is_next_draw(before, sample))
            {
                last.draws.push(sample);
                continue;
            }
            let cluster = match cluster {
                None => rows.len(),
                Some(tag) => {
                    let value = sample.tags.get(tag).ok_or_else(|| no_tag(sample, tag))?;
                    let next = clusters.len();
                    *clusters.entry(value).or_insert(next)
                }
            };
            rows.push(RowOf { id: ids.next(sample), cluster, draws: vec![sample] });
        }
        Ok(ScoreTable { rows, watched })
    }

    /// Rows.
    pub fn rows(&self) -> u64 {
        self.rows.len() as u64
    }

    /// The most draws that a row has.
    pub fn epochs(&self) -> u64 {
        self.rows.iter().map(|row| row.draws.len() as u64).max().unwrap_or(0)
    }

    /// What can be measured: accuracy, the same over all samples where that is not the same, and each scorer
    /// that says something else.
    pub fn metrics(&self) -> Vec<Metric> {
        let samples = || self.rows.iter().flat_map(|row| row.draws.iter().copied());
        if samples().all(|sample| sample.scores.is_empty()) {
            return Vec::new();
        }
        let mut metrics = vec![Metric::Accuracy];
        let unanswered = |s: &Sample| s.outcome.is_final() && s.outcome != Outcome::Answered;
        if samples().any(unanswered) {
            metrics.push(Metric::AccuracyAll);
        }
        let first = samples().find_map(|sample| Some(sample.scores.first()?.scorer.as_str()));
        let mut names: Vec<&str> = Vec::new();
        for score in samples().flat_map(|sample| &sample.scores) {
            if !names.contains(&score.scorer.as_str()) {
                names.push(&score.scorer);
            }
        }
        let graded = |name: &str| {
            let values = samples().filter_map(|sample| sample.score(name));
            values.into_iter().any(|value| value != 0.0 && value != 1.0)
        };
        let says_more = |name: &&str| Some(*name) != first || graded(name);
        metrics.extend(names.into_iter().filter(says_more).map(|n| Metric::Scorer(n.to_owned())));
        metrics
    }

    /// The draws of each row.
    pub(super) fn draws(&self, metric: &Metric) -> impl Iterator<Item = Vec<Draw<'a>>> {
        self.rows.iter().map(|row| row.draws.iter().map(|sample| metric.draw(sample)).collect())
    }

    /// Whether rows have several answers each, and nowhere are two of them the same: there is nothing to vote over.
    pub fn has_no_majority(&self) -> bool {
        let votes = self.draws(&Metric::Accuracy).filter_map(|draws| vote(&draws));
        let mut votes = votes.filter(|vote| vote.of > 1).peekable();
        votes.peek().is_some() && votes.all(|vote| vote.votes == 1)
    }

    /// The mean of a metric. The mean of draws is over all of them; any other reducer makes one value of a row.
    pub fn measure(&self, metric: &Metric, reducer: Reducer) -> Measure {
        let mut rows: Vec<stats::Row> = Vec::new();
        let mut ties = 0;
        for row in &self.rows {
            let values: Vec<f64> = if reducer == Reducer::Mean {
                row.draws.iter().filter_map(|sample| metric.value(sample)).collect()
            } else {
                let reduced = row.reduced(metric, reducer);
                ties += u64::from(reduced.tie);
                reduced.value.into_iter().collect()
            };
            if !values.is_empty() {
                rows.push(stats::Row { cluster: row.cluster, values });
            }
        }
        let estimate = stats::estimate(&rows).map(|estimate| match self.watched {
            true => watched(estimate, &rows),
            false => estimate,
        });
        Measure {
            metric: metric.name().to_owned(),
            reducer: reducer.to_string(),
            estimate,
            rows: rows.len() as u64,
            ties: (reducer == Reducer::Majority).then_some(ties),
        }
    }
}

/// Whether a sample is a further draw of the row of the one before it.
fn is_next_draw(before: &Sample, sample: &Sample) -> bool {
    before.flow_digest == sample.flow_digest
        && before.flow == sample.flow
        && sample.epoch > before.epoch
}

/// Says that a sample lacks a tag, and which it has.
pub fn no_tag(sample: &Sample, tag: &str) -> NoTag {
    let known: Vec<String> = sample.tags.keys().map(|tag| format!("`{tag}`")).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    NoTag { flow: sample.flow.clone(), tag: tag.to_owned(), known }
}

/// The time-uniform interval of a mean, where there is one: of values between 0 and 1. A row is one observation,
/// whatever the number of its draws.
fn watched(estimate: Estimate, rows: &[stats::Row]) -> Estimate {
    let values: Vec<f64> =
        rows.iter().filter_map(|row| stats::mean(row.values.iter().copied())).collect();
    let (ci, estimator) = time_uniform(&values);
    Estimate { ci, estimator, ..estimate }
}

/// The time-uniform interval of the mean of values in the order in which they came.
pub(super) fn time_uniform(values: &[f64]) -> (Option<Interval>, Estimator) {
    if values.iter().all(|value| *value == 0.0 || *value == 1.0) {
        let right = values.iter().filter(|value| **value == 1.0).count() as u64;
        return (beta_binomial(right, values.len() as u64), Estimator::BetaBinomial);
    }
    if values.iter().any(|value| !(0.0..=1.0).contains(value)) {
        return (None, Estimator::Betting);
    }
    let mut game = Betting::default();
    values.iter().for_each(|value| game.add(*value, &mut []));
    (game.interval(), Estimator::Betting)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::Recipe;
    use crate::stats::Test;

    /// A draw: an answer, or "" for none; right where it is "7".
    fn sample(flow: &str, epoch: u32, answer: &str) -> Sample {
        let value = f64::from(u8::from(answer == "7"));
        let score = |scorer: &str, value| Score { value: Some(value), ..Score::new(scorer) };
        let answered = !answer.is_empty();
        Sample {
            flow: flow.to_owned(),
            flow_digest: Digest::of(flow.as_bytes()),
            epoch,
            key: Recipe::new("sample", 1).key(),
            outcome: if answered { Outcome::Answered } else { Outcome::Truncated },
            detail: None,
            answer: answered.then(|| answer.to_owned()),
            targets: vec!["7".to_owned()],
            scores: match answered {
                true => vec![score("exact_match", value), score("f1", value / 2.0)],
                false => vec![],
            },
            readings: vec![],
            steps: vec![],
            tags: BTreeMap::from([("passage".to_owned(), flow[..1].to_owned())]),
        }
    }

    fn draws(rows: &[(&str, &[&str])]) -> Vec<Sample> {
        let row = |(flow, answers): &(&str, &[&str])| -> Vec<Sample> {
            answers.iter().zip(0..).map(|(answer, epoch)| sample(flow, epoch, answer)).collect()
        };
        rows.iter().flat_map(row).collect()
    }

    fn table(samples: &[Sample]) -> ScoreTable<'_> {
        ScoreTable::new(samples, PairBy::Content, None, false).unwrap()
    }

    const ACCURACY: (Metric, Reducer) = (Metric::Accuracy, Reducer::Mean);

    #[test]
    fn draws_of_a_row_are_one_cluster_and_equal_rows_are_two() {
        let samples = draws(&[("a1", &["7", "7", "8"]), ("a1", &["7", "8", "8"]), ("b1", &["7"])]);
        let table = table(&samples);
        assert_eq!((table.rows(), table.epochs()), (3, 3));
        let mean = table.measure(&Metric::Accuracy, Reducer::Mean).estimate.unwrap();
        assert_eq!((mean.draws, mean.clusters), (7, 3));
        assert!((mean.value - 4.0 / 7.0).abs() < 1e-12);
        let majority = table.measure(&Metric::Accuracy, Reducer::Majority);
        assert_eq!((majority.rows, majority.ties), (3, Some(0)));
        assert!((majority.estimate.unwrap().value - 2.0 / 3.0).abs() < 1e-12);
        let names: Vec<_> = table.metrics().iter().map(|m| m.name().to_owned()).collect();
        assert_eq!(names, ["accuracy", "f1"], "exact_match says what accuracy says");
    }

    /// Three answers: "7" is right and the only one given twice; two others are wrong.
    #[test]
    fn a_vote_is_for_an_answer_and_not_for_what_a_judge_says_of_it() {
        let mut samples = draws(&[("a1", &["8", " 7", "9", "7"])]);
        for sample in &mut samples {
            let right = sample.answer.as_deref().unwrap().trim() == "7";
            let verdict = if right { "correct" } else { "incorrect" };
            sample.scores = vec![Score {
                value: Some(f64::from(u8::from(right))),
                verdict: Some(verdict.to_owned()),
                ..Score::new("judge")
            }];
        }
        let majority = |samples: &[Sample]| {
            let table = table(samples);
            let measure = table.measure(&Metric::Accuracy, Reducer::Majority);
            (measure.estimate.map(|estimate| estimate.value), measure.ties, table.has_no_majority())
        };
        assert_eq!(majority(&samples), (Some(1.0), Some(0), false));
        // Of three wrong ones that are all different, none is what most draws say.
        assert_eq!(majority(&samples[..3]), (Some(0.0), Some(1), true));
        assert_eq!(majority(&samples[..1]), (Some(0.0), Some(0), false), "one draw is no vote");
    }

    #[test]
    fn equal_answers_are_equal_but_for_case_and_spaces() {
        assert_eq!(form(" New  York\n"), form("new york"));
        assert_ne!(form("x+1"), form("x-1"));
        assert_ne!(form("C#"), form("C"));
    }

    #[test]
    fn a_tag_makes_clusters_and_has_to_be_there() {
        let samples = draws(&[("a1", &["7"]), ("a2", &["7"]), ("b1", &["8"])]);
        let by = |tag| ScoreTable::new(&samples, PairBy::Content, Some(tag), false);
        let clustered = by("passage").unwrap().measure(&Metric::Accuracy, Reducer::Mean);
        assert_eq!(clustered.estimate.unwrap().clusters, 2);
        let error = by("topic").err().unwrap().to_string();
        assert!(error.contains("no tag `topic` (known: `passage`)"), "{error}");
    }

    #[test]
    fn rows_are_paired_by_content_whatever_their_order() {
        let one = draws(&[("a", &["7"]), ("b", &["8"]), ("c", &["7"]), ("c", &["8"])]);
        let two = draws(&[("c", &["7"]), ("b", &["7"]), ("a", &["7"]), ("c", &["8"])]);
        let got = compare(("one", &table(&one)), ("two", &table(&two)), &[ACCURACY], false);
        let result = got[0].result.unwrap();
        assert_eq!((result.rows, result.better_a, result.better_b), (4, 0, 1));
        assert_eq!(result.test, Test::McnemarExact);
    }

    #[test]
    fn different_data_are_not_compared() {
        let one = draws(&[("a", &["7"]), ("b", &["8"]), ("c", &["7"])]);
        let two = draws(&[("a", &["7"]), ("d", &["7"])]);
        let got = compare(("one", &table(&one)), ("two", &table(&two)), &[ACCURACY], false);
        assert_eq!((got[0].common, got[0].result), (1, None));
        let refused = got[0].refused.as_deref().unwrap();
        assert_eq!(refused, "different data: 3 rows in `one`, 2 in `two`, 1 in common");
        // A part of the same flows is another matter.
        let part = compare(("one", &table(&one)), ("two", &table(&one[..2])), &[ACCURACY], true);
        assert_eq!(part[0].result.unwrap().rows, 2);
    }

    #[test]
    fn other_prompts_for_the_same_questions_pair_by_name() {
        let one = draws(&[("a", &["7"]), ("b", &["8"])]);
        let mut two = one.clone();
        two.iter_mut().for_each(|sample| sample.flow_digest = Digest::of(b"another prompt"));
        let rows = |by| {
            let table = |samples| ScoreTable::new(samples, by, None, false).unwrap();
            let got = compare(("x", &table(&one)), ("y", &table(&two)), &[ACCURACY], false);
            got[0].result.map(|result| result.rows)
        };
        assert_eq!((rows(PairBy::Content), rows(PairBy::Id)), (None, Some(2)));
    }

    #[test]
    fn what_one_side_did_not_answer_is_wrong_in_accuracy_all_alone() {
        let one = draws(&[("a", &["7"]), ("b", &["7"]), ("c", &["8"])]);
        let two = draws(&[("a", &["7"]), ("b", &[""]), ("c", &["8"])]);
        let all = (Metric::AccuracyAll, Reducer::Mean);
        let got = compare(("one", &table(&one)), ("two", &table(&two)), &[ACCURACY, all], false);
        let rows: Vec<_> = got.iter().map(|c| c.result.map(|r| (r.rows, r.better_a))).collect();
        assert_eq!(rows, [Some((2, 0)), Some((3, 1))]);
    }

    #[test]
    fn who_looked_along_the_way_gets_the_wider_interval() {
        let answers: Vec<String> = (0..100).map(|i| format!("f{i}")).collect();
        let samples: Vec<Sample> = answers
            .iter()
            .enumerate()
            .map(|(i, flow)| sample(flow, 0, if i % 3 == 0 { "8" } else { "7" }))
            .collect();
        let ci = |watched| {
            let table = ScoreTable::new(&samples, PairBy::Content, None, watched).unwrap();
            let estimate = table.measure(&Metric::Accuracy, Reducer::Mean).estimate.unwrap();
            (estimate.estimator, estimate.ci.unwrap().half_width())
        };
        let ((fixed, narrow), (uniform, wide)) = (ci(false), ci(true));
        assert_eq!((fixed, uniform), (Estimator::Wilson, Estimator::BetaBinomial));
        assert!(wide > narrow);
        let watched = ScoreTable::new(&samples, PairBy::Content, None, true).unwrap();
        let got = compare(("a", &watched), ("b", &table(&samples)), &[ACCURACY], true);
        assert_eq!(got[0].result.unwrap().test, Test::Betting);
    }
}
