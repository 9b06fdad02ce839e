//! What gates said, as lines for a terminal, as Markdown and as JUnit XML. Knows nothing of how verdicts are found.

use super::junit::{self, Counts, State};
use super::spelling::{ABSENT, Table, duration, escape, named};
use crate::record::{Bound, Finding, Unit, Verdict};

/// Most rows of a Markdown table: GitHub takes a summary of 1 MiB.
const ROWS_MAX: usize = 1_000;

const HEAD: [&str; 7] = ["", "gate", "samples", "measure", "value", "95 % CI", "threshold"];

/// Whether all gates let everything through.
pub fn passed(verdicts: &[Verdict]) -> bool {
    verdicts.iter().all(|verdict| verdict.passed)
}

/// One line that says how many.
pub fn total(verdicts: &[Verdict]) -> String {
    let count = |what: fn(&Verdict) -> bool| verdicts.iter().filter(|v| what(v)).count();
    let failed = count(|verdict| !verdict.passed);
    let unmeasured = count(|verdict| verdict.passed && verdict.finding == Finding::NotMeasured);
    let mut parts = vec![match failed {
        0 => format!("{} thresholds kept", verdicts.len() - unmeasured),
        failed => format!("{failed} of {} thresholds not kept", verdicts.len()),
    }];
    if unmeasured > 0 {
        parts.push(format!("{unmeasured} not measured and let pass"));
    }
    format!("gates: {}", parts.join(", "))
}

/// A line for each verdict, in columns.
pub fn lines(verdicts: &[Verdict]) -> Vec<String> {
    let rows: Vec<[String; 7]> = verdicts.iter().map(row).collect();
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |(row, verdict): (&[String; 7], &Verdict)| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<_> = cells.map(|(cell, width)| format!("{cell:width$}")).collect();
        let note = verdict.note.as_deref().unwrap_or("");
        format!("{}  {note}", cells.join("  ")).trim_end().to_owned()
    };
    rows.iter().zip(verdicts).map(line).collect()
}

/// A section of GitHub-flavoured Markdown: what failed first.
pub fn markdown(pipeline: &str, verdicts: &[Verdict]) -> String {
    let state = if passed(verdicts) { "passed" } else { "failed" };
    let mut lines = vec![format!("### Gates of {}: {state}", inert(pipeline)), String::new()];
    let Table { head, rows } = rows(verdicts);
    lines.push(format!("| {} |", head.join(" | ")));
    lines.push(format!("|{}", " --- |".repeat(head.len())));
    for row in rows.iter().take(ROWS_MAX) {
        let cells: Vec<_> = row.iter().map(|cell| inert(cell)).collect();
        lines.push(format!("| {} |", cells.join(" | ")));
    }
    if let Some(more) = rows.len().checked_sub(ROWS_MAX).filter(|more| *more > 0) {
        lines.extend([String::new(), format!("and {more} more")]);
    }
    lines.push(String::new());
    lines.join("\n")
}

/// What a report shows; nothing where no gate looks at its samples.
pub(super) fn table(verdicts: &[Verdict]) -> Option<Table> {
    let mut table = rows(verdicts);
    table.head[0] = "verdict".to_owned();
    (!verdicts.is_empty()).then_some(table)
}

/// A row for each verdict: what failed first.
fn rows(verdicts: &[Verdict]) -> Table {
    let mut head = HEAD.map(str::to_owned).to_vec();
    head.push("note".to_owned());
    let mut sorted: Vec<&Verdict> = verdicts.iter().collect();
    sorted.sort_by_key(|verdict| verdict.passed);
    let cells = |verdict: &&Verdict| {
        row(verdict).into_iter().chain([verdict.note.clone().unwrap_or_default()]).collect()
    };
    Table { head, rows: sorted.iter().map(cells).collect() }
}

/// Text that makes neither a link, an image, a mention nor any other markup.
fn inert(text: &str) -> String {
    let mut out = String::new();
    for c in escape(text).chars() {
        match c {
            '[' | ']' | '_' | '~' | '#' | '$' | '!' => out.extend(['\\', c]),
            '&' => out.push_str("&amp;"),
            '@' => out.push_str("&#64;"),
            // A bare address would become a link.
            ':' => out.push_str("&#58;"),
            c => out.push(c),
        }
    }
    out
}

