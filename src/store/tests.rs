//! The store as its users see it, and what damage does to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::digest::Recipe;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Utf8Path::from_path(dir.path()).unwrap()).unwrap();
    (dir, store)
}

fn reopen(dir: &tempfile::TempDir) -> Store {
    Store::open(Utf8Path::from_path(dir.path()).unwrap()).unwrap()
}

fn record(name: &str, value: &str) -> Record {
    Record {
        recipe: Recipe::new("request", 1).field("name", name),
        outcome: Outcome::Value([("text".to_owned(), Port::Inline(value.into()))].into()),
        witness: Witness::default(),
    }
}

fn text(record: &Record) -> &str {
    record.inline("text").unwrap().as_str().unwrap()
}

#[test]
fn what_is_put_is_there_after_opening_again() {
    let (dir, store) = store();
    let key = record("a", "1").recipe.key();
    store.put(record("a", "1"), false).unwrap();
    assert_eq!(text(&store.get(key).unwrap()), "1");
    drop(store);
    assert_eq!(text(&reopen(&dir).get(key).unwrap()), "1");
}

#[tokio::test]
async fn who_has_published_is_seen_by_others_at_once() {
    let (dir, store) = store();
    let names: Vec<String> = (0..20).map(|i| format!("r{i}")).collect();
    let publish = |name: &String| {
        let (dir, store, record) = (&dir, &store, record(name, "1"));
        async move {
            let key = record.recipe.key();
            store.publish(key, record, false).await.unwrap();
            reopen(dir).get(key).is_some()
        }
    };
    let seen = futures_util::future::join_all(names.iter().map(publish)).await;
    assert_eq!(seen, [true; 20]);
}

#[tokio::test]
async fn what_takes_the_place_of_another_does_so_at_once() {
    let (dir, store) = store();
    store.put(record("a", "old"), false).unwrap();
    drop(store);
    let store = reopen(&dir);
    store.pack().unwrap();
    let key = record("a", "").recipe.key();
    assert_eq!(text(&store.get(key).unwrap()), "old");
    store.publish_derived(key, record("a", "new"), true).await.unwrap();
    assert_eq!(text(&store.get(key).unwrap()), "new");
}

#[test]
fn lines_are_those_of_a_journal_only_where_all_are_known() {
    let (_dir, store) = store();
    store.put(record("a", "1"), false).unwrap();
    store.put(record("b", "1"), false).unwrap();
    let name = store.own_journal().as_ref().unwrap().name.clone();
    let known = |name: &str| store.index.read().unwrap().lines_of(name).map(|lines| lines.len());
    assert_eq!((known(&name), known("another.log")), (Some(2), None));
    let path = folders(store.root()).journals.join(&name);
    let mut file = std::fs::File::options().append(true).open(path).unwrap();
    io::Write::write_all(&mut file, b"a line that this process knows nothing of\n").unwrap();
    assert_eq!(known(&name), None);
}

#[test]
fn lines_that_another_journal_supersedes_are_still_those_of_their_own() {
    let (dir, store) = store();
    store.put(record("a", "1"), false).unwrap();
    store.put(record("b", "1"), false).unwrap();
    let name = store.own_journal().as_ref().unwrap().name.clone();
    let other = reopen(&dir);
    other.put(record("a", "2"), true).unwrap();
    let another = other.own_journal().as_ref().unwrap().name.clone();
    let known = |store: &Store, name: &str| store.index.read().unwrap().lines_of(name);
    assert_eq!(known(&store, &name).map(|lines| lines.len()), Some(2));
    store.look_again();
    // It holds the place of one of them no more, and has to be read.
    assert_eq!(known(&store, &name), None);
    assert_eq!(known(&other, &another).map(|lines| lines.len()), Some(1));
    assert_eq!(text(&store.get(record("a", "").recipe.key()).unwrap()), "2");
}

