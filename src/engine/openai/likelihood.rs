//! One attempt at the log-probabilities of words that might follow a prompt. The interface has two ways: completions
//! that repeat their prompt (`echo` with `logprobs`: OpenAI's older models, vLLM, SGLang, llama-cpp-python), and
//! `prompt_logprobs` for chats of vLLM. Both write a token, as lm-evaluation-harness has them do it, since not every
//! server takes zero; it is left out here. Knows nothing of further attempts.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::trouble::{blame, broken_off, malformed, refused, unreachable};
use super::wire::{Messages, UsageWire, prompt};
use super::{Api, OpenAi, Ready};
use crate::engine::{EngineError, Reply, Stamps};
use crate::sample::{
    Completion, Finish, Message, Request, ResponseFormat, Role, Sampling, TokenLogprob,
};

/// Longest reply that is read: every token of the prompt stands in it.
const REPLY_MAX: usize = 64 << 20;
/// Of the bytes of a prompt, those that its tokens may lack: characters that were cut in two are shown as others.
const LOST: f64 = 0.1;

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    choices: Vec<Choice>,
    /// By the number of the token; only the prompt's own where none beside it are asked for.
    #[serde(default)]
    prompt_logprobs: Option<Vec<Option<BTreeMap<String, PromptToken>>>>,
    #[serde(default)]
    usage: Option<UsageWire>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    logprobs: Option<Lists>,
}

#[derive(Deserialize)]
struct Lists {
    #[serde(default)]
    tokens: Option<Vec<String>>,
    #[serde(default)]
    token_logprobs: Option<Vec<Option<f64>>>,
}

#[derive(Deserialize)]
struct PromptToken {
    logprob: f64,
    #[serde(default)]
    decoded_token: Option<String>,
}

/// A token and its log-probability; the first of a prompt has none.
type Token = (String, Option<f64>);

/// A prompt of a few words that shows whether the server can do this.
pub(super) fn proof() -> Request {
    Request {
        messages: vec![Message::new(Role::User, "The capital of France is")],
        sampling: Sampling {
            max_tokens: 1,
            response_format: Some(ResponseFormat::Likelihood(" Paris".to_owned())),
            ..Sampling::default()
        },
        tools: Vec::new(),
        replica: crate::digest::Replica::default(),
    }
}

fn unable(why: &str) -> EngineError {
    EngineError::Broken(format!(
        "the server gives no log-probabilities of a prompt ({why}); a choice by log-likelihood needs one whose \
         completions take `echo` with `logprobs`, such as vLLM, or an engine with `backend = \"mistralrs\"`; with any \
         other, use `by = \"letter\"`"
    ))
}

/// Asks for the log-probabilities of what the request names.
pub(super) async fn complete(ready: &Ready, request: &Request) -> Result<Reply, EngineError> {
    let Some(ResponseFormat::Likelihood(words)) = &request.sampling.response_format else {
        unreachable!("BUG: another kind of request came here");
    };
    let body = body(&ready.settings, request, words);
    let body = serde_json::to_vec(&body).expect("BUG: a body is plain data");
    let visit = ready.upstreams.choose();
    let upstream = visit.upstream;
    let mut stamps = Stamps::start();
    let answered = async {
        let (answer, connect) = ready.post.send(&upstream.target, body).await;
        stamps.connect = connect;
        let mut answer = answer.map_err(|broken| unreachable(ready, &broken))?;
        let status = answer.head.status;
        if !status.is_success() {
            return Err(match refused(ready, upstream, answer).await {
                EngineError::Broken(said) if !matches!(status.as_u16(), 401..=403) => unable(&said),
                // llama.cpp calls a setting that it does not have an error of its own.
                EngineError::Passing(trouble)
                    if status == 500
                        && ["echo", "logprobs"].iter().any(|w| trouble.detail.contains(w)) =>
                {
                    unable(&trouble.detail)
                }
                other => other,
            });
        }
        let mut body = Vec::new();
        while let Some(chunk) =
            answer.chunk().await.map_err(|error| broken_off(&ready.post.words(&error)))?
        {
            body.extend_from_slice(&chunk);
            if body.len() > REPLY_MAX {
                return Err(malformed(ready, "more than 64 MiB", b""));
            }
        }
        let wire: Wire = serde_json::from_slice(&body)
            .map_err(|error| malformed(ready, &error.to_string(), &body))?;
        stamps.finish();
        answer.keep_connection().await;
        Ok(wire)
    };
    let wire = match answered.await {
        Ok(wire) => wire,
        Err(error) => return Err(blame(ready, visit, error)),
    };
    visit.succeeded();
    let usage = wire.usage.map(UsageWire::usage).unwrap_or_default();
    let logprobs = read(ready, request, words, wire).map_err(|error| error.billed(usage))?;
    let completion = Completion::new("", Finish::Stop, usage);
    let completion = Completion { logprobs: Some(logprobs), ..completion };
    Ok(Reply { completion, stamps, notices: Vec::new() })
}

