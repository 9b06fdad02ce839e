//! A report as one HTML file that needs no network. Knows nothing of files or of how samples are made.
//!
//! Tables and charts are rendered here, so they are there in print and without JavaScript. Samples travel
//! as JSON; `report.js` builds only those that are looked at, so ten thousand of them open at once.

use std::collections::{BTreeSet, HashMap};

use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};
use serde::Serialize;

use super::markdown::{
    Outcomes, Table, accuracy, answered, count, count_or_absent, duration, facts, groups, hit_rate,
    metric, moment, outcomes, params, percent, rate, revision, scorers, settings, skipped,
};
use super::{Cell, Report, Row, analysis, quality, speed};
use crate::digest::{Digest, Key};
use crate::record::RequestObserved;
use crate::sample::{Reading, Role, Sample, Score, Trace};
use crate::stats::Summary;

const PAGE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// Width of every chart, in its own units.
const WIDTH: f64 = 640.0;
/// Width of the accuracy scale; the values stand to its right.
const SCALE: f64 = 430.0;
/// Height of a workflow in the accuracy chart: its name above its bar.
const ROW_HEIGHT: usize = 54;
/// Characters of a name that fit above a bar.
const NAME_MAX: usize = 48;
/// Top and bottom of the bars of a histogram.
const BARS: (f64, f64) = (36.0, 146.0);

/// The report as one HTML document.
pub fn html(report: &Report) -> String {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    let samples = serde_json::to_string(&Samples::of(report)).expect("BUG: a report is plain data");
    let context = context! {
        page => page(report),
        style => Value::from_safe_string(STYLE.to_owned()),
        script => Value::from_safe_string(SCRIPT.to_owned()),
        samples => Value::from_safe_string(inert(&samples)),
    };
    env.render_str(PAGE, context).expect("BUG: the page of a report renders for every report")
}

/// JSON in which no text can end the `<script>` around it, whatever a model said. The characters
/// occur in strings only, where their escapes mean the same.
fn inert(json: &str) -> String {
    let mut out = String::with_capacity(json.len() + json.len() / 16);
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
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
        costs => speed::costs(report),
        groups => groups(report),
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
        name => shortened(&cell.name),
        full_name => cell.name,
        value => percent(value),
        answered => count(answered(&cell.summary)),
        bar,
    }
}

/// A name that fits. What tells two cells of a matrix apart is often at its end, so the middle goes.
fn shortened(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    if chars.len() <= NAME_MAX {
        return name.to_owned();
    }
    let half = NAME_MAX / 2;
    let (head, tail) = (&chars[..half], &chars[chars.len() - half + 1..]);
    head.iter().chain(&['…']).chain(tail).collect()
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
            times => [times.total_ms, times.mean_ms, times.p50_ms, times.p90_ms, times.p95_ms, times.p99_ms]
                .map(|ms| duration(Some(ms))),
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
            duration(times.map(|times| times.p99_ms)),
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
    let (low, high) = (cell.histogram.first()?.from, cell.histogram.last()?.to);
    let most = cell.histogram.iter().map(|bar| bar.count).max().filter(|most| *most > 0)?;
    if high <= low {
        return None;
    }
    let text = |ms: f64| duration(Some(ms));
    let x = |ms: f64| round(((ms - low) / (high - low)).clamp(0.0, 1.0) * WIDTH);
    let (top, bottom) = BARS;
    let bars = cell.histogram.iter().map(|bar| {
        let height = round(bar.count as f64 / most as f64 * (bottom - top));
        context! {
            x => x(bar.from),
            y => round(bottom - height),
            width => round((x(bar.to) - x(bar.from) - 1.0).max(1.0)),
            height,
            title => format!("{} to {}: {}", text(bar.from), text(bar.to), count(bar.count)),
        }
    });
    // Each label has a line of its own, since the two percentiles may be close.
    let mark = |name: &str, ms: f64, label_y: f64| {
        let left = x(ms) > WIDTH / 2.0;
        context! {
            x => x(ms),
            label_x => round(if left { x(ms) - 5.0 } else { x(ms) + 5.0 }),
            label_y,
            anchor => if left { "end" } else { "start" },
            label => format!("{name} {}", text(ms)),
        }
    };
    Some(context! {
        words => format!(
            "{} live samples from {} to {}; median {}, 95th percentile {}",
            count(live.count),
            text(low),
            text(high),
            text(live.p50_ms),
            text(live.p95_ms),
        ),
        low => text(low),
        high => text(high),
        most => count(most),
        bars => bars.collect::<Vec<_>>(),
        marks => [mark("p50", live.p50_ms, 12.0), mark("p95", live.p95_ms, 29.0)],
    })
}

