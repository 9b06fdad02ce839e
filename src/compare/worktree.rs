//! A commit checked out in a folder of its own, beside the work tree, which nobody touches. Knows nothing of what is
//! in it.
//!
//! Git makes it a work tree of the repository, so that filters of files hold there as everywhere. Hooks are not run.
//! What git ignores is not in it: a model that no commit has cannot be asked there.

use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

use super::CompareError;

/// The work tree of a commit; it goes with the value.
pub struct Worktree {
    repository: Utf8PathBuf,
    folder: Utf8PathBuf,
    root: Utf8PathBuf,
    _temporary: tempfile::TempDir,
}

impl Worktree {
    /// Checks out a commit, named by its hash, of the repository that a project is in.
    ///
    /// # Errors
    /// Git says why not.
    pub fn open(project: &Utf8Path, commit: &str) -> Result<Worktree, CompareError> {
        let temporary = tempfile::Builder::new()
            .prefix("forge-worktree-")
            .tempdir()
            .map_err(|error| CompareError::Failed(format!("cannot make a folder: {error}")))?;
        let real = temporary.path().canonicalize().ok();
        let real = real.and_then(|path| Utf8PathBuf::from_path_buf(path).ok());
        let real = real.ok_or_else(|| {
            CompareError::Failed("the folder for temporary files has no UTF-8 name".to_owned())
        })?;
        // The project need not be the root of its repository.
        let prefix = git(project, &["rev-parse", "--show-prefix"])?;
        let folder = real.join("tree");
        git(
            project,
            &["worktree", "add", "--quiet", "--detach", "--force", folder.as_str(), commit],
        )?;
        let root = folder.join(prefix.trim());
        let root = Utf8PathBuf::from(root.as_str().trim_end_matches('/'));
        Ok(Worktree { repository: project.to_owned(), folder, root, _temporary: temporary })
    }

    /// The project in it.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        // Where that fails, `git worktree prune` forgets it once the folder is gone.
        let _ = git(&self.repository, &["worktree", "remove", "--force", self.folder.as_str()]);
    }
}

fn git(root: &Utf8Path, args: &[&str]) -> Result<String, CompareError> {
    let output = Command::new("git")
        .args(["-c", "core.hooksPath=/dev/null", "-C"])
        .arg(root)
        .args(args)
        .env("LC_ALL", "C")
        // Filters of large files may ask for a password; nobody would see the question.
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| CompareError::Failed(format!("cannot start git: {error}")))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(CompareError::Failed(format!(
            "`git {}`: {why}",
            args[..2.min(args.len())].join(" ")
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
