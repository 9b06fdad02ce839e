//! The configuration of an experiment: what a client sends, checked field by field. Knows nothing of HTTP, of the
//! database, and of manifests.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Longest name and model name, in characters.
const NAME_MAX: usize = 255;
/// Longest description, in characters.
const DESCRIPTION_MAX: usize = 4_000;

/// One thing that is wrong with what was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Issue {
    /// Where: `config.rag.top_k`.
    pub field: String,
    /// What, and what is known instead.
    pub issue: String,
}

impl Issue {
    /// Something wrong with a field.
    pub fn new(field: impl Into<String>, issue: impl Into<String>) -> Issue {
        Issue { field: field.into(), issue: issue.into() }
    }
}

/// What a client wants to have run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NewExperiment {
    /// For people.
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    /// For people.
    #[schema(max_length = 4000)]
    pub description: Option<String>,
    /// What is run.
    pub config: Config,
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Config {
    /// An engine that the server knows, or a model of its default engine.
    #[schema(min_length = 1, max_length = 255)]
    pub model_name: String,
    /// How the model is asked to reason.
    #[serde(default)]
    #[schema(default = "naive")]
    pub reasoning_method: ReasoningMethod,
    /// A data set that the server knows.
    pub dataset_name: String,
    /// Rows that are asked, from the first.
    #[schema(minimum = 1, maximum = 500, default = 100)]
    pub num_samples: u32,
    /// Sampling.
    #[serde(default)]
    pub hyperparameters: Hyperparameters,
    /// Passages before the question.
    pub rag: Option<Rag>,
    /// Bounds and tools of react.
    pub agent: Option<Agent>,
    /// Batching and caching.
    pub optimization: Option<Optimization>,
}

/// How the model is asked to reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReasoningMethod {
    /// The answer at once.
    #[default]
    Naive,
    /// Step by step.
    Cot,
    /// With tools.
    React,
}

impl ReasoningMethod {
    /// All of them.
    pub const ALL: [&str; 3] = ["naive", "cot", "react"];

    /// The name in configurations and manifests.
    pub fn name(self) -> &'static str {
        match self {
            ReasoningMethod::Naive => "naive",
            ReasoningMethod::Cot => "cot",
            ReasoningMethod::React => "react",
        }
    }
}

/// Sampling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Hyperparameters {
    /// 0 is greedy.
    #[schema(minimum = 0, maximum = 2, default = 0.7)]
    pub temperature: f64,
    /// The most likely tokens that together have this share.
    #[schema(minimum = 0, maximum = 1, default = 0.9)]
    pub top_p: f64,
    /// Tokens of a reply.
    #[schema(minimum = 1, maximum = 4096, default = 256)]
    pub max_tokens: u32,
    /// So many of the most likely tokens.
    #[schema(minimum = 1)]
    pub top_k: Option<u32>,
    /// Of sampling.
    #[schema(default = 42)]
    pub seed: i64,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Hyperparameters { temperature: 0.7, top_p: 0.9, max_tokens: 256, top_k: None, seed: 42 }
    }
}

/// Passages before the question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rag {
    /// `none`, `naive`, `hybrid` or `reranked`.
    #[schema(default = "none")]
    pub retrieval_method: String,
    /// Passages.
    #[schema(minimum = 1, maximum = 20, default = 5)]
    pub top_k: u32,
    /// Words of a passage.
    #[schema(minimum = 64, maximum = 1024, default = 256)]
    pub chunk_size: u32,
}

/// Bounds and tools of react.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    /// Turns of the model.
    #[schema(minimum = 1, maximum = 20, default = 5)]
    pub max_iterations: u32,
    /// Tools by name.
    pub tools: Vec<String>,
}

/// Batching and caching.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Optimization {
    /// Several requests at once. With react it is off: an agent's requests wait for each other.
    #[schema(default = false)]
    pub enable_batching: bool,
    /// How many.
    #[schema(minimum = 1, maximum = 32, default = 8)]
    pub batch_size: u32,
    /// Whether remembered answers are taken.
    #[schema(default = false)]
    pub enable_caching: bool,
    /// Answers in memory.
    #[schema(minimum = 16, maximum = 2048, default = 256)]
    pub cache_max_size: u32,
    /// Whether the profile is shown.
    #[schema(default = true)]
    pub enable_profiling: bool,
}

impl Default for Optimization {
    fn default() -> Self {
        Optimization {
            enable_batching: false,
            batch_size: 8,
            enable_caching: false,
            cache_max_size: 256,
            enable_profiling: true,
        }
    }
}

/// An object of JSON whose fields are read one by one; what is wrong is collected.
struct Object<'a> {
    path: String,
    map: Map<String, Value>,
    known: RefCell<Vec<&'static str>>,
    issues: &'a RefCell<Vec<Issue>>,
}

