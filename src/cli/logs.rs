//! `forge logs`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use clap::Args;

use super::project::usage;
use super::runs::StorePlace;
use super::summary;
use super::terminal::{duration, visible, visible_json, visible_line};
use super::{FAILED, Failure, print};
use crate::history::{self, Events, Run};
use crate::record::{Event, StageRun, dollars};
use crate::report::gates;
use crate::store::Store;

/// How often the end of a log is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct Logs {
    /// The run: a part of its id, a tag, `last`
    #[arg(default_value = history::LAST)]
    run: String,
    #[command(flatten)]
    place: StorePlace,
    /// Only events of this stage
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Go on until the run ends
    #[arg(long, short)]
    follow: bool,
    /// Print what the servers said that the run started, instead of its events
    #[arg(long, conflicts_with_all = ["json", "follow"])]
    server: bool,
    /// Print the events as they are kept: JSON Lines
    #[arg(long)]
    json: bool,
}

impl Logs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let store = self.place.open()?;
        let run = history::find(&store, &self.run)?;
        let stages = match &self.stage {
            None => None,
            Some(stage) => Some(select(&run, stage)?),
        };
        let wanted = |stage: Option<&str>| match &stages {
            None => true,
            Some(stages) => stages.iter().any(|wanted| Some(wanted.name.as_str()) == stage),
        };
        if self.server {
            return servers(&store, &run, &wanted);
        }
        let files = store.run_files(run.id());
        let mut events = Events::open(&store, run.id());
        let mut ended = false;
        loop {
            // Asked before reading: what is written before the end is read.
            let living = files.is_living();
            while let Some(line) = events.next_line()? {
                let event = serde_json::from_slice::<Event>(line);
                ended |= matches!(event, Ok(Event::RunFinished { .. }));
                let stage = event.as_ref().ok().and_then(Event::stage);
                if !wanted(stage) {
                    continue;
                }
                let text = String::from_utf8_lossy(line);
                match &event {
                    _ if self.json => print(&visible_json(&text)),
                    Ok(event) => print(&readable(history::time_of(line), event)),
                    Err(_) => print(&format!("(unknown) {}", visible_line(&text))),
                }
            }
            if !self.follow || ended || !living {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The stages of a run by name; that of a matrix means all its cells.
pub(super) fn select<'a>(run: &'a Run, name: &str) -> Result<Vec<&'a StageRun>, Failure> {
    let stages = || run.record.stages.iter();
    let cells = format!("{name}[");
    let found: Vec<_> =
        stages().filter(|stage| stage.name == name || stage.name.starts_with(&cells)).collect();
    if found.is_empty() {
        let known: Vec<_> = stages().map(|stage| stage.name.as_str()).collect();
        let message = format!("run `{}` has no stage `{name}`", run.id());
        return Err(usage(format!("{message} (known: {})", visible_line(&known.join(", ")))));
    }
    Ok(found)
}

fn servers(store: &Store, run: &Run, wanted: &dyn Fn(Option<&str>) -> bool) -> Result<(), Failure> {
    let logs = store.run_files(run.id()).server_logs();
    let logs: Vec<_> = logs.into_iter().filter(|(stage, _)| wanted(Some(stage))).collect();
    if logs.is_empty() {
        return Err(usage(format!("run `{}` has started no such server", run.id())));
    }
    for (stage, path) in &logs {
        if logs.len() > 1 {
            print(&format!("==> {} <==", visible_line(stage)));
        }
        let cannot = |error: std::io::Error| {
            let why = crate::stage::plain(&error);
            Failure::Message(format!("cannot read `{path}`: {why}"), FAILED)
        };
        let mut log = BufReader::new(File::open(path).map_err(cannot)?);
        let mut line = Vec::new();
        while log.read_until(b'\n', &mut line).map_err(cannot)? > 0 {
            print(visible(&String::from_utf8_lossy(&line)).trim_end_matches('\n'));
            line.clear();
        }
    }
    Ok(())
}

