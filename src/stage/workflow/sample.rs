//! The life of a sample: [`method.ask` → `client.complete` → `method.read`]* → score. The profile's phases
//! are the calls in here, so a new method is timed, memoized and limited without knowing it.
//! Knows nothing of tables and of other samples.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::limits::SampleLimits;
use super::prompt::{self, Warnings};
use super::rag::{self, Rag};
use super::scoring::{self, Doors, Prepared, Subject};
use crate::digest::{Digest, Key, Recipe, Replica};
use crate::engine::{Away, Client, Failure, Mode};
use crate::method::{self, Method, Turn};
use crate::record::{
    Observed, Phase, Price, RequestObserved, ScorerRequest, ServedFrom, Tariffs, millis,
};
use crate::sample::{
    Completion, Finish, Flow, Message, Outcome, Role, Sample, Sampling, Step, StepRun, Termination,
    ToolSpec, Trace, TraceStep,
};
use crate::store::{self, Port, Record, Store, Witness};
use crate::tool::Tool;

/// Version of the loop below and of the sample's form.
const REV: u32 = 1;

/// What all samples of one workflow share.
pub struct Job {
    /// Semantic settings, from which the key of every sample is made.
    pub settings: Semantics,
    /// The door to it.
    pub client: Client,
    /// What scorers that act act through.
    pub doors: Doors,
    /// Where samples are remembered.
    pub store: Arc<Store>,
    /// Whether remembered samples may be taken.
    pub mode: Mode,
    /// ULID of the run.
    pub run: String,
    /// What the recipes of all samples share.
    pub shared: Recipe,
    /// Longest time of a sample: an execution setting.
    pub time_limit: Option<Duration>,
    /// When nobody could be asked, which is no time of a sample.
    pub away: Arc<Away>,
    /// The engines that retrieval asks.
    pub rag: rag::Doors,
    /// Those that searches of agents ask, by the tool.
    pub searches: BTreeMap<String, Client>,
    /// What tokens cost of those whom scorers and retrieval ask, by the name in [`ScorerRequest`].
    pub aside_tariffs: Tariffs,
    /// What there is to say of prompts.
    pub warnings: Warnings,
}

