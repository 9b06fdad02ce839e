//! Samples in the forms of other tools, read by their own readers. `tests/services/readers` fetches those; without
//! them these tests say so, check what Rust alone can, and pass on a machine that is no CI.

use std::path::Path;
use std::process::Command;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Value, json};

use super::project::Project;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const MANIFEST: &str = "pipelines/bench.toml";

/// What the readers of others find in a folder.
fn read_with(what: &str, folder: &Path) -> Option<Value> {
    let readers = Path::new(ROOT).join("target/services/readers");
    if !readers.join("installed").exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no readers are installed: tests/services/readers"
        );
        tell!("no readers are installed (tests/services/readers): {what} is not read by them");
        return None;
    }
    let output = Command::new("python3")
        .arg(format!("{ROOT}/tests/services/read_exports.py"))
        .arg(what)
        .arg(folder)
        .env("PYTHONPATH", readers)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Some(serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}")))
}

/// Ten questions with tags, two epochs; the answers are right, wrong, a formula, empty, and more than a line.
fn project() -> Project {
    let engine = r#"replies = [
    { when = "What is 0 ", reply = "0" }, { when = "What is 1 ", reply = "=1+1" },
    { when = "What is 2 ", reply = "" }, { when = "What is 3 ", reply = "a, \"b\"\r\nc <i> & 😀" },
    { when = "What is 4 ", reply = "-5" }, { reply = "7" },
]"#;
    let project = Project::with("epochs = 2\nscorers = [\"exact_match\", \"f1\"]", engine);
    project.edit(
        "templates/qa.toml",
        "targets = \"row.answer\"",
        "targets = \"row.answer\"\ntags = [\"kind\"]",
    );
    let rows = (0..10).map(|n| {
        let row = json!({
            "id": format!("q{n}"), "question": format!("What is {n} + 0?"), "answer": n,
            "kind": if n % 2 == 0 { "=even" } else { "odd" },
        });
        format!("{row}\n")
    });
    project.write("fixtures/rows.jsonl", &rows.collect::<String>());
    project
}

fn csv_rows(text: &str) -> Vec<std::collections::HashMap<String, String>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader.deserialize().map(|row| row.unwrap()).collect()
}

#[test]
fn tables_of_samples() {
    let project = project();
    project.edit(
        MANIFEST,
        "samples = \"ask\"",
        "samples = \"ask\"\nformats = [\"csv\", \"junit\", \"parquet\", \"arrow\"]",
    );
    let ran = project.ok(&[]);
    let folder = "out/bench/report";
    let text = project.read(&format!("{folder}/samples.csv"));
    assert_eq!(text.matches("\r\n").count(), 21 + 4, "a line for each, and those inside quotes");
    let rows = csv_rows(&text);
    assert_eq!(rows.len(), 20);
    assert_eq!((rows[1]["sample_id"].as_str(), rows[1]["epoch"].as_str()), ("q0", "1"));
    assert_eq!((rows[0]["correct"].as_str(), rows[0]["score_exact_match"].as_str()), ("true", "1"));
    assert_eq!(rows[2]["reply"], "'=1+1");
    assert_eq!(rows[0]["tag_kind"], "'=even");
    assert_eq!((rows[4]["outcome"].as_str(), rows[4]["correct"].as_str()), ("empty", ""));
    assert_eq!(rows[6]["reply"], "a, \"b\"\r\nc <i> & 😀");
    assert_eq!((rows[8]["reply"].as_str(), rows[8]["targets"].as_str()), ("-5", "[\"4\"]"));
    assert_eq!(rows[0]["question"], "What is 0 + 0?");
    assert_eq!((rows[0]["served_from"].as_str(), rows[0]["cost"].as_str()), ("live", ""));
    assert!(!rows[0].contains_key("steps"));

    let xml = project.read(&format!("{folder}/junit.xml"));
    // Right are 0 and 7; the empty one has no answer.
    let head = "<testsuites name=\"bench\" tests=\"20\" failures=\"16\" errors=\"0\">";
    assert!(xml.contains(head), "{xml}");
    assert!(xml.contains("<testcase name=\"q0 [epoch 1]\" classname=\"bench.ask\" time=\""));
    assert!(xml.contains("<failure message=\"empty\">"));
    assert!(xml.contains("&lt;i&gt; &amp; 😀"));

    let file = std::fs::File::open(project.path(&format!("{folder}/samples.parquet"))).unwrap();
    let file = SerializedFileReader::new(file).unwrap();
    assert_eq!(file.metadata().file_metadata().num_rows(), 20);
    if let Some(found) = read_with("tables", &project.path(folder)) {
        assert_eq!(found["rows"].as_array().unwrap().len(), 20);
        let (types, row) = (&found["types"], &found["rows"][6]);
        assert_eq!((&types["epoch"], &types["score_f1"]), (&json!("int64"), &json!("double")));
        assert_eq!((&types["correct"], &types["tag_kind"]), (&json!("bool"), &json!("string")));
        assert!(types["targets"].as_str().unwrap().starts_with("list<"), "{types}");
        assert_eq!(row["reply"], "a, \"b\"\r\nc <i> & 😀");
        assert_eq!((&row["targets"], &row["correct"]), (&json!(["3"]), &json!(false)));
        assert_eq!(
            (&found["rows"][2]["reply"], &found["rows"][4]["correct"]),
            (&json!("=1+1"), &Value::Null)
        );
        let steps: Value = serde_json::from_str(row["steps"].as_str().unwrap()).unwrap();
        assert_eq!(steps[0]["transcript"][1]["role"], "user");
        for (ours, theirs) in csv_rows(&text).iter().zip(found["rows"].as_array().unwrap()) {
            assert_eq!(ours["key"], theirs["key"].as_str().unwrap());
        }
    }

    // Nothing is made twice, what was deleted is restored, and no other format is read for it.
    std::fs::remove_file(project.path(&format!("{folder}/samples.arrow"))).unwrap();
    let again = project.ok(&["--frozen"]);
    assert_eq!((again.states()["report"].as_str(), ran.live()), ("fresh", 20));
    assert!(project.path(&format!("{folder}/samples.arrow")).exists());
}

