//! Runs the tests of the targets against the code of an answer. Knows nothing of the language beyond what the
//! manifest says.
//!
//! A program is right when it ends well and its last line was reached: the tests are followed by a line that
//! prints a word, so that code that ends the program before the tests run is not right.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use camino::Utf8Path;
use serde_json::{Value, json};

use super::sandbox::{Bounds, Sandbox, program};
use super::{Answer, Doors, Unable};
use crate::digest::Digest;
use crate::sample::Score;
use crate::scorer::json as json_text;
use crate::stage::child::{self, End, tail};
use crate::stage::{Context, StageError};

/// Version of how programs are made and run. 2: an end by the time of the processor has the words of one by the clock.
pub(super) const REV: u32 = 2;
pub(super) const SOURCE: &str =
    "functional correctness by tests (HumanEval, Chen et al. 2021; MBPP, Austin et al. 2021)";

/// Where the line that shows the end of the tests has its word.
pub(super) const WORD: &str = "{word}";
/// Where the command has its file.
pub(super) const FILE: &str = "{file}";

/// Bytes that a program may say.
const TALK_MAX: usize = 1 << 20;
/// Characters of its last line that a score keeps.
const SHOWN_MAX: usize = 300;
/// Time beyond that of the processor: programs wait for it, and start.
const GRACE: u32 = 3;

pub(super) struct Code {
    pub(super) command: Vec<String>,
    pub(super) file: String,
    /// Names of the language as fences of code have them.
    pub(super) languages: Vec<String>,
    /// A line that prints [`WORD`]; without it the exit code alone decides.
    pub(super) done: Option<String>,
    pub(super) timeout: Duration,
    pub(super) memory_mb: u32,
    pub(super) allow_unsandboxed: bool,
}

impl Code {
    pub(super) fn describe(&self) -> Value {
        json!({
            "command": self.command, "done": self.done, "file": self.file, "languages": self.languages,
            "memory_mb": self.memory_mb, "timeout_ms": self.timeout.as_millis() as u64,
        })
    }

    /// What this machine has to hold programs back. Without enough of it the answer is no, unless the manifest
    /// allows that.
    pub(super) fn sandbox(&self, name: &str, context: &Context) -> Result<Sandbox, StageError> {
        let path = (context.env)("PATH");
        if program(&self.command[0], path.as_deref()).is_none() {
            return Err(StageError::User(format!(
                "the scorer `{name}` runs `{}`, and there is no such program on the PATH",
                self.command[0]
            )));
        }
        let home = (context.env)("HOME").unwrap_or_default();
        let kept = [context.root.as_path(), Utf8Path::new(&home), Utf8Path::new("/tmp")];
        let kept: Vec<_> = kept.into_iter().filter(|path| path.is_dir()).collect();
        let sandbox = Sandbox::find(&kept);
        if !sandbox.holds() && !self.allow_unsandboxed {
            return Err(StageError::User(format!(
                "the scorer `{name}` runs code that a model wrote, and nothing here holds it back: {}; run forge where \
                 that is, or set `allow_unsandboxed = true` where the whole machine may be broken",
                sandbox.missing()
            )));
        }
        Ok(sandbox)
    }

    /// The program: the answer's code, the tests of all targets, and the line that shows their end.
    fn program(&self, text: &str, targets: &[String]) -> (String, String) {
        let languages: Vec<&str> = self.languages.iter().map(String::as_str).collect();
        let code = json_text::first_block(text, &languages).unwrap_or(text).trim_end();
        let mut program = format!("{code}\n\n{}\n", targets.join("\n"));
        let word = Digest::of_json(&("forge-code", &program)).short();
        if let Some(done) = &self.done {
            program.push_str(&format!("\n{}\n", done.replace(WORD, &word)));
        }
        (program, word)
    }

