//! Immutable files of lines sorted by key, each with an index: `packs/<name>.pack` and `.idx`. Knows nothing of
//! what the lines say beyond their key.
//!
//! A pack's name is the SHA-256 of the sums and keys of its lines, so that equal content has one name wherever
//! it was packed. The index begins with a fan-out table over the first bits of the keys; a look-up reads one
//! bucket of about sixteen entries and then the line, wherever in a million it is. Every bucket has a sum: an
//! index that is damaged or missing is made again from its pack.

use std::cmp::Reverse;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, RwLock};

use camino::{Utf8Path, Utf8PathBuf};

use super::blob::{TEMPORARY, set_plain_mode, sync_folder};
use super::line::{self, Head};
use super::lines::{FromHere, Lines};
use super::{StoreError, at, journal};
use crate::digest::{DigestStream, Key};

/// How the names of packs end.
const ENDING: &str = ".pack";
const MAGIC: &[u8; 8] = b"forgeix1";
/// Magic, count, bytes of the pack, bits of the fan-out, superseding lines, and the sum of these and the fan-out.
const HEADER: usize = 8 + 8 + 8 + 4 + 4 + 4;
/// End of the bucket, counted in entries, and its sum.
const FAN: usize = 4 + 4;
/// Key, offset, length, generation.
const ENTRY: usize = 32 + 8 + 4 + 4;
/// Entries in a bucket, about.
const BUCKET: u64 = 16;
const BITS_MAX: u32 = 24;
/// The byte of a key that a tag is: one behind those that choose its bucket.
const TAG: usize = BITS_MAX as usize / 8;
/// Look-ups until it is worth reading all tags.
const UNTAGGED: u32 = 256;
const FAN_LOCK: &str = "BUG: the pack lock is poisoned";

