//! A report by somebody's own template. Knows nothing of where templates are kept.
//!
//! A template sees what `report.json` holds, under the same names: `version`, `title`, `description`, `run`, `cells`,
//! `comparisons` ([`Report`] says what each of them is). What is left out of that file where there is nothing to say
//! is undefined here: a test with `{% if %}` finds it false, printing it is an error. Two filters write numbers as the
//! built-in reports do, and `–` for nothing: `percent` of a share, `duration` of milliseconds.
//!
//! Values are escaped as the name of the template says, without `.j2` or `.jinja` at its end: as HTML in `.html`,
//! `.htm`, `.xml` and `.svg`, as JSON in `.json`, and not at all in any other. What a model said is text that nobody
//! has looked at, and `safe` switches that off.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use minijinja::{AutoEscape, Environment, Error, UndefinedBehavior};
use regex::Regex;

use super::Report;
use super::spelling::{duration, percent};

/// Steps that a template may take, and more for each sample: a loop without end is an error, not a hang.
const FUEL: u64 = 10_000_000;
const FUEL_PER_SAMPLE: u64 = 20_000;

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq)]
pub struct BadPage {
    /// Its path, as it was given.
    pub file: String,
    /// Where in it, in bytes.
    pub at: Range<usize>,
    /// What.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Text that a template takes from another file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Included {
    /// Its path as that of the template itself; `None` where it leads out of the project.
    pub path: Option<String>,
    /// Where it is named, in bytes.
    pub at: Range<usize>,
}

/// A template's own files: path and text.
pub type Pages = BTreeMap<String, String>;

/// Checks one file, and finds what it takes from others. Their names have to stand there as text, so that what a
/// report is made of is known before it is made.
pub fn includes(file: &str, text: &str) -> Result<Vec<Included>, BadPage> {
    static TAG: LazyLock<Regex> = LazyLock::new(|| {
        let tag = r#"\{#(?s:.*?)#\}|\{%[-+]?\s*(?:include|extends|import|from)\b\s*(?:("[^"\\]*"|'[^'\\]*')|(?s:.*?)%\})"#;
        Regex::new(tag).expect("BUG: the expression of tags does not parse")
    });
    // Syntax first: what is found in a broken template means little.
    environment(0).template_from_named_str(file, text).map_err(|error| bad(&error, file, text))?;
    let mut found = Vec::new();
    for tag in TAG.captures_iter(text) {
        let whole = tag.get(0).expect("BUG: a match without text");
        if whole.as_str().starts_with("{#") {
            continue;
        }
        let Some(name) = tag.get(1) else {
            let hint =
                "write it in quotes: forge has to know what a report is made of before it makes it";
            return Err(BadPage {
                file: file.to_owned(),
                at: whole.range(),
                message: "the name of another template has to stand here as text".to_owned(),
                hint: Some(hint.to_owned()),
            });
        };
        let inner = &name.as_str()[1..name.len() - 1];
        found.push(Included { path: join(inner, file), at: name.range() });
    }
    Ok(found)
}