#[test]
fn the_first_published_wins_even_between_processes() {
    let (dir, store) = store();
    let other = reopen(&dir);
    store.put(record("a", "first"), false).unwrap();
    let kept = other.put(record("a", "second"), false).unwrap();
    assert_eq!(text(&kept), "first");
}

#[test]
fn a_superseding_record_replaces_the_first_also_later() {
    let (dir, store) = store();
    store.put(record("a", "old"), false).unwrap();
    store.put(record("a", "new"), true).unwrap();
    let key = record("a", "").recipe.key();
    assert_eq!(text(&store.get(key).unwrap()), "new");
    drop(store);
    assert_eq!(text(&reopen(&dir).get(key).unwrap()), "new");
}

#[test]
fn a_superseding_record_counts_for_more_than_one_that_was_packed_before() {
    let (dir, store) = store();
    store.put(record("a", "old"), false).unwrap();
    drop(store);
    let store = reopen(&dir);
    store.pack().unwrap();
    store.put(record("a", "new"), true).unwrap();
    let key = record("a", "").recipe.key();
    assert_eq!(text(&store.get(key).unwrap()), "new");
    drop(store);
    assert_eq!(text(&reopen(&dir).get(key).unwrap()), "new");
    let store = reopen(&dir);
    store.pack().unwrap();
    assert_eq!(text(&store.get(key).unwrap()), "new", "after both are packed");
}

#[test]
fn a_long_record_goes_to_the_blobs() {
    let (dir, store) = store();
    let long = "x".repeat(2 * INLINE_MAX);
    let key = store.put(record("a", &long), false).unwrap().recipe.key();
    drop(store);
    assert_eq!(text(&reopen(&dir).get(key).unwrap()), long);
    std::fs::remove_dir_all(dir.path().join("cas")).unwrap();
    assert!(reopen(&dir).get(key).is_none(), "a missing blob is a miss");
}

/// Every file of a store, by path.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn read_files(root: &Path, folder: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => read_files(root, &path, files),
            path => {
                let name = path.strip_prefix(root).unwrap().to_owned();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
}

fn write_files(files: &Files) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

const NAMES: [&str; 7] = ["a", "b", "long", "d", "e", "f", "g"];

fn value(name: &str) -> String {
    if name == "long" { "x".repeat(INLINE_MAX) } else { name.repeat(3) }
}

/// Ends the journal of a store, and gives its path.
fn end_journal(store: &Store) -> Utf8PathBuf {
    let journal = store.journal.lock().unwrap().take().unwrap();
    folders(&store.root).journals.join(&journal.name)
}

/// A store with a pack, a journal that has ended, their indexes, another journal and a blob.
fn small() -> Files {
    let (dir, store) = store();
    for (i, name) in NAMES.iter().enumerate() {
        if i == 4 {
            drop(store.journal.lock().unwrap().take());
            store.pack().unwrap();
        }
        if i == 6 {
            let path = end_journal(&store);
            seal::index(&path, &std::fs::File::open(&path).unwrap()).unwrap();
        }
        store.put(record(name, &value(name)), false).unwrap();
        if *name == "b" {
            store.put(record(name, "superseded"), true).unwrap();
            store.put(record(name, &value(name)), true).unwrap();
        }
    }
    drop(store);
    let mut files = Files::new();
    read_files(dir.path(), dir.path(), &mut files);
    for folder in ["journal", "packs", "cas"] {
        assert!(files.keys().any(|name| name.starts_with(folder)), "{folder}");
    }
    let indexes = files.keys().filter(|name| name.extension().is_some_and(|e| e == "idx"));
    assert_eq!(indexes.count(), 2);
    files
}

/// Which names a store has, after a check that it serves nothing wrong.
fn served(store: &Store) -> Vec<&'static str> {
    let found = NAMES.iter().filter(|name| {
        let found = store.get(record(name, "").recipe.key());
        found.is_none_or(|found| {
            // An older line of `b` may be all that is left of it.
            let is_older = **name == "b" && ["superseded", "bbb"].contains(&text(&found));
            assert!(is_older || text(&found) == value(name), "{name} is {}", text(&found));
            true
        }) && store.get(record(name, "").recipe.key()).is_some()
    });
    found.copied().collect()
}

