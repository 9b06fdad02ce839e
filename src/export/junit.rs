//! Samples as JUnit XML. Knows nothing of where samples come from.
//!
//! A suite for each workflow, a case for each sample and epoch. Right is passed and wrong is a failure, as the first
//! scorer says; an answer without a verdict is skipped. A sample without an answer is a failure too, for the model
//! has not done what it was asked, unless it was the engine that failed: that is an error.

use std::io::Write;

use super::{ExportError, Source};
use crate::record::Observed;
use crate::report::junit::{self, Counts, State};
use crate::report::question;
use crate::sample::{Outcome, Sample, Score};
use crate::store::Store;

pub(super) fn write(
    title: &str,
    sources: &[Source],
    store: &Store,
    mut out: impl Write,
) -> Result<(), ExportError> {
    // What a document holds stands at its head.
    let mut all = Counts::default();
    let mut counts = Vec::new();
    for source in sources {
        let mut of = Counts::default();
        for sample in source.parts::<Sample>(store)? {
            of.add(&state(&sample?));
        }
        all.plus(of);
        counts.push(of);
    }
    out.write_all(junit::begin(title, all).as_bytes())?;
    for (source, counts) in sources.iter().zip(counts) {
        out.write_all(junit::begin_suite(&source.stage, counts).as_bytes())?;
        let class = format!("{title}.{}", source.stage);
        for both in source.rows(store)? {
            let (sample, observed) = both?;
            let name = match sample.epoch {
                0 => sample.flow.clone(),
                epoch => format!("{} [epoch {epoch}]", sample.flow),
            };
            // A look-up says nothing about the speed of what is tested.
            let live = observed.as_ref().filter(|seen| seen.is_live());
            let seconds = live.map(Observed::latency_ms).map(|ms| ms / 1000.0);
            out.write_all(junit::case(&name, &class, seconds, &state(&sample)).as_bytes())?;
        }
        out.write_all(junit::END_SUITE.as_bytes())?;
    }
    out.write_all(junit::END.as_bytes())?;
    Ok(out.flush()?)
}

fn state(sample: &Sample) -> State<'_> {
    let text = || {
        let mut lines = vec![format!("outcome: {}", sample.outcome.name())];
        let mut fact = |name: &str, value: Option<&str>| {
            lines.extend(value.map(|value| format!("{name}: {value}")));
        };
        fact("question", question(sample));
        fact("answer", sample.answer.as_deref());
        let targets = sample.targets.join(" | ");
        fact("targets", (!targets.is_empty()).then_some(targets.as_str()));
        fact("detail", sample.detail.as_deref());
        fact("reply", super::columns::reply(sample));
        lines.join("\n").into()
    };
    let ended = || match &sample.detail {
        Some(detail) => format!("{}: {detail}", sample.outcome.name()).into(),
        None => sample.outcome.name().into(),
    };
    match sample.outcome {
        Outcome::ProviderError | Outcome::Cancelled => {
            State::Error { message: ended(), text: text() }
        }
        Outcome::Answered => match sample.scores.first().and_then(Score::is_right) {
            Some(true) => State::Passed,
            Some(false) => State::Failed {
                message: format!(
                    "answered `{}`, accepted: {}",
                    sample.answer.as_deref().unwrap_or(""),
                    sample.targets.join(" | ")
                )
                .into(),
                text: text(),
            },
            None => State::Skipped {
                message: match sample.scores.first().and_then(|score| score.unscored) {
                    Some(why) => format!("no verdict: {}", why.name()).into(),
                    None => "no verdict".into(),
                },
                text: text(),
            },
        },
        _ => State::Failed { message: ended(), text: text() },
    }
}
