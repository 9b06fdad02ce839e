//! Records of 1.5 kB in the memo store, beside SQLite (WAL, tuned) and redb, each in a process of its own:
//! `cargo bench --no-default-features --bench store [-- 10000 100000 1000000]`.
//!
//! All three store the same JSON under the same key and sync in groups of 256. Making key and JSON and reading
//! the JSON back is the same work everywhere; it is in every figure, and shown by itself.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};
use cpu_time::ProcessTime;
use llmforge::digest::{Digest, Key};
use llmforge::engine::Client;
use llmforge::sample::Usage;
use llmforge::sample::{Message, Request, Role, Sampling};
use llmforge::store::{Outcome, Port, Record, Store, Witness};
use redb::ReadableDatabase;

const GROUP: usize = 256;
/// Look-ups measured at most.
const GETS: usize = 200_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == "one") {
        return one(&args[1], args[2].parse().unwrap());
    }
    let sizes: Vec<usize> = match args.is_empty() {
        true => vec![10_000, 100_000, 1_000_000],
        false => args.iter().map(|arg| arg.parse().expect("a number of records")).collect(),
    };
    println!("{:>9}  {:12} {HEADS}", "records", "store");
    for size in sizes {
        for peer in ["nothing", "forge", "sqlite", "redb"] {
            let me = std::env::current_exe().unwrap();
            let output = Command::new(me).args(["one", peer, &size.to_string()]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            println!("{size:>9}  {peer:12} {}", String::from_utf8_lossy(&output.stdout).trim_end());
        }
    }
    println!(
        "nothing: key, JSON and its parse alone. CPU is of the whole process, threads included."
    );
}

const HEADS: &str =
    "put µs CPU  put µs wall  get µs CPU  hot get µs CPU  open+get ms  MB on disk  peak MB";

fn record(i: usize) -> Record {
    let request = Request {
        messages: vec![Message::new(Role::User, format!("What is {i} + 1?"))],
        sampling: Sampling {
            top_p: Some(0.9),
            max_tokens: 160,
            stop: vec!["Observation:".to_owned()],
            seed: Some(7),
            ..Sampling::default()
        },
        tools: Vec::new(),
        replica: Default::default(),
    };
    let reply = format!("Step 1: 4 + {i} = 10. Step 2: 10 * 5 = 50. ").repeat(22);
    Record {
        recipe: Client::recipe(Digest::of(b"weights"), &request),
        outcome: Outcome::Value([("completion".to_owned(), Port::Inline(reply.into()))].into()),
        witness: Witness {
            run: "01J0000000000000000000000".to_owned(),
            tool: "0.1.0".into(),
            started_unix_ms: 1_700_000_000_000 + i as u64,
            phases_ms: Default::default(),
            usage: Usage::default(),
            attempts: 1,
            observed: None,
            written: None,
        },
    }
}

/// What a peer has to do.
trait Peer {
    fn put(&mut self, record: Record);
    fn finish(&mut self);
    fn get(&mut self, key: Key) -> Option<Record>;
}

struct Nothing(Vec<u8>);

impl Peer for Nothing {
    fn put(&mut self, record: Record) {
        black_box(record.recipe.key());
        self.0.clear();
        record.write(&mut self.0);
    }
    fn finish(&mut self) {}
    fn get(&mut self, _: Key) -> Option<Record> {
        serde_json::from_slice(&self.0).ok()
    }
}

impl Peer for Store {
    fn put(&mut self, record: Record) {
        Store::put(self, record, false).unwrap();
    }
    fn finish(&mut self) {
        self.flush().unwrap();
    }
    fn get(&mut self, key: Key) -> Option<Record> {
        Store::get(self, key)
    }
}

struct Sqlite {
    db: rusqlite::Connection,
    open: usize,
}

impl Sqlite {
    fn open(root: &Utf8Path) -> Self {
        let db = rusqlite::Connection::open(root.join("db.sqlite")).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=8000;
             PRAGMA journal_size_limit=67108864; PRAGMA mmap_size=1073741824; PRAGMA cache_size=-65536;
             CREATE TABLE IF NOT EXISTS record (id INTEGER PRIMARY KEY, key BLOB UNIQUE, value BLOB);",
        )
        .unwrap();
        Sqlite { db, open: 0 }
    }
}

