//! How far the store can answer a workflow, and why not further: for plans and explanations. Asks no engine.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::Workflow;
use super::rag;
use super::sample::{self, GivenUp, Job, run_sample};
use crate::digest::{Difference, Digest, Key, Recipe};
use crate::engine::{Failure, Mode, form_ceiling, prompt_ceiling};
use crate::record::Price;
use crate::report::CellInfo;
use crate::sample::{Flow, Text};
use crate::stage::{Context, Inputs, Samples, StageError};

/// Samples that are looked for at once: a shared store takes its time.
const AT_ONCE: usize = 64;

/// How far the store can answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Survey {
    /// Flows × epochs.
    pub samples: u64,
    /// Of these, answered as a whole.
    pub samples_answered: u64,
    /// Requests of the answered ones.
    pub requests_answered: u64,
    /// Samples that will ask the engine: one request or more each.
    pub samples_to_ask: u64,
    /// Why they will, the most frequent reason first.
    pub reasons: Vec<Reason>,
    /// Whether it may stop before the last sample, so that all counts are the most there can be.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub may_stop: bool,
    /// What asking may cost, where somebody said what tokens cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Ahead>,
    /// Those who will be asked besides, cost money, and have no price: the engine, scorers and retrieval.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unpriced: BTreeSet<String>,
}

/// What the samples that are not answered may still cost, in dollars, if every reply has all the tokens that
/// it may have, and every agent takes all its turns. An attempt that breaks off may be paid for as well.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Ahead {
    /// With one token for each byte of the prompts: no tokenizer makes more of them.
    pub ceiling: f64,
    /// With one token for four bytes of the prompts, as English text has them.
    pub estimate: f64,
    /// The ceiling, if every request is paid for as often as it may be tried.
    pub with_retries: f64,
}

/// Tokens that a turn has besides its text.
const FRAME: u64 = 8;

impl Ahead {
    /// Adds a sample.
    fn add(&mut self, job: &Job, flow: &Flow, price: Price) {
        let settings = &job.settings;
        let (mut before, mut replies) = (0, 0);
        // What cannot be read is told when it is needed.
        let passages = settings.rag.as_ref().map_or(0, |rag| rag.bytes_max());
        let observation = settings.tools.iter().map(|tool| tool.bytes_max()).max().unwrap_or(0);
        let (mut asked, mut reply, mut questions, mut opening_bytes) = (0, 0, 0, 0);
        let form = form_ceiling(&settings.sampling, &settings.offered);
        for step in &flow.steps {
            let text = |text: &Text| match text {
                Text::Ready(text) => text.len() as u64,
                // What earlier steps said comes in here.
                Text::Later(source) => {
                    let row = flow.row.as_ref().map_or(0, |row| row.to_string().len() as u64);
                    source.len() as u64 + row + 4 * replies
                }
            };
            let shots = step.shots.iter().map(|shot| {
                (shot.user.len() + settings.method.show(shot).len()) as u64 + 2 * FRAME
            });
            let said = step.messages.iter().map(|said| text(&said.content) + FRAME);
            let own = step.system.as_ref().map_or(0, text)
                + settings.instructions.len() as u64
                + said.sum::<u64>()
                + text(&step.user)
                + passages
                + step.prefill.as_ref().map_or(0, text)
                + shots.sum::<u64>()
                + 2 * FRAME;
            questions += text(&step.user);
            let opening = if step.continues { before + own } else { own };
            opening_bytes = opening;
            let most = u64::from(step.max_tokens.unwrap_or(settings.sampling.max_tokens));
            // Replies that stand in the prompt: of this step, and of a conversation that goes on.
            let mut said = if step.continues { replies } else { 0 };
            let mut bytes = opening;
            let turns = if settings.method.writes() { settings.max_turns } else { 0 };
            for _ in 0..turns {
                self.ceiling += price.ceiling(form + bytes + said, most);
                self.estimate += price.ceiling((form + bytes) / 4 + said, most);
                bytes += observation + 2 * FRAME;
                said += most;
                replies += most;
            }
            before = bytes;
            asked = own;
            reply = most;
        }
        // What a judge is shown: question, answer and targets, the answer as long as it may be. Its tokens are not
        // those of the engine that wrote it, so twice as many are reckoned with.
        let targets: u64 = flow.targets.iter().map(|target| target.len() as u64 + 4).sum();
        for (name, frame, most) in settings.scoring.judging() {
            let Some(price) = job.aside_price(name) else { continue };
            let answers = settings.scoring.answers();
            let bytes = frame + asked + targets + 2 * FRAME;
            for _ in 0..answers {
                self.ceiling += price.ceiling(bytes + 2 * reply, u64::from(most));
                self.estimate += price.ceiling(bytes / 4 + reply, u64::from(most));
            }
        }
        // Each option after the last prompt.
        for name in settings.scoring.likelihoods() {
            let Some(price) = job.aside_price(name) else { continue };
            for option in &flow.options {
                let bytes = opening_bytes + option.len() as u64;
                self.ceiling += price.ceiling(bytes, 1);
                self.estimate += price.ceiling(bytes / 4, 1);
            }
        }
        // Searches of agents: every turn may be one, for as much as a reply holds. As for judges, another model counts.
        for search in &settings.searches {
            let Some(price) = job.aside_price(search.port()) else { continue };
            let calls = flow.steps.len() as u64 * u64::from(settings.max_turns);
            let bytes = search.query_frame() + FRAME;
            self.ceiling += price.ceiling(calls * (bytes + 2 * reply), 0);
            self.estimate += price.ceiling(calls * (bytes / 4 + reply), 0);
        }
        // Retrieval, once a step.
        for (port, bytes, most) in settings.rag.iter().flat_map(|rag| rag.asking()) {
            let Some(price) = job.aside_price(port) else { continue };
            let steps = flow.steps.len() as u64;
            let bytes = steps * bytes + questions;
            self.ceiling += price.ceiling(bytes, steps * most);
            self.estimate += price.ceiling(bytes / 4, steps * most);
        }
    }
}

