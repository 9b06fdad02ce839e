//! Scorers and extractors: what they say, what they ask, and what holds the code of an answer back.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::project::{Project, REPLIES};
use crate::server::{self, Server};

/// A second engine as judge, before the report.
fn with_judge(project: &Project, judge: &str) {
    let stage = format!("[stage.judge]\nkind = \"engine\"\n{judge}\n\n[stage.report]");
    project.edit("pipelines/bench.toml", "[stage.report]", &stage);
}

fn report(project: &Project) -> Value {
    serde_json::from_str(&project.read("out/bench/report/report.json")).unwrap()
}

/// The first score of a scorer in a row of the report.
fn score<'a>(row: &'a Value, scorer: &str) -> &'a Value {
    let scores = row["sample"]["scores"].as_array().unwrap();
    scores.iter().find(|score| score["scorer"] == scorer).unwrap()
}

#[test]
fn an_edit_of_scorers_or_extractors_asks_nothing() {
    let project = Project::new();
    assert_eq!(project.ok(&[]).live(), 10);
    project.manifest("scorers = [\"numeric\", \"f1\"]", REPLIES);
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (0, 10));
    project.manifest(
        "extractors = [\"last_number\", { name = \"tail\", kind = \"regex\", pattern = '\\d' }]\n\
         scorers = [\"exact_match\", { kind = \"regex\", pattern = '^[0-4]$' }, \"bleu\", \"rougeL\"]",
        REPLIES,
    );
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (0, 10));
    assert_eq!((ran.metric("ask", "accuracy"), ran.metric("ask", "regex")), (0.5, 1.0));
    project.edit("pipelines/bench.toml", "'\\d'", "'\\d+'");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (0, 10));
    // Nothing was edited.
    assert_eq!(project.ok(&[]).disk(), 0);
}

#[test]
fn extractors_read_the_same_replies_and_their_differences_are_shown() {
    let replies = r#"replies = [
        { when = "What is 1 ", reply = "It could be 7.\nAnswer: 1" },
        { when = "What is 2 ", reply = "That makes 2." },
        { when = "What is 3 ", reply = "Answer: 4\nNo, it is 3." },
        { when = "What is 4 ", reply = "Answer: 4, so", finish = "length" },
        { reply = "Answer: 0" },
    ]"#;
    let project = Project::with(
        "method = \"cot\"\nextractors = [\"strict\", \"flexible\", \"last_number\"]\nscorers = [\"numeric\"]",
        replies,
    );
    project.rows(5);
    let ran = project.ok(&[]);
    let result = ran.result("ask");
    assert_eq!(result["outcomes"], json!({ "answered": 3, "truncated": 1, "unparsable": 1 }));
    // 0 and 1 are right, 3 is wrong, 2 has no mark; what was cut off is read by nobody.
    assert_eq!(ran.metric("ask", "accuracy"), 2.0 / 3.0);
    let counts = |i: usize| {
        let sum = &result["extractors"][i];
        let of = |name: &str| sum[name].as_u64().unwrap();
        [of("replies"), of("read"), of("correct"), of("differs"), of("verdict_differs")]
    };
    assert_eq!(counts(0), [4, 3, 2, 0, 0]);
    assert_eq!(counts(1), [4, 4, 3, 1, 1]);
    assert_eq!(counts(2), [4, 4, 4, 2, 2]);
    let rows = project.report_rows();
    assert_eq!(rows[2]["sample"]["outcome"], "unparsable");
    assert_eq!(rows[2]["sample"]["readings"][1]["answer"], "That makes 2");
    assert!(rows[4]["sample"].get("readings").is_none(), "a reply that was cut off was read");
    assert_eq!(
        report(&project)["cells"][0]["summary"]["extractors"][2]["extractor"],
        "last_number"
    );
    assert!(project.read("out/bench/report/report.md").contains("## Extractors"));
    assert!(project.read("out/bench/report/report.html").contains("What each extractor read"));
}

