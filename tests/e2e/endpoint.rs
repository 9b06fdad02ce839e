//! Servers with OpenAI's interface, in health and in every kind of trouble: each ends in the right outcome,
//! after the right number of attempts, with a whole record.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::project::{Project, Ran};
use super::server::{
    Asked, Server, Step, closing, end, event, head, part, piece, reply, right, stream, whole,
    with_header,
};

/// One question to a server, with settings for workflow and engine.
pub(super) fn one(server: &Server, workflow: &str, engine: &str) -> (Project, Ran) {
    let project = Project::asking(workflow, &server.engine(engine));
    project.rows(1);
    let ran = project.apply(&[]);
    (project, ran)
}

/// The only sample of a run, after checking that its record is whole.
pub(super) fn sample(project: &Project) -> Value {
    let rows = project.report_rows();
    assert_eq!(rows.len(), 1);
    let row = rows.into_iter().next().unwrap();
    let request = &row["observed"]["requests"][0];
    assert!(request["key"].is_string(), "{row}");
    assert!(request["phases_ms"]["queue"].is_number(), "{row}");
    let attempts = request["attempts"].as_u64().unwrap();
    let retries = request["retries"].as_array().map_or(0, Vec::len) as u64;
    let answered = !request["live_ms"].is_null();
    // Of a failed request, the last attempt is told by the sample's own detail.
    assert_eq!(attempts, retries + 1, "{row}");
    // What was refused says nothing about speed.
    let refused = matches!(row["sample"]["outcome"].as_str(), Some("overflow" | "refused"));
    assert!(refused || answered == request["timing"].is_object(), "{row}");
    row
}

fn attempts(row: &Value) -> u64 {
    row["observed"]["requests"][0]["attempts"].as_u64().unwrap()
}

