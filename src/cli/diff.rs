//! `forge diff`.

use camino::Utf8PathBuf;
use clap::{Args, ValueEnum};

use super::project::{self, StoreSettings, usage};
use super::{FAILED, Failure, RemoteArgs, USER, block_on, print, say};
use crate::compare::{self, CompareError, Settings, Sides, compare as compare_sides};
use crate::record::scores::PairBy;
use crate::report::diff::{self as report, Diff as Differences, State};
use crate::store::{Access, RemoteError, Store};

#[derive(Args)]
pub(super) struct Diff {
    /// The first side: a run (its id, a beginning of it, `last`, `last~1`), a lock file, or a git revision
    a: String,
    /// The second side [default: beside a revision the lock file of the work tree, else the last run]
    b: Option<String>,
    /// The pipeline, where there are several: its name, manifest or lock file
    #[arg(long, value_name = "PIPELINE")]
    pipeline: Option<String>,
    /// By what rows belong together: `content` is what is asked and what is right, `id` the name of the flow and
    /// what is right [default: content; id where only the template differs]
    #[arg(long, value_name = "HOW")]
    pair_by: Option<By>,
    /// The tag of rows that depend on each other, as in the report
    #[arg(long, value_name = "TAG")]
    cluster: Option<String>,
    /// Show so many flipped rows of each workflow in each direction
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: usize,
    /// Print everything as JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print Markdown for a comment on a pull request: at most 65,000 characters
    #[arg(long)]
    markdown: bool,
    /// Folder of the store [default: the manifest's, else .forge in the project]
    #[arg(long, env = "FORGE_STORE", value_name = "DIR")]
    store: Option<Utf8PathBuf>,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    Content,
    Id,
}

impl From<CompareError> for Failure {
    fn from(error: CompareError) -> Self {
        let code = if matches!(error, CompareError::User(_)) { USER } else { FAILED };
        Failure::Message(error.to_string(), code)
    }
}

impl Diff {
    pub(super) fn run(self) -> Result<(), Failure> {
        let settings = self.project()?;
        let folder = self.store.clone().or(settings.store.clone());
        let folder = folder.unwrap_or_else(|| settings.root.join(".forge"));
        if !folder.join("store.toml").exists() {
            return Err(usage(format!(
                "there is no store in `{folder}`; `--store DIR` names another, and `forge apply` makes one"
            )));
        }
        let store = Store::open(&folder)?;
        let sides =
            Sides { root: &settings.root, store: &store, pipeline: self.pipeline.as_deref() };
        let (a, b) = sides.find(&self.a, self.b.as_deref())?;
        self.fetch(&settings, &store, &compare::keys(&a, &b))?;
        let how = Settings {
            pair_by: self.pair_by.map(|by| match by {
                By::Content => PairBy::Content,
                By::Id => PairBy::Id,
            }),
            cluster: self.cluster.clone(),
            limit: self.limit,
        };
        let diff = compare_sides(&store, &a, &b, &how)?;
        print(&match (self.json, self.markdown) {
            (true, _) => report::json(&diff),
            (_, true) => report::markdown(&diff),
            _ => report::text(&diff),
        });
        verdict(&diff)
    }

    /// The project of the pipeline, with what its manifest says of stores.
    fn project(&self) -> Result<StoreSettings, Failure> {
        let named = self.pipeline.as_deref().map(Utf8PathBuf::from);
        if let Some(manifest) = named.filter(|path| path.extension() == Some("toml")) {
            return project::store_settings(&manifest);
        }
        let root = project::root_here()?;
        let folder = root.join("pipelines");
        let mut manifests: Vec<Utf8PathBuf> = folder
            .read_dir_utf8()
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().to_owned())
            .filter(|path| path.extension() == Some("toml"))
            .filter(|path| {
                self.pipeline.as_deref().is_none_or(|name| {
                    path.file_stem() == Some(name) || path.with_extension("lock").ends_with(name)
                })
            })
            .collect();
        match (manifests.pop(), manifests.is_empty() && self.store.is_none()) {
            (Some(manifest), true) => project::store_settings(&manifest),
            _ => Ok(StoreSettings { root, ..StoreSettings::default() }),
        }
    }

    /// Brings what the local store lacks from the shared one, where there is one.
    fn fetch(
        &self,
        settings: &StoreSettings,
        store: &Store,
        keys: &[crate::digest::Key],
    ) -> Result<(), Failure> {
        let Some(url) = self.remote.remote.as_ref().or(settings.remote.as_ref()) else {
            return Ok(());
        };
        let tell = |message: String| say(&format!("warning: {message}"));
        let remote = project::open_remote(url, Access::ReadOnly, tell)?;
        block_on(async {
            match remote.probe().await {
                Ok(()) => {}
                Err(error @ RemoteError::User(_)) => return Err(Failure::from(error)),
                Err(error) => remote.pause(&error),
            }
            store.attach(remote);
            for key in keys {
                if let Some((record, _)) = store.find(*key).await {
                    store.find_blobs(&record).await;
                }
            }
            Ok(())
        })?
    }
}

/// A difference is no failure; that there was nothing to compare is one.
fn verdict(diff: &Differences) -> Result<(), Failure> {
    let any = |state: State| diff.cells.iter().any(|cell| cell.state == state);
    if any(State::Same) || any(State::Compared) {
        return Ok(());
    }
    if any(State::Missing) {
        let message = "no samples of both sides are in the store, so nothing was compared";
        return Err(Failure::Message(message.to_owned(), FAILED));
    }
    if any(State::DifferentData) {
        return Err(usage("the two sides have no rows in common, so nothing was compared"));
    }
    Err(usage("the two sides have no workflow in common, so nothing was compared"))
}
