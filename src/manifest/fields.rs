//! Reads the fields of a table by name and type. What is asked for is known; what is left over at the
//! end is an error with "did you mean". Knows nothing of stages.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use serde_json::Value;

use super::diagnostic::{Diagnostic, Sink, Span};
use super::seen::{self, Shape};
use super::tree::{Item, Node, Table};
use crate::template;

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Span,
}

/// A value that may be short or long.
pub enum TextOrTable<'a> {
    /// A string.
    Text(Spanned<String>),
    /// A table with settings.
    Table(Fields<'a>),
}

/// A table being read.
pub struct Fields<'a> {
    /// What the table is, for messages: "stage `ask`".
    what: String,
    /// Where it is, for those who want to know what is asked for; else empty.
    place: String,
    /// Where it is.
    span: Span,
    table: &'a Table,
    sink: &'a Sink,
    /// `params` and `matrix`, for templates in strings.
    context: &'a Value,
    known: RefCell<BTreeSet<String>>,
    /// Names that are wrong, and were said to be.
    told: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    /// Starts to read a table.
    pub fn new(
        what: impl Into<String>,
        span: Span,
        table: &'a Table,
        context: &'a Value,
        sink: &'a Sink,
    ) -> Self {
        let what = what.into();
        let place = sink.seen().map_or_else(String::new, |_| seen::place(&what, table));
        Fields {
            what,
            place,
            span,
            table,
            sink,
            context,
            known: RefCell::default(),
            told: RefCell::default(),
        }
    }

    /// The same of a table inside of this one.
    fn inner(&self, path: &str, what: String, span: Span, table: &'a Table) -> Fields<'a> {
        let mut fields = Fields::new(what, span, table, self.context, self.sink);
        if self.sink.seen().is_some() {
            fields.place = seen::place(&format!("{}/{path}", self.place), table);
        }
        fields
    }

    /// Tells what a field may hold, where somebody wants to know.
    fn saw(&self, name: &str, shape: Shape) {
        if let Some(seen) = self.sink.seen() {
            seen.shape(&self.place, name, shape);
        }
    }

    /// Where the table is.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Reports something wrong.
    pub fn error(&self, diagnostic: Diagnostic) {
        self.sink.push(diagnostic);
    }

    /// Whether the field is there.
    pub fn has(&self, name: &str) -> bool {
        self.node(name).is_some()
    }

    /// Where a field's value is, else where the table is.
    pub fn place(&self, name: &str) -> Span {
        self.node(name).map_or(self.span, |node| node.span)
    }

    fn node(&self, name: &str) -> Option<&'a Node> {
        // Who only asks whether it is there may read it once it is.
        self.saw(name, Shape::Text);
        self.known.borrow_mut().insert(name.to_owned());
        self.table.get(name).map(|entry| &entry.node)
    }

    fn missing(&self, name: &str) {
        if let Some(seen) = self.sink.seen() {
            seen.needed(&self.place, name);
        }
        self.error(Diagnostic::at(self.span, format!("{} needs `{name}`", self.what)));
    }

    fn wrong_type(&self, name: &str, node: &Node, wanted: &str) {
        let message = format!("`{name}` must be {wanted}, not {}", node.item.type_name());
        self.error(Diagnostic::at(node.span, message));
    }

    /// Renders `{{ params.x }}` in a string.
    fn render(&self, text: &str, span: Span) -> Option<String> {
        if !template::is_template(text) {
            return Some(text.to_owned());
        }
        match template::render(text, self.context) {
            Ok(text) => Some(text),
            Err(error) => {
                let mut diagnostic = Diagnostic::at(span, error.message.clone());
                if error.undefined {
                    diagnostic = diagnostic.hint(format!("known here: {}", self.names()));
                }
                self.error(diagnostic);
                None
            }
        }
    }

    fn names(&self) -> String {
        let mut names = Vec::new();
        if let Value::Object(groups) = self.context {
            for (group, values) in groups {
                let inner = values.as_object().into_iter().flat_map(|values| values.keys());
                names.extend(inner.map(|name| format!("`{group}.{name}`")));
            }
        }
        names.sort();
        if names.is_empty() {
            "no names (add them under [params])".to_owned()
        } else {
            names.join(", ")
        }
    }

    fn text_of(&self, name: &str, node: &Node) -> Option<Spanned<String>> {
        match &node.item {
            Item::Text(text) => {
                Some(Spanned { value: self.render(text, node.span)?, span: node.span })
            }
            _ => {
                self.wrong_type(name, node, "a string");
                None
            }
        }
    }

    /// A string, rendered.
    pub fn text(&self, name: &str) -> Option<Spanned<String>> {
        self.saw(name, Shape::Text);
        self.node(name).and_then(|node| self.text_of(name, node))
    }

    /// A string exactly as written: a template for later.
    pub fn raw_text(&self, name: &str) -> Option<Spanned<String>> {
        self.saw(name, Shape::Text);
        let node = self.node(name)?;
        match &node.item {
            Item::Text(text) => Some(Spanned { value: text.clone(), span: node.span }),
            _ => {
                self.wrong_type(name, node, "a string");
                None
            }
        }
    }

    /// A string that has to be there.
    pub fn needed_text(&self, name: &str) -> Option<Spanned<String>> {
        if !self.has(name) {
            self.missing(name);
        }
        self.text(name)
    }

    /// A string or a list of strings.
    pub fn texts(&self, name: &str) -> Option<Vec<Spanned<String>>> {
        self.saw(name, Shape::Texts);
        let node = self.node(name)?;
        match &node.item {
            Item::List(items) => {
                Some(items.iter().filter_map(|node| self.text_of(name, node)).collect())
            }
            Item::Text(_) => Some(self.text_of(name, node).into_iter().collect()),
            _ => {
                self.wrong_type(name, node, "a string or a list of strings");
                None
            }
        }
    }

    /// A table of strings, such as environment variables.
    pub fn text_table(&self, name: &str) -> Option<Vec<(String, Spanned<String>)>> {
        self.saw(name, Shape::TextTable);
        let node = self.node(name)?;
        match &node.item {
            Item::Table(table) => Some(
                table
                    .iter()
                    .filter_map(|(key, entry)| Some((key.clone(), self.text_of(key, &entry.node)?)))
                    .collect(),
            ),
            _ => {
                self.wrong_type(name, node, "a table of strings");
                None
            }
        }
    }

    /// The node of a scalar field; a string is rendered and read again as `wanted`.
    fn scalar<T>(
        &self,
        name: &str,
        wanted: &str,
        read: impl Fn(&Item) -> Option<T>,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<(T, Span)> {
        let node = self.node(name)?;
        let value = match &node.item {
            Item::Text(text) if template::is_template(text) => {
                let rendered = self.render(text, node.span)?;
                let value = parse(rendered.trim());
                if value.is_none() {
                    let message =
                        format!("`{name}` must be {wanted}, and `{text}` gives `{rendered}`");
                    self.error(Diagnostic::at(node.span, message));
                }
                value
            }
            item => {
                let value = read(item);
                if value.is_none() {
                    self.wrong_type(name, node, wanted);
                }
                value
            }
        };
        value.map(|value| (value, node.span))
    }

    fn in_range<T: PartialOrd + std::fmt::Display>(
        &self,
        name: &str,
        (value, span): (T, Span),
        range: RangeInclusive<T>,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let message =
            format!("`{name}` must be between {} and {}, not {value}", range.start(), range.end());
        self.error(Diagnostic::at(span, message));
        None
    }

    /// A whole number within `range`.
    pub fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Option<i64> {
        self.saw(name, Shape::Integer(*range.start(), *range.end()));
        let read = |item: &Item| match item {
            Item::Integer(number) => Some(*number),
            _ => None,
        };
        let found = self.scalar(name, "an integer", read, |text| text.parse().ok())?;
        self.in_range(name, found, range)
    }

    /// A count that fits into 32 bits, within `range`.
    pub fn count(&self, name: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        self.integer(name, range).and_then(|number| number.try_into().ok())
    }

    /// A number within `range`.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Option<f64> {
        self.saw(name, Shape::Number(*range.start(), *range.end()));
        let read = |item: &Item| match item {
            Item::Integer(number) => Some(*number as f64),
            Item::Float(number) => Some(*number),
            _ => None,
        };
        let parse = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite());
        let found = self.scalar(name, "a number", read, parse)?;
        self.in_range(name, found, range)
    }

    /// A plain value of any type, a string rendered and read as what it looks like.
    pub fn scalar_json(&self, name: &str) -> Option<Spanned<Value>> {
        self.saw(name, Shape::Scalar);
        let node = self.node(name)?;
        let value = match &node.item {
            Item::Text(text) => {
                let text = self.render(text, node.span)?;
                serde_json::from_str(&text).unwrap_or(Value::String(text))
            }
            item => item.to_json(),
        };
        Some(Spanned { value, span: node.span })
    }

    /// true or false.
    pub fn boolean(&self, name: &str) -> Option<bool> {
        self.saw(name, Shape::Boolean);
        let read = |item: &Item| match item {
            Item::Boolean(flag) => Some(*flag),
            _ => None,
        };
        Some(self.scalar(name, "true or false", read, |text| text.parse().ok())?.0)
    }

    /// A duration such as "30s" or "5m".
    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.saw(name, Shape::Duration);
        let text = self.text(name)?;
        match humantime::parse_duration(&text.value) {
            Ok(duration) => Some(duration),
            Err(_) => {
                let message = format!("`{name}` is not a duration: `{}`", text.value);
                self.error(
                    Diagnostic::at(text.span, message).hint("write \"500ms\", \"30s\" or \"5m\""),
                );
                None
            }
        }
    }

    /// Tells which words a field knows.
    fn knows(&self, name: &str, known: &[&str]) {
        if let Some(seen) = self.sink.seen() {
            seen.words(&self.place, name, known);
        }
    }

    /// One of a set of words.
    pub fn choice(&self, name: &str, known: &[&str]) -> Option<Spanned<String>> {
        self.saw(name, Shape::Choice);
        self.knows(name, known);
        let text = self.text(name)?;
        self.is_one_of(name, &text, known).then_some(text)
    }

    /// Words, each of a set and none twice.
    pub fn choices(&self, name: &str, known: &[&str]) -> Option<Vec<String>> {
        self.saw(name, Shape::Choices);
        self.knows(name, known);
        let mut kept: Vec<String> = Vec::new();
        for text in self.texts(name)? {
            if kept.contains(&text.value) {
                let message = format!("`{}` stands twice in `{name}`", text.value);
                self.error(Diagnostic::at(text.span, message));
            } else if self.is_one_of(name, &text, known) {
                kept.push(text.value);
            }
        }
        Some(kept)
    }

    /// Whether a word of a field is known; an error where it is not.
    pub fn is_one_of(&self, name: &str, text: &Spanned<String>, known: &[&str]) -> bool {
        self.knows(name, known);
        let found = known.contains(&text.value.as_str());
        if !found {
            let one = name.strip_suffix('s').unwrap_or(name);
            let message = format!("unknown {one} `{}` (known: {})", text.value, known.join(", "));
            let diagnostic = Diagnostic::at(text.span, message);
            self.error(diagnostic.did_you_mean(&text.value, known.iter().copied()));
        }
        found
    }

    /// A path in the project, relative to its root, with `/` and without `..`.
    pub fn path(&self, name: &str) -> Option<Spanned<Utf8PathBuf>> {
        self.saw(name, Shape::Path);
        let text = self.text(name)?;
        self.check_path(&text)
    }

    /// Paths in the project.
    pub fn paths(&self, name: &str) -> Option<Vec<Spanned<Utf8PathBuf>>> {
        self.saw(name, Shape::Paths);
        Some(self.texts(name)?.iter().filter_map(|text| self.check_path(text)).collect())
    }

    /// Checks that a text is a path inside the project.
    pub fn check_path(&self, text: &Spanned<String>) -> Option<Spanned<Utf8PathBuf>> {
        match inside(Utf8Path::new(&text.value)) {
            Some(value) => Some(Spanned { value, span: text.span }),
            None => {
                let message = format!("the path `{}` leaves the project", text.value);
                let hint = "paths are relative to the project's root and stay inside it";
                self.error(Diagnostic::at(text.span, message).hint(hint));
                None
            }
        }
    }

    /// A table inside.
    pub fn table(&self, name: &str) -> Option<Fields<'a>> {
        self.saw(name, Shape::Table);
        let node = self.node(name)?;
        match &node.item {
            Item::Table(table) => {
                let what = format!("`{name}` of {}", self.what);
                Some(self.inner(name, what, node.span, table))
            }
            _ => {
                self.wrong_type(name, node, "a table");
                None
            }
        }
    }

    /// Tables by names of their own, `[name.<its name>]`, in the order of the names.
    pub fn named_tables(&self, name: &str) -> Vec<(Spanned<String>, Fields<'a>)> {
        self.saw(name, Shape::NamedTables);
        let Some(node) = self.node(name) else { return Vec::new() };
        let Item::Table(tables) = &node.item else {
            self.wrong_type(name, node, "tables with names");
            return Vec::new();
        };
        let mut out = Vec::new();
        for (key, entry) in tables {
            match &entry.node.item {
                Item::Table(table) => {
                    let what = format!("`{name}.{key}` of {}", self.what);
                    let span = entry.node.span;
                    let fields = self.inner(&format!("{name}/*"), what, span, table);
                    out.push((Spanned { value: key.clone(), span: entry.key }, fields));
                }
                _ => self.wrong_type(key, &entry.node, "a table"),
            }
        }
        out
    }

    /// Tables in a list: `[[name]]`.
    pub fn tables(&self, name: &str) -> Vec<Fields<'a>> {
        self.saw(name, Shape::Tables);
        let Some(node) = self.node(name) else { return Vec::new() };
        let Item::List(items) = &node.item else {
            self.wrong_type(name, node, "a list of tables");
            return Vec::new();
        };
        let mut out = Vec::new();
        for (i, node) in items.iter().enumerate() {
            match &node.item {
                Item::Table(table) => {
                    let what = format!("`{name}` {} of {}", i + 1, self.what);
                    out.push(self.inner(&format!("{name}/[]"), what, node.span, table));
                }
                _ => self.wrong_type(name, node, "a list of tables"),
            }
        }
        out
    }

    /// A list of strings and tables; one of them may stand alone.
    pub fn entries(&self, name: &str) -> Option<Vec<TextOrTable<'a>>> {
        self.saw(name, Shape::Entries);
        let node = self.node(name)?;
        let nodes = match &node.item {
            Item::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut out = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            match &node.item {
                Item::Table(table) => {
                    let what = match nodes.len() {
                        1 => format!("`{name}` of {}", self.what),
                        _ => format!("`{name}` {} of {}", i + 1, self.what),
                    };
                    let fields = self.inner(&format!("{name}/[]"), what, node.span, table);
                    out.push(TextOrTable::Table(fields));
                }
                Item::Text(_) => out.extend(self.text_of(name, node).map(TextOrTable::Text)),
                _ => self.wrong_type(name, node, "a string, a table, or a list of these"),
            }
        }
        Some(out)
    }

    /// A list of plain values, rendered, as JSON with their places.
    pub fn values(&self, name: &str) -> Option<Vec<Spanned<Value>>> {
        self.saw(name, Shape::List);
        let node = self.node(name)?;
        let Item::List(items) = &node.item else {
            self.wrong_type(name, node, "a list");
            return None;
        };
        Some(
            items
                .iter()
                .map(|node| Spanned { value: node.item.to_json(), span: node.span })
                .collect(),
        )
    }

    /// A table of plain values as JSON, with its place.
    pub fn json_table(&self, name: &str) -> Option<Spanned<serde_json::Map<String, Value>>> {
        self.saw(name, Shape::PlainTable);
        let node = self.node(name)?;
        match node.item.to_json() {
            Value::Object(value) => Some(Spanned { value, span: node.span }),
            _ => {
                self.wrong_type(name, node, "a table");
                None
            }
        }
    }

    /// The names that are there, each with the place of its key.
    pub fn keys(&self) -> impl Iterator<Item = (&'a str, Span)> + use<'a> {
        self.table.iter().map(|(name, entry)| (name.as_str(), entry.key))
    }

    /// Marks a field as known without reading it.
    pub fn skip(&self, name: &str) {
        self.known.borrow_mut().insert(name.to_owned());
    }

    /// Reports a field whose name is wrong, in place of what [`Fields::finish`] would say.
    pub fn wrong_name(&self, name: &str, diagnostic: Diagnostic) {
        self.told.borrow_mut().insert(name.to_owned());
        self.error(diagnostic);
    }

    /// Reports every field that nobody asked for.
    pub fn finish(self) {
        let known = self.known.borrow();
        for (name, entry) in self.table {
            if known.contains(name) || self.told.borrow().contains(name) {
                continue;
            }
            let list = known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let message = format!("unknown key `{name}` in {} (known: {list})", self.what);
            let diagnostic = Diagnostic::at(entry.key, message);
            self.sink.push(diagnostic.did_you_mean(name, known.iter().map(String::as_str)));
        }
    }
}

/// The path without `.` and `..`, or `None` when it would leave its root.
pub fn inside(path: &Utf8Path) -> Option<Utf8PathBuf> {
    let mut out = Utf8PathBuf::new();
    for component in path.components() {
        match component {
            Utf8Component::Normal(part) => out.push(part),
            Utf8Component::CurDir => {}
            Utf8Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            Utf8Component::RootDir | Utf8Component::Prefix(_) => return None,
        }
    }
    Some(out)
}
