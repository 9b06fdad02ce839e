//! Rows as the template wants them: columns under other names, fields that are worked out, a filter, an id.
//! Knows nothing of files.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::digest::Recipe;
use crate::manifest::{Diagnostic, Fields, Spanned, is_name};
use crate::template::{TemplateError, Templates};

/// A row.
type Columns = Map<String, Value>;

/// What is wrong with a row, and the row.
type Unfit = (String, Columns);

/// What is made of a row before the template sees it.
#[derive(Clone, Default)]
pub(super) struct Shape {
    /// New name of a column, and its old one.
    columns: BTreeMap<String, String>,
    /// Name of a field, and the expression that gives it.
    fields: BTreeMap<String, String>,
    filter: Option<String>,
    /// Column or expression that names a flow.
    sample_id: Option<String>,
}

impl Shape {
    pub(super) fn read(fields: &Fields<'_>) -> Shape {
        let texts = |name: &str| fields.text_table(name).unwrap_or_default();
        let columns = texts("columns").into_iter().map(|(new, old)| (new, old.value)).collect();
        let mut worked_out = BTreeMap::new();
        for (name, source) in texts("fields") {
            let hint =
                "a field is an expression such as `row.answer.split('#### ')[1]`, without braces";
            check(fields, &source, hint);
            worked_out.insert(name, source.value);
        }
        let filter = fields.text("filter").map(|filter| {
            let hint =
                "a filter is an expression such as `row.category == 'facts'`, without braces";
            check(fields, &filter, hint);
            filter.value
        });
        let sample_id = fields.text("sample_id").map(|id| {
            let hint = "a column, or an expression such as `row.subject ~ '-' ~ row.number`";
            check(fields, &id, hint);
            id.value
        });
        Shape { columns, fields: worked_out, filter, sample_id }
    }

    pub(super) fn describe(&self, recipe: Recipe) -> Recipe {
        // Without them a recipe is what it was before they were known.
        let table = |texts: &BTreeMap<String, String>| (!texts.is_empty()).then(|| json!(texts));
        recipe
            .field("filter", self.filter.as_deref())
            .field("columns", table(&self.columns))
            .field("fields", table(&self.fields))
            .field("sample_id", self.sample_id.as_deref())
    }

    /// The row under its new names, with its fields; `None` where the filter leaves it out.
    pub(super) fn shaped(
        &self,
        row: Columns,
        templates: &Templates,
    ) -> Result<Option<Columns>, Unfit> {
        let row = self.worked_out(row, templates)?;
        let Some(filter) = &self.filter else { return Ok(Some(row)) };
        let context = context(row);
        match templates.is_true(filter, &context) {
            Ok(true) => Ok(Some(taken(context))),
            Ok(false) => Ok(None),
            Err(error) => {
                let message = explain("filter", &error, &context["row"]);
                Err((message, taken(context)))
            }
        }
    }

    /// The row under its new names, with its fields, whatever the filter says.
    pub(super) fn worked_out(&self, row: Columns, templates: &Templates) -> Result<Columns, Unfit> {
        let renamed = match self.renamed(&row) {
            Ok(None) => row,
            Ok(Some(renamed)) => renamed,
            Err(message) => return Err((message, row)),
        };
        let context = context(renamed);
        let mut made = Vec::new();
        for (name, source) in &self.fields {
            match templates.evaluate(source, &context) {
                Ok(value) => made.push((name.clone(), value)),
                Err(error) => {
                    let message = explain(&format!("the field `{name}`"), &error, &context["row"]);
                    return Err((message, taken(context)));
                }
            }
        }
        // All of them see the row as it was: their order says nothing.
        let mut row = taken(context);
        row.extend(made);
        Ok(row)
    }

    fn renamed(&self, row: &Map<String, Value>) -> Result<Option<Map<String, Value>>, String> {
        if self.columns.is_empty() {
            return Ok(None);
        }
        let old: BTreeSet<&String> = self.columns.values().collect();
        for name in &old {
            if !row.contains_key(*name) {
                let known = columns(row);
                return Err(format!("there is no column `{name}` (columns of the row: {known})"));
            }
        }
        let mut renamed: Map<String, Value> =
            row.iter().filter(|(name, _)| !old.contains(name)).map(own).collect();
        for (new, old) in &self.columns {
            if renamed.insert(new.clone(), row[old].clone()).is_some() {
                return Err(format!(
                    "`columns` calls `{old}` by the name `{new}`, and there is a column of that name already"
                ));
            }
        }
        Ok(Some(renamed))
    }

