//! Stages that are programs.

use super::project::Project;

fn with_command(stage: &str) -> Project {
    let project = Project::new();
    project.write(
        "scripts/count.sh",
        "wc -l < ask.samples.jsonl | tr -d ' ' > out/count.txt; echo talked >&2\n",
    );
    let manifest = project.read("pipelines/bench.toml") + stage;
    project.write("pipelines/bench.toml", &manifest);
    project
}

const COUNT: &str = r#"
[stage.count]
kind = "command"
inputs = ["ask"]
files = ["scripts/count.sh"]
command = ["sh", "scripts/count.sh"]
outputs = ["out/count.txt"]
env = { MODE = "plain" }

[stage.double]
kind = "command"
inputs = ["count"]
command = "tr 0-9 1-9 < out/count.txt > out/next.txt"
shell = true
outputs = ["out/next.txt"]
"#;

#[test]
fn a_program_runs_once_and_its_output_is_restored() {
    let project = with_command(COUNT);
    let ran = project.ok(&[]);
    assert_eq!(ran.states()["count"], "ran");
    assert_eq!(
        (project.read("out/count.txt"), project.read("out/next.txt")),
        ("10\n".into(), "21\n".into())
    );
    std::fs::remove_file(project.path("out/count.txt")).unwrap();
    assert_eq!(project.ok(&[]).states()["count"], "fresh");
    assert_eq!(project.read("out/count.txt"), "10\n");
}

#[test]
fn an_edit_that_changes_no_bytes_stops_there() {
    let project = with_command(COUNT);
    project.ok(&[]);
    project.edit("scripts/count.sh", "echo talked", "echo said");
    let states = project.ok(&[]).states();
    assert_eq!((&*states["count"], &*states["double"]), ("ran", "fresh"));
    project.edit("pipelines/bench.toml", "MODE = \"plain\"", "MODE = \"other\"");
    assert_eq!(
        project.ok(&[]).states()["count"],
        "ran",
        "its environment is part of what it depends on"
    );
}

#[test]
fn a_program_sees_only_what_is_declared() {
    let project = with_command(
        "\n[stage.env]\nkind = \"command\"\nshell = true\ncommand = \"env | sort > env.txt; ls > ls.txt\"\n\
         outputs = [\"env.txt\", \"ls.txt\"]\nenv = { SHOWN = \"1\" }\n",
    );
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--quiet"]);
    assert!(command.env("SECRET_TOKEN", "hush").status().unwrap().success());
    let env = project.read("env.txt");
    assert!(env.contains("SHOWN=1") && !env.contains("SECRET_TOKEN"), "{env}");
    assert!(!project.read("ls.txt").contains("pipelines"));
}

#[test]
fn a_program_that_fails_says_why() {
    let stage = |command: &str| {
        format!("\n[stage.bad]\nkind = \"command\"\ncommand = {command}\noutputs = [\"x.txt\"]\n")
    };
    let run = |command: &str| with_command(&stage(command)).apply(&[]);
    let failed = run("[\"sh\", \"-c\", \"echo it broke >&2; exit 3\"]");
    assert_eq!(failed.code, 1);
    assert!(
        failed.stderr.contains("ended with exit status: 3") && failed.stderr.contains("it broke")
    );
    let silent = run("[\"true\"]");
    assert!(silent.stderr.contains("did not write `x.txt`"), "{}", silent.stderr);
    let missing = run("[\"no-such-program\"]");
    assert_eq!(missing.code, 2);
    assert!(missing.stderr.contains("cannot start `no-such-program`"), "{}", missing.stderr);
}

#[test]
fn a_failed_stage_stops_what_needs_it_and_no_more_with_keep_going() {
    let stage = "\n[stage.bad]\nkind = \"command\"\ncommand = [\"false\"]\noutputs = [\"x.txt\"]\n\
        [stage.after]\nkind = \"command\"\ninputs = [\"bad\"]\ncommand = [\"true\"]\noutputs = [\"y.txt\"]\n";
    let ran = with_command(stage).apply(&["--keep-going"]);
    let states = ran.states();
    assert_eq!((ran.code, &*states["bad"], &*states["after"]), (1, "failed", "skipped"));
    assert_eq!(states["report"], "ran");
}

#[test]
fn nothing_that_is_read_or_kept_can_be_an_output() {
    for output in [
        "fixtures/rows.jsonl",
        ".git/config",
        ".forge/store.toml",
        "pipelines/bench.toml",
        "templates",
    ] {
        let stage = format!(
            "\n[stage.bad]\nkind = \"command\"\ncommand = [\"true\"]\noutputs = [\"{output}\"]\n"
        );
        let ran = with_command(&stage).apply(&[]);
        assert_eq!(ran.code, 2, "{output}");
        assert!(ran.stderr.contains("`bad` would write"), "{}", ran.stderr);
    }
}

#[test]
fn a_program_made_by_one_stage_runs_in_another() {
    let project = with_command(
        "\n[stage.make]\nkind = \"command\"\nshell = true\noutputs = [\"run.sh\"]\n\
         command = \"printf '#!/bin/sh\\\\necho made > made.txt\\\\n' > run.sh; chmod +x run.sh\"\n\
         [stage.use]\nkind = \"command\"\ninputs = [\"make\"]\ncommand = [\"./run.sh\"]\noutputs = [\"made.txt\"]\n",
    );
    project.ok(&[]);
    assert_eq!(project.read("made.txt"), "made\n");
    std::fs::remove_file(project.path("run.sh")).unwrap();
    project.ok(&[]);
    let run =
        std::process::Command::new(project.path("run.sh")).current_dir(project.root()).status();
    assert!(run.unwrap().success());
}

#[test]
fn what_a_program_starts_ends_with_it() {
    // A duration that nothing else on this machine sleeps for.
    let sleep = format!("sleep 9{}", std::process::id());
    let project = with_command(&format!(
        "\n[stage.slow]\nkind = \"command\"\nshell = true\ntimeout = \"300ms\"\noutputs = [\"x\"]\n\
         command = \"{sleep} & wait\"\n",
    ));
    let ran = project.apply(&["--until", "slow"]);
    assert!(ran.stderr.contains("did not end within 300ms"), "{}", ran.stderr);
    let running = || {
        let pattern = format!("ps ax | grep -v grep | grep -q '{sleep}'");
        std::process::Command::new("sh").args(["-c", &pattern]).status().unwrap().success()
    };
    // The kernel may take a moment to clear up.
    for _ in 0..100 {
        if !running() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("its child is still running");
}
