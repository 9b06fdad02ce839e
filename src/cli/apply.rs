//! `forge apply`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use camino::Utf8PathBuf;
use clap::Args;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{Signal, SignalKind};
use tokio_util::sync::CancellationToken;

use super::gate::{self, Outputs};
use super::progress::Progress;
use super::project::{Project, select, usage};
use super::timing::SampleTimes;
use super::{DONE, Failure, INTERRUPTED, ManifestArgs, block_on, print, say, summary};
use crate::exec::{Finished, Selection};
use crate::otlp::{self, Spans};
use crate::project::{Launch, Machine, prepare};
use crate::record::{Event, Verdict};
use crate::report::gates;
use crate::stage::{Context, Options, Samples, Watch};
use crate::store::Shared;

#[derive(Args)]
pub(super) struct Apply {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Run only this stage; what it needs has to be up to date
    #[arg(long, value_name = "STAGE", conflicts_with = "until")]
    only: Vec<String>,
    /// Run this stage and all that it needs
    #[arg(long, value_name = "STAGE")]
    until: Vec<String>,
    /// Work this stage out again, its requests included; the new results replace the old
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Work every stage out again; the new results replace the old
    #[arg(long, conflicts_with = "frozen")]
    no_cache: bool,
    /// Fail on the first thing that is not in the store
    #[arg(long)]
    frozen: bool,
    /// Look up branches and tags of data sets anew, whatever the lock file pins
    #[arg(long, conflicts_with = "frozen")]
    update_data: bool,
    /// Show the plan instead of running it
    #[arg(long)]
    dry_run: bool,
    /// Run again whenever the manifest or a file changes that it reads, until Ctrl-C
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    /// Go on with other stages when one fails
    #[arg(long)]
    keep_going: bool,
    /// Most samples in flight in any workflow
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Dollars that live requests may cost; no request is sent that could go beyond
    #[arg(long, value_name = "DOLLARS", value_parser = dollars)]
    budget: Option<f64>,
    /// Folder for the report instead of the manifest's
    #[arg(long, value_name = "DIR")]
    out: Option<Utf8PathBuf>,
    /// Give the run this tag, by which `forge show` and others find it
    #[arg(long, value_name = "NAME", value_parser = super::runs::tag_name)]
    tag: Vec<String>,
    #[command(flatten)]
    gates: Outputs,
    /// Write what happens to stdout as JSON Lines; the last is the result
    #[arg(long)]
    json: bool,
    /// Say nothing but errors
    #[arg(long, short, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more, the engine's own log included
    #[arg(long, short)]
    verbose: bool,
}

