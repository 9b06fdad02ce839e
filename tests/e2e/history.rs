//! `forge runs`, `show`, `logs`, `watch`: what runs leave, and how it is found again.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use super::project::{Project, REPLIES, Ran};

/// Forty flows, two at a time, 100 ms each.
fn slow() -> Project {
    slow_by("100ms")
}

fn slow_by(latency: &str) -> Project {
    let engine = format!("latency = \"{latency}\"\n{REPLIES}");
    let project = Project::with("concurrency = 2", &engine);
    project.rows(40);
    project.edit("pipelines/bench.toml", "default = 10", "default = 40");
    project
}

fn start(project: &Project, args: &[&str]) -> Child {
    let mut command = project.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn apply(project: &Project) -> Child {
    start(project, &["apply", "pipelines/bench.toml", "--json"])
}

fn ok(project: &Project, args: &[&str]) -> String {
    let ran = project.forge(args);
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    ran.stdout
}

/// What `forge runs --json` says, newest first.
fn runs(project: &Project, args: &[&str]) -> Vec<Value> {
    let lines = ok(project, &[&["runs", "--json"], args].concat());
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(runs: &[Value]) -> Vec<&str> {
    runs.iter().map(|run| run["run_id"].as_str().unwrap()).collect()
}

#[test]
fn runs_are_listed_newest_first_and_chosen() {
    let project = Project::new();
    project.ok(&[]);
    project.ok(&["--tag", "nightly", "--tag", "v1.0", "--limit", "3"]);
    project.edit("pipelines/bench.toml", "name = \"bench\"", "name = \"other\"");
    project.edit("pipelines/bench.toml", "reply = \"0\"", "fail = \"503 gone\"");
    project.edit("pipelines/bench.toml", "flows = \"flows\"", "flows = \"flows\"\nmax_retries = 0");
    assert_eq!(project.apply(&["--set", "num_flows=6", "--force", "ask"]).code, 1);
    let all = runs(&project, &[]);
    let status: Vec<_> = all.iter().map(|run| run["status"].as_str().unwrap()).collect();
    assert_eq!(status, ["failed", "completed", "completed"]);
    assert_eq!((&all[2]["samples"], &all[1]["samples"]), (&10.into(), &3.into()));
    assert_eq!((&all[2]["requests"]["live"], &all[1]["about"]["limit"]), (&10.into(), &3.into()));
    assert_eq!(all[1]["tags"], serde_json::json!(["nightly", "v1.0"]));
    let count = |args: &[&str]| runs(&project, args).len();
    assert_eq!(count(&["--pipeline", "bench"]), 2);
    assert_eq!(count(&["--pipeline", "bench", "--pipeline", "other"]), 3);
    assert_eq!(count(&["--status", "failed"]), 1);
    assert_eq!(count(&["--tag", "nightly"]), 1);
    assert_eq!(ids(&runs(&project, &["--limit", "1"])), ids(&all[..1]));
    assert_eq!(count(&["--since", "1h"]), 3);
    assert_eq!(count(&["--until", "1h"]), 0);
    let day = &all[0]["started_at"].as_str().unwrap()[..10];
    // Unless midnight lies between the runs.
    assert!(count(&["--since", day, "--until", day]) >= 1);
    let table = ok(&project, &["runs"]);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].starts_with("RUN ") && lines[2].ends_with("nightly v1.0"), "{table}");
    assert!(lines[3].contains("completed") && lines[3].contains("50.0 %"), "{table}");
    let wrong = project.forge(&["runs", "--status", "dead"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("interrupted"), "{}", wrong.stderr);
    assert_eq!(project.forge(&["runs", "--since", "yesterday"]).code, 2);
}

#[test]
fn a_killed_run_is_interrupted_and_a_living_one_runs() {
    let project = slow_by("1s");
    let mut child = apply(&project);
    project.wait_for_samples(2);
    let living = &runs(&project, &[])[0];
    assert_eq!(living["status"], "running");
    assert!(living["samples"].as_u64().unwrap() >= 2, "{living}");
    let watched = ok(&project, &["logs"]);
    assert!(watched.contains("answered, right, live"), "{watched}");
    child.kill().unwrap();
    child.wait().unwrap();
    let dead = &runs(&project, &[])[0];
    assert_eq!((&dead["status"], &dead["run_id"]), (&"interrupted".into(), &living["run_id"]));
    assert!(dead["wall_ms"].as_f64().unwrap() > 0.0);
    // What was found out is kept: the log is not read again.
    let log = format!(".forge/runs/{}/events.log", dead["run_id"].as_str().unwrap());
    fs::write(project.path(&log), "no event\n").unwrap();
    assert_eq!(&runs(&project, &["--status", "interrupted"])[0], dead);
    let table = ok(&project, &["runs"]);
    assert!(table.contains("interrupted") && table.contains("/40"), "{table}");
    let watched = project.forge(&["watch"]);
    assert!(watched.code == 1 && watched.stderr.contains("without a word"), "{}", watched.stderr);
    project.edit("pipelines/bench.toml", "latency = \"1s\"", "latency = \"1ms\"");
    project.ok(&[]);
    let both = runs(&project, &[]);
    assert_eq!((&both[0]["status"], &both[1]["status"]), (&"completed".into(), &dead["status"]));
}

#[test]
fn a_run_is_watched_from_another_process() {
    let project = slow();
    let run = apply(&project);
    project.wait_for_samples(3);
    let watch = start(&project, &["watch"]);
    let follow = start(&project, &["logs", "--follow", "--json", "--stage", "ask"]);
    let ran = Ran::of(run.wait_with_output().unwrap());
    let watched = Ran::of(watch.wait_with_output().unwrap());
    let followed = Ran::of(follow.wait_with_output().unwrap());
    assert_eq!((ran.code, watched.code, followed.code), (0, 0, 0), "{}", watched.stderr);
    let samples = |ran: &Ran| {
        let events = ran.events();
        events.into_iter().filter(|event| event["event"] == "sample_finished").collect::<Vec<_>>()
    };
    let mut seen = samples(&followed);
    assert!(seen.iter().all(|event| event["unix_ms"].is_u64()));
    seen.iter_mut().for_each(|event| drop(event.as_object_mut().unwrap().remove("unix_ms")));
    assert_eq!(seen, samples(&ran));
    assert!(watched.stderr.contains("ran     ask  40 samples, 40 live"), "{}", watched.stderr);
    assert!(watched.stderr.contains("40 requests live, 0 from the store"), "{}", watched.stderr);
}

#[test]
fn who_watches_hears_that_the_run_died() {
    let project = slow_by("1s");
    let mut run = apply(&project);
    project.wait_for_samples(3);
    let watch = start(&project, &["watch", "last"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    run.kill().unwrap();
    run.wait().unwrap();
    let watched = Ran::of(watch.wait_with_output().unwrap());
    assert_eq!(watched.code, 1, "{}", watched.stderr);
    assert!(watched.stderr.contains("is gone without a word"), "{}", watched.stderr);
}

#[test]
fn a_watch_ends_as_its_run_did() {
    let project = Project::new();
    assert_eq!(project.forge(&["watch"]).code, 2, "without a store");
    project.ok(&[]);
    assert_eq!(project.forge(&["watch"]).code, 0);
    let refused = project.apply(&["--only", "report", "--limit", "2"]);
    let watched = project.forge(&["watch"]);
    assert_eq!((refused.code, watched.code), (2, 2), "{}", watched.stderr);
    assert!(watched.stderr.contains("not up to date"), "{}", watched.stderr);
    project.edit("pipelines/bench.toml", "reply = \"0\"", "fail = \"503 gone\"");
    project.edit("pipelines/bench.toml", "flows = \"flows\"", "flows = \"flows\"\nmax_retries = 0");
    assert_eq!(project.apply(&[]).code, 1);
    assert_eq!(project.forge(&["watch"]).code, 1);
}

#[test]
fn a_run_goes_by_many_names() {
    let project = Project::new();
    for _ in 0..3 {
        project.ok(&[]);
    }
    let all = runs(&project, &[]);
    let [last, middle, first] = ids(&all)[..] else { panic!("three runs: {all:?}") };
    ok(&project, &["runs", "tag", last, "base", "other"]);
    ok(&project, &["runs", "tag", first, "base"]);
    ok(&project, &["runs", "untag", last, "base"]);
    let shown = |name: &str| {
        let run: Value = serde_json::from_str(&ok(&project, &["show", name, "--json"])).unwrap();
        run["run_id"].as_str().unwrap().to_owned()
    };
    for (name, id) in [
        (last, last),
        ("last", last),
        ("last~1", middle),
        ("last~2", first),
        ("base", first),
        ("other", last),
        (&middle[..25], middle),
        (&middle[12..], middle),
        (&first.to_lowercase(), first),
    ] {
        assert_eq!(shown(name), id, "{name}");
    }
    let table = ok(&project, &["runs"]);
    for (line, id) in table.lines().skip(1).zip(ids(&all)) {
        assert_eq!(shown(line.split(' ').next().unwrap()), id, "the short name is enough");
    }
    let refused = |args: &[&str], words: &str| {
        let ran = project.forge(args);
        assert!(ran.code == 2 && ran.stderr.contains(words), "{args:?}: {}", ran.stderr);
    };
    refused(&["show", "nightly"], "`nightly` is no run of this store (known: last, ");
    refused(&["show", "last~3"], "no run of this store");
    refused(&["show", &first[..4]], "3 runs are called");
    refused(&["runs", "untag", "last", "../../store"], "has no tag");
    refused(&["runs", "tag", "last", "../x"], "begins with a letter");
    refused(&["runs", "tag", "last", "last"], "begins with a letter");
    refused(&["runs", "tag", "last", "01abc"], "begins with a letter");
    refused(&["runs", "unpin", "last"], "is not pinned");
    refused(&["apply", "pipelines/bench.toml", "--tag", "a b"], "begins with a letter");
    refused(&["show", "last", "--stage", "aks"], "known: question, flows");
    refused(&["show", "last", "--sample", "q99"], "some that it has: q0, q1");
}

#[test]
fn a_pinned_run_survives_the_collector() {
    let project = Project::new();
    project.ok(&[]);
    project.edit("pipelines/bench.toml", "flows = \"flows\"", "flows = \"flows\"\nseed = 7");
    project.ok(&["--tag", "keep"]);
    ok(&project, &["runs", "pin", "keep"]);
    let before = ok(&project, &["show", "keep", "--sample", "q3"]);
    let forget = |project: &Project| {
        fs::remove_file(project.path("pipelines/bench.lock")).unwrap();
        fs::remove_dir_all(project.path(".forge/last")).unwrap();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
        for folder in fs::read_dir(project.path(".forge/cas")).unwrap().flatten() {
            for blob in fs::read_dir(folder.path()).unwrap().flatten() {
                fs::File::open(blob.path()).unwrap().set_modified(old).unwrap();
            }
        }
    };
    forget(&project);
    let gc = ["store", "gc", "--keep-runs", "0", "--max-age", "0s"];
    ok(&project, &gc);
    let left = runs(&project, &[]);
    assert_eq!((left.len(), &left[0]["pinned"]), (1, &true.into()));
    assert!(ok(&project, &["runs"]).contains("keep (pinned)"));
    assert_eq!(ok(&project, &["show", "keep", "--sample", "q3"]), before);
    assert_eq!(project.ok(&["--frozen"]).live(), 0);
    ok(&project, &["runs", "unpin", "keep"]);
    forget(&project);
    ok(&project, &gc);
    assert_eq!(runs(&project, &[]).len(), 0);
}

#[test]
fn a_sample_says_where_each_answer_came_from() {
    let project = Project::new();
    project.ok(&[]);
    // Another scorer: the samples are new, their requests are not.
    project.edit(
        "pipelines/bench.toml",
        "flows = \"flows\"",
        "flows = \"flows\"\nscorers = [\"includes\"]",
    );
    project.ok(&[]);
    let first = ok(&project, &["show", "last~1", "--sample", "q3"]);
    for words in [
        "sample    q3  ask  epoch 0",
        "outcome   answered, right",
        "  [system]\n",
        "  [user]\n    What is 3 + 0?",
        "  [assistant]\n    3",
        "live",
        "asked in this run",
        "max_tokens = 256",
        "temperature = 0.0",
    ] {
        assert!(first.contains(words), "`{words}` is missing:\n{first}");
    }
    let all = runs(&project, &[]);
    let [_, asker] = ids(&all)[..] else { panic!("two runs") };
    let text = ok(&project, &["show", "--sample", "q3"]);
    assert!(text.contains(&format!("asked in run {asker}")), "{text}");
    let json = ok(&project, &["show", "--sample", "q3", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let request = &json[0]["requests"][0];
    assert_eq!(
        (&request["served_from"], &request["asked"]["run"]),
        (&"disk".into(), &asker.into())
    );
    assert_eq!(
        (&request["asked"]["completion"]["text"], &json[0]["sample"]["answer"]),
        (&"3".into(), &"3".into())
    );
    // Asked anew: what the first run saw is another answer than the store has now.
    project.edit("pipelines/bench.toml", "[\"includes\"]", "[\"exact_match\"]");
    project.ok(&["--force", "ask"]);
    let text = ok(&project, &["show", "last~2", "--sample", "q3"]);
    assert!(text.contains("and again later in run"), "{text}");
    let stage = ok(&project, &["show", "--stage", "ask"]);
    assert!(stage.contains("concurrency") && stage.contains("backend"), "{stage}");
    assert!(ok(&project, &["show"]).contains("ran    ask       workflow"));
}

#[test]
fn nothing_that_a_model_says_steers_the_terminal() {
    let evil = "\\u001b]0;owned\\u0007\\u001b[2J\\u009b31m\\u202e0";
    let engine = format!(
        "replies = [{{ when = \"What is 1 \", fail = \"503 {evil}\" }}, {{ reply = \"{evil}\" }}]"
    );
    let project = Project::with("fail_on_error = false\nmax_retries = 0", &engine);
    project.apply(&[]);
    let steers = |c: char| c.is_control() && !"\n\t".contains(c) || c == '\u{202e}';
    for args in [
        &["show", "--sample", "q0"][..],
        &["show", "--sample", "q1"],
        &["show", "--sample", "q0", "--json"],
        &["show"],
        &["show", "--stage", "ask"],
        &["logs"],
        &["logs", "--json"],
        &["runs"],
        &["runs", "--json"],
        &["watch"],
    ] {
        let ran = project.forge(args);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!said.contains(steers), "{args:?}: {said:?}");
        if args.contains(&"q0") {
            assert!(said.contains("owned"), "{args:?}: it is shown, not hidden: {said}");
        }
    }
}

#[test]
fn what_a_server_said_is_in_its_log() {
    let project = Project::asking(
        "",
        "backend = \"process\"\nmodel = \"m\"\ncommand = [\"sh\", \"-c\", \"echo came up; exit 3\", \"{port}\"]",
    );
    assert_ne!(project.apply(&[]).code, 0);
    assert_eq!(ok(&project, &["logs", "--server"]), "came up\n");
    assert_eq!(ok(&project, &["logs", "--server", "--stage", "engine"]), "came up\n");
    assert_eq!(project.forge(&["logs", "--server", "--stage", "ask"]).code, 2);
    let log = ok(&project, &["logs", "--stage", "engine"]);
    assert!(!log.is_empty() && log.lines().all(|line| line.contains("engine")), "{log}");
}

/// Stores that were written when records of runs had version 1 and 2, with a line for each kind of record.
#[test]
fn stores_of_every_version_are_read() {
    for version in [1, 2] {
        let project = Project::empty();
        let kept = format!("tests/records/store-v{version}");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join(kept), &project.path(".forge"));
        let all = runs(&project, &[]);
        let run = &all[0];
        assert_eq!((all.len(), &run["version"], &run["samples"]), (1, &version.into(), &3.into()));
        let text = ok(&project, &["show", "last", "--sample", "q1"]);
        let asked = format!("asked in this run, {}", run["started_at"].as_str().unwrap());
        for words in ["What is 1 + 0?", "answered, right", &asked] {
            assert!(text.contains(words), "{text}");
        }
        assert!(ok(&project, &["show", "--stage", "ask"]).contains("max_tokens"));
        assert!(ok(&project, &["logs"]).contains("ask  q2: answered, wrong, live"));
        // Without the record that is their fold, the events say the same.
        let record = format!(".forge/runs/{}/run.json", ids(&all)[0]);
        fs::remove_file(project.path(&record)).unwrap();
        let folded = runs(&project, &[]);
        for field in ["status", "requests", "wall_ms", "about"] {
            assert_eq!(folded[0][field], run[field], "{field}");
        }
        assert_eq!(folded[0]["stages"][3]["summary"], run["stages"][3]["summary"]);
    }
}

#[test]
fn a_run_of_a_newer_program_is_refused() {
    let project = Project::new();
    project.ok(&[]);
    project.ok(&[]);
    let all = runs(&project, &[]);
    let run = format!(".forge/runs/{}/run.json", ids(&all)[0]);
    project.edit(&run, "\"version\": 2", "\"version\": 99");
    let ran = project.forge(&["show"]);
    assert!(ran.code == 2 && ran.stderr.contains("newer forge"), "{}", ran.stderr);
    let ran = project.forge(&["runs", "--json"]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (1, 1), "the others are listed");
    assert!(ran.stderr.contains("warning: run"), "{}", ran.stderr);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}
