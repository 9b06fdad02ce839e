//! Runs by name, and what they left: their records, their events, their samples. Knows nothing of how they
//! were run or are shown.
//!
//! # Names
//!
//! [`find`] takes what people write for a run: its ULID, a beginning or an end of it that no other run has, a tag,
//! `last`, or `last~2` for the second before the last. A tag is a label that any number of runs may carry; as a
//! name it means the newest of them. Tags begin with a letter and ULIDs with a digit, so that neither hides the
//! other.
//!
//! # Reading
//!
//! [`Run::record`] is cheap: of a run that is over it is `run.json`. [`Tables::of`] names the tables of a workflow as
//! this run saw them, also where a later `--force` has put others under the same key; [`rows`] reads one. A stage
//! that a lock file names is read with [`Tables::by_key`].
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use llmforge::{history, sample::Sample, store::Store};
//! let store = Store::open(".forge".into())?;
//! let run = history::find(&store, "last")?;
//! for stage in run.record.workflows() {
//!     let tables = history::Tables::of(&store, stage)?;
//!     let samples: Vec<Sample> = history::rows(&store, tables.samples)?;
//!     assert_eq!(samples.len() as u64, stage.samples());
//! }
//! # Ok(()) }
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Key};
use crate::record::{Event, Observed, RECORD_VERSION, RunRecord, RunStatus, StageRun};
use crate::report::{CellInfo, Row};
use crate::sample::Sample;
use crate::store::{Store, StoreError};

/// The name of the newest run.
pub const LAST: &str = "last";
/// Runs that are named in a message.
const NAMED_MAX: usize = 5;
/// Shortest beginning of a ULID that is shown.
const SHORT_MIN: usize = 8;
/// Bytes of a log in which its run has begun, if ever.
const HEAD: u64 = 64 * 1024;
/// Longest tag.
const TAG_MAX: usize = 64;

/// Why a run, or part of it, cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// No run has that name. The user can fix it.
    #[error("`{name}` is no run of this store{}", suggested(.known))]
    Unknown {
        /// As written.
        name: String,
        /// Names that would have meant something.
        known: Vec<String>,
    },
    /// Several runs have it. The user can fix it.
    #[error("{} runs are called `{name}`: {}", .runs.len(), listed(.runs))]
    Ambiguous {
        /// As written.
        name: String,
        /// Their ULIDs, newest first.
        runs: Vec<String>,
    },
    /// A newer program wrote it. The user can fix it.
    #[error(
        "run `{run}` was written by a newer forge (its record has version {version}; this one knows {RECORD_VERSION})"
    )]
    Newer {
        /// Its ULID.
        run: String,
        /// Version of its record.
        version: u32,
    },
    /// The stage has no table of samples: it is no workflow, or has not ended.
    #[error("`{stage}` has no samples in this run")]
    NoSamples {
        /// Its name.
        stage: String,
    },
    /// The local store has it no more. A shared store or another run may bring it back.
    #[error("{what} is gone from the store; `forge store pull` or another run may bring it back")]
    Gone {
        /// What.
        what: String,
    },
    /// It is there and cannot be read.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HistoryError {
    /// Whether another name or another program would help: exit code 2.
    pub fn is_users(&self) -> bool {
        matches!(
            self,
            HistoryError::Unknown { .. }
                | HistoryError::Ambiguous { .. }
                | HistoryError::Newer { .. }
                | HistoryError::NoSamples { .. }
        )
    }
}

fn suggested(names: &[String]) -> String {
    match names {
        [] => "; it has none yet".to_owned(),
        names => format!(" (known: {})", listed(names)),
    }
}

fn listed(names: &[String]) -> String {
    let mut text = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > NAMED_MAX {
        text.push_str(", …");
    }
    text
}

/// A run of the store.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// What it came to, or came to so far.
    #[serde(flatten)]
    pub record: RunRecord,
    /// Its tags, sorted.
    pub tags: Vec<String>,
    /// Whether a pin keeps it.
    pub pinned: bool,
}

impl Run {
    /// Its ULID.
    pub fn id(&self) -> &str {
        &self.record.run_id
    }

    /// Whether its process lives.
    pub fn is_running(&self) -> bool {
        self.record.status == RunStatus::Running
    }
}

