//! `forge serve` over HTTP, as programs and browsers talk to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::project::Project;
use crate::server;

/// Seconds that anything may take on a machine that is busy with something else.
const PATIENCE: u64 = 300;

/// A server at work in a project.
pub struct Server {
    pub child: Child,
    pub address: String,
    pub token: Option<&'static str>,
}

/// What came back.
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl Server {
    pub fn start(project: &Project, args: &[&str]) -> Server {
        Server::with_token(project, args, None)
    }

    pub fn with_token(project: &Project, args: &[&str], token: Option<&'static str>) -> Server {
        let mut all = vec!["serve", "--listen", "127.0.0.1:0"];
        all.extend(args);
        let mut command = project.command(&all);
        command.env_remove("FORGE_TOKEN").stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(token) = token {
            command.env("FORGE_TOKEN", token);
        }
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").unwrap_or_else(|| panic!("{line:?}"));
        Server { address: address.to_owned(), child, token }
    }

    /// Sends exactly this, and reads until the other end closes.
    pub fn raw(&self, text: &str) -> Reply {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(PATIENCE))).unwrap();
        // A server that refuses early may close before it has read everything.
        let _ = stream.write_all(text.as_bytes());
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let text = String::from_utf8(reply).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Reply { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        if let Some(token) = self.token
            && !headers.iter().any(|(name, _)| ["authorization", "cookie"].contains(name))
        {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = body.len();
        let length =
            if method == "GET" { String::new() } else { format!("Content-Length: {length}\r\n") };
        let reply = self.raw(&format!("{head}{length}\r\n{body}"));
        assert!(reply.header("x-request-id").is_some(), "{method} {path}: {}", reply.head);
        reply
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], "")
    }

    pub fn api(&self, path: &str) -> Value {
        let reply = self.get(&format!("/api/v1{path}"));
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.json()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        let json = [("content-type", "application/json")];
        self.ask("POST", &format!("/api/v1{path}"), &json, &body.to_string())
    }

    pub fn create(&self, config: Value) -> String {
        let reply = self.post("/experiments", &json!({ "name": "one", "config": config }));
        assert_eq!(reply.status, 201, "{}", reply.body);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    pub fn run(&self, id: &str) -> Reply {
        self.post(&format!("/experiments/{id}/run"), &Value::Null)
    }

    pub fn wait(&self, id: &str, wanted: &str) -> Value {
        let start = Instant::now();
        loop {
            let one = self.api(&format!("/experiments/{id}"));
            if one["status"] == wanted {
                return one;
            }
            assert!(start.elapsed().as_secs() < PATIENCE, "waiting for {wanted}: {one}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Creates, runs, and waits for the end.
    pub fn complete(&self, config: Value) -> String {
        let id = self.create(config);
        assert_eq!(self.run(&id).status, 200);
        self.wait(&id, "completed");
        id
    }

    /// Waits until a job stands like this.
    pub fn job(&self, id: &str, wanted: &str) -> Value {
        let start = Instant::now();
        loop {
            let job = self.api(&format!("/jobs/{id}"));
            if job["status"] == wanted {
                return job;
            }
            assert!(start.elapsed().as_secs() < PATIENCE, "waiting for {wanted}: {job}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// ULID of the newest run.
    pub fn last_run(&self) -> String {
        self.api("/runs?limit=1")["runs"][0]["run_id"].as_str().unwrap().to_owned()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Events of an experiment as (id, name, data), until there are enough or the stream ends.
    pub fn events(
        &self,
        id: &str,
        last: Option<&str>,
        enough: usize,
    ) -> Vec<(String, String, Value)> {
        self.listen(&format!("/experiments/{id}/events"), last, enough)
    }

    /// The same of anything that has events.
    pub fn listen(
        &self,
        path: &str,
        last: Option<&str>,
        enough: usize,
    ) -> Vec<(String, String, Value)> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(PATIENCE))).unwrap();
        let last = last.map_or(String::new(), |last| format!("Last-Event-ID: {last}\r\n"));
        let head = format!("GET /api/v1{path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        stream.write_all(format!("{head}{last}\r\n").as_bytes()).unwrap();
        let (mut found, mut event) = (Vec::new(), (String::new(), String::new(), Value::Null));
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Some(text) = line.strip_prefix("id: ") {
                event.0 = text.to_owned();
            } else if let Some(text) = line.strip_prefix("event: ") {
                event.1 = text.to_owned();
            } else if let Some(text) = line.strip_prefix("data: ") {
                event.2 = serde_json::from_str(text).unwrap();
            } else if line.is_empty() && !event.1.is_empty() {
                let is_end = event.1 == "done";
                found.push(std::mem::take(&mut event));
                if is_end || found.len() == enough {
                    return found;
                }
            }
        }
        found
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn config(samples: u32) -> Value {
    json!({ "model_name": "engine", "dataset_name": "rows", "num_samples": samples })
}

pub fn cached(samples: u32) -> Value {
    let mut config = config(samples);
    config["optimization"] =
        json!({ "enable_caching": true, "enable_batching": true, "batch_size": 4 });
    config
}

/// An engine that takes its time.
pub fn slow(rows: usize, latency: &str) -> Project {
    let project =
        Project::with("", &format!("latency = \"{latency}\"\nreplies = [{{ reply = \"1\" }}]"));
    project.rows(rows);
    project
}

#[test]
fn an_experiment_from_its_first_word_to_its_last() {
    let project = Project::new();
    let server = Server::start(&project, &[]);
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));
    assert_eq!(server.get("/ready").json()["status"], "ready");
    let models = server.api("/experiments/models");
    assert_eq!(
        (&models["models"][0]["value"], &models["datasets"]),
        (&json!("engine"), &json!(["rows"]))
    );

    let id = server.create(cached(10));
    let one = server.api(&format!("/experiments/{id}"));
    assert_eq!(one["config"]["hyperparameters"]["seed"], 42);
    assert_eq!((&one["status"], &one["started_at"]), (&json!("pending"), &Value::Null));
    assert_eq!(server.get(&format!("/api/v1/results/{id}")).status, 404);
    let none = server.api(&format!("/results/{id}/profile"));
    assert_eq!(none["message"], "No optimization data. Run with profiling enabled.");
    assert_eq!(server.run(&id).status, 200);
    let done = server.wait(&id, "completed");
    assert!(done["completed_at"].as_str() >= done["started_at"].as_str());

    let result = server.api(&format!("/results/{id}?include_runs=true"));
    let runs = result["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 10);
    assert_eq!(result["metrics"]["quality"]["accuracy_exact"], 0.5);
    assert_eq!(result["metrics"]["quality"]["faithfulness"], Value::Null);
    assert_eq!(result["metrics"]["cost"]["total_runs"], 10);
    assert_eq!(result["metrics"]["cost"]["total_tokens_input"], Value::Null);
    assert!(result["metrics"]["performance"]["throughput"].as_f64().unwrap() > 0.0);
    let run = &runs[3];
    assert_eq!((&run["example_id"], &run["output_text"]), (&json!("q3"), &json!("3")));
    assert_eq!((&run["is_correct"], &run["expected_output"]), (&json!(true), &json!("3")));
    assert_eq!((&run["served_from"], &run["outcome"]), (&json!("live"), &json!("answered")));
    let page = server.api(&format!("/results/{id}/runs?skip=7&limit=2"));
    assert_eq!((&page["total"], page["runs"].as_array().unwrap().len()), (&json!(10), 2));
    assert_eq!(page["runs"][0]["example_id"], "q7");
    let beyond = server.api(&format!("/results/{id}/runs?skip=70"));
    assert_eq!(beyond["runs"], json!([]));

    let first = server.api(&format!("/results/{id}/profile"));
    assert_eq!(first["cache_stats"]["hits"], 0);
    assert_eq!(
        first["batch_stats"],
        json!({ "batches_processed": 3, "total_prompts_batched": 10 })
    );
    assert_eq!(first["profiling_summary"]["api_call"]["count"], 10);
    // The second run looks everything up, and says so.
    assert_eq!(server.run(&id).status, 200);
    server.wait(&id, "completed");
    let second = server.api(&format!("/results/{id}/profile"));
    assert_eq!(second["cache_stats"]["hit_rate"], 1.0);
    assert_eq!(second["profiling_summary"]["cache_lookup"]["count"], 10);
    assert_eq!(second["profiling_summary"].get("api_call"), None);
    // Nothing was live, so there is no throughput.
    let metrics = server.api(&format!("/results/{id}/metrics"));
    let speed = &metrics["performance"];
    assert_eq!(
        (&speed["throughput"], &speed["latency_p50"], &speed["samples_remembered"]),
        (&Value::Null, &Value::Null, &json!(10))
    );
    assert!(server.get(&format!("/experiments/{id}")).body.contains("– all from the store"));

    let export = server.get(&format!("/api/v1/results/{id}/export"));
    assert!(export.header("content-disposition").unwrap().starts_with("attachment"));
    assert_eq!(
        (&export.json()["total_runs"], &export.json()["experiment"]["id"]),
        (&json!(10), &json!(id))
    );

    // The same from the command line: everything is there already.
    let manifest = server.get(&format!("/api/v1/experiments/{id}/manifest"));
    project.write("pipelines/copy.toml", &manifest.body);
    let ran = project.forge(&["apply", "pipelines/copy.toml", "--json"]);
    assert_eq!((ran.code, ran.live()), (0, 0), "{}", ran.stderr);

    let gone = server.ask("DELETE", &format!("/api/v1/experiments/{id}"), &[], "");
    assert_eq!((gone.status, gone.body.as_str()), (204, ""));
    assert_eq!(server.get(&format!("/api/v1/experiments/{id}")).status, 404);
    assert_eq!(server.api("/experiments")["total"], 0);
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_dropped() {
    // Whatever waits for the first of them is done long before that would be.
    let project = slow(400, "500ms");
    let server = Server::start(&project, &["--at-once", "1", "--queue", "1"]);
    let refused = |config: Value, field: &str| {
        let reply = server.post("/experiments", &json!({ "name": "n", "config": config }));
        let body = reply.json();
        assert_eq!((reply.status, &body["status_code"]), (422, &json!(422)), "{body}");
        assert_eq!(body["error"], true);
        assert_eq!(body["request_id"].as_str(), reply.header("x-request-id"));
        let fields: Vec<_> =
            body["details"].as_array().unwrap().iter().map(|d| &d["field"]).collect();
        assert!(fields.contains(&&json!(field)), "{field}: {body}");
        body["details"][0]["issue"].as_str().unwrap().to_owned()
    };
    let with = |name: &str, value: Value| {
        let mut config = config(5);
        config[name] = value;
        config
    };
    assert!(
        refused(with("dataset_name", json!("other")), "config.dataset_name")
            .contains("known: rows")
    );
    let said = refused(with("model_name", json!("gpt")), "config.model_name");
    assert!(said.contains("known: engine"), "{said}");
    assert!(said.contains("takes no other model") && said.contains("[stage.<name>]"), "{said}");
    refused(with("num_samples", json!(501)), "config.num_samples");
    refused(with("agent", json!({})), "config.agent");
    refused(with("rag", json!({ "retrieval_method": "hybrid" })), "config.rag.retrieval_method");
    refused(with("optimisation", json!({})), "config.optimisation");
    let mut react = with("reasoning_method", json!("react"));
    react["agent"] = json!({});
    assert!(refused(react, "config.agent.tools").contains("lookup"));

    let json = [("content-type", "application/json")];
    let plain = |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        let reply = server.ask(method, path, headers, body);
        assert_eq!(reply.json()["status_code"], reply.status, "{}", reply.body);
        reply
    };
    assert_eq!(plain("POST", "/api/v1/experiments", &json, "{").status, 422);
    assert_eq!(plain("POST", "/api/v1/experiments", &[], "{}").status, 415);
    assert_eq!(plain("POST", "/api/v1/experiments", &json, &"x".repeat(300_000)).status, 413);
    let wrong = plain("PUT", "/api/v1/experiments", &json, "{}");
    assert!((wrong.status, wrong.header("allow").is_some()) == (405, true), "{}", wrong.head);
    for path in [
        "/api/v1/other",
        "/api/v1/experiments/not-an-id",
        "/api/v1/experiments/00000000-0000-0000-0000-000000000000",
        "/api/v1/results/00000000-0000-0000-0000-000000000000/runs",
    ] {
        assert_eq!(plain("GET", path, &[], "").status, 404, "{path}");
    }
    for path in ["limit=0", "limit=101", "skip=-1", "status=done", "method=tot"] {
        assert_eq!(
            plain("GET", &format!("/api/v1/experiments?{path}"), &[], "").status,
            422,
            "{path}"
        );
    }
    assert_eq!(plain("GET", "/api/v1/results/compare?experiment_ids=x", &[], "").status, 400);
    assert_eq!(plain("GET", "/api/v1/results/compare/statistical", &[], "").status, 422);

    // One at work, one that waits, and no place for a third.
    let ids: Vec<String> = (0..3).map(|_| server.create(config(400))).collect();
    assert_eq!(
        plain("POST", &format!("/api/v1/experiments/{}/cancel", ids[0]), &json, "").status,
        400
    );
    assert_eq!(server.run(&ids[0]).json()["id"], json!(ids[0]));
    server.wait(&ids[0], "running");
    assert_eq!(server.run(&ids[0]).status, 400);
    assert_eq!(server.run(&ids[1]).json()["status"], "queued");
    let full = server.run(&ids[2]);
    assert!((full.status, full.header("retry-after").is_some()) == (429, true), "{}", full.body);
    let busy = server.ask("DELETE", &format!("/api/v1/experiments/{}", ids[0]), &[], "");
    assert_eq!(busy.status, 400);
    for id in &ids[..2] {
        assert_eq!(server.post(&format!("/experiments/{id}/cancel"), &Value::Null).status, 200);
        server.wait(id, "cancelled");
    }
    assert_eq!(server.api("/experiments?status=cancelled")["total"], 2);
    assert_eq!(server.api("/experiments/stats")["pending"], 1);
}

#[test]
fn events_go_on_where_they_were() {
    // Long enough that whoever listens is there before it ends.
    let project = slow(30, "200ms");
    let server = Server::start(&project, &[]);
    let id = server.create(config(30));
    assert_eq!(server.run(&id).status, 200);
    let some = server.events(&id, None, 8);
    let (last, ..) =
        some.iter().rfind(|(_, name, _)| name == "sample").expect("no sample among eight events");
    let rest = server.events(&id, Some(last), usize::MAX);
    let samples = |events: &[(String, String, Value)]| -> Vec<u64> {
        let samples = events.iter().filter(|(_, name, _)| name == "sample");
        samples.map(|(_, _, data)| data["index"].as_u64().unwrap()).collect()
    };
    let before = some.iter().rposition(|(_, name, _)| name == "sample").unwrap();
    let mut all = samples(&some[..=before]);
    all.extend(samples(&rest));
    assert_eq!(all, (0..30).collect::<Vec<u64>>());
    let (_, name, data) = rest.last().unwrap();
    assert_eq!((name.as_str(), &data["status"]), ("done", &json!("completed")));
    let again = server.events(&id, None, usize::MAX);
    assert_eq!(samples(&again).len(), 30);
    let progress = some
        .iter()
        .chain(&rest)
        .find(|(_, name, data)| name == "progress" && data["finished"].is_u64());
    assert!(progress.is_some_and(|(_, _, data)| data["total"] == 30), "{some:?}");
}

#[test]
fn what_a_killed_server_was_answered_is_not_asked_again() {
    // Without a cache, where every run asks anew: the answers of the run that was killed count for the one after it.
    // After 25 answers its engine keeps silent until the server is gone, so that no machine is too slow for this.
    let is_gone = Arc::new(AtomicBool::new(false));
    let gone = is_gone.clone();
    let upstream = server::Server::start(move |asked| {
        while asked.number >= 25 && !gone.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        server::right(asked)
    });
    let project = Project::asking("", &upstream.engine(""));
    project.rows(60);
    let server = Server::start(&project, &[]);
    let id = server.create(config(60));
    assert_eq!(server.run(&id).status, 200);
    // One is asked after the other: who asks for the 26th has the 25 before it.
    let start = Instant::now();
    while upstream.count() < 26 {
        assert!(start.elapsed().as_secs() < PATIENCE, "{} requests", upstream.count());
        std::thread::sleep(Duration::from_millis(2));
    }
    // All of them are in the log, though nothing comes after the last.
    project.wait_for_samples(25);
    server.signal("-KILL");
    drop(server);
    is_gone.store(true, Ordering::SeqCst);
    let before = project.logged("\"sample_finished\"");
    assert!(before < 60, "the server was not killed in time");
    let server = Server::start(&project, &[]);
    server.wait(&id, "completed");
    let result = server.api(&format!("/results/{id}?include_runs=true"));
    let runs = result["runs"].as_array().unwrap();
    let live = runs.iter().filter(|run| run["served_from"] == "live").count();
    assert_eq!(runs.len(), 60);
    // What ended in the same moment may be in the store and not yet in the log.
    assert!(live + before <= 60 && live > 0, "{before} before, {live} live after");
    // The engine says the same: beside the 60 it has seen the one that was under way.
    assert_eq!(upstream.count(), 61);
    // Run again, it asks everything: the cache is off.
    assert_eq!(server.run(&id).status, 200);
    server.wait(&id, "completed");
    let again = server.api(&format!("/results/{id}?include_runs=true"));
    let live = again["runs"].as_array().unwrap().iter().filter(|run| run["served_from"] == "live");
    assert_eq!(live.count(), 60);
}

#[test]
fn a_server_that_ends_leaves_its_runs_to_the_next() {
    let project = slow(60, "15ms");
    let mut server = Server::start(&project, &["--at-once", "1"]);
    let ids = [server.create(config(60)), server.create(config(3))];
    ids.iter().for_each(|id| assert_eq!(server.run(id).status, 200));
    project.wait_for_samples(10);
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success());
    let server = Server::start(&project, &["--at-once", "1"]);
    for id in &ids {
        server.wait(id, "completed");
    }
    // No request that was under way was lost: 60 and 3 were asked.
    assert_eq!(project.logged("\"live\":1,"), 63);
}

#[test]
fn a_queue_keeps_its_order() {
    let project = slow(20, "15ms");
    let mut server = Server::start(&project, &["--at-once", "1"]);
    let ids: Vec<String> =
        [20, 1, 1, 1, 1, 1].into_iter().map(|samples| server.create(config(samples))).collect();
    ids.iter().for_each(|id| assert_eq!(server.run(id).status, 200));
    project.wait_for_samples(1);
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success());
    let server = Server::start(&project, &["--at-once", "1"]);
    for id in &ids {
        server.wait(id, "completed");
    }
    let ended = |id: &String| {
        let one = server.api(&format!("/experiments/{id}"));
        one["completed_at"].as_str().unwrap().to_owned()
    };
    let ended: Vec<_> = ids.iter().map(ended).collect();
    assert!(ended.is_sorted(), "{ended:?}");
}

#[test]
fn several_runs_share_their_engine() {
    let project = slow(10, "1ms");
    let server = Server::start(&project, &["--at-once", "4"]);
    let ids: Vec<String> = (0..4).map(|_| server.create(cached(10))).collect();
    ids.iter().for_each(|id| assert_eq!(server.run(id).status, 200));
    ids.iter().for_each(|id| drop(server.wait(id, "completed")));
    assert_eq!(project.logged("\"engine_loaded\""), 1);
    // What one was answered, the others found, or waited for.
    assert_eq!(project.logged("\"live\":1,"), 10);
}

#[test]
fn the_document_names_what_is_there() {
    let project = Project::new();
    let server = Server::start(&project, &[]);
    let document = server.api("/openapi.json");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 16, "{:?}", paths.keys());
    for (path, methods) in paths {
        let path = path.replace("{id}", "00000000-0000-0000-0000-000000000000");
        for method in methods.as_object().unwrap().keys() {
            let status = server.ask(&method.to_uppercase(), &path, &[], "").status;
            assert!(status != 405 && status < 500, "{method} {path}: {status}");
        }
    }
    let temperature =
        &document["components"]["schemas"]["Hyperparameters"]["properties"]["temperature"];
    assert_eq!(temperature["maximum"].as_f64(), Some(2.0), "{temperature}");
}
