//! Fixtures of every format, templates of several steps.

use super::project::Project;

const ECHO: &str = "replies = [{ when = \"Paris\", reply = \"Paris\" }, { reply = \"other\" }]";

fn with_fixture(name: &str, text: &str) -> Project {
    let project = Project::with("", ECHO);
    project.write(name, text);
    project.edit("pipelines/bench.toml", "fixtures/rows.jsonl", name);
    project.edit("pipelines/bench.toml", "count = \"{{ params.num_flows }}\"", "");
    project
}

fn flows(project: &Project) -> Vec<String> {
    let ran = project.ok(&["--no-cache"]);
    let finished = ran.events().into_iter().filter(|event| event["event"] == "sample_finished");
    let mut flows: Vec<_> = finished
        .map(|event| (event["index"].as_u64(), event["flow"].as_str().unwrap().to_owned()))
        .collect();
    flows.sort();
    flows.into_iter().map(|(_, flow)| flow).collect()
}

#[test]
fn csv_json_and_json_lines_give_the_same_flows() {
    let csv = "id,question,answer\na,\"Is it Paris, or not?\",Paris\nb,Else?,other\n";
    let json = r#"[{"id": "a", "question": "Is it Paris, or not?", "answer": "Paris"},
        {"id": "b", "question": "Else?", "answer": "other"}]"#;
    let lines = "{\"id\": \"a\", \"question\": \"Is it Paris, or not?\", \"answer\": \"Paris\"}\n\n\
        {\"id\": \"b\", \"question\": \"Else?\", \"answer\": \"other\"}";
    let project = with_fixture("fixtures/x.csv", csv);
    assert_eq!(project.ok(&[]).live(), 2);
    for (name, text) in [("fixtures/x.json", json), ("fixtures/x.jsonl", lines)] {
        project.write(name, text);
        let before = if name.ends_with("json") { "fixtures/x.csv" } else { "fixtures/x.json\"" };
        let after = if name.ends_with("json") { name.to_owned() } else { format!("{name}\"") };
        project.edit("pipelines/bench.toml", before, &after);
        let ran = project.ok(&[]);
        assert_eq!(ran.live(), 0, "{name}");
        assert_eq!(ran.metric("ask", "accuracy"), 1.0);
    }
}

#[test]
fn a_folder_is_one_row_in_sorted_order() {
    let project = with_fixture("fixtures/repo/b.txt", "second\n");
    project.write("fixtures/repo/a/z.txt", "first");
    project.write("fixtures/repo/.hidden", "never");
    project.edit("pipelines/bench.toml", "fixtures/repo/b.txt", "fixtures/repo");
    project.write(
        "templates/qa.toml",
        "id = \"row.name\"\n[[step]]\nid = \"read\"\nuser = \"{{ row.content }}\"\n",
    );
    assert_eq!(flows(&project), ["repo"]);
    let report = project.read("out/bench/report/report.json");
    assert!(report.contains("==> a/z.txt <==\\nfirst\\n==> b.txt <==\\nsecond\\n"), "{report}");
    assert!(!report.contains("never"));
}

#[test]
fn shuffling_keeps_the_order_of_any_two_rows() {
    let project = Project::new();
    let seed = "count = \"{{ params.num_flows }}\"\nshuffle_seed = 7";
    project.edit("pipelines/bench.toml", "count = \"{{ params.num_flows }}\"", seed);
    let all = flows(&project);
    assert_ne!(all, (0..10).map(|n| format!("q{n}")).collect::<Vec<_>>());
    project.edit(
        "fixtures/rows.jsonl",
        "{\"id\": \"q5\", \"question\": \"What is 5 + 0?\", \"answer\": 5}\n",
        "",
    );
    let without: Vec<_> = all.into_iter().filter(|flow| flow != "q5").collect();
    assert_eq!(flows(&project), without);
}

#[test]
fn a_filter_lets_rows_through() {
    let project = Project::new();
    let filter = "template = \"question\"\nfilter = \"row.answer % 2 == 1\"";
    project.edit("pipelines/bench.toml", "template = \"question\"", filter);
    assert_eq!(flows(&project), ["q1", "q3", "q5", "q7", "q9"]);
    project.edit("pipelines/bench.toml", "row.answer % 2 == 1", "row.answer > 99");
    let ran = project.apply(&[]);
    assert_eq!((ran.code, ran.stderr.contains("gives no flows")), (2, true), "{}", ran.stderr);
}

#[test]
fn a_bad_row_is_named_by_file_and_line() {
    let project = with_fixture(
        "fixtures/x.jsonl",
        "{\"id\": 1, \"question\": \"a\", \"answer\": \"b\"}\n{oops}\n",
    );
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("fixtures/x.jsonl:2:2: this line is not JSON"), "{}", ran.stderr);
    project.write("fixtures/x.jsonl", "{\"id\": 1, \"qestion\": \"a\", \"answer\": \"b\"}\n");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("fixtures/x.jsonl:1: `answer.user` of the flow template"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("columns of the row: `id`, `qestion`, `answer`"), "{}", ran.stderr);
}

