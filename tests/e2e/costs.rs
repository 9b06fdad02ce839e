//! What requests cost: in budgets, plans and records.

use serde_json::{Value, json};

use super::endpoint::{one, sample};
use super::project::Project;
use super::server::{Server, Step, end, event, head, part, piece, reply, right, stream, whole};

#[test]
fn a_budget_stops_before_it_is_passed() {
    let server = Server::start(right);
    // 2 output tokens of at most 256 for a dollar each, 9 input tokens for nothing.
    let price = "price = { input = 0, output = 1000000 }";
    let project = Project::asking("max_tokens = 10\nconcurrency = 4", &server.engine(price));
    project.rows(30);
    // 30 replies of at most 10 tokens, and nothing for prompts.
    let plan = project.forge(&["plan", "pipelines/bench.toml"]);
    assert!(plan.stdout.contains("at most $300.0000, or $300.0000"), "{}", plan.stdout);
    // What breaks off may be paid for, and is tried five times more.
    assert!(plan.stdout.contains("is paid for once; $1800.0000 if"), "{}", plan.stdout);
    let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]).stdout;
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let with_retries =
        plan.as_array().unwrap().iter().map(|node| &node["survey"]["cost"]["with_retries"]);
    assert_eq!(with_retries.filter_map(Value::as_f64).sum::<f64>(), 1800.0);
    let ran = project.apply(&["--budget", "40"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("the budget of $40.00 is used up"), "{}", ran.stderr);
    let spent = ran.done()["spent"]["ask"].as_f64().unwrap();
    assert!((30.0..=40.0).contains(&spent), "{spent}");
    assert_eq!(server.count() as f64 * 2.0, spent);
    // What was paid for is kept, and the rest fits into another budget.
    let ran = project.apply(&["--budget", "40"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(server.count(), 30);
    let free = Project::asking("", &server.engine("api_key_env = \"PATH\""));
    let ran = free.apply(&["--budget", "1"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("has no price"), "{}", ran.stderr);
}

#[test]
fn what_is_refused_after_it_came_is_paid_for() {
    // Nine tokens read, whatever was sent, and two written for a dollar each.
    let server = Server::start(|_| reply("0"));
    let price = "price = { input = 0, output = 1000000 }";
    let cuts =
        format!("stream = false\ntokenizer = \"tokenizer.json\"\ncontext_length = 100000\n{price}");
    let project = Project::asking("max_tokens = 10\nconcurrency = 4", &server.engine(&cuts));
    let tokenizer = format!("{}/fixtures/tiny-chat/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::copy(tokenizer, project.path("tokenizer.json")).unwrap();
    project.rows(30);
    let long = format!("{}{{{{ row.question }}}}", "What is 4 * 4? ".repeat(400));
    project.edit("templates/qa.toml", "{{ row.question }}", &long);
    let ran = project.apply(&["--budget", "40"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("the budget of $40.00 is used up"), "{}", ran.stderr);
    let spent = ran.done()["spent"]["ask"].as_f64().unwrap();
    assert!((30.0..=40.0).contains(&spent), "{spent}");
    assert_eq!(server.count() as f64 * 2.0, spent);
    // A refusal is remembered with its price.
    assert_eq!(project.apply(&["--budget", "40"]).code, 0);
    assert_eq!(server.count(), 30);
    let row = &project.report_rows()[0];
    assert_eq!(row["sample"]["outcome"], "overflow");
    assert_eq!(row["observed"]["requests"][0]["usage"]["output_tokens"], 2);
    // So is what `strict` refuses, although nothing of it is remembered.
    let strict = server.engine(&format!("stream = false\nstrict = true\n{price}"));
    let project = Project::asking("response_format = \"json_object\"\nstop = [\"0\"]", &strict);
    project.rows(1);
    let ran = project.apply(&[]);
    assert_eq!((ran.code, ran.done()["spent"]["ask"].as_f64()), (1, Some(2.0)), "{}", ran.stderr);
}

#[test]
fn a_sum_with_an_unknown_part_is_at_least_that() {
    let price = "price = { input = 0, output = 1000000 }";
    // What broke off may be billed, and nobody says for how much.
    let server = Server::start(|asked| match asked.number {
        0 => vec![head(), piece(&part("0")), end()],
        _ => stream("0"),
    });
    let (project, ran) = one(&server, "", price);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("at least $2.0000") || ran.stderr.contains("at least $2.0000"));
    assert_eq!(ran.done()["unknown_cost_samples"], json!({ "ask": 1 }));
    assert_eq!(sample(&project)["observed"]["requests"][0]["unknown_attempts"], 1);
    let report = project.read("out/bench/report/report.html");
    assert!(report.contains("at least $2.0000"), "{report}");
    // A refused connection, or a `429`, is not billed.
    let server = Server::start(|asked| match asked.number {
        0 => vec![Step::Write(whole(429, "{}"))],
        _ => stream("0"),
    });
    let (_, ran) = one(&server, "", price);
    assert_eq!(ran.done()["unknown_cost_samples"], json!({}));
    assert!(!ran.stderr.contains("at least"), "{}", ran.stderr);
}

#[test]
fn what_was_counted_of_an_attempt_that_broke_off_is_paid_for() {
    let price = "price = { input = 0, output = 1000000 }";
    let counted = |finish: Value| {
        event(&json!({
            "choices": [{ "index": 0, "delta": { "content": "0" }, "finish_reason": finish }],
            "usage": { "prompt_tokens": 9, "completion_tokens": 5 },
        }))
    };
    let failed = |steps: Vec<Step>| {
        let server = Server::start(move |asked| match asked.number {
            0 => steps.clone(),
            _ => stream("0"),
        });
        let (project, ran) = one(&server, "", price);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let request = sample(&project)["observed"]["requests"][0].clone();
        assert_eq!(request["usage"]["output_tokens"], 2, "the answer's own");
        assert_eq!(request["failed_usage"]["output_tokens"], 5, "{request}");
        assert_eq!(ran.done()["spent"]["ask"].as_f64(), Some(7.0));
        (request["unknown_attempts"].clone(), ran.done()["unknown_cost_samples"].clone())
    };
    // Counts so far, as vLLM sends them with each part: there may be more.
    let broken = vec![head(), piece(&counted(Value::Null)), end()];
    assert_eq!(failed(broken), (json!(1), json!({ "ask": 1 })));
    // A server that breaks off itself, and says what it has done.
    let aborted = vec![head(), piece(&counted(json!("abort"))), piece(b"data: [DONE]\n\n"), end()];
    assert_eq!(failed(aborted), (Value::Null, json!({})));
    // A reply with nothing in it.
    let empty = json!({ "choices": [], "usage": { "prompt_tokens": 9, "completion_tokens": 5 } });
    let empty = vec![Step::Write(whole(200, &empty.to_string()))];
    assert_eq!(failed(empty), (Value::Null, json!({})));
}

#[test]
fn what_nothing_bounds_is_in_no_budget() {
    let server = Server::start(right);
    let engine = |more: &str| {
        server.engine(&format!(
            "price = {{ input = 1, output = 1 }}\nomit = [\"max_tokens\"]\n{more}"
        ))
    };
    let project = Project::asking("", &engine(""));
    let ran = project.apply(&["--budget", "1"]);
    assert_eq!((ran.code, server.count()), (2, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("`engine` leaves out `max_tokens`"), "{}", ran.stderr);
    let plan = project.forge(&["plan", "pipelines/bench.toml"]);
    assert!(plan.stderr.contains("a reply may cost more than a plan says"), "{}", plan.stderr);
    project.ok(&[]);
}

#[test]
fn a_plan_counts_the_form_of_a_reply() {
    let server = Server::start(|_| reply("{}"));
    // A dollar a token, and one for each byte of a prompt at most.
    let engine = server.engine("price = { input = 1000000, output = 0 }");
    let ceiling = |workflow: &str| {
        let project = Project::asking(workflow, &engine);
        project.rows(1);
        let schema = json!({ "type": "integer", "description": "x".repeat(3000) });
        project.write("schema.json", &schema.to_string());
        let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]).stdout;
        let plan: Value = serde_json::from_str(&plan).unwrap();
        let costs = plan.as_array().unwrap().iter().map(|node| &node["survey"]["cost"]["ceiling"]);
        costs.filter_map(Value::as_f64).sum::<f64>()
    };
    let (plain, formed) = (ceiling(""), ceiling("json_schema = \"schema.json\""));
    assert!((3000.0..3100.0).contains(&(formed - plain)), "{plain} and {formed}");
}

#[test]
fn prices_may_stand_in_a_file() {
    let server = Server::start(|_| {
        let details = json!({ "cached_tokens": 4 });
        let usage =
            json!({ "prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": details });
        let choice = json!({ "message": { "content": "0" }, "finish_reason": "stop" });
        vec![Step::Write(whole(200, &json!({ "choices": [choice], "usage": usage }).to_string()))]
    });
    let engine = server.engine("stream = false\nprices = \"prices.toml\"");
    let run = |prices: &str| {
        let project = Project::asking("", &engine);
        project.rows(1);
        project.write("prices.toml", prices);
        project.apply(&[])
    };
    // Five tokens for a dollar each, four that the provider remembered for half of it, and two that were written.
    let ran = run(
        "[m]\ninput = 1000000\noutput = 3000000\ncached_input = 500000\n[other]\ninput = 1\noutput = 1",
    );
    assert_eq!((ran.code, ran.done()["spent"]["ask"].as_f64()), (0, Some(13.0)), "{}", ran.stderr);
    for (prices, words) in [
        ("[other]\ninput = 1\noutput = 1", "it has no price of `m` (known: other)"),
        ("[m]\ninput = 1", "missing field `output`"),
        ("[m]\ninput = -1\noutput = 1", "the price of `m` has -1 as `input`"),
        ("[m]\ninput = 1\noutput = nan", "the price of `m` has NaN as `output`"),
    ] {
        let ran = run(prices);
        assert_eq!(ran.code, 2, "{prices}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("`prices.toml`") && ran.stderr.contains(words),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(server.count(), 1);
}
