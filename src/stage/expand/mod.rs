//! `expand`: template × rows of a fixture gives flows. Knows nothing of engines.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::watch;

use super::flows::{Flows, Growth};
use super::{
    Artifact, ArtifactKind, Context, Done, FlowTemplate, Inputs, Need, Setting, Stage, StageError,
};
use crate::digest::{Digest, Recipe};
use crate::manifest::{Diagnostic, Fields};
use crate::record::Event;
use crate::sample::Flow;
use crate::store::{Outcome, Port, Record, Store};
use crate::template::{LANGUAGE, Templates};

mod bad;
mod hub;
mod maker;
mod order;
mod parquet;
mod rows;
mod seen;
mod shape;
mod source;
mod splits;
mod steps;
mod text;
mod web;

use bad::{BadRow, RowError};
use maker::Maker;
use order::Sorter;
use rows::{Row, Rows};
use seen::{Names, Seen};
use shape::Shape;
use source::{FORMATS, Fixture, Format, Source};
use steps::Pool;

/// Version of how rows become flows.
const REV: u32 = 1;
/// How often progress is told, in flows.
const TELL_EVERY: u64 = 1000;
/// Bytes of flows that are written together,
const TOGETHER: usize = 32 * 1024;
/// unless the last ones were written so long ago.
const TOGETHER_TIME: Duration = Duration::from_millis(1);
/// Bad rows that are shown in full.
const BAD_SHOWN: usize = 3;

struct Expand {
    name: String,
    needs: Vec<Need>,
    sources: Vec<Source>,
    /// The format that the manifest names, for rows whose file names are not known beforehand.
    format: Option<String>,
    count: Option<u64>,
    shuffle_seed: Option<i64>,
    shape: Shape,
    /// Whether bad rows are left out, and counted.
    skips: bool,
    /// Rows from which worked examples are drawn, and by what seed.
    shots: Vec<Source>,
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
    let format = fields.choice("format", FORMATS).map(|text| text.value);
    let sources = Source::read(&fields, "fixture", setting, format.as_deref());
    let shots = Source::read(&fields, "shots", setting, format.as_deref());
    let shots_seed = fields.integer("shots_seed", i64::MIN..=i64::MAX);
    if shots_seed.is_some() && !fields.has("shots") {
        let message = "`shots_seed` without `shots`: nothing is drawn";
        fields.error(Diagnostic::at(fields.place("shots_seed"), message));
    }
    let count = read_count(&fields);
    let shuffle_seed = fields.integer("shuffle_seed", i64::MIN..=i64::MAX);
    let shape = Shape::read(&fields);
    let skips = fields.choice("on_bad_row", &["fail", "skip"]).is_some_and(|w| w.value == "skip");
    fields.finish();
    Some(Box::new(Expand {
        name: name.to_owned(),
        needs: std::iter::once(template?).chain(made).collect(),
        sources,
        format,
        count,
        shuffle_seed,
        shape,
        skips,
        shots,
        shots_seed: shots_seed.unwrap_or(0),
    }))
}

