//! `forge plan`.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;

use super::project::Project;
use super::{Failure, ManifestArgs, block_on, print};
use crate::plan::{NodePlan, State, assess_all};
use crate::stage::Options;

#[derive(Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let project = Project::open(&self.manifest)?;
        let options = Options { limit: self.manifest.limit, offline: true, ..Options::default() };
        show(&project, &self.manifest, options, None, self.json)
    }
}

/// Prints the plan of a manifest, or of some of its stages.
pub(super) fn show(
    project: &Project,
    args: &ManifestArgs,
    options: Options,
    nodes: Option<&BTreeSet<usize>>,
    json: bool,
) -> Result<(), Failure> {
    let context = project.context(project.store(args)?, options, Arc::new(|_| {}));
    let plan = block_on(assess_all(&project.graph, &context, nodes))??;
    if json {
        let text = serde_json::to_string_pretty(&plan).expect("BUG: a plan is plain data");
        print(&text);
        return Ok(());
    }
    let width = plan.iter().map(|node| node.name.len()).max().unwrap_or(0);
    for node in &plan {
        for line in lines(node, width) {
            print(&line);
        }
    }
    print(&totals(&plan));
    Ok(())
}

fn lines(node: &NodePlan, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let detail = match &node.state {
        State::Changed { fields } => fields.first().map_or_else(String::new, ToString::to_string),
        State::Waiting { on } => format!("on {}", on.join(", ")),
        State::Lost => "its result is gone from the store".to_owned(),
        State::Fresh | State::New | State::Forced => String::new(),
    };
    let line = format!("{:8} {:width$}  {:13}  {detail}", node.state.name(), node.name, node.kind);
    lines.push(line.trim_end().to_owned());
    if let State::Changed { fields } = &node.state {
        let indent = " ".repeat(8 + 1 + width + 2 + 13 + 2);
        lines.extend(fields.iter().skip(1).map(|field| format!("{indent}{field}")));
    }
    if node.state == State::Fresh {
        return lines;
    }
    if let Some(survey) = &node.survey {
        lines.push(format!(
            "         {} samples: {} answered from the store ({} requests), {} to ask",
            survey.samples,
            survey.samples_answered,
            survey.requests_answered,
            survey.samples_to_ask
        ));
    }
    if let Some(admission) = &node.admission {
        lines.push(format!("         {admission}"));
    }
    lines
}

fn totals(plan: &[NodePlan]) -> String {
    let count = |name: &str| plan.iter().filter(|node| node.state.name() == name).count();
    let states = ["fresh", "new", "changed", "lost", "forced", "waiting"];
    let counts: Vec<_> = states
        .iter()
        .filter(|state| count(state) > 0)
        .map(|state| format!("{} {state}", count(state)))
        .collect();
    let answered: u64 = plan.iter().filter_map(|node| Some(node.survey?.requests_answered)).sum();
    let to_ask: u64 = plan.iter().filter_map(|node| Some(node.survey?.samples_to_ask)).sum();
    format!(
        "\n{}; {answered} requests already answered, {to_ask} samples to ask",
        counts.join(", ")
    )
}
