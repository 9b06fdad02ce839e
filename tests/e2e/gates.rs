//! Gates: what passes, what does not, against what, and that none of it is in a key.

use std::process::Command;

use serde_json::{Value, json};

use super::project::{Project, REPLIES, Ran};
use super::server::{Server, right};

const MANIFEST: &str = "pipelines/bench.toml";

/// Adds a gate to the manifest.
fn gated(project: &Project, gate: &str) {
    let text = project.read(MANIFEST);
    let text = text.split("\n[gate.").next().unwrap();
    project.write(MANIFEST, &format!("{text}\n{gate}\n"));
}

fn quality(project: &Project, thresholds: &str) {
    gated(project, &format!("[gate.quality]\nsamples = \"ask\"\n{thresholds}"));
}

fn verdicts(ran: &Ran) -> Vec<Value> {
    ran.done()["gates"].as_array().unwrap().clone()
}

/// How the only threshold of a gate fares: the finding, and whether it passed.
fn finding(project: &Project, thresholds: &str) -> (i32, String, Value) {
    quality(project, thresholds);
    let ran = project.apply(&[]);
    assert!(!ran.stdout.is_empty(), "{}", ran.stderr);
    let verdict = verdicts(&ran).remove(0);
    (ran.code, verdict["finding"].as_str().unwrap().to_owned(), verdict)
}