/// `limit` is another word for `count`.
fn read_count(fields: &Fields<'_>) -> Option<u64> {
    let read = |name| fields.integer(name, 1..=i64::MAX).map(|count| count as u64);
    let (count, limit) = (read("count"), read("limit"));
    if count.is_some() && limit.is_some() {
        let message = "`limit` is another word for `count`, and both are set";
        fields.error(
            Diagnostic::at(fields.place("limit"), message).also(fields.place("count"), "set here"),
        );
    }
    count.or(limit)
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
    async fn import(
        &self,
        inputs: &Inputs,
        context: &Context,
        whole: bool,
    ) -> Result<Vec<Fixture>, StageError> {
        let mut fixtures = Vec::new();
        for source in &self.sources {
            fixtures.push(source.import(&self.name, context, whole).await?);
        }
        for input in inputs.all("rows") {
            let Artifact::Files(files) = &input.artifact else {
                unreachable!("BUG: the graph lets only files in here")
            };
            for (path, digest) in &files.files {
                let format = Format::of(path, false, self.format.as_deref());
                let format = format.filter(|format| *format != Format::Folder).ok_or_else(|| {
                    let known = FORMATS.join(", ");
                    StageError::User(format!(
                        "cannot tell what `{path}` of `{}` holds; add `format` (known: {known})",
                        input.stage
                    ))
                })?;
                fixtures.push(Fixture::of_file(path.clone(), format, *digest));
            }
        }
        Ok(fixtures)
    }

    /// The rows of worked examples.
    async fn import_shots(
        &self,
        context: &Context,
        whole: bool,
    ) -> Result<Vec<Fixture>, StageError> {
        let mut shots = Vec::new();
        for source in &self.shots {
            shots.push(source.import(&self.name, context, whole).await?);
        }
        Ok(shots)
    }

    fn recipe_of(
        &self,
        template: Digest,
        fixtures: &[Fixture],
        shots: &[Fixture],
        context: &Context,
    ) -> Recipe {
        let recipe = Recipe::new("expand", REV)
            .field("language", LANGUAGE)
            .field("count", self.count(context))
            .field("shuffle_seed", self.shuffle_seed)
            .field("on_bad_row", self.skips.then_some("skip"))
            .input("template", template);
        let recipe = self.shape.describe(recipe);
        let seed = (!shots.is_empty()).then_some(self.shots_seed);
        let recipe = shots.iter().enumerate().fold(recipe, |recipe, (i, shots)| {
            let name = if i == 0 { "shots".to_owned() } else { format!("shots {i}") };
            shots.describe(&name, recipe)
        });
        let recipe = recipe.field("shots_seed", seed);
        fixtures
            .iter()
            .enumerate()
            .fold(recipe, |recipe, (i, fixture)| fixture.describe(&format!("fixture {i}"), recipe))
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
            let fixtures = self.import(inputs, context, false).await?;
            let shots = self.import_shots(context, false).await?;
            Ok(self.recipe_of(template, &fixtures, &shots, context))
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
        let skipped = record.inline("skipped").and_then(Value::as_u64).unwrap_or(0);
        let flows = Flows::stored(&context.store, record.blob("flows")?, count, skipped)?;
        Some(Artifact::Flows(flows))
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
            let fixtures = self.import(inputs, context, true).await?;
            let shots = self.import_shots(context, true).await?;
            let recipe = self.recipe_of(template.digest, &fixtures, &shots, context);
            let draws = template.steps.iter().any(|step| step.draw.is_some());
            if !shots.is_empty() && !draws {
                let hint = "add [step.draw] to a step of the flow template";
                return Err(StageError::User(format!("`shots` without anything to draw: {hint}")));
            }
            let writer = context.store.blob_writer()?;
            let (tell, growth) =
                watch::channel(Growth { flows: 0, bytes: 0, skipped: 0, end: None });
            let flows = Flows::growing(growth, writer.reader()?);
            publish(Artifact::Flows(flows.clone()));
            let work = Work {
                stage: self.name.clone(),
                template: template.clone(),
                fixtures,
                count: self.count(context),
                shuffle_seed: self.shuffle_seed,
                shape: self.shape.clone(),
                skips: self.skips,
                shots,
                shots_seed: self.shots_seed,
                store: context.store.clone(),
                emit: context.emit.clone(),
                stop: context.stop.clone(),
            };
            let written = tokio::task::spawn_blocking(move || {
                let written = work.write(writer, &tell);
                let end = written.as_ref().map(|made| made.digest).map_err(Clone::clone);
                tell.send_modify(|growth| growth.end = Some(end));
                written
            });
            let Made { digest, count, bad } = written
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
            let mut ports = BTreeMap::from([
                ("flows".to_owned(), Port::Blob(digest)),
                ("count".to_owned(), Port::Inline(count.into())),
            ]);
            if bad.count > 0 {
                context.notice(&self.name, bad.notice());
                ports.insert("skipped".to_owned(), Port::Inline(bad.count.into()));
                ports.insert("skipped_first".to_owned(), Port::Inline(bad.first.into()));
            }
            Ok(Done {
                artifact: Artifact::Flows(flows),
                recipe,
                outcome: Some(Outcome::Value(ports)),
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
        self.sources.iter().chain(&self.shots).filter_map(Source::path).cloned().collect()
    }
}

/// What one expansion needs, away from the async world.
struct Work {
    stage: String,
    template: Arc<FlowTemplate>,
    fixtures: Vec<Fixture>,
    count: Option<u64>,
    shuffle_seed: Option<i64>,
    shape: Shape,
    skips: bool,
    shots: Vec<Fixture>,
    shots_seed: i64,
    store: Arc<Store>,
    emit: Arc<dyn Fn(Event) + Send + Sync>,
    stop: tokio_util::sync::CancellationToken,
}

/// What an expansion came to.
struct Made {
    digest: Digest,
    count: u64,
    bad: Bad,
}

/// Bad rows that were left out.
#[derive(Default)]
struct Bad {
    count: u64,
    /// The first of them, in words.
    first: Vec<String>,
}

impl Bad {
    fn notice(&self) -> String {
        let more = match self.count - self.first.len() as u64 {
            0 => String::new(),
            more => format!("\n… and {more} more"),
        };
        format!("{} bad rows left out:\n{}{more}", self.count, self.first.join("\n"))
    }
}

impl Work {
    /// The rows of worked examples, all in memory, with the same columns and fields as others.
    fn pool(&self) -> Result<Option<Pool>, StageError> {
        if self.shots.is_empty() {
            return Ok(None);
        }
        let templates = Templates::default();
        let mut rows = Vec::new();
        for row in Rows::open(&self.shots, &self.store)? {
            let shaped = row.and_then(|Row { value, place, .. }| {
                self.shape
                    .worked_out(value, &templates)
                    .map_err(|(message, row)| RowError::Bad(BadRow::unfit(&place, message, &row)))
            });
            rows.push(match shaped {
                Ok(row) => Value::Object(row),
                Err(RowError::Fatal(error)) => return Err(error),
                Err(RowError::Bad(bad)) => return Err(StageError::User(bad.to_string())),
            });
        }
        Ok(Some(Pool::new(rows, self.shots_seed)))
    }

    fn write(
        &self,
        writer: crate::store::BlobWriter,
        tell: &watch::Sender<Growth>,
    ) -> Result<Made, StageError> {
        let maker = Maker::new(&self.template, self.pool()?)?;
        let mut out = Out::new(writer, tell);
        let mut bad = Bad::default();
        let (mut seen, mut names) = (Seen::default(), Names::default());
        let emit = |flows| (self.emit)(Event::FlowsExpanded { stage: self.stage.clone(), flows });
        let rows = Rows::open(&self.fixtures, &self.store)?;
        for row in self.ordered(rows, &maker.templates, &mut bad)? {
            if self.count.is_some_and(|wanted| out.count >= wanted) {
                break;
            }
            if self.stop.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            // Rows in another order have been read and shaped by now.
            let shaped = match self.shuffle_seed {
                Some(_) => row.map(Some),
                None => row.and_then(|row| self.shaped(row, &maker.templates)),
            };
            let made = shaped.and_then(|row| row.map(|row| self.flow(&maker, row)).transpose());
            let mut flow = match made {
                Ok(Some(flow)) => flow,
                Ok(None) => continue,
                Err(error) => {
                    self.leave_out(error, &mut bad)?;
                    tell.send_modify(|growth| growth.skipped = bad.count);
                    continue;
                }
            };
            flow.occurrence = seen.add(flow.steps_digest());
            flow.id = names.unique(&flow.id);
            out.push(&flow)?;
            if out.count.is_multiple_of(TELL_EVERY) {
                emit(out.count);
            }
        }
        emit(out.count);
        if out.count == 0 {
            let first = bad
                .first
                .first()
                .map_or_else(String::new, |bad| format!("; the first bad row:\n{bad}"));
            return Err(StageError::User(format!(
                "the expansion gives no flows: its fixture is empty, or its filter lets nothing through{first}"
            )));
        }
        // Rows that were left out before the first flow was asked for count as well.
        tell.send_modify(|growth| growth.skipped = bad.count);
        let count = out.count;
        Ok(Made { digest: out.finish()?, count, bad })
    }

    /// Rows as the files have them, or with a seed shaped and in its order.
    fn ordered<'a>(
        &'a self,
        rows: Rows,
        templates: &Templates,
        bad: &mut Bad,
    ) -> Result<Box<dyn Iterator<Item = Result<Row, RowError>> + 'a>, StageError> {
        let Some(seed) = self.shuffle_seed else { return Ok(Box::new(rows)) };
        let mut sorter = Sorter::new(seed, self.store.blob_writer()?)?;
        for row in rows {
            if self.stop.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            let shaped = row.and_then(|row| {
                let rank = sorter.rank(&row.value);
                Ok(self.shaped(row, templates)?.map(|row| (rank, row)))
            });
            match shaped {
                Ok(Some((rank, row))) => sorter.push(rank, &row)?,
                Ok(None) => {}
                Err(error) => self.leave_out(error, bad)?,
            }
        }
        Ok(Box::new(sorter.finish()?))
    }

    /// The row as the template wants it; `None` where the filter leaves it out.
    fn shaped(&self, row: Row, templates: &Templates) -> Result<Option<Row>, RowError> {
        let Row { value, number, place } = row;
        match self.shape.shaped(value, templates) {
            Ok(value) => Ok(value.map(|value| Row { value, number, place })),
            Err((message, row)) => Err(RowError::Bad(BadRow::unfit(&place, message, &row))),
        }
    }

    fn flow(&self, maker: &Maker<'_>, row: Row) -> Result<Flow, RowError> {
        let context = shape::context(row.value);
        let id = self.shape.id(&context, &maker.templates).transpose();
        let flow = id.and_then(|id| maker.flow(&context, id, row.number));
        flow.map_err(|message| {
            let row_value = context["row"].as_object().expect("BUG: a row is a table");
            RowError::Bad(BadRow::unfit(&row.place, message, row_value))
        })
    }

    /// Counts a bad row, where that is the policy.
    fn leave_out(&self, error: RowError, bad: &mut Bad) -> Result<(), StageError> {
        let row = match error {
            RowError::Fatal(error) => return Err(error),
            RowError::Bad(row) => row,
        };
        if !self.skips {
            return Err(StageError::User(row.to_string()));
        }
        bad.count += 1;
        if bad.first.len() < BAD_SHOWN {
            bad.first.push(row.to_string());
        }
        Ok(())
    }
}

