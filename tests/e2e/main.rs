//! The real binary in a fresh folder, with an engine whose replies are written down.

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
