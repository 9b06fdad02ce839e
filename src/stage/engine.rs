//! `engine`: something that answers requests. Knows nothing of what is asked.

use std::time::Duration;

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{Artifact, ArtifactKind, Context, Done, Inputs, Need, Setting, Stage, StageError};
use crate::digest::Recipe;
use crate::engine::mistralrs::{DTYPES, MistralRs, Weights, fitting_instances};
use crate::engine::scripted::{Rule, Scripted};
use crate::engine::{Backend, Resource};
use crate::manifest::{Diagnostic, Fields};
use crate::record::Event;
use crate::store::{Outcome, Port, Record};

/// Version of what an engine stage means.
const REV: u32 = 1;
/// Backends by name.
const BACKENDS: &[&str] = &["mistralrs", "scripted"];
/// Most instances of one model.
const INSTANCES_MAX: u32 = 64;

struct EngineStage {
    name: String,
    backend: Settings,
}

enum Settings {
    MistralRs(MistralRsSettings),
    Scripted { rules: Vec<Rule>, file: Option<Utf8PathBuf>, latency: Duration },
}

struct MistralRsSettings {
    model: Model,
    dtype: String,
    instances: Option<u32>,
    memory_limit_mb: Option<u32>,
}

enum Model {
    Local(Utf8PathBuf),
    Hub { id: String, revision: String },
}

pub(super) fn read(
    name: &str,
    fields: Fields<'_>,
    setting: &Setting<'_>,
) -> Option<Box<dyn Stage>> {
    let backend = match fields.choice("backend", BACKENDS) {
        Some(backend) => Some(backend.value),
        None if fields.has("backend") => None,
        None => Some("mistralrs".to_owned()),
    };
    let settings = match backend.as_deref() {
        Some("scripted") => read_scripted(&fields, setting),
        Some(_) => read_mistralrs(&fields, setting),
        // Which fields are known depends on the backend, so there is no more to say.
        None => return None,
    };
    fields.finish();
    Some(Box::new(EngineStage { name: name.to_owned(), backend: settings? }))
}

