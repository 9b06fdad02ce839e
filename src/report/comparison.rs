//! Workflows beside each other: over the axes of a matrix, by what they cost and how long they take, by category, and
//! how far draws agree. Gives charts with the tables behind them. Knows nothing of pages.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::{Value, context};

use super::charts::{self, Bar, Bars, Calibration, Confidence, Heat, Point, Scatter, Show};
use super::markdown::{answered, groups, metric};
use super::matrix::Names;
use super::spelling::{ABSENT, Table, bounds, count, duration, percent};
use super::{Cell, Report};
use crate::stats::Interval;

/// Most workflows that are drawn beside each other; more of them are tables alone.
const CELLS_MAX: usize = 60;
/// Most charts of one section.
const CHARTS_MAX: usize = 12;

/// A number of a workflow, where it has one.
type Of = fn(&Cell) -> Option<f64>;

/// A question, with charts and the table behind them.
pub(super) struct Section {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) charts: Vec<String>,
    pub(super) table: Table,
    /// Whether its table says something that a report of text has nowhere else.
    pub(super) in_text: bool,
    by_category: bool,
}

/// What a page shows.
pub(super) fn page(report: &Report) -> Value {
    let sections = sections(report);
    let by_category = sections.iter().any(|section| section.by_category);
    let sections = sections.into_iter().map(|section| {
        let Section { title, note, charts, table, .. } = section;
        let charts = charts.into_iter().map(Value::from_safe_string).collect::<Vec<_>>();
        context! { title, note, charts, table }
    });
    context! { sections => sections.collect::<Vec<_>>(), by_category }
}

/// Names of the workflows without what all have in common: for lists, where room is short.
pub(super) fn short_names(report: &Report) -> Vec<String> {
    Names::of(&report.cells).short
}

/// All questions that these workflows answer.
pub(super) fn sections(report: &Report) -> Vec<Section> {
    let cells = &report.cells;
    let names = Names::of(cells);
    let mut out = Vec::new();
    if cells.len() > 1 {
        out.extend(over_axes(cells, &names));
        out.extend(side_by_side(report, &names));
        out.extend(trade_offs(cells, &names));
        out.extend(by_category(report, &names));
    }
    out.extend(agreement(cells, &names));
    out
}

fn show_percent(share: f64) -> String {
    percent(Some(share))
}

fn show_ms(ms: f64) -> String {
    duration(Some(ms))
}

/// Three digits: half a cent for a thousand samples is not the same as five.
fn show_dollars(dollars: f64) -> String {
    match dollars {
        0.0 => "$0".to_owned(),
        d if d >= 100.0 => format!("${d:.0}"),
        d if d >= 1.0 => format!("${d:.2}"),
        d => {
            let places = (-d.log10().floor()) as usize + 1;
            let text = format!("{d:.places$}");
            format!("${}", text.trim_end_matches('0'))
        }
    }
}

fn show_number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// What every comparison is about.
fn accuracy(cell: &Cell) -> Option<f64> {
    metric(&cell.summary, "accuracy")
}

/// Dollars for a thousand samples, as if none had been remembered.
fn dollars(cell: &Cell) -> Option<f64> {
    let samples = cell.summary.samples;
    let cost = super::dollars(cell.cost.as_ref(), &cell.scorer_costs)?;
    (samples > 0).then(|| cost * 1000.0 / samples as f64)
}

fn latency(cell: &Cell) -> Option<f64> {
    cell.latency_live.as_ref().map(|live| live.p50_ms)
}

