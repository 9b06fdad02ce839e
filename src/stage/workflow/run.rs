//! The loop over the samples of a workflow: a window slides over the flows, results are written in order.
//! Knows nothing of how one sample is run.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::sample::{GivenUp, Job, Ran, Semantics, run_sample};
use super::vitals::Vitals;
use super::{FailOnError, Workflow};
use crate::digest::{Digest, DigestStream, Recipe};
use crate::engine::{Failure, Mode};
use crate::record::{
    Event, Observed, Price, ProfileBuilder, RequestCounts, RequestObserved, ScorerRequest,
    ServedFrom, Stopper, Tally, TallySummary, Tariffs, millis,
};
use crate::report::CellInfo;
use crate::sample::{Flow, Outcome as SampleOutcome, Sample, Score};
use crate::stage::flows::FlowReader;
use crate::stage::{Artifact, Context, Done, Inputs, Samples, StageError};
use crate::store::{BlobWriter, Outcome, Port};

/// Finished samples that may wait for an earlier one, beyond those in flight.
const REORDER_MAX: u64 = 1024;

/// Samples that are replayed at once: a shared store takes its time.
const REPLAYED_AT_ONCE: usize = 64;

/// Bytes of a table that are written together.
const ROWS_BUFFER: usize = 64 * 1024;

/// Finished samples that are taken from their queue together.
const TAKEN_AT_ONCE: usize = 64;

/// Of a sample that is handed on a few times, so that it is not copied each time.
type Finished = (u64, Arc<Flow>, Result<Box<Ran>, Box<GivenUp>>);

/// Runs all samples of a workflow.
pub(super) async fn run_all(
    workflow: &Workflow,
    inputs: &Inputs,
    context: &Context,
) -> Result<Done, StageError> {
    let start = Instant::now();
    let (flows, engine) = workflow.sources(inputs);
    // Read once: what is used is what the key is made of, even if a file changes meanwhile.
    super::check_budget(engine, context)?;
    let halt = context.stop.child_token();
    let job = Arc::new(workflow.job(inputs, context, workflow.mode(context), halt.clone())?);
    let mut window = Window::new(workflow, context, engine.tariff(), job.aside_tariffs.clone())?;
    window.stopper = workflow.stopper(inputs, context)?;
    let (epochs, width) = (u64::from(workflow.epochs), workflow.width(context) as usize);
    let total = || flows.count().map(|count| count * epochs);
    let started = || Event::StageStarted { stage: workflow.name.clone(), samples: total() };
    (context.emit)(started());
    if let Some(watch) = &context.watch {
        watch.began(&workflow.name, &engine.backend.describe());
    }
    let mut counted = total().is_some();
    let vitals = Vitals::watch();
    let afresh = vitals.afresh();
    engine.on_load(|_, _| afresh());
    let source = Source { reader: flows.reader(), next: None, epochs: workflow.epochs };
    let line = Arc::new(Line::new(source, halt.clone(), REORDER_MAX + width as u64));
    let (sender, mut finished) = mpsc::channel(width);
    let mut workers = JoinSet::new();
    for _ in 0..width {
        workers.spawn(work(job.clone(), line.clone(), sender.clone()));
    }
    drop(sender);
    let mut error = None;
    let mut taken = Vec::with_capacity(TAKEN_AT_ONCE);
    while finished.recv_many(&mut taken, TAKEN_AT_ONCE).await > 0 {
        if !counted && total().is_some() {
            counted = true;
            (context.emit)(started());
        }
        for done in taken.drain(..) {
            if let Some(failed) = window.take(done) {
                error.get_or_insert(failed);
            }
            if error.is_some() || window.stopped {
                // Requests at the engine are paid for and waited for; those before it are not sent any more.
                halt.cancel();
            }
        }
        line.written(window.written);
    }
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            // A bug: it goes on up to where the exit code is made of it.
            std::panic::resume_unwind(panic);
        }
    }
    let ended = line.end().await;
    if let Some(error) = error {
        return Err(error);
    }
    if !window.stopped {
        ended?;
    }
    // The last sample may have come before the table of flows was whole.
    if !counted && total().is_some() {
        (context.emit)(started());
    }
    let recipe = workflow.recipe_of(&job.settings, inputs).await?;
    let at_once = engine.backend.admission().width.unwrap_or(u32::MAX);
    let width = if workflow.batching_off { 1 } else { workflow.width(context).min(at_once) };
    let mut profile = std::mem::take(&mut window.profile).finish(
        workflow.cache.then(|| job.client.memory()),
        u64::from(width),
        Some(millis(start.elapsed())),
    );
    // A model in this process takes the processor for itself: then that says nothing of the client.
    let is_client = profile.speed.requests > 0 && !engine.backend.is_local();
    if is_client {
        profile.speed.cpu_share = vitals.cpu_share(context.run.cores);
        profile.speed.stall_ms_max = Some(vitals.stall_ms_max());
    }
    let info = workflow.info(&job, &recipe, inputs, context, profile);
    window.finish(flows.count().unwrap_or(0) * epochs, recipe, &info)
}

