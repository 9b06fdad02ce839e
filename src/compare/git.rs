//! What git remembers, read and never written: commits by name, files of a commit. Knows nothing of what is in
//! them.
//!
//! Names of revisions come from the command line: one that begins with `-` is refused, every other stands after
//! `--end-of-options`, and from then on only the commit that git named is used.

use std::process::{Command, Output, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

use super::CompareError;
use crate::report::diff::Commit;

/// How every lock file begins, of whatever version.
const FIRST_LINE: &str = "# Written by `forge apply`.";

/// The repository of a project, its root or a folder of it.
pub(super) struct Git<'a> {
    pub(super) root: &'a Utf8Path,
}

impl Git<'_> {
    fn run(&self, args: &[&str]) -> Result<Output, CompareError> {
        Command::new("git")
            .args(["--no-optional-locks", "-C"])
            .arg(self.root)
            .args(args)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| CompareError::Failed(format!("cannot start git: {error}")))
    }

    /// The commit that a name stands for; `None` where git knows none, or there is no repository.
    pub(super) fn commit(&self, revision: &str) -> Result<Option<String>, CompareError> {
        if revision.starts_with('-') || revision.is_empty() {
            return Err(CompareError::User(format!("`{revision}` is no name of a revision")));
        }
        let commit = format!("{revision}^{{commit}}");
        let output =
            self.run(&["rev-parse", "--verify", "--quiet", "--end-of-options", &commit])?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let is_commit = text.len() >= 40 && text.chars().all(|c| c.is_ascii_hexdigit());
        Ok((output.status.success() && is_commit).then_some(text))
    }

    /// A file of a commit, by its path in the project; `None` where it has none.
    pub(super) fn show(
        &self,
        commit: &str,
        path: &Utf8Path,
    ) -> Result<Option<String>, CompareError> {
        let output = self.run(&["show", "--no-textconv", &format!("{commit}:./{path}"), "--"])?;
        if !output.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8(output.stdout);
        text.map(Some).map_err(|_| {
            CompareError::User(format!("`{path}` of commit {commit} is not UTF-8 text"))
        })
    }

    /// Lock files of pipelines: of the work tree as git sees it, and of a commit; none outside git.
    pub(super) fn lock_files(
        &self,
        commit: Option<&str>,
    ) -> Result<Vec<Utf8PathBuf>, CompareError> {
        let mut found = Vec::new();
        let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.lock"];
        for path in names(&self.run(&args)?) {
            let text = std::fs::read_to_string(self.root.join(&path));
            if text.is_ok_and(|text| text.starts_with(FIRST_LINE)) {
                found.push(path);
            }
        }
        let Some(commit) = commit else { return Ok(found) };
        for path in names(&self.run(&["ls-tree", "-r", "-z", "--name-only", commit])?) {
            if path.extension() == Some("lock")
                && !found.contains(&path)
                && self.show(commit, &path)?.is_some_and(|text| text.starts_with(FIRST_LINE))
            {
                found.push(path);
            }
        }
        Ok(found)
    }
}

impl Git<'_> {
    /// The commits from `good` to `bad`, both included, oldest first, by first parents: a merge is one change.
    pub(super) fn between(&self, good: &str, bad: &str) -> Result<Vec<Commit>, CompareError> {
        let form = "--format=%H%x00%s%x00%an%x00%as";
        let range = [form, "--first-parent", "--reverse", "--no-show-signature"];
        let list = |from: &[&str]| -> Result<Vec<Commit>, CompareError> {
            let output = self.run(&[&["log"][..], &range, from, &["--"]].concat())?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() {
                let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(CompareError::Failed(format!("`git log`: {why}")));
            }
            let commit = |line: &str| {
                let mut parts = line.split('\0').map(str::to_owned);
                let mut part = || parts.next().unwrap_or_default();
                Commit { id: part(), subject: part(), author: part(), date: part() }
            };
            Ok(text.lines().map(commit).collect())
        };
        let mut commits = list(&["--no-walk", good])?;
        let after = list(&[&format!("{good}..{bad}")])?;
        if after.is_empty() && good != bad {
            return Err(CompareError::User(
                "the good commit is not before the bad one; the older one comes first".to_owned(),
            ));
        }
        // The oldest one that is not in `good` has to stand on it.
        let stands = match after.first() {
            None => true,
            Some(oldest) => self.commit(&format!("{}^1", oldest.id))?.as_deref() == Some(good),
        };
        if !stands {
            let base = self.run(&["merge-base", good, bad])?;
            let base = String::from_utf8_lossy(&base.stdout).trim().to_owned();
            let short = |id: &str| id.chars().take(12).collect::<String>();
            let hint = match base.as_str() {
                "" => "they have no commit in common".to_owned(),
                base if base == good => {
                    "it came in by a merge; name a commit of the line that was merged into"
                        .to_owned()
                }
                base => format!("both stand on {}: name that one as the good one", short(base)),
            };
            return Err(CompareError::User(format!(
                "{} is not on the line of first parents of {}: {hint}",
                short(good),
                short(bad)
            )));
        }
        commits.extend(after);
        Ok(commits)
    }
}

/// Paths that end with a zero byte each; nothing of a command that failed.
fn names(output: &Output) -> Vec<Utf8PathBuf> {
    if !output.status.success() {
        return Vec::new();
    }
    let names = output.stdout.split(|c| *c == 0).filter(|name| !name.is_empty());
    names.filter_map(|name| std::str::from_utf8(name).ok().map(Utf8PathBuf::from)).collect()
}
