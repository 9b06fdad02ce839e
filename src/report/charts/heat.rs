//! A number over two axes. Knows nothing of what it counts.

use minijinja::context;

use super::{CHAR, Show, render, round, shortened};

/// Shades of the scale; the classes `h0` to `h9` of the style.
const SHADES: usize = 10;
const ROW_HEIGHT: f64 = 34.0;
/// Most characters of a row's name.
const NAME_MAX: usize = 30;
/// Least and greatest width of a column.
const COLUMN: (f64, f64) = (64.0, 132.0);

const TEMPLATE: &str = r#"<svg class="heat" width="{{ width }}" height="{{ height }}" viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ words }}">
<text class="axis" x="0" y="14">{{ row_axis }} ↓ {{ column_axis }} →</text>
{% for column in columns %}
<text class="label" x="{{ column.x }}" y="36" text-anchor="middle">{{ column.name }}<title>{{ column.full }}</title></text>
{% endfor %}
{% for row in rows %}
<text class="label" x="0" y="{{ row.y + 21 }}">{{ row.name }}<title>{{ row.full }}</title></text>
{% for cell in row.cells %}
<g><title>{{ cell.title }}</title><rect class="{{ cell.shade }}" x="{{ cell.x }}" y="{{ row.y }}" width="{{ cell.width }}" height="32" rx="3"/>
<text class="{{ cell.ink }}" x="{{ cell.middle }}" y="{{ row.y + 21 }}" text-anchor="middle">{{ cell.text }}</text></g>
{% endfor %}
{% endfor %}
{% for shade in scale %}
<rect class="h{{ loop.index0 }}" x="{{ shade }}" y="{{ bottom }}" width="14.5" height="10"/>
{% endfor %}
<text class="tick" x="{{ left - 6 }}" y="{{ bottom + 10 }}" text-anchor="end">{{ low }}</text>
<text class="tick" x="{{ left + 151 }}" y="{{ bottom + 10 }}">{{ high }}</text>
</svg>"#;

/// What a heat map shows.
pub struct Heat {
    /// What the numbers are, for those who hear it.
    pub title: String,
    /// What the rows are.
    pub row_axis: String,
    /// What the columns are.
    pub column_axis: String,
    /// Names of rows.
    pub rows: Vec<String>,
    /// Names of columns.
    pub columns: Vec<String>,
    /// By row and column; absent where there is none.
    pub values: Vec<Vec<Option<f64>>>,
    /// How a number is written.
    pub show: Show,
}

/// A heat map: the darker (in the dark, the lighter), the greater.
pub fn heat(heat: &Heat) -> String {
    let known = || heat.values.iter().flatten().flatten().copied();
    let low = known().fold(f64::INFINITY, f64::min);
    let high = known().fold(f64::NEG_INFINITY, f64::max);
    let chars = |name: &String, max: usize| name.chars().count().min(max) as f64 * CHAR;
    let names = heat.rows.iter().map(|name| chars(name, NAME_MAX)).fold(0.0, f64::max);
    let left = (names + 16.0).max(48.0).round();
    let widest = heat.columns.iter().map(|name| chars(name, usize::MAX)).fold(0.0, f64::max);
    let width = (widest + 16.0).clamp(COLUMN.0, COLUMN.1).round();
    let fits = ((width - 8.0) / CHAR) as usize;
    let x = |column: usize| left + column as f64 * width;
    let shade = |value: f64| match high > low {
        true => (((value - low) / (high - low)) * SHADES as f64).min(SHADES as f64 - 1.0) as usize,
        false => SHADES / 2 - 1,
    };
    let cell = |row: usize, column: usize| {
        let value = heat.values.get(row).and_then(|row| row.get(column)).copied().flatten();
        let text = value.map_or_else(|| "–".to_owned(), heat.show);
        let title = format!("{}, {}: {text}", heat.rows[row], heat.columns[column]);
        let shade = value.map(shade);
        context! {
            title,
            text,
            x => x(column),
            width => width - 2.0,
            middle => x(column) + width / 2.0 - 1.0,
            shade => shade.map_or_else(|| "none".to_owned(), |shade| format!("h{shade}")),
            ink => if shade.is_some_and(|shade| shade >= SHADES / 2) { "far" } else { "near" },
        }
    };
    let places = 0..heat.columns.len();
    let rows = heat.rows.iter().enumerate().map(|(i, name)| {
        context! {
            y => 46.0 + i as f64 * ROW_HEIGHT,
            name => shortened(name, NAME_MAX),
            full => name,
            cells => places.clone().map(|column| cell(i, column)).collect::<Vec<_>>(),
        }
    });
    let columns = heat.columns.iter().enumerate().map(|(i, name)| {
        context! { x => round(x(i) + width / 2.0 - 1.0), name => shortened(name, fits), full => name }
    });
    let bottom = 46.0 + heat.rows.len() as f64 * ROW_HEIGHT + 8.0;
    let axes = (heat.row_axis.chars().count() + heat.column_axis.chars().count() + 5) as f64 * CHAR;
    let end = |value: f64| if value.is_finite() { (heat.show)(value) } else { "–".to_owned() };
    render(
        TEMPLATE,
        context! {
            width => x(heat.columns.len()).max(left + 151.0 + 70.0).max(axes),
            height => bottom + 14.0,
            words => format!(
                "{} by {} and {}, from {} to {}",
                heat.title, heat.row_axis, heat.column_axis, end(low), end(high)
            ),
            row_axis => heat.row_axis,
            column_axis => heat.column_axis,
            columns => columns.collect::<Vec<_>>(),
            rows => rows.collect::<Vec<_>>(),
            scale => (0..SHADES).map(|i| left + i as f64 * 14.5).collect::<Vec<_>>(),
            left,
            bottom,
            low => end(low),
            high => end(high),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_the_first_shade_and_the_greatest_the_last() {
        let svg = heat(&Heat {
            title: "accuracy".to_owned(),
            row_axis: "method".to_owned(),
            column_axis: "temperature".to_owned(),
            rows: vec!["naive".to_owned(), "cot".to_owned()],
            columns: vec!["0".to_owned(), "0.7".to_owned()],
            values: vec![vec![Some(0.25), None], vec![Some(0.5), Some(0.75)]],
            show: |value| format!("{:.0} %", value * 100.0),
        });
        let cell = |title: &str| {
            let (_, rest) =
                svg.split_once(&format!("<title>{title}</title><rect class=\"")).unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        assert_eq!(cell("naive, 0: 25 %"), "h0");
        assert_eq!(cell("cot, 0: 50 %"), "h5");
        assert_eq!(cell("cot, 0.7: 75 %"), "h9");
        assert_eq!(cell("naive, 0.7: –"), "none");
        assert!(svg.contains("accuracy by method and temperature, from 25 % to 75 %"), "{svg}");
    }
}
