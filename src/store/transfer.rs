//! Moves results between stores: into one file and out of it, and from one folder to another. A store is a
//! set of lines and blobs that prove themselves, so that moving is a union and never trusts what it reads.
//! Knows nothing of networks.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use camino::Utf8Path;
use serde::Serialize;

use super::line::{self, Head};
use super::record::Kept;
use super::roots::digests_in;
use super::{INDEX, Record, Scanned, Store, StoreError, at};
use crate::digest::{Digest, Key};

/// The member of an archive that holds the lines.
const LINES: &str = "records.log";

/// What was moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Transferred {
    /// Records that were new at the other end.
    pub records: u64,
    /// Blobs that were new at the other end.
    pub blobs: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Records and blobs that were there already.
    pub present: u64,
    /// Parts that were damaged, and left out.
    pub damaged: u64,
}

impl Store {
    /// Everything that the digests in a text reach: records, and the blobs they need. `None` is everything.
    pub fn closure(
        &self,
        text: Option<&[u8]>,
    ) -> Result<(BTreeSet<Key>, BTreeSet<Digest>), StoreError> {
        let mut keys = BTreeSet::new();
        let mut blobs = BTreeSet::new();
        let Some(text) = text else {
            keys.extend(self.keys()?);
            self.blobs.each(|digest, _| {
                blobs.insert(digest);
            })?;
            return Ok((keys, blobs));
        };
        let mut open: Vec<[u8; 32]> = digests_in(text).collect();
        while let Some(bytes) = open.pop() {
            let (key, digest) = (Key::from_bytes(bytes), Digest::from_bytes(bytes));
            if self.has_blob(digest) {
                blobs.insert(digest);
            }
            let Some(Scanned { kept_in, record, .. }) = self.look(key) else { continue };
            if !keys.insert(key) {
                continue;
            }
            blobs.extend(kept_in);
            blobs.extend(record.blobs());
            blobs.extend(record.recipe.inputs.values().filter(|digest| self.has_blob(**digest)));
            if let Some(rows) = record.blob("samples").and_then(|table| self.blob(table)) {
                open.extend(digests_in(&rows));
            }
        }
        Ok((keys, blobs))
    }

    /// Writes what `text` reaches, or everything, as a tar archive: the same bytes for the same content.
    pub fn export(&self, text: Option<&[u8]>, out: impl Write) -> Result<Transferred, StoreError> {
        let (keys, blobs) = self.closure(text)?;
        let path = Utf8Path::new("the archive");
        let mut archive = tar::Builder::new(out);
        let mut moved = Transferred::default();
        for digest in &blobs {
            // What is damaged here is no use elsewhere.
            let Some(bytes) = self.blob(*digest) else {
                moved.damaged += 1;
                continue;
            };
            add(&mut archive, &blob_name(*digest), &bytes).map_err(at("write", path))?;
            moved.blobs += 1;
            moved.bytes += bytes.len() as u64;
        }
        let mut lines = tempfile::tempfile().map_err(at("create a file for", path))?;
        {
            let mut lines = io::BufWriter::new(&mut lines);
            for key in &keys {
                let Some((line, json)) = self.index.read().expect(INDEX).read(*key) else {
                    continue;
                };
                // Generations count within one store: whoever takes this in has its own.
                let (line, _) = line::encode(*key, 0, |out| out.extend_from_slice(&line[json..]));
                lines.write_all(&line).map_err(at("write", path))?;
                moved.records += 1;
                moved.bytes += line.len() as u64;
            }
            lines.flush().map_err(at("write", path))?;
        }
        io::Seek::rewind(&mut lines).map_err(at("read", path))?;
        let length = lines.metadata().map_err(at("read", path))?.len();
        append(&mut archive, LINES, length, lines).map_err(at("write", path))?;
        archive.into_inner().and_then(|mut out| out.flush()).map_err(at("write", path))?;
        Ok(moved)
    }

