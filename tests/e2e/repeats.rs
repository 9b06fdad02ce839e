//! Draws of one row, what is made of them, and when enough has been seen.

use serde_json::{Value, json};

use super::project::Project;
use super::server::{Server, right};

/// Five draws: of question 0 all right, of 1 three, of 2 two with as many 9s, of the others none.
const DRAWS: &str = r#"replies = [
    { when = "What is 1 ", draws = ["1", "9", "1", "1", "8"] },
    { when = "What is 2 ", draws = ["9", "2", "2", "9", "7"] },
    { draws = ["0", "0", "0.", "0", "0"] },
]"#;

fn report(project: &Project) -> Value {
    serde_json::from_str(&project.read("out/bench/report/report.json")).unwrap()
}

/// Key and answer of every draw, by flow and epoch.
fn drawn(project: &Project) -> Vec<(String, u64, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |row: Value| {
        let sample = &row["sample"];
        let epoch = sample["epoch"].as_u64().unwrap();
        (text(&sample["flow"]), epoch, text(&sample["key"]), text(&sample["answer"]))
    };
    project.report_rows().into_iter().map(row).collect()
}

#[test]
fn more_epochs_ask_for_the_new_draws_alone() {
    let engine = r#"replies = [{ draws = ["a", "b", "c", "d", "e"] }]"#;
    let project = Project::with("epochs = 3\ntemperature = 1", engine);
    assert_eq!(project.ok(&[]).live(), 30);
    let three = drawn(&project);
    project.edit("pipelines/bench.toml", "epochs = 3", "epochs = 5");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (20, 30));
    let five = drawn(&project);
    assert!(three.iter().all(|draw| five.contains(draw)), "no draw has changed");
    for row in five.chunks(5) {
        let answers: Vec<&str> = row.iter().map(|(.., answer)| answer.as_str()).collect();
        assert_eq!(answers, ["a", "b", "c", "d", "e"], "five draws stay five");
    }
    project.edit("pipelines/bench.toml", "epochs = 5", "epochs = 2");
    assert_eq!(project.ok(&[]).live(), 0);
    assert_eq!(drawn(&project).len(), 20);
}

#[test]
fn draws_survive_a_kill() {
    let engine = |latency: &str| format!("latency = \"{latency}\"\n{DRAWS}");
    let project = Project::with("epochs = 5\nconcurrency = 2", &engine("50ms"));
    let mut child = project.command(&["apply", "pipelines/bench.toml", "--quiet"]).spawn().unwrap();
    project.wait_for_samples(13);
    child.kill().unwrap();
    child.wait().unwrap();
    project.edit("pipelines/bench.toml", "latency = \"50ms\"", "latency = \"0ms\"");
    let ran = project.ok(&[]);
    assert!(ran.disk() >= 13 && ran.disk() + ran.live() == 50, "{} {}", ran.disk(), ran.live());
    let whole = Project::with("epochs = 5\nconcurrency = 2", &engine("0ms"));
    whole.ok(&[]);
    assert_eq!(project.read("pipelines/bench.lock"), whole.read("pipelines/bench.lock"));
}

#[test]
fn reducers_are_made_of_the_draws_and_ask_nothing() {
    let project = Project::with("epochs = 5", DRAWS);
    assert_eq!(project.ok(&[]).live(), 50);
    let reducers = "samples = \"ask\"\nreducers = [\"mean\", \"majority\", \"max\", \"at_least_3\", \"pass@2\", \"pass^2\"]";
    project.edit("pipelines/bench.toml", "samples = \"ask\"", reducers);
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.states()["ask"].as_str()), (0, "fresh"));
    let measures = report(&project)["cells"][0]["measures"].clone();
    let of = |reducer: &str| {
        let all = measures.as_array().unwrap().iter();
        let mut all = all.filter(|m| m["metric"] == "accuracy" && m["reducer"] == reducer);
        all.next().unwrap_or_else(|| panic!("no {reducer} in {measures}")).clone()
    };
    for (reducer, want) in [
        ("mean", 10.0 / 50.0),
        ("majority", 0.2),
        ("max", 0.3),
        ("at_least_3", 0.2),
        ("pass@2", (1.0 + 0.9 + 0.7) / 10.0),
        ("pass^2", (1.0 + 0.3 + 0.1) / 10.0),
    ] {
        let got = of(reducer)["estimate"]["value"].as_f64().unwrap();
        assert!((got - want).abs() < 1e-9, "{reducer}: {got}, not {want}");
    }
    assert_eq!(of("majority")["ties"], 1);
    // Fifty draws of ten rows are ten clusters, here and in the line at the end of a run.
    let mean = &of("mean")["estimate"];
    assert_eq!((&mean["draws"], &mean["clusters"]), (&json!(50), &json!(10)));
    assert_eq!(mean["estimator"], "wilson_clustered");
    assert_eq!(ran.result("ask")["accuracy_ci"], mean["ci"]);
    assert!(project.read("out/bench/report/report.md").contains("accuracy, pass@2"));
    project.edit("pipelines/bench.toml", "pass@2", "pass@6");
    let refused = project.apply(&[]);
    assert_eq!(refused.code, 2);
    let why = "`report`: `pass@6` needs 6 draws of a row, and no workflow has more than 5; raise `epochs`";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
    project.edit("pipelines/bench.toml", "\"pass@6\", ", "");
    project.edit(
        "pipelines/bench.toml",
        "samples = \"ask\"",
        "samples = \"ask\"\ncluster = \"topic\"",
    );
    let refused = project.apply(&[]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("has no tag `topic` (known: none)"), "{}", refused.stderr);
}

