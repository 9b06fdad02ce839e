//! The shipped model with several requests in flight: first mistral.rs by itself, to see when its answers
//! go wrong, then forge, whose admission must keep them right.
//! `cargo bench --bench in_flight` (a few minutes on two cores).

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llmforge::scorer;
use mistralrs::{
    GgufModelBuilder, Model, ModelDType, RequestBuilder, TextMessageRole, TextModelBuilder,
    TokenSource,
};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const COT: &str =
    "Think step by step. Then give the result on the last line as \"Answer: <result>\".";
/// A variant that has gone wrong is also up to thirty times slower; it is cut off here.
const TIME_MAX: Duration = Duration::from_secs(60);

struct Row {
    question: String,
    answers: Vec<String>,
}

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(format!("{ROOT}/fixtures/qa_25.jsonl")).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let answers = row["answers"].as_array().unwrap();
        Row {
            question: row["question"].as_str().unwrap().to_owned(),
            answers: answers.iter().map(|answer| answer.as_str().unwrap().to_owned()).collect(),
        }
    };
    text.lines().map(row).collect()
}

#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    gguf: bool,
    dtype: ModelDType,
    prefix_cache: bool,
}

async fn load(variant: Variant) -> Model {
    let cache = variant.prefix_cache.then_some(16);
    if variant.gguf {
        let builder =
            GgufModelBuilder::new(format!("{ROOT}/fixtures"), vec!["tiny-chat-q8_0.gguf"]);
        let builder = builder.with_force_cpu().with_token_source(TokenSource::None);
        return builder.with_prefix_cache_n(cache).build().await.unwrap();
    }
    let builder = TextModelBuilder::new(format!("{ROOT}/fixtures/tiny-chat"));
    let builder = builder.with_dtype(variant.dtype).with_force_cpu();
    builder.with_token_source(TokenSource::None).with_prefix_cache_n(cache).build().await.unwrap()
}

/// Replies of mistral.rs with `width` requests in flight; `None` for those that the time did not suffice for.
async fn replies(variant: Variant, width: usize, rows: &[Row]) -> (Vec<Option<String>>, Duration) {
    let model = Arc::new(load(variant).await);
    let permits = Arc::new(tokio::sync::Semaphore::new(width));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for row in rows {
        let permit = permits.clone().acquire_owned().await.unwrap();
        if start.elapsed() > TIME_MAX {
            break;
        }
        let (model, question) = (model.clone(), row.question.clone());
        tasks.push(tokio::spawn(async move {
            let _permit = permit;
            let request = RequestBuilder::new()
                .add_message(TextMessageRole::System, COT)
                .add_message(TextMessageRole::User, question)
                .set_sampler_temperature(0.0)
                .set_sampler_max_len(160);
            let reply = model.send_chat_request(request).await.ok()?;
            reply.choices.first()?.message.content.clone()
        }));
    }
    let mut replies: Vec<Option<String>> = Vec::new();
    for task in tasks {
        replies.push(task.await.unwrap_or(None));
    }
    replies.resize(rows.len(), None);
    (replies, start.elapsed())
}

fn right(reply: &str, row: &Row) -> bool {
    let exact = scorer::find("exact_match").unwrap();
    let answer = reply.rsplit_once("Answer:").map_or("", |(_, answer)| answer.trim());
    exact.score(answer, &row.answers).value == Some(1.0)
}

async fn alone() {
    let rows = rows();
    println!("mistral.rs by itself, qa_25 with cot, temperature 0");
    println!(
        "{:34} {:>9} {:>9} {:>14} {:>11}",
        "variant", "in flight", "right", "as when alone", "answers/s"
    );
    let plain = |name, gguf, dtype, prefix_cache| Variant { name, gguf, dtype, prefix_cache };
    let variants = [
        plain("safetensors f32", false, ModelDType::F32, false),
        plain("safetensors f16", false, ModelDType::F16, false),
        plain("safetensors f32, prefix cache", false, ModelDType::F32, true),
        plain("GGUF Q8_0 (f16)", true, ModelDType::Auto, false),
    ];
    for variant in variants {
        let mut first: Option<Vec<Option<String>>> = None;
        for width in [1, 2, 8] {
            let (replies, time) = replies(variant, width, &rows).await;
            let given = replies.iter().flatten().count();
            let correct = replies
                .iter()
                .zip(&rows)
                .filter(|(reply, row)| reply.as_ref().is_some_and(|reply| right(reply, row)));
            let base = first.get_or_insert_with(|| replies.clone());
            let same =
                replies.iter().zip(base.iter()).filter(|(a, b)| a.is_some() && a == b).count();
            println!(
                "{:34} {width:>9} {:>6}/{:<2} {:>11}/{given:<2} {:>11.1}",
                variant.name,
                correct.count(),
                given,
                same,
                given as f64 / time.as_secs_f64()
            );
        }
    }
}

