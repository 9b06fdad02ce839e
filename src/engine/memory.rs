//! Whether two models may be in memory at once. One that nobody uses any more makes room for another; one in
//! use is waited for. Knows nothing of what is in the memory.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::Engine;

/// The memory that loaded models share.
#[derive(Default)]
pub struct Memory {
    /// In bytes; 0 is no bound.
    limit: AtomicU64,
    slots: Mutex<Vec<Arc<Slot>>>,
    freed: Notify,
}

/// Where one engine is, when it is loaded.
#[derive(Default)]
pub(super) struct Slot {
    engine: Mutex<Option<Arc<dyn Engine>>>,
    /// What it takes in memory, loaded or about to be.
    bytes: Mutex<u64>,
    users: AtomicUsize,
}

/// Somebody who may ask: as long as there is one, the engine stays.
pub(super) struct User {
    slot: Arc<Slot>,
    memory: Arc<Memory>,
}

impl Drop for User {
    fn drop(&mut self) {
        self.slot.users.fetch_sub(1, Ordering::SeqCst);
        self.memory.freed.notify_waiters();
    }
}

impl Slot {
    pub(super) fn engine(&self) -> Option<Arc<dyn Engine>> {
        self.engine.lock().expect("BUG: the slot lock is poisoned").clone()
    }

    pub(super) fn fill(&self, engine: Arc<dyn Engine>) {
        *self.engine.lock().expect("BUG: the slot lock is poisoned") = Some(engine);
    }

    /// Gives the memory back.
    pub(super) fn clear(&self, memory: &Memory) {
        let engine = self.engine.lock().expect("BUG: the slot lock is poisoned").take();
        *self.bytes.lock().expect("BUG: the slot lock is poisoned") = 0;
        drop(engine);
        memory.freed.notify_waiters();
    }

    fn bytes(&self) -> u64 {
        *self.bytes.lock().expect("BUG: the slot lock is poisoned")
    }
}

impl Memory {
    /// A bound in bytes.
    pub fn new(limit: u64) -> Self {
        Memory { limit: limit.into(), ..Memory::default() }
    }

    /// Makes room for models that have to be loaded together, because none of them can wait for the others: where
    /// they take more than the bound, that is raised to them. Gives the bound that was too low.
    pub fn allow(&self, together: u64) -> Option<u64> {
        let before = self.limit.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |limit| {
            (limit != 0 && together > limit).then_some(together)
        });
        before.ok()
    }

    pub(super) fn user(self: &Arc<Self>, slot: &Arc<Slot>) -> User {
        slot.users.fetch_add(1, Ordering::SeqCst);
        User { slot: slot.clone(), memory: self.clone() }
    }

    /// Sets `bytes` aside for a slot. Calls `waits` once if others have to end first. A model that is above
    /// the bound by itself is loaded alone.
    pub(super) async fn reserve(&self, slot: &Arc<Slot>, bytes: u64, waits: impl FnOnce()) {
        let mut waits = Some(waits);
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.take(slot, bytes) {
                return;
            }
            if let Some(waits) = waits.take() {
                waits();
            }
            freed.await;
        }
    }

    fn take(&self, slot: &Arc<Slot>, bytes: u64) -> bool {
        let mut slots = self.slots.lock().expect("BUG: the memory lock is poisoned");
        let used = |slots: &[Arc<Slot>]| slots.iter().map(|slot| slot.bytes()).sum::<u64>();
        let fits = |slots: &[Arc<Slot>]| {
            let used = used(slots);
            let limit = self.limit.load(Ordering::SeqCst);
            limit == 0 || used == 0 || used + bytes <= limit
        };
        // Nobody asks these any more.
        while !fits(&slots) {
            let idle = |slot: &Arc<Slot>| slot.users.load(Ordering::SeqCst) == 0;
            let Some(at) = slots.iter().position(|slot| idle(slot) && slot.engine().is_some())
            else {
                return false;
            };
            slots.swap_remove(at).clear(self);
        }
        *slot.bytes.lock().expect("BUG: the slot lock is poisoned") = bytes;
        slots.retain(|other| !Arc::ptr_eq(other, slot));
        slots.push(slot.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            _: Option<Duration>,
        ) -> BoxFuture<'a, Result<Reply, EngineError>> {
            async { Err(EngineError::Broken(String::new())) }.boxed()
        }
    }

    #[test]
    fn what_has_to_be_there_together_fits() {
        let memory = Memory::new(10);
        assert_eq!(memory.allow(9), None);
        assert_eq!(memory.allow(12), Some(10));
        assert_eq!(memory.allow(12), None);
        assert_eq!(Memory::new(0).allow(12), None);
    }

    #[tokio::test]
    async fn what_nobody_uses_makes_room_and_what_is_used_is_waited_for() {
        let memory = Arc::new(Memory::new(100));
        let slots: Vec<Arc<Slot>> = (0..3).map(|_| Arc::default()).collect();
        let first = memory.user(&slots[0]);
        let _second = memory.user(&slots[1]);
        memory.reserve(&slots[0], 60, || panic!("there is room")).await;
        slots[0].fill(Arc::new(Silent));
        let mut waited = false;
        let mut reserving = Box::pin(memory.reserve(&slots[1], 60, || waited = true));
        assert!(futures_util::poll!(reserving.as_mut()).is_pending());
        drop(first);
        reserving.await;
        assert!(waited && slots[0].engine().is_none(), "the first has been let go");
        // Both fit, and one that is too large waits until it is alone.
        memory.reserve(&slots[0], 40, || panic!("there is room")).await;
        let mut alone = Box::pin(memory.reserve(&slots[2], 500, || {}));
        assert!(futures_util::poll!(alone.as_mut()).is_pending());
        slots[0].clear(&memory);
        assert!(futures_util::poll!(alone.as_mut()).is_pending());
        slots[1].clear(&memory);
        alone.await;
    }
}
