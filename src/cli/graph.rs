//! `forge check` and `forge graph`.

use std::fmt::Write;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::project::Project;
use super::{Failure, ManifestArgs, print};
use crate::graph::Graph;

#[derive(Args)]
pub(super) struct Check {
    #[command(flatten)]
    manifest: ManifestArgs,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let project = Project::open(&self.manifest)?;
        print(&format!(
            "{}: {} stages, no errors",
            project.manifest.path,
            project.graph.nodes().len()
        ));
        Ok(())
    }
}

#[derive(Args)]
pub(super) struct GraphArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// How to write it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Dot,
    Mermaid,
    Json,
}

impl GraphArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let graph = Project::open(&self.manifest)?.graph;
        let text = match self.format {
            Format::Text => text(&graph),
            Format::Dot => dot(&graph),
            Format::Mermaid => mermaid(&graph),
            Format::Json => json(&graph),
        };
        print(text.trim_end());
        Ok(())
    }
}

fn text(graph: &Graph) -> String {
    let nodes = graph.nodes();
    let width = nodes.iter().map(|node| node.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for &i in graph.order() {
        let node = &nodes[i];
        let needs: Vec<_> = node.needs.iter().map(|(_, n)| nodes[*n].name.as_str()).collect();
        let from =
            if needs.is_empty() { String::new() } else { format!("<- {}", needs.join(", ")) };
        let line = format!("{:width$}  {:13}  {from}", node.name, node.kind);
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn dot(graph: &Graph) -> String {
    let mut out = "digraph pipeline {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    for node in graph.nodes() {
        let label = quote(&format!("{} ({})", node.name, node.kind));
        let _ = writeln!(out, "  {} [label={label}];", quote(&node.name));
        for (_, needed) in &node.needs {
            let from = quote(&graph.nodes()[*needed].name);
            let _ = writeln!(out, "  {from} -> {};", quote(&node.name));
        }
    }
    out + "}\n"
}

fn mermaid(graph: &Graph) -> String {
    let mut out = "flowchart LR\n".to_owned();
    for (i, node) in graph.nodes().iter().enumerate() {
        let label = format!("{} ({})", node.name, node.kind).replace('"', "#quot;");
        let _ = writeln!(out, "  n{i}[\"{label}\"]");
    }
    for (i, node) in graph.nodes().iter().enumerate() {
        for (_, needed) in &node.needs {
            let _ = writeln!(out, "  n{needed} --> n{i}");
        }
    }
    out
}

fn json(graph: &Graph) -> String {
    let node = |node: &crate::graph::Node| {
        let needs = node
            .needs
            .iter()
            .map(|(port, needed)| json!({ "port": port, "stage": graph.nodes()[*needed].name }));
        json!({
            "name": node.name,
            "kind": node.kind,
            "gives": node.stage.gives().name(),
            "needs": needs.collect::<Vec<_>>(),
        })
    };
    let nodes: Vec<_> = graph.nodes().iter().map(node).collect();
    serde_json::to_string_pretty(&json!({ "stages": nodes })).expect("BUG: a graph is plain data")
}
