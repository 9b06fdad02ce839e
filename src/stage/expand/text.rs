//! Rows of text files, compressed or not: JSON Lines, JSON, CSV, TSV. One row is in memory at a time. Knows
//! nothing of what rows mean.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

use super::bad::{BadRow, RowError};
use super::rows::{Placed, Rest};
use crate::stage::StageError;

/// Bytes of one row: an open quote or a missing line break is an error, and does not fill the memory.
const ROW_BYTES_MAX: u64 = 64 << 20;
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// How files begin that are compressed in a way that is not read here.
const OTHER_COMPRESSIONS: &[(&[u8], &str)] =
    &[(b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"PK\x03\x04", "zip"), (b"\x04\x22\x4d\x18", "lz4")];

/// The text of a file: gzip and zstd are told by how a file begins, so that its name does not matter.
pub(super) fn open(file: File, name: &str) -> Result<Box<dyn BufRead>, StageError> {
    let fail = |error: io::Error| StageError::User(format!("cannot read `{name}`: {error}"));
    let mut raw = BufReader::with_capacity(CHUNK, file);
    let start = raw.fill_buf().map_err(fail)?;
    if let Some((_, what)) = OTHER_COMPRESSIONS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(StageError::User(format!(
            "`{name}` is compressed with {what}; forge reads gzip and zstd (known: .gz, .zst)"
        )));
    }
    let mut text: Box<dyn BufRead> = if start.starts_with(&[0x1f, 0x8b]) {
        // One file may be several, put one after another.
        Box::new(BufReader::with_capacity(CHUNK, flate2::bufread::MultiGzDecoder::new(raw)))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(fail)?;
        Box::new(BufReader::with_capacity(CHUNK, decoder))
    } else {
        Box::new(raw)
    };
    if text.fill_buf().map_err(fail)?.starts_with(b"\xef\xbb\xbf") {
        text.consume(3);
    }
    Ok(text)
}

/// The whole text of a file.
pub(super) fn whole(file: File, name: &str) -> Result<Vec<u8>, StageError> {
    let mut bytes = Vec::new();
    let read = open(file, name)?.take(ROW_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| unreadable(name, 1, &error))?;
    match bytes.len() as u64 > ROW_BYTES_MAX {
        true => Err(too_long(name, 1)),
        false => Ok(bytes),
    }
}

fn unreadable(name: &str, line: u64, error: &io::Error) -> StageError {
    match error.get_ref().is_some_and(|inner| inner.is::<TooLong>()) {
        true => too_long(name, line),
        false => StageError::User(format!("{name}:{line}: cannot read on from here: {error}")),
    }
}

fn too_long(name: &str, line: u64) -> StageError {
    let mib = ROW_BYTES_MAX >> 20;
    StageError::User(format!(
        "{name}:{line}: the row that begins here has more than {mib} MiB; is a quote or a line break missing?"
    ))
}

/// One JSON value on each line; blank lines are passed over.
pub(super) fn json_lines(mut reader: Box<dyn BufRead>, name: String) -> Rest {
    let mut number = 0;
    let mut line = Vec::new();
    Box::new(std::iter::from_fn(move || {
        loop {
            number += 1;
            line.clear();
            let read = reader.by_ref().take(ROW_BYTES_MAX + 1).read_until(b'\n', &mut line);
            match read {
                Ok(0) => return None,
                Ok(n) if n as u64 > ROW_BYTES_MAX => {
                    return Some(Err(too_long(&name, number).into()));
                }
                Ok(_) => {}
                Err(error) => return Some(Err(unreadable(&name, number, &error).into())),
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let indent = line.len() - line.trim_ascii_start().len();
            return Some(match serde_json::from_slice(text) {
                Ok(value) => Ok(Placed { value, place: format!("{name}:{number}") }),
                Err(error) => {
                    let column = indent + error.column();
                    let place = format!("{name}:{number}:{column}");
                    let message = format!("this line is not JSON: {}", words(&error));
                    Err(RowError::Bad(BadRow::unread(place, message, &line, column)))
                }
            });
        }
    }))
}

/// What the parser says, without its own idea of the place.
fn words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// A list of values, or values one after another, read one by one.
pub(super) fn json(reader: Box<dyn BufRead>, name: String) -> Rest {
    let mut values = JsonValues {
        reader,
        name,
        row: 0,
        line: 1,
        column: 0,
        state: State::Start,
        text: Vec::new(),
    };
    Box::new(std::iter::from_fn(move || values.next()))
}

/// Where the reader of a JSON file is.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    /// In the list, before a value; a comma went before it.
    Value,
    /// In the list, after a value.
    Comma,
    /// Values stand one after another, without a list.
    Sequence,
    End,
    /// What comes cannot be read.
    Lost,
}

