//! The module order of `src/lib.rs`: a module uses those before it, never those after, and the pure half
//! touches neither files nor network, environment or clock.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The first module that acts; those before it are pure.
const FIRST_ACTING: &str = "store";

/// What a pure module must not name.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::io",
    "Instant",
    "SystemTime",
    "tokio",
];

fn modules() -> Vec<String> {
    let text = fs::read_to_string("src/lib.rs").unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    names.map(str::to_owned).collect()
}

fn files_of(module: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    let (file, folder) = (format!("src/{module}.rs"), format!("src/{module}"));
    if Path::new(&file).exists() {
        out.push(file.into());
    }
    if Path::new(&folder).exists() {
        walk(Path::new(&folder), &mut out);
    }
    assert!(!out.is_empty(), "module `{module}` has no files");
    out
}

/// The code of a file: comments and the tests at its end left out.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Modules named after `crate::` in some code, inside braces too.
fn used(code: &str) -> Vec<String> {
    let mut out = Vec::new();
    for part in code.split("crate::").skip(1) {
        let names = match part.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap(),
            None => part,
        };
        let is_group = part.starts_with('{');
        for name in names.split(',').take(if is_group { usize::MAX } else { 1 }) {
            let name: String =
                name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            out.push(name);
        }
    }
    out
}

#[test]
fn a_module_uses_only_those_before_it() {
    let order = modules();
    let place: BTreeMap<&str, usize> =
        order.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut wrong = Vec::new();
    let mut edges = 0;
    for (i, module) in order.iter().enumerate() {
        for file in files_of(module) {
            for name in used(&code(&file)) {
                if let Some(j) = place.get(name.as_str()) {
                    edges += 1;
                    if *j > i {
                        wrong.push(format!("{}: {module} uses {name}", file.display()));
                    }
                }
            }
        }
    }
    assert!(edges > 50, "the check found only {edges} uses: it does not read the code any more");
    assert!(wrong.is_empty(), "against the order of src/lib.rs:\n{}", wrong.join("\n"));
}

#[test]
fn the_pure_half_does_no_io() {
    let order = modules();
    let pure = order.iter().take_while(|name| *name != FIRST_ACTING);
    let mut wrong = Vec::new();
    for module in pure {
        for file in files_of(module) {
            let code = code(&file);
            for word in IMPURE.iter().filter(|word| code.contains(**word)) {
                wrong.push(format!("{}: {word}", file.display()));
            }
        }
    }
    assert!(order.iter().any(|name| name == FIRST_ACTING));
    assert!(wrong.is_empty(), "in the pure half:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_knows() {
    let mut files: Vec<PathBuf> = modules().iter().flat_map(|module| files_of(module)).collect();
    files.push("src/main.rs".into());
    let silent = files.iter().filter(|file| !fs::read_to_string(file).unwrap().starts_with("//! "));
    let silent: Vec<_> = silent.map(|file| file.display().to_string()).collect();
    assert!(silent.is_empty(), "without a first line of documentation: {silent:?}");
}
