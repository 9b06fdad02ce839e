//! Append-only logs of lines, one writer each: `journal/<ulid>-<host>-<pid>.log`. Knows nothing of what the
//! lines say.
//!
//! Lines wait until somebody needs one of them to be kept: then all are handed to the operating system at once, and a
//! killed process loses nothing it was told is kept. What a loss of power may take is synced to disk every 200 ms,
//! beside the work, with what waits until then. The writer holds a lock on its log while it lives: a log whose lock
//! can be had belongs to nobody, and may be sealed into a pack. Nobody ever waits for that lock.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};

use super::blob::TEMPORARY;
use super::{StoreError, at};

/// Longest time that a record waits for the start of its sync.
const GROUP_TIME: Duration = Duration::from_millis(200);
/// Bytes of lines that wait.
const PENDING_MAX: usize = 64 * 1024;
/// On a file system without locks, a log that nobody wrote to for this long belongs to nobody.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// How the names of logs end.
pub(super) const ENDING: &str = ".log";
/// And of the indexes of those that have ended.
pub(super) const INDEX_ENDING: &str = ".idx";

/// This process's log.
pub(super) struct Journal {
    pub name: String,
    path: Utf8PathBuf,
    /// With the lines that wait.
    pub length: u64,
    /// Bytes in the earlier logs of this process.
    base: u64,
    synced: Arc<Synced>,
    syncing: Option<JoinHandle<()>>,
}

/// What the writer and the thread that syncs share.
struct Synced {
    file: File,
    handed: Arc<AtomicU64>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Lines that wait.
    pending: Vec<u8>,
    /// Bytes in the file.
    written: u64,
    /// Whether there is anything to sync.
    is_dirty: bool,
    is_closed: bool,
    /// Of what was done beside the work: told at the next chance.
    error: Option<io::Error>,
}

impl State {
    /// Hands what waits to the operating system.
    fn write(&mut self, synced: &Synced) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut file = &synced.file;
        if let Err(error) = file.write_all(&self.pending) {
            // Part of a line may be there (disk full): take it back. What waits goes on waiting, at the same offsets, and
            // whoever needs it to be written gets an error of his own.
            drop(file.set_len(self.written));
            return Err(error);
        }
        self.written += self.pending.len() as u64;
        synced.handed.fetch_add(self.pending.len() as u64, Ordering::Release);
        self.pending.clear();
        Ok(())
    }
}

impl Journal {
    /// Begins a log. `handed` counts the bytes of all logs of this process that the operating system has.
    pub(super) fn create(
        folder: &Utf8Path,
        handed: &Arc<AtomicU64>,
    ) -> Result<Journal, StoreError> {
        fs::create_dir_all(folder).map_err(at("create", folder))?;
        let name = format!("{}{ENDING}", process_name());
        let path = folder.join(&name);
        let file = create_locked(&path)?;
        let (base, handed) = (handed.load(Ordering::Acquire), handed.clone());
        let (state, changed) = Default::default();
        let synced = Arc::new(Synced { file, handed, state, changed });
        let beside = synced.clone();
        let syncing = Some(std::thread::spawn(move || beside.keep_syncing()));
        Ok(Journal { name, path, length: 0, base, synced, syncing })
    }

    /// Adds a line, which waits; gives its offset, and how many bytes are handed on once it is.
    pub(super) fn append(&mut self, line: &[u8]) -> Result<(u64, u64), StoreError> {
        let mut state = self.synced.state();
        let offset = state.written + state.pending.len() as u64;
        state.pending.extend_from_slice(line);
        if state.pending.len() >= PENDING_MAX {
            state.write(&self.synced).map_err(at("write", &self.path))?;
        }
        self.length = offset + line.len() as u64;
        if !std::mem::replace(&mut state.is_dirty, true) {
            self.synced.changed.notify_one();
        }
        // Of what was before; this line is kept all the same.
        if let Some(error) = state.error.take() {
            return Err(at("sync", &self.path)(error));
        }
        Ok((offset, self.base + self.length))
    }

    /// Hands what waits to the operating system.
    pub(super) fn write(&mut self) -> Result<(), StoreError> {
        self.synced.state().write(&self.synced).map_err(at("write", &self.path))
    }

    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        let (written, is_dirty, error) = {
            let mut state = self.synced.state();
            let written = state.write(&self.synced);
            (written, std::mem::take(&mut state.is_dirty), state.error.take())
        };
        let synced = match written.err().or(error) {
            Some(error) => Err(error),
            None if is_dirty => self.synced.file.sync_data(),
            None => Ok(()),
        };
        if synced.is_err() {
            // It is tried again, whether or not more comes.
            self.synced.state().is_dirty = true;
            self.synced.changed.notify_one();
        }
        synced.map_err(at("sync", &self.path))
    }
}

