//! Experiments and their state in SQLite. Knows nothing of results: those are in the store.
//!
//! One connection behind a lock: a statement takes microseconds, and one writer is all that SQLite has. WAL lets
//! other programs read meanwhile; with `synchronous = NORMAL` what is committed survives the death of the process.

use std::sync::Mutex;

use camino::Utf8Path;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::experiment::{Config, NewExperiment};

/// Each step from one version of the database to the next; `user_version` counts them. Never edited, only added to.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE experiment (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        description TEXT,
        model TEXT NOT NULL,
        method TEXT NOT NULL,
        config TEXT NOT NULL,
        manifest TEXT NOT NULL,
        status TEXT NOT NULL,
        attempt INTEGER NOT NULL DEFAULT 0,
        created_at TEXT NOT NULL,
        started_at TEXT,
        completed_at TEXT,
        error_message TEXT,
        deleted_at TEXT
    ) STRICT;
    CREATE INDEX experiment_status ON experiment (status) WHERE deleted_at IS NULL;
    CREATE TABLE run (
        run_id TEXT PRIMARY KEY,
        experiment_id TEXT NOT NULL REFERENCES experiment (id),
        attempt INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX run_experiment ON run (experiment_id, attempt);
", "
    -- Of a job: the manifest of the project that it runs. Its `config` holds parameters, and its `manifest` nothing.
    ALTER TABLE experiment ADD COLUMN path TEXT;
    CREATE INDEX experiment_job ON experiment (status) WHERE path IS NOT NULL;
", "
    -- Samples that the newest attempt has to run: fewer than asked for where the data set has fewer rows.
    ALTER TABLE experiment ADD COLUMN samples INTEGER;
"];

/// Where an experiment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Written down.
    Pending,
    /// Waiting for its turn.
    Queued,
    /// At work.
    Running,
    /// Over.
    Completed,
    /// Over, and something went wrong.
    Failed,
    /// Ended by its user.
    Cancelled,
}

impl Status {
    /// All of them, in the order of a life.
    pub const ALL: [Status; 6] = [
        Status::Pending,
        Status::Queued,
        Status::Running,
        Status::Completed,
        Status::Failed,
        Status::Cancelled,
    ];

    /// The name in the interface and the database.
    pub fn name(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    /// The status of a name.
    pub fn of(name: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether nothing more will happen, unless somebody runs it again.
    pub fn is_over(self) -> bool {
        !self.is_active() && self != Status::Pending
    }

    /// Whether it waits for its turn or is at work.
    pub fn is_active(self) -> bool {
        matches!(self, Status::Queued | Status::Running)
    }
}

/// An experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Experiment {
    /// UUID.
    #[schema(format = "uuid")]
    pub id: String,
    /// For people.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// What is run.
    pub config: Config,
    /// Where it is in its life.
    pub status: Status,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// When its last run began.
    pub started_at: Option<String>,
    /// When that ended.
    pub completed_at: Option<String>,
    /// Why it failed.
    pub error_message: Option<String>,
    /// Samples that its last run has to make; null until that is known.
    pub samples: Option<u64>,
    /// What is to be known before its numbers are read, such as that the data set has fewer rows than were asked for.
    pub warnings: Vec<String>,
}

/// What is said of an experiment that has fewer samples than it was to have.
pub fn too_few(samples: u64, asked_for: u64) -> Option<String> {
    let rows = if samples == 1 { "1 row".to_owned() } else { format!("{samples} rows") };
    (samples < asked_for)
        .then(|| format!("{samples} of {asked_for} asked for: the data has {rows}"))
}

/// Which experiments, and which part of the list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// With this status.
    pub status: Option<Status>,
    /// With this method.
    pub method: Option<String>,
    /// Whose model contains this.
    pub model: Option<String>,
    /// Whose name contains this.
    pub name: Option<String>,
    /// So many are passed over.
    pub skip: u64,
    /// So many at most.
    pub limit: u64,
}

/// The database.
pub struct Db(Mutex<Connection>);

pub(super) type Result<T> = rusqlite::Result<T>;

/// Now: RFC 3339, UTC, in milliseconds.
pub fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

const COLUMNS: &str = "id, name, description, config, status, created_at, started_at, completed_at, error_message, samples";

