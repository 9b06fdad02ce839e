//! What is for editors and shells: schemas, the house format, man pages, runs that follow edits.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use super::project::{FORGE, Project, Ran};

#[test]
fn a_new_project_has_schemas_and_is_in_the_format() {
    let project = Project::empty();
    assert_eq!(project.forge(&["init", "new"]).code, 0);
    for (folder, of) in [("pipelines", "manifest"), ("templates", "template")] {
        let printed = project.forge(&["schema", of]);
        assert_eq!(printed.code, 0, "{}", printed.stderr);
        assert_eq!(project.read(&format!("new/{folder}/forge.schema.json")), printed.stdout);
        let schema: Value = serde_json::from_str(&printed.stdout).unwrap();
        assert_eq!(schema["type"], "object");
    }
    let ran =
        project.forge(&["fmt", "--check", "new/pipelines/bench.toml", "new/templates/qa.toml"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn the_format_is_checked_shown_and_written() {
    let project = Project::new();
    let path = "pipelines/bench.toml";
    let ugly = project.read(path).replace("kind = \"engine\"", "kind=\"engine\"   # what answers");
    project.write(path, &ugly);
    let key = |ran: Ran| ran.done()["stages"][2]["key"].clone();
    let before = key(project.ok(&[]));
    let checked = project.forge(&["fmt", "--check", path]);
    assert_eq!((checked.code, checked.stdout.as_str()), (1, ""));
    assert!(
        checked.stderr.contains("not in the format: pipelines/bench.toml"),
        "{}",
        checked.stderr
    );
    let shown = project.forge(&["fmt", "--diff", path]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    for line in ["-kind=\"engine\"   # what answers", "+kind = \"engine\"   # what answers"] {
        assert!(shown.stdout.contains(line), "no `{line}` in {}", shown.stdout);
    }
    assert_eq!(project.read(path), ugly, "`--check` and `--diff` write nothing");
    assert_eq!(project.forge(&["fmt", path]).code, 0);
    assert!(project.read(path).contains("kind = \"engine\"   # what answers"));
    assert_eq!(project.forge(&["fmt", "--check", path]).code, 0);
    // No key knows how a manifest is laid out.
    assert_eq!(key(project.ok(&[])), before);

    project.write("bad.toml", "x = [1,\n");
    let bad = project.forge(&["fmt", path, "bad.toml"]);
    assert_eq!(bad.code, 2, "{}", bad.stderr);
    assert!(
        bad.stderr.contains("bad.toml:1:") && bad.stderr.contains("not TOML"),
        "{}",
        bad.stderr
    );
}

#[test]
fn every_command_has_a_man_page() {
    let project = Project::empty();
    let ran = project.forge(&["man", "--output", "man1"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for page in ["forge.1", "forge-apply.1", "forge-bisect.1", "forge-runs-tag.1"] {
        let text = project.read(&format!("man1/{page}"));
        assert!(text.contains(".SH SYNOPSIS") || text.contains(".SH NAME"), "{page}: {text}");
    }
    assert!(project.read("man1/forge-apply.1").contains("watch"));
    assert!(!project.path("man1/forge-supervise.1").exists(), "what is hidden has no page");
}

#[test]
fn a_run_follows_edits_until_it_is_interrupted() {
    let project = Project::new();
    let mut child = std::process::Command::new(FORGE)
        .args(["apply", "pipelines/bench.toml", "--watch"])
        .current_dir(project.root())
        .env_remove("FORGE_STORE")
        .env_remove("NUM_FLOWS")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let mut said = Vec::new();
    let mut wait_for = |text: &str| {
        while let Ok(line) = told.recv_timeout(std::time::Duration::from_secs(60)) {
            said.push(line);
            if said.last().is_some_and(|line| line.contains(text)) {
                return said.clone();
            }
        }
        panic!("no `{text}` in {said:#?}");
    };
    wait_for("watching ");
    // Not read, and so no reason to run.
    project.write("NOTES.md", "nothing\n");
    project.edit("templates/qa.toml", "{{ row.question }}", "Think. {{ row.question }}");
    let said = wait_for("watching ");
    assert!(said.iter().any(|line| line.ends_with("templates/qa.toml changed")), "{said:#?}");
    // A manifest that is wrong is said, and waited out.
    let good = project.read("pipelines/bench.toml");
    project.write("pipelines/bench.toml", &good.replace("kind = \"report\"", "kind = \"raport\""));
    let said = wait_for("watching ");
    assert!(said.iter().any(|line| line.contains("unknown stage kind `raport`")), "{said:#?}");
    project.write("pipelines/bench.toml", &good);
    wait_for("watching ");
    assert_eq!(std::fs::read_dir(project.path(".forge/runs")).unwrap().count(), 3);
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
