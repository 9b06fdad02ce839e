//! A report as one HTML file that needs no network. Knows nothing of files or of how samples are made.
//!
//! Tables and charts are rendered here, so they are there in print and without JavaScript. What samples are filtered by
//! follows (`index.rs`), and then all else of them in compressed blocks (`samples.rs`): `report.js` unpacks those that
//! are looked at, so that a hundred thousand of them open at once.

use std::collections::BTreeSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};
use serde_json::json;

use super::markdown::{
    Outcomes, accuracy, answered, facts, groups, hit_rate, metric, outcomes, params, scorers,
    settings, skipped,
};
use super::spelling::{
    P99_NOTE, Table, count, count_or_absent, duration, moment, p99, percent, rate, revision,
};
use super::{Cell, Report, Row, analysis, charts, comparison, gates, quality, speed};
use crate::digest::Digest;
use crate::sample::{Role, Sample};
use crate::stats::{self, Summary};

mod index;
mod samples;

pub use index::Index;
use samples::{Packer, inert};

const PAGE: &str = include_str!("report.html");
const STYLE: &str = concat!(include_str!("report.css"), include_str!("../charts/charts.css"));
const SCRIPT: &str = include_str!("report.js");
/// Where the blocks of samples go. No text of a report can be this: there `<` is escaped.
const BLOCKS: &str = "<!--blocks-->";

/// Width of the accuracy scale; the values stand to its right.
const SCALE: f64 = 430.0;
/// Height of a workflow in the accuracy chart: its name above its bar.
const ROW_HEIGHT: usize = 54;
/// Characters of a name that fit above a bar.
const NAME_MAX: usize = 48;

/// Writes the report as one HTML document, piece by piece. `rows` are the samples of all workflows, each with the
/// place of its workflow in the report, in order: they are read one at a time, and may come from anywhere.
///
/// # Errors
/// Those of `rows` and of `write`.
pub fn html<E>(
    report: &Report,
    rows: impl IntoIterator<Item = Result<(usize, Row), E>>,
    mut write: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let page = page_around(report);
    let (before, after) = page.split_once(BLOCKS).expect("BUG: the page has a place for blocks");
    write(before)?;
    let mut packer = Packer::new();
    for row in rows {
        let (cell, row) = row?;
        if let Some(block) = packer.add(cell, &row) {
            write(&block)?;
        }
    }
    if let Some(block) = packer.finish() {
        write(&block)?;
    }
    write(after)
}

/// The page without its samples.
fn page_around(report: &Report) -> String {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    let names: Vec<&str> = report.cells.iter().map(|cell| cell.name.as_str()).collect();
    let short = comparison::short_names(report);
    let tags: Vec<&str> = tags(report).into_iter().collect();
    let data = json!({ "cells": names, "short": short, "tags": tags });
    let indexes = report.cells.iter().enumerate();
    let indexes = indexes.map(|(i, cell)| inert(&cell.index.json(i, &tags).to_string()));
    let data = data.to_string();
    let context = context! {
        page => page(report),
        // Base64 and quotes: nothing in it needs to be escaped.
        policy => Value::from_safe_string(policy()),
        style => Value::from_safe_string(STYLE.to_owned()),
        script => Value::from_safe_string(SCRIPT.to_owned()),
        data => Value::from_safe_string(inert(&data)),
        indexes => indexes.map(Value::from_safe_string).collect::<Vec<_>>(),
        blocks => Value::from_safe_string(BLOCKS.to_owned()),
    };
    env.render_str(PAGE, context).expect("BUG: the page of a report renders for every report")
}

/// What the page may do: run its own script and no other, and load nothing at all.
fn policy() -> String {
    let hash = |text: &str| BASE64_STANDARD.encode(Digest::of(text.as_bytes()).bytes());
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
}

