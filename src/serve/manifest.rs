//! The manifest that an experiment stands for: the same for the interface, the pages and `forge bench`. Knows nothing of
//! how it is run.

use serde_json::{Map, Value};

use super::experiment::{Issue, NewExperiment, ReasoningMethod};
use super::known::{Known, toml_key, toml_value};

/// The stage of a manifest of an experiment that asks.
pub const WORKFLOW: &str = "ask";
/// The one that embeds, where retrieval needs that.
const EMBEDDER: &str = "embedder";

/// The manifest that a configuration stands for: what `forge serve` runs, and `forge apply` can. `name` is that of
/// the pipeline.
pub fn manifest(
    name: &str,
    experiment: &NewExperiment,
    known: &Known,
) -> Result<String, Vec<Issue>> {
    let config = &experiment.config;
    let mut issues = Vec::new();
    let engine = known.engine(&config.model_name);
    let data = known.data_set(&config.dataset_name);
    if let Err(issue) = &engine {
        issues.push(Issue::new("config.model_name", issue));
    }
    if let Err(issue) = &data {
        issues.push(Issue::new("config.dataset_name", issue));
    }
    let mut ask: Vec<(&str, Value)> = vec![
        ("kind", "workflow".into()),
        ("flows", "flows".into()),
        ("engine", "engine".into()),
        ("method", config.reasoning_method.name().into()),
    ];
    let sampling = &config.hyperparameters;
    ask.extend([
        ("temperature", Value::from(sampling.temperature)),
        ("top_p", sampling.top_p.into()),
        ("max_tokens", sampling.max_tokens.into()),
        ("seed", sampling.seed.into()),
    ]);
    ask.extend(sampling.top_k.map(|top_k| ("top_k", top_k.into())));
    let optimization = config.optimization.clone().unwrap_or_default();
    ask.push(match optimization.enable_batching {
        true => ("batch_size", optimization.batch_size.into()),
        false => ("concurrency", 1.into()),
    });
    ask.push(("cache", optimization.enable_caching.into()));
    if optimization.enable_caching {
        ask.push(("cache_max_size", optimization.cache_max_size.into()));
    }
    // The other samples go on, and the run says how many failed.
    ask.push(("fail_on_error", false.into()));
    if config.reasoning_method == ReasoningMethod::React {
        let tools = config.agent.as_ref().map(|agent| agent.tools.clone());
        let tools = tools.unwrap_or_else(|| {
            // Without a word from the client: what there is something to look up in.
            let all = ["calculator", "lookup"].iter().map(|tool| (*tool).to_owned());
            all.filter(|tool| tool != "lookup" || known.lookup.is_some()).collect()
        });
        let turns = config.agent.as_ref().map_or(5, |agent| agent.max_iterations);
        ask.push(("max_iterations", turns.into()));
        if tools.iter().any(|tool| tool == "lookup") {
            match &known.lookup {
                Some(table) => ask.push(("lookup", table.as_str().into())),
                None => issues.push(Issue::new(
                    "config.agent.tools",
                    "`lookup` has nothing to look up in: no workflow of the project names a table (`lookup = \"<file>\"`)",
                )),
            }
        }
        ask.push(("tools", tools.into()));
    }
    if let Some(rag) = config.rag.as_ref().filter(|rag| rag.retrieval_method != "none") {
        let field = "config.rag.retrieval_method";
        match &known.corpus {
            _ if rag.retrieval_method == "hybrid" && known.embedder.is_none() => {
                let issue = "hybrid needs an engine of embeddings: no workflow of the project names one (`rag.embeddings`)";
                issues.push(Issue::new(field, issue));
            }
            None => issues.push(Issue::new(
                field,
                "there is nothing to retrieve from: no workflow of the project names a corpus (`rag.corpus`)",
            )),
            Some(corpus) => {
                let mut table = Map::new();
                table.insert("retrieval_method".to_owned(), rag.retrieval_method.as_str().into());
                table.insert("corpus".to_owned(), corpus.clone());
                table.insert("top_k".to_owned(), rag.top_k.into());
                table.insert("chunk_size".to_owned(), rag.chunk_size.into());
                match rag.retrieval_method.as_str() {
                    "reranked" => drop(table.insert("reranker".to_owned(), "engine".into())),
                    "hybrid" => drop(table.insert("embeddings".to_owned(), EMBEDDER.into())),
                    _ => {}
                }
                ask.push(("rag", table.into()));
            }
        }
    }
    let (Ok(engine), Ok(data)) = (engine, data) else { return Err(issues) };
    if !issues.is_empty() {
        return Err(issues);
    }

    let mut text = String::from(
        "# An experiment of `forge serve`; `forge apply` runs it from the command line.\n",
    );
    let mut pipeline = vec![("name", Value::from(name))];
    let about = experiment.description.as_deref().filter(|text| !text.trim().is_empty());
    // A template in it would be one in the manifest, too.
    let about = about.unwrap_or(&experiment.name);
    if !crate::template::is_template(about) {
        pipeline.push(("description", about.into()));
    }
    table(&mut text, "pipeline", pipeline);
    table(
        &mut text,
        "stage.question",
        vec![("kind", "flow-template".into()), ("file", data.template.as_str().into())],
    );
    let mut flows = vec![("kind", Value::from("expand")), ("template", "question".into())];
    flows.extend(data.fields.iter().map(|(name, value)| (name.as_str(), value.clone())));
    flows.push(("count", config.num_samples.into()));
    table(&mut text, "stage.flows", flows);
    let mut fields = vec![("kind", Value::from("engine"))];
    fields.extend(engine.iter().map(|(name, value)| (name.as_str(), value.clone())));
    table(&mut text, "stage.engine", fields);
    table(&mut text, &format!("stage.{WORKFLOW}"), ask);
    let is_hybrid = config.rag.as_ref().is_some_and(|rag| rag.retrieval_method == "hybrid");
    if let Some(embedder) = known.embedder.as_ref().filter(|_| is_hybrid) {
        let mut fields = vec![("kind", Value::from("engine"))];
        fields.extend(embedder.iter().map(|(name, value)| (name.as_str(), value.clone())));
        table(&mut text, &format!("stage.{EMBEDDER}"), fields);
    }
    let report = vec![("kind", "report".into()), ("samples", WORKFLOW.into())];
    table(&mut text, "stage.report", report);
    Ok(text)
}

fn table(out: &mut String, name: &str, fields: Vec<(&str, Value)>) {
    out.push_str(&format!("\n[{name}]\n"));
    for (name, value) in fields {
        out.push_str(&format!("{} = {}\n", toml_key(name), toml_value(&value)));
    }
}
