//! How far the store can answer a workflow, for plans and explanations. Asks no engine.

use serde::Serialize;

use super::Workflow;
use super::sample::{self, run_sample};
use crate::digest::Recipe;
use crate::engine::{Failure, Mode};
use crate::sample::Flow;
use crate::stage::{Context, Inputs, StageError};

/// How far the store can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Survey {
    /// Flows × epochs.
    pub samples: u64,
    /// Of these, answered as a whole.
    pub samples_answered: u64,
    /// Requests of the answered ones.
    pub requests_answered: u64,
    /// Samples that will ask the engine: one request or more each.
    pub samples_to_ask: u64,
}

impl Workflow {
    /// Walks all samples against the store alone.
    pub async fn survey(&self, inputs: &Inputs, context: &Context) -> Result<Survey, StageError> {
        let job = self.job(inputs, context, Mode::Frozen, context.stop.clone())?;
        let (flows, _) = self.sources(inputs);
        let mut reader = flows.reader();
        let mut survey = Survey::default();
        while let Some(flow) = reader.next().await? {
            for epoch in 0..self.epochs {
                survey.samples += 1;
                if self.mode(context) == Mode::Afresh {
                    survey.samples_to_ask += 1;
                    continue;
                }
                match run_sample(&job, &flow, epoch).await {
                    Ok((_, observed)) => {
                        survey.samples_answered += 1;
                        survey.requests_answered += observed.requests.len() as u64;
                    }
                    Err(Failure::Missing(_)) => survey.samples_to_ask += 1,
                    Err(other) => return Err(StageError::Failed(other.to_string())),
                }
            }
        }
        Ok(survey)
    }

    /// The recipe of a sample by the name of its flow, with the flow; `None` where there is no such flow.
    pub async fn sample_recipe(
        &self,
        flow: &str,
        inputs: &Inputs,
        context: &Context,
    ) -> Result<Option<(Recipe, Flow)>, StageError> {
        let settings = self.semantics(context)?;
        let (flows, engine) = self.sources(inputs);
        let mut reader = flows.reader();
        while let Some(found) = reader.next().await? {
            if found.id == flow {
                let recipe = sample::recipe(&settings, engine.identity, &found, 0);
                return Ok(Some((recipe, found)));
            }
        }
        Ok(None)
    }
}