/// What the server says of the words.
fn read(
    ready: &Ready,
    request: &Request,
    words: &str,
    wire: Wire,
) -> Result<Vec<TokenLogprob>, EngineError> {
    let written = wire.usage.and_then(|usage| usage.usage().output_tokens);
    let tokens = tokens(ready.settings.api, wire, written)?;
    whole(request, words, &tokens)?;
    match following(&tokens, words) {
        Ok(logprobs) => Ok(logprobs),
        Err(why) => by_count(ready, request, words, &tokens).ok_or_else(|| unable(&why)),
    }
}

fn body(settings: &OpenAi, request: &Request, words: &str) -> Value {
    let mut body = Map::new();
    body.insert("model".to_owned(), settings.model.as_str().into());
    let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
    match settings.api {
        Api::Completions => {
            set("prompt", format!("{}{words}", prompt(&request.messages)).into());
            set("echo", true.into());
            set("logprobs", 1.into());
        }
        Api::Chat => {
            let mut messages = request.messages.clone();
            match messages.last_mut().filter(|last| last.role == Role::Assistant) {
                Some(begun) => begun.content.push_str(words),
                None => messages.push(Message::new(Role::Assistant, words)),
            }
            set("messages", json!(Messages(&messages)));
            set("continue_final_message", true.into());
            set("add_generation_prompt", false.into());
            set("prompt_logprobs", 0.into());
        }
    }
    set(&settings.max_tokens_field, 1.into());
    if !settings.omit.iter().any(|omitted| omitted == "temperature") {
        set("temperature", 0.into());
    }
    body.extend(settings.extra_body.clone());
    Value::Object(body)
}

/// The tokens of the prompt, without what was written after it.
fn tokens(api: Api, wire: Wire, written: Option<u64>) -> Result<Vec<Token>, EngineError> {
    if api == Api::Chat {
        let all = wire.prompt_logprobs.ok_or_else(|| unable("it ignores `prompt_logprobs`"))?;
        let one = |token: Option<BTreeMap<String, PromptToken>>| match token {
            None => Some((String::new(), None)),
            Some(token) => {
                let (_, token) = token.into_iter().next()?;
                Some((token.decoded_token?, Some(token.logprob)))
            }
        };
        let tokens: Option<Vec<Token>> = all.into_iter().map(one).collect();
        return tokens.ok_or_else(|| unable("its `prompt_logprobs` have no texts"));
    }
    let lists = wire.choices.into_iter().next().and_then(|choice| choice.logprobs);
    let Some(Lists { tokens: Some(tokens), token_logprobs: Some(logprobs) }) = lists else {
        return Err(unable("it ignores `echo` or `logprobs`"));
    };
    let mut tokens: Vec<Token> = tokens.into_iter().zip(logprobs).collect();
    let written = written.map_or(1, |n| n as usize);
    tokens.truncate(tokens.len().saturating_sub(written));
    match tokens.is_empty() {
        true => Err(unable("it ignores `echo`")),
        false => Ok(tokens),
    }
}

