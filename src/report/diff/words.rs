//! What a diff says, as plain words and rows of tables; text and Markdown only dress them. Knows nothing of either.

use super::{CellDiff, Change, Diff, Drawn, Flip, StageDiff, State, Sums};
use crate::digest::Difference;
use crate::record::scores::Comparison;
use crate::report::spelling::{
    ABSENT, COMPARED, Table, compared, count, count_or_absent, duration, how, named,
};
use crate::sample::Outcome;

/// Longest text of a model or a template that is shown.
const SHOWN_MAX: usize = 240;
/// What stands on both sides of the place where two long values part.
const AROUND: usize = 40;

pub(super) const NOTE: &str = "Differences are b − a, in points, over the rows that both have and that have a score on \
    both sides. p is that of the paired test named, Holm that among all workflows compared here by the same metric.";
pub(super) const LATENCY: &str = "Latencies are of samples whose every request was live, without the wait for the engine's permit.";

/// `main (commit 1a2b3c4d5e6f)`.
pub(super) fn side(info: &super::SideInfo) -> String {
    let short: String = match info.what {
        "revision" => format!("commit {}", info.id.chars().take(12).collect::<String>()),
        "run" => format!("run {}", info.id),
        _ => info.id.clone(),
    };
    if short == info.name || info.id == info.name {
        short
    } else {
        format!("{} ({short})", info.name)
    }
}

/// How many stages are the same.
pub(super) fn same(diff: &Diff) -> Option<String> {
    let same = diff.stages.iter().filter(|stage| stage.change == Change::Same).count();
    match (same, diff.stages.len()) {
        (0, _) => None,
        (same, all) if same == all => Some(format!("all {all} stages are the same")),
        (same, all) => Some(format!("{same} of {all} stages are the same")),
    }
}

/// The stages that are not the same.
pub(super) fn changed(diff: &Diff) -> impl Iterator<Item = &StageDiff> {
    diff.stages.iter().filter(|stage| stage.change != Change::Same)
}

/// What became of a stage, line by line.
pub(super) fn stage(stage: &StageDiff) -> Vec<String> {
    let line = match (stage.change, &stage.fields) {
        (Change::Same, _) => "the same",
        (Change::Added, _) => "only b has it",
        (Change::Removed, _) => "only a has it",
        (Change::Unfinished, _) => "it did not end on one side",
        (Change::Again, _) => "the same recipe, worked out again with another result",
        (Change::Changed, None) => {
            "another key; which fields differ is not known, a recipe is in the store no more"
        }
        (Change::Changed, Some(fields)) => return fields.iter().map(field).collect(),
    };
    vec![line.to_owned()]
}

/// A field with both values; of long ones, where they part.
fn field(field: &Difference) -> String {
    let shown = |side: &Option<String>, other: &Option<String>| match side {
        None => "(absent)".to_owned(),
        Some(text) => parting(text, other.as_deref().unwrap_or("")),
    };
    let (before, after) = (&field.before, &field.after);
    format!("{}: {} → {}", field.path, shown(before, after), shown(after, before))
}

/// A long text from shortly before the place where it leaves another one.
fn parting(text: &str, other: &str) -> String {
    if text.chars().count() <= 2 * AROUND {
        return text.to_owned();
    }
    let common = text.chars().zip(other.chars()).take_while(|(x, y)| x == y).count();
    let start = common.saturating_sub(AROUND);
    let mut out: String = text.chars().skip(start).take(3 * AROUND).collect();
    if start > 0 {
        out.insert(0, '…');
    }
    if start + 3 * AROUND < text.chars().count() {
        out.push('…');
    }
    out
}

/// The heading of a workflow.
pub(super) fn heading(cell: &CellDiff) -> String {
    match (cell.state, cell.rows) {
        (State::Same, _) => "the same samples on both sides".to_owned(),
        (State::Compared, Some([_, _, common])) => format!("{} rows in both", count(common)),
        _ => "not compared".to_owned(),
    }
}

/// Metrics side by side.
pub(super) fn metrics(cell: &CellDiff) -> Option<Table> {
    let mut head = vec!["metric"];
    head.extend(COMPARED);
    head.extend(["a better", "b better", "rows", "test; interval"]);
    let row = |c: &Comparison| {
        let mut row = vec![named(&c.metric, &c.reducer)];
        let absent = || vec![ABSENT.to_owned(); COMPARED.len() + 2];
        row.extend(compared(c).unwrap_or_else(absent));
        row.push(count(c.result.as_ref().map_or(c.common, |result| result.rows)));
        row.push(how(c));
        row
    };
    let rows: Vec<_> = cell.comparisons.iter().map(row).collect();
    (!rows.is_empty()).then(|| Table { head: head.into_iter().map(str::to_owned).collect(), rows })
}

