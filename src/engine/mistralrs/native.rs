//! Loaded instances of a model, each with one request at a time. Knows nothing of the memo.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use either::Either;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mistralrs::core::{
    AddModelConfig, EngineConfig, GGUFLoaderBuilder, GGUFSpecificConfig, Loader,
};
use mistralrs::{
    DefaultSchedulerMethod, Device, DeviceMapSetting, Model, ModelDType, NormalRequest,
    Request as EngineRequest, RequestBuilder, RequestLike, Response, SamplingParams,
    SchedulerConfig, StopTokens, TextMessageRole, TextMessages, TextModelBuilder, TokenSource,
};
use tokio::sync::{Semaphore, mpsc};

use super::gumbel::Gumbel;
use super::{GGUF_ARCHITECTURES, MistralRs, Weights, gguf};
use crate::engine::scripted::cut_at_stop;
use crate::engine::{Engine, EngineError};
use crate::sample::{Completion, Finish, Message, Request, Role, Usage};

/// Chunks that may wait for us. The engine's loop waits when it is full, so it is drained at once.
const CHUNKS: usize = 1024;
/// Longest wait for the engine to let go of a finished sequence.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// The key-value cache grows by this many tokens, and refuses when the grown size is above the context.
const CACHE_BLOCK: usize = 512;

/// All instances of one model.
pub(super) struct Pool {
    settings: MistralRs,
    /// Instances that nobody uses; `None` is one that has to be loaded again.
    idle: Arc<Mutex<Vec<Option<Instance>>>>,
    /// One for each instance, held until its engine has let go of the request: longer than the caller may
    /// wait for the reply.
    permits: Arc<Semaphore>,
}

struct Instance {
    model: Model,
    /// Tokens in the model's context.
    context: usize,
}

impl Pool {
    /// Loads all instances, one after another: they share the disk cache of the weights.
    pub(super) async fn load(settings: &MistralRs) -> Result<Pool, String> {
        let mut idle = Vec::new();
        for _ in 0..settings.instances {
            idle.push(Some(Instance::load(settings.clone()).await?));
        }
        Ok(Pool {
            settings: settings.clone(),
            permits: Arc::new(Semaphore::new(idle.len())),
            idle: Arc::new(Mutex::new(idle)),
        })
    }

    async fn answer(&self, request: &Request) -> Result<Completion, EngineError> {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.expect("BUG: the permits of the instances are never closed");
        let (idle, settings, request) = (self.idle.clone(), self.settings.clone(), request.clone());
        // On a task of its own: a caller that gives up must not leave a sequence running in the engine,
        // where it would share a step with the next request.
        let work = tokio::spawn(async move {
            let _permit = permit;
            let taken = idle.lock().expect("BUG: the pool lock is poisoned").pop();
            let mut instance = taken.expect("BUG: a permit without an instance");
            let reply = ask_instance(&mut instance, settings, &request).await;
            idle.lock().expect("BUG: the pool lock is poisoned").push(instance);
            reply
        });
        work.await.unwrap_or_else(|error| {
            Err(EngineError::Broken(format!("the engine panicked: {error}")))
        })
    }
}

/// Asks an instance, loading it again after it broke.
async fn ask_instance(
    slot: &mut Option<Instance>,
    settings: MistralRs,
    request: &Request,
) -> Result<Completion, EngineError> {
    let instance = match slot.take() {
        Some(instance) => instance,
        None => Instance::load(settings).await.map_err(EngineError::Broken)?,
    };
    let reply = instance.ask(request).await;
    // After a panic of its thread every later request fails too, so a failed one is not put back.
    if !matches!(reply, Err(EngineError::Passing(_))) {
        *slot = Some(instance);
    }
    reply
}

impl Engine for Pool {
    fn complete<'a>(
        &'a self,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Completion, EngineError>> {
        self.answer(request).boxed()
    }
}

