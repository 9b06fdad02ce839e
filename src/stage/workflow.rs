//! `workflow`: runs flows against an engine with a method. The loop over samples is here, the life of one
//! sample in `sample_run`. Knows nothing of how flows are made or shown.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;

use super::sample_run::{self, Job, Semantics, run_sample};
use super::{
    Artifact, ArtifactKind, Context, Done, Flows, Inputs, Need, Samples, Setting, Stage, StageError,
};
use crate::digest::{Digest, Key, Recipe};
use crate::engine::{Client, Failure, Limits, Mode, Resource};
use crate::manifest::{Diagnostic, Fields};
use crate::method::{self, Method, react};
use crate::record::{Event, Observed, Profile, RequestCounts, ServedFrom, Tally};
use crate::report::CellInfo;
use crate::sample::{Flow, Outcome as SampleOutcome, Sample, Sampling};
use crate::scorer::{self, Scorer};
use crate::store::{BlobWriter, Outcome, Port, Record};
use crate::tool;

/// Version of what a workflow's result holds.
const REV: u32 = 1;
/// Samples in flight where the manifest is silent.
const CONCURRENCY: u32 = 8;
/// Most samples in flight.
const CONCURRENCY_MAX: u32 = 4096;
/// Finished samples that may wait for an earlier one, beyond those in flight.
const REORDER_MAX: u64 = 1024;
/// Reply tokens where the manifest is silent.
const MAX_TOKENS: u32 = 256;
/// Time of one attempt where the manifest is silent.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(600);
/// Further attempts where the manifest is silent.
const MAX_RETRIES: u32 = 3;

/// How many failed samples a workflow bears.
#[derive(Debug, Clone, Copy, PartialEq)]
enum FailOnError {
    /// The first failed sample ends it.
    First,
    /// Any number is borne.
    Never,
    /// More than this share of all samples ends it.
    Share(f64),
    /// This many end it.
    Count(u64),
}

/// A workflow stage.
pub struct Workflow {
    name: String,
    needs: Vec<Need>,
    // Semantic.
    method: &'static dyn Method,
    instructions: Option<String>,
    sampling: Sampling,
    epochs: u32,
    max_iterations: u32,
    tools: Vec<String>,
    lookup: Option<Utf8PathBuf>,
    scorers: Vec<&'static Scorer>,
    // Execution: in no key.
    concurrency: u32,
    batching_off: bool,
    cache: bool,
    cache_max_size: u32,
    limits: Limits,
    fail_on_error: FailOnError,
}

pub(super) fn read(
    name: &str,
    fields: Fields<'_>,
    setting: &Setting<'_>,
) -> Option<Box<dyn Stage>> {
    let flows = super::need(&fields, "flows", ArtifactKind::Flows);
    let engine = super::need(&fields, "engine", ArtifactKind::Engine);
    let methods: Vec<_> = method::METHODS.iter().map(|method| method.name()).collect();
    let method = match fields.choice("method", &methods) {
        Some(text) => method::find(&text.value),
        None if fields.has("method") => None,
        None => method::find("naive"),
    };
    let instructions = fields.text("instructions").map(|text| text.value);
    let texts = |name| fields.texts(name).unwrap_or_default().into_iter().map(|text| text.value);
    let sampling = Sampling {
        temperature: fields.number("temperature", 0.0..=2.0).unwrap_or(0.0),
        top_p: fields.number("top_p", 0.0..=1.0),
        top_k: fields.count("top_k", 1..=u32::MAX),
        max_tokens: fields.count("max_tokens", 1..=1_000_000).unwrap_or(MAX_TOKENS),
        stop: texts("stop").collect(),
        seed: fields.integer("seed", i64::MIN..=i64::MAX),
    };
    let epochs = fields.count("epochs", 1..=10_000).unwrap_or(1);
    let (max_iterations, tools, lookup) = read_tools(&fields, setting, method);
    let known: Vec<_> = scorer::SCORERS.iter().map(|scorer| scorer.name).collect();
    let scorers = fields.choices("scorers", &known);
    let scorers = scorers.unwrap_or_else(|| {
        ["exact_match", "includes", "f1"].iter().map(ToString::to_string).collect()
    });
    let (concurrency, batching_off) = read_concurrency(&fields, method);
    let cache = fields.boolean("cache").unwrap_or(true);
    let cache_max_size = fields.count("cache_max_size", 16..=2048).unwrap_or(256);
    let limits = Limits {
        max_retries: fields.count("max_retries", 0..=100).unwrap_or(MAX_RETRIES),
        attempt_timeout: fields.duration("attempt_timeout").unwrap_or(ATTEMPT_TIMEOUT),
    };
    let fail_on_error = read_fail_on_error(&fields);
    fields.finish();
    Some(Box::new(Workflow {
        name: name.to_owned(),
        needs: vec![flows?, engine?],
        // What is wrong with the method has been said; its neighbours are checked all the same.
        method: method.or(method::find("naive"))?,
        instructions,
        sampling,
        epochs,
        max_iterations,
        tools,
        lookup,
        scorers: scorers.iter().filter_map(|name| scorer::find(name)).collect(),
        concurrency,
        batching_off,
        cache,
        cache_max_size,
        limits,
        fail_on_error,
    }))
}

