//! The folder of a run: `run.json` and `events.log`. Knows nothing of what runs do.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::{StoreError, at, blob};
use crate::record::{Event, RunRecord};

/// A run being written.
pub struct RunFolder {
    root: Utf8PathBuf,
    log: Mutex<Log>,
}

struct Log {
    file: BufWriter<File>,
    written: Instant,
}

/// Longest time that the end of a sample stays in this process while others follow.
const FLUSH_EVERY: Duration = Duration::from_millis(50);

impl RunFolder {
    pub(super) fn create(root: &Utf8Path) -> Result<RunFolder, StoreError> {
        fs::create_dir_all(root).map_err(at("create", root))?;
        let path = root.join("events.log");
        let log =
            File::options().create(true).append(true).open(&path).map_err(at("create", &path))?;
        let log = Log { file: BufWriter::new(log), written: Instant::now() };
        Ok(RunFolder { root: root.to_owned(), log: Mutex::new(log) })
    }

    /// Adds an event to the log: one line, whole or torn at the end of the file. Samples that end in the same
    /// moment are written together.
    pub fn log(&self, event: &Event) -> Result<(), StoreError> {
        let mut line = serde_json::to_vec(event).expect("BUG: an event is plain data");
        line.push(b'\n');
        let mut log = self.log.lock().expect("BUG: the log lock is poisoned");
        let mut written = log.file.write_all(&line);
        let is_one_of_many = matches!(event, Event::SampleFinished { .. });
        if written.is_ok() && (!is_one_of_many || log.written.elapsed() >= FLUSH_EVERY) {
            written = log.file.flush();
            log.written = Instant::now();
        }
        written.map_err(at("write", &self.root))
    }

    /// Keeps the record of the finished run.
    pub fn finish(&self, record: &RunRecord) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(record).expect("BUG: a record is plain data");
        blob::replace(&self.root.join("run.json"), &text)
    }
}
