//! Digests of files by their stat data, so that what has not changed is not read again. Knows nothing of
//! what the files are.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::{StoreError, blob};
use crate::digest::Digest;

/// A file changed this recently may change again within the same tick of its file system's clock, so its
/// digest is not kept (git calls such entries racy).
const RACY: Duration = Duration::from_secs(2);

/// What tells whether a file is the same as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    dev: u64,
    ino: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

/// The stat data of a file now.
pub(super) fn observe(path: &Utf8Path) -> io::Result<Seen> {
    let meta = std::fs::metadata(path)?;
    let ns = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Ok(Seen {
        dev: meta.dev(),
        ino: meta.ino(),
        size: meta.size(),
        modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
        changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
    })
}

#[derive(Default)]
struct Entries {
    by_path: BTreeMap<Utf8PathBuf, (Seen, Digest)>,
    changed: bool,
}

pub(super) struct StatCache {
    path: Utf8PathBuf,
    entries: Mutex<Entries>,
}

impl StatCache {
    /// Reads the cache; one that cannot be read is an empty one.
    pub(super) fn open(path: Utf8PathBuf) -> StatCache {
        let by_path = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        StatCache { path, entries: Mutex::new(Entries { by_path, changed: false }) }
    }

    pub(super) fn lookup(&self, path: &Utf8Path) -> Option<Digest> {
        let path = absolute(path)?;
        let entries = self.entries.lock().expect("BUG: the stat lock is poisoned");
        let (seen, digest) = entries.by_path.get(&path)?;
        (observe(&path).ok()? == *seen).then_some(*digest)
    }

    /// Keeps a digest of a file as it was `seen` before it was read.
    pub(super) fn remember(&self, path: &Utf8Path, seen: Seen, digest: Digest) {
        let Some(path) = absolute(path) else { return };
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as i128);
        let racy = now - seen.modified_ns.max(seen.changed_ns) < RACY.as_nanos() as i128;
        // Changed while it was read: the digest may be of neither version.
        let moved = observe(&path).ok() != Some(seen);
        let mut entries = self.entries.lock().expect("BUG: the stat lock is poisoned");
        entries.changed = true;
        if racy || moved {
            entries.by_path.remove(&path);
        } else {
            entries.by_path.insert(path, (seen, digest));
        }
    }

    pub(super) fn save(&self) -> Result<(), StoreError> {
        let mut entries = self.entries.lock().expect("BUG: the stat lock is poisoned");
        if entries.changed {
            let text = serde_json::to_vec(&entries.by_path).expect("BUG: stat data is plain data");
            blob::replace(&self.path, &text)?;
            entries.changed = false;
        }
        Ok(())
    }
}

fn absolute(path: &Utf8Path) -> Option<Utf8PathBuf> {
    Utf8PathBuf::from_path_buf(std::path::absolute(path).ok()?).ok()
}
