//! TOML text to a [`Manifest`]: parameters resolved, includes joined, stages inherited and multiplied.
//! Knows no kind of stage: kinds read their own tables. Reads no file and no environment itself; both
//! come in as functions.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};

use crate::digest::{Digest, DigestStream};

mod diagnostic;
mod fields;
mod format;
mod params;
mod seen;
mod stages;
mod tree;

pub use diagnostic::{Diagnostic, Diagnostics, Sink, Sources, Span, closest};
pub use fields::{Fields, Spanned, TextOrTable, inside};
pub use format::{WIDTH, format};
pub use seen::{DECIDING, Field, Places, Seen, Shape};
pub use tree::{Entry, Item, Node, Table, parse as parse_toml};

/// Deepest chain of includes.
const INCLUDE_DEPTH_MAX: usize = 16;

/// Where a manifest's text and settings come from.
pub struct Inputs<'a> {
    /// Path of the manifest, relative to the project's root.
    pub path: &'a Utf8Path,
    /// Reads a file of the project; the error is its message.
    pub read: &'a dyn Fn(&Utf8Path) -> Result<String, String>,
    /// A variable of the environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// `--set name=value`, in order.
    pub set: &'a [(String, String)],
    /// Every kind of stage.
    pub kinds: &'a [&'a str],
}

/// Who writes into a shared store: everybody, nobody, or continuous integration alone (where `CI` is set).
pub const REMOTE_MODES: &[&str] = &["read-write", "read-only", "ci-writes"];

/// A pipeline as declared.
#[derive(Debug)]
pub struct Manifest {
    /// Path relative to the project's root.
    pub path: Utf8PathBuf,
    /// Name of the pipeline.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Parameters after the environment and `--set`.
    pub params: BTreeMap<String, Value>,
    /// Whether one of them is not what the manifest says.
    pub overridden: bool,
    /// Stages with their matrix cells, in the order of the files.
    pub stages: Vec<StageDecl>,
    /// Gates, in the order of the files.
    pub gates: Vec<GateDecl>,
    /// Names of all declared stages, also of those that could not be read.
    pub declared: BTreeSet<String>,
    /// Folder of the store, where the manifest names one.
    pub store: Option<Utf8PathBuf>,
    /// URL of the shared store, where the manifest names one.
    pub remote: Option<String>,
    /// Who writes into it, by a name of [`REMOTE_MODES`].
    pub remote_mode: Option<String>,
    /// Digest of all files.
    pub digest: Digest,
    /// The files, for messages.
    pub sources: Sources,
}

/// A stage as declared: one cell of its matrix.
#[derive(Debug)]
pub struct StageDecl {
    /// Its name; a cell's has its values: `ask[method=cot]`.
    pub name: String,
    /// The name in the manifest, without the cell.
    pub base: String,
    /// Its kind.
    pub kind: String,
    /// Where its name stands.
    pub span: Span,
    /// Its own fields, those it inherits, and the defaults of its kind.
    pub table: Table,
    /// `params` and `matrix`, for templates in its strings.
    pub context: Value,
}

/// A gate as declared.
#[derive(Debug)]
pub struct GateDecl {
    /// Its name.
    pub name: String,
    /// Where that stands.
    pub span: Span,
    /// Its fields.
    pub table: Table,
    /// `params`, for templates in its strings.
    pub context: Value,
}

impl Manifest {
    /// Reads a manifest and all that it includes. What is wrong goes to `sink`; the stages that could be
    /// read come back all the same, so that their fields are checked in the same go. `None` when a file
    /// cannot be read, is no TOML, or a parameter has no value: what follows would only repeat it.
    pub fn read(inputs: &Inputs<'_>, sources: &mut Sources, sink: &Sink) -> Option<Manifest> {
        let mut loader = Loader { inputs, sink, sources, stack: Vec::new(), read: BTreeSet::new() };
        let root = loader.load(inputs.path, None)?;
        if !sink.is_empty() {
            return None;
        }
        build(&root, inputs, sources.clone(), sink)
    }

