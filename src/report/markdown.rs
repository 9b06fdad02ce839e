//! A report as Markdown, and the tables that it shares with the HTML report. Knows nothing of HTML or files.

use std::collections::BTreeSet;

use super::spelling::{
    ABSENT, Table, count, count_or_absent, duration, escape, moment, percent, plain, revision,
};
use super::{Cell, Report, RunInfo, analysis, comparison, gates, quality, speed};
use crate::record::TallySummary;
use crate::sample::{Outcome, Score};

/// How the samples of each workflow ended: a column for every way that occurred in any of them.
pub(super) struct Outcomes {
    pub(super) columns: Vec<&'static str>,
    pub(super) rows: Vec<Vec<u64>>,
}

/// The report as GitHub-flavoured Markdown.
pub fn markdown(report: &Report) -> String {
    let run = &report.run;
    let mut blocks = vec![format!("# {}", escape(&report.title))];
    blocks.extend(report.description.clone());
    blocks.push(format!(
        "{} · pipeline {} · {} · {}",
        moment(&run.started_at),
        escape(&run.pipeline),
        escape(&revision(run)),
        escape(&run.tool)
    ));
    let warnings = quality::warnings(report);
    if !warnings.is_empty() {
        blocks.push("## Warnings".to_owned());
        let lines: Vec<_> = warnings.iter().map(|line| format!("- {}", escape(line))).collect();
        blocks.push(lines.join("\n"));
    }
    if let Some(table) = gates::table(&report.gates) {
        blocks.push("## Gates".to_owned());
        blocks.push(gates::total(&report.gates));
        blocks.push(texts(&table));
    }
    blocks.push("## Metrics".to_owned());
    blocks.push(numbers(&metrics(report)));
    blocks.extend(analysis::stopped(report).into_iter().map(|line| escape(&line)));
    blocks.push("### Intervals".to_owned());
    blocks.push(numbers(&analysis::measures(report)));
    if let Some(table) = analysis::comparisons(report) {
        blocks.push("## Comparisons".to_owned());
        blocks.push(numbers(&table));
        blocks.push(analysis::NOTE.to_owned());
    }
    for section in comparison::sections(report).iter().filter(|section| section.in_text) {
        blocks.push(format!("## {}", escape(&section.title)));
        blocks.push(numbers(&section.table));
        blocks.push(section.note.clone());
    }
    if let Some(extractors) = quality::extractors(report) {
        blocks.push("## Extractors".to_owned());
        blocks.push(numbers(&extractors));
        blocks.push(quality::NOTE.to_owned());
    }
    blocks.push("## Outcomes".to_owned());
    blocks.push(numbers(&outcome_table(report)));
    blocks.extend(skipped(report).into_iter().map(|line| escape(&line)));
    let groups = groups(report);
    if !groups.rows.is_empty() {
        blocks.push("## Accuracy by tag".to_owned());
        blocks.push(numbers(&groups));
    }
    blocks.push("## ⚡ Optimization Profile".to_owned());
    blocks.push(numbers(&profile(report)));
    blocks.push("## Speed of live requests".to_owned());
    blocks.push(numbers(&speed::overview(report)));
    for cell in report.cells.iter().filter(|cell| cell.profile.speed.requests > 0) {
        blocks.push(format!("### Speed of {}", escape(&cell.name)));
        blocks.push(numbers(&speed::points(&cell.profile.speed)));
        blocks.extend(
            speed::client(&cell.profile.speed).map(|client| format!("The client: {client}.")),
        );
    }
    blocks.push(speed::NOTE.to_owned());
    if let Some(costs) = speed::costs(report) {
        blocks.push("## Costs".to_owned());
        blocks.push(numbers(&costs));
    }
    blocks.push("## What was run".to_owned());
    blocks.push(texts(&Table {
        head: vec!["fact".to_owned(), "value".to_owned()],
        rows: facts(run).into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect(),
    }));
    if !run.params.is_empty() {
        blocks.push("### Parameters".to_owned());
        blocks.push(texts(&params(run)));
    }
    for cell in &report.cells {
        blocks.push(format!("### {}", escape(&cell.name)));
        blocks.push(texts(&settings(cell)));
    }
    let mut text = blocks.join("\n\n");
    text.push('\n');
    text
}

