//! Outputs in the work tree are views of the store: compared by digest, restored without running
//! anything. Knows nothing of what is in them.

use camino::Utf8PathBuf;

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
    /// Makes the file hold what it should. An edited file is replaced, and that is said.
    pub fn restore(
        &self,
        stage: &str,
        was_fresh: bool,
        context: &Context,
    ) -> Result<(), StageError> {
        let path = context.root.join(&self.path);
        match std::fs::read(&path) {
            Ok(bytes) if Digest::of(&bytes) == self.digest => return Ok(()),
            // Of a stage that has just run, the old file is expected to differ.
            Ok(_) if was_fresh => {
                context.notice(
                    stage,
                    format!("`{}` was edited; restored it from the store", self.path),
                );
            }
            Err(_) if was_fresh => {
                context.notice(
                    stage,
                    format!("`{}` was missing; restored it from the store", self.path),
                );
            }
            _ => {}
        }
        let bytes = context.store.blob(self.digest).ok_or_else(|| {
            StageError::Failed(format!("the content of `{}` is gone from the store", self.path))
        })?;
        Ok(replace_file(&path, &bytes)?)
    }
}