/// Two workflows over the same questions, all of which ask for a seven; `replies` of the second one.
fn duel(rows: usize, stop_when: &str, replies: &str) -> Project {
    let project = Project::with("", "replies = [{ reply = \"7\" }]");
    project.write("fixtures/rows.jsonl", &sevens(rows));
    let more = format!(
        "\n[stage.other-engine]\nkind = \"engine\"\nbackend = \"scripted\"\nreplies = [{replies}]\n\n\
         [stage.other]\nkind = \"workflow\"\nflows = \"flows\"\nengine = \"other-engine\"\n{stop_when}\n"
    );
    let manifest = project.read("pipelines/bench.toml") + &more;
    project.write("pipelines/bench.toml", &manifest);
    project.edit("pipelines/bench.toml", "samples = \"ask\"", "samples = [\"ask\", \"other\"]");
    project.edit("pipelines/bench.toml", "default = 10", &format!("default = {rows}"));
    project
}

#[test]
fn two_workflows_are_compared_question_by_question() {
    let project = duel(40, "", "{ when = \"What is 1\", reply = \"8\" }, { reply = \"7\" }");
    project.ok(&[]);
    let comparisons = report(&project)["comparisons"].clone();
    let accuracy = &comparisons[0];
    assert_eq!((&accuracy["a"], &accuracy["b"]), (&json!("ask"), &json!("other")));
    // Questions 1 and 10 to 19 are wrong.
    let result = &accuracy["result"];
    assert_eq!((&result["better_a"], &result["better_b"]), (&json!(11), &json!(0)));
    assert_eq!((&result["rows"], &result["test"]), (&json!(40), &json!("mcnemar_exact")));
    assert_eq!(result["p"], 2.0 / 2048.0);
    assert_eq!(accuracy["p_holm"], result["p"]);
    let paired = ["mcnemar_exact", "mcnemar", "sign_flip_exact", "sign_flip", "t", "betting"];
    for comparison in comparisons.as_array().unwrap() {
        let test = comparison["result"]["test"].as_str().unwrap();
        assert!(paired.contains(&test), "{comparison}");
    }
    assert!(project.read("out/bench/report/report.html").contains("id=\"comparisons\""));
}

#[test]
fn other_data_are_not_compared() {
    let project = duel(10, "", "{ reply = \"7\" }");
    let few = "\n[stage.few]\nextends = \"flows\"\ncount = 4\n";
    let manifest = project.read("pipelines/bench.toml") + few;
    project.write("pipelines/bench.toml", &manifest);
    let other = "[stage.other]\nkind = \"workflow\"\nflows = ";
    let (from, to) = (format!("{other}\"flows\""), format!("{other}\"few\""));
    project.edit("pipelines/bench.toml", &from, &to);
    project.ok(&[]);
    let comparison = &report(&project)["comparisons"][0];
    assert_eq!((&comparison["common"], &comparison["result"]), (&json!(4), &Value::Null));
    let why = "different data: 10 rows in `ask`, 4 in `other`, 4 in common";
    assert_eq!(comparison["refused"], why);
    assert!(project.read("out/bench/report/report.html").contains(why));
}

/// Questions that all ask for a seven.
fn sevens(rows: usize) -> String {
    let row =
        |n| format!("{{\"id\": \"q{n}\", \"question\": \"What is {n} + 0?\", \"answer\": 7}}\n");
    (0..rows).map(row).collect()
}

