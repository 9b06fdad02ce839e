//! The parameters of a tool that a manifest declares: their schema for the model, and the reading of what it
//! wrote. Knows nothing of what the tool does with them.

use serde_json::{Map, Value, json};

/// Types by their names in JSON Schema.
pub const TYPES: &[&str] = &["string", "number", "integer", "boolean"];

/// A parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// One of [`TYPES`].
    pub kind: String,
    /// For the model.
    pub description: Option<String>,
    /// Whether a call may leave it out.
    pub optional: bool,
}

/// JSON Schema of the arguments.
pub fn schema(parameters: &[Parameter]) -> Value {
    let property = |parameter: &Parameter| {
        let mut property = Map::new();
        property.insert("type".to_owned(), parameter.kind.as_str().into());
        if let Some(description) = &parameter.description {
            property.insert("description".to_owned(), description.as_str().into());
        }
        (parameter.name.clone(), Value::Object(property))
    };
    let needed = parameters.iter().filter(|parameter| !parameter.optional);
    json!({
        "type": "object",
        "properties": parameters.iter().map(property).collect::<Map<_, _>>(),
        "required": needed.map(|parameter| parameter.name.as_str()).collect::<Vec<_>>(),
        "additionalProperties": false,
    })
}

/// How a call in a text is written: `<name>` of a single parameter, else a JSON object.
pub fn usage(parameters: &[Parameter]) -> String {
    match parameters {
        [one] => format!("<{}>", one.name),
        all => {
            let part = |parameter: &Parameter| {
                let mark = if parameter.optional { "?" } else { "" };
                format!("\"{}\"{mark}: <{}>", parameter.name, parameter.kind)
            };
            format!("{{{}}}", all.iter().map(part).collect::<Vec<_>>().join(", "))
        }
    }
}

/// The arguments of a call: a JSON object, or the text itself for the only parameter that there is, or that
/// is needed. An error says what is wrong, for the model.
pub fn read(parameters: &[Parameter], input: &str) -> Result<Map<String, Value>, String> {
    let object = match serde_json::from_str::<Value>(input) {
        Ok(Value::Object(object)) => object,
        _ => {
            let mut needed = parameters.iter().filter(|parameter| !parameter.optional);
            let only = match (parameters, needed.next(), needed.next()) {
                ([one], ..) | (_, Some(one), None) => one,
                _ => return Err(format!("write the input as JSON: {}", usage(parameters))),
            };
            let text = input.trim();
            let value = match only.kind.as_str() {
                "string" => Value::from(text),
                _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
            };
            [(only.name.clone(), value)].into_iter().collect()
        }
    };
    for name in object.keys() {
        if !parameters.iter().any(|parameter| parameter.name == *name) {
            let known: Vec<_> = parameters.iter().map(|p| p.name.as_str()).collect();
            return Err(format!("unknown parameter `{name}` (known: {})", known.join(", ")));
        }
    }
    for Parameter { name, kind, optional, .. } in parameters {
        let Some(value) = object.get(name) else {
            match optional {
                true => continue,
                false => return Err(format!("the parameter `{name}` is missing")),
            }
        };
        let fits = match kind.as_str() {
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            _ => value.is_boolean(),
        };
        if !fits {
            return Err(format!("the parameter `{name}` must be of type {kind}, not {value}"));
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(name: &str, kind: &str, optional: bool) -> Parameter {
        Parameter { name: name.into(), kind: kind.into(), description: None, optional }
    }

    #[test]
    fn calls_are_read_as_objects_and_as_text() {
        let two = [parameter("amount", "number", false), parameter("unit", "string", true)];
        let check = |input: &str, want: &str| {
            let got =
                read(&two, input).map_or_else(|error| error, |o| Value::Object(o).to_string());
            assert_eq!(got, want, "{input}");
        };
        check(r#"{"amount": 3, "unit": "km"}"#, r#"{"amount":3,"unit":"km"}"#);
        check("3.5", r#"{"amount":3.5}"#);
        check("many", "the parameter `amount` must be of type number, not \"many\"");
        check(r#"{"unit": "km"}"#, "the parameter `amount` is missing");
        check(r#"{"amount": 3, "uint": "km"}"#, "unknown parameter `uint` (known: amount, unit)");
        let words = [parameter("text", "string", false)];
        assert_eq!(read(&words, " 12 ").unwrap()["text"], "12");
        let both = [parameter("a", "string", false), parameter("b", "integer", false)];
        assert_eq!(
            read(&both, "x").unwrap_err(),
            "write the input as JSON: {\"a\": <string>, \"b\": <integer>}"
        );
        assert!(read(&both, r#"{"a": "x", "b": 1.5}"#).unwrap_err().contains("type integer"));
    }

    #[test]
    fn the_schema_says_what_is_needed() {
        let schema = schema(&[parameter("a", "string", false), parameter("b", "integer", true)]);
        assert_eq!(schema["required"], json!(["a"]));
        assert_eq!(schema["properties"]["b"]["type"], "integer");
    }
}
