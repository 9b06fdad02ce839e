//! A manifest becomes a graph: stages read, edges resolved and typed, cycles found. Knows nothing of
//! what is in the store.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use camino::{Utf8Path, Utf8PathBuf};
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use crate::gate::{self, Gate};
use crate::manifest::{Diagnostic, Diagnostics, Inputs, Manifest, Sink, Sources, Span, closest};
use crate::stage::{ArtifactKind, Need, STAGES, Setting, Stage};

/// A stage in the graph.
pub struct Node {
    /// Its name, with its matrix values.
    pub name: String,
    /// Its name in the manifest.
    pub base: String,
    /// Its kind.
    pub kind: &'static str,
    /// What it does.
    pub stage: Box<dyn Stage>,
    /// The nodes it needs, by port, in the order of the fields.
    pub needs: Vec<(String, usize)>,
    span: Span,
}

/// All stages and their edges.
#[derive(Default)]
pub struct Graph {
    nodes: Vec<Node>,
    order: Vec<usize>,
    gates: Vec<(Gate, Vec<usize>)>,
}

impl Graph {
    /// Reads a manifest with all its stages, and connects them. Everything that is wrong is reported at
    /// once.
    pub fn load(
        inputs: &Inputs<'_>,
        root: &Utf8Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Manifest, Graph), Diagnostics> {
        let (sink, mut sources) = (Sink::default(), Sources::default());
        let loaded = Manifest::read(inputs, &mut sources, &sink).map(|manifest| {
            let graph = Graph::build(&manifest, root, env, &sink);
            (manifest, graph)
        });
        sink.finish(&sources)?;
        Ok(loaded.expect("BUG: a manifest that failed without a word"))
    }

    fn build(
        manifest: &Manifest,
        root: &Utf8Path,
        env: &dyn Fn(&str) -> Option<String>,
        sink: &Sink,
    ) -> Graph {
        let setting = Setting { manifest, root, env };
        let mut nodes = Vec::new();
        // Also of stages that cannot be read: a need for them is no further error.
        let mut declared: BTreeSet<&str> = manifest.declared.iter().map(String::as_str).collect();
        for decl in &manifest.stages {
            declared.insert(&decl.name);
            let (kind, read) = STAGES
                .iter()
                .find(|(kind, _)| *kind == decl.kind)
                .expect("BUG: an unknown kind passed the manifest");
            if let Some(stage) = read(&decl.name, manifest.fields(decl, sink), &setting) {
                let (name, base) = (decl.name.clone(), decl.base.clone());
                nodes.push(Node { name, base, kind, stage, needs: Vec::new(), span: decl.span });
            }
        }
        let by_name = connect(&mut nodes, &declared, sink);
        let gates = read_gates(manifest, &nodes, &by_name, &declared, sink);
        check_outputs(&nodes, manifest, sink);
        let order = match sort(&nodes) {
            Ok(order) => order,
            Err(cycles) => {
                cycles.iter().for_each(|cycle| report_cycle(&nodes, cycle, sink));
                Vec::new()
            }
        };
        Graph { nodes, order, gates }
    }

    /// The gates in the order of the manifest, each with the nodes whose samples it looks at.
    pub fn gates(&self) -> &[(Gate, Vec<usize>)] {
        &self.gates
    }

    /// The nodes in the order of the manifest.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Positions of all nodes, each after those it needs; of equal standing, the earlier declared first.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The nodes that a name of the command line stands for: a stage with all its cells, or one cell.
    pub fn select(&self, name: &str) -> Result<Vec<usize>, Diagnostics> {
        let matches = |node: &Node| node.name == name || node.base == name;
        let found: Vec<_> =
            self.nodes.iter().enumerate().filter(|(_, n)| matches(n)).map(|(i, _)| i).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let known: BTreeSet<_> = self.nodes.iter().map(|node| node.base.as_str()).collect();
        let list = known.iter().copied().collect::<Vec<_>>().join(", ");
        let diagnostic = Diagnostic::nowhere(format!("unknown stage `{name}` (known: {list})"));
        Err(Diagnostics::nowhere(diagnostic.did_you_mean(name, known)))
    }

    /// Some nodes and all that they need, directly or not.
    pub fn with_needed(&self, nodes: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open: Vec<usize> = nodes.into_iter().collect();
        while let Some(node) = open.pop() {
            if found.insert(node) {
                open.extend(self.nodes[node].needs.iter().map(|(_, needed)| *needed));
            }
        }
        found
    }
}

/// Nodes by the names that stand for them: of a stage with all its cells, and of each cell.
type ByName = BTreeMap<String, Vec<usize>>;

