//! Tools of agents: searches, programs and web pages.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::project::{Project, Ran};
use super::server::{Server, Step, reply, whole};

/// A project with one question, an agent and a script.
fn agent(tools: &str, replies: &str) -> Project {
    let project = Project::with(&format!("method = \"react\"\n{tools}"), replies);
    project.rows(1);
    project
}

/// The turns of the only sample.
fn trace(project: &Project) -> Value {
    project.report_rows()[0]["agent_trace"].clone()
}

/// The rest of a workflow, as a reply and its follow-up: `call`, then an answer.
fn calls(call: &str) -> String {
    format!(
        "replies = [{{ when = \"What is\", reply = '{call}' }}, {{ reply = \"Final Answer: 0\" }}]"
    )
}

#[test]
fn a_search_reads_a_folder_and_its_content_is_in_the_key() {
    let tool =
        "[stage.ask.tool.search]\nkind = \"retrieval\"\ncorpus = \"fixtures/docs\"\ntop_k = 1";
    let project = agent(tool, &calls("Action: search[Where is Porto?]"));
    project.write("fixtures/docs/a/lyon.txt", "Lyon is a city in France.");
    project.write("fixtures/docs/porto.md", "Porto is a city in Portugal.\n");
    assert_eq!(project.ok(&[]).live(), 2);
    let turns = trace(&project);
    assert_eq!(
        turns["steps"][0]["observation"],
        "[1] fixtures/docs/porto.md: Porto is a city in Portugal."
    );
    assert_eq!(
        (turns["total_tool_calls"].clone(), turns["failed_tool_calls"].clone()),
        (1.into(), 0.into())
    );
    assert_eq!(turns["termination_reason"], "answer");
    assert_eq!(project.ok(&[]).live(), 0);
    // Another document is another collection; the first request does not depend on it.
    project.write("fixtures/docs/oslo.txt", "Oslo is in Norway.");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (0, 2), "{}", ran.stderr);
    project.write("fixtures/docs/porto.md", "Porto lies on the Douro.");
    assert_eq!(project.ok(&[]).live(), 1);
    std::fs::write(project.path("fixtures/docs/scan.txt"), [0xff, 0xfe]).unwrap();
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("`fixtures/docs/scan.txt` of the collection is not UTF-8"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_search_reads_rows() {
    let tool = "[stage.ask.tool.search]\nkind = \"retrieval\"\ncorpus = \"fixtures/docs.jsonl\"\ntext = \"body\"\nid = \"title\"";
    let project = agent(tool, &calls("Action: search[Porto]"));
    project.write(
        "fixtures/docs.jsonl",
        "{\"title\": \"Porto (city)\", \"body\": \"Porto is in Portugal.\"}\n",
    );
    project.ok(&[]);
    assert_eq!(
        trace(&project)["steps"][0]["observation"],
        "[1] Porto (city): Porto is in Portugal."
    );
    project.write("fixtures/docs.jsonl", "{\"title\": \"Porto (city)\", \"text\": \"x\"}\n");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    let words = "fixtures/docs.jsonl:1: the row has no text in `body` (columns: title, text)";
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
}

#[test]
fn a_search_with_a_model_finds_what_words_do_not() {
    // Of a text it knows how often it has each letter.
    let embedder = Server::start(|_| reply("unused"));
    let tool = "[stage.ask.tool.search]\nkind = \"retrieval\"\ncorpus = \"fixtures/docs.jsonl\"\ntop_k = 1\n\
        embeddings = \"embedder\"";
    let project = agent(tool, &calls("Action: search[listen]"));
    let engine = embedder.engine("price = { input = 1000, output = 0 }");
    let manifest = project.read("pipelines/bench.toml");
    let manifest = format!("{manifest}\n[stage.embedder]\nkind = \"engine\"\n{engine}\n");
    project.write("pipelines/bench.toml", &manifest);
    // None has the word, and one has its letters.
    let docs = ["a: Oslo by the sea", "b: silent", "c: zebra"];
    let docs = docs.iter().filter_map(|doc| doc.split_once(": "));
    let docs = docs.map(|(id, text)| format!("{}\n", json!({ "id": id, "text": text })));
    project.write("fixtures/docs.jsonl", &docs.collect::<String>());
    let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]);
    assert_eq!((plan.code, embedder.embedded()), (0, 0), "{}", plan.stderr);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let ceilings = plan.as_array().unwrap().iter();
    let ceiling: f64 = ceilings.filter_map(|node| node["survey"]["cost"]["ceiling"].as_f64()).sum();
    let ran = project.ok(&[]);
    assert_eq!(trace(&project)["steps"][0]["observation"], "[1] b: silent");
    // Each passage once, and the query.
    assert_eq!((ran.live(), embedder.embedded()), (2 + 4, 4));
    let report: Value =
        serde_json::from_str(&project.read("out/bench/report/report.json")).unwrap();
    let cost = &report["cells"][0]["scorer_costs"]["tool.search.embeddings"]["spent"];
    let spent = cost.as_f64().unwrap();
    assert!(0.0 < spent && spent <= ceiling, "{spent} of {ceiling}");
    assert_eq!((project.ok(&[]).live(), embedder.embedded()), (0, 4));
    assert_eq!(project.apply(&["--frozen"]).code, 0);
    // The same passages for another number of them: all of it is remembered.
    project.edit("pipelines/bench.toml", "top_k = 1", "top_k = 2");
    project.ok(&[]);
    assert_eq!(embedder.embedded(), 4);
    let docs = project.read("fixtures/docs.jsonl");
    project.write("fixtures/docs.jsonl", &docs.replace("zebra", "a zebra"));
    let ran = project.apply(&["--budget", "0.000001"]);
    assert!(ran.code == 1 && ran.stderr.contains("the budget of"), "{}", ran.stderr);
    project.edit("pipelines/bench.toml", "embeddings = \"embedder\"", "embeddings = \"engine\"");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("the tool `search` needs embeddings"), "{}", ran.stderr);
}

