//! A program that an agent can call. It gets the arguments as JSON on its standard input, and what it prints is
//! the answer. Knows nothing of what it does.
//!
//! It runs without a shell, in an empty folder of its own that holds the files that it declares, and sees no
//! variable of the environment but `PATH` and those that are named. It is a process like any other beyond that:
//! nothing keeps it from the network or from the files of its user.

use std::os::unix::fs::PermissionsExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::digest::{Digest, Recipe};
use crate::manifest::{Diagnostic, Fields};
use crate::sample::ToolSpec;
use crate::stage::child::Group;
use crate::stage::{Context, Setting, StageError, plain};
use crate::store::{Store, replace_file};
use crate::tool::parameters::{self, Parameter, TYPES};
use crate::tool::{self, Answers, Observation, Tool, ToolError, limited};

/// Version of how programs are called.
const REV: u32 = 1;
/// Time of a call where the manifest is silent.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of its complaints that are shown to the model.
const TALK_MAX: u64 = 1000;
/// Bytes that a character of an answer may take.
const BYTES_MAX: usize = 4;

/// As a manifest declares it.
pub(super) struct Declared {
    description: String,
    command: Vec<String>,
    pub(super) files: Vec<Utf8PathBuf>,
    env: Vec<(String, String)>,
    pass_env: Vec<String>,
    parameters: Vec<Parameter>,
    deterministic: bool,
    timeout: Duration,
    output_limit: u32,
}

