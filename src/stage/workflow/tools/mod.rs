//! Tools of a workflow as a manifest declares them: those that are built in, by name, and those with settings,
//! each in a table `tool.<name>`. Knows nothing of when they are called.

use std::collections::BTreeMap;
use std::sync::Arc;

use camino::Utf8PathBuf;
use serde_json::Value;

use super::rag::{self, Hybrid, Search as HybridSearch};
use crate::digest::Digest;
use crate::engine::{Access, Client};
use crate::manifest::{Diagnostic, Fields, is_name};
use crate::method::{Method, react};
use crate::record::Price;
use crate::stage::{Context, Inputs, Need, Setting, StageError};
use crate::tool::retrieval::{Collection, Retrieval, Settings};
use crate::tool::{self, Tool};

mod command;
pub(super) mod corpus;
mod http;

use corpus::Corpus;

/// Kinds of tools with settings.
const KINDS: &[&str] = &["retrieval", "http", "command"];
/// Characters of an answer where the manifest is silent, and at most.
const OUTPUT_LIMIT: u32 = 2000;
const OUTPUT_LIMIT_MAX: u32 = 1_000_000;
/// Words of a passage, as a manifest may set them.
pub(super) const CHUNK_SIZE: std::ops::RangeInclusive<u32> = 64..=1024;
/// Words of a passage where the manifest is silent.
pub(super) const CHUNK_SIZE_DEFAULT: u32 = 256;
/// Passages at once, as a manifest may set them.
pub(super) const TOP_K: std::ops::RangeInclusive<u32> = 1..=20;
/// Passages in an answer of the tool where the manifest is silent.
const TOP_K_DEFAULT: u32 = 3;
/// Names are what models and servers take as such.
const NAME_MAX: usize = 64;

/// The tools of a workflow, and how often they may be called.
#[derive(Default)]
pub(super) struct Tools {
    /// In the order of the manifest.
    names: Vec<String>,
    lookup: Option<Utf8PathBuf>,
    own: BTreeMap<String, Declared>,
    /// Most turns of the model in a step.
    pub(super) max_iterations: u32,
}

/// A tool with settings.
enum Declared {
    Retrieval(Search),
    Http(http::Declared),
    Command(command::Declared),
}

struct Search {
    corpus: Corpus,
    description: String,
    top_k: u32,
    chunk_size: u32,
    output_limit: u32,
    hybrid: Option<Hybrid>,
    need: Option<Need>,
}

/// Tools that are ready. A search by embeddings stands in both lists.
pub(super) struct Built {
    pub(super) tools: Vec<Box<dyn Tool>>,
    pub(super) searches: Vec<Arc<HybridSearch>>,
}

/// Reads tools. They count for methods that can call them; beside other methods they may stand all the same: a
/// matrix over methods has one table for all of them.
pub(super) fn read(
    fields: &Fields<'_>,
    setting: &Setting<'_>,
    method: Option<&'static dyn Method>,
) -> Tools {
    let turns = (*react::TURNS.start() as u32)..=(*react::TURNS.end() as u32);
    let max_iterations = fields.count("max_iterations", turns).unwrap_or(react::TURNS_DEFAULT);
    let own = read_own(fields, setting);
    let known: Vec<&str> =
        tool::TOOLS.iter().copied().chain(own.iter().map(|(name, _)| name.as_str())).collect();
    let names = fields.choices("tools", &known);
    let lookup = fields.path("lookup").filter(|path| setting.check_exists(fields, path));
    if !method.is_some_and(Method::uses_tools) {
        return Tools { max_iterations: 1, ..Tools::default() };
    }
    let names = names.unwrap_or_else(|| {
        let default = known.iter().filter(|tool| **tool != "lookup" || lookup.is_some());
        default.map(ToString::to_string).collect()
    });
    if names.iter().any(|tool| tool == "lookup") && lookup.is_none() && !fields.has("lookup") {
        let hint = "add `lookup = \"<file of key and value>.jsonl\"`";
        let message = "the tool `lookup` needs its table";
        fields.error(Diagnostic::at(fields.place("tools"), message).hint(hint));
    }
    let own = own.into_iter().filter_map(|(name, declared)| Some((name, declared?))).collect();
    Tools { names, lookup: lookup.map(|path| path.value), own, max_iterations }
}

