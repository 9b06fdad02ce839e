//! `[TIMING]` lines: what was measured in this run, and nothing else.

use std::collections::BTreeMap;

use crate::record::{Event, RunRecord, StageState};

/// Latencies of the samples of this run, for the lines at its end. Four bytes a sample is all that a run keeps of
/// each of its samples; nobody reads the seventh digit of a time.
#[derive(Default)]
pub(super) struct SampleTimes(BTreeMap<String, Vec<f32>>);

impl SampleTimes {
    pub(super) fn on(&mut self, event: &Event) {
        let Event::SampleFinished { stage, index, latency_ms, .. } = event else { return };
        let times = match self.0.get_mut(stage) {
            Some(times) => times,
            None => self.0.entry(stage.clone()).or_default(),
        };
        let index = *index as usize;
        if times.len() <= index {
            times.resize(index + 1, f32::NAN);
        }
        times[index] = *latency_ms as f32;
    }

    /// In the order of samples, workflows in the order of the manifest.
    fn in_order(&self, record: &RunRecord) -> impl Iterator<Item = f64> {
        let times = record.stages.iter().filter_map(|stage| self.0.get(&stage.name)).flatten();
        times.filter(|ms| !ms.is_nan()).map(|ms| f64::from(*ms))
    }

    /// Their mean; `None` of none.
    pub(super) fn mean(&self, record: &RunRecord) -> Option<f64> {
        let (sum, n) = self.in_order(record).fold((0.0, 0_u64), |(sum, n), ms| (sum + ms, n + 1));
        (n > 0).then(|| sum / n as f64)
    }

    /// Says all lines, one after another.
    pub(super) fn tell(&self, record: &RunRecord, mut say: impl FnMut(&str)) {
        for stage in record.stages.iter().filter(|stage| stage.kind == "expand") {
            let how = match stage.state {
                Some(StageState::Fresh) => "cached",
                Some(StageState::Ran) => "generated",
                _ => continue,
            };
            if let Some(ms) = stage.wall_ms {
                say(&format!("[TIMING] flow_expansion_ms={ms:.2} ({how})"));
            }
        }
        for ms in record.engine_init_ms.values() {
            say(&format!("[TIMING] engine_init_ms={ms:.2}"));
        }
        for (n, ms) in self.in_order(record).enumerate() {
            say(&format!("[TIMING] workflow_{n}_ms={ms:.2}"));
        }
        if let Some(ms) = record.wall_ms {
            say(&format!("[TIMING] benchmark_total_ms={ms:.2}"));
        }
        if let Some(mean) = self.mean(record) {
            say(&format!("[TIMING] avg_workflow_ms={mean:.2}"));
        }
    }
}