/// The runs of a store that began between two times (milliseconds since 1970, both included), newest first, each
/// read when it is asked for. One that cannot be read is an error in its place; one that never began is left out.
pub fn runs(
    store: &Store,
    since: u64,
    until: u64,
) -> Result<impl Iterator<Item = Result<Run, HistoryError>>, StoreError> {
    let pinned: BTreeSet<String> = store.pinned_runs()?.into_iter().collect();
    let ids = store.runs().into_iter().rev();
    // Its name says when a run began.
    let within = move |id: &String| {
        let began = ulid::Ulid::from_string(id).map_or(0, |ulid| ulid.timestamp_ms());
        (since..=until).contains(&began)
    };
    Ok(ids.filter(within).filter_map(move |id| load(store, &id, &pinned).transpose()))
}

/// The run of a name: see the top of this module.
pub fn find(store: &Store, name: &str) -> Result<Run, HistoryError> {
    let id = find_id(store, name)?;
    let pinned = store.pinned_runs()?.into_iter().collect();
    let unknown = || HistoryError::Unknown { name: name.to_owned(), known: Vec::new() };
    load(store, &id, &pinned)?.ok_or_else(unknown)
}

/// The run of a whole ULID, whatever else the store has; `None` of one that is not there or never began.
pub fn by_id(store: &Store, id: &str) -> Result<Option<Run>, HistoryError> {
    let pinned = store.pinned_runs()?.into_iter().collect();
    load(store, id, &pinned)
}

/// The ULID of the run of a name.
pub fn find_id(store: &Store, name: &str) -> Result<String, HistoryError> {
    let ids: Vec<String> = store.runs().into_iter().rev().collect();
    let unknown = || {
        let mut known: Vec<String> = ids.iter().take(NAMED_MAX - 2).cloned().collect();
        if !known.is_empty() {
            known.insert(0, LAST.to_owned());
        }
        HistoryError::Unknown { name: name.to_owned(), known }
    };
    if let Some(back) = steps_back(name) {
        let mut began = ids.iter().filter(|id| has_begun(store, id));
        return began.nth(back).cloned().ok_or_else(unknown);
    }
    if is_tag(name)
        && let Some(tagged) = newest_with(store, &ids, name)
    {
        return Ok(tagged);
    }
    let wanted = name.to_ascii_uppercase();
    let among = |is_it: &dyn Fn(&str) -> bool| -> Vec<String> {
        let found = ids.iter().filter(|id| !wanted.is_empty() && is_it(id));
        found.cloned().collect()
    };
    let mut found = among(&|id| id.starts_with(&wanted));
    if found.is_empty() {
        found = among(&|id| id.ends_with(&wanted));
    }
    match found.as_slice() {
        [] => Err(unknown()),
        [id] => Ok(id.clone()),
        _ => Err(HistoryError::Ambiguous { name: name.to_owned(), runs: found }),
    }
}

/// `last` is 0, `last~2` is 2.
fn steps_back(name: &str) -> Option<usize> {
    match name.strip_prefix(LAST)? {
        "" => Some(0),
        back => back.strip_prefix('~')?.parse().ok(),
    }
}

fn newest_with(store: &Store, ids: &[String], tag: &str) -> Option<String> {
    ids.iter().find(|id| store.run_files(id).tags().iter().any(|own| own == tag)).cloned()
}

/// A run can end before it begins, as with wrong credentials. What is said before stands at the head of its log.
fn has_begun(store: &Store, id: &str) -> bool {
    let files = store.run_files(id);
    let mut head = Vec::new();
    let read = File::open(files.log()).and_then(|log| log.take(HEAD).read_to_end(&mut head));
    let says_so = || memchr::memmem::find(&head, b"\"event\":\"run_started\"").is_some();
    (read.is_ok() && says_so()) || files.record().is_ok_and(|record| record.is_some())
}

/// Whether a text may be a tag: letters, digits, `-`, `_`, `.`, beginning with a letter, and not `last`.
pub fn is_tag(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic());
    begins && name != LAST && name.len() <= TAG_MAX && name.chars().all(plain)
}

/// The shortest beginning of each ULID by which it can be told from all others, but at least eight characters.
/// `ids` are sorted, in whichever direction.
pub fn short_names(ids: &[String]) -> Vec<&str> {
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let short = |i: usize| {
        let id = ids[i].as_str();
        let before = i.checked_sub(1).map_or(0, |before| common(&ids[before], id));
        let after = ids.get(i + 1).map_or(0, |after| common(after, id));
        &id[..(before.max(after) + 1).max(SHORT_MIN).min(id.len())]
    };
    (0..ids.len()).map(short).collect()
}