#[test]
fn a_later_step_sees_the_output_of_an_earlier_one() {
    let replies = r#"replies = [
        { when = "Name a city", reply = "Paris" },
        { when = "Is Paris in France?", reply = "yes" },
        { reply = "no" },
    ]"#;
    let project = Project::with("", replies);
    project.rows(1);
    project.write(
        "templates/qa.toml",
        r#"targets = "'yes'"
[[step]]
id = "city"
user = "Name a city. ({{ row.id }})"
[[step]]
id = "check"
user = "Is {{ steps.city.output }} in {{ row.country | default('France') }}?"
"#,
    );
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.metric("ask", "accuracy")), (2, 1.0));
    // The first step renders the same bytes; only the second is asked again.
    project.edit("templates/qa.toml", "in {{", "really in {{");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (1, 1));
}

#[test]
fn an_answer_that_a_later_step_cannot_use_is_data() {
    let project = Project::with(
        "",
        "replies = [{ when = \"q0\", reply = \"7\" }, { when = \"Half\", reply = \"3\" }, { reply = \"x\" }]",
    );
    project.rows(2);
    project.write(
        "templates/qa.toml",
        "targets = \"3\"\n[[step]]\nid = \"one\"\nuser = \"{{ row.id }}\"\n[[step]]\nid = \"two\"\n\
         user = \"Half of {{ steps.one.output | int }}?\"\n",
    );
    let ran = project.ok(&[]);
    assert_eq!(ran.result("ask")["outcomes"], serde_json::json!({"answered": 1, "unparsable": 1}));
}

#[test]
fn a_typo_in_a_later_step_costs_nothing() {
    let project = Project::with("", "replies = [{ reply = \"Paris\" }]");
    project.write(
        "templates/qa.toml",
        "[[step]]\nid = \"one\"\nuser = \"a\"\n[[step]]\nid = \"two\"\n\
         user = \"{{ steps.one.output }} {{ row.qestion }}\"\n",
    );
    let ran = project.apply(&[]);
    assert_eq!((ran.code, ran.live()), (2, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("`row.qestion` is undefined"), "{}", ran.stderr);
}

#[test]
fn what_was_asked_before_a_bad_row_is_kept() {
    let project = Project::with("concurrency = 1", &format!("latency = \"50ms\"\n{ECHO}"));
    // Enough rows that the first is asked for long before the last is read.
    project.rows(30_000);
    let mut rows = project.read("fixtures/rows.jsonl");
    rows.push_str("{oops}\n");
    project.write("fixtures/rows.jsonl", &rows);
    project.edit("pipelines/bench.toml", "default = 10", "default = 99999");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert_eq!(
        ran.stderr.matches("this line is not JSON").count(),
        2,
        "said once while running, once at the end: {}",
        ran.stderr
    );
    let asked = ran.live();
    assert!(asked > 0, "the expansion failed before anything was asked");
    project.rows(10);
    let again = project.apply(&["--limit", "10"]);
    let kept = asked.min(10);
    assert_eq!((again.disk(), again.live()), (kept, 10 - kept));
}

#[test]
fn a_lookup_file_edited_during_a_run_does_not_poison_the_memo() {
    let replies = "latency = \"100ms\"\nreplies = [\
        { when = \"What is\", reply = \"Action: lookup[x]\" },\
        { when = \"Observation: old\", reply = \"Final Answer: old\" },\
        { when = \"Observation: new\", reply = \"Final Answer: new\" }]";
    let project = Project::with(
        "method = \"react\"\nlookup = \"fixtures/kb.jsonl\"\nconcurrency = 1",
        replies,
    );
    project.rows(4);
    project.write("fixtures/kb.jsonl", "{\"key\": \"x\", \"value\": \"old\"}\n");
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--quiet"]);
    let mut child = command.spawn().unwrap();
    project.wait_for_samples(1);
    project.write("fixtures/kb.new", "{\"key\": \"x\", \"value\": \"new\"}\n");
    std::fs::rename(project.path("fixtures/kb.new"), project.path("fixtures/kb.jsonl")).unwrap();
    assert!(child.wait().unwrap().success());
    project.ok(&[]);
    let report = project.read("out/bench/report/report.json");
    assert!(report.contains("\"answer\": \"new\"") && !report.contains("\"answer\": \"old\""));
}

#[test]
fn files_included_twice_count_once() {
    let project = Project::new();
    let manifest = project.read("pipelines/bench.toml");
    let (head, stages) = manifest.split_once("[stage.question]").unwrap();
    project.write("pipelines/stages.toml", &format!("[stage.question]{stages}"));
    project.write("pipelines/one.toml", "include = [\"stages.toml\"]\n");
    project.write("pipelines/two.toml", "include = [\"stages.toml\"]\n");
    project
        .write("pipelines/bench.toml", &format!("include = [\"one.toml\", \"two.toml\"]\n{head}"));
    assert_eq!(project.ok(&[]).live(), 10);
}

#[test]
fn inheritance_defaults_and_matrix_work_together() {
    let project = Project::with("epochs = 2", super::project::REPLIES);
    let more = "\n[defaults.workflow]\nmethod = \"cot\"\n\
        [stage.again]\nextends = \"ask\"\n[stage.again.matrix]\nmethod = [\"naive\", \"cot\"]\nepochs = [1, 3]\n";
    let manifest = project.read("pipelines/bench.toml") + more;
    project.write("pipelines/bench.toml", &manifest);
    let ran = project.ok(&[]);
    assert_eq!(ran.result("again[method=naive,epochs=3]")["samples"], 30);
    assert_eq!(ran.result("ask")["samples"], 20);
    assert_eq!(ran.states().keys().filter(|name| name.starts_with("again[")).count(), 4);
}