/// Heat maps of accuracy over the two longest axes, one for each combination of the others.
fn over_axes(cells: &[Cell], names: &Names) -> Option<Section> {
    if names.axes.len() < 2 {
        return None;
    }
    let mut order: Vec<usize> = (0..names.axes.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(names.axes[*i].1.len()));
    let (down, across) = (order[0], order[1]);
    let rest: Vec<usize> = (0..names.axes.len()).filter(|i| *i != down && *i != across).collect();
    let ((row_axis, rows), (column_axis, columns)) = (&names.axes[down], &names.axes[across]);
    let of = |place: &[String]| rest.iter().map(|i| place[*i].clone()).collect::<Vec<_>>();
    let mut others: Vec<Vec<String>> = Vec::new();
    for place in &names.places {
        let other = of(place);
        if !others.contains(&other) {
            others.push(other);
        }
    }
    let title = format!("Accuracy over {row_axis} and {column_axis}");
    let value = |other: &[String], row: &String, column: &String| {
        let is_it = |place: &Vec<String>| {
            place[down] == *row && place[across] == *column && of(place) == other
        };
        accuracy(&cells[names.places.iter().position(is_it)?])
    };
    let label = |other: &[String]| {
        let pairs =
            rest.iter().zip(other).map(|(i, value)| format!("{}={value}", names.axes[*i].0));
        pairs.collect::<Vec<_>>().join(", ")
    };
    let chart = |other: &Vec<String>| {
        let of_row =
            |row: &String| columns.iter().map(|column| value(other, row, column)).collect();
        let heat = Heat {
            title: format!("{title} {}", label(other)),
            row_axis: match rest.is_empty() {
                true => row_axis.clone(),
                false => format!("{}: {row_axis}", label(other)),
            },
            column_axis: column_axis.clone(),
            rows: rows.clone(),
            columns: columns.clone(),
            values: rows.iter().map(of_row).collect(),
            show: show_percent,
        };
        charts::heat(&heat)
    };
    let mut head: Vec<String> = vec![format!("{row_axis} ↓ {column_axis} →")];
    head.extend(columns.iter().cloned());
    let line = |other: &Vec<String>, row: &String| {
        let name = if rest.is_empty() { row.clone() } else { format!("{} · {row}", label(other)) };
        let values = columns.iter().map(|column| percent(value(other, row, column)));
        std::iter::once(name).chain(values).collect::<Vec<_>>()
    };
    let lines = others.iter().flat_map(|other| rows.iter().map(move |row| line(other, row)));
    let table = Table { head, rows: lines.collect() };
    let charts = others.iter().take(CHARTS_MAX).map(chart).collect();
    let note =
        "Accuracy of answered samples, as in Metrics; each map has a scale of its own.".to_owned();
    Some(Section { title, note, charts, table, in_text: true, by_category: false })
}

/// A panel for each number.
fn side_by_side(report: &Report, names: &Names) -> Option<Section> {
    let cells = &report.cells;
    let metrics: BTreeSet<&str> = cells
        .iter()
        .flat_map(|cell| &cell.measures)
        .filter(|m| m.reducer == "mean" && m.metric != "accuracy" && m.metric != "accuracy_all")
        .map(|measure| measure.metric.as_str())
        .collect();
    let measured = |cell: &Cell, metric: &str| -> Option<(f64, Option<Interval>)> {
        let is_it = |m: &&crate::record::scores::Measure| m.metric == metric && m.reducer == "mean";
        let estimate = cell.measures.iter().find(is_it)?.estimate.as_ref()?;
        Some((estimate.value, estimate.ci))
    };
    type Numbers = Vec<(Option<f64>, Option<Interval>)>;
    let mut panels: Vec<(String, Show, Numbers)> = vec![(
        "accuracy".to_owned(),
        show_percent,
        cells.iter().map(|cell| (accuracy(cell), cell.summary.accuracy_ci)).collect(),
    )];
    for name in metrics {
        let values = cells
            .iter()
            .map(|cell| measured(cell, name).map_or((None, None), |(value, ci)| (Some(value), ci)));
        panels.push((name.to_owned(), show_percent, values.collect()));
    }
    let tokens: Of = |cell| {
        let tokens = cell.usage.output_tokens? as f64;
        (cell.summary.samples > 0).then(|| tokens / cell.summary.samples as f64)
    };
    let others: [(&str, Show, Of); 3] = [
        ("$ for 1,000 samples", show_dollars, dollars),
        ("p50 latency, live", show_ms, latency),
        ("tokens out for a sample", show_number, tokens),
    ];
    for (name, show, of) in others {
        panels.push((name.to_owned(), show, cells.iter().map(|cell| (of(cell), None)).collect()));
    }
    panels.retain(|(_, _, values)| values.iter().any(|(value, _)| value.is_some()));
    if panels.is_empty() {
        return None;
    }
    let chart = |(title, show, values): &(String, Show, Numbers)| {
        let bars = names.short.iter().zip(values);
        let bars =
            bars.map(|(name, (value, ci))| Bar { name: name.clone(), value: *value, ci: *ci });
        charts::bars(&Bars { title: title.clone(), bars: bars.collect(), show: *show })
    };
    let drawn = panels.iter().filter(|_| cells.len() <= CELLS_MAX).take(CHARTS_MAX);
    let charts = drawn.map(chart).collect();
    let mut head = vec!["workflow".to_owned()];
    head.extend(panels.iter().map(|(title, ..)| title.clone()));
    let line = |(i, cell): (usize, &Cell)| {
        let values = panels
            .iter()
            .map(|(_, show, values)| values[i].0.map_or_else(|| ABSENT.to_owned(), show));
        std::iter::once(cell.name.clone()).chain(values).collect::<Vec<_>>()
    };
    Some(Section {
        title: "Side by side".to_owned(),
        note: "Every panel has a scale of its own, from zero; whiskers are 95 % intervals. Costs are of all requests, \
               as if none had been remembered."
            .to_owned(),
        charts,
        table: Table { head, rows: cells.iter().enumerate().map(line).collect() },
        in_text: false,
        by_category: false,
    })
}

