//! `forge watch`: a run that another process is at, as `apply` shows it there.

use std::time::{Duration, Instant};

use clap::Args;

use super::logs::LOOK_EVERY;
use super::progress::Progress;
use super::runs::StorePlace;
use super::terminal::{visible, visible_line};
use super::{DONE, FAILED, Failure, gate, say, summary};
use crate::history::{self, Events};
use crate::record::{Event, RunRecord, RunStatus};
use crate::report::gates;

#[derive(Args)]
pub(super) struct Watch {
    /// The run: a part of its id, a tag, `last`
    #[arg(default_value = history::LAST)]
    run: String,
    #[command(flatten)]
    place: StorePlace,
}

impl Watch {
    pub(super) fn run(self) -> Result<(), Failure> {
        let store = self.place.open()?;
        let run = history::find(&store, &self.run)?;
        let (id, mut record) = (run.id().to_owned(), run.record.clone());
        if run.is_running() {
            say(&format!("run {id} of {}", visible(&record.manifest)));
            record = RunRecord::default();
            let progress = Progress::new(false, false);
            let files = store.run_files(&id);
            let mut events = Events::open(&store, &id);
            loop {
                // Asked before reading: what is written before the end is read.
                let living = files.is_living();
                while let Some(line) = events.next_line()? {
                    let Ok(event) = serde_json::from_slice::<Event>(line) else { continue };
                    record.apply(&event);
                    progress.on_at(&event, moment_of(line));
                }
                if record.status != RunStatus::Running || !living {
                    break;
                }
                std::thread::sleep(LOOK_EVERY);
            }
            progress.finish();
        }
        summary::lines(&record).iter().for_each(|line| say(line));
        if !record.gates.is_empty() {
            gates::lines(&record.gates).iter().for_each(|line| say(&visible_line(line)));
            say(&gates::total(&record.gates));
        }
        if matches!(record.status, RunStatus::Running | RunStatus::Interrupted) {
            let message = format!(
                "the process of run `{id}` is gone without a word; what was answered is kept, and `forge apply` goes on \
                 from there"
            );
            return Err(Failure::Message(message, FAILED));
        }
        match summary::exit_code(&record) {
            DONE => gate::exit(&record.gates),
            code => Err(Failure::Said(code)),
        }
    }
}

/// When an event of another process happened, on the clock of this one.
fn moment_of(line: &[u8]) -> Instant {
    let now = crate::engine::unix_ms();
    let ago = history::time_of(line).map_or(0, |unix_ms| now.saturating_sub(unix_ms));
    let now = Instant::now();
    now.checked_sub(Duration::from_millis(ago)).unwrap_or(now)
}
