//! `command`: any program with declared inputs, outputs and environment. Knows nothing of what it does.
//!
//! The program runs in an empty folder of its own, where its inputs are laid out and its outputs are
//! looked for; it sees no other variable of the environment than `PATH` and those declared. So what it
//! depends on is what its key is made of, as far as a process that is not jailed can be held to that.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::child::{Group, tail};
use super::{
    Artifact, ArtifactKind, Context, Done, Files, Inputs, Need, Setting, Stage, StageError, View,
};
use crate::digest::{Digest, Recipe};
use crate::manifest::{Diagnostic, Fields, Spanned, inside};
use crate::store::{Outcome, Port, Record, replace_file};

/// Version of how programs are run.
const REV: u32 = 1;
/// Time where the manifest is silent.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// The port that says which outputs are programs.
const EXECUTABLE: &str = "(executable)";
/// Bytes of its talk that an error shows.
const TALK_MAX: usize = 2000;

struct Command {
    needs: Vec<Need>,
    command: Vec<String>,
    shell: bool,
    files: Vec<Utf8PathBuf>,
    outputs: Vec<Spanned<Utf8PathBuf>>,
    env: BTreeMap<String, String>,
    pass_env: Vec<String>,
    timeout: Duration,
}

pub(super) fn read(_: &str, fields: Fields<'_>, setting: &Setting<'_>) -> Option<Box<dyn Stage>> {
    use ArtifactKind::{Files, Flows, Samples};
    let needs = super::needs(&fields, "inputs", &[Flows, Samples, Files]);
    if !fields.has("command") {
        fields.needed_text("command");
    }
    let shell = fields.boolean("shell").unwrap_or(false);
    let place = fields.place("command");
    let command: Vec<String> =
        fields.texts("command").unwrap_or_default().into_iter().map(|text| text.value).collect();
    if shell && command.len() != 1 && fields.has("command") {
        fields.error(Diagnostic::at(place, "with `shell = true`, `command` is one string"));
    } else if !shell && command.len() == 1 && command[0].contains(' ') {
        let hint = "write it as a list, [\"program\", \"argument\"], or add `shell = true`";
        fields.error(
            Diagnostic::at(place, format!("there is no program `{}`", command[0])).hint(hint),
        );
    } else if command.is_empty() && fields.has("command") {
        fields.error(Diagnostic::at(place, "`command` is empty"));
    }
    let files = fields.paths("files").unwrap_or_default();
    let files: Vec<_> = files
        .into_iter()
        .filter(|path| setting.check_exists(&fields, path))
        .map(|p| p.value)
        .collect();
    let outputs = fields.paths("outputs").unwrap_or_default();
    if outputs.is_empty() && !fields.has("outputs") {
        let message = "a command needs `outputs`: the files that it writes";
        fields.error(Diagnostic::at(fields.place("outputs"), message));
    }
    let env = fields.text_table("env").unwrap_or_default();
    let env = env.into_iter().map(|(name, text)| (name, text.value)).collect();
    let pass_env = fields.texts("pass_env").unwrap_or_default();
    let pass_env = pass_env.into_iter().map(|text| text.value).collect();
    let timeout = fields.duration("timeout").unwrap_or(TIMEOUT);
    fields.finish();
    Some(Box::new(Command { needs, command, shell, files, outputs, env, pass_env, timeout }))
}

impl Command {
    /// What stands in the program's folder: declared files, and the results of other stages.
    ///
    /// With `whole`, the content of the files is made sure of: it is about to be used.
    async fn layout(
        &self,
        inputs: &Inputs,
        context: &Context,
        whole: bool,
    ) -> Result<Layout, StageError> {
        let mut layout = Layout::default();
        for path in &self.files {
            let full = context.resolve(path)?;
            if full.is_dir() {
                let message =
                    format!("`{path}` is a folder; name the files that the command reads");
                return Err(StageError::User(message));
            }
            let digest = match whole {
                true => context.store.import_whole(&full)?,
                false => context.store.import(&full)?,
            };
            layout.add(path.to_string(), digest, is_executable(&full))?;
        }
        for input in inputs.all("inputs") {
            match &input.artifact {
                Artifact::Files(files) => {
                    for (path, digest) in &files.files {
                        layout.add(path.clone(), *digest, files.executable.contains(path))?;
                    }
                }
                Artifact::Samples(samples) => {
                    layout.add(format!("{}.samples.jsonl", input.stage), samples.table, false)?;
                }
                Artifact::Flows(flows) => {
                    let digest = flows.digest().await?;
                    layout.add(format!("{}.flows.jsonl", input.stage), digest, false)?;
                }
                Artifact::Template(_) | Artifact::Engine(_) => {
                    unreachable!("BUG: the graph lets no such input in here")
                }
            }
        }
        Ok(layout)
    }

