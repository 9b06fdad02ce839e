//! Server-sent events of an experiment: how far it is, each sample as it ends, and its end. Read from the log of its
//! run, so that a client who comes back with `Last-Event-ID` goes on where it was. Knows nothing of who listens.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::time::{Duration, Instant};

use axum::response::sse;
use futures_util::Stream;
use futures_util::stream::unfold;
use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;

use super::App;
use super::db::{Experiment, Status};
use super::manifest::WORKFLOW;
use super::runs::Progress;
use crate::record::Event;

/// Events that are read from a log at once.
const LINES_MAX: usize = 256;
/// How often a log is looked at, and how far a run is at most told.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a client hears that the server lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A client that listens.
struct Listener {
    app: App,
    id: Uuid,
    changes: watch::Receiver<u64>,
    /// Whether a state has changed since the database was asked.
    stale: bool,
    experiment: Experiment,
    /// The run whose log is read, and how many bytes of it were.
    run: Option<String>,
    offset: u64,
    told: Option<(Instant, Status, Option<Progress>)>,
    waiting: VecDeque<sse::Event>,
    ended: bool,
}

/// The events of an experiment, from its last run's beginning or from `last`, an id that was sent before.
pub fn stream(
    app: App,
    id: Uuid,
    experiment: Experiment,
    last: Option<&str>,
) -> impl Stream<Item = Result<sse::Event, Infallible>> + Send + 'static {
    let known = last.and_then(|last| {
        let (run, offset) = last.split_once(':')?;
        Some((run.to_owned(), offset.parse::<u64>().ok()?))
    });
    let (run, offset) = known.map_or((None, 0), |(run, offset)| (Some(run), offset));
    let changes = app.runs.changes();
    let waiting = VecDeque::new();
    let listener = Listener {
        app,
        id,
        changes,
        stale: true,
        experiment,
        run,
        offset,
        told: None,
        waiting,
        ended: false,
    };
    unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((Ok(event), listener))
    })
}

impl Listener {
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.ended || self.app.runs.ending().is_cancelled() {
                return None;
            }
            self.look();
            if !self.waiting.is_empty() {
                continue;
            }
            // A state that changes is told at once, samples a moment later.
            let ending = self.app.runs.ending().clone();
            tokio::select! {
                _ = self.changes.changed() => self.stale = true,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = ending.cancelled() => return None,
            }
        }
    }

    /// Reads what is new.
    fn look(&mut self) {
        // Asked before reading: what is written before the end is read.
        let active = self.app.runs.is_active(self.id);
        if self.stale && !self.ask() {
            return;
        }
        let read = tokio::task::block_in_place(|| self.read_log());
        let progress = self.app.runs.progress(self.id);
        let status = self.experiment.status;
        let is_news = match &self.told {
            None => true,
            Some((at, old_status, old)) => {
                *old_status != status || (*old != progress && at.elapsed() >= LOOK_EVERY)
            }
        };
        if is_news {
            self.tell_progress(status, progress);
        }
        if read == 0 && !active && !status.is_active() && status != Status::Pending {
            let data = json!({ "status": status, "error_message": self.experiment.error_message });
            self.push("done", &data);
            self.ended = true;
        }
    }

    /// Asks the database how the experiment is; `false` where there is no more to say now.
    fn ask(&mut self) -> bool {
        let found = tokio::task::block_in_place(|| {
            let db = &self.app.db;
            Ok::<_, rusqlite::Error>((db.get(self.id)?, db.runs(self.id)?.into_iter().next()))
        });
        match found {
            Ok((Some(experiment), run)) => {
                self.stale = false;
                self.experiment = experiment;
                if run.is_some() && run != self.run {
                    (self.run, self.offset) = (run, 0);
                }
                true
            }
            // Deleted.
            Ok((None, _)) => {
                self.ended = true;
                false
            }
            Err(_) => false,
        }
    }

    fn tell_progress(&mut self, status: Status, progress: Option<Progress>) {
        let data = match &progress {
            Some(progress) => json!({
                "status": status,
                "run_id": progress.run,
                "finished": progress.finished,
                "total": progress.selected.unwrap_or(self.experiment.config.num_samples.into()),
                "requests_live": progress.live,
                "requests_remembered": progress.hits,
                "elapsed_ms": crate::engine::unix_ms().saturating_sub(progress.started_unix_ms),
            }),
            None => json!({ "status": status, "total": self.experiment.config.num_samples }),
        };
        self.push("progress", &data);
        self.told = Some((Instant::now(), status, progress));
    }

    /// Puts the next events of the log into the line, and says how many lines those were.
    fn read_log(&mut self) -> usize {
        let Some(run) = self.run.clone() else { return 0 };
        let Ok(mut file) = std::fs::File::open(self.app.store.run_files(&run).log()) else {
            return 0;
        };
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return 0;
        }
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        for count in 0..LINES_MAX {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).unwrap_or(0);
            // A torn line is whole once its writer has gone on.
            if read == 0 || line.last() != Some(&b'\n') {
                return count;
            }
            self.offset += read as u64;
            let Ok(Event::SampleFinished {
                stage,
                index,
                flow,
                outcome,
                correct,
                served_from,
                latency_ms,
                ..
            }) = serde_json::from_slice::<Event>(&line)
            else {
                continue;
            };
            if stage == WORKFLOW {
                let data = json!({
                    "index": index,
                    "example_id": flow,
                    "outcome": outcome,
                    "is_correct": correct,
                    "served_from": served_from,
                    "latency_ms": latency_ms,
                });
                self.push("sample", &data);
            }
        }
        LINES_MAX
    }

    fn push(&mut self, name: &str, data: &serde_json::Value) {
        let mut event = sse::Event::default().event(name).data(data.to_string());
        if let Some(run) = &self.run {
            event = event.id(format!("{run}:{}", self.offset));
        }
        self.waiting.push_back(event);
    }
}
