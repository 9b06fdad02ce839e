//! A hub id with a revision becomes a folder on this machine. Knows nothing of engines.
//!
//! mistral.rs could take a hub id itself, but keeps its list of files per id and not per revision, so a
//! second revision would load the files of the first. Here a revision is resolved to its commit once, the
//! files are fetched through hf-hub's cache, and mistral.rs gets the folder of that commit.

use std::path::PathBuf;

use camino::Utf8PathBuf;

use super::gguf;

/// The folder of a model at a revision: from the cache if it is there whole, else fetched, if that is
/// allowed. Of a repository of GGUF files the one named `file` is all that is needed, with its other parts if it is the
/// first of several.
pub fn snapshot(
    id: &str,
    revision: &str,
    file: Option<&str>,
    may_fetch: bool,
    tell: &(dyn Fn(String) + Sync),
) -> Result<Utf8PathBuf, String> {
    let cache = cache_folder()?;
    if let Some(folder) = cached(&cache, id, revision, file) {
        return Ok(folder);
    }
    if !may_fetch {
        return Err(format!(
            "`{id}` at `{revision}` is not in the hub's cache `{}`; `forge apply` fetches it",
            cache.display()
        ));
    }
    fetch(&cache, id, revision, file, tell)
        .map_err(|error| format!("cannot fetch `{id}` at `{revision}` from the hub: {error}"))
}

/// `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`, as the hub's own tools.
fn cache_folder() -> Result<PathBuf, String> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    var("HF_HUB_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(var("HF_HOME")?).join("hub")))
        .or_else(|| Some(PathBuf::from(var("HOME")?).join(".cache/huggingface/hub")))
        .ok_or_else(|| "no folder for the hub's cache: set HF_HOME".to_owned())
}

/// The folder of a model in the cache, by the hub's own convention.
fn folder_name(id: &str) -> String {
    format!("models--{}", id.replace('/', "--"))
}

/// The snapshot in the cache, if all its files are there, or the one that is wanted.
fn cached(
    cache: &std::path::Path,
    id: &str,
    revision: &str,
    file: Option<&str>,
) -> Option<Utf8PathBuf> {
    let root = cache.join(folder_name(id));
    let commit = std::fs::read_to_string(root.join("refs").join(revision))
        .map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
    let folder = Utf8PathBuf::from_path_buf(root.join("snapshots").join(commit)).ok()?;
    let is_there = match file {
        Some(file) => gguf::parts(file).ok()?.iter().all(|part| folder.join(part).exists()),
        None => is_whole(&folder),
    };
    is_there.then_some(folder)
}

/// Whether a folder has what it takes to load: an interrupted download leaves some files out.
fn is_whole(folder: &camino::Utf8Path) -> bool {
    let has = |name: &str| folder.join(name).exists();
    if !has("config.json") || !has("tokenizer.json") {
        return false;
    }
    let Ok(text) = std::fs::read_to_string(folder.join("model.safetensors.index.json")) else {
        return has("model.safetensors");
    };
    let index: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let shards = index["weight_map"].as_object();
    shards.is_some_and(|shards| shards.values().all(|name| name.as_str().is_some_and(&has)))
}

#[cfg(not(feature = "mistralrs"))]
fn fetch(
    _: &std::path::Path,
    _: &str,
    _: &str,
    _: Option<&str>,
    _: &(dyn Fn(String) + Sync),
) -> Result<Utf8PathBuf, &'static str> {
    Err("this forge was built without the feature `mistralrs`")
}

#[cfg(feature = "mistralrs")]
fn fetch(
    cache: &std::path::Path,
    id: &str,
    revision: &str,
    file: Option<&str>,
    tell: &(dyn Fn(String) + Sync),
) -> Result<Utf8PathBuf, String> {
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Cache, Repo, RepoType};

    // Two engines on one model: the second finds what the first has fetched.
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);

    let words = |error: hf_hub::api::sync::ApiError| error.to_string();
    let mut builder = ApiBuilder::from_env()
        .with_cache_dir(cache.to_path_buf())
        .with_progress(false)
        .with_retries(5);
    // Without it the token of the hub's own tools counts.
    if let Ok(token) = std::env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(words)?;
    let pinned = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
    let have = Cache::new(cache.to_path_buf()).repo(pinned.clone());
    let remote = api.repo(pinned);
    let files = remote.info().map_err(words)?.siblings;
    // Mistral's own form of the same weights would take the place of the other.
    let parts = file.map(gguf::parts).transpose()?;
    let is_needed = |name: &String| match &parts {
        Some(parts) => parts.contains(name),
        None => {
            super::decides(name)
                && name != "params.json"
                && !name.starts_with("consolidated")
                && !name.contains('/')
        }
    };
    let all: Vec<String> = files.into_iter().map(|file| file.rfilename).collect();
    let files: Vec<String> = all.iter().filter(|name| is_needed(name)).cloned().collect();
    if let Some(lacks) = parts.iter().flatten().find(|part| !files.contains(part)) {
        return Err(absent(lacks, &all));
    }
    for (i, name) in files.iter().enumerate() {
        let at = format!("{id}: file {} of {}, `{name}`", i + 1, files.len());
        let path = match have.get(name) {
            Some(path) => path,
            None => remote.download_with_progress(name, Download::new(&at, tell)).map_err(words)?,
        };
        tell(format!("{at}: verifying"));
        if let Err(error) = verify(&path) {
            // The next run fetches it again.
            let _ = std::fs::remove_file(path.canonicalize().unwrap_or(path.clone()));
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
    }
    let folder = cache.join(folder_name(id)).join("snapshots").join(revision);
    Ok(Utf8PathBuf::from_path_buf(folder).expect("BUG: the cache folder is UTF-8"))
}

