//! Collects what nothing needs. Knows nothing of where roots outside the store come from.
//!
//! Kept is what a root reaches (lock files, pins, the last results of each pipeline, kept runs, living
//! processes) and whatever is younger than the bound. It goes in two phases: blobs are moved aside, then
//! what living processes hold is read once more and given back, and only then the rest is deleted. A process
//! holds a key before it looks for it, so that it either finds it or works it out again; nothing that it has
//! found goes away under its hands.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::Utf8PathBuf;
use serde::Serialize;

use super::pack::Pack;
use super::roots::{Held, digests_in, pins};
use super::{INDEX, Scanned, Store, StoreError, at, folders, journal, seal};
use crate::digest::{Digest, Key};

/// Blobs this young may belong to a result that is still being written.
const YOUNG: Duration = Duration::from_secs(3600);
/// Keys of collected results that are remembered, to explain later misses.
const GONE_MAX: usize = 4_000_000;
/// Bytes of a key that stand for it in the list of collected ones.
const GONE_KEY: usize = 8;

/// What to keep.
#[derive(Debug, Clone)]
pub struct GcOptions {
    /// Results of the last runs, this many.
    pub keep_runs: usize,
    /// Whatever is younger, rooted or not.
    pub max_age: Duration,
    /// Bytes of all records and blobs: the oldest go until it is kept, those of kept runs too, but never
    /// what other roots need.
    pub max_size: Option<u64>,
    /// Keep nothing but what pins and living processes need.
    pub clear: bool,
    /// Only say what would go.
    pub dry_run: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        GcOptions {
            keep_runs: 10,
            max_age: Duration::from_secs(14 * 24 * 3600),
            max_size: None,
            clear: false,
            dry_run: false,
        }
    }
}

/// Roots outside the store, as texts in which digests stand: lock files of the work tree and of git.
pub type RootTexts = Vec<Vec<u8>>;

/// What was collected, or would be.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GcReport {
    /// Whether nothing was in fact removed.
    pub dry_run: bool,
    /// Records that stay, and their bytes.
    pub records_kept: u64,
    /// Records that go.
    pub records_removed: u64,
    /// Blobs that stay.
    pub blobs_kept: u64,
    /// Blobs that go.
    pub blobs_removed: u64,
    /// Run folders that go.
    pub runs_removed: u64,
    /// Bytes of records and blobs that stay.
    pub bytes_kept: u64,
    /// Bytes of records and blobs that go.
    pub bytes_removed: u64,
    /// Bytes by which the bound of the size is missed, because roots need them.
    pub bytes_over: u64,
}

/// A record as far as collecting looks at it.
struct Item {
    key: Key,
    bytes: u64,
    started_unix_ms: u64,
    run: u32,
}

/// Everything in the store.
#[derive(Default)]
struct Inventory {
    items: Vec<Item>,
    by_key: HashMap<Key, u32>,
    runs: Vec<String>,
    /// Blobs that records name: those of their values, those they are kept in, their inputs.
    blobs: HashMap<Key, Vec<Digest>>,
    /// Tables whose rows name further records.
    tables: HashMap<Key, Digest>,
    /// Bytes and time of change of every blob file.
    files: HashMap<Digest, (u64, u64)>,
}

/// What stays.
#[derive(Default)]
struct Marked {
    keys: HashSet<Key>,
    blobs: HashSet<Digest>,
}

