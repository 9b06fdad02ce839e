//! `forge explain`.

use std::sync::Arc;

use clap::Args;

use super::project::{Project, usage};
use super::{Failure, ManifestArgs, block_on, print};
use crate::plan::{Explanation, explain};
use crate::stage::Options;

#[derive(Args)]
pub(super) struct Explain {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// A stage, or `stage/flow`
    node: String,
    /// Print the explanation as JSON
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let project = Project::open(&self.manifest)?;
        // Flow names may have slashes, stage names not; but a cell's value may.
        let known = |name: &str| project.graph.select(name).is_ok();
        let split = self.node.match_indices('/').map(|(i, _)| self.node.split_at(i));
        let with_flow =
            split.map(|(stage, flow)| (stage, &flow[1..])).find(|(stage, _)| known(stage));
        let (stage, flow) = match with_flow {
            Some((stage, flow)) if !known(&self.node) => (stage, Some(flow)),
            _ => (self.node.as_str(), None),
        };
        let nodes = project.graph.select(stage)?;
        if flow.is_some() && nodes.len() > 1 {
            let names: Vec<_> =
                nodes.iter().map(|i| project.graph.nodes()[*i].name.as_str()).collect();
            return Err(usage(format!(
                "`{stage}` has {} cells; name one: {}",
                nodes.len(),
                names.join(", ")
            )));
        }
        let options = Options { limit: self.manifest.limit, offline: true, ..Options::default() };
        let context = project.context(project.store(&self.manifest)?, options, Arc::new(|_| {}));
        let mut explanations = Vec::new();
        for node in nodes {
            explanations.push(block_on(explain(&project.graph, &context, node, flow))??);
        }
        if self.json {
            let text =
                serde_json::to_string_pretty(&explanations).expect("BUG: this is plain data");
            print(&text);
            return Ok(());
        }
        explanations.iter().for_each(|explanation| print(&text(explanation)));
        Ok(())
    }
}

fn text(explanation: &Explanation) -> String {
    let Explanation { node, key, remembered, fields, waiting } = explanation;
    if !waiting.is_empty() {
        return format!("{node}: waits for {}, so there is no more to say", waiting.join(", "));
    }
    let key = key.map_or_else(String::new, |key| format!(" (key {})", key.short()));
    let store = if *remembered { "its result is in the store" } else { "the store has no result" };
    match fields {
        None => format!("{node}{key}: no earlier run of it is known; {store}"),
        Some(fields) if fields.is_empty() => {
            format!("{node}{key}: nothing differs from the last run; {store}")
        }
        Some(fields) => {
            let lines: Vec<_> = fields.iter().map(|field| format!("  {field}")).collect();
            format!("{node}{key}: differs from the last run; {store}\n{}", lines.join("\n"))
        }
    }
}
