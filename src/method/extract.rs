//! Further ways to take an answer out of a reply, each with a name: what is scored is then said by the
//! manifest and not by the method alone. Knows nothing of targets.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::answer;
use crate::digest::Recipe;
use crate::scorer::{Pattern, json as json_text, number};

/// Version of what extractors take: raised when the same reply would give another answer.
const REV: u32 = 3;

/// Extractors that need no settings, by the names under which manifests may use them.
pub const BUILT_IN: &[&str] =
    &["method", "strict", "flexible", "whole", "last_line", "last_number"];

/// Where an answer is.
#[derive(Debug, Clone)]
pub enum Rule {
    /// Where the method finds it.
    Method,
    /// After the last `Answer:`, `the answer is`, `####` or in the last `\boxed{}`, and nowhere else (the strict
    /// match of lm-evaluation-harness, without its being bound to one task).
    Strict,
    /// The same, else the last line.
    Flexible,
    /// All of the reply, without decoration.
    Whole,
    /// The last line with anything in it.
    LastLine,
    /// The last number, as a plain decimal.
    LastNumber,
    /// What a regular expression takes out.
    Regex {
        /// The expression.
        pattern: Pattern,
        /// Whether its last match counts, or its first.
        last: bool,
    },
    /// A part of the last JSON in the reply.
    Json {
        /// Where in it (RFC 6901).
        pointer: String,
    },
    /// The rest of the line after the last of these marks, or the line below.
    After {
        /// The mark.
        marker: String,
    },
}

/// A rule with its name.
#[derive(Debug, Clone)]
pub struct Extractor {
    /// By which records and reports name it.
    pub name: String,
    /// Where an answer is.
    pub rule: Rule,
}

/// The rule of a name that needs no settings.
pub fn built_in(name: &str) -> Option<Rule> {
    Some(match name {
        "method" => Rule::Method,
        "strict" => Rule::Strict,
        "flexible" => Rule::Flexible,
        "whole" => Rule::Whole,
        "last_line" => Rule::LastLine,
        "last_number" => Rule::LastNumber,
        _ => return None,
    })
}

impl Extractor {
    /// The answer in a reply; `by_method` is what the method found.
    pub fn read(&self, reply: &str, by_method: Option<&str>) -> Option<String> {
        let found = match &self.rule {
            Rule::Method => by_method.map(str::to_owned),
            Rule::Strict => marked(reply),
            Rule::Flexible => marked(reply).or_else(|| last_line(reply)),
            Rule::Whole => Some(answer::undecorated(reply)),
            Rule::LastLine => last_line(reply),
            Rule::LastNumber => number::last(reply),
            Rule::Regex { pattern, last } => {
                pattern.find(reply, *last).map(|found| found.trim().to_owned())
            }
            Rule::Json { pointer } => {
                json_text::found_in(reply).and_then(|json| match json.pointer(pointer)? {
                    Value::Null => None,
                    Value::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                })
            }
            Rule::After { marker } => after(reply, marker).map(|(_, found)| found),
        };
        found.filter(|found| !found.is_empty())
    }

    /// What of an answer that it gave stands behind a mark; `reply` is where it is from.
    pub fn marked<'a>(&self, reply: &str, answer: &'a str) -> Option<Cow<'a, str>> {
        match &self.rule {
            Rule::Strict | Rule::After { .. } | Rule::Json { .. } => Some(Cow::Borrowed(answer)),
            Rule::Regex { pattern, .. } if pattern.has_group() => Some(Cow::Borrowed(answer)),
            _ => behind_mark(reply, answer),
        }
    }

    fn describe(&self) -> String {
        let settings = match &self.rule {
            Rule::Regex { pattern, last } => json!({ "last": last, "pattern": pattern.text() }),
            Rule::Json { pointer } => json!({ "pointer": pointer }),
            Rule::After { marker } => json!({ "marker": marker }),
            Rule::Method => json!("method"),
            Rule::Strict => json!("strict"),
            Rule::Flexible => json!("flexible"),
            Rule::Whole => json!("whole"),
            Rule::LastLine => json!("last_line"),
            Rule::LastNumber => json!("last_number"),
        };
        format!("{} {REV} {settings}", self.name)
    }
}

/// Adds extractors to a recipe, in order: the first one's answer is the sample's.
pub fn describe(extractors: &[Extractor], recipe: Recipe) -> Recipe {
    if extractors.is_empty() {
        return recipe;
    }
    let all: Vec<String> = extractors.iter().map(Extractor::describe).collect();
    recipe.field("extractors", all)
}

