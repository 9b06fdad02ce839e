//! A workflow as a log of Inspect: JSON that `inspect view` and `inspect_ai.log.read_eval_log` open. Knows nothing of
//! other forms.
//!
//! The form is `EvalLog`, version 2, as `inspect_ai.log` documents it and its `_log.py` defines it. Ours stands in it
//! as follows; what is not said is left out, and takes what Inspect has for it.
//!
//! | Inspect | forge |
//! |---|---|
//! | task, run_id, created, tags | workflow, run, its start, its tags |
//! | solver, model, model_generate_config | method, `provider/model`, sampling |
//! | sample: id, epoch (from 1), input, target | flow, epoch + 1, the question, accepted answers |
//! | messages, output | the transcripts of all steps, the last reply with its stop reason |
//! | scores | scores with a value; Inspect has none for "no verdict", and so those are in `metadata.unscored` |
//! | error | the words of an engine that failed; other outcomes are in `metadata.outcome` |
//! | model_usage | tokens, where all were counted: Inspect knows no "unknown". Its `input_tokens` are those that the provider had not cached |
//! | total_time, working_time | of samples that were live in this run: from start to end, and without the wait for a permit |
//! | metadata of a sample | tags, outcome, answer, key, where it came from |
//!
//! Not there, for forge does not know it: events, when a sample began, the data set's own name, the remote of git.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::write::{About, moment, plain};
use super::{ExportError, columns};
use crate::record::{Observed, Price, RunStatus, StageState, Tally, TallySummary};
use crate::report::question;
use crate::sample::{Completion, Finish, Message, Outcome, Role, Sample, Score, Usage};
use crate::store::Store;

/// Version of the form.
const VERSION: u32 = 2;

/// `2026-01-31T12-00-00+00-00_<task>_<run>.json`: logs are found and sorted by such names.
pub(super) fn file_name(about: &About<'_>) -> String {
    let began = moment(about.run.record.started_unix_ms);
    let began = began.split('.').next().unwrap_or(&began).replace(':', "-");
    let task = plain(&about.source.stage).replace('_', "-");
    // Names of cells may differ in signs only.
    let cell = about.stage.key.map(|key| format!("-{}", key.short())).unwrap_or_default();
    format!("{began}+00-00_{task}_{}{cell}.json", about.run.id())
}

/// What is said of all samples before the first of them.
#[derive(Default)]
struct Totals {
    tally: Tally,
    /// Scorers in the order of first use, with the answers on which they came to a verdict.
    scorers: Vec<(String, u64)>,
    flows: Vec<String>,
    epochs: u32,
    usage: Option<Usage>,
    cost: Option<f64>,
}

impl Totals {
    fn of(about: &About<'_>, store: &Store) -> Result<Totals, ExportError> {
        let mut totals = Totals { usage: Some(Usage::ZERO), ..Totals::default() };
        for both in about.source.rows(store)? {
            let (sample, observed) = both?;
            totals.tally.add(&sample);
            for score in &sample.scores {
                let n = u64::from(score.value.is_some());
                match totals.scorers.iter_mut().find(|(name, _)| *name == score.scorer) {
                    Some((_, scored)) => *scored += n,
                    None => totals.scorers.push((score.scorer.clone(), n)),
                }
            }
            if sample.epoch == 0 {
                totals.flows.push(sample.flow.clone());
            }
            totals.epochs = totals.epochs.max(sample.epoch + 1);
            let usage = observed.as_ref().map(Observed::usage);
            totals.usage = totals.usage.zip(usage).map(|(sum, usage)| sum.plus(usage));
        }
        let price = about.source.info.as_ref().and_then(|info| info.price);
        totals.cost = price.zip(totals.usage).and_then(|(price, usage)| price.of(&usage));
        Ok(totals)
    }
}

