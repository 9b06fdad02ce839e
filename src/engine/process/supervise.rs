//! The other side of the pipe: starts a command, and ends it with all that it started when the pipe closes.
//! Knows nothing of what the command is.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, Signal, System};

/// The hidden command of this program that comes here.
pub const COMMAND: &str = "supervise-server";

/// How long a server may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);
/// How often its descendants are looked for, as long as they are known to be its own.
const FAMILY_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs `command` until it ends or standard input closes. Returns the exit code for this process.
pub fn run(command: &[String]) -> u8 {
    let Some((program, arguments)) = command.split_first() else { return 2 };
    // A process group of its own, so that one signal reaches everything in it.
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).process_group(0).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            use std::io::Write;
            // Standard error is the log.
            let _ = writeln!(std::io::stderr(), "cannot start `{program}`: {error}");
            return 127;
        }
    };
    let closed = Arc::new(AtomicBool::new(false));
    let closes = closed.clone();
    std::thread::spawn(move || {
        let mut input = std::io::stdin();
        let mut byte = [0];
        while matches!(input.read(&mut byte), Ok(1..)) {}
        closes.store(true, Ordering::SeqCst);
    });
    let leader = Pid::from_u32(child.id());
    let (mut known, mut looked) = (BTreeSet::new(), Instant::now());
    loop {
        if looked.elapsed() >= FAMILY_EVERY {
            known = family(leader);
            looked = Instant::now();
        }
        match child.try_wait() {
            Ok(Some(status)) => {
                // Its children may outlive it; of their parents nothing is known any more.
                signal(leader, &known, Signal::Kill);
                return code(status);
            }
            Ok(None) if closed.load(Ordering::SeqCst) => {
                stop(&mut child);
                return 0;
            }
            Ok(None) => std::thread::sleep(LOOK_EVERY),
            Err(_) => return 1,
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| 128 + signal);
    u8::try_from(status.code().or(signal).unwrap_or(1)).unwrap_or(1)
}

/// Ends a process, its group, and its descendants that have left the group.
fn stop(child: &mut Child) {
    let leader = Pid::from_u32(child.id());
    // Before anything ends: of a process whose parent is gone nobody knows whose it was.
    let family = family(leader);
    signal(leader, &family, Signal::Term);
    let start = Instant::now();
    while start.elapsed() < GRACE {
        let leads = matches!(child.try_wait(), Ok(None));
        if !leads && alive(leader, &family).is_empty() {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    signal(leader, &family, Signal::Kill);
    let _ = child.wait();
}

fn processes() -> System {
    let mut system = System::new();
    // Their threads are no processes.
    let what = ProcessRefreshKind::nothing().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    system
}

/// A process with all its descendants.
fn family(leader: Pid) -> BTreeSet<Pid> {
    let system = processes();
    let mut family = BTreeSet::from([leader]);
    loop {
        let children = system
            .processes()
            .values()
            .filter(|process| process.parent().is_some_and(|parent| family.contains(&parent)));
        let before = family.len();
        let found: Vec<Pid> = children.map(sysinfo::Process::pid).collect();
        family.extend(found);
        if family.len() == before {
            return family;
        }
    }
}

/// Who of the family is left. What has ended and was not waited for is not.
fn alive(leader: Pid, family: &BTreeSet<Pid>) -> Vec<Pid> {
    let system = processes();
    let gone =
        |status| matches!(status, sysinfo::ProcessStatus::Zombie | sysinfo::ProcessStatus::Dead);
    let lives = |pid: &&Pid| {
        **pid != leader && system.process(**pid).is_some_and(|process| !gone(process.status()))
    };
    family.iter().filter(lives).copied().collect()
}

fn signal(leader: Pid, family: &BTreeSet<Pid>, signal: Signal) {
    // The group through the shell: the call itself would need unsafe code.
    let word = if signal == Signal::Kill { "KILL" } else { "TERM" };
    let _ = Command::new("sh")
        .args(["-c", &format!("kill -{word} -{leader}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let system = processes();
    for process in family.iter().filter_map(|pid| system.process(*pid)) {
        process.kill_with(signal);
    }
}
