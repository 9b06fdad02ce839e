//! Parameters of a manifest: a default, overridden by the environment, overridden by `--set`.
//! Knows nothing of stages.

use std::collections::BTreeMap;

use serde_json::Value;

use super::diagnostic::{Diagnostic, Sink};
use super::fields::Fields;
use super::tree::{Entry, Item, Node, Table};
use super::{Inputs, is_name, ordered};

const TYPES: &[&str] = &["string", "integer", "number", "boolean"];

/// Parameters with their values.
#[derive(Default)]
pub struct Params {
    /// By name.
    pub values: BTreeMap<String, Value>,
    /// Whether one of them is not its default.
    pub overridden: bool,
}

/// The value of every parameter of `[params]`.
pub fn resolve(root: &Table, inputs: &Inputs<'_>, sink: &Sink) -> Params {
    let mut out = Params::default();
    for (name, entry) in ordered(root, "params") {
        if !is_name(name) || name.contains('-') {
            let message = format!("`{name}` is no name for a parameter");
            sink.push(Diagnostic::at(entry.key, message).hint("use letters, digits and `_`"));
            continue;
        }
        if let Some(value) = resolve_one(name, entry, inputs, sink) {
            out.overridden |= default_of(entry).is_some_and(|default| default != value);
            out.values.insert(name.clone(), value);
        }
    }
    out
}

fn resolve_one(name: &str, entry: &Entry, inputs: &Inputs<'_>, sink: &Sink) -> Option<Value> {
    let nothing = Value::Null;
    let Entry { key, node } = entry;
    let (default, env, declared) = match &node.item {
        Item::Table(table) => {
            let what = format!("parameter `{name}`");
            let fields = Fields::new(what, node.span, table, &nothing, sink);
            let env = fields.text("env").map(|text| text.value);
            let declared = fields.choice("type", TYPES).map(|text| text.value);
            fields.text("help");
            fields.skip("default");
            fields.finish();
            (table.get("default").map(|entry| &entry.node), env, declared)
        }
        _ => (Some(node), None, None),
    };
    let kind = match (&declared, default) {
        (Some(declared), _) => declared.as_str(),
        (None, Some(default)) => type_of(default, name, sink)?,
        (None, None) => "string",
    };
    let set = inputs.set.iter().rev().find(|(key, _)| key == name);
    let from_env = env.as_deref().and_then(|variable| Some((variable, (inputs.env)(variable)?)));
    let given = match (set, from_env) {
        (Some((_, text)), _) => Some((format!("`--set {name}={text}`"), text.clone())),
        (None, Some((variable, text))) => Some((format!("`{variable}={text}`"), text)),
        (None, None) => None,
    };
    if let Some((origin, text)) = given {
        let value = parse(&text, kind);
        if value.is_none() {
            let message = format!("{origin} is not {}", article(kind));
            sink.push(Diagnostic::at(*key, message).label("declared here"));
        }
        return value;
    }
    let Some(default) = default else {
        let how = match &env {
            Some(variable) => format!("give it with `--set {name}=…` or `{variable}=…`"),
            None => format!("give it with `--set {name}=…`, or add a default"),
        };
        let message = format!("parameter `{name}` has no value");
        sink.push(Diagnostic::at(*key, message).hint(how));
        return None;
    };
    let fits = matches!(
        (&default.item, kind),
        (Item::Text(_), "string")
            | (Item::Boolean(_), "boolean")
            | (Item::Integer(_), "integer" | "number")
            | (Item::Float(_), "number")
    );
    if !fits {
        let message = format!(
            "the default of `{name}` must be {}, not {}",
            article(kind),
            default.item.type_name()
        );
        sink.push(Diagnostic::at(default.span, message));
        return None;
    }
    Some(default.item.to_json())
}

fn default_of(entry: &Entry) -> Option<Value> {
    match &entry.node.item {
        Item::Table(table) => Some(table.get("default")?.node.item.to_json()),
        item => Some(item.to_json()),
    }
}

fn type_of(default: &Node, name: &str, sink: &Sink) -> Option<&'static str> {
    match default.item {
        Item::Text(_) => Some("string"),
        Item::Integer(_) => Some("integer"),
        Item::Float(_) => Some("number"),
        Item::Boolean(_) => Some("boolean"),
        Item::List(_) | Item::Table(_) => {
            let message = format!("parameter `{name}` must be a string, a number or a boolean");
            sink.push(Diagnostic::at(default.span, message));
            None
        }
    }
}

fn article(kind: &str) -> String {
    if kind == "integer" { "an integer".to_owned() } else { format!("a {kind}") }
}

fn parse(text: &str, kind: &str) -> Option<Value> {
    match kind {
        "integer" => text.trim().parse::<i64>().ok().map(Value::from),
        "number" => {
            let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite())?;
            Some(Value::from(number))
        }
        "boolean" => match text.trim() {
            "true" | "1" => Some(Value::from(true)),
            "false" | "0" => Some(Value::from(false)),
            _ => None,
        },
        _ => Some(Value::from(text)),
    }
}

/// Reports every `--set` of a parameter that is not declared.
pub fn check_overrides(params: &BTreeMap<String, Value>, inputs: &Inputs<'_>, sink: &Sink) {
    if !sink.is_empty() {
        // A declared parameter may be missing because its value is wrong.
        return;
    }
    for (name, _) in inputs.set {
        if params.contains_key(name) {
            continue;
        }
        let known: Vec<_> = params.keys().map(String::as_str).collect();
        let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let message = format!("`--set {name}=…`: unknown parameter `{name}` (known: {list})");
        sink.push(Diagnostic::nowhere(message).did_you_mean(name, known));
    }
}
