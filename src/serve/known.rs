//! What a project offers to experiments: the engines, data sets and tables that its manifests declare. Knows nothing
//! of what is asked of them.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::model::with_model;
use crate::manifest::StageDecl;
use crate::project::Project;
use crate::template;

/// Files of rows that an experiment can be made of without a manifest that names them.
const FIXTURES: &str = "fixtures";
/// The template of those: `question` is asked, `answers` are right.
const TEMPLATE: &str = "templates/qa.toml";
/// Endings of files of rows.
const ROWS: [&str; 3] = [".jsonl.gz", ".jsonl.zst", ".jsonl"];
/// Names in a message.
const NAMED_MAX: usize = 12;

/// The fields of a stage, as a manifest writes them.
pub type Fields = Map<String, Value>;

/// A data set: the fields of an expansion, and its template.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSet {
    /// Path of the flow template.
    pub template: String,
    /// `fixture`, and what else the expansion says of its rows.
    pub fields: Fields,
}

/// What a project offers.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Where it lies.
    pub root: Utf8PathBuf,
    /// Fields of engine stages by name.
    pub engines: BTreeMap<String, Fields>,
    /// The engine whose model may be another one.
    pub default_engine: Option<String>,
    /// By name.
    pub data_sets: BTreeMap<String, DataSet>,
    /// The table of react's tool `lookup`.
    pub lookup: Option<String>,
    /// What retrieval retrieves from, as a manifest writes it.
    pub corpus: Option<Value>,
    /// The engine of a retrieval by embeddings.
    pub embedder: Option<Fields>,
    /// Manifests of the project by path: those of its root and `pipelines`, and what else git tracks.
    pub manifests: Vec<ManifestInfo>,
}

/// A manifest of the project.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct ManifestInfo {
    /// Its path in the project.
    pub path: String,
    /// Name of its pipeline.
    pub name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// Its stages with their kinds, in order.
    pub stages: Vec<StageInfo>,
    /// Its parameters, as the environment leaves them.
    #[schema(value_type = Object)]
    pub params: BTreeMap<String, Value>,
    /// How many gates it has.
    pub gates: usize,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// A stage of it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct StageInfo {
    /// Its name; a cell of a matrix has its values.
    pub name: String,
    /// Its kind.
    pub kind: String,
}

impl ManifestInfo {
    fn of(path: &Utf8Path, read: &Result<Project, String>) -> ManifestInfo {
        let path = path.to_string();
        match read {
            Err(error) => {
                ManifestInfo { path, error: Some(error.clone()), ..ManifestInfo::default() }
            }
            Ok(Project { manifest, graph, .. }) => {
                let stage = |stage: &StageDecl| StageInfo {
                    name: stage.name.clone(),
                    kind: stage.kind.clone(),
                };
                ManifestInfo {
                    path,
                    name: Some(manifest.name.clone()),
                    description: manifest.description.clone(),
                    stages: manifest.stages.iter().map(stage).collect(),
                    params: manifest.params.clone(),
                    gates: graph.gates().len(),
                    error: None,
                }
            }
        }
    }
}

impl Known {
    /// Reads the manifests of a project: those in `pipelines` and in its root.
    pub fn scan(root: &Utf8Path, default_engine: Option<String>) -> Known {
        let mut known = Known { root: root.to_owned(), default_engine, ..Known::default() };
        let own = manifests(root);
        let tracked = tracked(root).into_iter().filter(|path| !own.contains(path));
        let all = own.iter().cloned().map(|path| (path, true));
        for (path, is_own) in all.chain(tracked.map(|path| (path, false))) {
            let read = |path: &Utf8Path| crate::stage::read_project_text(root, path);
            let read = Project::read(root.to_owned(), &path, &[], &read);
            let read = read.map_err(|errors| errors.render(false));
            known.manifests.push(ManifestInfo::of(&path, &read));
            if let Ok(project) = read
                && is_own
            {
                known.add(&project);
            }
        }
        known.add_fixtures(root);
        if known.default_engine.is_none() {
            let first = |backend: &str| {
                let mut engines = known.engines.iter();
                engines
                    .find(|(_, fields)| backend_of(fields) == backend)
                    .map(|(name, _)| name.clone())
            };
            let order = match cfg!(feature = "mistralrs") {
                true => ["mistralrs", "openai", "process", "scripted"],
                false => ["openai", "process", "scripted", "mistralrs"],
            };
            known.default_engine = order.into_iter().find_map(first);
        }
        known
    }

