//! `forge bench`.

use std::sync::Arc;

use camino::Utf8PathBuf;
use clap::Args;
use serde_json::Value;

use super::project::{root_here, usage};
use super::terminal::visible_line;
use super::{FAILED, Failure, block_on, print, say};
use crate::serve::bench::{self, Bench};
use crate::store::{Store, replace_file};

#[derive(Args)]
pub(super) struct BenchArgs {
    /// Rows that are asked in each cell
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
    samples: u32,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE")]
    output: Utf8PathBuf,
    /// An engine of the project's manifests [default: the first one]
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// A data set of the project [default: qa_25, else the first one]
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Folder of the store [default: .forge in the project]
    #[arg(long, env = "FORGE_STORE", value_name = "DIR")]
    store: Option<Utf8PathBuf>,
}

impl BenchArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let root = root_here()?;
        let store = self.store.unwrap_or_else(|| root.join(".forge"));
        let store = Arc::new(Store::open(&store)?);
        let (engine, data_set, samples) = (self.engine, self.dataset, self.samples);
        let bench = Bench { root, store, engine, data_set, samples };
        print(&line("cell", "wall s", "live/s", "exact", "hits", "batches"));
        let outcome = block_on(bench::run(bench, |cell| print(&row(cell))))?;
        let outcome = outcome.map_err(usage)?;
        let text = serde_json::to_string_pretty(&outcome.file).expect("BUG: this is plain data");
        replace_file(&self.output, format!("{text}\n").as_bytes())?;
        let cells = outcome.file["results"].as_array().into_iter().flatten();
        if cells.clone().any(is_all_remembered) {
            say(
                "live/s is of samples that the engine answered; – has none: the store answered them all",
            );
        }
        if let Some(warning) = cells.clone().find_map(|cell| cell["warning"].as_str()) {
            say(&format!("warning: {warning}"));
        }
        match outcome.failed {
            0 => Ok(()),
            n => Err(Failure::Message(
                format!("{n} cells failed; `{}` says why", self.output),
                FAILED,
            )),
        }
    }
}

fn is_all_remembered(cell: &Value) -> bool {
    let count = |name: &str| cell[name].as_u64();
    count("samples_live") == Some(0) && count("samples_remembered") > Some(0)
}

/// A row of the table.
fn row(cell: &Value) -> String {
    let name = cell["name"].as_str().unwrap_or_default();
    if let Some(error) = cell["error"].as_str() {
        return format!("{name:28}  failed: {}", visible_line(error));
    }
    let number = |value: &Value, digits: usize| match value.as_f64() {
        Some(number) => format!("{number:.digits$}"),
        None => "–".to_owned(),
    };
    let share = |value: &Value| match value.as_f64() {
        Some(share) => format!("{:.1} %", share * 100.0),
        None => "–".to_owned(),
    };
    line(
        name,
        &number(&cell["wall_time_s"], 3),
        &number(&cell["throughput"], 1),
        &share(&cell["accuracy_exact"]),
        &share(&cell["cache_stats"]["hit_rate"]),
        &number(&cell["batch_stats"]["batches_processed"], 0),
    )
}

fn line(name: &str, wall: &str, rate: &str, exact: &str, hits: &str, batches: &str) -> String {
    format!("{name:28}  {wall:>8}  {rate:>10}  {exact:>8}  {hits:>8}  {batches:>8}")
}
