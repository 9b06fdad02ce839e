//! `forge init`: a small project that works at once, with an engine that needs no model.

use camino::Utf8PathBuf;
use clap::Args;

use super::project::usage;
use super::{Failure, say};
use crate::schema;
use crate::store::{Store, replace_file};

/// The files of a new project.
const FILES: &[(&str, &str)] = &[
    ("pipelines/bench.toml", include_str!("init/bench.toml")),
    ("templates/qa.toml", include_str!("init/qa.toml")),
    ("fixtures/questions.jsonl", include_str!("init/questions.jsonl")),
    (".gitignore", ".forge/\nout/\n"),
];

#[derive(Args)]
pub(super) struct Init {
    /// Folder of the project
    #[arg(default_value = ".")]
    folder: Utf8PathBuf,
}

impl Init {
    pub(super) fn run(self) -> Result<(), Failure> {
        let taken: Vec<_> = FILES
            .iter()
            .map(|(path, _)| *path)
            .filter(|path| *path != ".gitignore" && self.folder.join(path).exists())
            .collect();
        if !taken.is_empty() {
            let list = taken.join("`, `");
            return Err(usage(format!(
                "`{}` already has `{list}`; nothing was written",
                self.folder
            )));
        }
        for (path, text) in FILES {
            let path = self.folder.join(path);
            if !path.exists() {
                replace_file(&path, text.as_bytes())?;
            }
        }
        // By these, editors complete and check the files above.
        for (folder, schema) in
            [("pipelines", schema::manifest()), ("templates", schema::template())]
        {
            let path = self.folder.join(folder).join("forge.schema.json");
            replace_file(&path, schema::text(&schema).as_bytes())?;
        }
        // The store marks the root of the project.
        Store::open(&self.folder.join(".forge"))?;
        let change =
            if self.folder == "." { String::new() } else { format!("cd {} && ", self.folder) };
        say(&format!(
            "a project is in `{}`; run it:\n\n  {change}forge apply pipelines/bench.toml",
            self.folder
        ));
        Ok(())
    }
}
