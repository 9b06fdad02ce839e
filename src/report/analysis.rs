//! What a report says of chance: intervals of each workflow, comparisons of each two, and their tables. Knows
//! nothing of how either is worked out (`record::scores`).

use super::spelling::{
    ABSENT, COMPARED, Table, bounds, compared, count, count_or_absent, detectable, how, named,
    percent,
};
use super::{Cell, Report};
use crate::digest::Recipe;
use crate::record::agreement::Agreement;
use crate::record::scores::{
    Comparison, Measure, Metric, NoTag, PairBy, ScoreTable, adjust, compare,
};
use crate::stats::Reducer;

/// Under the table of comparisons.
pub(super) const NOTE: &str = "Differences are b − a, in points, over the rows that both have and that have a score \
    on both sides; rows are always compared with themselves. p is that of the test named, Holm that among all \
    comparisons of the same metric. “Detectable” is the smallest true difference that so many rows would have shown \
    in four of five cases. Random resampling has a fixed seed.";

/// What a report should say of chance.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Analysis {
    /// How draws of a row become one value, beside their mean.
    pub reducers: Vec<Reducer>,
    /// The tag by which rows depend on each other.
    pub cluster: Option<String>,
    /// The workflow that all others are compared with; absent compares each two.
    pub baseline: Option<String>,
    /// By what rows belong together.
    pub pair_by: PairBy,
}

/// Settings that do not fit the samples.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAnalysis {
    /// Rows without the tag.
    #[error("`cluster`: {0}")]
    NoTag(#[from] NoTag),
    /// No workflow has so many draws.
    #[error(
        "`{reducer}` needs {needs} draws of a row, and no workflow has more than {epochs}; raise `epochs`"
    )]
    TooFewDraws {
        /// The reducer.
        reducer: String,
        /// Draws that it needs.
        needs: u64,
        /// Draws that there are.
        epochs: u64,
    },
    /// There is no such workflow here.
    #[error("`baseline`: this report has no workflow `{name}` (known: {known})")]
    NoBaseline {
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// Rows that depend on each other cannot be looked at one after another.
    #[error(
        "`cluster` and the `stop_when` of `{0}` exclude each other: an interval that holds at every look takes rows \
         as independent"
    )]
    Watched(String),
}

impl Analysis {
    /// Adds the settings to a recipe; absent ones leave no trace.
    pub fn describe(&self, recipe: Recipe) -> Recipe {
        let reducers: Vec<String> = self.reducers.iter().map(ToString::to_string).collect();
        recipe
            .field("reducers", (!reducers.is_empty()).then_some(reducers))
            .field("cluster", self.cluster.clone())
            .field("baseline", self.baseline.clone())
            .field("pair_by", (self.pair_by == PairBy::Id).then_some("id"))
    }

    /// All that is measured of some metrics, with at most so many draws of a row.
    fn wanted(&self, metrics: &[Metric], epochs: u64) -> Vec<(Metric, Reducer)> {
        let mut reducers = vec![Reducer::Mean];
        reducers.extend(self.reducers.iter().copied().filter(|r| *r != Reducer::Mean));
        let mut out = Vec::new();
        for metric in metrics {
            let fitting = reducers.iter().filter(|r| metric.fits(**r));
            let enough = fitting.filter(|reducer| reducer.needs() <= epochs);
            out.extend(enough.map(|reducer| (metric.clone(), *reducer)));
        }
        out
    }
}