/// The tables of tools; of one that is wrong, only the name.
fn read_own(fields: &Fields<'_>, setting: &Setting<'_>) -> Vec<(String, Option<Declared>)> {
    let mut own = Vec::new();
    for (name, table) in fields.named_tables("tool") {
        if tool::TOOLS.contains(&name.value.as_str()) {
            let message = format!("`{}` is a tool that is built in", name.value);
            fields.error(Diagnostic::at(name.span, message).hint("give this one another name"));
            continue;
        }
        if !is_name(&name.value) || name.value.len() > NAME_MAX {
            let message = format!("`{}` is no name for a tool", name.value);
            let hint = format!("use letters, digits, `_` and `-`, at most {NAME_MAX}");
            fields.error(Diagnostic::at(name.span, message).hint(hint));
        }
        if !table.has("kind") {
            table.needed_text("kind");
        }
        let declared = match table.choice("kind", KINDS) {
            Some(kind) => match kind.value.as_str() {
                "retrieval" => read_search(&name.value, &table, setting).map(Declared::Retrieval),
                "http" => http::read(&table).map(Declared::Http),
                _ => command::read(&table, setting).map(Declared::Command),
            },
            None => {
                // Which keys are known depends on the kind, so there is no more to say.
                own.push((name.value, None));
                continue;
            }
        };
        table.finish();
        own.push((name.value, declared));
    }
    own
}