fn load(store: &Store, id: &str, pinned: &BTreeSet<String>) -> Result<Option<Run>, HistoryError> {
    let files = store.run_files(id);
    let kept = |text: Option<Vec<u8>>| text.map(|text| read_record(id, &text)).transpose();
    let record = match kept(files.record()?)? {
        Some(record) => record,
        None => {
            // Asked first: a run that ends between the two has its end in the log.
            let living = files.is_living();
            let Some((mut record, last_unix_ms)) = fold(store, id)? else { return Ok(None) };
            if record.status == RunStatus::Running && !living {
                record.status = RunStatus::Interrupted;
                record.wall_ms =
                    last_unix_ms.map(|last| last.saturating_sub(record.started_unix_ms) as f64);
                // Nobody writes to this log any more: the next reader is spared it. Where it cannot be kept, the
                // log is still there.
                let _ = files.keep_record(&record);
            }
            record
        }
    };
    let (tags, pinned) = (files.tags(), pinned.contains(id));
    Ok(Some(Run { record, tags, pinned }))
}

/// Any version up to ours: what is newer in a record has defaults.
fn read_record(id: &str, text: &[u8]) -> Result<RunRecord, HistoryError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let what = || format!("the record of run `{id}`");
    let damaged =
        |error: serde_json::Error| HistoryError::Damaged { what: what(), why: error.to_string() };
    match serde_json::from_slice::<RunRecord>(text) {
        Ok(record) if record.version <= RECORD_VERSION => Ok(record),
        Ok(record) => Err(HistoryError::Newer { run: id.to_owned(), version: record.version }),
        Err(error) => match serde_json::from_slice::<Versioned>(text) {
            Ok(Versioned { version }) if version > RECORD_VERSION => {
                Err(HistoryError::Newer { run: id.to_owned(), version })
            }
            _ => Err(damaged(error)),
        },
    }
}

/// Folds a log, and gives the time of its last event; `None` of a run that never began.
fn fold(store: &Store, id: &str) -> Result<Option<(RunRecord, Option<u64>)>, HistoryError> {
    let mut record = RunRecord::default();
    let mut last_unix_ms = None;
    let mut events = Events::open(store, id);
    while let Some(line) = events.next_line()? {
        if let Ok(event) = serde_json::from_slice::<Event>(line) {
            record.apply(&event);
            last_unix_ms = time_of(line).or(last_unix_ms);
        }
        if record.version > RECORD_VERSION {
            return Err(HistoryError::Newer { run: id.to_owned(), version: record.version });
        }
    }
    Ok((!record.run_id.is_empty()).then_some((record, last_unix_ms)))
}

/// When the event of a line happened, in milliseconds since 1970: the last field of its object. Absent in logs of
/// version 1.
pub fn time_of(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line.trim_ascii_end()).ok()?;
    line.rsplit_once(",\"unix_ms\":")?.1.strip_suffix('}')?.parse().ok()
}

/// The events of a run, also of one that is being written: what follows the end so far can be read later.
pub struct Events {
    path: camino::Utf8PathBuf,
    file: Option<BufReader<File>>,
    line: Vec<u8>,
    /// Whether `line` was given out.
    given: bool,
}

impl Events {
    /// The log of a run.
    pub fn open(store: &Store, id: &str) -> Events {
        let path = store.run_files(id).log();
        Events { path, file: None, line: Vec::new(), given: true }
    }

    /// The next whole line, without its end; `None` where there is none yet. A torn line at the end is whole once
    /// its writer has gone on.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, StoreError> {
        if self.given {
            self.line.clear();
            self.given = false;
        }
        let fail = || crate::store::at("read", &self.path);
        let file = match &mut self.file {
            Some(file) => file,
            empty => match File::open(&self.path) {
                Ok(file) => empty.insert(BufReader::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(fail()(error)),
            },
        };
        file.read_until(b'\n', &mut self.line).map_err(fail())?;
        self.given = self.line.last() == Some(&b'\n');
        Ok(self.given.then(|| self.line.trim_ascii_end()))
    }
}

/// The tables of a workflow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tables {
    /// JSON lines of [`Sample`]: equal for equal runs.
    pub samples: Digest,
    /// JSON lines of [`Observed`], one for each sample; `None` where it is not known any more which they were.
    pub observed: Option<Digest>,
    /// [`CellInfo`] as JSON: effective settings, engine, profile; `None` as above.
    pub info: Option<Digest>,
}

