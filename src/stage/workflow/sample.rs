//! The life of a sample: [`method.ask` → `client.complete` → `method.read`]* → score. The profile's phases
//! are the calls in here, so a new method is timed, memoized and limited without knowing it.
//! Knows nothing of tables and of other samples.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::digest::{Digest, Key, Recipe, Replica};
use crate::engine::{Client, Failure, Mode};
use crate::method::{self, Method, Turn, react};
use crate::record::{Observed, Phase, RequestObserved, ServedFrom};
use crate::sample::{
    Completion, Finish, Flow, Message, Outcome, Role, Sample, Sampling, Step, StepRun, Termination,
    Text, ToolSpec, Trace, TraceStep,
};
use crate::scorer::{self, Scorer};
use crate::store::{self, Port, Record, Store, Witness};
use crate::template;
use crate::tool::{self, Observation, Tool};

/// Version of the loop below and of the sample's form.
const REV: u32 = 1;

/// What all samples of one workflow share.
pub struct Job {
    /// Semantic settings, from which the key of every sample is made.
    pub settings: Semantics,
    /// The door to it.
    pub client: Client,
    /// Where samples are remembered.
    pub store: Arc<Store>,
    /// Whether remembered samples may be taken.
    pub mode: Mode,
    /// ULID of the run.
    pub run: String,
    /// What the recipes of all samples share.
    pub shared: Recipe,
}

/// A sample as it ended, with the rows that tables and records hold of it: written once.
pub struct Ran {
    /// What came of it.
    pub sample: Sample,
    /// What it took.
    pub observed: Observed,
    /// The sample as JSON.
    pub row: Bytes,
    /// What it took, as JSON.
    pub observed_row: Bytes,
}

impl Ran {
    fn new(sample: Sample, observed: Observed) -> Self {
        let row = store::json_bytes(&sample);
        let observed_row = store::json_bytes(&observed);
        Ran { sample, observed, row, observed_row }
    }
}

/// The settings of a workflow that decide its answers.
pub struct Semantics {
    /// How to reason.
    pub method: &'static dyn Method,
    /// The method's instructions, or the manifest's.
    pub instructions: String,
    /// Tools by name.
    pub tools: Vec<Box<dyn Tool>>,
    /// The same as requests offer them, where the model calls them in the provider's own form; else empty.
    pub offered: Vec<ToolSpec>,
    /// Sampling where the step says nothing else.
    pub sampling: Sampling,
    /// Most turns of the model in a step.
    pub max_turns: u32,
    /// The first one decides `accuracy`.
    pub scorers: Vec<&'static Scorer>,
}

impl Semantics {
    /// Adds all of them to a recipe.
    pub fn describe(&self, recipe: Recipe) -> Recipe {
        let recipe = self.sampling.describe(recipe.field("loop_rev", REV));
        let recipe = match self.method.uses_tools() {
            true => recipe.field("max_iterations", self.max_turns),
            false => recipe,
        };
        let recipe = match self.offered.is_empty() {
            true => recipe,
            false => recipe.field("tool_calls", "native"),
        };
        let recipe = method::describe(self.method, &self.instructions, &self.tools, recipe);
        scorer::describe(&self.scorers, recipe)
    }
}

/// What the recipes of all samples share.
pub fn shared_recipe(settings: &Semantics, engine: Digest) -> Recipe {
    settings.describe(Recipe::new("sample", REV)).input("engine", engine)
}

/// The recipe of one sample.
pub fn recipe(shared: &Recipe, flow: &Flow, flow_digest: Digest, epoch: u32) -> Recipe {
    let replica = Replica { epoch, occurrence: flow.occurrence };
    shared.clone().input("flow", flow_digest).replica(replica)
}

/// A sample of the store, if it is there.
async fn recall(store: &Store, key: Key, flow: &Flow) -> Option<Ran> {
    let start = Instant::now();
    let (record, tier) = store.find(key).await?;
    let mut sample: Sample = serde_json::from_value(record.inline("sample")?.clone()).ok()?;
    let observed: Observed = serde_json::from_value(record.witness.observed?).ok()?;
    // Labels are in no key, and may have changed.
    sample.flow.clone_from(&flow.id);
    sample.tags.clone_from(&flow.tags);
    Some(Ran::new(sample, observed.replayed(tier.into(), ms(start))))
}

