//! `expand`: template × rows of a fixture gives flows. Knows nothing of engines.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::Arc;

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::flows::{Flows, Growth};
use super::{
    Artifact, ArtifactKind, Context, Done, FlowTemplate, Inputs, Need, Setting, Stage, StageError,
};
use crate::digest::{Digest, Recipe};
use crate::manifest::{Diagnostic, Fields, Spanned};
use crate::record::Event;
use crate::sample::Flow;
use crate::store::{Outcome, Port, Record, Store};
use crate::template::{LANGUAGE, Templates};

mod rows;
mod steps;

use rows::{Fixture, Format, Rows};
use steps::Pool;

/// Version of how rows become flows.
const REV: u32 = 1;
/// How often progress is told, in flows.
const TELL_EVERY: u64 = 1000;

struct Expand {
    name: String,
    needs: Vec<Need>,
    fixtures: Vec<(Utf8PathBuf, Format)>,
    /// The format that the manifest names, for rows whose file names are not known beforehand.
    format: Option<String>,
    count: Option<u64>,
    shuffle_seed: Option<i64>,
    filter: Option<String>,
    shots: Option<(Utf8PathBuf, Format)>,
    shots_seed: i64,
}

pub(super) fn read(
    name: &str,
    fields: Fields<'_>,
    setting: &Setting<'_>,
) -> Option<Box<dyn Stage>> {
    let template = super::need(&fields, "template", ArtifactKind::Template);
    // Rows that another stage makes: the files of a command.
    let made = super::needs(&fields, "rows", &[ArtifactKind::Files]);
    if !fields.has("fixture") && !fields.has("rows") {
        let hint = "`fixture = \"<file or folder>\"`, or `rows = \"<stage that writes them>\"`";
        fields.error(Diagnostic::at(fields.span(), "an expansion needs rows").hint(hint));
    }
    let format = fields.choice("format", rows::FORMATS).map(|text| text.value);
    let mut fixtures = Vec::new();
    let fixture = |path: Spanned<Utf8PathBuf>| {
        if !setting.check_exists(&fields, &path) {
            return None;
        }
        let is_folder = setting.root.join(&path.value).is_dir();
        let known = Format::of(&path.value, is_folder, format.as_deref());
        if known.is_none() {
            let message = format!("cannot tell what `{}` holds", path.value);
            let hint = format!("add `format` (known: {})", rows::FORMATS.join(", "));
            fields.error(Diagnostic::at(path.span, message).hint(hint));
        }
        Some((path.value, known?))
    };
    fixtures.extend(fields.paths("fixture").unwrap_or_default().into_iter().filter_map(fixture));
    let shots = fields.path("shots").and_then(fixture);
    let shots_seed = fields.integer("shots_seed", i64::MIN..=i64::MAX);
    if shots_seed.is_some() && !fields.has("shots") {
        let message = "`shots_seed` without `shots`: nothing is drawn";
        fields.error(Diagnostic::at(fields.place("shots_seed"), message));
    }
    let count = fields.integer("count", 1..=i64::MAX).map(|count| count as u64);
    let shuffle_seed = fields.integer("shuffle_seed", i64::MIN..=i64::MAX);
    let filter = fields.text("filter").map(|filter| {
        if let Err(error) = Templates::default().check_expression(&filter.value) {
            let hint =
                "a filter is an expression such as `row.category == 'facts'`, without braces";
            fields.error(Diagnostic::at(filter.span, error.message).hint(hint));
        }
        filter.value
    });
    fields.finish();
    Some(Box::new(Expand {
        name: name.to_owned(),
        needs: std::iter::once(template?).chain(made).collect(),
        fixtures,
        format,
        count,
        shuffle_seed,
        filter,
        shots,
        shots_seed: shots_seed.unwrap_or(0),
    }))
}

impl Expand {
    /// The bound on flows: the manifest's, and that of `--limit`.
    fn count(&self, context: &Context) -> Option<u64> {
        match (self.count, context.options.limit) {
            (Some(count), Some(limit)) => Some(count.min(limit)),
            (count, limit) => count.or(limit),
        }
    }

