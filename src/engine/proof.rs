//! What an engine has to be asked before anything else, to find out whether it can do what is wanted. That is paid for
//! like any request: out of the budget, and told to the record. Knows nothing of what is asked.

use super::attempts::Gone;
use super::client::{Client, Told};
use super::{Engine, EngineError};
use crate::record::worth;
use crate::sample::Usage;

impl Client {
    /// Asks it, where there is such a question. What may pass is left to the requests themselves, and only what shows
    /// that asking on is of no use is an error.
    pub(super) async fn prove(&self, engine: &dyn Engine) -> Result<(), Gone> {
        let Some(request) = self.engine.backend.proof() else { return Ok(()) };
        let mut reserved = self.reserve(&request).await?;
        if let Some(reserved) = &mut reserved {
            reserved.sent();
        }
        // Not to be outrun by others: they wait for the engine, and this one has its permit.
        let most = u64::from(request.sampling.max_tokens);
        self.engine.gate.take(engine.prompt_tokens(&request) + most);
        let asked = engine.complete(&request, None);
        let ended = tokio::time::timeout(self.access.limits.attempt_timeout, asked).await;
        // Tokens, whether those are all, and what it shows.
        let (usage, is_all, verdict) = match ended {
            Ok(Ok(reply)) => (reply.completion.usage, true, Ok(())),
            Ok(Err(error)) => match error.unbilled() {
                (EngineError::Passing(trouble), _) => {
                    (trouble.usage(), !trouble.may_be_billed, Ok(()))
                }
                (EngineError::Broken(words), usage) => (usage, true, Err(Gone::Engine(words))),
                (_, usage) => (usage, true, Ok(())),
            },
            Err(_) => (Usage::ZERO, false, Ok(())),
        };
        let backend = &self.engine.backend;
        let cost = worth(backend.price().as_ref(), &usage);
        if let Some(reserved) = reserved {
            reserved.settle(cost.filter(|_| is_all));
        }
        // Of an engine that costs nothing there is nothing to tell.
        if backend.is_paid() || backend.price().is_some() {
            let engine = self.engine.stage.clone();
            let (priced, at_least) = (backend.price().is_some(), !is_all || cost.is_none());
            self.tell(Told::Proved { engine, usage, priced, cost, at_least });
        }
        verdict
    }
}
