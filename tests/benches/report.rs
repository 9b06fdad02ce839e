//! The HTML report of 10 workflows of 10,000 samples: time to write it, its size for each sample, the memory that
//! takes, and the time until a real browser shows its list (where there is one).
//!
//! `cargo bench --bench report -- [ROWS [CELLS [FILE]]]`; 10,000, 10 and a temporary file by default.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use llmforge::digest::{Digest, Recipe};
use llmforge::record::{
    Observed, Phase, PhasesMs, Price, ProfileBuilder, RequestObserved, ServedFrom,
};
use llmforge::report::{
    Analysis, CellBuilder, CellInfo, REPORT_VERSION, Report, Row, RunInfo, analyse, html,
};
use llmforge::sample::{Message, Outcome, Role, Sample, Score, StepRun, TokenSource, Usage};

/// Prints what has been measured.
macro_rules! tell {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}

#[path = "../e2e/browser.rs"]
#[expect(dead_code, reason = "this opens pages, and tests do more")]
mod browser;

const WORDS: &[&str] = &[
    "river",
    "seven",
    "market",
    "before",
    "apples",
    "train",
    "costs",
    "each",
    "morning",
    "carries",
    "boxes",
    "after",
    "sells",
    "remaining",
    "hours",
    "teacher",
    "counts",
    "pages",
    "every",
    "week",
    "garden",
    "twice",
    "as",
    "many",
    "than",
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "more",
    "half",
];
const OPENINGS: usize = 5;

fn text(rng: &mut fastrand::Rng, words: usize) -> String {
    let word = |rng: &mut fastrand::Rng| match rng.u8(0..6) {
        0 => rng.u16(2..2000).to_string(),
        _ => WORDS[rng.usize(0..WORDS.len())].to_owned(),
    };
    (0..words).map(|_| word(rng)).collect::<Vec<_>>().join(" ")
}

/// A sample as a word problem gives it: a question of 40 words and a chain of thought of 90.
fn row(cell: usize, i: usize) -> Row {
    let mut question = fastrand::Rng::with_seed(i as u64);
    let mut own = fastrand::Rng::with_seed((cell * 1_000_003 + i) as u64);
    let asked = text(&mut question, 40);
    let target = question.u16(1..1000).to_string();
    let right = own.u8(0..100) < 40 + 5 * cell as u8;
    let answer = if right { target.clone() } else { own.u16(1..1000).to_string() };
    let reply = format!("{}. The answer is {answer}.", text(&mut own, 90));
    let key = Recipe::new("sample", 1).field("n", format!("{cell} {i}")).key();
    let request = Recipe::new("request", 1).field("n", format!("{cell} {i}")).key();
    let live_ms = 200.0 + own.f64() * 3000.0;
    let system = "You are a careful assistant. Think step by step, then end with `The answer is`.";
    let transcript = vec![
        Message::new(Role::System, system),
        Message::new(Role::User, asked),
        Message::new(Role::Assistant, reply),
    ];
    let sample = Sample {
        flow: format!("test-{i:05}"),
        flow_digest: Digest::of(format!("flow {i}").as_bytes()),
        epoch: 0,
        key,
        outcome: Outcome::Answered,
        detail: None,
        answer: Some(answer.clone()),
        targets: vec![target.clone()],
        scores: vec![Score {
            value: Some(f64::from(u8::from(right))),
            matched: Some(target),
            parsed: Some(answer),
            ..Score::new("numeric")
        }],
        readings: Vec::new(),
        steps: vec![StepRun {
            id: "answer".to_owned(),
            transcript,
            answer: None,
            requests: vec![request],
            calls: Vec::new(),
            prefill: None,
            retrieval_info: None,
            trace: None,
        }],
        tags: BTreeMap::from([("topic".to_owned(), format!("topic {}", i % 7))]),
    };
    let observed = Observed {
        served_from: ServedFrom::Live,
        wall_ms: live_ms + 1.2,
        requests: vec![RequestObserved {
            key: request,
            served_from: ServedFrom::Live,
            phases_ms: PhasesMs::from([(Phase::ApiCall, live_ms), (Phase::PromptBuild, 0.0123)]),
            live_ms: Some(live_ms),
            usage: Usage::counted(Some(120), Some(180), TokenSource::Usage),
            attempts: 1,
            unknown_attempts: 0,
            failed_usage: None,
            retries: Vec::new(),
            timing: None,
        }],
        metrics_ms: Some(0.021),
        scoring: Vec::new(),
        cut_short: false,
    };
    Row::new(sample, observed)
}

