//! What it costs to compare results that are in the store: the whole process of `forge diff`, beside what it takes just
//! to read the tables of both runs and hold them against their names, one after the other.
//! `cargo bench --no-default-features --bench diff`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use llmforge::history::{self, Tables};
use llmforge::store::Store;

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
/// Comparisons whose median is shown.
const RUNS: usize = 5;

fn main() {
    println!(
        "forge diff of two runs   samples of a run   median ms of {RUNS}   slowest   MB of tables   ms to read them"
    );
    for (cells, rows, epochs) in [(1, 10_000, 1), (1, 2_000, 5), (10, 1_000, 1), (10, 10_000, 1)] {
        compare(cells, rows, epochs);
    }
}

/// Two runs of a matrix whose engines differ in every tenth answer.
fn compare(cells: usize, rows: usize, epochs: usize) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, "rows.jsonl", &rows_of(rows));
    write(
        root,
        "qa.toml",
        "id = \"row.id\"\ntargets = \"row.answer\"\n[[step]]\nid = \"answer\"\nuser = \"{{ row.question }}\"\n",
    );
    for right in ["7", "8"] {
        write(root, "bench.toml", &manifest(cells, epochs, right));
        let ended = forge(root, &["apply", "bench.toml", "--quiet"]).status().unwrap();
        assert!(ended.success());
    }
    let mut times: Vec<Duration> = (0..RUNS).map(|_| timed(root)).collect();
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let what = if epochs > 1 {
        format!("{cells} x {rows} x {epochs}")
    } else {
        format!("{cells} x {rows}")
    };
    let (bytes, read) = read(root);
    println!(
        "{what:24} {:16} {:16.0} {:9.0} {:14.0} {:17.0}",
        cells * rows * epochs,
        ms(times[RUNS / 2]),
        ms(times[RUNS - 1]),
        bytes as f64 / 1e6,
        ms(read)
    );
}

/// All tables of both runs: their bytes, and how long it takes to read them.
fn read(root: &Path) -> (usize, Duration) {
    let store = Store::open(Utf8Path::from_path(&root.join(".forge")).unwrap()).unwrap();
    let mut bytes = 0;
    let start = Instant::now();
    for name in ["last~1", "last"] {
        let run = history::find(&store, name).unwrap();
        for stage in run.record.workflows() {
            let tables = Tables::of(&store, stage).unwrap();
            for table in [Some(tables.samples), tables.observed].into_iter().flatten() {
                bytes += store.blob(table).unwrap().len();
            }
        }
    }
    (bytes, start.elapsed())
}

fn timed(root: &Path) -> Duration {
    let start = Instant::now();
    let output = forge(root, &["diff", "last~1", "last"]).stdout(Stdio::piped()).output().unwrap();
    let took = start.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("McNemar") || text.contains("sign flips"),
        "{text}"
    );
    took
}

fn write(root: &Path, name: &str, text: &str) {
    fs::write(root.join(name), text).unwrap();
}

fn rows_of(count: usize) -> String {
    let row = |n: usize| {
        format!(
            "{{\"id\": \"q{n}\", \"question\": \"What is the last digit of {n}, and why would you think so?\", \"answer\": {}}}\n",
            n % 10
        )
    };
    (0..count).map(row).collect()
}

fn manifest(cells: usize, epochs: usize, right: &str) -> String {
    let seeds: Vec<String> = (0..cells).map(|n| n.to_string()).collect();
    format!(
        "[pipeline]\nname = \"bench\"\n[stage.question]\nkind = \"flow-template\"\nfile = \"qa.toml\"\n\
         [stage.flows]\nkind = \"expand\"\ntemplate = \"question\"\nfixture = \"rows.jsonl\"\n\
         [stage.engine]\nkind = \"engine\"\nbackend = \"scripted\"\nreplies = [\n\
         {{ when = \"{right}, and\", reply = \"{right}\" }},\n{{ when = \"3, and\", reply = \"3\" }},\n{{ reply = \"0\" }},\n]\n\
         [stage.ask]\nkind = \"workflow\"\nflows = \"flows\"\nengine = \"engine\"\nepochs = {epochs}\nconcurrency = 64\n\
         [stage.ask.matrix]\nseed = [{}]\n",
        seeds.join(", ")
    )
}

fn forge(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(FORGE);
    command.args(args).current_dir(root).env_remove("FORGE_STORE").env_remove("FORGE_REMOTE");
    command
}
