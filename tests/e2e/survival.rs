//! The store under fire: kills, a full disk, damage, eight processes and collectors at once.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::project::{FORGE, Project, REPLIES, Ran};
use super::server::{Server, reply};

/// Kills in one test.
const KILLS: usize = 300;
/// How long the eight write: a minute where it counts.
const TOGETHER: Duration = Duration::from_secs(if cfg!(debug_assertions) { 15 } else { 60 });
const PROCESSES: usize = 8;

/// A pseudo-random walk that is the same in every run of a test.
struct Walk(u64);

impl Walk {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// How many files of a folder have an ending. What was killed before it had a name begins with a dot.
fn files(project: &Project, folder: &str, ending: &str) -> usize {
    let entries = fs::read_dir(project.path(folder)).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(ending) && !name.starts_with('.')).count()
}

/// Samples that were told to be answered live: from the store from then on.
fn acknowledged(stdout: &str) -> usize {
    let live = |line: &&str| {
        // The last line of a killed process may be torn.
        serde_json::from_str::<Value>(line)
            .is_ok_and(|e| e["event"] == "sample_finished" && e["served_from"] == "live")
    };
    stdout.lines().filter(live).count()
}

#[test]
fn nothing_acknowledged_is_lost_by_kills_at_any_moment() {
    const FLOWS: usize = 400;
    const ROUNDS: usize = 20;
    let project = Project::with(
        "concurrency = 4\nseed = \"{{ params.salt }}\"",
        &format!("latency = \"3ms\"\n{REPLIES}"),
    );
    project.rows(FLOWS);
    let manifest = project.read("pipelines/bench.toml") + "\n[params.salt]\ndefault = 0\n";
    let manifest = manifest.replace("default = 10", &format!("default = {FLOWS}"));
    project.write("pipelines/bench.toml", &manifest);
    let mut walk = Walk(7);
    let (mut told, mut kills) = (vec![0; KILLS / ROUNDS], 0);
    for round in 0..KILLS {
        let salt = format!("salt={}", round / ROUNDS);
        let args = ["apply", "pipelines/bench.toml", "--json", "--quiet", "--set", &salt];
        let mut command = project.command(&args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (tell, heard) = std::sync::mpsc::channel();
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            // Read on until the end of the pipe, whoever listens.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.contains("\"served_from\":\"live\"") {
                    let _ = tell.send(());
                }
                text.push_str(&line);
                text.push('\n');
            }
            text
        });
        // At any moment of a start, or soon after an answer.
        if round % 4 > 0 {
            let _ = heard.recv_timeout(Duration::from_secs(5));
        }
        std::thread::sleep(Duration::from_micros(walk.below(20_000)));
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        told[round / ROUNDS] += acknowledged(&reading.join().unwrap());
        if round % 50 == 49 {
            let verified = project.forge(&["store", "verify", "--json"]);
            let verified: Value = serde_json::from_str(&verified.stdout).unwrap();
            let damage = verified["damage"].as_array().unwrap().iter();
            // A torn last line is what a kill may leave in a journal, and nothing else.
            let beyond = damage.filter(|d| !d["file"].as_str().unwrap().starts_with("journal"));
            assert_eq!(beyond.collect::<Vec<_>>(), Vec::<&Value>::new());
        }
    }
    let mut asked = 0;
    for (salt, told) in told.iter().enumerate() {
        let ran = project.ok(&["--set", &format!("salt={salt}")]);
        assert!(ran.live() as usize <= FLOWS - told, "{told} told, {} asked again", ran.live());
        asked += ran.live();
    }
    let all: usize = told.iter().sum();
    tell!(
        "{kills} kills; {all} of {} samples were told before them, {asked} asked again",
        told.len() * FLOWS
    );
    assert!(kills > KILLS / 2, "most rounds were killed before they were done");
    assert!(all > KILLS, "{all} told");
    assert_eq!(
        files(&project, ".forge/tmproots", ".hold"),
        0,
        "what killed processes held is swept"
    );
    let journals = files(&project, ".forge/journal", ".log");
    assert!(journals <= 17, "{journals} journals are left");
}

