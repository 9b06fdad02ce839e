//! What is asked again after a change, and what is not.

use super::project::{Project, REPLIES};

#[test]
fn the_second_run_asks_nothing_and_loads_nothing() {
    let project = Project::new();
    let first = project.ok(&[]);
    assert_eq!(first.live(), 10);
    assert!(first.loaded_an_engine());
    assert!(first.stderr.contains("Regenerating expanded flows"));
    let second = project.ok(&[]);
    assert_eq!((second.live(), second.disk()), (0, 0));
    assert!(!second.loaded_an_engine());
    assert!(second.stderr.contains("Using cached expanded flows"));
    assert!(second.states().values().all(|state| state == "fresh"), "{:?}", second.states());
    assert_eq!(first.result("ask")["metrics"], second.result("ask")["metrics"]);
}

#[test]
fn one_changed_row_asks_for_that_flow_alone() {
    let project = Project::new();
    project.ok(&[]);
    project.edit("fixtures/rows.jsonl", "What is 7 + 0?", "What is 7 plus 0?");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (1, 9));
    let live: Vec<_> = ran
        .events()
        .into_iter()
        .filter(|e| e["event"] == "sample_finished" && e["served_from"] == "live")
        .map(|event| event["flow"].clone())
        .collect();
    assert_eq!(live, ["q7"]);
}

#[test]
fn a_changed_target_scores_again_and_asks_nothing() {
    let project = Project::new();
    let before = project.ok(&[]).metric("ask", "accuracy");
    project.edit("fixtures/rows.jsonl", "\"answer\": 7", "\"answer\": 0");
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 0);
    assert!((ran.metric("ask", "accuracy") - before - 0.1).abs() < 1e-9);
}

#[test]
fn a_template_that_renders_the_same_bytes_asks_nothing() {
    let project = Project::new();
    project.ok(&[]);
    project.edit("templates/qa.toml", "{{ row.question }}", "{{ row.question ~ '' }}");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (0, 10));
    let states = ran.states();
    assert_eq!(states["flows"], "ran");
    assert_eq!(
        (&*states["ask"], &*states["report"]),
        ("fresh", "fresh"),
        "the change stops at the flows"
    );
    project.edit("templates/qa.toml", "id = \"row.id\"", "# a comment\nid = \"row.id\"");
    assert!(project.ok(&[]).states().values().all(|state| state == "fresh"));
}

#[test]
fn more_and_fewer_flows_ask_nothing_new() {
    let project = Project::new();
    project.ok(&[]);
    assert_eq!(project.ok(&["--set", "num_flows=4"]).live(), 0);
    let all = project.ok(&[]);
    assert_eq!(all.live(), 0);
    assert!(all.states().values().all(|state| state == "fresh"));
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    let ran = super::project::Ran::of(command.env("NUM_FLOWS", "6").output().unwrap());
    assert_eq!((ran.live(), ran.result("ask")["samples"].as_u64()), (0, Some(6)));
    assert_eq!(project.ok(&["--limit", "3"]).result("ask")["samples"], 3);
}

#[test]
fn a_missing_output_is_restored_and_an_edited_one_with_a_warning() {
    let project = Project::new();
    project.ok(&[]);
    let report = "out/bench/report/report.html";
    let whole = project.read(report);
    std::fs::remove_file(project.path(report)).unwrap();
    let ran = project.ok(&[]);
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    assert_eq!((ran.live(), project.read(report) == whole), (0, true));
    assert_eq!(ran.states()["report"], "fresh");
    project.write(report, "edited");
    let ran = project.ok(&[]);
    assert_eq!(project.read(report), whole);
    assert!(ran.stderr.contains("`out/bench/report/report.html` was edited"), "{}", ran.stderr);
    // Other reports of its own are nobody's edits.
    for args in [&[][..], &["--limit", "3"], &[]] {
        let ran = project.ok(args);
        assert!(!ran.stderr.contains("edited"), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn every_semantic_setting_asks_again() {
    let settings = [
        "temperature = 0.5",
        "top_p = 0.5",
        "top_k = 5",
        "max_tokens = 5",
        "stop = [\"x\"]",
        "seed = 7",
        "instructions = \"Be brief.\"",
        "method = \"cot\"",
        "epochs = 2",
    ];
    let project = Project::new();
    project.ok(&[]);
    for setting in settings {
        project.manifest(setting, REPLIES);
        let ran = project.ok(&[]);
        assert_eq!(ran.live(), 10, "{setting}");
        assert_eq!(ran.states()["ask"], "ran", "{setting}");
    }
    project.manifest("", &REPLIES.replace("reply = \"0\"", "reply = \"9\""));
    assert_eq!(project.ok(&[]).live(), 10, "another script is another engine");
}

#[test]
fn settings_of_agents_and_of_templates_ask_again() {
    let replies = "replies = [{ reply = \"Final Answer: 0\" }]";
    let agent = |settings: &str| format!("method = \"react\"\n{settings}");
    let project = Project::with(&agent(""), replies);
    project.write("fixtures/kb.jsonl", "{\"key\": \"a\", \"value\": \"b\"}\n");
    project.ok(&[]);
    let lookup = "lookup = \"fixtures/kb.jsonl\"";
    project.manifest(&agent(lookup), replies);
    assert_eq!(project.ok(&[]).live(), 10, "another tool is another prompt");
    // The same prompts: the samples are made again, and no request is asked.
    project.manifest(&agent(&format!("{lookup}\nmax_iterations = 3")), replies);
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (0, 10));
    project.write("fixtures/kb.jsonl", "{\"key\": \"a\", \"value\": \"c\"}\n");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (0, 10));
    for line in [
        "max_tokens = 7",
        "stop = [\"#\"]",
        "system = \"Be kind.\"",
        "[[step.shot]]\nuser = \"1\"\nanswer = \"2\"",
    ] {
        let template = project.read("templates/qa.toml") + line + "\n";
        project.write("templates/qa.toml", &template);
        assert_eq!(project.ok(&[]).live(), 10, "{line}");
    }
}

#[test]
fn no_execution_setting_asks_again() {
    let project = Project::new();
    project.ok(&[]);
    let settings = [
        "concurrency = 1",
        "batch_size = 3",
        "attempt_timeout = \"5s\"",
        "max_retries = 9",
        "cache_max_size = 16",
        "fail_on_error = 0.5",
    ];
    for setting in settings {
        project.manifest(setting, REPLIES);
        let ran = project.ok(&[]);
        assert!(
            ran.states().values().all(|state| state == "fresh"),
            "{setting}: {:?}",
            ran.states()
        );
    }
    project.manifest("", &format!("latency = \"5ms\"\n{REPLIES}"));
    assert!(project.ok(&[]).states().values().all(|state| state == "fresh"), "latency");
    for args in [&["--verbose"][..], &["--jobs", "1"]] {
        let ran = project.ok(args);
        assert!(ran.states().values().all(|state| state == "fresh"), "{args:?}");
    }
}

#[test]
fn a_scorer_edit_scores_again_and_asks_nothing() {
    let project = Project::new();
    project.ok(&[]);
    project.manifest("scorers = [\"numeric\"]", REPLIES);
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (0, 10));
    assert_eq!(ran.metric("ask", "numeric"), 0.5);
}

