//! `forge show`: a run, its stages, one of its samples.

use clap::Args;
use serde_json::{Value, json};

use super::logs::select;
use super::runs::{StorePlace, taken, to_json};
use super::terminal::{columns, duration, moment, visible_json, visible_line};
use super::{Failure, print, sample, summary};
use crate::history::{self, Run, Tables};
use crate::record::StageRun;
use crate::report::gates;
use crate::store::Store;

#[derive(Args)]
pub(super) struct Show {
    /// The run: a part of its id, a tag, `last`
    #[arg(default_value = history::LAST)]
    run: String,
    #[command(flatten)]
    place: StorePlace,
    /// Only this stage, with its settings; of a matrix, all its cells
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// A sample: the name of its flow
    #[arg(long, value_name = "ID")]
    sample: Option<String>,
    /// Which repetition of the sample, from 0 [default: all]
    #[arg(long, value_name = "N", requires = "sample")]
    epoch: Option<u32>,
    /// Print one JSON object; of samples, a list
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self) -> Result<(), Failure> {
        let store = self.place.open()?;
        let run = history::find(&store, &self.run)?;
        let stages: Vec<&StageRun> = match &self.stage {
            None => run.record.stages.iter().collect(),
            Some(stage) => select(&run, stage)?,
        };
        if let Some(flow) = &self.sample {
            let found = sample::find(&store, &run, &stages, flow, self.epoch)?;
            if self.json {
                let list: Vec<Value> = found.iter().map(sample::to_json).collect();
                print_json(&Value::from(list));
            } else {
                let texts: Vec<String> = found.iter().map(sample::text).collect();
                print(texts.join("\n\n").trim_end());
            }
            return Ok(());
        }
        let details = self.stage.is_some();
        if self.json {
            let mut value = to_json(&run);
            let list = stages.iter().map(|stage| stage_json(&store, stage, details));
            value["stages"] = list.collect();
            print_json(&value);
        } else if details {
            let texts: Vec<String> = stages.iter().map(|stage| stage_text(&store, stage)).collect();
            print(texts.join("\n\n").trim_end());
        } else {
            run_lines(&run).iter().for_each(|line| print(line));
        }
        Ok(())
    }
}

fn print_json(value: &Value) {
    print(&visible_json(&serde_json::to_string_pretty(value).expect("BUG: this is plain data")));
}

/// Facts of the run, then a line for each stage.
fn run_lines(run: &Run) -> Vec<String> {
    let record = &run.record;
    let about = &record.about;
    let mut names = run.tags.clone();
    if run.pinned {
        names.push("(pinned)".to_owned());
    }
    let mut facts = vec![
        ("run", format!("{}  {}", run.id(), names.join(" "))),
        ("pipeline", format!("{}, {}", record.pipeline, record.manifest)),
        (
            "status",
            match taken(run) {
                Some(ms) => format!("{} in {}", record.status.name(), duration(ms)),
                None => record.status.name().to_owned(),
            },
        ),
        ("started", moment(record.started_unix_ms)),
    ];
    if !about.tool.is_empty() {
        let revision = about.git_revision.as_ref().map(|revision| {
            let dirty = if about.git_dirty == Some(true) { ", changed since" } else { "" };
            format!(" at {}{dirty}", revision.chars().take(12).collect::<String>())
        });
        facts.push(("made by", format!("{}{}", about.tool, revision.unwrap_or_default())));
    }
    let mut params: Vec<String> =
        about.params.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    params.extend(about.limit.map(|limit| format!("--limit {limit}")));
    if !params.is_empty() {
        facts.push(("params", params.join(", ")));
    }
    facts.push(("took", summary::took(record)));
    let mut lines: Vec<String> = facts
        .into_iter()
        .map(|(name, value)| visible_line(&format!("{name:9} {value}")).trim_end().to_owned())
        .collect();
    lines.push(String::new());
    let head = ["STATE", "STAGE", "KIND", "TIME", "KEY", "RESULT"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    for stage in &record.stages {
        rows.push(vec![
            state(stage).to_owned(),
            visible_line(&stage.name),
            visible_line(&stage.kind),
            stage.wall_ms.map_or_else(|| "–".to_owned(), duration),
            stage.key.map_or_else(|| "–".to_owned(), |key| key.short()),
            result(stage),
        ]);
    }
    lines.extend(columns(&rows));
    if !record.gates.is_empty() {
        lines.push(String::new());
        lines.extend(gates::lines(&record.gates).iter().map(|line| visible_line(line)));
        lines.push(gates::total(&record.gates));
    }
    for stage in &record.stages {
        let error = stage.error.as_ref();
        lines.extend(error.map(|e| visible_line(&format!("error: `{}`: {e}", stage.name))));
    }
    lines.extend(record.notices.iter().map(|notice| format!("warning: {}", visible_line(notice))));
    lines
}

fn state(stage: &StageRun) -> &'static str {
    match stage.state {
        Some(state) => state.name(),
        None if stage.selected.is_some() || stage.finished > 0 => "begun",
        None => "–",
    }
}

