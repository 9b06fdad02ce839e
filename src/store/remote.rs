//! A shared store behind an URL: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage, a network
//! folder. Knows nothing of records beyond their keys, nor of the local store.
//!
//! Objects have the names that files have in a store (`cas/ab/cdef…`), and every record is an object of its own
//! (`records/ab/cdef…`), so that two runs share results while they run. An object is written if there is none
//! yet, and who comes second takes what the first has written. Where a server ignores that condition the last
//! one stays, which costs an answer asked twice and nothing else: a name says all that its content depends on.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions,
    RetryConfig,
};
use url::Url;

use super::transfer::blob_name;
use crate::digest::{Digest, Key};

/// Failures in a row after which a shared store is left alone for a while.
const FAILURES_MAX: u32 = 3;
/// How long it is left alone.
const PAUSE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence while something is read.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Large objects get longer: as long as they take at this many bytes a second.
const SLOWEST: u64 = 256 * 1024;
/// Longest time of reading an object, whose size is not known beforehand.
const READ_TIMEOUT_TOTAL: Duration = Duration::from_secs(3600);
/// The object that says what is in the store.
const MARKER: &str = "store.toml";
const MARKER_TEXT: &str = "format = 1\nhash = \"sha256\"\n";
/// Schemes in messages.
const KNOWN: &str = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder";

/// Who writes into the shared store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Results of others are used, and ours are shared.
    ReadWrite,
    /// Results of others are used.
    ReadOnly,
}

/// How long a server may be in trouble before that is an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// The store helps a run, which goes on without it.
    Run,
    /// Moving results is all that is wanted: a server that has just started, or asks to be slower, is waited for.
    Transfer,
}

impl Patience {
    /// The client's own further attempts at a request.
    fn retries(self) -> usize {
        match self {
            Patience::Run => 2,
            Patience::Transfer => 10,
        }
    }

    /// Longest time of a small request, with what the client tries again by itself.
    fn limit(self) -> Duration {
        match self {
            Patience::Run => Duration::from_secs(30),
            Patience::Transfer => Duration::from_secs(180),
        }
    }
}

/// Why a shared store cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoteError {
    /// The user can fix it.
    #[error("{0}")]
    User(String),
    /// It may work later.
    #[error("{0}")]
    Outage(String),
}

/// Whether the shared store is asked.
#[derive(Default)]
struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
    last: String,
}

