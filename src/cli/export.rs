//! `forge export`: a run in the forms of other tools.

use camino::Utf8PathBuf;
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::logs::select;
use super::project::usage;
use super::runs::StorePlace;
use super::terminal::visible_line;
use super::{FAILED, Failure, print, say};
use crate::export::{self, ExportError, Format};
use crate::history;
use crate::record::StageRun;

#[derive(Args)]
pub(super) struct Export {
    /// The run: a part of its id, a tag, `last`
    #[arg(default_value = history::LAST)]
    run: String,
    #[command(flatten)]
    place: StorePlace,
    /// Which form
    #[arg(long, value_parser = PossibleValuesParser::new(Format::names()))]
    format: String,
    /// Folder for the files; made where it is not there
    #[arg(long, value_name = "DIR")]
    output: Utf8PathBuf,
    /// Only this workflow; of a matrix, all its cells
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
}

impl Export {
    pub(super) fn run(self) -> Result<(), Failure> {
        let store = self.place.open()?;
        let run = history::find(&store, &self.run)?;
        let stages: Vec<&StageRun> = match &self.stage {
            None => run.record.stages.iter().collect(),
            Some(stage) => select(&run, stage)?,
        };
        let format = Format::of(&self.format).expect("BUG: the parser knows the forms");
        let written = export::write_run(&store, &run, &stages, format, &self.output)?;
        for (stage, why) in &written.left_out {
            say(&visible_line(&format!("warning: `{stage}` is left out: {why}")));
        }
        if written.files.is_empty() {
            let message = match &self.stage {
                Some(stage) => format!("`{stage}` of run `{}` has no samples to export", run.id()),
                None => format!("run `{}` has no samples to export", run.id()),
            };
            return Err(usage(message));
        }
        written.files.iter().for_each(|file| print(file.as_str()));
        Ok(())
    }
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::History(error) => error.into(),
            other => Failure::Message(other.to_string(), FAILED),
        }
    }
}
