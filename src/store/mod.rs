//! Key to record, digest to bytes, on disk. Knows nothing of what records mean.
//!
//! Only three kinds of file exist: immutable ones named by their hash (`cas/`), append-only ones with a
//! single writer (`journal/`), and small pointers replaced by rename (`store.toml`, `stat`, `last/`). So
//! no lock is on the hot path, several processes share a store, and whatever is missing or corrupt is a
//! miss: its producer runs again.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, RwLock};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{Digest, Key, Recipe};
use crate::record::PhasesMs;
use crate::sample::Usage;

mod blob;
mod journal;
mod runs;
mod stat;

pub use blob::BlobWriter;
pub use runs::RunFolder;

use journal::{Index, Journal};

/// Version of the layout. An older program must not write into a newer store.
const FORMAT: u32 = 1;

/// Records longer than this go to the blobs, and the journal keeps their digest.
const INLINE_MAX: usize = 4096;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: Utf8PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The store was written by another version.
    #[error("the store `{path}` has format {found}, and this program knows format {FORMAT}")]
    Format {
        /// Its folder.
        path: Utf8PathBuf,
        /// Its format.
        found: String,
    },
}

/// Attaches a path to an I/O error.
pub(crate) fn at(action: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

/// What a recipe gave. Passing failures (429, time-outs, crashes) are never recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A value by port.
    Value(BTreeMap<String, Port>),
    /// A refusal that asking again would not change.
    Rejected {
        /// Short name, such as `overflow`.
        code: String,
        /// The provider's words.
        detail: String,
    },
}

/// A part of a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// Small: the value itself.
    Inline(Value),
    /// Large: where its bytes are.
    Blob(Digest),
}

/// How a record came to be. Stored, never hashed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Witness {
    /// ULID of the run.
    pub run: String,
    /// Version of this program.
    pub tool: String,
    /// Milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Where the time went.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub phases_ms: PhasesMs,
    /// Tokens.
    #[serde(default)]
    pub usage: Usage,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
    /// Whatever else was observed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub observed: Option<Value>,
}

/// A remembered result, with the recipe that made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What it depends on: explains a miss, and proves the key.
    pub recipe: Recipe,
    /// What came of it.
    pub outcome: Outcome,
    /// How.
    pub witness: Witness,
}

impl Record {
    /// A port's inline value.
    pub fn inline(&self, port: &str) -> Option<&Value> {
        match &self.outcome {
            Outcome::Value(ports) => match ports.get(port)? {
                Port::Inline(value) => Some(value),
                Port::Blob(_) => None,
            },
            Outcome::Rejected { .. } => None,
        }
    }

    /// A port's blob.
    pub fn blob(&self, port: &str) -> Option<Digest> {
        match &self.outcome {
            Outcome::Value(ports) => match ports.get(port)? {
                Port::Blob(digest) => Some(*digest),
                Port::Inline(_) => None,
            },
            Outcome::Rejected { .. } => None,
        }
    }
}

/// A journal line: the record itself, or where it is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Record(Box<Record>),
    Blob(Digest),
}

/// An open store. Cheap to share behind an `Arc`.
pub struct Store {
    root: Utf8PathBuf,
    blobs: blob::Blobs,
    index: RwLock<Index>,
    /// Created at the first write, so that a run that only reads leaves no file.
    journal: Mutex<Option<Journal>>,
    stat: stat::StatCache,
}

