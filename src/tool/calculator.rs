//! Arithmetic for agents: `+ - * / // % ^`, parentheses, decimals. Exact: every value is a fraction of
//! big integers, so `0.1 + 0.2` is `0.3`. Knows no variables, functions or units.
//!
//! Own parser of a page: the evaluators on crates.io compute in binary floating point, or accept far
//! more (units, assignment, functions with side effects) than a model's text should reach.

use futures_util::future::BoxFuture;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Pow, Signed, ToPrimitive, Zero};

use super::{Observation, Tool, ToolError};
use crate::digest::Recipe;

/// Version of the arithmetic and of how results print.
const REV: u32 = 1;
/// Longest expression, in bytes.
const INPUT_MAX: usize = 1000;
/// Deepest nesting of parentheses and signs.
const DEPTH_MAX: u32 = 50;
/// Greatest exponent, either sign.
const EXPONENT_MAX: i64 = 1000;
/// Greatest size of any value on the way, in bits: about 3,000 decimal digits.
const BITS_MAX: u64 = 10_000;
/// Digits after the point where a result has no short decimal form.
const DECIMALS_MAX: u32 = 10;

/// The calculator tool.
pub struct Calculator;

impl Tool for Calculator {
    fn name(&self) -> &str {
        "calculator"
    }

    fn usage(&self) -> String {
        "calculator[<expression>] evaluates arithmetic".to_owned()
    }

    fn call<'a>(&'a self, input: &'a str) -> BoxFuture<'a, Result<Observation, ToolError>> {
        super::ready(work_out(input))
    }

    fn describe(&self, recipe: Recipe) -> Recipe {
        recipe.field("tool.calculator", REV)
    }
}

/// The value of an expression, as the model sees it.
fn work_out(input: &str) -> Observation {
    match evaluate(input) {
        Ok(text) => Observation::good(text),
        // The bare word is what the shipped model was shown; the reason helps larger ones.
        Err(reason) => Observation::error(reason),
    }
}