/// Where a line is in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: Key,
    pub offset: u64,
    pub length: u32,
    pub generation: u32,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..32].copy_from_slice(self.key.bytes());
        bytes[32..40].copy_from_slice(&self.offset.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.length.to_le_bytes());
        bytes[44..].copy_from_slice(&self.generation.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Entry {
        Entry {
            key: Key::from_bytes(bytes[..32].try_into().expect("BUG: 32 bytes")),
            offset: u64_at(bytes, 32),
            length: u32_at(bytes, 40),
            generation: u32_at(bytes, 44),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("BUG: 4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("BUG: 8 bytes"))
}

/// The bucket of a key.
fn bucket(key: Key, bits: u32) -> usize {
    let first = u32::from_be_bytes(key.bytes()[..4].try_into().expect("BUG: 4 bytes"));
    if bits == 0 { 0 } else { (first >> (32 - bits)) as usize }
}

/// The fan-out of an index, and where its entries are.
struct Fan {
    bits: u32,
    /// End of each bucket and its sum.
    buckets: Vec<(u32, u32)>,
    superseding: u32,
    entries: Entries,
    /// A byte of each key, so that most keys that are not here cost no read.
    tags: OnceLock<Option<Vec<u8>>>,
    /// Look-ups before there were tags.
    asked: AtomicU32,
}

impl Fan {
    fn new(bits: u32, buckets: Vec<(u32, u32)>, superseding: u32, entries: Entries) -> Fan {
        let (tags, asked) = (OnceLock::new(), AtomicU32::new(0));
        Fan { bits, buckets, superseding, entries, tags, asked }
    }

    /// Tags of all entries in `file`, once enough has been asked; `None` where an entry is damaged, too.
    fn tags(&self, file: &File) -> Option<&[u8]> {
        if self.tags.get().is_none() && self.asked.fetch_add(1, Relaxed) < UNTAGGED {
            return None;
        }
        self.tags.get_or_init(|| self.read_tags(file).ok().flatten()).as_deref()
    }

    fn read_tags(&self, file: &File) -> io::Result<Option<Vec<u8>>> {
        let at = (HEADER + self.buckets.len() * FAN) as u64;
        let mut reader = BufReader::with_capacity(1 << 16, FromHere { file, at });
        let (mut tags, mut bucket) = (Vec::new(), Vec::new());
        for (end, sum) in &self.buckets {
            let entries = (*end as usize).saturating_sub(tags.len());
            bucket.resize(entries * ENTRY, 0);
            io::Read::read_exact(&mut reader, &mut bucket)?;
            if crc32c::crc32c(&bucket) != *sum {
                return Ok(None);
            }
            tags.extend(bucket.chunks_exact(ENTRY).map(|entry| entry[TAG]));
        }
        Ok(Some(tags))
    }
}

enum Entries {
    File(File),
    /// Of an index that had to be made again and could not be written.
    Memory(Vec<Entry>),
}

/// A pack that is open for look-ups. Also a journal that has ended and has an index: its lines are in the order in
/// which they were published.
pub(super) struct Pack {
    pub name: String,
    /// How the name of its file ends.
    ending: &'static str,
    folder: Utf8PathBuf,
    /// Read by position: it stays good when another process has merged the pack away.
    file: File,
    /// `None` where it was missing when the pack was opened.
    index: Option<File>,
    pub bytes: u64,
    fan: RwLock<Option<Arc<Fan>>>,
}

impl Pack {
    pub(super) fn open(folder: &Utf8Path, name: &str) -> io::Result<Pack> {
        Pack::open_as(folder, name, ENDING)
    }

    /// A journal that has ended, as a pack.
    pub(super) fn open_journal(folder: &Utf8Path, name: &str) -> io::Result<Pack> {
        Pack::open_as(folder, name, journal::ENDING)
    }

    fn open_as(folder: &Utf8Path, name: &str, ending: &'static str) -> io::Result<Pack> {
        let file = journal::open_to_lock(&folder.join(format!("{name}{ending}")))?;
        let index = match File::open(folder.join(format!("{name}.idx"))) {
            Ok(index) => Some(index),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let bytes = file.metadata()?.len();
        let (name, folder) = (name.to_owned(), folder.to_owned());
        Ok(Pack { name, ending, folder, file, index, bytes, fan: RwLock::new(None) })
    }

    pub(super) fn path(&self) -> Utf8PathBuf {
        self.folder.join(format!("{}{}", self.name, self.ending))
    }

    pub(super) fn index_path(&self) -> Utf8PathBuf {
        self.folder.join(format!("{}.idx", self.name))
    }

    /// Takes the lock of a pack that is about to be merged away; `false` where another process has it, or has
    /// merged the pack already.
    pub(super) fn claim(&self) -> bool {
        !matches!(self.file.try_lock(), Err(TryLockError::WouldBlock)) && self.path().exists()
    }

    /// Whether any of its lines supersedes others.
    pub(super) fn supersedes(&self) -> bool {
        self.fan().superseding > 0
    }

    /// Where it stands among packs: the largest first, as most keys are there.
    pub(super) fn order(&self) -> (Reverse<u64>, String) {
        (Reverse(self.bytes), self.name.clone())
    }

    /// How many lines it has.
    pub(super) fn count(&self) -> u64 {
        self.fan().buckets.last().map_or(0, |(end, _)| u64::from(*end))
    }

    /// Where the line of a key is.
    pub(super) fn find(&self, key: Key) -> Option<Entry> {
        let fan = self.fan();
        let number = bucket(key, fan.bits);
        let start = if number == 0 { 0 } else { fan.buckets[number - 1].0 } as usize;
        let (end, sum) = fan.buckets[number];
        let end = end as usize;
        if start >= end {
            return None;
        }
        match &fan.entries {
            Entries::Memory(entries) => {
                let found = entries.binary_search_by_key(&key, |entry| entry.key).ok();
                found.map(|i| entries[i])
            }
            Entries::File(file) => {
                let tags = fan.tags(file).and_then(|tags| tags.get(start..end));
                if tags.is_some_and(|tags| !tags.contains(&key.bytes()[TAG])) {
                    return None;
                }
                let mut bytes = vec![0; (end - start) * ENTRY];
                let begin = HEADER + fan.buckets.len() * FAN + start * ENTRY;
                file.read_exact_at(&mut bytes, begin as u64).ok()?;
                if crc32c::crc32c(&bytes) != sum {
                    drop(fan);
                    return self.rebuilt().ok()?.iter().find(|entry| entry.key == key).copied();
                }
                let found = bytes.chunks_exact(ENTRY).find(|entry| entry[..32] == key.bytes()[..]);
                found.map(Entry::from_bytes)
            }
        }
    }

    /// All its keys, sorted.
    pub(super) fn keys(&self) -> io::Result<Vec<Key>> {
        let fan = self.fan();
        let Entries::File(file) = &fan.entries else {
            return Ok(self.rebuilt()?.iter().map(|entry| entry.key).collect());
        };
        match self.entries(&fan, file)? {
            Some(entries) => Ok(entries.iter().map(|entry| entry.key).collect()),
            None => Ok(self.rebuilt()?.iter().map(|entry| entry.key).collect()),
        }
    }

    /// Every entry of an index in a file; `None` where it is damaged.
    fn entries(&self, fan: &Fan, file: &File) -> io::Result<Option<Vec<Entry>>> {
        let count = fan.buckets.last().map_or(0, |(end, _)| *end) as usize;
        let mut bytes = vec![0; count * ENTRY];
        file.read_exact_at(&mut bytes, (HEADER + fan.buckets.len() * FAN) as u64)?;
        let mut start = 0;
        for (end, sum) in &fan.buckets {
            let end = *end as usize * ENTRY;
            if start > end || crc32c::crc32c(&bytes[start..end]) != *sum {
                return Ok(None);
            }
            start = end;
        }
        Ok(Some(bytes.chunks_exact(ENTRY).map(Entry::from_bytes).collect()))
    }

    /// A line, if it is whole and of that key.
    pub(super) fn read(&self, entry: Entry) -> Option<(Vec<u8>, Head)> {
        let mut line = vec![0; entry.length as usize];
        self.file.read_exact_at(&mut line, entry.offset).ok()?;
        let head = line::check(&line).filter(|head| head.key == entry.key)?;
        Some((line, head))
    }

    /// All whole lines, in order.
    pub(super) fn lines(&self) -> io::Result<Lines> {
        // From the start, whatever was read of this description before.
        Ok(Lines::of(self.file.try_clone()?))
    }

    fn fan(&self) -> Arc<Fan> {
        if let Some(fan) = &*self.fan.read().expect(FAN_LOCK) {
            return fan.clone();
        }
        if let Some(fan) = self.index.as_ref().and_then(|index| self.read_fan(index)) {
            let fan = Arc::new(fan);
            *self.fan.write().expect(FAN_LOCK) = Some(fan.clone());
            return fan;
        }
        // What cannot be read now is a miss now, and is tried again the next time.
        drop(self.rebuilt());
        self.fan.read().expect(FAN_LOCK).clone().unwrap_or_else(|| {
            let entries = Entries::Memory(Vec::new());
            Arc::new(Fan::new(0, vec![(0, 0)], 0, entries))
        })
    }

    fn read_fan(&self, file: &File) -> Option<Fan> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).ok()?;
        let (count, bytes) = (u64_at(&header, 8), u64_at(&header, 16));
        let (bits, superseding) = (u32_at(&header, 24), u32_at(&header, 28));
        if &header[..8] != MAGIC || bits > BITS_MAX || bytes != self.bytes {
            return None;
        }
        let mut fan = vec![0; FAN << bits];
        let length = (HEADER + fan.len()) as u64 + count.checked_mul(ENTRY as u64)?;
        if file.metadata().ok()?.len() != length {
            return None;
        }
        file.read_exact_at(&mut fan, HEADER as u64).ok()?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..HEADER - 4]), &fan);
        if sum != u32_at(&header, HEADER - 4) {
            return None;
        }
        let buckets = fan.chunks_exact(FAN).map(|b| (u32_at(b, 0), u32_at(b, 4))).collect();
        let entries = Entries::File(file.try_clone().ok()?);
        Some(Fan::new(bits, buckets, superseding, entries))
    }

    /// Makes the index again from the pack: into memory, and for those after us onto disk. A pack that cannot
    /// be read to its end gets none: half an index would hide the other half.
    fn rebuilt(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut lines = self.lines()?;
        while let Some(head) = lines.advance()? {
            entries.push(lines.entry(head));
        }
        keep_those_that_count(&mut entries);
        if self.path().exists() {
            // What cannot be written now is made again by the next process.
            let _ = write_index(&self.index_path(), &entries, self.bytes);
        }
        let superseding = entries.iter().filter(|entry| entry.generation > 0).count() as u32;
        let buckets = vec![(entries.len() as u32, 0)];
        let kept = Entries::Memory(entries.clone());
        let fan = Fan::new(0, buckets, superseding, kept);
        *self.fan.write().expect(FAN_LOCK) = Some(Arc::new(fan));
        Ok(entries)
    }

    /// Whether the index on disk is whole and leads to these lines; for `verify`.
    pub(super) fn index_leads_to(&self, found: &[Entry]) -> io::Result<bool> {
        let index = match File::open(self.index_path()) {
            Ok(index) => index,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match self.read_fan(&index) {
            None => Ok(false),
            Some(fan) => Ok(self.entries(&fan, &index)?.is_some_and(|entries| entries == found)),
        }
    }

    /// Makes the index again, whatever state it is in; for `verify --repair`.
    pub(super) fn repair_index(&self) -> bool {
        self.rebuilt().is_ok()
    }
}