fn git(project: &Project, args: &[&str]) {
    let output = Command::new("git")
        .args(["-c", "user.name=Forge", "-c", "user.email=forge@example.org"])
        .args(args)
        .current_dir(project.root())
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn commit(project: &Project, message: &str) {
    git(project, &["add", "-A"]);
    git(project, &["commit", "-q", "-m", message]);
}

/// In git, with 300 questions that all ask for a seven; who is told to guess gets those with a 1 in front wrong.
fn story() -> Project {
    let replies = r#"replies = [{ when = "Guess: What is 1", reply = "8" }, { reply = "7" }]"#;
    let project = Project::with("", replies);
    let row =
        |n| format!("{{\"id\": \"q{n}\", \"question\": \"What is {n} + 0?\", \"answer\": 7}}\n");
    project.write("fixtures/rows.jsonl", &(0..300).map(row).collect::<String>());
    project.edit(MANIFEST, "default = 10", "default = 300");
    project.write(".gitignore", ".forge/\nout/\nother/\n");
    std::fs::remove_dir(project.path(".git")).unwrap();
    git(&project, &["init", "-q", "-b", "main"]);
    project
}

/// Every form of the report says what the gates say.
fn shows(project: &Project, threshold: &str, verdicts: &[Value]) {
    let json: Value = serde_json::from_str(&project.read("out/bench/report/report.json")).unwrap();
    assert_eq!(json["gates"].as_array().unwrap(), verdicts);
    let text = project.read("out/bench/report/report.md");
    assert!(text.contains("## Gates") && text.contains(threshold), "{text}");
    let page = project.read("out/bench/report/report.html");
    let gates = page.split("<section id=\"gates\"").nth(1).unwrap();
    let gates = gates.split("</section>").next().unwrap();
    assert!(gates.contains(&threshold.replace('>', "&gt;")), "{gates}");
    let class = if verdicts[0]["passed"] == true { "right" } else { "wrong" };
    assert!(gates.contains(&format!("result {class}")), "{gates}");
}

const NO_WORSE: &str = "baseline = \"main\"\nmax_drop = 0.01";

#[test]
fn a_branch_that_is_worse_than_main_fails_and_its_fix_passes() {
    let project = story();
    project.ok(&[]);
    commit(&project, "The benchmark with its results");
    // On main nothing has changed, so nothing can have dropped.
    quality(&project, NO_WORSE);
    let ran = project.ok(&[]);
    assert_eq!(verdicts(&ran)[0]["note"], "the same results");
    commit(&project, "A gate");

    git(&project, &["checkout", "-q", "-b", "shorter"]);
    project.edit("templates/qa.toml", "user = \"{{ row", "user = \"Guess: {{ row");
    let ran = project.apply(&[]);
    assert_eq!((ran.code, ran.live()), (100, 300), "{}", ran.stderr);
    let verdict = verdicts(&ran).remove(0);
    // 1, 10 to 19 and 100 to 199 are wrong now.
    assert_eq!(verdict["value"], -111.0 / 300.0);
    assert_eq!(verdict["note"], "300 rows: 0 better, 111 worse");
    assert_eq!(verdict["estimator"], "bonett_price");
    // Bonett and Price (2012): one is added to each kind of discordant pairs.
    let (worse, better, n) = (112.0 / 302.0, 1.0 / 302.0, 302.0);
    let difference: f64 = better - worse;
    let half = 1.959_964 * ((better + worse - difference.powi(2)) / n).sqrt();
    let ci = &verdict["ci"];
    assert!((ci["lower"].as_f64().unwrap() - (difference - half)).abs() < 1e-6, "{ci}");
    assert!((ci["upper"].as_f64().unwrap() - (difference + half)).abs() < 1e-6, "{ci}");
    assert_eq!((&verdict["side"], &verdict["bound"]), (&json!(">"), &json!("lower")));
    assert!(
        ran.stderr.contains("FAIL  quality  ask  accuracy_all − main  -37.0 points"),
        "{}",
        ran.stderr
    );

    // Nothing runs when a threshold moves, and nothing when the gate alone is asked.
    project.edit(MANIFEST, "max_drop = 0.01", "max_drop = 0.5");
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 0);
    let states = ran.states();
    let worked: Vec<_> = states.iter().filter(|(_, state)| *state != "fresh").collect();
    // The report shows what the gates say.
    assert_eq!(worked.len(), 1, "{states:?}");
    assert_eq!(worked[0].0, "report");
    shows(&project, "> -50.0 points", &verdicts(&ran));
    project.edit(MANIFEST, "max_drop = 0.5", "max_drop = 0.01");
    assert_eq!(project.apply(&[]).code, 100);
    shows(&project, "> -1.0 points", std::slice::from_ref(&verdict));
    // Nothing differs now, and `plan` and `explain` know it.
    let plan = project.forge(&["plan", MANIFEST]);
    let fresh = states.len();
    assert!(plan.stdout.contains(&format!("\n{fresh} fresh; ")), "{}", plan.stdout);
    let asked = project.forge(&["gate", MANIFEST, "--json"]);
    assert_eq!(asked.code, 100, "{}", asked.stderr);
    let said: Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!((&said["passed"], &said["gates"][0]), (&json!(false), &verdict));
    commit(&project, "A shorter prompt");

    // Another prompt, and as good: pairs are found by name, for the flows are others.
    project.edit("templates/qa.toml", "Guess: ", "Question: ");
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 300);
    let verdict = verdicts(&ran).remove(0);
    assert_eq!(
        (&verdict["value"], &verdict["note"]),
        (&json!(0.0), &json!("300 rows: 0 better, 0 worse"))
    );
    let lower = verdict["ci"]["lower"].as_f64().unwrap();
    assert!((-0.01..-0.009).contains(&lower), "{lower}");
    commit(&project, "The prompt again");
    git(&project, &["checkout", "-q", "main"]);
    git(&project, &["merge", "-q", "shorter"]);
    assert_eq!(project.ok(&[]).live(), 0);
    // The same from a file of the project; by content nothing pairs, and the reason is told.
    let before = Command::new("git")
        .args(["show", "main~2:pipelines/bench.lock"])
        .current_dir(project.root())
        .output()
        .unwrap();
    project.write("before.lock", &String::from_utf8(before.stdout).unwrap());
    let (code, ..) = finding(&project, "baseline = \"before.lock\"\nmax_drop = 0.01");
    assert_eq!(code, 0);
    let by_content = "baseline = \"before.lock\"\nmax_drop = 0.01\npair_by = \"content\"";
    let (code, found, verdict) = finding(&project, by_content);
    assert_eq!((code, found.as_str()), (100, "not_measured"));
    let why = "different data: 300 rows in `before.lock`, 300 in `ask`, 0 in common";
    assert_eq!(verdict["note"], why);
}