/// Tools belong to methods that can call them, and are refused elsewhere.
fn read_tools(
    fields: &Fields<'_>,
    setting: &Setting<'_>,
    method: Option<&'static dyn Method>,
) -> (u32, Vec<String>, Option<Utf8PathBuf>) {
    let turns = (*react::TURNS.start() as u32)..=(*react::TURNS.end() as u32);
    let max_iterations = fields.count("max_iterations", turns).unwrap_or(react::TURNS_DEFAULT);
    let tools = fields.choices("tools", tool::TOOLS);
    let lookup = fields.path("lookup").filter(|path| setting.check_exists(fields, path));
    let Some(method) = method else { return (1, Vec::new(), None) };
    if !method.uses_tools() {
        // Shared through [defaults], these may stand beside any method; they have no effect on this one.
        return (1, Vec::new(), None);
    }
    let tools = tools.unwrap_or_else(|| {
        let default = tool::TOOLS.iter().filter(|tool| **tool != "lookup" || lookup.is_some());
        default.map(ToString::to_string).collect()
    });
    if tools.iter().any(|tool| tool == "lookup") && lookup.is_none() && !fields.has("lookup") {
        let hint = "add `lookup = \"<file of key and value>.jsonl\"`";
        let message = "the tool `lookup` needs its table";
        fields.error(Diagnostic::at(fields.place("tools"), message).hint(hint));
    }
    (max_iterations, tools, lookup.map(|path| path.value))
}

/// `batch_size` is another word for `concurrency`, but of an agent's requests no two go together.
fn read_concurrency(fields: &Fields<'_>, method: Option<&'static dyn Method>) -> (u32, bool) {
    let concurrency = fields.count("concurrency", 1..=CONCURRENCY_MAX);
    let batch_size = fields.count("batch_size", 1..=CONCURRENCY_MAX);
    if concurrency.is_some() && batch_size.is_some() {
        let message = "`batch_size` is another word for `concurrency`, and both are set";
        fields.error(
            Diagnostic::at(fields.place("batch_size"), message)
                .also(fields.place("concurrency"), "set here"),
        );
    }
    let agent = method.is_some_and(Method::uses_tools);
    if agent && batch_size.is_some() {
        return (1, true);
    }
    (concurrency.or(batch_size).unwrap_or(CONCURRENCY), agent)
}