impl Db {
    /// Opens the database of a file, making it if need be.
    pub fn open(path: &Utf8Path) -> std::result::Result<Db, String> {
        let fail = |error: rusqlite::Error| format!("cannot use the database `{path}`: {error}");
        let mut connection = Connection::open(path).map_err(fail)?;
        let settings = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 10000; \
                        PRAGMA foreign_keys = ON;";
        connection.execute_batch(settings).map_err(fail)?;
        migrate(&mut connection).map_err(fail).and_then(|found| match found {
            Ok(()) => Ok(()),
            Err(version) => Err(format!(
                "the database `{path}` was written by a newer forge (version {version}; this one knows {})",
                MIGRATIONS.len()
            )),
        })?;
        Ok(Db(Mutex::new(connection)))
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.0.lock().expect("BUG: the database lock is poisoned")
    }

    /// Whether it answers.
    pub fn ping(&self) -> Result<()> {
        self.lock().query_row("SELECT 1", [], |_| Ok(()))
    }

    /// Writes a new experiment down.
    pub fn create(&self, id: Uuid, new: &NewExperiment, manifest: &str) -> Result<Experiment> {
        let config = serde_json::to_string(&new.config).expect("BUG: a config is plain data");
        let (model, method) = (&new.config.model_name, new.config.reasoning_method.name());
        self.lock().execute(
            "INSERT INTO experiment (id, name, description, model, method, config, manifest, status, created_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', ?)",
            params![id.to_string(), new.name, new.description, model, method, config, manifest, now()],
        )?;
        Ok(self.get(id)?.expect("BUG: a row that was just written"))
    }

