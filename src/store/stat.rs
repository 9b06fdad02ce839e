//! Digests of files by their stat data, so that what has not changed is not read again. Knows nothing of
//! what the files are.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};

use super::{StoreError, blob};
use crate::digest::Digest;

/// A file changed this recently may change again within the same tick of its file system's clock, so its
/// digest is not kept (git calls such entries racy).
const RACY: Duration = Duration::from_secs(2);

/// What tells whether a file is the same as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    by_path: HashMap<String, (Seen, Digest)>,
    changed: bool,
}

pub(super) struct StatCache {
    path: Utf8PathBuf,
    entries: Mutex<Entries>,
}

impl StatCache {
    /// Reads the cache; one that cannot be read, or is damaged, is an empty one: a digest that is not right would
    /// end up in keys.
    pub(super) fn open(path: Utf8PathBuf) -> StatCache {
        let by_path = std::fs::read(&path).ok().and_then(|bytes| parse(&bytes)).unwrap_or_default();
        StatCache { path, entries: Mutex::new(Entries { by_path, changed: false }) }
    }

    pub(super) fn lookup(&self, path: &Utf8Path) -> Option<Digest> {
        let path = absolute(path)?;
        let (seen, digest) = *self.lock().by_path.get(path.as_str())?;
        (observe(&path).ok()? == seen).then_some(digest)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().expect("BUG: the stat lock is poisoned")
    }

    /// Keeps a digest of a file as it was `seen` before it was read.
    pub(super) fn remember(&self, path: &Utf8Path, seen: Seen, digest: Digest) {
        let Some(path) = absolute(path) else { return };
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as i128);
        let racy = now - seen.modified_ns.max(seen.changed_ns) < RACY.as_nanos() as i128;
        // Changed while it was read: the digest may be of neither version. A line has one path.
        let moved = observe(&path).ok() != Some(seen) || path.as_str().contains('\n');
        let mut entries = self.lock();
        entries.changed = true;
        if racy || moved {
            entries.by_path.remove(path.as_str());
        } else {
            entries.by_path.insert(path.into_owned().into_string(), (seen, digest));
        }
    }

    pub(super) fn save(&self) -> Result<(), StoreError> {
        let mut entries = self.lock();
        if entries.changed {
            blob::replace(&self.path, &text(&entries.by_path))?;
            entries.changed = false;
        }
        Ok(())
    }
}

/// `<crc32c of the rest>\n`, then a line for each file: its digest, its stat data, its path.
fn text(by_path: &HashMap<String, (Seen, Digest)>) -> Vec<u8> {
    let sorted: BTreeMap<_, _> = by_path.iter().collect();
    let mut lines = String::new();
    for (path, (seen, digest)) in sorted {
        let Seen { dev, ino, size, modified_ns, changed_ns } = seen;
        let _ = writeln!(lines, "{digest} {dev} {ino} {size} {modified_ns} {changed_ns} {path}");
    }
    format!("{:08x}\n{lines}", crc32c::crc32c(lines.as_bytes())).into_bytes()
}

fn parse(bytes: &[u8]) -> Option<HashMap<String, (Seen, Digest)>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (sum, lines) = text.split_once('\n')?;
    if u32::from_str_radix(sum, 16).ok()? != crc32c::crc32c(lines.as_bytes()) {
        return None;
    }
    let mut by_path = HashMap::with_capacity(lines.len() / 150);
    for line in lines.lines() {
        let mut parts = line.splitn(7, ' ');
        let digest = Digest::from_hex(parts.next()?.as_bytes())?;
        let seen = Seen {
            dev: parts.next()?.parse().ok()?,
            ino: parts.next()?.parse().ok()?,
            size: parts.next()?.parse().ok()?,
            modified_ns: parts.next()?.parse().ok()?,
            changed_ns: parts.next()?.parse().ok()?,
        };
        by_path.insert(parts.next()?.to_owned(), (seen, digest));
    }
    Some(by_path)
}

/// As it is where it is absolute: the paths of a project are.
fn absolute(path: &Utf8Path) -> Option<Cow<'_, Utf8Path>> {
    if path.is_absolute() {
        return Some(Cow::Borrowed(path));
    }
    let full = Utf8PathBuf::from_path_buf(std::path::absolute(path).ok()?).ok()?;
    Some(Cow::Owned(full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_is_an_empty_one() {
        let seen = Seen { dev: 1, ino: 2, size: 3, modified_ns: -4, changed_ns: 5 };
        let table: HashMap<_, _> = [("/a b/c".to_owned(), (seen, Digest::of(b"x")))].into();
        let written = text(&table);
        assert_eq!(parse(&written), Some(table));
        for at in 0..written.len() {
            let mut damaged = written.clone();
            damaged[at] ^= 1;
            assert_eq!(parse(&damaged), None, "damage at {at}");
            assert!(parse(&written[..at]).is_none_or(|table| table.is_empty()), "cut at {at}");
        }
    }
}