#[test]
fn a_gap_between_form_and_content_is_a_warning() {
    let replies = r#"replies = [{ when = "What is 1 ", reply = "I would say that 1 it is" }, { reply = "0" }]"#;
    let project = Project::with("", replies);
    project.rows(4);
    let ran = project.ok(&[]);
    let warnings = ran.result("ask")["warnings"].clone();
    assert!(warnings[0].as_str().unwrap().starts_with("the form gap is 25.0 points"), "{warnings}");
    assert_eq!(report(&project)["cells"][0]["warnings"], warnings);
    assert!(project.read("out/bench/report/report.md").contains("the form gap is 25.0 points"));
    assert!(project.read("out/bench/report/report.html").contains("the form gap is 25.0 points"));
    // The summary for people says it too, also of what was there already.
    let talk = project.forge(&["apply", "pipelines/bench.toml"]);
    assert!(talk.stderr.contains("warning: the form gap is 25.0 points"), "{}", talk.stderr);
    project.rows(6);
    assert_eq!(project.ok(&[]).result("ask")["warnings"], json!([]));
}

/// Answers to the second question: two right ones and three wrong ones that differ; to the first, three wrong ones
/// that are the same. Verdicts alone would make both wrong.
#[test]
fn a_majority_is_of_answers_whoever_judges_them() {
    const DRAWS: &str = r#"replies = [
        { when = "What is 1 ", draws = ["8", "1", "9", "1.", "7"] },
        { draws = ["0", "5", "0", "5", "**5**"] },
    ]"#;
    let judge = Server::start(|asked| {
        let material: Value = serde_json::from_str(asked.question()).unwrap();
        let is_right = material["answer"] == material["targets"][0];
        let verdict = if is_right { "correct" } else { "incorrect" };
        server::reply(&format!("{{\"reason\": \"So it is.\", \"verdict\": \"{verdict}\"}}"))
    });
    let by_judge = "{ kind = \"judge\", engine = \"judge\", rubric = \"Is it right?\" }";
    // Says what the answer is to both questions.
    let by_program =
        "{ kind = \"command\", command = [\"python3\", \"score.py\"], files = [\"score.py\"] }";
    for scorer in [by_judge, by_program] {
        let project = Project::with(&format!("epochs = 5\nscorers = [{scorer}]"), DRAWS);
        project.rows(2);
        project.write(
            "score.py",
            "import json, sys\nx = json.load(sys.stdin)\nprint(json.dumps(x['answer'] in x['targets']))\n",
        );
        with_judge(&project, &judge.engine("stream = false"));
        let reducers = "samples = \"ask\"\nreducers = [\"majority\"]";
        project.edit("pipelines/bench.toml", "samples = \"ask\"", reducers);
        project.ok(&[]);
        let cell = report(&project)["cells"][0].clone();
        let value = |reducer: &str| {
            let mut all = cell["measures"].as_array().unwrap().iter();
            let found = all.find(|m| m["metric"] == "accuracy" && m["reducer"] == reducer);
            found.unwrap()["estimate"]["value"].as_f64().unwrap()
        };
        assert!((value("mean") - 0.4).abs() < 1e-9, "{scorer}: {cell:#}");
        assert_eq!(value("majority"), 0.5, "{scorer}");
        assert_eq!(cell["agreement"]["majority"], 0.5);
        assert!(cell.get("warnings").is_none(), "{cell:#}");
        let edited = DRAWS.replace("\"1.\"", "\"6\"").replace("\"0\", \"5\", \"**5**\"", "\"x\"");
        project.edit(
            "pipelines/bench.toml",
            DRAWS,
            &edited.replace("\"x\"", "\"x\", \"y\", \"z\""),
        );
        project.ok(&[]);
        let warnings = report(&project)["cells"][0]["warnings"].clone();
        let said = warnings[0].as_str().unwrap();
        assert!(said.contains("`majority` has nothing to vote over"), "{warnings}");
    }
}

