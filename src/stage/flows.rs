//! A table of flows that others read while it grows. Knows nothing of how flows are made.
//!
//! Flows are written to a file as JSON lines, and every reader has its own place in it, so that a million
//! flows take no more memory than the few under way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::sync::watch;

use super::StageError;
use crate::digest::Digest;
use crate::sample::Flow;
use crate::store::Store;

/// Bytes read from the file at once.
const CHUNK: usize = 64 * 1024;

/// How far a table has grown.
#[derive(Debug, Clone)]
pub struct Growth {
    /// Whole flows written.
    pub flows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bad rows that were left out.
    pub skipped: u64,
    /// Set at the end: the digest of all, or why there is none.
    pub end: Option<Result<Digest, StageError>>,
}

/// A table of flows.
#[derive(Clone)]
pub struct Flows {
    growth: watch::Receiver<Growth>,
    /// Read by position, so that all readers share it.
    file: Arc<File>,
}

impl Flows {
    /// A table that is being written to `file`.
    pub fn growing(growth: watch::Receiver<Growth>, file: File) -> Self {
        Flows { growth, file: Arc::new(file) }
    }

    /// A whole table in the store; `None` where it is missing.
    pub fn stored(store: &Store, digest: Digest, flows: u64, skipped: u64) -> Option<Self> {
        let file = File::open(store.blob_path(digest)).ok()?;
        let bytes = file.metadata().ok()?.len();
        let (_, growth) = watch::channel(Growth { flows, bytes, skipped, end: Some(Ok(digest)) });
        Some(Flows::growing(growth, file))
    }

    /// The digest of the whole table, once it is whole.
    pub async fn digest(&self) -> Result<Digest, StageError> {
        let mut growth = self.growth.clone();
        let ended = growth.wait_for(|growth| growth.end.is_some()).await;
        let gone = || StageError::Failed("the expansion ended without a word".to_owned());
        ended.map_err(|_| gone())?.end.clone().ok_or_else(gone)?
    }

    /// Whether it is whole.
    pub fn is_whole(&self) -> bool {
        self.growth.borrow().end.is_some()
    }

    /// How many flows there are, once it is whole.
    pub fn count(&self) -> Option<u64> {
        let growth = self.growth.borrow();
        matches!(growth.end, Some(Ok(_))).then_some(growth.flows)
    }

    /// How many bad rows were left out so far.
    pub fn skipped(&self) -> u64 {
        self.growth.borrow().skipped
    }

    /// Reads it from the start.
    pub fn reader(&self) -> FlowReader {
        FlowReader {
            growth: self.growth.clone(),
            file: self.file.clone(),
            buffer: Vec::new(),
            start: 0,
            read: 0,
        }
    }
}

/// A place in a table.
pub struct FlowReader {
    growth: watch::Receiver<Growth>,
    file: Arc<File>,
    buffer: Vec<u8>,
    /// Where the next line begins in `buffer`.
    start: usize,
    /// Bytes taken from the file.
    read: u64,
}

impl FlowReader {
    /// The next flow; waits for one that is still to be written. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Flow>, StageError> {
        loop {
            // Of an expansion that failed, nothing more is worth asking.
            if let Some(Err(error)) = &self.growth.borrow().end {
                return Err(match error {
                    StageError::Cancelled => StageError::Cancelled,
                    _ => StageError::Upstream("the expansion".to_owned()),
                });
            }
            if let Some(length) = self.buffer[self.start..].iter().position(|c| *c == b'\n') {
                let line = &self.buffer[self.start..self.start + length];
                let flow = serde_json::from_slice(line).map_err(|error| {
                    StageError::Failed(format!("the table of flows is damaged: {error}"))
                })?;
                self.start += length + 1;
                return Ok(Some(flow));
            }
            let read = self.read;
            let more = |growth: &Growth| growth.bytes > read || growth.end.is_some();
            let (bytes, end) = match self.growth.wait_for(more).await {
                Ok(growth) => (growth.bytes, growth.end.clone()),
                Err(_) => return Err(StageError::Upstream("the expansion".to_owned())),
            };
            if bytes > self.read {
                self.fill((bytes - self.read).min(CHUNK as u64) as usize)?;
            } else if matches!(end, Some(Ok(_))) {
                return Ok(None);
            }
        }
    }

    fn fill(&mut self, length: usize) -> Result<(), StageError> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let old = self.buffer.len();
        self.buffer.resize(old + length, 0);
        self.file.read_exact_at(&mut self.buffer[old..], self.read).map_err(|error| {
            StageError::Failed(format!("cannot read the table of flows: {error}"))
        })?;
        self.read += length as u64;
        Ok(())
    }
}