    /// An experiment, unless it was deleted.
    pub fn get(&self, id: Uuid) -> Result<Option<Experiment>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM experiment WHERE id = ? AND deleted_at IS NULL AND path IS NULL"
        );
        self.lock().prepare_cached(&sql)?.query_row([id.to_string()], experiment).optional()
    }

    /// Its manifest.
    pub fn manifest(&self, id: Uuid) -> Result<Option<String>> {
        let sql =
            "SELECT manifest FROM experiment WHERE id = ? AND deleted_at IS NULL AND path IS NULL";
        self.lock().prepare_cached(sql)?.query_row([id.to_string()], |row| row.get(0)).optional()
    }

    /// Experiments, newest first, and how many there are without `skip` and `limit`.
    pub fn list(&self, filter: &Filter) -> Result<(u64, Vec<Experiment>)> {
        let mut conditions = vec!["deleted_at IS NULL", "path IS NULL"];
        let mut values: Vec<Sql> = Vec::new();
        if let Some(status) = filter.status {
            conditions.push("status = ?");
            values.push(status.name().to_owned().into());
        }
        if let Some(method) = &filter.method {
            conditions.push("method = ?");
            values.push(method.clone().into());
        }
        let contains = [
            ("instr(lower(model), lower(?)) > 0", &filter.model),
            ("instr(lower(name), lower(?)) > 0", &filter.name),
        ];
        for (condition, part) in contains {
            if let Some(part) = part {
                conditions.push(condition);
                values.push(part.clone().into());
            }
        }
        let wanted = conditions.join(" AND ");
        let connection = self.lock();
        let total = connection
            .prepare_cached(&format!("SELECT count(*) FROM experiment WHERE {wanted}"))?
            .query_row(params_from_iter(&values), |row| row.get::<_, i64>(0))?;
        let signed = |n: u64| Sql::from(i64::try_from(n).unwrap_or(i64::MAX));
        values.extend([signed(filter.limit), signed(filter.skip)]);
        let sql = format!(
            "SELECT {COLUMNS} FROM experiment WHERE {wanted} ORDER BY seq DESC LIMIT ? OFFSET ?"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params_from_iter(&values), experiment)?;
        Ok((u64::try_from(total).unwrap_or(0), rows.collect::<Result<Vec<_>>>()?))
    }

    /// How many experiments there are, by status.
    pub fn counts(&self) -> Result<Vec<(Status, u64)>> {
        let sql = "SELECT status, count(*) FROM experiment WHERE deleted_at IS NULL AND path IS NULL GROUP BY status";
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map([], |row| Ok((status(row, 0)?, row.get::<_, i64>(1)?)))?;
        rows.map(|row| row.map(|(status, n)| (status, u64::try_from(n).unwrap_or(0)))).collect()
    }

    /// Puts an experiment that is not active into the queue, and counts a further attempt; `false` where it is
    /// active.
    pub fn enqueue(&self, id: Uuid) -> Result<bool> {
        let changed = self.lock().execute(
            "UPDATE experiment SET status = 'queued', attempt = attempt + 1, started_at = NULL, completed_at = NULL, \
             error_message = NULL, samples = NULL WHERE id = ? AND deleted_at IS NULL AND status NOT IN ('queued', 'running')",
            [id.to_string()],
        )?;
        Ok(changed == 1)
    }

    /// A run of it has begun. Gives the runs of the same attempt before, which were interrupted.
    pub fn begin(&self, id: Uuid, run: &str) -> Result<Vec<String>> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let id = id.to_string();
        transaction.execute(
            "UPDATE experiment SET status = 'running', started_at = coalesce(started_at, ?) WHERE id = ?",
            params![now(), id],
        )?;
        let before = {
            let mut statement = transaction.prepare_cached(
                "SELECT run_id FROM run JOIN experiment ON id = experiment_id AND run.attempt = experiment.attempt \
                 WHERE experiment_id = ? ORDER BY run_id",
            )?;
            let rows = statement.query_map([&id], |row| row.get(0))?;
            rows.collect::<Result<Vec<String>>>()?
        };
        transaction.execute(
            "INSERT INTO run (run_id, experiment_id, attempt) SELECT ?, id, attempt FROM experiment WHERE id = ?",
            params![run, id],
        )?;
        transaction.commit()?;
        Ok(before)
    }

    /// It is known how many samples there will be.
    pub fn expect(&self, id: Uuid, samples: u64) -> Result<()> {
        let samples = i64::try_from(samples).unwrap_or(i64::MAX);
        let sql = "UPDATE experiment SET samples = ? WHERE id = ?";
        self.lock().execute(sql, params![samples, id.to_string()]).map(drop)
    }

    /// It has ended.
    pub fn end(&self, id: Uuid, status: Status, error: Option<&str>) -> Result<()> {
        self.lock().execute(
            "UPDATE experiment SET status = ?, completed_at = ?, error_message = ? WHERE id = ?",
            params![status.name(), now(), error, id.to_string()],
        )?;
        Ok(())
    }

    /// Its runs, newest first.
    pub fn runs(&self, id: Uuid) -> Result<Vec<String>> {
        let sql =
            "SELECT run_id FROM run WHERE experiment_id = ? ORDER BY attempt DESC, run_id DESC";
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map([id.to_string()], |row| row.get(0))?;
        rows.collect()
    }

    /// Hides an experiment that is not active; `false` where it is.
    pub fn delete(&self, id: Uuid) -> Result<bool> {
        let changed = self.lock().execute(
            "UPDATE experiment SET deleted_at = ? WHERE id = ? AND deleted_at IS NULL AND path IS NULL \
             AND status NOT IN ('queued', 'running')",
            params![now(), id.to_string()],
        )?;
        Ok(changed == 1)
    }

    /// Experiments that a server before this one left in its queue or at work, oldest attempt first.
    pub fn unfinished(&self) -> Result<Vec<Uuid>> {
        let sql = "SELECT id FROM experiment WHERE status IN ('queued', 'running') AND deleted_at IS NULL \
                   ORDER BY status = 'queued', started_at, seq";
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        let ids: Vec<String> = rows.collect::<Result<_>>()?;
        Ok(ids.iter().filter_map(|id| Uuid::parse_str(id).ok()).collect())
    }
}

/// Brings the database to this version; the inner error is a version that is not known here.
fn migrate(connection: &mut Connection) -> Result<std::result::Result<(), i64>> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let Some(steps) = usize::try_from(version).ok().and_then(|done| MIGRATIONS.get(done..)) else {
        return Ok(Err(version));
    };
    for step in steps {
        transaction.execute_batch(step)?;
    }
    transaction.execute_batch(&format!("PRAGMA user_version = {}", MIGRATIONS.len()))?;
    transaction.commit()?;
    Ok(Ok(()))
}

