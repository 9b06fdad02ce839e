//! Whether models may be in memory at once. One that nobody uses any more makes room for another; one in use is
//! waited for. Knows nothing of what is in the memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, OnceCell};

use super::Engine;

/// The memory that loaded models share.
#[derive(Default)]
pub struct Memory {
    /// In bytes; 0 is no bound.
    limit: u64,
    /// Those that are loaded or about to be.
    taken: Mutex<Vec<Place>>,
    freed: Notify,
}

/// Where one engine is, when it is loaded.
#[derive(Default)]
pub(super) struct Slot {
    engine: Mutex<Option<Arc<dyn Engine>>>,
    /// Workflows that hold it.
    users: AtomicUsize,
}

/// A slot, and the bytes that its engine takes.
#[derive(Clone)]
struct Place {
    slot: Arc<Slot>,
    bytes: u64,
}

impl Slot {
    pub(super) fn engine(&self) -> Option<Arc<dyn Engine>> {
        self.engine.lock().expect("BUG: the slot lock is poisoned").clone()
    }

    pub(super) fn fill(&self, engine: Arc<dyn Engine>) {
        *self.engine.lock().expect("BUG: the slot lock is poisoned") = Some(engine);
    }

    fn clear(&self) {
        *self.engine.lock().expect("BUG: the slot lock is poisoned") = None;
    }
}

impl Memory {
    /// A bound in bytes.
    pub fn new(limit: u64) -> Self {
        Memory { limit, ..Memory::default() }
    }

    /// Takes room for all or for none, and holds it.
    fn take(&self, wanted: &[Place]) -> bool {
        let mut taken = self.taken.lock().expect("BUG: the memory lock is poisoned");
        let is_wanted =
            |place: &Place| wanted.iter().any(|one| Arc::ptr_eq(&one.slot, &place.slot));
        let own = total(wanted);
        loop {
            let others = taken.iter().filter(|place| !is_wanted(place));
            let others: u64 = others.map(|place| place.bytes).sum();
            // What is above the bound by itself is loaded alone.
            if self.limit == 0 || others == 0 || others + own <= self.limit {
                break;
            }
            let is_idle = |place: &Place| place.slot.users.load(Ordering::SeqCst) == 0;
            let Some(at) = taken.iter().position(|place| !is_wanted(place) && is_idle(place))
            else {
                return false;
            };
            taken.swap_remove(at).slot.clear();
        }
        taken.retain(|place| !is_wanted(place));
        for place in wanted {
            place.slot.users.fetch_add(1, Ordering::SeqCst);
            taken.push(place.clone());
        }
        true
    }
}

fn total(places: &[Place]) -> u64 {
    places.iter().map(|place| place.bytes).sum()
}

/// The models of a workflow: in memory together, from the first request to one of them until the workflow ends. Of two
/// workflows that held one each and waited for room for another, none would ever go on.
pub struct Models {
    memory: Arc<Memory>,
    all: Mutex<Vec<Place>>,
    held: OnceCell<()>,
}

impl Models {
    /// None yet.
    pub fn new(memory: Arc<Memory>) -> Self {
        Models { memory, all: Mutex::default(), held: OnceCell::new() }
    }

    /// One more. Before the first is asked.
    pub(super) fn add(&self, slot: &Arc<Slot>, bytes: u64) {
        let mut all = self.all();
        if bytes > 0 && !all.iter().any(|place| Arc::ptr_eq(&place.slot, slot)) {
            assert!(!self.are_held(), "BUG: a workflow opens its engines before it asks");
            all.push(Place { slot: slot.clone(), bytes });
        }
    }

    /// How many they are, the bytes that they take, and the bound that is too low for them.
    pub fn too_large(&self) -> Option<(usize, u64, u64)> {
        let (all, limit) = (self.all(), self.memory.limit);
        let together = total(&all);
        (limit != 0 && together > limit).then_some((all.len(), together, limit))
    }

    pub(super) fn are_held(&self) -> bool {
        self.held.initialized()
    }

    /// Waits for room for all of them. Calls `waits` once if others have to end first.
    pub(super) async fn hold(&self, waits: impl FnOnce()) {
        let take = async {
            let all = self.all().clone();
            let mut waits = Some(waits);
            loop {
                let freed = self.memory.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if self.memory.take(&all) {
                    return;
                }
                if let Some(waits) = waits.take() {
                    waits();
                }
                freed.await;
            }
        };
        self.held.get_or_init(|| take).await;
    }

    fn all(&self) -> MutexGuard<'_, Vec<Place>> {
        self.all.lock().expect("BUG: the lock of models is poisoned")
    }
}