impl Store {
    /// Collects garbage. Another collector at work is an error; writers and readers go on meanwhile.
    pub fn collect(&self, options: &GcOptions, texts: &RootTexts) -> Result<GcReport, StoreError> {
        let marker = self.root.join("store.toml");
        let lock = File::open(&marker).map_err(at("read", &marker))?;
        lock.try_lock().map_err(|_| StoreError::Busy)?;
        self.give_back_all()?;
        self.pack()?;
        let inventory = self.inventory()?;
        let now = unix_ms(SystemTime::now());
        let roots = self.roots(options, texts);
        let horizon = now.saturating_sub(millis(options.max_age));
        let young = |item: &Item, kept: &HashSet<u32>, cutoff: u64| {
            item.started_unix_ms >= cutoff.max(horizon)
                || (kept.contains(&item.run) && item.started_unix_ms >= cutoff)
        };
        let kept_runs = self.kept_runs(options, &inventory);
        let runs = self.run_roots(options);
        let keep = |cutoff| {
            let recent = runs.iter().filter(|(began, _)| *began >= cutoff);
            let roots: Vec<_> =
                roots.iter().chain(recent.flat_map(|(_, roots)| roots)).copied().collect();
            self.mark(&inventory, &roots, |item| young(item, &kept_runs, cutoff))
        };
        let all = keep(0);
        let (marked, over, pressed) = match options.max_size {
            Some(max) if inventory.bytes_of(&all) > max => {
                let (marked, over) = within(max, &inventory, now, keep);
                (marked, over, true)
            }
            _ => (all, 0, false),
        };
        let young = match options.clear {
            true => Duration::ZERO,
            false if pressed => YOUNG,
            false => options.max_age.max(YOUNG),
        };
        let cutoff_blobs = now.saturating_sub(millis(young));
        let mut report =
            GcReport { dry_run: options.dry_run, bytes_over: over, ..Default::default() };
        let dead = inventory.dead(&marked, cutoff_blobs, self.held_since(), &mut report);
        let old_runs = self.old_runs(options, horizon);
        report.runs_removed = old_runs.len() as u64;
        if options.dry_run {
            return Ok(report);
        }
        self.remove_records(&inventory, &marked)?;
        self.remove_blobs(&inventory, dead, now)?;
        for run in old_runs {
            let _ = fs::remove_dir_all(self.root.join("runs").join(run));
        }
        self.index.write().expect(INDEX).refresh();
        Ok(report)
    }

    /// When a result was collected, if it was, in milliseconds since 1970.
    pub fn collected(&self, key: Key) -> Option<u64> {
        let folder = self.root.join("gone");
        let wanted = &key.bytes()[..GONE_KEY];
        journal::names(&folder, ".keys").ok()?.iter().rev().find_map(|name| {
            let file = File::open(folder.join(name)).ok()?;
            let (mut low, mut high) = (0, file.metadata().ok()?.len() / GONE_KEY as u64);
            let mut key = [0; GONE_KEY];
            while low < high {
                let middle = u64::midpoint(low, high);
                file.read_exact_at(&mut key, middle * GONE_KEY as u64).ok()?;
                match key.as_slice().cmp(wanted) {
                    Ordering::Less => low = middle + 1,
                    Ordering::Equal => break,
                    Ordering::Greater => high = middle,
                }
            }
            if low == high {
                return None;
            }
            let ulid = name.strip_suffix(".keys").and_then(|n| ulid::Ulid::from_string(n).ok())?;
            Some(ulid.timestamp_ms())
        })
    }

    fn inventory(&self) -> Result<Inventory, StoreError> {
        let mut inventory = Inventory::default();
        let mut runs: HashMap<String, u32> = HashMap::new();
        self.each(|Scanned { key, bytes, kept_in, record }| {
            let started_unix_ms = record.witness.started_unix_ms;
            let next = runs.len() as u32;
            let run = *runs.entry(record.witness.run.clone()).or_insert(next);
            let mut blobs: Vec<Digest> = record.blobs().collect();
            if let Some(table) = record.blob("samples") {
                inventory.tables.insert(key, table);
            }
            if !blobs.is_empty() {
                blobs.extend(record.recipe.inputs.values());
            }
            blobs.extend(kept_in);
            if !blobs.is_empty() {
                inventory.blobs.insert(key, blobs);
            }
            inventory.by_key.insert(key, inventory.items.len() as u32);
            inventory.items.push(Item { key, bytes, started_unix_ms, run });
        });
        let mut names = vec![String::new(); runs.len()];
        runs.into_iter().for_each(|(name, i)| names[i as usize] = name);
        inventory.runs = names;
        self.blobs.each(|digest, meta| {
            let changed = meta.modified().map_or(0, unix_ms);
            inventory.files.insert(digest, (meta.len(), changed));
        })?;
        Ok(inventory)
    }

    /// Texts in which what must stay is named.
    fn roots(&self, options: &GcOptions, texts: &RootTexts) -> Vec<[u8; 32]> {
        let mut roots = Held::read(&self.root).digests;
        for (_, text) in pins(&self.root) {
            roots.extend(digests_in(&text));
        }
        if options.clear {
            return roots;
        }
        roots.extend(texts.iter().flat_map(|text| digests_in(text)));
        let last = self.root.join("last");
        for name in journal::names(&last, ".json").unwrap_or_default() {
            roots.extend(digests_in(&fs::read(last.join(name)).unwrap_or_default()));
        }
        roots
    }