fn read_fail_on_error(fields: &Fields<'_>) -> FailOnError {
    const NAME: &str = "fail_on_error";
    let Some(value) = fields.scalar_json(NAME) else { return FailOnError::First };
    let policy = match &value.value {
        Value::Bool(true) => Some(FailOnError::First),
        Value::Bool(false) => Some(FailOnError::Never),
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(count), _) if count >= 1 => Some(FailOnError::Count(count)),
            (None, Some(share)) if share > 0.0 && share < 1.0 => Some(FailOnError::Share(share)),
            _ => None,
        },
        _ => None,
    };
    policy.unwrap_or_else(|| {
        let message = format!(
            "`{NAME}` must be true, false, a share between 0 and 1, or a count, not {}",
            value.value
        );
        fields.error(Diagnostic::at(value.span, message));
        FailOnError::First
    })
}

impl Workflow {
    /// Repetitions of each flow.
    pub fn epochs(&self) -> u32 {
        self.epochs
    }

    /// The settings that decide answers, with the tools' files read.
    pub fn semantics(&self, context: &Context) -> Result<Semantics, StageError> {
        let table = match &self.lookup {
            None => None,
            Some(path) => Some(read_table(path, context)?),
        };
        let tools = tool::build(&self.tools, table);
        Ok(Semantics {
            method: self.method,
            instructions: match &self.instructions {
                Some(text) => text.clone(),
                None => self.method.instructions(&tools),
            },
            tools,
            sampling: self.sampling.clone(),
            max_turns: self.max_iterations,
            scorers: self.scorers.clone(),
        })
    }

