//! Numbers in a text, read as exact values. Knows nothing of which one is the answer, beyond where it stands.
//!
//! Thousands are parted by a comma, an apostrophe, a space that does not break, or as LaTeX does it: one to three
//! digits, then exactly three each time. A plain space does so only where it cannot well be another thing: after it a
//! group begins with 0 (`12 050`), or the groups are all digits that there are, or the front of what is marked as the
//! answer. "In 2020 300 people" and "rooms 12 and 100 200" have two numbers each. What that gives up: `300 000 of 400 100`
//! is 300000 and, as last number, 100.

use num_bigint::BigInt;
use num_rational::BigRational;
use unicode_normalization::UnicodeNormalization;

use super::typeset;

/// Digits of a number, before and after the point, and of its power of ten.
const DIGITS_MAX: usize = 300;

/// A number and where it stands.
pub(super) struct Found {
    pub(super) start: usize,
    pub(super) end: usize,
    /// `None` of what no question asks for: a zero denominator, hundreds of digits.
    pub(super) value: Option<BigRational>,
}

/// The last number in a text as a plain decimal: `$1,234.50` gives `1234.5`. `None` without a number.
pub fn last(raw: &str) -> Option<String> {
    let text = Text::of(raw);
    text.all(0, text.chars.len()).filter_map(|found| found.value).last().as_ref().map(plain)
}

/// The last `n` numbers of a text, or as many as there are, in the same form.
pub(super) fn last_of(raw: &str, n: usize) -> Vec<String> {
    let text = Text::of(raw);
    let all = text.own_values(0, text.chars.len());
    all[all.len().saturating_sub(n)..].to_vec()
}

/// Characters, in the form in which numbers are looked for.
pub(super) struct Text {
    pub(super) chars: Vec<char>,
    digits: usize,
    /// Whether a plain space parts thousands wherever it can.
    trusts_spaces: bool,
}

impl Text {
    fn of(raw: &str) -> Text {
        let mut lines = String::with_capacity(raw.len());
        let mut raised = false;
        let text = typeset::plain(raw);
        for c in text.chars() {
            let digit = superscript(c);
            if digit.is_some() && !raised {
                lines.push('^');
            }
            raised = digit.is_some();
            lines.push(digit.unwrap_or(c));
        }
        if lines.contains('\\') {
            lines = lines.replace("\\times", "×").replace("\\cdot", "·");
        }
        let chars: Vec<char> = lines.nfkc().collect();
        let digits = chars.iter().filter(|c| c.is_ascii_digit()).count();
        Text { chars, digits, trusts_spaces: false }
    }

    /// A text in which a plain space parts thousands wherever it can.
    pub(super) fn of_marked(raw: &str) -> Text {
        Text { trusts_spaces: true, ..Text::of(raw) }
    }

    pub(super) fn at(&self, i: usize) -> Option<char> {
        self.chars.get(i).copied()
    }

    pub(super) fn before(&self, i: usize, steps: usize) -> Option<char> {
        i.checked_sub(steps).and_then(|i| self.at(i))
    }

    pub(super) fn is_digit(&self, i: usize) -> bool {
        self.at(i).is_some_and(|c| c.is_ascii_digit())
    }

    /// How many digits stand there.
    fn digits_at(&self, i: usize) -> usize {
        (i..).take_while(|i| self.is_digit(*i)).count()
    }

    pub(super) fn after_spaces(&self, i: usize) -> usize {
        i + (i..).take_while(|i| self.at(*i) == Some(' ')).count()
    }

    pub(super) fn all(&self, from: usize, to: usize) -> impl Iterator<Item = Found> {
        let mut at = from;
        std::iter::from_fn(move || {
            let found = self.next(at).filter(|found| found.end <= to)?;
            at = found.end;
            Some(found)
        })
    }

    /// The numbers between two places, but for those of names and units: the 2 of m2.
    pub(super) fn own_values(&self, from: usize, to: usize) -> Vec<String> {
        let is_own = |found: &Found| !self.follows_letter(found);
        let values = self.all(from, to).filter(is_own).filter_map(|found| found.value);
        values.map(|value| plain(&value)).collect()
    }

    pub(super) fn follows_letter(&self, found: &Found) -> bool {
        self.before(found.start, 1).is_some_and(char::is_alphabetic)
    }

    /// Where the next number begins: the 2 of m^2 is none of its own.
    fn start(&self, mut from: usize) -> Option<usize> {
        let begins =
            |i: &usize| self.is_digit(*i) || (self.at(*i) == Some('.') && self.is_digit(i + 1));
        loop {
            let start = (from..self.chars.len()).find(begins)?;
            let before = |steps| self.before(start, steps);
            let raised = match before(1) {
                Some('^') => true,
                Some('{' | '(') => before(2) == Some('^'),
                Some('-' | '−') => {
                    before(2) == Some('^')
                        || (matches!(before(2), Some('{' | '(')) && before(3) == Some('^'))
                }
                _ => false,
            };
            if !raised {
                return Some(start);
            }
            from = start + self.digits_at(start).max(1);
        }
    }