/// One after another, as long as there are any: as many of these run beside each other as samples may be in
/// flight.
async fn work(job: Arc<Job>, line: Arc<Line>, finished: mpsc::Sender<Finished>) {
    while let Some((index, flow, epoch)) = line.next().await {
        let result = run_sample(&job, &flow, epoch).await.map(Box::new).map_err(Box::new);
        if finished.send((index, flow, result)).await.is_err() {
            return;
        }
    }
}

/// The flows that wait for a worker.
struct Line {
    /// Says that no further one is to be begun.
    halt: CancellationToken,
    state: tokio::sync::Mutex<LineState>,
    /// Samples written, and how far ahead of them another one may begin.
    written: watch::Sender<u64>,
    ahead_max: u64,
}

struct LineState {
    source: Source,
    /// Number of the next sample.
    index: u64,
    /// Set at the end of the flows, or when they broke off.
    ended: Option<Result<(), StageError>>,
}

impl Line {
    fn new(source: Source, halt: CancellationToken, ahead_max: u64) -> Self {
        let state = LineState { source, index: 0, ended: None };
        Line { halt, state: state.into(), written: watch::Sender::new(0), ahead_max }
    }

    /// The next sample to begin; `None` at the end, and when no further one is to be begun.
    async fn next(&self) -> Option<(u64, Arc<Flow>, u32)> {
        let mut state = self.state.lock().await;
        let LineState { source, index, ended } = &mut *state;
        if ended.is_some() || self.halt.is_cancelled() {
            return None;
        }
        let next = async {
            if *index >= *self.written.borrow() + self.ahead_max {
                let mut written = self.written.subscribe();
                // Its sender is in here.
                let _ = written.wait_for(|written| *index < written + self.ahead_max).await;
            }
            source.next().await
        };
        let next = tokio::select! {
            biased;
            next = next => next,
            () = self.halt.cancelled() => return None,
        };
        match next {
            Ok(Some((flow, epoch))) => {
                *index += 1;
                Some((*index - 1, flow, epoch))
            }
            // What is under way has been paid for, and is waited for.
            end => {
                *ended = Some(end.map(|_| ()));
                if let Some(Err(_)) = ended {
                    self.halt.cancel();
                }
                None
            }
        }
    }

    /// So many samples are written.
    fn written(&self, count: u64) {
        self.written.send_if_modified(|written| std::mem::replace(written, count) != count);
    }

    /// Whether all flows were begun, and why not.
    async fn end(&self) -> Result<(), StageError> {
        self.state.lock().await.ended.take().unwrap_or(Err(StageError::Cancelled))
    }
}

/// Flows and epochs, one after another; all epochs of a flow come together.
struct Source {
    reader: FlowReader,
    next: Option<(Arc<Flow>, u32)>,
    epochs: u32,
}

impl Source {
    async fn next(&mut self) -> Result<Option<(Arc<Flow>, u32)>, StageError> {
        let (flow, epoch) = match self.next.take() {
            Some(again) => again,
            None => match self.reader.next().await? {
                Some(flow) => (Arc::new(flow), 0),
                None => return Ok(None),
            },
        };
        if epoch + 1 < self.epochs {
            self.next = Some((flow.clone(), epoch + 1));
        }
        Ok(Some((flow, epoch)))
    }
}

fn whole(table: BufWriter<BlobWriter>) -> Result<Digest, StageError> {
    let failed =
        |error: &std::io::Error| StageError::Failed(format!("cannot write samples: {error}"));
    let table = table.into_inner().map_err(|error| failed(error.error()))?;
    Ok(table.finish()?)
}

/// Tokens that the engine wrote for these in this run; `None` where unknown.
fn written_live(requests: &[RequestObserved]) -> Option<u64> {
    let live = requests.iter().filter(|request| request.served_from == ServedFrom::Live);
    live.map(|request| request.usage.output_tokens).sum()
}

