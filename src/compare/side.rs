//! A side of a comparison by its name: a run, a lock file, or the lock file of a git revision. Knows nothing of
//! what is compared.
//!
//! A name is taken for a lock file if it ends in `.lock`; for a run if [`history::find`] knows it; else for a
//! revision. `run:` and `rev:` before it say which is meant.

use camino::{Utf8Path, Utf8PathBuf};

use super::CompareError;
use super::git::Git;
use crate::exec::Locked;
use crate::history::{self, HistoryError, Run};
use crate::record::{RunRecord, StageRun};
use crate::report::diff::{Commit, SideInfo};
use crate::store::Store;

/// A shorter part of a ULID gives way to a revision of that name.
const PART_MIN: usize = 8;
/// Runs and pipelines that are named in a message.
const NAMED_MAX: usize = 5;

/// One side.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    /// What it is.
    pub info: SideInfo,
    /// Its stages: of a run in the order of the manifest, else by name.
    pub stages: Vec<StageRun>,
}

impl Side {
    /// A run, as somebody has called it.
    pub fn of_run(name: &str, record: &RunRecord) -> Side {
        let info = SideInfo { name: name.to_owned(), what: "run", id: record.run_id.clone() };
        Side { info, stages: record.stages.clone() }
    }
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// A run.
    Run,
    /// A lock file, by its path as written.
    Lock(Utf8PathBuf),
    /// A commit, by its hash.
    Revision(String),
}

/// Where sides are looked for.
pub struct Sides<'a> {
    /// The project.
    pub root: &'a Utf8Path,
    /// Its store.
    pub store: &'a Store,
    /// The pipeline asked for: its name, its manifest, or its lock file.
    pub pipeline: Option<&'a str>,
}

