//! What a run has said, as frames of server-sent events, made once for all who listen: its log is read in pieces, and
//! the last piece, which grows, a few times a second. Knows nothing of who listens.
//!
//! With a hundred listeners the log would else be read and rendered a hundred times. A piece is named by its place in
//! the log, so that a client that comes back goes on in the middle of one, and memory is bounded by [`PIECES_MAX`].

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cached::Cached;
use cached::stores::LruCache;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::record::ServedFrom;
use crate::sample::Outcome;
use crate::store::Store;

/// Bytes of a log in one piece: about 300 samples.
const PIECE: u64 = 64 * 1024;
/// Pieces in memory, 16 MB of frames.
const PIECES_MAX: usize = 256;
/// How often the piece that grows is read.
pub const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The lines that begin in one piece of a log.
struct Piece {
    text: Bytes,
    /// Of each frame: where its line ends in the log, and where it ends in `text`.
    ends: Vec<(u64, usize)>,
    /// Where the first line begins that was not read.
    next: u64,
    read: Instant,
}

/// The frames of all runs.
pub struct Feed {
    store: Arc<Store>,
    pieces: Mutex<LruCache<(String, u64), Arc<Piece>>>,
}

/// One frame.
pub fn frame(id: Option<&str>, event: &str, data: &serde_json::Value) -> String {
    let id = id.map_or(String::new(), |id| format!("id: {id}\n"));
    // JSON has no line break of its own.
    format!("{id}event: {event}\ndata: {data}\n\n")
}

impl Feed {
    /// Of the runs of a store.
    pub fn new(store: Arc<Store>) -> Feed {
        Feed { store, pieces: Mutex::new(LruCache::new(PIECES_MAX)) }
    }

    /// The frames of the samples that ended after a place in the log of a run, as far as one piece has them, and the
    /// place where to go on. It is the same place where there is nothing more yet. What was written before `since` is
    /// in it for sure.
    pub fn after(&self, run: &str, place: u64, since: Option<Instant>) -> (Bytes, u64) {
        let piece = self.piece(run, place / PIECE, since);
        let known = piece.ends.partition_point(|(line, _)| *line <= place);
        let start = known.checked_sub(1).map_or(0, |last| piece.ends[last].1);
        (piece.text.slice(start..), piece.next.max(place))
    }

    fn piece(&self, run: &str, number: u64, since: Option<Instant>) -> Arc<Piece> {
        let key = (run.to_owned(), number);
        let is_whole = |piece: &Piece| piece.next >= (number + 1) * PIECE;
        let is_fresh = |piece: &Piece| match since {
            Some(since) => piece.read >= since,
            None => piece.read.elapsed() < LOOK_EVERY,
        };
        // Held while the log is read: who comes meanwhile waits for the same, a millisecond or two.
        let mut pieces = self.pieces.lock().expect("BUG: the feed lock is poisoned");
        let old = pieces.cache_get(&key).cloned();
        match old {
            Some(piece) if is_whole(&piece) || is_fresh(&piece) => piece,
            old => {
                let piece = Arc::new(self.read(run, number, old.as_deref()));
                pieces.cache_set(key, piece.clone());
                piece
            }
        }
    }

    fn read(&self, run: &str, number: u64, old: Option<&Piece>) -> Piece {
        let mut text = old.map_or_else(Vec::new, |old| old.text.to_vec());
        let mut ends = old.map_or_else(Vec::new, |old| old.ends.clone());
        let first = number * PIECE;
        let mut next = old.map_or(first, |old| old.next);
        let log = File::open(self.store.run_files(run).log()).and_then(|mut file| {
            // The line that the piece before has begun ends here, or with the byte before.
            let skips = old.is_none() && first > 0;
            file.seek(SeekFrom::Start(if skips { first - 1 } else { next }))?;
            let mut log = BufReader::new(file);
            if skips {
                next = first - 1 + log.skip_until(b'\n')? as u64;
            }
            Ok(log)
        });
        let mut line = Vec::new();
        if let Ok(mut log) = log {
            while next < first + PIECE {
                line.clear();
                let read = log.read_until(b'\n', &mut line).unwrap_or(0);
                // A torn line is whole once its writer has gone on.
                if read == 0 || line.last() != Some(&b'\n') {
                    break;
                }
                next += read as u64;
                if let Some(data) = sample(&line) {
                    let data = json!(data);
                    let id = format!("{run}:{next}");
                    text.extend_from_slice(frame(Some(&id), "sample", &data).as_bytes());
                    ends.push((next, text.len()));
                }
            }
        }
        Piece { text: text.into(), ends, next, read: Instant::now() }
    }
}