/// JUnit XML: a suite for each gate, a case for each threshold.
pub fn junit(pipeline: &str, verdicts: &[Verdict]) -> String {
    let mut gates: Vec<(&str, Counts, String)> = Vec::new();
    for verdict in verdicts {
        let (name, state) = case(verdict);
        let class = format!("{pipeline}.{}", verdict.gate);
        let text = junit::case(&name, &class, None, &state);
        if gates.last().is_none_or(|(gate, ..)| *gate != verdict.gate) {
            gates.push((&verdict.gate, Counts::default(), String::new()));
        }
        let (_, counts, cases) = gates.last_mut().expect("BUG: a gate was pushed");
        counts.add(&state);
        cases.push_str(&text);
    }
    let mut all = Counts::default();
    gates.iter().for_each(|(_, counts, _)| all.plus(*counts));
    let mut out = junit::begin(pipeline, all);
    for (gate, counts, cases) in gates {
        out += &(junit::begin_suite(gate, counts) + &cases + junit::END_SUITE);
    }
    out + junit::END
}

/// The name of a case and how it came out.
fn case(verdict: &Verdict) -> (String, State<'_>) {
    let [state, _, samples, measure, value, ci, threshold] = row(verdict);
    let name = format!("{samples}: {measure} {threshold}");
    let note = verdict.note.as_deref().unwrap_or("");
    let text = format!("{state}: {measure} is {value} {ci} {note}").trim_end().to_owned().into();
    let state = match verdict.passed {
        _ if verdict.finding == Finding::Passed => State::Passed,
        true => State::Skipped { message: note.into(), text },
        false => State::Failed {
            message: format!("{measure} is {value}, wanted {threshold}").into(),
            text,
        },
    };
    (name, state)
}

fn row(verdict: &Verdict) -> [String; 7] {
    let state = match (verdict.finding, verdict.passed) {
        (Finding::Passed, _) => "pass",
        (Finding::NotMeasured, true) => "n/a",
        _ => "FAIL",
    };
    let samples = match &verdict.group {
        Some((tag, value)) => format!("{} {tag}={}", verdict.stage, one_line(value)),
        None => verdict.stage.clone(),
    };
    let mut measure = match &verdict.reducer {
        Some(reducer) => named(&verdict.measure, reducer),
        None => verdict.measure.clone(),
    };
    if let Some(baseline) = &verdict.baseline {
        measure.push_str(&format!(" − {baseline}"));
    }
    let bound = match verdict.bound {
        Bound::Value => "",
        Bound::Lower => "lower bound ",
        Bound::Upper => "upper bound ",
    };
    let judged = match verdict.bound {
        Bound::Value => verdict.value,
        Bound::Lower => verdict.ci.map(|ci| ci.lower),
        Bound::Upper => verdict.ci.map(|ci| ci.upper),
    };
    let digits = digits(verdict.unit, judged, verdict.threshold);
    let show = |value: f64| number(verdict.unit, value, digits);
    let ci = verdict.ci.map(|ci| {
        let end = |value: f64| end(verdict.unit, value, digits);
        format!("[{}, {}]", end(ci.lower), end(ci.upper))
    });
    [
        state.to_owned(),
        verdict.gate.clone(),
        samples,
        measure,
        verdict.value.map_or_else(|| "not measured".to_owned(), show),
        ci.unwrap_or_else(|| ABSENT.to_owned()),
        format!("{bound}{} {}", verdict.side.sign(), show(verdict.threshold)),
    ]
}

/// So many decimals that a number and the threshold that it misses look different.
fn digits(unit: Unit, judged: Option<f64>, threshold: f64) -> usize {
    let Some(judged) = judged.filter(|judged| *judged != threshold) else { return 1 };
    let differ = |digits: &usize| number(unit, judged, *digits) != number(unit, threshold, *digits);
    (1..=6).find(differ).unwrap_or(6)
}

