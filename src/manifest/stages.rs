//! `[stage.*]` with `extends`, `[defaults.*]` and `matrix`. Knows nothing of what kinds read.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::diagnostic::{Diagnostic, Sink};
use super::tree::{Entry, Item, Node, Table};
use super::{NAME_HINT, StageDecl, is_name, ordered, with_matrix};
use crate::template;

/// Most cells of one matrix.
const CELLS_MAX: usize = 10_000;

/// Every stage of `[stage.*]`, multiplied by its matrix, in the order of the files.
pub fn read(root: &Table, context: &Value, kinds: &[&str], sink: &Sink) -> Vec<StageDecl> {
    let entries = ordered(root, "stage");
    let by_name: BTreeMap<&str, &Entry> =
        entries.iter().map(|(name, entry)| (name.as_str(), *entry)).collect();
    let defaults = defaults(root, kinds, sink);
    let mut out = Vec::new();
    for (name, entry) in &entries {
        if !is_name(name) {
            let message = format!("`{name}` is no name for a stage");
            sink.push(Diagnostic::at(entry.key, message).hint(NAME_HINT));
            continue;
        }
        let Some(mut table) = inherited(name, &by_name, &mut Vec::new(), sink) else { continue };
        let Some(kind) = kind_of(name, entry, &table, kinds, sink) else { continue };
        if let Some(defaults) = defaults.get(kind.as_str()) {
            for (key, value) in *defaults {
                table.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        let matrix = table.remove("matrix");
        let own = match &entry.node.item {
            Item::Table(own) => own,
            _ => continue,
        };
        for cell in cells(matrix.as_ref(), own, &table, sink) {
            let mut table = table.clone();
            table.extend(cell.fields);
            out.push(StageDecl {
                name: format!("{name}{}", cell.suffix),
                base: (*name).clone(),
                kind: kind.clone(),
                span: entry.key,
                table,
                context: match cell.values {
                    Some(values) => with_matrix(context, values),
                    None => context.clone(),
                },
            });
        }
    }
    out
}

fn defaults<'a>(root: &'a Table, kinds: &[&str], sink: &Sink) -> BTreeMap<&'a str, &'a Table> {
    let mut out = BTreeMap::new();
    for (kind, entry) in ordered(root, "defaults") {
        if !kinds.contains(&kind.as_str()) {
            let message =
                format!("unknown stage kind `{kind}` in [defaults] (known: {})", kinds.join(", "));
            let diagnostic = Diagnostic::at(entry.key, message);
            sink.push(diagnostic.did_you_mean(kind, kinds.iter().copied()));
        } else if let Item::Table(table) = &entry.node.item {
            out.insert(kind.as_str(), table);
        } else {
            sink.push(Diagnostic::at(
                entry.node.span,
                format!("`defaults.{kind}` must be a table"),
            ));
        }
    }
    out
}

/// The fields of a stage and of those it extends; the nearest one wins.
fn inherited<'a>(
    name: &'a str,
    stages: &BTreeMap<&'a str, &'a Entry>,
    chain: &mut Vec<&'a str>,
    sink: &Sink,
) -> Option<Table> {
    let entry = stages[name];
    let Item::Table(own) = &entry.node.item else {
        sink.push(Diagnostic::at(entry.node.span, format!("`stage.{name}` must be a table")));
        return None;
    };
    let mut table = own.clone();
    let Some(extends) = table.remove("extends") else { return Some(table) };
    let Item::Text(parent) = &extends.node.item else {
        sink.push(Diagnostic::at(extends.node.span, "`extends` must be the name of a stage"));
        return None;
    };
    chain.push(name);
    let Some((parent, _)) = stages.get_key_value(parent.as_str()) else {
        let known: Vec<_> = stages.keys().copied().filter(|known| *known != name).collect();
        let message = format!("unknown stage `{parent}` (known: {})", known.join(", "));
        let diagnostic = Diagnostic::at(extends.node.span, message);
        sink.push(diagnostic.did_you_mean(parent, known));
        return None;
    };
    if chain.contains(parent) {
        let start = chain.iter().position(|link| link == parent).unwrap_or(0);
        let path: Vec<_> =
            chain[start..].iter().chain([parent]).map(|link| format!("`{link}`")).collect();
        let message = format!("stages extend each other: {}", path.join(" -> "));
        sink.push(Diagnostic::at(extends.node.span, message));
        return None;
    }
    let parents = inherited(parent, stages, chain, sink)?;
    for (key, value) in parents {
        // A matrix multiplies the stage that declares it, and no other.
        if key != "matrix" {
            table.entry(key).or_insert(value);
        }
    }
    Some(table)
}

