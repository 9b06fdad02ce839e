//! How likely words are after a prompt: the model reads both at once and writes nothing. Knows nothing of choices.
//!
//! mistral.rs 0.8.1 gives the logits of every token of a prompt with `return_raw_logits`, for one sequence in a step,
//! and of what its prefix cache holds none: so such a request runs alone, and is refused with that cache
//! (`MistralRs::likelihoods`). It keeps nothing in it either. All logits are there at once: tokens × vocabulary × 4
//! bytes.

use std::time::Duration;

use mistralrs::{
    DType, NormalRequest, Request as EngineRequest, RequestMessage, Response, SamplingParams,
    Tensor,
};
use tokio::sync::mpsc;

use super::load::{Instance, first_line};
use super::native::IDLE_MAX;
use super::steps::log_sum_exp;
use crate::engine::{EngineError, Reply, Stamps};
use crate::sample::{Completion, Finish, Message, TokenLogprob, TokenSource, Usage};

impl Instance {
    /// The log-probabilities of all tokens that are not wholly part of the prompt: where prompt and words share a
    /// token, it is one of them.
    pub(super) async fn likelihood(
        &self,
        messages: &[Message],
        words: &str,
    ) -> Result<Reply, EngineError> {
        let rendered = self.rendered(messages, words).await?;
        let (before, both) = (rendered.prompt(self)?, rendered.both(self)?);
        let same = before.iter().zip(&both).take_while(|(a, b)| a == b).count();
        if same == 0 || same == both.len() {
            let words = "there is nothing to say how likely it is: no prompt, or no words after it";
            return Err(EngineError::Broken(words.to_owned()));
        }
        let most = self.context.min(self.declared.unwrap_or(usize::MAX));
        if both.len() >= most {
            let detail = format!(
                "the prompt has {} tokens with the option, and the model's context {most} in all",
                both.len()
            );
            return Err(EngineError::Rejected { code: "overflow", detail });
        }
        let mut stamps = Stamps::start();
        let chunks = self.logits(both.clone()).await?;
        let logits = Logits::new(chunks, both.len())?;
        let mut logprobs = Vec::new();
        for (at, &token) in both.iter().enumerate().skip(same) {
            // The logits at a place are those of what comes after it.
            let row = logits.row(at - 1)?;
            let logit = row.get(token as usize).copied().ok_or_else(|| {
                EngineError::Broken(format!("the model has no logit for its token {token}"))
            })?;
            let logprob = f64::from(logit) - log_sum_exp(&row);
            if !logprob.is_finite() {
                let words =
                    format!("the model gives the token {token} the log-probability {logprob}");
                return Err(EngineError::Broken(words));
            }
            let token = self.prompts.text_of(token);
            logprobs.push(TokenLogprob { token, logprob, top: Vec::new() });
        }
        stamps.finish();
        let usage = Usage::counted(Some(both.len() as u64), Some(0), TokenSource::Engine);
        let completion = Completion::new("", Finish::Stop, usage);
        let completion = Completion { logprobs: Some(logprobs), ..completion };
        Ok(Reply { completion, stamps, notices: Vec::new() })
    }

    /// The logits of every token, in one part or more.
    async fn logits(&self, tokens: Vec<u32>) -> Result<Vec<Tensor>, EngineError> {
        let closed = || EngineError::passing("engine", "the engine has stopped");
        let (sender, mut receiver) = mpsc::channel::<Response>(1);
        let still_running = sender.downgrade();
        let mut sampling = SamplingParams::neutral();
        sampling.max_len = Some(1);
        let messages = RequestMessage::CompletionTokens(tokens.clone());
        let mut call = NormalRequest::new_simple(messages, sampling, sender, 0, None, None);
        call.return_raw_logits = true;
        let engine = self.model.inner().get_sender(None).map_err(|_| closed())?;
        engine.send(EngineRequest::Normal(Box::new(call))).await.map_err(|_| closed())?;
        let response = receiver.recv().await;
        drop(receiver);
        // The next request waits until the engine has let go of this one.
        let idle = async {
            while still_running.upgrade().is_some() {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        };
        if tokio::time::timeout(IDLE_MAX, idle).await.is_err() {
            return Err(EngineError::passing("engine", "the engine does not let go of a request"));
        }
        match response.ok_or_else(closed)? {
            Response::Raw { logits_chunks, tokens: read } if read == tokens => Ok(logits_chunks),
            Response::Raw { .. } => Err(EngineError::Broken(
                "the engine has read other tokens than it was given".to_owned(),
            )),
            Response::ValidationError(error) => {
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

/// Logits of all places of a prompt.
struct Logits {
    /// The first place and the logits of each part.
    parts: Vec<(usize, Tensor)>,
}

impl Logits {
    /// Of `places` places; fewer or more of them would be those of others.
    fn new(chunks: Vec<Tensor>, places: usize) -> Result<Logits, EngineError> {
        let mut parts = Vec::new();
        let mut next = 0;
        for chunk in chunks {
            let (rows, _) = chunk.dims2().map_err(|error| strange(&error.to_string()))?;
            parts.push((next, chunk));
            next += rows;
        }
        match next == places {
            true => Ok(Logits { parts }),
            false => Err(strange(&format!("those of {next} places, and the prompt has {places}"))),
        }
    }

    fn row(&self, place: usize) -> Result<Vec<f32>, EngineError> {
        let part = self.parts.iter().rev().find(|(first, _)| *first <= place);
        let (first, chunk) = part.expect("BUG: a place before the first");
        let row = chunk.get(place - first).and_then(|row| row.to_dtype(DType::F32));
        let row = row.and_then(|row| row.to_vec1::<f32>());
        row.map_err(|error| strange(&error.to_string()))
    }
}

fn strange(why: &str) -> EngineError {
    EngineError::Broken(format!(
        "mistral.rs gives no logits of prompts for this architecture ({}); use `by = \"letter\"`",
        first_line(why)
    ))
}
