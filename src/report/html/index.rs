//! What a page filters and orders samples by: a few bytes of each, in plain JSON, before everything else that is said of
//! them. Knows nothing of the rest.
//!
//! ```text
//! { "cell": 0, "rows": 2, "epoch": [], "latency": [12.5, 13],
//!   "outcome": { "values": ["answered"], "at": [] }, "verdict": …, "served": …, "tags": [{ … }, …] }
//! ```
//!
//! A column holds each of its values once, and for each row where that stands: nothing where all rows have the same one.
//! Without epochs all of them are 0.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::record::Observed;
use crate::sample::{Sample, Score};

/// What the first scorer says of a sample, in a word.
fn verdict(sample: &Sample) -> &'static str {
    match sample.scores.first().and_then(Score::is_right) {
        Some(true) => "right",
        Some(false) => "wrong",
        None => "not scored",
    }
}

/// Values of a column: each different one once, and where it stands.
#[derive(Debug, Clone, PartialEq, Default)]
struct Column {
    values: Vec<Option<String>>,
    at: Vec<u32>,
    known: HashMap<Option<String>, u32>,
}

impl Column {
    fn push(&mut self, value: Option<&str>) {
        // Most rows have the value of the one before.
        let last = self.at.last().map(|at| (*at, self.values[*at as usize].as_deref()));
        if let Some((at, before)) = last
            && before == value
        {
            return self.at.push(at);
        }
        let value = value.map(str::to_owned);
        let next = self.values.len() as u32;
        let place = *self.known.entry(value.clone()).or_insert(next);
        if place == next {
            self.values.push(value);
        }
        self.at.push(place);
    }

    /// Fills up with rows that have no value.
    fn fill(&mut self, rows: usize) {
        while self.at.len() < rows {
            self.push(None);
        }
    }

    fn json(&self) -> Value {
        let at: &[u32] = if self.values.len() > 1 { &self.at } else { &[] };
        json!({ "values": self.values, "at": at })
    }
}

/// The samples of one workflow, as far as a page has to know all of them at once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Index {
    epoch: Vec<u32>,
    latency: Vec<f64>,
    outcome: Column,
    verdict: Column,
    served: Column,
    tags: BTreeMap<String, Column>,
}

impl Index {
    /// Adds a sample.
    pub(in crate::report) fn add(&mut self, sample: &Sample, observed: &Observed) {
        let rows = self.rows();
        self.epoch.push(sample.epoch);
        self.latency.push(super::samples::short(observed.latency_ms()));
        self.outcome.push(Some(sample.outcome.name()));
        self.verdict.push(Some(verdict(sample)));
        self.served.push(Some(observed.served_from.name()));
        for (tag, value) in &sample.tags {
            if !self.tags.contains_key(tag) {
                self.tags.insert(tag.clone(), Column::default());
            }
            let column = self.tags.get_mut(tag).expect("BUG: it was put there");
            column.fill(rows);
            column.push(Some(value));
        }
    }

    fn rows(&self) -> usize {
        self.latency.len()
    }

    /// The index as a page reads it; `tags` are those of the whole report.
    pub(super) fn json(&self, cell: usize, tags: &[&str]) -> Value {
        let tag = |tag: &&str| {
            let mut column = self.tags.get(*tag).cloned().unwrap_or_default();
            column.fill(self.rows());
            column.json()
        };
        let epoch: &[u32] =
            if self.epoch.iter().any(|epoch| *epoch > 0) { &self.epoch } else { &[] };
        json!({
            "cell": cell,
            "rows": self.rows(),
            "epoch": epoch,
            "latency": self.latency,
            "outcome": self.outcome.json(),
            "verdict": self.verdict.json(),
            "served": self.served.json(),
            "tags": tags.iter().map(tag).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::markdown::tests::row;
    use super::*;

    #[test]
    fn a_tag_that_some_rows_lack_stays_at_its_rows() {
        let mut index = Index::default();
        for (i, topic) in [None, Some("a"), Some("b"), Some("a"), None].into_iter().enumerate() {
            let mut row = row(&format!("q{i}"), Some("42"), Some(i < 2));
            row.sample.tags =
                topic.map(|topic| ("topic".to_owned(), topic.to_owned())).into_iter().collect();
            index.add(&row.sample, &row.observed);
        }
        let json = index.json(3, &["none", "topic"]);
        assert_eq!((&json["cell"], &json["rows"]), (&json!(3), &json!(5)));
        assert_eq!(json["outcome"], json!({ "values": ["answered"], "at": [] }));
        assert_eq!(json["verdict"], json!({ "values": ["right", "wrong"], "at": [0, 0, 1, 1, 1] }));
        assert_eq!(json["tags"][0], json!({ "values": [null], "at": [] }));
        assert_eq!(json["tags"][1], json!({ "values": [null, "a", "b"], "at": [0, 1, 2, 1, 0] }));
        assert_eq!(json["epoch"], json!([]));
    }
}
