//! Finds the project of a manifest and opens it: root, manifest, graph, store, context.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use camino::{Utf8Path, Utf8PathBuf};
use tokio_util::sync::CancellationToken;

use super::{Failure, ManifestArgs, USER};
use crate::engine::{Budget, Memory};
use crate::graph::Graph;
use crate::manifest::{Diagnostic, Diagnostics, Inputs, Manifest, Sink, Sources};
use crate::plan::LastRun;
use crate::record::Event;
use crate::stage::{Context, Options, RunFacts, kinds};
use crate::store::{Access, Remote, RemoteError, Store};

/// A manifest in its project.
pub(super) struct Project {
    pub(super) root: Utf8PathBuf,
    pub(super) manifest: Manifest,
    pub(super) graph: Graph,
}

pub(super) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

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
        let kinds = kinds();
        let inputs = Inputs { path, read: &read, env: &env, set, kinds: &kinds };
        let (manifest, graph) = Graph::load(&inputs, root, &env)?;
        Ok(Project { root: root.to_owned(), manifest, graph })
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
        let remote = open_remote(url, access, tell)?;
        match remote.probe().await {
            Ok(()) => {}
            Err(error @ RemoteError::User(_)) => return Err(error.into()),
            Err(error) => remote.pause(&error),
        }
        store.attach(remote);
        Ok(())
    }

    /// What stages share.
    pub(super) fn context(
        &self,
        store: Arc<Store>,
        options: Options,
        emit: Arc<dyn Fn(Event) + Send + Sync>,
    ) -> Context {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Context {
            root: self.root.clone(),
            pipeline: self.manifest.name.clone(),
            run: RunFacts {
                id: ulid::Ulid::new().to_string(),
                started_at: humantime::format_rfc3339_seconds(std::time::SystemTime::now())
                    .to_string(),
                manifest: self.manifest.path.to_string(),
                manifest_digest: self.manifest.digest.to_string(),
                description: self.manifest.description.clone(),
                params: self.manifest.params.clone(),
                git: git(&self.root),
                cores: cores as u32,
                memory: system.total_memory(),
            },
            views: {
                let (last, store) = (OnceLock::new(), store.clone());
                let pipeline = self.manifest.name.clone();
                let read = move || LastRun::read(&store, &pipeline).views;
                Arc::new(move |path| last.get_or_init(&read).get(path).copied())
            },
            store,
            emit,
            watch: None,
            stop: CancellationToken::new(),
            engines: Mutex::new(BTreeMap::new()),
            env: Arc::new(env),
            pins: {
                let path = self.root.join(&self.manifest.path).with_extension("lock");
                let pins = OnceLock::new();
                let read = move || match std::fs::read_to_string(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        Ok(BTreeMap::new())
                    }
                    Err(error) => {
                        Err(format!("cannot read `{path}`: {}", crate::stage::plain(&error)))
                    }
                    Ok(text) => crate::exec::pins(&text)
                        .map_err(|error| format!("cannot read the pins in `{path}`: {error}")),
                };
                Arc::new(move |source| {
                    let pins = pins.get_or_init(&read).as_ref().map_err(Clone::clone)?;
                    Ok(pins.get(source).cloned())
                })
            },
            programs: Arc::new(tokio::sync::Semaphore::new(cores)),
            // Half of the machine: something else is running on it, too.
            memory: Arc::new(Memory::new(system.total_memory() / 2)),
            budget: options.budget.map(|dollars| Arc::new(Budget::new(dollars))),
            options,
        }
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
    tell: impl Fn(String) + Send + Sync + 'static,
) -> Result<Remote, Failure> {
    let vars: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Ok(Remote::open(url, access, &vars, tell)?)
}

/// The project of the current folder.
pub(super) fn root_here() -> Result<Utf8PathBuf, Failure> {
    let here = std::env::current_dir().ok().and_then(|dir| Utf8PathBuf::from_path_buf(dir).ok());
    let here = here.ok_or_else(|| usage("the current folder is gone, or its name is not UTF-8"))?;
    // As if a manifest lay here.
    Ok(root_of(&here.join("manifest.toml")))
}

/// The project of a manifest: the nearest folder above it with `.git` or `.forge`; else the parent of a
/// folder called `pipelines`; else the folder of the manifest.
fn root_of(manifest: &Utf8Path) -> Utf8PathBuf {
    let folder = manifest.parent().unwrap_or(Utf8Path::new("/"));
    let marked =
        |folder: &&Utf8Path| folder.join(".git").exists() || folder.join(".forge").exists();
    if let Some(root) = folder.ancestors().find(marked) {
        return root.to_owned();
    }
    match folder.parent() {
        Some(parent) if folder.file_name() == Some("pipelines") => parent.to_owned(),
        _ => folder.to_owned(),
    }
}

/// Commit and whether the work tree differs; `None` outside git.
fn git(root: &Utf8Path) -> Option<(String, bool)> {
    if !root.join(".git").exists() {
        return None;
    }
    let run = |args: &[&str]| {
        let output = std::process::Command::new("git")
            .args(["--no-optional-locks", "-C"])
            .arg(root)
            .args(args)
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let revision = run(&["rev-parse", "HEAD"])?;
    let dirty = !run(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some((revision, dirty))
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
