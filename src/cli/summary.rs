//! What a person wants to know at the end of a run, and the exit code that says it to scripts. Knows nothing but
//! the record.

use super::terminal::{duration, visible_line};
use super::{BUG, DONE, FAILED, INTERRUPTED, USER};
use crate::record::{Cause, RunRecord, RunStatus, StageRun, StageState};

/// With which code a run ends.
pub(super) fn exit_code(record: &RunRecord) -> u8 {
    match (record.status, record.cause) {
        (RunStatus::Completed, _) => DONE,
        (_, Some(Cause::Bug)) => BUG,
        (RunStatus::Cancelled, _) => INTERRUPTED,
        (_, Some(Cause::User)) => USER,
        _ => FAILED,
    }
}

/// Accuracy with its interval and how samples ended; absent of a stage without samples.
pub(super) fn result(stage: &StageRun) -> Option<String> {
    let summary = stage.summary.as_ref()?;
    let accuracy = match (stage.metric("accuracy"), summary.accuracy_ci) {
        (Some(accuracy), Some(ci)) => format!(
            "accuracy {:5.1} %  [{:.1}, {:.1}]",
            accuracy * 100.0,
            ci.lower * 100.0,
            ci.upper * 100.0
        ),
        (Some(accuracy), None) => format!("accuracy {:5.1} %", accuracy * 100.0),
        (None, _) => "accuracy –".to_owned(),
    };
    let answered = summary.outcomes.get("answered").copied().unwrap_or(0);
    let others = summary.outcomes.iter().filter(|(name, _)| *name != "answered");
    let others: Vec<_> = others.map(|(name, n)| format!("{n} {name}")).collect();
    let others =
        if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
    Some(format!("{accuracy}  {answered} of {} answered{others}", summary.samples))
}

/// Results of workflows, errors, and what the run took.
pub(super) fn lines(record: &RunRecord) -> Vec<String> {
    let mut lines = vec![String::new()];
    let with_result = || record.stages.iter().filter(|stage| stage.summary.is_some());
    let width = with_result().map(|stage| stage.name.len()).max().unwrap_or(0);
    for stage in with_result() {
        lines.push(format!("{:width$}  {}", stage.name, result(stage).unwrap_or_default()));
        let Some(summary) = &stage.summary else { continue };
        let stopping = summary.stopping.as_ref();
        lines.extend(stopping.map(|stopping| format!("{:width$}  {}", "", stopping.words())));
        lines.extend(summary.warnings().iter().map(|warning| format!("warning: {warning}")));
    }
    for stage in record.stages.iter().filter(|stage| stage.rows_skipped > 0) {
        lines.push(format!("{}: {} bad rows left out", stage.name, stage.rows_skipped));
    }
    for stage in &record.stages {
        if let Some(error) = &stage.error {
            lines.push(format!("error: `{}`: {}", stage.name, visible_line(error)));
        }
    }
    lines.push(format!("{}: {}", wall(record), took(record)));
    lines
}

fn wall(record: &RunRecord) -> String {
    record.wall_ms.map_or_else(|| "–".to_owned(), duration)
}

/// Stages by state, requests by who answered, what was tried again, what it cost.
pub(super) fn took(record: &RunRecord) -> String {
    let count = |state| record.stages.iter().filter(|stage| stage.state == Some(state)).count();
    let states = [StageState::Fresh, StageState::Ran, StageState::Failed, StageState::Skipped];
    let stages: Vec<_> = states
        .iter()
        .filter(|state| count(**state) > 0)
        .map(|state| format!("{} {}", count(*state), state.name()))
        .collect();
    let stages = if stages.is_empty() { "none has ended".to_owned() } else { stages.join(", ") };
    let requests = &record.requests;
    let asked = if requests.live + requests.hits() == 0 {
        "no request".to_owned()
    } else {
        format!("{} requests live, {} from the store", requests.live, requests.hits())
    };
    let retried: u64 = record.retries.values().sum();
    let retried = match retried {
        0 => String::new(),
        n => {
            let reasons: Vec<_> =
                record.retries.iter().map(|(why, n)| format!("{why} × {n}")).collect();
            let reasons = visible_line(&reasons.join(", "));
            format!(", {n} attempts failed and tried again ({reasons})")
        }
    };
    let spent = record.cost_text().map_or_else(String::new, |cost| format!("; {cost} spent"));
    format!("stages {stages}; {asked}{retried}{spent}")
}
