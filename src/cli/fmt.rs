//! `forge fmt`.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use similar::TextDiff;

use super::project::usage;
use super::terminal::visible;
use super::{FAILED, Failure, print, say};
use crate::manifest::{Sink, Sources, format, parse_toml};
use crate::store::replace_file;

#[derive(Args)]
pub(super) struct Fmt {
    /// Manifests and flow templates
    #[arg(required = true)]
    files: Vec<Utf8PathBuf>,
    /// Write nothing, and end with 1 where a file is not in the format
    #[arg(long)]
    check: bool,
    /// Write nothing, and print what would change
    #[arg(long)]
    diff: bool,
}

impl Fmt {
    pub(super) fn run(self) -> Result<(), Failure> {
        // All of them are read before any is written.
        let files = self.files.iter().map(|path| Ok((path, read(path)?)));
        let files = files.collect::<Result<Vec<_>, Failure>>()?;
        let mut others = 0;
        for (path, before) in files {
            let after = format(&before);
            assert!(same(&before, &after), "BUG: `{path}` would mean something else");
            if before == after {
                continue;
            }
            others += 1;
            if self.diff {
                print(visible(&difference(path, &before, &after)).trim_end());
            }
            if self.check {
                say(&format!("not in the format: {path}"));
            } else if !self.diff {
                // A link stays one.
                let real = path.canonicalize_utf8().unwrap_or_else(|_| path.clone());
                replace_file(&real, after.as_bytes())?;
                say(&format!("formatted {path}"));
            }
        }
        if self.check && others > 0 { Err(Failure::Said(FAILED)) } else { Ok(()) }
    }
}

fn read(path: &Utf8Path) -> Result<String, Failure> {
    let cannot = |error: &std::io::Error| {
        usage(format!("cannot read `{path}`: {}", crate::stage::plain(error)))
    };
    let text = std::fs::read_to_string(path).map_err(|error| cannot(&error))?;
    let (sink, mut sources) = (Sink::default(), Sources::default());
    let source = sources.add(path, &text);
    parse_toml(&text, source, &sink);
    sink.finish(&sources)?;
    Ok(text)
}

/// Whether two files mean the same.
fn same(before: &str, after: &str) -> bool {
    let read = |text: &str| toml::from_str::<toml::Table>(text).ok();
    read(before) == read(after)
}

fn difference(path: &Utf8Path, before: &str, after: &str) -> String {
    let diff = TextDiff::from_lines(before, after);
    let mut unified = diff.unified_diff();
    unified.header(path.as_str(), path.as_str());
    unified.to_string()
}
