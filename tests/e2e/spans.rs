//! Spans of a run, as a collector gets them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::project::{Project, Ran};
use super::server::{Server, right};

/// Takes spans over HTTP, and answers each post with the next of its answers, at last with the last one.
struct Collector {
    port: u16,
    /// Head and body of each post.
    posts: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Collector {
    fn start(answers: &'static [&'static str]) -> Collector {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let posts: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let kept = posts.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                loop {
                    let (mut head, mut length) = (String::new(), 0);
                    while stream.read_line(&mut head).unwrap_or(0) > 2 {
                        let line = head.lines().last().unwrap().to_ascii_lowercase();
                        if let Some(value) = line.strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                    }
                    if head.is_empty() {
                        break;
                    }
                    let mut body = vec![0; length];
                    stream.read_exact(&mut body).unwrap();
                    let mut posts = kept.lock().unwrap();
                    let answer = answers[posts.len().min(answers.len() - 1)];
                    posts.push((head, serde_json::from_slice(&body).unwrap()));
                    drop(posts);
                    stream.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        Collector { port, posts }
    }

    /// All spans by identifier.
    fn spans(&self) -> BTreeMap<String, Value> {
        let posts = self.posts.lock().unwrap();
        let spans = posts.iter().flat_map(|(_, body)| {
            body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
        });
        spans.map(|span| (span["spanId"].as_str().unwrap().to_owned(), span)).collect()
    }

    fn apply(&self, project: &Project, vars: &[(&str, &str)]) -> Ran {
        let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", self.port));
        command.envs(vars.iter().copied());
        Ran::of(command.output().unwrap())
    }
}

const TAKEN: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
const REFUSED: &str = "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";

/// The value of an attribute; a number of 64 bits is text.
fn attribute<'a>(span: &'a Value, name: &str) -> Option<&'a Value> {
    let found = span["attributes"].as_array()?.iter().find(|attribute| attribute["key"] == name);
    found?["value"].as_object()?.values().next()
}

fn named<'a>(spans: &'a BTreeMap<String, Value>, start: &str) -> Vec<&'a Value> {
    spans.values().filter(|span| span["name"].as_str().unwrap().starts_with(start)).collect()
}

fn project(server: &Server) -> Project {
    Project::asking("temperature = 0\nmax_tokens = 20", &server.engine(""))
}

