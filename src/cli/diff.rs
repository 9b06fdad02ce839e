//! `forge diff`, and what it has in common with `forge bisect`.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use clap::{Args, ValueEnum};

use super::elsewhere::{Elsewhere, Wanted};
use super::project::{self, StoreSettings, usage};
use super::{FAILED, Failure, RemoteArgs, USER, block_on, print, say};
use crate::compare::{self, CompareError, Named, Settings, Side, Sides, compare as compare_sides};
use crate::digest::Key;
use crate::record::scores::PairBy;
use crate::report::diff::{self as report, Diff as Differences, State};
use crate::store::{Access, Patience, RemoteError, Store};

#[derive(Args)]
pub(super) struct Diff {
    /// The first side: a run (its id, a beginning of it, `last`, `last~1`), a lock file, or a git revision
    a: String,
    /// The second side [default: beside a revision the lock file of the work tree, else the last run]
    b: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Run what is missing: a revision in a folder of its own, a lock file by the manifest beside it, and beside a
    /// revision the work tree as it is
    #[arg(long)]
    run: bool,
    /// Show so many flipped rows of each workflow in each direction
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: usize,
    /// Print everything as JSON
    #[arg(long, conflicts_with_all = ["markdown", "html"])]
    json: bool,
    /// Print Markdown for a comment on a pull request: at most 65,000 characters
    #[arg(long, conflicts_with = "html")]
    markdown: bool,
    /// Print one HTML file
    #[arg(long)]
    html: bool,
}

/// Which results of which pipeline are compared, and how.
#[derive(Args)]
pub(super) struct Place {
    /// The pipeline, where there are several: its name, manifest or lock file
    #[arg(long, value_name = "PIPELINE")]
    pub(super) pipeline: Option<String>,
    /// By what rows belong together: `content` is what is asked and what is right, `id` the name of the flow and
    /// what is right [default: content; id where only the template differs]
    #[arg(long, value_name = "HOW")]
    pair_by: Option<By>,
    /// The tag of rows that depend on each other, as in the report
    #[arg(long, value_name = "TAG")]
    pub(super) cluster: Option<String>,
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
        let settings = self.place.project()?;
        let store = self.place.open(&settings, self.run)?;
        let sides = self.place.sides(&settings, &store);
        let (a, b) = match self.run {
            true => self.worked_out(&sides, &settings.root, &store)?,
            false => sides.find(&self.a, self.b.as_deref())?,
        };
        fetch(&store, &compare::keys(&a, &b))?;
        let diff = compare_sides(&store, &a, &b, &self.place.how(self.limit))?;
        print(&match (self.json, self.markdown, self.html) {
            (true, ..) => report::json(&diff),
            (_, true, _) => report::markdown(&diff),
            (.., true) => report::html(&diff),
            _ => report::text(&diff),
        });
        verdict(&diff)
    }

    /// Both sides, with what was missing of them run.
    fn worked_out(
        &self,
        sides: &Sides<'_>,
        root: &Utf8Path,
        store: &Arc<Store>,
    ) -> Result<(Side, Side), Failure> {
        let elsewhere = Elsewhere::new(root, store.clone(), false);
        let one = |name: &str| -> Result<Side, Failure> {
            match sides.named(name)? {
                Named::Run => Ok(sides.side(name)?),
                Named::Revision(commit) => {
                    let manifest = sides.manifest(Some(&commit))?;
                    let wanted = Wanted { manifest: &manifest, only: None, run: true };
                    let found = elsewhere.revision(name, &commit, &wanted)?;
                    Ok(found.map_err(|why| usage(format!("`{name}` cannot be run: {why}")))?.side)
                }
                Named::Lock(path) => locked(sides, &elsewhere, name, &path),
            }
        };
        let first = one(&self.a)?;
        let second = match (&self.b, first.info.what) {
            (Some(b), _) => one(b)?,
            (None, "revision") => {
                let manifest =
                    sides.manifest(None).or_else(|_| sides.manifest(Some(&first.info.id)))?;
                let wanted = Wanted { manifest: &manifest, only: None, run: true };
                let found = elsewhere.work_tree("work tree", &wanted)?;
                found.map_err(|why| usage(format!("the work tree cannot be run: {why}")))?.side
            }
            (None, _) => sides.find(&self.a, None)?.1,
        };
        Ok((first, second))
    }
}

