//! `forge experiments`: what `forge serve` has written down. Knows nothing of servers: one may be at work meanwhile.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use super::project::{root_here, usage};
use super::terminal::{columns, visible_line};
use super::{FAILED, Failure, print};
use crate::serve::DATABASE;
use crate::serve::db::{Db, Experiment, Filter};

/// Experiments that are named in a message.
const NAMED_MAX: usize = 5;

#[derive(Args)]
pub(super) struct Experiments {
    #[command(subcommand)]
    command: Option<ExperimentsCommand>,
    /// Folder of the store [default: .forge in the project]
    #[arg(long, env = "FORGE_STORE", value_name = "DIR", global = true)]
    store: Option<Utf8PathBuf>,
    /// Print JSON Lines: one object for each experiment, newest first
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum ExperimentsCommand {
    /// Show an experiment as JSON, or the manifest that it is underneath
    #[command(
        after_help = "Example:\n  forge experiments show 3f2a --toml > pipelines/qa-cot.toml"
    )]
    Show {
        /// The experiment
        id: String,
        /// Print its manifest, which `forge apply` runs
        #[arg(long)]
        toml: bool,
    },
}

impl Experiments {
    pub(super) fn run(self) -> Result<(), Failure> {
        let store = match &self.store {
            Some(store) => store.clone(),
            None => root_here()?.join(".forge"),
        };
        let path = store.join(DATABASE);
        if !path.exists() {
            return Err(usage(format!(
                "there are no experiments in `{store}`; `forge serve` makes some, and `--store DIR` names another store"
            )));
        }
        let failed = |error: String| Failure::Message(error, FAILED);
        let db = Db::open(&path).map_err(failed)?;
        let unread = |error: rusqlite::Error| failed(format!("cannot read `{path}`: {error}"));
        let filter = Filter { limit: u64::MAX, ..Filter::default() };
        let (_, all) = db.list(&filter).map_err(unread)?;
        match &self.command {
            None if self.json => all.iter().for_each(|one| print(&json!(one).to_string())),
            None => lines(&all).iter().for_each(|line| print(line)),
            Some(ExperimentsCommand::Show { id, toml }) => {
                let one = named(&all, id)?;
                if !toml {
                    let text = serde_json::to_string_pretty(one);
                    print(&text.expect("BUG: an experiment is plain data"));
                    return Ok(());
                }
                let uuid = Uuid::parse_str(&one.id).map_err(|error| failed(error.to_string()))?;
                let text = db.manifest(uuid).map_err(unread)?.unwrap_or_default();
                print(text.trim_end());
            }
        }
        Ok(())
    }
}

/// The experiment that is meant: by its id, the beginning of one, or a name.
fn named<'a>(all: &'a [Experiment], name: &str) -> Result<&'a Experiment, Failure> {
    let short = name.to_ascii_lowercase();
    let of_id = |one: &&Experiment| !short.is_empty() && one.id.starts_with(&short);
    let mut found: Vec<&Experiment> = all.iter().filter(of_id).collect();
    if found.is_empty() {
        found = all.iter().filter(|one| one.name == name).collect();
    }
    let listed = |some: &[&Experiment]| {
        let ids = some
            .iter()
            .take(NAMED_MAX)
            .map(|one| visible_line(&format!("{} ({})", one.id, one.name)));
        let ids: Vec<String> = ids.collect();
        if some.len() > NAMED_MAX { format!("{}, …", ids.join(", ")) } else { ids.join(", ") }
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let known = match all {
                [] => "there is none".to_owned(),
                all => format!("known: {}", listed(&all.iter().collect::<Vec<_>>())),
            };
            Err(usage(format!("`{}` is no experiment ({known})", visible_line(name))))
        }
        many => Err(usage(format!(
            "{} experiments are called `{}`: {}",
            many.len(),
            visible_line(name),
            listed(many)
        ))),
    }
}

fn lines(all: &[Experiment]) -> Vec<String> {
    let head = ["id", "status", "method", "model", "data set", "samples", "created", "name"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|one| {
        let config = &one.config;
        let created = one.created_at.get(..19).unwrap_or(&one.created_at).replace('T', " ");
        let asked_for = config.num_samples;
        let samples = match one.samples.filter(|samples| *samples < asked_for.into()) {
            Some(samples) => format!("{samples} of {asked_for}"),
            None => asked_for.to_string(),
        };
        let row = [
            one.id.get(..8).unwrap_or(&one.id).to_owned(),
            one.status.name().to_owned(),
            config.reasoning_method.name().to_owned(),
            config.model_name.clone(),
            config.dataset_name.clone(),
            samples,
            created,
            one.name.clone(),
        ];
        row.map(|text| visible_line(&text)).to_vec()
    }));
    columns(&rows)
}
