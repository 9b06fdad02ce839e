//! A program of the project as scorer: JSON on stdin, a value as JSON on stdout. Knows nothing of what it does.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Doors, Unable};
use crate::digest::Digest;
use crate::sample::{Score, Unscored};
use crate::stage::child::{self, End, tail};
use crate::stage::{Context, StageError};
use crate::store::replace_file;

/// Version of what a program is given and of how it is read.
pub(super) const REV: u32 = 1;
pub(super) const SOURCE: &str = "the project's own program (promptfoo's `exec`)";

/// Bytes that a program may say.
const TALK_MAX: usize = 1 << 20;
/// Characters of its talk that an error shows.
const SHOWN_MAX: usize = 500;

pub(super) struct Command {
    pub(super) command: Vec<String>,
    /// What it reads, laid out in its folder.
    pub(super) files: Vec<Utf8PathBuf>,
    pub(super) env: BTreeMap<String, String>,
    /// Variables passed through: of these the names count.
    pub(super) pass_env: Vec<String>,
    pub(super) timeout: Duration,
}

/// What a program may say beside a bare number, true or false.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    value: Option<f64>,
    #[serde(default)]
    parsed: Option<String>,
    #[serde(default)]
    detail: Option<String>,
}

impl Command {
    pub(super) fn describe(&self) -> Value {
        json!({ "command": self.command, "env": self.env, "pass_env": self.pass_env })
    }

    /// Reads its files into the store.
    pub(super) fn import(&self, context: &Context) -> Result<BTreeMap<String, Digest>, StageError> {
        let import = |path: &Utf8PathBuf| {
            let full = context.resolve(path)?;
            if full.is_dir() {
                let message = format!("`{path}` is a folder; name the files that the scorer reads");
                return Err(StageError::User(message));
            }
            Ok((path.to_string(), context.store.import_whole(&full)?))
        };
        self.files.iter().map(import).collect()
    }

    pub(super) async fn score(
        &self,
        name: &str,
        doors: &Doors,
        files: &BTreeMap<String, Digest>,
        answer: &Answer<'_>,
    ) -> Result<Score, Unable> {
        let shown = self.command.join(" ");
        let broken =
            |what: String| Unable::Broken(format!("the scorer `{name}` (`{shown}`) {what}"));
        let _turn = doors.programs.acquire().await.map_err(|error| broken(error.to_string()))?;
        let dir = tempfile::Builder::new().prefix("forge-scorer-").tempdir();
        let dir = dir.map_err(|error| broken(format!("cannot get a folder: {error}")))?;
        let folder =
            Utf8Path::from_path(dir.path()).ok_or_else(|| broken("has an odd folder".into()))?;
        for (path, digest) in files {
            let bytes = doors.store.blob(*digest);
            let bytes = bytes.ok_or_else(|| broken(format!("has lost `{path}`; run again")))?;
            replace_file(&folder.join(path), &bytes).map_err(|error| broken(error.to_string()))?;
        }
        let subject = answer.subject;
        let flow = subject.flow;
        let given = json!({
            "answer": answer.text, "reply": subject.reply, "question": subject.question,
            "targets": flow.targets, "flow": flow.id, "tags": flow.tags,
        });
        let given = serde_json::to_vec(&given).expect("BUG: texts are plain data");
        let mut process = tokio::process::Command::new(&self.command[0]);
        process.args(&self.command[1..]).current_dir(folder).env_clear();
        for variable in ["PATH"].into_iter().chain(self.pass_env.iter().map(String::as_str)) {
            if let Some(value) = (doors.env)(variable) {
                process.env(variable, value);
            }
        }
        process.envs(&self.env);
        let ran = child::run(process, given, self.timeout, TALK_MAX).await;
        let ran = ran.map_err(|error| broken(format!("cannot be started: {error}")))?;
        match ran.end {
            End::TimedOut => {
                let limit = humantime::format_duration(self.timeout);
                return Err(broken(format!("did not end within {limit}")));
            }
            End::Flooded => return Err(broken(format!("wrote more than {} KiB", TALK_MAX >> 10))),
            End::Exited(status) if !status.success() => {
                return Err(broken(format!(
                    "ended with {status}\n{}",
                    tail(&ran.stderr, SHOWN_MAX)
                )));
            }
            End::Exited(_) => {}
        }
        read(name, &ran.stdout).map_err(broken)
    }
}

/// Reads what a program said.
fn read(name: &str, stdout: &[u8]) -> Result<Score, String> {
    const WANTED: &str = "write a number from 0 to 1, true, false, or {\"value\": 0.5, \"detail\": \"why\"} \
                          (value null: no verdict)";
    let wrong = |what: String| format!("said {what}; {WANTED}");
    let value: Value = serde_json::from_slice(stdout)
        .map_err(|error| wrong(format!("no JSON ({error}): {}", tail(stdout, SHOWN_MAX))))?;
    let said = match value {
        Value::Bool(right) => {
            Said { value: Some(f64::from(u8::from(right))), parsed: None, detail: None }
        }
        Value::Number(ref number) => Said { value: number.as_f64(), parsed: None, detail: None },
        Value::Object(_) => {
            serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?
        }
        other => return Err(wrong(other.to_string())),
    };
    match said.value {
        Some(value) if !(0.0..=1.0).contains(&value) => Err(wrong(format!("the value {value}"))),
        None => Ok(Score { detail: said.detail, ..Score::none(name, Unscored::Abstained, "") }),
        value => Ok(Score { value, parsed: said.parsed, detail: said.detail, ..Score::new(name) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_may_say() {
        let value = |text: &str| read("x", text.as_bytes()).map(|score| score.value);
        assert_eq!(value("0.5\n"), Ok(Some(0.5)));
        assert_eq!(value("true"), Ok(Some(1.0)));
        assert_eq!(value("{\"value\": 0, \"detail\": \"no\"}"), Ok(Some(0.0)));
        assert_eq!(value("{\"value\": null}"), Ok(None));
        for wrong in ["", "1.5", "-1", "\"1\"", "[1]", "{\"valeu\": 1}", "1 2"] {
            assert!(value(wrong).is_err(), "{wrong}");
        }
    }
}