    /// Takes in an archive. Nothing of it is trusted: blobs are hashed and lines proved by their sums and keys.
    pub fn import_archive(&self, archive: impl Read) -> Result<Transferred, StoreError> {
        let path = Utf8Path::new("the archive");
        let mut archive = tar::Archive::new(archive);
        let mut moved = Transferred::default();
        for entry in archive.entries().map_err(at("read", path))? {
            let mut entry = entry.map_err(at("read", path))?;
            let name = entry.path().map_err(at("read", path))?.to_string_lossy().into_owned();
            if name == LINES {
                self.import_lines(entry, &mut moved).map_err(at("read", path))??;
                continue;
            }
            let Some(digest) = digest_of_name(&name) else {
                moved.damaged += 1;
                continue;
            };
            if self.blob(digest).is_some() {
                moved.present += 1;
                continue;
            }
            let mut writer = self.blob_writer()?;
            let bytes = io::copy(&mut entry, &mut writer).map_err(at("read", path))?;
            match writer.finish_as(digest)? {
                true => {
                    moved.blobs += 1;
                    moved.bytes += bytes;
                }
                false => moved.damaged += 1,
            }
        }
        self.flush()?;
        Ok(moved)
    }

    fn import_lines(
        &self,
        reader: impl Read,
        moved: &mut Transferred,
    ) -> io::Result<Result<(), StoreError>> {
        let mut reader = io::BufReader::with_capacity(1 << 18, reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            if io::BufRead::read_until(&mut reader, b'\n', &mut line)? == 0 {
                return Ok(Ok(()));
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            match line::check(&line) {
                None => moved.damaged += 1,
                Some(head) => {
                    if let Err(error) = self.adopt(head, &line[head.json..], moved) {
                        return Ok(Err(error));
                    }
                }
            }
        }
    }

    /// Takes in a record of another store, unless there is one of its key. Its key is proved by its recipe.
    pub(super) fn adopt(
        &self,
        head: Head,
        json: &[u8],
        moved: &mut Transferred,
    ) -> Result<(), StoreError> {
        let record = match serde_json::from_slice(json) {
            Ok(Kept::Record(record)) => Some(*record),
            Ok(Kept::Blob(digest)) => {
                self.blob(digest).and_then(|bytes| serde_json::from_slice(&bytes).ok())
            }
            Err(_) => None,
        };
        match record.filter(|record: &Record| record.recipe.key() == head.key) {
            None => moved.damaged += 1,
            Some(_) if self.get(head.key).is_some() => moved.present += 1,
            Some(record) => {
                self.put(record, false)?;
                moved.records += 1;
                moved.bytes += json.len() as u64;
            }
        }
        Ok(())
    }

    /// Takes in everything of another store. Where both have a key, ours stays.
    pub fn merge(&self, other: &Store) -> Result<Transferred, StoreError> {
        let (keys, blobs) = other.closure(None)?;
        let mut moved = Transferred::default();
        for digest in blobs {
            if self.blob(digest).is_some() {
                moved.present += 1;
            } else if let Some(bytes) = other.blob(digest) {
                self.put_blob(&bytes)?;
                moved.blobs += 1;
                moved.bytes += bytes.len() as u64;
            } else {
                moved.damaged += 1;
            }
        }
        for key in keys {
            let line = other.index.read().expect(INDEX).read(key);
            match line {
                None => moved.damaged += 1,
                Some((line, json)) => {
                    let head = Head { key, generation: 0, json };
                    self.adopt(head, &line[json..], &mut moved)?;
                }
            }
        }
        self.flush()?;
        Ok(moved)
    }
}

/// `cas/ab/cdef…`, as in the store and on shared ones.
pub(super) fn blob_name(digest: Digest) -> String {
    let name = digest.to_string();
    format!("cas/{}/{}", &name[..2], &name[2..])
}

fn digest_of_name(name: &str) -> Option<Digest> {
    let (start, rest) = name.strip_prefix("cas/")?.split_once('/')?;
    format!("{start}{rest}").parse().ok()
}

fn add(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    append(archive, name, bytes.len() as u64, bytes)
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    length: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(length);
    header.set_mode(0o644);
    header.set_mtime(0);
    archive.append_data(&mut header, name, content)
}
