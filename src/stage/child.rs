//! Runs a program to its end with bounds on its time and its talk; what it started ends with it. Knows nothing
//! of what it does.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How a program ended.
#[derive(Debug)]
pub(super) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It took too long.
    TimedOut,
    /// It said too much.
    Flooded,
}

/// What a program said, as far as it may.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) end: End,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Runs a program. `talk_max` bounds stdout and stderr, each.
pub(super) async fn run(
    mut command: Command,
    stdin: Vec<u8>,
    timeout: Duration,
    talk_max: usize,
) -> std::io::Result<Ran> {
    // In a group of its own, so that what it starts ends with it.
    command.process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let _group = Group(child.id());
    let mut input = child.stdin.take().expect("BUG: stdin is piped");
    let mut out = child.stdout.take().expect("BUG: stdout is piped");
    let mut err = child.stderr.take().expect("BUG: stderr is piped");
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let talk = async {
        let write = async {
            // A program need not read what it is given.
            let _ = input.write_all(&stdin).await;
            drop(input);
            Ok(())
        };
        let both = (read(&mut out, &mut stdout, talk_max), read(&mut err, &mut stderr, talk_max));
        let ended = futures_util::future::try_join3(write, both.0, both.1).await;
        match ended {
            Ok(_) => child.wait().await.map(End::Exited),
            Err(Stop::Flooded) => Ok(End::Flooded),
            Err(Stop::Io(error)) => Err(error),
        }
    };
    let end = match tokio::time::timeout(timeout, talk).await {
        Ok(end) => end?,
        Err(_) => End::TimedOut,
    };
    Ok(Ran { end, stdout, stderr })
}

enum Stop {
    Flooded,
    Io(std::io::Error),
}

async fn read(
    from: &mut (impl AsyncRead + Unpin),
    into: &mut Vec<u8>,
    most: usize,
) -> Result<(), Stop> {
    let mut bounded = from.take(most as u64 + 1);
    bounded.read_to_end(into).await.map_err(Stop::Io)?;
    if into.len() > most {
        into.truncate(most);
        return Err(Stop::Flooded);
    }
    Ok(())
}

/// A process group that is killed when its leader is no longer waited for.
pub(super) struct Group(pub(super) Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(group) = self.0 else { return };
        // Through the shell: the call itself would need unsafe code.
        let _ = std::process::Command::new("sh")
            .args(["-c", &format!("kill -KILL -{group}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// The end of what a program said, in at most that many characters.
pub(super) fn tail(bytes: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let skip = text.chars().count().saturating_sub(most);
    text.chars().skip(skip).collect::<String>().trim_end().to_owned()
}
