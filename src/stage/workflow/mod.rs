//! `workflow`: runs flows against an engine with a method. Settings are here, the loop over samples in
//! `run`, the life of one sample in `sample`. Knows nothing of how flows are made or shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{
    Artifact, ArtifactKind, Context, Done, Flows, Inputs, Need, Samples, Setting, Stage, StageError,
};
use crate::digest::{Digest, Recipe};
use crate::engine::{Limits, Resource};
use crate::history;
use crate::manifest::{Diagnostic, Fields};
use crate::method::{self, Method};
use crate::record::{CORPUS, Profile, StopRule};
use crate::report::CellInfo;
use crate::sample::{ResponseFormat, Sample, Sampling};
use crate::store::{Record, Store};

mod calls;
mod embedding;
mod job;
pub mod limits;
pub mod prompt;
pub mod rag;
mod run;
pub mod sample;
pub mod scoring;
mod stop;
mod survey;
mod tools;
mod vitals;

pub use survey::{Ahead, Earlier, Reason, RequestExplained, Survey, Why};

use sample::{Job, Semantics};
use scoring::Scoring;

/// Version of what a workflow's result holds.
const REV: u32 = 2;
/// Samples in flight where the manifest is silent.
const CONCURRENCY: u32 = 8;
/// Most samples in flight.
const CONCURRENCY_MAX: u32 = 4096;
/// Reply tokens where the manifest is silent.
const MAX_TOKENS: u32 = 256;
/// Time of one attempt where the manifest is silent.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(600);
/// Further attempts where the manifest is silent.
const MAX_RETRIES: u32 = 5;

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

impl FailOnError {
    /// As the manifest writes it.
    fn to_json(self) -> Value {
        match self {
            FailOnError::First => true.into(),
            FailOnError::Never => false.into(),
            FailOnError::Share(share) => share.into(),
            FailOnError::Count(count) => count.into(),
        }
    }
}

/// The form of replies as a manifest declares it: schemas and grammars stand in files.
enum Format {
    JsonObject,
    JsonSchema(Utf8PathBuf),
    Regex(String),
    Grammar(Utf8PathBuf),
}

/// A workflow stage.
pub struct Workflow {
    name: String,
    needs: Vec<Need>,
    // Semantic.
    method: &'static dyn Method,
    instructions: Option<String>,
    sampling: Sampling,
    format: Option<Format>,
    epochs: u32,
    tools: tools::Tools,
    native_calls: bool,
    rag: Option<rag::Declared>,
    sample_limits: limits::Declared,
    scoring: Arc<Scoring>,
    stop_when: Option<StopRule>,
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
    let flows = crate::stage::need(&fields, "flows", ArtifactKind::Flows);
    let engine = crate::stage::need(&fields, "engine", ArtifactKind::Engine);
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
        min_p: fields.number("min_p", 0.0..=1.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0),
        logit_bias: read_logit_bias(&fields),
        logprobs: fields.count("logprobs", 0..=20),
        response_format: None,
        reasoning_effort: fields.text("reasoning_effort").map(|text| text.value),
    };
    let format = read_format(&fields, setting);
    let epochs = fields.count("epochs", 1..=10_000).unwrap_or(1);
    let tools = tools::read(&fields, setting, method);
    let (rag, models) = rag::read(&fields, setting);
    let sample_limits = limits::read(&fields);
    let calls = fields.choice("tool_calls", &["text", "native"]);
    let native_calls = calls.is_some_and(|calls| calls.value == "native")
        && method.is_some_and(Method::uses_tools);
    let (scoring, further) = scoring::read(&fields, setting, method);
    let (concurrency, batching_off) = read_concurrency(&fields, method);
    let cache = fields.boolean("cache").unwrap_or(true);
    let cache_max_size = fields.count("cache_max_size", 16..=2048).unwrap_or(256);
    let limits = Limits {
        max_retries: fields.count("max_retries", 0..=100).unwrap_or(MAX_RETRIES),
        first_token_timeout: fields.duration("first_token_timeout"),
        attempt_timeout: fields.duration("attempt_timeout").unwrap_or(ATTEMPT_TIMEOUT),
        timeout: fields.duration("timeout"),
    };
    let fail_on_error = read_fail_on_error(&fields);
    let (stop_when, rival) = stop::read(&fields).unzip();
    fields.finish();
    Some(Box::new(Workflow {
        name: name.to_owned(),
        needs: [flows?, engine?]
            .into_iter()
            .chain(rival.flatten())
            .chain(models)
            .chain(tools.needs())
            .chain(further)
            .collect(),
        // What is wrong with the method has been said; its neighbours are checked all the same.
        method: method.or(method::find("naive"))?,
        instructions,
        sampling,
        format,
        epochs,
        tools,
        native_calls,
        rag,
        sample_limits,
        scoring: scoring.into(),
        stop_when,
        concurrency,
        batching_off,
        cache,
        cache_max_size,
        limits,
        fail_on_error,
    }))
}

