//! Prompts, retrieval before the question, and bounds on samples.

use serde_json::{Value, json};

use super::project::{Project, REPLIES};
use super::server::{self, Server, reply};

/// Messages of the first request of a sample: its transcript without replies.
fn opening(project: &Project, sample: usize) -> Vec<Value> {
    let transcript = &project.report_rows()[sample]["sample"]["steps"][0]["transcript"];
    let mut messages = transcript.as_array().unwrap().clone();
    messages.pop();
    messages
}

fn contents(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["content"].as_str().unwrap()).collect()
}

const RAG: &str =
    "[stage.ask.rag]\nretrieval_method = \"naive\"\ntop_k = 1\ncorpus = \"fixtures/docs.jsonl\"";

#[test]
fn passages_stand_before_the_question_and_are_kept() {
    let project = Project::with(RAG, REPLIES);
    let docs = "{\"id\": \"a\", \"text\": \"The sum of 3 and zero.\"}\n{\"id\": \"b\", \"text\": \"Nothing else.\"}\n";
    project.write("fixtures/docs.jsonl", docs);
    assert_eq!(project.ok(&[]).live(), 10);
    let rows = project.report_rows();
    let step = &rows[3]["sample"]["steps"][0];
    let question = step["transcript"][1]["content"].as_str().unwrap();
    assert_eq!(
        question,
        "Use these passages where they help.\n\n[1] a: The sum of 3 and zero.\n\nWhat is 3 + 0?"
    );
    let info = &step["retrieval_info"];
    assert_eq!(info["query"], "What is 3 + 0?");
    assert_eq!(info["passages"][0]["source"], "a");
    assert!(info["passages"][0]["score"].as_f64().unwrap() > 0.0);
    let server = crate::serve::Server::start(&project, &[]);
    let page = server.get(&format!("/runs/{}/samples/3?stage=ask", server.last_run()));
    assert!(page.body.contains("passages found: 1 (naive)"), "{}", page.body);
    assert!(page.body.contains("<code>a</code>"), "{}", page.body);
    drop(server);
    // Of a question with no word in the collection there is nothing, and the question stands alone.
    let step = &rows[4]["sample"]["steps"][0];
    assert_eq!(step["transcript"][1]["content"], "What is 4 + 0?");
    assert_eq!(step["retrieval_info"]["passages"], json!([]));
    assert_eq!(project.ok(&[]).live(), 0);
    project.edit("pipelines/bench.toml", "top_k = 1", "top_k = 2");
    assert_eq!(project.ok(&[]).live(), 0, "the same passages are the same requests");
    project.edit("fixtures/docs.jsonl", "The sum of 3", "A sum of 3");
    assert_eq!(project.ok(&[]).live(), 1);
}

#[test]
fn retrieval_is_orthogonal_to_the_method() {
    let matrix =
        "[stage.ask.matrix]\nretrieval = [\"none\", \"naive\"]\nmethod = [\"naive\", \"cot\"]";
    let rag = RAG.replace("\"naive\"", "\"{{ matrix.retrieval }}\"");
    let replies =
        "replies = [{ when = \"[1]\", reply = \"Answer: with\" }, { reply = \"Answer: without\" }]";
    let project = Project::with(&format!("{rag}\n{matrix}"), replies);
    project.write("fixtures/docs.jsonl", "{\"id\": \"a\", \"text\": \"What is it?\"}");
    project.rows(1);
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 4);
    let report: Value =
        serde_json::from_str(&project.read("out/bench/report/report.json")).unwrap();
    for cell in report["cells"].as_array().unwrap() {
        let name = cell["name"].as_str().unwrap();
        let wanted = if name.contains("retrieval=naive") { "with" } else { "without" };
        assert_eq!(cell["samples"][0]["sample"]["answer"], wanted, "{name}");
        assert_eq!(cell["config"].get("rag").is_some(), wanted == "with", "{name}");
    }
}

