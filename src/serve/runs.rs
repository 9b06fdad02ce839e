//! Experiments and manifests at work: a queue with a limit, several runs at once that share store and engines, cancel, and what a
//! server before this one left. Knows nothing of HTTP.
//!
//! An experiment that is queued or running when the server ends stays so in the database, and the next server goes on
//! with it: in a new run of the same attempt, for which everything counts that the runs before it were answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::FutureExt;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::db::{Db, Status};
use super::jobs::Work;
use super::manifest::WORKFLOW;
use super::results::Results;
use crate::exec::Selection;
use crate::manifest::Manifest;
use crate::project::{Launch, Machine, Project, prepare};
use crate::record::{Event, RunRecord, RunStatus};
use crate::stage::{Options, Samples};
use crate::store::Store;

/// Why an experiment was not started.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NotStarted {
    /// It is.
    #[error("the experiment is active already")]
    Active,
    /// Too many wait.
    #[error("the queue is full: {0} experiments are active")]
    Full(usize),
    /// The server is about to end.
    #[error("the server is shutting down")]
    Ending,
    /// The database cannot be written.
    #[error("{0}")]
    Database(String),
}

/// An experiment that waits or works.
#[derive(Clone)]
struct Active {
    /// Ends it.
    cancel: CancellationToken,
    /// Its run, once it works.
    record: Option<Arc<Mutex<RunRecord>>>,
}

/// How far the run of an experiment is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// ULID of the run.
    pub run: String,
    /// Samples that ended.
    pub finished: u64,
    /// Samples that are to be run, where that is known.
    pub selected: Option<u64>,
    /// Requests that the engine answered.
    pub live: u64,
    /// Requests that it did not have to answer.
    pub hits: u64,
    /// Milliseconds since 1970.
    pub started_unix_ms: u64,
}

impl Progress {
    /// Of a record: all its workflows together.
    pub fn of(record: &RunRecord) -> Progress {
        let selected = record.workflows().filter_map(|stage| stage.selected);
        Progress {
            run: record.run_id.clone(),
            finished: record.workflows().map(|stage| stage.finished).sum(),
            selected: selected.reduce(|sum, n| sum + n),
            live: record.requests.live,
            hits: record.requests.hits(),
            started_unix_ms: record.started_unix_ms,
        }
    }
}

/// All that works.
pub struct Runs {
    root: Utf8PathBuf,
    store: Arc<Store>,
    /// URL of the shared store behind it.
    remote: Option<String>,
    db: Arc<Db>,
    results: Arc<Results>,
    /// Whether a manifest of the project gets its lock file.
    locks: bool,
    machine: Machine,
    active: Mutex<BTreeMap<Uuid, Active>>,
    active_max: usize,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    ending: CancellationToken,
    /// Counts changes of states.
    changes: watch::Sender<u64>,
}

impl Runs {
    /// Nothing works yet. `at_once` runs may work, and `queue` experiments wait.
    pub fn new(
        (root, store, remote): (Utf8PathBuf, Arc<Store>, Option<String>),
        db: Arc<Db>,
        results: Arc<Results>,
        locks: bool,
        (at_once, queue): (usize, usize),
    ) -> Runs {
        Runs {
            root,
            store,
            remote,
            db,
            results,
            locks,
            machine: Machine::default(),
            active: Mutex::default(),
            active_max: at_once + queue,
            places: Arc::new(Semaphore::new(at_once)),
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
            changes: watch::Sender::new(0),
        }
    }

    /// Puts an experiment into the queue.
    pub fn start(self: &Arc<Self>, id: Uuid) -> Result<(), NotStarted> {
        if self.ending.is_cancelled() {
            return Err(NotStarted::Ending);
        }
        {
            let active = self.active();
            if active.contains_key(&id) {
                return Err(NotStarted::Active);
            }
            if active.len() >= self.active_max {
                return Err(NotStarted::Full(active.len()));
            }
            match self.db.enqueue(id) {
                Ok(true) => {}
                Ok(false) => return Err(NotStarted::Active),
                Err(error) => return Err(NotStarted::Database(error.to_string())),
            }
        }
        self.admit(id);
        Ok(())
    }

    /// Goes on with what a server before this one left.
    pub fn resume(self: &Arc<Self>) -> Result<usize, String> {
        let left = self.db.unfinished().map_err(|error| error.to_string())?;
        left.iter().for_each(|id| self.admit(*id));
        Ok(left.len())
    }

