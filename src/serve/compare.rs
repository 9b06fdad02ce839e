//! Two or more experiments beside each other, in the form of the contract. Knows nothing of where samples come from.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::record::scores::right_of_all;
use crate::sample::Sample;
use crate::stats::{self, Pair, difference};

/// From which p on a difference is taken for chance.
const ALPHA: f64 = 0.05;

/// A row whose verdict differs.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Flip {
    /// The row.
    pub example_id: String,
    /// Whether the first side is right.
    pub a_correct: bool,
    /// Whether the second side is right.
    pub b_correct: bool,
    /// Answer of the first side.
    pub a_output: String,
    /// Answer of the second side.
    pub b_output: String,
    /// The first target.
    pub expected: Option<String>,
    /// Score of the first side.
    pub a_score: Option<f64>,
    /// Score of the second side.
    pub b_score: Option<f64>,
}

/// Rows by who is right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Agreement {
    /// Both.
    pub both_correct: u64,
    /// Neither.
    pub both_wrong: u64,
    /// The first alone.
    pub a_only_correct: u64,
    /// The second alone.
    pub b_only_correct: u64,
}

/// Two sides of the same rows.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Statistics {
    /// UUID.
    pub experiment_a_id: String,
    /// UUID.
    pub experiment_b_id: String,
    /// Rows of both sides; what has no answer is wrong.
    pub num_common_examples: u64,
    /// Share of right answers; null of no rows.
    pub accuracy_a: Option<f64>,
    /// The same of the second side.
    pub accuracy_b: Option<f64>,
    /// B − A.
    pub accuracy_diff: Option<f64>,
    /// `{lower, upper}`: its 95 % interval (Bonett and Price).
    #[schema(value_type = Option<Object>)]
    pub accuracy_diff_ci: Option<Value>,
    /// `{statistic, p_value, is_significant, b, c, n}`.
    #[schema(value_type = Option<Object>)]
    pub mcnemar: Option<Value>,
    /// `{mean, lower, upper, std}`.
    #[schema(value_type = Option<Object>)]
    pub accuracy_ci_a: Option<Value>,
    /// The same of the second side.
    #[schema(value_type = Option<Object>)]
    pub accuracy_ci_b: Option<Value>,
    /// Of F1.
    #[schema(value_type = Option<Object>)]
    pub f1_ci_a: Option<Value>,
    /// The same of the second side.
    #[schema(value_type = Option<Object>)]
    pub f1_ci_b: Option<Value>,
    /// Rows on which the sides differ.
    pub per_example_differences: Vec<Flip>,
    /// Rows by who is right.
    pub summary: Agreement,
}

/// Compares two sides that were made of the same flows: row by row, in the order in which both have them.
pub fn statistics(a: (&str, &[Sample]), b: (&str, &[Sample])) -> Statistics {
    let ((id_a, rows_a), (id_b, rows_b)) = (a, b);
    let same = rows_a.iter().zip(rows_b).filter(|(a, b)| a.flow_digest == b.flow_digest);
    let both = same.filter_map(|(a, b)| Some(((a, right_of_all(a)?), (b, right_of_all(b)?))));
    let both: Vec<_> = both.collect();
    let pairs: Vec<Pair> = both
        .iter()
        .enumerate()
        .map(|(cluster, ((_, a), (_, b)))| Pair { cluster, a: *a, b: *b })
        .collect();
    let result = difference(&pairs);
    let mut summary = Agreement::default();
    let mut flips = Vec::new();
    for ((sample_a, a), (sample_b, b)) in &both {
        let (a_correct, b_correct) = (*a >= 1.0, *b >= 1.0);
        match (a_correct, b_correct) {
            (true, true) => summary.both_correct += 1,
            (false, false) => summary.both_wrong += 1,
            (true, false) => summary.a_only_correct += 1,
            (false, true) => summary.b_only_correct += 1,
        }
        if a_correct != b_correct {
            let score = |sample: &Sample| sample.scores.first().and_then(|score| score.value);
            flips.push(Flip {
                example_id: sample_a.flow.clone(),
                a_correct,
                b_correct,
                a_output: sample_a.answer.clone().unwrap_or_default(),
                b_output: sample_b.answer.clone().unwrap_or_default(),
                expected: sample_a.targets.first().cloned(),
                a_score: score(sample_a),
                b_score: score(sample_b),
            });
        }
    }
    let f1 = |sample: &Sample| sample.score("f1");
    Statistics {
        experiment_a_id: id_a.to_owned(),
        experiment_b_id: id_b.to_owned(),
        num_common_examples: both.len() as u64,
        accuracy_a: result.map(|result| result.a),
        accuracy_b: result.map(|result| result.b),
        accuracy_diff: result.map(|result| result.difference),
        accuracy_diff_ci: result.and_then(|result| result.ci).map(|ci| json!(ci)),
        mcnemar: result.map(|result| {
            json!({
                "statistic": result.statistic,
                "p_value": result.p,
                "is_significant": result.p.map(|p| p < ALPHA),
                "b": result.better_a,
                "c": result.better_b,
                "n": result.rows,
            })
        }),
        accuracy_ci_a: mean(both.iter().map(|((_, a), _)| *a)),
        accuracy_ci_b: mean(both.iter().map(|(_, (_, b))| *b)),
        f1_ci_a: mean(both.iter().filter_map(|((a, _), _)| f1(a))),
        f1_ci_b: mean(both.iter().filter_map(|(_, (b, _))| f1(b))),
        per_example_differences: flips,
        summary,
    }
}

/// A mean with its 95 % interval and the standard deviation of the values; `None` of none.
fn mean(values: impl Iterator<Item = f64>) -> Option<Value> {
    let values: Vec<f64> = values.collect();
    let one = |(cluster, value): (usize, &f64)| stats::Row { cluster, values: vec![*value] };
    let rows: Vec<stats::Row> = values.iter().enumerate().map(one).collect();
    let estimate = stats::estimate(&rows)?;
    let n = values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - estimate.value).powi(2)).sum();
    Some(json!({
        "mean": estimate.value,
        "lower": estimate.ci.map(|ci| ci.lower),
        "upper": estimate.ci.map(|ci| ci.upper),
        "std": (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
    }))
}
