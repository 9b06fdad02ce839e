//! What is wrong with a manifest: message, place with excerpt, what is known, what to do.
//! Knows nothing of what manifests mean.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use camino::{Utf8Path, Utf8PathBuf};

use super::seen::{Places, Seen};

/// A place in one of the files of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Number of the file in [`Sources`].
    pub source: usize,
    /// First byte.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
}

/// The files of a manifest, as read.
#[derive(Debug, Clone, Default)]
pub struct Sources(Vec<(Utf8PathBuf, String)>);

impl Sources {
    /// Adds a file; its number is what spans carry.
    pub fn add(&mut self, path: &Utf8Path, text: &str) -> usize {
        self.0.push((path.to_owned(), text.to_owned()));
        self.0.len() - 1
    }

    /// The files in the order in which they were read.
    pub fn files(&self) -> impl Iterator<Item = (&Utf8Path, &str)> {
        self.0.iter().map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// `file:line:column`, counted from 1.
    pub fn location(&self, span: Span) -> String {
        let (path, text) = &self.0[span.source];
        let before = &text[..span.start.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        format!("{path}:{line}:{column}")
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// Where, if it is anywhere.
    pub at: Option<Span>,
    /// What: lower case, no full stop, names in backticks.
    pub message: String,
    /// Said at the place.
    pub label: String,
    /// Another place that matters, with what to say there.
    pub also: Vec<(Span, String)>,
    /// What to do.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Something wrong at a place.
    pub fn at(span: Span, message: impl Into<String>) -> Self {
        Diagnostic { at: Some(span), ..Diagnostic::nowhere(message) }
    }

    /// Something wrong that no file shows.
    pub fn nowhere(message: impl Into<String>) -> Self {
        Diagnostic {
            at: None,
            message: message.into(),
            label: String::new(),
            also: Vec::new(),
            hint: None,
        }
    }

    /// Adds what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds "did you mean" where one of `known` is close.
    pub fn did_you_mean<'a>(self, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        match closest(name, known) {
            Some(close) => self.hint(format!("did you mean `{close}`?")),
            None => self,
        }
    }

    /// Adds what to say at the place.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Adds another place.
    pub fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.also.push((span, label.into()));
        self
    }
}

/// The name in `known` that `name` was probably meant to be.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Collects what is wrong, so that one reading reports all of it.
#[derive(Debug, Default)]
pub struct Sink {
    list: RefCell<Vec<Diagnostic>>,
    seen: Option<Seen>,
}

impl Sink {
    /// One that also keeps which fields were asked for.
    pub fn recording() -> Sink {
        Sink { list: RefCell::default(), seen: Some(Seen::default()) }
    }

    /// Where to say which fields are asked for, if somebody wants to know.
    pub(super) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// The fields that were asked for.
    pub fn into_seen(self) -> Places {
        self.seen.unwrap_or_default().into_places()
    }

    /// Adds one; the same thing at the same place is said once.
    pub fn push(&self, diagnostic: Diagnostic) {
        let mut list = self.list.borrow_mut();
        if !list.contains(&diagnostic) {
            list.push(diagnostic);
        }
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// All of it, in the order of the files; an error if there is any.
    pub fn finish(self, sources: &Sources) -> Result<(), Diagnostics> {
        let mut list = self.list.into_inner();
        if list.is_empty() {
            return Ok(());
        }
        list.sort_by_key(|diagnostic| diagnostic.at);
        Err(Diagnostics { sources: sources.clone(), list })
    }
}

/// All that is wrong with a manifest, with the files to show it in.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    sources: Sources,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// A single thing that no file shows.
    pub fn nowhere(diagnostic: Diagnostic) -> Self {
        Diagnostics { sources: Sources::default(), list: vec![diagnostic] }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Never true of one that was returned as an error.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The text for people: each with its excerpt, hints below.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = Vec::new();
        for diagnostic in &self.list {
            let title = Level::ERROR.primary_title(diagnostic.message.as_str());
            let mut text = match diagnostic.at {
                None => renderer.render(&[annotate_snippets::Group::with_title(title)]),
                Some(span) => {
                    let mut group = title.element(self.snippet(
                        span,
                        &diagnostic.label,
                        AnnotationKind::Primary,
                    ));
                    for (span, label) in &diagnostic.also {
                        let snippet = self.snippet(*span, label, AnnotationKind::Context);
                        group = group.element(snippet);
                    }
                    renderer.render(&[group])
                }
            };
            if let Some(hint) = &diagnostic.hint {
                text.push_str("\n\nhint: ");
                text.push_str(hint);
            }
            out.push(text);
        }
        out.join("\n\n")
    }

    fn snippet<'a>(
        &'a self,
        span: Span,
        label: &'a str,
        kind: AnnotationKind,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let (path, text) = &self.sources.0[span.source];
        let mut annotation = kind.span(underlined(text, span));
        if !label.is_empty() {
            annotation = annotation.label(label);
        }
        Snippet::source(text.as_str()).path(path.as_str()).annotation(annotation)
    }
}

/// The part of a span worth underlining: the first line of a long one.
fn underlined(text: &str, span: Span) -> Range<usize> {
    let (start, end) = (span.start.min(text.len()), span.end.min(text.len()));
    let first_line = text[start..end].find('\n').map_or(end, |length| start + length);
    start..first_line.max(start)
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}
