//! Where the line of each key is, over all journals and packs. Knows nothing of who writes them.
//!
//! Journals are short and read whole into a table; packs, and journals that have ended and have an index, are searched
//! on disk. Whoever seals a journal or merges packs publishes the new file before the old one goes, and the journals
//! are listed before the packs, so that a reader meets every line at least once.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::journal::{self, ENDING, INDEX_ENDING};
use super::line::{self, Head};
use super::pack::{self, Entry, Pack};
use crate::digest::Key;

/// How often a writer looks for what other processes have published.
const REFRESH_TIME: Duration = Duration::from_millis(100);
/// Bytes of a journal read at once.
const CHUNK: usize = 1 << 20;
/// A folder that changes at every reading is read this often.
const READINGS_MAX: u32 = 16;

/// A key is a hash already: its first bytes are as good as any of them.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // The length comes first, then the key.
        if let Ok(first) = bytes[..bytes.len().min(8)].try_into() {
            self.0 = u64::from_le_bytes(first);
        }
    }
}

type Places = HashMap<Key, Place, BuildHasherDefault<KeyHasher>>;

/// Where a line is in a journal.
#[derive(Clone, Copy)]
struct Place {
    log: u32,
    length: u32,
    offset: u64,
    generation: u32,
}

impl Place {
    fn entry(self, key: Key) -> Entry {
        let Place { length, offset, generation, .. } = self;
        Entry { key, offset, length, generation }
    }
}

/// A journal as far as it was read.
struct Log {
    name: String,
    file: File,
    read_to: u64,
    /// Whether a line of it has its key's place in another log.
    is_shadowed: bool,
}

/// Where the line of each key is.
pub(super) struct Index {
    journals: Utf8PathBuf,
    packs_folder: Utf8PathBuf,
    /// By number; a journal that was sealed leaves a gap.
    logs: Vec<Option<Log>>,
    places: Places,
    /// The largest first: most keys are there.
    packs: Vec<Pack>,
    /// Journals that have ended and have an index, the oldest first.
    ended: Vec<Pack>,
    opened: Instant,
    /// When to look again for what others have published, in milliseconds since it was opened.
    look_at_ms: AtomicU64,
}

impl Index {
    pub(super) fn open(journals: &Utf8Path, packs: &Utf8Path) -> io::Result<Index> {
        let mut index = Index {
            journals: journals.to_owned(),
            packs_folder: packs.to_owned(),
            logs: Vec::new(),
            places: Places::default(),
            packs: Vec::new(),
            ended: Vec::new(),
            opened: Instant::now(),
            look_at_ms: AtomicU64::new(0),
        };
        index.scan()?;
        Ok(index)
    }

    /// Whether another process has written since the last look. Looked at now and then only: a duplicate
    /// published in between is harmless.
    pub(super) fn is_stale(&self) -> bool {
        let now = self.opened.elapsed().as_millis() as u64;
        if now < self.look_at_ms.load(Relaxed) {
            return false;
        }
        self.look_at_ms.store(now + REFRESH_TIME.as_millis() as u64, Relaxed);
        let grown = |log: &Log| log.file.metadata().is_ok_and(|meta| meta.len() > log.read_to);
        let known = |(logs, indexes): (Vec<String>, Vec<String>)| {
            let open = self.logs.iter().flatten().map(|log| stem(&log.name));
            let ended = || self.ended.iter().map(|pack| pack.name.as_str());
            let mut known: Vec<_> = open.chain(ended()).collect();
            known.sort_unstable();
            known.into_iter().eq(logs.iter().map(|name| stem(name)))
                && ended().eq(indexes.iter().map(|name| stem(name)))
        };
        let known_packs = |names: Vec<String>| {
            let is_open = |name: &String| {
                let name = name.strip_suffix(".pack");
                self.packs.iter().any(|pack| Some(pack.name.as_str()) == name)
            };
            names.len() == self.packs.len() && names.iter().all(is_open)
        };
        self.logs.iter().flatten().any(grown)
            || !self.journal_names().is_ok_and(known)
            || !journal::names(&self.packs_folder, ".pack").is_ok_and(known_packs)
    }

    /// Names of journals, and of the indexes of those that have ended, sorted.
    fn journal_names(&self) -> io::Result<(Vec<String>, Vec<String>)> {
        let mut indexes = journal::names(&self.journals, INDEX_ENDING)?;
        let logs = journal::names(&self.journals, ENDING)?;
        indexes.retain(|index| logs.binary_search_by(|log| stem(log).cmp(stem(index))).is_ok());
        Ok((logs, indexes))
    }

