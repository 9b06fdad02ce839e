//! The tables of a workflow, read for what is compared alone: most of their bytes are transcripts and times of parts,
//! which are stepped over. Knows nothing of what is made of them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};

use serde::Deserialize;

use crate::digest::{Digest, Key};
use crate::history::{HistoryError, Tables};
use crate::record::{Observed, Phase, PhasesMs, RequestObserved, ScorerRequest, ServedFrom};
use crate::report::Took;
use crate::sample::{Outcome, Sample, Score, Unscored, Usage};
use crate::store::Store;

/// A table of samples without their transcripts, and where each stands, so that few of them can be read whole.
pub struct Scores {
    table: Digest,
    /// In the order of the table.
    pub samples: Vec<Sample>,
    /// Where the row of each sample begins.
    starts: Vec<u64>,
}

impl Scores {
    /// Reads a table.
    pub fn read(store: &Store, table: Digest) -> Result<Scores, HistoryError> {
        let (mut samples, mut starts) = (Vec::new(), Vec::new());
        let mut short = String::new();
        each(store, table, |start, line| {
            let scored: Scored = serde_json::from_str(without_steps(line, &mut short))?;
            samples.push(Sample::from(scored));
            starts.push(start as u64);
            Ok(())
        })?;
        Ok(Scores { table, samples, starts })
    }
}

/// Where the rows of samples are, when the samples themselves have gone elsewhere.
pub struct Places {
    table: Digest,
    starts: HashMap<Key, u64>,
}

impl Scores {
    /// The samples, and where to find more of them.
    pub fn into_parts(self) -> (Vec<Sample>, Places) {
        let keys = self.samples.iter().map(|sample| sample.key);
        let starts = keys.zip(self.starts).collect();
        (self.samples, Places { table: self.table, starts })
    }
}

impl Places {
    /// Some samples with their transcripts, in the order of the table; those that are gone meanwhile are left out.
    pub fn whole(&self, store: &Store, wanted: &[Key]) -> Vec<Sample> {
        let mut starts: Vec<u64> =
            wanted.iter().filter_map(|key| self.starts.get(key)).copied().collect();
        starts.sort_unstable();
        starts.dedup();
        // The bytes were held against their name when the table was read.
        let Ok(file) = File::open(store.blob_path(self.table)) else { return Vec::new() };
        let mut file = BufReader::new(file);
        let mut row = |start: u64| -> Option<Sample> {
            let mut line = Vec::new();
            file.seek(SeekFrom::Start(start)).ok()?;
            file.read_until(b'\n', &mut line).ok()?;
            serde_json::from_slice(&line).ok()
        };
        starts.into_iter().filter_map(&mut row).collect()
    }
}

/// What the samples of a workflow took; `None` where that is not known any more.
pub fn took(store: &Store, tables: &Tables) -> Option<Took> {
    let info = tables.info(store).ok()?;
    let mut took = info.took();
    each(store, tables.observed?, |_, line| {
        took.add(&Observed::from(serde_json::from_str::<Seen>(line)?));
        Ok(())
    })
    .ok()?;
    Some(took)
}

/// Gives each row of a table with where it begins. The text is looked through once for what is no text.
fn each(
    store: &Store,
    table: Digest,
    mut take: impl FnMut(usize, &str) -> serde_json::Result<()>,
) -> Result<(), HistoryError> {
    let what = || "a table of samples".to_owned();
    let damaged = |why: String| HistoryError::Damaged { what: what(), why };
    let bytes = store.blob(table).ok_or_else(|| HistoryError::Gone { what: what() })?;
    let text = std::str::from_utf8(&bytes).map_err(|error| damaged(error.to_string()))?;
    let mut start = 0;
    let ends = memchr::memchr_iter(b'\n', text.as_bytes()).chain([text.len()]);
    for end in ends {
        let line = &text[start..end];
        if !line.trim_ascii().is_empty() {
            take(start, line).map_err(|error| damaged(error.to_string()))?;
        }
        start = (end + 1).min(text.len());
    }
    Ok(())
}