/// A shared store.
pub struct Remote {
    objects: Arc<dyn ObjectStore>,
    url: String,
    access: Access,
    patience: Patience,
    breaker: Mutex<Breaker>,
    tell: Box<dyn Fn(String) + Send + Sync>,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Remote {
    /// Opens the store at an URL. `vars` are those of the environment: credentials come from nowhere else.
    /// `tell` gets what the user should know at once.
    pub fn open(
        url: &str,
        access: Access,
        patience: Patience,
        vars: &[(String, String)],
        tell: impl Fn(String) + Send + Sync + 'static,
    ) -> Result<Remote, RemoteError> {
        let parsed = Url::parse(url).map_err(|error| {
            RemoteError::User(format!("`{url}` is no URL: {error} (known: {KNOWN})"))
        })?;
        if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some()
        {
            let shown = format!("{}://{}", parsed.scheme(), parsed.host_str().unwrap_or(""));
            return Err(RemoteError::User(format!(
                "the URL of the shared store `{shown}…` carries more than a place; credentials come from the environment"
            )));
        }
        Ok(Remote {
            objects: connect(&parsed, patience, vars)?,
            url: url.to_owned(),
            access,
            patience,
            breaker: Mutex::default(),
            tell: Box::new(tell),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether results may be written.
    pub fn may_write(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// Objects read and written so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.reads.load(Relaxed), self.writes.load(Relaxed))
    }

    /// Whether it is there and lets us in, and is a store that we know. An empty place becomes one. Where we
    /// mean to write, writing is tried: what is refused must not come out after everything was paid for.
    pub async fn probe(&self) -> Result<(), RemoteError> {
        let path = Path::from(MARKER);
        let reading = async { self.objects.get(&path).await?.bytes().await };
        match self.timed(self.patience.limit(), reading).await {
            Ok(text) if !text.starts_with(b"format = 1\n") => {
                return Err(RemoteError::User(format!(
                    "`{}` holds a shared store of another format; a newer forge may know it",
                    self.url
                )));
            }
            Ok(_) => {}
            Err(Error::NotFound { .. }) if self.may_write() => {}
            // Whoever may only read has nothing to read yet, if the place is there at all.
            Err(Error::NotFound { .. }) => {
                let first = async { self.objects.list(None).next().await.transpose() };
                let listed = self.timed(self.patience.limit(), first).await;
                return listed.map(drop).map_err(|error| self.refused(&error));
            }
            Err(error) => return Err(self.refused(&error)),
        }
        if self.may_write() {
            let payload = Bytes::from_static(MARKER_TEXT.as_bytes());
            match self.create(&path, payload, false).await {
                Ok(()) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
                Err(error) => return Err(self.refused(&error)),
            }
        }
        Ok(())
    }

    /// An error of the first request: what a server answers with 4xx or a redirect, the user can mend.
    fn refused(&self, error: &Error) -> RemoteError {
        let explained = self.explain(error);
        let text = error.to_string();
        let status = ["status code: 4", "status code: 3", "redirect"];
        match explained {
            RemoteError::Outage(message) if status.iter().any(|status| text.contains(status)) => {
                RemoteError::User(message)
            }
            explained => explained,
        }
    }

    /// The line of a key; `None` where there is none.
    pub(super) async fn record(&self, key: Key) -> Result<Option<Bytes>, RemoteError> {
        self.read(&Path::from(record_name(key)), self.patience.limit()).await
    }

    /// The bytes of a blob, unchecked; `None` where there is none.
    pub(super) async fn blob(&self, digest: Digest) -> Result<Option<Bytes>, RemoteError> {
        self.read(&Path::from(blob_name(digest)), READ_TIMEOUT_TOTAL).await
    }

    /// Writes a record, or gives back the one that was there first, if `proves` says that it is one: damage
    /// is written over.
    pub(super) async fn put_record(
        &self,
        key: Key,
        line: Vec<u8>,
        supersede: bool,
        proves: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Bytes>, RemoteError> {
        let path = Path::from(record_name(key));
        let line = Bytes::from(line);
        match self.guarded(self.create(&path, line.clone(), supersede)).await {
            Ok(()) => Ok(None),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                let winner = self.read(&path, self.patience.limit()).await?;
                if winner.as_ref().is_some_and(|winner| proves(winner)) {
                    return Ok(winner);
                }
                let written = self.guarded(self.create(&path, line, true)).await;
                written.map(|()| None).map_err(|error| self.explain(&error))
            }
            Err(error) => Err(self.explain(&error)),
        }
    }

    /// Writes a blob, unless one of its length is there.
    pub(super) async fn put_blob(&self, digest: Digest, bytes: Vec<u8>) -> Result<(), RemoteError> {
        let path = Path::from(blob_name(digest));
        let head = self.guarded(self.timed(self.patience.limit(), self.objects.head(&path))).await;
        let overwrite = match head {
            Ok(meta) if meta.size == bytes.len() as u64 => return Ok(()),
            Ok(_) => true,
            Err(Error::NotFound { .. }) => false,
            Err(error) => return Err(self.explain(&error)),
        };
        match self.guarded(self.create(&path, bytes.into(), overwrite)).await {
            Ok(()) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
            Err(error) => Err(self.explain(&error)),
        }
    }

    /// All keys and blobs there are.
    pub(super) async fn list(&self) -> Result<(Vec<Key>, Vec<Digest>), RemoteError> {
        let mut keys = Vec::new();
        let mut digests = Vec::new();
        for folder in ["records", "cas"] {
            let path = Path::from(folder);
            let mut objects = self.objects.list(Some(&path)).into_stream();
            while let Some(object) = objects.next().await {
                let object = object.map_err(|error| self.explain(&error))?;
                let name = object.location.as_ref().trim_start_matches(folder).replace('/', "");
                match folder {
                    "records" => keys.extend(name.parse::<Key>().ok()),
                    _ => digests.extend(name.parse::<Digest>().ok()),
                }
            }
        }
        keys.sort();
        digests.sort();
        Ok((keys, digests))
    }

    async fn read(&self, path: &Path, limit: Duration) -> Result<Option<Bytes>, RemoteError> {
        let reading = async { self.objects.get(path).await?.bytes().await };
        match self.guarded(self.timed(limit, reading)).await {
            Ok(bytes) => {
                self.reads.fetch_add(1, Relaxed);
                Ok(Some(bytes))
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.explain(&error)),
        }
    }

    async fn create(&self, path: &Path, bytes: Bytes, overwrite: bool) -> Result<(), Error> {
        let put = |mode: PutMode| {
            let options = PutOptions { mode, ..PutOptions::default() };
            self.objects.put_opts(path, bytes.clone().into(), options)
        };
        let limit = self.patience.limit() + Duration::from_secs(bytes.len() as u64 / SLOWEST);
        let mode = if overwrite { PutMode::Overwrite } else { PutMode::Create };
        match self.timed(limit, put(mode)).await {
            // A server without conditional writes.
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) if !overwrite => {
                self.timed(limit, put(PutMode::Overwrite)).await?;
            }
            other => drop(other?),
        }
        self.writes.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn timed<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let late = || Error::Generic {
            store: "shared store",
            source: format!("no answer within {}", humantime::format_duration(limit)).into(),
        };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
    }

    /// Counts failures in a row; what is merely not there is none.
    async fn guarded<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        if !self.admits() {
            let last = self.breaker().last.clone();
            return Err(Error::Generic { store: "shared store", source: last.into() });
        }
        let result = work.await;
        match &result {
            Ok(_)
            | Err(
                Error::NotFound { .. } | Error::AlreadyExists { .. } | Error::Precondition { .. },
            ) => self.close_breaker(),
            Err(error) => self.failed(error),
        }
        result
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().expect("BUG: the breaker lock is poisoned")
    }

    /// Whether it may be asked now. After a pause one request goes first, and the others wait for what comes
    /// of it.
    fn admits(&self) -> bool {
        let mut breaker = self.breaker();
        match breaker.open_until {
            Some(until) if Instant::now() < until => false,
            Some(_) => {
                breaker.open_until = Some(Instant::now() + PAUSE);
                true
            }
            None => true,
        }
    }

    /// Leaves it alone for a while, for it did not answer.
    pub fn pause(&self, error: &RemoteError) {
        {
            let mut breaker = self.breaker();
            breaker.failures = FAILURES_MAX;
            breaker.last = error.to_string();
            breaker.open_until = Some(Instant::now() + PAUSE);
        }
        self.tell_pause(&error.to_string());
    }

    fn tell_pause(&self, error: &str) {
        (self.tell)(format!(
            "{error}; going on with the local store alone, and asking again in {} s",
            PAUSE.as_secs()
        ));
    }

    /// Ends the pause: for a last attempt at the end of a run.
    pub(super) fn close_breaker(&self) {
        *self.breaker() = Breaker::default();
    }

    fn failed(&self, error: &Error) {
        let text = self.explain(error).to_string();
        let opens = {
            let mut breaker = self.breaker();
            breaker.failures += 1;
            breaker.last = cause(error);
            let opens = breaker.failures >= FAILURES_MAX && breaker.open_until.is_none();
            if opens {
                breaker.open_until = Some(Instant::now() + PAUSE);
            }
            opens
        };
        if opens {
            self.tell_pause(&text);
        }
    }

    fn explain(&self, error: &Error) -> RemoteError {
        let url = &self.url;
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                RemoteError::User(format!(
                    "the shared store `{url}` refuses these credentials; they come from the environment \
                     (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_KEY, …)"
                ))
            }
            error if matches!(error, Error::NotFound { .. }) || is_no_bucket(error) => {
                RemoteError::User(format!(
                    "there is no shared store at `{url}`: the bucket or folder does not exist"
                ))
            }
            error => RemoteError::Outage(format!(
                "the shared store `{url}` does not answer: {}",
                cause(error)
            )),
        }
    }
}

