//! A run as results and samples of lm-evaluation-harness. Knows nothing of other forms.
//!
//! For each model a folder of its name with `results_<date>.json` and one `samples_<task>_<date>.jsonl` for each
//! workflow, as `lm_eval/loggers/evaluation_tracker.py` writes them and `lm_eval/result_schema.py` (0.4.13) defines
//! them. Ours stands in them as follows.
//!
//! | lm-evaluation-harness | forge |
//! |---|---|
//! | task, alias | the workflow, with `_` for every sign that is no letter or digit; its name as it stands |
//! | `<metric>,<filter>` | the mean of a scorer over answered samples; the filter is the extractor, `none` without |
//! | `<metric>_stderr,<filter>` | standard deviation / √n with n − 1, as `mean_stderr` has it; `N/A` with epochs, whose draws are not independent |
//! | doc | the flow: its name, its question, its accepted answers, its tags. The row of the data set is not kept |
//! | target | the accepted answer; of several, their JSON |
//! | arguments, resps, filtered_resps | for each step the messages that were sent (JSON, as with `--apply_chat_template`), the reply, the answer (null without one) |
//! | metrics and their values | scores with a value: a sample without an answer has none, and `outcome` says why |
//!
//! A sample with three epochs is three lines with one `doc_id`, told apart by `epoch`. Two keys of each line are ours,
//! `outcome` and `epoch`, and one of the results, `forge`. Not there, for forge does not know it: seeds of numpy and
//! torch, the version of transformers, tokens of the tokenizer, the number of examples in a prompt (`n-shot`).

use std::collections::BTreeMap;
use std::io::Write;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};

use super::ExportError;
use super::write::{About, moment, plain, write_file};
use crate::digest::{Digest, DigestStream};
use crate::report::question;
use crate::sample::{Role, Sample, Score, StepRun};
use crate::store::Store;

/// The filter of samples that no extractor has read.
const NO_FILTER: &str = "none";

/// Mean and spread of the values of a metric, one at a time (Welford 1962).
#[derive(Debug, Clone, Copy, Default)]
struct Spread {
    n: u64,
    mean: f64,
    squares: f64,
}

impl Spread {
    fn add(&mut self, value: f64) {
        self.n += 1;
        let before = value - self.mean;
        self.mean += before / self.n as f64;
        self.squares += before * (value - self.mean);
    }

    /// Of the mean.
    fn standard_error(&self) -> Option<f64> {
        let spare = self.n.checked_sub(1).filter(|spare| *spare > 0)?;
        Some((self.squares / spare as f64 / self.n as f64).sqrt())
    }
}

/// What a task came to.
#[derive(Default)]
struct Task {
    /// By metric and filter.
    metrics: BTreeMap<(String, String), Spread>,
    docs: u64,
    epochs: u32,
    hashes: DigestStream,
}