    /// The flows and the engine among the inputs.
    pub fn sources<'a>(&self, inputs: &'a Inputs) -> (&'a Flows, &'a Arc<Resource>) {
        match (inputs.one("flows"), inputs.one("engine")) {
            (Artifact::Flows(flows), Artifact::Engine(engine)) => (flows, engine),
            _ => unreachable!("BUG: the graph lets only flows and engines in here"),
        }
    }

    /// What runs one sample.
    pub fn job(&self, inputs: &Inputs, context: &Context, mode: Mode) -> Result<Job, StageError> {
        let (_, engine) = self.sources(inputs);
        let client = Client::new(
            engine.clone(),
            context.store.clone(),
            &context.run.id,
            mode,
            self.limits.clone(),
            self.cache_max_size as usize,
            context.stop.clone(),
        );
        Ok(Job {
            settings: self.semantics(context)?,
            engine: engine.identity,
            client,
            store: context.store.clone(),
            mode,
            run: context.run.id.clone(),
        })
    }

    fn mode(&self, context: &Context) -> Mode {
        if context.options.frozen {
            Mode::Frozen
        } else if !self.cache || context.options.afresh.contains(&self.name) {
            Mode::Afresh
        } else {
            Mode::Live
        }
    }

    /// Samples in flight.
    fn width(&self, context: &Context) -> u32 {
        self.concurrency.min(context.options.jobs.unwrap_or(u32::MAX)).max(1)
    }

    /// What is let in at once, and why: for plan and report.
    pub fn admission(&self, engine: &Resource, context: &Context) -> String {
        let width = self.width(context);
        let engine = engine.backend.admission();
        let mut text = match engine.width {
            Some(at_once) if at_once < width => format!(
                "{width} samples in flight, of which the engine gets {at_once} request{} at once: {}",
                if at_once == 1 { "" } else { "s" },
                engine.reason
            ),
            _ => format!("{width} samples in flight: {}", engine.reason),
        };
        if self.batching_off {
            text.push_str("; batching is off with react, whose requests wait for each other");
        }
        text
    }

    async fn run_all(&self, inputs: &Inputs, context: &Context) -> Result<Done, StageError> {
        let start = Instant::now();
        let mode = self.mode(context);
        let (flows, engine) = self.sources(inputs);
        let job = Arc::new(self.job(inputs, context, mode)?);
        let mut window = Window {
            workflow: self,
            context,
            table: Table::new(context)?,
            waiting: BTreeMap::new(),
            written: 0,
            tally: Tally::default(),
            observed: Vec::new(),
            failed: 0,
            first_failure: None,
            worked: false,
        };
        let (epochs, width) = (u64::from(self.epochs), self.width(context) as usize);
        let mut reader = flows.reader();
        let mut running: JoinSet<(u64, Result<(Sample, Observed), Failure>)> = JoinSet::new();
        let mut next: Option<(Arc<Flow>, u32)> = None;
        let mut index = 0;
        let mut ended = false;
        let mut error = None;
        let total = || flows.count().map(|count| count * epochs);
        let started = || Event::StageStarted { stage: self.name.clone(), samples: total() };
        (context.emit)(started());
        let mut counted = total().is_some();
        loop {
            let full =
                running.len() >= width || index >= window.written + REORDER_MAX + width as u64;
            let stop = error.is_some() || context.stop.is_cancelled();
            if !counted && total().is_some() {
                counted = true;
                (context.emit)(started());
            }
            if !ended && !stop && !full {
                // Take what comes first: another flow, or the end of a sample.
                tokio::select! {
                    biased;
                    Some(done) = running.join_next(), if !running.is_empty() => {
                        error = window.take(done);
                    }
                    flow = next_flow(&mut reader, &mut next, self.epochs) => match flow? {
                        None => ended = true,
                        Some((flow, epoch)) => {
                            let (job, at) = (job.clone(), index);
                            index += 1;
                            running.spawn(async move { (at, run_sample(&job, &flow, epoch).await) });
                        }
                    }
                }
            } else if let Some(done) = running.join_next().await {
                let taken = window.take(done);
                error = error.or(taken);
            } else {
                break;
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        if !ended || context.stop.is_cancelled() && window.written < index {
            return Err(StageError::Cancelled);
        }
        let wall_ms = start.elapsed().as_secs_f64() * 1000.0;
        let memory = self.cache.then(|| job.client.memory());
        let at_once = engine.backend.admission().width.unwrap_or(u32::MAX);
        let width = if self.batching_off { 1 } else { self.width(context).min(at_once) };
        let profile = Profile::of(&window.observed, memory, u64::from(width), Some(wall_ms));
        let info = self.info(&job, inputs, context, profile).await?;
        let selected = flows.count().unwrap_or(0) * epochs;
        window.finish(selected, inputs, info).await
    }

    /// What reports say of this workflow.
    async fn info(
        &self,
        job: &Job,
        inputs: &Inputs,
        context: &Context,
        profile: Profile,
    ) -> Result<CellInfo, StageError> {
        let (_, engine) = self.sources(inputs);
        let recipe = self.recipe(inputs, context).await?;
        let timeout = humantime::format_duration(self.limits.attempt_timeout).to_string();
        let execution = [
            ("concurrency", Value::from(self.width(context))),
            ("cache", self.cache.into()),
            ("cache_max_size", self.cache_max_size.into()),
            ("max_retries", self.limits.max_retries.into()),
            ("attempt_timeout", timeout.into()),
            ("fail_on_error", format!("{:?}", self.fail_on_error).to_lowercase().into()),
        ];
        let mut about = engine.backend.describe();
        about.insert("identity".to_owned(), engine.identity.to_string().into());
        Ok(CellInfo {
            method: job.settings.method.name().to_owned(),
            config: recipe.fields.clone(),
            execution: execution.map(|(name, value)| (name.to_owned(), value)).into(),
            inputs: recipe.inputs.iter().map(|(port, d)| (port.clone(), d.to_string())).collect(),
            engine: about,
            admission: self.admission(engine, context),
            profile,
        })
    }
}

/// The next flow and epoch; all epochs of a flow come together.
async fn next_flow(
    reader: &mut super::flows::FlowReader,
    next: &mut Option<(Arc<Flow>, u32)>,
    epochs: u32,
) -> Result<Option<(Arc<Flow>, u32)>, StageError> {
    let (flow, epoch) = match next.take() {
        Some(again) => again,
        None => match reader.next().await? {
            Some(flow) => (Arc::new(flow), 0),
            None => return Ok(None),
        },
    };
    if epoch + 1 < epochs {
        *next = Some((flow.clone(), epoch + 1));
    }
    Ok(Some((flow, epoch)))
}

/// The two tables of a workflow, row by row.
struct Table {
    samples: BlobWriter,
    observed: BlobWriter,
}

impl Table {
    fn new(context: &Context) -> Result<Table, StageError> {
        Ok(Table { samples: context.store.blob_writer()?, observed: context.store.blob_writer()? })
    }

    fn add(&mut self, sample: &Sample, observed: &Observed) -> std::io::Result<()> {
        write_line(&mut self.samples, sample)?;
        write_line(&mut self.observed, observed)
    }
}

fn write_line(writer: &mut BlobWriter, value: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value).expect("BUG: a sample is plain data");
    line.push(b'\n');
    writer.write_all(&line)
}