/// The table of flows while it is written.
struct Out<'a> {
    writer: crate::store::BlobWriter,
    tell: &'a watch::Sender<Growth>,
    /// Lines that are written together, and when the last were.
    lines: Vec<u8>,
    written: Instant,
    count: u64,
    bytes: u64,
}

impl<'a> Out<'a> {
    fn new(writer: crate::store::BlobWriter, tell: &'a watch::Sender<Growth>) -> Self {
        Out { writer, tell, lines: Vec::new(), written: Instant::now(), count: 0, bytes: 0 }
    }

    /// Adds a flow.
    fn push(&mut self, flow: &Flow) -> Result<(), StageError> {
        serde_json::to_writer(&mut self.lines, flow).expect("BUG: a flow is plain data");
        self.lines.push(b'\n');
        self.count += 1;
        match self.lines.len() >= TOGETHER || self.written.elapsed() >= TOGETHER_TIME {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// Writes what there is, and tells who reads that it is there.
    fn write(&mut self) -> Result<(), StageError> {
        self.writer
            .write_all(&self.lines)
            .map_err(|error| StageError::Failed(format!("cannot write flows: {error}")))?;
        self.bytes += self.lines.len() as u64;
        self.lines.clear();
        self.written = Instant::now();
        let (count, bytes) = (self.count, self.bytes);
        self.tell.send_modify(|growth| (growth.flows, growth.bytes) = (count, bytes));
        Ok(())
    }

    /// The digest of all.
    fn finish(mut self) -> Result<Digest, StageError> {
        self.write()?;
        Ok(self.writer.finish()?)
    }
}