/// Accuracy against what it takes.
fn trade_offs(cells: &[Cell], names: &Names) -> Option<Section> {
    let axes: [(&str, &str, Show, Of); 2] = [
        ("Accuracy against cost", "$ for 1,000 samples", show_dollars, dollars),
        ("Accuracy against latency", "p50 latency of live samples", show_ms, latency),
    ];
    let mut charts = Vec::new();
    let mut best: Vec<BTreeMap<usize, bool>> = Vec::new();
    for (title, x_axis, show_x, of) in axes {
        let known = |(i, cell): (usize, &Cell)| Some((i, of(cell)?, accuracy(cell)?));
        let known: Vec<(usize, f64, f64)> = cells.iter().enumerate().filter_map(known).collect();
        let front = charts::pareto(&known.iter().map(|(_, x, y)| (*x, *y)).collect::<Vec<_>>());
        best.push(known.iter().zip(front).map(|((i, ..), best)| (*i, best)).collect());
        if known.len() < 2 || cells.len() > CELLS_MAX {
            continue;
        }
        // The table names all workflows, also those without one of the two numbers.
        let point = |(i, x, y): &(usize, f64, f64)| Point {
            number: i + 1,
            name: names.short[*i].clone(),
            x: *x,
            y: *y,
            ci: cells[*i].summary.accuracy_ci,
        };
        charts.push(charts::scatter(&Scatter {
            title: title.to_owned(),
            x_axis: x_axis.to_owned(),
            y_axis: "accuracy".to_owned(),
            points: known.iter().map(point).collect(),
            show_x,
            show_y: |share| format!("{:.0} %", share * 100.0),
        }));
    }
    if best.iter().all(|known| known.len() < 2) {
        return None;
    }
    let head = [
        "workflow",
        "number",
        "accuracy",
        "95 % CI",
        axes[0].1,
        "best by cost",
        axes[1].1,
        "best by latency",
    ];
    let is_best = |of: usize, i: usize| match best[of].get(&i) {
        Some(true) => "yes",
        Some(false) => "no",
        None => ABSENT,
    };
    let line = |(i, cell): (usize, &Cell)| {
        let show = |value: Option<f64>, show: Show| value.map_or_else(|| ABSENT.to_owned(), show);
        vec![
            cell.name.clone(),
            (i + 1).to_string(),
            percent(accuracy(cell)),
            bounds(cell.summary.accuracy_ci),
            show(dollars(cell), show_dollars),
            is_best(0, i).to_owned(),
            show(latency(cell), show_ms),
            is_best(1, i).to_owned(),
        ]
    };
    Some(Section {
        title: "Accuracy against cost and latency".to_owned(),
        note: "Filled points are on the Pareto front: no other workflow is as right or more so for as little or less. \
               Points bear the numbers of the table; vertical lines are 95 % intervals, so that points of the front \
               may be no better than their neighbours. Costs are of all requests, as if none had been remembered."
            .to_owned(),
        charts,
        table: Table {
            head: head.map(str::to_owned).to_vec(),
            rows: cells.iter().enumerate().map(line).collect(),
        },
        in_text: true,
        by_category: false,
    })
}

