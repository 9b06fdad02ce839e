//! Retrieval before the question (`rag`), whatever the method: passages of a collection stand in the prompt.
//! Knows nothing of how the question is answered.

use std::sync::{Arc, OnceLock};

use serde_json::json;

use super::tools::corpus::{self, Corpus};
use super::tools::{CHUNK_SIZE, CHUNK_SIZE_DEFAULT, TOP_K};
use super::{check_budget, embedding};
use crate::digest::{Digest, Key, Recipe};

use crate::engine::{Access, Answer, Client, Failure, Resource};
use crate::manifest::{Diagnostic, Fields};
use crate::record::{Price, ScorerRequest};
use crate::retrieval::{self, Hit};
use crate::sample::{Request, RetrievalInfo, Retrieved};
use crate::stage::{Artifact, ArtifactKind, Context, Inputs, Need, Setting, StageError};
use crate::store::Store;
use crate::template;
use crate::tool::retrieval::{Collection, Indexed};

mod embed;
mod rerank;
mod search;

use embed::Dense;
pub(super) use search::{Hybrid, Search};

/// Version of how passages come into a prompt.
const REV: u32 = 1;
/// By their names in manifests.
const METHODS: &[&str] = &["none", "naive", "hybrid", "reranked"];
/// Passages where the manifest is silent.
const TOP_K_DEFAULT: u32 = 5;
/// Passages that are put into another order, as a manifest may set them, and where it is silent.
pub(super) const CANDIDATES: std::ops::RangeInclusive<u32> = 2..=100;
pub(super) const CANDIDATES_DEFAULT: u32 = 20;
/// The ports of engines.
const RERANKER: &str = "rag.reranker";
pub(super) const EMBEDDINGS: &str = "rag.embeddings";
/// The prompt where the manifest is silent.
const PROMPT: &str = "{% if passages %}Use these passages where they help.\n\n\
    {% for passage in passages %}[{{ loop.index }}] {{ passage.source }}: {{ passage.text }}\n\n{% endfor %}\
    {% endif %}{{ question }}";

/// As a manifest declares it.
pub(super) struct Declared {
    pub(super) corpus: Corpus,
    method: String,
    top_k: u32,
    chunk_size: u32,
    candidates: u32,
    prompt: String,
    /// What stands before a question and before a passage when they are embedded.
    prefixes: (String, String),
}

/// Reads the table `rag`, and the engines that it names.
pub(super) fn read(fields: &Fields<'_>, setting: &Setting<'_>) -> (Option<Declared>, Vec<Need>) {
    let Some(fields) = fields.table("rag") else { return (None, Vec::new()) };
    let method = fields.choice("retrieval_method", METHODS);
    if !fields.has("retrieval_method") {
        fields.needed_text("retrieval_method");
    }
    let top_k = fields.count("top_k", TOP_K).unwrap_or(TOP_K_DEFAULT);
    let chunk_size = fields.count("chunk_size", CHUNK_SIZE).unwrap_or(CHUNK_SIZE_DEFAULT);
    let candidates = fields.count("candidates", CANDIDATES).unwrap_or(CANDIDATES_DEFAULT);
    let prompt = read_prompt(&fields).unwrap_or_else(|| PROMPT.to_owned());
    let reranker = read_engine(&fields, "reranker", RERANKER);
    let embeddings = read_engine(&fields, "embeddings", EMBEDDINGS);
    let prefix = |name: &str| fields.raw_text(name).map_or_else(String::new, |text| text.value);
    let prefixes = (prefix("query_prefix"), prefix("passage_prefix"));
    let Some(method) = method else { return (None, Vec::new()) };
    let is = |name: &str| method.value == name;
    if is("hybrid") && !fields.has("embeddings") {
        let hint = "`embeddings = \"<engine>\"`: a model that ranks passages beside BM25; `naive` needs none";
        fields.error(Diagnostic::at(method.span, "`hybrid` needs a model").hint(hint));
    }
    if is("reranked") && !fields.has("reranker") {
        let hint = "`reranker = \"<engine>\"`: a chat model that orders what BM25 has found";
        fields.error(Diagnostic::at(method.span, "`reranked` needs a model").hint(hint));
    }
    let corpus = match !is("none") || fields.has("corpus") {
        true => corpus::read(&fields, setting),
        false => None,
    };
    for name in ["text", "id"] {
        fields.skip(name);
    }
    fields.finish();
    if is("none") {
        return (None, Vec::new());
    }
    let reranker = reranker.filter(|_| is("reranked"));
    let needs = reranker.into_iter().chain(embeddings.filter(|_| is("hybrid"))).collect();
    let declared = corpus.map(|corpus| Declared {
        corpus,
        method: method.value.clone(),
        top_k,
        chunk_size,
        candidates: candidates.max(top_k),
        prompt,
        prefixes,
    });
    (declared, needs)
}

