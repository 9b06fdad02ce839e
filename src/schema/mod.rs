//! JSON Schemas of what people write, manifests and flow templates, made by reading: every reader of a table is asked
//! which fields it knows. Knows nothing of what fields do.
//!
//! A schema is for editors: they complete names and mark what is mistyped. What `forge check` says counts.

use std::collections::BTreeSet;

use camino::Utf8Path;
use serde_json::{Map, Value, json};

use crate::gate;
use crate::manifest::{
    Field, Fields, Inputs, Manifest, Places, Shape, Sink, Sources, Span, StageDecl, Table,
};
use crate::stage::{ArtifactKind, STAGES, Setting, kinds, needs, read_template};

mod explore;
mod words;

/// What editors of TOML understand.
const DIALECT: &str = "http://json-schema.org/draft-07/schema#";
/// A string that is a template stands for a value of any type.
const TEMPLATE: &str = "\\{[{%]";
/// No path leads there: a reader that looks for files finds none.
const NOWHERE: &str = "/dev/null";
/// The manifest that all stages are read in.
const MANIFEST: &str = "[pipeline]\n[store]\n[params.x]\n[stage.x]\nkind = \"engine\"\n";

/// The schema of manifests.
pub fn manifest() -> Value {
    let mut definitions = Map::new();
    for (kind, fields) in stages() {
        definitions.insert(kind, fields);
    }
    definitions.insert("gate".to_owned(), gate());
    let (_, top) = sample_manifest();
    let mut properties = Map::new();
    let asked = top.keys().filter(|(place, _)| place == "the manifest").map(|(_, name)| name);
    for name in asked.map(String::as_str).chain(["pipeline", "store"]) {
        properties.insert(name.to_owned(), part(name, &top));
    }
    let paths = json!({ "type": "array", "items": { "type": "string" } });
    properties.insert("include".to_owned(), described(paths, "include"));
    json!({
        "$schema": DIALECT,
        "title": "forge: a pipeline",
        "description": "Written by `forge schema`.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "definitions": definitions,
    })
}

/// The schema of flow templates.
pub fn template() -> Value {
    let read = |table: &Table, sink: &Sink| {
        read_template(table, nowhere(), sink);
    };
    let places = explore::explore(Table::new(), &read);
    let mut schema = object("the flow template", &places, "template");
    schema["$schema"] = json!(DIALECT);
    schema["title"] = json!("forge: a flow template");
    schema["description"] = json!("Written by `forge schema template`.");
    schema
}

/// A schema as it is committed.
pub fn text(schema: &Value) -> String {
    let text = serde_json::to_string_pretty(schema).expect("BUG: a schema is plain data");
    format!("{text}\n")
}

fn nowhere() -> Span {
    Span { source: 0, start: 0, end: 0 }
}

/// A manifest to read stages in, and the fields that it has above them.
fn sample_manifest() -> (Manifest, Places) {
    let (sink, mut sources) = (Sink::recording(), Sources::default());
    let (read, env) = (|_: &Utf8Path| Ok(MANIFEST.to_owned()), |_: &str| None);
    let kinds = kinds();
    let path = Utf8Path::new("pipelines/x.toml");
    let set = [("x".to_owned(), "1".to_owned())];
    let inputs = Inputs { path, read: &read, env: &env, set: &set, kinds: &kinds };
    let manifest = Manifest::read(&inputs, &mut sources, &sink);
    (manifest.expect("BUG: the manifest of the schema is wrong"), sink.into_seen())
}

/// A table at the top of a manifest.
fn part(name: &str, top: &Places) -> Value {
    let kinds = kinds();
    let any_of = |list: Vec<Value>| json!({ "anyOf": list });
    let tables = |each: Value| json!({ "type": "object", "additionalProperties": each });
    let reference = |kind: &str| json!({ "$ref": format!("#/definitions/{kind}") });
    let schema = match name {
        "pipeline" => object("[pipeline]", top, "pipeline"),
        "store" => object("[store]", top, "store"),
        "params" => {
            let mut table = object("parameter `x`", top, "params");
            table["properties"]["default"] = described(plain_value(), "params/default");
            tables(any_of(vec![plain_value(), table]))
        }
        "defaults" => {
            let all = kinds.iter().map(|kind| ((*kind).to_owned(), reference(kind)));
            let all: Map<String, Value> = all.collect();
            json!({ "type": "object", "additionalProperties": false, "properties": all })
        }
        "stage" => {
            let mut all: Vec<Value> = kinds
                .iter()
                .map(|kind| json!({ "allOf": [reference(kind), { "required": ["kind"] }] }))
                .collect();
            // Its kind may be that of the stage that it extends.
            let extends = json!({ "required": ["extends"], "not": { "required": ["kind"] } });
            let some: Vec<Value> = kinds.iter().map(|kind| reference(kind)).collect();
            all.push(json!({ "allOf": [extends, any_of(some)] }));
            tables(any_of(all))
        }
        "gate" => tables(reference("gate")),
        other => {
            unreachable!("BUG: `{other}` stands in manifests, and the schema does not know it")
        }
    };
    described(schema, name)
}