/// The first thing that a frozen run does not find.
fn missed(flow: &Flow, missing: &Failure) -> StageError {
    StageError::Missing(format!("sample `{}`: {missing}", flow.id))
}

/// Whether this sample, next in order, is the last one.
fn stops(
    stopper: &mut Stopper,
    sample: &Sample,
    observed: &Observed,
    price: Option<Price>,
    aside_tariffs: &Tariffs,
) -> Result<bool, StageError> {
    // Remembered answers cost what they did: the same samples stop at the same one. Of an engine without a
    // price the costs are unknown; of a judge or an embedding without one they are no part of the rule.
    let costs = observed.requests.iter().map(|request| price?.of(&request.usage));
    let aside = observed.scoring.iter();
    let aside = aside.filter_map(|made| Some((made, aside_tariffs.get(&made.scorer)?.as_ref()?)));
    let costs = costs.chain(aside.map(|(made, price)| price.of(&made.request.usage)));
    let cost = costs.sum::<Option<f64>>();
    stopper.add(sample, observed.usage(), cost).map_err(StageError::User)
}

/// Finished samples: written in order, counted, and told.
struct Window<'a> {
    workflow: &'a Workflow,
    context: &'a Context,
    samples: BufWriter<BlobWriter>,
    observed: BufWriter<BlobWriter>,
    /// Finished, but an earlier one is not.
    waiting: BTreeMap<u64, Box<Ran>>,
    written: u64,
    tally: Tally,
    profile: ProfileBuilder,
    failed: u64,
    first_failure: String,
    worked: bool,
    /// What its engine's tokens cost, as [`Resource::tariff`](crate::engine::Resource::tariff) has it.
    tariff: Option<Option<Price>>,
    /// What may end the stage before its last flow.
    stopper: Option<Stopper>,
    /// It has: what is under way is waited for, and is no part of the result.
    stopped: bool,
    /// The same of those whom scorers and retrieval ask.
    aside_tariffs: Tariffs,
}

impl<'a> Window<'a> {
    fn new(
        workflow: &'a Workflow,
        context: &'a Context,
        tariff: Option<Option<Price>>,
        aside_tariffs: Tariffs,
    ) -> Result<Self, StageError> {
        Ok(Window {
            workflow,
            context,
            samples: BufWriter::with_capacity(ROWS_BUFFER, context.store.blob_writer()?),
            observed: BufWriter::with_capacity(ROWS_BUFFER, context.store.blob_writer()?),
            waiting: BTreeMap::new(),
            written: 0,
            tally: Tally::default(),
            profile: ProfileBuilder::default(),
            failed: 0,
            first_failure: String::new(),
            worked: false,
            tariff,
            stopper: None,
            stopped: false,
            aside_tariffs,
        })
    }

    /// Takes a finished sample; an error ends admission.
    fn take(&mut self, (index, flow, result): Finished) -> Option<StageError> {
        let ran = match result {
            Ok(ran) => ran,
            Err(given_up) => {
                self.tell_given_up(&flow, &given_up);
                return match given_up.failure {
                    // Beyond the end nothing can be wrong.
                    _ if self.stopped => None,
                    Failure::Cancelled => Some(StageError::Cancelled),
                    missing @ Failure::Missing(_) => Some(missed(&flow, &missing)),
                    Failure::User(words) => Some(StageError::User(words)),
                    other => Some(StageError::Failed(other.to_string())),
                };
            }
        };
        self.tell(index, &ran.sample, &ran.observed);
        if self.stopped {
            return None;
        }
        // With a rule to stop by, a failure counts where its turn comes: it may lie beyond the end.
        let mut error = match self.stopper {
            None => self.count_failure(&ran.sample),
            Some(_) => None,
        };
        self.waiting.insert(index, ran);
        while let Some(ran) = self.waiting.remove(&self.written) {
            if let Err(error) = self.write(&ran) {
                return Some(StageError::Failed(format!("cannot write samples: {error}")));
            }
            self.tally.add(&ran.sample);
            self.profile.add(&ran.observed);
            self.written += 1;
            if self.stopper.is_some() {
                error = error.or(self.count_failure(&ran.sample));
            }
            let stops = |stopper| {
                let price = self.tariff.flatten();
                stops(stopper, &ran.sample, &ran.observed, price, &self.aside_tariffs)
            };
            match self.stopper.as_mut().map(stops) {
                Some(Ok(true)) => {
                    self.stopped = true;
                    self.waiting.clear();
                }
                Some(Err(failed)) => return Some(failed),
                Some(Ok(false)) | None => {}
            }
        }
        error
    }