pub(super) fn bad(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

pub(super) fn status(row: &Row<'_>, column: usize) -> Result<Status> {
    let name: String = row.get(column)?;
    Status::of(&name)
        .ok_or_else(|| bad(column, std::io::Error::other(format!("`{name}` is no status"))))
}

/// The samples of a row.
pub(super) fn samples(row: &Row<'_>, column: usize) -> Result<Option<u64>> {
    let samples: Option<i64> = row.get(column)?;
    Ok(samples.and_then(|samples| u64::try_from(samples).ok()))
}

fn experiment(row: &Row<'_>) -> Result<Experiment> {
    let config: String = row.get(3)?;
    let config: Config = serde_json::from_str(&config).map_err(|error| bad(3, error))?;
    let samples = samples(row, 9)?;
    let warning = samples.and_then(|samples| too_few(samples, config.num_samples.into()));
    Ok(Experiment {
        id: row.get(0)?,
        name: row.get(1)?,
        description: row.get(2)?,
        config,
        status: status(row, 4)?,
        created_at: row.get(5)?,
        started_at: row.get(6)?,
        completed_at: row.get(7)?,
        error_message: row.get(8)?,
        samples,
        warnings: warning.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn open() -> (tempfile::TempDir, Db) {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join("e.sqlite")).unwrap();
        (dir, Db::open(&path).unwrap())
    }

    fn new(model: &str) -> NewExperiment {
        let body = json!({"name": "n", "config": {"model_name": model, "dataset_name": "d"}});
        NewExperiment::read(&body).unwrap()
    }

    #[test]
    fn a_life_is_written_down() {
        let (_dir, db) = open();
        let id = Uuid::new_v4();
        let made = db.create(id, &new("m"), "text").unwrap();
        assert_eq!((made.status, made.config), (Status::Pending, new("m").config));
        assert!(db.enqueue(id).unwrap() && !db.enqueue(id).unwrap() && !db.delete(id).unwrap());
        assert!(db.begin(id, "R1").unwrap().is_empty());
        assert_eq!(db.unfinished().unwrap(), [id]);
        // It was to have a hundred.
        db.expect(id, 100).unwrap();
        assert_eq!(db.get(id).unwrap().unwrap().warnings, [""; 0]);
        db.expect(id, 7).unwrap();
        let short = db.get(id).unwrap().unwrap();
        assert_eq!(
            (short.samples, short.warnings),
            (Some(7), vec!["7 of 100 asked for: the data has 7 rows".to_owned()])
        );
        // The same attempt goes on in another run; a further attempt does not.
        assert_eq!(db.begin(id, "R2").unwrap(), ["R1"]);
        db.end(id, Status::Failed, Some("why")).unwrap();
        assert_eq!(db.get(id).unwrap().unwrap().error_message.as_deref(), Some("why"));
        assert!(db.enqueue(id).unwrap());
        assert_eq!(db.get(id).unwrap().unwrap().samples, None);
        assert!(db.begin(id, "R3").unwrap().is_empty());
        assert_eq!(db.runs(id).unwrap(), ["R3", "R2", "R1"]);
        db.end(id, Status::Completed, None).unwrap();
        assert!(db.delete(id).unwrap() && db.get(id).unwrap().is_none());
        assert_eq!(db.list(&Filter { limit: 10, ..Filter::default() }).unwrap().0, 0);
    }

    #[test]
    fn the_list_is_filtered_and_paged_newest_first() {
        let (_dir, db) = open();
        for model in ["Small", "big%", "small-2"] {
            db.create(Uuid::new_v4(), &new(model), "").unwrap();
        }
        let models = |filter: Filter| {
            let (total, list) = db.list(&Filter { limit: 10, ..filter }).unwrap();
            (total, list.into_iter().map(|e| e.config.model_name).collect::<Vec<_>>())
        };
        let model = |part: &str| Filter { model: Some(part.to_owned()), ..Filter::default() };
        assert_eq!(models(model("small")), (2, vec!["small-2".to_owned(), "Small".to_owned()]));
        assert_eq!(models(model("%")), (1, vec!["big%".to_owned()]));
        assert_eq!(models(Filter { skip: 2, ..Filter::default() }), (3, vec!["Small".to_owned()]));
        let none = Filter { status: Some(Status::Failed), ..Filter::default() };
        assert_eq!(models(none), (0, vec![]));
        assert_eq!(db.counts().unwrap(), [(Status::Pending, 3)]);
    }

    #[test]
    fn a_newer_database_is_left_alone() {
        let (dir, db) = open();
        db.lock().execute_batch("PRAGMA user_version = 99").unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join("e.sqlite")).unwrap();
        assert!(Db::open(&path).is_err_and(|error| error.contains("newer forge")));
    }
}
