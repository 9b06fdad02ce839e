//! `flow-template`: what one conversation looks like, from a TOML file. Knows nothing of rows beyond the
//! names that the template reads.

use std::collections::BTreeSet;

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Artifact, ArtifactKind, Context, Done, Inputs, Need, Setting, Stage, StageError};
use crate::digest::{Digest, Recipe};
use crate::manifest::{
    Diagnostic, Fields, Sink, Sources, Span, Spanned, Table, is_name, parse_toml,
};
use crate::sample::{ObservationFormat, Role, Shot};
use crate::store::{Outcome, Port, Record};
use crate::template::{self, LANGUAGE};

/// Version of what a template file means.
const REV: u32 = 1;
/// Most worked examples that are drawn.
const SHOTS_MAX: u32 = 1000;

/// A template, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowTemplate {
    /// Digest of all below: a comment in the file changes nothing.
    #[serde(skip, default = "no_digest")]
    pub digest: Digest,
    /// Expression that names a flow.
    pub id: Option<String>,
    /// Expression for the accepted answers: a text, a number or a list.
    pub targets: Option<String>,
    /// Expression for what there is to choose from: a list of texts or numbers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub options: Option<String>,
    /// Columns kept for grouping.
    pub tags: Vec<String>,
    /// What is asked.
    pub steps: Vec<StepTemplate>,
}

fn no_digest() -> Digest {
    Digest::of(b"")
}

/// A step of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTemplate {
    /// Its name.
    pub id: String,
    /// System prompt.
    pub system: Option<String>,
    /// The question; absent where `chat` ends with it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<String>,
    /// Worked examples.
    pub shots: Vec<Shot>,
    /// Worked examples drawn from rows, after the fixed ones.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub draw: Option<Draw>,
    /// Expression for a list of messages, each with `role` and `content`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub chat: Option<String>,
    /// Messages between worked examples and question.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub messages: Vec<MessageTemplate>,
    /// How the reply begins.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prefill: Option<String>,
    /// Bound on the reply.
    pub max_tokens: Option<u32>,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Whether the conversation of the step before goes on.
    pub continues: bool,
    /// How tools answer.
    pub observation: ObservationFormat,
}

/// A message of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageTemplate {
    /// User or assistant.
    pub role: Role,
    /// A template.
    pub content: String,
}

/// How worked examples are drawn: templates over the rows that the expansion names with `shots`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draw {
    /// How many.
    pub count: u32,
    /// The example's question; absent is that of the step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<String>,
    /// The way to the answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reasoning: Option<String>,
    /// Its answer.
    pub answer: String,
}

impl StepTemplate {
    /// Whether a text of this step waits for an earlier step.
    pub fn waits(source: &str) -> bool {
        template::names(source)
            .is_ok_and(|names| names.iter().any(|n| n == "steps" || n.starts_with("steps.")))
    }
}

struct FlowTemplateStage {
    file: Utf8PathBuf,
    template: FlowTemplate,
}

pub(super) fn read(_: &str, fields: Fields<'_>, setting: &Setting<'_>) -> Option<Box<dyn Stage>> {
    if !fields.has("file") {
        fields.needed_text("file");
    }
    let file = fields.path("file").filter(|file| setting.check_exists(&fields, file));
    let template = file.as_ref().and_then(|file| {
        let text = match super::read_project_text(setting.root, &file.value) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot read `{}`: {error}", file.value);
                fields.error(Diagnostic::at(file.span, message));
                return None;
            }
        };
        match parse(&file.value, &text) {
            Ok(template) => Some(template),
            Err(diagnostics) => {
                // The excerpt is of the template file, so it is a text inside this diagnostic.
                let message = format!("the flow template `{}` has errors", file.value);
                fields.error(
                    Diagnostic::at(file.span, message)
                        .hint(format!("in that file:\n\n{diagnostics}")),
                );
                None
            }
        }
    });
    fields.finish();
    Some(Box::new(FlowTemplateStage { file: file?.value, template: template? }))
}

