//! `forge gate`, and the gates at the end of `forge apply`.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use serde_json::{Value, json};

use super::project::{Project, usage};
use super::{FAILED, Failure, GATE, ManifestArgs, block_on, print, say};
use crate::exec::{Committed, Gates, Locked, recall};
use crate::graph::Graph;
use crate::manifest::{Diagnostic, Manifest, Sink};
use crate::record::Verdict;
use crate::report::gates;
use crate::stage::Options;
use crate::store::Store;

#[derive(Args)]
pub(super) struct GateArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
    #[command(flatten)]
    out: Outputs,
    /// Print the verdicts as JSON
    #[arg(long)]
    json: bool,
}

/// Where verdicts go beside the terminal.
#[derive(Args)]
pub(super) struct Outputs {
    /// Write what the gates say as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<Utf8PathBuf>,
}

impl GateArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut project = Project::open(&self.manifest)?;
        if project.graph.gates().is_empty() {
            let message = format!("`{}` has no gates", self.manifest.manifest);
            let hint = "declare one: `[gate.<name>]` with `samples = \"<workflow>\"` and `min_accuracy = 0.8`";
            return Err(usage(format!("{message}\n\nhint: {hint}")));
        }
        let committed = committed(&project)?;
        let store = project.store(&self.manifest)?;
        let limit = self.manifest.limit;
        let options = Options { frozen: true, limit, ..Options::default() };
        let context = project.context(store.clone(), options, Arc::new(|_| {}));
        let graph = Arc::new(std::mem::take(&mut project.graph));
        let verdicts = block_on(async {
            let tell = |message: String| say(&format!("warning: {message}"));
            project.share(&self.manifest, &store, false, tell).await?;
            let gates = prepare(&project.manifest, &graph, &store, &committed).await?;
            let found = recall(&graph, &context).await?;
            Ok::<_, Failure>(gates.judge(&store, &found, |_| true)?.0)
        })??;
        if self.json {
            let text = json!({ "passed": gates::passed(&verdicts), "gates": verdicts });
            print(&serde_json::to_string_pretty(&text).expect("BUG: this is plain data"));
        } else {
            gates::lines(&verdicts).iter().for_each(|line| print(line));
            print(&format!("\n{}", gates::total(&verdicts)));
        }
        self.out.write(&project.manifest, &verdicts)?;
        exit(&verdicts)
    }
}

/// 100 where a threshold is not kept.
pub(super) fn exit(verdicts: &[Verdict]) -> Result<(), Failure> {
    if gates::passed(verdicts) { Ok(()) } else { Err(Failure::Said(GATE)) }
}

/// The verdicts in the last line of `forge apply --json`.
pub(super) fn json(verdicts: &[Verdict]) -> Value {
    json!(verdicts)
}

impl Outputs {
    /// Whether there is somewhere to write that only gates fill.
    pub(super) fn wants_gates(&self) -> bool {
        self.junit.is_some()
    }

    /// Writes JUnit XML, and in a GitHub workflow the summary of the step.
    pub(super) fn write(&self, manifest: &Manifest, verdicts: &[Verdict]) -> Result<(), Failure> {
        if let Some(path) = &self.junit {
            std::fs::write(path, gates::junit(&manifest.name, verdicts)).map_err(|error| {
                let why = crate::stage::plain(&error);
                Failure::Message(format!("cannot write `{path}`: {why}"), FAILED)
            })?;
        }
        let summary = std::env::var("GITHUB_STEP_SUMMARY").ok().filter(|path| !path.is_empty());
        if let Some(path) = summary.filter(|_| !verdicts.is_empty()) {
            let text = gates::markdown(&manifest.name, verdicts);
            let file = std::fs::File::options().create(true).append(true).open(&path);
            // The verdict is more than its echo: no reason to end otherwise.
            if let Err(error) = file.and_then(|mut file| writeln!(file, "{text}")) {
                let why = crate::stage::plain(&error);
                say(&format!("warning: cannot write the step summary `{path}`: {why}"));
            }
        }
        Ok(())
    }
}

