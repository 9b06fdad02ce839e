//! A diff for the terminal. Model output is untrusted: nothing in it reaches the terminal as a command.

use super::words::{self, plain};
use super::{CellDiff, Diff, Flips, State};
use crate::report::spelling::Table;

/// The diff as text, without colour.
pub fn text(diff: &Diff) -> String {
    let mut lines = vec![
        format!("a: {}", plain(&words::side(&diff.a))),
        format!("b: {}", plain(&words::side(&diff.b))),
    ];
    lines.push(String::new());
    let width = words::changed(diff).map(|stage| stage.stage.chars().count()).max().unwrap_or(0);
    for stage in words::changed(diff) {
        for (i, line) in words::stage(stage).iter().enumerate() {
            let name = if i == 0 { plain(&stage.stage) } else { String::new() };
            lines.push(format!("{name:width$}  {}", plain(line)));
        }
    }
    lines.extend(words::same(diff));
    for cell in &diff.cells {
        lines.push(String::new());
        lines.extend(self::cell(cell));
    }
    if diff.cells.iter().any(|cell| cell.state == State::Compared) {
        lines.extend([String::new(), words::NOTE.to_owned(), words::LATENCY.to_owned()]);
    }
    lines.join("\n")
}

fn cell(cell: &CellDiff) -> Vec<String> {
    let mut lines = vec![format!("{}: {}", plain(&cell.name), words::heading(cell))];
    lines.extend(cell.notes.iter().map(|note| format!("  {}", plain(note))));
    for table in [words::metrics(cell), words::sums(cell)].into_iter().flatten() {
        lines.extend(columns(&table).into_iter().map(|line| format!("  {line}")));
    }
    if cell.state == State::Compared {
        lines.extend(flips("right in a, not in b", &cell.lost));
        lines.extend(flips("right in b, not in a", &cell.gained));
        if cell.otherwise > 0 {
            lines.push(format!("  as right as before with another answer: {}", cell.otherwise));
        }
    }
    lines
}

fn flips(what: &str, flips: &Flips) -> Vec<String> {
    let mut lines = vec![format!("  {what}: {}", words::shown(flips))];
    for flip in &flips.rows {
        lines.push(format!("    {}  {}", plain(&flip.flow), words::question(flip)));
        lines.push(format!("      target  {}", words::targets(flip)));
        lines.push(format!("      a       {}", words::drawn(&flip.a)));
        lines.push(format!("      b       {}", words::drawn(&flip.b)));
    }
    lines
}

/// A table in columns: the first and the last to the left, numbers to the right.
fn columns(table: &Table) -> Vec<String> {
    let rows = || std::iter::once(&table.head).chain(&table.rows);
    let width = |i: usize| rows().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table.head.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let last = row.len() - 1;
        let entry = |(i, text): (usize, &String)| {
            let (text, width) = (plain(text), widths[i]);
            if i == 0 || i == last && last > 3 {
                format!("{text:width$}")
            } else {
                format!("{text:>width$}")
            }
        };
        row.iter().enumerate().map(entry).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows().map(line).collect()
}