    /// Reads the fields of a stage.
    pub fn fields<'a>(&'a self, stage: &'a StageDecl, sink: &'a Sink) -> Fields<'a> {
        let what = format!("stage `{}`", stage.base);
        let fields = Fields::new(what, stage.span, &stage.table, &stage.context, sink);
        fields.skip("kind");
        fields
    }

    /// Reads the fields of a gate.
    pub fn gate_fields<'a>(&'a self, gate: &'a GateDecl, sink: &'a Sink) -> Fields<'a> {
        let what = format!("gate `{}`", gate.name);
        Fields::new(what, gate.span, &gate.table, &gate.context, sink)
    }
}

struct Loader<'a> {
    inputs: &'a Inputs<'a>,
    sink: &'a Sink,
    sources: &'a mut Sources,
    /// Files being read, outermost first.
    stack: Vec<Utf8PathBuf>,
    /// Files that are part of the manifest already: included twice, a file counts once.
    read: BTreeSet<Utf8PathBuf>,
}

impl Loader<'_> {
    /// Reads a file and joins what it includes into it. `from` is the place of the include.
    fn load(&mut self, path: &Utf8Path, from: Option<Span>) -> Option<Table> {
        let report = |message: String| match from {
            Some(span) => self.sink.push(Diagnostic::at(span, message)),
            None => self.sink.push(Diagnostic::nowhere(message)),
        };
        if self.stack.iter().any(|open| open == path) {
            let chain: Vec<_> = self.stack.iter().map(|p| format!("`{p}`")).collect();
            report(format!("include loop: {} -> `{path}`", chain.join(" -> ")));
            return None;
        }
        if self.stack.len() >= INCLUDE_DEPTH_MAX {
            report(format!("includes nest deeper than {INCLUDE_DEPTH_MAX}"));
            return None;
        }
        let text = match (self.inputs.read)(path) {
            Ok(text) => text,
            Err(error) => {
                report(format!("cannot read `{path}`: {error}"));
                return None;
            }
        };
        let source = self.sources.add(path, &text);
        let mut table = tree::parse(&text, source, self.sink);
        self.stack.push(path.to_owned());
        self.read.insert(path.to_owned());
        if let Some(include) = table.remove("include") {
            self.join(&mut table, include.node, path);
        }
        self.stack.pop();
        Some(table)
    }

    fn join(&mut self, table: &mut Table, include: Node, path: &Utf8Path) {
        let Item::List(files) = &include.item else {
            let message = "`include` must be a list of paths".to_owned();
            self.sink.push(Diagnostic::at(include.span, message));
            return;
        };
        for node in files {
            let Item::Text(file) = &node.item else {
                self.sink.push(Diagnostic::at(node.span, "`include` must be a list of paths"));
                continue;
            };
            let base = path.parent().unwrap_or(Utf8Path::new(""));
            let Some(file) = inside(&base.join(file)) else {
                let message = format!("the path `{file}` leaves the project");
                self.sink.push(Diagnostic::at(node.span, message));
                continue;
            };
            if self.read.contains(&file) && !self.stack.contains(&file) {
                continue;
            }
            if let Some(other) = self.load(&file, Some(node.span)) {
                self.merge(table, other, &mut Vec::new());
            }
        }
    }

    /// Joins tables key by key; a key that stands in both is a duplicate. `[pipeline]` is the including
    /// file's alone.
    fn merge(&self, into: &mut Table, from: Table, path: &mut Vec<String>) {
        for (name, entry) in from {
            if path.is_empty() && name == "pipeline" {
                continue;
            }
            match into.get_mut(&name) {
                None => {
                    into.insert(name, entry);
                }
                Some(Entry { node: Node { item: Item::Table(mine), .. }, .. })
                    if matches!(entry.node.item, Item::Table(_)) && path.is_empty() =>
                {
                    let Item::Table(theirs) = entry.node.item else { continue };
                    path.push(name);
                    self.merge(mine, theirs, path);
                    path.pop();
                }
                Some(mine) => {
                    let group = path.first().map_or("key", String::as_str);
                    let message = format!("duplicate {} `{name}`", group.trim_end_matches('s'));
                    self.sink.push(
                        Diagnostic::at(mine.key, message)
                            .label("here")
                            .also(entry.key, "and in the included file"),
                    );
                }
            }
        }
    }
}

