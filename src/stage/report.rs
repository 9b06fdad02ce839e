//! `report`: samples become files to read. Knows nothing of how samples came to be.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{
    Artifact, ArtifactKind, Context, Done, Files, Inputs, Need, Samples, Setting, Stage,
    StageError, View,
};
use crate::digest::{Digest, Recipe};
use crate::export::{ExportError, Source, Table};
use crate::history::{self, HistoryError, Tables};
use crate::manifest::{Diagnostic, Fields, Spanned};
use crate::record::Observed;
use crate::record::scores::PairBy;
use crate::report::{
    self, Analysis, Cell, CellBuilder, CellInfo, REPORT_VERSION, Report, Row, RunInfo, analyse,
};
use crate::sample::Sample;
use crate::stats::{BadReducer, REDUCERS, Reducer};
use crate::store::{Outcome, Port, Record, Store};

mod template;

use template::{Loaded, Templates};

/// Version of the report's look: raised when the same samples would give other files.
const REV: u32 = 8;
/// Formats by name.
const FORMATS: &[&str] = &["html", "json", "markdown", "csv", "junit", "parquet", "arrow"];
/// Those that are made where a manifest names none.
const FORMATS_DEFAULT: &[&str] = &["html", "json", "markdown"];
/// Bytes written at once.
const WRITE_BYTES: usize = 256 * 1024;

struct ReportStage {
    name: String,
    needs: Vec<Need>,
    title: Option<String>,
    formats: Vec<String>,
    templates: Templates,
    out: Spanned<Utf8PathBuf>,
    analysis: Analysis,
}

pub(super) fn read(
    name: &str,
    fields: Fields<'_>,
    setting: &Setting<'_>,
) -> Option<Box<dyn Stage>> {
    let needs = super::needs(&fields, "samples", &[ArtifactKind::Samples]);
    if needs.is_empty() {
        let message = "a report needs `samples`: the name of a workflow, or a list of names";
        fields.error(Diagnostic::at(fields.span(), message));
    }
    let title = fields.text("title").map(|text| text.value);
    let formats = fields.choices("formats", FORMATS);
    let formats =
        formats.unwrap_or_else(|| FORMATS_DEFAULT.iter().map(ToString::to_string).collect());
    let taken: Vec<String> = formats.iter().map(|format| file_name(format)).collect();
    let templates = template::read(&fields, setting, &taken);
    let out = fields.path("out").unwrap_or_else(|| Spanned {
        value: Utf8PathBuf::from(format!("out/{}/{}", setting.manifest.name, folder_name(name))),
        span: fields.span(),
    });
    let analysis = Analysis {
        reducers: read_reducers(&fields),
        cluster: fields.text("cluster").map(|tag| tag.value),
        baseline: fields.text("baseline").map(|name| name.value),
        pair_by: match fields.choice("pair_by", &["content", "id"]) {
            Some(by) if by.value == "id" => PairBy::Id,
            _ => PairBy::Content,
        },
    };
    fields.finish();
    Some(Box::new(ReportStage {
        name: name.to_owned(),
        needs,
        title,
        formats,
        templates,
        out,
        analysis,
    }))
}

/// One reducer or a list of them; `reducer` is another word for it.
fn read_reducers(fields: &Fields<'_>) -> Vec<Reducer> {
    if fields.has("reducer") && fields.has("reducers") {
        let message = "`reducer` is another word for `reducers`, and both are set";
        fields.error(
            Diagnostic::at(fields.place("reducer"), message)
                .also(fields.place("reducers"), "set here"),
        );
    }
    let texts = ["reducers", "reducer"].into_iter().filter_map(|name| fields.texts(name)).flatten();
    let mut out = Vec::new();
    for text in texts {
        match text.value.parse::<Reducer>() {
            Ok(reducer) if out.contains(&reducer) => {
                let message = format!("`{reducer}` stands twice in `reducers`");
                fields.error(Diagnostic::at(text.span, message));
            }
            Ok(reducer) => out.push(reducer),
            Err(error @ BadReducer::Unknown(_)) => fields.error(
                Diagnostic::at(text.span, error.to_string())
                    .did_you_mean(&text.value, REDUCERS.split(", ")),
            ),
            Err(error) => fields.error(Diagnostic::at(text.span, error.to_string())),
        }
    }
    out
}