/// A heat map for each tag: its values by workflow.
fn by_category(report: &Report, names: &Names) -> Option<Section> {
    let cells = &report.cells;
    let mut tags: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for group in cells.iter().flat_map(|cell| &cell.by_tag) {
        tags.entry(&group.tag).or_default().insert(&group.value);
    }
    if tags.is_empty() || cells.len() > CELLS_MAX {
        return None;
    }
    let value = |cell: &Cell, tag: &str, value: &str| {
        let group = cell.by_tag.iter().find(|group| group.tag == tag && group.value == value)?;
        metric(&group.summary, "accuracy").filter(|_| answered(&group.summary) > 0)
    };
    let chart = |(tag, values): (&&str, &BTreeSet<&str>)| {
        let of_value = |one: &&str| cells.iter().map(|cell| value(cell, tag, one)).collect();
        charts::heat(&Heat {
            title: format!("Accuracy by {tag}"),
            row_axis: (*tag).to_owned(),
            column_axis: "workflow".to_owned(),
            rows: values.iter().map(|value| (*value).to_owned()).collect(),
            columns: names.short.clone(),
            values: values.iter().map(of_value).collect(),
            show: show_percent,
        })
    };
    Some(Section {
        title: "Accuracy by category".to_owned(),
        note: "Categories are the values of tags; n counts answered samples.".to_owned(),
        charts: tags.iter().take(CHARTS_MAX).map(chart).collect(),
        table: groups(report),
        in_text: false,
        by_category: true,
    })
}