#[test]
fn a_workflow_stops_at_the_same_sample_whatever_comes_back_first() {
    // Four of five are right.
    let replies = "replies = [{ when = \"1 + 0?\", reply = \"x\" }, { when = \"2 + 0?\", reply = \"x\" }, \
                   { reply = \"7\" }]";
    let project = |workflow: &str| {
        let rule = format!("stop_when = {{ ci_half_width = 0.1 }}\n{workflow}");
        let project = Project::with(&rule, replies);
        project.write("fixtures/rows.jsonl", &sevens(1000));
        project.edit("pipelines/bench.toml", "default = 10", "default = 1000");
        project
    };
    let (one, eight) = (project("concurrency = 1"), project("concurrency = 8"));
    let ran = one.ok(&[]);
    eight.ok(&[]);
    assert_eq!(one.read("pipelines/bench.lock"), eight.read("pipelines/bench.lock"));
    let stopping = ran.result("ask")["stopping"].clone();
    let samples = stopping["samples"].as_u64().unwrap();
    // At 80 % Wilson's interval is as narrow after about 61 answers, and looking costs some more.
    assert!((61..200).contains(&samples), "{stopping}");
    assert_eq!((&stopping["of_samples"], &stopping["watched"]), (&json!(1000), &json!(true)));
    assert_eq!(ran.result("ask")["accuracy_by"], "beta_binomial");
    let said = format!("stopped after {samples} of 1000 samples: accuracy is known to ±");
    assert!(one.read("out/bench/report/report.md").contains(&said));
    assert!(one.read("out/bench/report/report.html").contains(&said));
    assert!(ran.live() <= samples + 4, "one at a time goes hardly further");
    assert_eq!(report(&one)["cells"][0]["measures"][0]["estimate"]["estimator"], "beta_binomial");
    // The rest of the life of such a stage: fresh, verified, and longer when more is asked for.
    let again = one.ok(&[]);
    assert_eq!((again.live(), again.states()["ask"].as_str()), (0, "fresh"));
    assert_eq!(again.result("ask")["stopping"], stopping);
    let verified = one.forge(&["verify", "pipelines/bench.toml"]);
    assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
    one.edit("pipelines/bench.toml", "ci_half_width = 0.1", "ci_half_width = 0.05");
    let plan = one.forge(&["plan", "pipelines/bench.toml"]);
    assert!(plan.stdout.contains("or fewer: `stop_when` may hold before"), "{}", plan.stdout);
    let more = one.ok(&[]);
    let longer = more.result("ask")["stopping"]["samples"].as_u64().unwrap();
    assert!(longer > 2 * samples && more.disk() >= samples, "{longer} after {samples}");
    assert!(more.live() + more.disk() <= longer + 4);
}

#[test]
fn a_decided_comparison_stops_and_so_does_none() {
    let stop = "stop_when = { decided_against = \"ask\", margin = 0.1 }";
    let worse = duel(500, stop, "{ when = \"3\", reply = \"8\" }, { reply = \"7\" }");
    let ran = worse.ok(&[]);
    let stopping = ran.result("other")["stopping"].clone();
    let reason = stopping["reason"].as_str().unwrap();
    assert!(reason.starts_with("`other` has less accuracy than `ask`, decided over"), "{reason}");
    assert!(stopping["samples"].as_u64().unwrap() < 500, "{stopping}");
    let comparison = &report(&worse)["comparisons"][0];
    let result = &comparison["result"];
    assert_eq!((&result["test"], &result["rows"]), (&json!("betting"), &stopping["rows"]));
    assert!(result["p"].as_f64().unwrap() <= 0.05 && result["ci"]["upper"].as_f64().unwrap() < 0.0);
    let same = duel(500, stop, "{ reply = \"7\" }");
    let stopping = same.ok(&[]).result("other")["stopping"].clone();
    let reason = stopping["reason"].as_str().unwrap();
    assert!(reason.starts_with("`other` is, to the margin, as good as `ask`"), "{reason}");
}

#[test]
fn a_budget_of_tokens_is_held_and_one_that_cannot_be_is_refused() {
    let server = Server::start(right);
    let project = Project::asking("stop_when = { tokens = 50 }", &server.engine(""));
    let ran = project.ok(&[]);
    let stopping = ran.result("ask")["stopping"].clone();
    let samples = stopping["samples"].as_u64().unwrap();
    // 9 and 2 tokens each.
    assert_eq!(samples, 5, "{stopping}");
    assert_eq!(stopping["watched"], false, "tokens are no scores");
    assert_eq!(ran.result("ask")["accuracy_by"], "wilson");
    // Remembered answers cost what they did.
    project.edit("pipelines/bench.toml", "tokens = 50", "tokens = 49");
    assert_eq!(project.ok(&[]).live(), 0);
    for (rule, why) in [
        ("tokens = 50", "nobody counted the tokens"),
        ("budget = 1.5", "the engine `engine` has no price"),
    ] {
        let project = Project::with(&format!("stop_when = {{ {rule} }}"), DRAWS);
        let refused = project.apply(&[]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
}
