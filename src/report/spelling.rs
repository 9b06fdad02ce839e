//! Numbers, times and texts as people read them, the same in every report. Knows nothing of where they stand.

use serde::Serialize;
use serde_json::Value;

use super::RunInfo;
use crate::record::scores::Comparison;
use crate::stats::{Difference, Interval, Summary};

/// What stands where there is no value: an unknown number is never shown as zero.
pub(super) const ABSENT: &str = "–";

/// Rows of text under a heading; the first column names the row.
#[derive(Serialize)]
pub(super) struct Table {
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// The commit, shortened for people.
pub(super) fn revision(run: &RunInfo) -> String {
    let Some(revision) = &run.git_revision else {
        return "not in git".to_owned();
    };
    let short: String = revision.chars().take(12).collect();
    let dirty = if run.git_dirty == Some(true) { " (dirty)" } else { "" };
    format!("git {short}{dirty}")
}

/// `2026-01-31T12:00:00.123Z` as `2026-01-31 12:00:00 UTC`; any other text as it stands.
pub(super) fn moment(text: &str) -> String {
    match (text.get(..10), text.get(10..11), text.get(11..19), text.ends_with('Z')) {
        (Some(day), Some("T"), Some(time), true) => format!("{day} {time} UTC"),
        _ => text.to_owned(),
    }
}

/// The smallest difference that so many rows would show, in points; `None` where nobody can say.
pub(super) fn detectable(of: &Difference) -> Option<String> {
    // Shares are never further apart than 100 points.
    let words = |detectable: f64| match detectable < 1.0 {
        true => format!("{:.1}", detectable * 100.0),
        false => "none: too few rows".to_owned(),
    };
    of.detectable.map(words)
}

/// A share, with one decimal.
pub(super) fn percent(share: Option<f64>) -> String {
    match share.filter(|share| share.is_finite()) {
        Some(share) => format!("{:.1} %", share * 100.0),
        None => ABSENT.to_owned(),
    }
}

/// A time, in the unit that leaves three digits or so.
pub(super) fn duration(ms: Option<f64>) -> String {
    let Some(ms) = ms.filter(|ms| ms.is_finite()) else {
        return ABSENT.to_owned();
    };
    // The bounds lie where the rounded number would need one more digit.
    if ms == 0.0 {
        "0 ms".to_owned()
    } else if ms < 0.9995 {
        format!("{:.0} µs", ms * 1000.0)
    } else if ms < 9.995 {
        format!("{ms:.2} ms")
    } else if ms < 99.95 {
        format!("{ms:.1} ms")
    } else if ms < 999.5 {
        format!("{ms:.0} ms")
    } else if ms < 59_995.0 {
        format!("{:.2} s", ms / 1000.0)
    } else {
        let seconds = (ms / 1000.0).round() as u64;
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
            (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
        }
    }
}

/// Below this many values a 99th percentile is the largest few of them.
const P99_MIN: u64 = 1000;

/// What stands behind the 99th percentile of so many values, in every table that has one.
pub fn p99_mark(count: u64) -> &'static str {
    if count < P99_MIN { " *" } else { "" }
}

/// What [`p99_mark`] means, for a table that stands alone.
pub const P99_NOTE: &str =
    "\u{201c}*\u{201d} marks the 99th percentile of fewer than 1,000 values.";

/// The 99th percentile, with its mark.
pub(super) fn p99(times: Option<&Summary>) -> String {
    let text =
        |times: &Summary| format!("{}{}", duration(Some(times.p99_ms)), p99_mark(times.count));
    times.map_or_else(|| ABSENT.to_owned(), text)
}

/// So many a second.
pub(super) fn rate(value: Option<f64>) -> String {
    match value.filter(|value| value.is_finite()) {
        None => ABSENT.to_owned(),
        Some(value) if value < 10.0 => format!("{value:.2}"),
        Some(value) if value < 1000.0 => format!("{value:.1}"),
        Some(value) => count(value.round() as u64),
    }
}

