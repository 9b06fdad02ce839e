//! A diff as Markdown for a comment on a pull request: short enough, and with nothing in it that mentions
//! somebody, links anywhere or starts markup because a model said so.

use std::fmt::Write;

use super::words::{self, plain};
use super::{CellDiff, Diff, Flips, State};
use crate::report::spelling::Table;

/// Most characters of it. GitHub takes 65,536.
pub const MARKDOWN_MAX: usize = 65_000;
/// Kept for what is said of blocks that had no room.
const RESERVE: usize = 400;

/// Blocks of text up to a length; what has no room is counted.
struct Page {
    text: String,
    length: usize,
    left_out: usize,
}

impl Page {
    fn add(&mut self, block: &str) {
        let length = block.chars().count() + 2;
        if self.length + length > MARKDOWN_MAX - RESERVE {
            self.left_out += 1;
            return;
        }
        self.length += length;
        self.text.push_str(block);
        self.text.push_str("\n\n");
    }
}

/// The diff as GitHub-flavoured Markdown, its metrics first and details folded.
pub fn markdown(diff: &Diff) -> String {
    let mut page = Page { text: String::new(), length: 0, left_out: 0 };
    let (a, b) = (safe(&words::side(&diff.a)), safe(&words::side(&diff.b)));
    page.add(&format!("### forge diff\n\na: {a}\n\nb: {b}"));
    for cell in &diff.cells {
        page.add(&overview(cell));
    }
    page.add(&stages(diff));
    for cell in diff.cells.iter().filter(|cell| cell.state == State::Compared) {
        for (what, flips) in
            [("right in a, not in b", &cell.lost), ("right in b, not in a", &cell.gained)]
        {
            if flips.count > 0 {
                page.add(&flipped(cell, what, flips));
            }
        }
        if let Some(table) = words::sums(cell) {
            page.add(&folded(
                &format!("{}: outcomes, cost, latency", safe(&cell.name)),
                &grid(&table),
            ));
        }
    }
    if diff.cells.iter().any(|cell| cell.state == State::Compared) {
        page.add(&format!("<sub>{} {}</sub>", words::NOTE, words::LATENCY));
    }
    if page.left_out > 0 {
        let _ = write!(
            page.text,
            "{} parts had no room here; `forge diff` shows them, and `--limit` fewer flipped rows.\n\n",
            page.left_out
        );
    }
    page.text.truncate(page.text.trim_end().len());
    page.text
}

fn overview(cell: &CellDiff) -> String {
    let mut text = format!("**{}**: {}", safe(&cell.name), words::heading(cell));
    if cell.state == State::Compared {
        let _ = write!(
            text,
            "; {} lost, {} gained, {} as right as before with another answer",
            cell.lost.count, cell.gained.count, cell.otherwise
        );
    }
    for note in &cell.notes {
        let _ = write!(text, "\n\n{}", safe(note));
    }
    if let Some(table) = words::metrics(cell) {
        let _ = write!(text, "\n\n{}", grid(&table));
    }
    text
}

fn stages(diff: &Diff) -> String {
    let mut list = String::new();
    for stage in words::changed(diff) {
        for line in words::stage(stage) {
            let _ = writeln!(list, "- {}: {}", safe(&stage.stage), safe(&line));
        }
    }
    let same = words::same(diff).unwrap_or_else(|| "no stage is the same".to_owned());
    if list.is_empty() { same } else { folded(&format!("what changed ({same})"), list.trim_end()) }
}

fn flipped(cell: &CellDiff, what: &str, flips: &Flips) -> String {
    let head = ["flow", "question", "target", "a", "b"].map(str::to_owned).to_vec();
    let row = |flip: &super::Flip| {
        vec![
            flip.flow.clone(),
            words::question(flip),
            words::targets(flip),
            words::drawn(&flip.a),
            words::drawn(&flip.b),
        ]
    };
    let table = Table { head, rows: flips.rows.iter().map(row).collect() };
    let title = format!("{}: {what}: {}", safe(&cell.name), words::shown(flips));
    // With `--limit 0` they are only counted.
    if table.rows.is_empty() { title } else { folded(&title, &grid_of_texts(&table)) }
}

fn folded(title: &str, body: &str) -> String {
    format!("<details><summary>{title}</summary>\n\n{body}\n\n</details>")
}

fn grid(table: &Table) -> String {
    lines(table, "---:", &|i, text| if i == 0 { safe(text) } else { escape(text) })
}

fn grid_of_texts(table: &Table) -> String {
    lines(table, "---", &|_, text| safe(text))
}

fn lines(table: &Table, align: &str, dress: &dyn Fn(usize, &str) -> String) -> String {
    let row = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let mut rule = vec![align.to_owned(); table.head.len()];
    rule[0] = "---".to_owned();
    let mut out = vec![row(table.head.clone()), row(rule)];
    let dressed =
        |cells: &Vec<String>| cells.iter().enumerate().map(|(i, t)| dress(i, t)).collect();
    out.extend(table.rows.iter().map(|cells| row(dressed(cells))));
    out.join("\n")
}

/// Text that others wrote. Within `code` nobody is mentioned and no number becomes a link to an issue; every
/// punctuation is an entity, which neither starts markup nor ends the element.
fn safe(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("<code>{}</code>", escape(text)) }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for c in plain(text).chars() {
        match c {
            // Neither begins anything within a line.
            ',' | '%' | '+' | '/' | ';' | '?' | '"' | '\'' | '=' | '{' | '}' => out.push(c),
            // Negative numbers and names.
            '-' => out.push(c),
            '.' if !out.ends_with(['w', 'W']) => out.push(c),
            c if c.is_ascii_punctuation() => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_says_stays_text() {
        let evil = "@team #1 [x](http://e.org) ![i](www.e.org/p.png) <img src=x> `a` | </code> **b** \u{1b}[31m\n# h";
        let got = safe(evil);
        for mark in ["@", "[", "](", "![", "http:", "www.", "<img", "`", "|", "**", "\u{1b}", "\n"]
        {
            assert!(!got.contains(mark), "`{mark}` in {got}");
        }
        let entities = got.matches("&#").count();
        assert_eq!(got.matches('#').count(), entities, "{got}");
        assert_eq!((got.matches("<code>").count(), got.matches("</code>").count()), (1, 1));
        assert!(got.contains("team") && got.contains("&#60;img src=x&#62;"), "{got}");
    }

    #[test]
    fn numbers_stay_readable() {
        assert_eq!(escape("+40.0"), "+40.0");
        assert_eq!(escape("90.0 %"), "90.0 %");
    }
}