/// Splits the text of a list into those of its values, by brackets and quotes alone: what is in them is the
/// parser's business, so that one bad value does not hide the next.
struct JsonValues {
    reader: Box<dyn BufRead>,
    name: String,
    row: u64,
    line: u64,
    /// Bytes of the line that were taken.
    column: u64,
    state: State,
    text: Vec<u8>,
}

impl JsonValues {
    fn next(&mut self) -> Option<Result<Placed, RowError>> {
        match self.value() {
            Ok(None) => None,
            Ok(Some((line, column))) => Some(self.parse(line, column)),
            Err(error) => {
                self.state = State::Lost;
                Some(Err(RowError::Fatal(error)))
            }
        }
    }

    fn parse(&self, line: u64, column: u64) -> Result<Placed, RowError> {
        let place = format!("{}, row {}", self.name, self.row);
        serde_json::from_slice(&self.text).map(|value| Placed { value, place }).map_err(|error| {
            // Lines of the value, counted from its own first.
            let own = error.line().max(1) as u64;
            let at =
                if own == 1 { column + error.column() as u64 - 1 } else { error.column() as u64 };
            let place = format!("{}:{}:{at} (row {})", self.name, line + own - 1, self.row);
            let shown = self.text.split(|c| *c == b'\n').nth(own as usize - 1).unwrap_or_default();
            let message = format!("this is not JSON: {}", words(&error));
            RowError::Bad(BadRow::unread(place, message, shown, error.column()))
        })
    }

    fn peek(&mut self) -> Result<Option<u8>, StageError> {
        let line = self.line;
        let buffer = self.reader.fill_buf().map_err(|e| unreadable(&self.name, line, &e))?;
        Ok(buffer.first().copied())
    }

    fn take(&mut self, byte: u8) {
        self.reader.consume(1);
        if byte == b'\n' {
            (self.line, self.column) = (self.line + 1, 0);
        } else {
            self.column += 1;
        }
    }

    fn skip_space(&mut self) -> Result<Option<u8>, StageError> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.take(byte);
        }
        Ok(None)
    }

    fn wrong(&self, message: &str) -> StageError {
        StageError::User(format!("{}:{}:{}: {message}", self.name, self.line, self.column + 1))
    }

    /// Moves the text of the next value into `text`, and says where it begins.
    fn value(&mut self) -> Result<Option<(u64, u64)>, StageError> {
        loop {
            if self.state == State::Lost {
                return Ok(None);
            }
            let byte = self.skip_space()?;
            match (self.state, byte) {
                (State::End, None) => return Ok(None),
                (State::End, Some(_)) => {
                    return Err(self.wrong("this is not JSON: the list of rows has ended before"));
                }
                (State::Start | State::Sequence, None) => return Ok(None),
                (_, None) => {
                    return Err(self.wrong("this is not JSON: the list of rows has no end"));
                }
                (State::Start, Some(b'[')) => {
                    self.take(b'[');
                    self.state = State::Value;
                    if self.skip_space()? == Some(b']') {
                        self.take(b']');
                        self.state = State::End;
                    }
                }
                (State::Start, Some(_)) => self.state = State::Sequence,
                (State::Comma, Some(b',')) => {
                    self.take(b',');
                    self.state = State::Value;
                }
                (State::Comma, Some(b']')) => {
                    self.take(b']');
                    self.state = State::End;
                }
                (State::Comma, Some(_)) => {
                    return Err(self.wrong("this is not JSON: `,` or `]` is missing here"));
                }
                (State::Value, Some(b',' | b']')) => {
                    return Err(self.wrong("this is not JSON: a row is missing here"));
                }
                (State::Value | State::Sequence | State::Lost, Some(_)) => break,
            }
        }
        let start = (self.line, self.column + 1);
        self.row += 1;
        self.text.clear();
        let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
        while let Some(byte) = self.peek()? {
            let ends = byte == b',' || byte == b']' || byte.is_ascii_whitespace();
            if depth == 0 && !quoted && !self.text.is_empty() && ends {
                break;
            }
            self.take(byte);
            self.text.push(byte);
            if self.text.len() as u64 > ROW_BYTES_MAX {
                return Err(too_long(&self.name, start.0));
            }
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && !quoted && matches!(byte, b'}' | b']' | b'"') {
                break;
            }
        }
        if depth > 0 || quoted {
            return Err(StageError::User(format!(
                "{}:{}:{}: this is not JSON: the file ends inside row {}, which begins here",
                self.name, start.0, start.1, self.row
            )));
        }
        if self.state == State::Value {
            self.state = State::Comma;
        }
        Ok(Some(start))
    }
}