impl Job {
    /// What tokens cost of whom scorers or retrieval ask by this name, where somebody has said that.
    pub(super) fn aside_price(&self, name: &str) -> Option<&Price> {
        self.aside_tariffs.get(name)?.as_ref()
    }
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
    /// Of these, the searches that ask an engine.
    pub searches: Vec<Arc<rag::Search>>,
    /// The same as requests offer them, where the model calls them in the provider's own form; else empty.
    pub offered: Vec<ToolSpec>,
    /// Sampling where the step says nothing else.
    pub sampling: Sampling,
    /// Most turns of the model in a step.
    pub max_turns: u32,
    /// What puts passages before the question.
    pub rag: Option<Rag>,
    /// Bounds on a sample that are the same whenever it is run.
    pub limits: SampleLimits,
    /// What is done with the final reply.
    pub scoring: Prepared,
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
        let recipe = self.limits.describe(recipe);
        let recipe = match &self.rag {
            Some(rag) => rag.describe(recipe),
            None => recipe,
        };
        let recipe = method::describe(self.method, &self.instructions, &self.tools, recipe);
        self.scoring.describe(recipe)
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

/// A sample that came to nothing in this run: it was interrupted, or asks for more than is allowed.
pub struct GivenUp {
    /// Why.
    pub failure: Failure,
    /// Its requests until then: they are remembered, and may have cost something.
    pub requests: Vec<RequestObserved>,
    /// Those of its scorers and of retrieval.
    pub aside: Vec<ScorerRequest>,
}

impl GivenUp {
    fn new(
        mut failure: Failure,
        requests: Vec<RequestObserved>,
        aside: Vec<ScorerRequest>,
    ) -> GivenUp {
        if let Failure::Missing(missing) = &mut failure {
            let made = requests.iter().chain(aside.iter().map(|made| &made.request));
            missing.before = made.map(|request| request.key).collect();
        }
        GivenUp { failure, requests, aside }
    }
}

/// Runs one sample, or recalls it.
pub async fn run_sample(job: &Job, flow: &Flow, epoch: u32) -> Result<Ran, GivenUp> {
    let flow_digest = flow.digest();
    let recipe = recipe(&job.shared, flow, flow_digest, epoch);
    let key = recipe.key();
    if matches!(job.mode, Mode::Live | Mode::Frozen)
        && let Some(found) = recall(&job.store, key, flow).await
    {
        return Ok(found);
    }
    let start = Instant::now();
    let (question, opening) = (String::new(), Vec::new());
    // Most steps are one request.
    let all = flow.steps.len();
    let (steps, requests) = (Vec::with_capacity(all), Vec::with_capacity(all));
    let aside = Vec::new();
    let mut run = Run {
        job,
        flow,
        flow_digest,
        epoch,
        question,
        opening,
        steps,
        requests,
        aside,
        cut_short: false,
    };
    let (mut outcome, mut detail) = match run.in_time().await {
        Ok(ended) => ended,
        Err(failure) => return Err(GivenUp::new(failure, run.requests, run.aside)),
    };
    let Run { steps, requests, question, opening, cut_short, aside: mut scoring, .. } = run;
    let wall_ms = ms(start);
    let started = Instant::now();
    let (mut answer, mut scores, mut readings) = (None, Vec::new(), Vec::new());
    if let (Outcome::Answered, Some(step)) = (outcome, steps.last()) {
        let wrote = job.settings.method.writes();
        let subject = Subject {
            flow,
            question: &question,
            opening: &opening,
            wrote,
            reply: match wrote {
                true => step.transcript.last().map_or("", |message| message.content.as_str()),
                false => "",
            },
            by_method: step.answer.as_deref(),
        };
        let scored = scoring::score(&job.settings.scoring, &job.doors, &subject, &mut scoring);
        let scored = match scored.await {
            Ok(scored) => scored,
            Err(failure) => return Err(GivenUp::new(failure, requests, scoring)),
        };
        (outcome, detail) = (scored.outcome, scored.detail.or(detail));
        (answer, scores, readings) = (scored.answer, scored.scores, scored.readings);
    }
    let metrics_ms = Some(ms(started));
    let made = requests.iter().chain(scoring.iter().map(|made| &made.request));
    let live = made.clone().any(|request| request.served_from == ServedFrom::Live);
    let first = made.clone().next().map(|request| request.served_from);
    let observed = Observed {
        served_from: first.filter(|_| !live).unwrap_or(ServedFrom::Live),
        wall_ms,
        requests,
        metrics_ms,
        scoring,
        cut_short,
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
        readings,
        steps,
        tags: flow.tags.clone(),
    };
    let ran = Ran::new(sample, observed);
    if outcome.is_final()
        && matches!(job.mode, Mode::Live | Mode::Through | Mode::Afresh)
        && let Err(error) = remember(job, recipe, key, &ran).await
    {
        let Observed { requests, scoring, .. } = ran.observed;
        return Err(GivenUp::new(error.into(), requests, scoring));
    }
    Ok(ran)
}

async fn remember(job: &Job, recipe: Recipe, key: Key, ran: &Ran) -> Result<(), store::StoreError> {
    let ports = [("sample".to_owned(), Port::Written(ran.row.clone()))];
    let witness = Witness {
        run: job.run.clone(),
        tool: env!("CARGO_PKG_VERSION").into(),
        started_unix_ms: crate::engine::unix_ms(),
        usage: ran.observed.usage(),
        written: Some(ran.observed_row.clone()),
        ..Witness::default()
    };
    let record = Record { recipe, outcome: store::Outcome::Value(ports.into()), witness };
    // What was paid for is in the records of its requests.
    job.store.publish_derived(key, record, job.mode == Mode::Afresh).await?;
    Ok(())
}

/// A sample under way.
pub(super) struct Run<'a> {
    pub(super) job: &'a Job,
    pub(super) flow: &'a Flow,
    pub(super) flow_digest: Digest,
    pub(super) epoch: u32,
    /// The last one asked.
    pub(super) question: String,
    /// The last prompt, where scorers look at it.
    pub(super) opening: Vec<Message>,
    pub(super) steps: Vec<StepRun>,
    pub(super) requests: Vec<RequestObserved>,
    /// What retrieval asked other engines.
    pub(super) aside: Vec<ScorerRequest>,
    /// The time of the sample was over before its last request was.
    pub(super) cut_short: bool,
}

