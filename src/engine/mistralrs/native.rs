//! Loaded instances of a model, each with as many requests at a time as keep its answers right. Knows
//! nothing of the memo.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use either::Either;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mistralrs::{
    Constraint, NormalRequest, Request as EngineRequest, RequestBuilder, RequestLike,
    RequestMessage, Response, SamplingParams, StopTokens, TextMessageRole, TextMessages,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::MistralRs;
use super::gumbel::Gumbel;
use super::load::{Instance, first_line};
use super::steps::{End, Step, Steps};
use crate::engine::scripted::cut_at_stop;
use crate::engine::{Engine, EngineError, Reply, Stamps};
use crate::sample::{
    Completion, Finish, Message, Request, ResponseFormat, Role, TokenLogprob, TokenSource, Usage,
};

/// Chunks that may wait for us. The engine's loop waits when it is full, so it is drained at once.
const CHUNKS: usize = 1024;
/// Stands for the end of a turn that stays open, while its template is rendered: the last of Unicode's private use area
/// that no stand-in has.
const OPEN: char = '\u{F8FF}';
/// Longest wait for the engine to let go of a finished sequence.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(30);
/// The key-value cache grows by this many tokens, and refuses when the grown size is above the context.
const CACHE_BLOCK: usize = 512;

/// All instances of one model.
pub(super) struct Pool {
    settings: MistralRs,
    instances: Vec<Slot>,
    /// Places at them, by number of the instance.
    free: Mutex<Vec<usize>>,
    /// One for each place, held until the engine has let go of the request: longer than the caller may wait
    /// for the reply.
    permits: Arc<Semaphore>,
}

/// An instance, or the place of one that has to be loaded again.
type Slot = tokio::sync::Mutex<Option<Arc<Instance>>>;

impl Pool {
    /// Loads all instances, one after another: they share the disk cache of the weights.
    pub(super) async fn load(settings: &MistralRs) -> Result<Arc<Pool>, String> {
        let mut instances = Vec::new();
        let mut free = Vec::new();
        for number in 0..settings.instances as usize {
            let instance = Instance::load(settings.clone()).await?;
            instances.push(Slot::new(Some(Arc::new(instance))));
            free.extend(std::iter::repeat_n(number, settings.at_once() as usize));
        }
        Ok(Arc::new(Pool {
            settings: settings.clone(),
            instances,
            permits: Arc::new(Semaphore::new(free.len())),
            free: Mutex::new(free),
        }))
    }

    /// Asks an instance, loading it again after it broke.
    async fn ask(
        &self,
        number: usize,
        request: &Request,
        given_up: &CancellationToken,
    ) -> Result<Reply, EngineError> {
        let instance = {
            let mut slot = self.instances[number].lock().await;
            match &*slot {
                Some(instance) => instance.clone(),
                None => {
                    let loaded = Instance::load(self.settings.clone()).await;
                    let loaded = Arc::new(loaded.map_err(EngineError::Broken)?);
                    slot.insert(loaded).clone()
                }
            }
        };
        let reply = instance.ask(request, given_up).await;
        // After a panic of its thread every later request fails too, so it is not used again.
        if matches!(reply, Err(EngineError::Passing(_))) {
            let mut slot = self.instances[number].lock().await;
            if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, &instance)) {
                *slot = None;
            }
        }
        reply
    }
}

/// Answers a request at a free place of the pool.
async fn answer(pool: &Arc<Pool>, request: &Request) -> Result<Reply, EngineError> {
    let permit = pool.permits.clone().acquire_owned().await;
    let permit = permit.expect("BUG: the permits of the instances are never closed");
    let (pool, request) = (pool.clone(), request.clone());
    // Nobody waits any more: what is being written is cut off, and the place is free soon.
    let given_up = CancellationToken::new();
    let waits = given_up.clone().drop_guard();
    // On a task of its own: a caller that gives up must not leave a sequence running in the engine,
    // where it would share a step with the next request.
    let work = tokio::spawn(async move {
        let _permit = permit;
        let taken = pool.free.lock().expect("BUG: the pool lock is poisoned").pop();
        let number = taken.expect("BUG: a permit without an instance");
        let reply = pool.ask(number, &request, &given_up).await;
        pool.free.lock().expect("BUG: the pool lock is poisoned").push(number);
        reply
    });
    let reply = work
        .await
        .unwrap_or_else(|error| Err(EngineError::Broken(format!("the engine panicked: {error}"))));
    drop(waits);
    reply
}

