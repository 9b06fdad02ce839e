//! A request becomes a completion. Knows nothing of methods or stages.
//!
//! An engine is a resource, not a value: its identity is known without loading it. It is loaded once per
//! identity, at the first miss; a run of hits never loads it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{OnceCell, Semaphore};

use crate::digest::{Digest, Key, Recipe};
use crate::sample::{Completion, Request};

mod client;
pub mod mistralrs;
pub mod scripted;

pub(crate) use client::unix_ms;
pub use client::{Answer, Client, Failure, Limits, Mode};

/// Why an engine gave no completion.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// It will say the same again: remembered.
    #[error("{code}: {detail}")]
    Rejected {
        /// `overflow`, `refused` or another short name.
        code: &'static str,
        /// The engine's words.
        detail: String,
    },
    /// It may work when tried again: never remembered.
    #[error("{0}")]
    Passing(String),
    /// Trying again is of no use, and yet it says nothing about the request: never remembered.
    #[error("{0}")]
    Broken(String),
}

/// An engine that is ready. Asked by at most as many at once as its [`Admission`] lets in.
pub trait Engine: Send + Sync {
    /// Answers a request.
    fn complete<'a>(
        &'a self,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Completion, EngineError>>;
}

/// How many requests an engine gets at once, and why not more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// `None` is as many as the workflow's concurrency.
    pub width: Option<u32>,
    /// For plan and report.
    pub reason: String,
}

/// A way to get an engine: its settings, before it is loaded.
pub trait Backend: Send + Sync {
    /// Its name in manifests.
    fn name(&self) -> &'static str;
    /// For people: model, format, precision.
    fn describe(&self) -> BTreeMap<String, Value>;
    /// How many at once.
    fn admission(&self) -> Admission;
    /// Instances that loading makes.
    fn instances(&self) -> u32 {
        1
    }
    /// Makes the engine. Called once for an identity.
    fn load(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, String>>;
}

/// An engine by its identity, loaded when first needed.
pub struct Resource {
    /// Name of the stage that declares it.
    pub stage: String,
    /// What it is: everything that decides its answers.
    pub recipe: Recipe,
    /// Digest of that.
    pub identity: Digest,
    /// How to get it.
    pub backend: Box<dyn Backend>,
    permits: Semaphore,
    loaded: OnceCell<Result<Box<dyn Engine>, String>>,
    /// One lock for each request being asked, by whichever workflow: the second who wants the same waits,
    /// and then finds it answered.
    flights: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
    /// Requests asked although they were remembered, in this run: their new answers count.
    renewed: Mutex<HashSet<Key>>,
    on_load: Mutex<Vec<OnLoad>>,
}

type OnLoad = Box<dyn FnOnce(f64) + Send>;

impl Resource {
    /// An engine that is not loaded yet.
    pub fn new(stage: &str, recipe: Recipe, backend: Box<dyn Backend>) -> Self {
        let width =
            backend.admission().width.map_or(Semaphore::MAX_PERMITS, |width| width as usize);
        Resource {
            stage: stage.to_owned(),
            identity: Digest::of(recipe.key().bytes()),
            recipe,
            backend,
            permits: Semaphore::new(width),
            loaded: OnceCell::new(),
            flights: Mutex::default(),
            renewed: Mutex::default(),
            on_load: Mutex::new(Vec::new()),
        }
    }

    /// Calls `then` with the milliseconds it took, once the engine is loaded.
    pub fn on_load(&self, then: impl FnOnce(f64) + Send + 'static) {
        self.on_load.lock().expect("BUG: the load lock is poisoned").push(Box::new(then));
    }

    /// The lock of a request.
    fn flight(&self, key: Key) -> Arc<tokio::sync::Mutex<()>> {
        self.flights
            .lock()
            .expect("BUG: the flight lock is poisoned")
            .entry(key)
            .or_default()
            .clone()
    }

    /// Whether this run has asked for a request anew already.
    fn is_renewed(&self, key: Key) -> bool {
        self.renewed.lock().expect("BUG: the renewal lock is poisoned").contains(&key)
    }

    fn renew(&self, key: Key) {
        self.renewed.lock().expect("BUG: the renewal lock is poisoned").insert(key);
    }

    /// Gives a lock back.
    fn landed(&self, key: Key, flight: &Arc<tokio::sync::Mutex<()>>) {
        let mut flights = self.flights.lock().expect("BUG: the flight lock is poisoned");
        // Two holders: the table and the caller. Whoever waits holds a third, and gives it back later.
        if Arc::strong_count(flight) <= 2 {
            flights.remove(&key);
        }
    }

    /// The engine, loaded by the first who asks. One that cannot be loaded is not tried again in this run.
    async fn engine(&self) -> Result<&dyn Engine, String> {
        let load = || async {
            let start = Instant::now();
            let engine = self.backend.load().await?;
            let init_ms = start.elapsed().as_secs_f64() * 1000.0;
            let waiting =
                std::mem::take(&mut *self.on_load.lock().expect("BUG: the load lock is poisoned"));
            waiting.into_iter().for_each(|then| then(init_ms));
            Ok(engine)
        };
        match self.loaded.get_or_init(load).await {
            Ok(engine) => Ok(engine.as_ref()),
            Err(error) => Err(error.clone()),
        }
    }
}
