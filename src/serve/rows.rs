//! Rows of tables of samples, and of the logs of runs at work: a page of them, those with an outcome, those in which
//! something was said. Knows nothing of what a row means to its reader.
//!
//! Where each row begins is found once and kept, eight bytes a row; so are the rows that fit a filter, four bytes each.
//! Page n then costs what the first one does. What was said is searched for in the file itself, a megabyte at a time:
//! an index of all words would be as large as the table.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cached::Cached;
use cached::stores::LruCache;
use camino::Utf8Path;
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use super::feed::{LOOK_EVERY, SampleLine, sample};
use super::results::NoResults;
use crate::digest::Digest;
use crate::history::{HistoryError, Table};
use crate::sample::Outcome;
use crate::store::Store;

/// Tables whose rows are known: of a hundred thousand samples, 800 kB each.
const TABLES_MAX: usize = 32;
/// Filters whose rows are known.
const FILTERS_MAX: usize = 64;
/// Bytes that are searched at once.
const CHUNK: u64 = 1 << 20;

/// Which samples are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Want {
    /// That ended like this.
    pub outcome: Option<Outcome>,
    /// That are right, wrong, or (`Some(None)`) without a verdict.
    pub correct: Option<Option<bool>>,
    /// In whose name, texts or targets this stands, in whatever case.
    pub text: Option<String>,
}

impl Want {
    /// Whether everything is wanted.
    pub fn is_all(&self) -> bool {
        *self == Want::default()
    }

    fn fits(&self, mark: Mark) -> bool {
        self.outcome.is_none_or(|outcome| outcome == mark.outcome)
            && self.correct.is_none_or(|correct| correct == mark.correct)
    }
}

/// How a sample ended, and whether it is right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether it is right.
    pub correct: Option<bool>,
}

/// Where each row begins, and where the last one ends.
type Places = Arc<Vec<u64>>;
/// Numbers of rows.
type Fits = Arc<Vec<u32>>;

/// Reads rows, and remembers where they are.
pub struct Rows {
    store: Arc<Store>,
    places: Mutex<LruCache<Digest, Places>>,
    fits: Mutex<LruCache<(Digest, Want), Fits>>,
    logs: Mutex<LruCache<String, Arc<Mutex<Log>>>>,
}

fn damaged(error: &io::Error) -> NoResults {
    let what = "a table of samples".to_owned();
    HistoryError::Damaged { what, why: error.to_string() }.into()
}

impl Rows {
    /// Of a store.
    pub fn new(store: Arc<Store>) -> Rows {
        Rows {
            store,
            places: Mutex::new(LruCache::new(TABLES_MAX)),
            fits: Mutex::new(LruCache::new(FILTERS_MAX)),
            logs: Mutex::new(LruCache::new(TABLES_MAX)),
        }
    }

    fn places(&self, table: Digest) -> Result<Places, NoResults> {
        let mut known = self.places.lock().expect("BUG: the place lock is poisoned");
        if let Some(places) = known.cache_get(&table) {
            return Ok(places.clone());
        }
        if !self.store.is_whole(table) {
            return Err(HistoryError::Gone { what: "a table of samples".to_owned() }.into());
        }
        let places = File::open(self.store.blob_path(table)).and_then(|file| ends_of(&file));
        let places = Arc::new(places.map_err(|error| damaged(&error))?);
        known.cache_set(table, places.clone());
        Ok(places)
    }

    /// How many rows a table has.
    pub fn count(&self, table: Digest) -> Result<u64, NoResults> {
        Ok(self.places(table)?.len() as u64 - 1)
    }