impl Tables {
    /// The tables of a stage of a run, as that run saw them.
    pub fn of(store: &Store, stage: &StageRun) -> Result<Tables, HistoryError> {
        let none = || HistoryError::NoSamples { stage: stage.name.clone() };
        let samples = stage.result.filter(|_| stage.kind == "workflow").ok_or_else(none)?;
        if stage.observed.is_some() {
            return Ok(Tables { samples, observed: stage.observed, info: stage.info });
        }
        // Runs of version 1 have not written down what they observed.
        let unknown = Tables { samples, observed: None, info: None };
        let Some(key) = stage.key else { return Ok(unknown) };
        match Tables::by_key(store, &stage.name, key) {
            Ok(tables) if tables.samples == samples => Ok(tables),
            _ => Ok(unknown),
        }
    }

    /// The tables that count for a key now, such as one of a lock file. Compare `samples` with the `result` of the
    /// lock: a later `--force` may have replaced it.
    pub fn by_key(store: &Store, stage: &str, key: Key) -> Result<Tables, HistoryError> {
        let what = || format!("the result of `{stage}` (key {})", key.short());
        let record = store.get(key).ok_or_else(|| HistoryError::Gone { what: what() })?;
        let none = || HistoryError::NoSamples { stage: stage.to_owned() };
        let samples = record.blob("samples").ok_or_else(none)?;
        Ok(Tables { samples, observed: record.blob("observed"), info: record.blob("info") })
    }

    /// Samples with what was observed of them. Reads the whole of both tables.
    pub fn rows(&self, store: &Store) -> Result<Vec<Row>, HistoryError> {
        let samples: Vec<Sample> = rows(store, self.samples)?;
        let gone = || HistoryError::Gone { what: "what was observed of a workflow".to_owned() };
        let observed: Vec<Observed> = rows(store, self.observed.ok_or_else(gone)?)?;
        let both = samples.into_iter().zip(observed);
        Ok(both.map(|(sample, observed)| Row::new(sample, observed)).collect())
    }

    /// Settings, engine and profile.
    pub fn info(&self, store: &Store) -> Result<CellInfo, HistoryError> {
        let what = || "the settings of a workflow".to_owned();
        let gone = || HistoryError::Gone { what: what() };
        let bytes = store.blob(self.info.ok_or_else(gone)?).ok_or_else(gone)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| HistoryError::Damaged { what: what(), why: error.to_string() })
    }
}

/// The bytes of a table: rows of JSON lines.
pub struct Table(Vec<u8>);

impl Table {
    /// Reads a table.
    pub fn read(store: &Store, table: Digest) -> Result<Table, HistoryError> {
        let gone = || HistoryError::Gone { what: "a table of samples".to_owned() };
        Ok(Table(store.blob(table).ok_or_else(gone)?))
    }

    /// Its rows as they stand.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|c| *c == b'\n').filter(|line| !line.is_empty())
    }

    /// A row of it. `T` may be a part of what a row holds: what it leaves out is skipped.
    pub fn row<T: DeserializeOwned>(line: &[u8]) -> Result<T, HistoryError> {
        let damaged = |error: serde_json::Error| HistoryError::Damaged {
            what: "a table of samples".to_owned(),
            why: error.to_string(),
        };
        serde_json::from_slice(line).map_err(damaged)
    }
}

/// The rows of a table one after another, with one of them in memory. Its bytes are held against its name before
/// the first one is given.
pub fn each_row<T: DeserializeOwned>(
    store: &Store,
    table: Digest,
) -> Result<impl Iterator<Item = Result<T, HistoryError>> + use<T>, HistoryError> {
    let gone = || HistoryError::Gone { what: "a table of samples".to_owned() };
    if !store.is_whole(table) {
        return Err(gone());
    }
    let path = store.blob_path(table);
    let mut file = BufReader::new(File::open(&path).map_err(crate::store::at("read", &path))?);
    let mut line = Vec::new();
    let mut next = move || -> Result<Option<T>, HistoryError> {
        loop {
            line.clear();
            let read =
                file.read_until(b'\n', &mut line).map_err(crate::store::at("read", &path))?;
            match line.trim_ascii_end() {
                _ if read == 0 => return Ok(None),
                [] => {}
                row => return Table::row(row).map(Some),
            }
        }
    };
    Ok(std::iter::from_fn(move || next().transpose()))
}

/// All rows of a table. `T` may be a part of what a row holds: what it leaves out is skipped.
pub fn rows<T: DeserializeOwned>(store: &Store, table: Digest) -> Result<Vec<T>, HistoryError> {
    Table::read(store, table)?.lines().map(Table::row).collect()
}
