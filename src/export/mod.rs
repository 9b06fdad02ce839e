//! Finished samples in the forms of other tools. Knows nothing of stages, of commands and of how samples came to be.
//!
//! Tables and test reports hold all workflows of a report in one file ([`Table`]); logs of Inspect and results of
//! lm-evaluation-harness are a file or two for each workflow ([`inspect`], [`lm_eval`]). All of them are written a
//! sample at a time: memory is that of the samples of a row group, however many there are.

use std::io::Write;

use crate::history::HistoryError;
use crate::store::Store;

mod arrow;
mod columns;
mod csv;
pub mod inspect;
mod junit;
pub mod lm_eval;
mod rows;
mod write;

pub use columns::{COLUMNS, Column, Kind};
pub use rows::Source;
pub use write::{About, Format, Written, write_run};

/// Why samples could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// They cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The file cannot be written.
    #[error("cannot write the samples: {0}")]
    Write(#[from] std::io::Error),
    /// They do not fit the form.
    #[error("cannot write the samples: {0}")]
    Form(String),
}

/// A form that holds the samples of many workflows in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Comma-separated values (RFC 4180), a row for each sample and epoch.
    Csv,
    /// Parquet, the same rows.
    Parquet,
    /// An Arrow IPC file, which is Feather version 2; the same rows.
    Arrow,
    /// JUnit XML: a suite for each workflow, a case for each sample and epoch.
    Junit,
}

impl Table {
    /// All of them.
    pub const ALL: [Table; 4] = [Table::Csv, Table::Parquet, Table::Arrow, Table::Junit];

    /// The name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Table::Csv => "csv",
            Table::Parquet => "parquet",
            Table::Arrow => "arrow",
            Table::Junit => "junit",
        }
    }

    /// The name of its file.
    pub fn file_name(self) -> &'static str {
        match self {
            Table::Csv => "samples.csv",
            Table::Parquet => "samples.parquet",
            Table::Arrow => "samples.arrow",
            Table::Junit => "junit.xml",
        }
    }

    /// The form of a name.
    pub fn of(name: &str) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.name() == name)
    }

    /// Writes the samples of workflows. `title` is what they are of: the name of the pipeline.
    pub fn write(
        self,
        title: &str,
        sources: &[Source],
        store: &Store,
        out: impl Write + Send,
    ) -> Result<(), ExportError> {
        match self {
            Table::Csv => csv::write(sources, store, out),
            Table::Parquet => arrow::parquet(sources, store, out),
            Table::Arrow => arrow::ipc(sources, store, out),
            Table::Junit => junit::write(title, sources, store, out),
        }
    }
}
