//! A manifest in its project, and what it takes to run it: for the command line and the server alike. Knows nothing
//! of arguments, and of how a run is shown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::engine::{Budget, Memory, unix_ms};
use crate::exec::{self, Finished, Lock, Selection};
use crate::graph::Graph;
use crate::manifest::{Diagnostics, Inputs, Manifest};
use crate::plan::LastRun;
use crate::record::{Event, RunRecord, RunStatus};
use crate::stage::{Context, Engines, Options, RunFacts, Samples, Watch, kinds};
use crate::store::{FLUSH_EVERY, RunFolder, Store, StoreError, replace_file};

mod gates;

pub use gates::prepare;

/// A manifest in its project.
pub struct Project {
    /// The project's root, with no link in it.
    pub root: Utf8PathBuf,
    /// What is declared.
    pub manifest: Manifest,
    /// Its stages.
    pub graph: Arc<Graph>,
}

/// A variable of the environment.
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What runs on one machine share.
pub struct Machine {
    /// Cores that may be used.
    pub cores: usize,
    /// Bytes of memory that may be used: of the container, where that has fewer than the machine.
    pub memory_bytes: u64,
    engines: Engines,
    memory: Arc<Memory>,
    programs: Arc<Semaphore>,
}

impl Default for Machine {
    fn default() -> Self {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let limit = system.cgroup_limits().map(|limits| limits.total_memory);
        let memory_bytes = usable(system.total_memory(), limit);
        Machine {
            cores,
            memory_bytes,
            engines: Engines::default(),
            // Half of the machine: something else is running on it, too.
            memory: Arc::new(Memory::new(memory_bytes / 2)),
            programs: Arc::new(Semaphore::new(cores)),
        }
    }
}

/// The memory of a machine under the limit of its container: who takes more is killed. A group without a limit says
/// none, or a number that no machine has.
fn usable(total: u64, limit: Option<u64>) -> u64 {
    limit.map_or(total, |limit| limit.min(total))
}

impl Machine {
    /// Lets engines go that no run uses: one that could not be loaded may be tried again.
    pub fn forget_idle_engines(&self) {
        let mut engines = self.engines.lock().expect("BUG: the engine lock is poisoned");
        engines.retain(|_, engine| Arc::strong_count(engine) > 1);
    }
}

impl Project {
    /// Reads a manifest of a project and builds its graph. `path` is relative to the root; `read` gives the text of
    /// the manifest and of what it includes.
    pub fn read(
        root: Utf8PathBuf,
        path: &Utf8Path,
        set: &[(String, String)],
        read: &dyn Fn(&Utf8Path) -> Result<String, String>,
    ) -> Result<Project, Diagnostics> {
        let kinds = kinds();
        let inputs = Inputs { path, read, env: &env, set, kinds: &kinds };
        let (manifest, graph) = Graph::load(&inputs, &root, &env)?;
        Ok(Project { root, manifest, graph: Arc::new(graph) })
    }

    /// Writes the lock file beside the manifest, if a whole run of it came to something new. One that did not end
    /// well, or had other parameters than the manifest's own, is no result to commit, and leaves it as it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_lock(&self, record: &RunRecord) -> Result<(), StoreError> {
        if self.manifest.overridden || record.status != RunStatus::Completed {
            return Ok(());
        }
        let path = self.root.join(&self.manifest.path).with_extension("lock");
        let text = Lock(record).to_string();
        if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            replace_file(&path, text.as_bytes())?;
        }
        Ok(())
    }

    /// What stages share, of a run that has its machine to itself.
    pub fn context(
        &self,
        store: Arc<Store>,
        options: Options,
        emit: Arc<dyn Fn(Event) + Send + Sync>,
    ) -> Context {
        self.context_on(&Machine::default(), store, options, emit)
    }

    /// The same of one of several runs.
    pub fn context_on(
        &self,
        machine: &Machine,
        store: Arc<Store>,
        options: Options,
        emit: Arc<dyn Fn(Event) + Send + Sync>,
    ) -> Context {
        Context {
            root: self.root.clone(),
            pipeline: self.manifest.name.clone(),
            run: RunFacts {
                id: options.run.clone().unwrap_or_else(|| ulid::Ulid::new().to_string()),
                started_at: humantime::format_rfc3339_seconds(std::time::SystemTime::now())
                    .to_string(),
                manifest: self.manifest.path.to_string(),
                manifest_digest: self.manifest.digest.to_string(),
                description: self.manifest.description.clone(),
                params: self.manifest.params.clone(),
                git: git(&self.root),
                cores: machine.cores as u32,
                memory: machine.memory_bytes,
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
            gates: OnceLock::new(),
            stop: CancellationToken::new(),
            engines: machine.engines.clone(),
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
            programs: machine.programs.clone(),
            memory: machine.memory.clone(),
            budget: options.budget.map(|dollars| Arc::new(Budget::new(dollars))),
            options,
        }
    }
}

