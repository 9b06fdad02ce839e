//! The data that walks through a pipeline: flow in, requests and completions between, sample out.
//! Knows nothing of engines, methods or files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{Digest, Key, Recipe, Replica};

/// Who speaks a message. Spelled as chat endpoints do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The question, and what tools observed.
    User,
    /// The model.
    Assistant,
    /// What a tool gave back to a call that the model made in the provider's own form.
    Tool,
}

/// A call of a tool in the provider's own form, beside the text of a reply.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ToolCall {
    /// By which the tool's answer names it.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON, as written by the model.
    pub arguments: String,
}

/// A tool as a request offers it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// Its name.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: Value,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, exactly as sent or received.
    pub content: String,
    /// Calls of tools that the model made beside it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tool_calls: Vec<ToolCall>,
    /// The call that this message answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message of a role.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
    }
}

/// What form a reply is held to while it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Value),
    /// Text that this regular expression matches as a whole.
    Regex(String),
    /// Text of this grammar, in the notation of the engine (Lark for mistral.rs, GBNF for llama.cpp).
    Grammar(String),
    /// No text but the embedding of the one message, as a JSON list of numbers.
    Embedding,
}

/// Sampling settings in OpenAI's spelling. All of them are semantic.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus sampling; absent leaves it to the engine.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub top_p: Option<f64>,
    /// Keep the k likeliest tokens; absent leaves it to the engine.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub top_k: Option<u32>,
    /// Most tokens in a reply.
    pub max_tokens: u32,
    /// The reply ends before the first of these.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stop: Vec<String>,
    /// Seed of a sampled reply.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seed: Option<i64>,
    /// Tokens less likely than this share of the likeliest are left out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min_p: Option<f64>,
    /// Less of what was said often: taken from the logit for each time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frequency_penalty: Option<f64>,
    /// Less of what was said at all: taken from the logit once.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub presence_penalty: Option<f64>,
    /// Added to the logit of a token, by its number.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub logit_bias: BTreeMap<String, f64>,
    /// Log-probabilities of the reply's tokens, each with that many of the likeliest beside it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub logprobs: Option<u32>,
    /// The form of the reply.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response_format: Option<ResponseFormat>,
    /// How long a reasoning model shall think, in the words of the provider.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reasoning_effort: Option<String>,
}

impl Sampling {
    /// Adds all of them to a recipe.
    pub fn describe(&self, recipe: Recipe) -> Recipe {
        let plain = |format| serde_json::to_value(format).expect("BUG: a format is plain data");
        let bias = (!self.logit_bias.is_empty())
            .then(|| serde_json::to_value(&self.logit_bias).expect("BUG: numbers are plain data"));
        recipe
            .field("temperature", self.temperature)
            .field("top_p", self.top_p)
            .field("top_k", self.top_k)
            .field("max_tokens", self.max_tokens)
            .field("stop", self.stop.clone())
            .field("seed", self.seed)
            .field("min_p", self.min_p)
            .field("frequency_penalty", self.frequency_penalty)
            .field("presence_penalty", self.presence_penalty)
            .field("logit_bias", bias)
            .field("logprobs", self.logprobs)
            .field("response_format", self.response_format.as_ref().map(plain))
            .field("reasoning_effort", self.reasoning_effort.as_deref())
    }
}

/// One question to an engine: everything that decides the answer, and nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// How to sample the next turn.
    pub sampling: Sampling,
    /// Tools that the model may call in the provider's own form.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tools: Vec<ToolSpec>,
    /// Which draw.
    pub replica: Replica,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended its turn, or a stop string was met.
    Stop,
    /// `max_tokens` was reached.
    Length,
    /// The provider withheld the reply.
    ContentFilter,
    /// The model asked for tools in the provider's own form.
    ToolCalls,
}

/// Who counted tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// The engine in this process.
    Engine,
    /// The server's own words.
    Usage,
    /// A local tokenizer, over the texts.
    Tokenizer,
    /// Nobody: events of the stream, of one token or more each.
    Chunks,
    /// Not the same for all requests.
    Mixed,
}

impl TokenSource {
    /// The name in records and reports.
    pub fn name(self) -> &'static str {
        match self {
            TokenSource::Engine => "engine",
            TokenSource::Usage => "usage",
            TokenSource::Tokenizer => "tokenizer",
            TokenSource::Chunks => "chunks",
            TokenSource::Mixed => "mixed",
        }
    }
}

/// Tokens of one or more requests. Absent where nobody counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Prompt tokens.
    pub input_tokens: Option<u64>,
    /// Reply tokens, those of reasoning included.
    pub output_tokens: Option<u64>,
    /// Of the prompt tokens, those that the provider had in its own cache.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub input_tokens_cache_read: Option<u64>,
    /// Of the reply tokens, those of reasoning.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reasoning_tokens: Option<u64>,
    /// Who counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token_source: Option<TokenSource>,
}

