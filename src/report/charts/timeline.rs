//! How many of something there were over time, as an area. Knows nothing of what it counts.

use minijinja::context;

use super::{render, round};

/// Width and height of the area.
const SIZE: (f64, f64) = (640.0, 120.0);

const TEMPLATE: &str = r#"<svg class="timeline" viewBox="-5 -26 650 176" role="img" aria-label="{{ words }}">
<title>{{ words }}</title>
<text class="tick" x="0" y="-6">{{ top }}</text>
<line class="base" x1="0" x2="640" y1="0" y2="0"/>
<path class="bar" d="{{ path }}"/>
<text class="tick" x="0" y="142">{{ from }}</text>
<text class="tick" x="640" y="142" text-anchor="end">{{ to }}</text>
</svg>"#;

/// What is shown.
pub struct Timeline<'a> {
    /// What the numbers are, for those who hear it.
    pub title: String,
    /// The mean in each of several steps of equal length.
    pub steps: &'a [f64],
    /// What stands at the height of the largest of them.
    pub top: String,
    /// When it begins and ends.
    pub ends: (String, String),
}

/// An area; `None` where there never was any.
pub fn timeline(chart: &Timeline<'_>) -> Option<String> {
    let most = chart.steps.iter().copied().fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let (width, height) = SIZE;
    let step = width / chart.steps.len() as f64;
    let mut path = format!("M0 {height}");
    for (i, mean) in chart.steps.iter().enumerate() {
        let y = round(height - mean / most * height);
        path.push_str(&format!("V{y}H{}", round((i + 1) as f64 * step)));
    }
    path.push_str(&format!("V{height}Z"));
    let (from, to) = &chart.ends;
    Some(render(TEMPLATE, context! { words => chart.title, top => chart.top, path, from, to }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_step_fills_the_height_and_none_has_no_chart() {
        let chart = |steps: &[f64]| {
            timeline(&Timeline {
                title: "<t>".to_owned(),
                steps,
                top: "4.00 in flight".to_owned(),
                ends: ("0 ms".to_owned(), "1.00 s".to_owned()),
            })
        };
        let svg = chart(&[4.0, 1.0, 0.0, 2.0]).unwrap();
        assert!(svg.contains("M0 120V0H160V90H320V120H480V60H640V120Z"), "{svg}");
        assert!(svg.contains("&lt;t&gt;") && svg.contains("4.00 in flight"), "{svg}");
        assert!(svg.starts_with("<svg") && !svg.contains("style="), "{svg}");
        assert!(chart(&[]).is_none() && chart(&[0.0, 0.0]).is_none());
    }
}