#[test]
fn a_run_succeeds_after_damage_anywhere() {
    let project = Project::new();
    project.rows(3);
    project.ok(&[]);
    // Packs as well as a journal.
    for seed in 1..=18 {
        project.manifest(&format!("seed = {seed}"), REPLIES);
        project.ok(&["--until", "ask"]);
    }
    let pristine = tempfile::tempdir().unwrap();
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = fs::remove_dir_all(to);
        assert!(Command::new("cp").arg("-R").arg(from).arg(to).status().unwrap().success());
    };
    let (store, saved) = (project.path(".forge"), pristine.path().join("store"));
    copy(&store, &saved);
    let mut files = Vec::new();
    for folder in ["journal", "packs", "cas"] {
        let list = Command::new("find").arg(store.join(folder)).args(["-type", "f"]).output();
        let list = String::from_utf8(list.unwrap().stdout).unwrap();
        files.extend(list.lines().map(str::to_owned));
    }
    files.sort();
    assert!(files.iter().any(|file| file.ends_with(".pack")), "{files:?}");
    let mut walk = Walk(11);
    let (mut damaged, rounds) = (0, if cfg!(debug_assertions) { 60 } else { 300 });
    for round in 0..rounds {
        let file = &files[walk.below(files.len() as u64) as usize];
        let mut bytes = fs::read(file).unwrap();
        if bytes.is_empty() {
            continue;
        }
        let at = walk.below(bytes.len() as u64) as usize;
        if round % 2 == 0 {
            bytes[at] ^= 1 << walk.below(8);
        } else {
            bytes.truncate(at);
        }
        fs::write(file, bytes).unwrap();
        damaged += 1;
        project.manifest(&format!("seed = {}", 1 + walk.below(18)), REPLIES);
        let ran = project.ok(&[]);
        assert_eq!(ran.result("ask")["metrics"]["accuracy"], 1.0, "something wrong was served");
        // The first run leaves a whole store behind for what it used.
        assert_eq!(project.ok(&[]).live(), 0, "damage at {at} of {file}");
        copy(&saved, &store);
    }
    tell!("{damaged} runs after damage at random offsets of {} files", files.len());
}

/// Applies where files can grow to 200 kB; the signal is ignored, so that the write fails.
fn apply_on_a_full_disk(project: &Project) -> Ran {
    let script = "trap '' XFSZ; ulimit -f 400; exec \"$0\" apply pipelines/bench.toml --json";
    let mut command = Command::new("sh");
    command.args(["-c", script, FORGE]).current_dir(project.root()).env_remove("FORGE_STORE");
    Ran::of(command.stdin(Stdio::null()).output().unwrap())
}

#[test]
fn what_a_full_disk_does_not_keep_is_paid_all_the_same() {
    let server = Server::start(|_| reply("0"));
    let engine = server.engine("stream = false\nprobe = false\nprice = { input = 1, output = 1 }");
    let project = Project::asking("concurrency = 8", &engine);
    project.rows(400);
    let full = apply_on_a_full_disk(&project);
    assert_eq!(full.code, 1, "{}", full.stderr);
    let events = full.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let spent: f64 = events.filter_map(|event| event["cost"].as_f64()).sum();
    let count = server.count();
    assert!((20..400).contains(&count), "{count} requests");
    assert!((spent - count as f64 * 11e-6).abs() < 1e-9, "{spent} for {count} requests");
}

#[test]
fn a_full_disk_ends_with_a_clear_error_and_a_whole_store() {
    let project = Project::new();
    project.rows(400);
    project.edit("pipelines/bench.toml", "default = 10", "default = 400");
    let full = apply_on_a_full_disk(&project);
    assert_eq!(full.code, 1, "{}", full.stderr);
    assert!(full.stderr.contains("cannot write `"), "{}", full.stderr);
    let told = acknowledged(&full.stdout);
    assert!((50..400).contains(&told), "{told} were told before the disk was full");
    let verified = project.forge(&["store", "verify"]);
    assert_eq!(verified.code, 0, "{}", verified.stdout);
    let ran = project.ok(&[]);
    assert!(ran.live() as usize <= 400 - told, "{told} told, {} asked again", ran.live());
}

