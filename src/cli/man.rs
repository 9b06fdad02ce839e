//! `forge man`.

use camino::Utf8PathBuf;
use clap::{Args, CommandFactory};

use super::{Cli, FAILED, Failure, say};

#[derive(Args)]
pub(super) struct Man {
    /// Folder for the pages, one for each command
    #[arg(long, value_name = "DIR")]
    output: Utf8PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<(), Failure> {
        let cannot = |error: std::io::Error| {
            let why = crate::stage::plain(&error);
            Failure::Message(format!("cannot write to `{}`: {why}", self.output), FAILED)
        };
        std::fs::create_dir_all(&self.output).map_err(cannot)?;
        clap_mangen::generate_to(Cli::command(), &self.output).map_err(cannot)?;
        say(&format!("read them with `man {}/forge.1`", self.output));
        Ok(())
    }
}
