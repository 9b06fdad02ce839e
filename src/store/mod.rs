//! Key to record, digest to bytes, on disk. Knows nothing of what records mean.
//!
//! Only three kinds of file exist: immutable ones named by their hash (`cas/`, `packs/`), append-only ones with
//! a single writer (`journal/`), and small pointers replaced by rename (`store.toml`, `stat`, `last/`). So
//! nobody waits for a lock, several processes share a store, and whatever is missing or corrupt is a miss: its
//! producer runs again.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use camino::{Utf8Path, Utf8PathBuf};

use crate::digest::{Digest, Key};

mod blob;
mod gc;
mod index;
mod journal;
mod line;
mod lines;
mod pack;
mod record;
mod remote;
mod roots;
mod runs;
mod seal;
mod share;
mod stat;
mod transfer;
mod usage;
mod verify;

pub use blob::BlobWriter;
pub use gc::{GcOptions, GcReport, RootTexts};
pub use record::{Outcome, Port, Record, Witness, json_bytes};
pub use remote::{Access, Patience, Remote, RemoteError};
pub use runs::{FLUSH_EVERY, RunFiles, RunFolder};
pub use share::{Shared, Tier};
pub use transfer::Transferred;
pub use usage::{Amount, StoreStat, StoreUsage};
pub use verify::{Damage, Verified};

use index::Index;
use journal::Journal;
use line::Head;
use record::Kept;
use seal::Folders;

const INDEX: &str = "BUG: the index lock is poisoned";

/// Version of the layout. An older program must not write into a newer store.
const FORMAT: u32 = 2;

/// Records longer than this go to the blobs, and the journal keeps their digest.
const INLINE_MAX: usize = 4096;

/// Files longer than this go into the store in pieces.
const WHOLE_MAX: u64 = 1 << 20;

/// How often it is looked whether the journal is free: a few microseconds.
const SPINS: u32 = 300;

/// A process starts another journal when its own has this many bytes: what it knows of its own journal is in
/// memory.
const JOURNAL_BYTES: u64 = 64 << 20;

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
    /// Two collectors would take what the other has counted on.
    #[error(
        "another `forge store` command is collecting or repairing in this store; try again later"
    )]
    Busy,
}

