//! `forge store`: looks after the store. Knows nothing of pipelines but where their lock files are.

use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use camino::{Utf8Path, Utf8PathBuf};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::project::{self, StoreSettings, usage};
use super::{FAILED, Failure, RemoteArgs, locks, print, say};
use crate::history::{self, HistoryError};
use crate::store::{
    Access, Amount, GcOptions, GcReport, Patience, Remote, Store, Transferred, Verified,
};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
    /// Folder of the store [default: the manifest's, else .forge in the project]
    #[arg(long, env = "FORGE_STORE", value_name = "DIR", global = true)]
    store: Option<Utf8PathBuf>,
    /// A manifest whose `[store]` says where the store and the shared one are
    #[arg(long, value_name = "MANIFEST", global = true)]
    manifest: Option<Utf8PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Count records, files and bytes
    #[command(after_help = "Example:\n  forge store stat")]
    Stat,
    /// Say what the bytes are for: by kind of result and by run
    #[command(after_help = "Example:\n  forge store du")]
    Du,
    /// Read everything and say what is damaged; ends with 1 if anything is
    #[command(after_help = "Example:\n  forge store verify --repair")]
    Verify {
        /// Rewrite what is damaged without its damage, so that it is worked out again at need
        #[arg(long)]
        repair: bool,
    },
    /// Remove what nothing needs: no lock file in the work tree or in any git ref, no pin, no recent
    /// run, no living process
    #[command(
        after_help = "Examples:\n  forge store gc --dry-run\n  forge store gc --keep-runs 3 --max-age 2d --max-size 10GB"
    )]
    Gc(Gc),
    /// Keep a run, or what a lock file names, from being removed
    #[command(
        after_help = "Examples:\n  forge store pin 01KAMZ3J7Q0W5T8V9X2C4B6N8M\n  forge store pin pipelines/bench.lock --name baseline\n  \
                      forge store pin --remove baseline\n  forge store pin"
    )]
    Pin {
        /// A run (a part of its ULID, a tag, `last`), or the path of a lock file; without it, pins are listed
        what: Option<String>,
        /// Name of the pin [default: the run, or the name of the file]
        #[arg(long)]
        name: Option<String>,
        /// Take the pin of this name away
        #[arg(long, value_name = "NAME", conflicts_with_all = ["what", "name"])]
        remove: Option<String>,
    },
    /// Remove everything but what pins and living processes need
    #[command(after_help = "Example:\n  forge store clear --yes")]
    Clear {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Write results into one file (tar), to be taken in elsewhere
    #[command(
        after_help = "Examples:\n  forge store export results.tar\n  forge store export bench.tar --of pipelines/bench.lock"
    )]
    Export {
        /// The file; `-` is stdout
        file: Utf8PathBuf,
        /// Only what this lock file or run needs
        #[arg(long, value_name = "LOCK|RUN")]
        of: Option<String>,
    },
    /// Take in a file that `export` wrote; nothing in it is trusted without proof
    #[command(after_help = "Example:\n  forge store import results.tar")]
    Import {
        /// The file; `-` is stdin
        file: Utf8PathBuf,
    },
    /// Send results to a shared store
    #[command(
        after_help = "Examples:\n  forge store push --remote s3://team/forge\n  forge store push --remote s3://team/forge --of pipelines/bench.lock"
    )]
    Push {
        #[command(flatten)]
        remote: RemoteArgs,
        /// Only what this lock file or run needs
        #[arg(long, value_name = "LOCK|RUN")]
        of: Option<String>,
        /// Let ours count where the shared store has a result already
        #[arg(long)]
        replace: bool,
    },
    /// Fetch everything from a shared store
    #[command(after_help = "Example:\n  forge store pull --remote s3://team/forge")]
    Pull {
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Take in everything of another store; where both have a result, ours stays
    #[command(after_help = "Example:\n  forge store merge /mnt/shared/old-store")]
    Merge {
        /// Folder of the other store
        other: Utf8PathBuf,
    },
}

