//! How fast an engine answered. Every metric is defined once, here; tools disagree about most of them, so
//! the names that others use stand beside. Knows nothing of who asked.
//!
//! | metric | definition | elsewhere |
//! |---|---|---|
//! | ttft | first event with content, reasoning or a tool call − start | vLLM counts the role event, MLPerf starts at the schedule |
//! | ttfa | first event with a part of the answer, not of reasoning − start | TTFO, TTFOT |
//! | e2e | last token event − start; without streaming the end of the reply − start | |
//! | close | end of the reply − start | |
//! | tpot | (last − first token event) / (N − 1) for N ≥ 2 output tokens that were seen | "ITL" of AIPerf, GuideLLM and Hugging Face |
//! | norm | e2e / N | "TPOT" of GuideLLM |
//! | icl | gaps between events, all requests together | "ITL" of vLLM and SGLang |
//! | itl | the same, of requests whose every event was one token | |
//! | send lag | start − admission: the permit is held, and nothing has to be waited for | |
//! | throughput | requests and tokens over the makespan, and over the steady window, in which at least 90 % of the peak are in flight | |
//!
//! Where a server hides what its model thinks, the tokens of that come before the first event: then N of tpot is what is
//! left of the output tokens, as (last − first) is the time of these alone. Else it is all of them. In norm and in
//! throughput hidden tokens count, since their time does.
//!
//! `start` is when the attempt that counts was sent: permit held, body built. Every socket read is stamped
//! before it is parsed. Requests that were served from a memory of forge are in none of these.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Phase, RequestObserved};
use crate::sample::{TokenSource, Usage};
use crate::stats::{Collector, Summary};

/// Share of the peak from which a window counts as steady.
const STEADY: f64 = 0.9;
/// Share of the processor from which the client may be what is slow.
const CPU_SHARE_MAX: f64 = 0.8;
/// The same of its send lag: in ms, and as a share of the mean time between requests.
const LAG_MS_MAX: f64 = 1.0;
const LAG_OF_GAP_MAX: f64 = 0.1;
/// Points of a timeline.
const POINTS: usize = 120;

/// When what came, in one live request.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Timing {
    /// When the attempt that counts was sent: ms since the workflow began.
    pub start_ms: f64,
    /// Making the connection; absent where an open one was used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connect_ms: Option<f64>,
    /// To the first token; absent without streaming.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ttft_ms: Option<f64>,
    /// To the first token of the answer; absent without streaming.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ttfa_ms: Option<f64>,
    /// To the last token.
    pub e2e_ms: f64,
    /// To the end of the reply.
    pub close_ms: f64,
    /// Events with a part of the reply; 0 without streaming.
    pub events: u32,
    /// Between events: counted, and not kept.
    #[serde(skip)]
    pub gaps_ms: Vec<f32>,
    /// From its admission to `start`: counted, and not kept.
    #[serde(skip)]
    pub lag_ms: f64,
}

impl Timing {
    /// Time per output token after the first that was seen.
    pub fn tpot_ms(&self, usage: &Usage) -> Option<f64> {
        let n = self.tokens_seen(usage).filter(|n| *n >= 2)?;
        Some((self.e2e_ms - self.ttft_ms?) / (n - 1) as f64)
    }

    /// Output tokens that the events brought: those of reasoning are no part of them where a stream began with its
    /// answer.
    fn tokens_seen(&self, usage: &Usage) -> Option<u64> {
        let is_hidden = self.ttft_ms.is_some() && self.ttft_ms == self.ttfa_ms;
        let hidden = usage.reasoning_tokens.filter(|_| is_hidden).unwrap_or(0);
        // Some servers count the two apart, and do not say so: then nobody knows.
        usage.output_tokens?.checked_sub(hidden)
    }
}

