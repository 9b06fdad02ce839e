//! What the project has beside experiments: its manifests, put into the same queue, and all runs of its store, whoever
//! made them. Knows nothing of how an answer looks.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tokio::task::block_in_place;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Server;
use super::error::ApiError;
use super::experiment::Issue;
use super::jobs::Job;
use super::known::ManifestInfo;
use super::results::moment;
use crate::history::{HistoryError, Run};
use crate::record::{RequestCounts, RunStatus};
use crate::sample::Outcome;

type Answer<T> = Result<T, ApiError>;

/// A run of the store in a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RunInfo {
    /// ULID.
    pub run_id: String,
    /// Name of its pipeline.
    pub pipeline: String,
    /// Path of its manifest.
    pub manifest: String,
    /// `running`, `completed`, `failed`, `cancelled` or `interrupted`.
    #[schema(value_type = String)]
    pub status: RunStatus,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// Start to end; null while it goes on.
    pub wall_ms: Option<f64>,
    /// Samples of all its workflows, so far.
    pub samples: u64,
    /// Requests by who answered.
    #[schema(value_type = Object)]
    pub requests: RequestCounts,
    /// Names that it was given.
    pub tags: Vec<String>,
    /// Its workflows.
    pub workflows: Vec<WorkflowInfo>,
    /// The experiment that made it: its id.
    pub experiment_id: Option<String>,
    /// And its name.
    pub experiment_name: Option<String>,
}

/// A workflow of a run.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WorkflowInfo {
    /// Name of the stage; a cell of a matrix has its values.
    pub stage: String,
    /// `fresh`, `ran`, `failed`, `skipped`; null while it has not ended.
    pub state: Option<String>,
    /// Samples, so far.
    pub samples: u64,
    /// Samples that it has to run, where that is known.
    pub selected: Option<u64>,
    /// Share of right answers.
    pub accuracy: Option<f64>,
    /// Mean F1.
    pub f1: Option<f64>,
    /// Start to end.
    pub wall_ms: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
}

impl From<HistoryError> for ApiError {
    fn from(error: HistoryError) -> Self {
        super::results::NoResults::from(error).into()
    }
}

impl Server {
    /// Manifests of the project.
    pub fn manifests(&self) -> Vec<ManifestInfo> {
        block_in_place(|| self.known()).manifests.clone()
    }

    /// A manifest of the project and its text. Other files of it are none of a client's business.
    pub fn manifest(&self, path: &str) -> Answer<(ManifestInfo, String)> {
        block_in_place(|| {
            let of = |known: &super::known::Known| {
                known.manifests.iter().find(|one| one.path == path).cloned()
            };
            // One that was written a moment ago is looked for once more.
            let found = of(&self.known()).or_else(|| of(&self.scan()));
            let none = || ApiError::not_found(format!("the project has no manifest `{path}`"));
            let text = crate::stage::read_project_text(&self.root, path.into());
            Ok((found.ok_or_else(none)?, text.map_err(|_| none())?))
        })
    }

    /// Puts a manifest of the project into the queue.
    pub fn create_job(&self, path: &str, params: &BTreeMap<String, String>) -> Answer<Job> {
        let field = |error: ApiError| match error.status {
            StatusCode::NOT_FOUND => ApiError::invalid(vec![Issue::new("manifest", error.message)]),
            _ => error,
        };
        self.manifest(path).map_err(field)?;
        let project = block_in_place(|| self.runs.manifest(path, params));
        let project =
            project.map_err(|error| ApiError::invalid(vec![Issue::new("manifest", error)]))?;
        let id = Uuid::new_v4();
        block_in_place(|| {
            self.db.create_job(id, path, &project.manifest.name, params)?;
            if let Err(error) = self.runs.start(id) {
                self.db.drop_job(id)?;
                return Err(error.into());
            }
            self.job(&id.to_string()).map(|(_, job)| job)
        })
    }

