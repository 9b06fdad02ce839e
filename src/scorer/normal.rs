//! The form under which two texts count as the same. Knows nothing of scorers.
//!
//! SQuAD's rules are: lower case, no punctuation, no articles, single spaces. Taken literally they make
//! 3.14 equal 314, -5 equal 5, and "J. K. Rowling" differ from "JK Rowling". So here a point or comma
//! inside a number and a sign before it are part of the number, and lone letters join into initials.

use num_bigint::BigInt;
use num_rational::BigRational;
use unicode_normalization::UnicodeNormalization;

/// Digits of a number, before and after the point, and of its power of ten.
const DIGITS_MAX: usize = 300;

/// Lower case, compatibility characters folded, punctuation to spaces, initials joined, articles gone.
pub fn text(raw: &str) -> String {
    // Of ASCII, as most answers are, both give the same, and this one needs no tables.
    let folded: Vec<char> = match raw.is_ascii() {
        true => raw.chars().map(|c| c.to_ascii_lowercase()).collect(),
        false => raw.nfkc().flat_map(char::to_lowercase).collect(),
    };
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
    let is_article = |word: &String| matches!(word.as_str(), "a" | "an" | "the");
    // Of an answer that is nothing else, as in a choice of "A", the article is the answer.
    if !words.iter().all(is_article) {
        words.retain(|word| !is_article(word));
    }
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