fn number(unit: Unit, value: f64, digits: usize) -> String {
    match unit {
        Unit::Share => format!("{:.digits$} %", value * 100.0),
        // Minus zero is no difference either.
        Unit::Difference => format!("{:+.digits$} points", value * 100.0 + 0.0),
        Unit::Ms if digits == 1 => duration(Some(value)),
        Unit::Ms => format!("{value:.digits$} ms"),
        Unit::Dollars => format!("${:.*}", digits + 3, value),
    }
}

/// An end of an interval, whose unit stands beside.
fn end(unit: Unit, value: f64, digits: usize) -> String {
    match unit {
        Unit::Share => format!("{:.digits$}", value * 100.0),
        Unit::Difference => format!("{:+.digits$}", value * 100.0 + 0.0),
        Unit::Ms | Unit::Dollars => format!("{value}"),
    }
}

/// Tags come from data: a control character of theirs has no business in a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Side;
    use crate::stats::Interval;

    fn verdict(value: f64, threshold: f64) -> Verdict {
        let side = Side::AtLeast;
        let finding = if side.holds(value, threshold) { Finding::Passed } else { Finding::Failed };
        Verdict {
            gate: "quality".to_owned(),
            stage: "ask".to_owned(),
            group: None,
            measure: "accuracy".to_owned(),
            reducer: Some("mean".to_owned()),
            baseline: None,
            unit: Unit::Share,
            value: Some(value),
            ci: Some(Interval { lower: 0.1, upper: 0.9 }),
            estimator: None,
            bound: Bound::Value,
            side,
            threshold,
            finding,
            passed: finding == Finding::Passed,
            note: None,
        }
    }

    #[test]
    fn a_near_miss_does_not_look_like_a_hit() {
        let line = |value, threshold| lines(&[verdict(value, threshold)]).remove(0);
        assert_eq!(line(0.8, 0.8), "pass  quality  ask  accuracy  80.0 %  [10.0, 90.0]  ≥ 80.0 %");
        assert_eq!(
            line(0.79996, 0.8),
            "FAIL  quality  ask  accuracy  79.996 %  [10.000, 90.000]  ≥ 80.000 %"
        );
        let slow = Verdict { unit: Unit::Ms, ci: None, ..verdict(2000.04, 2000.0) };
        assert!(lines(&[slow]).remove(0).contains("2000.04 ms  –  ≥ 2000.00 ms"));
    }

    #[test]
    fn what_tags_say_is_text_and_nothing_else() {
        let tag = "a]](https://x.example) @all <b>|\u{1}\u{1b}[31m &amp; `x` ![i](y)\n# h";
        let group = Some(("topic".to_owned(), tag.to_owned()));
        let verdict = Verdict { group, note: Some(tag.to_owned()), ..verdict(0.1, 0.5) };
        let text = markdown("bench", std::slice::from_ref(&verdict));
        let row = text.lines().nth(4).unwrap();
        assert_eq!(text.lines().filter(|line| !line.is_empty()).count(), 4, "{text}");
        for bad in ["@all", "]](", "https:", " <b>", "![", "&amp; `", "\n# h"] {
            assert!(!row.contains(bad), "`{bad}` in {row}");
        }
        let xml = junit("bench", &[verdict]);
        assert!(!xml.contains('\u{1}') && !xml.contains('\u{1b}'), "{xml}");
        assert!(xml.contains("&lt;b&gt;") && !xml.contains("<b>"), "{xml}");
    }

    #[test]
    fn what_failed_is_first_in_a_long_summary() {
        let mut all: Vec<Verdict> = (0..ROWS_MAX + 5).map(|_| verdict(0.9, 0.5)).collect();
        all.push(verdict(0.1, 0.5));
        let text = markdown("bench", &all);
        assert!(text.lines().nth(4).unwrap().starts_with("| FAIL |"), "{text}");
        assert!(text.ends_with("\nand 6 more\n"), "{}", &text[text.len() - 100..]);
        assert_eq!(total(&all), "gates: 1 of 1006 thresholds not kept");
        assert!(!passed(&all) && passed(&all[..10]));
    }
}
