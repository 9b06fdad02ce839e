//! TOML as a tree in which every key and value knows its place. Knows nothing of what keys mean.

use std::collections::BTreeMap;

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Sink, Span};

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub span: Span,
    /// What it is.
    pub item: Item,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number with a point.
    Float(f64),
    /// true or false.
    Boolean(bool),
    /// An array.
    List(Vec<Node>),
    /// A table.
    Table(Table),
}

/// A table: entries by name.
pub type Table = BTreeMap<String, Entry>;

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where the key stands.
    pub key: Span,
    /// Its value.
    pub node: Node,
}

impl Item {
    /// The word for it in messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Item::Text(_) => "a string",
            Item::Integer(_) => "an integer",
            Item::Float(_) => "a number",
            Item::Boolean(_) => "a boolean",
            Item::List(_) => "a list",
            Item::Table(_) => "a table",
        }
    }

    /// The same as JSON.
    pub fn to_json(&self) -> Value {
        match self {
            Item::Text(text) => text.as_str().into(),
            Item::Integer(number) => (*number).into(),
            Item::Float(number) => (*number).into(),
            Item::Boolean(flag) => (*flag).into(),
            Item::List(items) => items.iter().map(|node| node.item.to_json()).collect(),
            Item::Table(table) => table
                .iter()
                .map(|(name, entry)| (name.clone(), entry.node.item.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

/// Parses a file; every syntax error goes to `sink`, and what could be read comes back.
pub fn parse(text: &str, source: usize, sink: &Sink) -> Table {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let range = error.span().unwrap_or(0..0);
        let span = Span { source, start: range.start, end: range.end };
        let message = error.message().trim_end().replace('\n', "; ");
        sink.push(Diagnostic::at(span, format!("this is not TOML: {message}")));
    }
    read_table(table.get_ref(), source, sink)
}

fn read_table(table: &DeTable<'_>, source: usize, sink: &Sink) -> Table {
    let mut out = Table::new();
    for (key, value) in table {
        let key_span = span_of(key.span(), source);
        let span = span_of(value.span(), source);
        if let Some(item) = read_value(value.get_ref(), span, sink) {
            let entry = Entry { key: key_span, node: Node { span, item } };
            out.insert(key.get_ref().to_string(), entry);
        }
    }
    out
}

fn span_of(range: std::ops::Range<usize>, source: usize) -> Span {
    Span { source, start: range.start, end: range.end }
}

fn read_value(value: &DeValue<'_>, span: Span, sink: &Sink) -> Option<Item> {
    Some(match value {
        DeValue::String(text) => Item::Text(text.to_string()),
        DeValue::Boolean(flag) => Item::Boolean(*flag),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Item::Integer(number),
            Err(_) => {
                sink.push(Diagnostic::at(span, "this integer does not fit into 64 bits"));
                return None;
            }
        },
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(number) if number.is_finite() => Item::Float(number),
            _ => {
                sink.push(Diagnostic::at(span, "a number must be finite"));
                return None;
            }
        },
        DeValue::Datetime(_) => {
            let hint = "put it in quotes to make it a string";
            sink.push(Diagnostic::at(span, "a date is not used here").hint(hint));
            return None;
        }
        DeValue::Array(items) => Item::List(
            items
                .iter()
                .filter_map(|item| {
                    let span = span_of(item.span(), span.source);
                    Some(Node { span, item: read_value(item.get_ref(), span, sink)? })
                })
                .collect(),
        ),
        DeValue::Table(table) => Item::Table(read_table(table, span.source, sink)),
    })
}
