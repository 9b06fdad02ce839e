//! A diff as one HTML file that needs no network and no script. Model output is untrusted: all of it is text.

use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};

use super::words::{self, plain};
use super::{CellDiff, Diff, Flips, State};
use crate::report::charts::shortened;
use crate::report::spelling::{Table, bounds, points, probability};
use crate::stats::Difference;

const PAGE: &str = include_str!("diff.html");
/// What [`shown`] is shown by, as a template with the variable `diff`.
pub const BODY: &str = include_str!("body.html");
const STYLE: &str = include_str!("../html/report.css");

/// Width of the scale; the values stand to its right.
const SCALE: f64 = 450.0;
/// Height of a workflow in the chart: its name above its interval.
const ROW_HEIGHT: usize = 54;
/// Most characters of the name of a workflow.
const NAME_MAX: usize = 48;
/// Flips are open from the start up to so many.
const OPEN_MAX: usize = 20;

/// The diff as one HTML document.
pub fn html(diff: &Diff) -> String {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.add_template("diff_body.html", BODY).expect("BUG: a template of ours");
    let context =
        context! { style => Value::from_safe_string(STYLE.to_owned()), diff => shown(diff) };
    env.render_str(PAGE, context).expect("BUG: the page of a diff renders for every diff")
}

/// What a page shows of a diff. All of it is text, for a template that escapes it.
pub fn shown(diff: &Diff) -> Value {
    let rows = words::changed(diff).flat_map(|stage| {
        let lines = words::stage(stage);
        lines.into_iter().map(|line| vec![plain(&stage.stage), plain(&line)]).collect::<Vec<_>>()
    });
    let head = ["stage", "what changed"].map(str::to_owned).to_vec();
    context! {
        a => plain(&words::side(&diff.a)),
        b => plain(&words::side(&diff.b)),
        chart => chart(diff),
        changed => Value::from_serialize(Table { head, rows: rows.collect() }),
        same => words::same(diff).unwrap_or_else(|| "no stage is the same".to_owned()),
        cells => diff.cells.iter().map(cell).collect::<Vec<_>>(),
        note => words::NOTE,
        latency => words::LATENCY,
    }
}

fn cell(cell: &CellDiff) -> Value {
    let flips: Vec<Value> = match cell.state {
        State::Compared => vec![
            flips("right in a, not in b", &cell.lost),
            flips("right in b, not in a", &cell.gained),
        ],
        _ => Vec::new(),
    };
    let mut heading = words::heading(cell);
    if cell.state == State::Compared {
        heading.push_str(&format!("; {} as right as before with another answer", cell.otherwise));
    }
    context! {
        name => plain(&cell.name),
        heading,
        notes => cell.notes.iter().map(|note| plain(note)).collect::<Vec<_>>(),
        metrics => words::metrics(cell).map(Value::from_serialize),
        sums => words::sums(cell).map(Value::from_serialize),
        flips,
    }
}

fn flips(what: &str, flips: &Flips) -> Value {
    let head = ["flow", "question", "target", "a", "b"].map(str::to_owned).to_vec();
    let row = |flip: &super::Flip| {
        vec![
            plain(&flip.flow),
            words::question(flip),
            words::targets(flip),
            words::drawn(&flip.a),
            words::drawn(&flip.b),
        ]
    };
    let table = Table { head, rows: flips.rows.iter().map(row).collect() };
    context! {
        title => format!("{what}: {}", words::shown(flips)),
        open => !flips.rows.is_empty() && flips.rows.len() <= OPEN_MAX,
        table => Value::from_serialize(table),
    }
}

/// The first metric of every compared workflow on one scale, around no difference.
fn chart(diff: &Diff) -> Option<Value> {
    let compared = |cell: &CellDiff| {
        let comparison = cell.comparisons.first()?;
        Some((cell.name.clone(), comparison.metric.clone(), comparison.result?))
    };
    let all: Vec<(String, String, Difference)> = diff.cells.iter().filter_map(compared).collect();
    let metric = all.first()?.1.clone();
    let reach = |result: &Difference| {
        let ci = result.ci.map_or(0.0, |ci| ci.lower.abs().max(ci.upper.abs()));
        ci.max(result.difference.abs())
    };
    let widest = all.iter().map(|(_, _, result)| reach(result)).fold(0.01_f64, f64::max);
    // The next of 2, 5, 10, 20, 50 and 100 points, so that ticks are round numbers.
    let scale = [0.02, 0.05, 0.1, 0.2, 0.5].into_iter().find(|s| *s >= widest).unwrap_or(1.0);
    let x = |value: f64| round((value / scale / 2.0 + 0.5) * SCALE);
    let bottom = all.len() * ROW_HEIGHT;
    let row = |(i, (name, _, result)): (usize, &(String, String, Difference))| {
        let (low, high) =
            result.ci.map_or((result.difference, result.difference), |ci| (ci.lower, ci.upper));
        context! {
            y => i * ROW_HEIGHT,
            name => shortened(&plain(name), NAME_MAX),
            full_name => plain(name),
            x => x(result.difference),
            low => x(low),
            high => x(high),
            value => points(result.difference),
            p => probability(result.p),
        }
    };
    let words = all.iter().map(|(name, _, result)| {
        format!("{}: {} points {}", plain(name), points(result.difference), bounds(result.ci))
    });
    let tick = |part: f64| {
        let label =
            if part == 0.0 { "0".to_owned() } else { format!("{:+}", part * scale * 100.0) };
        context! { x => x(part * scale), label, zero => part == 0.0 }
    };
    Some(context! {
        metric,
        words => words.collect::<Vec<_>>().join("; "),
        ticks => [-1.0, -0.5, 0.0, 0.5, 1.0].map(tick).to_vec(),
        rows => all.iter().enumerate().map(row).collect::<Vec<_>>(),
        bottom,
        height => bottom + 28,
    })
}

/// To a tenth of a unit of the chart.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::super::{DIFF_VERSION, SideInfo};
    use super::*;

    #[test]
    fn what_a_model_says_stays_text() {
        let evil = "</td><script>alert(1)</script> {{ 7 * 7 }} \u{1b}[31m";
        let side =
            |name: &str| SideInfo { name: name.to_owned(), what: "run", id: evil.to_owned() };
        let mut cell = CellDiff::new(evil, State::Compared, vec![evil.to_owned()]);
        cell.lost = Flips {
            count: 1,
            rows: vec![super::super::Flip {
                flow: evil.to_owned(),
                question: Some(evil.to_owned()),
                targets: vec![evil.to_owned()],
                a: Vec::new(),
                b: Vec::new(),
            }],
        };
        let (a, b) = (side("last~1"), side(evil));
        let page =
            html(&Diff { version: DIFF_VERSION, a, b, stages: Vec::new(), cells: vec![cell] });
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("{{ 7 * 7 }}") && page.contains("&lt;script&gt;"), "{page}");
        assert!(!page.contains('\u{1b}'));
        // Nothing is asked of any server.
        assert!(!page.contains("http:") && !page.contains("https:"), "{page}");
    }
}