/// A pool as an engine.
pub(super) struct Shared(pub(super) Arc<Pool>);

impl Engine for Shared {
    fn complete<'a>(
        &'a self,
        request: &'a Request,
        _: Option<Duration>,
    ) -> BoxFuture<'a, Result<Reply, EngineError>> {
        answer(&self.0, request).boxed()
    }
}

impl Instance {
    async fn ask(
        &self,
        request: &Request,
        given_up: &CancellationToken,
    ) -> Result<Reply, EngineError> {
        // A step of the model gives all logits of a prompt, or the last alone: the two do not go together.
        let _alone = match &request.sampling.response_format {
            Some(ResponseFormat::Likelihood(_)) => Either::Left(self.alone.write().await),
            _ => Either::Right(self.alone.read().await),
        };
        match (self.embeds, request.sampling.response_format == Some(ResponseFormat::Embedding)) {
            (true, true) => return self.embed(request).await,
            (false, false) => {}
            (true, false) => {
                let message = "it is a model for embeddings, which writes no text";
                return Err(EngineError::Broken(message.to_owned()));
            }
            (false, true) => {
                let message = "it is a model that writes text, and gives no embeddings here";
                return Err(EngineError::Broken(message.to_owned()));
            }
        }
        if let Some(ResponseFormat::Likelihood(words)) = &request.sampling.response_format {
            return self.likelihood(&request.messages, words).await;
        }
        let (messages, prompt) = self.prompt(&request.messages).await?;
        let declared = self.declared.map_or(usize::MAX, |tokens| tokens.saturating_sub(prompt));
        let room = room(prompt, self.context).min(declared);
        if room == 0 {
            return Err(EngineError::Rejected {
                code: "overflow",
                detail: format!(
                    "the prompt has {prompt} tokens, and the model's context {} in all",
                    self.context.min(self.declared.unwrap_or(usize::MAX))
                ),
            });
        }
        if request.sampling.reasoning_effort.is_some() {
            let message = "mistral.rs takes no `reasoning_effort` here";
            return Err(EngineError::Broken(message.to_owned()));
        }
        if !request.tools.is_empty() {
            let message = "mistral.rs takes no tools in a provider's form here";
            return Err(EngineError::Broken(message.to_owned()));
        }
        let max_tokens = (request.sampling.max_tokens as usize).min(room);
        self.generate(request, messages, (max_tokens, prompt as u64), given_up).await
    }

    /// The messages as the engine takes them, and how many tokens they are.
    async fn prompt(&self, messages: &[Message]) -> Result<(RequestMessage, usize), EngineError> {
        if self.prompts.needs_care(messages) || is_begun(messages) {
            let ids = self.rendered(messages, "").await?.prompt(self)?;
            let length = ids.len();
            return Ok((RequestMessage::CompletionTokens(ids), length));
        }
        let mut texts = TextMessages::new();
        for message in messages {
            texts = texts.add_message(role(message.role), &message.content);
        }
        let tokens = self.model.tokenize(Either::Left(texts), None, true, true, None).await;
        let tokens = tokens.map_err(|error| match error {
            // What the chat template says to these messages it says again.
            mistralrs::error::Error::Inference(error) => unmade(error.to_string()),
            error => EngineError::passing("engine", format!("cannot make the prompt: {error}")),
        })?;
        Ok((chat(messages), tokens.len()))
    }