fn plain_value() -> Value {
    json!({ "type": ["string", "number", "boolean"] })
}

/// The fields of every kind of stage.
fn stages() -> Vec<(String, Value)> {
    let (manifest, _) = sample_manifest();
    let env = |_: &str| None;
    let root = Utf8Path::new(NOWHERE);
    let one = |(kind, read): &(&'static str, crate::stage::Read)| {
        let setting = Setting { manifest: &manifest, root, env: &env };
        let read = |table: &Table, sink: &Sink| {
            let decl = StageDecl {
                name: "x".to_owned(),
                base: "x".to_owned(),
                kind: (*kind).to_owned(),
                span: nowhere(),
                table: table.clone(),
                context: Value::Null,
            };
            read("x", manifest.fields(&decl, sink), &setting);
        };
        let places = explore::explore(Table::new(), &read);
        let mut schema = object("stage `x`", &places, kind);
        // Above what a kind reads.
        let list = json!({ "type": "array", "minItems": 1 });
        let axes = json!({ "type": "object", "additionalProperties": list });
        for variant in variants_mut(&mut schema) {
            // What it needs may come from defaults, a matrix, or the stage that it extends.
            if let Some(variant) = variant.as_object_mut() {
                variant.remove("required");
            }
            let own = &mut variant["properties"];
            own["kind"] = described(json!({ "const": kind }), "kind");
            own["extends"] = described(json!({ "type": "string" }), "extends");
            own["matrix"] = described(axes.clone(), "matrix");
        }
        ((*kind).to_owned(), schema)
    };
    STAGES.iter().map(one).collect()
}

/// The fields of a gate. Its thresholds are named after what scorers say, so any name may be one.
fn gate() -> Value {
    let read = |table: &Table, sink: &Sink| {
        let fields = Fields::new("gate `x`", nowhere(), table, &Value::Null, sink);
        needs(&fields, "samples", &[ArtifactKind::Samples]);
        let known = gate::Known { stages: String::new(), metrics: None, epochs: 0, lock: "" };
        gate::read("x", fields, &known);
    };
    let mut schema = object("gate `x`", &explore::explore(Table::new(), &read), "gate");
    let threshold = one_of_these(json!({ "type": "number", "minimum": 0 }));
    schema["patternProperties"] =
        json!({ "^(min|max)_[A-Za-z0-9_-]+$": described(threshold, "gate/min_") });
    schema
}

/// The tables of a schema that may be one of several.
fn variants_mut(schema: &mut Value) -> Vec<&mut Value> {
    if schema.get("anyOf").is_none() {
        return vec![schema];
    }
    let all = schema["anyOf"].as_array_mut().expect("BUG: `anyOf` is a list");
    all.iter_mut().flat_map(variants_mut).collect()
}

/// The table at a place. Where a word in it decides about its fields, there is one for each word.
fn object(place: &str, places: &Places, about: &str) -> Value {
    let is_variant =
        |found: &str| found == place || found.strip_prefix(place).is_some_and(is_decided);
    let found: BTreeSet<&str> =
        places.keys().map(|(found, _)| found.as_str()).filter(|found| is_variant(found)).collect();
    let mut all = Vec::new();
    for variant in found {
        let decided = explore::decided(variant);
        let field = |name: &str| places.get(&(variant.to_owned(), name.to_owned()));
        // What was only tried is no word that the field knows.
        let known = |(name, word): &(&str, &str)| {
            field(name)
                .is_none_or(|field| field.words.is_empty() || field.words.iter().any(|w| w == word))
        };
        let undecided = |name: &str| !decided.iter().any(|(decided, _)| *decided == name);
        let must = crate::manifest::DECIDING
            .into_iter()
            .any(|name| undecided(name) && field(name).is_some_and(|field| field.needed));
        if decided.iter().all(known) && !must {
            all.push(one_object(variant, &decided, places, about));
        }
    }
    match all.len() {
        0 => json!({ "type": "object", "additionalProperties": false, "properties": {} }),
        1 => all.remove(0),
        _ => json!({ "anyOf": all }),
    }
}

/// Whether the rest of a place is nothing but words that decide.
fn is_decided(rest: &str) -> bool {
    rest.starts_with('?') && !rest.contains('/')
}

fn one_object(place: &str, decided: &[(&str, &str)], places: &Places, about: &str) -> Value {
    let mut properties = Map::new();
    let own = places.iter().filter(|((found, _), _)| found == place);
    for ((_, name), field) in own {
        let about = format!("{about}/{name}");
        let schema = match decided.iter().find(|(decided, _)| decided == name) {
            Some((_, word)) => json!({ "const": word }),
            None => value(&format!("{place}/{name}"), field, places, &about),
        };
        properties.insert(name.clone(), described(schema, &about));
    }
    let mut schema =
        json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if !decided.is_empty() {
        schema["required"] = decided.iter().map(|(name, _)| json!(name)).collect();
    }
    schema
}