/// A server that has read only a part of the prompt has cut it.
fn whole(request: &Request, words: &str, tokens: &[Token]) -> Result<(), EngineError> {
    let sent: usize = request.messages.iter().map(|message| message.content.len()).sum();
    let sent = sent + words.len();
    let read: usize = tokens.iter().map(|(text, _)| text.len()).sum();
    if (read as f64) < sent as f64 * (1.0 - LOST) {
        return Err(EngineError::Rejected {
            code: "overflow",
            detail: format!(
                "the prompt has {sent} bytes, and the server has read {read}: it has cut the prompt"
            ),
        });
    }
    Ok(())
}

/// The last tokens, as many as it takes for the words: one that begins before them is theirs as well.
fn following(tokens: &[Token], words: &str) -> Result<Vec<TokenLogprob>, String> {
    let mut text = String::new();
    let mut count = 0;
    while text.len() < words.len() {
        count += 1;
        let Some(at) = tokens.len().checked_sub(count) else { break };
        text.insert_str(0, &tokens[at].0);
    }
    match text.ends_with(words) {
        true => last(tokens, count),
        false => Err(format!("its last tokens say {text:?} and not {words:?}")),
    }
}

/// The same by the local tokenizer, where the server's tokens do not spell the words.
fn by_count(
    ready: &Ready,
    request: &Request,
    words: &str,
    tokens: &[Token],
) -> Option<Vec<TokenLogprob>> {
    let tokenizer = ready.tokenizer.as_ref().filter(|_| ready.settings.api == Api::Completions)?;
    let prompt = prompt(&request.messages);
    let before = tokenizer.encode_fast(prompt.as_str(), false).ok()?;
    let both = tokenizer.encode_fast(format!("{prompt}{words}"), false).ok()?;
    let same = before.get_ids().iter().zip(both.get_ids()).take_while(|(a, b)| a == b).count();
    last(tokens, both.len() - same).ok()
}

fn last(tokens: &[Token], count: usize) -> Result<Vec<TokenLogprob>, String> {
    let tokens = &tokens[tokens.len().saturating_sub(count)..];
    let one = |(text, logprob): &Token| {
        Some(TokenLogprob { token: text.clone(), logprob: (*logprob)?, top: Vec::new() })
    };
    let all: Option<Vec<_>> = tokens.iter().map(one).collect();
    all.filter(|all| !all.is_empty()).ok_or_else(|| "one of its tokens has none".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tokens: &[(&str, f64)], words: &str, expected: Option<&[f64]>) {
        let tokens: Vec<Token> = tokens.iter().map(|(t, p)| ((*t).to_owned(), Some(*p))).collect();
        let found = following(&tokens, words).ok();
        let found = found.map(|all| all.iter().map(|token| token.logprob).collect::<Vec<_>>());
        assert_eq!(found.as_deref(), expected, "{words}");
    }

    #[test]
    fn the_tokens_of_an_option_are_those_after_its_context() {
        let tokens = [("<s>", -9.0), ("Answer", -4.0), (":", -1.0), (" Mer", -2.0), ("cury", -0.5)];
        check(&tokens, " Mercury", Some(&[-2.0, -0.5]));
        check(&tokens, "cury", Some(&[-0.5]));
        // A token that holds the end of the context and the beginning of the option belongs to the option.
        check(&tokens, "Mercury", Some(&[-2.0, -0.5]));
        check(&tokens, " Venus", None);
        check(&tokens[4..], " Mercury", None);
    }

    #[test]
    fn a_prompt_that_was_cut_is_refused() {
        let request = |text: &str| Request {
            messages: vec![Message::new(Role::User, text)],
            sampling: Sampling::default(),
            tools: Vec::new(),
            replica: crate::digest::Replica::default(),
        };
        let tokens = [("Answer:".to_owned(), None), (" A".to_owned(), Some(-1.0))];
        assert!(whole(&request("Answer:"), " A", &tokens).is_ok());
        let long = format!("{}Answer:", "word ".repeat(99));
        assert!(whole(&request(&long), " A", &tokens).is_err());
    }
}
