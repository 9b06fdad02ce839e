//! Immutable bytes named by their hash: `cas/ab/cdef…`. Knows nothing of records.
//!
//! Written to a temporary file, synced, renamed, and the folder synced: a name never holds half a blob.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};

use super::{StoreError, at};
use crate::digest::{Digest, DigestStream};

/// How the names of unfinished files begin.
pub(super) const TEMPORARY: &str = ".tmp-";
/// An unfinished file this old belongs to nobody.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// A blob younger than this needs no new time when it is used again.
const FRESH: Duration = Duration::from_secs(600);
/// Bytes read at once when hashing a file.
const CHUNK: usize = 1 << 20;

pub(super) struct Blobs {
    root: Utf8PathBuf,
}

impl Blobs {
    pub(super) fn new(root: Utf8PathBuf) -> Self {
        Blobs { root }
    }

    pub(super) fn path(&self, digest: Digest) -> Utf8PathBuf {
        let name = digest.to_string();
        self.root.join(&name[..2]).join(&name[2..])
    }

    /// Calls `visit` with every blob, by its name.
    pub(super) fn each(
        &self,
        mut visit: impl FnMut(Digest, &fs::Metadata),
    ) -> Result<(), StoreError> {
        let read = |folder: &Utf8Path| match fs::read_dir(folder) {
            Ok(entries) => Ok(Some(entries)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at("read", folder)(error)),
        };
        for number in 0..=255_u8 {
            let start = format!("{number:02x}");
            let folder = self.root.join(&start);
            for entry in read(&folder)?.into_iter().flatten().flatten() {
                let name = format!("{start}{}", entry.file_name().to_string_lossy());
                if let (Ok(digest), Ok(meta)) = (name.parse(), entry.metadata()) {
                    visit(digest, &meta);
                }
            }
        }
        Ok(())
    }

    /// Whether a blob is there. One that is relied upon becomes young again, so that no collector takes it for
    /// garbage before a record names it.
    pub(super) fn has(&self, digest: Digest) -> bool {
        let path = self.path(digest);
        let Ok(meta) = fs::metadata(&path) else { return false };
        let age = meta.modified().ok().and_then(|changed| changed.elapsed().ok());
        if age.is_none_or(|age| age < FRESH) {
            return true;
        }
        // In a store that belongs to somebody else, they collect.
        if let Ok(file) = File::open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        path.exists()
    }

    pub(super) fn get(&self, digest: Digest) -> Option<Vec<u8>> {
        let path = self.path(digest);
        let bytes = fs::read(&path).ok()?;
        if Digest::of(&bytes) == digest {
            return Some(bytes);
        }
        self.discard(digest);
        None
    }

    /// Writes a blob to a file, by rename; `false` where it is missing or damaged. A piece of it at a time is in memory.
    pub(super) fn write_to(&self, digest: Digest, path: &Utf8Path) -> Result<bool, StoreError> {
        let blob = self.path(digest);
        let Ok(mut from) = File::open(&blob) else { return Ok(false) };
        let mut file = beside(path)?;
        let (mut hash, mut piece) = (DigestStream::default(), vec![0; CHUNK]);
        loop {
            match from.read(&mut piece).map_err(at("read", &blob))? {
                0 => break,
                n => {
                    hash.update(&piece[..n]);
                    file.write_all(&piece[..n]).map_err(at("write", path))?;
                }
            }
        }
        if hash.finish() != digest {
            self.discard(digest);
            return Ok(false);
        }
        take_place(file, path)?;
        Ok(true)
    }

    /// Takes away a blob that was found damaged: it is good for nothing, and in the way of what would be
    /// written in its place. Another process may have healed it meanwhile, so that it is looked at once more.
    pub(super) fn discard(&self, digest: Digest) {
        let path = self.path(digest);
        let aside = self.root.join(format!("{TEMPORARY}{digest}-{}", ulid::Ulid::new()));
        if fs::rename(&path, &aside).is_err() {
            return;
        }
        let _ = match digest_of_file(&aside) {
            Ok(found) if found == digest => fs::rename(&aside, &path),
            _ => fs::remove_file(&aside),
        };
    }

    /// Whether a blob is there and its content is what its name says. One that is damaged goes.
    pub(super) fn is_whole(&self, digest: Digest) -> bool {
        let path = self.path(digest);
        match digest_of_file(&path) {
            Ok(found) if found == digest => true,
            Ok(_) => {
                self.discard(digest);
                false
            }
            Err(_) => false,
        }
    }

