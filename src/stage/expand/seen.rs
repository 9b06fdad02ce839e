//! What was there before, counted in little memory. Knows nothing of flows.

use std::collections::{HashMap, HashSet};

use crate::digest::Digest;

/// How often each of many texts came. Of a text that came once eight bytes are kept, so that a million rows
/// need a few tens of megabytes: the start of its SHA-256. Two texts of a million share one with a
/// probability of 3e-8, and then count as equal, which is harmless: the second gets a number more.
#[derive(Default)]
pub(super) struct Seen {
    once: HashSet<u64>,
    more: HashMap<u64, u32>,
}

impl Seen {
    /// Counts one more, and says how many came before it.
    pub(super) fn add(&mut self, digest: Digest) -> u32 {
        let short = short(digest);
        if self.once.insert(short) {
            return 0;
        }
        let count = self.more.entry(short).or_insert(1);
        *count += 1;
        *count - 1
    }

    fn count(&self, digest: Digest) -> u32 {
        let short = short(digest);
        self.more.get(&short).copied().unwrap_or_else(|| u32::from(self.once.contains(&short)))
    }

    fn set(&mut self, digest: Digest, count: u32) {
        self.once.insert(short(digest));
        if count > 1 {
            self.more.insert(short(digest), count);
        }
    }
}

fn short(digest: Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest.bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Gives every flow a name of its own.
#[derive(Default)]
pub(super) struct Names(Seen);

impl Names {
    /// The name itself for the first flow that bears it, then `name#2`, `name#3`, …
    pub(super) fn unique(&mut self, name: &str) -> String {
        let digest = |name: &str| Digest::of(name.as_bytes());
        let whole = digest(name);
        let mut copies = self.0.count(whole);
        loop {
            copies += 1;
            let id = if copies == 1 { name.to_owned() } else { format!("{name}#{copies}") };
            // A row may bear such a name itself.
            if copies == 1 || self.0.count(digest(&id)) == 0 {
                self.0.set(whole, copies);
                if copies > 1 {
                    self.0.set(digest(&id), 1);
                }
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_never_share_a_name() {
        let mut names = Names::default();
        let names = ["a", "a", "a#2", "a", "b"].map(|name| names.unique(name));
        assert_eq!(names, ["a", "a#2", "a#2#2", "a#3", "b"]);
    }

    #[test]
    fn equal_ones_are_numbered() {
        let mut seen = Seen::default();
        let numbers = ["a", "b", "a", "a", "b"].map(|text| seen.add(Digest::of(text.as_bytes())));
        assert_eq!(numbers, [0, 0, 1, 2, 1]);
    }
}
