//! Kinds of stage: what they read from a manifest, what their key is made of, and what they do.
//! Knows nothing of the order in which stages run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::digest::{Digest, Recipe};
use crate::engine::{Budget, Memory, Resource};
use crate::manifest::{Fields, Manifest, Spanned};
use crate::record::{Event, Observed, TallySummary, Verdict};
use crate::sample::Sample;
use crate::store::{Outcome, Record, Store, StoreError};

mod child;
mod command;
mod engine;
mod expand;
pub mod flows;
mod flow_template;
mod report;
mod views;
pub mod workflow;

pub use flow_template::{FlowTemplate, read_table as read_template};
pub use flows::Flows;
pub(crate) use report::read_cell;
pub use views::View;

/// What flows between stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArtifactKind {
    /// What one conversation looks like.
    Template,
    /// Expanded units of work.
    Flows,
    /// Something that answers requests.
    Engine,
    /// Flows as run and scored.
    Samples,
    /// Files.
    Files,
}

impl ArtifactKind {
    /// The word in messages.
    pub fn name(self) -> &'static str {
        match self {
            ArtifactKind::Template => "a flow template",
            ArtifactKind::Flows => "flows",
            ArtifactKind::Engine => "an engine",
            ArtifactKind::Samples => "samples",
            ArtifactKind::Files => "files",
        }
    }
}

/// The result of a stage, for the stages that need it.
#[derive(Clone)]
pub enum Artifact {
    /// From `flow-template`.
    Template(Arc<FlowTemplate>),
    /// From `expand`; may still be growing.
    Flows(Flows),
    /// From `engine`; loaded when first asked.
    Engine(Arc<Resource>),
    /// From `workflow`.
    Samples(Arc<Samples>),
    /// From `report` and `command`.
    Files(Files),
}

/// Samples in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// Name of the workflow.
    pub stage: String,
    /// Its key.
    pub key: crate::digest::Key,
    /// JSON lines of `sample::Sample`: equal for equal runs.
    pub table: Digest,
    /// JSON lines of `record::Observed`, one for each sample.
    pub observed: Digest,
    /// `report::CellInfo` as JSON: effective settings and profile.
    pub info: Digest,
    /// Counts and metrics.
    pub summary: TallySummary,
}

/// Files in the store, by their path in the project.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Files {
    /// Path relative to the project's root, and content.
    pub files: BTreeMap<String, Digest>,
    /// Those of them that are programs.
    pub executable: BTreeSet<String>,
}

impl Samples {
    /// The samples of a remembered workflow; `None` where its record is not one of those.
    pub fn of_record(stage: &str, key: crate::digest::Key, record: &Record) -> Option<Samples> {
        Some(Samples {
            stage: stage.to_owned(),
            key,
            table: record.blob("samples")?,
            observed: record.blob("observed")?,
            info: record.blob("info")?,
            summary: serde_json::from_value(record.inline("summary")?.clone()).ok()?,
        })
    }

    /// Whether all of it is in a store, by name and not by content.
    pub fn is_there(&self, store: &Store) -> bool {
        [self.table, self.observed, self.info].iter().all(|digest| store.has_blob(*digest))
    }
}

impl Artifact {
    /// What a key is made of where this is an input. Waits for flows that are still growing.
    pub async fn digest(&self) -> Result<Digest, StageError> {
        Ok(match self {
            Artifact::Template(template) => template.digest,
            Artifact::Flows(flows) => flows.digest().await?,
            Artifact::Engine(engine) => engine.identity,
            Artifact::Samples(samples) => samples.table,
            Artifact::Files(files) => Digest::of_json(&(&files.files, &files.executable)),
        })
    }

    /// Whether the content of its blobs is what their names say. A restored result is taken by name, for it
    /// may not be used at all; who uses it makes sure first.
    pub async fn is_whole(&self, store: &Store) -> bool {
        match self {
            Artifact::Template(_) | Artifact::Engine(_) => true,
            // What still grows is being written.
            Artifact::Flows(flows) if !flows.is_whole() => true,
            Artifact::Flows(flows) => match flows.digest().await {
                Ok(digest) => store.is_whole(digest),
                Err(_) => true,
            },
            Artifact::Samples(samples) => {
                [samples.table, samples.observed, samples.info].iter().all(|d| store.is_whole(*d))
            }
            Artifact::Files(files) => files.files.values().all(|digest| store.is_whole(*digest)),
        }
    }
}

/// Why a stage could not do its work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StageError {
    /// The user can fix it: exit code 2.
    #[error("{0}")]
    User(String),
    /// It went wrong: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The store has no answer, and asking is not allowed (`--frozen`).
    #[error("{0}")]
    Missing(String),
    /// The run was interrupted.
    #[error("interrupted")]
    Cancelled,
    /// A stage that this one needs failed; it has said so itself.
    #[error("`{0}` failed")]
    Upstream(String),
}

