//! `forge schema`.

use clap::{Args, ValueEnum};

use super::{Failure, print};
use crate::schema;

#[derive(Args)]
pub(super) struct SchemaArgs {
    /// Of which file
    #[arg(value_enum, default_value_t = Of::Manifest)]
    of: Of,
}

#[derive(Clone, Copy, ValueEnum)]
enum Of {
    /// A manifest
    Manifest,
    /// A flow template
    Template,
}

impl SchemaArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let schema = match self.of {
            Of::Manifest => schema::manifest(),
            Of::Template => schema::template(),
        };
        print(schema::text(&schema).trim_end());
        Ok(())
    }
}
