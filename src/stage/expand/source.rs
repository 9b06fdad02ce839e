//! Where rows come from: files and folders of the project, addresses with a pinned digest, data sets of a hub.
//! Knows nothing of what is in them.

use camino::{Utf8Path, Utf8PathBuf};
use url::Url;

use super::hub::Address;
use super::web::{Wanted, Web};
use crate::digest::{Digest, Recipe};
use crate::manifest::{Diagnostic, Fields, Spanned, TextOrTable};
use crate::stage::{Context, Setting, StageError, plain};
use crate::store::Store;

/// How rows are stored, by the names in manifests.
pub(super) const FORMATS: &[&str] = &["jsonl", "json", "csv", "tsv", "parquet", "folder", "files"];

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    Parquet,
    JsonLines,
    Json,
    Csv,
    Tsv,
    /// All files of a folder are one row.
    Folder,
    /// Each file of a folder is a row.
    Files,
}

impl Format {
    /// The format that is named, else that of the ending; an ending of a compression is passed over.
    pub(super) fn of(path: &str, is_folder: bool, named: Option<&str>) -> Option<Format> {
        let path = Utf8Path::new(path);
        let compressed = path.extension().is_some_and(|ending| {
            ["gz", "gzip", "zst", "zstd"].iter().any(|known| ending.eq_ignore_ascii_case(known))
        });
        let stem = if compressed { path.file_stem().map(Utf8Path::new) } else { Some(path) };
        let ending = stem.and_then(Utf8Path::extension);
        let name = named.or(if is_folder { Some("folder") } else { ending })?;
        match name.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Some(Format::JsonLines),
            "json" => Some(Format::Json),
            "csv" => Some(Format::Csv),
            "tsv" => Some(Format::Tsv),
            "parquet" => Some(Format::Parquet),
            "folder" if named.is_some() || is_folder => Some(Format::Folder),
            "files" if named.is_some() => Some(Format::Files),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Format::JsonLines => "jsonl",
            Format::Json => "json",
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::Parquet => "parquet",
            Format::Folder => "folder",
            Format::Files => "files",
        }
    }

    /// Whether it is of a folder, and of nothing else.
    fn needs_folder(self) -> bool {
        matches!(self, Format::Folder | Format::Files)
    }
}

/// A fixture as the manifest names it.
pub(super) enum Source {
    /// A file or folder of the project.
    Local { path: Utf8PathBuf, format: Format },
    /// A file somewhere, and what its content must be.
    Web { url: Url, sha256: Digest, format: Format },
    /// A data set; the format is that of its files, unless the manifest names one.
    Hub { address: Address, format: Option<Format> },
}

impl Source {
    /// Reads all of them.
    pub(super) fn read(
        fields: &Fields<'_>,
        name: &str,
        setting: &Setting<'_>,
        named: Option<&str>,
    ) -> Vec<Source> {
        let entries = fields.entries(name).unwrap_or_default();
        let read = |entry| match entry {
            TextOrTable::Text(text) => Source::text(&text, fields, setting, named),
            TextOrTable::Table(table) => Source::table(table, named),
        };
        entries.into_iter().filter_map(read).collect()
    }

