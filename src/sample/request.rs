//! What an engine is asked, and what it answers. Knows nothing of flows and scores.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{Recipe, Replica};

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
    /// What the model thought before it called those tools, where the engine wants that back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reasoning: Option<String>,
}

impl Message {
    /// A message of a role.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message {
            role,
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: None,
            reasoning: None,
        }
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
    /// No text but the log-probabilities of these words, were they what the model says next: of every token that is
    /// not wholly part of the prompt.
    Likelihood(String),
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
}
