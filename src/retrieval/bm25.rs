//! BM25 over passages (Robertson et al. 1995), with the inverse document frequency that Lucene takes, which is
//! never negative: ln(1 + (N - n + 0.5) / (n + 0.5)). Knows nothing of where passages come from.
//!
//! Ours and no crate's: `bm25` 2.3.2 walks every passage that has one of the words and searches each of its
//! words one after another (over 20,000 passages of 200 words, a query of 12 words took it 32 ms, and lists of
//! places 0.3 ms), and gives equal scores in another order each time; tantivy 0.24 brings 32 crates beside those
//! that are here, a C library among them, for a collection that fits into memory.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization;

use super::Hit;

/// How soon a word that is repeated counts no more.
const K1: f64 = 1.2;
/// How much of the length of a passage counts.
const B: f64 = 0.75;

/// The words of a text: runs of letters and digits, compatibility characters folded, in lower case. No word
/// is left out, and none is reduced to its stem.
pub fn words(text: &str) -> Vec<String> {
    let folded: String = match text.is_ascii() {
        true => text.to_ascii_lowercase(),
        false => text.nfkc().flat_map(char::to_lowercase).collect(),
    };
    let parts = folded.split(|c: char| !c.is_alphanumeric());
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// An index over passages.
pub struct Bm25 {
    /// Where each word stands: the passage, and how often.
    postings: HashMap<String, Vec<(u32, u32)>>,
    /// What the length of each passage gives to the denominator.
    lengths: Vec<f64>,
}

impl Bm25 {
    /// Over texts, in their order.
    pub fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let mut postings: HashMap<String, Vec<(u32, u32)>> = HashMap::new();
        let mut lengths = Vec::new();
        for (at, text) in texts.enumerate() {
            let at = at as u32;
            let words = words(text);
            lengths.push(words.len() as f64);
            for word in words {
                let places = postings.entry(word).or_default();
                match places.last_mut() {
                    Some((last, count)) if *last == at => *count += 1,
                    _ => places.push((at, 1)),
                }
            }
        }
        let mean = lengths.iter().sum::<f64>() / lengths.len().max(1) as f64;
        for length in &mut lengths {
            *length = K1 * (1.0 - B + B * *length / mean);
        }
        Bm25 { postings, lengths }
    }

    /// Passages with a word of the query, the best first. A word that stands twice counts twice.
    pub fn search(&self, query: &str, most: usize) -> Vec<Hit> {
        let total = self.lengths.len() as f64;
        let mut scores = vec![0.0; self.lengths.len()];
        for word in words(query) {
            let Some(places) = self.postings.get(&word) else { continue };
            let holders = places.len() as f64;
            let idf = (1.0 + (total - holders + 0.5) / (holders + 0.5)).ln();
            for (passage, count) in places {
                let (passage, count) = (*passage as usize, f64::from(*count));
                scores[passage] += idf * count * (K1 + 1.0) / (count + self.lengths[passage]);
            }
        }
        let found = scores.into_iter().enumerate().filter(|(_, score)| *score > 0.0);
        super::best(found.map(|(passage, score)| Hit { passage, score }).collect(), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 4] = [
        "The quick brown fox jumps over the lazy dog",
        "A lazy dog sleeps; the DOG snores.",
        "Foxes are quick",
        "Nothing to see here",
    ];

    /// The values are those of `tests/reference/bm25.py`, which writes the formula down once more.
    #[test]
    fn scores_are_those_of_the_formula() {
        let index = Bm25::new(TEXTS.into_iter());
        let check = |query: &str, want: &[(usize, f64)]| {
            let found = index.search(query, 10);
            assert_eq!(found.len(), want.len(), "{query}: {found:?}");
            for (hit, (passage, score)) in found.iter().zip(want) {
                assert_eq!(hit.passage, *passage, "{query}");
                assert!((hit.score - score).abs() < 1e-12, "{query}: {} is not {score}", hit.score);
            }
        };
        check("lazy dog", LAZY_DOG);
        check("quick", QUICK);
        check("dog dog", DOG_DOG);
        check("unknown words", &[]);
    }

    const LAZY_DOG: &[(usize, f64)] = &[(1, 1.534700608004431), (0, 1.1259469449866206)];
    const QUICK: &[(usize, f64)] = &[(2, 0.8617505488042564), (0, 0.5629734724933103)];
    const DOG_DOG: &[(usize, f64)] = &[(1, 1.796325087648309), (0, 1.1259469449866206)];

    #[test]
    fn words_are_folded() {
        assert_eq!(words("Ｆｏｘ's 3.14, naïve ÉTÉ"), ["fox", "s", "3", "14", "naïve", "été"]);
        assert!(words(" - ").is_empty());
    }

    #[test]
    fn an_empty_collection_has_no_passages() {
        assert!(Bm25::new(std::iter::empty()).search("x", 5).is_empty());
        assert!(Bm25::new([""].into_iter()).search("x", 5).is_empty());
    }
}
