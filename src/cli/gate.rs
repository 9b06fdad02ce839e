//! `forge gate`, and the gates at the end of `forge apply`.

use std::io::Write;
use std::sync::Arc;

use camino::Utf8PathBuf;
use clap::Args;
use serde_json::{Value, json};

use super::project::{Project, usage};
use super::{FAILED, Failure, GATE, ManifestArgs, block_on, print, say};
use crate::exec::recall;
use crate::manifest::Manifest;
use crate::project::prepare;
use crate::record::Verdict;
use crate::report::gates;
use crate::stage::{Context, Options};
use crate::store::Store;

#[derive(Args)]
pub(super) struct GateArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
    #[command(flatten)]
    out: Outputs,
    /// Print the verdicts as JSON
    #[arg(long)]
    json: bool,
}

/// Where verdicts go beside the terminal.
#[derive(Args)]
pub(super) struct Outputs {
    /// Write what the gates say as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<Utf8PathBuf>,
}

impl GateArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let project = Project::open(&self.manifest)?;
        if project.graph.gates().is_empty() {
            let message = format!("`{}` has no gates", self.manifest.manifest);
            let hint = "declare one: `[gate.<name>]` with `samples = \"<workflow>\"` and `min_accuracy = 0.8`";
            return Err(usage(format!("{message}\n\nhint: {hint}")));
        }
        let committed = project.committed()?;
        let store = project.store(&self.manifest)?;
        let limit = self.manifest.limit;
        let options = Options { frozen: true, limit, ..Options::default() };
        let context = project.context(store.clone(), options, Arc::new(|_| {}));
        let graph = project.graph.clone();
        let verdicts = block_on(async {
            let tell = |message: String| say(&format!("warning: {message}"));
            project.share(&self.manifest, &store, false, tell).await?;
            let gates = prepare(&project.manifest, &graph, &store, &committed).await?;
            let found = recall(&graph, &context).await?;
            Ok::<_, Failure>(gates.judge(&store, &found, |_| true)?.0)
        })??;
        if self.json {
            let text = json!({ "passed": gates::passed(&verdicts), "gates": verdicts });
            print(&serde_json::to_string_pretty(&text).expect("BUG: this is plain data"));
        } else {
            gates::lines(&verdicts).iter().for_each(|line| print(line));
            print(&format!("\n{}", gates::total(&verdicts)));
        }
        self.out.write(&project.manifest, &verdicts)?;
        exit(&verdicts)
    }
}

/// 100 where a threshold is not kept.
pub(super) fn exit(verdicts: &[Verdict]) -> Result<(), Failure> {
    if gates::passed(verdicts) { Ok(()) } else { Err(Failure::Said(GATE)) }
}

/// The verdicts in the last line of `forge apply --json`.
pub(super) fn json(verdicts: &[Verdict]) -> Value {
    json!(verdicts)
}

impl Outputs {
    /// Whether there is somewhere to write that only gates fill.
    pub(super) fn wants_gates(&self) -> bool {
        self.junit.is_some()
    }

    /// Writes JUnit XML, and in a GitHub workflow the summary of the step.
    pub(super) fn write(&self, manifest: &Manifest, verdicts: &[Verdict]) -> Result<(), Failure> {
        if let Some(path) = &self.junit {
            std::fs::write(path, gates::junit(&manifest.name, verdicts)).map_err(|error| {
                let why = crate::stage::plain(&error);
                Failure::Message(format!("cannot write `{path}`: {why}"), FAILED)
            })?;
        }
        let summary = std::env::var("GITHUB_STEP_SUMMARY").ok().filter(|path| !path.is_empty());
        if let Some(path) = summary.filter(|_| !verdicts.is_empty()) {
            let text = gates::markdown(&manifest.name, verdicts);
            let file = std::fs::File::options().create(true).append(true).open(&path);
            // The verdict is more than its echo: no reason to end otherwise.
            if let Err(error) = file.and_then(|mut file| writeln!(file, "{text}")) {
                let why = crate::stage::plain(&error);
                say(&format!("warning: cannot write the step summary `{path}`: {why}"));
            }
        }
        Ok(())
    }
}

/// Tells stages what gates will say, where nothing is run: then a baseline that cannot be found is no reason to say
/// nothing else.
pub(super) async fn foresee(project: &Project, store: &Store, context: &Context) {
    let Ok(committed) = project.committed() else { return };
    if let Ok(gates) = prepare(&project.manifest, &project.graph, store, &committed).await {
        // Nobody else has set it.
        let _ = context.gates.set(gates);
    }
}
