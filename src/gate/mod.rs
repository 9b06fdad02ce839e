//! `[gate.*]`: thresholds on what a workflow came to, and what they say of its samples. Knows nothing of where
//! samples and baselines are kept. A gate is in the key of no workflow: to move a threshold asks nothing again.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::manifest::{Span, Spanned};
use crate::record::scores::{Metric, NoTag, PairBy, ScoreTable, compare, no_tag};
use crate::record::{Bound, Finding, ProfileBuilder, Side, Speed, Tally, Unit, Verdict};
use crate::report::{Cell, Cost, Row, Took, dollars};
use crate::sample::Outcome;
use crate::stats::{Reducer, Summary};

mod read;

pub use read::{Known, read};

/// Thresholds on the samples of some workflows. Every workflow, and every group of its samples, has to keep all of
/// them.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Its name.
    pub name: String,
    /// Where that stands.
    pub span: Span,
    /// What the samples are compared with: a revision of git, or a lock file.
    pub baseline: Option<Spanned<String>>,
    /// The tag by which samples are grouped.
    by: Option<String>,
    checks: Vec<Check>,
    bound: Bound,
    reducer: Reducer,
    cluster: Option<String>,
    pair_by: PairBy,
    /// Whether a number that there is not lets the gate pass.
    unmeasured_passes: bool,
}

/// One threshold.
#[derive(Debug, Clone, PartialEq)]
struct Check {
    what: What,
    side: Side,
    threshold: f64,
}

/// What is held against a threshold.
#[derive(Debug, Clone, PartialEq)]
enum What {
    /// A mean over rows.
    Metric(Metric),
    /// What a scorer makes of all answers together; it has no interval.
    Corpus(&'static str),
    /// The share of samples that ended so.
    Outcome(Outcome),
    /// A time of live requests.
    Time(Clock, Point),
    /// Dollars for all requests, as if none had been remembered.
    Cost,
    /// The difference to the baseline.
    Drop(Metric),
}

/// Which time of a live request: the terms of `record::speed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    EndToEnd,
    Ttft,
    Tpot,
}

