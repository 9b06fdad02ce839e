//! Models that give embeddings: a folder in the layout of sentence-transformers, whose `modules.json` names what comes
//! after the transformer. Knows nothing of text that is written.
//!
//! mistral.rs 0.8.1 sums where it should take the mean of the tokens; the cosine of two such vectors is the same. Its
//! other ways of pooling are not written yet and panic, so they are refused here.

use camino::Utf8Path;
use either::Either;
use mistralrs::EmbeddingRequest;
use mistralrs::core::{EmbeddingLoaderBuilder, EmbeddingSpecificConfig, Loader};
use serde_json::Value;

use super::load::{Instance, first_line};
use crate::engine::{EngineError, Reply, Stamps};
use crate::sample::{Completion, Finish, Request, TokenSource, Usage};

/// `architectures` of `config.json` that mistral.rs 0.8.1 loads for embeddings.
const ARCHITECTURES: &[&str] = &["Gemma3TextModel", "Qwen3ForCausalLM"];
/// Ways of pooling that it has.
const POOLING: &[&str] = &["pooling_mode_mean_tokens", "pooling_mode_lasttoken"];
/// Kinds of modules that it has.
const MODULES: &[&str] = &["Transformer", "Pooling", "Dense", "Normalize"];
/// A shorter text has no mask, and the code for Qwen3 takes it for impossible. Tokenizers that add an end never give one.
const TOKENS_MIN: usize = 2;

fn read(path: &Utf8Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("`{path}`: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("`{path}`: {error}"))
}

/// The loader of a folder, after a look at everything that would make it panic.
pub(super) fn loader(folder: &Utf8Path) -> Result<Box<dyn Loader>, String> {
    let config = read(&folder.join("config.json"))?;
    let named = config["architectures"][0].as_str().unwrap_or_default();
    if !ARCHITECTURES.contains(&named) {
        let known = ARCHITECTURES.join(", ");
        return Err(format!(
            "the architecture `{named}` is not supported for embeddings (known: {known})"
        ));
    }
    let modules = read(&folder.join("modules.json"))?;
    for module in modules.as_array().into_iter().flatten() {
        let kind = module["type"].as_str().unwrap_or_default();
        let kind = kind.rsplit('.').next().unwrap_or_default();
        if !MODULES.contains(&kind) {
            let known = MODULES.join(", ");
            return Err(format!("`modules.json` has a `{kind}` (known: {known})"));
        }
        if kind == "Pooling" {
            let path = folder.join(module["path"].as_str().unwrap_or_default()).join("config.json");
            let pooling = read(&path)?;
            let on = pooling.as_object().into_iter().flatten();
            let on = on.filter(|(name, on)| name.starts_with("pooling_mode_") && **on == true);
            let on: Vec<&str> = on.map(|(name, _)| name.as_str()).collect();
            if on.len() != 1 || !POOLING.contains(&on[0]) {
                return Err(format!(
                    "`{path}`: {} is not supported (known: {})",
                    on.join(" with "),
                    POOLING.join(", ")
                ));
            }
        }
    }
    let (config, folder) = (EmbeddingSpecificConfig::default(), Some(folder.to_string()));
    Ok(EmbeddingLoaderBuilder::new(config, None, folder).build(None))
}

impl Instance {
    /// The embedding of the one message, as a JSON list.
    pub(super) async fn embed(&self, request: &Request) -> Result<Reply, EngineError> {
        let input = request.messages.first().map_or("", |message| message.content.as_str());
        let fail = |error: String| EngineError::passing("engine", first_line(&error));
        let counted = self.model.tokenize(Either::Right(input.to_owned()), None, true, false, None);
        let tokens = counted.await.map_err(|error| fail(error.to_string()))?.len();
        let context = self.context.min(self.declared.unwrap_or(usize::MAX));
        if tokens > context {
            return Err(EngineError::Rejected {
                code: "overflow",
                detail: format!("the text has {tokens} tokens, and the model's context {context}"),
            });
        }
        if tokens < TOKENS_MIN {
            return Err(EngineError::Rejected {
                code: "too_short",
                detail: format!("mistral.rs 0.8.1 cannot embed a text of {tokens} token"),
            });
        }
        let mut stamps = Stamps::start();
        let made = self.model.generate_embeddings(EmbeddingRequest::builder().add_prompt(input));
        let made = made.await.map_err(|error| fail(error.to_string()))?;
        stamps.finish();
        let vector = made.first().filter(|vector| !vector.is_empty());
        let vector = vector.ok_or_else(|| fail("the engine gave no embedding".to_owned()))?;
        let text = serde_json::to_string(vector).expect("BUG: numbers are plain data");
        let usage = Usage::counted(Some(tokens as u64), Some(0), TokenSource::Engine);
        let completion = Completion::new(text, Finish::Stop, usage);
        Ok(Reply { completion, stamps, notices: Vec::new() })
    }
}
