//! Samples on their way into a page: blocks that it unpacks when somebody looks at them. Knows nothing of the page.
//!
//! A block is two elements. The first is an index in plain JSON, by which the page filters and sorts without
//! unpacking anything:
//!
//! ```text
//! { "cell": 0, "rows": 2, "epoch": [0, 0], "latency": [12.5, 13],
//!   "outcome": { "values": ["answered"], "at": [0, 0] }, "verdict": …, "served": …, "tags": [{ … }, …] }
//! ```
//!
//! The second holds all else of the same rows: a JSON array, compressed (raw deflate, RFC 1951) and in base64. Blocks
//! hold rows of one workflow, in its order. One block at a time is in memory, here and in the page.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::{Compress, Compression, FlushCompress, Status};
use serde::Serialize;

use super::question;
use crate::digest::{Digest, Key};
use crate::record::{Phase, RequestObserved};
use crate::report::Row;
use crate::sample::{Reading, Role, Sample, Score, Trace};

/// Bytes of JSON after which a block is full. Repeated prompts compress within a window of 32 KiB, so that larger
/// blocks would be no smaller in sum, and slower to open one sample of.
const BLOCK_BYTES: usize = 128 * 1024;
/// Rows after which it is full.
const BLOCK_ROWS: usize = 500;

/// What the first scorer says of a sample, in a word.
fn verdict(sample: &Sample) -> &'static str {
    match sample.scores.first().and_then(Score::is_right) {
        Some(true) => "right",
        Some(false) => "wrong",
        None => "not scored",
    }
}

/// Values of a column: each different one once, and where it stands.
#[derive(Serialize, Default)]
struct Column {
    values: Vec<Option<String>>,
    at: Vec<usize>,
    #[serde(skip)]
    known: HashMap<Option<String>, usize>,
}

impl Column {
    fn push(&mut self, value: Option<&str>) {
        let value = value.map(str::to_owned);
        let next = self.values.len();
        let place = *self.known.entry(value.clone()).or_insert(next);
        if place == next {
            self.values.push(value);
        }
        self.at.push(place);
    }
}

#[derive(Serialize, Default)]
struct Index {
    cell: usize,
    rows: usize,
    epoch: Vec<u32>,
    latency: Vec<f64>,
    outcome: Column,
    verdict: Column,
    served: Column,
    tags: Vec<Column>,
}

/// Collects rows and gives blocks.
pub(super) struct Packer {
    /// All tags of the report, sorted.
    tags: Vec<String>,
    index: Index,
    /// The rows so far, a JSON array without its end.
    json: String,
    compress: Compress,
}

impl Packer {
    /// For rows with these tags.
    pub(super) fn new(tags: Vec<String>) -> Self {
        let compress = Compress::new(Compression::new(6), false);
        Packer { tags, index: Index::default(), json: String::new(), compress }
    }

    /// Adds a row of a workflow; gives the block before it, where that is full or of another workflow.
    pub(super) fn add(&mut self, cell: usize, row: &Row) -> Option<String> {
        let full = self.json.len() >= BLOCK_BYTES || self.index.rows >= BLOCK_ROWS;
        let done = if full || self.index.cell != cell { self.finish() } else { None };
        let Row { sample, observed, .. } = row;
        let index = &mut self.index;
        index.cell = cell;
        index.rows += 1;
        index.epoch.push(sample.epoch);
        index.latency.push(short(observed.latency_ms()));
        index.outcome.push(Some(sample.outcome.name()));
        index.verdict.push(Some(verdict(sample)));
        index.served.push(Some(observed.served_from.name()));
        index.tags.resize_with(self.tags.len(), Column::default);
        for (tag, column) in self.tags.iter().zip(&mut index.tags) {
            column.push(sample.tags.get(tag).map(String::as_str));
        }
        self.json.push(if self.json.is_empty() { '[' } else { ',' });
        let view = serde_json::to_string(&View::of(row)).expect("BUG: a sample is plain data");
        self.json.push_str(&view);
        done
    }

    /// The last block; `None` without rows since the one before.
    pub(super) fn finish(&mut self) -> Option<String> {
        let index = std::mem::take(&mut self.index);
        if index.rows == 0 {
            return None;
        }
        let index = serde_json::to_string(&index).expect("BUG: an index is plain data");
        self.json.push(']');
        let mut block = String::from("<script type=\"application/json\" class=\"index\">");
        block.push_str(&inert(&index));
        block.push_str("</script>\n<script type=\"application/octet-stream\" class=\"block\">");
        BASE64_STANDARD.encode_string(deflated(&mut self.compress, &self.json), &mut block);
        block.push_str("</script>\n");
        self.json.clear();
        Some(block)
    }
}

fn deflated(compress: &mut Compress, text: &str) -> Vec<u8> {
    compress.reset();
    let mut out = Vec::with_capacity(text.len() / 3 + 64);
    loop {
        let rest = &text.as_bytes()[compress.total_in() as usize..];
        let status = compress.compress_vec(rest, &mut out, FlushCompress::Finish);
        if status.expect("BUG: memory takes all that is compressed") == Status::StreamEnd {
            return out;
        }
        out.reserve(out.capacity().max(1024));
    }
}

