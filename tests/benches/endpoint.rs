//! What a request to a server costs forge: beside `wrk` on the same answer of an nginx that does nothing, and
//! against the ideal with a server that takes 200 ms. Whole commands, with everything recorded.
//! Needs nginx and wrk (Debian: nginx-light, wrk).
//! `cargo bench --no-default-features --bench endpoint [-- fast 1000 10000 100000 | slow 8 64]`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
/// Requests at once.
const AT_ONCE: usize = 64;
/// Time of an answer of the slow server.
const SLOW: Duration = Duration::from_millis(200);
/// How long a run against the slow server would take at best.
const SLOW_RUN: Duration = Duration::from_secs(10);

const REPLY: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1751200001,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"The answer to the question is forty-two, as everybody knows."},"finish_reason":"stop"}],"usage":{"prompt_tokens":64,"completion_tokens":13,"total_tokens":77}}"#;

/// The same reply, a token an event.
fn stream() -> String {
    let chunk = |delta: &str, finish: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1751200001,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n"
        )
    };
    let mut all = chunk("{\"role\":\"assistant\",\"content\":\"\"}", "null");
    for word in "The answer to the question is forty-two , as everybody knows .".split(' ') {
        all.push_str(&chunk(&format!("{{\"content\":\"{word} \"}}"), "null"));
    }
    all.push_str(&chunk("{}", "\"stop\""));
    all.push_str("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":64,\"completion_tokens\":13}}\n\ndata: [DONE]\n\n");
    all
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let numbers =
        |args: &[String]| args.iter().map(|arg| arg.parse().expect("a number")).collect::<Vec<_>>();
    match args.first().map(String::as_str) {
        Some("fast") => fast(&numbers(&args[1..])),
        Some("slow") => slow(&numbers(&args[1..])),
        _ => {
            fast(&[1000, 10_000, 100_000]);
            slow(&[8, 64]);
        }
    }
}