/// A row of samples without its steps, which hold most of its bytes: a parser would read each of them to find their end.
/// Steps are followed by tags alone, whose values are texts. A quote within a text has a backslash before it, so that
/// neither mark can stand in what somebody said.
fn without_steps<'r>(line: &'r str, short: &'r mut String) -> &'r str {
    let start = memchr::memmem::find(line.as_bytes(), b",\"steps\":[");
    let end = memchr::memmem::rfind(line.as_bytes(), b",\"tags\":{");
    let (Some(start), Some(end)) = (start, end) else { return line };
    if end < start {
        return line;
    }
    short.clear();
    short.push_str(&line[..start]);
    short.push_str(&line[end..]);
    short
}

/// A sample as it is scored.
#[derive(Deserialize)]
struct Scored {
    flow: String,
    flow_digest: Digest,
    epoch: u32,
    key: Key,
    outcome: Outcome,
    answer: Option<String>,
    targets: Vec<String>,
    scores: Vec<Given>,
    tags: BTreeMap<String, String>,
}

/// A score without its reasons.
#[derive(Deserialize)]
struct Given {
    scorer: String,
    value: Option<f64>,
    #[serde(default)]
    unscored: Option<Unscored>,
}

impl From<Scored> for Sample {
    fn from(scored: Scored) -> Sample {
        let score = |given: Given| Score {
            scorer: given.scorer,
            value: given.value,
            unscored: given.unscored,
            ..Score::new("")
        };
        Sample {
            flow: scored.flow,
            flow_digest: scored.flow_digest,
            epoch: scored.epoch,
            key: scored.key,
            outcome: scored.outcome,
            detail: None,
            answer: scored.answer,
            targets: scored.targets,
            scores: scored.scores.into_iter().map(score).collect(),
            readings: Vec::new(),
            steps: Vec::new(),
            tags: scored.tags,
        }
    }
}

/// What was observed of a sample, as far as it is added up.
#[derive(Deserialize)]
struct Seen {
    served_from: ServedFrom,
    wall_ms: f64,
    requests: Vec<SeenRequest>,
    #[serde(default)]
    scoring: Vec<SeenScoring>,
    #[serde(default)]
    cut_short: bool,
}

#[derive(Deserialize)]
struct SeenRequest {
    key: Key,
    served_from: ServedFrom,
    phases_ms: SeenPhases,
    live_ms: Option<f64>,
    usage: Usage,
    #[serde(default)]
    unknown_attempts: u32,
    #[serde(default)]
    failed_usage: Option<Usage>,
}

/// Of the phases, the one that latencies leave out.
#[derive(Deserialize)]
struct SeenPhases {
    queue: Option<f64>,
}

#[derive(Deserialize)]
struct SeenScoring {
    scorer: String,
    request: SeenRequest,
}

impl From<Seen> for Observed {
    fn from(seen: Seen) -> Observed {
        let scoring = seen.scoring.into_iter();
        Observed {
            served_from: seen.served_from,
            wall_ms: seen.wall_ms,
            requests: seen.requests.into_iter().map(RequestObserved::from).collect(),
            metrics_ms: None,
            cut_short: seen.cut_short,
            scoring: scoring
                .map(|made| ScorerRequest { scorer: made.scorer, request: made.request.into() })
                .collect(),
        }
    }
}

