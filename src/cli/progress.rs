//! Events become bars on a terminal and plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::say;
use super::terminal::visible;
use crate::record::{Event, Retry, ServedFrom, StageState, dollars};

/// How often a plain log tells how far a workflow is.
const TELL_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Progress {
    quiet: bool,
    verbose: bool,
    bars: Option<MultiProgress>,
    stages: Mutex<BTreeMap<String, Stage>>,
    kinds: Mutex<BTreeMap<String, String>>,
}

struct Stage {
    bar: Option<ProgressBar>,
    total: Option<u64>,
    done: u64,
    live: u64,
    tokens: u64,
    /// Dollars, where the price is known.
    cost: Option<f64>,
    /// Whether there is more that nobody knows.
    cost_unknown: bool,
    retries: u64,
    /// What the last failed attempt was, and how long is waited.
    trouble: String,
    started: Instant,
    told: Instant,
}

impl Stage {
    fn new(bar: Option<ProgressBar>, total: Option<u64>, started: Instant) -> Self {
        Stage {
            bar,
            total,
            done: 0,
            live: 0,
            tokens: 0,
            cost: None,
            cost_unknown: false,
            retries: 0,
            trouble: String::new(),
            started,
            told: Instant::now(),
        }
    }

    /// Speed, cost and trouble.
    fn words(&self) -> String {
        let mut words = Vec::new();
        if self.tokens > 0 {
            let seconds = self.started.elapsed().as_secs_f64().max(0.001);
            words.push(format!("{:.0} tokens/s", self.tokens as f64 / seconds));
        }
        words.extend(self.cost.map(|cost| dollars(cost, !self.cost_unknown)));
        if self.retries > 0 {
            words.push(format!("{} retries, last {}", self.retries, self.trouble));
        }
        words.join("  ")
    }
}

/// With a known end there is a bar, else a spinner.
fn style(has_end: bool) -> ProgressStyle {
    let template = match has_end {
        true => "{prefix:24!} {bar:24} {pos:>5}/{len} {elapsed:>4} ETA {eta:>4} {msg}",
        false => "{prefix:24!} {spinner} {elapsed:>4} {pos:>5} {msg}",
    };
    ProgressStyle::with_template(template).expect("BUG: the style of a bar")
}

impl Progress {
    pub(super) fn new(quiet: bool, verbose: bool) -> Self {
        // Bars and the engine's own log would write over each other.
        let bars = !quiet && !verbose && std::io::stderr().is_terminal();
        Progress {
            quiet,
            verbose,
            bars: bars.then(MultiProgress::new),
            stages: Mutex::default(),
            kinds: Mutex::default(),
        }
    }

    fn line(&self, text: &str) {
        // Servers and data have a say in it.
        let text = &visible(text);
        match &self.bars {
            _ if self.quiet => {}
            Some(bars) => {
                let _ = bars.println(text);
            }
            None => say(text),
        }
    }

    pub(super) fn on(&self, event: &Event) {
        self.on_at(event, Instant::now());
    }

    /// The same of an event that may have happened a while ago, in another process.
    pub(super) fn on_at(&self, event: &Event, at: Instant) {
        match event {
            Event::RunStarted { stages, .. } => {
                self.kinds
                    .lock()
                    .expect("BUG: the kind lock is poisoned")
                    .extend(stages.iter().cloned());
            }
            Event::StageStarted { stage, samples } => self.started(stage, *samples, at),
            Event::EngineLoaded { stage, init_ms, instances } => {
                self.loaded(stage);
                let copies =
                    if *instances > 1 { format!(" × {instances}") } else { String::new() };
                self.line(&format!("loaded  {stage}{copies}  {init_ms:.0} ms"));
            }
            Event::EngineLoading { stage, message } => self.loading(stage, message),
            Event::RequestRetried { stage, retry, .. } => self.retried(stage, retry),
            Event::SampleFinished {
                stage, served_from, output_tokens, cost, cost_unknown, ..
            } => {
                self.sample(stage, *served_from, *output_tokens, *cost, *cost_unknown);
            }
            Event::Notice { stage, message } => {
                let stage = stage.as_deref().map_or_else(String::new, |stage| format!("{stage}: "));
                self.line(&format!("warning: {stage}{message}"));
            }
            Event::StageFinished { stage, state, error, wall_ms, .. } => {
                if self.is_expand(stage) {
                    self.loaded(stage);
                }
                self.finished(stage, *state, error.as_deref(), *wall_ms);
            }
            Event::DataFetching { stage, message } => self.loading(stage, message),
            Event::EngineProved { .. }
            | Event::GivenUp { .. }
            | Event::FlowsExpanded { .. }
            | Event::DataPinned { .. }
            | Event::GatesJudged { .. }
            | Event::RunFinished { .. } => {}
        }
    }

