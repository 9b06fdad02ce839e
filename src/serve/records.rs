//! The records of runs, read once for all who ask within a moment: of a run that is over what it has left, of one at
//! work, in this process or another, the fold of its log so far. Knows nothing of who asks.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cached::Cached;
use cached::stores::LruCache;

use crate::history::{self, Events, HistoryError, Run};
use crate::record::{Event, RunRecord, RunStatus};
use crate::store::Store;

/// Runs in memory.
const RUNS_MAX: usize = 256;
/// How old what is told of a run may be.
const FRESH: Duration = Duration::from_millis(500);

type Slot = Arc<Mutex<Option<Known>>>;

/// What is known of a run.
struct Known {
    at: Instant,
    run: Option<Arc<Run>>,
    /// Of a run at work: its log, read so far.
    log: Option<Events>,
}

/// Reads records, and remembers them for a moment.
pub struct Records {
    store: Arc<Store>,
    slots: Mutex<LruCache<String, Slot>>,
}

impl Records {
    /// Of a store.
    pub fn new(store: Arc<Store>) -> Records {
        Records { store, slots: Mutex::new(LruCache::new(RUNS_MAX)) }
    }

    /// The run of a ULID, at most half a second old; `None` of one that is not there or never began.
    pub fn of(&self, id: &str) -> Result<Option<Arc<Run>>, HistoryError> {
        let slot = {
            let mut slots = self.slots.lock().expect("BUG: the record lock is poisoned");
            slots.cache_get_or_set_with_mut(id.to_owned(), Slot::default).clone()
        };
        // One reads, and the others wait for that.
        let mut known = slot.lock().expect("BUG: the lock of a record is poisoned");
        let living = self.store.run_files(id).is_living();
        // The end of a run is told at once.
        let has_ended = |known: &Known| known.log.is_some() && !living;
        if let Some(known) = &*known
            && known.at.elapsed() < FRESH
            && !has_ended(known)
        {
            return Ok(known.run.clone());
        }
        let before = known.take();
        let new = match living {
            true => self.follow(id, before)?,
            false => Known {
                at: Instant::now(),
                run: history::by_id(&self.store, id)?.map(Arc::new),
                log: None,
            },
        };
        let run = new.run.clone();
        *known = Some(new);
        Ok(run)
    }

    /// Goes on with the log of a run at work.
    fn follow(&self, id: &str, before: Option<Known>) -> Result<Known, HistoryError> {
        let (mut log, mut record) = match before {
            Some(Known { run: Some(run), log: Some(log), .. }) => (log, run.record.clone()),
            _ => (Events::open(&self.store, id), RunRecord::default()),
        };
        while let Some(line) = log.next_line()? {
            if let Ok(event) = serde_json::from_slice::<Event>(line) {
                record.apply(&event);
            }
        }
        // Its last words are in the log, and its process is about to let go of it.
        let is_over = record.status != RunStatus::Running;
        let has_begun = !record.run_id.is_empty();
        let tags = self.store.run_files(id).tags();
        let run = has_begun.then(|| Arc::new(Run { record, tags, pinned: false }));
        let log = (has_begun && !is_over).then_some(log);
        Ok(Known { at: Instant::now(), run, log })
    }
}