    /// The messages as the chat template writes them, and words that may follow. A turn of the assistant at the end
    /// stays open, as transformers leaves it open with `continue_final_message`: the text ends with the turn's own.
    pub(super) async fn rendered(
        &self,
        messages: &[Message],
        words: &str,
    ) -> Result<Rendered<'_>, EngineError> {
        // What looks like a control token in those words is a word too.
        let with_words = messages.iter().cloned().chain([Message::new(Role::User, words)]);
        let (mut disguised, stand_ins) = self.prompts.disguise(&with_words.collect::<Vec<_>>());
        let words = disguised.pop().map_or_else(String::new, |last| last.content);
        let is_begun = is_begun(messages);
        if is_begun && let Some(last) = disguised.last_mut() {
            if last.content.contains(OPEN) {
                return Err(EngineError::Broken("a turn that is begun holds U+F8FF".to_owned()));
            }
            last.content.push(OPEN);
        }
        let RequestMessage::Chat { messages, .. } = chat(&disguised) else {
            return Err(unmade("it is no chat".to_owned()));
        };
        let mut text = {
            let pipeline = self.pipeline.lock().await;
            let processor = pipeline.get_processor();
            let (asks, none) = (!is_begun, Vec::new());
            let made = processor.process(&*pipeline, messages, asks, true, None, None, none);
            made.map_err(|error| EngineError::Broken(first_line(&format!("{error:#}"))))?.1
        };
        if is_begun {
            let open = text.rfind(OPEN).ok_or_else(|| {
                let words = "its chat template leaves out a turn that is begun, so no reply can go on from there";
                EngineError::Broken(words.to_owned())
            })?;
            text.truncate(open);
        }
        Ok(Rendered { text, words, stand_ins })
    }

    /// What watches and steers every token of a reply.
    fn steps(&self, request: &Request) -> Arc<Steps> {
        let sampling = &request.sampling;
        let bias = sampling.logit_bias.iter();
        let end = sampling.response_format.as_ref().and(self.grammar_end);
        Arc::new(Steps {
            gumbel: Gumbel::of(request),
            bias: bias.filter_map(|(id, bias)| Some((id.parse().ok()?, *bias as f32))).collect(),
            frequency_penalty: sampling.frequency_penalty.unwrap_or(0.0) as f32,
            presence_penalty: sampling.presence_penalty.unwrap_or(0.0) as f32,
            logprobs: sampling.logprobs.map(|n| n as usize),
            end: end.map(|(token, vocabulary)| End { token, own: self.ends.clone(), vocabulary }),
            state: Mutex::default(),
        })
    }

    async fn generate(
        &self,
        request: &Request,
        messages: RequestMessage,
        (max_tokens, prompt_tokens): (usize, u64),
        given_up: &CancellationToken,
    ) -> Result<Reply, EngineError> {
        let closed = || EngineError::passing("engine", "the engine has stopped");
        let (sender, mut receiver) = mpsc::channel::<Response>(CHUNKS);
        let still_running = sender.downgrade();
        let stop = &request.sampling.stop;
        let mut sampling = SamplingParams::neutral();
        // Greedy, over logits that carry the noise of a sampled request already.
        sampling.temperature = Some(0.0);
        sampling.max_len = Some(max_tokens);
        sampling.stop_toks = (!stop.is_empty()).then(|| StopTokens::Seqs(stop.clone()));
        let mut call = NormalRequest::new_simple(messages, sampling, sender, 0, None, None);
        if let Some(format) = &request.sampling.response_format {
            call.constraint = constraint(format);
            // The two ways to stop exclude each other; stop strings are cut off below.
            let end = self.grammar_end.map(|(token, _)| StopTokens::Ids(vec![token]));
            call.sampling_params.stop_toks = end.or(call.sampling_params.stop_toks);
        }
        // Streaming, because only a streamed request can be cut off without a panic in the engine.
        call.is_streaming = true;
        let steps = self.steps(request);
        call.logits_processors = Some(vec![steps.clone() as _]);
        let engine = self.model.inner().get_sender(None).map_err(|_| closed())?;
        let mut stamps = Stamps::start();
        engine.send(EngineRequest::Normal(Box::new(call))).await.map_err(|_| closed())?;

        let mut reply = Streamed::default();
        loop {
            let response = tokio::select! {
                response = receiver.recv() => response,
                () = given_up.cancelled() => None,
            };
            let Some(response) = response else { break };
            if reply.take(response)? || cut_at_stop(&reply.text, stop).1 {
                break;
            }
        }
        // Closing the channel ends what still runs; the next request waits until it has ended.
        drop(receiver);
        let idle = async {
            while still_running.upgrade().is_some() {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        };
        stamps.finish();
        if tokio::time::timeout(IDLE_MAX, idle).await.is_err() {
            return Err(EngineError::passing("engine", "the engine does not let go of a request"));
        }
        self.completion(request, reply, (max_tokens, prompt_tokens), &steps, stamps)
    }

    fn completion(
        &self,
        request: &Request,
        reply: Streamed,
        (max_tokens, prompt_tokens): (usize, u64),
        steps: &Steps,
        mut stamps: Stamps,
    ) -> Result<Reply, EngineError> {
        // The engine finds a stop string one token late, and leaves it in when the reply ends there.
        // What goes on with a turn begins where that ends, with its space.
        let text = match is_begun(&request.messages) {
            true => reply.text.as_str(),
            false => reply.text.trim_start(),
        };
        let (text, was_cut) = cut_at_stop(text, &request.sampling.stop);
        let state = steps.state();
        // Every step is a token, and the moment of its choice the moment of the token.
        let thinks_until = reply.reasoned_until;
        // What the engine goes on with after the end of a reply is no part of it.
        let taken = self.taken(&state.steps, max_tokens, was_cut.then_some(text.len()));
        for step in taken {
            stamps.event(step.at, thinks_until.is_none_or(|until| step.at > until));
        }
        let finish = match reply.finish {
            _ if was_cut => Finish::Stop,
            Some(reason) if reason == "length" => Finish::Length,
            Some(_) => Finish::Stop,
            // The engine does not say that a reply ended when it ends inside a character.
            None if taken.last().is_some_and(|step| self.ends_text(step.token)) => Finish::Stop,
            None if taken.len() == max_tokens => Finish::Length,
            // It died.
            None => return Err(EngineError::passing("engine", "the engine has stopped")),
        };
        let output = taken.len() as u64;
        let logprobs = request.sampling.logprobs.map(|_| {
            // What ends a turn is no part of its text.
            let said = taken.iter().filter(|step| !self.ends_text(step.token));
            said.map(|step| TokenLogprob {
                token: self.text_of(step.token),
                logprob: step.logprob,
                top: step.top.iter().map(|(id, p)| (self.text_of(*id), *p)).collect(),
            })
            .collect()
        });
        let usage = Usage::counted(Some(prompt_tokens), Some(output), TokenSource::Engine);
        let mut reasoning = (!reply.reasoning.is_empty()).then_some(reply.reasoning);
        // A grammar leaves no room for thoughts: what a template takes for one is the reply.
        let text = match (request.sampling.response_format.is_some(), text.is_empty()) {
            (true, true) => reasoning.take().unwrap_or(text),
            _ => text,
        };
        let completion = Completion { reasoning, logprobs, ..Completion::new(text, finish, usage) };
        drop(state);
        Ok(Reply { completion, stamps, notices: Vec::new() })
    }

    /// The steps that are the reply: up to the first that ends it, or to the stop string that cut its text
    /// at so many bytes.
    fn taken<'a>(&self, steps: &'a [Step], most: usize, cut: Option<usize>) -> &'a [Step] {
        let mut bytes = 0;
        for (i, step) in steps.iter().enumerate().take(most) {
            bytes += self.text_of(step.token).len();
            if self.ends_text(step.token) || cut.is_some_and(|cut| bytes > cut) {
                return &steps[..=i];
            }
        }
        &steps[..most.min(steps.len())]
    }

    fn ends_text(&self, token: u32) -> bool {
        self.ends.contains(&token) || self.grammar_end.is_some_and(|(end, _)| end == token)
    }

    fn text_of(&self, token: u32) -> String {
        self.prompts.text_of(token)
    }
}