impl Usage {
    /// Counts of prompt and reply, by whom.
    pub fn counted(
        input_tokens: Option<u64>,
        output_tokens: Option<u64>,
        source: TokenSource,
    ) -> Usage {
        Usage { input_tokens, output_tokens, token_source: Some(source), ..Usage::default() }
    }

    /// Adds another request; a count that one of them lacks is unknown for both.
    pub fn plus(self, other: Usage) -> Usage {
        let add = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
        Usage {
            input_tokens: add(self.input_tokens, other.input_tokens),
            output_tokens: add(self.output_tokens, other.output_tokens),
            input_tokens_cache_read: add(
                self.input_tokens_cache_read,
                other.input_tokens_cache_read,
            ),
            reasoning_tokens: add(self.reasoning_tokens, other.reasoning_tokens),
            token_source: match (self.token_source, other.token_source) {
                (None, one) | (one, None) => one,
                (Some(a), Some(b)) if a == b => Some(a),
                _ => Some(TokenSource::Mixed),
            },
        }
    }

    /// Of no requests: zero of each is exact.
    pub const ZERO: Usage = Usage {
        input_tokens: Some(0),
        output_tokens: Some(0),
        input_tokens_cache_read: Some(0),
        reasoning_tokens: Some(0),
        token_source: None,
    };
}

/// The log-probability of a token of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability, before temperature.
    pub logprob: f64,
    /// The likeliest tokens at its place, with theirs.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub top: Vec<(String, f64)>,
}

/// An engine's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The text, as received.
    pub text: String,
    /// What a reasoning model thought before it, where the provider shows that apart.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reasoning: Option<String>,
    /// Tools that it asks for in the provider's own form.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tool_calls: Vec<ToolCall>,
    /// Of its tokens, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Why it ended.
    pub finish: Finish,
    /// What it took.
    pub usage: Usage,
}

impl Completion {
    /// A reply of nothing but text.
    pub fn new(text: impl Into<String>, finish: Finish, usage: Usage) -> Self {
        Completion {
            text: text.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            logprobs: None,
            finish,
            usage,
        }
    }
}

/// A text of a flow: rendered at expansion, or waiting for the output of an earlier step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Text {
    /// Exactly these bytes.
    Ready(String),
    /// A template that reads `steps.<id>.output`.
    Later(String),
}

/// A worked example shown before the question. Each method writes it in its own format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shot {
    /// The example's question.
    pub user: String,
    /// The way to the answer, for methods that show one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reasoning: Option<String>,
    /// Its answer.
    pub answer: String,
}

/// A message before the question of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// User or assistant.
    pub role: Role,
    /// What is said.
    pub content: Text,
}

/// How observations of tools go back to the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservationFormat {
    /// Whose turn carries them.
    pub role: Role,
    /// What stands before the observation.
    pub prefix: String,
}

impl Default for ObservationFormat {
    fn default() -> Self {
        ObservationFormat { role: Role::User, prefix: "Observation: ".to_owned() }
    }
}

/// One step of a flow: a question to the model, with a method around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Name by which later steps see its output.
    pub id: String,
    /// System prompt of the template; a method adds its instructions below.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub system: Option<Text>,
    /// Worked examples.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub shots: Vec<Shot>,
    /// Messages between worked examples and question.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub messages: Vec<Said>,
    /// The question.
    pub user: Text,
    /// How the reply begins: a turn of the assistant that the model goes on with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prefill: Option<Text>,
    /// Bound on the reply; absent takes the workflow's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_tokens: Option<u32>,
    /// Further stop strings.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stop: Vec<String>,
    /// Whether the conversation of the steps before goes on, or a new one begins.
    pub continues: bool,
    /// How tools answer.
    pub observation: ObservationFormat,
}

/// One expanded unit of work: template × row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Name for people: from the template's `id`, else from the row's position.
    pub id: String,
    /// How many flows with the same steps come before this one.
    pub occurrence: u32,
    /// What is asked, in order; the answer of the last one is scored.
    pub steps: Vec<Step>,
    /// Accepted answers; empty where nothing is known to be right.
    pub targets: Vec<String>,
    /// Columns kept for grouping and filtering.
    pub tags: BTreeMap<String, String>,
    /// The row, kept only where a later step's template reads it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub row: Option<Value>,
}

impl Flow {
    /// Digest of all that can change its sample; `id` and `tags` are labels.
    pub fn digest(&self) -> Digest {
        Digest::of_json(&(&self.steps, &self.targets, &self.row))
    }

    /// Digest of what reaches the model, by which equal rows are counted.
    pub fn steps_digest(&self) -> Digest {
        Digest::of_json(&(&self.steps, &self.row))
    }
}

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
    /// What the scorer compared, after its own reading of the answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parsed: Option<String>,
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
    use super::*;

    #[test]
    fn an_unknown_count_stays_unknown() {
        let known = Usage::counted(Some(3), Some(4), TokenSource::Usage);
        assert_eq!(Usage::ZERO.plus(known), known);
        let half = Usage::counted(Some(1), None, TokenSource::Chunks);
        assert_eq!(known.plus(half), Usage::counted(Some(4), None, TokenSource::Mixed));
    }

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
