//! The last number of the answer equals the target's. Knows nothing of units.

use super::{Compared, Scorer, normal};

pub(super) const SCORER: Scorer = Scorer {
    name: "numeric",
    rev: 1,
    source: "GSM8K's last-number rule (Cobbe et al. 2021), compared as exact decimals",
    compare,
};

fn compare(answer: &str, target: &str) -> Compared {
    let (answer, target) = (normal::last_number(answer), normal::last_number(target));
    let equal = answer.is_some() && answer == target;
    Compared { value: f64::from(u8::from(equal)), parsed: answer }
}
