//! The command line: the only module that prints and reads arguments.
//! Knows nothing but which library calls a command is made of.

use std::io::IsTerminal;
use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::history::HistoryError;
use crate::manifest::{Diagnostics, REMOTE_MODES};
use crate::stage::StageError;
use crate::store::{RemoteError, StoreError};

mod apply;
mod bench;
mod bisect;
mod diff;
mod elsewhere;
mod experiments;
mod explain;
mod export;
mod fmt;
mod gate;
mod graph;
mod init;
mod locks;
mod logs;
mod man;
mod plan;
mod progress;
mod project;
mod rerun;
mod runs;
mod sample;
mod schema;
mod serve;
mod show;
mod store;
mod summary;
mod terminal;
mod timing;
mod verify;
mod watch;

/// Done.
const DONE: u8 = 0;
/// A stage or sample failed.
const FAILED: u8 = 1;
/// The user can fix it.
const USER: u8 = 2;
/// Our bug.
const BUG: u8 = 70;
/// A gate failed.
const GATE: u8 = 100;
/// Interrupted.
const INTERRUPTED: u8 = 130;

/// Declarative LLM benchmark pipelines: a manifest in, a report out, nothing done twice.
#[derive(Parser)]
#[command(name = "forge", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a server and stop it with this process's standard input
    #[command(hide = true, name = crate::engine::process::supervise::COMMAND)]
    Supervise {
        /// Program and arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run a pipeline: whatever is not in the store is worked out, and the report written
    #[command(after_help = "Examples:\n  forge apply pipelines/bench.toml\n  \
        NUM_FLOWS=5 forge apply pipelines/bench.toml\n  \
        forge apply pipelines/bench.toml --set num_flows=5 --json | tail -1\n  \
        forge apply pipelines/bench.toml --watch")]
    Apply(apply::Apply),
    /// Show what a run would do and why, and how many requests are already answered
    #[command(after_help = "Example:\n  forge plan pipelines/bench.toml")]
    Plan(plan::PlanArgs),
    /// Check a manifest and everything it names, without running anything
    #[command(after_help = "Example:\n  forge check pipelines/bench.toml")]
    Check(graph::Check),
    /// Show the graph of stages
    #[command(after_help = "Example:\n  forge graph pipelines/bench.toml --format mermaid")]
    Graph(graph::GraphArgs),
    /// Say what differs from the last run: of a stage, or of one flow
    #[command(after_help = "Examples:\n  forge explain pipelines/bench.toml report\n  \
        forge explain pipelines/bench.toml 'ask[method=cot]/fact-009'")]
    Explain(explain::Explain),
    /// Work out keys, scores and reports again from the store, without any engine, and compare with the
    /// committed lock file
    #[command(after_help = "Example:\n  forge verify pipelines/bench.toml")]
    Verify(verify::Verify),
    /// List the runs of the store, newest first; tag and pin them
    #[command(
        after_help = "A RUN is named by a part of its id, a tag, `last`, or `last~1` for the one before.\n\n\
        Examples:\n  forge runs --pipeline bench --status failed --since 7d\n  \
        forge runs --json | jq -r 'select(.requests.live > 0) | .run_id'\n  \
        forge runs tag last baseline\n  forge runs pin baseline"
    )]
    Runs(runs::Runs),
    /// Show a run: its stages, or a sample with its prompt, transcript, scores and where each answer came from
    #[command(
        after_help = "Examples:\n  forge show\n  forge show baseline --stage 'ask[method=cot]'\n  \
        forge show last --sample fact-009 --json"
    )]
    Show(show::Show),
    /// Write the samples of a run in a form that other tools read: logs of Inspect, results of
    /// lm-evaluation-harness, CSV, JUnit, Parquet, Arrow
    #[command(
        after_help = "Examples:\n  forge export --format inspect --output logs && inspect view --log-dir logs\n  \
        forge export baseline --format lm-eval --output results\n  \
        forge export last~1 --stage ask --format parquet --output out"
    )]
    Export(export::Export),
    /// Print what happened in a run, or what the servers said that it started
    #[command(
        after_help = "Examples:\n  forge logs\n  forge logs last --follow --stage ask\n  forge logs last --server"
    )]
    Logs(logs::Logs),
    /// Follow a run that another process is at; ends as the run ends
    #[command(
        after_help = "Ends with the exit code of the run; with 1 where its process dies without a word.\n\n\
        Example:\n  forge watch"
    )]
    Watch(watch::Watch),
    /// Compare two runs, lock files or git revisions: what changed, whether it helped, and who flipped
    #[command(after_help = "Examples:\n  forge diff main\n  forge diff HEAD~3 HEAD --markdown\n  \
        forge diff last~1 last --limit 3\n  forge diff main --run\n  forge diff main --html > diff.html\n\n\
        Results come from the store; nothing is run without --run.")]
    Diff(diff::Diff),
    /// Find the first commit that moved a metric
    #[command(
        after_help = "A commit is on the bad side when the paired test of its difference to GOOD says at 95 % that there \
        is one, in the direction of BAD; else it is on the good side. Each commit is read as it is checked out, in a \
        folder of its own; its results come from the store by key.\n\nEnds with 2 where the ends cannot be told apart.\n\n\
        Examples:\n  forge bisect v1.0 HEAD\n  \
        forge bisect HEAD~20 HEAD --metric f1 --stage 'ask[method=cot]' --run"
    )]
    Bisect(bisect::Bisect),
    /// Hold what is in the store against the gates of a manifest, without running anything
    #[command(after_help = "Exit code 100 if a threshold is not kept.\n\nExamples:\n  \
        forge gate pipelines/bench.toml\n  \
        forge gate pipelines/bench.toml --junit gates.xml")]
    Gate(gate::GateArgs),
    /// Serve experiments over HTTP: pages for people, an interface for programs
    #[command(
        after_help = "Experiments are in `experiments.sqlite` beside the store; what came of them is in the store. TLS is \
        left to a proxy.\n\nExamples:\n  forge serve\n  FORGE_TOKEN=… forge serve --listen 0.0.0.0:8080 --host bench.example"
    )]
    Serve(serve::Serve),
    /// List the experiments of `forge serve`, or show one: as TOML it is a manifest to commit to git
    #[command(
        after_help = "An ID is the id of an experiment, a beginning of it that no other has, or its name.\n\n\
        Examples:\n  forge experiments\n  forge experiments show 3f2a --toml > pipelines/qa-cot.toml\n  \
        forge apply pipelines/qa-cot.toml"
    )]
    Experiments(experiments::Experiments),
    /// Run methods × optimizations (baseline, batched, cached) on one engine, and write what came of it
    #[command(after_help = "Example:\n  forge bench --samples 25 --output benchmark_results.json")]
    Bench(bench::BenchArgs),
    /// Look after the store: what is in it, is it whole, what can go, how to share it
    Store(store::StoreArgs),
    /// Write a small working project
    #[command(
        after_help = "Example:\n  forge init my-bench && cd my-bench && forge apply pipelines/bench.toml"
    )]
    Init(init::Init),
    /// Print the JSON Schema of manifests or of flow templates, by which editors complete and check them
    #[command(
        after_help = "Editors of TOML find it by a line of the file: #:schema forge.schema.json\n\nExample:\n  \
        forge schema > pipelines/forge.schema.json"
    )]
    Schema(schema::SchemaArgs),
    /// Bring manifests and flow templates into the house format; comments and the order of keys stay
    #[command(after_help = "Examples:\n  forge fmt pipelines/*.toml templates/*.toml\n  \
        forge fmt --check --diff pipelines/*.toml")]
    Fmt(fmt::Fmt),
    /// Write man pages
    #[command(after_help = "Example:\n  forge man --output ~/.local/share/man/man1")]
    Man(man::Man),
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  forge completions bash > ~/.local/share/bash-completion/completions/forge"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What every command on a manifest takes.
#[derive(Args, Clone)]
struct ManifestArgs {
    /// The manifest
    manifest: Utf8PathBuf,
    /// Set a parameter of the manifest (wins over its environment variable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_set)]
    set: Vec<(String, String)>,
    /// Folder of the store [default: the manifest's, else .forge in the project]
    #[arg(long, env = "FORGE_STORE", value_name = "DIR")]
    store: Option<Utf8PathBuf>,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Only the first N flows of every expansion
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// What commands take that use a shared store.
#[derive(Args, Clone)]
struct RemoteArgs {
    /// Shared store: s3://bucket/prefix, gs://…, az://…, file:///folder; credentials come from the
    /// environment [default: the manifest's]
    #[arg(long, env = "FORGE_REMOTE", value_name = "URL")]
    remote: Option<String>,
    /// Who writes into it [default: the manifest's, else read-write]
    #[arg(long, env = "FORGE_REMOTE_MODE", value_name = "MODE", value_parser = REMOTE_MODES.to_vec())]
    remote_mode: Option<String>,
}

fn parse_set(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

/// Why a command ended badly, and with which code.
enum Failure {
    /// Wrong input, already with its place.
    Diagnostics(Box<Diagnostics>),
    /// Any other error, and the exit code.
    Message(String, u8),
    /// Everything has been said.
    Said(u8),
}

impl From<Diagnostics> for Failure {
    fn from(diagnostics: Diagnostics) -> Self {
        Failure::Diagnostics(Box::new(diagnostics))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = if matches!(error, StoreError::Format { .. }) { USER } else { FAILED };
        Failure::Message(error.to_string(), code)
    }
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        let code = if matches!(error, RemoteError::User(_)) { USER } else { FAILED };
        Failure::Message(error.to_string(), code)
    }
}

impl From<HistoryError> for Failure {
    fn from(error: HistoryError) -> Self {
        let code = if error.is_users() { USER } else { FAILED };
        Failure::Message(error.to_string(), code)
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        let code = match error {
            StageError::User(_) => USER,
            StageError::Cancelled => INTERRUPTED,
            StageError::Failed(_) | StageError::Missing(_) | StageError::Upstream(_) => FAILED,
        };
        Failure::Message(error.to_string(), code)
    }
}

/// Runs the program with the arguments of the process.
pub fn run() -> ExitCode {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        previous(panic);
        say(
            "this is a bug of forge; what was answered is kept. Please report it with the lines above.",
        );
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USER } else { DONE });
        }
    };
    let ended = std::panic::catch_unwind(|| dispatch(cli.command));
    ExitCode::from(match ended {
        Err(_) => BUG,
        Ok(Ok(())) => DONE,
        Ok(Err(failure)) => report(&failure),
    })
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Apply(args) => args.run(),
        Command::Plan(args) => args.run(),
        Command::Check(args) => args.run(),
        Command::Graph(args) => args.run(),
        Command::Explain(args) => args.run(),
        Command::Verify(args) => args.run(),
        Command::Runs(args) => args.run(),
        Command::Show(args) => args.run(),
        Command::Export(args) => args.run(),
        Command::Logs(args) => args.run(),
        Command::Watch(args) => args.run(),
        Command::Diff(args) => args.run(),
        Command::Bisect(args) => args.run(),
        Command::Gate(args) => args.run(),
        Command::Serve(args) => args.run(),
        Command::Experiments(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Store(args) => args.run(),
        Command::Init(args) => args.run(),
        Command::Schema(args) => args.run(),
        Command::Fmt(args) => args.run(),
        Command::Man(args) => args.run(),
        Command::Supervise { command } => match crate::engine::process::supervise::run(&command) {
            0 => Ok(()),
            code => Err(Failure::Said(code)),
        },
        Command::Completions { shell } => {
            let mut command = Cli::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "forge", &mut script);
            print(String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
    }
}

fn report(failure: &Failure) -> u8 {
    match failure {
        Failure::Said(code) => *code,
        Failure::Message(message, code) => {
            say(&format!("error: {message}"));
            *code
        }
        Failure::Diagnostics(diagnostics) => {
            say(&diagnostics.render(colors()));
            if diagnostics.len() > 1 {
                say(&format!("\n{} errors", diagnostics.len()));
            }
            USER
        }
    }
}

/// Whether stderr is a terminal that wants colour.
fn colors() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Talk goes to stderr. Nobody listening is no reason to end a run.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Data goes to stdout. A reader that has gone away (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// The runtime of commands that wait. Multi-threaded: the in-process engine needs it.
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Message(format!("cannot start: {error}"), FAILED))?;
    let result = runtime.block_on(future);
    // A thread of an engine may still be busy with work that nobody waits for.
    runtime.shutdown_background();
    Ok(result)
}
