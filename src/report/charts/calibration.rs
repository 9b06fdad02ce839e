//! How often a confidence is right: a reliability diagram. Knows nothing of where the confidence is from.

use minijinja::context;

use super::{render, round};
use crate::stats::Interval;

/// Left, top, and side of the square plot in a chart of 300 × 300.
const PLOT: (f64, f64, f64) = (46.0, 30.0, 220.0);
/// Radius of the smallest and of the largest circle.
const RADIUS: (f64, f64) = (4.0, 11.0);

const TEMPLATE: &str = r#"<svg class="calibration" width="300" height="300" viewBox="0 0 300 300" role="img" aria-label="{{ words }}">
<text class="axis" x="0" y="14">{{ title }}</text>
{% for tick in ticks %}
<line class="grid" x1="{{ left }}" x2="{{ right }}" y1="{{ tick.y }}" y2="{{ tick.y }}"/>
<line class="grid" x1="{{ tick.x }}" x2="{{ tick.x }}" y1="{{ top }}" y2="{{ bottom }}"/>
<text class="tick" x="{{ left - 7 }}" y="{{ tick.y + 4 }}" text-anchor="end">{{ tick.label }}</text>
<text class="tick" x="{{ tick.x }}" y="{{ bottom + 17 }}" text-anchor="middle">{{ tick.label }}</text>
{% endfor %}
<line class="front" x1="{{ left }}" y1="{{ bottom }}" x2="{{ right }}" y2="{{ top }}"/>
{% for point in points %}
<g class="point best"><title>{{ point.words }}</title>
{% if point.whisker %}<path class="whisker" d="{{ point.whisker }}"/>{% endif %}
<circle cx="{{ point.x }}" cy="{{ point.y }}" r="{{ point.r }}"/></g>
{% endfor %}
<text class="tick" x="{{ right }}" y="{{ bottom + 34 }}" text-anchor="end">agreement of draws % →</text>
</svg>"#;

/// What is shown.
pub struct Calibration {
    /// Its heading.
    pub title: String,
    /// By confidence.
    pub points: Vec<Confidence>,
}

/// Cases with about as much confidence.
pub struct Confidence {
    /// Their mean confidence, from 0 to 1.
    pub confidence: f64,
    /// The share of them that is right.
    pub right: f64,
    /// Its interval.
    pub ci: Option<Interval>,
    /// Cases; the area of a circle grows with them.
    pub cases: u64,
}

/// Share of right ones over confidence; on the dashed line the two are equal.
pub fn calibration(chart: &Calibration) -> String {
    let (left, top, side) = PLOT;
    let at_x = |share: f64| round(left + share * side);
    let at_y = |share: f64| round(top + (1.0 - share) * side);
    let most = chart.points.iter().map(|point| point.cases).max().unwrap_or(0).max(1) as f64;
    let percent = |share: f64| format!("{:.0}", share * 100.0);
    let words = |point: &Confidence| {
        let (said, right) = (percent(point.confidence), percent(point.right));
        format!("where {said} % agree, {right} % are right (n {})", point.cases)
    };
    let point = |point: &Confidence| {
        let x = at_x(point.confidence);
        context! {
            x,
            y => at_y(point.right),
            r => round(RADIUS.0 + (RADIUS.1 - RADIUS.0) * (point.cases as f64 / most).sqrt()),
            whisker => point.ci.map(|ci| format!("M{x} {}V{}", at_y(ci.lower), at_y(ci.upper))),
            words => words(point),
        }
    };
    let tick =
        |share: f64| context! { x => at_x(share), y => at_y(share), label => percent(share) };
    let said: Vec<String> = chart.points.iter().map(words).collect();
    render(
        TEMPLATE,
        context! {
            title => chart.title,
            words => format!("{}: {}", chart.title, said.join("; ")),
            left,
            top,
            right => left + side,
            bottom => top + side,
            ticks => [0.0, 0.25, 0.5, 0.75, 1.0].map(tick),
            points => chart.points.iter().map(point).collect::<Vec<_>>(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agrees_and_is_right_is_at_the_upper_right() {
        let point = |confidence, right, cases| Confidence { confidence, right, ci: None, cases };
        let svg = calibration(&Calibration {
            title: "cot".to_owned(),
            points: vec![point(0.5, 0.25, 1), point(1.0, 1.0, 4)],
        });
        assert!(svg.contains("cx=\"266.0\" cy=\"30.0\" r=\"11.0\""), "{svg}");
        assert!(svg.contains("cx=\"156.0\" cy=\"195.0\" r=\"7.5\""), "{svg}");
        assert!(svg.contains("cot: where 50 % agree, 25 % are right (n 1);"), "{svg}");
    }
}
