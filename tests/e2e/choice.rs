//! Multiple choice by log-likelihood: nothing is written, and each option is a request of its own.

use serde_json::{Value, json};

use crate::project::Project;
use crate::server::{self, Asked, Server, Step};

const TEMPLATE: &str = "id = \"row.id\"\ntargets = \"row.choices[row.answer]\"\noptions = \"row.choices\"\n\
    [[step]]\nid = \"answer\"\nuser = \"Question: {{ row.question }}\\nAnswer:\"\n";
const ROWS: &str = r#"{"id": "q0", "question": "Which planet is closest to the sun?", "choices": ["Venus", "Mercury", "Mars"], "answer": 1}
{"id": "q1", "question": "What do bees make?", "choices": ["honey", "a great deal of wax and some noise"], "answer": 1}
"#;
const LIKELIHOOD: &str = "method = \"likelihood\"\n";
const BOTH: &str = "method = \"likelihood\"\nscorers = [\n    { kind = \"choice\", by = \"log_likelihood\" },\n    \
    { kind = \"choice\", by = \"log_likelihood\", name = \"by_length\", normalize = \"characters\" },\n]\n";

fn project(workflow: &str, engine: &str) -> Project {
    let project = Project::asking(workflow, engine);
    project.write("templates/qa.toml", TEMPLATE);
    project.write("fixtures/rows.jsonl", ROWS);
    project
}

/// A server that repeats its prompt, as vLLM does: tokens are words with the space before them, and each has minus its
/// bytes as log-probability.
fn echo(asked: &Asked) -> Vec<Step> {
    assert_eq!((&asked.body["echo"], &asked.body["max_tokens"]), (&json!(true), &json!(1)));
    let prompt = asked.body["prompt"].as_str().unwrap();
    let mut tokens: Vec<String> = vec!["<s>".to_owned()];
    for word in prompt.split_inclusive(' ').flat_map(|word| match word.strip_suffix(' ') {
        Some(word) => vec![word.to_owned(), " ".to_owned()],
        None => vec![word.to_owned()],
    }) {
        match tokens.last_mut() {
            Some(last) if last == " " => last.push_str(&word),
            _ => tokens.push(word),
        }
    }
    let count = tokens.len();
    let mut logprobs: Vec<Value> =
        tokens.iter().map(|token| json!(-(token.len() as f64))).collect();
    logprobs[0] = Value::Null;
    // What it wrote, which is nobody's concern.
    tokens.push(" so".to_owned());
    logprobs.push(json!(-0.1));
    let body = json!({
        "choices": [{ "index": 0, "text": format!("{prompt} so"), "finish_reason": "length",
                      "logprobs": { "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": null } }],
        "usage": { "prompt_tokens": count, "completion_tokens": 1, "total_tokens": count + 1 },
    });
    vec![Step::Write(server::whole(200, &body.to_string()))]
}

fn scores(row: &Value) -> Vec<(String, f64, String)> {
    let scores = row["sample"]["scores"].as_array().unwrap().iter();
    let text = |score: &Value, name: &str| score[name].as_str().unwrap().to_owned();
    let one = |score: &Value| {
        (text(score, "scorer"), score["value"].as_f64().unwrap(), text(score, "parsed"))
    };
    scores.map(one).collect()
}

