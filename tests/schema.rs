//! The committed schemas are those of the code, and what is shipped keeps to them and to the house format.
//!
//! After a change of keys: `forge schema > pipelines/forge.schema.json`, `forge schema template >
//! templates/forge.schema.json`, and words for new ones in `src/schema/words.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use llmforge::{manifest, schema};
use serde_json::{Value, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every TOML file below some folders.
fn files(folders: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|ending| ending == "toml") {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    folders.iter().for_each(|folder| walk(&Path::new(ROOT).join(folder), &mut out));
    out.sort();
    out
}

/// What is shipped: manifests, and flow templates.
fn shipped() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let all = files(&["pipelines", "examples", "templates", "src/cli/init"]);
    all.into_iter().partition(|path| !toml_of(path).as_object().unwrap().contains_key("step"))
}

fn toml_of(path: &Path) -> Value {
    toml::from_str(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn validator(schema: &Value) -> Validator {
    jsonschema::validator_for(schema).unwrap()
}

fn complaints(validator: &Validator, document: &Value) -> Vec<String> {
    validator.iter_errors(document).map(|error| error.to_string()).collect()
}

#[test]
fn the_committed_schemas_are_current() {
    for (path, schema, command) in [
        ("pipelines/forge.schema.json", schema::manifest(), "forge schema"),
        ("templates/forge.schema.json", schema::template(), "forge schema template"),
    ] {
        assert!(read(path) == schema::text(&schema), "`{command} > {path}` makes it current");
    }
}

#[test]
fn what_is_shipped_keeps_to_its_schema() {
    let (manifests, templates) = shipped();
    assert!(manifests.len() >= 14 && templates.len() >= 10, "{manifests:?} {templates:?}");
    for (paths, schema, home) in [
        (manifests, schema::manifest(), "pipelines/forge.schema.json"),
        (templates, schema::template(), "templates/forge.schema.json"),
    ] {
        let validator = validator(&schema);
        for path in paths {
            let wrong = complaints(&validator, &toml_of(&path));
            assert!(wrong.is_empty(), "{}: {wrong:#?}", path.display());
            let text = read(&path);
            let line = text.lines().next().unwrap();
            let named = line
                .strip_prefix("#:schema ")
                .unwrap_or_else(|| panic!("{}: {line}", path.display()));
            // What `forge init` writes lies beside its schema in the new project.
            if !path.starts_with(Path::new(ROOT).join("src")) {
                let full = path.parent().unwrap().join(named).canonicalize().unwrap();
                assert_eq!(full, Path::new(ROOT).join(home), "{}", path.display());
            }
        }
    }
}

#[test]
fn a_key_too_many_is_refused_in_every_table() {
    let validator = validator(&schema::manifest());
    let mut tried = 0;
    for path in shipped().0 {
        let document = toml_of(&path);
        let mut places: Vec<String> = vec![String::new()];
        places.extend(
            ["pipeline", "store"]
                .iter()
                .filter(|n| document.get(**n).is_some())
                .map(|n| format!("/{n}")),
        );
        for group in ["stage", "gate", "defaults"] {
            let names = document.get(group).and_then(Value::as_object).into_iter().flatten();
            places.extend(names.map(|(name, _)| format!("/{group}/{name}")));
        }
        for place in places {
            let mut spoilt = document.clone();
            spoilt.pointer_mut(&place).unwrap()["nobody_knows_this"] = json!(1);
            assert!(
                !validator.is_valid(&spoilt),
                "{}: a key too many in `{place}`",
                path.display()
            );
            tried += 1;
        }
    }
    assert!(tried > 60, "{tried}");
}

#[test]
fn bad_manifests_are_bad_for_the_schema_too() {
    let validator = validator(&schema::manifest());
    let bad = |name: &str| {
        let path = Path::new("tests/manifests").join(name);
        !complaints(&validator, &toml_of(&path)).is_empty()
    };
    for name in [
        "unknown_key.toml",
        "unknown_kind.toml",
        "out_of_range.toml",
        "wrong_types.toml",
        "tool_settings.toml",
        "scorers.toml",
        "gates.toml",
    ] {
        assert!(bad(name), "{name}");
    }
    // Templates stand for values of any type, and a stage may have its kind from another.
    let good = json!({
        "stage": {
            "ask": { "kind": "workflow", "flows": "f", "engine": "e", "temperature": "{{ params.t }}", "epochs": "{{ 2 }}" },
            "again": { "extends": "ask", "temperature": 1 },
        },
        "gate": { "g": { "samples": ["ask"], "min_my-scorer": 0.5, "max_ttft_p95_ms": 900 } },
    });
    assert_eq!(complaints(&validator, &good), Vec::<String>::new());
    for (place, key, value) in [
        ("/stage/ask", "temperature", json!("hot")),
        ("/stage/ask", "epochs", json!(0)),
        ("/stage/ask", "method", json!("guess")),
        ("/stage/again", "temprature", json!(1)),
        ("/gate/g", "least_accuracy", json!(1)),
    ] {
        let mut spoilt = good.clone();
        spoilt.pointer_mut(place).unwrap()[key] = value;
        assert!(!validator.is_valid(&spoilt), "{place}/{key}");
    }
}

#[test]
fn what_is_shipped_is_in_the_house_format() {
    let (manifests, templates) = shipped();
    for path in manifests.iter().chain(&templates) {
        let text = read(path);
        assert!(manifest::format(&text) == text, "`forge fmt {}` brings it there", path.display());
    }
}

#[test]
fn the_format_changes_no_meaning_and_nothing_twice() {
    // Also of manifests that are wrong, as long as they are TOML.
    let all = files(&["pipelines", "examples", "templates", "src/cli/init", "tests/manifests"]);
    let mut tried = 0;
    for path in all {
        let text = read(&path);
        let Ok(before) = toml::from_str::<toml::Table>(&text) else { continue };
        // As somebody in a hurry may have written it.
        let hurried = text.replace(" = ", "=").replace(", ", " ,");
        for text in [text, hurried] {
            let Ok(meant) = toml::from_str::<toml::Table>(&text) else { continue };
            let once = manifest::format(&text);
            assert_eq!(manifest::format(&once), once, "{}", path.display());
            assert_eq!(toml::from_str::<toml::Table>(&once).unwrap(), meant, "{}", path.display());
            let comments = |text: &str| text.matches('#').count();
            assert_eq!(comments(&once), comments(&text), "{}", path.display());
            tried += 1;
        }
        assert!(!before.is_empty());
    }
    assert!(tried > 60, "{tried}");
}
