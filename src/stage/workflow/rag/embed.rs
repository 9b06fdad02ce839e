//! The embeddings of a collection: asked for once, kept as one result, and compared with that of a question.
//! Knows nothing of how the collection is searched otherwise.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::OnceCell;

use super::{Asked, EMBEDDINGS};
use crate::digest::{Digest, Key, Recipe};
use crate::engine::{Client, Failure, Mode, unix_ms};
use crate::retrieval::{Hit, Passage, nearest};
use crate::stage::workflow::embedding;
use crate::store::{Outcome, Port, Record, Store, Witness};

/// Version of what is embedded, and of how vectors are kept.
pub(super) const REV: u32 = 1;
/// Requests for embeddings at once; the engine lets in as many as it will.
const AT_ONCE: usize = 64;
/// How often it is told how far that is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The vectors of a collection, when they are first needed.
pub(in crate::stage::workflow) struct Dense {
    /// Who asks, as it stands in what was observed.
    port: String,
    /// Of the engine, the collection, and how it is cut.
    recipe: Recipe,
    /// Stand before a question and before a passage: many models were trained with such words.
    pub(super) query_prefix: String,
    pub(super) passage_prefix: String,
    vectors: OnceCell<Vectors>,
}

struct Vectors {
    /// Numbers of each vector.
    dimension: usize,
    /// One vector after another, in the order of the collection.
    values: Vec<f32>,
}

impl Dense {
    pub(super) fn new(
        port: &str,
        recipe: Recipe,
        engine: Digest,
        prefixes: (String, String),
    ) -> Self {
        let (query_prefix, passage_prefix) = prefixes;
        let recipe = recipe
            .field("embed_rev", REV)
            .field("passage_prefix", passage_prefix.clone())
            .input(EMBEDDINGS, engine);
        let port = port.to_owned();
        Dense { port, recipe, query_prefix, passage_prefix, vectors: OnceCell::new() }
    }

    /// Adds all of it to a recipe.
    pub(super) fn describe(&self, recipe: Recipe) -> Recipe {
        recipe
            .input(EMBEDDINGS, self.of_passages())
            .field("rag_query_prefix", self.query_prefix.clone())
    }

    /// What the vectors of the passages depend on.
    pub(super) fn of_passages(&self) -> Digest {
        Digest::of_json(&self.recipe)
    }

    /// The passages that lie nearest to a question. Keys of what was asked go to `asked`.
    pub(super) async fn search(
        &self,
        door: &Client,
        question: &str,
        passages: &[Passage],
        most: usize,
        asked: &mut Asked,
    ) -> Result<Vec<Hit>, Failure> {
        let vectors =
            self.vectors.get_or_try_init(|| self.vectors_of(door, passages, asked).boxed()).await?;
        asked.keys.push(self.recipe.key());
        let text = format!("{}{question}", self.query_prefix);
        let (query, key) = embed(&self.port, door, text, "a question", asked).await?;
        asked.keys.push(key);
        if query.len() != vectors.dimension {
            return Err(Failure::User(format!(
                "`{}`: the question has {} numbers, and the passages have {}: has the model behind this name \
                 changed?",
                self.port,
                query.len(),
                vectors.dimension
            )));
        }
        Ok(nearest(&query, &vectors.values, most))
    }

    /// Whether the vectors of the collection are in the store.
    pub(super) async fn is_kept(&self, store: &Store) -> bool {
        store.find(self.recipe.key()).await.is_some()
    }