fn kind_of(
    name: &str,
    entry: &Entry,
    table: &Table,
    kinds: &[&str],
    sink: &Sink,
) -> Option<String> {
    let Some(Entry { node, .. }) = table.get("kind") else {
        let message = format!("stage `{name}` needs `kind` (known: {})", kinds.join(", "));
        sink.push(Diagnostic::at(entry.key, message));
        return None;
    };
    let Item::Text(kind) = &node.item else {
        let message = format!("`kind` must be a string, not {}", node.item.type_name());
        sink.push(Diagnostic::at(node.span, message));
        return None;
    };
    if !kinds.contains(&kind.as_str()) {
        let message = format!("unknown stage kind `{kind}` (known: {})", kinds.join(", "));
        let diagnostic = Diagnostic::at(node.span, message);
        sink.push(diagnostic.did_you_mean(kind, kinds.iter().copied()));
        return None;
    }
    Some(kind.clone())
}

struct Cell {
    /// `[method=cot]`, empty without a matrix.
    suffix: String,
    /// Axes that set the field of their name.
    fields: Table,
    /// All axes, for `{{ matrix.x }}`.
    values: Option<Map<String, Value>>,
}

/// The product of the axes. An axis that a string of the stage reads as `{{ matrix.x }}` is only that;
/// any other sets the field of its name.
/// It wins over inherited fields and defaults, but not over the stage's `own`: that would be two answers to
/// one question.
fn cells(matrix: Option<&Entry>, own: &Table, table: &Table, sink: &Sink) -> Vec<Cell> {
    let single = || vec![Cell { suffix: String::new(), fields: Table::new(), values: None }];
    let Some(matrix) = matrix else { return single() };
    let Item::Table(axes) = &matrix.node.item else {
        sink.push(Diagnostic::at(matrix.node.span, "`matrix` must be a table of lists"));
        return single();
    };
    let mut read = Vec::new();
    collect_names(table, &mut read);
    let mut axes: Vec<_> = axes.iter().collect();
    axes.sort_by_key(|(_, entry)| entry.key);
    let mut out = single();
    for (axis, entry) in axes {
        let Item::List(items) = &entry.node.item else {
            let message = format!("`matrix.{axis}` must be a list");
            sink.push(Diagnostic::at(entry.node.span, message));
            continue;
        };
        if items.is_empty() {
            let message = format!("`matrix.{axis}` is empty, so there would be no stage at all");
            sink.push(Diagnostic::at(entry.node.span, message));
            continue;
        }
        if out.len().saturating_mul(items.len()) > CELLS_MAX {
            let message = format!("this matrix has more than {CELLS_MAX} cells");
            sink.push(Diagnostic::at(entry.key, message));
            return single();
        }
        let is_variable = read.contains(&format!("matrix.{axis}"));
        if !is_variable && let Some(fixed) = own.get(axis.as_str()) {
            let message = format!("`{axis}` is set both by the stage and by its matrix");
            sink.push(Diagnostic::at(entry.key, message).also(fixed.key, "set here too"));
        }
        out = out
            .iter()
            .flat_map(|cell| {
                items.iter().map(move |item| extended(cell, axis, entry, item, is_variable))
            })
            .collect();
    }
    let mut names: Vec<_> = out.iter().map(|cell| cell.suffix.clone()).collect();
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        sink.push(Diagnostic::at(matrix.node.span, "two cells of this matrix are equal"));
    }
    out
}

fn extended(cell: &Cell, axis: &str, entry: &Entry, item: &Node, is_variable: bool) -> Cell {
    let value = item.item.to_json();
    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let inner = cell.suffix.trim_start_matches('[').trim_end_matches(']');
    let comma = if inner.is_empty() { "" } else { "," };
    let mut fields = cell.fields.clone();
    if !is_variable {
        fields.insert(axis.to_owned(), Entry { key: entry.key, node: item.clone() });
    }
    let mut values = cell.values.clone().unwrap_or_default();
    values.insert(axis.to_owned(), value);
    Cell { suffix: format!("[{inner}{comma}{axis}={shown}]"), fields, values: Some(values) }
}

/// The outside names read by any template in a table.
fn collect_names(table: &Table, out: &mut Vec<String>) {
    fn walk(item: &Item, out: &mut Vec<String>) {
        match item {
            Item::Text(text) if template::is_template(text) => {
                // One that does not parse is reported where it is used.
                out.extend(template::names(text).unwrap_or_default());
            }
            Item::List(items) => items.iter().for_each(|node| walk(&node.item, out)),
            Item::Table(table) => collect_names(table, out),
            _ => {}
        }
    }
    table.values().for_each(|entry| walk(&entry.node.item, out));
}