/// A tenth of a unit is finer than any screen.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// What `report.js` reads. Texts are stored once and named by position: a system prompt stands in
/// every sample, and a question in every workflow.
#[derive(Serialize)]
struct Samples<'a> {
    cells: Vec<&'a str>,
    tags: Vec<&'a str>,
    rows: Vec<SampleView<'a>>,
    texts: Vec<&'a str>,
}

#[derive(Serialize)]
struct SampleView<'a> {
    cell: usize,
    flow: usize,
    question: Option<usize>,
    answer: Option<usize>,
    targets: Vec<usize>,
    /// What the first scorer says.
    right: Option<bool>,
    outcome: &'static str,
    detail: Option<&'a str>,
    epoch: u32,
    scores: &'a [Score],
    readings: &'a [Reading],
    steps: Vec<StepView<'a>>,
    tags: Vec<Option<usize>>,
    key: Key,
    flow_digest: Digest,
    served_from: &'static str,
    latency_ms: f64,
    wall_ms: f64,
    metrics_ms: Option<f64>,
    requests: &'a [RequestObserved],
}

#[derive(Serialize)]
struct StepView<'a> {
    id: &'a str,
    transcript: Vec<(Role, usize)>,
    answer: Option<&'a str>,
    trace: Option<&'a Trace>,
}

#[derive(Default)]
struct Texts<'a> {
    list: Vec<&'a str>,
    positions: HashMap<&'a str, usize>,
}

impl<'a> Texts<'a> {
    fn position(&mut self, text: &'a str) -> usize {
        *self.positions.entry(text).or_insert_with(|| {
            self.list.push(text);
            self.list.len() - 1
        })
    }
}

impl<'a> Samples<'a> {
    fn of(report: &'a Report) -> Self {
        let all = || report.cells.iter().enumerate();
        let tags: BTreeSet<&str> = all()
            .flat_map(|(_, cell)| &cell.samples)
            .flat_map(|row| row.sample.tags.keys())
            .map(String::as_str)
            .collect();
        let tags: Vec<&str> = tags.into_iter().collect();
        let mut texts = Texts::default();
        let mut rows = Vec::new();
        for (cell, Cell { samples, .. }) in all() {
            rows.extend(samples.iter().map(|row| SampleView::of(cell, row, &tags, &mut texts)));
        }
        Samples {
            cells: report.cells.iter().map(|cell| cell.name.as_str()).collect(),
            tags,
            rows,
            texts: texts.list,
        }
    }
}