impl From<StoreError> for StageError {
    fn from(error: StoreError) -> Self {
        StageError::Failed(error.to_string())
    }
}

/// A stage that another needs: read from its fields.
#[derive(Debug, Clone)]
pub struct Need {
    /// Field that names it.
    pub port: String,
    /// Its name as written.
    pub stage: Spanned<String>,
    /// What it must give; empty accepts anything.
    pub kinds: Vec<ArtifactKind>,
    /// Whether a name may stand for all cells of a matrix.
    pub many: bool,
}

/// A stage ready to be run: settings read, nothing done yet.
pub trait Stage: Send + Sync {
    /// What it needs, in the order of its fields.
    fn needs(&self) -> &[Need];

    /// What it gives.
    fn gives(&self) -> ArtifactKind;

    /// Everything its result depends on. Input files are read into the store here: what is used is what
    /// was hashed.
    fn recipe<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Recipe, StageError>>;

    /// The artifact of a remembered result, or `None` when part of it is gone from the store.
    fn restore(
        &self,
        record: &Record,
        recipe: &Recipe,
        inputs: &Inputs,
        context: &Context,
    ) -> Option<Artifact>;

    /// Does the work. `publish` may be called early with an artifact that still grows.
    fn run<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
        publish: &'a (dyn Fn(Artifact) + Send + Sync),
    ) -> BoxFuture<'a, Result<Done, StageError>>;

    /// Files that the result puts into the work tree.
    fn views(&self, _artifact: &Artifact, _context: &Context) -> Vec<View> {
        Vec::new()
    }

    /// Whether a remembered result may be taken.
    fn may_reuse(&self) -> bool {
        true
    }

    /// Whether it can start on inputs that still grow.
    fn streams(&self) -> bool {
        false
    }

    /// Whether it is quick and pure, so that a plan may run it to see further.
    fn runs_in_plan(&self) -> bool {
        false
    }

    /// Whether it is made of what is in the store alone and starts nothing, so that a frozen run may make it.
    fn runs_frozen(&self) -> bool {
        false
    }

    /// The workflow behind it, for plans and explanations that go down to samples.
    fn as_workflow(&self) -> Option<&workflow::Workflow> {
        None
    }

    /// What it reads of the project: no stage may write there.
    fn reads(&self) -> Vec<Utf8PathBuf> {
        Vec::new()
    }

    /// Where it writes, if the manifest says; two stages must not share a path.
    fn outputs(&self) -> Vec<Spanned<Utf8PathBuf>> {
        Vec::new()
    }
}

/// What a stage made.
pub struct Done {
    /// For the stages that need it.
    pub artifact: Artifact,
    /// What was in fact used: a file may have changed since the recipe was first made.
    pub recipe: Recipe,
    /// To be remembered; `None` where a passing failure is part of it.
    pub outcome: Option<Outcome>,
    /// Whether anything had to be worked out at all, or each part was in the store already.
    pub worked: bool,
    /// Why the run cannot end well, though the artifact is there.
    pub failure: Option<String>,
}

/// Artifacts of the needed stages, by port, in the order of the fields.
#[derive(Default, Clone)]
pub struct Inputs(pub Vec<Input>);

/// One needed artifact.
#[derive(Clone)]
pub struct Input {
    /// The field that names it.
    pub port: String,
    /// The stage that made it.
    pub stage: String,
    /// It.
    pub artifact: Artifact,
}

impl Inputs {
    /// The artifact at a port that takes one stage.
    pub fn one(&self, port: &str) -> &Artifact {
        let found = self.0.iter().find(|input| input.port == port);
        &found.expect("BUG: an input that the graph has checked is missing").artifact
    }

    /// All artifacts at a port.
    pub fn all<'a>(&'a self, port: &'a str) -> impl Iterator<Item = &'a Input> {
        self.0.iter().filter(move |input| input.port == port)
    }
}

/// Engines by identity.
pub type Engines = Arc<std::sync::Mutex<BTreeMap<Digest, Arc<Resource>>>>;

/// Gives a variable of the environment.
pub type Env = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Sees every sample as it ends. Must not wait.
pub trait Watch: Send + Sync {
    /// A workflow begins, with this engine.
    fn began(&self, stage: &str, engine: &BTreeMap<String, Value>);

    /// A sample of it has ended.
    fn ended(&self, stage: &str, sample: &Sample, observed: &Observed);
}

