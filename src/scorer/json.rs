//! JSON against a schema and against the fields of a target. Knows nothing of files.

use std::collections::BTreeMap;

use jsonschema::Validator;
use serde_json::Value;

use super::Compared;

/// Version of what this scorer says.
pub const REV: u32 = 2;
/// Where its definition comes from.
pub const SOURCE: &str = "JSON Schema (draft as the schema says, else 2020-12) and equality of fields by JSON Pointer \
                          (RFC 6901); promptfoo's `is-json`";

/// How deep braces may stand in each other where JSON is looked for in a text.
const STARTS_MAX: usize = 1000;

/// What an answer has to be.
pub struct Json {
    /// As written.
    pub schema: Option<Value>,
    validator: Option<Validator>,
    /// Pointers of the fields that count; empty is every field of the target.
    pub fields: Vec<String>,
    /// Whether JSON may stand within other text.
    pub anywhere: bool,
}

impl Json {
    /// Checks a schema. References to elsewhere are refused: nothing is fetched.
    pub fn new(schema: Option<Value>, fields: Vec<String>, anywhere: bool) -> Result<Self, String> {
        let validator = match &schema {
            None => None,
            Some(schema) => {
                Some(jsonschema::validator_for(schema).map_err(|error| error.to_string())?)
            }
        };
        Ok(Json { schema, validator, fields, anywhere })
    }

    /// Scores an answer: 0 where it is no JSON or not of the schema, else the share of the target's fields that
    /// are equal; 1 without targets.
    pub fn compare(&self, answer: &str, targets: &[String]) -> Compared {
        let found = match self.anywhere {
            true => found_in(answer),
            false => serde_json::from_str(unfenced(answer)).ok(),
        };
        let Some(found) = found else {
            let detail = Some("the answer is no JSON".to_owned());
            return Compared { detail, ..Compared::default() };
        };
        let parsed = Some(self.compared(&found).to_string());
        if let Some(error) = self.validator.as_ref().and_then(|v| v.iter_errors(&found).next()) {
            let place = error.instance_path().to_string();
            let place = if place.is_empty() { "the answer".to_owned() } else { place };
            let detail = Some(shortened(&format!("{place}: {error}")));
            return Compared { parsed, detail, ..Compared::default() };
        }
        if targets.is_empty() {
            return Compared { value: 1.0, parsed, ..Compared::default() };
        }
        let compared: Vec<_> = targets.iter().map(|target| self.fields(&found, target)).collect();
        let mut best = Compared::best(compared.iter().map(|(value, _)| *value), parsed);
        let shown = best.matched.unwrap_or(0);
        best.detail = compared.into_iter().nth(shown).and_then(|(_, detail)| detail);
        best
    }

    /// What of an answer is compared: its fields by pointer where some are named, else all of it. Equal ones are the
    /// same text.
    fn compared(&self, answer: &Value) -> Value {
        if self.fields.is_empty() {
            return canonical(answer);
        }
        let field = |pointer: &String| Some((pointer.clone(), canonical(answer.pointer(pointer)?)));
        Value::Object(self.fields.iter().filter_map(field).collect())
    }

    /// The share of fields that are equal, and the first that is not.
    fn fields(&self, answer: &Value, target: &str) -> (f64, Option<String>) {
        // A target that is no JSON is a text.
        let target = serde_json::from_str(target).unwrap_or_else(|_| Value::from(target));
        let mut pointers = self.fields.clone();
        if pointers.is_empty() {
            leaves(&target, &mut String::new(), &mut pointers);
        }
        let mut detail = None;
        let mut right = 0;
        for pointer in &pointers {
            let (said, wanted) = (answer.pointer(pointer), target.pointer(pointer));
            if said.zip(wanted).is_some_and(|(said, wanted)| equal(said, wanted)) {
                right += 1;
            } else if detail.is_none() {
                let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
                let place = if pointer.is_empty() { "the answer" } else { pointer };
                detail = Some(shortened(&format!("{place}: {}, not {}", show(said), show(wanted))));
            }
        }
        (f64::from(right) / pointers.len() as f64, detail)
    }
}

