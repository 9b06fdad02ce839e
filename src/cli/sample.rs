//! A sample of a run as people and scripts see it: prompt, transcript, answers, scores, and where each answer of the
//! engine came from.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::project::usage;
use super::terminal::{duration, moment, visible, visible_line};
use super::{FAILED, Failure};
use crate::digest::Key;
use crate::history::{HistoryError, Run, Table, Tables};
use crate::record::{Observed, RequestObserved, ServedFrom, StageRun};
use crate::sample::{Completion, Message, Outcome, Sample, Score};
use crate::store::Store;

/// Samples that are named where there is none of the wanted name.
const NAMED_MAX: usize = 5;

/// A sample that was found.
pub(super) struct Found {
    run: String,
    stage: String,
    sample: Sample,
    /// `None` where the store has lost it.
    observed: Option<Observed>,
    /// Those of the sample, in order, then those of its scorers.
    requests: Vec<Request>,
}

/// A request of a sample.
struct Request {
    /// The scorer that made it; `None` of one that led to the answer.
    scorer: Option<String>,
    key: Key,
    observed: Option<RequestObserved>,
    asked: Option<Asked>,
}

/// When the engine gave the answer to a request that the store has now.
#[derive(Debug, Clone, Serialize)]
struct Asked {
    /// ULID of the run.
    run: String,
    /// RFC 3339, UTC.
    at: String,
    /// Version of the program.
    tool: String,
    attempts: u32,
    /// The settings that were sent.
    settings: Value,
    /// The answer, or how the provider refused.
    completion: Option<Completion>,
    rejected: Option<String>,
    /// Whether that was after the run which is shown: the answer it saw is another one.
    later: bool,
}

/// As much of a row as decides whether it is wanted.
#[derive(Deserialize)]
struct Name {
    flow: String,
    epoch: u32,
}

