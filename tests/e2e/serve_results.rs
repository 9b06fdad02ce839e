//! What experiments of `forge serve` and cells of `forge bench` say of themselves: how fast, of how many, what is to be
//! known before that is read, and how two of them differ.

use std::time::Duration;

use serde_json::{Value, json};

use crate::project::Project;
use crate::serve::{Server, config, slow};

#[test]
fn throughput_is_that_of_live_samples() {
    // One after another, 50 ms each: no more than 20 a second, however fast the store is.
    let project = slow(20, "50ms");
    let server = Server::start(&project, &[]);
    let one_by_one = |samples: u32| {
        let mut config = config(samples);
        config["optimization"] = json!({ "enable_caching": true });
        config
    };
    server.complete(one_by_one(15));
    let id = server.complete(one_by_one(20));
    let metrics = server.api(&format!("/results/{id}/metrics"));
    let speed = &metrics["performance"];
    assert_eq!(
        (&speed["samples_live"], &speed["samples_remembered"]),
        (&json!(5), &json!(15)),
        "{metrics}"
    );
    let throughput = speed["throughput"].as_f64().unwrap();
    assert!(throughput > 0.0 && throughput <= 20.0, "{throughput}");
}

#[test]
fn fewer_rows_than_asked_for_are_said() {
    let project = slow(5, "20ms");
    let server = Server::start(&project, &[]);
    let id = server.create(config(10));
    assert_eq!(server.api(&format!("/experiments/{id}"))["warnings"], json!([]));
    assert_eq!(server.run(&id).status, 200);
    let done = server.wait(&id, "completed");
    let said = "5 of 10 asked for: the data has 5 rows";
    assert_eq!((&done["samples"], &done["warnings"]), (&json!(5), &json!([said])));
    // Whoever comes now is told the total that there is.
    let events = server.events(&id, None, usize::MAX);
    let last = events.iter().rfind(|(_, name, _)| name == "progress").unwrap();
    assert_eq!((&last.2["total"], &last.2["warning"]), (&json!(5), &json!(said)), "{events:?}");
    let export = server.api(&format!("/results/{id}/export"));
    assert_eq!(
        (&export["total_runs"], &export["experiment"]["warnings"]),
        (&json!(5), &json!([said]))
    );
    assert!(server.get(&format!("/experiments/{id}")).body.contains(said));
    assert!(server.get("/experiments").body.contains("5 of 10"));
    // Enough of them: nothing is said.
    let enough = server.complete(config(5));
    assert_eq!(server.api(&format!("/experiments/{enough}"))["warnings"], json!([]));
    let ran = project.forge(&["bench", "--samples", "9", "--output", "out.json"]);
    assert!(ran.stderr.contains("5 of 9 asked for"), "{}", ran.stderr);
}

#[test]
fn two_experiments_are_compared_row_by_row() {
    let project = Project::new();
    let server = Server::start(&project, &[]);
    let (a, shorter) = (server.complete(config(10)), server.complete(config(5)));
    project.edit(
        "pipelines/bench.toml",
        "{ reply = \"0\" }",
        "{ when = \"What is 7 \", reply = \"7\" }, { reply = \"0\" }",
    );
    // The project is read again within moments.
    std::thread::sleep(Duration::from_millis(2100));
    let b = server.complete(config(10));
    let beside = server.api(&format!("/results/compare?experiment_ids={a}&experiment_ids={b}"));
    assert_eq!(beside["comparison_metrics"]["accuracy_exact"], json!([0.5, 0.6]));
    let paired = |a: &str, b: &str| {
        server
            .get(&format!("/api/v1/results/compare/statistical?experiment_a={a}&experiment_b={b}"))
    };
    let statistics = paired(&a, &b).json();
    assert_eq!(
        (&statistics["num_common_examples"], &statistics["mcnemar"]["c"]),
        (&json!(10), &json!(1))
    );
    assert_eq!(statistics["mcnemar"]["p_value"], 1.0);
    let summary =
        json!({ "both_correct": 5, "both_wrong": 4, "a_only_correct": 0, "b_only_correct": 1 });
    assert_eq!(statistics["summary"], summary);
    let flips = statistics["per_example_differences"].as_array().unwrap();
    assert_eq!(
        (flips.len(), &flips[0]["example_id"], &flips[0]["b_output"]),
        (1, &json!("q7"), &json!("7"))
    );
    assert!(
        statistics["accuracy_ci_b"]["upper"].as_f64()
            > statistics["accuracy_ci_b"]["mean"].as_f64()
    );
    assert_eq!(paired(&a, &shorter).status, 409);
    // What is not answered is wrong, and not left out.
    project.edit(
        "pipelines/bench.toml",
        "{ when = \"What is 7 \", reply = \"7\" }",
        "{ reply = \"\" }",
    );
    std::thread::sleep(Duration::from_millis(2100));
    let silent = server.complete(config(10));
    let statistics = paired(&a, &silent).json();
    assert_eq!(
        (
            &statistics["num_common_examples"],
            &statistics["mcnemar"]["b"],
            &statistics["accuracy_b"]
        ),
        (&json!(10), &json!(1), &json!(0.4))
    );
    let page = server.get(&format!("/compare?experiment_ids={a}&experiment_ids={b}"));
    assert!(
        page.status == 200 && page.body.contains("Who flipped") && page.body.contains("q7"),
        "{}",
        page.body
    );
}

#[test]
fn a_bench_is_ten_cells_and_says_which_failed() {
    let project = Project::new();
    let ran = project.forge(&["bench", "--samples", "6", "--output", "out.json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let file: Value = serde_json::from_str(&project.read("out.json")).unwrap();
    let cells = file["results"].as_array().unwrap();
    assert_eq!((cells.len(), &file["num_samples"]), (10, &json!(6)));
    let named = |name: &str| cells.iter().find(|cell| cell["name"] == name).unwrap();
    assert_eq!(named("bench_naive_baseline")["cache_stats"], json!({}));
    assert_eq!(named("bench_naive_batched_4")["batch_stats"]["batches_processed"], 2);
    assert_eq!(named("bench_naive_cached")["cache_stats"]["hit_rate"], 1.0);
    assert!(named("bench_cot_batched_8")["throughput"].as_f64().unwrap() > 0.0);
    // What the store answered is no speed of the engine.
    let cached = named("bench_cot_batched_8_cached");
    assert_eq!(
        (&cached["throughput"], &cached["samples_live"], &cached["samples_remembered"]),
        (&Value::Null, &json!(0), &json!(6))
    );
    assert!(ran.stderr.contains("the store answered them all"), "{}", ran.stderr);
    assert!(ran.stdout.contains("bench_cot_baseline"));

    project.manifest("", "replies = [{ when = \"another question\", reply = \"1\" }]");
    let ran = project.forge(&["bench", "--samples", "1", "--output", "out.json"]);
    let file: Value = serde_json::from_str(&project.read("out.json")).unwrap();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(file["results"][0]["error"].as_str().unwrap().contains("ask"), "{file}");
    assert_eq!(
        project.forge(&["bench", "--samples", "1", "--output", "o", "--engine", "x"]).code,
        2
    );
}
