//! The local store with a shared one behind it: what is not here is fetched and kept, what is new here is
//! shared. Knows nothing of protocols.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::line;
use super::record::{Kept, write_kept};
use super::remote::{Remote, RemoteError};
use super::{INDEX, Record, Scanned, Store, StoreError, Transferred};
use crate::digest::{Digest, Key};
use crate::record::ServedFrom;

/// Objects on their way at once, when many are moved.
const AT_ONCE: usize = 32;

/// Where a record was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// In this store.
    Disk,
    /// In the shared one.
    Remote,
}

impl From<Tier> for ServedFrom {
    fn from(tier: Tier) -> ServedFrom {
        match tier {
            Tier::Disk => ServedFrom::Disk,
            Tier::Remote => ServedFrom::Remote,
        }
    }
}

/// What sharing came to in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shared {
    /// Where.
    pub url: String,
    /// Objects read.
    pub read: u64,
    /// Objects written.
    pub written: u64,
    /// Results that are in the local store only.
    pub unsent: u64,
    /// Why.
    pub error: Option<String>,
    /// Results that others have shared meanwhile, and that are not the same here: ours stay as they are, for
    /// more was made of them, and what was is not shared.
    pub conflicts: u64,
}

/// What is new here and could not be shared yet.
#[derive(Default)]
pub(super) struct Sharing {
    remote: Option<Arc<Remote>>,
    unsent: BTreeSet<(Key, bool)>,
}

impl Store {
    /// Puts a shared store behind this one.
    pub fn attach(&self, remote: Remote) {
        self.sharing().remote = Some(Arc::new(remote));
    }

