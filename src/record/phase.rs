//! The parts of the work on a sample, and how long they took. Knows nothing of who measures.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A part of the work on a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Rendering the texts of a step and building the request.
    PromptBuild,
    /// Asking the memo.
    CacheLookup,
    /// Waiting for a permit of the engine, for a rate budget, and for the engine to be loaded.
    Queue,
    /// Attempts that failed, and the pauses after them.
    Retry,
    /// The engine at work: the attempt that counts.
    ApiCall,
    /// A tool at work.
    Tool,
    /// Reading the reply.
    Parsing,
    /// Scoring the answer.
    Metrics,
}

impl Phase {
    /// All of them, in the order of a sample's life.
    pub const ALL: [Phase; 8] = [
        Phase::PromptBuild,
        Phase::CacheLookup,
        Phase::Queue,
        Phase::Retry,
        Phase::ApiCall,
        Phase::Tool,
        Phase::Parsing,
        Phase::Metrics,
    ];

    /// The name in records, profiles and reports.
    pub fn name(self) -> &'static str {
        match self {
            Phase::PromptBuild => "prompt_build",
            Phase::CacheLookup => "cache_lookup",
            Phase::Queue => "queue",
            Phase::Retry => "retry",
            Phase::ApiCall => "api_call",
            Phase::Tool => "tool",
            Phase::Parsing => "parsing",
            Phase::Metrics => "metrics",
        }
    }
}

/// Milliseconds by phase; a phase that did not happen is absent. There is one for every request: it needs no memory of
/// its own.
#[derive(Clone, Copy, PartialEq, Default)]
pub struct PhasesMs([Option<f64>; Phase::ALL.len()]);

impl PhasesMs {
    /// Of nothing that happened.
    pub fn new() -> Self {
        PhasesMs::default()
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Sets the time of a phase.
    pub fn insert(&mut self, phase: Phase, ms: f64) {
        self.0[phase as usize] = Some(whole_ns(ms));
    }

    /// Adds to the time of a phase.
    pub fn add(&mut self, phase: Phase, ms: f64) {
        let before = self.0[phase as usize].unwrap_or_default();
        self.0[phase as usize] = Some(whole_ns(before + ms));
    }

    /// The time of a phase.
    pub fn get(&self, phase: Phase) -> Option<f64> {
        self.0[phase as usize]
    }

    /// Phases and times, in the order of a sample's life.
    pub fn iter(&self) -> impl Iterator<Item = (Phase, f64)> {
        Phase::ALL.into_iter().zip(self.0).filter_map(|(phase, ms)| Some((phase, ms?)))
    }

    /// All of it.
    pub fn sum(&self) -> f64 {
        self.iter().map(|(_, ms)| ms).sum()
    }
}

/// Sums and differences have digits that no clock has told.
fn whole_ns(ms: f64) -> f64 {
    (ms * 1e6).round() / 1e6
}

impl fmt::Debug for PhasesMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl FromIterator<(Phase, f64)> for PhasesMs {
    fn from_iter<I: IntoIterator<Item = (Phase, f64)>>(all: I) -> Self {
        let mut phases = PhasesMs::new();
        all.into_iter().for_each(|(phase, ms)| phases.insert(phase, ms));
        phases
    }
}

impl<const N: usize> From<[(Phase, f64); N]> for PhasesMs {
    fn from(all: [(Phase, f64); N]) -> Self {
        all.into_iter().collect()
    }
}

impl Serialize for PhasesMs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(phase, ms)| (phase.name(), ms)))
    }
}

impl<'de> Deserialize<'de> for PhasesMs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Phases;
        impl<'de> Visitor<'de> for Phases {
            type Value = PhasesMs;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("times by phase")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PhasesMs, A::Error> {
                let mut phases = PhasesMs::new();
                while let Some((phase, ms)) = map.next_entry()? {
                    phases.insert(phase, ms);
                }
                Ok(phases)
            }
        }
        deserializer.deserialize_map(Phases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_written_as_a_table_in_the_order_of_a_life() {
        let mut phases = PhasesMs::from([(Phase::Metrics, 2.5), (Phase::PromptBuild, 1.0)]);
        phases.add(Phase::PromptBuild, 0.5);
        phases.add(Phase::Queue, 3.0);
        let json = serde_json::to_string(&phases).unwrap();
        assert_eq!(json, r#"{"prompt_build":1.5,"queue":3.0,"metrics":2.5}"#);
        assert_eq!(serde_json::from_str::<PhasesMs>(&json).unwrap(), phases);
        assert_eq!((phases.sum(), phases.get(Phase::Tool)), (7.0, None));
        phases.insert(Phase::ApiCall, 2.5 - 2.244981);
        phases.add(Phase::Queue, 0.1 + 0.2);
        assert_eq!(
            (phases.get(Phase::ApiCall), phases.get(Phase::Queue)),
            (Some(0.255_019), Some(3.3))
        );
        assert!(PhasesMs::new().is_empty() && !phases.is_empty());
        for (i, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, i);
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
    }
}
