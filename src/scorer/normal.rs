//! The form under which two texts count as the same. Knows nothing of scorers.
//!
//! SQuAD's rules are: lower case, no punctuation, no articles, single spaces. Taken literally they make
//! 3.14 equal 314, -5 equal 5, and "J. K. Rowling" differ from "JK Rowling". So here a point or comma
//! inside a number and a sign before it are part of the number, and lone letters join into initials. Groups of thousands
//! join however they are typeset, but for a plain space: `12 345` may be a list, and words are counted here.
//! `&` is "and", and "nine" is 9, as people who judge answers hold them.

use unicode_normalization::UnicodeNormalization;

use super::number::is_sign;
use super::typeset;

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
    let raw = &*typeset::plain(raw);
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
            ',' if parts_thousands(&at, i - 1) => {}
            '-' | '−' if is_sign(before) => {
                // -$5 is minus five dollars.
                let currency = usize::from(matches!(after, Some('$' | '€' | '£')));
                let point = usize::from(at(i + currency) == Some('.'));
                if is_digit(at(i + currency + point)) {
                    words.push('-');
                    i += currency;
                } else {
                    words.end();
                }
            }
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

/// Whether a comma stands between groups of a number, as in 2,161,000: one to three digits before it, of the first
/// group none of them a leading zero, and exactly three after it.
fn parts_thousands(at: impl Fn(usize) -> Option<char>, comma: usize) -> bool {
    let is_digit = |i: usize| at(i).is_some_and(|c| c.is_ascii_digit());
    let before = (1..=4).take_while(|n| comma.checked_sub(*n).is_some_and(is_digit)).count();
    let first = comma.wrapping_sub(before);
    let is_first = first.checked_sub(1).and_then(&at) != Some(',');
    (1..=3).contains(&before)
        && (!is_first || at(first) != Some('0'))
        && (1..=3).all(|n| is_digit(comma + n))
        && !is_digit(comma + 4)
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
        check("x = -.5", "x -0.5");
        check("-$5, −€7 and -$.5", "-5 -7 and -0.5");
        check("$-5 but 3-$5", "-5 but 3 5");
        check(
            "70{,}000, 70\\,000, 70\u{202f}000, 70\u{a0}000, 70\u{2009}000",
            "70000 70000 70000 70000 70000",
        );
        check("70 000 and 1, 234", "70 000 and 1 234");
        check("0,123 and 2020,300", "0 123 and 2020 300");
        check("\\boxed{\\frac{1}{2} \\text{ cup}}", "1 2 cup");
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
}