/// Reads a template file.
pub fn parse(
    path: &camino::Utf8Path,
    text: &str,
) -> Result<FlowTemplate, crate::manifest::Diagnostics> {
    let sink = Sink::default();
    let mut sources = Sources::default();
    let source = sources.add(path, text);
    let table = parse_toml(text, source, &sink);
    let span = Span { source, start: 0, end: text.len().min(1) };
    let template = read_table(&table, span, &sink);
    sink.finish(&sources)?;
    Ok(template)
}

/// Reads the table of a template file. What is wrong goes to `sink`.
pub fn read_table(table: &Table, span: Span, sink: &Sink) -> FlowTemplate {
    let nothing = Value::Null;
    let fields = Fields::new("the flow template", span, table, &nothing, sink);
    let expression = |name: &str| {
        let text = fields.raw_text(name)?;
        if let Err(error) = template::Templates::default().check_expression(&text.value) {
            let hint = "this is an expression such as `row.answers`, without braces";
            fields.error(Diagnostic::at(text.span, error.message).hint(hint));
        }
        Some(text.value)
    };
    let id = expression("id");
    let targets = expression("targets");
    let options = expression("options");
    let tags = fields.texts("tags").unwrap_or_default();
    let mut known = BTreeSet::new();
    let mut steps = Vec::new();
    for step in fields.tables("step") {
        if let Some(step) = read_step(step, &mut known) {
            steps.push(step);
        }
    }
    if steps.is_empty() && sink.is_empty() {
        let hint = "add\n\n[[step]]\nid = \"answer\"\nuser = \"{{ row.question }}\"";
        fields
            .error(Diagnostic::at(span, "a flow template needs at least one [[step]]").hint(hint));
    }
    fields.finish();
    let tags = tags.into_iter().map(|tag| tag.value).collect();
    let mut template = FlowTemplate { digest: no_digest(), id, targets, options, tags, steps };
    template.digest = Digest::of_json(&template);
    template
}

fn read_step(fields: Fields<'_>, known: &mut BTreeSet<String>) -> Option<StepTemplate> {
    let id = fields.needed_text("id");
    if let Some(id) = &id {
        if !is_name(&id.value) || id.value.contains('-') {
            let hint = "use letters, digits and `_`: later steps write `steps.<id>.output`";
            fields.error(
                Diagnostic::at(id.span, format!("`{}` is no name for a step", id.value)).hint(hint),
            );
        } else if known.contains(&id.value) {
            fields.error(Diagnostic::at(id.span, format!("duplicate step `{}`", id.value)));
        }
    }
    let chat = read_chat(&fields);
    if !fields.has("user") && !fields.has("messages") {
        fields.needed_text("user");
    }
    let text = |name: &str| {
        let text = fields.raw_text(name)?;
        check_template(&fields, &text, known);
        Some(text.value)
    };
    let system = text("system");
    let user = text("user");
    let prefill = text("prefill");
    let messages = read_messages(&fields, known);
    let draw = read_draw(&fields, user.as_deref());
    let mut shots = Vec::new();
    for shot in fields.tables("shot") {
        let user = shot.needed_text("user");
        let answer = shot.needed_text("answer");
        let reasoning = shot.text("reasoning").map(|text| text.value);
        shot.finish();
        if let (Some(user), Some(answer)) = (user, answer) {
            shots.push(Shot { user: user.value, reasoning, answer: answer.value });
        }
    }
    let max_tokens = fields.count("max_tokens", 1..=1_000_000);
    let stop = fields.texts("stop").unwrap_or_default();
    let continues = fields.boolean("continues").unwrap_or(false);
    if continues && known.is_empty() {
        let message = "`continues` on the first step: there is no conversation to continue";
        fields.error(Diagnostic::at(fields.place("continues"), message));
    }
    let mut observation = ObservationFormat::default();
    if let Some(format) = fields.table("observation") {
        if let Some(role) = format.choice("role", &["user", "system", "assistant"]) {
            observation.role = match role.value.as_str() {
                "system" => Role::System,
                "assistant" => Role::Assistant,
                _ => Role::User,
            };
        }
        if let Some(prefix) = format.raw_text("prefix") {
            observation.prefix = prefix.value;
        }
        format.finish();
    }
    fields.finish();
    let id = id?.value;
    known.insert(id.clone());
    Some(StepTemplate {
        id,
        system,
        user: match &chat {
            Some(_) => user,
            None => Some(user?),
        },
        shots,
        draw,
        chat,
        messages,
        prefill,
        max_tokens,
        stop: stop.into_iter().map(|stop| stop.value).collect(),
        continues,
        observation,
    })
}

