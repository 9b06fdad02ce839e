//! A collection of documents: a folder of text files, or rows of JSON Lines. Knows nothing of how it is
//! searched.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use crate::digest::Digest;
use crate::manifest::{Diagnostic, Fields};
use crate::retrieval::{Passage, cut};
use crate::stage::{Context, Setting, StageError, plain};
use crate::store::Store;
use crate::tool::retrieval::Read;

/// Endings of files with rows.
const ROWS: &[&str] = &["jsonl", "ndjson"];

/// A collection as a manifest declares it.
pub(in crate::stage::workflow) struct Corpus {
    /// Files and folders.
    pub(in crate::stage::workflow) paths: Vec<Utf8PathBuf>,
    /// Columns of text and identifier in rows.
    pub(in crate::stage::workflow) columns: (String, String),
}

/// Reads `corpus`, `text` and `id`.
pub(in crate::stage::workflow) fn read(
    fields: &Fields<'_>,
    setting: &Setting<'_>,
) -> Option<Corpus> {
    let column = |name: &str| fields.text(name).map_or_else(|| name.to_owned(), |text| text.value);
    let columns = (column("text"), column("id"));
    if !fields.has("corpus") {
        let hint = "`corpus = \"<folder of text files, or rows>.jsonl\"`";
        let message = "the documents to search are missing";
        fields.error(Diagnostic::at(fields.span(), message).hint(hint));
        return None;
    }
    let all = fields.paths("corpus")?;
    let count = all.len();
    let exist = all.into_iter().filter(|path| setting.check_exists(fields, path));
    let paths: Vec<_> = exist.map(|path| path.value).collect();
    (paths.len() == count && count > 0).then_some(Corpus { paths, columns })
}

impl Corpus {
    /// Its files in the store. Their content is read later, when it is needed.
    pub(in crate::stage::workflow) fn import(
        &self,
        context: &Context,
    ) -> Result<Imported, StageError> {
        let mut files = Vec::new();
        for path in &self.paths {
            let full = context.resolve(path)?;
            let mut names = Vec::new();
            if full.is_dir() {
                crate::stage::files_below(&full, "", &mut names).map_err(|error| {
                    StageError::User(format!("cannot read `{path}`: {}", plain(&error)))
                })?;
                names.sort();
            } else {
                names.push(String::new());
            }
            for name in names {
                let (shown, full) = match name.is_empty() {
                    true => (path.clone(), full.clone()),
                    false => (path.join(&name), full.join(&name)),
                };
                // A name in the collection is part of what is shown to the model.
                files.push((shown.to_string(), context.store.import(&full)?));
            }
        }
        if files.is_empty() {
            let all = self.paths.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>();
            return Err(StageError::User(format!("there are no files in {}", all.join(", "))));
        }
        let digest = Digest::of_json(&files);
        Ok(Imported { digest, files, columns: self.columns.clone(), store: context.store.clone() })
    }
}

/// A collection in the store.
pub(in crate::stage::workflow) struct Imported {
    /// Of names and contents.
    pub(in crate::stage::workflow) digest: Digest,
    files: Vec<(String, Digest)>,
    columns: (String, String),
    store: Arc<Store>,
}

impl Imported {
    /// What reads its passages of at most `size` words.
    pub(in crate::stage::workflow) fn reader(self, size: usize) -> Read {
        Box::new(move || {
            let mut passages = Vec::new();
            for (name, digest) in &self.files {
                let gone = || format!("`{name}` is gone from the store; run again");
                let bytes = self.store.blob(*digest).ok_or_else(gone)?;
                let text = String::from_utf8(bytes)
                    .map_err(|_| format!("`{name}` of the collection is not UTF-8 text"))?;
                let is_rows = Utf8Path::new(name).extension().is_some_and(|e| ROWS.contains(&e));
                match is_rows {
                    true => rows(name, &text, &self.columns, size, &mut passages)?,
                    false => passages.extend(cut(name, &text, size)),
                }
            }
            match passages.is_empty() {
                true => Err("the collection has no words".to_owned()),
                false => Ok(passages),
            }
        })
    }
}

fn rows(
    name: &str,
    text: &str,
    (column, id): &(String, String),
    size: usize,
    passages: &mut Vec<Passage>,
) -> Result<(), String> {
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = i + 1;
        let row: Value = serde_json::from_str(line).map_err(|error| {
            format!("{name}:{number}:{}: this line is not JSON: {error}", error.column())
        })?;
        let Some(text) = row[column].as_str() else {
            let known = row.as_object().into_iter().flat_map(|row| row.keys());
            let known: Vec<_> = known.map(String::as_str).collect();
            let known = known.join(", ");
            return Err(format!(
                "{name}:{number}: the row has no text in `{column}` (columns: {known})"
            ));
        };
        let source = match &row[id] {
            Value::String(id) => id.clone(),
            Value::Null => format!("{name}:{number}"),
            other => other.to_string(),
        };
        passages.extend(cut(&source, text, size));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_need_their_column() {
        let columns = ("text".to_owned(), "id".to_owned());
        let read = |text: &str| {
            let mut passages = Vec::new();
            rows("c.jsonl", text, &columns, 64, &mut passages).map(|()| passages)
        };
        let found = read("{\"id\": 7, \"text\": \"one two\"}\n\n{\"text\": \"three\"}").unwrap();
        let sources: Vec<_> = found.iter().map(|passage| passage.source.as_str()).collect();
        assert_eq!(sources, ["7", "c.jsonl:3"]);
        assert_eq!(
            read("{\"title\": \"x\", \"body\": \"y\"}").unwrap_err(),
            "c.jsonl:1: the row has no text in `text` (columns: title, body)"
        );
        assert!(read("{\"text\": \"x\"}\n{").unwrap_err().starts_with("c.jsonl:2:1: "));
    }
}
