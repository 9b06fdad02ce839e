//! Several servers of one model: who gets the next request, and who is left alone for a while.
//! Knows nothing of what is asked.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use super::connection::Target;

/// Failures in a row after which a server is left alone.
const FAILURES_MAX: u32 = 3;
/// How long at first; doubled with each further failure.
const REST: Duration = Duration::from_secs(1);
/// And at most.
const REST_MAX: Duration = Duration::from_secs(60);
/// How long a server is left alone that has had too many requests and does not say how long; doubled with each
/// further time. Most count requests by the minute.
const LIMITED: Duration = Duration::from_secs(2);

/// One server.
pub(super) struct Upstream {
    /// Its base, such as `http://127.0.0.1:8000/v1`.
    pub(super) base: Url,
    /// For messages and records: without path and query.
    pub(super) label: String,
    /// Where requests to its model go.
    pub(super) target: Target,
    /// Where requests for embeddings go.
    pub(super) embeddings: Target,
    outstanding: AtomicUsize,
    /// It refuses what the others take: it gets nothing more.
    excluded: AtomicBool,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    last_failure: Option<Instant>,
    /// How often in a row it had too many requests.
    limited: u32,
    last_limited: Option<Instant>,
    /// Left alone because it failed.
    recovers_until: Option<Instant>,
    /// Left alone because it asked for that.
    asked_until: Option<Instant>,
}

/// All servers of one engine.
pub(super) struct Upstreams {
    pub(super) all: Vec<Upstream>,
    /// Where the search for the next begins: equals take turns.
    turn: AtomicUsize,
}

/// A request at a server: counted until dropped. One that is given up without a verdict counts against it.
pub(super) struct Visit<'a> {
    pub(super) upstream: &'a Upstream,
    began: Instant,
    judged: bool,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.upstream.outstanding.fetch_sub(1, Ordering::Relaxed);
        if !self.judged {
            self.upstream.failed(self.began);
        }
    }
}

impl Visit<'_> {
    /// It answered.
    pub(super) fn succeeded(mut self) {
        self.judged = true;
        let mut health = self.upstream.health();
        if health.failures > 0 || health.limited > 0 {
            let asked_until = health.asked_until;
            *health = Health { asked_until, ..Health::default() };
        }
    }

    /// Nothing that happened says anything about it.
    pub(super) fn abstain(mut self) {
        self.judged = true;
    }

    /// It has had too many requests; without a `wait` of its own it is left alone longer each time.
    pub(super) fn limited(self, wait: Option<Duration>) {
        let wait = wait.unwrap_or_else(|| self.upstream.back_off(self.began, fastrand::f64()));
        self.rest(wait);
    }

    /// It asked to be left alone for a while.
    fn rest(mut self, wait: Duration) {
        self.judged = true;
        let mut health = self.upstream.health();
        let until = Instant::now() + wait;
        health.asked_until = Some(health.asked_until.map_or(until, |before| before.max(until)));
    }
}

impl Upstreams {
    /// `target` says where requests to `path` of a base go.
    pub(super) fn new(
        bases: &[Url],
        path: &str,
        target: impl Fn(&Url) -> Result<Target, String>,
    ) -> Result<Self, String> {
        let one = |base: &Url| {
            Ok(Upstream {
                base: base.clone(),
                label: base.origin().ascii_serialization(),
                target: target(&under(base, path))?,
                embeddings: target(&under(base, "embeddings"))?,
                outstanding: AtomicUsize::new(0),
                excluded: AtomicBool::new(false),
                health: Mutex::default(),
            })
        };
        let all = bases.iter().map(one).collect::<Result<_, String>>()?;
        Ok(Upstreams { all, turn: AtomicUsize::new(0) })
    }

    /// The server with the fewest requests among those that do not rest; when all rest, the one that is
    /// soonest done.
    pub(super) fn choose(&self) -> Visit<'_> {
        let now = Instant::now();
        let n = self.all.len();
        let from = if n > 1 { self.turn.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let in_turn = (0..n).map(|i| &self.all[(from + i) % n]);
        let best = in_turn.min_by_key(|upstream| {
            let rests = upstream.rests_until().filter(|until| *until > now);
            (upstream.is_excluded(), rests, upstream.outstanding.load(Ordering::Relaxed))
        });
        let upstream = best.expect("BUG: an engine without a server");
        upstream.outstanding.fetch_add(1, Ordering::Relaxed);
        Visit { upstream, began: now, judged: false }
    }

    /// Sends nothing more to a server that refuses what others may take. `false` if it is the last one.
    pub(super) fn exclude(&self, upstream: &Upstream) -> bool {
        let others = self.all.iter().filter(|other| !std::ptr::eq(*other, upstream));
        let has_others = others.into_iter().any(|other| !other.is_excluded());
        if has_others {
            upstream.excluded.store(true, Ordering::Relaxed);
        }
        has_others
    }

    /// When the first of them may be asked again; `None` if one may be asked now.
    pub(super) fn first_ready(&self) -> Option<Duration> {
        self.first_ready_at(Instant::now())
    }

    fn first_ready_at(&self, now: Instant) -> Option<Duration> {
        let wait = |upstream: &Upstream| {
            upstream
                .rests_until()
                .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
        };
        let asked = self.all.iter().filter(|upstream| !upstream.is_excluded());
        asked.map(wait).min().filter(|wait| !wait.is_zero())
    }
}

