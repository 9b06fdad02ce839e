//! Outputs in the work tree are views of the store: compared by digest, restored without running
//! anything. Knows nothing of what is in them.

use camino::{Utf8Path, Utf8PathBuf};

use super::{Context, StageError};
use crate::digest::Digest;
use crate::store::replace_file;

/// A file of the work tree and the blob it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Relative to the project's root, or absolute with `--out`.
    pub path: Utf8PathBuf,
    /// What it should hold.
    pub digest: Digest,
}

impl View {
    /// Makes the file hold what it should. Content that did not come from the store is kept there before
    /// it is replaced, and that is said.
    pub fn restore(
        &self,
        stage: &str,
        was_fresh: bool,
        context: &Context,
    ) -> Result<(), StageError> {
        let path = context.root.join(&self.path);
        if self.path.is_relative() {
            stays_inside(&path, context)?;
        }
        match std::fs::read(&path) {
            Ok(bytes) => {
                let found = Digest::of(&bytes);
                if found == self.digest {
                    return Ok(());
                }
                if was_fresh || !context.store.has_blob(found) {
                    context.store.put_blob(&bytes)?;
                    let kept = context.store.blob_path(found);
                    let message = format!(
                        "`{}` was edited; restored it from the store (the edited one is kept in `{kept}`)",
                        self.path
                    );
                    context.notice(stage, message);
                }
            }
            Err(_) if was_fresh => {
                context.notice(
                    stage,
                    format!("`{}` was missing; restored it from the store", self.path),
                );
            }
            Err(_) => {}
        }
        let bytes = context.store.blob(self.digest).ok_or_else(|| {
            StageError::Failed(format!("the content of `{}` is gone from the store", self.path))
        })?;
        Ok(replace_file(&path, &bytes)?)
    }
}

/// Refuses a path whose folders lead out of the project through a link.
fn stays_inside(path: &Utf8Path, context: &Context) -> Result<(), StageError> {
    let folder = path.ancestors().skip(1).find(|folder| folder.exists());
    let real = folder.and_then(|folder| folder.canonicalize_utf8().ok());
    let root = context.root.canonicalize_utf8().unwrap_or_else(|_| context.root.clone());
    match real {
        Some(real) if real.starts_with(&root) => Ok(()),
        _ => Err(StageError::User(format!("`{path}` lies behind a link that leaves the project"))),
    }
}