/// What a pattern takes out is one answer however it is written: three draws against two.
#[test]
fn draws_vote_in_the_form_in_which_a_pattern_compares_them() {
    const DRAWS: &str = r#"replies = [{ draws = ["is 0", "is $0", "is (0)", "is 7", "is 7"] }]"#;
    let scorers = "epochs = 5\nscorers = [{ kind = \"regex\", pattern = 'is (.*)' }]";
    let project = Project::with(scorers, DRAWS);
    project.rows(1);
    let reducers = "samples = \"ask\"\nreducers = [\"majority\"]";
    project.edit("pipelines/bench.toml", "samples = \"ask\"", reducers);
    project.ok(&[]);
    let cell = report(&project)["cells"][0].clone();
    assert_eq!(cell["agreement"]["majority"], 1.0, "{cell:#}");
}

#[test]
fn a_judge_is_asked_through_the_door_and_no_verdict_is_no_zero() {
    let judge = Server::start(|asked| {
        let material: Value = serde_json::from_str(asked.question()).unwrap();
        assert!(material.as_object().unwrap().contains_key("targets"));
        match material["answer"].as_str().unwrap() {
            "1" => server::reply("{\"reason\": \"It is.\", \"verdict\": \"correct\"}"),
            "2" => server::reply("I cannot say."),
            _ => server::reply("{\"reason\": \"It is not.\", \"verdict\": \"incorrect\"}"),
        }
    });
    let workflow = "scorers = [{ kind = \"judge\", engine = \"judge\", rubric = \"Is it right?\" }, \"exact_match\"]";
    let project = Project::with(workflow, REPLIES);
    project.rows(4);
    with_judge(&project, &judge.engine("stream = false\nprice = { input = 1000, output = 1000 }"));
    let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]);
    assert!(plan.stdout.contains("\"ceiling\""), "{}", plan.stdout);
    let ran = project.ok(&[]);
    // Four answers, and a judgement of each.
    assert_eq!((ran.live(), judge.count()), (8, 4));
    // 0 and 3 are wrong, 1 is right, and of 2 nobody knows.
    assert_eq!(ran.metric("ask", "accuracy"), 1.0 / 3.0);
    assert_eq!(ran.metric("ask", "exact_match"), 1.0);
    assert_eq!(ran.result("ask")["unscored"]["judge"]["unparsable_verdict"], 1);
    // 11 tokens each at $1000 for a million.
    let spent = ran.done()["spent"]["ask"].as_f64().unwrap();
    assert!((spent - 0.044).abs() < 1e-9, "{spent}");
    let report = report(&project);
    let cost = report["cells"][0]["scorer_costs"]["judge"]["spent"].as_f64().unwrap();
    assert!((cost - 0.044).abs() < 1e-9, "{cost}");
    // A bound on costs is one on all of them.
    let manifest = project.read("pipelines/bench.toml");
    let gate = "[gate.money]\nsamples = \"ask\"\nmax_cost = 0.04";
    project.write("pipelines/bench.toml", &format!("{manifest}\n{gate}\n"));
    let gated = project.apply(&[]);
    assert_eq!(gated.code, 100, "{}", gated.stderr);
    assert!((gated.done()["gates"][0]["value"].as_f64().unwrap() - 0.044).abs() < 1e-9);
    project.write("pipelines/bench.toml", &manifest);
    let rows = project.report_rows();
    assert_eq!(score(&rows[1], "judge")["detail"], "It is.");
    assert_eq!(score(&rows[2], "judge")["value"], Value::Null);
    assert_eq!(score(&rows[2], "judge")["unscored"], "unparsable_verdict");
    assert_eq!(
        rows[0]["observed"]["scoring"][0]["request"]["key"],
        score(&rows[0], "judge")["requests"][0]
    );
    // The tested engine's requests are its own.
    assert_eq!(rows[0]["observed"]["requests"].as_array().unwrap().len(), 1);

    // A form of the reply is asked for.
    let body = judge.asked.lock().unwrap()[0].body.clone();
    assert_eq!(body["response_format"]["type"], "json_schema");

    // Another scorer beside it asks nobody, and another rubric asks the judge alone.
    project.edit("pipelines/bench.toml", "\"exact_match\"]", "\"exact_match\", \"f1\"]");
    assert_eq!((project.ok(&[]).live(), judge.count()), (0, 4));
    project.edit("pipelines/bench.toml", "Is it right?", "Is it quite right?");
    assert_eq!((project.ok(&[]).live(), judge.count()), (4, 8));
    // The whole bench is worked out again from the store, verdicts included.
    let verified = project.forge(&["verify", "pipelines/bench.toml"]);
    assert_eq!((verified.code, judge.count()), (0, 8), "{}{}", verified.stdout, verified.stderr);
    assert_eq!(project.ok(&["--frozen"]).live(), 0);
}