/// Sets the measures of all cells and compares them.
pub fn analyse(cells: &mut [Cell], analysis: &Analysis) -> Result<Vec<Comparison>, BadAnalysis> {
    let mut measures: Vec<(Vec<Measure>, Option<Agreement>, bool)> = Vec::new();
    let comparisons = {
        let tables = cells.iter().map(|cell| table(cell, analysis));
        let tables = tables.collect::<Result<Vec<_>, _>>()?;
        check(cells, &tables, analysis)?;
        for table in &tables {
            let wanted = analysis.wanted(&table.metrics(), table.epochs());
            let measured = wanted.iter().map(|(m, reducer)| table.measure(m, *reducer));
            let no_vote = analysis.reducers.contains(&Reducer::Majority) && table.has_no_majority();
            measures.push((measured.collect(), Agreement::of(table), no_vote));
        }
        pairs(cells, &tables, analysis)
    };
    for (cell, (measures, agreement, no_vote)) in cells.iter_mut().zip(measures) {
        // One interval of accuracy, wherever it is shown.
        let estimate = measures.first().and_then(|measure| measure.estimate);
        if let Some(estimate) = estimate {
            cell.summary.accuracy_ci = estimate.ci;
            cell.summary.accuracy_by = Some(estimate.estimator);
        }
        cell.measures = measures;
        cell.agreement = agreement;
        if no_vote {
            cell.warnings.push(
                "no two draws of any row gave the same answer, so `majority` has nothing to vote over and takes the \
                 first of each; let `extractors` take the answer out, or a scorer that reads answers (`numeric`, \
                 `exact_match`) come first"
                    .to_owned(),
            );
        }
    }
    Ok(comparisons)
}

fn is_watched(cell: &Cell) -> bool {
    cell.summary.stopping.as_ref().is_some_and(|stopping| stopping.watched)
}

fn table<'a>(cell: &'a Cell, analysis: &Analysis) -> Result<ScoreTable<'a>, BadAnalysis> {
    let watched = is_watched(cell);
    if watched && analysis.cluster.is_some() {
        return Err(BadAnalysis::Watched(cell.name.clone()));
    }
    let samples = cell.samples.iter().map(|row| &row.sample);
    Ok(ScoreTable::new(samples, analysis.pair_by, analysis.cluster.as_deref(), watched)?)
}