pub(super) fn write(
    about: &About<'_>,
    store: &Store,
    out: &mut impl Write,
) -> Result<(), ExportError> {
    let totals = Totals::of(about, store)?;
    let head = head(about, &totals).to_string();
    let open = head.strip_suffix('}').expect("BUG: a table ends with a brace");
    write!(out, "{open},\"samples\":[")?;
    for (i, both) in about.source.rows(store)?.enumerate() {
        let (sample, observed) = both?;
        let sample = one(about, store, &sample, observed.as_ref());
        write!(out, "{}\n{sample}", if i == 0 { "" } else { "," })?;
    }
    Ok(out.write_all(b"\n]}\n")?)
}

/// All but the samples, in the order that Inspect's readers of heads count on.
fn head(about: &About<'_>, totals: &Totals) -> Value {
    let record = &about.run.record;
    let of = &record.about;
    let began = moment(record.started_unix_ms);
    let ended = record.wall_ms.map(|ms| moment(record.started_unix_ms + ms as u64));
    let status = match (about.stage.state, record.status) {
        (Some(StageState::Fresh | StageState::Ran), _) => "success",
        (_, RunStatus::Cancelled | RunStatus::Interrupted) => "cancelled",
        _ => "error",
    };
    let config = generate_config(about);
    let summary = totals.tally.summary();
    let scorers: Vec<Value> = totals
        .scorers
        .iter()
        .map(|(name, _)| {
            let from = about.source.info.as_ref().and_then(|info| info.scorers.get(name));
            let options = from.map(|from| json!({ "definition": from })).unwrap_or(json!({}));
            json!({ "name": name, "options": options })
        })
        .collect();
    let model = model_name(about);
    // Neither may be null there.
    let id = about.stage.key.map_or_else(|| record.run_id.clone(), |key| key.to_string());
    let usage = model_usage(totals.usage, totals.cost).map(|usage| json!({ &model: usage }));
    let packages = of.tool.split_once(' ');
    let packages = packages.map_or(json!({}), |(name, version)| json!({ name: version }));
    let mut head = json!({
        "version": VERSION,
        "status": status,
        "eval": {
            "eval_id": id,
            "run_id": record.run_id,
            "created": began,
            "task": about.source.stage,
            "task_id": id,
            "task_version": 0,
            "task_file": record.manifest,
            "task_args": of.params,
            "tags": about.run.tags,
            "dataset": {
                "samples": totals.flows.len(),
                "sample_ids": totals.flows,
            },
            "model": model,
            "model_generate_config": config,
            "config": { "epochs": totals.epochs.max(1), "limit": of.limit },
            "packages": packages,
            "metadata": {
                "pipeline": record.pipeline,
                "git_revision": of.git_revision,
                "git_dirty": of.git_dirty,
                "settings": about.source.info.as_ref().map(|info| &info.config),
                "engine": about.source.info.as_ref().map(|info| &info.engine),
                "outcomes": summary.outcomes,
            },
            "scorers": scorers,
        },
        "plan": { "name": "plan", "steps": [], "config": config },
        "results": results(totals, &summary),
        "stats": {
            "started_at": began,
            "completed_at": ended.unwrap_or_default(),
            "model_usage": usage.unwrap_or(json!({})),
        },
    });
    if let Some(method) = about.method() {
        head["eval"]["solver"] = method.into();
        head["plan"]["steps"] = json!([{ "solver": method, "params": {} }]);
    }
    if status == "error" {
        head["error"] = failure(about.stage.error.as_deref().unwrap_or("the stage has not ended"));
    }
    head
}

/// Inspect's form of an error of Python.
fn failure(message: &str) -> Value {
    json!({ "message": message, "traceback": "", "traceback_ansi": "" })
}

fn model_name(about: &About<'_>) -> String {
    let (provider, model) = (about.provider(), about.model());
    match provider.filter(|provider| *provider != model) {
        Some(provider) => format!("{provider}/{model}"),
        None => model.to_owned(),
    }
}