/// A name as a template writes it, seen from the folder of that template.
fn join(name: &str, from: &str) -> Option<String> {
    if name.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The name of what a template makes: its own, without the ending that says that it is one.
pub fn output_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    [".j2", ".jinja", ".jinja2"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// Fills the template at `file`. All files that it takes text from are among `pages`.
pub fn fill(pages: &Pages, file: &str, report: &Report) -> Result<String, BadPage> {
    let samples: usize = report.cells.iter().map(|cell| cell.samples.len()).sum();
    let mut env = environment(samples as u64);
    env.set_path_join_callback(|name, from| {
        join(name, from).unwrap_or_else(|| name.to_owned()).into()
    });
    for (path, text) in pages {
        let added = env.add_template(path, text);
        added.map_err(|error| bad(&error, path, text))?;
    }
    let text = pages.get(file).expect("BUG: a template that was not read");
    let template = env.get_template(file).map_err(|error| bad(&error, file, text))?;
    template.render(report).map_err(|error| {
        let inner = innermost(&error);
        let file = inner.name().filter(|name| pages.contains_key(*name)).unwrap_or(file);
        bad(inner, file, &pages[file])
    })
}

fn environment<'a>(samples: u64) -> Environment<'a> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    env.set_fuel(Some(FUEL.saturating_add(FUEL_PER_SAMPLE.saturating_mul(samples))));
    env.set_debug(true);
    env.set_keep_trailing_newline(true);
    env.set_auto_escape_callback(|name| match output_name(name).rsplit('.').next() {
        Some("html" | "htm" | "xml" | "svg") => AutoEscape::Html,
        Some("json") => AutoEscape::Json,
        _ => AutoEscape::None,
    });
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("percent", |share: Option<f64>| percent(share));
    env.add_filter("duration", |ms: Option<f64>| duration(ms));
    env
}

/// An error in an included file comes wrapped in that of the file that includes it.
fn innermost(error: &Error) -> &Error {
    let mut inner = error;
    while let Some(next) = std::error::Error::source(inner).and_then(|e| e.downcast_ref::<Error>())
    {
        inner = next;
    }
    inner
}

fn bad(error: &Error, file: &str, text: &str) -> BadPage {
    let whole_line = |number: usize| {
        let start: usize = text.split_inclusive('\n').take(number - 1).map(str::len).sum();
        let line = text[start.min(text.len())..].lines().next().unwrap_or("");
        let blank = line.len() - line.trim_start().len();
        start + blank..start + line.trim_end().len()
    };
    let at = error.range().filter(|at| text.get(at.clone()).is_some());
    let at = at.or_else(|| error.line().filter(|line| *line > 0).map(whole_line)).unwrap_or(0..0);
    let named = text.get(at.clone()).unwrap_or("").trim();
    let message = match (error.kind(), error.detail()) {
        (minijinja::ErrorKind::UndefinedError, _) => format!("`{named}` is undefined"),
        (minijinja::ErrorKind::OutOfFuel, _) => {
            "the template does too much work (a loop without end?)".to_owned()
        }
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    let hint = (error.kind() == minijinja::ErrorKind::UndefinedError).then(|| {
        "a template sees what `report.json` holds, under the same names; what may be absent there is tested with \
         `{% if … %}` first"
            .to_owned()
    });
    BadPage { file: file.to_owned(), at, message, hint }
}

#[cfg(test)]
mod tests {
    use super::super::markdown::tests::{cell, report, row};
    use super::*;

    fn filled(files: &[(&str, &str)]) -> Result<String, BadPage> {
        let report = report(vec![cell("a<b", vec![row("<i>", Some("<42>"), Some(true))])]);
        let pages = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        fill(&pages.collect(), files[0].0, &report)
    }

    #[test]
    fn the_context_is_that_of_the_json_and_the_ending_says_how_to_escape() {
        let text = "{% for cell in cells %}{{ cell.name }} {{ cell.summary.metrics.accuracy | percent }} \
                    {{ cell.samples[0].sample.answer }} {{ none | duration }}{% endfor %}\n";
        let as_html = "a&lt;b 100.0 % &lt;42&gt; –\n";
        assert_eq!(filled(&[("t/own.html", text)]).unwrap(), as_html);
        assert_eq!(filled(&[("t/own.html.j2", text)]).unwrap(), as_html);
        assert_eq!(filled(&[("own.txt", text)]).unwrap(), "a<b 100.0 % <42> –\n");
        assert_eq!(filled(&[("own.json", "{{ cells[0].name }}")]).unwrap(), "\"a<b\"");
        assert_eq!(output_name("t/own.html.j2"), "own.html");
    }

    #[test]
    fn files_are_found_from_the_one_that_names_them() {
        let text =
            "{# {% include \"no\" %} #}{% extends \"base/a.html\" %}{%- include '../b.html' -%}";
        let found = includes("t/own.html", text).unwrap();
        let paths: Vec<_> = found.iter().map(|one| one.path.as_deref()).collect();
        assert_eq!(paths, [Some("t/base/a.html"), Some("b.html")]);
        assert_eq!(&text[found[1].at.clone()], "'../b.html'");
        assert_eq!(includes("own.html", "{% include '../b' %}").unwrap()[0].path, None);
        assert_eq!(includes("own.html", "{% include '/etc/passwd' %}").unwrap()[0].path, None);
        let files = [("t/own.html", "{% include '../b.html' %}!"), ("b.html", "{{ title }}")];
        assert!(filled(&files).unwrap().ends_with('!'));
    }

    #[test]
    fn an_error_is_in_the_file_in_which_it_is() {
        let bad = filled(&[("a.html", "x\n{% include 'b.html' %}"), ("b.html", "\n {{ cels.x }}")]);
        let bad = bad.unwrap_err();
        assert_eq!((bad.file.as_str(), bad.at), ("b.html", 5..11), "{}", bad.message);
        let bad = includes("a.html", "{% include name %}").unwrap_err();
        assert!(bad.message.contains("as text"), "{bad:?}");
        let bad = includes("a.html", "a\n{% for %}").unwrap_err();
        assert!(bad.message.contains("syntax error") && bad.at.start >= 2, "{bad:?}");
        let endless =
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
        assert!(filled(&[("a.html", endless)]).unwrap_err().message.contains("too much work"));
        // What is absent from the JSON is false, and not printed.
        let absent = "{% if cells[0].samples[0].sample.detail %}x{% endif %}";
        assert_eq!(filled(&[("a.html", absent)]).unwrap(), "");
    }
}
