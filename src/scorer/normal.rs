//! The form under which two texts count as the same. Knows nothing of scorers.
//!
//! SQuAD's rules are: lower case, no punctuation, no articles, single spaces. Taken literally they make
//! 3.14 equal 314, -5 equal 5, and "J. K. Rowling" differ from "JK Rowling". So here a point or comma
//! inside a number and a sign before it are part of the number, and lone letters join into initials.
//! `&` is "and", and "nine" is 9, as people who judge answers hold them.

use num_bigint::BigInt;
use num_rational::BigRational;
use unicode_normalization::UnicodeNormalization;

/// Digits of a number, before and after the point, and of its power of ten.
const DIGITS_MAX: usize = 300;

/// Small numbers as words, and as digits (from the VQA evaluation, Antol et al. 2015). Without "one", which is
/// as often no number: "one of the four" does not say 1.
const NUMBER_WORDS: &[(&str, &str)] = &[
    ("zero", "0"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
    ("eleven", "11"),
    ("twelve", "12"),
];

/// Lower case, compatibility characters folded, punctuation to spaces, `&` to "and", small number words to
/// digits, initials joined, articles gone.
pub fn text(raw: &str) -> String {
    normal(raw, false)
}

/// The same with each possessive `'s` gone: "Crawford's career" holds "Crawford". `None` where that changes
/// nothing.
pub fn text_without_possessives(raw: &str) -> Option<String> {
    let has = |mark: &str| raw.contains(mark);
    (has("'s") || has("’s") || has("'S") || has("’S")).then(|| normal(raw, true))
}

fn normal(raw: &str, drop_possessives: bool) -> String {
    let mut words = Words::with_capacity(raw.len() + 4);
    // Of ASCII, as most answers are, both give the same, and this one needs no tables and no copy.
    if raw.is_ascii() {
        let bytes = raw.as_bytes();
        let at = |i: usize| bytes.get(i).map(|byte| char::from(byte.to_ascii_lowercase()));
        fold(bytes.len(), at, drop_possessives, &mut words);
    } else {
        let folded: Vec<char> = raw.nfkc().flat_map(char::to_lowercase).collect();
        fold(folded.len(), |i| folded.get(i).copied(), drop_possessives, &mut words);
    }
    words.finish()
}

/// Gives the characters of a text to `words`, without those that do not count.
fn fold(len: usize, at: impl Fn(usize) -> Option<char>, drop_possessives: bool, words: &mut Words) {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let mut i = 0;
    while i < len {
        let c = at(i).unwrap_or(' ');
        let before = i.checked_sub(1).and_then(&at);
        let after = at(i + 1);
        i += 1;
        match c {
            // "Rubik's" and "Rubiks" are one word.
            '\'' | '’' | '‘' | '`' => {
                let ends = !at(i + 1).is_some_and(char::is_alphanumeric);
                if drop_possessives && ends && after == Some('s') && matches!(c, '\'' | '’') {
                    i += 1;
                }
            }
            '.' if is_digit(before) && is_digit(after) => words.push('.'),
            // ".5" is "0.5".
            '.' if is_digit(after) && !before.is_some_and(char::is_alphanumeric) => {
                words.push('0');
                words.push('.');
            }
            ',' if is_digit(before) && parts_thousands(|j| at(i + j)) => {}
            '-' | '−' if is_digit(after) && is_sign(before) => words.push('-'),
            '&' => {
                words.end();
                "and".chars().for_each(|c| words.push(c));
                words.end();
            }
            c if c.is_alphanumeric() => words.push(c),
            _ => words.end(),
        }
    }
}

/// Words as they come, with one space between them.
struct Words {
    out: String,
    /// Where the last word begins.
    start: usize,
    /// Whether the last word has not ended.
    open: bool,
    /// Whether the last word is a lone letter, or several that were joined.
    initials: bool,
    /// Whether there may be an article.
    articles: bool,
}

impl Words {
    fn with_capacity(bytes: usize) -> Self {
        let out = String::with_capacity(bytes);
        Words { out, start: 0, open: false, initials: false, articles: false }
    }

    fn push(&mut self, c: char) {
        if !self.open {
            self.open = true;
            if !self.out.is_empty() {
                self.out.push(' ');
            }
            self.start = self.out.len();
        }
        self.out.push(c);
    }

    fn end(&mut self) {
        if !self.open {
            return;
        }
        self.open = false;
        let word = &self.out[self.start..];
        let mut chars = word.chars();
        let letter = chars.next().is_some_and(char::is_alphabetic) && chars.next().is_none();
        self.articles |= is_article(word);
        // The shortest number word has three letters and the longest six.
        if (3..=6).contains(&word.len())
            && let Some((_, digits)) = NUMBER_WORDS.iter().find(|(name, _)| *name == word)
        {
            self.out.truncate(self.start);
            self.out.push_str(digits);
        }
        if letter && self.initials {
            self.out.remove(self.start - 1);
        }
        self.initials = letter;
    }

    fn finish(mut self) -> String {
        self.end();
        // Of an answer that is nothing else, as in a choice of "A", the article is the answer.
        if !self.articles || self.out.split(' ').all(is_article) {
            return self.out;
        }
        let mut kept = String::with_capacity(self.out.len());
        for word in self.out.split(' ').filter(|word| !is_article(word)) {
            if !kept.is_empty() {
                kept.push(' ');
            }
            kept.push_str(word);
        }
        kept
    }
}

fn is_article(word: &str) -> bool {
    matches!(word, "a" | "an" | "the")
}

/// Whether what follows a comma is exactly three digits, as in 2,161,000.
fn parts_thousands(after_comma: impl Fn(usize) -> Option<char>) -> bool {
    let is_digit = |i: usize| after_comma(i).is_some_and(|c| c.is_ascii_digit());
    (0..3).all(is_digit) && !is_digit(3)
}

/// Whether a dash is a sign: nothing, space or an opening mark comes before it.
fn is_sign(before: Option<char>) -> bool {
    before.is_none_or(|c| c.is_whitespace() || "([{$€£=:*\"".contains(c))
}

/// The last number in a text as a plain decimal: `$1,234.50` gives `1234.5`. `None` without a number.
pub fn last_number(raw: &str) -> Option<String> {
    let chars: Vec<char> = raw.nfkc().collect();
    let mut last = None;
    let mut i = 0;
    while i < chars.len() {
        let point_first = chars[i] == '.' && chars.get(i + 1).is_some_and(char::is_ascii_digit);
        if !chars[i].is_ascii_digit() && !point_first {
            i += 1;
            continue;
        }
        let start = i;
        let mut number = String::new();
        let mut has_point = false;
        while let Some(&c) = chars.get(i) {
            let digit_next = chars.get(i + 1).is_some_and(char::is_ascii_digit);
            match c {
                '0'..='9' => number.push(c),
                '.' if digit_next && !has_point => {
                    has_point = true;
                    number.push('.');
                }
                ',' if !has_point && parts_thousands(|j| chars.get(i + 1 + j).copied()) => {}
                _ => break,
            }
            i += 1;
        }
        let before = |n: usize| start.checked_sub(n + 1).map(|j| chars[j]);
        let dash = start.checked_sub(1).map(|j| chars[j]).filter(|c| matches!(c, '-' | '−'));
        let currency = start.checked_sub(2).map(|j| chars[j]);
        let negative = match (dash, start.checked_sub(1).map(|j| chars[j])) {
            (Some(_), _) => is_sign(before(1)),
            // -$5 is minus five dollars.
            (None, Some('$' | '€' | '£')) => {
                matches!(currency, Some('-' | '−')) && is_sign(before(2))
            }
            _ => false,
        };
        let exponent = take_exponent(&chars, &mut i);
        let is_date = start > 0 && chars[start - 1] == '/';
        let denominator = if is_date { None } else { take_denominator(&chars, &mut i) };
        last = value(&number, exponent, denominator.as_deref(), negative).or(last);
    }
    last.map(|value| plain(&value))
}

/// `e3` or `E-3` right after a number.
fn take_exponent(chars: &[char], i: &mut usize) -> i32 {
    let sign = usize::from(matches!(chars.get(*i + 1), Some('+' | '-')));
    let digits: String =
        chars.iter().skip(*i + 1 + sign).take_while(|c| c.is_ascii_digit()).collect();
    if !matches!(chars.get(*i), Some('e' | 'E')) || digits.is_empty() {
        return 0;
    }
    let minus = chars[*i + 1] == '-';
    *i += 1 + sign + digits.len();
    let exponent = digits.parse().unwrap_or(i32::MAX);
    if minus { -exponent } else { exponent }
}

/// `/3` right after a number; not the day of 1/3/2020.
fn take_denominator(chars: &[char], i: &mut usize) -> Option<String> {
    let digits: String = chars.iter().skip(*i + 1).take_while(|c| c.is_ascii_digit()).collect();
    let after = chars.get(*i + 1 + digits.len());
    if chars.get(*i) != Some(&'/') || digits.is_empty() || matches!(after, Some('/')) {
        return None;
    }
    *i += 1 + digits.len();
    Some(digits)
}

/// The exact value; `None` of one that no question asks for: a zero denominator, hundreds of digits.
fn value(
    number: &str,
    exponent: i32,
    denominator: Option<&str>,
    negative: bool,
) -> Option<BigRational> {
    if number.len() > DIGITS_MAX || exponent.unsigned_abs() as usize > DIGITS_MAX {
        return None;
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let numerator: BigInt = format!("{whole}{fraction}").parse().ok()?;
    let denominator: BigInt = denominator.unwrap_or("1").parse().ok()?;
    if denominator == BigInt::from(0) {
        return None;
    }
    let value = BigRational::new(numerator, denominator);
    let value = value * ten().pow(exponent - i32::try_from(fraction.len()).ok()?);
    Some(if negative { -value } else { value })
}

fn ten() -> BigRational {
    BigRational::from_integer(BigInt::from(10))
}

/// Plain decimal text, or a reduced fraction where the decimals do not end.
fn plain(value: &BigRational) -> String {
    let mut places = 0_usize;
    let mut scaled = value.clone();
    while !scaled.is_integer() && places < DIGITS_MAX {
        scaled *= ten();
        places += 1;
    }
    if !scaled.is_integer() {
        return value.to_string();
    }
    let digits = scaled.to_integer().to_string();
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits.as_str()),
    };
    if places == 0 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = places + 1);
    let (whole, fraction) = digits.split_at(digits.len() - places);
    format!("{sign}{whole}.{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        let check = |raw: &str, want: &str| assert_eq!(text(raw), want, "{raw:?}");
        check("The answer, is: \"Canberra\"!", "answer is canberra");
        check("J.K. Rowling", "jk rowling");
        check("Washington, D.C.", "washington dc");
        check("1,5 and 2,161,000", "1 5 and 2161000");
        check("x = -.5", "x 0.5");
        check("minus -5, range 3-5", "minus -5 range 3 5");
        check("ＡＢＣ　１２", "abc 12");
        check("Rubik’s cube", "rubiks cube");
        check("A", "a");
        check("the", "the");
        check("São Tomé", "são tomé");
        check("Science & Nature", "science and nature");
        check("nine years, one day", "9 years one day");
        check("J. R. R. Tolkien and a friend", "jrr tolkien and friend");
        check("", "");
        check("...", "");
    }

    #[test]
    fn possessives() {
        let check = |raw: &str, want: Option<&str>| {
            assert_eq!(text_without_possessives(raw).as_deref(), want, "{raw:?}");
        };
        check("Crawford's career", Some("crawford career"));
        check("Lloyd’s of London", Some("lloyd of london"));
        check("it isn'tso", None);
        check("'sup", Some("sup"));
    }

    #[test]
    fn ascii_has_the_form_that_the_tables_give() {
        let texts = [
            "The J. K. Rowling's 2,161,000 & -.5 (a) an THE 3-5 v1.2",
            "A. N. Wilson; the a",
            "=-7 x'S two,345 7,1234 ,123 1,234,567.50",
        ];
        for raw in texts {
            let folded: Vec<char> = raw.nfkc().flat_map(char::to_lowercase).collect();
            let mut words = Words::with_capacity(0);
            fold(folded.len(), |i| folded.get(i).copied(), false, &mut words);
            assert_eq!(text(raw), words.finish(), "{raw:?}");
        }
    }

    #[test]
    fn last_numbers() {
        let check = |raw: &str, want: Option<&str>| {
            assert_eq!(last_number(raw).as_deref(), want, "{raw:?}");
        };
        check("costs -$5.00", Some("-5"));
        check("007", Some("7"));
        check("-0", Some("0"));
        check(".50", Some("0.5"));
        check("3.14.", Some("3.14"));
        check("v1.2.3", Some("0.3"));
        check("1/3 of it", Some("1/3"));
        check("on 1/3/2020", Some("2020"));
        check("2.50e1 m", Some("25"));
        check("5/0 or so", None);
        check("no number", None);
    }
}
