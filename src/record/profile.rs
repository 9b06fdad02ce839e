//! The optimization profile: where the time of a workflow went and what the memo saved.
//! Knows nothing of answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::speed::SpeedBuilder;
use super::{Observed, Phase, ServedFrom, Speed};
use crate::stats::{Collector, Summary};

/// The profile of one workflow stage, in the field names of the REST contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// By phase, over this run's requests; a phase that did not occur is absent.
    pub profiling_summary: BTreeMap<Phase, Summary>,
    /// `None` when caching is off.
    pub cache_stats: Option<CacheStats>,
    /// What went to the engine together.
    pub batch_stats: BatchStats,
    /// From the first flow to the last score.
    pub total_wall_time_ms: Option<f64>,
    /// Of the live requests.
    pub speed: Speed,
}

/// How often the memo answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Requests answered without asking the engine.
    pub hits: u64,
    /// Requests that the engine answered.
    pub misses: u64,
    /// hits / (hits + misses); null of no requests.
    pub hit_rate: Option<f64>,
    /// Entries in the memory cache at the end.
    pub size: u64,
    /// Its bound.
    pub max_size: u64,
    /// Engine time of the answers that were served from the memo.
    pub total_latency_saved_ms: f64,
}

/// Groups of requests. The window slides: the next group begins as soon as one request of the last ends,
/// so a group is a count of `width` requests in order, and not a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BatchStats {
    /// Groups of live requests, 0 when the window is one request wide.
    pub batches_processed: u64,
    /// Live requests in those groups.
    pub total_prompts_batched: u64,
}

impl BatchStats {
    /// The groups of `live` requests in a window of `width`.
    pub fn of(live: u64, width: u64) -> Self {
        if width < 2 {
            return BatchStats::default();
        }
        BatchStats { batches_processed: live.div_ceil(width), total_prompts_batched: live }
    }
}

/// Adds up observations without keeping them: up to a million of them eight bytes for each phase of a
/// request, and no more after that.
#[derive(Debug, Default)]
pub struct ProfileBuilder {
    phases: BTreeMap<Phase, Collector>,
    speed: SpeedBuilder,
    hits: u64,
    misses: u64,
    saved_ms: f64,
}

impl ProfileBuilder {
    /// Adds what was observed of a sample.
    pub fn add(&mut self, sample: &Observed) {
        for request in &sample.requests {
            for (phase, ms) in request.phases_ms.iter() {
                self.phases.entry(phase).or_default().add(ms);
            }
            if request.served_from == ServedFrom::Live {
                self.misses += u64::from(!request.has_failed());
                self.speed.add(request);
            } else {
                self.hits += 1;
                self.saved_ms += request.live_ms.unwrap_or(0.0);
            }
        }
        if let Some(ms) = sample.metrics_ms {
            self.phases.entry(Phase::Metrics).or_default().add(ms);
        }
    }

    /// The profile. `memory` is (entries, bound) of the memory cache, `None` when caching is off; `width`
    /// is how many requests could be in flight.
    pub fn finish(
        self,
        memory: Option<(u64, u64)>,
        width: u64,
        total_wall_time_ms: Option<f64>,
    ) -> Profile {
        let ProfileBuilder { phases, speed, hits, misses, saved_ms } = self;
        let requests = hits + misses;
        let summary = |(phase, times): (_, Collector)| Some((phase, times.finish()?));
        Profile {
            profiling_summary: phases.into_iter().filter_map(summary).collect(),
            cache_stats: memory.map(|(size, max_size)| CacheStats {
                hits,
                misses,
                hit_rate: (requests > 0).then(|| hits as f64 / requests as f64),
                size,
                max_size,
                total_latency_saved_ms: saved_ms,
            }),
            batch_stats: BatchStats::of(misses, width),
            total_wall_time_ms,
            speed: speed.finish(),
        }
    }
}
