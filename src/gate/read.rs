//! The table of a gate. Every name that is no threshold is an error with those that are.

use super::{Check, Clock, Gate, POINTS, What};
use crate::manifest::{Diagnostic, Fields};
use crate::record::scores::{Metric, PairBy};
use crate::record::{Bound, CORPUS, Side};
use crate::sample::Outcome;
use crate::stats::{BadReducer, REDUCERS, Reducer};

/// Longest time that makes sense as a threshold: a day.
const MS_MAX: f64 = 86_400_000.0;

/// What is known of the workflows that a gate names.
pub struct Known<'a> {
    /// How the manifest names them.
    pub stages: String,
    /// Metrics that all of them have; `None` where one could not be read.
    pub metrics: Option<Vec<&'a str>>,
    /// The most draws that a row of theirs has.
    pub epochs: u32,
    /// The lock file of this pipeline.
    pub lock: &'a str,
}

/// Reads a gate; its `samples` are read already. What is wrong goes to the sink of `fields`.
pub fn read(name: &str, fields: Fields<'_>, known: &Known<'_>) -> Gate {
    let checks = read_checks(name, &fields, known);
    let metric = read_metric(&fields, known);
    let max_drop = fields.number("max_drop", 0.0..=1.0);
    let baseline = fields.text("baseline");
    if let Some(text) = &baseline {
        if text.value == known.lock {
            let message =
                format!("`{}` is the lock file that a run of this manifest writes", text.value);
            let hint = "compare with what is committed: `baseline = \"HEAD\"`";
            fields.error(Diagnostic::at(text.span, message).hint(hint));
        } else if text.value.ends_with(".lock") {
            fields.check_path(text);
        } else if text.value.is_empty() || text.value.starts_with('-') {
            let message = format!("`{}` is no revision of git", text.value);
            fields.error(Diagnostic::at(text.span, message));
        }
    }
    let by = fields.text("by").map(|tag| tag.value);
    let cluster = fields.text("cluster").map(|tag| tag.value);
    let bound = match fields.choice("bound", &["value", "lower", "upper"]) {
        Some(bound) if bound.value == "lower" => Bound::Lower,
        Some(bound) if bound.value == "upper" => Bound::Upper,
        _ => Bound::Value,
    };
    let pair_by = match fields.choice("pair_by", &["content", "id"]) {
        Some(by) if by.value == "content" => PairBy::Content,
        // Between two revisions the prompt is what changes most; the questions are the same.
        _ => PairBy::Id,
    };
    let unmeasured = fields.choice("unmeasured", &["fail", "pass"]);
    let reducer = read_reducer(&fields, known);
    // A change that answers less must not pass for one that loses nothing.
    let all = match Metric::AccuracyAll.fits(reducer) {
        true => Metric::AccuracyAll,
        false => Metric::Accuracy,
    };
    let drop = max_drop.map(|drop| Check {
        what: What::Drop(metric.clone().unwrap_or(all)),
        side: Side::Above,
        // Minus zero would be shown as such.
        threshold: 0.0 - drop,
    });
    let has_metric = checks.iter().any(|check| check.what.is_mean());
    let wants = |field: &str, wanted: &str, there: bool| {
        if fields.has(field) && !there {
            let message = format!("`{field}` is for {wanted}, and gate `{name}` has none");
            fields.error(Diagnostic::at(fields.place(field), message));
        }
    };
    wants("max_drop", "a difference to a `baseline`", fields.has("baseline"));
    for field in ["baseline", "metric", "pair_by"] {
        wants(field, "`max_drop`", fields.has("max_drop"));
    }
    let corpus = checks.iter().find(|check| matches!(check.what, What::Corpus(_)));
    match corpus {
        Some(check) if bound != Bound::Value => {
            let measure = check.what.name();
            let rows = measure.trim_start_matches("corpus_");
            let message = format!(
                "`bound` is for thresholds on metrics that have an interval, and `{measure}` of gate `{name}` has none: \
                 it is of all answers together"
            );
            let hint = format!(
                "hold `{measure}` in a gate without `bound`, or the mean over rows, `{rows}`, in this one"
            );
            fields.error(Diagnostic::at(fields.place("bound"), message).hint(hint));
        }
        Some(_) => {}
        None => wants("bound", "thresholds on metrics", has_metric),
    }
    for field in ["reducer", "cluster"] {
        wants(field, "thresholds on metrics", has_metric || fields.has("max_drop"));
    }
    let misfit = |check: &&Check| match &check.what {
        What::Metric(metric) | What::Drop(metric) => !metric.fits(reducer),
        _ => false,
    };
    let mut checks: Vec<Check> = checks.into_iter().chain(drop).collect();
    if let Some(check) = checks.iter().find(misfit) {
        let message = format!(
            "`{reducer}` does not fit `{}`: it counts draws that are right, and is for `accuracy`",
            check.what.name()
        );
        fields.error(Diagnostic::at(fields.place("reducer"), message));
    }
    let is_threshold = |name: &str| name.starts_with("min_") || name.starts_with("max_");
    if !fields.keys().any(|(name, _)| is_threshold(name)) {
        let message = format!("gate `{name}` has no threshold");
        let hint = "such as `min_accuracy = 0.8`, `max_truncated = 0.02`, `max_p95_ms = 2000`, `max_cost = 2.5`";
        fields.error(Diagnostic::at(fields.span(), message).hint(hint));
    }
    checks.sort_by_key(|check| order(&check.what));
    let span = fields.span();
    fields.finish();
    Gate {
        name: name.to_owned(),
        span,
        baseline,
        by,
        checks,
        bound,
        reducer,
        cluster,
        pair_by,
        unmeasured_passes: unmeasured.is_some_and(|word| word.value == "pass"),
    }
}