    /// Adds a row to each table.
    fn write(&mut self, ran: &Ran) -> std::io::Result<()> {
        self.samples.write_all(&ran.row)?;
        self.samples.write_all(b"\n")?;
        self.observed.write_all(&ran.observed_row)?;
        self.observed.write_all(b"\n")
    }

    fn tell(&mut self, index: u64, sample: &Sample, observed: &Observed) {
        if let Some(watch) = &self.context.watch {
            watch.ended(&self.workflow.name, sample, observed);
        }
        self.worked |= observed.served_from == ServedFrom::Live;
        let (cost, is_all) = self.cost(&observed.requests, &observed.scoring);
        let cut = observed.cut_short && self.tariffs().next().is_some();
        (self.context.emit)(Event::SampleFinished {
            stage: self.workflow.name.clone(),
            index,
            flow: sample.flow.clone(),
            outcome: sample.outcome,
            correct: sample.scores.first().and_then(Score::is_right),
            served_from: observed.served_from,
            latency_ms: observed.latency_ms(),
            requests: RequestCounts::of(&observed.requests, &observed.scoring),
            cost,
            cost_unknown: !is_all || cut,
            output_tokens: written_live(&observed.requests),
        });
    }

    /// What was asked and paid for in vain, as far as this run goes.
    fn tell_given_up(&self, flow: &Flow, GivenUp { requests, aside, .. }: &GivenUp) {
        let made = requests.iter().chain(aside.iter().map(|made| &made.request));
        if made.into_iter().all(|request| request.served_from != ServedFrom::Live) {
            return;
        }
        let (cost, is_all) = self.cost(requests, aside);
        (self.context.emit)(Event::GivenUp {
            stage: self.workflow.name.clone(),
            flow: Some(flow.id.clone()),
            requests: RequestCounts::of(requests, aside),
            cost,
            cost_unknown: !is_all,
            output_tokens: written_live(requests),
        });
    }

    /// What tokens cost, of all who are paid.
    fn tariffs(&self) -> impl Iterator<Item = &Option<Price>> {
        self.tariff.iter().chain(self.aside_tariffs.values())
    }

    /// Dollars for the live requests of a sample, those of its scorers and of retrieval included, as far as prices and
    /// tokens are known, and whether that is all. Of whoever is paid and has no price all is unknown.
    fn cost(&self, requests: &[RequestObserved], aside: &[ScorerRequest]) -> (Option<f64>, bool) {
        let own = requests.iter().zip(std::iter::repeat(self.tariff.as_ref()));
        let aside = aside.iter();
        let aside = aside.map(|made| (&made.request, self.aside_tariffs.get(&made.scorer)));
        let live = own.chain(aside).filter(|(made, _)| made.served_from == ServedFrom::Live);
        let paid = live.filter_map(|(made, tariff)| Some(made.cost(tariff?.as_ref())));
        let (sum, all) =
            paid.fold((0.0, true), |(sum, all), (cost, is_all)| (sum + cost, all && is_all));
        (self.tariffs().any(Option::is_some).then_some(sum), all)
    }

    fn count_failure(&mut self, sample: &Sample) -> Option<StageError> {
        if sample.outcome != SampleOutcome::ProviderError {
            return None;
        }
        self.failed += 1;
        if self.failed == 1 {
            let detail = sample.detail.as_deref().unwrap_or("the engine failed");
            self.first_failure = format!("`{}`: {detail}", sample.flow);
        }
        let ended = match self.workflow.fail_on_error {
            FailOnError::First => true,
            FailOnError::Count(count) => self.failed >= count,
            // Of a share, the end tells, where all flows are counted.
            FailOnError::Never | FailOnError::Share(_) => false,
        };
        ended.then(|| self.failure())
    }

    fn failure(&self) -> StageError {
        StageError::Failed(match self.failed {
            1 => format!("sample {}", self.first_failure),
            n => format!("{n} samples failed, first {}", self.first_failure),
        })
    }

