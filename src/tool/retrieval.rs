//! Passages of a collection that an agent can search. Knows nothing of files: the passages come in read, when
//! they are first asked for.

use std::sync::OnceLock;

use futures_util::future::BoxFuture;

use super::{Observation, Tool, ToolError, limited};
use crate::digest::{Digest, Recipe};
use crate::retrieval::{self, Bm25, Hit, Passage};

/// Version of how what was found is written.
const REV: u32 = 1;

/// Reads the passages of a collection.
pub type Read = Box<dyn Fn() -> Result<Vec<Passage>, String> + Send + Sync>;

/// A collection, read and indexed when it is first searched: a run of hits never reads it.
pub struct Collection {
    read: Read,
    indexed: OnceLock<Result<Indexed, String>>,
}

/// Passages and their index.
pub struct Indexed {
    /// In the order of the collection.
    pub passages: Vec<Passage>,
    /// Over their texts.
    pub bm25: Bm25,
}

impl Collection {
    /// A collection that `read` reads.
    pub fn new(read: Read) -> Self {
        Collection { read, indexed: OnceLock::new() }
    }

    /// Its passages and their index.
    pub fn indexed(&self) -> Result<&Indexed, String> {
        let index = || {
            let passages = (self.read)()?;
            let bm25 = Bm25::new(passages.iter().map(|passage| passage.text.as_str()));
            Ok(Indexed { passages, bm25 })
        };
        self.indexed.get_or_init(index).as_ref().map_err(Clone::clone)
    }
}

/// The settings of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Of the tool.
    pub name: String,
    /// For the model.
    pub description: String,
    /// Passages in an answer.
    pub top_k: u32,
    /// Words in a passage.
    pub chunk_size: u32,
    /// Characters in an answer.
    pub output_limit: u32,
    /// Columns of text and identifier, where the collection has rows.
    pub columns: (String, String),
    /// Of the collection.
    pub digest: Digest,
}

/// The search tool.
pub struct Retrieval {
    settings: Settings,
    collection: Collection,
}

impl Retrieval {
    /// A search of a collection.
    pub fn new(settings: Settings, collection: Collection) -> Self {
        Retrieval { settings, collection }
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The collection and its index.
    pub fn indexed(&self) -> Result<&Indexed, String> {
        self.collection.indexed()
    }

    /// What is said to a query of nothing.
    pub fn blank(&self, query: &str) -> Option<Observation> {
        let name = &self.settings.name;
        let words = || Observation::error(format!("write what to look for: {name}[<query>]"));
        query.trim().is_empty().then(words)
    }

    /// What was found, for the model.
    pub fn shown(&self, indexed: &Indexed, hits: &[Hit]) -> Observation {
        if hits.is_empty() {
            return Observation { text: "not found".to_owned(), succeeded: false };
        }
        let texts = hits.iter().enumerate().map(|(i, hit)| {
            let Passage { source, text, .. } = &indexed.passages[hit.passage];
            format!("[{}] {source}: {text}", i + 1)
        });
        let text = texts.collect::<Vec<_>>().join("\n");
        Observation::good(limited(&text, self.settings.output_limit as usize))
    }

    fn find(&self, query: &str) -> Result<Observation, ToolError> {
        if let Some(observation) = self.blank(query) {
            return Ok(observation);
        }
        let indexed = self.indexed().map_err(ToolError)?;
        let hits = indexed.bm25.search(query, self.settings.top_k as usize);
        Ok(self.shown(indexed, &hits))
    }
}

impl Tool for Retrieval {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn usage(&self) -> String {
        format!("{}[<query>] {}", self.settings.name, self.settings.description)
    }

    fn bytes_max(&self) -> u64 {
        super::bytes_of(self.settings.output_limit as usize)
    }

    fn call<'a>(&'a self, input: &'a str) -> BoxFuture<'a, Result<Observation, ToolError>> {
        Box::pin(std::future::ready(self.find(input)))
    }

    fn describe(&self, recipe: Recipe) -> Recipe {
        let Settings { name, description, top_k, chunk_size, output_limit, columns, digest } =
            &self.settings;
        let settings = serde_json::json!({
            "kind": "retrieval", "rev": [REV, retrieval::REV], "description": description,
            "top_k": top_k, "chunk_size": chunk_size, "output_limit": output_limit,
            "text": columns.0, "id": columns.1,
        });
        let name = format!("tool.{name}");
        recipe.field(&name, settings).input(name, *digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(top_k: u32, output_limit: u32) -> Retrieval {
        let settings = Settings {
            name: "search".into(),
            description: "finds passages".into(),
            top_k,
            chunk_size: 64,
            output_limit,
            columns: ("text".into(), "id".into()),
            digest: Digest::of(b"corpus"),
        };
        let read = || {
            let texts = [("a.txt", "Lyon is in France."), ("b.txt", "Porto is in Portugal.")];
            Ok(texts.iter().flat_map(|(name, text)| retrieval::cut(name, text, 64)).collect())
        };
        Retrieval::new(settings, Collection::new(Box::new(read)))
    }

    #[test]
    fn passages_come_with_their_source() {
        let found = |tool: &Retrieval, query: &str| tool.find(query).unwrap();
        assert_eq!(
            found(&tool(1, 100), "Where is Porto?").text,
            "[1] b.txt: Porto is in Portugal."
        );
        let both = found(&tool(2, 100), "Is Lyon in France?").text;
        assert_eq!(both, "[1] a.txt: Lyon is in France.\n[2] b.txt: Porto is in Portugal.");
        let cut = found(&tool(1, 14), "Porto").text;
        assert_eq!(cut, "[1] b.txt: Por … [cut after 14 characters]");
        assert!(!found(&tool(1, 100), "Oslo").succeeded);
        assert!(!found(&tool(1, 100), " ").succeeded);
    }

    #[test]
    fn every_setting_and_the_collection_are_in_the_recipe() {
        let recipe = |tool: Retrieval| tool.describe(Recipe::new("sample", 1)).key();
        let base = recipe(tool(1, 100));
        assert_ne!(base, recipe(tool(2, 100)));
        assert_ne!(base, recipe(tool(1, 101)));
        let mut other = tool(1, 100);
        other.settings.digest = Digest::of(b"other");
        assert_ne!(base, recipe(other));
        let mut other = tool(1, 100);
        other.settings.columns.0 = "body".into();
        assert_ne!(base, recipe(other));
    }

    #[test]
    fn a_collection_that_cannot_be_read_is_no_answer() {
        let mut tool = tool(1, 100);
        tool.collection = Collection::new(Box::new(|| Err("row 3 is not JSON".to_owned())));
        assert_eq!(tool.find("x").unwrap_err().to_string(), "row 3 is not JSON");
    }
}
