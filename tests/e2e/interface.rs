//! What the program prints and how it ends.

use super::project::{FORGE, Project, Ran};

#[test]
fn a_new_project_runs_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let forge = |args: &[&str]| {
        Ran::of(
            std::process::Command::new(FORGE).args(args).current_dir(dir.path()).output().unwrap(),
        )
    };
    assert_eq!(forge(&["init", "mine"]).code, 0);
    let ran = forge(&["apply", "mine/pipelines/bench.toml", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.metric("ask[method=cot]", "accuracy"), 1.0);
    let again = forge(&["init", "mine"]);
    assert_eq!((again.code, again.stderr.contains("nothing was written")), (2, true));
}

#[test]
fn timing_lines_are_one_to_a_line_and_measured() {
    let project = Project::new();
    let ran = project.ok(&[]);
    let lines: Vec<_> =
        ran.stderr.lines().filter_map(|line| line.strip_prefix("[TIMING] ")).collect();
    let named = |name: &str| lines.iter().filter(|line| line.starts_with(name)).count();
    assert_eq!(named("flow_expansion_ms="), 1);
    assert_eq!(named("engine_init_ms="), 1);
    assert_eq!(named("workflow_"), 10);
    assert_eq!(named("benchmark_total_ms="), 1);
    assert_eq!(named("avg_workflow_ms="), 1);
    let expansion = lines.iter().find(|line| line.starts_with("flow_expansion_ms=")).unwrap();
    assert!(expansion.ends_with(" (generated)"), "{expansion}");
    let digits = expansion.trim_end_matches(" (generated)").rsplit('.').next().unwrap();
    assert_eq!(digits.len(), 2);
    let again = project.ok(&[]);
    assert!(again.stderr.contains(" (cached)\n"), "{}", again.stderr);
    assert!(!again.stderr.contains("engine_init_ms"), "an engine that was not loaded has no time");
}

#[test]
fn the_last_line_of_json_holds_the_result() {
    let done = Project::new().ok(&[]).done();
    for field in ["run_id", "status", "wall_ms", "requests", "stages", "results", "timing"] {
        assert!(!done[field].is_null(), "{field}: {done}");
    }
    assert_eq!(done["status"], "completed");
    for field in ["live", "memory", "disk", "remote", "coalesced"] {
        assert!(done["requests"][field].is_u64(), "{field}");
    }
    for field in ["name", "kind", "state", "key"] {
        assert!(done["stages"][0][field].is_string(), "{field}");
    }
    for metric in ["accuracy", "exact_match", "includes", "f1"] {
        assert!(done["results"][0]["metrics"][metric].is_f64(), "{metric}");
    }
}

