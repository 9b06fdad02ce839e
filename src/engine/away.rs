//! When a workflow could ask nobody, because an engine of it was loaded or started again. That is no time of any
//! sample, whoever waits for it. Knows nothing of engines.

use std::pin::pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often it is looked at whether an absence is over, where little is left of a limit.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The absences of the engines of a workflow.
#[derive(Default)]
pub struct Away(Mutex<Absences>);

#[derive(Default)]
struct Absences {
    /// Who waits, and since when there is somebody.
    waiting: usize,
    since: Option<Instant>,
    /// How long those took that are over.
    over: Duration,
}

/// As long as it lives, somebody waits.
pub(super) struct Waiting<'a>(&'a Away);

impl Away {
    /// Somebody waits from now on.
    pub(super) fn wait(&self) -> Waiting<'_> {
        let mut absences = self.absences();
        absences.waiting += 1;
        absences.since.get_or_insert_with(Instant::now);
        Waiting(self)
    }

    /// Does `work` within `limit`, of which absences take nothing; `None` where it takes longer.
    pub async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let (start, before, mut work) = (Instant::now(), self.sum(), pin!(work));
        loop {
            let away = self.sum() - before;
            let left = (limit + away).saturating_sub(start.elapsed());
            if left.is_zero() {
                return None;
            }
            // In an absence it stays as it is, however little that may be.
            if let Ok(done) = tokio::time::timeout(left.max(LOOK_EVERY), work.as_mut()).await {
                return Some(done);
            }
        }
    }

    /// How long somebody has waited until now.
    fn sum(&self) -> Duration {
        let absences = self.absences();
        absences.over + absences.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn absences(&self) -> std::sync::MutexGuard<'_, Absences> {
        self.0.lock().expect("BUG: the lock of absences is poisoned")
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut absences = self.0.absences();
        absences.waiting -= 1;
        if absences.waiting == 0
            && let Some(since) = absences.since.take()
        {
            absences.over += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_beside_another_waits_once() {
        let away = Away::default();
        assert_eq!(away.sum(), Duration::ZERO);
        let start = Instant::now();
        let first = away.wait();
        std::thread::sleep(Duration::from_millis(30));
        let second = away.wait();
        drop(first);
        std::thread::sleep(Duration::from_millis(30));
        let running = away.sum();
        assert!(running >= Duration::from_millis(60) && running <= start.elapsed(), "{running:?}");
        drop(second);
        let over = away.sum();
        assert!(over >= running);
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(away.sum(), over, "nobody waits any more");
        drop(away.wait());
        assert!(away.sum() >= over);
    }

    #[tokio::test]
    async fn a_limit_holds_for_what_is_no_absence() {
        let away = Away::default();
        let sleep = |ms| tokio::time::sleep(Duration::from_millis(ms));
        let limit = Duration::from_millis(200);
        let absent = async {
            let waiting = away.wait();
            sleep(500).await;
            drop(waiting);
            sleep(20).await;
        };
        assert_eq!(away.within(limit, absent).await, Some(()));
        let start = Instant::now();
        let at_work = async {
            drop(away.wait());
            sleep(60_000).await;
        };
        assert_eq!(away.within(limit, at_work).await, None);
        assert!(start.elapsed() >= limit);
        // Nor does an absence before its start count for it.
        let start = Instant::now();
        assert_eq!(away.within(limit, sleep(60_000)).await, None);
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