/// `messages`: an expression, for rows that hold conversations.
fn read_chat(fields: &Fields<'_>) -> Option<String> {
    let text = fields.raw_text("messages")?;
    if let Err(error) = template::Templates::default().check_expression(&text.value) {
        let hint = "this is an expression such as `row.messages`, without braces; single messages are [[step.message]]";
        fields.error(Diagnostic::at(text.span, error.message).hint(hint));
    }
    Some(text.value)
}

/// `[[step.message]]`.
fn read_messages(fields: &Fields<'_>, known: &BTreeSet<String>) -> Vec<MessageTemplate> {
    let mut messages = Vec::new();
    for message in fields.tables("message") {
        for name in ["role", "content"] {
            if !message.has(name) {
                message.needed_text(name);
            }
        }
        let role = message.choice("role", &["user", "assistant"]);
        let content = message.raw_text("content");
        if let Some(content) = &content {
            check_template(&message, content, known);
        }
        message.finish();
        if let (Some(role), Some(content)) = (role, content) {
            let role = if role.value == "user" { Role::User } else { Role::Assistant };
            messages.push(MessageTemplate { role, content: content.value });
        }
    }
    messages
}

/// `[step.draw]`.
fn read_draw(fields: &Fields<'_>, own_user: Option<&str>) -> Option<Draw> {
    let draw = fields.table("draw")?;
    if !draw.has("count") {
        let message = "`draw` needs `count`: how many worked examples";
        draw.error(Diagnostic::at(draw.span(), message));
    }
    if !draw.has("answer") {
        draw.needed_text("answer");
    }
    let count = draw.count("count", 1..=SHOTS_MAX);
    // Rows of examples know no steps.
    let none = BTreeSet::new();
    let text = |name: &str| {
        let text = draw.raw_text(name)?;
        check_template(&draw, &text, &none);
        Some(text.value)
    };
    let (user, reasoning, answer) = (text("user"), text("reasoning"), text("answer"));
    if user.is_none() && !draw.has("user") && own_user.is_none_or(StepTemplate::waits) {
        let message = "`draw` needs `user`: the question of an example";
        let hint = "that of the step holds for rows alone: it reads earlier steps, or is a message of the row";
        draw.error(Diagnostic::at(draw.span(), message).hint(hint));
    }
    draw.finish();
    Some(Draw { count: count?, user, reasoning, answer: answer? })
}