/// All tags of all samples, sorted.
fn tags(report: &Report) -> BTreeSet<&str> {
    report.cells.iter().flat_map(|cell| &cell.tags).map(String::as_str).collect()
}

/// What `report.html` reads of the report as a whole.
fn page(report: &Report) -> Value {
    let run = &report.run;
    let rows = || report.cells.iter().flat_map(|cell| &cell.samples);
    let judges: BTreeSet<&str> =
        rows().filter_map(|row| Some(row.sample.scores.first()?.scorer.as_str())).collect();
    context! {
        title => report.title,
        description => report.description,
        started => moment(&run.started_at),
        pipeline => run.pipeline,
        revision => revision(run),
        tool => run.tool,
        // The scorer that decides what is right, where all workflows have the same.
        judge => judges.first().filter(|_| judges.len() == 1),
        chart => chart(&report.cells),
        gates => gates::table(&report.gates),
        gates_total => gates::total(&report.gates),
        metrics => metrics(report),
        stopped => analysis::stopped(report),
        measures => analysis::measures(report),
        comparisons => analysis::comparisons(report),
        comparisons_note => analysis::NOTE,
        warnings => quality::warnings(report),
        extractors => quality::extractors(report),
        extractors_note => quality::NOTE,
        speed => speed::overview(report),
        speed_note => speed::NOTE,
        p99_note => P99_NOTE,
        costs => speed::costs(report),
        groups => groups(report),
        comparison => comparison::page(report),
        outcomes => outcome_chart(report),
        skipped => skipped(report),
        cells => report.cells.iter().map(one_cell).collect::<Vec<_>>(),
        facts => facts(run),
        params => params(run),
        samples => count(rows().count() as u64),
    }
}

/// Accuracy of all workflows on one scale.
fn chart(cells: &[Cell]) -> Value {
    let bottom = cells.len() * ROW_HEIGHT;
    let words = cells.iter().map(|cell| {
        let n = count(answered(&cell.summary));
        format!("{}: {}, n {n}", cell.name, accuracy(&cell.summary))
    });
    let tick = |share: f64| {
        context! {
            x => round(share * SCALE),
            label => format!("{:.0} %", share * 100.0),
            anchor => if share > 0.0 { "middle" } else { "start" },
        }
    };
    context! {
        height => bottom + 30,
        bottom,
        words => words.collect::<Vec<_>>().join("; "),
        ticks => [0.0, 0.25, 0.5, 0.75, 1.0].map(tick),
        rows => cells.iter().enumerate().map(|(i, cell)| chart_row(i, cell)).collect::<Vec<_>>(),
    }
}

fn chart_row(i: usize, cell: &Cell) -> Value {
    let value = metric(&cell.summary, "accuracy");
    let bar = value.zip(cell.summary.accuracy_ci).map(|(value, ci)| {
        context! {
            width => round(value * SCALE),
            low => round(ci.lower * SCALE),
            high => round(ci.upper * SCALE),
        }
    });
    context! {
        y => i * ROW_HEIGHT,
        name => charts::shortened(&cell.name, NAME_MAX),
        full_name => cell.name,
        value => percent(value),
        answered => count(answered(&cell.summary)),
        bar,
    }
}

fn metrics(report: &Report) -> Table {
    let scorers = scorers(report);
    let mut head = vec!["workflow", "samples", "answered", "accuracy [95 % CI]", "of all samples"];
    head.extend(&scorers);
    head.extend(["tokens in", "tokens out", "p50 live", "p95 live", "samples/s", "tokens/s"]);
    let row = |cell: &Cell| {
        let (summary, live) = (&cell.summary, cell.latency_live.as_ref());
        let mut row = vec![
            cell.name.clone(),
            count(summary.samples),
            count(answered(summary)),
            accuracy(summary),
            percent(metric(summary, "accuracy_all")),
        ];
        row.extend(scorers.iter().map(|name| percent(metric(summary, name))));
        row.extend([
            count_or_absent(cell.usage.input_tokens),
            count_or_absent(cell.usage.output_tokens),
            duration(live.map(|live| live.p50_ms)),
            duration(live.map(|live| live.p95_ms)),
            rate(cell.samples_per_s),
            rate(cell.tokens_per_s),
        ]);
        row
    };
    Table {
        head: head.into_iter().map(str::to_owned).collect(),
        rows: report.cells.iter().map(row).collect(),
    }
}