impl Drop for Models {
    fn drop(&mut self) {
        if self.are_held() {
            for place in self.all().iter() {
                place.slot.users.fetch_sub(1, Ordering::SeqCst);
            }
            self.memory.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::engine::{EngineError, Reply};
    use crate::sample::Request;

    struct Silent;

    impl Engine for Silent {
        fn complete<'a>(
            &'a self,
            _: &'a Request,
            _: Option<std::time::Duration>,
        ) -> BoxFuture<'a, Result<Reply, EngineError>> {
            async { Err(EngineError::Broken(String::new())) }.boxed()
        }
    }

    /// Bytes of models by slot; those of a workflow.
    fn models(memory: &Arc<Memory>, all: &[(&Arc<Slot>, u64)]) -> Models {
        let models = Models::new(memory.clone());
        all.iter().for_each(|(slot, bytes)| models.add(slot, *bytes));
        models
    }

    fn slots<const N: usize>() -> [Arc<Slot>; N] {
        std::array::from_fn(|_| Arc::default())
    }

    #[test]
    fn what_is_more_than_the_bound_is_told() {
        let [a, b] = slots();
        let memory = Arc::new(Memory::new(10));
        assert_eq!(models(&memory, &[(&a, 4), (&b, 5), (&a, 4)]).too_large(), None);
        assert_eq!(models(&memory, &[(&a, 7), (&b, 5)]).too_large(), Some((2, 12, 10)));
        assert_eq!(models(&Arc::default(), &[(&a, 7), (&b, 5)]).too_large(), None);
    }

    #[tokio::test]
    async fn what_nobody_uses_makes_room_and_what_is_used_is_waited_for() {
        let [a, b, c] = slots();
        let memory = Arc::new(Memory::new(100));
        let first = models(&memory, &[(&a, 60)]);
        first.hold(|| panic!("there is room")).await;
        a.fill(Arc::new(Silent));
        let (second, mut waited) = (models(&memory, &[(&b, 60)]), false);
        let mut holding = Box::pin(second.hold(|| waited = true));
        assert!(futures_util::poll!(holding.as_mut()).is_pending());
        drop(first);
        holding.await;
        assert!(waited && a.engine().is_none(), "the first has been let go");
        // Both fit, and one that is too large waits until it is alone.
        let third = models(&memory, &[(&a, 40)]);
        third.hold(|| panic!("there is room")).await;
        let large = models(&memory, &[(&c, 500)]);
        let mut alone = Box::pin(large.hold(|| {}));
        assert!(futures_util::poll!(alone.as_mut()).is_pending());
        drop(third);
        assert!(futures_util::poll!(alone.as_mut()).is_pending());
        drop(second);
        alone.await;
    }

    #[tokio::test]
    async fn of_two_workflows_with_two_models_each_one_goes_on() {
        let [a, b, judge] = slots();
        let memory = Arc::new(Memory::new(100));
        let first = models(&memory, &[(&a, 60), (&judge, 40)]);
        let second = models(&memory, &[(&b, 60), (&judge, 40)]);
        // Who asks first has room for both of its models, and the other has none for either.
        let mut waiting = Box::pin(second.hold(|| {}));
        first.hold(|| panic!("there is room")).await;
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        a.fill(Arc::new(Silent));
        judge.fill(Arc::new(Silent));
        drop(first);
        waiting.await;
        assert!(a.engine().is_none() && judge.engine().is_some(), "the judge is theirs both");
        assert_eq!(a.users.load(Ordering::SeqCst), 0);
        drop(second);
        assert_eq!(judge.users.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn who_waits_keeps_nothing_from_others() {
        let [a, b, c, d] = slots();
        let memory = Arc::new(Memory::new(120));
        let both = models(&memory, &[(&a, 60), (&b, 60)]);
        both.hold(|| panic!("there is room")).await;
        a.fill(Arc::new(Silent));
        b.fill(Arc::new(Silent));
        let (first, second) =
            (models(&memory, &[(&a, 60), (&c, 50)]), models(&memory, &[(&b, 60), (&d, 50)]));
        let (mut one, mut other) = (Box::pin(first.hold(|| {})), Box::pin(second.hold(|| {})));
        assert!(futures_util::poll!(one.as_mut()).is_pending());
        assert!(futures_util::poll!(other.as_mut()).is_pending());
        drop(both);
        // Each has one of its models in memory already.
        one.await;
        assert!(futures_util::poll!(other.as_mut()).is_pending());
        drop(first);
        other.await;
    }
}