    fn add(&mut self, project: &Project) {
        let pipeline = &project.manifest.name;
        let stages = &project.manifest.stages;
        let files: BTreeMap<&str, String> = stages
            .iter()
            .filter(|stage| stage.kind == "flow-template")
            .filter_map(|stage| Some((stage.name.as_str(), text(&fields(stage), "file")?)))
            .collect();
        for stage in stages {
            let mut own = fields(stage);
            match stage.kind.as_str() {
                "engine" => {
                    let name = free_name(&self.engines, pipeline, &stage.name, &own);
                    self.engines.insert(name, own);
                }
                "expand" => {
                    let template = text(&own, "template");
                    let Some(template) =
                        template.and_then(|name| files.get(name.as_str()).cloned())
                    else {
                        continue;
                    };
                    // Rows that an engine makes are of that manifest alone.
                    if own.contains_key("engine") {
                        continue;
                    }
                    for field in ["template", "count", "limit"] {
                        own.remove(field);
                    }
                    let name = match own.get("fixture").and_then(Value::as_str).and_then(stem) {
                        Some(stem) => stem.to_owned(),
                        None => format!("{pipeline}.{}", stage.name),
                    };
                    let data = DataSet { template, fields: own };
                    let name = free_name(&self.data_sets, pipeline, &name, &data);
                    self.data_sets.insert(name, data);
                }
                "workflow" => {
                    self.lookup = self.lookup.take().or_else(|| text(&own, "lookup"));
                    let corpus = || own.get("rag")?.get("corpus").cloned();
                    self.corpus = self.corpus.take().or_else(corpus);
                    let embedder = || {
                        let name = own.get("rag")?.get("embeddings")?.as_str()?;
                        Some(fields(stages.iter().find(|stage| stage.name == name)?))
                    };
                    self.embedder = self.embedder.take().or_else(embedder);
                }
                _ => {}
            }
        }
    }

    /// Files of rows that have what the project's own template asks for.
    fn add_fixtures(&mut self, root: &Utf8Path) {
        let Ok(text) = crate::stage::read_project_text(root, Utf8Path::new(TEMPLATE)) else {
            return;
        };
        let tags = tags_of(&text);
        let Ok(entries) = root.join(FIXTURES).read_dir_utf8() else { return };
        for entry in entries.flatten() {
            let path = format!("{FIXTURES}/{}", entry.file_name());
            let Some(name) = stem(&path) else { continue };
            if self.data_sets.contains_key(name) || !fits(&root.join(&path), &tags) {
                continue;
            }
            let mut fields = Fields::new();
            fields.insert("fixture".to_owned(), path.as_str().into());
            let data = DataSet { template: TEMPLATE.to_owned(), fields };
            self.data_sets.insert(name.to_owned(), data);
        }
    }

    /// The fields of an engine by its name, or of the default engine with another model.
    pub fn engine(&self, name: &str) -> Result<Fields, String> {
        if let Some(fields) = self.engines.get(name) {
            return Ok(fields.clone());
        }
        let own = self.default_engine.as_ref().and_then(|name| self.engines.get_key_value(name));
        let taken = match own {
            // A template in it would be one in the manifest, too.
            Some((own, engine)) if !template::is_template(name) => {
                match with_model(&self.root, engine, name) {
                    Ok(fields) => return Ok(fields),
                    Err(taken) => format!("; the default engine `{own}` takes {taken}"),
                }
            }
            _ => String::new(),
        };
        let names = listed(self.engines.keys());
        Err(format!(
            "`{name}` is no engine of this project (known: {names}){taken}; a manifest in `pipelines/` declares another \
             with `[stage.<name>]`, `kind = \"engine\"`"
        ))
    }

    /// Whether a manifest declares an engine of that name; else which there are.
    pub fn check_engine(&self, name: &str) -> Result<(), String> {
        let names = listed(self.engines.keys());
        let unknown = || format!("`{name}` is no engine of this project (known: {names})");
        self.engines.contains_key(name).then_some(()).ok_or_else(unknown)
    }

    /// A data set by its name.
    pub fn data_set(&self, name: &str) -> Result<&DataSet, String> {
        self.data_sets.get(name).ok_or_else(|| {
            let names = listed(self.data_sets.keys());
            format!("`{name}` is no data set of this project (known: {names})")
        })
    }
}

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let total = names.len();
    let shown: Vec<&str> = names.take(NAMED_MAX).map(String::as_str).collect();
    match (shown.is_empty(), total > NAMED_MAX) {
        (true, _) => "none".to_owned(),
        (_, true) => format!("{}, …", shown.join(", ")),
        (_, false) => shown.join(", "),
    }
}

/// The backend of an engine stage.
pub fn backend_of(fields: &Fields) -> &str {
    fields.get("backend").and_then(Value::as_str).unwrap_or("mistralrs")
}

/// The name of a stage, with its pipeline where another one has it already.
fn free_name<T: PartialEq>(
    taken: &BTreeMap<String, T>,
    pipeline: &str,
    name: &str,
    value: &T,
) -> String {
    match taken.get(name) {
        Some(other) if other != value => format!("{pipeline}.{name}"),
        _ => name.to_owned(),
    }
}

/// Whether a file declares stages.
fn is_manifest(root: &Utf8Path, path: &Utf8Path) -> bool {
    let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
    text.lines().any(|line| line.trim_start().starts_with("[stage."))
}