/// Settings of sampling, where both have them.
fn generate_config(about: &About<'_>) -> Value {
    let names = [
        ("max_tokens", "max_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("stop", "stop_seqs"),
        ("seed", "seed"),
        ("frequency_penalty", "frequency_penalty"),
        ("presence_penalty", "presence_penalty"),
        ("logprobs", "top_logprobs"),
    ];
    let mut config = Map::new();
    for (ours, theirs) in names {
        let value = about.setting(ours).filter(|value| **value != json!([]));
        config.extend(value.map(|value| (theirs.to_owned(), value.clone())));
    }
    Value::Object(config)
}

fn results(totals: &Totals, summary: &TallySummary) -> Value {
    let answered = summary.samples - summary.outcomes.get("provider_error").copied().unwrap_or(0);
    let score = |(i, (name, scored)): (usize, &(String, u64))| {
        let mut metrics = Map::new();
        let mut metric = |name: &str, value: Option<f64>| {
            let entry = value.map(|value| json!({ "name": name, "value": value }));
            metrics.extend(entry.map(|entry| (name.to_owned(), entry)));
        };
        if i == 0 {
            metric("accuracy", summary.metrics.get("accuracy").copied().flatten());
        }
        metric("mean", summary.metrics.get(name).copied().flatten());
        json!({
            "name": name,
            "scorer": name,
            "scored_samples": scored,
            "unscored_samples": summary.samples - scored,
            "metrics": metrics,
        })
    };
    json!({
        "total_samples": summary.samples,
        "completed_samples": answered,
        "scores": totals.scorers.iter().enumerate().map(score).collect::<Vec<_>>(),
    })
}

/// `None` where a count is unknown, for a zero would be one.
fn model_usage(usage: Option<Usage>, cost: Option<f64>) -> Option<Value> {
    let usage = usage?;
    let (input, output) = (usage.input_tokens?, usage.output_tokens?);
    let cached = usage.input_tokens_cache_read;
    let mut value = json!({
        "input_tokens": input.saturating_sub(cached.unwrap_or(0)),
        "output_tokens": output,
        "total_tokens": input + output,
    });
    let more = [
        ("input_tokens_cache_read", cached.map(Value::from)),
        ("reasoning_tokens", usage.reasoning_tokens.map(Value::from)),
        ("total_cost", cost.map(Value::from)),
    ];
    for (name, number) in more {
        if let Some(number) = number {
            value[name] = number;
        }
    }
    Some(value)
}

fn one(about: &About<'_>, store: &Store, sample: &Sample, observed: Option<&Observed>) -> Value {
    let model = model_name(about);
    let price: Option<Price> = about.source.info.as_ref().and_then(|info| info.price);
    let usage = observed.map(Observed::usage);
    let cost = price.zip(usage).and_then(|(price, usage)| price.of(&usage));
    let usage = model_usage(usage, cost);
    let live = observed.filter(|seen| seen.is_live());
    let mut metadata = json!({
        "outcome": sample.outcome.name(),
        "detail": sample.detail,
        "answer": sample.answer,
        "tags": sample.tags,
        "key": sample.key,
        "flow_digest": sample.flow_digest,
        "served_from": observed.map(|seen| seen.served_from),
    });
    let unscored: Map<String, Value> = sample
        .scores
        .iter()
        .filter(|score| score.value.is_none())
        .map(|score| {
            (score.scorer.clone(), json!({ "why": score.unscored, "detail": score.detail }))
        })
        .collect();
    if !unscored.is_empty() {
        metadata["unscored"] = unscored.into();
    }
    if !sample.readings.is_empty() {
        metadata["readings"] = json!(sample.readings);
    }
    let mut value = json!({
        "id": sample.flow,
        "epoch": sample.epoch + 1,
        "input": question(sample).unwrap_or(""),
        "target": sample.targets,
        "messages": messages(sample),
        "output": output(about, store, sample, usage.as_ref()),
        "scores": scores(sample),
        "metadata": metadata,
        "model_usage": usage.map_or(json!({}), |usage| json!({ model: usage })),
        "uuid": format!("{}-{}", about.run.id(), sample.key),
    });
    if let Some(live) = live {
        value["total_time"] = json!(live.wall_ms / 1000.0);
        value["working_time"] = json!(live.latency_ms() / 1000.0);
    }
    if matches!(sample.outcome, Outcome::ProviderError | Outcome::Cancelled) {
        value["error"] = failure(sample.detail.as_deref().unwrap_or(sample.outcome.name()));
    }
    value
}

/// The conversations of all steps. One that goes on holds those before it.
fn messages(sample: &Sample) -> Vec<Value> {
    let steps = &sample.steps;
    let goes_on = |i: usize| {
        let next = steps.get(i + 1);
        next.is_some_and(|next| next.transcript.starts_with(&steps[i].transcript))
    };
    let kept = (0..steps.len()).filter(|i| !goes_on(*i));
    kept.flat_map(|i| turns(&steps[i].transcript)).collect()
}

fn turns(transcript: &[Message]) -> Vec<Value> {
    let called = |id: &str| {
        let calls = transcript.iter().flat_map(|turn| &turn.tool_calls);
        calls.rev().find(|call| call.id == id).map(|call| call.name.as_str())
    };
    let turn = |turn: &Message| {
        let mut value = json!({ "role": turn.role, "content": turn.content });
        if !turn.tool_calls.is_empty() {
            let call = |call: &crate::sample::ToolCall| {
                let mut value = json!({
                    "id": call.id, "function": call.name, "arguments": {}, "type": "function"
                });
                match serde_json::from_str::<Map<String, Value>>(&call.arguments) {
                    Ok(arguments) => value["arguments"] = arguments.into(),
                    Err(error) => {
                        value["parse_error"] = format!("{error}: {}", call.arguments).into();
                    }
                }
                value
            };
            value["tool_calls"] = turn.tool_calls.iter().map(call).collect();
        }
        if let (Role::Tool, Some(id)) = (turn.role, &turn.tool_call_id) {
            value["tool_call_id"] = id.as_str().into();
            value["function"] = json!(called(id));
        }
        value
    };
    transcript.iter().map(turn).collect()
}

/// The last reply; without one there is none.
fn output(about: &About<'_>, store: &Store, sample: &Sample, usage: Option<&Value>) -> Value {
    let model = model_name(about);
    let Some(reply) = columns::reply(sample) else { return json!({ "model": model }) };
    let mut value = json!({
        "model": model,
        "choices": [{
            "message": { "role": "assistant", "content": reply, "source": "generate", "model": model },
            "stop_reason": stop_reason(store, sample),
        }],
        "completion": reply,
    });
    if let Some(usage) = usage {
        value["usage"] = usage.clone();
    }
    value
}

/// Why the last reply ended: the record of its request says.
fn stop_reason(store: &Store, sample: &Sample) -> &'static str {
    let last = sample.steps.iter().rev().find_map(|step| step.requests.last());
    let record = last.and_then(|key| store.get(*key));
    let completion = record.as_ref().and_then(|record| record.inline("completion"));
    let completion =
        completion.and_then(|value| serde_json::from_value::<Completion>(value.clone()).ok());
    match completion.map(|completion| completion.finish) {
        Some(Finish::Stop) => "stop",
        Some(Finish::Length) => "max_tokens",
        Some(Finish::ContentFilter) => "content_filter",
        Some(Finish::ToolCalls) => "tool_calls",
        None => "unknown",
    }
}

fn scores(sample: &Sample) -> Value {
    let score = |score: &Score| {
        let mut value = json!({ "value": score.value?, "answer": sample.answer });
        if let Some(detail) = &score.detail {
            value["explanation"] = detail.as_str().into();
        }
        if score.matched.is_some() || score.parsed.is_some() {
            value["metadata"] = json!({ "matched": score.matched, "parsed": score.parsed });
        }
        if let Some(verdict) = &score.verdict {
            value["metadata"]["verdict"] = verdict.as_str().into();
        }
        Some((score.scorer.clone(), value))
    };
    Value::Object(sample.scores.iter().filter_map(score).collect())
}