    pub(super) async fn score(
        &self,
        name: &str,
        doors: &Doors,
        text: &str,
        answer: &Answer<'_>,
    ) -> Result<Score, Unable> {
        let broken = |what: &str, error: &dyn std::fmt::Display| {
            Unable::Broken(format!("the scorer `{name}` {what}: {error}"))
        };
        let (program, word) = self.program(text, &answer.subject.flow.targets);
        let sandbox = doors.sandboxes.get(name).expect("BUG: a scorer of code without its sandbox");
        let _turn =
            doors.programs.acquire().await.map_err(|error| broken("cannot start", &error))?;
        let dir = tempfile::Builder::new().prefix("forge-code-").tempdir();
        let dir = dir.map_err(|error| broken("cannot make a folder", &error))?;
        let folder =
            dir.path().canonicalize().map_err(|error| broken("lost its folder", &error))?;
        let folder =
            Utf8Path::from_path(&folder).ok_or_else(|| broken("cannot start", &"odd folder"))?;
        std::fs::write(folder.join(&self.file), &program)
            .map_err(|error| broken("cannot write its file", &error))?;
        let words = self.command.iter().map(|word| word.replace(FILE, &self.file)).collect();
        let bounds = Bounds {
            seconds: self.timeout.as_secs_f64().ceil().max(1.0) as u64,
            memory: u64::from(self.memory_mb) << 20,
        };
        // Not the word of the program, which the program could write.
        let failed = Digest::of_json(&("forge-set-up", &word)).short();
        let words = sandbox.words(folder, &failed, bounds, words);
        let mut process = tokio::process::Command::new(&words[0]);
        process.args(&words[1..]).current_dir(folder).env_clear();
        if let Some(path) = (doors.env)("PATH") {
            process.env("PATH", path);
        }
        for (variable, value) in
            [("HOME", folder.as_str()), ("TMPDIR", folder.as_str()), ("LANG", "C.UTF-8")]
        {
            process.env(variable, value);
        }
        let ran = child::run(process, Vec::new(), self.timeout * GRACE, TALK_MAX).await;
        let ran = ran.map_err(|error| broken("cannot start", &error))?;
        let mut score = Score { value: Some(0.0), ..Score::new(name) };
        let status = match ran.end {
            End::Exited(status) if !is_out_of_time(status) => status,
            // Which of the two comes first depends on what else the machine does.
            End::TimedOut | End::Exited(_) => {
                let limit = humantime::format_duration(self.timeout);
                score.detail = Some(format!("no end within {limit}"));
                return Ok(score);
            }
            End::Flooded => {
                score.detail = Some(format!("it wrote more than {} KiB", TALK_MAX >> 10));
                return Ok(score);
            }
        };
        let said = String::from_utf8_lossy(&ran.stdout);
        let reached = self.done.is_none() || said.lines().any(|line| line.trim() == word);
        if status.code() == Some(125) && tail(&ran.stderr, 64).lines().any(|line| line == failed) {
            return Err(broken("cannot set up its sandbox", &status));
        }
        if status.success() && reached {
            score.value = Some(1.0);
        } else if status.success() {
            score.detail = Some("the program ended before the end of the tests".to_owned());
        } else {
            score.detail =
                Some(last_words(&ran.stderr, folder).unwrap_or_else(|| status.to_string()));
        }
        Ok(score)
    }
}

/// Whether the limit on the time of the processor has ended it: by one of its signals, which whoever stands between
/// may give on as a number.
fn is_out_of_time(status: ExitStatus) -> bool {
    const SIGKILL: i32 = 9;
    const SIGXCPU: i32 = 24;
    let signal = status.signal().or(status.code().map(|code| code - 128));
    matches!(signal, Some(SIGKILL | SIGXCPU))
}

/// The last line of an error, without what differs from run to run: folders and addresses.
fn last_words(stderr: &[u8], folder: &Utf8Path) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?.trim();
    let line = line.replace(folder.as_str(), ".");
    let mut parts = line.split("0x");
    let mut out = parts.next().unwrap_or("").to_owned();
    for part in parts {
        out.push_str("0x…");
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    }
    Some(out.chars().take(SHOWN_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python() -> Code {
        Code {
            command: vec!["python3".to_owned()],
            file: "main.py".to_owned(),
            languages: vec!["python".to_owned(), "py".to_owned()],
            done: Some(format!("print(\"{WORD}\")")),
            timeout: Duration::from_secs(1),
            memory_mb: 512,
            allow_unsandboxed: false,
        }
    }

    #[test]
    fn the_code_of_a_reply_comes_before_all_tests() {
        let targets = ["assert f(1) == 1".to_owned(), "assert f(2) == 2".to_owned()];
        let reply = "Here:\n```python\ndef f(x):\n    return x\n```\nIt works.";
        let (program, word) = python().program(reply, &targets);
        let want = "def f(x):\n    return x\n\nassert f(1) == 1\nassert f(2) == 2\n\nprint(\"";
        assert_eq!(program, format!("{want}{word}\")\n"));
        assert!(
            python().program("def g(): pass", &targets).0.starts_with("def g(): pass\n\nassert")
        );
    }

    #[test]
    fn an_end_by_the_limit_of_time_is_told_from_others() {
        // As wait(2) packs them: the signal in the low bits, the exit code above.
        for (raw, expected) in
            [(9, true), (24, true), (11, false), (137 << 8, true), (1 << 8, false), (0, false)]
        {
            assert_eq!(is_out_of_time(ExitStatus::from_raw(raw)), expected, "{raw}");
        }
    }

    #[test]
    fn last_words_are_the_same_in_every_run() {
        let stderr = b"Traceback\n  File \"/tmp/a1/x\"\nE: <f at 0x7f01> in /tmp/a1/main.py\n\n";
        let folder = Utf8Path::new("/tmp/a1");
        assert_eq!(last_words(stderr, folder).unwrap(), "E: <f at 0x…> in ./main.py");
        assert_eq!(last_words(b" \n", folder), None);
    }
}
