//! What a gate says of samples. Knows nothing of how it comes to that.

use serde::{Deserialize, Serialize};

use crate::stats::{Estimator, Interval};

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// From 0 to 1.
    Share,
    /// A difference of shares, from -1 to 1.
    Difference,
    /// Milliseconds.
    Ms,
    /// Dollars.
    Dollars,
}

/// How a number has to stand to its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// Not below it.
    #[serde(rename = ">=")]
    AtLeast,
    /// Not above it.
    #[serde(rename = "<=")]
    AtMost,
    /// Above it.
    #[serde(rename = ">")]
    Above,
}

impl Side {
    /// Whether a number is on this side of a threshold.
    pub fn holds(self, value: f64, threshold: f64) -> bool {
        match self {
            Side::AtLeast => value >= threshold,
            Side::AtMost => value <= threshold,
            Side::Above => value > threshold,
        }
    }

    /// As written in tables.
    pub fn sign(self) -> &'static str {
        match self {
            Side::AtLeast => "≥",
            Side::AtMost => "≤",
            Side::Above => ">",
        }
    }
}

/// Which number of an estimate is held against the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The estimate itself.
    #[default]
    Value,
    /// The lower end of its 95 % interval.
    Lower,
    /// The upper end.
    Upper,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The threshold is kept.
    Passed,
    /// It is not.
    Failed,
    /// There is no such number.
    NotMeasured,
}

/// One threshold of a gate, held against one workflow or one group of its samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The gate.
    pub gate: String,
    /// The workflow, with its matrix values.
    pub stage: String,
    /// Tag and value, where samples are grouped.
    pub group: Option<(String, String)>,
    /// What is measured: a metric, an outcome, `p95_ms`, `cost`.
    pub measure: String,
    /// How the draws of a row became one value; of metrics alone.
    pub reducer: Option<String>,
    /// What it is compared with; then `value` is the difference to it.
    pub baseline: Option<String>,
    /// What the numbers count.
    pub unit: Unit,
    /// The estimate.
    pub value: Option<f64>,
    /// Its 95 % interval.
    pub ci: Option<Interval>,
    /// How that was made.
    pub estimator: Option<Estimator>,
    /// Which of these numbers counts.
    pub bound: Bound,
    /// How that has to stand to the threshold.
    pub side: Side,
    /// The threshold, in the unit of the value.
    pub threshold: f64,
    /// How it ended.
    pub finding: Finding,
    /// Whether the gate lets it through: what is not measured passes only where the gate says so.
    pub passed: bool,
    /// Why it is not measured, or what else has to be known.
    pub note: Option<String>,
}