/// Runs one sample, or recalls it.
pub async fn run_sample(job: &Job, flow: &Flow, epoch: u32) -> Result<Ran, Failure> {
    let flow_digest = flow.digest();
    let recipe = recipe(&job.shared, flow, flow_digest, epoch);
    let key = recipe.key();
    if matches!(job.mode, Mode::Live | Mode::Frozen)
        && let Some(found) = recall(&job.store, key, flow).await
    {
        return Ok(found);
    }
    let start = Instant::now();
    let mut run = Run { job, flow, epoch, steps: Vec::new(), requests: Vec::new() };
    let (outcome, detail) = match run.all_steps().await {
        Err(Failure::Missing(mut missing)) => {
            missing.before = run.requests.iter().map(|request| request.key).collect();
            return Err(Failure::Missing(missing));
        }
        ended => ended?,
    };
    let Run { steps, requests, .. } = run;
    let answer = match outcome {
        Outcome::Answered => steps.last().and_then(|step| step.answer.clone()),
        _ => None,
    };
    let scoring = Instant::now();
    let scores = match &answer {
        Some(answer) if !flow.targets.is_empty() => {
            job.settings.scorers.iter().map(|scorer| scorer.score(answer, &flow.targets)).collect()
        }
        _ => Vec::new(),
    };
    let metrics_ms = Some(ms(scoring));
    let live = requests.iter().any(|request| request.served_from == ServedFrom::Live);
    let observed = Observed {
        served_from: if live || requests.is_empty() {
            ServedFrom::Live
        } else {
            requests[0].served_from
        },
        wall_ms: ms(start),
        requests,
        metrics_ms,
    };
    let sample = Sample {
        flow: flow.id.clone(),
        flow_digest,
        epoch,
        key,
        outcome,
        detail,
        answer,
        targets: flow.targets.clone(),
        scores,
        steps,
        tags: flow.tags.clone(),
    };
    let ran = Ran::new(sample, observed);
    if outcome.is_final() && matches!(job.mode, Mode::Live | Mode::Afresh) {
        remember(job, recipe, key, &ran).await?;
    }
    Ok(ran)
}

async fn remember(job: &Job, recipe: Recipe, key: Key, ran: &Ran) -> Result<(), store::StoreError> {
    let ports = [("sample".to_owned(), Port::Written(ran.row.clone()))];
    let witness = Witness {
        run: job.run.clone(),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_ms: crate::engine::unix_ms(),
        usage: ran.observed.usage(),
        written: Some(ran.observed_row.clone()),
        ..Witness::default()
    };
    let record = Record { recipe, outcome: store::Outcome::Value(ports.into()), witness };
    job.store.publish(key, record, job.mode == Mode::Afresh).await?;
    Ok(())
}

/// A sample under way.
struct Run<'a> {
    job: &'a Job,
    flow: &'a Flow,
    epoch: u32,
    steps: Vec<StepRun>,
    requests: Vec<RequestObserved>,
}

/// How a step ended, with what there is to say.
type Ended = (Outcome, Option<String>);