/// `records/ab/cdef…`.
fn record_name(key: Key) -> String {
    let name = key.to_string();
    format!("records/{}/{}", &name[..2], &name[2..])
}

/// The cause under layers of clients: one line. Of what a server sends only its code is shown, for the rest may
/// repeat a token.
fn cause(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    match code {
        Some((code, _)) => code.chars().take(80).collect(),
        None => text
            .split('<')
            .next()
            .unwrap_or("")
            .lines()
            .next()
            .unwrap_or("")
            .chars()
            .take(200)
            .collect(),
    }
}

/// Whether a server says that the bucket itself is not there.
fn is_no_bucket(error: &Error) -> bool {
    matches!(cause(error).as_str(), "NoSuchBucket" | "ContainerNotFound")
}

/// Variables that hold or lead to credentials, by their beginnings.
const S3_CREDENTIALS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_",
    "AWS_METADATA_ENDPOINT",
];
const GOOGLE_CREDENTIALS: &[&str] =
    &["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SKIP_SIGNATURE"];
const AZURE_CREDENTIALS: &[&str] = &[
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS",
    "AZURE_STORAGE_TOKEN",
    "AZURE_CLIENT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_MSI_ENDPOINT",
    "AZURE_IDENTITY_ENDPOINT",
    "AZURE_SKIP_SIGNATURE",
];

