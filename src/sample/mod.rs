//! The data that walks through a pipeline: flow in, requests and completions between, sample out.
//! Knows nothing of engines, methods or files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Key};

mod flow;
mod request;

pub use flow::{Flow, ObservationFormat, Said, Shot, Step, Text};
pub use request::{
    Completion, Finish, Message, Request, ResponseFormat, Role, Sampling, TokenLogprob,
    TokenSource, ToolCall, ToolSpec, Usage,
};

/// How a sample ended. Only `answered` ones are scored; the others are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// There is an answer to score.
    Answered,
    /// The reply met `max_tokens` before its answer.
    Truncated,
    /// The reply was blank.
    Empty,
    /// The provider withheld it.
    Refused,
    /// There was a reply, but no answer in the method's format.
    Unparsable,
    /// The prompt does not fit the model's context.
    Overflow,
    /// The engine failed after all attempts; never remembered.
    ProviderError,
    /// The run was interrupted; never remembered.
    Cancelled,
}

impl Outcome {
    /// All of them, in the order in which reports show them.
    pub const ALL: [Outcome; 8] = [
        Outcome::Answered,
        Outcome::Truncated,
        Outcome::Empty,
        Outcome::Refused,
        Outcome::Unparsable,
        Outcome::Overflow,
        Outcome::ProviderError,
        Outcome::Cancelled,
    ];

    /// The name in records and reports.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Truncated => "truncated",
            Outcome::Empty => "empty",
            Outcome::Refused => "refused",
            Outcome::Unparsable => "unparsable",
            Outcome::Overflow => "overflow",
            Outcome::ProviderError => "provider_error",
            Outcome::Cancelled => "cancelled",
        }
    }

    /// Whether the same question would end the same way, so that the result may be remembered.
    pub fn is_final(self) -> bool {
        !matches!(self, Outcome::ProviderError | Outcome::Cancelled)
    }
}

/// What one scorer says of one answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The scorer's name.
    pub scorer: String,
    /// 0 is wrong, 1 is right. Null where the scorer came to no verdict: that is neither.
    pub value: Option<f64>,
    /// Why there is no value, in a word.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unscored: Option<Unscored>,
    /// The target that gave the best value.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub matched: Option<String>,
    /// What the scorer compared, after its own reading of the answer: answers that it reads alike are one answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parsed: Option<String>,
    /// What a judge said of the answer, by its name in the manifest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verdict: Option<String>,
    /// What the scorer has to say: a judge's reason, the first field that differs, the end of a failed test.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// Keys of the requests that it made, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub requests: Vec<Key>,
}

impl Score {
    /// No verdict yet.
    pub fn new(scorer: &str) -> Self {
        Score {
            scorer: scorer.to_owned(),
            value: None,
            unscored: None,
            matched: None,
            parsed: None,
            verdict: None,
            detail: None,
            requests: Vec::new(),
        }
    }

    /// No verdict, and why.
    pub fn none(scorer: &str, unscored: Unscored, detail: impl Into<String>) -> Self {
        Score { unscored: Some(unscored), detail: Some(detail.into()), ..Score::new(scorer) }
    }

    /// Whether the scorer holds the answer fully right; `None` where it came to no verdict.
    pub fn is_right(&self) -> Option<bool> {
        self.value.map(|value| value >= 1.0)
    }
}

/// Why a scorer came to no verdict on an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unscored {
    /// A judge's reply holds none of the verdicts that the manifest knows.
    UnparsableVerdict,
    /// The judge's provider withheld its reply, or the question does not fit.
    JudgeRefused,
    /// The row has no target, and the scorer needs one.
    NoTarget,
    /// A program said so itself.
    Abstained,
}

impl Unscored {
    /// The name in records and reports.
    pub fn name(self) -> &'static str {
        match self {
            Unscored::UnparsableVerdict => "unparsable_verdict",
            Unscored::JudgeRefused => "judge_refused",
            Unscored::NoTarget => "no_target",
            Unscored::Abstained => "abstained",
        }
    }
}

