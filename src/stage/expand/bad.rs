//! A row that cannot be used: where it stands, what is wrong with it, what it looks like. Knows nothing of
//! formats.

use serde_json::{Map, Value};

use crate::stage::StageError;

/// Characters of a row that a message shows.
const SHOWN: usize = 120;
/// Of these, those before the column that is wrong.
const BEFORE: usize = 60;

/// Why there is no next row.
#[derive(Debug)]
pub(super) enum RowError {
    /// This row cannot be used; the next one may be fine.
    Bad(BadRow),
    /// Nothing after it can be read either.
    Fatal(StageError),
}

impl From<StageError> for RowError {
    fn from(error: StageError) -> Self {
        RowError::Fatal(error)
    }
}

/// A row that cannot be used.
#[derive(Debug)]
pub(super) struct BadRow {
    /// `file:line`, `file:line:column` or `file, row n`.
    place: String,
    message: String,
    /// Lines below the message.
    excerpt: String,
}

impl BadRow {
    /// A row that cannot be read; `text` is its line, `column` the byte that is wrong, from 1.
    pub(super) fn unread(place: String, message: String, text: &[u8], column: usize) -> Self {
        BadRow { place, message, excerpt: around(text, column) }
    }

    /// A row that was read, and does not fit.
    pub(super) fn unfit(place: &str, message: String, row: &Map<String, Value>) -> Self {
        let text = serde_json::to_string(row).expect("BUG: a row is plain data");
        BadRow { place: place.to_owned(), message, excerpt: format!("\n  | {}", start(&text)) }
    }
}

impl std::fmt::Display for BadRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}{}", self.place, self.message, self.excerpt)
    }
}

/// The start of a text in one line, without what would steer a terminal.
pub(super) fn start(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).map(harmless).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// The part of a line around a byte, and a mark below that.
fn around(text: &[u8], column: usize) -> String {
    let at = column.saturating_sub(1).min(text.len());
    // A character is up to four bytes: more than is shown need not be looked at.
    let before = String::from_utf8_lossy(&text[at.saturating_sub(4 * BEFORE)..at]).into_owned();
    let after = String::from_utf8_lossy(&text[at..text.len().min(at + 4 * SHOWN)]).into_owned();
    let skipped = before.chars().count().saturating_sub(BEFORE);
    let cut = skipped > 0 || at > 4 * BEFORE;
    let mut line: String = if cut { "…".to_owned() } else { String::new() };
    line.extend(before.chars().skip(skipped).map(harmless));
    let mark = " ".repeat(line.chars().count());
    let rest = SHOWN.saturating_sub(line.chars().count());
    line.extend(after.chars().take(rest).map(harmless));
    if after.chars().nth(rest).is_some() {
        line.push('…');
    }
    format!("\n  | {}\n  | {mark}^", line.trim_end())
}

fn harmless(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_marks_the_column_and_is_never_long() {
        let bad = |text: &[u8], column| {
            BadRow::unread("f:1:1".into(), "no".into(), text, column).to_string()
        };
        assert_eq!(bad(b"{oops}", 2), "f:1:1: no\n  | {oops}\n  |  ^");
        assert_eq!(bad(b"a\x1b[31mb", 3), "f:1:1: no\n  | a [31mb\n  |   ^");
        let long = "ä".repeat(5000);
        let text = bad(long.as_bytes(), 4001);
        assert!(text.chars().count() < 300, "{text}");
        assert_eq!(bad(b"", 7), "f:1:1: no\n  | \n  | ^");
        assert!(bad(&[0xff, 0xfe, b'x'], 3).contains("\u{fffd}\u{fffd}x"));
    }
}