impl Survey {
    /// Adds what asking a sample may cost.
    fn expect(&mut self, job: &Job, flow: &Flow, price: Option<Price>) {
        if let Some((cost, price)) = self.cost.as_mut().zip(price) {
            cost.add(job, flow, price);
        }
    }

    /// Of a workflow whose result is there as a whole: nothing has to be walked.
    pub fn of_whole(samples: &Samples, context: &Context) -> Survey {
        let info = context.store.blob(samples.info);
        let info = info.and_then(|info| serde_json::from_slice::<CellInfo>(&info).ok());
        let requests = info.and_then(|info| info.profile.cache_stats);
        Survey {
            samples: samples.summary.samples,
            samples_answered: samples.summary.samples,
            requests_answered: requests.map_or(0, |cache| cache.hits + cache.misses),
            samples_to_ask: 0,
            reasons: Vec::new(),
            may_stop: false,
            cost: None,
            unpriced: BTreeSet::new(),
        }
    }
}

/// Why some samples have no answer in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// How many samples.
    pub samples: u64,
    /// Why.
    #[serde(flatten)]
    pub why: Why,
}

/// Why a sample has no answer in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase", tag = "why")]
pub enum Why {
    /// The last run had no such sample.
    New,
    /// The last run had it with other settings or other content. Of an input that is another one for every
    /// sample, such as the flow, only the name is kept.
    Changed {
        /// What differs.
        fields: Vec<Difference>,
    },
    /// The answer was there, and is gone.
    Lost,
    /// `forge store gc` has removed it.
    Collected,
    /// A new answer is asked for.
    Forced,
}

/// The samples of an earlier run, by flow and epoch.
#[derive(Default)]
pub struct Earlier(HashMap<(String, u32), (Key, Vec<Key>)>);

/// As much of a row as is needed here.
#[derive(Deserialize)]
struct EarlierRow {
    flow: String,
    epoch: u32,
    key: Key,
    steps: Vec<EarlierStep>,
}

#[derive(Deserialize)]
struct EarlierStep {
    requests: Vec<Key>,
}

impl Earlier {
    /// Reads a table of samples; one that is gone is an empty one.
    pub fn read(context: &Context, table: Option<Digest>) -> Earlier {
        let rows = table.and_then(|table| context.store.blob(table)).unwrap_or_default();
        let lines = rows.split(|c| *c == b'\n').filter(|line| !line.is_empty());
        let row = |line| serde_json::from_slice::<EarlierRow>(line).ok();
        Earlier(
            lines
                .filter_map(row)
                .map(|row| {
                    let requests = row.steps.into_iter().flat_map(|step| step.requests).collect();
                    ((row.flow, row.epoch), (row.key, requests))
                })
                .collect(),
        )
    }