fn file_name(format: &str) -> String {
    match Table::of(format) {
        Some(table) => table.file_name().to_owned(),
        None => format!("report.{}", if format == "markdown" { "md" } else { format }),
    }
}

/// The name of a stage as the name of a folder: the values of its matrix may hold anything.
fn folder_name(stage: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_=,[]".contains(c) { c } else { '_' };
    stage.chars().map(plain).collect()
}

impl ReportStage {
    fn samples<'a>(&self, inputs: &'a Inputs) -> impl Iterator<Item = &'a Samples> {
        inputs.all("samples").map(|input| match &input.artifact {
            Artifact::Samples(samples) => samples.as_ref(),
            _ => unreachable!("BUG: the graph lets only samples in here"),
        })
    }

    /// Writes a file of the report into the store while the samples are read out of it.
    fn streamed(
        &self,
        inputs: &Inputs,
        context: &Context,
        make: impl FnOnce(
            &mut dyn Iterator<Item = Result<(usize, Row), StageError>>,
            &mut dyn FnMut(&str) -> Result<(), StageError>,
        ) -> Result<(), StageError>,
    ) -> Result<Digest, StageError> {
        let store = &context.store;
        let mut blob = BufWriter::with_capacity(WRITE_BYTES, store.blob_writer()?);
        // A table is opened when the one before it is read.
        let tables = self.samples(inputs).enumerate().flat_map(|(cell, samples)| {
            let (rows, error) = match rows_of(samples, store) {
                Ok(rows) => (Some(rows), None),
                Err(error) => (None, Some(Err(error))),
            };
            let rows = rows.into_iter().flatten().map(move |row| Ok((cell, row?)));
            error.into_iter().chain(rows)
        });
        let failed = |error: std::io::Error| {
            StageError::Failed(format!("the report cannot be written: {error}"))
        };
        make(&mut { tables }, &mut |text| blob.write_all(text.as_bytes()).map_err(failed))?;
        let blob = blob.into_inner().map_err(|error| failed(error.into_error()))?;
        Ok(blob.finish()?)
    }

    fn report(&self, inputs: &Inputs, context: &Context) -> Result<Report, StageError> {
        let run = &context.run;
        // Files of ours read samples as they write them, so that the report need not hold what was said; a template
        // of a user may show all of it.
        let bare = self.templates.paths.is_empty();
        let cells = self.samples(inputs).map(|samples| match bare {
            true => read_bare_cell(samples, &context.store, self.analysis.cluster.as_deref()),
            false => read_cell(samples, &context.store),
        });
        let mut cells = cells.collect::<Result<Vec<_>, _>>()?;
        let comparisons = analyse(&mut cells, &self.analysis)
            .map_err(|error| StageError::User(format!("`{}`: {error}", self.name)))?;
        let gates = match context.gates.get() {
            Some(gates) => {
                gates.verdicts(&self.samples(inputs).collect::<Vec<_>>(), &context.store)?
            }
            None => Vec::new(),
        };
        Ok(Report {
            version: REPORT_VERSION,
            title: self.title.clone().unwrap_or_else(|| context.pipeline.clone()),
            description: run.description.clone(),
            run: RunInfo {
                run_id: run.id.clone(),
                started_at: run.started_at.clone(),
                pipeline: context.pipeline.clone(),
                manifest: run.manifest.clone(),
                manifest_digest: run.manifest_digest.clone(),
                tool: format!("forge {}", env!("CARGO_PKG_VERSION")),
                platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
                cores: run.cores,
                git_revision: run.git.as_ref().map(|(revision, _)| revision.clone()),
                git_dirty: run.git.as_ref().map(|(_, dirty)| *dirty),
                params: run.params.clone(),
            },
            cells,
            comparisons,
            gates,
        })
    }
}