    /// Reads the fixtures into the store, and with `whole` makes sure that their content is good there.
    fn import(
        &self,
        inputs: &Inputs,
        context: &Context,
        whole: bool,
    ) -> Result<Vec<Fixture>, StageError> {
        let import = |(path, format): &(Utf8PathBuf, Format)| {
            Fixture::import(path, *format, &context.resolve(path)?, &context.store, whole)
        };
        let mut fixtures = self.fixtures.iter().map(import).collect::<Result<Vec<_>, _>>()?;
        for input in inputs.all("rows") {
            let Artifact::Files(files) = &input.artifact else {
                unreachable!("BUG: the graph lets only files in here")
            };
            for (path, digest) in &files.files {
                let path = Utf8PathBuf::from(path);
                let format = Format::of(&path, false, self.format.as_deref());
                let format = format.filter(|format| *format != Format::Folder).ok_or_else(|| {
                    let known = rows::FORMATS.join(", ");
                    StageError::User(format!(
                        "cannot tell what `{path}` of `{}` holds; add `format` (known: {known})",
                        input.stage
                    ))
                })?;
                fixtures.push(Fixture::made(path, format, *digest));
            }
        }
        Ok(fixtures)
    }

    /// The rows of worked examples.
    fn import_shots(&self, context: &Context, whole: bool) -> Result<Option<Fixture>, StageError> {
        let Some((path, format)) = &self.shots else { return Ok(None) };
        let full = context.resolve(path)?;
        Fixture::import(path, *format, &full, &context.store, whole).map(Some)
    }

    fn recipe_of(
        &self,
        template: Digest,
        fixtures: &[Fixture],
        shots: Option<&Fixture>,
        context: &Context,
    ) -> Recipe {
        let recipe = Recipe::new("expand", REV)
            .field("language", LANGUAGE)
            .field("count", self.count(context))
            .field("shuffle_seed", self.shuffle_seed)
            .field("filter", self.filter.clone())
            .input("template", template);
        let recipe = match shots {
            Some(shots) => recipe
                .field("shots format", shots.format.name())
                .field("shots_seed", self.shots_seed)
                .input("shots", shots.digest),
            None => recipe,
        };
        fixtures.iter().enumerate().fold(recipe, |recipe, (i, fixture)| {
            recipe
                .field(&format!("fixture {i} format"), fixture.format.name())
                .input(format!("fixture {i}"), fixture.digest)
        })
    }
}

impl Stage for Expand {
    fn needs(&self) -> &[Need] {
        &self.needs
    }

    fn gives(&self) -> ArtifactKind {
        ArtifactKind::Flows
    }

    fn recipe<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Recipe, StageError>> {
        async move {
            let template = inputs.one("template").digest().await?;
            let fixtures = self.import(inputs, context, false)?;
            let shots = self.import_shots(context, false)?;
            Ok(self.recipe_of(template, &fixtures, shots.as_ref(), context))
        }
        .boxed()
    }

    fn restore(
        &self,
        record: &Record,
        _: &Recipe,
        _: &Inputs,
        context: &Context,
    ) -> Option<Artifact> {
        let count = record.inline("count")?.as_u64()?;
        Flows::stored(&context.store, record.blob("flows")?, count).map(Artifact::Flows)
    }