struct Nginx {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Nginx {
    fn start() -> Nginx {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let at = |name: &str| dir.path().join(name).display().to_string();
        // A text of nginx's configuration: quoted, and with no variable in it.
        let text = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let config = format!(
            "daemon off; master_process off; pid {pid}; error_log {log} error;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;\n\
             client_body_temp_path {body}; proxy_temp_path {body}; fastcgi_temp_path {body};\n\
             uwsgi_temp_path {body}; scgi_temp_path {body};\n\
             server {{ listen 127.0.0.1:{port};\n\
             location /whole/v1/chat/completions {{ default_type application/json; return 200 {whole}; }}\n\
             location /parts/v1/chat/completions {{ default_type text/event-stream; return 200 {parts}; }}\n\
             location / {{ return 404; }} }} }}",
            pid = at("pid"),
            log = at("log"),
            body = at("body"),
            whole = text(REPLY),
            parts = text(&stream()),
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let child = Command::new("nginx")
            .args(["-p", &at(""), "-c", &at("nginx.conf")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is needed: apt-get install nginx-light");
        let nginx = Nginx { child, port, dir };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        nginx
    }

    /// Requests a second of wrk, with a body of the size that forge sends.
    fn wrk(&self, path: &str) -> f64 {
        let script = self.dir.path().join("post.lua");
        let body = r#"{"model":"m","messages":[{"role":"system","content":"Answer the question with only the answer, no explanation."},{"role":"user","content":"What is 12345 + 0, and what else is there to be said about it?"}],"temperature":0.0,"max_tokens":256}"#;
        let text = format!(
            "wrk.method = 'POST'\nwrk.body = [[{body}]]\nwrk.headers['Content-Type'] = 'application/json'\n"
        );
        fs::write(&script, text).unwrap();
        let url = format!("http://127.0.0.1:{}/{path}/v1/chat/completions", self.port);
        let connections = AT_ONCE.to_string();
        let output = Command::new("wrk")
            .args(["-t1", "-c", &connections, "-d5s", "-s", &script.display().to_string(), &url])
            .output()
            .expect("wrk is needed: apt-get install wrk");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.contains("Non-2xx"), "{said}");
        let line = said.lines().find_map(|line| line.strip_prefix("Requests/sec:")).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn project(samples: usize, url: &str, at_once: usize, stream: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(".git/HEAD", "");
    write(
        "pipelines/bench.toml",
        &format!(
            "[pipeline]\nname = \"bench\"\n[stage.question]\nkind = \"flow-template\"\nfile = \"qa.toml\"\n\
             [stage.flows]\nkind = \"expand\"\ntemplate = \"question\"\nfixture = \"rows.jsonl\"\n\
             [stage.server]\nkind = \"engine\"\nbackend = \"openai\"\nbase_url = \"{url}\"\nmodel = \"m\"\n\
             provider = \"bench\"\nprobe = false\nstream = {stream}\n\
             [stage.ask]\nkind = \"workflow\"\nflows = \"flows\"\nengine = \"server\"\nconcurrency = {at_once}\n"
        ),
    );
    write(
        "qa.toml",
        "id = \"row.id\"\ntargets = \"row.answer\"\n[[step]]\nid = \"answer\"\nuser = \"{{ row.question }}\"\n",
    );
    let row = |n| {
        format!(
            "{{\"id\": \"q{n}\", \"question\": \"What is {n} + 0, and what else is there to be said about it?\", \"answer\": {n}}}\n"
        )
    };
    write("rows.jsonl", &(0..samples).map(row).collect::<String>());
    dir
}

/// How a whole command did.
struct Cost {
    wall: Duration,
    cpu: Duration,
    peak_mb: f64,
    /// Of the workflow alone, as forge tells it.
    stage: Duration,
}

/// User and system time of ended children.
fn children_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[13].parse::<u64>().unwrap() + fields[14].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn apply(project: &Path, samples: usize) -> Cost {
    let (start, before) = (Instant::now(), children_cpu());
    let mut child = Command::new(FORGE)
        .args(["apply", "pipelines/bench.toml", "--quiet"])
        .current_dir(project)
        .env_remove("FORGE_STORE")
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_mb = 0.0;
    let code = loop {
        if let Ok(text) = fs::read_to_string(&status) {
            let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kb = peak.and_then(|kb| kb.trim().trim_end_matches(" kB").parse::<f64>().ok());
            peak_mb = kb.map_or(peak_mb, |kb| kb / 1024.0);
        }
        if let Some(code) = child.try_wait().unwrap() {
            break code;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let wall = start.elapsed();
    assert!(code.success());
    let run = fs::read_dir(project.join(".forge/runs")).unwrap().next().unwrap().unwrap().path();
    let record = fs::read_to_string(run.join("run.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["requests"]["live"], samples);
    let stages = record["stages"].as_array().unwrap();
    let stage = stages.iter().find(|stage| stage["name"] == "ask").unwrap();
    let stage = Duration::from_secs_f64(stage["wall_ms"].as_f64().unwrap() / 1000.0);
    Cost { wall, cpu: children_cpu() - before, peak_mb, stage }
}

fn fast(sizes: &[usize]) {
    let nginx = Nginx::start();
    println!("{AT_ONCE} requests at once, a server that answers at once, on the same two cores");
    println!(
        "reply  samples  samples/s  of wrk  (wrk/s)  CPU us a sample  whole command s  peak MB"
    );
    for (path, stream) in [("whole", false), ("parts", true)] {
        for &samples in sizes {
            // In the same minute, since the machine is shared.
            let wrk = nginx.wrk(path);
            let url = format!("http://127.0.0.1:{}/{path}/v1", nginx.port);
            let project = project(samples, &url, AT_ONCE, stream);
            let cost = apply(project.path(), samples);
            let rate = samples as f64 / cost.stage.as_secs_f64();
            println!(
                "{path}  {samples:7}  {rate:9.0}  {:6.3}  {wrk:7.0}  {:15.1}  {:15.2}  {:7.0}",
                rate / wrk,
                cost.cpu.as_secs_f64() * 1e6 / samples as f64,
                cost.wall.as_secs_f64(),
                cost.peak_mb,
            );
        }
    }
}

fn slow(widths: &[usize]) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_slowly(&stream));
        }
    });
    println!("a server that answers after {SLOW:?}");
    println!("at once  samples  ideal s  whole command s  of ideal");
    for &width in widths {
        let samples = width * (SLOW_RUN.as_millis() / SLOW.as_millis()) as usize;
        let project = project(samples, &format!("http://127.0.0.1:{port}/v1"), width, false);
        let cost = apply(project.path(), samples);
        let ideal = SLOW_RUN.as_secs_f64();
        println!(
            "{width:7}  {samples:7}  {ideal:7.2}  {:15.2}  {:8.3}",
            cost.wall.as_secs_f64(),
            ideal / cost.wall.as_secs_f64(),
        );
    }
}

/// One connection: a request, a pause, a reply.
fn answer_slowly(stream: &TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{REPLY}",
        REPLY.len()
    );
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(text) = lower.strip_prefix("content-length:") {
                length = text.trim().parse().ok()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        std::thread::sleep(SLOW);
        (&*stream).write_all(head.as_bytes()).ok()?;
    }
}
