//! Finds every field of a table by reading it again and again: first as it is, then with each field that was asked
//! for. So the readers of stages describe themselves, and there is no second list of keys to keep. Knows nothing of
//! what fields mean.

use std::collections::{BTreeMap, VecDeque};

use crate::manifest::{DECIDING, Entry, Field, Item, Node, Places, Shape, Sink, Span, Table};

/// What is tried where any word will do. A field that knows it takes names that somebody else gives.
pub(super) const ANY: &str = "x";
/// More readings than any table takes.
const READINGS_MAX: usize = 20_000;

/// Every field that `read` asks for, of `start` and of all that it may hold. The first part of a place is what `read`
/// calls the table.
pub(super) fn explore(start: Table, read: &dyn Fn(&Table, &Sink)) -> Places {
    let mut found = Places::new();
    let mut open = VecDeque::from([start]);
    let mut readings = 0;
    while let Some(table) = open.pop_front() {
        readings += 1;
        assert!(readings < READINGS_MAX, "BUG: the fields of a table have no end");
        let sink = Sink::recording();
        read(&table, &sink);
        for ((place, name), field) in sink.into_seen() {
            let path = steps(&place);
            match found.get_mut(&(place.clone(), name.clone())) {
                None => {
                    for value in values(&field) {
                        open.extend(with(&table, &path, &name, value));
                    }
                    found.insert((place, name), field);
                }
                Some(known) => {
                    let more: Vec<String> = field
                        .words
                        .iter()
                        .filter(|word| !known.words.contains(word))
                        .cloned()
                        .collect();
                    if is_one_word(&field.shape) {
                        for word in &more {
                            open.extend(with(&table, &path, &name, Item::Text(word.clone())));
                        }
                    }
                    known.words.extend(more);
                    known.needed |= field.needed;
                    if known.shape == Shape::Text && field.shape != Shape::Text {
                        for value in values(&field) {
                            open.extend(with(&table, &path, &name, value));
                        }
                        known.shape = field.shape;
                    }
                }
            }
        }
    }
    found
}

/// The names on the way to a table, without the words that decide about fields.
fn steps(place: &str) -> Vec<String> {
    let names = place.split('/').skip(1);
    names.map(|name| name.split('?').next().unwrap_or(name).to_owned()).collect()
}

fn is_one_word(shape: &Shape) -> bool {
    matches!(shape, Shape::Text | Shape::Choice)
}

/// What to try in a field.
fn values(field: &Field) -> Vec<Item> {
    let text = || Item::Text(ANY.to_owned());
    let table = || Item::Table(Table::new());
    let list = |items: Vec<Item>| Item::List(items.into_iter().map(node).collect());
    vec![match &field.shape {
        _ if is_one_word(&field.shape) && !field.words.is_empty() => {
            return field.words.iter().map(|word| Item::Text(word.clone())).collect();
        }
        Shape::Text | Shape::Choice | Shape::Path => text(),
        Shape::Texts | Shape::Paths => list(vec![text()]),
        Shape::TextTable => named(text()),
        Shape::Integer(low, high) => Item::Integer(1.clamp(*low, *high)),
        Shape::Number(low, high) => Item::Float(1.0_f64.clamp(*low, *high)),
        Shape::Boolean | Shape::Scalar => Item::Boolean(true),
        Shape::Duration => Item::Text("1s".to_owned()),
        Shape::Choices => {
            list(field.words.first().map(|word| Item::Text(word.clone())).into_iter().collect())
        }
        Shape::List => list(Vec::new()),
        Shape::PlainTable | Shape::Table => table(),
        Shape::NamedTables => named(table()),
        Shape::Tables => list(vec![table()]),
        Shape::Entries => list(vec![text(), table()]),
    }]
}

fn node(item: Item) -> Node {
    Node { span: nowhere(), item }
}

fn nowhere() -> Span {
    Span { source: 0, start: 0, end: 0 }
}

fn entry(item: Item) -> Entry {
    Entry { key: nowhere(), node: node(item) }
}

fn named(item: Item) -> Item {
    Item::Table(BTreeMap::from([(ANY.to_owned(), entry(item))]))
}

/// A table with another value at a place in it; `None` where it has no such place.
fn with(table: &Table, path: &[String], name: &str, value: Item) -> Option<Table> {
    let mut out = table.clone();
    let mut inner = &mut out;
    let mut path = path.iter();
    while let Some(step) = path.next() {
        let item = &mut inner.get_mut(step)?.node.item;
        inner = match item {
            Item::List(items) => {
                path.next();
                items.iter_mut().find_map(|node| match &mut node.item {
                    Item::Table(table) => Some(table),
                    _ => None,
                })?
            }
            Item::Table(table) => table,
            _ => return None,
        };
        // A table of tables with names: the next step stands for any of them.
        let mut ahead = path.clone();
        if ahead.next().is_some_and(|step| step == "*") {
            path = ahead;
            inner = match &mut inner.values_mut().next()?.node.item {
                Item::Table(table) => table,
                _ => return None,
            };
        }
    }
    inner.insert(name.to_owned(), entry(value));
    Some(out)
}

/// The words in a place that decide which fields its last table has.
pub(super) fn decided(place: &str) -> Vec<(&str, &str)> {
    let last = place.rsplit('/').next().unwrap_or(place);
    let words = last.split('?').skip(1).filter_map(|part| part.split_once('='));
    words.filter(|(name, _)| DECIDING.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Fields, TextOrTable};
    use serde_json::Value;

    /// A reader with everything that hides fields from one who only looks.
    fn read(table: &Table, sink: &Sink) {
        let nothing = Value::Null;
        let fields = Fields::new("the table", nowhere(), table, &nothing, sink);
        if fields.choice("kind", &["plain", "fancy"]).is_some_and(|kind| kind.value == "fancy") {
            fields.integer("size", 2..=9);
        }
        for entry in fields.entries("list").unwrap_or_default() {
            let TextOrTable::Table(table) = entry else { continue };
            let Some(_) = table.needed_text("name") else { continue };
            // Only one who gives a name is asked for more.
            table.duration("wait");
        }
        for (_, table) in fields.named_tables("by") {
            if let Some(inner) = table.table("inner") {
                inner.boolean("deep");
            }
        }
        fields.finish();
    }

    #[test]
    fn what_is_hidden_is_found() {
        let found = explore(Table::new(), &read);
        let all: Vec<String> = found
            .iter()
            .map(|((place, name), field)| format!("{place} {name} {:?}", field.shape))
            .collect();
        for line in [
            "the table kind Choice",
            "the table?kind=fancy size Integer(2, 9)",
            "the table/list/[] name Text",
            "the table/list/[] wait Duration",
            "the table/by/* inner Table",
            "the table/by/*/inner deep Boolean",
        ] {
            assert!(all.iter().any(|found| found == line), "no `{line}` in {all:#?}");
        }
        assert!(!all.iter().any(|line| line.starts_with("the table?kind=plain size")), "{all:#?}");
        let name = &found[&("the table/list/[]".to_owned(), "name".to_owned())];
        assert!(name.needed);
    }
}