/// Gates whose baselines are known.
pub trait Judge: Send + Sync {
    /// All that decides what they say of some workflows beside the samples themselves: thresholds and baselines.
    /// `None` where no gate looks at any of them.
    fn describe(&self, stages: &[&str]) -> Option<serde_json::Value>;

    /// What they say of these samples, in the order of the manifest.
    ///
    /// # Errors
    /// A tag that samples do not have, or results that are damaged.
    fn verdicts(&self, samples: &[&Samples], store: &Store) -> Result<Vec<Verdict>, StageError>;
}

/// What earlier runs put into a path of the work tree. Looked up only where a file is not as it should be.
pub type Views = Arc<dyn Fn(&str) -> Option<Digest> + Send + Sync>;

/// The commit that the lock file pins for a data set, or why the lock file cannot be read.
pub type Pins = Arc<dyn Fn(&str) -> Result<Option<String>, String> + Send + Sync>;

/// What all stages of a run share.
pub struct Context {
    /// The project's root, with no link in it: paths of the manifest are relative to it.
    pub root: Utf8PathBuf,
    /// The store.
    pub store: Arc<Store>,
    /// Name of the pipeline.
    pub pipeline: String,
    /// What reports say about the run.
    pub run: RunFacts,
    /// Tells what happens.
    pub emit: Arc<dyn Fn(Event) + Send + Sync>,
    /// Sees samples as they end, where somebody wants to.
    pub watch: Option<Arc<dyn Watch>>,
    /// What gates say of samples, once their baselines are known: reports show it.
    pub gates: OnceLock<Arc<dyn Judge>>,
    /// Stops admission of new work.
    pub stop: CancellationToken,
    /// Settings of the command line.
    pub options: Options,
    /// What earlier runs put into the work tree: anything else there is somebody's work.
    pub views: Views,
    /// Engines: two stages of one identity share one, and so may runs of one process.
    pub engines: Engines,
    /// A variable of the environment: stages see only those that the manifest names.
    pub env: Env,
    /// Commits of data sets. Looked up only where a manifest names a branch.
    pub pins: Pins,
    /// Programs that may run at once: one for each core.
    pub programs: Arc<tokio::sync::Semaphore>,
    /// What loaded models share.
    pub memory: Arc<Memory>,
    /// What the run may spend.
    pub budget: Option<Arc<Budget>>,
}

/// Facts about the run for reports.
#[derive(Debug, Clone, Default)]
pub struct RunFacts {
    /// ULID.
    pub id: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// Path of the manifest in the project.
    pub manifest: String,
    /// Digest of the manifest and its includes.
    pub manifest_digest: String,
    /// What the pipeline is for.
    pub description: Option<String>,
    /// Parameters after overrides.
    pub params: BTreeMap<String, Value>,
    /// Commit of the project, and whether the work tree differs.
    pub git: Option<(String, bool)>,
    /// Cores of this machine.
    pub cores: u32,
    /// Bytes of memory of this machine.
    pub memory: u64,
}

/// Settings of the command line that stages see.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Stages whose results are worked out again, requests included.
    pub afresh: BTreeSet<String>,
    /// ULID of the run, where whoever begins it has to know it before.
    pub run: Option<String>,
    /// ULIDs of interrupted runs that this one goes on from: what they were answered counts also in stages that ask
    /// everything afresh.
    pub goes_on: Arc<BTreeSet<String>>,
    /// Workflows go through all their requests, also where the store has their samples or the whole result, so that
    /// their times and hits are those of this run.
    pub through: bool,
    /// Nothing may be worked out.
    pub frozen: bool,
    /// Nothing may be fetched: plans and explanations only look.
    pub offline: bool,
    /// Branches of data sets are looked up anew.
    pub update_data: bool,
    /// Only the first flows of every expansion.
    pub limit: Option<u64>,
    /// Bound on the concurrency of every workflow.
    pub jobs: Option<u32>,
    /// Bound on what live requests may cost, in dollars.
    pub budget: Option<f64>,
    /// Folder for reports instead of the manifest's.
    pub out: Option<Utf8PathBuf>,
    /// The work tree is not the user's: what the pipeline knows of its last run stays.
    pub elsewhere: bool,
    /// How many reports there are: of more than one, each gets its own folder in `out`.
    pub reports: usize,
}

impl Context {
    /// Where a path of the manifest is. A link that leads out of the project is refused.
    pub fn resolve(&self, path: &Utf8Path) -> Result<Utf8PathBuf, StageError> {
        let full = self.root.join(path);
        let real = match full.canonicalize_utf8() {
            Ok(real) => real,
            Err(error) => {
                return Err(StageError::User(format!("cannot read `{path}`: {}", plain(&error))));
            }
        };
        if !real.starts_with(&self.root) {
            return Err(StageError::User(format!("`{path}` is a link that leaves the project")));
        }
        Ok(full)
    }

