//! How fast engines answered and what that cost, as tables and as a chart, for both forms of a report.
//! Knows nothing of how it was measured: that is defined in `record/speed.rs`.

use minijinja::{Value, context};

use super::spelling::{ABSENT, Table, count, count_or_absent, duration, p99, rate};
use super::{Cell, Cost, Report, charts};
use crate::record::{Price, Speed, dollars};
use crate::sample::{TokenSource, Usage};
use crate::stats::Summary;

/// What stands below the tables.
pub(super) const NOTE: &str = "Of live requests only, each from the moment it was sent; waiting before that is the \
    queue. Percentiles are linear between values (type 7). \u{201c}*\u{201d} marks the 99th percentile of fewer than \
    1,000 values. A line of dashes was not measured: only a stream shows when tokens come, and only one with a token \
    in each event what lies between them. The load is closed-loop: a request waits for its turn until an earlier one \
    has ended, so that these latencies are not free of coordinated omission.";

/// What [`rates`] gives.
const RATES: [&str; 7] = [
    "live requests",
    "requests/s",
    "tokens/s",
    "steady tokens/s",
    "in flight, mean",
    "peak",
    "tokens counted by",
];

/// Throughput and concurrency of one workflow, in the order of [`RATES`].
fn rates(speed: &Speed) -> [String; RATES.len()] {
    [
        count(speed.requests),
        rate(speed.requests_per_s),
        rate(speed.tokens_per_s),
        rate(speed.steady.as_ref().and_then(|steady| steady.tokens_per_s)),
        rate(speed.concurrency_mean),
        count_or_absent((speed.requests > 0).then_some(speed.concurrency_peak)),
        speed.token_source.map_or(ABSENT, |source| source.name()).to_owned(),
    ]
}

/// One line for each workflow.
pub(super) fn overview(report: &Report) -> Table {
    let mut head = vec!["workflow"];
    head.extend(RATES);
    head.extend(["TTFT p50", "ITL p50", "E2E p50", "E2E p95"]);
    let row = |cell: &Cell| {
        let speed = &cell.profile.speed;
        let p50 = |of: &Option<Summary>| duration(of.as_ref().map(|s| s.p50_ms));
        let between = if speed.itl.is_some() { &speed.itl } else { &speed.icl };
        let mut row = vec![cell.name.clone()];
        row.extend(rates(speed));
        row.extend([
            p50(&speed.ttft),
            p50(between),
            p50(&speed.e2e),
            duration(speed.e2e.as_ref().map(|s| s.p95_ms)),
        ]);
        row
    };
    Table {
        head: head.into_iter().map(str::to_owned).collect(),
        rows: report.cells.iter().map(row).collect(),
    }
}

