//! Finds the project of a manifest by the arguments of the command line, and opens it: manifest, graph, stores.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use super::{Failure, ManifestArgs, USER};
use crate::graph::Graph;
use crate::manifest::{Diagnostic, Diagnostics, Inputs, Manifest, Sink, Sources};
use crate::project::root_of;
pub(super) use crate::project::{Project, env};
use crate::stage::kinds;
use crate::store::{Access, Patience, Remote, RemoteError, Store};

impl Project {
    /// Parses the manifest and builds its graph.
    pub(super) fn open(args: &ManifestArgs) -> Result<Project, Failure> {
        let full = find_manifest(&args.manifest)?;
        let root = root_of(&full);
        let path =
            full.strip_prefix(&root).expect("BUG: a manifest outside its project").to_owned();
        Ok(Project::at(&root, &path, &args.set)?)
    }

    /// The same of a project whose root is known; `path` is relative to it.
    pub(super) fn at(
        root: &Utf8Path,
        path: &Utf8Path,
        set: &[(String, String)],
    ) -> Result<Project, Diagnostics> {
        let read = |path: &Utf8Path| crate::stage::read_project_text(root, path);
        Project::read(root.to_owned(), path, set, &read)
    }

    /// Opens the store: `--store` and `FORGE_STORE` before the manifest's before `.forge`.
    pub(super) fn store(&self, args: &ManifestArgs) -> Result<Arc<Store>, Failure> {
        let path = match (&args.store, &self.manifest.store) {
            (Some(store), _) => store.clone(),
            (None, Some(store)) => self.root.join(store),
            (None, None) => self.root.join(".forge"),
        };
        Ok(Arc::new(Store::open(&path)?))
    }

    /// Puts the shared store behind the local one, where one is named. What the user can mend is an error; a
    /// server that does not answer is said, and done without.
    pub(super) async fn share(
        &self,
        args: &ManifestArgs,
        store: &Store,
        may_write: bool,
        tell: impl Fn(String) + Send + Sync + 'static,
    ) -> Result<(), Failure> {
        let url = args.remote.remote.as_ref().or(self.manifest.remote.as_ref());
        let Some(url) = url else { return Ok(()) };
        let mode = args.remote.remote_mode.as_ref().or(self.manifest.remote_mode.as_ref());
        let access = if may_write { access(mode.map(String::as_str)) } else { Access::ReadOnly };
        let remote = open_remote(url, access, Patience::Run, tell)?;
        match remote.probe().await {
            Ok(()) => {}
            Err(error @ RemoteError::User(_)) => return Err(error.into()),
            Err(error) => remote.pause(&error),
        }
        store.attach(remote);
        Ok(())
    }
}

/// What a manifest says of stores.
#[derive(Default)]
pub(super) struct StoreSettings {
    /// The project.
    pub(super) root: Utf8PathBuf,
    /// Folder of the store.
    pub(super) store: Option<Utf8PathBuf>,
    /// The shared one.
    pub(super) remote: Option<String>,
    /// Who writes there.
    pub(super) remote_mode: Option<String>,
}

/// Reads them. Stages that are wrong are for others to say.
pub(super) fn store_settings(manifest: &Utf8Path) -> Result<StoreSettings, Failure> {
    let full = find_manifest(manifest)?;
    let root = root_of(&full);
    let path = full.strip_prefix(&root).expect("BUG: a manifest outside its project");
    let read = |path: &Utf8Path| crate::stage::read_project_text(&root, path);
    let kinds = kinds();
    let inputs = Inputs { path, read: &read, env: &env, set: &[], kinds: &kinds };
    let (sink, mut sources) = (Sink::default(), Sources::default());
    let Some(manifest) = Manifest::read(&inputs, &mut sources, &sink) else {
        sink.finish(&sources)?;
        unreachable!("BUG: a manifest that failed without a word");
    };
    let store = manifest.store.map(|store| root.join(store));
    let (remote, remote_mode) = (manifest.remote, manifest.remote_mode);
    Ok(StoreSettings { root, store, remote, remote_mode })
}

/// Where a manifest is, with no link in it.
fn find_manifest(manifest: &Utf8Path) -> Result<Utf8PathBuf, Failure> {
    manifest.canonicalize_utf8().map_err(|error| {
        let why = crate::stage::plain(&error);
        let diagnostic = Diagnostic::nowhere(format!("cannot read `{manifest}`: {why}"));
        let diagnostic = diagnostic.hint("`forge init` writes a small working project");
        Failure::from(Diagnostics::nowhere(diagnostic))
    })
}

/// What a mode allows here.
pub(super) fn access(mode: Option<&str>) -> Access {
    match mode {
        Some("read-only") => Access::ReadOnly,
        Some("ci-writes")
            if env("CI").is_none_or(|ci| matches!(ci.as_str(), "" | "0" | "false")) =>
        {
            Access::ReadOnly
        }
        _ => Access::ReadWrite,
    }
}

/// Opens a shared store with the credentials of the environment.
pub(super) fn open_remote(
    url: &str,
    access: Access,
    patience: Patience,
    tell: impl Fn(String) + Send + Sync + 'static,
) -> Result<Remote, Failure> {
    let vars: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Ok(Remote::open(url, access, patience, &vars, tell)?)
}

/// The project of the current folder.
pub(super) fn root_here() -> Result<Utf8PathBuf, Failure> {
    let here = std::env::current_dir().ok().and_then(|dir| Utf8PathBuf::from_path_buf(dir).ok());
    let here = here.ok_or_else(|| usage("the current folder is gone, or its name is not UTF-8"))?;
    // As if a manifest lay here.
    Ok(root_of(&here.join("manifest.toml")))
}

/// Stages by the names of the command line.
pub(super) fn select(graph: &Graph, names: &[String]) -> Result<Vec<usize>, Failure> {
    let mut found = Vec::new();
    for name in names {
        found.extend(graph.select(name)?);
    }
    Ok(found)
}

/// A wrong use of the command line.
pub(super) fn usage(message: impl Into<String>) -> Failure {
    Failure::Message(message.into(), USER)
}
