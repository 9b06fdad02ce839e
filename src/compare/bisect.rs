//! The first of many revisions on the side of the last one, found by halves. Knows nothing of what makes a side.

use std::collections::BTreeMap;

/// On which side a revision is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// That of the first.
    Good,
    /// That of the last.
    Bad,
    /// Nobody can say.
    Skipped,
}

/// What is known of revisions by their position. The first is good and the last is bad.
#[derive(Debug, Clone)]
pub struct Search {
    good: usize,
    bad: usize,
    known: BTreeMap<usize, Verdict>,
}

impl Search {
    /// Of `count` revisions, two or more.
    pub fn new(count: usize) -> Search {
        Search { good: 0, bad: count.saturating_sub(1), known: BTreeMap::new() }
    }

    /// The revision to look at next: of those between that are not known, the one nearest to the middle, of two the
    /// older. `None` at the end.
    pub fn next(&self) -> Option<usize> {
        let middle = self.good + (self.bad - self.good) / 2;
        let open = (self.good + 1..self.bad).filter(|i| !self.known.contains_key(i));
        open.min_by_key(|i| (i.abs_diff(middle), *i))
    }

    /// Says what a revision between is.
    pub fn tell(&mut self, revision: usize, verdict: Verdict) {
        self.known.insert(revision, verdict);
        match verdict {
            Verdict::Good => self.good = self.good.max(revision),
            Verdict::Bad => self.bad = self.bad.min(revision),
            Verdict::Skipped => {}
        }
    }

    /// Forgets what was skipped, to look at it again in another way.
    pub fn forget_skipped(&mut self) {
        self.known.retain(|_, verdict| *verdict != Verdict::Skipped);
    }

    /// The last that is known to be good and the first that is known to be bad. Where others stand between them, they
    /// were skipped, and the change is in one of them or in the bad one.
    pub fn ends(&self) -> (usize, usize) {
        (self.good, self.bad)
    }

    /// Steps that remain at most, if nothing is skipped.
    pub fn steps_left(&self) -> u32 {
        let between = self.bad - self.good - 1;
        usize::BITS - between.leading_zeros()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches among `count` where `first` is the first bad one and some cannot be judged.
    fn search(count: usize, first: usize, skipped: &[usize]) -> ((usize, usize), usize) {
        let (mut search, mut steps) = (Search::new(count), 0);
        while let Some(i) = search.next() {
            steps += 1;
            assert!(steps <= count, "it does not end");
            search.tell(
                i,
                match i {
                    _ if skipped.contains(&i) => Verdict::Skipped,
                    _ if i < first => Verdict::Good,
                    _ => Verdict::Bad,
                },
            );
        }
        (search.ends(), steps)
    }

    #[test]
    fn every_place_is_found_in_few_steps() {
        for first in 1..100 {
            let (ends, steps) = search(100, first, &[]);
            assert_eq!(ends, (first - 1, first));
            assert!(steps <= 7, "{steps} for {first}");
        }
        assert_eq!(Search::new(100).steps_left(), 7);
        assert_eq!(search(2, 1, &[]), ((0, 1), 0));
    }

    #[test]
    fn what_cannot_be_judged_leaves_a_range() {
        assert_eq!(search(10, 5, &[4, 5]).0, (3, 6));
        assert_eq!(search(10, 5, &[2, 8]).0, (4, 5));
        assert_eq!(search(5, 3, &[1, 2, 3]).0, (0, 4));
    }

    #[test]
    fn what_was_skipped_can_be_looked_at_again() {
        let mut search = Search::new(4);
        search.tell(1, Verdict::Skipped);
        search.tell(2, Verdict::Bad);
        assert_eq!(search.next(), None);
        search.forget_skipped();
        assert_eq!((search.next(), search.ends()), (Some(1), (0, 2)));
    }
}