    fn run<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
        publish: &'a (dyn Fn(Artifact) + Send + Sync),
    ) -> BoxFuture<'a, Result<Done, StageError>> {
        async move {
            let Artifact::Template(template) = inputs.one("template") else {
                unreachable!("BUG: the graph lets only templates in here")
            };
            let fixtures = self.import(inputs, context, true)?;
            let shots = self.import_shots(context, true)?;
            let recipe = self.recipe_of(template.digest, &fixtures, shots.as_ref(), context);
            let draws = template.steps.iter().any(|step| step.draw.is_some());
            if shots.is_some() && !draws {
                let hint = "add [step.draw] to a step of the flow template";
                return Err(StageError::User(format!("`shots` without anything to draw: {hint}")));
            }
            let writer = context.store.blob_writer()?;
            let (tell, growth) = watch::channel(Growth { flows: 0, bytes: 0, end: None });
            let flows = Flows::growing(growth, writer.reader()?);
            publish(Artifact::Flows(flows.clone()));
            let work = Work {
                stage: self.name.clone(),
                template: template.clone(),
                fixtures,
                count: self.count(context),
                shuffle_seed: self.shuffle_seed,
                filter: self.filter.clone(),
                shots,
                shots_seed: self.shots_seed,
                store: context.store.clone(),
                emit: context.emit.clone(),
                stop: context.stop.clone(),
            };
            let written = tokio::task::spawn_blocking(move || {
                let written = work.write(writer, &tell);
                let end = written.as_ref().map(|(digest, _)| *digest).map_err(Clone::clone);
                tell.send_modify(|growth| growth.end = Some(end));
                written
            });
            let (digest, count) = written
                .await
                .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
            if let Some(wanted) =
                self.count.filter(|wanted| count < *wanted && context.options.limit.is_none())
            {
                context.notice(
                    &self.name,
                    format!("`count` asks for {wanted} flows, and the fixture has {count}"),
                );
            }
            let ports = [
                ("flows".to_owned(), Port::Blob(digest)),
                ("count".to_owned(), Port::Inline(count.into())),
            ];
            Ok(Done {
                artifact: Artifact::Flows(flows),
                recipe,
                outcome: Some(Outcome::Value(ports.into())),
                worked: true,
                failure: None,
            })
        }
        .boxed()
    }

    fn runs_in_plan(&self) -> bool {
        true
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        self.fixtures.iter().chain(&self.shots).map(|(path, _)| path.clone()).collect()
    }
}

/// What one expansion needs, away from the async world.
struct Work {
    stage: String,
    template: Arc<FlowTemplate>,
    fixtures: Vec<Fixture>,
    count: Option<u64>,
    shuffle_seed: Option<i64>,
    filter: Option<String>,
    shots: Option<Fixture>,
    shots_seed: i64,
    store: Arc<Store>,
    emit: Arc<dyn Fn(Event) + Send + Sync>,
    stop: tokio_util::sync::CancellationToken,
}

impl Work {
    /// The rows of worked examples, all in memory.
    fn pool(&self) -> Result<Option<Pool>, StageError> {
        let Some(shots) = &self.shots else { return Ok(None) };
        let rows = Rows::open(std::slice::from_ref(shots), None, &self.store)?;
        let rows: Result<Vec<_>, _> = rows.map(|row| Ok::<_, StageError>(row?.value)).collect();
        Ok(Some(Pool::new(rows?, self.shots_seed)))
    }

    fn write(
        &self,
        mut writer: crate::store::BlobWriter,
        tell: &watch::Sender<Growth>,
    ) -> Result<(Digest, u64), StageError> {
        let maker = Maker::new(&self.template, self.pool()?)?;
        let mut seen: HashMap<Digest, u32> = HashMap::new();
        let mut names: HashMap<String, u32> = HashMap::new();
        let (mut count, mut bytes) = (0_u64, 0_u64);
        let emit = |flows| (self.emit)(Event::FlowsExpanded { stage: self.stage.clone(), flows });
        for row in Rows::open(&self.fixtures, self.shuffle_seed, &self.store)? {
            if self.count.is_some_and(|wanted| count >= wanted) {
                break;
            }
            if self.stop.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            let row = row?;
            let place = row.place;
            let context = json!({ "row": row.value });
            if let Some(filter) = &self.filter {
                let keep = maker.templates.is_true(filter, &context);
                if !keep.map_err(|error| StageError::User(format!("{place}: filter: {error}")))? {
                    continue;
                }
            }
            let mut flow = maker
                .flow(&context, row.number)
                .map_err(|message| StageError::User(format!("{place}: {message}")))?;
            let occurrence = seen.entry(flow.steps_digest()).or_default();
            flow.occurrence = *occurrence;
            *occurrence += 1;
            flow.id = unique(&flow.id, &mut names);
            let mut line = serde_json::to_vec(&flow).expect("BUG: a flow is plain data");
            line.push(b'\n');
            writer
                .write_all(&line)
                .map_err(|error| StageError::Failed(format!("cannot write flows: {error}")))?;
            count += 1;
            bytes += line.len() as u64;
            tell.send_modify(|growth| (growth.flows, growth.bytes) = (count, bytes));
            if count % TELL_EVERY == 0 {
                emit(count);
            }
        }
        emit(count);
        if count == 0 {
            return Err(StageError::User(
                "the expansion gives no flows: its fixture is empty, or its filter lets nothing through"
                    .to_owned(),
            ));
        }
        Ok((writer.finish()?, count))
    }
}