/// What stands after the last mark that anything follows, and where the mark begins.
fn after(reply: &str, marker: &str) -> Option<(usize, String)> {
    reply.rmatch_indices(marker).find_map(|(at, mark)| {
        let rest = reply[at + mark.len()..].trim_start();
        let found = answer::undecorated(rest.lines().next().unwrap_or(""));
        (!found.is_empty()).then_some((at, found))
    })
}

/// What of an answer stands behind a mark: all of it where it is what the reply marks.
pub fn behind_mark<'a>(reply: &str, answer: &'a str) -> Option<Cow<'a, str>> {
    if marked(reply).as_deref() == Some(answer) {
        return Some(Cow::Borrowed(answer));
    }
    marked(answer).map(Cow::Owned)
}

/// What a reply marks as its answer; of several marks the last.
fn marked(reply: &str) -> Option<String> {
    let stated = answer::stated(reply).map(|(before, found)| (before.len(), found));
    let all = [stated, after(reply, "####"), boxed(reply)];
    all.into_iter().flatten().max_by_key(|(at, _)| *at).map(|(_, found)| found)
}

/// What the last `\boxed{…}` holds, with balanced braces.
fn boxed(reply: &str) -> Option<(usize, String)> {
    const OPEN: &str = "\\boxed{";
    let at = reply.rfind(OPEN)?;
    let inner = &reply[at + OPEN.len()..];
    let mut depth = 1_u32;
    for (i, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let found = inner[..i].trim();
            return (!found.is_empty()).then(|| (at, found.to_owned()));
        }
    }
    None
}

fn last_line(reply: &str) -> Option<String> {
    reply.lines().rev().map(answer::undecorated).find(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: Rule, reply: &str, want: Option<&str>) {
        let extractor = Extractor { name: "x".to_owned(), rule };
        assert_eq!(extractor.read(reply, None).as_deref(), want, "{extractor:?} of {reply:?}");
    }

    fn named(name: &str) -> Rule {
        built_in(name).unwrap()
    }

    #[test]
    fn every_built_in_name_is_a_rule() {
        assert!(BUILT_IN.iter().all(|name| built_in(name).is_some()));
    }

    #[test]
    fn strict_wants_a_mark() {
        check(named("strict"), "5 + 5 = 10\n#### 1,010", Some("1,010"));
        check(named("strict"), "So the answer is 7.", Some("7"));
        check(named("strict"), "Answer: 5\nNo: \\boxed{\\frac{1}{2}}", Some("\\frac{1}{2}"));
        check(named("strict"), "#### 4 is what I first had.\nAnswer: 5", Some("5"));
        check(named("strict"), "It is 7.", None);
        check(named("strict"), "\\boxed{7", None);
    }

    #[test]
    fn flexible_takes_the_last_line_where_nothing_is_marked() {
        check(named("flexible"), "Let me see.\n\n**It is 7.**\n", Some("It is 7"));
        check(named("flexible"), "Answer: 6\nThat was easy.", Some("6"));
        check(named("flexible"), " \n", None);
    }

    #[test]
    fn answers_are_not_cut_at_a_full_stop_or_a_comma() {
        for name in ["strict", "flexible"] {
            check(named(name), "Answer: J. K. Rowling", Some("J. K. Rowling"));
            check(named(name), "#### 3.14", Some("3.14"));
            check(named(name), "The answer is 2,161,000.", Some("2,161,000"));
            check(named(name), "Answer: Washington, D.C.", Some("Washington, D.C."));
        }
        check(named("last_number"), "That makes 2,161,000.", Some("2161000"));
        check(named("last_number"), "That makes 3.14.", Some("3.14"));
    }

    #[test]
    fn rules_with_settings() {
        let pattern = |text: &str, last| Rule::Regex { pattern: Pattern::new(text).unwrap(), last };
        check(pattern(r"<a>(.*?)</a>", true), "<a>1</a> <a> 2 </a>", Some("2"));
        check(pattern(r"<a>(.*?)</a>", false), "<a>1</a> <a>2</a>", Some("1"));
        check(pattern(r"\d+ ?km", true), "5 km", Some("5 km"));
        check(pattern(r"\d+ ?km", true), "five", None);
        let pointer = |text: &str| Rule::Json { pointer: text.to_owned() };
        check(pointer("/answer"), "Well: {\"answer\": \"Paris\"}", Some("Paris"));
        check(pointer("/a/0"), "{\"a\": [7]}", Some("7"));
        check(pointer("/b"), "{\"a\": [7]}", None);
        let marker = |text: &str| Rule::After { marker: text.to_owned() };
        check(marker("=>"), "1 => 2\n3 => **4**.", Some("4"));
        check(marker("=>"), "1 =>\n", None);
    }
}
