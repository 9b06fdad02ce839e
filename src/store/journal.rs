//! Append-only logs of records, one writer each, and the index over all of them. Knows nothing of what
//! the lines say beyond their key.
//!
//! A line is `<crc32c> <key> {json}\n`, with `!` after the sum when it supersedes earlier ones. It is
//! handed to the operating system before `append` returns, so a killed process loses nothing it was told
//! is kept; it is synced to disk in groups of 256 records or 200 ms, whichever comes first.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::{StoreError, at};
use crate::digest::Key;

/// Records in one sync at most.
const GROUP_RECORDS: u32 = 256;
/// Longest time a record waits for its sync while others come.
const GROUP_TIME: Duration = Duration::from_millis(200);
/// How often a writer looks for what other processes have published.
const REFRESH_TIME: Duration = Duration::from_millis(100);
/// `crc32c` in hex, the mark, and the space behind it.
const PREFIX: usize = 8 + 1;

/// Where a line is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    file: usize,
    offset: u64,
    length: u32,
}

/// This process's log.
pub(super) struct Journal {
    path: Utf8PathBuf,
    file: File,
    length: u64,
    unsynced: u32,
    synced_at: Instant,
}

impl Journal {
    pub(super) fn create(folder: &Utf8Path) -> Result<Journal, StoreError> {
        fs::create_dir_all(folder).map_err(at("create", folder))?;
        let host: String = gethostname::gethostname()
            .to_string_lossy()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .take(40)
            .collect();
        // The time comes first so that names sort by age.
        let name = format!("{}-{host}-{}.log", ulid::Ulid::new(), std::process::id());
        let path = folder.join(name);
        let file = File::options()
            .create_new(true)
            .append(true)
            .open(&path)
            .map_err(at("create", &path))?;
        Ok(Journal { path, file, length: 0, unsynced: 0, synced_at: Instant::now() })
    }

    pub(super) fn append(
        &mut self,
        key: Key,
        supersede: bool,
        json: &[u8],
    ) -> Result<(Utf8PathBuf, u64, u32), StoreError> {
        let mut line = Vec::with_capacity(PREFIX + 2 + 64 + json.len() + 1);
        let mark = if supersede { "!" } else { " " };
        line.extend_from_slice(&[b'0'; 8]);
        write!(line, "{mark}{key} ").expect("BUG: writing to memory");
        line.extend_from_slice(json);
        let sum = format!("{:08x}", crc32c::crc32c(&line[8..]));
        line[..8].copy_from_slice(sum.as_bytes());
        let length = u32::try_from(line.len()).expect("BUG: a record of 4 GB");
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            // Part of the line may be there (disk full): take it back, so that the next one is whole.
            let _ = self.file.set_len(self.length);
            return Err(at("write", &self.path)(error));
        }
        let offset = self.length;
        self.length += line.len() as u64;
        self.unsynced += 1;
        if self.unsynced >= GROUP_RECORDS || self.synced_at.elapsed() >= GROUP_TIME {
            self.sync()?;
        }
        Ok((self.path.clone(), offset, length))
    }

    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        if self.unsynced > 0 {
            self.file.sync_data().map_err(at("sync", &self.path))?;
            self.unsynced = 0;
        }
        self.synced_at = Instant::now();
        Ok(())
    }
}

/// A log as far as it was read.
struct Log {
    path: Utf8PathBuf,
    file: File,
    read_to: u64,
}

/// Where the line of each key is, over all logs.
pub(super) struct Index {
    folder: Utf8PathBuf,
    logs: Vec<Log>,
    places: HashMap<Key, Place>,
    scanned_at: Option<Instant>,
}

impl Index {
    pub(super) fn open(folder: &Utf8Path) -> Result<Index, StoreError> {
        let mut index = Index {
            folder: folder.to_owned(),
            logs: Vec::new(),
            places: HashMap::new(),
            scanned_at: None,
        };
        index.scan().map_err(at("read", folder))?;
        Ok(index)
    }

    /// Whether there is a line of this key, whole or not.
    pub(super) fn knows(&self, key: Key) -> bool {
        self.places.contains_key(&key)
    }