    fn text(
        text: &Spanned<String>,
        fields: &Fields<'_>,
        setting: &Setting<'_>,
        named: Option<&str>,
    ) -> Option<Source> {
        let error = |message: String, hint: &str| {
            fields.error(Diagnostic::at(text.span, message).hint(hint));
            None
        };
        if text.value.starts_with("hf://") {
            return match Address::parse(&text.value) {
                Ok(address) => {
                    let format = named.and_then(|named| Format::of("", false, Some(named)));
                    if format.is_some_and(Format::needs_folder) {
                        let hint = "leave `format` out: the names of its files tell";
                        return error(
                            "a data set has rows, and no folders of files".to_owned(),
                            hint,
                        );
                    }
                    Some(Source::Hub { address, format })
                }
                Err((message, hint)) => error(message, &hint),
            };
        }
        if text.value.starts_with("http://") || text.value.starts_with("https://") {
            let hint = "write `{ url = \"…\", sha256 = \"…\" }`; `curl -L <url> | sha256sum` says what it is";
            return error("an address needs the SHA-256 of its content".to_owned(), hint);
        }
        if let Some((scheme, _)) = text.value.split_once("://") {
            let hint = "known: paths of the project, `hf://datasets/<org>/<name>`, `{ url = \"https://…\", sha256 = \"…\" }`";
            return error(format!("rows cannot come from `{scheme}://`"), hint);
        }
        let path = fields.check_path(text)?;
        if !setting.check_exists(fields, &path) {
            return None;
        }
        let is_folder = setting.root.join(&path.value).is_dir();
        match Format::of(path.value.as_str(), is_folder, named) {
            Some(format) => Some(Source::Local { path: path.value, format }),
            None => unknown_format(fields, &path.value, text),
        }
    }

    fn table(fields: Fields<'_>, named: Option<&str>) -> Option<Source> {
        let url = fields.needed_text("url");
        let sha256 = fields.needed_text("sha256");
        let mut source = None;
        if let (Some(text), Some(sha256)) = (url, sha256) {
            let digest = sha256.value.to_ascii_lowercase().parse::<Digest>();
            if digest.is_err() {
                let message = format!("`{}` is no SHA-256 (64 hex digits)", sha256.value);
                fields.error(Diagnostic::at(sha256.span, message));
            }
            match check_url(&text.value) {
                Err(message) => fields.error(Diagnostic::at(text.span, message)),
                Ok(url) => match Format::of(url.path(), false, named) {
                    Some(format) if !format.needs_folder() => {
                        source = digest.ok().map(|sha256| Source::Web { url, sha256, format });
                    }
                    _ => {
                        source = unknown_format(&fields, Utf8Path::new(url.path()), &text);
                    }
                },
            }
        }
        fields.finish();
        source
    }

    /// Its path in the project.
    pub(super) fn path(&self) -> Option<&Utf8PathBuf> {
        match self {
            Source::Local { path, .. } => Some(path),
            Source::Web { .. } | Source::Hub { .. } => None,
        }
    }

    /// Makes sure that its files are in the store, and with `whole` that their content there is good.
    pub(super) async fn import(
        &self,
        stage: &str,
        context: &Context,
        whole: bool,
    ) -> Result<Fixture, StageError> {
        match self {
            Source::Local { path, format } => local(path, *format, context, whole),
            Source::Web { url, sha256, format } => {
                let name = super::web::shown(url);
                let there = match whole {
                    true => context.store.is_whole(*sha256),
                    false => context.store.has_blob(*sha256),
                };
                if !there {
                    let web = Web::open(stage, context, std::slice::from_ref(url), &name)?;
                    web.store(url, &name, &Wanted::Sha256(*sha256)).await?;
                }
                Ok(Fixture::of_file(name, *format, *sha256))
            }
            Source::Hub { address, format } => {
                super::hub::files(address, *format, stage, context, whole).await
            }
        }
    }
}

fn unknown_format(fields: &Fields<'_>, path: &Utf8Path, text: &Spanned<String>) -> Option<Source> {
    let message = format!("cannot tell what `{path}` holds");
    let hint = format!("add `format` (known: {})", FORMATS.join(", "));
    fields.error(Diagnostic::at(text.span, message).hint(hint));
    None
}

fn check_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("this is no address: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("an address begins with `https://` or `http://`".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address must not hold a password: manifests are committed".to_owned());
    }
    Ok(url)
}

/// A file of a fixture, in the store.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Its path in the fixture, `/` between parts.
    pub(super) path: String,
    /// As messages name it.
    pub(super) name: String,
    pub(super) digest: Digest,
}

