//! `pipelines/<name>.lock`: what a run came to, to be committed. Knows nothing of how it came to it.
//!
//! The same inputs and answers give the same bytes on every machine: no time, no host, no path.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

use crate::record::{RunRecord, StageRun};

/// Version of the file's form.
pub(super) const VERSION: u32 = 1;

/// The lock of a finished run.
pub struct Lock<'a>(pub &'a RunRecord);

impl std::fmt::Display for Lock<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "# Written by `forge apply`. Commit it: it says what the results are made of."
        )?;
        writeln!(f, "version = {VERSION}")?;
        for stage in &self.0.stages {
            write_stage(f, stage)?;
        }
        Ok(())
    }
}

/// What a lock file pins: the commit of each branch of a data set.
///
/// # Errors
/// The words of the parser with the place.
pub fn pins(text: &str) -> Result<BTreeMap<String, String>, String> {
    #[derive(Deserialize)]
    struct Pinned {
        #[serde(default)]
        stage: BTreeMap<String, Stage>,
    }
    #[derive(Deserialize)]
    struct Stage {
        #[serde(default)]
        pins: BTreeMap<String, String>,
    }
    let pinned: Pinned = toml::from_str(text).map_err(|error| error.to_string())?;
    Ok(pinned.stage.into_values().flat_map(|stage| stage.pins).collect())
}

fn write_stage(f: &mut std::fmt::Formatter<'_>, stage: &StageRun) -> std::fmt::Result {
    // Names are letters, digits, `-`, `_` and matrix values: quoting them as JSON does is valid TOML.
    let name = serde_json::to_string(&stage.name).expect("BUG: a name is plain data");
    writeln!(f, "\n[stage.{name}]")?;
    writeln!(f, "kind = \"{}\"", stage.kind)?;
    if stage.kind == "report" {
        // A report holds times, so its key and its bytes differ from machine to machine.
        return Ok(());
    }
    for (source, revision) in &stage.pins {
        // An address is plain text: quoting it as JSON does is valid TOML.
        let source = serde_json::to_string(source).expect("BUG: an address is plain data");
        writeln!(f, "pins.{source} = \"{revision}\"")?;
    }
    if stage.rows_skipped > 0 {
        writeln!(f, "rows_skipped = {}", stage.rows_skipped)?;
    }
    if let Some(key) = stage.key {
        writeln!(f, "key = \"{key}\"")?;
    }
    if let Some(recipe) = stage.recipe {
        writeln!(f, "recipe = \"{recipe}\"")?;
    }
    if let Some(result) = stage.result {
        writeln!(f, "result = \"{result}\"")?;
    }
    let Some(summary) = &stage.summary else { return Ok(()) };
    writeln!(f, "samples = {}", summary.samples)?;
    let mut outcomes = String::new();
    for (i, (name, count)) in summary.outcomes.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        write!(outcomes, "{comma}{name} = {count}")?;
    }
    writeln!(f, "outcomes = {{ {outcomes} }}")?;
    for (name, value) in &summary.metrics {
        if let Some(value) = value {
            writeln!(f, "metrics.{name} = {value:.6}")?;
        }
    }
    Ok(())
}
