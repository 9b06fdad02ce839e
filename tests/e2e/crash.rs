//! Kills, interrupts and neighbours: nothing that was answered is asked again.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::project::{Project, REPLIES, Ran};

const FLOWS: u64 = 60;

fn slow() -> Project {
    let project = Project::with("concurrency = 2", &format!("latency = \"20ms\"\n{REPLIES}"));
    project.rows(FLOWS as usize);
    project.edit("pipelines/bench.toml", "default = 10", &format!("default = {FLOWS}"));
    project
}

fn start(project: &Project) -> Child {
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--quiet"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Finished samples that the log of the only run so far tells of.
fn finished(project: &Project) -> u64 {
    let Ok(runs) = std::fs::read_dir(project.path(".forge/runs")) else { return 0 };
    let log = runs
        .flatten()
        .next()
        .and_then(|run| std::fs::read_to_string(run.path().join("events.log")).ok());
    log.unwrap_or_default().matches("\"sample_finished\"").count() as u64
}

fn wait_for(project: &Project, samples: u64) {
    let start = Instant::now();
    while finished(project) < samples {
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_was_answered_before_a_kill_is_served_from_the_store() {
    let project = slow();
    let mut killed = 0;
    // Each round gets further; the last one ends.
    for round in 1..=3 {
        let mut child = start(&project);
        wait_for(&project, round * 8);
        child.kill().unwrap();
        child.wait().unwrap();
        killed = finished(&project);
        assert!(killed < FLOWS, "the run ended before the kill");
        let last = round == 3;
        if !last {
            let runs = project.path(".forge/runs");
            std::fs::remove_dir_all(runs).unwrap();
        }
    }
    let ran = project.ok(&[]);
    assert!(ran.disk() >= killed, "{killed} answered, {} from the store", ran.disk());
    assert_eq!(ran.disk() + ran.live(), FLOWS);
    assert_eq!(project.ok(&[]).live(), 0);
}

#[test]
fn the_first_interrupt_lets_requests_finish() {
    let project = slow();
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&project, 5);
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("waiting for requests under way"), "{}", ran.stderr);
    let answered = ran.live();
    assert!((5..FLOWS).contains(&answered), "{answered}");
    assert_eq!(ran.done()["status"], "cancelled");
    let again = project.ok(&[]);
    assert_eq!((again.live(), again.disk()), (FLOWS - answered, answered));
}

#[test]
fn two_runs_at_once_on_one_store_both_succeed() {
    let project = slow();
    let (one, two) = (start(&project), start(&project));
    for mut child in [one, two] {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(project.ok(&[]).live(), 0);
}

#[test]
fn a_damaged_store_heals() {
    let project = Project::new();
    project.ok(&[]);
    // Every blob gone: what needs one runs again, and the answers are still in the journal.
    std::fs::remove_dir_all(project.path(".forge/cas")).unwrap();
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.states()["report"].as_str()), (0, "ran"));
    // Every blob corrupt.
    for folder in std::fs::read_dir(project.path(".forge/cas")).unwrap().flatten() {
        for blob in std::fs::read_dir(folder.path()).unwrap().flatten() {
            std::fs::write(blob.path(), "not what its name says").unwrap();
        }
    }
    assert_eq!(project.ok(&[]).live(), 0);
    assert!(project.ok(&[]).states().values().all(|state| state == "fresh"));
}

#[test]
fn an_interrupt_between_attempts_ends_the_run() {
    let project = Project::with("max_retries = 50", "replies = [{ fail = \"429 slow down\" }]");
    project.rows(1);
    let child = start_loud(&project);
    std::thread::sleep(Duration::from_millis(400));
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.stderr);
}

fn start_loud(project: &Project) -> Child {
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Overlapping kills at many points of a run: whatever the log tells of is in the store afterwards.
#[test]
fn kills_at_many_points_lose_nothing() {
    let project = slow();
    let mut answered = 0;
    for round in 0..8 {
        let mut child = start(&project);
        std::thread::sleep(Duration::from_millis(5 + 9 * round));
        let _ = child.kill();
        child.wait().unwrap();
    }
    for run in std::fs::read_dir(project.path(".forge/runs")).unwrap().flatten() {
        let log = std::fs::read_to_string(run.path().join("events.log")).unwrap_or_default();
        answered += log
            .lines()
            .filter(|l| l.contains("sample_finished") && l.contains("\"live\":1"))
            .count() as u64;
    }
    let ran = project.ok(&[]);
    assert!(ran.disk() >= answered, "{answered} were answered, {} are in the store", ran.disk());
    assert_eq!(ran.disk() + ran.live(), FLOWS);
}
