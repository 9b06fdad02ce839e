//! Journals that nobody writes any more become packs, and small packs become larger ones. Knows nothing of
//! what the lines say.
//!
//! A pack is merged with all smaller ones once these together are more than a third of it, so that the sizes
//! grow geometrically: a thousand runs leave a handful of packs, and a line is copied a few times in its
//! life. Inputs are locked while they are read; who finds one locked leaves it to the other. A new file is
//! synced before the old ones go, so that a kill at any point leaves every line in one place at least.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};

use super::blob::sync_folder;
use super::journal::{self, ENDING};
use super::line;
use super::pack::{self, Lines, Pack, PackWriter};
use super::{StoreError, Tuning, at};
use crate::digest::Key;

/// A pack is left alone while it is at least this many times as large as all smaller ones together.
const GEOMETRY: u64 = 3;
/// Packs beyond this are large enough.
const PACK_MAX: u64 = 4 << 30;

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
    pub(super) fn tidy(&self, tuning: &Tuning, all: bool) -> Result<(), StoreError> {
        let abandoned = self.abandoned()?;
        let bytes = |file: &File| file.metadata().map_or(0, |meta| meta.len());
        let total: u64 = abandoned.iter().map(|(_, file)| bytes(file)).sum();
        if all || abandoned.len() >= tuning.journals_max || total >= tuning.seal_bytes {
            seal(&abandoned, &self.packs)?;
            drop(abandoned);
            self.merge(all)?;
        }
        Ok(())
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
        if packs.len() < 2 || packs.iter().any(|pack| pack.file().try_lock().is_err()) {
            return Ok(());
        }
        rewrite(&self.packs, &packs, |_| true)?;
        Ok(())
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
    struct Line {
        journal: usize,
        offset: u64,
        length: u32,
        generation: u32,
    }
    let mut lines: HashMap<Key, Line> = HashMap::new();
    for (number, (path, _)) in journals.iter().enumerate() {
        let mut reader = Lines::open(path).map_err(at("read", path))?;
        while let Some((offset, line, head)) = reader.next().map_err(at("read", path))? {
            let (length, generation) = (line.len() as u32, head.generation);
            let new = Line { journal: number, offset, length, generation };
            // The oldest journal comes first, so of equal generations the first published stays.
            match lines.get_mut(&head.key) {
                None => drop(lines.insert(head.key, new)),
                Some(old) if new.generation > old.generation => *old = new,
                Some(_) => {}
            }
        }
    }
    let mut sorted: Vec<_> = lines.into_iter().collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    let mut writer = PackWriter::new(packs, sorted.len() as u64)?;
    let mut bytes = Vec::new();
    for (_, place) in &sorted {
        let (path, file) = &journals[place.journal];
        bytes.resize(place.length as usize, 0);
        file.read_exact_at(&mut bytes, place.offset).map_err(at("read", path))?;
        // Checked again: what goes bad between two readings must not end up under the name of a pack.
        if let Some(head) = line::check(&bytes) {
            writer.add(&bytes, head)?;
        }
    }
    writer.finish()?;
    for (path, _) in journals {
        fs::remove_file(path).map_err(at("remove", path))?;
    }
    Ok(())
}

/// Writes those lines of `packs` that `keep` wants into one new pack and removes the old ones.
pub(super) fn rewrite(
    folder: &Utf8Path,
    packs: &[Pack],
    mut keep: impl FnMut(Key) -> bool,
) -> Result<Option<String>, StoreError> {
    let open = |pack: &Pack| pack.lines().map_err(at("read", &pack.path()));
    let mut inputs = packs.iter().map(open).collect::<Result<Vec<Lines>, _>>()?;
    let mut writer = PackWriter::new(folder, packs.iter().map(Pack::count).sum())?;
    let mut heads: BinaryHeap<Reverse<(Key, Reverse<u32>, usize)>> = BinaryHeap::new();
    let mut current: Vec<Vec<u8>> = vec![Vec::new(); inputs.len()];
    let mut advance = |i: usize, heads: &mut BinaryHeap<_>, current: &mut Vec<Vec<u8>>| {
        if let Some((_, line, head)) = inputs[i].next().map_err(at("read", &packs[i].path()))? {
            current[i].clear();
            current[i].extend_from_slice(line);
            heads.push(Reverse((head.key, Reverse(head.generation), i)));
        }
        Ok::<(), StoreError>(())
    };
    for i in 0..packs.len() {
        advance(i, &mut heads, &mut current)?;
    }
    let mut last = None;
    while let Some(Reverse((key, _, i))) = heads.pop() {
        // A damaged index can leave a pack unsorted only where it was written so: that is a bug, not damage.
        if last < Some(key) && keep(key) {
            let head = line::check(&current[i]).expect("BUG: a whole line is no longer whole");
            writer.add(&current[i], head)?;
        }
        last = last.max(Some(key));
        advance(i, &mut heads, &mut current)?;
    }
    let name = writer.finish()?;
    for pack in packs.iter().filter(|pack| name.as_ref() != Some(&pack.name)) {
        pack::remove(folder, &pack.name);
    }
    sync_folder(folder)?;
    Ok(name)
}