#[test]
fn a_run_is_a_log_of_inspect() {
    let project = project();
    project.edit(
        MANIFEST,
        "scorers = [",
        "max_tokens = 9\n[stage.ask.matrix]\ntemperature = [0, 0.5]\n#",
    );
    project.edit(MANIFEST, "epochs = 2", "epochs = 2\nscorers = [\"exact_match\", \"f1\"]");
    project.ok(&["--tag", "nightly"]);
    let ran = project.forge(&["export", "nightly", "--format", "inspect", "--output", "logs"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 2, "{}", ran.stdout);
    let log: Value =
        serde_json::from_str(&project.read(ran.stdout.lines().next().unwrap())).unwrap();
    assert_eq!((&log["status"], &log["samples"][0]["id"]), (&json!("success"), &json!("q0")));
    let Some(found) = read_with("inspect", &project.path("logs")) else { return };
    assert_eq!(found.as_array().unwrap().len(), 2, "{found}");
    for log in found.as_array().unwrap() {
        assert_eq!((&log["model"], &log["solver"]), (&json!("scripted"), &json!("naive")));
        assert_eq!(log["config"]["max_tokens"], 9);
        let results = &log["results"];
        assert_eq!(
            (&results["total_samples"], &results["completed_samples"]),
            (&json!(20), &json!(20))
        );
        let score = &results["scores"][0];
        assert_eq!((&score["name"], &score["scored_samples"]), (&json!("exact_match"), &json!(18)));
        // Of nine answered questions 0 and 7 are right.
        assert_eq!(score["metrics"]["accuracy"]["value"], 2.0 / 9.0);
        let samples = log["samples"].as_array().unwrap();
        assert_eq!((samples.len(), &samples[1]["epoch"]), (20, &json!(2)));
        assert_eq!(
            (&samples[2]["completion"], &samples[2]["stop"]),
            (&json!("=1+1"), &json!("stop"))
        );
        assert_eq!(samples[2]["roles"], json!(["system", "user", "assistant"]));
        assert_eq!(samples[2]["scores"], json!({ "exact_match": 0.0, "f1": 2.0 / 3.0 }));
        assert_eq!((&samples[4]["outcome"], &samples[4]["scores"]), (&json!("empty"), &json!({})));
        assert_eq!(samples[6]["target"], json!(["3"]));
    }
}

#[test]
fn a_run_is_results_of_the_harness() {
    let project = project();
    project.edit(MANIFEST, "epochs = 2", "epochs = 1");
    project.ok(&[]);
    let args = ["export", "--format", "lm-eval", "--output", "results", "--stage", "ask"];
    let ran = project.forge(&args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let files: Vec<&str> = ran.stdout.lines().collect();
    assert!(files[0].starts_with("results/scripted/samples_ask_20"), "{files:?}");
    assert!(files[1].starts_with("results/scripted/results_20"), "{files:?}");
    // Again the same, so that no half of another stays.
    let before = project.read(files[0]);
    assert_eq!(project.forge(&args).stdout, ran.stdout);
    assert_eq!(project.read(files[0]), before);
    let result: Value = serde_json::from_str(&project.read(files[1])).unwrap();
    assert_eq!(result["results"]["ask"]["exact_match,none"], 2.0 / 9.0);
    let Some(found) = read_with("lm-eval", &project.path("results")) else { return };
    let found = &found[0];
    let table = found["table"].as_str().unwrap();
    assert!(table.contains("|exact_match|↑  |0.2222|±  |0.1470|"), "{table}");
    let lines = found["samples"]["ask"].as_array().unwrap();
    assert_eq!((lines.len(), &lines[3]["doc_id"]), (10, &json!(3)));
    assert_eq!((&lines[7]["exact_match"], &lines[7]["target"]), (&json!(1.0), &json!("7")));
    assert_eq!((&lines[2]["metrics"], &lines[2]["outcome"]), (&json!([]), &json!("empty")));
    assert_eq!(lines[1]["resps"], json!([["=1+1"]]));
    assert_eq!(lines[1]["filtered_resps"], json!(["=1+1"]));
}

#[test]
fn what_cannot_be_exported_is_said() {
    let project = Project::new();
    let ran = project.forge(&["export", "--format", "inspect", "--output", "logs"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    project.ok(&[]);
    let ran = project.forge(&["export", "--format", "inspct", "--output", "logs"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("similar value exists: 'inspect'"), "{}", ran.stderr);
    let ran = project.forge(&["export", "--format", "csv", "--output", "o", "--stage", "flows"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("`flows` of run `"), "{}", ran.stderr);
    assert!(!project.path("o").exists());
}

#[test]
fn a_report_has_a_template_of_its_own() {
    let project = Project::new();
    project.edit(
        MANIFEST,
        "samples = \"ask\"",
        "samples = \"ask\"\nformats = [\"json\"]\ntemplate = \"templates/mine.html\"",
    );
    project.write("templates/mine.html", "<h1>{{ title }}</h1>\n{% include \"part/rows.html\" %}");
    let rows = "{% for row in cells[0].samples %}{{ row.sample.answer }} {% endfor %}";
    project.write("templates/part/rows.html", rows);
    project.edit(MANIFEST, "{ reply = \"0\" }", "{ reply = \"<i>\" }");
    project.ok(&[]);
    let page = project.read("out/bench/report/mine.html");
    assert!(page.starts_with("<h1>bench</h1>\n&lt;i&gt; 1 2 3 4 &lt;i&gt;"), "{page}");
    assert!(!project.path("out/bench/report/report.html").exists());
    assert_eq!(project.ok(&[]).states()["report"], "fresh");

    // What it takes text from is in its key, and what it says of it is why.
    project.edit("templates/part/rows.html", "}} ", "}}, ");
    let plan = project.forge(&["plan", MANIFEST]);
    assert!(plan.stdout.contains("template templates/part/rows.html"), "{}", plan.stdout);
    let ran = project.ok(&[]);
    assert_eq!((ran.states()["report"].as_str(), ran.live()), ("ran", 0));
    assert!(project.read("out/bench/report/mine.html").contains("1, 2, 3"));

    // Errors are in the file in which they are; those of syntax are known before anything runs.
    let fails = |text: &str, command: &str, wanted: &[&str]| {
        project.write("templates/part/rows.html", text);
        let ran = project.forge(&[command, MANIFEST]);
        assert_eq!(ran.code, 2, "{}{}", ran.stdout, ran.stderr);
        for part in wanted {
            assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
        }
    };
    fails(
        "a\n{% for %}",
        "check",
        &["templates/part/rows.html:2:", "^", "template = \"templates/mine.html\""],
    );
    fails(
        "a\n {{ cels }}",
        "apply",
        &["templates/part/rows.html:2:5", "`cels` is undefined", "hint"],
    );
    fails("{% include '../../../x' %}", "check", &["leaves the project", "rows.html:1:12"]);
    fails("{% include '../none.html' %}", "check", &["cannot read `templates/none.html`"]);
    project.write("templates/part/rows.html", rows);
    project.write("templates/report.json", "{}");
    project.edit(MANIFEST, "templates/mine.html", "templates/report.json");
    let ran = project.forge(&["check", MANIFEST]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("two files of this report are called `report.json`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_example_of_tracking_is_planned_and_says_what_it_needs() {
    let project = Project::empty();
    for folder in ["examples/tracking", "examples/own-report"] {
        for entry in std::fs::read_dir(Path::new(ROOT).join(folder)).unwrap().flatten() {
            let name = format!("{folder}/{}", entry.file_name().to_str().unwrap());
            project.write(&name, &std::fs::read_to_string(entry.path()).unwrap());
        }
    }
    let manifest = "examples/tracking/bench.toml";
    let plan = project.forge(&["plan", manifest]);
    assert_eq!(plan.code, 0, "{}", plan.stderr);
    assert!(plan.stdout.contains("mlflow") && plan.stdout.contains("wandb"), "{}", plan.stdout);
    let mut apply = project.command(&["apply", manifest, "--keep-going"]);
    apply.env_remove("MLFLOW_TRACKING_URI").env_remove("WANDB_API_KEY");
    let ran = super::project::Ran::of(apply.output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    for name in ["MLFLOW_TRACKING_URI", "WANDB_API_KEY"] {
        assert!(ran.stderr.contains(&format!("{name} is not set")), "{}", ran.stderr);
    }
    assert!(project.path("out/tracking/report/samples.parquet").exists());
}