fn result(stage: &StageRun) -> String {
    match summary::result(stage) {
        Some(result) => result,
        None if stage.finished > 0 => match stage.selected {
            Some(selected) => format!("{} of {selected} samples so far", stage.finished),
            None => format!("{} samples so far", stage.finished),
        },
        None => String::new(),
    }
}

fn stage_json(store: &Store, stage: &StageRun, details: bool) -> Value {
    let mut value = serde_json::to_value(stage).expect("BUG: a record is plain data");
    if details {
        let info = Tables::of(store, stage).and_then(|tables| tables.info(store)).ok();
        value["settings"] = json!(info);
    }
    value
}

/// Everything that is known of a stage.
fn stage_text(store: &Store, stage: &StageRun) -> String {
    let text = |digest: Option<String>| digest.unwrap_or_else(|| "–".to_owned());
    let mut rows = vec![
        ("stage".to_owned(), stage.name.clone()),
        ("kind".to_owned(), stage.kind.clone()),
        (
            "state".to_owned(),
            match stage.wall_ms {
                Some(ms) => format!("{} in {}", state(stage), duration(ms)),
                None => state(stage).to_owned(),
            },
        ),
        ("key".to_owned(), text(stage.key.map(|key| key.to_string()))),
        ("recipe".to_owned(), text(stage.recipe.map(|digest| digest.to_string()))),
        ("result".to_owned(), text(stage.result.map(|digest| digest.to_string()))),
    ];
    if let Some(summary) = &stage.summary {
        rows.push(("samples".to_owned(), summary.samples.to_string()));
        for (outcome, n) in &summary.outcomes {
            rows.push((format!("  {outcome}"), n.to_string()));
        }
        rows.push(("metrics".to_owned(), String::new()));
        for (metric, value) in &summary.metrics {
            let mut text = value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"));
            if let Some(ci) = summary.accuracy_ci.filter(|_| metric == "accuracy") {
                text.push_str(&format!("  [{:.4}, {:.4}]", ci.lower, ci.upper));
            }
            rows.push((format!("  {metric}"), text));
        }
    } else if stage.finished > 0 {
        rows.push(("samples".to_owned(), result(stage)));
    }
    if let Ok(info) = Tables::of(store, stage).and_then(|tables| tables.info(store)) {
        for (title, settings) in
            [("settings", &info.config), ("execution", &info.execution), ("engine", &info.engine)]
        {
            rows.push((title.to_owned(), String::new()));
            for (name, value) in settings {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                rows.push((format!("  {name}"), text));
            }
        }
        rows.push(("admission".to_owned(), info.admission));
    }
    if let Some(error) = &stage.error {
        rows.push(("error".to_owned(), error.clone()));
    }
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, value)| vec![visible_line(&name), visible_line(&value)])
        .collect();
    columns(&rows).join("\n")
}
