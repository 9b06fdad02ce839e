//! The server under load, and its pages over many samples. The server is a process of its own, on the same machine.
//!
//! `load`: a manifest of 10,000 samples runs, on an engine that takes 100 ms for each and 32 at once (320 samples a
//! second). First with nobody looking, then with 200 clients, each with a connection of its own: a hundred follow the
//! events from the first to the last, as the page of a run does; a hundred load a page every one to two seconds, in turn
//! the dashboard, the lists, the run, its samples, and the same from the interface. Every answer has to be right.
//!
//! `pages`: a manifest of 100,000 samples runs as fast as it can; its pages are loaded at half time and at the end.
//!
//! Measured on two cores, with other programs at work: 31.9 s with clients and 31.8 s without (31.2 s at best), pages
//! p50 1.1 ms and p99 6.6 ms, no error; of 100,000 samples 2 ms a page.
//!
//! `cargo bench --no-default-features --bench serve [-- load [SAMPLES [CLIENTS [LATENCY_MS]]] | pages [SAMPLES]]`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Prints what has been measured.
macro_rules! tell {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const AT_ONCE: usize = 32;
/// Loads of a page that is measured.
const TIMES: usize = 20;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let number =
        |i: usize, default| args.get(i).map_or(default, |text| text.parse().expect("a number"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        match args.first().map(String::as_str) {
            Some("load") => load(number(1, 10_000), number(2, 200), number(3, 100)).await,
            Some("pages") => pages(number(1, 100_000)).await,
            _ => {
                load(10_000, 200, 100).await;
                pages(100_000).await;
            }
        }
    });
}

/// A server in a project of its own.
struct Server {
    child: Child,
    home: String,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Questions of forty words, and replies of ninety: one in a thousand is empty, one in ten is wrong.
    fn start(samples: usize, latency_ms: usize) -> Server {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path();
        for folder in ["pipelines", "templates", "fixtures", ".git"] {
            fs::create_dir(root.join(folder)).expect("a folder");
        }
        let latency = match latency_ms {
            0 => String::new(),
            ms => format!("latency = \"{ms}ms\"\n"),
        };
        let thought = "first we look at what is asked and then at what is known of it ".repeat(6);
        let manifest = format!(
            r#"
[pipeline]
name = "load"
[stage.question]
kind = "flow-template"
file = "templates/qa.toml"
[stage.flows]
kind = "expand"
template = "question"
fixture = "fixtures/rows.jsonl"
[stage.engine]
kind = "engine"
backend = "scripted"
{latency}replies = [
    {{ when = "000 ", reply = "" }},
    {{ when = "5 and", reply = "{thought}. Perhaps the wrong answer" }},
    {{ reply = "{thought}. The answer is right" }},
]
[stage.ask]
kind = "workflow"
flows = "flows"
engine = "engine"
concurrency = {AT_ONCE}
scorers = ["includes"]
"#
        );
        fs::write(root.join("pipelines/load.toml"), manifest).expect("a manifest");
        let template = "id = \"row.id\"\ntargets = \"row.answer\"\n[[step]]\nid = \"answer\"\nuser = \"{{ row.question }}\"\n";
        fs::write(root.join("templates/qa.toml"), template).expect("a template");
        let words =
            "a traveller goes from one town to the next and counts what there is to see ".repeat(2);
        let row = |n: usize| {
            let question = format!("In number {n} and no other {words}: how many are there?");
            format!(
                "{}\n",
                json!({ "id": format!("q{n}"), "question": question, "answer": "the answer is right" })
            )
        };
        let rows: String = (0..samples).map(row).collect();
        fs::write(root.join("fixtures/rows.jsonl"), rows).expect("rows");
        let mut command = Command::new(FORGE);
        command.args(["serve", "--listen", "127.0.0.1:0", "--quiet", "--rate", "5000"]);
        command.current_dir(root).env_remove("FORGE_STORE").env_remove("FORGE_TOKEN");
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a server");
        let mut line = String::new();
        let said = child.stdout.take().expect("its output");
        BufReader::new(said).read_line(&mut line).expect("its address");
        Server { child, home: line.trim().to_owned(), _dir: dir }
    }