#[test]
fn only_and_until() {
    let project = Project::new();
    let refused = project.apply(&["--only", "report"]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("`ask` is needed and not up to date"), "{}", refused.stderr);
    let until = project.ok(&["--until", "ask"]);
    assert!(!until.states().contains_key("report"));
    let only = project.ok(&["--only", "report"]);
    assert_eq!((only.live(), only.states()["report"].as_str()), (0, "ran"));
    let unknown = project.apply(&["--until", "aks"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.contains("did you mean `ask`?"), "{}", unknown.stderr);
}

#[test]
fn the_lock_is_the_same_on_every_machine() {
    let (one, two) = (Project::new(), Project::new());
    one.ok(&[]);
    two.ok(&["--jobs", "1"]);
    let lock = one.read("pipelines/bench.lock");
    assert_eq!(lock, two.read("pipelines/bench.lock"));
    assert!(lock.contains("metrics.accuracy = 0.5"), "{lock}");
    let parsed: toml::Table = toml::from_str(&lock).unwrap();
    assert_eq!(parsed["stage"]["ask"]["samples"].as_integer(), Some(10));
    one.ok(&["--limit", "2"]);
    assert_eq!(one.read("pipelines/bench.lock"), lock, "a part of a run is no result to commit");
}

#[test]
fn quiet_says_nothing_and_out_goes_where_told() {
    let project = Project::new();
    let ran = project.forge(&["apply", "pipelines/bench.toml", "--quiet", "--out", "elsewhere"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    assert!(project.path("elsewhere/report.html").exists());
    assert!(!project.path("out").exists());
}

#[test]
fn a_store_elsewhere_is_used() {
    let project = Project::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let store = elsewhere.path().to_str().unwrap();
    project.ok(&["--store", store]);
    assert!(!project.path(".forge").exists());
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    assert_eq!(Ran::of(command.env("FORGE_STORE", store).output().unwrap()).live(), 0);
}

#[test]
fn the_graph_in_every_format() {
    let project = Project::new();
    let graph = |format: &str| {
        let ran = project.forge(&["graph", "pipelines/bench.toml", "--format", format]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
    };
    assert!(graph("text").contains("report    report         <- ask\n"), "{}", graph("text"));
    assert!(graph("dot").contains("\"flows\" -> \"ask\";"));
    assert!(graph("mermaid").starts_with("flowchart LR\n"));
    let json: serde_json::Value = serde_json::from_str(&graph("json")).unwrap();
    assert_eq!(json["stages"].as_array().unwrap().len(), 5);
}

#[test]
fn model_output_is_escaped_in_the_page() {
    let project =
        Project::with("", "replies = [{ reply = \"</script><script>alert(1)</script>\" }]");
    project.ok(&[]);
    let html = project.read("out/bench/report/report.html");
    assert!(!html.contains("<script>alert(1)"), "model output reached the page as markup");
    // It is there, compressed; `pages.rs` looks at it in a browser.
    assert!(!html.contains("alert(1)"));
    assert_eq!(html.matches("class=\"block\"").count(), 1);
}

#[test]
fn wrong_use_ends_with_2_and_help_with_0() {
    let project = Project::new();
    assert_eq!(project.forge(&["aply"]).code, 2);
    assert_eq!(project.forge(&["apply"]).code, 2);
    assert_eq!(project.forge(&["apply", "none.toml"]).code, 2);
    assert_eq!(project.forge(&["--help"]).code, 0);
    assert_eq!(project.forge(&["check", "pipelines/bench.toml"]).code, 0);
    assert!(project.forge(&["apply", "--help"]).stdout.contains("Examples:"));
    assert!(project.forge(&["completions", "bash"]).stdout.contains("_forge"));
}

#[test]
fn every_file_of_pipelines_and_examples_is_right() {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut checked = 0;
    for pattern in ["pipelines", "examples"] {
        for folder in walk(&format!("{root}/{pattern}")) {
            let text = std::fs::read_to_string(&folder).unwrap();
            if !text.contains("[pipeline]") {
                continue;
            }
            let output =
                std::process::Command::new(FORGE).args(["check", &folder]).output().unwrap();
            let ran = Ran::of(output);
            assert_eq!(ran.code, 0, "{folder}: {}", ran.stderr);
            checked += 1;
        }
    }
    assert!(checked >= 3);
}

/// Every manifest below a folder.
pub fn walk(folder: &str) -> Vec<String> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path().to_str().unwrap().to_owned();
        if entry.path().is_dir() {
            out.extend(walk(&path));
        } else if path.ends_with(".toml") {
            out.push(path);
        }
    }
    out.sort();
    out
}

#[test]
fn several_reports_in_one_folder_keep_apart() {
    let project = Project::new();
    let more = "\n[stage.second]\nkind = \"report\"\nsamples = \"ask\"\ntitle = \"two\"\n";
    let manifest = project.read("pipelines/bench.toml") + more;
    project.write("pipelines/bench.toml", &manifest);
    for _ in 0..2 {
        let ran = project.ok(&["--out", "o"]);
        assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    }
    assert!(project.read("o/second/report.md").starts_with("# two"));
    assert!(project.read("o/report/report.md").starts_with("# bench"));
}

#[test]
fn a_dry_run_heeds_the_other_options() {
    let project = Project::new();
    project.ok(&[]);
    let dry = |args: &[&str]| {
        let mut all = vec!["apply", "pipelines/bench.toml", "--dry-run"];
        all.extend(args);
        project.forge(&all).stdout
    };
    assert!(dry(&["--force", "ask"]).contains("forced    ask"), "{}", dry(&["--force", "ask"]));
    assert!(!dry(&["--until", "flows"]).contains("workflow"));
}

#[test]
fn a_link_that_leaves_the_project_is_refused() {
    let project = Project::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::rename(project.path("templates/qa.toml"), outside.path().join("qa.toml")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("qa.toml"), project.path("templates/qa.toml"))
        .unwrap();
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("a link that leaves the project"), "{}", ran.stderr);
    std::fs::remove_file(project.path("templates/qa.toml")).unwrap();
    std::fs::rename(outside.path().join("qa.toml"), project.path("templates/qa.toml")).unwrap();
    std::os::unix::fs::symlink(outside.path(), project.path("out")).unwrap();
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        std::fs::read_dir(outside.path()).unwrap().next().is_none(),
        "something was written outside"
    );
}

/// Every example that needs no model runs to its end.
#[test]
fn examples_run() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let project = Project::empty();
    for folder in ["examples", "fixtures", "templates"] {
        for file in walk_all(&root.join(folder)) {
            let target = project.root().join(file.strip_prefix(root).unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(&file, target).unwrap();
        }
    }
    let mut ran = 0;
    for manifest in walk("examples") {
        let text = std::fs::read_to_string(root.join(&manifest)).unwrap();
        // The example of gates compares revisions, that of tracking needs a service; they have tests of their own.
        let own = text.contains("[gate.") || manifest.starts_with("examples/tracking");
        if text.contains("[pipeline]") && !own {
            let result = project.forge(&["apply", &manifest, "--json"]);
            assert_eq!(result.code, 0, "{manifest}: {}", result.stderr);
            let ask = result.result("ask");
            let answered = serde_json::json!({ "answered": ask["samples"] });
            assert_eq!(ask["outcomes"], answered, "{manifest}");
            // Of many questions a script knows a few; the other examples are short.
            let least = match ask["samples"].as_u64().unwrap() {
                200.. => 0.005,
                _ => 0.2,
            };
            assert!(result.metric("ask", "accuracy") > least, "{manifest}: {}", result.stdout);
            ran += 1;
        }
    }
    assert!(ran >= 3);
    assert_eq!(project.read("out/custom-graph/wrong.txt").lines().count(), 6);
}

fn walk_all(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            out.extend(walk_all(&entry.path()))
        } else {
            out.push(entry.path())
        }
    }
    out
}