impl Store {
    /// Opens the store in `root`, making it if need be.
    pub fn open(root: &Utf8Path) -> Result<Store, StoreError> {
        let marker = root.join("store.toml");
        match std::fs::read_to_string(&marker) {
            Ok(text) => check_format(root, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(root, &marker)?,
            Err(error) => return Err(at("read", &marker)(error)),
        }
        let blobs = blob::Blobs::new(root.join("cas"));
        blobs.sweep();
        Ok(Store {
            root: root.to_owned(),
            blobs,
            index: RwLock::new(Index::open(&root.join("journal"))?),
            journal: Mutex::new(None),
            stat: stat::StatCache::open(root.join("stat")),
        })
    }

    /// Its folder.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// The record of a key. A line that is torn or corrupt, or a blob that is gone, is a miss.
    pub fn get(&self, key: Key) -> Option<Record> {
        let line = self.index.read().expect("BUG: the index lock is poisoned").read(key)?;
        let record = match serde_json::from_slice(&line).ok()? {
            Line::Record(record) => *record,
            Line::Blob(digest) => serde_json::from_slice(&self.blob(digest)?).ok()?,
        };
        Some(record)
    }

    /// Remembers a record, and gives back the one that counts: the first published of a key wins, so
    /// that all who ask see the same. With `supersede` this one replaces any other.
    ///
    /// When this returns, the record survives a kill of the process; a loss of power may take the last
    /// 200 ms.
    pub fn put(&self, record: Record, supersede: bool) -> Result<Record, StoreError> {
        let key = record.recipe.key();
        let mut supersede = supersede;
        if !supersede {
            self.refresh();
            if let Some(first) = self.get(key) {
                return Ok(first);
            }
            // Known and yet not there: what is published is damaged, and this one takes its place.
            supersede = self.index.read().expect("BUG: the index lock is poisoned").knows(key);
        }
        let json = |line: &Line| serde_json::to_vec(line).expect("BUG: a record is plain data");
        let line = Line::Record(Box::new(record));
        let mut bytes = json(&line);
        let Line::Record(record) = line else { unreachable!("BUG: it was made a record above") };
        if bytes.len() > INLINE_MAX {
            let text = serde_json::to_vec(&record).expect("BUG: a record is plain data");
            bytes = json(&Line::Blob(self.put_blob(&text)?));
        }
        let mut journal = self.journal.lock().expect("BUG: the journal lock is poisoned");
        let journal = match &mut *journal {
            Some(journal) => journal,
            empty => empty.insert(Journal::create(&self.root.join("journal"))?),
        };
        let place = journal.append(key, supersede, &bytes)?;
        self.index.write().expect("BUG: the index lock is poisoned").insert(key, place, supersede);
        Ok(*record)
    }

    /// Reads what other processes have published since.
    fn refresh(&self) {
        let stale = self.index.read().expect("BUG: the index lock is poisoned").is_stale();
        if stale {
            self.index.write().expect("BUG: the index lock is poisoned").refresh();
        }
    }

    /// Makes everything written so far survive a loss of power, and keeps the stat cache.
    pub fn flush(&self) -> Result<(), StoreError> {
        if let Some(journal) = &mut *self.journal.lock().expect("BUG: the journal lock is poisoned")
        {
            journal.sync()?;
        }
        self.stat.save()
    }

    /// Keeps bytes, and names them.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        self.blobs.put(bytes)
    }

    /// Starts a blob that is written in pieces.
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        self.blobs.writer()
    }

    /// The bytes of a blob; `None` where it is missing or corrupt.
    pub fn blob(&self, digest: Digest) -> Option<Vec<u8>> {
        self.blobs.get(digest)
    }

    /// Whether a blob is there, by name and not by content.
    pub fn has_blob(&self, digest: Digest) -> bool {
        self.blobs.has(digest)
    }

    /// Where the bytes of a blob are.
    pub fn blob_path(&self, digest: Digest) -> Utf8PathBuf {
        self.blobs.path(digest)
    }

    /// Reads a file of the project into the store: what is used is what was hashed. A file that has not
    /// changed since it was last seen is not read.
    pub fn import(&self, path: &Utf8Path) -> Result<Digest, StoreError> {
        let known = self.stat.lookup(path).filter(|digest| self.has_blob(*digest));
        if let Some(digest) = known {
            return Ok(digest);
        }
        let seen = stat::observe(path).map_err(at("read", path))?;
        let bytes = std::fs::read(path).map_err(at("read", path))?;
        let digest = self.put_blob(&bytes)?;
        self.stat.remember(path, seen, digest);
        Ok(digest)
    }

    /// Reads a file of the project into the store, and gives its bytes. Damage in the store is healed from
    /// the file.
    pub fn import_bytes(&self, path: &Utf8Path) -> Result<(Digest, Vec<u8>), StoreError> {
        let digest = self.import(path)?;
        if let Some(bytes) = self.blob(digest) {
            return Ok((digest, bytes));
        }
        let bytes = std::fs::read(path).map_err(at("read", path))?;
        Ok((self.put_blob(&bytes)?, bytes))
    }

    /// Like [`Store::import`], for content that will be read as a stream: its blob is known to be whole.
    pub fn import_whole(&self, path: &Utf8Path) -> Result<Digest, StoreError> {
        let digest = self.import(path)?;
        match blob::digest_of_file(&self.blob_path(digest)) {
            Ok(found) if found == digest => Ok(digest),
            _ => Ok(self.import_bytes(path)?.0),
        }
    }

    /// The digest of a file too large to keep, such as weights. Hashed once while it does not change.
    pub fn digest_of_file(&self, path: &Utf8Path) -> Result<Digest, StoreError> {
        if let Some(digest) = self.stat.lookup(path) {
            return Ok(digest);
        }
        let seen = stat::observe(path).map_err(at("read", path))?;
        let digest = blob::digest_of_file(path)?;
        self.stat.remember(path, seen, digest);
        Ok(digest)
    }

    /// The folder of a new run.
    pub fn create_run(&self, id: &str) -> Result<RunFolder, StoreError> {
        RunFolder::create(&self.root.join("runs").join(id))
    }

    /// A small pointer, such as the last run of a pipeline.
    pub fn pointer(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join("last").join(name)).ok()
    }

    /// Replaces a pointer by rename.
    pub fn set_pointer(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let folder = self.root.join("last");
        std::fs::create_dir_all(&folder).map_err(at("create", &folder))?;
        blob::replace(&folder.join(name), text.as_bytes())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Everything acknowledged is already with the operating system; this is for loss of power.
        let _ = self.flush();
    }
}

