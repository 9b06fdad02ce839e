//! Manifests of the project that were put into the queue: a job for each time. Kept beside the experiments, so that
//! one queue has both. Knows nothing of how they are run.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::db::{Db, Result, Status, bad, now, samples, status};

/// A manifest of the project in the queue, at work, or done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// UUID.
    #[schema(format = "uuid")]
    pub id: String,
    /// Path of the manifest in the project.
    pub manifest: String,
    /// Name of its pipeline.
    pub name: String,
    /// Parameters that differ from the manifest's.
    pub params: BTreeMap<String, String>,
    /// Where it is in its life.
    pub status: Status,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// When its run began.
    pub started_at: Option<String>,
    /// When that ended.
    pub completed_at: Option<String>,
    /// Why it failed.
    pub error_message: Option<String>,
    /// ULID of its newest run, once it has one.
    pub run_id: Option<String>,
}

/// What an entry of the queue is to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// An experiment: the text of its manifest.
    Experiment(String),
    /// A manifest of the project, and its parameters.
    Manifest(String, BTreeMap<String, String>),
}

/// What is told of the life of an experiment or a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Life {
    /// Where it is.
    pub status: Status,
    /// Why it failed.
    pub error: Option<String>,
    /// ULID of its newest run.
    pub run: Option<String>,
    /// Of an experiment: samples that it has to run, where that is known.
    pub samples: Option<u64>,
}

const COLUMNS: &str = "id, path, name, config, status, created_at, started_at, completed_at, error_message, \
    (SELECT run_id FROM run WHERE experiment_id = id ORDER BY run.attempt DESC, run_id DESC LIMIT 1)";

fn job(row: &Row<'_>) -> Result<Job> {
    let config: String = row.get(3)?;
    Ok(Job {
        id: row.get(0)?,
        manifest: row.get(1)?,
        name: row.get(2)?,
        params: serde_json::from_str(&config).map_err(|error| bad(3, error))?,
        status: status(row, 4)?,
        created_at: row.get(5)?,
        started_at: row.get(6)?,
        completed_at: row.get(7)?,
        error_message: row.get(8)?,
        run_id: row.get(9)?,
    })
}

impl Db {
    /// Writes a new job down.
    pub fn create_job(
        &self,
        id: Uuid,
        manifest: &str,
        name: &str,
        params: &BTreeMap<String, String>,
    ) -> Result<Job> {
        let config = serde_json::to_string(params).expect("BUG: parameters are plain data");
        self.lock().execute(
            "INSERT INTO experiment (id, path, name, config, model, method, manifest, status, created_at) \
             VALUES (?, ?, ?, ?, '', '', '', 'pending', ?)",
            params![id.to_string(), manifest, name, config, now()],
        )?;
        Ok(self.job(id)?.expect("BUG: a row that was just written"))
    }

    /// Takes a job away that could not be queued.
    pub fn drop_job(&self, id: Uuid) -> Result<()> {
        let sql = "DELETE FROM experiment WHERE id = ? AND path IS NOT NULL AND status = 'pending'";
        self.lock().execute(sql, [id.to_string()]).map(drop)
    }

    /// A job.
    pub fn job(&self, id: Uuid) -> Result<Option<Job>> {
        let sql = format!("SELECT {COLUMNS} FROM experiment WHERE id = ? AND path IS NOT NULL");
        self.lock().prepare_cached(&sql)?.query_row([id.to_string()], job).optional()
    }

    /// Jobs that wait or work, in the order in which they came.
    pub fn active_jobs(&self) -> Result<Vec<Job>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM experiment WHERE path IS NOT NULL AND status IN ('queued', 'running') ORDER BY seq"
        );
        let connection = self.lock();
        let mut statement = connection.prepare_cached(&sql)?;
        let rows = statement.query_map([], job)?;
        rows.collect()
    }

    /// What an entry of the queue is to run; `None` of one that was deleted.
    pub fn work(&self, id: Uuid) -> Result<Option<Work>> {
        let sql =
            "SELECT path, config, manifest FROM experiment WHERE id = ? AND deleted_at IS NULL";
        let read = |row: &Row<'_>| match row.get::<_, Option<String>>(0)? {
            None => Ok(Work::Experiment(row.get(2)?)),
            Some(path) => {
                let params: String = row.get(1)?;
                let params = serde_json::from_str(&params).map_err(|error| bad(1, error))?;
                Ok(Work::Manifest(path, params))
            }
        };
        self.lock().prepare_cached(sql)?.query_row([id.to_string()], read).optional()
    }

    /// How an experiment or a job is; `None` of one that was deleted.
    pub fn life(&self, id: Uuid) -> Result<Option<Life>> {
        let sql = "SELECT status, error_message, \
                   (SELECT run_id FROM run WHERE experiment_id = id ORDER BY run.attempt DESC, run_id DESC LIMIT 1), \
                   samples FROM experiment WHERE id = ? AND deleted_at IS NULL";
        let read = |row: &Row<'_>| {
            Ok(Life {
                status: status(row, 0)?,
                error: row.get(1)?,
                run: row.get(2)?,
                samples: samples(row, 3)?,
            })
        };
        self.lock().prepare_cached(sql)?.query_row([id.to_string()], read).optional()
    }

    /// Names of experiments and ids of their runs, of runs that an experiment made: id and name by ULID.
    pub fn owner(&self, run: &str) -> Result<Option<(String, String)>> {
        let sql = "SELECT id, name FROM experiment JOIN run ON experiment_id = id \
                   WHERE run_id = ? AND path IS NULL AND deleted_at IS NULL";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        self.lock().prepare_cached(sql)?.query_row([run], read).optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_lives_beside_experiments_and_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join("e.sqlite")).unwrap();
        let db = Db::open(&path).unwrap();
        let (id, params) = (Uuid::new_v4(), BTreeMap::from([("n".to_owned(), "5".to_owned())]));
        let made = db.create_job(id, "pipelines/a.toml", "a", &params).unwrap();
        assert_eq!((made.params.clone(), made.run_id), (params.clone(), None));
        assert!(db.enqueue(id).unwrap());
        assert_eq!(db.active_jobs().unwrap().len(), 1);
        db.begin(id, "R1").unwrap();
        let work = Work::Manifest("pipelines/a.toml".to_owned(), params);
        assert_eq!(db.work(id).unwrap(), Some(work));
        assert_eq!(db.unfinished().unwrap(), [id]);
        db.end(id, Status::Failed, Some("why")).unwrap();
        let life = Life {
            status: Status::Failed,
            error: Some("why".to_owned()),
            run: Some("R1".to_owned()),
            samples: None,
        };
        assert_eq!(db.life(id).unwrap(), Some(life));
        // No experiment: neither found, nor listed, counted, or deleted.
        assert!(db.get(id).unwrap().is_none() && db.manifest(id).unwrap().is_none());
        assert!(db.counts().unwrap().is_empty() && !db.delete(id).unwrap());
        assert_eq!(db.owner("R1").unwrap(), None);
    }
}
