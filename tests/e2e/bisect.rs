//! The first change that moved a score, on a real git history.

use serde_json::{Value, json};

use super::diff::{git, on_main};
use super::project::{Project, Ran};

/// Forty questions that are answered rightly, unless asked in a hurry; two changes after the one that hurries, and one
/// before it that breaks the manifest.
fn history() -> Project {
    let right: String =
        (0..40).map(|n| format!("{{ when = \"What is {n} \", reply = \"{n}\" }},\n")).collect();
    let hurried = "{ when = \"Quick. What is 1\", reply = \"?\" }, { when = \"Quick. What is 2\", reply = \"?\" },";
    let project = Project::with("", &format!("replies = [ {hurried}\n{right} ]"));
    project.rows(40);
    project.edit("pipelines/bench.toml", "default = 10", "default = 40");
    on_main(&project);
    let commit = |message: &str| {
        git(&project, &["add", "--all"]);
        git(&project, &["commit", "--quiet", "--message", message]);
    };
    git(&project, &["tag", "v1"]);
    project.write("NOTES.md", "Nothing that is measured.\n");
    commit("a note");
    project.edit("pipelines/bench.toml", "kind = \"workflow\"", "kind = \"workflw\"");
    commit("broken");
    project.edit("pipelines/bench.toml", "kind = \"workflw\"", "kind = \"workflow\"");
    project.edit("templates/qa.toml", "{{ row.question }}", "Quick. {{ row.question }}");
    commit("in a hurry");
    project.edit(
        "pipelines/bench.toml",
        "engine = \"engine\"",
        "engine = \"engine\"\nmax_tokens = 64",
    );
    commit("fewer tokens");
    project.ok(&[]);
    commit("results");
    project
}

fn bisect(project: &Project, args: &[&str]) -> Ran {
    project.forge(&[&["bisect"], args].concat())
}

fn bisect_json(project: &Project, args: &[&str]) -> Value {
    let ran = bisect(project, &[args, &["--json"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn subjects(commits: &Value) -> Vec<&str> {
    commits.as_array().unwrap().iter().map(|commit| commit["subject"].as_str().unwrap()).collect()
}

#[test]
fn the_store_alone_names_a_range_and_a_run_the_change() {
    let project = history();
    let of = bisect_json(&project, &["v1", "main"]);
    // What nobody has run is skipped: the change is in one of these.
    let found = &of["found"];
    assert_eq!(
        (&found["last_good"]["subject"], &found["first_bad"]["subject"]),
        (&json!("a note"), &json!("fewer tokens"))
    );
    assert_eq!(subjects(&found["skipped"]), ["broken", "in a hurry"]);
    let result = &of["bad"]["comparison"]["result"];
    // 1, 10 to 19, 2 and 20 to 29: 22 of 40, all in one direction.
    assert_eq!(
        (&result["better_a"], &result["better_b"], &result["a"]),
        (&json!(22), &json!(0), &json!(1.0))
    );
    assert_eq!(of["bad"]["measure"]["estimate"]["value"], json!(0.45));

    let of = bisect_json(&project, &["v1", "main", "--run"]);
    let found = &of["found"];
    assert_eq!(
        (&found["last_good"]["subject"], &found["first_bad"]["subject"]),
        (&json!("a note"), &json!("in a hurry"))
    );
    assert_eq!(subjects(&found["skipped"]), ["broken"]);
    assert_eq!(found["change"]["result"]["difference"], json!(-0.55));
    assert!(found["stages"].to_string().contains("Quick. "), "{found}");
    let runs: Vec<_> =
        of["steps"].as_array().unwrap().iter().filter(|step| step["from"] == "run").collect();
    assert_eq!(runs.len(), 1, "{of}");
    assert_eq!(runs[0]["commit"]["subject"], "in a hurry");
    let broken = of["steps"]
        .as_array()
        .unwrap()
        .iter()
        .find(|step| step["commit"]["subject"] == "broken")
        .unwrap();
    assert!(broken["why"].as_str().unwrap().contains("unknown stage kind `workflw`"), "{broken}");
    // The run stays: the second time it is in the store.
    let again = bisect(&project, &["v1", "main"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    for said in [
        "skipped",
        "moved between",
        "in a hurry",
        "accuracy 45.0 % [",
        "-55.0 points [",
        "McNemar",
        "from the store",
    ] {
        assert!(again.stdout.contains(said), "no `{said}` in {}", again.stdout);
    }
    assert!(project.ok(&[]).states().values().all(|state| state == "fresh"));
}

#[test]
fn noise_is_called_noise() {
    let project = history();
    let same = bisect(&project, &["v1", "main~4"]);
    assert_eq!(same.code, 2, "{}", same.stdout);
    assert!(same.stdout.contains("cannot be told apart at 95 %"), "{}", same.stdout);
    // One answer of forty is lost: that may be chance.
    git(&project, &["checkout", "--quiet", "-b", "little", "v1"]);
    project.edit("pipelines/bench.toml", "reply = \"39\"", "reply = \"0\"");
    project.ok(&[]);
    git(&project, &["commit", "--quiet", "--all", "--message=one less"]);
    let little = bisect(&project, &["v1", "little"]);
    assert_eq!(little.code, 2, "{}", little.stdout);
    assert!(little.stdout.contains("-2.5 points"), "{}", little.stdout);
    assert!(little.stdout.contains("hint: so many rows show a difference of"), "{}", little.stdout);
}

#[test]
fn what_cannot_be_bisected_is_refused() {
    let project = history();
    git(&project, &["checkout", "--quiet", "-b", "other", "v1"]);
    git(&project, &["commit", "--quiet", "--allow-empty", "--message=elsewhere"]);
    for (args, why) in [
        (&["v1", "v1"][..], "are the same commit"),
        (&["other", "main"][..], "is not on the line of first parents"),
        (&["main", "v1"][..], "the older one comes first"),
        (&["v1", "main", "--metric", "f2"][..], "has no metric `f2` (known: `accuracy`"),
        (&["v1", "main", "--stage", "asks"][..], "has no workflow `asks`"),
        (&["v1", "nowhere"][..], "`nowhere`"),
        (&["v1", "main~2"][..], "the store has no results of it; `--run` runs it"),
        (&["v1", "main~3"][..], "unknown stage kind"),
    ] {
        let ran = bisect(&project, args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stdout);
        assert!(ran.stderr.contains(why), "{args:?}: {}", ran.stderr);
    }
}