    /// The name of a flow, where the manifest says how to find it.
    pub(super) fn id(
        &self,
        context: &Value,
        templates: &Templates,
    ) -> Option<Result<String, String>> {
        let source = self.sample_id.as_ref()?;
        // A name that stands alone can only be a column: expressions begin with `row`.
        let value = match is_name(source) && source != "row" {
            true => context["row"].get(source).cloned().ok_or_else(|| {
                let known = context["row"].as_object().map(columns).unwrap_or_default();
                format!("`sample_id`: there is no column `{source}` (columns of the row: {known})")
            }),
            false => templates
                .evaluate(source, context)
                .map_err(|error| explain("`sample_id`", &error, &context["row"])),
        };
        Some(value.map(|value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        }))
    }
}

/// What templates and expressions see of a row, without a copy of it.
pub(super) fn context(row: Columns) -> Value {
    Value::Object([("row".to_owned(), Value::Object(row))].into_iter().collect())
}

fn check(fields: &Fields<'_>, text: &Spanned<String>, hint: &str) {
    if let Err(error) = Templates::default().check_expression(&text.value) {
        fields.error(Diagnostic::at(text.span, error.message).hint(hint));
    }
}

fn own((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

fn taken(mut context: Value) -> Map<String, Value> {
    match context["row"].take() {
        Value::Object(row) => row,
        _ => unreachable!("BUG: a row is a table"),
    }
}

fn explain(what: &str, error: &TemplateError, row: &Value) -> String {
    match row.as_object().filter(|_| error.undefined) {
        Some(row) => format!("{what}: {error} (columns of the row: {})", columns(row)),
        None => format!("{what}: {error}"),
    }
}

/// The names of columns, for messages.
pub(super) fn columns(row: &Map<String, Value>) -> String {
    row.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(columns: &[(&str, &str)], fields: &[(&str, &str)], filter: Option<&str>) -> Shape {
        let table = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        Shape {
            columns: table(columns),
            fields: table(fields),
            filter: filter.map(str::to_owned),
            sample_id: None,
        }
    }

    fn check(shape: &Shape, row: &str, want: &str) {
        let row = serde_json::from_str(row).unwrap();
        let got = match shape.shaped(row, &Templates::default()) {
            Ok(Some(row)) => Value::Object(row).to_string(),
            Ok(None) => "left out".to_owned(),
            Err((message, _)) => message,
        };
        assert_eq!(got, want);
    }

    #[test]
    fn columns_get_other_names() {
        let swapped = shape(&[("a", "b"), ("b", "a")], &[], None);
        check(&swapped, r#"{"a":1,"b":2,"c":3}"#, r#"{"c":3,"a":2,"b":1}"#);
        let one = shape(&[("question", "Best Question")], &[], None);
        check(&one, r#"{"Best Question":"?"}"#, r#"{"question":"?"}"#);
        check(&one, r#"{"Q":"?"}"#, "there is no column `Best Question` (columns of the row: `Q`)");
        check(
            &one,
            r#"{"Best Question":"?","question":"!"}"#,
            "`columns` calls `Best Question` by the name `question`, and there is a column of that name already",
        );
    }

    #[test]
    fn fields_are_worked_out_from_the_row_as_it_was() {
        let answer = "row.answer.split('#### ')[1].replace(',', '')";
        let both = shape(&[], &[("answer", answer), ("way", "row.answer.split('#### ')[0]")], None);
        check(&both, r##"{"answer":"1+1 #### 1,234"}"##, r#"{"answer":"1234","way":"1+1 "}"#);
        let row = serde_json::from_str(r#"{"answer":"none"}"#).unwrap();
        let (message, row) = both.shaped(row, &Templates::default()).unwrap_err();
        assert!(message.starts_with("the field `answer`: "), "{message}");
        assert_eq!(row["answer"], "none");
    }

    #[test]
    fn a_filter_sees_fields() {
        let shape = shape(&[("n", "N")], &[("twice", "row.n * 2")], Some("row.twice > 3"));
        check(&shape, r#"{"N":2}"#, r#"{"n":2,"twice":4}"#);
        check(&shape, r#"{"N":1}"#, "left out");
    }
}