fn metrics(report: &Report) -> Table {
    let scorers = scorers(report);
    let mut head: Vec<String> =
        ["workflow", "samples", "answered", "accuracy [95 % CI]"].map(str::to_owned).to_vec();
    head.extend(scorers.iter().map(|name| (*name).to_owned()));
    head.extend(["p50 live", "tokens out"].map(str::to_owned));
    let row = |cell: &Cell| {
        let mut row = vec![
            cell.name.clone(),
            count(cell.summary.samples),
            count(answered(&cell.summary)),
            accuracy(&cell.summary),
        ];
        row.extend(scorers.iter().map(|name| percent(metric(&cell.summary, name))));
        row.push(duration(cell.latency_live.as_ref().map(|live| live.p50_ms)));
        row.push(count_or_absent(cell.usage.output_tokens));
        row
    };
    Table { head, rows: report.cells.iter().map(row).collect() }
}

fn outcome_table(report: &Report) -> Table {
    let Outcomes { columns, rows } = outcomes(report);
    let mut head = vec!["workflow".to_owned(), "samples".to_owned()];
    head.extend(columns.into_iter().map(str::to_owned));
    let rows = report.cells.iter().zip(rows).map(|(cell, counts)| {
        let mut row = vec![cell.name.clone(), count(cell.summary.samples)];
        row.extend(counts.into_iter().map(count));
        row
    });
    Table { head, rows: rows.collect() }
}

fn profile(report: &Report) -> Table {
    let head = ["workflow", "Total Wall Time", "Cache Hit Rate", "Batches Processed"];
    let row = |cell: &Cell| {
        let profile = &cell.profile;
        vec![
            cell.name.clone(),
            duration(profile.total_wall_time_ms),
            hit_rate(cell),
            count(profile.batch_stats.batches_processed),
        ]
    };
    Table { head: head.map(str::to_owned).to_vec(), rows: report.cells.iter().map(row).collect() }
}

/// Accuracy by the values of each tag: a row for each value, a column for each workflow.
pub(super) fn groups(report: &Report) -> Table {
    let groups: BTreeSet<(&str, &str)> = report
        .cells
        .iter()
        .flat_map(|cell| &cell.by_tag)
        .map(|group| (group.tag.as_str(), group.value.as_str()))
        .collect();
    let mut head = vec!["group".to_owned()];
    head.extend(report.cells.iter().map(|cell| cell.name.clone()));
    let entry = |cell: &Cell, tag: &str, value: &str| {
        let group = cell.by_tag.iter().find(|group| group.tag == tag && group.value == value);
        group.map_or_else(
            || ABSENT.to_owned(),
            |group| {
                let accuracy = percent(metric(&group.summary, "accuracy"));
                format!("{accuracy} (n {})", count(answered(&group.summary)))
            },
        )
    };
    let rows = groups.into_iter().map(|(tag, value)| {
        let mut row = vec![format!("{tag} = {value}")];
        row.extend(report.cells.iter().map(|cell| entry(cell, tag, value)));
        row
    });
    Table { head, rows: rows.collect() }
}

/// Bad rows that are in no count, because the manifest says that they shall be left out.
pub(super) fn skipped(report: &Report) -> Vec<String> {
    let line = |cell: &Cell| {
        let rows = cell.config.get("rows_skipped")?.as_u64()?;
        Some(format!("{}: {} bad rows were left out of its data", cell.name, count(rows)))
    };
    report.cells.iter().filter_map(line).collect()
}

/// Counts by outcome, with the answered samples split by what the first scorer says of them.
pub(super) fn outcomes(report: &Report) -> Outcomes {
    let mut columns = vec!["right", "wrong", "not scored"];
    columns.extend(unanswered().map(Outcome::name));
    let all: Vec<Vec<u64>> = report.cells.iter().map(outcome_counts).collect();
    // Right and wrong stay even where nothing is: their absence would be a riddle.
    let occurs = |i: usize| i < 2 || all.iter().any(|counts| counts[i] > 0);
    let shown: Vec<usize> = (0..columns.len()).filter(|i| occurs(*i)).collect();
    Outcomes {
        columns: shown.iter().map(|i| columns[*i]).collect(),
        rows: all.iter().map(|counts| shown.iter().map(|i| counts[*i]).collect()).collect(),
    }
}

