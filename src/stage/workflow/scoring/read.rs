//! Scorers and extractors as manifests write them: a word, or a table with a `kind`. Knows nothing of what
//! they do.

use std::collections::BTreeMap;
use std::time::Duration;

use super::code::{self, Code};
use super::command::Command;
use super::judge::{self, Judge};
use super::likelihood::{self, Likelihood};
use super::semantic::Semantic;
use super::{Named, Scoring, Way, port};
use crate::manifest::{Diagnostic, Fields, Span, Spanned, TextOrTable, is_name};
use crate::method::Method;
use crate::method::extract::{self, Extractor, Rule};
use crate::scorer::{self, Json, Pattern};
use crate::stage::{ArtifactKind, Need, Setting};

/// Scorers where the manifest is silent.
const DEFAULT: &[&str] = &["exact_match", "includes", "f1"];
/// Kinds that have settings, and one way to write each.
const WITH_SETTINGS: &[(&str, &str)] = &[
    ("regex", "{ kind = \"regex\", pattern = '^\\d+$' }"),
    ("json", "{ kind = \"json\", schema = \"schemas/answer.json\" }"),
    ("judge", "{ kind = \"judge\", engine = \"<stage>\", rubric = \"…\" }"),
    ("semantic", "{ kind = \"semantic\", engine = \"<stage>\" }"),
    ("code", "{ kind = \"code\", language = \"python\" }"),
    (
        "command",
        "{ kind = \"command\", command = [\"python3\", \"score.py\"], files = [\"score.py\"] }",
    ),
];
/// Kinds of extractors with settings.
const RULES: &[(&str, &str)] = &[
    ("regex", "{ name = \"boxed\", kind = \"regex\", pattern = '<answer>(.*)</answer>' }"),
    ("json", "{ name = \"field\", kind = \"json\", pointer = \"/answer\" }"),
    ("after", "{ name = \"tail\", kind = \"after\", marker = \"=>\" }"),
];
/// What a choice is made by.
const CHOICES: &[&str] = &["letter", "log_likelihood"];
/// Names that metrics of another meaning have.
const TAKEN: &[&str] = &["accuracy", "accuracy_all", "corpus_bleu", "corpus_chrf"];

/// Scorers that have a value over all answers together, which is worked out by the name.
const WITH_CORPUS: &[&str] = &["bleu", "chrf"];

/// Time of a program where the manifest is silent.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(60);
/// Time of an answer's code where the manifest is silent, as HumanEval's harness has it, rounded up.
const CODE_TIMEOUT: Duration = Duration::from_secs(10);
const CODE_MEMORY_MB: u32 = 2048;
const JUDGE_TOKENS: u32 = 512;

/// Reads `scorers` and `extractors`, with the stages that they need. Without a reply there is one thing to score.
pub(in crate::stage::workflow) fn read(
    fields: &Fields<'_>,
    setting: &Setting<'_>,
    method: Option<&'static dyn Method>,
) -> (Scoring, Vec<Need>) {
    let silent = method.is_some_and(|method| !method.writes());
    let mut needs = Vec::new();
    let mut scorers = Names::new("scorer");
    match fields.entries("scorers") {
        None if silent => {
            let likelihood = Likelihood { normalize: "none".to_owned(), delimiter: None };
            scorers.all.push(Named { name: "choice".to_owned(), way: Way::Likelihood(likelihood) });
        }
        None => {
            for name in DEFAULT {
                let way = Way::Plain(scorer::find(name).expect("BUG: a default that is no scorer"));
                scorers.all.push(Named { name: (*name).to_owned(), way });
            }
        }
        Some(entries) => {
            for entry in entries {
                let Some((name, way)) = read_scorer(entry, fields, setting, &mut needs) else {
                    continue;
                };
                if scorers.takes(fields, &name) {
                    scorers.all.push(Named { name: name.value, way });
                }
            }
        }
    }
    let mut extractors = Names::new("extractor");
    for entry in fields.entries("extractors").unwrap_or_default() {
        let Some((name, rule)) = read_extractor(entry, fields) else { continue };
        if extractors.takes(fields, &name) {
            extractors.all.push(Extractor { name: name.value, rule });
        }
    }
    let scoring = Scoring { scorers: scorers.all, extractors: extractors.all };
    if silent && !scoring.needs_no_reply() {
        let message = "the method `likelihood` writes nothing, so there is no reply to take an answer from or to score";
        let hint =
            "scorers = [{ kind = \"choice\", by = \"log_likelihood\" }], and no `extractors`";
        let name = if fields.has("extractors") { "extractors" } else { "scorers" };
        fields.error(Diagnostic::at(fields.place(name), message).hint(hint));
    }
    (scoring, needs)
}