impl<'a> SampleView<'a> {
    fn of(cell: usize, row: &'a Row, tags: &[&str], texts: &mut Texts<'a>) -> Self {
        let Row { sample, observed, .. } = row;
        let mut steps = Vec::new();
        for step in &sample.steps {
            let transcript = step.transcript.iter();
            steps.push(StepView {
                id: &step.id,
                transcript: transcript.map(|m| (m.role, texts.position(&m.content))).collect(),
                answer: step.answer.as_deref(),
                trace: step.trace.as_ref(),
            });
        }
        SampleView {
            cell,
            flow: texts.position(&sample.flow),
            question: question(sample).map(|text| texts.position(text)),
            answer: sample.answer.as_deref().map(|text| texts.position(text)),
            targets: sample.targets.iter().map(|text| texts.position(text)).collect(),
            right: sample.scores.first().and_then(Score::is_right),
            outcome: sample.outcome.name(),
            detail: sample.detail.as_deref(),
            epoch: sample.epoch,
            scores: &sample.scores,
            readings: &sample.readings,
            steps,
            tags: tags
                .iter()
                .map(|tag| sample.tags.get(*tag).map(|text| texts.position(text)))
                .collect(),
            key: sample.key,
            flow_digest: sample.flow_digest,
            served_from: observed.served_from.name(),
            latency_ms: observed.latency_ms(),
            wall_ms: observed.wall_ms,
            metrics_ms: observed.metrics_ms,
            requests: &observed.requests,
        }
    }
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
mod tests {
    use super::super::markdown::ABSENT;
    use super::super::markdown::tests::{cell, report, row};
    use super::*;
    use crate::sample::{Message, Termination, TraceStep};

    const EVIL: &str = "</script><script>alert(1)</script>\u{2028}<!--<img onerror=alert(1)>&amp;";

    fn data(html: &str) -> serde_json::Value {
        let (_, rest) = html.split_once(r#"id="data">"#).unwrap();
        let (json, _) = rest.split_once("</script>").unwrap();
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_a_model_says_stays_text() {
        let html = html(&report(vec![cell("ask", vec![row(EVIL, Some(EVIL), Some(false))])]));
        assert!(!html.contains("<script>alert") && !html.contains("<img"), "{html}");
        assert!(!html.contains('\u{2028}'));
        assert_eq!(html.matches("<script").count(), 2);
        assert_eq!(html.matches("</script").count(), 2);
        let data = data(&html);
        let at = data["rows"][0]["answer"].as_u64().unwrap() as usize;
        assert_eq!(data["texts"][at], EVIL);
        assert_eq!(data["rows"][0]["right"], false);
        assert_eq!(data["rows"][0]["requests"][0]["phases_ms"]["api_call"], 1400.0);
    }

    #[test]
    fn names_in_headings_stay_text() {
        let mut report = report(vec![cell("<b>\"x\"", vec![]), cell(EVIL, vec![])]);
        report.title = EVIL.to_owned();
        report.cells[0].admission = EVIL.to_owned();
        let html = html(&report);
        assert!(html.contains("&lt;b&gt;&quot;x&quot;"), "{html}");
        assert!(!html.contains("<b>") && !html.contains("<img"), "{html}");
        assert_eq!(html.matches("</script").count(), 2);
    }

    #[test]
    fn what_is_unknown_is_not_zero() {
        let report = report(vec![cell("ask", vec![row("a", None, None)]), cell("none", vec![])]);
        let metrics = metrics(&report);
        assert_eq!(metrics.rows[0][3..5], [ABSENT, "0.0 %"]);
        assert_eq!(metrics.rows[1][3..5], [ABSENT, ABSENT]);
        assert_eq!(latency(&report.cells[1]).rows[0][1..], [ABSENT; 5]);
        assert!(html(&report).contains("no scored samples"));
    }

    #[test]
    fn the_page_needs_no_network() {
        let html = html(&report(vec![cell("ask", vec![row("a", Some("42"), Some(true))])]));
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
    fn equal_texts_are_stored_once() {
        let rows = vec![row("a", Some("42"), Some(true)), row("b", Some("42"), Some(true))];
        let report = report(vec![cell("one", rows.clone()), cell("two", rows)]);
        let texts = Samples::of(&report).texts;
        assert_eq!(texts.iter().filter(|text| **text == "Be brief.").count(), 1);
        assert_eq!(texts.len(), texts.iter().collect::<BTreeSet<_>>().len());
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

    #[test]
    fn a_long_name_loses_its_middle() {
        let name = format!("{}{}", "a".repeat(50), "z".repeat(50));
        let short = shortened(&name);
        assert_eq!(short.chars().count(), NAME_MAX);
        assert!(short.starts_with("aaa") && short.contains('…') && short.ends_with("zzz"));
    }
}