/// A count, with its digits in groups.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count that may be unknown.
pub(super) fn count_or_absent(n: Option<u64>) -> String {
    n.map_or_else(|| ABSENT.to_owned(), count)
}

pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One line of text that neither ends a table cell nor starts markup.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\r' => {}
            '\n' => out.push(' '),
            '\\' | '|' | '`' | '*' | '<' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// An interval of shares, in percent.
pub(super) fn bounds(ci: Option<Interval>) -> String {
    let text = |ci: Interval| format!("[{:.1}, {:.1}]", ci.lower * 100.0, ci.upper * 100.0);
    ci.map_or_else(|| ABSENT.to_owned(), text)
}

/// A difference of shares, in points.
pub(super) fn points(value: f64) -> String {
    // Minus zero is no difference either.
    format!("{:+.1}", value * 100.0 + 0.0)
}

/// A p-value.
pub(super) fn probability(p: Option<f64>) -> String {
    match p {
        None => ABSENT.to_owned(),
        Some(p) if p < 0.0001 => "< 0.0001".to_owned(),
        Some(p) => format!("{p:.4}"),
    }
}

/// A metric, with what made one value of the draws of a row.
pub(super) fn named(metric: &str, reducer: &str) -> String {
    if reducer == "mean" { metric.to_owned() } else { format!("{metric}, {reducer}") }
}

/// Columns of a comparison that every table of them has.
pub(super) const COMPARED: [&str; 6] = ["a", "b", "b − a", "95 % CI", "p", "Holm"];

/// What stands in them, and how often each side is better; `None` where nothing was compared.
pub(super) fn compared(c: &Comparison) -> Option<Vec<String>> {
    let result = c.result.as_ref()?;
    Some(vec![
        percent(Some(result.a)),
        percent(Some(result.b)),
        points(result.difference),
        bounds(result.ci),
        probability(result.p),
        probability(c.p_holm),
        count(result.better_a),
        count(result.better_b),
    ])
}

/// How a comparison was made, or why it was not.
pub(super) fn how(c: &Comparison) -> String {
    match (&c.result, &c.refused) {
        (Some(result), _) => format!("{}; {}", result.test.words(), result.estimator.words()),
        (None, Some(why)) => why.clone(),
        (None, None) => "no row has a score on both sides".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let check = |ms: f64, want: &str| assert_eq!(duration(Some(ms)), want);
        check(0.0, "0 ms");
        check(0.25, "250 µs");
        check(1.5, "1.50 ms");
        check(99.96, "100 ms");
        check(999.7, "1.00 s");
        check(61_000.0, "1 min 01 s");
        check(7_260_000.0, "2 h 01 min");
        assert_eq!(duration(None), ABSENT);
        assert_eq!(duration(Some(f64::NAN)), ABSENT);
        assert_eq!(percent(Some(0.625)), "62.5 %");
        assert_eq!(percent(None), ABSENT);
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(999), "999");
        assert_eq!(rate(Some(1234.4)), "1,234");
        assert_eq!(moment("yesterday"), "yesterday");
    }

    #[test]
    fn the_99th_percentile_of_few_values_is_marked() {
        let of = |count: usize| p99(Summary::of(vec![2.0; count]).as_ref());
        assert_eq!((of(999).as_str(), of(1000).as_str()), ("2.00 ms *", "2.00 ms"));
        assert_eq!(of(0), ABSENT);
    }

    #[test]
    fn so_few_rows_show_nothing_rather_than_more_than_everything() {
        let pair = |(cluster, a): (usize, f64)| crate::stats::Pair { cluster, a, b: 1.0 - a };
        let words = |values: &[f64]| {
            let pairs: Vec<_> = values.iter().copied().enumerate().map(pair).collect();
            let result = crate::stats::difference(&pairs).unwrap();
            (result.detectable.unwrap() >= 1.0, detectable(&result).unwrap())
        };
        assert_eq!(words(&[0.0, 1.0, 0.0]), (true, "none: too few rows".to_owned()));
        let (none, words) = words(&[0.0, 1.0].repeat(50));
        assert!(!none && words.parse::<f64>().unwrap() < 100.0, "{words}");
    }
}
