//! How often a number was measured, as bars over its range. Knows nothing of what it counts.

use minijinja::context;

use super::{Show, render, round};
use crate::stats;

/// Width of the plot, and top and bottom of its bars.
const WIDTH: f64 = 640.0;
const BARS: (f64, f64) = (36.0, 146.0);

const TEMPLATE: &str = r#"<svg class="histogram" viewBox="-2 -4 644 176" role="img" aria-label="{{ words }}">
{% for bar in bars %}
<rect class="bar" x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}"><title>{{ bar.title }}</title></rect>
{% endfor %}
<line class="base" x1="0" x2="640" y1="146" y2="146"/>
{% for mark in marks %}
<line class="mark" x1="{{ mark.x }}" x2="{{ mark.x }}" y1="{{ mark.label_y - 10 }}" y2="146"/>
<text class="tick" x="{{ mark.label_x }}" y="{{ mark.label_y }}" text-anchor="{{ mark.anchor }}">{{ mark.label }}</text>
{% endfor %}
<text class="tick" x="0" y="166">{{ low }}</text>
<text class="tick" x="640" y="166" text-anchor="end">{{ high }}</text>
</svg>"#;

/// What is shown.
pub struct Histogram<'a> {
    /// What the numbers are, for those who hear it.
    pub title: String,
    /// In order, side by side.
    pub bars: &'a [stats::Bar],
    /// Numbers to be marked, with their names: two at most.
    pub marks: Vec<(&'a str, f64)>,
    /// How a number is written.
    pub show: Show,
}

/// Bars; `None` where there is no number.
pub fn histogram(chart: &Histogram<'_>) -> Option<String> {
    let (low, high) = (chart.bars.first()?.from, chart.bars.last()?.to);
    let most = chart.bars.iter().map(|bar| bar.count).max().filter(|most| *most > 0)?;
    if high <= low {
        return None;
    }
    let show = chart.show;
    let x = |value: f64| round(((value - low) / (high - low)).clamp(0.0, 1.0) * WIDTH);
    let (top, bottom) = BARS;
    let bars = chart.bars.iter().map(|bar| {
        let height = round(bar.count as f64 / most as f64 * (bottom - top));
        context! {
            x => x(bar.from),
            y => round(bottom - height),
            width => round((x(bar.to) - x(bar.from) - 1.0).max(1.0)),
            height,
            title => format!("{} to {}: {}", show(bar.from), show(bar.to), bar.count),
        }
    });
    // Each label has a line of its own, since two numbers may be close.
    let mark = |(i, (name, value)): (usize, &(&str, f64))| {
        let left = x(*value) > WIDTH / 2.0;
        context! {
            x => x(*value),
            label_x => round(if left { x(*value) - 5.0 } else { x(*value) + 5.0 }),
            label_y => 12.0 + 17.0 * i as f64,
            anchor => if left { "end" } else { "start" },
            label => format!("{name} {}", show(*value)),
        }
    };
    let marks: Vec<_> = chart.marks.iter().enumerate().map(mark).collect();
    Some(render(
        TEMPLATE,
        context! {
            words => chart.title,
            low => show(low),
            high => show(high),
            bars => bars.collect::<Vec<_>>(),
            marks,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tallest_bar_fills_the_plot_and_no_value_has_no_chart() {
        let bars = |values: &[f64]| stats::histogram(values, 2);
        let chart = |values: &[f64]| {
            histogram(&Histogram {
                title: "<t>".to_owned(),
                bars: &bars(values),
                marks: vec![("p50", 1.0), ("p95", 3.0)],
                show: |value| format!("{value} ms"),
            })
        };
        let svg = chart(&[1.0, 1.0, 3.0]).unwrap();
        assert!(svg.contains("height=\"110.0\"") && svg.contains("height=\"55.0\""), "{svg}");
        assert!(svg.contains("p50 1 ms") && svg.contains("&lt;t&gt;") && !svg.contains("style="));
        assert!(chart(&[]).is_none());
    }
}
