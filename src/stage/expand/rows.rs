//! Rows of fixtures, one after another. Knows nothing of templates.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::bad::{BadRow, RowError};
use super::source::{Fixture, Format, Part};
use super::{parquet, text};
use crate::stage::StageError;
use crate::store::Store;

/// A row with where it came from.
pub(super) struct Row {
    /// Its columns.
    pub(super) value: Map<String, Value>,
    /// From 1, over all fixtures, those that cannot be read included.
    pub(super) number: u64,
    /// `file:line` or `file, row n`, for messages.
    pub(super) place: String,
}

/// A value of a file with where it stands.
pub(super) struct Placed {
    pub(super) value: Value,
    pub(super) place: String,
}

/// The rest of a file.
pub(super) type Rest = Box<dyn Iterator<Item = Result<Placed, RowError>>>;

/// What is read after the file that is open.
enum Next {
    File(Format, Part),
    /// One row, made of all of its files.
    Folder(Fixture),
}

/// All rows of some fixtures in the order of the files. One file is open at a time.
pub(super) struct Rows {
    store: Arc<Store>,
    next: VecDeque<Next>,
    current: Option<Rest>,
    number: u64,
}

impl Rows {
    pub(super) fn open(fixtures: &[Fixture], store: &Arc<Store>) -> Result<Rows, StageError> {
        let mut next = VecDeque::new();
        for fixture in fixtures {
            if fixture.parts.is_empty() {
                let message = format!("the folder `{}` has no files", fixture.name);
                return Err(StageError::User(message));
            }
            match fixture.format {
                Format::Folder => next.push_back(Next::Folder(fixture.clone())),
                format => {
                    next.extend(fixture.parts.iter().map(|part| Next::File(format, part.clone())));
                }
            }
        }
        Ok(Rows { store: store.clone(), next, current: None, number: 0 })
    }

    fn open_next(&mut self) -> Option<Result<Rest, StageError>> {
        Some(match self.next.pop_front()? {
            Next::File(format, part) => read(format, part, &self.store),
            Next::Folder(fixture) => {
                folder(&fixture, &self.store).map(|row| Box::new(std::iter::once(Ok(row))) as Rest)
            }
        })
    }
}

impl Iterator for Rows {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(found) = self.current.as_mut().and_then(Iterator::next) {
                self.number += 1;
                return Some(found.and_then(|Placed { value, place }| match value {
                    Value::Object(value) => Ok(Row { value, number: self.number, place }),
                    other => {
                        let message = "a row must be a table of columns".to_owned();
                        let text = other.to_string();
                        Err(RowError::Bad(BadRow::unread(place, message, text.as_bytes(), 1)))
                    }
                }));
            }
            match self.open_next()? {
                Ok(rest) => self.current = Some(rest),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

fn open(part: &Part, store: &Store) -> Result<File, StageError> {
    File::open(store.blob_path(part.digest)).map_err(|error| {
        StageError::Failed(format!("cannot read `{}` from the store: {error}", part.name))
    })
}

fn read(format: Format, part: Part, store: &Store) -> Result<Rest, StageError> {
    let file = open(&part, store)?;
    let name = part.name;
    Ok(match format {
        Format::JsonLines => text::json_lines(text::open(file, &name)?, name),
        Format::Json => text::json(text::open(file, &name)?, name),
        Format::Csv => text::cells(text::open(file, &name)?, name, b',')?,
        Format::Tsv => text::cells(text::open(file, &name)?, name, b'\t')?,
        Format::Parquet => parquet::rows(file, name)?,
        Format::Files => {
            Box::new(std::iter::once(match String::from_utf8(text::whole(file, &name)?) {
                Ok(content) => {
                    let file_name = name.rsplit('/').next().unwrap_or_default();
                    let value = json!({ "path": part.path, "name": file_name, "content": content });
                    Ok(Placed { value, place: name })
                }
                Err(error) => {
                    let at = error.utf8_error().valid_up_to() + 1;
                    let message = "the file is not UTF-8 text".to_owned();
                    Err(RowError::Bad(BadRow::unread(name, message, error.as_bytes(), at)))
                }
            }))
        }
        Format::Folder => unreachable!("BUG: a folder has no file of its own"),
    })
}

/// A folder as one row: its files in order, and all of them in one text.
fn folder(fixture: &Fixture, store: &Store) -> Result<Placed, StageError> {
    let path = &fixture.name;
    let mut text = String::new();
    let mut files = Vec::new();
    for Part { path: name, digest, .. } in &fixture.parts {
        let bytes = store.blob(*digest).ok_or_else(|| {
            StageError::Failed(format!("the content of `{path}` is gone from the store; run again"))
        })?;
        let content = String::from_utf8(bytes)
            .map_err(|_| StageError::User(format!("`{path}/{name}` is not UTF-8 text")))?;
        text.push_str(&format!("==> {name} <==\n{content}"));
        if !content.ends_with('\n') {
            text.push('\n');
        }
        files.push(json!({ "path": name, "content": content }));
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let value = json!({ "name": name, "content": text, "files": files });
    Ok(Placed { value, place: path.clone() })
}