/// The names whose lines in `bytes` reach beyond `from` and begin before `to`.
fn lines_at(bytes: &[u8], from: usize, to: usize) -> Vec<&'static str> {
    let mut names = Vec::new();
    line::each(bytes, |at, line, head| {
        if at < to && at + line.len() > from {
            names.extend(NAMES.iter().filter(|name| record(name, "").recipe.key() == head.key));
        }
    });
    names
}

#[test]
fn damage_at_any_offset_costs_what_it_hit_and_nothing_else() {
    let files = small();
    let (mut truncated, mut flipped, mut healed) = (0, 0, 0);
    for (name, bytes) in &files {
        let folder = name.iter().next().unwrap().to_str().unwrap();
        if !["journal", "packs", "cas"].contains(&folder) {
            continue;
        }
        let is_lines = matches!(name.extension().and_then(|e| e.to_str()), Some("log" | "pack"));
        let may_lose = |from, to| match (is_lines, folder) {
            (true, _) => lines_at(bytes, from, to),
            (false, "cas") => vec!["long"],
            _ => Vec::new(),
        };
        for at in 0..bytes.len() {
            let mut flip = bytes.clone();
            flip[at] ^= 1 << (at % 8);
            let cut = bytes[..at].to_vec();
            for (damaged, lost) in [(flip, may_lose(at, at + 1)), (cut, may_lose(at, usize::MAX))] {
                let mut files = files.clone();
                *(if damaged.len() == bytes.len() { &mut flipped } else { &mut truncated }) += 1;
                files.insert(name.clone(), damaged);
                let dir = write_files(&files);
                let store = reopen(&dir);
                let found = served(&store);
                for name in NAMES.iter().filter(|name| !found.contains(name)) {
                    assert!(lost.contains(name), "lost {name} by damage at {at} of {folder}");
                }
                if at % 64 == 0 {
                    NAMES.iter().for_each(|name| {
                        store.put(record(name, &value(name)), false).unwrap();
                    });
                    assert_eq!(served(&store), NAMES);
                    drop(store);
                    assert_eq!(served(&reopen(&dir)), NAMES, "after opening again");
                    healed += 1;
                }
            }
        }
    }
    // `println!` is kept from those who run tests that pass.
    let told =
        format!("{truncated} truncations, {flipped} flipped bytes, {healed} stores healed\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes());
    assert!(truncated > 2000 && flipped == truncated);
}

#[test]
fn a_long_journal_is_searched_through_its_index() {
    let (dir, store) = store();
    let long = "x".repeat(3000);
    let fill = |store: &Store, from: u32| {
        for i in from..from + 2000 {
            store.put(record(&i.to_string(), &format!("{i}{long}")), false).unwrap();
        }
    };
    let get = |store: &Store, name: &str| {
        store.get(record(name, "").recipe.key()).map(|found| text(&found)[..4].to_owned())
    };
    let count = |ending: &str, folder: &str| {
        let names = std::fs::read_dir(dir.path().join(folder)).unwrap().flatten();
        names.filter(|entry| entry.path().extension().is_some_and(|e| e == ending)).count()
    };
    fill(&store, 1000);
    store.put(record("1234", "old!"), true).unwrap();
    drop(store);
    assert_eq!(
        (count("log", "journal"), count("idx", "journal"), count("pack", "packs")),
        (1, 1, 0)
    );
    let store = reopen(&dir);
    assert_eq!(store.index.read().unwrap().lines_in_memory(), 0);
    let check = |store: &Store, last: &str| {
        for name in 1000..3000 {
            let name = name.to_string();
            let expected = if name == "1234" { last } else { &name };
            assert_eq!(get(store, &name).as_deref(), Some(expected));
        }
        // So often that it reads the tags.
        assert!((0..1000).all(|name| get(store, &name.to_string()).is_none()));
        assert_eq!(store.keys().unwrap().len(), 2000);
    };
    check(&store, "old!");
    // What was there before the index stays the first, and what supersedes it counts.
    store.put(record("1235", "late"), false).unwrap();
    store.put(record("1234", "new!"), true).unwrap();
    check(&store, "new!");
    // A process that reads meanwhile goes over to the index.
    let other = reopen(&dir);
    drop(store);
    check(&other, "new!");
    let path = dir.path().join("journal");
    let logs = || std::fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path());
    for log in logs().filter(|path| path.extension().is_some_and(|e| e == "log")) {
        let log = Utf8PathBuf::from_path_buf(log).unwrap();
        seal::index(&log, &std::fs::File::open(&log).unwrap()).unwrap();
    }
    other.look_again();
    assert_eq!(other.index.read().unwrap().lines_in_memory(), 0);
    check(&other, "new!");
    let verify = |repair| other.verify(repair, &mut |_| {}).unwrap().damage;
    assert_eq!(verify(false), []);
    let index = logs().find(|path| path.extension().is_some_and(|e| e == "idx")).unwrap();
    let whole = std::fs::read(&index).unwrap();
    for at in [30, 60, whole.len() - 9] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&index, &bytes).unwrap();
        let damage = verify(false);
        assert!(damage.len() == 1 && index.ends_with(&damage[0].file), "{at}: {damage:?}");
    }
    assert!(verify(true).iter().all(|damage| damage.repaired));
    assert_eq!(verify(false), []);
    check(&other, "new!");
    other.pack().unwrap();
    assert_eq!(
        (count("log", "journal"), count("idx", "journal"), count("pack", "packs")),
        (0, 0, 1)
    );
    check(&other, "new!");
    check(&reopen(&dir), "new!");
}

