//! Data sets of a hub: an address becomes a commit, a commit a list of files, and these lie in the store. The
//! hub is asked once; afterwards its answers are read from small pointers there. Knows nothing of rows.

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use url::Url;
use url::form_urlencoded;

use super::source::{Fixture, Format, Part};
use super::splits::{self, Wish};
use super::web::{Wanted, Web, WebError};
use crate::digest::Digest;
use crate::record::Event;
use crate::stage::{Context, StageError};

/// The hub, unless `HF_ENDPOINT` names another one.
const ENDPOINT: &str = "https://huggingface.co";
/// Where an address says no revision.
const BRANCH: &str = "main";
/// Bytes of one page of a list of files.
const LIST_BYTES_MAX: usize = 64 << 20;
/// Pages of a list of files, of a thousand files each.
const PAGES_MAX: usize = 1000;
/// How every address begins.
const START: &str = "hf://datasets/";

/// Files of a data set: `hf://datasets/<org>/<name>@<revision>/<path>?config=…&split=…`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Address {
    /// `org/name`.
    id: String,
    /// A branch, a tag, or a commit.
    revision: String,
    /// A file or a folder.
    path: Option<String>,
    config: Option<String>,
    split: Option<String>,
}

impl Address {
    /// Reads an address; else what is wrong with it, and a hint.
    pub(super) fn parse(text: &str) -> Result<Address, (String, String)> {
        let form = || format!("write `{START}<org>/<name>@<revision>?config=…&split=…`");
        let Some(rest) = text.strip_prefix(START) else {
            return Err((format!("`{text}` is no data set of a hub"), form()));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let bad = |what: &str| Err((format!("`{text}`: {what}"), form()));
        let mut parts = rest.splitn(2, '/');
        let org = parts.next().unwrap_or_default();
        let Some(rest) = parts.next() else { return bad("there is no name of a data set") };
        // A branch may have slashes only where the hub itself makes such: refs/convert/…, refs/pr/….
        let (name, revision, path) = match rest.find(['@', '/']) {
            None => (rest, None, ""),
            Some(at) if rest[at..].starts_with('/') => (&rest[..at], None, &rest[at + 1..]),
            Some(at) => {
                let after = &rest[at + 1..];
                let slashes = if after.starts_with("refs/") { 2 } else { 0 };
                let end = after.match_indices('/').nth(slashes).map_or(after.len(), |(end, _)| end);
                let path = after.get(end + 1..).unwrap_or_default();
                (&rest[..at], Some(&after[..end]), path)
            }
        };
        for part in [org, name] {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if part.is_empty() || part.starts_with('.') || !part.chars().all(plain) {
                return bad(&format!("`{part}` is no name"));
            }
        }
        let revision = revision.map_or_else(|| BRANCH.to_owned(), |text| text.replace("%2F", "/"));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if revision.is_empty() || revision.contains("..") || !revision.chars().all(plain) {
            return bad(&format!("`{revision}` is no revision"));
        }
        if Utf8Path::new(path).components().any(|part| part.as_str() == "..") {
            return bad(&format!("`{path}` leaves the data set"));
        }
        let path = path.trim_matches('/');
        let mut address = Address {
            id: format!("{org}/{name}"),
            revision,
            path: (!path.is_empty()).then(|| path.to_owned()),
            config: None,
            split: None,
        };
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*key {
                "config" | "name" => &mut address.config,
                "split" => &mut address.split,
                _ => return bad(&format!("unknown `{key}` (known: config, split)")),
            };
            if value.is_empty() || slot.replace(value.into_owned()).is_some() {
                return bad(&format!("`{key}` must stand once, and say something"));
            }
        }
        if address.path.is_some() && (address.config.is_some() || address.split.is_some()) {
            return bad("a path says which files, and so do `config` and `split`");
        }
        Ok(address)
    }

    /// What a commit is pinned for.
    fn pinned(&self) -> String {
        format!("{START}{}@{}", self.id, self.revision)
    }

    /// All of it, for messages.
    fn shown(&self) -> String {
        let mut text = self.pinned();
        if let Some(path) = &self.path {
            text.push_str(&format!("/{path}"));
        }
        let all = [("config", &self.config), ("split", &self.split)];
        let given = all.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        for (i, (key, value)) in given.enumerate() {
            text.push_str(&format!("{}{key}={value}", if i == 0 { '?' } else { '&' }));
        }
        text
    }
}

