//! What must not be collected: pins, results of runs, and what living processes are using. Knows nothing of
//! how collecting works.
//!
//! Roots are kept as text, and whatever in it looks like a digest is one: a lock file of any version, the
//! record of a run, the table of a workflow. What is a root by accident is kept a little longer.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::sync::{Mutex, RwLock};

use camino::{Utf8Path, Utf8PathBuf};

use super::{StoreError, at, blob, journal};
use crate::digest::Key;

const HOLDS: &str = "tmproots";
const PINS: &str = "roots";
const HOLD_ENDING: &str = ".hold";

/// Every run of 64 hex digits in a text.
pub(super) fn digests_in(text: &[u8]) -> impl Iterator<Item = [u8; 32]> {
    text.split(|c| !matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        .filter(|word| word.len() == 64)
        .filter_map(|word| Some(*std::str::from_utf8(word).ok()?.parse::<Key>().ok()?.bytes()))
}

/// What this process is using, for the garbage collectors of others: a file with a lock that ends with the
/// process.
pub(super) struct Hold {
    folder: Utf8PathBuf,
    file: Mutex<Option<(Utf8PathBuf, File)>>,
    runs: RwLock<HashSet<String>>,
}

impl Hold {
    pub(super) fn new(root: &Utf8Path) -> Hold {
        Hold { folder: root.join(HOLDS), file: Mutex::default(), runs: RwLock::default() }
    }

    /// Begins: everything that this run makes is held, and every key it asks for. A process may begin several runs,
    /// one after another or beside each other: what it holds for one it holds to its end.
    pub(super) fn begin(&self, run: &str) -> Result<(), StoreError> {
        let mut held = self.file.lock().expect("BUG: the hold lock is poisoned");
        let (path, mut file) = match held.take() {
            Some(begun) => begun,
            None => {
                fs::create_dir_all(&self.folder).map_err(at("create", &self.folder))?;
                self.sweep();
                let path = self.folder.join(format!("{}{HOLD_ENDING}", journal::process_name()));
                let file = journal::create_locked(&path)?;
                (path, file)
            }
        };
        let written = writeln!(file, "run {run}").map_err(at("write", &path));
        *held = Some((path, file));
        drop(held);
        written?;
        self.runs.write().expect("BUG: the hold lock is poisoned").insert(run.to_owned());
        Ok(())
    }

    /// Holds a key before it is looked for: what is found then stays.
    pub(super) fn add(&self, key: Key) {
        self.write(&format!("{key}\n"));
    }

    /// Holds everything that another run has made; `false` where it is held already, or nothing is.
    pub(super) fn add_run(&self, run: &str) -> bool {
        const LOCK: &str = "BUG: the hold lock is poisoned";
        if self.runs.read().expect(LOCK).contains(run) {
            return false;
        }
        self.runs.write().expect(LOCK).insert(run.to_owned()) && self.write(&format!("run {run}\n"))
    }

    fn write(&self, line: &str) -> bool {
        let mut file = self.file.lock().expect("BUG: the hold lock is poisoned");
        let Some((_, file)) = &mut *file else { return false };
        // On a full disk a collector may take what this run has found: it is worked out again.
        file.write_all(line.as_bytes()).is_ok()
    }

    /// Removes what killed processes left.
    fn sweep(&self) {
        for name in journal::names(&self.folder, HOLD_ENDING).unwrap_or_default() {
            let path = self.folder.join(name);
            if journal::claim(&path).is_some() {
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Ok(mut file) = self.file.lock()
            && let Some((path, _)) = file.take()
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// What living processes hold.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// ULIDs of their runs.
    pub runs: Vec<String>,
    /// What they asked for.
    pub digests: Vec<[u8; 32]>,
    /// When the first of them began, in milliseconds since 1970.
    pub since_unix_ms: Option<u64>,
}

impl Held {
    pub(super) fn read(root: &Utf8Path) -> Result<Held, StoreError> {
        let folder = root.join(HOLDS);
        let mut held = Held::default();
        for name in journal::names(&folder, HOLD_ENDING).map_err(at("read", &folder))? {
            let path = folder.join(&name);
            if journal::claim(&path).is_some() {
                continue;
            }
            // What cannot be read may name what must stay.
            let Some(text) = read_if_there(&path)? else { continue };
            held.digests.extend(digests_in(&text));
            held.runs.extend(runs_in(&text));
            let ulid = name.split('-').next().and_then(|ulid| ulid::Ulid::from_string(ulid).ok());
            let began = ulid.map_or(0, |ulid| ulid.timestamp_ms());
            held.since_unix_ms = Some(held.since_unix_ms.unwrap_or(u64::MAX).min(began));
        }
        Ok(held)
    }
}

/// The runs that a hold or a pin names: lines `run <ulid>`.
pub(super) fn runs_in(text: &[u8]) -> Vec<String> {
    let lines = String::from_utf8_lossy(text).into_owned();
    lines.lines().filter_map(|line| Some(line.strip_prefix("run ")?.to_owned())).collect()
}

/// The content of a file; `None` where there is none.
pub(super) fn read_if_there(path: &Utf8Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("read", path)(error)),
    }
}

/// Keeps a text of digests under a name until it is taken away.
pub(super) fn pin(root: &Utf8Path, name: &str, text: &str) -> Result<(), StoreError> {
    let folder = root.join(PINS);
    fs::create_dir_all(&folder).map_err(at("create", &folder))?;
    blob::replace(&folder.join(name), text.as_bytes())
}

/// Takes a pin away; `false` where there is none.
pub(super) fn unpin(root: &Utf8Path, name: &str) -> Result<bool, StoreError> {
    let path = root.join(PINS).join(name);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(at("remove", &path)(error)),
    }
}

/// Names of all pins with their texts.
pub(super) fn pins(root: &Utf8Path) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let folder = root.join(PINS);
    let mut pins = Vec::new();
    for name in journal::names(&folder, "").map_err(at("read", &folder))? {
        if let Some(text) = read_if_there(&folder.join(&name))? {
            pins.push((name, text));
        }
    }
    Ok(pins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn digests_are_found_wherever_they_stand() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let text = format!("key = \"{a}\" # {b}\n{}f{a} deadbeef", "0".repeat(3));
        let found: Vec<_> = digests_in(text.as_bytes()).collect();
        assert_eq!(found, [*a.bytes(), *b.bytes()], "the last is part of a longer word");
    }

    #[test]
    fn a_run_that_begins_takes_nothing_from_those_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let (hold, key) = (Hold::new(root), Key::from_bytes([7; 32]));
        hold.begin("first").unwrap();
        hold.add(key);
        hold.begin("second").unwrap();
        let held = Held::read(root).unwrap();
        assert_eq!(held.runs, ["first", "second"]);
        assert_eq!(held.digests, [*key.bytes()]);
        drop(hold);
        assert!(Held::read(root).unwrap().runs.is_empty());
    }
}
