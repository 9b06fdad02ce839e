//! An engine whose replies are written down: for tests, examples and demonstrations. Knows nothing but
//! its rules; the same request always gets the same reply.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Admission, Backend, Engine, EngineError, Progress, Reply, Stamps};
use crate::digest::Recipe;
use crate::sample::{
    Completion, Finish, Message, Request, ResponseFormat, Role, TokenLogprob, Usage,
};

/// Version of how rules are matched.
const REV: u32 = 1;

/// A rule: when it applies and what it says. The first that applies is taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A part of the last message; absent applies to all.
    #[serde(default)]
    pub when: Option<String>,
    /// A part of the system message; absent applies to all.
    #[serde(default)]
    pub system: Option<String>,
    /// The reply.
    #[serde(default)]
    pub reply: String,
    /// The reply of each draw in place of it: epoch 0 has the first, and after the last comes the first again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draws: Vec<String>,
    /// Why it ends.
    #[serde(default = "stop")]
    pub finish: Finish,
    /// Refuse for good, with this detail, instead of a reply.
    #[serde(default)]
    pub reject: Option<String>,
    /// Fail for a passing reason, with this detail, instead of a reply.
    #[serde(default)]
    pub fail: Option<String>,
}

impl Rule {
    /// What contradicts itself in it.
    pub fn check(self) -> Result<Rule, &'static str> {
        match self.draws.is_empty() || self.reply.is_empty() {
            true => Ok(self),
            false => Err("`reply` and `draws` exclude each other"),
        }
    }
}

fn stop() -> Finish {
    Finish::Stop
}

/// How sure it is of each character of its reply. Any other character there has what is left.
const SURE: f64 = 0.9;

/// The engine.
#[derive(Debug, Clone)]
pub struct Scripted {
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
    /// Time of every answer: an execution setting, in no key.
    pub latency: Duration,
}

impl Scripted {
    /// Adds the rules to an engine's recipe.
    pub fn identify(&self, recipe: Recipe) -> Recipe {
        let rules = serde_json::to_value(&self.rules).expect("BUG: rules are plain data");
        recipe.field("rules_rev", REV).field("rules", rules)
    }

    fn rule(&self, messages: &[Message]) -> Option<&Rule> {
        let last = messages.last().map_or("", |message| message.content.as_str());
        let system = messages
            .iter()
            .find(|message| message.role == Role::System)
            .map_or("", |message| message.content.as_str());
        self.rules.iter().find(|rule| {
            rule.when.as_deref().is_none_or(|part| last.contains(part))
                && rule.system.as_deref().is_none_or(|part| system.contains(part))
        })
    }
}

impl Backend for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn describe(&self) -> BTreeMap<String, Value> {
        [("backend".to_owned(), "scripted".into()), ("rules".to_owned(), self.rules.len().into())]
            .into()
    }

    fn admission(&self) -> Admission {
        Admission::fixed(None, "replies do not depend on each other")
    }

    fn continues(&self) -> Result<(), String> {
        Ok(())
    }

    fn likelihoods(&self) -> Result<(), String> {
        Ok(())
    }

    fn load(&self, _: Progress) -> BoxFuture<'_, Result<Box<dyn Engine>, String>> {
        let engine: Box<dyn Engine> = Box::new(self.clone());
        async move { Ok(engine) }.boxed()
    }
}

impl Engine for Scripted {
    fn complete<'a>(
        &'a self,
        request: &'a Request,
        _: Option<Duration>,
    ) -> BoxFuture<'a, Result<Reply, EngineError>> {
        async move {
            let mut stamps = Stamps::start();
            if !self.latency.is_zero() {
                tokio::time::sleep(self.latency).await;
            }
            let Some(rule) = self.rule(&request.messages) else {
                let last = request.messages.last().map_or("", |message| message.content.as_str());
                let shown: String = last.chars().take(80).collect();
                return Err(EngineError::Broken(format!(
                    "no rule of the script applies to `{shown}`"
                )));
            };
            if let Some(detail) = &rule.reject {
                return Err(EngineError::Rejected { code: "refused", detail: detail.clone() });
            }
            if let Some(detail) = &rule.fail {
                return Err(EngineError::passing("script", detail.as_str()));
            }
            let draw = request.replica.epoch as usize % rule.draws.len().max(1);
            let reply = rule.draws.get(draw).unwrap_or(&rule.reply);
            if let Some(ResponseFormat::Likelihood(words)) = &request.sampling.response_format {
                let completion = likelihood(reply, words);
                stamps.finish();
                return Ok(Reply { completion, stamps, notices: Vec::new() });
            }
            let (text, cut) = cut_at_stop(reply, &request.sampling.stop);
            let finish = if cut { Finish::Stop } else { rule.finish };
            // A script has no tokens, so it counts none.
            let completion = Completion::new(text, finish, Usage::default());
            stamps.finish();
            Ok(Reply { completion, stamps, notices: Vec::new() })
        }
        .boxed()
    }
}

/// What words would be worth as a reply: their tokens are their characters, and the script is [`SURE`] of its own.
/// White space before them is free.
fn likelihood(reply: &str, words: &str) -> Completion {
    let (words, mut own) = (words.trim_start(), reply.chars());
    let token = |said: char| TokenLogprob {
        token: said.to_string(),
        logprob: if own.next() == Some(said) { SURE.ln() } else { (1.0 - SURE).ln() },
        top: Vec::new(),
    };
    let logprobs = words.chars().map(token).collect();
    let completion = Completion::new("", Finish::Stop, Usage::default());
    Completion { logprobs: Some(logprobs), ..completion }
}

/// A text up to the earliest stop string, and whether there was one.
pub(super) fn cut_at_stop(text: &str, stop: &[String]) -> (String, bool) {
    match stop
        .iter()
        .filter(|stop| !stop.is_empty())
        .filter_map(|stop| text.find(stop.as_str()))
        .min()
    {
        Some(at) => (text[..at].to_owned(), true),
        None => (text.to_owned(), false),
    }
}