/// How fast the live requests of a workflow were answered.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Speed {
    /// Live requests.
    pub requests: u64,
    /// Waiting before they were sent.
    pub queue: Option<Summary>,
    /// New connections.
    pub connect: Option<Summary>,
    /// To the first token.
    pub ttft: Option<Summary>,
    /// To the first token of the answer, where that is another one.
    pub ttfa: Option<Summary>,
    /// Time per output token.
    pub tpot: Option<Summary>,
    /// Between events.
    pub icl: Option<Summary>,
    /// Between tokens.
    pub itl: Option<Summary>,
    /// To the last token.
    pub e2e: Option<Summary>,
    /// To the end of the reply.
    pub close: Option<Summary>,
    /// End to end by output token.
    pub norm: Option<Summary>,
    /// Who counted the tokens.
    pub token_source: Option<TokenSource>,
    /// Output tokens of all of them; absent where some are unknown.
    pub output_tokens: Option<u64>,
    /// From the first start to the last end.
    pub makespan_ms: Option<f64>,
    /// Requests a second over the makespan.
    pub requests_per_s: Option<f64>,
    /// Output tokens a second over the makespan.
    pub tokens_per_s: Option<f64>,
    /// Σ e2e / makespan.
    pub concurrency_mean: Option<f64>,
    /// Most in flight at once.
    pub concurrency_peak: u64,
    /// The window in which the engine was kept busy.
    pub steady: Option<Steady>,
    /// Requests in flight over time.
    pub timeline: InFlight,
    /// Failed attempts by reason.
    pub retries: BTreeMap<String, u64>,
    /// Waited because of them, all requests together.
    pub retries_waited_ms: f64,
    /// From admission to `start`: what making a request takes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag: Option<Summary>,
    /// What share of the machine's cores this process has used meanwhile; absent where the model was in it too.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_share: Option<f64>,
    /// How late a timer of this process was at worst; absent as above.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stall_ms_max: Option<f64>,
}

impl Speed {
    /// Why these numbers may be about this program, and not about the engine.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if let Some(share) = self.cpu_share.filter(|share| *share > CPU_SHARE_MAX) {
            doubts.push(format!("forge has used {:.0} % of the processor", share * 100.0));
        }
        let gap = self.makespan_ms.map_or(0.0, |ms| ms / self.requests.max(1) as f64);
        let most = (gap * LAG_OF_GAP_MAX).max(LAG_MS_MAX);
        if let Some(lag) = self.lag.as_ref().filter(|lag| lag.p99_ms > most) {
            let (p99, most) = (lag.p99_ms, most);
            doubts.push(format!(
                "the 99th percentile of its send lag is {p99:.2} ms, above {most:.2} ms"
            ));
        }
        doubts
    }
}

/// From when to when at least 90 % of the peak were in flight, first to last such moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Steady {
    /// ms since the workflow began.
    pub from_ms: f64,
    /// ms since the workflow began.
    pub to_ms: f64,
    /// Requests that ended in it, a second.
    pub requests_per_s: f64,
    /// Their output tokens, a second.
    pub tokens_per_s: Option<f64>,
}

/// Requests in flight, in steps of equal length.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct InFlight {
    /// ms since the workflow began.
    pub from_ms: f64,
    /// Length of a step.
    pub step_ms: f64,
    /// Mean number in flight in each step.
    pub mean: Vec<f64>,
}

/// A request on the time line.
#[derive(Debug, Clone, Copy)]
struct Span {
    start_ms: f64,
    e2e_ms: f64,
    close_ms: f64,
    /// Negative where unknown.
    tokens: i64,
}

impl Span {
    fn end(self) -> f64 {
        self.start_ms + self.close_ms
    }
}

/// Adds up live requests.
#[derive(Debug, Default)]
pub(super) struct SpeedBuilder {
    queue: Collector,
    connect: Collector,
    ttft: Collector,
    ttfa: Collector,
    tpot: Collector,
    icl: Collector,
    itl: Collector,
    e2e: Collector,
    close: Collector,
    norm: Collector,
    lag: Collector,
    sources: Vec<TokenSource>,
    spans: Vec<Span>,
    retries: BTreeMap<String, u64>,
    retries_waited_ms: f64,
}

