//! The hot paths of the memo: `cargo bench --no-default-features --bench core`.

use std::hint::black_box;

use camino::Utf8Path;
use divan::counter::{BytesCount, ItemsCount};
use llmforge::digest::{Digest, Recipe, Replica};
use llmforge::engine::Client;
use llmforge::graph::Graph;
use llmforge::manifest::Inputs;
use llmforge::sample::{Message, Request, Role, Sampling};
use llmforge::scorer;
use llmforge::stage::kinds;
use llmforge::store::{Outcome, Port, Record, Store, Witness};
use sha2::Digest as _;

fn main() {
    divan::main();
}

fn request() -> Request {
    let question = "There are 5 jars with 4 red and 6 blue apples each. How many apples are there?";
    Request {
        messages: vec![
            Message::new(Role::System, "Think step by step. ".repeat(20)),
            Message::new(Role::User, question),
        ],
        sampling: Sampling {
            temperature: 0.0,
            top_p: Some(0.9),
            max_tokens: 160,
            stop: vec!["Observation:".to_owned()],
            seed: Some(7),
            ..Sampling::default()
        },
        tools: Vec::new(),
        replica: Replica::default(),
    }
}

/// The key of a request, from its messages to its 32 bytes.
#[divan::bench]
fn key_of_a_request(bencher: divan::Bencher<'_, '_>) {
    let (engine, request) = (Digest::of(b"weights"), request());
    bencher.bench(|| Client::recipe(black_box(engine), black_box(&request)).key());
}

/// The peer: SHA-256 alone over as many bytes.
#[divan::bench]
fn sha256_of_as_many_bytes(bencher: divan::Bencher<'_, '_>) {
    let bytes = serde_json::to_vec(&request()).unwrap();
    bencher.counter(BytesCount::of_slice(&bytes)).bench(|| sha2::Sha256::digest(black_box(&bytes)));
}

/// A manifest of 10,000 stages, parsed, read and connected.
#[divan::bench(sample_count = 5)]
fn manifest_of_10_000_stages(bencher: divan::Bencher<'_, '_>) {
    let mut text = String::new();
    for i in 0..10_000 {
        let needs = if i == 0 { String::new() } else { format!("inputs = [\"s{}\"]\n", i - 1) };
        text.push_str(&format!(
            "[stage.s{i}]\nkind = \"command\"\ncommand = [\"true\"]\noutputs = [\"o/{i}\"]\n{needs}\n"
        ));
    }
    bencher.counter(ItemsCount::new(10_000_usize)).bench(|| {
        let read = |_: &Utf8Path| Ok(text.clone());
        let env = |_: &str| None;
        let kinds = kinds();
        let path = Utf8Path::new("big.toml");
        let inputs = Inputs { path, read: &read, env: &env, set: &[], kinds: &kinds };
        Graph::load(&inputs, Utf8Path::new("."), &env).unwrap()
    });
}

fn record(i: usize) -> Record {
    let reply = "Step 1: 4 + 6 = 10. Step 2: 10 * 5 = 50. ".repeat(20);
    Record {
        recipe: Client::recipe(Digest::of(b"weights"), &request()).field("row", i),
        outcome: Outcome::Value([("completion".to_owned(), Port::Inline(reply.into()))].into()),
        witness: Witness::default(),
    }
}

/// A thousand records of about 1.5 kB: written, handed to the operating system, synced in groups.
#[divan::bench(sample_count = 10)]
fn store_put_1_000(bencher: divan::Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(1000_usize))
        .with_inputs(|| {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(Utf8Path::from_path(dir.path()).unwrap()).unwrap();
            (dir, store, (0..1000).map(record).collect::<Vec<_>>())
        })
        .bench_values(|(dir, store, records)| {
            for record in records {
                store.put(record, false).unwrap();
            }
            store.flush().unwrap();
            (dir, store)
        });
}

/// The same thousand, read again from a store that was opened anew.
#[divan::bench(sample_count = 10)]
fn store_get_1_000(bencher: divan::Bencher<'_, '_>) {
    let dir = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(dir.path()).unwrap();
    let store = Store::open(root).unwrap();
    let records: Vec<_> = (0..1000).map(record).collect();
    let keys: Vec<_> = records.iter().map(|record| record.recipe.key()).collect();
    records.into_iter().for_each(|record| drop(store.put(record, false).unwrap()));
    drop(store);
    let store = Store::open(root).unwrap();
    bencher
        .counter(ItemsCount::new(1000_usize))
        .bench(|| keys.iter().filter(|key| store.get(**key).is_some()).count());
}

/// The canonical hash of a recipe alone.
#[divan::bench]
fn key_of_a_recipe(bencher: divan::Bencher<'_, '_>) {
    let recipe: Recipe = Client::recipe(Digest::of(b"weights"), &request());
    bencher.bench(|| black_box(&recipe).key());
}

/// An answer of some length, as chat models write them.
const ANSWER: &str = "In the game of Trivial Pursuit, the category colored green is Science & Nature. \
    It covers the 2,161,000 questions about physics, biology and the rest of the natural world.";

/// The normal form of such an answer.
#[divan::bench]
fn normal_form(bencher: divan::Bencher<'_, '_>) {
    bencher.bench(|| scorer::normal::text(black_box(ANSWER)));
}

/// What a scorer takes for one answer against four targets.
#[divan::bench(args = ["exact_match", "includes", "f1", "numeric"])]
fn score(bencher: divan::Bencher<'_, '_>, name: &str) {
    let targets = ["Science and Nature", "Science & Nature", "the natural sciences", "2161000"];
    let targets = targets.map(str::to_owned);
    let scorer = scorer::find(name).unwrap();
    bencher.bench(|| scorer.score(black_box(ANSWER), black_box(&targets)));
}
