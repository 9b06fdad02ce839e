//! Templates of a report: read with all that they take text from, checked, and in its key. Knows nothing of what
//! they say.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use crate::digest::{Digest, Recipe};
use crate::manifest::{Diagnostic, Diagnostics, Fields, Sink, Sources, Span, Spanned};
use crate::report::Report;
use crate::report::page::{self, BadPage, Pages};
use crate::stage::{Context, Setting, StageError, read_project_text};
use crate::template;

/// Most files that one template may take text from.
const FILES_MAX: usize = 100;

/// The templates of a report, by their paths in the project.
pub(super) struct Templates {
    pub paths: Vec<Utf8PathBuf>,
    /// All files that they are made of, when the manifest was read.
    pub reads: Vec<Utf8PathBuf>,
}

/// The same, read for a run.
pub(super) struct Loaded {
    pages: Pages,
    digests: BTreeMap<String, Digest>,
}

/// Where a template is kept in a record.
pub(super) fn port(path: &Utf8Path) -> String {
    format!("template {path}")
}

/// The name of the file that a template makes.
pub(super) fn output(path: &Utf8Path) -> &str {
    page::output_name(path.as_str())
}

/// Reads the field, and checks every file.
pub(super) fn read(fields: &Fields<'_>, setting: &Setting<'_>, taken: &[String]) -> Templates {
    let mut paths: Vec<Spanned<Utf8PathBuf>> = Vec::new();
    let mut reads = Vec::new();
    for path in fields.paths("template").unwrap_or_default() {
        let name = output(&path.value);
        let twice = paths.iter().any(|before| output(&before.value) == name);
        if twice || taken.iter().any(|other| other == name) {
            let message = format!("two files of this report are called `{name}`");
            fields.error(Diagnostic::at(path.span, message).hint("rename the template"));
        } else if setting.check_exists(fields, &path) {
            match load(&path.value, |path| read_project_text(setting.root, path)) {
                Ok(pages) => reads.extend(pages.into_keys().map(Utf8PathBuf::from)),
                Err(error) => {
                    let message = format!("the template `{}` has errors", path.value);
                    let hint = format!("in that file:\n\n{error}");
                    fields.error(Diagnostic::at(path.span, message).hint(hint));
                }
            }
        }
        paths.push(path);
    }
    reads.sort();
    reads.dedup();
    Templates { paths: paths.into_iter().map(|path| path.value).collect(), reads }
}

/// A template with all that it takes text from.
fn load(
    path: &Utf8Path,
    mut read: impl FnMut(&Utf8Path) -> Result<String, String>,
) -> Result<Pages, String> {
    let text = read(path).map_err(|error| format!("cannot read `{path}`: {error}"))?;
    let mut pages = Pages::from([(path.to_string(), text)]);
    let mut open = vec![path.to_string()];
    while let Some(file) = open.pop() {
        let text = pages[&file].clone();
        for included in page::includes(&file, &text).map_err(|bad| shown(&text, &bad))? {
            let wrong = |message: String| {
                let (file, at) = (file.clone(), included.at.clone());
                shown(&text, &BadPage { file, at, message, hint: None })
            };
            let Some(path) = &included.path else {
                return Err(wrong("this path leaves the project".to_owned()));
            };
            if pages.contains_key(path) {
                continue;
            }
            if pages.len() >= FILES_MAX {
                return Err(wrong(format!("a template is made of {FILES_MAX} files at most")));
            }
            let found = read(Utf8Path::new(path));
            let found = found.map_err(|error| wrong(format!("cannot read `{path}`: {error}")))?;
            pages.insert(path.clone(), found);
            open.push(path.clone());
        }
    }
    Ok(pages)
}

/// With its place and an excerpt.
fn shown(text: &str, bad: &BadPage) -> String {
    let mut sources = Sources::default();
    let source = sources.add(Utf8Path::new(&bad.file), text);
    let span = Span { source, start: bad.at.start, end: bad.at.end };
    let mut diagnostic = Diagnostic::at(span, bad.message.clone());
    diagnostic.hint.clone_from(&bad.hint);
    let sink = Sink::default();
    sink.push(diagnostic);
    sink.finish(&sources).err().as_ref().map(Diagnostics::to_string).unwrap_or_default()
}

impl Templates {
    /// Reads all of them into the store: what is used is what is hashed.
    pub(super) fn load(&self, context: &Context) -> Result<Loaded, StageError> {
        let mut loaded = Loaded { pages: Pages::new(), digests: BTreeMap::new() };
        for path in &self.paths {
            let digests = &mut loaded.digests;
            let pages = load(path, |path| {
                let full = context.resolve(path).map_err(|error| error.to_string())?;
                let read = context.store.import_bytes(&full).map_err(|error| error.to_string())?;
                let text = String::from_utf8(read.1).map_err(|_| "it is no UTF-8".to_owned())?;
                digests.insert(path.to_string(), read.0);
                Ok(text)
            });
            loaded.pages.extend(pages.map_err(StageError::User)?);
        }
        Ok(loaded)
    }

    /// Adds them to a recipe. Without any it is that of a report that knows none.
    pub(super) fn describe(&self, loaded: &Loaded, mut recipe: Recipe) -> Recipe {
        if self.paths.is_empty() {
            return recipe;
        }
        let paths: Vec<String> = self.paths.iter().map(ToString::to_string).collect();
        recipe = recipe.field("template", paths).field("template_language", template::LANGUAGE);
        for (path, digest) in &loaded.digests {
            recipe = recipe.input(port(Utf8Path::new(path)), *digest);
        }
        recipe
    }
}

impl Loaded {
    /// Fills a template.
    pub(super) fn fill(&self, path: &Utf8Path, report: &Report) -> Result<String, StageError> {
        page::fill(&self.pages, path.as_str(), report).map_err(|bad| {
            let text = &self.pages[&bad.file];
            StageError::User(format!("the template `{path}` has errors\n\n{}", shown(text, &bad)))
        })
    }
}