#[test]
fn a_chat_model_orders_what_was_found() {
    let rag = RAG.replace("\"naive\"", "\"reranked\"\nreranker = \"orderer\"\ncandidates = 3");
    let project = Project::with(
        &rag,
        "replies = [{ when = \"[1] c: 2 and more\", reply = \"2\" }, { reply = \"0\" }]",
    );
    let orderer = "\n[stage.orderer]\nkind = \"engine\"\nbackend = \"scripted\"\nreplies = [{ when = \"[3] 2 and\", reply = \"[3] > [1]\" }, { reply = \"?\" }]\n";
    let manifest = project.read("pipelines/bench.toml") + orderer;
    project.write("pipelines/bench.toml", &manifest);
    let docs = ["2 is 2", "is 2", "2 and more of it", "unlike"];
    let docs = docs
        .iter()
        .zip(["a", "b", "c", "d"])
        .map(|(text, id)| format!("{}\n", json!({ "id": id, "text": text })));
    project.write("fixtures/docs.jsonl", &docs.collect::<String>());
    project.ok(&[]);
    let info = project.report_rows()[2]["sample"]["steps"][0]["retrieval_info"].clone();
    assert_eq!(info["passages"][0]["source"], "c", "{info:#}");
    assert_eq!(info["requests"].as_array().unwrap().len(), 1);
    // Without an order the old one stands.
    let info = project.report_rows()[7]["sample"]["steps"][0]["retrieval_info"].clone();
    assert_ne!(info["passages"][0]["source"], "c");
    assert_eq!(project.ok(&[]).live(), 0);
    // What the orderer said is remembered too, and an orderer that says something else is another one.
    assert_eq!(project.apply(&["--frozen"]).code, 0);
    project.edit("pipelines/bench.toml", "[3] > [1]", "[2] > [1]");
    project.ok(&[]);
    let info = project.report_rows()[2]["sample"]["steps"][0]["retrieval_info"].clone();
    assert_ne!(info["passages"][0]["source"], "c");
}

#[test]
fn embeddings_find_what_words_do_not() {
    // Of a text it knows how often it has each letter.
    let embedder = Server::start(|_| reply("unused"));
    let rag =
        RAG.replace("\"naive\"", "\"hybrid\"\nembeddings = \"embedder\"\nquery_prefix = \"\"");
    let rag = rag.replace("top_k = 1", "top_k = 2\ncandidates = 2");
    let project = Project::with(&rag, "replies = [{ reply = \"0\" }]");
    let engine = embedder.engine("price = { input = 1000, output = 0 }");
    let manifest = project.read("pipelines/bench.toml");
    let manifest = format!("{manifest}\n[stage.embedder]\nkind = \"engine\"\n{engine}\n");
    project.write("pipelines/bench.toml", &manifest);
    let docs = ["What is this", "unlike", "5", "something else"];
    let docs = docs
        .iter()
        .zip(["a", "b", "c", "d"])
        .map(|(text, id)| format!("{}\n", json!({ "id": id, "text": text })));
    project.write("fixtures/docs.jsonl", &docs.collect::<String>());
    project.rows(3);
    let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]);
    assert_eq!((plan.code, embedder.embedded()), (0, 0), "{}", plan.stderr);
    let ran = project.ok(&[]);
    // Each passage once, and each question.
    assert_eq!(embedder.embedded(), 4 + 3);
    let info = project.report_rows()[0]["sample"]["steps"][0]["retrieval_info"].clone();
    assert_eq!(info["method"], "hybrid");
    // First in both rankings: of words and of letters.
    assert_eq!(info["passages"][0]["source"], "a", "{info:#}");
    assert_eq!(info["passages"].as_array().unwrap().len(), 2);
    assert_eq!(info["requests"].as_array().unwrap().len(), 2);
    let report: Value =
        serde_json::from_str(&project.read("out/bench/report/report.json")).unwrap();
    let cost = &report["cells"][0]["scorer_costs"]["rag.embeddings"]["spent"];
    assert!(cost.as_f64().unwrap() > 0.0, "{cost}");
    assert_eq!(ran.done()["spent"]["ask"].as_f64(), cost.as_f64());
    // A dollar for each thousand bytes: three questions of 14, and four passages where their texts are new.
    let ceiling = || {
        let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]);
        let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
        let nodes = plan.as_array().unwrap().iter();
        let costs = nodes.filter_map(|node| node["survey"]["cost"]["ceiling"].as_f64());
        (costs.sum::<f64>() * 1e3).round()
    };
    assert_eq!(ceiling(), 0.0);
    project.edit("pipelines/bench.toml", "top_k = 2", "top_k = 1");
    assert_eq!(ceiling(), 3.0 * 14.0);
    // The same passages, cut another way, are the same requests.
    project.edit("pipelines/bench.toml", "top_k = 1", "top_k = 2\nchunk_size = 64");
    assert_eq!(ceiling(), 0.0);
    project.edit("pipelines/bench.toml", "chunk_size = 64", "passage_prefix = \": \"");
    assert_eq!(ceiling(), 12.0 + 6.0 + 1.0 + 14.0 + 4.0 * 2.0 + 3.0 * 14.0);
    project.edit("pipelines/bench.toml", "\npassage_prefix = \": \"", "");
    // All of it is remembered, the collection as one result; a question more asks for itself alone.
    assert_eq!((project.ok(&[]).live(), embedder.embedded()), (0, 7));
    assert_eq!(project.apply(&["--frozen"]).code, 0);
    project.rows(4);
    project.ok(&[]);
    assert_eq!(embedder.embedded(), 8);
    assert_eq!(project.forge(&["verify", "pipelines/bench.toml"]).code, 0);
    // A changed document is embedded, and no other.
    let docs = project.read("fixtures/docs.jsonl");
    project.write("fixtures/docs.jsonl", &docs.replace("unlike", "alike"));
    project.ok(&[]);
    assert_eq!(embedder.embedded(), 9);
    project.edit("pipelines/bench.toml", "embeddings = \"embedder\"", "embeddings = \"engine\"");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("`rag` needs embeddings, and the engine `engine` gives none"));
}