impl Sides<'_> {
    /// Both sides. Without a second name that is, beside a revision, the lock file of the work tree, else the last
    /// run.
    pub fn find(&self, a: &str, b: Option<&str>) -> Result<(Side, Side), CompareError> {
        let first = self.side(a)?;
        if let Some(b) = b {
            return Ok((first, self.side(b)?));
        }
        let here = match first.info.what {
            "revision" => self.work_tree(&first)?,
            // Of a lock file too: it may be that of the work tree itself.
            _ => self.run_side(history::LAST)?,
        };
        Ok((first, here))
    }

    fn work_tree(&self, revision: &Side) -> Result<Side, CompareError> {
        let path = self.lock_path(Some(&revision.info.id))?;
        if self.root.join(&path).exists() {
            return self.lock_file(&path, "work tree");
        }
        Err(CompareError::User(format!(
            "the work tree has no `{path}` to compare with; `forge apply {}` writes it, or name a second side",
            path.with_extension("toml")
        )))
    }

    /// What kind of side a name stands for.
    pub fn named(&self, name: &str) -> Result<Named, CompareError> {
        if name.ends_with(".lock") {
            return Ok(Named::Lock(Utf8PathBuf::from(name)));
        }
        if name.starts_with("run:") || steps_back(name).is_some() {
            return Ok(Named::Run);
        }
        if let Some(revision) = name.strip_prefix("rev:") {
            let commit = self.commit(revision)?;
            return commit.map(Named::Revision).ok_or_else(|| self.unknown(revision));
        }
        match (self.run(name)?, self.commit(name)?) {
            (Some(run), Some(_)) if !is_short_part(name, &run) => {
                self.side(name).map(|_| Named::Run)
            }
            (_, Some(commit)) => Ok(Named::Revision(commit)),
            (Some(_), None) => Ok(Named::Run),
            (None, None) => Err(self.unknown(name)),
        }
    }

    /// The manifest of the pipeline that is meant, as a commit or the work tree has it.
    pub fn manifest(&self, commit: Option<&str>) -> Result<Utf8PathBuf, CompareError> {
        if let Some(named) = self.pipeline.filter(|name| name.ends_with(".toml")) {
            // Of the current folder, as any path of the command line.
            let full = Utf8Path::new(named).canonicalize_utf8().ok();
            let inside = full.and_then(|full| Some(full.strip_prefix(self.root).ok()?.to_owned()));
            return Ok(inside.unwrap_or_else(|| Utf8PathBuf::from(named)));
        }
        match (self.lock_path(commit), self.pipeline) {
            (Ok(lock), _) => Ok(lock.with_extension("toml")),
            // One that never ran has no lock file.
            (Err(_), Some(name)) if crate::manifest::is_name(name) => {
                Ok(Utf8PathBuf::from(format!("pipelines/{name}.toml")))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The commits from `good` to `bad`, both included, oldest first. A merge counts as one change.
    pub fn between(&self, good: &str, bad: &str) -> Result<Vec<Commit>, CompareError> {
        Git { root: self.root }.between(good, bad)
    }

    /// A side by name.
    pub fn side(&self, name: &str) -> Result<Side, CompareError> {
        if let Some(run) = name.strip_prefix("run:") {
            return self.run_side(run);
        }
        if let Some(revision) = name.strip_prefix("rev:") {
            return self.revision(revision, name)?.ok_or_else(|| self.unknown(revision));
        }
        if name.ends_with(".lock") {
            return self.lock_file(Utf8Path::new(name), name);
        }
        // `last` is a run whatever branches are called; `rev:last` is the branch.
        if steps_back(name).is_some() {
            return self.run_side(name);
        }
        match (self.run(name)?, self.commit(name)?) {
            (Some(run), Some(commit)) => {
                if is_short_part(name, &run) {
                    return self.lock_of(commit, name);
                }
                Err(CompareError::User(format!(
                    "`{name}` is run {} and commit {commit}; write `run:{name}` or `rev:{name}`",
                    run.id()
                )))
            }
            (Some(run), None) => Ok(of_run(name, run)),
            (None, Some(commit)) => self.lock_of(commit, name),
            (None, None) => Err(self.unknown(name)),
        }
    }

    fn run_side(&self, name: &str) -> Result<Side, CompareError> {
        Ok(of_run(name, self.run(name)?.ok_or_else(|| self.unknown(name))?))
    }

    fn unknown(&self, name: &str) -> CompareError {
        let ids = self.store.runs().into_iter().rev();
        let mut known: Vec<String> = ids.take(NAMED_MAX).collect();
        if !known.is_empty() {
            known.insert(0, "last".to_owned());
        }
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        CompareError::User(format!(
            "`{name}` is no run of this store, no lock file and no git revision here (known runs: {known})"
        ))
    }

    fn run(&self, name: &str) -> Result<Option<Run>, CompareError> {
        let found = match (steps_back(name), self.pipeline) {
            // The last run of this pipeline, whatever else has run since.
            (Some(steps), Some(_)) => {
                let runs = history::runs(self.store, 0, u64::MAX).map_err(HistoryError::from)?;
                let own = |run: &Run| self.is_of_pipeline(&run.record);
                return Ok(runs.filter_map(Result::ok).filter(own).nth(steps));
            }
            _ => history::find(self.store, name),
        };
        match found {
            Ok(run) => Ok(Some(run)),
            Err(HistoryError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn is_of_pipeline(&self, record: &RunRecord) -> bool {
        self.pipeline.is_none_or(|wanted| {
            let manifest = Utf8Path::new(&record.manifest);
            wanted == record.pipeline || is_called(manifest, wanted)
        })
    }

    fn lock_file(&self, path: &Utf8Path, name: &str) -> Result<Side, CompareError> {
        // Of the current folder, as any path of the command line, else of the project.
        let candidates = [path.to_owned(), self.root.join(path)];
        let full = candidates.iter().find(|path| path.exists()).unwrap_or(&candidates[1]);
        let text = std::fs::read_to_string(full).map_err(|error| {
            CompareError::User(format!("cannot read `{path}`: {}", crate::stage::plain(&error)))
        })?;
        let info = SideInfo { name: name.to_owned(), what: "lock", id: path.to_string() };
        of_lock(info, &text, path)
    }

    fn commit(&self, revision: &str) -> Result<Option<String>, CompareError> {
        Git { root: self.root }.commit(revision)
    }

    fn revision(&self, revision: &str, name: &str) -> Result<Option<Side>, CompareError> {
        self.commit(revision)?.map(|commit| self.lock_of(commit, name)).transpose()
    }

    fn lock_of(&self, commit: String, name: &str) -> Result<Side, CompareError> {
        let path = self.lock_path(Some(&commit))?;
        let text = Git { root: self.root }.show(&commit, &path)?.ok_or_else(|| {
            CompareError::User(format!(
                "`{name}` has no `{path}`; check that revision out, `forge apply {}` and commit the lock file",
                path.with_extension("toml")
            ))
        })?;
        let info = SideInfo { name: name.to_owned(), what: "revision", id: commit };
        of_lock(info, &text, &path)
    }

    /// The lock file of the pipeline that is meant, in the project.
    fn lock_path(&self, commit: Option<&str>) -> Result<Utf8PathBuf, CompareError> {
        let known = self.lock_files(commit)?;
        let found: Vec<&Utf8PathBuf> = match self.pipeline {
            None => known.iter().collect(),
            Some(wanted) => known.iter().filter(|path| is_called(path, wanted)).collect(),
        };
        match (found.as_slice(), self.pipeline) {
            ([path], _) => Ok((*path).clone()),
            ([], Some(wanted)) => Err(CompareError::User(format!(
                "no lock file belongs to `{wanted}` ({})",
                listed("known", &known)
            ))),
            ([], None) => Err(CompareError::User(
                "there is no lock file; `forge apply` writes one beside its manifest".to_owned(),
            )),
            (many, _) => {
                let many: Vec<Utf8PathBuf> = many.iter().map(|path| (*path).clone()).collect();
                Err(CompareError::User(format!(
                    "there are several pipelines; `--pipeline` names one ({})",
                    listed("known", &many)
                )))
            }
        }
    }

    /// Lock files of pipelines, of the work tree and of a commit.
    pub fn lock_files(&self, commit: Option<&str>) -> Result<Vec<Utf8PathBuf>, CompareError> {
        let git = Git { root: self.root };
        let mut known = git.lock_files(commit)?;
        let folder = self.root.join("pipelines");
        for entry in folder.read_dir_utf8().into_iter().flatten().flatten() {
            if entry.path().extension() == Some("lock") {
                known.push(Utf8Path::new("pipelines").join(entry.file_name()));
            }
        }
        known.sort();
        known.dedup();
        Ok(known)
    }
}

fn listed(what: &str, paths: &[Utf8PathBuf]) -> String {
    let some: Vec<String> = paths.iter().take(NAMED_MAX).map(|path| format!("`{path}`")).collect();
    let more = if paths.len() > NAMED_MAX { ", …" } else { "" };
    if some.is_empty() {
        format!("{what}: none")
    } else {
        format!("{what}: {}{more}", some.join(", "))
    }
}

/// Whether a manifest or lock file is what somebody means by a name or a path.
fn is_called(path: &Utf8Path, wanted: &str) -> bool {
    let wanted = Utf8Path::new(wanted.strip_prefix("./").unwrap_or(wanted));
    path.file_stem() == Some(wanted.as_str())
        || path.with_extension("") == wanted.with_extension("")
}

/// Whether a name is so little of a run's id that a revision of that name is what is meant.
fn is_short_part(name: &str, run: &Run) -> bool {
    name.len() < PART_MIN && !run.tags.iter().any(|tag| tag == name)
}

/// `last` is 0, `last~2` is 2.
fn steps_back(name: &str) -> Option<usize> {
    match name.strip_prefix(history::LAST)? {
        "" => Some(0),
        back => back.strip_prefix('~')?.parse().ok(),
    }
}

fn of_run(name: &str, run: Run) -> Side {
    Side::of_run(name, &run.record)
}

fn of_lock(info: SideInfo, text: &str, path: &Utf8Path) -> Result<Side, CompareError> {
    let locked = Locked::parse(text).map_err(|error| {
        CompareError::User(format!("cannot read `{path}` of `{}`: {error}", info.name))
    })?;
    let stage = |(name, stage): (String, crate::exec::LockedStage)| StageRun {
        key: stage.key,
        recipe: stage.recipe,
        result: stage.result,
        ..StageRun::new(&name, &stage.kind)
    };
    Ok(Side { info, stages: locked.stage.into_iter().map(stage).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_has_three_names() {
        let path = Utf8Path::new("pipelines/bench.lock");
        for name in
            ["bench", "pipelines/bench.toml", "pipelines/bench.lock", "./pipelines/bench.toml"]
        {
            assert!(is_called(path, name), "{name}");
        }
        assert!(!is_called(path, "other") && !is_called(path, "pipelines/other.toml"));
    }
}