/// What a line of a log says of a sample. Read without the detour that an enum of all events takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    #[serde(skip_serializing)]
    event: Finished,
    /// Position: flow × epochs + epoch.
    pub index: u64,
    /// The row.
    #[serde(rename(serialize = "example_id"))]
    pub flow: String,
    /// The workflow stage.
    pub stage: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the first scorer holds it right.
    #[serde(rename(serialize = "is_correct"))]
    pub correct: Option<bool>,
    /// Where it came from.
    pub served_from: ServedFrom,
    /// From start to score, without the wait for the engine's permit.
    pub latency_ms: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Finished {
    #[serde(rename = "sample_finished")]
    Sample,
}

/// What a line says of a sample, if it is about one.
pub fn sample(line: &[u8]) -> Option<SampleLine> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_client_goes_on_wherever_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path().try_into().unwrap()).unwrap());
        let run = ulid::Ulid::new().to_string();
        drop(store.create_run(&run).unwrap());
        let line = |i: usize| {
            let flow = format!("row {i} {}", "x".repeat(i % 97));
            let head = format!(
                "{{\"event\":\"sample_finished\",\"stage\":\"ask\",\"index\":{i},\"flow\":\"{flow}\""
            );
            let rest = "\"outcome\":\"answered\",\"correct\":true,\"served_from\":\"live\",\"latency_ms\":1.5,\
                        \"requests\":{\"live\":1,\"memory\":0,\"disk\":0,\"remote\":0,\"coalesced\":0},\"output_tokens\":null}";
            format!("{head},{rest}\n")
        };
        let notice = "{\"event\":\"notice\",\"stage\":null,\"message\":\"m\"}\n";
        let all: String =
            (0..1000).map(|i| line(i) + if i % 7 == 0 { notice } else { "" }).collect();
        assert!(all.len() as u64 > 3 * PIECE);
        let mut log = File::options().append(true).open(store.run_files(&run).log()).unwrap();
        // The last line is torn.
        log.write_all(&all.as_bytes()[..all.len() - 5]).unwrap();
        let feed = Feed::new(store);
        let read_from = |mut place: u64| {
            let mut text = String::new();
            loop {
                let (more, next) = feed.after(&run, place, None);
                text.push_str(std::str::from_utf8(&more).unwrap());
                if next == place {
                    return text;
                }
                place = next;
            }
        };
        let whole = read_from(0);
        assert_eq!(whole.matches("event: sample").count(), 999);
        let frames: Vec<&str> = whole.split_inclusive("\n\n").collect();
        for i in [0, 1, 250, 251, 600, 997] {
            let id = frames[i].lines().next().unwrap().strip_prefix("id: ").unwrap();
            let place = id.split_once(':').unwrap().1.parse().unwrap();
            assert_eq!(read_from(place), frames[i + 1..].concat(), "after {i}");
        }
        assert_eq!(read_from(u64::MAX / 2), "");
        // Once its writer has gone on, the torn line is whole.
        log.write_all(&all.as_bytes()[all.len() - 5..]).unwrap();
        std::thread::sleep(LOOK_EVERY);
        assert_eq!(read_from(0).matches("event: sample").count(), 1000);
    }
}