#[test]
fn an_embedding_that_fails_is_a_cost_of_the_engine_that_embeds() {
    let embedder = Server::start(|_| reply("unused"));
    let rag = RAG.replace("\"naive\"", "\"hybrid\"\nembeddings = \"embedder\"");
    // The engine costs nothing, and what the embedding of the question did cost nobody knows.
    let rag = format!("max_retries = 0\nfail_on_error = false\nconcurrency = 1\n{rag}");
    let project = Project::with(&rag, "replies = [{ reply = \"0\" }]");
    let engine = embedder.engine("price = { input = 1000, output = 0 }");
    let manifest = project.read("pipelines/bench.toml");
    let manifest = format!("{manifest}\n[stage.embedder]\nkind = \"engine\"\n{engine}\n");
    project.write("pipelines/bench.toml", &manifest);
    project.rows(1);
    let docs = |texts: &[&str]| {
        let docs = texts.iter().map(|text| format!("{}\n", json!({ "id": text, "text": text })));
        project.write("fixtures/docs.jsonl", &docs.collect::<String>());
    };
    let apply = || {
        let ran = project.apply(&[]);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert_eq!(ran.done()["unknown_cost_samples"], json!({ "ask": 1 }), "{}", ran.stderr);
        let observed = project.report_rows()[0]["observed"].clone();
        assert_eq!(observed["requests"], json!([]), "the engine was not asked");
        let scorers = observed["scoring"].as_array().unwrap().iter().map(|made| &made["scorer"]);
        assert!(scorers.into_iter().all(|scorer| scorer == "rag.embeddings"), "{observed}");
        ran.done()["spent"]["ask"].as_f64().unwrap()
    };
    docs(&["ab", "cde"]);
    let row =
        json!({ "id": "0", "question": format!("What is {}", server::CLOSES), "answer": "0" });
    project.write("fixtures/rows.jsonl", &format!("{row}\n"));
    // Two passages of two and three bytes, a thousandth of a dollar each.
    let spent = apply();
    assert!((spent - 0.005).abs() < 1e-9, "{spent}");
    // A passage that fails ends the others that have not begun, and what was asked is paid for.
    docs(&["fgh", server::CLOSES, "ab"]);
    let spent = apply();
    assert!((spent - 0.003).abs() < 1e-9, "{spent}");
}

