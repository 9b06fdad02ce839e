//! The gates of a project: what their baselines stand for, in git and in lock files. Knows nothing of what they say.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;

use camino::Utf8Path;

use super::Project;
use crate::exec::{Committed, Gates, Locked};
use crate::graph::Graph;
use crate::manifest::{Diagnostic, Diagnostics, Manifest, Sink};
use crate::store::Store;

/// Finds the baselines of all gates.
pub async fn prepare(
    manifest: &Manifest,
    graph: &Arc<Graph>,
    store: &Store,
    committed: &BTreeMap<String, Committed>,
) -> Result<Arc<Gates>, Diagnostics> {
    let sink = Sink::default();
    let gates = Gates::prepare(graph.clone(), store, committed, &sink).await;
    sink.finish(&manifest.sources)?;
    Ok(Arc::new(gates))
}

impl Project {
    /// What the baselines of all gates stand for. What is wrong is said at its place in the manifest.
    pub fn committed(&self) -> Result<BTreeMap<String, Committed>, Diagnostics> {
        let (mut out, sink) = (BTreeMap::new(), Sink::default());
        let lock = self.manifest.path.with_extension("lock");
        for baseline in self.graph.gates().iter().filter_map(|(gate, _)| gate.baseline.as_ref()) {
            let name = &baseline.value;
            match read_committed(&self.root, name, &lock) {
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
        sink.finish(&self.manifest.sources)?;
        Ok(out)
    }
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
