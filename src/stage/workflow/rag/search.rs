//! The search of an agent by words and by embeddings: the tool `retrieval` where a model is given. Knows nothing of
//! prompts.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::json;

use super::embed::Dense;
use super::{Asked, engine, of_passages};
use crate::digest::Recipe;
use crate::engine::{Access, Client, Failure};
use crate::record::{Price, ScorerRequest};
use crate::retrieval;
use crate::sample::ToolSpec;
use crate::stage::workflow::{check_budget, embedding};
use crate::stage::{Context, Inputs, StageError};
use crate::store::Store;
use crate::tool::retrieval::Retrieval;
use crate::tool::{Observation, Tool, ToolError};

/// Version of how rankings are made one.
const REV: u32 = 1;

/// The settings of a search by embeddings beside words.
pub(in crate::stage::workflow) struct Hybrid {
    /// The port of the engine that embeds.
    pub(in crate::stage::workflow) port: String,
    /// Passages of each ranking.
    pub(in crate::stage::workflow) candidates: u32,
    /// What stands before a question and before a passage.
    pub(in crate::stage::workflow) prefixes: (String, String),
}

impl Hybrid {
    /// The search, over a collection that is known.
    pub(in crate::stage::workflow) fn build(&self, words: Retrieval, inputs: &Inputs) -> Search {
        let settings = words.settings();
        let columns = (settings.columns.0.as_str(), settings.columns.1.as_str());
        let recipe = of_passages(settings.chunk_size, columns, settings.digest);
        let engine = engine(inputs, &self.port).identity;
        let dense = Dense::new(&self.port, recipe, engine, self.prefixes.clone());
        let candidates = self.candidates.max(settings.top_k);
        Search { words, dense, candidates, port: self.port.clone() }
    }

    /// The door to its engine, and what its tokens cost, as [`Resource::tariff`](crate::engine::Resource::tariff) has it.
    pub(in crate::stage::workflow) fn open(
        &self,
        tool: &str,
        inputs: &Inputs,
        context: &Context,
        access: &Access,
    ) -> Result<(Client, Option<Option<Price>>), StageError> {
        let engine = engine(inputs, &self.port);
        check_budget(engine, context)?;
        embedding::check(&format!("the tool `{tool}`"), engine)?;
        let client = Client::new(engine.clone(), context.store.clone(), access.clone());
        Ok((client, engine.tariff()))
    }
}

/// A search that is ready.
pub struct Search {
    words: Retrieval,
    dense: Dense,
    candidates: u32,
    port: String,
}

impl Search {
    /// What is found. What was asked for it goes to `aside`.
    pub(in crate::stage::workflow) async fn call(
        &self,
        door: &Client,
        query: &str,
        aside: &mut Vec<ScorerRequest>,
    ) -> Result<Observation, Failure> {
        if let Some(observation) = self.words.blank(query) {
            return Ok(observation);
        }
        let indexed = self.words.indexed().map_err(Failure::User)?;
        let most = self.candidates as usize;
        let mut asked = Asked::default();
        let near = self.dense.search(door, query, &indexed.passages, most, &mut asked).await;
        aside.append(&mut asked.made);
        let found = indexed.bm25.search(query, most);
        let hits = retrieval::fuse(&[found, near?], self.words.settings().top_k as usize);
        Ok(self.words.shown(indexed, &hits))
    }

    /// The port of the engine that embeds.
    pub(in crate::stage::workflow) fn port(&self) -> &str {
        &self.port
    }

    /// Bytes that stand before a query.
    pub(in crate::stage::workflow) fn query_frame(&self) -> u64 {
        self.dense.query_prefix.len() as u64
    }

    /// Bytes of the passages whose embeddings are still to be asked for.
    pub(in crate::stage::workflow) async fn bytes_to_embed(
        &self,
        store: &Store,
        afresh: bool,
    ) -> u64 {
        let Ok(indexed) = self.words.indexed() else { return 0 };
        if !afresh && self.dense.is_kept(store).await {
            return 0;
        }
        let prefix = self.dense.passage_prefix.len();
        indexed.passages.iter().map(|passage| (prefix + passage.text.len()) as u64).sum()
    }
}

impl Tool for Arc<Search> {
    fn name(&self) -> &str {
        self.words.name()
    }

    fn usage(&self) -> String {
        self.words.usage()
    }

    fn spec(&self) -> ToolSpec {
        self.words.spec()
    }

    fn bytes_max(&self) -> u64 {
        self.words.bytes_max()
    }

    fn call<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Observation, ToolError>> {
        // Its engine is asked through the door of the workflow, which tools do not know.
        let error =
            ToolError("BUG: a search by embeddings was called without their engine".to_owned());
        Box::pin(std::future::ready(Err(error)))
    }

    fn describe(&self, recipe: Recipe) -> Recipe {
        let name = self.words.name().to_owned();
        let settings = json!({
            "rev": REV, "candidates": self.candidates, "query_prefix": self.dense.query_prefix,
        });
        let recipe = self.words.describe(recipe).field(&format!("tool.{name}.hybrid"), settings);
        recipe.input(format!("tool.{name}.embeddings"), self.dense.of_passages())
    }
}
