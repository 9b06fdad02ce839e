//! Real inference servers, started by forge: llama.cpp's own and one that shares no code with it.
//! `tests/services/inference` fetches them; without them these tests say so and pass on a machine that is no
//! CI.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::gsm8k;
use super::project::{Project, Ran};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn service(name: &str) -> Option<PathBuf> {
    let folder = Path::new(ROOT).join("target/services").join(name);
    if folder.join("installed").exists() {
        return Some(folder);
    }
    assert!(std::env::var_os("CI").is_none(), "{name} is not installed: tests/services/inference");
    tell!("{name} is not installed (tests/services/inference): nothing tested");
    None
}

/// The engine of a manifest that starts llama.cpp's server, perhaps by way of a shell.
fn llama_cpp(folder: &Path, shell: Option<&str>, more: &str) -> String {
    let server = format!("{ROOT}/tests/services/llama_server.py");
    let command = match shell {
        None => format!("[\"python3\", \"{server}\", \"tiny.gguf\", \"{{port}}\"]"),
        Some(before) => format!(
            "[\"sh\", \"-c\", '''{before} exec python3 {server} tiny.gguf \"$0\"''', \"{{port}}\"]"
        ),
    };
    format!(
        "backend = \"process\"\ncommand = {command}\nfiles = [\"tiny.gguf\"]\nmodel = \"tiny-chat\"\n\
         env = {{ PYTHONPATH = \"{}\" }}\nstartup_timeout = \"180s\"\n{more}",
        folder.display()
    )
}

fn das_llama(folder: &Path, more: &str) -> String {
    let folder = folder.display();
    format!(
        "backend = \"process\"\nmodel = \"tiny.gguf\"\nfiles = [\"tiny.gguf\"]\nhealth = \"/v1/models\"\n\
         command = [\"python3\", \"{folder}/bin/dasllama-server\", \"--model\", \"tiny.gguf\", \"--port\", \
         \"{{port}}\", \"--gpu\", \"off\", \"--streams\", \"8\", \"--threads\", \"1\"]\n\
         env = {{ PYTHONPATH = \"{folder}\", DASLLAMA_IMAGE_SAVE = \"0\" }}\nstartup_timeout = \"180s\"\n{more}"
    )
}

/// The shipped questions for an engine.
fn project(workflow: &str, engine: &str) -> Project {
    let project = Project::asking(workflow, engine);
    let from = |name: &str| format!("{ROOT}/{name}");
    std::fs::copy(from("fixtures/tiny-chat-q8_0.gguf"), project.path("tiny.gguf")).unwrap();
    std::fs::copy(from("fixtures/qa_25.jsonl"), project.path("fixtures/rows.jsonl")).unwrap();
    std::fs::copy(from("fixtures/facts_kb.jsonl"), project.path("fixtures/kb.jsonl")).unwrap();
    std::fs::copy(from("templates/qa.toml"), project.path("templates/qa.toml")).unwrap();
    project
}

const METHODS: &str = "max_tokens = 160\nattempt_timeout = \"60s\"\nlookup = \"fixtures/kb.jsonl\"\n\
    [stage.ask.matrix]\nmethod = [\"naive\", \"cot\", \"react\"]";

fn accuracies(ran: &Ran) -> [f64; 3] {
    ["naive", "cot", "react"].map(|m| ran.metric(&format!("ask[method={m}]"), "accuracy") * 100.0)
}

/// Whether any process has this in its command line.
fn is_alive(mark: &str) -> bool {
    let found = Command::new("pgrep").args(["-f", mark]).stdout(Stdio::null()).status().unwrap();
    found.success()
}

