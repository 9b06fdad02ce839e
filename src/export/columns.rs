//! The columns of a table of samples: their names, what is in them, how they are filled. Knows nothing of files.
//!
//! Columns that every table has are [`COLUMNS`]; behind them stand one `score_<scorer>` for each scorer and one
//! `tag_<tag>` for each tag that any sample has, sorted by name. Reading a table of two runs side by side is then a
//! matter of names, not of places.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::Deserialize;

use super::{ExportError, Source};
use crate::record::{Observed, Price, RequestObserved, ServedFrom};
use crate::report::question;
use crate::sample::{Role, Sample, Score};
use crate::store::Store;

/// What a column holds. Each of its cells may also be empty: null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A list of texts.
    Texts,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Flag,
    /// JSON as text: for tables that are read by programs, and in no CSV, where a spreadsheet cuts off cells of more
    /// than 32,767 characters.
    Json,
}

/// A cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'a> {
    /// Nothing is known.
    Null,
    /// Text or JSON.
    Text(Cow<'a, str>),
    /// A list of texts.
    Texts(&'a [String]),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
}

/// A sample with all that a row says of it.
pub struct Row<'a> {
    /// Its workflow.
    pub stage: &'a str,
    /// It.
    pub sample: &'a Sample,
    /// What was observed of it.
    pub observed: Option<&'a Observed>,
    /// What tokens cost.
    pub price: Option<Price>,
}

/// A column that every table has.
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What that means.
    pub about: &'static str,
    fill: for<'a> fn(&Row<'a>) -> Cell<'a>,
}

macro_rules! columns {
    ($($name:literal, $kind:ident, $about:literal, $fill:expr;)*) => {
        &[$(Column { name: $name, kind: Kind::$kind, about: $about, fill: $fill }),*]
    };
}

/// The columns that every table has, in order.
pub const COLUMNS: &[Column] = columns![
    "stage", Text, "the workflow, with its matrix values",
        |row| text(row.stage);
    "sample_id", Text, "the name of the flow",
        |row| text(&row.sample.flow);
    "epoch", Integer, "the repetition, from 0",
        |row| Cell::Integer(row.sample.epoch.into());
    "outcome", Text, "how it ended; only `answered` ones are scored",
        |row| text(row.sample.outcome.name());
    "correct", Flag, "whether the first scorer holds the answer fully right; null without a verdict",
        |row| row.sample.scores.first().and_then(Score::is_right).map_or(Cell::Null, Cell::Flag);
    "answer", Text, "the answer as parsed",
        |row| maybe(row.sample.answer.as_deref());
    "targets", Texts, "accepted answers; a JSON list in CSV",
        |row| Cell::Texts(&row.sample.targets);
    "question", Text, "the last turn of the user before the model's first reply",
        |row| maybe(question(row.sample));
    "reply", Text, "the last turn of the model, as received",
        |row| maybe(reply(row.sample));
    "detail", Text, "what went wrong, where something did",
        |row| maybe(row.sample.detail.as_deref());
    "served_from", Text, "live, memory, disk, remote or coalesced: where the sample came from in this run",
        |row| row.observed.map_or(Cell::Null, |seen| text(seen.served_from.name()));
    "live", Flag, "whether the engine answered every request in this run, so that the latency is a speed",
        |row| row.observed.map_or(Cell::Null, |seen| Cell::Flag(seen.is_live()));
    "latency_ms", Number, "from start to answer, without the wait for the engine's permit; of a sample from the \
        store, the time of the look-up",
        |row| row.observed.map_or(Cell::Null, |seen| Cell::Number(seen.latency_ms()));
    "requests", Integer, "requests to the engine, those answered from the store included",
        |row| row.observed.map_or(Cell::Null, |seen| count(Some(seen.requests.len() as u64)));
    "input_tokens", Integer, "of all requests; null where one was not counted",
        |row| count(row.observed.and_then(|seen| seen.usage().input_tokens));
    "output_tokens", Integer, "of all requests, reasoning included",
        |row| count(row.observed.and_then(|seen| seen.usage().output_tokens));
    "input_tokens_cache_read", Integer, "of the input tokens, those in the provider's own cache",
        |row| count(row.observed.and_then(|seen| seen.usage().input_tokens_cache_read));
    "reasoning_tokens", Integer, "of the output tokens, those of reasoning",
        |row| count(row.observed.and_then(|seen| seen.usage().reasoning_tokens));
    "token_source", Text, "who counted: engine, usage (the server), tokenizer, chunks, mixed",
        |row| maybe(row.observed.and_then(|seen| seen.usage().token_source).map(|by| by.name()));
    "cost", Number, "dollars for its live requests, where the manifest says what tokens cost",
        |row| cost(row).map_or(Cell::Null, Cell::Number);
    "key", Text, "the key under which the sample is remembered",
        |row| Cell::Text(row.sample.key.to_string().into());
    "flow_digest", Text, "the content of the flow: equal in tables that ask the same",
        |row| Cell::Text(row.sample.flow_digest.to_string().into());
    "scores", Json, "every score with what was compared, and the readings of further extractors",
        |row| json(&(&row.sample.scores, &row.sample.readings));
    "steps", Json, "every step with its whole transcript, the keys of its requests, and the trace of an agent",
        |row| json(&row.sample.steps);
];

