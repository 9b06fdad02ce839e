//! The number that a marked answer states. Knows nothing of how numbers are written.

use super::number::{Found, Text, last, plain};

/// Words between a calculation and its result.
const JOINTS: [&str; 5] = ["is", "are", "equals", "makes", "gives"];
/// Words that may stand between those and the result.
const HEDGES: [&str; 5] = ["about", "approximately", "exactly", "only", "roughly"];
/// Words after a number that is a part of what it is calculated with: `20% of 90`.
const PARTS: [&str; 7] = ["of", "times", "plus", "minus", "more", "less", "fewer"];
/// Words behind which an answer is explained.
const REASONS: [&str; 2] = ["because", "since"];

/// The number in a text that is marked as the answer. What is in brackets, in a further sentence or behind "because"
/// explains it (`18 (9*2)`), and does not count. Of the rest:
///
/// - of a calculation the result, which `=` or a word such as "is" comes before: `9 * 2 = 18`, `20% of 90 is 18`;
/// - the number before which there are no words, up to a comma: `5 dollars for 3 bolts`;
/// - behind words the last one: `After 3 days, she has 12`.
///
/// Several numbers in brackets are one answer: `(2,3)` gives `(2, 3)`.
pub(super) fn number(raw: &str) -> Option<String> {
    let text = Text::of_marked(raw);
    let first = text.next(0)?;
    let is_front = !text.chars[..first.start].iter().any(|c| c.is_alphanumeric());
    if is_front && let Some(list) = text.list(&first) {
        return Some(list);
    }
    let is_whole = is_front && !text.is_part(first.end);
    let end = text.statement_end(first.end, is_whole);
    let joined: Vec<_> = (first.end..end).filter_map(|i| text.joined(i, end)).collect();
    let is_result = |(_, found): &&(usize, Found)| !text.is_part(found.end);
    if let Some((_, result)) = joined.iter().rev().find(is_result) {
        return result.value.as_ref().map(plain);
    }
    if is_front {
        // A range, or a calculation without its result, says no more than any other text.
        return match text.is_operand(first.end) {
            true => last(raw),
            false => first.value.as_ref().map(plain),
        };
    }
    let end = joined.first().map_or(end, |(at, _)| *at);
    let (mut any, mut whole) = (None, None);
    for found in text.all(0, end) {
        // The 2 of m2 is none of its own.
        let follows_letter = text.before(found.start, 1).is_some_and(char::is_alphabetic);
        let Some(value) = found.value else { continue };
        if !follows_letter && !text.is_part(found.end) {
            whole = Some(value);
        } else {
            any = Some(value);
        }
    }
    whole.or(any).as_ref().map(plain)
}

impl Text {
    /// Where the statement ends that holds the answer. One that is whole already ends at a comma too.
    fn statement_end(&self, from: usize, is_whole: bool) -> usize {
        let ends = |i: &usize| match self.at(*i) {
            Some('(' | '[' | ';' | '\n') => true,
            Some('.') => self.at(i + 1).is_some_and(char::is_whitespace),
            Some(',') => is_whole && self.at(i + 1).is_some_and(char::is_whitespace),
            _ => self.word(*i, &REASONS).is_some(),
        };
        (from..self.chars.len()).find(ends).unwrap_or(self.chars.len())
    }

    /// The end of one of these words, where it stands there.
    fn word(&self, i: usize, words: &[&str]) -> Option<usize> {
        let is_in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        if !is_in_word(self.at(i)) || is_in_word(self.before(i, 1)) {
            return None;
        }
        let end_of = |word: &&str| {
            let end = i + word.len();
            let chars = self.chars.get(i..end)?;
            let is_same = chars.iter().zip(word.chars()).all(|(a, b)| a.to_ascii_lowercase() == b);
            (is_same && !is_in_word(self.at(end))).then_some(end)
        };
        words.iter().find_map(end_of)
    }

    /// The number that `=` or a word joins to what is before, where that stands at `i`: next after a sign, and
    /// right after a word.
    fn joined(&self, i: usize, end: usize) -> Option<(usize, Found)> {
        let sign = (self.at(i) == Some('=')).then_some(i + 1);
        let word = || {
            let from = self.word(i, &JOINTS)?;
            Some(self.word(self.after_spaces(from), &HEDGES).unwrap_or(from))
        };
        let from = sign.or_else(word)?;
        let stops = |i: &usize| match self.at(*i) {
            Some('=') => true,
            Some(c) if sign.is_none() => c.is_alphanumeric(),
            Some(c) => c.is_ascii_digit(),
            None => true,
        };
        // A further sign is asked for itself.
        let next = (from..end).find(stops).filter(|i| self.is_digit(*i))?;
        let from = next - usize::from(self.before(next, 1) == Some('.'));
        self.next(from).filter(|found| found.end <= end).map(|found| (i, found))
    }

