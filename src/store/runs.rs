//! The folders of runs: `events.log`, `run.json`, tags, logs of servers. Knows nothing of what runs do.
//!
//! The process of a run holds a lock on its `events.log` while it lives; the lock ends with the process, so that
//! a run without an end whose lock can be had was interrupted. `run.json` is the fold of the log, written once the
//! run is over: of a finished run nobody needs to read the log. A tag is an empty file, so that two processes that
//! tag the same run do not undo each other's work.

use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, ErrorKind, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::roots::runs_in;
use super::{Store, StoreError, at, blob, journal};
use crate::record::{Event, RunRecord};

const LOG: &str = "events.log";
const RECORD: &str = "run.json";
const TAG_ENDING: &str = ".tag";
/// Bytes of events that are written together.
const LOG_BUFFER: usize = 64 * 1024;
/// On a file system without locks, a run whose log was not written to for this long is over.
const SILENT: Duration = Duration::from_secs(24 * 3600);

/// A run being written.
pub struct RunFolder {
    root: Utf8PathBuf,
    log: Mutex<Log>,
}

struct Log {
    file: BufWriter<File>,
    written: Instant,
}

/// Longest time that the end of a sample stays in this process while others follow. Where none does, somebody has to
/// [flush](RunFolder::flush) as often.
pub const FLUSH_EVERY: Duration = Duration::from_millis(50);

impl RunFolder {
    fn create(root: &Utf8Path) -> Result<RunFolder, StoreError> {
        fs::create_dir_all(root).map_err(at("create", root))?;
        let log = journal::create_locked(&root.join(LOG))?;
        let log = Log { file: BufWriter::with_capacity(LOG_BUFFER, log), written: Instant::now() };
        Ok(RunFolder { root: root.to_owned(), log: Mutex::new(log) })
    }

    /// Adds an event to the log: one line, whole or torn at the end of the file. Samples that end in the same
    /// moment are written together.
    pub fn log(&self, event: &Event, unix_ms: u64) -> Result<(), StoreError> {
        let mut line = serde_json::to_vec(event).expect("BUG: an event is plain data");
        // Behind the last field: the time is no part of what happened.
        line.pop();
        line.extend_from_slice(format!(",\"unix_ms\":{unix_ms}}}\n").as_bytes());
        let mut log = self.log.lock().expect("BUG: the log lock is poisoned");
        let mut written = log.file.write_all(&line);
        let is_one_of_many = matches!(event, Event::SampleFinished { .. });
        if written.is_ok() && (!is_one_of_many || log.written.elapsed() >= FLUSH_EVERY) {
            written = log.file.flush();
            log.written = Instant::now();
        }
        written.map_err(at("write", &self.root))
    }

    /// Writes down what ended a moment ago, so that whoever follows the run sees it, too, where the next sample takes its
    /// time.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut log = self.log.lock().expect("BUG: the log lock is poisoned");
        if log.file.buffer().is_empty() {
            return Ok(());
        }
        log.written = Instant::now();
        log.file.flush().map_err(at("write", &self.root))
    }

    /// Keeps the record of the finished run.
    pub fn finish(&self, record: &RunRecord) -> Result<(), StoreError> {
        write_record(&self.root, record)
    }
}

fn write_record(folder: &Utf8Path, record: &RunRecord) -> Result<(), StoreError> {
    let text = serde_json::to_vec_pretty(record).expect("BUG: a record is plain data");
    blob::replace(&folder.join(RECORD), &text)
}

/// What a run has left, to be read.
pub struct RunFiles {
    folder: Utf8PathBuf,
}

impl RunFiles {
    /// The text of `run.json`; `None` while the run is not over, and of one that was killed.
    pub fn record(&self) -> Result<Option<Vec<u8>>, StoreError> {
        super::roots::read_if_there(&self.folder.join(RECORD))
    }

    /// Keeps the record of a run whose process is gone.
    pub fn keep_record(&self, record: &RunRecord) -> Result<(), StoreError> {
        write_record(&self.folder, record)
    }

