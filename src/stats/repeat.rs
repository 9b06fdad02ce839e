//! Several draws of one row to one value. Knows nothing of rows beside it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What reducers look like, for messages.
pub const REDUCERS: &str = "mean, majority, max, at_least_<k>, pass@<k>, pass^<k>";

/// Most draws that a reducer can ask for: as many as there are epochs at most.
const K_MAX: u64 = 10_000;

/// A way to make one value of the draws of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reducer {
    /// The mean of the draws with a value.
    Mean,
    /// The value of the answer that most draws gave (self-consistency, Wang et al. 2023).
    Majority,
    /// The best draw.
    Max,
    /// 1 if at least so many draws are right.
    AtLeast(u64),
    /// The chance that of k draws one is right.
    PassAt(u64),
    /// The chance that of k draws all are right.
    PassAll(u64),
}

/// A text that is no reducer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReducer {
    /// There is none of that name.
    #[error("unknown reducer `{0}` (known: {REDUCERS})")]
    Unknown(String),
    /// Its number is missing, or none.
    #[error("`{0}` needs a number of draws between 1 and {K_MAX}, such as `{1}5`")]
    Number(String, &'static str),
}

/// One draw of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw<'a> {
    /// Whether an engine has answered at all; what failed for a passing reason says nothing.
    pub asked: bool,
    /// Its score; absent where there is nothing to score.
    pub value: Option<f64>,
    /// Its answer in the form by which equal answers are found; absent where there is none.
    pub reading: Option<Cow<'a, str>>,
}

/// What became of the draws of a row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Reduced {
    /// Absent where too few draws have a value.
    pub value: Option<f64>,
    /// Whether another answer had as many votes.
    pub tie: bool,
}

impl std::fmt::Display for Reducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reducer::Mean => f.write_str("mean"),
            Reducer::Majority => f.write_str("majority"),
            Reducer::Max => f.write_str("max"),
            Reducer::AtLeast(k) => write!(f, "at_least_{k}"),
            Reducer::PassAt(k) => write!(f, "pass@{k}"),
            Reducer::PassAll(k) => write!(f, "pass^{k}"),
        }
    }
}

impl std::str::FromStr for Reducer {
    type Err = BadReducer;

    fn from_str(text: &str) -> Result<Self, BadReducer> {
        for name in ["at_least_", "pass@", "pass^"] {
            if let Some(number) = text.strip_prefix(name) {
                // `+5` and `05` would be other spellings of the same.
                let k = number.parse().ok().filter(|k: &u64| k.to_string() == number);
                let k = k.filter(|k| (1..=K_MAX).contains(k));
                let k = k.ok_or(BadReducer::Number(text.to_owned(), name))?;
                return Ok(match name {
                    "at_least_" => Reducer::AtLeast(k),
                    "pass@" => Reducer::PassAt(k),
                    _ => Reducer::PassAll(k),
                });
            }
        }
        match text {
            "mean" => Ok(Reducer::Mean),
            "majority" => Ok(Reducer::Majority),
            "max" => Ok(Reducer::Max),
            _ => Err(BadReducer::Unknown(text.to_owned())),
        }
    }
}

impl Reducer {
    /// Draws that a row needs at least.
    pub fn needs(self) -> u64 {
        match self {
            Reducer::Mean | Reducer::Majority | Reducer::Max => 1,
            Reducer::AtLeast(k) | Reducer::PassAt(k) | Reducer::PassAll(k) => k,
        }
    }