/// Finished samples: written in order, counted, and told.
struct Window<'a> {
    workflow: &'a Workflow,
    context: &'a Context,
    table: Table,
    /// Finished, but an earlier one is not.
    waiting: BTreeMap<u64, (Sample, Observed)>,
    written: u64,
    tally: Tally,
    observed: Vec<Observed>,
    failed: u64,
    first_failure: Option<String>,
    worked: bool,
}

impl Window<'_> {
    /// Takes a finished sample; an error ends admission.
    fn take(
        &mut self,
        done: Result<(u64, Result<(Sample, Observed), Failure>), tokio::task::JoinError>,
    ) -> Option<StageError> {
        let (index, result) = match done {
            Ok(done) => done,
            Err(error) => return Some(StageError::Failed(format!("a sample panicked: {error}"))),
        };
        let (sample, observed) = match result {
            Ok(finished) => finished,
            Err(Failure::Cancelled) => return Some(StageError::Cancelled),
            Err(failure @ Failure::Missing(_)) => {
                return Some(StageError::Missing(failure.to_string()));
            }
            Err(other) => return Some(StageError::Failed(other.to_string())),
        };
        self.tell(index, &sample, &observed);
        let error = self.count_failure(&sample);
        self.waiting.insert(index, (sample, observed));
        while let Some((sample, observed)) = self.waiting.remove(&self.written) {
            if let Err(error) = self.table.add(&sample, &observed) {
                return Some(StageError::Failed(format!("cannot write samples: {error}")));
            }
            self.tally.add(&sample);
            self.observed.push(observed);
            self.written += 1;
        }
        error
    }

    fn tell(&mut self, index: u64, sample: &Sample, observed: &Observed) {
        self.worked |= observed.served_from == ServedFrom::Live;
        let mut requests = RequestCounts::default();
        observed.requests.iter().for_each(|request| requests.add(request.served_from));
        let live = observed.requests.iter().filter(|r| r.served_from == ServedFrom::Live);
        (self.context.emit)(Event::SampleFinished {
            stage: self.workflow.name.clone(),
            index,
            flow: sample.flow.clone(),
            outcome: sample.outcome,
            correct: sample.scores.first().map(|score| score.value >= 1.0),
            served_from: observed.served_from,
            latency_ms: observed.latency_ms(),
            requests,
            output_tokens: live.map(|request| request.usage.output_tokens).sum(),
        });
    }

    fn count_failure(&mut self, sample: &Sample) -> Option<StageError> {
        if sample.outcome != SampleOutcome::ProviderError {
            return None;
        }
        self.failed += 1;
        let detail = sample.detail.as_deref().unwrap_or("the engine failed");
        self.first_failure.get_or_insert_with(|| format!("`{}`: {detail}", sample.flow));
        let ended = match self.workflow.fail_on_error {
            FailOnError::First => true,
            FailOnError::Count(count) => self.failed >= count,
            // Of a share, only the end tells.
            FailOnError::Never | FailOnError::Share(_) => false,
        };
        ended.then(|| self.failure())
    }

    fn failure(&self) -> StageError {
        let first = self.first_failure.as_deref().unwrap_or("");
        StageError::Failed(match self.failed {
            1 => format!("sample {first}"),
            n => format!("{n} samples failed, first {first}"),
        })
    }

    async fn finish(
        self,
        selected: u64,
        inputs: &Inputs,
        info: CellInfo,
    ) -> Result<Done, StageError> {
        if self.written != selected {
            return Err(StageError::Failed(format!(
                "{} of {selected} selected flows have a result",
                self.written
            )));
        }
        if let FailOnError::Share(share) = self.workflow.fail_on_error
            && self.failed as f64 > share * selected as f64
        {
            return Err(self.failure());
        }
        let store = &self.context.store;
        let info = serde_json::to_vec(&info).expect("BUG: settings are plain data");
        let (table, observed) = (self.table.samples.finish()?, self.table.observed.finish()?);
        let samples = Samples {
            stage: self.workflow.name.clone(),
            key: self.workflow.recipe(inputs, self.context).await?.key(),
            table,
            observed,
            info: store.put_blob(&info)?,
            summary: self.tally.summary(),
        };
        let summary = serde_json::to_value(&samples.summary).expect("BUG: counts are plain data");
        let ports = [
            ("samples".to_owned(), Port::Blob(samples.table)),
            ("observed".to_owned(), Port::Blob(samples.observed)),
            ("info".to_owned(), Port::Blob(samples.info)),
            ("summary".to_owned(), Port::Inline(summary)),
        ];
        let failure = (self.failed > 0).then(|| match self.first_failure {
            Some(first) => format!("{} of {selected} samples failed, first {first}", self.failed),
            None => unreachable!("BUG: a failure without its first"),
        });
        Ok(Done {
            artifact: Artifact::Samples(samples),
            // With a passing failure in it, the table is not what the recipe gives.
            outcome: failure.is_none().then(|| Outcome::Value(ports.into())),
            worked: self.worked,
            failure,
        })
    }
}