fn report(rows: usize, cells: usize) -> Report {
    let cell = |cell: usize| {
        let methods = ["naive", "cot"];
        let (method, temperature) = (methods[cell % 2], cell / 2);
        let info = CellInfo {
            method: method.to_owned(),
            config: BTreeMap::new(),
            execution: BTreeMap::new(),
            inputs: BTreeMap::from([("flows".to_owned(), "f".to_owned())]),
            engine: BTreeMap::new(),
            admission: "8 at once".to_owned(),
            price: Some(Price { input: 1.0 + cell as f64, output: 4.0, cached_input: None }),
            unpriced: false,
            scorers: BTreeMap::new(),
            scorer_prices: BTreeMap::new(),
            profile: ProfileBuilder::default().finish(None, 8, Some(1000.0)),
        };
        let mut builder = CellBuilder::new(info);
        let bare = (0..rows).map(|i| row(cell, i)).map(|row| {
            builder.add(&row);
            row.bare(None)
        });
        let bare = bare.collect();
        let name = format!("ask[method={method},temperature=0.{temperature}]");
        builder.finish(&name, "key".to_owned(), "result".to_owned(), bare)
    };
    let mut cells: Vec<_> = (0..cells).map(cell).collect();
    let comparisons = analyse(&mut cells, &Analysis::default()).expect("settings that fit");
    Report {
        version: REPORT_VERSION,
        title: "Word problems".to_owned(),
        description: Some("Ten ways to ask.".to_owned()),
        run: RunInfo {
            run_id: "01M8".to_owned(),
            started_at: "2026-11-22T12:00:00Z".to_owned(),
            pipeline: "bench".to_owned(),
            manifest: "pipelines/bench.toml".to_owned(),
            manifest_digest: "d".to_owned(),
            tool: "forge".to_owned(),
            platform: "linux".to_owned(),
            cores: 2,
            git_revision: None,
            git_dirty: None,
            params: BTreeMap::new(),
        },
        cells,
        comparisons,
        gates: Vec::new(),
    }
}

/// The most memory that this process has held, in MB.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1024.0)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let number =
        |i: usize, default| args.get(i).map_or(default, |text| text.parse().expect("a number"));
    let (rows, cells): (usize, usize) = (number(0, 10_000), number(1, 10));
    let folder = tempfile::tempdir().expect("a folder");
    let path = args.get(2).map_or_else(|| folder.path().join("report.html"), PathBuf::from);

    let start = Instant::now();
    let report = report(rows, cells);
    tell!(
        "{cells} workflows of {rows} samples: added up in {:.2} s",
        start.elapsed().as_secs_f64()
    );
    let before = peak_mb();
    let start = Instant::now();
    let mut file = BufWriter::new(std::fs::File::create(&path).expect("a file"));
    let all = (0..cells)
        .flat_map(|cell| (0..rows).map(move |i| Ok::<_, Infallible>((cell, row(cell, i)))));
    let Ok(()) = html(&report, all, |text| {
        file.write_all(text.as_bytes()).expect("room on the disk");
        Ok(())
    });
    file.flush().expect("room on the disk");
    let bytes = std::fs::metadata(&path).expect("the file").len() as f64;
    tell!(
        "written in {:.2} s: {:.1} MB, {:.0} bytes a sample; memory {before:.0} MB before, {:.0} MB after",
        start.elapsed().as_secs_f64(),
        bytes / 1e6,
        bytes / (rows * cells) as f64,
        peak_mb(),
    );

    let Some(browser) = browser::Browser::start() else { return };
    let mut times: Vec<[f64; 4]> = Vec::new();
    for _ in 0..OPENINGS {
        browser.open("about:blank");
        browser.open_file(&path);
        browser.wait_until("performance.getEntriesByName('samples-whole').length");
        browser.wait_until("performance.getEntriesByName('samples-shown').length");
        let of = |name: &str| {
            let expression = format!("performance.getEntriesByName('{name}')[0].startTime");
            browser.value(&expression).as_f64().unwrap_or(f64::NAN)
        };
        times.push([
            of("first-contentful-paint"),
            of("samples-ready"),
            of("samples-shown"),
            of("samples-whole"),
        ]);
    }
    let marks = [
        "first paint",
        "list, filters and order of all samples",
        "first samples shown",
        "the last sample has arrived",
    ];
    for (i, what) in marks.iter().enumerate() {
        let mut one: Vec<f64> = times.iter().map(|times| times[i]).collect();
        one.sort_by(f64::total_cmp);
        tell!(
            "{what}: median {:.0} ms of {OPENINGS}, worst {:.0} ms",
            one[OPENINGS / 2],
            one[OPENINGS - 1]
        );
    }
    let search = "document.querySelector('#search').value = 'no such words'; \
                  document.querySelector('#search').dispatchEvent(new Event('input')); return 0";
    let start = Instant::now();
    browser.run(search);
    browser.wait_until(
        "document.querySelector('#count').textContent.startsWith('0 of') && \
                        !document.querySelector('#count').textContent.includes('searching')",
    );
    tell!("search through everything said: {:.2} s", start.elapsed().as_secs_f64());
}