/// An event in a line: when, where, what.
fn readable(unix_ms: Option<u64>, event: &Event) -> String {
    let time = unix_ms.map_or_else(String::new, |unix_ms| {
        let time = std::time::UNIX_EPOCH + Duration::from_millis(unix_ms);
        format!("{}  ", humantime::format_rfc3339_millis(time))
    });
    let stage = event.stage().map_or_else(String::new, |stage| format!("{stage}  "));
    format!("{time}{}", visible_line(&format!("{stage}{}", words(event))))
}

fn words(event: &Event) -> String {
    match event {
        Event::RunStarted { run_id, manifest, stages, .. } => {
            format!("run {run_id} of {manifest} began: {} stages", stages.len())
        }
        Event::StageStarted { samples: None, .. } => "began".to_owned(),
        Event::StageStarted { samples: Some(samples), .. } => format!("began: {samples} samples"),
        Event::FlowsExpanded { flows, .. } => format!("{flows} flows"),
        Event::EngineLoading { message, .. } | Event::DataFetching { message, .. } => {
            message.clone()
        }
        Event::DataPinned { source, revision, .. } => format!("{source} is at {revision}"),
        Event::EngineProved { cost, cost_unknown, .. } => {
            let cost = cost.map(|cost| format!(", {}", dollars(cost, !cost_unknown)));
            format!("asked whether it can do what is wanted{}", cost.unwrap_or_default())
        }
        Event::GivenUp { flow, requests, cost, cost_unknown, .. } => {
            let what = flow.as_deref().unwrap_or("a request");
            let cost = cost.map(|cost| format!(", {}", dollars(cost, !cost_unknown)));
            let cost = cost.unwrap_or_default();
            format!(
                "{what}: given up after {} answered requests{cost}",
                requests.live + requests.hits()
            )
        }
        Event::EngineLoaded { init_ms, instances, .. } => {
            let copies = if *instances > 1 { format!(" × {instances}") } else { String::new() };
            format!("loaded{copies} in {}", duration(*init_ms))
        }
        Event::RequestRetried { key, attempt, retry, .. } => format!(
            "request {}: attempt {attempt} failed after {}: {}; waiting {}",
            key.short(),
            duration(retry.attempt_ms),
            retry.detail,
            duration(retry.waited_ms)
        ),
        Event::SampleFinished {
            flow,
            outcome,
            correct,
            served_from,
            latency_ms,
            requests,
            output_tokens,
            cost,
            cost_unknown,
            ..
        } => {
            let mut parts = vec![format!("{flow}: {}", outcome.name())];
            parts.extend(correct.map(|right| if right { "right" } else { "wrong" }.to_owned()));
            parts.push(served_from.name().to_owned());
            parts.push(format!("{latency_ms:.1} ms"));
            if requests.live > 0 {
                let s = if requests.live == 1 { "" } else { "s" };
                parts.push(format!("{} request{s} live", requests.live));
                let tokens = output_tokens.filter(|tokens| *tokens > 0);
                parts.extend(tokens.map(|tokens| format!("{tokens} tokens")));
            }
            let worth = cost.filter(|cost| *cost > 0.0 || *cost_unknown);
            parts.extend(worth.map(|cost| dollars(cost, !cost_unknown)));
            parts.join(", ")
        }
        Event::Notice { message, .. } => format!("warning: {message}"),
        Event::StageFinished { state, wall_ms, error, summary, .. } => {
            let mut text = format!("{} in {}", state.name(), duration(*wall_ms));
            if summary.is_some() {
                let stage =
                    StageRun { summary: summary.as_deref().cloned(), ..StageRun::new("", "") };
                text.push_str(&format!(": {}", summary::result(&stage).unwrap_or_default()));
            }
            if let Some(error) = error {
                text.push_str(&format!(": {error}"));
            }
            text
        }
        Event::GatesJudged { verdicts } => gates::total(verdicts),
        Event::RunFinished { status, wall_ms, .. } => {
            format!("{} in {}", status.name(), duration(*wall_ms))
        }
    }
}
