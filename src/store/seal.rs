//! Journals that nobody writes any more get an index if they are long, and become packs when there are many; small packs
//! become larger ones. Knows nothing of what the lines say.
//!
//! A long journal is searched through its index as a pack is: nothing is copied at the end of a run.
//! A pack is merged with all smaller ones once these together are more than a third of it, so that the sizes
//! grow geometrically: a thousand runs leave a handful of packs, and a line is copied a few times in its
//! life. Inputs are locked while they are read; who finds one locked leaves it to the other. A new file is
//! synced before the old ones go, so that a kill at any point leaves every line in one place at least.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};

use super::blob::{self, sync_folder};
use super::journal::{self, ENDING, INDEX_ENDING};
use super::line::{self, Head};
use super::lines::Lines;
use super::pack::{self, Entry, Pack, PackWriter};
use super::{StoreError, at};
use crate::digest::Key;

/// A pack is left alone while it is at least this many times as large as all smaller ones together.
const GEOMETRY: u64 = 3;
/// Packs beyond this are large enough.
const PACK_MAX: u64 = 4 << 30;

/// Journals without a writer are sealed once there are this many,
const JOURNALS_MAX: usize = 16;
/// or once those without an index have this many bytes together: whoever opens the store reads them,
const SEAL_BYTES: u64 = 8 << 20;
/// or all of them this many.
const JOURNAL_BYTES_MAX: u64 = 512 << 20;
/// A journal of this many bytes gets an index.
const INDEX_BYTES: u64 = 4 << 20;
/// Bytes of journals that are sealed together.
const GROUP: u64 = 96 << 20;
/// Bytes of a journal that are read at once.
const CHUNK: usize = 1 << 20;

/// Where journals and packs are.
pub(super) struct Folders {
    pub journals: Utf8PathBuf,
    pub packs: Utf8PathBuf,
}

impl Folders {
    /// Journals that belong to nobody, with their locks, oldest first.
    fn abandoned(&self) -> Result<Vec<(Utf8PathBuf, File)>, StoreError> {
        let names = journal::names(&self.journals, ENDING).map_err(at("read", &self.journals))?;
        let paths = names.iter().map(|name| self.journals.join(name));
        Ok(paths.filter_map(|path| Some((path.clone(), journal::claim(&path)?))).collect())
    }

    /// Seals and merges if that is due, or in any case with `all`.
    pub(super) fn tidy(&self, all: bool) -> Result<(), StoreError> {
        self.sweep();
        let abandoned = self.abandoned()?;
        let bytes = |file: &File| file.metadata().map_or(0, |meta| meta.len());
        let sum = |is: fn(u64) -> bool| -> u64 {
            abandoned.iter().map(|(_, file)| bytes(file)).filter(|bytes| is(*bytes)).sum()
        };
        if all
            || abandoned.len() >= JOURNALS_MAX
            || sum(|bytes| bytes < INDEX_BYTES) >= SEAL_BYTES
            || sum(|_| true) >= JOURNAL_BYTES_MAX
        {
            let mut group = Vec::new();
            for journal in abandoned {
                if group.iter().chain([&journal]).map(|(_, file)| bytes(file)).sum::<u64>() > GROUP
                {
                    seal(&std::mem::take(&mut group), &self.packs)?;
                }
                group.push(journal);
            }
            seal(&group, &self.packs)?;
        } else {
            for (path, file) in abandoned {
                if bytes(&file) >= INDEX_BYTES && !index_of(&path).exists() {
                    index(&path, &file)?;
                }
            }
        }
        // Also where nothing was sealed: who sealed before may have found a pack locked and left it.
        self.merge(all)
    }

    /// Writes the index of a journal that this process has ended, if it is long; `lines` are `None` where not all are
    /// known.
    pub(super) fn index_own(&self, name: &str, lines: Option<&[Entry]>) -> Result<(), StoreError> {
        let path = self.journals.join(name);
        let file = File::open(&path).map_err(at("read", &path))?;
        let bytes = file.metadata().map_err(at("read", &path))?.len();
        match lines {
            _ if bytes < INDEX_BYTES => Ok(()),
            Some(lines) => pack::write_index(&index_of(&path), lines, bytes),
            None => index(&path, &file),
        }
    }

    /// Removes what killed processes left half written, here and beside.
    fn sweep(&self) {
        let root = self.packs.parent().unwrap_or(&self.packs);
        for folder in ["", "cas", "journal", "packs", "last", "roots", "tmproots", "gone"] {
            blob::sweep(&root.join(folder));
        }
        // The index of a journal comes after it and goes before it, unless somebody else takes the journal away.
        for name in journal::names(&self.journals, INDEX_ENDING).unwrap_or_default() {
            let index = self.journals.join(&name);
            if !index.with_extension(&ENDING[1..]).exists() {
                let _ = fs::remove_file(index);
            }
        }
        // An index is published before its pack.
        for name in journal::names(&self.packs, ".idx").unwrap_or_default() {
            let index = self.packs.join(&name);
            if !index.with_extension("pack").exists() && blob::is_abandoned(&index) {
                let _ = fs::remove_file(index);
            }
        }
    }

    /// Merges packs whose sizes are out of proportion, or with `all` every one.
    fn merge(&self, all: bool) -> Result<(), StoreError> {
        let names = pack::list(&self.packs).map_err(at("read", &self.packs))?;
        let open = |name: &String| Pack::open(&self.packs, name).ok();
        let mut packs: Vec<Pack> = names.iter().filter_map(open).collect();
        packs.retain(|pack| pack.bytes < PACK_MAX);
        packs.sort_by_key(|pack| pack.bytes);
        let count = if all { packs.len() } else { out_of_proportion(&packs) };
        packs.truncate(count);
        // Another process is at one of them: it will see to it.
        if packs.len() < 2 || !packs.iter().all(Pack::claim) {
            return Ok(());
        }
        let name = rewrite(&self.packs, &packs, |_| true)?;
        remove(&self.packs, &packs, name.as_deref())
    }
}