fn read_search(name: &str, fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Search> {
    let corpus = corpus::read(fields, setting);
    let description = fields.text("description").map(|text| text.value);
    let top_k = fields.count("top_k", TOP_K).unwrap_or(TOP_K_DEFAULT);
    let chunk_size = fields.count("chunk_size", CHUNK_SIZE).unwrap_or(CHUNK_SIZE_DEFAULT);
    let (hybrid, need) = read_hybrid(name, fields).unzip();
    Some(Search {
        corpus: corpus?,
        description: description.unwrap_or_else(|| "finds passages of text".to_owned()),
        top_k,
        chunk_size,
        output_limit: read_output_limit(fields),
        hybrid,
        need,
    })
}

/// Embeddings beside words, where a model is given.
fn read_hybrid(tool: &str, fields: &Fields<'_>) -> Option<(Hybrid, Need)> {
    let port = format!("tool.{tool}.embeddings");
    let need = rag::read_engine(fields, "embeddings", &port);
    let candidates = fields.count("candidates", rag::CANDIDATES);
    let prefix = |name: &str| fields.raw_text(name).map_or_else(String::new, |text| text.value);
    let prefixes = (prefix("query_prefix"), prefix("passage_prefix"));
    if need.is_none() && !fields.has("embeddings") {
        for name in ["candidates", "query_prefix", "passage_prefix"] {
            if fields.has(name) {
                let message = format!("`{name}` is for a search by embeddings");
                let hint = "`embeddings = \"<engine>\"`: a model that ranks passages beside BM25";
                fields.error(Diagnostic::at(fields.place(name), message).hint(hint));
            }
        }
    }
    let candidates = candidates.unwrap_or(rag::CANDIDATES_DEFAULT);
    Some((Hybrid { port, candidates, prefixes }, need?))
}

fn read_output_limit(fields: &Fields<'_>) -> u32 {
    fields.count("output_limit", 1..=OUTPUT_LIMIT_MAX).unwrap_or(OUTPUT_LIMIT)
}

/// Doors to engines by the name of the tool, and what their tokens cost by port.
type Opened = (BTreeMap<String, Client>, Vec<(String, Option<Price>)>);

impl Tools {
    /// Files and folders that they read.
    pub(super) fn reads(&self) -> impl Iterator<Item = &Utf8PathBuf> {
        let own = self.own.values().flat_map(|declared| match declared {
            Declared::Retrieval(search) => search.corpus.paths.as_slice(),
            Declared::Http(_) => &[],
            Declared::Command(command) => command.files.as_slice(),
        });
        self.lookup.iter().chain(own)
    }

    /// The searches by embeddings among those that may be called.
    fn hybrids(&self) -> impl Iterator<Item = (&String, &Search, &Hybrid)> {
        self.names.iter().filter_map(|name| match self.own.get(name)? {
            Declared::Retrieval(search) => Some((name, search, search.hybrid.as_ref()?)),
            _ => None,
        })
    }

    /// The engines that they ask.
    pub(super) fn needs(&self) -> Vec<Need> {
        self.hybrids().filter_map(|(_, search, _)| search.need.clone()).collect()
    }

    /// The tools themselves, with their files in the store.
    pub(super) fn build(&self, inputs: &Inputs, context: &Context) -> Result<Built, StageError> {
        let mut searches = Vec::new();
        let tools = self.names.iter().map(|name| self.one(name, inputs, context, &mut searches));
        let tools = tools.collect::<Result<_, _>>()?;
        Ok(Built { tools, searches })
    }

    /// Opens the engines that they ask.
    pub(super) fn open(
        &self,
        inputs: &Inputs,
        context: &Context,
        access: &Access,
    ) -> Result<Opened, StageError> {
        let (mut doors, mut tariffs) = (BTreeMap::new(), Vec::new());
        for (name, _, hybrid) in self.hybrids() {
            let (door, tariff) = hybrid.open(name, inputs, context, access)?;
            tariffs.extend(tariff.map(|tariff| (hybrid.port.clone(), tariff)));
            doors.insert(name.clone(), door);
        }
        Ok((doors, tariffs))
    }

    fn one(
        &self,
        name: &str,
        inputs: &Inputs,
        context: &Context,
        searches: &mut Vec<Arc<HybridSearch>>,
    ) -> Result<Box<dyn Tool>, StageError> {
        Ok(match (name, self.own.get(name)) {
            ("calculator", _) => Box::new(tool::calculator::Calculator),
            ("lookup", _) => {
                let path = self.lookup.as_ref().expect("BUG: `lookup` without its table");
                let (digest, rows) = read_table(path, context)?;
                Box::new(tool::lookup::Lookup::new(digest, rows))
            }
            (_, Some(Declared::Retrieval(search))) => {
                let imported = search.corpus.import(context)?;
                let settings = Settings {
                    name: name.to_owned(),
                    description: search.description.clone(),
                    top_k: search.top_k,
                    chunk_size: search.chunk_size,
                    output_limit: search.output_limit,
                    columns: search.corpus.columns.clone(),
                    digest: imported.digest,
                };
                let read = imported.reader(search.chunk_size as usize);
                let words = Retrieval::new(settings, Collection::new(read));
                match &search.hybrid {
                    None => Box::new(words),
                    Some(hybrid) => {
                        let search = Arc::new(hybrid.build(words, inputs));
                        searches.push(search.clone());
                        Box::new(search)
                    }
                }
            }
            (_, Some(Declared::Http(http))) => Box::new(http.build(name)?),
            (_, Some(Declared::Command(command))) => Box::new(command.build(name, context)?),
            (other, None) => panic!("BUG: unknown tool `{other}` passed the manifest"),
        })
    }
}

/// Reads a table of key and value: JSON Lines with both.
fn read_table(
    path: &Utf8PathBuf,
    context: &Context,
) -> Result<(Digest, BTreeMap<String, String>), StageError> {
    let full = context.resolve(path)?;
    let (digest, bytes) = context.store.import_bytes(&full)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| StageError::User(format!("`{path}` is not UTF-8 text")))?;
    let mut rows = BTreeMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row: Value = serde_json::from_str(line).map_err(|error| {
            StageError::User(format!(
                "{path}:{}:{}: this line is not JSON: {error}",
                i + 1,
                error.column()
            ))
        })?;
        let (Some(key), Some(value)) = (row["key"].as_str(), row["value"].as_str()) else {
            let hint = "a row of a lookup table is {\"key\": \"…\", \"value\": \"…\"}";
            return Err(StageError::User(format!("{path}:{}: {hint}", i + 1)));
        };
        rows.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    Ok((digest, rows))
}