    /// What the last runs name, and when they began.
    fn run_roots(&self, options: &GcOptions) -> Vec<(u64, Vec<[u8; 32]>)> {
        let runs = self.runs();
        let last = runs.iter().rev().take(options.keep_runs);
        let roots = |run: &String| {
            let began = ulid::Ulid::from_string(run).map_or(0, |ulid| ulid.timestamp_ms());
            (began, digests_in(&self.run_texts(run).unwrap_or_default()).collect())
        };
        last.map(roots).collect()
    }

    /// Runs whose every record stays: the last ones, living ones, pinned ones.
    fn kept_runs(&self, options: &GcOptions, inventory: &Inventory) -> HashSet<u32> {
        let mut names: HashSet<String> = Held::read(&self.root).runs.into_iter().collect();
        names.extend(self.runs().into_iter().rev().take(options.keep_runs));
        names.extend(pins(&self.root).into_iter().map(|(name, _)| name));
        let kept = inventory.runs.iter().enumerate().filter(|(_, name)| names.contains(*name));
        kept.map(|(i, _)| i as u32).collect()
    }

    fn old_runs(&self, options: &GcOptions, horizon: u64) -> Vec<String> {
        let mut runs = self.runs();
        runs.truncate(runs.len().saturating_sub(options.keep_runs));
        let living = Held::read(&self.root).runs;
        let pinned: Vec<String> = pins(&self.root).into_iter().map(|(name, _)| name).collect();
        runs.retain(|run| {
            let began = ulid::Ulid::from_string(run).map_or(u64::MAX, |ulid| ulid.timestamp_ms());
            began < horizon && !living.contains(run) && !pinned.contains(run)
        });
        runs
    }

    fn held_since(&self) -> u64 {
        Held::read(&self.root).since_unix_ms.unwrap_or(u64::MAX)
    }

    /// Everything that roots and wanted records reach.
    fn mark(
        &self,
        inventory: &Inventory,
        roots: &[[u8; 32]],
        wanted: impl Fn(&Item) -> bool,
    ) -> Marked {
        let mut marked = Marked::default();
        marked.blobs.extend(roots.iter().map(|root| Digest::from_bytes(*root)));
        let mut open: Vec<Key> = roots.iter().map(|root| Key::from_bytes(*root)).collect();
        open.extend(inventory.items.iter().filter(|item| wanted(item)).map(|item| item.key));
        while let Some(key) = open.pop() {
            if !inventory.by_key.contains_key(&key) || !marked.keys.insert(key) {
                continue;
            }
            marked.blobs.extend(inventory.blobs.get(&key).into_iter().flatten());
            if let Some(rows) = inventory.tables.get(&key).and_then(|table| self.blob(*table)) {
                open.extend(digests_in(&rows).map(Key::from_bytes));
            }
        }
        marked
    }