    fn is_expand(&self, stage: &str) -> bool {
        let kinds = self.kinds.lock().expect("BUG: the kind lock is poisoned");
        kinds.get(stage).is_some_and(|kind| kind == "expand")
    }

    fn started(&self, stage: &str, samples: Option<u64>, at: Instant) {
        if let Some(running) =
            self.stages.lock().expect("BUG: the stage lock is poisoned").get_mut(stage)
        {
            running.total = samples;
            if let (Some(bar), Some(samples)) = (&running.bar, samples) {
                bar.set_length(samples);
                bar.set_style(style(true));
            }
            return;
        }
        if self.is_expand(stage) {
            self.line("Regenerating expanded flows");
        }
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(match samples {
                Some(samples) => ProgressBar::new(samples),
                None => ProgressBar::new_spinner(),
            });
            bar.set_style(style(samples.is_some()));
            bar.set_prefix(stage.to_owned());
            bar.set_elapsed(at.elapsed());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let entry = Stage::new(bar, samples, at);
        self.stages
            .lock()
            .expect("BUG: the stage lock is poisoned")
            .insert(stage.to_owned(), entry);
    }

    /// An engine on its way: a spinner, or a line now and then.
    fn loading(&self, name: &str, message: &str) {
        let mut stages = self.stages.lock().expect("BUG: the stage lock is poisoned");
        let Some(bars) = &self.bars else {
            drop(stages);
            return self.line(&format!("        {name}  {message}"));
        };
        let stage = stages.entry(format!("{name} (loading)")).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(style(false));
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            Stage::new(Some(bar), None, Instant::now())
        });
        if let Some(bar) = &stage.bar {
            bar.set_message(visible(message));
        }
    }

    fn loaded(&self, name: &str) {
        let key = format!("{name} (loading)");
        let stage = self.stages.lock().expect("BUG: the stage lock is poisoned").remove(&key);
        if let Some(bar) = stage.and_then(|stage| stage.bar) {
            bar.finish_and_clear();
        }
    }

    fn retried(&self, name: &str, retry: &Retry) {
        let mut stages = self.stages.lock().expect("BUG: the stage lock is poisoned");
        let Some(stage) = stages.get_mut(name) else { return };
        let first = stage.retries == 0;
        stage.retries += 1;
        stage.trouble = format!("{} (waiting {:.1} s)", retry.reason, retry.waited_ms / 1000.0);
        if let Some(bar) = &stage.bar {
            bar.set_message(visible(&stage.words()));
        }
        drop(stages);
        // The first in full; of the others, the count and the last reason stand beside the progress.
        if first || self.verbose {
            let wait = retry.waited_ms / 1000.0;
            self.line(&format!("        {name}  {}; trying again in {wait:.1} s", retry.detail));
        }
    }

    fn sample(
        &self,
        name: &str,
        served_from: ServedFrom,
        output_tokens: Option<u64>,
        cost: Option<f64>,
        cost_unknown: bool,
    ) {
        let mut stages = self.stages.lock().expect("BUG: the stage lock is poisoned");
        let Some(stage) = stages.get_mut(name) else { return };
        stage.done += 1;
        stage.live += u64::from(served_from == ServedFrom::Live);
        stage.tokens += output_tokens.unwrap_or(0);
        if let Some(cost) = cost {
            *stage.cost.get_or_insert_default() += cost;
        }
        stage.cost_unknown |= cost_unknown;
        if let Some(bar) = &stage.bar {
            bar.set_position(stage.done);
            bar.set_message(visible(&stage.words()));
        } else if stage.told.elapsed() >= TELL_EVERY {
            stage.told = Instant::now();
            let speed = stage.words();
            let total = stage.total.map_or_else(String::new, |total| format!(" of {total}"));
            let text = format!("        {name}  {}{total} samples  {speed}", stage.done);
            drop(stages);
            self.line(&text);
        }
    }

    fn finished(&self, name: &str, state: StageState, error: Option<&str>, wall_ms: f64) {
        let stage = self.stages.lock().expect("BUG: the stage lock is poisoned").remove(name);
        if let Some(bar) = stage.as_ref().and_then(|stage| stage.bar.as_ref()) {
            bar.finish_and_clear();
        }
        if state == StageState::Fresh && self.is_expand(name) {
            self.line("Using cached expanded flows");
        }
        let samples = match &stage {
            Some(stage) if stage.done > 0 => {
                format!("  {} samples, {} live", stage.done, stage.live)
            }
            _ => String::new(),
        };
        let worth_a_line = state != StageState::Fresh || self.verbose;
        if worth_a_line && error.is_none() {
            self.line(&format!("{:7} {name}{samples}  {wall_ms:.0} ms", state.name()));
        } else if let Some(error) = error {
            self.line(&format!("failed  {name}: {error}"));
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }
}
