//! `forge store`, `forge verify`, and what a run says when the store has lost something.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::project::{Project, Ran};

fn store(project: &Project, args: &[&str]) -> Ran {
    project.forge(&[&["store"], args].concat())
}

fn json(project: &Project, args: &[&str]) -> Value {
    let ran = store(project, &[args, &["--json"]].concat());
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

const ALL: &[&str] = &["gc", "--keep-runs", "0", "--max-age", "0s"];

/// Takes away what keeps the results of a project from being collected.
fn forget(project: &Project) {
    fs::remove_file(project.path("pipelines/bench.lock")).unwrap();
    fs::remove_dir_all(project.path(".forge/last")).unwrap();
}

/// Makes blobs old enough to be collected.
fn age_blobs(project: &Project) {
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    for folder in fs::read_dir(project.path(".forge/cas")).unwrap().flatten() {
        for blob in fs::read_dir(folder.path()).unwrap().flatten() {
            fs::File::open(blob.path()).unwrap().set_modified(old).unwrap();
        }
    }
}

#[test]
fn stat_and_du_count_what_there_is() {
    let project = Project::new();
    project.ok(&[]);
    let stat = json(&project, &["stat"]);
    // Ten requests, ten samples, five stages.
    assert_eq!(stat["records"], 25);
    assert_eq!((&stat["journals"]["count"], &stat["runs"]["count"]), (&1.into(), &1.into()));
    let du = json(&project, &["du"]);
    assert_eq!(du["records"]["request"]["count"], 10);
    assert_eq!(du["records"]["sample"]["count"], 10);
    assert_eq!(du["blobs"]["report"]["count"], 3);
    assert!(store(&project, &["du"]).stdout.contains("records by kind"));
}

#[test]
fn without_a_store_there_is_a_clear_error() {
    let ran = store(&Project::empty(), &["stat"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("there is no store in"), "{}", ran.stderr);
}

#[test]
fn what_a_lock_file_names_is_not_garbage() {
    let project = Project::new();
    project.ok(&[]);
    fs::remove_dir_all(project.path(".forge/last")).unwrap();
    age_blobs(&project);
    let report = json(&project, ALL);
    // The report: it holds times, is in no lock file, and is made again without asking anybody.
    assert_eq!((&report["records_removed"], &report["runs_removed"]), (&1.into(), &1.into()));
    assert_eq!(project.ok(&[]).live(), 0);
}

#[test]
fn a_later_miss_says_that_the_collector_caused_it() {
    let project = Project::new();
    project.ok(&[]);
    forget(&project);
    age_blobs(&project);
    let would = json(&project, &[ALL, &["--dry-run"]].concat());
    assert_eq!((&would["records_removed"], &would["dry_run"]), (&25.into(), &true.into()));
    assert!(project.forge(&["plan", "pipelines/bench.toml"]).stdout.contains("fresh     ask"));
    // Who looks at a blob may be about to use it, which makes it young again.
    age_blobs(&project);
    let report = json(&project, ALL);
    assert_eq!((&report["records_removed"], &report["records_kept"]), (&25.into(), &0.into()));
    assert!(report["blobs_removed"].as_u64().unwrap() >= 6, "{report}");
    let plan = project.forge(&["plan", "pipelines/bench.toml"]).stdout;
    assert!(plan.contains("`forge store gc` removed its result on"), "{plan}");
    let frozen = project.apply(&["--frozen"]);
    assert!(frozen.stderr.contains("removed by `forge store gc` on"), "{}", frozen.stderr);
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 10);
    assert!(ran.stderr.contains("warning: flows: its result was removed by"), "{}", ran.stderr);
    assert!(!project.ok(&[]).stderr.contains("removed by"));
}

#[test]
fn lock_files_in_every_git_ref_are_roots() {
    let project = Project::new();
    fs::remove_dir_all(project.path(".git")).unwrap();
    let git = |args: &[&str]| {
        let identity = ["-c", "user.name=x", "-c", "user.email=x@x"];
        let output =
            Command::new("git").args(identity).args(args).current_dir(project.root()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    git(&["init", "-q", "-b", "main"]);
    project.write(".gitignore", ".forge\nout\n");
    project.ok(&[]);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "one"]);
    git(&["checkout", "-qb", "other"]);
    project.edit("pipelines/bench.toml", "flows = \"flows\"", "flows = \"flows\"\nseed = 7");
    project.ok(&[]);
    git(&["commit", "-qam", "two"]);
    // A third result, which no ref knows.
    project.edit("pipelines/bench.toml", "seed = 7", "seed = 8");
    project.ok(&[]);
    git(&["checkout", "-q", "--force", "main"]);
    fs::remove_dir_all(project.path(".forge/last")).unwrap();
    age_blobs(&project);
    let report = json(&project, ALL);
    // Its requests and samples and the stage; and three reports, which hold times and are in no lock file.
    assert_eq!(report["records_removed"], 24, "{report}");
    assert_eq!(project.ok(&["--frozen"]).live(), 0);
    git(&["checkout", "-q", "other"]);
    assert_eq!(project.ok(&["--frozen"]).live(), 0);
}

#[test]
fn a_pin_keeps_a_run_until_it_is_taken_away() {
    let project = Project::new();
    let run = project.ok(&[]).done()["run_id"].as_str().unwrap().to_owned();
    forget(&project);
    age_blobs(&project);
    let ran = store(&project, &["pin", &run[20..], "--name", "baseline"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "baseline\n"), "{}", ran.stderr);
    assert_eq!(json(&project, ALL)["records_removed"], 0);
    let ran = store(&project, &["pin", "--remove", "basline"]);
    assert!(ran.stderr.contains("no pin `basline` (known: baseline)"), "{}", ran.stderr);
    assert_eq!(store(&project, &["pin", "--remove", "baseline"]).code, 0);
    assert_eq!(json(&project, ALL)["records_removed"], 25);
    let ran = store(&project, &["pin", "nonsense"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("is no run of this store"), "{}", ran.stderr);
}

#[test]
fn a_bound_on_the_size_takes_the_oldest_first() {
    let project = Project::new();
    project.ok(&[]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    project.manifest("seed = 7", super::project::REPLIES);
    project.ok(&[]);
    age_blobs(&project);
    let all = json(&project, &["gc", "--dry-run"])["bytes_kept"].as_u64().unwrap();
    let bound = (all * 3 / 4).to_string();
    let report = json(&project, &["gc", "--max-size", &bound]);
    let (removed, over) = (&report["records_removed"], &report["bytes_over"]);
    assert!(removed.as_u64().unwrap() >= 20, "{report}");
    assert!(report["bytes_kept"].as_u64().unwrap() <= all * 3 / 4 && *over == 0, "{report}");
    // The newer is what the lock file names.
    assert_eq!(project.ok(&[]).live(), 0);
    let report = json(&project, &["gc", "--max-size", "1kB"]);
    assert!(report["bytes_over"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(project.ok(&[]).live(), 0, "roots stay, whatever the bound");
}

#[test]
fn verify_finds_damage_and_repair_clears_it_away() {
    let project = Project::new();
    project.ok(&[]);
    assert!(store(&project, &["verify"]).stdout.contains("all whole"));
    let journal = fs::read_dir(project.path(".forge/journal")).unwrap().next().unwrap().unwrap();
    let mut bytes = fs::read(journal.path()).unwrap();
    bytes[200] ^= 1;
    fs::write(journal.path(), bytes).unwrap();
    let folder = fs::read_dir(project.path(".forge/cas")).unwrap().next().unwrap().unwrap();
    let blob = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
    fs::write(blob.path(), "damaged").unwrap();
    let ran = store(&project, &["verify"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("1 damaged line"), "{}", ran.stdout);
    assert!(ran.stdout.contains("its content is not what its name says"), "{}", ran.stdout);
    let repaired = store(&project, &["verify", "--repair"]);
    assert!(repaired.stdout.contains("(repaired)"), "{}", repaired.stdout);
    project.ok(&[]);
    let ran = store(&project, &["verify"]);
    assert_eq!((ran.code, ran.stdout.contains("all whole")), (0, true), "{}", ran.stdout);
}

#[test]
fn a_damaged_result_is_worked_out_again_when_it_is_needed() {
    let project = Project::new();
    project.ok(&[]);
    let ask = fs::read_to_string(project.path("pipelines/bench.lock")).unwrap();
    let table = ask
        .lines()
        .skip_while(|line| !line.contains("stage.\"ask\""))
        .find_map(|line| Some(line.strip_prefix("result = \"")?.trim_end_matches('"').to_owned()));
    let table = table.unwrap();
    let blob = project.path(&format!(".forge/cas/{}/{}", &table[..2], &table[2..]));
    let damage = || fs::write(&blob, "bad").unwrap();
    damage();
    // Nobody needs it: nothing runs.
    assert_eq!(project.ok(&[]).states()["ask"], "fresh");
    project.edit("pipelines/bench.toml", "samples = \"ask\"", "samples = \"ask\"\ntitle = \"New\"");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.states()["report"].as_str()), (0, "ran"));
    assert!(ran.stderr.contains("missing or damaged in the store; working it out again"));
    assert!(!project.ok(&[]).stderr.contains("damaged"));

    project.edit("pipelines/bench.toml", "title = \"New\"", "title = \"Newer\"");
    damage();
    let frozen = project.apply(&["--frozen"]);
    assert_eq!(frozen.code, 1);
    assert!(frozen.stderr.contains("damaged in the store, and the run is frozen"));
}

#[test]
fn results_travel_in_a_file_and_between_stores() {
    let (one, two, three) = (Project::new(), Project::new(), Project::new());
    one.ok(&[]);
    let file = one.path("results.tar").display().to_string();
    let of = json(&one, &["export", &file, "--of", "pipelines/bench.lock"]);
    assert!(of["records"].as_u64().unwrap() >= 23, "{of}");
    let moved = json(&two, &["import", &file]);
    assert_eq!((&moved["records"], &moved["damaged"]), (&of["records"], &0.into()));
    assert_eq!(two.ok(&[]).live(), 0);
    assert_eq!(json(&two, &["import", &file])["records"], 0);

    three.ok(&["--limit", "2"]);
    let other = two.path(".forge").display().to_string();
    let merged = json(&three, &["merge", &other]);
    assert!(merged["records"].as_u64().unwrap() > 10, "{merged}");
    assert_eq!(three.ok(&[]).live(), 0);

    // A file that was tampered with: what does not prove itself stays outside.
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(9).position(|window| window == b"\"sample\":").unwrap();
    bytes[at + 1] ^= 1;
    fs::write(&file, bytes).unwrap();
    let ran = store(&Project::new(), &["import", &file, "--json"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap()["damaged"], 1);
}

#[test]
fn clear_asks_and_then_removes_everything() {
    let project = Project::new();
    project.ok(&[]);
    let ran = store(&project, &["clear"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("add `--yes`"), "{}", ran.stderr);
    let report = json(&project, &["clear", "--yes"]);
    assert_eq!((&report["records_kept"], &report["blobs_kept"]), (&0.into(), &0.into()));
    assert_eq!(project.ok(&[]).live(), 10);
}

#[test]
fn plan_and_explain_say_why_samples_miss() {
    let project = Project::new();
    project.ok(&[]);
    project.edit("fixtures/rows.jsonl", "What is 7 + 0?", "What is 7 plus 0?");
    let plan = project.forge(&["plan", "pipelines/bench.toml"]).stdout;
    assert!(plan.contains("1 of 10 samples misses because `flow` changed"), "{plan}");
    project.manifest("temperature = 0.2", super::project::REPLIES);
    let plan = project.forge(&["plan", "pipelines/bench.toml"]).stdout;
    assert!(plan.contains("9 of 10 samples miss because `temperature` 0.0 → 0.2"), "{plan}");
    assert!(
        plan.contains("1 of 10 samples misses because `temperature` 0.0 → 0.2 and `flow` changed"),
        "{plan}"
    );
    let plan = project.forge(&["plan", "pipelines/bench.toml", "--json"]).stdout;
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let ask = plan.as_array().unwrap().iter().find(|node| node["name"] == "ask").unwrap();
    let reason = &ask["survey"]["reasons"][0];
    assert_eq!((&reason["samples"], &reason["why"]), (&9.into(), &"changed".into()));
    assert_eq!(reason["fields"][0]["path"], "temperature");
    let explain = |node: &str| project.forge(&["explain", "pipelines/bench.toml", node]).stdout;
    assert!(explain("ask").contains("9 of 10 samples miss because"), "{}", explain("ask"));
    let flow = explain("ask/q3");
    assert!(flow.contains("request 1 (key"), "{flow}");
    assert!(flow.contains("to be asked; temperature: 0.0 -> 0.2"), "{flow}");
}

#[test]
fn a_frozen_run_names_the_first_miss() {
    let project = Project::new();
    project.ok(&["--set", "num_flows=4"]);
    let ran = project.apply(&["--frozen"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("`flows` would have to run"), "{}", ran.stderr);
    project.ok(&["--until", "flows"]);
    let ran = project.apply(&["--frozen"]);
    assert!(ran.stderr.contains("`ask` would have to run"), "{}", ran.stderr);
    assert_eq!(ran.live(), 0);
}

#[test]
fn verify_works_the_lock_file_out_again() {
    let project = Project::new();
    project.ok(&[]);
    let verify =
        |args: &[&str]| project.forge(&[&["verify", "pipelines/bench.toml"], args].concat());
    let ran = verify(&[]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("10 samples replayed and scored again"), "{}", ran.stdout);
    assert!(ran.stdout.contains("shows what the remembered one shows"), "{}", ran.stdout);

    // A score that somebody has improved by hand.
    let lock = project.read("pipelines/bench.lock");
    project.edit(
        "pipelines/bench.lock",
        "metrics.accuracy = 0.500000",
        "metrics.accuracy = 0.900000",
    );
    let ran = verify(&["--json"]);
    assert_eq!(ran.code, 1);
    let verdicts: Value = serde_json::from_str(&ran.stdout).unwrap();
    let ask = verdicts.as_array().unwrap().iter().find(|v| v["stage"] == "ask").unwrap();
    assert_eq!(ask["differences"][0], "accuracy: 0.900000 in the lock file, 0.500000 now");

    // A prompt that was changed after the run.
    project.write("pipelines/bench.lock", &lock);
    project.edit("pipelines/bench.toml", "flows = \"flows\"", "flows = \"flows\"\nseed = 7");
    let ran = verify(&[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("key: `seed` (absent) → 7"), "{}", ran.stdout);
    assert!(ran.stdout.contains("sample `q0`: the store has no answer"), "{}", ran.stdout);

    fs::remove_file(project.path("pipelines/bench.lock")).unwrap();
    assert_eq!(verify(&[]).code, 2);
}
