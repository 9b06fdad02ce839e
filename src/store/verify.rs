//! Reads everything and says what is wrong. Knows nothing of why.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::journal::{self, ENDING, INDEX_ENDING};
use super::lines::Lines;
use super::pack::{self, Entry, Pack};
use super::record::Kept;
use super::{INDEX, Store, StoreError, at, blob, folders, seal};
use crate::digest::{Digest, DigestStream};

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Damage {
    /// The file, relative to the store.
    pub file: Utf8PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// What that costs, and what heals it.
    pub consequence: String,
    /// Whether it was mended.
    pub repaired: bool,
}

/// What was read, and what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Verified {
    /// Whole lines of journals and packs.
    pub lines: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// In the order of files.
    pub damage: Vec<Damage>,
}

impl Verified {
    /// Damage that is still there.
    pub fn unrepaired(&self) -> usize {
        self.damage.iter().filter(|damage| !damage.repaired).count()
    }
}

impl Store {
    /// Reads every line, index and blob. With `repair`, damaged packs are rewritten without their damaged
    /// lines, indexes made again and corrupt blobs removed, so that nothing stands in the way of what works
    /// them out again. `progress` gets the bytes read so far.
    pub fn verify(
        &self,
        repair: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Verified, StoreError> {
        let _lock = if repair { Some(self.lock()?) } else { None };
        let mut verified = Verified::default();
        self.verify_journals(&mut verified, progress)?;
        self.verify_packs(repair, &mut verified, progress)?;
        self.verify_blobs(repair, &mut verified, progress)?;
        if repair {
            // Abandoned journals are sealed without their damaged lines.
            let damaged = verified.damage.iter().any(|d| d.file.starts_with("journal"));
            if damaged {
                folders(&self.root).tidy(true)?;
            }
            for damage in verified.damage.iter_mut().filter(|d| d.file.starts_with("journal")) {
                damage.repaired = !self.root.join(&damage.file).exists();
            }
            self.index.write().expect(INDEX).refresh();
        }
        self.verify_references(&mut verified)?;
        Ok(verified)
    }

    fn verify_journals(
        &self,
        verified: &mut Verified,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let folder = folders(&self.root).journals;
        for name in journal::names(&folder, ENDING).map_err(at("read", &folder))? {
            let path = folder.join(&name);
            let living = journal::claim(&path).is_none();
            let mut lines = match File::open(&path) {
                Ok(file) => Lines::of(file),
                // Sealed meanwhile: it is read as part of its pack.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(at("read", &path)(error)),
            };
            let mut entries = Vec::new();
            while let Some(head) = lines.advance().map_err(at("read", &path))? {
                entries.push(lines.entry(head));
                note_line(lines.line(), verified, progress);
            }
            let damaged = lines.damaged;
            // The last line of a living process may be half written.
            if damaged > u64::from(living) {
                verified.damage.push(Damage {
                    file: Utf8PathBuf::from("journal").join(&name),
                    what: count_of(damaged, "damaged line"),
                    consequence: "what they held is worked out again when it is asked for".into(),
                    repaired: false,
                });
            } else if !living {
                pack::keep_those_that_count(&mut entries);
                verify_index(&folder, &name, &entries, verified)?;
            }
        }
        Ok(())
    }

    fn verify_packs(
        &self,
        repair: bool,
        verified: &mut Verified,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let folder = folders(&self.root).packs;
        for name in pack::list(&folder).map_err(at("read", &folder))? {
            let Ok(pack) = Pack::open(&folder, &name) else { continue };
            let file = |ending| Utf8PathBuf::from(format!("packs/{name}.{ending}"));
            let mut lines = pack.lines().map_err(at("read", &pack.path()))?;
            let mut naming = DigestStream::default();
            let mut entries = Vec::new();
            while let Some(head) = lines.advance().map_err(at("read", &pack.path()))? {
                entries.push(lines.entry(head));
                naming.update(&lines.line()[..super::line::NAMING]);
                note_line(lines.line(), verified, progress);
            }
            if !pack.path().exists() {
                // Merged away meanwhile: its lines are read as part of another.
                continue;
            }
            let damaged = lines.damaged;
            let is_named = naming.finish().to_string() == name;
            let leads = || pack.index_leads_to(&entries).map_err(at("read", &pack.index_path()));
            // Of a damaged pack, the index leads to more than is whole.
            if damaged == 0 && is_named && !leads()? {
                verified.damage.push(Damage {
                    file: file("idx"),
                    what: "the index is damaged or missing".to_owned(),
                    consequence: "nothing is lost: it is made again from its pack".to_owned(),
                    repaired: repair && pack.repair_index() && leads()?,
                });
            }
            if damaged == 0 && is_named {
                continue;
            }
            let repaired = repair && mend(&folder, pack);
            verified.damage.push(Damage {
                file: file("pack"),
                what: match damaged {
                    0 => "lines are missing".to_owned(),
                    n => count_of(n, "damaged line"),
                },
                consequence: "what they held is worked out again when it is asked for".into(),
                repaired,
            });
        }
        Ok(())
    }

    fn verify_blobs(
        &self,
        repair: bool,
        verified: &mut Verified,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let mut all: BTreeMap<Digest, u64> = BTreeMap::new();
        self.blobs.each(|digest, meta| {
            all.insert(digest, meta.len());
        })?;
        for (digest, bytes) in all {
            let path = self.blobs.path(digest);
            verified.blobs += 1;
            verified.bytes += bytes;
            progress(verified.bytes);
            let what = match blob::digest_of_file(&path) {
                Ok(found) if found == digest => continue,
                Ok(_) => "its content is not what its name says".to_owned(),
                // Collected meanwhile.
                Err(_) if !path.exists() => continue,
                // That it cannot be read now does not say that it is damaged.
                Err(error) => return Err(error),
            };
            if repair {
                self.blobs.discard(digest);
            }
            let repaired = repair && !path.exists();
            verified.damage.push(Damage {
                file: path.strip_prefix(&self.root).unwrap_or(&path).to_owned(),
                what,
                consequence: "its producer runs again when it is asked for".to_owned(),
                repaired,
            });
        }
        Ok(())
    }

    /// Results whose blobs are not there. Nothing mends that but their producer.
    fn verify_references(&self, verified: &mut Verified) -> Result<(), StoreError> {
        for key in self.keys()? {
            let line = self.index.read().expect(INDEX).read(key);
            let Some((line, json)) = line else { continue };
            let mut need = |digest: Digest, whose: String| {
                if !self.blobs.path(digest).exists() {
                    verified.damage.push(missing(digest, &whose));
                }
            };
            match serde_json::from_slice(&line[json..]) {
                Ok(Kept::Blob(digest)) => need(digest, format!("the record {}", key.short())),
                Ok(Kept::Record(record)) => record.blobs().for_each(|digest| {
                    need(digest, format!("the {} {}", record.recipe.kind, key.short()));
                }),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Looks whether the index of a journal that has ended, if it has one, leads to its lines.
fn verify_index(
    folder: &Utf8Path,
    log: &str,
    entries: &[Entry],
    verified: &mut Verified,
) -> Result<(), StoreError> {
    let name = log.strip_suffix(ENDING).unwrap_or(log);
    let Ok(journal) = Pack::open_journal(folder, name) else { return Ok(()) };
    let path = journal.index_path();
    if journal.index_leads_to(entries).map_err(at("read", &path))? || !path.exists() {
        return Ok(());
    }
    verified.damage.push(Damage {
        file: format!("journal/{name}{INDEX_ENDING}").into(),
        what: "the index is damaged".to_owned(),
        consequence: "nothing is lost: it is made again from its journal".to_owned(),
        // With the journal, which is sealed.
        repaired: false,
    });
    Ok(())
}

/// Rewrites a pack without its damaged lines.
fn mend(folder: &Utf8Path, pack: Pack) -> bool {
    if !pack.claim() {
        return false;
    }
    let packs = [pack];
    let rewritten = seal::rewrite(folder, &packs, |_| true);
    rewritten.and_then(|name| seal::remove(folder, &packs, name.as_deref())).is_ok()
}

fn missing(digest: Digest, whose: &str) -> Damage {
    let name = digest.to_string();
    Damage {
        file: Utf8PathBuf::from(format!("cas/{}/{}", &name[..2], &name[2..])),
        what: format!("it is missing, and {whose} needs it"),
        consequence: "its producer runs again when it is asked for".to_owned(),
        repaired: false,
    }
}

fn note_line(line: &[u8], verified: &mut Verified, progress: &mut dyn FnMut(u64)) {
    verified.lines += 1;
    verified.bytes += line.len() as u64 + 1;
    if verified.lines.is_multiple_of(1000) {
        progress(verified.bytes);
    }
}

/// `1 line`, `2 lines`.
fn count_of(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
