//! The target stands in the answer, as whole words. Knows nothing of order beyond that.

use super::{Compared, Scorer, normal};

pub(super) const SCORER: Scorer = Scorer {
    name: "includes",
    rev: 1,
    source: "Inspect's `includes`, on normalised whole words",
    compare,
};

fn compare(answer: &str, target: &str) -> Compared {
    let (answer, target) = (normal::text(answer), normal::text(target));
    let (words, wanted): (Vec<_>, Vec<_>) =
        (answer.split(' ').collect(), target.split(' ').collect());
    let found = !target.is_empty() && words.windows(wanted.len()).any(|part| part == wanted);
    Compared { value: f64::from(u8::from(found)), parsed: Some(answer) }
}