/// Finds the baselines of all gates.
pub(super) async fn prepare(
    manifest: &Manifest,
    graph: &Arc<Graph>,
    store: &Store,
    committed: &BTreeMap<String, Committed>,
) -> Result<Gates, Failure> {
    let sink = Sink::default();
    let gates = Gates::prepare(graph.clone(), store, committed, &sink).await;
    sink.finish(&manifest.sources)?;
    Ok(gates)
}

/// What the baselines of all gates stand for. What is wrong is said at its place in the manifest.
pub(super) fn committed(project: &Project) -> Result<BTreeMap<String, Committed>, Failure> {
    let (mut out, sink) = (BTreeMap::new(), Sink::default());
    let lock = project.manifest.path.with_extension("lock");
    for baseline in project.graph.gates().iter().filter_map(|(gate, _)| gate.baseline.as_ref()) {
        let name = &baseline.value;
        match read_committed(&project.root, name, &lock) {
            Ok(committed) => {
                out.insert(name.clone(), committed);
            }
            Err((message, hint)) => {
                let diagnostic = Diagnostic::at(baseline.span, message);
                sink.push(match hint {
                    Some(hint) => diagnostic.hint(hint),
                    None => diagnostic,
                });
            }
        }
    }
    sink.finish(&project.manifest.sources)?;
    Ok(out)
}

/// What went wrong, and what to do.
type Wrong = (String, Option<String>);

fn read_committed(root: &Utf8Path, name: &str, lock: &Utf8Path) -> Result<Committed, Wrong> {
    let (text, what) = if name.ends_with(".lock") {
        let text = crate::stage::read_project_text(root, Utf8Path::new(name));
        let text = text.map_err(|error| (format!("cannot read `{name}`: {error}"), None))?;
        (Some(text), format!("`{name}`"))
    } else {
        (at_revision(root, name, lock)?, format!("`{lock}` of `{name}`"))
    };
    let Some(text) = text else {
        let why = format!("`{name}` has no `{lock}`: it was never committed there");
        return Ok(Committed::Nothing(why));
    };
    let locked = Locked::parse(&text);
    Ok(Committed::Lock(locked.map_err(|error| (format!("cannot read {what}: {error}"), None))?))
}

/// A file as a revision has it; `None` where that revision does not have it.
fn at_revision(root: &Utf8Path, revision: &str, path: &Utf8Path) -> Result<Option<String>, Wrong> {
    let git = |args: &[&str]| {
        Command::new("git")
            .args(["--no-optional-locks", "-C"])
            .arg(root)
            .args(args)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| (format!("cannot start git: {error}"), None))
    };
    // By its commit, so that nothing in the name is taken for anything else.
    let commit = format!("{revision}^{{commit}}");
    let found = git(&["rev-parse", "--verify", "--quiet", "--end-of-options", &commit])?;
    if !found.status.success() {
        let is_in_git = git(&["rev-parse", "--is-inside-work-tree"])?.status.success();
        return Err(if is_in_git {
            let hint = format!(
                "in a clone without it: `git fetch origin {revision}`, and `baseline = \"origin/{revision}\"`"
            );
            (format!("this repository has no revision `{revision}`"), Some(hint))
        } else {
            let hint = "name a lock file: `baseline = \"before.lock\"`";
            let message =
                format!("`{revision}` is no revision: this project is in no git repository");
            (message, Some(hint.to_owned()))
        });
    }
    let commit = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    // Relative to the project, which need not be the root of the repository.
    let listed = git(&["ls-tree", "--name-only", &commit, "--", path.as_str()])?;
    if listed.stdout.is_empty() {
        return Ok(None);
    }
    let shown = git(&["show", &format!("{commit}:./{path}")])?;
    if !shown.status.success() {
        let why = String::from_utf8_lossy(&shown.stderr).trim().to_owned();
        return Err((format!("cannot read `{path}` of `{revision}`: {why}"), None));
    }
    String::from_utf8(shown.stdout)
        .map(Some)
        .map_err(|_| (format!("`{path}` of `{revision}` is no text"), None))
}
