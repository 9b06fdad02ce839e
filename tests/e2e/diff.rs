//! Two sides compared, on a real git history.

use std::process::Command;

use serde_json::{Value, json};

use super::project::{Project, REPLIES, Ran};

pub fn git(project: &Project, args: &[&str]) {
    let who = [
        "-c",
        "user.name=forge",
        "-c",
        "user.email=forge@example.org",
        "-c",
        "commit.gpgsign=false",
    ];
    let output = Command::new("git")
        .args(who)
        .args(args)
        .current_dir(project.root())
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Commits the work tree of a project that has run on `main`.
pub fn on_main(project: &Project) {
    project.write(".gitignore", ".forge*\nout\n");
    git(project, &["init", "--quiet", "--initial-branch=main"]);
    project.ok(&[]);
    git(project, &["add", "--all"]);
    git(project, &["commit", "--quiet", "--message=first"]);
}

/// Another prompt makes the answer to 1 wrong and those to 5, 6 and 7 right.
const PROMPTED: &str = r#"replies = [
    { when = "Think. What is 1 ", reply = "8" }, { when = "Think. What is 5 ", reply = "5" },
    { when = "Think. What is 6 ", reply = "6" }, { when = "Think. What is 7 ", reply = "7" },
    { when = "What is 1 ", reply = "1" }, { when = "What is 2 ", reply = "2" },
    { when = "What is 3 ", reply = "3" }, { when = "What is 4 ", reply = "4" },
    { reply = "0" },
]"#;

pub fn prompted() -> Project {
    let project = Project::with("", PROMPTED);
    on_main(&project);
    git(&project, &["checkout", "--quiet", "-b", "think"]);
    project.edit("templates/qa.toml", "{{ row.question }}", "Think. {{ row.question }}");
    project.ok(&[]);
    project
}

fn diff(project: &Project, args: &[&str]) -> Ran {
    let mut all = vec!["diff"];
    all.extend(args);
    project.forge(&all)
}