#[test]
fn a_judge_that_fails_fails_its_sample_and_is_asked_again() {
    let workflow = "max_retries = 0\nfail_on_error = false\n\
        scorers = [{ kind = \"judge\", engine = \"judge\", rubric = \"Right?\", form = \"text\" }]";
    let project = Project::with(workflow, REPLIES);
    project.rows(2);
    let right = "{ reply = '{\"verdict\": \"correct\"}' }";
    let judge = format!(
        "backend = \"scripted\"\nreplies = [{{ when = '\"answer\": \"1\"', fail = \"no time\" }}, {right}]"
    );
    with_judge(&project, &judge);
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_eq!(ran.result("ask")["outcomes"], json!({ "answered": 1, "provider_error": 1 }));
    assert!(ran.stderr.contains("the scorer `judge`: no time"), "{}", ran.stderr);
    // What was asked and answered is not asked again; another judge is another engine.
    project.edit(
        "pipelines/bench.toml",
        "fail = \"no time\"",
        "reply = '{\"verdict\": \"incorrect\"}'",
    );
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.metric("ask", "accuracy")), (2, 0.5));
}

#[test]
fn the_budget_holds_judges_too() {
    let judge = Server::start(|_| server::reply("{\"verdict\": \"correct\"}"));
    let workflow = "scorers = [{ kind = \"judge\", engine = \"judge\", rubric = \"Right?\" }]";
    let project = Project::with(workflow, REPLIES);
    with_judge(&project, &judge.engine("api_key_env = \"PATH\""));
    let ran = project.apply(&["--budget", "1"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("the engine `judge` has no price"), "{}", ran.stderr);
    project.edit(
        "pipelines/bench.toml",
        "api_key_env = \"PATH\"",
        "price = { input = 1000, output = 1000 }",
    );
    let ran = project.apply(&["--budget", "0.01"]);
    assert_eq!((ran.code, judge.count()), (1, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("the budget of $0.01"), "{}", ran.stderr);
}

#[test]
fn what_a_judge_without_a_price_costs_is_in_no_sum_and_every_sum_says_so() {
    let judge = Server::start(|_| server::reply("{\"verdict\": \"correct\"}"));
    let asked = Server::start(server::right);
    let workflow = "scorers = [{ kind = \"judge\", engine = \"judge\", rubric = \"Right?\", form = \"text\" }]";
    let priced = "price = { input = 1000, output = 1000 }";
    let paid = "stream = false\napi_key_env = \"PATH\"";
    // Of one provider both would be one engine.
    let other = |more: &str| judge.engine(more).replace("\"test\"", "\"other\"");
    // The judge of an engine with a price, and the engine of a judge with one.
    for (own, of_judge, name) in [(priced, paid, "judge"), (paid, priced, "engine")] {
        let project = Project::asking(workflow, &asked.engine(own));
        project.rows(2);
        with_judge(&project, &other(of_judge));
        let plan = project.forge(&["plan", "pipelines/bench.toml"]).stdout;
        assert!(plan.contains(&format!("besides what `{name}` will cost: no price")), "{plan}");
        let manifest = project.read("pipelines/bench.toml");
        let gate = "[gate.money]\nsamples = \"ask\"\nmax_cost = 1";
        project.write("pipelines/bench.toml", &format!("{manifest}\n{gate}\n"));
        let ran = project.apply(&[]);
        // Eleven tokens each for two samples.
        let spent = ran.done()["spent"]["ask"].as_f64().unwrap();
        assert!((spent - 0.022).abs() < 1e-9, "{spent}");
        assert_eq!(ran.done()["unknown_cost_samples"], json!({ "ask": 2 }));
        assert!(ran.stderr.contains("at least $0.0220"), "{}", ran.stderr);
        let verdict = &ran.done()["gates"][0];
        assert!(verdict.to_string().contains("cost money and have no price"), "{verdict}");
        let cell = &report(&project)["cells"][0];
        let cost = if name == "judge" { &cell["scorer_costs"]["judge"] } else { &cell["cost"] };
        assert_eq!((&cost["price"], &cost["spent"]), (&Value::Null, &Value::Null), "{cell}");
        let page = project.read("out/bench/report/report.html");
        assert!(page.contains("at least $0.0000"), "{page}");
    }
    // One that costs nothing leaves nothing out.
    let project = Project::asking(workflow, &asked.engine(priced));
    project.rows(2);
    with_judge(&project, &other("stream = false"));
    let ran = project.ok(&[]);
    assert_eq!(ran.done()["unknown_cost_samples"], json!({}));
    assert!(!ran.stderr.contains("at least"), "{}", ran.stderr);
}

#[test]
fn semantic_similarity_comes_from_embeddings_that_are_remembered() {
    let embedder = Server::start(|_| server::reply("unused"));
    let workflow = "scorers = [{ kind = \"semantic\", engine = \"judge\" }, \"exact_match\"]";
    let project = Project::with(workflow, REPLIES);
    project.rows(6);
    with_judge(&project, &embedder.engine("price = { input = 1000, output = 0 }"));
    let ran = project.ok(&[]);
    // Six answers; embeddings of 0 to 5: "5" is answered with "0".
    assert_eq!((ran.live(), embedder.embedded()), (6 + 6, 6));
    assert_eq!(ran.metric("ask", "exact_match"), 5.0 / 6.0);
    let rows = project.report_rows();
    assert_eq!(score(&rows[0], "semantic")["value"], 1.0);
    let other = score(&rows[5], "semantic")["value"].as_f64().unwrap();
    assert!(other < 0.1, "{other}");
    project.edit("pipelines/bench.toml", "\"exact_match\"]", "\"f1\"]");
    assert_eq!((project.ok(&[]).live(), embedder.embedded()), (0, 6));
}

#[test]
fn an_engine_without_embeddings_is_refused_before_anything_is_asked() {
    let workflow = "scorers = [{ kind = \"semantic\", engine = \"engine\" }]";
    let project = Project::with(workflow, REPLIES);
    let plan = project.forge(&["plan", "pipelines/bench.toml"]);
    assert_eq!(plan.code, 2, "{}{}", plan.stdout, plan.stderr);
    assert!(
        plan.stderr.contains("needs embeddings, and the engine `engine` gives none"),
        "{}",
        plan.stderr
    );
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert_eq!(project.logged("\"sample_finished\""), 0);
}

const SCORE: &str = r#"
given=$(cat)
case "$given" in
    *'"answer":"1"'*) echo 1 ;;
    *'"answer":"2"'*) echo '{"value": null, "detail": "no idea"}' ;;
    *'"targets":["3"]'*) echo '{"value": 0.5, "parsed": "three", "detail": "half right"}' ;;
    *) echo false ;;
