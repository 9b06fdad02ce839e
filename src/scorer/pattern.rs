//! A regular expression on the answer: that it matches, or that what its group takes out is a target.
//! Knows nothing of files.

use regex::Regex;

use super::{Compared, normal, target};

/// Version of what a pattern means.
pub const REV: u32 = 3;
/// Where its definition comes from.
pub const SOURCE: &str = "promptfoo's `regex` (without a group) and Inspect's `pattern` (with one)";

/// A regular expression, checked. Its time is linear in the answer, whatever a model wrote.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Checks a regular expression.
    pub fn new(pattern: &str) -> Result<Self, String> {
        Regex::new(pattern).map(Pattern).map_err(|error| error.to_string())
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        self.0.as_str()
    }

    /// Whether what it takes out is compared with targets.
    pub fn has_group(&self) -> bool {
        self.0.captures_len() > 1
    }

    /// The first group of the first or the last match, or where it has no group all of the match.
    pub fn find<'a>(&self, text: &'a str, last: bool) -> Option<&'a str> {
        let mut all = self.0.captures_iter(text);
        let captures = if last { all.last() } else { all.next() }?;
        let group = captures.iter().skip(1).flatten().next().or(captures.get(0));
        group.map(|found| found.as_str())
    }

    /// Scores an answer.
    pub fn compare(&self, answer: &str, targets: &[String]) -> Compared {
        let found = self.find(answer, false);
        if !self.has_group() {
            // What matches says that the answer has a form, and is no reading of it: answers that match alike differ.
            let value = f64::from(u8::from(found.is_some()));
            return Compared { value, detail: found.map(str::to_owned), ..Compared::default() };
        }
        let said = found.map(normal::text).filter(|said| !said.is_empty());
        let is = |target: &String| {
            said.as_deref().is_some_and(|said| target::accepted(target).all().any(|t| t == said))
        };
        let hits = Compared::first(targets.iter().map(is), None);
        // What is equal here votes alike.
        Compared { parsed: said, ..hits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_a_group_the_target_decides_and_without_one_the_match() {
        let check = |pattern: &str, answer: &str, want: f64| {
            let targets = ["72".to_owned()];
            let got = Pattern::new(pattern).unwrap().compare(answer, &targets);
            assert_eq!(got.value, want, "{pattern} on {answer}: {got:?}");
        };
        check(r"^\d+$", "5", 1.0);
        check(r"^\d+$", "five", 0.0);
        check(r"#### (\d+)", "So it is\n#### 72", 1.0);
        check(r"#### (\d+)", "So it is\n#### 71", 0.0);
        check(r"#### (\d+)", "72", 0.0);
        check(r"(?:a(\d+)|b(\d+))", "b72", 1.0);
    }

    #[test]
    fn what_is_compared_is_what_votes() {
        let pattern = Pattern::new("in (.*)$").unwrap();
        let parsed = |answer: &str| pattern.compare(answer, &["Paris".to_owned()]).parsed;
        for answer in ["in Paris", "in PARIS", "in the paris."] {
            assert_eq!(parsed(answer).as_deref(), Some("paris"), "{answer}");
        }
        assert_eq!(parsed("in ..."), None);
        assert_eq!(parsed("Paris"), None);
    }

    #[test]
    fn look_around_is_refused() {
        assert!(Pattern::new("(?=x)").unwrap_err().contains("look-around"));
    }
}