impl Peer for Sqlite {
    fn put(&mut self, record: Record) {
        if self.open == 0 {
            self.db.execute_batch("BEGIN IMMEDIATE").unwrap();
        }
        let sql = "INSERT OR IGNORE INTO record (key, value) VALUES (?1, ?2)";
        let mut insert = self.db.prepare_cached(sql).unwrap();
        let mut value = Vec::new();
        record.write(&mut value);
        insert.execute((record.recipe.key().bytes(), value)).unwrap();
        self.open += 1;
        if self.open == GROUP {
            self.db.execute_batch("COMMIT").unwrap();
            self.open = 0;
        }
    }
    fn finish(&mut self) {
        if self.open > 0 {
            self.db.execute_batch("COMMIT").unwrap();
            self.open = 0;
        }
    }
    fn get(&mut self, key: Key) -> Option<Record> {
        let mut get = self.db.prepare_cached("SELECT value FROM record WHERE key = ?1").unwrap();
        let value: Vec<u8> = get.query_row([key.bytes()], |row| row.get(0)).ok()?;
        serde_json::from_slice(&value).ok()
    }
}

const TABLE: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("record");

struct Redb {
    db: redb::Database,
    waiting: Vec<Record>,
}

impl Redb {
    fn open(root: &Utf8Path) -> Self {
        Redb { db: redb::Database::create(root.join("db.redb")).unwrap(), waiting: Vec::new() }
    }
}

impl Peer for Redb {
    fn put(&mut self, record: Record) {
        self.waiting.push(record);
        if self.waiting.len() == GROUP {
            self.finish();
        }
    }
    fn finish(&mut self) {
        let write = self.db.begin_write().unwrap();
        {
            let mut table = write.open_table(TABLE).unwrap();
            for record in self.waiting.drain(..) {
                let mut value = Vec::new();
                record.write(&mut value);
                table.insert(record.recipe.key().bytes().as_slice(), value.as_slice()).unwrap();
            }
        }
        write.commit().unwrap();
    }
    fn get(&mut self, key: Key) -> Option<Record> {
        let read = self.db.begin_read().unwrap();
        let table = read.open_table(TABLE).unwrap();
        let value = table.get(key.bytes().as_slice()).unwrap()?;
        serde_json::from_slice(value.value()).ok()
    }
}

fn open(peer: &str, root: &Utf8Path) -> Box<dyn Peer> {
    match peer {
        "nothing" => Box::new(Nothing(Vec::new())),
        "forge" => Box::new(Store::open(root).unwrap()),
        "sqlite" => Box::new(Sqlite::open(root)),
        "redb" => Box::new(Redb::open(root)),
        other => panic!("unknown store {other}"),
    }
}

fn one(peer: &str, size: usize) {
    let dir = tempfile::tempdir().unwrap();
    let root = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    let mut store = open(peer, &root);
    // What the records cost to make is taken off.
    let (mut making, mut cpu) = (0.0, 0.0);
    let wall = Instant::now();
    let mut chunk = Vec::new();
    for start in (0..size).step_by(1000) {
        let begin = ProcessTime::now();
        chunk.extend((start..size.min(start + 1000)).map(record));
        making += begin.elapsed().as_secs_f64();
        let begin = ProcessTime::now();
        chunk.drain(..).for_each(|record| store.put(record));
        cpu += begin.elapsed().as_secs_f64();
    }
    let begin = ProcessTime::now();
    store.finish();
    drop(store);
    cpu += begin.elapsed().as_secs_f64();
    let wall = wall.elapsed().as_secs_f64() - making;
    let peak = peak_mb();

    let gets = size.min(GETS);
    // A stride that meets keys in no order of theirs.
    let keys: Vec<Key> = (0..gets).map(|i| record(i * 7919 % size).recipe.key()).collect();
    let opening = Instant::now();
    let mut store = open(peer, &root);
    if peer == "nothing" {
        store.put(record(0));
    }
    assert!(store.get(keys[0]).is_some());
    let opening_ms = opening.elapsed().as_secs_f64() * 1e3;
    let mut round = || {
        let begin = ProcessTime::now();
        let found = keys.iter().filter(|key| store.get(**key).is_some()).count();
        assert_eq!(found, gets);
        begin.elapsed().as_secs_f64() / gets as f64 * 1e6
    };
    let (first, second) = (round(), round());
    let per = |seconds: f64| seconds / size as f64 * 1e6;
    println!(
        "{:>10.2}  {:>11.2}  {:>10.2}  {:>14.2}  {:>11.2}  {:>10.1}  {:>7.0}",
        per(cpu),
        per(wall),
        first,
        second,
        opening_ms,
        on_disk(&root) as f64 / 1e6,
        peak
    );
}

fn on_disk(folder: &Utf8Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => on_disk(Utf8Path::from_path(&path).unwrap()),
            path => std::fs::metadata(path).unwrap().len(),
        })
        .sum()
}

fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e3
}
