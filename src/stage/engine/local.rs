//! A model in this process, by mistral.rs: its fields, and where its files are.

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Declared, Found, REV};
use crate::digest::Recipe;
use crate::engine::mistralrs::{
    DTYPES, ISQ, MistralRs, Weights, fitting_instances, gguf, instance_bytes,
};
use crate::manifest::{Diagnostic, Fields, Spanned, inside};
use crate::record::Event;
use crate::stage::{Context, Setting, StageError};

/// Most instances of one model.
const INSTANCES_MAX: u32 = 64;

struct Local {
    model: Model,
    dtype: String,
    device: String,
    isq: Option<String>,
    chat_template: Option<Utf8PathBuf>,
    context_length: Option<u32>,
    prefix_cache: bool,
    max_sequences: Option<u32>,
    instances: Option<u32>,
    memory_limit_mb: Option<u32>,
}

enum Model {
    Local(Utf8PathBuf),
    Hub { id: String, revision: String, file: Option<String> },
}

pub(super) fn read(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Box<dyn Declared>> {
    let hub = fields.text("hub");
    let revision = fields.text("revision");
    let model = fields.path("model");
    let file = read_file(fields);
    let dtype = fields.choice("dtype", DTYPES).map_or("f32".to_owned(), |dtype| dtype.value);
    let device = read_device(fields);
    let isq = fields.choice("isq", ISQ);
    let chat_template = fields.path("chat_template").filter(|path| {
        let is_jinja = path.value.extension() == Some("jinja");
        if !is_jinja {
            let message = format!("`{}` is no `.jinja` file", path.value);
            fields.error(Diagnostic::at(path.span, message).hint("the engine takes no other form"));
        }
        is_jinja && setting.check_exists(fields, path)
    });
    let context_length = fields.count("context_length", 1..=u32::MAX);
    let prefix_cache = fields.boolean("prefix_cache").unwrap_or(false);
    let max_sequences = fields.count("max_sequences", 1..=4096);
    if device == "cpu" && max_sequences.is_some() {
        let message = "on CPU an instance gets one request at a time";
        fields.error(
            Diagnostic::at(fields.place("max_sequences"), message)
                .hint("`instances` makes more of it at once"),
        );
    }
    if device == "cpu" && prefix_cache {
        let message = "on CPU the prefix cache of mistral.rs never lets go of memory";
        fields.error(
            Diagnostic::at(fields.place("prefix_cache"), message)
                .hint("and answers would depend on the prompts before"),
        );
    }
    if device == "cpu" && dtype == "bf16" {
        let message = "bf16 has no matrix product on CPU";
        fields.error(Diagnostic::at(fields.place("dtype"), message).hint("f32 or f16"));
    }
    let instances = fields.count("instances", 1..=INSTANCES_MAX);
    let memory_limit_mb = fields.count("memory_limit_mb", 1..=u32::MAX);
    let model = match (model, hub) {
        (Some(model), None) => {
            if !setting.check_exists(fields, &model) || !has_parts(fields, setting, &model) {
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
            let is_commit =
                revision.value.len() == 40 && revision.value.chars().all(|c| c.is_ascii_hexdigit());
            if !is_commit {
                let message =
                    format!("`{}` is no commit, and what it means may change", revision.value);
                let hint =
                    "pin the commit: 40 hexadecimal digits, as the hub shows them in its history";
                fields.error(Diagnostic::at(revision.span, message).hint(hint));
                return None;
            }
            Model::Hub { id: id.value, revision: revision.value, file }
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
    let is_gguf = match &model {
        Model::Local(path) => path.extension() == Some("gguf"),
        Model::Hub { file, .. } => file.is_some(),
    };
    if let Some(isq) = isq.as_ref().filter(|_| is_gguf) {
        let message = "a GGUF file is quantised already";
        fields.error(Diagnostic::at(isq.span, message).hint("`isq` is for safetensors"));
    }
    Some(Box::new(Local {
        model,
        dtype,
        device,
        isq: isq.map(|isq| isq.value),
        chat_template: chat_template.map(|path| path.value),
        context_length,
        prefix_cache,
        max_sequences,
        instances,
        memory_limit_mb,
    }))
}

/// Whether all files of a model in parts are there.
fn has_parts(fields: &Fields<'_>, setting: &Setting<'_>, model: &Spanned<Utf8PathBuf>) -> bool {
    let parts = match gguf::parts(model.value.as_str()) {
        Ok(parts) => parts,
        Err(message) => {
            fields.error(Diagnostic::at(model.span, message));
            return false;
        }
    };
    let is_there = |part: &&String| setting.root.join(part.as_str()).exists();
    let Some(lacks) = parts.iter().find(|part| !is_there(part)) else { return true };
    let message = format!(
        "`{}` is the first of {} files of a model, and `{lacks}` is not there",
        model.value,
        parts.len()
    );
    fields.error(Diagnostic::at(model.span, message).hint("all parts have to lie in one folder"));
    false
}

/// The GGUF file of a repository of the hub, or the first of its parts.
fn read_file(fields: &Fields<'_>) -> Option<String> {
    let file = fields.text("file")?;
    let fail = |message: String, hint: &str| {
        fields.error(Diagnostic::at(file.span, message).hint(hint));
    };
    if !fields.has("hub") {
        let hint = "a file of this machine is named by `model`";
        fail("`file` names a file of a repository of the hub".to_owned(), hint);
    } else if !file.value.ends_with(".gguf") || inside(Utf8Path::new(&file.value)).is_none() {
        let hint = "safetensors are taken as a whole repository, without `file`";
        fail(format!("`{}` is no GGUF file of a repository", file.value), hint);
    } else if let Err(message) = gguf::parts(&file.value) {
        fail(message, "its other parts are fetched as well");
    }
    Some(file.value)
}

fn read_device(fields: &Fields<'_>) -> String {
    let Some(device) = fields.text("device") else { return "cpu".to_owned() };
    let number = device.value.strip_prefix("cuda:").map(str::parse::<u8>);
    if !matches!(device.value.as_str(), "cpu" | "cuda" | "metal") && !matches!(number, Some(Ok(_)))
    {
        let message =
            format!("unknown device `{}` (known: cpu, cuda, cuda:<n>, metal)", device.value);
        fields.error(Diagnostic::at(device.span, message));
    }
    match device.value.as_str() {
        "cuda" => "cuda:0".to_owned(),
        _ => device.value,
    }
}

impl Local {
    async fn mistralrs(&self, stage: &str, context: &Context) -> Result<MistralRs, StageError> {
        let settings = self;
        let (weights, label) = match &settings.model {
            Model::Local(path) => {
                let full = context.root.join(path);
                let weights =
                    if full.is_dir() { Weights::Folder(full) } else { Weights::Gguf(full) };
                (weights, path.to_string())
            }
            Model::Hub { id, revision, file } => {
                let may_fetch = !context.options.frozen && !context.options.offline;
                let (emit, stage) = (context.emit.clone(), stage.to_owned());
                let tell =
                    move |message| emit(Event::EngineLoading { stage: stage.clone(), message });
                let folder = fetch(id, revision, file.as_deref(), may_fetch, tell).await?;
                let (weights, label) = match file {
                    Some(file) => (Weights::Gguf(folder.join(file)), format!("{id}/{file}")),
                    None => (Weights::Folder(folder), id.clone()),
                };
                if let Some(damage) = weights.damage(&context.store)? {
                    let message =
                        format!("{damage}; remove it, and `forge apply` fetches it again");
                    return Err(StageError::User(message));
                }
                (weights, format!("{label} at {revision}"))
            }
        };
        let is_gguf = matches!(weights, Weights::Gguf(_));
        let each = instance_bytes(weights.size()?, is_gguf, &self.dtype);
        let (instances, instances_reason) = match settings.instances {
            None if settings.device != "cpu" => (1, "one instance on an accelerator".to_owned()),
            Some(instances) => (instances, format!("{instances} instances, as the manifest says")),
            None => {
                // Half of the machine, where the manifest is silent.
                let limit = settings
                    .memory_limit_mb
                    .map_or(context.run.memory / 2, |mb| u64::from(mb) << 20);
                fitting_instances(each, context.run.cores, limit)
            }
        };
        if let Some(mb) = settings.memory_limit_mb {
            check_memory(each, instances, mb)
                .map_err(|why| StageError::User(format!("`{stage}`: {why}")))?;
        }
        let template = self.chat_template.as_ref().map(|path| context.resolve(path)).transpose()?;
        Ok(MistralRs {
            weights,
            label,
            dtype: self.dtype.clone(),
            device: self.device.clone(),
            isq: self.isq.clone(),
            chat_template: template,
            context_length: self.context_length,
            prefix_cache: self.prefix_cache,
            max_sequences: self.max_sequences,
            instance_bytes: each,
            instances,
            instances_reason,
        })
    }
}

/// Whether that many instances of `each` bytes stay within the limit of a manifest.
fn check_memory(each: u64, instances: u32, limit_mb: u32) -> Result<(), String> {
    let limit = u64::from(limit_mb) << 20;
    if each * u64::from(instances) <= limit {
        return Ok(());
    }
    let mb = |bytes: u64| bytes.div_ceil(1 << 20);
    let hint = match limit / each {
        0 => "not even one fits: raise it, or take a smaller model or `dtype`".to_owned(),
        n => format!("{n} would fit: raise it, or set `instances = {n}`"),
    };
    Err(format!(
        "{instances} × {} MiB of the model are more than `memory_limit_mb = {limit_mb}`; {hint}",
        mb(each)
    ))
}

impl Declared for Local {
    fn found<'a>(
        &'a self,
        stage: &'a str,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Found, StageError>> {
        async move {
            let engine = self.mistralrs(stage, context).await?;
            let recipe = Recipe::new("engine", REV).field("backend", "mistralrs");
            let recipe = engine.identify(&context.store, recipe)?;
            Ok(Found { backend: Box::new(engine), recipe })
        }
        .boxed()
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        let model = match &self.model {
            Model::Local(path) => gguf::parts(path.as_str()).unwrap_or_default(),
            Model::Hub { .. } => Vec::new(),
        };
        let model = model.into_iter().map(Utf8PathBuf::from);
        model.chain(self.chat_template.clone()).collect()
    }
}

async fn fetch(
    id: &str,
    revision: &str,
    file: Option<&str>,
    may_fetch: bool,
    tell: impl Fn(String) + Send + Sync + 'static,
) -> Result<Utf8PathBuf, StageError> {
    let (id, revision, file) = (id.to_owned(), revision.to_owned(), file.map(str::to_owned));
    let work = tokio::task::spawn_blocking(move || {
        crate::engine::mistralrs::hub::snapshot(&id, &revision, file.as_deref(), may_fetch, &tell)
    });
    work.await
        .unwrap_or_else(|error| Err(format!("fetching panicked: {error}")))
        .map_err(StageError::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_cannot_be_kept_is_refused() {
        let check = |each_mb: u64, instances, limit| check_memory(each_mb << 20, instances, limit);
        assert_eq!(check(100, 3, 300), Ok(()));
        let error = check(100, 4, 399).unwrap_err();
        assert!(error.contains("4 × 100 MiB") && error.contains("`instances = 3`"), "{error}");
        assert!(check(100, 1, 99).unwrap_err().contains("not even one"));
    }
}
