//! Bad manifests and what is said of them, whole. Each file of `tests/manifests/` is a case; its message
//! is in `tests/snapshots/`. After a change, read the difference before accepting it.

use camino::Utf8Path;
use llmforge::graph::Graph;
use llmforge::manifest::{Diagnostics, Inputs};
use llmforge::stage::kinds;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/manifests");

fn load(name: &str, set: &[(String, String)]) -> Result<Graph, Diagnostics> {
    let root = Utf8Path::new(ROOT);
    let read = |path: &Utf8Path| {
        std::fs::read_to_string(root.join(path)).map_err(|error| error.to_string())
    };
    let env = |_: &str| None;
    let path = Utf8Path::new(name);
    let kinds = kinds();
    let inputs = Inputs { path, read: &read, env: &env, set, kinds: &kinds };
    Graph::load(&inputs, root, &env).map(|(_, graph)| graph)
}

#[test]
fn bad_manifests() {
    let mut cases: Vec<_> = std::fs::read_dir(ROOT)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 20);
    let mut all = String::new();
    for case in cases {
        let set = if case == "params.toml" {
            vec![("set".to_owned(), "many".to_owned())]
        } else {
            Vec::new()
        };
        let message = match load(&case, &set) {
            Ok(_) => "(no error)".to_owned(),
            Err(diagnostics) => diagnostics.to_string(),
        };
        assert_ne!(message, "(no error)", "{case}");
        all.push_str(&format!("======== {case}\n{message}\n\n"));
    }
    insta::assert_snapshot!("bad_manifests", all);
}

#[test]
fn an_unknown_parameter_on_the_command_line_is_refused() {
    let set = [("num_flow".to_owned(), "3".to_owned())];
    let error = load("undefined_variable.toml", &set).err().unwrap().to_string();
    assert_eq!(
        error,
        "error: `--set num_flow=…`: unknown parameter `num_flow` (known: num_flows)\n\n\
         hint: did you mean `num_flows`?"
    );
}
