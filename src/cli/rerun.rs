//! `forge apply --watch`: runs again whenever a file changes that the run reads. Knows nothing of what a run does: each
//! is a process of its own, as if somebody had typed it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind};
use tokio::sync::mpsc;

use super::project::Project;
use super::{FAILED, Failure, INTERRUPTED, ManifestArgs, block_on, say};

/// Editors write a file in several goes; after so much silence they are done.
const SILENCE: Duration = Duration::from_millis(200);
/// The argument that is not passed on.
const WATCH: &str = "--watch";

/// Runs, waits for a change, and so on until Ctrl-C.
pub(super) fn watch(args: &ManifestArgs) -> Result<(), Failure> {
    block_on(async {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::Message(format!("cannot watch: {error}"), FAILED)
        };
        let mut interrupt =
            tokio::signal::unix::signal(SignalKind::interrupt()).map_err(|e| failed(&e))?;
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // What is only read is no change.
                if let Ok(event) = event
                    && !matches!(event.kind, EventKind::Access(_))
                {
                    let _ = tell.send(event.paths);
                }
            })
            .map_err(|error| failed(&error))?;
        let mut watched = Watched::default();
        loop {
            // Before the run, so that a change during it counts.
            watched.renew(args);
            watched.follow(&mut watcher).map_err(|error| failed(&error))?;
            run(&mut interrupt).await?;
            say(&format!("\nwatching {} files and folders; Ctrl-C ends", watched.files.len()));
            loop {
                let paths = tokio::select! {
                    paths = told.recv() => paths.unwrap_or_default(),
                    _ = interrupt.recv() => return Err(Failure::Said(INTERRUPTED)),
                };
                let Some(path) = paths.iter().find_map(|path| watched.concerns(path)) else {
                    continue;
                };
                while let Ok(Some(_)) = tokio::time::timeout(SILENCE, told.recv()).await {}
                say(&format!("{} changed\n", from_here(&path)));
                break;
            }
        }
    })?
}

/// A path as one would type it here.
fn from_here(path: &Utf8Path) -> &Utf8Path {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path)
}

/// One run. Ctrl-C reaches it as well, and it ends as it always does.
async fn run(interrupt: &mut Signal) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::Message(format!("cannot run: {error}"), FAILED);
    let args: Vec<OsString> = std::env::args_os().skip(1).filter(|arg| arg != WATCH).collect();
    let program = std::env::current_exe().map_err(cannot)?;
    let mut child = Command::new(program).args(args).spawn().map_err(cannot)?;
    let mut interrupted = false;
    loop {
        tokio::select! {
            ended = child.wait() => {
                ended.map_err(cannot)?;
                return if interrupted { Err(Failure::Said(INTERRUPTED)) } else { Ok(()) };
            }
            _ = interrupt.recv() => interrupted = true,
        }
    }
}

/// What a manifest reads.
#[derive(Default)]
struct Watched {
    /// Files and folders, without links.
    files: BTreeSet<Utf8PathBuf>,
    /// Folders that the system watches for us.
    folders: BTreeSet<Utf8PathBuf>,
}

impl Watched {
    /// Reads the manifest again. While it is wrong, what it read before stays watched.
    fn renew(&mut self, args: &ManifestArgs) {
        let full = |path: &Utf8Path| path.canonicalize_utf8().ok();
        self.files.extend(full(&args.manifest));
        let Ok(project) = Project::open(args) else { return };
        let sources = project.manifest.sources.files().map(|(path, _)| path.to_owned());
        let read = project.graph.nodes().iter().flat_map(|node| node.stage.reads());
        let all = sources.chain(read).filter_map(|path| full(&project.root.join(path)));
        self.files = all.collect();
        self.files.extend(full(&args.manifest));
    }

    /// Watches the folders of all files: editors replace a file by another one of its name.
    fn follow(&mut self, watcher: &mut impl Watcher) -> notify::Result<()> {
        for path in &self.files {
            let (folder, mode) = match path.is_dir() {
                true => (path.as_path(), RecursiveMode::Recursive),
                false => (path.parent().unwrap_or(path), RecursiveMode::NonRecursive),
            };
            if self.folders.insert(folder.to_owned()) {
                watcher.watch(folder.as_std_path(), mode)?;
            }
        }
        Ok(())
    }

    /// The file that a change is about, if it is one of ours or below one of our folders.
    fn concerns(&self, path: &std::path::Path) -> Option<Utf8PathBuf> {
        let path = Utf8Path::from_path(path)?;
        path.ancestors().find(|above| self.files.contains(*above)).map(|_| path.to_owned())
    }
}
