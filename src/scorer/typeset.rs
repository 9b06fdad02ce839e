//! What LaTeX and typesetters put into numbers and around answers, as plain text. Knows nothing of values.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;

/// Spaces that keep the groups of a number together: no-break, figure, thin, and narrow no-break.
const GLUE: [char; 4] = ['\u{a0}', '\u{2007}', '\u{2009}', '\u{202f}'];
/// What else stands between the groups of a number, as LaTeX has it.
const SEPARATORS: [&str; 5] = ["{,}", "\\,", "\\;", "\\:", "\\ "];
/// Commands of which the argument is the text.
const WRAPPERS: [&str; 6] =
    ["\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{", "\\mbox{", "\\boxed{"];
const FRACTIONS: [&str; 3] = ["\\frac", "\\dfrac", "\\tfrac"];

/// The text with `70{,}000`, `70\,000` and 70 000 held together by spaces that do not break as `70,000`,
/// `\frac{1}{2}` and ½ as `1/2`, and without `\text{…}`, `\$` and `\(` around words. Borrowed where there is nothing
/// of that.
///
/// What stands between a digit and a digit becomes a comma, whether or not it parts thousands: `1\,5` is no more one
/// number than `1,5`.
pub(super) fn plain(raw: &str) -> Cow<'_, str> {
    if !is_typeset(raw) {
        return Cow::Borrowed(raw);
    }
    let mut out = String::with_capacity(raw.len() + 8);
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        let after_digit = out.ends_with(|c: char| c.is_ascii_digit());
        if let Some(after) = separated(rest) {
            let is_between = after_digit && after.starts_with(|c: char| c.is_ascii_digit());
            out.push(if is_between { ',' } else { ' ' });
            rest = after;
            continue;
        }
        if let Some((fraction, after)) = fraction(rest).or_else(|| vulgar(rest, c)) {
            // 2½ is two and a half.
            if after_digit {
                out.push(' ');
            }
            out.push_str(&fraction);
            rest = after;
            continue;
        }
        let (kept, len) = match c {
            '\\' => command(rest),
            '\u{2044}' => (Some('/'), c.len_utf8()),
            c => (Some(c), c.len_utf8()),
        };
        out.extend(kept);
        rest = &rest[len..];
    }
    Cow::Owned(out)
}

fn is_typeset(raw: &str) -> bool {
    let marks = |c: char| GLUE.contains(&c) || c == '\u{2044}' || is_vulgar(c);
    memchr::memchr(b'\\', raw.as_bytes()).is_some()
        || raw.contains("{,}")
        || (!raw.is_ascii() && raw.contains(marks))
}

/// What follows a separator at the begin of a text.
fn separated(text: &str) -> Option<&str> {
    let mark = SEPARATORS.iter().find_map(|mark| text.strip_prefix(mark));
    mark.or_else(|| text.strip_prefix(GLUE))
}

/// A fraction of two arguments without commands in them, and what follows it.
fn fraction(text: &str) -> Option<(String, &str)> {
    let rest = FRACTIONS.iter().find_map(|name| text.strip_prefix(name))?;
    let (above, rest) = argument(rest)?;
    let (below, rest) = argument(rest)?;
    let part = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_number = digits.chars().all(|c| c.is_ascii_digit() || ".,".contains(c));
        let is_one = is_number || digits.chars().all(char::is_alphanumeric);
        if is_one && !digits.is_empty() { text.to_owned() } else { format!("({text})") }
    };
    Some((format!("{}/{}", part(above), part(below)), rest))
}

/// A group in braces without further ones, or a lone digit.
fn argument(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let Some(inner) = text.strip_prefix('{') else {
        return text.starts_with(|c: char| c.is_ascii_digit()).then(|| text.split_at(1));
    };
    let end = inner.find(['{', '}', '\\'])?;
    inner[end..].starts_with('}').then(|| (inner[..end].trim(), &inner[end + 1..]))
}

/// ½ and its like, of one character.
fn vulgar(text: &str, c: char) -> Option<(String, &str)> {
    let fraction = || c.nfkc().map(|c| if c == '\u{2044}' { '/' } else { c }).collect();
    is_vulgar(c).then(|| (fraction(), &text[c.len_utf8()..]))
}

fn is_vulgar(c: char) -> bool {
    matches!(c, '¼'..='¾' | '⅐'..='⅞' | '↉')
}

/// What stands for a command at the begin of a text, and its bytes. Of an unknown one the backslash goes alone.
fn command(text: &str) -> (Option<char>, usize) {
    if let Some(name) = WRAPPERS.iter().find(|name| text.starts_with(**name)) {
        return (Some('{'), name.len());
    }
    match text[1..].chars().next() {
        Some(c @ ('$' | '%' | '#' | '&' | '_' | '{' | '}')) => (Some(c), 2),
        Some('(' | ')' | '[' | ']') => (Some(' '), 2),
        // A space of less than no width: `10,\!000`.
        Some('!') => (None, 2),
        _ => (Some('\\'), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_texts() {
        let check = |raw: &str, want: &str| assert_eq!(plain(raw), want, "{raw:?}");
        for raw in
            ["70{,}000", "70\\,000", "70\u{202f}000", "70\u{a0}000", "70\u{2009}000", "70,\\!000"]
        {
            check(raw, "70,000");
        }
        check("70 000", "70 000");
        check("1\\,5 m\\,s", "1,5 m s");
        check("\\frac{1}{2}", "1/2");
        check("-\\dfrac{11}{24}", "-11/24");
        check("2\\frac12", "2 1/2");
        check("\\frac{-1}{2}", "-1/2");
        check("\\frac{3.5}{2}", "3.5/2");
        check("\\frac{7,000}{-3}", "7,000/-3");
        check("\\frac{a+b}{2}", "(a+b)/2");
        check("\\frac{\\pi}{2}", "\\frac{\\pi}{2}");
        check("\\frac{1}", "\\frac{1}");
        check("½ or 2¾", "1/2 or 2 3/4");
        check("1\u{2044}2", "1/2");
        check("\\(18\\text{ dollars}\\)", " 18{ dollars} ");
        check("\\$18 \\& 5\\%", "$18 & 5%");
        check("C:\\new", "C:\\new");
        check("\\", "\\");
        assert!(matches!(plain("Ärger {a, b}"), Cow::Borrowed(_)));
    }
}