/// Adds two numbers, and leaves a mark each time.
const ADD: &str = "import json, sys\nmark, a = sys.argv[1], json.load(sys.stdin)\nopen(mark, 'a').write('x')\nprint(a['first'] + a['second'])\n";

struct Add {
    project: Project,
    marks: tempfile::TempDir,
}

impl Add {
    fn new(more: &str, replies: &str) -> Add {
        let marks = tempfile::tempdir().unwrap();
        let tool = format!(
            "{more}\n[stage.ask.tool.add]\nkind = \"command\"\ndescription = \"adds two numbers\"\n\
             command = [\"python3\", \"tools/add.py\", \"{}\"]\nfiles = [\"tools/add.py\"]\n\
             [stage.ask.tool.add.parameters.first]\ntype = \"number\"\n\
             [stage.ask.tool.add.parameters.second]\ntype = \"number\"",
            marks.path().join("mark").display()
        );
        let project = agent("", replies);
        project.write("tools/add.py", ADD);
        let manifest = project.read("pipelines/bench.toml");
        project.write(
            "pipelines/bench.toml",
            &manifest.replace("method = \"react\"\n", &format!("method = \"react\"\n{tool}\n")),
        );
        Add { project, marks }
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.marks.path().join("mark")).map_or(0, |marks| marks.len())
    }
}

const TWO_AND_THREE: &str = "Action: add[{\"first\": 2, \"second\": [3][0]}]";

#[test]
fn a_program_gets_its_arguments_and_is_run_once() {
    let add = Add::new("", &calls("Action: add[{\"first\": 2, \"second\": 3}]"));
    let project = &add.project;
    project.ok(&[]);
    assert_eq!(trace(project)["steps"][0]["observation"], "5");
    assert_eq!(add.runs(), 1);
    // What only scores is another sample, and asks neither model nor program again.
    project.edit(
        "pipelines/bench.toml",
        "method = \"react\"",
        "method = \"react\"\nscorers = [\"f1\"]",
    );
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), add.runs()), (0, 1));
    // Nor does what is worked out again from the store alone.
    assert_eq!(project.forge(&["verify", "pipelines/bench.toml"]).code, 0);
    assert_eq!(project.apply(&["--frozen"]).code, 0);
    assert_eq!(add.runs(), 1);
    // Another program is another tool; it may say something else.
    project.edit("tools/add.py", "a['first'] + a['second']", "'about', 5");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), add.runs()), (1, 2));
    assert_eq!(trace(project)["steps"][0]["observation"], "about 5");
}

#[test]
fn brackets_in_arguments_are_read_whole() {
    let add = Add::new("", &calls(TWO_AND_THREE));
    add.project.ok(&[]);
    let turns = trace(&add.project);
    assert_eq!(turns["steps"][0]["action_input"], "{\"first\": 2, \"second\": [3][0]}");
    let seen = turns["steps"][0]["observation"].as_str().unwrap();
    assert_eq!(seen, "error: write the input as JSON: {\"first\": <number>, \"second\": <number>}");
    assert_eq!((turns["failed_tool_calls"].clone(), add.runs()), (1.into(), 0));
}