/// Sorts entries by key; of each key that is left which came last, or first where none supersedes another.
pub(super) fn keep_those_that_count(entries: &mut Vec<Entry>) {
    entries.sort_by_key(|entry| (entry.key, Reverse(entry.generation)));
    entries.dedup_by_key(|entry| entry.key);
}

/// Writes the index of a file of so many bytes; `entries` are sorted, one for a key.
pub(super) fn write_index(
    path: &Utf8Path,
    entries: &[Entry],
    bytes: u64,
) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Utf8Path::new("."));
    let mut index = IndexWriter::new(folder, entries.len() as u64)?;
    for entry in entries {
        index.add(*entry)?;
    }
    index.finish(path, bytes)
}

/// Writes an index entry by entry, sorted by key; memory is the fan-out alone.
struct IndexWriter {
    file: BufWriter<tempfile::NamedTempFile>,
    bits: u32,
    fan: Vec<(u32, u32)>,
    at: usize,
    count: u32,
    superseding: u32,
}

impl IndexWriter {
    fn new(folder: &Utf8Path, at_most: u64) -> Result<IndexWriter, StoreError> {
        let bits = (at_most / BUCKET).max(1).next_power_of_two().ilog2().min(BITS_MAX);
        let mut file = BufWriter::with_capacity(1 << 16, temporary(folder)?);
        let room = vec![0; HEADER + (FAN << bits)];
        file.write_all(&room).map_err(at("write", folder))?;
        Ok(IndexWriter {
            file,
            bits,
            fan: vec![(0, 0); 1 << bits],
            at: 0,
            count: 0,
            superseding: 0,
        })
    }

