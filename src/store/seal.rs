//! Journals that nobody writes any more become packs, and small packs become larger ones. Knows nothing of
//! what the lines say.
//!
//! A pack is merged with all smaller ones once these together are more than a third of it, so that the sizes
//! grow geometrically: a thousand runs leave a handful of packs, and a line is copied a few times in its
//! life. Inputs are locked while they are read; who finds one locked leaves it to the other. A new file is
//! synced before the old ones go, so that a kill at any point leaves every line in one place at least.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};

use camino::{Utf8Path, Utf8PathBuf};

use super::blob::{self, sync_folder};
use super::journal::{self, ENDING};
use super::line::{self, Head};
use super::pack::{self, Lines, Pack, PackWriter};
use super::{StoreError, at};
use crate::digest::Key;

/// A pack is left alone while it is at least this many times as large as all smaller ones together.
const GEOMETRY: u64 = 3;
/// Packs beyond this are large enough.
const PACK_MAX: u64 = 4 << 30;

/// Journals without a writer are sealed once there are this many,
const JOURNALS_MAX: usize = 16;
/// or once they have this many bytes together.
const SEAL_BYTES: u64 = 8 << 20;
/// Bytes of journals that are sealed together, in memory.
const GROUP: u64 = 96 << 20;

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
        let total: u64 = abandoned.iter().map(|(_, file)| bytes(file)).sum();
        if all || abandoned.len() >= JOURNALS_MAX || total >= SEAL_BYTES {
            let mut group = Vec::new();
            for journal in abandoned {
                if group.iter().chain([&journal]).map(|(_, file)| bytes(file)).sum::<u64>() > GROUP
                {
                    seal(&std::mem::take(&mut group), &self.packs)?;
                }
                group.push(journal);
            }
            seal(&group, &self.packs)?;
            drop(group);
            self.merge(all)?;
        }
        Ok(())
    }

    /// Removes what killed processes left half written, here and beside.
    fn sweep(&self) {
        let root = self.packs.parent().unwrap_or(&self.packs);
        for folder in ["", "cas", "journal", "packs", "last", "roots", "tmproots", "gone"] {
            blob::sweep(&root.join(folder));
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

/// Writes the lines of journals into one pack, and removes the journals.
fn seal(journals: &[(Utf8PathBuf, File)], packs: &Utf8Path) -> Result<(), StoreError> {
    // Whole in memory: a process begins another journal before its own gets large.
    let read = |(path, file): &(Utf8PathBuf, File)| {
        let mut content = Vec::new();
        let mut file = file;
        file.read_to_end(&mut content).map_err(at("read", path))?;
        Ok(content)
    };
    let contents = journals.iter().map(read).collect::<Result<Vec<_>, StoreError>>()?;
    let mut lines: Vec<(Head, &[u8])> = Vec::new();
    for content in &contents {
        line::each(content, |offset, line, head| {
            lines.push((head, &content[offset..offset + line.len()]));
        });
    }
    // Stable, and the oldest journal comes first: of equal generations the first published stays.
    lines.sort_by_key(|(head, _)| (head.key, Reverse(head.generation)));
    lines.dedup_by_key(|(head, _)| head.key);
    let mut writer = PackWriter::new(packs, lines.len() as u64)?;
    for (head, line) in lines {
        writer.add(line, head)?;
    }
    writer.finish()?;
    for (path, _) in journals {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(at("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
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