/// Outcomes, tokens, cost and latency side by side. Outcomes that are equal on both sides are left out.
pub(super) fn sums(cell: &CellDiff) -> Option<Table> {
    let (Some(a), Some(b)) = (&cell.a, &cell.b) else { return None };
    let mut rows: Vec<[String; 4]> = Vec::new();
    let of = |sums: &Sums, outcome: Outcome| {
        sums.summary.outcomes.get(outcome.name()).copied().unwrap_or(0)
    };
    let mut counted = |name: String, a: u64, b: u64| {
        let more = i128::from(b) - i128::from(a);
        let change = if more == 0 { "0".to_owned() } else { format!("{more:+}") };
        rows.push([name, count(a), count(b), change]);
    };
    counted("samples".to_owned(), a.summary.samples, b.summary.samples);
    for outcome in Outcome::ALL {
        let (x, y) = (of(a, outcome), of(b, outcome));
        if x != y {
            counted(outcome.name().to_owned(), x, y);
        }
    }
    let relative = |a: Option<f64>, b: Option<f64>| match a.zip(b) {
        Some((a, b)) if a > 0.0 => format!("{:+.1} %", (b / a - 1.0) * 100.0 + 0.0),
        _ => ABSENT.to_owned(),
    };
    let mut amount =
        |name: &str, value: &dyn Fn(&Sums) -> Option<f64>, text: &dyn Fn(&Sums) -> String| {
            let (x, y) = (text(a), text(b));
            if x != ABSENT || y != ABSENT {
                rows.push([name.to_owned(), x, y, relative(value(a), value(b))]);
            }
        };
    let of = |value: fn(&Sums) -> Option<f64>, show: fn(Option<f64>) -> String| {
        move |s: &Sums| show(value(s))
    };
    let tokens = |n: Option<f64>| count_or_absent(n.map(|n| n as u64));
    let read = |s: &Sums| Some(s.usage?.input_tokens? as f64);
    let written = |s: &Sums| Some(s.usage?.output_tokens? as f64);
    let cost = |s: &Sums| s.dollars_text().unwrap_or_else(|| ABSENT.to_owned());
    let p50 = |s: &Sums| Some(s.latency_live.as_ref()?.p50_ms);
    let p95 = |s: &Sums| Some(s.latency_live.as_ref()?.p95_ms);
    amount("tokens in", &read, &of(read, tokens));
    amount("tokens out", &written, &of(written, tokens));
    amount("cost, were all requests live", &Sums::dollars, &cost);
    amount("p50 latency, live", &p50, &of(p50, duration));
    amount("p95 latency, live", &p95, &of(p95, duration));
    let live = |s: &Sums| s.latency_live.as_ref().map_or(0, |live| live.count);
    let (x, y) = (live(a), live(b));
    if x + y > 0 {
        rows.push(["live samples".to_owned(), count(x), count(y), String::new()]);
    }
    let head = ["all samples", "a", "b", "change"].map(str::to_owned).to_vec();
    Some(Table { head, rows: rows.into_iter().map(Vec::from).collect() })
}

/// Of how many the list of flips shows how many.
pub(super) fn shown(flips: &super::Flips) -> String {
    match flips.rows.len() as u64 {
        shown if shown == flips.count => count(flips.count),
        shown => format!("{}, of which {} are shown", count(flips.count), count(shown)),
    }
}

/// The draws of one side: its answer, or how it ended.
pub(super) fn drawn(draws: &[Drawn]) -> String {
    let said = |draw: &Drawn| match &draw.answer {
        Some(answer) => short(answer),
        None => format!("({})", draw.outcome.name()),
    };
    match draws {
        [draw] => said(draw),
        draws => {
            let right = draws.iter().filter(|draw| draw.right == Some(true)).count();
            let all: Vec<_> = draws.iter().map(said).collect();
            short(&format!("{right} of {} right: {}", draws.len(), all.join(" / ")))
        }
    }
}

pub(super) fn targets(flip: &Flip) -> String {
    short(&flip.targets.join(" / "))
}

pub(super) fn question(flip: &Flip) -> String {
    flip.question.as_deref().map_or_else(|| ABSENT.to_owned(), short)
}

/// One line without control characters; of a long text both ends, for questions often stand last.
pub(super) fn short(text: &str) -> String {
    let text = plain(text.trim());
    let length = text.chars().count();
    if length <= SHOWN_MAX {
        return text;
    }
    let half = SHOWN_MAX / 2;
    let start: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(length - half).collect();
    format!("{start} … {end}")
}

/// Text in which nothing moves a cursor, changes a colour, or turns the direction of reading.
pub(super) fn plain(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' | '\r' | '\u{2028}' | '\u{2029}' => out.push(' '),
            c if c.is_control() || turns(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