#[test]
fn what_is_not_answered_any_more_is_worse() {
    let project = story();
    project.edit(MANIFEST, "reply = \"8\"", "reply = \"\"");
    project.ok(&[]);
    commit(&project, "All are right");
    project.edit("templates/qa.toml", "user = \"{{ row", "user = \"Guess: {{ row");
    let (code, found, verdict) = finding(&project, NO_WORSE);
    assert_eq!((code, found.as_str()), (100, "failed"));
    assert_eq!((&verdict["measure"], &verdict["value"]), (&json!("accuracy_all"), &json!(-0.37)));
    // Of those that are answered on both sides nothing is worse, and that is said of them.
    let (code, _, verdict) = finding(&project, &format!("{NO_WORSE}\nmetric = \"accuracy\""));
    assert_eq!((code, &verdict["value"]), (100, &json!(0.0)), "{verdict}");
    let note = "189 rows: 0 better, 0 worse; 111 without a score on both sides are left out";
    assert_eq!(verdict["note"], note);
}

#[test]
fn a_baseline_that_cannot_be_had_is_said_before_anything_is_asked() {
    let project = story();
    quality(&project, NO_WORSE);
    let refused = project.apply(&[]);
    assert_eq!((refused.code, refused.stdout.as_str()), (2, ""));
    let why = "this repository has no revision `main`";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
    assert!(refused.stderr.contains("pipelines/bench.toml:36:12"), "{}", refused.stderr);
    commit(&project, "No results yet");
    // There is nothing to be worse than: not measured, which passes where the gate says so.
    let (code, found, verdict) = finding(&project, NO_WORSE);
    assert_eq!((code, found.as_str()), (100, "not_measured"));
    assert_eq!(
        verdict["note"],
        "`main` has no `pipelines/bench.lock`: it was never committed there"
    );
    let (code, found, _) = finding(&project, &format!("{NO_WORSE}\nunmeasured = \"pass\""));
    assert_eq!((code, found.as_str()), (0, "not_measured"));
    commit(&project, "The results");
    let refused = project.apply(&["--store", "other"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (2, ""));
    let why = "the store has no results of `ask` as of `main` (key ";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
    assert!(refused.stderr.contains("run `forge apply` there"), "{}", refused.stderr);
    // A stage of another name.
    project.edit(MANIFEST, "[stage.ask]", "[stage.ask-again]");
    project.edit(MANIFEST, "samples = \"ask\"", "samples = \"ask-again\"");
    let ran = project.ok(&[]);
    assert_eq!(verdicts(&ran)[0]["note"], "`main` has no workflow `ask-again` (known: `ask`)");
}

#[test]
fn a_metric_its_bounds_and_the_share_of_an_outcome() {
    let project = Project::new();
    // Five of ten; Wilson's interval is [0.2366, 0.7634].
    for (thresholds, want) in [
        ("min_accuracy = 0.5", "passed"),
        ("min_accuracy = 0.51", "failed"),
        ("max_accuracy = 0.5", "passed"),
        ("min_accuracy = 0.23\nbound = \"lower\"", "passed"),
        ("min_accuracy = 0.24\nbound = \"lower\"", "failed"),
        ("min_accuracy = 0.76\nbound = \"upper\"", "passed"),
        ("min_accuracy = 0.77\nbound = \"upper\"", "failed"),
        ("min_f1 = 0.5", "passed"),
        ("min_accuracy = 0.5\nreducer = \"majority\"", "passed"),
        ("min_answered = 1", "passed"),
        ("max_truncated = 0", "passed"),
        ("max_cost = 1", "not_measured"),
    ] {
        let (code, found, verdict) = finding(&project, thresholds);
        assert_eq!(found, want, "{thresholds}: {verdict}");
        assert_eq!(code, if want == "passed" { 0 } else { 100 }, "{thresholds}");
    }
    // What the gate shows is what the run shows.
    quality(&project, "min_accuracy = 0.5");
    let ran = project.ok(&[]);
    assert_eq!((&verdicts(&ran)[0]["ci"], ran.live()), (&ran.result("ask")["accuracy_ci"], 0));
    let cut = REPLIES.replace("{ reply = \"0\" }", "{ reply = \"0\", finish = \"length\" }");
    project.edit(MANIFEST, REPLIES, &cut);
    let (code, found, verdict) = finding(&project, "max_truncated = 0.5");
    assert_eq!((code, found.as_str(), &verdict["value"]), (100, "failed", &json!(0.6)));
    let (code, ..) = finding(&project, "max_truncated = 0.6");
    assert_eq!(code, 0);
}

#[test]
fn times_are_of_live_requests_and_cost_is_of_all() {
    let server = Server::start(right);
    let price = "price = { input = 1000, output = 1000 }";
    let project = Project::asking("", &server.engine(price));
    // Ten requests of 9 and 2 tokens.
    quality(&project, "max_cost = 0.11\nmax_p95_ms = 60000\nmax_ttft_p50_ms = 60000");
    let ran = project.apply(&[]);
    let first = verdicts(&ran);
    let by = |name: &str| first.iter().find(|v| v["measure"] == name).unwrap().clone();
    assert!((by("cost")["value"].as_f64().unwrap() - 0.11).abs() < 1e-9, "{}", by("cost"));
    assert_eq!(
        (&by("p95_ms")["finding"], &by("p95_ms")["note"]),
        (&json!("passed"), &json!("10 live requests"))
    );
    // Remembered answers have no speed, and cost what they did.
    project.edit(
        MANIFEST,
        "flows = \"flows\"\nengine",
        "scorers = [\"includes\"]\nflows = \"flows\"\nengine",
    );
    let ran = project.apply(&[]);
    assert_eq!(ran.live(), 0, "{}", ran.stderr);
    let again = verdicts(&ran);
    let by = |name: &str| again.iter().find(|v| v["measure"] == name).unwrap().clone();
    assert!((by("cost")["value"].as_f64().unwrap() - 0.11).abs() < 1e-9, "{}", by("cost"));
    assert_eq!(
        (&by("p95_ms")["finding"], &by("p95_ms")["note"]),
        (&json!("not_measured"), &json!("no request was live"))
    );
    assert_eq!(ran.code, 100);
    quality(&project, "max_p95_ms = 60000\nunmeasured = \"pass\"");
    project.ok(&[]);
}

#[test]
fn every_cell_and_every_group_has_to_pass() {
    let project = Project::new();
    project.edit("templates/qa.toml", "targets =", "tags = [\"kind\"]\ntargets =");
    let row = |n: i32| {
        let kind = if n < 5 { "low" } else { "high" };
        format!(
            "{{\"id\": \"q{n}\", \"question\": \"What is {n} + 0?\", \"answer\": {n}, \"kind\": \"{kind}\"}}\n"
        )
    };
    project.write("fixtures/rows.jsonl", &(0..10).map(row).collect::<String>());
    project.edit(MANIFEST, "flows = \"flows\"\n", "flows = \"flows\"\nmatrix.epochs = [1, 2]\n");
    quality(&project, "min_accuracy = 0.9\nby = \"kind\"");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 100);
    let said: Vec<_> = verdicts(&ran)
        .iter()
        .map(|v| (v["stage"].clone(), v["group"].clone(), v["value"].clone()))
        .collect();
    let group = |kind| json!(["kind", kind]);
    assert_eq!(
        said,
        [
            (json!("ask[epochs=1]"), group("high"), json!(0.0)),
            (json!("ask[epochs=1]"), group("low"), json!(1.0)),
            (json!("ask[epochs=2]"), group("high"), json!(0.0)),
            (json!("ask[epochs=2]"), group("low"), json!(1.0)),
        ]
    );
    gated(
        &project,
        "[gate.one]\nsamples = \"ask[epochs=2]\"\nmin_accuracy = 0.5\n[gate.two]\nsamples = \"ask\"\nmin_accuracy = 0.5",
    );
    assert_eq!(verdicts(&project.ok(&[])).len(), 3);
    quality(&project, "min_accuracy = 0.9\nby = \"sort\"");
    let refused = project.apply(&[]);
    assert_eq!(refused.code, 2);
    let why = "gate `quality`: the flow `q0` has no tag `sort` (known: `kind`)";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
}