/// A project that asks a server that counts 11 tokens a request.
fn limited(limit: &str, server: &Server, engine: &str) -> (Value, i32, String) {
    let workflow = format!("method = \"react\"\n{limit}");
    let project = Project::asking(&workflow, &server.engine(&format!("stream = false\n{engine}")));
    project.rows(1);
    let ran = project.apply(&[]);
    if ran.code != 0 {
        return (Value::Null, ran.code, ran.stderr);
    }
    assert_eq!(project.ok(&[]).live(), 0, "a limit that is met is final");
    (project.report_rows()[0]["sample"].clone(), ran.code, ran.stderr)
}

fn busy() -> Server {
    Server::start(|asked| reply(&format!("Action: calculator[{}]", asked.number)))
}

#[test]
fn samples_that_meet_a_limit_are_truncated_and_not_wrong() {
    let server = busy();
    let check = |limit: &str, engine: &str, detail: &str, requests: usize| {
        let (sample, code, stderr) = limited(limit, &server, engine);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(sample["outcome"], "truncated");
        assert_eq!(sample["detail"], detail);
        assert_eq!(sample["scores"], json!([]));
        assert_eq!(sample["steps"][0]["requests"].as_array().unwrap().len(), requests);
        assert_eq!(sample["steps"][0]["trace"]["termination_reason"], "error");
    };
    // System, question, and two turns with their observations.
    check("message_limit = 6", "", "`message_limit` of 6 messages is reached", 2);
    check("token_limit = 25", "", "`token_limit` of 25 tokens is passed: 33 used", 3);
    let price = "price = { input = 1000000, output = 0 }";
    check("cost_limit = 10", price, "`cost_limit` of $10 is passed: $18.000000 used", 2);
    let (_, code, stderr) = limited("cost_limit = 10", &server, "");
    assert_eq!(code, 2);
    assert!(
        stderr.contains("`cost_limit` cannot be held: the engine `engine` has no price"),
        "{stderr}"
    );
}

#[test]
fn tokens_that_nobody_counts_cannot_be_limited() {
    let ran = Project::with("token_limit = 100", REPLIES).apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("`token_limit` cannot be held"), "{}", ran.stderr);
}

#[test]
fn a_sample_out_of_time_has_no_result() {
    let replies = "latency = \"200ms\"\nreplies = [{ when = \"What is\", reply = \"Action: calculator[1]\" }, { when = \": 1\", reply = \"Action: calculator[2]\" }, { reply = \"Final Answer: 0\" }]";
    let workflow = "method = \"react\"\ntime_limit = \"500ms\"\nfail_on_error = false";
    let project = Project::with(workflow, replies);
    project.rows(2);
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    assert_eq!(ran.result("ask")["outcomes"]["provider_error"], 2);
    assert!(ran.stderr.contains("`time_limit` of 500ms is passed"), "{}", ran.stderr);
    // It is no part of the key: with more time only what is missing is asked.
    project.edit("pipelines/bench.toml", "500ms", "60s");
    let ran = project.ok(&[]);
    assert!(ran.disk() >= 2, "{}", ran.disk());
    assert_eq!(ran.result("ask")["outcomes"]["answered"], 2);
}

const PREFILLED: &str = "id = \"row.id\"\ntargets = \"row.answer\"\n[[step]]\nid = \"answer\"\nuser = \"{{ row.question }}\"\nprefill = \"The answer is\"\n";

