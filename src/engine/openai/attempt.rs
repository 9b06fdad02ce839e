//! One attempt at a request: sent to one server, read as it comes, ended in a reply or in the right kind of
//! error. Knows nothing of further attempts, and nothing of what errors mean (`trouble`).

use std::time::{Duration, Instant};

use hyper::header::{CONTENT_TYPE, HeaderMap};

use super::Ready;
use super::connection::Answer;
use super::sse::Events;
use super::trouble::{blame, broken_off, malformed, refused, said_error, unreachable};
use super::wire::{Body, CallWire, Part, Wire, finish};
use crate::engine::scripted::cut_at_stop;
use crate::engine::{EngineError, Reply, Stamps, Trouble};
use crate::sample::{
    Completion, Finish, Request, ResponseFormat, TokenLogprob, TokenSource, ToolCall, Usage,
};

/// Longest reply that is read.
const REPLY_MAX: usize = 64 << 20;
/// Text has about four bytes to a token, and this many where it is made of long words or white space.
const BYTES_PER_TOKEN: u64 = 12;
/// Shorter prompts fit everywhere.
const PROMPT_LONG: usize = 4096;
/// Longest wait for the end of a stream after the end of its reply.
const TRAILER: Duration = Duration::from_secs(5);

/// Sends a request and reads its reply.
pub(super) async fn complete(
    ready: &Ready,
    request: &Request,
    first_token: Option<Duration>,
) -> Result<Reply, EngineError> {
    let mut notices = ready.check(request)?;
    refuse_overflow(ready, request)?;
    let settings = &ready.settings;
    let body = serde_json::to_vec(&Body { settings, request }).expect("BUG: a body is plain data");
    let visit = ready.upstreams.choose();
    let upstream = visit.upstream;
    // Those that are ready as well are prepared first, and then sent one right after the other: the server is woken once
    // for all of them, and none waits while it is timed.
    tokio::task::yield_now().await;
    let mut stamps = Stamps::start();
    let target = &upstream.target;
    // Only a stream shows when its first part comes.
    let limit = first_token.filter(|_| settings.stream);
    let mut told = Told::default();
    let answered = async {
        // Servers send the head of their answer with its first part.
        let (answer, connect) = in_time(limit, stamps.start, ready.post.send(target, body)).await?;
        stamps.connect = connect;
        let mut answer = answer.map_err(|broken| unreachable(ready, &broken))?;
        if !answer.head.status.is_success() {
            return Err(refused(ready, upstream, answer).await);
        }
        let ended = match settings.stream && is_stream(&answer.head.headers) {
            true => told.stream(ready, &mut answer, &mut stamps, limit).await?,
            // Also a server that does not stream although it was asked to.
            false => told.whole(ready, &mut answer).await?,
        };
        stamps.finish();
        if ended {
            answer.keep_connection().await;
        }
        Ok(())
    };
    if let Err(error) = answered.await {
        return Err(blame(ready, visit, error.so_far(told.usage)));
    }
    visit.succeeded();
    let billed = told.usage.unwrap_or_default();
    let completion = told.completion(ready, request, &mut notices);
    let completion = completion.map_err(|error| error.billed(billed))?;
    Ok(Reply { completion, stamps, notices })
}

/// What comes of `work`, unless it takes longer than `limit` from `start`.
async fn in_time<T>(
    limit: Option<Duration>,
    start: Instant,
    work: impl Future<Output = T>,
) -> Result<T, EngineError> {
    match limit {
        None => Ok(work.await),
        Some(limit) => {
            let left = limit.saturating_sub(start.elapsed());
            tokio::time::timeout(left, work).await.map_err(|_| late(limit))
        }
    }
}

fn late(limit: Duration) -> EngineError {
    let limit = humantime::format_duration(limit);
    let mut trouble = Trouble::new("first token", format!("no part of a reply within {limit}"));
    trouble.overload = true;
    EngineError::Passing(trouble)
}