impl From<SeenRequest> for RequestObserved {
    fn from(seen: SeenRequest) -> RequestObserved {
        let phases_ms: PhasesMs =
            seen.phases_ms.queue.map(|ms| (Phase::Queue, ms)).into_iter().collect();
        RequestObserved {
            key: seen.key,
            served_from: seen.served_from,
            phases_ms,
            live_ms: seen.live_ms,
            usage: seen.usage,
            attempts: 0,
            unknown_attempts: seen.unknown_attempts,
            failed_usage: seen.failed_usage,
            retries: Vec::new(),
            timing: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::ProfileBuilder;
    use crate::report::CellInfo;

    /// One row as a workflow writes it, of each table.
    const SAMPLE: &str = r#"{"flow":"q\"1","flow_digest":"aac44b96a3802c05362c7ec3d0d4e76249dbad36cb09ff98721a7ac988833fd6","epoch":0,"key":"6ce97e4e90fd6cf7173066d24d20942a6a71b0eb9adb6b21579fb97c76888923","outcome":"answered","answer":"ü","targets":["0"],"scores":[{"scorer":"exact_match","value":0.0,"parsed":"ü"},{"scorer":"judge","value":null,"unscored":"abstained","detail":"no"}],"steps":[{"id":"answer","transcript":[{"role":"user","content":"What?"},{"role":"assistant","content":"ü"}],"answer":"ü","requests":["cca2375270611771edcddb8ac1ff8a7c5a42151c83a98c9c8f1cb72f7994548e"]}],"tags":{"topic":"a"}}"#;
    const OBSERVED: &str = r#"{"served_from":"live","wall_ms":7.5,"requests":[{"key":"2d7e4246f74de62f9b246b4600d4f06a096fe9f1c0a719f9874953e88191e855","served_from":"live","phases_ms":{"prompt_build":0.008,"queue":2.5,"api_call":4.9},"live_ms":4.9,"usage":{"input_tokens":11,"output_tokens":3},"attempts":1,"timing":{"start_ms":41.9,"e2e_ms":4.9,"close_ms":4.9,"events":0}}],"metrics_ms":0.1,"scoring":[{"scorer":"judge","request":{"key":"2d7e4246f74de62f9b246b4600d4f06a096fe9f1c0a719f9874953e88191e855","served_from":"disk","phases_ms":{},"live_ms":1.0,"usage":{"input_tokens":1,"output_tokens":1},"attempts":0}}]}"#;

    #[test]
    fn what_is_left_out_changes_no_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = camino::Utf8Path::from_path(folder.path()).unwrap();
        let store = Store::open(path).unwrap();
        let rows = |row: &str| format!("{row}\n{row}\n");
        let samples = store.put_blob(rows(SAMPLE).as_bytes()).unwrap();
        let observed = store.put_blob(rows(OBSERVED).as_bytes()).unwrap();
        let info = format!(
            "{{\"method\":\"naive\",\"config\":{{}},\"execution\":{{}},\"inputs\":{{}},\"engine\":{{}},\
             \"admission\":\"\",\"price\":{{\"input\":1.0,\"output\":2.0}},\"profile\":{}}}",
            serde_json::to_string(&ProfileBuilder::default().finish(None, 1, None)).unwrap()
        );
        let info = store.put_blob(info.as_bytes()).unwrap();
        let tables = Tables { samples, observed: Some(observed), info: Some(info) };

        let whole: Sample = serde_json::from_str(SAMPLE).unwrap();
        let (bare, places) = Scores::read(&store, samples).unwrap().into_parts();
        assert_eq!(bare.len(), 2);
        let said = |sample: &Sample| {
            let scores = sample.scores.iter();
            let scores: Vec<_> = scores.map(|s| (s.scorer.clone(), s.value, s.unscored)).collect();
            (sample.flow.clone(), sample.key, sample.answer.clone(), sample.tags.clone(), scores)
        };
        assert_eq!(said(&bare[1]), said(&whole));
        assert!(bare[1].steps.is_empty());
        // Whatever is said and tagged, and whatever a row lacks.
        let marks = r#"],"tags":{"a":"b"}} ,"steps":["#;
        let mut odd = whole.clone();
        odd.answer = Some(marks.to_owned());
        odd.steps[0].transcript[0].content = marks.to_owned();
        odd.tags = BTreeMap::from([(marks.to_owned(), marks.to_owned())]);
        let row = serde_json::to_string(&odd).unwrap();
        let mut short = String::new();
        let cut = without_steps(&row, &mut short);
        assert!(cut.len() < row.len());
        let scored: Scored = serde_json::from_str(cut).unwrap();
        assert_eq!((scored.answer, scored.tags), (odd.answer, odd.tags));
        assert_eq!(without_steps("{}", &mut short), "{}");
        assert_eq!(places.whole(&store, &[whole.key]), std::slice::from_ref(&whole));

        let seen: Observed = serde_json::from_str(OBSERVED).unwrap();
        let info: CellInfo = tables.info(&store).unwrap();
        let mut of_all = info.took();
        of_all.add(&seen);
        of_all.add(&seen);
        let got = took(&store, &tables).unwrap();
        assert_eq!((&got.live, got.usage), (&of_all.live, of_all.usage));
        assert_eq!(got.live, [5.0, 5.0]);
        assert_eq!(got.cost, of_all.cost);
        assert_eq!(got.tokens_per_s(), of_all.tokens_per_s());
    }
}
