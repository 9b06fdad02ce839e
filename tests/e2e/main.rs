//! The real binary in a fresh folder, with an engine whose replies are written down.

/// Prints what a test has counted. `println!` is kept from those who run tests that pass.
macro_rules! tell {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

mod browser;
mod bisect;
mod choice;
mod command;
mod costs;
mod crash;
mod data;
mod dialects;
mod diff;
mod editor;
mod engine;
mod exports;
mod gates;
mod gsm8k;
mod hub;
mod history;
mod increments;
mod inputs;
mod interface;
mod methods;
mod pages;
mod project;
mod endpoint;
mod rebuilds;
mod remote;
mod repeats;
mod scale;
mod scorers;
mod serve;
mod serve_fuzz;
mod serve_guard;
mod serve_pages;
mod serve_project;
mod serve_results;
mod server;
mod servers;
mod spans;
mod store;
mod story;
mod survival;
mod tools;