    fn add(&mut self, entry: Entry) -> Result<(), StoreError> {
        let number = bucket(entry.key, self.bits);
        while self.at < number {
            self.fan[self.at].0 = self.count;
            self.at += 1;
        }
        let bytes = entry.to_bytes();
        self.fan[number].1 = crc32c::crc32c_append(self.fan[number].1, &bytes);
        self.count += 1;
        self.superseding += u32::from(entry.generation > 0);
        self.file.write_all(&bytes).map_err(at("write", Utf8Path::new("an index")))
    }

    fn finish(mut self, path: &Utf8Path, pack_bytes: u64) -> Result<(), StoreError> {
        for bucket in &mut self.fan[self.at..] {
            bucket.0 = self.count;
        }
        let mut head = Vec::with_capacity(HEADER + self.fan.len() * FAN);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&u64::from(self.count).to_le_bytes());
        head.extend_from_slice(&pack_bytes.to_le_bytes());
        head.extend_from_slice(&self.bits.to_le_bytes());
        head.extend_from_slice(&self.superseding.to_le_bytes());
        let mut fan = Vec::with_capacity(self.fan.len() * FAN);
        for (end, sum) in &self.fan {
            fan.extend_from_slice(&end.to_le_bytes());
            fan.extend_from_slice(&sum.to_le_bytes());
        }
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head), &fan);
        head.extend_from_slice(&sum.to_le_bytes());
        head.extend_from_slice(&fan);
        let write = |file: &mut BufWriter<tempfile::NamedTempFile>| {
            file.flush()?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&head)?;
            file.flush()
        };
        write(&mut self.file).map_err(at("write", path))?;
        let file = self.file.into_inner().map_err(|error| at("write", path)(error.into_error()))?;
        publish(file, path)
    }
}