/// How samples ended: counts, and for each workflow a stacked bar that is 1000 wide.
fn outcome_chart(report: &Report) -> Value {
    let Outcomes { columns, rows } = outcomes(report);
    let class = |label: &str| label.replace([' ', '_'], "-");
    let parts = |counts: &[u64]| {
        let total = counts.iter().sum::<u64>().max(1) as f64;
        let mut before = 0_u64;
        let mut parts = Vec::new();
        for (label, n) in columns.iter().zip(counts).filter(|(_, n)| **n > 0) {
            parts.push(context! {
                class => class(label),
                x => round(before as f64 / total * 1000.0),
                width => round(*n as f64 / total * 1000.0),
                title => format!("{label}: {}", count(*n)),
            });
            before += *n;
        }
        parts
    };
    let rows = report.cells.iter().zip(&rows).map(|(cell, counts)| {
        context! {
            name => cell.name,
            samples => count(cell.summary.samples),
            counts => counts.iter().copied().map(count).collect::<Vec<_>>(),
            parts => parts(counts),
        }
    });
    let columns = columns.iter().map(|label| context! { label, class => class(label) });
    context! { columns => columns.collect::<Vec<_>>(), rows => rows.collect::<Vec<_>>() }
}

/// One workflow in the sections that show them one by one.
fn one_cell(cell: &Cell) -> Value {
    let profile = &cell.profile;
    let phases = &profile.profiling_summary;
    let longest = phases.values().map(|times| times.total_ms).fold(0.0, f64::max);
    let phases = phases.iter().map(|(phase, times)| {
        context! {
            name => phase.name(),
            count => count(times.count),
            times => [times.total_ms, times.mean_ms, times.p50_ms, times.p90_ms, times.p95_ms]
                .map(|ms| duration(Some(ms))),
            p99 => p99(Some(times)),
            width => if longest > 0.0 { round(times.total_ms / longest * 100.0) } else { 0.0 },
        }
    });
    let cache = profile.cache_stats.as_ref().filter(|cache| cache.hits > 0);
    context! {
        name => cell.name,
        admission => cell.admission,
        wall => duration(profile.total_wall_time_ms),
        hit_rate => hit_rate(cell),
        saved => cache.map(|cache| duration(Some(cache.total_latency_saved_ms))),
        batches => count(profile.batch_stats.batches_processed),
        batched => count(profile.batch_stats.total_prompts_batched),
        phases => phases.collect::<Vec<_>>(),
        latency => latency(cell),
        speed => (profile.speed.requests > 0).then(|| speed::points(&profile.speed)),
        timeline => speed::timeline(&profile.speed),
        retries => speed::retries(&profile.speed),
        client => speed::client(&profile.speed),
        histogram => histogram(cell),
        settings => settings(cell),
    }
}

fn latency(cell: &Cell) -> Table {
    let row = |name: &str, times: Option<&Summary>| {
        vec![
            name.to_owned(),
            count_or_absent(times.map(|times| times.count)),
            duration(times.map(|times| times.mean_ms)),
            duration(times.map(|times| times.p50_ms)),
            duration(times.map(|times| times.p95_ms)),
            p99(times),
        ]
    };
    Table {
        head: ["served", "n", "mean", "p50", "p95", "p99"].map(str::to_owned).to_vec(),
        rows: vec![
            row("live", cell.latency_live.as_ref()),
            row("from the memo", cell.latency_cached.as_ref()),
        ],
    }
}