#[test]
fn a_run_is_a_tree_of_spans() {
    let (server, collector) = (Server::start(right), Collector::start(&[BUSY, TAKEN]));
    let project = project(&server);
    let vars = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20abc"),
        ("OTEL_SERVICE_NAME", "bench"),
    ];
    let ran = collector.apply(&project, &vars);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(!ran.stderr.contains("spans"), "{}", ran.stderr);
    let (head, body) = collector.posts.lock().unwrap()[1].clone();
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("authorization: basic abc\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("content-type: application/json\r\n"));
    let resource = &body["resourceSpans"][0]["resource"];
    assert_eq!(attribute(resource, "service.name").unwrap(), "bench");

    let spans = collector.spans();
    let parent = |span: &Value| spans[span["parentSpanId"].as_str().unwrap()].clone();
    let time = |span: &Value, name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
    let run = named(&spans, "run bench")[0];
    assert!(run.get("parentSpanId").is_none() && run.get("status").is_none(), "{run}");
    assert_eq!(attribute(run, "forge.run.id").unwrap(), &ran.done()["run_id"]);
    let requests = named(&spans, "chat m");
    assert_eq!((requests.len(), named(&spans, "sample").len()), (10, 10));
    for request in requests {
        assert_eq!((&request["kind"], &request["traceId"]), (&json!(3), &run["traceId"]));
        let of = |name: &str| attribute(request, name).cloned().unwrap_or_default();
        assert_eq!(
            (of("gen_ai.operation.name"), of("gen_ai.request.model")),
            (json!("chat"), json!("m"))
        );
        assert_eq!(of("gen_ai.provider.name"), "test");
        assert_eq!(of("gen_ai.request.max_tokens"), "20");
        assert_eq!(of("gen_ai.request.temperature"), 0.0);
        let reasons = of("gen_ai.response.finish_reasons");
        assert_eq!(reasons["values"], json!([{ "stringValue": "stop" }]));
        assert!(of("gen_ai.usage.input_tokens").as_str().unwrap().parse::<u64>().unwrap() > 0);
        assert!(of("gen_ai.usage.output_tokens").as_str().is_some());
        assert_eq!(of("gen_ai.request.stream"), true);
        assert!(of("gen_ai.response.time_to_first_chunk").as_f64().unwrap() > 0.0);
        assert!(time(request, "startTimeUnixNano") < time(request, "endTimeUnixNano"));
        let sample = parent(request);
        assert_eq!(attribute(&sample, "forge.served_from").unwrap(), "live");
        assert_eq!(sample["events"][0]["name"], "gen_ai.evaluation.result");
        let stage = parent(&sample);
        assert_eq!(stage["name"], "workflow ask");
        assert_eq!(&parent(&stage), run);
        assert!(time(&sample, "endTimeUnixNano") <= time(run, "endTimeUnixNano"));
    }
    let all = serde_json::to_string(&spans).unwrap();
    assert!(!all.contains("What is"), "a prompt was sent");

    // What was remembered is no request.
    let again = Collector::start(&[TAKEN]);
    project.edit(
        "pipelines/bench.toml",
        "max_tokens = 20",
        "max_tokens = 20\nscorers = [\"includes\"]",
    );
    assert_eq!(again.apply(&project, &[]).live(), 0);
    let spans = again.spans();
    assert_eq!((named(&spans, "sample").len(), named(&spans, "chat").len()), (10, 0));
}

#[test]
fn prompts_are_sent_where_somebody_asks_for_it() {
    let (server, collector) = (Server::start(right), Collector::start(&[TAKEN]));
    let vars = [("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")];
    let ran = collector.apply(&project(&server), &vars);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let spans = collector.spans();
    let text = |span: &Value, name: &str| -> Value {
        serde_json::from_str(attribute(span, name).unwrap().as_str().unwrap()).unwrap()
    };
    let requests = named(&spans, "chat m");
    assert_eq!(requests.len(), 10);
    for request in requests {
        let input = text(request, "gen_ai.input.messages");
        let last = input.as_array().unwrap().last().unwrap();
        assert_eq!((&last["role"], &last["parts"][0]["type"]), (&json!("user"), &json!("text")));
        assert!(last["parts"][0]["content"].as_str().unwrap().starts_with("What is"));
        let output = text(request, "gen_ai.output.messages");
        assert_eq!(
            (&output[0]["role"], &output[0]["finish_reason"]),
            (&json!("assistant"), &json!("stop"))
        );
        assert!(!output[0]["parts"][0]["content"].as_str().unwrap().is_empty());
    }
}

#[test]
fn an_endpoint_that_fails_ends_no_run() {
    let server = Server::start(right);
    let plain = project(&server);
    let collector = Collector::start(&[REFUSED]);
    let ran = collector.apply(&plain, &[]);
    assert_eq!((ran.code, ran.live()), (0, 10), "{}", ran.stderr);
    let warning = "spans were not sent to the OpenTelemetry endpoint: the endpoint answered 401";
    assert!(ran.stderr.contains(warning), "{}", ran.stderr);

    // Connections are made, and nobody answers: the end of the run waits five seconds at most.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let silent = Collector { port: listener.local_addr().unwrap().port(), posts: Arc::default() };
    let start = Instant::now();
    let ran = silent.apply(&project(&server), &[]);
    assert_eq!((ran.code, ran.live()), (0, 10), "{}", ran.stderr);
    assert!(ran.stderr.contains("spans were not sent"), "{}", ran.stderr);
    assert!(start.elapsed() < Duration::from_secs(15));
    let grpc = [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    let ran = silent.apply(&plain, &grpc);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("warning: no spans are sent"), "{}", ran.stderr);
}
