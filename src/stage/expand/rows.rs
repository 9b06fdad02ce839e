//! Rows of a fixture: JSON Lines, JSON, CSV, or a folder of files as one row. Knows nothing of templates.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};

use crate::digest::Digest;
use crate::stage::{StageError, plain};
use crate::store::Store;

/// How rows are stored, by the names in manifests.
pub(super) const FORMATS: &[&str] = &["jsonl", "json", "csv", "folder"];

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    JsonLines,
    Json,
    Csv,
    Folder,
}

impl Format {
    /// The format that is named, else that of the ending.
    pub(super) fn of(path: &Utf8Path, is_folder: bool, named: Option<&str>) -> Option<Format> {
        let name = named.or(if is_folder { Some("folder") } else { path.extension() })?;
        match name.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Some(Format::JsonLines),
            "json" => Some(Format::Json),
            "csv" => Some(Format::Csv),
            "folder" => Some(Format::Folder),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Format::JsonLines => "jsonl",
            Format::Json => "json",
            Format::Csv => "csv",
            Format::Folder => "folder",
        }
    }
}

/// A fixture in the store.
pub(super) struct Fixture {
    path: Utf8PathBuf,
    pub(super) format: Format,
    /// Of all its content.
    pub(super) digest: Digest,
    /// Its files by path, `/` between parts, in order: one but for folders.
    files: Vec<(String, Digest)>,
}

impl Fixture {
    /// A file that another stage has made.
    pub(super) fn made(path: Utf8PathBuf, format: Format, digest: Digest) -> Fixture {
        let files = vec![(path.file_name().unwrap_or_default().to_owned(), digest)];
        Fixture { path, format, digest, files }
    }

    pub(super) fn import(
        path: &Utf8Path,
        format: Format,
        full: &Utf8Path,
        store: &Store,
        whole: bool,
    ) -> Result<Fixture, StageError> {
        if (format == Format::Folder) != full.is_dir() {
            let what = if full.is_dir() { "a folder" } else { "a file" };
            return Err(StageError::User(format!(
                "`{path}` is {what}, and its format is {}",
                format.name()
            )));
        }
        let import =
            |path: &Utf8Path| if whole { store.import_whole(path) } else { store.import(path) };
        let files = match format {
            Format::Folder => {
                let mut names = Vec::new();
                list(full, "", &mut names).map_err(|error| {
                    StageError::User(format!("cannot read `{path}`: {}", plain(&error)))
                })?;
                names.sort();
                let imported = |name: String| Ok((name.clone(), import(&full.join(&name))?));
                names.into_iter().map(imported).collect::<Result<Vec<_>, StageError>>()?
            }
            _ => vec![(path.file_name().unwrap_or_default().to_owned(), import(full)?)],
        };
        let digest = match format {
            Format::Folder => Digest::of_json(&files),
            // The name of a single file says nothing about its rows.
            _ => files[0].1,
        };
        Ok(Fixture { path: path.to_owned(), format, digest, files })
    }
}

/// Files below a folder, without hidden ones and without links, which could lead anywhere.
fn list(folder: &Utf8Path, prefix: &str, out: &mut Vec<String>) -> std::io::Result<()> {
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        if name.starts_with('.') {
            continue;
        }
        if kind.is_dir() {
            list(entry.path(), &format!("{prefix}{name}/"), out)?;
        } else if kind.is_file() {
            out.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}

/// A row with where it came from.
pub(super) struct Row {
    /// An object.
    pub(super) value: Value,
    /// From 1, over all fixtures.
    pub(super) number: u64,
    /// `file:line` or `file, row n`, for messages.
    pub(super) place: String,
}

/// All rows of some fixtures, one after another.
pub(super) struct Rows {
    rows: Box<dyn Iterator<Item = Result<Row, StageError>>>,
}

impl Iterator for Rows {
    type Item = Result<Row, StageError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows.next()
    }
}

impl Rows {
    /// Rows in the order of the files, or with a seed in the order of a hash of seed and row: the order
    /// of two rows never depends on which others there are.
    pub(super) fn open(
        fixtures: &[Fixture],
        shuffle_seed: Option<i64>,
        store: &Arc<Store>,
    ) -> Result<Rows, StageError> {
        let mut parts = Vec::new();
        for fixture in fixtures {
            parts.push(read(fixture, store)?);
        }
        let numbered = parts.into_iter().flatten().zip(1..).map(|(row, number)| {
            let (value, place) = row?;
            if !value.is_object() {
                return Err(StageError::User(format!(
                    "{place}: a row must be a table of columns, not {value}"
                )));
            }
            Ok(Row { value, number, place })
        });
        let Some(seed) = shuffle_seed else { return Ok(Rows { rows: Box::new(numbered) }) };
        let rows = numbered.collect::<Result<Vec<Row>, _>>()?;
        let mut keyed: Vec<_> = rows
            .into_iter()
            .map(|row| (Digest::of_json(&(seed, &row.value)), row.number, row))
            .collect();
        keyed.sort_by_key(|(digest, number, _)| (*digest, *number));
        Ok(Rows { rows: Box::new(keyed.into_iter().map(|(_, _, row)| Ok(row))) })
    }
}