#[derive(Args)]
struct Gc {
    /// Keep the results of the last N runs
    #[arg(long, value_name = "N", default_value_t = 10)]
    keep_runs: usize,
    /// Keep whatever is younger, such as 12h or 30d
    #[arg(long, value_name = "TIME", default_value = "14d", value_parser = humantime::parse_duration)]
    max_age: Duration,
    /// Keep at most so many bytes, such as 10GB: the oldest results go first
    #[arg(long, value_name = "SIZE")]
    max_size: Option<ByteSize>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

impl StoreArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let settings = match &self.manifest {
            None => StoreSettings { root: project::root_here()?, ..StoreSettings::default() },
            Some(manifest) => project::store_settings(manifest)?,
        };
        let root = settings.root.clone();
        let folder = self.store.clone().or(settings.store.clone());
        let folder = folder.unwrap_or_else(|| root.join(".forge"));
        if !folder.join("store.toml").exists()
            && !matches!(self.command, StoreCommand::Import { .. } | StoreCommand::Pull { .. })
        {
            return Err(usage(format!(
                "there is no store in `{folder}`; `--store DIR` names another, and `forge apply` makes one"
            )));
        }
        let store = Store::open(&folder)?;
        match &self.command {
            StoreCommand::Stat => self.stat(&store),
            StoreCommand::Du => self.du(&store),
            StoreCommand::Verify { repair } => self.verify(&store, *repair),
            StoreCommand::Gc(gc) => {
                let options = GcOptions {
                    keep_runs: gc.keep_runs,
                    max_age: gc.max_age,
                    max_size: gc.max_size.map(|size| size.as_u64()),
                    clear: false,
                    dry_run: gc.dry_run,
                };
                self.collected(&store.collect(&options, &locks::texts(&root)?)?);
                Ok(())
            }
            StoreCommand::Pin { what, name, remove } => {
                self.pin(&store, what.as_deref(), name.as_deref(), remove.as_deref())
            }
            StoreCommand::Clear { yes } => self.clear(&store, *yes),
            StoreCommand::Export { file, of } => {
                let text = of.as_deref().map(|what| root_text(&store, what)).transpose()?;
                let text = text.as_ref().map(|(_, text)| text.as_slice());
                let moved = match file.as_str() {
                    "-" => store.export(text, std::io::stdout().lock())?,
                    _ => {
                        let out =
                            File::create(file).map_err(|error| cannot("write", file, &error))?;
                        store.export(text, BufWriter::new(out))?
                    }
                };
                // With stdout taken by the archive, what there is to say goes to stderr.
                self.transferred("wrote", &moved, file == "-");
                Ok(())
            }
            StoreCommand::Import { file } => {
                let moved = match file.as_str() {
                    "-" => store.import_archive(std::io::stdin().lock())?,
                    _ => {
                        let archive =
                            File::open(file).map_err(|error| cannot("read", file, &error))?;
                        store.import_archive(BufReader::new(archive))?
                    }
                };
                self.taken_in(&moved)
            }
            StoreCommand::Push { remote, of, replace } => {
                let text = of.as_deref().map(|what| root_text(&store, what)).transpose()?;
                let text = text.as_ref().map(|(_, text)| text.as_slice());
                let remote = open(remote, &settings, false)?;
                let moved = super::block_on(async {
                    remote.probe().await?;
                    store.push(&remote, text, *replace, &ticker("sent", "objects", false)).await
                })??;
                self.transferred("sent", &moved, false);
                Ok(())
            }
            StoreCommand::Pull { remote } => {
                let remote = open(remote, &settings, true)?;
                let moved = super::block_on(async {
                    remote.probe().await?;
                    store.pull(&remote, &ticker("fetched", "objects", false)).await
                })??;
                self.taken_in(&moved)
            }
            StoreCommand::Merge { other } => {
                if !other.join("store.toml").exists() {
                    return Err(usage(format!("there is no store in `{other}`")));
                }
                self.taken_in(&store.merge(&Store::open(other)?)?)
            }
        }
    }

    /// Prints as JSON if that is wanted; `false` leaves it to the caller.
    fn as_json(&self, value: &impl Serialize) -> bool {
        if self.json {
            print(&serde_json::to_string_pretty(value).expect("BUG: this is plain data"));
        }
        self.json
    }

    fn stat(&self, store: &Store) -> Result<(), Failure> {
        let stat = store.stat()?;
        if self.as_json(&stat) {
            return Ok(());
        }
        print(&format!("{:10} {:>9}", "records", stat.records));
        for (name, amount) in [
            ("journals", stat.journals),
            ("packs", stat.packs),
            ("indexes", stat.indexes),
            ("blobs", stat.blobs),
            ("runs", stat.runs),
        ] {
            print(&amount_line(name, amount, 10));
        }
        if !stat.pins.is_empty() {
            print(&format!("pins       {}", stat.pins.join(", ")));
        }
        Ok(())
    }

    fn du(&self, store: &Store) -> Result<(), Failure> {
        let found = store.usage()?;
        if self.as_json(&found) {
            return Ok(());
        }
        let names = [&found.records, &found.blobs, &found.runs].map(|table| table.keys());
        let width = names.into_iter().flatten().map(String::len).max().unwrap_or(0);
        for (title, table) in [
            ("records by kind", &found.records),
            ("blobs by what needs them", &found.blobs),
            ("records by run", &found.runs),
        ] {
            print(title);
            table.iter().for_each(|(name, amount)| {
                print(&format!("  {}", amount_line(name, *amount, width)));
            });
        }
        Ok(())
    }

    fn verify(&self, store: &Store, repair: bool) -> Result<(), Failure> {
        let mut told = Instant::now();
        let mut progress = |bytes: u64| {
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                say(&format!("read {}", ByteSize(bytes)));
            }
        };
        let verified = store.verify(repair, &mut progress)?;
        if !self.as_json(&verified) {
            print(&verified_text(&verified, repair));
        }
        if verified.unrepaired() > 0 { Err(Failure::Said(FAILED)) } else { Ok(()) }
    }

    fn collected(&self, report: &GcReport) {
        if self.as_json(report) {
            return;
        }
        let verb = if report.dry_run { "would remove" } else { "removed" };
        print(&format!(
            "{verb} {} records, {} blobs, {} runs: {}",
            report.records_removed,
            report.blobs_removed,
            report.runs_removed,
            ByteSize(report.bytes_removed)
        ));
        print(&format!(
            "kept {} records, {} blobs: {}",
            report.records_kept,
            report.blobs_kept,
            ByteSize(report.bytes_kept)
        ));
        if report.bytes_over > 0 {
            say(&format!(
                "warning: that is {} more than the bound; the rest is needed by lock files, pins, last results or \
                 living processes",
                ByteSize(report.bytes_over)
            ));
        }
    }

    fn pin(
        &self,
        store: &Store,
        what: Option<&str>,
        name: Option<&str>,
        remove: Option<&str>,
    ) -> Result<(), Failure> {
        if let Some(name) = remove {
            if !store.unpin(checked(name)?)? {
                return Err(usage(format!("there is no pin `{name}`{}", known_pins(store))));
            }
        } else if let Some(what) = what {
            let (default, text) = root_text(store, what)?;
            let name = checked(name.unwrap_or(&default))?;
            store.pin(name, &String::from_utf8_lossy(&text))?;
        }
        let names: Vec<String> = store.pins()?.into_iter().map(|(name, _)| name).collect();
        if !self.as_json(&names) {
            names.iter().for_each(|name| print(name));
        }
        Ok(())
    }

    fn clear(&self, store: &Store, yes: bool) -> Result<(), Failure> {
        if !yes {
            if !std::io::stdin().is_terminal() {
                return Err(usage("this removes all results; add `--yes` to say that you mean it"));
            }
            let _ = write!(
                std::io::stderr(),
                "remove all results in `{}`, to be paid for again? [y/N] ",
                store.root()
            );
            let mut answer = String::new();
            let read = std::io::stdin().read_line(&mut answer);
            if read.is_err() || !matches!(answer.trim(), "y" | "Y" | "yes") {
                return Err(Failure::Message("nothing was removed".to_owned(), FAILED));
            }
        }
        let options = GcOptions {
            keep_runs: 0,
            max_age: Duration::ZERO,
            max_size: None,
            clear: true,
            dry_run: false,
        };
        self.collected(&store.collect(&options, &Vec::new())?);
        Ok(())
    }

    fn transferred(&self, verb: &str, moved: &Transferred, aside: bool) {
        if !aside && self.as_json(moved) {
            return;
        }
        let mut text = format!(
            "{verb} {} records and {} blobs: {}",
            moved.records,
            moved.blobs,
            ByteSize(moved.bytes)
        );
        if moved.present > 0 {
            text.push_str(&format!("; {} were there already", moved.present));
        }
        if moved.damaged > 0 {
            text.push_str(&format!("; {} were damaged and left out", moved.damaged));
        }
        if aside { say(&text) } else { print(&text) }
    }

    /// What was damaged did not arrive: that is no success.
    fn taken_in(&self, moved: &Transferred) -> Result<(), Failure> {
        self.transferred("took in", moved, false);
        if moved.damaged > 0 { Err(Failure::Said(FAILED)) } else { Ok(()) }
    }
}

