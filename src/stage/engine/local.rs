//! A model in this process, by mistral.rs: its fields, and where its files are.

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Declared, Found, REV};
use crate::digest::Recipe;
use crate::engine::mistralrs::{DTYPES, MistralRs, Weights, fitting_instances};
use crate::manifest::{Diagnostic, Fields};
use crate::stage::{Context, Setting, StageError};

/// Most instances of one model.
const INSTANCES_MAX: u32 = 64;

struct Local {
    model: Model,
    dtype: String,
    instances: Option<u32>,
    memory_limit_mb: Option<u32>,
}

enum Model {
    Local(Utf8PathBuf),
    Hub { id: String, revision: String },
}

pub(super) fn read(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Box<dyn Declared>> {
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
    Some(Box::new(Local { model, dtype, instances, memory_limit_mb }))
}

impl Local {
    async fn mistralrs(&self, context: &Context) -> Result<MistralRs, StageError> {
        let settings = self;
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
}

impl Declared for Local {
    fn found<'a>(
        &'a self,
        _: &'a str,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Found, StageError>> {
        async move {
            let engine = self.mistralrs(context).await?;
            let recipe = Recipe::new("engine", REV).field("backend", "mistralrs");
            let recipe = engine.identify(&context.store, recipe)?;
            Ok(Found { backend: Box::new(engine), recipe })
        }
        .boxed()
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        match &self.model {
            Model::Local(path) => vec![path.clone()],
            Model::Hub { .. } => Vec::new(),
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