    pub(super) fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        // A blob of the same length that holds other bytes is damage, and is written again.
        let same_length =
            fs::metadata(self.path(digest)).is_ok_and(|meta| meta.len() == bytes.len() as u64);
        if same_length && self.get(digest).is_some() && self.has(digest) {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        writer.write_all(bytes).map_err(at("write", &self.root))?;
        writer.finish()
    }

    pub(super) fn writer(&self) -> Result<BlobWriter, StoreError> {
        fs::create_dir_all(&self.root).map_err(at("create", &self.root))?;
        let file = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(&self.root)
            .map_err(at("create a file in", &self.root))?;
        Ok(BlobWriter { root: self.root.clone(), file, digest: DigestStream::default() })
    }
}

/// A blob being written; it has a name only when finished, and leaves nothing when dropped before.
pub struct BlobWriter {
    root: Utf8PathBuf,
    file: tempfile::NamedTempFile,
    digest: DigestStream,
}

impl BlobWriter {
    /// Another handle to read what was written so far; it stays good after [`BlobWriter::finish`].
    pub fn reader(&self) -> Result<File, StoreError> {
        let path = Utf8Path::from_path(self.file.path()).unwrap_or(&self.root);
        File::open(path).map_err(at("read", path))
    }

    /// The digest of what was written so far.
    pub fn digest(&self) -> Digest {
        self.digest.clone().finish()
    }

    /// Gives the blob its name, if that is `digest`; else nothing is kept.
    pub fn finish_as(self, digest: Digest) -> Result<bool, StoreError> {
        if self.digest() != digest {
            return Ok(false);
        }
        self.finish()?;
        Ok(true)
    }

    /// Gives the blob its name.
    pub fn finish(self) -> Result<Digest, StoreError> {
        let digest = self.digest.finish();
        let path = Blobs::new(self.root.clone()).path(digest);
        let folder = path.parent().expect("BUG: a blob without a folder");
        fs::create_dir_all(folder).map_err(at("create", folder))?;
        set_plain_mode(self.file.as_file()).map_err(at("write", &path))?;
        self.file.as_file().sync_all().map_err(at("sync", &path))?;
        self.file.persist(&path).map_err(|error| at("rename to", &path)(error.error))?;
        sync_folder(folder)?;
        Ok(digest)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether nobody can be at a file any more.
pub(super) fn is_abandoned(path: &Utf8Path) -> bool {
    let changed = fs::metadata(path).and_then(|meta| meta.modified());
    changed.ok().and_then(|changed| changed.elapsed().ok()).is_some_and(|age| age > ABANDONED)
}

/// Removes what killed processes left half written in a folder, once no living one can be at it.
pub(super) fn sweep(folder: &Utf8Path) {
    let Ok(entries) = folder.read_dir_utf8() else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().starts_with(TEMPORARY)) {
        if is_abandoned(entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Writes a small file by rename.
pub(super) fn replace(path: &Utf8Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = beside(path)?;
    file.write_all(bytes).map_err(at("write", path))?;
    take_place(file, path)
}

fn folder_of(path: &Utf8Path) -> &Utf8Path {
    let folder = path.parent().filter(|folder| !folder.as_str().is_empty());
    folder.unwrap_or(Utf8Path::new("."))
}

/// A new file that will take the place of another.
fn beside(path: &Utf8Path) -> Result<tempfile::NamedTempFile, StoreError> {
    let folder = folder_of(path);
    let file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder);
    file.map_err(at("create a file in", folder))
}

fn take_place(file: tempfile::NamedTempFile, path: &Utf8Path) -> Result<(), StoreError> {
    set_plain_mode(file.as_file()).map_err(at("write", path))?;
    file.as_file().sync_all().map_err(at("sync", path))?;
    file.persist(path).map_err(|error| at("rename to", path)(error.error))?;
    sync_folder(folder_of(path))
}

/// Temporary files are private; what replaces a file of the work tree is as readable as any other.
#[cfg(unix)]
pub(super) fn set_plain_mode(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
pub(super) fn set_plain_mode(_: &File) -> io::Result<()> {
    Ok(())
}

pub(super) fn sync_folder(folder: &Utf8Path) -> Result<(), StoreError> {
    if cfg!(unix) {
        File::open(folder).and_then(|file| file.sync_all()).map_err(at("sync", folder))?;
    }
    Ok(())
}

/// The digest of a file of any size.
pub(super) fn digest_of_file(path: &Utf8Path) -> Result<Digest, StoreError> {
    let mut file = File::open(path).map_err(at("read", path))?;
    let mut digest = DigestStream::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer).map_err(at("read", path))? {
            0 => return Ok(digest.finish()),
            n => digest.update(&buffer[..n]),
        }
    }
}