impl ReportStage {
    /// Its files: where each is kept in its record, and its name.
    fn files(&self) -> impl Iterator<Item = (String, String)> {
        let formats = self.formats.iter().map(|format| (format.clone(), file_name(format)));
        let templates = self.templates.paths.iter();
        formats
            .chain(templates.map(|path| (template::port(path), template::output(path).to_owned())))
    }

    /// Whether it has files that show numbers, and not samples alone.
    fn is_whole(&self) -> bool {
        self.formats.iter().any(|format| Table::of(format).is_none())
            || !self.templates.paths.is_empty()
    }

    /// What decides the verdicts that it shows.
    fn gates(&self, inputs: &Inputs, context: &Context) -> Option<serde_json::Value> {
        let gates = context.gates.get().filter(|_| self.is_whole())?;
        let stages: Vec<&str> =
            self.samples(inputs).map(|samples| samples.stage.as_str()).collect();
        gates.describe(&stages)
    }

    fn recipe_with(&self, loaded: &Loaded, inputs: &Inputs, context: &Context) -> Recipe {
        let recipe = Recipe::new("report", REV)
            .field("title", self.title.clone().unwrap_or_else(|| context.pipeline.clone()))
            .field("description", context.run.description.clone())
            .field("formats", self.formats.clone())
            .field("gates", self.gates(inputs, context));
        let mut recipe = self.templates.describe(loaded, self.analysis.describe(recipe));
        for samples in self.samples(inputs) {
            // A report shows times, so what was observed is part of what it depends on. When nothing ran, the
            // observations are those remembered, and the report is fresh.
            recipe = recipe
                .input(format!("{} samples", samples.stage), samples.table)
                .input(format!("{} observed", samples.stage), samples.observed)
                .input(format!("{} info", samples.stage), samples.info);
        }
        recipe
    }

    /// All samples in one file.
    fn table(
        &self,
        table: Table,
        inputs: &Inputs,
        context: &Context,
    ) -> Result<Digest, StageError> {
        let store = &context.store;
        let source = |samples: &Samples| {
            let tables = Tables {
                samples: samples.table,
                observed: Some(samples.observed),
                info: Some(samples.info),
            };
            let info = tables.info(store).map_err(ExportError::from)?;
            Ok(Source { stage: samples.stage.clone(), tables, info: Some(info) })
        };
        let failed = |error: ExportError| StageError::Failed(error.to_string());
        let sources = self.samples(inputs).map(source).collect::<Result<Vec<_>, _>>();
        let mut out = BufWriter::new(store.blob_writer()?);
        table
            .write(&context.pipeline, &sources.map_err(failed)?, store, &mut out)
            .map_err(failed)?;
        let out = out.into_inner().map_err(|error| failed(error.into_error().into()))?;
        Ok(out.finish()?)
    }
}

/// The samples of a workflow with all that was observed of them.
pub(crate) fn read_cell(samples: &Samples, store: &Store) -> Result<Cell, StageError> {
    read_cell_with(samples, store, |row| row)
}

/// The same without what was said: numbers are all that is made of it. Rows are read one at a time.
fn read_bare_cell(
    samples: &Samples,
    store: &Store,
    cluster: Option<&str>,
) -> Result<Cell, StageError> {
    read_cell_with(samples, store, |row| row.bare(cluster))
}

fn read_cell_with(
    samples: &Samples,
    store: &Store,
    keep: impl Fn(Row) -> Row,
) -> Result<Cell, StageError> {
    let gone =
        || StageError::Failed(format!("the profile of `{}` is gone from the store", samples.stage));
    let info = store.blob(samples.info).ok_or_else(gone)?;
    let info: CellInfo = serde_json::from_slice(&info).map_err(|_| gone())?;
    let mut builder = CellBuilder::new(info);
    let mut rows = Vec::with_capacity(samples.summary.samples as usize);
    for row in rows_of(samples, store)? {
        let row = row?;
        builder.add(&row);
        rows.push(keep(row));
    }
    let (key, table) = (samples.key.to_string(), samples.table.to_string());
    let mut cell = builder.finish(&samples.stage, key, table, rows);
    // Where somebody looked along the way, the interval is another one, and the workflow has it.
    if samples.summary.stopping.is_some() {
        cell.summary = samples.summary.clone();
    }
    Ok(cell)
}

