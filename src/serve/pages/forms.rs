//! The form of a new experiment: its fields to the body that the interface takes, and what is wrong with that back to
//! the fields. Knows nothing of HTTP: whatever is checked is checked there.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::serve::experiment::{Config, Issue};

/// Fields that hold text, and where they go in the body.
const TEXTS: &[(&str, &str)] = &[
    ("name", "name"),
    ("description", "description"),
    ("model_name", "config.model_name"),
    ("reasoning_method", "config.reasoning_method"),
    ("dataset_name", "config.dataset_name"),
    ("retrieval_method", "config.rag.retrieval_method"),
];
/// Fields that hold numbers.
const NUMBERS: &[(&str, &str)] = &[
    ("num_samples", "config.num_samples"),
    ("temperature", "config.hyperparameters.temperature"),
    ("top_p", "config.hyperparameters.top_p"),
    ("max_tokens", "config.hyperparameters.max_tokens"),
    ("top_k", "config.hyperparameters.top_k"),
    ("seed", "config.hyperparameters.seed"),
    ("batch_size", "config.optimization.batch_size"),
    ("cache_max_size", "config.optimization.cache_max_size"),
    ("rag_top_k", "config.rag.top_k"),
    ("chunk_size", "config.rag.chunk_size"),
    ("max_iterations", "config.agent.max_iterations"),
];
/// Boxes that are ticked or not.
const BOXES: &[(&str, &str)] = &[
    ("enable_batching", "config.optimization.enable_batching"),
    ("enable_caching", "config.optimization.enable_caching"),
    ("enable_profiling", "config.optimization.enable_profiling"),
];
/// Tools of react, a box each.
const TOOLS: [&str; 2] = ["calculator", "lookup"];

/// What stands in the fields.
pub type Values = BTreeMap<String, String>;

/// Something wrong, with the field that it is about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Wrong {
    /// The id of the field on the page; empty where there is none.
    pub anchor: String,
    /// Its name for people.
    pub label: String,
    /// What.
    pub issue: String,
}

/// The values of an empty form. Templates find every field.
pub fn empty(engine: &str, data_set: &str) -> Values {
    let mut values = Values::new();
    let names = TEXTS.iter().chain(NUMBERS).chain(BOXES).map(|(name, _)| (*name).to_owned());
    names.for_each(|name| drop(values.insert(name, String::new())));
    let defaults = [
        ("model_name", engine),
        ("dataset_name", data_set),
        ("reasoning_method", "naive"),
        ("num_samples", "100"),
        ("temperature", "0.7"),
        ("top_p", "0.9"),
        ("max_tokens", "256"),
        ("seed", "42"),
        ("batch_size", "8"),
        ("cache_max_size", "256"),
        ("enable_profiling", "true"),
        ("retrieval_method", "none"),
        ("rag_top_k", "5"),
        ("chunk_size", "256"),
        ("max_iterations", "5"),
        ("tool_calculator", "true"),
        ("tool_lookup", "true"),
    ];
    for (name, value) in defaults {
        values.insert(name.to_owned(), value.to_owned());
    }
    values
}

/// The values of a form that was sent: what is not there was not ticked, or left empty.
pub fn sent(pairs: &[(String, String)]) -> Values {
    let mut values = empty("", "");
    values.values_mut().for_each(String::clear);
    for (name, value) in pairs {
        if let Some(field) = values.get_mut(name) {
            field.clone_from(value);
        }
    }
    values
}

/// The values of an experiment, to be changed and made anew.
pub fn copied(name: &str, description: Option<&str>, config: &Config) -> Values {
    let mut values = empty("", "");
    let body = json!({ "name": name, "description": description, "config": config });
    for (field, place) in TEXTS.iter().chain(NUMBERS).chain(BOXES) {
        let value = place.split('.').try_fold(&body, |value, part| value.get(part));
        let text = match value {
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(flag)) => {
                if *flag {
                    "true".to_owned()
                } else {
                    String::new()
                }
            }
            Some(other) => other.to_string(),
        };
        values.insert((*field).to_owned(), text);
    }
    if let Some(agent) = &config.agent {
        for tool in TOOLS {
            let ticked = agent.tools.iter().any(|own| own == tool);
            values
                .insert(format!("tool_{tool}"), if ticked { "true".into() } else { String::new() });
        }
    }
    values
}