#[test]
fn failed_samples_come_before_gates_and_gates_do_not_hide_behind_them() {
    let project = Project::with(
        "max_retries = 0\nfail_on_error = false",
        "replies = [{ when = \"What is 3\", fail = \"500 no\" }, { reply = \"0\" }]",
    );
    quality(&project, "max_provider_error = 0.05");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_eq!(
        (&verdicts(&ran)[0]["finding"], &verdicts(&ran)[0]["value"]),
        (&json!("failed"), &json!(0.1))
    );
}

#[test]
fn a_part_of_a_run_asks_the_gates_of_that_part() {
    let project = Project::new();
    quality(&project, "min_accuracy = 0.9");
    let ran = project.apply(&["--until", "flows"]);
    assert_eq!((ran.code, verdicts(&ran).len()), (0, 0));
    assert!(
        ran.stderr.contains("gates that look at no stage of this run: `quality`"),
        "{}",
        ran.stderr
    );
    let refused = project.forge(&["gate", MANIFEST]);
    assert_eq!(refused.code, 2);
    assert!(
        refused.stderr.contains("`ask` is not up to date in the store: `forge apply` runs it"),
        "{}",
        refused.stderr
    );
    assert_eq!(project.apply(&["--limit", "4"]).code, 0, "the first four are right");
    assert_eq!(project.forge(&["gate", MANIFEST, "--limit", "4"]).code, 0);
    assert_eq!(project.apply(&["--quiet"]).code, 100);
    gated(&project, "");
    let refused = project.forge(&["gate", MANIFEST]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("has no gates"), "{}", refused.stderr);
    assert_eq!(project.apply(&["--junit", "gates.xml"]).code, 2);
}