fn wait_until_gone(mark: &str) {
    let start = Instant::now();
    while is_alive(mark) {
        assert!(start.elapsed() < Duration::from_secs(20), "`{mark}` still runs");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn llama_cpp_answers_as_it_should_with_eight_at_once() {
    let Some(folder) = service("xllamacpp") else { return };
    for stream in ["stream = true", "stream = false"] {
        let project = project(METHODS, &llama_cpp(&folder, None, stream));
        let ran = project.ok(&[]);
        // As measured with the same server when the model was made; one row of 25 is 4 points.
        for (accuracy, expected) in accuracies(&ran).into_iter().zip([68.0, 84.0, 100.0]) {
            assert!(
                (accuracy - expected).abs() <= 4.0,
                "{stream}: {accuracy} instead of {expected}"
            );
        }
        let row = project.report_rows()[0].clone();
        let request = &row["observed"]["requests"][0];
        assert_eq!(request["usage"]["token_source"], "usage");
        assert!(request["usage"]["input_tokens"].as_u64().unwrap() > 10, "{row}");
        assert_eq!(request["timing"]["ttft_ms"].is_number(), stream == "stream = true");
        let report: Value =
            serde_json::from_str(&project.read("out/bench/report/report.json")).unwrap();
        let speed = &report["cells"][1]["profile"]["speed"];
        assert!(speed["tokens_per_s"].as_f64().unwrap() > 10.0, "{speed}");
        assert!(speed["concurrency_peak"].as_u64().unwrap() <= 8, "{speed}");
        assert_eq!(speed["tpot"].is_object(), stream == "stream = true", "{speed}");
        assert_eq!(project.ok(&[]).live(), 0);
    }
}

#[test]
fn gsm8k_runs_on_a_subset_with_llama_cpp() {
    let Some(folder) = service("xllamacpp") else { return };
    let project = Project::empty();
    for file in gsm8k::FILES {
        project.write(file, &std::fs::read_to_string(format!("{ROOT}/{file}")).unwrap());
    }
    let weights = format!("{ROOT}/fixtures/tiny-chat-q8_0.gguf");
    std::fs::copy(weights, project.path("tiny.gguf")).unwrap();
    let manifest = project.read(gsm8k::MANIFEST);
    // The model of this process may not be in this binary.
    let (before, _) = manifest.split_once("[stage.tiny-chat]").unwrap();
    // Three worked examples and a question have about 600 tokens, more than a slot has elsewhere.
    let engine =
        llama_cpp(&folder, None, "").replace("\"{port}\"]", "\"{port}\", \"4\", \"1024\"]");
    project.write(gsm8k::MANIFEST, &format!("{before}[stage.server]\nkind = \"engine\"\n{engine}"));
    let apply = || {
        let args = [&["apply", gsm8k::MANIFEST, "--json"], gsm8k::ARGS].concat();
        let ran = Ran::of(project.command(&args).env("ENGINE", "server").output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran
    };
    assert_eq!(apply().live(), gsm8k::ROWS as u64);
    gsm8k::check(&project.read("out/gsm8k/report/report.json"));
    assert_eq!(apply().live(), 0);
}

#[test]
fn llama_cpp_keeps_to_schemas_seeds_and_contexts() {
    let Some(folder) = service("xllamacpp") else { return };
    let engine = llama_cpp(&folder, None, "");
    let schema = project(
        "max_tokens = 100\njson_schema = \"schema.json\"\nlogprobs = 2\ntemperature = 0.7\nseed = 7",
        &engine,
    );
    schema.write(
        "schema.json",
        r#"{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
            "required": ["n"], "additionalProperties": false}"#,
    );
    schema.edit("pipelines/bench.toml", "default = 100000", "default = 3");
    let ran = schema.ok(&[]);
    for row in schema.report_rows() {
        let text = row["sample"]["answer"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{text}"));
        assert!(value["n"].is_u64(), "{text}");
    }
    assert!(!ran.stderr.contains("gives no log-probabilities"), "{}", ran.stderr);
    let answers = |project: &Project| {
        let rows = project.report_rows();
        rows.iter().map(|row| row["sample"]["answer"].to_string()).collect::<Vec<_>>()
    };
    let first = answers(&schema);
    schema.ok(&["--no-cache"]);
    assert_eq!(answers(&schema), first, "the same seed is the same draw");
    let long = project("max_tokens = 20", &engine);
    long.edit("pipelines/bench.toml", "default = 100000", "default = 1");
    long.edit("templates/qa.toml", "{{ row.question }}", &"well ".repeat(3000));
    let ran = long.ok(&[]);
    assert_eq!(ran.result("ask")["outcomes"]["overflow"], 1, "{}", ran.stderr);
}

/// Neither gives log-probabilities of prompts, and each is found out by the probe.
#[test]
fn servers_without_likelihoods_of_prompts_say_so() {
    const API: &str = "api = \"completions\"";
    for (name, engine) in [
        ("xllamacpp", (|folder| llama_cpp(folder, None, API)) as fn(&Path) -> String),
        ("dasllama", |folder| das_llama(folder, API)),
    ] {
        let Some(folder) = service(name) else { continue };
        let project = project("method = \"likelihood\"", &engine(&folder));
        project.edit("templates/qa.toml", "tags = ", "options = \"['16', 'Paris']\"\ntags = ");
        let ran = project.apply(&[]);
        let words = "the server gives no log-probabilities of a prompt";
        assert!(ran.code == 1 && ran.stderr.contains(words), "{name}: {}", ran.stderr);
    }
}

#[test]
fn another_server_answers_the_same() {
    let Some(folder) = service("dasllama") else { return };
    let project = project(METHODS, &das_llama(&folder, "max_in_flight = 8"));
    // A fault of its memory ends this version in one run of ten under load. Forge starts it again once; should
    // that happen twice, what was answered is in the store, and a user would say the same command again.
    let mut ran = project.apply(&[]);
    if ran.code == 1 && ran.stderr.contains("it was started again once already") {
        ran = project.apply(&[]);
    }
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for (accuracy, expected) in accuracies(&ran).into_iter().zip([68.0, 84.0, 100.0]) {
        assert!((accuracy - expected).abs() <= 4.0, "{accuracy} instead of {expected}");
    }
    let unknown = das_llama(&folder, "").replace("model = \"tiny.gguf\"", "model = \"tiny.ggu\"");
    let wrong = self::project("", &unknown);
    let ran = wrong.apply(&[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("did you mean `tiny.gguf`?"), "{}", ran.stderr);
}

#[test]
fn a_server_and_its_children_end_with_forge() {
    let Some(folder) = service("xllamacpp") else { return };
    // A child in a session of its own, which no signal to a group reaches.
    let mark = format!("forge-child-{}", std::process::id());
    let shell = format!("setsid sh -c 'exec sleep 1000 # {mark}' sh {mark} &");
    let project = project("concurrency = 1", &llama_cpp(&folder, Some(&shell), ""));
    project.ok(&[]);
    wait_until_gone(&mark);
    assert!(!is_alive(&project.root().display().to_string()));
    // Interrupted, and killed without a word, long before its end.
    project.edit("pipelines/bench.toml", "concurrency = 1", "concurrency = 1\nepochs = 40");
    for (signal, code) in [("-INT", Some(130)), ("-KILL", None)] {
        let mut command = project.command(&["apply", "pipelines/bench.toml", "--no-cache"]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group_alone();
        let logged = project.logged("\"sample_finished\"");
        let mut forge = command.spawn().unwrap();
        project.wait_for_samples(logged + 1);
        assert!(is_alive(&mark));
        let sent = Command::new("kill").args([signal, &forge.id().to_string()]).status();
        assert!(sent.unwrap().success());
        assert_eq!(forge.wait().unwrap().code(), code);
        wait_until_gone(&mark);
    }
}

/// So that a signal to the test's own group is none to forge.
trait Alone {
    fn process_group_alone(&mut self) -> &mut Self;
}

impl Alone for Command {
    fn process_group_alone(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

/// Applies, and has the server killed when the first sample is there, whose commands wait for the word.
fn killed_at_work(project: &Project) -> Ran {
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    let forge = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    project.wait_for_samples(1);
    project.write("kill", "");
    let ran = Ran::of(forge.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran
}

#[test]
fn a_server_that_dies_is_started_again_once() {
    let Some(folder) = service("xllamacpp") else { return };
    // Each start writes its number; the first one is killed when it is told.
    let dies = "echo $$ >> pids; (until [ -e kill ]; do sleep 0.05; done; \
                [ $(wc -l < pids) -le 1 ] && kill -9 $(tail -1 pids)) &";
    let engine = llama_cpp(&folder, Some(dies), "");
    let project = project("concurrency = 1\nepochs = 8\nmax_tokens = 60", &engine);
    let ran = killed_at_work(&project);
    assert_eq!(project.read("pids").lines().count(), 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("it ended (") && ran.stderr.contains("starting it again"),
        "{}",
        ran.stderr
    );
    assert!(ran.done()["retries"].as_object().unwrap().values().any(|n| n.as_u64() >= Some(1)));
}

/// A command that ends as `ends` says, after the first server that it started is gone.
fn outlived(ends: &str, said: &str) {
    let Some(folder) = service("xllamacpp") else { return };
    let engine = format!(
        "backend = \"process\"\nmodel = \"tiny-chat\"\nfiles = [\"tiny.gguf\"]\n\
         env = {{ PYTHONPATH = \"{}\" }}\nstartup_timeout = \"180s\"\ncommand = [\"sh\", \"-c\", '''\
         echo $$ >> pids; python3 {ROOT}/tests/services/llama_server.py tiny.gguf \"$0\" & \
         [ $(wc -l < pids) -le 1 ] && {{ until [ -e kill ]; do sleep 0.05; done; kill -9 $!; {ends}; }}; \
         sleep 1000''', \"{{port}}\"]",
        folder.display()
    );
    let project = project("concurrency = 1\nepochs = 8\nmax_tokens = 60", &engine);
    let ran = killed_at_work(&project);
    assert_eq!(project.read("pids").lines().count(), 2, "{}", ran.stderr);
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    assert!(!is_alive(&project.root().display().to_string()));
}

#[test]
fn a_server_that_loses_its_port_is_started_again() {
    outlived("sleep 1000", "it listens on its port no more, though it runs");
    // A port is closed before the end of who had it is seen: that is no server that runs.
    outlived("sleep 0.5; exit 3", "it ended (exit status: 3)");
}

#[test]
fn a_server_that_is_lost_again_ends_the_run_for_all_at_once() {
    let Some(folder) = service("xllamacpp") else { return };
    // Both times its command lives on.
    let engine = format!(
        "backend = \"process\"\nmodel = \"tiny-chat\"\nfiles = [\"tiny.gguf\"]\n\
         env = {{ PYTHONPATH = \"{}\" }}\nstartup_timeout = \"180s\"\ncommand = [\"sh\", \"-c\", '''\
         echo $$ >> pids; python3 {ROOT}/tests/services/llama_server.py tiny.gguf \"$0\" & \
         until [ -e kill$(wc -l < pids | tr -d ' ') ]; do sleep 0.05; done; kill -9 $!; \
         sleep 1000''', \"{{port}}\"]",
        folder.display()
    );
    let workflow = "concurrency = 64\nepochs = 40\nmax_tokens = 60\nfail_on_error = false";
    let project = project(workflow, &engine);
    let mut command = project.command(&["apply", "pipelines/bench.toml"]);
    let forge = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    project.wait_for_samples(1);
    project.write("kill1", "");
    while project.read("pids").lines().count() < 2 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = project.logged("\"sample_finished\"");
    project.wait_for_samples(before + 65);
    let start = Instant::now();
    project.write("kill2", "");
    let ran = Ran::of(forge.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("it was started again once already"), "{}", ran.stderr);
    // Where each of the 64 looked for itself whether it was dying, these were two minutes.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn a_server_that_is_started_again_is_waited_for_in_no_time_out() {
    let Some(folder) = service("xllamacpp") else { return };
    // The second start takes longer than a request may.
    let dies = "echo $$ >> pids; [ $(wc -l < pids) -le 1 ] || sleep 12; \
                (until [ -e kill ]; do sleep 0.05; done; \
                [ $(wc -l < pids) -le 1 ] && kill -9 $(tail -1 pids)) &";
    let engine = llama_cpp(&folder, Some(dies), "");
    let limits = "concurrency = 4\nepochs = 8\nmax_tokens = 60\nmax_retries = 1\n\
                  timeout = \"10s\"\ntime_limit = \"10s\"";
    let project = project(limits, &engine);
    let ran = killed_at_work(&project);
    assert_eq!(project.read("pids").lines().count(), 2, "{}", ran.stderr);
}

#[test]
fn a_start_is_no_time_of_a_sample() {
    let Some(folder) = service("xllamacpp") else { return };
    let engine = llama_cpp(&folder, Some("sleep 4;"), "");
    let project = project("concurrency = 4\ntime_limit = \"2s\"", &engine);
    project.ok(&[]);
}

#[test]
fn a_server_whose_port_is_taken_gets_another() {
    let Some(folder) = service("xllamacpp") else { return };
    let loses = "echo \"$0\" >> ports; \
                 [ $(wc -l < ports) -ge 3 ] || { echo bind: Address already in use >&2; exit 1; };";
    let project = project("", &llama_cpp(&folder, Some(loses), ""));
    let ran = project.ok(&[]);
    let ports: std::collections::BTreeSet<_> =
        project.read("ports").lines().map(str::to_owned).collect();
    assert_eq!(ports.len(), 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("was taken by another program"), "{}", ran.stderr);
    // What never gets one says why.
    let fails = "echo once >> starts; echo bind: Address already in use >&2; exit 1;";
    let project = self::project("", &llama_cpp(&folder, Some(fails), ""));
    let ran = project.apply(&[]);
    assert_eq!((ran.code, project.read("starts").lines().count()), (1, 3), "{}", ran.stderr);
    assert!(ran.stderr.contains("Address already in use"), "{}", ran.stderr);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let run = |command: &str, more: &str| {
        let engine = format!("backend = \"process\"\ncommand = {command}\nmodel = \"m\"\n{more}");
        let ran = Project::asking("", &engine).apply(&[]);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        ran.stderr
    };
    let said = run("[\"sh\", \"-c\", \"echo no such model >&2; exit 3\", \"{port}\"]", "");
    assert!(said.contains("it ended before it was ready (exit status: 3)"), "{said}");
    assert!(said.contains("its last words:\nno such model"), "{said}");
    let said = run("[\"no-such-server\", \"{port}\"]", "");
    assert!(said.contains("cannot start `no-such-server`"), "{said}");
    let said = run("[\"sleep\", \"1000\", \"{port}\"]", "startup_timeout = \"1500ms\"");
    assert!(said.contains("`/health` did not answer within 1s 500ms"), "{said}");
    assert!(said.contains("waiting for http://127.0.0.1:"), "progress: {said}");
    let engine = "backend = \"process\"\ncommand = [\"sleep\", \"1\"]\nmodel = \"m\"";
    let ran = Project::asking("", engine).apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("does not say where its port goes: `{port}`"), "{}", ran.stderr);
}

#[test]
fn a_server_finds_its_models_and_its_token_is_not_shown() {
    const TOKEN: &str = "hf_verysecret";
    let shell = "echo $HF_HOME, $HF_TOKEN, $MY_KEY, $FORGE_TEST_OTHER. >&2; exit 3";
    let engine = format!(
        "backend = \"process\"\ncommand = [\"sh\", \"-c\", \"{shell}\", \"{{port}}\"]\nmodel = \"m\"\n\
         pass_env = [\"MY_KEY\"]"
    );
    let project = Project::asking("", &engine);
    let run = |args: &[&str], folder: &str, token: &str| {
        let mut command = project.command(args);
        command.env("HF_HOME", folder).env("HF_TOKEN", token).env("MY_KEY", "key-verysecret");
        Ran::of(command.env("FORGE_TEST_OTHER", "other").output().unwrap())
    };
    let ran = run(&["apply", "pipelines/bench.toml", "--json"], "/models", TOKEN);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("/models, [secret], [secret], .\n"), "{}", ran.stderr);
    assert!(!format!("{}{}", ran.stderr, ran.stdout).contains("verysecret"), "{}", ran.stdout);
    // What the server itself says is in its own log, and nowhere else.
    let mut grep = Command::new("grep");
    let found = grep.args(["-rl", "verysecret", "."]).current_dir(project.root()).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.lines().count() == 1 && found.ends_with("engine.log\n"), "{found}");
    // Neither is in a key.
    let plan =
        |folder, token| run(&["plan", "pipelines/bench.toml", "--json"], folder, token).stdout;
    assert_eq!(plan("/models", TOKEN), plan("/elsewhere", "hf_another"));
}

#[test]
fn a_model_outside_of_the_project_is_in_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let engine = format!(
        "backend = \"process\"\ncommand = [\"true\", \"{}\", \"{{port}}\"]\nmodel = \"m\"",
        model.display()
    );
    let project = Project::asking("", &engine);
    let key = || {
        let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]).stdout;
        let plan: Value = serde_json::from_str(&plan).unwrap();
        let node = plan.as_array().unwrap().iter().find(|node| node["name"] == "engine").cloned();
        node.unwrap()["key"].as_str().unwrap().to_owned()
    };
    let any_folder = key();
    std::fs::write(model.join("model.safetensors"), "weights").unwrap();
    assert_eq!(key(), any_folder, "it is no model");
    std::fs::write(model.join("config.json"), "{}").unwrap();
    let first = key();
    std::fs::write(model.join("model.safetensors"), "other weights").unwrap();
    assert!(any_folder != first && first != key());
}
