//! Calls of tools: what reaches out of this process is remembered like a request, so that a sample is worked out
//! again from what its tools said then. Knows nothing of what tools do.

use super::sample::Job;
use crate::digest::{Digest, Key, Recipe, Replica};
use crate::engine::{Failure, Missing, Mode, unix_ms};
use crate::store::{Outcome, Port, Record, Witness};
use crate::tool::{Answers, Observation, Tool, ToolError};

/// Version of how calls are remembered.
const REV: u32 = 1;

/// Which call it is.
pub(super) struct Place {
    /// The flow.
    pub(super) flow: Digest,
    /// The draw.
    pub(super) replica: Replica,
    /// Calls of the sample before it.
    pub(super) number: usize,
}

/// Why a call has no answer.
pub(super) enum Failed {
    /// The tool has none.
    Tool(ToolError),
    /// The store has none, or cannot keep it.
    Store(Failure),
}

/// The answer to a call, and the key under which it is remembered, if it is.
pub(super) async fn call(
    job: &Job,
    tool: &dyn Tool,
    input: &str,
    place: &Place,
) -> Result<(Observation, Option<Key>), Failed> {
    let recipe = match tool.answers() {
        Answers::Pure => return Ok((tool.call(input).await.map_err(Failed::Tool)?, None)),
        Answers::Deterministic => recipe(tool, input),
        Answers::Varying => recipe(tool, input)
            .field("call", place.number)
            .input("flow", place.flow)
            .replica(place.replica),
    };
    let key = recipe.key();
    if job.mode != Mode::Afresh
        && let Some((record, _)) = job.store.find(key).await
        && let Some(observation) = observation(&record)
    {
        return Ok((observation, Some(key)));
    }
    if matches!(job.mode, Mode::Frozen | Mode::Replay) {
        let missing = Missing { recipe, before: Vec::new() };
        return Err(Failed::Store(Failure::Missing(Box::new(missing))));
    }
    let made = tool.call(input).await.map_err(Failed::Tool)?;
    let value = serde_json::to_value(&made).expect("BUG: an observation is plain data");
    let record = Record {
        recipe,
        outcome: Outcome::Value([("observation".to_owned(), Port::Inline(value))].into()),
        witness: Witness {
            run: job.run.clone(),
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: unix_ms(),
            ..Witness::default()
        },
    };
    let published = job.store.publish(key, record, job.mode == Mode::Afresh).await;
    let record = published.map_err(|error| Failed::Store(error.into()))?;
    // Of two that were made at once the first counts.
    Ok((observation(&record).unwrap_or(made), Some(key)))
}

fn recipe(tool: &dyn Tool, input: &str) -> Recipe {
    tool.describe(Recipe::new("tool", REV)).field("input", input)
}

fn observation(record: &Record) -> Option<Observation> {
    serde_json::from_value(record.inline("observation")?.clone()).ok()
}
