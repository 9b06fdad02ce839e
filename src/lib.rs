//! `forge` runs declarative LLM benchmark pipelines.
//!
//! A TOML manifest declares stages; the stages form a graph; every node, down to each model request, is
//! named by the hash of what it depends on, and remembered under that name.
//!
//! The walk of the data: `cli::apply` → [`graph::Graph::load`].
//!
//! A module uses those before it in this list, never those after; `tests/architecture.rs` checks it.

// Pure: values in, values out; no files, network, environment or clock.
pub mod digest;
pub mod stats;
pub mod sample;
pub mod template;
pub mod scorer;
pub mod tool;
pub mod method;
pub mod record;
pub mod report;
pub mod manifest;
pub mod store;
pub mod engine;
pub mod stage;
pub mod graph;
pub mod plan;
pub mod exec;
pub mod cli;