    /// Some rows of a table, from `skip` on.
    pub fn range<T: serde::de::DeserializeOwned>(
        &self,
        table: Digest,
        skip: u64,
        limit: u64,
    ) -> Result<Vec<T>, NoResults> {
        let places = self.places(table)?;
        let total = places.len() as u64 - 1;
        let (from, to) = (skip.min(total), skip.saturating_add(limit).min(total));
        let (start, end) = (places[from as usize], places[to as usize]);
        let mut bytes = vec![0; (end - start) as usize];
        let read = File::open(self.store.blob_path(table)).and_then(|mut file| {
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut bytes)
        });
        read.map_err(|error| damaged(&error))?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        Ok(lines.map(Table::row).collect::<Result<_, _>>()?)
    }

    /// The rows of a table of samples that are wanted, in order. `marks` are those of its rows.
    pub fn wanted(&self, table: Digest, want: &Want, marks: &[Mark]) -> Result<Fits, NoResults> {
        let key = (table, want.clone());
        let known = || self.fits.lock().expect("BUG: the filter lock is poisoned");
        if let Some(fits) = known().cache_get(&key) {
            return Ok(fits.clone());
        }
        let fits: Vec<u32> = match &want.text {
            None => {
                let fits = marks.iter().zip(0_u32..).filter(|(mark, _)| want.fits(**mark));
                fits.map(|(_, row)| row).collect()
            }
            Some(text) => {
                let said = search(&self.store.blob_path(table), &self.places(table)?, text, says);
                let mut said = said.map_err(|error| damaged(&error))?;
                said.retain(|row| marks.get(*row as usize).is_some_and(|mark| want.fits(*mark)));
                said
            }
        };
        let fits = Arc::new(fits);
        known().cache_set(key, fits.clone());
        Ok(fits)
    }

    /// Samples of a stage of a run at work that are wanted: how many there are so far, and some of them.
    pub fn so_far(
        &self,
        run: &str,
        stage: &str,
        want: &Want,
        skip: u64,
        limit: u64,
    ) -> io::Result<(u64, Vec<SampleLine>)> {
        let path = self.store.run_files(run).log();
        let log = {
            let mut logs = self.logs.lock().expect("BUG: the log lock is poisoned");
            logs.cache_get_or_set_with_mut(run.to_owned(), Default::default).clone()
        };
        let mut log = log.lock().expect("BUG: the lock of a log is poisoned");
        if log.read.is_none_or(|read| read.elapsed() >= LOOK_EVERY) {
            log.go_on(&path)?;
        }
        let Some(number) = log.stages.iter().position(|own| own == stage) else {
            return Ok((0, Vec::new()));
        };
        let of_stage = |row: &LogRow| usize::from(row.stage) == number && want.fits(row.mark);
        let rows: Vec<u32> = match &want.text {
            None => {
                let rows = log.rows.iter().zip(0_u32..).filter(|(row, _)| of_stage(row));
                rows.map(|(_, row)| row).collect()
            }
            Some(text) => {
                let starts = log.rows.iter().map(|row| row.place);
                let places: Vec<u64> = starts.chain([log.next]).collect();
                let mut said = search(&path, &places, text, |line, is_in| {
                    sample(first_line(line)).is_some_and(|sample| is_in(&sample.flow))
                })?;
                said.retain(|row| of_stage(&log.rows[*row as usize]));
                said
            }
        };
        let page = rows.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX));
        let page = page.take(usize::try_from(limit).unwrap_or(usize::MAX));
        let mut file = BufReader::new(File::open(&path)?);
        let mut found = Vec::new();
        let mut line = Vec::new();
        for row in page {
            line.clear();
            file.seek(SeekFrom::Start(log.rows[*row as usize].place))?;
            file.read_until(b'\n', &mut line)?;
            found.extend(sample(&line));
        }
        Ok((rows.len() as u64, found))
    }
}

/// Where the lines of a file end, after 0.
fn ends_of(mut file: &File) -> io::Result<Vec<u64>> {
    let mut places = vec![0];
    let mut buffer = vec![0; CHUNK as usize];
    let mut read = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        places.extend(memchr::memchr_iter(b'\n', &buffer[..n]).map(|at| read + at as u64 + 1));
        read += n as u64;
    }
    if places.last() != Some(&read) {
        places.push(read);
    }
    Ok(places)
}