    /// Whether another process has written since the last look.
    /// Looked at now and then only: a duplicate published in between is harmless.
    pub(super) fn is_stale(&self) -> bool {
        if self.scanned_at.is_some_and(|at| at.elapsed() < REFRESH_TIME) {
            return false;
        }
        let grown = |log: &Log| log.file.metadata().is_ok_and(|meta| meta.len() > log.read_to);
        self.logs.iter().any(grown)
            || self.log_names().is_ok_and(|names| names.len() > self.logs.len())
    }

    /// Reads what is new; what cannot be read now stays a miss.
    pub(super) fn refresh(&mut self) {
        let _ = self.scan();
        self.scanned_at = Some(Instant::now());
    }

    fn log_names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        match fs::read_dir(&self.folder) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry?.file_name().to_string_lossy().into_owned();
                    if name.ends_with(".log") {
                        names.push(name);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Oldest first, so that the first published wins.
        names.sort();
        Ok(names)
    }

    fn scan(&mut self) -> io::Result<()> {
        for name in self.log_names()? {
            let path = self.folder.join(name);
            let number = match self.logs.iter().position(|log| log.path == path) {
                Some(number) => number,
                None => {
                    let file = File::open(&path)?;
                    self.logs.push(Log { path, file, read_to: 0 });
                    self.logs.len() - 1
                }
            };
            self.scan_log(number)?;
        }
        Ok(())
    }

    fn scan_log(&mut self, number: usize) -> io::Result<()> {
        let log = &self.logs[number];
        let start = log.read_to;
        let length = log.file.metadata()?.len();
        if length <= start {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(length - start).unwrap_or(usize::MAX)];
        log.file.read_exact_at(&mut bytes, start)?;
        let mut offset = 0;
        // A last line without its end is torn, or still being written: it is read when it is whole.
        while let Some(end) = memchr::memchr(b'\n', &bytes[offset..]) {
            let line = &bytes[offset..offset + end];
            if let Some((key, supersede)) = parse_head(line) {
                let place = Place {
                    file: number,
                    offset: start + offset as u64,
                    length: line.len() as u32,
                };
                self.place(key, place, supersede);
            }
            offset += end + 1;
        }
        self.logs[number].read_to = start + offset as u64;
        Ok(())
    }

    fn place(&mut self, key: Key, place: Place, supersede: bool) {
        if supersede || !self.places.contains_key(&key) {
            self.places.insert(key, place);
        }
    }

    /// Adds a line that this process has just written.
    pub(super) fn insert(
        &mut self,
        key: Key,
        (path, offset, length): (Utf8PathBuf, u64, u32),
        supersede: bool,
    ) {
        let number = match self.logs.iter().position(|log| log.path == path) {
            Some(number) => number,
            None => {
                // A log that cannot be opened is one that the next process reads.
                let Ok(file) = File::open(&path) else { return };
                self.logs.push(Log { path, file, read_to: 0 });
                self.logs.len() - 1
            }
        };
        let log = &mut self.logs[number];
        log.read_to = log.read_to.max(offset + u64::from(length) + 1);
        self.place(key, Place { file: number, offset, length }, supersede);
    }

    /// The JSON of a key's line, if the line is whole.
    pub(super) fn read(&self, key: Key) -> Option<Vec<u8>> {
        let place = self.places.get(&key)?;
        let mut line = vec![0; place.length as usize];
        self.logs[place.file].file.read_exact_at(&mut line, place.offset).ok()?;
        let sum = u32::from_str_radix(std::str::from_utf8(&line[..8]).ok()?, 16).ok()?;
        if sum != crc32c::crc32c(&line[8..]) || parse_head(&line)?.0 != key {
            return None;
        }
        Some(line.split_off(PREFIX + 64 + 1))
    }
}

/// The key of a line and whether it supersedes, without checking its sum: that is done when it is read.
fn parse_head(line: &[u8]) -> Option<(Key, bool)> {
    let supersede = match line.get(8)? {
        b'!' => true,
        b' ' => false,
        _ => return None,
    };
    let key = std::str::from_utf8(line.get(PREFIX..PREFIX + 64)?).ok()?.parse().ok()?;
    (line.get(PREFIX + 64) == Some(&b' ')).then_some((key, supersede))
}