impl<'a> Object<'a> {
    fn new(path: &str, value: &Value, issues: &'a RefCell<Vec<Issue>>) -> Object<'a> {
        let map = match value {
            Value::Object(map) => map.clone(),
            other => {
                let field = if path.is_empty() { "body" } else { path };
                let issue = format!("must be an object, not {}", kind_of(other));
                issues.borrow_mut().push(Issue::new(field, issue));
                Map::new()
            }
        };
        Object { path: path.to_owned(), map, known: RefCell::default(), issues }
    }

    fn place(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn wrong(&self, name: &str, issue: impl Into<String>) {
        self.issues.borrow_mut().push(Issue::new(self.place(name), issue));
    }

    /// A field that is there and not null.
    fn get(&self, name: &'static str) -> Option<&Value> {
        self.known.borrow_mut().push(name);
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &'static str, longest: usize) -> Option<String> {
        match self.get(name)? {
            Value::String(text) if text.chars().count() > longest => {
                self.wrong(name, format!("must have at most {longest} characters"));
                None
            }
            Value::String(text) => Some(text.clone()),
            other => {
                self.wrong(name, format!("must be a text, not {}", kind_of(other)));
                None
            }
        }
    }

    fn needed_text(&self, name: &'static str, longest: usize) -> String {
        if !self.map.contains_key(name) || self.map[name].is_null() {
            self.known.borrow_mut().push(name);
            self.wrong(name, "is missing");
            return String::new();
        }
        let text = self.text(name, longest);
        if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            self.wrong(name, "must not be empty");
        }
        text.unwrap_or_default()
    }

    fn integer(&self, name: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.get(name)?;
        // 5.0 is a whole number, too: some clients know no others.
        let whole = value.as_i64().or_else(|| {
            let float =
                value.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15)?;
            Some(float as i64)
        });
        match whole.filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => {
                let (low, high) = (*range.start(), *range.end());
                let bounds = match (low, high) {
                    (i64::MIN, i64::MAX) => "of 64 bits".to_owned(),
                    _ => format!("from {low} to {high}"),
                };
                self.wrong(name, format!("must be a whole number {bounds}, not {value}"));
                None
            }
        }
    }

    fn count(&self, name: &'static str, range: RangeInclusive<u32>, default: u32) -> u32 {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        self.integer(name, range).and_then(|n| u32::try_from(n).ok()).unwrap_or(default)
    }

    fn number(&self, name: &'static str, range: RangeInclusive<f64>, default: f64) -> f64 {
        let Some(value) = self.get(name) else { return default };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let bounds = format!("{} to {}", range.start(), range.end());
                self.wrong(name, format!("must be a number from {bounds}, not {value}"));
                default
            }
        }
    }

    fn boolean(&self, name: &'static str, default: bool) -> bool {
        match self.get(name) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                self.wrong(name, format!("must be true or false, not {}", kind_of(other)));
                default
            }
        }
    }

    fn choice(&self, name: &'static str, known: &[&str]) -> Option<String> {
        let value = self.get(name)?;
        match value.as_str().filter(|text| known.contains(text)) {
            Some(text) => Some(text.to_owned()),
            None => {
                self.wrong(name, format!("must be one of {}, not {value}", known.join(", ")));
                None
            }
        }
    }

    fn inner(&self, name: &'static str) -> Option<Object<'a>> {
        let value = self.get(name)?;
        Some(Object::new(&self.place(name), value, self.issues))
    }

    /// What is left over was mistyped, and would be dropped without a word.
    fn finish(&self) {
        let known = self.known.borrow();
        for name in self.map.keys().filter(|name| !known.contains(&name.as_str())) {
            let mut names: Vec<_> = known.to_vec();
            names.sort_unstable();
            self.wrong(name, format!("is unknown (known: {})", names.join(", ")));
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl NewExperiment {
    /// Reads what a client has sent. Everything that is wrong is said at once.
    pub fn read(body: &Value) -> Result<NewExperiment, Vec<Issue>> {
        let issues = RefCell::default();
        let top = Object::new("", body, &issues);
        let name = top.needed_text("name", NAME_MAX);
        let description = top.text("description", DESCRIPTION_MAX);
        let config = match top.inner("config") {
            Some(object) => read_config(&object),
            None => {
                top.wrong("config", "is missing");
                read_config(&Object::new("config", &Map::new().into(), &RefCell::default()))
            }
        };
        top.finish();
        let read = NewExperiment { name, description, config };
        let issues = issues.into_inner();
        if issues.is_empty() { Ok(read) } else { Err(issues) }
    }
}

fn read_config(config: &Object<'_>) -> Config {
    let method = match config.choice("reasoning_method", &ReasoningMethod::ALL).as_deref() {
        Some("cot") => ReasoningMethod::Cot,
        Some("react") => ReasoningMethod::React,
        _ => ReasoningMethod::Naive,
    };
    let read = Config {
        model_name: config.needed_text("model_name", NAME_MAX),
        reasoning_method: method,
        dataset_name: config.needed_text("dataset_name", NAME_MAX),
        num_samples: config.count("num_samples", 1..=500, 100),
        hyperparameters: config.inner("hyperparameters").map_or_else(Default::default, |inner| {
            let read = Hyperparameters {
                temperature: inner.number("temperature", 0.0..=2.0, 0.7),
                top_p: inner.number("top_p", 0.0..=1.0, 0.9),
                max_tokens: inner.count("max_tokens", 1..=4096, 256),
                top_k: inner
                    .integer("top_k", 1..=i64::from(u32::MAX))
                    .and_then(|n| u32::try_from(n).ok()),
                seed: inner.integer("seed", i64::MIN..=i64::MAX).unwrap_or(42),
            };
            inner.finish();
            read
        }),
        rag: config.inner("rag").map(|inner| {
            let methods = ["none", "naive", "hybrid", "reranked"];
            let read = Rag {
                retrieval_method: inner
                    .choice("retrieval_method", &methods)
                    .unwrap_or_else(|| "none".to_owned()),
                top_k: inner.count("top_k", 1..=20, 5),
                chunk_size: inner.count("chunk_size", 64..=1024, 256),
            };
            inner.finish();
            read
        }),
        agent: config.inner("agent").map(|inner| {
            let read = Agent {
                max_iterations: inner.count("max_iterations", 1..=20, 5),
                tools: read_tools(&inner),
            };
            inner.finish();
            read
        }),
        optimization: config.inner("optimization").map(|inner| {
            let default = Optimization::default();
            let read = Optimization {
                enable_batching: inner.boolean("enable_batching", default.enable_batching),
                batch_size: inner.count("batch_size", 1..=32, default.batch_size),
                enable_caching: inner.boolean("enable_caching", default.enable_caching),
                cache_max_size: inner.count("cache_max_size", 16..=2048, default.cache_max_size),
                enable_profiling: inner.boolean("enable_profiling", default.enable_profiling),
            };
            inner.finish();
            read
        }),
    };
    if read.agent.is_some() && method != ReasoningMethod::React {
        let issue = format!("is for react; the method is {}", method.name());
        config.wrong("agent", issue);
    }
    config.finish();
    read
}

fn read_tools(agent: &Object<'_>) -> Vec<String> {
    const KNOWN: [&str; 2] = ["calculator", "lookup"];
    let all = || KNOWN.map(str::to_owned).to_vec();
    let Some(value) = agent.get("tools") else { return all() };
    let Value::Array(items) = value else {
        agent.wrong("tools", format!("must be a list, not {}", kind_of(value)));
        return all();
    };
    let mut tools: Vec<String> = Vec::new();
    for item in items {
        match item.as_str().filter(|tool| KNOWN.contains(tool)) {
            Some(tool) if tools.iter().any(|other| other == tool) => {
                agent.wrong("tools", format!("`{tool}` stands there twice"));
            }
            Some(tool) => tools.push(tool.to_owned()),
            None => {
                agent.wrong("tools", format!("{item} is no tool (known: {})", KNOWN.join(", ")));
            }
        }
    }
    if items.is_empty() {
        agent.wrong("tools", "must name a tool");
    }
    tools
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn issues(body: &Value) -> Vec<(String, String)> {
        let issues = NewExperiment::read(body).unwrap_err();
        issues.into_iter().map(|issue| (issue.field, issue.issue)).collect()
    }

    #[test]
    fn what_is_absent_has_the_defaults_of_the_contract() {
        let body = json!({"name": "n", "config": {"model_name": "m", "dataset_name": "d", "optimization": {}}});
        let read = NewExperiment::read(&body).unwrap();
        assert_eq!(read.config.num_samples, 100);
        assert_eq!(read.config.reasoning_method, ReasoningMethod::Naive);
        assert_eq!(read.config.hyperparameters, Hyperparameters::default());
        assert_eq!((read.config.rag, read.config.agent), (None, None));
        assert_eq!(read.config.optimization, Some(Optimization::default()));
    }

    #[test]
    fn everything_that_is_wrong_is_said_with_its_place() {
        let body = json!({
            "name": "", "colour": 1,
            "config": {
                "dataset_name": "d", "num_samples": 501, "reasoning_method": "tot",
                "hyperparameters": {"temperature": 2.5, "top_p": true, "max_tokens": 1.5, "top_k": 0},
                "agent": {"tools": ["hammer"]}, "rag": {"top_k": 21, "chunks": 1},
                "optimization": {"batch_size": 33, "cache_max_size": 8, "enable_caching": "yes"},
            },
        });
        let fields: Vec<_> = issues(&body).into_iter().map(|(field, _)| field).collect();
        let wanted = [
            "name",
            "config.reasoning_method",
            "config.model_name",
            "config.num_samples",
            "config.hyperparameters.temperature",
            "config.hyperparameters.top_p",
            "config.hyperparameters.max_tokens",
            "config.hyperparameters.top_k",
            "config.rag.top_k",
            "config.rag.chunks",
            "config.agent.tools",
            "config.optimization.batch_size",
            "config.optimization.enable_caching",
            "config.optimization.cache_max_size",
            "config.agent",
            "colour",
        ];
        assert_eq!(fields, wanted);
        assert_eq!(
            issues(&json!([]))[0],
            ("body".to_owned(), "must be an object, not a list".to_owned())
        );
    }
}
