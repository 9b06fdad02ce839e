//! Events become bars on a terminal and plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::say;
use crate::record::{Event, ServedFrom, StageState};

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
    started: Instant,
    told: Instant,
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
        match &self.bars {
            _ if self.quiet => {}
            Some(bars) => {
                let _ = bars.println(text);
            }
            None => say(text),
        }
    }

    pub(super) fn on(&self, event: &Event) {
        match event {
            Event::RunStarted { stages, .. } => {
                self.kinds
                    .lock()
                    .expect("BUG: the kind lock is poisoned")
                    .extend(stages.iter().cloned());
            }
            Event::StageStarted { stage, samples } => self.started(stage, *samples),
            Event::EngineLoaded { stage, init_ms, instances } => {
                let copies =
                    if *instances > 1 { format!(" × {instances}") } else { String::new() };
                self.line(&format!("loaded  {stage}{copies}  {init_ms:.0} ms"));
            }
            Event::SampleFinished { stage, served_from, output_tokens, .. } => {
                self.sample(stage, *served_from, *output_tokens);
            }
            Event::Notice { stage, message } => {
                let stage = stage.as_deref().map_or_else(String::new, |stage| format!("{stage}: "));
                self.line(&format!("warning: {stage}{message}"));
            }
            Event::StageFinished { stage, state, error, wall_ms, .. } => {
                self.finished(stage, *state, error.as_deref(), *wall_ms);
            }
            Event::FlowsExpanded { .. } | Event::RunFinished { .. } => {}
        }
    }

    fn is_expand(&self, stage: &str) -> bool {
        let kinds = self.kinds.lock().expect("BUG: the kind lock is poisoned");
        kinds.get(stage).is_some_and(|kind| kind == "expand")
    }

    fn started(&self, stage: &str, samples: Option<u64>) {
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
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let now = Instant::now();
        let entry =
            Stage { bar, total: samples, done: 0, live: 0, tokens: 0, started: now, told: now };
        self.stages
            .lock()
            .expect("BUG: the stage lock is poisoned")
            .insert(stage.to_owned(), entry);
    }

    fn sample(&self, name: &str, served_from: ServedFrom, output_tokens: Option<u64>) {
        let mut stages = self.stages.lock().expect("BUG: the stage lock is poisoned");
        let Some(stage) = stages.get_mut(name) else { return };
        stage.done += 1;
        stage.live += u64::from(served_from == ServedFrom::Live);
        stage.tokens += output_tokens.unwrap_or(0);
        let per_second = stage.tokens as f64 / stage.started.elapsed().as_secs_f64().max(0.001);
        let speed =
            if stage.tokens > 0 { format!("{per_second:.0} tokens/s") } else { String::new() };
        if let Some(bar) = &stage.bar {
            bar.set_position(stage.done);
            bar.set_message(speed);
        } else if stage.told.elapsed() >= TELL_EVERY {
            stage.told = Instant::now();
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