/// A lock file whose results are in the store, run where they are not. The manifest beside it may have moved on: then
/// nothing that it gives is what the lock file names.
fn locked(
    sides: &Sides<'_>,
    elsewhere: &Elsewhere<'_>,
    name: &str,
    path: &Utf8Path,
) -> Result<Side, Failure> {
    let side = sides.side(name)?;
    let store = &elsewhere.store;
    let is_there = |stage: &&crate::record::StageRun| {
        stage.kind != "workflow"
            || crate::history::Tables::of(store, stage).is_ok_and(|t| store.has_blob(t.samples))
    };
    if side.stages.iter().all(|stage| is_there(&stage)) {
        return Ok(side);
    }
    let full = path.canonicalize_utf8().unwrap_or_else(|_| elsewhere.root.join(path));
    let inside = full.strip_prefix(elsewhere.root).map(|path| path.with_extension("toml"));
    let manifest = inside.map_err(|_| usage(format!("`{path}` lies outside of the project")))?;
    let wanted = Wanted { manifest: &manifest, only: None, run: true };
    let found = elsewhere.work_tree(name, &wanted)?;
    let found = found.map_err(|why| usage(format!("`{name}` cannot be run: {why}")))?.side;
    let key = |side: &Side, name: &str| {
        side.stages.iter().find(|stage| stage.name == name).and_then(|stage| stage.key)
    };
    let workflows = side.stages.iter().filter(|stage| stage.kind == "workflow");
    let other =
        workflows.map(|stage| &stage.name).find(|name| key(&side, name) != key(&found, name));
    match other {
        None => Ok(found),
        Some(stage) => Err(usage(format!(
            "`{path}` names results of `{stage}` that `{manifest}` does not give any more; check out the commit of that \
             lock file, or name the commit in its place"
        ))),
    }
}

impl Place {
    /// Opens a store that is there, with the shared one behind it where there is one.
    pub(super) fn open(
        &self,
        settings: &StoreSettings,
        writes: bool,
    ) -> Result<Arc<Store>, Failure> {
        let folder = self.store.clone().or(settings.store.clone());
        let folder = folder.unwrap_or_else(|| settings.root.join(".forge"));
        if !folder.join("store.toml").exists() {
            return Err(usage(format!(
                "there is no store in `{folder}`; `--store DIR` names another, and `forge apply` makes one"
            )));
        }
        let store = Arc::new(Store::open(&folder)?);
        let url = self.remote.remote.as_ref().or(settings.remote.as_ref());
        let Some(url) = url else { return Ok(store) };
        let mode = self.remote.remote_mode.as_ref().or(settings.remote_mode.as_ref());
        let access = match writes {
            true => project::access(mode.map(String::as_str)),
            false => Access::ReadOnly,
        };
        let tell = |message: String| say(&format!("warning: {message}"));
        let remote = project::open_remote(url, access, Patience::Run, tell)?;
        block_on(async {
            match remote.probe().await {
                Ok(()) => {}
                Err(error @ RemoteError::User(_)) => return Err(Failure::from(error)),
                Err(error) => remote.pause(&error),
            }
            store.attach(remote);
            Ok(())
        })??;
        Ok(store)
    }

    /// Where the sides are looked for.
    pub(super) fn sides<'a>(&'a self, settings: &'a StoreSettings, store: &'a Store) -> Sides<'a> {
        Sides { root: &settings.root, store, pipeline: self.pipeline.as_deref() }
    }

    /// How rows are paired.
    pub(super) fn how(&self, limit: usize) -> Settings {
        Settings {
            pair_by: self.pair_by.map(|by| match by {
                By::Content => PairBy::Content,
                By::Id => PairBy::Id,
            }),
            cluster: self.cluster.clone(),
            limit,
        }
    }

    /// The project of the pipeline, with what its manifest says of stores.
    pub(super) fn project(&self) -> Result<StoreSettings, Failure> {
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
}

/// Brings what the local store lacks from the shared one, where there is one.
pub(super) fn fetch(store: &Store, keys: &[Key]) -> Result<(), Failure> {
    block_on(compare::fetch(store, keys))
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