#[test]
fn a_reply_goes_on_where_its_prefill_ends() {
    let server = Server::start(|_| reply(" 0."));
    let engine = |more: &str| server.engine(&format!("stream = false\n{more}"));
    let project = Project::asking("", &engine(""));
    project.rows(1);
    project.write("templates/qa.toml", PREFILLED);
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    let words = "the engine `engine` cannot go on with a prefilled reply";
    assert!(
        ran.stderr.contains(words) && ran.stderr.contains("prefill = \"plain\""),
        "{}",
        ran.stderr
    );
    assert_eq!(server.count(), 0);
    for (number, form) in ["plain", "continue_final_message"].iter().enumerate() {
        let project = Project::asking("", &engine(&format!("prefill = \"{form}\"")));
        project.rows(1);
        project.write("templates/qa.toml", PREFILLED);
        let ran = project.ok(&[]);
        assert_eq!(ran.metric("ask", "accuracy"), 1.0);
        let body = server.asked.lock().unwrap()[number].body.clone();
        let last = body["messages"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&last["role"], &last["content"]),
            (&json!("assistant"), &json!("The answer is"))
        );
        let asks = body.get("continue_final_message") == Some(&json!(true));
        assert_eq!(asks, *form == "continue_final_message");
        let step = &project.report_rows()[0]["sample"]["steps"][0];
        let transcript = step["transcript"].as_array().unwrap();
        assert_eq!(transcript.last().unwrap()["content"], "The answer is 0.");
        assert_eq!((transcript.len(), &step["prefill"]), (3, &json!("The answer is")));
    }
}

#[test]
fn conversations_come_from_the_template_and_from_rows() {
    let project = Project::with("instructions = \"\"", REPLIES);
    project.write(
        "templates/qa.toml",
        "[[step]]\nid = \"a\"\nmessages = \"row.chat\"\n[[step.message]]\nrole = \"user\"\ncontent = \"{{ row.n }}\"\n\
         [[step.message]]\nrole = \"assistant\"\ncontent = \"Yes.\"\n",
    );
    let chat = json!([
        { "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hello." },
        { "role": "assistant", "content": "Hi." }, { "role": "user", "content": "What is 1 ?" },
    ]);
    project.write("fixtures/rows.jsonl", &json!({ "n": 7, "chat": chat }).to_string());
    project.ok(&[]);
    let messages = opening(&project, 0);
    assert_eq!(contents(&messages), ["Be brief.", "Hello.", "Hi.", "7", "Yes.", "What is 1 ?"]);
    assert_eq!(project.report_rows()[0]["sample"]["answer"], "1");
    project.write("fixtures/rows.jsonl", &json!({ "n": 7, "chat": "Hello." }).to_string());
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("messages are a list"), "{}", ran.stderr);
}

const DRAWS: &str = "id = \"row.id\"\ntargets = \"row.answer\"\n[[step]]\nid = \"answer\"\nuser = \"{{ row.question }}\"\n\
    [step.draw]\ncount = 3\nanswer = \"{{ row.answer }}\"\n";

/// The questions of the worked examples of every sample.
fn drawn(project: &Project) -> Vec<Vec<String>> {
    (0..project.report_rows().len())
        .map(|sample| {
            let messages = opening(project, sample);
            let all = contents(&messages);
            let (own, examples) = all[1..].split_last().unwrap();
            let questions: Vec<_> = examples.iter().step_by(2).map(ToString::to_string).collect();
            assert!(!questions.contains(&own.to_string()), "{own} is among its own examples");
            assert_eq!(questions.len(), 3);
            questions
        })
        .collect()
}

#[test]
fn worked_examples_are_drawn_and_never_the_row_itself() {
    let project = Project::new();
    project.write("templates/qa.toml", DRAWS);
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("add `shots = \"<rows>\"` to the expansion"), "{}", ran.stderr);
    // The rows themselves are the pool; one has the question of another under a name of its own.
    let rows = project.read("fixtures/rows.jsonl")
        + "{\"id\": \"copy\", \"question\": \"What is 0 + 0?\", \"answer\": 0}\n";
    project.write("fixtures/pool.jsonl", &rows);
    let shots = "template = \"question\"\nshots = \"fixtures/pool.jsonl\"\nshots_seed = 1";
    project.edit("pipelines/bench.toml", "template = \"question\"", shots);
    assert_eq!(project.ok(&[]).live(), 10);
    let first = drawn(&project);
    assert!(first.iter().any(|shots| *shots != first[0]), "every row has its own");
    // Fewer rows have the same examples.
    assert_eq!(project.ok(&["--set", "num_flows=4"]).live(), 0);
    project.edit("pipelines/bench.toml", "shots_seed = 1", "shots_seed = 2");
    project.ok(&[]);
    assert_ne!(drawn(&project), first);
    project.edit("templates/qa.toml", "count = 3", "count = 30");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("draws 30 worked examples, and `shots` has"), "{}", ran.stderr);
}