impl SpeedBuilder {
    pub(super) fn add(&mut self, request: &RequestObserved) {
        for retry in &request.retries {
            *self.retries.entry(retry.reason.clone()).or_default() += 1;
            self.retries_waited_ms += retry.waited_ms;
        }
        let Some(timing) = &request.timing else { return };
        let tokens = request.usage.output_tokens;
        if let Some(ms) = request.phases_ms.get(Phase::Queue) {
            self.queue.add(ms);
        }
        let some = |collector: &mut Collector, ms: Option<f64>| {
            if let Some(ms) = ms {
                collector.add(ms);
            }
        };
        some(&mut self.connect, timing.connect_ms);
        some(&mut self.ttft, timing.ttft_ms);
        some(&mut self.ttfa, timing.ttfa_ms);
        some(&mut self.tpot, timing.tpot_ms(&request.usage));
        some(&mut self.norm, tokens.filter(|n| *n > 0).map(|n| timing.e2e_ms / n as f64));
        self.e2e.add(timing.e2e_ms);
        self.close.add(timing.close_ms);
        self.lag.add(timing.lag_ms);
        // Of events that were counted as tokens nobody knows how many they are.
        let counted = request.usage.token_source.is_some_and(|by| by != TokenSource::Chunks);
        let seen = timing.tokens_seen(&request.usage);
        let each_is_a_token = counted && seen == Some(u64::from(timing.events));
        for gap in &timing.gaps_ms {
            self.icl.add(f64::from(*gap));
            if each_is_a_token {
                self.itl.add(f64::from(*gap));
            }
        }
        if let Some(source) = request.usage.token_source
            && !self.sources.contains(&source)
        {
            self.sources.push(source);
        }
        self.spans.push(Span {
            start_ms: timing.start_ms,
            e2e_ms: timing.e2e_ms,
            close_ms: timing.close_ms,
            tokens: tokens.map_or(-1, |tokens| tokens as i64),
        });
    }

    pub(super) fn finish(self) -> Speed {
        let mut speed = over_time(self.spans);
        speed.token_source = match self.sources.as_slice() {
            [] => None,
            [one] => Some(*one),
            _ => Some(TokenSource::Mixed),
        };
        // Where nothing thinks apart from its answer, the two are one.
        let (ttft, ttfa) = (self.ttft.finish(), self.ttfa.finish());
        Speed {
            queue: self.queue.finish(),
            connect: self.connect.finish(),
            ttfa: ttfa.filter(|ttfa| Some(ttfa) != ttft.as_ref()),
            ttft,
            tpot: self.tpot.finish(),
            icl: self.icl.finish(),
            itl: self.itl.finish(),
            e2e: self.e2e.finish(),
            close: self.close.finish(),
            norm: self.norm.finish(),
            lag: self.lag.finish(),
            retries: self.retries,
            retries_waited_ms: self.retries_waited_ms,
            ..speed
        }
    }
}

