//! What the interface and the pages both do: the calls behind an address, with errors for their clients. Knows nothing of
//! how an answer looks.

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Server;
use super::compare::{Statistics, statistics};
use super::db::{Experiment, Filter, Status};
use super::error::ApiError;
use super::experiment::{Issue, NewExperiment, ReasoningMethod};
use super::manifest::manifest;
use super::results::Found;
use super::rows::Want;
use super::runs::{pipeline_name, project_of};
use crate::sample::Outcome;

/// Experiments or samples of a page where the client is silent.
pub(super) const LIMIT: u64 = 20;
/// Most experiments of a page.
pub(super) const LIMIT_MAX: u64 = 100;
/// Most experiments that are compared.
const COMPARED_MAX: usize = 20;

type Answer<T> = Result<T, ApiError>;

/// The pairs of a query, read by name.
pub struct Query {
    pairs: Vec<(String, String)>,
    issues: Vec<Issue>,
}

impl Query {
    /// Of a request.
    pub fn new(query: Option<&str>) -> Query {
        let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Query { pairs: pairs.into_owned().collect(), issues: Vec::new() }
    }

    /// All values of a name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let found = self.pairs.iter().filter(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a name, unless it is empty.
    pub fn text(&self, name: &str) -> Option<String> {
        self.all(name).first().filter(|text| !text.is_empty()).map(|text| (*text).to_owned())
    }

    /// The value of a name that has to be there.
    pub fn required(&mut self, name: &str) -> String {
        let found = self.text(name);
        if found.is_none() {
            self.issues.push(Issue::new(name, "is missing"));
        }
        found.unwrap_or_default()
    }

    /// A whole number.
    pub fn count(&mut self, name: &str, range: std::ops::RangeInclusive<u64>, default: u64) -> u64 {
        let Some(text) = self.text(name) else { return default };
        match text.parse::<u64>().ok().filter(|n| range.contains(n)) {
            Some(n) => n,
            None => {
                let bounds = match *range.end() {
                    u64::MAX => format!("of at least {}", range.start()),
                    end => format!("from {} to {end}", range.start()),
                };
                let issue = format!("must be a whole number {bounds}, not `{text}`");
                self.issues.push(Issue::new(name, issue));
                default
            }
        }
    }

    /// One of some words.
    pub fn choice(&mut self, name: &str, known: &[&str]) -> Option<String> {
        let text = self.text(name)?;
        if known.contains(&text.as_str()) {
            return Some(text);
        }
        let issue = format!("must be one of {}, not `{text}`", known.join(", "));
        self.issues.push(Issue::new(name, issue));
        None
    }

    /// true or false.
    pub fn boolean(&mut self, name: &str) -> bool {
        let known = ["true", "false", "1", "0"];
        matches!(self.choice(name, &known).as_deref(), Some("true" | "1"))
    }

    /// What was wrong, if anything.
    pub fn finish(self) -> Answer<()> {
        if self.issues.is_empty() { Ok(()) } else { Err(ApiError::invalid(self.issues)) }
    }
}

impl Query {
    /// Which samples are wanted: `outcome`, `correct`, `q`.
    pub fn want(&mut self) -> Want {
        let outcome = self.choice("outcome", &Outcome::ALL.map(Outcome::name));
        let correct = self.choice("correct", &["true", "false", "none"]);
        Want {
            outcome: outcome
                .and_then(|name| Outcome::ALL.into_iter().find(|one| one.name() == name)),
            correct: correct.map(|word| match word.as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            }),
            text: self.text("q"),
        }
    }
}

pub(super) fn no_experiment(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no experiment `{id}`"))
}

impl Server {
    /// The experiment of an id.
    pub fn experiment(&self, id: &str) -> Answer<(Uuid, Experiment)> {
        let uuid = Uuid::parse_str(id).map_err(|_| no_experiment(id))?;
        let found = block_in_place(|| self.db.get(uuid))?;
        Ok((uuid, found.ok_or_else(|| no_experiment(id))?))
    }

    /// Its result.
    pub fn found(&self, id: Uuid) -> Answer<Found> {
        block_in_place(|| Ok(self.results.find(&self.db.runs(id)?)?))
    }

    /// Writes an experiment down, once all that is wrong with it was said.
    pub fn create(&self, body: &Value) -> Answer<Experiment> {
        let new = NewExperiment::read(body).map_err(ApiError::invalid)?;
        let id = Uuid::new_v4();
        block_in_place(|| {
            let known = self.scan();
            let name = pipeline_name(id);
            let text = manifest(&name, &new, &known).map_err(ApiError::invalid)?;
            // What only the manifest can say, such as a method that an engine cannot serve.
            project_of(&self.root, &name, &text)
                .map_err(|errors| ApiError::invalid(vec![Issue::new("config", errors)]))?;
            Ok(self.db.create(id, &new, &text)?)
        })
    }

    /// Puts an experiment into the queue.
    pub fn start(&self, id: &str) -> Answer<Experiment> {
        let (uuid, _) = self.experiment(id)?;
        block_in_place(|| self.runs.start(uuid))?;
        Ok(self.experiment(id)?.1)
    }

    /// Ends an experiment that waits or works.
    pub async fn cancel(&self, id: &str) -> Answer<Experiment> {
        let (uuid, experiment) = self.experiment(id)?;
        if !self.end(uuid).await {
            let message =
                format!("the experiment is not active; it is {}", experiment.status.name());
            return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
        }
        Ok(self.experiment(id)?.1)
    }

