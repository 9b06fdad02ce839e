//! Two tables compared: the rows that both have, and what is said of their differences.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Metric, RowId, RowOf, ScoreTable};
use crate::sample::Sample;
use crate::stats::{self, Betting, Difference, Estimator, Interval, Pair, Reducer, Test, Wager};

/// Two tables compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The first side.
    pub a: String,
    /// The second side: differences are b − a.
    pub b: String,
    /// What is measured.
    pub metric: String,
    /// How the draws of a row became one value.
    pub reducer: String,
    /// Rows that both have.
    pub common: u64,
    /// Why they are not compared; else absent.
    pub refused: Option<String>,
    /// The result, over rows with a value on both sides.
    pub result: Option<Difference>,
    /// Its p-value among all comparisons of the same metric (Holm).
    pub p_holm: Option<f64>,
}

/// A row that two tables have, with the samples of each side.
pub struct Both<'t, 'a> {
    /// The draws of the first side.
    pub a: &'t [&'a Sample],
    /// The draws of the second side.
    pub b: &'t [&'a Sample],
    /// The share of draws that are right, those without an answer being wrong; `None` where nobody can say.
    pub right_a: Option<f64>,
    /// The same of the second side.
    pub right_b: Option<f64>,
}

/// Leaves in two tables the rows that both have, and says how many those are.
pub fn keep_common(a: &mut ScoreTable<'_>, b: &mut ScoreTable<'_>) -> u64 {
    if are_alike(a, b) {
        return a.rows();
    }
    let ids = |table: &ScoreTable<'_>| table.rows.iter().map(|row| row.id).collect::<HashSet<_>>();
    let (of_a, of_b) = (ids(a), ids(b));
    a.rows.retain(|row| of_b.contains(&row.id));
    b.rows.retain(|row| of_a.contains(&row.id));
    a.rows()
}

/// The rows that two tables have in common, in the order of the first.
pub fn both<'t, 'a>(a: &'t ScoreTable<'a>, b: &'t ScoreTable<'a>) -> Vec<Both<'t, 'a>> {
    let right = |row: &RowOf<'_>| row.reduced(&Metric::AccuracyAll, Reducer::Mean).value;
    let pair = |(row, other): (&'t RowOf<'a>, &'t RowOf<'a>)| {
        let (right_a, right_b) = (right(row), right(other));
        Both { a: &row.draws, b: &other.draws, right_a, right_b }
    };
    matched(a, b).into_iter().map(pair).collect()
}

/// The rows that two tables have in common, in the order of the first.
fn matched<'t, 'a>(
    a: &'t ScoreTable<'a>,
    b: &'t ScoreTable<'a>,
) -> Vec<(&'t RowOf<'a>, &'t RowOf<'a>)> {
    if are_alike(a, b) {
        return a.rows.iter().zip(&b.rows).collect();
    }
    let places: HashMap<RowId, &RowOf<'a>> = b.rows.iter().map(|row| (row.id, row)).collect();
    a.rows.iter().filter_map(|row| Some((row, *places.get(&row.id)?))).collect()
}

/// Whether two tables have the same rows in the same order, as two runs over the same flows have.
fn are_alike(a: &ScoreTable<'_>, b: &ScoreTable<'_>) -> bool {
    a.rows.iter().map(|row| row.id).eq(b.rows.iter().map(|row| row.id))
}

/// Compares two tables by what their rows have in common, for each metric and reducer that both know. They have
/// to hold the same rows, but where `same_flows` says that they were made of the same flows and one of them
/// stopped early.
pub fn compare(
    (name_a, a): (&str, &ScoreTable<'_>),
    (name_b, b): (&str, &ScoreTable<'_>),
    wanted: &[(Metric, Reducer)],
    same_flows: bool,
) -> Vec<Comparison> {
    let common = matched(a, b);
    let same = common.len() == a.rows.len() && common.len() == b.rows.len();
    let shorter = same_flows && common.len() == a.rows.len().min(b.rows.len());
    let refused = (!same && !shorter).then(|| {
        format!(
            "different data: {} rows in `{name_a}`, {} in `{name_b}`, {} in common",
            a.rows.len(),
            b.rows.len(),
            common.len()
        )
    });
    let one = |(metric, reducer): &(Metric, Reducer)| {
        let value = |row: &RowOf<'_>| row.reduced(metric, *reducer).value;
        let pair = |(x, y): &(&RowOf<'_>, &RowOf<'_>)| {
            Some(Pair { cluster: x.cluster, a: value(x)?, b: value(y)? })
        };
        let result = match refused {
            Some(_) => None,
            None => {
                let pairs: Vec<Pair> = common.iter().filter_map(pair).collect();
                stats::difference(&pairs).map(|result| match a.watched || b.watched {
                    true => watched_difference(result, &pairs),
                    false => result,
                })
            }
        };
        Comparison {
            a: name_a.to_owned(),
            b: name_b.to_owned(),
            metric: metric.name().to_owned(),
            reducer: reducer.to_string(),
            common: common.len() as u64,
            refused: refused.clone(),
            result,
            p_holm: None,
        }
    };
    wanted.iter().map(one).collect()
}

/// A difference with an interval and a p-value that hold whenever one looks.
fn watched_difference(result: Difference, pairs: &[Pair]) -> Difference {
    let result = Difference { statistic: None, detectable: None, ..result };
    let bounded = |pair: &Pair| (0.0..=1.0).contains(&pair.a) && (0.0..=1.0).contains(&pair.b);
    let (estimator, test) = (Estimator::Betting, Test::Betting);
    if !pairs.iter().all(bounded) {
        return Difference { ci: None, p: None, estimator, test, ..result };
    }
    let (mut game, mut wagers) = (Betting::default(), [Wager::against(0.5)]);
    pairs.iter().for_each(|pair| game.add((pair.b - pair.a + 1.0) / 2.0, &mut wagers));
    let wide = |ci: Interval| Interval { lower: 2.0 * ci.lower - 1.0, upper: 2.0 * ci.upper - 1.0 };
    let (ci, p) = (game.interval().map(wide), Some(wagers[0].p()));
    Difference { ci, p, estimator, test, ..result }
}

/// Sets the p-values of comparisons among those of the same metric and reducer.
pub fn adjust(comparisons: &mut [Comparison]) {
    let kinds: BTreeSet<(String, String)> =
        comparisons.iter().map(|c| (c.metric.clone(), c.reducer.clone())).collect();
    for (metric, reducer) in kinds {
        let family = |c: &Comparison| c.metric == metric && c.reducer == reducer;
        let places: Vec<usize> =
            (0..comparisons.len()).filter(|i| family(&comparisons[*i])).collect();
        let p: Vec<Option<f64>> =
            places.iter().map(|i| comparisons[*i].result.and_then(|result| result.p)).collect();
        for (i, p) in places.into_iter().zip(stats::holm(&p)) {
            comparisons[i].p_holm = p;
        }
    }
}
