//! The samples of a workflow, one at a time, with what was observed of them. Knows nothing of forms.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use super::ExportError;
use crate::digest::Digest;
use crate::history::{HistoryError, Table, Tables};
use crate::record::Observed;
use crate::report::CellInfo;
use crate::sample::Sample;
use crate::store::{Store, at};

/// A workflow whose samples are to be written.
pub struct Source {
    /// Its name, with its matrix values.
    pub stage: String,
    /// Where its samples are.
    pub tables: Tables,
    /// Its settings, engine and prices, where they are still known.
    pub info: Option<CellInfo>,
}

impl Source {
    /// Its samples. What was observed is `None` throughout where nobody knows it any more.
    pub fn rows(&self, store: &Store) -> Result<Rows, ExportError> {
        let observed = self.tables.observed.map(|table| Lines::open(store, table)).transpose()?;
        Ok(Rows { samples: Lines::open(store, self.tables.samples)?, observed })
    }

    /// A part of what its samples hold: what `T` leaves out is skipped.
    pub fn parts<T: DeserializeOwned>(&self, store: &Store) -> Result<Lines<T>, ExportError> {
        Lines::open(store, self.tables.samples)
    }
}

/// Samples in order.
pub struct Rows {
    samples: Lines<Sample>,
    observed: Option<Lines<Observed>>,
}

impl Iterator for Rows {
    type Item = Result<(Sample, Option<Observed>), ExportError>;

    fn next(&mut self) -> Option<Self::Item> {
        let sample = match self.samples.next()? {
            Ok(sample) => sample,
            Err(error) => return Some(Err(error)),
        };
        let observed = match &mut self.observed {
            None => None,
            Some(lines) => match lines.next() {
                Some(Ok(observed)) => Some(observed),
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    let what = "what was observed of a workflow".to_owned();
                    let why = "it has fewer rows than there are samples".to_owned();
                    return Some(Err(HistoryError::Damaged { what, why }.into()));
                }
            },
        };
        Some(Ok((sample, observed)))
    }
}

/// The rows of a table, read as they are asked for.
pub struct Lines<T> {
    file: BufReader<File>,
    line: Vec<u8>,
    path: camino::Utf8PathBuf,
    rows: PhantomData<T>,
}

impl<T> Lines<T> {
    /// Makes sure of the whole table first, and then reads it a second time: nothing of a damaged one is given out.
    fn open(store: &Store, table: Digest) -> Result<Self, ExportError> {
        let gone = || HistoryError::Gone { what: "a table of samples".to_owned() };
        if !store.is_whole(table) {
            return Err(gone().into());
        }
        let path = store.blob_path(table);
        let file = BufReader::new(File::open(&path).map_err(|_| gone())?);
        Ok(Lines { file, line: Vec::new(), path, rows: PhantomData })
    }
}

impl<T: DeserializeOwned> Iterator for Lines<T> {
    type Item = Result<T, ExportError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line.clear();
        if let Err(error) = self.file.read_until(b'\n', &mut self.line) {
            return Some(Err(HistoryError::from(at("read", &self.path)(error)).into()));
        }
        let line = self.line.trim_ascii_end();
        (!line.is_empty()).then(|| Table::row(line).map_err(ExportError::from))
    }
}
