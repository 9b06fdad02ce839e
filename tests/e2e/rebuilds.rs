//! Twenty-five programs and one that joins them: what runs again after which change. Each program leaves a
//! mark outside of the project when it runs, so that what is counted are runs and not what forge says of them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::project::{FORGE, Project, Ran};

const PARTS: usize = 25;

struct Parts {
    project: Project,
    marks: tempfile::TempDir,
}

impl Parts {
    fn new() -> Self {
        let parts = Parts { project: Project::empty(), marks: tempfile::tempdir().unwrap() };
        for i in 0..PARTS {
            parts.project.write(&format!("inputs/{i}.txt"), &format!("part {i}\n"));
        }
        parts.manifest(|_| "cat");
        parts
    }

    /// A manifest in which part `i` is made by the program that `filter` names.
    fn manifest(&self, filter: impl Fn(usize) -> &'static str) {
        let marks = self.marks.path().display().to_string();
        let mut text = "[pipeline]\nname = \"parts\"\n".to_owned();
        let stage = |name: &str, command: &str, rest: &str| {
            format!(
                "\n[stage.{name}]\nkind = \"command\"\nshell = true\n\
                 command = \"echo x >> {marks}/{name}; {command}\"\n{rest}"
            )
        };
        for i in 0..PARTS {
            let command = format!("{} inputs/{i}.txt > out/{i}.txt", filter(i));
            let rest = format!("files = [\"inputs/{i}.txt\"]\noutputs = [\"out/{i}.txt\"]\n");
            text.push_str(&stage(&format!("part-{i}"), &command, &rest));
        }
        let inputs: Vec<_> = (0..PARTS).map(|i| format!("\"part-{i}\"")).collect();
        let rest = format!("inputs = [{}]\noutputs = [\"out/all.txt\"]\n", inputs.join(", "));
        text.push_str(&stage(
            "join",
            "cat out/*.txt > out/all.tmp; mv out/all.tmp out/all.txt",
            &rest,
        ));
        self.project.write("pipelines/parts.toml", &text);
    }

    fn runs(&self) -> usize {
        let marks = fs::read_dir(self.marks.path()).unwrap().flatten();
        marks.map(|mark| fs::read_to_string(mark.path()).unwrap().lines().count()).sum()
    }

    /// Applies in a folder, and counts the programs that ran.
    fn apply_in(&self, root: PathBuf, args: &[&str]) -> (usize, Ran) {
        let before = self.runs();
        let mut command = Command::new(FORGE);
        command.args(["apply", "pipelines/parts.toml"]).args(args).current_dir(root);
        let ran = Ran::of(command.env_remove("FORGE_STORE").output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (self.runs() - before, ran)
    }

    fn apply(&self) -> usize {
        self.apply_in(self.project.root().to_owned(), &[]).0
    }
}

fn touch(path: &std::path::Path, ago: Duration) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - ago).unwrap();
}

#[test]
fn what_runs_again_after_which_change() {
    let parts = Parts::new();
    let project = &parts.project;
    let mut counts = vec![("everything", parts.apply())];
    let mut count = |what, runs| counts.push((what, runs));

    count("nothing changed", parts.apply());
    touch(&project.path("inputs/3.txt"), Duration::from_secs(60));
    count("a file touched", parts.apply());
    project.write("inputs/3.txt", "another part 3\n");
    count("one input changed", parts.apply());
    assert!(project.read("out/all.txt").contains("another part 3"));
    project.write("inputs/3.txt", "part 3\n");
    count("changed back", parts.apply());
    assert!(!project.read("out/all.txt").contains("another part 3"));
    let root = || project.root().to_owned();
    count("a stage again, same output", parts.apply_in(root(), &["--force", "part-7"]).0);
    fs::remove_file(project.path("out/5.txt")).unwrap();
    count("an output deleted", parts.apply());
    assert_eq!(project.read("out/5.txt"), "part 5\n");
    project.write("out/6.txt", "tampered with\n");
    let (runs, ran) = parts.apply_in(root(), &[]);
    count("an output tampered with", runs);
    assert_eq!(project.read("out/6.txt"), "part 6\n");
    assert!(ran.stderr.contains("warning: part-6: `out/6.txt` was edited"), "{}", ran.stderr);
    parts.manifest(|i| if i == 9 { "cat <" } else { "cat" });
    count("a command edited, same output", parts.apply());
    parts.manifest(|i| if i == 9 { "rev" } else { "cat" });
    count("a command edited, other output", parts.apply());

    let elsewhere = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-R").arg(project.root()).arg(elsewhere.path()).status();
    assert!(copied.unwrap().success());
    let copy = elsewhere.path().join(project.root().file_name().unwrap());
    for i in 0..PARTS {
        touch(&copy.join(format!("inputs/{i}.txt")), Duration::from_secs(i as u64));
    }
    count("copied elsewhere, new times", parts.apply_in(copy, &[]).0);

    let table: Vec<_> = counts.iter().map(|(what, runs)| format!("{runs:>2}  {what}")).collect();
    tell!("programs run\n{}", table.join("\n"));
    let runs: Vec<usize> = counts.iter().map(|(_, runs)| *runs).collect();
    assert_eq!(runs, [PARTS + 1, 0, 0, 2, 0, 1, 0, 0, 1, 2, 0], "{table:#?}");
}

#[test]
fn after_a_kill_only_what_was_in_flight_runs_again() {
    let parts = Parts::new();
    // Slow enough to be killed in the middle, one after another in pairs.
    parts.manifest(|_| "sleep 0.05; cat");
    let mut command = parts.project.command(&["apply", "pipelines/parts.toml"]);
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let start = std::time::Instant::now();
    while parts.project.logged("\"state\":\"ran\"") < 5 {
        assert!(start.elapsed().as_secs() < 60, "the run does not get on");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Programs that outlive forge by a moment.
    std::thread::sleep(Duration::from_millis(200));
    let done = parts.project.logged("\"state\":\"ran\"");
    let again = parts.apply();
    tell!("{done} of {} programs were done at the kill, {again} ran after it", PARTS + 1);
    assert!(again <= PARTS + 1 - done, "{done} were done, and {again} ran again");
    assert_eq!(parts.apply(), 0);
}