#[test]
fn a_chat_format_inside_a_chat_format_is_a_warning() {
    let marked =
        "id = \"row.id\"\n[[step]]\nid = \"a\"\nuser = \"<s>[INST] {{ row.question }} [/INST]\"\n";
    let words = "holds `[INST]`, and `engine` puts messages into the chat format";
    let run = |engine: &str| {
        let server = Server::start(|_| reply("0"));
        let engine = server.engine(&format!("stream = false\n{engine}"));
        let project = Project::asking("", &engine);
        project.write("templates/qa.toml", marked);
        project.ok(&[]).stdout.matches(words).count()
    };
    assert_eq!(run(""), 1, "once, and not for every sample");
    // A base model gets the text as it stands.
    assert_eq!(run("api = \"completions\""), 0);
    assert!(!Project::new().ok(&[]).stdout.contains("chat format"));
}

#[test]
fn draws_at_temperature_zero_are_a_warning() {
    let notices = |workflow: &str| {
        let ran = Project::with(workflow, REPLIES).ok(&[]);
        ran.stdout.matches("asks for the same reply again and again").count()
    };
    assert_eq!(notices("epochs = 3"), 1);
    assert_eq!(notices("epochs = 3\ntemperature = 0.7"), 0);
    assert_eq!(notices(""), 0);
}

#[test]
fn a_prompt_that_a_server_cuts_is_an_overflow() {
    // Nine tokens, whatever was sent.
    let server = Server::start(|_| reply("0"));
    let run = |engine: &str| {
        let project = Project::asking("", &server.engine(&format!("stream = false\n{engine}")));
        let tokenizer = format!("{}/fixtures/tiny-chat/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
        std::fs::copy(tokenizer, project.path("tokenizer.json")).unwrap();
        project.rows(1);
        project.edit("templates/qa.toml", "{{ row.question }}", &"What is 4 * 4? ".repeat(400));
        let ran = project.ok(&[]);
        (project.report_rows()[0]["sample"].clone(), ran.stderr)
    };
    let (sample, _) = run("tokenizer = \"tokenizer.json\"\ncontext_length = 100000");
    assert_eq!(sample["outcome"], "overflow");
    let detail = sample["detail"].as_str().unwrap();
    assert!(detail.contains("the server has read 9: it has cut the prompt"), "{detail}");
    assert_eq!(sample["scores"], json!([]));
    assert_eq!(server.count(), 1);
    // What is known beforehand is not sent at all.
    let (sample, _) = run("tokenizer = \"tokenizer.json\"\ncontext_length = 100");
    assert_eq!((&sample["outcome"], server.count()), (&json!("overflow"), 1));
    // Without a tokenizer it can only be guessed.
    let (sample, stderr) = run("");
    assert_eq!(sample["outcome"], "answered");
    assert!(stderr.contains("it may have cut it"), "{stderr}");
}

#[test]
fn two_models_never_share_an_answer() {
    let server = Server::start(|asked| reply(asked.body["model"].as_str().unwrap()));
    let project = Project::asking("", &server.engine("stream = false\nprobe = false"));
    project.rows(1);
    assert_eq!(project.ok(&[]).live(), 1);
    project.edit("pipelines/bench.toml", "model = \"m\"", "model = \"n\"");
    assert_eq!(project.ok(&[]).live(), 1);
    assert_eq!(project.report_rows()[0]["sample"]["answer"], "n");
    project.edit("pipelines/bench.toml", "model = \"n\"", "model = \"m\"");
    assert_eq!(project.ok(&[]).live(), 0);
    assert_eq!(project.report_rows()[0]["sample"]["answer"], "m");
}