/// Manifests that git tracks, wherever they are; none outside git.
fn tracked(root: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut git = std::process::Command::new("git");
    let git =
        git.args(["--no-optional-locks", "-C"]).arg(root).args(["ls-files", "-z", "--", "*.toml"]);
    let Ok(output) = git.stderr(std::process::Stdio::null()).output() else { return Vec::new() };
    let text = String::from_utf8(output.stdout).unwrap_or_default();
    let paths = text.split('\0').filter(|path| !path.is_empty()).map(Utf8PathBuf::from);
    paths.filter(|path| is_manifest(root, path)).collect()
}

fn manifests(root: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut found = Vec::new();
    for folder in ["pipelines", ""] {
        let Ok(entries) = root.join(folder).read_dir_utf8() else { continue };
        let names = entries.flatten().map(|entry| entry.file_name().to_owned());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(".toml")).collect();
        names.sort();
        let paths = names.into_iter().map(|name| Utf8Path::new(folder).join(name));
        found.extend(paths.filter(|path| is_manifest(root, path)));
    }
    found
}

/// The fields of a stage, parameters filled in.
fn fields(stage: &StageDecl) -> Fields {
    fn rendered(value: Value, context: &Value) -> Value {
        match value {
            Value::String(text) if template::is_template(&text) => {
                // What cannot be rendered was an error of its manifest.
                template::render(&text, context).map_or(Value::String(text), Value::String)
            }
            Value::Array(items) => items.into_iter().map(|item| rendered(item, context)).collect(),
            Value::Object(map) => map
                .into_iter()
                .map(|(name, value)| (name, rendered(value, context)))
                .collect::<Map<_, _>>()
                .into(),
            other => other,
        }
    }
    let entries = stage.table.iter().filter(|(name, _)| *name != "kind");
    let entries = entries
        .map(|(name, entry)| (name.clone(), rendered(entry.node.item.to_json(), &stage.context)));
    entries.collect()
}

fn text(fields: &Fields, name: &str) -> Option<String> {
    fields.get(name)?.as_str().map(str::to_owned)
}

/// The name of a file of rows, without folder and ending.
fn stem(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    ROWS.iter().find_map(|ending| name.strip_suffix(ending)).filter(|stem| !stem.is_empty())
}

/// The columns that a template makes tags of.
fn tags_of(template: &str) -> Vec<String> {
    let table: toml::Table = template.parse().unwrap_or_default();
    let tags = table.get("tags").and_then(toml::Value::as_array).into_iter().flatten();
    tags.filter_map(|tag| tag.as_str().map(str::to_owned)).collect()
}

/// Whether the first row has what the project's own template asks for.
fn fits(path: &Utf8Path, tags: &[String]) -> bool {
    use std::io::BufRead;
    if !path.as_str().ends_with(".jsonl") {
        return false;
    }
    let Ok(file) = std::fs::File::open(path) else { return false };
    let mut line = String::new();
    let read = std::io::BufReader::new(file).read_line(&mut line);
    let row: Option<Value> = read.ok().and_then(|_| serde_json::from_str(&line).ok());
    row.is_some_and(|row| {
        row["id"].is_string()
            && row["question"].is_string()
            && row["answers"].is_array()
            && tags.iter().all(|tag| row.get(tag).is_some())
    })
}

/// A key of a table as TOML.
pub fn toml_key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !name.is_empty() && name.chars().all(bare) {
        true => name.to_owned(),
        false => toml::Value::String(name.to_owned()).to_string(),
    }
}

/// A value as TOML, on one line. Null, which TOML does not have, is left out of tables and lists.
pub fn toml_value(value: &Value) -> String {
    match value {
        Value::Null => "\"\"".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        // As JSON writes them: a float keeps its point or exponent, which is TOML's form, too.
        Value::Number(number) => number.to_string(),
        Value::String(text) => one_line(text),
        Value::Array(items) => {
            let items = items.iter().filter(|item| !item.is_null()).map(toml_value);
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let entries = map.iter().filter(|(_, value)| !value.is_null());
            let entries =
                entries.map(|(name, value)| format!("{} = {}", toml_key(name), toml_value(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}

/// A basic string of TOML: control characters, quotes and backslashes escaped.
fn one_line(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_as_toml_reads_back() {
        let value = json!({
            "text": "a \"b\" \\ \n\t\r \u{7f} é {x}", "n": 3, "f": 0.5, "big": 1e300, "list": [1, "x", [true]],
            "in": {"a b": "c", "d": {"e": 1.25}},
        });
        let text = format!("value = {}", toml_value(&value));
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(serde_json::to_value(&read["value"]).unwrap(), value);
    }

    #[test]
    fn a_data_set_is_named_by_its_file() {
        assert_eq!(stem("fixtures/qa_25.jsonl"), Some("qa_25"));
        assert_eq!(stem("a/b.jsonl.gz"), Some("b"));
        assert_eq!((stem("fixtures/parts"), stem("fixtures/.jsonl")), (None, None));
    }
}