fn build(root: &Table, inputs: &Inputs<'_>, sources: Sources, sink: &Sink) -> Option<Manifest> {
    let nothing = Value::Null;
    let start = Span { source: 0, start: 0, end: 0 };
    let top = Fields::new("the manifest", start, root, &nothing, sink);
    let params = top
        .table("params")
        .map_or_else(params::Params::default, |_| params::resolve(root, inputs, sink));
    let params::Params { values: params, overridden } = params;
    params::check_overrides(&params, inputs, sink);
    if !sink.is_empty() {
        return None;
    }
    let context = json!({ "params": params });

    let stem = inputs.path.file_stem().unwrap_or("pipeline").to_owned();
    let (mut name, mut description) = (stem, None);
    if let Some(Entry { node: Node { item: Item::Table(table), span }, .. }) = root.get("pipeline")
    {
        top.skip("pipeline");
        let fields = Fields::new("[pipeline]", *span, table, &context, sink);
        if let Some(text) = fields.text("name") {
            if is_name(&text.value) {
                name = text.value;
            } else {
                let message = format!("`{}` is no name for a pipeline", text.value);
                sink.push(Diagnostic::at(text.span, message).hint(NAME_HINT));
            }
        }
        description = fields.text("description").map(|text| text.value);
        fields.finish();
    } else {
        top.table("pipeline");
    }
    let (mut store, mut remote, mut remote_mode) = (None, None, None);
    if let Some(Entry { node: Node { item: Item::Table(table), span }, .. }) = root.get("store") {
        top.skip("store");
        let fields = Fields::new("[store]", *span, table, &context, sink);
        store = fields.path("path").map(|path| path.value);
        remote = fields.text("remote").map(|url| url.value);
        remote_mode = fields.choice("remote_mode", REMOTE_MODES).map(|mode| mode.value);
        fields.finish();
    } else {
        top.table("store");
    }
    top.table("defaults");
    if top.table("stage").is_none() {
        sink.push(
            Diagnostic::nowhere(format!("`{}` has no stages", inputs.path))
                .hint("declare one with [stage.<name>], or start from `forge init`"),
        );
    }
    let stages = stages::read(root, &context, inputs.kinds, sink);
    top.table("gate");
    let gates = read_gates(root, &context, sink);
    top.finish();

    let mut digest = DigestStream::default();
    for (path, text) in sources.files() {
        for part in [path.as_str(), text] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
    }
    let declared = ordered(root, "stage").into_iter().map(|(name, _)| name.clone()).collect();
    Some(Manifest {
        path: inputs.path.to_owned(),
        name,
        description,
        params,
        overridden,
        stages,
        gates,
        store,
        remote,
        remote_mode,
        declared,
        digest: digest.finish(),
        sources,
    })
}

fn read_gates(root: &Table, context: &Value, sink: &Sink) -> Vec<GateDecl> {
    let mut gates = Vec::new();
    for (name, entry) in ordered(root, "gate") {
        let Item::Table(table) = &entry.node.item else {
            let message = format!("`gate.{name}` must be a table");
            sink.push(Diagnostic::at(entry.node.span, message));
            continue;
        };
        if !is_name(name) {
            let message = format!("`{name}` is no name for a gate");
            sink.push(Diagnostic::at(entry.key, message).hint(NAME_HINT));
            continue;
        }
        let (name, table, context) = (name.clone(), table.clone(), context.clone());
        gates.push(GateDecl { name, span: entry.key, table, context });
    }
    gates
}

/// What names may be made of: they become parts of file names and of references to cells.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 100
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

const NAME_HINT: &str = "a name has letters, digits, `-` and `_`";

/// The entries of a table inside `root`, in the order in which they were written.
fn ordered<'a>(root: &'a Table, name: &str) -> Vec<(&'a String, &'a Entry)> {
    let Some(Entry { node: Node { item: Item::Table(table), .. }, .. }) = root.get(name) else {
        return Vec::new();
    };
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(_, entry)| entry.key);
    entries
}

/// Puts `matrix` beside `params`.
fn with_matrix(context: &Value, matrix: Map<String, Value>) -> Value {
    let mut context = context.clone();
    context["matrix"] = Value::Object(matrix);
    context
}