/// JSON in which no text can end the `<script>` around it, whatever a model said. The characters
/// occur in strings only, where their escapes mean the same.
pub(super) fn inert(json: &str) -> String {
    let mut out = String::with_capacity(json.len() + json.len() / 16);
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// A time in ms to the microsecond: what lies below is noise that does not compress.
fn short(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

/// A sample as `report.js` reads it; what is absent is left out.
#[derive(Serialize)]
struct View<'a> {
    flow: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    question: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a str>,
    targets: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    scores: &'a [Score],
    #[serde(skip_serializing_if = "<[Reading]>::is_empty")]
    readings: &'a [Reading],
    steps: Vec<StepView<'a>>,
    key: Key,
    flow_digest: Digest,
    wall_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_ms: Option<f64>,
    requests: Vec<RequestView>,
}

#[derive(Serialize)]
struct StepView<'a> {
    id: &'a str,
    transcript: Vec<(Role, &'a str)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a Trace>,
}

/// Without the time of every token, which nobody reads in a page and which would be most of it.
#[derive(Serialize)]
struct RequestView {
    key: Key,
    served_from: &'static str,
    phases_ms: BTreeMap<Phase, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    live_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_out: Option<u64>,
    attempts: u32,
}

impl RequestView {
    fn of(request: &RequestObserved) -> Self {
        RequestView {
            key: request.key,
            served_from: request.served_from.name(),
            phases_ms: request.phases_ms.iter().map(|(phase, ms)| (*phase, short(*ms))).collect(),
            live_ms: request.live_ms.map(short),
            tokens_in: request.usage.input_tokens,
            tokens_out: request.usage.output_tokens,
            attempts: request.attempts,
        }
    }
}

impl<'a> View<'a> {
    fn of(Row { sample, observed, .. }: &'a Row) -> Self {
        let step = |step: &'a crate::sample::StepRun| StepView {
            id: &step.id,
            transcript: step.transcript.iter().map(|turn| (turn.role, &*turn.content)).collect(),
            answer: step.answer.as_deref(),
            trace: step.trace.as_ref(),
        };
        View {
            flow: &sample.flow,
            question: question(sample),
            answer: sample.answer.as_deref(),
            targets: &sample.targets,
            detail: sample.detail.as_deref(),
            scores: &sample.scores,
            readings: &sample.readings,
            steps: sample.steps.iter().map(step).collect(),
            key: sample.key,
            flow_digest: sample.flow_digest,
            wall_ms: short(observed.wall_ms),
            metrics_ms: observed.metrics_ms.map(short),
            requests: observed.requests.iter().map(RequestView::of).collect(),
        }
    }
}

/// What a page would unpack, for tests: the index and the rows of each block.
#[cfg(test)]
pub(super) fn unpacked(page: &str) -> Vec<(serde_json::Value, Vec<serde_json::Value>)> {
    let inside = |class: &str| -> Vec<String> {
        let start = format!("class=\"{class}\">");
        let parts = page.split(&start).skip(1);
        parts.map(|part| part.split("</script>").next().unwrap().to_owned()).collect()
    };
    let rows = |block: &String| {
        let bytes = BASE64_STANDARD.decode(block).unwrap();
        let mut json = Vec::with_capacity(1 << 20);
        let mut inflate = flate2::Decompress::new(false);
        inflate.decompress_vec(&bytes, &mut json, flate2::FlushDecompress::Finish).unwrap();
        serde_json::from_slice(&json).unwrap()
    };
    let index = |text: &String| serde_json::from_str(text).unwrap();
    inside("index").iter().map(index).zip(inside("block").iter().map(rows)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::markdown::tests::row;
    use super::*;

    #[test]
    fn a_full_block_goes_and_none_is_lost() {
        let mut packer = Packer::new(vec!["topic".to_owned()]);
        let mut page = String::new();
        for i in 0..1300 {
            let cell = usize::from(i >= 700);
            page.extend(packer.add(cell, &row(&format!("q{i}"), Some("42"), Some(true))));
        }
        page.extend(packer.finish());
        assert_eq!(packer.finish(), None);
        let blocks = unpacked(&page);
        let flows = blocks.iter().flat_map(|(_, rows)| rows).map(|row| row["flow"].clone());
        assert_eq!(
            flows.collect::<Vec<_>>(),
            (0..1300).map(|i| format!("q{i}")).collect::<Vec<_>>()
        );
        for (index, rows) in &blocks {
            assert_eq!(index["rows"], rows.len());
            assert!(rows.len() <= BLOCK_ROWS);
            assert_eq!(index["verdict"]["values"], serde_json::json!(["right"]));
            assert_eq!(index["tags"][0]["at"].as_array().unwrap().len(), rows.len());
        }
        let cells: Vec<_> =
            blocks.iter().map(|(index, _)| index["cell"].as_u64().unwrap()).collect();
        assert!(cells.is_sorted() && cells.contains(&1), "{cells:?}");
    }

    #[test]
    fn what_does_not_compress_is_whole_too() {
        let noise: String = (0..300_000_u32)
            .map(|i| char::from(b'0' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 70))
            .collect();
        let mut packer = Packer::new(Vec::new());
        packer.add(0, &row("q", Some(&noise), None));
        let page = packer.finish().unwrap();
        assert_eq!(unpacked(&page)[0].1[0]["answer"], noise);
    }
}
