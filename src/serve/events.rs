//! Server-sent events of an experiment, a job or a run: how far it is, each sample as it ends, and its end. Samples are
//! read from the log of the run, so that a client who comes back with `Last-Event-ID` goes on where it was. Knows
//! nothing of who listens.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::block_in_place;
use uuid::Uuid;

use super::App;
use super::db::too_few;
use super::feed::{LOOK_EVERY, frame};
use super::runs::Progress;

/// How often a client hears that the server lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Whose events.
#[derive(Debug, Clone)]
pub enum Subject {
    /// An experiment or a job, which may wait for its turn, and samples that were asked for.
    Entry(Uuid, Option<u64>),
    /// A run of the store, whoever made it.
    Run(String),
}

/// How a subject is.
#[derive(Debug, Clone, PartialEq)]
struct State {
    status: &'static str,
    error: Option<String>,
    run: Option<String>,
    /// Samples that there are to run, where that is known.
    samples: Option<u64>,
    /// Whether nothing more will happen.
    is_over: bool,
}

/// A client that listens.
struct Listener {
    app: App,
    subject: Subject,
    changes: watch::Receiver<u64>,
    /// Whether a state has changed since the database was asked.
    stale: bool,
    state: Option<State>,
    /// The run whose log is read, and how many bytes of it were.
    run: Option<String>,
    place: u64,
    told: Option<(Instant, &'static str, Option<Progress>)>,
    said: Instant,
    /// When it was found to be over: what was written until then is told before its end.
    over_since: Option<Instant>,
    ended: bool,
}

/// The events of a subject, from its last run's beginning or from `last`, an id that was sent before.
pub fn stream(app: App, subject: Subject, last: Option<&str>) -> Response {
    let known = last.and_then(|last| {
        let (run, place) = last.split_once(':')?;
        Some((run.to_owned(), place.parse::<u64>().ok()?))
    });
    let (run, place) = known.map_or((None, 0), |(run, place)| (Some(run), place));
    let listener = Listener {
        changes: app.runs.changes(),
        app,
        subject,
        stale: true,
        state: None,
        run,
        place,
        told: None,
        said: Instant::now(),
        over_since: None,
        ended: false,
    };
    let frames = unfold(listener, |mut listener| async move {
        let frames = listener.next().await?;
        Some((Ok::<_, Infallible>(frames), listener))
    });
    let kind = HeaderValue::from_static("text/event-stream");
    ([(header::CONTENT_TYPE, kind)], Body::from_stream(frames)).into_response()
}

impl Listener {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ended || self.app.runs.ending().is_cancelled() {
                return None;
            }
            // Of an entry of the queue a look is some microseconds; of a run of the store its log may be read first.
            let is_entry = matches!(self.subject, Subject::Entry(..));
            let frames = if is_entry { self.look() } else { block_in_place(|| self.look()) };
            if !frames.is_empty() {
                self.said = Instant::now();
                return Some(frames);
            }
            if self.said.elapsed() >= KEEP_ALIVE {
                self.said = Instant::now();
                return Some(Bytes::from_static(b":\n\n"));
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

    /// What is new.
    fn look(&mut self) -> Bytes {
        // Asked before reading: what is written before the end is read.
        let Some(state) = self.ask() else { return Bytes::new() };
        let samples = self.samples();
        let mut out = self.progress(&state);
        if state.is_over && samples.is_none() {
            let data = json!({ "status": state.status, "error_message": state.error });
            out.push_str(&frame(None, "done", &data));
            self.ended = true;
        }
        match samples {
            // Mostly there are samples alone: those are shared by all listeners, and not copied.
            Some(frames) if out.is_empty() => frames,
            Some(frames) => [frames.as_ref(), out.as_bytes()].concat().into(),
            None => out.into(),
        }
    }

    /// Samples that ended since; `None` where there are no more for now.
    fn samples(&mut self) -> Option<Bytes> {
        let run = self.run.as_ref()?;
        loop {
            let (frames, next) = self.app.feed.after(run, self.place, self.over_since);
            if next == self.place {
                return None;
            }
            self.place = next;
            if !frames.is_empty() {
                return Some(frames);
            }
        }
    }

    /// How the subject is; `None` where there is no more to say now.
    fn ask(&mut self) -> Option<State> {
        let state = match &self.subject {
            Subject::Entry(id, _) => {
                let active = self.app.runs.is_active(*id);
                if let (false, Some(state)) = (self.stale, &self.state) {
                    return Some(state.clone());
                }
                match self.app.db.life(*id) {
                    Ok(Some(life)) => Some(State {
                        status: life.status.name(),
                        error: life.error,
                        run: life.run,
                        samples: life.samples,
                        is_over: !active && life.status.is_over(),
                    }),
                    // Deleted.
                    Ok(None) => None,
                    Err(_) => return None,
                }
            }
            Subject::Run(run) => match self.app.records.of(run) {
                Ok(Some(found)) => Some(State {
                    status: found.record.status.name(),
                    error: None,
                    run: Some(run.clone()),
                    samples: None,
                    is_over: !found.is_running(),
                }),
                Ok(None) => None,
                Err(_) => return None,
            },
        };
        self.stale = false;
        self.ended = state.is_none();
        self.over_since = match &state {
            Some(state) if state.is_over => self.over_since.or_else(|| Some(Instant::now())),
            _ => None,
        };
        if let Some(state) = &state
            && state.run.is_some()
            && state.run != self.run
        {
            (self.run, self.place) = (state.run.clone(), 0);
        }
        self.state.clone_from(&state);
        state
    }

    /// How far it is, where that is news.
    fn progress(&mut self, state: &State) -> String {
        let (progress, asked_for) = match &self.subject {
            Subject::Entry(id, asked_for) => (self.app.runs.progress(*id), *asked_for),
            Subject::Run(run) => {
                let found = self.app.records.of(run).ok().flatten();
                (found.map(|found| Progress::of(&found.record)), None)
            }
        };
        let is_news = match &self.told {
            None => true,
            Some((at, status, old)) => {
                *status != state.status || (*old != progress && at.elapsed() >= LOOK_EVERY)
            }
        };
        if !is_news {
            return String::new();
        }
        let known = progress.as_ref().and_then(|progress| progress.selected).or(state.samples);
        let total = known.or(asked_for);
        let warning = known.zip(asked_for).and_then(|(known, asked)| too_few(known, asked));
        let data = match &progress {
            Some(progress) => json!({
                "status": state.status,
                "run_id": progress.run,
                "finished": progress.finished,
                "total": total,
                "warning": warning,
                "requests_live": progress.live,
                "requests_remembered": progress.hits,
                "elapsed_ms": crate::engine::unix_ms().saturating_sub(progress.started_unix_ms),
            }),
            None => json!({ "status": state.status, "total": total, "warning": warning }),
        };
        self.told = Some((Instant::now(), state.status, progress));
        frame(None, "progress", &data)
    }
}