/// Writes a pack line by line, sorted by key.
pub(super) struct PackWriter {
    folder: Utf8PathBuf,
    lines: BufWriter<tempfile::NamedTempFile>,
    index: IndexWriter,
    name: DigestStream,
    bytes: u64,
    last: Option<Key>,
}

impl PackWriter {
    /// A pack of `at_most` lines in `folder`.
    pub(super) fn new(folder: &Utf8Path, at_most: u64) -> Result<PackWriter, StoreError> {
        fs::create_dir_all(folder).map_err(at("create", folder))?;
        Ok(PackWriter {
            folder: folder.to_owned(),
            lines: BufWriter::with_capacity(1 << 18, temporary(folder)?),
            index: IndexWriter::new(folder, at_most)?,
            name: DigestStream::default(),
            bytes: 0,
            last: None,
        })
    }

    /// Adds a line without its end.
    pub(super) fn add(&mut self, line: &[u8], head: Head) -> Result<(), StoreError> {
        assert!(self.last < Some(head.key), "BUG: a pack is not sorted");
        self.last = Some(head.key);
        self.name.update(&line[..line::NAMING]);
        let write =
            |file: &mut BufWriter<_>| file.write_all(line).and_then(|()| file.write_all(b"\n"));
        write(&mut self.lines).map_err(at("write a pack in", &self.folder))?;
        let length = u32::try_from(line.len()).expect("BUG: a record of 4 GB");
        let (offset, generation) = (self.bytes, head.generation);
        self.index.add(Entry { key: head.key, offset, length, generation })?;
        self.bytes += u64::from(length) + 1;
        Ok(())
    }

    /// Gives the pack its name; `None` where it has no lines.
    pub(super) fn finish(self) -> Result<Option<String>, StoreError> {
        if self.last.is_none() {
            return Ok(None);
        }
        let name = self.name.finish().to_string();
        let file =
            self.lines.into_inner().map_err(|e| at("write", &self.folder)(e.into_error()))?;
        // The index first: a pack is found by the name of the pack alone.
        self.index.finish(&self.folder.join(format!("{name}.idx")), self.bytes)?;
        publish(file, &self.folder.join(format!("{name}{ENDING}")))?;
        sync_folder(&self.folder)?;
        Ok(Some(name))
    }
}

fn temporary(folder: &Utf8Path) -> Result<tempfile::NamedTempFile, StoreError> {
    let file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder);
    file.map_err(at("create a file in", folder))
}

fn publish(file: tempfile::NamedTempFile, path: &Utf8Path) -> Result<(), StoreError> {
    set_plain_mode(file.as_file()).map_err(at("write", path))?;
    file.as_file().sync_all().map_err(at("sync", path))?;
    file.persist(path).map_err(|error| at("rename to", path)(error.error))?;
    Ok(())
}

/// The names of all packs in a folder, read until two readings agree: one reading can miss both a pack that
/// has just been merged away and the one that took its place.
pub(super) fn list(folder: &Utf8Path) -> io::Result<Vec<String>> {
    let mut last: Option<Vec<String>> = None;
    loop {
        let mut names = journal::names(folder, ENDING)?;
        for name in &mut names {
            name.truncate(name.len() - ENDING.len());
        }
        if last.as_ref() == Some(&names) {
            return Ok(names);
        }
        last = Some(names);
    }
}

/// Removes a pack whose lines are all in another.
pub(super) fn remove(folder: &Utf8Path, name: &str) {
    let _ = fs::remove_file(folder.join(format!("{name}{ENDING}")));
    let _ = fs::remove_file(folder.join(format!("{name}.idx")));
}
