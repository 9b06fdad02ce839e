//! How fast engines answered and what that cost, as tables and as a chart, for both forms of a report.
//! Knows nothing of how it was measured: that is defined in `record/speed.rs`.

use minijinja::{Value, context};

use super::markdown::{ABSENT, Table, count, count_or_absent, duration, rate};
use super::{Cell, Cost, Report};
use crate::record::Speed;
use crate::sample::Usage;
use crate::stats::Summary;

/// Below this many values a 99th percentile is the largest few of them.
const P99_MIN: u64 = 1000;
/// Width and height of the time line.
const TIMELINE: (f64, f64) = (640.0, 120.0);

/// What stands below the tables.
pub(super) const NOTE: &str = "Of live requests only, each from the moment it was sent; waiting before that is the \
    queue. Percentiles are linear between values (type 7). `*` marks the 99th percentile of fewer than 1,000 values.";

/// One line for each workflow.
pub(super) fn overview(report: &Report) -> Table {
    let head = [
        "workflow",
        "live requests",
        "requests/s",
        "tokens/s",
        "steady tokens/s",
        "in flight, mean",
        "peak",
        "TTFT p50",
        "ITL p50",
        "E2E p50",
        "E2E p95",
        "tokens counted by",
    ];
    let row = |cell: &Cell| {
        let speed = &cell.profile.speed;
        let p50 = |of: &Option<Summary>| duration(of.as_ref().map(|s| s.p50_ms));
        let between = if speed.itl.is_some() { &speed.itl } else { &speed.icl };
        vec![
            cell.name.clone(),
            count(speed.requests),
            rate(speed.requests_per_s),
            rate(speed.tokens_per_s),
            rate(speed.steady.as_ref().and_then(|steady| steady.tokens_per_s)),
            rate(speed.concurrency_mean),
            count_or_absent((speed.requests > 0).then_some(speed.concurrency_peak)),
            p50(&speed.ttft),
            p50(between),
            p50(&speed.e2e),
            duration(speed.e2e.as_ref().map(|s| s.p95_ms)),
            speed.token_source.map_or(ABSENT, |source| source.name()).to_owned(),
        ]
    };
    Table { head: head.map(str::to_owned).to_vec(), rows: report.cells.iter().map(row).collect() }
}

/// All metrics of one workflow that were measured.
pub(super) fn points(speed: &Speed) -> Table {
    let metrics = [
        ("queue", "client queue time", &speed.queue),
        ("connect", "new connections", &speed.connect),
        ("time to first token", "TTFT", &speed.ttft),
        ("time to first token of the answer", "TTFO", &speed.ttfa),
        ("time per output token", "TPOT", &speed.tpot),
        ("between tokens", "ITL", &speed.itl),
        ("between events", "ITL of vLLM and SGLang", &speed.icl),
        ("to the last token", "E2E", &speed.e2e),
        ("to the end of the reply", "", &speed.close),
        ("end to end per output token", "TPOT of GuideLLM", &speed.norm),
    ];
    let head = ["metric", "elsewhere", "n", "mean", "p50", "p90", "p95", "p99"];
    let row = |(name, alias, summary): (&str, &str, &Option<Summary>)| {
        let summary = summary.as_ref()?;
        let mark = if summary.count < P99_MIN { " *" } else { "" };
        let ms = |ms: f64| duration(Some(ms));
        Some(vec![
            name.to_owned(),
            alias.to_owned(),
            count(summary.count),
            ms(summary.mean_ms),
            ms(summary.p50_ms),
            ms(summary.p90_ms),
            ms(summary.p95_ms),
            format!("{}{mark}", ms(summary.p99_ms)),
        ])
    };
    Table {
        head: head.map(str::to_owned).to_vec(),
        rows: metrics.into_iter().filter_map(row).collect(),
    }
}

/// What was spent and what the store saved; `None` where nobody said what tokens cost.
pub(super) fn costs(report: &Report) -> Option<Table> {
    let head = [
        "workflow",
        "$ per million in / out / cached",
        "tokens in",
        "tokens out",
        "spent",
        "saved by the store",
    ];
    let row = |name: String, usage: &Usage, cost: &Cost| {
        let price = cost.price;
        let cached =
            price.cached_input.map_or_else(|| ABSENT.to_owned(), |price| price.to_string());
        vec![
            name,
            format!("{} / {} / {cached}", price.input, price.output),
            count_or_absent(usage.input_tokens),
            count_or_absent(usage.output_tokens),
            dollars(cost.spent),
            dollars(cost.saved),
        ]
    };
    let mut rows = Vec::new();
    for cell in &report.cells {
        rows.extend(cell.cost.as_ref().map(|cost| row(cell.name.clone(), &cell.usage, cost)));
        for (scorer, cost) in &cell.scorer_costs {
            let made = cell.samples.iter().flat_map(|row| &row.observed.scoring);
            let made = made.filter(|made| made.scorer == *scorer);
            let usage = made.fold(Usage::ZERO, |sum, made| sum.plus(made.request.usage));
            rows.push(row(format!("{}: scorer {scorer}", cell.name), &usage, cost));
        }
    }
    (!rows.is_empty()).then(|| Table { head: head.map(str::to_owned).to_vec(), rows })
}

/// Dollars, with four decimals: single requests cost less than a cent.
pub(super) fn dollars(amount: Option<f64>) -> String {
    amount.map_or_else(|| ABSENT.to_owned(), |amount| format!("${amount:.4}"))
}

/// What a page says of failed attempts.
pub(super) fn retries(speed: &Speed) -> Option<String> {
    let total: u64 = speed.retries.values().sum();
    let reasons: Vec<_> =
        speed.retries.iter().map(|(why, n)| format!("{why} × {}", count(*n))).collect();
    let waited = duration(Some(speed.retries_waited_ms));
    (total > 0)
        .then(|| format!("{} ({}), {waited} waited in all", count(total), reasons.join(", ")))
}

/// Requests in flight over time, as the path of an area.
pub(super) fn timeline(speed: &Speed) -> Option<Value> {
    let line = &speed.timeline;
    let most = line.mean.iter().copied().fold(0.0, f64::max);
    if line.mean.is_empty() || most <= 0.0 {
        return None;
    }
    let (width, height) = TIMELINE;
    let step = width / line.mean.len() as f64;
    let tenth = |value: f64| (value * 10.0).round() / 10.0;
    let mut path = format!("M0 {height}");
    for (i, mean) in line.mean.iter().enumerate() {
        let y = tenth(height - mean / most * height);
        path.push_str(&format!("V{y}H{}", tenth((i + 1) as f64 * step)));
    }
    path.push_str(&format!("V{height}Z"));
    let text = |ms: f64| duration(Some(ms));
    let end = line.from_ms + line.step_ms * line.mean.len() as f64;
    Some(context! {
        path,
        from => text(line.from_ms),
        to => text(end),
        most => rate(Some(most)),
        words => format!(
            "Requests in flight from {} to {}: {} on average, {} at most",
            text(line.from_ms),
            text(end),
            rate(speed.concurrency_mean),
            speed.concurrency_peak,
        ),
    })
}
