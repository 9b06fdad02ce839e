//! The lines of a pack or a journal, one after another. Knows nothing of what they say.

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;

use super::line::{self, Head};
use super::pack::Entry;

/// A file read by position, whoever else reads it.
pub(super) struct FromHere<F> {
    pub file: F,
    pub at: u64,
}

impl<F: Borrow<File>> io::Read for FromHere<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.borrow().read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads the whole lines of a pack or a journal one after another, in bounded memory.
pub(super) struct Lines {
    reader: BufReader<FromHere<File>>,
    at: u64,
    next: u64,
    line: Vec<u8>,
    /// Lines found inside a damaged one, last first.
    salvaged: Vec<(u64, Vec<u8>, Head)>,
    /// Damaged lines so far.
    pub damaged: u64,
}

impl Lines {
    pub(super) fn of(file: File) -> Lines {
        let reader = BufReader::with_capacity(1 << 20, FromHere { file, at: 0 });
        Lines { reader, at: 0, next: 0, line: Vec::new(), salvaged: Vec::new(), damaged: 0 }
    }

    /// Where the line is that was read last.
    pub(super) fn entry(&self, head: Head) -> Entry {
        let (length, generation) = (self.line.len() as u32, head.generation);
        Entry { key: head.key, offset: self.at, length, generation }
    }

    /// The line that was read last, without its end.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Reads the next whole line, and gives its head.
    pub(super) fn advance(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some((at, line, head)) = self.salvaged.pop() {
                (self.at, self.line) = (at, line);
                return Ok(Some(head));
            }
            self.line.clear();
            let read = self.reader.read_until(b'\n', &mut self.line)?;
            if read == 0 {
                return Ok(None);
            }
            self.at = self.next;
            self.next += read as u64;
            if self.line.last() == Some(&b'\n') {
                self.line.pop();
            }
            if self.line.is_empty() {
                continue;
            }
            if let Some(head) = line::check(&self.line) {
                return Ok(Some(head));
            }
            self.damaged += 1;
            let (at, salvaged) = (self.at, &mut self.salvaged);
            line::salvage(&self.line, |offset, line, head| {
                salvaged.push((at + offset as u64, line.to_vec(), head));
            });
            salvaged.reverse();
        }
    }
}