fn reasons(row: &Value) -> Vec<String> {
    let retries = row["observed"]["requests"][0]["retries"].as_array().cloned().unwrap_or_default();
    retries.iter().map(|retry| retry["reason"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn streamed_and_whole_replies_are_the_same_samples() {
    let server = Server::start(right);
    let run = |engine: &str| {
        let project = Project::asking("", &server.engine(engine));
        let ran = project.ok(&[]);
        assert_eq!(ran.live(), 10);
        assert_eq!(ran.metric("ask", "accuracy"), 1.0);
        let lock = project.read("pipelines/bench.lock");
        (project, lock)
    };
    let (streamed, lock) = run("");
    let (_, same) = run("stream = false");
    assert_eq!(lock, same, "how a reply travels changes no key and no result");
    let row = &streamed.report_rows()[3];
    let request = &row["observed"]["requests"][0];
    assert_eq!(request["usage"]["token_source"], "usage");
    assert_eq!(request["usage"]["output_tokens"], 2);
    let timing = &request["timing"];
    let (ttft, e2e, close) = (&timing["ttft_ms"], &timing["e2e_ms"], &timing["close_ms"]);
    assert!(ttft.as_f64() <= e2e.as_f64() && e2e.as_f64() <= close.as_f64(), "{timing}");
    // The role is no token: of "3" cut into "" and "3", one part says something.
    assert_eq!(timing["events"], 1);
    let asked = server.asked.lock().unwrap()[0].clone();
    assert_eq!(asked.body["stream_options"]["include_usage"], true);
    assert_eq!(asked.body["temperature"], 0.0);
    assert_eq!(asked.body["max_tokens"], 256);
    assert_eq!(asked.header("content-type"), Some("application/json"));
}

#[test]
fn every_setting_reaches_the_server() {
    let server = Server::start(right);
    let workflow = "temperature = 0.5\ntop_p = 0.9\ntop_k = 40\nmin_p = 0.1\nseed = 7\nepochs = 2\nconcurrency = 1\n\
        frequency_penalty = 0.5\npresence_penalty = -0.5\nlogit_bias = { \"17\" = -100 }\n\
        stop = [\"##\"]\nmax_tokens = 33\nlogprobs = 2\nreasoning_effort = \"low\"\n\
        json_schema = \"schema.json\"";
    let engine = "extra_body = { repetition_penalty = 1.1 }\nmax_tokens_field = \"max_completion_tokens\"\n\
        api_key_env = \"FORGE_TEST_KEY\"\nheaders = { \"X-Title\" = \"forge\" }\n\
        headers_env = { \"X-Account\" = \"FORGE_TEST_ACCOUNT\" }";
    let project = Project::asking(workflow, &server.engine(engine));
    project.write("schema.json", "{\"type\": \"integer\"}");
    project.rows(1);
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    command.env("FORGE_TEST_KEY", "sk-secret-1").env("FORGE_TEST_ACCOUNT", "acct-secret-2");
    let ran = Ran::of(command.output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let asked = server.asked.lock().unwrap().clone();
    let body = &asked[0].body;
    for (name, value) in [
        ("temperature", json!(0.5)),
        ("top_p", json!(0.9)),
        ("top_k", json!(40)),
        ("min_p", json!(0.1)),
        ("seed", json!(7)),
        ("frequency_penalty", json!(0.5)),
        ("presence_penalty", json!(-0.5)),
        ("logit_bias", json!({ "17": -100.0 })),
        ("stop", json!(["##"])),
        ("max_completion_tokens", json!(33)),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(2)),
        ("reasoning_effort", json!("low")),
        ("repetition_penalty", json!(1.1)),
    ] {
        assert_eq!(body[name], value, "{name}");
    }
    assert_eq!(body["response_format"]["json_schema"]["schema"], json!({ "type": "integer" }));
    assert!(body.get("max_tokens").is_none());
    assert_eq!(asked[0].header("authorization"), Some("Bearer sk-secret-1"));
    assert_eq!(asked[0].header("x-account"), Some("acct-secret-2"));
    assert_eq!(asked[0].header("x-title"), Some("forge"));
    assert_ne!(asked[1].body["seed"], json!(7), "the second epoch is another draw");
    assert!(ran.stderr.contains("gives no log-probabilities"), "{}", ran.stderr);
    // Nothing of the secrets anywhere.
    let mut grep = std::process::Command::new("grep");
    let found = grep.args(["-rE", "sk-secret-1|acct-secret-2", "."]).current_dir(project.root());
    let found = found.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
}

#[test]
fn without_its_key_a_run_replays_and_asks_nothing() {
    let server = Server::start(right);
    let project = Project::asking("", &server.engine("api_key_env = \"FORGE_TEST_KEY\""));
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("`FORGE_TEST_KEY` is not set"), "{}", ran.stderr);
    assert_eq!(server.count(), 0);
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    let with_key = Ran::of(command.env("FORGE_TEST_KEY", "sk-1234567").output().unwrap());
    assert_eq!(with_key.code, 0, "{}", with_key.stderr);
    drop(server);
    let frozen = project.ok(&["--frozen"]);
    assert_eq!(frozen.live(), 0);
}

#[test]
fn too_many_requests_with_retry_after_waits_that_long() {
    let server = Server::start(|asked| match asked.number {
        0 => vec![Step::Write(with_header(
            429,
            "Retry-After: 1\r\n",
            br#"{"error": {"message": "slow down", "type": "rate_limit"}}"#,
        ))],
        _ => right(asked),
    });
    let start = Instant::now();
    let (project, ran) = one(&server, "", "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(start.elapsed() >= Duration::from_secs(1));
    let row = sample(&project);
    assert_eq!((attempts(&row), reasons(&row)), (2, vec!["429".to_owned()]));
    let request = &row["observed"]["requests"][0];
    let waited = request["retries"][0]["waited_ms"].as_f64().unwrap();
    assert!((1000.0..1200.0).contains(&waited), "{waited}");
    assert!(request["phases_ms"]["retry"].as_f64().unwrap() >= 1000.0);
    assert!(request["phases_ms"]["api_call"].as_f64().unwrap() < 500.0, "the attempt that counts");
    assert!(ran.stderr.contains("429 slow down; trying again in"), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 attempts failed and tried again (429 × 1)"), "{}", ran.stderr);
    assert_eq!(ran.done()["retries"], json!({ "429": 1 }));
}

/// As OpenAI and Groq say it, in words and by what is left; and without a word.
#[test]
fn too_many_requests_without_the_header_are_paused_for_as_well() {
    let said =
        r#"{"error": {"message": "Rate limit reached. Please try again in 1.2s. Visit us."}}"#;
    let spent = "x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 1.2s\r\n";
    for (header, body, expected) in
        [("", said, 1200.0..1400.0), (spent, "{}", 1200.0..1400.0), ("", "{}", 1000.0..2200.0)]
    {
        let server = Server::start(move |asked| match asked.number {
            0 => vec![Step::Write(with_header(429, header, body.as_bytes()))],
            _ => right(asked),
        });
        let (project, ran) = one(&server, "", "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let row = sample(&project);
        assert_eq!((attempts(&row), reasons(&row)), (2, vec!["429".to_owned()]));
        let retry = &row["observed"]["requests"][0]["retries"][0];
        let waited = retry["waited_ms"].as_f64().unwrap();
        assert!(expected.contains(&waited), "{waited} for {header:?} and {body}");
    }
}

/// The first two attempts go wrong in some way, the third goes well.
fn passes_after_two(
    reason: &str,
    workflow: &str,
    wrong: impl Fn() -> Vec<Step> + Send + Sync + 'static,
) {
    let server = Server::start(move |asked| if asked.number < 2 { wrong() } else { right(asked) });
    let (project, ran) = one(&server, workflow, "");
    assert_eq!(ran.code, 0, "{reason}: {}", ran.stderr);
    let row = sample(&project);
    assert_eq!(row["sample"]["outcome"], "answered", "{reason}");
    assert_eq!((attempts(&row), server.count()), (3, 3), "{reason}");
    assert_eq!(reasons(&row), [reason, reason]);
}

#[test]
fn what_may_pass_is_tried_again() {
    let error = || vec![Step::Write(whole(500, r#"{"error": {"message": "oops"}}"#))];
    passes_after_two("500", "", error);
    passes_after_two("reset", "", || vec![Step::Close]);
    passes_after_two("reset", "", || vec![head(), piece(&part("4")), Step::Close]);
    // A stream that ends as it should, but before its reply does.
    passes_after_two("reset", "", || vec![head(), piece(&part("4")), end()]);
    let hang = || vec![Step::Sleep(Duration::from_secs(30)), Step::Close];
    passes_after_two("first token", "first_token_timeout = \"2s\"", hang);
    let role = json!({ "choices": [{ "delta": { "role": "assistant" } }] });
    passes_after_two("first token", "first_token_timeout = \"2s\"", move || {
        // The role alone is no token.
        vec![head(), piece(&event(&role)), Step::Sleep(Duration::from_secs(30)), Step::Close]
    });
    passes_after_two("time-out", "attempt_timeout = \"2s\"", || {
        vec![head(), piece(&part("4")), Step::Sleep(Duration::from_secs(30)), Step::Close]
    });
    passes_after_two("malformed", "", || vec![Step::Write(whole(200, "{\"choices\": [{"))]);
    passes_after_two("malformed", "", || vec![Step::Write(whole(200, "<html>hello</html>"))]);
    passes_after_two("malformed", "", || {
        vec![head(), piece(b"data: {\"choices\": [}\n\n"), piece(&closing()), end()]
    });
    // The first byte of an umlaut and nothing after it.
    passes_after_two("malformed", "", || {
        vec![
            head(),
            piece(b"data: {\"choices\": [{\"delta\": {\"content\": \"\xc3\"}}]}\n\n"),
            end(),
        ]
    });
    passes_after_two("malformed", "", || {
        let body =
            json!({ "choices": [], "usage": { "prompt_tokens": 9, "completion_tokens": 0 } });
        vec![Step::Write(whole(200, &body.to_string()))]
    });
    // One with nothing in it, and a stream without any.
    passes_after_two("malformed", "", || {
        vec![Step::Write(whole(200, &json!({ "choices": [{}] }).to_string()))]
    });
    passes_after_two("malformed", "", || {
        let usage = json!({ "prompt_tokens": 9, "completion_tokens": 0 });
        let none = event(&json!({ "choices": [], "usage": usage }));
        vec![head(), piece(&none), piece(b"data: [DONE]\n\n"), end()]
    });
    passes_after_two("aborted", "", || {
        let aborted = json!({ "choices": [{ "delta": {}, "finish_reason": "abort" }] });
        vec![head(), piece(&part("4")), piece(&event(&aborted)), piece(b"data: [DONE]\n\n"), end()]
    });
    passes_after_two("error", "", || {
        let error = json!({ "error": { "message": "the engine died" } });
        vec![head(), piece(&part("4")), piece(&event(&error)), end()]
    });
}

#[test]
fn trouble_without_end_is_a_failed_sample_with_all_its_attempts() {
    let server = Server::start(|_| vec![Step::Write(whole(503, "busy"))]);
    let (project, ran) = one(&server, "max_retries = 2\nfail_on_error = false", "");
    assert_eq!(ran.code, 1);
    let row = sample(&project);
    assert_eq!(row["sample"]["outcome"], "provider_error");
    assert_eq!(row["sample"]["detail"], "503 busy (after 3 attempts)");
    assert_eq!((attempts(&row), reasons(&row).len(), server.count()), (3, 2, 3));
    assert_eq!(ran.live(), 0, "nothing was answered");
    // It is not remembered: the next run asks again.
    project.apply(&[]);
    assert_eq!(server.count(), 6);
}

#[test]
fn what_a_server_says_does_not_steer_a_terminal() {
    let server = Server::start(|_| {
        let body = json!({ "error": { "message": "\u{1b}[2Jgone\u{7}" } });
        vec![Step::Write(whole(400, &body.to_string()))]
    });
    let (_, ran) = one(&server, "", "");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("400 [2Jgone") && !ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
}

#[test]
fn the_total_time_bounds_all_attempts() {
    let server = Server::start(|_| vec![Step::Sleep(Duration::from_millis(300)), Step::Close]);
    let start = Instant::now();
    let (_, ran) = one(&server, "timeout = \"1s\"\nmax_retries = 100", "");
    assert_eq!(ran.code, 1);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(server.count() < 8, "{}", server.count());
}

#[test]
fn an_attempt_that_there_is_no_time_for_is_none() {
    let server = Server::start(|_| vec![Step::Write(whole(503, "{}"))]);
    // A request each three seconds.
    let (project, ran) =
        one(&server, "timeout = \"1s\"\nfail_on_error = false", "requests_per_minute = 20");
    assert_eq!((ran.code, server.count()), (1, 1), "{}", ran.stderr);
    let row = sample(&project);
    assert_eq!((attempts(&row), reasons(&row)), (1, Vec::new()));
    let detail = row["sample"]["detail"].as_str().unwrap();
    assert!(detail.contains("503") && detail.contains("no time is left"), "{detail}");
}

#[test]
fn refusals_end_at_once_and_are_remembered() {
    let refuse = |status: u16, body: &'static str| {
        let server = Server::start(move |_| vec![Step::Write(whole(status, body))]);
        let (project, ran) = one(&server, "", "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let row = sample(&project);
        assert_eq!((attempts(&row), server.count()), (1, 1));
        project.ok(&[]);
        assert_eq!(server.count(), 1, "it would say the same again");
        row["sample"]["outcome"].as_str().unwrap().to_owned()
    };
    let too_long = [
        r#"{"error": {"code": 400, "message": "request (3209 tokens) exceeds the available context size", "type": "exceed_context_size_error"}}"#,
        r#"{"error": {"code": "context_length_exceeded", "message": "too long"}}"#,
        r#"{"object": "error", "message": "This model's maximum context length is 1024 tokens.", "code": 400}"#,
        r#"{"detail": "Input is too long for this model"}"#,
    ];
    for body in too_long {
        assert_eq!(refuse(400, body), "overflow");
    }
    assert_eq!(refuse(400, r#"{"error": {"code": "content_filter", "message": "no"}}"#), "refused");
    // A setting that the server does not take is mended in the manifest, and must be asked again then.
    let server = Server::start(|_| {
        vec![Step::Write(whole(400, r#"{"error": {"message": "unsupported value: stream"}}"#))]
    });
    let (project, ran) = one(&server, "", "");
    assert_eq!((ran.code, server.count()), (1, 1), "{}", ran.stderr);
    project.apply(&[]);
    assert_eq!(server.count(), 2);
    let server = Server::start(|_| {
        let reason =
            json!({ "choices": [{ "delta": { "refusal": "I cannot" }, "finish_reason": "stop" }] });
        vec![head(), piece(&event(&reason)), piece(b"data: [DONE]\n\n"), end()]
    });
    let (project, _) = one(&server, "", "");
    assert_eq!(sample(&project)["sample"]["outcome"], "refused");
}

#[test]
fn a_wrong_key_is_tried_once_and_not_shown() {
    let server = Server::start(|asked| {
        let key = asked.header("authorization").unwrap().to_owned();
        let body = json!({ "error": { "message": format!("wrong key: {key}"), "code": "invalid_api_key" } });
        vec![Step::Write(whole(401, &body.to_string()))]
    });
    let engine = server.engine("api_key_env = \"FORGE_TEST_KEY\"");
    let project = Project::asking("fail_on_error = false\nconcurrency = 1", &engine);
    project.rows(40);
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    let ran = Ran::of(command.env("FORGE_TEST_KEY", "sk-verysecret").output().unwrap());
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("401 wrong key: Bearer [secret]"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("verysecret") && !ran.stdout.contains("verysecret"));
    assert_eq!(server.count(), 5, "the same error again and again: nobody asks any more");
    let details = project.report_rows();
    let last = details[39]["sample"]["detail"].as_str().unwrap();
    assert!(last.contains("not asked, because the last 5 requests all failed with: 401"), "{last}");
}

#[test]
fn counts_that_cannot_be_true_are_not_used() {
    let lie = |count: u64| {
        let server = Server::start(move |_| {
            let mut steps = vec![head(), piece(&part("0")), piece(&part(" "))];
            let usage = json!({ "prompt_tokens": 9, "completion_tokens": count });
            let reason = json!({ "choices": [{ "delta": {}, "finish_reason": "stop" }] });
            steps.push(piece(&event(&reason)));
            steps.push(piece(&event(&json!({ "choices": [], "usage": usage }))));
            steps.extend([piece(b"data: [DONE]\n\n"), end()]);
            steps
        });
        let (project, ran) = one(&server, "", "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stderr.contains("count of tokens cannot be true"), "{}", ran.stderr);
        let usage = sample(&project)["observed"]["requests"][0]["usage"].clone();
        assert_eq!(
            (&usage["token_source"], &usage["output_tokens"]),
            (&json!("chunks"), &json!(2))
        );
        assert!(usage["input_tokens"].is_null());
        let tokenizer = format!("{}/fixtures/tiny-chat/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
        let project = Project::asking("", &server.engine("tokenizer = \"tokenizer.json\""));
        std::fs::copy(tokenizer, project.path("tokenizer.json")).unwrap();
        project.rows(1);
        project.ok(&[]);
        let usage = sample(&project)["observed"]["requests"][0]["usage"].clone();
        assert_eq!(usage["token_source"], "tokenizer");
        assert!(usage["input_tokens"].as_u64().unwrap() > 5, "{usage}");
    };
    lie(0);
    lie(5000);
}

#[test]
fn the_probe_knows_the_models_before_anything_is_paid_for() {
    let models = json!({ "data": [{ "id": "small" }, { "id": "large" }] }).to_string();
    let server = Server::with_models(200, models, right);
    let (_, ran) = one(&server, "", "");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("has no model `m` (known: `small`, `large`)"), "{}", ran.stderr);
    assert_eq!(server.count(), 0);
    let (_, ran) = one(&server, "", "probe = false");
    assert_eq!((ran.code, server.count()), (0, 1), "{}", ran.stderr);
    let refused = Server::with_models(401, "{}".to_owned(), right);
    let (_, ran) = one(&refused, "", "");
    assert!(ran.stderr.contains("it wants a key: `api_key_env"), "{}", ran.stderr);
    assert_eq!((ran.code, refused.count()), (1, 0));
    let silent = Server::with_models(404, "{}".to_owned(), right);
    let (_, ran) = one(&silent, "", "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("does not list its models (status 404)"), "{}", ran.stderr);
}

#[test]
fn a_setting_that_is_ignored_is_named_or_an_error() {
    let server = Server::start(|asked| {
        let text = "0 and more ## and on";
        if asked.body["stream"] == true { stream(text) } else { reply(text) }
    });
    let (project, ran) = one(&server, "stop = [\"##\"]", "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("does not end its replies before `stop`"), "{}", ran.stderr);
    assert_eq!(sample(&project)["sample"]["answer"], "0 and more");
    let (_, ran) = one(&server, "stop = [\"##\"]", "strict = true");
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("`stop`; forge cuts them there (`strict = true`)"),
        "{}",
        ran.stderr
    );
    let (_, ran) = one(&server, "response_format = \"json_object\"", "strict = true");
    assert!(
        ran.stderr.contains("does not keep its replies to `response_format`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn several_servers_share_the_work_and_a_dead_one_gets_none() {
    let slow = |asked: &Asked| {
        let mut steps = vec![Step::Sleep(Duration::from_millis(20))];
        steps.extend(right(asked));
        steps
    };
    let (a, b) = (Server::start(slow), Server::start(slow));
    let engine = |urls: &[String]| {
        let mut text = a.engine("");
        text = text.replace(&format!("\"{}\"", a.url()), &format!("{urls:?}"));
        text
    };
    let project = Project::asking("concurrency = 4", &engine(&[a.url(), b.url()]));
    project.rows(40);
    assert_eq!(project.ok(&[]).live(), 40);
    assert!((15..=25).contains(&a.count()), "{} and {}", a.count(), b.count());
    let dead = "http://127.0.0.1:9/v1".to_owned();
    let project = Project::asking("concurrency = 4", &engine(&[a.url(), dead]));
    project.rows(40);
    let before = a.count();
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), a.count() - before), (40, 40));
    assert!(ran.stderr.contains("cannot reach `http://127.0.0.1:9`"), "{}", ran.stderr);
}

#[test]
fn of_several_servers_one_without_the_model_gets_nothing() {
    let (good, other) = (Server::start(right), {
        let models = json!({ "data": [{ "id": "another" }] }).to_string();
        Server::with_models(200, models, |_| reply("from another model"))
    });
    for urls in [[&good, &other], [&other, &good]] {
        let urls = urls.map(Server::url);
        let engine = good.engine("").replace(&format!("\"{}\"", good.url()), &format!("{urls:?}"));
        let project = Project::asking("concurrency = 4", &engine);
        let ran = project.ok(&[]);
        assert_eq!((ran.live(), other.count()), (10, 0));
        let words = "has no model `m` (known: `another`); this server gets no request";
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
}

#[test]
fn what_every_reply_shows_is_told_once() {
    // Each with other counts.
    let server = Server::start(|asked| {
        let usage = json!({ "prompt_tokens": 9, "completion_tokens": 120 + asked.number });
        let choice = json!({ "message": { "content": "0" }, "finish_reason": "stop" });
        vec![Step::Write(whole(200, &json!({ "choices": [choice], "usage": usage }).to_string()))]
    });
    let project = Project::asking("", &server.engine("stream = false"));
    let ran = project.apply(&[]);
    assert_eq!((ran.code, server.count()), (0, 10), "{}", ran.stderr);
    let told = ran.stderr.matches("it hides most of what its model says").count();
    assert_eq!(told, 1, "{}", ran.stderr);
}

#[test]
fn another_tokenizer_is_another_engine() {
    let server = Server::start(right);
    let engine = server.engine("tokenizer = \"tokenizer.json\"\ncontext_length = 100");
    let project = Project::asking("", &engine);
    let tokenizer = format!("{}/fixtures/tiny-chat/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(tokenizer).unwrap();
    // It decides which prompts are too long.
    project.write("tokenizer.json", &text);
    assert_eq!((project.ok(&[]).live(), project.ok(&[]).live()), (10, 0));
    project.write("tokenizer.json", &format!("{text} "));
    assert_eq!(project.ok(&[]).live(), 10);
}

#[test]
fn a_server_that_refuses_what_others_take_gets_no_more() {
    let good = Server::start(right);
    let bad = Server::start(|_| {
        let body = br#"{"error": {"message": "Incorrect API key provided"}}"#;
        vec![Step::Write(with_header(401, "", body))]
    });
    let engine = |urls: &[String]| {
        good.engine("").replace(&format!("\"{}\"", good.url()), &format!("{urls:?}"))
    };
    let project = Project::asking("concurrency = 4", &engine(&[good.url(), bad.url()]));
    project.rows(40);
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), good.count()), (40, 40));
    assert!((1..=4).contains(&bad.count()), "{}", bad.count());
    let words = "401 Incorrect API key provided; this server gets no further request";
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
    // With nobody else the error is the user's to mend.
    let project = Project::asking("", &engine(&[bad.url()]));
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("401 Incorrect API key provided"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("no further request"), "{}", ran.stderr);
}

#[test]
fn a_server_with_too_much_gets_less_at_once() {
    let server = Server::start(|asked| {
        if asked.at_once > 4 {
            return vec![Step::Write(with_header(429, "Retry-After: 0\r\n", b"{}"))];
        }
        let mut steps = vec![Step::Sleep(Duration::from_millis(10))];
        steps.extend(right(asked));
        steps
    });
    let project = Project::asking("concurrency = 32\nmax_retries = 20", &server.engine(""));
    project.rows(300);
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 300);
    let retries = ran.done()["retries"]["429"].as_u64().unwrap();
    tell!("{retries} of {} attempts were refused by a server for 4 at once", server.count());
    // Without adapting, 28 of 32 would be refused again and again.
    assert!(retries < 200, "{retries}");
}

#[test]
fn a_rate_budget_is_kept() {
    let server = Server::start(right);
    let project = Project::asking("concurrency = 8", &server.engine("requests_per_minute = 600"));
    project.rows(40);
    project.ok(&[]);
    let times: Vec<_> = server.asked.lock().unwrap().iter().map(|asked| asked.at).collect();
    let seconds = (*times.last().unwrap() - times[0]).as_secs_f64();
    // Ten a second with one second of burst.
    assert!((2.5..4.5).contains(&seconds), "{seconds}");
}

#[test]
fn thoughts_calls_and_log_probabilities_are_kept() {
    let server = Server::start(|_| {
        let thought = json!({ "choices": [{ "delta": { "reasoning_content": "well, zero" } }] });
        let said = json!({ "choices": [{
            "delta": { "content": "0" },
            "logprobs": { "content": [
                { "token": "0", "logprob": -0.25, "bytes": [48],
                  "top_logprobs": [{ "token": "0", "logprob": -0.25 }, { "token": "1", "logprob": -2.0 }] },
            ] },
        }] });
        vec![
            head(),
            piece(&event(&thought)),
            Step::Sleep(Duration::from_secs(1)),
            piece(&event(&said)),
            piece(&closing()),
            end(),
        ]
    });
    let (project, ran) = one(&server, "logprobs = 2", "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let row = sample(&project);
    assert_eq!(row["sample"]["answer"], "0");
    let timing = &row["observed"]["requests"][0]["timing"];
    let between = timing["ttfa_ms"].as_f64().unwrap() - timing["ttft_ms"].as_f64().unwrap();
    assert!(between >= 500.0, "{timing}");
    let exported = project.forge(&["store", "verify"]);
    assert_eq!(exported.code, 0);
}

#[test]
fn tools_are_called_in_the_form_of_the_provider() {
    let server = Server::start(|asked| {
        let messages = asked.body["messages"].as_array().unwrap();
        let last = messages.last().unwrap();
        if last["role"] == "tool" {
            assert_eq!(last["tool_call_id"], "call_1");
            let before = &messages[messages.len() - 2]["tool_calls"][0];
            assert_eq!(before["function"]["name"], "calculator", "its own call stands before it");
            return stream(last["content"].as_str().unwrap());
        }
        let sum = asked.question().trim_start_matches("What is ").trim_end_matches('?');
        let delta =
            |call: Value| event(&json!({ "choices": [{ "delta": { "tool_calls": [call] } }] }));
        let arguments = json!({ "input": sum }).to_string();
        let (first, second) = arguments.split_at(5);
        let ends = json!({ "choices": [{ "delta": {}, "finish_reason": "tool_calls" }] });
        vec![
            head(),
            piece(&delta(json!({ "index": 0, "id": "call_1", "type": "function",
                "function": { "name": "calculator", "arguments": first } }))),
            piece(&delta(json!({ "index": 0, "function": { "arguments": second } }))),
            piece(&event(&ends)),
            piece(b"data: [DONE]\n\n"),
            end(),
        ]
    });
    let project =
        Project::asking("method = \"react\"\ntool_calls = \"native\"", &server.engine(""));
    project.rows(4);
    let ran = project.ok(&[]);
    assert_eq!(ran.metric("ask", "accuracy"), 1.0, "{}", ran.stderr);
    assert_eq!(ran.live(), 8);
    let row = &project.report_rows()[3];
    let trace = &row["sample"]["steps"][0]["trace"];
    assert_eq!(trace["termination_reason"], "answer");
    assert_eq!(trace["steps"][0]["action_input"], "3 + 0");
    assert_eq!(trace["steps"][0]["observation"], "3");
    let asked = server.asked.lock().unwrap()[0].body.clone();
    assert_eq!(asked["tools"][0]["function"]["name"], "calculator");
    assert_eq!(asked["tools"][0]["function"]["parameters"]["required"], json!(["input"]));
    assert!(asked.get("stop").is_none());
    let pages = crate::serve::Server::start(&project, &[]);
    let page = pages.get(&format!("/runs/{}/samples/3?stage=ask", pages.last_run())).body;
    assert!(page.contains("calls <code>calculator</code>"), "{page}");
    drop(pages);
    assert_eq!(project.ok(&[]).live(), 0);
}

#[test]
fn thoughts_go_back_beside_their_calls_where_that_is_wanted() {
    let server = Server::start(|asked| {
        let messages = asked.body["messages"].as_array().unwrap();
        if messages.last().unwrap()["role"] == "tool" {
            return stream("0");
        }
        let part = |delta: Value| piece(&event(&json!({ "choices": [{ "delta": delta }] })));
        let call = json!({ "index": 0, "id": "call_1", "type": "function",
            "function": { "name": "calculator", "arguments": "{\"input\": \"0 + 0\"}" } });
        let ends = json!({ "choices": [{ "delta": {}, "finish_reason": "tool_calls" }] });
        vec![
            head(),
            part(json!({ "reasoning_content": "a sum" })),
            Step::Sleep(Duration::from_secs(1)),
            part(json!({ "tool_calls": [call] })),
            piece(&event(&ends)),
            piece(b"data: [DONE]\n\n"),
            end(),
        ]
    });
    let native = "method = \"react\"\ntool_calls = \"native\"";
    let (project, ran) = one(&server, native, "send_reasoning = true");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let sent = |number: usize| {
        let asked = server.asked.lock().unwrap()[number].body.clone();
        asked["messages"].as_array().unwrap().iter().rfind(|m| m["role"] == "assistant").cloned()
    };
    assert_eq!(sent(1).unwrap()["reasoning_content"], "a sum");
    // The call is the answer of that turn, and came a second after the thought.
    let timing = &project.report_rows()[0]["observed"]["requests"][0]["timing"];
    let between = timing["ttfa_ms"].as_f64().unwrap() - timing["ttft_ms"].as_f64().unwrap();
    assert!(between >= 500.0, "{timing}");
    let (_, ran) = one(&server, native, "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(sent(3).unwrap().get("reasoning_content").is_none());
}

#[test]
fn what_a_manifest_may_not_say_of_a_server() {
    let bad = |engine: &str, wanted: &str| {
        let project =
            Project::asking("", &format!("backend = \"openai\"\nmodel = \"m\"\n{engine}"));
        let ran = project.apply(&[]);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(wanted), "{}", ran.stderr);
    };
    bad("", "this engine needs `base_url`");
    bad("base_url = \"localhost:80\"", "must be http or https");
    bad("base_url = \"http://u:p@h/v1\"", "a URL in a manifest holds no secret");
    bad("base_url = \"http://h/v1/chat/completions\"", "leave out `/chat/completions`");
    bad(
        "base_url = \"http://h/v1\"\nheaders = { Authorization = \"Bearer x\" }",
        "is a secret, which no manifest holds",
    );
    bad("base_url = \"http://h/v1\"\nextra_body = { seed = 1 }", "`seed` is not for `extra_body`");
    bad("base_url = \"http://h/v1\"\nprice = { input = 1 }", "a price needs `output`");
    let asks = "base_url = \"http://h/v1\"\napi = \"completions\"\nsend_reasoning = true";
    bad(asks, "`send_reasoning` is for chats");
}
