//! Outputs in the work tree are views of the store: compared by digest, restored without running
//! anything. Knows nothing of what is in them.

use std::os::unix::fs::PermissionsExt;

use camino::{Utf8Path, Utf8PathBuf};

use super::{Context, StageError};
use crate::digest::Digest;

/// A file of the work tree and the blob it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Relative to the project's root, or absolute with `--out`.
    pub path: Utf8PathBuf,
    /// What it should hold.
    pub digest: Digest,
    /// Whether it is a program.
    pub executable: bool,
}

impl View {
    /// Makes the file hold what it should; `false` where the store has lost the content. Content that no run
    /// has put there is kept in the store before it is replaced, and that is said.
    pub fn restore(&self, stage: &str, context: &Context) -> Result<bool, StageError> {
        let path = context.root.join(&self.path);
        if context.store.digest_of_file(&path).is_ok_and(|found| found == self.digest) {
            return Ok(true);
        }
        if !context.store.has_blob(self.digest) {
            return Ok(false);
        }
        if self.path.is_relative() {
            stays_inside(&path, context)?;
        }
        if let Ok(found) = context.store.digest_of_file(&path)
            && (context.views)(self.path.as_str()) != Some(found)
        {
            let kept = context.store.import(&path)?;
            let message = format!(
                "`{}` was edited; replaced it from the store (the edited one is kept in `{}`)",
                self.path,
                context.store.blob_path(kept)
            );
            context.notice(stage, message);
        }
        if !context.store.write_blob_to(self.digest, &path)? {
            return Ok(false);
        }
        if self.executable {
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, mode).map_err(crate::store::at("write", &path))?;
        }
        Ok(true)
    }
}

/// Refuses a path whose folders lead out of the project through a link.
fn stays_inside(path: &Utf8Path, context: &Context) -> Result<(), StageError> {
    let folder = path.ancestors().skip(1).find(|folder| folder.exists());
    let real = folder.and_then(|folder| folder.canonicalize_utf8().ok());
    match real {
        Some(real) if real.starts_with(&context.root) => Ok(()),
        _ => Err(StageError::User(format!("`{path}` lies behind a link that leaves the project"))),
    }
}