/// A run that is about to begin: it has an id, a folder, and a lock that says that it lives.
pub struct Launch {
    /// What its stages share.
    pub context: Arc<Context>,
    /// What it came to so far.
    pub record: Arc<Mutex<RunRecord>>,
    log: Arc<OnceLock<RunFolder>>,
}

impl Launch {
    /// Prepares a run. `hear` is told every event after the record and the log on disk have it; `watch` sees samples
    /// as they end, where somebody wants to.
    pub fn new(
        project: &Project,
        machine: &Machine,
        store: Arc<Store>,
        options: Options,
        hear: impl Fn(&Event) + Send + Sync + 'static,
        watch: Option<Arc<dyn Watch>>,
    ) -> Result<Launch, StoreError> {
        let record = Arc::new(Mutex::new(RunRecord::default()));
        let log: Arc<OnceLock<RunFolder>> = Arc::default();
        // An engine may outlive the run that made it, and tells that run when it is loaded: the log, and the lock
        // that says that the run lives, end with the run all the same.
        let (folded, logged) = (record.clone(), Arc::downgrade(&log));
        let emit = Arc::new(move |event: Event| {
            folded.lock().expect("BUG: the record lock is poisoned").apply(&event);
            if let Some(log) = logged.upgrade()
                && let Some(folder) = log.get()
            {
                // The log is for people and later readers; what was paid for is in the journal.
                let _: Result<(), StoreError> = folder.log(&event, unix_ms());
            }
            hear(&event);
        });
        let mut context = project.context_on(machine, store.clone(), options, emit);
        context.watch = watch;
        let context = Arc::new(context);
        store.hold_run(&context.run.id)?;
        let folder = store.create_run(&context.run.id)?;
        assert!(log.set(folder).is_ok(), "BUG: a run with two logs");
        Ok(Launch { context, record, log })
    }

    /// Runs a graph to its end, and keeps the record of that.
    pub async fn run(
        &self,
        graph: Arc<Graph>,
        selection: Selection,
    ) -> (Finished, Result<(), StoreError>) {
        self.run_and(graph, selection, |_| {}).await
    }

    /// The same, with a look at the samples of its workflows, by position in the graph, before the run is said to
    /// have ended: what gates say is part of its record.
    pub async fn run_and(
        &self,
        graph: Arc<Graph>,
        selection: Selection,
        look: impl FnOnce(&BTreeMap<usize, Arc<Samples>>),
    ) -> (Finished, Result<(), StoreError>) {
        let (context, record) = (self.context.clone(), self.record.clone());
        let work = exec::apply_and(graph, context, selection, record, look);
        tokio::pin!(work);
        let finished = loop {
            tokio::select! {
                finished = &mut work => break finished,
                () = tokio::time::sleep(FLUSH_EVERY) => {
                    // As with every line of the log: it is for people and later readers.
                    let _: Option<Result<(), StoreError>> = self.log.get().map(RunFolder::flush);
                }
            }
        };
        let kept = match self.log.get() {
            Some(folder) => folder.finish(&finished.record),
            None => Ok(()),
        };
        let kept = kept.and_then(|()| self.context.store.flush());
        (finished, kept)
    }
}

/// The project of a manifest: the nearest folder above it with `.git` or `.forge`; else the parent of a
/// folder called `pipelines`; else the folder of the manifest.
pub fn root_of(manifest: &Utf8Path) -> Utf8PathBuf {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_the_memory_that_it_is_given() {
        let gb = 1 << 30;
        assert_eq!(usable(64 * gb, None), 64 * gb);
        assert_eq!(usable(64 * gb, Some(4 * gb)), 4 * gb);
        // What the first version of control groups says where there is no limit.
        assert_eq!(usable(64 * gb, Some(0x7fff_ffff_ffff_f000)), 64 * gb);
        let machine = Machine::default();
        assert!(machine.memory_bytes > 0 && machine.cores > 0);
    }
}