    fn finish(self, all: u64, recipe: Recipe, info: &CellInfo) -> Result<Done, StageError> {
        let selected = if self.stopped { self.written } else { all };
        if self.written != selected {
            return Err(StageError::Failed(format!(
                "{} of {selected} selected flows have a result",
                self.written
            )));
        }
        if let FailOnError::Share(share) = self.workflow.fail_on_error
            && self.failed as f64 > share * selected as f64
        {
            return Err(self.failure());
        }
        let failure = (self.failed > 0).then(|| {
            format!("{} of {selected} samples failed, first {}", self.failed, self.first_failure)
        });
        let info = serde_json::to_vec(info).expect("BUG: settings are plain data");
        let mut summary = self.tally.summary();
        if let Some(stopper) = &self.stopper {
            stopper.conclude(all, &mut summary);
        }
        let samples = Samples {
            stage: self.workflow.name.clone(),
            key: recipe.key(),
            table: whole(self.samples)?,
            observed: whole(self.observed)?,
            info: self.context.store.put_blob(&info)?,
            summary,
        };
        let summary = serde_json::to_value(&samples.summary).expect("BUG: counts are plain data");
        let ports = [
            ("samples".to_owned(), Port::Blob(samples.table)),
            ("observed".to_owned(), Port::Blob(samples.observed)),
            ("info".to_owned(), Port::Blob(samples.info)),
            ("summary".to_owned(), Port::Inline(summary)),
        ];
        Ok(Done {
            artifact: Artifact::Samples(samples.into()),
            recipe,
            // With a passing failure in it, the table is not what the recipe gives.
            outcome: failure.is_none().then(|| Outcome::Value(ports.into())),
            worked: self.worked,
            failure,
        })
    }
}

impl Workflow {
    /// Works all samples out again from the requests that are remembered: the digest of their table, and
    /// their metrics.
    pub async fn replay(
        &self,
        inputs: &Inputs,
        context: &Context,
    ) -> Result<(Digest, TallySummary), StageError> {
        let job = self.job(inputs, context, Mode::Replay, context.stop.clone())?;
        let (flows, engine) = self.sources(inputs);
        let mut source = Source { reader: flows.reader(), next: None, epochs: self.epochs };
        let (mut table, mut tally) = (DigestStream::default(), Tally::default());
        let (mut stopper, price) = (self.stopper(inputs, context)?, engine.backend.price());
        let mut ended = false;
        while !ended {
            let mut chunk = Vec::new();
            while chunk.len() < REPLAYED_AT_ONCE && !ended {
                match source.next().await? {
                    Some(next) => chunk.push(next),
                    None => ended = true,
                }
            }
            let job = &job;
            let replays = chunk.iter().map(|(flow, epoch)| async move {
                let replay = run_sample(job, flow, *epoch).await;
                replay.map_err(|given_up| match given_up.failure {
                    missing @ Failure::Missing(_) => missed(flow, &missing),
                    other => StageError::Failed(other.to_string()),
                })
            });
            for replay in futures_util::future::join_all(replays).await {
                let ran = replay?;
                table.update(&ran.row);
                table.update(b"\n");
                tally.add(&ran.sample);
                if let Some(stopper) = &mut stopper
                    && stops(stopper, &ran.sample, &ran.observed, price, &job.aside_tariffs)?
                {
                    ended = true;
                    break;
                }
            }
        }
        let mut summary = tally.summary();
        if let Some(stopper) = &stopper {
            flows.digest().await?;
            let all = flows.count().unwrap_or(0) * u64::from(self.epochs);
            stopper.conclude(all, &mut summary);
        }
        Ok((table.finish(), summary))
    }

    /// What a stage's result depends on, made of settings that were read already.
    pub(super) async fn recipe_of(
        &self,
        settings: &Semantics,
        inputs: &Inputs,
    ) -> Result<Recipe, StageError> {
        let (flows, engine) = self.sources(inputs);
        let recipe = Recipe::new("workflow", super::REV)
            .field("epochs", self.epochs)
            // 2: draws of a row count as one cluster in the summary's interval.
            .field("summary_rev", (self.epochs > 1).then_some(2_u32))
            .input("engine", engine.identity)
            .input("flows", flows.digest().await?);
        // Known once the flows are whole. It changes no sample, and what a report says.
        let skipped = Some(flows.skipped()).filter(|skipped| *skipped > 0);
        let recipe = recipe.field("rows_skipped", skipped);
        Ok(self.describe_stop(settings.describe(recipe), inputs))
    }

    pub(super) fn mode(&self, context: &Context) -> Mode {
        if context.options.frozen {
            Mode::Frozen
        } else if !self.cache || context.options.afresh.contains(&self.name) {
            Mode::Afresh
        } else if context.options.through {
            Mode::Through
        } else {
            Mode::Live
        }
    }

    /// Samples in flight.
    pub(super) fn width(&self, context: &Context) -> u32 {
        self.concurrency.min(context.options.jobs.unwrap_or(u32::MAX)).max(1)
    }
}
