//! A server that forge starts: its command, and the files that the command names.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::endpoint::{Endpoint, read_common};
use super::{Declared, Found, REV};
use crate::digest::{Digest, Recipe};
use crate::engine::process::{PORT, Process};
use crate::manifest::{Diagnostic, Fields, inside};
use crate::stage::{Context, Setting, StageError};

/// Time to get ready where the manifest is silent: large models load for minutes.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(600);
/// Variables that a server sees besides those that the manifest names: without them few programs find
/// their own files, the models that are here already, or the accelerators that are theirs.
const ENV: &[&str] = &[
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "TRANSFORMERS_CACHE",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
];

struct Started {
    command: Vec<String>,
    files: Vec<Utf8PathBuf>,
    env: BTreeMap<String, String>,
    pass_env: Vec<String>,
    health: String,
    base_path: String,
    startup_timeout: Duration,
    endpoint: Endpoint,
}

pub(super) fn read(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Box<dyn Declared>> {
    let words = fields.texts("command");
    if words.is_none() && !fields.has("command") {
        let hint = "`command = [\"llama-server\", \"-m\", \"model.gguf\", \"--port\", \"{port}\"]`";
        fields.error(Diagnostic::at(fields.span(), "this engine needs `command`").hint(hint));
    }
    if let Some(words) = &words
        && !words.iter().any(|word| word.value.contains(PORT))
    {
        let message = format!("the command does not say where its port goes: `{PORT}`");
        let hint = "forge chooses a free port and puts it there";
        fields.error(Diagnostic::at(fields.place("command"), message).hint(hint));
    }
    let files = fields.paths("files").unwrap_or_default();
    let files: Vec<_> = files
        .into_iter()
        .filter(|path| setting.check_exists(fields, path))
        .map(|path| path.value)
        .collect();
    let env = fields.text_table("env").unwrap_or_default();
    let path = |name, default: &str| {
        fields.text(name).map_or_else(|| default.to_owned(), |text| text.value)
    };
    let (health, base_path) = (path("health", "/health"), path("base_path", "/v1"));
    let startup_timeout = fields.duration("startup_timeout").unwrap_or(STARTUP_TIMEOUT);
    let pass_env = fields.texts("pass_env").unwrap_or_default();
    let mut endpoint = read_common(fields, setting)?;
    let command: Vec<String> = words?.into_iter().map(|word| word.value).collect();
    if !command.iter().any(|word| word.contains(PORT)) {
        return None;
    }
    if endpoint.openai.provider.is_empty() {
        endpoint.openai.provider = "process".to_owned();
    }
    Some(Box::new(Started {
        command,
        files,
        env: env.into_iter().map(|(name, text)| (name, text.value)).collect(),
        pass_env: pass_env.into_iter().map(|text| text.value).collect(),
        health,
        base_path,
        startup_timeout,
        endpoint,
    }))
}

impl Started {
    /// Files of the project that the command reads: those declared, and every word that is one.
    fn inputs(&self, root: &Utf8Path) -> Vec<Utf8PathBuf> {
        let words = self.command.iter().flat_map(|word| [Some(word.as_str()), after_equals(word)]);
        let words = words.flatten().filter_map(|word| inside(Utf8Path::new(word)));
        let named = words.filter(|path| !path.as_str().is_empty() && root.join(path).exists());
        let mut files: Vec<_> = self.files.iter().cloned().chain(named).collect();
        files.sort();
        files.dedup();
        files
    }

    fn process(&self, stage: &str, context: &Context) -> Result<Process, StageError> {
        let mut files: BTreeMap<String, Digest> = BTreeMap::new();
        for path in self.inputs(&context.root) {
            let full = context.resolve(&path)?;
            for (name, file) in files_in(&path, &full)? {
                files.insert(name, context.store.digest_of_file(&file)?);
            }
        }
        // A model may lie elsewhere, in a file or in a folder as transformers keeps it; it decides the answers all the
        // same.
        let words =
            self.command.iter().skip(1).flat_map(|word| [Some(word.as_str()), after_equals(word)]);
        for path in words.flatten().map(Utf8Path::new).filter(|path| inside(path).is_none()) {
            let full = context.root.join(path);
            if full.is_file() {
                files.insert(path.to_string(), context.store.digest_of_file(&full)?);
            } else if full.join("config.json").is_file() {
                for (name, file) in files_in(path, &full)? {
                    files.insert(name, context.store.digest_of_file(&file)?);
                }
            }
        }
        let passed = ENV.iter().copied().chain(self.pass_env.iter().map(String::as_str));
        let mut env: BTreeMap<String, String> =
            passed.filter_map(|name| Some((name.to_owned(), (context.env)(name)?))).collect();
        env.extend(self.env.clone());
        let file: String =
            stage.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        Ok(Process {
            command: self.command.clone(),
            folder: context.root.clone(),
            env,
            files,
            health: self.health.clone(),
            base_path: self.base_path.clone(),
            startup_timeout: self.startup_timeout,
            log: context
                .store
                .root()
                .join("runs")
                .join(&context.run.id)
                .join(format!("{file}.log")),
            openai: self.endpoint.complete(context)?,
        })
    }
}

/// The value of `--model=path`.
fn after_equals(word: &str) -> Option<&str> {
    Some(word.split_once('=')?.1)
}

/// A file, or the files of a folder by name.
fn files_in(path: &Utf8Path, full: &Utf8Path) -> Result<Vec<(String, Utf8PathBuf)>, StageError> {
    if !full.is_dir() {
        return Ok(vec![(path.to_string(), full.to_owned())]);
    }
    let fail = |error: std::io::Error| StageError::User(format!("cannot read `{path}`: {error}"));
    let mut files = Vec::new();
    for entry in full.read_dir_utf8().map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.path().is_file() {
            files.push((path.join(entry.file_name()).to_string(), entry.into_path()));
        }
    }
    files.sort();
    Ok(files)
}

impl Declared for Started {
    fn found<'a>(
        &'a self,
        stage: &'a str,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Found, StageError>> {
        async move {
            let process = self.process(stage, context)?;
            let recipe = Recipe::new("engine", REV).field("backend", "process");
            let recipe = process
                .identify(recipe)
                .field("env", (!self.env.is_empty()).then(|| Digest::of_json(&self.env)));
            Ok(Found { backend: Box::new(process), recipe })
        }
        .boxed()
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        self.files.iter().cloned().chain(self.endpoint.files()).collect()
    }
}