#[test]
fn a_program_that_varies_is_asked_for_each_draw() {
    let epochs = "epochs = 3\ntemperature = 1";
    let same = Add::new(epochs, &calls("Action: add[{\"first\": 2, \"second\": 3}]"));
    // One after another: of calls at the same moment each may run.
    same.project.ok(&["--jobs", "1"]);
    assert_eq!(same.runs(), 1);
    let each = Add::new(epochs, &calls("Action: add[{\"first\": 2, \"second\": 3}]"));
    let text = "kind = \"command\"";
    each.project.edit("pipelines/bench.toml", text, &format!("{text}\ndeterministic = false"));
    each.project.ok(&["--jobs", "1"]);
    assert_eq!(each.runs(), 3);
    each.project.ok(&[]);
    assert_eq!(each.runs(), 3, "what was seen is remembered");
}

#[test]
fn a_program_is_offered_in_the_form_of_the_provider() {
    let server = Server::start(|asked| {
        let messages = asked.body["messages"].as_array().unwrap();
        if messages.last().unwrap()["role"] == "tool" {
            return reply(messages.last().unwrap()["content"].as_str().unwrap());
        }
        let arguments = "{\"second\": 3, \"first\": 2}";
        let call = json!({ "id": "c", "type": "function", "function": { "name": "add", "arguments": arguments } });
        let message = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
        let body = json!({
            "choices": [{ "index": 0, "message": message, "finish_reason": "tool_calls" }],
            "usage": { "prompt_tokens": 9, "completion_tokens": 2 },
        });
        vec![Step::Write(whole(200, &body.to_string()))]
    });
    let add = Add::new("tool_calls = \"native\"", "");
    let engine = server.engine("stream = false");
    add.project.edit("pipelines/bench.toml", "backend = \"scripted\"", &engine);
    add.project.ok(&[]);
    let offered = server.asked.lock().unwrap()[0].body["tools"].clone();
    let add_tool =
        offered.as_array().unwrap().iter().find(|t| t["function"]["name"] == "add").unwrap();
    assert_eq!(add_tool["function"]["parameters"]["required"], json!(["first", "second"]));
    let turns = trace(&add.project);
    assert_eq!(turns["steps"][0]["observation"], "5");
    assert_eq!(add.project.report_rows()[0]["sample"]["answer"], "5");
}

/// What an agent sees of a program.
fn seen(program: &str, more: &str) -> (Project, Ran) {
    let tool = format!(
        "[stage.ask.tool.run]\nkind = \"command\"\ndescription = \"runs\"\n\
         command = [\"python3\", \"tools/run.py\"]\nfiles = [\"tools/run.py\"]\n{more}"
    );
    let project = agent(&tool, &calls("Action: run[x]"));
    project.write("tools/run.py", program);
    let ran = project.apply(&[]);
    (project, ran)
}

#[test]
fn bounds_of_programs() {
    let observation = |program: &str, more: &str| {
        let (project, ran) = seen(program, more);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        trace(&project)["steps"][0]["observation"].as_str().unwrap().to_owned()
    };
    assert_eq!(observation("import json, sys\nprint(json.load(sys.stdin))", ""), "{'input': 'x'}");
    let slow = "import time\nprint('a', flush=True)\ntime.sleep(60)";
    assert_eq!(observation(slow, "timeout = \"300ms\""), "error: no answer within 300ms");
    // It would go on for ever, and nobody reads what it complains about either.
    let much = "import sys\nwhile True:\n  print('y' * 100)\n  print('z' * 100, file=sys.stderr)";
    assert_eq!(observation(much, "output_limit = 5"), "yyyyy … [cut after 5 characters]");
    let fails = "import sys\nsys.exit('no such unit')";
    assert_eq!(observation(fails, ""), "error: exit code 1: no such unit");
    let alone = "import os\nprint(os.environ['UNIT'], 'HOME' in os.environ, os.listdir('.'))";
    assert_eq!(observation(alone, "env = { UNIT = \"km\" }"), "km False ['tools']");
}

