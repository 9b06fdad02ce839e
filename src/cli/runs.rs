//! `forge runs`: the runs of a store, their tags and pins.

use std::collections::HashMap;

use camino::Utf8PathBuf;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::project::{self, usage};
use super::terminal::{columns, duration, moment, visible_json, visible_line};
use super::{FAILED, Failure, print, say};
use crate::history::{self, Run};
use crate::record::{RunStatus, StageRun};
use crate::store::Store;

/// Workflows whose accuracy stands in a line.
const WORKFLOWS_MAX: usize = 4;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Where the store of a command without a manifest is.
#[derive(Args)]
pub(super) struct StorePlace {
    /// Folder of the store [default: the manifest's, else .forge in the project]
    #[arg(long, env = "FORGE_STORE", value_name = "DIR", global = true)]
    store: Option<Utf8PathBuf>,
    /// A manifest whose `[store]` says where the store is
    #[arg(long, value_name = "MANIFEST", global = true)]
    manifest: Option<Utf8PathBuf>,
}

impl StorePlace {
    /// Opens a store that is there.
    pub(super) fn open(&self) -> Result<Store, Failure> {
        let named = match &self.manifest {
            None => project::StoreSettings {
                root: project::root_here()?,
                ..project::StoreSettings::default()
            },
            Some(manifest) => project::store_settings(manifest)?,
        };
        let folder = self.store.clone().or(named.store);
        let folder = folder.unwrap_or_else(|| named.root.join(".forge"));
        if !folder.join("store.toml").exists() {
            return Err(usage(format!(
                "there is no store in `{folder}`; `--store DIR` names another, and `forge apply` makes one"
            )));
        }
        Ok(Store::open(&folder)?)
    }
}

#[derive(Args)]
pub(super) struct Runs {
    #[command(subcommand)]
    command: Option<RunsCommand>,
    #[command(flatten)]
    place: StorePlace,
    #[command(flatten)]
    filters: Filters,
    /// Print JSON Lines: one object for each run, newest first
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum RunsCommand {
    /// Give a run tags, by which it is found; several runs may carry the same one, and as a name it means
    /// the newest of them
    #[command(after_help = "Example:\n  forge runs tag last baseline")]
    Tag {
        /// The run
        run: String,
        /// Letters, digits, `-`, `_` and `.`, beginning with a letter
        #[arg(required = true, value_parser = tag_name)]
        name: Vec<String>,
    },
    /// Take tags of a run away
    #[command(after_help = "Example:\n  forge runs untag last baseline")]
    Untag {
        /// The run
        run: String,
        /// Its tags
        #[arg(required = true)]
        name: Vec<String>,
    },
    /// Keep runs, and everything that they name, from `forge store gc`
    #[command(after_help = "Example:\n  forge runs pin baseline")]
    Pin {
        /// The runs
        #[arg(required = true)]
        run: Vec<String>,
    },
    /// Let `forge store gc` take runs again
    #[command(after_help = "Example:\n  forge runs unpin baseline")]
    Unpin {
        /// The runs
        #[arg(required = true)]
        run: Vec<String>,
    },
}

#[derive(Args, Default, PartialEq)]
struct Filters {
    /// Only runs of this pipeline
    #[arg(long, value_name = "NAME")]
    pipeline: Vec<String>,
    /// Only runs that stand like this
    #[arg(long, value_parser = PossibleValuesParser::new(RunStatus::ALL.map(RunStatus::name)).map(status))]
    status: Vec<RunStatus>,
    /// Only runs that began at this time (UTC) or later: 2026-11-22, 2026-11-22T08:30:00Z, or 7d for seven
    /// days ago
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<u64>,
    /// Only runs that began until then; of a day, until its end
    #[arg(long, value_name = "TIME", value_parser = until)]
    until: Option<u64>,
    /// Only runs with this tag
    #[arg(long, value_name = "NAME")]
    tag: Vec<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[expect(clippy::needless_pass_by_value, reason = "clap gives it away")]
fn status(name: String) -> RunStatus {
    let found = RunStatus::ALL.into_iter().find(|status| status.name() == name);
    found.expect("BUG: clap lets only names of statuses through")
}

fn since(text: &str) -> Result<u64, String> {
    time(text, 0)
}

fn until(text: &str) -> Result<u64, String> {
    time(text, DAY_MS - 1)
}

/// Milliseconds since 1970; a day means `of_day` after its beginning.
fn time(text: &str, of_day: u64) -> Result<u64, String> {
    let unix_ms = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    };
    if let Ok(time) = humantime::parse_rfc3339_weak(&format!("{text}T00:00:00Z")) {
        return Ok(unix_ms(time) + of_day);
    }
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(unix_ms(time));
    }
    match humantime::parse_duration(text) {
        Ok(ago) => {
            let now = std::time::SystemTime::now();
            Ok(unix_ms(now.checked_sub(ago).unwrap_or(std::time::UNIX_EPOCH)))
        }
        Err(_) => Err("write a day (2026-11-22), a time (2026-11-22T08:30:00Z), or how long ago \
                       (12h, 7d)"
            .to_owned()),
    }
}