/// Stands in an I/O error.
#[derive(Debug, thiserror::Error)]
#[error("a row is too long")]
struct TooLong;

/// Ends with an error where one row takes too much.
struct Limited {
    inner: Box<dyn BufRead>,
    /// Bytes that the row under way may still take.
    left: Arc<AtomicU64>,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 && read > 0 {
            return Err(io::Error::other(TooLong));
        }
        self.left.store(left.saturating_sub(read as u64), Ordering::Relaxed);
        Ok(read)
    }
}

/// Cells between `delimiter`, named by the first line.
pub(super) fn cells(
    reader: Box<dyn BufRead>,
    name: String,
    delimiter: u8,
) -> Result<Rest, StageError> {
    let left = Arc::new(AtomicU64::new(ROW_BYTES_MAX));
    let limited = Limited { inner: reader, left: left.clone() };
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(limited);
    let fail = |error: csv::Error, name: &str, line: u64| match error.into_kind() {
        csv::ErrorKind::Io(error) => unreadable(name, line, &error),
        other => StageError::User(format!("{name}:{line}: this is not CSV: {other:?}")),
    };
    let header = reader.byte_headers().map_err(|error| fail(error, &name, 1))?;
    let mut columns: Vec<String> = Vec::new();
    for cell in header {
        let column = std::str::from_utf8(cell).map_err(|_| {
            StageError::User(format!("{name}:1: the names of columns are not UTF-8"))
        })?;
        if columns.iter().any(|known| known == column) {
            return Err(StageError::User(format!("{name}:1: the column `{column}` stands twice")));
        }
        columns.push(column.to_owned());
    }
    let mut record = csv::ByteRecord::new();
    Ok(Box::new(std::iter::from_fn(move || {
        left.store(ROW_BYTES_MAX, Ordering::Relaxed);
        let next = reader.position().line();
        match reader.read_byte_record(&mut record) {
            Ok(false) => return None,
            Ok(true) => {}
            Err(error) => return Some(Err(fail(error, &name, next).into())),
        }
        let line = record.position().map_or(next, csv::Position::line);
        Some(row_of(&columns, &record, delimiter, &name, line))
    })))
}

