//! Outcomes, failures and agents.

use super::project::Project;

fn outcomes(replies: &str, workflow: &str) -> serde_json::Value {
    let project = Project::with(workflow, replies);
    project.apply(&[]).result("ask")
}

#[test]
fn what_is_no_answer_is_counted_apart_from_wrong() {
    let replies = r#"replies = [
        { when = "What is 1 ", reply = "Answer: 1" },
        { when = "What is 2 ", reply = "Answer: 3" },
        { when = "What is 3 ", reply = "Step 1: well", finish = "length" },
        { when = "What is 4 ", reply = "  " },
        { when = "What is 5 ", reply = "no idea" },
        { when = "What is 6 ", reject = "content policy" },
        { when = "What is 7 ", reply = "Answer: 7", finish = "content_filter" },
        { reply = "Answer: 0" },
    ]"#;
    let result = outcomes(replies, "method = \"cot\"");
    let expected = serde_json::json!({
        "answered": 5, "truncated": 1, "empty": 1, "unparsable": 1, "refused": 2,
    });
    assert_eq!(result["outcomes"], expected);
    // Right: 1 and the zero of the last rule. Wrong: 2, 8, 9.
    assert_eq!(result["metrics"]["accuracy"], 0.4);
    assert_eq!(result["metrics"]["accuracy_all"], 0.2);
}

const FLAKY: &str = r#"replies = [{ when = "What is 3 ", fail = "503 busy" }, { reply = "0" }]"#;

#[test]
fn a_failed_sample_is_never_remembered() {
    let project = Project::with("fail_on_error = false\nmax_retries = 0", FLAKY);
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    assert_eq!(ran.result("ask")["outcomes"]["provider_error"], 1);
    assert!(ran.stderr.contains("1 of 10 samples failed, first `q3`: 503 busy"), "{}", ran.stderr);
    assert!(project.path("out/bench/report/report.html").exists(), "the others are reported");
    // The same engine recovers: the script is another, so take one whose only difference is the failure.
    let again = project.apply(&[]);
    assert_eq!((again.disk(), again.live()), (9, 0), "only the failed one is tried again");
}

#[test]
fn failure_policies() {
    let run = |policy: &str| {
        let project = Project::with(
            &format!("fail_on_error = {policy}\nmax_retries = 0\nconcurrency = 1"),
            FLAKY,
        );
        let ran = project.apply(&[]);
        assert_eq!(ran.code, 1, "{policy}");
        ran.states()["ask"].clone()
    };
    assert_eq!(run("true"), "failed");
    assert_eq!(run("1"), "failed");
    assert_eq!(run("0.05"), "failed");
    assert_eq!(run("2"), "ran");
    assert_eq!(run("0.5"), "ran");
    assert_eq!(run("false"), "ran");
}

#[test]
fn a_passing_failure_is_tried_again() {
    let project = Project::with("max_retries = 2", "replies = [{ fail = \"503 busy\" }]");
    project.rows(1);
    let ran = project.apply(&[]);
    assert!(ran.stderr.contains("503 busy (after 3 attempts)"), "{}", ran.stderr);
}

#[test]
fn after_the_first_failure_nothing_more_is_sent() {
    let replies = "latency = \"500ms\"\nreplies = [{ when = \"What is 0 \", fail = \"401 no key\" }, \
        { when = \"What is\", reply = \"Action: calculator[1]\" }, { reply = \"Action: calculator[2]\" }]";
    let project = Project::with("method = \"react\"\nmax_retries = 0\nconcurrency = 4", replies);
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    // Four were under way when the first of them failed; none of them gets a second turn sent after that.
    let plan = project.forge(&["plan", "pipelines/bench.toml"]);
    assert_eq!(plan.code, 0, "{}", plan.stderr);
    let journal = std::fs::read_dir(project.path(".forge/journal")).unwrap();
    let lines: usize = journal
        .flatten()
        .map(|log| {
            std::fs::read_to_string(log.path()).unwrap().matches("\"kind\":\"request\"").count()
        })
        .sum();
    assert!(lines <= 7, "{lines} requests were answered");
}

#[test]
fn a_slow_engine_meets_the_time_out() {
    let project = Project::with(
        "attempt_timeout = \"20ms\"\nmax_retries = 0",
        "latency = \"5s\"\nreplies = [{ reply = \"0\" }]",
    );
    let ran = project.apply(&[]);
    assert!(ran.stderr.contains("no answer within 20ms"), "{}", ran.stderr);
}

#[test]
fn equal_requests_in_flight_are_asked_once() {
    // Different rows, the same question after rendering: distinct replicas keep them apart; two stages
    // with the same engine and settings share what the first has asked.
    let project = Project::with("", super::project::REPLIES);
    project.write(
        "pipelines/bench.toml",
        &(project.read("pipelines/bench.toml")
            + "\n[stage.again]\nextends = \"ask\"\nscorers = [\"f1\"]\n"),
    );
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 10, "{}", ran.done()["requests"]);
    assert_eq!(
        project.ok(&["--no-cache"]).live(),
        10,
        "asked anew once, and not once for each stage"
    );
    assert_eq!(project.ok(&["--force", "again"]).states()["ask"], "fresh");
}

fn agent(replies: &str, workflow: &str) -> (serde_json::Value, serde_json::Value) {
    let project = Project::with(&format!("method = \"react\"\n{workflow}"), replies);
    project.rows(1);
    project.write("fixtures/kb.jsonl", "{\"key\": \"the answer\", \"value\": \"0\"}\n");
    let ran = project.ok(&[]);
    let report: serde_json::Value =
        serde_json::from_str(&project.read("out/bench/report/report.json")).unwrap();
    let sample = report["cells"][0]["samples"][0]["sample"].clone();
    (ran.result("ask"), sample)
}

