//! Samples as comma-separated values. Knows nothing of where samples come from.
//!
//! RFC 4180: a head, lines that end in CR LF, quotes where a field needs them. What is unknown is an empty field.
//!
//! A spreadsheet takes a field that begins with `=`, `+`, `-`, `@`, a tab or a line break for a formula, and what a
//! model says may well be one (OWASP: CSV injection). Such a text gets an apostrophe before it, which spreadsheets
//! show as text and nothing more; a plain number is none and stays as it is. Whoever wants the exact bytes reads
//! Parquet, Arrow or `report.json`.

use std::borrow::Cow;
use std::io::Write;

use csv::{Terminator, WriterBuilder};

use super::columns::{Cell, Columns, Kind, each_row};
use super::{ExportError, Source};
use crate::store::Store;

pub(super) fn write(sources: &[Source], store: &Store, out: impl Write) -> Result<(), ExportError> {
    let columns = Columns::of(sources, store)?;
    let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(out);
    let kinds: Vec<Kind> = columns.head().map(|(_, kind)| kind).collect();
    let names = columns.head().filter(|(_, kind)| *kind != Kind::Json);
    let names: Vec<String> = names.map(|(name, _)| harmless(&name).into_owned()).collect();
    writer.write_record(names).map_err(failed)?;
    each_row(sources, store, |row| {
        let cells = columns.cells(row).zip(&kinds).filter(|(_, kind)| **kind != Kind::Json);
        for (cell, _) in cells {
            writer.write_field(field(&cell).as_bytes()).map_err(failed)?;
        }
        writer.write_record(None::<&[u8]>).map_err(failed)
    })?;
    Ok(writer.flush()?)
}

fn failed(error: csv::Error) -> ExportError {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error.into(),
        other => ExportError::Form(format!("{other:?}")),
    }
}

fn field<'a>(cell: &'a Cell<'_>) -> Cow<'a, str> {
    match cell {
        Cell::Null => "".into(),
        Cell::Text(text) => harmless(text),
        Cell::Texts(texts) => {
            serde_json::to_string(texts).expect("BUG: texts are plain data").into()
        }
        Cell::Integer(number) => number.to_string().into(),
        Cell::Number(number) => number.to_string().into(),
        Cell::Flag(flag) => flag.to_string().into(),
    }
}

/// A text that no spreadsheet takes for a formula.
fn harmless(text: &str) -> Cow<'_, str> {
    // The wide forms are read as the plain ones where that is the way to type.
    let starts = |c: char| "=+-@\t\r\n＝＋－＠".contains(c);
    let is_number = || text.parse::<f64>().is_ok_and(f64::is_finite);
    match text.starts_with(starts) && !is_number() {
        true => format!("'{text}").into(),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formula_becomes_text_and_a_number_stays() {
        for text in
            ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1", "-", "-inf"]
        {
            assert_eq!(harmless(text), format!("'{text}"));
        }
        for text in ["", "-5", "+3.2e4", "1=1", " =1", "'=1", "−5"] {
            assert_eq!(harmless(text), text);
        }
    }

    #[test]
    fn a_list_is_json_and_nothing_is_nothing() {
        let texts = ["=1".to_owned(), "a\"b".to_owned()];
        assert_eq!(field(&Cell::Texts(&texts)), r#"["=1","a\"b"]"#);
        assert_eq!(field(&Cell::Null), "");
        assert_eq!(field(&Cell::Number(0.1)), "0.1");
    }
}