fn first_line(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// The rows of a file in which a text stands, in whatever case. `is_it` looks at a row in which it stands somewhere.
fn search(
    path: &Utf8Path,
    places: &[u64],
    text: &str,
    is_it: impl Fn(&[u8], &dyn Fn(&str) -> bool) -> bool,
) -> io::Result<Vec<u32>> {
    let pattern = |text: &str| -> io::Result<Regex> {
        let mut builder = RegexBuilder::new(&regex::escape(text));
        builder.case_insensitive(true).build().map_err(io::Error::other)
    };
    // As JSON writes it.
    let json = serde_json::to_string(text)?;
    let (written, plain) = (pattern(&json[1..json.len() - 1])?, pattern(text)?);
    let is_in = |text: &str| plain.is_match(text.as_bytes());
    let mut file = File::open(path)?;
    let mut found = Vec::new();
    let mut buffer = Vec::new();
    let (mut row, rows) = (0, places.len().saturating_sub(1));
    if let Some(first) = places.first() {
        file.seek(SeekFrom::Start(*first))?;
    }
    while row < rows {
        let start = places[row];
        let more = places[row + 1..].partition_point(|end| end - start <= CHUNK).max(1);
        buffer.resize((places[row + more] - start) as usize, 0);
        file.read_exact(&mut buffer)?;
        let mut at = 0;
        while let Some(hit) = written.find_at(&buffer, at) {
            let place = start + hit.start() as u64;
            let own = row + places[row..=row + more].partition_point(|begin| *begin <= place) - 1;
            let end = (places[own + 1] - start) as usize;
            if is_it(&buffer[(places[own] - start) as usize..end], &is_in) {
                found.push(own as u32);
            }
            at = end;
        }
        row += more;
    }
    Ok(found)
}

/// Whether something stands in what a person sees of a sample: keys and digests are none of that.
fn says(line: &[u8], is_in: &dyn Fn(&str) -> bool) -> bool {
    #[derive(Deserialize)]
    struct Seen<'a> {
        #[serde(borrow)]
        flow: Cow<'a, str>,
        answer: Option<String>,
        #[serde(default)]
        targets: Vec<String>,
        #[serde(borrow, default)]
        steps: Vec<Step<'a>>,
    }
    #[derive(Deserialize)]
    struct Step<'a> {
        #[serde(borrow, default)]
        transcript: Vec<Said<'a>>,
    }
    #[derive(Deserialize)]
    struct Said<'a> {
        #[serde(borrow, default)]
        content: Cow<'a, str>,
    }
    let Ok(seen) = serde_json::from_slice::<Seen<'_>>(line.trim_ascii_end()) else { return false };
    let mut said = seen.steps.iter().flat_map(|step| &step.transcript);
    is_in(&seen.flow)
        || seen.answer.as_deref().is_some_and(is_in)
        || seen.targets.iter().any(|target| is_in(target))
        || said.any(|said| is_in(&said.content))
}

/// The samples in a log, so far.
#[derive(Default)]
struct Log {
    rows: Vec<LogRow>,
    stages: Vec<String>,
    /// Where the first line begins that was not read.
    next: u64,
    read: Option<Instant>,
}

struct LogRow {
    place: u64,
    stage: u16,
    mark: Mark,
}

impl Log {
    fn go_on(&mut self, path: &Utf8Path) -> io::Result<()> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            // The run is about to begin.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.next))?;
        let mut file = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = file.read_until(b'\n', &mut line)?;
            if read == 0 || line.last() != Some(&b'\n') {
                break;
            }
            if let Some(SampleLine { stage, outcome, correct, .. }) = sample(&line) {
                let known = self.stages.iter().position(|own| *own == stage);
                let stage = known.unwrap_or_else(|| {
                    self.stages.push(stage);
                    self.stages.len() - 1
                });
                let stage = u16::try_from(stage).unwrap_or(u16::MAX);
                self.rows.push(LogRow { place: self.next, stage, mark: Mark { outcome, correct } });
            }
            self.next += read as u64;
        }
        self.read = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_finds_what_people_see_and_nothing_else() {
        let row = |flow: &str, answer: &str, said: &str| {
            let row = serde_json::json!({
                "flow": flow, "flow_digest": "abcdef", "answer": answer, "targets": ["Paris"],
                "steps": [{"transcript": [{"role": "user", "content": said}]}],
            });
            format!("{row}\n")
        };
        let long = "x".repeat(CHUNK as usize);
        let rows = [
            row("q1", "4", "What \"is\" it?"),
            row("Q2", "Ärger", &long),
            row("q3", "5", "no\nline"),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join("rows")).unwrap();
        std::fs::write(&path, rows.concat()).unwrap();
        let places = ends_of(&File::open(&path).unwrap()).unwrap();
        assert_eq!(places.len(), 4);
        let found = |text: &str| search(&path, &places, text, says).unwrap();
        assert_eq!(found("q2"), [1]);
        assert_eq!(found("WHAT \"IS\""), [0]);
        assert_eq!(found("ärger"), [1]);
        assert_eq!(found("O\nl"), [2]);
        assert_eq!(found("paris"), [0, 1, 2]);
        // A digest and the name of a field are seen by nobody.
        assert!(
            found("abcdef").is_empty() && found("transcript").is_empty() && found("a.b").is_empty()
        );
    }
}