    fn sharing(&self) -> std::sync::MutexGuard<'_, Sharing> {
        self.sharing.lock().expect("BUG: the sharing lock is poisoned")
    }

    fn remote(&self) -> Option<Arc<Remote>> {
        self.sharing().remote.clone()
    }

    /// The record of a key, from here or from the shared store; one of there is kept here.
    pub async fn find(&self, key: Key) -> Option<(Record, Tier)> {
        if let Some(record) = self.get(key) {
            // Everything of the run that made it stays while this one goes on: what it names must still be
            // there when it ends. What was found just before may have gone just before, too.
            if !self.hold.add_run(&record.witness.run) || self.is_still_there(key) {
                return Some((record, Tier::Disk));
            }
        }
        let remote = self.remote()?;
        // That it does not answer is told by its breaker: here it is a miss.
        let record = proved(key, &remote.record(key).await.ok()??)?;
        // A local store that is full is no reason to do without what was found.
        let record = self.put(record.clone(), false).unwrap_or(record);
        Some((record, Tier::Remote))
    }

    fn is_still_there(&self, key: Key) -> bool {
        self.index.write().expect(INDEX).refresh();
        self.get(key).is_some()
    }

    /// Fetches those blobs of a record that are not here, if the shared store has them.
    pub async fn find_blobs(&self, record: &Record) {
        let Some(remote) = self.remote() else { return };
        for digest in record.blobs().filter(|digest| !self.has_blob(*digest)) {
            if let Ok(Some(bytes)) = remote.blob(digest).await
                && Digest::of(&bytes) == digest
            {
                let _ = self.put_blob(&bytes);
            }
        }
    }

    /// Remembers a record here and in the shared store, and gives back the one that counts: of two that were
    /// made at once, the one that was shared first. `key` is that of its recipe.
    pub async fn publish(
        &self,
        key: Key,
        record: Record,
        supersede: bool,
    ) -> Result<Record, StoreError> {
        let (record, place) = self.add(key, record, supersede)?;
        // Those that are ready as well add their lines first: all go to the operating system at once.
        tokio::task::yield_now().await;
        self.write_until(place)?;
        self.share(key, record, supersede).await
    }

    /// The same of what is made of other records in no time: it is written together with what comes next, or with the
    /// next sync, 200 ms after the one before. A kill of the process may take that much of it.
    pub async fn publish_derived(
        &self,
        key: Key,
        record: Record,
        supersede: bool,
    ) -> Result<Record, StoreError> {
        let (record, _) = self.add(key, record, supersede)?;
        self.share(key, record, supersede).await
    }

    async fn share(&self, key: Key, record: Record, supersede: bool) -> Result<Record, StoreError> {
        let Some(remote) = self.remote().filter(|remote| remote.may_write()) else {
            return Ok(record);
        };
        match self.send(&remote, key, &record, supersede).await {
            Ok(None) => Ok(record),
            Ok(Some(winner)) if winner.outcome == record.outcome => Ok(record),
            Ok(Some(winner)) => self.put(winner, true),
            // Told by the breaker, and tried again at the end.
            Err(_) => {
                self.sharing().unsent.insert((key, supersede));
                Ok(record)
            }
        }
    }

    /// Sends a record with its blobs. Gives the record of somebody who was quicker.
    async fn send(
        &self,
        remote: &Remote,
        key: Key,
        record: &Record,
        supersede: bool,
    ) -> Result<Option<Record>, RemoteError> {
        // Blobs first: a record must not name what is not there.
        for digest in record.blobs() {
            if let Some(bytes) = self.blob(digest) {
                remote.put_blob(digest, bytes).await?;
            }
        }
        let (line, _) = line::encode(key, 0, |out| write_kept(record, out));
        let proves = |line: &[u8]| proved(key, line).is_some();
        let winner = remote.put_record(key, line, supersede, proves).await?;
        Ok(winner.and_then(|line| proved(key, &line)))
    }

    /// Sends what could not be sent while it was made; what still cannot is counted. `None` where nothing is
    /// shared. `progress` gets the results done so far.
    pub async fn settle(&self, progress: &(dyn Fn(u64) + Sync)) -> Option<Shared> {
        let remote = self.remote()?;
        let unsent = std::mem::take(&mut self.sharing().unsent);
        if !unsent.is_empty() {
            remote.close_breaker();
        }
        // Requests before the samples and stages that are made of them.
        let mut levels: BTreeMap<u8, Vec<(Key, bool, Record)>> = BTreeMap::new();
        for (key, supersede) in unsent {
            let Some(record) = self.get(key) else { continue };
            let level = match &*record.recipe.kind {
                "request" => 0,
                "sample" => 1,
                _ => 2,
            };
            levels.entry(level).or_default().push((key, supersede, record));
        }
        let (mut error, mut conflicts, mut done) = (None, 0, 0);
        let mut left = BTreeSet::new();
        for records in levels.into_values() {
            if error.is_some() || conflicts > 0 {
                left.extend(records.into_iter().map(|(key, supersede, _)| (key, supersede)));
                continue;
            }
            let remote = &remote;
            let sending = records.into_iter().map(|(key, supersede, record)| async move {
                let sent = self.send(remote, key, &record, supersede).await;
                (
                    key,
                    supersede,
                    sent.map(|winner| winner.is_some_and(|w| w.outcome != record.outcome)),
                )
            });
            let mut sending = stream::iter(sending).buffer_unordered(AT_ONCE);
            while let Some((key, supersede, sent)) = sending.next().await {
                match sent {
                    Ok(true) => conflicts += 1,
                    Ok(false) => {
                        done += 1;
                        progress(done);
                    }
                    Err(failed) => {
                        error.get_or_insert_with(|| failed.to_string());
                        left.insert((key, supersede));
                    }
                }
            }
        }
        let (read, written) = remote.counts();
        let unsent = left.len() as u64;
        self.sharing().unsent = left;
        Some(Shared { url: remote.url().to_owned(), read, written, unsent, error, conflicts })
    }

    /// Shares everything that `text` reaches, or everything. With `replace`, ours count instead of those that are
    /// there. `progress` gets the objects done so far.
    pub async fn push(
        &self,
        remote: &Remote,
        text: Option<&[u8]>,
        replace: bool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Transferred, RemoteError> {
        let failed = |error: StoreError| RemoteError::Outage(error.to_string());
        let (keys, blobs) = self.closure(text).map_err(failed)?;
        let (there_keys, there_blobs) = remote.list().await?;
        let mut moved = Transferred::default();
        let done = std::sync::atomic::AtomicU64::new(0);
        let tick = || progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
        let missing = blobs.iter().filter(|digest| there_blobs.binary_search(digest).is_err());
        let sending = missing.map(|digest| async {
            let Some(bytes) = self.blob(*digest) else { return Ok(None) };
            let length = bytes.len() as u64;
            remote.put_blob(*digest, bytes).await?;
            tick();
            Ok(Some(length))
        });
        let mut sending = stream::iter(sending).buffer_unordered(AT_ONCE);
        while let Some(sent) = sending.next().await {
            match sent? {
                Some(bytes) => (moved.blobs, moved.bytes) = (moved.blobs + 1, moved.bytes + bytes),
                None => moved.damaged += 1,
            }
        }
        drop(sending);
        let missing = keys.iter().filter(|key| replace || there_keys.binary_search(key).is_err());
        let sending = missing.map(|key| async {
            let Some(Scanned { record, bytes, .. }) = self.look(*key) else { return Ok(None) };
            let (line, _) = line::encode(*key, 0, |out| write_kept(&record, out));
            let proves = |line: &[u8]| proved(*key, line).is_some();
            remote.put_record(*key, line, replace, proves).await?;
            tick();
            Ok(Some(bytes))
        });
        let mut sending = stream::iter(sending).buffer_unordered(AT_ONCE);
        while let Some(sent) = sending.next().await {
            match sent? {
                Some(bytes) => {
                    (moved.records, moved.bytes) = (moved.records + 1, moved.bytes + bytes);
                }
                None => moved.damaged += 1,
            }
        }
        let all = (keys.len() + blobs.len()) as u64;
        moved.present = all - moved.records - moved.blobs - moved.damaged;
        Ok(moved)
    }

    /// Takes in everything of a shared store. `progress` gets the objects done so far.
    pub async fn pull(
        &self,
        remote: &Remote,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Transferred, RemoteError> {
        let failed = |error: StoreError| RemoteError::Outage(error.to_string());
        let (keys, blobs) = remote.list().await?;
        let mut moved = Transferred::default();
        let done = std::sync::atomic::AtomicU64::new(0);
        let tick = || progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
        let here = self.keys().map_err(failed)?;
        let missing: Vec<Key> =
            keys.iter().filter(|key| here.binary_search(key).is_err()).copied().collect();
        let wanted: Vec<Digest> =
            blobs.iter().filter(|digest| !self.has_blob(**digest)).copied().collect();
        moved.present = (keys.len() + blobs.len() - missing.len() - wanted.len()) as u64;
        let fetching = wanted.iter().map(|digest| async {
            let bytes = remote.blob(*digest).await?;
            tick();
            Ok::<_, RemoteError>((*digest, bytes))
        });
        let mut fetching = stream::iter(fetching).buffer_unordered(AT_ONCE);
        while let Some(fetched) = fetching.next().await {
            let (digest, bytes) = fetched?;
            match bytes.filter(|bytes| Digest::of(bytes) == digest) {
                Some(bytes) => {
                    self.put_blob(&bytes).map_err(failed)?;
                    (moved.blobs, moved.bytes) =
                        (moved.blobs + 1, moved.bytes + bytes.len() as u64);
                }
                None => moved.damaged += 1,
            }
        }
        drop(fetching);
        let fetching = missing.iter().map(|key| async {
            let line = remote.record(*key).await?;
            tick();
            Ok::<_, RemoteError>((*key, line))
        });
        let mut fetching = stream::iter(fetching).buffer_unordered(AT_ONCE);
        while let Some(fetched) = fetching.next().await {
            let (key, line) = fetched?;
            match line.and_then(|line| Some((proved(key, &line)?, line.len()))) {
                Some((record, bytes)) => {
                    self.put(record, false).map_err(failed)?;
                    (moved.records, moved.bytes) = (moved.records + 1, moved.bytes + bytes as u64);
                }
                None => moved.damaged += 1,
            }
        }
        drop(fetching);
        self.flush().map_err(failed)?;
        Ok(moved)
    }
}

/// A record of elsewhere, if its line is whole and its recipe gives its key.
fn proved(key: Key, line: &[u8]) -> Option<Record> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let head = line::check(line).filter(|head| head.key == key)?;
    match serde_json::from_slice(&line[head.json..]).ok()? {
        Kept::Record(record) if record.recipe.key() == key => Some(*record),
        _ => None,
    }
}