fn connect(nodes: &mut [Node], declared: &BTreeSet<&str>, sink: &Sink) -> ByName {
    let mut by_name = ByName::new();
    for (i, node) in nodes.iter().enumerate() {
        by_name.entry(node.base.clone()).or_default().push(i);
        if node.name != node.base {
            by_name.entry(node.name.clone()).or_default().push(i);
        }
    }
    let mut edges = Vec::new();
    for node in nodes.iter() {
        let mut needs = Vec::new();
        for need in node.stage.needs() {
            for needed in resolve(need, nodes, &by_name, declared, sink) {
                let edge = (need.port.clone(), needed);
                if needs.contains(&edge) {
                    let message = format!("`{}` is named twice", need.stage.value);
                    sink.push(Diagnostic::at(need.stage.span, message));
                } else {
                    needs.push(edge);
                }
            }
        }
        edges.push(needs);
    }
    for (node, needs) in nodes.iter_mut().zip(edges) {
        node.needs = needs;
    }
    by_name
}

/// Gates need stages as stages do, and stand beside the graph: nothing waits for one, and no key has it.
fn read_gates(
    manifest: &Manifest,
    nodes: &[Node],
    by_name: &ByName,
    declared: &BTreeSet<&str>,
    sink: &Sink,
) -> Vec<(Gate, Vec<usize>)> {
    let lock = manifest.path.with_extension("lock");
    let mut gates = Vec::new();
    for decl in &manifest.gates {
        let fields = manifest.gate_fields(decl, sink);
        if !fields.has("samples") {
            let message =
                format!("gate `{}` needs `samples`: a workflow, or a list of them", decl.name);
            sink.push(Diagnostic::at(decl.span, message));
        }
        let needs = crate::stage::needs(&fields, "samples", &[ArtifactKind::Samples]);
        let mut found: Vec<usize> = Vec::new();
        let mut stages = Vec::new();
        for need in &needs {
            stages.push(format!("`{}`", need.stage.value));
            for node in resolve(need, nodes, by_name, declared, sink) {
                if found.contains(&node) {
                    let message = format!("`{}` is named twice", nodes[node].name);
                    sink.push(Diagnostic::at(need.stage.span, message));
                } else {
                    found.push(node);
                }
            }
        }
        let workflows = found.iter().map(|node| nodes[*node].stage.as_workflow());
        let workflows = workflows.collect::<Option<Vec<_>>>().filter(|found| !found.is_empty());
        let epochs = workflows.iter().flatten().map(|workflow| workflow.epochs()).max();
        let metrics = workflows.map(|workflows| {
            let mut metrics = workflows[0].metrics();
            metrics.retain(|name| workflows.iter().all(|other| other.metrics().contains(name)));
            metrics
        });
        let known = gate::Known {
            stages: stages.join(", "),
            metrics,
            epochs: epochs.unwrap_or(0),
            lock: lock.as_str(),
        };
        gates.push((gate::read(&decl.name, fields, &known), found));
    }
    gates
}

fn resolve(
    need: &Need,
    nodes: &[Node],
    by_name: &ByName,
    declared: &BTreeSet<&str>,
    sink: &Sink,
) -> Vec<usize> {
    let (name, span) = (&need.stage.value, need.stage.span);
    let fits = |kind: ArtifactKind| need.kinds.is_empty() || need.kinds.contains(&kind);
    // Only an error looks at all stages: with ten thousand of them that counts.
    let suitable = || -> BTreeSet<&str> {
        nodes.iter().filter(|n| fits(n.stage.gives())).map(|n| n.base.as_str()).collect()
    };
    let wanted = || need.kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" or ");
    let Some(found) = by_name.get(name) else {
        if !declared.contains(name.as_str()) {
            let suitable = suitable();
            let known = match suitable.len() {
                0 => format!("no stage gives {}", wanted()),
                _ => {
                    let list: Vec<_> = suitable.iter().copied().collect();
                    format!("stages that give {}: {}", wanted(), list.join(", "))
                }
            };
            let message = format!("unknown stage `{name}` ({known})");
            let names = if suitable.is_empty() { declared.clone() } else { suitable };
            sink.push(Diagnostic::at(span, message).did_you_mean(name, names));
        }
        return Vec::new();
    };
    let gives = nodes[found[0]].stage.gives();
    if !fits(gives) {
        let message =
            format!("`{}` takes {}, and `{name}` gives {}", need.port, wanted(), gives.name());
        let suitable = suitable();
        let mut diagnostic = Diagnostic::at(span, message).also(
            nodes[found[0]].span,
            format!("the stage `{name}` of kind {}", nodes[found[0]].kind),
        );
        if let Some(close) = closest(name, suitable.iter().copied()).or(suitable.first().copied()) {
            diagnostic = diagnostic.hint(format!("did you mean `{close}`?"));
        }
        sink.push(diagnostic);
        return Vec::new();
    }
    if !need.many && found.len() > 1 {
        let cells: Vec<_> = found.iter().take(4).map(|i| format!("`{}`", nodes[*i].name)).collect();
        let more = if found.len() > 4 { ", …" } else { "" };
        let message = format!(
            "`{}` takes one stage, and `{name}` has {} cells: {}{more}",
            need.port,
            found.len(),
            cells.join(", ")
        );
        let hint =
            format!("name one of them, or put them into a matrix: `matrix.{} = […]`", need.port);
        sink.push(Diagnostic::at(span, message).hint(hint));
        return Vec::new();
    }
    found.clone()
}