impl Upstream {
    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().expect("BUG: the health lock is poisoned")
    }

    fn is_excluded(&self) -> bool {
        self.excluded.load(Ordering::Relaxed)
    }

    /// How long to leave it alone that had too many requests and says no more: between half and all of a time that
    /// doubles, by `draw` in 0..1. Requests that were under way together count once.
    fn back_off(&self, began: Instant, draw: f64) -> Duration {
        let mut health = self.health();
        if health.last_limited.is_none_or(|last| began >= last) {
            health.limited += 1;
            health.last_limited = Some(Instant::now());
        }
        let most = LIMITED.saturating_mul(1 << (health.limited - 1).min(10)).min(REST_MAX);
        most.mul_f64(0.5 + draw / 2.0)
    }

    fn rests_until(&self) -> Option<Instant> {
        let health = self.health();
        health.recovers_until.max(health.asked_until)
    }

    /// It did not answer a request that began then, or not as a server in health does. Those that were under
    /// way together fail together, and count once.
    pub(super) fn failed(&self, began: Instant) {
        let mut health = self.health();
        if health.last_failure.is_some_and(|last| began < last) {
            return;
        }
        health.failures += 1;
        health.last_failure = Some(Instant::now());
        if let Some(more) = health.failures.checked_sub(FAILURES_MAX) {
            let rest = REST.saturating_mul(1 << more.min(10)).min(REST_MAX);
            health.recovers_until = Some(Instant::now() + rest);
        }
    }

    /// Where a path of the interface is.
    pub(super) fn url(&self, path: &str) -> Url {
        under(&self.base, path)
    }

    /// A path of the server, outside of the interface.
    pub(super) fn root(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url.set_query(None);
        url
    }
}

/// A path below a base, whose query stays behind it.
fn under(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    let base = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{base}/{path}"));
    url
}

#[cfg(test)]
mod tests {
    use super::super::connection::Dialer;
    use super::*;

    fn two() -> Upstreams {
        let urls = ["http://a:1/v1", "http://b:1/v1/?api-version=7"];
        let dialer = Dialer::new(Duration::from_secs(1), true);
        let bases = urls.map(|url| Url::parse(url).unwrap());
        Upstreams::new(&bases, "completions", |url| dialer.target(url)).unwrap()
    }

    #[test]
    fn the_least_busy_in_health_gets_the_next() {
        let upstreams = two();
        let visits: Vec<_> = (0..6).map(|_| upstreams.choose()).collect();
        let at_a = visits.iter().filter(|visit| visit.upstream.label == "http://a:1").count();
        assert_eq!(at_a, 3);
        visits.into_iter().for_each(Visit::abstain);
        let together = Instant::now();
        upstreams.all[0].failed(together);
        upstreams.all[0].failed(together);
        for _ in 1..FAILURES_MAX {
            assert_eq!(upstreams.all[0].rests_until(), None);
            upstreams.all[0].failed(Instant::now());
        }
        let held: Vec<_> = (0..4).map(|_| upstreams.choose()).collect();
        assert!(held.iter().all(|visit| visit.upstream.label == "http://b:1"));
        assert_eq!(upstreams.first_ready(), None);
        held.into_iter().next().unwrap().limited(Some(Duration::from_secs(9)));
        assert!(upstreams.first_ready().is_some_and(|wait| wait <= REST));
        let soonest = upstreams.choose();
        assert_eq!(soonest.upstream.label, "http://a:1", "the one that is soonest done");
        soonest.abstain();
        assert_eq!(upstreams.first_ready_at(Instant::now() + REST), None);
    }

    #[test]
    fn a_server_with_too_many_requests_is_left_alone_longer_each_time() {
        let upstreams = two();
        let [a, b] = upstreams.all.as_slice() else { unreachable!() };
        let together = Instant::now();
        let waits = [0.0, 0.999].map(|draw| a.back_off(together, draw).as_millis());
        assert_eq!(waits, [1000, 1999], "of one moment");
        let waits: Vec<_> = (0..6).map(|_| a.back_off(Instant::now(), 1.0).as_secs()).collect();
        assert_eq!(waits, [4, 8, 16, 32, 60, 60]);
        upstreams.choose().limited(None);
        upstreams.choose().limited(Some(Duration::from_secs(9)));
        assert!(a.rests_until().is_some() && b.rests_until().is_some());
        upstreams.choose().succeeded();
        upstreams.choose().succeeded();
        assert_eq!(a.back_off(Instant::now(), 1.0).min(b.back_off(Instant::now(), 1.0)), LIMITED);
    }

    #[test]
    fn of_servers_that_refuse_the_last_is_asked() {
        let upstreams = two();
        assert!(upstreams.exclude(&upstreams.all[0]));
        assert!(!upstreams.exclude(&upstreams.all[1]), "nobody else is left");
        let visits: Vec<_> = (0..4).map(|_| upstreams.choose()).collect();
        assert!(visits.iter().all(|visit| visit.upstream.label == "http://b:1"));
    }

    #[test]
    fn paths_go_before_the_query() {
        let upstreams = two();
        let url = upstreams.all[1].url("chat/completions");
        assert_eq!(url.as_str(), "http://b:1/v1/chat/completions?api-version=7");
        assert_eq!(upstreams.all[1].root("/props").as_str(), "http://b:1/props");
    }
}