/// How many of these packs, smallest first, belong into one.
fn out_of_proportion(packs: &[Pack]) -> usize {
    let mut smaller = 0;
    let mut count = 0;
    for (i, pack) in packs.iter().enumerate() {
        if i > 0 && pack.bytes < smaller * GEOMETRY {
            count = i + 1;
        }
        smaller += pack.bytes;
    }
    count
}

/// Where a whole line is.
struct Found {
    key: Key,
    generation: u32,
    /// Of those that are sealed together.
    journal: usize,
    offset: u64,
    length: usize,
}

/// Writes the lines of journals into one pack, and removes the journals.
fn seal(journals: &[(Utf8PathBuf, File)], packs: &Utf8Path) -> Result<(), StoreError> {
    let mut lines = Vec::new();
    for (journal, (path, file)) in journals.iter().enumerate() {
        find(file, journal, &mut lines).map_err(at("read", path))?;
    }
    keep_those_that_count(&mut lines);
    let mut writer = PackWriter::new(packs, lines.len() as u64)?;
    let mut line = Vec::new();
    for Found { key, generation, journal, offset, length } in lines {
        let (path, file) = &journals[journal];
        line.resize(length, 0);
        file.read_exact_at(&mut line, offset).map_err(at("read", path))?;
        writer.add(&line, Head { key, generation, json: 0 })?;
    }
    writer.finish()?;
    for (path, _) in journals {
        let _ = fs::remove_file(index_of(path));
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(at("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Sorts lines by key; of each key one is left.
fn keep_those_that_count(lines: &mut Vec<Found>) {
    // The oldest journal comes first: of equal generations the first published stays.
    lines.sort_unstable_by_key(|found| {
        (found.key, Reverse(found.generation), found.journal, found.offset)
    });
    lines.dedup_by_key(|found| found.key);
}

/// Where the index of a journal is.
fn index_of(journal: &Utf8Path) -> Utf8PathBuf {
    journal.with_extension(&INDEX_ENDING[1..])
}

/// Writes the index of a journal that has ended.
pub(super) fn index(path: &Utf8Path, file: &File) -> Result<(), StoreError> {
    let mut lines = Vec::new();
    find(file, 0, &mut lines).map_err(at("read", path))?;
    keep_those_that_count(&mut lines);
    let entry = |found: Found| {
        let Found { key, generation, offset, length, .. } = found;
        let length = u32::try_from(length).expect("BUG: a record of 4 GB");
        Entry { key, offset, length, generation }
    };
    let entries: Vec<Entry> = lines.into_iter().map(entry).collect();
    pack::write_index(&index_of(path), &entries, file.metadata().map_err(at("read", path))?.len())
}

/// Adds the whole lines of a journal, which is read in parts.
fn find(file: &File, journal: usize, lines: &mut Vec<Found>) -> io::Result<()> {
    let length = file.metadata()?.len();
    let (mut buffer, mut begin) = (Vec::new(), 0);
    loop {
        let old = buffer.len();
        let start = begin + old as u64;
        if start >= length {
            return Ok(());
        }
        buffer.resize(old + usize::try_from(length - start).unwrap_or(CHUNK).min(CHUNK), 0);
        file.read_exact_at(&mut buffer[old..], start)?;
        let done = line::each(&buffer, |at, line, head| {
            let Head { key, generation, .. } = head;
            let offset = begin + at as u64;
            lines.push(Found { key, generation, journal, offset, length: line.len() });
        });
        buffer.drain(..done);
        begin += done as u64;
    }
}

/// Writes those lines of `packs` that `keep` wants into one new pack. Of equal generations that of the larger
/// pack stays, as readers have it.
pub(super) fn rewrite(
    folder: &Utf8Path,
    packs: &[Pack],
    mut keep: impl FnMut(Key) -> bool,
) -> Result<Option<String>, StoreError> {
    let mut packs: Vec<&Pack> = packs.iter().collect();
    packs.sort_by_key(|pack| pack.order());
    let open = |pack: &&Pack| pack.lines().map_err(at("read", &pack.path()));
    let mut inputs = packs.iter().map(open).collect::<Result<Vec<Lines>, _>>()?;
    let mut writer = PackWriter::new(folder, packs.iter().map(|pack| pack.count()).sum())?;
    let mut heads: BinaryHeap<Reverse<(Key, Reverse<u32>, usize)>> = BinaryHeap::new();
    for (i, input) in inputs.iter_mut().enumerate() {
        let head = input.advance().map_err(at("read", &packs[i].path()))?;
        heads.extend(head.map(|head| Reverse((head.key, Reverse(head.generation), i))));
    }
    let mut last = None;
    while let Some(Reverse((key, Reverse(generation), i))) = heads.pop() {
        // Out of order are only lines found inside a damaged one.
        if last < Some(key) && keep(key) {
            writer.add(inputs[i].line(), Head { key, generation, json: 0 })?;
        }
        last = last.max(Some(key));
        let head = inputs[i].advance().map_err(at("read", &packs[i].path()))?;
        heads.extend(head.map(|head| Reverse((head.key, Reverse(head.generation), i))));
    }
    writer.finish()
}

/// Removes packs whose lines are all in `name`, or garbage.
pub(super) fn remove(
    folder: &Utf8Path,
    packs: &[Pack],
    name: Option<&str>,
) -> Result<(), StoreError> {
    for pack in packs.iter().filter(|pack| name != Some(&pack.name)) {
        pack::remove(folder, &pack.name);
    }
    sync_folder(folder)
}