    /// Rewrites packs without the dead, after those that living processes have asked for meanwhile.
    fn remove_records(&self, inventory: &Inventory, marked: &Marked) -> Result<(), StoreError> {
        let held = self.mark(inventory, &Held::read(&self.root).digests, |_| false);
        // Lines of live journals, and those that came after the inventory, are in no pack that it knows.
        let stays = |key: Key| {
            marked.keys.contains(&key)
                || held.keys.contains(&key)
                || !inventory.by_key.contains_key(&key)
        };
        let gone: Vec<Key> =
            inventory.items.iter().map(|item| item.key).filter(|key| !stays(*key)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        self.write_gone(&gone)?;
        let packs = folders(&self.root).packs;
        let names = super::pack::list(&packs).map_err(at("read", &packs))?;
        let open = |name: &String| Pack::open(&packs, name).ok();
        let packs_with_dead: Vec<Pack> = names.iter().filter_map(open).collect();
        // Another process is merging: its pack is collected the next time.
        if packs_with_dead.iter().any(|pack| pack.file().try_lock().is_err()) {
            return Ok(());
        }
        seal::rewrite(&packs, &packs_with_dead, stays)?;
        Ok(())
    }

    /// Remembers which keys went, so that a later miss can say why. One file; the oldest are forgotten first.
    fn write_gone(&self, gone: &[Key]) -> Result<(), StoreError> {
        let folder = self.root.join("gone");
        fs::create_dir_all(&folder).map_err(at("create", &folder))?;
        let mut keys: Vec<&[u8]> = gone.iter().map(|key| &key.bytes()[..GONE_KEY]).collect();
        keys.sort_unstable();
        let path = folder.join(format!("{}.keys", ulid::Ulid::new()));
        super::blob::replace(&path, &keys.concat())?;
        let mut names = journal::names(&folder, ".keys").map_err(at("read", &folder))?;
        let bytes = |name: &String| fs::metadata(folder.join(name)).map_or(0, |meta| meta.len());
        while names.len() > 1 && names.iter().map(bytes).sum::<u64>() > (GONE_MAX * GONE_KEY) as u64
        {
            let _ = fs::remove_file(folder.join(names.remove(0)));
        }
        Ok(())
    }

    fn trash(&self) -> Utf8PathBuf {
        self.root.join("trash")
    }

    /// Moves dead blobs aside, gives back what is wanted after all, deletes the rest.
    fn remove_blobs(
        &self,
        inventory: &Inventory,
        dead: Vec<Digest>,
        began_unix_ms: u64,
    ) -> Result<(), StoreError> {
        let trash = self.trash();
        fs::create_dir_all(&trash).map_err(at("create", &trash))?;
        for digest in &dead {
            let _ = fs::rename(self.blobs.path(*digest), trash.join(digest.to_string()));
        }
        let held = Held::read(&self.root);
        let wanted = self.mark(inventory, &held.digests, |_| false);
        for digest in &dead {
            let aside = trash.join(digest.to_string());
            let meta = fs::metadata(&aside).and_then(|meta| meta.modified());
            let touched = meta.is_ok_and(|changed| unix_ms(changed) >= began_unix_ms);
            if touched || wanted.blobs.contains(digest) {
                let _ = fs::rename(&aside, self.blobs.path(*digest));
            } else {
                let _ = fs::remove_file(&aside);
            }
        }
        Ok(())
    }

    /// What a collector that was killed had moved aside.
    fn give_back_all(&self) -> Result<(), StoreError> {
        for name in journal::names(&self.trash(), "").map_err(at("read", &self.trash()))? {
            if let Ok(digest) = name.parse::<Digest>() {
                let path = self.blobs.path(digest);
                fs::create_dir_all(path.parent().unwrap_or(&self.root))
                    .map_err(at("create", &path))?;
                let _ = fs::rename(self.trash().join(name), path);
            }
        }
        Ok(())
    }
}

impl Inventory {
    /// Blobs that go; counts what goes and stays.
    fn dead(
        &self,
        marked: &Marked,
        cutoff: u64,
        held_since: u64,
        report: &mut GcReport,
    ) -> Vec<Digest> {
        for item in &self.items {
            let stays = marked.keys.contains(&item.key);
            *(if stays { &mut report.records_kept } else { &mut report.records_removed }) += 1;
            *(if stays { &mut report.bytes_kept } else { &mut report.bytes_removed }) += item.bytes;
        }
        let mut dead = Vec::new();
        for (digest, (bytes, changed)) in &self.files {
            let stays = marked.blobs.contains(digest) || *changed >= cutoff.min(held_since);
            *(if stays { &mut report.blobs_kept } else { &mut report.blobs_removed }) += 1;
            *(if stays { &mut report.bytes_kept } else { &mut report.bytes_removed }) += bytes;
            if !stays {
                dead.push(*digest);
            }
        }
        dead.sort();
        dead
    }

    fn bytes_of(&self, marked: &Marked) -> u64 {
        let records = self.items.iter().filter(|item| marked.keys.contains(&item.key));
        let blobs = marked.blobs.iter().filter_map(|digest| self.files.get(digest));
        records.map(|item| item.bytes).sum::<u64>() + blobs.map(|(bytes, _)| bytes).sum::<u64>()
    }
}

/// The most that fits: everything unrooted before some time goes, and that time is found by halving. Gives
/// also by how many bytes the rooted part alone is too large.
fn within(
    max: u64,
    inventory: &Inventory,
    now: u64,
    keep: impl Fn(u64) -> Marked,
) -> (Marked, u64) {
    let mut times: Vec<u64> = inventory.items.iter().map(|item| item.started_unix_ms).collect();
    times.push(now + 1);
    times.sort_unstable();
    times.dedup();
    let fits = |cutoff: &u64| inventory.bytes_of(&keep(*cutoff)) <= max;
    let first = times.partition_point(|cutoff| !fits(cutoff)).min(times.len() - 1);
    let marked = keep(times[first]);
    let over = inventory.bytes_of(&marked).saturating_sub(max);
    (marked, over)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| millis(since))
}
