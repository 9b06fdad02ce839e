//! What holds a program back whose code a model wrote. Namespaces and limits are set by `unshare` and `prlimit` of
//! util-linux, since the calls themselves would need unsafe code. What holds is tried out and not assumed.
//! Knows nothing of what is run.
//!
//! In its own user namespace a program is nobody; in its own network namespace there is no network, not even
//! loopback; in its own process namespace it sees and can signal nothing else, and everything it started ends
//! with it; in its own mount namespace everything but its folder can only be read. A second user namespace within
//! takes the right to undo that.

use std::process::{Command, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

/// Most bytes of a file that a program writes.
const FILE_MAX: u64 = 16 << 20;
/// Most open files.
const OPEN_MAX: u64 = 256;
/// Most processes, where the kernel counts those of a namespace.
const PROCESSES_MAX: u64 = 64;

/// Run as the first process of the namespaces: $1 is a word that says that setting up failed, $2 the folder.
const SET_UP: &str = r#"
word=$1 folder=$2; shift 2
mount --make-rprivate / && mount --bind "$folder" "$folder" && mount -t proc proc /proc || { echo "$word" >&2; exit 125; }
cut -d' ' -f5 /proc/self/mountinfo | while read -r at; do
    [ "$at" = "$folder" ] || mount -o remount,bind,ro "$at" 2>/dev/null || :
done
cd "$folder" && exec "$@"
"#;

/// Namespaces of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walls {
    /// User, network, processes, mounts.
    All,
    /// The same without mounts.
    NoMounts,
    None,
}

/// What a program may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) seconds: u64,
    pub(super) memory: u64,
}

/// What was found to hold.
#[derive(Debug, Clone)]
pub(super) struct Sandbox {
    walls: Walls,
    limits: bool,
}

impl Sandbox {
    /// Tries what this machine lets everybody do. `kept` are folders that must not be written to.
    pub(super) fn find(kept: &[&Utf8Path]) -> Sandbox {
        let holds = |walls| {
            let Ok(folder) = tempfile::tempdir() else { return false };
            let Some(path) = Utf8Path::from_path(folder.path()) else { return false };
            let Ok(path) = path.canonicalize_utf8() else { return false };
            // In the namespaces this shell is a child of their first process.
            let mut check = "[ $PPID -eq 1 ]".to_owned();
            let mut words = vec!["sh".to_owned(), "-c".to_owned(), String::new(), "sh".to_owned()];
            if walls == Walls::All {
                check.push_str(
                    " && : > here && for at in \"$@\"; do [ ! -w \"$at\" ] || exit 1; done",
                );
                words.extend(kept.iter().map(|path| path.to_string()));
            }
            words[2] = check;
            let sandbox = Sandbox { walls, limits: false };
            ends_well(&sandbox.words(&path, "set-up", NO_BOUNDS, words), &path)
        };
        let walls = [Walls::All, Walls::NoMounts].into_iter().find(|walls| holds(*walls));
        let limits = ["prlimit", "--core=0", "--", "true"].map(str::to_owned);
        let limits = ends_well(&limits, Utf8Path::new("/"));
        Sandbox { walls: walls.unwrap_or(Walls::None), limits }
    }

    /// Whether a program can reach nothing that it should not.
    pub(super) fn holds(&self) -> bool {
        self.walls != Walls::None && self.limits
    }

    /// What holds, in words.
    pub(super) fn protections(&self) -> String {
        let mut words = match self.walls {
            Walls::All => vec!["no network", "its own processes", "no rights", "files read-only"],
            Walls::NoMounts => vec!["no network", "its own processes", "no rights"],
            Walls::None => Vec::new(),
        };
        if self.limits {
            words.push("limits of time, memory and files");
        }
        words.push("no variables of the environment");
        words.join(", ")
    }

    /// What is missing, for a refusal.
    pub(super) fn missing(&self) -> &'static str {
        match (self.walls, self.limits) {
            (Walls::None, true) => {
                "`unshare` (util-linux) is not there, or may not make user namespaces"
            }
            (_, false) => "`prlimit` (util-linux) is not there",
            _ => "nothing",
        }
    }

    /// The words of a command that runs `program` in `folder`. `word` is written to stderr, and the exit code
    /// is 125, where setting up fails.
    pub(super) fn words(
        &self,
        folder: &Utf8Path,
        word: &str,
        bounds: Bounds,
        program: Vec<String>,
    ) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut add = |part: &[&str]| words.extend(part.iter().map(|word| (*word).to_owned()));
        let unshare = ["unshare", "--user", "--map-root-user", "--net", "--ipc", "--pid"];
        let ending = ["--fork", "--kill-child", "--"];
        match self.walls {
            Walls::All => {
                add(&unshare);
                add(&["--mount"]);
                add(&ending);
                add(&["sh", "-c", SET_UP, "sh", word, folder.as_str(), "unshare", "--user", "--"]);
            }
            Walls::NoMounts => {
                add(&unshare);
                add(&ending);
                add(&["unshare", "--user", "--"]);
            }
            Walls::None => {}
        }
        if self.walls != Walls::None {
            // The first process of a namespace gives the end of the program on as its exit code: `unshare` has only words
            // for a child that was killed.
            add(&["sh", "-c", "\"$@\"; exit $?", "sh"]);
        }
        if self.limits {
            let mut limits = vec![
                format!("--cpu={}", bounds.seconds),
                format!("--as={}", bounds.memory),
                format!("--fsize={FILE_MAX}"),
                format!("--nofile={OPEN_MAX}"),
                "--core=0".to_owned(),
            ];
            // Outside a namespace the processes of everything else would count.
            if self.walls != Walls::None {
                limits.push(format!("--nproc={PROCESSES_MAX}"));
            }
            add(&["prlimit"]);
            words.extend(limits);
            words.push("--".to_owned());
        }
        words.extend(program);
        words
    }
}

const NO_BOUNDS: Bounds = Bounds { seconds: 10, memory: 1 << 32 };

/// Longest wait for a trial.
const TRIAL: Duration = Duration::from_secs(10);

fn ends_well(words: &[String], folder: &Utf8Path) -> bool {
    let child = Command::new(&words[0])
        .args(&words[1..])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    let start = std::time::Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if start.elapsed() < TRIAL => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// A program of `PATH`.
pub(super) fn program(name: &str, path: Option<&str>) -> Option<Utf8PathBuf> {
    if name.contains('/') {
        return Some(Utf8PathBuf::from(name)).filter(|path| path.is_file());
    }
    let folders = path.unwrap_or("/usr/bin:/bin").split(':').filter(|folder| !folder.is_empty());
    folders.map(|folder| Utf8Path::new(folder).join(name)).find(|path| path.is_file())
}
