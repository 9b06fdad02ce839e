//! One number against another, and the Pareto front. Knows nothing of what they count.

use minijinja::context;

use super::{Show, render, round, ticks};
use crate::stats::Interval;

/// Left, top, right and bottom of the plot in a chart of 460 × 330.
const PLOT: (f64, f64, f64, f64) = (58.0, 26.0, 426.0, 282.0);
/// From this ratio of the greatest to the least on, the horizontal axis is logarithmic.
const LOG_RATIO: f64 = 30.0;

const TEMPLATE: &str = r#"<svg class="scatter" width="460" height="330" viewBox="0 0 460 330" role="img" aria-label="{{ words }}">
{% for tick in ys %}
<line class="grid" x1="{{ left }}" x2="{{ right }}" y1="{{ tick.at }}" y2="{{ tick.at }}"/>
<text class="tick" x="{{ left - 8 }}" y="{{ tick.at + 4 }}" text-anchor="end">{{ tick.label }}</text>
{% endfor %}
{% for tick in xs %}
<line class="grid" x1="{{ tick.at }}" x2="{{ tick.at }}" y1="{{ top }}" y2="{{ bottom }}"/>
<text class="tick" x="{{ tick.at }}" y="{{ bottom + 18 }}" text-anchor="middle">{{ tick.label }}</text>
{% endfor %}
<text class="axis" x="{{ right }}" y="{{ bottom + 38 }}" text-anchor="end">{{ x_axis }} →</text>
<text class="axis" x="0" y="10">↑ {{ y_axis }}</text>
{% if front %}<path class="front" d="{{ front }}"/>{% endif %}
{% for point in points %}
<g class="{{ point.class }}"><title>{{ point.words }}</title>
{% if point.whisker %}<path class="whisker" d="{{ point.whisker }}"/>{% endif %}
<circle cx="{{ point.x }}" cy="{{ point.y }}" r="9"/>
<text x="{{ point.x }}" y="{{ point.y + 4 }}" text-anchor="middle">{{ point.number }}</text></g>
{% endfor %}
</svg>"#;

/// What is shown.
pub struct Scatter {
    /// For those who hear it.
    pub title: String,
    /// The horizontal axis: less is better.
    pub x_axis: String,
    /// The vertical axis, a share from 0 to 1: more is better.
    pub y_axis: String,
    /// In the order of the table beside it.
    pub points: Vec<Point>,
    /// How a number of the horizontal axis is written.
    pub show_x: Show,
    /// How one of the vertical axis is.
    pub show_y: Show,
}

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its number in the table beside the chart.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// What it takes.
    pub x: f64,
    /// What it gives.
    pub y: f64,
    /// The interval of that.
    pub ci: Option<Interval>,
}

/// Which points no other beats: none takes as little or less and gives as much or more, one of the two truly.
pub fn pareto(points: &[(f64, f64)]) -> Vec<bool> {
    let beats = |a: &(f64, f64), b: &(f64, f64)| a.0 <= b.0 && a.1 >= b.1 && a != b;
    points.iter().map(|point| !points.iter().any(|other| beats(other, point))).collect()
}