/// Attaches a path to an I/O error.
pub(crate) fn at(action: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

/// An open store. Cheap to share behind an `Arc`.
pub struct Store {
    root: Utf8PathBuf,
    blobs: blob::Blobs,
    index: RwLock<Index>,
    /// Created at the first write, so that a run that only reads leaves no file.
    journal: Mutex<Option<Journal>>,
    /// Bytes of the journals of this process that the operating system has.
    handed: Arc<AtomicU64>,
    stat: stat::StatCache,
    hold: roots::Hold,
    sharing: Mutex<share::Sharing>,
    /// Blobs whose content was found good.
    whole: Mutex<HashSet<Digest>>,
    /// Seals and merges beside the work.
    tidying: Mutex<Option<std::thread::JoinHandle<()>>>,
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
        let folders = folders(root);
        let index = Index::open(&folders.journals, &folders.packs);
        Ok(Store {
            root: root.to_owned(),
            blobs,
            index: RwLock::new(index.map_err(at("read", root))?),
            journal: Mutex::new(None),
            handed: Arc::default(),
            stat: stat::StatCache::open(root.join("stat")),
            hold: roots::Hold::new(root),
            sharing: Mutex::default(),
            whole: Mutex::default(),
            tidying: Mutex::new(None),
        })
    }

    /// Its folder.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// The record of a key. A line that is torn or corrupt, or a blob that is gone, is a miss.
    pub fn get(&self, key: Key) -> Option<Record> {
        Some(self.look(key)?.record)
    }

    fn look(&self, key: Key) -> Option<Scanned> {
        let index = self.index.read().expect(INDEX);
        let found = index.read(key);
        let waits = found.is_none() && index.is_placed(key);
        drop(index);
        let (line, json) = match waits {
            // It may be a line that waits.
            true => {
                self.write_waiting().ok()?;
                self.index.read().expect(INDEX).read(key)
            }
            false => found,
        }?;
        let bytes = line.len() as u64 + 1;
        match serde_json::from_slice(&line[json..]).ok()? {
            Kept::Record(record) => Some(Scanned { key, bytes, kept_in: None, record: *record }),
            Kept::Blob(digest) => {
                let record = serde_json::from_slice(&self.blob(digest)?).ok()?;
                Some(Scanned { key, bytes, kept_in: Some(digest), record })
            }
        }
    }

    /// Remembers a record, and gives back the one that counts: the first published of a key wins, so
    /// that all who ask see the same. With `supersede` this one replaces any other.
    ///
    /// When this returns, the record survives a kill of the process; a loss of power may take the last
    /// 200 ms.
    pub fn put(&self, record: Record, supersede: bool) -> Result<Record, StoreError> {
        let (record, place) = self.add(record.recipe.key(), record, supersede)?;
        self.write_until(place)?;
        Ok(record)
    }

    /// Adds a record under the key of its recipe. Gives the one that counts, and what [`Store::write_until`] has to know
    /// for it to survive a kill.
    fn add(&self, key: Key, record: Record, supersede: bool) -> Result<(Record, u64), StoreError> {
        debug_assert_eq!(key, record.recipe.key(), "BUG: a record under the key of another");
        self.refresh();
        let known = self.index.read().expect(INDEX).generation(key);
        if known.is_some()
            && !supersede
            && let Some(first) = self.get(key)
        {
            return Ok((first, 0));
        }
        // Known and yet not there: what is published is damaged, and this one takes its place.
        let generation = known.map_or(0, |generation| generation.saturating_add(1));
        let (mut line, mut head) =
            line::encode(key, generation, |out| record::write_kept(&record, out));
        if line.len() - head.json > INLINE_MAX {
            let mut whole = Vec::new();
            record.write(&mut whole);
            let blob = self.put_blob(&whole)?;
            (line, head) = line::encode(key, generation, |out| record::write_kept_in(blob, out));
        }
        Ok((record, self.append(&line, head)?))
    }

    fn append(&self, line: &[u8], head: Head) -> Result<u64, StoreError> {
        let mut slot = self.own_journal();
        let journal = match &mut *slot {
            Some(journal) => journal,
            empty => {
                // What killed processes left is seen to beside the work.
                self.tidy_beside();
                empty.insert(Journal::create(&folders(&self.root).journals, &self.handed)?)
            }
        };
        let (offset, place) = journal.append(line)?;
        let length = (line.len() - 1) as u32;
        self.index.write().expect(INDEX).insert(&journal.name, head, offset, length);
        // While it waits, what it takes the place of would be found.
        if head.generation > 0 {
            journal.write()?;
        }
        if journal.length >= JOURNAL_BYTES {
            journal.sync()?;
            let name = journal.name.clone();
            *slot = None;
            let lines = self.index.read().expect(INDEX).lines_of(&name);
            self.tidy_after(move |folders| folders.index_own(&name, lines.as_deref()));
        }
        Ok(place)
    }

    /// The journal of this process. Who has it writes a line, which takes less time than to sleep and to be woken.
    fn own_journal(&self) -> MutexGuard<'_, Option<Journal>> {
        for _ in 0..SPINS {
            if let Ok(journal) = self.journal.try_lock() {
                return journal;
            }
            std::hint::spin_loop();
        }
        self.journal.lock().expect("BUG: the journal lock is poisoned")
    }

    /// Hands lines that wait to the operating system, up to that of this place at least.
    fn write_until(&self, place: u64) -> Result<(), StoreError> {
        match self.handed.load(Ordering::Acquire) >= place {
            true => Ok(()),
            false => self.write_waiting(),
        }
    }

    /// Hands lines that wait to the operating system.
    fn write_waiting(&self) -> Result<(), StoreError> {
        let mut slot = self.own_journal();
        slot.as_mut().map_or(Ok(()), Journal::write)
    }

    /// Seals and merges in a thread of its own, if none is at it.
    fn tidy_beside(&self) {
        self.tidy_after(|_| Ok(()));
    }

    /// The same, with something before it.
    fn tidy_after(&self, first: impl FnOnce(&Folders) -> Result<(), StoreError> + Send + 'static) {
        let mut thread = self.tidying.lock().expect("BUG: the tidying lock is poisoned");
        if thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished) {
            let folders = folders(&self.root);
            // What cannot be tidied now (a full disk) stays as it is, whole.
            let work = move || drop(first(&folders).and_then(|()| folders.tidy(false)));
            *thread = Some(std::thread::spawn(work));
        }
    }

    /// Seals every journal without a writer and merges all packs into one.
    pub fn pack(&self) -> Result<(), StoreError> {
        folders(&self.root).tidy(true)?;
        self.index.write().expect(INDEX).refresh();
        Ok(())
    }

    /// Calls `visit` with every record that counts, in the order of keys.
    fn each(&self, mut visit: impl FnMut(Scanned)) -> Result<(), StoreError> {
        self.refresh();
        for key in self.keys()? {
            if let Some(scanned) = self.look(key) {
                visit(scanned);
            }
        }
        Ok(())
    }

    /// The lock of those that take things away. It ends with the process.
    fn lock(&self) -> Result<std::fs::File, StoreError> {
        let marker = self.root.join("store.toml");
        let lock = journal::open_to_lock(&marker).map_err(at("read", &marker))?;
        match lock.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Busy),
            // Without locks on this file system, nobody else is asked.
            _ => Ok(lock),
        }
    }

    /// Every key there is, sorted.
    fn keys(&self) -> Result<Vec<Key>, StoreError> {
        self.index.read().expect(INDEX).keys().map_err(at("read", &self.root))
    }

    /// Begins to hold what the run makes and asks for, so that no collector takes it away meanwhile.
    pub fn hold_run(&self, run: &str) -> Result<(), StoreError> {
        self.hold.begin(run)
    }

    /// Holds a result before it is looked for.
    pub fn hold(&self, key: Key) {
        self.hold.add(key);
    }

    /// Keeps what `text` names, and all that this needs, from being collected. Text of the same name is
    /// replaced.
    pub fn pin(&self, name: &str, text: &str) -> Result<(), StoreError> {
        roots::pin(&self.root, name, text)
    }

    /// Takes a pin away; `false` where there is none of that name.
    pub fn unpin(&self, name: &str) -> Result<bool, StoreError> {
        roots::unpin(&self.root, name)
    }

    /// Names and texts of all pins.
    pub fn pins(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        roots::pins(&self.root)
    }

    /// Reads what other processes have published since.
    fn refresh(&self) {
        let stale = self.index.read().expect(INDEX).is_stale();
        if stale {
            self.index.write().expect(INDEX).refresh();
        }
    }

    /// Reads what other processes have published until now. A run looks by itself whenever it writes; who only reads, as
    /// a server between runs, has to ask for it.
    pub fn look_again(&self) {
        self.index.write().expect(INDEX).refresh();
    }

    /// Makes everything written so far survive a loss of power, and keeps the stat cache.
    pub fn flush(&self) -> Result<(), StoreError> {
        if let Some(journal) = &mut *self.own_journal() {
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

    /// Writes a blob to a file of the work tree by rename, so that a reader sees the old or the new one, whole; `false`
    /// where the blob is missing or corrupt. However large it is, little of it is in memory.
    pub fn write_blob_to(&self, digest: Digest, path: &Utf8Path) -> Result<bool, StoreError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(at("create", folder))?;
        }
        self.blobs.write_to(digest, path)
    }

    /// Whether a blob is there, by name and not by content.
    pub fn has_blob(&self, digest: Digest) -> bool {
        self.blobs.has(digest)
    }

    /// Whether the content of a blob is what its name says. Read once in a process.
    pub fn is_whole(&self, digest: Digest) -> bool {
        let known = || self.whole.lock().expect("BUG: the blob lock is poisoned");
        if known().contains(&digest) {
            return self.has_blob(digest);
        }
        let is_whole = self.blobs.is_whole(digest);
        if is_whole {
            known().insert(digest);
        }
        is_whole
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
        let mut file = std::fs::File::open(path).map_err(at("read", path))?;
        let digest = match file.metadata().map_err(at("read", path))?.len() {
            0..=WHOLE_MAX => {
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut file, &mut bytes).map_err(at("read", path))?;
                self.put_blob(&bytes)?
            }
            _ => {
                let mut writer = self.blob_writer()?;
                io::copy(&mut file, &mut writer).map_err(at("copy into the store", path))?;
                writer.finish()?
            }
        };
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
        match self.is_whole(digest) {
            true => Ok(digest),
            // The damaged one is gone: this reads the file.
            false => self.import(path),
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
        let journal = self.journal.lock().ok().and_then(|mut journal| journal.take());
        let thread = self.tidying.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        if let Some(journal) = journal {
            let lines = self.index.read().ok().and_then(|index| index.lines_of(&journal.name));
            let name = journal.name.clone();
            drop(journal);
            let folders = folders(&self.root);
            // What is not done now is done by the next who writes.
            let own = folders.index_own(&name, lines.as_deref());
            let _ = own.and_then(|()| folders.tidy(false));
        }
    }
}

