//! A number of each of several things, as bars. Knows nothing of what it counts.

use minijinja::context;

use super::{Show, render, round, shortened};
use crate::stats::Interval;

const ROW_HEIGHT: usize = 24;
/// Most characters of a name.
const NAME_MAX: usize = 22;
/// Where bars begin, and how long the longest is.
const BAR: (f64, f64) = (160.0, 130.0);

const TEMPLATE: &str = r#"<svg class="bars" width="372" height="{{ height }}" viewBox="0 0 372 {{ height }}" role="img" aria-label="{{ words }}">
<text class="axis" x="0" y="14">{{ title }}</text>
{% for bar in bars %}
<g><title>{{ bar.words }}</title><text class="label" x="0" y="{{ bar.y + 16 }}">{{ bar.name }}</text>
{% if bar.width is not none %}
<rect class="bar" x="{{ left }}" y="{{ bar.y + 4 }}" width="{{ bar.width }}" height="15" rx="2"/>
{% if bar.whisker %}
<path class="whisker" d="{{ bar.whisker }}"/>
{% endif %}
{% endif %}
<text class="value" x="{{ left + 138 }}" y="{{ bar.y + 16 }}">{{ bar.value }}</text></g>
{% endfor %}
</svg>"#;

/// One panel.
pub struct Bars {
    /// What the numbers are.
    pub title: String,
    /// In order.
    pub bars: Vec<Bar>,
    /// How a number is written.
    pub show: Show,
}

/// One of them.
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Its number, from 0; absent where there is none.
    pub value: Option<f64>,
    /// Its interval.
    pub ci: Option<Interval>,
}

/// Bars from zero, on a scale of their own.
pub fn bars(panel: &Bars) -> String {
    let ends = panel.bars.iter().filter_map(|bar| {
        let value = bar.value?;
        Some(bar.ci.map_or(value, |ci| ci.upper.max(value)))
    });
    let most = ends.fold(0.0, f64::max);
    let (left, longest) = BAR;
    let scale = |value: f64| if most > 0.0 { round(value.max(0.0) / most * longest) } else { 0.0 };
    let text = |bar: &Bar| bar.value.map_or_else(|| "–".to_owned(), panel.show);
    let one = |(i, bar): (usize, &Bar)| {
        let y = 24 + i * ROW_HEIGHT;
        let whisker = bar.ci.filter(|_| bar.value.is_some()).map(|ci| {
            let (low, high) = (left + scale(ci.lower), left + scale(ci.upper));
            let (top, middle) = (y + 7, y + 11);
            format!("M{low} {middle}H{high}M{low} {top}v9M{high} {top}v9")
        });
        context! {
            y,
            name => shortened(&bar.name, NAME_MAX),
            words => format!("{}: {}", bar.name, text(bar)),
            value => text(bar),
            width => bar.value.map(scale),
            whisker,
        }
    };
    let said = panel.bars.iter().map(|bar| format!("{}: {}", bar.name, text(bar)));
    let words = format!("{} – {}", panel.title, said.collect::<Vec<_>>().join("; "));
    render(
        TEMPLATE,
        context! {
            height => 28 + panel.bars.len() * ROW_HEIGHT,
            title => panel.title,
            words,
            left,
            bars => panel.bars.iter().enumerate().map(one).collect::<Vec<_>>(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_begin_at_zero_and_what_is_absent_has_none() {
        let bar = |name: &str, value| Bar { name: name.to_owned(), value, ci: None };
        let svg = bars(&Bars {
            title: "p50".to_owned(),
            bars: vec![bar("a", Some(10.0)), bar("b", Some(20.0)), bar("c", None)],
            show: |value| format!("{value} ms"),
        });
        assert!(svg.contains("width=\"65.0\"") && svg.contains("width=\"130.0\""), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("p50 – a: 10 ms; b: 20 ms; c: –"), "{svg}");
    }
}