/// Evaluates an expression to its decimal text; whole results have no point.
pub fn evaluate(text: &str) -> Result<String, String> {
    if text.len() > INPUT_MAX {
        return Err(format!("the expression is longer than {INPUT_MAX} characters"));
    }
    let mut parser = Parser { rest: text, depth: 0 };
    let value = parser.sum()?;
    match parser.peek() {
        None => Ok(print(&value)),
        Some(c) => Err(format!("unexpected `{c}`")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: u32,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    /// Takes the first of `symbols` that comes next.
    fn take(&mut self, symbols: &[&'static str]) -> Option<&'static str> {
        self.peek();
        let found = symbols.iter().find(|symbol| self.rest.starts_with(**symbol))?;
        self.rest = &self.rest[found.len()..];
        Some(found)
    }

    fn sum(&mut self) -> Result<BigRational, String> {
        let mut left = self.product()?;
        while let Some(op) = self.take(&["+", "-", "−", "–"]) {
            let right = self.product()?;
            left = bounded(if op == "+" { left + right } else { left - right })?;
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<BigRational, String> {
        let mut left = self.signed()?;
        // `**` belongs to `power`, which has already taken it.
        while let Some(op) = self.take(&["//", "*", "×", "·", "/", "÷", "%"]) {
            let right = self.signed()?;
            if right.is_zero() && !matches!(op, "*" | "×" | "·") {
                return Err("division by zero".to_owned());
            }
            left = bounded(match op {
                "*" | "×" | "·" => left * right,
                "//" => (left / right).floor(),
                // The sign of the remainder is that of the divisor, as in Python.
                "%" => &left - (&left / &right).floor() * &right,
                _ => left / right,
            })?;
        }
        Ok(left)
    }

    fn signed(&mut self) -> Result<BigRational, String> {
        match self.take(&["-", "−", "–", "+"]) {
            Some("+") => self.nested(Self::signed),
            Some(_) => Ok(-self.nested(Self::signed)?),
            None => self.power(),
        }
    }

    fn power(&mut self) -> Result<BigRational, String> {
        let base = self.atom()?;
        if self.take(&["^", "**"]).is_none() {
            return Ok(base);
        }
        // To the right first: 2^3^2 is 2^9, and -2^2 is -4.
        let exponent = self.nested(Self::signed)?;
        let whole = exponent.is_integer().then(|| exponent.to_integer().to_i64()).flatten();
        let n = whole
            .filter(|n| n.unsigned_abs() <= EXPONENT_MAX.unsigned_abs())
            .ok_or(format!("an exponent must be a whole number up to {EXPONENT_MAX}"))?;
        if base.is_zero() && n < 0 {
            return Err("division by zero".to_owned());
        }
        let bits = base.numer().bits().max(base.denom().bits());
        if bits.saturating_mul(n.unsigned_abs()) > BITS_MAX {
            return Err("the number is too large".to_owned());
        }
        Ok(base.pow(n as i32))
    }

    fn atom(&mut self) -> Result<BigRational, String> {
        if self.take(&["("]).is_some() {
            let value = self.nested(Self::sum)?;
            return match self.take(&[")"]) {
                Some(_) => Ok(value),
                None => Err("a `(` is not closed".to_owned()),
            };
        }
        self.peek();
        let length = self
            .rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ','))
            .unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(length);
        if number.is_empty() {
            return Err(match self.peek() {
                Some(c) => format!("unexpected `{c}`"),
                None => "the expression ends too early".to_owned(),
            });
        }
        self.rest = rest;
        parse_decimal(number).ok_or(format!("`{number}` is not a number"))
    }

    fn nested(
        &mut self,
        parse: fn(&mut Self) -> Result<BigRational, String>,
    ) -> Result<BigRational, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX}"));
        }
        let value = parse(self);
        self.depth -= 1;
        value
    }
}

fn bounded(value: BigRational) -> Result<BigRational, String> {
    if value.numer().bits().max(value.denom().bits()) > BITS_MAX {
        return Err("the number is too large".to_owned());
    }
    Ok(value)
}

/// Reads `1,234.50` exactly. Commas must part groups of three digits.
pub fn parse_decimal(text: &str) -> Option<BigRational> {
    let (sign, text) = match text.strip_prefix(['-', '−']) {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|c| c.is_ascii_digit());
    if whole.contains(',') {
        let mut groups = whole.split(',');
        let first = groups.next()?;
        if !(1..=3).contains(&first.len()) || !groups.all(|group| group.len() == 3) {
            return None;
        }
    }
    let whole = whole.replace(',', "");
    if whole.is_empty() && fraction.is_empty() || !digits(&whole) || !digits(fraction) {
        return None;
    }
    let numer: BigInt = format!("{whole}{fraction}").parse().ok()?;
    let denom = Pow::pow(BigInt::from(10), fraction.len());
    Some(BigRational::new(numer * sign, denom))
}

/// Decimal text: exact where the decimals end within [`DECIMALS_MAX`], else rounded half away from zero.
fn print(value: &BigRational) -> String {
    let scale = Pow::pow(BigInt::from(10), DECIMALS_MAX);
    let scaled = (value * BigRational::from_integer(scale.clone())).round().to_integer();
    let (whole, fraction) = (&scaled.abs() / &scale, &scaled.abs() % &scale);
    let sign = if scaled.is_negative() { "-" } else { "" };
    if fraction.is_zero() {
        return format!("{sign}{whole}");
    }
    let fraction = format!("{:0>width$}", fraction.to_string(), width = DECIMALS_MAX as usize);
    format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: &str) {
        let got = evaluate(text).unwrap_or_else(|error| format!("error: {error}"));
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn sums_and_products() {
        check("(4+6)*5", "50");
        check("7 × 11 − 3", "74");
        check("2+3*4", "14");
        check("10/4", "2.5");
        check("10 ÷ 5", "2");
        check("1,234 + 1", "1235");
    }

    #[test]
    fn decimals_are_exact() {
        check("0.1+0.2", "0.3");
        check("1/3", "0.3333333333");
        check("2/3", "0.6666666667");
        check("-2/3", "-0.6666666667");
        check(".5+.5", "1");
    }

    #[test]
    fn whole_division_and_remainder_follow_python() {
        check("7//2", "3");
        check("-7//2", "-4");
        check("-7 % 3", "2");
        check("7 % -3", "-2");
    }

    #[test]
    fn powers_bind_to_the_right_and_above_the_sign() {
        check("2^3^2", "512");
        check("2**10", "1024");
        check("-2^2", "-4");
        check("2^-1", "0.5");
    }

    #[test]
    fn what_cannot_be_computed_says_why() {
        check("1/0", "error: division by zero");
        check("0^-1", "error: division by zero");
        check("5 % 0", "error: division by zero");
        check("2^0.5", "error: an exponent must be a whole number up to 1000");
        check("2^-9223372036854775808", "error: an exponent must be a whole number up to 1000");
        check("9^9^9", "error: an exponent must be a whole number up to 1000");
        check("(99999999999^999)", "error: the number is too large");
        check("2+", "error: the expression ends too early");
        check("(1", "error: a `(` is not closed");
        check("1 2", "error: unexpected `2`");
        check("__import__('os')", "error: unexpected `_`");
        check("1,23", "error: `1,23` is not a number");
        check("", "error: the expression ends too early");
        check(&"(".repeat(200), "error: nested deeper than 50");
        check(&"-".repeat(200), "error: nested deeper than 50");
        check(&"1+".repeat(2000), "error: the expression is longer than 1000 characters");
    }
}