/// Two stages that write the same file would take turns; one that writes what is read would change what it
/// was made from.
fn check_outputs(nodes: &[Node], manifest: &Manifest, sink: &Sink) {
    // By text and not by parts of paths, whose comparison is most of the work with ten thousand stages.
    let mut writers: HashMap<String, &Node> = HashMap::new();
    let mut read: BTreeMap<String, String> = BTreeMap::new();
    for (path, _) in manifest.sources.files() {
        read.insert(path.to_string(), "the manifest".to_owned());
    }
    for node in nodes {
        for path in node.stage.reads() {
            read.entry(path.into_string()).or_insert_with(|| format!("read by `{}`", node.name));
        }
    }
    for folder in
        [".git", ".forge"].map(Utf8PathBuf::from).into_iter().chain(manifest.store.clone())
    {
        read.insert(folder.into_string(), "not for stages to write".to_owned());
    }
    for node in nodes {
        for output in node.stage.outputs() {
            let path = &output.value;
            // It or a folder above it, else something below it.
            let above = path.ancestors().find_map(|above| read.get_key_value(above.as_str()));
            let below = || {
                let folder = format!("{path}/");
                read.range(folder.clone()..).next().filter(|(read, _)| read.starts_with(&folder))
            };
            let taken = above.or_else(below);
            if let Some((read, why)) = taken {
                let message =
                    format!("`{}` would write `{path}`, and `{read}` is {why}", node.name);
                sink.push(Diagnostic::at(output.span, message).hint("write to a path of its own"));
            }
            if let Some(other) = writers.insert(path.to_string(), node) {
                let message = format!("`{}` and `{}` both write `{path}`", other.name, node.name);
                let hint =
                    "give each its own path; in a matrix, write `{{ matrix.<axis> }}` into it";
                sink.push(Diagnostic::at(output.span, message).hint(hint));
            }
        }
    }
}

/// An order in which every node comes after those it needs, or the cycles that prevent it.
fn sort(nodes: &[Node]) -> Result<Vec<usize>, Vec<Vec<usize>>> {
    let mut graph: DiGraph<usize, ()> = DiGraph::new();
    let at: Vec<NodeIndex> = (0..nodes.len()).map(|i| graph.add_node(i)).collect();
    for (i, node) in nodes.iter().enumerate() {
        for (_, needed) in &node.needs {
            graph.update_edge(at[*needed], at[i], ());
        }
    }
    let mut open: Vec<usize> =
        at.iter().map(|node| graph.edges_directed(*node, petgraph::Incoming).count()).collect();
    let ready = open.iter().enumerate().filter(|(_, n)| **n == 0);
    let mut ready: BinaryHeap<_> = ready.map(|(i, _)| std::cmp::Reverse(i)).collect();
    let mut order = Vec::new();
    while let Some(std::cmp::Reverse(i)) = ready.pop() {
        order.push(i);
        for edge in graph.edges(at[i]) {
            let next = graph[edge.target()];
            open[next] -= 1;
            if open[next] == 0 {
                ready.push(std::cmp::Reverse(next));
            }
        }
    }
    if order.len() == nodes.len() {
        return Ok(order);
    }
    let is_cycle =
        |group: &Vec<NodeIndex>| group.len() > 1 || graph.contains_edge(group[0], group[0]);
    let cycles = tarjan_scc(&graph).into_iter().filter(is_cycle);
    let mut groups: Vec<BTreeSet<usize>> =
        cycles.map(|group| group.into_iter().map(|node| graph[node]).collect()).collect();
    groups.sort();
    Err(groups.iter().map(|group| walk(group, nodes)).collect())
}

/// A way round inside a strongly connected group, from its first node back to it.
fn walk(group: &BTreeSet<usize>, nodes: &[Node]) -> Vec<usize> {
    let start = *group.first().expect("BUG: an empty cycle");
    let mut path = vec![start];
    loop {
        let last = path[path.len() - 1];
        let inside = nodes[last].needs.iter().map(|(_, n)| *n).filter(|n| group.contains(n));
        let next = inside.min().expect("BUG: a node of a cycle without a way on");
        if let Some(again) = path.iter().position(|node| *node == next) {
            path.push(next);
            return path.split_off(again);
        }
        path.push(next);
    }
}

fn report_cycle(nodes: &[Node], cycle: &[usize], sink: &Sink) {
    let names: Vec<_> = cycle.iter().map(|i| format!("`{}`", nodes[*i].name)).collect();
    let message = format!("stages need each other in a circle: {}", names.join(" needs "));
    sink.push(Diagnostic::at(nodes[cycle[0]].span, message).label("part of the circle"));
}