fn diff_json(project: &Project, args: &[&str]) -> Value {
    let ran = diff(project, &[args, &["--json"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn flows(flips: &Value) -> Vec<&str> {
    flips["rows"].as_array().unwrap().iter().map(|row| row["flow"].as_str().unwrap()).collect()
}

#[test]
fn a_branch_with_another_prompt_names_who_flipped() {
    let project = prompted();
    let diff_of = diff_json(&project, &["main"]);
    let cell = &diff_of["cells"][0];
    assert_eq!((&cell["name"], &cell["state"]), (&json!("ask"), &json!("compared")));
    assert_eq!((&cell["pair_by"], &cell["rows"]), (&json!("id"), &json!([10, 10, 10])));
    assert_eq!(flows(&cell["lost"]), ["q1"]);
    assert_eq!(flows(&cell["gained"]), ["q5", "q6", "q7"]);
    let lost = &cell["lost"]["rows"][0];
    assert_eq!(lost["question"], "Think. What is 1 + 0?");
    assert_eq!(lost["targets"], json!(["1"]));
    assert_eq!((&lost["a"][0]["answer"], &lost["b"][0]["answer"]), (&json!("1"), &json!("8")));
    // Four of which one goes the other way: 2 · (1 + 4) / 16.
    let result = &cell["comparisons"][0]["result"];
    assert_eq!((&result["test"], &result["p"]), (&json!("mcnemar_exact"), &json!(0.625)));
    assert_eq!((&result["a"], &result["b"]), (&json!(0.5), &json!(0.7)));
    let stage = |name: &str| {
        let stages = diff_of["stages"].as_array().unwrap();
        stages.iter().find(|stage| stage["stage"] == name).unwrap().clone()
    };
    assert_eq!(stage("engine")["change"], "same");
    assert_eq!(stage("question")["change"], "changed");
    assert!(stage("question")["fields"].to_string().contains("Think. "));
    assert_eq!(stage("flows")["fields"][0]["path"], "template");

    let text = diff(&project, &["main"]);
    for line in [
        "right in a, not in b: 1",
        "right in b, not in a: 3",
        "    q1  Think. What is 1 + 0?",
        "      a       1",
        "      b       8",
        "same rows asked in another way",
    ] {
        assert!(text.stdout.contains(line), "{}", text.stdout);
    }
    let markdown = diff(&project, &["main", "--markdown", "--limit", "2"]).stdout;
    assert!(markdown.contains("3, of which 2 are shown"), "{markdown}");
    assert!(markdown.contains("<details><summary>"), "{markdown}");

    // The same from runs, and nothing was run for any of it.
    let of_runs = diff_json(&project, &["last~1", "last"]);
    assert_eq!(of_runs["cells"][0]["comparisons"][0]["result"], *result);
    assert_eq!(of_runs["cells"][0]["lost"], cell["lost"]);
    let id = of_runs["a"]["id"].as_str().unwrap();
    assert_eq!(diff_json(&project, &[id])["cells"][0]["gained"], cell["gained"]);
    assert_eq!(std::fs::read_dir(project.path(".forge/runs")).unwrap().count(), 2);
}

#[test]
fn a_report_of_both_says_the_same() {
    let project = prompted();
    let here = diff_json(&project, &["main"])["cells"][0]["comparisons"][0]["result"].clone();
    let manifest = project.read("pipelines/bench.toml");
    let template = project.read("templates/qa.toml").replace("Think. ", "");
    project.write("templates/plain.toml", &template);
    let other = r#"
[stage.plain]
kind = "flow-template"
file = "templates/plain.toml"

[stage.before]
extends = "flows"
template = "plain"

[stage.asked]
extends = "ask"
flows = "before"
"#;
    let both = manifest
        .replace("samples = \"ask\"", "samples = [\"asked\", \"ask\"]\npair_by = \"id\"")
        + other;
    project.write("pipelines/both.toml", &both.replace("name = \"bench\"", "name = \"both\""));
    let ran = project.forge(&["apply", "pipelines/both.toml", "--quiet"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&project.read("out/both/report/report.json")).unwrap();
    assert_eq!(report["comparisons"][0]["a"], "asked");
    assert_eq!(report["comparisons"][0]["result"], here);

    let unclear = diff(&project, &["main"]);
    assert_eq!(unclear.code, 2);
    let why = "there are several pipelines; `--pipeline` names one (known: `pipelines/bench.lock`, `pipelines/both.lock`)";
    assert!(unclear.stderr.contains(why), "{}", unclear.stderr);
    for name in ["bench", "pipelines/bench.toml", "pipelines/bench.lock"] {
        let named = diff_json(&project, &["main", "--pipeline", name]);
        assert_eq!(named["cells"][0]["comparisons"][0]["result"], here);
    }
}

#[test]
fn different_data_are_compared_where_they_meet_and_else_refused() {
    let project = Project::new();
    on_main(&project);
    let rows = project.read("fixtures/rows.jsonl");
    let later: Vec<&str> = rows.lines().skip(4).collect();
    project.write("fixtures/rows.jsonl", &later.join("\n"));
    project.ok(&[]);
    let text = diff(&project, &["main"]);
    assert_eq!(text.code, 0, "{}", text.stderr);
    let note =
        "different data: 10 rows in `main`, 6 in `work tree`; only the 6 in common are compared";
    assert!(text.stdout.contains(note), "{}", text.stdout);
    project.write(
        "fixtures/rows.jsonl",
        "{\"id\": \"q1\", \"question\": \"What is 1 - 1?\", \"answer\": 0}\n",
    );
    project.ok(&[]);
    let refused = diff(&project, &["main"]);
    assert_eq!(refused.code, 2, "{}", refused.stdout);
    assert!(refused.stdout.contains("1 in `work tree`, none in common"), "{}", refused.stdout);
}

#[test]
fn what_is_not_in_the_store_is_said_and_nothing_is_run() {
    let project = Project::new();
    on_main(&project);
    project.edit(
        "pipelines/bench.toml",
        "replies = [",
        "replies = [ { when = \"What is 9 \", reply = \"9\" },",
    );
    project.ok(&["--store", ".forge-other"]);
    let ran = diff(&project, &["main", "--store", ".forge-other"]);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    for said in [
        "is gone from the store",
        "`forge store pull`",
        "check ",
        "a recipe is in the store no more",
    ] {
        assert!(ran.stdout.contains(said), "no `{said}` in {}", ran.stdout);
    }
    assert_eq!(diff(&project, &["main", "main"]).code, 0);
    let same = diff_json(&project, &["main", "HEAD"]);
    assert_eq!(same["cells"][0]["state"], "same");
    assert_eq!(same["cells"][0]["a"]["summary"]["samples"], 10);
}

#[test]
fn names_that_mean_nothing_are_refused() {
    let project = Project::new();
    on_main(&project);
    for (args, why) in [
        (
            &["nowhere"][..],
            "`nowhere` is no run of this store, no lock file and no git revision here",
        ),
        (&["--", "--output=x"][..], "`--output=x` is no name of a revision"),
        (&["rev:-x"][..], "`-x` is no name of a revision"),
        (&["last~7"][..], "`last~7` is no run"),
        (&["pipelines/gone.lock"][..], "cannot read `pipelines/gone.lock`"),
        (&["main", "--pipeline", "gone"][..], "no lock file belongs to `gone`"),
        (&["main", "--cluster", "topic", "last"][..], ""),
    ] {
        let ran = diff(&project, args);
        assert_eq!(ran.code, if why.is_empty() { 0 } else { 2 }, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(why), "{args:?}: {}", ran.stderr);
    }
    assert!(!project.path("x").exists());
}

#[test]
fn a_comment_fits_and_what_models_say_stays_text() {
    let project = Project::with("", REPLIES);
    project.rows(600);
    project.edit("pipelines/bench.toml", "default = 10", "default = 600");
    project.edit(
        "pipelines/bench.toml",
        "{ reply = \"0\" }",
        "{ when = \"What\", reply = \"@team \\u001b[31m <img src=x> | #1\" }",
    );
    on_main(&project);
    let right = (0..600)
        .map(|n| format!("{{ when = \"What is {n} \", reply = \"{n}\" }},"))
        .collect::<String>();
    let manifest = project.read("pipelines/bench.toml");
    let (head, rest) = manifest.split_once("replies = [").unwrap();
    project.write("pipelines/bench.toml", &format!("{head}replies = [{right}{rest}"));
    project.ok(&[]);
    let markdown = diff(&project, &["main", "--markdown", "--limit", "600"]).stdout;
    assert!(markdown.chars().count() <= 65_000, "{}", markdown.chars().count());
    assert!(markdown.contains("parts had no room here"), "{markdown}");
    let some = diff(&project, &["main", "--markdown", "--limit", "20"]).stdout;
    assert!(some.contains("20 are shown") && some.contains("img src"), "{some}");
    assert!(!some.contains("<img") && !some.contains('@') && !some.contains('\u{1b}'), "{some}");
    let text = diff(&project, &["main"]).stdout;
    assert!(text.contains("[31m <img src=x>") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn what_is_missing_is_run_where_that_is_asked_for() {
    let project = Project::with("", PROMPTED);
    on_main(&project);
    git(&project, &["checkout", "--quiet", "-b", "think"]);
    project.edit("templates/qa.toml", "{{ row.question }}", "Think. {{ row.question }}");
    let before = project.read("pipelines/bench.lock");
    let cell = |ran: &Value| ran["cells"][0].clone();
    // The lock file of the work tree is still that of main.
    assert_eq!(cell(&diff_json(&project, &["main"]))["state"], "same");
    let here = cell(&diff_json(&project, &["main", "--run"]));
    assert_eq!(
        (&here["state"], flows(&here["gained"])),
        (&json!("compared"), vec!["q5", "q6", "q7"])
    );
    assert_eq!(project.read("pipelines/bench.lock"), before, "a comparison writes no lock file");

    // A commit without results, and nothing of it in the work tree.
    project.edit("templates/qa.toml", "Think. ", "Think. Think. ");
    git(&project, &["commit", "--quiet", "--all", "--message=twice"]);
    git(&project, &["checkout", "--quiet", "main"]);
    let twice = cell(&diff_json(&project, &["main", "think", "--run"]));
    assert_eq!((&twice["state"], flows(&twice["lost"])), (&json!("compared"), vec!["q1"]));
    // Now it is in the store, and looking at it again runs nothing.
    let runs = || std::fs::read_dir(project.path(".forge/runs")).unwrap().count();
    let count = runs();
    assert_eq!(cell(&diff_json(&project, &["main", "think", "--run"])), twice);
    assert_eq!(runs(), count);
    // The pipeline follows its own last run, not that of another work tree.
    assert!(project.ok(&[]).states().values().all(|state| state == "fresh"));

    project.edit("pipelines/bench.toml", "replies = [", "replies = [ 7,");
    git(&project, &["commit", "--quiet", "--all", "--message=broken"]);
    let broken = diff(&project, &["think", "HEAD", "--run"]);
    assert_eq!(broken.code, 2, "{}", broken.stdout);
    assert!(broken.stderr.contains("`HEAD` cannot be run: "), "{}", broken.stderr);
    let trees = std::fs::read_dir(project.path(".git/worktrees"));
    assert_eq!(trees.map_or(0, Iterator::count), 0, "work trees are left behind");
}

#[test]
fn a_page_has_everything_and_needs_nothing() {
    let project = prompted();
    let page = diff(&project, &["main", "--html"]).stdout;
    for part in
        ["<svg", "right in b, not in a: 3", "Think. What is 5 + 0?", "McNemar, exact", "+20.0"]
    {
        assert!(page.contains(part), "no `{part}` in {page}");
    }
    for foreign in ["<script", "http://", "https://", "src="] {
        assert!(!page.contains(foreign), "`{foreign}` in {page}");
    }
}