fn connect(
    url: &Url,
    patience: Patience,
    vars: &[(String, String)],
) -> Result<Arc<dyn ObjectStore>, RemoteError> {
    let user = |error: Error| RemoteError::User(format!("`{url}`: {}", cause(&error)));
    let unknown =
        || RemoteError::User(format!("`{url}` is no place for a shared store (known: {KNOWN})"));
    let (scheme, path) = ObjectStoreScheme::parse(url).map_err(|_| unknown())?;
    let retry = RetryConfig {
        max_retries: patience.retries(),
        retry_timeout: patience.limit(),
        ..RetryConfig::default()
    };
    let client = ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(READ_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT);
    // Every variable that a builder knows, as its own `from_env` takes them. Without credentials a builder would
    // look for them in files and on the network, which are not where they come from.
    macro_rules! build {
        ($builder:ty, $prefix:literal, $credentials:expr) => {{
            let is_credential = |name: &str| $credentials.iter().any(|c| name.starts_with(c));
            if !vars.iter().any(|(name, _)| is_credential(name)) {
                return Err(RemoteError::User(format!(
                    "there are no credentials for `{url}` in the environment (known: {}…)",
                    $credentials.join("…, ")
                )));
            }
            let builder = <$builder>::new()
                .with_retry(retry)
                .with_client_options(client)
                .with_url(url.as_str());
            let ours = vars.iter().filter(|(name, _)| name.starts_with($prefix));
            let known = ours.filter_map(|(name, value)| {
                Some((name.to_ascii_lowercase().parse().ok()?, value.clone()))
            });
            known.fold(builder, |builder, (key, value)| builder.with_config(key, value))
        }};
    }
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let store = build!(AmazonS3Builder, "AWS_", S3_CREDENTIALS).build().map_err(user)?;
            Arc::new(PrefixStore::new(store, path))
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let store = build!(GoogleCloudStorageBuilder, "GOOGLE_", GOOGLE_CREDENTIALS)
                .build()
                .map_err(user)?;
            Arc::new(PrefixStore::new(store, path))
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let store =
                build!(MicrosoftAzureBuilder, "AZURE_", AZURE_CREDENTIALS).build().map_err(user)?;
            Arc::new(PrefixStore::new(store, path))
        }
        ObjectStoreScheme::Local => {
            let folder = url.to_file_path().map_err(|()| unknown())?;
            if !folder.is_dir() {
                // Not made here: it may be a network folder that is not mounted.
                let message =
                    format!("there is no folder `{}` for a shared store", folder.display());
                return Err(RemoteError::User(message));
            }
            Arc::new(LocalFileSystem::new_with_prefix(folder).map_err(user)?)
        }
        _ => return Err(unknown()),
    })
}