/// A prompt that cannot fit is not sent: some servers would cut it without a word.
fn refuse_overflow(ready: &Ready, request: &Request) -> Result<(), EngineError> {
    let (Some(context), Some(_)) = (ready.facts.context, &ready.tokenizer) else { return Ok(()) };
    // Without the frames of the turns, so this is the least that it can be.
    let texts = request.messages.iter().map(|message| ready.count(&message.content));
    let Some(tokens) = texts.sum::<Option<u64>>() else { return Ok(()) };
    if tokens < context {
        return Ok(());
    }
    Err(EngineError::Rejected {
        code: "overflow",
        detail: format!("the prompt has {tokens} tokens, and the model's context {context} in all"),
    })
}

/// Some servers cut the beginning off a prompt that does not fit, and say nothing but how many tokens were left.
/// With a tokenizer that is known, else it is guessed and told.
fn refuse_cut(
    ready: &Ready,
    request: &Request,
    usage: &Usage,
    notices: &mut Vec<String>,
) -> Result<(), EngineError> {
    // What comes from a cache of the server is not counted everywhere.
    let Some(read) = usage.input_tokens.filter(|_| usage.input_tokens_cache_read.is_none()) else {
        return Ok(());
    };
    let bytes: usize = request.messages.iter().map(|message| message.content.len()).sum();
    // No token is shorter than a byte, so that nothing is missing from most prompts.
    if bytes as u64 <= read {
        return Ok(());
    }
    let texts = request.messages.iter().map(|message| ready.count(&message.content));
    match texts.sum::<Option<u64>>() {
        // The tokenizer may be that of a relative of the model.
        Some(tokens) if tokens > read + read / 10 + 16 => Err(EngineError::Rejected {
            code: "overflow",
            detail: format!(
                "the prompt has {tokens} tokens, and the server has read {read}: it has cut the prompt"
            ),
        }),
        None if bytes > PROMPT_LONG && bytes as u64 > BYTES_PER_TOKEN * read => {
            let notice = format!(
                "the server says that it has read {read} tokens of a prompt of {bytes} bytes: it may have cut it; with \
                 `tokenizer` and `context_length` such a prompt is refused"
            );
            notices.extend(ready.once("cut", notice));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Why a reply ended that does not say so, as far as the rest of it shows; `most` tokens were asked for.
fn unnamed_end(calls: &[ToolCall], usage: &Usage, most: Option<u64>) -> Option<Finish> {
    if !calls.is_empty() {
        return Some(Finish::ToolCalls);
    }
    let counted = usage.output_tokens.filter(|_| usage.token_source == Some(TokenSource::Usage));
    counted.zip(most).filter(|(counted, most)| counted >= most).map(|_| Finish::Length)
}

fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // A server that says nothing was asked for a stream.
    kind.is_none_or(|kind| !kind.starts_with("application/json"))
}

/// A reply as far as it has been told.
#[derive(Default)]
struct Told {
    text: String,
    reasoning: String,
    refusal: String,
    tool_calls: Vec<ToolCall>,
    /// The number of each call on the wire: not every server counts from 0, and some count nothing.
    call_numbers: Vec<Option<i64>>,
    logprobs: Vec<TokenLogprob>,
    finish: Option<String>,
    usage: Option<Usage>,
    events: u32,
    done: bool,
    /// Whether there was any choice at all.
    chosen: bool,
}

impl Told {
    /// Reads a reply that comes as one piece; whether it was read to its end.
    async fn whole(&mut self, ready: &Ready, answer: &mut Answer<'_>) -> Result<bool, EngineError> {
        let first = answer.chunk().await.map_err(|e| broken_off(&ready.post.words(&e)))?;
        let Some(first) = first else {
            return Err(malformed(ready, "an empty body", b""));
        };
        // Most replies come in one read, and are parsed where they lie.
        let mut more: Option<Vec<u8>> = None;
        while let Some(chunk) =
            answer.chunk().await.map_err(|e| broken_off(&ready.post.words(&e)))?
        {
            let body = more.get_or_insert_with(|| first.to_vec());
            body.extend_from_slice(&chunk);
            if body.len() > REPLY_MAX {
                return Err(malformed(ready, "more than 64 MiB", b""));
            }
        }
        let body: &[u8] = more.as_deref().unwrap_or(&first);
        let wire: Wire<'_> = serde_json::from_slice(body)
            .map_err(|error| malformed(ready, &error.to_string(), body))?;
        self.take(ready, wire, false)?;
        if !self.chosen {
            let usage = self.usage.unwrap_or_default();
            return Err(malformed(ready, "no choice in it", body).billed(usage));
        }
        self.done = true;
        Ok(true)
    }

    /// Reads a reply that comes in parts; whether it was read to its end.
    async fn stream(
        &mut self,
        ready: &Ready,
        answer: &mut Answer<'_>,
        stamps: &mut Stamps,
        limit: Option<Duration>,
    ) -> Result<bool, EngineError> {
        let mut events = Events::default();
        let mut size = 0;
        let mut trailer = None;
        let ended = loop {
            let next = answer.chunk();
            // The reply is there; what may still come are its counts and the end of the stream.
            let next = match self.finish.is_some() || self.done {
                true => {
                    let until =
                        trailer.get_or_insert_with(|| tokio::time::Instant::now() + TRAILER);
                    match tokio::time::timeout_at(*until, next).await {
                        Ok(next) => next,
                        Err(_) => return Ok(false),
                    }
                }
                false => in_time(limit.filter(|_| self.events == 0), stamps.start, next).await?,
            };
            // Stamped before it is parsed.
            let at = Instant::now();
            let chunk = match next {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break true,
                // After its end a connection may break as it likes.
                Err(_) if self.finish.is_some() => break false,
                Err(error) => return Err(broken_off(&ready.post.words(&error))),
            };
            size += chunk.len();
            if size > REPLY_MAX || events.pending() > REPLY_MAX {
                return Err(malformed(ready, "more than 64 MiB", b""));
            }
            events.read(&chunk, |data| self.event(ready, data, at, stamps))?;
        };
        match (&self.finish, self.chosen) {
            (Some(_), _) => Ok(ended),
            (None, false) if self.done => Err(malformed(ready, "no choice in the stream", b"")),
            // Some servers end a stream without saying why.
            (None, true) if self.done => Ok(ended),
            _ => Err(EngineError::passing("reset", "the stream ended before the reply did")),
        }
    }

    fn event(
        &mut self,
        ready: &Ready,
        data: &[u8],
        at: Instant,
        stamps: &mut Stamps,
    ) -> Result<(), EngineError> {
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let wire: Wire<'_> = serde_json::from_slice(data)
            .map_err(|error| malformed(ready, &error.to_string(), data))?;
        let (thought, all) = (self.reasoning.len(), self.said());
        self.take(ready, wire, true)?;
        if self.said() > all {
            self.events += 1;
            // A call is an answer as well as words are: all but reasoning.
            stamps.event(at, self.said() - self.reasoning.len() > all - thought);
        }
        Ok(())
    }

    /// How much has been said, of whatever kind.
    fn said(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| 1 + call.name.len() + call.arguments.len());
        self.text.len() + self.reasoning.len() + self.refusal.len() + calls.sum::<usize>()
    }

    fn take(&mut self, ready: &Ready, wire: Wire<'_>, streams: bool) -> Result<(), EngineError> {
        let begun = self.said() > 0;
        if let Some(error) = wire.error.filter(|error| !error.is_null()) {
            return Err(said_error(ready, error, begun));
        }
        // Older servers put what others have below `error` at the top.
        if wire.choices.is_none() && wire.usage.is_none() && wire.message.is_some() {
            let error = serde_json::json!({ "message": wire.message, "code": wire.code });
            return Err(said_error(ready, error, begun));
        }
        if let Some(usage) = wire.usage {
            self.usage = Some(usage.usage());
        }
        for choice in wire.choices.unwrap_or_default().into_iter().take(1) {
            // A choice without anything in it is none: not even its end is there.
            self.chosen |= streams || choice.message.is_some() || choice.text.is_some();
            // Some servers say the same in both forms.
            let mut said = false;
            if let Some(part) = choice.message.or(choice.delta) {
                said = !part.said().is_empty();
                self.part(part, streams);
            }
            if let Some(text) = choice.text.filter(|_| !said) {
                self.text.push_str(&text);
            }
            if let Some(logprobs) = choice.logprobs {
                logprobs.add_to(&mut self.logprobs);
            }
            if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
                self.finish = Some(reason.into_owned());
            }
        }
        Ok(())
    }

    fn part(&mut self, part: Part<'_>, streams: bool) {
        self.text.push_str(part.said());
        if let Some(thought) = part.thought() {
            self.reasoning.push_str(thought);
        }
        if let Some(refusal) = &part.refusal {
            self.refusal.push_str(refusal);
        }
        for (i, call) in part.tool_calls.unwrap_or_default().into_iter().enumerate() {
            // In a whole reply each stands for itself, and of two without numbers in one part the second is another.
            let goes_on = streams && (i == 0 || call.index.is_some());
            self.call(call, goes_on);
        }
    }

    /// A call, or a part of one: the first names it, the others go on with its arguments. Parts belong together by
    /// the number of the call, or without one to the last call; another id is another call in any case.
    fn call(&mut self, call: CallWire<'_>, goes_on: bool) {
        let id = call.id.as_deref().filter(|id| !id.is_empty());
        let known = match call.index {
            _ if !goes_on => None,
            Some(_) => self.call_numbers.iter().rposition(|number| *number == call.index),
            None => self.tool_calls.len().checked_sub(1),
        };
        let is_same = |at: &usize| {
            let known = &self.tool_calls[*at].id;
            id.is_none_or(|id| known.is_empty() || known == id)
        };
        let at = known.filter(is_same).unwrap_or_else(|| {
            let empty = String::new;
            self.tool_calls.push(ToolCall { id: empty(), name: empty(), arguments: empty() });
            self.call_numbers.push(call.index);
            self.tool_calls.len() - 1
        });
        let known = &mut self.tool_calls[at];
        if let Some(id) = id {
            id.clone_into(&mut known.id);
        }
        let Some(function) = call.function else { return };
        if let Some(name) = function.name.filter(|_| known.name.is_empty()) {
            known.name = name.into_owned();
        }
        known.arguments.push_str(function.arguments.as_deref().unwrap_or(""));
    }

    /// The reply as a whole, with what it shows about the server.
    fn completion(
        self,
        ready: &Ready,
        request: &Request,
        notices: &mut Vec<String>,
    ) -> Result<Completion, EngineError> {
        let sampling = &request.sampling;
        let usage = self.usage(ready, request, notices)?;
        let (mut text, was_cut) = match sampling.stop.is_empty() {
            true => (self.text, false),
            false => cut_at_stop(&self.text, &sampling.stop),
        };
        if was_cut && !ready.settings.omit.iter().any(|omitted| omitted == "stop") {
            let notice = "the server does not end its replies before `stop`; forge cuts them there";
            notices.extend(ready.ignored("stop", notice.to_owned())?);
        }
        if sampling.logprobs.is_some() && self.logprobs.is_empty() && !text.is_empty() {
            let notice = "the server gives no log-probabilities, although `logprobs` asks for them";
            notices.extend(ready.ignored("logprobs", notice.to_owned())?);
        }
        let finish = match self.finish.as_deref() {
            _ if was_cut => Finish::Stop,
            _ if text.is_empty() && !self.refusal.is_empty() => {
                text = self.refusal;
                Finish::ContentFilter
            }
            None => {
                let sends = !ready.settings.omit.iter().any(|omitted| omitted == "max_tokens");
                let most = sends.then_some(u64::from(sampling.max_tokens));
                unnamed_end(&self.tool_calls, &usage, most).unwrap_or_else(|| {
                    let notice =
                        "the server ends replies without `finish_reason`: they may be cut off unseen";
                    notices.extend(ready.once("unnamed end", notice.to_owned()));
                    Finish::Stop
                })
            }
            // Servers that shut down or pause end replies so: what is there is a part.
            Some(reason @ ("abort" | "aborted" | "error" | "cancelled")) => {
                let detail = format!("the server broke the reply off (`{reason}`)");
                return Err(EngineError::passing("aborted", detail));
            }
            Some(reason) => finish(reason).unwrap_or_else(|| {
                let notice = format!("the server ends a reply with the unknown reason `{reason}`");
                notices.extend(ready.once("unknown end", notice));
                Finish::Stop
            }),
        };
        let wants_json = matches!(
            sampling.response_format,
            Some(ResponseFormat::JsonObject | ResponseFormat::JsonSchema(_))
        );
        let is_json = || serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        if wants_json && finish == Finish::Stop && !text.is_empty() && !is_json() {
            let notice =
                "the server does not keep its replies to `response_format`: this one is no JSON";
            notices.extend(ready.ignored("response_format", notice.to_owned())?);
        }
        let some = |text: String| (!text.is_empty()).then_some(text);
        Ok(Completion {
            text,
            reasoning: some(self.reasoning),
            tool_calls: self.tool_calls,
            logprobs: sampling.logprobs.map(|_| self.logprobs).filter(|all| !all.is_empty()),
            finish,
            usage,
        })
    }

    /// Tokens: the server's counts if they can be true, else those of the local tokenizer, else the events.
    fn usage(
        &self,
        ready: &Ready,
        request: &Request,
        notices: &mut Vec<String>,
    ) -> Result<Usage, EngineError> {
        let said = self.text.len() + self.reasoning.len();
        let mut usage = self.usage.unwrap_or_default();
        if let Some(n) = usage.output_tokens {
            // Tokens of calls and of hidden reasoning leave no text. Reasoning that nobody counts apart is within what
            // was asked for, and is billed: then the count is the truth, however little is to be seen.
            let most = u64::from(request.sampling.max_tokens);
            let visible = n.saturating_sub(usage.reasoning_tokens.unwrap_or(0));
            let leaves_text = self.tool_calls.is_empty() && !self.text.is_empty();
            let unseen = leaves_text && visible > said as u64 + 64;
            if (n == 0 && said > 0) || (unseen && n > most) {
                let notice = format!(
                    "the server's count of tokens cannot be true ({n} for {said} bytes), and is not used"
                );
                // No setting was ignored, and the reply is there.
                notices.extend(ready.once("untrue count", notice));
                usage = Usage::default();
            } else if unseen {
                let notice = format!(
                    "the server counts {n} tokens for a reply of {said} bytes: it hides most of what its model says"
                );
                notices.extend(ready.once("hidden text", notice));
            } else if n > most && !ready.settings.omit.iter().any(|name| name == "max_tokens") {
                let field = &ready.settings.max_tokens_field;
                let notice = format!("the server ignores `{field}`: {n} tokens instead of {most}");
                notices.extend(ready.ignored("max_tokens", notice)?);
            }
        }
        refuse_cut(ready, request, &usage, notices)?;
        if usage.input_tokens.is_some() && usage.output_tokens.is_some() {
            return Ok(usage);
        }
        if let Some(output) = ready.count(&self.text) {
            let thought = ready.count(&self.reasoning).unwrap_or(0);
            let texts = request.messages.iter().map(|message| ready.count(&message.content));
            return Ok(Usage::counted(texts.sum(), Some(output + thought), TokenSource::Tokenizer));
        }
        let events = (self.events > 0).then_some(u64::from(self.events));
        match events.filter(|_| usage.output_tokens.is_none()) {
            Some(events) => Ok(Usage::counted(None, Some(events), TokenSource::Chunks)),
            None => Ok(usage),
        }
    }
}