/// A call as the model has written it.
pub(super) struct Asked {
    pub(super) tool: String,
    pub(super) input: String,
    pub(super) thought: String,
    /// By which its answer names it, in the provider's own form.
    pub(super) id: Option<String>,
}

/// How a step ended, with what there is to say.
pub(super) type Ended = (Outcome, Option<String>);

impl Run<'_> {
    /// All steps, within the time of a sample.
    async fn in_time(&mut self) -> Result<Ended, Failure> {
        let Some(limit) = self.job.time_limit else { return self.all_steps().await };
        let away = self.job.away.clone();
        if let Some(ended) = away.within(limit, self.all_steps()).await {
            return ended;
        }
        self.end_trace();
        self.cut_short = matches!(self.job.mode, Mode::Live | Mode::Through | Mode::Afresh);
        let limit = humantime::format_duration(limit);
        // On another day it might end in time.
        Ok((Outcome::ProviderError, Some(format!("`time_limit` of {limit} is passed"))))
    }

    async fn all_steps(&mut self) -> Result<Ended, Failure> {
        if !self.job.settings.method.writes() && self.flow.steps.len() > 1 {
            return Err(Failure::User(format!(
                "the method `{}` writes nothing that a later step could go on from, and the flow template has {} steps",
                self.job.settings.method.name(),
                self.flow.steps.len()
            )));
        }
        for step in &self.flow.steps {
            let ended = match self.step(step).await {
                Ok(ended) => ended,
                Err(Failure::Engine(failed)) => {
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
    pub(super) fn end_trace(&mut self) {
        if let Some(trace) = self.steps.last_mut().and_then(|step| step.trace.as_mut()) {
            trace.termination_reason = Termination::Error;
        }
    }

    async fn step(&mut self, step: &Step) -> Result<Ended, Failure> {
        let settings = &self.job.settings;
        let building = Instant::now();
        let mut texts = match prompt::texts(self.flow, step, &self.steps) {
            Ok(texts) => texts,
            // Columns were checked when the flow was made, so it is an earlier answer that does not fit.
            Err(error) => {
                let detail = format!("the text of step `{}` cannot be made: {error}", step.id);
                return Ok((Outcome::Unparsable, Some(detail)));
            }
        };
        self.question.clone_from(&texts.user);
        let mut retrieval_info = None;
        if let Some(rag) = &settings.rag {
            let (user, info) = rag.augment(&self.job.rag, &texts.user, &mut self.aside).await?;
            (texts.user, retrieval_info) = (user, Some(info));
        }
        if texts.prefill.is_some() {
            self.job.client.continues().map_err(Failure::User)?;
        }
        let mut before = match self.steps.last() {
            Some(last) if step.continues => last.transcript.clone(),
            _ => Vec::new(),
        };
        // What was thought belongs to the calls of its own question.
        before.iter_mut().for_each(|message| message.reasoning = None);
        let opening = method::open(settings.method, &settings.instructions, step, &texts, &before);
        self.job.warnings.look(self.flow, &opening);
        if settings.scoring.likelihoods().next().is_some() {
            self.opening.clone_from(&opening);
        }
        let trace = settings
            .method
            .uses_tools()
            .then(|| Trace { steps: Vec::new(), termination_reason: Termination::MaxIterations });
        self.steps.push(StepRun {
            id: step.id.clone(),
            transcript: opening,
            answer: None,
            requests: Vec::new(),
            calls: Vec::new(),
            prefill: texts.prefill,
            retrieval_info,
            trace,
        });
        if !settings.method.writes() {
            return Ok((Outcome::Answered, None));
        }
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
            if let Some(ended) = self.turn(step, number, &completion).await? {
                return Ok(ended);
            }
        }
        Ok((Outcome::Unparsable, Some(format!("no final answer in {} turns", settings.max_turns))))
    }

    /// Messages of all its conversations.
    fn messages(&self) -> usize {
        let goes_on = |i: usize| self.flow.steps.get(i + 1).is_some_and(|next| next.continues);
        let last = self.steps.len().saturating_sub(1);
        let counted = self.steps.iter().enumerate().filter(|(i, _)| *i == last || !goes_on(*i));
        counted.map(|(_, run)| run.transcript.len()).sum()
    }

    /// Asks for the next turn and adds the reply to the transcript.
    async fn request(
        &mut self,
        step: &Step,
        start: Instant,
    ) -> Result<Result<Completion, Ended>, Failure> {
        let settings = &self.job.settings;
        if let Some(detail) = settings.limits.before(self.messages()) {
            return Ok(Err((Outcome::Truncated, Some(detail))));
        }
        let run = self.steps.last_mut().expect("BUG: a request outside a step");
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
        let answer = self.job.client.complete(&request).await.inspect_err(|failure| {
            // Whoever asks another engine keeps what failed there.
            if let Failure::Engine(failed) = failure {
                self.requests.push(failed.observed.clone());
            }
        })?;
        let mut observed = answer.observed;
        observed.phases_ms.add(Phase::PromptBuild, build_ms);
        run.requests.push(observed.key);
        self.requests.push(observed);
        Ok(match answer.completion {
            Ok(mut completion) => {
                // The model went on with a turn that had begun: both parts are one turn.
                if let Some(begun) = run.transcript.pop_if(|last| last.role == Role::Assistant) {
                    completion.text.insert_str(0, &begun.content);
                }
                let calls = !settings.offered.is_empty() && !completion.tool_calls.is_empty();
                let thought = completion.reasoning.as_ref();
                let reasoning = thought.filter(|_| calls && self.job.client.wants_reasoning());
                run.transcript.push(Message {
                    tool_calls: completion.tool_calls.clone(),
                    reasoning: reasoning.cloned(),
                    ..Message::new(Role::Assistant, completion.text.clone())
                });
                if completion.finish == Finish::ContentFilter {
                    return Ok(Err((
                        Outcome::Refused,
                        Some("withheld by the provider".to_owned()),
                    )));
                }
                let usages = self.requests.iter().map(|request| &request.usage);
                if let Some(detail) = settings.limits.after(usages).map_err(Failure::User)? {
                    return Ok(Err((Outcome::Truncated, Some(detail))));
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
    async fn turn(
        &mut self,
        step: &Step,
        number: u32,
        completion: &Completion,
    ) -> Result<Option<Ended>, Failure> {
        let settings = &self.job.settings;
        let parsing = Instant::now();
        if !settings.offered.is_empty() && !completion.tool_calls.is_empty() {
            self.observe(Phase::Parsing, parsing);
            for call in &completion.tool_calls {
                let call = Asked {
                    tool: call.name.clone(),
                    input: self.input_of(&call.name, &call.arguments),
                    thought: completion.text.clone(),
                    id: Some(call.id.clone()),
                };
                if let Some(ended) = self.call(step, number, call).await? {
                    return Ok(Some(ended));
                }
            }
            return Ok(None);
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
        let is_last = self.steps.len() == self.flow.steps.len();
        let run = self.steps.last_mut().expect("BUG: a turn outside a step");
        if method::cut_off(&turn, completion) {
            self.end_trace();
            return Ok(Some((Outcome::Truncated, Some("the reply met `max_tokens`".to_owned()))));
        }
        if completion.text.trim().is_empty() {
            self.end_trace();
            return Ok(Some((Outcome::Empty, None)));
        }
        Ok(match turn {
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
            // What the manifest's extractors find in the last reply is their business.
            Turn::Unparsable { .. } if self.job.settings.scoring.has_extractors() && is_last => {
                Some((Outcome::Answered, None))
            }
            Turn::Unparsable { reason } => Some((Outcome::Unparsable, Some(reason))),
            Turn::Again { hint, thought } => {
                self.observation(step, trace_step(number, thought), hint, false, None);
                None
            }
            Turn::Call { tool, input, thought } => {
                self.call(step, number, Asked { tool, input, thought, id: None }).await?
            }
        })
    }

    pub(super) fn observe(&mut self, phase: Phase, start: Instant) {
        let request = self.requests.last_mut().expect("BUG: a phase before any request");
        request.phases_ms.add(phase, ms(start));
    }
}

pub(super) fn trace_step(step: u32, thought: String) -> TraceStep {
    TraceStep {
        step,
        thought,
        action: None,
        action_input: None,
        observation: None,
        succeeded: None,
    }
}

pub(super) fn ms(start: Instant) -> f64 {
    millis(start.elapsed())
}