/// Latency of live samples; nothing without any.
fn histogram(cell: &Cell) -> Option<Value> {
    let live = cell.latency_live.as_ref()?;
    let most = cell.histogram.iter().map(|bar| bar.count).max()?;
    let svg = latency_chart(live, &cell.histogram)?;
    Some(context! { svg => Value::from_safe_string(svg), most => count(most) })
}

/// The chart of latencies, for pages and reports; nothing where there is none to see.
pub fn latency_chart(times: &Summary, bars: &[stats::Bar]) -> Option<String> {
    let text = |ms: f64| duration(Some(ms));
    charts::histogram(&charts::Histogram {
        title: format!(
            "{} samples from {} to {}; median {}, 95th percentile {}",
            count(times.count),
            text(bars.first()?.from),
            text(bars.last()?.to),
            text(times.p50_ms),
            text(times.p95_ms),
        ),
        bars,
        marks: vec![("p50", times.p50_ms), ("p95", times.p95_ms)],
        show: |ms| duration(Some(ms)),
    })
}

/// A tenth of a unit is finer than any screen.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The question of the first step: the last turn of the user before the first reply of the model.
/// Worked examples come before it, observations of tools after it.
pub fn question(sample: &Sample) -> Option<&str> {
    let step = sample.steps.first()?;
    let turns = &step.transcript;
    let replies: Vec<usize> =
        (0..turns.len()).filter(|i| turns[*i].role == Role::Assistant).collect();
    // Replies in examples look like any other, so those of the model are counted from the end.
    let unanswered = turns.last().is_some_and(|turn| turn.role == Role::User);
    let own = match &step.trace {
        Some(trace) => trace.steps.len(),
        None => step.requests.len().saturating_sub(usize::from(unanswered)),
    };
    let first = replies.len().saturating_sub(own);
    let end = replies.get(first).copied().unwrap_or(turns.len());
    let question = turns[..end].iter().rfind(|turn| turn.role == Role::User)?;
    Some(&question.content)
}

#[cfg(test)]
pub(in crate::report) mod tests {
    use super::super::markdown::tests::{cell, report, row};
    use super::super::spelling::ABSENT;
    use super::*;
    use crate::sample::{Message, Termination, Trace, TraceStep};

    const EVIL: &str = "</script><script>alert(1)</script>\u{2028}<!--<img onerror=alert(1)>&amp;";

    /// The page of a report that holds all of its rows.
    pub(in crate::report) fn page_of(report: &Report) -> String {
        let cells = report.cells.iter().enumerate();
        let rows = cells.flat_map(|(i, cell)| cell.samples.iter().map(move |row| (i, row.clone())));
        let mut page = String::new();
        let write = |text: &str| {
            page.push_str(text);
            Ok::<(), std::convert::Infallible>(())
        };
        html(report, rows.map(Ok), write).unwrap();
        page
    }

    #[test]
    fn what_a_model_says_stays_text() {
        let html = page_of(&report(vec![cell("ask", vec![row(EVIL, Some(EVIL), Some(false))])]));
        assert!(!html.contains("<script>alert") && !html.contains("<img"), "{html}");
        assert!(!html.contains('\u{2028}'));
        // Its own, the data, an index and a block.
        assert_eq!(html.matches("<script").count(), 4);
        assert_eq!(html.matches("</script").count(), 4);
        let (indexes, blocks) = samples::unpacked(&html);
        let (index, rows) = (&indexes[0], &blocks[0]);
        assert_eq!(rows[0]["answer"], EVIL);
        assert_eq!(index["verdict"]["values"][0], "wrong");
        assert_eq!(index["tags"][0]["values"][0], EVIL);
        assert_eq!(rows[0]["requests"][0]["phases_ms"]["api_call"], 1400.0);
    }