    /// The next number.
    pub(super) fn next(&self, from: usize) -> Option<Found> {
        let start = self.start(from)?;
        let (digits, mut at) = self.decimal(start);
        let exponent = self.take_exponent(&mut at);
        let power = self.take_power(&mut at);
        let tens = self.take_power_of_ten(&mut at);
        let is_date = self.before(start, 1) == Some('/');
        let below = if is_date { None } else { self.take_denominator(&mut at) };
        let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit())
            && at == start + digits.len()
            && below.is_none();
        let part = if is_whole && !is_date { self.take_fraction(&mut at) } else { None };
        let zero = || BigRational::from(BigInt::from(0));
        let value = value(&digits, exponent)
            .and_then(|value| raise(value, power?))
            .and_then(|value| times_tens(value, tens))
            .and_then(|value| divide(value, below.as_deref().unwrap_or("1")))
            .map(|value| value + part.unwrap_or_else(zero))
            .map(|value| if self.is_negative(start) { -value } else { value });
        Some(Found { start, end: at, value })
    }

    /// Digits with at most one point, without what parts thousands, and where they end.
    fn decimal(&self, start: usize) -> (String, usize) {
        let mut number = String::new();
        let mut has_point = false;
        // Digits since the last separator, and whether there was one.
        let (mut group, mut grouped) = (0, false);
        let spaced_end = self.spaced_groups(start);
        let mut i = start;
        while let Some(c) = self.at(i) {
            let is_group = || {
                let follows = match grouped {
                    true => group == 3,
                    false => (1..=3).contains(&group) && !number.starts_with('0'),
                };
                follows && !has_point && self.digits_at(i + 1) == 3
            };
            match c {
                '0'..='9' => {
                    number.push(c);
                    group += 1;
                }
                '.' if self.is_digit(i + 1) && !has_point => {
                    has_point = true;
                    number.push('.');
                }
                ',' | '\'' | '’' if is_group() => (group, grouped) = (0, true),
                ' ' if i < spaced_end => {}
                _ => break,
            }
            i += 1;
        }
        (number, i)
    }

    /// Where groups end that plain spaces part, of a number that begins there; the begin itself where they do not.
    fn spaced_groups(&self, start: usize) -> usize {
        let first = self.digits_at(start);
        let follows_number = self.before(start, 1).is_some_and(|c| ",.'’".contains(c))
            || (self.before(start, 1) == Some(' ')
                && self.before(start, 2).is_some_and(|c| c.is_ascii_digit()));
        if !(1..=3).contains(&first) || self.at(start) == Some('0') || follows_number {
            return start;
        }
        let (mut end, mut digits, mut is_sure) = (start + first, first, false);
        while self.at(end) == Some(' ') && self.digits_at(end + 1) == 3 {
            is_sure |= self.at(end + 1) == Some('0');
            (end, digits) = (end + 4, digits + 3);
        }
        let goes_on = match self.at(end) {
            Some(' ') => self.is_digit(end + 1),
            Some('.' | ',') => false,
            Some(c) => c.is_alphanumeric() || "-−/^'’".contains(c),
            None => false,
        };
        let sure = is_sure || self.trusts_spaces || digits == self.digits;
        if end == start + first || goes_on || !sure { start } else { end }
    }

    fn is_negative(&self, start: usize) -> bool {
        let is_dash = |c: Option<char>| matches!(c, Some('-' | '−'));
        match self.before(start, 1) {
            dash if is_dash(dash) => is_sign(self.before(start, 2)),
            // -$5 is minus five dollars.
            Some('$' | '€' | '£') => {
                is_dash(self.before(start, 2)) && is_sign(self.before(start, 3))
            }
            _ => false,
        }
    }

    /// `e3` or `E-3` right after a number.
    fn take_exponent(&self, at: &mut usize) -> i32 {
        let sign = usize::from(matches!(self.at(*at + 1), Some('+' | '-')));
        if !matches!(self.at(*at), Some('e' | 'E')) || !self.is_digit(*at + 1 + sign) {
            return 0;
        }
        *at += 1;
        self.take_whole(at)
    }

    /// `^3`, `^{3}` or `^{-3}` right after a number; 1 without. `None` of one beyond all bounds.
    fn take_power(&self, at: &mut usize) -> Option<i32> {
        if self.at(*at) != Some('^') {
            return Some(1);
        }
        let open = usize::from(matches!(self.at(*at + 1), Some('{' | '(')));
        let mut end = *at + 1 + open;
        let sign = usize::from(matches!(self.at(end), Some('+' | '-' | '−')));
        if !self.is_digit(end + sign) {
            return Some(1);
        }
        let power = self.take_whole(&mut end);
        *at = end + open;
        (power.unsigned_abs() as usize <= DIGITS_MAX).then_some(power)
    }

    /// ` × 10^8` after a number.
    fn take_power_of_ten(&self, at: &mut usize) -> i32 {
        let sign = self.after_spaces(*at);
        let ten = self.after_spaces(sign + 1);
        let is_ten =
            self.digits_at(ten) == 2 && self.at(ten) == Some('1') && self.at(ten + 1) == Some('0');
        let is_times = matches!(self.at(sign), Some('×' | '·' | '*' | 'x'));
        if !is_times || !is_ten || self.at(ten + 2) != Some('^') {
            return 0;
        }
        let mut end = ten + 2;
        let power = self.take_power(&mut end);
        if end > ten + 2 {
            *at = end;
            return power.unwrap_or(i32::MAX);
        }
        0
    }

    /// A whole number with a sign that is known to be there.
    fn take_whole(&self, at: &mut usize) -> i32 {
        let minus = matches!(self.at(*at), Some('-' | '−'));
        *at += usize::from(!self.is_digit(*at));
        let end = *at + self.digits_at(*at);
        let number: i32 =
            self.chars[*at..end].iter().collect::<String>().parse().unwrap_or(i32::MAX);
        *at = end;
        if minus { -number } else { number }
    }

    /// `/3`, `/2.5` or `/-2` right after a number; not the day of 1/3/2020.
    fn take_denominator(&self, at: &mut usize) -> Option<String> {
        let sign = usize::from(matches!(self.at(*at + 1), Some('-' | '−')));
        let start = *at + 1 + sign;
        if self.at(*at) != Some('/') || !self.is_digit(start) {
            return None;
        }
        let (mut digits, mut end) = self.decimal(start);
        // Below a line no spaces part thousands.
        if self.chars[start..end].contains(&' ') {
            end = start + self.digits_at(start);
            digits = self.chars[start..end].iter().collect();
        }
        if self.at(end) == Some('/') {
            return None;
        }
        *at = end;
        Some(format!("{}{digits}", &"-"[..sign]))
    }

    /// ` 1/2` after a whole number: two and a half.
    fn take_fraction(&self, at: &mut usize) -> Option<BigRational> {
        let above = *at + 1;
        let mut end = above + self.digits_at(above);
        if self.at(*at) != Some(' ') || end == above {
            return None;
        }
        let digits: String = self.chars[above..end].iter().collect();
        let below = self.take_denominator(&mut end)?;
        let value = divide(value(&digits, 0)?, &below)?;
        let is_part = value >= BigInt::from(0).into() && value < BigInt::from(1).into();
        is_part.then(|| {
            *at = end;
            value
        })
    }
}