    /// `(2, 3)`, of which the first number is known.
    fn list(&self, first: &Found) -> Option<String> {
        let is_filler = |c: char| " -−+$€£".contains(c);
        let open = self.chars[..first.start].iter().rev().find(|c| !is_filler(**c))?;
        if !"([{".contains(*open) {
            return None;
        }
        let mut values = vec![plain(first.value.as_ref()?)];
        let mut at = self.after_spaces(first.end);
        while self.at(at) == Some(',') {
            let found = self.next(at + 1)?;
            if !self.chars[at + 1..found.start].iter().all(|c| is_filler(*c)) {
                return None;
            }
            values.push(plain(found.value.as_ref()?));
            at = self.after_spaces(found.end);
        }
        let is_closed = matches!(self.at(at), Some(')' | ']' | '}'));
        (is_closed && values.len() > 1).then(|| format!("({})", values.join(", ")))
    }

    /// Whether a number that ends there is one of several that make another: `20` in `20% of 90`.
    fn is_part(&self, end: usize) -> bool {
        let end = self.after_spaces(end);
        let percent = match self.at(end) {
            Some('%') => Some(end + 1),
            _ => self.word(end, &["percent"]),
        };
        let word = percent.map_or(end, |end| self.after_spaces(end));
        self.is_operand(end) || self.word(word, &PARTS).is_some()
    }

    /// Whether a number that ends there is calculated with: `9` in `9 * 2`.
    fn is_operand(&self, end: usize) -> bool {
        let at = self.after_spaces(end);
        if !matches!(self.at(at), Some('+' | '-' | '−' | '*' | '×' | '·' | '÷' | '/' | 'x')) {
            return false;
        }
        let next = self.after_spaces(at + 1);
        let next = next + usize::from(matches!(self.at(next), Some('$' | '€' | '£' | '(')));
        self.is_digit(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_stands_at_the_front() {
        let check = |raw: &str, want: Option<&str>| {
            assert_eq!(number(raw).as_deref(), want, "{raw:?}");
        };
        check("18 (9*2)", Some("18"));
        check("$18. She sells 9 eggs at $2", Some("18"));
        check("18, because 16 - 3 - 4 = 9", Some("18"));
        check("5 m^2", Some("5"));
        check("5 dollars for 3 bolts", Some("5"));
        check("Janet makes -$18 (9 * 2)", Some("-18"));
        check("9 * 2 = 18", Some("18"));
        check("9 * 2 = $18 (16 - 3 - 4 = 9)", Some("18"));
        check("3 + 4 + 2 = 7 + 2 = 9", Some("9"));
        check("18 = 9 * 2", Some("18"));
        check("3 apples + 4 pears = 7 fruits", Some("7"));
        check("x = 5", Some("5"));
        check("f(3) = 7", Some("7"));
        check("70 000 (7 * 10 000)", Some("70000"));
        check("5-10 days", Some("10"));
        check("≈ **-5** degrees", Some("-5"));
        check("no number", None);
    }

    #[test]
    fn what_is_marked_may_be_a_statement() {
        let check = |raw: &str, want: &str| {
            assert_eq!(number(raw).as_deref(), Some(want), "{raw:?}");
        };
        check("20% of 90 is 18", "18");
        check("20\\% of 90 is $18 (0.2 * 90)", "18");
        check("20% of 90, which is about 18, because 90 / 5 = 18", "18");
        check("20% of 90", "20");
        check("Half of 36 is 18.", "18");
        check("Half of 36 is 18 for 2 days", "18");
        check("5 plus 3 makes 8", "8");
        check("8 is 5 plus 3", "8");
        check("18 is 20% of 90", "18");
        check("18 is the price of 3", "18");
        check("that each of the 3 friends gets 5 apples", "5");
        check("After 3 days, she has 12", "12");
        check("After 3 days she has 12 (of 40). That is 30%", "12");
        check("She makes 18 because she sells 9 eggs", "18");
        check("She has 18 eggs, 3 of them red", "18");
        check("She makes 18 = 9 * 2", "18");
        check("The total is 18, which is 2 more than 16", "18");
        check("The area is 5 m2", "5");
        check("room m2", "2");
    }

    #[test]
    fn numbers_in_brackets_are_one_answer() {
        let check = |raw: &str, want: &str| {
            assert_eq!(number(raw).as_deref(), Some(want), "{raw:?}");
        };
        check("(2,3)", "(2, 3)");
        check("\\((2, -3.0)\\)", "(2, -3)");
        check("[-1/2, $4, 5] m", "(-0.5, 4, 5)");
        check("(2,300)", "2300");
        check("(18, or 9 * 2)", "18");
        check("(18)", "18");
        check("18 (2, 3)", "18");
    }
}
