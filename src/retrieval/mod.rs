//! Finding the passages of a collection that belong to a question. Knows nothing of files, models or tools: texts
//! come in read.

use serde::{Deserialize, Serialize};

mod bm25;
mod dense;

pub use bm25::{Bm25, words};
pub use dense::{cosine, fuse, nearest};

/// Version of how texts are cut and ranked.
pub const REV: u32 = 1;

/// A piece of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The document: a path in the collection, or the identifier of its row.
    pub source: String,
    /// Its place in the document, from 0.
    pub number: u32,
    /// Its text.
    pub text: String,
}

/// A passage that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Position in the collection.
    pub passage: usize,
    /// What the ranking says; of different rankings they cannot be compared.
    pub score: f64,
}

/// Cuts a document into passages of at most `size` words: runs of text without white space. White space
/// inside a passage stays as it is.
pub fn cut(source: &str, text: &str, size: usize) -> Vec<Passage> {
    let mut passages = Vec::new();
    let (mut start, mut end, mut count) = (None, 0, 0);
    let mut push = |range: &str| {
        let number = passages.len() as u32;
        passages.push(Passage { source: source.to_owned(), number, text: range.to_owned() });
    };
    for word in text.split_whitespace() {
        // Both are parts of one text, so that their addresses tell the place.
        let at = word.as_ptr() as usize - text.as_ptr() as usize;
        if count == size
            && let Some(from) = start.take()
        {
            push(&text[from..end]);
            count = 0;
        }
        start.get_or_insert(at);
        end = at + word.len();
        count += 1;
    }
    if let Some(from) = start {
        push(&text[from..end]);
    }
    passages
}

/// The best `most` of some hits, the best first; of equals, that which stands first in the collection.
pub fn best(mut hits: Vec<Hit>, most: usize) -> Vec<Hit> {
    let order = |a: &Hit, b: &Hit| b.score.total_cmp(&a.score).then(a.passage.cmp(&b.passage));
    if hits.len() > most && most > 0 {
        hits.select_nth_unstable_by(most - 1, order);
    }
    hits.truncate(most);
    hits.sort_by(order);
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_between_words() {
        let texts = |text: &str, size: usize| -> Vec<String> {
            cut("d", text, size).into_iter().map(|passage| passage.text).collect()
        };
        assert_eq!(texts(" one two\n three  four five ", 2), ["one two", "three  four", "five"]);
        assert_eq!(texts("Zażółć gęślą jaźń", 2), ["Zażółć gęślą", "jaźń"]);
        assert_eq!(texts("one two", 2), ["one two"]);
        assert!(texts(" \n ", 2).is_empty());
        assert_eq!(cut("d", "a b c", 1)[2].number, 2);
    }

    #[test]
    fn equal_scores_keep_the_order_of_the_collection() {
        let hits = [0.5, 1.0, 0.5, 0.5].iter().enumerate();
        let hits: Vec<_> = hits.map(|(passage, score)| Hit { passage, score: *score }).collect();
        let found: Vec<_> = best(hits, 3).iter().map(|hit| hit.passage).collect();
        assert_eq!(found, [1, 0, 2]);
    }
}
