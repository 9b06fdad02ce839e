//! How numbers and times look on pages. Knows nothing of what they mean; what is not known is a dash, never 0.

use minijinja::Environment;
use minijinja::value::{Value, ValueKind};

use crate::report::p99_mark;

const ABSENT: &str = "–";

/// Makes the filters known to templates.
pub fn add(env: &mut Environment<'static>) {
    env.add_filter("percent", |value: &Value| number(value, |x| format!("{:.1} %", x * 100.0)));
    env.add_filter("points", |value: &Value| {
        number(value, |x| format!("{:+.1} points", x * 100.0))
    });
    env.add_filter("ms", |value: &Value| number(value, duration));
    env.add_filter("fixed", |value: &Value, digits: usize| {
        number(value, |x| format!("{x:.digits$}"))
    });
    env.add_filter("count", |value: &Value| number(value, |x| grouped(x as i64)));
    env.add_filter("p99_mark", p99_mark);
    env.add_filter("text", |value: &Value| match value.kind() {
        ValueKind::None | ValueKind::Undefined => ABSENT.to_owned(),
        _ => value.to_string(),
    });
    // A path of a project in an address: its parts escaped, its slashes kept.
    env.add_filter("urlpath", |path: &str| {
        let part =
            |part: &str| url::form_urlencoded::byte_serialize(part.as_bytes()).collect::<String>();
        path.split('/').map(|text| part(text).replace('+', "%20")).collect::<Vec<_>>().join("/")
    });
    env.add_filter("urlencode", |text: &str| {
        url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>()
    });
    env.add_filter("moment", |value: &Value| match value.as_str() {
        // To the second, as people read it.
        Some(text) if text.len() >= 19 && text.is_ascii() => text[..19].replace('T', " "),
        _ => ABSENT.to_owned(),
    });
}

fn number(value: &Value, show: impl Fn(f64) -> String) -> String {
    match value.kind() {
        ValueKind::Number => f64::try_from(value.clone()).map_or(ABSENT.to_owned(), show),
        _ => ABSENT.to_owned(),
    }
}

/// Milliseconds in the unit that fits.
pub fn duration(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0} µs", ms * 1000.0),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms if ms < 120_000.0 => format!("{:.1} s", ms / 1000.0),
        ms => format!("{:.0} min", ms / 60_000.0),
    }
}

/// 12345 as 12,345.
fn grouped(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if n < 0 { format!("-{out}") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_a_dash() {
        let mut env = Environment::new();
        add(&mut env);
        let shown = |text: &str| env.render_str(text, ()).unwrap();
        assert_eq!(
            shown("{{ none|percent }} {{ none|ms }} {{ none|count }} {{ none|text }}"),
            "– – – –"
        );
        assert_eq!(shown("{{ 0.5|percent }} {{ -0.125|points }}"), "50.0 % -12.5 points");
        assert_eq!(
            shown("{{ 0.25|ms }} {{ 12|ms }} {{ 1500|ms }} {{ 1234567|count }}"),
            "250 µs 12 ms 1.5 s 1,234,567"
        );
        assert_eq!(shown("{{ '2026-01-02T03:04:05.678Z'|moment }}"), "2026-01-02 03:04:05");
    }
}