/// Reads a table of key and value: JSON Lines with both, or one JSON object.
fn read_table(
    path: &Utf8PathBuf,
    context: &Context,
) -> Result<(Digest, BTreeMap<String, String>), StageError> {
    let full = context.resolve(path)?;
    let digest = context.store.import(&full)?;
    let bytes = context.store.blob(digest).ok_or_else(|| {
        StageError::Failed(format!("the content of `{path}` is gone from the store; run again"))
    })?;
    let text = String::from_utf8(bytes)
        .map_err(|_| StageError::User(format!("`{path}` is not UTF-8 text")))?;
    let mut rows = BTreeMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row: Value = serde_json::from_str(line).map_err(|error| {
            StageError::User(format!(
                "{path}:{}:{}: this line is not JSON: {error}",
                i + 1,
                error.column()
            ))
        })?;
        let (Some(key), Some(value)) = (row["key"].as_str(), row["value"].as_str()) else {
            let hint = "a row of a lookup table is {\"key\": \"…\", \"value\": \"…\"}";
            return Err(StageError::User(format!("{path}:{}: {hint}", i + 1)));
        };
        rows.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    Ok((digest, rows))
}

impl Stage for Workflow {
    fn needs(&self) -> &[Need] {
        &self.needs
    }

    fn gives(&self) -> ArtifactKind {
        ArtifactKind::Samples
    }

    fn recipe<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Recipe, StageError>> {
        async move {
            let (flows, engine) = self.sources(inputs);
            let recipe = Recipe::new("workflow", REV)
                .field("epochs", self.epochs)
                .input("engine", engine.identity)
                .input("flows", flows.digest().await?);
            Ok(self.semantics(context)?.describe(recipe))
        }
        .boxed()
    }