/// What a field may hold.
fn value(place: &str, field: &Field, places: &Places, about: &str) -> Value {
    let text = || json!({ "type": "string" });
    let list = |items: Value| json!({ "type": "array", "items": items });
    let one_or_more = |one: Value| json!({ "anyOf": [one, list(one.clone())] });
    let is_open = field.words.is_empty() || field.words.iter().any(|word| word == explore::ANY);
    let word = || match is_open {
        true => text(),
        false => {
            json!({ "anyOf": [{ "enum": field.words }, { "type": "string", "pattern": TEMPLATE }] })
        }
    };
    match &field.shape {
        Shape::Text | Shape::Choice => word(),
        Shape::Path | Shape::Duration => text(),
        Shape::Texts | Shape::Choices | Shape::Paths => one_or_more(word()),
        Shape::TextTable => json!({ "type": "object", "additionalProperties": text() }),
        Shape::Integer(low, high) => {
            let mut schema = json!({ "type": "integer" });
            if *low > i64::MIN {
                schema["minimum"] = json!(low);
            }
            if *high < i64::MAX {
                schema["maximum"] = json!(high);
            }
            one_of_these(schema)
        }
        Shape::Number(low, high) => {
            one_of_these(json!({ "type": "number", "minimum": low, "maximum": high }))
        }
        Shape::Boolean => one_of_these(json!({ "type": "boolean" })),
        Shape::Scalar => plain_value(),
        Shape::List => json!({ "type": "array" }),
        Shape::PlainTable => json!({ "type": "object" }),
        Shape::Table => object(place, places, about),
        Shape::NamedTables => {
            let each = object(&format!("{place}/*"), places, about);
            json!({ "type": "object", "additionalProperties": each })
        }
        Shape::Tables => list(object(&format!("{place}/[]"), places, about)),
        Shape::Entries => {
            let table = object(&format!("{place}/[]"), places, about);
            let either = json!({ "anyOf": [word(), table] });
            one_or_more(either)
        }
    }
}

/// A value, or a template that becomes one.
fn one_of_these(schema: Value) -> Value {
    json!({ "anyOf": [schema, { "type": "string", "pattern": TEMPLATE }] })
}

/// A schema with what is said of the field.
fn described(mut schema: Value, about: &str) -> Value {
    if let Some(words) = words::of(about) {
        schema["description"] = json!(words);
    }
    schema
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// All keys of both schemas, by what `words` calls them.
    fn keys() -> BTreeMap<String, bool> {
        fn walk(schema: &Value, about: &str, out: &mut BTreeMap<String, bool>) {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                for (name, inner) in properties {
                    let about = format!("{about}/{name}");
                    let told = inner.get("description").is_some();
                    out.entry(about.clone()).and_modify(|all| *all &= told).or_insert(told);
                    walk(inner, &about, out);
                }
            }
            for group in ["anyOf", "allOf"] {
                for inner in schema.get(group).and_then(Value::as_array).into_iter().flatten() {
                    walk(inner, about, out);
                }
            }
            for inner in
                ["items", "additionalProperties"].iter().filter_map(|name| schema.get(*name))
            {
                walk(inner, about, out);
            }
        }
        let mut out = BTreeMap::new();
        let manifest = manifest();
        for (kind, definition) in manifest["definitions"].as_object().unwrap() {
            walk(definition, kind, &mut out);
        }
        for name in ["pipeline", "store", "params"] {
            walk(&manifest["properties"][name], name, &mut out);
        }
        walk(&template(), "template", &mut out);
        out
    }

    #[test]
    fn every_key_is_described_and_every_description_has_its_key() {
        let keys = keys();
        let silent: Vec<_> = keys.iter().filter(|(_, told)| !**told).map(|(key, _)| key).collect();
        assert!(silent.is_empty(), "no words for {silent:#?}");
        let stale: Vec<_> =
            words::all().filter(|about| !words::is_used(about, keys.keys())).collect();
        assert!(stale.is_empty(), "words for keys that are not there: {stale:#?}");
    }

    #[test]
    fn what_readers_hide_is_there() {
        let keys = keys();
        for key in [
            "engine/price/input",
            "engine/replies",
            "workflow/tool/corpus",
            "workflow/tool/parameters/type",
            "workflow/scorers/rubric",
            "workflow/extractors/pointer",
            "workflow/rag/top_k",
            "expand/fixture/sha256",
            "expand/fields",
            "gate/baseline",
            "template/step/draw/count",
            "template/step/message/role",
        ] {
            assert!(keys.contains_key(key), "no `{key}` in {:#?}", keys.keys());
        }
    }
}