/// Points by number; those of the Pareto front are filled and joined by a line.
pub fn scatter(chart: &Scatter) -> String {
    let (left, top, right, bottom) = PLOT;
    let xs = || chart.points.iter().map(|point| point.x);
    let (least, most) = (xs().fold(f64::INFINITY, f64::min), xs().fold(0.0, f64::max));
    let log = least > 0.0 && most / least >= LOG_RATIO;
    let x_ticks = match log {
        true => powers(least, most),
        false => ticks(0.0, if most > 0.0 { most } else { 1.0 }, 5),
    };
    let (low, high) = chart.points.iter().fold((1.0_f64, 0.0_f64), |(low, high), point| {
        let ci = point.ci.unwrap_or(Interval { lower: point.y, upper: point.y });
        (low.min(ci.lower), high.max(ci.upper))
    });
    let mut y_ticks = ticks(low.min(high), high.max(low), 5);
    y_ticks.retain(|tick| (-1e-9..=1.0 + 1e-9).contains(tick));
    let between = |value: f64, ticks: &[f64]| {
        let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
        if last > first { (value - first) / (last - first) } else { 0.5 }
    };
    let place = |x: f64| match log {
        true => between(x.ln(), &[x_ticks[0].ln(), x_ticks[x_ticks.len() - 1].ln()]),
        false => between(x, &x_ticks),
    };
    let at_x = |x: f64| round(left + place(x) * (right - left));
    let at_y = |y: f64| round(bottom - between(y, &y_ticks) * (bottom - top));
    let on_front = pareto(&chart.points.iter().map(|p| (p.x, p.y)).collect::<Vec<_>>());
    let mut front: Vec<&Point> =
        chart.points.iter().zip(&on_front).filter(|(_, on)| **on).map(|(point, _)| point).collect();
    front.sort_by(|a, b| a.x.total_cmp(&b.x));
    // A step: between two points the dearer one is not there yet.
    let mut path = String::new();
    for (i, point) in front.iter().enumerate() {
        let (x, y) = (at_x(point.x), at_y(point.y));
        path.push_str(&if i == 0 { format!("M{x} {y}") } else { format!("H{x}V{y}") });
    }
    let (show_x, show_y) = (chart.show_x, chart.show_y);
    let words = |point: &Point| format!("{}: {}, {}", point.name, show_y(point.y), show_x(point.x));
    let point = |(i, point): (usize, &Point)| {
        let x = at_x(point.x);
        let whisker = point.ci.map(|ci| format!("M{x} {}V{}", at_y(ci.lower), at_y(ci.upper)));
        context! {
            number => point.number,
            x,
            y => at_y(point.y),
            whisker,
            words => format!("{} {}", point.number, words(point)),
            class => if on_front[i] { "point best" } else { "point" },
        }
    };
    let tick = |at: f64, label: String| context! { at, label };
    let said: Vec<String> = front.iter().map(|point| words(point)).collect();
    render(
        TEMPLATE,
        context! {
            words => format!("{}. On the Pareto front: {}", chart.title, said.join("; ")),
            left, right, top, bottom,
            xs => x_ticks.iter().map(|x| tick(at_x(*x), show_x(*x))).collect::<Vec<_>>(),
            ys => y_ticks.iter().map(|y| tick(at_y(*y), show_y(*y))).collect::<Vec<_>>(),
            x_axis => if log { format!("{} (logarithmic)", chart.x_axis) } else { chart.x_axis.clone() },
            y_axis => chart.y_axis,
            front => (front.len() > 1).then_some(path),
            // Those of the front last, above the others.
            points => {
                let mut order: Vec<usize> = (0..chart.points.len()).collect();
                order.sort_by_key(|i| on_front[*i]);
                order.into_iter().map(|i| point((i, &chart.points[i]))).collect::<Vec<_>>()
            },
        },
    )
}

/// Powers of ten around two positive numbers.
fn powers(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (first..=last.max(first + 1)).map(|power| 10_f64.powi(power)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_no_other_beats() {
        let points = [(1.0, 0.5), (2.0, 0.7), (2.0, 0.6), (3.0, 0.7), (4.0, 0.9), (1.0, 0.5)];
        assert_eq!(pareto(&points), [true, true, false, false, true, true]);
        assert!(pareto(&[]).is_empty());
    }

    #[test]
    fn far_apart_numbers_get_a_logarithmic_axis() {
        let chart = |most| {
            let point = |x, y| Point { number: 1, name: format!("at {x}"), x, y, ci: None };
            scatter(&Scatter {
                title: "cost".to_owned(),
                x_axis: "dollars".to_owned(),
                y_axis: "accuracy".to_owned(),
                points: vec![point(0.1, 0.2), point(most, 0.8)],
                show_x: |x| format!("${x}"),
                show_y: |y| format!("{:.0} %", y * 100.0),
            })
        };
        assert!(
            chart(100.0).contains("dollars (logarithmic)") && !chart(1.0).contains("logarithmic")
        );
        assert!(chart(1.0).contains("On the Pareto front: at 0.1: 20 %, $0.1; at 1: 80 %, $1"));
        assert_eq!(chart(1.0).matches("point best").count(), 2);
    }
}
