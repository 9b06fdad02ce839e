//! The shipped GSM8K example over a few of its rows with a real engine. What so small a model makes of them is no
//! matter here, for it knows sums of two numbers: every row has to be there with its conversation, an outcome, and what
//! both extractors read.

use serde_json::Value;

pub const MANIFEST: &str = "examples/gsm8k/bench.toml";
pub const FILES: [&str; 3] =
    [MANIFEST, "examples/gsm8k/template.toml", "fixtures/gsm8k_test.jsonl"];
pub const ROWS: usize = 8;
/// That many rows, and replies for which the model has room.
pub const ARGS: &[&str] = &["--limit", "8", "--set", "max_tokens=120"];

/// Looks at the whole records of a report of these rows.
pub fn check(report: &str) {
    let report: Value = serde_json::from_str(report).unwrap();
    let cell = &report["cells"][0];
    let rows = cell["samples"].as_array().unwrap();
    assert_eq!(rows.len(), ROWS);
    let (mut answered, mut strict, mut flexible) = (0, 0, 0);
    for row in rows {
        let sample = &row["sample"];
        let outcome = sample["outcome"].as_str().unwrap();
        assert!(["answered", "truncated", "unparsable"].contains(&outcome), "{sample:#}");
        let transcript = sample["steps"][0]["transcript"].as_array().unwrap();
        let roles: Vec<_> = transcript.iter().map(|turn| turn["role"].as_str().unwrap()).collect();
        // Instructions, three worked examples, the question, and what the model said.
        assert_eq!(roles, [&["system"][..], &["user", "assistant"].repeat(4)].concat());
        let reply = transcript.last().unwrap()["content"].as_str().unwrap();
        assert!(!reply.is_empty(), "{sample:#}");
        let usage = &row["observed"]["requests"][0]["usage"];
        assert!(usage["input_tokens"].as_u64() > Some(200), "three examples and a question: {row}");
        let target: f64 = sample["targets"][0].as_str().unwrap().parse().unwrap();
        answered += usize::from(outcome == "answered");
        let scores = sample["scores"].as_array().unwrap();
        assert_eq!(scores.len(), usize::from(outcome == "answered"), "{sample:#}");
        // What was cut off is read by nobody.
        assert_eq!(sample["readings"].is_array(), outcome != "truncated", "{sample:#}");
        let Some(readings) = sample["readings"].as_array() else { continue };
        let names: Vec<_> = readings.iter().map(|reading| &reading["extractor"]).collect();
        assert_eq!(names, ["strict", "flexible"]);
        assert_eq!(readings[0]["answer"].is_string(), outcome == "answered", "{sample:#}");
        assert_eq!(readings[0]["answer"], sample["answer"]);
        strict += usize::from(readings[0]["answer"].is_string());
        // The last number as it stands in the reply, and what is said of it.
        if let Some(last) = readings[1]["answer"].as_str() {
            flexible += 1;
            let value: f64 = last.parse().unwrap();
            assert_eq!(readings[1]["scores"][0]["parsed"], last);
            assert_eq!(readings[1]["scores"][0]["value"], f64::from(u8::from(value == target)));
        }
    }
    assert!(flexible > 0, "no reply had a number: {cell:#}");
    let summary = &cell["summary"];
    let counted = |name: &str| summary["outcomes"][name].as_u64().unwrap_or(0) as usize;
    assert_eq!(counted("answered"), answered);
    assert_eq!(answered + counted("truncated") + counted("unparsable"), ROWS);
    let read: Vec<_> = [0, 1].map(|i| summary["extractors"][i]["read"].clone()).into();
    assert_eq!(read, [strict, flexible]);
}