/// The shared store of the command line.
fn open(args: &RemoteArgs, settings: &StoreSettings, only_read: bool) -> Result<Remote, Failure> {
    let url = args.remote.as_deref().or(settings.remote.as_deref()).ok_or_else(|| {
        usage(
            "name the shared store with `--remote URL` or FORGE_REMOTE, such as s3://bucket/prefix, or with \
             `--manifest` a manifest that does",
        )
    })?;
    let mode = args.remote_mode.as_deref().or(settings.remote_mode.as_deref());
    let access = match project::access(mode) {
        Access::ReadOnly if !only_read => {
            return Err(usage(format!(
                "`{url}` is only read here, says the mode; it takes no push"
            )));
        }
        access if !only_read => access,
        _ => Access::ReadOnly,
    };
    let tell = |message| say(&format!("warning: {message}"));
    project::open_remote(url, access, Patience::Transfer, tell)
}

/// Tells now and then how many of `what` are done.
pub(super) fn ticker(verb: &'static str, what: &'static str, quiet: bool) -> impl Fn(u64) + Sync {
    let told = Mutex::new(Instant::now());
    move |done| {
        let mut told = told.lock().expect("BUG: the ticker lock is poisoned");
        if !quiet && told.elapsed() >= TELL_EVERY {
            *told = Instant::now();
            say(&format!("{verb} {done} {what}"));
        }
    }
}