/// The name of a tag on the command line.
pub(super) fn tag_name(text: &str) -> Result<String, String> {
    if history::is_tag(text) {
        return Ok(text.to_owned());
    }
    Err("a tag is made of letters, digits, `-`, `_` and `.`, begins with a letter, is no longer than 64, and is \
         not `last`"
        .to_owned())
}

impl Filters {
    /// Runs that it lets through, newest first. `warn` hears of those that cannot be read.
    fn runs(&self, store: &Store, warn: impl Fn(String)) -> Result<Vec<Run>, Failure> {
        let mut found = Vec::new();
        let limit = self.limit.unwrap_or(usize::MAX);
        let mut runs =
            history::runs(store, self.since.unwrap_or(0), self.until.unwrap_or(u64::MAX))?;
        while found.len() < limit
            && let Some(run) = runs.next()
        {
            match run {
                Ok(run) if self.lets_through(&run) => found.push(run),
                Ok(_) => {}
                Err(error) => warn(error.to_string()),
            }
        }
        Ok(found)
    }

    fn lets_through(&self, run: &Run) -> bool {
        let any = |wanted: &[String], is: &dyn Fn(&String) -> bool| {
            wanted.is_empty() || wanted.iter().any(is)
        };
        any(&self.pipeline, &|name| *name == run.record.pipeline)
            && (self.status.is_empty() || self.status.contains(&run.record.status))
            && any(&self.tag, &|name| run.tags.contains(name))
    }
}