esac
"#;

#[test]
fn a_program_scores_and_its_file_is_part_of_the_key() {
    let workflow = "scorers = [{ kind = \"command\", name = \"mine\", command = [\"sh\", \"score.sh\"], files = [\"score.sh\"] }]";
    let project = Project::with(workflow, REPLIES);
    project.write("score.sh", SCORE);
    project.rows(4);
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 4);
    assert_eq!(ran.metric("ask", "mine"), 0.5);
    let rows = project.report_rows();
    assert_eq!(score(&rows[2], "mine")["unscored"], "abstained");
    assert_eq!(score(&rows[3], "mine")["detail"], "half right");
    project.write("score.sh", &SCORE.replace("0.5", "0.2"));
    // A plan runs nothing, and knows that nothing has to be asked.
    let plan = project.forge(&["plan", "pipelines/bench.toml"]);
    assert!(
        plan.stdout.contains("0 to ask") || plan.stdout.contains("4 answered"),
        "{}",
        plan.stdout
    );
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.metric("ask", "mine")), (0, 1.2 / 3.0));
    // A program that breaks is no verdict, and nothing of it is remembered.
    project.write("score.sh", "echo broken >&2; exit 3");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("ended with exit status: 3\nbroken"), "{}", ran.stderr);
    project.write("score.sh", "yes 1 | head -c 3000000");
    assert!(project.apply(&[]).stderr.contains("wrote more than 1024 KiB"));
    project.write("score.sh", "sleep 60");
    project.edit("pipelines/bench.toml", "name = \"mine\"", "name = \"mine\", timeout = \"200ms\"");
    assert!(project.apply(&[]).stderr.contains("did not end within 200ms"));
    project.edit("pipelines/bench.toml", "timeout = \"200ms\"", "timeout = \"30s\"");
    project.write("score.sh", "echo 7");
    let ran = project.apply(&[]);
    assert!(ran.stderr.contains("said the value 7; write a number from 0 to 1"), "{}", ran.stderr);
    project.write("score.sh", SCORE);
    assert_eq!(project.ok(&[]).live(), 0);
}