fn create(root: &Utf8Path, marker: &Utf8Path) -> Result<(), StoreError> {
    for folder in ["cas", "journal", "runs"] {
        let folder = root.join(folder);
        std::fs::create_dir_all(&folder).map_err(at("create", &folder))?;
    }
    let tag = root.join("CACHEDIR.TAG");
    let signature =
        "Signature: 8a477f597d28d172789f06886806bc55\n# Results of forge; made again at need.\n";
    std::fs::write(&tag, signature).map_err(at("write", &tag))?;
    blob::replace(marker, format!("format = {FORMAT}\nhash = \"sha256\"\n").as_bytes())
}

fn check_format(root: &Utf8Path, text: &str) -> Result<(), StoreError> {
    let wanted = format!("format = {FORMAT}");
    match text.lines().find(|line| line.starts_with("format")) {
        Some(line) if line.trim() == wanted => Ok(()),
        other => Err(StoreError::Format {
            path: root.to_owned(),
            found: other
                .and_then(|line| line.split('=').nth(1))
                .map_or_else(|| "unknown".to_owned(), |found| found.trim().to_owned()),
        }),
    }
}

/// Writes a file of the work tree by rename, so that a reader sees the old or the new one, whole.
pub fn replace_file(path: &Utf8Path, bytes: &[u8]) -> Result<(), StoreError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(at("create", folder))?;
    }
    blob::replace(path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_long_record_goes_to_the_blobs() {
        let (dir, store) = store();
        let long = "x".repeat(2 * INLINE_MAX);
        let key = store.put(record("a", &long), false).unwrap().recipe.key();
        drop(store);
        assert_eq!(text(&reopen(&dir).get(key).unwrap()), long);
        std::fs::remove_dir_all(dir.path().join("cas")).unwrap();
        assert!(reopen(&dir).get(key).is_none(), "a missing blob is a miss");
    }

    #[test]
    fn a_torn_or_flipped_line_is_a_miss_and_its_neighbours_stay() {
        let (dir, store) = store();
        for name in ["a", "b", "c"] {
            store.put(record(name, name), false).unwrap();
        }
        drop(store);
        let journal =
            std::fs::read_dir(dir.path().join("journal")).unwrap().next().unwrap().unwrap();
        let whole = std::fs::read(journal.path()).unwrap();
        let keys: Vec<_> = ["a", "b", "c"].iter().map(|n| record(n, n).recipe.key()).collect();
        for cut in 0..whole.len() {
            std::fs::write(journal.path(), &whole[..cut]).unwrap();
            let store = reopen(&dir);
            let complete = whole[..cut].iter().filter(|c| **c == b'\n').count();
            let found = keys.iter().filter(|key| store.get(**key).is_some()).count();
            assert_eq!(found, complete, "cut at {cut}");
        }
        for flip in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[flip] ^= 0x20;
            std::fs::write(journal.path(), &bytes).unwrap();
            let store = reopen(&dir);
            for (name, key) in ["a", "b", "c"].iter().zip(&keys) {
                if let Some(found) = store.get(*key) {
                    assert_eq!(text(&found), *name, "flip at {flip} served something corrupt");
                }
            }
            assert!(keys.iter().filter(|key| store.get(**key).is_some()).count() >= 1);
        }
    }

    #[test]
    fn a_damaged_record_is_replaced_for_good() {
        let (dir, store) = store();
        let long = "x".repeat(2 * INLINE_MAX);
        let keys = [("a", "1"), ("b", &long)]
            .map(|(name, value)| store.put(record(name, value), false).unwrap().recipe.key());
        drop(store);
        let journal =
            std::fs::read_dir(dir.path().join("journal")).unwrap().next().unwrap().unwrap();
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
        assert!(
            keys.iter().all(|key| store.get(*key).is_some()),
            "still there after opening again"
        );
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
        std::fs::write(dir.path().join("store.toml"), "format = 2\n").unwrap();
        let error = Store::open(Utf8Path::from_path(dir.path()).unwrap()).err().unwrap();
        assert!(error.to_string().ends_with("has format 2, and this program knows format 1"));
    }
}