    fn recipe_of(&self, layout: &Layout) -> Recipe {
        let outputs: Vec<_> = self.outputs.iter().map(|path| path.value.to_string()).collect();
        let executable: Vec<_> = layout.executable.iter().cloned().collect();
        let recipe = Recipe::new("command", REV)
            .field("command", self.command.clone())
            .field("shell", self.shell)
            .field("outputs", outputs)
            .field("executable", executable)
            // Of a variable passed through, the name counts and not the value: it may be a secret.
            .field("pass_env", self.pass_env.clone());
        let recipe = self.env.iter().fold(recipe, |recipe, (name, value)| {
            recipe.field(&format!("env {name}"), value.as_str())
        });
        layout
            .files
            .iter()
            .fold(recipe, |recipe, (path, digest)| recipe.input(path.clone(), *digest))
    }

    fn process(&self, folder: &Utf8Path, context: &Context) -> tokio::process::Command {
        let mut process = match self.shell {
            true => {
                let mut process = tokio::process::Command::new("sh");
                process.arg("-c").arg(&self.command[0]);
                process
            }
            false => {
                let mut process = tokio::process::Command::new(&self.command[0]);
                process.args(&self.command[1..]);
                process
            }
        };
        process.current_dir(folder).env_clear().stdin(Stdio::null());
        // In a group of its own, so that what it starts ends with it.
        process.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in ["PATH"].into_iter().chain(self.pass_env.iter().map(String::as_str)) {
            if let Some(value) = (context.env)(name) {
                process.env(name, value);
            }
        }
        process.envs(&self.env);
        process
    }
}

impl Stage for Command {
    fn needs(&self) -> &[Need] {
        &self.needs
    }

    fn gives(&self) -> ArtifactKind {
        ArtifactKind::Files
    }

    fn recipe<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Recipe, StageError>> {
        async move { Ok(self.recipe_of(&self.layout(inputs, context, false).await?)) }.boxed()
    }

    fn restore(
        &self,
        record: &Record,
        _: &Recipe,
        _: &Inputs,
        context: &Context,
    ) -> Option<Artifact> {
        let mut files = Files::default();
        for path in &self.outputs {
            let digest = record.blob(path.value.as_str())?;
            if !context.store.has_blob(digest) {
                return None;
            }
            files.files.insert(path.value.to_string(), digest);
        }
        let names = record.inline(EXECUTABLE)?.as_array()?.iter();
        files.executable = names.filter_map(|name| name.as_str().map(str::to_owned)).collect();
        Some(Artifact::Files(files))
    }