#[test]
fn an_agent_calls_tools_until_it_knows() {
    let replies = r#"replies = [
        { when = "What is", reply = "Thought: add\nAction: calculator[(4 + 6) * 5 - 50]" },
        { when = "Observation: 0", reply = "Thought: check\nAction: lookup[The Answer]\nObservation: 7" },
        { reply = "never" },
    ]"#;
    // The lookup gives "0" too, so the second observation meets the same rule; the third same action ends it.
    let (result, sample) = agent(replies, "lookup = \"fixtures/kb.jsonl\"");
    assert_eq!(result["outcomes"]["unparsable"], 1);
    let trace = &sample["steps"][0]["trace"];
    assert_eq!(trace["termination_reason"], "loop_detected");
    assert_eq!(trace["steps"][0]["observation"], "0");
    assert_eq!(trace["steps"][1]["observation"], "0", "the model's own observation is cut off");
    assert_eq!(trace["steps"][0]["action_input"], "(4 + 6) * 5 - 50");
}

#[test]
fn an_agent_recovers_from_malformed_turns_and_unknown_tools() {
    let replies = r#"replies = [
        { when = "What is", reply = "Let me think." },
        { when = "write Action:", reply = "Thought: look\nAction: google[zero]" },
        { when = "unknown tool `google`; tools: calculator", reply = "Action: calculator[1/0]" },
        { when = "error: division by zero", reply = "Thought: I know.\nFinal Answer: **0**." },
    ]"#;
    let (result, sample) = agent(replies, "");
    assert_eq!(result["metrics"]["accuracy"], 1.0, "{sample:#}");
    let trace = &sample["steps"][0]["trace"];
    assert_eq!(trace["termination_reason"], "answer");
    assert_eq!(trace["steps"].as_array().unwrap().len(), 4);
}

#[test]
fn an_agent_stops_at_its_cap() {
    let replies = r#"replies = [
        { when = "What is", reply = "Action: calculator[1]" },
        { when = "Observation: 1", reply = "Action: calculator[2]" },
        { reply = "Action: calculator[3]" },
    ]"#;
    let (result, sample) = agent(replies, "max_iterations = 2");
    assert_eq!(result["outcomes"]["unparsable"], 1);
    assert_eq!(sample["steps"][0]["trace"]["termination_reason"], "max_iterations");
    assert_eq!(sample["detail"], "no final answer in 2 turns");
}

#[test]
fn react_turns_batching_off_and_says_so() {
    let project = Project::with(
        "method = \"react\"\nbatch_size = 8",
        "replies = [{ reply = \"Final Answer: 0\" }]",
    );
    let plan = project.forge(&["plan", "pipelines/bench.toml"]).stdout;
    assert!(
        plan.contains("1 samples in flight") && plan.contains("batching is off with react"),
        "{plan}"
    );
    project.ok(&[]);
    let report = project.read("out/bench/report/report.md");
    let html = project.read("out/bench/report/report.html");
    assert!(html.contains("batching is off with react"), "{report}");
}

#[test]
fn a_model_in_parts_is_named_by_the_first_and_needs_all() {
    let project = Project::asking("", "model = \"m-00001-of-00003.gguf\"");
    for part in ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf"] {
        project.write(part, "GGUF");
    }
    let refused = |words: &str| {
        let ran = project.forge(&["plan", "pipelines/bench.toml"]);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
        assert!(ran.stderr.contains("pipelines/bench.toml:"), "{}", ran.stderr);
    };
    refused(
        "`m-00001-of-00003.gguf` is the first of 3 files of a model, and `m-00003-of-00003.gguf` is not",
    );
    project.edit("pipelines/bench.toml", "m-00001-of", "m-00002-of");
    refused("`m-00002-of-00003.gguf` is part 2 of a model in 3 files; name the first, `m-00001-of");
    let hub = format!("hub = \"o/n\"\nrevision = \"{}\"\nfile = \"q/m-", "a".repeat(40));
    project.edit("pipelines/bench.toml", "model = \"m-", &hub);
    refused("name the first, `q/m-00001-of-00003.gguf`");
    // All of them are what the engine is: another last part is another model.
    let project = Project::asking("", "model = \"m-00001-of-00002.gguf\"");
    project.write("m-00001-of-00002.gguf", "GGUF");
    let key = |last: &str| {
        project.write("m-00002-of-00002.gguf", last);
        let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]);
        assert_eq!(plan.code, 0, "{}", plan.stderr);
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
        let nodes = plan.as_array().unwrap();
        nodes.iter().find(|node| node["name"] == "ask").unwrap()["key"].clone()
    };
    let one = key("one");
    assert!(one.is_string() && one != key("another"));
    assert_eq!(one, key("one"));
}

#[test]
fn an_engine_that_is_another_by_name_alone_shares_it_and_says_so() {
    let declared = |name: &str, price: u32| {
        format!(
            "\n[stage.{name}]\nkind = \"engine\"\nbackend = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\n\
             model = \"m\"\nprovider = \"p\"\nprice = {{ input = {price}, output = 1 }}\n"
        )
    };
    let project = Project::with("", "replies = [{ reply = \"0\" }]");
    let manifest = project.read("pipelines/bench.toml");
    let warned = |prices: [u32; 2], command: &str| {
        let text = format!("{manifest}{}{}", declared("a", prices[0]), declared("b", prices[1]));
        project.write("pipelines/bench.toml", &text);
        let ran = project.forge(&[command, "pipelines/bench.toml"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stderr.matches("gives the same answers as `a`, and shares it: settings").count()
    };
    // Before anything is paid for, and while it is.
    assert_eq!((warned([1, 2], "plan"), warned([1, 2], "apply")), (1, 1));
    assert_eq!(warned([1, 1], "plan"), 0);
}