    /// The job of an id.
    pub fn job(&self, id: &str) -> Answer<(Uuid, Job)> {
        let none = || ApiError::not_found(format!("there is no job `{id}`"));
        let uuid = Uuid::parse_str(id).map_err(|_| none())?;
        let found = block_in_place(|| self.db.job(uuid))?;
        Ok((uuid, found.ok_or_else(none)?))
    }

    /// Ends a job that waits or works.
    pub async fn cancel_job(&self, id: &str) -> Answer<Job> {
        let (uuid, job) = self.job(id)?;
        if !self.end(uuid).await {
            let message = format!("the job is not active; it is {}", job.status.name());
            return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
        }
        Ok(self.job(id)?.1)
    }

    /// The run of a ULID.
    pub fn run(&self, id: &str) -> Answer<Arc<Run>> {
        let none = || ApiError::not_found(format!("there is no run `{id}`"));
        // A name becomes that of a folder: nothing else may get so far.
        ulid::Ulid::from_string(id).map_err(|_| none())?;
        block_in_place(|| self.records.of(&id.to_uppercase()))?.ok_or_else(none)
    }

    /// A run in a list.
    pub fn run_info(&self, run: &Run) -> Answer<RunInfo> {
        let record = &run.record;
        let owner = block_in_place(|| self.db.owner(&record.run_id))?;
        let (experiment_id, experiment_name) = owner.unzip();
        let workflows = record.workflows().map(|stage| WorkflowInfo {
            stage: stage.name.clone(),
            state: stage.state.map(|state| state.name().to_owned()),
            samples: stage.samples(),
            selected: stage.selected,
            accuracy: stage.metric("accuracy"),
            f1: stage.metric("f1"),
            wall_ms: stage.wall_ms,
            error: stage.error.clone(),
        });
        Ok(RunInfo {
            run_id: record.run_id.clone(),
            pipeline: record.pipeline.clone(),
            manifest: record.manifest.clone(),
            status: record.status,
            started_at: moment(record.started_unix_ms),
            wall_ms: record.wall_ms,
            samples: record.samples(),
            requests: record.requests,
            tags: run.tags.clone(),
            workflows: workflows.collect(),
            experiment_id,
            experiment_name,
        })
    }

    /// Runs of the store, newest first, and how many there are. One that cannot be read is left out.
    pub fn runs_of_store(
        &self,
        manifest: Option<&str>,
        skip: u64,
        limit: u64,
    ) -> Answer<(u64, Vec<RunInfo>)> {
        let mut ids = block_in_place(|| self.store.runs());
        ids.reverse();
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let read = |id: &String| block_in_place(|| self.records.of(id)).ok().flatten();
        let info = |run: Arc<Run>| self.run_info(&run);
        match manifest {
            None => {
                let runs = ids.iter().skip(skip).take(limit).filter_map(read);
                Ok((ids.len() as u64, runs.map(info).collect::<Answer<_>>()?))
            }
            // Of one manifest there are few, and the newest are wanted: so many are looked at.
            Some(path) => {
                let all = ids.iter().take(LOOKED_AT).filter_map(read);
                let fits = all.filter(|run| run.record.manifest == path);
                let runs: Vec<Arc<Run>> = fits.collect();
                let page = runs.iter().skip(skip).take(limit).cloned();
                Ok((runs.len() as u64, page.map(info).collect::<Answer<_>>()?))
            }
        }
    }

    /// A workflow of a run by name; the first one where none is named.
    pub fn workflow<'a>(&self, run: &'a Run, stage: Option<&'a str>) -> Answer<&'a str> {
        let mut names = run.record.workflows().map(|stage| stage.name.as_str());
        match stage {
            None => names.next().ok_or_else(|| ApiError::not_found("the run has no workflow")),
            Some(name) => names
                .find(|own| *own == name)
                .ok_or_else(|| ApiError::not_found(format!("the run has no workflow `{name}`"))),
        }
    }
}

/// Runs that are looked at for those of one manifest.
const LOOKED_AT: usize = 200;

/// A parameter as the command line takes it.
pub fn param(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The names of outcomes, for forms.
pub fn outcomes() -> Vec<&'static str> {
    Outcome::ALL.map(Outcome::name).to_vec()
}