/// How far the draws of a row agree, and whether what most say is right.
fn agreement(cells: &[Cell], names: &Names) -> Option<Section> {
    let known = || {
        cells
            .iter()
            .zip(&names.short)
            .filter_map(|(c, name)| Some((c, name, c.agreement.as_ref()?)))
    };
    let chart = |(_, name, agreement): (&Cell, &String, &crate::record::agreement::Agreement)| {
        let points = agreement.bins.iter().map(|bin| Confidence {
            confidence: bin.agreement,
            right: bin.right,
            ci: bin.ci,
            cases: bin.rows,
        });
        charts::calibration(&Calibration {
            title: charts::shortened(name, 40),
            points: points.collect(),
        })
    };
    let head = [
        "workflow",
        "agreement",
        "rows",
        "mean agreement",
        "majority right",
        "95 % CI",
        "single draw right",
        "calibration error",
    ];
    let mut rows = Vec::new();
    for (cell, _, agreement) in known() {
        let absent = || ABSENT.to_owned();
        let mean = agreement.bins.iter().map(|bin| bin.agreement * bin.rows as f64).sum::<f64>();
        rows.push(vec![
            cell.name.clone(),
            "all".to_owned(),
            count(agreement.rows),
            percent(Some(mean / agreement.rows as f64)),
            percent(Some(agreement.majority)),
            absent(),
            percent(Some(agreement.single)),
            format!("{:.1}", agreement.calibration_error * 100.0),
        ]);
        rows.extend(agreement.bins.iter().map(|bin| {
            vec![
                cell.name.clone(),
                format!("over {:.0} to {:.0} %", bin.from * 100.0, bin.to * 100.0),
                count(bin.rows),
                percent(Some(bin.agreement)),
                percent(Some(bin.right)),
                bounds(bin.ci),
                absent(),
                absent(),
            ]
        }));
    }
    (!rows.is_empty()).then(|| Section {
        title: "Agreement of epochs".to_owned(),
        note: "Agreement is the share of a row's draws that gave the answer most of them gave; right is whether that \
               answer is. On the dashed line agreement is as good as a probability; below it draws agree on what is \
               wrong. The calibration error is the mean distance from the line, in points."
            .to_owned(),
        charts: known().take(CHARTS_MAX).map(chart).collect(),
        table: Table { head: head.map(str::to_owned).to_vec(), rows },
        in_text: true,
        by_category: false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::html::tests::page_of;
    use super::super::markdown;
    use super::super::markdown::tests::{cell, report, row};
    use super::super::{Analysis, analyse};
    use super::*;

    fn matrix() -> Report {
        let right = [("naive", "0", 2), ("naive", "1", 4), ("cot", "0", 6), ("cot", "1", 8)];
        let cells = right.map(|(method, temperature, right)| {
            let rows = (0..10).map(|i| {
                let mut row = row(&format!("q{i}"), Some("42"), Some(i < right));
                row.sample.tags.insert("topic".to_owned(), ["sums", "words"][i % 2].to_owned());
                row
            });
            cell(&format!("ask[method={method},temperature={temperature}]"), rows.collect())
        });
        let mut cells = cells.to_vec();
        let comparisons = analyse(&mut cells, &Analysis::default()).unwrap();
        Report { comparisons, ..report(cells) }
    }

    #[test]
    fn a_matrix_of_two_axes_is_a_map() {
        let report = matrix();
        let sections = sections(&report);
        let titles: Vec<_> = sections.iter().map(|section| section.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "Accuracy over method and temperature",
                "Side by side",
                "Accuracy against cost and latency",
                "Accuracy by category"
            ]
        );
        let map = &sections[0].table;
        assert_eq!(map.head, ["method ↓ temperature →", "0", "1"]);
        assert_eq!(map.rows[0], ["naive", "20.0 %", "40.0 %"]);
        assert_eq!(map.rows[1], ["cot", "60.0 %", "80.0 %"]);
        assert!(sections.iter().all(|section| !section.charts.is_empty()));
        // All cost the same, so that the best is alone on both fronts.
        let best: Vec<_> = sections[2].table.rows.iter().map(|row| row[5].as_str()).collect();
        assert_eq!(best, ["no", "no", "no", "yes"]);
        // 1000 tokens in at $10 and 20 out at $100 for a million are $0.012.
        assert_eq!(sections[2].table.rows[0][4], "$12.00");
        let page = page_of(&report);
        assert!(page.contains("id=\"comparison\"") && page.contains("class=\"heat\""));
        assert_eq!(page.matches("Accuracy by tag").count(), 0, "its table is with its map");
        let text = markdown(&report);
        assert!(text.contains("| cot | 60.0 % | 80.0 % |"), "{text}");
        assert!(text.contains("## Accuracy against cost and latency"), "{text}");
    }

    #[test]
    fn a_single_workflow_is_compared_with_nothing() {
        assert!(
            sections(&report(vec![cell("ask", vec![row("a", Some("42"), Some(true))])])).is_empty()
        );
    }

    #[test]
    fn draws_that_agree_are_shown_with_how_often_they_are_right() {
        let draws =
            [("q0", "42", true), ("q0", "42", true), ("q1", "7", false), ("q1", "42", true)];
        let rows = draws.iter().enumerate().map(|(i, (flow, answer, right))| {
            let mut row = row(flow, Some(answer), Some(*right));
            row.sample.epoch = i as u32 % 2;
            row
        });
        let mut cells = vec![cell("ask", rows.collect())];
        analyse(&mut cells, &Analysis::default()).unwrap();
        let sections = sections(&report(cells));
        assert_eq!(sections.len(), 1);
        let rows = &sections[0].table.rows;
        assert_eq!(rows[0][..5], ["ask", "all", "2", "75.0 %", "50.0 %"]);
        assert_eq!(rows[0][6..], ["75.0 %", "25.0"]);
        assert_eq!(rows[2][1..5], ["over 80 to 100 %", "1", "100.0 %", "100.0 %"]);
        assert!(sections[0].charts[0].contains("where 50 % agree, 0 % are right (n 1)"));
    }

    #[test]
    fn small_amounts_keep_their_digits() {
        assert_eq!(
            [0.0, 0.00512, 0.5, 12.345, 250.4].map(show_dollars),
            ["$0", "$0.0051", "$0.5", "$12.35", "$250"]
        );
    }
}