    #[test]
    fn names_in_headings_stay_text() {
        let mut report = report(vec![cell("<b>\"x\"", vec![]), cell(EVIL, vec![])]);
        report.title = EVIL.to_owned();
        report.cells[0].admission = EVIL.to_owned();
        let html = page_of(&report);
        assert!(html.contains("&lt;b&gt;&quot;x&quot;"), "{html}");
        assert!(!html.contains("<b>") && !html.contains("<img"), "{html}");
        assert_eq!(html.matches("</script").count(), 4);
    }

    #[test]
    fn what_is_unknown_is_not_zero() {
        let report = report(vec![cell("ask", vec![row("a", None, None)]), cell("none", vec![])]);
        let metrics = metrics(&report);
        assert_eq!(metrics.rows[0][3..5], [ABSENT, "0.0 %"]);
        assert_eq!(metrics.rows[1][3..5], [ABSENT, ABSENT]);
        assert_eq!(latency(&report.cells[1]).rows[0][1..], [ABSENT; 5]);
        assert!(page_of(&report).contains("no scored samples"));
    }

    #[test]
    fn the_99th_percentile_of_few_values_is_marked_in_every_table() {
        let html = page_of(&report(vec![cell("ask", vec![row("a", Some("42"), Some(true))])]));
        for (name, p99) in [("profile", "1.40 s"), ("speed", "1.40 s"), ("latency", "1.50 s")] {
            let (_, section) = html.split_once(&format!("<section id=\"{name}\"")).unwrap();
            let (section, _) = section.split_once("</section>").unwrap();
            // Each is of one value.
            let marked = format!("<td class=\"few\">{p99} *</td>");
            assert!(section.contains(&marked), "no `{marked}` in {section}");
            assert!(section.contains("fewer than 1,000 values"), "{section}");
        }
        assert!(html.contains("<svg class=\"timeline\""), "{html}");
    }

    #[test]
    fn the_page_needs_no_network() {
        let html = page_of(&report(vec![cell("ask", vec![row("a", Some("42"), Some(true))])]));
        assert!(!html.contains("http://") && !html.contains("https://"));
        assert!(html.contains("default-src 'none'"));
        assert!(html.contains("⚡ Optimization Profile"));
        for word in [">none<", "undefined", "Some("] {
            assert!(!html.replace(SCRIPT, "").contains(word), "`{word}` in the page");
        }
        assert!(html.contains("100.0 % [20.7, 100.0]"));
        assert!(!SCRIPT.contains("innerHTML"));
    }

    #[test]
    fn the_policy_names_the_script_and_the_style_as_they_stand() {
        let html = page_of(&report(vec![cell("ask", vec![])]));
        assert!(html.contains(&format!("<style>{STYLE}</style>")));
        assert!(html.contains(&format!("<script>{SCRIPT}</script>")));
        // Neither would be let through.
        assert!(!html.contains(" style=\"") && !html.contains(" onclick"));
    }

    #[test]
    fn the_question_is_neither_an_example_nor_an_observation() {
        let mut sample = row("a", Some("42"), Some(true)).sample;
        assert_eq!(question(&sample), Some("question of a"));
        // The request failed: no reply.
        sample.steps[0].transcript.pop();
        assert_eq!(question(&sample), Some("question of a"));
        // An agent that was stopped after an observation.
        let turn = |step| TraceStep {
            step,
            thought: String::new(),
            action: None,
            action_input: None,
            observation: None,
            succeeded: None,
        };
        for reply in ["Action: a[1]", "Action: a[2]"] {
            sample.steps[0].transcript.push(Message::new(Role::Assistant, reply));
            sample.steps[0].transcript.push(Message::new(Role::User, "Observation: 3"));
        }
        sample.steps[0].trace = Some(Trace {
            steps: vec![turn(1), turn(2)],
            termination_reason: Termination::MaxIterations,
        });
        assert_eq!(question(&sample), Some("question of a"));
        sample.steps.clear();
        assert_eq!(question(&sample), None);
    }
}
