//! What it costs to find out that nothing has to be done: the whole process, beside ninja and make where they are
//! installed. `cargo bench --no-default-features --bench noop [-- 25 1000 10000 | samples 10000 100000]`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
/// Runs whose median is shown.
const RUNS: usize = 11;
/// Most stages that make is given.
const MAKE_MAX: usize = 1000;
/// Workflows over the same flows.
const CELLS: usize = 10;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let numbers = |args: &[String]| -> Vec<usize> {
        args.iter().map(|arg| arg.parse().expect("a number")).collect()
    };
    match args.first().map(String::as_str) {
        None => {
            stages(&[25, 1000, 10_000]);
            samples(&[10_000, 100_000]);
        }
        Some("samples") => samples(&numbers(&args[1..])),
        Some(_) => stages(&numbers(&args)),
    }
}

/// How a process did.
struct Cost {
    wall: Duration,
    cpu: Duration,
    peak_mb: f64,
}

/// User and system time of ended children.
fn children_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[13].parse::<u64>().unwrap() + fields[14].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn run(command: &mut Command) -> Cost {
    let (start, before) = (Instant::now(), children_cpu());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let talk = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
        text
    });
    let status = format!("/proc/{}/status", child.id());
    let mut peak_mb = 0.0;
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        if let Some(line) = text.lines().find(|line| line.starts_with("VmHWM")) {
            peak_mb = line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e3;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let wall = start.elapsed();
    assert!(ended.success(), "{}", talk.join().unwrap());
    Cost { wall, cpu: children_cpu() - before, peak_mb }
}

/// Median wall time, and CPU time of all runs divided by their number: its clock ticks in 10 ms.
fn repeated(mut command: impl FnMut() -> Command) -> Cost {
    run(&mut command());
    let costs: Vec<Cost> = (0..RUNS).map(|_| run(&mut command())).collect();
    let mut walls: Vec<Duration> = costs.iter().map(|cost| cost.wall).collect();
    walls.sort();
    let cpu = costs.iter().map(|cost| cost.cpu).sum::<Duration>() / RUNS as u32;
    let peak_mb = costs.iter().map(|cost| cost.peak_mb).fold(0.0, f64::max);
    Cost { wall: walls[RUNS / 2], cpu, peak_mb }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
}

fn forge(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(FORGE);
    command.args(args).current_dir(root).env_remove("FORGE_STORE").env_remove("FORGE_REMOTE");
    command
}

/// Independent stages, each of which copies a file.
fn stages(counts: &[usize]) {
    println!(
        "no-op of N stages that copy a file   wall ms (median of {RUNS})   CPU ms   peak MB   of ninja"
    );
    for &count in counts {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
        fs::create_dir(root.join("in")).unwrap();
        fs::create_dir_all(root.join("out")).unwrap();
        let mut manifest = "[pipeline]\nname = \"copies\"\n".to_owned();
        let mut ninja = "rule copy\n  command = cp $in $out\n".to_owned();
        let mut make = "all: ".to_owned();
        let mut rules = String::new();
        for i in 0..count {
            write(&format!("in/{i}"), &format!("{i}\n"));
            manifest.push_str(&format!(
                "[stage.s{i}]\nkind = \"command\"\nfiles = [\"in/{i}\"]\ncommand = [\"cp\", \"in/{i}\", \"out/{i}\"]\n\
                 outputs = [\"out/{i}\"]\n"
            ));
            ninja.push_str(&format!("build made/{i}: copy in/{i}\n"));
            make.push_str(&format!("made/{i} "));
            rules.push_str(&format!("made/{i}: in/{i}\n\tcp $< $@\n"));
        }
        write("copies.toml", &manifest);
        write("build.ninja", &ninja);
        write("Makefile", &format!("{make}\n{rules}"));
        let first = run(&mut forge(root, &["apply", "copies.toml", "--quiet"]));
        // The files of a moment ago are always hashed again.
        std::thread::sleep(Duration::from_millis(2100));
        let ours = repeated(|| forge(root, &["apply", "copies.toml", "--quiet"]));
        let mut peers = Vec::new();
        for program in ["ninja", "make"] {
            // Its no-op is quadratic: minutes at ten thousand.
            if program == "make" && count > MAKE_MAX {
                continue;
            }
            if !installed(program) {
                println!("{count:>6}  {program}: not installed");
                continue;
            }
            let _ = fs::remove_dir_all(root.join("made"));
            fs::create_dir(root.join("made")).unwrap();
            let build = || {
                let mut command = Command::new(program);
                command.current_dir(root);
                command
            };
            run(&mut build());
            peers.push((program, repeated(build)));
        }
        let ninja = peers.iter().find(|(name, _)| *name == "ninja").map(|(_, cost)| cost.wall);
        let show = |name: &str, cost: &Cost| {
            let ratio = ninja.map_or("-".to_owned(), |ninja| {
                format!("{:.2}", cost.wall.as_secs_f64() / ninja.as_secs_f64())
            });
            println!(
                "{count:>6}  {name:8} {:>10.1}  {:>8.1}  {:>7.1}  {ratio:>6}",
                ms(cost.wall),
                ms(cost.cpu),
                cost.peak_mb
            );
        };
        show("forge", &ours);
        peers.iter().for_each(|(name, cost)| show(name, cost));
        println!("{count:>6}  (forge's first run: {:.1} s)", first.wall.as_secs_f64());
    }
}

