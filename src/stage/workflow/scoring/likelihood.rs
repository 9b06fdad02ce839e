//! Multiple choice without a word from the model: the option whose words are likeliest after the prompt is its
//! answer. Each option is a request of its own. Knows nothing of engines.

use serde_json::{Value, json};

use super::{Doors, Subject, Unable};
use crate::digest::Replica;
use crate::engine::Failure;
use crate::record::ScorerRequest;
use crate::sample::{
    Completion, Flow, Outcome, Request, ResponseFormat, Role, Sampling, Score, Unscored,
};

/// Version of how options are asked for and compared.
pub(super) const REV: u32 = 1;
pub(super) const SOURCE: &str = "the option of the greatest log-likelihood after the prompt, as `multiple_choice` of lm-evaluation-harness \
    (its acc; divided by characters its acc_norm, by bytes its acc_bytes)";

/// By what a log-likelihood is divided, so that long options have a chance.
pub(super) const NORMALIZE: &[&str] = &["none", "characters", "bytes", "tokens"];

pub(super) struct Likelihood {
    /// One of [`NORMALIZE`].
    pub(super) normalize: String,
    /// What stands before an option; absent is a space where text goes on, and nothing at the begin of a turn.
    pub(super) delimiter: Option<String>,
}

/// An option as it was asked for.
struct Asked<'a> {
    option: &'a str,
    /// Sum over its tokens.
    log_likelihood: f64,
    tokens: usize,
}

impl Likelihood {
    pub(super) fn describe(&self) -> Value {
        json!({ "by": "log_likelihood", "delimiter": self.delimiter, "normalize": self.normalize })
    }

    pub(super) async fn score(
        &self,
        name: &str,
        doors: &Doors,
        subject: &Subject<'_>,
        made: &mut Vec<ScorerRequest>,
    ) -> Result<Score, Unable> {
        let Flow { options, targets, .. } = subject.flow;
        if options.is_empty() {
            let words = format!(
                "the scorer `{name}` chooses by log-likelihood, and the flow template names nothing to choose from; add \
                 `options = \"row.choices\"` to it, an expression for a list"
            );
            return Err(Unable::Asking(Failure::User(words)));
        }
        let mut score = Score::new(name);
        let delimiter = self.delimiter(doors, name, subject);
        let mut all = Vec::new();
        for option in options {
            let request = request(subject, format!("{delimiter}{option}"));
            let (key, completion) = doors.ask(name, &request, made).await?;
            score.requests.push(key);
            let completion = completion.map_err(|(code, detail)| match code.as_str() {
                "overflow" => Unable::Ended(Outcome::Overflow, detail),
                _ => Unable::Ended(Outcome::Refused, detail),
            })?;
            all.push(asked(option, &completion).ok_or_else(|| {
                Unable::Broken(format!(
                    "the scorer `{name}`: no log-probabilities are kept of `{option}`"
                ))
            })?);
        }
        let values: Vec<f64> = all.iter().map(|asked| self.value(asked)).collect();
        let chosen = first_greatest(&values);
        score.parsed = Some(options[chosen].clone());
        let each = all.iter().zip(&values).map(|(asked, value)| self.shown(asked, *value));
        let shown = each.collect::<Vec<_>>().join("; ");
        let right = targets.iter().map(|target| (target, meant(target, options)));
        let mut known = false;
        for (target, meant) in right {
            known |= !meant.is_empty();
            if meant.contains(&chosen) {
                score.matched = Some(target.clone());
            }
        }
        if !known {
            let detail =
                format!("no target is one of the options, or its letter: {}", targets.join(", "));
            let none = Score::none(name, Unscored::NoTarget, detail);
            return Ok(Score { requests: score.requests, parsed: score.parsed, ..none });
        }
        score.value = Some(f64::from(score.matched.is_some()));
        score.detail = Some(shown);
        Ok(score)
    }

    fn delimiter(&self, doors: &Doors, name: &str, subject: &Subject<'_>) -> String {
        if let Some(delimiter) = &self.delimiter {
            return delimiter.clone();
        }
        let begun = subject.opening.last().is_some_and(|last| last.role == Role::Assistant);
        let space = begun || !doors.formats_chat(name);
        if space { " ".to_owned() } else { String::new() }
    }

    fn value(&self, asked: &Asked<'_>) -> f64 {
        let length = match self.normalize.as_str() {
            "characters" => asked.option.chars().count(),
            "bytes" => asked.option.len(),
            "tokens" => asked.tokens,
            _ => 1,
        };
        asked.log_likelihood / length as f64
    }

    fn shown(&self, asked: &Asked<'_>, value: f64) -> String {
        let Asked { option, log_likelihood, tokens } = asked;
        let plural = if *tokens == 1 { "" } else { "s" };
        let per = match self.normalize.as_str() {
            "none" => String::new(),
            other => format!(", {value:.4} by {other}"),
        };
        format!("`{option}` {log_likelihood:.4} ({tokens} token{plural}{per})")
    }
}

fn request(subject: &Subject<'_>, words: String) -> Request {
    Request {
        messages: subject.opening.to_vec(),
        sampling: Sampling {
            // Servers write one, whether it is wanted or not.
            max_tokens: 1,
            response_format: Some(ResponseFormat::Likelihood(words)),
            ..Sampling::default()
        },
        tools: Vec::new(),
        // The same for every draw.
        replica: Replica::default(),
    }
}

fn asked<'a>(option: &'a str, completion: &Completion) -> Option<Asked<'a>> {
    let tokens = completion.logprobs.as_ref().filter(|tokens| !tokens.is_empty())?;
    let log_likelihood = tokens.iter().map(|token| token.logprob).sum();
    Some(Asked { option, log_likelihood, tokens: tokens.len() })
}

/// Of equal ones the first, as NumPy has it.
fn first_greatest(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

/// The options that a target stands for: those of its text, else the one of its letter.
fn meant(target: &str, options: &[String]) -> Vec<usize> {
    let target = target.trim();
    let same = options.iter().enumerate().filter(|(_, option)| option.trim() == target);
    let same: Vec<usize> = same.map(|(i, _)| i).collect();
    if !same.is_empty() {
        return same;
    }
    let letter = target.trim_matches(['(', ')', '.']);
    match letter.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => {
            let at = usize::from(letter.to_ascii_uppercase() - b'A');
            (at < options.len()).then_some(at).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_option_or_its_letter() {
        let options: Vec<String> = ["Venus", "Mercury", "A"].map(str::to_owned).to_vec();
        for (target, expected) in
            [("Mercury", vec![1]), ("B", vec![1]), ("(b)", vec![1]), ("A", vec![2]), ("D", vec![])]
        {
            assert_eq!(meant(target, &options), expected, "{target}");
        }
    }

    #[test]
    fn of_equal_options_the_first_is_taken_and_lengths_count_where_they_shall() {
        assert_eq!(first_greatest(&[-2.0, -1.0, -1.0]), 1);
        let asked = Asked { option: "für", log_likelihood: -6.0, tokens: 2 };
        let by = |normalize: &str| {
            Likelihood { normalize: normalize.to_owned(), delimiter: None }.value(&asked)
        };
        let values: Vec<f64> = NORMALIZE.iter().copied().map(by).collect();
        assert_eq!(values, [-6.0, -2.0, -1.5, -3.0]);
    }
}