    fn sample(&self, flow: &str, epoch: u32) -> Option<Key> {
        Some(self.0.get(&(flow.to_owned(), epoch))?.0)
    }

    fn request(&self, flow: &str, number: usize) -> Option<Key> {
        self.0.get(&(flow.to_owned(), 0))?.1.get(number).copied()
    }
}

/// A request of a sample, against the same request of the last run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RequestExplained {
    /// Its position in the sample, from 0.
    pub number: usize,
    /// Its key.
    pub key: Key,
    /// Whether the store has the answer. After the first that it has not, nothing more is known.
    pub remembered: bool,
    /// What differs from the last run; `None` where that had no such request.
    pub fields: Option<Vec<Difference>>,
}

/// A sample, against the same sample of the last run.
pub struct SampleExplained {
    /// What it depends on.
    pub recipe: Recipe,
    /// What it depended on.
    pub before: Option<Recipe>,
    /// Its requests, as far as the store can tell.
    pub requests: Vec<RequestExplained>,
}

impl Workflow {
    /// Walks all samples against the store alone. `earlier` is what the last run had.
    pub async fn survey(
        &self,
        inputs: &Inputs,
        context: &Context,
        earlier: &Earlier,
    ) -> Result<Survey, StageError> {
        let forced = self.mode(context) == Mode::Afresh;
        let job = self.job(inputs, context, Mode::Frozen, context.stop.clone())?;
        let (flows, engine) = self.sources(inputs);
        // Of an engine that costs nothing, or has no price, a judge may have one all the same.
        let free = Price { input: 0.0, output: 0.0, cached_input: None };
        let judged = job.aside_tariffs.values().any(Option::is_some);
        let price = engine.backend.price().or_else(|| judged.then_some(free));
        let mut reader = flows.reader();
        let mut survey = Survey { cost: price.map(|_| Ahead::default()), ..Survey::default() };
        let mut reasons: BTreeMap<Why, u64> = BTreeMap::new();
        let mut ended = false;
        while !ended {
            let mut chunk = Vec::new();
            while chunk.len() < AT_ONCE && !ended {
                match reader.next().await? {
                    None => ended = true,
                    Some(flow) => chunk.extend((0..self.epochs).map(|epoch| (flow.clone(), epoch))),
                }
            }
            survey.samples += chunk.len() as u64;
            if forced {
                for (flow, _) in &chunk {
                    survey.expect(&job, flow, price);
                }
                *reasons.entry(Why::Forced).or_default() += chunk.len() as u64;
                continue;
            }
            let job = &job;
            let looked = chunk.iter().map(|(flow, epoch)| async move {
                match run_sample(job, flow, *epoch).await {
                    Err(GivenUp { failure: Failure::Missing(_), .. }) => {
                        Err(Ok((why(job, flow, *epoch, earlier, context).await, flow)))
                    }
                    Err(other) => Err(Err(other.failure)),
                    Ok(found) => Ok(found),
                }
            });
            let mut looked = stream::iter(looked).buffer_unordered(AT_ONCE);
            while let Some(result) = looked.next().await {
                match result {
                    Ok(ran) => {
                        survey.samples_answered += 1;
                        let observed = &ran.observed;
                        let requests = observed.requests.len() + observed.scoring.len();
                        survey.requests_answered += requests as u64;
                    }
                    Err(Ok((why, flow))) => {
                        survey.expect(job, flow, price);
                        *reasons.entry(why).or_default() += 1;
                    }
                    Err(Err(Failure::User(words))) => return Err(StageError::User(words)),
                    Err(Err(other)) => return Err(StageError::Failed(other.to_string())),
                }
            }
        }
        survey.reasons =
            reasons.into_iter().map(|(why, samples)| Reason { samples, why }).collect();
        survey.reasons.sort_by_key(|reason| std::cmp::Reverse(reason.samples));
        survey.may_stop = self.stop_when.is_some();
        survey.samples_to_ask = survey.reasons.iter().map(|reason| reason.samples).sum();
        if let (Some(rag), Some(cost)) = (&job.settings.rag, survey.cost.as_mut())
            && let Some(price) = job.aside_price(rag::EMBEDDINGS)
            && survey.samples_to_ask > 0
        {
            let bytes = rag.bytes_to_embed(&job.store, forced).await;
            cost.ceiling += price.ceiling(bytes, 0);
            cost.estimate += price.ceiling(bytes / 4, 0);
        }
        if let Some(cost) = survey.cost.as_mut().filter(|_| survey.samples_to_ask > 0) {
            let mut engines = BTreeSet::new();
            for name in job.settings.scoring.likelihoods() {
                let price = job.aside_price(name);
                let Some((price, (engine, request))) = price.zip(job.doors.proof(name)) else {
                    continue;
                };
                // Once, whoever asks.
                if engines.insert(engine) {
                    let (bytes, most) = (prompt_ceiling(&request), request.sampling.max_tokens);
                    cost.ceiling += price.ceiling(bytes, u64::from(most));
                    cost.estimate += price.ceiling(bytes / 4, u64::from(most));
                }
            }
            for search in &job.settings.searches {
                let Some(price) = job.aside_price(search.port()) else { continue };
                let bytes = search.bytes_to_embed(&job.store, forced).await;
                cost.ceiling += price.ceiling(bytes, 0);
                cost.estimate += price.ceiling(bytes / 4, 0);
            }
            cost.with_retries = cost.ceiling * f64::from(1 + self.limits.max_retries);
        }
        if survey.samples_to_ask > 0 {
            let own = (engine.tariff() == Some(None)).then_some(&engine.stage);
            let aside = job.aside_tariffs.iter().filter(|(_, price)| price.is_none());
            survey.unpriced = own.into_iter().chain(aside.map(|(name, _)| name)).cloned().collect();
        }
        Ok(survey)
    }