    async fn vectors_of(
        &self,
        door: &Client,
        passages: &[Passage],
        asked: &mut Asked,
    ) -> Result<Vectors, Failure> {
        let key = self.recipe.key();
        if door.mode() != Mode::Afresh
            && let Some(vectors) = self.recall(door, key, passages.len()).await
        {
            return Ok(vectors);
        }
        // Collected: a stream of closures would have to hold for passages of any lifetime.
        let halt = AtomicBool::new(false);
        let each: Vec<_> =
            passages.iter().map(|passage| self.vector_of(door, passage, &halt).boxed()).collect();
        let mut vectors = Vectors { dimension: 0, values: Vec::new() };
        let mut each = stream::iter(each).buffered(AT_ONCE);
        let (mut done, mut told) = (0, Instant::now());
        let mut failure = None;
        // After a failure nothing more is sent, and what is under way is paid for and waited for.
        while let Some(embedded) = each.next().await {
            let Some((vector, own)) = embedded else { continue };
            asked.made.extend(own.made);
            let vector = match vector {
                Ok(vector) if failure.is_none() => vector,
                Ok(_) => continue,
                Err(failed) => {
                    failure.get_or_insert(failed);
                    continue;
                }
            };
            done += 1;
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                let all = passages.len();
                door.progress(format!("`{}`: {done} of {all} passages embedded", door.name()));
            }
            if vectors.dimension == 0 {
                vectors.dimension = vector.len();
            }
            if vector.len() != vectors.dimension {
                let (one, other) = (vectors.dimension, vector.len());
                let words = format!("`{}`: vectors of {one} and of {other} numbers", self.port);
                halt.store(true, Ordering::Relaxed);
                failure = Some(Failure::User(words));
                continue;
            }
            vectors.values.extend(vector);
        }
        drop(each);
        if let Some(failure) = failure {
            return Err(failure);
        }
        if matches!(door.mode(), Mode::Live | Mode::Through | Mode::Afresh) {
            self.keep(door, key, &vectors).await?;
        }
        Ok(vectors)
    }

    /// The vector of a passage with what was asked for it; `None` where another one has failed before. A failure halts
    /// those that have not begun.
    async fn vector_of(
        &self,
        door: &Client,
        passage: &Passage,
        halt: &AtomicBool,
    ) -> Option<(Result<Vec<f32>, Failure>, Asked)> {
        if halt.load(Ordering::Relaxed) {
            return None;
        }
        let mut asked = Asked::default();
        let text = format!("{}{}", self.passage_prefix, passage.text);
        let what = format!("passage {} of `{}`", passage.number, passage.source);
        let embedded = embed(&self.port, door, text, &what, &mut asked).await;
        if embedded.is_err() {
            halt.store(true, Ordering::Relaxed);
        }
        Some((embedded.map(|(vector, _)| vector), asked))
    }

    async fn recall(&self, door: &Client, key: Key, count: usize) -> Option<Vectors> {
        let (record, _) = door.store().find(key).await?;
        door.store().find_blobs(&record).await;
        let dimension = record.inline("dimension")?.as_u64()? as usize;
        let bytes = door.store().blob(record.blob("vectors")?)?;
        let numbers = bytes.chunks_exact(4);
        let values: Vec<f32> =
            numbers.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        (values.len() == count * dimension).then_some(Vectors { dimension, values })
    }

    async fn keep(&self, door: &Client, key: Key, vectors: &Vectors) -> Result<(), Failure> {
        let bytes: Vec<u8> = vectors.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let ports = [
            ("vectors".to_owned(), Port::Blob(door.store().put_blob(&bytes)?)),
            ("dimension".to_owned(), Port::Inline(vectors.dimension.into())),
        ];
        let record = Record {
            recipe: self.recipe.clone(),
            outcome: Outcome::Value(ports.into()),
            witness: Witness {
                run: door.run().to_owned(),
                tool: env!("CARGO_PKG_VERSION").into(),
                started_unix_ms: unix_ms(),
                ..Witness::default()
            },
        };
        door.store().publish(key, record, door.mode() == Mode::Afresh).await?;
        Ok(())
    }
}

/// The embedding of a text, and the key of the request.
async fn embed(
    port: &str,
    door: &Client,
    text: String,
    what: &str,
    asked: &mut Asked,
) -> Result<(Vec<f32>, Key), Failure> {
    let answer = asked.ask(port, door, &embedding::request(text)).await?;
    let completion = answer.completion.map_err(|(code, detail)| {
        Failure::User(format!(
            "the engine `{}` refuses to embed {what} ({code}): {detail}; a smaller `chunk_size` makes shorter passages",
            door.name()
        ))
    })?;
    let vector = embedding::vector(&completion).map_err(Failure::User)?;
    Ok((vector, answer.observed.key))
}
