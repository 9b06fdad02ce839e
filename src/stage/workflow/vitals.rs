//! Whether this program was fast enough to measure others: how busy it was while a workflow asked, and how late a
//! timer of its runtime was at worst. Knows nothing of requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use tokio::task::JoinSet;

/// How often the timer ends. A stall that is shorter may not be seen.
const TICK: Duration = Duration::from_millis(10);
const LOCK: &str = "BUG: the lock of vitals is poisoned";

/// What is watched from the start of a workflow on, or from when its engine is there. The processor is that of the whole
/// process: of workflows that run beside each other each has that of all.
pub(super) struct Vitals {
    /// With the processor time until then: user and system, all threads.
    began: Arc<Mutex<(Instant, Option<ProcessTime>)>>,
    /// In µs.
    stall: Arc<AtomicU64>,
    /// Ends with it.
    _ticker: JoinSet<()>,
}

impl Vitals {
    pub(super) fn watch() -> Self {
        let stall = Arc::new(AtomicU64::new(0));
        let mut ticker = JoinSet::new();
        ticker.spawn(tick(stall.clone()));
        Vitals { began: Arc::new(Mutex::new(now())), stall, _ticker: ticker }
    }

    /// Forgets what was until it is called: nothing was asked before.
    pub(super) fn afresh(&self) -> impl FnOnce() + Send + 'static {
        let (began, stall) = (self.began.clone(), self.stall.clone());
        move || {
            *began.lock().expect(LOCK) = now();
            stall.store(0, Ordering::Relaxed);
        }
    }

    /// The share of `cores` that this process has used; `None` where the system does not say.
    pub(super) fn cpu_share(&self, cores: u32) -> Option<f64> {
        let (began, before) = *self.began.lock().expect(LOCK);
        let used = before?.try_elapsed().ok()?.as_secs_f64();
        let had = began.elapsed().as_secs_f64() * f64::from(cores);
        (had > 0.0).then(|| (used / had).min(1.0))
    }

    /// How late the timer was at worst, in ms.
    pub(super) fn stall_ms_max(&self) -> f64 {
        self.stall.load(Ordering::Relaxed) as f64 / 1000.0
    }
}

fn now() -> (Instant, Option<ProcessTime>) {
    (Instant::now(), ProcessTime::try_now().ok())
}

async fn tick(stall: Arc<AtomicU64>) {
    loop {
        let due = Instant::now() + TICK;
        tokio::time::sleep_until(due.into()).await;
        stall.fetch_max(due.elapsed().as_micros() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_and_stalls_are_seen() {
        let vitals = Vitals::watch();
        // Let the ticker begin.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            std::hint::black_box(fastrand::u64(..));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        let stall = vitals.stall_ms_max();
        assert!((200.0..60_000.0).contains(&stall), "{stall}");
        let share = vitals.cpu_share(1);
        assert!(share.is_some_and(|share| share > 0.0 && share <= 1.0), "{share:?}");
        vitals.afresh()();
        assert!(vitals.stall_ms_max() < stall);
        assert!(vitals.began.lock().unwrap().0 > start);
    }
}