#[test]
fn a_choice_by_log_likelihood_writes_nothing() {
    let server = Server::start(echo);
    let price = "price = { input = 1.0, output = 1.0 }\napi = \"completions\"\n";
    let project = project(BOTH, &server.engine(price));
    let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]).stdout;
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let costs = plan.as_array().unwrap().iter().map(|node| &node["survey"]["cost"]["ceiling"]);
    let ceiling: f64 = costs.filter_map(Value::as_f64).sum();
    let ran = project.ok(&[]);
    // Three and two options, asked once for both scorers, and the words of the probe.
    assert_eq!((ran.live(), server.count()), (5, 6));
    // All of them are paid for, and the words of the probe by the engine's own name: six, a mark before them, and one more.
    let spent = |stage: &str| ran.done()["spent"][stage].as_f64().unwrap();
    assert!((spent("engine") - 8e-6).abs() < 1e-12, "{}", spent("engine"));
    assert!(spent("engine") + spent("ask") <= ceiling, "{} of {ceiling}", spent("ask"));
    let log = project.forge(&["logs", ran.done()["run_id"].as_str().unwrap()]).stdout;
    assert!(log.contains("engine  asked whether it can do what is wanted, $0.0000"), "{log}");
    let rows = project.report_rows();
    let named = |value, chosen: &str| {
        ["choice", "by_length"].map(|name| (name.to_owned(), value, chosen.to_owned()))
    };
    // " Mars" has five bytes, " Venus" six, " Mercury" eight; by characters 1.25, 1.2, and 1.14 for the last.
    assert_eq!(
        scores(&rows[0]),
        [
            ("choice".to_owned(), 0.0, "Mars".to_owned()),
            ("by_length".to_owned(), 1.0, "Mercury".to_owned())
        ]
    );
    // The longer option loses by its sum, and wins where its length is allowed for.
    assert_eq!(scores(&rows[1])[0], named(0.0, "honey")[0]);
    assert_eq!(scores(&rows[1])[1].1, 1.0);
    let sample = &rows[0]["sample"];
    assert_eq!((&sample["outcome"], &sample["answer"]), (&json!("answered"), &json!("Mars")));
    let transcript = sample["steps"][0]["transcript"].as_array().unwrap();
    assert_eq!(transcript.len(), 1, "nothing was written: {transcript:?}");
    let detail = sample["scores"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("`Mercury` -8.0000 (1 token)"), "{detail}");
    let observed = &rows[0]["observed"];
    assert_eq!(observed["requests"], json!([]));
    assert_eq!(observed["scoring"][0]["scorer"], "choice");
    assert!(observed["scoring"][0]["request"]["usage"]["input_tokens"].as_u64().unwrap() > 5);
    assert_eq!((ran.metric("ask", "accuracy"), ran.metric("ask", "by_length")), (0.0, 1.0));
    // Other settings of the scorers are worked out from the same answers.
    project.edit("pipelines/bench.toml", "\"characters\"", "\"bytes\"");
    let again = project.ok(&[]);
    assert_eq!((again.live(), server.count()), (0, 6));
    let replay = project.forge(&["apply", "pipelines/bench.toml", "--frozen"]);
    assert_eq!(replay.code, 0, "{}", replay.stderr);
}

#[test]
fn letters_may_be_the_options_and_a_reply_may_stand_beside_them() {
    let scorers =
        "scorers = [\"choice\", { kind = \"choice\", by = \"log_likelihood\", name = \"likely\" }]";
    let project = project(
        scorers,
        "backend = \"scripted\"\nreplies = [{ when = \"planet\", reply = \"B\" }, { reply = \"A\" }]",
    );
    project.edit(
        "templates/qa.toml",
        "row.choices[row.answer]",
        "'ABC'[row.answer:row.answer + 1]",
    );
    project.edit("templates/qa.toml", "options = \"row.choices\"", "options = \"['A', 'B', 'C']\"");
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 2 + 6);
    let rows = project.report_rows();
    assert_eq!(scores(&rows[0])[1], ("likely".to_owned(), 1.0, "B".to_owned()));
    assert_eq!(rows[0]["sample"]["answer"], "B");
    assert_eq!((ran.metric("ask", "choice"), ran.metric("ask", "likely")), (0.5, 0.5));
    // A label is in no sample: other options are other samples.
    project.edit("templates/qa.toml", "['A', 'B', 'C']", "['A', 'B']");
    assert_eq!(project.ok(&[]).live(), 0, "these were all asked");
}

#[test]
fn chats_of_vllm_say_it_of_their_prompts() {
    let server = Server::start(|asked: &Asked| {
        let body = &asked.body;
        assert_eq!(body["prompt_logprobs"], 0);
        assert_eq!(body["continue_final_message"], true);
        let words = asked.question().to_owned();
        let token =
            |text: &str, p: f64| json!({ "7": { "logprob": p, "rank": 1, "decoded_token": text } });
        let question = body["messages"][0]["content"].as_str().unwrap();
        let tokens = json!([
            null,
            token(question, -3.0),
            token("<|assistant|>\n", -0.5),
            token(&words[..1], -1.0),
            token(&words[1..], -(words.len() as f64))
        ]);
        let body = json!({
            "choices": [{ "index": 0, "message": { "role": "assistant", "content": "x" }, "finish_reason": "length" }],
            "prompt_logprobs": tokens, "usage": { "prompt_tokens": 5, "completion_tokens": 1 },
        });
        vec![Step::Write(server::whole(200, &body.to_string()))]
    });
    let project = project(LIKELIHOOD, &server.engine("prefill = \"continue_final_message\"\n"));
    project.ok(&[]);
    let rows = project.report_rows();
    assert_eq!(scores(&rows[0]), [("choice".to_owned(), 0.0, "Mars".to_owned())]);
    let detail = rows[0]["sample"]["scores"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("`Mars` -5.0000 (2 tokens)"), "{detail}");
}