/// Whether this machine lets everybody make namespaces, as containers often do not.
fn has_namespaces() -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--user",
        "--map-root-user",
        "--net",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child",
        "true",
    ]);
    let status = unshare.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn code_runs_its_tests_and_nothing_else() {
    let project = Project::with(
        "scorers = [{ kind = \"code\", language = \"python\", timeout = \"2s\" }]",
        "",
    );
    let outside = project.path("outside.txt");
    let outside = outside.to_str().unwrap();
    let body = |code: &str| format!("Here it is:\n```python\n{code}\n```\nDone.");
    let cases = [
        ("right", "def f(x):\n    return x + 1", 1.0, ""),
        ("wrong", "def f(x):\n    return x", 0.0, "AssertionError: f(2)"),
        ("broken", "def f(x:", 0.0, "SyntaxError"),
        ("endless", "def f(x):\n    while True: pass", 0.0, "no end within 2s"),
        ("early", "import sys\nsys.exit(0)", 0.0, "ended before the end of the tests"),
        ("early-too", "import os\nos._exit(0)", 0.0, "ended before the end of the tests"),
        (
            "network",
            "import socket\nsocket.create_connection(('127.0.0.1', 1))\ndef f(x): return x + 1",
            0.0,
            "OSError: [Errno",
        ),
        ("big", "x = 'a' * (4 << 30)\ndef f(x): return x + 1", 0.0, "MemoryError"),
        ("loud", "print('a' * 3000000)\ndef f(x): return x + 1", 0.0, "wrote more than 1024 KiB"),
        (
            "secret",
            "import os\nassert 'FORGE_SECRET' not in os.environ\ndef f(x): return x + 1",
            1.0,
            "",
        ),
        ("own", "open('own.txt', 'w').write('x')\ndef f(x): return x + 1", 1.0, ""),
        (
            "others",
            "import os\nn = [p for p in os.listdir('/proc') if p.isdigit()]\nassert len(n) < 9, n\ndef f(x): return x + 1",
            1.0,
            "",
        ),
        (
            "outside",
            &format!("open({outside:?}, 'w').write('x')\ndef f(x): return x + 1"),
            0.0,
            "Read-only file system",
        ),
    ];
    let mut replies = Vec::new();
    let mut rows = String::new();
    for (id, code, ..) in &cases {
        replies.push(json!({ "when": format!("<{id}>"), "reply": body(code) }).to_string());
        let tests = json!(["assert f(1) == 2, 'f(1)'", "assert f(2) == 3, 'f(2)'"]);
        let tests = if *id == "wrong" { json!(["assert f(2) == 3, 'f(2)'"]) } else { tests };
        rows.push_str(&format!(
            "{}\n",
            json!({ "id": id, "question": format!("<{id}>"), "answer": tests })
        ));
    }
    project.write("fixtures/rows.jsonl", &rows);
    project.write("replies.jsonl", &replies.join("\n"));
    project.edit(
        "pipelines/bench.toml",
        "backend = \"scripted\"\n",
        "backend = \"scripted\"\nfile = \"replies.jsonl\"\n",
    );
    project.edit("pipelines/bench.toml", "default = 10", "default = 100");
    let ran = {
        let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
        crate::project::Ran::of(command.env("FORGE_SECRET", "s").output().unwrap())
    };
    if !has_namespaces() {
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains("allow_unsandboxed = true"), "{}", ran.stderr);
        return;
    }
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report = report(&project);
    let held = report["cells"][0]["execution"]["code sandbox"].as_str().unwrap().to_owned();
    assert!(held.starts_with("no network, its own processes, no rights"), "{held}");
    for (row, (id, _, value, detail)) in project.report_rows().iter().zip(&cases) {
        // Without a mount namespace files outside can be written.
        if *id == "outside" && !held.contains("read-only") {
            continue;
        }
        let score = score(row, "code");
        assert_eq!(score["value"], *value, "{id}: {score}");
        let said = score["detail"].as_str().unwrap_or("");
        assert!(said.contains(detail), "{id}: {score}");
    }
    if held.contains("read-only") {
        assert!(!std::path::Path::new(outside).exists());
    }
    // The same in every run: the table is worked out again, programs included.
    let verified = project.forge(&["verify", "pipelines/bench.toml"]);
    assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
}