/// Checks that a template parses and reads only `row` and the steps before its own.
fn check_template(fields: &Fields<'_>, text: &Spanned<String>, known: &BTreeSet<String>) {
    let names = match template::names(&text.value) {
        Ok(names) => names,
        Err(error) => {
            fields.error(Diagnostic::at(text.span, error.message));
            return;
        }
    };
    for name in names {
        let mut parts = name.split('.');
        match (parts.next(), parts.next()) {
            (Some("row"), _) => {}
            (Some("steps"), Some(step)) if known.contains(step) => {
                if let Some(other) = parts.next().filter(|field| *field != "output") {
                    let message = format!("a step has no `{other}` (known: output)");
                    fields
                        .error(Diagnostic::at(text.span, message).did_you_mean(other, ["output"]));
                }
            }
            (Some("steps"), Some(step)) => {
                let list: Vec<_> = known.iter().map(String::as_str).collect();
                let list = if list.is_empty() { "none yet".to_owned() } else { list.join(", ") };
                let message = format!("there is no earlier step `{step}` (known: {list})");
                let diagnostic = Diagnostic::at(text.span, message);
                fields.error(diagnostic.did_you_mean(step, known.iter().map(String::as_str)));
            }
            (Some("steps"), None) => {}
            _ => {
                let message = format!("`{name}` is unknown in a flow template");
                let hint = "known: `row.<column>`, `steps.<id>.output`";
                fields.error(Diagnostic::at(text.span, message).hint(hint));
            }
        }
    }
}

impl FlowTemplateStage {
    /// The parsed template is the input: comments and layout of its file change nothing.
    fn key_fields(&self) -> Recipe {
        let template = serde_json::to_value(&self.template).expect("BUG: a template is plain data");
        Recipe::new("flow-template", REV).field("language", LANGUAGE).field("template", template)
    }
}

impl Stage for FlowTemplateStage {
    fn needs(&self) -> &[Need] {
        &[]
    }

    fn gives(&self) -> ArtifactKind {
        ArtifactKind::Template
    }

    fn recipe<'a>(
        &'a self,
        _: &'a Inputs,
        _: &'a Context,
    ) -> BoxFuture<'a, Result<Recipe, StageError>> {
        async move { Ok(self.key_fields()) }.boxed()
    }

    fn restore(&self, record: &Record, _: &Recipe, _: &Inputs, _: &Context) -> Option<Artifact> {
        record.inline("template")?;
        Some(Artifact::Template(self.template.clone().into()))
    }

    fn run<'a>(
        &'a self,
        _: &'a Inputs,
        _: &'a Context,
        _: &'a (dyn Fn(Artifact) + Send + Sync),
    ) -> BoxFuture<'a, Result<Done, StageError>> {
        let digest = self.template.digest.to_string();
        let ports = [
            ("template".to_owned(), Port::Inline(digest.into())),
            ("file".to_owned(), Port::Inline(self.file.as_str().into())),
        ];
        let done = Done {
            artifact: Artifact::Template(self.template.clone().into()),
            recipe: self.key_fields(),
            outcome: Some(Outcome::Value(ports.into())),
            worked: true,
            failure: None,
        };
        async move { Ok(done) }.boxed()
    }

    fn runs_in_plan(&self) -> bool {
        true
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        vec![self.file.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> String {
        parse("t.toml".into(), text).unwrap_err().to_string()
    }

    #[test]
    fn a_step_sees_only_the_steps_before_it() {
        let text = "[[step]]\nid = \"one\"\nuser = \"{{ row.q }}\"\n[[step]]\nid = \"two\"\nuser = \"{{ steps.oen.output }}\"\n";
        let errors = errors(text);
        assert!(errors.contains("there is no earlier step `oen` (known: one)"), "{errors}");
        assert!(errors.contains("hint: did you mean `one`?"), "{errors}");
    }

    #[test]
    fn comments_change_nothing() {
        let parse = |text: &str| parse("t.toml".into(), text).unwrap().digest;
        let text = "[[step]]\nid = \"one\"\nuser = \"{{ row.q }}\"\n";
        assert_eq!(parse(text), parse(&format!("# note\n{text}")));
        assert_ne!(parse(text), parse(&text.replace("row.q", "row.p")));
    }

    #[test]
    fn other_names_are_refused() {
        let errors = errors("[[step]]\nid = \"one\"\nuser = \"{{ question }}\"\n");
        assert!(errors.contains("`question` is unknown in a flow template"), "{errors}");
    }
}