    /// Reads what is new; what cannot be read now stays a miss.
    pub(super) fn refresh(&mut self) {
        let _ = self.scan();
    }

    fn scan(&mut self) -> io::Result<()> {
        for _ in 0..READINGS_MAX {
            let (logs, indexes) = self.journal_names()?;
            let has_index =
                |name: &str| indexes.binary_search_by(|index| stem(index).cmp(stem(name))).is_ok();
            let mut vanished = false;
            for name in &logs {
                let read = match has_index(name) {
                    true => self.open_ended(stem(name)),
                    false => self.log(name).and_then(|number| self.read_log(number)),
                };
                match read {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::NotFound => vanished = true,
                    Err(error) => return Err(error),
                }
            }
            let names = pack::list(&self.packs_folder)?;
            vanished |= !self.open_packs(&names)?;
            if vanished {
                continue;
            }
            self.packs.retain(|pack| names.binary_search(&pack.name).is_ok());
            self.ended.retain(|pack| has_index(&format!("{}{ENDING}", pack.name)));
            self.forget_sealed(|name| {
                logs.binary_search_by(|log| log.as_str().cmp(name)).is_ok() && !has_index(name)
            });
            break;
        }
        Ok(())
    }

    /// Opens those that are new; `false` where one is gone already.
    fn open_packs(&mut self, names: &[String]) -> io::Result<bool> {
        let mut all = true;
        for name in names {
            if self.packs.iter().any(|pack| pack.name == *name) {
                continue;
            }
            match Pack::open(&self.packs_folder, name) {
                Ok(pack) => self.packs.push(pack),
                Err(error) if error.kind() == ErrorKind::NotFound => all = false,
                Err(error) => return Err(error),
            }
        }
        self.packs.sort_by_key(Pack::order);
        Ok(all)
    }

    /// Opens a journal that has ended and has an index.
    fn open_ended(&mut self, name: &str) -> io::Result<()> {
        if let Err(at) = self.ended.binary_search_by(|pack| pack.name.as_str().cmp(name)) {
            self.ended.insert(at, Pack::open_journal(&self.journals, name)?);
        }
        Ok(())
    }

    /// Packs, and what is like them.
    fn packs(&self) -> impl Iterator<Item = &Pack> {
        // What was packed was published first; merging keeps to the same order.
        self.packs.iter().chain(&self.ended)
    }

    /// Lets go of journals that are packs now, or searched like them.
    fn forget_sealed(&mut self, stays: impl Fn(&str) -> bool) {
        let mut gone = false;
        for log in &mut self.logs {
            if log.as_ref().is_some_and(|log| !stays(&log.name)) {
                (*log, gone) = (None, true);
            }
        }
        if gone {
            let logs = &self.logs;
            self.places.retain(|_, place| logs[place.log as usize].is_some());
            self.places.shrink_to_fit();
        }
    }

    fn log(&mut self, name: &str) -> io::Result<usize> {
        let known = |log: &Option<Log>| log.as_ref().is_some_and(|log| log.name == name);
        if let Some(number) = self.logs.iter().position(known) {
            return Ok(number);
        }
        let file = File::open(self.journals.join(name))?;
        self.logs.push(Some(Log { name: name.to_owned(), file, read_to: 0, is_shadowed: false }));
        Ok(self.logs.len() - 1)
    }

