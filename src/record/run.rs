//! The record of a run, which is the fold of its events: replaying a log gives the same record.
//! Knows nothing of who emits them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::event::is_zero;
use super::price::dollars;
use super::{Cause, Event, RequestCounts, RunAbout, RunStatus, StageState, TallySummary, Verdict};
use crate::digest::{Digest, Key};

/// A stage in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRun {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// `None` while it has not ended.
    pub state: Option<StageState>,
    /// Its key.
    pub key: Option<Key>,
    /// Digest of its recipe, by which `explain` finds it again.
    pub recipe: Option<Digest>,
    /// Digest of its main result: of a workflow, its table of samples.
    pub result: Option<Digest>,
    /// Of a workflow: digest of what was observed, a row for each sample.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub observed: Option<Digest>,
    /// Of a workflow: digest of its settings and profile.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub info: Option<Digest>,
    /// From its first work to its end.
    pub wall_ms: Option<f64>,
    /// Metrics of a workflow.
    pub summary: Option<TallySummary>,
    /// Of an expansion: bad rows that were left out.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub rows_skipped: u64,
    /// Of an expansion: the commits that branches of data sets stand for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub pins: BTreeMap<String, String>,
    /// Samples that ended in this run: none of a fresh stage.
    #[serde(default)]
    pub finished: u64,
    /// Samples that it has to run, where that is known.
    #[serde(default)]
    pub selected: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

impl StageRun {
    /// A stage that has not begun.
    pub fn new(name: &str, kind: &str) -> StageRun {
        StageRun {
            name: name.to_owned(),
            kind: kind.to_owned(),
            state: None,
            key: None,
            recipe: None,
            result: None,
            observed: None,
            info: None,
            wall_ms: None,
            summary: None,
            rows_skipped: 0,
            pins: BTreeMap::new(),
            finished: 0,
            selected: None,
            error: None,
        }
    }

    /// Samples of its result, or those so far.
    pub fn samples(&self) -> u64 {
        self.summary.as_ref().map_or(self.finished, |summary| summary.samples)
    }

    /// A metric of its result, such as `accuracy`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.summary.as_ref()?.metrics.get(name).copied().flatten()
    }
}

/// A run so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this format.
    pub version: u32,
    /// ULID.
    pub run_id: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Path of the manifest in the project.
    pub manifest: String,
    /// Milliseconds since 1970.
    pub started_unix_ms: u64,
    /// What was run, and with what.
    #[serde(default)]
    pub about: RunAbout,
    /// How it ended.
    pub status: RunStatus,
    /// Whose fault it is, where it failed and that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<Cause>,
    /// Start to end.
    pub wall_ms: Option<f64>,
    /// In the order of the manifest.
    pub stages: Vec<StageRun>,
    /// Requests of all workflows.
    pub requests: RequestCounts,
    /// Loading times by engine stage.
    pub engine_init_ms: BTreeMap<String, f64>,
    /// Tokens that engines wrote in this run, as far as they said.
    pub output_tokens: u64,
    /// Failed attempts by reason.
    #[serde(default)]
    pub retries: BTreeMap<String, u64>,
    /// Dollars for live requests, by stage, as far as prices and tokens are known: of workflows for their samples, of
    /// engines for what had to be asked before anything else.
    #[serde(default)]
    pub spent: BTreeMap<String, f64>,
    /// Samples, by workflow stage, with live requests whose cost is not in `spent`, or not all of it. Of an engine what
    /// had to be asked before anything else, as if it were a sample.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub unknown_cost_samples: BTreeMap<String, u64>,
    /// What the user was told.
    pub notices: Vec<String>,
    /// What the gates said, where there are some.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub gates: Vec<Verdict>,
    /// Where each stage stands in `stages`.
    #[serde(skip)]
    places: BTreeMap<String, usize>,
}

