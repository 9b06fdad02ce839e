//! `forge plan`.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;

use super::project::Project;
use super::{Failure, ManifestArgs, block_on, print, say};
use crate::digest::Difference;
use crate::plan::{NodePlan, State, assess_all};
use crate::record::Event;
use crate::stage::Options;
use crate::stage::workflow::{Ahead, Reason, Survey, Why};

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
    let store = project.store(args)?;
    let warn = |event: Event| {
        if let Event::Notice { stage, message } = event {
            let of = stage.map_or_else(String::new, |stage| format!("{stage}: "));
            say(&format!("warning: {of}{message}"));
        }
    };
    let context = project.context(store.clone(), options, Arc::new(warn));
    let plan = block_on(async {
        let tell = |message: String| say(&format!("warning: {message}"));
        project.share(args, &store, false, tell).await?;
        super::gate::foresee(project, &store, &context).await;
        Ok::<_, Failure>(assess_all(&project.graph, &context, nodes).await?)
    })??;
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
        State::Collected { on } => format!("`forge store gc` removed its result on {on}"),
        State::Fresh | State::New | State::Forced => String::new(),
    };
    let line = format!("{:9} {:width$}  {:13}  {detail}", node.state.name(), node.name, node.kind);
    lines.push(line.trim_end().to_owned());
    if let State::Changed { fields } = &node.state {
        let indent = " ".repeat(9 + 1 + width + 2 + 13 + 2);
        lines.extend(fields.iter().skip(1).map(|field| format!("{indent}{field}")));
    }
    if node.state == State::Fresh {
        return lines;
    }
    if let Some(survey) = &node.survey {
        lines.extend(survey_lines(survey).iter().map(|line| format!("          {line}")));
    }
    if let Some(admission) = &node.admission {
        lines.push(format!("          {admission}"));
    }
    lines
}

/// How far the store can answer a workflow, and why not further.
pub(super) fn survey_lines(survey: &Survey) -> Vec<String> {
    let fewer = if survey.may_stop { ", or fewer: `stop_when` may hold before" } else { "" };
    let mut lines = vec![format!(
        "{} samples: {} answered from the store ({} requests), {} to ask{fewer}",
        grouped(survey.samples),
        grouped(survey.samples_answered),
        grouped(survey.requests_answered),
        grouped(survey.samples_to_ask)
    )];
    for Reason { samples, why } in &survey.reasons {
        let miss = if *samples == 1 { "misses" } else { "miss" };
        let why = match why {
            Why::New => "the last run did not have them".to_owned(),
            Why::Lost => "their answers are gone from the store".to_owned(),
            Why::Collected => "`forge store gc` removed their answers".to_owned(),
            Why::Forced => "new answers are asked for".to_owned(),
            Why::Changed { fields } => {
                let fields: Vec<_> = fields.iter().map(Difference::sentence).collect();
                fields.join(" and ")
            }
        };
        let all = grouped(survey.samples);
        lines.push(format!("{} of {all} samples {miss} because {why}", grouped(*samples)));
    }
    let unpriced = &survey.unpriced;
    lines.extend(survey.cost.filter(|_| survey.samples_to_ask > 0).map(|c| cost(c, unpriced)));
    lines
}

/// What asking may cost.
fn cost(Ahead { ceiling, estimate, with_retries }: Ahead, unpriced: &BTreeSet<String>) -> String {
    let mut text = format!(
        "at most ${ceiling:.4}, or ${estimate:.4} with four bytes to a token of the prompts, if every reply has \
         `max_tokens`"
    );
    if with_retries > ceiling {
        text.push_str(&format!(
            " and is paid for once; ${with_retries:.4} if every attempt breaks off that `max_retries` repeats, and is \
             paid for as well"
        ));
    }
    if !unpriced.is_empty() {
        let names: Vec<_> = unpriced.iter().map(|name| format!("`{name}`")).collect();
        text.push_str(&format!(", besides what {} will cost: no price", names.join(" and ")));
    }
    text
}

/// A count with commas: 10,000.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let start = digits.len() % 3;
    let mut text = digits[..start].to_owned();
    for group in digits.as_bytes()[start..].chunks(3) {
        if !text.is_empty() {
            text.push(',');
        }
        text.extend(group.iter().map(|digit| char::from(*digit)));
    }
    text
}

fn totals(plan: &[NodePlan]) -> String {
    let count = |name: &str| plan.iter().filter(|node| node.state.name() == name).count();
    let states = ["fresh", "new", "changed", "lost", "collected", "forced", "waiting"];
    let counts: Vec<_> = states
        .iter()
        .filter(|state| count(state) > 0)
        .map(|state| format!("{} {state}", count(state)))
        .collect();
    let surveys = || plan.iter().filter_map(|node| node.survey.as_ref());
    let answered: u64 = surveys().map(|survey| survey.requests_answered).sum();
    let to_ask: u64 = surveys().map(|survey| survey.samples_to_ask).sum();
    let costs = || surveys().filter_map(|survey| survey.cost);
    let money = (costs().count() > 0 && to_ask > 0).then(|| {
        let sum = costs().fold(Ahead::default(), |sum, cost| Ahead {
            ceiling: sum.ceiling + cost.ceiling,
            estimate: sum.estimate + cost.estimate,
            with_retries: sum.with_retries + cost.with_retries,
        });
        let unpriced = surveys().flat_map(|survey| survey.unpriced.iter().cloned()).collect();
        format!("; {}", cost(sum, &unpriced))
    });
    format!(
        "\n{}; {answered} requests already answered, {to_ask} samples to ask{}",
        counts.join(", "),
        money.unwrap_or_default()
    )
}