/// Metrics first, then how samples ended, times, and money.
fn order(what: &What) -> u8 {
    match what {
        What::Metric(_) | What::Corpus(_) => 0,
        What::Drop(_) => 1,
        What::Outcome(_) => 2,
        What::Time(..) => 3,
        What::Cost => 4,
    }
}

/// Every threshold that the table has. A table is sorted by name, and so are these.
fn read_checks(gate: &str, fields: &Fields<'_>, known: &Known<'_>) -> Vec<Check> {
    let mut checks = Vec::new();
    for (field, key) in fields.keys() {
        let Some((side, measure)) = side(field) else { continue };
        let metrics = known.metrics.as_deref();
        let what = match what(side, measure, metrics) {
            Some(what) => what,
            None => {
                let message = format!(
                    "unknown threshold `{field}` in gate `{gate}` (known: `min_` and `max_` of {}; `min_answered`; `max_` of \
                     {}, drop, cost, {}, and of the same after `ttft_` and `tpot_`)",
                    metrics.unwrap_or_default().join(", "),
                    failures().collect::<Vec<_>>().join(", "),
                    POINTS.map(|(point, _)| format!("{point}_ms")).join(", ")
                );
                let names = names(metrics.unwrap_or_default());
                let diagnostic = Diagnostic::at(key, message);
                let diagnostic = diagnostic.did_you_mean(field, names.iter().map(String::as_str));
                fields.wrong_name(field, diagnostic);
                continue;
            }
        };
        let range = match what {
            What::Metric(_) | What::Corpus(_) | What::Outcome(_) | What::Drop(_) => 0.0..=1.0,
            What::Time(..) => 0.0..=MS_MAX,
            What::Cost => 0.0..=1e9,
        };
        if let Some(threshold) = fields.number(field, range) {
            checks.push(Check { what, side, threshold });
        }
    }
    checks
}

fn side(field: &str) -> Option<(Side, &str)> {
    if field == "max_drop" {
        return None;
    }
    let min = field.strip_prefix("min_").map(|measure| (Side::AtLeast, measure));
    min.or_else(|| Some((Side::AtMost, field.strip_prefix("max_")?)))
}

/// What a name stands for. Where nothing is known of metrics, any name may be one.
fn what(side: Side, measure: &str, metrics: Option<&[&str]>) -> Option<What> {
    let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.name() == measure);
    if let Some(outcome) = outcome {
        // Enough answers, or not too many of anything else.
        let sensible = (outcome == Outcome::Answered) == (side == Side::AtLeast);
        return sensible.then_some(What::Outcome(outcome));
    }
    if side == Side::AtMost {
        if measure == "cost" {
            return Some(What::Cost);
        }
        for (prefix, clock) in Clock::ALL {
            for point in POINTS {
                if measure == format!("{prefix}{}_ms", point.0) {
                    return Some(What::Time(clock, point));
                }
            }
        }
    }
    let is_metric = metrics.is_none_or(|metrics| metrics.contains(&measure));
    let corpus = CORPUS.into_iter().find(|name| *name == measure);
    is_metric.then(|| corpus.map_or_else(|| What::Metric(Metric::of(measure)), What::Corpus))
}

/// How a sample can end without an answer.
fn failures() -> impl Iterator<Item = &'static str> {
    let failures = Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Answered);
    failures.map(Outcome::name)
}

/// Every threshold that a gate may have.
fn names(metrics: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = metrics.iter().map(|name| format!("min_{name}")).collect();
    let mut most: Vec<String> = metrics.iter().map(ToString::to_string).collect();
    most.extend(failures().map(str::to_owned));
    for (prefix, _) in Clock::ALL {
        most.extend(POINTS.iter().map(|(point, _)| format!("{prefix}{point}_ms")));
    }
    most.extend(["cost", "drop"].map(str::to_owned));
    names.extend(most.into_iter().map(|name| format!("max_{name}")));
    names.push("min_answered".to_owned());
    names
}

fn read_metric(fields: &Fields<'_>, known: &Known<'_>) -> Option<Metric> {
    let metric = match &known.metrics {
        // What all answers come to together has no rows to be compared by.
        Some(metrics) => {
            let of_rows = metrics.iter().copied().filter(|name| !CORPUS.contains(name));
            fields.choice("metric", &of_rows.collect::<Vec<_>>())?
        }
        None => fields.text("metric")?,
    };
    Some(Metric::of(&metric.value))
}

fn read_reducer(fields: &Fields<'_>, known: &Known<'_>) -> Reducer {
    let Some(text) = fields.text("reducer") else { return Reducer::Mean };
    match text.value.parse::<Reducer>() {
        Ok(reducer) => {
            let epochs = u64::from(known.epochs);
            if epochs > 0 && reducer.needs() > epochs {
                let message = format!(
                    "`{reducer}` needs {} draws of a row, and {} has {epochs}",
                    reducer.needs(),
                    known.stages
                );
                fields.error(Diagnostic::at(text.span, message).hint("raise `epochs`"));
            }
            reducer
        }
        Err(error) => {
            let unknown = matches!(error, BadReducer::Unknown(_));
            let diagnostic = Diagnostic::at(text.span, error.to_string());
            fields.error(match unknown {
                true => diagnostic.did_you_mean(&text.value, REDUCERS.split(", ")),
                false => diagnostic,
            });
            Reducer::Mean
        }
    }
}
