//! Rows in the order of a hash of seed and content: the order of two rows never depends on which others
//! there are, so that the first 100 are among the first 1,000, and those among all. Knows nothing of files.
//!
//! Rows go to a file in the store's folder that has no name when all is done, and the memory holds 40 bytes
//! for each: its hash, and where it stands in that file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use serde_json::{Map, Value};

use super::bad::RowError;
use super::rows::Row;
use crate::digest::Digest;
use crate::stage::StageError;
use crate::store::BlobWriter;

/// Bytes read at once to find the end of a row.
const CHUNK: usize = 4096;

/// Rows on their way to another order.
pub(super) struct Sorter {
    seed: i64,
    spool: BufWriter<BlobWriter>,
    reader: File,
    written: u64,
    places: Vec<(Digest, u64)>,
}

impl Sorter {
    /// Sorts by `seed`; `spool` is dropped at the end, and leaves nothing.
    pub(super) fn new(seed: i64, spool: BlobWriter) -> Result<Self, StageError> {
        let reader = spool.reader()?;
        Ok(Sorter { seed, spool: BufWriter::new(spool), reader, written: 0, places: Vec::new() })
    }

    /// The place of a row in the order, by its content as read.
    pub(super) fn rank(&self, value: &Map<String, Value>) -> Digest {
        Digest::of_json(&(self.seed, value))
    }

    pub(super) fn push(&mut self, rank: Digest, row: &Row) -> Result<(), StageError> {
        let mut line = serde_json::to_vec(&(row.number, &row.place, &row.value))
            .expect("BUG: a row is plain data");
        line.push(b'\n');
        self.spool
            .write_all(&line)
            .map_err(|error| StageError::Failed(format!("cannot put rows aside: {error}")))?;
        self.places.push((rank, self.written));
        self.written += line.len() as u64;
        Ok(())
    }

    /// All rows in their order; equal ones as they came.
    pub(super) fn finish(mut self) -> Result<Sorted, StageError> {
        self.spool
            .flush()
            .map_err(|error| StageError::Failed(format!("cannot put rows aside: {error}")))?;
        self.places.sort_unstable();
        Ok(Sorted { _spool: self.spool, reader: self.reader, places: self.places.into_iter() })
    }
}

/// Rows in their order, read one by one.
pub(super) struct Sorted {
    /// Kept while it is read: it goes when it is dropped.
    _spool: BufWriter<BlobWriter>,
    reader: File,
    places: std::vec::IntoIter<(Digest, u64)>,
}

impl Iterator for Sorted {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (_, at) = self.places.next()?;
        Some(self.read(at).map_err(|error| {
            let message = format!("cannot read rows that were put aside: {error}");
            RowError::Fatal(StageError::Failed(message))
        }))
    }
}

impl Sorted {
    fn read(&self, mut at: u64) -> std::io::Result<Row> {
        let mut line = Vec::new();
        let mut chunk = [0; CHUNK];
        loop {
            let read = self.reader.read_at(&mut chunk, at)?;
            let end = memchr::memchr(b'\n', &chunk[..read]);
            line.extend_from_slice(&chunk[..end.unwrap_or(read)]);
            if end.is_some() {
                break;
            }
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            at += read as u64;
        }
        let (number, place, value) = serde_json::from_slice(&line)?;
        Ok(Row { value, number, place })
    }
}