#[test]
fn a_program_that_cannot_be_started_is_no_answer() {
    let (project, ran) = seen("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "");
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("the tool `run` failed: it ended with signal: 9"),
        "{}",
        ran.stderr
    );
    // Nothing of it is remembered but the reply of the model.
    project.edit("pipelines/bench.toml", "\"python3\"", "\"no-such-program\"");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("there is no such file"), "{}", ran.stderr);
}

/// A server of pages: what it answers to a path, and which paths were asked for.
struct Pages {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Pages {
    fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Pages {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let _ = reader.read_line(&mut line);
                let mut header = String::new();
                while reader.read_line(&mut header).is_ok_and(|n| n > 2) {
                    header.clear();
                }
                let path = line.split_whitespace().nth(1).unwrap_or("").to_owned();
                let answer = answer(&path);
                log.lock().unwrap().push(path);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Pages { port, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// A project whose agent reads a page.
    fn agent(&self, path: &str, more: &str) -> Project {
        let tool = format!(
            "[stage.ask.tool.fetch]\nkind = \"http\"\nallow = [\"http://127.0.0.1:{}/docs/\"]\n{more}",
            self.port
        );
        agent(&tool, &calls(&format!("Action: fetch[http://127.0.0.1:{}{path}]", self.port)))
    }
}

fn page(status: &str, header: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[test]
fn pages_on_the_list_are_read_and_remembered() {
    let pages = Pages::start(|path| match path {
        "/docs/a" => page("302 Found", "Location: /docs/b\r\n", ""),
        "/docs/b" => page("200 OK", "", "Porto is in Portugal.\n"),
        "/docs/out" => page("302 Found", "Location: /secret\r\n", ""),
        "/docs/round" => page("302 Found", "Location: /docs/round\r\n", ""),
        "/docs/long" => page("200 OK", "", &"ż".repeat(100_000)),
        _ => page("404 Not Found", "", "no"),
    });
    let observation = |path: &str| {
        let project = pages.agent(path, "output_limit = 30");
        let ran = project.ok(&[]);
        let before = pages.asked().len();
        assert_eq!(project.ok(&["--force", "report"]).live(), 0, "{}", ran.stderr);
        project.edit("pipelines/bench.toml", "method =", "scorers = [\"f1\"]\nmethod =");
        project.ok(&[]);
        assert_eq!(pages.asked().len(), before, "a page is read once for a sample");
        trace(&project)["steps"][0]["observation"].as_str().unwrap().to_owned()
    };
    assert_eq!(observation("/docs/a"), "Porto is in Portugal.");
    assert_eq!(observation("/docs/none"), "error: HTTP 404 Not Found");
    assert_eq!(
        observation("/docs/long"),
        format!("{} … [cut after 30 characters]", "ż".repeat(30))
    );
    assert!(observation("/docs/out").contains("/secret is not allowed; addresses begin with: "));
    assert!(observation("/docs/../secret").contains("is not allowed"));
    assert!(observation("/docs/round").contains("more than 5 redirects"));
    assert!(!pages.asked().iter().any(|path| path.contains("secret")), "{:?}", pages.asked());
}

#[test]
fn a_page_that_cannot_be_read_now_is_no_answer() {
    let pages = Pages::start(|_| page("503 Service Unavailable", "", "busy"));
    let project = pages.agent("/docs/a", "");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 1);
    let words = "the tool `fetch` failed: cannot read";
    assert!(ran.stderr.contains(words) && ran.stderr.contains("HTTP 503"), "{}", ran.stderr);
    assert_eq!(pages.asked().len(), 3, "it was tried again");
    // The model was asked and is not asked again; the page is.
    assert_eq!(project.apply(&[]).code, 1);
    assert_eq!(pages.asked().len(), 6);
}

#[test]
fn what_a_model_makes_up_is_not_seen_by_it() {
    // A server without stop strings, and a model that goes on by itself.
    let server = Server::start(|asked| {
        let last = asked.question();
        if last.starts_with("Observation: 5") {
            return reply("Thought: I know.\nFinal Answer: 5");
        }
        assert!(last.starts_with("What is"), "{last}");
        reply("Action: calculator[2 + 3]\nObservation: 7\nThought: fine\nFinal Answer: 7")
    });
    let project = Project::asking("method = \"react\"", &server.engine("stream = false"));
    project.rows(1);
    let ran = project.ok(&[]);
    let sample = &project.report_rows()[0]["sample"];
    assert_eq!(sample["answer"], "5", "{}", ran.stderr);
    assert!(!sample["steps"][0]["transcript"].to_string().contains("Observation: 7"));
}