    fn restore(
        &self,
        record: &Record,
        recipe: &Recipe,
        _: &Inputs,
        context: &Context,
    ) -> Option<Artifact> {
        let samples = Samples {
            stage: self.name.clone(),
            key: recipe.key(),
            table: record.blob("samples")?,
            observed: record.blob("observed")?,
            info: record.blob("info")?,
            summary: serde_json::from_value(record.inline("summary")?.clone()).ok()?,
        };
        let blobs = [samples.table, samples.observed, samples.info];
        let whole = blobs.iter().all(|digest| context.store.blob(*digest).is_some());
        whole.then_some(Artifact::Samples(samples))
    }

    fn run<'a>(
        &'a self,
        _: Option<&'a Recipe>,
        inputs: &'a Inputs,
        context: &'a Context,
        _: &'a (dyn Fn(Artifact) + Send + Sync),
    ) -> BoxFuture<'a, Result<Done, StageError>> {
        self.run_all(inputs, context).boxed()
    }

    fn may_reuse(&self) -> bool {
        self.cache
    }

    fn streams(&self) -> bool {
        true
    }

    fn as_workflow(&self) -> Option<&Workflow> {
        Some(self)
    }
}

/// How far the store can answer a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Survey {
    /// Flows × epochs.
    pub samples: u64,
    /// Of these, remembered as a whole.
    pub samples_answered: u64,
    /// Requests that the store answers.
    pub requests_answered: u64,
    /// Samples that will ask the engine: one request or more each.
    pub samples_to_ask: u64,
}

impl Workflow {
    /// Walks all samples against the store alone.
    pub async fn survey(&self, inputs: &Inputs, context: &Context) -> Result<Survey, StageError> {
        let job = self.job(inputs, context, Mode::Frozen)?;
        let (flows, _) = self.sources(inputs);
        let mut reader = flows.reader();
        let mut survey = Survey::default();
        while let Some(flow) = reader.next().await? {
            for epoch in 0..self.epochs {
                survey.samples += 1;
                if self.mode(context) == Mode::Afresh {
                    survey.samples_to_ask += 1;
                    continue;
                }
                match run_sample(&job, &flow, epoch).await {
                    Ok((_, observed)) => {
                        survey.samples_answered += 1;
                        survey.requests_answered += observed.requests.len() as u64;
                    }
                    Err(Failure::Missing(_)) => survey.samples_to_ask += 1,
                    Err(other) => return Err(StageError::Failed(other.to_string())),
                }
            }
        }
        Ok(survey)
    }

    /// The recipe of a sample by the name of its flow.
    pub async fn sample_recipe(
        &self,
        flow: &str,
        inputs: &Inputs,
        context: &Context,
    ) -> Result<Option<(Recipe, Flow)>, StageError> {
        let settings = self.semantics(context)?;
        let (flows, engine) = self.sources(inputs);
        let mut reader = flows.reader();
        while let Some(found) = reader.next().await? {
            if found.id == flow {
                return Ok(Some((
                    sample_run::recipe(&settings, engine.identity, &found, 0),
                    found,
                )));
            }
        }
        Ok(None)
    }
}

/// Reads the samples of a stage's table.
pub fn read_samples(context: &Context, table: Digest) -> Result<Vec<Sample>, StageError> {
    read_lines(context, table)
}

pub(super) fn read_lines<T: serde::de::DeserializeOwned>(
    context: &Context,
    table: Digest,
) -> Result<Vec<T>, StageError> {
    let gone =
        || StageError::Failed("a table of samples is gone from the store; run again".to_owned());
    let bytes = context.store.blob(table).ok_or_else(gone)?;
    bytes
        .split(|c| *c == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            serde_json::from_slice(line).map_err(|error| {
                StageError::Failed(format!("a table of samples is damaged: {error}"))
            })
        })
        .collect()
}

/// The key of a workflow's sample by flow name, from a result table.
pub fn sample_key(context: &Context, table: Digest, flow: &str) -> Option<Key> {
    let samples = read_samples(context, table).ok()?;
    samples.iter().find(|sample| sample.flow == flow).map(|sample| sample.key)
}