/// Pointers of all values that hold no others.
fn leaves(value: &Value, at: &mut String, out: &mut Vec<String>) {
    let len = at.len();
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                at.push('/');
                at.push_str(&name.replace('~', "~0").replace('/', "~1"));
                leaves(value, at, out);
                at.truncate(len);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, value) in items.iter().enumerate() {
                at.push_str(&format!("/{i}"));
                leaves(value, at, out);
                at.truncate(len);
            }
        }
        _ => out.push(at.clone()),
    }
}

/// Equality in which 1 and 1.0 are one number, and the order of keys does not count.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same =
                |(name, value): (&String, &Value)| b.get(name).is_some_and(|b| equal(value, b));
            a.len() == b.len() && a.iter().all(same)
        }
        _ => a == b,
    }
}

/// The same for all values that are [`equal`]: keys in order, whole numbers without a point.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() < EXACT_MAX => {
                Value::from(float as i64)
            }
            Some(float) => Value::from(float),
            None => value.clone(),
        },
        Value::Array(items) => items.iter().map(canonical).collect(),
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            let pairs = sorted.into_iter().map(|(name, value)| (name.clone(), canonical(value)));
            Value::Object(pairs.collect())
        }
        other => other.clone(),
    }
}

/// Whole numbers below are floats without a loss: 2^53.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// Characters of a message that quotes what a model wrote.
const SHOWN_MAX: usize = 300;

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The text within a fence around all of it (```` ```json … ``` ````), else the text.
pub fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let Some(inner) = inner.filter(|inner| !inner.contains("```")) else { return text };
    // The rest of the first line names the language.
    inner.split_once('\n').map_or(text, |(_, body)| body.trim())
}

/// The text of the first fenced block whose language is one of `languages` or unnamed.
pub fn first_block<'a>(text: &'a str, languages: &[&str]) -> Option<&'a str> {
    let mut rest = text;
    loop {
        let (_, after) = rest.split_once("```")?;
        let (language, body) = after.split_once('\n')?;
        let (block, more) = body.split_once("```").unwrap_or((body, ""));
        let language = language.trim();
        if language.is_empty() || languages.iter().any(|known| known.eq_ignore_ascii_case(language))
        {
            return Some(block);
        }
        rest = more;
    }
}

