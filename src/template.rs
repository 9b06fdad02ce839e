//! Text from templates: minijinja with strict undefined, bounded work, and errors that show the line.
//! Knows nothing of manifests or flows.

use std::collections::BTreeSet;

use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;
use serde_json::Value;

/// Version of the template language: in every key whose content was rendered by it.
/// The major version of minijinja, because 3.0 prints some values differently from 2.x.
pub const LANGUAGE: &str = "minijinja 2";

/// Steps a template may take: about a second of work. A loop without end is an error, not a hang.
const FUEL_MAX: u64 = 10_000_000;

/// A template that does not parse or render.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// What is wrong, with the line of the template it is on.
    pub message: String,
    /// Whether a name was used that is not there.
    pub undefined: bool,
}

impl TemplateError {
    fn new(error: &minijinja::Error, source: &str) -> Self {
        let undefined = error.kind() == minijinja::ErrorKind::UndefinedError;
        let mut message = match (error.kind(), error.detail()) {
            (minijinja::ErrorKind::UndefinedError, _) => {
                let name = error.range().and_then(|range| source.get(range)).unwrap_or("a name");
                format!("`{}` is undefined in the template", name.trim())
            }
            (minijinja::ErrorKind::OutOfFuel, _) => {
                "the template does too much work (a loop without end?)".to_owned()
            }
            (kind, Some(detail)) => format!("{kind} in the template: {detail}"),
            (kind, None) => format!("{kind} in the template"),
        };
        if let Some(line) = error.line()
            && source.lines().count() > 1
            && let Some(text) = source.lines().nth(line.saturating_sub(1))
        {
            message.push_str(&format!(" (line {line}: `{}`)", text.trim()));
        }
        TemplateError { message, undefined }
    }
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_fuel(Some(FUEL_MAX));
    env.set_debug(true);
    env.set_keep_trailing_newline(true);
    // `text.split(', ')` and the like, as chat templates and other tools write it.
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env
}

/// A set of named templates and expressions, compiled once and rendered often.
pub struct Templates {
    env: Environment<'static>,
}

impl Default for Templates {
    fn default() -> Self {
        Templates { env: environment() }
    }
}

impl Templates {
    /// Adds a template of text.
    pub fn add(&mut self, name: &str, source: &str) -> Result<(), TemplateError> {
        self.env
            .add_template_owned(name.to_owned(), source.to_owned())
            .map_err(|error| TemplateError::new(&error, source))
    }

    /// Renders a template that was added.
    pub fn render(&self, name: &str, context: impl Serialize) -> Result<String, TemplateError> {
        let template = self.env.get_template(name).expect("BUG: rendering a template never added");
        template.render(context).map_err(|error| TemplateError::new(&error, template.source()))
    }

    /// Checks that an expression parses.
    pub fn check_expression(&self, source: &str) -> Result<(), TemplateError> {
        self.env
            .compile_expression(source)
            .map(drop)
            .map_err(|error| TemplateError::new(&error, source))
    }

    /// The value of an expression such as `row.answers`, as JSON.
    pub fn evaluate(&self, source: &str, context: &Value) -> Result<Value, TemplateError> {
        if source.contains('.')
            && let Some(value) = at_path(source, context)
        {
            return Ok(value.clone());
        }
        let value = self.value_of(source, context)?;
        serde_json::to_value(&value).map_err(|error| TemplateError {
            message: format!("`{source}` does not give plain data: {error}"),
            undefined: false,
        })
    }

    /// Whether an expression holds, by the template language's idea of truth.
    pub fn is_true(&self, source: &str, context: impl Serialize) -> Result<bool, TemplateError> {
        Ok(self.value_of(source, context)?.is_true())
    }

    fn value_of(
        &self,
        source: &str,
        context: impl Serialize,
    ) -> Result<minijinja::Value, TemplateError> {
        let fail = |error: minijinja::Error| TemplateError::new(&error, source);
        let value =
            self.env.compile_expression(source).map_err(fail)?.eval(context).map_err(fail)?;
        if value.is_undefined() {
            let message = format!("`{source}` is undefined");
            return Err(TemplateError { message, undefined: true });
        }
        Ok(value)
    }
}

/// What a path such as `row.answers` leads to: most expressions are one, and need no compiler. `None` of every
/// other expression, and of a path that leads nowhere.
fn at_path<'a>(source: &str, context: &'a Value) -> Option<&'a Value> {
    let is_name = |name: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    let step = |value: &'a Value, name| value.as_object()?.get(name).filter(|_| is_name(name));
    source.split('.').try_fold(context, step)
}

/// Renders a template once.
pub fn render(source: &str, context: impl Serialize) -> Result<String, TemplateError> {
    environment().render_str(source, context).map_err(|error| TemplateError::new(&error, source))
}

/// The outside names that a template reads, such as `row.question` or `steps`.
pub fn names(source: &str) -> Result<BTreeSet<String>, TemplateError> {
    let env = environment();
    let template =
        env.template_from_str(source).map_err(|error| TemplateError::new(&error, source))?;
    Ok(template.undeclared_variables(true).into_iter().collect())
}

/// Whether a text has anything to render.
pub fn is_template(source: &str) -> bool {
    source.contains("{{") || source.contains("{%") || source.contains("{#")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_undefined_name_is_an_error_that_names_it() {
        let error = render("a\n{{ row.qestion }}", json!({"row": {"question": 1}})).unwrap_err();
        assert!(error.undefined);
        assert_eq!(
            error.message,
            "`row.qestion` is undefined in the template (line 2: `{{ row.qestion }}`)"
        );
    }

    #[test]
    fn a_loop_without_end_is_an_error() {
        let source =
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
        let error = render(source, json!({})).unwrap_err();
        assert!(error.message.contains("too much work"), "{error}");
    }

    #[test]
    fn text_is_never_escaped_and_keeps_its_last_line_break() {
        assert_eq!(render("{{ a }}\n", json!({"a": "<b> & \"c\""})).unwrap(), "<b> & \"c\"\n");
    }

    #[test]
    fn names_are_found_with_their_path() {
        let names = names("{{ row.a }} {% if steps.one.output %}x{% endif %}").unwrap();
        assert!(names.contains("row.a") && names.contains("steps.one.output"), "{names:?}");
    }

    #[test]
    fn texts_have_the_methods_of_python() {
        let templates = Templates::default();
        let row = json!({"row": {"answer": "1 + 1 = 2\n#### 1,234"}});
        let source = "row.answer.split('#### ')[1].replace(',', '')";
        assert_eq!(templates.evaluate(source, &row).unwrap(), json!("1234"));
        assert_eq!(render("{{ row.answer.upper() }}", &row).unwrap(), "1 + 1 = 2\n#### 1,234");
        let error = render("{{ row.answer.explode() }}", &row).unwrap_err();
        assert!(error.message.contains("explode"), "{error}");
    }

    #[test]
    fn expressions_give_plain_data() {
        let templates = Templates::default();
        let row = json!({"row": {"answers": ["a", "b"], "n": 3}});
        assert_eq!(templates.evaluate("row.answers", &row).unwrap(), json!(["a", "b"]));
        assert!(templates.is_true("row.n > 2", &row).unwrap());
        assert!(templates.evaluate("row.none", &row).is_err());
        // Literals are none of the names, whatever stands beside the row.
        let named = json!({"true": 1, "row": {"0": 2, "a b": 3}});
        assert_eq!(templates.evaluate("true", &named).unwrap(), json!(true));
        assert!(templates.evaluate("row.a b", &named).is_err());
    }
}