    /// Where its events are: one JSON object a line, the last one perhaps torn.
    pub fn log(&self) -> Utf8PathBuf {
        self.folder.join(LOG)
    }

    /// Whether the process that runs it lives, here or on another machine that shares the file system.
    pub fn is_living(&self) -> bool {
        let Ok(file) = File::open(self.log()) else { return false };
        // Shared: two who look at the same time do not take each other for the run.
        match file.try_lock_shared() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(_)) => {
                let changed = file.metadata().and_then(|meta| meta.modified());
                let age = changed.ok().and_then(|changed| changed.elapsed().ok());
                age.is_some_and(|age| age < SILENT)
            }
        }
    }

    /// Its tags, sorted.
    pub fn tags(&self) -> Vec<String> {
        let names = journal::names(&self.folder, TAG_ENDING).unwrap_or_default();
        names.iter().filter_map(|name| Some(name.strip_suffix(TAG_ENDING)?.to_owned())).collect()
    }

    /// Gives it a tag. The name becomes the name of a file: whoever calls this has checked it.
    pub fn tag(&self, name: &str) -> Result<(), StoreError> {
        let path = self.folder.join(format!("{name}{TAG_ENDING}"));
        File::create(&path).map(drop).map_err(at("write", &path))
    }

    /// Takes a tag away; `false` where it has none of that name.
    pub fn untag(&self, name: &str) -> Result<bool, StoreError> {
        let path = self.folder.join(format!("{name}{TAG_ENDING}"));
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(at("remove", &path)(error)),
        }
    }

    /// Logs of the servers that it started, by the name of their engine.
    pub fn server_logs(&self) -> Vec<(String, Utf8PathBuf)> {
        let names = journal::names(&self.folder, ".log").unwrap_or_default();
        let names = names.into_iter().filter(|name| name != LOG);
        let log = |name: String| {
            let path = self.folder.join(&name);
            (name.trim_end_matches(".log").to_owned(), path)
        };
        names.map(log).collect()
    }
}

impl Store {
    /// The folder of a new run.
    pub fn create_run(&self, id: &str) -> Result<RunFolder, StoreError> {
        RunFolder::create(&self.run_folder(id))
    }

    fn run_folder(&self, id: &str) -> Utf8PathBuf {
        self.root.join("runs").join(id)
    }

    /// What a run has left; its folder may be gone.
    pub fn run_files(&self, id: &str) -> RunFiles {
        RunFiles { folder: self.run_folder(id) }
    }

    /// ULIDs of all runs, oldest first.
    pub fn runs(&self) -> Vec<String> {
        let mut runs = journal::names(&self.root.join("runs"), "").unwrap_or_default();
        runs.retain(|name| ulid::Ulid::from_string(name).is_ok());
        runs
    }

    /// What a run names, as text, or `None` of one that is not there: its record, or while it has none its log.
    pub fn run_texts(&self, run: &str) -> Option<Vec<u8>> {
        let files = self.run_files(run);
        let text = match files.record().ok().flatten() {
            Some(record) => record,
            None => fs::read(files.log()).ok()?,
        };
        // The first line names the run itself: whatever it has made is meant, also where it never ended.
        Some([format!("run {run}\n").into_bytes(), text].concat())
    }

    /// Keeps a run and everything that it names from being collected.
    pub fn pin_run(&self, run: &str) -> Result<(), StoreError> {
        self.pin(run, &format!("run {run}\n"))
    }

    /// Takes all pins of a run away, under whatever name; `false` where there is none.
    pub fn unpin_run(&self, run: &str) -> Result<bool, StoreError> {
        let mut removed = false;
        for (name, text) in self.pins()? {
            if runs_in(&text).iter().any(|pinned| pinned == run) {
                removed |= self.unpin(&name)?;
            }
        }
        Ok(removed)
    }

    /// Runs that are pinned.
    pub fn pinned_runs(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.pins()?.iter().flat_map(|(_, text)| runs_in(text)).collect())
    }
}