/// A record as it lies in the store.
struct Scanned {
    key: Key,
    /// Of its line.
    bytes: u64,
    /// The blob that holds it, where it is too large for a line.
    kept_in: Option<Digest>,
    record: Record,
}

fn folders(root: &Utf8Path) -> Folders {
    Folders { journals: root.join("journal"), packs: root.join("packs") }
}

fn create(root: &Utf8Path, marker: &Utf8Path) -> Result<(), StoreError> {
    for folder in ["cas", "journal", "packs", "runs"] {
        let folder = root.join(folder);
        std::fs::create_dir_all(&folder).map_err(at("create", &folder))?;
    }
    let tag = root.join("CACHEDIR.TAG");
    let signature =
        "Signature: 8a477f597d28d172789f06886806bc55\n# Results of forge; made again at need.\n";
    std::fs::write(&tag, signature).map_err(at("write", &tag))?;
    write_marker(marker)
}

fn write_marker(marker: &Utf8Path) -> Result<(), StoreError> {
    blob::replace(marker, format!("format = {FORMAT}\nhash = \"sha256\"\n").as_bytes())
}

fn check_format(root: &Utf8Path, text: &str) -> Result<(), StoreError> {
    let format = |format: u32| format!("format = {format}");
    match text.lines().find(|line| line.starts_with("format")) {
        Some(line) if line.trim() == format(FORMAT) => Ok(()),
        // Everything of format 1 means the same in format 2, which has packs as well.
        Some(line) if line.trim() == format(1) => write_marker(&root.join("store.toml")),
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
mod tests;
