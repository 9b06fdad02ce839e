//! `forge` runs declarative LLM benchmark pipelines.
//!
//! A TOML manifest declares stages; the stages form a graph; every node, down to each model request, is
//! named by the hash of all that it depends on, and remembered under that name.
//!
//! # The one idea
//!
//! A [`digest::Recipe`] is a table of semantic settings and of inputs named by their content. Its hash is
//! the key of a [`store::Record`]; its difference from the recipe of the last run is the explanation of a
//! miss. There are three levels, all of them in the same store: a request is part of a sample, a sample is
//! part of a stage. A stage's inputs are the digests of what other stages gave, so that an edit which changes
//! no bytes stops where it changes none. What failed for a passing reason is never recorded.
//!
//! # The walk of the data
//!
//! `cli::apply` → [`graph::Graph::load`] → [`exec::apply`] → [`plan::assess`] for each stage, and where the
//! store has no result its [`stage::Stage::run`]. In a workflow that is a window over the flows, and for each
//! of them the life of a sample (`stage/workflow/sample.rs`):
//!
//! ```text
//! recall the sample, or
//! [ method::ask → Client::complete → Method::read → tool ]*  → score → remember → Event::SampleFinished
//!                 └ memory, disk, an equal request in flight, a permit of the engine, the engine
//! ```
//!
//! Scoring compares texts (`scorer`, pure) and acts where it has to: a judge, an embedding, the tests of code, a
//! program (`stage/workflow/scoring`).
//!
//! Events go to [`record::RunRecord`], which is their fold, to the log of the run, and to the screen.
//! At the end [`exec::Gates`] hold what there is against the thresholds of [`gate`]; a report asks them for its workflows before. [`history`] finds runs by name and reads what they left: records, events, samples;
//! [`export`] writes those in the forms of other tools. [`otlp`] sends spans of a run while it goes on. [`schema`] describes manifests
//! by asking those who read them.
//!
//! [`project`] is a manifest in its project and the begin of a run: for `cli::apply` and for [`serve`], which runs
//! experiments over HTTP. An experiment is a manifest underneath, so that whatever one does the other can show.
//!
//! # The files we write
//!
//! `store/blob.rs` writes `cas/`, `store/journal.rs` `journal/`, `store/pack.rs` `packs/`, `store/stat.rs` `stat`,
//! `store/runs.rs` `runs/` (and `engine/process` the logs of servers in it), `store/roots.rs` `roots/` and `tmproots/`, `store/gc.rs` `gone/` and `trash/`,
//! `store/remote.rs` the objects of a shared store, `serve/db.rs` `experiments.sqlite`, `store/mod.rs` `store.toml` and `last/` (in it `stage/expand/hub.rs` what data sets of a hub stand for); `exec/lock.rs` the
//! text of `pipelines/<name>.lock`; `stage/views.rs` every output in the work tree.
//!
//! # The life of a record
//!
//! A line of this process's journal, found through a table in memory (`store/index.rs`); once the journal is
//! full or its process gone, a line of a sorted pack, found by two reads (`store/seal.rs`, `store/pack.rs`);
//! with a shared store also an object there, fetched and kept by whoever misses it (`store/share.rs`);
//! collected when no root reaches it (`store/gc.rs`).
//!
//! # The order of modules
//!
//! A module uses those before it in this list, never those after; `tests/architecture.rs` checks it. Read
//! [`sample`] first, then `stage/workflow/sample.rs`.

// Pure: values in, values out; no files, network, environment or clock.
pub mod digest;
pub mod stats;
pub mod sample;
pub mod template;
pub mod scorer;
pub mod retrieval;
pub mod tool;
pub mod method;
pub mod record;
pub mod report;
pub mod manifest;
pub mod gate;

// Acting.
pub mod store;
pub mod history;
pub mod export;
pub mod engine;
pub mod stage;
pub mod graph;
pub mod plan;
pub mod exec;
pub mod compare;
pub mod otlp;
pub mod schema;
pub mod project;
pub mod serve;
pub mod cli;
