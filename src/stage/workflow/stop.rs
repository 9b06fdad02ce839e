//! `stop_when` of a workflow: its fields, and what it needs to be held. Knows nothing of when it holds.

use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::{Value, json};

use super::Workflow;
use crate::digest::{Digest, Recipe};
use crate::manifest::{Diagnostic, Fields};
use crate::record::stop::accuracies;
use crate::record::{StopRule, Stopper};
use crate::sample::Sample;
use crate::stage::{Artifact, ArtifactKind, Context, Inputs, Need, StageError, need};

/// The port of the stage that is compared with.
const PORT: &str = "decided_against";

/// Reads the rule, and what it needs.
pub(super) fn read(fields: &Fields<'_>) -> Option<(StopRule, Option<Need>)> {
    let table = fields.table("stop_when")?;
    let rival = table.has(PORT).then(|| need(&table, PORT, ArtifactKind::Samples)).flatten();
    let rule = StopRule {
        ci_half_width: table.number("ci_half_width", 0.001..=0.5),
        decided_against: rival.as_ref().map(|need| need.stage.value.clone()),
        margin: table.number("margin", 0.001..=0.5),
        budget: table.number("budget", 0.000_001..=1e9),
        tokens: table.integer("tokens", 1..=i64::MAX).map(i64::unsigned_abs),
    };
    let names = ["ci_half_width", PORT, "budget", "tokens"];
    if !names.iter().any(|name| table.has(name)) {
        let hint =
            "stop_when = { ci_half_width = 0.02 } stops where accuracy is known to two points";
        let message =
            format!("`stop_when` needs one of {}", names.map(|n| format!("`{n}`")).join(", "));
        fields.error(Diagnostic::at(table.span(), message).hint(hint));
    }
    if table.has("margin") && !table.has(PORT) {
        let message = "`margin` is a difference from another stage, and none is named";
        let hint = "add `decided_against = \"<a workflow>\"`";
        fields.error(Diagnostic::at(table.place("margin"), message).hint(hint));
    }
    table.finish();
    Some((rule, rival))
}

/// The rule as a key sees it: the other stage is an input, and the name of it means nothing.
fn shown(rule: &StopRule) -> Value {
    let all = [
        ("ci_half_width", rule.ci_half_width.map(Value::from)),
        ("margin", rule.margin.map(Value::from)),
        ("budget", rule.budget.map(Value::from)),
        ("tokens", rule.tokens.map(Value::from)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The samples of a table, one after another: of a large one only the scores are kept.
fn stored(
    context: &Context,
    table: Digest,
) -> Result<impl Iterator<Item = Result<Sample, StageError>>, StageError> {
    let broken = |error: &dyn std::fmt::Display| {
        StageError::Failed(format!("a table of samples cannot be read: {error}; run again"))
    };
    let file = File::open(context.store.blob_path(table)).map_err(|error| broken(&error))?;
    Ok(BufReader::new(file).split(b'\n').map(move |line| {
        let line = line.map_err(|error| broken(&error))?;
        serde_json::from_slice(&line).map_err(|error| broken(&error))
    }))
}

impl Workflow {
    /// Adds the rule to the recipe of the stage; without one it leaves no trace. A sample does not depend on it.
    pub(super) fn describe_stop(&self, recipe: Recipe, inputs: &Inputs) -> Recipe {
        let Some(rule) = &self.stop_when else { return recipe };
        let (_, engine) = self.sources(inputs);
        let price = rule.budget.and(engine.backend.price()).map(|price| json!(price));
        let recipe = recipe.field("stop_when", shown(rule)).field("stop_price", price);
        match rule.decided_against {
            None => recipe,
            Some(_) => match inputs.one(PORT) {
                Artifact::Samples(samples) => recipe.input(PORT, samples.table),
                _ => unreachable!("BUG: the graph lets only samples in here"),
            },
        }
    }

    /// What watches the samples of one run.
    pub(super) fn stopper(
        &self,
        inputs: &Inputs,
        context: &Context,
    ) -> Result<Option<Stopper>, StageError> {
        let Some(rule) = &self.stop_when else { return Ok(None) };
        let (_, engine) = self.sources(inputs);
        if rule.budget.is_some() && engine.backend.price().is_none() {
            return Err(StageError::User(format!(
                "`stop_when.budget` of `{}` cannot be held: the engine `{}` has no price; add \
                 `price = {{ input = …, output = … }}` (dollars for a million tokens) to it, or write `tokens`",
                self.name, engine.stage
            )));
        }
        let rival = match rule.decided_against {
            None => Default::default(),
            Some(_) => match inputs.one(PORT) {
                Artifact::Samples(samples) => accuracies(stored(context, samples.table)?)?,
                _ => unreachable!("BUG: the graph lets only samples in here"),
            },
        };
        Ok(Some(Stopper::new(rule.clone(), &self.name, self.epochs, rival)))
    }
}