/// Which files an address stands for, as a pointer of the store keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct Listing {
    /// For people.
    address: String,
    format: String,
    /// Path in the data set, and content.
    files: Vec<(String, Digest)>,
}

/// An entry of the hub's list of files.
#[derive(Debug, Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    oid: String,
}

impl TreeEntry {
    fn wanted(&self) -> Result<Wanted, StageError> {
        let Some(lfs) = &self.lfs else {
            return Ok(Wanted::Git { oid: self.oid.to_ascii_lowercase(), size: self.size });
        };
        let oid = lfs.oid.trim_start_matches("sha256:");
        let digest = oid.parse().map_err(|_| {
            StageError::Failed(format!(
                "the hub calls `{}` by a name that is no SHA-256",
                self.path
            ))
        })?;
        Ok(Wanted::Sha256(digest))
    }
}

/// The files of a data set, in the store. `whole` makes sure of their content.
pub(super) async fn files(
    address: &Address,
    format: Option<Format>,
    stage: &str,
    context: &Context,
    whole: bool,
) -> Result<Fixture, StageError> {
    let hub = Hub { address, stage, context };
    let commit = hub.commit().await?;
    if commit != address.revision {
        let (stage, source) = (stage.to_owned(), address.pinned());
        (context.emit)(Event::DataPinned { stage, source, revision: commit.clone() });
    }
    let wish = (&address.id, &commit, &address.path, &address.config, &address.split);
    let pointer = format!("data-{}.list", Digest::of_json(&(wish, format.map(Format::name))));
    let known: Option<Listing> =
        context.store.pointer(&pointer).and_then(|text| serde_json::from_str(&text).ok());
    let there = |digest: Digest| match whole {
        true => context.store.is_whole(digest),
        false => context.store.has_blob(digest),
    };
    let listing = match known {
        Some(known) if known.files.iter().all(|(_, digest)| there(*digest)) => known,
        _ => {
            let listing = hub.fetch(&commit, format).await?;
            let text = serde_json::to_string(&listing).expect("BUG: a list is plain data");
            context.store.set_pointer(&pointer, &text)?;
            listing
        }
    };
    let format = Format::of("", false, Some(&listing.format)).ok_or_else(|| {
        StageError::Failed(format!("the store's list of `{}` is damaged", address.shown()))
    })?;
    let part = |(path, digest): (String, Digest)| Part {
        name: format!("{START}{}/{path}", address.id),
        path,
        digest,
    };
    let parts = listing.files.into_iter().map(part).collect();
    Ok(Fixture { name: address.shown(), format, parts })
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// A data set and who wants it.
struct Hub<'a> {
    address: &'a Address,
    stage: &'a str,
    context: &'a Context,
}

