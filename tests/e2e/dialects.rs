//! Servers that speak OpenAI's interface in ways of their own: what they say is read as they mean it.

use std::time::Duration;

use serde_json::{Value, json};

use super::project::{Project, Ran};
use super::server::{Asked, Server, Step, end, event, head, part, piece, right, stream, whole};

/// A stream of these chunks, to its end.
fn chunks(chunks: &[Value]) -> Vec<Step> {
    let all = chunks.iter().map(|chunk| piece(&event(chunk)));
    [head()].into_iter().chain(all).chain([piece(b"data: [DONE]\n\n"), end()]).collect()
}

fn one(server: &Server, workflow: &str, engine: &str) -> (Project, Ran) {
    let project = Project::asking(workflow, &server.engine(engine));
    project.rows(1);
    let ran = project.apply(&[]);
    (project, ran)
}

fn sample(project: &Project) -> Value {
    project.report_rows().remove(0)
}

#[test]
fn what_is_said_in_two_forms_is_said_once() {
    let server = Server::start(|_| {
        let said = |text: &str, reason: Value| {
            json!({ "choices": [{ "index": 0, "text": text, "delta": { "role": "assistant", "content": text },
                "finish_reason": reason }] })
        };
        chunks(&[said("0", Value::Null), said("0", json!("stop"))])
    });
    let (project, ran) = one(&server, "", "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(sample(&project)["sample"]["answer"], "00");
}

#[test]
fn parts_of_calls_find_their_call() {
    let call = |index: Option<i64>, id: &str, name: &str, arguments: Value| {
        let mut call = json!({ "function": { "arguments": arguments } });
        if let Some(index) = index {
            call["index"] = json!(index);
        }
        if !id.is_empty() {
            call["id"] = json!(id);
        }
        if !name.is_empty() {
            call["function"]["name"] = json!(name);
        }
        call
    };
    let (a, b) = ("{\"input\": ", "\"1 + 2\"}");
    let one_call =
        |index| vec![call(index, "x", "calculator", json!(a)), call(index, "", "", json!(b))];
    let whole_call = |index, id, sum: &str| {
        call(index, id, "calculator", json!(json!({ "input": sum }).to_string()))
    };
    // What servers send, and the calls that they mean.
    let forms: [(Vec<Value>, &[&str]); 7] = [
        (one_call(Some(1)), &["1 + 2"]),
        (one_call(None), &["1 + 2"]),
        (one_call(Some(-1)), &["1 + 2"]),
        (
            vec![
                call(Some(0), "x", "calculator", json!(a)),
                call(Some(0), "x", "calculator", json!(b)),
            ],
            &["1 + 2"],
        ),
        (vec![call(Some(0), "x", "calculator", json!({ "input": "1 + 2" }))], &["1 + 2"]),
        (
            vec![whole_call(Some(0), "x", "1 + 2"), whole_call(Some(0), "y", "3 + 4")],
            &["1 + 2", "3 + 4"],
        ),
        (
            vec![whole_call(Some(0), "x", "1 + 2"), whole_call(Some(2), "y", "3 + 4")],
            &["1 + 2", "3 + 4"],
        ),
    ];
    for (form, wanted) in forms {
        let sent = form.clone();
        let server = Server::start(move |asked| {
            let messages = asked.body["messages"].as_array().unwrap();
            if messages.last().unwrap()["role"] == "tool" {
                return stream("done");
            }
            let delta = |call| json!({ "choices": [{ "delta": { "tool_calls": [call] } }] });
            let mut all: Vec<Value> = sent.iter().cloned().map(delta).collect();
            all.push(json!({ "choices": [{ "delta": {}, "finish_reason": "tool_calls" }] }));
            chunks(&all)
        });
        let (project, ran) = one(&server, "method = \"react\"\ntool_calls = \"native\"", "");
        assert_eq!(ran.code, 0, "{form:?}: {}", ran.stderr);
        let row = sample(&project);
        let steps = row["sample"]["steps"][0]["trace"]["steps"].as_array().unwrap();
        let called = steps.iter().filter(|step| step["action"] == "calculator");
        let called: Vec<_> = called.map(|step| step["action_input"].as_str().unwrap()).collect();
        assert_eq!(called, wanted, "{form:?}");
        assert_eq!(row["observed"]["requests"][0]["attempts"], 1, "{form:?}");
    }
}

#[test]
fn an_error_in_the_middle_of_a_reply_is_tried_again() {
    let nested = json!({ "error": { "message": "Internal server error", "code": 400 } });
    let bare = json!({ "object": "error", "message": "Internal server error", "code": 400 });
    for error in [nested, bare] {
        let server = Server::start(move |asked| match asked.number {
            0 => vec![head(), piece(&part("0")), piece(&event(&error)), end()],
            _ => stream("0"),
        });
        let (project, ran) = one(&server, "", "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(sample(&project)["observed"]["requests"][0]["attempts"], 2);
    }
}

#[test]
fn a_reply_longer_than_the_context_is_no_prompt_that_does_not_fit() {
    let body = json!({ "object": "error", "code": 400, "message":
        "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096 tokens \
         and your request has 12 input tokens (5000 > 4096 - 12)." });
    let server = Server::start(move |_| vec![Step::Write(whole(400, &body.to_string()))]);
    let (project, ran) = one(&server, "", "");
    assert_eq!((ran.code, server.count()), (1, 1), "{}", ran.stderr);
    // It says nothing about the question: with a larger context, or fewer tokens, it is answered.
    assert_eq!(project.apply(&[]).code, 1);
    assert_eq!(server.count(), 2);
}

#[test]
fn a_count_with_hidden_reasoning_is_what_is_paid() {
    let server = Server::start(|_| {
        let said = json!({ "choices": [{ "delta": { "content": "0" }, "finish_reason": "stop" }] });
        let usage = json!({ "prompt_tokens": 9, "completion_tokens": 200 });
        chunks(&[said, json!({ "choices": [], "usage": usage })])
    });
    let (project, ran) = one(&server, "", "strict = true\nprice = { input = 1, output = 1 }");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("200 tokens for a reply of 1 bytes"), "{}", ran.stderr);
    let usage = sample(&project)["observed"]["requests"][0]["usage"].clone();
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&json!(9), &json!(200)));
}