impl Clock {
    const ALL: [(&'static str, Clock); 3] =
        [("", Clock::EndToEnd), ("ttft_", Clock::Ttft), ("tpot_", Clock::Tpot)];

    fn of(self, speed: &Speed) -> Option<&Summary> {
        match self {
            Clock::EndToEnd => speed.e2e.as_ref(),
            Clock::Ttft => speed.ttft.as_ref(),
            Clock::Tpot => speed.tpot.as_ref(),
        }
    }
}

/// Which point of many times.
type Point = (&'static str, fn(&Summary) -> f64);

const POINTS: [Point; 5] = [
    ("mean", |times| times.mean_ms),
    ("p50", |times| times.p50_ms),
    ("p90", |times| times.p90_ms),
    ("p95", |times| times.p95_ms),
    ("p99", |times| times.p99_ms),
];

/// What a workflow is compared with.
pub enum Baseline {
    /// It has none, and why.
    Absent(String),
    /// The very same results: nothing was measured anew, so nothing can differ.
    Same,
    /// Other results.
    Cell(Box<Cell>),
}

/// A number held against a threshold, or why there is none.
type Measured = Result<Estimated, String>;

#[derive(Default)]
struct Estimated {
    value: f64,
    ci: Option<crate::stats::Interval>,
    estimator: Option<crate::stats::Estimator>,
    note: Option<String>,
}

impl What {
    fn name(&self) -> String {
        match self {
            What::Metric(metric) | What::Drop(metric) => metric.name().to_owned(),
            What::Corpus(name) => (*name).to_owned(),
            What::Outcome(outcome) => outcome.name().to_owned(),
            What::Time(clock, (point, _)) => {
                let prefix = Clock::ALL.iter().find(|(_, known)| known == clock);
                format!("{}{point}_ms", prefix.map_or("", |(prefix, _)| prefix))
            }
            What::Cost => "cost".to_owned(),
        }
    }

    fn unit(&self) -> Unit {
        match self {
            What::Metric(_) | What::Corpus(_) | What::Outcome(_) => Unit::Share,
            What::Drop(_) => Unit::Difference,
            What::Time(..) => Unit::Ms,
            What::Cost => Unit::Dollars,
        }
    }

    fn is_mean(&self) -> bool {
        matches!(self, What::Metric(_) | What::Drop(_))
    }
}

impl Gate {
    /// All that decides its verdicts beside samples and baseline.
    pub fn describe(&self) -> Value {
        let check = |check: &Check| {
            let kind = match check.what {
                What::Metric(_) => "metric",
                What::Corpus(_) => "corpus",
                What::Outcome(_) => "outcome",
                What::Time(..) => "time",
                What::Cost => "cost",
                What::Drop(_) => "drop",
            };
            let name = format!("{kind} {} {}", check.what.name(), check.side.sign());
            (name, json!(check.threshold))
        };
        json!({
            "baseline": self.baseline.as_ref().map(|baseline| &baseline.value),
            "by": self.by,
            "checks": self.checks.iter().map(check).collect::<serde_json::Map<_, _>>(),
            "bound": self.bound,
            "reducer": self.reducer.to_string(),
            "cluster": self.cluster,
            "pair_by": self.pair_by,
            "unmeasured_passes": self.unmeasured_passes,
        })
    }

    /// Holds the samples of a workflow, group by group, against every threshold. `baseline` is needed where the
    /// gate names one.
    ///
    /// # Errors
    /// A tag that a sample does not have.
    pub fn judge(&self, cell: &Cell, baseline: Option<&Baseline>) -> Result<Vec<Verdict>, NoTag> {
        let mut verdicts = Vec::new();
        for (group, rows) in self.groups(&cell.samples)? {
            let other = match baseline {
                Some(Baseline::Cell(other)) => {
                    let rows = other.samples.iter().filter(|row| is_in(row, group.as_ref()));
                    Some(Part { cell: other, rows: rows.collect() })
                }
                _ => None,
            };
            let part = Part { cell, rows };
            for check in &self.checks {
                let measured = match (&check.what, baseline) {
                    (What::Drop(_), Some(Baseline::Absent(why))) => Err(why.clone()),
                    (What::Drop(_), Some(Baseline::Same)) => Ok(Estimated {
                        note: Some("the same results".to_owned()),
                        ..Estimated::default()
                    }),
                    (What::Drop(metric), _) => self.drop(metric, &part, other.as_ref())?,
                    (What::Metric(metric), _) => self.mean(metric, &part)?,
                    (What::Corpus(name), _) => part.corpus(name),
                    (What::Outcome(outcome), _) => part.share(*outcome),
                    (What::Time(clock, (_, point)), _) => part.time(*clock, *point),
                    (What::Cost, _) => part.cost(),
                };
                verdicts.push(self.verdict(check, &cell.name, group.clone(), measured));
            }
        }
        Ok(verdicts)
    }

    /// What there is to say of a workflow without a result.
    pub fn without(&self, stage: &str) -> Vec<Verdict> {
        let why = || Err(format!("`{stage}` has no result"));
        self.checks.iter().map(|check| self.verdict(check, stage, None, why())).collect()
    }

    fn groups<'a>(&self, rows: &'a [Row]) -> Result<Groups<'a>, NoTag> {
        let Some(tag) = &self.by else {
            return Ok(BTreeMap::from([(None, rows.iter().collect())]));
        };
        let mut groups = Groups::new();
        for row in rows {
            let value = row.sample.tags.get(tag).ok_or_else(|| no_tag(&row.sample, tag))?;
            groups.entry(Some((tag.clone(), value.clone()))).or_default().push(row);
        }
        Ok(groups)
    }

    fn table<'a>(&self, part: &Part<'a>) -> Result<ScoreTable<'a>, NoTag> {
        let samples = part.rows.iter().map(|row| &row.sample);
        let watched = part.cell.summary.stopping.as_ref().is_some_and(|stopping| stopping.watched);
        ScoreTable::new(samples, self.pair_by, self.cluster.as_deref(), watched)
    }

    fn mean(&self, metric: &Metric, part: &Part<'_>) -> Result<Measured, NoTag> {
        let estimate = self.table(part)?.measure(metric, self.reducer).estimate;
        let Some(estimate) = estimate else {
            return Ok(Err("no sample has a score".to_owned()));
        };
        Ok(Ok(Estimated {
            value: estimate.value,
            ci: estimate.ci,
            estimator: Some(estimate.estimator),
            note: None,
        }))
    }

    /// The difference to the baseline over the rows of both: new − old.
    fn drop(
        &self,
        metric: &Metric,
        part: &Part<'_>,
        other: Option<&Part<'_>>,
    ) -> Result<Measured, NoTag> {
        let Some(other) = other else {
            return Ok(Err("there is no baseline".to_owned()));
        };
        let (old, new) = (self.table(other)?, self.table(part)?);
        let flows = |cell: &Cell| cell.inputs.get("flows").cloned();
        let same_flows = flows(part.cell).is_some() && flows(part.cell) == flows(other.cell);
        let name = self.baseline.as_ref().map_or("the baseline", |name| name.value.as_str());
        let wanted = [(metric.clone(), self.reducer)];
        let sides = ((name, &old), (part.cell.name.as_str(), &new));
        let comparison = compare(sides.0, sides.1, &wanted, same_flows).remove(0);
        if let Some(why) = comparison.refused {
            return Ok(Err(why));
        }
        let Some(result) = comparison.result else {
            return Ok(Err("no row has a score on both sides".to_owned()));
        };
        let mut note =
            format!("{} rows: {} better, {} worse", result.rows, result.better_b, result.better_a);
        if let left @ 1.. = comparison.common - result.rows {
            note.push_str(&format!("; {left} without a score on both sides are left out"));
        }
        Ok(Ok(Estimated {
            value: result.difference,
            ci: result.ci,
            estimator: Some(result.estimator),
            note: Some(note),
        }))
    }

    fn verdict(
        &self,
        check: &Check,
        stage: &str,
        group: Option<(String, String)>,
        measured: Measured,
    ) -> Verdict {
        let bound = match check.what {
            What::Drop(_) => Bound::Lower,
            What::Metric(_) => self.bound,
            _ => Bound::Value,
        };
        let is_drop = matches!(check.what, What::Drop(_));
        let judged = measured.as_ref().map_err(Clone::clone).and_then(|measured| {
            // What is the very same has a difference without an interval: it is known.
            let known = is_drop && measured.estimator.is_none();
            let ci = measured.ci.ok_or_else(|| "so few rows have no interval".to_owned());
            match bound {
                Bound::Value => Ok(measured.value),
                _ if known => Ok(measured.value),
                Bound::Lower => ci.map(|ci| ci.lower),
                Bound::Upper => ci.map(|ci| ci.upper),
            }
        });
        let finding = match &judged {
            Err(_) => Finding::NotMeasured,
            Ok(number) if check.side.holds(*number, check.threshold) => Finding::Passed,
            Ok(_) => Finding::Failed,
        };
        let (estimated, why) = (measured.ok(), judged.err());
        let reducer = check.what.is_mean().then(|| self.reducer.to_string());
        Verdict {
            gate: self.name.clone(),
            stage: stage.to_owned(),
            group,
            measure: check.what.name(),
            reducer,
            baseline: self.baseline.as_ref().filter(|_| is_drop).map(|name| name.value.clone()),
            unit: check.what.unit(),
            value: estimated.as_ref().map(|estimated| estimated.value),
            ci: estimated.as_ref().and_then(|estimated| estimated.ci),
            estimator: estimated.as_ref().and_then(|estimated| estimated.estimator),
            bound,
            side: check.side,
            threshold: check.threshold,
            finding,
            passed: match finding {
                Finding::Passed => true,
                Finding::Failed => false,
                Finding::NotMeasured => self.unmeasured_passes,
            },
            note: why.or_else(|| estimated.and_then(|estimated| estimated.note)),
        }
    }
}

