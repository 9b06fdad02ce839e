//! A run as files of a folder, in a form of another tool. Knows nothing of what is in them.

use std::fs::{self, File};
use std::io::{BufWriter, Write};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use super::{ExportError, Source, Table, inspect, lm_eval};
use crate::history::{HistoryError, Run, Tables};
use crate::record::StageRun;
use crate::report::CellInfo;
use crate::store::Store;

/// A form in which a run can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A log of Inspect for each workflow.
    Inspect,
    /// Results and samples of lm-evaluation-harness.
    LmEval,
    /// All samples in one file.
    Table(Table),
}

impl Format {
    /// All names.
    pub fn names() -> Vec<&'static str> {
        ["inspect", "lm-eval"].into_iter().chain(Table::ALL.map(Table::name)).collect()
    }

    /// The form of a name.
    pub fn of(name: &str) -> Option<Format> {
        match name {
            "inspect" => Some(Format::Inspect),
            "lm-eval" => Some(Format::LmEval),
            name => Table::of(name).map(Format::Table),
        }
    }
}

/// A workflow of a run.
pub struct About<'a> {
    /// The run.
    pub run: &'a Run,
    /// The workflow in it.
    pub stage: &'a StageRun,
    /// Its samples.
    pub source: Source,
}

impl About<'_> {
    /// A fact about its engine, where it is still known.
    pub(super) fn engine(&self, fact: &str) -> Option<&str> {
        self.source.info.as_ref()?.engine.get(fact)?.as_str()
    }

    /// A semantic setting.
    pub(super) fn setting(&self, name: &str) -> Option<&Value> {
        self.source.info.as_ref()?.config.get(name).filter(|value| !value.is_null())
    }

    /// Its method.
    pub(super) fn method(&self) -> Option<&str> {
        self.source.info.as_ref().map(|info: &CellInfo| info.method.as_str())
    }

    /// Whose model it is: the provider, where there is one, else what runs it.
    pub(super) fn provider(&self) -> Option<&str> {
        self.engine("provider").or_else(|| self.engine("backend"))
    }

    /// The name of its model; of an engine without one (`scripted`) what it is.
    pub(super) fn model(&self) -> &str {
        self.engine("model").or_else(|| self.engine("backend")).unwrap_or("unknown")
    }
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Files, in the order in which they were written.
    pub files: Vec<Utf8PathBuf>,
    /// Workflows that have no samples to write, and why.
    pub left_out: Vec<(String, String)>,
}

/// Writes workflows of a run into a folder. Files of the same names are replaced: of one run they are the same.
pub fn write_run(
    store: &Store,
    run: &Run,
    stages: &[&StageRun],
    format: Format,
    folder: &Utf8Path,
) -> Result<Written, ExportError> {
    let mut written = Written::default();
    let mut workflows = Vec::new();
    for stage in stages.iter().filter(|stage| stage.kind == "workflow") {
        let tables = match Tables::of(store, stage) {
            Ok(tables) => tables,
            Err(HistoryError::NoSamples { .. }) => {
                written
                    .left_out
                    .push((stage.name.clone(), "it has no samples in this run".to_owned()));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let info = match tables.info(store) {
            Ok(info) => Some(info),
            // What is not known any more is left out of what is written.
            Err(HistoryError::Gone { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let source = Source { stage: stage.name.clone(), tables, info };
        workflows.push(About { run, stage, source });
    }
    if workflows.is_empty() {
        return Ok(written);
    }
    fs::create_dir_all(folder)?;
    match format {
        Format::Inspect => {
            for about in &workflows {
                let file = write_file(folder, &inspect::file_name(about), |out| {
                    inspect::write(about, store, out)
                })?;
                written.files.push(file);
            }
        }
        Format::LmEval => written.files = lm_eval::write(&workflows, store, folder)?,
        Format::Table(table) => {
            let sources: Vec<Source> = workflows.into_iter().map(|about| about.source).collect();
            let file = write_file(folder, table.file_name(), |out| {
                table.write(&run.record.pipeline, &sources, store, out)
            })?;
            written.files.push(file);
        }
    }
    Ok(written)
}

/// Writes a file that has its name only when it is whole.
pub(super) fn write_file(
    folder: &Utf8Path,
    name: &str,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), ExportError>,
) -> Result<Utf8PathBuf, ExportError> {
    let path = folder.join(name);
    let partial = folder.join(format!(".{name}.{}", std::process::id()));
    let mut out = BufWriter::new(File::create(&partial)?);
    let done = write(&mut out).and_then(|()| Ok(out.flush()?));
    let done = done.and_then(|()| Ok(fs::rename(&partial, &path)?));
    if let Err(error) = done {
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    Ok(path)
}

/// RFC 3339 with milliseconds, UTC.
pub(super) fn moment(unix_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    humantime::format_rfc3339_millis(time).to_string()
}

/// Longest part of the name of a file: file systems take 255 bytes of the whole.
const PART_MAX: usize = 120;

/// A text as a part of the name of a file: letters, digits and underscores.
pub(super) fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    text.chars().take(PART_MAX).map(plain).collect()
}