impl Apply {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.watch {
            return super::rerun::watch(&self.manifest);
        }
        if self.verbose {
            let filter = tracing_subscriber::EnvFilter::try_from_env("FORGE_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
            let log =
                tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
            let _ = log.try_init();
        }
        let project = Project::open(&self.manifest)?;
        let selection = self.selection(&project)?;
        let options = self.options(&project)?;
        if self.dry_run {
            let options = Options { offline: true, ..options };
            let nodes = selection.nodes.as_ref();
            return super::plan::show(&project, &self.manifest, options, nodes, self.json);
        }
        if self.gates.wants_gates() && project.graph.gates().is_empty() {
            let message =
                format!("`--junit` is for gates, and `{}` has none", self.manifest.manifest);
            return Err(usage(message));
        }
        let committed = project.committed()?;
        let store = project.store(&self.manifest)?;
        let progress = Arc::new(Progress::new(self.quiet, self.verbose));
        let times: Arc<Mutex<SampleTimes>> = Arc::default();
        let (spans, queue) = spans().unzip();
        let hear = listener(times.clone(), progress.clone(), spans.clone(), self.json);
        let watch = spans.clone().map(|spans| spans as Arc<dyn Watch>);
        let machine = Machine::default();
        let launch = Launch::new(&project, &machine, store.clone(), options, hear, watch)?;
        let context = launch.context.clone();
        for tag in &self.tag {
            store.run_files(&context.run.id).tag(tag)?;
        }

        // A part of a run is no result to commit.
        let whole = selection.nodes.is_none() && self.manifest.limit.is_none();
        let graph = project.graph.clone();
        let nodes = selection.nodes.clone();
        let emit = context.emit.clone();
        let told = emit.clone();
        let tell = move |message| told(Event::Notice { stage: None, message });
        let (quiet, verbose) = (self.quiet, self.verbose);
        let (finished, shared, judged) = block_on(async {
            // Before anything is paid for: wrong credentials are an error, an outage a warning.
            project.share(&self.manifest, &store, true, tell).await?;
            // So are baselines.
            let gates = prepare(&project.manifest, &project.graph, &store, &committed).await?;
            // Reports show what gates say of their samples.
            let _ = context.gates.set(gates.clone());
            // Listening before anything starts: an early Ctrl-C counts as well.
            let signal = tokio::signal::unix::signal(SignalKind::interrupt());
            let interrupt = tokio::spawn(on_interrupt(signal, context.stop.clone()));
            let sending = queue.map(|queue| queue.start(store.clone()));
            let wanted = |node: usize| nodes.as_ref().is_none_or(|nodes| nodes.contains(&node));
            let mut judged: Option<Result<Judged, Failure>> = None;
            let judge = |found: &BTreeMap<usize, Arc<Samples>>| {
                let said = gates.judge(&store, found, wanted).map(|(verdicts, silent)| {
                    (verdicts, silent.iter().map(ToString::to_string).collect::<Vec<_>>())
                });
                if let Ok((verdicts, _)) = &said
                    && !verdicts.is_empty()
                {
                    emit(Event::GatesJudged { verdicts: verdicts.clone() });
                }
                judged = Some(said.map_err(Failure::from));
            };
            let (finished, kept) = launch.run_and(graph, selection, judge).await;
            progress.finish();
            kept?;
            if whole {
                project.write_lock(&finished.record)?;
            }
            // Everything is kept by now: who does not want to wait for what is still to be sent may leave.
            let ticker = super::store::ticker("shared", "results", quiet);
            let shared = store.settle(&ticker).await;
            if let Some((sending, spans)) = sending.zip(spans) {
                let (sent, lost) = sending.finish(&spans).await;
                tell_spans(sent, lost, quiet, verbose);
            }
            interrupt.abort();
            Ok::<_, Failure>((finished, shared, judged))
        })??;
        let (judged, bad) = match judged.unwrap_or_else(|| Ok(Judged::default())) {
            Ok(judged) => (judged, None),
            Err(failure) => (Judged::default(), Some(failure)),
        };
        let (verdicts, silent) = judged;
        let times = times.lock().expect("BUG: the time lock is poisoned");
        self.tell(&finished, &times, &context, shared.as_ref(), &verdicts);
        if !silent.is_empty() && !self.quiet {
            let names: Vec<_> = silent.iter().map(|name| format!("`{name}`")).collect();
            say(&format!("gates that look at no stage of this run: {}", names.join(", ")));
        }
        let written = self.gates.write(&project.manifest, &verdicts);
        // Whatever makes results incomplete comes before what the gates say of them.
        match summary::exit_code(&finished.record) {
            DONE => {}
            code => return Err(Failure::Said(code)),
        }
        if let Some(failure) = bad {
            return Err(failure);
        }
        written?;
        gate::exit(&verdicts)
    }

    fn selection(&self, project: &Project) -> Result<Selection, Failure> {
        let graph = &project.graph;
        let (only, until) = (select(graph, &self.only)?, select(graph, &self.until)?);
        let chosen: BTreeSet<usize> = only.iter().chain(&until).copied().collect();
        Ok(Selection {
            nodes: (!chosen.is_empty()).then(|| graph.with_needed(chosen)),
            only: (!only.is_empty()).then(|| only.into_iter().collect()),
            keep_going: self.keep_going,
        })
    }