/// All metrics of one workflow that were measured, and those that everybody looks for: where one of these was not,
/// its line says so.
pub(super) fn points(speed: &Speed) -> Table {
    const WANTED: [&str; 4] = ["TTFT", "TPOT", "ITL", "E2E"];
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
        let summary = summary.as_ref();
        if summary.is_none() && !WANTED.contains(&alias) {
            return None;
        }
        let ms = |of: fn(&Summary) -> f64| duration(summary.map(of));
        Some(vec![
            name.to_owned(),
            alias.to_owned(),
            count_or_absent(summary.map(|summary| summary.count)),
            ms(|summary| summary.mean_ms),
            ms(|summary| summary.p50_ms),
            ms(|summary| summary.p90_ms),
            ms(|summary| summary.p95_ms),
            p99(summary),
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
        let price = cost.price.map(|Price { input, output, cached_input }| {
            let cached = cached_input.map_or_else(|| ABSENT.to_owned(), |price| price.to_string());
            format!("{input} / {output} / {cached}")
        });
        vec![
            name,
            price.unwrap_or_else(|| "unknown".to_owned()),
            count_or_absent(usage.input_tokens),
            count_or_absent(usage.output_tokens),
            dollars(cost.spent_at_least, cost.spent.is_some()),
            dollars(cost.saved_at_least, cost.saved.is_some()),
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

/// What numbers per token should not be read without; nothing where one way of counting made them all.
pub(super) fn warning(speed: &Speed) -> Option<String> {
    (speed.token_source == Some(TokenSource::Mixed)).then(|| {
        "not all live requests had their tokens counted in the same way (the engine, the server, a local tokenizer, or \
         events of the stream): tokens/s, TPOT and norm mix these counts"
            .to_owned()
    })
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

/// What a page says of the client: whether it was fast enough to measure another.
pub(super) fn client(speed: &Speed) -> Option<String> {
    let lag = speed.lag.as_ref()?;
    let (p50, p99) = (duration(Some(lag.p50_ms)), duration(Some(lag.p99_ms)));
    let mut text = format!("send lag {p50} (p50) and {p99} (p99)");
    if let Some(share) = speed.cpu_share {
        text.push_str(&format!(", {:.0} % of the processor", share * 100.0));
    }
    if let Some(stall) = speed.stall_ms_max {
        text.push_str(&format!(", a timer late by {} at worst", duration(Some(stall))));
    }
    let doubts = speed.doubts();
    if !doubts.is_empty() {
        let doubts = doubts.join(", and ");
        text.push_str(&format!(". These times are not valid for the engine: {doubts}"));
    }
    Some(text)
}

/// Requests in flight over time, as a chart; `None` where there was no live request.
pub(super) fn timeline(speed: &Speed) -> Option<Value> {
    let line = &speed.timeline;
    let most = line.mean.iter().copied().fold(0.0, f64::max);
    let text = |ms: f64| duration(Some(ms));
    let (from, to) = (line.from_ms, line.from_ms + line.step_ms * line.mean.len() as f64);
    let (from, to) = (text(from), text(to));
    let svg = charts::timeline(&charts::Timeline {
        title: format!(
            "Requests in flight from {from} to {to}: {} on average, {} at most",
            rate(speed.concurrency_mean),
            speed.concurrency_peak,
        ),
        steps: &line.mean,
        top: format!("{} in flight", rate(Some(most))),
        ends: (from, to),
    });
    svg.map(Value::from_safe_string)
}

/// The speed of one workflow as a page shows it that is no report: `rates`, pairs of name and value; `table` with the
/// percentiles of each metric; `timeline`, an `<svg>`, or none; `retries` and `warning`, or none; `note`. `None` where
/// no request was live: then nothing was measured.
pub fn speed_shown(speed: &Speed) -> Option<Value> {
    (speed.requests > 0).then(|| {
        context! {
            rates => RATES.iter().zip(rates(speed)).collect::<Vec<_>>(),
            table => points(speed),
            timeline => timeline(speed),
            retries => retries(speed),
            warning => warning(speed),
            note => NOTE,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(count: u64) -> Option<Summary> {
        let values = (1..=count).map(|n| n as f64);
        Summary::of(values.collect())
    }

    #[test]
    fn what_was_not_measured_has_a_line_of_dashes() {
        let whole = Speed { requests: 3, e2e: summary(3), ..Speed::default() };
        let table = points(&whole);
        let line = |alias: &str| table.rows.iter().find(|row| row[1] == alias).unwrap();
        assert_eq!(line("TTFT")[2..], [ABSENT; 6]);
        assert_eq!(
            line("E2E")[2..],
            ["3", "2.00 ms", "2.00 ms", "2.80 ms", "2.90 ms", "2.98 ms *"]
        );
        assert!(!table.rows.iter().any(|row| row[1] == "TTFO"), "nothing thought apart");
        assert!(timeline(&whole).is_none());
        assert!(speed_shown(&Speed::default()).is_none());
    }

    #[test]
    fn the_rates_of_a_workflow_stand_below_their_names() {
        let speed = Speed {
            requests: 1200,
            requests_per_s: Some(12.0),
            tokens_per_s: Some(345.0),
            concurrency_mean: Some(7.5),
            concurrency_peak: 8,
            ..Speed::default()
        };
        let pairs: Vec<_> = RATES.into_iter().zip(rates(&speed)).collect();
        let of = |name: &str| pairs.iter().find(|(own, _)| *own == name).unwrap().1.as_str();
        assert_eq!(
            (of("live requests"), of("requests/s"), of("tokens/s")),
            ("1,200", "12.0", "345.0")
        );
        assert_eq!(
            (of("in flight, mean"), of("peak"), of("steady tokens/s")),
            ("7.50", "8", ABSENT)
        );
    }
}
