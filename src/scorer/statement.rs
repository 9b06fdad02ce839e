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
/// - the number before which there are no words, whatever else is said of it: `5 dollars for 3 bolts`, `7 is 3 more
///   than 4`;
/// - behind words the last one: `After 3 days, she has 12`.
///
/// Several numbers in brackets are one answer: `(2,3)` gives `(2, 3)`.
pub(super) fn number(raw: &str) -> Option<String> {
    let text = Text::of_marked(raw);
    let first = text.next(0)?;
    let is_front = text.is_front(&first);
    if is_front && let Some(list) = text.list(&first) {
        return Some(list);
    }
    let is_whole = is_front && !text.is_part(first.end);
    let end = text.statement_end(first.end, is_whole);
    // A number that is there already is no calculation that a word could give the result of.
    let joins = |i: &usize| !is_whole || text.at(*i) == Some('=');
    let places = (first.end..end).filter(joins);
    let joined: Vec<_> = places.filter_map(|i| text.joined(i, end)).collect();
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
        let is_whole = !text.follows_letter(&found) && !text.is_part(found.end);
        match found.value {
            Some(value) if is_whole => whole = Some(value),
            value => any = value.or(any),
        }
    }
    whole.or(any).as_ref().map(plain)
}

/// The numbers of a target that are its answer only together: `5 feet 6 inches`, `3:30`, `(2, 3)`. Empty where it is one
/// number, or a calculation that has one result.
pub(super) fn together(target: &str) -> Vec<String> {
    let text = Text::of_marked(target);
    let Some(first) = text.next(0) else { return Vec::new() };
    let end = text.statement_end(first.end, false);
    let has_result =
        (first.end..end).any(|i| text.joined(i, end).is_some() && text.is_calculated(i));
    let values = text.own_values(0, end);
    if has_result || values.len() < 2 { Vec::new() } else { values }
}

/// The `n` numbers that are stated in a text that is marked as the answer; more or fewer where it does not state so
/// many.
pub(super) fn stated(raw: &str, n: usize) -> Vec<String> {
    let text = Text::of_marked(raw);
    let Some(first) = text.next(0) else { return Vec::new() };
    let all = text.own_values(0, text.statement_end(first.end, false));
    if text.is_front(&first) && all.len() != n {
        return text.own_values(0, text.statement_end(first.end, true));
    }
    all[all.len().saturating_sub(n)..].to_vec()
}

/// Whether a text works its answer out on the way: behind the result of a calculation further numbers follow.
pub(super) fn goes_on(target: &str) -> bool {
    let text = Text::of_marked(target);
    let end = text.statement_end(0, false);
    let results = (0..end).filter(|i| text.at(*i) == Some('=') && text.is_calculated(*i));
    let last = results.rev().find_map(|i| text.joined(i, end));
    let last = last.filter(|(_, result)| !text.is_part(result.end));
    last.is_some_and(|(_, result)| !text.own_values(result.end, end).is_empty())
}

impl Text {
    /// Whether no words come before a number.
    fn is_front(&self, first: &Found) -> bool {
        !self.chars[..first.start].iter().any(|c| c.is_alphanumeric())
    }

    /// Whether there is a number before `i`, in the same part of a list: `x = 5, y = 3` calculates nothing.
    fn is_calculated(&self, i: usize) -> bool {
        let part = (0..i).rev().take_while(|at| self.at(*at) != Some(','));
        part.into_iter().any(|at| self.is_digit(at))
    }

    /// Where the statement ends that holds the answer. One that is whole already ends at a comma, a colon and a dash,
    /// too.
    fn statement_end(&self, from: usize, is_whole: bool) -> usize {
        let ends = |i: &usize| match self.at(*i) {
            Some('(' | '[' | ';' | '\n') => true,
            Some('.') => self.at(i + 1).is_some_and(char::is_whitespace),
            Some(',' | ':' | '–' | '—') => {
                is_whole && self.at(i + 1).is_some_and(char::is_whitespace)
            }
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
        if self.at(end) == Some('–') && self.is_digit(end + 1) {
            return true;
        }
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
        check("5–10 days", Some("10"));
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
        check("12: there are 3 rows of 4", "12");
        check("18 eggs and each is $2", "18");
        check("18 – she has 3 boxes and there are 6 in each", "18");
        check("18 – 9 eggs * $2 = $18 and 2 are left", "18");
        check("40 students of whom 24 are 12 years old", "40");
        check("7 which is 3 greater than 4", "7");
        check("72 is 6 dozen", "72");
        check("1/4 is about 0.3", "0.25");
        check("3 apples - 1 apple = 2 apples", "2");
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
