//! `forge verify`.

use std::sync::Arc;

use clap::Args;

use super::project::{Project, usage};
use super::{FAILED, Failure, ManifestArgs, block_on, print, say};
use crate::exec::{Locked, Verdict, verify};
use crate::stage::Options;

#[derive(Args)]
pub(super) struct Verify {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Print the verdicts as JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
        let project = Project::open(&self.manifest)?;
        let path = project.root.join(&project.manifest.path).with_extension("lock");
        let shown = path.strip_prefix(&project.root).unwrap_or(&path);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            usage(format!(
                "cannot read `{shown}`: {}; `forge apply` writes it",
                crate::stage::plain(&error)
            ))
        })?;
        let locked = Locked::parse(&text)
            .map_err(|error| usage(format!("cannot read `{shown}`: {error}")))?;
        let store = project.store(&self.manifest)?;
        let options = Options { frozen: true, offline: true, ..Options::default() };
        let context = project.context(store.clone(), options, Arc::new(|_| {}));
        let verdicts = block_on(async {
            let tell = |message: String| say(&format!("warning: {message}"));
            project.share(&self.manifest, &store, false, tell).await?;
            Ok::<_, Failure>(verify(&project.graph, &context, &locked).await?)
        })??;
        let bad = verdicts.iter().filter(|verdict| !verdict.differences.is_empty()).count();
        if self.json {
            let text = serde_json::to_string_pretty(&verdicts).expect("BUG: this is plain data");
            print(&text);
        } else {
            let width = verdicts.iter().map(|verdict| verdict.stage.len()).max().unwrap_or(0);
            verdicts.iter().for_each(|verdict| print(&line(verdict, width)));
            print(&match bad {
                0 => format!("\nall {} stages are as `{shown}` says", verdicts.len()),
                bad => format!("\n{bad} of {} stages are not as `{shown}` says", verdicts.len()),
            });
        }
        if bad > 0 { Err(Failure::Said(FAILED)) } else { Ok(()) }
    }
}

fn line(verdict: &Verdict, width: usize) -> String {
    let Verdict { stage, how, differences, .. } = verdict;
    if differences.is_empty() {
        return format!("same     {stage:width$}  {how}");
    }
    format!("differs  {stage:width$}  {}", differences.join("; "))
}
