//! Reads the architecture out of a GGUF header, and the parts of a model out of the name of the first. Knows nothing of
//! tensors.
//!
//! mistral.rs panics on an architecture it does not know, so forge looks first. Layout: magic `GGUF`,
//! version u32, number of tensors, number of key-value pairs, then the pairs: name, type, value; all
//! little endian, lengths u64 since version 2 (ggml documentation, `gguf.md`).

use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read, Result};

use camino::Utf8Path;

/// Longest text that is read out of a header.
const TEXT_MAX: u64 = 1 << 20;
/// Deepest nesting of arrays.
const DEPTH_MAX: u8 = 4;

/// `general.architecture` of a GGUF file; `None` when it is not said.
pub fn architecture(path: &Utf8Path) -> Result<Option<String>> {
    text(path, "general.architecture")
}

/// A text of a GGUF header by its name; `None` when it is not there.
pub fn text(path: &Utf8Path, wanted: &str) -> Result<Option<String>> {
    let mut header = Header { file: BufReader::new(File::open(path)?), wide: true };
    if &header.bytes::<4>()? != b"GGUF" {
        return Err(unreadable("it does not begin with `GGUF`"));
    }
    match header.u32()? {
        1 => header.wide = false,
        2 | 3 => {}
        version => return Err(unreadable(&format!("version {version} is not known"))),
    }
    header.length()?;
    for _ in 0..header.length()? {
        let name = header.text()?;
        let kind = header.u32()?;
        if name != wanted {
            header.skip_value(kind, 0)?;
        } else if kind == TEXT {
            return header.text().map(Some);
        } else {
            return Err(unreadable(&format!("`{wanted}` is not a text")));
        }
    }
    Ok(None)
}

/// Names of all files of a model, by that of the first, in order: large ones are split, and each part says in its name
/// which of how many it is (`<name>-00001-of-00003.gguf`, llama.cpp's `gguf-split`). The header of the first has what is
/// said of the model. Any other name is one whole file; that of a later part is an error.
pub fn parts(first: &str) -> std::result::Result<Vec<String>, String> {
    let Some((name, number, count)) = split(first) else { return Ok(vec![first.to_owned()]) };
    let part = |number: u32| format!("{name}-{number:05}-of-{count:05}.gguf");
    match number {
        1 => Ok((1..=count).map(part).collect()),
        _ => Err(format!(
            "`{first}` is part {number} of a model in {count} files; name the first, `{}`",
            part(1)
        )),
    }
}

/// The name of a part without its number, which part it is, and of how many.
fn split(file: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let five = |digits: &str| {
        let is_number = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse::<u32>().ok()).flatten()
    };
    let (number, count) = (five(number)?, five(count)?);
    (1..=count).contains(&number).then_some((name, number, count))
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

fn unreadable(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("not a readable GGUF file: {why}"))
}

struct Header {
    file: BufReader<File>,
    wide: bool,
}

impl Header {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn length(&mut self) -> Result<u64> {
        if self.wide { Ok(u64::from_le_bytes(self.bytes()?)) } else { Ok(self.u32()?.into()) }
    }

    fn text(&mut self) -> Result<String> {
        let length = self.length()?;
        if length > TEXT_MAX {
            return Err(unreadable("a text is too long"));
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| unreadable("a length is too large"))?;
        self.file.seek_relative(bytes)
    }

    fn skip_value(&mut self, kind: u32, depth: u8) -> Result<()> {
        match kind {
            0 | 1 | 7 => self.skip(1),
            2 | 3 => self.skip(2),
            4..=6 => self.skip(4),
            10..=12 => self.skip(8),
            TEXT => {
                let length = self.length()?;
                self.skip(length)
            }
            ARRAY if depth < DEPTH_MAX => {
                let kind = self.u32()?;
                for _ in 0..self.length()? {
                    self.skip_value(kind, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(unreadable("a value has an unknown type")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_in_parts_is_all_of_them() {
        let whole = |name: &str| assert_eq!(parts(name).unwrap(), [name]);
        let all = parts("Q4/m-00001-of-00003.gguf").unwrap();
        let three = ["Q4/m-00001-of-00003.gguf", "Q4/m-00002-of-00003.gguf"];
        assert_eq!(
            (&all[..2], all[2].as_str()),
            (&three.map(str::to_owned)[..], "Q4/m-00003-of-00003.gguf")
        );
        assert_eq!(parts("m-00001-of-00001.gguf").unwrap(), ["m-00001-of-00001.gguf"]);
        let error = parts("a-of-b-00002-of-00003.gguf").unwrap_err();
        assert!(error.contains("part 2 of a model in 3 files"), "{error}");
        assert!(error.ends_with("name the first, `a-of-b-00001-of-00003.gguf`"), "{error}");
        // Names that only look like it.
        whole("m.gguf");
        whole("m-1-of-3.gguf");
        whole("m-00004-of-00003.gguf");
        whole("m-00000-of-00003.gguf");
        whole("m-00001-of-00000.gguf");
        whole("m-+0001-of-00003.gguf");
        whole("m-00001-of-00003.gguf.part");
        whole("one-of-00003.gguf");
    }

    #[test]
    fn the_shipped_model_is_a_llama() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tiny-chat-q8_0.gguf");
        assert_eq!(architecture(Utf8Path::new(path)).unwrap().as_deref(), Some("llama"));
    }

    #[test]
    fn anything_else_is_an_error() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let error = architecture(Utf8Path::new(path)).unwrap_err();
        assert_eq!(error.to_string(), "not a readable GGUF file: it does not begin with `GGUF`");
    }

    #[test]
    fn a_cut_file_is_an_error_and_no_panic() {
        let whole =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tiny-chat-q8_0.gguf"));
        let whole = whole.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.gguf");
        for length in [0, 3, 4, 8, 16, 24, 30] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(architecture(Utf8Path::from_path(&path).unwrap()).is_err(), "cut at {length}");
        }
    }
}