    fn options(&self, project: &Project) -> Result<Options, Failure> {
        let graph = &project.graph;
        let forced = select(graph, &self.force)?;
        if self.frozen && !forced.is_empty() {
            return Err(usage("`--force` asks for work that `--frozen` forbids"));
        }
        let names = graph.nodes().iter().enumerate();
        let afresh = names.filter(|(i, _)| self.no_cache || forced.contains(i));
        let out = match &self.out {
            None => None,
            Some(out) => {
                let full =
                    std::path::absolute(out).ok().and_then(|p| Utf8PathBuf::from_path_buf(p).ok());
                Some(full.ok_or_else(|| usage(format!("`{out}` is no usable folder")))?)
            }
        };
        let reports = graph.nodes().iter().filter(|node| node.kind == "report").count();
        Ok(Options {
            offline: false,
            reports,
            afresh: afresh.map(|(_, node)| node.name.clone()).collect(),
            frozen: self.frozen,
            update_data: self.update_data,
            limit: self.manifest.limit,
            jobs: self.jobs,
            budget: self.budget,
            out,
            ..Options::default()
        })
    }

    fn tell(
        &self,
        finished: &Finished,
        times: &SampleTimes,
        context: &Context,
        shared: Option<&Shared>,
        verdicts: &[Verdict],
    ) {
        if self.json {
            let mut done = done_line(finished, times);
            done["shared"] = json!(shared);
            done["gates"] = gate::json(verdicts);
            print(&done.to_string());
        }
        // Also with `--quiet`: somebody counts on these results.
        if let Some(shared) = shared.filter(|shared| shared.unsent > 0) {
            say(&format!(
                "warning: {} results are in the local store only ({}); `forge store push --store {} --remote {}` sends \
                 them",
                shared.unsent,
                shared.error.as_deref().unwrap_or("what they are made of is not the same there"),
                context.store.root(),
                shared.url
            ));
        }
        if let Some(shared) = shared.filter(|shared| shared.conflicts > 0) {
            say(&format!(
                "warning: others have shared {} other answers to the same requests meanwhile; `forge store push --replace` \
                 makes ours count",
                shared.conflicts
            ));
        }
        if self.quiet {
            for stage in finished.record.stages.iter().filter(|stage| stage.error.is_some()) {
                say(&format!("error: `{}`: {}", stage.name, stage.error.as_deref().unwrap_or("")));
            }
            let failed: Vec<Verdict> = verdicts.iter().filter(|v| !v.passed).cloned().collect();
            gates::lines(&failed).iter().for_each(|line| say(line));
            return;
        }
        times.tell(&finished.record, say);
        summary::lines(&finished.record).iter().for_each(|line| say(line));
        if !verdicts.is_empty() {
            gates::lines(verdicts).iter().for_each(|line| say(line));
            say(&gates::total(verdicts));
        }
        if let Some(report) = finished.files.iter().find(|file| file.extension() == Some("html")) {
            say(&format!("report: {}", shown(report, context)));
        }
        if let Some(shared) = shared {
            say(&format!(
                "shared: {} read, {} written, {}",
                shared.read, shared.written, shared.url
            ));
        }
    }
}

/// Spans of the run, where the environment asks for them. What is wrong there ends no run.
fn spans() -> Option<(Arc<Spans>, otlp::Queue)> {
    match otlp::Settings::read(&|name| std::env::var(name).ok()) {
        Ok(settings) => settings.map(otlp::queue),
        Err(why) => {
            say(&format!("warning: no spans are sent: {why}"));
            None
        }
    }
}

fn tell_spans(sent: u64, lost: Option<String>, quiet: bool, verbose: bool) {
    if let Some(lost) = lost.filter(|_| !quiet) {
        say(&format!("warning: {lost}"));
    }
    if verbose {
        say(&format!("{sent} spans sent to the OpenTelemetry endpoint"));
    }
}

fn dollars(text: &str) -> Result<f64, String> {
    let amount = text.trim_start_matches('$').parse::<f64>().ok();
    amount
        .filter(|amount| amount.is_finite() && *amount >= 0.0)
        .ok_or_else(|| "write an amount of dollars, such as 2.50".to_owned())
}

