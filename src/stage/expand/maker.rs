//! Flows of one template, a row at a time. Knows nothing of where rows come from.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::shape::columns;
use super::steps::{self, Pool};
use crate::sample::Flow;
use crate::stage::StageError;
use crate::stage::flow_template::{FlowTemplate, StepTemplate};
use crate::template::Templates;

/// Makes flows of one template: all its texts compiled once.
pub(super) struct Maker<'a> {
    template: &'a FlowTemplate,
    pub(super) templates: Templates,
    /// Names of the texts that wait for an earlier step.
    pub(super) later: BTreeSet<String>,
    pub(super) pool: Option<Pool>,
}

impl<'a> Maker<'a> {
    pub(super) fn new(template: &'a FlowTemplate, pool: Option<Pool>) -> Result<Self, StageError> {
        let mut templates = Templates::default();
        let mut later = BTreeSet::new();
        for step in &template.steps {
            for (name, source) in steps::texts(step) {
                if StepTemplate::waits(source) {
                    later.insert(name.clone());
                }
                templates
                    .add(&name, source)
                    .map_err(|error| StageError::User(error.to_string()))?;
            }
        }
        Ok(Maker { template, templates, later, pool })
    }

    /// The flow of a row; `id` stands in place of what the template calls it.
    pub(super) fn flow(
        &self,
        context: &Value,
        id: Option<String>,
        number: u64,
    ) -> Result<Flow, String> {
        let id = match (id, &self.template.id) {
            (Some(id), _) => id,
            (None, None) => format!("row-{number}"),
            (None, Some(expression)) => match self.evaluate("id", expression, context)? {
                Value::String(text) => text,
                other => other.to_string(),
            },
        };
        let targets = match &self.template.targets {
            None => Vec::new(),
            Some(expression) => targets(self.evaluate("targets", expression, context)?)?,
        };
        let options = match &self.template.options {
            None => Vec::new(),
            Some(expression) => options(self.evaluate("options", expression, context)?)?,
        };
        let mut tags = BTreeMap::new();
        for tag in &self.template.tags {
            let value = context["row"].get(tag).ok_or_else(|| {
                format!(
                    "there is no column `{tag}` for the tag (known: {})",
                    context["row"].as_object().map(columns).unwrap_or_default()
                )
            })?;
            tags.insert(
                tag.clone(),
                value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            );
        }
        // Texts that wait are rendered on trial, with empty outputs: a wrong column shows before anything is
        // asked.
        let trial = (!self.later.is_empty()).then(|| {
            let steps = self.template.steps.iter();
            let outputs = steps.map(|step| (step.id.clone(), json!({ "output": "" })));
            json!({ "row": context["row"], "steps": outputs.collect::<Map<_, _>>() })
        });
        let trial = trial.as_ref().unwrap_or(context);
        let mut waits = false;
        let mut steps = Vec::new();
        for (nth, step) in self.template.steps.iter().enumerate() {
            steps.push(self.step(step, nth, context, trial, &mut waits)?);
        }
        let row = waits.then(|| context["row"].clone());
        Ok(Flow { id, occurrence: 0, steps, targets, options, tags, row })
    }

    pub(super) fn evaluate(
        &self,
        field: &str,
        source: &str,
        context: &Value,
    ) -> Result<Value, String> {
        self.templates
            .evaluate(source, context)
            .map_err(|error| self.explain(field, &error, context))
    }

    pub(super) fn explain(
        &self,
        name: &str,
        error: &crate::template::TemplateError,
        context: &Value,
    ) -> String {
        let known = if error.undefined {
            format!(
                " (columns of the row: {})",
                context["row"].as_object().map(columns).unwrap_or_default()
            )
        } else {
            String::new()
        };
        format!("`{name}` of the flow template: {error}{known}")
    }
}

/// Accepted answers: a text, a number, or a list of those.
fn targets(value: Value) -> Result<Vec<String>, String> {
    let one = |value: Value| {
        plain(value).map_err(|other| {
            format!("`targets` must give a text, a number or a list of those, not {other}")
        })
    };
    match value {
        Value::Array(items) => items.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// What there is to choose from: two or more, none of them blank.
fn options(value: Value) -> Result<Vec<String>, String> {
    let Value::Array(items) = value else {
        return Err(format!("`options` must give a list, not {value}"));
    };
    let one = |item: Value| match plain(item) {
        Ok(text) if text.trim().is_empty() => Err("one of the `options` is blank".to_owned()),
        Ok(text) => Ok(text),
        Err(other) => Err(format!("`options` must be texts or numbers, not {other}")),
    };
    let options: Vec<String> = items.into_iter().map(one).collect::<Result<_, _>>()?;
    match options.len() {
        0 | 1 => Err(format!("there are {} `options`, and a choice needs two", options.len())),
        _ => Ok(options),
    }
}

fn plain(value: Value) -> Result<String, Value> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        other => Err(other),
    }
}