fn text(text: &str) -> Cell<'_> {
    Cell::Text(text.into())
}

fn maybe(found: Option<&str>) -> Cell<'_> {
    found.map_or(Cell::Null, text)
}

fn count(found: Option<u64>) -> Cell<'static> {
    found.and_then(|n| i64::try_from(n).ok()).map_or(Cell::Null, Cell::Integer)
}

fn json(value: &impl serde::Serialize) -> Cell<'static> {
    Cell::Text(serde_json::to_string(value).expect("BUG: a sample is plain data").into())
}

/// The last turn of the model.
pub(super) fn reply(sample: &Sample) -> Option<&str> {
    let turns = &sample.steps.last()?.transcript;
    turns.iter().rfind(|turn| turn.role == Role::Assistant).map(|turn| turn.content.as_str())
}

fn cost(row: &Row<'_>) -> Option<f64> {
    let (price, observed) = (row.price?, row.observed?);
    let live = observed.requests.iter().filter(|made| made.served_from == ServedFrom::Live);
    let known = |made: &RequestObserved| Some(made.cost(Some(&price))).filter(|(_, all)| *all);
    let costs = live.map(|made| known(made).map(|(cost, _)| cost));
    costs.sum::<Option<f64>>().filter(|_| !observed.cut_short).map(|sum| sum + 0.0)
}

/// The columns of one table.
pub(super) struct Columns {
    scorers: Vec<String>,
    tags: Vec<String>,
}

impl Columns {
    /// Looks through all samples for scorers and tags.
    pub(super) fn of(sources: &[Source], store: &Store) -> Result<Self, ExportError> {
        #[derive(Deserialize)]
        struct Part {
            scores: Vec<Named>,
            tags: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
        }
        #[derive(Deserialize)]
        struct Named {
            scorer: String,
        }
        let (mut scorers, mut tags) = (BTreeSet::new(), BTreeSet::new());
        for source in sources {
            for part in source.parts::<Part>(store)? {
                let part = part?;
                for Named { scorer } in part.scores {
                    if !scorers.contains(&scorer) {
                        scorers.insert(scorer);
                    }
                }
                for tag in part.tags.into_keys() {
                    if !tags.contains(&tag) {
                        tags.insert(tag);
                    }
                }
            }
        }
        Ok(Columns { scorers: scorers.into_iter().collect(), tags: tags.into_iter().collect() })
    }

    /// Names and kinds, in order.
    pub(super) fn head(&self) -> impl Iterator<Item = (Cow<'_, str>, Kind)> {
        let fixed = COLUMNS.iter().map(|column| (Cow::Borrowed(column.name), column.kind));
        let scorers =
            self.scorers.iter().map(|name| (format!("score_{name}").into(), Kind::Number));
        let tags = self.tags.iter().map(|name| (format!("tag_{name}").into(), Kind::Text));
        fixed.chain(scorers).chain(tags)
    }

    /// The cells of a row, in the same order.
    pub(super) fn cells<'a>(&'a self, row: &'a Row<'a>) -> impl Iterator<Item = Cell<'a>> {
        let scorers = self.scorers.iter();
        let scorers = scorers.map(|name| row.sample.score(name).map_or(Cell::Null, Cell::Number));
        let tags = self.tags.iter();
        let tags = tags.map(|name| maybe(row.sample.tags.get(name).map(String::as_str)));
        COLUMNS.iter().map(|column| (column.fill)(row)).chain(scorers).chain(tags)
    }
}

/// Calls `visit` with every row of every workflow.
pub(super) fn each_row(
    sources: &[Source],
    store: &Store,
    mut visit: impl FnMut(&Row<'_>) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    for source in sources {
        let price = source.info.as_ref().and_then(|info| info.price);
        for both in source.rows(store)? {
            let (sample, observed) = both?;
            let (stage, observed) = (source.stage.as_str(), observed.as_ref());
            visit(&Row { stage, sample: &sample, observed, price })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_column() {
        let manual = include_str!("../../README.md");
        for column in COLUMNS {
            assert!(manual.contains(&format!("| `{}` |", column.name)), "{}", column.name);
        }
    }
}