impl Hub<'_> {
    /// The commit of the revision: as the lock file says, else as the store remembers, else as the hub says.
    async fn commit(&self) -> Result<String, StageError> {
        let Address { id, revision, .. } = self.address;
        if is_commit(revision) {
            return Ok(revision.clone());
        }
        let source = self.address.pinned();
        let pointer = format!("data-{}.pin", Digest::of(source.as_bytes()));
        let store = &self.context.store;
        if !self.context.options.update_data {
            let pinned = (self.context.pins)(&source).map_err(StageError::User)?;
            let known =
                pinned.or_else(|| store.pointer(&pointer).map(|text| text.trim().to_owned()));
            if let Some(commit) = known.filter(|commit| is_commit(commit)) {
                return Ok(commit);
            }
        }
        let (web, base) = self.web()?;
        let url = at(&base, &["api", "datasets"], id, &["revision", revision]);
        let (body, _) = web.text(&url, LIST_BYTES_MAX).await.map_err(|e| self.refused(&web, e))?;
        let info: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let commit = info["sha"]
            .as_str()
            .filter(|commit| is_commit(commit))
            .ok_or_else(|| StageError::Failed(format!("the hub names no commit for `{source}`")))?;
        store.set_pointer(&pointer, commit)?;
        Ok(commit.to_owned())
    }

    fn web(&self) -> Result<(Web<'_>, Url), StageError> {
        let var = |name: &str| (self.context.env)(name).filter(|value| !value.trim().is_empty());
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let base = Url::parse(endpoint.trim())
            .ok()
            .filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
        let base = base.ok_or_else(|| {
            StageError::User(format!("HF_ENDPOINT is `{endpoint}`, which is no address of a hub"))
        })?;
        let servers = std::slice::from_ref(&base);
        let web = Web::open(self.stage, self.context, servers, &self.address.shown())?;
        let web = match var("HF_TOKEN") {
            Some(token) => web.with_token(&base, token.trim())?,
            None => web,
        };
        Ok((web, base))
    }

    /// What a hub means that says no.
    fn refused(&self, web: &Web<'_>, error: WebError) -> StageError {
        let shown = self.address.shown();
        let why = match (&error, web.has_token()) {
            (WebError::Status(401 | 403, _), false) => {
                "it may not be there, or be private or gated: then set HF_TOKEN to a token that may read it"
            }
            (WebError::Status(401 | 403, _), true) => {
                "the token in HF_TOKEN may not read it (of a gated data set, the terms have to be accepted first)"
            }
            (WebError::Status(404, _), _) => "there is no such data set or revision",
            _ => return error.about(&shown),
        };
        StageError::User(format!("{}; {why}", error.about(&shown)))
    }

    /// Asks which files there are, picks those that are wanted, and fetches them.
    async fn fetch(&self, commit: &str, format: Option<Format>) -> Result<Listing, StageError> {
        let (web, base) = self.web()?;
        let shown = self.address.shown();
        let tree = self.tree(&web, &base, commit).await?;
        let paths: Vec<&str> = tree.iter().map(|entry| entry.path.as_str()).collect();
        let readme = match (&self.address.path, tree.iter().find(|file| file.path == "README.md")) {
            (None, Some(entry)) => {
                let digest = self.file(&web, &base, commit, entry, "README.md").await?;
                let text = self.context.store.blob(digest).unwrap_or_default();
                Some(String::from_utf8_lossy(&text).into_owned())
            }
            _ => None,
        };
        let Address { path, config, split, .. } = self.address;
        let wish = Wish {
            path: path.as_deref(),
            config: config.as_deref(),
            split: split.as_deref(),
            format,
        };
        let (format, chosen) = splits::choose(&paths, readme.as_deref(), &wish)
            .map_err(|message| StageError::User(format!("`{shown}`: {message}")))?;
        let mut files = Vec::new();
        for (i, path) in chosen.iter().enumerate() {
            let entry = tree.iter().find(|entry| entry.path == *path);
            let entry = entry.expect("BUG: a chosen file is not in the list");
            let name = format!("{}: file {} of {}, `{path}`", self.address.id, i + 1, chosen.len());
            files.push((path.clone(), self.file(&web, &base, commit, entry, &name).await?));
        }
        Ok(Listing { address: shown, format: format.name().to_owned(), files })
    }

    async fn file(
        &self,
        web: &Web<'_>,
        base: &Url,
        commit: &str,
        entry: &TreeEntry,
        name: &str,
    ) -> Result<Digest, StageError> {
        let wanted = entry.wanted()?;
        if let Wanted::Sha256(digest) = wanted
            && self.context.store.is_whole(digest)
        {
            return Ok(digest);
        }
        let url = at(base, &["datasets"], &self.address.id, &["resolve", commit]);
        let url = extended(&url, entry.path.split('/'));
        web.store(&url, name, &wanted).await
    }

    /// Every file of a commit.
    async fn tree(
        &self,
        web: &Web<'_>,
        base: &Url,
        commit: &str,
    ) -> Result<Vec<TreeEntry>, StageError> {
        let mut url = at(base, &["api", "datasets"], &self.address.id, &["tree", commit]);
        url.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        for _ in 0..PAGES_MAX {
            let (body, headers) =
                web.text(&url, LIST_BYTES_MAX).await.map_err(|error| self.refused(web, error))?;
            let page: Vec<TreeEntry> = serde_json::from_slice(&body).map_err(|error| {
                StageError::Failed(format!(
                    "the hub's list of files of `{}` is not as expected: {error}",
                    self.address.shown()
                ))
            })?;
            files.extend(page.into_iter().filter(|entry| entry.kind == "file"));
            let link = headers.get("link").and_then(|link| link.to_str().ok());
            match link.and_then(next_page).and_then(|next| url.join(next).ok()) {
                Some(next) if next.origin() == base.origin() => url = next,
                Some(_) => {
                    let message = "the hub's list of files goes on at another server";
                    return Err(StageError::Failed(message.to_owned()));
                }
                None => return Ok(files),
            }
        }
        Err(StageError::Failed(format!("`{}` has too many files", self.address.shown())))
    }
}

