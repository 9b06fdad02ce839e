//! The form of a record's line, in journals and packs alike. Knows nothing of files.
//!
//! `<crc32c> <key> {json}`, or `<crc32c>!<key> <generation> {json}` for one that supersedes: of two lines of a
//! key the higher generation counts, and of equal ones the first published. The sum is over all that follows
//! it, so that a line proves itself wherever it is found.

use crate::digest::Key;

/// `crc32c` in hex, the mark, the key, and the space behind it.
const PREFIX: usize = 8 + 1 + 64 + 1;

/// The part of a line that names its key and pins its content: the sum, the mark, the key.
pub(super) const NAMING: usize = PREFIX - 1;

/// What a line says before its JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub key: Key,
    /// 0 for the first of a key; each that supersedes counts one further.
    pub generation: u32,
    /// Where the JSON begins.
    pub json: usize,
}

/// A line with its end, and its head. `json` is written where it belongs, without a copy.
pub(super) fn encode(
    key: Key,
    generation: u32,
    json: impl FnOnce(&mut Vec<u8>),
) -> (Vec<u8>, Head) {
    let mut line = Vec::with_capacity(2048);
    line.extend_from_slice(b"00000000");
    line.push(if generation == 0 { b' ' } else { b'!' });
    line.extend_from_slice(key.write_hex(&mut [0; 64]).as_bytes());
    line.push(b' ');
    if generation > 0 {
        line.extend_from_slice(format!("{generation} ").as_bytes());
    }
    let head = Head { key, generation, json: line.len() };
    json(&mut line);
    let sum = format!("{:08x}", crc32c::crc32c(&line[8..]));
    line[..8].copy_from_slice(sum.as_bytes());
    line.push(b'\n');
    (line, head)
}

/// The head of a whole line; `None` for one that is torn or damaged.
pub(super) fn check(line: &[u8]) -> Option<Head> {
    let head = head(line)?;
    let sum = u32::from_str_radix(std::str::from_utf8(&line[..8]).ok()?, 16).ok()?;
    (sum == crc32c::crc32c(&line[8..])).then_some(head)
}

/// What a line claims, its sum unchecked.
fn head(line: &[u8]) -> Option<Head> {
    if line.len() < PREFIX || line[PREFIX - 1] != b' ' {
        return None;
    }
    let supersedes = match line[8] {
        b'!' => true,
        b' ' => false,
        _ => return None,
    };
    let key = Key::from_hex(&line[9..PREFIX - 1])?;
    if !supersedes {
        return Some(Head { key, generation: 0, json: PREFIX });
    }
    let digits = line[PREFIX..].iter().take_while(|c| c.is_ascii_digit()).count();
    let after = *line.get(PREFIX + digits)?;
    if digits == 0 {
        // Format 1 wrote no number.
        return Some(Head { key, generation: 1, json: PREFIX });
    }
    if after != b' ' {
        return None;
    }
    let generation = std::str::from_utf8(&line[PREFIX..PREFIX + digits]).ok()?.parse().ok()?;
    Some(Head { key, generation, json: PREFIX + digits + 1 })
}

/// Calls `found` with the offset, bytes and head of every whole line in `bytes`, and gives back how many bytes
/// are done with: all but a last line whose end is still to come.
pub(super) fn each(bytes: &[u8], mut found: impl FnMut(usize, &[u8], Head)) -> usize {
    let mut offset = 0;
    while let Some(length) = memchr::memchr(b'\n', &bytes[offset..]) {
        let line = &bytes[offset..offset + length];
        match check(line) {
            Some(head) => found(offset, line, head),
            None => salvage(line, |at, line, head| found(offset + at, line, head)),
        }
        offset += length + 1;
    }
    if let Some((line, head)) = unended(&bytes[offset..]) {
        found(offset, line, head);
        offset = bytes.len();
    }
    offset
}

/// A line that is whole but for its end, which is missing or damaged.
fn unended(line: &[u8]) -> Option<(&[u8], Head)> {
    let shorter = &line[..line.len().saturating_sub(1)];
    [line, shorter].into_iter().find_map(|line| Some((line, check(line)?)))
}

/// Whole lines inside a damaged one: where the damage is the end of a line, its neighbour must not be lost.
pub(super) fn salvage(line: &[u8], mut found: impl FnMut(usize, &[u8], Head)) {
    let mut start = 0;
    for at in 1..line.len().saturating_sub(PREFIX) {
        if !matches!(line[at + 8], b' ' | b'!') || head(&line[at..]).is_none() {
            continue;
        }
        if let Some(head) = check(&line[start..at - 1]) {
            found(start, &line[start..at - 1], head);
        }
        start = at;
    }
    if let Some((line, head)) = unended(&line[start..]) {
        found(start, line, head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Recipe;

    fn key(name: &str) -> Key {
        Recipe::new("x", 1).field("name", name).key()
    }

    fn written(name: &str, generation: u32) -> Vec<u8> {
        encode(key(name), generation, |line| line.extend_from_slice(b"{\"x\":1}")).0
    }

    fn found(bytes: &[u8]) -> Vec<(Key, u32)> {
        let mut keys = Vec::new();
        each(bytes, |_, _, head| keys.push((head.key, head.generation)));
        keys
    }

    #[test]
    fn a_flipped_byte_costs_its_own_line_and_no_other() {
        let lines = [("a", 0), ("b", 3), ("c", 0)];
        let lines = lines.map(|(name, generation)| written(name, generation));
        let bytes = lines.concat();
        let all = [(key("a"), 0), (key("b"), 3), (key("c"), 0)];
        assert_eq!(found(&bytes), all);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            let damaged = found(&damaged);
            assert!(damaged.iter().all(|line| all.contains(line)), "at {at}");
            let lost = 3 - damaged.len();
            // A digit of the sum in upper case is the same sum.
            assert!(lost <= usize::from(bytes[at] != b'\n'), "at {at}");
        }
    }

    #[test]
    fn a_torn_end_is_left_for_later() {
        let bytes = [written("a", 0), written("b", 0)].concat();
        let first = bytes.len() / 2;
        for cut in first..bytes.len() - 1 {
            let mut keys = Vec::new();
            let done = each(&bytes[..cut], |_, _, head| keys.push(head.key));
            assert_eq!((done, keys), (first, vec![key("a")]), "cut at {cut}");
        }
        assert_eq!(
            found(&bytes[..bytes.len() - 1]).len(),
            2,
            "only the end of the line is missing"
        );
    }
}