    /// A sample by the name of its flow, and its requests; `None` where there is no such flow.
    pub async fn explain_sample(
        &self,
        flow: &str,
        inputs: &Inputs,
        context: &Context,
        earlier: &Earlier,
    ) -> Result<Option<SampleExplained>, StageError> {
        let (flows, _) = self.sources(inputs);
        let mut reader = flows.reader();
        let found = loop {
            match reader.next().await? {
                None => return Ok(None),
                Some(found) if found.id == flow => break found,
                Some(_) => {}
            }
        };
        let job = self.job(inputs, context, Mode::Frozen, context.stop.clone())?;
        let recipe = sample::recipe(&job.shared, &found, found.digest(), 0);
        let stored =
            |key: Option<Key>| async move { Some(context.store.find(key?).await?.0.recipe) };
        let before = stored(earlier.sample(flow, 0)).await;
        let (keys, missing) = match run_sample(&job, &found, 0).await {
            Ok(ran) => (ran.observed.requests.iter().map(|request| request.key).collect(), None),
            Err(GivenUp { failure: Failure::Missing(missing), .. }) => {
                (missing.before, Some(missing.recipe))
            }
            Err(other) => return Err(StageError::Failed(other.failure.to_string())),
        };
        let known: Vec<Key> = keys;
        let mut now: Vec<(Recipe, bool)> = Vec::new();
        for key in &known {
            now.extend(stored(Some(*key)).await.map(|recipe| (recipe, true)));
        }
        now.extend(missing.map(|recipe| (recipe, false)));
        let mut requests = Vec::new();
        for (number, (recipe, remembered)) in now.into_iter().enumerate() {
            let before = stored(earlier.request(flow, number)).await;
            let fields = before.map(|before| recipe.differences_from(&before));
            requests.push(RequestExplained { number, key: recipe.key(), remembered, fields });
        }
        Ok(Some(SampleExplained { recipe, before, requests }))
    }
}

async fn why(job: &Job, flow: &Flow, epoch: u32, earlier: &Earlier, context: &Context) -> Why {
    let recipe = sample::recipe(&job.shared, flow, flow.digest(), epoch);
    if context.store.collected(recipe.key()).is_some() {
        return Why::Collected;
    }
    let Some(key) = earlier.sample(&flow.id, epoch) else { return Why::New };
    if key == recipe.key() {
        return Why::Lost;
    }
    let Some((before, _)) = context.store.find(key).await else {
        let collected = context.store.collected(key).is_some();
        return if collected { Why::Collected } else { Why::Lost };
    };
    let mut fields = recipe.differences_from(&before.recipe);
    for field in fields.iter_mut().filter(|field| field.path == "flow") {
        (field.before, field.after) = (None, None);
    }
    Why::Changed { fields }
}
