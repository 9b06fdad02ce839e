//! A project in a folder of its own, and what a run of the binary said.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub const FORGE: &str = env!("CARGO_BIN_EXE_forge");

/// A manifest with ten flows; `{workflow}` and `{engine}` stand for further settings.
const MANIFEST: &str = r#"
[pipeline]
name = "bench"

[params.num_flows]
default = 10
env = "NUM_FLOWS"

[stage.question]
kind = "flow-template"
file = "templates/qa.toml"

[stage.flows]
kind = "expand"
template = "question"
fixture = "fixtures/rows.jsonl"
count = "{{ params.num_flows }}"

[stage.engine]
kind = "engine"
backend = "scripted"
{engine}

[stage.ask]
kind = "workflow"
flows = "flows"
engine = "engine"
{workflow}

[stage.report]
kind = "report"
samples = "ask"
"#;

const TEMPLATE: &str = r#"
id = "row.id"
targets = "row.answer"

[[step]]
id = "answer"
user = "{{ row.question }}"
"#;

pub struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    pub fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".forge-root")).unwrap();
        fs::create_dir_all(dir.path().join(".git")).unwrap();
        Project { dir }
    }

    /// Ten questions, answered rightly, with settings for workflow and engine.
    pub fn with(workflow: &str, engine: &str) -> Self {
        let project = Project::empty();
        project.manifest(workflow, engine);
        project.write("templates/qa.toml", TEMPLATE);
        project.rows(10);
        project
    }

    pub fn new() -> Self {
        Project::with("", REPLIES)
    }

    /// The same with any engine: `engine` holds its backend too.
    pub fn asking(workflow: &str, engine: &str) -> Self {
        let project = Project::with(workflow, "");
        project.edit("pipelines/bench.toml", "backend = \"scripted\"", engine);
        project.edit("pipelines/bench.toml", "default = 10", "default = 100000");
        project
    }

    /// What the report says of every sample of its first workflow.
    pub fn report_rows(&self) -> Vec<Value> {
        let report: Value =
            serde_json::from_str(&self.read("out/bench/report/report.json")).unwrap();
        report["cells"][0]["samples"].as_array().unwrap().clone()
    }

    pub fn manifest(&self, workflow: &str, engine: &str) {
        let text = MANIFEST.replace("{workflow}", workflow).replace("{engine}", engine);
        self.write("pipelines/bench.toml", &text);
    }

    pub fn rows(&self, count: usize) {
        let row = |n| {
            format!("{{\"id\": \"q{n}\", \"question\": \"What is {n} + 0?\", \"answer\": {n}}}\n")
        };
        self.write("fixtures/rows.jsonl", &(0..count).map(row).collect::<String>());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{name} has no `{from}`");
        self.write(name, &text.replace(from, to));
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(FORGE);
        command
            .args(args)
            .current_dir(self.root())
            .env_remove("FORGE_STORE")
            .env_remove("NUM_FLOWS")
            .stdin(Stdio::null());
        command
    }

    pub fn forge(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// Waits until the logs of all runs tell of that many finished samples.
    pub fn wait_for_samples(&self, samples: usize) {
        let start = std::time::Instant::now();
        while self.logged("\"sample_finished\"") < samples {
            assert!(start.elapsed().as_secs() < 180, "the run does not get on");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// How often something stands in the logs of all runs.
    pub fn logged(&self, text: &str) -> usize {
        let Ok(runs) = fs::read_dir(self.path(".forge/runs")) else { return 0 };
        let log = |run: fs::DirEntry| fs::read_to_string(run.path().join("events.log"));
        runs.flatten().map(|run| log(run).unwrap_or_default().matches(text).count()).sum()
    }

    pub fn apply(&self, args: &[&str]) -> Ran {
        let mut all = vec!["apply", "pipelines/bench.toml", "--json"];
        all.extend(args);
        self.forge(&all)
    }

    /// Applies, and expects it to end well.
    pub fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.apply(args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran
    }
}

/// A reply for each question of [`Project::new`].
pub const REPLIES: &str = r#"replies = [
    { when = "What is 1 ", reply = "1" }, { when = "What is 2 ", reply = "2" },
    { when = "What is 3 ", reply = "3" }, { when = "What is 4 ", reply = "4" },
    { reply = "0" },
]"#;

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn events(&self) -> Vec<Value> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The last line of `apply --json`.
    pub fn done(&self) -> Value {
        let done = self.events().pop().unwrap_or_else(|| panic!("no output: {}", self.stderr));
        assert_eq!(done["event"], "done");
        done
    }

    /// Requests that the engine answered.
    pub fn live(&self) -> u64 {
        self.done()["requests"]["live"].as_u64().unwrap()
    }

    /// Requests that the store answered.
    pub fn disk(&self) -> u64 {
        self.done()["requests"]["disk"].as_u64().unwrap()
    }

    /// State of every stage.
    pub fn states(&self) -> BTreeMap<String, String> {
        let done = self.done();
        let stages = done["stages"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
        stages.map(|stage| (text(&stage["name"]), text(&stage["state"]))).collect()
    }

    pub fn metric(&self, stage: &str, metric: &str) -> f64 {
        self.result(stage)["metrics"][metric].as_f64().unwrap()
    }

    pub fn result(&self, stage: &str) -> Value {
        let done = self.done();
        let results = done["results"].as_array().unwrap();
        results.iter().find(|result| result["stage"] == stage).unwrap().clone()
    }

    pub fn loaded_an_engine(&self) -> bool {
        self.events().iter().any(|event| event["event"] == "engine_loaded")
    }
}