#[test]
fn junit_and_the_summary_of_a_step_say_the_same() {
    let project = Project::new();
    project.write("summary.md", "before\n");
    gated(
        &project,
        "[gate.quality]\nsamples = \"ask\"\nmin_accuracy = 0.9\nmin_answered = 1\n[gate.money]\nsamples = \"ask\"\nmax_cost = 1\nunmeasured = \"pass\"",
    );
    let ran = Ran::of(
        project
            .command(&["apply", MANIFEST, "--junit", "gates.xml"])
            .env("GITHUB_STEP_SUMMARY", project.path("summary.md"))
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 100, "{}", ran.stderr);
    let xml = project.read("gates.xml");
    for part in [
        "<testsuites name=\"bench\" tests=\"3\" failures=\"1\" errors=\"0\">",
        "<testsuite name=\"quality\" tests=\"2\" failures=\"1\" errors=\"0\" skipped=\"0\">",
        "<testcase name=\"ask: answered ≥ 100.0 %\" classname=\"bench.quality\"/>",
        "<failure message=\"accuracy is 50.0 %, wanted ≥ 90.0 %\">",
        "<testsuite name=\"money\" tests=\"1\" failures=\"0\" errors=\"0\" skipped=\"1\">",
        "<skipped message=\"the engine has no price\">",
    ] {
        assert!(xml.contains(part), "no {part} in\n{xml}");
    }
    let summary = project.read("summary.md");
    assert!(summary.starts_with("before\n### Gates of bench: failed\n"), "{summary}");
    let row = "| FAIL | quality | ask | accuracy | 50.0 % | \\[23.7, 76.3\\] | ≥ 90.0 % |  |";
    assert!(summary.contains(row), "{summary}");
    let lines = [
        "FAIL  quality  ask  accuracy",
        "pass  quality  ask  answered",
        "n/a   money",
        "gates: 1 of 3 thresholds not kept, 1 not measured and let pass",
    ];
    for line in lines {
        assert!(ran.stderr.contains(line), "no `{line}` in {}", ran.stderr);
    }
}