#[test]
fn a_pause_in_the_words_of_google_is_kept() {
    let server = Server::start(|asked| match asked.number {
        0 => {
            let retry =
                json!({ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s" });
            let error = json!([{ "error": { "code": 429, "message": "Quota exceeded", "details": [retry] } }]);
            vec![Step::Write(whole(429, &error.to_string()))]
        }
        _ => stream("0"),
    });
    let (project, ran) = one(&server, "", "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let retry = sample(&project)["observed"]["requests"][0]["retries"][0].clone();
    assert!(retry["waited_ms"].as_f64().unwrap() >= 1000.0, "{retry}");
    assert!(retry["detail"].as_str().unwrap().contains("Quota exceeded"), "{retry}");
}

#[test]
fn what_a_limit_of_time_cuts_off_is_paid_out_of_the_budget() {
    let server = Server::start(|_| vec![Step::Sleep(Duration::from_secs(4))]);
    let workflow = "time_limit = \"500ms\"\nconcurrency = 1\nfail_on_error = false";
    let engine = server.engine("price = { input = 1, output = 1000 }");
    let project = Project::asking(workflow, &engine);
    project.rows(3);
    // A reply may cost 0.256 dollars.
    let ran = project.apply(&["--budget", "0.30"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("the budget of $0.30 is used up"), "{}", ran.stderr);
    let unsure = "$0.2561 spent, of which up to $0.2561 for attempts whose cost nobody knows";
    assert!(ran.stderr.contains(unsure), "{}", ran.stderr);
    assert_eq!(server.count(), 1);
}

#[test]
fn what_was_paid_for_a_sample_that_is_given_up_is_spent() {
    // 2 output tokens of at most 10 for a dollar each, and a judge who may take 256 of them.
    let price = "price = { input = 0, output = 1000000 }";
    let (server, judge) = (Server::start(right), Server::start(right));
    let workflow = "max_tokens = 10\nconcurrency = 4\nscorers = [{ kind = \"judge\", engine = \"judge\", rubric = \"Right?\", max_tokens = 200 }]";
    let project = Project::asking(workflow, &server.engine(price));
    let other = judge.engine(price).replace("\"test\"", "\"other\"");
    let stage = format!("[stage.judge]\nkind = \"engine\"\n{other}\n\n[stage.report]");
    project.edit("pipelines/bench.toml", "[stage.report]", &stage);
    project.rows(4);
    let ran = project.apply(&["--budget", "60"]);
    assert_eq!((ran.code, judge.count()), (1, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("the budget of $60.00 is used up"), "{}", ran.stderr);
    let asked = server.count() as u64;
    assert!(asked > 0 && ran.live() == asked, "{} of {asked}", ran.live());
    assert_eq!(ran.done()["spent"]["ask"], json!(2.0 * asked as f64));
    assert_eq!(ran.done()["unknown_cost_samples"], json!({}));
    // A plan of both says what is in no sum, also where it is all that a workflow costs.
    let free = server.engine("api_key_env = \"PATH\"").replace("\"test\"", "\"free\"");
    let second = format!(
        "[stage.free]\nkind = \"engine\"\n{free}\n\n[stage.other]\nkind = \"workflow\"\nflows = \"flows\"\nengine = \"free\"\n\n[stage.judge]"
    );
    project.edit("pipelines/bench.toml", "[stage.judge]", &second);
    let plan = project.forge(&["plan", "pipelines/bench.toml"]).stdout;
    let totals = plan.trim_end().lines().last().unwrap();
    assert!(totals.contains("besides what `free` will cost: no price"), "{plan}");
    // Of a request between two attempts it is unknown: it may have cost all that was held for it.
    let broken = Server::start(|_| vec![Step::Write(part("0")), Step::Close]);
    let project = Project::asking("max_tokens = 10", &broken.engine(price));
    project.rows(1);
    let ran = project.apply(&["--budget", "15"]);
    assert_eq!((ran.code, broken.count()), (1, 1), "{}", ran.stderr);
    assert!(ran.stderr.contains("the budget of $15.00 is used up"), "{}", ran.stderr);
    assert_eq!(ran.done()["unknown_cost_samples"], json!({ "ask": 1 }));
    assert!(ran.stderr.contains("at least $0.0000"), "{}", ran.stderr);
}

#[test]
fn a_server_that_refuses_options_of_streams_gets_none_under_the_same_keys() {
    let strict = Server::start(|asked| match asked.body.get("stream_options") {
        None => right(asked),
        Some(_) => {
            let detail = json!({ "type": "extra_forbidden", "loc": ["body", "stream_options"] });
            vec![Step::Write(whole(422, &json!({ "detail": [detail] }).to_string()))]
        }
    });
    let (_, ran) = one(&strict, "", "");
    assert_eq!(ran.code, 1);
    let hint = "`omit = [\"stream_options\"]` on the engine leaves it out";
    assert!(ran.stderr.contains("422") && ran.stderr.contains(hint), "{}", ran.stderr);
    let (project, ran) = one(&strict, "", "omit = \"stream_options\"");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let usage = sample(&project)["observed"]["requests"][0]["usage"].clone();
    assert_eq!((&usage["token_source"], &usage["output_tokens"]), (&json!("usage"), &json!(2)));
    let server = Server::start(right);
    let lock = |engine: &str| {
        let (project, ran) = one(&server, "", engine);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        project.read("pipelines/bench.lock")
    };
    assert_eq!(lock(""), project.read("pipelines/bench.lock"));
    let others = lock("omit = [\"stop\"]");
    assert_ne!(others, lock(""));
    assert_eq!(others, lock("omit = [\"stream_options\", \"stop\"]"));
}

/// A reply that does not say why it ended, as a stream or in one piece.
fn unended(asked: &Asked, said: Value, tokens: Option<u64>) -> Vec<Step> {
    let usage = tokens.map(|n| json!({ "prompt_tokens": 9, "completion_tokens": n }));
    match asked.body["stream"] == true {
        true => chunks(&[
            json!({ "choices": [{ "delta": said }] }),
            json!({ "choices": [], "usage": usage }),
        ]),
        false => {
            let body = json!({ "choices": [{ "message": said }], "usage": usage });
            vec![Step::Write(whole(200, &body.to_string()))]
        }
    }
}

#[test]
fn a_reply_without_its_reason_ends_for_the_one_that_it_shows() {
    const NOTICE: &str = "ends replies without `finish_reason`: they may be cut off unseen";
    let workflow = "method = \"cot\"\nmax_tokens = 20";
    for stream in ["stream = true\nstrict = true", "stream = false\nstrict = true"] {
        let outcome = |tokens, workflow: &str, engine: &str| {
            let said = json!({ "content": "Step 1: zero and zero" });
            let server = Server::start(move |asked| unended(asked, said.clone(), tokens));
            let (project, ran) = one(&server, workflow, &format!("{stream}\n{engine}"));
            assert_eq!(ran.code, 0, "{}", ran.stderr);
            let outcome = sample(&project)["sample"]["outcome"].as_str().unwrap().to_owned();
            (outcome, ran.stderr.matches(NOTICE).count())
        };
        let truncated = ("truncated".to_owned(), 0);
        assert_eq!(outcome(Some(20), workflow, ""), truncated, "{stream}");
        for (tokens, engine) in [(Some(19), ""), (None, ""), (Some(20), "omit = \"max_tokens\"")] {
            let (outcome, notices) = outcome(tokens, workflow, engine);
            assert_ne!(outcome, "truncated", "{stream}, {tokens:?}");
            assert_eq!(notices, 1, "{stream}, {tokens:?}");
        }
        let server = Server::start(|asked| {
            let messages = asked.body["messages"].as_array().unwrap();
            if messages.last().unwrap()["role"] == "tool" {
                return right(&Asked {
                    body: json!({ "stream": asked.body["stream"],
                    "messages": [{ "content": "What is 0?" }] }),
                    ..asked.clone()
                });
            }
            let function = json!({ "name": "calculator", "arguments": "{\"input\": \"0 + 0\"}" });
            let call = json!({ "index": 0, "id": "x", "type": "function", "function": function });
            unended(asked, json!({ "tool_calls": [call] }), Some(256))
        });
        let (project, ran) = one(&server, "method = \"react\"\ntool_calls = \"native\"", stream);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(!ran.stderr.contains(NOTICE), "{}", ran.stderr);
        let trace = sample(&project)["sample"]["steps"][0]["trace"].clone();
        assert_eq!(trace["steps"][0]["observation"], "0", "{trace}");
    }
}

#[test]
fn a_model_is_found_in_its_folder_or_by_its_name_alone() {
    let models = json!({
        "data": [{ "id": "models/gemini" }, { "id": "other" }],
        "unlisted": [
            { "path": "org%2Ftuned", "answer": { "id": "org/tuned", "object": "model" } },
            { "path": "wrong", "answer": { "error": "Unexpected endpoint or method. (GET /v1/models/wrong)" } },
        ],
    });
    let server = Server::with_models(200, models.to_string(), right);
    let run = |model: &str| {
        let engine = server.engine("").replace("\"m\"", &format!("\"{model}\""));
        let project = Project::asking("", &engine);
        project.rows(1);
        project.apply(&[])
    };
    for model in ["gemini", "models/gemini", "other", "org/tuned"] {
        let ran = run(model);
        assert_eq!(ran.code, 0, "{model}: {}", ran.stderr);
    }
    // A path that leads to the list again is no model either.
    for model in ["gemin", "wrong", ".."] {
        let ran = run(model);
        assert_eq!(ran.code, 1, "{model}: {}", ran.stderr);
        assert!(ran.stderr.contains(&format!("has no model `{model}`")), "{}", ran.stderr);
    }
    assert_eq!(server.count(), 4);
}

#[test]
fn further_fields_go_with_embeddings_too() {
    let embedder = Server::start(right);
    let rag = "[stage.ask.rag]\nretrieval_method = \"hybrid\"\nembeddings = \"embedder\"\nquery_prefix = \"\"\n\
        top_k = 1\ncorpus = \"fixtures/docs.jsonl\"";
    let project = Project::with(rag, "replies = [{ reply = \"0\" }]");
    let engine = embedder.engine("extra_body = { dimensions = 128 }");
    let manifest = project.read("pipelines/bench.toml");
    let manifest = format!("{manifest}\n[stage.embedder]\nkind = \"engine\"\n{engine}\n");
    project.write("pipelines/bench.toml", &manifest);
    project.write("fixtures/docs.jsonl", "{\"id\": \"a\", \"text\": \"What\"}\n");
    project.rows(1);
    project.ok(&[]);
    let question = json!({
        "model": "m", "input": "What is 0 + 0?", "encoding_format": "float", "dimensions": 128,
    });
    let asked = embedder.embeddings();
    assert!(asked.contains(&question) && asked.len() == 2, "{asked:?}");
    for own in ["input = \"x\"", "encoding_format = \"base64\""] {
        project.write("pipelines/bench.toml", &manifest.replace("dimensions = 128", own));
        let ran = project.apply(&[]);
        assert!(ran.code == 2 && ran.stderr.contains("is not for `extra_body`"), "{}", ran.stderr);
    }
}