    /// Ends an experiment or a job that waits or works; `false` of one that does neither.
    pub(super) async fn end(&self, id: Uuid) -> bool {
        let mut changes = self.runs.changes();
        if !self.runs.cancel(id) {
            return false;
        }
        // Most have ended at once; who has a request at the engine waits for it, and its client does not.
        let ended = async { while self.runs.is_active(id) && changes.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), ended).await;
        true
    }

    /// Hides an experiment.
    pub fn delete(&self, id: &str) -> Answer<()> {
        let (uuid, _) = self.experiment(id)?;
        match block_in_place(|| self.db.delete(uuid))? {
            true => {
                self.runs.changed();
                Ok(())
            }
            false => {
                let message = "the experiment is active; cancel it first";
                Err(ApiError::new(StatusCode::BAD_REQUEST, message))
            }
        }
    }

    /// Two experiments, compared row by row.
    pub fn statistics(&self, a: &str, b: &str) -> Answer<Statistics> {
        let ((id_a, _), (id_b, _)) = (self.experiment(a)?, self.experiment(b)?);
        let (found_a, found_b) = (self.found(id_a)?, self.found(id_b)?);
        block_in_place(|| {
            let flows = |found: &Found| -> Answer<Option<String>> {
                Ok(self.results.info(found)?.inputs.get("flows").cloned())
            };
            if flows(&found_a)? != flows(&found_b)? {
                let message = "the experiments were made of different data; only the same rows can be compared in pairs";
                return Err(ApiError::new(StatusCode::CONFLICT, message));
            }
            let (rows_a, rows_b) =
                (self.results.samples(&found_a)?, self.results.samples(&found_b)?);
            Ok(statistics((a, &rows_a), (b, &rows_b)))
        })
    }
}

/// Experiments by status.
#[derive(Serialize, ToSchema)]
pub(super) struct Stats {
    /// All.
    total: u64,
    completed: u64,
    running: u64,
    pending: u64,
    queued: u64,
    failed: u64,
    cancelled: u64,
}

impl Server {
    /// Experiments by status.
    pub(super) fn stats(&self) -> Answer<Stats> {
        let counts = block_in_place(|| self.db.counts())?;
        let of =
            |status: Status| counts.iter().find(|(own, _)| *own == status).map_or(0, |(_, n)| *n);
        Ok(Stats {
            total: counts.iter().map(|(_, n)| n).sum(),
            completed: of(Status::Completed),
            running: of(Status::Running),
            pending: of(Status::Pending),
            queued: of(Status::Queued),
            failed: of(Status::Failed),
            cancelled: of(Status::Cancelled),
        })
    }

    /// Experiments by the filters of a query.
    pub(super) fn list(&self, query: Option<&str>) -> Answer<(Filter, u64, Vec<Experiment>)> {
        let mut query = Query::new(query);
        let filter = Filter {
            status: query
                .choice("status", &Status::ALL.map(Status::name))
                .and_then(|name| Status::of(&name)),
            method: query.choice("method", &ReasoningMethod::ALL),
            model: query.text("model"),
            name: query.text("name"),
            skip: query.count("skip", 0..=u64::MAX, 0),
            limit: query.count("limit", 1..=LIMIT_MAX, LIMIT),
        };
        query.finish()?;
        let (total, experiments) = block_in_place(|| self.db.list(&filter))?;
        Ok((filter, total, experiments))
    }
}

impl Server {
    /// The profile of an experiment that was to have one and has a result.
    pub fn profile(
        &self,
        id: Uuid,
        experiment: &Experiment,
    ) -> Answer<Option<crate::record::Profile>> {
        let optimization = experiment.config.optimization.clone().unwrap_or_default();
        if !optimization.enable_profiling {
            return Ok(None);
        }
        match self.found(id) {
            Ok(found) => Ok(Some(block_in_place(|| self.results.info(&found))?.profile)),
            Err(error) if error.status == StatusCode::NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Server {
    /// Experiments beside each other.
    pub fn compared(&self, ids: &[&str]) -> Answer<Value> {
        if ids.len() < 2 {
            let message = "name at least two experiments: `experiment_ids=…&experiment_ids=…`";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
        }
        if ids.len() > COMPARED_MAX {
            let message = format!("at most {COMPARED_MAX} experiments can be compared");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
        }
        let (mut all, mut exact, mut f1, mut p50) = (vec![], vec![], vec![], vec![]);
        for id in ids {
            let (uuid, experiment) = self.experiment(id)?;
            let found = self.found(uuid)?;
            let metrics = block_in_place(|| self.results.metrics(id, &found))?;
            exact.push(metrics.quality.accuracy_exact);
            f1.push(metrics.quality.accuracy_f1);
            p50.push(metrics.performance.latency_p50);
            all.push(json!({
                "experiment_id": id,
                "experiment_name": experiment.name,
                "method": experiment.config.reasoning_method,
                "model": experiment.config.model_name,
                "metrics": metrics,
            }));
        }
        let beside = json!({ "accuracy_exact": exact, "accuracy_f1": f1, "latency_p50": p50 });
        Ok(json!({ "experiments": all, "comparison_metrics": beside }))
    }
}