/// Whether a dash is a sign: it is none where it ends something, as in 5-3, `(a)-3` and `--3`.
pub(super) fn is_sign(before: Option<char>) -> bool {
    before.is_none_or(|c| !c.is_alphanumeric() && !")]}%°.-−–—".contains(c))
}

/// The digit of ², before compatibility makes m² an m2.
fn superscript(c: char) -> Option<char> {
    match c {
        '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' => c.nfkc().next(),
        '⁻' => Some('-'),
        _ => None,
    }
}

fn value(number: &str, exponent: i32) -> Option<BigRational> {
    if number.len() > DIGITS_MAX {
        return None;
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: BigInt = format!("{whole}{fraction}").parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?;
    times_tens(times_tens(digits.into(), exponent)?, -places)
}

fn times_tens(value: BigRational, power: i32) -> Option<BigRational> {
    (power.unsigned_abs() as usize <= DIGITS_MAX).then(|| value * ten().pow(power))
}

fn divide(value: BigRational, denominator: &str) -> Option<BigRational> {
    let digits = denominator.trim_start_matches('-');
    let below = self::value(digits, 0).filter(|below| *below != BigInt::from(0).into())?;
    Some(if digits == denominator { value / below } else { -(value / below) })
}

/// A power that has no more than so many digits.
fn raise(value: BigRational, power: i32) -> Option<BigRational> {
    if power == 1 {
        return Some(value);
    }
    // A power of ten has a digit more than its logarithm, and what it is raised to would count that digit each time.
    let width = |number: &BigInt| {
        let digits = number.to_string();
        let is_of_ten =
            digits.strip_prefix('1').is_some_and(|rest| rest.bytes().all(|b| b == b'0'));
        digits.len() - usize::from(is_of_ten)
    };
    let is_zero = value == BigInt::from(0).into();
    let digits = width(value.numer()).max(width(value.denom()));
    let fits = digits * (power.unsigned_abs() as usize) <= DIGITS_MAX;
    (fits && !(is_zero && power < 0)).then(|| value.pow(power))
}

fn ten() -> BigRational {
    BigRational::from_integer(BigInt::from(10))
}

/// Plain decimal text, or a reduced fraction where the decimals do not end.
pub(super) fn plain(value: &BigRational) -> String {
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
    use super::super::statement;
    use super::*;

    #[test]
    fn last_numbers() {
        let check = |raw: &str, want: Option<&str>| {
            assert_eq!(last(raw).as_deref(), want, "{raw:?}");
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

    #[test]
    fn groups_of_three_digits_are_one_number() {
        let check = |raw: &str, want: &str| {
            assert_eq!(last(raw).as_deref(), Some(want), "{raw:?}");
            assert_eq!(statement::number(raw).as_deref(), Some(want), "stated in {raw:?}");
        };
        for raw in [
            "70,000",
            "70{,}000",
            "70\\,000",
            "70,\\!000",
            "70'000",
            "70’000",
            "70\u{202f}000",
            "70\u{a0}000",
            "70\u{2009}000",
            "70 000",
            "$70 000.00 in all",
            "\\(70\\,000\\)",
        ] {
            check(raw, "70000");
        }
        check("1 234 567", "1234567");
        check("-3 000,", "-3000");
        check("12 050 of them", "12050");
    }

    #[test]
    fn other_digits_beside_each_other_are_not() {
        let check = |raw: &str, want: &str| assert_eq!(last(raw).as_deref(), Some(want), "{raw:?}");
        check("in 2020 300 people", "300");
        check("1, 234", "234");
        check("0,123", "123");
        check("2020,300", "300");
        check("12,34", "34");
        check("1,2345", "2345");
        check("1\u{a0}23", "23");
        check("10 200 30", "30");
        check("1 page of 5 300", "300");
        check("a Boeing 747 200B", "200");
        check("5 300-page books", "300");
        check("3.141 592", "592");
        check("room 12, 400 000 dollars", "400000");
    }

    #[test]
    fn fractions_and_powers_are_values() {
        let check = |raw: &str, want: &str| assert_eq!(last(raw).as_deref(), Some(want), "{raw:?}");
        check("\\frac{1}{2}", "0.5");
        check("-\\frac{1}{2}", "-0.5");
        check("2\\frac{1}{2} cups", "2.5");
        check("2 1/2", "2.5");
        check("2½", "2.5");
        check("½", "0.5");
        check("2 3/2", "1.5");
        check("5 m^2", "5");
        check("5 m²", "5");
        check("5 m^{-2}", "5");
        check("2^10", "1024");
        check("10³", "1000");
        check("3 × 10^8 m/s", "300000000");
        check("3 \\times 10^{-2}", "0.03");
        check("1.5*10^2", "150");
        check("9 * 10", "10");
        check("7 and 2^99999999999", "7");
        check("7 and 0^-1", "7");
        check("\\frac{3.5}{2}", "1.75");
        check("\\frac{7,000}{4}", "1750");
        check("\\frac{1}{-2}", "-0.5");
        check("-3/-2", "1.5");
        check("1/2 100", "100");
        check("2 1/-2", "-0.5");
        check("2^3/4", "2");
        check("2^2 × 10^2", "400");
    }

    #[test]
    fn powers_are_bounded_by_their_digits() {
        let check = |raw: &str, want: &str| assert_eq!(last(raw).as_deref(), Some(want), "{raw:?}");
        check("10^200", &format!("1{}", "0".repeat(200)));
        check("10^-3", "0.001");
        check(
            "2^300",
            "2037035976334486086268445688409378161051468393665936250636140449354381299763336706183397376",
        );
        check("7 and 1e300^300", "7");
        check("7 and 1e-300^300", "7");
        check("7 and 10^301", "7");
        check("7 and 99^151", "7");
    }

    #[test]
    fn a_dash_is_a_sign_but_after_what_it_ends() {
        let check = |raw: &str, want: &str| assert_eq!(last(raw).as_deref(), Some(want), "{raw:?}");
        for raw in [
            "is `-5`.", "“-5”", "'-5'", "‘-5’", "≈-5", ">-5", "(3,-5)", "~-5", "**-5**", "x=-5",
            "|-5|",
        ] {
            check(raw, "-5");
        }
        for raw in ["3-5", "f(x)-5", "a[1]-5", "{x}-5", "3%-5", "20°-5", "to...-5", "--5", "–-5"]
        {
            check(raw, "5");
        }
    }
}