/// What one extractor took out of the final reply, and what scorers say of that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The extractor's name.
    pub extractor: String,
    /// The answer; null where it found none.
    pub answer: Option<String>,
    /// Empty without an answer.
    pub scores: Vec<Score>,
}

/// Why an agent stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Termination {
    /// It gave a final answer.
    Answer,
    /// It used up its turns.
    MaxIterations,
    /// It asked for the same action three times.
    LoopDetected,
    /// A request failed or was cut off.
    Error,
}

/// One turn of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceStep {
    /// Number of the turn, from 1.
    pub step: u32,
    /// What it said it thinks.
    pub thought: String,
    /// The tool it asked for, if any.
    pub action: Option<String>,
    /// What it gave the tool.
    pub action_input: Option<String>,
    /// What came back.
    pub observation: Option<String>,
    /// Whether the tool did its work.
    pub succeeded: Option<bool>,
}

/// All turns of an agent and how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// In order.
    pub steps: Vec<TraceStep>,
    /// Why it stopped.
    pub termination_reason: Termination,
}

/// A passage that stood in a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrieved {
    /// The document: a path in the collection, or the identifier of its row.
    pub source: String,
    /// Its place in the document, from 0.
    pub number: u32,
    /// Its text.
    pub text: String,
    /// What the ranking by which it was found says of it, to six decimals.
    pub score: f64,
}

/// What retrieval found for a question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalInfo {
    /// How: naive, hybrid or reranked.
    pub method: String,
    /// For which text.
    pub query: String,
    /// The best first.
    pub passages: Vec<Retrieved>,
    /// Keys of what other models were asked for it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub requests: Vec<Key>,
}

/// A step of a flow as it was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRun {
    /// The step's name.
    pub id: String,
    /// The whole conversation, replies included.
    pub transcript: Vec<Message>,
    /// The answer read from the last reply.
    pub answer: Option<String>,
    /// Keys of its requests, in order.
    pub requests: Vec<Key>,
    /// Keys of those calls of tools that are remembered, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub calls: Vec<Key>,
    /// What the first reply was made to begin with; it stands at the beginning of that reply.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prefill: Option<String>,
    /// The passages before its question.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retrieval_info: Option<RetrievalInfo>,
    /// For agents.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<Trace>,
}

/// One flow × one epoch, as run and scored. Holds nothing that varies between equal runs: timings are
/// kept beside it (`record::Observed`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The flow's name.
    pub flow: String,
    /// The flow's content.
    pub flow_digest: Digest,
    /// The repetition, from 0.
    pub epoch: u32,
    /// The key under which it is remembered.
    pub key: Key,
    /// How it ended.
    pub outcome: Outcome,
    /// What went wrong, where it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// The answer as parsed.
    pub answer: Option<String>,
    /// Accepted answers.
    pub targets: Vec<String>,
    /// Empty unless answered.
    pub scores: Vec<Score>,
    /// What each extractor took out of the final reply; the first one's answer and scores are those above. Empty
    /// where the manifest names no extractors.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub readings: Vec<Reading>,
    /// Each step with its transcript.
    pub steps: Vec<StepRun>,
    /// For grouping.
    pub tags: BTreeMap<String, String>,
}

impl Sample {
    /// The value of a scorer, where there is one.
    pub fn score(&self, scorer: &str) -> Option<f64> {
        self.scores.iter().find(|score| score.scorer == scorer).and_then(|score| score.value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_score_of_before_verdicts_could_fail_is_still_read() {
        let score: Score =
            serde_json::from_str("{\"scorer\": \"f1\", \"value\": 0.5, \"parsed\": \"x\"}")
                .unwrap();
        assert_eq!((score.value, score.is_right()), (Some(0.5), Some(false)));
        let none = Score::none("judge", Unscored::UnparsableVerdict, "hm");
        let json = serde_json::to_value(&none).unwrap();
        assert_eq!(json["value"], Value::Null);
        assert_eq!(json["unscored"], Unscored::UnparsableVerdict.name());
    }

    #[test]
    fn outcome_names_are_those_in_json() {
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.name());
        }
    }
}