/// The name itself for the first flow that bears it, then `name#2`, `name#3`, …
fn unique(name: &str, used: &mut HashMap<String, u32>) -> String {
    let mut copies = used.get(name).copied().unwrap_or(0);
    loop {
        copies += 1;
        let id = if copies == 1 { name.to_owned() } else { format!("{name}#{copies}") };
        // A row may bear such a name itself.
        if copies == 1 || !used.contains_key(&id) {
            used.insert(name.to_owned(), copies);
            used.entry(id.clone()).or_insert(1);
            return id;
        }
    }
}

/// Makes flows of one template: all its texts compiled once.
struct Maker<'a> {
    template: &'a FlowTemplate,
    templates: Templates,
    pool: Option<Pool>,
}

impl<'a> Maker<'a> {
    fn new(template: &'a FlowTemplate, pool: Option<Pool>) -> Result<Self, StageError> {
        let mut templates = Templates::default();
        for step in &template.steps {
            for (name, source) in steps::texts(step) {
                templates
                    .add(&name, source)
                    .map_err(|error| StageError::User(error.to_string()))?;
            }
        }
        Ok(Maker { template, templates, pool })
    }

    fn flow(&self, context: &Value, number: u64) -> Result<Flow, String> {
        let id = match &self.template.id {
            None => format!("row-{number}"),
            Some(expression) => match self.evaluate("id", expression, context)? {
                Value::String(text) => text,
                other => other.to_string(),
            },
        };
        let targets = match &self.template.targets {
            None => Vec::new(),
            Some(expression) => targets(self.evaluate("targets", expression, context)?)?,
        };
        let mut tags = BTreeMap::new();
        for tag in &self.template.tags {
            let value = context["row"].get(tag).ok_or_else(|| {
                format!(
                    "there is no column `{tag}` for the tag (known: {})",
                    columns(&context["row"])
                )
            })?;
            tags.insert(
                tag.clone(),
                value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            );
        }
        // Texts that wait are rendered on trial, with empty outputs: a wrong column shows before anything is
        // asked.
        let outputs =
            self.template.steps.iter().map(|step| (step.id.clone(), json!({ "output": "" })));
        let trial = json!({ "row": context["row"], "steps": outputs.collect::<Map<_, _>>() });
        let mut waits = false;
        let mut steps = Vec::new();
        for (nth, step) in self.template.steps.iter().enumerate() {
            steps.push(self.step(step, nth, context, &trial, &mut waits)?);
        }
        let row = waits.then(|| context["row"].clone());
        Ok(Flow { id, occurrence: 0, steps, targets, tags, row })
    }

    fn evaluate(&self, field: &str, source: &str, context: &Value) -> Result<Value, String> {
        self.templates
            .evaluate(source, context)
            .map_err(|error| self.explain(field, &error, context))
    }

    fn explain(
        &self,
        name: &str,
        error: &crate::template::TemplateError,
        context: &Value,
    ) -> String {
        let known = if error.undefined {
            format!(" (columns of the row: {})", columns(&context["row"]))
        } else {
            String::new()
        };
        format!("`{name}` of the flow template: {error}{known}")
    }
}

fn columns(row: &Value) -> String {
    let names = row.as_object().map(Map::keys).into_iter().flatten();
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Accepted answers: a text, a number, or a list of those.
fn targets(value: Value) -> Result<Vec<String>, String> {
    let one = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        other => {
            Err(format!("`targets` must give a text, a number or a list of those, not {other}"))
        }
    };
    match value {
        Value::Array(items) => items.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_never_share_a_name() {
        let mut used = HashMap::new();
        let names = ["a", "a", "a#2", "a", "b"].map(|name| unique(name, &mut used));
        assert_eq!(names, ["a", "a#2", "a#2#2", "a#3", "b"]);
    }
}