impl Synced {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("BUG: the sync lock is poisoned")
    }

    /// Syncs what was written, again and again, until the journal is closed.
    fn keep_syncing(&self) {
        const LOCK: &str = "BUG: the sync lock is poisoned";
        let mut state = self.state();
        loop {
            state = self
                .changed
                .wait_while(state, |state| !state.is_dirty && !state.is_closed)
                .expect(LOCK);
            // More comes together meanwhile.
            let more = |state: &mut State| !state.is_closed;
            state = self.changed.wait_timeout_while(state, GROUP_TIME, more).expect(LOCK).0;
            if state.is_closed {
                return;
            }
            if std::mem::take(&mut state.is_dirty) {
                // What cannot be written goes on waiting, and whoever needs it to be written is told.
                state.is_dirty = state.write(self).is_err();
                drop(state);
                let error = self.file.sync_data().err();
                state = self.state();
                state.error = state.error.take().or(error);
            }
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        {
            let mut state = self.synced.state();
            let _ = state.write(&self.synced);
            state.is_closed = true;
        }
        self.synced.changed.notify_one();
        // The lock of the file goes with the last who has it open.
        if let Some(syncing) = self.syncing.take() {
            let _ = syncing.join();
        }
    }
}

/// `<ulid>-<host>-<pid>`: names sort by age, and say where to look for their process.
pub(super) fn process_name() -> String {
    let host: String = gethostname::gethostname()
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(40)
        .collect();
    format!("{}-{host}-{}", ulid::Ulid::new(), std::process::id())
}

/// Makes a file that belongs to this process: it has its name only once it is locked, so that nobody takes it
/// for one whose process is gone.
pub(super) fn create_locked(path: &Utf8Path) -> Result<File, StoreError> {
    let folder = path.parent().unwrap_or(Utf8Path::new("."));
    let hidden = folder.join(format!("{TEMPORARY}{}", path.file_name().unwrap_or_default()));
    let open = File::options().create_new(true).read(true).append(true).open(&hidden);
    let file = open.map_err(at("create", &hidden))?;
    // Where there are no locks, age decides.
    let _ = file.try_lock();
    fs::rename(&hidden, path).map_err(at("create", path))?;
    Ok(file)
}

/// Opens a file to take its lock: on NFS that needs a descriptor that may write.
pub(super) fn open_to_lock(path: &Utf8Path) -> io::Result<File> {
    match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => File::open(path),
        opened => opened,
    }
}

/// Opens a file whose process is gone, and holds its lock; `None` while the process lives, and of a file that
/// somebody else has removed.
pub(super) fn claim(path: &Utf8Path) -> Option<File> {
    let file = open_to_lock(path).ok()?;
    match file.try_lock() {
        // Between opening and locking, whoever had the lock may have done with it.
        Ok(()) => (file.metadata().ok()?.nlink() > 0).then_some(file),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(_)) => {
            let changed = file.metadata().ok()?.modified().ok()?;
            let age = SystemTime::now().duration_since(changed).ok()?;
            (age > ABANDONED).then_some(file)
        }
    }
}

/// Names in a folder with an ending, sorted; none of a folder that is not there.
pub(super) fn names(folder: &Utf8Path, ending: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    match fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name.ends_with(ending) && !name.starts_with('.') {
                    names.push(name);
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_written_waits_and_everyone_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let handed = Arc::new(AtomicU64::new(100));
        let opened = |file| Synced {
            file,
            handed: handed.clone(),
            state: Mutex::default(),
            changed: Condvar::default(),
        };
        let written = opened(File::create(&path).unwrap());
        let refused = opened(File::open(&path).unwrap());
        let mut state = State { pending: b"a line\n".to_vec(), ..State::default() };
        for _ in 0..2 {
            state.write(&refused).unwrap_err();
            assert_eq!((state.written, handed.load(Ordering::Acquire)), (0, 100));
        }
        state.write(&written).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"a line\n");
        assert_eq!((state.written, handed.load(Ordering::Acquire)), (7, 107));
    }

    #[test]
    fn what_could_not_be_synced_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let mut journal = Journal::create(folder, &Arc::default()).unwrap();
        // Nobody syncs beside the test.
        journal.synced.state().is_closed = true;
        journal.synced.changed.notify_one();
        journal.syncing.take().unwrap().join().unwrap();
        journal.append(b"a line\n").unwrap();
        journal.synced.state().error = Some(io::Error::other("of before"));
        journal.sync().unwrap_err();
        assert!(journal.synced.state().is_dirty, "the line was never synced");
        journal.sync().unwrap();
        assert!(!journal.synced.state().is_dirty);
    }
}
