//! Whole data sets, and more rows than memory should hold.

use std::process::Stdio;

use serde_json::{Value, json};

use super::data::{with_rows, write_bytes};
use super::project::Project;

/// All 1,319 rows of GSM8K through the shipped example, answered with each row's own working, numbers as people
/// write them.
#[test]
fn gsm8k_runs_over_all_rows() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let project = Project::empty();
    for file in
        ["examples/gsm8k/bench.toml", "examples/gsm8k/template.toml", "fixtures/gsm8k_test.jsonl"]
    {
        project.write(file, &std::fs::read_to_string(root.join(file)).unwrap());
    }
    let mut replies = String::new();
    let mut separated = 0;
    for (i, line) in project.read("fixtures/gsm8k_test.jsonl").lines().enumerate() {
        let row: Value = serde_json::from_str(line).unwrap();
        let (working, target) = row["answer"].as_str().unwrap().split_once("#### ").unwrap();
        separated += usize::from(target.contains(','));
        // Every tenth has a digit more, and is wrong.
        let said = if i % 10 == 0 { target.replace(',', "") + "1" } else { target.to_owned() };
        // And every hundredth says more behind the mark.
        let more = if i % 100 == 1 { " (checked in 999983 ways)" } else { "" };
        let reply = format!("{working}Answer: **${said}.00**{more}.");
        let rule = json!({ "when": row["question"], "reply": reply });
        replies.push_str(&format!("{rule}\n"));
    }
    assert_eq!(separated, 14, "targets with a thousands separator");
    project.write("replies.jsonl", &replies);
    let manifest = project.read("examples/gsm8k/bench.toml");
    let (before, after) = manifest.split_once("replies = [").unwrap();
    let rest = after.split_once("\n]").unwrap().1;
    // The engines that need a model or a server are not there.
    let rest = &rest[..rest.find("[stage.tiny-chat]").unwrap()];
    project.write("examples/gsm8k/bench.toml", &format!("{before}file = \"replies.jsonl\"{rest}"));
    let ran = project.forge(&["apply", "examples/gsm8k/bench.toml", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.result("ask")["outcomes"], json!({ "answered": 1319 }));
    let right = (1319 - 132) as f64 / 1319.0;
    assert!(
        (ran.metric("ask", "accuracy") - right).abs() < 1e-9,
        "{}",
        ran.stdout.lines().last().unwrap()
    );
    let extractors = ran.result("ask")["extractors"].clone();
    let of = |i: usize, name: &str| extractors[i][name].clone();
    assert_eq!([of(0, "extractor"), of(1, "extractor")], ["strict", "flexible"]);
    assert_eq!([of(0, "read"), of(1, "read")], [1319, 1319]);
    // The last number is not the answer where an explanation follows it.
    assert_eq!([of(1, "differs"), of(1, "verdict_differs")], [14, 14]);
    assert_eq!(of(1, "correct"), 1319 - 132 - 14);
}

/// The most memory that an expansion of so many rows of two kilobytes took, in kilobytes.
fn peak_kb(rows: usize, seed: &str) -> u64 {
    let project =
        with_rows(&format!("fixture = \"fixtures/x.jsonl.zst\"{seed}\nfilter = \"row.n != 3\""));
    let text = "word ".repeat(400);
    let row = |n| {
        format!("{{\"id\": \"r{n}\", \"n\": {n}, \"question\": \"{n} {text}\", \"answer\": {n}}}\n")
    };
    let bytes: String = (0..rows).map(row).collect();
    write_bytes(&project, "fixtures/x.jsonl.zst", &zstd::encode_all(bytes.as_bytes(), 1).unwrap());
    drop(bytes);
    // A stage that holds the process, so that its peak is seen however seldom somebody looks.
    let hold = "\n[stage.hold]\nkind = \"command\"\nshell = true\n\
        command = \"sleep 1; echo x > held.txt\"\noutputs = [\"held.txt\"]\n";
    project.write("pipelines/bench.toml", &(project.read("pipelines/bench.toml") + hold));
    peak_of(&project, &["--until", "flows", "--until", "hold"])
}

/// The most memory that `forge apply` took, in kilobytes.
fn peak_of(project: &Project, args: &[&str]) -> u64 {
    let mut command =
        project.command(&[&["apply", "pipelines/bench.toml", "--quiet"], args].concat());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    let status = loop {
        let text =
            std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let found = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        peak = peak.max(found.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    assert!(status.success());
    peak
}

#[test]
fn memory_does_not_grow_with_the_rows() {
    for seed in ["", "\nshuffle_seed = 1"] {
        // Pages of the program itself count as well, and which of them are there varies by a megabyte or two from
        // run to run. That only ever adds, so the least of three says most.
        let least = |rows| (0..3).map(|_| peak_kb(rows, seed)).min().unwrap();
        let (few, many) = (least(200), least(8000));
        // The rows themselves have 16 MB, the flows as much again.
        assert!(few > 0 && many < few + 6000, "{few} kB for 200 rows, {many} kB for 8,000");
        tell!("{few} kB for 200 rows, {many} kB for 8,000{}", seed.replace('\n', ", "));
    }
}

/// Everything is asked, scored, recorded and sealed: 300 MB for the larger of both.
#[test]
fn memory_does_not_grow_with_the_samples() {
    let peak = |rows: usize| {
        let project = Project::with("concurrency = 64", "replies = [{ reply = \"7\" }]");
        project.rows(rows);
        project.edit("pipelines/bench.toml", "default = 10", &format!("default = {rows}"));
        peak_of(&project, &["--until", "ask"])
    };
    let (few, mut many) = (peak(10_000), u64::MAX);
    // Samples wait for one whose thread the machine has stopped, and the allocator keeps for a second what was given back:
    // on a busy machine that comes on top in some runs. It only ever adds, so the least of three says most.
    for _ in 0..3 {
        many = many.min(peak(100_000));
        tell!("{few} kB for 10,000 samples, {many} kB for 100,000");
        if many < few + 40_000 {
            break;
        }
    }
    assert!(few > 0 && many < few + 40_000, "{few} kB for 10,000 samples, {many} kB for 100,000");
}
