//! `forge bench`: methods × optimizations on one engine and one data set, through the same code as experiments. Knows
//! nothing of the command line.
//!
//! The cells share a store, and run in order: what the cells without a cache were answered is what those with one
//! find. So a cached cell shows what asking again costs.

use std::sync::Arc;

use camino::Utf8PathBuf;
use serde_json::{Value, json};
use uuid::Uuid;

use super::db::too_few;
use super::experiment::{Config, Hyperparameters, NewExperiment, Optimization, ReasoningMethod};
use super::known::Known;
use super::manifest::{WORKFLOW, manifest};
use super::results::{Results, profile};
use super::runs::{errors, pipeline_name, project_of};
use crate::exec::Selection;
use crate::project::{Launch, Machine};
use crate::record::RunStatus;
use crate::stage::Options;
use crate::store::Store;

/// The data set where the user is silent, if the project has it.
const DATA_SET: &str = "qa_25";

/// What is run.
pub struct Bench {
    /// The project.
    pub root: Utf8PathBuf,
    /// Where answers are remembered.
    pub store: Arc<Store>,
    /// An engine by name; `None` takes the project's default.
    pub engine: Option<String>,
    /// A data set by name.
    pub data_set: Option<String>,
    /// Rows of it.
    pub samples: u32,
}

/// What came of it.
pub struct Outcome {
    /// The file of the contract.
    pub file: Value,
    /// Cells that failed.
    pub failed: usize,
}

/// Names of the optimizations with their settings.
fn optimizations() -> [(&'static str, Optimization); 5] {
    let plain = Optimization::default();
    let batched =
        |batch_size| Optimization { enable_batching: true, batch_size, ..Optimization::default() };
    let cached = |of: Optimization| Optimization { enable_caching: true, ..of };
    [
        ("baseline", plain.clone()),
        ("batched_4", batched(4)),
        ("batched_8", batched(8)),
        ("cached", cached(plain)),
        ("batched_8_cached", cached(batched(8))),
    ]
}

/// Runs all cells, one after another; `told` hears of each that has ended. An error is one of the user's.
pub async fn run(bench: Bench, mut told: impl FnMut(&Value)) -> Result<Outcome, String> {
    let known = Known::scan(&bench.root, None);
    let engine = bench.engine.or_else(|| known.default_engine.clone());
    let engine = engine.ok_or("the project declares no engine; `--engine` names one")?;
    let first = || known.data_sets.keys().next().cloned();
    let usual = Some(DATA_SET.to_owned()).filter(|name| known.data_sets.contains_key(name));
    let data_set = bench.data_set.or(usual).or_else(first);
    let data_set = data_set.ok_or("the project has no data set")?;
    let machine = Machine::default();
    let results = Results::new(bench.store.clone());
    let mut cells = Vec::new();
    let mut failed = 0;
    for reasoning_method in [ReasoningMethod::Naive, ReasoningMethod::Cot] {
        for (name, optimization) in optimizations() {
            let id = Uuid::new_v4();
            let new = NewExperiment {
                name: format!("bench_{}_{name}", reasoning_method.name()),
                description: None,
                config: Config {
                    model_name: engine.clone(),
                    reasoning_method,
                    dataset_name: data_set.clone(),
                    num_samples: bench.samples,
                    hyperparameters: Hyperparameters::default(),
                    rag: None,
                    agent: None,
                    optimization: Some(optimization),
                },
            };
            let text = manifest(&pipeline_name(id), &new, &known).map_err(|issues| {
                issues.into_iter().map(|issue| issue.issue).collect::<Vec<_>>().join("; ")
            })?;
            let mut cell = json!({
                "experiment_id": id.to_string(),
                "name": new.name,
                "method": reasoning_method,
                "optimization": name,
                "config": new.config,
                "wall_time_s": null,
                "profiling": {},
                "cache_stats": {},
                "batch_stats": {},
                // Of live samples: null where the store answered all of them.
                "throughput": null,
                "samples_live": null,
                "samples_remembered": null,
                "accuracy_exact": null,
                "warning": null,
            });
            if let Err(error) =
                one(&bench.root, &bench.store, &machine, &results, id, &text, &mut cell).await
            {
                failed += 1;
                cell["error"] = error.into();
            }
            told(&cell);
            cells.push(cell);
        }
    }
    let file = json!({
        "benchmark": "forge bench",
        "timestamp": super::db::now(),
        "num_samples": bench.samples,
        "engine": engine,
        "dataset": data_set,
        "results": cells,
    });
    Ok(Outcome { file, failed })
}

async fn one(
    root: &camino::Utf8Path,
    store: &Arc<Store>,
    machine: &Machine,
    results: &Results,
    id: Uuid,
    manifest: &str,
    cell: &mut Value,
) -> Result<(), String> {
    let project = project_of(root, &pipeline_name(id), manifest)?;
    let options = Options { through: true, ..Options::default() };
    let launch = Launch::new(&project, machine, store.clone(), options, |_| {}, None);
    let launch = launch.map_err(|error| error.to_string())?;
    let run = launch.context.run.id.clone();
    let graph = project.graph;
    let wanted = graph.nodes().iter().position(|node| node.name == WORKFLOW);
    let nodes = wanted.map(|node| graph.with_needed([node]));
    let (finished, kept) = launch.run(graph, Selection { nodes, ..Selection::default() }).await;
    kept.map_err(|error| error.to_string())?;
    // A cell that failed in part says what it has.
    if let Ok(found) = results.find(&[run]) {
        let of_store = |error: super::results::NoResults| error.to_string();
        let metrics = results.metrics(&id.to_string(), &found).map_err(of_store)?;
        let info = results.info(&found).map_err(of_store)?;
        let profile = profile(&id.to_string(), Some(&info.profile));
        cell["wall_time_s"] = json!(info.profile.total_wall_time_ms.map(|ms| ms / 1000.0));
        cell["profiling"] = profile["profiling_summary"].clone();
        cell["cache_stats"] = profile["cache_stats"].clone();
        cell["batch_stats"] = profile["batch_stats"].clone();
        cell["throughput"] = json!(metrics.performance.throughput);
        cell["samples_live"] = json!(metrics.performance.samples_live);
        cell["samples_remembered"] = json!(metrics.performance.samples_remembered);
        let asked_for = cell["config"]["num_samples"].as_u64().unwrap_or_default();
        cell["warning"] = json!(too_few(metrics.cost.total_runs, asked_for));
        cell["accuracy_exact"] = json!(metrics.quality.accuracy_exact);
    }
    match finished.record.status {
        RunStatus::Completed => Ok(()),
        _ => Err(errors(&finished.record)),
    }
}