/// Throughput and concurrency, by a sweep over starts and ends.
fn over_time(mut spans: Vec<Span>) -> Speed {
    let mut speed = Speed { requests: spans.len() as u64, ..Speed::default() };
    if spans.is_empty() {
        return speed;
    }
    spans.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms));
    let mut steps: Vec<(f64, i64)> =
        spans.iter().flat_map(|span| [(span.start_ms, 1), (span.end(), -1)]).collect();
    // Of one moment ends come first: a request that follows another is not beside it.
    steps.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (from, to) = (steps[0].0, steps[steps.len() - 1].0);
    let (mut now, mut peak) = (0_i64, 0_i64);
    for (_, step) in &steps {
        now += step;
        peak = peak.max(now);
    }
    let makespan = to - from;
    let tokens = |from: f64, to: f64| {
        let inside = spans.iter().filter(|span| span.end() > from && span.end() <= to);
        inside.map(|span| u64::try_from(span.tokens).ok()).sum::<Option<u64>>()
    };
    speed.concurrency_peak = peak.unsigned_abs();
    speed.output_tokens = tokens(f64::MIN, f64::MAX);
    if makespan > 0.0 {
        let a_second = |n: f64| n / (makespan / 1000.0);
        speed.makespan_ms = Some(makespan);
        speed.requests_per_s = Some(a_second(spans.len() as f64));
        speed.tokens_per_s = speed.output_tokens.map(|tokens| a_second(tokens as f64));
        let busy: f64 = spans.iter().map(|span| span.e2e_ms).sum();
        speed.concurrency_mean = Some(busy / makespan);
        speed.timeline = in_flight(&steps, from, makespan);
    }
    let enough = (STEADY * peak as f64).ceil() as i64;
    let (mut now, mut window) = (0, None::<(f64, f64)>);
    for (at, step) in &steps {
        let before = now;
        now += step;
        if now >= enough || before >= enough {
            window = Some((window.map_or(*at, |(from, _)| from), *at));
        }
    }
    if let Some((from, to)) = window.filter(|(from, to)| to > from) {
        let inside = spans.iter().filter(|span| span.end() > from && span.end() <= to);
        let seconds = (to - from) / 1000.0;
        speed.steady = Some(Steady {
            from_ms: from,
            to_ms: to,
            requests_per_s: inside.count() as f64 / seconds,
            tokens_per_s: tokens(from, to).map(|tokens| tokens as f64 / seconds),
        });
    }
    speed
}