/// A reply as it comes.
#[derive(Default)]
struct Streamed {
    text: String,
    reasoning: String,
    /// When the last thought came.
    reasoned_until: Option<Instant>,
    finish: Option<String>,
}

impl Streamed {
    /// Takes a piece; whether it was the last.
    fn take(&mut self, response: Response) -> Result<bool, EngineError> {
        match response {
            Response::Chunk(mut chunk) => {
                let Some(choice) = chunk.choices.pop() else { return Ok(false) };
                self.text.push_str(choice.delta.content.as_deref().unwrap_or(""));
                if let Some(thought) = choice.delta.reasoning_content {
                    self.reasoning.push_str(&thought);
                    self.reasoned_until = Some(Instant::now());
                }
                self.finish = choice.finish_reason;
                // A sequence that ends at its first token sends more after its end.
                Ok(self.finish.is_some())
            }
            Response::CompletionChunk(mut chunk) => {
                let Some(choice) = chunk.choices.pop() else { return Ok(false) };
                self.text.push_str(&choice.text);
                self.finish = choice.finish_reason;
                Ok(self.finish.is_some())
            }
            Response::ValidationError(error) => {
                // It says the same again, and nothing is wrong with the engine.
                Err(EngineError::Broken(first_line(&error.to_string())))
            }
            Response::InternalError(error) => {
                Err(EngineError::passing("engine", first_line(&error.to_string())))
            }
            Response::ModelError(error, _) | Response::CompletionModelError(error, _) => {
                Err(EngineError::passing("engine", first_line(&error)))
            }
            _ => Err(EngineError::passing("engine", "an unexpected kind of response")),
        }
    }
}

