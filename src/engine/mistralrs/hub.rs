//! A hub id with a revision becomes a folder on this machine. Knows nothing of engines.
//!
//! mistral.rs could take a hub id itself, but keeps its list of files per id and not per revision, so a
//! second revision would load the files of the first. Here a revision is resolved to its commit once, the
//! files are fetched through hf-hub's cache, and mistral.rs gets the folder of that commit.

use std::path::PathBuf;

use camino::Utf8PathBuf;
/// The folder of a model at a revision: from the cache if it is there whole, else fetched, if that is
/// allowed.
pub fn snapshot(id: &str, revision: &str, may_fetch: bool) -> Result<Utf8PathBuf, String> {
    let cache = cache_folder()?;
    if let Some(folder) = cached(&cache, id, revision) {
        return Ok(folder);
    }
    if !may_fetch {
        return Err(format!(
            "`{id}` at `{revision}` is not in the hub's cache `{}`; `forge apply` fetches it",
            cache.display()
        ));
    }
    fetch(&cache, id, revision)
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

/// The snapshot in the cache, if all its files are there.
fn cached(cache: &std::path::Path, id: &str, revision: &str) -> Option<Utf8PathBuf> {
    let root = cache.join(folder_name(id));
    let commit = std::fs::read_to_string(root.join("refs").join(revision))
        .map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
    let folder = Utf8PathBuf::from_path_buf(root.join("snapshots").join(commit)).ok()?;
    is_whole(&folder).then_some(folder)
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
fn fetch(_: &std::path::Path, _: &str, _: &str) -> Result<Utf8PathBuf, &'static str> {
    Err("this forge was built without the feature `mistralrs`")
}

#[cfg(feature = "mistralrs")]
fn fetch(
    cache: &std::path::Path,
    id: &str,
    revision: &str,
) -> Result<Utf8PathBuf, hf_hub::api::sync::ApiError> {
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Repo, RepoType};

    let repo = |id: &str, revision: &str| {
        Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned())
    };
    let api = ApiBuilder::from_env()
        .with_cache_dir(cache.to_path_buf())
        .with_token(std::env::var("HF_TOKEN").ok())
        .with_progress(true)
        .build()?;
    let commit = api.repo(repo(id, revision)).info()?.sha;
    // From here on by commit: the revision may move meanwhile.
    let pinned = api.repo(repo(id, &commit));
    for file in pinned.info()?.siblings {
        if super::decides(&file.rfilename) {
            pinned.get(&file.rfilename)?;
        }
    }
    let folder = cache.join(folder_name(id)).join("snapshots").join(&commit);
    Ok(Utf8PathBuf::from_path_buf(folder).expect("BUG: the cache folder is UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(cached(dir.path(), "org/name", "main"), None, "the weights are missing");
        std::fs::write(snapshot.join("model.safetensors"), "").unwrap();
        for revision in ["main", "abc123"] {
            let found = cached(dir.path(), "org/name", revision).unwrap();
            assert_eq!(found.as_std_path(), snapshot);
        }
        assert_eq!(cached(dir.path(), "org/name", "other"), None);
    }
}
