//! What all samples of a workflow share, made once: doors to its engines, settings, and what is told on the way.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::sample::{self, Job};
use super::scoring::Doors;
use super::{Workflow, prompt};
use crate::engine::{Access, Away, Client, Mode, Models, Told};
use crate::record::{Event, RequestCounts};
use crate::stage::{Context, Inputs, StageError};

impl Workflow {
    /// What runs one sample.
    pub fn job(
        &self,
        inputs: &Inputs,
        context: &Context,
        mode: Mode,
        stop: CancellationToken,
    ) -> Result<Job, StageError> {
        let (_, engine) = self.sources(inputs);
        let (emit, stage) = (context.emit.clone(), self.name.clone());
        let (warn_emit, warn_stage) = (emit.clone(), stage.clone());
        let warn = move |message| {
            warn_emit(Event::Notice { stage: Some(warn_stage.clone()), message });
        };
        let tell = move |told| {
            let stage = stage.clone();
            emit(match told {
                Told::Notice(message) => Event::Notice { stage: Some(stage), message },
                Told::Progress(message) => Event::EngineLoading { stage, message },
                Told::Proved { engine: stage, usage, priced, cost, at_least } => {
                    Event::EngineProved {
                        stage,
                        output_tokens: usage.output_tokens,
                        cost: priced.then_some(cost.unwrap_or(0.0)),
                        cost_unknown: at_least,
                    }
                }
                Told::GivenUp { output_tokens, cost, at_least } => Event::GivenUp {
                    stage,
                    flow: None,
                    requests: RequestCounts::default(),
                    output_tokens,
                    cost,
                    cost_unknown: at_least,
                },
                Told::Retry { key, attempt, retry } => {
                    Event::RequestRetried { stage, key, attempt, retry }
                }
            });
        };
        let away: Arc<Away> = Arc::default();
        let models = Arc::new(Models::new(context.memory.clone()));
        let access = Access {
            run: context.run.id.clone(),
            goes_on: context.options.goes_on.clone(),
            mode,
            limits: self.limits.clone(),
            memory_max: self.cache_max_size as usize,
            stop,
            budget: context.budget.clone(),
            away: away.clone(),
            models: models.clone(),
            tell: Arc::new(tell),
        };
        let rag = self.rag.as_ref().map(|rag| rag.open(inputs, context, &access)).transpose()?;
        let rag = rag.unwrap_or_default();
        let doors = Doors::open(&self.scoring, inputs, context, &access)?;
        let (searches, further) = self.tools.open(inputs, context, &access)?;
        let tariffs =
            doors.tariffs().clone().into_iter().chain(rag.tariffs()).chain(further).collect();
        let client = Client::new(engine.clone(), context.store.clone(), access);
        if let Some((count, bytes, bound)) = models.too_large()
            && count > 1
        {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            warn(format!(
                "its {count} models are needed at once and take about {:.1} GiB, more than the {:.1} GiB that models may \
                 take: they are loaded all the same",
                gib(bytes),
                gib(bound)
            ));
        }
        let settings = self.semantics(inputs, context)?;
        Ok(Job {
            shared: sample::shared_recipe(&settings, engine.identity),
            settings,
            doors,
            client,
            store: context.store.clone(),
            mode,
            run: context.run.id.clone(),
            time_limit: self.sample_limits.time,
            away,
            rag,
            searches,
            aside_tariffs: tariffs,
            warnings: prompt::Warnings::new(engine, Box::new(warn)),
        })
    }
}