impl Default for RunRecord {
    fn default() -> Self {
        RunRecord {
            version: super::RECORD_VERSION,
            run_id: String::new(),
            pipeline: String::new(),
            manifest: String::new(),
            started_unix_ms: 0,
            about: RunAbout::default(),
            status: RunStatus::Running,
            cause: None,
            wall_ms: None,
            stages: Vec::new(),
            requests: RequestCounts::default(),
            engine_init_ms: BTreeMap::new(),
            output_tokens: 0,
            retries: BTreeMap::new(),
            spent: BTreeMap::new(),
            unknown_cost_samples: BTreeMap::new(),
            notices: Vec::new(),
            gates: Vec::new(),
            places: BTreeMap::new(),
        }
    }
}

impl RunRecord {
    /// Folds one event in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::RunStarted {
                version,
                run_id,
                pipeline,
                manifest,
                started_unix_ms,
                stages,
                about,
            } => {
                self.version = *version;
                self.run_id.clone_from(run_id);
                self.pipeline.clone_from(pipeline);
                self.manifest.clone_from(manifest);
                self.started_unix_ms = *started_unix_ms;
                self.about.clone_from(about);
                self.stages = stages.iter().map(|(name, kind)| StageRun::new(name, kind)).collect();
                let names = stages.iter().enumerate();
                self.places = names.map(|(i, (name, _))| (name.clone(), i)).collect();
            }
            Event::StageStarted { stage, samples } => {
                if let Some(run) = self.stage_mut(stage) {
                    run.selected = samples.or(run.selected);
                }
            }
            Event::FlowsExpanded { .. }
            | Event::DataFetching { .. }
            | Event::EngineLoading { .. } => {}
            Event::DataPinned { stage, source, revision } => {
                if let Some(run) = self.stage_mut(stage) {
                    run.pins.insert(source.clone(), revision.clone());
                }
            }
            Event::RequestRetried { retry, .. } => {
                *self.retries.entry(retry.reason.clone()).or_default() += 1;
            }
            Event::EngineLoaded { stage, init_ms, .. } => {
                self.engine_init_ms.insert(stage.clone(), *init_ms);
            }
            Event::EngineProved { stage, output_tokens, cost, cost_unknown } => {
                self.spend(stage, *cost, *cost_unknown);
                self.output_tokens += output_tokens.unwrap_or(0);
            }
            Event::GivenUp { stage, requests, output_tokens, cost, cost_unknown, .. } => {
                self.spend(stage, *cost, *cost_unknown);
                self.requests.plus(*requests);
                self.output_tokens += output_tokens.unwrap_or(0);
            }
            Event::SampleFinished {
                stage, requests, output_tokens, cost, cost_unknown, ..
            } => {
                self.spend(stage, *cost, *cost_unknown);
                self.requests.plus(*requests);
                self.output_tokens += output_tokens.unwrap_or(0);
                if let Some(run) = self.stage_mut(stage) {
                    run.finished += 1;
                }
            }
            Event::Notice { stage, message } => self.notices.push(match stage {
                Some(stage) => format!("{stage}: {message}"),
                None => message.clone(),
            }),
            Event::StageFinished {
                stage,
                state,
                key,
                recipe,
                result,
                observed,
                info,
                wall_ms,
                summary,
                rows_skipped,
                error,
            } => {
                if let Some(run) = self.stage_mut(stage) {
                    run.state = Some(*state);
                    run.key = *key;
                    run.recipe = *recipe;
                    run.result = *result;
                    run.observed = *observed;
                    run.info = *info;
                    run.wall_ms = Some(*wall_ms);
                    run.summary = summary.as_deref().cloned();
                    run.rows_skipped = *rows_skipped;
                    run.error.clone_from(error);
                }
            }
            Event::GatesJudged { verdicts } => self.gates.clone_from(verdicts),
            Event::RunFinished { status, wall_ms, cause } => {
                self.status = *status;
                self.cause = *cause;
                self.wall_ms = Some(*wall_ms);
            }
        }
    }

    /// Adds dollars, as far as they are known, and whether there are more.
    fn spend(&mut self, stage: &str, cost: Option<f64>, is_unknown: bool) {
        if let Some(cost) = cost {
            *self.spent.entry(stage.to_owned()).or_default() += cost;
        }
        if is_unknown {
            *self.unknown_cost_samples.entry(stage.to_owned()).or_default() += 1;
        }
    }

    fn stage_mut(&mut self, name: &str) -> Option<&mut StageRun> {
        self.stages.get_mut(*self.places.get(name)?)
    }

    /// The workflows among its stages.
    pub fn workflows(&self) -> impl Iterator<Item = &StageRun> {
        self.stages.iter().filter(|stage| stage.kind == "workflow")
    }

    /// Samples of all workflows, or those so far.
    pub fn samples(&self) -> u64 {
        self.workflows().map(StageRun::samples).sum()
    }

    /// Dollars for live requests, as far as they are known; `None` where no price is known.
    pub fn cost(&self) -> Option<f64> {
        (!self.spent.is_empty()).then(|| self.spent.values().sum())
    }

    /// The same for people: a sum that leaves something out says so.
    pub fn cost_text(&self) -> Option<String> {
        Some(dollars(self.cost()?, self.unknown_cost_samples.is_empty()))
    }

    /// A stage by name.
    pub fn stage(&self, name: &str) -> Option<&StageRun> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The store of `tests/records` that this version has written. Another version needs another one.
    macro_rules! kept {
        ($file:literal) => {
            include_str!(concat!(
                "../../tests/records/store-v2/runs/01M81TYS0JF9AV7Y16MXYD3SKN/",
                $file
            ))
        };
    }

    #[test]
    fn a_log_folds_to_the_record_that_was_written() {
        let record: RunRecord = serde_json::from_str(kept!("run.json")).expect("a record");
        assert_eq!(record.version, crate::record::RECORD_VERSION);
        let mut folded = RunRecord::default();
        for line in kept!("events.log").lines() {
            folded.apply(&serde_json::from_str(line).expect("an event"));
        }
        let json = |record: &RunRecord| serde_json::to_value(record).unwrap();
        assert_eq!(json(&folded), json(&record));
        assert_eq!((record.samples(), record.requests.live), (3, 3));
    }

    #[test]
    fn a_sum_that_leaves_something_out_says_so() {
        let finished = |stage: &str, cost: Option<f64>, cost_unknown: bool| Event::SampleFinished {
            stage: stage.to_owned(),
            index: 0,
            flow: String::new(),
            outcome: crate::sample::Outcome::Answered,
            correct: None,
            served_from: crate::record::ServedFrom::Live,
            latency_ms: 1.0,
            requests: crate::record::RequestCounts::default(),
            output_tokens: None,
            cost,
            cost_unknown,
        };
        let mut record = RunRecord::default();
        record.apply(&finished("free", None, false));
        assert_eq!(record.cost_text(), None);
        record.apply(&finished("ask", Some(0.25), false));
        assert_eq!(record.cost_text().as_deref(), Some("$0.2500"));
        record.apply(&finished("ask", Some(0.5), true));
        record.apply(&finished("other", None, true));
        assert_eq!(record.cost_text().as_deref(), Some("at least $0.7500"));
        let unknown = [("ask".to_owned(), 1), ("other".to_owned(), 1)];
        assert_eq!(record.unknown_cost_samples, unknown.into());
        // Where all is known nobody needs to hear of it.
        let json = serde_json::to_string(&finished("ask", Some(0.25), false)).unwrap();
        assert!(!json.contains("unknown"), "{json}");
    }

    #[test]
    fn a_log_of_version_1_still_folds_to_the_same_record() {
        let log = include_str!("../../tests/records/run-v1.events.log");
        let mut record = RunRecord::default();
        for line in log.lines() {
            record.apply(&serde_json::from_str(line).expect("an event of version 1"));
        }
        assert_eq!(record.status, RunStatus::Completed);
        assert_eq!(record.requests.live, 2);
        assert_eq!(record.stages.len(), 2);
        assert_eq!(record.stage("ask").unwrap().state, Some(StageState::Ran));
        assert_eq!((record.samples(), record.stage("ask").unwrap().finished), (1, 1));
    }
}