#[test]
fn a_server_without_likelihoods_of_prompts_is_refused_before_anything_is_paid_for() {
    let beside = "scorers = [{ kind = \"choice\", by = \"log_likelihood\" }]\nfail_on_error = true";
    // It ignores what it does not know, or does not take it.
    let ignores = |_: &Asked| {
        let body = json!({ "choices": [{ "text": "Mars", "finish_reason": "stop" }],
                           "usage": { "prompt_tokens": 9, "completion_tokens": 1 } });
        vec![Step::Write(server::whole(200, &body.to_string()))]
    };
    let refuses = |_: &Asked| {
        let body = json!({ "error": { "message": "Only no echo is supported", "code": 400 } });
        vec![Step::Write(server::whole(400, &body.to_string()))]
    };
    for (server, why) in [
        (Server::start(ignores), "it ignores `echo` or `logprobs`"),
        (Server::start(refuses), "Only no echo is supported"),
    ] {
        for workflow in [LIKELIHOOD, beside] {
            let before = server.count();
            let project = project(workflow, &server.engine("api = \"completions\""));
            let ran = project.forge(&["apply", "pipelines/bench.toml"]);
            assert_eq!(ran.code, 1, "{}", ran.stderr);
            let words = "the server gives no log-probabilities of a prompt";
            assert!(ran.stderr.contains(words) && ran.stderr.contains(why), "{}", ran.stderr);
            assert_eq!(server.count() - before, 1, "the probe and nothing else");
        }
    }
    // What no such interface has is known before any server is asked.
    let chat = Server::start(|_: &Asked| Vec::new());
    let asked = project(LIKELIHOOD, &chat.engine(""));
    let ran = asked.forge(&["plan", "pipelines/bench.toml"]);
    assert_eq!((ran.code, chat.count()), (2, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("`api = \"completions\"`"), "{}", ran.stderr);
}

#[test]
fn the_words_of_the_probe_are_held_by_the_budget() {
    let server = Server::start(echo);
    let engine = |price: &str| server.engine(&format!("api = \"completions\"\n{price}"));
    let project = project(LIKELIHOOD, &engine("price = { input = 1000000, output = 0 }"));
    let ran = project.apply(&["--budget", "1"]);
    assert_eq!((ran.code, server.count()), (1, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("the budget of $1.00 is used up"), "{}", ran.stderr);
    // Where nobody has said what tokens cost, there is something more.
    let unpriced = self::project(LIKELIHOOD, &engine("api_key_env = \"PATH\""));
    let ran = unpriced.ok(&[]);
    assert_eq!(ran.done()["unknown_cost_samples"]["engine"], 1, "{}", ran.done());
    // What is refused after it came was paid for as well.
    let ignores = Server::start(|_| {
        let body = json!({ "choices": [{ "text": "Mars", "finish_reason": "stop" }],
                           "usage": { "prompt_tokens": 9, "completion_tokens": 1 } });
        vec![Step::Write(server::whole(200, &body.to_string()))]
    });
    let engine = "api = \"completions\"\nprice = { input = 1000000, output = 1000000 }";
    let refused = self::project(LIKELIHOOD, &ignores.engine(engine));
    let ran = refused.apply(&[]);
    assert_eq!(
        (ran.code, ran.done()["spent"]["engine"].as_f64()),
        (1, Some(10.0)),
        "{}",
        ran.stderr
    );
}

#[test]
fn what_there_is_to_choose_from_is_checked() {
    let engine = "backend = \"scripted\"\nreplies = [{ reply = \"A\" }]";
    let none = project(LIKELIHOOD, engine);
    none.edit("templates/qa.toml", "options = \"row.choices\"\n", "");
    let ran = none.forge(&["apply", "pipelines/bench.toml"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("add `options = \"row.choices\"`"), "{}", ran.stderr);
    for (expression, words) in [
        ("row.question", "`options` must give a list"),
        ("row.choices[:1]", "there are 1 `options`, and a choice needs two"),
        ("['', 'x']", "one of the `options` is blank"),
    ] {
        let project = project(LIKELIHOOD, engine);
        let set = format!("options = \"{expression}\"");
        project.edit("templates/qa.toml", "options = \"row.choices\"", &set);
        let ran = project.forge(&["apply", "pipelines/bench.toml"]);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    // A target that is no option is no zero.
    let other = project(LIKELIHOOD, engine);
    other.edit("templates/qa.toml", "row.choices[row.answer]", "'Pluto'");
    other.ok(&[]);
    let score = &other.report_rows()[0]["sample"]["scores"][0];
    assert_eq!((&score["value"], &score["unscored"]), (&Value::Null, &json!("no_target")));
    let steps = project(LIKELIHOOD, engine);
    let template = steps.read("templates/qa.toml");
    steps.write(
        "templates/qa.toml",
        &format!("{template}[[step]]\nid = \"again\"\nuser = \"Sure?\"\n"),
    );
    let ran = steps.forge(&["apply", "pipelines/bench.toml"]);
    assert!(ran.code == 2 && ran.stderr.contains("has 2 steps"), "{}", ran.stderr);
    let scored = project("method = \"likelihood\"\nscorers = [\"f1\"]", engine);
    let ran = scored.forge(&["plan", "pipelines/bench.toml"]);
    assert!(ran.code == 2 && ran.stderr.contains("writes nothing"), "{}", ran.stderr);
}