/// One method of the shipped benchmark through forge, in a store of its own.
fn forge(name: &str, engine: &str, concurrency: u32) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    std::fs::create_dir(root.join("pipelines")).unwrap();
    for folder in ["templates", "fixtures"] {
        let from = format!("{ROOT}/{folder}");
        assert!(
            Command::new("cp")
                .args(["-r", &from, root.to_str().unwrap()])
                .status()
                .unwrap()
                .success()
        );
    }
    let manifest = format!(
        "[stage.question]\nkind = \"flow-template\"\nfile = \"templates/qa.toml\"\n\
         [stage.engine]\nkind = \"engine\"\n{engine}\n\
         [stage.flows]\nkind = \"expand\"\ntemplate = \"question\"\n\
         fixture = [\"fixtures/facts.jsonl\", \"fixtures/arithmetic.jsonl\"]\n\
         [stage.ask]\nkind = \"workflow\"\nflows = \"flows\"\nengine = \"engine\"\nmethod = \"cot\"\n\
         max_tokens = 160\nconcurrency = {concurrency}\n"
    );
    std::fs::write(root.join("pipelines/x.toml"), manifest).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_forge"))
        .args(["apply", "pipelines/x.toml", "--json"])
        .current_dir(root)
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let events: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tokens: u64 = events.iter().filter_map(|event| event["output_tokens"].as_u64()).sum();
    let done = events.last().unwrap();
    let stage =
        done["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == "ask").unwrap();
    let wall = done["wall_ms"].as_f64().unwrap() / 1000.0;
    println!(
        "{name:24} {concurrency:>17} {:>10.1} {:>9.1} {:>10.0}   {}",
        100.0 * done["results"][0]["metrics"]["accuracy_all"].as_f64().unwrap(),
        400.0 / wall,
        tokens as f64 / wall,
        &stage["result"].as_str().unwrap()[..12],
    );
}

fn main() {
    // `cargo test` runs benches without arguments of its own; they are for `cargo bench`.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    println!("forge, all 400 questions with cot");
    println!(
        "{:24} {:>17} {:>10} {:>9} {:>10}   digest of all transcripts",
        "engine", "samples in flight", "accuracy", "answers/s", "tokens/s",
    );
    let here = |model: &str, instances: u32| {
        format!("model = \"fixtures/{model}\"\ninstances = {instances}")
    };
    for (instances, concurrency) in [(1, 1), (1, 8), (2, 8)] {
        let name = format!("safetensors × {instances}");
        forge(&name, &here("tiny-chat", instances), concurrency);
    }
    for (instances, concurrency) in [(1, 1), (2, 8)] {
        let name = format!("GGUF × {instances}");
        forge(&name, &here("tiny-chat-q8_0.gguf", instances), concurrency);
    }
    // The peer: the same GGUF behind llama.cpp's own server, where tests/services/inference has put it.
    let server = format!("{ROOT}/target/services/xllamacpp");
    if std::path::Path::new(&server).join("installed").exists() {
        for slots in [1, 8] {
            let engine = format!(
                "backend = \"process\"\nmodel = \"tiny-chat\"\nenv = {{ PYTHONPATH = \"{server}\" }}\n\
                 command = [\"python3\", \"{ROOT}/tests/services/llama_server.py\", \
                 \"fixtures/tiny-chat-q8_0.gguf\", \"{{port}}\", \"{slots}\"]"
            );
            forge("GGUF, llama.cpp's server", &engine, slots);
        }
    } else {
        println!("llama.cpp's server is not installed (tests/services/inference)");
    }
    println!();
    tokio::runtime::Runtime::new().unwrap().block_on(alone());
}