    /// Tells the user something about a stage.
    pub fn notice(&self, stage: &str, message: impl Into<String>) {
        (self.emit)(Event::Notice { stage: Some(stage.to_owned()), message: message.into() });
    }

    /// The engine of an identity: the one that is there, or this one.
    pub fn engine(&self, resource: Resource) -> Arc<Resource> {
        let mut engines = self.engines.lock().expect("BUG: the engine lock is poisoned");
        let differs = engines.get(&resource.identity).filter(|first| {
            let (a, b) = (&first.backend, &resource.backend);
            a.describe() != b.describe() || a.admission() != b.admission() || a.price() != b.price()
        });
        if let Some(first) = differs {
            let message = format!(
                "gives the same answers as `{}`, and shares it: settings that change no answer are taken from there",
                first.stage
            );
            self.notice(&resource.stage, message);
        }
        engines.entry(resource.identity).or_insert_with(|| Arc::new(resource)).clone()
    }
}

/// An I/O error without the number that means nothing to most.
pub(crate) fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// Reads the table of a stage. What is wrong goes to the sink of `fields`.
pub type Read = fn(&str, Fields<'_>, &Setting<'_>) -> Option<Box<dyn Stage>>;

/// What reading a stage may look at.
pub struct Setting<'a> {
    /// The manifest.
    pub manifest: &'a Manifest,
    /// The project's root: to say at once that a file is missing.
    pub root: &'a Utf8Path,
    /// A variable of the environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

/// Reads a text file of the project. A link that leads out of it is refused.
pub fn read_project_text(root: &Utf8Path, path: &Utf8Path) -> Result<String, String> {
    let full = root.join(path);
    let real = full.canonicalize_utf8().map_err(|error| plain(&error))?;
    let root = root.canonicalize_utf8().map_err(|error| plain(&error))?;
    if !real.starts_with(root) {
        return Err("it is a link that leaves the project".to_owned());
    }
    std::fs::read_to_string(real).map_err(|error| plain(&error))
}

impl Setting<'_> {
    /// Reports a path that leads nowhere.
    pub fn check_exists(&self, fields: &Fields<'_>, path: &Spanned<Utf8PathBuf>) -> bool {
        use crate::manifest::{Diagnostic, closest};
        if self.root.join(&path.value).exists() {
            return true;
        }
        let mut diagnostic =
            Diagnostic::at(path.span, format!("there is no file `{}`", path.value));
        let folder = path.value.parent().unwrap_or(Utf8Path::new(""));
        if let (Ok(entries), Some(name)) =
            (self.root.join(folder).read_dir_utf8(), path.value.file_name())
        {
            let mut names: Vec<_> =
                entries.flatten().map(|entry| entry.file_name().to_owned()).collect();
            names.sort();
            if let Some(close) = closest(name, names.iter().map(String::as_str)) {
                diagnostic = diagnostic.hint(format!("did you mean `{}`?", folder.join(close)));
            }
        }
        fields.error(diagnostic);
        false
    }
}

/// Every built-in stage kind. To add one: a file, its `mod` line, its line here.
pub const STAGES: &[(&str, Read)] = &[
    ("flow-template", flow_template::read),
    ("expand", expand::read),
    ("engine", engine::read),
    ("workflow", workflow::read),
    ("report", report::read),
    ("command", command::read),
];

/// The names of all kinds.
pub fn kinds() -> Vec<&'static str> {
    STAGES.iter().map(|(kind, _)| *kind).collect()
}

/// Reads a need from a field that names one stage.
pub(crate) fn need(fields: &Fields<'_>, port: &str, kind: ArtifactKind) -> Option<Need> {
    let stage = fields.needed_text(port)?;
    Some(Need { port: port.to_owned(), stage, kinds: vec![kind], many: false })
}

/// Reads needs from a field that names one or more stages.
pub(crate) fn needs(fields: &Fields<'_>, port: &str, kinds: &[ArtifactKind]) -> Vec<Need> {
    let stages = fields.texts(port).unwrap_or_default();
    let need = |stage| Need { port: port.to_owned(), stage, kinds: kinds.to_vec(), many: true };
    stages.into_iter().map(need).collect()
}

/// Files below a folder, without hidden ones and without links, which could lead anywhere.
pub(crate) fn files_below(
    folder: &Utf8Path,
    prefix: &str,
    out: &mut Vec<String>,
) -> std::io::Result<()> {
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        if name.starts_with('.') {
            continue;
        }
        if kind.is_dir() {
            files_below(entry.path(), &format!("{prefix}{name}/"), out)?;
        } else if kind.is_file() {
            out.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}