impl Instance {
    /// Loads on a thread of its own, so that a panic of the loader becomes an error.
    async fn load(settings: MistralRs) -> Result<Instance, String> {
        let label = settings.label.clone();
        let work = tokio::task::spawn_blocking(move || {
            let load = std::thread::Builder::new().name("load-model".to_owned()).spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| error.to_string())?;
                runtime.block_on(load_model(&settings))
            });
            match load.map_err(|error| error.to_string())?.join() {
                Ok(loaded) => loaded,
                Err(panic) => Err(panic_text(panic.as_ref())),
            }
        });
        let model = work
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|error| format!("cannot load `{label}`: {error}"))?;
        let context = model
            .max_sequence_length()
            .map_err(|error| format!("cannot load `{label}`: {error}"))?
            .unwrap_or(usize::MAX);
        Ok(Instance { model, context })
    }

    async fn ask(&self, request: &Request) -> Result<Completion, EngineError> {
        let prompt = self.prompt_tokens(&request.messages).await?;
        let room = room(prompt, self.context);
        if room == 0 {
            return Err(EngineError::Rejected {
                code: "overflow",
                detail: format!(
                    "the prompt has {prompt} tokens, and the model's context {} in all",
                    self.context
                ),
            });
        }
        let max_tokens = (request.sampling.max_tokens as usize).min(room);
        self.generate(request, max_tokens, prompt as u64).await
    }

    async fn prompt_tokens(&self, messages: &[Message]) -> Result<usize, EngineError> {
        let mut texts = TextMessages::new();
        for message in messages {
            texts = texts.add_message(role(message.role), &message.content);
        }
        let tokens = self.model.tokenize(Either::Left(texts), None, true, true, None).await;
        tokens.map(|tokens| tokens.len()).map_err(|error| {
            EngineError::Passing(format!("cannot count the tokens of the prompt: {error}"))
        })
    }

    async fn generate(
        &self,
        request: &Request,
        max_tokens: usize,
        prompt_tokens: u64,
    ) -> Result<Completion, EngineError> {
        let closed = || EngineError::Passing("the engine has stopped".to_owned());
        let (sender, mut receiver) = mpsc::channel::<Response>(CHUNKS);
        let still_running = sender.downgrade();
        let mut builder = RequestBuilder::new();
        for message in &request.messages {
            builder = builder.add_message(role(message.role), &message.content);
        }
        let stop = &request.sampling.stop;
        let mut sampling = SamplingParams::neutral();
        // Greedy, over logits that carry the noise of a sampled request already.
        sampling.temperature = Some(0.0);
        sampling.max_len = Some(max_tokens);
        sampling.stop_toks = (!stop.is_empty()).then(|| StopTokens::Seqs(stop.clone()));
        let mut call =
            NormalRequest::new_simple(builder.take_messages(), sampling, sender, 0, None, None);
        // Streaming, because only a streamed request can be cut off without a panic in the engine.
        call.is_streaming = true;
        call.logits_processors = Gumbel::of(request).map(|gumbel| vec![Arc::new(gumbel) as _]);
        let engine = self.model.inner().get_sender(None).map_err(|_| closed())?;
        engine.send(EngineRequest::Normal(Box::new(call))).await.map_err(|_| closed())?;

        let mut text = String::new();
        let mut end = None;
        while let Some(response) = receiver.recv().await {
            match response {
                Response::Chunk(mut chunk) => {
                    let Some(choice) = chunk.choices.pop() else { continue };
                    text.push_str(choice.delta.content.as_deref().unwrap_or(""));
                    if let Some(reason) = choice.finish_reason {
                        end = Some((reason, chunk.usage));
                        // A sequence that ends at its first token sends more after its end.
                        break;
                    }
                    if cut_at_stop(&text, stop).1 {
                        break;
                    }
                }
                Response::InternalError(error) | Response::ValidationError(error) => {
                    return Err(EngineError::Passing(first_line(&error.to_string())));
                }
                Response::ModelError(error, _) => {
                    return Err(EngineError::Passing(first_line(&error)));
                }
                _ => return Err(EngineError::Passing("an unexpected kind of response".to_owned())),
            }
        }
        // Closing the channel ends what still runs; the next request waits until it has ended.
        drop(receiver);
        let idle = async {
            while still_running.upgrade().is_some() {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        };
        if tokio::time::timeout(IDLE_MAX, idle).await.is_err() {
            return Err(EngineError::Passing("the engine does not let go of a request".to_owned()));
        }
        // The engine finds a stop string one token late, and leaves it in when the reply ends there.
        let (text, was_cut) = cut_at_stop(text.trim_start(), stop);
        let (finish, usage) = match end {
            Some((reason, usage)) => {
                let finish =
                    if reason == "length" && !was_cut { Finish::Length } else { Finish::Stop };
                (finish, usage.map(|usage| usage.completion_tokens as u64))
            }
            None if was_cut => (Finish::Stop, None),
            // The channel closed without an end: the engine died, or the reply ends inside a character.
            None => return Err(closed()),
        };
        let usage = Usage { input_tokens: Some(prompt_tokens), output_tokens: usage };
        Ok(Completion { text, finish, usage })
    }
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
    }
}

