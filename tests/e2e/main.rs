//! The real binary in a fresh folder, with an engine whose replies are written down.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "counts of kills and offsets are part of a result"
)]

mod command;
mod crash;
mod engine;
mod increments;
mod inputs;
mod interface;
mod project;
mod rebuilds;
mod remote;
mod store;
mod survival;
