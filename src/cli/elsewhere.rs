//! What a revision of the project comes to, found out where it is checked out: its results from the store by key,
//! or run. Knows nothing of what is compared.

use std::collections::BTreeSet;
use std::sync::Arc;

use camino::Utf8Path;
use tokio::signal::unix::SignalKind;

use super::apply::{listener, on_interrupt};
use super::progress::Progress;
use super::project::Project;
use super::{DONE, Failure, block_on, say, summary};
use crate::compare::{Side, Worktree};
use crate::exec::{Selection, recall_stages};
use crate::graph::Graph;
use crate::project::{Launch, Machine};
use crate::record::StageRun;
use crate::report::diff::SideInfo;
use crate::stage::{Options, StageError};
use crate::store::Store;

/// A pipeline of a project in its revisions.
pub(super) struct Elsewhere<'a> {
    /// The project.
    pub(super) root: &'a Utf8Path,
    /// Its store, for all revisions.
    pub(super) store: Arc<Store>,
    /// Say nothing of what is run.
    pub(super) quiet: bool,
}

/// What a revision came to.
pub(super) struct Found {
    /// Its stages with their keys, and with their results where there are some.
    pub(super) side: Side,
    /// Workflows without a result.
    pub(super) missing: Vec<String>,
    /// Whether something was run for it.
    pub(super) ran: bool,
}

/// What to find out.
pub(super) struct Wanted<'a> {
    /// The manifest, relative to the project.
    pub(super) manifest: &'a Utf8Path,
    /// Only this workflow, or all cells of its matrix.
    pub(super) only: Option<&'a str>,
    /// Run what is missing.
    pub(super) run: bool,
}

impl<'a> Elsewhere<'a> {
    pub(super) fn new(root: &'a Utf8Path, store: Arc<Store>, quiet: bool) -> Self {
        Elsewhere { root, store, quiet }
    }

    /// A commit, checked out in a folder of its own. The inner error says why its manifest cannot be used.
    pub(super) fn revision(
        &self,
        name: &str,
        commit: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Result<Found, String>, Failure> {
        let tree = Worktree::open(self.root, commit)?;
        let info = SideInfo { name: name.to_owned(), what: "revision", id: commit.to_owned() };
        self.evaluate(tree.root(), info, wanted, true)
    }

    /// The work tree of the project as it is.
    pub(super) fn work_tree(
        &self,
        name: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Result<Found, String>, Failure> {
        let id = wanted.manifest.with_extension("lock").to_string();
        let info = SideInfo { name: name.to_owned(), what: "lock", id };
        self.evaluate(self.root, info, wanted, false)
    }

    fn evaluate(
        &self,
        root: &Utf8Path,
        info: SideInfo,
        wanted: &Wanted<'_>,
        elsewhere: bool,
    ) -> Result<Result<Found, String>, Failure> {
        let project = match Project::at(root, wanted.manifest, &[]) {
            Ok(project) => project,
            Err(diagnostics) => return Ok(Err(first_line(&diagnostics.to_string()))),
        };
        let graph = project.graph.clone();
        let nodes = workflows(&graph, wanted.only);
        if nodes.is_empty() {
            let name = wanted.only.unwrap_or("");
            return Ok(Err(match name {
                "" => format!("`{}` has no workflow", wanted.manifest),
                name => format!("`{}` has no workflow `{name}`", wanted.manifest),
            }));
        }
        let options = Options { frozen: true, offline: true, elsewhere, ..Options::default() };
        let context = project.context(self.store.clone(), options, Arc::new(|_| {}));
        let stages = match block_on(recall_stages(&graph, &context, &nodes))? {
            Ok(stages) => stages,
            // Data that nobody has fetched yet: a run does.
            Err(StageError::Missing(_) | StageError::User(_)) if wanted.run => Vec::new(),
            Err(StageError::Missing(why) | StageError::User(why)) => {
                return Ok(Err(first_line(&why)));
            }
            Err(error) => return Err(error.into()),
        };
        let missing = missing(&graph, &nodes, &stages);
        if missing.is_empty() || !wanted.run {
            return Ok(Ok(Found { side: Side { info, stages }, missing, ran: false }));
        }
        let stages = self.run(&project, graph, &nodes, elsewhere)?;
        Ok(Ok(Found { side: Side { info, stages }, missing: Vec::new(), ran: true }))
    }

    /// Runs workflows with all that they need, and no report.
    fn run(
        &self,
        project: &Project,
        graph: Arc<Graph>,
        nodes: &BTreeSet<usize>,
        elsewhere: bool,
    ) -> Result<Vec<StageRun>, Failure> {
        let progress = Arc::new(Progress::new(self.quiet, false));
        let hear = listener(Arc::default(), progress.clone(), None, false);
        let options = Options { elsewhere, ..Options::default() };
        let (machine, store) = (Machine::default(), self.store.clone());
        let launch = Launch::new(project, &machine, store, options, hear, None)?;
        let nodes = graph.with_needed(nodes.iter().copied());
        let selection = Selection { nodes: Some(nodes), ..Selection::default() };
        let finished = block_on(async {
            let signal = tokio::signal::unix::signal(SignalKind::interrupt());
            let interrupt = tokio::spawn(on_interrupt(signal, launch.context.stop.clone()));
            let (finished, kept) = launch.run(graph, selection).await;
            progress.finish();
            kept?;
            let ticker = super::store::ticker("shared", "results", self.quiet);
            self.store.settle(&ticker).await;
            interrupt.abort();
            Ok::<_, Failure>(finished)
        })??;
        let record = finished.record;
        match summary::exit_code(&record) {
            DONE => Ok(record.stages),
            code => {
                for stage in record.stages.iter().filter(|stage| stage.error.is_some()) {
                    let why = stage.error.as_deref().unwrap_or("");
                    say(&format!("error: `{}`: {why}", stage.name));
                }
                let message = format!("run {} did not end well", record.run_id);
                Err(Failure::Message(message, code))
            }
        }
    }
}

/// The workflows that are wanted.
fn workflows(graph: &Graph, only: Option<&str>) -> BTreeSet<usize> {
    let nodes = graph.nodes().iter().enumerate();
    let wanted = nodes.filter(|(_, node)| {
        node.kind == "workflow" && only.is_none_or(|only| node.name == only || node.base == only)
    });
    wanted.map(|(i, _)| i).collect()
}

fn missing(graph: &Graph, nodes: &BTreeSet<usize>, stages: &[StageRun]) -> Vec<String> {
    let names = nodes.iter().map(|i| &graph.nodes()[*i].name);
    let is_there =
        |name: &&String| stages.iter().any(|stage| stage.name == **name && stage.result.is_some());
    names.filter(|name| !is_there(name)).cloned().collect()
}

/// Of a message with an excerpt, what it says.
fn first_line(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or("").trim_start_matches("error: ");
    match lines.next().map(|line| line.trim().trim_start_matches("--> ")) {
        Some(place) if !place.is_empty() && place.contains(':') => format!("{place}: {first}"),
        _ => first.to_owned(),
    }
}