impl Run<'_> {
    async fn all_steps(&mut self) -> Result<Ended, Failure> {
        for step in &self.flow.steps {
            let ended = match self.step(step).await {
                Ok(ended) => ended,
                Err(Failure::Engine(failed)) => {
                    self.requests.push(failed.observed.clone());
                    self.end_trace();
                    let words = Failure::Engine(failed).to_string();
                    return Ok((Outcome::ProviderError, Some(words)));
                }
                Err(other) => return Err(other),
            };
            if ended.0 != Outcome::Answered {
                return Ok(ended);
            }
        }
        Ok((Outcome::Answered, None))
    }

    /// An agent that was cut short.
    fn end_trace(&mut self) {
        if let Some(trace) = self.steps.last_mut().and_then(|step| step.trace.as_mut()) {
            trace.termination_reason = Termination::Error;
        }
    }

    async fn step(&mut self, step: &Step) -> Result<Ended, Failure> {
        let settings = &self.job.settings;
        let building = Instant::now();
        let (system, user) = match self.texts(step) {
            Ok(texts) => texts,
            // Columns were checked when the flow was made, so it is an earlier answer that does not fit.
            Err(error) => {
                let detail = format!("the text of step `{}` cannot be made: {error}", step.id);
                return Ok((Outcome::Unparsable, Some(detail)));
            }
        };
        let before = match self.steps.last() {
            Some(last) if step.continues => last.transcript.clone(),
            _ => Vec::new(),
        };
        let opening = method::open(
            settings.method,
            &settings.instructions,
            step,
            system.as_deref(),
            &user,
            &before,
        );
        let trace = settings
            .method
            .uses_tools()
            .then(|| Trace { steps: Vec::new(), termination_reason: Termination::MaxIterations });
        self.steps.push(StepRun {
            id: step.id.clone(),
            transcript: opening,
            answer: None,
            requests: Vec::new(),
            trace,
        });
        let mut building = Some(building);
        for number in 1..=settings.max_turns {
            let start = building.take().unwrap_or_else(Instant::now);
            let completion = match self.request(step, start).await? {
                Ok(completion) => completion,
                Err(ended) => {
                    self.end_trace();
                    return Ok(ended);
                }
            };
            if let Some(ended) = self.turn(step, number, &completion) {
                return Ok(ended);
            }
        }
        Ok((Outcome::Unparsable, Some(format!("no final answer in {} turns", settings.max_turns))))
    }

    /// The texts of a step, those that waited for earlier steps included.
    fn texts(&self, step: &Step) -> Result<(Option<String>, String), template::TemplateError> {
        let text = |text: &Text| match text {
            Text::Ready(text) => Ok(text.clone()),
            Text::Later(source) => {
                let steps: Map<String, Value> = self
                    .steps
                    .iter()
                    .map(|run| (run.id.clone(), json!({ "output": run.answer })))
                    .collect();
                template::render(source, json!({ "row": self.flow.row, "steps": steps }))
            }
        };
        Ok((step.system.as_ref().map(text).transpose()?, text(&step.user)?))
    }

    /// Asks for the next turn and adds the reply to the transcript.
    async fn request(
        &mut self,
        step: &Step,
        start: Instant,
    ) -> Result<Result<Completion, Ended>, Failure> {
        let run = self.steps.last_mut().expect("BUG: a request outside a step");
        let settings = &self.job.settings;
        let replica = Replica { epoch: self.epoch, occurrence: self.flow.occurrence };
        let request = method::ask(
            settings.method,
            step,
            &settings.sampling,
            &run.transcript,
            &settings.offered,
            replica,
        );
        let build_ms = ms(start);
        let answer = self.job.client.complete(&request).await?;
        let mut observed = answer.observed;
        *observed.phases_ms.entry(Phase::PromptBuild).or_default() += build_ms;
        run.requests.push(observed.key);
        self.requests.push(observed);
        Ok(match answer.completion {
            Ok(completion) => {
                run.transcript.push(Message {
                    tool_calls: completion.tool_calls.clone(),
                    ..Message::new(Role::Assistant, completion.text.clone())
                });
                if completion.finish == Finish::ContentFilter {
                    return Ok(Err((
                        Outcome::Refused,
                        Some("withheld by the provider".to_owned()),
                    )));
                }
                Ok(completion)
            }
            Err((code, detail)) => Err(match code.as_str() {
                "overflow" => (Outcome::Overflow, Some(detail)),
                _ => (Outcome::Refused, Some(detail)),
            }),
        })
    }

    /// Reads a reply; `None` goes on with another turn.
    fn turn(&mut self, step: &Step, number: u32, completion: &Completion) -> Option<Ended> {
        let settings = &self.job.settings;
        let parsing = Instant::now();
        if !settings.offered.is_empty() && !completion.tool_calls.is_empty() {
            self.observe(Phase::Parsing, parsing);
            let mut calls = completion.tool_calls.iter();
            return calls.find_map(|call| {
                let input = tool::input_of(&call.arguments);
                let thought = completion.text.clone();
                self.call(step, number, call.name.clone(), input, thought, Some(&call.id))
            });
        }
        let turn = match settings.offered.is_empty() {
            true => settings.method.read(&completion.text),
            // Without a call the reply is the answer.
            false => Turn::Done {
                answer: method::answer::undecorated(completion.text.trim()),
                thought: String::new(),
            },
        };
        self.observe(Phase::Parsing, parsing);
        let run = self.steps.last_mut().expect("BUG: a turn outside a step");
        if method::cut_off(&turn, completion) {
            self.end_trace();
            return Some((Outcome::Truncated, Some("the reply met `max_tokens`".to_owned())));
        }
        if completion.text.trim().is_empty() {
            self.end_trace();
            return Some((Outcome::Empty, None));
        }
        match turn {
            Turn::Done { answer, .. } if answer.is_empty() => Some((Outcome::Empty, None)),
            // A reply that was cut off after its answer may have lost the end of it.
            Turn::Done { .. } if completion.finish == Finish::Length => {
                self.end_trace();
                Some((Outcome::Truncated, Some("the reply met `max_tokens`".to_owned())))
            }
            Turn::Done { answer, thought } => {
                run.answer = Some(answer);
                if let Some(trace) = &mut run.trace {
                    trace.termination_reason = Termination::Answer;
                    trace.steps.push(trace_step(number, thought));
                }
                Some((Outcome::Answered, None))
            }
            Turn::Unparsable { reason } => Some((Outcome::Unparsable, Some(reason))),
            Turn::Again { hint, thought } => {
                self.observation(step, trace_step(number, thought), hint, false, None);
                None
            }
            Turn::Call { tool, input, thought } => {
                self.call(step, number, tool, input, thought, None)
            }
        }
    }

    /// Calls a tool and gives its observation back.
    fn call(
        &mut self,
        step: &Step,
        number: u32,
        tool: String,
        input: String,
        thought: String,
        call_id: Option<&str>,
    ) -> Option<Ended> {
        let run = self.steps.last_mut().expect("BUG: a call outside a step");
        let trace = run.trace.as_mut().expect("BUG: a call of a method without tools");
        let mut turn = trace_step(number, thought);
        turn.action = Some(tool);
        turn.action_input = Some(input);
        let same = |step: &&TraceStep| {
            (&step.action, &step.action_input) == (&turn.action, &turn.action_input)
        };
        if trace.steps.iter().filter(same).count() + 1 >= react::SAME_ACTION_MAX {
            trace.termination_reason = Termination::LoopDetected;
            trace.steps.push(turn);
            let detail = format!("the same action {} times", react::SAME_ACTION_MAX);
            return Some((Outcome::Unparsable, Some(detail)));
        }
        let calling = Instant::now();
        let tools = &self.job.settings.tools;
        let (name, input) = (turn.action.as_deref(), turn.action_input.as_deref().unwrap_or(""));
        let found = tools
            .iter()
            .find(|tool| name.is_some_and(|name| tool.name().eq_ignore_ascii_case(name)));
        let Observation { text, succeeded } = match found {
            Some(tool) => tool.call(input),
            None => {
                let known: Vec<_> = tools.iter().map(|tool| tool.name()).collect();
                let text = format!(
                    "error: unknown tool `{}`; tools: {}",
                    name.unwrap_or(""),
                    known.join(", ")
                );
                Observation { text, succeeded: false }
            }
        };
        self.observe(Phase::Tool, calling);
        self.observation(step, turn, text, succeeded, call_id);
        None
    }

    /// Adds an observation to trace and transcript.
    fn observation(
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

    fn observe(&mut self, phase: Phase, start: Instant) {
        let request = self.requests.last_mut().expect("BUG: a phase before any request");
        *request.phases_ms.entry(phase).or_default() += ms(start);
    }
}

fn trace_step(step: u32, thought: String) -> TraceStep {
    TraceStep {
        step,
        thought,
        action: None,
        action_input: None,
        observation: None,
        succeeded: None,
    }
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
