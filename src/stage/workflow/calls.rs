//! Calls of tools: what reaches out of this process is remembered like a request, so that a sample is worked out
//! again from what its tools said then. Knows nothing of what tools do.

use std::time::Instant;

use super::rag::Search;
use super::sample::{Asked, Ended, Job, Run, trace_step};
use crate::digest::{Digest, Key, Recipe, Replica};
use crate::engine::{Failure, Missing, Mode, unix_ms};
use crate::method::react;
use crate::record::Phase;
use crate::sample::{Message, Outcome, Role, Step, Termination, TraceStep};
use crate::store::{self, Port, Record, Witness};
use crate::tool::{Answers, Observation, Tool, ToolError};

/// Version of how calls are remembered.
const REV: u32 = 1;

/// Which call it is.
struct Place {
    /// The flow.
    flow: Digest,
    /// The draw.
    replica: Replica,
    /// Calls of the sample before it.
    number: usize,
}

/// Why a call has no answer.
enum Failed {
    /// The tool has none.
    Tool(ToolError),
    /// The store has none, or cannot keep it.
    Store(Failure),
}

/// The answer to a call, and the key under which it is remembered, if it is.
async fn call(
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
        outcome: store::Outcome::Value([("observation".to_owned(), Port::Inline(value))].into()),
        witness: Witness {
            run: job.run.clone(),
            tool: env!("CARGO_PKG_VERSION").into(),
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

impl<'a> Run<'a> {
    /// The answer of a tool, and the key under which it is remembered, if it is. A search by embeddings asks an engine,
    /// whose answers are.
    async fn answer(
        &mut self,
        tool: &dyn Tool,
        input: &str,
    ) -> Result<(Observation, Option<Key>), Failed> {
        let job = self.job;
        let search = job.settings.searches.iter().find(|search| search.name() == tool.name());
        match (search, job.searches.get(tool.name())) {
            (Some(search), Some(door)) => {
                let found = Search::call(search, door, input, &mut self.aside).await;
                Ok((found.map_err(Failed::Store)?, None))
            }
            _ => call(job, tool, input, &self.place()).await,
        }
    }

    fn tool(&self, name: &str) -> Option<&'a dyn Tool> {
        let tools = self.job.settings.tools.iter().map(AsRef::as_ref);
        tools.into_iter().find(|tool| tool.name().eq_ignore_ascii_case(name))
    }

    /// The input of a call in the provider's own form.
    pub(super) fn input_of(&self, tool: &str, arguments: &str) -> String {
        match self.tool(tool) {
            Some(tool) => tool.input_of(arguments),
            None => arguments.to_owned(),
        }
    }

    /// Calls a tool and gives its observation back.
    pub(super) async fn call(
        &mut self,
        step: &Step,
        number: u32,
        asked: Asked,
    ) -> Result<Option<Ended>, Failure> {
        let run = self.steps.last_mut().expect("BUG: a call outside a step");
        let trace = run.trace.as_mut().expect("BUG: a call of a method without tools");
        let mut turn = trace_step(number, asked.thought);
        turn.action = Some(asked.tool.clone());
        turn.action_input = Some(asked.input.clone());
        let same = |step: &&TraceStep| {
            (&step.action, &step.action_input) == (&turn.action, &turn.action_input)
        };
        if trace.steps.iter().filter(same).count() + 1 >= react::SAME_ACTION_MAX {
            trace.termination_reason = Termination::LoopDetected;
            trace.steps.push(turn);
            let detail = format!("the same action {} times", react::SAME_ACTION_MAX);
            return Ok(Some((Outcome::Unparsable, Some(detail))));
        }
        let calling = Instant::now();
        let (observation, key) = match self.tool(&asked.tool) {
            Some(tool) => match self.answer(tool, &asked.input).await {
                Ok(answered) => answered,
                Err(Failed::Store(failure)) => return Err(failure),
                Err(Failed::Tool(error)) => {
                    self.end_trace();
                    let detail = format!("the tool `{}` failed: {error}", asked.tool);
                    return Ok(Some((Outcome::ProviderError, Some(detail))));
                }
            },
            None => {
                let tools = self.job.settings.tools.iter();
                let known: Vec<_> = tools.map(|tool| tool.name()).collect();
                let (tool, known) = (asked.tool, known.join(", "));
                (Observation::error(format!("unknown tool `{tool}`; tools: {known}")), None)
            }
        };
        self.observe(Phase::Tool, calling);
        let run = self.steps.last_mut().expect("BUG: a call outside a step");
        run.calls.extend(key);
        let Observation { text, succeeded } = observation;
        self.observation(step, turn, text, succeeded, asked.id.as_deref());
        Ok(None)
    }

    /// Which call the next one is.
    fn place(&self) -> Place {
        Place {
            flow: self.flow_digest,
            replica: Replica { epoch: self.epoch, occurrence: self.flow.occurrence },
            number: self.steps.iter().map(|run| run.calls.len()).sum(),
        }
    }

    /// Adds an observation to trace and transcript.
    pub(super) fn observation(
        &mut self,
        step: &Step,
        mut turn: TraceStep,
        text: String,
        succeeded: bool,
        call_id: Option<&str>,
    ) {
        let run = self.steps.last_mut().expect("BUG: an observation outside a step");
        let format = &step.observation;
        run.transcript.push(match call_id {
            None => Message::new(format.role, format!("{}{text}", format.prefix)),
            Some(id) => Message {
                tool_call_id: Some(id.to_owned()),
                ..Message::new(Role::Tool, text.clone())
            },
        });
        turn.observation = Some(text);
        turn.succeeded = Some(succeeded);
        if let Some(trace) = &mut run.trace {
            trace.steps.push(turn);
        }
    }
}
