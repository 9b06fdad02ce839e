//! Kills, interrupts and neighbours: nothing that was answered is asked again.

use std::process::{Child, Command, Stdio};

use super::project::{Project, REPLIES, Ran};

const FLOWS: u64 = 60;

/// Sixty flows, two at a time. Latency is in no key, so that the last run of a test may be a quick one.
fn slow() -> Project {
    let project = Project::with("concurrency = 2", &engine("100ms"));
    project.rows(FLOWS as usize);
    project.edit("pipelines/bench.toml", "default = 10", &format!("default = {FLOWS}"));
    project
}

fn engine(latency: &str) -> String {
    format!("latency = \"{latency}\"\n{REPLIES}")
}

fn hurry(project: &Project) {
    project.edit("pipelines/bench.toml", "latency = \"100ms\"", "latency = \"1ms\"");
}

fn start(project: &Project) -> Child {
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    let kill = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status();
    assert!(kill.unwrap().success());
}

#[test]
fn what_was_answered_before_a_kill_is_served_from_the_store() {
    let project = slow();
    for round in 1..=3 {
        let mut child = start(&project);
        project.wait_for_samples(round * 6);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let killed = project.logged("\"live\":1") as u64;
    assert!((1..FLOWS).contains(&killed), "{killed} answered before the last kill");
    hurry(&project);
    let ran = project.ok(&[]);
    assert!(ran.disk() >= killed, "{killed} answered, {} from the store", ran.disk());
    assert_eq!(ran.disk() + ran.live(), FLOWS);
    assert_eq!(project.ok(&[]).live(), 0);
}

#[test]
fn the_first_interrupt_lets_requests_finish() {
    let project = slow();
    let child = start(&project);
    project.wait_for_samples(5);
    interrupt(&child);
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("waiting for requests under way"), "{}", ran.stderr);
    let answered = ran.live();
    assert!((5..FLOWS).contains(&answered), "{answered}");
    assert_eq!(ran.done()["status"], "cancelled");
    hurry(&project);
    let again = project.ok(&[]);
    assert_eq!((again.live(), again.disk()), (FLOWS - answered, answered));
}

#[test]
fn an_interrupt_between_attempts_ends_the_run() {
    let project = Project::with("max_retries = 90", "replies = [{ fail = \"429 slow down\" }]");
    project.rows(1);
    let child = start(&project);
    while project.logged("\"engine_loaded\"") == 0 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    interrupt(&child);
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.stderr);
}

#[test]
fn two_runs_at_once_on_one_store_both_succeed() {
    let project = slow();
    hurry(&project);
    let (one, two) = (start(&project), start(&project));
    for child in [one, two] {
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
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