fn row_of(
    columns: &[String],
    record: &csv::ByteRecord,
    delimiter: u8,
    name: &str,
    line: u64,
) -> Result<Placed, RowError> {
    let place = format!("{name}:{line}");
    let shown = || record.iter().collect::<Vec<_>>().join(&delimiter);
    if record.len() != columns.len() {
        let message = format!(
            "{} cells, and the first line names {} columns ({})",
            record.len(),
            columns.len(),
            columns.iter().map(|column| format!("`{column}`")).collect::<Vec<_>>().join(", ")
        );
        return Err(RowError::Bad(BadRow::unread(place, message, &shown(), 1)));
    }
    let mut row = Map::with_capacity(columns.len());
    for (i, (column, cell)) in columns.iter().zip(record).enumerate() {
        let Ok(text) = std::str::from_utf8(cell) else {
            let before: usize = record.iter().take(i).map(|cell| cell.len() + 1).sum();
            let message = format!("the cell of the column `{column}` is not UTF-8 text");
            return Err(RowError::Bad(BadRow::unread(place, message, &shown(), before + 1)));
        };
        row.insert(column.clone(), text.into());
    }
    Ok(Placed { value: Value::Object(row), place })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rest: Rest) -> Vec<String> {
        rest.map(|row| match row {
            Ok(Placed { value, place }) => format!("{place} {value}"),
            Err(RowError::Bad(bad)) => format!("bad {}", bad.to_string().replace('\n', "/")),
            Err(RowError::Fatal(error)) => format!("fatal {error}"),
        })
        .collect()
    }

    fn json_of(text: &'static str) -> Vec<String> {
        read(json(Box::new(text.as_bytes()), "f".to_owned()))
    }

    #[test]
    fn a_list_is_split_by_its_brackets_and_quotes() {
        assert_eq!(
            json_of("[ {\"a\": \"],}\\\"\"},\n[1, {\"b\": 2}], 3 ,\"x\"]\n"),
            [
                "f, row 1 {\"a\":\"],}\\\"\"}",
                "f, row 2 [1,{\"b\":2}]",
                "f, row 3 3",
                "f, row 4 \"x\""
            ]
        );
        assert_eq!(json_of(" [ ] "), Vec::<String>::new());
        assert_eq!(
            json_of("{\"a\": 1}\n{\"a\":\n2}"),
            ["f, row 1 {\"a\":1}", "f, row 2 {\"a\":2}"]
        );
    }

    #[test]
    fn a_bad_value_does_not_hide_the_next() {
        assert_eq!(
            json_of("[{\"a\": NaN},\n {\"b\":\n  oops}, {\"c\": 3}]"),
            [
                "bad f:1:8 (row 1): this is not JSON: expected value/  | {\"a\": NaN}/  |       ^",
                "bad f:3:3 (row 2): this is not JSON: expected value/  |   oops}/  |   ^",
                "f, row 3 {\"c\":3}",
            ]
        );
    }

    #[test]
    fn a_broken_list_is_named_by_its_place() {
        let fatal = |text, want: &str| {
            let last = json_of(text).pop().unwrap();
            assert_eq!(last, format!("fatal {want}"), "{text}");
        };
        fatal("[{} {}]", "f:1:5: this is not JSON: `,` or `]` is missing here");
        fatal("[{}] x", "f:1:6: this is not JSON: the list of rows has ended before");
        fatal("[{},]", "f:1:5: this is not JSON: a row is missing here");
        fatal("[{}", "f:1:4: this is not JSON: the list of rows has no end");
        fatal(
            "[{},\n {\"a\": \"",
            "f:2:2: this is not JSON: the file ends inside row 2, which begins here",
        );
    }

    #[test]
    fn cells_that_do_not_fit_are_named_by_line_and_column() {
        let text: &[u8] = b"id,text\n1,a\n2\n3,\xff\n4,\"b\nc\"\n5,d\n";
        assert_eq!(
            read(cells(Box::new(text), "f".to_owned(), b',').unwrap()),
            [
                "f:2 {\"id\":\"1\",\"text\":\"a\"}",
                "bad f:3: 1 cells, and the first line names 2 columns (`id`, `text`)/  | 2/  | ^",
                "bad f:4: the cell of the column `text` is not UTF-8 text/  | 3,\u{fffd}/  |   ^",
                "f:5 {\"id\":\"4\",\"text\":\"b\\nc\"}",
                "f:7 {\"id\":\"5\",\"text\":\"d\"}",
            ]
        );
        let twice = cells(Box::new(&b"a,a\n"[..]), "f".to_owned(), b',').err().unwrap();
        assert_eq!(twice.to_string(), "f:1: the column `a` stands twice");
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text: &[u8] = b"{\"a\": 1}\n\n  {\"a\" 2}\r\n\xff\n{\"a\": 3}";
        assert_eq!(
            read(json_lines(Box::new(text), "f".to_owned())),
            [
                "f:1 {\"a\":1}",
                "bad f:3:8: this line is not JSON: expected `:`/  |   {\"a\" 2}/  |        ^",
                "bad f:4:1: this line is not JSON: expected value/  | \u{fffd}/  | ^",
                "f:5 {\"a\":3}",
            ]
        );
    }
}