#[test]
fn without_a_sandbox_code_is_refused() {
    let project = Project::with("scorers = [{ kind = \"code\", language = \"python\" }]", REPLIES);
    // Programs that a code scorer may use, and no `unshare`.
    let folder = project.path("bin");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["python3", "sh", "prlimit", "kill"] {
        let found =
            Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
        let path = String::from_utf8(found.stdout).unwrap();
        if path.trim().starts_with('/') {
            std::os::unix::fs::symlink(path.trim(), folder.join(name)).unwrap();
        }
    }
    let run = || {
        let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
        crate::project::Ran::of(command.env("PATH", &folder).output().unwrap())
    };
    let ran = run();
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing here holds it back"), "{}", ran.stderr);
    assert_eq!(project.logged("\"sample_finished\""), 0);
    project.edit(
        "pipelines/bench.toml",
        "language = \"python\"",
        "language = \"python\", allow_unsandboxed = true",
    );
    let ran = run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let held = report(&project)["cells"][0]["execution"]["code sandbox"].clone();
    assert!(!held.as_str().unwrap().contains("network"), "{held}");
    std::fs::remove_file(folder.join("python3")).unwrap();
    project.edit(
        "pipelines/bench.toml",
        "allow_unsandboxed = true",
        "allow_unsandboxed = true, timeout = \"1s\"",
    );
    let ran = run();
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("runs `python3`, and there is no such program"), "{}", ran.stderr);
}

#[test]
fn json_is_held_against_its_schema_and_its_fields() {
    let replies = r#"replies = [
        { when = "What is 1 ", reply = '{"n": 1}' },
        { when = "What is 2 ", reply = "```json\n{\"n\": 3}\n```" },
        { when = "What is 3 ", reply = '{"n": "3"}' },
        { reply = "zero" },
    ]"#;
    let workflow = "scorers = [{ kind = \"json\", schema = \"n.json\", fields = [\"/n\"] }]";
    let project = Project::with(workflow, replies);
    project.write(
        "n.json",
        "{\"required\": [\"n\"], \"properties\": {\"n\": {\"type\": \"integer\"}}}",
    );
    let row = |n| {
        format!(
            "{{\"id\": \"q{n}\", \"question\": \"What is {n} + 0?\", \"answer\": \"{{\\\"n\\\": {n}}}\"}}\n"
        )
    };
    project.write("fixtures/rows.jsonl", &(0..4).map(row).collect::<String>());
    let ran = project.ok(&[]);
    assert_eq!(ran.metric("ask", "accuracy"), 0.25);
    let rows = project.report_rows();
    let detail = |i: usize| score(&rows[i], "json")["detail"].as_str().unwrap_or("").to_owned();
    assert_eq!(detail(0), "the answer is no JSON");
    assert_eq!(detail(2), "/n: 3, not 2");
    assert!(detail(3).starts_with("/n: "), "{}", detail(3));
    // The schema is part of the key.
    project.write("n.json", "{\"required\": [\"n\"]}");
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 0);
    assert_eq!(project.ok(&[]).disk(), 0);
}