/// Rows by tag and value; all of them under `None`.
type Groups<'a> = BTreeMap<Option<(String, String)>, Vec<&'a Row>>;

fn is_in(row: &Row, group: Option<&(String, String)>) -> bool {
    group.is_none_or(|(tag, value)| row.sample.tags.get(tag) == Some(value))
}

/// Some rows of a workflow.
struct Part<'a> {
    cell: &'a Cell,
    rows: Vec<&'a Row>,
}

impl Part<'_> {
    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.rows.iter().for_each(|row| tally.add(&row.sample));
        tally
    }

    fn corpus(&self, name: &str) -> Measured {
        let value = self.tally().summary().metrics.get(name).copied().flatten();
        let value = value.ok_or_else(|| "no sample has a score".to_owned())?;
        Ok(Estimated { value, ..Estimated::default() })
    }

    fn share(&self, outcome: Outcome) -> Measured {
        if self.rows.is_empty() {
            return Err("there are no samples".to_owned());
        }
        let value = self.tally().outcome(outcome) as f64 / self.rows.len() as f64;
        Ok(Estimated { value, ..Estimated::default() })
    }

    fn time(&self, clock: Clock, point: fn(&Summary) -> f64) -> Measured {
        let mut profile = ProfileBuilder::default();
        self.rows.iter().for_each(|row| profile.add(&row.observed));
        let speed = profile.finish(None, 1, None).speed;
        let times = clock.of(&speed).ok_or_else(|| match speed.requests {
            0 => "no request was live".to_owned(),
            _ => "no live request was timed so".to_owned(),
        })?;
        let note = Some(format!("{} live requests", times.count));
        Ok(Estimated { value: point(times), note, ..Estimated::default() })
    }

    fn cost(&self) -> Measured {
        let prices = self.cell.scorer_costs.iter();
        let prices = prices.map(|(scorer, cost)| (scorer.clone(), cost.price)).collect();
        let mut took = Took::new(self.cell.cost.as_ref().map(|cost| cost.price), &prices);
        self.rows.iter().for_each(|row| took.add(&row.observed));
        if took.cost.is_none() && took.scorer_costs.is_empty() {
            return Err("the engine has no price".to_owned());
        }
        let sum = dollars(took.cost.as_ref(), &took.scorer_costs);
        let value = sum.ok_or_else(|| {
            let costs = took.cost.iter().chain(took.scorer_costs.values());
            match costs.into_iter().any(Cost::lacks_price) {
                true => "some of the engines cost money and have no price".to_owned(),
                false => "nobody counted the tokens of some requests".to_owned(),
            }
        })?;
        Ok(Estimated { value, ..Estimated::default() })
    }
}