/// The rows of a workflow, one at a time.
fn rows_of(
    samples: &Samples,
    store: &Store,
) -> Result<impl Iterator<Item = Result<Row, StageError>> + use<>, StageError> {
    let failed = |error: HistoryError| StageError::Failed(error.to_string());
    let rows = history::each_row::<Sample>(store, samples.table).map_err(failed)?;
    let observed = history::each_row::<Observed>(store, samples.observed).map_err(failed)?;
    let row = move |(sample, observed): (Result<_, _>, Result<_, _>)| {
        Ok(Row::new(sample.map_err(failed)?, observed.map_err(failed)?))
    };
    Ok(rows.zip(observed).map(row))
}

impl Stage for ReportStage {
    fn needs(&self) -> &[Need] {
        &self.needs
    }

    fn gives(&self) -> ArtifactKind {
        ArtifactKind::Files
    }

    fn recipe<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Recipe, StageError>> {
        async move { Ok(self.recipe_with(&self.templates.load(context)?, inputs, context)) }.boxed()
    }

    fn restore(
        &self,
        record: &Record,
        _: &Recipe,
        _: &Inputs,
        context: &Context,
    ) -> Option<Artifact> {
        let mut files = Files::default();
        for (port, name) in self.files() {
            let digest = record.blob(&port)?;
            if !context.store.has_blob(digest) {
                return None;
            }
            files.files.insert(name, digest);
        }
        Some(Artifact::Files(files))
    }

    fn run<'a>(
        &'a self,
        inputs: &'a Inputs,
        context: &'a Context,
        _: &'a (dyn Fn(Artifact) + Send + Sync),
    ) -> BoxFuture<'a, Result<Done, StageError>> {
        async move {
            let loaded = self.templates.load(context)?;
            let mut report = self.is_whole().then(|| self.report(inputs, context)).transpose()?;
            let mut files = Files::default();
            let mut ports = BTreeMap::new();
            for format in &self.formats {
                let digest = match (Table::of(format), &mut report) {
                    (Some(table), _) => self.table(table, inputs, context)?,
                    (None, Some(report)) => match format.as_str() {
                        "html" => self.streamed(inputs, context, |rows, write| {
                            report::html(report, rows, write)
                        })?,
                        "json" => self.streamed(inputs, context, |rows, write| {
                            report::json(report, rows, write)
                        })?,
                        _ => context.store.put_blob(report::markdown(report).as_bytes())?,
                    },
                    (None, None) => unreachable!("BUG: a report is read where one is written"),
                };
                ports.insert(format.clone(), Port::Blob(digest));
                files.files.insert(file_name(format), digest);
            }
            for path in &self.templates.paths {
                let report = report.as_ref().expect("BUG: a report is read where one is written");
                let digest = context.store.put_blob(loaded.fill(path, report)?.as_bytes())?;
                ports.insert(template::port(path), Port::Blob(digest));
                files.files.insert(template::output(path).to_owned(), digest);
            }
            Ok(Done {
                artifact: Artifact::Files(files),
                recipe: self.recipe_with(&loaded, inputs, context),
                outcome: Some(Outcome::Value(ports)),
                worked: true,
                failure: None,
            })
        }
        .boxed()
    }

    fn runs_frozen(&self) -> bool {
        true
    }

    fn views(&self, artifact: &Artifact, context: &Context) -> Vec<View> {
        let Artifact::Files(files) = artifact else { return Vec::new() };
        let folder = match &context.options.out {
            Some(out) if context.options.reports > 1 => out.join(folder_name(&self.name)),
            Some(out) => out.clone(),
            None => self.out.value.clone(),
        };
        let view = |(name, digest): (&String, &Digest)| View {
            path: folder.join(name),
            digest: *digest,
            executable: false,
        };
        files.files.iter().map(view).collect()
    }

    fn outputs(&self) -> Vec<Spanned<Utf8PathBuf>> {
        let file = |(_, name): (String, String)| Spanned {
            value: self.out.value.join(name),
            span: self.out.span,
        };
        self.files().map(file).collect()
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        self.templates.reads.clone()
    }
}
