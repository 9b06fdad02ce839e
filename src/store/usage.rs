//! How much of what there is. Knows nothing of what could go.

use std::collections::{BTreeMap, HashSet};
use std::fs;

use camino::Utf8Path;
use serde::Serialize;

use super::journal::{self, ENDING, INDEX_ENDING};
use super::{Scanned, Store, StoreError, at, folders};
use crate::digest::Digest;

/// How many and how large.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// The files of a store.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StoreStat {
    /// Different keys.
    pub records: u64,
    /// Logs that are not sealed yet.
    pub journals: Amount,
    /// Packs without their indexes.
    pub packs: Amount,
    /// Indexes of packs, and of journals that have ended.
    pub indexes: Amount,
    /// Blobs.
    pub blobs: Amount,
    /// Run folders and their files.
    pub runs: Amount,
    /// Names of pins.
    pub pins: Vec<String>,
}

/// What the bytes are for.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StoreUsage {
    /// Lines of records by kind: `request`, `sample`, and the kinds of stages.
    pub records: BTreeMap<String, Amount>,
    /// Blobs by the kind of the record that first names them; `inputs` are files that stages read, `other`
    /// are named by no record (recipes, edited outputs, what interrupted runs left).
    pub blobs: BTreeMap<String, Amount>,
    /// Lines of records by the run that made them.
    pub runs: BTreeMap<String, Amount>,
}

impl Store {
    /// Counts files: quick, however much is in them.
    pub fn stat(&self) -> Result<StoreStat, StoreError> {
        let folders = folders(&self.root);
        let mut stat = StoreStat {
            records: self.keys()?.len() as u64,
            pins: self.pins()?.into_iter().map(|(name, _)| name).collect(),
            ..StoreStat::default()
        };
        let count = |folder: &Utf8Path, ending, amount: &mut Amount| {
            for name in journal::names(folder, ending).map_err(at("read", folder))? {
                amount.add(fs::metadata(folder.join(name)).map_or(0, |meta| meta.len()));
            }
            Ok::<_, StoreError>(())
        };
        count(&folders.journals, ENDING, &mut stat.journals)?;
        count(&folders.packs, ".pack", &mut stat.packs)?;
        count(&folders.journals, INDEX_ENDING, &mut stat.indexes)?;
        count(&folders.packs, ".idx", &mut stat.indexes)?;
        self.blobs.each(|_, meta| stat.blobs.add(meta.len()))?;
        for run in self.runs() {
            stat.runs.count += 1;
            let folder = self.root.join("runs").join(run);
            for name in journal::names(&folder, "").unwrap_or_default() {
                stat.runs.bytes += fs::metadata(folder.join(name)).map_or(0, |meta| meta.len());
            }
        }
        Ok(stat)
    }

    /// Says what the bytes are for: reads every record.
    pub fn usage(&self) -> Result<StoreUsage, StoreError> {
        let mut usage = StoreUsage::default();
        let mut sizes: BTreeMap<Digest, u64> = BTreeMap::new();
        self.blobs.each(|digest, meta| {
            sizes.insert(digest, meta.len());
        })?;
        let mut inputs: HashSet<Digest> = HashSet::new();
        self.each(|Scanned { bytes, kept_in, record, .. }| {
            let kind = record.recipe.kind.to_string();
            usage.records.entry(kind.clone()).or_default().add(bytes);
            usage.runs.entry(record.witness.run.clone()).or_default().add(bytes);
            for digest in record.blobs().chain(kept_in) {
                if let Some(bytes) = sizes.remove(&digest) {
                    usage.blobs.entry(kind.clone()).or_default().add(bytes);
                }
            }
            inputs.extend(record.recipe.inputs.values());
        })?;
        for (digest, bytes) in sizes {
            let class = if inputs.contains(&digest) { "inputs" } else { "other" };
            usage.blobs.entry(class.to_owned()).or_default().add(bytes);
        }
        Ok(usage)
    }
}