/// A prompt as text, and words that may follow it.
pub(super) struct Rendered<'a> {
    text: String,
    words: String,
    stand_ins: Vec<(char, &'a str)>,
}

impl Rendered<'_> {
    /// The tokens of the prompt alone.
    pub(super) fn prompt(&self, instance: &Instance) -> Result<Vec<u32>, EngineError> {
        instance.prompts.encode(&self.text, &self.stand_ins).map_err(unmade)
    }

    /// The tokens of both as one text.
    pub(super) fn both(&self, instance: &Instance) -> Result<Vec<u32>, EngineError> {
        let text = format!("{}{}", self.text, self.words);
        instance.prompts.encode(&text, &self.stand_ins).map_err(unmade)
    }
}

fn unmade(error: String) -> EngineError {
    EngineError::Broken(format!("cannot make the prompt: {error}"))
}

/// Whether the reply goes on with a turn.
fn is_begun(messages: &[Message]) -> bool {
    messages.last().is_some_and(|last| last.role == Role::Assistant)
}

fn chat(messages: &[Message]) -> RequestMessage {
    let mut builder = RequestBuilder::new();
    for message in messages {
        builder = builder.add_message(role(message.role), &message.content);
    }
    builder.take_messages()
}

fn constraint(format: &ResponseFormat) -> Constraint {
    match format {
        ResponseFormat::JsonObject => compact(&serde_json::json!({ "type": "object" })),
        ResponseFormat::JsonSchema(schema) => compact(schema),
        ResponseFormat::Regex(regex) => Constraint::Regex(regex.clone()),
        ResponseFormat::Grammar(grammar) => Constraint::Lark(grammar.clone()),
        // Neither comes here: no text is written for them.
        ResponseFormat::Embedding | ResponseFormat::Likelihood(_) => Constraint::None,
    }
}

/// A schema whose JSON has no white space between its parts: a model that does not know what to say may
/// else write line ends for ever.
fn compact(schema: &serde_json::Value) -> Constraint {
    let mut schema = schema.clone();
    if let Some(schema) = schema.as_object_mut() {
        let guidance = || serde_json::json!({ "whitespace_flexible": false });
        schema.entry("x-guidance").or_insert_with(guidance);
    }
    Constraint::JsonSchema(schema)
}

/// Tokens that may still be written after a prompt. Beyond the context itself, the cache must not have to
/// grow past it: its size is rounded up to whole blocks.
fn room(prompt: usize, context: usize) -> usize {
    if prompt >= context {
        return 0;
    }
    let first = prompt.div_ceil(CACHE_BLOCK) * CACHE_BLOCK;
    let usable = first.max(context / CACHE_BLOCK * CACHE_BLOCK).min(context);
    usable.saturating_sub(prompt)
}

fn role(role: Role) -> TextMessageRole {
    match role {
        Role::System => TextMessageRole::System,
        Role::User => TextMessageRole::User,
        Role::Assistant => TextMessageRole::Assistant,
        Role::Tool => TextMessageRole::Tool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_never_runs_over_the_context() {
        assert_eq!(room(100, 1024), 924);
        assert_eq!(room(1024, 1024), 0);
        assert_eq!(room(2000, 1024), 0);
        // 1000 is no multiple of 512: a cache that starts at 512 cannot grow to 1024.
        assert_eq!(room(300, 1000), 212);
        assert_eq!(room(600, 1000), 400);
    }
}