/// The text of a lock file or of a run, and a name for it.
fn root_text(store: &Store, what: &str) -> Result<(String, Vec<u8>), Failure> {
    let path = Utf8Path::new(what);
    if path.extension() == Some("toml") {
        let hint = format!(
            "`{what}` is a manifest; name its lock file, `{}`",
            path.with_extension("lock")
        );
        return Err(usage(hint));
    }
    if path.is_file() {
        let text = std::fs::read(path).map_err(|error| cannot("read", path, &error))?;
        return Ok((path.file_name().unwrap_or("pin").to_owned(), text));
    }
    let run = history::find_id(store, what).map_err(|error| match error {
        HistoryError::Unknown { .. } => usage(format!("there is no file `{what}`, and {error}")),
        other => other.into(),
    })?;
    let text = store.run_texts(&run).ok_or_else(|| usage(format!("run `{run}` has no log")))?;
    Ok((run, text))
}

/// The name of a pin becomes the name of a file.
fn checked(name: &str) -> Result<&str, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        let message =
            format!("`{name}` is no name for a pin: letters, digits, `-`, `_` and `.` are");
        return Err(usage(message));
    }
    Ok(name)
}

fn known_pins(store: &Store) -> String {
    let pins = store.pins().unwrap_or_default();
    let names: Vec<String> = pins.into_iter().map(|(name, _)| name).collect();
    if names.is_empty() { String::new() } else { format!(" (known: {})", names.join(", ")) }
}

fn amount_line(name: &str, amount: Amount, width: usize) -> String {
    format!("{name:width$} {:>9}  {:>10}", amount.count, ByteSize(amount.bytes).to_string())
}

fn verified_text(verified: &Verified, repair: bool) -> String {
    let mut lines: Vec<String> = Vec::new();
    for damage in &verified.damage {
        let mended = if damage.repaired { " (repaired)" } else { "" };
        lines.push(format!("{}: {}{mended}", damage.file, damage.what));
        lines.push(format!("    {}", damage.consequence));
    }
    lines.push(format!(
        "read {} records and {} blobs, {}: {}",
        verified.lines,
        verified.blobs,
        ByteSize(verified.bytes),
        match (verified.damage.len(), verified.unrepaired()) {
            (0, _) => "all whole".to_owned(),
            (all, 0) => format!("{all} damaged, all repaired"),
            (all, left) if repair => format!("{all} damaged, {left} of them beyond repair"),
            (all, _) =>
                format!("{all} damaged; `--repair` clears the way for working them out again"),
        }
    ));
    lines.join("\n")
}

fn cannot(action: &str, path: &Utf8Path, error: &std::io::Error) -> Failure {
    usage(format!("cannot {action} `{path}`: {}", crate::stage::plain(error)))
}
