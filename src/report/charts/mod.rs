//! Charts as inline SVG: numbers in, text out. Knows nothing of reports or pages.
//!
//! Each function takes plain data and gives one `<svg>` element that names itself for screen readers (`role="img"`,
//! `aria-label`) and has a `<title>` on each mark. Colours come from [`STYLE`], which a page has to contain: custom
//! properties for light and dark, after Okabe & Ito (2008) and with one hue for heat maps, so that no chart needs
//! colour vision; every mark has a number or a shape too. No attribute is a `style`, so that a strict content security
//! policy lets them be. Whoever shows a chart shows the numbers behind it beside it, as a table.
//!
//! | function | shows |
//! |---|---|
//! | [`heat`] | a number over two axes |
//! | [`bars`] | a number of each of several things, one panel of small multiples |
//! | [`scatter`] | one number against another, and the Pareto front |
//! | [`histogram`] | how often a number was measured |
//! | [`timeline`] | how many there were over time |
//! | [`calibration`] | how often a confidence is right |

use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};

mod bars;
mod calibration;
mod heat;
mod histogram;
mod scatter;
mod timeline;

pub use bars::{Bar, Bars, bars};
pub use calibration::{Calibration, Confidence, calibration};
pub use heat::{Heat, heat};
pub use histogram::{Histogram, histogram};
pub use scatter::{Point, Scatter, pareto, scatter};
pub use timeline::{Timeline, timeline};

/// What a page with charts needs among its styles.
pub const STYLE: &str = include_str!("charts.css");

/// Pixels that a character of a label takes, about.
const CHAR: f64 = 7.4;

/// How a number is written.
pub type Show = fn(f64) -> String;

/// Renders a template in which every value is escaped.
fn render(template: &str, context: Value) -> String {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.render_str(template, context).expect("BUG: a chart renders for all numbers")
}

/// A tenth of a unit is finer than any screen.
fn round(value: f64) -> f64 {
    // Minus zero is zero.
    (value * 10.0).round() / 10.0 + 0.0
}

/// A name that fits. What tells two cells of a matrix apart is often at its end, so the middle goes.
pub fn shortened(name: &str, chars_max: usize) -> String {
    let chars: Vec<char> = name.chars().collect();
    if chars.len() <= chars_max {
        return name.to_owned();
    }
    let half = chars_max / 2;
    let (head, tail) = (&chars[..half], &chars[chars.len() - half + 1..]);
    head.iter().chain(&['…']).chain(tail).collect()
}

/// Round numbers that span at least from `low` to `high`, about `wanted` of them: steps of 1, 2 or 5 times a power of
/// ten.
fn ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let span = if high > low { high - low } else { low.abs().max(1.0) };
    let rough = span / wanted.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(power * 10.0);
    let first = (low / step + 1e-9).floor();
    let count = ((high / step - 1e-9).ceil() - first).max(1.0) as usize;
    // Multiplied, not added up: 0.30000000000000004 is no round number.
    let tick = |i: usize| {
        let value = (first + i as f64) * step;
        let units = (value / power * 1e6).round() / 1e6;
        if power < 1.0 { units / (1.0 / power).round() } else { units * power }
    };
    (0..=count).map(tick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_span_all() {
        assert_eq!(ticks(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(0.0, 37.0, 4), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(ticks(5.0, 5.0, 4), [4.0, 6.0]);
        let small = ticks(0.0, 0.00031, 4);
        assert!(small.last() >= Some(&0.00031) && small.len() <= 6, "{small:?}");
    }

    #[test]
    fn a_long_name_loses_its_middle() {
        let short = shortened(&format!("{}{}", "a".repeat(50), "z".repeat(50)), 48);
        assert_eq!(short.chars().count(), 48);
        assert!(short.starts_with("aaa") && short.contains('…') && short.ends_with("zzz"));
    }

    #[test]
    fn names_in_charts_stay_text() {
        let name = "<script>\"x\"".to_owned();
        let point = Point { number: 1, name: name.clone(), x: 1.0, y: 0.5, ci: None };
        let all = [
            heat(&Heat {
                title: name.clone(),
                row_axis: name.clone(),
                column_axis: name.clone(),
                rows: vec![name.clone()],
                columns: vec![name.clone()],
                values: vec![vec![Some(0.5)]],
                show: |v| v.to_string(),
            }),
            bars(&Bars {
                title: name.clone(),
                bars: vec![Bar { name: name.clone(), value: Some(1.0), ci: None }],
                show: |v| v.to_string(),
            }),
            scatter(&Scatter {
                title: name.clone(),
                x_axis: name.clone(),
                y_axis: name.clone(),
                points: vec![point],
                show_x: |v| v.to_string(),
                show_y: |v| v.to_string(),
            }),
            calibration(&Calibration { title: name, points: vec![] }),
        ];
        for svg in all {
            assert!(svg.contains("&lt;script&gt;") && !svg.contains("<script"), "{svg}");
            assert!(svg.starts_with("<svg") && !svg.contains("style="), "{svg}");
        }
    }
}
