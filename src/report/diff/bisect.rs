//! Which change moved a metric, step by step, as words. Knows nothing of how revisions are found or measured.

use serde::Serialize;

use super::StageDiff;
use super::words::{self, plain};
use crate::record::scores::{Comparison, Measure};
use crate::report::spelling::{bounds, percent, points, probability};
use crate::stats::Difference;

/// Version of the JSON of a [`Bisection`].
pub const BISECT_VERSION: u32 = 1;
/// A difference this unlikely by chance is one: 95 %.
const LEVEL: f64 = 0.05;

/// A commit, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Commit {
    /// Its hash.
    pub id: String,
    /// The first line of its message.
    pub subject: String,
    /// Who wrote it.
    pub author: String,
    /// The day, as its author's clock had it.
    pub date: String,
}

impl Commit {
    /// The first digits of its hash.
    pub fn short(&self) -> String {
        self.id.chars().take(12).collect()
    }

    fn line(&self) -> String {
        plain(&format!("{}  {}", self.short(), self.subject))
    }
}

/// Everything that `forge bisect --json` prints. Differences are to the good revision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bisection {
    /// Version of this format.
    pub version: u32,
    /// What is measured.
    pub metric: String,
    /// The workflow that is measured.
    pub workflow: String,
    /// Commits from the good to the bad one, both counted.
    pub commits: u64,
    /// The good revision.
    pub good: Step,
    /// The bad one, compared with it.
    pub bad: Step,
    /// Revisions between, in the order in which they were looked at.
    pub steps: Vec<Step>,
    /// The first change that moved the metric; `null` where the ends cannot be told apart.
    pub found: Option<FirstBad>,
}

/// A revision that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// It.
    pub commit: Commit,
    /// `good`, `bad` or `skipped`.
    pub verdict: &'static str,
    /// Where its results came from: `store` or `run`.
    pub from: Option<&'static str>,
    /// Its metric.
    pub measure: Option<Measure>,
    /// The paired comparison with the good revision; absent of that itself, and of equal samples.
    pub comparison: Option<Comparison>,
    /// Why it was skipped, or what else has to be known.
    pub why: Option<String>,
}

/// Where the metric moved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FirstBad {
    /// The first revision on the bad side.
    pub first_bad: Commit,
    /// The last one on the good side.
    pub last_good: Commit,
    /// Revisions between these two that could not be judged: the change may be in any of them.
    pub skipped: Vec<Commit>,
    /// These two compared with each other.
    pub change: Option<Comparison>,
    /// Stages that differ between them.
    pub stages: Vec<StageDiff>,
}

impl Step {
    /// The difference to the good revision.
    pub fn difference(&self) -> Option<&Difference> {
        self.comparison.as_ref()?.result.as_ref()
    }
}

/// Whether a difference is one at 95 %: by its paired test, and where there is none by its interval.
pub fn is_moved(result: &Difference) -> bool {
    match (result.p, result.ci) {
        (Some(p), _) => p < LEVEL,
        (None, Some(ci)) => ci.lower > 0.0 || ci.upper < 0.0,
        (None, None) => false,
    }
}

impl Bisection {
    /// Whether the ends can be told apart.
    pub fn ends_differ(&self) -> bool {
        self.bad.difference().is_some_and(is_moved)
    }

    /// Whether a revision is on the bad side: it differs from the good one, in the direction of the bad one.
    pub fn is_bad(&self, step: &Step) -> bool {
        let (Some(step), Some(end)) = (step.difference(), self.bad.difference()) else {
            return false;
        };
        is_moved(step) && (step.difference > 0.0) == (end.difference > 0.0)
    }
}

/// A revision in a line or two.
pub fn step(step: &Step, metric: &str) -> String {
    let mut text = format!("{:8}{}", step.verdict, step.commit.line());
    let mut facts = Vec::new();
    if let Some(estimate) = step.measure.as_ref().and_then(|measure| measure.estimate) {
        facts.push(format!("{metric} {} {}", percent(Some(estimate.value)), bounds(estimate.ci)));
    }
    facts.extend(step.comparison.as_ref().map(compared));
    facts.extend(step.why.as_deref().map(plain));
    if let Some(from) = step.from.filter(|_| !facts.is_empty()) {
        facts.push(format!("from the {from}"));
    }
    if !facts.is_empty() {
        text.push_str(&format!("\n          {}", facts.join("; ")));
    }
    text
}

fn compared(comparison: &Comparison) -> String {
    match &comparison.result {
        Some(result) => format!(
            "{} points {}, p {} ({}, {} rows)",
            points(result.difference),
            bounds(result.ci),
            probability(result.p),
            result.test.words(),
            result.rows
        ),
        None => {
            comparison.refused.clone().unwrap_or_else(|| "no row in common has a score".to_owned())
        }
    }
}

/// What came of it.
pub fn summary(of: &Bisection) -> String {
    let Some(found) = &of.found else {
        let detectable = of.bad.difference().and_then(|result| result.detectable);
        let hint = detectable.map_or_else(String::new, |detectable| {
            let shown = match detectable < 1.0 {
                true => format!("a difference of {:.1} points in four of five cases", detectable * 100.0),
                false => "no difference at all, however large".to_owned(),
            };
            format!(
                "\nhint: so many rows show {shown}; ask more questions, or more draws of each (`epochs`)"
            )
        });
        return format!(
            "{} and {} cannot be told apart at 95 %: nothing to look for{hint}",
            of.good.commit.short(),
            of.bad.commit.short()
        );
    };
    let mut lines = vec![if found.skipped.is_empty() {
        format!("first change that moved {}: {}", of.metric, found.first_bad.line())
    } else {
        format!(
            "{} moved between {} and {}; what lies between could not be judged:",
            of.metric,
            found.last_good.short(),
            found.first_bad.line()
        )
    }];
    lines.extend(found.skipped.iter().map(|commit| format!("  {}", commit.line())));
    lines.push(format!("  {}, {}", plain(&found.first_bad.author), plain(&found.first_bad.date)));
    if let Some(change) = &found.change {
        lines.push(format!("  against {}: {}", found.last_good.line(), compared(change)));
        // The good side is what cannot be told from GOOD: small changes may add up along the way.
        if !change.result.as_ref().is_some_and(is_moved) {
            lines.push(
                "  these two alone cannot be told apart at 95 %: changes before this one may have a share in it"
                    .to_owned(),
            );
        }
    }
    for stage in found.stages.iter().filter(|stage| stage.change != super::Change::Same) {
        for line in words::stage(stage) {
            lines.push(format!("  {}: {}", plain(&stage.stage), plain(&line)));
        }
    }
    lines.join("\n")
}
