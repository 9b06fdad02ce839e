//! When enough has been seen: a rule over samples in the order of their flows, so that the same samples stop at
//! the same one whatever came back first. Knows nothing of who asks.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::TallySummary;
use super::scores::{PairBy, RowId, RowIds, right, time_uniform};
use crate::sample::{Sample, Usage};
use crate::stats::{Betting, Estimator, Interval, Wager, beta_binomial, mean};

/// Where looking takes time in proportion to the rows, the next look is after this share more of them.
const LOOK_EVERY: f64 = 0.01;

/// When a workflow may stop before its last flow: as soon as one of these holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StopRule {
    /// The time-uniform interval of accuracy is at most this far to each side.
    pub ci_half_width: Option<f64>,
    /// It is decided whether this stage or that one has more accuracy.
    pub decided_against: Option<String>,
    /// With that: both are as good, to this difference.
    pub margin: Option<f64>,
    /// Dollars that the requests cost, or would cost if none were remembered.
    pub budget: Option<f64>,
    /// Input and output tokens of the requests.
    pub tokens: Option<u64>,
}

impl StopRule {
    /// Whether scores decide: then only time-uniform intervals hold.
    pub fn is_watching(&self) -> bool {
        self.ci_half_width.is_some() || self.decided_against.is_some()
    }
}

/// How a workflow with such a rule ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stopping {
    /// Why it stopped; absent where it ran all its flows.
    pub reason: Option<String>,
    /// Rows that were run.
    pub rows: u64,
    /// Samples that were run.
    pub samples: u64,
    /// Samples that there were to run.
    pub of_samples: u64,
    /// Whether scores were looked at along the way.
    pub watched: bool,
}

impl Stopping {
    /// For people.
    pub fn words(&self) -> String {
        match &self.reason {
            Some(reason) => {
                format!("stopped after {} of {} samples: {reason}", self.samples, self.of_samples)
            }
            None => format!("ran all {} samples: `stop_when` never held", self.of_samples),
        }
    }
}

/// Samples so far.
pub struct Stopper {
    rule: StopRule,
    stage: String,
    epochs: u32,
    ids: RowIds,
    /// Accuracy of the other stage, by row.
    rival: HashMap<RowId, f64>,
    /// Of the row under way.
    draws: Vec<f64>,
    /// Of rows with a score, in order.
    values: Vec<f64>,
    right: u64,
    game: Betting,
    next_look: u64,
    duel: Betting,
    /// Against no difference, and against one as large as the margin on either side.
    wagers: [Wager; 3],
    spent: f64,
    tokens: u64,
    rows: u64,
    samples: u64,
    reason: Option<String>,
}

/// Accuracy of each row of the samples of another stage, which come one at a time.
pub fn accuracies<E>(
    samples: impl Iterator<Item = Result<Sample, E>>,
) -> Result<HashMap<RowId, f64>, E> {
    let mut ids = RowIds::by(PairBy::Content);
    let (mut rows, mut row, mut draws) = (HashMap::new(), None, Vec::new());
    let mut close = |row: Option<RowId>, draws: &mut Vec<f64>| {
        rows.extend(row.zip(mean(std::mem::take(draws))));
    };
    for sample in samples {
        let sample = sample?;
        if sample.epoch == 0 {
            close(row.replace(ids.next(&sample)), &mut draws);
        }
        draws.extend(right(&sample));
    }
    close(row, &mut draws);
    Ok(rows)
}

impl Stopper {
    /// Before the first sample of `stage`. `rival` is of the stage that the rule names.
    pub fn new(rule: StopRule, stage: &str, epochs: u32, rival: HashMap<RowId, f64>) -> Self {
        let margin = rule.margin.unwrap_or(1.0);
        let against = |difference: f64| Wager::against((1.0 + difference) / 2.0);
        Stopper {
            rule,
            stage: stage.to_owned(),
            epochs,
            ids: RowIds::by(PairBy::Content),
            rival,
            draws: Vec::new(),
            values: Vec::new(),
            right: 0,
            game: Betting::default(),
            next_look: 1,
            duel: Betting::default(),
            wagers: [against(0.0), against(margin), against(-margin)],
            spent: 0.0,
            tokens: 0,
            rows: 0,
            samples: 0,
            reason: None,
        }
    }

    /// Takes the next sample in the order of flows, with its tokens and what they cost; whether it is the last
    /// one. Draws of a row belong together, so that is asked at the end of a row alone.
    pub fn add(
        &mut self,
        sample: &Sample,
        usage: Usage,
        cost: Option<f64>,
    ) -> Result<bool, String> {
        self.samples += 1;
        self.draws.extend(right(sample));
        let unknown = |what: &str| {
            format!(
                "`stop_when.{what}` cannot be held: nobody counted the tokens of `{}`",
                sample.flow
            )
        };
        if self.rule.budget.is_some() {
            self.spent += cost.ok_or_else(|| unknown("budget"))?;
        }
        if self.rule.tokens.is_some() {
            let tokens = usage.input_tokens.zip(usage.output_tokens);
            self.tokens += tokens.map(|(a, b)| a + b).ok_or_else(|| unknown("tokens"))?;
        }
        if sample.epoch + 1 < self.epochs {
            return Ok(false);
        }
        self.rows += 1;
        let id = self.ids.next(sample);
        if let Some(value) = mean(std::mem::take(&mut self.draws)) {
            self.take(id, value);
        }
        self.reason = self.reason();
        Ok(self.reason.is_some())
    }