/// A fixture in the store.
#[derive(Debug, Clone)]
pub(super) struct Fixture {
    /// As messages name it.
    pub(super) name: String,
    pub(super) format: Format,
    /// In the order in which they are read.
    pub(super) parts: Vec<Part>,
}

impl Fixture {
    /// A single file, such as another stage has made.
    pub(super) fn of_file(name: String, format: Format, digest: Digest) -> Fixture {
        let path = name.rsplit('/').next().unwrap_or_default().to_owned();
        Fixture { parts: vec![Part { path, name: name.clone(), digest }], name, format }
    }

    /// Adds it to a recipe, by content: where a file lies says nothing about its rows.
    pub(super) fn describe(&self, port: &str, recipe: Recipe) -> Recipe {
        let recipe = recipe.field(&format!("{port} format"), self.format.name());
        match (self.format, self.parts.as_slice()) {
            (Format::Folder | Format::Files, parts) => {
                // The names of the files are in the rows.
                let files: Vec<_> = parts.iter().map(|part| (&part.path, part.digest)).collect();
                recipe.input(port.to_owned(), Digest::of_json(&files))
            }
            (_, [one]) => recipe.input(port.to_owned(), one.digest),
            (_, parts) => parts.iter().enumerate().fold(recipe, |recipe, (j, part)| {
                recipe.input(format!("{port} file {j}"), part.digest)
            }),
        }
    }
}

fn local(
    path: &Utf8Path,
    format: Format,
    context: &Context,
    whole: bool,
) -> Result<Fixture, StageError> {
    let full = context.resolve(path)?;
    let store: &Store = &context.store;
    let import =
        |path: &Utf8Path| if whole { store.import_whole(path) } else { store.import(path) };
    if !full.is_dir() {
        if format.needs_folder() {
            let message = format!("`{path}` is a file, and its format is {}", format.name());
            return Err(StageError::User(message));
        }
        return Ok(Fixture::of_file(path.to_string(), format, import(&full)?));
    }
    let mut names = Vec::new();
    crate::stage::files_below(&full, "", &mut names)
        .map_err(|error| StageError::User(format!("cannot read `{path}`: {}", plain(&error))))?;
    if !format.needs_folder() {
        names.retain(|name| Format::of(name, false, None) == Some(format));
        if names.is_empty() {
            let message =
                format!("the folder `{path}` has no file of the format {}", format.name());
            return Err(StageError::User(message));
        }
    }
    names.sort();
    let part = |name: String| {
        let digest = import(&full.join(&name))?;
        Ok(Part { name: format!("{path}/{name}"), path: name, digest })
    };
    let parts = names.into_iter().map(part).collect::<Result<_, StageError>>()?;
    Ok(Fixture { name: path.to_string(), format, parts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_endings() {
        let check = |path: &str, named: Option<&str>, want: Option<Format>| {
            assert_eq!(Format::of(path, false, named), want, "{path}");
        };
        check("a/b.jsonl", None, Some(Format::JsonLines));
        check("b.JSON", None, Some(Format::Json));
        check("b.csv.gz", None, Some(Format::Csv));
        check("b.jsonl.zst", None, Some(Format::JsonLines));
        check("test-00000-of-00001.parquet", None, Some(Format::Parquet));
        check("b.txt", None, None);
        check("b.gz", None, None);
        check("files", None, None);
        check("b.txt", Some("tsv"), Some(Format::Tsv));
    }

    #[test]
    fn the_key_of_one_file_is_that_of_its_content() {
        let digest = Digest::of(b"rows");
        let recipe = |name: &str| {
            let fixture = Fixture::of_file(name.to_owned(), Format::JsonLines, digest);
            fixture.describe("fixture 0", Recipe::new("expand", 1))
        };
        assert_eq!(recipe("a/x.jsonl"), recipe("https://host/y.jsonl"));
        assert_eq!(recipe("a").inputs["fixture 0"], digest);
    }
}
