//! An engine whose replies are written down: its fields and its file.

use std::time::Duration;

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Declared, Found, REV};
use crate::digest::Recipe;
use crate::engine::scripted::{Rule, Scripted};
use crate::manifest::{Diagnostic, Fields};
use crate::stage::{Context, Setting, StageError, read_project_text};

struct Script {
    rules: Vec<Rule>,
    file: Option<Utf8PathBuf>,
    latency: Duration,
}

pub(super) fn read(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Box<dyn Declared>> {
    let latency = fields.duration("latency").unwrap_or_default();
    let mut rules = Vec::new();
    for reply in fields.values("replies").unwrap_or_default() {
        let rule = serde_json::from_value(reply.value).map_err(|error| error.to_string());
        match rule.and_then(|rule: Rule| Ok(rule.check()?)) {
            Ok(rule) => rules.push(rule),
            Err(error) => fields.error(
                Diagnostic::at(reply.span, format!("this is no reply of a script: {error}"))
                    .hint("a reply is { when = \"part of the question\", reply = \"text\" }"),
            ),
        }
    }
    let file = fields.path("file").filter(|file| setting.check_exists(fields, file));
    if !fields.has("replies") && !fields.has("file") {
        fields.error(Diagnostic::at(fields.span(), "this engine needs `replies` or `file`"));
    }
    Some(Box::new(Script { rules, file: file.map(|file| file.value), latency }))
}

impl Declared for Script {
    fn found<'a>(
        &'a self,
        _: &'a str,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Found, StageError>> {
        async move {
            let mut rules = self.rules.clone();
            if let Some(file) = &self.file {
                rules.extend(read_rules(file, context)?);
            }
            let engine = Scripted { rules, latency: self.latency };
            let recipe = Recipe::new("engine", REV).field("backend", "scripted");
            let recipe = engine.identify(recipe);
            Ok(Found { backend: Box::new(engine), recipe })
        }
        .boxed()
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        self.file.iter().cloned().collect()
    }
}

fn read_rules(file: &Utf8PathBuf, context: &Context) -> Result<Vec<Rule>, StageError> {
    let text = read_project_text(&context.root, file)
        .map_err(|error| StageError::User(format!("cannot read `{file}`: {error}")))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rule = |(i, line): (usize, &str)| {
        let at = |column: usize, error: &dyn std::fmt::Display| {
            StageError::User(format!(
                "{file}:{}:{column}: this is no reply of a script: {error}",
                i + 1
            ))
        };
        let rule: Rule = serde_json::from_str(line).map_err(|e| at(e.column(), &e))?;
        rule.check().map_err(|error| at(1, &error))
    };
    lines.map(rule).collect()
}