/// What the gates say, and the names of those that nobody asked.
type Judged = (Vec<Verdict>, Vec<String>);

/// What hears of events beside the record and the log: times, progress, spans, and stdout with `--json`.
pub(super) fn listener(
    times: Arc<Mutex<SampleTimes>>,
    progress: Arc<Progress>,
    spans: Option<Arc<Spans>>,
    json: bool,
) -> impl Fn(&Event) + Send + Sync {
    move |event| {
        times.lock().expect("BUG: the time lock is poisoned").on(event);
        progress.on(event);
        if let Some(spans) = &spans {
            spans.on(event);
        }
        if json {
            let line = serde_json::to_string(event).expect("BUG: an event is plain data");
            print(&line);
        }
    }
}

/// The first Ctrl-C stops admission, the second ends the process at once.
pub(super) async fn on_interrupt(signal: std::io::Result<Signal>, stop: CancellationToken) {
    let Ok(mut signal) = signal else { return };
    if signal.recv().await.is_some() {
        say(
            "interrupted: waiting for requests under way; once more to stop at once (nothing answered is lost)",
        );
        stop.cancel();
        if signal.recv().await.is_some() {
            std::process::exit(i32::from(INTERRUPTED));
        }
    }
}

/// The last line of `--json`.
fn done_line(finished: &Finished, times: &SampleTimes) -> Value {
    let record = &finished.record;
    let stage = |stage: &crate::record::StageRun| {
        json!({
            "name": stage.name,
            "kind": stage.kind,
            "state": stage.state,
            "key": stage.key,
            "result": stage.result,
            "rows_skipped": stage.rows_skipped,
            "error": stage.error,
        })
    };
    let result = |(name, summary): (&String, &crate::record::TallySummary)| {
        json!({
            "stage": name,
            "samples": summary.samples,
            "outcomes": summary.outcomes,
            "metrics": metrics(summary),
            "accuracy_ci": summary.accuracy_ci,
            "accuracy_by": summary.accuracy_by,
            "stopping": summary.stopping,
            "unscored": summary.unscored,
            "extractors": summary.extractors,
            "warnings": summary.warnings(),
        })
    };
    let mut time = Map::new();
    for stage in record.stages.iter().filter(|stage| stage.kind == "expand") {
        time.insert("flow_expansion_ms".to_owned(), json!(stage.wall_ms));
    }
    for ms in record.engine_init_ms.values() {
        time.insert("engine_init_ms".to_owned(), json!(ms));
    }
    time.insert("benchmark_total_ms".to_owned(), json!(record.wall_ms));
    time.insert("avg_workflow_ms".to_owned(), json!(times.mean(record)));
    json!({
        "event": "done",
        "run_id": record.run_id,
        "status": record.status,
        "wall_ms": record.wall_ms,
        "requests": record.requests,
        "retries": record.retries,
        "spent": record.spent,
        "unknown_cost_samples": record.unknown_cost_samples,
        "stages": record.stages.iter().map(stage).collect::<Vec<_>>(),
        "results": finished.samples.iter().map(result).collect::<Vec<_>>(),
        "files": finished.files,
        "timing": time,
    })
}

/// The metrics of a workflow; the usual ones are there even if no scorer gave them.
fn metrics(summary: &crate::record::TallySummary) -> Value {
    let mut metrics =
        json!({ "accuracy": null, "exact_match": null, "includes": null, "f1": null });
    for (name, value) in &summary.metrics {
        metrics[name] = json!(value);
    }
    metrics
}

/// A path as the user would type it.
fn shown(path: &camino::Utf8Path, context: &Context) -> Utf8PathBuf {
    let full = context.root.join(path);
    let here = std::env::current_dir().ok().and_then(|dir| Utf8PathBuf::from_path_buf(dir).ok());
    match here.and_then(|here| full.strip_prefix(here).ok().map(ToOwned::to_owned)) {
        Some(relative) => relative,
        None => full,
    }
}