#[test]
fn epochs_are_draws_of_their_own() {
    let project = Project::with("epochs = 3", REPLIES);
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.result("ask")["samples"].as_u64()), (30, Some(30)));
    project.manifest("epochs = 5", REPLIES);
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (20, 30));
}

#[test]
fn equal_rows_stay_distinct() {
    let project = Project::new();
    let row = "{\"id\": \"same\", \"question\": \"What is 1 + 0?\", \"answer\": 1}\n";
    project.write("fixtures/rows.jsonl", &row.repeat(3));
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.result("ask")["samples"].as_u64()), (3, Some(3)));
}

#[test]
fn force_asks_again_and_the_new_answers_count() {
    let project = Project::new();
    project.ok(&[]);
    let forced = project.ok(&["--force", "ask"]);
    assert_eq!(forced.live(), 10);
    assert_eq!(forced.states()["flows"], "fresh");
    assert_eq!(project.ok(&["--no-cache"]).live(), 10);
    assert_eq!(project.ok(&[]).live(), 0);
}

#[test]
fn cache_off_asks_every_time() {
    let project = Project::with("cache = false", REPLIES);
    assert_eq!(project.ok(&[]).live(), 10);
    assert_eq!(project.ok(&[]).live(), 10);
}

#[test]
fn frozen_runs_on_the_store_alone() {
    let project = Project::new();
    let miss = project.apply(&["--frozen"]);
    assert_eq!(miss.code, 1);
    assert!(miss.stderr.contains("the run is frozen"), "{}", miss.stderr);
    project.ok(&[]);
    project.ok(&["--frozen"]);
    project.manifest("temperature = 1", REPLIES);
    let miss = project.apply(&["--frozen"]);
    assert_eq!(miss.code, 1);
    assert!(miss.stderr.contains("`ask` would have to run"), "{}", miss.stderr);
    assert!(miss.stderr.contains("temperature: 0.0 -> 1.0"), "{}", miss.stderr);
}

#[test]
fn explain_names_the_fields_that_differ() {
    let project = Project::new();
    project.ok(&[]);
    project.manifest("max_tokens = 512", REPLIES);
    let ran = project.forge(&["explain", "pipelines/bench.toml", "ask"]);
    assert!(ran.stdout.contains("max_tokens: 256 -> 512"), "{}", ran.stdout);
    let ran = project.forge(&["explain", "pipelines/bench.toml", "ask/q3", "--json"]);
    assert!(ran.stdout.contains("\"path\": \"max_tokens\""), "{}", ran.stdout);
    project.manifest("", REPLIES);
    project.edit("fixtures/rows.jsonl", "What is 3 + 0?", "What is three?");
    let same = project.forge(&["explain", "pipelines/bench.toml", "ask/q4"]);
    assert!(same.stdout.contains("nothing differs"), "{}", same.stdout);
    let other = project.forge(&["explain", "pipelines/bench.toml", "ask/q3"]);
    assert!(other.stdout.contains("flow: "), "{}", other.stdout);
    let none = project.forge(&["explain", "pipelines/bench.toml", "ask/q99"]);
    assert_eq!(
        (none.code, none.stderr.contains("has no flow `q99`")),
        (2, true),
        "{}",
        none.stderr
    );
}

#[test]
fn plan_counts_what_is_answered_already() {
    let project = Project::new();
    let plan = |project: &Project| project.forge(&["plan", "pipelines/bench.toml"]).stdout;
    assert!(plan(&project).contains("0 answered from the store (0 requests), 10 to ask"));
    project.ok(&["--set", "num_flows=4"]);
    assert!(
        plan(&project).contains("4 answered from the store (4 requests), 6 to ask"),
        "{}",
        plan(&project)
    );
    project.ok(&[]);
    assert!(
        plan(&project).ends_with("10 requests already answered, 0 samples to ask\n"),
        "{}",
        plan(&project)
    );
    let dry = project.forge(&["apply", "pipelines/bench.toml", "--dry-run"]);
    assert_eq!(dry.stdout, plan(&project));
}
