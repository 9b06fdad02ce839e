//! Text for a terminal: what models, servers and data say must not steer it. Knows nothing of what is said.

/// Longest time that is told in seconds.
const SECONDS_MAX: f64 = 120.0;

/// A text with every character made visible that a terminal would obey: escape sequences could hide lines, set
/// the title or paste commands, and marks of direction show a text in another order than it has. Line ends and
/// tabs stay.
pub(super) fn visible(text: &str) -> String {
    text.replace("\r\n", "\n").chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '\n' | '\t' => out.push(c),
            // Each has a picture of its own.
            '\0'..='\x1f' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('?')),
            '\x7f' => out.push('␡'),
            _ if steers(c) => out.extend(c.escape_unicode()),
            _ => out.push(c),
        }
        out
    })
}

/// The same in one line.
pub(super) fn visible_line(text: &str) -> String {
    visible(text).replace('\n', "␊").replace('\t', "␉")
}

/// JSON whose strings hold nothing that a terminal would obey: what JSON itself leaves as it is gets escaped.
pub(super) fn visible_json(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
        if c == '\x7f' || steers(c) {
            // All of them have four digits.
            out.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            out.push(c);
        }
        out
    })
}

/// The second set of control characters, and marks of direction.
fn steers(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Rows under each other, as wide as their widest entry; the last column as it is.
pub(super) fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| {
        rows.iter().filter_map(|row| row.get(i)).map(|entry| entry.chars().count()).max()
    };
    let widths: Vec<usize> = (0..count).map(|i| width(i).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (entry, width) in row.iter().zip(&widths) {
            line.push_str(entry);
            line.extend(std::iter::repeat_n(' ', width + 2 - entry.chars().count()));
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// How long something took.
pub(super) fn duration(ms: f64) -> String {
    let seconds = ms / 1000.0;
    if seconds < 1.0 {
        return format!("{ms:.0} ms");
    }
    if seconds < SECONDS_MAX {
        return format!("{seconds:.1} s");
    }
    let minutes = (seconds / 60.0) as u64;
    match minutes {
        0..120 => format!("{minutes} min {:02} s", seconds as u64 % 60),
        _ => format!("{} h {:02} min", minutes / 60, minutes % 60),
    }
}

/// A moment in UTC, to the second.
pub(super) fn moment(unix_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_comes_through() {
        assert_eq!(visible("a\x1b[31mb\x07\n\tc"), "a␛[31mb␇\n\tc");
        assert_eq!(visible("x\u{9b}2Jy\u{202e}z\x7f"), "x\\u{9b}2Jy\\u{202e}z␡");
        assert_eq!(visible("1\r\n2\r3"), "1\n2␍3");
        assert_eq!(visible_line("a\nb"), "a␊b");
        let json = visible_json("{\"a\":\"\u{9b}2J \\u001b ü\"}");
        assert_eq!(json, "{\"a\":\"\\u009b2J \\u001b ü\"}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).unwrap()["a"],
            "\u{9b}2J \u{1b} ü"
        );
    }

    #[test]
    fn times_are_told_as_people_say_them() {
        assert_eq!(duration(12.4), "12 ms");
        assert_eq!(duration(3300.0), "3.3 s");
        assert_eq!(duration(130_000.0), "2 min 10 s");
        assert_eq!(duration(7_500_000.0), "2 h 05 min");
    }
}