pub(super) fn read_engine(fields: &Fields<'_>, name: &str, port: &str) -> Option<Need> {
    let stage = fields.text(name)?;
    Some(Need { port: port.to_owned(), stage, kinds: vec![ArtifactKind::Engine], many: false })
}

fn read_prompt(fields: &Fields<'_>) -> Option<String> {
    let prompt = fields.raw_text("prompt")?;
    match template::names(&prompt.value) {
        Err(error) => fields.error(Diagnostic::at(prompt.span, error.message)),
        Ok(names) => {
            let is_unknown = |name: &&String| {
                let first = name.split('.').next().unwrap_or("");
                !["passages", "question"].contains(&first)
            };
            if let Some(name) = names.iter().find(is_unknown) {
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
    Some(prompt.value)
}

fn engine<'a>(inputs: &'a Inputs, port: &str) -> &'a Arc<Resource> {
    match inputs.one(port) {
        Artifact::Engine(engine) => engine,
        _ => unreachable!("BUG: the graph lets only engines in here"),
    }
}

impl Declared {
    /// With its files in the store and its engines known.
    pub(super) fn build(&self, inputs: &Inputs, context: &Context) -> Result<Rag, StageError> {
        let imported = self.corpus.import(context)?;
        let reranked = self.method == "reranked";
        let (text, id) = &self.corpus.columns;
        let dense = (self.method == "hybrid").then(|| {
            let recipe = of_passages(self.chunk_size, (text, id), imported.digest);
            let engine = engine(inputs, EMBEDDINGS).identity;
            Dense::new(EMBEDDINGS, recipe, engine, self.prefixes.clone())
        });
        Ok(Rag {
            method: self.method.clone(),
            top_k: self.top_k,
            chunk_size: self.chunk_size,
            candidates: self.candidates,
            prompt: self.prompt.clone(),
            columns: self.corpus.columns.clone(),
            digest: imported.digest,
            reranker: reranked.then(|| engine(inputs, RERANKER).identity),
            collection: Collection::new(imported.reader(self.chunk_size as usize)),
            dense,
            bytes_max: OnceLock::new(),
        })
    }

    /// The doors to its engines.
    pub(super) fn open(
        &self,
        inputs: &Inputs,
        context: &Context,
        access: &Access,
    ) -> Result<Doors, StageError> {
        let mut tariffs = Vec::new();
        let mut door = |port: &str| {
            let engine = engine(inputs, port);
            check_budget(engine, context)?;
            if port == EMBEDDINGS {
                embedding::check("`rag`", engine)?;
            }
            tariffs.extend(engine.tariff().map(|tariff| (port.to_owned(), tariff)));
            let client = Client::new(engine.clone(), context.store.clone(), access.clone());
            Ok::<_, StageError>(client)
        };
        let reranker = (self.method == "reranked").then(|| door(RERANKER)).transpose()?;
        let embeddings = (self.method == "hybrid").then(|| door(EMBEDDINGS)).transpose()?;
        Ok(Doors { reranker, embeddings, tariffs })
    }
}

/// What the passages of a collection depend on, for their vectors: the same for whoever searches it.
fn of_passages(chunk_size: u32, (text, id): (&str, &str), corpus: Digest) -> Recipe {
    let settings = json!({
        "rev": retrieval::REV, "chunk_size": chunk_size, "text": text, "id": id,
    });
    let recipe = Recipe::new("embeddings", embed::REV).field("passages", settings);
    recipe.input("rag corpus", corpus)
}

/// The doors to the engines of retrieval.
#[derive(Default)]
pub struct Doors {
    reranker: Option<Client>,
    embeddings: Option<Client>,
    tariffs: Vec<(String, Option<Price>)>,
}

impl Doors {
    /// What their tokens cost, by the setting that names the engine.
    pub(super) fn tariffs(&self) -> Vec<(String, Option<Price>)> {
        self.tariffs.clone()
    }
}

/// What retrieval asked engines for one question.
#[derive(Default)]
struct Asked {
    /// Of what its answer is made.
    keys: Vec<Key>,
    /// All that was asked.
    made: Vec<ScorerRequest>,
}

impl Asked {
    /// Asks, and keeps what was observed, also of what failed: it is the costs of this engine and not of another.
    async fn ask(
        &mut self,
        port: &str,
        door: &Client,
        request: &Request,
    ) -> Result<Answer, Failure> {
        let answered = door.complete(request).await;
        let observed = match &answered {
            Ok(answer) => &answer.observed,
            Err(Failure::Engine(failed)) => &failed.observed,
            Err(_) => return answered,
        };
        let request = observed.clone();
        self.made.push(ScorerRequest { scorer: port.to_owned(), request });
        answered
    }
}

/// Retrieval, ready for questions.
pub struct Rag {
    method: String,
    top_k: u32,
    chunk_size: u32,
    candidates: u32,
    prompt: String,
    columns: (String, String),
    digest: Digest,
    reranker: Option<Digest>,
    collection: Collection,
    /// Of `hybrid`.
    dense: Option<Dense>,
    bytes_max: OnceLock<(u64, u64)>,
}

impl Rag {
    /// Adds all of it to a recipe.
    pub(super) fn describe(&self, recipe: Recipe) -> Recipe {
        let reranked = self.reranker.is_some();
        let settings = json!({
            "rev": [REV, retrieval::REV], "retrieval_method": self.method, "top_k": self.top_k,
            "chunk_size": self.chunk_size, "prompt": self.prompt, "text": self.columns.0,
            "id": self.columns.1, "language": template::LANGUAGE,
            "candidates": (reranked || self.dense.is_some()).then_some(self.candidates),
            "rerank_rev": reranked.then_some(rerank::REV),
        });
        let recipe = recipe.field("rag", settings).input("rag corpus", self.digest);
        let recipe = match &self.dense {
            Some(dense) => dense.describe(recipe),
            None => recipe,
        };
        self.reranker.iter().fold(recipe, |recipe, engine| recipe.input(RERANKER, *engine))
    }

    /// Bytes of the most that it may put before a question; 0 where the collection cannot be read.
    pub(super) fn bytes_max(&self) -> u64 {
        self.sizes().0
    }

    /// Of the most passages that stand before a question, and of the most that are put into another order.
    fn sizes(&self) -> (u64, u64) {
        *self.bytes_max.get_or_init(|| {
            let Ok(Indexed { passages, .. }) = self.collection.indexed() else { return (0, 0) };
            let bytes = passages.iter().map(|p| (p.text.len() + p.source.len() + 16) as u64);
            let mut longest: Vec<u64> = bytes.collect();
            longest.sort_unstable_by(|a, b| b.cmp(a));
            let of = |count: u32| longest.iter().take(count as usize).sum::<u64>();
            (self.prompt.len() as u64 + of(self.top_k), of(self.candidates))
        })
    }

    /// What it asks for a question: of whom, bytes of the prompt beyond the question, most tokens of the reply.
    pub(super) fn asking(&self) -> Option<(&'static str, u64, u64)> {
        match &self.dense {
            Some(dense) => Some((EMBEDDINGS, dense.query_prefix.len() as u64, 0)),
            None => {
                let (frame, most) = rerank::FRAME;
                self.reranker.map(|_| (RERANKER, frame + self.sizes().1, most))
            }
        }
    }

    /// Bytes of the passages whose embeddings are still to be asked for.
    pub(super) async fn bytes_to_embed(&self, store: &Store, afresh: bool) -> u64 {
        let (Some(dense), Ok(indexed)) = (&self.dense, self.collection.indexed()) else { return 0 };
        if !afresh && dense.is_kept(store).await {
            return 0;
        }
        let prefix = dense.passage_prefix.len();
        indexed.passages.iter().map(|passage| (prefix + passage.text.len()) as u64).sum()
    }

    /// The best passages for a question.
    async fn find(
        &self,
        doors: &Doors,
        indexed: &Indexed,
        question: &str,
        asked: &mut Asked,
    ) -> Result<Vec<Hit>, Failure> {
        let is_plain = doors.reranker.is_none() && self.dense.is_none();
        let most = if is_plain { self.top_k } else { self.candidates } as usize;
        let mut hits = indexed.bm25.search(question, most);
        if let Some(dense) = &self.dense {
            let door = doors.embeddings.as_ref().expect("BUG: embeddings without their engine");
            let near = dense.search(door, question, &indexed.passages, most, asked).await?;
            hits = retrieval::fuse(&[hits, near], most);
        }
        if let Some(door) = doors.reranker.as_ref().filter(|_| hits.len() > 1) {
            let texts: Vec<&str> = texts(indexed, &hits).collect();
            let order = rerank::rerank(door, question, &texts, asked).await?;
            hits = order.into_iter().map(|at| hits[at]).collect();
        }
        hits.truncate(self.top_k as usize);
        Ok(hits)
    }

    /// The question with passages before it, and what was found. What was asked for it goes to `aside`.
    pub(super) async fn augment(
        &self,
        doors: &Doors,
        question: &str,
        aside: &mut Vec<ScorerRequest>,
    ) -> Result<(String, RetrievalInfo), Failure> {
        let indexed = self.collection.indexed().map_err(Failure::User)?;
        let mut asked = Asked::default();
        let found = self.find(doors, indexed, question, &mut asked).await;
        aside.append(&mut asked.made);
        let (hits, requests) = (found?, asked.keys);
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
            .map_err(|error| Failure::User(format!("`rag.prompt`: {error}")))?;
        let (method, query) = (self.method.clone(), question.to_owned());
        Ok((text, RetrievalInfo { method, query, passages, requests }))
    }
}

fn texts<'a>(indexed: &'a Indexed, hits: &'a [Hit]) -> impl Iterator<Item = &'a str> {
    hits.iter().map(|hit| indexed.passages[hit.passage].text.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_reads_what_it_gets() {
        let names: Vec<_> = template::names(PROMPT).unwrap().into_iter().collect();
        assert_eq!(names, ["passages", "question"]);
    }
}
