//! Which fields a reader asks for, and what they may hold: the description of a manifest that its own reading gives.
//! Knows nothing of what fields mean.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::tree::{Item, Table};

/// Fields whose word decides which others there are.
pub const DECIDING: [&str; 2] = ["backend", "kind"];

/// What a field may hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// A string. The weakest: what is read as one may turn out to be more.
    Text,
    /// A string, or a list of them.
    Texts,
    /// A table of strings.
    TextTable,
    /// A whole number between these.
    Integer(i64, i64),
    /// A number between these.
    Number(f64, f64),
    /// true or false.
    Boolean,
    /// A string such as "30s".
    Duration,
    /// A path of the project.
    Path,
    /// A path, or a list of them.
    Paths,
    /// One of some words.
    Choice,
    /// Some of some words.
    Choices,
    /// Any plain value.
    Scalar,
    /// A list of plain values.
    List,
    /// A table of plain values.
    PlainTable,
    /// A table.
    Table,
    /// Tables by names of their own.
    NamedTables,
    /// A list of tables.
    Tables,
    /// A string, a table, or a list of these.
    Entries,
}

/// A field as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// What it may hold.
    pub shape: Shape,
    /// Known words; empty where any will do.
    pub words: Vec<String>,
    /// Whether it was said to be missing.
    pub needed: bool,
}

/// Fields by the place of their table and their name.
pub type Places = BTreeMap<(String, String), Field>;

/// Collects them.
#[derive(Debug, Default)]
pub struct Seen(RefCell<Places>);

impl Seen {
    fn with(&self, place: &str, name: &str, change: impl FnOnce(&mut Field)) {
        let mut places = self.0.borrow_mut();
        let new = || Field { shape: Shape::Text, words: Vec::new(), needed: false };
        change(places.entry((place.to_owned(), name.to_owned())).or_insert_with(new));
    }

    pub(super) fn shape(&self, place: &str, name: &str, shape: Shape) {
        self.with(place, name, |field| {
            if field.shape == Shape::Text {
                field.shape = shape;
            }
        });
    }

    pub(super) fn words(&self, place: &str, name: &str, words: &[&str]) {
        self.with(place, name, |field| {
            for word in words {
                if !field.words.iter().any(|known| known == word) {
                    field.words.push((*word).to_owned());
                }
            }
        });
    }

    pub(super) fn needed(&self, place: &str, name: &str) {
        self.with(place, name, |field| field.needed = true);
    }

    /// All of them.
    pub fn into_places(self) -> Places {
        self.0.into_inner()
    }
}

/// The place of a table, with the words in it that decide which fields it has.
pub(super) fn place(path: &str, table: &Table) -> String {
    let mut place = path.to_owned();
    for name in DECIDING {
        if let Some(Item::Text(word)) = table.get(name).map(|entry| &entry.node.item) {
            place.push_str(&format!("?{name}={word}"));
        }
    }
    place
}