#[test]
fn the_story_of_the_example_ends_well() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gates/story.sh");
    let output = Command::new("sh")
        .args([script, super::project::FORGE])
        .env_remove("FORGE_STORE")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .unwrap();
    let ran = Ran::of(output);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    // Every odd number that begins with a 1: 1, 11 to 19 and 101 to 199.
    let worse = "FAIL  no-worse  ask  accuracy_all − main  -18.7 points";
    assert!(ran.stdout.contains(worse) && ran.stdout.contains("56 worse"), "{}", ran.stdout);
}

#[test]
fn a_run_remembers_what_its_gates_said() {
    let project = Project::new();
    let show = |args: &[&str]| project.forge(&[&["show"], args].concat());
    project.ok(&[]);
    let record: Value = serde_json::from_str(&show(&["--json"]).stdout).unwrap();
    assert!(record.get("gates").is_none(), "a run without gates has none: {record}");
    quality(&project, "min_accuracy = 0.9\nmax_truncated = 0.5");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 100, "{}", ran.stderr);
    let record: Value = serde_json::from_str(&show(&["--json"]).stdout).unwrap();
    assert_eq!(record["gates"], ran.done()["gates"]);
    assert_eq!(
        record["status"], "completed",
        "a gate says what results are, not that they are none"
    );
    let text = show(&[]).stdout;
    for said in [
        "FAIL  quality  ask  accuracy",
        "pass  quality  ask  truncated",
        "gates: 1 of 2 thresholds not kept",
    ] {
        assert!(text.contains(said), "no `{said}` in {text}");
    }
    let watched = project.forge(&["watch"]);
    assert_eq!(watched.code, 100, "as apply ends");
    assert!(watched.stderr.contains("gates: 1 of 2 thresholds not kept"), "{}", watched.stderr);
    // In the log it stands before the end, so that who follows sees it.
    let log = project.forge(&["logs"]).stdout;
    let place = |text: &str| log.find(text).unwrap_or_else(|| panic!("no `{text}` in {log}"));
    assert!(place("gates: 1 of 2 thresholds not kept") < place("completed in"), "{log}");
}

/// What all answers come to together is no mean over rows: it has no interval, and no reducer.
#[test]
fn a_gate_knows_what_all_answers_come_to_together() {
    let project = Project::with("scorers = [\"exact_match\", \"chrf\"]", REPLIES);
    let (code, found, verdict) = finding(&project, "min_corpus_chrf = 0.49");
    assert_eq!((code, found.as_str()), (0, "passed"), "{verdict}");
    assert_eq!((&verdict["measure"], &verdict["ci"]), (&json!("corpus_chrf"), &Value::Null));
    let (code, found, _) = finding(&project, "max_corpus_chrf = 0.49");
    assert_eq!((code, found.as_str()), (100, "failed"));
    for (thresholds, why) in [
        ("min_corpus_bleu = 0.5", "unknown threshold `min_corpus_bleu`"),
        ("min_corpus_chrf = 0.5\nbound = \"lower\"", "`bound` is for thresholds on metrics"),
        (
            "min_chrf = 0.1\nmin_corpus_chrf = 0.5\nbound = \"upper\"",
            "and `corpus_chrf` of gate `quality` has none",
        ),
        (
            "baseline = \"HEAD\"\nmax_drop = 0.1\nmetric = \"corpus_chrf\"",
            "unknown metric `corpus_chrf`",
        ),
    ] {
        quality(&project, thresholds);
        let refused = project.apply(&[]);
        assert_eq!(refused.code, 2, "{thresholds}: {}", refused.stderr);
        assert!(refused.stderr.contains(why), "{thresholds}: {}", refused.stderr);
    }
}
