//! The form under which two texts count as the same. Knows nothing of scorers.
//!
//! SQuAD's rules are: lower case, no punctuation, no articles, single spaces. Taken literally they make
//! 3.14 equal 314, -5 equal 5, and "J. K. Rowling" differ from "JK Rowling". So here a point or comma
//! inside a number and a sign before it are part of the number, and lone letters join into initials.

use unicode_normalization::UnicodeNormalization;

/// Lower case, compatibility characters folded, punctuation to spaces, initials joined, articles gone.
pub fn text(raw: &str) -> String {
    let folded: Vec<char> = raw.nfkc().flat_map(char::to_lowercase).collect();
    let mut plain = String::with_capacity(raw.len());
    for (i, &c) in folded.iter().enumerate() {
        let before = i.checked_sub(1).map(|j| folded[j]);
        let after = folded.get(i + 1).copied();
        let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        match c {
            // "Rubik's" and "Rubiks" are one word.
            '\'' | '’' | '‘' | '`' => {}
            '.' if digit(before) && digit(after) => plain.push('.'),
            // ".5" is "0.5".
            '.' if digit(after) && !before.is_some_and(char::is_alphanumeric) => {
                plain.push_str("0.")
            }
            ',' if digit(before) && parts_thousands(&folded[i..]) => {}
            '-' | '−' if digit(after) && is_sign(&folded[..i]) => plain.push('-'),
            c if c.is_alphanumeric() => plain.push(c),
            _ => plain.push(' '),
        }
    }
    let mut words: Vec<String> = Vec::new();
    let mut initials = false;
    for word in plain.split_whitespace() {
        let letter = word.chars().count() == 1 && word.chars().all(char::is_alphabetic);
        match words.last_mut() {
            Some(last) if letter && initials => last.push_str(word),
            _ => words.push(word.to_owned()),
        }
        initials = letter;
    }
    words.retain(|word| !matches!(word.as_str(), "a" | "an" | "the"));
    words.join(" ")
}

/// Whether a comma is followed by exactly three digits, as in 2,161,000.
fn parts_thousands(from_comma: &[char]) -> bool {
    let digits = from_comma[1..].iter().take_while(|c| c.is_ascii_digit()).count();
    digits == 3
}

/// Whether a dash after `before` is a sign: nothing, space or an opening mark comes first.
fn is_sign(before: &[char]) -> bool {
    before.last().is_none_or(|c| c.is_whitespace() || "([{$€£=:*\"".contains(*c))
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
                ',' if !has_point && parts_thousands(&chars[i..]) => {}
                _ => break,
            }
            i += 1;
        }
        let dash = start.checked_sub(1).map(|j| chars[j]).filter(|c| matches!(c, '-' | '−'));
        let currency = start.checked_sub(2).map(|j| chars[j]);
        let negative = match (dash, start.checked_sub(1).map(|j| chars[j])) {
            (Some(_), _) => is_sign(&chars[..start - 1]),
            // -$5 is minus five dollars.
            (None, Some('$' | '€' | '£')) => {
                matches!(currency, Some('-' | '−')) && is_sign(&chars[..start - 2])
            }
            _ => false,
        };
        last = Some(plain_decimal(&number, negative));
    }
    last
}

/// No needless zeros, no sign on zero.
fn plain_decimal(number: &str, negative: bool) -> String {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if negative && (whole != "0" || !fraction.is_empty()) { "-" } else { "" };
    match fraction {
        "" => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction}"),
    }
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
        check("the a an", "");
        check("São Tomé", "são tomé");
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
        check("no number", None);
    }
}