/// The last JSON object or list in a text, where that is not JSON as a whole.
pub fn found_in(text: &str) -> Option<Value> {
    if let Ok(whole) = serde_json::from_str(unfenced(text)) {
        return Some(whole);
    }
    // Each opening mark begins at most one value, so what is inside a value is not looked at again.
    let mut last = None;
    let mut at = 0;
    for _ in 0..STARTS_MAX {
        let Some(open) = text[at..].find(['{', '[']) else { break };
        let start = at + open;
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                last = Some(value);
                at = start + values.byte_offset();
            }
            _ => at = start + 1,
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn score(json: &Json, answer: &str, targets: &[&str]) -> (f64, Option<String>) {
        let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
        let compared = json.compare(answer, &targets);
        (compared.value, compared.detail)
    }

    #[test]
    fn a_schema_decides_and_says_where_it_is_broken() {
        let schema = json!({
            "type": "object", "required": ["age"],
            "properties": { "age": { "type": "integer", "minimum": 0 } }
        });
        let json = Json::new(Some(schema), Vec::new(), false).unwrap();
        assert_eq!(score(&json, "{\"age\": 3}", &[]), (1.0, None));
        assert_eq!(score(&json, "```json\n{\"age\": 3}\n```", &[]), (1.0, None));
        let (value, detail) = score(&json, "{\"age\": -3}", &[]);
        assert_eq!(value, 0.0);
        assert!(detail.as_deref().unwrap().starts_with("/age: "), "{detail:?}");
        assert_eq!(score(&json, "Sure: {\"age\": 3}", &[]).0, 0.0);
        assert_eq!(score(&json, "no", &[]).1.unwrap(), "the answer is no JSON");
        assert!(Json::new(Some(json!({ "type": "objekt" })), Vec::new(), false).is_err());
    }

    #[test]
    fn fields_are_compared_one_by_one() {
        let all = Json::new(None, Vec::new(), true).unwrap();
        let target = ["{\"name\": \"Ada\", \"born\": {\"year\": 1815}, \"tags\": [1, 2.0]}"];
        let answer = "Here: {\"tags\": [1.0, 2], \"born\": {\"year\": 1815}, \"name\": \"Ada\", \"more\": 1}.";
        assert_eq!(score(&all, answer, &target), (1.0, None));
        let (value, detail) = score(&all, &answer.replace("1815", "1816"), &target);
        assert_eq!((value, detail.unwrap().as_str()), (0.75, "/born/year: 1816, not 1815"));
        let some = Json::new(None, vec!["/name".to_owned()], true).unwrap();
        assert_eq!(score(&some, "{\"name\": \"Ada\"}", &target).0, 1.0);
        assert_eq!(score(&some, "{\"name\": \"ada\"}", &target).0, 0.0);
    }

    #[test]
    fn equal_answers_are_one_vote() {
        let parsed = |fields: &[&str], answer: &str| {
            let fields = fields.iter().map(ToString::to_string).collect();
            let json = Json::new(None, fields, true).unwrap();
            json.compare(answer, &["{\"a\": 1}".to_owned()]).parsed.unwrap()
        };
        let all = "{\"a\":[1,{\"x\":0,\"y\":2.5}],\"b\":\"1.0\"}";
        assert_eq!(parsed(&[], "{\"b\": \"1.0\", \"a\": [1.0, {\"y\": 2.50, \"x\": -0.0}]}"), all);
        assert_eq!(parsed(&[], all), all);
        // Above 2^53 numbers are equal as floats.
        assert_eq!(parsed(&[], "[9007199254740993]"), parsed(&[], "[9007199254740992.0]"));
        assert_ne!(parsed(&[], "[9007199254740990]"), parsed(&[], "[9007199254740991]"));
        let one = "{\"/a\":1}";
        assert_eq!(parsed(&["/a"], "{\"why\": \"so\", \"a\": 1.0}"), one);
        assert_eq!(parsed(&["/a"], "{\"a\": 1, \"why\": \"not so\"}"), one);
        assert_eq!(parsed(&["/a", "/b"], "{\"b\": null, \"a\": 1}"), "{\"/a\":1,\"/b\":null}");
        assert_eq!(parsed(&["/a", "/b"], "{\"a\": 1}"), one);
    }

    #[test]
    fn the_last_json_in_a_text_counts() {
        let check = |text: &str, want: Option<Value>| assert_eq!(found_in(text), want, "{text:?}");
        check("{\"a\": {\"b\": 1}}", Some(json!({ "a": { "b": 1 } })));
        check("First {\"a\": 1}, then {\"a\": [2]}!", Some(json!({ "a": [2] })));
        check("{broken {\"a\": 1}", Some(json!({ "a": 1 })));
        check("\"}\" {\"a\": \"}\"}", Some(json!({ "a": "}" })));
        check("none", None);
        check(&"{".repeat(100_000), None);
        check(&"[".repeat(100_000), None);
    }

    #[test]
    fn blocks() {
        let text =
            "Run:\n```sh\npip\n```\nthen\n```Python\nx = 1\n```\nand\n```python\nx = 2\n```\n";
        assert_eq!(first_block(text, &["python"]), Some("x = 1\n"));
        assert_eq!(first_block("```\nx\n", &["python"]), Some("x\n"));
        assert_eq!(first_block("no block", &["python"]), None);
    }
}