/// The body that the interface takes. A number that is none goes as text, and is refused there with its field.
pub fn body(values: &Values) -> Value {
    let mut body = Value::Object(Map::new());
    let of = |name: &str| values.get(name).map_or("", |value| value.trim());
    let method = of("reasoning_method");
    let is_of_agent = |place: &str| place.starts_with("config.agent.");
    let is_of_rag = |place: &str| place.starts_with("config.rag.");
    let has_rag = !matches!(of("retrieval_method"), "" | "none");
    for (name, place) in TEXTS {
        if !of(name).is_empty() && (has_rag || !is_of_rag(place)) {
            put(&mut body, place, of(name).into());
        }
    }
    for (name, place) in NUMBERS {
        let text = of(name);
        if text.is_empty()
            || (is_of_agent(place) && method != "react")
            || (is_of_rag(place) && !has_rag)
        {
            continue;
        }
        let whole = text.parse::<i64>().map(Value::from);
        let number = whole.or_else(|_| text.parse::<f64>().map(Value::from));
        put(&mut body, place, number.unwrap_or_else(|_| text.into()));
    }
    for (name, place) in BOXES {
        put(&mut body, place, (!of(name).is_empty()).into());
    }
    if method == "react" {
        let ticked = TOOLS.into_iter().filter(|tool| !of(&format!("tool_{tool}")).is_empty());
        put(&mut body, "config.agent.tools", ticked.collect::<Vec<_>>().into());
    }
    body
}

fn put(body: &mut Value, place: &str, value: Value) {
    let mut at = body;
    for part in place.split('.') {
        let Value::Object(map) = at else {
            unreachable!("BUG: a field in a value that is no object")
        };
        at = map.entry(part).or_insert_with(|| Value::Object(Map::new()));
    }
    *at = value;
}

/// What is wrong by field, and as a list.
pub fn wrong(issues: &[Issue]) -> (BTreeMap<String, String>, Vec<Wrong>) {
    let mut by_field: BTreeMap<String, String> = BTreeMap::new();
    let names = TEXTS.iter().chain(NUMBERS).chain(BOXES).map(|(name, _)| (*name).to_owned());
    names.chain(["tools".to_owned()]).for_each(|name| drop(by_field.insert(name, String::new())));
    let mut list = Vec::new();
    for Issue { field, issue } in issues {
        let fields = TEXTS.iter().chain(NUMBERS).chain(BOXES);
        let found = fields.into_iter().find(|(_, place)| place == field).map(|(name, _)| *name);
        let found = found.or((field == "config.agent.tools").then_some("tools"));
        if let Some(name) = found {
            by_field.insert(name.to_owned(), issue.clone());
        }
        let anchor = match found {
            Some("tools") => "tool_calculator",
            Some(name) => name,
            None => "",
        };
        list.push(Wrong {
            anchor: anchor.to_owned(),
            label: found.unwrap_or(field).replace('_', " "),
            issue: issue.clone(),
        });
    }
    (by_field, list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::experiment::NewExperiment;

    #[test]
    fn a_form_becomes_the_body_and_an_experiment_the_form() {
        let mut values = empty("tiny", "qa");
        values.insert("name".into(), "first".into());
        let new = NewExperiment::read(&body(&values)).unwrap();
        assert_eq!((new.config.rag.clone(), new.config.agent.clone()), (None, None));
        assert_eq!(copied("first", None, &new.config), values);

        for (name, value) in
            [("reasoning_method", "react"), ("retrieval_method", "naive"), ("tool_lookup", "")]
        {
            values.insert(name.into(), value.into());
        }
        let new = NewExperiment::read(&body(&values)).unwrap();
        assert_eq!(new.config.agent.as_ref().unwrap().tools, ["calculator"]);
        assert_eq!(copied("first", None, &new.config), values);
    }

    #[test]
    fn what_is_wrong_finds_its_field() {
        let mut values =
            sent(&[("num_samples".into(), "many".into()), ("name".into(), "n".into())]);
        values.insert("model_name".into(), "m".into());
        let issues = NewExperiment::read(&body(&values)).unwrap_err();
        let (by_field, list) = wrong(&issues);
        assert_eq!(by_field["num_samples"], "must be a whole number from 1 to 500, not \"many\"");
        assert_eq!(by_field["dataset_name"], "is missing");
        let anchors: Vec<_> = list.iter().map(|wrong| wrong.anchor.as_str()).collect();
        assert_eq!(anchors, ["dataset_name", "num_samples"]);
    }
}
