//! Retrieval before the question (`rag`), whatever the method: passages of a collection stand in the prompt.
//! Knows nothing of how the question is answered.

use serde_json::json;

use super::tools::corpus::{self, Corpus};
use super::tools::{CHUNK_SIZE, CHUNK_SIZE_DEFAULT, TOP_K};
use crate::digest::{Digest, Recipe};
use crate::manifest::{Diagnostic, Fields};
use crate::retrieval;
use crate::sample::{RetrievalInfo, Retrieved};
use crate::stage::{Context, Setting, StageError};
use crate::template;
use crate::tool::retrieval::Collection;

/// Version of how passages come into a prompt.
const REV: u32 = 1;
/// By their names in manifests.
const METHODS: &[&str] = &["none", "naive", "hybrid", "reranked"];
/// Passages where the manifest is silent.
const TOP_K_DEFAULT: u32 = 5;
/// The prompt where the manifest is silent.
const PROMPT: &str = "{% if passages %}Use these passages where they help.\n\n\
    {% for passage in passages %}[{{ loop.index }}] {{ passage.source }}: {{ passage.text }}\n\n{% endfor %}\
    {% endif %}{{ question }}";

/// As a manifest declares it.
pub(super) struct Declared {
    pub(super) corpus: Corpus,
    top_k: u32,
    chunk_size: u32,
    prompt: String,
}

pub(super) fn read(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Declared> {
    let fields = fields.table("rag")?;
    let method = fields.choice("retrieval_method", METHODS);
    if !fields.has("retrieval_method") {
        fields.needed_text("retrieval_method");
    }
    let top_k = fields.count("top_k", TOP_K).unwrap_or(TOP_K_DEFAULT);
    let chunk_size = fields.count("chunk_size", CHUNK_SIZE).unwrap_or(CHUNK_SIZE_DEFAULT);
    let prompt = fields.raw_text("prompt").map(|prompt| {
        match template::names(&prompt.value) {
            Err(error) => fields.error(Diagnostic::at(prompt.span, error.message)),
            Ok(names) => {
                let is_known = |name: &&String| {
                    let first = name.split('.').next().unwrap_or("");
                    !["passages", "question", "passage", "loop"].contains(&first)
                };
                if let Some(name) = names.iter().find(is_known) {
                    let message = format!("`{name}` is unknown in this prompt");
                    let hint = "known: `passages`, each with `source` and `text`, and `question`";
                    fields.error(Diagnostic::at(prompt.span, message).hint(hint));
                }
                if !names.contains("question") {
                    let message = "this prompt leaves the question out";
                    fields.error(Diagnostic::at(prompt.span, message).hint("write {{ question }}"));
                }
            }
        }
        prompt.value
    });
    let method = method?;
    if matches!(method.value.as_str(), "hybrid" | "reranked") {
        let message =
            format!("`{}` needs a model for embeddings, and none can be given yet", method.value);
        fields.error(
            Diagnostic::at(method.span, message).hint("`naive` ranks by BM25, without a model"),
        );
    }
    let is_on = method.value != "none";
    let corpus = match is_on || fields.has("corpus") {
        true => corpus::read(&fields, setting),
        false => None,
    };
    for name in ["text", "id"] {
        fields.skip(name);
    }
    fields.finish();
    is_on.then_some(())?;
    let prompt = prompt.unwrap_or_else(|| PROMPT.to_owned());
    Some(Declared { corpus: corpus?, top_k, chunk_size, prompt })
}

impl Declared {
    /// With its files in the store.
    pub(super) fn build(&self, context: &Context) -> Result<Rag, StageError> {
        let imported = self.corpus.import(context)?;
        Ok(Rag {
            top_k: self.top_k,
            chunk_size: self.chunk_size,
            prompt: self.prompt.clone(),
            columns: self.corpus.columns.clone(),
            digest: imported.digest,
            collection: Collection::new(imported.reader(self.chunk_size as usize)),
        })
    }
}

/// Retrieval, ready for questions.
pub struct Rag {
    top_k: u32,
    chunk_size: u32,
    prompt: String,
    columns: (String, String),
    digest: Digest,
    collection: Collection,
}

impl Rag {
    /// Adds all of it to a recipe.
    pub(super) fn describe(&self, recipe: Recipe) -> Recipe {
        let settings = json!({
            "rev": [REV, retrieval::REV], "retrieval_method": "naive", "top_k": self.top_k,
            "chunk_size": self.chunk_size, "prompt": self.prompt, "text": self.columns.0,
            "id": self.columns.1, "language": template::LANGUAGE,
        });
        recipe.field("rag", settings).input("rag corpus", self.digest)
    }

    /// The question with passages before it, and what was found. An error is one of the collection or of the
    /// prompt, and says nothing of the model.
    pub(super) fn augment(&self, question: &str) -> Result<(String, RetrievalInfo), String> {
        let indexed = self.collection.indexed()?;
        let hits = indexed.bm25.search(question, self.top_k as usize);
        let passages = hits.iter().map(|hit| {
            let passage = &indexed.passages[hit.passage];
            Retrieved {
                source: passage.source.clone(),
                number: passage.number,
                text: passage.text.clone(),
                // The last digits of a logarithm are those of a machine.
                score: (hit.score * 1e6).round() / 1e6,
            }
        });
        let passages: Vec<Retrieved> = passages.collect();
        let context = json!({ "passages": passages, "question": question });
        let text = template::render(&self.prompt, context)
            .map_err(|error| format!("`rag.prompt`: {error}"))?;
        let info =
            RetrievalInfo { method: "naive".to_owned(), query: question.to_owned(), passages };
        Ok((text, info))
    }
}