/// That a repository has no such file, and which it has.
#[cfg_attr(not(feature = "mistralrs"), allow(dead_code, reason = "nothing is fetched"))]
fn absent(file: &str, all: &[String]) -> String {
    let known = all.iter().filter(|name| name.ends_with(".gguf"));
    let known: Vec<_> = known.map(|name| format!("`{name}`")).collect();
    match known.is_empty() {
        true => format!("it has no `{file}`, nor any other GGUF file"),
        false => format!("it has no `{file}` (known: {})", known.join(", ")),
    }
}

/// What is wrong with a file of the cache: its name there is the SHA-256 of its content for weights, and git's own
/// hash, which is not looked at, for small files. `found` is the digest of what is there.
pub(super) fn damage(path: &std::path::Path, found: &str) -> Option<String> {
    let blob = path.canonicalize().ok()?;
    let name = blob.file_name()?.to_str()?;
    let is_digest = name.len() == 64 && name.chars().all(|c| c.is_ascii_hexdigit());
    (is_digest && !found.eq_ignore_ascii_case(name))
        .then(|| format!("`{}` is damaged: its SHA-256 is {found} and not {name}", path.display()))
}

/// A file that has just been fetched.
#[cfg_attr(not(feature = "mistralrs"), allow(dead_code, reason = "nothing is fetched"))]
fn verify(path: &std::path::Path) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("`{}`: {error}", path.display());
    let mut digest = crate::digest::DigestStream::default();
    let mut file = std::fs::File::open(path).map_err(fail)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).map_err(fail)? {
            0 => break,
            n => digest.update(&buffer[..n]),
        }
    }
    damage(path, &digest.finish().to_string()).map_or(Ok(()), Err)
}

/// Tells how far a download is, twice a second.
#[cfg(feature = "mistralrs")]
struct Download<'a> {
    at: &'a str,
    tell: &'a (dyn Fn(String) + Sync),
    size: usize,
    done: usize,
    start: std::time::Instant,
    told: std::time::Instant,
}

#[cfg(feature = "mistralrs")]
impl<'a> Download<'a> {
    fn new(at: &'a str, tell: &'a (dyn Fn(String) + Sync)) -> Self {
        let now = std::time::Instant::now();
        Download { at, tell, size: 0, done: 0, start: now, told: now }
    }
}

#[cfg(feature = "mistralrs")]
impl hf_hub::api::Progress for Download<'_> {
    fn init(&mut self, size: usize, _: &str) {
        // Once more for every further try.
        (self.size, self.done) = (size, 0);
    }

    fn update(&mut self, size: usize) {
        self.done += size;
        if self.told.elapsed() >= std::time::Duration::from_millis(500) {
            self.told = std::time::Instant::now();
            let bytes = |n: usize| bytesize::ByteSize(n as u64).display().si();
            let a_second = self.done as f64 / self.start.elapsed().as_secs_f64();
            let (done, size) = (bytes(self.done), bytes(self.size));
            (self.tell)(format!("{}: {done} of {size}, {}/s", self.at, bytes(a_second as usize)));
        }
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let name = crate::digest::Digest::of(b"weights").to_string();
        let path = dir.path().join(name);
        std::fs::write(&path, "weights").unwrap();
        assert_eq!(verify(&path), Ok(()));
        std::fs::write(&path, "weight?").unwrap();
        assert!(verify(&path).unwrap_err().contains("is damaged"));
        let small = dir.path().join("0123456789abcdef0123456789abcdef01234567");
        std::fs::write(&small, "{}").unwrap();
        assert_eq!(verify(&small), Ok(()));
    }

    #[test]
    fn a_cached_snapshot_is_found_by_branch_and_by_commit() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("models--org--name");
        let snapshot = root.join("snapshots").join("abc123");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(root.join("refs")).unwrap();
        std::fs::write(root.join("refs/main"), "abc123\n").unwrap();
        for name in ["config.json", "tokenizer.json"] {
            std::fs::write(snapshot.join(name), "{}").unwrap();
        }
        assert_eq!(cached(dir.path(), "org/name", "main", None), None, "the weights are missing");
        std::fs::write(snapshot.join("model.safetensors"), "").unwrap();
        for revision in ["main", "abc123"] {
            let found = cached(dir.path(), "org/name", revision, None).unwrap();
            assert_eq!(found.as_std_path(), snapshot);
        }
        assert_eq!(cached(dir.path(), "org/name", "other", None), None);
        // Of a repository of GGUF files one is enough.
        let one = |file| cached(dir.path(), "org/name", "main", Some(file));
        assert_eq!(one("model-q8_0.gguf"), None);
        std::fs::write(snapshot.join("model-q8_0.gguf"), "").unwrap();
        assert!(one("model-q8_0.gguf").is_some());
        // Of one in parts all.
        std::fs::write(snapshot.join("m-00001-of-00002.gguf"), "").unwrap();
        assert_eq!(one("m-00001-of-00002.gguf"), None);
        std::fs::write(snapshot.join("m-00002-of-00002.gguf"), "").unwrap();
        assert!(one("m-00001-of-00002.gguf").is_some());
        let all = ["README.md", "a.gguf"].map(str::to_owned);
        assert_eq!(absent("b.gguf", &all), "it has no `b.gguf` (known: `a.gguf`)");
    }
}