#[test]
fn a_damaged_record_is_replaced_for_good() {
    let (dir, store) = store();
    let long = "x".repeat(2 * INLINE_MAX);
    let keys = [("a", "1"), ("b", &long)]
        .map(|(name, value)| store.put(record(name, value), false).unwrap().recipe.key());
    drop(store);
    let journal = std::fs::read_dir(dir.path().join("journal")).unwrap().next().unwrap().unwrap();
    let mut bytes = std::fs::read(journal.path()).unwrap();
    bytes[100] ^= 1;
    std::fs::write(journal.path(), &bytes).unwrap();
    std::fs::remove_dir_all(dir.path().join("cas")).unwrap();
    let store = reopen(&dir);
    assert!(keys.iter().all(|key| store.get(*key).is_none()));
    store.put(record("a", "1"), false).unwrap();
    store.put(record("b", &long), false).unwrap();
    assert!(keys.iter().all(|key| store.get(*key).is_some()));
    drop(store);
    let store = reopen(&dir);
    assert!(keys.iter().all(|key| store.get(*key).is_some()), "still there after opening again");
}

#[test]
fn a_corrupt_blob_is_a_miss() {
    let (_dir, store) = store();
    let digest = store.put_blob(b"hello").unwrap();
    std::fs::write(store.blob_path(digest), b"hellO").unwrap();
    assert_eq!(store.blob(digest), None);
    assert_eq!(store.put_blob(b"hello").unwrap(), digest);
    assert_eq!(store.blob(digest).as_deref(), Some(&b"hello"[..]), "put heals it");
}

#[test]
fn a_newer_store_is_refused() {
    let (dir, store) = store();
    drop(store);
    std::fs::write(dir.path().join("store.toml"), "format = 3\n").unwrap();
    let error = Store::open(Utf8Path::from_path(dir.path()).unwrap()).err().unwrap();
    assert!(error.to_string().ends_with("has format 3, and this program knows format 2"));
}