    fn active(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uuid, Active>> {
        self.active.lock().expect("BUG: the run lock is poisoned")
    }

    fn admit(self: &Arc<Self>, id: Uuid) {
        let cancel = CancellationToken::new();
        self.active().insert(id, Active { cancel: cancel.clone(), record: None });
        self.changed();
        let runs = self.clone();
        let mut place = Box::pin(self.places.clone().acquire_owned());
        // Its turn is that of this call, whichever task comes first.
        let now = (&mut place).now_or_never();
        self.tasks.spawn(async move {
            let place = async {
                match now {
                    Some(place) => place,
                    None => place.await,
                }
            };
            let place = tokio::select! {
                biased;
                () = cancel.cancelled() => None,
                // It stays in the queue of the database.
                () = runs.ending.cancelled() => {
                    runs.active().remove(&id);
                    return;
                }
                place = place => place.ok(),
            };
            let ended = match place {
                Some(_place) => {
                    // A panic must not leave an experiment at work for ever.
                    let work = tokio::spawn(runs.clone().work(id, cancel));
                    work.await.unwrap_or_else(|_| {
                        Some((Status::Failed, Some("a bug of forge; its log says more".to_owned())))
                    })
                }
                None => Some((Status::Cancelled, None)),
            };
            if let Some((status, error)) = ended {
                if status != Status::Completed {
                    runs.machine.forget_idle_engines();
                }
                // Where it cannot be written, the next server goes on with it, and finds everything answered.
                let _ = runs.db.end(id, status, error.as_deref());
            }
            runs.active().remove(&id);
            runs.changed();
        });
    }

    /// Runs an experiment to its end; `None` where it shall go on later.
    async fn work(
        self: Arc<Self>,
        id: Uuid,
        cancel: CancellationToken,
    ) -> Option<(Status, Option<String>)> {
        let failed = |error: String| Some((Status::Failed, Some(error)));
        let work = match self.db.work(id) {
            Ok(Some(work)) => work,
            Ok(None) => return Some((Status::Cancelled, None)),
            Err(error) => return failed(format!("cannot read the database: {error}")),
        };
        // An experiment asks everything, so that its profile is of this run; a manifest runs as `forge apply` does it.
        let through = matches!(work, Work::Experiment(_));
        let project = match &work {
            Work::Experiment(text) => project_of(&self.root, &pipeline_name(id), text),
            Work::Manifest(path, params) => self.manifest(path, params),
        };
        let project = match project {
            Ok(project) => project,
            Err(error) => return failed(error),
        };
        let committed = match project.committed() {
            Ok(committed) => committed,
            Err(errors) => return failed(errors.render(false)),
        };
        let run = ulid::Ulid::new().to_string();
        let before = match self.db.begin(id, &run) {
            Ok(before) => before,
            Err(error) => return failed(format!("cannot write the database: {error}")),
        };
        let goes_on: Arc<BTreeSet<String>> = Arc::new(before.into_iter().collect());
        let reports = project.graph.nodes().iter().filter(|node| node.kind == "report").count();
        let options = Options { through, goes_on, run: Some(run), reports, ..Options::default() };
        let store = self.store.clone();
        // An engine keeps who hears of it, and may outlive its run: it must not keep the runs.
        let runs = Arc::downgrade(&self);
        let hear = move |event: &Event| {
            if let Event::StageStarted { stage, samples: Some(samples) } = event
                && through
                && stage == WORKFLOW
                && let Some(runs) = runs.upgrade()
            {
                // Where it cannot be written, the experiment says less.
                let _ = runs.db.expect(id, *samples);
                runs.changed();
            }
        };
        let launch = Launch::new(&project, &self.machine, store, options, hear, None);
        let launch = match launch {
            Ok(launch) => launch,
            Err(error) => return failed(error.to_string()),
        };
        if let Some(active) = self.active().get_mut(&id) {
            active.record = Some(launch.record.clone());
        }
        self.changed();
        let stop = launch.context.stop.clone();
        let graph = project.graph.clone();
        // The report of an experiment is for `forge apply`: here the pages are the report.
        let wanted = graph.nodes().iter().position(|node| through && node.name == WORKFLOW);
        let nodes = wanted.map(|node| graph.with_needed([node]));
        let selection = Selection { nodes, ..Selection::default() };
        // What is wrong is collected in a cell, which no task may carry from thread to thread.
        let prepared = tokio::task::block_in_place(|| {
            let gates = prepare(&project.manifest, &graph, &self.store, &committed);
            tokio::runtime::Handle::current().block_on(gates)
        });
        let gates = match prepared {
            Ok(gates) => gates,
            Err(errors) => return failed(errors.render(false)),
        };
        // Reports show what gates say of their samples.
        let _ = launch.context.gates.set(gates.clone());
        let emit = launch.context.emit.clone();
        // What gates say is part of the record of the run, and does not change how that ended.
        let judge =
            |found: &BTreeMap<usize, Arc<Samples>>| match gates.judge(&self.store, found, |_| true)
            {
                Ok((verdicts, _)) if verdicts.is_empty() => {}
                Ok((verdicts, _)) => emit(Event::GatesJudged { verdicts }),
                Err(error) => {
                    let message = format!("the gates could not be judged: {error}");
                    emit(Event::Notice { stage: None, message });
                }
            };
        let work = launch.run_and(graph, selection, judge);
        tokio::pin!(work);
        let (finished, kept) = tokio::select! {
            done = &mut work => done,
            () = either(&cancel, &self.ending) => {
                // What is under way at the engine is paid for, and is waited for.
                stop.cancel();
                work.await
            }
        };
        // An experiment lies in no file, and so has none beside it.
        let locked = || match !through && self.locks {
            true => project.write_lock(&finished.record),
            false => Ok(()),
        };
        if let Err(error) = kept {
            return failed(error.to_string());
        }
        let locked = locked();
        // What could not be sent stays here, and is sent with the next run or by `forge store push`.
        drop(self.store.settle(&|_| {}).await);
        let (results, record) = (self.results.clone(), finished.record.clone());
        tokio::task::spawn_blocking(move || results.prepare(&record));
        if let Err(error) = locked {
            return failed(error.to_string());
        }
        match finished.record.status {
            RunStatus::Completed => Some((Status::Completed, None)),
            RunStatus::Cancelled if cancel.is_cancelled() => Some((Status::Cancelled, None)),
            RunStatus::Cancelled => None,
            _ => failed(errors(&finished.record)),
        }
    }

    /// A manifest of the project. One that keeps its results elsewhere than this server is refused: they would be
    /// looked for there in vain.
    pub fn manifest(
        &self,
        path: &str,
        params: &BTreeMap<String, String>,
    ) -> Result<Project, String> {
        let set: Vec<_> =
            params.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let read = |asked: &Utf8Path| crate::stage::read_project_text(&self.root, asked);
        let project = Project::read(self.root.clone(), Utf8Path::new(path), &set, &read)
            .map_err(|errors| errors.render(false))?;
        self.check_store(&project.manifest)?;
        Ok(project)
    }

    fn check_store(&self, manifest: &Manifest) -> Result<(), String> {
        let real = |path: &Utf8Path| path.canonicalize_utf8().unwrap_or_else(|_| path.to_owned());
        let path = &manifest.path;
        if let Some(folder) = &manifest.store {
            let (its, ours) = (real(&self.root.join(folder)), real(self.store.root()));
            if its != ours {
                return Err(format!(
                    "`{path}` keeps its results in `{folder}` (`[store] path`), and this server in another folder; \
                     `forge serve --store {folder}` serves that one"
                ));
            }
        }
        match (&manifest.remote, &self.remote) {
            (Some(its), Some(ours)) if its != ours => Err(format!(
                "`{path}` shares its results in `{its}` (`[store] remote`), and this server in `{ours}`; \
                 `forge serve --remote {its}` serves that one"
            )),
            (Some(its), None) => Err(format!(
                "`{path}` shares its results in `{its}` (`[store] remote`), and this server shares none; \
                 `forge serve --remote {its}` does"
            )),
            _ => Ok(()),
        }
    }

    /// Ends an experiment that waits or works; `false` where it does neither.
    pub fn cancel(&self, id: Uuid) -> bool {
        match self.active().get(&id) {
            Some(active) => {
                active.cancel.cancel();
                true
            }
            None => false,
        }
    }

    /// How far an experiment is that works.
    pub fn progress(&self, id: Uuid) -> Option<Progress> {
        let record = self.active().get(&id)?.record.clone()?;
        let record = record.lock().expect("BUG: the record lock is poisoned");
        Some(Progress::of(&record)).filter(|progress| !progress.run.is_empty())
    }

    /// Whether an experiment waits or works in this server.
    pub fn is_active(&self, id: Uuid) -> bool {
        self.active().contains_key(&id)
    }

    /// Says that the state of an experiment has changed.
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Tells of every change of a state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Says that the server is about to end.
    pub fn ending(&self) -> &CancellationToken {
        &self.ending
    }

    /// Lets requests under way finish, and ends. What is not done then is for the next server.
    pub async fn end(&self) {
        self.ending.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn either(a: &CancellationToken, b: &CancellationToken) {
    tokio::select! {
        () = a.cancelled() => {}
        () = b.cancelled() => {}
    }
}

/// The name of the pipeline of an experiment.
pub fn pipeline_name(id: Uuid) -> String {
    format!("experiment-{}", &id.simple().to_string()[..12])
}

/// The manifest of an experiment, read as if it lay in the root of its project.
pub fn project_of(root: &Utf8Path, name: &str, manifest: &str) -> Result<Project, String> {
    let path = Utf8PathBuf::from(format!("{name}.toml"));
    let read = |asked: &Utf8Path| match asked == path {
        true => Ok(manifest.to_owned()),
        false => crate::stage::read_project_text(root, asked),
    };
    Project::read(root.to_owned(), &path, &[], &read).map_err(|errors| errors.render(false))
}

/// What went wrong in a run.
pub fn errors(record: &RunRecord) -> String {
    let errors = record
        .stages
        .iter()
        .filter_map(|stage| stage.error.as_ref().map(|error| format!("{}: {error}", stage.name)));
    let errors: Vec<String> = errors.collect();
    if errors.is_empty() { "the run did not end well".to_owned() } else { errors.join("; ") }
}