/// The mean number in flight in each of [`POINTS`] steps; `steps` is sorted by time.
fn in_flight(steps: &[(f64, i64)], from: f64, makespan: f64) -> InFlight {
    let width = makespan / POINTS as f64;
    let mut mean = vec![0.0; POINTS];
    let (mut now, mut last) = (0_i64, from);
    for (at, step) in steps {
        // Up to this moment `now` were in flight: spread over the bins that it covers.
        let mut t = last;
        while now > 0 && t < *at {
            let bin = (((t - from) / width) as usize).min(POINTS - 1);
            let edge = if bin == POINTS - 1 { *at } else { from + width * (bin + 1) as f64 };
            // Rounding may put `t` on the edge itself.
            let until = edge.min(*at);
            let until = if until > t { until } else { *at };
            mean[bin] += now as f64 * (until - t) / width;
            t = until;
        }
        now += step;
        last = *at;
    }
    InFlight { from_ms: from, step_ms: width, mean }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start_ms: f64, close_ms: f64, tokens: i64) -> Span {
        Span { start_ms, e2e_ms: close_ms, close_ms, tokens }
    }

    #[test]
    fn throughput_and_concurrency_by_hand() {
        // Two at once from 0 to 100, then one more from 100 to 200.
        let spans = vec![span(0.0, 100.0, 10), span(0.0, 100.0, 30), span(100.0, 100.0, 20)];
        let speed = over_time(spans);
        assert_eq!(speed.concurrency_peak, 2);
        assert_eq!(speed.makespan_ms, Some(200.0));
        assert_eq!(speed.requests_per_s, Some(15.0));
        assert_eq!(speed.tokens_per_s, Some(300.0));
        assert_eq!(speed.concurrency_mean, Some(1.5));
        let steady = speed.steady.unwrap();
        assert_eq!((steady.from_ms, steady.to_ms), (0.0, 100.0));
        assert_eq!((steady.requests_per_s, steady.tokens_per_s), (20.0, Some(400.0)));
        let timeline = speed.timeline;
        assert_eq!(timeline.mean.len(), POINTS);
        assert!((timeline.mean[0] - 2.0).abs() < 1e-9, "{:?}", timeline.mean);
        assert!((timeline.mean[POINTS - 1] - 1.0).abs() < 1e-9, "{:?}", timeline.mean);
    }

    #[test]
    fn a_client_that_was_slow_is_doubted() {
        let lag = |ms: f64| Summary::of(vec![ms; 3]);
        let fine = Speed {
            requests: 100,
            makespan_ms: Some(1000.0),
            lag: lag(0.9),
            cpu_share: Some(0.8),
            ..Speed::default()
        };
        assert!(fine.doubts().is_empty());
        let slow = Speed { lag: lag(1.1), cpu_share: Some(0.81), ..fine.clone() };
        let doubts = slow.doubts();
        assert!(doubts[0].contains("81 %") && doubts[1].contains("1.10 ms"), "{doubts:?}");
        // A tenth of 100 ms between two requests is more than a millisecond.
        let rare = Speed { requests: 10, lag: lag(9.0), ..fine };
        assert!(rare.doubts().is_empty());
    }

    #[test]
    fn a_timeline_holds_all_the_time_of_all_requests() {
        let spans: Vec<_> =
            (0..997).map(|i| span(f64::from(i) * 3.7, 10.0 + f64::from(i % 7), -1)).collect();
        let busy: f64 = spans.iter().map(|span| span.close_ms).sum();
        let speed = over_time(spans);
        let drawn: f64 = speed.timeline.mean.iter().map(|n| n * speed.timeline.step_ms).sum();
        assert!((drawn / busy - 1.0).abs() < 1e-4, "{drawn} of {busy}");
        assert_eq!(speed.tokens_per_s, None, "an unknown count makes no rate");
    }

    #[test]
    fn the_time_of_a_token_needs_two() {
        let timing =
            Timing { ttft_ms: Some(100.0), e2e_ms: 190.0, close_ms: 191.0, ..Timing::default() };
        let of = |timing: &Timing, output_tokens: Option<u64>| {
            timing.tpot_ms(&Usage { output_tokens, ..Usage::default() })
        };
        assert_eq!(of(&timing, Some(10)), Some(10.0));
        assert_eq!(of(&timing, Some(1)), None);
        assert_eq!(of(&timing, None), None);
        let whole = Timing { ttft_ms: None, ..timing };
        assert_eq!(of(&whole, Some(10)), None, "nobody saw the first token");
    }

    #[test]
    fn the_time_of_a_token_leaves_out_reasoning_that_nobody_saw() {
        let usage = |output: u64, reasoning: u64| Usage {
            output_tokens: Some(output),
            reasoning_tokens: Some(reasoning),
            token_source: Some(TokenSource::Usage),
            ..Usage::default()
        };
        // 500 tokens in the first 5 s, of which nothing came; then 50, one in each 10 ms.
        let hidden = Timing {
            ttft_ms: Some(5000.0),
            ttfa_ms: Some(5000.0),
            e2e_ms: 5490.0,
            close_ms: 5491.0,
            events: 50,
            gaps_ms: vec![10.0; 49],
            ..Timing::default()
        };
        assert_eq!(hidden.tpot_ms(&usage(550, 500)), Some(10.0));
        assert_eq!(hidden.tpot_ms(&usage(50, 0)), Some(10.0));
        assert_eq!(hidden.tpot_ms(&usage(501, 500)), None, "one token has nothing after it");
        assert_eq!(hidden.tpot_ms(&usage(50, 500)), None, "not of these, so of how many?");
        // What was thought aloud is time and tokens alike.
        let aloud = Timing { ttft_ms: Some(0.0), ..hidden.clone() };
        assert_eq!(aloud.tpot_ms(&usage(550, 500)), Some(10.0));

        let mut speed = SpeedBuilder::default();
        speed.add(&RequestObserved {
            key: crate::digest::Recipe::new("sample", 1).key(),
            served_from: crate::record::ServedFrom::Live,
            phases_ms: crate::record::PhasesMs::default(),
            live_ms: Some(5491.0),
            usage: usage(550, 500),
            attempts: 1,
            unknown_attempts: 0,
            failed_usage: None,
            retries: Vec::new(),
            timing: Some(hidden),
        });
        let speed = speed.finish();
        assert_eq!(speed.tpot.map(|times| times.mean_ms), Some(10.0));
        assert_eq!(speed.itl.map(|times| times.count), Some(49), "each of the 50 came alone");
        assert_eq!(speed.norm.map(|times| times.mean_ms), Some(5490.0 / 550.0));
        assert_eq!(speed.output_tokens, Some(550), "they were made, and are billed");
    }
}