    fn read_log(&mut self, number: usize) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let log = self.logs[number].as_ref().expect("BUG: a log that is there");
            let start = log.read_to + buffer.len() as u64;
            let length = log.file.metadata()?.len();
            if length <= start {
                return Ok(());
            }
            let more = usize::try_from(length - start).unwrap_or(usize::MAX).min(CHUNK);
            let old = buffer.len();
            buffer.resize(old + more, 0);
            log.file.read_exact_at(&mut buffer[old..], start)?;
            let begin = log.read_to;
            let (places, mut shadowed) = (&mut self.places, Vec::new());
            let done = line::each(&buffer, |at, line, head| {
                let offset = begin + at as u64;
                let length = line.len() as u32;
                let generation = head.generation;
                let new = Place { log: number as u32, length, offset, generation };
                shadowed.extend(place(places, head.key, new));
            });
            self.shadow(&shadowed);
            buffer.drain(..done);
            self.logs[number].as_mut().expect("BUG: a log that is there").read_to += done as u64;
        }
    }

    /// Adds a line that this process has just written.
    pub(super) fn insert(&mut self, log: &str, head: Head, offset: u64, length: u32) {
        // Lines of a log that cannot be opened are found by the next process.
        let Ok(number) = self.log(log) else { return };
        let Some(log) = &mut self.logs[number] else { return };
        if log.read_to == offset {
            log.read_to = offset + u64::from(length) + 1;
        }
        let generation = head.generation;
        let new = Place { log: number as u32, length, offset, generation };
        let shadowed = place(&mut self.places, head.key, new);
        self.shadow(shadowed.as_slice());
    }

    fn shadow(&mut self, logs: &[u32]) {
        for log in logs {
            if let Some(log) = &mut self.logs[*log as usize] {
                log.is_shadowed = true;
            }
        }
    }

    /// The highest generation of a key's lines, whole or not; `None` of a key that has none.
    pub(super) fn generation(&self, key: Key) -> Option<u32> {
        let journal = self.places.get(&key).map(|place| place.generation);
        let packs = self.packs().filter_map(|pack| pack.find(key)).map(|entry| entry.generation);
        packs.chain(journal).max()
    }

    /// A key's line and where its JSON begins. Where the line that counts is damaged, the next best.
    pub(super) fn read(&self, key: Key) -> Option<(Vec<u8>, usize)> {
        let in_journal = self.places.get(&key);
        let is_first = in_journal.is_none_or(|place| place.generation == 0);
        if is_first && !self.packs().any(Pack::supersedes) {
            let found = self.packs().find_map(|pack| pack.read(pack.find(key)?)).map(json);
            return found.or_else(|| in_journal.and_then(|place| self.read_place(key, *place)));
        }
        let packs = self.packs().filter_map(|pack| Some((pack, pack.find(key)?)));
        let mut packs: Vec<_> = packs.collect();
        packs.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.generation));
        let best = packs.first().map_or(0, |(_, entry)| entry.generation);
        let journal = || in_journal.and_then(|place| self.read_place(key, *place));
        let first = in_journal.filter(|place| place.generation > best).and_then(|_| journal());
        first
            .or_else(|| packs.iter().find_map(|(pack, entry)| pack.read(*entry)).map(json))
            .or_else(journal)
    }

    fn read_place(&self, key: Key, place: Place) -> Option<(Vec<u8>, usize)> {
        let mut line = vec![0; place.length as usize];
        let log = self.logs[place.log as usize].as_ref()?;
        log.file.read_exact_at(&mut line, place.offset).ok()?;
        let head = line::check(&line).filter(|head| head.key == key)?;
        Some((line, head.json))
    }

    /// Every key, sorted.
    pub(super) fn keys(&self) -> io::Result<Vec<Key>> {
        let mut keys: Vec<Key> = self.places.keys().copied().collect();
        for pack in self.packs() {
            keys.extend(pack.keys()?);
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    /// Places of lines that are held in memory.
    #[cfg(test)]
    pub(super) fn lines_in_memory(&self) -> usize {
        self.places.len()
    }

    /// The lines of a journal that count, sorted; `None` where not all of them are held here.
    pub(super) fn lines_of(&self, name: &str) -> Option<Vec<Entry>> {
        let is_it = |log: &Option<Log>| log.as_ref().is_some_and(|log| log.name == name);
        let number = self.logs.iter().position(is_it)?;
        let log = self.logs[number].as_ref()?;
        if log.is_shadowed || log.file.metadata().ok()?.len() != log.read_to {
            return None;
        }
        let own = self.places.iter().filter(|(_, place)| place.log as usize == number);
        let mut lines: Vec<Entry> = own.map(|(key, place)| place.entry(*key)).collect();
        lines.sort_unstable_by_key(|entry| entry.key);
        Some(lines)
    }

    /// Whether a line of a key is in a journal that has not ended, or waits to be written to it.
    pub(super) fn is_placed(&self, key: Key) -> bool {
        self.places.contains_key(&key)
    }

    /// Whether the line of a key is in a journal.
    pub(super) fn in_journal(&self, key: Key) -> bool {
        self.places.contains_key(&key) || self.ended.iter().any(|pack| pack.find(key).is_some())
    }
}

/// A file's name without its ending.
fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

fn json((line, head): (Vec<u8>, Head)) -> (Vec<u8>, usize) {
    (line, head.json)
}

/// Gives the log whose line does not get the place, if another's has it.
fn place(places: &mut Places, key: Key, new: Place) -> Option<u32> {
    let Some(old) = places.get_mut(&key) else {
        places.insert(key, new);
        return None;
    };
    let (winner, loser) = if new.generation > old.generation { (new, *old) } else { (*old, new) };
    *old = winner;
    (winner.log != loser.log).then_some(loser.log)
}