    /// One value of the draws of a row, in their order.
    ///
    /// The mean and the best are of draws with a value, and the majority is of those with an answer. The others count
    /// what is right among all that was asked: a reply without an answer has not passed.
    pub fn reduce(self, draws: &[Draw<'_>]) -> Reduced {
        let values = || draws.iter().filter_map(|draw| draw.value);
        let right = values().filter(|value| *value >= 1.0).count() as u64;
        let asked = draws.iter().filter(|draw| draw.asked).count() as u64;
        // Where nothing is known to be right, nothing is wrong either.
        let unscored = draws.iter().any(|draw| draw.reading.is_some() && draw.value.is_none());
        let enough = asked >= self.needs() && asked > 0 && !unscored;
        let value = match self {
            Reducer::Mean => super::mean(values()),
            Reducer::Max => values().reduce(f64::max),
            Reducer::Majority => return majority(draws),
            Reducer::AtLeast(k) => enough.then(|| f64::from(u8::from(right >= k))),
            Reducer::PassAt(k) => enough.then(|| pass_at(asked, right, k)),
            Reducer::PassAll(k) => enough.then(|| pass_all(asked, right, k)),
        };
        Reduced { value, tie: false }
    }
}

/// 1 − C(n−c, k)/C(n, k): without bias, where 1 − (1 − c/n)^k has one (Chen et al. 2021, "Evaluating large
/// language models trained on code"). `n` draws, of which `c` are right.
fn pass_at(n: u64, c: u64, k: u64) -> f64 {
    if n - c < k {
        return 1.0;
    }
    1.0 - (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// C(c, k)/C(n, k) (Yao et al. 2024, "τ-bench").
fn pass_all(n: u64, c: u64, k: u64) -> f64 {
    if c < k {
        return 0.0;
    }
    (0..k).map(|i| (c - i) as f64 / (n - i) as f64).product()
}

/// What most draws of a row say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vote {
    /// The value of that answer; absent where no draw of it came to one.
    pub value: Option<f64>,
    /// Draws that gave it.
    pub votes: u64,
    /// Draws that gave any answer.
    pub of: u64,
    /// Whether another answer had as many votes.
    pub tie: bool,
}

/// Each draw with an answer has one vote for it, whatever a scorer says of it: that a judge came to no verdict on an
/// answer makes it no less common. Of answers with as many votes the one that came first is taken; its value is that
/// of its first draw with one. `None` where no draw has a vote.
pub fn vote(draws: &[Draw<'_>]) -> Option<Vote> {
    let mut votes: Vec<(&str, Option<f64>, u64)> = Vec::new();
    for draw in draws {
        let Some(reading) = draw.reading.as_deref() else { continue };
        match votes.iter_mut().find(|(known, ..)| *known == reading) {
            Some((_, value, count)) => (*value, *count) = (value.or(draw.value), *count + 1),
            None => votes.push((reading, draw.value, 1)),
        }
    }
    let most = votes.iter().map(|(.., count)| *count).max()?;
    let mut winners = votes.iter().filter(|(.., count)| *count == most);
    let value = winners.next().map(|(_, value, _)| *value)?;
    let of = votes.iter().map(|(.., count)| count).sum();
    Some(Vote { value, votes: most, of, tie: winners.next().is_some() })
}

fn majority(draws: &[Draw<'_>]) -> Reduced {
    let vote = vote(draws);
    Reduced { value: vote.and_then(|vote| vote.value), tie: vote.is_some_and(|vote| vote.tie) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws<'a>(answers: &[&'a str], target: &str) -> Vec<Draw<'a>> {
        let draw = |answer: &&'a str| match *answer {
            "" => Draw { asked: true, value: None, reading: None },
            "!" => Draw { asked: false, value: None, reading: None },
            answer => Draw {
                asked: true,
                value: Some(f64::from(u8::from(answer == target))),
                reading: Some(answer.into()),
            },
        };
        answers.iter().map(draw).collect()
    }

    fn check(reducer: &str, answers: &[&str], want: Option<f64>) {
        let got = reducer.parse::<Reducer>().unwrap().reduce(&draws(answers, "7"));
        let near = |(got, want): (f64, f64)| (got - want).abs() < 1e-12;
        assert!(
            got.value.is_some() == want.is_some() && got.value.zip(want).is_none_or(near),
            "{reducer} of {answers:?}: {got:?}, not {want:?}"
        );
    }

    #[test]
    fn each_reducer_by_hand() {
        check("mean", &["7", "8", "7", ""], Some(2.0 / 3.0));
        check("max", &["8", "7"], Some(1.0));
        check("at_least_2", &["7", "8", "7"], Some(1.0));
        check("at_least_3", &["7", "8", "7"], Some(0.0));
        check("majority", &["8", "7", "7", "9"], Some(1.0));
        // 1 − C(3,2)/C(5,2), C(2,2)/C(5,2)
        check("pass@2", &["7", "8", "7", "9", ""], Some(0.7));
        check("pass^2", &["7", "8", "7", "9", ""], Some(0.1));
        check("pass@5", &["7", "8", "8", "9", ""], Some(1.0));
        check("pass^1", &["7", "8"], Some(0.5));
    }

    #[test]
    fn what_is_not_there_is_not_wrong() {
        check("mean", &["", ""], None);
        check("majority", &["", "!"], None);
        check("max", &[], None);
        // Two were asked, and three are needed.
        check("pass@3", &["7", "7", "!"], None);
        check("pass@2", &["", "", "!"], Some(0.0));
        let unscored = [Draw { asked: true, value: None, reading: Some("7".into()) }];
        assert_eq!(Reducer::PassAt(1).reduce(&unscored).value, None);
    }

    #[test]
    fn a_tie_goes_to_the_answer_that_came_first_and_is_told() {
        let tie = |answers: &[&str]| Reducer::Majority.reduce(&draws(answers, "7"));
        assert_eq!(tie(&["8", "7", "7", "8"]), Reduced { value: Some(0.0), tie: true });
        assert_eq!(tie(&["7", "8", "8", "7"]), Reduced { value: Some(1.0), tie: true });
        assert_eq!(tie(&["7", "8", "8"]), Reduced { value: Some(0.0), tie: false });
    }

    #[test]
    fn an_answer_without_a_verdict_has_its_votes() {
        let draw = |reading: &'static str, value| Draw {
            asked: true,
            value,
            reading: Some(reading.into()),
        };
        let majority = |draws: &[Draw<'_>]| Reducer::Majority.reduce(draws).value;
        let (one, two) = (draw("8", Some(1.0)), draw("7", None));
        assert_eq!(majority(&[one.clone(), two.clone(), two.clone()]), None);
        let judged = draw("7", Some(0.5));
        assert_eq!(majority(&[one, two, judged]), Some(0.5));
    }

    #[test]
    fn pass_at_k_is_the_mean_over_all_choices_of_k() {
        for n in 1..=8_u64 {
            for right in 0..=n {
                for k in 1..=n {
                    let (mut any, mut all, mut sets) = (0_u32, 0_u32, 0_u32);
                    for set in 0_u64..1 << n {
                        if u64::from(set.count_ones()) != k {
                            continue;
                        }
                        let hits = u64::from((set & ((1 << right) - 1)).count_ones());
                        sets += 1;
                        any += u32::from(hits > 0);
                        all += u32::from(hits == k);
                    }
                    let share = |count: u32| f64::from(count) / f64::from(sets);
                    assert!((pass_at(n, right, k) - share(any)).abs() < 1e-12, "{n} {right} {k}");
                    assert!((pass_all(n, right, k) - share(all)).abs() < 1e-12, "{n} {right} {k}");
                }
            }
        }
    }

    #[test]
    fn a_reducer_is_written_as_it_is_read() {
        for text in ["mean", "majority", "max", "at_least_3", "pass@5", "pass^10"] {
            assert_eq!(text.parse::<Reducer>().unwrap().to_string(), text);
        }
        for text in ["pass@", "pass@0", "pass^x", "at_least_05", "pass@10001"] {
            assert!(matches!(text.parse::<Reducer>(), Err(BadReducer::Number(..))), "{text}");
        }
        assert_eq!("median".parse::<Reducer>(), Err(BadReducer::Unknown("median".to_owned())));
    }
}