fn read_mistralrs(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Settings> {
    let hub = fields.text("hub");
    let revision = fields.text("revision");
    let model = fields.path("model");
    let dtype = fields.choice("dtype", DTYPES).map_or("f32".to_owned(), |dtype| dtype.value);
    let instances = fields.count("instances", 1..=INSTANCES_MAX);
    let memory_limit_mb = fields.count("memory_limit_mb", 1..=u32::MAX);
    let model = match (model, hub) {
        (Some(model), None) => {
            if !setting.check_exists(fields, &model) {
                return None;
            }
            Model::Local(model.value)
        }
        (None, Some(id)) => {
            let Some(revision) = revision else {
                let hint = "pin a commit: what a branch points to changes, and the answers with it";
                let message = format!("`hub = \"{}\"` needs `revision`", id.value);
                fields.error(Diagnostic::at(id.span, message).hint(hint));
                return None;
            };
            Model::Hub { id: id.value, revision: revision.value }
        }
        (Some(model), Some(hub)) => {
            let diagnostic = Diagnostic::at(hub.span, "`hub` and `model` exclude each other");
            fields.error(diagnostic.also(model.span, "set here"));
            return None;
        }
        (None, None) if fields.has("model") || fields.has("hub") => return None,
        (None, None) => {
            fields.error(Diagnostic::at(fields.span(), "this engine needs a model").hint(
                "`model = \"<folder or .gguf file>\"`, or `hub = \"<org>/<name>\"` with `revision`",
            ));
            return None;
        }
    };
    Some(Settings::MistralRs(MistralRsSettings { model, dtype, instances, memory_limit_mb }))
}

fn read_scripted(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Settings> {
    let latency = fields.duration("latency").unwrap_or_default();
    let mut rules = Vec::new();
    for reply in fields.values("replies").unwrap_or_default() {
        match serde_json::from_value(reply.value) {
            Ok(rule) => rules.push(rule),
            Err(error) => fields.error(
                Diagnostic::at(reply.span, format!("this is no reply of a script: {error}"))
                    .hint("a reply is { when = \"part of the question\", reply = \"text\" }"),
            ),
        }
    }
    let file = fields.path("file").filter(|file| setting.check_exists(fields, file));
    if !fields.has("replies") && !fields.has("file") {
        fields.error(Diagnostic::at(fields.span(), "this engine needs `replies` or `file`"));
    }
    Some(Settings::Scripted { rules, file: file.map(|file| file.value), latency })
}

impl EngineStage {
    /// The backend with its files found. A hub id may be fetched here.
    async fn backend(&self, context: &Context) -> Result<Found, StageError> {
        match &self.backend {
            Settings::Scripted { rules, file, latency } => {
                let mut rules = rules.clone();
                if let Some(file) = file {
                    rules.extend(read_rules(file, context)?);
                }
                Ok(Found::Scripted(Scripted { rules, latency: *latency }))
            }
            Settings::MistralRs(settings) => {
                Ok(Found::MistralRs(self.mistralrs(settings, context).await?))
            }
        }
    }

    async fn mistralrs(
        &self,
        settings: &MistralRsSettings,
        context: &Context,
    ) -> Result<MistralRs, StageError> {
        let (weights, label) = match &settings.model {
            Model::Local(path) => {
                let full = context.root.join(path);
                let weights =
                    if full.is_dir() { Weights::Folder(full) } else { Weights::Gguf(full) };
                (weights, path.to_string())
            }
            Model::Hub { id, revision } => {
                let folder =
                    fetch(id, revision, !context.options.frozen && !context.options.offline)
                        .await?;
                (Weights::Folder(folder), format!("{id} at {revision}"))
            }
        };
        let (instances, instances_reason) = match settings.instances {
            Some(instances) => (instances, format!("{instances} instances, as the manifest says")),
            None => {
                // Half of the machine, where the manifest is silent.
                let limit = settings
                    .memory_limit_mb
                    .map_or(context.run.memory / 2, |mb| u64::from(mb) << 20);
                fitting_instances(weights.size()?, context.run.cores, limit)
            }
        };
        let dtype = settings.dtype.clone();
        Ok(MistralRs { weights, label, dtype, instances, instances_reason })
    }

    fn artifact(&self, recipe: &Recipe, backend: Box<dyn Backend>, context: &Context) -> Artifact {
        let instances = backend.instances();
        let resource = Resource::new(&self.name, recipe.clone(), backend);
        let (emit, stage) = (context.emit.clone(), self.name.clone());
        resource.on_load(move |init_ms| emit(Event::EngineLoaded { stage, init_ms, instances }));
        Artifact::Engine(context.engine(resource))
    }
}

enum Found {
    MistralRs(MistralRs),
    Scripted(Scripted),
}

impl Found {
    fn recipe(&self, context: &Context) -> Result<Recipe, StageError> {
        let recipe = Recipe::new("engine", REV);
        Ok(match self {
            Found::MistralRs(engine) => {
                engine.identify(&context.store, recipe.field("backend", "mistralrs"))?
            }
            Found::Scripted(engine) => engine.identify(recipe.field("backend", "scripted")),
        })
    }

    fn boxed(self) -> Box<dyn Backend> {
        match self {
            Found::MistralRs(engine) => Box::new(engine),
            Found::Scripted(engine) => Box::new(engine),
        }
    }
}

async fn fetch(id: &str, revision: &str, may_fetch: bool) -> Result<Utf8PathBuf, StageError> {
    let (id, revision) = (id.to_owned(), revision.to_owned());
    let work = tokio::task::spawn_blocking(move || {
        crate::engine::mistralrs::hub::snapshot(&id, &revision, may_fetch)
    });
    work.await
        .unwrap_or_else(|error| Err(format!("fetching panicked: {error}")))
        .map_err(StageError::Failed)
}

fn read_rules(file: &Utf8PathBuf, context: &Context) -> Result<Vec<Rule>, StageError> {
    let text = super::read_project_text(&context.root, file)
        .map_err(|error| StageError::User(format!("cannot read `{file}`: {error}")))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rule = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            StageError::User(format!(
                "{file}:{}:{}: this is no reply of a script: {error}",
                i + 1,
                error.column()
            ))
        })
    };
    lines.map(rule).collect()
}

impl Stage for EngineStage {
    fn needs(&self) -> &[Need] {
        &[]
    }

    fn gives(&self) -> ArtifactKind {
        ArtifactKind::Engine
    }

    fn recipe<'a>(
        &'a self,
        _: &'a Inputs,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Recipe, StageError>> {
        async move { self.backend(context).await?.recipe(context) }.boxed()
    }

    fn restore(&self, _: &Record, _: &Recipe, _: &Inputs, _: &Context) -> Option<Artifact> {
        // A resource is nothing that a store could keep: it is always made, which loads nothing.
        None
    }

    fn run<'a>(
        &'a self,
        _: &'a Inputs,
        context: &'a Context,
        _: &'a (dyn Fn(Artifact) + Send + Sync),
    ) -> BoxFuture<'a, Result<Done, StageError>> {
        async move {
            let found = self.backend(context).await?;
            let recipe = found.recipe(context)?;
            let artifact = self.artifact(&recipe, found.boxed(), context);
            let Artifact::Engine(resource) = &artifact else {
                unreachable!("BUG: it was made an engine above")
            };
            let about: Value = resource.backend.describe().into_iter().collect();
            let ports = [
                ("identity".to_owned(), Port::Inline(resource.identity.to_string().into())),
                ("about".to_owned(), Port::Inline(about)),
            ];
            Ok(Done {
                artifact,
                recipe,
                outcome: Some(Outcome::Value(ports.into())),
                worked: false,
                failure: None,
            })
        }
        .boxed()
    }

    fn runs_in_plan(&self) -> bool {
        true
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        match &self.backend {
            Settings::Scripted { file, .. } => file.iter().cloned().collect(),
            Settings::MistralRs(settings) => match &settings.model {
                Model::Local(path) => vec![path.clone()],
                Model::Hub { .. } => Vec::new(),
            },
        }
    }
}