/// Samples of a flow in some stages of a run.
pub(super) fn find(
    store: &Store,
    run: &Run,
    stages: &[&StageRun],
    flow: &str,
    epoch: Option<u32>,
) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut unfinished = Vec::new();
    for stage in stages.iter().filter(|stage| stage.kind == "workflow") {
        let tables = match Tables::of(store, stage) {
            Ok(tables) => tables,
            Err(HistoryError::NoSamples { stage }) => {
                unfinished.push(stage);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let table = Table::read(store, tables.samples)?;
        // Without it there is less to say, and still a sample to show.
        let observed = tables.observed.and_then(|digest| Table::read(store, digest).ok());
        for (i, line) in table.lines().enumerate() {
            let name: Name = Table::row(line)?;
            if name.flow != flow || epoch.is_some_and(|epoch| epoch != name.epoch) {
                if names.len() < NAMED_MAX && !names.contains(&name.flow) {
                    names.push(name.flow);
                }
                continue;
            }
            let sample: Sample = Table::row(line)?;
            let observed = observed.as_ref().and_then(|table| table.lines().nth(i));
            let observed: Option<Observed> = observed.map(Table::row).transpose()?;
            let requests = requests(store, run, &sample, observed.as_ref());
            found.push(Found {
                run: run.id().to_owned(),
                stage: stage.name.clone(),
                sample,
                observed,
                requests,
            });
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let epoch = epoch.map_or_else(String::new, |epoch| format!(" with epoch {epoch}"));
    let message = format!("run `{}` has no sample `{flow}`{epoch}", run.id());
    if !unfinished.is_empty() {
        let why = format!("{} ended without a table of samples", unfinished.join(", "));
        return Err(Failure::Message(format!("{message}: {why}"), FAILED));
    }
    Err(usage(match names.as_slice() {
        [] => format!("{message}; it has none at all"),
        names => format!("{message} (some that it has: {})", visible_line(&names.join(", "))),
    }))
}

impl Asked {
    fn read(store: &Store, run: &Run, key: Key) -> Option<Asked> {
        let record = store.get(key)?;
        let witness = &record.witness;
        let ended = run.record.wall_ms.map(|ms| run.record.started_unix_ms + ms as u64);
        let completion = record.inline("completion").cloned();
        let rejected = match &record.outcome {
            crate::store::Outcome::Rejected { code, detail } => Some(format!("{code}: {detail}")),
            crate::store::Outcome::Value(_) => None,
        };
        Some(Asked {
            later: witness.run != run.id()
                && ended.is_some_and(|ended| witness.started_unix_ms > ended),
            run: witness.run.clone(),
            at: moment(witness.started_unix_ms),
            tool: witness.tool.to_string(),
            attempts: witness.attempts,
            settings: json!(*record.recipe.fields),
            completion: completion.and_then(|value| serde_json::from_value(value).ok()),
            rejected,
        })
    }
}

/// Keys, observations and origins of all requests of a sample. One that failed has no place in a step.
fn requests(
    store: &Store,
    run: &Run,
    sample: &Sample,
    observed: Option<&Observed>,
) -> Vec<Request> {
    let request = |scorer: Option<&String>, key: Key, observed: Option<&RequestObserved>| Request {
        scorer: scorer.cloned(),
        key,
        observed: observed.cloned(),
        asked: Asked::read(store, run, key),
    };
    let Some(observed) = observed else {
        let of_steps = sample.steps.iter().flat_map(|step| &step.requests);
        let of_steps = of_steps.map(|key| request(None, *key, None));
        let of_scorers = sample
            .scores
            .iter()
            .flat_map(|score| score.requests.iter().map(move |key| (&score.scorer, *key)));
        let of_scorers = of_scorers.map(|(scorer, key)| request(Some(scorer), key, None));
        return of_steps.chain(of_scorers).collect();
    };
    let own = observed.requests.iter().map(|seen| request(None, seen.key, Some(seen)));
    let scoring = observed.scoring.iter();
    let scoring =
        scoring.map(|seen| request(Some(&seen.scorer), seen.request.key, Some(&seen.request)));
    own.chain(scoring).collect()
}

/// For scripts.
pub(super) fn to_json(found: &Found) -> Value {
    let requests = found.requests.iter().map(|Request { scorer, key, observed, asked }| {
        let mut value = json!({ "scorer": scorer, "key": key, "asked": asked });
        if let Some(observed) = observed {
            value["served_from"] = json!(observed.served_from);
            value["live_ms"] = json!(observed.live_ms);
            value["phases_ms"] = json!(observed.phases_ms);
            value["usage"] = json!(observed.usage);
            value["attempts"] = json!(observed.attempts);
            value["retries"] = json!(observed.retries);
            value["timing"] = json!(observed.timing);
        }
        value
    });
    json!({
        "run_id": found.run,
        "stage": found.stage,
        "sample": found.sample,
        "served_from": found.observed.as_ref().map(|observed| observed.served_from),
        "latency_ms": found.observed.as_ref().map(Observed::latency_ms),
        "requests": requests.collect::<Vec<_>>(),
    })
}

/// For people. Everything in it may come from a model, a server or a data set.
pub(super) fn text(found: &Found) -> String {
    let Found { sample, .. } = found;
    let mut out = Vec::new();
    let mut fact = |name: &str, value: &str| {
        out.push(visible_line(&format!("{name:9} {value}")).trim_end().to_owned());
    };
    fact("sample", &format!("{}  {}  epoch {}", sample.flow, found.stage, sample.epoch));
    let right = sample.scores.first().and_then(Score::is_right);
    let verdict = match right {
        Some(true) => ", right",
        Some(false) => ", wrong",
        None => "",
    };
    let detail = sample.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
    fact("outcome", &format!("{}{verdict}{detail}", sample.outcome.name()));
    fact("answer", sample.answer.as_deref().unwrap_or("–"));
    if !sample.targets.is_empty() {
        fact("targets", &sample.targets.join(" | "));
    }
    if sample.outcome == Outcome::Answered && !sample.scores.is_empty() {
        let scores = sample.scores.iter().map(|score| {
            let value = match (score.value, score.unscored) {
                (Some(value), _) => value.to_string(),
                (None, why) => json!(why).as_str().unwrap_or("–").to_owned(),
            };
            let parsed = score.parsed.as_ref().map(|parsed| format!(" (read as `{parsed}`)"));
            let parsed = parsed.or(score.verdict.as_ref().map(|verdict| format!(" (`{verdict}`)")));
            let detail = score.detail.as_ref().map(|detail| format!(" ({detail})"));
            let (parsed, detail) = (parsed.unwrap_or_default(), detail.unwrap_or_default());
            format!("{} {value}{parsed}{detail}", score.scorer)
        });
        fact("scores", &scores.collect::<Vec<_>>().join(", "));
    }
    if !sample.tags.is_empty() {
        let tags = sample.tags.iter().map(|(name, value)| format!("{name} = {value}"));
        fact("tags", &tags.collect::<Vec<_>>().join(", "));
    }
    if let Some(observed) = &found.observed {
        let latency = duration(observed.latency_ms());
        fact("time", &format!("{latency}, {}", observed.served_from.name()));
    }
    fact("key", &sample.key.to_string());
    for step in &sample.steps {
        out.push(String::new());
        let answer = step.answer.as_ref().map(|answer| format!(", answer `{answer}`"));
        out.push(visible_line(&format!("step {}{}", step.id, answer.unwrap_or_default())));
        for message in &step.transcript {
            out.push(turn(message));
        }
        if let Some(trace) = &step.trace {
            let why = serde_json::to_value(trace.termination_reason).unwrap_or_default();
            let turns = trace.steps.len();
            out.push(format!("  {turns} turns, ended by {}", why.as_str().unwrap_or("–")));
        }
    }
    out.push(String::new());
    out.push("requests".to_owned());
    for (i, request) in found.requests.iter().enumerate() {
        out.extend(request_lines(i + 1, &found.run, request));
    }
    out.join("\n")
}

/// A turn of the conversation, exactly as sent or received.
fn turn(message: &Message) -> String {
    let role = serde_json::to_value(message.role).unwrap_or_default();
    let mut text = format!("  [{}]", role.as_str().unwrap_or("–"));
    for line in visible(&message.content).lines() {
        text.push_str(&format!("\n    {line}"));
    }
    for call in &message.tool_calls {
        let call = format!("{}({})", call.name, call.arguments);
        text.push_str(&format!("\n    calls {}", visible_line(&call)));
    }
    text
}

/// Where an answer came from, and what it took.
fn request_lines(number: usize, run: &str, request: &Request) -> Vec<String> {
    let Request { scorer, key, observed, asked } = request;
    let (observed, asked) = (observed.as_ref(), asked.as_ref());
    let mut lines = Vec::new();
    let mut parts = vec![format!("{number:3}  {}", key.short())];
    parts.extend(scorer.as_ref().map(|scorer| format!("by the scorer {scorer}")));
    if let Some(observed) = observed {
        parts.push(match observed.has_failed() {
            true => "failed".to_owned(),
            false => observed.served_from.name().to_owned(),
        });
        let usage = observed.usage;
        let count = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        if usage.input_tokens.or(usage.output_tokens).is_some() {
            let (read, written) = (count(usage.input_tokens), count(usage.output_tokens));
            parts.push(format!("{read} tokens in, {written} out"));
        }
        parts.extend(observed.live_ms.map(|ms| format!("engine {}", duration(ms))));
        if let Some(ttft) = observed.timing.as_ref().and_then(|timing| timing.ttft_ms) {
            parts.push(format!("first token after {}", duration(ttft)));
        }
        if observed.attempts > 1 {
            parts.push(format!("{} attempts", observed.attempts));
        }
    }
    lines.push(parts.join("  "));
    let was_live = observed.is_some_and(|observed| observed.served_from == ServedFrom::Live);
    lines.push(match asked {
        Some(asked) if asked.run == run => format!("     asked in this run, {}", asked.at),
        Some(asked) if asked.later && was_live => {
            format!("     asked in this run, and again later in run {}, {}", asked.run, asked.at)
        }
        Some(asked) if asked.later => {
            format!("     asked again since, in run {}, {}", asked.run, asked.at)
        }
        Some(asked) => format!("     asked in run {}, {}", asked.run, asked.at),
        None if observed.is_some_and(RequestObserved::has_failed) => {
            "     no answer, and so not kept".to_owned()
        }
        None => "     its record is gone from the store".to_owned(),
    });
    if let Some(asked) = asked {
        let settings = asked.settings.as_object().into_iter().flatten();
        let settings: Vec<String> = settings
            .filter(|(_, value)| !value.is_null() && **value != json!([]))
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        lines.push(format!("     sent with {}", settings.join(", ")));
        lines.extend(asked.rejected.as_ref().map(|why| format!("     refused: {why}")));
        let completion = asked.completion.as_ref().filter(|_| !asked.later);
        if let Some(reasoning) = completion.and_then(|completion| completion.reasoning.as_ref()) {
            lines.push(format!("     thought: {reasoning}"));
        }
    }
    for retry in observed.into_iter().flat_map(|observed| &observed.retries) {
        lines.push(format!(
            "     failed after {}: {}; waited {}",
            duration(retry.attempt_ms),
            retry.detail,
            duration(retry.waited_ms)
        ));
    }
    lines.iter().map(|line| visible_line(line)).collect()
}