pub(super) fn read(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Declared> {
    let description = fields.needed_text("description");
    if !fields.has("command") {
        fields.needed_text("command");
    }
    let command: Vec<String> =
        fields.texts("command").unwrap_or_default().into_iter().map(|text| text.value).collect();
    let place = fields.place("command");
    match command.first() {
        Some(program) if command.len() == 1 && program.contains(' ') => {
            let hint = "write it as a list, [\"program\", \"argument\"]; there is no shell";
            fields.error(
                Diagnostic::at(place, format!("there is no program `{program}`")).hint(hint),
            );
        }
        None if fields.has("command") => {
            fields.error(Diagnostic::at(place, "`command` is empty"));
        }
        _ => {}
    }
    let all = fields.paths("files").unwrap_or_default().into_iter();
    let files: Vec<_> = all
        .filter(|path| {
            let is_folder = setting.root.join(&path.value).is_dir();
            if is_folder {
                let message = format!("`{}` is a folder; name the files in it", path.value);
                fields.error(Diagnostic::at(path.span, message));
            }
            !is_folder && setting.check_exists(fields, path)
        })
        .map(|path| path.value)
        .collect();
    // What stands in the project is only there if it is declared.
    if let Some(program) = command.first().filter(|program| program.contains('/'))
        && !program.starts_with('/')
        && !files.iter().any(|file| file == Utf8Path::new(program.trim_start_matches("./")))
    {
        let hint = format!("add `files = [\"{}\"]`", program.trim_start_matches("./"));
        let message = format!("the program `{program}` is not among its `files`");
        fields.error(Diagnostic::at(place, message).hint(hint));
    }
    let env = fields.text_table("env").unwrap_or_default().into_iter();
    let pass_env = fields.texts("pass_env").unwrap_or_default().into_iter();
    let declared = Declared {
        env: env.map(|(name, text)| (name, text.value)).collect(),
        pass_env: pass_env.map(|text| text.value).collect(),
        parameters: read_parameters(fields),
        deterministic: fields.boolean("deterministic").unwrap_or(true),
        timeout: fields.duration("timeout").unwrap_or(TIMEOUT),
        output_limit: super::read_output_limit(fields),
        description: description?.value,
        command,
        files,
    };
    (!declared.command.is_empty()).then_some(declared)
}

/// The table `parameters`; without it there is one text, `input`.
fn read_parameters(fields: &Fields<'_>) -> Vec<Parameter> {
    let mut all = Vec::new();
    for (name, table) in fields.named_tables("parameters") {
        let kind = table.choice("type", TYPES);
        if kind.is_none() && !table.has("type") {
            table.needed_text("type");
        }
        all.push(Parameter {
            name: name.value,
            kind: kind.map_or_else(|| TYPES[0].to_owned(), |kind| kind.value),
            description: table.text("description").map(|text| text.value),
            optional: table.boolean("optional").unwrap_or(false),
        });
        table.finish();
    }
    if all.is_empty() {
        let (name, kind) = ("input".to_owned(), TYPES[0].to_owned());
        all.push(Parameter { name, kind, description: None, optional: false });
    }
    all
}

impl Declared {
    pub(super) fn build(&self, name: &str, context: &Context) -> Result<Command, StageError> {
        let mut files = Vec::new();
        for path in &self.files {
            let full = context.resolve(path)?;
            let digest = context.store.import_whole(&full)?;
            let mode = std::fs::metadata(&full).map(|meta| meta.permissions().mode());
            files.push((path.to_string(), digest, mode.is_ok_and(|mode| mode & 0o111 != 0)));
        }
        files.sort();
        let passed = ["PATH"].into_iter().chain(self.pass_env.iter().map(String::as_str));
        let passed = passed.filter_map(|name| Some((name.to_owned(), (context.env)(name)?)));
        Ok(Command {
            name: name.to_owned(),
            description: self.description.clone(),
            command: self.command.clone(),
            files,
            passed: passed.collect(),
            env: self.env.clone(),
            pass_env: self.pass_env.clone(),
            parameters: self.parameters.clone(),
            deterministic: self.deterministic,
            timeout: self.timeout,
            output_limit: self.output_limit as usize,
            store: context.store.clone(),
            turns: Arc::new(Semaphore::new(context.run.cores.max(1) as usize)),
        })
    }
}

/// The tool.
pub(super) struct Command {
    name: String,
    description: String,
    command: Vec<String>,
    /// Path, content, and whether it is a program.
    files: Vec<(String, Digest, bool)>,
    /// Variables of the environment with their values, which reach no key.
    passed: Vec<(String, String)>,
    env: Vec<(String, String)>,
    pass_env: Vec<String>,
    parameters: Vec<Parameter>,
    deterministic: bool,
    timeout: Duration,
    output_limit: usize,
    store: Arc<Store>,
    /// One program for each core at once.
    turns: Arc<Semaphore>,
}

/// What a program said.
struct Said {
    output: Vec<u8>,
    talk: Vec<u8>,
    /// `None` where it had said enough and was ended.
    status: Option<ExitStatus>,
}

impl Command {
    async fn run(&self, input: &str) -> Result<Observation, ToolError> {
        let arguments = match parameters::read(&self.parameters, input) {
            Ok(arguments) => arguments,
            Err(reason) => return Ok(Observation::error(reason)),
        };
        let lost = |error: std::io::Error| ToolError(format!("it was lost: {error}"));
        let _turn = self.turns.acquire().await.map_err(|error| ToolError(error.to_string()))?;
        let folder = tempfile::Builder::new().prefix("forge-tool-").tempdir().map_err(lost)?;
        let path = Utf8Path::from_path(folder.path())
            .ok_or_else(|| ToolError("the temporary folder is not UTF-8".to_owned()))?;
        self.lay_out(path)?;
        let arguments = serde_json::to_vec(&arguments).expect("BUG: arguments are plain data");
        match tokio::time::timeout(self.timeout, self.ask(path, arguments)).await {
            Err(_) => {
                let limit = humantime::format_duration(self.timeout);
                Ok(Observation::error(format!("no answer within {limit}")))
            }
            Ok(said) => self.observation(said?),
        }
    }

    fn lay_out(&self, folder: &Utf8Path) -> Result<(), ToolError> {
        for (name, digest, is_program) in &self.files {
            let gone = || ToolError(format!("`{name}` is gone from the store; run again"));
            let bytes = self.store.blob(*digest).ok_or_else(gone)?;
            let file = folder.join(name);
            replace_file(&file, &bytes).map_err(|error| ToolError(error.to_string()))?;
            if *is_program {
                let mode = std::fs::Permissions::from_mode(0o755);
                let set = std::fs::set_permissions(&file, mode);
                set.map_err(|error| ToolError(format!("cannot lay out `{name}`: {error}")))?;
            }
        }
        Ok(())
    }

    async fn ask(&self, folder: &Utf8Path, arguments: Vec<u8>) -> Result<Said, ToolError> {
        let program = &self.command[0];
        let mut process = match program.contains('/') {
            true => tokio::process::Command::new(folder.join(program)),
            false => tokio::process::Command::new(program),
        };
        process.args(&self.command[1..]).current_dir(folder).env_clear();
        process.envs(self.passed.iter().cloned()).envs(self.env.iter().cloned());
        // In a group of its own, so that what it starts ends with it.
        process
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = process.spawn().map_err(|error| {
            ToolError(format!("cannot start `{}`: {}", self.command.join(" "), plain(&error)))
        })?;
        let mut group = Some(Group(child.id()));
        let mut stdin = child.stdin.take().expect("BUG: it was piped");
        let mut stdout = child.stdout.take().expect("BUG: it was piped");
        let mut stderr = child.stderr.take().expect("BUG: it was piped");
        let most = self.output_limit.saturating_mul(BYTES_MAX) as u64 + 1;
        let tell = async move {
            // A program may answer without having listened.
            let _ = stdin.write_all(&arguments).await;
        };
        let talk = async {
            let talk = some(&mut stderr, TALK_MAX).await;
            // One that goes on talking must not wait for somebody to listen.
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            talk
        };
        let listen = async {
            let output = some(&mut stdout, most).await;
            let is_enough = output.len() as u64 == most;
            if is_enough {
                drop(group.take());
            }
            (output, is_enough)
        };
        let ((), talk, (output, is_enough)) = tokio::join!(tell, talk, listen);
        let status =
            child.wait().await.map_err(|error| ToolError(format!("it was lost: {error}")))?;
        Ok(Said { output, talk, status: (!is_enough).then_some(status) })
    }

    fn observation(&self, said: Said) -> Result<Observation, ToolError> {
        let output = String::from_utf8_lossy(&said.output);
        let output = limited(output.trim_end(), self.output_limit);
        match said.status {
            None => Ok(Observation::good(output)),
            Some(status) if status.success() => Ok(Observation::good(output)),
            Some(status) => match status.code() {
                // Ended from outside, for want of memory or at a shutdown: that says nothing of the call.
                None => Err(ToolError(format!("it ended with {status}"))),
                Some(code) => {
                    let talk = String::from_utf8_lossy(&said.talk);
                    Ok(Observation::error(format!("exit code {code}: {}", talk.trim())))
                }
            },
        }
    }
}

/// The first bytes of what comes.
async fn some(from: &mut (impl AsyncRead + Unpin), most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = from.take(most).read_to_end(&mut bytes).await;
    bytes
}

impl Tool for Command {
    fn name(&self) -> &str {
        &self.name
    }

    fn usage(&self) -> String {
        format!("{}[{}] {}", self.name, parameters::usage(&self.parameters), self.description)
    }

    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: self.name.clone(),
            description: self.description.clone(),
            parameters: parameters::schema(&self.parameters),
        }
    }

    fn input_of(&self, arguments: &str) -> String {
        arguments.to_owned()
    }

    fn answers(&self) -> Answers {
        if self.deterministic { Answers::Deterministic } else { Answers::Varying }
    }

    fn bytes_max(&self) -> u64 {
        tool::bytes_of(self.output_limit)
    }

    fn call<'a>(&'a self, input: &'a str) -> BoxFuture<'a, Result<Observation, ToolError>> {
        self.run(input).boxed()
    }

    fn describe(&self, recipe: Recipe) -> Recipe {
        let env: serde_json::Map<_, _> =
            self.env.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        let programs = self.files.iter().filter(|(.., is_program)| *is_program);
        let settings = serde_json::json!({
            "kind": "command", "rev": REV, "description": self.description, "command": self.command,
            "parameters": parameters::schema(&self.parameters), "env": env,
            // Of a variable passed through, the name counts and not the value: it may be a secret.
            "pass_env": self.pass_env, "programs": programs.map(|(name, ..)| name).collect::<Vec<_>>(),
            // What takes longer, or says more, is answered otherwise.
            "timeout": humantime::format_duration(self.timeout).to_string(),
            "output_limit": self.output_limit, "deterministic": self.deterministic,
        });
        let recipe = recipe.field(&format!("tool.{}", self.name), settings);
        self.files.iter().fold(recipe, |recipe, (path, digest, _)| {
            recipe.input(format!("tool.{} {path}", self.name), *digest)
        })
    }
}