fn unanswered() -> impl Iterator<Item = Outcome> {
    Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Answered)
}

fn outcome_counts(cell: &Cell) -> Vec<u64> {
    let of = |outcome: Outcome| cell.summary.outcomes.get(outcome.name()).copied().unwrap_or(0);
    // Without targets or a verdict nobody knows whether an answer is right, so such samples are not wrong.
    let judged = |row: &&super::Row| row.sample.scores.first().and_then(Score::is_right).is_some();
    let scored = cell.samples.iter().filter(judged).count() as u64;
    let right = cell.summary.correct;
    let not_scored = of(Outcome::Answered).saturating_sub(scored);
    let mut counts = vec![right, scored.saturating_sub(right), not_scored];
    counts.extend(unanswered().map(of));
    counts
}

/// What was run, by name.
pub(super) fn facts(run: &RunInfo) -> Vec<(&'static str, String)> {
    let absent = || ABSENT.to_owned();
    let dirty = match run.git_dirty {
        None => ABSENT,
        Some(true) => "changed since that revision",
        Some(false) => "clean",
    };
    vec![
        ("run", run.run_id.clone()),
        ("started", moment(&run.started_at)),
        ("pipeline", run.pipeline.clone()),
        ("manifest", run.manifest.clone()),
        ("manifest digest", run.manifest_digest.clone()),
        ("git revision", run.git_revision.clone().unwrap_or_else(absent)),
        ("work tree", dirty.to_owned()),
        ("tool", run.tool.clone()),
        ("platform", run.platform.clone()),
        ("cores", run.cores.to_string()),
    ]
}

/// The parameters of a run.
pub(super) fn params(run: &RunInfo) -> Table {
    Table {
        head: vec!["parameter".to_owned(), "value".to_owned()],
        rows: run.params.iter().map(|(name, value)| vec![name.clone(), plain(value)]).collect(),
    }
}

/// Everything that made a workflow what it was.
pub(super) fn settings(cell: &Cell) -> Table {
    let row = |part: &str, name: &str, value: String| vec![part.to_owned(), name.to_owned(), value];
    let mut rows = vec![
        row("workflow", "method", cell.method.clone()),
        row("workflow", "key", cell.key.clone()),
        row("workflow", "result", cell.result.clone()),
    ];
    rows.extend(cell.config.iter().map(|(name, value)| row("config", name, plain(value))));
    rows.extend(cell.execution.iter().map(|(name, value)| row("execution", name, plain(value))));
    rows.extend(cell.scorers.iter().map(|(name, source)| row("scorer", name, source.clone())));
    rows.extend(cell.engine.iter().map(|(name, value)| row("engine", name, plain(value))));
    rows.extend(cell.inputs.iter().map(|(port, digest)| row("input", port, digest.clone())));
    Table { head: ["part", "setting", "value"].map(str::to_owned).to_vec(), rows }
}

/// Names of all scorers of all workflows.
pub(super) fn scorers(report: &Report) -> Vec<&str> {
    let names: BTreeSet<&str> = report
        .cells
        .iter()
        .flat_map(|cell| cell.summary.metrics.keys())
        .map(String::as_str)
        .filter(|name| !matches!(*name, "accuracy" | "accuracy_all"))
        .collect();
    names.into_iter().collect()
}

/// The value of a metric, where there is one.
pub(super) fn metric(summary: &TallySummary, name: &str) -> Option<f64> {
    summary.metrics.get(name).copied().flatten()
}

/// Samples with an answer.
pub(super) fn answered(summary: &TallySummary) -> u64 {
    summary.outcomes.get(Outcome::Answered.name()).copied().unwrap_or(0)
}

/// Accuracy with its interval.
pub(super) fn accuracy(summary: &TallySummary) -> String {
    let value = metric(summary, "accuracy");
    match summary.accuracy_ci.filter(|_| value.is_some()) {
        Some(ci) => {
            format!("{} [{:.1}, {:.1}]", percent(value), ci.lower * 100.0, ci.upper * 100.0)
        }
        None => percent(value),
    }
}

