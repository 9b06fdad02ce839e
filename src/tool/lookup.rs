//! A table of facts that an agent can ask: exact match of the normalised topic. Knows nothing of files;
//! the table comes in read.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use super::{Observation, Tool, ToolError};
use crate::digest::{Digest, Recipe};
use crate::scorer::normal;

/// Version of how topics are matched.
const REV: u32 = 3;

/// The lookup tool with its table.
pub struct Lookup {
    digest: Digest,
    values: BTreeMap<String, String>,
}

impl Lookup {
    /// A lookup over `rows` (topic to fact), from a file with that digest. Of two topics that are equal
    /// once normalised, the first in order of the alphabet is kept.
    pub fn new(digest: Digest, rows: BTreeMap<String, String>) -> Self {
        let mut values = BTreeMap::new();
        for (topic, value) in rows {
            values.entry(normal::text(&topic)).or_insert(value);
        }
        Lookup { digest, values }
    }

    fn find(&self, topic: &str) -> Observation {
        match self.values.get(&normal::text(topic)) {
            Some(value) => Observation::good(value.as_str()),
            None => Observation { text: "not found".to_owned(), succeeded: false },
        }
    }
}

impl Tool for Lookup {
    fn name(&self) -> &str {
        "lookup"
    }

    fn usage(&self) -> String {
        "lookup[<topic>] returns a fact".to_owned()
    }

    fn call<'a>(&'a self, input: &'a str) -> BoxFuture<'a, Result<Observation, ToolError>> {
        super::ready(self.find(input))
    }

    fn describe(&self, recipe: Recipe) -> Recipe {
        recipe.field("tool.lookup", REV).input("lookup", self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_match_whatever_their_case_and_articles() {
        let rows = [("capital of France".to_owned(), "Paris".to_owned())].into();
        let lookup = Lookup::new(Digest::of(b"kb"), rows);
        assert_eq!(lookup.find("the Capital of France").text, "Paris");
        let miss = lookup.find("capital of Nowhere");
        assert_eq!((miss.text.as_str(), miss.succeeded), ("not found", false));
    }
}
