//! The turns of an agent in the form of the HTTP interface, counted. Knows nothing of how they came to be.

use serde::{Deserialize, Serialize};

use crate::sample::{Sample, Termination, TraceStep};

/// All turns of a sample, those of several steps one after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentTrace {
    /// In order.
    pub steps: Vec<TraceStep>,
    /// Calls of tools that were made. One that was refused as a loop is none.
    pub total_tool_calls: u64,
    /// Of these, those whose tool did what was asked.
    pub successful_tool_calls: u64,
    /// The others, those of unknown tools too.
    pub failed_tool_calls: u64,
    /// Why the last step that had an agent stopped.
    pub termination_reason: Termination,
}

impl AgentTrace {
    /// Of a sample; `None` where no method with tools was at work.
    pub fn of(sample: &Sample) -> Option<AgentTrace> {
        let traces = || sample.steps.iter().filter_map(|step| step.trace.as_ref());
        let termination_reason = traces().next_back()?.termination_reason;
        let steps: Vec<TraceStep> = traces().flat_map(|trace| trace.steps.clone()).collect();
        let called = |wanted: bool| {
            let ended = steps.iter().filter(|step| step.action.is_some());
            ended.filter(|step| step.succeeded == Some(wanted)).count() as u64
        };
        let (successful, failed) = (called(true), called(false));
        Some(AgentTrace {
            total_tool_calls: successful + failed,
            successful_tool_calls: successful,
            failed_tool_calls: failed,
            termination_reason,
            steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::markdown::tests::row;
    use super::*;
    use crate::sample::Trace;

    fn turn(action: Option<&str>, succeeded: Option<bool>) -> TraceStep {
        TraceStep {
            step: 1,
            thought: String::new(),
            action: action.map(str::to_owned),
            action_input: action.map(str::to_owned),
            observation: succeeded.map(|_| "seen".to_owned()),
            succeeded,
        }
    }

    #[test]
    fn calls_are_counted_and_hints_are_none() {
        let mut sample = row("f", None, None).sample;
        assert_eq!(AgentTrace::of(&sample), None);
        let steps = vec![
            turn(Some("calculator"), Some(true)),
            turn(Some("serach"), Some(false)),
            // A hint about the format is an observation, and no call.
            turn(None, Some(false)),
            // Refused as a loop.
            turn(Some("calculator"), None),
        ];
        let termination_reason = Termination::LoopDetected;
        sample.steps[0].trace = Some(Trace { steps, termination_reason });
        let trace = AgentTrace::of(&sample).unwrap();
        let counts = (trace.total_tool_calls, trace.successful_tool_calls, trace.failed_tool_calls);
        assert_eq!(counts, (2, 1, 1));
        assert_eq!(trace.steps.len(), 4);
        assert_eq!(serde_json::to_value(&trace).unwrap()["termination_reason"], "loop_detected");
    }
}
