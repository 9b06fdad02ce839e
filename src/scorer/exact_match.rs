//! Equal once form is taken away. Knows nothing of parts.

use super::{Compared, Scorer, normal};

pub(super) const SCORER: Scorer = Scorer {
    name: "exact_match",
    rev: 1,
    source: "SQuAD 1.1 evaluation (Rajpurkar et al. 2016), with numbers and initials kept whole",
    compare,
};

fn compare(answer: &str, target: &str) -> Compared {
    let answer = normal::text(answer);
    let value = f64::from(u8::from(!answer.is_empty() && answer == normal::text(target)));
    Compared { value, parsed: Some(answer) }
}