/// Applies one variant after another, each in a process of its own, until the time is over.
fn writer(project: &Project, number: usize, start: Instant, done: &AtomicUsize) -> Vec<usize> {
    let mut variants = Vec::new();
    while start.elapsed() < TOGETHER {
        let variant = done.fetch_add(1, Ordering::Relaxed);
        let ran = project.ok(&["--set", &format!("salt={variant}"), "--quiet"]);
        assert_eq!(ran.result("ask")["samples"], 200, "writer {number}");
        variants.push(variant);
    }
    variants
}

#[test]
fn eight_processes_with_collectors_beside_them_lose_nothing() {
    let project = Project::new();
    project.rows(200);
    project.edit("pipelines/bench.toml", "default = 10", "default = 200");
    let manifest = project.read("pipelines/bench.toml");
    let salted =
        manifest.replace("flows = \"flows\"", "flows = \"flows\"\nseed = \"{{ params.salt }}\"");
    project.write("pipelines/bench.toml", &(salted + "\n[params.salt]\ndefault = 0\n"));
    project.ok(&[]);
    let (start, done) = (Instant::now(), AtomicUsize::new(1));
    let (mut collections, mut killed) = (0, 0);
    let variants: Vec<usize> = std::thread::scope(|scope| {
        let (project, done) = (&project, &done);
        let writers: Vec<_> =
            (0..PROCESSES).map(|n| scope.spawn(move || writer(project, n, start, done))).collect();
        while start.elapsed() < TOGETHER {
            // Merges all packs each time, and collects everything that no run of this test has made.
            let ran = project.forge(&["store", "gc", "--keep-runs", "100000", "--max-age", "0s"]);
            assert_eq!(ran.code, 0, "{}", ran.stderr);
            collections += 1;
            // And a ninth, which never gets to its end.
            let args = ["apply", "pipelines/bench.toml", "--quiet", "--set", "salt=-1"];
            let mut victim: Child = project.command(&args).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(15));
            victim.kill().unwrap();
            victim.wait().unwrap();
            killed += 1;
        }
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    tell!(
        "{PROCESSES} processes for {} s: {} runs of 200 samples, {collections} collections, {killed} kills",
        TOGETHER.as_secs(),
        variants.len()
    );
    assert!(variants.len() >= PROCESSES && collections >= 3);
    for variant in &variants {
        let ran = project.ok(&["--set", &format!("salt={variant}"), "--frozen"]);
        assert_eq!((ran.live(), ran.states()["ask"].as_str()), (0, "fresh"), "variant {variant}");
    }
    let verified = project.forge(&["store", "verify", "--repair"]);
    assert_eq!(verified.code, 0, "{}", verified.stdout);
    project.ok(&[]);
    let held = files(&project, ".forge/tmproots", ".hold");
    assert_eq!(held, 0, "what the killed held is swept by who comes next");
    let packs = files(&project, ".forge/packs", ".pack");
    assert!(packs <= 8, "{packs} packs are left of {} runs", variants.len());
}

#[test]
fn a_thousand_runs_leave_a_handful_of_packs() {
    let project = Project::with("", REPLIES);
    project.rows(1);
    let runs = if cfg!(debug_assertions) { 200 } else { 1000 };
    for seed in 0..runs {
        project.manifest(&format!("seed = {seed}"), REPLIES);
        let mut command =
            project.command(&["apply", "pipelines/bench.toml", "--quiet", "--until", "ask"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut talk = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut talk).unwrap();
        assert!(child.wait().unwrap().success(), "{talk}");
    }
    let stat = project.forge(&["store", "stat", "--json"]);
    let stat: Value = serde_json::from_str(&stat.stdout).unwrap();
    let (packs, journals) = (&stat["packs"]["count"], &stat["journals"]["count"]);
    tell!("{runs} runs: {packs} packs, {journals} journals, {} records", stat["records"]);
    assert!(packs.as_u64().unwrap() <= 8 && journals.as_u64().unwrap() <= 16, "{stat}");
    project.manifest("seed = 0", REPLIES);
    assert_eq!(project.ok(&["--frozen", "--until", "ask"]).live(), 0);
}
