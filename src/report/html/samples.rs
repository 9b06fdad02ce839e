//! Samples on their way into a page: blocks that it unpacks when somebody looks at them. Knows nothing of the page.
//!
//! A block is a JSON array of all that its rows hold, compressed (raw deflate, RFC 1951) and in base64; its element says
//! how many rows those are. Blocks hold rows of one workflow, in its order, and come in the order of the indexes
//! (`index.rs`). One block at a time is in memory, here and in the page.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::{Compress, Compression, FlushCompress, Status};
use serde::Serialize;

use super::question;
use crate::digest::{Digest, Key};
use crate::record::{Phase, RequestObserved};
use crate::report::Row;
use crate::sample::{Reading, RetrievalInfo, Role, Score, Trace};

/// Bytes of JSON after which a block is full. Repeated prompts compress within a window of 32 KiB, so that larger
/// blocks would be no smaller in sum, and slower to open one sample of.
const BLOCK_BYTES: usize = 128 * 1024;
/// Rows after which it is full.
const BLOCK_ROWS: usize = 500;

/// Collects rows and gives blocks.
pub(super) struct Packer {
    /// The workflow whose rows are collected, and how many there are.
    cell: usize,
    rows: usize,
    /// The rows so far, a JSON array without its end.
    json: String,
    compress: Compress,
}

impl Packer {
    /// Without rows.
    pub(super) fn new() -> Self {
        let compress = Compress::new(Compression::new(6), false);
        Packer { cell: 0, rows: 0, json: String::new(), compress }
    }

    /// Adds a row of a workflow; gives the block before it, where that is full or of another workflow.
    pub(super) fn add(&mut self, cell: usize, row: &Row) -> Option<String> {
        let full = self.json.len() >= BLOCK_BYTES || self.rows >= BLOCK_ROWS;
        let done = if full || self.cell != cell { self.finish() } else { None };
        self.cell = cell;
        self.rows += 1;
        self.json.push(if self.json.is_empty() { '[' } else { ',' });
        let view = serde_json::to_string(&View::of(row)).expect("BUG: a sample is plain data");
        self.json.push_str(&view);
        done
    }

    /// The last block; `None` without rows since the one before.
    pub(super) fn finish(&mut self) -> Option<String> {
        if self.rows == 0 {
            return None;
        }
        self.json.push(']');
        let rows = std::mem::take(&mut self.rows);
        let mut block = format!(
            "<script type=\"application/octet-stream\" class=\"block\" data-rows=\"{rows}\">"
        );
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
pub(super) fn short(ms: f64) -> f64 {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    retrieval: Option<&'a RetrievalInfo>,
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
            phases_ms: request.phases_ms.iter().map(|(phase, ms)| (phase, short(ms))).collect(),
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
            retrieval: step.retrieval_info.as_ref(),
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

/// What a page would read, for tests: its indexes, and the rows of each block.
#[cfg(test)]
pub(super) fn unpacked(page: &str) -> (Vec<serde_json::Value>, Vec<Vec<serde_json::Value>>) {
    let inside = |class: &str| -> Vec<(String, String)> {
        let start = format!(" class=\"{class}\"");
        let parts = page.split(&start).skip(1).map(|part| {
            let (attributes, rest) = part.split_once('>').unwrap();
            (attributes.to_owned(), rest.split("</script>").next().unwrap().to_owned())
        });
        parts.collect()
    };
    let rows = |(attributes, block): &(String, String)| {
        let bytes = BASE64_STANDARD.decode(block).unwrap();
        let mut json = Vec::with_capacity(1 << 20);
        let mut inflate = flate2::Decompress::new(false);
        inflate.decompress_vec(&bytes, &mut json, flate2::FlushDecompress::Finish).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&json).unwrap();
        assert_eq!(*attributes, format!(" data-rows=\"{}\"", rows.len()));
        rows
    };
    let index = |(_, text): &(String, String)| serde_json::from_str(text).unwrap();
    (inside("index").iter().map(index).collect(), inside("block").iter().map(rows).collect())
}

#[cfg(test)]
mod tests {
    use super::super::super::markdown::tests::row;
    use super::*;

    #[test]
    fn a_full_block_goes_and_none_is_lost() {
        let mut packer = Packer::new();
        let mut page = String::new();
        for i in 0..1300 {
            let cell = usize::from(i >= 700);
            page.extend(packer.add(cell, &row(&format!("q{i}"), Some("42"), Some(true))));
        }
        page.extend(packer.finish());
        assert_eq!(packer.finish(), None);
        let (_, blocks) = unpacked(&page);
        let flows: Vec<_> = blocks.iter().flatten().map(|row| row["flow"].clone()).collect();
        assert_eq!(flows, (0..1300).map(|i| format!("q{i}")).collect::<Vec<_>>());
        assert!(blocks.iter().all(|rows| rows.len() <= BLOCK_ROWS));
        // None has rows of both workflows.
        let ends = blocks.iter().scan(0, |rows, block| {
            *rows += block.len();
            Some(*rows)
        });
        assert!(ends.into_iter().any(|end| end == 700));
    }

    #[test]
    fn what_does_not_compress_is_whole_too() {
        let noise: String = (0..300_000_u32)
            .map(|i| char::from(b'0' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 70))
            .collect();
        let mut packer = Packer::new();
        packer.add(0, &row("q", Some(&noise), None));
        let page = packer.finish().unwrap();
        assert_eq!(unpacked(&page).1[0][0]["answer"], noise);
    }
}