    fn take(&mut self, id: RowId, value: f64) {
        self.right += u64::from(value == 1.0);
        self.values.push(value);
        if self.epochs > 1 && self.rule.ci_half_width.is_some() {
            self.game.add(value, &mut []);
        }
        if let Some(rival) = self.rival.get(&id) {
            self.duel.add((value - rival + 1.0) / 2.0, &mut self.wagers);
        }
    }

    fn reason(&mut self) -> Option<String> {
        if let Some(width) = self.rule.ci_half_width
            && let Some(ci) = self.interval()
            && ci.half_width() <= width
        {
            return Some(format!(
                "accuracy is known to ± {:.2} points, which `ci_half_width` asks for",
                ci.half_width() * 100.0
            ));
        }
        if let Some(other) = &self.rule.decided_against {
            let rows = self.duel.count();
            let words = match self.wagers.map(|wager| wager.refuted()) {
                [Some(Ordering::Greater), ..] => Some("has more accuracy than"),
                [Some(_), ..] => Some("has less accuracy than"),
                // Without a margin no two are as good as each other.
                [_, Some(Ordering::Less), Some(Ordering::Greater)]
                    if self.rule.margin.is_some() =>
                {
                    Some("is, to the margin, as good as")
                }
                _ => None,
            };
            if let Some(words) = words {
                let stage = &self.stage;
                return Some(format!(
                    "`{stage}` {words} `{other}`, decided over {rows} common rows"
                ));
            }
        }
        if let Some(budget) = self.rule.budget.filter(|budget| self.spent >= *budget) {
            return Some(format!("its requests cost ${:.4}, the budget is ${budget}", self.spent));
        }
        let tokens = self.rule.tokens.filter(|tokens| self.tokens >= *tokens)?;
        Some(format!("its requests took {} tokens, of {tokens}", self.tokens))
    }

    /// The interval of accuracy, where it is time to look.
    fn interval(&mut self) -> Option<Interval> {
        if self.epochs == 1 {
            return beta_binomial(self.right, self.values.len() as u64);
        }
        let rows = self.game.count();
        if rows < self.next_look {
            return None;
        }
        self.next_look = rows + 1 + (rows as f64 * LOOK_EVERY) as u64;
        self.game.interval()
    }

    /// Says in a summary how it ended, and gives it the interval that holds. `of_samples` is how many there were
    /// to run.
    pub fn conclude(&self, of_samples: u64, summary: &mut TallySummary) {
        let watched = self.rule.is_watching();
        if watched {
            let (ci, by): (_, Estimator) = time_uniform(&self.values);
            (summary.accuracy_ci, summary.accuracy_by) = (ci, Some(by));
        }
        summary.stopping = Some(Stopping {
            reason: self.reason.clone(),
            rows: self.rows,
            samples: self.samples,
            of_samples,
            watched,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::{Digest, Recipe};
    use crate::sample::{Outcome, Score};

    fn sample(row: u32, epoch: u32, right: bool) -> Sample {
        let value = f64::from(u8::from(right));
        Sample {
            flow: row.to_string(),
            flow_digest: Digest::of(&row.to_le_bytes()),
            epoch,
            key: Recipe::new("sample", 1).key(),
            outcome: Outcome::Answered,
            detail: None,
            answer: None,
            targets: vec![],
            scores: vec![Score { value: Some(value), ..Score::new("x") }],
            readings: vec![],
            steps: vec![],
            tags: BTreeMap::new(),
        }
    }

    /// Rows until it stops, of at most a thousand; `right` says which draws are.
    fn rows(rule: StopRule, epochs: u32, right: fn(u32, u32) -> bool) -> (u64, Option<String>) {
        let rival = (0..1000).map(|row| Ok::<_, ()>(sample(row, 0, row % 2 == 0)));
        let mut stopper = Stopper::new(rule, "mine", epochs, accuracies(rival).unwrap());
        for row in 0..1000 {
            for epoch in 0..epochs {
                let drawn = sample(row, epoch, right(row, epoch));
                let stops = stopper.add(&drawn, Usage::ZERO, None).unwrap();
                assert!(!stops || epoch + 1 == epochs, "in the middle of a row");
                if stops {
                    return (stopper.rows, stopper.reason);
                }
            }
        }
        (1000, None)
    }

    fn against(margin: Option<f64>) -> StopRule {
        let decided_against = Some("theirs".to_owned());
        StopRule { decided_against, margin, ..StopRule::default() }
    }

    #[test]
    fn what_is_as_good_is_decided_with_a_margin_alone() {
        let same = |row: u32, _| row.is_multiple_of(2);
        assert_eq!(rows(against(None), 1, same), (1000, None));
        let (at, reason) = rows(against(Some(0.1)), 1, same);
        assert!(at < 300 && reason.unwrap().contains("as good as `theirs`"), "{at}");
        let (at, reason) = rows(against(None), 1, |_, _| true);
        assert!(at < 100 && reason.unwrap().contains("more accuracy than `theirs`"), "{at}");
    }

    #[test]
    fn equal_draws_of_a_row_are_no_more_evidence_than_one() {
        let rule = || StopRule { ci_half_width: Some(0.1), ..StopRule::default() };
        let (one, _) = rows(rule(), 1, |row, _| row % 5 > 0);
        let (copied, _) = rows(rule(), 4, |row, _| row % 5 > 0);
        // Taken as independent answers, four draws of a row would end it at a quarter of the rows.
        assert!((100..250).contains(&one) && copied > one * 3 / 4, "{one} {copied}");
    }
}