/// The address of the next page in a `Link` header (RFC 8288).
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|part| {
        let (address, rest) = part.trim().strip_prefix('<')?.split_once('>')?;
        let next = rest.split(';').any(|word| matches!(word.trim(), "rel=\"next\"" | "rel=next"));
        next.then_some(address)
    })
}

/// An address below that of the hub. A slash in one of the last parts is no separator.
fn at(base: &Url, first: &[&str], id: &str, last: &[&str]) -> Url {
    let all = first.iter().copied().chain(id.split('/')).chain(last.iter().copied());
    extended(base, all)
}

fn extended<'a>(base: &Url, parts: impl Iterator<Item = &'a str>) -> Url {
    let mut url = base.clone();
    let mut segments = url.path_segments_mut().expect("BUG: an address of a hub has a path");
    segments.pop_if_empty().extend(parts);
    drop(segments);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: (&str, &str, Option<&str>, Option<&str>, Option<&str>)) {
        let address = Address::parse(text).unwrap();
        let got = (
            address.id.as_str(),
            address.revision.as_str(),
            address.path.as_deref(),
            address.config.as_deref(),
            address.split.as_deref(),
        );
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn addresses_are_read() {
        check("hf://datasets/a/b", ("a/b", "main", None, None, None));
        check(
            "hf://datasets/openai/gsm8k@v1?config=main&split=test",
            ("openai/gsm8k", "v1", None, Some("main"), Some("test")),
        );
        check("hf://datasets/a/b@v1/x/y.csv", ("a/b", "v1", Some("x/y.csv"), None, None));
        check("hf://datasets/a/b/x.csv", ("a/b", "main", Some("x.csv"), None, None));
        check(
            "hf://datasets/a/b@refs/convert/parquet?split=test",
            ("a/b", "refs/convert/parquet", None, None, Some("test")),
        );
        check("hf://datasets/a/b@refs%2Fpr%2F1/x", ("a/b", "refs/pr/1", Some("x"), None, None));
    }

    #[test]
    fn bad_addresses_are_refused() {
        let check = |text: &str, want: &str| {
            let (message, _) = Address::parse(text).unwrap_err();
            assert!(message.contains(want), "{text}: {message}");
        };
        check("hf://datasets/squad", "there is no name of a data set");
        check("hf://datasets/../x", "`..` is no name");
        check("hf://datasets/a/b@", "`` is no revision");
        check("hf://datasets/a/b/../../c", "leaves the data set");
        check("hf://datasets/a/b?spilt=test", "unknown `spilt` (known: config, split)");
        check("hf://datasets/a/b?split=", "must stand once");
        check("hf://datasets/a/b/x.csv?split=test", "a path says which files");
        check("hf://models/a/b", "is no data set of a hub");
    }

    #[test]
    fn a_revision_is_one_part_of_an_address() {
        let base = Url::parse("http://mirror/hub/").unwrap();
        let url = at(&base, &["api", "datasets"], "a/b", &["revision", "refs/convert/parquet"]);
        assert_eq!(
            url.as_str(),
            "http://mirror/hub/api/datasets/a/b/revision/refs%2Fconvert%2Fparquet"
        );
        let link =
            "<https://h/api?cursor=a,b>; rel=\"prev\", <https://h/api?cursor=c>; rel=\"next\"";
        assert_eq!(
            next_page("<https://h/api?cursor=c>; rel=\"next\""),
            Some("https://h/api?cursor=c")
        );
        assert_eq!(next_page(link), Some("https://h/api?cursor=c"));
    }
}