/// How often the memo answered.
pub(super) fn hit_rate(cell: &Cell) -> String {
    match &cell.profile.cache_stats {
        None => "caching is off".to_owned(),
        Some(cache) => {
            let (hits, misses) = (count(cache.hits), count(cache.misses));
            format!("{} ({hits} hits, {misses} misses)", percent(cache.hit_rate))
        }
    }
}

fn numbers(table: &Table) -> String {
    grid(table, "---:")
}

fn texts(table: &Table) -> String {
    grid(table, "---")
}

fn grid(table: &Table, align: &str) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<_> = cells.iter().map(|cell| escape(cell)).collect();
        format!("| {} |", cells.join(" | "))
    };
    let mut rule = vec![align.to_owned(); table.head.len()];
    if let Some(first) = rule.first_mut() {
        *first = "---".to_owned();
    }
    let mut lines = vec![line(&table.head), format!("| {} |", rule.join(" | "))];
    lines.extend(table.rows.iter().map(|row| line(row)));
    lines.join("\n")
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::digest::{Digest, Recipe};
    use crate::record::{
        Observed, Phase, PhasesMs, Price, ProfileBuilder, RequestObserved, ServedFrom, Timing,
    };
    use crate::report::{CellInfo, REPORT_VERSION, Row};
    use crate::sample::{Message, Role, Sample, StepRun, TokenSource, Usage};

    /// A sample with one example before its question; without an answer it was cut off.
    pub(in crate::report) fn row(flow: &str, answer: Option<&str>, right: Option<bool>) -> Row {
        let key = Recipe::new("sample", 1).key();
        let score = |right| Score {
            value: Some(if right { 1.0 } else { 0.0 }),
            ..Score::new("exact_match")
        };
        let transcript = vec![
            Message::new(Role::System, "Be brief."),
            Message::new(Role::User, "an example"),
            Message::new(Role::Assistant, "its answer"),
            Message::new(Role::User, format!("question of {flow}")),
            Message::new(Role::Assistant, answer.unwrap_or("never to e")),
        ];
        let step = StepRun {
            id: "ask".to_owned(),
            transcript,
            answer: answer.map(str::to_owned),
            requests: vec![key],
            calls: Vec::new(),
            prefill: None,
            retrieval_info: None,
            trace: None,
        };
        let sample = Sample {
            flow: flow.to_owned(),
            flow_digest: Digest::of(flow.as_bytes()),
            epoch: 0,
            key,
            outcome: if answer.is_some() { Outcome::Answered } else { Outcome::Truncated },
            detail: None,
            answer: answer.map(str::to_owned),
            targets: vec!["42".to_owned()],
            scores: right.into_iter().map(score).collect(),
            readings: Vec::new(),
            steps: vec![step],
            tags: BTreeMap::from([("topic".to_owned(), flow.to_owned())]),
        };
        let request = RequestObserved {
            key,
            served_from: ServedFrom::Live,
            phases_ms: PhasesMs::from([(Phase::ApiCall, 1400.0)]),
            live_ms: Some(1400.0),
            usage: Usage::counted(Some(1000), Some(20), TokenSource::Usage),
            attempts: 1,
            unknown_attempts: 0,
            failed_usage: None,
            retries: Vec::new(),
            timing: Some(Timing {
                ttft_ms: Some(450.0),
                e2e_ms: 1400.0,
                close_ms: 1400.0,
                events: 20,
                gaps_ms: vec![50.0; 19],
                ..Timing::default()
            }),
        };
        let observed = Observed {
            served_from: ServedFrom::Live,
            wall_ms: 1500.0,
            requests: vec![request],
            metrics_ms: Some(0.25),
            scoring: Vec::new(),
            cut_short: false,
        };
        Row::new(sample, observed)
    }

    pub(in crate::report) fn cell(name: &str, samples: Vec<Row>) -> Cell {
        let observed: Vec<Observed> = samples.iter().map(|row| row.observed.clone()).collect();
        let info = CellInfo {
            method: "cot".to_owned(),
            config: BTreeMap::from([("temperature".to_owned(), json!(0.0))]),
            execution: BTreeMap::from([("concurrency".to_owned(), json!(4))]),
            inputs: BTreeMap::from([("flows".to_owned(), "abc".to_owned())]),
            engine: BTreeMap::from([("model".to_owned(), json!("tiny|model"))]),
            admission: "4 at once: set in the manifest".to_owned(),
            price: Some(Price { input: 10.0, output: 100.0, cached_input: None }),
            unpriced: false,
            scorers: BTreeMap::from([("exact_match".to_owned(), "SQuAD".to_owned())]),
            scorer_prices: BTreeMap::new(),
            profile: {
                let mut profile = ProfileBuilder::default();
                observed.iter().for_each(|observed| profile.add(observed));
                profile.finish(Some((2, 100)), 4, Some(3000.0))
            },
        };
        Cell::new(name, "key".to_owned(), "result".to_owned(), info, samples)
    }

    pub(in crate::report) fn report(cells: Vec<Cell>) -> Report {
        Report {
            version: REPORT_VERSION,
            title: "Sums".to_owned(),
            description: Some("Can it add?".to_owned()),
            run: RunInfo {
                run_id: "01J".to_owned(),
                started_at: "2026-01-31T12:00:00.5Z".to_owned(),
                pipeline: "sums".to_owned(),
                manifest: "pipelines/sums.toml".to_owned(),
                manifest_digest: "d1".to_owned(),
                tool: "forge 0.1.0".to_owned(),
                platform: "linux x86_64".to_owned(),
                cores: 2,
                git_revision: Some("0123456789abcdef".to_owned()),
                git_dirty: Some(true),
                params: BTreeMap::from([("n".to_owned(), json!(3))]),
            },
            cells,
            comparisons: Vec::new(),
            gates: Vec::new(),
        }
    }

    #[test]
    fn every_section_is_there_with_its_numbers() {
        let rows = vec![row("a", Some("42"), Some(true)), row("b", Some("7"), Some(false))];
        let text = markdown(&report(vec![cell("ask", rows)]));
        for line in [
            "# Sums",
            "Can it add?",
            "2026-01-31 12:00:00 UTC · pipeline sums · git 0123456789ab (dirty) · forge 0.1.0",
            "| ask | 2 | 2 | 50.0 % [9.5, 90.5] | 50.0 % | 1.50 s | 40 |",
            "| workflow | samples | right | wrong |",
            "| ask | 2 | 1 | 1 |",
            "| topic = a | 100.0 % (n 1) |",
            "| ask | 3.00 s | 0.0 % (0 hits, 2 misses) | 1 |",
            "| n | 3 |",
            "| time to first token | TTFT | 2 | 450 ms | 450 ms | 450 ms | 450 ms | 450 ms \\* |",
            "| time per output token | TPOT | 2 | 50.0 ms | 50.0 ms | 50.0 ms | 50.0 ms | 50.0 ms \\* |",
            "| between tokens | ITL | 38 | 50.0 ms | 50.0 ms | 50.0 ms | 50.0 ms | 50.0 ms \\* |",
            "| ask | 10 / 100 / – | 2,000 | 40 | $0.0240 | $0.0000 |",
            "| config | temperature | 0.0 |",
        ] {
            assert!(text.lines().any(|have| have == line), "no `{line}` in\n{text}");
        }
    }

    #[test]
    fn what_is_unknown_is_not_zero() {
        let mut cut = row("a", None, None);
        cut.observed.requests[0].usage = Usage::default();
        cut.observed.served_from = ServedFrom::Disk;
        let text = markdown(&report(vec![cell("ask", vec![cut])]));
        assert!(text.contains("| ask | 1 | 0 | – | – | – |"), "{text}");
        assert!(text.contains("| workflow | samples | right | wrong | truncated |"), "{text}");
        // One value of a tag is no comparison.
        assert!(!text.contains("Accuracy by tag"), "{text}");
    }

    #[test]
    fn an_answer_without_targets_is_not_wrong() {
        let counts = outcomes(&report(vec![cell("ask", vec![row("a", Some("x"), None)])]));
        assert_eq!(counts.columns, ["right", "wrong", "not scored"]);
        assert_eq!(counts.rows, [[0, 0, 1]]);
    }

    #[test]
    fn names_cannot_break_a_table() {
        let name = "a|b`c`\nd<i>";
        let text = markdown(&report(vec![cell(name, vec![])]));
        assert!(text.contains(r"| a\|b\`c\` d\<i> | 0 |"), "{text}");
        assert!(text.contains(r"tiny\|model"), "{text}");
    }
}
