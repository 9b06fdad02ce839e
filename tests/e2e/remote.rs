//! A shared store behind two local ones: a real S3 server, and a folder.
//!
//! The server is SeaweedFS (`tests/services/seaweedfs` fetches it); without it these tests say so and pass on a
//! developer's machine, and fail where `CI` is set.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::project::{Project, REPLIES, Ran};

const ACCESS_KEY: &str = "forgekey";
const SECRET: &str = "forgesecret123";

/// A server with an empty bucket, on ports of its own.
struct S3 {
    dir: tempfile::TempDir,
    port: u16,
    server: Option<Child>,
}

impl S3 {
    /// `None` where the server is not installed.
    fn start() -> Option<S3> {
        let program = weed();
        if !program.exists() {
            let hint = "the S3 server is not installed: tests/services/seaweedfs";
            assert!(std::env::var_os("CI").is_none(), "{hint}");
            tell!("skipped: {hint}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let identity = format!(
            r#"{{"identities":[{{"name":"forge","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET}"}}],
               "actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        fs::write(dir.path().join("s3.json"), identity).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let mut s3 = S3 { port: free_ports(), dir, server: None };
        // Another test may take one of the ports in between.
        while !s3.comes_up() {
            s3.down();
            s3.port = free_ports();
        }
        Some(s3)
    }

    fn up(&mut self) {
        assert!(self.comes_up(), "the S3 server does not start again on its ports");
    }

    fn comes_up(&mut self) -> bool {
        let at = |offset: u16| self.port + offset;
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let log = fs::File::create(path("log")).unwrap();
        let server = Command::new(weed())
            .arg("mini")
            .arg(format!("-dir={}", path("data")))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=forge", "-volume.max=8"])
            .arg(format!("-s3.port={}", at(0)))
            .arg(format!("-s3.port.grpc={}", at(1)))
            .arg(format!("-s3.config={}", path("s3.json")))
            .arg(format!("-s3.localSocket={}", path("s3.sock")))
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-webdav=false"])
            .arg("-master.telemetry=false")
            .arg(format!("-master.port={}", at(2)))
            .arg(format!("-master.port.grpc={}", at(3)))
            .arg(format!("-volume.port={}", at(4)))
            .arg(format!("-volume.port.grpc={}", at(5)))
            .arg(format!("-filer.port={}", at(6)))
            .arg(format!("-filer.port.grpc={}", at(7)))
            .arg(format!("-admin.port={}", at(8)))
            .arg(format!("-admin.port.grpc={}", at(9)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        let start = Instant::now();
        // It is up when it refuses a request that is not signed, and its parts have found each other: before
        // that it takes nothing.
        while !(self.refuses() && self.keeps()) {
            let log = || fs::read_to_string(path("log")).unwrap_or_default();
            assert!(start.elapsed().as_secs() < 60, "the S3 server does not start:\n{}", log());
            if self.server.as_mut().is_none_or(|server| server.try_wait().unwrap().is_some()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    /// Whether the door for S3 asks who is there.
    fn refuses(&self) -> bool {
        let request = "GET /forge?list-type=2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        ask(self.port, request).is_some_and(|status| status == "403")
    }

    /// Whether what lies behind it keeps a file and gives it back.
    fn keeps(&self) -> bool {
        let put =
            "PUT /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nready";
        let get = "GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let filer = self.port + 6;
        ask(filer, put).is_some_and(|status| status == "201")
            && ask(filer, get).is_some_and(|status| status == "200")
    }

    fn down(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    fn command(&self, project: &Project, args: &[&str]) -> Command {
        let mut command = project.command(args);
        command
            .env("AWS_ENDPOINT", format!("http://127.0.0.1:{}", self.port))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("FORGE_REMOTE", "s3://forge/team");
        command
    }

    fn forge(&self, project: &Project, args: &[&str]) -> Ran {
        Ran::of(self.command(project, args).output().unwrap())
    }

    fn apply(&self, project: &Project, args: &[&str]) -> Ran {
        let ran =
            self.forge(project, &[&["apply", "pipelines/bench.toml", "--json"], args].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.down();
    }
}

/// The status that a server answers with.
fn ask(port: u16, request: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    Some(reply.split(' ').nth(1)?.to_owned())
}

fn weed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/services/weed")
}

/// The first of ten ports that are free, below those that the system gives to connections: one of these could
/// be in use by a neighbour when a killed server is started again.
fn free_ports() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let number = std::process::id().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed) * 37);
        let first = 20_000 + (number % 1200) as u16 * 10;
        if (first..first + 10).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
    panic!("no ten free ports in a row");
}

fn remote_hits(ran: &Ran) -> u64 {
    ran.done()["requests"]["remote"].as_u64().unwrap()
}

#[test]
fn two_machines_share_a_bucket() {
    let Some(s3) = S3::start() else { return };
    let (one, two) = (Project::new(), Project::new());
    let first = s3.apply(&one, &[]);
    assert_eq!(first.live(), 10);
    let shared = &first.done()["shared"];
    // Ten requests and samples, five stages, their blobs, and the marker.
    assert!(shared["written"].as_u64().unwrap() >= 32, "{shared}");
    assert_eq!(shared["unsent"], 0);

    // The plan of the other machine knows before anything is fetched for a run.
    let plan = s3.forge(&two, &["plan", "pipelines/bench.toml"]).stdout;
    assert!(plan.contains("fresh     ask"), "{plan}");
    let second = s3.apply(&two, &[]);
    assert_eq!((second.live(), second.states()["report"].as_str()), (0, "fresh"));
    assert_eq!(one.read("out/bench/report/report.html"), two.read("out/bench/report/report.html"));
    // Why samples miss is known there as well, though their records were never fetched.
    two.manifest("temperature = 0.2", REPLIES);
    let plan = s3.forge(&two, &["plan", "pipelines/bench.toml"]).stdout;
    assert!(plan.contains("10 of 10 samples miss because `temperature` 0.0 → 0.2"), "{plan}");
    two.manifest("", REPLIES);
    // Now it is here, with no server at all.
    assert_eq!(two.ok(&["--frozen"]).live(), 0);

    // Of a longer run, what is known is taken, and the rest is asked.
    let three = Project::with("epochs = 2", REPLIES);
    let third = s3.apply(&three, &[]);
    assert_eq!((third.live(), remote_hits(&third)), (10, 10));
    assert_eq!(s3.apply(&three, &["--force", "ask"]).live(), 20);
}

#[test]
fn a_wrong_secret_is_an_error_before_anything_is_asked() {
    let Some(s3) = S3::start() else { return };
    let project = Project::new();
    let apply = ["apply", "pipelines/bench.toml", "--json"];
    let mut command = s3.command(&project, &apply);
    let ran = Ran::of(command.env("AWS_SECRET_ACCESS_KEY", "not-the-secret").output().unwrap());
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("refuses these credentials"), "{}", ran.stderr);
    assert!(!ran.stdout.contains("sample_finished"));
    let all = format!("{}{}", ran.stdout, ran.stderr);
    assert!(!all.contains("not-the-secret"), "a secret is shown: {all}");
    let without = |name: &str| {
        let mut command = s3.command(&project, &apply);
        Ran::of(command.env_remove(name).output().unwrap())
    };
    let ran = without("AWS_ACCESS_KEY_ID");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("there are no credentials for `s3://forge/team`"),
        "{}",
        ran.stderr
    );
    // A bucket that is not there: this server makes one when it is written to, so it is only read.
    let mut command = s3.command(&project, &apply);
    command.env("FORGE_REMOTE", "s3://nowhere/x").env("FORGE_REMOTE_MODE", "read-only");
    let ran = Ran::of(command.output().unwrap());
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("the bucket or folder does not exist"), "{}", ran.stderr);
    // What was kept holds no secret either.
    s3.apply(&project, &[]);
    let grep =
        Command::new("grep").args(["-r", SECRET]).arg(project.path(".forge")).output().unwrap();
    assert!(grep.stdout.is_empty(), "{}", String::from_utf8_lossy(&grep.stdout));
    // Variables of others that a client of S3 would also understand.
    let mut command = s3.command(&project, &["plan", "pipelines/bench.toml"]);
    command
        .env("TOKEN", "somebody-elses")
        .env("ENDPOINT", "http://127.0.0.1:1")
        .env("TIMEOUT", "x");
    let ran = Ran::of(command.output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_server_killed_in_the_middle_costs_nothing_but_its_help() {
    let Some(mut s3) = S3::start() else { return };
    let engine = format!("latency = \"20ms\"\n{REPLIES}");
    let project = Project::with("concurrency = 2", &engine);
    project.rows(120);
    project.edit("pipelines/bench.toml", "default = 10", "default = 120");
    let mut command = s3.command(&project, &["apply", "pipelines/bench.toml", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    project.wait_for_samples(15);
    s3.down();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.live(), 120);
    assert!(ran.stderr.contains("going on with the local store alone"), "{}", ran.stderr);
    let unsent = ran.done()["shared"]["unsent"].as_u64().unwrap();
    assert!((20..=245).contains(&unsent), "{unsent}");
    assert!(ran.stderr.contains("results are in the local store only"), "{}", ran.stderr);
    assert!(ran.stderr.contains("--remote s3://forge/team` sends"), "{}", ran.stderr);

    // Down from the start: the same, and quickly.
    let start = Instant::now();
    let again = s3.apply(&project, &[]);
    assert!(again.stderr.contains("does not answer"), "{}", again.stderr);
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());

    s3.up();
    let push = s3.forge(&project, &["store", "push", "--json"]);
    assert_eq!(push.code, 0, "{}", push.stderr);
    let push: Value = serde_json::from_str(&push.stdout).unwrap();
    // A few may have arrived without an answer.
    assert!(push["records"].as_u64().unwrap() + 5 >= unsent, "{push} of {unsent}");
    let other = Project::with("concurrency = 2", &engine);
    other.rows(120);
    other.edit("pipelines/bench.toml", "default = 10", "default = 120");
    assert_eq!(s3.apply(&other, &[]).live(), 0);
}

#[test]
fn of_two_at_once_the_first_to_share_wins_for_both() {
    let Some(s3) = S3::start() else { return };
    // A program that gives something else each time it runs, as an engine does at a temperature.
    let racer = || {
        let project = Project::empty();
        let manifest = "[pipeline]\nname = \"race\"\n[stage.draw]\nkind = \"command\"\nshell = true\n\
            command = \"od -An -N8 -tx8 /dev/urandom > out/draw.txt; sleep 4\"\noutputs = [\"out/draw.txt\"]\n";
        project.write("pipelines/bench.toml", manifest);
        project
    };
    let racers: Vec<Project> = (0..4).map(|_| racer()).collect();
    let start = |project: &Project| {
        let mut command = s3.command(project, &["apply", "pipelines/bench.toml", "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut drawn = 0;
    let children: Vec<Child> = racers.iter().map(start).collect();
    for child in children {
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        drawn += usize::from(ran.states()["draw"] == "ran");
    }
    assert!(drawn >= 2, "nobody raced anybody");
    // Whoever lost has adopted what the first has drawn.
    let draws: Vec<String> = racers.iter().map(|racer| racer.read("out/draw.txt")).collect();
    assert!(draws.iter().all(|draw| *draw == draws[0]), "{draws:?}");
    let late = racer();
    assert_eq!(s3.apply(&late, &[]).states()["draw"], "fresh");
    assert_eq!(late.read("out/draw.txt"), draws[0]);
}

#[test]
fn read_only_and_ci_modes_write_nothing_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    let count = || fs::read_dir(dir.path()).unwrap().count();
    let apply = |project: &Project, mode: &str, ci: Option<&str>| {
        let args =
            ["apply", "pipelines/bench.toml", "--json", "--remote", &url, "--remote-mode", mode];
        let mut command = project.command(&args);
        command.env_remove("CI");
        if let Some(ci) = ci {
            command.env("CI", ci);
        }
        let ran = Ran::of(command.output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran
    };
    assert_eq!(apply(&Project::new(), "read-only", None).live(), 10);
    assert_eq!(apply(&Project::new(), "ci-writes", None).live(), 10);
    assert_eq!(count(), 0, "nothing was written");
    assert_eq!(apply(&Project::new(), "ci-writes", Some("true")).live(), 10);
    assert_eq!(count(), 3, "records, blobs and the marker");
    let other = Project::new();
    assert_eq!(apply(&other, "read-only", None).live(), 0);
    let push = ["store", "push", "--remote", &url, "--remote-mode", "read-only"];
    assert_eq!(other.forge(&push).code, 2);
}

#[test]
fn push_and_pull_move_whole_stores() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    let (one, two) = (Project::new(), Project::new());
    one.ok(&[]);
    let forge = |project: &Project, args: &[&str]| -> Value {
        let ran = project.forge(&[args, &["--remote", &url, "--json"]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    };
    let sent = forge(&one, &["store", "push"]);
    assert_eq!((&sent["records"], &sent["present"]), (&25.into(), &0.into()));
    assert_eq!(
        forge(&one, &["store", "push"])["present"],
        sent["records"].as_u64().unwrap() + sent["blobs"].as_u64().unwrap()
    );
    let got = forge(&two, &["store", "pull"]);
    assert_eq!((&got["records"], &got["blobs"]), (&sent["records"], &sent["blobs"]));
    assert_eq!(two.ok(&[]).live(), 0);

    // Damage on the other side is not taken in.
    let folder = fs::read_dir(dir.path().join("records")).unwrap().next().unwrap().unwrap();
    let record = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
    fs::write(record.path(), "not a record").unwrap();
    let three = Project::new();
    let ran = three.forge(&["store", "pull", "--remote", &url, "--json"]);
    assert_eq!(ran.code, 1);
    let got: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&got["records"], &got["damaged"]), (&24.into(), &1.into()));
}

#[test]
fn a_place_that_is_none_is_an_error() {
    let project = Project::new();
    let apply = |url: &str| project.apply(&["--remote", url]);
    for (url, text) in [
        ("ftp://x/y", "(known: s3://bucket/prefix"),
        ("just-a-name", "is no URL"),
        ("file:///not/there", "there is no folder `/not/there`"),
        ("s3://key:secret@bucket/x", "credentials come from the environment"),
    ] {
        let ran = apply(url);
        assert_eq!(ran.code, 2, "{url}: {}", ran.stderr);
        assert!(ran.stderr.contains(text), "{url}: {}", ran.stderr);
        assert!(!ran.stderr.contains("secret@"), "{}", ran.stderr);
    }
}