impl Runs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Some(command) = &self.command else { return self.list() };
        if self.filters != Filters::default() || self.json {
            return Err(usage("options that choose runs are for the list of runs"));
        }
        let store = self.place.open()?;
        match command {
            RunsCommand::Tag { run, name } => {
                let files = store.run_files(&history::find_id(&store, run)?);
                for name in name {
                    files.tag(name)?;
                }
            }
            RunsCommand::Untag { run, name } => {
                let id = history::find_id(&store, run)?;
                let files = store.run_files(&id);
                for name in name {
                    // What is no tag must not become the path of a file.
                    if !history::is_tag(name) || !files.untag(name)? {
                        let tags = files.tags();
                        let known = match tags.is_empty() {
                            true => "it has none".to_owned(),
                            false => format!("its tags: {}", tags.join(", ")),
                        };
                        return Err(usage(format!("run `{id}` has no tag `{name}` ({known})")));
                    }
                }
            }
            RunsCommand::Pin { run } => {
                for run in run {
                    store.pin_run(&history::find_id(&store, run)?)?;
                }
            }
            RunsCommand::Unpin { run } => {
                for run in run {
                    let id = history::find_id(&store, run)?;
                    if !store.unpin_run(&id)? {
                        return Err(usage(format!("run `{id}` is not pinned")));
                    }
                }
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<(), Failure> {
        let store = self.place.open()?;
        let unreadable = std::cell::Cell::new(false);
        let runs = self.filters.runs(&store, |error| {
            unreadable.set(true);
            say(&format!("warning: {error}"));
        })?;
        if self.json {
            for run in &runs {
                print(&visible_json(&to_json(run).to_string()));
            }
        } else if runs.is_empty() {
            say(match self.filters == Filters::default() {
                true => "there are no runs in this store yet",
                false => "there is no such run in this store",
            });
        } else {
            table(&store, &runs).iter().for_each(|line| print(line));
        }
        if unreadable.get() { Err(Failure::Said(FAILED)) } else { Ok(()) }
    }
}

/// A run for scripts: its record, with what would otherwise have to be worked out from it.
pub(super) fn to_json(run: &Run) -> Value {
    let mut value = serde_json::to_value(run).expect("BUG: a record is plain data");
    value["started_at"] = json!(moment(run.record.started_unix_ms));
    value["samples"] = json!(run.record.samples());
    value["cost"] = json!(run.record.cost());
    value
}

fn table(store: &Store, runs: &[Run]) -> Vec<String> {
    // What is short enough among those shown need not be among all.
    let all: Vec<String> = store.runs().into_iter().rev().collect();
    let short: HashMap<&String, &str> = all.iter().zip(history::short_names(&all)).collect();
    let head = [
        "RUN",
        "PIPELINE",
        "STATUS",
        "STARTED (UTC)",
        "TIME",
        "SAMPLES",
        "LIVE",
        "STORE",
        "COST",
        "ACCURACY",
        "TAGS",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for run in runs {
        let record = &run.record;
        let name = short.get(&record.run_id).copied().unwrap_or(run.id());
        let mut tags = run.tags.clone();
        if run.pinned {
            tags.push("(pinned)".to_owned());
        }
        rows.push(vec![
            name.to_owned(),
            visible_line(&record.pipeline),
            record.status.name().to_owned(),
            moment(record.started_unix_ms).replace('T', " ").trim_end_matches('Z').to_owned(),
            taken(run).map_or_else(|| "–".to_owned(), duration),
            samples(run),
            record.requests.live.to_string(),
            record.requests.hits().to_string(),
            record.cost_text().unwrap_or_else(|| "–".to_owned()),
            accuracies(&record.workflows().collect::<Vec<_>>()),
            tags.join(" "),
        ]);
    }
    columns(&rows)
}

/// How long a run took, or takes so far.
pub(super) fn taken(run: &Run) -> Option<f64> {
    let so_far = || crate::engine::unix_ms().saturating_sub(run.record.started_unix_ms) as f64;
    run.record.wall_ms.or_else(|| run.is_running().then(so_far))
}

/// Samples; of a run that has not ended them all, out of how many.
fn samples(run: &Run) -> String {
    let done = run.record.samples();
    let selected: Option<u64> = run
        .record
        .workflows()
        .map(|stage| match &stage.summary {
            Some(summary) => Some(summary.samples),
            None => stage.selected,
        })
        .sum();
    match selected {
        Some(selected) if selected > done => format!("{done}/{selected}"),
        _ => done.to_string(),
    }
}

/// Accuracy of each workflow; cells of one matrix by their values alone.
fn accuracies(workflows: &[&StageRun]) -> String {
    let accuracy = |stage: &StageRun| {
        stage.metric("accuracy").map_or_else(|| "–".to_owned(), |a| format!("{:.1} %", a * 100.0))
    };
    let family = |stage: &StageRun| stage.name.split('[').next().unwrap_or("").to_owned();
    let one_family = workflows.windows(2).all(|pair| family(pair[0]) == family(pair[1]));
    let label = |stage: &StageRun| match stage.name.split_once('[') {
        Some((_, values)) if one_family => {
            let values = values.trim_end_matches(']');
            // With one axis, its name says nothing.
            let value = values.split_once('=').filter(|_| !values.contains(','));
            visible_line(value.map_or(values, |(_, value)| value))
        }
        _ => visible_line(&stage.name),
    };
    if let [stage] = workflows {
        return accuracy(stage);
    }
    let shown = workflows.iter().take(WORKFLOWS_MAX);
    let mut list: Vec<String> =
        shown.map(|stage| format!("{} {}", label(stage), accuracy(stage))).collect();
    if workflows.len() > WORKFLOWS_MAX {
        list.push(format!("{} more", workflows.len() - WORKFLOWS_MAX));
    }
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_and_ends_with_itself() {
        assert_eq!(since("1970-01-02"), Ok(DAY_MS));
        assert_eq!(until("1970-01-02"), Ok(2 * DAY_MS - 1));
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(1000));
        assert!(since("yesterday").is_err());
        assert!(since("1d").unwrap() < since("1h").unwrap());
    }

    #[test]
    fn cells_of_one_matrix_are_told_by_their_values() {
        let stage = |name: &str| StageRun::new(name, "workflow");
        let (a, b, c) = (stage("ask[method=cot]"), stage("ask[method=naive]"), stage("other"));
        assert_eq!(accuracies(&[&a, &b]), "cot –, naive –");
        assert_eq!(accuracies(&[&a, &c]), "ask[method=cot] –, other –");
        assert_eq!(accuracies(&[&c]), "–");
        assert_eq!(accuracies(&[&a, &b, &a, &b, &a]), "cot –, naive –, cot –, naive –, 1 more");
    }
}