fn read_logit_bias(fields: &Fields<'_>) -> BTreeMap<String, f64> {
    let Some(table) = fields.json_table("logit_bias") else { return BTreeMap::new() };
    let mut bias = BTreeMap::new();
    for (token, value) in table.value {
        match value.as_f64().filter(|bias| bias.abs() <= 100.0) {
            Some(value) if token.parse::<u32>().is_ok() => {
                bias.insert(token, value);
            }
            _ => {
                let message = format!("`logit_bias`: `{token} = {value}` is no bias of a token");
                let hint =
                    "the number of a token, and a bias between -100 and 100: { \"1734\" = -100 }";
                fields.error(Diagnostic::at(table.span, message).hint(hint));
            }
        }
    }
    bias
}

/// One of the ways to hold replies to a form.
fn read_format(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Format> {
    let file = |name| {
        let path = fields.path(name).filter(|path| setting.check_exists(fields, path));
        path.map(|path| path.value)
    };
    let object = fields.choice("response_format", &["text", "json_object"]);
    let object = object.filter(|format| format.value == "json_object").map(|_| Format::JsonObject);
    let all = [
        ("response_format", object),
        ("json_schema", file("json_schema").map(Format::JsonSchema)),
        ("regex", fields.text("regex").map(|text| Format::Regex(text.value))),
        ("grammar", file("grammar").map(Format::Grammar)),
    ];
    let mut all = all.into_iter().filter_map(|(name, format)| Some((name, format?)));
    let (first, format) = all.next()?;
    if let Some((second, _)) = all.next() {
        let message = format!("`{second}` and `{first}` exclude each other");
        fields.error(
            Diagnostic::at(fields.place(second), message).also(fields.place(first), "set here"),
        );
    }
    Some(format)
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
    /// The metrics of its samples: accuracy in both forms, its scorers, and what those make of all answers together.
    pub fn metrics(&self) -> Vec<&str> {
        let made = |name: &&str| {
            self.scoring.names().any(|scorer| name.strip_prefix("corpus_") == Some(scorer))
        };
        let corpora = CORPUS.into_iter().filter(made);
        ["accuracy", "accuracy_all"]
            .into_iter()
            .chain(self.scoring.names())
            .chain(corpora)
            .collect()
    }

    /// Draws of each row.
    pub fn epochs(&self) -> u32 {
        self.epochs
    }

    /// The settings that decide answers, with the tools' files read.
    pub fn semantics(&self, inputs: &Inputs, context: &Context) -> Result<Semantics, StageError> {
        let tools::Built { tools, searches } = self.tools.build(inputs, context)?;
        let (_, engine) = self.sources(inputs);
        let price = engine.backend.price();
        if self.sample_limits.cost.is_some() && price.is_none() {
            return Err(StageError::User(format!(
                "`cost_limit` cannot be held: the engine `{}` has no price; add `price = {{ input = …, output = … }}` \
                 (dollars for a million tokens), or `prices = \"<file>\"`",
                engine.stage
            )));
        }
        Ok(Semantics {
            method: self.method,
            instructions: match &self.instructions {
                Some(text) => text.clone(),
                None if self.native_calls => self.method.instructions_with_calls(),
                None => self.method.instructions(&tools),
            },
            offered: match self.native_calls {
                true => tools.iter().map(|tool| tool.spec()).collect(),
                false => Vec::new(),
            },
            tools,
            searches,
            sampling: Sampling {
                response_format: self.response_format(context)?,
                ..self.sampling.clone()
            },
            max_turns: self.tools.max_iterations,
            rag: self.rag.as_ref().map(|rag| rag.build(inputs, context)).transpose()?,
            limits: self.sample_limits.semantic(price),
            scoring: self.scoring.prepare(inputs, context)?,
        })
    }

    fn response_format(&self, context: &Context) -> Result<Option<ResponseFormat>, StageError> {
        let text = |path: &Utf8PathBuf| {
            super::read_project_text(&context.root, path)
                .map_err(|error| StageError::User(format!("cannot read `{path}`: {error}")))
        };
        Ok(Some(match &self.format {
            None => return Ok(None),
            Some(Format::JsonObject) => ResponseFormat::JsonObject,
            Some(Format::Regex(regex)) => ResponseFormat::Regex(regex.clone()),
            Some(Format::Grammar(path)) => ResponseFormat::Grammar(text(path)?),
            Some(Format::JsonSchema(path)) => {
                let schema = serde_json::from_str(&text(path)?).map_err(|error| {
                    let place = format!("{path}:{}:{}", error.line(), error.column());
                    StageError::User(format!("{place}: this is no JSON Schema: {error}"))
                })?;
                ResponseFormat::JsonSchema(schema)
            }
        }))
    }

    /// The flows and the engine among the inputs.
    pub fn sources<'a>(&self, inputs: &'a Inputs) -> (&'a Flows, &'a Arc<Resource>) {
        match (inputs.one("flows"), inputs.one("engine")) {
            (Artifact::Flows(flows), Artifact::Engine(engine)) => (flows, engine),
            _ => unreachable!("BUG: the graph lets only flows and engines in here"),
        }
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

    /// Says what is likely to be a mistake.
    fn warn(&self, context: &Context) {
        if self.epochs > 1 && self.sampling.temperature == 0.0 {
            let message = format!(
                "`epochs = {}` at temperature 0 asks for the same reply again and again: draws for self-consistency \
                 need a temperature above 0",
                self.epochs
            );
            context.notice(&self.name, message);
        }
    }

    /// What reports say of this workflow.
    fn info(
        &self,
        job: &Job,
        recipe: &Recipe,
        inputs: &Inputs,
        context: &Context,
        profile: Profile,
    ) -> CellInfo {
        let (_, engine) = self.sources(inputs);
        let (settings, limits) = (&job.settings, &self.limits);
        let shown = |limit: Option<Duration>| {
            limit.map_or(Value::Null, |limit| humantime::format_duration(limit).to_string().into())
        };
        let execution = [
            ("concurrency", Value::from(self.width(context))),
            ("cache", self.cache.into()),
            ("cache_max_size", self.cache_max_size.into()),
            ("max_retries", limits.max_retries.into()),
            ("first_token_timeout", shown(limits.first_token_timeout)),
            ("attempt_timeout", shown(Some(limits.attempt_timeout))),
            ("timeout", shown(limits.timeout)),
            ("time_limit", shown(self.sample_limits.time)),
            ("fail_on_error", self.fail_on_error.to_json()),
        ];
        let mut about = engine.backend.describe();
        about.insert("identity".to_owned(), engine.identity.to_string().into());
        CellInfo {
            method: settings.method.name().to_owned(),
            config: BTreeMap::clone(&recipe.fields),
            execution: execution
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .chain(job.doors.protections())
                .collect(),
            inputs: recipe
                .inputs
                .iter()
                .map(|(port, d)| (port.to_string(), d.to_string()))
                .collect(),
            engine: about,
            admission: self.admission(engine, context),
            price: engine.backend.price(),
            unpriced: engine.tariff() == Some(None),
            scorers: self.scoring.sources(),
            scorer_prices: job.aside_tariffs.clone(),
            profile,
        }
    }
}

/// A budget can be held only where the most that a request can cost is known.
fn check_budget(engine: &Resource, context: &Context) -> Result<(), StageError> {
    if context.budget.is_some() && engine.backend.is_paid() && engine.backend.price().is_none() {
        return Err(StageError::User(format!(
            "`--budget` cannot be held: the engine `{}` has no price; add `price = {{ input = …, output = … }}` \
             (dollars for a million tokens), or `prices = \"<file>\"`",
            engine.stage
        )));
    }
    if context.budget.is_some() && engine.backend.is_paid() && !engine.backend.bounds_replies() {
        return Err(StageError::User(format!(
            "`--budget` cannot be held: the engine `{}` leaves out `max_tokens`, so nothing bounds what a reply costs; \
             take it from `omit`, or name the field that the server wants: `max_tokens_field`",
            engine.stage
        )));
    }
    Ok(())
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
        async move { self.recipe_of(&self.semantics(inputs, context)?, inputs).await }.boxed()
    }

    fn restore(
        &self,
        record: &Record,
        recipe: &Recipe,
        _: &Inputs,
        context: &Context,
    ) -> Option<Artifact> {
        let samples = Samples::of_record(&self.name, recipe.key(), record)?;
        samples.is_there(&context.store).then(|| Artifact::Samples(samples.into()))
    }

    fn run<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
        _: &'a (dyn Fn(Artifact) + Send + Sync),
    ) -> BoxFuture<'a, Result<Done, StageError>> {
        self.warn(context);
        run::run_all(self, inputs, context).boxed()
    }

    fn may_reuse(&self) -> bool {
        self.cache
    }

    fn streams(&self) -> bool {
        true
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        let format = match &self.format {
            Some(Format::JsonSchema(path) | Format::Grammar(path)) => Some(path),
            _ => None,
        };
        let corpus = self.rag.iter().flat_map(|rag| &rag.corpus.paths);
        self.tools
            .reads()
            .chain(corpus)
            .chain(format)
            .cloned()
            .chain(self.scoring.reads())
            .collect()
    }

    fn as_workflow(&self) -> Option<&Workflow> {
        Some(self)
    }
}

/// Reads the samples of a stage's table.
pub fn read_samples(context: &Context, table: Digest) -> Result<Vec<Sample>, StageError> {
    read_lines(&context.store, table)
}

pub(crate) fn read_lines<T: serde::de::DeserializeOwned>(
    store: &Store,
    table: Digest,
) -> Result<Vec<T>, StageError> {
    history::rows(store, table).map_err(|error| StageError::Failed(error.to_string()))
}