/// An error without the backtrace that candle writes into it.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the engine panicked: {}", text.unwrap_or("without a word"))
}

fn dtype(name: &str) -> ModelDType {
    match name {
        "f16" => ModelDType::F16,
        "f32" => ModelDType::F32,
        other => panic!("BUG: dtype `{other}` passed the manifest"),
    }
}

async fn load_model(settings: &MistralRs) -> Result<Model, String> {
    match &settings.weights {
        Weights::Folder(folder) => TextModelBuilder::new(folder)
            .with_dtype(dtype(&settings.dtype))
            .with_force_cpu()
            // Never evicts on CPU, and changes some answers.
            .with_prefix_cache_n(None)
            .with_max_num_seqs(1)
            .with_token_source(TokenSource::None)
            .build()
            .await
            .map_err(|error| format!("{error:#}")),
        Weights::Gguf(file) => load_gguf(file, dtype(&settings.dtype)).await,
    }
}

/// Through the loader itself: the builder for GGUF has no way to say f32.
async fn load_gguf(file: &camino::Utf8Path, dtype: ModelDType) -> Result<Model, String> {
    let architecture = gguf::architecture(file).map_err(|error| error.to_string())?;
    let architecture = architecture.unwrap_or_default().to_lowercase();
    if !GGUF_ARCHITECTURES.contains(&architecture.as_str()) {
        return Err(format!(
            "the architecture `{architecture}` is not supported as GGUF (known: {}); its safetensors \
             may be",
            GGUF_ARCHITECTURES.join(", ")
        ));
    }
    let file = file.canonicalize_utf8().map_err(|error| error.to_string())?;
    let folder = file.parent().map_or_else(String::new, ToString::to_string);
    let name = file.file_name().unwrap_or_default().to_owned();
    let loader: Box<dyn Loader> = GGUFLoaderBuilder::new(
        None,
        None,
        folder,
        vec![name],
        GGUFSpecificConfig::default(),
        false,
        None,
    )
    .build();
    let pipeline = loader
        .load_model_from_hf(
            None,
            TokenSource::None,
            &dtype,
            &Device::Cpu,
            true,
            DeviceMapSetting::dummy(),
            None,
            None,
        )
        .map_err(|error| format!("{error:#}"))?;
    let scheduler = SchedulerConfig::DefaultScheduler {
        method: DefaultSchedulerMethod::Fixed(std::num::NonZeroUsize::MIN),
    };
    let config = AddModelConfig::new(EngineConfig {
        no_prefix_cache: true,
        throughput_logging_enabled: false,
        ..EngineConfig::default()
    });
    let model =
        mistralrs::model_builder_trait::build_model_from_pipeline(pipeline, scheduler, config)
            .await;
    Ok(model)
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