fn project(root: &Path, rows: usize) -> PathBuf {
    let write = |name: &str, text: &str| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let seeds: Vec<String> = (0..CELLS).map(|seed| seed.to_string()).collect();
    let manifest = format!(
        r#"
[pipeline]
name = "many"
[stage.question]
kind = "flow-template"
file = "qa.toml"
[stage.flows]
kind = "expand"
template = "question"
fixture = "rows.jsonl"
[stage.engine]
kind = "engine"
backend = "scripted"
replies = [{{ reply = "The answer to that question is one, as far as anybody can tell." }}]
[stage.ask]
kind = "workflow"
flows = "flows"
engine = "engine"
[stage.ask.matrix]
seed = [{}]
"#,
        seeds.join(", ")
    );
    write("many.toml", &manifest);
    let template = "id = \"row.id\"\ntargets = \"row.answer\"\n[[step]]\nid = \"a\"\nuser = \"{{ row.question }}\"\n";
    write("qa.toml", template);
    let row = |n| {
        format!(
            "{{\"id\": \"q{n}\", \"question\": \"What is {n} + 0, and why?\", \"answer\": {n}}}\n"
        )
    };
    let path = root.join("rows.jsonl");
    fs::write(&path, (0..rows).map(row).collect::<String>()).unwrap();
    path
}

/// Ten workflows over the same flows.
fn samples(counts: &[usize]) {
    println!("{CELLS} workflows × N samples           wall ms    CPU ms   peak MB");
    for &count in counts {
        let dir = tempfile::tempdir().unwrap();
        let rows = project(dir.path(), count);
        let apply = || forge(dir.path(), &["apply", "many.toml", "--quiet"]);
        let show = |what: &str, cost: &Cost| {
            println!(
                "{count:>7}  {what:24} {:>9.1}  {:>8.1}  {:>8.1}",
                ms(cost.wall),
                ms(cost.cpu),
                cost.peak_mb
            );
        };
        show("first run", &run(&mut apply()));
        std::thread::sleep(Duration::from_millis(2100));
        show("no-op", &repeated(apply));
        let text = fs::read_to_string(&rows).unwrap();
        fs::write(&rows, text.replacen("What is 7 + 0,", "What is 7 plus 0,", 1)).unwrap();
        show("one changed row", &run(&mut apply()));
        let one = ["apply", "many.toml", "--quiet", "--until", "ask[seed=0]"];
        let text = fs::read_to_string(&rows).unwrap();
        fs::write(&rows, text.replacen("What is 8 + 0,", "What is 8 plus 0,", 1)).unwrap();
        show("one changed row, one cell", &run(&mut forge(dir.path(), &one)));
    }
}