    fn run<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
        _: &'a (dyn Fn(Artifact) + Send + Sync),
    ) -> BoxFuture<'a, Result<Done, StageError>> {
        async move {
            let _turn = tokio::select! {
                turn = context.programs.acquire() => turn,
                () = context.stop.cancelled() => return Err(StageError::Cancelled),
            };
            let dir = tempfile::Builder::new()
                .prefix("forge-command-")
                .tempdir()
                .map_err(|error| StageError::Failed(format!("cannot make a folder: {error}")))?;
            let folder = Utf8Path::from_path(dir.path()).ok_or_else(|| {
                StageError::Failed("the temporary folder is not UTF-8".to_owned())
            })?;
            let layout = self.layout(inputs, context, true).await?;
            let recipe = self.recipe_of(&layout);
            layout.write(folder, context)?;
            for path in &self.outputs {
                if let Some(parent) = folder.join(&path.value).parent() {
                    let made = std::fs::create_dir_all(parent);
                    made.map_err(|error| {
                        StageError::Failed(format!("cannot make a folder: {error}"))
                    })?;
                }
            }
            let shown = self.command.join(" ");
            let output = self.output(folder, &shown, context).await?;
            let stdout = context.store.put_blob(&output.stdout)?;
            let stderr = context.store.put_blob(&output.stderr)?;
            if !output.status.success() {
                let talk = tail(&output.stderr, TALK_MAX);
                let kept = context.store.blob_path(stderr);
                return Err(StageError::Failed(format!(
                    "`{shown}` ended with {}\n{talk}\n(all of its stderr: {kept})",
                    output.status
                )));
            }
            let mut ports: BTreeMap<String, Port> = [
                ("stdout".to_owned(), Port::Blob(stdout)),
                ("stderr".to_owned(), Port::Blob(stderr)),
            ]
            .into();
            let mut files = Files::default();
            for path in &self.outputs {
                let bytes = std::fs::read(folder.join(&path.value)).map_err(|error| {
                    let why = super::plain(&error);
                    StageError::Failed(format!("`{shown}` did not write `{}`: {why}", path.value))
                })?;
                let digest = context.store.put_blob(&bytes)?;
                files.files.insert(path.value.to_string(), digest);
                if is_executable(&folder.join(&path.value)) {
                    files.executable.insert(path.value.to_string());
                }
                ports.insert(path.value.to_string(), Port::Blob(digest));
            }
            let executable = files.executable.iter().map(String::as_str).collect();
            ports.insert(EXECUTABLE.to_owned(), Port::Inline(executable));
            Ok(Done {
                artifact: Artifact::Files(files),
                recipe,
                outcome: Some(Outcome::Value(ports)),
                worked: true,
                failure: None,
            })
        }
        .boxed()
    }

    fn views(&self, artifact: &Artifact, _: &Context) -> Vec<View> {
        let Artifact::Files(files) = artifact else { return Vec::new() };
        let view = |(path, digest): (&String, &Digest)| View {
            path: path.into(),
            digest: *digest,
            executable: files.executable.contains(path),
        };
        files.files.iter().map(view).collect()
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        self.files.clone()
    }

    fn outputs(&self) -> Vec<Spanned<Utf8PathBuf>> {
        self.outputs.clone()
    }
}

/// What stands in the folder of a program.
#[derive(Default)]
struct Layout {
    files: BTreeMap<String, Digest>,
    executable: BTreeSet<String>,
}

impl Layout {
    fn add(&mut self, path: String, digest: Digest, executable: bool) -> Result<(), StageError> {
        if self.files.contains_key(&path) {
            return Err(StageError::User(format!("two inputs of the command are named `{path}`")));
        }
        if executable {
            self.executable.insert(path.clone());
        }
        self.files.insert(path, digest);
        Ok(())
    }

    fn write(&self, folder: &Utf8Path, context: &Context) -> Result<(), StageError> {
        for (path, digest) in &self.files {
            let gone = || StageError::Failed(format!("`{path}` is gone from the store; run again"));
            let path = folder.join(inside(Utf8Path::new(path)).ok_or_else(gone)?);
            replace_file(&path, &context.store.blob(*digest).ok_or_else(gone)?)?;
        }
        for path in &self.executable {
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(folder.join(path), mode)
                .map_err(|error| StageError::Failed(format!("cannot lay out `{path}`: {error}")))?;
        }
        Ok(())
    }
}

fn is_executable(path: &Utf8Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0)
}

impl Command {
    /// Runs the program to its end; a time-out or an interrupt ends it with all that it started.
    async fn output(
        &self,
        folder: &Utf8Path,
        shown: &str,
        context: &Context,
    ) -> Result<Output, StageError> {
        let child = self.process(folder, context).spawn().map_err(|error| {
            StageError::User(format!("cannot start `{shown}`: {}", super::plain(&error)))
        })?;
        let group = Group(child.id());
        let ended = tokio::select! {
            ended = tokio::time::timeout(self.timeout, child.wait_with_output()) => ended,
            () = context.stop.cancelled() => return Err(StageError::Cancelled),
        };
        drop(group);
        match ended {
            Err(_) => {
                let limit = humantime::format_duration(self.timeout);
                Err(StageError::Failed(format!("`{shown}` did not end within {limit}")))
            }
            Ok(Err(error)) => Err(StageError::Failed(format!("`{shown}` was lost: {error}"))),
            Ok(Ok(output)) => Ok(output),
        }
    }
}
