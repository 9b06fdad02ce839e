//! `engine`: something that answers requests. Each backend reads its own fields in a file of its own.
//! Knows nothing of what is asked.

use std::sync::Arc;

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{Artifact, ArtifactKind, Context, Done, Inputs, Need, Setting, Stage, StageError};
use crate::digest::Recipe;
use crate::engine::{Backend, Resource};
use crate::manifest::Fields;
use crate::record::Event;
use crate::store::{Outcome, Port, Record};

mod endpoint;
mod local;
mod process;
mod scripted;

/// Version of what an engine stage means.
const REV: u32 = 1;

/// A backend as a manifest declares it.
trait Declared: Send + Sync {
    /// The backend with its files found, and its recipe. What has to be fetched may be fetched here.
    fn found<'a>(
        &'a self,
        stage: &'a str,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Found, StageError>>;

    /// What it reads of the project.
    fn reads(&self) -> Vec<Utf8PathBuf>;
}

/// A backend, and what decides its answers.
struct Found {
    backend: Box<dyn Backend>,
    recipe: Recipe,
}

type ReadBackend = fn(&Fields<'_>, &Setting<'_>) -> Option<Box<dyn Declared>>;

/// Every backend. To add one: a file, its `mod` line, its line here. The first is the default.
const BACKENDS: &[(&str, ReadBackend)] = &[
    ("mistralrs", local::read),
    ("openai", endpoint::read),
    ("process", process::read),
    ("scripted", scripted::read),
];

struct EngineStage {
    name: String,
    backend: Box<dyn Declared>,
}

pub(super) fn read(
    name: &str,
    fields: Fields<'_>,
    setting: &Setting<'_>,
) -> Option<Box<dyn Stage>> {
    let known: Vec<&str> = BACKENDS.iter().map(|(name, _)| *name).collect();
    let chosen = match fields.choice("backend", &known) {
        Some(backend) => backend.value,
        // Which fields are known depends on the backend, so there is no more to say.
        None if fields.has("backend") => return None,
        None => known[0].to_owned(),
    };
    let read = BACKENDS.iter().find(|(name, _)| *name == chosen).map(|(_, read)| read);
    let backend = read.expect("BUG: a backend that is not in the table")(&fields, setting);
    fields.finish();
    Some(Box::new(EngineStage { name: name.to_owned(), backend: backend? }))
}

impl EngineStage {
    fn artifact(&self, found: Found, context: &Context) -> Artifact {
        let instances = found.backend.instances();
        let resource = Resource::new(&self.name, found.recipe, found.backend);
        let (emit, stage) = (context.emit.clone(), self.name.clone());
        resource.on_load(move |init_ms, notices| {
            emit(Event::EngineLoaded { stage: stage.clone(), init_ms, instances });
            for message in notices {
                emit(Event::Notice { stage: Some(stage.clone()), message });
            }
        });
        if resource.backend.price().is_some() && !resource.backend.bounds_replies() {
            let message =
                "it leaves out `max_tokens`: a reply may cost more than a plan says".to_owned();
            (context.emit)(Event::Notice { stage: Some(self.name.clone()), message });
        }
        let (emit, stage) = (context.emit.clone(), self.name.clone());
        resource.on_progress(Arc::new(move |message| {
            emit(Event::EngineLoading { stage: stage.clone(), message });
        }));
        Artifact::Engine(context.engine(resource))
    }
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
        async move { Ok(self.backend.found(&self.name, context).await?.recipe) }.boxed()
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
            let found = self.backend.found(&self.name, context).await?;
            let recipe = found.recipe.clone();
            let artifact = self.artifact(found, context);
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
        self.backend.reads()
    }
}
