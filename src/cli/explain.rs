//! `forge explain`.

use std::sync::Arc;

use clap::Args;

use super::plan::survey_lines;
use super::project::{Project, usage};
use super::{Failure, ManifestArgs, block_on, print, say};
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
        let store = project.store(&self.manifest)?;
        let context = project.context(store.clone(), options, Arc::new(|_| {}));
        let explanations = block_on(async {
            let tell = |message: String| say(&format!("warning: {message}"));
            project.share(&self.manifest, &store, false, tell).await?;
            super::gate::foresee(&project, &store, &context).await;
            let mut explanations = Vec::new();
            for node in nodes {
                explanations.push(explain(&project.graph, &context, node, flow).await?);
            }
            Ok::<_, Failure>(explanations)
        })??;
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
    let node = &explanation.node;
    if !explanation.waiting.is_empty() {
        let on = explanation.waiting.join(", ");
        return format!("{node}: waits for {on}, so there is no more to say");
    }
    let key = explanation.key.map_or_else(String::new, |key| format!(" (key {})", key.short()));
    let store = match &explanation.collected_on {
        _ if explanation.remembered => "its result is in the store".to_owned(),
        Some(day) => format!("`forge store gc` removed its result on {day}"),
        None => "the store has no result".to_owned(),
    };
    let mut lines = Vec::new();
    match &explanation.fields {
        None => lines.push(format!("{node}{key}: no earlier run of it is known; {store}")),
        Some(fields) if fields.is_empty() => {
            lines.push(format!("{node}{key}: nothing differs from the last run; {store}"));
        }
        Some(fields) => {
            lines.push(format!("{node}{key}: differs from the last run; {store}"));
            lines.extend(fields.iter().map(|field| format!("  {field}")));
        }
    }
    if let Some(survey) = &explanation.samples {
        lines.extend(survey_lines(survey).iter().map(|line| format!("  {line}")));
    }
    for request in &explanation.requests {
        let store = if request.remembered { "in the store" } else { "to be asked" };
        let differs = match &request.fields {
            None => "; the last run had no such request".to_owned(),
            Some(fields) if fields.is_empty() => String::new(),
            Some(fields) => {
                let fields: Vec<_> = fields.iter().map(ToString::to_string).collect();
                format!("; {}", fields.join("; "))
            }
        };
        let (number, key) = (request.number + 1, request.key.short());
        lines.push(format!("  request {number} (key {key}): {store}{differs}"));
    }
    if explanation.requests.last().is_some_and(|request| !request.remembered) {
        lines.push("  what is asked after it depends on its answer".to_owned());
    }
    lines.join("\n")
}