type Placed = Box<dyn Iterator<Item = Result<(Value, String), StageError>>>;

fn read(fixture: &Fixture, store: &Arc<Store>) -> Result<Placed, StageError> {
    let path = fixture.path.clone();
    let (_, digest) = &fixture
        .files
        .first()
        .ok_or_else(|| StageError::User(format!("the folder `{path}` has no files")))?;
    let open = || {
        File::open(store.blob_path(*digest)).map_err(|error| {
            StageError::Failed(format!("cannot read `{path}` from the store: {error}"))
        })
    };
    let bytes = |digest: Digest| {
        store.blob(digest).ok_or_else(|| {
            StageError::Failed(format!("the content of `{path}` is gone from the store; run again"))
        })
    };
    Ok(match fixture.format {
        Format::JsonLines => json_lines(open()?, path),
        Format::Csv => csv_rows(open()?, path)?,
        Format::Json => json_rows(&bytes(*digest)?, &path)?,
        Format::Folder => {
            let mut text = String::new();
            let mut files = Vec::new();
            for (name, digest) in &fixture.files {
                let content = String::from_utf8(bytes(*digest)?)
                    .map_err(|_| StageError::User(format!("`{path}/{name}` is not UTF-8 text")))?;
                text.push_str(&format!("==> {name} <==\n{content}"));
                if !content.ends_with('\n') {
                    text.push('\n');
                }
                files.push(json!({ "path": name, "content": content }));
            }
            let name = path.file_name().unwrap_or_default();
            let row = json!({ "name": name, "content": text, "files": files });
            Box::new(std::iter::once(Ok((row, path.to_string()))))
        }
    })
}

fn json_lines(file: File, path: Utf8PathBuf) -> Placed {
    let lines = BufReader::new(file).lines().enumerate();
    Box::new(lines.filter_map(move |(i, line)| {
        let place = format!("{path}:{}", i + 1);
        let line = match line {
            Ok(line) => line,
            Err(error) => return Some(Err(StageError::User(format!("{place}: {error}")))),
        };
        let line = line.trim_start_matches('\u{feff}');
        if line.trim().is_empty() {
            return None;
        }
        Some(match serde_json::from_str(line) {
            Ok(value) => Ok((value, place)),
            Err(error) => Err(StageError::User(format!(
                "{place}:{}: this line is not JSON: {error}",
                error.column()
            ))),
        })
    }))
}

fn csv_rows(file: File, path: Utf8PathBuf) -> Result<Placed, StageError> {
    let mut reader = csv::Reader::from_reader(file);
    let fail = |error: csv::Error, path: &Utf8Path| {
        let line = error.position().map_or(1, csv::Position::line);
        StageError::User(format!("{path}:{line}: this is not CSV: {error}"))
    };
    let header = reader.headers().map_err(|error| fail(error, &path))?.clone();
    Ok(Box::new(reader.into_records().map(move |record| {
        let record = record.map_err(|error| fail(error, &path))?;
        let line = record.position().map_or(0, csv::Position::line);
        let cells = header.iter().zip(record.iter());
        let row: Map<String, Value> = cells
            .map(|(name, cell)| (name.trim_start_matches('\u{feff}').to_owned(), cell.into()))
            .collect();
        Ok((Value::Object(row), format!("{path}:{line}")))
    })))
}

fn json_rows(bytes: &[u8], path: &Utf8Path) -> Result<Placed, StageError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        StageError::User(format!(
            "{path}:{}:{}: this is not JSON: {error}",
            error.line(),
            error.column()
        ))
    })?;
    let Value::Array(rows) = value else {
        return Err(StageError::User(format!("{path}: a JSON fixture is a list of rows")));
    };
    let path = path.to_owned();
    let placed = rows
        .into_iter()
        .enumerate()
        .map(move |(i, row)| Ok((row, format!("{path}, row {}", i + 1))));
    Ok(Box::new(placed))
}