    /// Puts the manifest into the queue, and gives the ids of its job and its run once it has begun.
    async fn run(&self) -> (String, String) {
        let client = client();
        let body = json!({ "manifest": "pipelines/load.toml" }).to_string();
        let post = client.post(format!("{}/api/v1/jobs", self.home));
        let reply = post.header("content-type", "application/json").body(body).send().await;
        let text = reply.expect("an answer").text().await.expect("a body");
        let job: Value = serde_json::from_str(&text).expect("JSON");
        let id = job["id"].as_str().unwrap_or_else(|| panic!("no job: {text}")).to_owned();
        loop {
            let job = self.json(&client, &format!("/jobs/{id}")).await;
            if let Some(run) = job["run_id"].as_str()
                && client
                    .get(format!("{}/runs/{run}", self.home))
                    .send()
                    .await
                    .is_ok_and(|r| r.status() == 200)
            {
                return (id, run.to_owned());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn json(&self, client: &reqwest::Client, path: &str) -> Value {
        let reply = client.get(format!("{}/api/v1{path}", self.home)).send().await;
        let text = reply.expect("an answer").text().await.expect("a body");
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"))
    }

    async fn wait(&self, run: &str) -> Value {
        let client = client();
        loop {
            let record = self.json(&client, &format!("/runs/{run}")).await;
            if record["status"] != "running" {
                assert_eq!(record["status"], "completed", "{record}");
                return record;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// A line of what the kernel knows of the server, in MB.
    fn memory_mb(&self, name: &str) -> f64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.map_or(f64::NAN, |kib| kib / 1024.0)
    }

    /// Seconds of processor time that the server has used.
    fn cpu_s(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.unwrap_or_default();
        let fields: Vec<&str> =
            stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|text| text.parse::<f64>().ok());
        (ticks(11).unwrap_or(f64::NAN) + ticks(12).unwrap_or(f64::NAN)) / 100.0
    }
}

/// A client with a connection of its own.
fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1);
    client.build().expect("a client")
}

/// The quantile of some times, in milliseconds.
fn quantile(times: &mut [f64], q: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = ((times.len() as f64 * q).ceil() as usize).clamp(1, times.len());
    times[at - 1]
}

/// What clients have seen.
#[derive(Default)]
struct Seen {
    times: Vec<(usize, f64)>,
    errors: Vec<String>,
    streams: usize,
    samples: usize,
    bytes: usize,
}

const PATHS: [&str; 8] = [
    "/",
    "/runs",
    "/runs/{run}",
    "/api/v1/runs/{run}",
    "/manifests",
    "/runs/{run}?skip=1000&correct=false",
    "/api/v1/runs/{run}/samples?skip=500&limit=100",
    "/experiments",
];

async fn load(samples: usize, clients: usize, latency_ms: usize) {
    let ideal = samples as f64 * latency_ms as f64 / 1000.0 / AT_ONCE as f64;
    tell!(
        "{samples} samples, {AT_ONCE} at once, {latency_ms} ms each: {ideal:.1} s at best; {clients} clients"
    );
    let (mut quiet, mut loaded) = (Vec::new(), Vec::new());
    let mut all = Seen::default();
    for turn in 0..2 {
        for with in [false, true] {
            let server = Server::start(samples, latency_ms);
            let (job, run) = server.run().await;
            let seen: Arc<Mutex<Seen>> = Arc::default();
            let tasks = (0..if with { clients } else { 0 }).map(|i| {
                let (home, job, run) = (server.home.clone(), job.clone(), run.clone());
                let seen = seen.clone();
                let stop = Instant::now() + Duration::from_secs_f64(ideal * 2.0 + 60.0);
                tokio::spawn(async move {
                    // They come one after another, not at once.
                    tokio::time::sleep(Duration::from_millis((i * 10) as u64)).await;
                    match i % 2 {
                        0 => follow(&home, &job, samples, &seen).await,
                        _ => look(&home, &job, &run, i, stop, &seen).await,
                    }
                })
            });
            let tasks: Vec<_> = tasks.collect();
            let record = server.wait(&run).await;
            let cpu = server.cpu_s();
            for task in tasks {
                task.await.expect("a client that ends");
            }
            let wall = record["wall_ms"].as_f64().expect("a time") / 1000.0;
            let kind = if with { "with clients" } else { "alone" };
            tell!(
                "turn {turn}, {kind}: {wall:.2} s, {cpu:.1} s of processor time, at most {:.0} MB",
                server.memory_mb("VmHWM")
            );
            if with {
                loaded.push(wall)
            } else {
                quiet.push(wall)
            }
            let mut seen = seen.lock().expect("no client has panicked");
            all.times.append(&mut seen.times);
            all.errors.append(&mut seen.errors);
            all.streams += seen.streams;
            all.samples += seen.samples;
            all.bytes += seen.bytes;
        }
    }
    let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64;
    tell!("slowed by {:.1} %", (mean(&loaded) / mean(&quiet) - 1.0) * 100.0);
    tell!(
        "{} streams of {samples} samples each: {} samples, {:.0} MB",
        all.streams,
        all.samples,
        all.bytes as f64 / 1e6
    );
    let mut times: Vec<f64> = all.times.iter().map(|(_, ms)| *ms).collect();
    if !times.is_empty() {
        let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        let most = quantile(&mut times, 1.0);
        tell!("{} pages: p50 {p50:.1} ms, p99 {p99:.1} ms, at most {most:.1} ms", times.len());
    }
    for (i, path) in PATHS.iter().enumerate() {
        let mut times: Vec<f64> =
            all.times.iter().filter(|(own, _)| *own == i).map(|(_, ms)| *ms).collect();
        if !times.is_empty() {
            let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
            tell!("  {path}: {} times, p50 {p50:.1} ms, p99 {p99:.1} ms", times.len());
        }
    }
    tell!("{} errors", all.errors.len());
    all.errors.iter().take(5).for_each(|error| tell!("  {error}"));
}

/// Follows the events of a job to their end.
async fn follow(home: &str, job: &str, samples: usize, seen: &Mutex<Seen>) {
    let (mut found, mut bytes, mut is_done) = (0, 0, false);
    let reply = client().get(format!("{home}/api/v1/jobs/{job}/events")).send().await;
    let error = match reply {
        Ok(mut reply) => loop {
            match reply.chunk().await {
                Ok(Some(chunk)) => {
                    bytes += chunk.len();
                    // A frame may be torn between two chunks; its first line is then counted by its id.
                    found += memchr::memmem::find_iter(&chunk, b"\nevent: sample\n").count();
                    is_done |= memchr::memmem::find(&chunk, b"event: done").is_some();
                }
                Ok(None) => break None,
                Err(error) => break Some(error.to_string()),
            }
        },
        Err(error) => Some(error.to_string()),
    };
    let mut seen = seen.lock().expect("no client has panicked");
    seen.streams += 1;
    seen.samples += found;
    seen.bytes += bytes;
    seen.errors.extend(error);
    // Some frames are torn; a client that missed many has missed a piece.
    if !is_done || found + samples / 100 < samples {
        seen.errors.push(format!("a stream had {found} of {samples} samples, done: {is_done}"));
    }
}

/// Loads pages until the job is over.
async fn look(home: &str, job: &str, run: &str, number: usize, stop: Instant, seen: &Mutex<Seen>) {
    let client = client();
    let mut rng = fastrand::Rng::with_seed(number as u64);
    let mut at = number / 2;
    while Instant::now() < stop {
        tokio::time::sleep(Duration::from_millis(rng.u64(1000..2000))).await;
        let which = at % PATHS.len();
        at += 1;
        let path = PATHS[which].replace("{run}", run);
        let start = Instant::now();
        let loaded = async {
            let reply = client.get(format!("{home}{path}")).send().await?;
            let status = reply.status();
            Ok::<_, reqwest::Error>((status, reply.bytes().await?))
        };
        let loaded = loaded.await;
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        {
            let mut seen = seen.lock().expect("no client has panicked");
            match loaded {
                Ok((status, _)) if status == 200 => seen.times.push((which, ms)),
                Ok((status, _)) => seen.errors.push(format!("{path}: {status}")),
                Err(error) => seen.errors.push(format!("{path}: {error}")),
            }
        }
        let reply = client.get(format!("{home}/api/v1/jobs/{job}")).send().await;
        let Ok(reply) = reply else { continue };
        if reply.text().await.is_ok_and(|text| text.contains("\"completed\"")) {
            return;
        }
    }
}

async fn pages(samples: usize) {
    let server = Server::start(samples, 0);
    let client = client();
    let start = Instant::now();
    let (_, run) = server.run().await;
    loop {
        let so_far = server.json(&client, &format!("/runs/{run}/samples?limit=1")).await;
        if so_far["total"].as_u64().unwrap_or(0) >= samples as u64 / 2 || so_far["complete"] == true
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let so_far = server.json(&client, &format!("/runs/{run}/samples?limit=1")).await;
    tell!(
        "at work, {} of {samples} samples so far ({:.0} MB)",
        so_far["total"],
        server.memory_mb("VmRSS")
    );
    measure(&server, &client, &run, so_far["total"].as_u64().unwrap_or(0)).await;
    server.wait(&run).await;
    tell!(
        "done after {:.1} s ({:.0} MB)",
        start.elapsed().as_secs_f64(),
        server.memory_mb("VmRSS")
    );
    measure(&server, &client, &run, samples as u64).await;
    tell!("at most {:.0} MB", server.memory_mb("VmHWM"));
}

/// Loads pages of the samples of a run: the first time, and the median of the times after it.
async fn measure(server: &Server, client: &reqwest::Client, run: &str, total: u64) {
    let pages = [
        ("first page", String::new()),
        ("middle page", format!("skip={}", total / 2)),
        ("last page", format!("skip={}", total.saturating_sub(25))),
        ("outcome empty", "outcome=empty".to_owned()),
        ("wrong, second page", "correct=false&skip=25".to_owned()),
        ("search, one row", format!("q=q{}", total / 3)),
        ("search, every row", "q=TOWN".to_owned()),
        ("search, no row", "q=nowhere+to+be+found".to_owned()),
    ];
    for (name, query) in pages {
        let mut times = Vec::new();
        for _ in 0..=TIMES {
            let start = Instant::now();
            let reply = client.get(format!("{}/runs/{run}?{query}", server.home)).send().await;
            let reply = reply.expect("an answer");
            assert_eq!(reply.status(), 200, "{query}");
            let _ = reply.bytes().await.expect("a body");
            times.push(start.elapsed().as_secs_f64() * 1000.0);
        }
        let first = times.remove(0);
        tell!("  {name}: {first:.1} ms at first, then {:.1} ms", quantile(&mut times, 0.5));
    }
}