pub(super) fn write(
    workflows: &[About<'_>],
    store: &Store,
    folder: &Utf8Path,
) -> Result<Vec<Utf8PathBuf>, ExportError> {
    let mut by_model: BTreeMap<String, Vec<&About<'_>>> = BTreeMap::new();
    for about in workflows {
        by_model.entry(sanitized(about.model())).or_default().push(about);
    }
    let mut files = Vec::new();
    for (model, workflows) in by_model {
        let folder = folder.join(&model);
        std::fs::create_dir_all(&folder)?;
        let date = moment(workflows[0].run.record.started_unix_ms);
        let date = date.trim_end_matches('Z').replace(':', "-");
        let mut tasks: Vec<(String, &About<'_>, Task)> = Vec::new();
        for about in workflows {
            let plain = plain(&about.source.stage);
            let taken = |name: &str| tasks.iter().any(|(task, ..)| task == name);
            let mut name = plain.clone();
            let mut number = 2;
            while taken(&name) {
                name = format!("{plain}_{number}");
                number += 1;
            }
            let mut task = Task::default();
            let file = format!("samples_{name}_{date}.jsonl");
            files.push(write_file(&folder, &file, |out| samples(about, store, &mut task, out))?);
            tasks.push((name, about, task));
        }
        let results = results(&model, &tasks);
        let text = serde_json::to_string_pretty(&results).expect("BUG: results are plain data");
        let file = format!("results_{date}.json");
        files.push(write_file(&folder, &file, |out| Ok(writeln!(out, "{text}")?))?);
    }
    Ok(files)
}

/// As `sanitize_model_name` makes a name of a folder, and never one that leads out of it.
fn sanitized(model: &str) -> String {
    let mut out = String::new();
    let mut before = false;
    for c in model.chars() {
        // A folder's name has 255 bytes.
        if out.len() > 240 {
            break;
        }
        let bad = "\"<>:/|\\?*[]".contains(c) || c.is_control();
        if bad && !before {
            out.push_str("__");
        } else if !bad {
            out.push(c);
        }
        before = bad;
    }
    match out.trim_matches('.') {
        "" => "unknown".to_owned(),
        _ => out,
    }
}

fn samples(
    about: &About<'_>,
    store: &Store,
    task: &mut Task,
    out: &mut impl Write,
) -> Result<(), ExportError> {
    let settings = settings(about);
    let mut doc_id = 0_u64;
    for both in about.source.rows(store)? {
        let (sample, _) = both?;
        if sample.epoch == 0 {
            doc_id = task.docs;
            task.docs += 1;
        }
        task.epochs = task.epochs.max(sample.epoch + 1);
        let of_extractors = sample.readings.iter();
        let mut filters: Vec<(&str, Option<&str>, &[Score])> = of_extractors
            .map(|read| (read.extractor.as_str(), read.answer.as_deref(), read.scores.as_slice()))
            .collect();
        if filters.is_empty() {
            filters.push((NO_FILTER, sample.answer.as_deref(), &sample.scores));
        }
        for (filter, answer, scores) in filters {
            let mut line = line(&sample, doc_id, &settings, filter, answer, scores);
            for (name, value) in scored(scores) {
                let spread = task.metrics.entry((name.to_owned(), filter.to_owned()));
                spread.or_default().add(value);
                line[name] = value.into();
            }
            for name in ["doc_hash", "prompt_hash", "target_hash"] {
                let hash = line[name].as_str().expect("BUG: a hash is text");
                task.hashes.update(hash.as_bytes());
            }
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn scored(scores: &[Score]) -> impl Iterator<Item = (&str, f64)> {
    scores.iter().filter_map(|score| Some((score.scorer.as_str(), score.value?)))
}

fn line(
    sample: &Sample,
    doc_id: u64,
    settings: &Value,
    filter: &str,
    answer: Option<&str>,
    scores: &[Score],
) -> Value {
    let doc = json!({
        "id": sample.flow,
        "question": question(sample),
        "answers": sample.targets,
        "tags": sample.tags,
    });
    let target = match sample.targets.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        several => serde_json::to_string(several).expect("BUG: texts are plain data"),
    };
    let mut arguments = Map::new();
    let (mut resps, mut filtered) = (Vec::new(), Vec::new());
    let mut first_prompt = String::new();
    for (i, step) in sample.steps.iter().enumerate() {
        let (prompt, reply) = asked(step);
        let replies: Vec<&str> = reply.into_iter().collect();
        if i == 0 {
            first_prompt.clone_from(&prompt);
        }
        arguments.insert(format!("gen_args_{i}"), json!({ "arg_0": prompt, "arg_1": settings }));
        resps.push(json!(replies));
        let is_last = i + 1 == sample.steps.len();
        filtered.push(json!(if is_last { answer } else { step.answer.as_deref() }));
    }
    let pretty = serde_json::to_string_pretty(&doc).expect("BUG: a document is plain data");
    let hash = |text: &str| Digest::of(text.as_bytes()).to_string();
    json!({
        "doc_id": doc_id,
        "doc": doc,
        "target": target,
        "arguments": arguments,
        "resps": resps,
        "filtered_resps": filtered,
        "filter": filter,
        "metrics": scored(scores).map(|(name, _)| name).collect::<Vec<_>>(),
        "doc_hash": hash(&pretty),
        "prompt_hash": hash(&first_prompt),
        "target_hash": hash(&target),
        "epoch": sample.epoch,
        "outcome": sample.outcome.name(),
    })
}

/// What a step sent before its last reply, as JSON of messages, and that reply.
fn asked(step: &StepRun) -> (String, Option<&str>) {
    let turns = &step.transcript;
    let (before, reply) = match turns.split_last() {
        Some((last, before)) if last.role == Role::Assistant => {
            (before, Some(last.content.as_str()))
        }
        _ => (turns.as_slice(), None),
    };
    (serde_json::to_string(before).expect("BUG: messages are plain data"), reply)
}

/// Settings of sampling in the words of `generate_until`.
fn settings(about: &About<'_>) -> Value {
    let mut settings = Map::new();
    let names = [
        ("stop", "until"),
        ("max_tokens", "max_gen_toks"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("seed", "seed"),
    ];
    for (ours, theirs) in names {
        let value = about.setting(ours);
        settings.extend(value.map(|value| (theirs.to_owned(), value.clone())));
    }
    let temperature = about.setting("temperature").and_then(Value::as_f64);
    settings.extend(temperature.map(|t| ("do_sample".to_owned(), (t > 0.0).into())));
    Value::Object(settings)
}

fn results(model: &str, tasks: &[(String, &About<'_>, Task)]) -> Value {
    let about = tasks[0].1;
    let record = &about.run.record;
    let of = &record.about;
    let each = |what: &dyn Fn(&About<'_>, &Task) -> Value| -> Value {
        tasks.iter().map(|(name, about, task)| (name.clone(), what(about, task))).collect()
    };
    let metrics = |task: &Task| -> Vec<String> {
        let mut names: Vec<_> = task.metrics.keys().map(|(name, _)| name.clone()).collect();
        names.dedup();
        names
    };
    json!({
        "results": each(&|about, task| {
            let mut of = json!({ "alias": about.source.stage, "sample_len": task.docs });
            for ((metric, filter), spread) in &task.metrics {
                if spread.n > 0 {
                    let error = spread.standard_error().filter(|_| task.epochs == 1);
                    of[format!("{metric},{filter}")] = spread.mean.into();
                    of[format!("{metric}_stderr,{filter}")] = error.map_or("N/A".into(), Value::from);
                }
            }
            of
        }),
        "group_subtasks": each(&|_, _| json!([])),
        "configs": each(&|about, task| {
            let metric = |name: String| {
                json!({ "metric": name, "aggregation": "mean", "higher_is_better": true })
            };
            json!({
                "task": about.source.stage,
                "output_type": "generate_until",
                "repeats": task.epochs.max(1),
                "generation_kwargs": settings(about),
                "metric_list": metrics(task).into_iter().map(metric).collect::<Vec<_>>(),
                "metadata": {
                    "key": about.stage.key,
                    "settings": about.source.info.as_ref().map(|info| &info.config),
                },
            })
        }),
        "versions": each(&|_, _| Value::Null),
        "n-shot": {},
        "higher_is_better": each(&|_, task| {
            metrics(task).into_iter().map(|name| (name, Value::from(true))).collect()
        }),
        // With `--limit` nobody has counted the rest.
        "n-samples": each(&|_, task| {
            let original = Some(task.docs).filter(|_| of.limit.is_none());
            json!({ "original": original, "effective": task.docs })
        }),
        "config": {
            "model": about.provider(),
            "model_args": { "model": about.model() },
            "batch_size": null,
            "limit": of.limit,
            "gen_kwargs": settings(about),
        },
        "git_hash": of.git_revision,
        "date": record.started_unix_ms as f64 / 1000.0,
        "task_hashes": each(&|_, task| task.hashes.clone().finish().to_string().into()),
        "model_source": about.provider(),
        "model_name": about.model(),
        "model_name_sanitized": model,
        "total_evaluation_time_seconds": record.wall_ms.map(|ms| (ms / 1000.0).to_string()),
        "forge": {
            "run_id": record.run_id,
            "pipeline": record.pipeline,
            "manifest": record.manifest,
            "tool": of.tool,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_is_that_of_a_sample() {
        let mut spread = Spread::default();
        assert_eq!(spread.standard_error(), None);
        [1.0, 0.0, 0.0, 1.0, 1.0].iter().for_each(|value| spread.add(*value));
        // statistics.stdev([1, 0, 0, 1, 1]) / math.sqrt(5)
        assert!((spread.standard_error().unwrap() - 0.244_948_974_278_317_8).abs() < 1e-15);
        assert!((spread.mean - 0.6).abs() < 1e-15);
    }

    #[test]
    fn a_model_is_a_folder_and_nothing_above_it() {
        for (model, folder) in [
            ("org/m:1", "org__m__1"),
            ("..", "unknown"),
            ("../../x", "..__..__x"),
            ("a[//]b", "a__b"),
        ] {
            assert_eq!(sanitized(model), folder);
        }
    }
}
