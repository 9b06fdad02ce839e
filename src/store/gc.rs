//! Collects what nothing needs. Knows nothing of where roots outside the store come from.
//!
//! Kept is what a root reaches (lock files, pins, the last results of each pipeline, kept runs, living
//! processes) and whatever is younger than the bound. It goes in two phases: blobs are moved aside, then
//! what living processes hold is read once more and given back, and only then the rest is deleted. A process
//! holds the key of a stage before it looks for it, and the runs whose answers it takes before it relies on
//! them, so that it either finds them or works them out again; nothing that it has found goes away under its
//! hands.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::Utf8PathBuf;
use serde::Serialize;

use super::pack::Pack;
use super::roots::{Held, digests_in, pins, read_if_there, runs_in};
use super::{INDEX, Scanned, Store, StoreError, at, folders, journal, seal};
use crate::digest::{Digest, Key};

/// Blobs this young may belong to a result that is still being written.
const YOUNG: Duration = Duration::from_secs(3600);
/// How often it is tried to get at packs that another process is merging, and the pause between.
const MERGING_MAX: u32 = 100;
const MERGING_PAUSE: Duration = Duration::from_millis(100);
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
    /// Collects garbage. Another collector at work is an error; writers and readers go on meanwhile. A root that
    /// cannot be read is one as well: what it names must stay.
    pub fn collect(&self, options: &GcOptions, texts: &RootTexts) -> Result<GcReport, StoreError> {
        let _lock = self.lock()?;
        self.give_back_all()?;
        self.pack()?;
        let inventory = self.inventory()?;
        let now = unix_ms(SystemTime::now());
        let horizon = now.saturating_sub(millis(options.max_age));
        let roots = self.roots(options, texts)?;
        let firm = self.firm_runs(&inventory)?;
        let runs = self.run_roots(options);
        let recent = inventory.numbers_of(&runs.iter().map(|(run, ..)| run.clone()).collect());
        let keep = |cutoff: u64| {
            let of_runs = runs.iter().filter(|(_, began, _)| *began >= cutoff);
            let roots: Vec<_> =
                roots.iter().chain(of_runs.flat_map(|(.., roots)| roots)).copied().collect();
            self.mark(&inventory, &roots, |item| {
                firm.contains(&item.run)
                    || (item.started_unix_ms >= cutoff
                        && (item.started_unix_ms >= horizon || recent.contains(&item.run)))
            })
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
        let held_since = Held::read(&self.root)?.since_unix_ms.unwrap_or(u64::MAX);
        let mut report =
            GcReport { dry_run: options.dry_run, bytes_over: over, ..Default::default() };
        // Lines of journals whose processes live stay where they are.
        let dead_records: HashSet<Key> = {
            let index = self.index.read().expect(INDEX);
            let gone = |key: &Key| !marked.keys.contains(key) && !index.in_journal(*key);
            inventory.items.iter().map(|item| item.key).filter(gone).collect()
        };
        let dead =
            inventory.dead(&marked, &dead_records, cutoff_blobs.min(held_since), &mut report);
        let old_runs = self.old_runs(options, horizon)?;
        report.runs_removed = old_runs.len() as u64;
        if options.dry_run {
            return Ok(report);
        }
        let mut attempts = 1;
        while !self.remove_records(&inventory, dead_records.clone())? {
            if attempts == MERGING_MAX {
                return Err(StoreError::Busy);
            }
            attempts += 1;
            std::thread::sleep(MERGING_PAUSE);
        }
        self.remove_blobs(&inventory, dead)?;
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
        })?;
        let mut names = vec![String::new(); runs.len()];
        runs.into_iter().for_each(|(name, i)| names[i as usize] = name);
        inventory.runs = names;
        self.blobs.each(|digest, meta| {
            let changed = meta.modified().map_or(0, unix_ms);
            inventory.files.insert(digest, (meta.len(), changed));
        })?;
        Ok(inventory)
    }

    /// What is named by texts that keep it: locks, pins, the last results, living processes.
    fn roots(&self, options: &GcOptions, texts: &RootTexts) -> Result<Vec<[u8; 32]>, StoreError> {
        let mut roots = Held::read(&self.root)?.digests;
        for (_, text) in pins(&self.root)? {
            roots.extend(digests_in(&text));
            // A run that was pinned while it ran names more by now.
            let texts = runs_in(&text).into_iter().filter_map(|run| self.run_texts(&run));
            texts.for_each(|text| roots.extend(digests_in(&text)));
        }
        if options.clear {
            return Ok(roots);
        }
        roots.extend(texts.iter().flat_map(|text| digests_in(text)));
        let last = self.root.join("last");
        for name in journal::names(&last, ".json").map_err(at("read", &last))? {
            let text = read_if_there(&last.join(name))?.unwrap_or_default();
            roots.extend(digests_in(&text));
        }
        // The result of a workflow is a table that names its samples and requests: also where the record of the
        // workflow is damaged, so that what it was made of is still there.
        let tables = roots.iter().map(|root| Digest::from_bytes(*root));
        let tables: Vec<Digest> = tables.filter(|table| self.blobs.path(*table).exists()).collect();
        for table in tables {
            roots.extend(digests_in(&self.blob(table).unwrap_or_default()));
        }
        Ok(roots)
    }

    /// The last runs, when they began, and what they name.
    fn run_roots(&self, options: &GcOptions) -> Vec<(String, u64, Vec<[u8; 32]>)> {
        let runs = self.runs();
        let last = runs.into_iter().rev().take(options.keep_runs);
        let roots = |run: String| {
            let began = ulid::Ulid::from_string(&run).map_or(0, |ulid| ulid.timestamp_ms());
            let roots = digests_in(&self.run_texts(&run).unwrap_or_default()).collect();
            (run, began, roots)
        };
        last.map(roots).collect()
    }

    /// Runs that live or are pinned: everything that they have made stays, whatever the bounds.
    fn firm_runs(&self, inventory: &Inventory) -> Result<HashSet<u32>, StoreError> {
        Ok(inventory.numbers_of(&self.firm_run_names()?))
    }

    fn firm_run_names(&self) -> Result<HashSet<String>, StoreError> {
        let mut names: HashSet<String> = Held::read(&self.root)?.runs.into_iter().collect();
        names.extend(pins(&self.root)?.iter().flat_map(|(_, text)| runs_in(text)));
        Ok(names)
    }

    fn old_runs(&self, options: &GcOptions, horizon: u64) -> Result<Vec<String>, StoreError> {
        let mut runs = self.runs();
        runs.truncate(runs.len().saturating_sub(options.keep_runs));
        let firm = self.firm_run_names()?;
        runs.retain(|run| {
            let began = ulid::Ulid::from_string(run).map_or(u64::MAX, |ulid| ulid.timestamp_ms());
            began < horizon && !firm.contains(run)
        });
        Ok(runs)
    }

    /// Everything that living processes hold now.
    fn held(&self, inventory: &Inventory) -> Result<Marked, StoreError> {
        let held = Held::read(&self.root)?;
        let runs = inventory.numbers_of(&held.runs.into_iter().collect());
        Ok(self.mark(inventory, &held.digests, |item| runs.contains(&item.run)))
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
            let Some(table) = inventory.tables.get(&key) else { continue };
            match self.blob(*table) {
                Some(rows) => open.extend(digests_in(&rows).map(Key::from_bytes)),
                // Without its table, what its run has made is what it can be made of again.
                None => {
                    let run = inventory.items[inventory.by_key[&key] as usize].run;
                    let of_run = inventory.items.iter().filter(|item| item.run == run);
                    open.extend(of_run.map(|item| item.key));
                }
            }
        }
        marked
    }

    /// Rewrites packs without the dead; `false` where another process is at one of them. What living processes
    /// have asked for by the time the new pack is there stays after all.
    fn remove_records(
        &self,
        inventory: &Inventory,
        mut dead: HashSet<Key>,
    ) -> Result<bool, StoreError> {
        let held = |dead: &HashSet<Key>| -> Result<Vec<Key>, StoreError> {
            let held = self.held(inventory)?;
            Ok(held.keys.into_iter().filter(|key| dead.contains(key)).collect())
        };
        for key in held(&dead)? {
            dead.remove(&key);
        }
        if dead.is_empty() {
            return Ok(true);
        }
        let folder = folders(&self.root).packs;
        let names = super::pack::list(&folder).map_err(at("read", &folder))?;
        let open = |name: &String| Pack::open(&folder, name).map_err(at("read", &folder));
        let packs = names.iter().map(open).collect::<Result<Vec<Pack>, _>>()?;
        if !packs.iter().all(Pack::claim) {
            return Ok(false);
        }
        let mut made = Vec::new();
        made.extend(seal::rewrite(&folder, &packs, |key| !dead.contains(&key))?);
        let late = held(&dead)?;
        for key in &late {
            dead.remove(key);
        }
        if !late.is_empty() {
            made.extend(seal::rewrite(&folder, &packs, |key| late.contains(&key))?);
        }
        for pack in packs.iter().filter(|pack| !made.contains(&pack.name)) {
            super::pack::remove(&folder, &pack.name);
        }
        super::blob::sync_folder(&folder)?;
        self.write_gone(&dead)?;
        Ok(true)
    }

    /// Remembers which keys went, so that a later miss can say why. One file; the oldest are forgotten first.
    fn write_gone(&self, gone: &HashSet<Key>) -> Result<(), StoreError> {
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
    fn remove_blobs(&self, inventory: &Inventory, dead: Vec<Digest>) -> Result<(), StoreError> {
        let trash = self.trash();
        fs::create_dir_all(&trash).map_err(at("create", &trash))?;
        for digest in &dead {
            let _ = fs::rename(self.blobs.path(*digest), trash.join(digest.to_string()));
        }
        let mut aside: Vec<Digest> = dead;
        loop {
            let wanted = self.held(inventory)?;
            let before = aside.len();
            aside.retain(|digest| {
                let path = trash.join(digest.to_string());
                let changed = fs::metadata(&path).and_then(|meta| meta.modified());
                // Somebody has relied upon it since it was counted.
                let known = inventory.files.get(digest).map(|(_, changed)| *changed);
                let touched = changed.is_ok_and(|changed| Some(unix_ms(changed)) != known);
                let back = touched || wanted.blobs.contains(digest);
                if back {
                    let _ = fs::rename(&path, self.blobs.path(*digest));
                }
                !back
            });
            // A table that is back may name more that is wanted.
            if aside.len() == before {
                break;
            }
        }
        for digest in aside {
            let _ = fs::remove_file(trash.join(digest.to_string()));
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
    fn numbers_of(&self, names: &HashSet<String>) -> HashSet<u32> {
        let runs = self.runs.iter().enumerate();
        runs.filter(|(_, name)| names.contains(*name)).map(|(i, _)| i as u32).collect()
    }

    /// Blobs that go; counts what goes and stays.
    fn dead(
        &self,
        marked: &Marked,
        records: &HashSet<Key>,
        cutoff: u64,
        report: &mut GcReport,
    ) -> Vec<Digest> {
        for item in &self.items {
            let stays = !records.contains(&item.key);
            *(if stays { &mut report.records_kept } else { &mut report.records_removed }) += 1;
            *(if stays { &mut report.bytes_kept } else { &mut report.bytes_removed }) += item.bytes;
        }
        let mut dead = Vec::new();
        for (digest, (bytes, changed)) in &self.files {
            let stays = marked.blobs.contains(digest) || *changed >= cutoff;
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
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}