fn check(
    cells: &[Cell],
    tables: &[ScoreTable<'_>],
    analysis: &Analysis,
) -> Result<(), BadAnalysis> {
    let epochs = tables.iter().map(ScoreTable::epochs).max().unwrap_or(0);
    for reducer in &analysis.reducers {
        if epochs > 0 && reducer.needs() > epochs {
            let (reducer, needs) = (reducer.to_string(), reducer.needs());
            return Err(BadAnalysis::TooFewDraws { reducer, needs, epochs });
        }
    }
    if let Some(name) = &analysis.baseline
        && !cells.iter().any(|cell| cell.name == *name)
    {
        let known: Vec<_> = cells.iter().map(|cell| format!("`{}`", cell.name)).collect();
        return Err(BadAnalysis::NoBaseline { name: name.clone(), known: known.join(", ") });
    }
    Ok(())
}

fn pairs(cells: &[Cell], tables: &[ScoreTable<'_>], analysis: &Analysis) -> Vec<Comparison> {
    let mut out = Vec::new();
    let is_baseline = |i: usize| analysis.baseline.as_deref() == Some(cells[i].name.as_str());
    for i in 0..cells.len() {
        for j in i + 1..cells.len() {
            let (a, b) = match (&analysis.baseline, is_baseline(i), is_baseline(j)) {
                (None, ..) | (_, true, _) => (i, j),
                // The baseline is always the first side.
                (_, _, true) => (j, i),
                _ => continue,
            };
            let known = tables[b].metrics();
            let metrics: Vec<Metric> =
                tables[a].metrics().into_iter().filter(|m| known.contains(m)).collect();
            let epochs = tables[a].epochs().min(tables[b].epochs());
            let flows = |cell: &Cell| cell.inputs.get("flows").cloned();
            let same_flows = flows(&cells[a]).is_some() && flows(&cells[a]) == flows(&cells[b]);
            let side = |i: usize| (cells[i].name.as_str(), &tables[i]);
            let mut wanted = analysis.wanted(&metrics, epochs);
            // Of grades the means are compared; every reducer of every grade would be a table of its own.
            wanted.retain(|(metric, reducer)| {
                *reducer == Reducer::Mean || *metric == Metric::Accuracy
            });
            out.extend(compare(side(a), side(b), &wanted, same_flows));
        }
    }
    adjust(&mut out);
    // Metric by metric: one question after another.
    let mut kinds: Vec<(String, String)> = Vec::new();
    for c in &out {
        let kind = (c.metric.clone(), c.reducer.clone());
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    out.sort_by_key(|c| kinds.iter().position(|(m, r)| *m == c.metric && *r == c.reducer));
    out
}

/// What workflows that might have stopped early say of it.
pub(super) fn stopped(report: &Report) -> Vec<String> {
    let line = |cell: &Cell| {
        let stopping = cell.summary.stopping.as_ref()?;
        let note = if stopping.watched {
            ". Its intervals and comparisons are time-uniform: they hold however often somebody looked, for rows in \
             random order."
        } else {
            "."
        };
        Some(format!("{}: {}{note}", cell.name, stopping.words()))
    };
    report.cells.iter().filter_map(line).collect()
}

/// Every mean with its interval.
pub(super) fn measures(report: &Report) -> Table {
    let head = ["workflow", "metric", "value", "95 % CI", "interval", "rows", "draws", "clusters"];
    let row = |cell: &Cell, measure: &Measure| {
        let estimate = measure.estimate.as_ref();
        let mut metric = named(&measure.metric, &measure.reducer);
        if let Some(ties) = measure.ties.filter(|ties| *ties > 0) {
            metric.push_str(&format!(" ({} tied)", count(ties)));
        }
        vec![
            cell.name.clone(),
            metric,
            percent(estimate.map(|estimate| estimate.value)),
            bounds(estimate.and_then(|estimate| estimate.ci)),
            estimate.map_or(ABSENT, |estimate| estimate.estimator.words()).to_owned(),
            count(measure.rows),
            count_or_absent(estimate.map(|estimate| estimate.draws)),
            count_or_absent(estimate.map(|estimate| estimate.clusters)),
        ]
    };
    let cells = report.cells.iter();
    let rows = cells.flat_map(|cell| cell.measures.iter().map(move |measure| row(cell, measure)));
    Table { head: head.map(str::to_owned).to_vec(), rows: rows.collect() }
}

/// Each two workflows; `None` of one alone.
pub(super) fn comparisons(report: &Report) -> Option<Table> {
    let mut head = vec!["a → b", "metric"];
    head.extend(COMPARED);
    head.extend(["only a better", "only b better", "rows", "detectable", "test; interval"]);
    let absent = || ABSENT.to_owned();
    let row = |c: &Comparison| {
        let mut row = vec![format!("{} → {}", c.a, c.b), named(&c.metric, &c.reducer)];
        row.extend(compared(c).unwrap_or_else(|| vec![absent(); COMPARED.len() + 2]));
        let result = c.result.as_ref();
        row.push(match result.filter(|result| result.rows != c.common) {
            None => count(c.common),
            Some(result) => format!("{} of {} common", count(result.rows), count(c.common)),
        });
        row.push(result.and_then(detectable).unwrap_or_else(absent));
        row.push(how(c));
        row
    };
    let rows: Vec<_> = report.comparisons.iter().map(row).collect();
    (!rows.is_empty()).then(|| Table { head: head.into_iter().map(str::to_owned).collect(), rows })
}

#[cfg(test)]
mod tests {
    use super::super::html::tests::page_of;
    use super::super::markdown;
    use super::super::markdown::tests::{cell, report, row};
    use super::*;

    /// Ten questions, of which the first `right` are answered rightly.
    fn ten(name: &str, right: usize) -> Cell {
        let rows = (0..10).map(|i| row(&format!("q{i}"), Some("42"), Some(i < right)));
        cell(name, rows.collect())
    }

    #[test]
    fn every_two_workflows_are_compared_in_pairs_and_adjusted() {
        let mut cells = vec![ten("one", 2), ten("two", 9), ten("three", 9)];
        let comparisons = analyse(&mut cells, &Analysis::default()).unwrap();
        let pairs: Vec<_> = comparisons.iter().map(|c| (c.a.as_str(), c.b.as_str())).collect();
        assert_eq!(pairs, [("one", "two"), ("one", "three"), ("two", "three")]);
        let first = comparisons[0].result.unwrap();
        assert_eq!((first.better_a, first.better_b, first.p), (0, 7, Some(2.0 / 128.0)));
        assert_eq!(comparisons[0].p_holm, Some(6.0 / 128.0));
        let mut report = report(cells);
        report.comparisons = comparisons;
        let text = markdown(&report);
        let line = "| one → two | accuracy | 20.0 % | 90.0 % | +70.0 | [22.1, 94.5] | 0.0156 | 0.0469 | 0 | 7 | 10 | \
                    42.8 | McNemar, exact; Bonett-Price, paired |";
        assert!(
            text.contains("| one | accuracy | 20.0 % | [5.7, 51.0] | Wilson | 10 | 10 | 10 |"),
            "{text}"
        );
        assert!(text.lines().any(|have| have == line), "no `{line}` in\n{text}");
        let page = page_of(&report);
        assert!(page.contains("id=\"comparisons\"") && page.contains("Bonett-Price, paired"));
    }

    #[test]
    fn a_baseline_is_the_first_side_of_all() {
        let mut cells = vec![ten("one", 2), ten("two", 5), ten("three", 9)];
        let by = |name: &str| Analysis { baseline: Some(name.to_owned()), ..Analysis::default() };
        let comparisons = analyse(&mut cells, &by("two")).unwrap();
        let pairs: Vec<_> = comparisons.iter().map(|c| (c.a.as_str(), c.b.as_str())).collect();
        assert_eq!(pairs, [("two", "one"), ("two", "three")]);
        let error = analyse(&mut cells, &by("four")).unwrap_err().to_string();
        assert_eq!(
            error,
            "`baseline`: this report has no workflow `four` (known: `one`, `two`, `three`)"
        );
    }

    #[test]
    fn a_cluster_column_reaches_every_interval_of_accuracy() {
        let rows = || {
            let row = |i: usize| {
                let mut row = row(&format!("q{i}"), Some("42"), Some(i % 4 < 2));
                row.sample.tags.insert("passage".to_owned(), (i / 2).to_string());
                row
            };
            (0..20).map(row).collect()
        };
        let by = |cluster: Option<&str>| {
            let mut cells = vec![cell("ask", rows())];
            let cluster = cluster.map(str::to_owned);
            analyse(&mut cells, &Analysis { cluster, ..Analysis::default() }).unwrap();
            let summary = &cells[0].summary;
            assert_eq!(summary.accuracy_ci, cells[0].measures[0].estimate.unwrap().ci);
            (summary.accuracy_by.unwrap().words(), summary.accuracy_ci.unwrap().half_width())
        };
        let ((alone, narrow), (clustered, wide)) = (by(None), by(Some("passage")));
        assert_eq!((alone, clustered), ("Wilson", "Wilson, clustered"));
        assert!(wide > 1.3 * narrow, "{wide} {narrow}");
    }

    #[test]
    fn different_data_are_refused_with_the_reason() {
        let other = cell("other", vec![row("q1", Some("42"), Some(true))]);
        let mut cells = vec![ten("one", 2), other];
        cells[1].inputs.clear();
        let comparisons = analyse(&mut cells, &Analysis::default()).unwrap();
        let mut report = report(cells);
        report.comparisons = comparisons;
        let text = markdown(&report);
        let why = "different data: 10 rows in \\`one\\`, 1 in \\`other\\`, 1 in common |";
        assert!(text.contains(why), "{text}");
    }

    #[test]
    fn a_reducer_of_more_draws_than_there_are_is_an_error() {
        let wanted = Analysis { reducers: vec![Reducer::PassAt(5)], ..Analysis::default() };
        let error = analyse(&mut [ten("one", 2)], &wanted).unwrap_err().to_string();
        assert_eq!(
            error,
            "`pass@5` needs 5 draws of a row, and no workflow has more than 1; raise `epochs`"
        );
    }
}