/// What has been read, and whether its names are free.
struct Names<T> {
    what: &'static str,
    taken: BTreeMap<String, Span>,
    all: Vec<T>,
}

impl<T> Names<T> {
    fn new(what: &'static str) -> Self {
        Names { what, taken: BTreeMap::new(), all: Vec::new() }
    }

    fn takes(&mut self, fields: &Fields<'_>, name: &Spanned<String>) -> bool {
        let what = self.what;
        if !is_name(&name.value) || TAKEN.contains(&name.value.as_str()) {
            let message = format!("`{}` is no name for a {what}", name.value);
            let hint = "letters, digits, `_` and `-`; `accuracy`, `accuracy_all`, `corpus_bleu` and `corpus_chrf` are taken";
            fields.error(Diagnostic::at(name.span, message).hint(hint));
            return false;
        }
        if let Some(first) = self.taken.get(&name.value) {
            let message = format!("two {what}s are named `{}`", name.value);
            fields.error(
                Diagnostic::at(name.span, message)
                    .also(*first, "the first")
                    .hint("give one of them another `name`"),
            );
            return false;
        }
        self.taken.insert(name.value.clone(), name.span);
        true
    }
}

fn names_of(kinds: &[(&'static str, &str)]) -> impl Iterator<Item = &'static str> {
    kinds.iter().map(|(name, _)| *name)
}

/// A word of those that need settings.
fn needs_settings(
    fields: &Fields<'_>,
    what: &str,
    word: &Spanned<String>,
    kinds: &[(&str, &str)],
) -> bool {
    let Some((name, example)) = kinds.iter().find(|(name, _)| *name == word.value) else {
        return false;
    };
    let message = format!("the {what} `{name}` has settings, so it is a table and not a word");
    fields.error(Diagnostic::at(word.span, message).hint(format!("write {example}")));
    true
}

fn read_scorer(
    entry: TextOrTable<'_>,
    fields: &Fields<'_>,
    setting: &Setting<'_>,
    needs: &mut Vec<Need>,
) -> Option<(Spanned<String>, Way)> {
    let plain = scorer::SCORERS.iter().map(|scorer| scorer.name);
    let known: Vec<_> = plain.chain(names_of(WITH_SETTINGS)).collect();
    let table = match entry {
        TextOrTable::Text(word) => {
            if needs_settings(fields, "scorer", &word, WITH_SETTINGS)
                || !fields.is_one_of("scorers", &word, &known)
            {
                return None;
            }
            let way = Way::Plain(scorer::find(&word.value)?);
            return Some((word, way));
        }
        TextOrTable::Table(table) => table,
    };
    let kind = table.needed_text("kind").filter(|kind| table.is_one_of("kind", kind, &known));
    let Some(kind) = kind else {
        // Without a kind nobody knows which settings it may have.
        return None;
    };
    let name = table.text("name").unwrap_or_else(|| kind.clone());
    let is_corpus = |name: &Spanned<String>| WITH_CORPUS.contains(&name.value.as_str());
    if (is_corpus(&kind) || is_corpus(&name)) && kind.value != name.value {
        let message = format!("a scorer of kind `{}` cannot be named `{}`", kind.value, name.value);
        let hint = "`bleu` and `chrf` go by these names and no others: by them `corpus_bleu` and `corpus_chrf` are made";
        table.error(Diagnostic::at(name.span, message).hint(hint));
        return None;
    }
    let way = match kind.value.as_str() {
        "regex" => pattern_of(&table).map(Way::Pattern),
        "json" => read_json(&table, setting).map(|json| Way::Json(Box::new(json))),
        "judge" => read_judge(&table).map(Way::Judge),
        "semantic" => Some(Way::Semantic(Semantic)),
        "code" => read_code(&table).map(Way::Code),
        "command" => read_command(&table, setting).map(Way::Command),
        "choice" => read_choice(&table),
        plain => scorer::find(plain).map(Way::Plain),
    };
    if matches!(kind.value.as_str(), "judge" | "semantic") {
        if !table.has("engine") {
            table.needed_text("engine");
        }
        if let Some(stage) = table.text("engine") {
            let kinds = vec![ArtifactKind::Engine];
            needs.push(Need { port: port(&name.value), stage, kinds, many: false });
        }
    }
    table.finish();
    Some((name, way?))
}

/// Letters are read from answers; likelihoods come from the engine of the workflow.
fn read_choice(table: &Fields<'_>) -> Option<Way> {
    let by = table.choice("by", CHOICES);
    if by.is_none() && table.has("by") {
        return None;
    }
    let normalize = table.choice("normalize", likelihood::NORMALIZE);
    let delimiter = table.raw_text("delimiter").map(|text| text.value);
    if by.is_some_and(|by| by.value == "log_likelihood") {
        let normalize = normalize.map_or_else(|| "none".to_owned(), |text| text.value);
        return Some(Way::Likelihood(Likelihood { normalize, delimiter }));
    }
    for name in ["normalize", "delimiter"] {
        if table.has(name) {
            let message = format!("`{name}` is for choices by log-likelihood");
            let hint = "add `by = \"log_likelihood\"`";
            table.error(Diagnostic::at(table.place(name), message).hint(hint));
        }
    }
    scorer::find("choice").map(Way::Plain)
}

fn pattern_of(table: &Fields<'_>) -> Option<Pattern> {
    if !table.has("pattern") {
        table.needed_text("pattern");
    }
    let text = table.raw_text("pattern")?;
    match Pattern::new(&text.value) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            let message = "`pattern` is no regular expression";
            let hint = format!(
                "it is said:\n\n{error}\n\nin the syntax of Rust's regex crate, without look-around"
            );
            table.error(Diagnostic::at(text.span, message).hint(hint));
            None
        }
    }
}

fn pointers(table: &Fields<'_>, name: &str) -> Vec<String> {
    let mut all = Vec::new();
    for pointer in table.texts(name).unwrap_or_default() {
        if !pointer.value.is_empty() && !pointer.value.starts_with('/') {
            let message = format!("`{}` is no JSON Pointer", pointer.value);
            let hint = format!("it begins with a slash: \"/{}\"", pointer.value.replace('.', "/"));
            table.error(Diagnostic::at(pointer.span, message).hint(hint));
        }
        all.push(pointer.value);
    }
    all
}

fn read_json(table: &Fields<'_>, setting: &Setting<'_>) -> Option<Json> {
    let fields = pointers(table, "fields");
    let anywhere = table.boolean("anywhere").unwrap_or(false);
    let file = table.path("schema").filter(|file| setting.check_exists(table, file));
    if file.is_none() && table.has("schema") {
        return None;
    }
    let place = table.place("schema");
    let schema = match file {
        None => None,
        Some(file) => {
            let text = crate::stage::read_project_text(setting.root, &file.value);
            let text = text.map_err(|error| format!("cannot read `{}`: {error}", file.value));
            let schema = text.and_then(|text| {
                serde_json::from_str(&text).map_err(|error| {
                    let (line, column) = (error.line(), error.column());
                    format!("{}:{line}:{column}: this is no JSON: {error}", file.value)
                })
            });
            match schema {
                Ok(schema) => Some(schema),
                Err(message) => {
                    table.error(Diagnostic::at(place, message));
                    return None;
                }
            }
        }
    };
    match Json::new(schema, fields, anywhere) {
        Ok(json) => Some(json),
        Err(error) => {
            let hint = "references must stay within the file: nothing is fetched";
            let message = format!("`schema` is no JSON Schema: {error}");
            table.error(Diagnostic::at(place, message).hint(hint));
            None
        }
    }
}

fn read_judge(table: &Fields<'_>) -> Option<Judge> {
    if !table.has("rubric") {
        table.needed_text("rubric");
    }
    let rubric = table.text("rubric").map(|text| text.value);
    let verdicts = match table.json_table("verdicts") {
        None => [("correct".to_owned(), 1.0), ("incorrect".to_owned(), 0.0)].into(),
        Some(list) => {
            let mut verdicts = BTreeMap::new();
            for (name, value) in list.value {
                match value.as_f64().filter(|value| (0.0..=1.0).contains(value)) {
                    Some(value) => {
                        verdicts.insert(name, value);
                    }
                    None => {
                        let message =
                            format!("the verdict `{name}` has no value from 0 to 1, but {value}");
                        table.error(Diagnostic::at(list.span, message));
                    }
                }
            }
            if verdicts.len() < 2 {
                let message = "a judge needs two verdicts or more";
                let hint = "verdicts = { correct = 1.0, partly = 0.5, incorrect = 0.0 }";
                table.error(Diagnostic::at(list.span, message).hint(hint));
            }
            verdicts
        }
    };
    let shows = table.choices("shows", judge::SHOWS);
    let shows = shows.unwrap_or_else(|| {
        ["question", "targets", "answer"].iter().map(ToString::to_string).collect()
    });
    let form = table.choice("form", judge::FORMS).map(|form| form.value);
    Some(Judge {
        verdicts,
        shows,
        form: form.unwrap_or_else(|| judge::FORMS[0].to_owned()),
        max_tokens: table.count("max_tokens", 1..=1_000_000).unwrap_or(JUDGE_TOKENS),
        temperature: table.number("temperature", 0.0..=2.0).unwrap_or(0.0),
        rubric: rubric?,
    })
}

fn read_code(table: &Fields<'_>) -> Option<Code> {
    let python = table.choice("language", &["python"]);
    let words = |name| {
        let texts = table.texts(name).unwrap_or_default().into_iter();
        texts.map(|text| text.value).collect::<Vec<_>>()
    };
    let mut command = words("command");
    let mut languages = words("fences");
    let file = table.path("file");
    let mut done = table.raw_text("done");
    if let Some(line) = done.as_ref().filter(|line| !line.value.contains(code::WORD)) {
        let message = format!("`done` must print `{}`", code::WORD);
        let hint = "a line of the language, such as console.log(\"{word}\")";
        table.error(Diagnostic::at(line.span, message).hint(hint));
    }
    let is_python = python.is_some() || command.is_empty();
    if command.is_empty() {
        if python.is_none() && !table.has("language") {
            let message = "a scorer of code needs `language` or `command`";
            let hint = "language = \"python\", or command = [\"node\", \"{file}\"] with file = \"main.js\"";
            table.error(Diagnostic::at(table.span(), message).hint(hint));
        }
        command = ["python3", "-I", code::FILE].map(str::to_owned).to_vec();
    } else if !command.iter().any(|word| word.contains(code::FILE)) {
        let message = format!("`command` does not say where the file goes: `{}`", code::FILE);
        table.error(Diagnostic::at(table.place("command"), message));
    }
    if is_python {
        if languages.is_empty() {
            languages = ["python", "python3", "py"].map(str::to_owned).to_vec();
        }
        if done.is_none() {
            let value = format!("print(\"{}\")", code::WORD);
            done = Some(Spanned { value, span: table.span() });
        }
    }
    let file = file.map_or_else(|| "main.py".to_owned(), |file| file.value.to_string());
    if file.contains('/') {
        let message = format!("`file` is a name without folders, not `{file}`");
        table.error(Diagnostic::at(table.place("file"), message));
    }
    Some(Code {
        command,
        file,
        languages,
        done: done.map(|line| line.value),
        timeout: table.duration("timeout").unwrap_or(CODE_TIMEOUT),
        memory_mb: table.count("memory_mb", 16..=1_048_576).unwrap_or(CODE_MEMORY_MB),
        allow_unsandboxed: table.boolean("allow_unsandboxed").unwrap_or(false),
    })
}

fn read_command(table: &Fields<'_>, setting: &Setting<'_>) -> Option<Command> {
    if !table.has("command") {
        table.needed_text("command");
    }
    let place = table.place("command");
    let command: Vec<String> =
        table.texts("command").unwrap_or_default().into_iter().map(|text| text.value).collect();
    if command.is_empty() && table.has("command") {
        table.error(Diagnostic::at(place, "`command` is empty"));
    } else if command.len() == 1 && command[0].contains(' ') {
        let hint = "write it as a list, [\"program\", \"argument\"]";
        let message = format!("there is no program `{}`", command[0]);
        table.error(Diagnostic::at(place, message).hint(hint));
    }
    let files = table.paths("files").unwrap_or_default().into_iter();
    let files = files.filter(|path| setting.check_exists(table, path)).map(|path| path.value);
    let files = files.collect();
    let env = table.text_table("env").unwrap_or_default();
    let pass_env = table.texts("pass_env").unwrap_or_default();
    let timeout = table.duration("timeout").unwrap_or(PROGRAM_TIMEOUT);
    (!command.is_empty()).then(|| Command {
        command,
        files,
        env: env.into_iter().map(|(name, text)| (name, text.value)).collect(),
        pass_env: pass_env.into_iter().map(|text| text.value).collect(),
        timeout,
    })
}

fn read_extractor(entry: TextOrTable<'_>, fields: &Fields<'_>) -> Option<(Spanned<String>, Rule)> {
    let known: Vec<_> = extract::BUILT_IN.iter().copied().chain(names_of(RULES)).collect();
    let table = match entry {
        TextOrTable::Text(word) => {
            if needs_settings(fields, "extractor", &word, RULES)
                || !fields.is_one_of("extractors", &word, &known)
            {
                return None;
            }
            let rule = extract::built_in(&word.value)?;
            return Some((word, rule));
        }
        TextOrTable::Table(table) => table,
    };
    let kind = table.needed_text("kind").filter(|kind| table.is_one_of("kind", kind, &known))?;
    let name = table.text("name").unwrap_or_else(|| kind.clone());
    let rule = match kind.value.as_str() {
        "regex" => {
            let last = table.choice("match", &["first", "last"]);
            let last = last.is_none_or(|which| which.value == "last");
            pattern_of(&table).map(|pattern| Rule::Regex { pattern, last })
        }
        "json" => {
            if !table.has("pointer") {
                table.needed_text("pointer");
            }
            pointers(&table, "pointer").pop().map(|pointer| Rule::Json { pointer })
        }
        "after" => {
            let marker = table.needed_text("marker");
            if let Some(empty) = marker.as_ref().filter(|marker| marker.value.is_empty()) {
                table.error(Diagnostic::at(empty.span, "`marker` is empty"));
            }
            marker.map(|marker| Rule::After { marker: marker.value })
        }
        built_in => extract::built_in(built_in),
    };
    table.finish();
    Some((name, rule?))
}
