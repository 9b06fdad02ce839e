//! Where workflows stand in a matrix, by their names. Knows nothing of what they came to.

use super::Cell;

/// Names of workflows without what all have in common, and their place in the matrix.
pub(super) struct Names {
    /// By workflow.
    pub(super) short: Vec<String>,
    /// Axes with more than one value, in the order of names: axis, its values in the order of the report.
    pub(super) axes: Vec<(String, Vec<String>)>,
    /// By workflow: its value on each of these axes.
    pub(super) places: Vec<Vec<String>>,
}

impl Names {
    pub(super) fn of(cells: &[Cell]) -> Names {
        let whole = || cells.iter().map(|cell| cell.name.clone()).collect();
        let unknown = || Names { short: whole(), axes: Vec::new(), places: Vec::new() };
        let parts: Option<Vec<_>> = cells.iter().map(|cell| matrix_values(&cell.name)).collect();
        let Some(parts) = parts else { return unknown() };
        let Some((stage, first)) = parts.first() else { return unknown() };
        let axes: Vec<&str> = first.iter().map(|(axis, _)| *axis).collect();
        let alike = |(name, values): &(&str, Vec<(&str, &str)>)| {
            name == stage && values.iter().map(|(axis, _)| *axis).eq(axes.iter().copied())
        };
        if !parts.iter().all(alike) {
            return unknown();
        }
        let values_of = |i: usize| {
            let mut values: Vec<String> = Vec::new();
            for (_, cell) in &parts {
                if !values.iter().any(|value| value == cell[i].1) {
                    values.push(cell[i].1.to_owned());
                }
            }
            values
        };
        let varied: Vec<usize> = (0..axes.len()).filter(|i| values_of(*i).len() > 1).collect();
        let places: Vec<Vec<String>> = parts
            .iter()
            .map(|(_, values)| varied.iter().map(|i| values[*i].1.to_owned()).collect())
            .collect();
        if varied.is_empty() {
            return unknown();
        }
        Names {
            short: places.iter().map(|place| place.join(" · ")).collect(),
            axes: varied.iter().map(|i| (axes[*i].to_owned(), values_of(*i))).collect(),
            places,
        }
    }
}

/// The stage of `ask[method=cot,model=a]` and its values by axis; `None` of a name without a matrix. A comma begins
/// another axis only before a word and `=`, and outside brackets where these are closed: values may hold both.
fn matrix_values(name: &str) -> Option<(&str, Vec<(&str, &str)>)> {
    let (stage, rest) = name.split_once('[')?;
    let inner = rest.strip_suffix(']')?;
    let count = |c: char| inner.matches(c).count();
    let closed = count('[') == count(']');
    let is_axis = |text: &str| {
        let word = text.split_once('=').map(|(word, _)| word);
        let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        word.is_some_and(|word| !word.is_empty() && word.chars().all(plain))
    };
    let mut starts = vec![0];
    let mut depth = 0_i32;
    for (i, c) in inner.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            ',' if (depth == 0 || !closed) && is_axis(&inner[i + 1..]) => starts.push(i + 1),
            _ => {}
        }
    }
    let ends = starts.iter().skip(1).map(|start| start - 1).chain([inner.len()]);
    let parts = starts.iter().zip(ends).map(|(start, end)| inner[*start..end].split_once('='));
    Some((stage, parts.collect::<Option<Vec<_>>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_where_a_cell_is_in_its_matrix() {
        let check = |name: &str, want: Option<(&str, &[(&str, &str)])>| {
            let got = matrix_values(name);
            assert_eq!(
                got.as_ref().map(|(stage, values)| (*stage, values.as_slice())),
                want,
                "{name}"
            );
        };
        check("ask", None);
        check("ask[method=cot]", Some(("ask", &[("method", "cot")])));
        check(
            "ask[engine=e[model=a,size=2],method=cot]",
            Some(("ask", &[("engine", "e[model=a,size=2]"), ("method", "cot")])),
        );
        check("ask[p=a, b,q=1]", Some(("ask", &[("p", "a, b"), ("q", "1")])));
        check("ask[what]", None);
    }
}
